"""A batch that is not finite, injected into a training run at one step."""

from dataclasses import dataclass

from t5x_lite.data.stream.stream import Batch, StreamPosition
from t5x_lite.errors import require_field
from t5x_lite.training.callbacks import Callback


@dataclass(frozen=True)
class NanBatch(Callback):
    """Sets loss weights of one batch to NaN, like a corrupt example; the same in every start.

    Args:
        step: The step whose batch is changed, counted from 1.

    Raises:
        ConfigError: The step is below 1.
    """

    step: int

    def __post_init__(self):
        require_field(self, "step", self.step >= 1, "at least 1")

    def on_batch(self, step: int, batch: Batch, before: StreamPosition) -> Batch:
        """Return the batch; at the step, with NaN as the first loss weight of every row."""
        if step != self.step:
            return batch
        name = next(name for name in batch if name.endswith("_loss_weights"))
        weights = batch[name].copy()
        weights[:, 0] = float("nan")
        return {**batch, name: weights}
