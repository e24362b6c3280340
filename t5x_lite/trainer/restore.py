"""Where a run begins: at its own newest checkpoint, with another run's weights, or from scratch."""

import dataclasses
import logging
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from t5x_lite.checkpoints.checkpointer import Checkpointer, absolute, chosen_step, shortened
from t5x_lite.checkpoints.frozen_base import BaseCheckpoint
from t5x_lite.checkpoints.run_directory import launch_steps
from t5x_lite.console import logged_wait
from t5x_lite.data.stream.stream import StreamPosition
from t5x_lite.distributed import processes
from t5x_lite.errors import ConfigError
from t5x_lite.models.layers import initial_prompt_ids
from t5x_lite.trainer import anomaly_guard
from t5x_lite.training.setup import TrainSetup
from t5x_lite.training.state import TrainState
from t5x_lite.tree_paths import flatten, merge, unflatten

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitFrom:
    """The run, or import, whose weights a new run starts with; once it has saved, its own count.

    model_dir: its directory. step: of its checkpoint; None is the newest. only: a regular
    expression for the paths of the weights to take ("encoder/.*"); the others start fresh.
    keep_step: the new run counts on from that checkpoint's step, as T5's fine-tuning does, instead
    of from 0. relative_steps: the steps of the new run are counted from there, too; without it
    `train.steps` is the number of the last step. The optimizer starts as new.
    """

    model_dir: str
    step: int | None = None
    param_regex: str = ".*"
    keep_step: bool = False
    relative_steps: bool = False

    def __post_init__(self):
        try:
            re.compile(self.param_regex)
        except re.error as error:
            raise ConfigError(
                f"param_regex={self.param_regex!r} is not a regular expression: {error}",
                "InitFrom.param_regex",
            ) from error


class Start(NamedTuple):
    """What the first step of this launch is given.

    position: None for the stream's beginning. progress: all that was saved beside the state.
    """

    state: TrainState
    step: int
    position: StreamPosition | None
    seconds: float  # of training before this launch
    progress: Mapping[str, Any] = {}


def start(program: TrainSetup, saved: Checkpointer, init_from: InitFrom | None) -> Start:
    """Return the newest checkpoint of `saved`, else the weights of `init_from`, else fresh weights.

    The checkpoint of an imported directory holds weights only: the optimizer and the stream start
    from the beginning. Corrupt checkpoints are moved to `quarantine/`, and the run resumes from the
    newest intact one. Checkpoints that a rollback discarded are moved to `rolled_back/`.
    """
    _find_base(program, saved, init_from)
    taken = anomaly_guard.read(saved.model_dir)
    while (latest := processes.broadcast(saved.latest_step)) is not None:
        if (corruption := _find_corruption(saved, latest)) is None:
            with logged_wait(_LOG, f"restoring step {latest:,}"):
                found, corruption = _tried(program, saved, latest)
            if found is not None and not anomaly_guard.gave_up(taken, latest, found.progress):
                return found
            if found is not None:
                target = saved.quarantine(latest, "rolled_back")
                _LOG.info(
                    f"checkpoint of step {latest:,} was discarded by a rollback; moved to {target}"
                )
                continue
        if len(saved.steps) == 1:
            raise ConfigError(
                f"step {latest:,} is corrupt ({corruption}) and the only checkpoint in "
                f"{saved.model_dir}; move it away to start again",
                "MODEL_DIR",
            )
        target = saved.quarantine(latest)
        if processes.is_first():
            _LOG.warning(
                f"checkpoint of step {latest:,} is corrupt ({corruption}); moved to {target}"
            )
    if init_from is None:
        with logged_wait(_LOG, "initializing weights"):
            return Start(jax.block_until_ready(program.initial()), 0, None, 0.0)
    with logged_wait(_LOG, f"reading weights from {init_from.model_dir}"):
        return from_weights(program, saved, init_from)


def check_init_from(init_from: InitFrom, shapes: Any) -> int:
    """The step whose weights will be taken; ConfigError if it is not there or does not fit."""
    directory = epath.Path(init_from.model_dir)
    if not (directory / "checkpoints").is_dir():
        raise ConfigError(
            f"{directory} holds no checkpoints; wanted the model directory of a run or an import",
            "InitFrom.model_dir",
        )
    with Checkpointer(directory) as other:
        step = chosen_step(other, init_from.step, "InitFrom.model_dir", "InitFrom.step")
        there = flatten(other.saved_weights(step))
    wanted = _taken(init_from, shapes)
    if not wanted:
        raise ConfigError(
            f"param_regex={init_from.param_regex!r} matches none of the weights "
            f"({', '.join(flatten(shapes))})",
            "InitFrom.param_regex",
        )
    wrong = [
        f"{path} {list(leaf.shape)} (there: {list(there[path].shape) if path in there else 'none'})"
        for path, leaf in wanted.items()
        if path not in there or tuple(there[path].shape) != leaf.shape
    ]
    if wrong:
        raise ConfigError(
            f"step {step:,} of {directory} does not have the weights of this model: "
            f"{', '.join(wrong)}; wanted the same model, or InitFrom.param_regex without these",
            "InitFrom.model_dir",
            "InitFrom.param_regex",
        )
    return step


