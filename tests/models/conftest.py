"""The shipped model files as configurations, weights and batches for any of them."""

from pathlib import Path

import numpy as np
import pytest

GIN_CONFIGS = Path(__file__).resolve().parents[2] / "gin_configs"


@pytest.fixture(scope="session")
def shipped():
    """A function that reads a file of gin_configs/models: shipped("bert/tiny", remat="full")."""
    import dataclasses

    import gin

    from t5x_lite import gin_files
    from t5x_lite.models.config import TransformerConfig

    def read(name, **changes):
        gin.clear_config()
        gin_files.parse([f"models/{name}.gin"], [], ["", str(GIN_CONFIGS)])
        config = gin.get_configurable(TransformerConfig)()
        gin.clear_config()
        return dataclasses.replace(config, **changes)

    return read


@pytest.fixture(scope="session")
def plausible_params():
    """A function that makes weights of any family, none of them at a value that hides a mistake."""
    import jax

    from t5x_lite.models.transformer import abstract

    def make(config, seed=0):
        rng = np.random.default_rng(seed)

        def weight(path, leaf):
            values = rng.normal(size=leaf.shape).astype(np.float32)
            name = path[-1].key
            if name == "scale":
                return 1 + 0.2 * values
            if name == "bias":
                return 0.1 * values
            if name in ("embedding", "rel_embedding", "positions", "types"):
                return values
            return values * leaf.shape[-2] ** -0.5

        return jax.tree.map_with_path(weight, abstract(config)[1])

    return make


@pytest.fixture(scope="session")
def batch_for(random_batch):
    """A function that makes a batch of what a configuration's kind of model reads."""

    def make(config, seed, *, rows, length=12):
        batch = random_batch(
            seed, rows=rows, input_length=length, target_length=length, vocab_size=60
        )
        if config.decoder_only:
            return {k: v for k, v in batch.items() if k.startswith("decoder")}
        if config.encoder_only:
            batch = {k: v for k, v in batch.items() if k.startswith("encoder")}
            rng = np.random.default_rng(seed)
            real = batch["encoder_segment_ids"]
            targets = np.where(real, rng.integers(2, 60, real.shape), 0).astype(np.int32)
            batch["encoder_target_tokens"] = targets
            batch["encoder_loss_weights"] = real.astype(np.float32)
            if config.num_token_types:
                types = rng.integers(0, config.num_token_types, real.shape)
                batch["encoder_token_types"] = types.astype(np.int32)
            if config.next_sentence_head:
                labels = rng.integers(0, 2, len(real))
                batch["next_sentence_labels"] = labels.astype(np.int32)
        return batch

    return make
