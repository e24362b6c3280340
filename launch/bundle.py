"""One archive with all that a worker needs: the source, the command, its environment."""

import io
import shlex
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import source
from command import MistakeError, lines

HERE = Path(__file__).resolve().parent


def environment(settings: Sequence[str], local: Mapping[str, str]) -> dict[str, str]:
    """Parse variables for the workers: "NAME=VALUE", or "NAME" with its value in `local`."""
    variables = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not name.isidentifier():
            raise MistakeError(
                f"--env {name!r} is not the name of a variable: expected NAME or NAME=VALUE"
            )
        if not equals and name not in local:
            raise MistakeError(
                f"--env {name}: this variable is not set on this machine; set it, or give a value"
            )
        variables[name] = value if equals else local[name]
    return variables


def mounts(settings: Sequence[str]) -> str:
    """Return the buckets to mount, from "BUCKET=/FOLDER", as lines for `on_worker.sh`."""
    rows = []
    for setting in settings:
        bucket, _, folder = setting.removeprefix("gs://").partition("=")
        if not bucket or not folder.startswith("/") or "\t" in setting or "\n" in setting:
            raise MistakeError(f"--mount {setting!r}: expected BUCKET=/FOLDER")
        rows.append(f"{bucket}\t{folder}\n")
    return "".join(rows)


def write(
    path: Path,
    arguments: Sequence[str],
    *,
    devices: int,
    variables: Mapping[str, str],
    mounted: str,
    dirty: bool,
) -> None:
    """Write the bundle, readable only by its owner because it may contain secrets."""
    command = "\n".join(["#!/usr/bin/env bash", *lines(arguments, devices=devices), ""])
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    files = {
        "source.tar.gz": source.archive(dirty=dirty),
        "REVISION": source.revision(dirty=dirty).encode(),
        "on_worker.sh": (HERE / "on_worker.sh").read_bytes(),
        "command.sh": command.encode(),
        "environment": exports.encode(),
        "mounts": mounted.encode(),
    }
    path.touch(mode=0o600)
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = len(content), int(time.time()), 0o600
            tar.addfile(member, io.BytesIO(content))


def unpack_line(folder: str, name: str) -> str:
    """Return a line of shell that unpacks a bundle on a worker; repeating it is harmless."""
    return (
        f"mkdir -p {folder} && cd {folder} && if [ -e ../{name} ]; then tar -xzf ../{name} && "
        f"mkdir -p source && tar -xzf source.tar.gz -C source && rm -f ../{name}; fi"
    )
