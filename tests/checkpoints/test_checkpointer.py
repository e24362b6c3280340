import contextlib
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from orbax.checkpoint import v1 as ocp

from t5x_lite.checkpoints.checkpointer import Checkpointer
from t5x_lite.checkpoints.frozen_base import BaseCheckpoint
from t5x_lite.checkpoints.policy import CheckpointPolicy
from t5x_lite.errors import ConfigError
from t5x_lite.models.transformer import abstract_model
from t5x_lite.partitioning import make_mesh, named_sharding
from t5x_lite.training.optimizers import Adafactor
from t5x_lite.training.state import abstract_state, state_shardings

EVERY_STEP = CheckpointPolicy(period=1, keep=None)
PROGRESS = {
    "position": {"format": 1, "window": 7, "row": 0, "drawn": {"a_task": 2**40 + 1, "other": 0}},
    "seconds": 0.1 + 0.2,
    "note": "text",
    "parts": [1, [2, 3.5], None, True],
    "none_yet": {},
}


@pytest.fixture(scope="module")
def describe(tiny_config):
    """A function from mesh sizes to the abstract state of a model on so many devices."""
    config = tiny_config(head_dim=8)
    _, shapes, axes = abstract_model(config)
    optimizer = Adafactor(min_dim_size_to_factor=16, momentum=0.9).for_weights(shapes, axes)

    def make(**sizes):
        count = int(np.prod(list(sizes.values())))
        mesh = make_mesh(sizes, jax.devices()[:count])
        return abstract_state(config, optimizer, state_shardings(mesh, config, optimizer))

    return make


@pytest.fixture(scope="module")
def sharded(describe):
    return describe(data=2, fsdp=2, tensor=2)


def fill(described, seed=0):
    """A state of random numbers, placed as described."""
    rng = np.random.default_rng(seed)

    def make(leaf):
        return jax.device_put(rng.normal(size=leaf.shape).astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(make, described)


def to_host(state):
    return jax.tree.map(np.array, state)


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, to_host(left), to_host(right))


@pytest.mark.parametrize(
    "sizes", [dict(data=8), dict(data=1), dict(data=2, tensor=4)], ids=["8", "1", "2x1x4"]
)
def test_a_state_comes_back_to_the_bit_on_another_mesh(tmp_path, describe, sharded, sizes):
    state, wanted = fill(sharded), describe(**sizes)
    with Checkpointer(tmp_path, EVERY_STEP) as saved:
        saved.save(3, state, PROGRESS)
    with Checkpointer(tmp_path, EVERY_STEP) as saved:
        restored, _ = saved.restore(3, wanted)
    assert type(restored) is type(state)
    assert_same(restored, state)
    for leaf, described in zip(*map(jax.tree.leaves, (restored, wanted)), strict=True):
        assert leaf.dtype == described.dtype
        assert leaf.sharding == described.sharding


def test_weights_come_back_in_another_type_and_from_it(tmp_path, sharded):
    """bfloat16 holds what float32 holds of it, so there and back again changes nothing."""
    halved = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), sharded.params
    )
    state = fill(sharded)
    with Checkpointer(tmp_path / "one", EVERY_STEP) as saved:
        saved.save(1, state, PROGRESS)
        saved.wait()
        half, _ = saved.restore(1, sharded._replace(params=halved))
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    wanted = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params)
    assert_same(half.params, wanted)
    assert_same(half.opt_state, state.opt_state)
    with Checkpointer(tmp_path / "other", EVERY_STEP) as saved:
        saved.save(1, half, PROGRESS)
        saved.wait()
        whole, _ = saved.restore(1, sharded)
        assert_same(saved.restore_weights(1, sharded.params), whole.params)
    assert_same(whole.params, jax.tree.map(lambda x: x.astype(jnp.float32), wanted))


def test_progress_comes_back_equal_and_of_the_same_types(tmp_path, sharded):
    with Checkpointer(tmp_path, EVERY_STEP) as saved:
        saved.save(1, fill(sharded), PROGRESS)
    with Checkpointer(tmp_path, EVERY_STEP) as saved:
        _, progress = saved.restore(1, sharded)
    assert progress == PROGRESS
    assert all(
        type(a) is type(b) for a, b in zip(*map(jax.tree.leaves, (progress, PROGRESS)), strict=True)
    )


