"""What `--help` shows: flags with their defaults, required settings, examples.

Defaults are read from the command's default gin file as plain text: so they are those that the
command uses, and neither gin nor the command's function is imported.
"""

import argparse
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

from t5x_lite.cli.command_table import commands, function_names
from t5x_lite.cli.gin_config import Binding, Reference, reached
from t5x_lite.command import Command, Group

GIN_CONFIGS = Path(__file__).resolve().parents[2] / "gin_configs"
WIDTH = 100
_INCLUDE = re.compile(r'include "(.+)"')
_OWNER = re.compile(r"([\w./]+):")
_BINDING = re.compile(r"( *)([\w./]+) = (.*?)(?:  +# *(.*))?")
_REFERENCE = re.compile(r"([%@])([\w./]+)")
_REQUIRED = "%gin.REQUIRED"
# The folders whose files set macros that a default gin file leaves open.
_PARTS = ("models", "objectives", "tasks", "optimizers", "explore")


class Default(NamedTuple):
    """A binding of a gin file as it is written: `text` is the value, `comment` what follows it."""

    text: str
    comment: str


def read_defaults(name: str, directory: Path = GIN_CONFIGS) -> dict[str, Default]:
    """Read the bindings of a gin file and of those that it includes; the last of a name counts.

    It knows the layout of the shipped files: one binding per line, at the beginning of the line
    (`MESH = {"data": -1}  # axes`) or indented below its owner (`train.train:`).

    Args:
        name: Path of the file below `directory`.
        directory: Where `include` searches as well.

    Returns:
        Each binding by its full name, such as "MESH" or "train.train.seed".
    """
    defaults: dict[str, Default] = {}
    owner = ""
    for line in (directory / name).read_text().splitlines():
        if match := _INCLUDE.fullmatch(line):
            defaults |= read_defaults(match[1], directory)
        elif match := _OWNER.match(line):
            owner = match[1]
        elif match := _BINDING.fullmatch(line):
            indent, key, text, comment = match.groups()
            full = f"{owner}.{key}" if indent else key
            defaults.pop(full, None)  # a binding that is set again moves to the end
            defaults[full] = Default(text, comment or "")
    return defaults


def default_of(sets: str, defaults: dict[str, Default]) -> Default:
    """Return the default of a macro ("MESH") or parameter ("plan.price"), through its macro."""
    matches = [d for name, d in defaults.items() if name == sets or name.endswith(f".{sets}")]
    if not matches:
        raise LookupError(f"the default gin file does not bind {sets}")
    macro = matches[-1].text.removeprefix("%")
    follows = matches[-1].text.startswith("%") and matches[-1].text != _REQUIRED
    return default_of(macro, defaults) if follows else matches[-1]


def flag_help(sentence: str, sets: str, defaults: dict[str, Default]) -> str:
    """Return the help of a flag: its sentence, its default and the gin name that it sets."""
    default = default_of(sets, defaults)
    value = "Required" if default.text == _REQUIRED else f"Default: {default.text}"
    return f"{sentence} {value}. Sets {sets}.".replace("%", "%%")  # argparse formats help with %


def required_settings(command: Command, defaults: dict[str, Default]) -> dict[str, str]:
    """Return what the user must set for a command, with where each is usually set."""
    bindings = _bindings(defaults)
    flags = {f.sets: f"--{f.name}" for f in command.flags} | {
        a.sets: f"the argument {a.name}" for a in command.arguments
    }
    needed = reached(function_names(command), bindings)
    required: dict[str, str] = {}
    for binding in bindings:
        if binding.name not in needed:
            continue
        if defaults[binding.name].text == _REQUIRED:
            short = ".".join(binding.name.split(".")[-2:])
            required[short] = flags.get(short, f"--gin.{short}=VALUE, or a gin file")
        for reference in binding.value:
            open_macro = reference.macro and reference.name not in defaults
            if open_macro and reference.name != "gin.REQUIRED":
                parts = " or ".join(f"{part}/" for part in parts_that_set(reference.name))
                required[reference.name] = f"a gin file of {parts}, or one that includes it"
    return required


def parts_that_set(macro: str, directory: Path = GIN_CONFIGS) -> list[str]:
    """Return the folders of gin files (models, tasks ...) in which files set a macro."""
    line = re.compile(rf"^{re.escape(macro)} = ", re.MULTILINE)
    return [
        part
        for part in _PARTS
        if any(line.search(path.read_text()) for path in (directory / part).rglob("*.gin"))
    ]


def overview() -> str:
    """Return the list of all commands by group, for `t5x_lite --help`."""
    lines = []
    for group in get_args(Group):
        lines.append(f"{group}:")
        lines += [f"  {c.name:<10}{c.summary}" for c in commands().values() if c.group == group]
        lines.append("")
    return "\n".join([*lines, "t5x_lite COMMAND --help shows flags, defaults and examples."])


def epilog(command: Command, defaults: dict[str, Default]) -> str:
    """Return what follows the flags in a command's help: settings, examples, documents."""
    flags = {flag.sets for flag in (*command.flags, *command.arguments)}
    required = required_settings(command, defaults)
    needed = reached(function_names(command), _bindings(defaults))
    others = {
        f"{name} = {default.text}": default.comment
        for name, default in defaults.items()
        if "." not in name and name in needed - flags and name not in required
    }
    lines = []
    if required:
        lines += ["required settings:", *_columns(required), ""]
    if others:
        lines += ["other settings (--gin.NAME=VALUE) and their defaults:", *_columns(others), ""]
    lines += ["examples:", *(line for e in command.examples for line in _example(e)), ""]
    lines += [
        f"all parameters and their defaults: {GIN_CONFIGS / command.default_gin}",
        f"documentation: {', '.join(command.docs)}",
    ]
    return "\n".join(lines)


def _bindings(defaults: dict[str, Default]) -> list[Binding]:
    """Return the macros and functions that each binding refers to, as `gin_config` reads them."""
    return [
        Binding(name, [Reference(r[2], r[1] == "%") for r in _REFERENCE.finditer(d.text)], "")
        for name, d in defaults.items()
    ]


def _columns(rows: dict[str, str]) -> Iterator[str]:
    width = max(map(len, rows)) + 2
    for name, text in rows.items():
        lines = textwrap.wrap(text, max(WIDTH - width - 2, 30))
        yield f"  {name:<{width}}{next(iter(lines), '')}".rstrip()
        yield from (f"  {'':<{width}}{line}" for line in lines[1:])


def _example(command_line: str) -> list[str]:
    """Return a command line, split into several lines if it is long."""
    lines = textwrap.wrap(
        command_line,
        width=WIDTH - 8,
        initial_indent="  ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """argparse's help at a fixed width, so that it is the same in every terminal and in tests."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=WIDTH)

    def _split_lines(self, text: str, width: int) -> list[str]:
        # argparse would break words at hyphens.
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)
