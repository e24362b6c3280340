"""The interface to gin: read its files as text, check values against types, call the function.

gin accepts mistakes without an error: a misspelled macro, or text instead of a number. So the files
are read twice. First as text, without importing what they configure: a missing file, a misspelled
macro or a value that is not set is reported within a second. Then by gin itself, with imports; the
values are checked against signatures and annotations before anything is called.
"""

import ast
import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from t5x_lite.errors import ConfigError


class Binding(NamedTuple):
    """A statement `name = value` of a gin file or a flag.

    Args:
        name: The macro ("BATCH_SIZE") or parameter ("train.train.seed"), as it is written.
        value: The value, with a `Reference` for each macro and function.
        where: Where it is written: "file.gin:12" or "flag --gin.BATCH_SIZE=8".
    """

    name: str
    value: Any
    where: str


@dataclasses.dataclass(frozen=True)
class Reference:
    """A macro (`%NAME`) or a function (`@name`) in a gin file that is read as text."""

    name: str
    macro: bool


REQUIRED = Reference("gin.REQUIRED", macro=True)


# ------------------------------------------------------------------------------- read as text


def read(files: Sequence[str], flags: Sequence[str], search: Sequence[str]) -> list[Binding]:
    """Read gin files and flags as text, without importing anything that they configure.

    Args:
        files: Paths of gin files, in their order.
        flags: Flags `--gin.NAME=VALUE`, which come after the files.
        search: Directories in which the files and their includes are searched, in this order.

    Returns:
        All bindings in the order in which gin makes them.

    Raises:
        ConfigError: A file is not found or has a syntax error, or a flag has another form.
    """
    texts = [flag_to_text(flag) for flag in flags]
    bindings: list[Binding] = []
    for name in files:
        bindings += _read_file(name, search, named_by="--gin_file")
    for flag, text in zip(flags, texts, strict=True):
        bindings += _read_text(text, search, lambda _, flag=flag: f"flag {flag}")
    return bindings


def flag_to_text(flag: str) -> str:
    """Convert a flag `--gin.A.b=VALUE` to a gin statement.

    A value that is not a Python literal becomes a string.

    >>> flag_to_text("--gin.MODEL_DIR=/tmp/run"), flag_to_text("--gin.BATCH_SIZE=8")
    ("MODEL_DIR = '/tmp/run'", 'BATCH_SIZE = 8')
    """
    name, equals, value = flag.removeprefix("--gin.").partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w./]*", name):
        raise ConfigError(f"flag {flag!r} is not of the form --gin.NAME=VALUE")
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if not re.match(r"[@%\[({]", value):  # these may be, or hold, references
            value = repr(value)
    return f"{name} = {value}"


def check_macros(
    bindings: Sequence[Binding],
    *functions: str,
    how_to_set: Callable[[str], str] = "--gin.{}=VALUE".format,
) -> None:
    """Check that the macros make sense together, before anything is imported.

    Args:
        bindings: All bindings in their order, as `read` returns them.
        *functions: Names of the functions that will be called. Only what they use must have a
            value; without names, everything must.
        how_to_set: Gives the flag that sets a macro or parameter, for the error.

    Raises:
        ConfigError: A macro is set but never used, used but never set, or still `%gin.REQUIRED`.
    """
    final = {b.name: b for b in bindings}
    needed = reached(functions, final.values()) if functions else set(final)
    macros = {b.name: number for number, b in enumerate(bindings) if "." not in b.name}
    last_use = _last_uses(bindings)
    for name, number in macros.items():
        if last_use.get(name, -1) < number:
            raise ConfigError(
                f"{name} is set ({bindings[number].where}) but nothing uses %{name}"
                f"{nearest(name, last_use)}"
            )
    for binding in (b for b in final.values() if b.name in needed):
        for name in (r.name for r in references(binding.value) if r.macro):
            if name not in macros and not name.startswith("gin."):
                raise ConfigError(
                    f"%{name} is used ({binding.where}) but never set{nearest(name, macros)}"
                )
    missing = [b for b in _unset(bindings) if b.name in needed]
    if missing:
        raise ConfigError(
            f"{', '.join(b.name for b in missing)} must be set, for example with "
            f"{how_to_set(missing[0].name)} (required by {missing[0].where})"
        )


