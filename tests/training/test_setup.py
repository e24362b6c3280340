"""A run laid out over eight devices: what is refused, and where the state lives between steps."""

import jax
import numpy as np
import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.training import state
from t5x_lite.training.optimizers import Adafactor
from t5x_lite.training.schedules import Constant
from t5x_lite.training.setup import build
from t5x_lite.training.step import Loss, Update

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
MESH = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.fixture
def program(tiny_config):
    """A function that lays out a tiny model with an `Update`: program(microbatches=3)."""
    config = tiny_config(head_dim=8, num_encoder_layers=1, num_decoder_layers=1)

    def make(**update):
        adafactor = Adafactor(min_dim_size_to_factor=16)
        settings = dict(mesh=MESH, batch_size=8, seed=0)
        return build(config, adafactor, Constant(value=0.1), Loss(), Update(**update), **settings)

    return make


def test_microbatches_that_do_not_divide_the_batch_are_refused(program):
    with pytest.raises(ConfigError, match="does not divide into 4 microbatches") as error:
        program(microbatches=4)
    assert error.value.names == ("Update.microbatches", "BATCH_SIZE")


def test_an_offloaded_optimizer_lives_in_the_hosts_memory_and_works_the_same(program, random_batch):
    after = {}
    for offload in (True, False):
        laid_out = program(offload_optimizer=offload)
        with jax.set_mesh(laid_out.mesh):
            before = laid_out.initial()
            batch = jax.device_put(random_batch(0, rows=8), laid_out.batch_sharding)
            step = laid_out.step.lower(before, batch).compile(compiler_options=QUICK)
            after[offload], _ = step(before, batch)
        for name in ("params", "opt_state"):
            kinds = {
                leaf.sharding.memory_kind for leaf in jax.tree.leaves(getattr(after[offload], name))
            }
            assert (kinds == {state.HOST_MEMORY_KIND}) == (offload and name == "opt_state")
    jax.tree.map(
        np.testing.assert_array_equal,
        *(jax.tree.map(np.asarray, after[offload].params) for offload in (True, False)),
    )


def test_devices_without_host_memory_are_named(program, monkeypatch):
    monkeypatch.setattr(state, "HOST_MEMORY_KIND", "memory_of_the_moon")
    with pytest.raises(ConfigError, match="needs devices with memory_of_the_moon") as error:
        program(offload_optimizer=True)
    assert error.value.names == ("Update.offload_optimizer",)