def test_a_saved_state_may_be_donated_and_overwritten_at_once(tmp_path, sharded):
    """16 MB of weights, so that the save is still reading while the next steps write."""
    noise = np.random.default_rng(0).normal(size=(8, 2**19)).astype(np.float32)
    big = jax.device_put(noise, named_sharding(make_mesh({"data": 8}), ("batch", None)))
    state = fill(sharded)._replace(params=big)
    before = to_host(state)
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: -x - 1, state), donate_argnums=0)
    with Checkpointer(tmp_path, EVERY_STEP) as saved:
        saved.save(1, state, PROGRESS)
        for _ in range(3):
            state = overwrite(state)
        jax.block_until_ready(state)
        saved.wait()
        assert_same(saved.restore(1, state)[0], before)


def test_a_new_directory_has_no_latest_step(tmp_path):
    with Checkpointer(tmp_path, EVERY_STEP) as saved:
        assert saved.latest_step is None


def test_the_policy_says_when_to_save_and_force_overrules_it(tmp_path, sharded):
    state = fill(sharded)
    with Checkpointer(tmp_path, CheckpointPolicy(period=3, keep=None)) as saved:
        done = [step for step in range(1, 8) if saved.save(step, state, PROGRESS, force=step == 7)]
        assert done == [3, 6, 7]
        assert saved.latest_step == 7


def test_no_more_than_the_latest_are_kept(tmp_path, sharded):
    state = fill(sharded)
    with Checkpointer(tmp_path, CheckpointPolicy(period=1, keep=2)) as saved:
        for step in range(1, 6):
            saved.save(step, state, {"step": step})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "5"]
    with Checkpointer(tmp_path, EVERY_STEP) as saved:
        assert saved.restore(4, sharded)[1] == {"step": 4}


def test_saving_a_step_again_leaves_it_as_it_was(tmp_path, sharded):
    first, second = fill(sharded, 1), fill(sharded, 2)
    with Checkpointer(tmp_path, EVERY_STEP) as saved:
        assert saved.save(1, first, {"of": "first"})
        assert not saved.save(1, second, {"of": "second"}, force=True)
    with Checkpointer(tmp_path, EVERY_STEP) as saved:
        assert not saved.save(1, second, {"of": "second"}, force=True)
        restored, progress = saved.restore(1, sharded)
    assert_same(restored, first)
    assert progress == {"of": "first"}


def test_a_step_without_its_commit_marker_is_passed_over_and_saved_anew(tmp_path, sharded):
    state = fill(sharded)
    with Checkpointer(tmp_path, EVERY_STEP) as saved:
        saved.save(1, state, {"step": 1})
        saved.save(2, state, {"step": 2})
    (tmp_path / "checkpoints" / "2" / "commit_success.txt").unlink()
    (tmp_path / "checkpoints" / "3").mkdir()
    with Checkpointer(tmp_path, EVERY_STEP) as saved:
        assert saved.latest_step == 1
        assert saved.save(2, state, {"step": 2, "again": True})
        assert saved.save(3, state, {"step": 3})
    with Checkpointer(tmp_path, EVERY_STEP) as saved:
        assert saved.latest_step == 3
        assert saved.restore(2, sharded)[1] == {"step": 2, "again": True}


