"""A small real corpus with two tasks, and a train call over it that takes seconds."""

import pytest

PACKAGES = ("gin", "beartype")  # enough text to learn from, little enough to tokenise at once


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the small corpus, its vocabulary and token stores are kept for the whole session."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Compile a program once for all runs that use it, as a user's second start does."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture
def small_data(data_dir):
    """Describe the small corpus: small_data(seed=1)."""
    from t5x_lite.data.plan import Data
    from t5x_lite.data.tasks import EmbeddedCorpus

    def make(**changes):
        settings = dict(
            mixture_or_task_name="embedded_mix",
            feature_lengths={"inputs": 32, "targets": 16},
            data_dir=str(data_dir),
            declarations=(EmbeddedCorpus(vocab_size=412, packages=PACKAGES),),
        )
        return Data(**{**settings, **changes})

    return make


@pytest.fixture
def train_small(small_data):
    """Run `train` with a tiny model: train_small(directory, steps=6, mesh={"data": 8})."""
    from t5x_lite.checkpoint_policy import CheckpointPolicy
    from t5x_lite.models.config import TransformerConfig
    from t5x_lite.run.held_out import Evaluation
    from t5x_lite.run.train import train
    from t5x_lite.training.optimizers import Adafactor
    from t5x_lite.training.schedules import InverseSquareRoot
    from t5x_lite.training.step import Loss, Update

    def run(model_dir, *, steps, model=None, data=None, **changes):
        sizes = dict(vocab_size=512, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64)
        layers = dict(num_encoder_layers=2, num_decoder_layers=2)
        settings = dict(
            model=TransformerConfig(**{**sizes, **layers, "dtype": "float32", **(model or {})}),
            data=small_data(**(data or {})),
            optimizer=Adafactor(min_dim_size_to_factor=16),
            learning_rate=InverseSquareRoot(base=0.1, warmup_steps=100),
            batch_size=8,
            mesh={"data": 2, "fsdp": 2, "tensor": 2},
            loss=Loss(),
            update=Update(),
            evaluation=Evaluation(every_steps=4, max_examples=16, samples=1),
            checkpoints=CheckpointPolicy(every_steps=4, keep_latest=None),
            log_every_steps=1,
        )
        train(model_dir=str(model_dir), steps=steps, **{**settings, **changes})

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

    from t5x_lite.data.vocabularies import train_vocabulary

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

    from t5x_lite.checkpoints import CheckpointPolicy, Checkpoints
    from t5x_lite.data.vocabularies import Vocabulary
    from t5x_lite.decoding.generation import SpecialTokens
    from t5x_lite.run.import_weights import Weights
    from t5x_lite.run.record import write_launch
    from t5x_lite.run.text_record import TextRecord, write_text_record

    made = {}

    def make(name="t5_1_1/tiny", **changes):
        if (key := (name, *changes.items())) not in made:
            sizes = dict(vocab_size=128, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32)
            config = shipped(name, **sizes, dtype="float32", **changes)
            directory = made[key] = tmp_path_factory.mktemp("run")
            state = Weights(jnp.int32(3), jax.tree.map(jnp.asarray, plausible_params(config)))
            with Checkpoints(directory, CheckpointPolicy()) as saved:
                saved.save(3, state, {"position": {}}, force=True)
                saved.wait()
            write_launch(directory, config, start_step=0, describe_config=str)
            record = TextRecord(Vocabulary(pieces, 20), SpecialTokens())
            write_text_record(directory, record)
        return made[key]

    return make


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A function that runs the command line with an empty gin, in an empty directory."""
    import gin

    from t5x_lite import __main__

    def run(*arguments):
        gin.clear_config()
        __main__.main(list(arguments))

    monkeypatch.chdir(tmp_path)
    yield run
    gin.clear_config()