def reached(functions: Iterable[str], bindings: Iterable[Binding]) -> set[str]:
    """Return the names of all bindings that functions use, also through macros and references."""
    by_owner: dict[str, list[Binding]] = {}
    for binding in bindings:
        owner = binding.name.rpartition(".")[0] or binding.name
        by_owner.setdefault(owner.split(".")[-1], []).append(binding)
    names, todo = set(), list(functions)
    while todo:
        for binding in by_owner.pop(todo.pop(), []):
            names.add(binding.name)
            todo += [r.name.split("/")[-1].split(".")[-1] for r in references(binding.value)]
    return names


def _last_uses(bindings: Sequence[Binding]) -> dict[str, int]:
    """Return for each macro that is used the number of the binding that ended its last use.

    A use ends where the binding is overridden: `train.seed = %RANDOM_SEED` by `train.seed = 3`. A
    macro that is set later has no effect, one that was set before had one until then.
    """
    ends: dict[str, int] = {}
    last: dict[str, int] = {}
    for number in reversed(range(len(bindings))):
        name, value, _ = bindings[number]
        for reference in references(value):
            if reference.macro:
                end = ends.get(name, len(bindings))
                last[reference.name] = max(last.get(reference.name, -1), end)
        ends[name] = number
    return last


def _unset(bindings: Sequence[Binding]) -> Iterator[Binding]:
    """Yield the bindings to `%gin.REQUIRED` without a later one of the same name, full or short.

    `replay.replay.step` of a file and `replay.step` of a flag are one parameter for gin.
    """
    final = {b.name: number for number, b in enumerate(bindings)}
    for name, number in final.items():
        if bindings[number].value == REQUIRED and not any(
            later > number
            and (f".{name}".endswith(f".{other}") or f".{other}".endswith(f".{name}"))
            for other, later in final.items()
        ):
            yield bindings[number]


def where_set(names: Iterable[str], bindings: Sequence[Binding]) -> Iterator[str]:
    """Yield "NAME is set by WHERE" for names, following parameters to their macros."""
    final = {b.name: b for b in bindings}
    reported = set()
    for name in names:
        match = [b for key, b in final.items() if key == name or key.endswith(f".{name}")]
        while match and match[-1].name not in reported:
            reported.add(match[-1].name)
            yield f"{match[-1].name} is set by {match[-1].where}"
            macros = [r.name for r in references(match[-1].value) if r.macro]
            match = [final[m] for m in macros if m in final]


