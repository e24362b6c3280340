"""Records in a run's directory: the model, and the configuration and versions of each launch."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from etils import epath

from t5x_lite.distributed import processes
from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic
from t5x_lite.io.safe_files import read_json
from t5x_lite.models.config import MixtureOfExperts, TransformerConfig

MODEL = "model.json"
LAUNCHES = "launches"
_FROM_STEP = "from_step_"
_NOT_ARCHITECTURE = (
    "dtype",
    "remat",
    "query_chunk",
    "fused_attention",
    "scan_layers",
    "dropout_rate",
)
_PACKAGES = (
    *("t5x_lite", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "gin-config"),
    *("seqio", "tensorflow", "tensorflow-datasets", "sentencepiece"),
)


def check_model_dir(model_dir: epath.PathLike, model: TransformerConfig) -> None:
    """Check that a directory can hold a run of this model.

    Args:
        model_dir: The directory, which need not exist.
        model: The model's configuration. Settings that do not change the weights, such as dropout,
            may differ from those of the recorded model.

    Raises:
        ConfigError: It is a file, or holds a run of another model.
    """
    model_dir = epath.Path(model_dir)
    if model_dir.exists() and not model_dir.is_dir():
        raise ConfigError(f"the model directory {model_dir} is a file", "MODEL_DIR")
    path = model_dir / MODEL
    if not path.exists():
        return
    try:
        before = read_json(path, max_bytes=1 << 20)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not readable as JSON: {error}", "MODEL_DIR") from error
    now = _architecture(model)
    # A directory that was written before a setting existed has what is now its default.
    switches = [f for f in dataclasses.fields(model) if f.default is not dataclasses.MISSING]
    defaults = json.loads(json.dumps({f.name: f.default for f in switches if f.name in now}))
    before = defaults | before
    different = sorted(name for name in now | before if now.get(name) != before.get(name))
    if different:
        changes = ", ".join(f"{n} {before.get(n)} -> {now.get(n)}" for n in different)
        raise ConfigError(
            f"{model_dir} holds a run of another model ({changes}); choose another MODEL_DIR or "
            f"restore the configuration",
            "MODEL_DIR",
            *(f"TransformerConfig.{name}" for name in different),
        )


def write_launch(
    model_dir: epath.PathLike,
    model: TransformerConfig,
    *,
    start_step: int,
    describe_config: Callable[[], str],
    mixture: Mapping[str, float] | None = None,
) -> dict[str, object]:
    """Record a launch in launches/from_step_<step>/; only the first process writes.

    Args:
        model_dir: The run's directory.
        model: The model's configuration, written to model.json.
        start_step: The step that the launch starts or resumes from.
        describe_config: Returns the operative gin configuration.
        mixture: The fraction of examples that is planned for each task.

    Returns:
        Model, configuration and versions, which are saved with each checkpoint too.
    """
    config, packages = describe_config(), versions()
    record = {"model": json.dumps(_architecture(model)), "config": config, "versions": packages}
    if not processes.is_first():
        return record
    model_dir = epath.Path(model_dir)
    atomic.write_json(model_dir / MODEL, _architecture(model))
    launch = model_dir / LAUNCHES / f"{_FROM_STEP}{start_step:08d}"
    launch.mkdir(parents=True, exist_ok=True)
    atomic.write_text(launch / "operative_config.gin", config)
    atomic.write_json(launch / "versions.json", packages)
    atomic.write_json(launch / "mixture.json", mixture or {})
    return record


def recorded_model(model_dir: epath.PathLike) -> TransformerConfig:
    """Return the model that a run recorded in its directory.

    Args:
        model_dir: The run's directory.

    Raises:
        ConfigError: There is no record, or it cannot be read.
    """
    path = epath.Path(model_dir) / MODEL
    try:
        fields = read_json(path, max_bytes=1 << 20)
        moe = fields.pop("moe", None)
        fields["moe"] = None if moe is None else MixtureOfExperts(**moe)
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return TransformerConfig(**fields)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} does not describe a model: {error}", "MODEL_DIR") from error


def launch_steps(model_dir: epath.PathLike) -> list[int]:
    """Return the steps that launches of a run started or resumed from, in ascending order.

    Args:
        model_dir: The run's directory.
    """
    launches = (epath.Path(model_dir) / LAUNCHES).glob(f"{_FROM_STEP}*")
    return sorted(int(path.name.removeprefix(_FROM_STEP)) for path in launches)


def versions() -> dict[str, str]:
    """Return versions of Python and of packages that affect numbers, git revision and command."""
    recorded = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            recorded[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            recorded[package] = "not installed"
    program = "t5x_lite" if sys.argv[0].endswith("/t5x_lite/__main__.py") else sys.argv[0]
    command = shlex.join([program, *sys.argv[1:]])
    return {**recorded, "git_revision": _git_revision(), "command": command}


def _git_revision() -> str:
    """The checkout's commit, with "+dirty" for local changes.

    Outside a checkout it is the environment variable T5X_LITE_REVISION, which the launchers that
    copy the code to other machines set, or "none".
    """
    shipped = os.environ.get("T5X_LITE_REVISION", "none")

    def git(*arguments: str) -> str:
        directory = Path(__file__).resolve().parent
        return subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        inside = git(
            "ls-files", Path(__file__).name
        )  # an installed wheel may be inside another checkout
        if not inside:
            return shipped
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return shipped


def _architecture(model: TransformerConfig) -> dict[str, object]:
    fields = json.loads(json.dumps(dataclasses.asdict(model)))  # tuples become lists, as when read
    return {name: value for name, value in fields.items() if name not in _NOT_ARCHITECTURE}
