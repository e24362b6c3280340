"""A Cloud TPU pod, from nothing to the end, against a stand-in of gcloud with local workers."""

import json
import shlex
import shutil
import subprocess

import pytest

POD = ("--zone=z", "--accelerator_type=v5litepod-8", "--spot", "--poll=0.1")  # 2 workers


def run(cloud, *words, flags=(), name="demo", **environment):
    """`tpu_vm.py run` of a training command with these words."""
    train = ["train", f"--gin.MODEL_DIR={cloud.model_dir}", *words]
    return cloud.launch("tpu_vm.py", "run", name, *POD, *flags, "--", *train, **environment)


def test_a_run_is_created_run_on_all_workers_collected_and_deleted(cloud):
    cloud.model_dir = cloud.folder / "it's a model dir"
    (cloud.model_dir / "checkpoints" / "5").mkdir(parents=True)
    ended = run(cloud, flags=["--delete=always"])
    assert ended.code == 0, ended.text
    commit = cloud.call_of("train")["revision"]
    for worker in range(2):
        assert cloud.call_of("doctor", worker)["words"][:2] == ["doctor", "--devices=8"]
        assert cloud.call_of("train", worker)["revision"] == commit
    assert len(commit) == 40
    assert {"launch", "pyproject.toml", "t5x_lite"} <= set(cloud.call_of("train")["folder"])
    log = ended.text.splitlines()
    assert [line for line in log if line.startswith("step ")] == [f"step {n}" for n in range(1, 6)]
    collected = sorted(path.name for path in (cloud.checkout / "runs/demo").iterdir())
    assert collected == [*(f"demo-{worker}.log" for worker in range(2)), "run"]
    records = {path.name for path in (cloud.checkout / "runs/demo/run").iterdir()}
    assert records == {path.name for path in cloud.model_dir.iterdir()} - {"checkpoints"}
    assert cloud.resources() == []
    assert not list((cloud.folder / "launches").iterdir())


def test_several_slices_are_one_run(cloud):
    ended = run(cloud, flags=["--slices=2", "--delete=always"])
    assert ended.code == 0, ended.text
    assert cloud.call_of("doctor", worker=3)["words"][1] == "--devices=16"
    [create] = cloud.commands("create")
    assert {"--node-count=2", "--node-prefix=demo", "--spot"} <= set(create)


def test_a_preempted_run_goes_on_by_new_machines_and_ends_as_if_undisturbed(cloud):
    cloud.faults({"on": "preempt", "when": "step 20"})
    ended = run(cloud, "--gin.TRAIN_STEPS=40", flags=["--delete=always"])
    assert ended.code == 0, ended.text
    assert "preempted" in ended.text
    assert len(cloud.commands("create")) == len(cloud.commands("delete")) == 2
    shown = [line for line in ended.text.splitlines() if line.startswith("starting from step ")]
    assert shown[0] == "starting from step 0"
    assert int(shown[1].split()[-1]) >= 20
    assert all((cloud.model_dir / f"step-{worker}").read_text() == "40" for worker in range(2))


def test_a_worker_that_asks_for_it_has_the_whole_run_started_again(cloud):
    ended = run(cloud, "--fail=1:3:75", "--gin.TRAIN_STEPS=8", flags=["--delete=always"])
    assert ended.code == 0, ended.text
    assert "demo stand-in-1: exited 75" in ended.text
    assert len(cloud.commands("create")) == 1


def test_a_mistake_in_the_configuration_ends_the_run_without_another_try(cloud):
    ended = run(cloud, "--fail=1:2:2", flags=["--delete=never"])
    assert ended.code == 2
    assert ended.text.count("starting from step") == 1
    assert cloud.resources() == ["demo"]
    assert "demo still exists and costs money: launch/tpu_vm.py delete demo" in ended.text


def test_words_reach_the_workers_unharmed(cloud):
    cloud.model_dir = cloud.folder / """it's a "dir" with $HOME, `date` and \\n"""
    words = [
        "--gin.NAME='a b'",
        '--gin.LIST=["$x", "`y`", \'z\']',
        "--gin.E=a\\nb",
        "--gin.F=*;#&|",
    ]
    ended = run(cloud, *words, flags=["--delete=always"])
    assert ended.code == 0, ended.text
    assert cloud.call_of("train", 1)["words"] == [
        "train",
        f"--gin.MODEL_DIR={cloud.model_dir}",
        *words,
    ]


