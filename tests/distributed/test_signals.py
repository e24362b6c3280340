"""Signals as requests: recorded, served at once where that is asked for, and restored."""

import signal
import subprocess
import sys
import threading

from t5x_lite.distributed.signals import SignalRequests


def test_signals_are_recorded_and_taken_once_and_handlers_are_restored():
    before = signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)
    with SignalRequests(signal.SIGUSR1, signal.SIGTERM) as requests:
        assert requests.take() == []
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert requests.take() == [signal.SIGUSR1, signal.SIGTERM]
        assert requests.take() == []
        signal.raise_signal(signal.SIGTERM)
        assert requests.take() == [signal.SIGTERM]
        assert requests.received == [signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM]
    assert (signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)) == before


def test_signals_of_others_do_not_reach_the_callback():
    seen, arrived = [], threading.Event()

    def on_signal(number):
        seen.append(number)
        arrived.set()

    with (
        SignalRequests(signal.SIGTERM, on_signal=on_signal),
        SignalRequests(signal.SIGUSR1) as others,
    ):
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert arrived.wait(60)
        assert others.received == [signal.SIGUSR1]
    assert seen == [signal.SIGTERM]
    assert signal.set_wakeup_fd(-1) == -1


BUSY = """
import ctypes, os, signal
from t5x_lite.distributed.signals import SignalRequests

def on_signal(number):
    print("received", number, flush=True)
    os.kill(os.getpid(), signal.SIGINT)

with SignalRequests(signal.SIGTERM, signal.SIGINT, on_signal=on_signal, exit_on_second=True):
    os.kill(os.getpid(), signal.SIGTERM)
    # A call in C that waits for itself: Python's own handlers never run again.
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def test_a_second_signal_ends_a_process_whose_main_thread_is_busy():
    ended = subprocess.run([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, timeout=120)
    assert ended.stdout == b"received 15\n"
    assert ended.returncode == 128 + signal.SIGINT
