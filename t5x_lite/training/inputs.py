"""What a run reads: its data as stores, a stream of batches, and checks that a model suits them."""

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
    """The data of a run. settings: what training and validation batches have in common."""

    plan: Plan
    stream: Stream
    settings: dict[str, Any]

    @property
    def mixture(self) -> dict[str, float]:
        """The share of examples that is planned of each task."""
        tasks = self.plan.train_tasks()
        total = sum(task.rate for task in tasks)
        return {task.name: task.rate / total for task in tasks}

    def baselines(self, max_examples: int | None) -> dict[str, Any]:
        """What a model must beat on each validation task, of so many examples."""
        same = {name: self.settings[name] for name in ("feature_lengths", "sentinels", "seed")}
        train_tasks = {task.name: task for task in self.plan.train_tasks()}
        return {
            task.name: target_baselines(
                train_tasks.get(task.name, task),
                task,
                **same,
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
    """Get the stores ready, tokenizing what is missing, and open the stream.

    Raises ConfigError where the model cannot learn from this data.
    """
    if data.pack and model.prompt_length:
        raise ConfigError(
            f"a prompt of {model.prompt_length} vectors stands before one example, and Data.pack "
            f"puts several in a row; wanted Data.pack = False",
            "Data.pack",
            "TransformerConfig.prompt_length",
        )
    plan = processes.first_then_others(partial(prepare, data))
    if processes.count() > 1:
        processes.check_same("their data", _identity(plan))
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
    """What all batches for this model have in common, as `stream` takes it."""
    return {
        "feature_lengths": data.feature_lengths,
        "batch_size": batch_size,
        "seed": data.seed,
        "sentinels": plan.vocabulary().sentinels,
        "converter": _converter(model, loss_on_inputs=loss_on_inputs),
    }


def in_order(
    stream: Stream,
    step: int,
    position: StreamPosition,
    jumps: Mapping[int, StreamPosition],
    rows: slice,
) -> Iterator[tuple[Batch, StreamPosition, StreamPosition]]:
    """Each batch after `step` with the positions before and after it.

    jumps: at which steps the order is left, and where for (`decisions.jumps`).
    """
    more = True
    while more:
        position, more = jumps.get(step, position), False
        for batch, after in stream.batches(position, rows):
            yield batch, position, after
            step, position = step + 1, after
            if more := step in jumps:
                break


def check_vocabulary(plan: Plan, model: TransformerConfig) -> None:
    """Raise ConfigError if the data holds token ids that the model's embedding has no row for."""
    vocabulary = plan.vocabulary()
    if vocabulary.size > model.vocab_size:
        raise ConfigError(
            f"the vocabulary has {vocabulary.size} ids but the model's embedding only "
            f"{model.vocab_size} rows; wanted at least {vocabulary.size}, best "
            f"{vocabulary.padded_size} (a multiple of 128)",
            "TransformerConfig.vocab_size",
        )


def check_tasks(plan: Plan, model: TransformerConfig) -> None:
    """Raise ConfigError if a model without a decoder is to learn what it cannot say."""
    for task in [*plan.train_tasks(), *plan.validation_tasks()] if model.encoder_only else ():
        if "weights" not in getattr(task.objective, "aligned_features", ()):
            has = "no objective" if task.objective is None else type(task.objective).__name__
            raise ConfigError(
                f"a model without a decoder predicts masked tokens where they stand, and task "
                f"{task.name!r} has {has}: wanted text under one of objectives/bert*.gin",
                "MIXTURE_OR_TASK_NAME",
                "OBJECTIVE",
            )


def _identity(plan: Plan) -> dict[str, Any]:
    """What tells two hosts' copies of the data apart: stores are named by what they are made of."""
    stores = {
        f"{task.name}/{split}": name for task in plan.tasks for split, name in task.stores.items()
    }
    return {"vocabulary": plan.vocabulary().fingerprint, **stores}


def _converter(model: TransformerConfig, *, loss_on_inputs: bool) -> Converter:
    """How features become what this kind of model takes."""
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