def test_no_secret_is_shown_or_stands_on_a_command_line(cloud):
    secret = "s3cr3t $x 'y'"
    ended = run(cloud, flags=["--env=SECRET", "--delete=always"], SECRET=secret)
    assert ended.code == 0, ended.text
    assert cloud.call_of("train", 1)["secret"] == secret
    assert "s3cr3t" not in ended.text
    assert "the secret is ***" in ended.text
    assert "s3cr3t" not in (cloud.state / "commands").read_text()
    [record] = [*cloud.folder.glob("launches/*"), "none left"]
    assert record == "none left"


def test_ssh_that_fails_on_one_worker_is_tried_again(cloud):
    cloud.faults(
        {"on": "ssh", "worker": 1, "match": "setup"},
        {"on": "ssh", "worker": 1, "match": "status"},
        {"on": "ssh", "worker": 0, "match": "follow"},
    )
    ended = run(cloud, flags=["--delete=always"])
    assert ended.code == 0, ended.text
    assert "Connection refused" in ended.text
    assert [line for line in ended.text.splitlines() if line.startswith("step ")][-1] == "step 5"


def test_a_worker_that_never_answers_ends_the_launch_with_a_fix(cloud):
    cloud.faults(*[{"on": "ssh", "worker": 1, "match": "setup"}] * 9)
    ended = run(cloud)
    assert ended.code == 1
    assert "allow tcp:22" in ended.text
    assert cloud.resources() == ["demo"]
    assert "launch/tpu_vm.py delete demo" in ended.text


@pytest.mark.parametrize(
    ("fault", "fix"),
    [
        (
            {
                "on": "create",
                "say": "ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPerProjectPerZone' exceeded",
            },
            "Quotas",
        ),
        (
            {"on": "create", "say": "ERROR: PERMISSION_DENIED: Permission 'tpu.nodes.create'"},
            "roles",
        ),
        (
            {"on": "create", "say": "ERROR: You do not currently have an active account"},
            "auth login",
        ),
        ({"on": "create", "say": "ERROR: Cloud TPU API has not been used in project 1"}, "enable"),
        (
            {"on": "queue", "state": "FAILED", "say": "There is no more capacity in the zone"},
            "--wait_hours",
        ),
    ],
)
def test_an_error_of_google_is_shown_with_a_fix(cloud, fault, fix):
    cloud.faults(fault)
    ended = run(cloud)
    assert ended.code == 1
    assert fault["say"].split(": ")[-1] in ended.text
    assert fix in ended.text.split("=>")[1]


def test_waiting_for_capacity_has_an_end(cloud):
    cloud.faults({"on": "queue", "waits": 10_000})
    ended = run(cloud, flags=["--wait_hours=0.0001"])
    assert ended.code == 1
    assert "raise --wait_hours" in ended.text


def test_what_others_made_is_neither_used_nor_deleted(cloud):
    other = ["gcloud", "compute", "tpus", "queued-resources", "create", "demo", "--node-id=demo"]
    words = [*other, "--accelerator-type=v5litepod-8", "--labels=team=theirs"]
    subprocess.run(words, env=cloud.environment, check=True)
    ended = run(cloud, flags=["--delete=always"])
    assert ended.code == 1
    assert "this launch did not create" in ended.text
    assert cloud.launch("tpu_vm.py", "delete", "demo", "--delete=always").code == 1
    assert cloud.commands("delete") == []
    assert cloud.resources() == ["demo"]


def test_deleting_needs_a_yes(cloud):
    assert run(cloud, flags=["--delete=ask"]).code == 0
    assert cloud.launch("tpu_vm.py", "delete", "demo").code == 1
    assert cloud.resources() == ["demo"]
    assert cloud.launch("tpu_vm.py", "delete", "demo", "--delete=always").code == 0
    assert cloud.resources() == []


def test_a_launch_given_again_watches_what_is_there(cloud):
    assert run(cloud, flags=["--delete=never"]).code == 0
    again = run(cloud, flags=["--delete=always"])
    assert again.code == 0, again.text
    assert len(cloud.commands("create")) == 1
    assert "demo: ACTIVE" in again.text


