"""`infer` in several processes: rows are shared, the lines those of one, and kills lose none."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
WORDS = [f"{a}{b}" for a in "bcdfg" for b in ("an", "et", "ol", "um")]


@pytest.fixture
def start(run_directory, tmp_path):
    """Start `infer` in some processes with two devices in all: start(2, "out.jsonl")."""
    (tmp_path / "in.txt").write_text("\n".join(f"{a} {b}" * 3 for a in WORDS for b in WORDS))

    def run(processes, outputs, inputs=tmp_path / "in.txt", what="generate"):
        return subprocess.Popen(
            [
                *(sys.executable, "launch/local_pod.py", f"--processes={processes}"),
                *(f"--devices={2 // processes}", "--grace=5", "--", "t5x_lite", "infer"),
                *(f"--model_dir={run_directory()}", f"--inputs={inputs}", f"--mode={what}"),
                *(f"--outputs={tmp_path / outputs}", "--gin.BATCH_SIZE=8"),
                *("--gin.MESH={'data': 2}", "--gin.Generation.max_length=6"),
                "--gin.Generation.temperature=1.0",
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return run


def ended(process):
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


@pytest.mark.parametrize("what", ["generate", "embed"])
def test_two_processes_write_the_lines_of_one(what, start, tmp_path):
    for count in (1, 2):
        code, said = ended(start(count, f"{count}.jsonl", what=what))
        assert code == 0, said
        assert said.count("wrote 400 lines to") == 1  # one process speaks for all
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "2.jsonl").read_text().splitlines()]
    assert [line["inputs"] for line in lines] == (tmp_path / "in.txt").read_text().split("\n")


def test_killed_processes_go_on_as_one_or_as_two(start, tmp_path):
    """Killed twice, and begun again each time, the second time with another number of processes."""
    for count in (2, 1):
        process = start(count, "out.jsonl")
        for line in process.stdout:
            if "lines |" in line:
                process.send_signal(signal.SIGKILL)  # and with the launcher all others
                break
        process.communicate()
        assert (tmp_path / "out.jsonl.partial").stat().st_size
    code, said = ended(start(2, "out.jsonl"))
    assert code == 0, said
    assert "resuming after " in said
    assert ended(start(1, "once.jsonl"))[0] == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "once.jsonl").read_bytes()


def test_several_processes_do_not_share_standard_input(start):
    code, said = ended(start(2, "out.jsonl", inputs="-"))
    assert code == 2
    assert "several processes cannot share standard input; expected a file" in said
