import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from t5x_lite.data.store.document_groups import group_documents
from t5x_lite.data.stream import examples
from t5x_lite.data.stream.open_examples import open_examples
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.bert import Bert, MaskedLM
from t5x_lite.objectives.language_models import FullLM, LMAdaptation
from t5x_lite.objectives.objective import Rows
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption

SENTINELS = Sentinels(999, 100)
LENGTHS = {"inputs": 40, "targets": 16}


class Identity:
    """An objective whose inputs and targets are the text."""

    eos_after = "chunks"

    def __init__(self, length, documents_per_group):
        self.length, self.documents_per_group = length, documents_per_group

    def raw_length(self, feature_lengths):
        return self.length

    def sentinels_needed(self, feature_lengths):
        return 0

    def __call__(self, rows, keys_b2, sentinels):
        return {"inputs": rows, "targets": rows}


def _open(store, objective=None, *, name="task", seed=0, lengths=LENGTHS):
    return open_examples(
        name,
        store,
        objective=objective,
        feature_lengths=lengths,
        sentinels=SENTINELS,
        seed=seed,
    )


def _all(opened, epoch=0):
    indices = np.arange(opened.size)
    return opened.features(np.full_like(indices, epoch), indices)


def _lists(rows):
    return [row[:length].tolist() for row, length in zip(rows.tokens, rows.lengths, strict=True)]


def _reduce_concat_and_split(documents, per_group, length):
    """The T5 library's steps, one token at a time."""
    documents = [document for document in documents if document]
    pieces = []
    for first in range(0, len(documents), per_group):
        text = list(itertools.chain(*documents[first : first + per_group]))
        pieces += [text[start : start + length] for start in range(0, len(text), length)]
    return pieces


@given(
    st.lists(st.lists(st.integers(0, 99), max_size=12), max_size=30).filter(any),
    st.integers(1, 7),
    st.integers(1, 9),
)
def test_pieces_are_those_of_reduce_concat_and_split_tokens(
    memory_store, documents, per_group, length
):
    opened = _open(memory_store(targets=documents), Identity(length, per_group))
    expected = [
        [*piece, examples.EOS_ID]
        for piece in _reduce_concat_and_split(documents, per_group, length)
    ]
    assert opened.size == len(expected)
    assert _lists(_all(opened)["inputs"]) == expected


def test_documents_are_grouped_alike_however_many_are_read_at_a_time(memory_store, monkeypatch):
    lengths = np.random.default_rng(0).integers(0, 4, 1000)
    store = memory_store(targets=[[5] * length for length in lengths])
    whole = group_documents(store, "targets", 7)
    for read in (1, 2, 6, 7, 8, 333, 999, 1000):
        monkeypatch.setattr("t5x_lite.data.store.document_groups._OFFSETS_PER_READ", read)
        np.testing.assert_array_equal(group_documents(store, "targets", 7), whole)
    assert len(whole[0]) == -(-np.count_nonzero(lengths) // 7) + 1


@given(
    st.lists(st.lists(st.integers(2, 99), max_size=20), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(2, 16),
)
def test_eos_after_documents_is_where_the_documents_end(
    memory_store, documents, per_group, targets_length
):
    assume(any(documents))
    with_eos = [[*document, examples.EOS_ID] if document else [] for document in documents]
    expected = _reduce_concat_and_split(with_eos, per_group, targets_length)
    lengths = {"inputs": 1, "targets": targets_length}
    opened = _open(memory_store(targets=documents), FullLM(per_group), lengths=lengths)
    assert opened.size == len(expected)
    assert _lists(_all(opened)["targets"]) == expected
    assert _lists(_all(opened)["inputs"]) == [[examples.EOS_ID]] * opened.size
    planned = opened.lengths(np.zeros(opened.size, int), np.arange(opened.size))
    assert planned.tolist() == [[1, len(piece)] for piece in expected]
    backwards = np.arange(opened.size)[::-1]
    read = opened.features(np.zeros_like(backwards), backwards)
    assert _lists(read["targets"]) == expected[::-1]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 99))
