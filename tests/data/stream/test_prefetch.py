import threading
import traceback

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from t5x_lite.data.stream import prefetch as prefetch_module
from t5x_lite.data.stream.prefetch import Prefetch, process_rows, to_devices
from t5x_lite.errors import ConfigError


def test_items_come_in_order_and_made_ready():
    with Prefetch(range(100), lambda item: item * 2) as items:
        assert list(items) == list(range(0, 200, 2))
        assert list(items) == []


def test_at_most_depth_items_are_made_ahead():
    made, third = [], threading.Event()

    def put(item):
        made.append(item)
        if len(made) == 4:
            third.set()
        return item

    with Prefetch(iter(range(100)), put, depth=3) as items:
        assert next(items) == 0
        assert third.wait(10)
        assert len(made) <= 5
    assert len(made) <= 5


@pytest.mark.parametrize("where", ["iterator", "put"])
def test_an_exception_is_raised_where_the_item_would_have_come(where):
    def broken_shard():
        yield 1
        if where == "iterator":
            raise OSError("shard 3 is gone")
        yield 2

    def put(item):
        if item == 2:
            raise OSError("shard 3 is gone")
        return item

    with Prefetch(broken_shard(), put) as items:
        assert next(items) == 1
        with pytest.raises(OSError, match="shard 3 is gone") as error:
            next(items)
        frames = [frame.name for frame in traceback.extract_tb(error.tb)]
        assert frames[-1] == ("broken_shard" if where == "iterator" else "put")
        with pytest.raises(StopIteration):
            next(items)


def test_a_stop_iteration_of_put_is_an_error_and_not_an_end():
    def put(item):
        raise StopIteration

    with Prefetch([1], put) as items, pytest.raises(RuntimeError):
        next(items)


def test_closing_stops_the_thread_wherever_it_is():
    before = threading.active_count()
    for consumed in (0, 1, 5):
        items = Prefetch(iter(int, 1), lambda item: item)
        for _ in range(consumed):
            next(items)
        items.close()
        assert threading.active_count() == before
        with pytest.raises(StopIteration):
            next(items)
        items.close()


def test_the_thread_ends_with_the_items_and_with_an_exception_of_the_consumer():
    before = threading.active_count()
    with Prefetch([1], lambda item: item) as items:
        assert list(items) == [1]
    with pytest.raises(KeyError), Prefetch(iter(int, 1), lambda item: item) as items:
        raise KeyError
    assert threading.active_count() == before


def test_only_the_consumers_waiting_is_counted(monkeypatch):
    """By a clock that stands still but where the test moves it."""
    seconds, waiting, ready = [0.0], threading.Event(), threading.Event()

    def clock():
        waiting.set()
        return seconds[0]

    def shards():
        assert waiting.wait(10)
        seconds[0] = 7.0
        yield "slow"
        yield "ready in time"
        ready.set()

    monkeypatch.setattr(prefetch_module.time, "perf_counter", clock)
    with Prefetch(shards(), str.upper) as items:
        assert next(items) == "SLOW"
        assert items.waited == 7
        assert ready.wait(10)
        seconds[0] = 20.0
        assert next(items) == "READY IN TIME"
        assert items.waited == 7


def _sharding(*spec):
    mesh = jax.make_mesh((4, 2), ("data", "sequence"), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(mesh, PartitionSpec(*spec))


class HostOf:
    """The sharding of a batch over 8 devices, two of them this process's."""

    num_devices = 8

    def __init__(self, *rows):
        self.rows = rows

    def addressable_devices_indices_map(self, shape):
        return {device: (slice(*rows), slice(None)) for device, rows in enumerate(self.rows)}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (((8, 12), (12, 16)), slice(8, 16)),  # split over devices
        (((8, 16), (8, 16)), slice(8, 16)),  # held twice
        (((None, None), (None, None)), slice(0, 16)),  # not split
    ],
)
def test_a_process_feeds_the_rows_its_devices_hold(rows, expected):
    assert process_rows(16, HostOf(*rows)) == expected


def test_separate_rows_on_one_process_are_refused():
    with pytest.raises(ConfigError, match="separate rows") as error:
        process_rows(16, HostOf((0, 4), (8, 12)))
    assert error.value.names == ("MESH",)


@pytest.mark.parametrize("spec", [("data",), ("data", "sequence"), ()])
def test_one_process_feeds_all_rows(spec):
    assert process_rows(12, _sharding(*spec)) == slice(0, 12)


def test_a_batch_that_does_not_divide_over_the_devices_is_refused():
    with pytest.raises(ConfigError, match="batch of 6 rows does not divide") as error:
        process_rows(6, _sharding("data", "sequence"))
    assert error.value.names == ("BATCH_SIZE",)


@pytest.mark.parametrize("spec", [("data",), ("data", "sequence"), ()])
def test_batches_become_global_arrays_in_their_sharding(spec):
    tokens = np.arange(12 * 6, dtype=np.int32).reshape(12, 6)
    sharding = _sharding(*spec)
    arrays = to_devices({"tokens": tokens}, sharding, batch_size=12)
    assert arrays["tokens"].sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_array_equal(arrays["tokens"], tokens)
    labels = np.arange(12, dtype=np.int32)
    arrays = to_devices({"labels": labels}, sharding, batch_size=12)
    assert tuple(arrays["labels"].sharding.spec) == tuple(sharding.spec[:1])
    np.testing.assert_array_equal(arrays["labels"], labels)
