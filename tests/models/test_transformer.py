import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.models.transformer import abstract_model, bind
from t5x_lite.partitioning import is_logical_axes, partition_spec
from t5x_lite.training.losses import cross_entropy


def test_every_weight_is_float32_and_declares_an_axis_for_each_dimension(tiny_config):
    _, shapes, axes = abstract_model(tiny_config(dtype="bfloat16"))
    flat = jax.tree.leaves_with_path(shapes)
    declared = jax.tree.leaves(axes, is_leaf=is_logical_axes)
    for (path, leaf), names in zip(flat, declared, strict=True):
        assert leaf.dtype == jnp.float32
        assert len(names) == leaf.ndim
        assert (names[0] == "layers") == any(entry.key == "layers" for entry in path)
        partition_spec(names)  # would raise if two axes wanted the same part of the mesh


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (dict(emb_dim=0), "emb_dim"),
        (dict(num_decoder_layers=-1), "num_decoder_layers"),
        (dict(dropout_rate=1.0), "dropout_rate"),
        (dict(mlp_activations=()), "mlp_activations"),
        (dict(mlp_activations=("gelu", "swish")), "mlp_activations"),
        (dict(relpos_num_buckets=30), "relpos_num_buckets"),
        (dict(relpos_max_distance=16), "relpos_max_distance"),
        (dict(dtype="float16"), "dtype"),
        (dict(remat="some"), "remat"),
        (dict(remat=("attention", "mlp")), "remat"),
    ],
)
def test_impossible_sizes_are_named(tiny_config, changes, name):
    value = re.escape(repr(changes[name]))
    with pytest.raises(
        ConfigError, match=rf"TransformerConfig\.{name} must be .*; got {value}$"
    ) as error:
        tiny_config(**changes)
    assert error.value.names == (f"TransformerConfig.{name}",)


def without_segments(batch):
    return {k: v for k, v in batch.items() if "segment" not in k and "positions" not in k}


@pytest.fixture(scope="module")
def logits_of(tiny_config, random_params):
    """A jitted function from a batch to the logits of one model."""
    config = tiny_config()
    graphdef, params = abstract_model(config)[0], random_params(config)
    forward = jax.jit(lambda params, batch: bind(graphdef, params)(batch).logits)
    return lambda batch: np.asarray(forward(params, batch))


def test_segments_are_derived_from_padding_where_a_batch_has_none(logits_of, random_batch):
    batch = random_batch(0, rows=4)
    np.testing.assert_array_equal(logits_of(batch), logits_of(without_segments(batch)))


def test_what_stands_in_padding_changes_no_real_token(logits_of, random_batch):
    batch = random_batch(0, rows=4)
    disturbed = dict(batch)
    for side in ("encoder", "decoder"):
        name, padding = f"{side}_input_tokens", batch[f"{side}_segment_ids"] == 0
        assert padding.any()
        disturbed[name] = np.where(padding, 33, batch[name])
    real = batch["decoder_segment_ids"] > 0
    before, after = logits_of(batch), logits_of(disturbed)
    np.testing.assert_array_equal(before[real], after[real])
    assert (before[~real] != after[~real]).any()


def test_more_padding_changes_no_real_token(logits_of, random_batch):
    batch = random_batch(0, rows=4)
    wider = {k: np.pad(v, ((0, 0), (0, 5))) for k, v in batch.items()}
    real = batch["decoder_segment_ids"] > 0
    short, long = logits_of(batch), logits_of(wider)
    np.testing.assert_allclose(long[:, : short.shape[1]][real], short[real], rtol=1e-4, atol=1e-5)


