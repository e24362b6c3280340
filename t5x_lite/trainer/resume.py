"""How a run starts: from its own newest checkpoint, another run's weights, or initial weights.

The order, which `restore_or_initialize` follows:

1. The newest checkpoint of the run's own directory. A corrupt one is moved to quarantine/, one that
   a rollback discarded to rolled_back/, and the one before it is tried.
2. If there is no checkpoint: the weights of another run or of an import (`InitFrom`), with a fresh
   optimizer.
3. Without `InitFrom`: initial weights.
"""

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
from t5x_lite.trainer.anomaly_guard import is_discarded, read_decisions
from t5x_lite.training.setup import TrainSetup
from t5x_lite.training.state import TrainState
from t5x_lite.tree_paths import flatten, merge, unflatten

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitFrom:
    """The weights that a run without checkpoints starts with; the optimizer starts fresh.

    Once the run has saved a checkpoint of its own, it resumes from that instead.

    Args:
        model_dir: The directory of the run or import whose weights are read.
        step: The step of its checkpoint; None is the newest.
        param_regex: A regular expression for the paths of the weights to read, which must match
            the whole path, such as "encoder/.*". The other weights are initialized. The default
            reads all.
        keep_step: Count on from that checkpoint's step, as T5's fine-tuning does; without it the
            run starts at step 0. Schedules of the learning rate depend on the step.
        relative_steps: With `keep_step`: `train.steps` is the number of steps to add. Without it,
            `train.steps` is the number of the last step.

    Raises:
        ConfigError: `param_regex` is not a regular expression.
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


class RunStart(NamedTuple):
    """What the first step of a launch starts from.

    Args:
        state: Weights, optimizer state and step, on the devices.
        step: The number of steps done.
        position: The position in the data; None is its beginning.
        seconds: Seconds of training before this launch.
        progress: Everything that was saved beside the state.
    """

    state: TrainState
    step: int
    position: StreamPosition | None
    seconds: float
    progress: Mapping[str, Any] = {}


def restore_or_initialize(
    program: TrainSetup, saved: Checkpointer, init_from: InitFrom | None
) -> RunStart:
    """Restore the newest checkpoint, else start with the weights of `init_from`, else initialize.

    The checkpoint of an imported directory holds weights only: the optimizer and the data start
    from the beginning. Corrupt checkpoints are moved to `quarantine/`, and the run resumes from the
    newest intact one. Checkpoints that a rollback discarded are moved to `rolled_back/`.

    Args:
        program: The functions, shapes and shardings of the run.
        saved: The run's checkpoints.
        init_from: Whose weights are read if there is no checkpoint.

    Raises:
        ConfigError: The only checkpoint is corrupt, or `init_from` does not fit the model.
    """
    _check_frozen_base(program, saved, init_from)
    decisions = read_decisions(saved.model_dir)
    while (latest := processes.broadcast(saved.latest_step)) is not None:
        restored = None
        if (corruption := _find_corruption(saved, latest)) is None:
            with logged_wait(_LOG, f"restoring step {latest:,}"):
                restored, corruption = _try_to_resume(program, saved, latest)
        if restored is None:
            _quarantine(saved, latest, corruption)
        elif is_discarded(decisions, latest, restored.progress):
            target = saved.quarantine(latest, "rolled_back")
            _LOG.info(
                f"checkpoint of step {latest:,} was discarded by a rollback; moved to {target}"
            )
        else:
            return restored
    if init_from is None:
        with logged_wait(_LOG, "initializing weights"):
            return RunStart(jax.block_until_ready(program.initial()), 0, None, 0.0)
    with logged_wait(_LOG, f"reading weights from {init_from.model_dir}"):
        return start_from_weights(program, saved, init_from)


def check_init_from(init_from: InitFrom, shapes: Any) -> int:
    """Check that the weights of `init_from` exist and fit the model, without reading them.

    Args:
        init_from: Whose weights are to be read.
        shapes: The shapes of the model's weights.

    Returns:
        The step of the checkpoint.

    Raises:
        ConfigError: The checkpoint does not exist, or lacks weights of these shapes.
    """
    directory = epath.Path(init_from.model_dir)
    if not (directory / "checkpoints").is_dir():
        raise ConfigError(
            f"{directory} holds no checkpoints; expected the model directory of a run or an import",
            "InitFrom.model_dir",
        )
    with Checkpointer(directory) as other:
        step = chosen_step(other, init_from.step, "InitFrom.model_dir", "InitFrom.step")
        there = flatten(other.saved_weights(step))
    selected = _select_weights(init_from, shapes)
    if not selected:
        raise ConfigError(
            f"param_regex={init_from.param_regex!r} matches none of the weights "
            f"({', '.join(flatten(shapes))})",
            "InitFrom.param_regex",
        )
    wrong = [
        f"{path} {list(leaf.shape)} (there: {list(there[path].shape) if path in there else 'none'})"
        for path, leaf in selected.items()
        if path not in there or tuple(there[path].shape) != leaf.shape
    ]
    if wrong:
        raise ConfigError(
            f"step {step:,} of {directory} does not have the weights of this model: "
            f"{', '.join(wrong)}; expected the same model, or an InitFrom.param_regex that does "
            f"not match these",
            "InitFrom.model_dir",
            "InitFrom.param_regex",
        )
    return step


def last_step(model_dir: epath.Path, init_from: InitFrom | None, steps: int, shapes: Any) -> int:
    """Return the number of a run's last step.

    It is `steps`, unless `init_from.relative_steps` adds the step at which the run began. A run
    that was launched before has recorded that step; otherwise it is that of the weights.

    Args:
        model_dir: The run's directory.
        init_from: Whose weights the run started or starts with.
        steps: As configured (`train.steps`).
        shapes: The shapes of the model's weights.
    """
    if init_from is None or not (init_from.keep_step and init_from.relative_steps):
        return steps
    launched = launch_steps(model_dir)
    first = min(launched) if launched else check_init_from(init_from, shapes)
    return first + steps


def _find_corruption(saved: Checkpointer, step: int) -> str | None:
    """Return what is wrong with the files of a step; process 0 reads them, since that is slow."""
    corruption = saved.find_corruption(step) if processes.is_first() else None
    return processes.broadcast(corruption, "corruption", seconds=processes.LONG)


def _quarantine(saved: Checkpointer, step: int, corruption: str | None) -> None:
    # Starting again from step 0, because the only checkpoint is damaged, may cost weeks: a person
    # has to decide that.
    if len(saved.steps) == 1:
        raise ConfigError(
            f"step {step:,} is corrupt ({corruption}) and the only checkpoint in "
            f"{saved.model_dir}; move it away to start again",
            "MODEL_DIR",
        )
    target = saved.quarantine(step)
    if processes.is_first():
        _LOG.warning(f"checkpoint of step {step:,} is corrupt ({corruption}); moved to {target}")


def _try_to_resume(
    program: TrainSetup, saved: Checkpointer, step: int
) -> tuple[RunStart | None, str | None]:
    """Return the start from a step, or why it cannot be read; the same in all processes.

    If the checksums of a step are right, or it is the only one, an error while reading is raised:
    the checkpoint is good, or there is no other.
    """
    if processes.broadcast(saved.has_checksums(step) or len(saved.steps) == 1):
        return resume_from(program, saved, step), None
    restored, failure = None, None
    try:
        restored = resume_from(program, saved, step)
    except ConfigError:  # of the frozen weights, which another run's checkpoint holds
        raise
    except Exception as error:
        # A process that was killed between a save and its checksums left a step without them.
        failure = f"it has no checksums and cannot be read: {shortened(str(error))}"
    failures = [text for text in processes.gather(failure) if text is not None]
    return (None, failures[0]) if failures else (restored, None)


def resume_from(program: TrainSetup, saved: Checkpointer, step: int) -> RunStart:
    """Restore one checkpoint.

    Args:
        program: The functions, shapes and shardings of the run.
        saved: The run's checkpoints.
        step: The step of the checkpoint.

    Returns:
        The start from it. The checkpoint of an import has weights only: there, the optimizer and
        the data start from the beginning.
    """
    if "position" not in (progress := saved.progress(step)):
        params = saved.restore_weights(step, program.abstract.params)
        return RunStart(program.from_weights(params, step), step, None, 0.0)
    state, progress = saved.restore(step, program.abstract)
    return RunStart(state, step, progress["position"], progress["seconds"], progress)


def _check_frozen_base(
    program: TrainSetup, saved: Checkpointer, init_from: InitFrom | None
) -> None:
    """Check that weights which the run's checkpoints omit are still frozen.

    If the checkpoint that holds them was moved, `init_from` says where it is now.
    """
    if (base := saved.base) is None:
        return
    if trained := sorted(set(base.fingerprints) - program.frozen):
        raise ConfigError(
            f"the run in {saved.model_dir} began with {len(base.fingerprints)} frozen weights, "
            f"which its checkpoints omit, and {len(trained)} of them are now to be trained "
            f"({trained[0]} ...); expected the same frozen weights, or a new MODEL_DIR that starts "
            f"from this run",
            "Grouped.frozen",
            "MODEL_DIR",
        )
    if init_from is not None and not base.model_dir.is_dir():
        moved_to = absolute(epath.Path(init_from.model_dir))
        saved.use_base(dataclasses.replace(base, model_dir=moved_to))


def start_from_weights(program: TrainSetup, saved: Checkpointer, init_from: InitFrom) -> RunStart:
    """Start with another run's weights.

    If weights are frozen, the checkpoints of this run will not hold them: they refer to those of
    the other run.

    Args:
        program: The functions, shapes and shardings of the run.
        saved: The run's checkpoints, of which there are none yet.
        init_from: Whose weights are read.

    Raises:
        ConfigError: The weights do not exist or do not fit.
    """
    step = check_init_from(init_from, program.abstract.params)
    selected = _select_weights(init_from, program.abstract.params)
    with Checkpointer(init_from.model_dir) as other:
        params = other.restore_weights(step, unflatten(selected))
    frozen = {path: leaf for path, leaf in flatten(params).items() if path in program.frozen}
    if frozen:
        saved.use_base(BaseCheckpoint.of(absolute(epath.Path(init_from.model_dir)), step, frozen))
    if len(selected) < len(flatten(program.abstract.params)):
        params = _fill_with_initial(program.initial().params, params)
    first = step if init_from.keep_step else 0
    return RunStart(program.from_weights(params, first), first, None, 0.0)


def _select_weights(init_from: InitFrom, shapes: Any) -> dict[str, Any]:
    return {k: v for k, v in flatten(shapes).items() if re.fullmatch(init_from.param_regex, k)}


def _fill_with_initial(initial: Any, restored: Any) -> Any:
    """Complete restored weights with initial ones.

    The vectors of a new prompt start as those of words in the restored embedding, which trains
    better than random vectors (Lester et al., 2021, section 3.2).
    """
    weights, table = flatten(restored), flatten(restored).get("token_embedder/embedding")
    if "prompt" in initial and table is not None:
        words = initial_prompt_ids(len(initial["prompt"]["embedding"]), len(table))
        weights = {"prompt/embedding": table[words]} | weights
    return merge(initial, weights)
