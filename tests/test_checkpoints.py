import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from t5x_lite.checkpoints import CheckpointPolicy, Checkpoints
from t5x_lite.errors import ConfigError
from t5x_lite.models.transformer import abstract
from t5x_lite.partitioning import make_mesh, named_sharding
from t5x_lite.training.optimizers import Adafactor
from t5x_lite.training.state import abstract_state, state_shardings

EVERY_STEP = CheckpointPolicy(every_steps=1, keep_latest=None)
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
    _, shapes, axes = abstract(config)
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
    with Checkpoints(tmp_path, EVERY_STEP) as saved:
        saved.save(3, state, PROGRESS)
    with Checkpoints(tmp_path, EVERY_STEP) as saved:
        restored, _ = saved.restore(3, wanted)
    assert type(restored) is type(state)
    assert_same(restored, state)
    for leaf, described in zip(*map(jax.tree.leaves, (restored, wanted)), strict=True):
        assert leaf.dtype == described.dtype
        assert leaf.sharding == described.sharding


def test_progress_comes_back_equal_and_of_the_same_types(tmp_path, sharded):
    with Checkpoints(tmp_path, EVERY_STEP) as saved:
        saved.save(1, fill(sharded), PROGRESS)
    with Checkpoints(tmp_path, EVERY_STEP) as saved:
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
    with Checkpoints(tmp_path, EVERY_STEP) as saved:
        saved.save(1, state, PROGRESS)
        for _ in range(3):
            state = overwrite(state)
        jax.block_until_ready(state)
        saved.wait()
        assert_same(saved.restore(1, state)[0], before)


def test_a_new_directory_has_no_latest_step(tmp_path):
    with Checkpoints(tmp_path, EVERY_STEP) as saved:
        assert saved.latest_step is None


def test_the_policy_says_when_to_save_and_force_overrules_it(tmp_path, sharded):
    state = fill(sharded)
    with Checkpoints(tmp_path, CheckpointPolicy(every_steps=3, keep_latest=None)) as saved:
        done = [step for step in range(1, 8) if saved.save(step, state, PROGRESS, force=step == 7)]
        assert done == [3, 6, 7]
        assert saved.latest_step == 7


def test_no_more_than_the_latest_are_kept(tmp_path, sharded):
    state = fill(sharded)
    with Checkpoints(tmp_path, CheckpointPolicy(every_steps=1, keep_latest=2)) as saved:
        for step in range(1, 6):
            saved.save(step, state, {"step": step})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "5"]
    with Checkpoints(tmp_path, EVERY_STEP) as saved:
        assert saved.restore(4, sharded)[1] == {"step": 4}


def test_saving_a_step_again_leaves_it_as_it_was(tmp_path, sharded):
    first, second = fill(sharded, 1), fill(sharded, 2)
    with Checkpoints(tmp_path, EVERY_STEP) as saved:
        assert saved.save(1, first, {"of": "first"})
        assert not saved.save(1, second, {"of": "second"}, force=True)
    with Checkpoints(tmp_path, EVERY_STEP) as saved:
        assert not saved.save(1, second, {"of": "second"}, force=True)
        restored, progress = saved.restore(1, sharded)
    assert_same(restored, first)
    assert progress == {"of": "first"}


def test_a_step_without_its_commit_marker_is_passed_over_and_saved_anew(tmp_path, sharded):
    state = fill(sharded)
    with Checkpoints(tmp_path, EVERY_STEP) as saved:
        saved.save(1, state, {"step": 1})
        saved.save(2, state, {"step": 2})
    (tmp_path / "checkpoints" / "2" / "commit_success.txt").unlink()
    (tmp_path / "checkpoints" / "3").mkdir()
    with Checkpoints(tmp_path, EVERY_STEP) as saved:
        assert saved.latest_step == 1
        assert saved.save(2, state, {"step": 2, "again": True})
        assert saved.save(3, state, {"step": 3})
    with Checkpoints(tmp_path, EVERY_STEP) as saved:
        assert saved.latest_step == 3
        assert saved.restore(2, sharded)[1] == {"step": 2, "again": True}


def test_a_process_killed_while_saving_leaves_the_step_before_as_the_latest(tmp_path):
    """The 64 MB of the second step take far longer to write than the process has to live."""
    program = f"""
        import os
        from typing import Any, NamedTuple
        import jax
        import numpy as np
        from t5x_lite.checkpoints import CheckpointPolicy, Checkpoints

        class State(NamedTuple):
            noise: Any

        def state(size):
            return State(jax.numpy.asarray(np.random.default_rng(0).normal(size=size)))

        saved = Checkpoints({str(tmp_path)!r}, CheckpointPolicy(every_steps=1))
        saved.save(1, state(10), {{"step": 1}})
        saved.wait()
        saved.save(2, state(2**24), {{"step": 2}})
        os._exit(9)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    died = subprocess.run(command, cwd=Path(__file__).parent.parent, check=False)
    assert died.returncode == 9
    assert (tmp_path / "checkpoints" / "2").exists()
    with Checkpoints(tmp_path, EVERY_STEP) as saved:
        assert saved.latest_step == 1


@pytest.mark.parametrize("name", ["every_steps", "keep_latest"])
def test_policies_that_make_no_sense_are_named(name):
    with pytest.raises(ConfigError, match=f"{name} must be .* got 0") as error:
        CheckpointPolicy(**{name: 0})
    assert error.value.names == (f"CheckpointPolicy.{name}",)
