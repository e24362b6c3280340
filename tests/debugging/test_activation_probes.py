"""Ranges of what modules put out: those that the plain model gives, whichever way it is run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.debugging.activation_probes import Probes, Range
from t5x_lite.models.transformer import abstract_model, bind
from t5x_lite.tree_paths import flatten


def looking(config, batch):
    """A model with probes and the compiled function that looks into it, given weights."""
    graphdef, shapes, _ = abstract_model(config)
    probes = Probes(graphdef, shapes)

    def look(params):
        def loss(params):
            return jnp.mean(bind(probes.graphdef, params)(batch).logits ** 2)

        seen, grads = probes.split_gradients(jax.grad(loss)(probes.with_probes(params)))
        seen = jax.tree.map(lambda x: x[None], seen)
        return seen, probes.ranges_of_weights(flatten(params)), probes.ranges_of_weights(grads)

    compiled = jax.jit(look)
    return lambda params: probes.rows(*jax.device_get(compiled(params)))


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config(num_decoder_layers=2)


@pytest.fixture(scope="module")
def batch(random_batch):
    return random_batch(0, rows=2)


@pytest.fixture(scope="module")
def params(config, random_params):
    return random_params(config)


@pytest.fixture(scope="module")
def look(config, batch):
    return looking(config, batch)


def ends(x):
    return float(np.min(x)), float(np.max(x))


def test_ranges_are_those_of_the_plain_model(look, config, batch, params):
    rows = {row.name: row for row in look(params)}
    graphdef, _, _ = abstract_model(config)

    @jax.jit
    def plain(params):
        def loss(params):
            return jnp.mean(bind(graphdef, params)(batch).logits ** 2)

        model = bind(graphdef, params)
        text = model.inputs(batch["encoder_input_tokens"], batch)
        return model.encode(text)[0], model(batch).hidden, flatten(jax.grad(loss)(params))

    encoded, hidden, grads = jax.device_get(plain(params))
    np.testing.assert_allclose(rows["encoder"].output[2:], ends(encoded), rtol=1e-5)
    assert rows["encoder"].output.size == 2 * 12 * 16
    np.testing.assert_allclose(rows["decoder"].output[2:], ends(hidden), rtol=1e-5)
    for name, path, layer in (
        ("decoder/layers/1/mlp/wo", "decoder/layers/mlp/wo/kernel", 1),
        ("encoder/layers/0/self_attention/query", "encoder/layers/self_attention/query/kernel", 0),
    ):
        np.testing.assert_allclose(rows[name].weights[2:], ends(flatten(params)[path][layer]))
        found = rows[name].weights_gradient
        np.testing.assert_allclose(found[2:], ends(grads[path][layer]), rtol=1e-4, atol=1e-9)
    assert rows["head"].output is None


def test_modules_come_in_the_order_of_the_computation_layer_by_layer(look, params):
    names = [row.name for row in look(params)]
    assert len(set(names)) == len(names)
    places = [
        names.index(name)
        for name in (
            "token_embedder (encoder)",
            "encoder/layers/0/self_attention_norm",
            "encoder/layers/0/mlp/wo",
            "encoder/layers/0",
            "encoder/layers/1/self_attention/key",
            "encoder",
            "token_embedder (decoder)",
            "decoder/layers/0/cross",
            "decoder/layers/1",
            "decoder/norm",
            "head",
        )
    ]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("path", "layer", "value", "named"),
    [
        ("decoder/layers/mlp/wi_0/kernel", 1, np.nan, "decoder/layers/1/mlp/wi_0"),
        (
            "encoder/layers/self_attention/key/kernel",
            0,
            np.inf,
            "encoder/layers/0/self_attention/key",
        ),
        ("encoder/norm/scale", None, np.nan, "encoder/norm"),
    ],
)
def test_the_first_bad_output_is_that_of_the_module_whose_weight_is_bad(
    path, layer, value, named, look, params
):
    spoiled = jax.tree.map(np.array, params)
    array = flatten(spoiled)[path]
    (array if layer is None else array[layer]).flat[3] = value
    bad = [row for row in look(spoiled) if row.output is not None and row.output.bad]
    assert bad[0].name == named
    assert bad[0].weights is not None
    assert bad[0].weights.bad == 1


@pytest.mark.parametrize("changes", [dict(remat="full"), dict(scan_layers=False)], ids=str)
def test_recomputing_and_unrolling_show_the_same(changes, config, batch, params, look, tiny_config):
    other = looking(tiny_config(num_decoder_layers=2, **changes), batch)(params)
    for one, two in zip(look(params), other, strict=True):
        assert one.name == two.name
        for left, right in zip(one[1:], two[1:], strict=True):
            assert (left is None) == (right is None)
            if left is not None:
                np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


def test_ranges_join_and_say_what_they_are():
    joined = Range(3, 1, -2.0, 0.5).merge(Range(1, 0, 1.0, 1.0))
    assert joined == Range(4, 1, -2.0, 1.0)
    assert joined.largest == 2.0
    assert str(joined) == "-2.0e+00..1.0e+00 1 BAD"
    assert Range(2, 2).largest == 0.0
    assert str(Range(2, 2)) == "nothing finite 2 BAD"
