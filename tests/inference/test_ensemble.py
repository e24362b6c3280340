"""Several models that speak together: their logits averaged, wherever logits count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.decoding.generation import Generation
from t5x_lite.errors import ConfigError
from t5x_lite.inference.engine import Inference
from t5x_lite.models.transformer import abstract_model, bind
from t5x_lite.partitioning import make_mesh

GREEDY, BEAMS = Generation(max_length=6), Generation(max_length=6, num_beams=3)
KINDS = {
    "encoder_decoder": {},
    "prefix": {"num_encoder_layers": 0, "prefix_attention": True},
}
TARGETS = np.array([[9, 4, 33, 1], [12, 1, 0, 0]], np.int32)
INPUTS = np.array([[5, 6, 7, 1], [8, 1, 0, 0]], np.int32)


@pytest.fixture(params=KINDS)
def kind(request, tiny_config, plausible_params):
    """A configuration, and two models' weights."""
    config = tiny_config(**KINDS[request.param])
    return (
        config,
        plausible_params(config),
        jax.tree.map(lambda x: x * 1.3, plausible_params(config)),
    )


@pytest.fixture
def inference():
    """A function that makes an Inference on one device."""

    def make(config, generation=GREEDY):
        return Inference(config, generation, mesh=make_mesh({}, jax.devices()[:1]), batch_size=2)

    return make


def test_copies_of_one_model_say_what_it_says(kind, inference):
    config, params, _ = kind
    for generation in (GREEDY, BEAMS):
        model, batch = inference(config, generation), {"inputs": INPUTS}
        alone, together = model.generate(params, batch), model.generate((params, params), batch)
        np.testing.assert_array_equal(together.tokens, alone.tokens)
        np.testing.assert_allclose(together.scores, alone.scores, rtol=1e-5)


def test_scores_are_of_the_mean_of_the_logits(tiny_config, plausible_params, inference):
    config = tiny_config()
    one = plausible_params(config)
    other = jax.tree.map(lambda x: x * 1.3, one)
    batch = {"inputs": INPUTS, "targets": TARGETS}
    found = inference(config).score((one, other), batch).tokens

    graphdef = abstract_model(config)[0]
    shifted = np.pad(TARGETS, ((0, 0), (1, 0)))[:, :-1]
    whole = {
        "encoder_input_tokens": INPUTS,
        "decoder_target_tokens": TARGETS,
        "decoder_input_tokens": shifted,
    }
    logits = [bind(graphdef, params)(whole).logits for params in (one, other)]
    log_probs = jax.nn.log_softmax((logits[0] + logits[1]) / 2)
    expected = jnp.take_along_axis(log_probs, TARGETS[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(found, np.where(TARGETS > 0, expected, 0), atol=1e-5)


def test_what_is_written_scores_as_it_was_written(kind, inference):
    config, one, other = kind
    model = inference(config)
    written = model.generate((one, other), {"inputs": INPUTS})
    scored = model.score((one, other), {"inputs": INPUTS, "targets": written.tokens[:, 0]})
    np.testing.assert_allclose(scored.totals, written.scores[:, 0], rtol=1e-4)


def test_several_models_embed_nothing(tiny_config, plausible_params, inference):
    config = tiny_config()
    params = plausible_params(config)
    with pytest.raises(ConfigError, match="ensemble cannot compute embeddings"):
        inference(config).embed((params, params), {"inputs": INPUTS})
