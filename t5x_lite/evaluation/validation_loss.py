"""Looking at a model with data it was not trained on: loss per task, and decoded samples."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from t5x_lite.data.stream.feature_converters import unconverted
from t5x_lite.data.stream.prefetch import process_rows, to_devices
from t5x_lite.data.stream.stream import StreamTask, evaluation_batches
from t5x_lite.errors import require_field
from t5x_lite.inference.engine import Inference
from t5x_lite.models.transformer import Params
from t5x_lite.reporting.results import Sample
from t5x_lite.tokenizers.vocabularies import AnyVocabulary
from t5x_lite.training.step import make_eval_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How often, and on how much, a run is held against its validation data.

    period: evaluate when the number of finished steps is a multiple of it, and at the end.
    max_examples: per task; None takes the whole split. samples: decoded per supervised task.
    """

    period: int = 1000
    max_examples: int | None = 1024
    samples: int = 3

    def __post_init__(self):
        require_field(self, "period", self.period >= 1, "at least 1")
        valid = self.max_examples is None or self.max_examples >= 1
        require_field(self, "max_examples", valid, "None or at least 1")
        require_field(self, "samples", self.samples >= 0, "0 or more")


class Validator:
    """Validation tasks of a run with their compiled programs."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        tasks: Sequence[StreamTask],
        vocabulary: AnyVocabulary,
        evaluation: Evaluation,
        inference: Inference,
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
        self._inference = inference

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

        An encoder without a decoder gives none.
        """
        found: list[Sample] = []
        count = self._evaluation.samples
        if self._inference.config.encoder_only or not count:
            return found
        for task in self.tasks:
            if task.objective is not None:
                continue
            settings = {**self._settings, "converter": unconverted}
            features, real = next(evaluation_batches(task, **settings, limit=self._limit))
            written = self._inference.generate(params, features)
            columns = features["inputs"], features["targets"], written.tokens[:, 0]
            columns = (column[: min(count, real)].tolist() for column in columns)
            for tokens in zip(*columns, strict=True):
                inputs, target, prediction = map(self._vocabulary.decode, tokens)
                found.append(
                    Sample(task=task.name, inputs=inputs, target=target, prediction=prediction)
                )
        return found

    @property
    def _limit(self) -> int | None:
        return self._evaluation.max_examples

    @property
    def _rows(self) -> slice:
        return process_rows(self._settings["batch_size"], self._sharding)

    def _batches(self, task: StreamTask) -> Iterator[dict[str, jax.Array]]:
        size, rows, limit = self._settings["batch_size"], self._rows, self._limit
        for batch, _ in evaluation_batches(task, **self._settings, rows=rows, limit=limit):
            yield to_devices(batch, self._sharding, batch_size=size)
