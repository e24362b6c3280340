"""`t5x_lite inspect`: what a model will read, and how fast it will learn, as a person reads it."""

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

_ROWS = 64  # of the batches whose padding is measured
_MEASURED = 2000  # examples whose lengths are averaged
_SEGMENTS = ("encoder_segment_ids", "decoder_segment_ids")
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
    """Print the mixture's table, the share of padding, and some examples of every task.

    examples: of each task, from the beginning of its training split (of its validation split where
    it is never trained on). learning_rate: shown over `steps` steps, its picture in `output`;
    optimizer: named beside it.
    """
    if examples < 0:
        raise ConfigError(f"examples is {examples}; wanted 0 or more", "inspect.examples")
    if steps < 1:
        raise ConfigError(f"steps is {steps}; wanted 1 or more", "inspect.steps", "TRAIN_STEPS")
    if data is None and learning_rate is None:
        raise ConfigError(
            "nothing to inspect: wanted data (a file of tasks/), a schedule (of optimizers/) or "
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
    before = dataclasses.replace(data, tokenization="before_training")
    plan = prepare(before)
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
    for task, held in zip(shown, opened, strict=True):
        for number in range(min(examples, held.size)):
            console.print(f"\n{task.name}, example {number + 1:,} of {held.size:,}")
            raw = _raw_text(task, held, number, vocabulary)
            console.marked("text", raw, _SENTINEL)
            rows = held.features(np.zeros(1, np.int64), np.array([number]))
            for feature in FEATURES:
                length, room = int(rows[feature].lengths[0]), data.feature_lengths[feature]
                tokens = rows[feature].tokens[0, :length].tolist()
                console.marked(feature, _readable(tokens, vocabulary), _SENTINEL)
                console.print(
                    f"  {'':<11}{length:,} of {room:,} tokens, {1 - length / room:.0%} free"
                )
            if "weights" in rows:  # of an encoder, which predicts some tokens where they stand
                counts = rows["weights"].tokens[0] > 0
                predicted = rows["targets"].tokens[0, : len(counts)][counts].tolist()
                console.marked("predicted", _readable(predicted, vocabulary), _SENTINEL)


def _show_table(
    console: Console, title: str, tasks: Sequence[StreamTask], opened: Sequence[Examples]
) -> None:
    total = sum(task.rate for task in tasks)
    rows = []
    for task, held in zip(tasks, opened, strict=True):
        count = min(held.size, _MEASURED)
        lengths = held.lengths(np.zeros(count, np.int64), np.arange(count)).mean(axis=0)
        share = task.rate / total if total else 0.0
        numbers = (f"{held.size:,}", f"{task.rate:,.6g}", f"{share:.2%}")
        rows.append((task.name, *numbers, *(f"{length:.1f}" for length in lengths)))
    columns = ("task", "examples", "rate", "share", "inputs, tokens", "targets, tokens")
    console.table(title, columns, rows)


def _show_padding(
    console: Console, tasks: Sequence[StreamTask], settings: Mapping[str, Any], *, packed: bool
) -> None:
    stream = Stream(tasks, **settings, batch_size=_ROWS, pack=packed)
    batch, _ = next(iter(stream.batches(stream.start())))
    shares = [1 - float(np.mean(batch[name] > 0)) for name in _SEGMENTS]
    console.print(
        f"padding of {_ROWS} rows {'with' if packed else 'without'} packing: inputs "
        f"{shares[0]:.1%}, targets {shares[1]:.1%}"
    )


def _raw_text(task: StreamTask, held: Examples, number: int, vocabulary: AnyVocabulary) -> str:
    """Return the text of an example before the objective, or a pair as it is stored."""
    if isinstance(held, TextExamples):
        piece = held.pieces(np.array([number]))
        return _readable(piece.tokens[0, : piece.lengths[0]].tolist(), vocabulary)
    if isinstance(held, TrimmedPairs):
        number = int(held.stored(np.array([number]))[0])
    parts = []
    assert not isinstance(task.store, PartialStore)
    if isinstance(task.store, SeqioPipeline):
        rows = held.features(np.zeros(1, np.int64), np.array([number]))
        texts = [rows[name].tokens[0, : rows[name].lengths[0]].tolist() for name in FEATURES]
        return " -> ".join(_readable(tokens, vocabulary) for tokens in texts)
    for feature in FEATURES:
        first, last = task.store.offsets(feature)[number : number + 2]
        parts.append(vocabulary.decode(task.store.tokens(feature)[first:last].tolist()))
    return " -> ".join(parts)


def _readable(tokens: Sequence[int], vocabulary: AnyVocabulary) -> str:
    """Return the text of tokens, with "</s>" between documents that end inside it."""
    ends = [place for place, token in enumerate(tokens[:-1]) if token == EOS_ID]
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
