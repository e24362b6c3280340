"""Looking at a model with data it was not trained on: loss per task, and decoded samples."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from t5x_lite.data.batches import process_rows, to_devices
from t5x_lite.data.stream import StreamTask, evaluation_batches
from t5x_lite.data.vocabularies import AnyVocabulary
from t5x_lite.decoding.sampling import decode
from t5x_lite.errors import ConfigError
from t5x_lite.models.transformer import Params, bind
from t5x_lite.run.results import Sample
from t5x_lite.training.step import make_eval_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How often, and on how much, a run is held against its validation data.

    every_steps: evaluate when the number of finished steps is a multiple of it, and at the end.
    max_examples: per task; None takes the whole split. samples: decoded per supervised task.
    """

    every_steps: int = 1000
    max_examples: int | None = 1024
    samples: int = 3

    def __post_init__(self):
        if self.every_steps < 1 or self.samples < 0 or (self.max_examples or 1) < 1:
            raise ConfigError(
                f"every_steps and max_examples take 1 or more, samples 0 or more; got {self}",
                "Evaluation.every_steps",
                "Evaluation.max_examples",
                "Evaluation.samples",
            )


class HeldOut:
    """Validation tasks of a run with their compiled programs."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        tasks: Sequence[StreamTask],
        vocabulary: AnyVocabulary,
        evaluation: Evaluation,
        *,
        batch_sharding: jax.sharding.Sharding,
        replicated: jax.sharding.Sharding,
        stream_settings: dict[str, Any],
    ):
        self.tasks = tasks
        self._vocabulary = vocabulary
        self._evaluation = evaluation
        self._sharding = batch_sharding
        self._settings = stream_settings
        self._eval_step = jax.jit(make_eval_step(graphdef), out_shardings=replicated)
        length = stream_settings["feature_lengths"]["targets"]
        self._decode = jax.jit(make_greedy(graphdef, length), out_shardings=replicated)
        self._everywhere = jax.jit(lambda x: x, out_shardings=replicated)

    def losses(self, params: Params) -> dict[str, dict[str, float]]:
        """Cross-entropy (nats per target token), accuracy and target tokens of every task."""
        results = {}
        for task in self.tasks:
            sums = [self._eval_step(params, batch) for batch in self._batches(task)]
            total = jax.tree.map(
                lambda *x: float(np.sum(x, dtype=np.float64)), *jax.device_get(sums)
            )
            results[task.name] = {
                "loss": total.loss / total.weight,
                "accuracy": total.correct / total.weight,
                "tokens": int(total.weight),
            }
        return results

    def samples(self, params: Params) -> list[Sample]:
        """Greedy decodings of the first examples of every supervised task.

        A decoder without an encoder gives none.
        """
        found: list[Sample] = []
        for task in self.tasks:
            if task.objective is not None or not self._evaluation.samples:
                continue
            batch = next(self._batches(task))
            if "encoder_input_tokens" not in batch:
                continue
            tokens = {
                "inputs": batch["encoder_input_tokens"],
                "target": batch["decoder_target_tokens"],
                "prediction": self._decode(params, batch["encoder_input_tokens"]),
            }
            texts = {
                name: [self._vocabulary.decode(row.tolist()) for row in self._first_rows(array)]
                for name, array in tokens.items()
            }
            found += [
                Sample(task=task.name, inputs=i, target=t, prediction=p)
                for i, t, p in zip(*texts.values(), strict=True)
            ]
        return found

    def _batches(self, task: StreamTask) -> Iterator[dict[str, jax.Array]]:
        size = self._settings["batch_size"]
        rows = process_rows(size, self._sharding)
        limit = self._evaluation.max_examples
        for batch, _ in evaluation_batches(task, **self._settings, rows=rows, limit=limit):
            yield to_devices(batch, self._sharding, batch_size=size)

    def _first_rows(self, array: jax.Array) -> np.ndarray:
        return np.asarray(jax.device_get(self._everywhere(array)))[: self._evaluation.samples]


def make_greedy(graphdef: nnx.GraphDef, max_length: int) -> Callable[..., jax.Array]:
    """A pure function (weights, input tokens [batch, length]) -> tokens [batch, max_length]."""

    def greedy(params: Params, input_tokens_bk: jax.Array) -> jax.Array:
        model = bind(graphdef, params)
        return decode(
            model.decode_token,
            model.start_decoding(input_tokens_bk, max_length),
            batch_size=input_tokens_bk.shape[0],
            max_length=max_length,
        ).tokens

    return greedy
