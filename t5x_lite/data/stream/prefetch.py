"""To the devices: which rows of a batch a host feeds, sharded arrays, and a thread that fetches."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

import jax
from numpy.typing import NDArray

from t5x_lite.errors import ConfigError

Item = TypeVar("Item")
Ready = TypeVar("Ready")


def process_rows(batch_size: int, sharding: jax.sharding.Sharding) -> slice:
    """Return the rows of the global batch that this process's devices hold.

    `sharding` is that of a batch's arrays, [batch, length]. Processes whose devices hold the same
    rows (a tensor axis that spans them) feed the same rows. Raises ConfigError where the batch does
    not divide over the devices, or where a process holds rows that do not follow one another.
    """
    shape = (batch_size, sharding.num_devices)  # a length that any split divides
    try:
        indices = sharding.addressable_devices_indices_map(shape).values()
    except ValueError as error:
        raise ConfigError(
            f"a batch of {batch_size} rows does not divide over the devices: {error}", "BATCH_SIZE"
        ) from error
    parts = sorted({index[0].indices(batch_size)[:2] for index in indices if index is not None})
    if any(stop != start for (_, stop), (start, _) in itertools.pairwise(parts)):
        raise ConfigError(
            f"the devices of one process hold the separate rows {parts} of a batch", "MESH"
        )
    return slice(parts[0][0], parts[-1][1])


def to_devices(
    batch: Mapping[str, NDArray], sharding: jax.sharding.Sharding, *, batch_size: int
) -> dict[str, jax.Array]:
    """Return the global arrays, of `batch_size` rows, of which `batch` holds `process_rows`.

    `sharding` is that of arrays [batch, length]; those of one number a row are split by row alone.
    """
    return {
        name: jax.make_array_from_process_local_data(
            _sharding_of(array, sharding), array, (batch_size, *array.shape[1:])
        )
        for name, array in batch.items()
    }


def _sharding_of(array: NDArray, sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    if array.ndim == 2:
        return sharding
    assert isinstance(sharding, jax.sharding.NamedSharding)
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[:1]))


def prefetch(
    iterator: Iterable[Item], put: Callable[[Item], Ready], *, depth: int = 2
) -> "Prefetch[Item, Ready]":
    """Return `map(put, iterator)`, at most `depth` items ahead in a thread of its own."""
    return Prefetch(iterator, put, depth=depth)


class Prefetch(Iterator[Ready], Generic[Item, Ready]):
    """Items made ready by a background thread; `waited` is how many seconds its consumer waited.

    An exception of the iterator or of `put` is raised where the item would have come. `close`, or
    the end of the `with` block, stops the thread and returns when it has ended.
    """

    def __init__(self, iterator: Iterable[Item], put: Callable[[Item], Ready], *, depth: int):
        self.waited = 0.0
        self._made, self._depth = (put(item) for item in iterator), depth
        self._ready: deque[Ready] = deque()
        self._error: BaseException | None = None
        self._ended = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._produce, name="prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> Ready:
        """Return the next item, waiting for it if need be."""
        with self._changed:
            began = time.perf_counter()
            self._changed.wait_for(lambda: self._ready or self._ended or self._closed)
            self.waited += time.perf_counter() - began
            if self._ready:
                self._changed.notify_all()
                return self._ready.popleft()
            error, self._error = self._error, None
            raise error or StopIteration

    def close(self) -> None:
        """Stop the thread and drop what it has ready."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> "Prefetch[Item, Ready]":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _produce(self) -> None:
        try:
            while self._has_room():
                ready = next(self._made)
                with self._changed:
                    if not self._closed:
                        self._ready.append(ready)
                        self._changed.notify_all()
        except StopIteration:  # the items' end: a generator turns one of `put` into RuntimeError
            pass
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _has_room(self) -> bool:
        """Wait until an item is wanted; return False when none is wanted any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
            return not self._closed
