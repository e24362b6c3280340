"""Launchers with the real training behind them: four processes that meet, are preempted, go on."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
STEPS = 12
TRAIN = (
    "--gin_file=recipes/tiny_embedded.gin",
    *(f"--gin.TRAIN_STEPS={STEPS}", "--gin.BATCH_SIZE=16", "--gin.CPU_DEVICES=16"),
    *("--gin.MESH={'data': 4, 'fsdp': 4}", "--gin.CHECKPOINT_PERIOD=4", "--gin.EVAL_PERIOD=12"),
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 16}",
    *("--gin.EmbeddedCorpus.packages=('gin', 'beartype')", "--gin.EmbeddedCorpus.vocab_size=412"),
    *("--gin.TransformerConfig.vocab_size=512", "--gin.TransformerConfig.emb_dim=32"),
    *("--gin.TransformerConfig.mlp_dim=64", "--gin.train.log_every_steps=1"),
    "--gin.Evaluation.max_examples=16",
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def make_real(cloud):
    """Put the whole project into the checkout, and the real command on the workers' path."""
    shutil.rmtree(cloud.checkout / "t5x_lite")
    for name in ("t5x_lite", "gin_configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, cloud.checkout / name, ignore=ignored)
    cloud.git("add", ".")
    cloud.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "All of it")
    command = cloud.folder / "tools" / "bin" / "t5x_lite"
    command.unlink()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m t5x_lite "$@"\n')
    command.chmod(0o755)
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(cloud.folder / "compiled"))
    cloud.environment |= {
        "WORKER_JAX_PLATFORMS": "cpu",
        "WORKER_JAX_COMPILATION_CACHE_DIR": cache,
        "WORKER_PATH": f"{command.parent}:{cloud.environment['WORKER_PATH']}",
        "MEETING": f"localhost:{free_port()}",
    }


def weights(model_dir):
    """A digest of every array of the last checkpoint."""
    import jax
    from orbax.checkpoint import v1 as ocp

    directory = model_dir / "checkpoints" / str(STEPS)
    stored = ocp.checkpointables_metadata(directory).metadata["state"]
    into = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), stored)
    state = ocp.load_checkpointables(directory, {"state": into})["state"]
    flat, _ = jax.tree.flatten_with_path(state)
    return {
        jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
        for path, leaf in flat
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights that four processes come to when nothing happens to them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    pod = [sys.executable, ROOT / "launch" / "local_pod.py", "--processes=4", "--devices=4", "--"]
    train = [f"--gin.MODEL_DIR={folder}/run", f"--gin.DATA_DIR={folder}/data", *TRAIN]
    done = subprocess.run(
        [*pod, "t5x_lite", "train", *train], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert "ok    devices: 16, 4 on each host" in done.stdout
    return weights(folder / "run")


@pytest.fixture
def real(cloud):
    """A cloud whose workers have the real command, and lose a machine in the ninth step."""
    make_real(cloud)
    cloud.faults({"on": "preempt", "when": "step 9/12", "pod": 0})
    return cloud


def trains(cloud):
    return ["train", f"--gin.MODEL_DIR={cloud.model_dir}", f"--gin.DATA_DIR={cloud.folder}/data"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_preempted_tpu_pod_ends_with_the_weights_of_an_undisturbed_one(real, undisturbed):
    flags = ("--zone=z", "--accelerator_type=v5litepod-16", "--spot", "--poll=0.5")
    words = ["run", "demo", *flags, "--delete=always", "--", *trains(real), *TRAIN]
    ended = real.launch("tpu_vm.py", *words)
    assert ended.code == 0, ended.text[-5000:]
    assert "preempted (" in ended.text
    assert len(real.commands("create", "demo")) == 2
    assert ended.text.count("ready to run") == 2
    assert "ok    devices: 16, 4 on each host" in ended.text
    assert real.resources() == []
    assert weights(real.model_dir) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_preempted_jobset_ends_with_the_weights_of_an_undisturbed_one(real, undisturbed):
    real.environment |= {
        "WORKER_PYTHONPATH": str(real.checkout),  # what an image has installed
        "WORKER_T5X_LITE_REVISION": "of the image",
        "WORKER_JAX_NUM_CPU_DEVICES": "4",
    }
    flags = ("--image=i", "--accelerator=v5e:4x4", "--poll=0.5", "--delete=always")
    ended = real.launch("gke.py", "run", "demo", *flags, "--", *trains(real), *TRAIN)
    assert ended.code == 0, ended.text[-5000:]
    assert "a pod ended; all pods are restarted (restart 1)" in ended.text
    assert ended.text.count("ready to run") == 2
    assert "demo: Completed" in ended.text
    assert real.commands("delete") == [["delete", "jobset", "demo"]]
    assert weights(real.model_dir) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_preempted_job_of_slurm_ends_with_the_weights_of_an_undisturbed_one(real, undisturbed):
    sizes = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2")
    own = {"WORKER_T5X_LITE_INSTALLED": "1", "WORKER_JAX_NUM_CPU_DEVICES": "4"}
    done = subprocess.run(
        ["sbatch", *sizes, "launch/slurm/train.sbatch", *trains(real), *TRAIN],
        cwd=real.checkout,
        env={**real.environment, **real.on_path(), **own, "WORKER_STAND_IN_HOST": "localhost"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "requeued" in done.stdout
    assert "start 2 of job 4711" in done.stdout
    assert done.stdout.count("ready to run") == 2
    assert "ok    devices: 16, 4 on each host" in done.stdout
    assert weights(real.model_dir) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_wheel_installs_and_trains_outside_the_checkout(tmp_path):
    """In an environment of its own, which sees the dependencies that are installed here already."""
    wheels, place = tmp_path / "wheels", tmp_path / "elsewhere"
    source = tmp_path / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    base = sys._base_executable
    pip = [base, "-m", "pip"]
    flags = ["--quiet", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", *flags, "--wheel-dir", wheels, source], check=True)
    subprocess.run([base, "-m", "venv", "--without-pip", place / "venv"], check=True)
    python = place / "venv" / "bin" / "python"
    [wheel] = wheels.glob("t5x_lite-*.whl")
    subprocess.run([*pip, "--python", python, "install", *flags, wheel], check=True)
    paths = [path for path in sys.path if path.endswith("site-packages")]
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (Path(purelib) / "dependencies.pth").write_text("\n".join(paths) + "\n")
    small = [word for word in TRAIN if "MESH" not in word and "CPU_DEVICES" not in word]
    train = ["train", f"--gin.MODEL_DIR={place}/run", f"--gin.DATA_DIR={place}/data", *small]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(place),
        "T5X_LITE_REVISION": "of the wheel",
    }
    done = subprocess.run(
        [place / "venv" / "bin" / "t5x_lite", *train],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{STEPS} steps" in done.stdout
    versions = (place / "run" / "launches" / "from_step_00000000" / "versions.json").read_text()
    assert '"git_revision": "of the wheel"' in versions
    where = subprocess.run(
        [python, "-c", "import t5x_lite; print(t5x_lite.__file__)"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(purelib)
