"""`t5x_lite cache`: tokenize a task or mixture once, before training."""

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
    """Build the token stores of all tasks of a mixture, and show their sizes.

    An interrupted call is resumed by the same command, from the files that are done.

    Args:
        data: The task or mixture, and how to tokenize it.
        processes: Number of processes of this machine that tokenize; None starts one per core.
        beam_flags: Flags of Apache Beam, such as ["--runner=FlinkRunner"], which then tokenizes
            instead. All its workers must see `data.data_dir` under the same path. None does not use
            Beam.
        describe_config: Not used; the command line passes it to every command.

    Raises:
        ConfigError: `processes` is less than 1, or the data cannot be tokenized.
    """
    if processes is not None and processes < 1:
        raise ConfigError(f"processes is {processes}; expected 1 or more", "cache.processes")
    with Processes(processes) as workers:
        make_parts = workers.make_parts if beam_flags is None else Beam(beam_flags).make_parts
        # The data's own settings are for training; here, all stores are made, and made now.
        data_to_cache = dataclasses.replace(data, tokenization="before_training", use_cached=False)
        plan = prepare(data_to_cache, make_parts=make_parts)
    rows = [
        (
            task.name,
            split,
            f"{store.num_examples:,}",
            f"{sum(feature['tokens'] for feature in store.manifest['features'].values()):,}",
            store.manifest["tokenizer"],
        )
        for task, split, store in plan.stores()
    ]
    columns = ("task", "split", "examples", "tokens", "tokenized by")
    Console().table(data.mixture_or_task_name, columns, rows)
    stores = os.path.join(data.store_dir or data.data_dir, "stores")
    _LOG.info(f"token stores are in {stores}")
