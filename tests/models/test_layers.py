import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_lite.models.layers import MLP, Norm, dropout
from t5x_lite.models.transformer import initialize
from t5x_lite.tree_paths import flatten

WIDE = dict(vocab_size=512, emb_dim=96, num_heads=8, head_dim=32, mlp_dim=160)
QUERY, EMBED = (96 * 32) ** -0.5, 96**-0.5
# weight -> (standard deviation, greatest value in standard deviations or None); facts: T5X.
TRUNCATED, UNIFORM = 2 / 0.87962566, 3**0.5
EXPECTED = {
    "token_embedder/embedding": (1.0, None),
    "head/kernel": (EMBED, TRUNCATED),
    "relpos_bias/rel_embedding": ((2 / (8 + 32)) ** 0.5, UNIFORM),
    "attention/query/kernel": (QUERY, None),
    "attention/key/kernel": (EMBED, None),
    "attention/value/kernel": (EMBED, None),
    "attention/out/kernel": ((8 * 32) ** -0.5, None),
    "mlp/wi_0/kernel": (EMBED, TRUNCATED),
    "mlp/wi_1/kernel": (EMBED, TRUNCATED),
    "mlp/wo/kernel": (160**-0.5, TRUNCATED),
}


@pytest.fixture(scope="module")
def initial(tiny_config):
    """Fresh weights of a model wide enough to measure deviations, by path."""
    params = initialize(tiny_config(**WIDE), jax.random.key(0))
    return {path: np.asarray(leaf) for path, leaf in flatten(params).items()}


@pytest.mark.parametrize("name", EXPECTED)
def test_initial_weights_have_the_published_spread_and_shape(initial, name):
    deviation, bound = EXPECTED[name]
    found = {path: array for path, array in initial.items() if path.endswith(name)}
    assert found
    for path, array in found.items():
        # The standard error of a deviation over n values is at most 1 / sqrt(2 n) of it.
        assert array.std() == pytest.approx(deviation, rel=5 / np.sqrt(2 * array.size)), path
        assert abs(array.mean()) < 5 * deviation / np.sqrt(array.size), path
        extreme = np.abs(array).max() / deviation
        if bound is None:
            assert extreme > TRUNCATED, path
        else:
            assert 0.9 * bound < extreme <= bound + 1e-3, path


def test_initial_norm_scales_are_one(initial):
    scales = [array for path, array in initial.items() if path.endswith("scale")]
    assert len(scales) == 7  # two or three in a layer, one at the end of each stack
    assert all((array == 1).all() for array in scales)


def test_no_two_initial_weights_are_alike(initial):
    """Each layer of a stack, and each weight of a layer, has random numbers of its own."""
    seen = {}
    for path, array in initial.items():
        if path.endswith("scale"):
            continue
        rows = array if "layers" in path else array[None]
        for layer, row in enumerate(rows):
            standard = np.round(row.ravel()[:8] / np.abs(row.ravel()[:8]).max(), 4)
            seen.setdefault(tuple(standard), []).append((path, layer))
    assert all(len(places) == 1 for places in seen.values()), seen


def test_norm_divides_by_the_root_mean_square_without_subtracting_the_mean(tiny_config):
    norm = Norm(tiny_config(), rngs=nnx.Rngs(params=0))
    rng = np.random.default_rng(0)
    norm.scale[...] = jnp.asarray(rng.normal(size=16), jnp.float32)
    x = rng.normal(loc=3.0, size=(2, 5, 16)) * np.array([1e-3, 1.0])[:, None, None]
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(norm.scale[...])
    np.testing.assert_allclose(norm(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5)


def test_norm_of_bfloat16_takes_its_statistics_in_float32(tiny_config):
    norm = Norm(tiny_config(), rngs=nnx.Rngs(params=0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 16)), jnp.bfloat16)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, norm(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_dropout_drops_its_share_and_keeps_the_mean():
    x = jnp.ones((64, 1, 500))
    y = np.asarray(dropout(x, 0.2, jax.random.key(0), shared_axis=-2))
    assert (y == 0).mean() == pytest.approx(0.2, abs=0.01)
    np.testing.assert_allclose(y[y != 0], 1.25)


@pytest.mark.parametrize("shape", [(3, 7, 40), (3, 4, 7, 40)], ids=["activations", "attention"])
def test_dropout_mask_is_shared_along_the_length_and_nothing_else(shape):
    """[b, l, e] shares l; attention weights [b, h, q, k] share q."""
    kept = np.asarray(dropout(jnp.ones(shape), 0.5, jax.random.key(1), shared_axis=-2)) > 0
    assert (kept == kept[..., :1, :]).all()
    masks = kept[..., 0, :].reshape(-1, shape[-1])
    assert len(np.unique(masks, axis=0)) == len(masks)


def test_dropout_without_key_or_rate_returns_its_input():
    x = jnp.ones((1, 2, 3))
    assert dropout(x, 0.5, None, shared_axis=-2) is x
    assert dropout(x, 0.0, jax.random.key(0), shared_axis=None) is x


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return x * sigmoid(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))  # by tanh


# Shazeer 2020, equations 1 to 6: the non-linearity of one projection, and of two multiplied ones.
FEED_FORWARDS = {
    "ReLU": (("relu",), lambda x: np.maximum(x, 0)),
    "GELU": (("gelu",), gelu),
    "Swish": (("silu",), lambda x: x * sigmoid(x)),
    "GLU": (("sigmoid", "linear"), sigmoid),
    "bilinear": (("linear", "linear"), lambda x: x),
    "ReGLU": (("relu", "linear"), lambda x: np.maximum(x, 0)),
    "GEGLU": (("gelu", "linear"), gelu),
    "SwiGLU": (("silu", "linear"), lambda x: x * sigmoid(x)),
}


@pytest.mark.parametrize("name", FEED_FORWARDS)
def test_feed_forwards_are_those_of_the_published_comparison(tiny_config, name):
    activations, act = FEED_FORWARDS[name]
    layer = MLP(tiny_config(mlp_activations=activations), rngs=nnx.Rngs(params=0))
    x = np.random.default_rng(0).normal(size=(2, 3, tiny_config().emb_dim))
    made = act(x @ np.float64(layer.wi_0.kernel[...]))
    if len(activations) > 1:
        made *= x @ np.float64(layer.wi_1.kernel[...])
    expected = made @ np.float64(layer.wo.kernel[...])
    np.testing.assert_allclose(layer(jnp.float32(x)), expected, rtol=1e-4, atol=1e-5)
