"""What a feature declares about its command of the command line: `Command`, `Flag`, `Argument`.

Each feature's folder has a `command.py` with `COMMANDS`, a tuple of `Command`. `cli/` collects
them, parses the flags, lets gin read the files and calls the command's function. These modules
import nothing heavy, so that `t5x_lite --help` answers at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Group = Literal[
    "prepare data", "train", "evaluate", "use a model", "look inside a run", "plan and check"
]


@dataclass(frozen=True)
class Flag:
    """A flag `--NAME=VALUE` that sets one gin macro or parameter.

    Args:
        name: The flag without its dashes: the name of the function's parameter.
        sets: The macro ("MODEL_DIR") or the parameter ("plan.price") that it sets. The command's
            default gin file binds it, which gives the default that `--help` shows.
        help: One sentence for `--help`, without the default.
        kind: "value" is a Python literal where it can be read as one (8, 3e-4, None, {'data': 8})
            and text elsewhere. "text" is always text, also "2024" or "None". "switch" is True if
            the flag has no value.
        metavar: What `--help` shows for the value.
    """

    name: str
    sets: str
    help: str
    kind: Literal["value", "text", "switch"] = "value"
    metavar: str = "VALUE"


@dataclass(frozen=True)
class Argument:
    """An argument without a flag, which sets one gin macro.

    Args:
        name: What `--help` shows for it, such as "RUN_A".
        sets: The macro that it sets.
        help: One sentence for `--help`.
        many: Any number of them, as a list. Otherwise exactly one, as text.
    """

    name: str
    sets: str
    help: str
    many: bool = False


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of `t5x_lite`.

    Args:
        name: The word after `t5x_lite`.
        group: Where `t5x_lite --help` lists it.
        summary: What it does, in one sentence.
        function: Dotted path of the function to call, such as "t5x_lite.trainer.train.train". gin
            gives its parameters. The function also gets `describe_config`; `invocation` (an
            `Invocation`) if it has a parameter of that name; and `settings` if `builds_on` is set
            and it has a parameter of that name.
        default_gin: The gin file that is read before all files of the user. It binds everything
            that a flag sets, and its values are the defaults that `--help` shows.
        examples: Command lines for `--help` that work as they are.
        docs: Files of the documentation that describe it.
        arguments: Arguments without a flag.
        flags: Flags besides those that every command has.
        multi_process: Several processes can run it together. It then has the flags that say how
            they connect, and all processes are connected before the function is called.
        rendezvous: Wait for all processes first, for `--wait_seconds`, and name those that are
            missing.
        builds_on: Name of a command whose required settings this command requires as well, because
            it starts that command or needs its configuration. What gin passes to that command's
            function is the parameter `settings`, a mapping by parameter name.
    """

    name: str
    group: Group
    summary: str
    function: str
    default_gin: str
    examples: tuple[str, ...]
    docs: tuple[str, ...]
    arguments: tuple[Argument, ...] = ()
    flags: tuple[Flag, ...] = ()
    multi_process: bool = False
    rendezvous: bool = False
    builds_on: str = ""


def _read_nothing(name: str, text: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    raise LookupError(f"there is no command line that could read gin files for {name!r}")


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """How a command was called, for functions that start other commands.

    Args:
        arguments: Everything as typed, after the command's name.
        gin_arguments: The gin files, search paths and settings as arguments for another command,
            without the settings of this command's own function.
        search_arguments: Of those, where gin files are searched and what they may import.
        read: A function of a command's name and the text of a gin file. It returns what gin would
            pass to that command's function, and the value of each name that the file sets. It
            raises ConfigError if the command could not be called so.
    """

    arguments: Sequence[str] = ()
    gin_arguments: Sequence[str] = ()
    search_arguments: Sequence[str] = ()
    read: Callable[[str, str], tuple[Mapping[str, Any], Mapping[str, Any]]] = _read_nothing
