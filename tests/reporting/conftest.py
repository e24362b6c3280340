"""A model directory as a run leaves it, without running."""

import json

import pytest


@pytest.fixture
def make_run(tmp_path):
    """Write a run's records: make_run("one", losses=[3.0, 2.0], settings={"A.b": "1"})."""

    def make(name, *, losses=(3.0, 2.0, 1.5), settings=None, results=None):
        directory = tmp_path / name
        launch = directory / "launches" / "from_step_00000000"
        launch.mkdir(parents=True)
        lines = []
        for step, loss in zip(range(10, 10 * len(losses) + 1, 10), losses, strict=True):
            numbers = {"loss": loss, "learning_rate": 0.01, "tokens_per_second": 100.0 * step}
            lines += [
                {"step": step, "kind": "train", **numbers, "update_norm/encoder": 0.5},
                {"step": step, "kind": "train/task_a", "loss": loss + 1, "tokens": 5},
                {"step": step, "kind": "epochs", "task_a": step / 100, "task_b": step / 50},
                {"step": step, "kind": "examples", "task_a": 3 * step, "task_b": step},
                {"step": step, "kind": "validation/task_a", "loss": loss + 0.1, "accuracy": 0.25},
            ]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        config = [f"{key} = {value}" for key, value in (settings or {}).items()]
        (launch / "operative_config.gin").write_text("# Parameters\n" + "\n".join(config) + "\n")
        (launch / "mixture.json").write_text(json.dumps({"task_a": 0.7, "task_b": 0.3}))
        (launch / "versions.json").write_text(json.dumps({"jax": "0.10.2"}))
        if results is not None:
            (directory / "results.json").write_text(json.dumps(results))
        return directory

    return make
