"""Runs that train a part of another run's model: what is saved, found again, refused."""

import json
import math
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from t5x_lite.checkpoints.checkpointer import Checkpointer
from t5x_lite.checkpoints.frozen_base import RECORD, fingerprints
from t5x_lite.checkpoints.run_directory import recorded_model
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation.validation_loss import Evaluation
from t5x_lite.import_export.export_hf import export_weights
from t5x_lite.io.metric_writers import read_metrics
from t5x_lite.models.transformer import abstract_model
from t5x_lite.partitioning import make_mesh, named_sharding
from t5x_lite.trainer.resume import InitFrom, restore_or_initialize
from t5x_lite.training.optimizers import Adafactor
from t5x_lite.training.param_groups import Grouped
from t5x_lite.training.step import Update
from t5x_lite.tree_paths import flatten

QUIET = {"evaluation": Evaluation(period=9, max_examples=8, samples=0), "mesh": {"data": 8}}
ADAPTERS_AND_NORMS = r"^(?!.*(/adapter/|norm/(scale|bias)$))"
WO = "encoder/layers/mlp/wo/kernel"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where a base and a run that trains its adapters are kept for all tests of this file."""
    return tmp_path_factory.mktemp("frozen")


@pytest.fixture
def base(place, train_small):
    """The directory of a run whose weights others start with."""
    if not (place / "base").exists():
        train_small(place / "base", steps=1, **QUIET)
    return place / "base"


@pytest.fixture
def adapt(base, train_small):
    """Train adapters and norms of the base: adapt(directory, steps=2)."""

    def run(directory, *, steps, base=base, frozen=(ADAPTERS_AND_NORMS,), **changes):
        settings = dict(
            model={"adapter_dim": 4, "dropout_rate": 0.1},
            optimizer=Grouped(optimizer=Adafactor(min_dim_size_to_factor=16), frozen=frozen),
            init_from=InitFrom(model_dir=str(base), param_regex="(?!.*/adapter/).*"),
            update=Update(ema_decay=0.5),
        )
        train_small(directory, steps=steps, **{**QUIET, **settings, **changes})

    return run


@pytest.fixture
def adapted(place, adapt):
    """The directory of a run of two steps, to be looked at only."""
    if not (place / "adapted").exists():
        adapt(place / "adapted", steps=2)
    return place / "adapted"


def all_weights(model_dir):
    """A run's newest weights, frozen ones included, by their paths."""
    with Checkpointer(model_dir) as saved:
        shapes = abstract_model(recorded_model(model_dir))[1]
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = jax.tree.map(lambda leaf: leaf.update(sharding=device), shapes)
        return flatten(jax.device_get(saved.restore_weights(saved.latest_step, wanted)))


def stored(model_dir):
    """Paths and sizes of the arrays in the newest checkpoint, and the bytes of its files."""
    with Checkpointer(model_dir) as saved:
        path = model_dir / "checkpoints" / str(saved.latest_step)
    found = ocp.checkpointables_metadata(path).metadata["state"]
    sizes = {name: math.prod(leaf.shape) for name, leaf in flatten(found).items()}
    return sizes, sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def weights_in(sizes):
    return {path.removeprefix("params/"): n for path, n in sizes.items() if "params/" in path}


def test_frozen_weights_stay_to_the_bit_and_stand_in_no_checkpoint(base, adapted):
    before, after = all_weights(base), all_weights(adapted)
    frozen = set(json.loads((adapted / RECORD).read_text())["fingerprints"])
    assert {path for path in after if "adapter" not in path and "norm/" not in path} == frozen
    for path in frozen:
        np.testing.assert_array_equal(after[path], before[path], err_msg=path)
    trained = after.keys() & before.keys() - frozen
    assert all((after[path] != before[path]).any() for path in trained)
    sizes, _ = stored(adapted)
    assert weights_in(sizes).keys() == after.keys() - frozen
    for tree in ("opt_state", "average"):
        assert not [p for p in sizes if any(p.startswith(f"{tree}/{name}") for name in frozen)]


def test_a_checkpoint_is_as_large_as_what_is_trained(base, adapted):
    (whole, whole_bytes), (part, part_bytes) = stored(base), stored(adapted)
    trained = sum(weights_in(part).values())
    assert trained == 4 * (2 * 4 * 32) + (2 * 2 + 2 * 3 + 2) * 32
    assert sum(part.values()) <= 3 * trained + 2  # weights, their average, moments; two counters
    assert sum(whole.values()) > 15 * sum(part.values())
    assert part_bytes < whole_bytes / 2


def test_only_what_is_trained_has_gradients(adapt, tmp_path):
    adapt(tmp_path, steps=1, frozen=("^(?!encoder/.*/adapter/)",))
    record = next(r for r in read_metrics(tmp_path) if r["kind"] == "train")
    parts = {name for name in record if name.startswith("grad_norm/")}
    assert parts == {"grad_norm/encoder"}
    assert record["grad_norm/encoder"] == pytest.approx(record["grad_norm"])


