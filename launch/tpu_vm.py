#!/usr/bin/env python3
r"""A run on a Cloud TPU VM pod: create, install, run, restart, collect, delete.

    launch/tpu_vm.py run NAME --zone=us-west4-a --accelerator_type=v5litepod-64 --spot \\
        --mount=my-bucket=/mnt/my-bucket -- train --gin_file=recipes/t5_1_1/base.gin \\
        --gin.MODEL_DIR=/mnt/my-bucket/runs/base --gin.C4_DIR=gs://my-bucket/c4/en
    launch/tpu_vm.py status|logs|collect|delete NAME

All commands are plain `gcloud` and are printed before they run; `--dry_run` only prints them. The
run is restarted, on new machines if necessary, until it ends by itself. The same command can be
repeated and continues from the current state. Only resources that a launch created are deleted:
they have the launch's label, and a record on this machine (~/.t5x_lite/launches, or
$T5X_LITE_LAUNCHES). See docs/launch/tpu_vm.md.
"""

import argparse
import dataclasses
import json
import os
import sys
import uuid
from pathlib import Path

import bundle
import gcloud
import pod
import source
from command import MistakeError, check_arguments, check_name, model_dir
from shell import CommandError, Shell, ask


@dataclasses.dataclass
class Record:
    """This machine's record of a launch."""

    request: gcloud.Request
    arguments: list[str]

    @staticmethod
    def path(name: str) -> Path:
        """Return the path of the record of this name."""
        folder = os.environ.get("T5X_LITE_LAUNCHES") or Path.home() / ".t5x_lite" / "launches"
        return Path(folder) / f"{name}.json"

    @classmethod
    def read(cls, name: str) -> "Record | None":
        """Read the record of a launch from this machine; None if there is none."""
        path = cls.path(check_name(name))
        if not path.exists():
            return None
        record = json.loads(path.read_text())
        return cls(gcloud.Request(**record["request"]), record["arguments"])

    def write(self) -> None:
        """Write the record, before anything is created."""
        path = self.path(self.request.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"request": self.request._asdict(), "arguments": self.arguments}
        path.write_text(json.dumps(record, indent=1) + "\n")

    def forget(self) -> None:
        """Delete the record, after the resources were deleted."""
        self.path(self.request.name).unlink(missing_ok=True)


def run(options: argparse.Namespace) -> int:
    """Create machines, install, run and restart until the run has ended; 0 if it succeeded."""
    record = _record_for(options)
    source.revision(dirty=options.dirty)  # refuse a dirty tree before anything costs money
    variables = bundle.environment(options.env, os.environ)
    shell = _shell(record.request, options, [*variables.values()])
    machines = pod.Pod(
        gcloud.Gcloud(record.request, shell), poll=options.poll, extras=options.extras
    )
    payload = pod.Payload(record.arguments, variables, bundle.mounts(options.mount), options.dirty)
    if not options.dry_run:
        record.write()
    try:
        code = machines.run_to_the_end(payload, retries=options.retries)
        _collect(record, machines, options)
    except KeyboardInterrupt:
        shell.say("\nstopped watching; the run continues. The same command watches it again.")
        code = 130
    _offer_to_delete(record, machines, options)
    return code


def status(options: argparse.Namespace) -> int:
    """Print the state of the queued resource and of the workers."""
    record = _known(options.name)
    machines = pod.Pod(gcloud.Gcloud(record.request, _shell(record.request, options)))
    for line in machines.report():
        print(line)
    return 0


def logs(options: argparse.Namespace) -> int:
    """Show worker 0's log from its beginning to its end."""
    record = _known(options.name)
    machines = pod.Pod(gcloud.Gcloud(record.request, _shell(record.request, options)))
    return machines.show_log()


def collect(options: argparse.Namespace) -> int:
    """Copy every worker's log to this machine, and the run's directory without checkpoints."""
    record = _known(options.name)
    machines = pod.Pod(gcloud.Gcloud(record.request, _shell(record.request, options)))
    _collect(record, machines, options)
    return 0


def delete(options: argparse.Namespace) -> int:
    """Delete what the launch created, nothing else."""
    record = _known(options.name)
    machines = pod.Pod(gcloud.Gcloud(record.request, _shell(record.request, options)))
    if not options.dry_run and options.delete != "always" and not ask(f"delete {options.name}?"):
        print(f"nothing was deleted; add --delete=always to delete {options.name} without asking")
        return 1
    machines.delete()
    if not options.dry_run:
        record.forget()
    return 0


