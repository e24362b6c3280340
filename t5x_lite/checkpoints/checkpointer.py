"""Saving a run and going on with it: train state and stream position in one atomic step (orbax v1).

Order in which a run looks for its start:

1. the newest checkpoint of its own model directory;
2. weights of another run, if it is given one (`trainer.restore.InitFrom`);
3. scratch.
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
from t5x_lite.checkpoints.metadata import check_shapes, context, described
from t5x_lite.checkpoints.policy import Better, CheckpointPolicy, ranking
from t5x_lite.distributed import processes
from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic, checksums
from t5x_lite.io.urls import check_reachable, is_url
from t5x_lite.tree_paths import flatten, merge, omit, unflatten

Json = dict[str, Any]
State = TypeVar("State", bound=NamedTuple)  # its fields are trees of arrays
COMPLETE = "commit_success.txt"  # orbax writes it last
_LOG = logging.getLogger(__name__)


class Checkpointer:
    """The checkpoints of one run, under `model_dir`/checkpoints/<step>; a context manager.

    Saving copies the arrays and goes on in the background; a step directory counts only once it
    holds its commit marker, which is written last, so neither a killed save nor half of a copy is
    ever mistaken for a checkpoint, on any kind of file system.

    Once a step is complete, a thread writes its files' checksums into it. `find_corruption`
    compares a step's files with them, and `quarantine` moves a step out of `checkpoints/`.

    A save that fails (a full disk, a store that cannot be reached) leaves the older steps as they
    are. It is logged as a warning and tried again at a later step; `policy.max_failures` failures
    in a row raise ConfigError.

    A run that rests on another's checkpoint (`rest_on`) saves its weights without the frozen ones;
    whoever reads weights here is given all of them.

    Without a policy it is for reading: nothing is saved, and what another process is saving stays.
    """

    def __init__(self, model_dir: str | epath.PathLike, policy: CheckpointPolicy | None = None):
        self._for_reading = policy is None
        self._policy = policy or CheckpointPolicy(keep=None)
        self.model_dir = epath.Path(model_dir)
        check_reachable(self.model_dir)
        self.base = BaseCheckpoint.recorded(self.model_dir)
        self.blocked_seconds = 0.0  # of the loop, by the last save
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._pending: tuple[int, Future[None]] | None = None
        self._failures, self._retry_at = 0, 0.0
        # orbax logs a failed save in some hundred lines; `_failed` logs it in one.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._checkpointer = ocp.training.Checkpointer(
            absolute(self.model_dir) / "checkpoints",
            context=context(save_timeout_seconds=self._policy.save_timeout_seconds),
            save_decision_policy=self._policy.saving(),
            preservation_policy=self._policy.keeping(self.model_dir),
            cleanup_tmp_directories=not self._for_reading,
        )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_):
        if self._pending is not None:  # alone: the other processes may have ended with an error
            self._pending[1].exception()
        with contextlib.suppress(Exception):  # it raises what a failed save raised before
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
        return sorted(found.step for found in self._checkpointer.checkpoints)

    def best_step(self, metric: str, better: Better) -> int | None:
        """The step at which a number, named as in metrics.jsonl, was best; None if none has it."""
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
        """Save in the background if the policy says so; returns whether that has begun.

        progress: JSON, position and clock. metrics: numbers of this very step. record: JSON for a
        person, such as the configuration and versions; nothing reads it.
        """
        if not self.due(step, force=force):
            return False
        began = time.perf_counter()
        self._settle(wait=True)
        parts = {"state": self._own(state), "progress": progress}
        if record is not None:
            parts["record"] = record
        try:
            response = self._checkpointer.save_checkpointables_async(
                step, parts, force=True, metrics=dict(metrics or {}) or None
            )
            assert response is not None
        except Exception as error:  # whatever a store may raise
            failed: Future[None] = Future()
            failed.set_exception(error)
            self._pending = (step, failed)
            self._settle(wait=False)
            return False
        self._pending = (step, self._thread.submit(self._complete, step, response))
        self.blocked_seconds = time.perf_counter() - began
        return True

    def due(self, step: int, *, force: bool = False) -> bool:
        """Whether `save` would save; cheap."""
        self._settle(wait=False)
        return self.latest_step != step and (force or self._wanted(step))

    def progress(self, step: int) -> Json:
        """What was saved beside a step's state, without reading the state."""
        return self._checkpointer.load_checkpointables(step, {"progress": None})["progress"]

    def record(self, step: int) -> Json:
        """What was recorded for a person beside a step's state."""
        return self._checkpointer.load_checkpointables(step, {"record": None})["record"]

    def saved_weights(self, step: int) -> Any:
        """Shapes and types of a step's weights, as nested dicts of descriptions; no numbers."""
        own = described(self._directory(step))["params"]
        if self.base is None:
            return own
        with self._base() as other:
            there = flatten(other.saved_weights(self.base.step))
        return merge(own, {path: there[path] for path in self.base.fingerprints})

    def restore(self, step: int, abstract: State) -> tuple[State, Json]:
        """The state of a step, placed as `abstract` says, and its progress."""
        check_shapes(self._own(abstract), self._directory(step))
        parts = self._checkpointer.load_checkpointables(
            step, {"state": self._own(abstract), "progress": None}
        )
        state = parts["state"]
        if self.base is not None:
            frozen = self._frozen(abstract._asdict()["params"])
            for name in self._with_weights(abstract):
                # Each tree has arrays of its own: a step is given all of them to overwrite.
                state[name] = merge(state[name], jax.tree.map(jnp.copy, frozen))
        return abstract._replace(**state), parts["progress"]

    def restore_weights(self, step: int, abstract: Any) -> Any:
        """The weights of a step alone, placed as `abstract` says, whatever else was saved."""
        own = omit(abstract, self.base.fingerprints) if self.base else abstract
        params: Any = {}
        if own:
            check_shapes({"params": own}, self._directory(step))
            with context(partial_load=True):
                parts = ocp.load_checkpointables(self._directory(step), {"state": {"params": own}})
            params = parts["state"]["params"]
        return merge(params, self._frozen(abstract)) if self.base else params

    def rest_on(self, base: BaseCheckpoint) -> None:
        """Save and restore from now on without the weights that `base` holds, and record it."""
        self.base = base
        if jax.process_index() == 0 and not self._for_reading:
            base.record(self.model_dir)
            if (failure := base.pin(self.model_dir)) is not None:
                _LOG.warning(
                    f"cannot mark step {base.step:,} of {base.model_dir} as used by this run "
                    f"({failure}); keep that checkpoint, it holds this run's frozen weights"
                )

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """All arrays of a step's state in this process's memory, by their paths."""
        stored = described(self._directory(step))
        with context():
            into = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), stored)
            found = ocp.load_checkpointables(self._directory(step), {"state": into})["state"]
        return {path: np.asarray(leaf) for path, leaf in flatten(found).items()}

    def wait(self) -> None:
        """Return once everything saved so far is safely on disk, or has failed."""
        self._settle(wait=True)

    def save_surely(self, step: int, state: NamedTuple, progress: Json, **beside: Any) -> None:
        """Return once this step is safely on disk, trying again as often as the policy allows."""
        while True:
            self.save(step, state, progress, force=True, **beside)
            self._settle(wait=True)
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

    def _with_weights(self, state: NamedTuple) -> list[str]:
        found = state._asdict()
        return [name for name in ("params", "average") if found.get(name) is not None]

    def _own(self, state: NamedTuple) -> dict[str, Any]:
        """What of a state is saved here: all but the frozen weights that another run keeps."""
        parts = state._asdict()
        if self.base is None:
            return parts
        own = {
            name: omit(parts[name], self.base.fingerprints) for name in self._with_weights(state)
        }
        return parts | own

    def _frozen(self, abstract: Any) -> dict[str, Any]:
        """The frozen weights among `abstract`, by their paths, from where this run took them."""
        assert self.base is not None
        wanted = {p: leaf for p, leaf in flatten(abstract).items() if p in self.base.fingerprints}
        if not wanted:
            return {}
        with self._base() as other:
            weights = flatten(other.restore_weights(self.base.step, unflatten(wanted)))
        self.base.check(weights, self.model_dir)
        return weights

    def _base(self) -> "Checkpointer":
        """The run that this one rests on, for reading."""
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

    def _wanted(self, step: int) -> bool:
        """Whether the policy wants this step, or one that failed is to be made up for.

        Several processes do not make up for it early: they would have to agree on the moment.
        """
        alone = jax.process_count() == 1
        again = alone and self._failures > 0 and time.monotonic() >= self._retry_at
        return again or (self._policy.may_want(step) and self._checkpointer.should_save(step))

    def _complete(self, step: int, response: Any) -> None:
        """Wait for a save and record its checksums; in the thread."""
        response.result()
        if jax.process_index() == 0 and not is_url(self.model_dir):
            # The step may be deleted meanwhile, and a disk may have room for no more.
            with contextlib.suppress(OSError):
                checksums.write_checksums(Path(self._directory(step)))

    def _settle(self, *, wait: bool) -> None:
        """See what became of the save under way; called after every step, so cheap.

        Several processes do so only where all of them come by and wait: what one could not save
        none has saved.
        """
        alone = processes.count() == 1
        if self._pending is None or not (wait or (alone and self._pending[1].done())):
            return
        (step, saving), self._pending = self._pending, None
        error = saving.exception()
        said = processes.gather(error and shortened(str(error)), "saved", seconds=processes.LONG)
        if error is None and any(said):
            error = RuntimeError(next(filter(None, said)))
        if error is None:
            self._failures = 0
        else:
            self._failed(step, error)

    def _failed(self, step: int, error: BaseException) -> None:
        self._failures += 1
        self._retry_at = time.monotonic() + self._policy.retry_seconds
        with contextlib.suppress(Exception):  # orbax raises it in every thread once: also in ours
            self._checkpointer.wait()
        left, most = self._directory(step), self._policy.max_failures
        with contextlib.suppress(OSError):  # what there is of it takes room
            if jax.process_index() == 0 and left.exists() and not (left / COMPLETE).exists():
                left.rmtree()
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
    """`step`, or the newest for None; ConfigError, naming the steps there are, if it is missing."""
    steps = saved.steps
    if not steps or step not in (None, *steps):
        raise ConfigError(
            f"{saved.model_dir} has no checkpoint{'' if step is None else f' of step {step:,}'}; "
            f"the steps there: {', '.join(f'{n:,}' for n in steps) or 'none'}",
            *names,
        )
    return steps[-1] if step is None else step


def shortened(text: str, most: int = 400) -> str:
    """A text as one line, without its middle where it is long: the cause often stands last."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"


def absolute(path: epath.Path) -> epath.Path:
    """The path from the root; an address is one already."""
    return path if is_url(path) else path.absolute()
