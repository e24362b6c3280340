"""The machines of one launch: got, furnished, watched, restarted, given back."""

import json
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import bundle
from command import START_AGAIN, WRONG_INPUT, MistakeError
from gcloud import GONE, Gcloud, Request, labels, quoted, state
from shell import CommandError

_KILLED = (137, 143)  # by SIGKILL or SIGTERM: the machine went, or somebody stopped it
_SOON = 600.0  # seconds; a run that fails within them is not retried for ever
_GRACE = 180.0  # seconds for the other workers, once one has ended
_LOST = 5  # looks in a row that find a worker deaf


class Cargo(NamedTuple):
    """What the workers get."""

    arguments: Sequence[str]
    variables: Mapping[str, str]
    mounted: str
    dirty: bool


class PreemptedError(Exception):
    """The machines are gone."""


class Pod:
    """All slices of a request as one thing."""

    def __init__(self, gcloud: Gcloud, *, poll: float = 30.0, extras: str = ""):
        self.gcloud, self.request, self.shell = gcloud, gcloud.request, gcloud.shell
        self.poll, self.extras = poll, extras
        self.folder = f"t5x_lite/{self.request.name}"
        self._shown = 0  # lines of worker 0's log
        self._sizes: dict[str, int] = {}

    # ------------------------------------------------------------------------------- the whole

    def run_to_the_end(self, cargo: Cargo, *, retries: int) -> int:
        """Get machines, run, restart, until the run has ended; its exit code."""
        failures = 0
        while True:
            began = time.monotonic()
            try:
                code = self._run_once(cargo)
            except PreemptedError as reason:
                self.shell.say(f"preempted ({reason}): asking for new machines")
                self._shown = 0
                if self.gcloud.describe() is not None:
                    self.delete()
                continue
            if code in (0, WRONG_INPUT):
                return code
            failures = 0 if time.monotonic() - began > _SOON else failures + 1
            if code != START_AGAIN and failures > retries:
                self.shell.say(
                    f"the run failed with exit code {code}, {failures} times soon after its "
                    f"start: giving up"
                )
                return code
            self.shell.say(f"the run stopped with exit code {code}: starting it again")

    def _run_once(self, cargo: Cargo) -> int:
        self.get()
        if not self._runs_already():
            self.furnish(cargo)
            self.on_workers(f"bash {self.folder}/on_worker.sh start")
        code = self.watch()
        if code:
            self.on_workers(f"bash {self.folder}/on_worker.sh stop")
        return code

    def _runs_already(self) -> bool:
        """Whether an earlier launcher's run is under way."""
        if self.shell.dry_run:
            return False
        try:
            return "running" in self.states().values()
        except CommandError:  # fresh machines know of no run, and may not answer yet
            return False

    # --------------------------------------------------------------------------------- machines

    def get(self) -> None:
        """Have the machines, created by this launch, or raise CommandError."""
        if not self.shell.dry_run and (found := self.gcloud.describe()) is not None:
            self._check_ours(found)
        else:
            self.gcloud.create()
        deadline, said = time.monotonic() + 3600 * self.request.wait_hours, ""
        while True:
            found = self.gcloud.describe()
            now = "missing" if found is None else state(found)
            if now != said:
                self.shell.say(f"{self.request.name}: {now}")
                said = now
            if now == "ACTIVE":
                return
            if now == "FAILED":
                words = json.dumps(found["state"] if found else {})
                raise self.shell.failure(["queued resource", self.request.name], words, 1)
            if found is None or now in GONE:
                raise PreemptedError(now)
            if time.monotonic() > deadline:
                words = f"timed out: {now} for {self.request.wait_hours:g} hours"
                raise self.shell.failure(["queued resource", self.request.name], words, 1)
            time.sleep(self.poll)

    def delete(self) -> None:
        """Delete the machines, if this launch created them."""
        if not self.shell.dry_run:
            found = self.gcloud.describe()
            if found is None:
                self.shell.say(f"{self.request.name} does not exist (any more)")
                return
            self._check_ours(found)
        self.gcloud.delete()

    def _check_ours(self, found: Mapping) -> None:
        if any(each.get("t5x_lite-launch") != self.request.token for each in labels(found)) or (
            not labels(found)
        ):
            raise MistakeError(
                f"there is a queued resource {self.request.name} that this launch did not create: "
                f"it stays untouched; choose another NAME"
            )

    # ---------------------------------------------------------------------------------- workers

    def furnish(self, cargo: Cargo) -> None:
        """Bring source, command and environment to all workers, and install."""
        name = f"{self.request.name}.bundle"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            bundle.write(
                path,
                cargo.arguments,
                devices=self.request.chips,
                variables=cargo.variables,
                mounted=cargo.mounted,
                dirty=cargo.dirty,
            )
            self.on_workers("mkdir -p t5x_lite")
            self._each_node(
                lambda node: self._again(
                    lambda: self.gcloud.copy_to(node, str(path), f"t5x_lite/{name}")
                )
            )
        self.on_workers(bundle.unpack_line(self.folder, name))
        self.on_workers(f"bash {self.folder}/on_worker.sh setup {quoted(self.extras)}")

    def on_workers(self, command: str) -> None:
        """A line of shell on every worker; what it does may be done twice."""
        self._each_node(lambda node: self._again(lambda: self.gcloud.ssh(node, command)))

    def _each_node(self, act: Callable[[str], object]) -> None:
        with ThreadPoolExecutor(len(self.request.nodes)) as threads:
            list(threads.map(act, self.request.nodes))

    def _again(self, act: Callable[[], object], attempts: int = 4) -> None:
        """Ssh fails now and then; whether the machines are still there decides what it means."""
        for attempt in range(attempts):
            try:
                act()
                return
            except CommandError as error:
                self._check_alive()
                if attempt == attempts - 1:
                    raise
                self.shell.say(f"{error}\ntrying again")
                time.sleep(self.poll)

    def _check_alive(self) -> None:
        found = self.gcloud.describe()
        if found is None or state(found) != "ACTIVE":
            raise PreemptedError("missing" if found is None else state(found))
        for name in self.request.nodes:
            node = self.gcloud.node(name)
            if node is None or node.get("state") in ("PREEMPTED", "DELETING", "TERMINATED"):
                raise PreemptedError(f"{name}: {node['state'] if node else 'missing'}")

    # --------------------------------------------------------------------------------- watching

    def watch(self) -> int:
        """Show worker 0's log until all workers have ended; the exit code that counts."""
        log, deaf, ending = _Log(self), 0, None
        while True:
            log.keep_up()
            try:
                states = self.states()
                deaf = 0
            except CommandError as error:
                self._check_alive()
                deaf += 1
                if deaf == _LOST:
                    raise error
                time.sleep(self.poll)
                continue
            if (code := verdict(states)) is not None:
                ending = ending or time.monotonic()
                # Where one has ended, the others may still be saving.
                if "running" not in states.values() or time.monotonic() - ending > _GRACE:
                    log.finish()
                    self._tell_of_failures(states)
                    return code
            self._check_alive()
            time.sleep(self.poll)

    def states(self) -> dict[str, str]:
        """What every worker says of itself, by node and worker; CommandError if one is silent."""
        found = {}
        for node in self.request.nodes:
            command = f"bash {self.folder}/on_worker.sh status"
            said = self.gcloud.ssh(node, command, quiet=True)
            lines = re.findall(r"worker (\S+): (running|absent|exited \d+)", said)
            expected = self._workers(node)
            if len(lines) < expected:
                raise CommandError(f"{len(lines)} of {expected} workers of {node} answered", said)
            found |= {f"{node} {worker}": state for worker, state in lines}
        return found

    def _workers(self, node: str) -> int:
        """How many machines a node consists of."""
        if node not in self._sizes:
            described = self.gcloud.node(node) or {}
            self._sizes[node] = len(described.get("networkEndpoints", [])) or 1
        return self._sizes[node]

    def _tell_of_failures(self, states: Mapping[str, str]) -> None:
        bad = {name: said for name, said in states.items() if said != "exited 0"}
        for name, said in bad.items():
            self.shell.say(f"{name}: {said}")

    def report(self) -> Iterator[str]:
        """State of the queued resource, the nodes and the workers, a line each."""
        found = self.gcloud.describe()
        yield f"{self.request.name}: {'missing' if found is None else state(found)}"
        if found is not None and state(found) == "ACTIVE":
            yield from (f"{name}: {said}" for name, said in self.states().items())

    def show_log(self) -> int:
        """Worker 0's log, to the end of the run."""
        log = _Log(self)
        log.keep_up()
        return log.finish(patience=None)

    def collect(self, folder: Path, model_dir: str | None) -> None:
        """Copy every worker's log, and what the run wrote into its directory but checkpoints."""
        for node in self.request.nodes:
            for worker in range(self._workers(node)):
                target = folder / f"{node}-{worker}.log"
                if not self.shell.dry_run:
                    folder.mkdir(parents=True, exist_ok=True)
                try:
                    self.gcloud.copy_from(node, f"{self.folder}/log", str(target), worker=worker)
                except CommandError as error:
                    self.shell.say(f"no log of {node} worker {worker}: {error}")
        if model_dir is not None:
            try:
                self._collect_records(folder / "run", model_dir)
            except CommandError as error:
                self.shell.say(f"no records from {model_dir}: {error}")

    def _collect_records(self, folder: Path, model_dir: str) -> None:
        first, packed = self.request.nodes[0], folder / "records.tgz"
        pack = f"bash {self.folder}/on_worker.sh records {quoted(model_dir)}"
        self.gcloud.ssh(first, pack, worker="0")
        if not self.shell.dry_run:
            folder.mkdir(parents=True, exist_ok=True)
        self.gcloud.copy_from(first, f"{self.folder}/records.tgz", str(packed), worker=0)
        self.shell.run(["tar", "-xzf", str(packed), "-C", str(folder)])
        packed.unlink(missing_ok=True)


