"""Generation without a compiler, against the arrays and products of the model itself."""

import math

import jax
import jax.numpy as jnp
import pytest

from t5x_lite.hardware.chips import CHIPS
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.flops import forward_flops
from t5x_lite.models.transformer import abstract_model, bind
from t5x_lite.partitioning import make_mesh, named_sharding
from t5x_lite.planning.decode_plan import (
    CacheBytes,
    DecodingWorkload,
    bounds,
    cache_bytes,
    model_flops,
)

SIZES = dict(vocab_size=512, emb_dim=128, num_heads=4, head_dim=32, mlp_dim=256)
BOTH = TransformerConfig(**SIZES, num_encoder_layers=2, num_decoder_layers=3)
ALONE = TransformerConfig(**SIZES, num_decoder_layers=3, positions="rotary")
TEXTS = DecodingWorkload(rows=8, copies=2, inputs=24, tokens=16)
V5E = next(chip for chip in CHIPS if chip.name == "v5e")


@pytest.mark.parametrize("model", [BOTH, ALONE], ids=["encoder and decoder", "decoder alone"])
def test_the_cache_of_a_device_is_what_its_shards_hold(model):
    graphdef, params, _ = abstract_model(model)
    mesh = make_mesh({"data": 4, "tensor": 2})

    def start(params):
        decoder = bind(graphdef, params)
        if model.decoder_only:
            places = TEXTS.inputs + TEXTS.tokens
            return decoder.start_decoding(None, places, batch_size=TEXTS.texts)
        inputs = jnp.ones((TEXTS.rows, TEXTS.inputs), jnp.int32)
        return decoder.start_decoding(inputs, TEXTS.tokens, copies=TEXTS.copies)

    caches = jax.eval_shape(start, params).caches
    sharding = named_sharding(mesh, ("batch", None, "heads", "kv"))

    def held(kind):
        return sum(
            math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for cache in caches
            for leaf in jax.tree.leaves(getattr(cache, kind))
        )

    found = cache_bytes(model, TEXTS, dict(mesh.shape))
    assert found == CacheBytes(own=held("self_kv"), cross=held("cross_kv"))


def test_prefill_and_tokens_of_one_text_are_the_products_of_a_whole_pass():
    one = TEXTS._replace(copies=1)
    flops = model_flops(BOTH, one)
    whole = forward_flops(BOTH, batch_size=8, lengths={"inputs": 24, "targets": 16}).total
    assert flops.prefill + 16 * flops.token == pytest.approx(whole)
    assert model_flops(BOTH, TEXTS).token == 2 * flops.token
    assert model_flops(BOTH, TEXTS).prefill == flops.prefill


def test_a_token_is_bound_by_the_weights_it_reads_until_there_are_many_texts():
    few, many = (bounds(V5E, BOTH, TEXTS._replace(rows=n), {"data": 1})[1] for n in (1, 4096))
    assert few.bound == "memory"
    decoder = sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize
        for path, leaf in jax.tree.leaves_with_path(abstract_model(BOTH)[1])
        if not jax.tree_util.keystr(path, simple=True).startswith("encoder")
    )
    assert few.memory * V5E.hbm_bandwidth == pytest.approx(
        decoder + sum(cache_bytes(BOTH, TEXTS._replace(rows=1), {}))
    )
    assert many.compute == pytest.approx(4096 * few.compute)
