"""Holding gin files to packages: what they import, and whose functions they would have called."""

from collections.abc import Sequence
from pathlib import Path

from t5x_lite.errors import ConfigError


def check_imports(files: Sequence[str], search: Sequence[str], allowed: Sequence[str]) -> None:
    """Raise ConfigError if gin files import modules other than those of `allowed` packages.

    To be called before gin parses them, which imports.
    """
    from gin import config_parser

    class Delegate(config_parser.ParserDelegate):
        def configurable_reference(self, scoped_configurable_name, evaluate):  # pyright: ignore
            return None

        def macro(self, macro_name):  # pyright: ignore
            return None

    todo = list(files)
    for name in todo:
        path = next(path for prefix in search if (path := Path(prefix, name)).is_file())
        for statement in config_parser.ConfigParser(path.read_text(), Delegate()):
            if isinstance(statement, config_parser.IncludeStatement):
                todo.append(statement.filename)
            elif isinstance(statement, config_parser.ImportStatement) and not _is_of(
                statement.module, (*allowed, "__gin__")
            ):
                raise ConfigError(
                    f"{path}:{statement.location.line_num} imports {statement.module}; "
                    f"--gin_imports allows {', '.join(allowed)}"
                )


def check_origins(allowed: Sequence[str]) -> None:
    """Raise ConfigError if gin would call what was not written in one of the `allowed` packages.

    A module of an allowed package imports others, and gin reaches what stands in those by dots. To
    be called between gin's parsing and its first call.
    """
    from gin import config

    for bound in config._CONFIG.values():
        for value in config._iterate_flattened_values(bound):
            made = getattr(value, "configurable", None)
            module = getattr(made and made.wrapped, "__module__", None) or ""
            if made and not _is_of(module, (*allowed, "gin")):
                raise ConfigError(
                    f"{made.selector} is written in {module or 'no module'}; --gin_imports allows "
                    f"{', '.join(allowed)}"
                )


def _is_of(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
