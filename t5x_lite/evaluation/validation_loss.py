"""Validation losses of tasks, and decoded samples of supervised tasks."""

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
    """When a run is evaluated, and on how many validation examples.

    Args:
        period: Steps between evaluations. A run is evaluated when the number of finished steps is
            a multiple of it, and at its end.
        max_examples: The largest number of validation examples of a task; None uses the whole
            split. The default keeps an evaluation short beside 1000 training steps.
        samples: The number of validation examples of each supervised task that are decoded
            greedily and written to the run's samples, to read.
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
    """Computes validation losses and decodes samples, with programs that are compiled once.

    Args:
        graphdef: The model's graph definition.
        tasks: The validation tasks.
        vocabulary: Decodes the samples.
        evaluation: The number of examples and samples.
        inference: Generates the samples.
        batch_sharding: The sharding of a batch's arrays [batch, length].
        replicated: The sharding of values that every device holds.
        stream_settings: Arguments of `evaluation_batches`, such as batch size and lengths.
    """

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
        """Compute the loss of every task, as a mean over its target tokens.

        Returns:
            By task: "loss", the cross-entropy in nats per target token; "accuracy", the fraction
            of target tokens with the highest probability; "tokens", the number of target tokens.
        """
        results = {}
        for task in self.tasks:
            sums = [self._eval_step(params, batch) for batch in self._batches(task)]
            # Summed in float64 on the host: float32 loses digits over a long split.
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
        """Return decoded texts of the first `samples` examples of every supervised task.

        The list is empty for an encoder without a decoder.
        """
        samples: list[Sample] = []
        count = self._evaluation.samples
        if self._inference.config.encoder_only or not count:
            return samples
        for task in self.tasks:
            if task.objective is not None:  # unsupervised
                continue
            settings = {**self._settings, "converter": unconverted}
            features, num_real = next(evaluation_batches(task, **settings, limit=self._limit))
            generated = self._inference.generate(params, features)
            columns = features["inputs"], features["targets"], generated.tokens[:, 0]
            columns = (column[: min(count, num_real)].tolist() for column in columns)
            for tokens in zip(*columns, strict=True):
                inputs, target, prediction = map(self._vocabulary.decode, tokens)
                samples.append(
                    Sample(task=task.name, inputs=inputs, target=target, prediction=prediction)
                )
        return samples

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