def test_a_process_killed_while_saving_leaves_the_step_before_as_the_latest(tmp_path):
    """The 64 MB of the second step take far longer to write than the process has to live."""
    program = f"""
        import os
        from typing import Any, NamedTuple
        import jax
        import numpy as np
        from t5x_lite.checkpoints.policy import CheckpointPolicy
        from t5x_lite.checkpoints.checkpointer import Checkpointer

        class State(NamedTuple):
            noise: Any

        def state(size):
            return State(jax.numpy.asarray(np.random.default_rng(0).normal(size=size)))

        saved = Checkpointer({str(tmp_path)!r}, CheckpointPolicy(period=1))
        saved.save(1, state(10), {{"step": 1}})
        saved.wait()
        saved.save(2, state(2**24), {{"step": 2}})
        os._exit(9)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    died = subprocess.run(command, cwd=Path(__file__).parents[2], check=False)
    assert died.returncode == 9
    assert (tmp_path / "checkpoints" / "2").exists()
    with Checkpointer(tmp_path, EVERY_STEP) as saved:
        assert saved.latest_step == 1


def test_orbax_is_told_how_long_a_save_may_take(tmp_path, monkeypatch):
    plain, told = ocp.training.Checkpointer, []

    def made(*arguments, context, **options):
        told.append(context.asynchronous.timeout_secs)
        return plain(*arguments, context=context, **options)

    monkeypatch.setattr("orbax.checkpoint.v1.training.Checkpointer", made)
    with Checkpointer(tmp_path, CheckpointPolicy(save_timeout_seconds=7)):
        assert told == [7]


@pytest.mark.parametrize("name", ["period", "keep", "max_failures", "save_timeout_seconds"])
def test_policies_that_make_no_sense_are_named(name):
    with pytest.raises(ConfigError, match=f"{name} must be .* got 0") as error:
        CheckpointPolicy(**{name: 0})
    assert error.value.names == (f"CheckpointPolicy.{name}",)


class Small(NamedTuple):
    """A state that is saved at once."""

    noise: Any


@pytest.fixture
def small():
    return Small(jax.device_put(np.random.default_rng(0).normal(size=200_000).astype(np.float32)))


def saved_steps(directory, policy, state, numbers):
    """Save steps 1, 2 ... with the numbers given; returns which are left."""
    with Checkpointer(directory, policy) as saved:
        for step, metrics in enumerate(numbers, 1):
            saved.save(step, state, {"step": step}, metrics=metrics)
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir())


LOSSES = [
    {"validation/a/loss": a, "validation/b/f1": b} for a, b in zip("451263", "194275", strict=True)
]
LOSSES = [{name: float(x) for name, x in numbers.items()} for numbers in LOSSES]


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        (dict(keep=2), [5, 6]),
        (dict(keep_period=2), [2, 4, 6]),
        (dict(pinned_steps=(1, 3)), [1, 3, 6]),
        (dict(keep_best={"validation/a/loss": "lower"}), [3, 6]),
        (dict(keep_best={"validation/a/loss": "lower"}, keep_best_count=2), [3, 4, 6]),
        (dict(keep_best={"validation/a/loss": "lower", "validation/b/f1": "higher"}), [2, 3, 6]),
        (dict(keep_best={"validation/c/loss": "lower"}), [6]),
    ],
    ids=str,
)
def test_what_is_kept_follows_the_policy(changes, left, tmp_path, small):
    policy = CheckpointPolicy(**{"period": 1, "keep": 1, **changes})
    assert saved_steps(tmp_path, policy, small, LOSSES) == left


def test_the_best_is_known_after_a_restart_and_numbers_that_are_none_do_not_count(tmp_path, small):
    policy = CheckpointPolicy(period=1, keep=1, keep_best={"loss": "lower"})
    numbers = [{"loss": 2.0}, {"loss": float("nan")}, None]
    assert saved_steps(tmp_path, policy, small, numbers) == [1, 3]
    with Checkpointer(tmp_path, policy) as saved:
        assert saved.best_step("loss", "lower") == 1
        assert saved.best_step("accuracy", "higher") is None
        saved.save(4, small, PROGRESS, metrics={"loss": 1.0})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4"]


def test_pinned_steps_are_saved_between_the_others(tmp_path, small):
    policy = CheckpointPolicy(period=4, keep=1, pinned_steps=(3,))
    assert saved_steps(tmp_path, policy, small, [None] * 8) == [3, 8]


def test_time_alone_makes_a_run_save(tmp_path, small):
    often = CheckpointPolicy(period=100, every_minutes=1e-9, keep=None)
    assert saved_steps(tmp_path / "often", often, small, [None] * 2)[0] == 1
    seldom = CheckpointPolicy(period=100, every_minutes=60, keep=None)
    assert saved_steps(tmp_path / "seldom", seldom, small, [None] * 2) == []


def test_a_checkpoint_carries_its_configuration_and_versions(tmp_path, small):
    record = {"config": "A.b = 1\n", "versions": {"jax": "1"}}
    with Checkpointer(tmp_path, EVERY_STEP) as saved:
        saved.save(1, small, PROGRESS, record=record)
        saved.wait()
        assert saved.record(1) == record


def test_a_step_that_another_run_rests_on_is_kept(tmp_path, small):
    policy = CheckpointPolicy(period=1, keep=1)
    assert saved_steps(tmp_path / "base", policy, small, [None] * 2) == [2]
    base = BaseCheckpoint(model_dir=epath.Path(tmp_path / "base"), step=2, fingerprints={})
    (tmp_path / "other").mkdir()
    with Checkpointer(tmp_path / "other", policy) as other:
        other.use_base(base)
    with Checkpointer(tmp_path / "base", policy) as saved:
        for step in (3, 4):
            saved.save(step, small, PROGRESS)
    assert sorted(path.name for path in (tmp_path / "base" / "checkpoints").iterdir()) == ["2", "4"]


def readers(directory, abstract):
    """Everything that reads what a step says of its arrays."""
    for read in (
        lambda saved: saved.saved_weights(1),
        lambda saved: saved.restore(1, abstract),
        lambda saved: saved.restore_weights(1, abstract.params),
        lambda saved: saved.arrays(1),
    ):
        with Checkpointer(directory) as saved:
            yield lambda read=read, saved=saved: read(saved)


class OfWeights(NamedTuple):
    """A state of weights alone."""

    params: Any


@pytest.fixture
def of_weights(tmp_path):
    """A checkpoint of 16 MB of zeros, which take no room, and the state it restores into."""
    state = OfWeights({"layer": {"kernel": jnp.zeros((1 << 11, 1 << 11))}})
    with Checkpointer(tmp_path, EVERY_STEP) as saved:
        saved.save(1, state, {"step": 1})
    return tmp_path, jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state/_METADATA", "[" * 100_000),
        ("_CHECKPOINT_METADATA", '{"a":' * 70 + "1" + "}" * 70),
        ("state/array_metadatas/process_0", "[" * 100 + "]" * 100),
    ],
)
def test_a_checkpoint_that_is_nested_too_deeply_is_refused(name, content, of_weights):
    directory, abstract = of_weights
    (directory / "checkpoints" / "1" / name).write_text(content)
    with (
        Checkpointer(directory) as saved,
        pytest.raises(ConfigError, match=r"nested more than 64 levels"),
    ):
        saved.restore(1, abstract)


def test_a_checkpoint_that_says_it_has_absurdly_large_arrays_is_refused(of_weights, monkeypatch):
    directory, abstract = of_weights
    monkeypatch.setattr("t5x_lite.io.safe_files.SMALL_BYTES", 1 << 20)
    for read in readers(directory, abstract):
        with pytest.raises(ConfigError, match=r"claim 16,777,216 bytes, its files"):
            read()


def test_a_checkpoint_with_a_link_out_of_it_is_not_read(of_weights):
    directory, abstract = of_weights
    (directory / "secret").write_text("secret")
    (directory / "checkpoints" / "1" / "state" / "link").symlink_to(directory / "secret")
    for read in readers(directory, abstract):
        with pytest.raises(ConfigError, match="state/link is a link that leads elsewhere"):
            read()


def test_arrays_of_another_shape_are_named_before_any_is_read(of_weights):
    directory, abstract = of_weights
    other = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, 2), x.dtype), abstract)
    said = r"has params/layer/kernel \[2048, 2048\], but the model expects"
    with Checkpointer(directory) as saved, pytest.raises(ConfigError, match=said):
        saved.restore(1, other)


@pytest.fixture
def full_disk(tmp_path):
    """A directory on a file system of 3 MB, and a function that fills it up or frees it."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")

    def fill(full):
        if full:
            with contextlib.suppress(OSError), (place / "fill").open("wb") as file:
                while True:
                    file.write(bytes(1 << 16))
        else:
            (place / "fill").unlink()

    yield place, fill
    subprocess.run(["umount", str(place)], check=True)


