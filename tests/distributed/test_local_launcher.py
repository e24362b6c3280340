"""A simulated pod: prefixes, exit codes, signals, restarts and stragglers."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "local_pod.py"
WHO = "import os, sys, time; me = int(os.environ['JAX_PROCESS_ID']); "


def pod(*flags, code, **options):
    command = [sys.executable, str(SCRIPT), *flags, "--", sys.executable, "-c", WHO + code]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def ended(*flags, code):
    process = pod(*flags, code=code)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_lines_carry_the_number_of_their_process():
    names = ("JAX_NUM_PROCESSES", "JAX_NUM_CPU_DEVICES", "JAX_PLATFORMS")
    code, out, _ = ended(
        "--processes=3", "--devices=5", code=f"print(*(os.environ[n] for n in {names}))"
    )
    assert code == 0
    assert sorted(out.splitlines()) == ["[0] 3 5 cpu", "[1] 3 5 cpu", "[2] 3 5 cpu"]


def test_all_start_again_when_one_fails_and_end_with_its_code(tmp_path):
    count = f"open({str(tmp_path)!r} + '/' + str(me), 'a').write('x'); "
    code, _, err = ended("--restarts=2", code=f"{count} sys.exit(75 if me else 0)")
    assert code == 75
    assert [len((tmp_path / name).read_text()) for name in "01"] == [3, 3]
    assert "process 1 ended with code 75" in err
    assert "restarting all processes (2 of 2)" in err


@pytest.mark.parametrize("code", [2, 130])
def test_what_a_restart_would_only_repeat_is_not_repeated(code, tmp_path):
    count = f"open({str(tmp_path / 'starts')!r}, 'a').write('x'); "
    ended("--processes=1", "--restarts=2", code=f"{count} sys.exit({code})")
    assert (tmp_path / "starts").read_text() == "x"


def test_a_straggler_is_killed_after_its_grace():
    code, _, err = ended("--grace=0.3", code="os.kill(os.getpid(), 9) if me else time.sleep(60)")
    assert code == 128 + signal.SIGKILL
    assert "process 1 was killed by SIGKILL" in err
    assert "killing process 0, still running" in err


def test_a_signal_is_passed_on_and_ends_the_restarts():
    handler = "import signal; signal.signal(15, lambda *_: sys.exit(75)); "
    waits = "print('ready', flush=True); time.sleep(60)"
    process = pod("--restarts=5", code=handler + waits)
    for _ in range(2):
        assert "ready" in process.stdout.readline()
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "restarting" not in err
    assert "ready" not in out


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's death signal")
def test_a_killed_pod_leaves_nobody_behind():
    process = pod("--processes=1", code="print(os.getpid(), flush=True); time.sleep(60)")
    child = int(process.stdout.readline().split()[1])
    process.kill()
    process.communicate(timeout=60)  # returns when the child no longer holds the pipes
    with pytest.raises(ProcessLookupError):
        until_it_is_reaped(child)


def until_it_is_reaped(child):
    while True:
        os.kill(child, 0)


def test_a_pod_without_a_command_is_refused():
    refused = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "a command after --" in refused.stderr


@pytest.fixture
def examined(tmp_path):
    """A pod whose t5x_lite notes what it is called with: examined(code of the doctor, *flags)."""
    (tmp_path / "t5x_lite").mkdir()
    (tmp_path / "t5x_lite" / "__init__.py").touch()

    def launch(code, *flags):
        (tmp_path / "t5x_lite" / "__main__.py").write_text(
            f"import sys; open('calls', 'a').write(' '.join(sys.argv[1:]) + '\\n'); "
            f"sys.exit({code} if sys.argv[1] == 'doctor' else 0)"
        )
        command = [sys.executable, SCRIPT, "--processes=1", "--devices=4", *flags, "--"]
        done = subprocess.run(
            [*command, "t5x_lite", "train", "--gin.A=1"], cwd=tmp_path, check=False
        )
        return done.returncode, (tmp_path / "calls").read_text().splitlines()

    return launch


def test_the_doctor_examines_a_pod_before_it_trains(examined):
    assert examined(0) == (0, ["doctor --devices=4 --gin.A=1", "train --gin.A=1"])


def test_a_pod_that_is_not_fit_is_not_started_nor_examined_again(examined):
    assert examined(3, "--restarts=2") == (3, ["doctor --devices=4 --gin.A=1"])


def test_the_examination_can_be_left_out(examined):
    assert examined(3, "--no_doctor") == (0, ["train --gin.A=1"])
