"""Numbers that go wrong: noted; a run goes back and skips what it read, on every start alike."""

import json

import numpy as np
import pytest

from t5x_lite.checkpoints.policy import CheckpointPolicy
from t5x_lite.debugging.compare import compare
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation.validation_loss import Evaluation
from t5x_lite.trainer.anomaly_guard import (
    AnomalyDetector,
    AnomalyGuard,
    Decision,
    Rollback,
    StepNumbers,
    data_jumps,
    is_discarded,
)
from t5x_lite.training.callbacks import Callback

NOWHERE = {"format": 1, "window": 0, "row": 0, "drawn": {}}


def verdicts(guard, losses):
    """Judge losses as steps 1, 2 ...; None is a skipped step. Returns {step: first bad}."""
    detector, skipped, rollbacks = AnomalyDetector(guard), 0, {}
    for step, loss in enumerate(losses, 1):
        skipped += loss is None
        if anomaly := detector.add(StepNumbers(step, loss or 0.0, 1.0, skipped)):
            rollbacks[step] = anomaly[0]
        detector = AnomalyDetector(guard, detector.state_json)  # as after a restart
    return rollbacks


def test_steps_that_are_not_finite_are_borne_up_to_a_number_in_a_hundred_steps():
    guard = AnomalyGuard(nonfinite_steps=3)
    good, bad = [1.0], [None]
    assert verdicts(guard, [*good * 5, *bad * 2, *good * 5]) == {}
    assert verdicts(guard, [*good * 5, *bad * 2, *good * 5, *bad]) == {13: 6}
    assert verdicts(guard, [*bad * 2, *good * 120, *bad]) == {}
    assert verdicts(guard, [*good * 5, float("nan"), float("inf"), *bad]) == {8: 6}
    assert verdicts(AnomalyGuard(nonfinite_steps=None), bad * 50) == {}


def test_a_spike_is_several_high_losses_in_a_row():
    guard = AnomalyGuard(spike_deviations=8, spike_steps=3, history=16)
    noise = list(5 + np.random.default_rng(0).normal(size=40) * 0.1)
    assert verdicts(guard, [*noise, 9.0, 9.0, *noise]) == {}
    assert verdicts(guard, [*noise, 9.0, 9.0, 9.0]) == {43: 41}
    assert verdicts(guard, [*noise, 9.0, 9.0, *noise, 9.0, 9.0]) == {}
    assert verdicts(guard, [*noise, *(x - 3 for x in noise)]) == {}  # falling is no spike
    assert verdicts(guard, [*noise[:10], 9.0, 9.0, 9.0]) == {}  # too little is known yet
    assert verdicts(AnomalyGuard(), [*noise, *[100.0] * 20]) == {}


def place(window):
    return {**NOWHERE, "window": window}


def test_a_later_decision_to_go_further_back_takes_the_place_of_earlier_ones():
    one, two = Decision(12, "", 8, place(1)), Decision(30, "", 20, place(2))
    further = Decision(40, "", 4, place(3))
    assert data_jumps([one, two], 0, 0) == {8: place(1), 20: place(2)}
    assert data_jumps([one, two], 8, 1) == {20: place(2)}  # saved under the first
    assert data_jumps([one, two], 20, 1) == {20: place(2)}
    assert data_jumps([one, two], 24, 2) == {}
    assert data_jumps([one, two, further], 0, 0) == {4: place(3)}


def test_checkpoints_from_before_a_decision_are_given_up_and_those_since_are_not():
    taken = [Decision(12, "", 8, NOWHERE)]
    assert is_discarded(taken, 12, {"decisions": 0})
    assert not is_discarded(taken, 8, {"decisions": 0})
    assert not is_discarded(taken, 12, {"decisions": 1})


class Poisoned(Callback):
    """Makes the batches of some draws from the data, counted from 1, not finite.

    A run draws in order until it rolls back, and prefetches no less than it trained on: a position
    that was never seen is that of the next draw. One object may serve several runs of the same
    data: they begin at the same position.
    """

    def __init__(self, *draws):
        self._draws, self._positions = draws, []

    def on_batch(self, step, batch, before):
        position = json.dumps(before, sort_keys=True)
        if position not in self._positions:
            self._positions.append(position)
        if self._positions.index(position) + 1 not in self._draws:
            return batch
        weights = batch["decoder_loss_weights"]
        return {**batch, "decoder_loss_weights": np.full_like(weights, np.nan)}


