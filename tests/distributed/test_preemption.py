"""Requests to stop: which signals make them, and what a second one does."""

import signal
import subprocess
import sys

from t5x_lite.distributed.preemption import PreemptionHandler, StopRequest

TWICE = """
import logging, os, signal, sys, threading
from t5x_lite.distributed.preemption import PreemptionHandler

heard = threading.Event()
handler = logging.Handler()
handler.emit = lambda record: heard.set()
logging.getLogger("t5x_lite").addHandler(handler)
logging.getLogger("t5x_lite").setLevel(logging.INFO)
with PreemptionHandler():
    os.kill(os.getpid(), signal.SIGTERM)
    heard.wait()
    os.kill(os.getpid(), {second})
    threading.Event().wait()  # as deep in a step as can be
"""


def test_the_first_signal_requests_a_stop_and_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with PreemptionHandler() as stopping:
        assert stopping.reached() is None
        signal.raise_signal(signal.SIGTERM)
        assert stopping.reached() == StopRequest(signal.SIGTERM, 0)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_launchers_restart_after_sigterm_and_not_after_ctrl_c():
    assert StopRequest(signal.SIGTERM, 1).exit_code == 75
    assert StopRequest(signal.SIGTERM, None).exit_code == 75
    assert StopRequest(signal.SIGINT, 0).exit_code == 130


def test_a_second_signal_ends_the_process_at_once():
    for second in (signal.SIGTERM, signal.SIGINT):
        script = TWICE.format(second=int(second))
        ended = subprocess.run([sys.executable, "-c", script], timeout=120)
        assert ended.returncode == 128 + second
