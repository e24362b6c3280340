"""Saving a run and going on with it: train state and stream position in one atomic step (orbax v1).

Order in which a run looks for its start:

1. the newest checkpoint of its own model directory;
2. weights of another run, if it is given one (`run.start.InitFrom`);
3. scratch.
"""

import contextlib
import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from t5x_lite import checksums
from t5x_lite.errors import ConfigError
from t5x_lite.frozen import Base
from t5x_lite.trees import flat, joined, nested, without

Json = dict[str, Any]
State = TypeVar("State", bound=NamedTuple)  # its fields are trees of arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointPolicy:
    """When to save and what to keep; the last step of a run is always saved.

    every_steps: save when the number of finished steps is a multiple of it.
    keep_latest: so many checkpoints stay; None keeps all.
    """

    every_steps: int = 1000
    keep_latest: int | None = 3

    def __post_init__(self):
        if self.every_steps < 1:
            raise ConfigError(
                f"every_steps must be at least 1; got {self.every_steps}",
                "CheckpointPolicy.every_steps",
            )
        if self.keep_latest is not None and self.keep_latest < 1:
            raise ConfigError(
                f"keep_latest must be None or at least 1; got {self.keep_latest}",
                "CheckpointPolicy.keep_latest",
            )


class Checkpoints:
    """The checkpoints of one run, under `model_dir`/checkpoints/<step>; a context manager.

    Saving copies the arrays and goes on in the background; a step directory counts only once it
    holds its commit marker, which is written last, so neither a killed save nor half of a copy is
    ever mistaken for a checkpoint, on any kind of file system.

    Once a step is complete, a thread records its files' checksums in it. `damage` tells of a step
    whose files are not what they were, and `set_aside` moves it out of the way.

    A run that rests on another's checkpoint (`rest_on`) saves its weights without the frozen ones;
    whoever reads weights here is given all of them.

    Without a policy it is for reading: nothing is saved, and what another process is saving stays.
    """

    def __init__(self, model_dir: str | Path, policy: CheckpointPolicy | None = None):
        for_reading = policy is None
        policy = policy or CheckpointPolicy(keep_latest=None)
        self.model_dir = Path(model_dir)
        self._sealing = ThreadPoolExecutor(1, thread_name_prefix="checksums")
        self._unsealed: list[int] = []  # steps saved by this process
        self.base = Base.recorded(self.model_dir)
        saving, keeping = ocp.training.save_decision_policies, ocp.training.preservation_policies
        keep = keeping.PreserveAll() if policy.keep_latest is None else None
        self._checkpointer = ocp.training.Checkpointer(
            str(self.model_dir.absolute() / "checkpoints"),
            context=_context(),
            # orbax types these two by its new protocols and its policies by the old ones.
            save_decision_policy=saving.FixedIntervalPolicy(policy.every_steps),  # pyright: ignore
            preservation_policy=keep or keeping.LatestN(policy.keep_latest),  # pyright: ignore
            cleanup_tmp_directories=not for_reading,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_):
        self._checkpointer.close()
        self._seal_complete_steps()
        self._sealing.shutdown()

    @property
    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def steps(self) -> list[int]:
        """All complete steps, in order."""
        return sorted(found.step for found in self._checkpointer.checkpoints)

    def save(self, step: int, state: NamedTuple, progress: Json, *, force: bool = False) -> bool:
        """Save in the background if the policy says so; `progress` is JSON: position and clock."""
        self._seal_complete_steps()
        if self.latest_step == step:
            return False
        parts = {"state": self._own(state), "progress": progress}
        saving = self._checkpointer.save_checkpointables_async(step, parts, force=force) is not None
        if saving and jax.process_index() == 0:
            self._unsealed.append(step)
        return saving

    def progress(self, step: int) -> Json:
        """What was saved beside a step's state, without reading the state."""
        return self._checkpointer.load_checkpointables(step, {"progress": None})["progress"]

    def saved_weights(self, step: int) -> Any:
        """Shapes and types of a step's weights, as nested dicts of descriptions; no numbers."""
        with _context():
            found = ocp.checkpointables_metadata(self._checkpointer.directory / str(step))
        own = found.metadata["state"]["params"]
        if self.base is None:
            return own
        with self._base() as other:
            there = flat(other.saved_weights(self.base.step))
        return joined(own, {path: there[path] for path in self.base.fingerprints})

    def restore(self, step: int, abstract: State) -> tuple[State, Json]:
        """The state of a step, placed as `abstract` says, and its progress."""
        parts = self._checkpointer.load_checkpointables(
            step, {"state": self._own(abstract), "progress": None}
        )
        state = parts["state"]
        if self.base is not None:
            frozen = self._frozen(abstract._asdict()["params"])
            for name in self._with_weights(abstract):
                state[name] = joined(state[name], frozen)
        return abstract._replace(**state), parts["progress"]

    def restore_weights(self, step: int, abstract: Any) -> Any:
        """The weights of a step alone, placed as `abstract` says, whatever else was saved."""
        own = without(abstract, self.base.fingerprints) if self.base else abstract
        params: Any = {}
        if own:
            with _context(partial_load=True):
                path = self._checkpointer.directory / str(step)
                parts = ocp.load_checkpointables(path, {"state": {"params": own}})
            params = parts["state"]["params"]
        return joined(params, self._frozen(abstract)) if self.base else params

    def rest_on(self, base: Base) -> None:
        """Save and restore from now on without the weights that `base` holds, and record it."""
        self.base = base
        if jax.process_index() == 0:
            base.record(self.model_dir)

    def wait(self) -> None:
        """Return once everything saved so far is safely on disk."""
        self._checkpointer.wait()
        self._seal_complete_steps()

    def damage(self, step: int) -> str | None:
        """What is wrong with the files of a step, or None; reads all of them."""
        return checksums.damage(self._directory(step))

    def set_aside(self, step: int) -> Path:
        """Move a step out of the way, where a person may look at it; returns its new place."""
        place = self.model_dir / "damaged" / f"{step}.{time.time_ns()}"
        place.parent.mkdir(exist_ok=True)
        self._directory(step).rename(place)
        self._checkpointer.reload()
        return place

    def _with_weights(self, state: NamedTuple) -> list[str]:
        found = state._asdict()
        return [name for name in ("params", "average") if found.get(name) is not None]

    def _own(self, state: NamedTuple) -> dict[str, Any]:
        """What of a state is saved here: all but the frozen weights that another run keeps."""
        parts = state._asdict()
        if self.base is None:
            return parts
        own = {
            name: without(parts[name], self.base.fingerprints) for name in self._with_weights(state)
        }
        return parts | own

    def _frozen(self, abstract: Any) -> dict[str, Any]:
        """The frozen weights among `abstract`, by their paths, from where this run took them."""
        assert self.base is not None
        wanted = {p: leaf for p, leaf in flat(abstract).items() if p in self.base.fingerprints}
        if not wanted:
            return {}
        with self._base() as other:
            weights = flat(other.restore_weights(self.base.step, nested(wanted)))
        self.base.check(weights, self.model_dir)
        return weights

    def _base(self) -> "Checkpoints":
        """The run that this one rests on, for reading."""
        assert self.base is not None
        if not (self.base.model_dir / "checkpoints").is_dir():
            raise self.base.error(self.model_dir, "no checkpoints")
        other = Checkpoints(self.base.model_dir)
        if self.base.step not in other.steps:
            there = ", ".join(f"{step:,}" for step in other.steps) or "none"
            raise self.base.error(self.model_dir, f"the steps {there}")
        return other

    def _directory(self, step: int) -> Path:
        return Path(self._checkpointer.directory) / str(step)

    def _seal_complete_steps(self) -> None:
        """Record checksums of what this process saved; called after every step, so cheap."""
        if self._unsealed and not self._checkpointer.is_saving_in_progress():
            for step in self._unsealed:
                self._sealing.submit(_seal_if_there, self._directory(step))
            self._unsealed = []


def _seal_if_there(directory: Path) -> None:
    # The step may be deleted meanwhile, and a full disk is no reason to end a run.
    with contextlib.suppress(OSError):
        checksums.seal(directory)


def _context(*, partial_load: bool = False) -> ocp.Context:
    context = ocp.Context()
    context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE
    context.pytree.loading.partial_load = partial_load
    return context