# At the first failure orbax closes the event loop that TensorStore still tells of the others.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_leaves_the_step_before_and_a_later_save_makes_up_for_it(
    full_disk, small, log_lines
):
    place, fill = full_disk
    policy = CheckpointPolicy(period=2, keep=1, retry_seconds=0)
    with Checkpointer(place / "run", policy) as saved:
        saved.save(2, small, {"step": 2})
        saved.wait()
        fill(True)
        saved.save(4, small, {"step": 4})
        saved.wait()
        assert saved.steps == [2]
        assert "cannot save step 4" in log_lines[0]
        assert "RESOURCE_EXHAUSTED" in log_lines[0]
        assert "newest checkpoint is that of step 2; failure 1 of at most 10" in log_lines[0]
        assert [path.name for path in (place / "run" / "checkpoints").iterdir()] == ["2"]
        fill(False)
        assert saved.save(5, small, {"step": 5})  # before the policy's next step
        saved.wait()
        assert not saved.save(7, small, {"step": 7})
        assert saved.steps == [5]
        assert saved.find_corruption(5) is None
    assert len(log_lines) == 1


@pytest.fixture
def failing_store(monkeypatch):
    """A function that makes the next saves fail, some when they begin, some in the background."""
    from orbax.checkpoint import v1 as ocp

    save = ocp.training.Checkpointer.save_checkpointables_async
    left = []

    class Failing:
        def result(self):
            raise OSError("the store is away")

    def fail(self, step, *arguments, **names):
        if not left:
            return save(self, step, *arguments, **names)
        if left.pop() == "background":
            return Failing()
        raise OSError("the store is away")

    monkeypatch.setattr(ocp.training.Checkpointer, "save_checkpointables_async", fail)
    return left.extend


