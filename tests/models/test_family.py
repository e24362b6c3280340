"""Every architecture that is shipped: its size, and what any way of running it must leave alone."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models.transformer import abstract_model, bind, num_parameters

MODELS = Path(__file__).resolve().parents[2] / "gin_configs" / "models"
TINY = Path(__file__).resolve().parents[1] / "gin_configs" / "models"
# The published sizes, exact: T5's own code for T5, mT5, umT5, ByT5, BART and Switch; for the others
# the arithmetic of their papers, which gives the sizes their public weights have.
PARAMETERS = {
    "t5_1_0/small": 60_506_624,
    "t5_1_0/base": 222_903_552,
    "t5_1_0/large": 737_668_096,
    "t5_1_0/3b": 2_851_598_336,
    "t5_1_0/11b": 11_307_321_344,
    "t5_1_0/shared": 137_949_312,
    "t5_1_0/half_depth": 123_790_080,
    "t5_1_0/lm": 109_628_544,
    "t5_1_0/prefix_lm": 109_628_544,
    "t5_1_1/small": 76_961_152,
    "t5_1_1/base": 247_577_856,
    "t5_1_1/large": 783_150_080,
    "t5_1_1/xl": 2_849_757_184,
    "t5_1_1/xxl": 11_135_332_352,
    "mt5/small": 300_176_768,
    "mt5/base": 582_401_280,
    "mt5/large": 1_229_581_312,
    "mt5/xl": 3_742_619_648,
    "mt5/xxl": 12_921_057_280,
    "umt5/small": 306_601_984,
    "umt5/base": 592_043_520,
    "umt5/large": 1_242_449_920,
    "umt5/xl": 3_768_356_864,
    "umt5/xxl": 12_972_531_712,
    "byt5/small": 299_637_760,
    "byt5/base": 581_653_248,
    "byt5/large": 1_228_183_552,
    "byt5/xl": 3_737_801_728,
    "byt5/xxl": 12_906_899_328,
    "switch/base_8": 619_339_008,
    "switch/base_16": 1_072_397_568,
    "switch/base_32": 1_978_514_688,
    "switch/base_64": 3_790_748_928,
    "switch/base_128": 7_415_217_408,
    "switch/base_256": 14_664_154_368,
    "switch/large_128": 26_309_291_008,
    "switch/xxl_128": 394_675_073_024,
    "switch/c_2048": 1_571_327_875_360,
    "bert/base": 110_106_428,
    "bert/large": 336_226_108,
    "roberta/base": 124_697_433,
    "roberta/large": 355_412_057,
    "gpt2/gpt_1": 116_534_784,
    "gpt2/small": 124_439_808,
    "gpt2/medium": 354_823_168,
    "gpt2/large": 774_030_080,
    "gpt2/xl": 1_557_611_200,
    "llama/7b": 6_738_415_616,
    "llama/13b": 13_015_864_320,
    "llama/3_8b": 8_030_261_248,
    "bart/base": 139_420_416,
    "bart/large": 406_291_456,
}
# Small models of every kind: a shipped file, and what turns it into a variant.
KINDS = {
    "t5_1_0": ("t5_1_0/tiny", {}),
    "t5_1_1": ("t5_1_1/tiny", {}),
    "mt5": ("mt5/tiny", {}),
    "umt5": ("umt5/tiny", {}),
    "byt5": ("byt5/tiny", {}),
    "shared": ("t5_1_0/tiny", dict(share_stacks=True)),
    "lm": ("t5_1_0/tiny", dict(num_encoder_layers=0)),
    "switch": ("switch/tiny", {}),
    "bert": ("bert/tiny", {}),
    "roberta": ("roberta/tiny", {}),
    "gpt2": ("gpt2/tiny", {}),
    "gpt1": ("gpt2/tiny", dict(norm_position="post", final_norm=False)),
    "llama": ("llama/tiny", {}),
    "bart": ("bart/tiny", {}),
}
# Their programs are those of T5 1.1 or of its variants, with other sizes.
SAME_PROGRAM = ("t5_1_0", "mt5", "byt5")
DECODING = [kind for kind in KINDS if kind not in ("bert", "roberta")]
LENGTH = 24
FILES = sorted([*MODELS.rglob("*.gin"), *TINY.rglob("*.gin")])


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_size_has_exactly_the_published_number_of_weights(name, shipped):
    """By shapes alone: nothing is allocated, not even for Switch-C's 1.6 T."""
    assert num_parameters(shipped(name)) == PARAMETERS[name]


def test_no_shipped_size_escapes_the_count():
    files = {path.relative_to(MODELS).with_suffix("").as_posix() for path in MODELS.glob("*/*.gin")}
    assert files == set(PARAMETERS)


