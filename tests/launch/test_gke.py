"""Runs on Kubernetes, against stand-ins of kubectl and xpk that start pods as local processes."""

import shlex
import shutil
import subprocess

import pytest

GPUS = ("--image=registry/image:1", "--accelerator=h100:16")  # 2 nodes
WORDS = ["--gin.NAME='a b'", '--gin.LIST=["$(HOME)", "$$x", "`y`"]', "--gin.E=$HOME\\n"]


def run(cloud, *words, flags=(), verb="run"):
    train = ["train", f"--gin.MODEL_DIR={cloud.model_dir}", *words]
    poll = ["--poll=0.1"] if verb == "run" else []
    return cloud.launch("gke.py", verb, "demo", *GPUS, *poll, *flags, "--", *train)


def test_a_run_goes_from_the_manifest_to_its_end_and_is_deleted(cloud):
    ended = run(cloud, *WORDS, flags=["--delete=always"])
    assert ended.code == 0, ended.text
    assert "step 5" in ended.text
    assert "demo: Completed" in ended.text
    for pod in (0, 1):
        assert cloud.call_of("doctor", pod)["words"][:2] == ["doctor", "--devices=16"]
        assert cloud.call_of("train", pod)["words"][2:] == WORDS
    assert cloud.commands("delete") == [["delete", "jobset", "demo"]]


def test_a_preempted_node_has_all_pods_started_again_until_the_run_is_done(cloud):
    cloud.faults({"on": "preempt", "pod": 1, "when": "step 20"})
    ended = run(cloud, "--gin.TRAIN_STEPS=40", flags=["--delete=always"])
    assert ended.code == 0, ended.text
    assert "a pod ended; all pods are restarted (restart 1)" in ended.text
    assert all((cloud.model_dir / f"step-{pod}").read_text() == "40" for pod in (0, 1))


def test_a_mistake_in_the_configuration_ends_the_run_without_a_restart(cloud):
    ended = run(cloud, "--fail=1:2:2", flags=["--delete=never"])
    assert ended.code == 1
    assert "PodFailurePolicy" in ended.text
    assert "all pods are restarted" not in ended.text
    assert cloud.commands("delete") == []
    assert "launch/gke.py delete demo" in ended.text


def test_an_end_that_asks_for_it_is_a_restart(cloud):
    ended = run(cloud, "--fail=0:3:75", flags=["--delete=always"])
    assert ended.code == 0, ended.text
    assert "all pods are restarted (restart 1)" in ended.text


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ('error: no matches for kind "JobSet" in version "jobset.x-k8s.io/v1alpha2"', "controller"),
        ("Error from server (Forbidden): exceeded quota: gpus, requested: 16", "role"),
        ("error: current-context is not set", "get-credentials"),
    ],
)
def test_an_error_of_the_cluster_is_shown_with_a_fix(cloud, said, fix):
    cloud.faults({"on": "apply", "say": said})
    ended = run(cloud)
    assert ended.code == 1
    assert said in ended.text
    assert fix in ended.text.split("=>")[1]


def test_what_others_made_is_neither_used_nor_deleted(cloud):
    (cloud.state / "jobset.json").write_text(
        '{"metadata": {"name": "demo"}, "status": {"conditions": [{"type": "Completed"}]}}'
    )
    assert "was not created by this launcher" in run(cloud).text
    ended = cloud.launch("gke.py", "delete", "demo", "--delete=always")
    assert ended.code == 1
    assert "was not created by this launcher" in ended.text
    assert cloud.commands("apply") == cloud.commands("delete") == []


def test_a_dry_run_shows_the_manifest_and_every_command(cloud):
    ended = run(cloud, flags=["--dry_run"])
    assert ended.code == 0, ended.text
    assert cloud.commands() == []
    for shown in ("kind: ", "$ kubectl apply", "$ kubectl logs", "$ kubectl delete jobset demo"):
        assert shown in ended.text


def test_words_go_through_xpk_unharmed(cloud):
    ended = run(cloud, *WORDS, flags=["--cluster=c"], verb="xpk")
    assert ended.code == 0, ended.text
    assert cloud.call_of("train")["words"][2:] == WORDS
    [words] = cloud.commands("workload")
    assert {"--device-type=h100-80gb-8", "--num-nodes=2", "--restart-on-exit-codes=75"} <= set(
        words
    )


def test_what_xpk_refuses_is_told_with_its_cure(cloud):
    cloud.faults({"say": "[XPK] Error from server (Forbidden): exceeded quota: cluster-queue"})
    ended = run(cloud, flags=["--cluster=c"], verb="xpk")
    assert ended.code == 1
    assert "exceeded quota: cluster-queue" in ended.text
    assert "=>" in ended.text
    assert not cloud.model_dir.exists()


def test_what_xpk_does_in_its_own_way_is_refused_and_not_left_out(cloud):
    ended = run(cloud, flags=["--cluster=c", "--mount=bucket=/mnt"], verb="xpk")
    assert ended.code == 1
    assert "xpk storage attach" in ended.text
    assert cloud.commands("workload") == []
    ended = run(cloud, flags=["--cluster=c", "--storage=bucket", "--spot"], verb="xpk")
    assert ended.code == 0, ended.text
    assert {"--storage=bucket", "--spot"} <= set(cloud.commands("workload")[0])


@pytest.mark.slow
@pytest.mark.parametrize("accelerator", ["v5e:8x8", "v5p:4x4x4", "v6e:4x4", "h100:16"])
def test_xpks_own_parser_takes_the_command(cloud, accelerator):
    """Its dry run reads the command and asks no cluster; needs no account."""
    xpk = shutil.which("xpk")
    if xpk is None:
        pytest.skip("xpk is not installed")
    flags = ["--image=i", f"--accelerator={accelerator}", "--cluster=c", "--project=p"]
    flags += ["--zone=us-west4-a", "--spot", "--storage=s", "--dry_run"]
    ended = cloud.launch("gke.py", "xpk", "demo", *flags, "--", "train", *WORDS)
    [shown] = [line[2:] for line in ended.text.splitlines() if line.startswith("$ xpk")]
    words = [*shlex.split(shown)[1:], "--dry-run", "--skip-validation"]
    done = subprocess.run(
        [xpk, *words], cwd=cloud.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if accelerator.startswith("v"):  # for TPUs the dry run shows the manifest
        [command] = [word for word in words if word.startswith("--command=")]
        assert command.partition("=")[2] in done.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--accelerator=h100:12"], "8 per node"),
        (["--accelerator=x9:4"], "v5e:8x8"),
        (["--accelerator=h100:16", "--slices=2"], "one number"),
        (["--accelerator=v5e:8x8", "--mount=bucket"], "BUCKET=/FOLDER"),
    ],
)
def test_a_mistake_is_one_line(cloud, flags, said):
    ended = cloud.launch("gke.py", "render", "demo", "--image=i", *flags, "--", "train")
    assert ended.code == 1
    assert said in ended.text
    assert "Traceback" not in ended.text