def last_step(model_dir: epath.Path, init_from: InitFrom | None, steps: int, shapes: Any) -> int:
    """The number of a run's last step; where it began is told by its first launch."""
    if init_from is None or not (init_from.keep_step and init_from.relative_steps):
        return steps
    launched = launch_steps(model_dir)
    first = min(launched) if launched else check_init_from(init_from, shapes)
    return first + steps


def _find_corruption(saved: Checkpointer, step: int) -> str | None:
    """Return what process 0 finds wrong with a step: it alone reads the files, which is slow."""
    corruption = saved.find_corruption(step) if processes.is_first() else None
    return processes.broadcast(corruption, "corruption", seconds=processes.LONG)


def _tried(program: TrainSetup, saved: Checkpointer, step: int) -> tuple[Start | None, str | None]:
    """The start from a step, or what is wrong with it, the same in all processes.

    A step with checksums, and the only one there is, is not given up for an error.
    """
    if processes.broadcast(saved.has_checksums(step) or len(saved.steps) == 1):
        return go_on(program, saved, step), None
    found, failure = None, None
    try:
        found = go_on(program, saved, step)
    except ConfigError:  # of frozen weights, which are not this run's
        raise
    except Exception as error:
        # Whoever was killed between a save and its checksums left only orbax's own.
        failure = f"it has no checksums and cannot be read: {shortened(str(error))}"
    failures = [each for each in processes.gather(failure) if each is not None]
    return (None, failures[0]) if failures else (found, None)


def go_on(program: TrainSetup, saved: Checkpointer, step: int) -> Start:
    """The start from one checkpoint."""
    if "position" not in (progress := saved.progress(step)):
        params = saved.restore_weights(step, program.abstract.params)
        return Start(program.from_weights(params, step), step, None, 0.0)
    state, progress = saved.restore(step, program.abstract)
    return Start(state, step, progress["position"], progress["seconds"], progress)


def _find_base(program: TrainSetup, saved: Checkpointer, init_from: InitFrom | None) -> None:
    """Check what a run's checkpoints leave out; follow a base that was moved to `init_from`."""
    if (base := saved.base) is None:
        return
    if trained := sorted(set(base.fingerprints) - program.frozen):
        raise ConfigError(
            f"{saved.model_dir} was begun with {len(base.fingerprints)} frozen weights, which its "
            f"checkpoints leave out, and {len(trained)} of them are now to be trained "
            f"({trained[0]} ...); wanted the same, or a new MODEL_DIR that starts from this run",
            "Grouped.frozen",
            "MODEL_DIR",
        )
    if init_from is not None and not base.model_dir.is_dir():
        place = absolute(epath.Path(init_from.model_dir))
        saved.rest_on(dataclasses.replace(base, model_dir=place))


def from_weights(program: TrainSetup, saved: Checkpointer, init_from: InitFrom) -> Start:
    """The start with another run's weights, on which `saved` rests if they are frozen."""
    step = check_init_from(init_from, program.abstract.params)
    taken = _taken(init_from, program.abstract.params)
    with Checkpointer(init_from.model_dir) as other:
        params = other.restore_weights(step, unflatten(taken))
    frozen = {path: leaf for path, leaf in flatten(params).items() if path in program.frozen}
    if frozen:
        saved.rest_on(BaseCheckpoint.of(absolute(epath.Path(init_from.model_dir)), step, frozen))
    if len(taken) < len(flatten(program.abstract.params)):
        params = _with_fresh(program.initial().params, params)
    first = step if init_from.keep_step else 0
    return Start(program.from_weights(params, first), first, None, 0.0)


def _taken(init_from: InitFrom, shapes: Any) -> dict[str, Any]:
    return {k: v for k, v in flatten(shapes).items() if re.fullmatch(init_from.param_regex, k)}


def _with_fresh(fresh: Any, taken: Any) -> Any:
    """Fresh weights where none were taken; a fresh prompt says words of the embedding taken."""
    found, table = flatten(taken), flatten(taken).get("token_embedder/embedding")
    if "prompt" in fresh and table is not None:
        words = initial_prompt_ids(len(fresh["prompt"]["embedding"]), len(table))
        found = {"prompt/embedding": table[words]} | found
    return merge(fresh, found)
