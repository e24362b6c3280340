"""Every family learns on a mesh of eight devices, and starts from the weights its paper says."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models.transformer import abstract_model, initialize
from t5x_lite.partitioning import make_mesh, named_sharding
from t5x_lite.training.optimizers import Optimizer
from t5x_lite.training.schedules import Constant
from t5x_lite.training.state import TrainState, state_shardings
from t5x_lite.training.step import Loss, make_train_step
from t5x_lite.training.step_metrics import global_norm
from t5x_lite.tree_paths import flatten

MESH = dict(data=2, fsdp=2, tensor=2)
EXPERT_MESH = dict(data=2, expert=2, tensor=2)
FAMILIES = ("t5_1_1", "switch", "bert", "gpt2", "llama")
# Programs made of the same parts, or the same with other sizes.
ALSO = ("t5_1_0", "mt5", "umt5", "byt5", "roberta", "bart")
ROWS, LENGTH, STEPS = 8, 16, 20
# Steps of one length down the gradient: what differs here is the model, and this compiles fast.
DESCENT = Optimizer(
    init=lambda params: {},
    update=lambda grads, state, params, step, rate: (
        jax.tree.map(lambda p, g: p - rate / global_norm(grads) * g, params, grads),
        state,
    ),
    state_axes={},
)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@pytest.fixture(scope="module")
def trained(shipped, plausible_params, batch_for):
    """A function that trains a family's tiny model on one batch: (losses, compiled text)."""

    @functools.cache
    def train(family, mesh_items, **changes):
        config = shipped(f"{family}/tiny", **changes)
        mesh = make_mesh(dict(mesh_items))
        graphdef = abstract_model(config)[0]
        placed = state_shardings(mesh, config, DESCENT)
        everywhere = named_sharding(mesh, ())
        step = make_train_step(graphdef, DESCENT, Constant(value=0.5), Loss(), seed=0)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(placed, everywhere))
        batch = batch_for(config, 5, rows=ROWS, length=LENGTH)
        place = {1: ("batch",), 2: ("batch", "length")}
        batch = {
            k: jax.device_put(v, named_sharding(mesh, place[v.ndim])) for k, v in batch.items()
        }
        params = jax.tree.map(lambda w: 0.5 * w, plausible_params(config))
        state = jax.device_put(TrainState(jnp.int32(0), params, {}), placed)
        losses = []
        with jax.set_mesh(mesh):
            compiled = jitted.lower(state, batch).compile(compiler_options=QUICK)
            for _ in range(STEPS):
                state, metrics = compiled(state, batch)
                losses.append(float(metrics["loss"] / metrics["weight"]))
        return losses, compiled.as_text()

    return train


@pytest.mark.parametrize(
    "family", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in ALSO)]
)
def test_every_family_learns_on_a_mesh_of_data_fsdp_and_tensor(family, trained):
    losses, _ = trained(family, tuple(MESH.items()))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]
    assert np.mean(np.diff(losses) < 0) > 0.8


def test_switch_learns_with_its_experts_spread_and_sends_tokens_by_all_to_all(trained):
    losses, text = trained("switch", tuple(EXPERT_MESH.items()))
    assert losses[-1] < 0.8 * losses[0]
    assert re.search(r"all-to-all", text)
    _, without = trained("switch", tuple(MESH.items()))
    assert "all-to-all" not in without


def test_where_experts_lie_changes_no_loss(trained):
    """Up to the order of float32 sums, over twenty steps."""
    spread, _ = trained("switch", tuple(EXPERT_MESH.items()))
    whole, _ = trained("switch", tuple(MESH.items()))
    np.testing.assert_allclose(spread, whole, rtol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_plain_normal_initialisers_have_their_deviation(family, shipped):
    """0.02 for all; what goes into GPT-2's residual is divided by sqrt(2 * layers)."""
    config = shipped(f"{family}/tiny", emb_dim=64, mlp_dim=128, head_dim=32)
    initial = flatten(initialize(config, jax.random.key(0)))
    kinds = {"scale": 0, "bias": 0, "matrix": 0}
    for path, array in initial.items():
        if path.endswith("scale"):
            kinds["scale"] += 1
            assert (array == 1).all(), path
        elif path.endswith("bias"):
            kinds["bias"] += 1
            assert (array == 0).all(), path
        else:
            kinds["matrix"] += 1
            into_residual = re.search(r"(attention/out|mlp/wo)/kernel", path)
            layers = config.num_decoder_layers
            shrink = (2 * layers) ** -0.5 if config.scale_residual_init and into_residual else 1
            tolerance = 5 / np.sqrt(2 * array.size)
            assert array.std() == pytest.approx(0.02 * shrink, rel=tolerance), path
    assert all(count > 2 for count in kinds.values()), kinds
