"""Move batches to the devices ahead of the training step, in a background thread."""

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
Result = TypeVar("Result")


def process_rows(batch_size: int, sharding: jax.sharding.Sharding) -> slice:
    """Return the rows of the global batch that the devices of this process hold.

    Processes whose devices hold the same rows, such as those of one tensor-parallel group, feed the
    same rows. With a data axis of 4 over 2 processes and a batch of 8: slice(0, 4) and slice(4, 8).

    Args:
        batch_size: the number of rows of the global batch.
        sharding: of a batch's arrays [batch, length].

    Raises:
        ConfigError: if the batch does not divide over the devices, or if the rows of a process are
            not contiguous.
    """
    shape = (batch_size, sharding.num_devices)  # a length that divides over any split
    try:
        indices = sharding.addressable_devices_indices_map(shape).values()
    except ValueError as error:
        raise ConfigError(
            f"a batch of {batch_size} rows does not divide over the devices: {error}", "BATCH_SIZE"
        ) from error
    ranges = sorted({index[0].indices(batch_size)[:2] for index in indices if index is not None})
    if any(stop != start for (_, stop), (start, _) in itertools.pairwise(ranges)):
        raise ConfigError(
            f"the devices of one process hold the separate rows {ranges} of a batch", "MESH"
        )
    return slice(ranges[0][0], ranges[-1][1])


def to_devices(
    batch: Mapping[str, NDArray], sharding: jax.sharding.Sharding, *, batch_size: int
) -> dict[str, jax.Array]:
    """Return the arrays of a global batch of which this process has some rows.

    Args:
        batch: the rows `process_rows` of each array, [rows, length] or [rows].
        sharding: of arrays [batch, length]. Arrays [batch] are split by row alone.
        batch_size: the number of rows of the global batch.
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


class Prefetch(Iterator[Result], Generic[Item, Result]):
    """An iterator over results that a background thread computes ahead; also a context manager.

    An exception of the iterator or of the function is raised by `__next__`, in the order of the
    items. `close`, or the end of the `with` block, stops the thread.

    Args:
        iterator: the items, such as batches in host memory.
        function: what is applied to each item, such as `to_devices`.
        depth: how many results are computed ahead at most. With 2, one is ready while the next is
            computed; each takes device memory.

    Attributes:
        waited: for how many seconds `__next__` has waited so far.
    """

    def __init__(
        self, iterator: Iterable[Item], function: Callable[[Item], Result], *, depth: int = 2
    ):
        self.waited = 0.0
        self._produced, self._depth = (function(item) for item in iterator), depth
        self._queue: deque[Result] = deque()
        self._error: BaseException | None = None
        self._ended = self._closed = False
        # One condition guards all fields above; it is notified of every change.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._produce, name="prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> Result:
        """Return the next result; wait for it if necessary."""
        with self._changed:
            began = time.perf_counter()
            self._changed.wait_for(lambda: self._queue or self._ended or self._closed)
            self.waited += time.perf_counter() - began
            if self._queue:
                self._changed.notify_all()
                return self._queue.popleft()
            error, self._error = self._error, None
            raise error or StopIteration

    def close(self) -> None:
        """Stop the thread, drop the results that are ready, and wait for the thread to end."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> "Prefetch[Item, Result]":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _produce(self) -> None:
        try:
            while self._wait_for_space():
                result = next(self._produced)
                with self._changed:
                    if not self._closed:
                        self._queue.append(result)
                        self._changed.notify_all()
        except StopIteration:
            # The end of the items. One that the function raises is a RuntimeError here, because
            # `_produced` is a generator.
            pass
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _wait_for_space(self) -> bool:
        """Wait until the queue has space; return False after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._queue) < self._depth)
            return not self._closed
