"""Eight simulated CPU devices, and the tiny models that many tests share."""

import importlib.util
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# Importing jax takes a second and a half; these folders hold tests that never need it.
MAY_DO_WITHOUT_JAX = {"data", "objectives"}
PACKAGES = ("gin", "beartype")  # enough text to learn from, little enough to tokenize at once
GIN_CONFIGS = Path(__file__).resolve().parents[1] / "gin_configs"
TEST_CONFIGS = Path(__file__).resolve().parent / "gin_configs"  # models too small to be of use


# How long an example takes depends on what else the machine is doing.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def pytest_collection_finish(session):
    """Set up the devices once all test modules are imported and before anything computes."""
    tests = Path(__file__).parent
    folders = {item.path.relative_to(tests).parts[0] for item in session.items}
    if "jax" not in sys.modules and folders <= MAY_DO_WITHOUT_JAX:
        return
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def log_lines():
    """What the package logs at level INFO and above during the test, a list of messages."""
    logger, lines = logging.getLogger("t5x_lite"), []
    handler, level = logging.Handler(), logger.level
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


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
    """A function that makes weights of plausible size without compiling an initializer."""
    import jax

    from t5x_lite.models.transformer import abstract_model

    def make(config, seed=0):
        rng = np.random.default_rng(seed)

        def weight(path, leaf):
            values = rng.normal(size=leaf.shape).astype(np.float32)
            is_norm = path[-1].key == "scale"
            return 1 + 0.1 * values if is_norm else values * leaf.shape[-2] ** -0.5

        return jax.tree.map_with_path(weight, abstract_model(config)[1])

    return make


@pytest.fixture(scope="session")
def shipped():
    """A function that reads a model file, of the tests too: shipped("bert/tiny", remat="full")."""
    import dataclasses

    import gin

    from t5x_lite.cli import gin_config
    from t5x_lite.models.config import TransformerConfig

    def read(name, **changes):
        gin.clear_config()
        gin_config.parse([f"models/{name}.gin"], [], ["", str(TEST_CONFIGS), str(GIN_CONFIGS)])
        config = gin.get_configurable(TransformerConfig)()
        gin.clear_config()
        return dataclasses.replace(config, **changes)

    return read


@pytest.fixture(scope="session")
def plausible_params():
    """A function that makes weights of any family, none of them at a value that hides a mistake."""
    import jax

    from t5x_lite.models.transformer import abstract_model

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

        return jax.tree.map_with_path(weight, abstract_model(config)[1])

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


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the small corpus, its vocabulary and token stores are kept for the whole session."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Keep compiled programs in the user's cache, for all processes of this and of later runs.

    JAX finds a program by its content, its options and its versions: no entry is ever out of date.
    """
    if "jax" not in sys.modules:
        yield
        return
    import jax

    directory = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    try:
        directory = directory / "t5x_lite" / "compiled_by_tests"
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home
        directory = tmp_path_factory.mktemp("compiled")
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture
def small_data(data_dir):
    """Describe the small corpus: small_data(seed=1)."""
    from t5x_lite.data.data_config import Data
    from t5x_lite.data.tasks.task_providers import EmbeddedCorpus

    def make(**changes):
        settings = dict(
            mixture_or_task_name="embedded_mix",
            feature_lengths={"inputs": 32, "targets": 16},
            data_dir=str(data_dir),
            task_providers=(EmbeddedCorpus(vocab_size=412, packages=PACKAGES),),
        )
        return Data(**{**settings, **changes})

    return make


@pytest.fixture
def train_settings(small_data):
    """Describe a run of a tiny model: train_settings(directory, steps=6, mesh={"data": 8})."""
    from t5x_lite.checkpoints.policy import CheckpointPolicy
    from t5x_lite.evaluation.validation_loss import Evaluation
    from t5x_lite.models.config import TransformerConfig
    from t5x_lite.training.optimizers import Adafactor
    from t5x_lite.training.schedules import InverseSquareRoot
    from t5x_lite.training.step import Loss, Update

    def settings(model_dir, *, steps, model=None, data=None, **changes):
        sizes = dict(vocab_size=512, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64)
        layers = dict(num_encoder_layers=2, num_decoder_layers=2)
        return (
            dict(
                model_dir=str(model_dir),
                steps=steps,
                model=TransformerConfig(**{**sizes, **layers, "dtype": "float32", **(model or {})}),
                data=small_data(**(data or {})),
                optimizer=Adafactor(min_dim_size_to_factor=16),
                learning_rate=InverseSquareRoot(base=0.1, warmup_steps=100),
                batch_size=8,
                mesh={"data": 2, "fsdp": 2, "tensor": 2},
                loss=Loss(),
                update=Update(),
                evaluation=Evaluation(period=4, max_examples=16, samples=1),
                checkpoints=CheckpointPolicy(period=4, keep=None),
                log_every_steps=1,
            )
            | changes
        )

    return settings


@pytest.fixture(scope="session")
def program_cache():
    """Programs and compiled steps of the session's runs, by their settings."""
    return {}, {}


