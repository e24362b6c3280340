"""The command of a run, for every launcher: `t5x_lite doctor`, then `t5x_lite train ...`."""

import ast
import re
import shlex
from collections.abc import Sequence

START_AGAIN = 75  # t5x_lite's exit code for a run that was stopped and can be resumed
WRONG_INPUT = 2  # its exit code for a configuration error, which a restart does not fix
NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


class MistakeError(Exception):
    """An argument of a launcher is wrong; the message describes what is expected."""


def check_name(name: str) -> str:
    """Return the name if Google Cloud, Kubernetes and file systems all accept it."""
    if not NAME.fullmatch(name):
        raise MistakeError(
            f"the name {name!r} is invalid: expected at most 40 lower-case letters, digits and "
            f"dashes, starting with a letter"
        )
    return name


def check_arguments(arguments: Sequence[str]) -> list[str]:
    """Return what follows `--`, a command of t5x_lite with its flags, without "t5x_lite"."""
    words = [*arguments]
    if words[:1] == ["t5x_lite"]:
        del words[0]
    if not words or words[0].startswith("-"):
        raise MistakeError(
            "no command given; append it after --, as in: "
            "... -- train --gin_file=recipes/t5_1_1/base.gin --gin.MODEL_DIR=/mnt/bucket/run"
        )
    return words


def model_dir(arguments: Sequence[str]) -> str | None:
    """Return the run's directory from the flags of a command, the last of which counts, or None."""
    directory = None
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag == "--model_dir":
            directory = value if equals else following
        elif flag == "--gin.MODEL_DIR":
            directory = ast.literal_eval(value) if value[:1] in ("'", '"') else value
    return directory


def lines(arguments: Sequence[str], *, devices: int | None = None) -> list[str]:
    """Return lines of shell: for training `doctor` with the same configuration, then the command.

    Args:
        arguments: The command and its flags. They are quoted, so that they reach t5x_lite
            unchanged.
        devices: Number of devices that `doctor` expects over all processes.
    """
    command = shlex.join(["t5x_lite", *arguments])
    if arguments[0] != "train":
        return [f"exec {command}"]
    expected = [] if devices is None else [f"--devices={devices}"]
    doctor = shlex.join(["t5x_lite", "doctor", *expected, *arguments[1:]])
    return [f"{doctor} || exit $?", f"exec {command}"]
