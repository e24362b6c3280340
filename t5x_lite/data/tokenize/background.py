"""Tokenizes train stores in a background process while this process trains from them."""

import atexit
import contextlib
import logging
import logging.handlers
import os
import pickle
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from t5x_lite.data.tokenize.build_store import build_token_store
from t5x_lite.data.tokenize.workers import Processes, registered_by_name
from t5x_lite.distributed.child_process import SPAWN, start_function
from t5x_lite.errors import ConfigError

if TYPE_CHECKING:
    from t5x_lite.data.data_config import Data

_PACKAGE = logging.getLogger("t5x_lite")
_STORES_AT_ONCE = 8


class BackgroundTokenizer:
    """Builds the train stores of some tasks in another process, which ends with this one.

    Where several hosts share a disk, one of them makes each store. The others wait, to take over if
    it ends. What that process logs is logged here again, from a thread.

    Args:
        data: The data of the run. Each worker registers its tasks again.
        directories: The directory of each store to make, by the name of its task.
    """

    def __init__(self, data: "Data", directories: Mapping[str, str]):
        receiver, sender = SPAWN.Pipe(duplex=False)
        level = _PACKAGE.getEffectiveLevel()
        self._process = start_function(_build, data, directories, sender, level, name="tokenizing")
        sender.close()
        self._error: ConfigError | RuntimeError | None = None
        self._is_done = False
        self._ended = threading.Event()
        self._listener = threading.Thread(target=self._listen, args=(receiver,), daemon=True)
        self._listener.start()
        atexit.register(self.stop)

    def check(self) -> None:
        """Raise the error that ended the process before its work was done, if one did.

        Raises:
            ConfigError: For a corpus that cannot be read, and other invalid configuration.
            RuntimeError: For any other error, and if the process was killed.
        """
        if self._ended.is_set() and not self._is_done:
            raise self._error or RuntimeError(
                "the process that tokenizes was killed; the same command resumes from what is done"
            )

    def stop(self) -> None:
        """End the process; files that are tokenized stay."""
        atexit.unregister(self.stop)
        self._process.kill()
        self._process.join()
        self._listener.join()

    def _listen(self, receiver: Connection) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                kind, *content = receiver.recv()
                if kind == "log":
                    logging.getLogger(content[0].name).handle(content[0])
                elif kind == "invalid":
                    self._error = ConfigError(content[0], *content[1])
                elif kind == "failed":
                    self._error = RuntimeError(f"tokenizing failed:\n{content[0]}")
                else:
                    self._is_done = True
        self._ended.set()


class _PipeHandler(logging.handlers.QueueHandler):
    """Sends log records to the process that started this one."""

    def __init__(self, send: Callable[[str, logging.LogRecord], None]):
        super().__init__(queue=None)  # pyright: ignore  (`enqueue` is all that uses it)
        self._send = send

    def enqueue(self, record: logging.LogRecord) -> None:
        self._send("log", record)


def _build(
    data: "Data", directories: Mapping[str, str], sender: Connection, log_level: int
) -> None:
    """Make all stores, some at a time, in the order of `directories`."""
    sending = threading.Lock()

    def send(*message: object) -> None:
        with sending:
            sender.send(message)

    _PACKAGE.addHandler(_PipeHandler(send))
    _PACKAGE.setLevel(log_level)
    _PACKAGE.propagate = False  # the parent prints them
    try:
        tasks = registered_by_name(pickle.dumps(data))
        with Processes(data.processes) as workers, ThreadPoolExecutor(_STORES_AT_ONCE) as threads:
            futures = [
                threads.submit(
                    build_token_store,
                    tasks[name],
                    "train",
                    directory,
                    tokenizer=data.tokenizer,
                    make_parts=workers.make_parts(data, name, "train"),
                )
                for name, directory in directories.items()
            ]
            for future in as_completed(futures):
                try:
                    future.result()
                except ConfigError as error:
                    send("invalid", str(error), error.names)
                    os._exit(1)
        send("done")
    except Exception:
        send("failed", traceback.format_exc())
        os._exit(1)
