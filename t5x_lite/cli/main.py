"""The command line: read flags and gin files, and call the function of a command.

JAX and other slow packages are imported only after the flags and gin files have been checked
(`gin_config`). A ConfigError prints one line to stderr and exits with code 2.
"""

import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from t5x_lite import log_setup
from t5x_lite.cli import arguments, gin_allowlist, gin_config
from t5x_lite.cli.command_table import commands, function_names, load_function
from t5x_lite.cli.help_text import GIN_CONFIGS as GIN_CONFIGS
from t5x_lite.command import Invocation
from t5x_lite.errors import ConfigError


@log_setup.to_terminal()
def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line: the entry point of the console script.

    Args:
        argv: The words after `t5x_lite`; None takes them from `sys.argv`.
    """
    request = arguments.parse(list(sys.argv[1:] if argv is None else argv))
    bindings: list[gin_config.Binding] = []
    leave = _alone
    try:
        bindings = check(request)
        _prepare_environment()
        _parse_gin(request.files, request.settings, request.search, request.packages)
        if request.command.multi_process:
            leave = _join_processes(request)
        _call(request)
        leave(0)
    except ConfigError as error:
        # gin appends to the text of errors that pass through it; `message` stays as it was raised.
        parts = [error.message, *gin_config.where_set(error.names, bindings)]
        message = "; ".join(parts)
        print(f"t5x_lite {request.command.name}: {message}", file=sys.stderr)
        leave(2, message)
        sys.exit(2)
    except KeyboardInterrupt:
        leave(130, "interrupted")
        sys.exit(130)
    except SystemExit:
        leave(0)
        raise
    except Exception as error:
        leave(1, error)
        raise


def check(request: arguments.Request) -> list[gin_config.Binding]:
    """Read a request's gin files as text and check them, without importing what they configure.

    Returns:
        All bindings, in the order in which gin will make them.

    Raises:
        ConfigError: A file is missing, a macro is misspelled or a required setting has no value.
    """
    bindings = gin_config.read(request.files, request.settings, request.search)
    gin_config.check_macros(
        bindings, *function_names(request.command), how_to_set=request.how_to_set
    )
    if request.packages:
        gin_allowlist.check_imports(request.files, request.search, request.packages)
    return bindings


def read_command(
    name: str, text: str, search: Sequence[str], packages: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the text of a gin file for a command, as `t5x_lite NAME --gin_file=...` would.

    Args:
        name: The command's name.
        text: The gin file.
        search: Directories in which the files that it includes are searched.
        packages: The packages that it may import; empty for any.

    Returns:
        The arguments that gin would pass to the command's function, and the value of each name that
        is set.

    Raises:
        ConfigError: The command could not be called with the file.
    """
    command = commands()[name]
    with tempfile.NamedTemporaryFile("w", suffix=".gin") as file:
        file.write(text)
        file.flush()
        files = [command.default_gin, file.name]
        bindings = gin_config.read(files, [], search)
        gin_config.check_macros(bindings, *function_names(command))
        if packages:
            gin_allowlist.check_imports(files, search, packages)
        gin_config.clear()
        gin_config.parse(files, [], search)
    settings: dict[str, Any] = {}
    for binding in bindings:  # the last binding of a name counts, and decides its order
        settings.pop(binding.name, None)
        settings[binding.name] = binding.value
    return gin_config.arguments(load_function(command)), settings


def _parse_gin(
    files: Sequence[str], settings: Sequence[str], search: Sequence[str], packages: Sequence[str]
) -> None:
    """Make gin read the files and settings, and check what they import."""
    gin_config.parse(files, settings, search)
    if packages:
        gin_allowlist.check_origins(packages)


def _call(request: arguments.Request) -> None:
    """Call the command's function with its gin bindings, and with `settings` and `invocation`."""
    command = request.command
    called = load_function(command)
    parameters = inspect.signature(called).parameters
    extra: dict[str, Any] = {}
    if command.builds_on:
        base = load_function(commands()[command.builds_on])
        gin_config.check_values(base)
        if "settings" in parameters:
            extra["settings"] = gin_config.arguments(base)
    if "invocation" in parameters:
        extra["invocation"] = Invocation(
            arguments=request.arguments,
            gin_arguments=request.gin_arguments(),
            search_arguments=request.search_arguments(),
            read=lambda name, text: read_command(name, text, request.search, request.packages),
        )
    gin_config.call(called, builds_on=bool(command.builds_on), **extra)


def _alone(code: int, why: str | Exception = "") -> None:
    """Do nothing at the end of a command that has not joined other processes."""


def _join_processes(request: arguments.Request) -> Callable[..., None]:
    """Join the other processes of a pod, if there are any.

    Returns:
        leave(code, why), to be called at the end of the command: with code 0 it exits cleanly from
        the other processes, with any other code it ends them too.
    """
    from t5x_lite.distributed import heartbeat, processes, rendezvous

    options = request.options
    config = processes.DistributedConfig.find(options, os.environ)
    if request.command.rendezvous:
        rendezvous.wait_for_all(config, seconds=options["wait_seconds"])
    seconds = float(options["missing_seconds"] or heartbeat.SECONDS)
    # jax's heartbeat times out later than this package's, which names the process that died.
    processes.initialize(config, heartbeat_seconds=round(2 * seconds) + 40)
    heartbeat.start(seconds)
    if not processes.is_first():
        log_setup.only_warnings()
    return heartbeat.leave


def _prepare_environment() -> None:
    """Set variables that libraries read when they are imported; those of the user are kept."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(cache, "t5x_lite", "compiled"))
    # Simulated devices share few cores. A slow device must not be mistaken for one that hangs.
    for name in ("collective_call_terminate_timeout", "collective_timeout"):
        flag = f"--xla_cpu_{name}_seconds"
        if flag not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}=600".strip()


if __name__ == "__main__":
    main()
