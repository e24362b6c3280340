"""Compiled programs for texts: the same results whatever stands beside a row, on any mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.decoding.generation import Generation, SpecialTokens
from t5x_lite.errors import ConfigError
from t5x_lite.inference.engine import Inference, rounded_up
from t5x_lite.models.transformer import abstract_model, bind
from t5x_lite.partitioning import make_mesh, tree_shardings

KINDS = {
    "t5_1_1": ("t5_1_1/tiny", {}),
    "shared": ("t5_1_0/shared", {}),
    "umt5": ("umt5/tiny", {}),
    "switch": ("switch/tiny", {}),
    "bart": ("bart/tiny", {}),
    "lm": ("t5_1_0/lm", {}),
    "prefix_lm": ("t5_1_0/prefix_lm", {}),
    "gpt2": ("gpt2/tiny", {}),
    "llama": ("llama/tiny", {}),
}
SMALL = dict(vocab_size=64, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64, dtype="float32")


@pytest.fixture(scope="module")
def one_device():
    return make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="module")
def model(shipped, plausible_params):
    """A function that gives a small model of a kind: configuration and weights."""

    def make(kind):
        name, changes = KINDS[kind]
        config = shipped(name)
        layers = {
            side: min(2, getattr(config, side))
            for side in ("num_encoder_layers", "num_decoder_layers")
        }
        heads = {"num_kv_heads": 2} if config.num_kv_heads else {}
        config = dataclasses.replace(config, **SMALL, **layers, **heads, **changes)
        return config, plausible_params(config)

    return make


def rows_of(lengths, seed=0):
    tokens = np.random.default_rng(seed).integers(2, 60, (len(lengths), max(lengths)))
    return np.where(np.arange(max(lengths)) < np.array(lengths)[:, None], tokens, 0)


def log_probs_by_teacher_forcing(config, params, inputs, texts):
    """Log p of each next token of the texts by the forward pass; rows end in their padding."""
    first_b = np.count_nonzero(inputs, axis=1) if config.decoder_only else np.zeros(len(texts), int)
    ends_b = first_b + [len(text) for text in texts]
    batch = {"decoder_input_tokens": np.zeros((len(texts), 20), np.int32)}
    for row, first, text, whole in zip(
        inputs, first_b, texts, batch["decoder_input_tokens"], strict=True
    ):
        tokens = [0, *row[:first], *text][:-1]
        whole[: len(tokens)] = tokens
    places = np.arange(20)
    batch["decoder_segment_ids"] = (places < ends_b[:, None]).astype(np.int32)
    if config.prefix_attention:
        batch["decoder_causal_attention"] = (places <= first_b[:, None]).astype(np.int32)
    if not config.decoder_only:
        batch["encoder_input_tokens"] = inputs
    graphdef = abstract_model(config)[0]
    forward = jax.jit(lambda batch: jax.nn.log_softmax(bind(graphdef, params)(batch).logits))
    found = np.asarray(forward(batch))
    return [row[first:end] for row, first, end in zip(found, first_b, ends_b, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_texts_are_those_of_the_forward_pass_beside_longer_rows(kind, model, one_device):
    """Every token is the forward pass's best, and the score is the sum of their log p."""
    config, params = model(kind)
    inputs = rows_of([3, 11, 1, 7])
    inference = Inference(config, Generation(max_length=6), mesh=one_device, batch_size=5)
    tokens, scores = inference.generate(params, {"inputs": inputs})
    assert tokens.shape == (4, 1, 6)
    assert len(np.unique(tokens[:, 0], axis=0)) > 1
    texts = [text[: list(text).index(1) + 1] if 1 in text else text for text in tokens[:, 0]]
    found = log_probs_by_teacher_forcing(inference.config, params, inputs, texts)
    for text, score, log_prob_lv in zip(texts, scores[:, 0], found, strict=True):
        np.testing.assert_array_equal(np.argmax(log_prob_lv, axis=-1), text)
        chosen = log_prob_lv[np.arange(len(text)), text]
        assert score == pytest.approx(chosen.sum(), rel=1e-4, abs=1e-4)
    told = [0 not in text for text in texts]  # only those can be told from their padding
    assert any(told)
    targets = np.zeros((4, 8), int)
    for row, text in zip(targets, texts, strict=True):
        row[: len(text)] = text if 0 not in text else [5]
    scored = inference.score(params, {"inputs": inputs, "targets": targets})
    np.testing.assert_allclose(scored.totals[told], scores[told, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scored.tokens.sum(axis=1), scored.totals, rtol=1e-5)
    assert (scored.tokens[targets == 0] == 0).all()


@pytest.mark.parametrize("kind", ["switch", "gpt2"])
def test_the_draws_of_a_row_are_the_same_alone_and_beside_longer_rows(kind, model, one_device):
    config, params = model(kind)
    inputs, numbers = rows_of([3, 20, 1, 40]), np.array([4, 5, 6, 7])
    generation = Generation(max_length=5, temperature=1.0, num_returns=2)
    inference = Inference(config, generation, mesh=one_device, batch_size=4)
    together = inference.generate(params, {"inputs": inputs, "numbers": numbers})
    for row in (0, 2):
        only = slice(row, row + 1)
        alone = inference.generate(params, {"inputs": inputs[only], "numbers": numbers[only]})
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-4)
    assert (together.tokens[:, 0] != together.tokens[:, 1]).any()