def test_a_store_that_is_away_ends_the_run_only_after_so_many_failures(
    tmp_path, small, failing_store, log_lines
):
    policy = CheckpointPolicy(period=1, retry_seconds=0, max_failures=3)
    with Checkpointer(tmp_path, policy) as saved:
        saved.save(1, small, PROGRESS)
        saved.wait()
        failing_store(["at once", "background"])
        for step in (2, 3, 4):
            saved.save(step, small, PROGRESS)
            saved.wait()
        assert saved.steps == [1, 4]
        failing_store(["background", "at once", "at once"])
        with pytest.raises(
            ConfigError, match=r"store is away.*of step 4; failure 3 of at most 3"
        ) as error:
            saved.save_with_retries(5, small, PROGRESS)
        assert "CheckpointPolicy.max_failures" in error.value.names
    assert len(log_lines) == 4


def test_what_another_process_could_not_save_none_has_saved(
    tmp_path, small, monkeypatch, log_lines
):
    """The failure is counted in all of them, at the next save, so that they try again together."""
    others = ["no room", None]
    monkeypatch.setattr("t5x_lite.distributed.processes.count", lambda: 2)
    monkeypatch.setattr(
        "t5x_lite.distributed.processes.gather", lambda mine, *_, **__: [mine, others.pop(0)]
    )
    with Checkpointer(tmp_path, EVERY_STEP) as saved:
        saved.save(1, small, PROGRESS)
        assert not saved.due(1)  # nobody is asked between two saves
        assert log_lines == []
        saved.save(2, small, PROGRESS)
        (line,) = log_lines
        assert line.startswith("cannot save step 1 (no room)")
        saved.wait()
        assert others == []
    assert len(log_lines) == 1


def test_a_last_save_is_tried_until_it_is_there(tmp_path, small, failing_store):
    with Checkpointer(tmp_path, CheckpointPolicy(retry_seconds=0)) as saved:
        failing_store(["at once", "background", "at once"])
        saved.save_with_retries(5, small, PROGRESS)
        assert saved.steps == [5]
