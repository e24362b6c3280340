"""`t5x_lite inspect`: show the mixture, padding, examples and the learning rate before training."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.console import Console
from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import prepare
from t5x_lite.data.store.partial_store import PartialStore
from t5x_lite.data.stream.examples import Examples, TextExamples
from t5x_lite.data.stream.open_examples import open_examples
from t5x_lite.data.stream.pair_trimming import TrimmedPairs
from t5x_lite.data.stream.seqio_pipeline import SeqioPipeline
from t5x_lite.data.stream.stream import Stream, StreamTask
from t5x_lite.data.stream.trim_and_eos import EOS_ID, FEATURES
from t5x_lite.errors import ConfigError
from t5x_lite.reporting.schedule_plot import show_schedule
from t5x_lite.tokenizers.vocabularies import AnyVocabulary, ByteVocabulary
from t5x_lite.training.optimizers import OptimizerConfig
from t5x_lite.training.schedules import Schedule

_ROWS = 64  # rows of the batch whose padding is measured
_MEASURED = 2000  # examples whose lengths are averaged
# Zero at padding; batches without packing have no segment ids.
_WITH_PADDING = {
    True: ("encoder_segment_ids", "decoder_segment_ids"),
    False: ("encoder_input_tokens", "decoder_target_tokens"),
}
_SENTINEL = r"<extra_id_\d+>"


def inspect(
    *,
    data: Data | None = None,
    learning_rate: Schedule | None = None,
    optimizer: OptimizerConfig | None = None,
    examples: int = 3,
    steps: int = 100_000,
    output: str = "inspect",
    describe_config: Callable[[], str] = str,
) -> None:
    """Print the tasks of a mixture, the share of padding, examples of every task, and the schedule.

    Args:
        data: The mixture; None shows only the schedule.
        learning_rate: The schedule; None shows only the data.
        optimizer: The optimizer, whose settings are printed.
        examples: Number of examples of each task, from the beginning of its training split (or of
            its validation split, for a task that is only evaluated).
        steps: Number of steps over which the schedule is shown.
        output: Directory for the figure of the schedule.
        describe_config: Not used.

    Raises:
        ConfigError: A number is negative, or neither data nor a schedule is given.
    """
    if examples < 0:
        raise ConfigError(f"examples is {examples}; expected 0 or more", "inspect.examples")
    if steps < 1:
        raise ConfigError(f"steps is {steps}; expected 1 or more", "inspect.steps", "TRAIN_STEPS")
    if data is None and learning_rate is None:
        raise ConfigError(
            "nothing to inspect; expected data (a file of tasks/), a schedule (of "
            "optimizers/) or "
            "a recipe",
            "DATA",
            "LEARNING_RATE",
        )
    console = Console()
    if optimizer is not None:
        console.print(f"optimizer: {optimizer}")
    if learning_rate is not None:
        show_schedule(console, learning_rate, steps, Path(output))
    if data is not None:
        _show_data(console, data, examples)


def _show_data(console: Console, data: Data, examples: int) -> None:
    # Tokenize all of the data first: the numbers of examples are those of whole splits.
    plan = prepare(dataclasses.replace(data, tokenization="before_training"))
    vocabulary = plan.vocabulary()
    settings = {
        "feature_lengths": data.feature_lengths,
        "seed": data.seed,
        "sentinels": vocabulary.sentinels,
    }
    trained = plan.train_tasks()
    shown = trained + [task for task in plan.validation_tasks() if task.rate == 0]
    opened = [
        open_examples(
            task.name, task.store, objective=task.objective, trimming=task.trimming, **settings
        )
        for task in shown
    ]
    _show_table(console, data.mixture_or_task_name, shown, opened)
    if trained:
        _show_padding(console, trained, settings, packed=data.pack)
    for task, task_examples in zip(shown, opened, strict=True):
        for number in range(min(examples, task_examples.size)):
            _show_example(console, data, task, task_examples, number, vocabulary)


def _show_example(
    console: Console,
    data: Data,
    task: StreamTask,
    task_examples: Examples,
    number: int,
    vocabulary: AnyVocabulary,
) -> None:
    """Print an example as text, and its features as the model gets them."""
    console.print(f"\n{task.name}, example {number + 1:,} of {task_examples.size:,}")
    raw = _raw_text(task, task_examples, number, vocabulary)
    console.marked("text", raw, _SENTINEL)
    rows = task_examples.features(np.zeros(1, np.int64), np.array([number]))
    for feature in FEATURES:
        length, limit = int(rows[feature].lengths[0]), data.feature_lengths[feature]
        tokens = rows[feature].tokens[0, :length].tolist()
        console.marked(feature, _readable(tokens, vocabulary), _SENTINEL)
        console.print(f"  {'':<11}{length:,} of {limit:,} tokens, {1 - length / limit:.0%} free")
    if "weights" in rows:  # a masked language model, which predicts tokens at some positions
        is_predicted = rows["weights"].tokens[0] > 0
        predicted = rows["targets"].tokens[0, : len(is_predicted)][is_predicted].tolist()
        console.marked("predicted", _readable(predicted, vocabulary), _SENTINEL)


def _show_table(
    console: Console, title: str, tasks: Sequence[StreamTask], opened: Sequence[Examples]
) -> None:
    """Print the examples, rate, share and mean lengths of each task."""
    total = sum(task.rate for task in tasks)
    rows = []
    for task, task_examples in zip(tasks, opened, strict=True):
        count = min(task_examples.size, _MEASURED)
        lengths = task_examples.lengths(np.zeros(count, np.int64), np.arange(count)).mean(axis=0)
        share = task.rate / total if total else 0.0
        numbers = (f"{task_examples.size:,}", f"{task.rate:,.6g}", f"{share:.2%}")
        rows.append((task.name, *numbers, *(f"{length:.1f}" for length in lengths)))
    columns = ("task", "examples", "rate", "share", "inputs, tokens", "targets, tokens")
    console.table(title, columns, rows)


def _show_padding(
    console: Console, tasks: Sequence[StreamTask], settings: Mapping[str, Any], *, packed: bool
) -> None:
    """Print the share of padding in a batch."""
    stream = Stream(tasks, **settings, batch_size=_ROWS, pack=packed)
    batch, _ = next(iter(stream.batches(stream.start())))
    shares = [1 - float(np.mean(batch[name] > 0)) for name in _WITH_PADDING[packed]]
    console.print(
        f"padding of {_ROWS} rows {'with' if packed else 'without'} packing: inputs "
        f"{shares[0]:.1%}, targets {shares[1]:.1%}"
    )


def _raw_text(
    task: StreamTask, task_examples: Examples, number: int, vocabulary: AnyVocabulary
) -> str:
    """Return the text of an example before the objective, or a pair as it is stored."""
    if isinstance(task_examples, TextExamples):
        chunk = task_examples.chunks(np.array([number]))
        return _readable(chunk.tokens[0, : chunk.lengths[0]].tolist(), vocabulary)
    if isinstance(task_examples, TrimmedPairs):
        number = int(task_examples.stored(np.array([number]))[0])
    parts = []
    assert not isinstance(task.store, PartialStore)
    if isinstance(task.store, SeqioPipeline):
        rows = task_examples.features(np.zeros(1, np.int64), np.array([number]))
        texts = [rows[name].tokens[0, : rows[name].lengths[0]].tolist() for name in FEATURES]
        return " -> ".join(_readable(tokens, vocabulary) for tokens in texts)
    for feature in FEATURES:
        first, last = task.store.offsets(feature)[number : number + 2]
        parts.append(vocabulary.decode(task.store.tokens(feature)[first:last].tolist()))
    return " -> ".join(parts)


def _readable(tokens: Sequence[int], vocabulary: AnyVocabulary) -> str:
    """Return the text of tokens, with "</s>" between documents that end inside it."""
    ends = [position for position, token in enumerate(tokens[:-1]) if token == EOS_ID]
    bounds = zip([0, *(end + 1 for end in ends)], [*ends, len(tokens)], strict=True)
    texts = [_with_sentinels(tokens[first:last], vocabulary) for first, last in bounds]
    return " </s> ".join(texts).strip()


def _with_sentinels(tokens: Sequence[int], vocabulary: AnyVocabulary) -> str:
    """Return the text of tokens with sentinels as <extra_id_0>, also where they are bytes."""
    if not isinstance(vocabulary, ByteVocabulary):
        return vocabulary.decode(tokens)
    first, count = vocabulary.sentinels.first, vocabulary.sentinels.count
    text, part = "", []
    for token in tokens:
        if first - count < token <= first:
            text += vocabulary.decode(part) + f"<extra_id_{first - token}>"
            part = []
        else:
            part.append(token)
    return text + vocabulary.decode(part)
