"""The command line: flags and gin files in, ONE call of a function in `run/` out.

gin lives in this file alone. Before anything heavy is imported the gin files are read once as text,
so that a missing file, a misspelt macro or an unset value is reported within the second; then gin
reads them for good, values are held against the type annotations they will meet, and the command
runs. Whatever a user got wrong ends as one line on stderr and exit code 2.
"""

import argparse
import ast
import dataclasses
import difflib
import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from t5x_lite import __version__
from t5x_lite.errors import ConfigError

COMMANDS = {
    "train": "pretrain or fine-tune a model, or go on with a run that was stopped",
}
GIN_CONFIGS = Path(__file__).resolve().parent.parent / "gin_configs"
EXAMPLE = """
gin files are looked for in the working directory, in --gin_search_paths and in the shipped
gin_configs. Later files and flags override earlier ones. For example:

  t5x_lite train --gin_file=runs/smoke.gin --gin.TRAIN_STEPS=200 \\
      --gin.TransformerConfig.dropout_rate=0.1
"""


class Binding(NamedTuple):
    """`name = value` somewhere in the configuration; `where` is "file.gin:12" or a flag."""

    name: str
    value: Any
    where: str


@dataclasses.dataclass(frozen=True)
class Reference:
    """What stands for `%NAME` (a macro) or `@name` (a function) while gin files are read as text."""

    name: str
    macro: bool


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = [a for a in arguments if a.startswith("--gin.")]
    options = _parser().parse_args([a for a in arguments if not a.startswith("--gin.")])
    bindings: list[Binding] = []
    try:
        search = ["", *filter(None, options.gin_search_paths.split(",")), str(GIN_CONFIGS)]
        texts = [_flag_to_text(flag) for flag in flags]
        for name in options.gin_file:
            bindings += _read_file(name, search, where="--gin_file")
        for flag, text in zip(flags, texts, strict=True):
            bindings += _read_text(text, search, lambda _, flag=flag: f"flag {flag}")
        check_macros(bindings)
        command = load(options.command, options.gin_file, flags, texts, search)
        command()
    except ConfigError as error:
        message = getattr(error, "message", str(error))
        _exit(options.command, message, *where_set(getattr(error, "names", ()), bindings))
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="t5x_lite", description="Pretraining of T5-family text models.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary.capitalize() + ".",
            epilog=EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_argument(
            "--gin_file", action="append", required=True, metavar="FILE", help="repeatable"
        )
        command.add_argument(
            "--gin_search_paths", default="", metavar="DIR,DIR", help="where else to look for files"
        )
        command.add_argument(
            "--gin.NAME=VALUE",
            dest="_",
            action="store_true",
            help="set a macro or function.parameter; text needs no quotes; repeatable",
        )
    return parser


# ---------------------------------------------------------------------------- reading gin as text


def _flag_to_text(flag: str) -> str:
    """`--gin.A.b=VALUE` as a gin statement; a value that is no Python literal becomes a string."""
    name, equals, value = flag.removeprefix("--gin.").partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w./]*", name):
        raise ConfigError(f"flag {flag!r} is not of the form --gin.NAME=VALUE")
    if not value.startswith(("@", "%")):
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            if not re.search(r"[@%]\w", value):  # a container may hold references
                value = repr(value)
    return f"{name} = {value}"


def _read_file(name: str, search: Sequence[str], *, where: str) -> list[Binding]:
    for prefix in search:
        path = Path(prefix, name)
        if path.is_file():
            with path.open() as file:
                return list(_read_text(file, search, lambda line: f"{path}:{line}"))
    tried = ", ".join(str(Path(prefix).absolute()) for prefix in search)
    raise ConfigError(f"gin file {name!r} not found; looked in {tried} (named by {where})")


