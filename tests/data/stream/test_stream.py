"""The stream held against its own promises; test_seqio_order.py holds it against seqio."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data.stream.stream import Stream, StreamTask, evaluation_batches
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption

SENTINELS = Sentinels(999, 100)
LENGTHS = {"inputs": 40, "targets": 16}
BATCH = 8


@pytest.fixture(scope="module")
def tasks(memory_store):
    """Text in 37 pieces, 50 short pairs and 7 longer ones, each pair with a number of its own."""
    random = np.random.default_rng(0)
    text = [random.integers(2, 900, 30).tolist() for _ in range(49)]

    def pairs(count, first, inputs, targets):
        return memory_store(
            inputs=[[first + i] * random.integers(1, inputs) for i in range(count)],
            targets=[[first + i] * random.integers(1, targets) for i in range(count)],
        )

    return [
        StreamTask("text", memory_store(targets=text), 2.0, SpanCorruption()),
        StreamTask("short", pairs(50, 100, 12, 4), 3.0, None),
        StreamTask("long", pairs(7, 200, 45, 20), 1.0, None),
    ]


def _stream(tasks, **changed):
    settings = {"feature_lengths": LENGTHS, "batch_size": BATCH, "seed": 3, "pack": True}
    settings |= {"sentinels": SENTINELS, "window_examples": 32}
    return Stream(tasks, **(settings | changed))


def _take(stream, position, count, rows=slice(None)):
    return list(itertools.islice(stream.batches(position, rows), count))


def _assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for name, array in batch.items():
        assert array.dtype == other[name].dtype
        np.testing.assert_array_equal(array, other[name])


def _examples(batch):
    """Return the (inputs, targets) of every example of a packed batch."""
    found = []
    for row in range(len(batch["encoder_input_tokens"])):
        encoder, decoder = batch["encoder_segment_ids"][row], batch["decoder_segment_ids"][row]
        assert set(encoder) - {0} == set(decoder) - {0}
        for segment in range(1, encoder.max() + 1):
            found.append(
                (
                    tuple(batch["encoder_input_tokens"][row][encoder == segment].tolist()),
                    tuple(batch["decoder_target_tokens"][row][decoder == segment].tolist()),
                )
            )
    return found


@pytest.mark.parametrize("pack", [True, False])
def test_a_batch_tells_the_task_of_every_target_token(tasks, pack):
    stream = _stream(tasks, pack=pack, return_task_ids=True)
    assert stream.task_names == ["text", "short", "long"]
    met = set()
    for batch, _ in _take(stream, stream.start(), 12, slice(2, 7)):
        targets, told = batch["decoder_target_tokens"], batch["task_ids"]
        assert told.shape == targets.shape
        assert told.dtype == np.int32
        segments = batch["decoder_segment_ids"] if pack else np.int32(targets > 0)
        for row, segment in {*zip(*np.nonzero(segments), strict=True)}:
            own = told[row][segments[row] == segments[row, segment]]
            assert len({*own.tolist()}) == 1
            tokens = {*targets[row][segments[row] == segments[row, segment]].tolist()} - {0, 1}
            if len(tokens) == 1 and 100 <= min(tokens) < 150:
                expected = 1
            elif len(tokens) == 1 and 200 <= min(tokens) < 207:
                expected = 2
            else:
                expected = 0
            assert own[0] == expected
            met.add(expected)
    assert met == {0, 1, 2}


def test_a_single_task_needs_no_telling(tasks):
    stream = _stream(tasks[:1], return_task_ids=True)
    assert stream.task_names == []
    assert "task_ids" not in _take(stream, stream.start(), 1)[0][0]


@settings(max_examples=25)
@given(
    pack=st.booleans(),
    stop=st.integers(0, 30),
    batch_size=st.sampled_from([8, 24, 72]),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_stream_continues_from_every_position_to_the_byte(tasks, pack, stop, batch_size, seed):
    stream = _stream(tasks, pack=pack, batch_size=batch_size, seed=seed)
    whole = _take(stream, stream.start(), stop + 3)
    position = json.loads(json.dumps(whole[stop - 1][1] if stop else stream.start()))
    restarted = _stream(tasks, pack=pack, batch_size=batch_size, seed=seed)
    for (batch, after), (expected, expected_after) in zip(
        _take(restarted, position, 3), whole[stop:], strict=True
    ):
        _assert_equal(batch, expected)
        assert after == expected_after


@settings(max_examples=20)
@given(hosts=st.sampled_from([1, 2, 3, 8, 32]), pack=st.booleans(), skipped=st.integers(0, 20))
def test_hosts_together_hold_the_batch_of_one_host(tasks, hosts, pack, skipped):
    stream = _stream(tasks, pack=pack, batch_size=96)
    position = _take(stream, stream.start(), skipped + 1)[-1][1]
    share = 96 // hosts
    parts = [
        _take(stream, position, 3, slice(host * share, (host + 1) * share)) for host in range(hosts)
    ]
    for number, (batch, after) in enumerate(_take(stream, position, 3)):
        joined = {name: np.concatenate([part[number][0][name] for part in parts]) for name in batch}
        _assert_equal(batch, joined)
        assert all(part[number][1] == after for part in parts)


def test_two_iterators_of_one_stream_do_not_disturb_each_other(tasks):
    stream = _stream(tasks)
    expected = _take(stream, stream.start(), 6)
    one, other = stream.batches(stream.start()), stream.batches(stream.start())
    for batch, after in expected:
        for iterator in (one, other):
            found, position = next(iterator)
            _assert_equal(found, batch)
            assert position == after


def test_a_position_is_a_few_integers_whatever_the_place(tasks):
    stream = _stream(tasks)
    position = {"format": 1, "window": 10**9, "row": 3, "drawn": dict.fromkeys(
        ("text", "short", "long"), 10**10
    )}  # fmt: skip
    (batch, after), *_ = _take(stream, position, 1)
    assert batch["encoder_input_tokens"].any()
    assert after["window"] == 10**9
    assert after["row"] == 3 + BATCH
    assert len(json.dumps(after)) < 150


@pytest.mark.parametrize("pack", [False, True])
def test_every_example_comes_exactly_once_per_epoch(tasks, pack):
    """A window of packed rows is shuffled, so epochs are compared at the ends of windows."""
    short = [tasks[1]]
    stream = _stream(short, pack=pack, batch_size=1, window_examples=25)
    seen = Counter()
    for batch, position in stream.batches(stream.start()):
        if position["window"] == 4:
            break
        rows = batch["encoder_input_tokens"]
        ends = rows == 1
        seen.update(rows[:, :-1][ends[:, 1:]].tolist())
    assert set(seen.values()) == {2}
    assert len(seen) == 50


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_mixture_that_renormalizes_sees_every_example_exactly_so_often(tasks, pack, epochs):
    pairs = tasks[1:]
    stream = _stream(pairs, pack=pack, on_task_exhausted="renormalize", num_epochs=epochs)
    seen, positions = Counter(), []
    for batch, position in stream.batches(stream.start()):
        positions.append(position)
        rows = batch["encoder_input_tokens"]
        seen.update(rows[:, :-1][(rows == 1)[:, 1:]].tolist())
        assert {array.shape[0] for array in batch.values()} == {BATCH}
    assert seen == Counter(dict.fromkeys([*range(100, 150), *range(200, 207)], epochs))
    assert stream.epochs_seen(positions[-1]) == {"short": epochs, "long": epochs}
    assert list(stream.batches(positions[-1])) == []


def test_a_mixture_that_stops_ends_with_the_first_task_that_is_gone_through(tasks):
    stream = _stream(tasks, on_task_exhausted="stop", pack=False)
    *_, (_, position) = stream.batches(stream.start())
    epochs = stream.epochs_seen(position)
    assert max(epochs.values()) == epochs["long"] == 1
    assert 0 < epochs["text"] < 1


@settings(max_examples=15)
@given(stop=st.integers(0, 12), policy=st.sampled_from(["stop", "renormalize"]), pack=st.booleans())
def test_a_stream_that_ends_continues_from_every_position(tasks, stop, policy, pack):
    stream = _stream(tasks, on_task_exhausted=policy, pack=pack)
    whole = list(stream.batches(stream.start()))
    stop = min(stop, len(whole))
    position = whole[stop - 1][1] if stop else stream.start()
    rest = list(stream.batches(json.loads(json.dumps(position))))
    assert len(rest) == len(whole) - stop
    for (batch, after), (expected, expected_after) in zip(rest, whole[stop:], strict=True):
        _assert_equal(batch, expected)
        assert after == expected_after


def test_rows_that_fill_up_the_last_batch_weigh_nothing(tasks):
    stream = _stream(tasks[1:2], on_task_exhausted="stop", pack=False)
    *_, (batch, _) = stream.batches(stream.start())
    assert (batch["decoder_loss_weights"].sum(axis=1) > 0).tolist() == [True] * 2 + [False] * 6
    assert not batch["encoder_input_tokens"][2:].any()


@pytest.mark.parametrize("changed", [{"on_task_exhausted": "repaet"}, {"num_epochs": 0}])
def test_an_exhaustion_that_is_none_is_refused(tasks, changed):
    with pytest.raises(ConfigError, match="it takes repeat, stop, renormalize, and 1") as caught:
        _stream(tasks, **changed)
    assert "Data.on_task_exhausted" in caught.value.names


def test_no_two_hosts_tasks_or_epochs_share_noise(memory_store):
    """Seqio corrupts the k-th example of every host, and of every task of a mixture, alike."""
    same = [np.arange(100, 160).tolist()] * 64
    longer = {"feature_lengths": {"inputs": 80, "targets": 30}, "pack": False}
    tasks = [
        StreamTask(name, memory_store(targets=same), 1.0, SpanCorruption(documents_per_group=1))
        for name in ("one", "other")
    ]
    whole = _stream(tasks, **longer, batch_size=128, window_examples=128)
    rows = list(_noise(whole, epochs=2))
    hosts = np.array_split(np.array(rows, object), 4)
    for one, other in itertools.combinations(hosts, 2):
        assert np.mean(one[: len(other)] == other[: len(one)]) < 0.05
    by_task = {task.name: list(_noise(_stream([task], **longer), epochs=2)) for task in tasks}
    assert np.mean(np.array(by_task["one"]) == np.array(by_task["other"])) < 0.05
    first, second = np.array_split(np.array(by_task["one"]), 2)
    assert np.mean(first == second) < 0.05
    assert len(set(rows)) > 0.8 * len(rows)


def _noise(stream, epochs):
    """The inputs of all rows of the first epochs."""
    for batch, position in stream.batches(stream.start()):
        yield from (row.tobytes() for row in batch["encoder_input_tokens"])
        if min(stream.epochs_seen(position).values()) >= epochs:
            return


def test_packing_loses_and_invents_nothing(tasks):
    one_row_each = _stream(tasks, pack=False, batch_size=32)
    packed = _stream(tasks, pack=True, batch_size=1)
    (unpacked, _), *_ = _take(one_row_each, one_row_each.start(), 1)
    expected = Counter()
    for row in range(32):
        inputs, targets = unpacked["encoder_input_tokens"][row], unpacked["decoder_target_tokens"]
        expected[
            tuple(np.trim_zeros(inputs, "b").tolist()),
            tuple(np.trim_zeros(targets[row], "b").tolist()),
        ] += 1
    found = Counter()
    for batch, position in packed.batches(packed.start()):
        if position["window"] > 0:
            break
        found.update(_examples(batch))
    assert found == expected
    assert len(expected) > 20


def test_a_packed_window_has_fewer_rows_than_examples(tasks):
    stream = _stream(tasks, batch_size=1)
    rows = sum(1 for _ in itertools.takewhile(
        lambda step: step[1]["window"] == 0, stream.batches(stream.start())
    ))  # fmt: skip
    assert 10 < rows < 28


def test_rows_that_are_not_packed_hold_one_example_each(tasks):
    stream = _stream(tasks, pack=False)
    for batch, _ in _take(stream, stream.start(), 8):
        assert set(batch) == {
            "encoder_input_tokens",
            "decoder_target_tokens",
            "decoder_input_tokens",
            "decoder_loss_weights",
        }
        assert ((batch["decoder_target_tokens"] == 1).sum(axis=1) == 1).all()
        lengths = batch["decoder_loss_weights"].sum(axis=1).astype(int)
        last = np.take_along_axis(batch["decoder_target_tokens"], lengths[:, None] - 1, axis=1)
        assert (last == 1).all()


def test_progress_counts_the_examples_before_a_position(tasks):
    stream = _stream(tasks)
    assert stream.epochs_seen(stream.start()) == {"text": 0, "short": 0, "long": 0}
    counted, examples = 0, {}
    for batch, position in _take(stream, stream.start(), 40):
        counted += len(_examples(batch))
        examples = stream.examples_seen(position)
        assert sum(examples.values()) == counted
    epochs = stream.epochs_seen(position)
    assert epochs["short"] == examples["short"] / 50
    assert epochs["long"] == examples["long"] / 7
    assert epochs["long"] > epochs["short"] > 1


def test_tasks_come_at_their_rates(tasks):
    stream = _stream(tasks, batch_size=1)
    position = {"format": 1, "window": 0, "row": 0, "drawn": dict.fromkeys(
        ("text", "short", "long"), 0
    )}  # fmt: skip
    *_, (_, position) = itertools.takewhile(
        lambda step: step[1]["window"] < 60, stream.batches(position)
    )
    examples = stream.examples_seen(position)
    shares = np.array([examples[name] for name in ("text", "short", "long")]) / (60 * 32)
    np.testing.assert_allclose(shares, [2 / 6, 3 / 6, 1 / 6], atol=0.05)


def test_the_order_of_the_tasks_in_a_position_is_of_no_account(tasks):
    stream = _stream(tasks)
    _, position = _take(stream, stream.start(), 7)[-1]
    turned = position | {"drawn": dict(reversed(position["drawn"].items()))}
    _assert_equal(_take(stream, turned, 1)[0][0], _take(stream, position, 1)[0][0])


def test_a_position_of_another_mixture_is_refused(tasks):
    position = _stream(tasks).start()
    with pytest.raises(
        ConfigError, match=r"'short', 'text'\], the mixture now has \['short', 't"
    ) as e:
        _stream(tasks[:2]).batches(position)
    assert e.value.names == ("MIXTURE_OR_TASK_NAME",)


def test_a_position_of_another_format_is_refused(tasks):
    stream = _stream(tasks)
    with pytest.raises(ConfigError, match="has format 2"):
        stream.batches(stream.start() | {"format": 2})


def test_a_batch_without_rows_is_refused(tasks):
    with pytest.raises(ConfigError, match="batch size is 0") as error:
        _stream(tasks, batch_size=0)
    assert error.value.names == ("BATCH_SIZE",)


def _evaluate(task, **changed):
    settings = {"feature_lengths": LENGTHS, "batch_size": BATCH, "seed": 3}
    return list(evaluation_batches(task, **(settings | {"sentinels": SENTINELS} | changed)))


def test_evaluation_sees_each_example_once_in_order(tasks):
    batches = _evaluate(tasks[1])
    first = [batch["encoder_input_tokens"][:count, 0] for batch, count in batches]
    assert np.concatenate(first).tolist() == list(range(100, 150))
    assert [count for _, count in batches] == [8, 8, 8, 8, 8, 8, 2]
    assert len({batch["encoder_input_tokens"].shape for batch, _ in batches}) == 1


def test_rows_that_fill_up_the_last_evaluation_batch_weigh_nothing(tasks):
    *_, (batch, count) = _evaluate(tasks[1])
    assert count == 2
    assert (batch["decoder_loss_weights"][:2].sum(axis=1) > 0).all()
    for array in batch.values():
        assert not array[2:].any()


def test_evaluation_is_the_same_every_time_and_on_any_number_of_hosts(tasks):
    whole = _evaluate(tasks[0])
    for hosts in (1, 2, 4, 8):
        share = BATCH // hosts
        parts = [
            _evaluate(tasks[0], rows=slice(host * share, (host + 1) * share))
            for host in range(hosts)
        ]
        for number, (batch, count) in enumerate(whole):
            assert all(part[number][1] == count for part in parts)
            joined = {
                name: np.concatenate([part[number][0][name] for part in parts]) for name in batch
            }
            _assert_equal(batch, joined)


def test_evaluation_stops_at_its_limit(tasks):
    assert [count for _, count in _evaluate(tasks[1], limit=10)] == [8, 2]
    assert sum(count for _, count in _evaluate(tasks[1], limit=1000)) == 50


def test_evaluation_of_an_empty_store_is_refused(memory_store):
    with pytest.raises(ConfigError, match="holds no example"):
        _evaluate(StreamTask("empty", memory_store(inputs=[], targets=[]), 1.0, None))


def test_the_batch_size_only_cuts_the_order(tasks):
    """So that a run can be resumed with another batch size and miss or repeat nothing."""
    rows = {}
    for batch_size in (4, 24):
        stream = _stream(tasks, batch_size=batch_size)
        taken = _take(stream, stream.start(), 48 // batch_size)
        rows[batch_size] = np.concatenate([batch["encoder_input_tokens"] for batch, _ in taken])
    np.testing.assert_array_equal(rows[4], rows[24])
