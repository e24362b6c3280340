"""From the words of a command line to a `Request`: the command, its gin files and its settings."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from t5x_lite import __version__
from t5x_lite.cli import help_text
from t5x_lite.cli.command_table import commands
from t5x_lite.command import Command

_PROCESS_FLAGS = (
    ("coordinator_address", str, "HOST:PORT", "Address of process 0. Default: from the cluster."),
    ("num_processes", str, "N", "Number of processes. Default: from the cluster, or 1."),
    ("process_id", str, "N", "Number of this process, from 0. Default: from the cluster."),
    (
        "missing_seconds",
        float,
        "X",
        "Seconds without a heartbeat after which a process counts as dead and the others exit. "
        "Default: 60.",
    ),
)
_SETTING = "--gin."


@dataclass(frozen=True)
class Request:
    """A command line, parsed.

    Args:
        command: The command to run.
        arguments: All words after the command's name, as typed.
        files: Gin files in the order in which they are read: the command's default file first.
        settings: `--gin.NAME=VALUE` flags, also for the command's own flags, in the order typed.
        search: Directories in which gin files are searched, in this order.
        packages: The packages that gin files may import; empty for any.
        options: Values of the flags that say how processes connect, by name.
    """

    command: Command
    arguments: tuple[str, ...]
    files: tuple[str, ...]
    settings: tuple[str, ...]
    search: tuple[str, ...]
    packages: tuple[str, ...]
    options: Mapping[str, Any]

    def how_to_set(self, name: str) -> str:
        """Return the shortest flag that sets a name: "--model_dir=DIR" or "--gin.MESH=VALUE"."""
        for flag in self.command.flags:
            if name == flag.sets or name.endswith(f".{flag.sets}"):
                return f"--{flag.name}={flag.metavar}"
        return f"--gin.{name}=VALUE"

    def search_arguments(self) -> list[str]:
        """Return the flags of another command for the search paths and imports of gin files."""
        search, packages = self.options["gin_search_paths"], self.options["gin_imports"]
        flags = [f"--gin_search_paths={search}"] if search else []
        return [*flags, f"--gin_imports={packages}"] if packages else flags

    def gin_arguments(self) -> list[str]:
        """Return the user's gin files and settings, without those of this command's function."""
        own_prefix = f"--gin.{self.command.function.rpartition('.')[2]}."
        return [
            *(f"--gin_file={file}" for file in self.options["gin_file"]),
            *self.search_arguments(),
            *(setting for setting in self.settings if not setting.startswith(own_prefix)),
        ]


def parse(arguments: Sequence[str]) -> Request:
    """Parse a command line. An error prints argparse's message and exits with code 2.

    Args:
        arguments: The words after `t5x_lite`.
    """
    name = next((word for word in arguments if not word.startswith("-")), "")
    # As values of one flag, settings keep their order among the other flags.
    words = [f"{_SETTING}={word}" if word.startswith("--gin.") else word for word in arguments]
    options = vars(_parser(name).parse_args(words))
    command = commands()[options["command"]]
    paths = filter(None, options["gin_search_paths"].split(","))
    return Request(
        command,
        tuple(arguments[arguments.index(command.name) + 1 :]),
        (command.default_gin, *options["gin_file"]),
        options["settings"],
        ("", *paths, str(help_text.GIN_CONFIGS)),
        tuple(filter(None, (options["gin_imports"] or "").split(","))),
        options,
    )


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, as all errors of the user are reported."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of all commands; only the command `name` gets its flags and its help."""
    parser = _Parser(
        prog="t5x_lite",
        usage="t5x_lite COMMAND [--NAME=VALUE ...] [--gin_file=FILE ...] [--gin.NAME=VALUE ...]",
        description="Pretraining of T5-family text models.",
        epilog=help_text.overview(),
        formatter_class=help_text.HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS
    )
    for command in commands().values():
        subparser = subparsers.add_parser(
            command.name,
            prog=f"t5x_lite {command.name}",
            description=command.summary,
            formatter_class=help_text.HelpFormatter,
            allow_abbrev=False,
        )
        if command.name == name:
            _add_flags(subparser, command)
    return parser


def _add_flags(parser: argparse.ArgumentParser, command: Command) -> None:
    defaults = help_text.read_defaults(command.default_gin)
    parser.epilog = help_text.epilog(command, defaults)
    parser.set_defaults(settings=())
    parser.add_argument(_SETTING, action=_AddSetting, template="{}", help=argparse.SUPPRESS)
    words = [f"{a.name} ..." if a.many else a.name for a in command.arguments]
    parser.usage = " ".join(
        ["t5x_lite", command.name, *words, "[--NAME=VALUE ...] [--gin_file=FILE ...]"]
    )
    group = parser.add_argument_group("arguments")
    for argument in command.arguments:
        group.add_argument(
            argument.name,
            action=_AddSetting,
            template=f"--gin.{argument.sets}={{!r}}",
            nargs="*" if argument.many else None,
            help=help_text.flag_help(argument.help, argument.sets, defaults),
        )
    group = parser.add_argument_group("flags")
    for flag in command.flags:
        value: dict[str, Any] = {"nargs": "?", "const": "True"} if flag.kind == "switch" else {}
        group.add_argument(
            f"--{flag.name}",
            action=_AddSetting,
            template=f"--gin.{flag.sets}=" + ("{!r}" if flag.kind == "text" else "{}"),
            metavar=flag.metavar,
            help=help_text.flag_help(flag.help, flag.sets, defaults),
            **value,
        )
    if command.multi_process:
        _add_process_flags(parser.add_argument_group("several processes"), command)
    _add_gin_flags(parser.add_argument_group("configuration"), command)


class _AddSetting(argparse.Action):
    """Appends the gin setting that a flag stands for to `settings`, in the order typed."""

    def __init__(self, template: str, **options: Any):
        super().__init__(**options)
        self._template = template

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if values != []:  # of an argument that may be omitted
            namespace.settings = (*namespace.settings, self._template.format(values))


def _add_process_flags(group: argparse._ArgumentGroup, command: Command) -> None:
    for name, kind, metavar, sentence in _PROCESS_FLAGS:
        group.add_argument(f"--{name}", help=sentence, type=kind, metavar=metavar)
    if command.rendezvous:
        sentence = "Seconds to wait for the other processes. Default: 300."
        group.add_argument("--wait_seconds", help=sentence, type=float, default=300.0, metavar="X")


def _add_gin_flags(group: argparse._ArgumentGroup, command: Command) -> None:
    group.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="Gin file of settings, searched in the working directory, in --gin_search_paths and "
        "in the shipped gin_configs. Repeatable; later files and flags override earlier ones. "
        f"Default: none besides {command.default_gin}, which is read first.",
    )
    group.add_argument(
        "--gin.NAME=VALUE",
        dest="_",
        action="store_true",
        help="Set a macro (TRAIN_STEPS) or a parameter (train.seed); text needs no quotes. "
        "Repeatable. Default: none.",
    )
    group.add_argument(
        "--gin_search_paths",
        default="",
        metavar="DIR,DIR",
        help="More directories to search for gin files. Default: none.",
    )
    group.add_argument(
        "--gin_imports",
        metavar="PACKAGE,PACKAGE",
        help="Packages that gin files may import and call, such as t5x_lite. Default: any.",
    )
