"""A process that makes token stores while this one trains from them."""

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from t5x_lite.data.tokenize.build_store import build_token_store
from t5x_lite.data.tokenize.workers import Processes, tasks_of
from t5x_lite.distributed.process_pool import end_with_parent
from t5x_lite.errors import ConfigError

if TYPE_CHECKING:
    from t5x_lite.data.data_config import Data

Report = Callable[[str], None]
_STORES_AT_ONCE = 8


class Builder:
    """Makes the train stores of some tasks, whose directories are given by name.

    Where several hosts share a disk, one of them makes each store and the others wait to take its
    place. `report` is told, from a thread, what takes long.
    """

    def __init__(self, data: "Data", directories: Mapping[str, str], report: Report):
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        arguments = data, directories, sender
        self._process = context.Process(target=_build, args=arguments, name="tokenizing")
        self._process.start()
        sender.close()
        self._error: ConfigError | RuntimeError | None = None
        self._is_done = False
        self._ended = threading.Event()
        self._listener = threading.Thread(target=self._listen, args=(receiver, report), daemon=True)
        self._listener.start()
        atexit.register(self.stop)

    def check(self) -> None:
        """Raise what ended the process before its work was done."""
        if self._ended.is_set() and not self._is_done:
            raise self._error or RuntimeError(
                "the process that tokenizes was killed; the same command goes on with what is done"
            )

    def stop(self) -> None:
        """End the process; what is done so far stays."""
        atexit.unregister(self.stop)
        self._process.kill()
        self._process.join()
        self._listener.join()

    def _listen(self, receiver: Connection, report: Report) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                kind, *content = receiver.recv()
                if kind == "line":
                    report(content[0])
                elif kind == "wrong":
                    self._error = ConfigError(content[0], *content[1])
                elif kind == "failed":
                    self._error = RuntimeError(f"tokenizing failed:\n{content[0]}")
                else:
                    self._is_done = True
        self._ended.set()


def _build(data: "Data", directories: Mapping[str, str], sender: Connection) -> None:
    """Work in a process of its own: the smallest sources first, some stores at a time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then ends this
    end_with_parent()
    sending = threading.Lock()

    def send(*message: object) -> None:
        with sending:
            sender.send(message)

    try:
        tasks = tasks_of(pickle.dumps(data))
        with Processes(data.processes) as workers, ThreadPoolExecutor(_STORES_AT_ONCE) as threads:
            futures = [
                threads.submit(
                    build_token_store,
                    tasks[name],
                    "train",
                    directory,
                    lambda line: send("line", line),
                    tokenizer=data.tokenizer,
                    make_parts=workers.make_parts(data, name, "train"),
                )
                for name, directory in directories.items()
            ]
            for future in as_completed(futures):
                try:
                    future.result()
                except ConfigError as error:
                    send("wrong", str(error), error.names)
                    os._exit(1)
        send("done")
    except Exception:
        send("failed", traceback.format_exc())
        os._exit(1)
