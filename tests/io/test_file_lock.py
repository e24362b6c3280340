"""Of several processes or threads that want a lock, one holds it at a time."""

import fcntl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from t5x_lite.io.file_lock import file_lock

# Prints a line when it waits, when it holds the lock and when it has released it; it holds the lock
# until it reads a line.
HOLDER = """
import logging
import sys
from pathlib import Path
from t5x_lite.io.file_lock import file_lock

handler = logging.Handler()
handler.emit = lambda record: print(record.getMessage().split()[0], flush=True)
logging.basicConfig(level=logging.INFO, handlers=[handler])
with file_lock(Path(sys.argv[1])):
    print("holds", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Start processes that want the lock of one file."""
    started = []

    def start():
        command = [sys.executable, "-c", HOLDER, str(tmp_path / ".thing.lock")]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_process_waits_until_the_first_one_releases_the_lock(tmp_path, holder):
    first = holder()
    assert first.stdout.readline() == "holds\n"
    second = holder()
    assert second.stdout.readline() == "waiting\n"  # without a lock: "holds"
    first.stdin.write("release\n")
    assert second.stdout.readline() == "holds\n"
    assert first.wait() == 0
    second.stdin.write("release\n")
    assert second.wait() == 0
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_free(holder):
    first = holder()
    assert first.stdout.readline() == "holds\n"
    second = holder()
    assert second.stdout.readline() == "waiting\n"
    first.kill()
    assert second.stdout.readline() == "holds\n"


def test_the_lock_is_exclusive_although_its_file_is_removed_and_created_again(tmp_path):
    """A lost update would show that two threads were inside at once."""
    counter = tmp_path / "counter"
    counter.write_text("0")

    def increment(_):
        with file_lock(tmp_path / ".counter.lock"):
            counter.write_text(str(int(counter.read_text()) + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(increment, range(200)))
    assert counter.read_text() == "200"
    assert list(tmp_path.iterdir()) == [counter]


def test_a_lock_ends_with_an_error(tmp_path):
    with pytest.raises(KeyError), file_lock(tmp_path / ".thing.lock"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_logged_and_used_without(tmp_path, monkeypatch, log_lines):
    def refuse(file, kind):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with file_lock(tmp_path / ".thing.lock"):
        pass
    assert "no locks available" in log_lines[0]
    assert list(tmp_path.iterdir()) == []