@pytest.mark.parametrize(("name", "without_heads"), [("base", 109_482_240), ("large", 335_141_888)])
def test_bert_without_its_heads_has_the_size_of_its_encoder_and_pooler(
    name, without_heads, shipped
):
    shapes = abstract_model(shipped(f"bert/{name}"))[1]
    heads = sum(leaf.size for leaf in jax.tree.leaves([shapes["head"], shapes["next_sentence"]]))
    assert num_parameters(shipped(f"bert/{name}")) - heads == without_heads


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_head_of_a_model_file_tells_its_number_of_weights(path, shipped):
    folder = TINY if path.is_relative_to(TINY) else MODELS
    name = path.relative_to(folder).with_suffix("").as_posix()
    header = " ".join(line.strip("# ") for line in path.read_text().splitlines() if line[:1] == "#")
    if name != "tiny":  # of the main job, in millions
        assert f"{num_parameters(shipped(name)):,} parameters" in header


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kind, marks=pytest.mark.slow) if kind in SAME_PROGRAM else kind
        for kind in KINDS
    ],
)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def config(kind, shipped):
    file, changes = KINDS[kind]
    config = shipped(file, **changes)
    return without_dropped_tokens(config)


def without_dropped_tokens(config):
    """Every expert has room for every token: then tokens cannot feel each other's routing."""
    if config.moe is None:
        return config
    moe = dataclasses.replace(config.moe, eval_capacity_factor=float(config.moe.num_experts))
    return dataclasses.replace(config, moe=moe)


@pytest.fixture(scope="module")
def logits_of(config, plausible_params):
    """A jitted function from a batch to the logits of one model."""
    graphdef, params = abstract_model(config)[0], plausible_params(config)
    forward = jax.jit(lambda params, batch: bind(graphdef, params)(batch).logits)
    return lambda batch: np.asarray(forward(params, batch))


@pytest.fixture(scope="module")
def wide(batch_for, config):
    """Four rows of at most 12 tokens a side, with as much padding again behind them."""
    batch = batch_for(config, 1, rows=4)
    return {k: np.pad(v, ((0, 0), (0, LENGTH - 12))) if v.ndim > 1 else v for k, v in batch.items()}


def side_of(config):
    return "encoder" if config.encoder_only else "decoder"


def test_what_stands_in_padding_changes_no_real_token(config, logits_of, wide):
    disturbed = dict(wide)
    for name in ("encoder_input_tokens", "decoder_input_tokens", "encoder_token_types"):
        if name in wide:
            padding = wide[f"{name.split('_')[0]}_segment_ids"] == 0
            assert padding.any()
            disturbed[name] = np.where(padding, 0 if "types" in name else 33, wide[name])
    real = wide[f"{side_of(config)}_segment_ids"] > 0
    before, after = logits_of(wide), logits_of(disturbed)
    np.testing.assert_array_equal(before[real], after[real])
    assert (before[~real] != after[~real]).any()


