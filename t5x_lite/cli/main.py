"""The command line: flags and gin files in, ONE call of a function in `run/` out.

Nothing heavy is imported before the flags and the gin files make sense (`gin_files`). Whatever a
user got wrong ends as one line on stderr and exit code 2.
"""

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from t5x_lite import __version__
from t5x_lite.cli import gin_allowlist, gin_config
from t5x_lite.errors import ConfigError

COMMANDS = {
    "train": "pretrain or fine-tune a model, or go on with a run that was stopped",
    "inspect": "show examples as a model reads them, mixing rates, and the learning rate",
    "cache": "tokenize a task or mixture once, resumably and in parallel",
    "vocab": "train a SentencePiece vocabulary on files of text",
    "c4": "build C4 or a variant of it from the WET files of Common Crawl",
    "import": "make a run directory of a Hugging Face model",
    "export": "make a Hugging Face model of a run directory",
    "torture": "train under faults and prove that nothing is lost",
    "infer": "generate, fill, embed or score the lines of a file, resumably",
    "serve": "open a page on this machine to try a model",
    "evaluate": "take held-out losses and the tasks' own metrics of checkpoints",
    "compare": "name the first step at which two runs part",
    "replay": "run one step again and name the first module whose numbers go wrong",
    "doctor": "look whether all hosts of a run are fit for it, before the first step",
    "explore": "repeat a study: pretrain, fine-tune and compare the rows of a gin file",
    "report": "show one run, or several beside each other, as a page",
    "plan": "compile a step for a TPU slice from here: memory, time, collectives",
}
# Where the function of a command is.
FUNCTIONS = {
    "train": "trainer.train.train",
    "inspect": "reporting.inspect_data.inspect",
    "cache": "data.cache.cache",
    "vocab": "data.vocab.vocab",
    "c4": "data.c4.build_c4.c4",
    "import": "import_export.import_hf.import_weights",
    "export": "import_export.export_hf.export_weights",
    "torture": "debugging.fault_injection.torture.torture",
    "infer": "inference.infer.infer",
    "serve": "inference.serve.serve",
    "evaluate": "evaluation.evaluate.evaluate",
    "compare": "debugging.compare.compare",
    "replay": "debugging.replay.replay",
    "doctor": "doctor.doctor.doctor",
    "explore": "sweep.explore.explore",
    "report": "reporting.report.report",
    "plan": "planning.plan.plan",
}
# A file that is read before the user's, for commands that can do without one of the user's.
FIRST_FILES = {
    "plan": "runs/plan.gin",
    "c4": "runs/c4.gin",
    "inspect": "runs/inspect.gin",
    "infer": "runs/infer.gin",
    "serve": "runs/serve.gin",
    "compare": "runs/compare.gin",
    "torture": "runs/torture.gin",
    "replay": "runs/replay.gin",
    "doctor": "runs/doctor.gin",
    "report": "runs/report.gin",
}
# A macro that is a list of arguments without a flag.
LISTS = {"report": "RUNS"}
# Arguments without a flag, and the macros they stand for.
POSITIONS = {"compare": {"run": "RUN", "other": "OTHER"}}
# Flags that stand for a macro or for a parameter of the command's function.
SHORT_FLAGS = {
    "c4": {"wet": "WET", "out": "OUT", "bad_words": "BAD_WORDS", "variant": "VARIANT"},
    "doctor": {"devices": "doctor.devices"},
    "torture": {"minutes": "torture.minutes"},
    "replay": {"step": "replay.step"},
    "infer": {
        "model_dir": "MODEL_DIR",
        "inputs": "INPUTS",
        "outputs": "OUTPUTS",
        "what": "WHAT",
        "prefix": "PREFIX",
    },
    "serve": {"model_dir": "MODEL_DIR", "host": "HOST", "port": "PORT"},
    "report": {"output": "report.output"},
    "explore": {
        "scale": "SCALE",
        "seeds": "SEEDS",
        "output": "OUTPUT",
        "budget": "explore.budget",
        "jobs": "explore.jobs",
        "only": "explore.only",
        "seed": "explore.seed",
        "write_jobs": "explore.write_jobs",
    },
    "plan": {
        "topology": "plan.topology_name",
        "slices": "plan.slices",
        "price": "plan.price",
        "what": "plan.what",
        "explain": "plan.explain",
        "search": "plan.search",
        "output": "plan.output",
    },
}
# Commands that start `train` with the same files and flags, as a process of its own.
STARTS_TRAIN = {"torture"}
# Commands that are given `train` itself, whose values are checked before.
GIVEN_TRAIN = {"replay"}
# Commands that read other gin files than their own, and start commands with them.
READS_OTHERS = {"explore"}
# Commands that several processes may carry out together.
OF_SEVERAL_PROCESSES = {"train", "evaluate", "infer", "replay", "doctor"}
PROCESS_FLAGS = {
    "coordinator_address": "HOST:PORT at which process 0 meets the others; a TPU pod tells",
    "num_processes": "how many there are",
    "process_id": "which of them this one is, from 0",
    "missing_seconds": "one that was not heard of for so long is dead, and the others end (60)",
}
GIN_CONFIGS = Path(__file__).resolve().parents[2] / "gin_configs"
EXAMPLE = """
gin files are looked for in the working directory, in --gin_search_paths and in the shipped
gin_configs. Later files and flags override earlier ones. For example:

  t5x_lite train --gin_file=runs/smoke.gin --gin.TRAIN_STEPS=200 \\
      --gin.TransformerConfig.dropout_rate=0.1
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = [a for a in arguments if a.startswith("--gin.")]
    options = _parser().parse_args([a for a in arguments if not a.startswith("--gin.")])
    files = [*filter(None, [FIRST_FILES.get(options.command)]), *options.gin_file]
    short = SHORT_FLAGS.get(options.command, {}) | POSITIONS.get(options.command, {})
    for flag, parameter in short.items():
        if (value := getattr(options, flag)) is not None:
            flags.append(f"--gin.{parameter}={value}")
    if listed := getattr(options, "listed", None):
        flags.append(f"--gin.{LISTS[options.command]}={listed!r}")
    search = ["", *filter(None, options.gin_search_paths.split(",")), str(GIN_CONFIGS)]
    bindings: list[gin_config.Binding] = []
    try:
        bindings = gin_config.read(files, flags, search)
        gin_config.check_macros(bindings, FUNCTIONS[options.command].rpartition(".")[2])
        allowed = [*filter(None, (options.gin_imports or "").split(","))]
        if allowed:
            gin_allowlist.check_imports(files, search, allowed)
        _prepare_environment()
        gin_config.parse(files, flags, search)
        if allowed:
            gin_allowlist.check_origins(allowed)
        if options.command in OF_SEVERAL_PROCESSES:
            _join_processes(options.command, vars(options))
        also = {}
        if options.command in STARTS_TRAIN:
            also["arguments"] = _of_train(arguments[1:], options.command)
        if options.command in GIVEN_TRAIN:
            gin_config.check_values(_function("train"))
        if options.command in READS_OTHERS:
            passed = ("--gin_search_paths", "--gin_imports")
            also["arguments"] = arguments[1:]
            also["flags"] = [a for a in arguments if a.startswith(passed)]
            also["read"] = lambda command, text: _read(command, text, search, allowed)
        gin_config.call(_function(options.command), **also)
        _leave_processes(0)
    except ConfigError as error:
        # gin wraps what is raised below it; the attributes stay, the text grows.
        parts = [error.message, *gin_config.where_set(error.names, bindings)]
        _exit(options.command, "; ".join(parts))
    except KeyboardInterrupt:
        _leave_processes(130, "interrupted")
        sys.exit(130)
    except SystemExit:
        _leave_processes(0)
        raise
    except Exception as error:
        _leave_processes(1, error)
        raise


def _of_train(arguments: Sequence[str], command: str) -> list[str]:
    """The arguments of a command that are `train`'s as well."""
    own = (f"--gin.{command}.", *(f"--{flag}" for flag in SHORT_FLAGS.get(command, {})))
    return [argument for argument in arguments if not argument.startswith(own)]