@pytest.fixture
def shared_programs(program_cache, monkeypatch):
    """Let the runs of this test share the programs of all runs that have the same settings."""
    from t5x_lite.trainer import loop, prepare_run

    programs, steps = program_cache
    build, compile_step = prepare_run.build, loop.compiled_step

    def build_once(*settings, **named):
        # The settings are kept beside the program, so that no address in a text is used twice.
        key = repr((settings, sorted(named.items())))
        if key not in programs:
            programs[key] = settings, named, build(*settings, **named)
        return programs[key][-1]

    def compile_once(program, stream):
        batch, _ = next(stream.batches(stream.start()))
        shapes = sorted((name, array.shape, str(array.dtype)) for name, array in batch.items())
        key = (id(program.step), len(stream.task_names), *shapes)
        if key not in steps:
            steps[key] = program, compile_step(program, stream)
        return steps[key][-1]

    monkeypatch.setattr(prepare_run, "build", build_once)
    monkeypatch.setattr(loop, "compiled_step", compile_once)


@pytest.fixture
def train_small(train_settings, shared_programs):
    """Run `train` with a tiny model: train_small(directory, steps=6, mesh={"data": 8})."""
    from t5x_lite.trainer.train import train

    def run(model_dir, *, steps, **changes):
        train(**train_settings(model_dir, steps=steps, **changes))

    return run


@pytest.fixture
def weights():
    """Read the train state of a run's newest checkpoint as NumPy arrays by path."""
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    def read(model_dir):
        steps = [int(path.name) for path in (model_dir / "checkpoints").iterdir()]
        directory = model_dir / "checkpoints" / str(max(steps))
        stored = ocp.checkpointables_metadata(directory).metadata["state"]
        into = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), stored)
        state = ocp.load_checkpointables(directory, {"state": into})["state"]
        flat, _ = jax.tree.flatten_with_path(state)
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}

    return read


@pytest.fixture(scope="session")
def pieces(tmp_path_factory):
    """A small SentencePiece model."""
    import numpy as np

    from t5x_lite.tokenizers.vocabularies import train_vocabulary

    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in "bcdfg" for b in ("an", "et", "ol", "um")]
    path = tmp_path_factory.mktemp("pieces") / "small.model"
    lines = [" ".join(rng.choice(words, 8)) for _ in range(400)]
    train_vocabulary(lines, path, vocab_size=36)
    return str(path)


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory, shipped, plausible_params, pieces):
    """A function that gives the directory of a run of one kind of model, untrained."""
    import jax
    import jax.numpy as jnp

    from t5x_lite.checkpoints.checkpointer import Checkpointer, CheckpointPolicy
    from t5x_lite.checkpoints.run_directory import write_launch
    from t5x_lite.decoding.generation import SpecialTokens
    from t5x_lite.import_export.import_hf import Weights
    from t5x_lite.tokenizers.text_codec import TokenizerInfo, write_text_record
    from t5x_lite.tokenizers.vocabularies import Vocabulary

    made = {}

    def make(name="t5_1_1/tiny", **changes):
        if (key := (name, *changes.items())) not in made:
            sizes = dict(vocab_size=128, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32)
            config = shipped(name, **sizes, dtype="float32", **changes)
            directory = made[key] = tmp_path_factory.mktemp("run")
            state = Weights(jnp.int32(3), jax.tree.map(jnp.asarray, plausible_params(config)))
            with Checkpointer(directory, CheckpointPolicy()) as saved:
                saved.save(3, state, {"position": {}}, force=True)
                saved.wait()
            write_launch(directory, config, start_step=0, describe_config=str)
            record = TokenizerInfo(Vocabulary(pieces, 20), SpecialTokens())
            write_text_record(directory, record)
        return made[key]

    return make


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A function that runs the command line with an empty gin, in an empty directory."""
    import gin

    from t5x_lite.cli import main

    def run(*arguments):
        gin.clear_config()
        main.main(list(arguments))

    monkeypatch.chdir(tmp_path)
    yield run
    gin.clear_config()