def test_lm_adaptation_cuts_a_stream_of_documents_in_two(memory_store, lengths, seed):
    documents = [[5 + n] * length for n, length in enumerate(lengths)]
    opened = _open(
        memory_store(targets=documents),
        LMAdaptation(),
        lengths={"inputs": 16, "targets": 16},
        seed=seed,
    )
    made = _all(opened)
    with_eos = [[*document, examples.EOS_ID] for document in documents]
    pieces = _reduce_concat_and_split(with_eos, 128, 16)
    for piece, first, rest in zip(
        pieces, _lists(made["inputs"]), _lists(made["targets"]), strict=True
    ):
        if len(piece) == 1:
            assert (first, rest) == ([examples.EOS_ID], piece)
        else:
            assert first + rest == piece
    planned = opened.lengths(np.zeros(opened.size, int), np.arange(opened.size))
    np.testing.assert_array_equal(planned[:, 0], made["inputs"].lengths)
    np.testing.assert_array_equal(planned[:, 1], made["targets"].lengths)


def test_a_vocabulary_with_too_few_sentinels_is_refused_before_anything_is_read(memory_store):
    store = memory_store(targets=[[5] * 900])
    with pytest.raises(ConfigError, match=r"up to 128 sentinels per chunk .* has 100") as error:
        _open(store, SpanCorruption(0.5), lengths={"inputs": 512, "targets": 512})
    assert "TASK_FEATURE_LENGTHS" in error.value.names


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 99), max_size=50), st.lists(st.integers(0, 99), max_size=20)
        ),
        min_size=1,
        max_size=10,
    )
)
def test_pairs_are_cut_to_leave_room_for_the_eos_that_ends_them(memory_store, pairs):
    inputs, targets = zip(*pairs, strict=True)
    opened = _open(memory_store(inputs=inputs, targets=targets))
    features = _all(opened)
    assert _lists(features["inputs"]) == [[*tokens[:39], 1] for tokens in inputs]
    assert _lists(features["targets"]) == [[*tokens[:15], 1] for tokens in targets]
    assert features["inputs"].tokens.shape == (len(pairs), 40)
    for rows in features.values():
        beyond = np.arange(rows.tokens.shape[1]) >= rows.lengths[:, None]
        assert not rows.tokens[beyond].any()


@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.integers(1, 3))
def test_planned_lengths_are_those_of_the_features(memory_store, lengths, per_group):
    documents = [[5] * length for length in lengths]
    pairs = _open(memory_store(inputs=documents, targets=documents))
    text = _open(memory_store(targets=documents), SpanCorruption(documents_per_group=per_group))
    for opened in (pairs, text):
        features, indices = _all(opened), np.arange(opened.size)
        planned = opened.lengths(np.zeros_like(indices), indices)
        np.testing.assert_array_equal(planned[:, 0], features["inputs"].lengths)
        np.testing.assert_array_equal(planned[:, 1], features["targets"].lengths)


def test_an_example_does_not_depend_on_what_is_read_with_it(memory_store):
    documents = [list(range(2, 2 + length)) for length in (30, 4, 77, 1, 12)]
    opened = _open(memory_store(targets=documents), SpanCorruption(documents_per_group=2))
    together = _all(opened, epoch=5)
    for index in range(opened.size):
        alone = opened.features(np.array([5]), np.array([index]))
        for feature, rows in alone.items():
            assert _lists(rows)[0] == _lists(together[feature])[index]


def test_noise_differs_between_examples_epochs_tasks_and_seeds(memory_store):
    """With seqio, the k-th example of every host and of every task has one and the same mask."""
    store = memory_store(targets=[[7] * 4000])
    lengths = {"inputs": 512, "targets": 114}

    def inputs(epoch, **changed):
        opened = _open(store, SpanCorruption(), lengths=lengths, **changed)
        return [tuple(row) for row in _lists(_all(opened, epoch)["inputs"]) if len(row) == 512]

    seen = inputs(0) + inputs(1) + inputs(0, name="other") + inputs(0, seed=1)
    assert len(seen) == 28
    assert len(set(seen)) == 28
    assert inputs(0) == inputs(0)


def test_a_store_on_disk_reads_as_one_in_memory(memory_store, disk_store, tmp_path):
    documents = [[9, 8, 7] * 20, [], [4] * 41]
    features = {"inputs": documents, "targets": documents[::-1]}
    stored, kept = disk_store(tmp_path, **features), memory_store(**features)
    for objective in (None, SpanCorruption()):
        found, wanted = _all(_open(stored, objective)), _all(_open(kept, objective))
        for feature in examples.FEATURES:
            assert _lists(found[feature]) == _lists(wanted[feature])
            assert found[feature].tokens.dtype == np.int32


@pytest.mark.parametrize("objective", [None, SpanCorruption()])
def test_an_empty_store_is_refused(memory_store, objective):
    with pytest.raises(ConfigError, match="'task' holds no example") as error:
        _open(memory_store(inputs=[], targets=[]), objective)
    assert error.value.names == ("DATA_DIR",)


