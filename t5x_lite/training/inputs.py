"""The inputs of training: token stores, the stream of batches, and checks against the model."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import Plan, prepare
from t5x_lite.data.stream import feature_converters
from t5x_lite.data.stream.feature_converters import Converter
from t5x_lite.data.stream.stream import Batch, Stream, StreamPosition
from t5x_lite.data.stream.unigram_baseline import target_baselines
from t5x_lite.distributed import processes
from t5x_lite.errors import ConfigError
from t5x_lite.models.config import TransformerConfig


class TrainInputs(NamedTuple):
    """The data of a run.

    Args:
        plan: The tasks and their token stores.
        stream: The training batches.
        settings: The settings that training and validation batches share, as `Stream` takes them.
    """

    plan: Plan
    stream: Stream
    settings: dict[str, Any]

    @property
    def mixture(self) -> dict[str, float]:
        """The fraction of examples that is planned for each task."""
        tasks = self.plan.train_tasks()
        total = sum(task.rate for task in tasks)
        return {task.name: task.rate / total for task in tasks}

    def baselines(self, max_examples: int | None) -> dict[str, Any]:
        """Return the uniform and unigram losses of each validation task, which a model must beat.

        Args:
            max_examples: The number of validation examples; None is all.
        """
        shared = {name: self.settings[name] for name in ("feature_lengths", "sentinels", "seed")}
        train_tasks = {task.name: task for task in self.plan.train_tasks()}
        return {
            task.name: target_baselines(
                train_tasks.get(task.name, task),
                task,
                **shared,
                vocabulary_size=self.plan.vocabulary().size,
                validation_limit=max_examples,
            )
            for task in self.plan.validation_tasks()
        }


def make_inputs(
    data: Data,
    model: TransformerConfig,
    *,
    batch_size: int,
    loss_on_inputs: bool,
) -> TrainInputs:
    """Prepare the token stores, tokenizing what is missing, and open the stream.

    With several processes the first one prepares; the others then open the same stores.

    Args:
        data: Tasks, mixture and features.
        model: The model's configuration.
        batch_size: Rows of the global batch.
        loss_on_inputs: Whether a decoder without an encoder is also trained on its inputs.

    Raises:
        ConfigError: The model cannot learn from this data.
    """
    if data.pack and model.prompt_length:
        raise ConfigError(
            f"a prompt of {model.prompt_length} vectors precedes one example, but Data.pack puts "
            f"several examples into a row; expected Data.pack = False",
            "Data.pack",
            "TransformerConfig.prompt_length",
        )
    plan = processes.first_then_others(partial(prepare, data))
    if processes.count() > 1:
        processes.check_same("their data", _fingerprints(plan))
    check_vocabulary(plan, model)
    check_tasks(plan, model)
    settings = batch_settings(
        data, plan, model, batch_size=batch_size, loss_on_inputs=loss_on_inputs
    )
    stream = Stream(
        plan.train_tasks(),
        **settings,
        pack=data.pack,
        on_task_exhausted=data.on_task_exhausted,
        num_epochs=data.num_epochs,
        in_blocks=data.tokenization == "while_training",
        return_task_ids=True,
    )
    return TrainInputs(plan, stream, settings)


def batch_settings(
    data: Data,
    plan: Plan,
    model: TransformerConfig,
    *,
    batch_size: int,
    loss_on_inputs: bool = False,
) -> dict[str, Any]:
    """Return the settings that all batches for a model share, as `Stream` takes them.

    Args:
        data: Tasks, mixture and features.
        plan: The prepared tasks.
        model: The model's configuration.
        batch_size: Rows of the global batch.
        loss_on_inputs: Whether a decoder without an encoder is also trained on its inputs.
    """
    return {
        "feature_lengths": data.feature_lengths,
        "batch_size": batch_size,
        "seed": data.seed,
        "sentinels": plan.vocabulary().sentinels,
        "converter": _converter(model, loss_on_inputs=loss_on_inputs),
    }


def batches_from(
    stream: Stream,
    step: int,
    position: StreamPosition,
    jumps: Mapping[int, StreamPosition],
    rows: slice,
) -> Iterator[tuple[Batch, StreamPosition, StreamPosition]]:
    """Yield each batch after `step`, with the positions in the data before and after it.

    Without jumps, these are the batches of the stream in its order. With {4: position of batch 9}:

        step   3  4  5  6
        batch  3  4  9  10

    Args:
        stream: The training data.
        step: The number of steps done.
        position: The position in the data after that step.
        jumps: The steps after which data is skipped, and the positions to continue from
            (`anomaly_guard.data_jumps`).
        rows: The rows of each batch to return.
    """
    has_more = True
    while has_more:
        position, has_more = jumps.get(step, position), False
        for batch, after in stream.batches(position, rows):
            yield batch, position, after
            step, position = step + 1, after
            if has_more := step in jumps:
                break


def check_vocabulary(plan: Plan, model: TransformerConfig) -> None:
    """Check that the model's embedding has a row for every token id of the data.

    Args:
        plan: The prepared tasks.
        model: The model's configuration.

    Raises:
        ConfigError: The embedding is too small.
    """
    vocabulary = plan.vocabulary()
    if vocabulary.size > model.vocab_size:
        raise ConfigError(
            f"the vocabulary has {vocabulary.size} ids but the model's embedding only "
            f"{model.vocab_size} rows; expected at least {vocabulary.size}, best "
            f"{vocabulary.padded_size} (a multiple of 128)",
            "TransformerConfig.vocab_size",
        )


def check_tasks(plan: Plan, model: TransformerConfig) -> None:
    """Check that a model without a decoder gets tasks that it can learn: masked tokens.

    Args:
        plan: The prepared tasks.
        model: The model's configuration.

    Raises:
        ConfigError: A task's targets are not aligned with its inputs.
    """
    for task in [*plan.train_tasks(), *plan.validation_tasks()] if model.encoder_only else ():
        if "weights" not in getattr(task.objective, "aligned_features", ()):
            has = "no objective" if task.objective is None else type(task.objective).__name__
            raise ConfigError(
                f"a model without a decoder predicts masked tokens at their positions, but task "
                f"{task.name!r} has {has}; expected text under one of objectives/bert*.gin",
                "MIXTURE_OR_TASK_NAME",
                "OBJECTIVE",
            )


def _fingerprints(plan: Plan) -> dict[str, Any]:
    """What must be equal on all hosts. A store's name is a hash of everything it is made of."""
    stores = {
        f"{task.name}/{split}": name for task in plan.tasks for split, name in task.stores.items()
    }
    return {"vocabulary": plan.vocabulary().fingerprint, **stores}


def _converter(model: TransformerConfig, *, loss_on_inputs: bool) -> Converter:
    """Return how features become the arrays that this kind of model reads."""
    if model.encoder_only:
        return partial(
            feature_converters.encoder_only,
            token_types=model.num_token_types > 1,
            next_sentence=model.next_sentence_head,
        )
    if not model.decoder_only:
        return feature_converters.encoder_decoder
    visible = model.prefix_attention
    return partial(
        feature_converters.decoder_only, prefix_visible=visible, loss_on_inputs=loss_on_inputs
    )
