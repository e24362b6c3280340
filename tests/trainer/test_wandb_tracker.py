"""Records on Weights & Biases, with a stand-in for the service that remembers what it is told."""

import sys
import types

import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.trainer.wandb_tracker import WeightsAndBiases


@pytest.fixture
def service(monkeypatch):
    """A module `wandb` whose runs are kept in `service.runs`, each with what was logged."""

    class TrainingLoop:
        def __init__(self, settings):
            self.settings, self.logged, self.exit_code = settings, [], None

        def log(self, numbers, step):
            self.logged.append((step, numbers))

        def finish(self, exit_code):
            self.exit_code = exit_code

    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace(name="wandb")
    module.runs = []
    module.init = lambda **settings: module.runs.append(TrainingLoop(settings)) or module.runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_run_and_its_continuation_send_their_records_to_one_place(service, train_small, tmp_path):
    tracker = WeightsAndBiases(project="t5", mode="offline")
    for steps in (2, 3):
        train_small(tmp_path, steps=steps, tracker=tracker, log_every_steps=1)
    first, second = service.runs
    assert first.settings["id"] == second.settings["id"]
    assert (first.settings["project"], first.settings["resume"]) == ("t5", "allow")
    assert {step for step, _ in first.logged} == {1, 2}
    assert {step for step, _ in second.logged} == {3}
    sent = {name for _, numbers in first.logged for name in numbers}
    assert {"train/loss", "epochs/embedded_text", "validation/embedded_text/loss"} <= sent
    assert first.exit_code == second.exit_code == 0


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 't5x_lite\[wandb\]'"):
        WeightsAndBiases(project="t5")


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match="expected one of online, offline, disabled"):
        WeightsAndBiases(project="t5", mode="sometimes")
