"""The rows of a study, handed to engines that run them elsewhere, under stand-ins of these."""

import re
import subprocess

import pytest

from t5x_lite.sweep.cluster_jobs import write_job_commands
from t5x_lite.sweep.runner import SweepJob

JOBS = [SweepJob("10 %", 0, []), SweepJob("drop 'em, all", 1, [])]


@pytest.fixture
def write_jobs(cloud, log_lines):
    """Hand the rows to an engine and run the command that is told; returns what was said."""

    def run(engine, options=()):
        words = [f"--gin.MODEL_DIR={cloud.model_dir}", "--gin.E=$HOME", "--jobs=2", "--seeds=2"]
        write_job_commands(engine, cloud.folder / "study", words, JOBS)
        command = log_lines[-1].split(" --image")[0].split()
        done = subprocess.run(
            [*command, *options],
            cwd=cloud.checkout,
            env={**cloud.environment, "WORKER_T5X_LITE_INSTALLED": "1", **cloud.on_path()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


def test_every_task_of_a_slurm_array_does_one_row(cloud, write_jobs):
    text = write_jobs("slurm")
    assert text.count("start 1 of job 4711") == len(JOBS)
    assert cloud.call_of("explore")["words"] == [
        "explore",
        f"--gin.MODEL_DIR={cloud.model_dir}",
        "--gin.E=$HOME",
        "--seeds=2",
        "--only=drop 'em, all",
        "--seed=1",
    ]


def test_a_task_without_a_row_is_a_mistake(cloud):
    done = subprocess.run(
        ["sbatch", "launch/slurm/rows.sbatch", "nothing"],
        cwd=cloud.checkout,
        env={**cloud.environment, **cloud.on_path()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "sbatch --array=1-N" in done.stdout


def test_every_row_is_a_workload_of_xpk(cloud, write_jobs):
    write_jobs("xpk", ["--image=i", "--accelerator=h100:8", "--cluster=c"])
    names = [word for call in cloud.commands("workload") for word in call if "--workload=" in word]
    assert names == ["--workload=row-10-0", "--workload=drop-em-all-1"]
    assert cloud.call_of("explore")["words"][-2:] == ["--only=drop 'em, all", "--seed=1"]


def test_every_row_is_a_jobset(cloud, write_jobs):
    text = write_jobs("jobset", ["--image=i", "--accelerator=h100:8"])
    assert len(cloud.commands("apply")) == len(JOBS), text
    assert re.search(r"explore .*--only=", (cloud.folder / "study.sh").read_text())
