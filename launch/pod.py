"""The machines of one launch: create, install, watch, restart, delete."""

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

_KILLED = (137, 143)  # by SIGKILL or SIGTERM: the machine went away, or someone stopped it
_SOON = 600.0  # seconds; a run that fails within them is retried a limited number of times
_GRACE = 180.0  # seconds for the other workers, once one has ended
_LOST = 5  # checks in a row without an answer of a worker


class Payload(NamedTuple):
    """What is copied to the workers."""

    arguments: Sequence[str]
    variables: Mapping[str, str]
    mounted: str
    dirty: bool


class PreemptedError(Exception):
    """The machines were preempted."""


class Pod:
    """All slices of a request."""

    def __init__(self, gcloud: Gcloud, *, poll: float = 30.0, extras: str = ""):
        self.gcloud, self.request, self.shell = gcloud, gcloud.request, gcloud.shell
        self.poll, self.extras = poll, extras
        self.folder = f"t5x_lite/{self.request.name}"
        self._shown = 0  # number of shown lines of worker 0's log
        self._sizes: dict[str, int] = {}

    # ------------------------------------------------------------------------------- run

    def run_to_the_end(self, payload: Payload, *, retries: int) -> int:
        """Create machines, run, and restart until the run has ended; return its exit code."""
        failures = 0
        while True:
            began = time.monotonic()
            try:
                code = self._run_once(payload)
            except PreemptedError as reason:
                self.shell.say(f"preempted ({reason}): requesting new machines")
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
                    f"start: not restarting"
                )
                return code
            self.shell.say(f"the run stopped with exit code {code}: restarting")

    def _run_once(self, payload: Payload) -> int:
        self.get()
        if not self._runs_already():
            self.install(payload)
            self.on_workers(f"bash {self.folder}/on_worker.sh start")
        code = self.watch()
        if code:
            self.on_workers(f"bash {self.folder}/on_worker.sh stop")
        return code

    def _runs_already(self) -> bool:
        """Whether a run of an earlier launcher is still running."""
        if self.shell.dry_run:
            return False
        try:
            return "running" in self.states().values()
        except CommandError:  # new machines have no run, and may not answer yet
            return False

    # --------------------------------------------------------------------------------- machines

    def get(self) -> None:
        """Wait for the machines, created by this launch; raises CommandError if it fails."""
        if not self.shell.dry_run and (existing := self.gcloud.describe()) is not None:
            self._check_ours(existing)
        else:
            self.gcloud.create()
        deadline, shown = time.monotonic() + 3600 * self.request.wait_hours, ""
        while True:
            resource = self.gcloud.describe()
            now = "missing" if resource is None else state(resource)
            if now != shown:
                self.shell.say(f"{self.request.name}: {now}")
                shown = now
            if now == "ACTIVE":
                return
            if now == "FAILED":
                words = json.dumps(resource["state"] if resource else {})
                raise self.shell.failure(["queued resource", self.request.name], words, 1)
            if resource is None or now in GONE:
                raise PreemptedError(now)
            if time.monotonic() > deadline:
                words = f"timed out: {now} for {self.request.wait_hours:g} hours"
                raise self.shell.failure(["queued resource", self.request.name], words, 1)
            time.sleep(self.poll)

    def delete(self) -> None:
        """Delete the machines, if this launch created them."""
        if not self.shell.dry_run:
            resource = self.gcloud.describe()
            if resource is None:
                self.shell.say(f"{self.request.name} does not exist")
                return
            self._check_ours(resource)
        self.gcloud.delete()

    def _check_ours(self, resource: Mapping) -> None:
        tokens = [node.get("t5x_lite-launch") for node in labels(resource)]
        if not tokens or any(token != self.request.token for token in tokens):
            raise MistakeError(
                f"there is a queued resource {self.request.name} that this launch did not create: "
                f"it is left unchanged; choose another NAME"
            )

    # ---------------------------------------------------------------------------------- workers

    def install(self, payload: Payload) -> None:
        """Copy source, command and environment to all workers, and install."""
        name = f"{self.request.name}.bundle"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            bundle.write(
                path,
                payload.arguments,
                devices=self.request.chips,
                variables=payload.variables,
                mounted=payload.mounted,
                dirty=payload.dirty,
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
        """Run a line of shell on every worker; it must be safe to repeat."""
        self._each_node(lambda node: self._again(lambda: self.gcloud.ssh(node, command)))

    def _each_node(self, act: Callable[[str], object]) -> None:
        with ThreadPoolExecutor(len(self.request.nodes)) as threads:
            list(threads.map(act, self.request.nodes))

    def _again(self, act: Callable[[], object], attempts: int = 4) -> None:
        """Retry ssh, which fails now and then, unless the machines are gone."""
        for attempt in range(attempts):
            try:
                act()
                return
            except CommandError as error:
                self._check_alive()
                if attempt == attempts - 1:
                    raise
                self.shell.say(f"{error}\nretrying")
                time.sleep(self.poll)

    def _check_alive(self) -> None:
        resource = self.gcloud.describe()
        if resource is None or state(resource) != "ACTIVE":
            raise PreemptedError("missing" if resource is None else state(resource))
        for name in self.request.nodes:
            node = self.gcloud.node(name)
            if node is None or node.get("state") in ("PREEMPTED", "DELETING", "TERMINATED"):
                raise PreemptedError(f"{name}: {node['state'] if node else 'missing'}")

    # --------------------------------------------------------------------------------- watching

    def watch(self) -> int:
        """Show worker 0's log until all workers have ended; return the exit code of the run."""
        log, unanswered, ending = _Log(self), 0, None
        while True:
            log.keep_up()
            try:
                states = self.states()
                unanswered = 0
            except CommandError as error:
                self._check_alive()
                unanswered += 1
                if unanswered == _LOST:
                    raise error
                time.sleep(self.poll)
                continue
            if (code := verdict(states)) is not None:
                ending = ending or time.monotonic()
                # When one has ended, the others may still be saving.
                if "running" not in states.values() or time.monotonic() - ending > _GRACE:
                    log.finish()
                    self._show_failures(states)
                    return code
            self._check_alive()
            time.sleep(self.poll)

    def states(self) -> dict[str, str]:
        """Return each worker's state by node and worker; raises CommandError if one is silent."""
        states = {}
        for node in self.request.nodes:
            command = f"bash {self.folder}/on_worker.sh status"
            output = self.gcloud.ssh(node, command, quiet=True)
            lines = re.findall(r"worker (\S+): (running|absent|exited \d+)", output)
            expected = self._workers(node)
            if len(lines) < expected:
                raise CommandError(f"{len(lines)} of {expected} workers of {node} answered", output)
            states |= {f"{node} {worker}": state for worker, state in lines}
        return states

    def _workers(self, node: str) -> int:
        """Return the number of machines of a node."""
        if node not in self._sizes:
            described = self.gcloud.node(node) or {}
            self._sizes[node] = len(described.get("networkEndpoints", [])) or 1
        return self._sizes[node]

    def _show_failures(self, states: Mapping[str, str]) -> None:
        for name, ended in states.items():
            if ended != "exited 0":
                self.shell.say(f"{name}: {ended}")

    def report(self) -> Iterator[str]:
        """Yield the state of the queued resource and of each worker as lines."""
        resource = self.gcloud.describe()
        yield f"{self.request.name}: {'missing' if resource is None else state(resource)}"
        if resource is not None and state(resource) == "ACTIVE":
            yield from (f"{name}: {now}" for name, now in self.states().items())

    def show_log(self) -> int:
        """Show worker 0's log to the end of the run."""
        log = _Log(self)
        log.keep_up()
        return log.finish(patience=None)

    def collect(self, folder: Path, model_dir: str | None) -> None:
        """Copy every worker's log, and the run's directory without checkpoints."""
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
    """Return the exit code of a run from its workers' states; None while it should continue.

    One worker's failure ends a run, because the others wait for it. A configuration error takes
    precedence over other failures, and those over killed workers.
    """
    codes = [int(now.split()[1]) for now in states.values() if now.startswith("exited")]
    if "absent" in states.values():
        return START_AGAIN  # the machine was rebooted
    bad = [code for code in codes if code]
    if not bad:
        return 0 if len(codes) == len(states) else None
    for code in (WRONG_INPUT, START_AGAIN):
        if code in bad:
            return code
    return next((code for code in bad if code not in _KILLED), START_AGAIN)


def expected_answers(request: Request) -> dict[tuple[str, ...], str]:
    """Return the answers of gcloud that a dry run assumes: everything succeeds."""
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
    """Worker 0's log, line by line, over any number of connections."""

    def __init__(self, pod: Pod):
        self._pod, self._process, self._thread = pod, None, None

    def keep_up(self) -> None:
        """Connect, or connect again after a lost connection."""
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
        """Wait for the last lines; return the exit code of the command that was followed."""
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