def test_status_and_logs_look_and_change_nothing(cloud):
    assert run(cloud, flags=["--delete=never"]).code == 0
    status = cloud.launch("tpu_vm.py", "status", "demo")
    assert "demo: ACTIVE" in status.text
    assert status.text.count("exited 0") == 2
    assert "step 5" in cloud.launch("tpu_vm.py", "logs", "demo").text


def test_a_dirty_checkout_is_refused_before_anything_is_created(cloud):
    (cloud.checkout / "t5x_lite" / "code.py").write_text("revision = 2\n")
    ended = run(cloud)
    assert ended.code == 1
    assert "t5x_lite/code.py" in ended.text
    assert cloud.commands() == []
    assert run(cloud, flags=["--dirty", "--delete=always"]).code == 0
    assert cloud.call_of("train")["revision"].endswith("+dirty")


def test_a_dry_run_shows_every_command_and_runs_none(cloud):
    ended = run(cloud, flags=["--dry_run", "--env=SECRET"], SECRET="s3cr3t")
    assert ended.code == 0, ended.text
    assert cloud.commands() == []
    assert not (cloud.folder / "launches").exists()
    shown = [shlex.split(line[2:]) for line in ended.text.splitlines() if line.startswith("$ ")]
    verbs = [words[4] for words in shown if words[0] == "gcloud"]
    order = dict.fromkeys(verb for verb in verbs if verb != "describe")
    assert list(order) == ["create", "ssh", "scp", "delete"]
    assert {words[0] for words in shown} == {"gcloud", "tar"}  # tar unpacks what is collected
    assert "s3cr3t" not in ended.text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "Demo", *POD, "--", "train"], "lower-case"),
        (["run", "demo", *POD], "no command given"),
        (["run", "demo", *POD, "--", "--gin_file=x"], "no command given"),
        (["run", "demo", *POD, "--env=NOWHERE", "--", "train"], "NOWHERE"),
        (["run", "demo", *POD, "--mount=bucket", "--", "train"], "BUCKET=/FOLDER"),
        (["run", "demo", "--zone=z", "--accelerator_type=v5e", "--", "train"], "v5litepod-64"),
        (["status", "unknown"], "not launched from here"),
    ],
)
def test_a_mistake_is_one_line_and_costs_nothing(cloud, words, said):
    ended = cloud.launch("tpu_vm.py", *words)
    assert ended.code == 1
    assert said in ended.text
    assert "Traceback" not in ended.text
    assert cloud.commands() == []


def test_a_record_on_other_machines_is_not_overwritten(cloud):
    assert run(cloud, flags=["--delete=never"]).code == 0
    words = ["--zone=other", "--accelerator_type=v6e-16", "--poll=0.05", "--", "train"]
    ended = cloud.launch("tpu_vm.py", "run", "demo", *words)
    assert ended.code == 1
    assert "delete it first" in ended.text
    [record] = (cloud.folder / "launches").iterdir()
    assert json.loads(record.read_text())["request"]["zone"] == "z"


@pytest.mark.slow
def test_gclouds_own_parser_takes_every_command(cloud):
    """Its linter reads commands and runs none; needs no account."""
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        pytest.skip("gcloud is not installed")
    network = ["--network=n", "--subnetwork=s", "--service_account=a@b", "--internal_ip"]
    ended = run(cloud, flags=["--dry_run", "--slices=2", "--project=p", *network])
    shown = [line[2:] for line in ended.text.splitlines() if line.startswith("$ gcloud")]
    for words in {tuple(line.split()[3:5]): shlex.split(line) for line in shown}.values():
        # The linter wants quotes behind the equals sign.
        parts = [word.partition("=") for word in words]
        command = " ".join(
            f"{name}{sign}{shlex.quote(value)}" if sign else name for name, sign, value in parts
        )
        done = subprocess.run(
            [gcloud, "meta", "lint-gcloud-commands", f"--command-string={command}"],
            capture_output=True,
            text=True,
            check=True,
        )
        [verdict] = json.loads(done.stdout)
        assert verdict["success"], (command, verdict["error_message"])