def _read(
    command: str, text: str, search: Sequence[str], allowed: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a gin file given as text would pass to a command, and its names as they were set."""
    with tempfile.NamedTemporaryFile("w", suffix=".gin") as file:
        file.write(text)
        file.flush()
        bindings = gin_config.read([file.name], [], search)
        gin_config.check_macros(bindings, command)
        if allowed:
            gin_allowlist.check_imports([file.name], search, allowed)
        gin_config.clear()
        gin_config.parse([file.name], [], search)
    settings: dict[str, Any] = {}
    for binding in bindings:  # one name may be written in two ways: the last one counts
        settings.pop(binding.name, None)
        settings[binding.name] = binding.value
    return gin_config.arguments(_function(command)), settings


def _function(command: str) -> Callable[..., None]:
    module, _, name = FUNCTIONS[command].rpartition(".")
    return getattr(importlib.import_module(f"t5x_lite.{module}"), name)


def _join_processes(command: str, flags: Mapping[str, str | None]) -> None:
    from t5x_lite.distributed import heartbeat, processes, rendezvous

    meeting = processes.DistributedConfig.find(flags, os.environ)
    if command == "doctor":
        rendezvous.call(meeting, seconds=float(flags["wait_seconds"] or 0))
    seconds = float(flags["missing_seconds"] or heartbeat.SECONDS)
    # jax's own watch comes later: it names nobody.
    processes.initialize(meeting, heartbeat_seconds=round(2 * seconds) + 40)
    heartbeat.start(seconds)


def _leave_processes(code: int, why: str | Exception = "") -> None:
    """Leave the other processes in peace (0), or end here, and them too; nothing if alone."""
    if heartbeat := sys.modules.get("t5x_lite.distributed.heartbeat"):
        heartbeat.leave(code, why)


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
        for position, macro in POSITIONS.get(name, {}).items():
            command.add_argument(position, help=f"sets {macro}")
        command.add_argument(
            "--gin_file",
            action="append",
            default=[],
            required=name not in FIRST_FILES,
            metavar="FILE",
            help="repeatable",
        )
        command.add_argument(
            "--gin_search_paths", default="", metavar="DIR,DIR", help="where else to look for files"
        )
        command.add_argument(
            "--gin_imports",
            metavar="PACKAGE,PACKAGE",
            help="gin files may use nothing but these packages, such as t5x_lite; default: any",
        )
        for flag, summary in PROCESS_FLAGS.items() if name in OF_SEVERAL_PROCESSES else ():
            number = float if flag == "missing_seconds" else str
            command.add_argument(f"--{flag}", help=summary, type=number)
        if name == "doctor":
            command.add_argument("--wait_seconds", default="300", help="for other processes")
        if macro := LISTS.get(name):
            command.add_argument("listed", nargs="*", metavar=macro.removesuffix("S"))
        for flag, parameter in SHORT_FLAGS.get(name, {}).items():
            command.add_argument(
                f"--{flag}", metavar="VALUE", nargs="?", const="True", help=f"sets {parameter}"
            )
        command.add_argument(
            "--gin.NAME=VALUE",
            dest="_",
            action="store_true",
            help="set a macro or function.parameter; text needs no quotes; repeatable",
        )
    return parser


def _prepare_environment() -> None:
    """Settings that only count before the libraries are imported; what the user set stays."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(cache, "t5x_lite", "compiled"))
    # Simulated devices share few cores: a slow one must not be taken for a hung one.
    for what in ("collective_call_terminate_timeout", "collective_timeout"):
        flag = f"--xla_cpu_{what}_seconds"
        if flag not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}=600".strip()


def _exit(command: str, message: str) -> NoReturn:
    print(f"t5x_lite {command}: {message}", file=sys.stderr)
    _leave_processes(2, message)
    sys.exit(2)


if __name__ == "__main__":
    main()
