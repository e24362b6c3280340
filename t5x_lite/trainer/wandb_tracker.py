"""Metrics on Weights & Biases, in addition to the run's own files (extra `wandb`)."""

import dataclasses
import importlib.util
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic
from t5x_lite.training.callbacks import Callback

ID = "wandb_id.txt"  # in the model directory, so that a resumed run continues its curves
_MODES = ("online", "offline", "disabled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsAndBiases:
    """Which run of Weights & Biases gets the metrics, as in `wandb.init`.

    Args:
        project: The project.
        entity: The user or team; None is the default of the account.
        name: The name of the run; None takes that of the model directory.
        mode: "online", "offline" or "disabled". "offline" keeps the metrics under the model
            directory until `wandb sync` sends them.

    Raises:
        ConfigError: `mode` is unknown, or the package wandb is not installed.
    """

    project: str
    entity: str | None = None
    name: str | None = None
    mode: str = "online"

    def __post_init__(self):
        if self.mode not in _MODES:
            raise ConfigError(
                f"mode is {self.mode!r}; expected one of {', '.join(_MODES)}",
                "WeightsAndBiases.mode",
            )
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError(
                "the package wandb is not installed: pip install 't5x_lite[wandb]'", "WANDB"
            )


class Tracker(Callback):
    """Sends every reported number to Weights & Biases, from the first process.

    Steps that are computed again after a restart were sent before; the service ignores them.

    Args:
        tracker: The run there.
        directory: The run's directory.
        describe_config: Returns the configuration as text.
    """

    def __init__(
        self,
        tracker: WeightsAndBiases,
        directory: epath.Path,
        describe_config: Callable[[], str] = str,
    ):
        self._tracker, self._directory, self._describe = tracker, directory, describe_config
        self._run: Any = None

    def __enter__(self) -> "Tracker":
        if jax.process_index() == 0:
            import wandb  # pyright: ignore[reportMissingImports]

            self._run = wandb.init(
                project=self._tracker.project,
                entity=self._tracker.entity,
                name=self._tracker.name or self._directory.name,
                mode=self._tracker.mode,  # pyright: ignore
                dir=str(self._directory),
                id=self._read_or_make_id(),
                resume="allow",
                config={"gin": self._describe()},
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self._run is not None:
            self._run.finish(exit_code=int(error[0] is not None))

    def on_report(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        """Send numbers that the run reports."""
        if self._run is not None:
            self._run.log({f"{kind}/{name}": value for name, value in numbers.items()}, step=step)

    def _read_or_make_id(self) -> str:
        path = self._directory / ID
        if not path.exists():
            atomic.write_text(path, secrets.token_hex(8))
        return path.read_text()