def test_packed_examples_are_computed_as_if_each_had_its_row(config, logits_of, wide):
    packed = {k: np.zeros_like(v) for k, v in wide.items()}
    places = []  # (packed row, start, own row, length) of each example's predictions
    for row in range(4):
        for side in {name.split("_")[0] for name in wide} & {"encoder", "decoder"}:
            start = (packed[f"{side}_segment_ids"][row // 2] > 0).sum()
            length = wide[f"{side}_segment_ids"][row].sum()
            for name in (name for name in wide if name.startswith(side)):
                own = wide[name][row, :length]
                own = own * (1 + row % 2) if "segment" in name else own
                packed[name][row // 2, start : start + length] = own
            if side == side_of(config):
                places.append((row // 2, start, row, length))
    alone, together = logits_of(wide), logits_of(packed)
    for packed_row, start, row, length in places:
        np.testing.assert_allclose(
            together[packed_row, start : start + length],
            alone[row, :length],
            rtol=1e-4,
            atol=1e-5 * np.abs(alone).max(),
        )


def test_a_scanned_stack_equals_an_unrolled_one(config, logits_of, wide, plausible_params):
    """To the bit; but where layers have biases XLA fuses sums another way when it sees them all."""
    unrolled = dataclasses.replace(config, scan_layers=False)
    graphdef, params = abstract_model(unrolled)[0], plausible_params(unrolled)
    logits = jax.jit(lambda params: bind(graphdef, params)(wide).logits)(params)
    scanned = logits_of(wide)
    if config.use_bias:
        assert np.linalg.norm(scanned - logits) < 1e-6 * np.linalg.norm(scanned)
    else:
        np.testing.assert_array_equal(scanned, logits)


def test_decoding_from_caches_equals_teacher_forcing(
    kind, config, logits_of, wide, plausible_params
):
    """A prompt of five tokens at once, then one token after the other."""
    if kind not in DECODING:
        pytest.skip("an encoder does not decode")
    full = np.random.default_rng(3).integers(2, 60, (4, LENGTH)).astype(np.int32)
    batch = {
        **wide,
        "decoder_input_tokens": full,
        "decoder_segment_ids": np.ones_like(full),
        "decoder_positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), full.shape),
    }
    graphdef, params = abstract_model(config)[0], plausible_params(config)

    @jax.jit
    def stepped(params):
        model = bind(graphdef, params)
        inputs = None if config.decoder_only else wide["encoder_input_tokens"]
        state = model.start_decoding(inputs, max_length=LENGTH, batch_size=4)
        prompt_blv, state = model.decode_tokens(full[:, :5], state)

        def feed(state, tokens_b):
            logits_bv, state = model.decode_token(tokens_b, state)
            return state, logits_bv

        state, rest_lbv = jax.lax.scan(feed, state, jnp.asarray(full[:, 5:]).T)
        return jnp.concatenate([prompt_blv, jnp.swapaxes(rest_lbv, 0, 1)], axis=1), state.length

    logits, length = stepped(params)
    forced = logits_of(batch)
    np.testing.assert_allclose(logits, forced, rtol=1e-4, atol=1e-5 * np.abs(forced).max())
    assert length == LENGTH


@pytest.fixture(scope="module", params=[True, False], ids=["mesh_tensorflow", "t5x"])
def prefix_lm(request, shipped, plausible_params):
    """A prefix LM with either kind of buckets: (configuration, weights, forward)."""
    config = shipped(
        "t5_1_0/tiny", num_encoder_layers=0, decoder_buckets_bidirectional=request.param
    )
    graphdef, params = abstract_model(config)[0], plausible_params(config)
    forward = jax.jit(lambda params, batch: bind(graphdef, params)(batch).logits)
    return config, params, forward


@pytest.fixture(scope="module")
def marked(batch_for, prefix_lm):
    """Rows of 12 tokens whose first 4, 5, 6 are inputs."""
    batch = batch_for(prefix_lm[0], 2, rows=3)
    batch["decoder_segment_ids"] = np.ones_like(batch["decoder_segment_ids"])
    prefix = np.arange(12) < np.array([[4], [5], [6]])
    return {**batch, "decoder_causal_attention": prefix.astype(np.int32)}


def test_a_prefix_lm_sees_its_inputs_both_ways_and_its_targets_one_way(prefix_lm, marked):
    _, params, forward = prefix_lm
    before = np.asarray(forward(params, marked))
    for place in range(12):
        changed = dict(marked, decoder_input_tokens=marked["decoder_input_tokens"].copy())
        changed["decoder_input_tokens"][:, place] = 61
        moved = (np.asarray(forward(params, changed)) != before).any(axis=-1)
        for row, inputs in enumerate((4, 5, 6)):
            sees = np.arange(12) >= place
            if place < inputs:
                sees |= np.arange(12) < inputs
            np.testing.assert_array_equal(moved[row], sees)


def test_buckets_of_keys_ahead_are_used_only_where_buckets_look_both_ways(prefix_lm, marked):
    """Looking one way, all keys ahead of the query fall into bucket 0 (T5X)."""
    config, params, forward = prefix_lm

    def total(params):
        return jnp.sum(jnp.square(forward(params, marked)))

    table = jax.grad(total)(params)["decoder"]["relpos_bias"]["rel_embedding"]
    used = np.flatnonzero(np.abs(table).max(axis=0))
    ahead = [17, 18, 19, 20, 21]  # as far as six inputs see
    behind = [*range(8), 8] if config.decoder_buckets_bidirectional else range(12)
    expected = [*behind, *(ahead if config.decoder_buckets_bidirectional else [])]
    np.testing.assert_array_equal(used, expected)


def test_a_prefix_lm_decodes_from_a_prompt_that_sees_itself_both_ways(prefix_lm, marked):
    config, params, forward = prefix_lm
    tokens = marked["decoder_input_tokens"]
    prefix = np.broadcast_to(np.arange(12) < 5, tokens.shape).astype(np.int32)
    forced = forward(params, {**marked, "decoder_causal_attention": prefix})
    model = bind(abstract_model(config)[0], params)
    state = model.start_decoding(None, max_length=12, batch_size=3)
    prompt, state = model.decode_tokens(tokens[:, :5], state, prefix=True)
    rest, _ = model.decode_tokens(tokens[:, 5:], state)
    stepped = jnp.concatenate([prompt, rest], axis=1)
    np.testing.assert_allclose(stepped, forced, rtol=1e-4, atol=1e-5 * np.abs(forced).max())
