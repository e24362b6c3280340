"""Child processes: their lines, their end, and that none outlives its parent."""

import functools
import os
import signal
import subprocess
import sys
import time

import pytest

from t5x_lite.distributed.child_process import SPAWN, ChildProcess, start_function

WAITS = "import time; print('ready', flush=True); time.sleep(60)"
IGNORES = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}"


def python(code):
    return [sys.executable, "-c", code]


def is_gone(pid):
    """Whether a process has ended; a zombie, which nobody has waited for, has."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_lines_of_both_streams_arrive_before_wait_returns():
    lines, errors = [], []
    code = "import sys; print('a'); print('b', end=''); print('c', file=sys.stderr); sys.exit(3)"
    child = ChildProcess(python(code), on_line=lines.append, on_error_line=errors.append)
    assert child.wait() == 3
    assert (lines, errors) == (["a", "b"], ["c"])
    assert not child.is_alive
    both = []
    assert ChildProcess(python(code), on_line=both.append).wait() == 3
    assert sorted(both) == ["a", "b", "c"] or sorted(both) == ["a", "bc"]


def test_the_environment_and_the_file_for_output_are_the_given_ones(tmp_path):
    code = "import os, sys; print(os.environ['A']); print(*sys.argv[1:], file=sys.stderr)"
    with open(tmp_path / "log", "wb") as log:
        environment = {**os.environ, "A": "1"}
        child = ChildProcess([*python(code), "x", "y"], environment=environment, output=log)
        assert child.wait() == 0
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["1", "x y"]


def test_a_program_that_does_not_exist_ends_with_127_and_its_name():
    lines = []
    assert ChildProcess(["no-such-program"], on_line=lines.append).wait() == 127
    assert lines == ["cannot run no-such-program: No such file or directory"]


def test_a_child_that_ignores_sigterm_is_killed_after_its_grace():
    for code, expected in ((WAITS, -signal.SIGTERM), (IGNORES, -signal.SIGKILL)):
        lines = []
        child = ChildProcess(python(code), on_line=lines.append)
        wait_until(lambda lines=lines: lines == ["ready"])
        assert child.wait(0.01) is None
        assert child.stop(60 if expected == -signal.SIGTERM else 0.2) == expected
        child.send(signal.SIGTERM)  # does nothing


def test_killing_a_child_kills_its_process_group():
    lines = []
    code = "import os, time; n = os.fork(); n and print(n, flush=True); time.sleep(60)"
    with ChildProcess(python(code), on_line=lines.append) as child:
        wait_until(lambda: lines)
        pids = [child.pid, int(lines[0])]
        assert not any(map(is_gone, pids))
    wait_until(lambda: all(map(is_gone, pids)))


def test_a_child_has_a_session_of_its_own():
    lines = []
    child = ChildProcess(python("import os; print(os.getsid(0))"), on_line=lines.append)
    assert child.wait() == 0
    assert lines == [str(child.pid)]


PARENT = """
import sys, time
from t5x_lite.distributed.child_process import ChildProcess
child = ChildProcess([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG of Linux")
def test_a_program_dies_with_its_parent():
    parent = subprocess.Popen(python(PARENT), stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert not is_gone(child)
    parent.kill()
    parent.communicate()
    wait_until(lambda: is_gone(child))


def nested(connection):
    """Start a function in a child of this process, and wait."""
    inner = start_function(functools.partial(time.sleep, 60), name="inner")
    connection.send((os.getsid(0), inner.pid))
    time.sleep(60)


def test_a_function_runs_in_a_session_of_its_own_and_ends_with_its_parent():
    receiver, sender = SPAWN.Pipe(duplex=False)
    outer = start_function(nested, sender, name="outer")
    session, inner = receiver.recv()
    assert session == outer.pid
    assert not is_gone(inner)
    outer.kill()
    outer.join()
    wait_until(lambda: is_gone(inner))
