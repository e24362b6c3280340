"""A run's records on Weights & Biases, beside its own files (extra `wandb`)."""

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

ID = "wandb_id.txt"  # in the model directory: a continued run goes on with its curves
_MODES = ("online", "offline", "disabled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsAndBiases:
    """Where the records go, in that service's own words.

    name: of the run, its model directory's where there is none. mode: "offline" keeps the records
    under the model directory until `wandb sync` sends them.
    """

    project: str
    entity: str | None = None
    name: str | None = None
    mode: str = "online"

    def __post_init__(self):
        if self.mode not in _MODES:
            raise ConfigError(
                f"mode is {self.mode!r}; wanted one of {', '.join(_MODES)}", "WeightsAndBiases.mode"
            )
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError(
                "the package wandb is not installed: pip install 't5x_lite[wandb]'", "WANDB"
            )


class Tracker(Callback):
    """Sends what is reported of a run; steps that a restart does again are there already."""

    def __init__(
        self,
        wanted: WeightsAndBiases,
        directory: epath.Path,
        describe_config: Callable[[], str] = str,
    ):
        self._wanted, self._directory, self._describe = wanted, directory, describe_config
        self._run: Any = None

    def __enter__(self) -> "Tracker":
        if jax.process_index() == 0:
            import wandb  # pyright: ignore[reportMissingImports]

            self._run = wandb.init(
                project=self._wanted.project,
                entity=self._wanted.entity,
                name=self._wanted.name or self._directory.name,
                mode=self._wanted.mode,  # pyright: ignore
                dir=str(self._directory),
                id=self._id(),
                resume="allow",
                config={"gin": self._describe()},
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self._run is not None:
            self._run.finish(exit_code=int(error[0] is not None))

    def on_report(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        """Send a record."""
        if self._run is not None:
            self._run.log({f"{kind}/{name}": value for name, value in numbers.items()}, step=step)

    def _id(self) -> str:
        path = self._directory / ID
        if not path.exists():
            atomic.write_text(path, secrets.token_hex(8))
        return path.read_text()
