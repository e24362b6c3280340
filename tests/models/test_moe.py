"""Switch routing against a transcription of its definition, loop by loop, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_lite.models.config import MixtureOfExperts
from t5x_lite.models.moe import SwitchMLP
from t5x_lite.partitioning import make_mesh

EXPERTS, EMBED, HIDDEN = 4, 8, 12
ALPHA, Z = 0.01, 0.001


def switch(tiny_config, *, activations=("relu",), **moe):
    options = dict(group_size=16, min_capacity=1, load_balance_loss=ALPHA, router_z_loss=Z)
    config = tiny_config(
        emb_dim=EMBED,
        mlp_dim=HIDDEN,
        mlp_activations=activations,
        moe=MixtureOfExperts(num_experts=EXPERTS, every=1, **{**options, **moe}),
    )
    layer = SwitchMLP(config, rngs=nnx.Rngs(params=0))
    rng = np.random.default_rng(1)
    for name in ("wi_0", "wi_1", "wo"):
        if hasattr(layer, name):
            leaf = getattr(layer, name)
            leaf[...] = jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
    layer.router[...] = jnp.asarray(rng.normal(size=(EMBED, EXPERTS)), jnp.float32)
    return layer


@jax.jit
def run(layer, x, real, key=None):
    return layer(x, real, key=key)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def by_definition(layer, x, real, *, capacity, group):
    """Output and losses of the layer as the papers have them, one token after the other."""
    weights = {n: np.float64(getattr(layer, n)[...]) for n in ("router", "wi_0", "wo")}
    tokens, is_real = np.float64(x).reshape(-1, EMBED), real.reshape(-1)
    out, balance, squares, experts_of = np.zeros_like(tokens), [], [], {}
    for start in range(0, len(tokens), group):
        taken = np.zeros(EXPERTS, int)
        chosen, mean = np.zeros(EXPERTS), np.zeros(EXPERTS)
        places = [t for t in range(start, start + group) if is_real[t]]
        for t in places:
            logits = tokens[t] @ weights["router"]
            p = softmax(logits)
            squares.append(np.log(np.exp(logits).sum()) ** 2)
            e = int(p.argmax())
            chosen[e] += 1
            mean += p
            taken[e] += 1
            if taken[e] <= capacity:
                hidden = np.maximum(tokens[t] @ weights["wi_0"][e], 0)
                out[t] = p[e] * (hidden @ weights["wo"][e])
                experts_of[t] = e
        n = max(len(places), 1)
        balance.append(EXPERTS * (chosen / n * mean / n).sum())
    return out.reshape(x.shape), ALPHA * np.mean(balance), Z * np.mean(squares), experts_of


@pytest.fixture
def tokens():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 12, EMBED)).astype(np.float32)
    real = np.arange(12) < np.array([12, 9, 7, 10])[:, None]
    return x, real


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_routing_equals_its_definition(tiny_config, tokens, training):
    """48 tokens in 3 groups of 16 for 4 experts: 5 places each in training, 8 in evaluation."""
    x, real = tokens
    layer = switch(tiny_config, train_capacity_factor=1.25, eval_capacity_factor=2.0)
    key = jax.random.key(0) if training else None
    y, losses = run(layer, x, real, key)
    expected, balance, z_loss, kept = by_definition(
        layer, x, real, capacity=5 if training else 8, group=16
    )
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses.load_balance, balance, rtol=1e-5)
    np.testing.assert_allclose(losses.z_loss, z_loss, rtol=1e-5)
    if training:
        assert len(kept) < real.sum()  # some were dropped, or this test shows little


def test_dropped_tokens_and_padding_come_out_as_zero(tiny_config, tokens):
    x, real = tokens
    layer = switch(tiny_config, eval_capacity_factor=0.5)
    y, _ = run(layer, x, real)
    *_, kept = by_definition(layer, x, real, capacity=2, group=16)
    nonzero = np.flatnonzero(np.abs(y).reshape(-1, EMBED).max(-1))
    np.testing.assert_array_equal(nonzero, sorted(kept))
    assert len(kept) < real.sum()


def test_places_go_to_tokens_in_the_order_of_the_text(tiny_config):
    """All tokens want the same expert; the first three of each group of six get there."""
    layer = switch(tiny_config, group_size=6, eval_capacity_factor=2.0)
    x = np.ones((2, 6, EMBED), np.float32)
    y, _ = layer(jnp.asarray(x), jnp.ones((2, 6), bool))
    served = np.abs(y).max(-1) > 0
    np.testing.assert_array_equal(served, np.broadcast_to(np.arange(6) < 3, (2, 6)))


def test_padding_takes_nobodys_place(tiny_config):
    """Six tokens that want the same expert, of which the first four are padding."""
    layer = switch(tiny_config, group_size=6, eval_capacity_factor=1.4)  # two places
    real = np.array([[0, 0, 0, 0, 1, 1]], bool)
    y, _ = run(layer, jnp.ones((1, 6, EMBED)), real)
    np.testing.assert_array_equal(np.abs(y).max(-1) > 0, real)


def test_an_expert_has_at_least_the_least_number_of_places(tiny_config):
    layer = switch(tiny_config, group_size=12, eval_capacity_factor=0.1, min_capacity=4)
    y, _ = run(layer, jnp.ones((1, 12, EMBED)), jnp.ones((1, 12), bool))
    assert (np.abs(y).max(-1) > 0).sum() == 4


def test_balanced_experts_cost_alpha_and_one_that_gets_all_costs_alpha_times_the_experts(
    tiny_config,
):
    layer = switch(tiny_config, group_size=8)
    layer.router[...] = 100 * jnp.eye(EMBED, EXPERTS)
    wants = lambda experts: jnp.eye(EMBED)[np.array(experts)][None]  # noqa: E731
    real = jnp.ones((1, 8), bool)
    _, balanced = run(layer, wants([0, 1, 2, 3, 3, 2, 1, 0]), real)
    _, one = run(layer, wants([2] * 8), real)
    np.testing.assert_allclose(balanced.load_balance, ALPHA, rtol=1e-6)
    np.testing.assert_allclose(one.load_balance, ALPHA * EXPERTS, rtol=1e-6)


def test_jitter_acts_on_the_router_alone_and_only_in_training(tiny_config, tokens):
    x, real = tokens
    calm, shaken = (
        switch(tiny_config, jitter=jitter, train_capacity_factor=4.0, eval_capacity_factor=4.0)
        for jitter in (0.0, 0.2)
    )
    key = jax.random.key(0)
    y, losses = run(shaken, x, real, key)
    y_calm, losses_calm = run(calm, x, real, key)
    assert losses.z_loss != losses_calm.z_loss
    np.testing.assert_array_equal(run(shaken, x, real)[0], run(calm, x, real)[0])
    # What an expert makes of a token stays; how much of it comes back is the router's word.
    ratio = np.asarray(y)[real] / np.asarray(y_calm)[real]
    same_expert = np.ptp(ratio, axis=-1) < 1e-3
    assert same_expert.mean() > 0.5
    assert (np.abs(ratio[same_expert] - 1) > 1e-4).mean() > 0.5


def test_gated_experts_multiply_their_branches(tiny_config):
    layer = switch(tiny_config, activations=("gelu", "linear"), eval_capacity_factor=4.0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, EMBED)), jnp.float32)
    y, _ = run(layer, x, jnp.ones((1, 5), bool))
    for t in range(5):
        p = softmax(np.float64(x[0, t] @ layer.router[...]))
        e = p.argmax()
        gate = jax.nn.gelu(x[0, t] @ layer.wi_0[...][e], approximate=True)
        expected = p[e] * ((gate * (x[0, t] @ layer.wi_1[...][e])) @ layer.wo[...][e])
        np.testing.assert_allclose(y[0, t], expected, rtol=1e-3, atol=1e-4)


def test_initial_experts_have_a_tenth_of_a_dense_layers_variance(tiny_config):
    moe = MixtureOfExperts(num_experts=8)
    config = tiny_config(emb_dim=96, mlp_dim=160, moe=moe, num_decoder_layers=2)
    layer = SwitchMLP(config, rngs=nnx.Rngs(params=0))
    for name, fan_in in (("wi_0", 96), ("wi_1", 96), ("wo", 160)):
        for expert in np.asarray(getattr(layer, name)[...]):
            deviation = (0.1 / fan_in) ** 0.5
            assert expert.std() == pytest.approx(deviation, rel=5 / np.sqrt(2 * expert.size))
    assert np.std(layer.router[...]) == pytest.approx(0.02, rel=0.15)


def test_tokens_of_a_batch_are_grouped_without_leaving_one_out(tiny_config, tokens):
    """48 tokens in groups of up to 20: three of 16, the largest divisor."""
    x, real = tokens
    layer = switch(tiny_config, group_size=20, eval_capacity_factor=2.0)
    y, _ = run(layer, x, real)
    expected, *_ = by_definition(layer, x, real, capacity=8, group=16)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_groups_are_shared_out_evenly_over_the_mesh(tiny_config, tokens):
    """Three groups of 16 do not divide among four devices; four of 12 do."""
    x, real = tokens
    layer = switch(tiny_config, group_size=20, eval_capacity_factor=2.0)
    with jax.set_mesh(make_mesh({"data": 4}, jax.devices()[:4])):
        y, _ = jax.jit(lambda layer, x: layer(x, real))(layer, x)
    expected, *_ = by_definition(layer, x, real, capacity=6, group=12)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
