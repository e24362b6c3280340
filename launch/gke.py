#!/usr/bin/env python3
"""A run on Google Kubernetes Engine, as a JobSet on TPU or GPU node pools, or through xpk.

    launch/gke.py render NAME --image=IMAGE --accelerator=v5e:8x8 -- train ...   # the manifest
    launch/gke.py run NAME --image=IMAGE --accelerator=v5e:8x8 -- train ...      # to the end
    launch/gke.py xpk NAME --image=IMAGE --accelerator=v5e:8x8 --cluster=C -- train ...
    launch/gke.py delete NAME

`run` applies the manifest, shows the log of the first pod and waits for the end. The JobSet
restarts all pods when one of them ends, except after a configuration error. Commands are printed
before they run; `--dry_run` only prints them. Only what `run` created, by its label, is deleted.
Secrets come from Kubernetes (`--secret=NAME`), never from this machine. See docs/launch/gke.md.
"""

import argparse
import base64
import contextlib
import json
import subprocess
import sys
import threading
import time
import uuid

from command import START_AGAIN, MistakeError, check_arguments, check_name, lines
from jobset import TOKEN, Values, as_yaml, jobset, shape_of
from shell import CommandError, Shell, ask

FIXES = {
    "no kubectl": "install it: gcloud components install kubectl gke-gcloud-auth-plugin",
    "no xpk": "install it: pip install xpk",
    r"no matches for kind .?JobSet|could not find the requested|the server doesn't have": "the "
    "cluster has no JobSet controller: see docs/launch/gke.md, 'Create a cluster'",
    r"Forbidden|forbidden": "the account lacks permission in the cluster's namespace: it needs the "
    "role Kubernetes Engine Developer",
    r"Unable to connect|connection refused|no such host|current-context": "kubectl has no "
    "cluster: gcloud container clusters get-credentials CLUSTER --location=ZONE",
    r"exceeded quota|quota": "the quota of the namespace or the project is too small: request "
    "more, or use a smaller --accelerator",
}
_LAST_LINES = 10.0  # seconds to wait for the end of a log after its pod has ended
_XPK_TYPES = {"v4": ("v4", 2), "v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}

_XPK_DEVICES = {"a100": "a100-80gb-8", "h100": "h100-80gb-8", "h200": "h200-141gb-8"}


def render(options: argparse.Namespace) -> int:
    """Print the manifest."""
    print(as_yaml(jobset(_values(options, token=options.name))), end="")
    return 0


def run(options: argparse.Namespace) -> int:
    """Apply the manifest and wait until the run has ended."""
    shell = Shell(dry_run=options.dry_run, fixes=FIXES)
    existing = None if options.dry_run else _get(shell, options.name)
    if existing is None:
        manifest = as_yaml(jobset(_values(options, token=uuid.uuid4().hex)))
        _apply(shell, manifest)
    elif TOKEN not in existing["metadata"].get("labels", {}):
        raise MistakeError(
            f"the JobSet {options.name} was not created by this launcher: it is left unchanged"
        )
    code = 0
    try:
        code = _watch(shell, options)
    except KeyboardInterrupt:
        shell.say("\nstopped watching; the run continues. The same command watches it again.")
        code = 130
    if options.dry_run:
        print("# after confirmation, or with --delete=always:")
    elif options.delete != "always" and not (options.delete == "ask" and ask("delete it now?")):
        print(f"{options.name} still exists: launch/gke.py delete {options.name}")
        return code
    shell.run(["kubectl", "delete", "jobset", options.name])
    return code


def xpk(options: argparse.Namespace) -> int:
    """Submit the run through xpk, which creates its own JobSet and queues it."""
    if options.mount or options.secret or options.as_root or options.service_account != "default":
        raise MistakeError(
            "--mount, --secret, --service_account and --as_root are for `run`; with xpk attach "
            "buckets by `xpk storage attach`, then use --storage=NAME"
        )
    kind = options.accelerator.partition(":")[0]
    shape = shape_of(options.accelerator)
    chips, arguments = shape.nodes * shape.per_node, check_arguments(options.arguments)
    if kind in _XPK_TYPES:
        name, cores = _XPK_TYPES[kind]
        device = [f"--tpu-type={name}-{chips * cores}", f"--num-slices={options.slices}"]
    else:
        device = [f"--device-type={_XPK_DEVICES[kind]}", f"--num-nodes={shape.nodes}"]
    # xpk inserts the command into a manifest and a shell: base64 needs no quoting in either.
    script = "\n".join(lines(arguments, devices=chips * options.slices))
    encoded = base64.b64encode(script.encode()).decode()
    shell = Shell(dry_run=options.dry_run, fixes=FIXES)
    shell.say(f"# the command is base64 of:\n{script}")
    shell.run(
        [
            *("xpk", "workload", "create", f"--workload={check_name(options.name)}"),
            f"--cluster={options.cluster}",
            *device,
            f"--docker-image={options.image}",
            f"--max-restarts={options.max_restarts}",
            f"--restart-on-exit-codes={START_AGAIN}",
            *(["--spot"] if options.spot else []),
            *(f"--storage={name}" for name in options.storage),
            *(
                f"--{flag}={getattr(options, flag)}"
                for flag in ("project", "zone")
                if getattr(options, flag)
            ),
            f"--command=echo {encoded} | base64 -d >/tmp/run.sh && exec bash /tmp/run.sh",
        ]
    )
    return 0


def delete(options: argparse.Namespace) -> int:
    """Delete the JobSet that `run` created."""
    shell = Shell(dry_run=options.dry_run, fixes=FIXES)
    existing = None if options.dry_run else _get(shell, options.name)
    if not options.dry_run:
        if existing is None:
            raise MistakeError(f"there is no JobSet {options.name}")
        if TOKEN not in existing["metadata"].get("labels", {}):
            raise MistakeError(f"the JobSet {options.name} was not created by this launcher")
        if options.delete != "always" and not ask(f"delete {options.name}?"):
            print(
                f"nothing was deleted; add --delete=always to delete {options.name} without asking"
            )
            return 1
    shell.run(["kubectl", "delete", "jobset", options.name])
    return 0


def _values(options: argparse.Namespace, *, token: str) -> Values:
    return Values(
        name=check_name(options.name),
        image=options.image,
        accelerator=options.accelerator,
        arguments=check_arguments(options.arguments),
        slices=options.slices,
        spot=options.spot,
        max_restarts=options.max_restarts,
        mounts=options.mount,
        secrets=options.secret,
        service_account=options.service_account,
        as_root=options.as_root,
        token=token,
    )


def _get(shell: Shell, name: str) -> dict | None:
    command = ["kubectl", "get", "jobset", name, "-o", "json"]
    try:
        return json.loads(shell.run(command, quiet=True))
    except CommandError as error:
        if "NotFound" in error.output:
            return None
        raise


def _apply(shell: Shell, manifest: str) -> None:
    command = ["kubectl", "apply", "-f", "-"]
    shell.say(f"{manifest}$ kubectl apply -f -   # the manifest above")
    if shell.dry_run:
        return
    try:
        done = subprocess.run(command, input=manifest, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise CommandError(f"kubectl is not installed\n=> {FIXES['no kubectl']}") from None
    if done.returncode:
        raise shell.failure(command, done.stdout + done.stderr, done.returncode)


def _watch(shell: Shell, options: argparse.Namespace) -> int:
    """Show the first pod's log, over restarts, until the JobSet has ended; 0 if it succeeded."""
    labels = {
        "jobset.sigs.k8s.io/jobset-name": options.name,
        "jobset.sigs.k8s.io/job-index": "0",
        "batch.kubernetes.io/job-completion-index": "0",
    }
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    command = ["kubectl", "logs", "--follow", "--tail=-1", f"--selector={selector}"]
    if shell.dry_run:
        shell.run(command)
        shell.run(["kubectl", "get", "jobset", options.name, "-o", "json"])
        return 0
    log, restarts = None, 0
    while True:
        current = _get(shell, options.name)
        if current is None:
            raise CommandError(f"the JobSet {options.name} was deleted by someone else")
        status = current.get("status", {})
        if status.get("restarts", 0) != restarts:
            restarts = status["restarts"]
            shell.say(f"a pod ended; all pods are restarted (restart {restarts})")
        if log is None or log.poll() is not None:
            log, reader = _follow(shell, command)
        ended = {
            condition["type"]: condition.get("message", "")
            for condition in status.get("conditions", [])
            if condition["status"] == "True" and condition["type"] in ("Completed", "Failed")
        }
        if ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                log.wait(_LAST_LINES)
            log.terminate()
            reader.join(_LAST_LINES)
            [(kind, message)] = ended.items()
            shell.say(f"{options.name}: {kind} {message}".rstrip())
            return 0 if kind == "Completed" else 1
        time.sleep(options.poll)


def _follow(shell: Shell, command: list[str]) -> tuple["subprocess.Popen[str]", threading.Thread]:
    process = shell.start(command)

    def read() -> None:
        for line in process.stdout or ():
            shell.say(line.rstrip("\n"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return process, reader


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for function in (render, run, xpk, delete):
        verb = verbs.add_parser(function.__name__, help=function.__doc__)
        verb.set_defaults(function=function)
        add = verb.add_argument
        add("name", metavar="NAME")
        add("--dry_run", action="store_true", help="print the commands, run none")
        if function in (run, delete):
            add("--delete", choices=("ask", "always", "never"), default="ask")
        if function is not delete:
            _flags(verb)
        if function is xpk:
            add("--cluster", required=True)
            add(
                "--storage",
                action="append",
                default=[],
                metavar="NAME",
                help="storage attached to xpk; repeatable",
            )
            for name in ("project", "zone"):
                add(f"--{name}", default="")
        if function is run:
            add("--poll", type=float, default=15.0, metavar="SECONDS", help="between checks")
    return parser


def _flags(verb: argparse.ArgumentParser) -> None:
    add = verb.add_argument
    add("--image", required=True, help="built from launch/docker, in a registry")
    add("--accelerator", required=True, help="v5e:8x8, v5p:4x4x4, v6e:8x8, h100:16 ...")
    add("--slices", type=int, default=1, help="number of TPU slices")
    add("--spot", action="store_true")
    add("--max_restarts", type=int, default=1000)
    add("--mount", action="append", default=[], metavar="BUCKET=/FOLDER", help="repeatable")
    add(
        "--secret",
        action="append",
        default=[],
        metavar="NAME",
        help="Kubernetes secret; repeatable",
    )
    add("--service_account", default="default", help="Kubernetes service account, for buckets")
    add("--as_root", action="store_true", help="if TPU drivers need root")


def main() -> None:
    """Entry point."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    options = _parser().parse_args(words[:cut])
    options.arguments = words[cut + 1 :]
    try:
        sys.exit(options.function(options))
    except (MistakeError, CommandError) as error:
        sys.exit(f"gke.py: {error}")


if __name__ == "__main__":
    main()
