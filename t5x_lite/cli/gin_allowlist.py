"""Restrict gin files to packages: what they may import, and whose functions they may call."""

from collections.abc import Sequence
from pathlib import Path

from t5x_lite.errors import ConfigError


def check_imports(files: Sequence[str], search: Sequence[str], allowed: Sequence[str]) -> None:
    """Check that gin files import only modules of allowed packages.

    Call it before gin parses the files, which imports the modules.

    Args:
        files: Paths of gin files; their includes are checked as well.
        search: Directories in which the files are searched, in this order.
        allowed: Names of packages.

    Raises:
        ConfigError: A file imports another module.
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
    """Check that gin calls only functions and classes that are defined in allowed packages.

    A module of an allowed package imports other modules, and a gin file can name their functions by
    dots: `@run_directory.subprocess.run()`. Call it after gin has parsed the files and before the
    first call.

    Args:
        allowed: Names of packages.

    Raises:
        ConfigError: gin would call another function.
    """
    from gin import config

    for bound in config._CONFIG.values():
        for value in config._iterate_flattened_values(bound):
            called = getattr(value, "configurable", None)
            module = getattr(called and called.wrapped, "__module__", None) or ""
            if called and not _is_of(module, (*allowed, "gin")):
                raise ConfigError(
                    f"{called.selector} is written in {module or 'no module'}; "
                    f"--gin_imports allows {', '.join(allowed)}"
                )


def _is_of(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