def beams_by_the_rules(log_probs, beams, length, alpha, min_length, eos=1):
    """One row's search as T5 describes it, with Python's lists; log_probs(texts) scores next."""
    live, finished = [(0.0, ())], []
    for size in range(1, length + 1):
        found = []
        for (score, text), row in zip(live, log_probs([text for _, text in live]), strict=True):
            found += [
                (score + float(p), (*text, token))
                for token, p in enumerate(row)
                if token != eos or size >= min_length
            ]
        found = sorted(found, reverse=True)[: 2 * beams]
        finished += [(p / ((5 + size) / 6) ** alpha, t) for p, t in found if t[-1] == eos]
        finished = sorted(finished, reverse=True)[:beams]
        live = [(p, t) for p, t in found if t[-1] != eos][:beams]
        bound = live[0][0] / ((5 + length + 1) / 6) ** alpha
        if len(finished) == beams and finished[-1][0] > bound:
            break
    return finished or live


@pytest.mark.parametrize("kind", ["t5_1_1", "lm"])
def test_beams_are_those_of_the_rules_with_whole_texts_scored_anew(kind, model, one_device):
    config, params = model(kind)
    inputs = rows_of([4, 9])
    generation = Generation(max_length=5, num_beams=3, num_returns=3, min_length=3)
    inference = Inference(config, generation, mesh=one_device, batch_size=2)
    tokens, scores = inference.generate(params, {"inputs": inputs})
    graphdef = abstract_model(inference.config)[0]
    forward = jax.jit(lambda batch: jax.nn.log_softmax(bind(graphdef, params)(batch).logits))
    for row in range(2):
        prompt = inputs[row, : np.count_nonzero(inputs[row])]

        def log_probs(texts, prompt=prompt):
            start = np.concatenate([[0], prompt]) if config.decoder_only else np.array([0])
            width = len(start) + 5
            batch = {"decoder_input_tokens": np.zeros((3, width), np.int32)}
            for i, text in enumerate(texts):
                batch["decoder_input_tokens"][i, : len(start) + len(text)] = [*start, *text]
            batch["decoder_segment_ids"] = np.ones((3, width), np.int32)
            if not config.decoder_only:
                batch["encoder_input_tokens"] = np.tile(prompt, (3, 1))
            return np.asarray(forward(batch))[: len(texts), len(start) - 1 + len(texts[0])]

        expected = beams_by_the_rules(log_probs, 3, 5, 0.6, 3)
        for found, score, (wanted, text) in zip(tokens[row], scores[row], expected, strict=False):
            assert tuple(found) == (*text, *[0] * (5 - len(text)))
            assert score == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("kind", ["t5_1_1", "lm"])
def test_a_mesh_gives_the_texts_of_one_device(kind, model, one_device):
    config, params = model(kind)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    spread = jax.device_put(params, tree_shardings(mesh, abstract_model(config)[2]))
    batch = {"inputs": rows_of([5, 2, 9, 12, 1, 3]), "targets": rows_of([3, 5, 1, 2, 4, 4], 1)}
    for generation in (Generation(max_length=5, num_beams=2, num_returns=2),):
        here = Inference(config, generation, mesh=one_device, batch_size=8)
        there = Inference(config, generation, mesh=mesh, batch_size=8)
        one, many = here.generate(params, batch), there.generate(spread, batch)
        np.testing.assert_array_equal(one.tokens, many.tokens)
        np.testing.assert_allclose(one.scores, many.scores, rtol=1e-4)
        one, many = here.score(params, batch), there.score(spread, batch)
        np.testing.assert_allclose(one.totals, many.totals, rtol=1e-4)


