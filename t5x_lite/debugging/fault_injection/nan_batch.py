"""`t5x_lite` with one batch spoiled: the program that `torture` starts.

    python -m t5x_lite.debugging.fault_injection.nan_batch --nan_at=STEP train ...

The batch of that step, counted from 1 along the order of the data, gets a loss weight that is not a
number: the same in every start, as a broken example would be. 0 spoils nothing.
"""

import runpy
import sys
from collections.abc import Iterator
from typing import Any


def spoil(step: int) -> None:
    """Put something that is not a number into the batch of a step, from now on."""
    from t5x_lite.trainer.loop import TrainingLoop

    positioned = TrainingLoop._positioned

    def with_spoiled(self: TrainingLoop, rows: slice) -> Iterator[Any]:
        number = self.step
        for batch, before, after in positioned(self, rows):
            number += 1
            if number == step:
                name = next(name for name in batch if name.endswith("_loss_weights"))
                batch = {**batch, name: batch[name].copy()}
                batch[name][:, 0] = float("nan")
            yield batch, before, after

    TrainingLoop._positioned = with_spoiled


if __name__ == "__main__":
    flag, *arguments = sys.argv[1:]
    if at := int(flag.removeprefix("--nan_at=")):
        spoil(at)
    sys.argv = ["t5x_lite", *arguments]
    runpy.run_module("t5x_lite", run_name="__main__")
