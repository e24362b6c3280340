"""Who tokenises the files of a task's source: processes of this machine, or Apache Beam.

Both call the same function for each file; it needs to know the run's data, the names of task and
split, the number of the file, and where the parts of the store lie, on a file system they share.
"""

import contextlib
import functools
import importlib.util
import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from t5x_lite.data.caching import MakeParts, write_part
from t5x_lite.data.plan import Data
from t5x_lite.data.quiet_import import import_seqio
from t5x_lite.data.registered import registered_tasks
from t5x_lite.errors import ConfigError


class Processes:
    """Some processes of this machine; a context manager. They end when this one does.

    Each takes some seconds to import TensorFlow, so what few small files there are should be left
    to one.
    """

    def __init__(self, count: int | None = None):
        self.count = count or os.cpu_count() or 1
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def make_parts(self, data: Data, task: str, split: str) -> MakeParts:
        """Return what makes the parts of a store in these processes."""

        def make(numbers: Sequence[int], partial: Path) -> Iterator[int]:
            if self.count == 1 or len(numbers) < 2:
                yield from (tokenise_file(data, task, split, each, partial) for each in numbers)
                return
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    self.count, multiprocessing.get_context("spawn"), _end_with_parent
                )
            futures = [
                self._pool.submit(tokenise_file, data, task, split, each, partial)
                for each in numbers
            ]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BrokenProcessPool:
                self._pool = None
                raise ConfigError(
                    f"a process that tokenised {task}/{split} was killed: there may be too little "
                    "memory for so many; the same command goes on with what is done so far",
                    "cache.processes",
                ) from None
            finally:
                for future in futures:
                    future.cancel()

        return make


class Beam:
    """Apache Beam with the flags of its runners, such as "--runner=FlinkRunner"."""

    def __init__(self, flags: Sequence[str] = ()):
        if importlib.util.find_spec("apache_beam") is None:
            raise ConfigError(
                "Apache Beam is not installed: pip install 't5x_lite[beam]'", "cache.beam_flags"
            )
        self._flags = list(flags)

    def make_parts(self, data: Data, task: str, split: str) -> MakeParts:
        """Return what makes the parts of a store by one pipeline."""

        def make(numbers: Sequence[int], partial: Path) -> Sequence[int]:
            import apache_beam as beam  # pyright: ignore
            from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore

            tokenise = functools.partial(_tokenise_number, data, task, split, partial)
            with beam.Pipeline(options=PipelineOptions(self._flags)) as pipeline:
                files = pipeline | beam.Create(list(numbers)) | beam.Reshuffle()
                _ = files | beam.Map(tokenise)
            return numbers

        return make


def tokenise_file(data: Data, task: str, split: str, number: int, partial: Path) -> int:
    """Write the part of one file of a task's source, in a process that may know nothing yet."""
    tasks = _tasks(pickle.dumps(data))
    return write_part(tasks[task], split, number, partial)


def _tokenise_number(data: Data, task: str, split: str, partial: Path, number: int) -> int:
    return tokenise_file(data, task, split, number, partial)


@functools.lru_cache(1)
def _tasks(pickled: bytes) -> dict:
    import_seqio()
    tasks = registered_tasks(pickle.loads(pickled), lambda line: None)
    return {task.name: task for task, _ in tasks}


def _end_with_parent() -> None:
    """End this process when its parent is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        with contextlib.suppress(Exception):
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
