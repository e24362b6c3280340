"""Who tokenizes the files of a task's source: processes of this machine, or Apache Beam.

Both call the same function for each file; it needs to know the run's data, the names of task and
split, the number of the file, and where the parts of the store lie, on a file system they share.
"""

import functools
import importlib.util
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t5x_lite.data.registry import registered_tasks
from t5x_lite.data.tasks.lazy_seqio import import_seqio
from t5x_lite.data.tokenize.build_store import MakeParts, write_parts
from t5x_lite.distributed.process_pool import Pool, WorkerKilledError
from t5x_lite.errors import ConfigError

if TYPE_CHECKING:
    from t5x_lite.data.data_config import Data


class Processes(Pool):
    """Some processes of this machine; a context manager. They end when this one does.

    Each takes some seconds to import TensorFlow, so what few small files there are should be left
    to one.
    """

    def make_parts(self, data: "Data", task: str, split: str) -> MakeParts:
        """Return what makes the parts of a store in these processes."""

        def make(numbers: Sequence[int], partial: Path) -> Iterator[object]:
            if self.count == 1 or len(numbers) < 2:
                for number in numbers:
                    yield from _parts_of_file(data, task, split, partial, number)
                return
            tokenize = functools.partial(tokenize_file, data, task, split, partial)
            try:
                yield from self.map(tokenize, numbers, every_second=True)
            except WorkerKilledError:
                raise ConfigError(
                    f"a process that tokenized {task}/{split} was killed: there may be too little "
                    "memory for so many; the same command goes on with what is done so far",
                    "cache.processes",
                ) from None

        return make


class Beam:
    """Apache Beam with the flags of its runners, such as "--runner=FlinkRunner"."""

    def __init__(self, flags: Sequence[str] = ()):
        if importlib.util.find_spec("apache_beam") is None:
            raise ConfigError(
                "Apache Beam is not installed: pip install 't5x_lite[beam]'", "cache.beam_flags"
            )
        self._flags = list(flags)

    def make_parts(self, data: "Data", task: str, split: str) -> MakeParts:
        """Return what makes the parts of a store by one pipeline."""

        def make(numbers: Sequence[int], partial: Path) -> Sequence[int]:
            import apache_beam as beam  # pyright: ignore
            from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore

            tokenize = functools.partial(tokenize_file, data, task, split, partial)
            with beam.Pipeline(options=PipelineOptions(self._flags)) as pipeline:
                files = pipeline | beam.Create(list(numbers)) | beam.Reshuffle()
                _ = files | beam.Map(tokenize)
            return numbers

        return make


def tokenize_file(data: "Data", task: str, split: str, partial: Path, number: int) -> int:
    """Write the parts of one file of a task's source, in a process that may know nothing yet."""
    for _ in _parts_of_file(data, task, split, partial, number):
        pass
    return number


def _parts_of_file(
    data: "Data", task: str, split: str, partial: Path, number: int
) -> Iterator[object]:
    return write_parts(tasks_of(pickle.dumps(data))[task], split, number, partial)


@functools.lru_cache(1)
def tasks_of(pickled: bytes) -> dict:
    """Return the tasks of a run's data by name; the bytes are a pickle of it."""
    import_seqio()
    tasks = registered_tasks(pickle.loads(pickled))
    return {task.name: task for task, _ in tasks}
