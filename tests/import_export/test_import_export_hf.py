"""`t5x_lite import` and `t5x_lite export`, as a user types them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.checkpoints.checkpointer import Checkpointer
from t5x_lite.checkpoints.policy import CheckpointPolicy
from t5x_lite.checkpoints.run_directory import recorded_model
from t5x_lite.cli import gin_config, main
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.transformer import abstract_model
from t5x_lite.training.optimizers import Adafactor
from t5x_lite.training.schedules import Constant
from t5x_lite.training.state import TrainState
from t5x_lite.training.step import Loss, make_train_step

REFERENCES = Path(__file__).resolve().parents[1] / "models" / "references"
FAMILIES = ("t5_1_1", "switch", "bert", "gpt2")


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A function that runs the command line with an empty gin."""
    import gin

    def run(name, **flags):
        gin.clear_config()
        given = [f"--gin.{key}={value}" for key, value in flags.items()]
        main.main([name, *given])

    monkeypatch.chdir(tmp_path)
    yield run
    gin.clear_config()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_imported_and_exported_is_the_same_file(family, command, tmp_path, capsys):
    source = REFERENCES / family
    command("import", SOURCE=source, MODEL_DIR="run", **{"import_weights.step": 1000})
    command("export", MODEL_DIR="run", DESTINATION="out")
    said = capsys.readouterr().out
    assert "as step 1,000 of run; the model's gin file is run/model.gin" in said
    assert "loaded again, it gives the same logits" in said
    ours, theirs = (Path(d, "model.safetensors").read_bytes() for d in ("out", source))
    assert ours == theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_file_of_an_import_gives_the_model_that_was_imported(family, command, tmp_path):
    import gin

    command("import", SOURCE=REFERENCES / family, MODEL_DIR="run")
    gin.clear_config()
    gin_config.parse(["run/model.gin"], [], [""])
    written = gin.get_configurable(TransformerConfig)()
    recorded = recorded_model(Path("run"))
    assert abstract_model(written)[1] == abstract_model(recorded)[1]
    assert written.moe == recorded.moe
    assert written.dropout_rate == {"bert": 0.1, "gpt2": 0.1}.get(family, 0.0)  # config.json
    gin.parse_config("config.dropout_rate.run = 0.25")  # DROPOUT_RATE of a run file
    assert gin.get_configurable(TransformerConfig)().dropout_rate == 0.25


def test_training_can_start_from_what_was_imported(command, batch_for):
    command("import", SOURCE=REFERENCES / "gpt2", MODEL_DIR="run", **{"import_weights.step": 7})
    config = recorded_model(Path("run"))
    graphdef, shapes, axes = abstract_model(config)
    with Checkpointer("run", CheckpointPolicy()) as saved:
        assert saved.latest_step == 7
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        placed = jax.tree.map(lambda leaf: leaf.update(sharding=place), shapes)
        params = saved.restore_weights(7, placed)
    optimizer = Adafactor().for_weights(shapes, axes)
    step = make_train_step(graphdef, optimizer, Constant(value=0.01), Loss(), seed=0)
    state = TrainState(jnp.int32(7), params, optimizer.init(params))
    state, metrics = jax.jit(step)(state, batch_for(config, 0, rows=4))
    assert int(state.step) == 8
    assert np.isfinite(metrics["loss"])


def test_a_trained_run_is_exported_without_its_optimizer(command, shipped, plausible_params):
    """Its checkpoint holds more than weights, and was not made by an import."""
    from safetensors.numpy import load_file

    from t5x_lite.checkpoints.run_directory import write_launch

    config = shipped("t5_1_1/tiny")
    params = jax.tree.map(jnp.asarray, plausible_params(config))
    state = TrainState(jnp.int32(3), params, {"v": jax.tree.map(jnp.zeros_like, params)})
    with Checkpointer("run", CheckpointPolicy()) as saved:
        saved.save(3, state, {"position": {"window": 0}}, force=True)
        saved.wait()
    write_launch(Path("run"), config, start_step=0, describe_config=str)
    command("export", MODEL_DIR="run", DESTINATION="out", **{"export_weights.vocab_size": 500})
    written = load_file("out/model.safetensors")
    np.testing.assert_array_equal(
        written["shared.weight"], params["token_embedder"]["embedding"][:500]
    )


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        (
            "import",
            dict(SOURCE="gone", MODEL_DIR="run"),
            "gone/config.json is not readable as JSON",
        ),
        ("import", dict(MODEL_DIR="run"), "SOURCE must be set"),
        ("export", dict(MODEL_DIR="gone", DESTINATION="out"), "does not describe a model"),
    ],
)
def test_mistakes_are_one_line(name, flags, said, command, capsys):
    with pytest.raises(SystemExit) as ended:
        command(name, **flags)
    assert ended.value.code == 2
    text = capsys.readouterr().err.strip()
    assert text.startswith(f"t5x_lite {name}: ")
    assert said in text
    assert "\n" not in text


def test_an_import_never_mixes_with_a_run_that_is_there(command, capsys):
    command("import", SOURCE=REFERENCES / "gpt2", MODEL_DIR="run")
    with pytest.raises(SystemExit):
        command("import", SOURCE=REFERENCES / "gpt2", MODEL_DIR="run")
    assert "already has a checkpoint of step 0; expected a new directory" in capsys.readouterr().err
