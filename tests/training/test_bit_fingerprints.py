import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.partitioning import make_mesh, named_sharding
from t5x_lite.training.bit_fingerprints import fingerprint, to_hex

TREE = {
    "floats": np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32),
    "halves": np.random.default_rng(1).normal(size=(8, 4)).astype(jnp.bfloat16),
    "ids": np.arange(32, dtype=np.int32).reshape(8, 4),
    "flags": np.arange(8) % 3 == 0,
}


def text(tree):
    return to_hex(jax.device_get(jax.jit(fingerprint)(tree)))


@pytest.mark.parametrize("sizes", [dict(data=8), dict(data=2, fsdp=2), dict(data=1)], ids=str)
def test_it_does_not_depend_on_the_mesh(sizes):
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    place = named_sharding(mesh, ("batch",))
    assert text(jax.device_put(TREE, place)) == text(TREE)


@pytest.mark.parametrize("name", TREE)
def test_every_bit_of_every_element_counts(name):
    for place in range(TREE[name].size):
        changed = {n: array.copy() for n, array in TREE.items()}
        bits = changed[name].reshape(-1).view(np.uint8)
        bits[place * changed[name].itemsize] ^= 1
        assert text(changed) != text(TREE)


def test_order_names_and_shapes_count():
    array = TREE["floats"]
    texts = {
        text({"a": array}),
        text({"b": array}),
        text({"a": array[::-1].copy()}),
        text({"a": array[:, ::-1].copy()}),
        text({"a": array.reshape(16, 8)}),
        text({"a": array.T.copy()}),
        text({"a": array, "b": array}),
    }
    assert len(texts) == 7


def test_a_zero_has_a_sign():
    assert text({"a": np.zeros(3, np.float32)}) != text({"a": -np.zeros(3, np.float32)})
