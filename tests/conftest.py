"""Eight simulated CPU devices, and the tiny models that many tests share."""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

# Importing jax takes a second and a half; these folders hold tests that never need it.
MAY_DO_WITHOUT_JAX = {"data", "objectives"}
GIN_CONFIGS = Path(__file__).resolve().parents[1] / "gin_configs"


def pytest_collection_finish(session):
    """Set up the devices once all test modules are imported and before anything computes."""
    tests = Path(__file__).parent
    folders = {item.path.relative_to(tests).parts[0] for item in session.items}
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


@pytest.fixture
def needs_libtpu():
    """Skip a test that asks the TPU's compiler where it is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 't5x_lite[tpu-plan]'")


@pytest.fixture
def browser():
    """Chromium without a window."""
    driver = shutil.which("chromedriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if driver is None or chromium is None:
        pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service as Driver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Driver(driver))
    yield found
    found.quit()
