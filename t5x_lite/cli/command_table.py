"""All commands: what the `command.py` files of the features' folders declare."""

import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from t5x_lite.command import Command

PACKAGE = Path(__file__).resolve().parents[1]


@cache
def commands() -> dict[str, Command]:
    """Import every `command.py` below the package and return the commands by name."""
    table: dict[str, Command] = {}
    for path in sorted(PACKAGE.rglob("*/command.py")):
        dotted = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for command in importlib.import_module(dotted).COMMANDS:
            if command.name in table:
                raise ValueError(f"{dotted} declares {command.name!r}, which exists already")
            table[command.name] = command
    return dict(sorted(table.items()))


def load_function(command: Command) -> Callable[..., None]:
    """Import a command's function, which imports all that it needs."""
    module, _, name = command.function.rpartition(".")
    return getattr(importlib.import_module(module), name)


def function_names(command: Command) -> tuple[str, ...]:
    """Return the functions whose settings a command requires: its own and that of `builds_on`."""
    names = (command.name, command.builds_on) if command.builds_on else (command.name,)
    return tuple(commands()[name].function.rpartition(".")[2] for name in names)
