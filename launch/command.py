"""The command of a run, as every launcher hands it on: `t5x_lite train ...` after a `doctor`."""

import ast
import re
import shlex
from collections.abc import Sequence

START_AGAIN = 75  # t5x_lite's exit code for "stopped in good order: start me again"
WRONG_INPUT = 2  # ... and for a mistake of the user's, which no second try cures
NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


class MistakeError(Exception):
    """Something given to a launcher cannot be; the text says what is wanted."""


def check_name(name: str) -> str:
    """A name that Google Cloud, Kubernetes and file systems all take."""
    if not NAME.fullmatch(name):
        raise MistakeError(
            f"the name {name!r} will not do: wanted at most 40 lower-case letters, digits and "
            f"dashes, a letter first"
        )
    return name


def check_arguments(arguments: Sequence[str]) -> list[str]:
    """What follows `--`: a command of t5x_lite with its flags."""
    words = [*arguments]
    if words[:1] == ["t5x_lite"]:
        del words[0]
    if not words or words[0].startswith("-"):
        raise MistakeError(
            "what is to run? Give it last, after --: "
            "... -- train --gin_file=recipes/t5_1_1/base.gin --gin.MODEL_DIR=/mnt/bucket/run"
        )
    return words


def model_dir(arguments: Sequence[str]) -> str | None:
    """The run's directory by the flags of a command, the last of which counts; None without one."""
    directory = None
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag == "--model_dir":
            directory = value if equals else following
        elif flag == "--gin.MODEL_DIR":
            directory = ast.literal_eval(value) if value[:1] in ("'", '"') else value
    return directory


def lines(arguments: Sequence[str], *, devices: int | None = None) -> list[str]:
    """Lines of shell: for training `doctor` with the same configuration, then the command.

    devices: how many must be there over all processes. Words reach t5x_lite as they are, whatever
    spaces, quotes and dollars they hold.
    """
    command = shlex.join(["t5x_lite", *arguments])
    if arguments[0] != "train":
        return [f"exec {command}"]
    expected = [] if devices is None else [f"--devices={devices}"]
    doctor = shlex.join(["t5x_lite", "doctor", *expected, *arguments[1:]])
    return [f"{doctor} || exit $?", f"exec {command}"]