def test_a_target_does_not_see_what_comes_after_it(logits_of, random_batch):
    batch = random_batch(0, rows=4)
    batch["decoder_segment_ids"] = np.ones_like(batch["decoder_segment_ids"])
    changed = dict(batch, decoder_input_tokens=batch["decoder_input_tokens"].copy())
    changed["decoder_input_tokens"][:, 5:] = 33
    before, after = logits_of(batch), logits_of(changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(axis=(0, 2)).all()


def test_packed_examples_are_computed_as_if_each_had_its_row(logits_of, random_batch):
    batch = random_batch(1, rows=4)
    packed = {k: np.zeros((2, 2 * v.shape[1]), v.dtype) for k, v in batch.items()}
    places = []  # (packed row, start, own row, length) of each example's targets
    for row in range(4):
        for side in ("encoder", "decoder"):
            of_row = packed[f"{side}_segment_ids"][row // 2]
            start, length = (of_row > 0).sum(), batch[f"{side}_segment_ids"][row].sum()
            for name in (name for name in batch if name.startswith(side)):
                own = batch[name][row, :length]
                own = own * (1 + row % 2) if "segment" in name else own
                packed[name][row // 2, start : start + length] = own
        places.append((row // 2, start, row, length))
    alone, together = logits_of(batch), logits_of(packed)
    for packed_row, start, row, length in places:
        np.testing.assert_allclose(
            together[packed_row, start : start + length],
            alone[row, :length],
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("changes", [{}, {"scan_layers": False}], ids=["scanned", "unrolled"])
def test_decoding_token_by_token_equals_teacher_forcing(
    changes, tiny_config, random_params, random_batch
):
    config = tiny_config(**changes)
    batch = random_batch(2, rows=3, target_length=24)
    batch["decoder_segment_ids"] = np.ones_like(batch["decoder_segment_ids"])
    graphdef, params = abstract_model(config)[0], random_params(config)

    @jax.jit
    def both_ways(params):
        model = bind(graphdef, params)
        state = model.start_decoding(batch["encoder_input_tokens"], max_length=24)

        def feed(state, tokens_b):
            logits_bv, state = model.decode_token(tokens_b, state)
            return state, logits_bv

        state, logits_lbv = jax.lax.scan(feed, state, jnp.asarray(batch["decoder_input_tokens"]).T)
        return model(batch).logits, jnp.swapaxes(logits_lbv, 0, 1), state.length

    forced, stepped, length = both_ways(params)
    np.testing.assert_allclose(stepped, forced, rtol=1e-4, atol=1e-5)
    assert length == 24


VARIANTS = {
    "scanned": dict(),
    "unrolled": dict(scan_layers=False),
    "minimal": dict(remat="minimal"),
    "full": dict(remat="full"),
    "named": dict(remat=("attention", "mlp_hidden")),
    "products and attention": dict(remat=("projection", "attention")),
}


@pytest.fixture(scope="module")
def loss_and_gradients(tiny_config, random_params, random_batch):
    """Loss and gradients of each way to run the layers."""
    base = tiny_config()
    params, batch = random_params(base), random_batch(3, rows=3)

    def compute(changes):
        graphdef = abstract_model(dataclasses.replace(base, **changes))[0]

        def loss(params):
            logits_blv = bind(graphdef, params)(batch).logits
            targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
            return cross_entropy(logits_blv, targets, weights).loss

        return jax.jit(jax.value_and_grad(loss))(params)

    return {name: compute(changes) for name, changes in VARIANTS.items()}


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "scanned"])
def test_how_layers_are_run_changes_no_number(variant, loss_and_gradients):
    """The loss is the same to the bit; of the gradients XLA orders some sums differently."""
    loss, gradients = loss_and_gradients["scanned"]
    loss_of, gradients_of = loss_and_gradients[variant]
    assert loss == loss_of
    for ours, theirs in zip(*map(jax.tree.leaves, (gradients, gradients_of)), strict=True):
        assert np.abs(ours - theirs).max() <= 2e-6 * np.abs(ours).max()


def test_the_less_is_kept_for_the_backward_pass_the_less_memory_it_takes(tiny_config):
    """By XLA's own accounting of temporaries, on layers wide enough for activations to count."""
    kept = ["full", ("attention",), ("attention", "mlp_hidden"), "none"]
    temporaries = []
    for remat in (*kept, "minimal"):
        config = tiny_config(remat=remat, num_encoder_layers=0, num_decoder_layers=4)
        graphdef, shapes, _ = abstract_model(config)
        tokens = jax.ShapeDtypeStruct((8, 64), jnp.int32)
        names = ("decoder_input_tokens", "decoder_target_tokens")

        def total(params, batch, graphdef=graphdef):
            return jnp.sum(bind(graphdef, params)(batch).logits)

        compiled = jax.jit(jax.grad(total)).lower(shapes, dict.fromkeys(names, tokens)).compile()
        temporaries.append(compiled.memory_analysis().temp_size_in_bytes)
    *by_names, minimal = temporaries
    assert by_names == sorted(set(by_names))
    assert temporaries[0] < minimal < temporaries[-2]


def test_every_weight_has_a_gradient(loss_and_gradients):
    _, gradients = loss_and_gradients["scanned"]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_dropout_acts_where_t5_says_and_only_with_a_key(
    tiny_config, random_params, random_batch, monkeypatch
):
    config = tiny_config(dropout_rate=0.1, scan_layers=False)
    batch = random_batch(0, rows=2, input_length=12, target_length=8)
    graphdef, params = abstract_model(config)[0], random_params(config)
    masks = []

    def bernoulli(key, probability, shape):
        masks.append(tuple(shape))
        return jnp.ones(shape, bool)

    monkeypatch.setattr(jax.random, "bernoulli", bernoulli)
    forward = lambda key: jax.eval_shape(lambda: bind(graphdef, params)(batch, key=key))  # noqa: E731
    forward(None)
    assert masks == []
    forward(jax.random.key(0))
    residual, hidden = (2, 1, 16), (2, 1, 32)
    encoder_layer = [(2, 4, 1, 12), residual, hidden, residual]
    decoder_layer = [(2, 4, 1, 8), residual, (2, 4, 1, 12), residual, hidden, residual]
    # Each stack also drops its embeddings and what leaves its final norm.
    assert masks == [
        *(residual, *encoder_layer * config.num_encoder_layers, residual),
        *(residual, *decoder_layer * config.num_decoder_layers, residual),
    ]


def test_dropout_depends_on_its_key_alone(tiny_config, random_params, random_batch):
    config, batch = tiny_config(dropout_rate=0.1), random_batch(0, rows=2)
    graphdef, params = abstract_model(config)[0], random_params(config)
    forward = jax.jit(lambda key: bind(graphdef, params)(batch, key=key).logits)
    keys = (jax.random.key(number, impl="rbg") for number in (0, 0, 1))
    first, again, other = (np.asarray(forward(key)) for key in keys)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_bfloat16_model_gives_float32_logits_near_the_float32_ones(
    tiny_config, random_params, random_batch, logits_of
):
    config, batch = tiny_config(dtype="bfloat16"), random_batch(0, rows=4)
    graphdef, params = abstract_model(config)[0], random_params(config)
    logits = jax.jit(lambda params: bind(graphdef, params)(batch).logits)(params)
    exact = logits_of(batch)
    assert logits.dtype == jnp.float32
    error = np.linalg.norm(np.asarray(logits) - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 0.05
