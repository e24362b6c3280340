"""Eight simulated CPU devices, and the tiny model that many tests share."""

import sys

import numpy as np
import pytest

# Importing jax takes a second and a half; these folders hold tests that never need it.
MAY_DO_WITHOUT_JAX = {"data", "objectives"}


def pytest_collection_finish(session):
    """Set up the devices once all test modules are imported and before anything computes."""
    folders = {item.path.parent.name for item in session.items}
    if "jax" not in sys.modules and folders <= MAY_DO_WITHOUT_JAX:
        return
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def tiny_config():
    """A function that describes a small float32 model, changed by its keyword arguments."""
    from t5x_lite.models.config import TransformerConfig

    def make(**changes):
        sizes = dict(vocab_size=64, emb_dim=16, num_heads=4, head_dim=6, mlp_dim=32)
        layers = dict(num_encoder_layers=2, num_decoder_layers=3)
        return TransformerConfig(**{**sizes, **layers, "dtype": "float32", **changes})

    return make


@pytest.fixture(scope="session")
def random_batch():
    """A function that makes an unpacked batch of rows of several lengths from a seed."""

    def make(seed, *, rows, input_length=12, target_length=8, vocab_size=64):
        rng = np.random.default_rng(seed)
        batch = {}
        for side, length in (("encoder", input_length), ("decoder", target_length)):
            lengths = rng.integers(length // 2, length + 1, size=rows)
            real = np.arange(length) < lengths[:, None]
            tokens = np.where(real, rng.integers(2, vocab_size, (rows, length)), 0)
            batch[f"{side}_segment_ids"] = real.astype(np.int32)
            batch[f"{side}_positions"] = np.where(real, np.arange(length), 0).astype(np.int32)
            name = "encoder_input_tokens" if side == "encoder" else "decoder_target_tokens"
            batch[name] = tokens.astype(np.int32)
        targets = batch["decoder_target_tokens"]
        batch["decoder_input_tokens"] = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        batch["decoder_input_tokens"] *= batch["decoder_segment_ids"]
        batch["decoder_loss_weights"] = batch["decoder_segment_ids"].astype(np.float32)
        return batch

    return make


@pytest.fixture(scope="session")
def random_params():
    """A function that makes weights of plausible size without compiling an initialiser."""
    import jax

    from t5x_lite.models.transformer import abstract

    def make(config, seed=0):
        rng = np.random.default_rng(seed)

        def weight(path, leaf):
            values = rng.normal(size=leaf.shape).astype(np.float32)
            is_norm = path[-1].key == "scale"
            return 1 + 0.1 * values if is_norm else values * leaf.shape[-2] ** -0.5

        return jax.tree.map_with_path(weight, abstract(config)[1])

    return make