def test_targets_too_short_for_the_objective_are_refused(memory_store):
    with pytest.raises(ConfigError, match="targets of 5 tokens are too short") as error:
        _open(
            memory_store(targets=[[5] * 9]),
            SpanCorruption(),
            lengths={"inputs": 40, "targets": 5},
        )
    assert error.value.names == ("TASK_FEATURE_LENGTHS",)


def test_a_pair_task_without_inputs_is_refused(memory_store):
    with pytest.raises(ConfigError, match="'task' stores the features targets: it lacks inputs"):
        _open(memory_store(targets=[[5]]))


@pytest.mark.parametrize("lengths", [{"inputs": 5}, {"inputs": 5, "targets": 0}])
def test_a_feature_without_a_length_is_refused(memory_store, lengths):
    with pytest.raises(ConfigError, match="lack targets") as error:
        _open(memory_store(inputs=[[5]], targets=[[5]]), lengths=lengths)
    assert error.value.names == ("TASK_FEATURE_LENGTHS",)


def test_features_that_share_an_array_do_not_share_their_ends(memory_store):
    opened = _open(memory_store(targets=[list(range(2, 32))]), Identity(30, 1))
    features = _all(opened)
    assert isinstance(features["inputs"], Rows)
    assert _lists(features["inputs"]) == [[*range(2, 32), 1]]
    assert _lists(features["targets"]) == [[*range(2, 17), 1]]


def test_pairs_of_pieces_are_planned_and_read_alike(memory_store):
    documents = [[10 + n] * length for n, length in enumerate((30, 4, 77, 1, 12, 50))]
    lengths = {"inputs": 16, "targets": 16}
    opened = _open(memory_store(targets=documents), Bert(documents_per_group=1), lengths=lengths)
    made, indices = _all(opened), np.arange(opened.size)
    planned = opened.lengths(np.zeros_like(indices), indices)
    np.testing.assert_array_equal(planned[:, 0], made["inputs"].lengths)
    mixed = 0
    for targets in _lists(made["targets"]):
        assert targets[0] == 998
        first, second = "".join(map(chr, targets[1:-1])).split(chr(examples.EOS_ID))
        mixed += len(set(first + second)) > 1
    assert 0 < mixed < opened.size


def test_what_stands_beside_the_inputs_ends_where_they_end(memory_store):
    lengths = {"inputs": 16, "targets": 20}
    documents = [[10 + n] * length for n, length in enumerate((30, 4, 77, 1, 12, 50))]
    store = memory_store(targets=documents)
    for objective in (MaskedLM(documents_per_group=1), Bert(documents_per_group=1)):
        opened = _open(store, objective, lengths=lengths)
        made = _all(opened)
        assert {name: rows.tokens.shape[1] for name, rows in made.items()} == opened.widths
        assert opened.widths.keys() >= {"inputs", "targets", "weights"}
        for inputs, targets, weights in zip(
            *(_lists(made[name]) for name in ("inputs", "targets", "weights")), strict=True
        ):
            assert len(inputs) == len(targets) == len(weights) <= 16
            assert (inputs[-1], targets[-1], weights[-1]) == (examples.EOS_ID, examples.EOS_ID, 0)
            assert sum(weights) >= 1
            differing = [w for i, t, w in zip(inputs, targets, weights, strict=True) if i != t]
            assert all(differing)
    assert [row[-1] for row in _lists(made["segments"])] == [1] * opened.size
    assert made["next_sentence"].tokens.shape == (opened.size, 1)
    assert 0 < made["next_sentence"].tokens.mean() < 1


def test_groups_have_pieces_of_a_length_of_their_own(memory_store):
    from t5x_lite.objectives.random_chunks import RandomLengths

    documents = [[10 + n] * 200 for n in range(40)]
    opened = _open(
        memory_store(targets=documents),
        RandomLengths(Identity(30, 1), shortest=3),
        lengths={"inputs": 31, "targets": 31},
    )
    made = _all(opened)["inputs"]
    by_document = {}
    for row in _lists(made):
        by_document.setdefault(row[0], []).append(len(row) - 1)
    assert len(by_document) == 40
    for lengths in by_document.values():
        assert sum(lengths) == 200
        assert len(set(lengths[:-1])) == 1
        assert 3 <= lengths[0] <= 30
    assert len({lengths[0] for lengths in by_document.values()}) > 10
