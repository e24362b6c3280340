"""One file that holds all a worker needs: the source, the command, its environment."""

import io
import shlex
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import source
from command import MistakeError, lines

HERE = Path(__file__).resolve().parent


def environment(settings: Sequence[str], of_here: Mapping[str, str]) -> dict[str, str]:
    """Variables for the workers: "NAME=VALUE", or "NAME" with the value it has here."""
    found = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not name.isidentifier():
            raise MistakeError(
                f"--env {name!r} is no name of a variable; wanted NAME or NAME=VALUE"
            )
        if not equals and name not in of_here:
            raise MistakeError(
                f"--env {name}: there is no such variable here; set it, or give a value"
            )
        found[name] = value if equals else of_here[name]
    return found


def mounts(settings: Sequence[str]) -> str:
    """Buckets to mount: "BUCKET=/FOLDER" each, as lines for `on_worker.sh`."""
    rows = []
    for setting in settings:
        bucket, _, folder = setting.removeprefix("gs://").partition("=")
        if not bucket or not folder.startswith("/") or "\t" in setting or "\n" in setting:
            raise MistakeError(f"--mount {setting!r}: wanted BUCKET=/FOLDER")
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
    """Write the bundle, readable by its owner alone: it may hold secrets."""
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
    """The shell with which a worker unpacks a bundle; done twice it does no harm."""
    return (
        f"mkdir -p {folder} && cd {folder} && if [ -e ../{name} ]; then tar -xzf ../{name} && "
        f"mkdir -p source && tar -xzf source.tar.gz -C source && rm -f ../{name}; fi"
    )