def nearest(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean A or B?" with the most similar names, or "" without any."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _read_file(name: str, search: Sequence[str], *, named_by: str) -> list[Binding]:
    for prefix in search:
        path = Path(prefix, name)
        if path.is_file():
            return list(_read_text(path.read_text(), search, lambda line: f"{path}:{line}"))  # noqa: B023 consumed here
    tried = ", ".join(str(Path(prefix).absolute()) for prefix in search)
    raise ConfigError(f"gin file {name!r} not found; looked in {tried} (named by {named_by})")


def _read_text(
    text: str, search: Sequence[str], where: Callable[[int | None], str]
) -> Iterator[Binding]:
    from gin import config_parser

    class Delegate(config_parser.ParserDelegate):
        def configurable_reference(self, scoped_configurable_name, evaluate):  # pyright: ignore
            return Reference(scoped_configurable_name, macro=False)

        def macro(self, macro_name):  # pyright: ignore
            return Reference(macro_name, macro=True)

    try:
        for statement in config_parser.ConfigParser(text, Delegate()):
            line = statement.location.line_num
            if isinstance(statement, config_parser.IncludeStatement):
                yield from _read_file(statement.filename, search, named_by=where(line))
            elif isinstance(statement, config_parser.BindingStatement):
                owner = "/".join(filter(None, (statement.scope, statement.selector)))
                name = f"{owner}.{statement.arg_name}" if statement.arg_name else owner
                yield Binding(name, statement.value, where(line))
    except SyntaxError as error:
        raise ConfigError(f"{error.msg} ({where(error.lineno)})") from error


def references(value: Any) -> Iterator[Reference]:
    """Yield the references in a value, also in its lists, tuples and dicts."""
    if isinstance(value, Reference):
        yield value
    elif isinstance(value, dict):
        for part in value.items():
            yield from references(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from references(part)


# -------------------------------------------------------------------------- parse and call


def parse(files: Sequence[str], flags: Sequence[str], search: Sequence[str]) -> None:
    """Let gin read the files, which imports the modules that they name, and then the flags.

    Args:
        files: Paths of gin files, in their order.
        flags: Flags `--gin.NAME=VALUE`, which come after the files.
        search: Directories in which the files and their includes are searched, in this order.

    Raises:
        ConfigError: gin refuses a statement: there is no such module, function or parameter.
    """
    import gin
    from gin import config

    # Plain files only: gin's other reader takes paths for Python packages and logs each miss.
    del config._FILE_READERS[1:]
    for prefix in search[1:]:
        gin.add_config_file_search_path(prefix)
    for file in files:
        try:
            gin.parse_config_file(file)
        except Exception as error:
            _explain(error)
    for flag in flags:
        try:
            _register(flag_to_text(flag))
            gin.parse_config(flag_to_text(flag))
        except Exception as error:
            _explain(error, flag)


def _register(text: str) -> None:
    """Let a flag name any function of the modules that the files import, as the files can.

    gin registers only those that a file has named: after `import optax`, "@optax.lamb" in a flag
    would be unknown if no file names it.
    """
    from gin import config

    for binding in _read_text(text, [], str):
        names = [part.name for part in references(binding.value) if not part.macro]
        for name in [binding.name.rpartition(".")[0], *names]:
            selector = name.rpartition("/")[2]  # without gin's scope
            root = selector.partition(".")[0]
            imports = [i for i in config._IMPORTS if i.bound_name() == root]
            if len(imports) != 1 or config._REGISTRY.matching_selectors(selector):
                continue
            context = config.ParseContext()
            context._enable_dynamic_registration()
            context.process_import(imports[0])
            context.get_configurable(selector)


def call(function: Callable[..., Any], *, builds_on: bool = False, **extra: Any) -> None:
    """Check the values that gin passes to a function, and call it.

    Args:
        function: The function. Its parameter `describe_config` returns the configuration as text.
        builds_on: The function uses settings of another command, which gin does not count among
            those that are used; so the configuration is all that was read.
        **extra: Arguments that do not come from gin.

    Raises:
        ConfigError: A value is missing or has the wrong type.
    """
    import gin

    check_values(function, given=extra)
    describe_config = gin.config_str if builds_on else gin.operative_config_str
    gin.get_configurable(function)(describe_config=describe_config, **extra)


def arguments(function: Callable[..., Any]) -> dict[str, Any]:
    """Return what gin would pass to a function, by parameter name, without calling it.

    Raises:
        ConfigError: A value is missing or has the wrong type.
    """
    import gin

    check_values(function)
    return gin.get_bindings(function)


def clear() -> None:
    """Remove all bindings, before other files are parsed."""
    import gin

    gin.clear_config()


def check_values(function: Callable[..., Any], *, given: Iterable[str] = ()) -> None:
    """Check what gin will pass to a function, and to all that it builds, against annotations.

    Args:
        function: The function that will be called.
        given: Parameters of the function that do not come from gin.

    Raises:
        ConfigError: A parameter has neither a value nor a default, or a value of the wrong type.
    """
    import gin
    from gin import config

    gin.get_configurable(function)  # a ValueError here: no gin file mentions the command
    todo, seen = [("", config._inverse_lookup(function))], set()
    while todo:
        scope, configurable = todo.pop()
        if configurable is None or (scope, configurable.selector) in seen:
            continue
        seen.add((scope, configurable.selector))
        bound = dict(config._CONFIG.get(("", configurable.selector), {}))
        bound |= config._CONFIG.get((scope, configurable.selector), {})
        bound = {name: _resolve(value) for name, value in bound.items()}
        _check_parameters(configurable, bound, given if configurable.wrapped is function else ())
        for value in _built(bound):
            todo.append(("/".join(value.scopes), value.configurable))


def _check_parameters(configurable: Any, bound: dict[str, Any], given: Iterable[str]) -> None:
    name, target = configurable.name, configurable.wrapped
    for parameter in inspect.signature(target).parameters.values():
        open_ended = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        known = open_ended or parameter.name in bound or parameter.name in given
        if parameter.default is parameter.empty and not known:
            raise ConfigError(
                f"{name}.{parameter.name} must be set, for example with "
                f"--gin.{name}.{parameter.name}=VALUE"
            )
    hints = typing.get_type_hints(target.__init__ if isinstance(target, type) else target)
    for parameter, value in bound.items():
        hint = hints.get(parameter, Any)
        if not _fits(value, hint):
            raise ConfigError(
                f"{name}.{parameter} is {value!r}; expected {_describe(hint)}",
                f"{name}.{parameter}",
            )


def _describe(hint: Any) -> str:
    """Describe an annotation: the values of a Literal, the name of a class."""
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(map(_describe, typing.get_args(hint)))
    if hint is types.NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value, or what gin will build for a reference, fits an annotation."""
    from beartype import BeartypeConf
    from beartype.door import is_bearable
    from gin import config

    if isinstance(value, config.ConfigurableReference):
        built = value.configurable and value.configurable.wrapped
        if not value.evaluate or not isinstance(built, type) or not isinstance(hint, type):
            return True
        return getattr(hint, "_is_protocol", False) or issubclass(built, hint)
    if any(isinstance(p, config.ConfigurableReference) for p in _parts(value)):
        return True
    return is_bearable(value, hint, conf=BeartypeConf(is_pep484_tower=True))


def _built(value: Any) -> Iterator[Any]:
    """Yield the references in a value that gin will call to build a part of it."""
    from gin import config

    for part in _parts(value):
        if isinstance(part, config.ConfigurableReference) and part.evaluate:
            yield part


def _parts(value: Any) -> Iterator[Any]:
    from gin import config

    return config._iterate_flattened_values(value)


def _resolve(value: Any) -> Any:
    """Replace the macros in a value by their values."""
    from gin import config

    if isinstance(value, config.ConfigurableReference):
        if value.selector != "gin.macro" and value.selector != "macro":
            return value
        bound = config._CONFIG.get(("/".join(value.scopes), "gin.macro"), {})
        return _resolve(bound.get("value"))
    if isinstance(value, dict):
        return {_resolve(k): _resolve(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_resolve, value))
    return value


def _explain(error: Exception, flag: str = "") -> NoReturn:
    """Raise an error of gin's parser as one line with its file and line, and similar names."""
    from gin import config

    text = str(error)
    location = re.search(r'In file "([^"]+)", line (\d+)', text)
    where = f"flag {flag}" if flag else ":".join(location.groups()) if location else "the gin files"
    if match := re.search(r"'(\S+)' doesn't have a parameter named '(\w+)'", text):
        owner: Any = config._REGISTRY.get_match(match[1])
        parameters = inspect.signature(owner.wrapped).parameters
        message = f"{owner.name} has no parameter {match[2]!r}{nearest(match[2], parameters)}"
    elif match := re.search(r"No configurable matching '@?([^'(]+)", text):
        known = {selector.split(".")[-1] for selector, _ in config._REGISTRY.items()}
        name = match[1].split(".")[-1]
        message = f"nothing is called {match[1]!r} in the gin files read{nearest(name, known)}"
    elif isinstance(error, (ImportError, NameError, AttributeError, SyntaxError, ValueError)):
        message = text.strip().splitlines()[0]
    else:
        raise error
    raise ConfigError(f"{message} ({where})") from error
