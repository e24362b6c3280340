"""A run: stopped and continued to the bit, kept from mistakes, and honest about its end."""

import dataclasses
import json
import shutil
import signal

import numpy as np
import pytest

from t5x_lite.checkpoints.run_directory import check_model_dir, write_launch
from t5x_lite.errors import ConfigError
from t5x_lite.io.metric_writers import MetricWriters, read_metrics
from t5x_lite.models.config import TransformerConfig

STEPS = 9
DROPOUT = {"dropout_rate": 0.1}  # so that the bits depend on the dropout key too


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The model directory of a run that nothing stopped; made by the first test that needs it."""
    return tmp_path_factory.mktemp("undisturbed")


def _losses(model_dir):
    return {r["step"]: r["loss"] for r in read_metrics(model_dir) if r["kind"] == "train"}


def _assert_same_run(weights, one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    assert _losses(one) == _losses(other)


@pytest.mark.parametrize("stops", [(1,), (4,), (7,), (2, 3, 8)], ids=str)
def test_a_stopped_and_continued_run_equals_one_never_stopped_to_the_bit(
    stops, train_small, weights, undisturbed, tmp_path, log_lines
):
    if not (undisturbed / "results.json").exists():
        train_small(undisturbed, steps=STEPS, model=DROPOUT)
    for stop in stops:
        train_small(tmp_path, steps=stop, model=DROPOUT)
    log_lines.clear()
    train_small(tmp_path, steps=STEPS, model=DROPOUT)
    assert f"resuming from step {stops[-1]} of {STEPS}" in "\n".join(log_lines)
    _assert_same_run(weights, undisturbed, tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_at_hand_and_the_same_command_goes_on_from_it(
    number, code, train_small, weights, undisturbed, tmp_path, monkeypatch, log_lines
):
    if not (undisturbed / "results.json").exists():
        train_small(undisturbed, steps=STEPS, model=DROPOUT)
    write = MetricWriters.write

    def write_and_raise(self, step, kind, numbers):
        write(self, step, kind, numbers)
        if (step, kind) == (6, "train"):
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(MetricWriters, "write", write_and_raise)
        with pytest.raises(SystemExit) as stopped:
            train_small(tmp_path, steps=STEPS, model=DROPOUT)
    assert stopped.value.code == code
    assert "stopped after step 6" in "\n".join(log_lines)
    train_small(tmp_path, steps=STEPS, model=DROPOUT)
    assert "resuming from step 6" in "\n".join(log_lines)
    _assert_same_run(weights, undisturbed, tmp_path)


def test_a_checkpoint_written_while_training_went_on_holds_its_own_step(
    train_small, weights, undisturbed, tmp_path
):
    if not (undisturbed / "results.json").exists():
        train_small(undisturbed, steps=STEPS, model=DROPOUT)
    train_small(tmp_path, steps=STEPS, model=DROPOUT)
    for later in ("8", "9"):
        shutil.rmtree(tmp_path / "checkpoints" / later)
    train_small(tmp_path, steps=STEPS, model=DROPOUT)
    _assert_same_run(weights, undisturbed, tmp_path)


def test_a_finished_run_says_so_trains_no_further_and_shows_the_same_result(
    train_small, weights, tmp_path, capsys, log_lines
):
    train_small(tmp_path, steps=2)
    before, results = weights(tmp_path), (tmp_path / "results.json").read_text()
    first = capsys.readouterr().out
    log_lines.clear()
    train_small(tmp_path, steps=2)
    second = capsys.readouterr().out
    assert "the run is finished: step 2 of 2" in log_lines
    assert not [line for line in log_lines if "compiling the training step" in line]
    assert (tmp_path / "results.json").read_text() == results
    for name, array in weights(tmp_path).items():
        np.testing.assert_array_equal(array, before[name])
    table = first[first.index("Validation loss") :].splitlines()[:6]
    assert "\n".join(table) in second


def test_results_lost_between_the_last_save_and_their_writing_are_made_again(train_small, tmp_path):
    train_small(tmp_path, steps=2)
    results = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").unlink()
    train_small(tmp_path, steps=2)
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["tasks"] == results["tasks"]
    assert again["samples"] == results["samples"]


def _assert_tasks_add_up_to_the_whole(records):
    """Of the steps' losses: the mean over tasks, weighted by tokens, is the mean over tokens."""
    for whole in (record for record in records if record["kind"] == "train"):
        parts = [
            record
            for record in records
            if record["kind"].startswith("train/") and record["step"] == whole["step"]
        ]
        tokens = np.array([part["tokens"] for part in parts])
        assert len(parts) == 3
        for name in ("loss", "accuracy"):
            mean = np.sum(tokens * [part[name] for part in parts]) / tokens.sum()
            assert mean == pytest.approx(whole[name], rel=1e-5)


