"""Where a run begins: its own checkpoint, another run's weights, an import, or scratch.

With a learning rate of 0 a step changes no weight, so what a run started with can be read after it.
"""

from pathlib import Path

import numpy as np
import pytest

from t5x_lite.checkpoints.policy import CheckpointPolicy
from t5x_lite.checkpoints.run_directory import recorded_model
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation.validation_loss import Evaluation
from t5x_lite.import_export.import_hf import import_weights
from t5x_lite.trainer.resume import InitFrom
from t5x_lite.training.schedules import Constant

REFERENCES = Path(__file__).resolve().parents[1] / "models" / "references"
UNSEEN = {"evaluation": Evaluation(period=100, max_examples=1, samples=0)}
STILL = {"learning_rate": Constant(value=0.0), **UNSEEN}


def of_weights(state):
    return {path: leaf for path, leaf in state.items() if path.startswith("['params']")}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_array_equal(left[path], right[path], err_msg=path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def source(trained, train_small):
    """A finished run of four steps; trained once."""
    train_small(trained, steps=4, **UNSEEN)
    return trained


def test_a_run_starts_with_the_weights_of_another_and_counts_from_zero(
    tmp_path, source, train_small, weights
):
    init_from = InitFrom(model_dir=str(source))
    train_small(tmp_path / "new", steps=1, init_from=init_from, mesh={"data": 8}, **STILL)
    started = weights(tmp_path / "new")
    assert_equal(of_weights(started), of_weights(weights(source)))
    assert started["['step']"] == 1


def test_a_run_may_count_on_from_where_its_weights_come_from(
    tmp_path, source, train_small, weights
):
    init_from = InitFrom(model_dir=str(source), keep_step=True)
    train_small(tmp_path / "new", steps=5, init_from=init_from, **STILL)
    assert weights(tmp_path / "new")["['step']"] == 5
    assert_equal(of_weights(weights(tmp_path / "new")), of_weights(weights(source)))


def test_relative_steps_count_from_where_the_weights_come_from_at_every_start(
    tmp_path, source, train_small, weights, log_lines
):
    """Three steps after the four: killed after one of them, the run still ends at seven."""
    init_from = InitFrom(model_dir=str(source), keep_step=True, relative_steps=True)
    train_small(tmp_path / "new", steps=1, init_from=init_from, **STILL)
    assert weights(tmp_path / "new")["['step']"] == 5
    train_small(tmp_path / "new", steps=3, init_from=init_from, **STILL)
    assert "resuming from step 5 of 7" in "\n".join(log_lines)
    assert weights(tmp_path / "new")["['step']"] == 7


def test_weights_that_are_not_asked_for_start_fresh(tmp_path, source, train_small, weights):
    init_from = InitFrom(model_dir=str(source), param_regex="encoder/.*")
    train_small(tmp_path / "new", steps=1, init_from=init_from, **STILL)
    train_small(tmp_path / "fresh", steps=1, **STILL)
    started, taken, fresh = (weights(p) for p in (tmp_path / "new", source, tmp_path / "fresh"))
    for path in of_weights(started):
        expected = taken if path.startswith("['params']['encoder']") else fresh
        np.testing.assert_array_equal(started[path], expected[path], err_msg=path)


def test_a_run_that_has_saved_goes_on_with_its_own_weights(tmp_path, source, train_small, weights):
    init_from = InitFrom(model_dir=str(source))
    train_small(tmp_path / "new", steps=4, init_from=init_from, **UNSEEN)
    train_small(tmp_path / "new", steps=6, init_from=init_from, **UNSEEN)
    train_small(tmp_path / "undisturbed", steps=6, init_from=init_from, **UNSEEN)
    assert_equal(weights(tmp_path / "new"), weights(tmp_path / "undisturbed"))


def test_an_imported_directory_is_trained_on_from_the_step_it_was_imported_as(
    tmp_path, train_small, weights
):
    import_weights(
        source=str(REFERENCES / "t5_1_1"), model_dir=str(tmp_path / "run"), step=8, vocab_size=512
    )
    before = weights(tmp_path / "run")
    model = vars(recorded_model(tmp_path / "run"))
    train_small(tmp_path / "run", steps=9, model=model, mesh={"data": 8}, **STILL)
    after = weights(tmp_path / "run")
    assert after["['step']"] == 9
    assert_equal(of_weights(after), of_weights(before))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(model_dir="/nowhere"), "/nowhere holds no checkpoints"),
        (dict(step=3), "has no checkpoint of step 3; the steps there: 4"),
        (dict(param_regex="encode/.*"), "param_regex='encode/.*' matches none of the weights"),
    ],
)
def test_a_source_that_cannot_serve_is_refused(changes, said, tmp_path, source, train_small):
    init_from = InitFrom(**{"model_dir": str(source), **changes})
    with pytest.raises(ConfigError, match=said) as raised:
        train_small(tmp_path / "new", steps=1, init_from=init_from)
    assert set(raised.value.names) & {f"InitFrom.{name}" for name in changes}
    assert not (tmp_path / "new").exists()


def test_weights_of_another_shape_are_listed(tmp_path, source, train_small):
    init_from = InitFrom(model_dir=str(source))
    with pytest.raises(
        ConfigError, match=r"decoder/layers/mlp/wo/kernel \[2, 128, 32\] \(there: \[2, 64, 32\]\)"
    ):
        train_small(tmp_path / "new", steps=1, init_from=init_from, model={"mlp_dim": 128})


def test_an_expression_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="is not a regular expression"):
        InitFrom(model_dir="run", param_regex="encoder[")


def harm(checkpoint):
    """Flip one bit of the largest file."""
    path = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_corrupt_checkpoint_is_quarantined_and_the_one_before_it_restored(
    tmp_path, train_small, weights, log_lines
):
    every_step = {**UNSEEN, "checkpoints": CheckpointPolicy(period=1, keep=None)}
    train_small(tmp_path / "undisturbed", steps=4, **every_step)
    train_small(tmp_path / "run", steps=3, **every_step)
    harm(tmp_path / "run" / "checkpoints" / "3")
    log_lines.clear()
    train_small(tmp_path / "run", steps=4, **every_step)
    logged = "\n".join(log_lines)
    assert "checkpoint of step 3 is corrupt" in logged
    assert "resuming from step 2 of 4" in logged
    assert len(list((tmp_path / "run" / "quarantine").glob("3.*"))) == 1
    assert_equal(weights(tmp_path / "run"), weights(tmp_path / "undisturbed"))


def test_a_run_whose_only_checkpoint_is_corrupt_does_not_start_again_unasked(tmp_path, train_small):
    train_small(tmp_path, steps=1, **UNSEEN)
    harm(tmp_path / "checkpoints" / "1")
    said = r"step 1 is corrupt \(.* is not what was written\) and the only checkpoint"
    with pytest.raises(ConfigError, match=said):
        train_small(tmp_path, steps=2, **UNSEEN)