def test_new_lengths_compile_nothing_within_a_bucket(model, one_device):
    config, params = model("t5_1_1")
    inference = Inference(config, Generation(max_length=2), mesh=one_device, batch_size=4)
    compiled = []
    listener = lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None  # noqa: E731
    inference.generate(params, {"inputs": rows_of([3])})
    jax.monitoring.register_event_duration_secs_listener(listener)
    for lengths in ([5, 16], [1, 2, 3, 4], [16]):
        inference.generate(params, {"inputs": rows_of(lengths)})
    assert compiled == []
    inference.generate(params, {"inputs": rows_of([17])})
    assert len(compiled) == 1


def test_lengths_are_rounded_up_by_at_most_half():
    widths = [rounded_up(n) for n in range(1, 3000)]
    assert widths == sorted(widths)
    assert len(set(widths)) == 16
    assert all(n <= width <= max(16, 1.5 * n) for n, width in enumerate(widths, 1))


def test_texts_begin_and_end_as_the_model_says(model, one_device):
    """BART's begin after 2, GPT-2's after the prompt alone."""
    config, params = model("gpt2")
    prompt = rows_of([4])
    bare = SpecialTokens(start=None, end=63)
    inference = Inference(
        config, Generation(max_length=4), mesh=one_device, batch_size=1, special=bare
    )
    tokens, scores = inference.generate(params, {"inputs": prompt})
    whole = np.concatenate([prompt, tokens[0]], axis=1)
    batch = {"decoder_input_tokens": whole, "decoder_segment_ids": np.ones_like(whole)}
    logits = bind(abstract_model(config)[0], params)(batch).logits
    np.testing.assert_array_equal(np.argmax(logits[0, 3:7], axis=-1), tokens[0, 0])
    scored = inference.score(params, {"inputs": prompt, "targets": tokens[0]})
    np.testing.assert_allclose(scored.totals, scores[0], rtol=1e-4)
    with pytest.raises(ConfigError, match="a prompt is empty"):
        inference.generate(params, {"inputs": np.zeros((1, 3), int)})


def test_embeddings_are_means_over_real_tokens(model, one_device):
    config, params = model("t5_1_1")
    inference = Inference(config, mesh=one_device, batch_size=2)
    inputs = rows_of([3, 7])
    found = inference.embed(params, {"inputs": inputs})
    bound = bind(abstract_model(config)[0], params)
    encoded, _ = bound.encode_inputs(jnp.asarray(inputs[:1, :3]))
    np.testing.assert_allclose(found[0], encoded[0].mean(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "name", "wanted"),
    [
        (dict(max_length=0), "max_length", "1 or more"),
        (dict(min_length=9, max_length=8), "min_length", "from 0 to max_length = 8"),
        (dict(num_beams=2, num_returns=3), "num_returns", "at most num_beams = 2"),
        (dict(num_beams=2, temperature=1.0), "temperature", "beam search does not sample"),
        (dict(num_returns=2), "num_returns", "must be 1 where temperature is 0"),
        (dict(temperature=-1.0), "temperature", "0 or more"),
        (dict(top_p=0.0), "top_p", r"must be in \(0, 1\]"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, name, wanted):
    with pytest.raises(ConfigError, match=wanted) as error:
        Generation(**settings)
    assert f"Generation.{name}" in error.value.names


def test_what_a_kind_of_model_cannot_do_is_said(shipped, plausible_params, model, one_device):
    encoder = shipped("bert/tiny")
    inference = Inference(encoder, mesh=one_device, batch_size=1)
    batch = {"inputs": rows_of([3]), "targets": rows_of([2])}
    for method, wanted in (("generate", "cannot generate text"), ("score", "cannot score")):
        with pytest.raises(ConfigError, match=wanted):
            getattr(inference, method)({}, batch)
    config, _ = model("lm")
    with pytest.raises(ConfigError, match="cannot compute embeddings"):
        Inference(config, mesh=one_device, batch_size=1).embed({}, batch)
    gpt2 = Inference(model("gpt2")[0], Generation(max_length=64), mesh=one_device, batch_size=1)
    assert gpt2.config.max_positions == 64
    with pytest.raises(ConfigError, match="has learned 64 positions"):
        gpt2.generate({}, batch)
    with pytest.raises(ConfigError, match="does not divide into the 4 parts"):
        Inference(config, mesh=make_mesh({"data": 4, "tensor": 2}), batch_size=6)
