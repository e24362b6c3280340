"""`t5x_lite cache`: tokenize a task or mixture once, before it is trained on."""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence

from t5x_lite.console import Console
from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import prepare
from t5x_lite.data.tokenize.workers import Beam, Processes
from t5x_lite.errors import ConfigError

_LOG = logging.getLogger(__name__)


def cache(
    *,
    data: Data,
    processes: int | None = None,
    beam_flags: Sequence[str] | None = None,
    describe_config: Callable[[], str] = str,
) -> None:
    """Make the token stores of a mixture's tasks, a file of their sources at a time.

    processes: of this machine; None is one per core. beam_flags: of a runner of Apache Beam, which
    then does the work; all its workers must see `data.data_dir`. Whenever it is stopped or killed,
    the same command goes on with the files that are not done.
    """
    if processes is not None and processes < 1:
        raise ConfigError(f"processes is {processes}; wanted 1 or more", "cache.processes")
    with Processes(processes) as workers:
        make_parts = workers.make_parts if beam_flags is None else Beam(beam_flags).make_parts
        before = dataclasses.replace(data, tokenization="before_training", use_cached=False)
        plan = prepare(before, make_parts=make_parts)
    rows = [
        (
            task.name,
            split,
            f"{store.num_examples:,}",
            f"{sum(each['tokens'] for each in store.manifest['features'].values()):,}",
            store.manifest["tokenizer"],
        )
        for task, split, store in plan.stores()
    ]
    columns = ("task", "split", "examples", "tokens", "tokenized by")
    Console().table(data.mixture_or_task_name, columns, rows)
    stores = os.path.join(data.store_dir or data.data_dir, "stores")
    _LOG.info(f"token stores are in {stores}")
