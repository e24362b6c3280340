"""What is trained beside a frozen model: adapters and prompts."""

import jax
import numpy as np
import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.models.layers import initial_prompt_ids
from t5x_lite.models.transformer import abstract_model, bind, initialize
from t5x_lite.tree_paths import flatten, unflatten

FAMILIES = ["t5_1_1/tiny", "switch/tiny", "bert/tiny", "gpt2/tiny", "bart/tiny"]


def logits(config, params, batch):
    return jax.jit(lambda p, b: bind(abstract_model(config)[0], p)(b).logits)(params, batch)


@pytest.mark.parametrize("name", FAMILIES)
def test_fresh_adapters_change_no_prediction_and_trained_ones_do(name, shipped, batch_for):
    plain, adapted = shipped(name, dtype="float32"), shipped(name, dtype="float32", adapter_dim=4)
    batch = batch_for(plain, 1, rows=2)
    params = flatten(jax.jit(initialize, static_argnums=0)(adapted, jax.random.key(0)))
    own = {path: leaf for path, leaf in params.items() if "/adapter/" in path}
    rest = {path: leaf for path, leaf in params.items() if path not in own}
    layers = plain.num_encoder_layers + plain.num_decoder_layers
    inner = sum(leaf.size for leaf in own.values())
    biases = layers * (4 + plain.emb_dim) if plain.use_bias else 0
    assert inner == layers * 2 * 4 * plain.emb_dim + biases
    before = logits(plain, unflatten(rest), batch)
    np.testing.assert_array_equal(before, logits(adapted, unflatten(params), batch))
    rng = np.random.default_rng(0)
    moved = {path: leaf + rng.normal(size=leaf.shape) for path, leaf in own.items()}
    assert np.abs(before - logits(adapted, unflatten(rest | moved), batch)).max() > 1e-2


def test_the_other_weights_of_a_seed_are_the_same_with_adapters_and_prompt(tiny_config):
    make = jax.jit(initialize, static_argnums=0)
    plain = flatten(make(tiny_config(), jax.random.key(3)))
    more = flatten(make(tiny_config(adapter_dim=4, prompt_length=3), jax.random.key(3)))
    assert more.keys() - plain.keys() == {
        *(f"{stack}/layers/adapter/{part}/kernel" for stack in ("encoder", "decoder")
          for part in ("up", "down")),
        "prompt/embedding",
    }  # fmt: skip
    for path, leaf in plain.items():
        np.testing.assert_array_equal(leaf, more[path], err_msg=path)


def test_a_prompt_of_words_is_those_words_in_front_of_the_inputs(
    tiny_config, random_params, random_batch
):
    """Relative positions and masks treat a prompt's vectors as they treat tokens."""
    config = tiny_config(prompt_length=3)
    params = random_params(config)
    words = np.array([7, 9, 30])
    params["prompt"]["embedding"] = params["token_embedder"]["embedding"][words]
    batch = random_batch(0, rows=4)
    batch = {k: v for k, v in batch.items() if not k.endswith(("segment_ids", "positions"))}
    found = logits(config, params, batch)
    tokens = batch["encoder_input_tokens"]
    spelt = np.concatenate([np.broadcast_to(words, (len(tokens), 3)), tokens], axis=1)
    plain = {path: leaf for path, leaf in params.items() if path != "prompt"}
    expected = logits(tiny_config(), plain, batch | {"encoder_input_tokens": spelt})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_decoding_sees_the_prompt_too(tiny_config, random_params, random_batch):
    config = tiny_config(prompt_length=3)
    params, batch = random_params(config), random_batch(1, rows=2)
    batch = {k: v for k, v in batch.items() if not k.endswith(("segment_ids", "positions"))}
    fed = batch["decoder_input_tokens"]

    @jax.jit
    def decoded(params):
        model = bind(abstract_model(config)[0], params)
        state = model.start_decoding(batch["encoder_input_tokens"], fed.shape[1])
        return model.decode_tokens(fed, state)[0]

    real = batch["decoder_loss_weights"] > 0
    np.testing.assert_allclose(
        decoded(params)[real], logits(config, params, batch)[real], rtol=1e-4, atol=1e-4
    )


def test_a_prompt_begins_as_words_spread_over_the_frequent_ones():
    assert initial_prompt_ids(3, 32_128).tolist() == [3, 2502, 5002]
    assert initial_prompt_ids(2, 64).tolist() == [3, 63]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"adapter_dim": 0}, "adapter_dim"),
        ({"prompt_length": -1}, "prompt_length"),
        ({"prompt_length": 2, "num_encoder_layers": 0}, "prompt_length"),
        ({"prompt_length": 2, "num_decoder_layers": 0}, "prompt_length"),
    ],
)
def test_impossible_parts_are_named(tiny_config, changes, name):
    with pytest.raises(ConfigError, match=f"TransformerConfig.{name} must be"):
        tiny_config(**changes)