def verdict(states: Mapping[str, str]) -> int | None:
    """The exit code of a run from what its workers say; None while it should go on.

    One worker's failure ends a run: the others wait for it. A mistake in the configuration counts
    before other failures, those before being killed.
    """
    codes = [int(said.split()[1]) for said in states.values() if said.startswith("exited")]
    if "absent" in states.values():
        return START_AGAIN  # a machine that was rebooted knows of nothing
    bad = [code for code in codes if code]
    if not bad:
        return 0 if len(codes) == len(states) else None
    for wanted in (WRONG_INPUT, START_AGAIN):
        if wanted in bad:
            return wanted
    return next((code for code in bad if code not in _KILLED), START_AGAIN)


def expected_answers(request: Request) -> dict[tuple[str, ...], str]:
    """What a dry run takes gcloud to say: all is well."""
    node = {"labels": {"t5x_lite-launch": request.token}}
    resource = {
        "state": {"state": "ACTIVE"},
        "tpu": {"nodeSpec": [{"node": node}] * request.slices},
    }
    return {
        ("queued-resources", "describe"): json.dumps(resource),
        ("tpu-vm", "describe"): json.dumps({"state": "READY", "networkEndpoints": [{}]}),
        ("ssh", "status"): "worker 0: exited 0\n",
    }


class _Log:
    """Worker 0's log, line by line, over as many connections as it takes."""

    def __init__(self, pod: Pod):
        self._pod, self._process, self._thread = pod, None, None

    def keep_up(self) -> None:
        """Connect, or connect again where the connection was lost."""
        if self._process is None or self._process.poll() not in (None, 0):
            pod = self._pod
            line = f"bash {pod.folder}/on_worker.sh follow {pod._shown + 1}"
            command = pod.gcloud.ssh_command(pod.request.nodes[0], line, worker="0")
            if pod.shell.dry_run:
                pod.shell.run(command)
                return
            self._process = pod.shell.start(command)
            self._thread = threading.Thread(target=self._read, args=(self._process,), daemon=True)
            self._thread.start()

    def finish(self, patience: float | None = 60.0) -> int:
        """Wait for the last lines; the exit code of the command that was followed."""
        if self._process is None or self._thread is None:
            return 0
        self._thread.join(patience)
        if self._process.poll() is None:
            self._process.terminate()
        return self._process.wait()

    def _read(self, process) -> None:
        for line in process.stdout:
            self._pod._shown += 1
            self._pod.shell.say(line.rstrip("\n"))
