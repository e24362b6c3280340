"""A pool of Python processes on this machine that apply a function to many items."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Self, TypeVar

from t5x_lite.distributed.child_process import SPAWN, end_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")
_SECONDS = 1.0


class WorkerKilledError(RuntimeError):
    """A worker process was killed, for example because memory ran out."""


class Pool:
    """Worker processes that start when first needed and end with this one; a context manager.

    Args:
        count: The number of workers; None starts one for each core.
    """

    def __init__(self, count: int | None = None):
        self.count = count or os.cpu_count() or 1
        self._pool: ProcessPoolExecutor | None = None
        self._starting = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        every_second: bool = False,
    ) -> Iterator[Result | None]:
        """Yield the result of each item as it is done, in any order.

        With one worker, and for a single item, this process does the work itself, in order. Several
        threads may share a pool: each of them has at most `count` items in progress.

        Args:
            function: Importable by its name, or a `functools.partial` of such a function.
            items: The arguments of the calls; they can be pickled, and so can the results.
            every_second: Yield None once a second while no result comes, so that the caller can do
                something else, such as report progress.

        Raises:
            WorkerKilledError: If a worker was killed.
        """
        if self.count == 1 or len(items) < 2:
            yield from map(function, items)
            return
        pool, left = self._get_pool(), list(reversed(items))
        running = set()
        try:
            while left or running:
                while left and len(running) < self.count:
                    running.add(pool.submit(function, left.pop()))
                timeout = _SECONDS if every_second else None
                done, running = wait(running, timeout, FIRST_COMPLETED)
                yield from [future.result() for future in done] or [None]
        except BrokenProcessPool:
            self._pool = None
            raise WorkerKilledError("a worker process was killed") from None
        finally:
            for future in running:
                future.cancel()

    def _get_pool(self) -> ProcessPoolExecutor:
        with self._starting:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(self.count, SPAWN, end_with_parent)
            return self._pool