def _read_text(source: Any, search: Sequence[str], where: Any) -> Iterator[Binding]:
    """The bindings of a gin text and of the files it includes, in order."""
    from gin import config_parser

    class Delegate(config_parser.ParserDelegate):
        def configurable_reference(self, scoped_configurable_name, evaluate):
            return Reference(scoped_configurable_name, macro=False)

        def macro(self, macro_name):
            return Reference(macro_name, macro=True)

    try:
        for statement in config_parser.ConfigParser(source, Delegate()):
            line = statement.location.line_num
            if isinstance(statement, config_parser.IncludeStatement):
                yield from _read_file(statement.filename, search, where=where(line))
            elif isinstance(statement, config_parser.BindingStatement):
                names = (statement.scope, statement.selector)
                name = "/".join(filter(None, names)) + "." * bool(statement.arg_name)
                yield Binding(name + (statement.arg_name or ""), statement.value, where(line))
    except SyntaxError as error:
        raise ConfigError(f"{error.msg} ({where(error.lineno)})") from error


def check_macros(bindings: Sequence[Binding]) -> None:
    """Raise ConfigError for a macro that is set but never used, used but never set, or still open.

    gin itself accepts the first silently, which is how a misspelt flag trains the wrong run.
    """
    final = {b.name: b for b in bindings}
    macros = {name: b for name, b in final.items() if _is_macro(name)}
    used = {r.name: b for b in bindings for r in _references(b.value) if r.macro}
    used = {name: b for name, b in used.items() if not name.startswith("gin.")}
    for name, binding in macros.items():
        if name not in used:
            raise ConfigError(
                f"{name} is set ({binding.where}) but nothing uses %{name}{nearest(name, used)}"
            )
    for name, binding in used.items():
        if name not in macros:
            raise ConfigError(
                f"%{name} is used ({binding.where}) but never set{nearest(name, macros)}"
            )
    required = Reference("gin.REQUIRED", macro=True)
    missing = [b for b in final.values() if b.value == required]
    if missing:
        raise ConfigError(
            f"{', '.join(b.name for b in missing)} must be set, for example with "
            f"--gin.{missing[0].name}=VALUE (required by {missing[0].where})"
        )


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean A or B?` for the names most like this one, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def where_set(names: Iterable[str], bindings: Sequence[Binding]) -> Iterator[str]:
    """`NAME is set by ...` for each configuration name, following a parameter to its macro."""
    final = {b.name: b for b in bindings}
    for name in names:
        match = [b for key, b in final.items() if key == name or key.endswith(f".{name}")]
        while match:
            yield f"{match[-1].name} is set by {match[-1].where}"
            macros = [r.name for r in _references(match[-1].value) if r.macro]
            match = [final[m] for m in macros if m in final]


def _is_macro(name: str) -> bool:
    return "." not in name


def _references(value: Any) -> Iterator[Reference]:
    if isinstance(value, Reference):
        yield value
    elif isinstance(value, dict):
        for part in value.items():
            yield from _references(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _references(part)


# ------------------------------------------------------------------------------ gin for good


def load(command: str, files: Sequence[str], flags, texts, search: Sequence[str]) -> Any:
    """Parse everything with gin and return the command as a function without arguments."""
    _prepare_environment()
    import gin

    for prefix in search[1:]:
        gin.add_config_file_search_path(prefix)
    for file in files:
        try:
            gin.parse_config_file(file)
        except Exception as error:
            _explain(error)
    function = getattr(importlib.import_module(f"t5x_lite.run.{command}"), command)
    for flag, text in zip(flags, texts, strict=True):
        try:
            gin.parse_config(text)
        except Exception as error:
            _explain(error, flag)
    configured = gin.get_configurable(function)
    _check_values(function)
    return lambda: configured(describe_config=gin.operative_config_str)


def _prepare_environment() -> None:
    """Settings that only count before the libraries are imported; what the user set stays."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # Simulated devices share few cores: a slow one must not be taken for a hung one.
    flag = "--xla_cpu_collective_call_terminate_timeout_seconds"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}=600".strip()


def _explain(error: Exception, flag: str = "") -> NoReturn:
    """Raise one line for an error of gin's parser, naming the place and the nearest names."""
    import gin

    text = str(error)
    place = re.search(r'In file "([^"]+)", line (\d+)', text)
    where = f"flag {flag}" if flag else ":".join(place.groups()) if place else "the configuration"
    if found := re.search(r"(\S+)' doesn't have a parameter named '(\w+)'", text):
        selector, name = found[1].strip("'"), found[2]
        parameters = _parameters(gin.get_configurable(selector))
        message = f"{selector.split('.')[-1]} has no parameter {name!r}{nearest(name, parameters)}"
    elif found := re.search(r"No configurable matching '@?([^']+?)(\(\))?'", text):
        registered = {key.split(".")[-1] for key in gin.config._REGISTRY}
        message = (
            f"nothing is called {found[1]!r} in the gin files read so far"
            f"{nearest(found[1].split('.')[-1], registered)}"
        )
    elif isinstance(
        error, (ValueError, TypeError, SyntaxError, ImportError, NameError, AttributeError)
    ):
        message = text.strip().splitlines()[0]
    else:
        raise error
    raise ConfigError(f"{message} ({where})") from error


def _check_values(function: Any) -> None:
    """Hold all that gin will pass, from the command down, against signatures and annotations."""
    import gin
    from gin.config import ConfigurableReference

    todo, seen = [("", gin.get_configurable(function))], set()
    while todo:
        scope, wrapper = todo.pop()
        configurable = gin.config._inverse_lookup(wrapper)
        if configurable is None or (scope, configurable.selector) in seen:
            continue
        seen.add((scope, configurable.selector))
        bound = dict(gin.config._CONFIG.get(("", configurable.selector), {}))
        bound.update(gin.config._CONFIG.get((scope, configurable.selector), {}))
        _check_call(configurable, bound)
        for value in bound.values():
            for part in gin.config._iterate_flattened_values(_resolve(value)):
                if isinstance(part, ConfigurableReference) and part.evaluate:
                    todo.append(("/".join(part.scopes[:1]), part.configurable.wrapper))


def _check_call(configurable: Any, bound: dict[str, Any]) -> None:
    import inspect
    import typing

    from beartype import BeartypeConf
    from beartype.door import is_bearable
    from gin.config import ConfigurableReference

    name = configurable.name
    for parameter in inspect.signature(configurable.wrapped).parameters.values():
        open_ended = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if parameter.default is parameter.empty and not open_ended and parameter.name not in bound:
            raise ConfigError(
                f"{name}.{parameter.name} must be set, for example with "
                f"--gin.{name}.{parameter.name}=VALUE"
            )
    target = configurable.wrapped
    hints = typing.get_type_hints(target.__init__ if isinstance(target, type) else target)
    for key, value in bound.items():
        value, hint = _resolve(value), hints.get(key, Any)
        if isinstance(value, ConfigurableReference):
            made = value.configurable.wrapped
            if not (isinstance(made, type) and isinstance(hint, type)) or not value.evaluate:
                continue
            fits = getattr(hint, "_is_protocol", False) or issubclass(made, hint)
        elif any(isinstance(v, ConfigurableReference) for v in _flatten(value)):
            continue
        else:
            fits = is_bearable(value, hint, conf=BeartypeConf(is_pep484_tower=True))
        if not fits:
            shown = (
                f"@{value.selector}" if isinstance(value, ConfigurableReference) else repr(value)
            )
            wanted = getattr(hint, "__name__", None) if isinstance(hint, type) else None
            raise ConfigError(
                f"{name}.{key} is {shown}; wanted {wanted or str(hint).replace('typing.', '')}",
                f"{name}.{key}",
            )


def _flatten(value: Any) -> Iterator[Any]:
    import gin

    return gin.config._iterate_flattened_values(value)


def _resolve(value: Any) -> Any:
    """The value a macro stands for, wherever macros stand in it."""
    import gin
    from gin.config import ConfigurableReference

    if isinstance(value, ConfigurableReference):
        if value.configurable.wrapped is not gin.config.macro:
            return value
        scope = "/".join(value.scopes)
        return _resolve(gin.config._CONFIG.get((scope, "gin.macro"), {}).get("value"))
    if isinstance(value, dict):
        return {_resolve(k): _resolve(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_resolve, value))
    return value


def _parameters(function: Any) -> list[str]:
    import inspect

    return list(inspect.signature(function).parameters)


def _exit(command: str, *parts: str) -> NoReturn:
    first, *rest = parts
    print(f"t5x_lite {command}: {'; '.join([first, *rest])}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