def test_the_loss_falls_and_every_task_is_judged_beside_its_baselines(train_small, tmp_path):
    train_small(tmp_path, steps=30, log_every_steps=5)
    losses = list(_losses(tmp_path).values())
    assert losses[-1] < losses[0] - 1.0
    _assert_tasks_add_up_to_the_whole(list(read_metrics(tmp_path)))
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["tasks"]) == {"embedded_text", "embedded_summarize", "embedded_name"}
    for task in results["tasks"].values():
        assert 0 < task["unigram"] < task["uniform"] == pytest.approx(np.log(512), rel=1e-3)
        assert 0 < task["loss"] < task["uniform"]
        assert task["tokens"] > 0
    assert {s["task"] for s in results["samples"]} == {"embedded_summarize", "embedded_name"}
    assert (tmp_path / "loss_curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("prefix", [True, False], ids=["prefix_lm", "lm"])
def test_a_decoder_without_an_encoder_trains_on_inputs_and_targets_as_one_text(
    prefix, train_small, tmp_path
):
    model = {"num_encoder_layers": 0, "prefix_attention": prefix}
    train_small(tmp_path, steps=12, model=model, log_every_steps=4, loss_on_inputs=not prefix)
    losses = list(_losses(tmp_path).values())
    assert losses[-1] < losses[0] - 0.5
    results = json.loads((tmp_path / "results.json").read_text())
    assert all(task["tokens"] > 0 for task in results["tasks"].values())


def test_a_run_leaves_its_config_versions_events_and_one_record_per_logged_step(
    train_small, tmp_path
):
    train_small(tmp_path, steps=3, describe_config=lambda: "A.b = 1\n")
    train_small(tmp_path, steps=5, describe_config=lambda: "A.b = 2\n")
    launches = sorted(path.name for path in (tmp_path / "launches").iterdir())
    assert launches == ["from_step_00000000", "from_step_00000003"]
    config = tmp_path / "launches" / launches[1] / "operative_config.gin"
    assert config.read_text() == "A.b = 2\n"
    versions = json.loads((tmp_path / "launches" / launches[0] / "versions.json").read_text())
    assert {"python", "jax", "flax", "orbax-checkpoint", "git_revision"} <= set(versions)
    assert [r["step"] for r in read_metrics(tmp_path) if r["kind"] == "train"] == [1, 2, 3, 4, 5]
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_run_interrupted_after_its_checkpoint_has_no_record_twice(train_small, tmp_path):
    train_small(tmp_path, steps=4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "kind": "train", "loss": 0.0}\n{"step": 6, "ki')
    train_small(tmp_path, steps=6)
    steps = [r["step"] for r in read_metrics(tmp_path) if r["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert all(loss > 0 for loss in _losses(tmp_path).values())


def test_a_directory_of_another_model_is_refused_before_anything_is_touched(train_small, tmp_path):
    train_small(tmp_path, steps=1)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"holds a run of another model \(mlp_dim 64 -> 96\)"):
        train_small(tmp_path, steps=2, model={"mlp_dim": 96})
    assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_older_than_a_switch_had_its_default(tmp_path):
    model = TransformerConfig(
        vocab_size=8, emb_dim=8, num_heads=1, head_dim=8, mlp_dim=8, num_decoder_layers=1
    )
    write_launch(tmp_path, model, start_step=0, describe_config=str)
    path = tmp_path / "model.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({n: v for n, v in fields.items() if n != "mlp_activations"}))
    check_model_dir(tmp_path, model)
    with pytest.raises(ConfigError, match="mlp_activations"):
        check_model_dir(tmp_path, dataclasses.replace(model, mlp_activations=("relu",)))


def test_switches_that_leave_the_weights_alone_may_change_between_launches(train_small, tmp_path):
    train_small(tmp_path, steps=1)
    changed = {"dropout_rate": 0.1, "remat": "full", "scan_layers": False}
    train_small(tmp_path, steps=2, model=changed)
    assert sorted(_losses(tmp_path)) == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message", "names"),
    [
        ({"mesh": {"data": 3}}, "needs 3 devices, but 8 are visible", {"MESH"}),
        ({"mesh": {"model": 8}}, "unknown mesh axis 'model'", {"MESH"}),
        ({"batch_size": 6}, "a batch of 6 rows does not divide into the 4 parts", {"BATCH_SIZE"}),
        ({"model": {"num_heads": 1}}, "not divisible by the 2 devices along tensor", {"MESH"}),
        ({"model": {"vocab_size": 256}}, "512 ids but the model's embedding only 256 rows", None),
        ({"data": {"mixture_or_task_name": "embedded_mux"}}, "embedded_mix", None),
        ({"data": {"feature_lengths": {"inputs": 32, "targets": 2}}}, "targets", None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_cannot_work_are_refused_with_their_names(
    changes, message, names, train_small, tmp_path
):
    with pytest.raises(ConfigError, match=message) as caught:
        train_small(tmp_path / "run", steps=2, **changes)
    assert caught.value.names
    assert names is None or names <= set(caught.value.names)
    assert not (tmp_path / "run").exists()


def test_a_run_ends_with_its_data_and_says_so(train_small, tmp_path, capsys, log_lines):
    ending = {"mixture_or_task_name": "embedded_name", "on_task_exhausted": "stop"}
    for _ in range(2):  # the second start finds nothing left
        train_small(tmp_path, steps=10_000, data=ending, batch_size=64)
        assert "the data ends after step " in "\n".join(log_lines)
        log_lines.clear()
    assert "Validation loss at step" in capsys.readouterr().out
