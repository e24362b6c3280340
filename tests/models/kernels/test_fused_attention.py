"""The attention kernels, interpreted, and the model that uses them, beside plain attention.

On a TPU nobody has run them yet: its compiler takes them (`needs_libtpu`), and what they would
compute is what Pallas' interpreter computes of them here. Those for GPUs ran on an H200
(benchmarks/gpu.md).
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import (
    AbstractDevice,
    AbstractMesh,
    SingleDeviceSharding,
    use_abstract_mesh,
)

from t5x_lite.hardware.topologies import topology, tpu_devices
from t5x_lite.models.kernels import attention_gpu, attention_tpu
from t5x_lite.models.kernels.attention_gpu import Tiling, Tilings
from t5x_lite.models.kernels.dot_product_attention import AttentionInputs, unfused_attention
from t5x_lite.models.kernels.fused_attention import fused_attention
from t5x_lite.models.transformer import abstract_model, bind
from t5x_lite.partitioning import MESH_AXES, make_mesh
from t5x_lite.planning.costs import costs
from t5x_lite.planning.hlo import Module

SCALE = 0.3
HEADS = 4
HOW = {"heads": HEADS, "scale": SCALE}


@pytest.fixture(scope="module")
def make_operands():
    """Operands of two rows and four heads: make_operands(256, 128, bias=True)."""

    def make(queries, keys, *, bias, head_dim=16):
        rng = np.random.default_rng(0)

        def normal(*shape):
            return jnp.asarray(rng.normal(size=shape), jnp.float32)

        mask = (rng.random((2, queries, keys)) < 0.7).astype(np.int8)
        mask[1, 7] = 0  # a query that may look nowhere
        return AttentionInputs(
            normal(2, queries, HEADS * head_dim) * (16 / head_dim) ** 0.5,  # scores of one size
            normal(2, keys, HEADS * head_dim),
            normal(2, keys, HEADS * head_dim),
            jnp.asarray(mask),
            normal(HEADS, queries, keys) if bias else None,
        )

    return make


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("head_dim", [16, 64, 128], ids=["all at once", "in pairs", "one by one"])
@pytest.mark.parametrize(
    ("queries", "keys", "blocks"), [(128, 256, 1), (57, 114, 1), (384, 100, 3)]
)
def test_the_kernel_and_its_gradient_equal_plain_attention(
    make_operands, monkeypatch, queries, keys, blocks, head_dim, bias
):
    monkeypatch.setattr(attention_tpu, "MAX_SCORES_PER_BLOCK", keys * queries // blocks)
    assert_equals_plain(attention_tpu, make_operands(queries, keys, bias=bias, head_dim=head_dim))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("head_dim", [16, 64])
@pytest.mark.parametrize(
    ("queries", "keys", "programs"),
    [(64, 128, 1), (57, 114, 1024), (130, 70, 1)],
    ids=["whole tiles", "a row a program", "lengths that fill no tiles"],
)
def test_the_gpus_kernels_and_their_gradient_equal_plain_attention(
    make_operands, monkeypatch, queries, keys, programs, head_dim, bias
):
    monkeypatch.setattr(attention_gpu, "MIN_BIAS_PROGRAMS", programs)
    operands = make_operands(queries, keys, bias=bias, head_dim=head_dim)
    assert_equals_plain(attention_gpu, operands, everywhere=False)


def test_the_gpus_kernels_may_have_tiles_of_their_own(make_operands):
    tilings = Tilings(Tiling(128, 64), Tiling(64, 32), Tiling(32, 64), Tiling(64, 128))
    operands = make_operands(100, 200, bias=True)
    assert_equals_plain(attention_gpu, operands, everywhere=False, tilings=tilings)


@pytest.mark.parametrize(("head_dim", "expected"), [(64, True), (80, False), (8, False)])
def test_heads_of_other_widths_than_the_gpu_multiplies_are_left_to_plain_attention(
    make_operands, head_dim, expected
):
    operands = make_operands(8, 8, bias=True, head_dim=head_dim)
    assert attention_gpu.can_run(operands, HEADS) is expected


def test_a_program_for_gpus_holds_their_kernels():
    rows, length, heads = 2, 114, 4
    q_bqj = jax.ShapeDtypeStruct((rows, length, heads * 64), jnp.bfloat16)
    mask_bqk = jax.ShapeDtypeStruct((rows, length, length), jnp.int8)
    bias_hqk = jax.ShapeDtypeStruct((heads, length, length), jnp.float32)

    def loss(q_bqj, bias_hqk, mask_bqk):
        operands = AttentionInputs(q_bqj, q_bqj, q_bqj, mask_bqk, bias_hqk)
        return jnp.sum(fused_attention(operands, heads=heads))

    gpu = AbstractDevice(device_kind="NVIDIA H200", platform="cuda", num_cores=132)
    sizes = (1,) * len(MESH_AXES)
    with use_abstract_mesh(AbstractMesh(sizes, MESH_AXES, abstract_device=gpu)):
        traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(q_bqj, bias_hqk, mask_bqk)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    parts = {"", "_keys_gradient", "_queries_gradient", "_bias_gradient"}
    assert set(re.findall(r'name = "attention(\w*)"', text)) == parts


def assert_equals_plain(kernels, operands, *, everywhere=True, **options):
    """Result and gradients of interpreted kernels are those of plain attention.

    Not everywhere: but for queries that may look nowhere, of which nothing is meant.
    """

    def plain(real):
        given = real._replace(mask_bqk=operands.mask_bqk)
        return unfused_attention(given, **HOW)

    how = {**HOW, **options, "interpret": True}
    expected, pull = jax.vjp(plain, operands._replace(mask_bqk=None))
    found = kernels.forward(operands, **how)
    seen_bq1 = everywhere | np.any(operands.mask_bqk, axis=-1)[..., None]
    np.testing.assert_allclose(found * seen_bq1, expected * seen_bq1, atol=2e-6)
    slopes = jnp.asarray(np.random.default_rng(1).normal(size=found.shape), jnp.float32) * seen_bq1
    gradients = kernels.backward(operands, slopes, **how)
    for name, expected in pull(slopes)[0]._asdict().items():
        found = getattr(gradients, name)
        assert (found is None) == (expected is None)
        if expected is not None:
            np.testing.assert_allclose(found, expected, atol=5e-6, err_msg=name)


def test_products_of_the_kernel_take_the_type_of_the_values(make_operands):
    operands = make_operands(128, 128, bias=True)
    halves = operands._replace(
        **{n: getattr(operands, n).astype(jnp.bfloat16) for n in ("q_bqj", "k_bkj", "v_bkj")}
    )
    found = attention_tpu.forward(halves, **HOW, interpret=True)
    expected = unfused_attention(halves, **HOW)
    assert found.dtype == expected.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(found), np.float32(expected), atol=0.02)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("encoder-decoder", None),
        ("encoder-decoder", dict(data=2, fsdp=2, tensor=2)),
        ("prefix LM", dict(tensor=2, sequence=4)),
    ],
    ids=["one device", "data-fsdp-tensor", "tensor-sequence"],
)
def test_a_model_with_fused_attention_computes_what_it_computes_without(
    tiny_config, plausible_params, batch_for, kind, sizes
):
    changes = dict(remat="minimal")
    if kind == "prefix LM":
        changes |= dict(num_encoder_layers=0, prefix_attention=True)
    config = tiny_config(**changes)
    params, batch = plausible_params(config), batch_for(config, 1, rows=8)
    weights_bl1 = batch["decoder_loss_weights"][..., None]  # what padding says, nobody reads

    def differentiated(config):
        def loss(params):
            model = bind(abstract_model(config)[0], params)
            return jnp.mean(weights_bl1 * model(batch).logits ** 2)

        return jax.jit(jax.value_and_grad(loss))

    expected, slopes = differentiated(config)(params)
    fused = differentiated(tiny_config(**changes, fused_attention=True))
    if sizes is None:
        found, gradients = fused(params)
    else:
        with jax.set_mesh(make_mesh(sizes)):
            found, gradients = fused(params)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.usefixtures("needs_libtpu")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("lengths", [(512, 512), (114, 512), (1024, 1000)], ids=str)
def test_the_tpus_compiler_takes_the_kernel_and_its_plan_counts_it(lengths, bias):
    place = SingleDeviceSharding(tpu_devices(topology("v5e:2x2"))[0])

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    queries, keys = lengths
    per_query, per_key = (array(jnp.bfloat16, 2, length, 4 * 64) for length in lengths)
    operands = AttentionInputs(
        per_query,
        per_key,
        per_key,
        array(jnp.int8, 2, queries, keys),
        array(jnp.float32, 4, queries, keys) if bias else None,
    )

    def both(operands, slopes):
        y = attention_tpu.forward(operands, heads=4, scale=1.0)
        return y, attention_tpu.backward(operands, slopes, heads=4, scale=1.0)

    text = jax.jit(both).lower(operands, per_query).compile().as_text()
    found = [cost for cost in costs(Module(text), lambda flops, moved: 7.0) if cost.kernel]
    scores = 2 * 4 * queries * keys
    width = 128  # of a matrix unit, half of which a head of 64 leaves idle
    assert sorted(cost.flops for cost in found) == [2 * n * scores * width for n in (2, 5)]
    assert [cost.cycles for cost in found] == [7.0, 7.0]
