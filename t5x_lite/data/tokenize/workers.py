"""Workers that tokenize the files of a task's source: processes of this machine, or Apache Beam.

Both call `tokenize_file` for each file. A worker shares nothing with this process but the file
system: it registers the tasks of the run's data itself, and writes the parts of the store there.
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
    """Processes of this machine that tokenize; a context manager. They end when this one does.

    Each of them takes some seconds to import TensorFlow: for a few small files, use one.
    """

    def make_parts(self, data: "Data", task: str, split: str) -> MakeParts:
        """Return a function that tokenizes files of a source in these processes.

        Args:
            data: The data of the run.
            task: The name of a task.
            split: The split to tokenize.

        Returns:
            A function of the numbers of files and the directory of the incomplete store. It raises
            ConfigError if a process is killed.
        """

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
                    f"a process that tokenized {task}/{split} was killed, perhaps because memory "
                    f"ran out for {self.count} of them; the same command resumes from what is done",
                    "cache.processes",
                ) from None

        return make


class Beam:
    """Tokenizes with Apache Beam, on one of its runners.

    Args:
        flags: Flags of Beam and of the runner, such as "--runner=FlinkRunner".

    Raises:
        ConfigError: Beam is not installed.
    """

    def __init__(self, flags: Sequence[str] = ()):
        if importlib.util.find_spec("apache_beam") is None:
            raise ConfigError(
                "Apache Beam is not installed: pip install 't5x_lite[beam]'", "cache.beam_flags"
            )
        self._flags = list(flags)

    def make_parts(self, data: "Data", task: str, split: str) -> MakeParts:
        """Return a function that tokenizes files of a source in one pipeline.

        Args:
            data: The data of the run.
            task: The name of a task.
            split: The split to tokenize.

        Returns:
            A function of the numbers of files and the directory of the incomplete store, which all
            workers of the runner must see under the same path.
        """

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
    """Write the parts of one file of a task's source; runs in a worker.

    Args:
        data: The data of the run.
        task: The name of a task.
        split: The split that the file belongs to.
        partial: The directory of the incomplete store.
        number: Which file of the split, from 0.

    Returns:
        `number`.
    """
    for _ in _parts_of_file(data, task, split, partial, number):
        pass
    return number


def _parts_of_file(
    data: "Data", task: str, split: str, partial: Path, number: int
) -> Iterator[object]:
    return write_parts(registered_by_name(pickle.dumps(data))[task], split, number, partial)


@functools.lru_cache(1)
def registered_by_name(pickled: bytes) -> dict:
    """Register the tasks of a run's data with seqio, once per process, and return them by name.

    Args:
        pickled: A pickle of the `Data`, which unlike the object itself can be a key of the cache.
    """
    import_seqio()
    tasks = registered_tasks(pickle.loads(pickled))
    return {task.name: task for task, _ in tasks}
