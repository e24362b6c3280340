"""Save and restore checkpoints: train state and position in the data in one atomic step (orbax v1).

The directory of a run with checkpoints:

    checkpoints/
      1000/                    a step
        state/ progress/ ...   orbax's files
        checksums.json         of all files, written when the step is complete
        commit_success.txt     marks a complete step; a directory without it is ignored
    quarantine/                steps that were corrupt
    rolled_back/               steps that a rollback discarded

`trainer.resume` decides which checkpoint a run resumes from.
"""

import contextlib
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from t5x_lite.checkpoints.frozen_base import BaseCheckpoint
from t5x_lite.checkpoints.metadata import check_shapes, context, read_descriptions
from t5x_lite.checkpoints.policy import Better, CheckpointPolicy, ranking
from t5x_lite.distributed import processes
from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic, checksums
from t5x_lite.io.urls import check_reachable, is_url
from t5x_lite.tree_paths import flatten, merge, omit, unflatten

Json = dict[str, Any]
State = TypeVar("State", bound=NamedTuple)  # its fields are trees of arrays
COMPLETE = "commit_success.txt"  # orbax writes it after all other files
_LOG = logging.getLogger(__name__)


class Checkpointer:
    """The checkpoints of one run, under `model_dir`/checkpoints/<step>; a context manager.

    Saving copies the arrays to host memory and continues in the background. A step counts only when
    its directory contains the commit marker, which is written last. Therefore a killed save or a
    partial copy is never mistaken for a checkpoint, on any kind of file system.

    Once a step is complete, a thread writes its files' checksums into it. `find_corruption`
    compares a step's files with them, and `quarantine` moves a step out of `checkpoints/`.

    A save that fails (a full disk, a store that cannot be reached) leaves the older steps as they
    are. It is logged as a warning and retried at a later step; `policy.max_failures` failures in a
    row raise ConfigError.

    A run with a base checkpoint (`use_base`) saves its weights without the frozen ones. Reading
    weights here returns all of them.

    Args:
        model_dir: The run's directory, or its address in an object store.
        policy: When to save and what to keep. None is for reading only: nothing is saved, and
            incomplete steps that another process is saving are not removed.

    Attributes:
        model_dir: The run's directory.
        base: The checkpoint that holds the frozen weights of this run; None if there is none.
        blocked_seconds: For how long the last `save` blocked the loop.
    """

    def __init__(self, model_dir: str | epath.PathLike, policy: CheckpointPolicy | None = None):
        self._for_reading = policy is None
        self._policy = policy or CheckpointPolicy(keep=None)
        self.model_dir = epath.Path(model_dir)
        check_reachable(self.model_dir)
        self.base = BaseCheckpoint.recorded(self.model_dir)
        self.blocked_seconds = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._pending: tuple[int, Future[None]] | None = None
        self._failures, self._retry_at = 0, 0.0
        # orbax logs a failed save in some hundred lines; `_handle_failure` logs it in one.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._checkpointer = ocp.training.Checkpointer(
            absolute(self.model_dir) / "checkpoints",
            context=context(save_timeout_seconds=self._policy.save_timeout_seconds),
            save_decision_policy=self._policy.save_policy(),
            preservation_policy=self._policy.preservation_policy(self.model_dir),
            cleanup_tmp_directories=not self._for_reading,
        )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_):
        if self._pending is not None:
            # Wait, but do not synchronize: the other processes may have ended with an error.
            self._pending[1].exception()
        with contextlib.suppress(Exception):  # it raises the error of a failed save again
            self._checkpointer.close()
        self._thread.shutdown()

    @property
    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def steps(self) -> list[int]:
        """All complete steps, in order."""
        return sorted(info.step for info in self._checkpointer.checkpoints)

    def best_step(self, metric: str, better: Better) -> int | None:
        """Return the step whose checkpoint is best by a metric; None if none has the metric.

        Args:
            metric: Its name in metrics.jsonl.
            better: What is better, "lower" or "higher".
        """
        return next(iter(ranking(self._checkpointer.checkpoints, metric, better)), None)

    def save(
        self,
        step: int,
        state: NamedTuple,
        progress: Json,
        *,
        force: bool = False,
        metrics: Mapping[str, float] | None = None,
        record: Json | None = None,
    ) -> bool:
        """Start to save in the background if the policy wants this step.

        It blocks until the arrays are copied, and until an earlier save has ended.

        Args:
            step: The number of steps done.
            state: The train state.
            progress: JSON of what else is needed to resume, such as the position in the data.
            force: Save even if the policy does not want the step.
            metrics: The numbers of this step, by which `best_step` and `keep_best` choose.
            record: JSON for a reader, such as configuration and versions; no program reads it.

        Returns:
            Whether a save was started.
        """
        if not self.due(step, force=force):
            return False
        began = time.perf_counter()
        self._finish_pending(wait=True)
        parts = {"state": self._saved_parts(state), "progress": progress}
        if record is not None:
            parts["record"] = record
        try:
            response = self._checkpointer.save_checkpointables_async(
                step, parts, force=True, metrics=dict(metrics or {}) or None
            )
            assert response is not None
        except Exception as error:  # any exception: it depends on the kind of store
            failed: Future[None] = Future()
            failed.set_exception(error)
            self._pending = (step, failed)
            self._finish_pending(wait=False)
            return False
        self._pending = (step, self._thread.submit(self._wait_and_checksum, step, response))
        self.blocked_seconds = time.perf_counter() - began
        return True

    def due(self, step: int, *, force: bool = False) -> bool:
        """Return whether `save` would save; cheap enough to call after every step."""
        self._finish_pending(wait=False)
        return self.latest_step != step and (force or self._is_due(step))

    def progress(self, step: int) -> Json:
        """Return the `progress` that was saved with a step, without reading the state."""
        return self._checkpointer.load_checkpointables(step, {"progress": None})["progress"]

    def record(self, step: int) -> Json:
        """Return the `record` that was saved with a step."""
        return self._checkpointer.load_checkpointables(step, {"record": None})["record"]

    def saved_weights(self, step: int) -> Any:
        """Return shapes and types of a step's weights, as nested dicts of descriptions."""
        saved_here = read_descriptions(self._directory(step))["params"]
        if self.base is None:
            return saved_here
        with self._open_base() as other:
            there = flatten(other.saved_weights(self.base.step))
        return merge(saved_here, {path: there[path] for path in self.base.fingerprints})

    def restore(self, step: int, abstract: State) -> tuple[State, Json]:
        """Restore a step.

        Args:
            step: A complete step.
            abstract: Shape, type and sharding of every array of the state.

        Returns:
            The state, sharded as `abstract`, and the `progress` that was saved with it.

        Raises:
            ConfigError: An array has another shape, or the base checkpoint is missing or changed.
        """
        check_shapes(self._saved_parts(abstract), self._directory(step))
        parts = self._checkpointer.load_checkpointables(
            step, {"state": self._saved_parts(abstract), "progress": None}
        )
        state = parts["state"]
        if self.base is not None:
            frozen = self._restore_frozen(abstract._asdict()["params"])
            for name in self._weight_fields(abstract):
                # The weights and their moving average must not share arrays: a training step
                # overwrites the buffers of both (donation).
                state[name] = merge(state[name], jax.tree.map(jnp.copy, frozen))
        return abstract._replace(**state), parts["progress"]

    def restore_weights(self, step: int, abstract: Any) -> Any:
        """Restore the weights of a step alone.

        Args:
            step: A complete step.
            abstract: Shape, type and sharding of the weights to read, which may be some of them.

        Returns:
            The weights, in the structure of `abstract`.

        Raises:
            ConfigError: A weight has another shape, or the base checkpoint is missing or changed.
        """
        saved_here = omit(abstract, self.base.fingerprints) if self.base else abstract
        params: Any = {}
        if saved_here:
            check_shapes({"params": saved_here}, self._directory(step))
            with context(partial_load=True):
                parts = ocp.load_checkpointables(
                    self._directory(step), {"state": {"params": saved_here}}
                )
            params = parts["state"]["params"]
        return merge(params, self._restore_frozen(abstract)) if self.base else params

    def use_base(self, base: BaseCheckpoint) -> None:
        """Save from now on without the weights that `base` holds, and record that.

        Args:
            base: The checkpoint that holds them.
        """
        self.base = base
        if jax.process_index() == 0 and not self._for_reading:
            base.record(self.model_dir)
            if (failure := base.pin(self.model_dir)) is not None:
                _LOG.warning(
                    f"cannot mark step {base.step:,} of {base.model_dir} as used by this run "
                    f"({failure}); keep that checkpoint, it holds this run's frozen weights"
                )

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """Read all arrays of a step's state into this process's memory; returns them by path."""
        stored = read_descriptions(self._directory(step))
        with context():
            into = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), stored)
            state = ocp.load_checkpointables(self._directory(step), {"state": into})["state"]
        return {path: np.asarray(leaf) for path, leaf in flatten(state).items()}

    def wait(self) -> None:
        """Wait until everything that was saved is on disk, or has failed."""
        self._finish_pending(wait=True)

    def save_with_retries(
        self, step: int, state: NamedTuple, progress: Json, **beside: Any
    ) -> None:
        """Save a step and wait until it is on disk, with the retries that the policy allows.

        Args:
            step: The number of steps done. A step that is on disk already is not saved again.
            state: The train state.
            progress: As for `save`.
            **beside: `metrics` and `record`, as for `save`.

        Raises:
            ConfigError: After `policy.max_failures` failures in a row.
        """
        while True:
            self.save(step, state, progress, force=True, **beside)
            self._finish_pending(wait=True)
            if step in self.steps:
                return
            time.sleep(self._policy.retry_seconds)

    def find_corruption(self, step: int) -> str | None:
        """Return what is wrong with the files of a step, or None; reads all of them."""
        if is_url(self.model_dir):  # object stores verify checksums themselves
            return None
        return checksums.find_corruption(Path(self._directory(step)))

    def has_checksums(self, step: int) -> bool:
        """Whether `find_corruption` can compare the files of a step with checksums."""
        return is_url(self.model_dir) or checksums.has_checksums(Path(self._directory(step)))

    def quarantine(self, step: int, folder: str = "quarantine") -> epath.Path:
        """Move a step out of `checkpoints/`, so that it is kept but never restored.

        Args:
            step: The step to move.
            folder: The directory below `model_dir` that takes it.

        Returns:
            The new path of the step.
        """
        target = self.model_dir / folder / f"{step}.{time.time_ns()}"
        if processes.is_first():
            target.parent.mkdir(exist_ok=True)
            atomic.rename(self._directory(step), target)
        processes.barrier("quarantine")
        self._checkpointer.reload()
        return target

    def _weight_fields(self, state: NamedTuple) -> list[str]:
        """The fields of a state that hold weights."""
        fields = state._asdict()
        return [name for name in ("params", "average") if fields.get(name) is not None]

    def _saved_parts(self, state: NamedTuple) -> dict[str, Any]:
        """The parts of a state that are saved here: all but the weights that the base holds."""
        parts = state._asdict()
        if self.base is None:
            return parts
        saved_here = {
            name: omit(parts[name], self.base.fingerprints) for name in self._weight_fields(state)
        }
        return parts | saved_here

    def _restore_frozen(self, abstract: Any) -> dict[str, Any]:
        """Restore those weights of `abstract` that the base holds, by their paths."""
        assert self.base is not None
        frozen = {p: leaf for p, leaf in flatten(abstract).items() if p in self.base.fingerprints}
        if not frozen:
            return {}
        with self._open_base() as other:
            weights = flatten(other.restore_weights(self.base.step, unflatten(frozen)))
        self.base.check(weights, self.model_dir)
        return weights

    def _open_base(self) -> "Checkpointer":
        """Open the run that holds the base checkpoint, for reading."""
        assert self.base is not None
        if not (self.base.model_dir / "checkpoints").is_dir():
            raise self.base.error(self.model_dir, "no checkpoints")
        other = Checkpointer(self.base.model_dir)
        if self.base.step not in other.steps:
            there = ", ".join(f"{step:,}" for step in other.steps) or "none"
            raise self.base.error(self.model_dir, f"the steps {there}")
        return other

    def _directory(self, step: int) -> epath.Path:
        return epath.Path(self._checkpointer.directory) / str(step)

    def _is_due(self, step: int) -> bool:
        """Whether the policy wants this step, or it is time to retry a failed save.

        Several processes wait for the next step that the policy wants: to retry earlier, they would
        have to agree on the step.
        """
        alone = jax.process_count() == 1
        retry = alone and self._failures > 0 and time.monotonic() >= self._retry_at
        return retry or (self._policy.may_save(step) and self._checkpointer.should_save(step))

    def _wait_and_checksum(self, step: int, response: Any) -> None:
        """Wait for a save and write its checksums; runs in the thread."""
        response.result()
        if jax.process_index() == 0 and not is_url(self.model_dir):
            # The policy may delete the step meanwhile, and the disk may be full.
            with contextlib.suppress(OSError):
                checksums.write_checksums(Path(self._directory(step)))

    def _finish_pending(self, *, wait: bool) -> None:
        """Handle the result of the pending save, if it has ended; cheap enough for every step.

        Several processes must agree on the result: a step that one of them could not save is not
        saved. They exchange it only where all of them wait, and never poll.

        Args:
            wait: Wait for the save to end.
        """
        alone = processes.count() == 1
        if self._pending is None or not (wait or (alone and self._pending[1].done())):
            return
        (step, saving), self._pending = self._pending, None
        error = saving.exception()
        text = error and shortened(str(error))
        failures = list(filter(None, processes.gather(text, "saved", seconds=processes.LONG)))
        if error is None and failures:
            error = RuntimeError(failures[0])
        if error is None:
            self._failures = 0
        else:
            self._handle_failure(step, error)

    def _handle_failure(self, step: int, error: BaseException) -> None:
        self._failures += 1
        self._retry_at = time.monotonic() + self._policy.retry_seconds
        # Orbax raises the error once in every thread, also in this one.
        with contextlib.suppress(Exception):
            self._checkpointer.wait()
        incomplete, most = self._directory(step), self._policy.max_failures
        with contextlib.suppress(OSError):  # remove the incomplete files: the disk may be full
            is_incomplete = incomplete.exists() and not (incomplete / COMPLETE).exists()
            if jax.process_index() == 0 and is_incomplete:
                incomplete.rmtree()
        self._checkpointer.reload()
        newest = "there is no checkpoint yet"
        if self.latest_step is not None:
            newest = f"the newest checkpoint is that of step {self.latest_step:,}"
        message = (
            f"cannot save step {step:,} ({shortened(str(error))}); {newest}; failure "
            f"{self._failures} of at most {most} in a row"
        )
        if self._failures >= most:
            raise ConfigError(message, "MODEL_DIR", "CheckpointPolicy.max_failures") from error
        if processes.is_first():
            _LOG.warning(message)


def chosen_step(saved: Checkpointer, step: int | None, *names: str) -> int:
    """Return `step` if there is a checkpoint of it; for None, the newest.

    Args:
        saved: The checkpoints.
        step: A step or None.
        *names: The gin names that set directory and step, for the error.

    Raises:
        ConfigError: There is no such checkpoint; the error lists those that exist.
    """
    steps = saved.steps
    if not steps or step not in (None, *steps):
        raise ConfigError(
            f"{saved.model_dir} has no checkpoint{'' if step is None else f' of step {step:,}'}; "
            f"the steps there: {', '.join(f'{n:,}' for n in steps) or 'none'}",
            *names,
        )
    return steps[-1] if step is None else step


def shortened(text: str, most: int = 400) -> str:
    """Return a text as one line; a long one loses its middle, since the cause is often at the end.

    Args:
        text: Such as an error of TensorStore, which may have hundreds of lines.
        most: The number of characters to keep, about.
    """
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"


def absolute(path: epath.Path) -> epath.Path:
    """Return the absolute path; the address of an object store is returned as it is."""
    return path if is_url(path) else path.absolute()
