"""Processes of this machine that work off a list, and end with the one that started them."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_SECONDS = 1.0


class WorkerKilledError(RuntimeError):
    """A process was ended from outside."""


class Pool:
    """So many processes, one per core for None; a context manager. They start when first needed."""

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
        """Yield the result of each item as it is done; here, in turn, if there is one process.

        Several threads may share the processes: each has no more items under way than there are
        processes. `every_second` yields None once a second while nothing is done. Raises
        WorkerKilledError if a process was ended from outside.
        """
        if self.count == 1 or len(items) < 2:
            yield from map(function, items)
            return
        pool, left = self._started(), list(reversed(items))
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
            raise WorkerKilledError("a process was killed") from None
        finally:
            for future in running:
                future.cancel()

    def _started(self) -> ProcessPoolExecutor:
        with self._starting:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    self.count, multiprocessing.get_context("spawn"), end_with_parent
                )
            return self._pool


def end_with_parent() -> None:
    """End this process when its parent is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        with contextlib.suppress(Exception):
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