def test_a_stopped_run_goes_on_to_the_bit(adapt, adapted, weights, tmp_path):
    adapt(tmp_path, steps=1)
    adapt(tmp_path, steps=2)
    one, other = weights(adapted), weights(tmp_path)
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_a_prompt_begins_as_words_of_the_model_it_is_trained_for(base, train_small, tmp_path):
    train_small(
        tmp_path,
        steps=1,
        model={"prompt_length": 2},
        data={"pack": False},
        optimizer=Grouped(optimizer=Adafactor(), frozen=("^(?!prompt/)",)),
        init_from=InitFrom(model_dir=str(base), param_regex="(?!prompt/).*"),
        learning_rate=lambda step: 0.0 * step,
        **QUIET,
    )
    words = all_weights(base)["token_embedder/embedding"][np.array([3, 511])]
    np.testing.assert_array_equal(all_weights(tmp_path)["prompt/embedding"], words)
    assert weights_in(stored(tmp_path)[0]) == {"prompt/embedding": 2 * 32}


def test_a_prompt_takes_rows_that_are_not_packed(train_small, tmp_path):
    with pytest.raises(ConfigError, match=r"expected Data\.pack = False"):
        train_small(tmp_path, steps=1, model={"prompt_length": 2})


def test_what_is_trained_of_it_may_be_the_base_of_a_third_run(adapted, adapt, tmp_path):
    init = InitFrom(model_dir=str(adapted))
    adapt(tmp_path, steps=1, init_from=init, frozen=("^(?!encoder/.*/adapter/)",))
    second, third = all_weights(adapted), all_weights(tmp_path)
    changed = {path for path, weight in second.items() if (weight != third[path]).any()}
    assert changed == {f"encoder/layers/adapter/{part}/kernel" for part in ("down", "up")}


def test_a_run_with_a_frozen_encoder_is_exported_whole_and_one_from_scratch_saves_it(
    base, train_small, tmp_path
):
    optimizer = Grouped(optimizer=Adafactor(), frozen=("^encoder/",))
    init = InitFrom(model_dir=str(base))
    train_small(tmp_path / "run", steps=1, init_from=init, optimizer=optimizer, **QUIET)
    assert WO not in weights_in(stored(tmp_path / "run")[0])
    export_weights(model_dir=str(tmp_path / "run"), destination=str(tmp_path / "exported"))
    from safetensors.numpy import load_file

    tensors = load_file(tmp_path / "exported" / "model.safetensors")
    name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    np.testing.assert_array_equal(tensors[name], all_weights(base)[WO][0].T)
    train_small(tmp_path / "scratch", steps=1, optimizer=optimizer, **QUIET)
    assert WO in weights_in(stored(tmp_path / "scratch")[0])
    assert not (tmp_path / "scratch" / RECORD).exists()


def test_adapters_are_nothing_that_transformers_knows(adapted, tmp_path):
    with pytest.raises(ConfigError, match="adapter_dim"):
        export_weights(model_dir=str(adapted), destination=str(tmp_path / "exported"))


def test_a_base_that_moved_is_followed_and_one_that_is_gone_is_named(
    base, adapted, adapt, tmp_path
):
    shutil.copytree(base, tmp_path / "here" / "base")
    adapt(tmp_path / "here" / "run", steps=1, base=tmp_path / "here" / "base")
    (tmp_path / "here").rename(tmp_path / "there")
    run = tmp_path / "there" / "run"
    np.testing.assert_array_equal(all_weights(run)[WO], all_weights(base)[WO])
    (tmp_path / "there" / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"frozen weights are those of step 1 of .*base"):
        all_weights(run)
    adapt(run, steps=2, base=tmp_path / "elsewhere")
    for path, weight in all_weights(adapted).items():
        np.testing.assert_array_equal(all_weights(run)[path], weight, err_msg=path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r | {"step": 7}, r"step 7 of .* which has the steps 1;"),
        (
            lambda r: r | {"fingerprints": r["fingerprints"] | {WO: "0" * 16}},
            f"which has other numbers for {WO};",
        ),
        (lambda r: {"step": 1}, "names no checkpoint"),
    ],
    ids=["no such step", "other numbers", "not a record"],
)
def test_a_base_that_is_not_what_it_was_is_refused(change, said, adapted, tmp_path):
    shutil.copytree(adapted, tmp_path / "run")
    path = tmp_path / "run" / RECORD
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ConfigError, match=said):
        all_weights(tmp_path / "run")


def test_weights_that_no_checkpoint_of_the_run_holds_cannot_be_thawed(adapted):
    program = SimpleNamespace(frozen=frozenset([WO]))
    with Checkpointer(adapted) as saved, pytest.raises(ConfigError, match="now to be trained"):
        restore_or_initialize(program, saved, None)


def test_something_must_be_left_to_train(adapt, tmp_path):
    with pytest.raises(ConfigError, match="leaves no weight to train"):
        adapt(tmp_path, steps=1, frozen=(".",))


def test_a_fingerprint_tells_numbers_and_places_and_not_how_they_are_sharded():
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    sharded = jax.device_put(x, named_sharding(mesh, ("embed", "mlp")))
    known = fingerprints({"w": x, "a": x[:1]})
    assert fingerprints({"w": sharded, "a": x[:1]}) == known
    assert len(known["w"]) == 16
    assert known["w"] != known["a"]
    other, swapped = x.copy(), x.copy()
    other[3, 4] = np.nextafter(other[3, 4], 2)
    swapped[0, 0], swapped[7, 15] = x[7, 15], x[0, 0]
    found = [fingerprints({"w": y})["w"] for y in (other, swapped, x.T, -x)]
    assert len({known["w"], *found}) == 5