class KilledInRollback(Callback):
    """Ends the process, as Ctrl-C does, when a rollback is decided and nothing is restored yet."""

    def __exit__(self, kind, *_):
        if kind is Rollback:
            raise KeyboardInterrupt


QUIET = {
    "evaluation": Evaluation(period=100, max_examples=1, samples=0),
    "checkpoints": CheckpointPolicy(period=2, keep=None),
}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_step_that_is_not_finite_is_noted_with_its_examples_and_key(
    tmp_path, train_small, log_lines
):
    train_small(tmp_path, steps=4, seed=7, callbacks=[Poisoned(3)], **QUIET)
    assert "step 3 is not finite" in "\n".join(log_lines)
    (noted,) = lines(tmp_path / "anomalies.jsonl")
    assert noted["step"] == 3
    assert noted["key"] == {"seed": 7, "fold_in": 2}
    assert {task for task, *_ in noted["examples"]} <= {
        "embedded_text",
        "embedded_summarize",
        "embedded_name",
    }
    assert len({tuple(example[:3]) for example in noted["examples"]}) == len(noted["examples"])
    assert {row for *_, row in noted["examples"]} == set(range(8))
    assert not (tmp_path / "decisions.jsonl").exists()


def test_a_run_goes_back_skips_the_data_and_a_restart_decides_the_same(
    tmp_path, train_small, weights, capsys, log_lines
):
    """Batches 5 and 6 are bad: back to step 4, and on with batch 7."""
    guard = AnomalyGuard(nonfinite_steps=2)
    callbacks = [Poisoned(5, 6)]
    train_small(tmp_path / "run", steps=8, anomaly_guard=guard, callbacks=callbacks, **QUIET)
    reason = "2 of 100 steps were not finite, first at step 5"
    assert f"rolling back from step 6 to step 4: {reason}" in "\n".join(log_lines)
    (decision,) = lines(tmp_path / "run" / "decisions.jsonl")
    assert (decision["step"], decision["back_to"]) == (6, 4)
    steps = [line["step"] for line in lines(tmp_path / "run" / "receipts.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert weights(tmp_path / "run")["['skipped']"] == 0

    train_small(tmp_path / "stopped", steps=5, anomaly_guard=guard, callbacks=callbacks, **QUIET)
    train_small(tmp_path / "stopped", steps=8, anomaly_guard=guard, callbacks=callbacks, **QUIET)
    for name, array in weights(tmp_path / "stopped").items():
        np.testing.assert_array_equal(array, weights(tmp_path / "run")[name], err_msg=name)
    compare(run_a=str(tmp_path / "run"), run_b=str(tmp_path / "stopped"))
    assert "the runs are identical in 8 common steps" in capsys.readouterr().out


def test_a_run_killed_while_going_back_ends_as_one_that_was_not(tmp_path, train_small, weights):
    guard = AnomalyGuard(nonfinite_steps=2)
    callbacks = [Poisoned(5, 6)]
    train_small(tmp_path / "run", steps=8, anomaly_guard=guard, callbacks=callbacks, **QUIET)
    killed = [*callbacks, KilledInRollback()]
    with pytest.raises(KeyboardInterrupt):
        train_small(tmp_path / "killed", steps=8, anomaly_guard=guard, callbacks=killed, **QUIET)
    train_small(tmp_path / "killed", steps=8, anomaly_guard=guard, callbacks=callbacks, **QUIET)
    for name, array in weights(tmp_path / "killed").items():
        np.testing.assert_array_equal(array, weights(tmp_path / "run")[name], err_msg=name)


def test_a_run_that_goes_back_too_often_ends_with_an_error(tmp_path, train_small):
    callbacks = [Poisoned(*range(3, 40))]
    guard = AnomalyGuard(nonfinite_steps=2, max_rollbacks=2)
    with pytest.raises(ConfigError, match=r"2 of 100 steps were not finite .* after 2 rollbacks"):
        train_small(tmp_path, steps=9, anomaly_guard=guard, callbacks=callbacks, **QUIET)