def _record_for(options: argparse.Namespace) -> Record:
    name, arguments = check_name(options.name), check_arguments(options.arguments)
    kind = "spot" if options.spot else "reserved" if options.reserved else "on_demand"
    generation, _, size = options.accelerator_type.rpartition("-")
    if not size.isdigit() or not generation:
        raise MistakeError(
            f"--accelerator_type={options.accelerator_type!r}: expected a type such as "
            f"v5litepod-64, v5p-128 or v6e-64"
        )
    runtime = options.runtime_version or gcloud.RUNTIMES.get(generation)
    if runtime is None:
        raise MistakeError(f"no default image for {generation}: set --runtime_version")
    if options.slices < 1:
        raise MistakeError(f"--slices={options.slices}: expected 1 or more")
    request = gcloud.Request(
        name=name,
        project=options.project,
        zone=options.zone,
        accelerator_type=options.accelerator_type,
        runtime_version=runtime,
        slices=options.slices,
        kind=kind,
        network=options.network,
        subnetwork=options.subnetwork,
        service_account=options.service_account,
        internal_ip=options.internal_ip,
        wait_hours=options.wait_hours,
        token=uuid.uuid4().hex,
    )
    known = Record.read(name)
    if known is None:
        return Record(request, arguments)
    request = request._replace(token=known.request.token)
    if request._replace(wait_hours=0) != known.request._replace(wait_hours=0):
        raise MistakeError(
            f"{name} was already launched from here, on {known.request.accelerator_type} in "
            f"{known.request.zone} ({Record.path(name)}): use the same settings, or delete it first"
        )
    return Record(request, arguments)


def _known(name: str) -> Record:
    record = Record.read(name)
    if record is None:
        raise MistakeError(
            f"{name} was not launched from here (no {Record.path(name)}): this launcher changes "
            f"only what it created"
        )
    return record


def _shell(
    request: gcloud.Request, options: argparse.Namespace, secrets: list[str] | None = None
) -> Shell:
    return Shell(
        dry_run=options.dry_run,
        secrets=secrets or [],
        fixes=gcloud.FIXES,
        answers=pod.expected_answers(request),
    )


def _collect(record: Record, machines: "pod.Pod", options: argparse.Namespace) -> None:
    folder = Path(options.collect_to or f"runs/{options.name}")
    machines.collect(folder, model_dir(record.arguments))
    machines.gcloud.shell.say(
        f"the workers' logs are in {folder}, metrics and results of the run in {folder / 'run'}; "
        f"checkpoints stay in MODEL_DIR"
    )


def _offer_to_delete(record: Record, machines: "pod.Pod", options: argparse.Namespace) -> None:
    name = record.request.name
    if options.dry_run:
        print("# after confirmation, or with --delete=always:")
        machines.delete()
    elif options.delete == "always" or (options.delete == "ask" and ask(f"delete {name} now?")):
        machines.delete()
        record.forget()
    else:
        print(f"{name} still exists and costs money: launch/tpu_vm.py delete {name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for function in (run, status, logs, collect, delete):
        verb = verbs.add_parser(function.__name__, help=function.__doc__)
        verb.set_defaults(function=function)
        verb.add_argument("name", metavar="NAME")
        verb.add_argument("--dry_run", action="store_true", help="print the commands, run none")
        if function in (run, collect):
            verb.add_argument(
                "--collect_to", metavar="FOLDER", help="for logs and records; default: runs/NAME"
            )
        if function in (run, delete):
            verb.add_argument("--delete", choices=("ask", "always", "never"), default="ask")
    _run_flags(verbs.choices["run"])
    return parser


def _run_flags(verb: argparse.ArgumentParser) -> None:
    add = verb.add_argument
    add("--zone", required=True)
    add("--accelerator_type", required=True, help="v5litepod-64, v5p-128, v6e-64 ...")
    add("--slices", type=int, default=1, help="several are connected by the data-center network")
    how = verb.add_mutually_exclusive_group()
    how.add_argument("--spot", action="store_true", help="cheap; may be preempted at any time")
    how.add_argument("--reserved", action="store_true", help="from the project's reservation")
    add("--project", default="", help="default: gcloud's")
    add("--runtime_version", default="", help="the image; default: that of the accelerator")
    for name in ("network", "subnetwork", "service_account"):
        add(f"--{name}", default="")
    add("--internal_ip", action="store_true", help="no external addresses, for TPUs and for ssh")
    add("--wait_hours", type=float, default=24.0, help="to wait for capacity")
    add(
        "--env", action="append", default=[], metavar="NAME[=VALUE]", help="never shown; repeatable"
    )
    add("--mount", action="append", default=[], metavar="BUCKET=/FOLDER", help="repeatable")
    add("--extras", default="tpu,fast", help="of pyproject.toml, to install on the workers")
    add("--dirty", action="store_true", help="copy local changes too")
    add("--retries", type=int, default=2, help="of a run that fails soon after its start")
    add(
        "--poll", type=float, default=30.0, metavar="SECONDS", help="between checks of the machines"
    )


def main() -> None:
    """Entry point."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    options = _parser().parse_args(words[:cut])
    options.arguments = words[cut + 1 :]
    try:
        sys.exit(options.function(options))
    except (MistakeError, source.SourceError) as error:
        sys.exit(f"tpu_vm.py: {error}")
    except CommandError as error:
        name = options.name
        left = f"\n{name} may still exist and cost money: launch/tpu_vm.py delete {name}"
        sys.exit(f"tpu_vm.py: {error}{left if Record.path(name).exists() else ''}")


if __name__ == "__main__":
    main()
