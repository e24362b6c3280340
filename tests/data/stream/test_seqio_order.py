"""Bit for bit what seqio and t5 make without shuffling: see references/make_seqio_reference.py."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.data.stream import numba_loader, shuffle
from t5x_lite.data.stream.stream import Stream, StreamTask
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption

REFERENCE = dict(np.load(Path(__file__).parent / "references" / "seqio_reference.npz"))
LENGTHS = {"inputs": 64, "targets": 18}
SEEDS = (7, 2026)


@pytest.fixture(scope="module")
def corpus(memory_store):
    ends = np.cumsum(REFERENCE["document_lengths"])[:-1]
    return memory_store(targets=np.split(REFERENCE["documents"], ends))


def stored(name):
    """The rows that the reference holds end to end behind their number and lengths."""
    count, *values = REFERENCE[name].tolist()
    ends = np.cumsum(values[:count]) + count
    return [values[end - n : end] for n, end in zip(values[:count], ends, strict=True)]


def stream(tasks, **changed):
    settings = dict(feature_lengths=LENGTHS, batch_size=16, seed=7, pack=False, match_seqio=True)
    return Stream(tasks, **(settings | {"sentinels": Sentinels(32_099, 100)} | changed))


def rows(batches, tokens, count):
    padded = np.concatenate([batch[tokens] for batch, _ in batches])[:count]
    return [np.trim_zeros(row, "b").tolist() for row in padded]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_example_is_the_one_of_seqio_and_t5(corpus, monkeypatch, seed, compiled):
    if not compiled:
        monkeypatch.setattr(numba_loader, "kernels", lambda: None)
    unshuffled = stream([StreamTask("text", corpus, 1.0, SpanCorruption())], seed=seed)
    inputs, targets = stored(f"{seed}/inputs"), stored(f"{seed}/targets")
    assert len(inputs) > 100
    batches = itertools.islice(unshuffled.batches(unshuffled.start()), len(inputs) // 16 + 1)
    batches = list(batches)
    assert rows(batches, "encoder_input_tokens", len(inputs)) == inputs
    assert rows(batches, "decoder_target_tokens", len(inputs)) == targets


@pytest.mark.parametrize("seed", SEEDS)
def test_every_row_of_a_mixture_is_of_the_task_that_seqio_takes(memory_store, seed):
    tasks = [  # in the order of their names, as seqio has them
        StreamTask(name, memory_store(inputs=[[9 + n]], targets=[[9 + n]]), rate, None)
        for name, n, rate in (("half", 2, 0.5), ("one", 1, 1.0), ("three", 0, 3.0))
    ]
    mixed = stream(tasks, seed=seed)
    batches = list(itertools.islice(mixed.batches(mixed.start()), 2000 // 16))
    found = [row[0] - 9 for row in rows(batches, "decoder_target_tokens", 2000)]
    assert found == REFERENCE[f"mixture/{seed}"].tolist()


def test_any_row_is_reached_without_those_before_it():
    rows_n = np.arange(10**9, 10**9 + 500)
    shares = np.array([1.0, 2.0])
    together = shuffle.seqio_mixture_tasks(shares, rows_n, seed=3)
    np.testing.assert_array_equal(
        together[400:], shuffle.seqio_mixture_tasks(shares, rows_n[400:], seed=3)
    )
    np.testing.assert_array_equal(
        shuffle.seqio_noise_keys(3, rows_n)[400:], shuffle.seqio_noise_keys(3, rows_n[400:])
    )
