"""Fine-tuning's gin files: what they give `train`, and that each trains what it says."""

import re
from pathlib import Path

import gin
import pytest

from t5x_lite.cli import gin_config
from t5x_lite.errors import ConfigError
from t5x_lite.models.transformer import abstract_model
from t5x_lite.trainer.batch_size import rows_of_tokens
from t5x_lite.trainer.train import train
from t5x_lite.tree_paths import flatten

GIN_CONFIGS = Path(__file__).resolve().parents[2] / "gin_configs"


@pytest.fixture
def given():
    """What a recipe with more files and flags gives: given("tuning/prompt.gin") -> bindings."""

    def read(*files, recipe="recipes/tiny_finetune.gin", flags=()):
        gin.clear_config()
        files = [recipe, *files]
        flags = ["--gin.MODEL_DIR=runs/new", *flags]
        search = ["", str(GIN_CONFIGS)]
        gin_config.check_macros(gin_config.read(files, flags, search), "train")
        gin_config.parse(files, flags, search)
        gin_config.check_values(train)
        names = ("OPTIMIZER", "LEARNING_RATE")
        macros = [gin.query_parameter(f"{name}/macro.value") for name in names]
        return (
            gin.get_configurable("TransformerConfig")(),
            *(macro.scoped_configurable_fn() for macro in macros),
            gin.get_configurable("InitFrom")(),
        )

    yield read
    gin.clear_config()


def trained(model, optimizer):
    """The paths of the weights that an optimizer changes."""
    _, shapes, axes = abstract_model(model)
    return flatten(shapes).keys() - optimizer.for_weights(shapes, axes).frozen


def test_the_recipe_is_t5s(given):
    model, optimizer, rate, init = given(flags=["--gin.Constant.value=0.001"])
    assert model.dropout_rate == 0.1
    assert float(rate(0)) == float(rate(10**6)) == pytest.approx(1e-3)
    assert (init.keep_step, init.relative_steps) == (False, True)
    assert trained(model, optimizer) == flatten(abstract_model(model)[1]).keys()


def test_the_run_file_has_the_papers_numbers():
    bindings = gin_config.read(["runs/finetune.gin"], [], [str(GIN_CONFIGS)])
    final = {binding.name: binding.value for binding in bindings}
    assert final["TRAIN_STEPS"] == 2**18
    assert final["BATCH_TOKENS"] == 2**16
    assert final["CHECKPOINT_PERIOD"] == final["EVAL_PERIOD"] == 5000
    assert final["schedules.Constant.value"] == 1e-3


@pytest.fixture
def dropout_of():
    """The dropout rate that a run passes to its model: dropout_of(files, flags) -> 0.1."""

    def read(files, flags=()):
        gin.clear_config()
        rest = ["objectives/span_corruption.gin", "tasks/glue.gin", "optimizers/adafactor.gin"]
        settings = {"MODEL_DIR": "new", "INITIAL_CHECKPOINT_PATH": "old", "TRAIN_STEPS": 1}
        if "runs/finetune.gin" not in files:
            settings |= {"BATCH_SIZE": 8}
            del settings["INITIAL_CHECKPOINT_PATH"]
        flags = [*(f"--gin.{name}={value}" for name, value in settings.items()), *flags]
        search = ["", str(GIN_CONFIGS)]
        gin_config.check_macros(gin_config.read([*rest, *files], flags, search), "train")
        gin_config.parse([*rest, *files], flags, search)
        return gin_config.arguments(train)["model"].dropout_rate

    yield read
    gin.clear_config()


@pytest.mark.parametrize("order", [1, -1], ids=["model first", "run first"])
@pytest.mark.parametrize(
    ("model", "run", "rate"),
    [
        ("models/t5_1_0/base.gin", "runs/pretrain.gin", 0.1),
        ("models/t5_1_1/base.gin", "runs/pretrain.gin", 0.0),
        ("models/t5_1_0/base.gin", "runs/finetune.gin", 0.1),
        ("models/t5_1_1/base.gin", "runs/finetune.gin", 0.1),
        ("models/mt5/small.gin", "runs/finetune.gin", 0.1),
    ],
)
def test_dropout_does_not_depend_on_the_order_of_the_files(dropout_of, model, run, rate, order):
    files = [model, run][::order]
    assert dropout_of(files) == rate
    assert dropout_of(files, ["--gin.DROPOUT_RATE=0.25"]) == 0.25
    assert dropout_of(files, ["--gin.TransformerConfig.dropout_rate=0.5"]) == 0.5


def test_a_model_file_with_a_number_of_its_own_is_fine_tuned_with_dropout(dropout_of, tmp_path):
    (tmp_path / "model.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        "from t5x_lite.models import config\n"
        'include "models/t5_1_1/base.gin"\n'
        "config.TransformerConfig.dropout_rate = 0.0\n"
    )
    model = str(tmp_path / "model.gin")
    assert dropout_of([model, "runs/pretrain.gin"]) == 0.0
    assert dropout_of([model, "runs/finetune.gin"]) == 0.1


def test_a_dropout_rate_that_cannot_be_is_named(dropout_of):
    with pytest.raises(
        ConfigError, match=r"DROPOUT_RATE is 1.5; expected a number in \[0, 1\)"
    ) as error:
        dropout_of(["models/t5_1_1/base.gin", "runs/finetune.gin"], ["--gin.DROPOUT_RATE=1.5"])
    assert error.value.names == ("DROPOUT_RATE",)


def test_adapters_and_norms_are_trained(given):
    model, optimizer, _, init = given("tuning/adapters.gin")
    assert model.adapter_dim == 128
    paths = trained(model, optimizer)
    assert {path.split("/")[-2] for path in paths} == {
        *("up", "down", "norm", "self_attention_norm", "mlp_norm")
    }
    assert re.fullmatch(init.param_regex, "encoder/layers/adapter/up/kernel") is None
    assert re.fullmatch(init.param_regex, "encoder/layers/mlp/wo/kernel")


def test_a_prompt_alone_is_trained(given):
    model, optimizer, rate, _ = given("tuning/prompt.gin")
    assert trained(model, optimizer) == {"prompt/embedding"}
    assert model.prompt_length == 100
    assert model.dropout_rate == 0
    assert float(rate(0)) == pytest.approx(0.3)
    assert not optimizer.optimizer.multiply_by_parameter_scale
    assert gin.get_configurable("Data")().pack is False


def test_layers_are_unfrozen_one_after_another(given):
    _, optimizer, _, _ = given("tuning/gradual_unfreezing.gin", flags=["--gin.EPISODE_STEPS=50"])
    assert optimizer.episode_steps == 50


@pytest.mark.parametrize(
    ("tokens", "lengths", "rows"),
    [
        (65_536, {"inputs": 512, "targets": 84}, 128),
        (4096, {"inputs": 512, "targets": 62}, 8),
        (1000, {"inputs": 128, "targets": 512}, 1),
    ],
)
def test_a_batch_of_tokens_is_rows_of_the_longer_feature(tokens, lengths, rows):
    assert rows_of_tokens(tokens, lengths) == rows


def test_too_few_tokens_for_a_row_are_named():
    with pytest.raises(ConfigError, match="a batch of 100 tokens is shorter than a row of 512"):
        rows_of_tokens(100, {"inputs": 512, "targets": 84})
