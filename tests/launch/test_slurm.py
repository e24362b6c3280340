"""The batch file under a stand-in of Slurm that starts the tasks as local processes."""

import json
import subprocess

import pytest


@pytest.fixture
def sbatch(cloud):
    """Submit a run: sbatch("--gin.TRAIN_STEPS=9", flags=["--nodes=2"]) -> exit code, output."""

    def submit(*words, flags=("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2")):
        train = (
            ["train", f"--gin.MODEL_DIR={cloud.model_dir}", *words] if words[:1] != (None,) else []
        )
        done = subprocess.run(
            ["sbatch", *flags, "launch/slurm/train.sbatch", *train],
            cwd=cloud.checkout,
            env={**cloud.environment, "WORKER_T5X_LITE_INSTALLED": "1", **cloud.on_path()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout

    return submit


def test_every_process_has_a_number_a_gpu_and_the_words_unharmed(cloud, sbatch):
    words = ["--gin.NAME='a b'", '--gin.LIST=["$HOME", "`y`"]', "--gin.E=a\\nb *"]
    code, text = sbatch(*words)
    assert code == 0, text
    calls = [cloud.call_of("train", rank) for rank in range(4)]
    assert all(call["words"][2:] == words for call in calls)
    assert [call["process"]["CUDA_VISIBLE_DEVICES"] for call in calls] == ["0", "1", "0", "1"]
    assert [call["process"]["JAX_PROCESS_ID"] for call in calls] == ["0", "1", "2", "3"]
    assert {call["process"]["JAX_NUM_PROCESSES"] for call in calls} == {"4"}
    assert {call["process"]["JAX_COORDINATOR_ADDRESS"] for call in calls} == {"node1:62055"}
    assert all(cloud.call_of("doctor", rank)["words"][2:] == words for rank in range(4))


def test_one_process_a_node_keeps_all_its_gpus(cloud, sbatch):
    code, text = sbatch(flags=("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4"))
    assert code == 0, text
    assert cloud.call_of("train", 1)["process"]["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


def test_processes_that_do_not_match_the_gpus_are_refused(sbatch):
    code, text = sbatch(flags=("--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=4"))
    assert code == 2
    assert "2 processes on a node with 4 GPUs" in text
    assert "not restarted" in text


def test_a_preempted_job_goes_back_into_the_queue_and_ends_as_if_undisturbed(cloud, sbatch):
    cloud.faults({"on": "preempt", "when": "step 20"})
    code, text = sbatch("--gin.TRAIN_STEPS=40")
    assert code == 0, text
    assert "requeued" in text
    assert "start 2 of job 4711" in text
    assert text.rstrip().endswith("finished")
    assert all((cloud.model_dir / f"step-{rank}").read_text() == "40" for rank in range(4))


@pytest.mark.parametrize(
    ("code", "starts", "said"), [(75, 2, "finished"), (2, 1, "not restarted"), (1, 1, "failed")]
)
def test_exit_codes_decide_about_another_start(sbatch, code, starts, said):
    ended, text = sbatch(f"--fail=1:3:{code}")
    assert text.count(" of job 4711") == starts
    assert said in text
    assert ended == (0 if code == 75 else code)


def test_the_batch_file_asks_for_what_a_requeued_run_needs(cloud, sbatch):
    sbatch()
    options = json.loads((cloud.state / "options.json").read_text())
    assert options["signal"] == "TERM@300"
    assert "requeue" in options
    assert options["open-mode"] == "append"
    assert "--wait=300" in json.loads((cloud.state / "srun.json").read_text())


def test_nothing_to_run_is_said_at_once(sbatch):
    code, text = sbatch(None)
    assert code == 2
    assert "no command given" in text
