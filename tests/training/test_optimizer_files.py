"""Every file of gin_configs/optimizers gives an optimizer and a schedule that work on a T5."""

from pathlib import Path

import gin
import numpy as np
import pytest

from t5x_lite.cli import gin_config
from t5x_lite.models.transformer import abstract_model

GIN_CONFIGS = Path(__file__).resolve().parents[2] / "gin_configs"
FILES = sorted((GIN_CONFIGS / "optimizers").glob("*.gin"))
STEPS = 50_000


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def given(request):
    """What OPTIMIZER and LEARNING_RATE are, with TRAIN_STEPS set."""
    gin.clear_config()
    name = request.param.relative_to(GIN_CONFIGS).as_posix()
    gin_config.parse([name], [f"--gin.TRAIN_STEPS={STEPS}"], ["", str(GIN_CONFIGS)])
    macros = ("OPTIMIZER", "LEARNING_RATE")
    yield [gin.query_parameter(f"{name}/macro.value").scoped_configurable_fn() for name in macros]
    gin.clear_config()


def test_the_file_gives_an_optimizer_for_every_weight(given, tiny_config):
    optimizer, _ = given
    _, shapes, axes = abstract_model(tiny_config())
    bound = optimizer.for_weights(shapes, axes)
    assert set(bound.state_axes) == {"encoder", "decoder", "token_embedder", "head"}


def test_the_file_gives_a_rate_from_start_to_end(given):
    _, schedule = given
    rates = np.asarray(schedule(np.arange(0, STEPS, 500)))
    assert np.isfinite(rates).all()
    assert (rates > 0).all()
    assert rates.max() < 0.021


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_header_says_what_was_published(path):
    header = path.read_text().split("from __gin__")[0]
    assert "Gives OPTIMIZER and LEARNING_RATE" in header
    assert "Published" in header
