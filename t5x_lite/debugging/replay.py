"""`t5x_lite replay`: compute one step of a run again and find the first invalid number."""

import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_lite.checkpoints.checkpointer import Checkpointer
from t5x_lite.checkpoints.run_directory import MODEL
from t5x_lite.console import logged_wait
from t5x_lite.data.stream.prefetch import process_rows, to_devices
from t5x_lite.data.stream.stream import StreamPosition
from t5x_lite.debugging.activation_probes import ProbeRow, Probes, Range, as_range, summary
from t5x_lite.distributed import processes
from t5x_lite.errors import ConfigError
from t5x_lite.io.run_records import read_json_lines
from t5x_lite.trainer.anomaly_guard import Decision, data_jumps, is_discarded, read_decisions
from t5x_lite.trainer.loop import compiled_step
from t5x_lite.trainer.prepare_run import PreparedRun, prepare_run
from t5x_lite.trainer.resume import RunStart, resume_from, start_from_weights
from t5x_lite.trainer.step_hashes import RECEIPTS
from t5x_lite.training.bit_fingerprints import to_hex
from t5x_lite.training.callbacks import Callback
from t5x_lite.training.inputs import batches_from
from t5x_lite.training.step import split_microbatches
from t5x_lite.training.step_metrics import FINGERPRINT_PREFIX
from t5x_lite.tree_paths import flatten

LARGEST = 65504.0  # the largest float16
_LOG = logging.getLogger(__name__)
_COLUMNS = ("weights", "output", "its gradient", "weights' gradient")


class StepRanges(NamedTuple):
    """The ranges of the values in a step.

    Attributes:
        rows: Measurements of all modules.
        batch: Ranges of the features of the batch that are not integers.
        loss: Range of the sum of losses.
    """

    rows: list[ProbeRow]
    batch: dict[str, Range]
    loss: Range


class Finding(NamedTuple):
    """Values that are not finite or out of range.

    Attributes:
        name: The module, the feature of the batch, or "loss".
        what: Which of its values, such as "output".
        range: Their range.
    """

    name: str
    what: str
    range: Range

    def __str__(self) -> str:
        if self.range.bad:
            problem = f"{self.range.bad:,.0f} of {self.range.size:,.0f} are not finite"
        else:
            problem = f"up to {self.range.largest:.3g} in magnitude"
        return f"{self.name}: its {self.what}: {problem}"


def replay(
    *,
    step: int,
    settings: Mapping[str, Any],
    largest: float = LARGEST,
    describe_config: Callable[[], str] = str,
) -> None:
    """Compute step `step` of a run again, and name the first module whose numbers are bad.

    It resumes from the newest intact checkpoint before the step, prints the ranges of all modules'
    weights, outputs and gradients, and writes nothing. The exit code is 0 if all of them are finite
    and in range, else 1.

    Args:
        step: The step, from 1.
        settings: The run's configuration, by the names of the parameters of `trainer.train.train`.
        largest: Magnitudes above it are out of range; the default is the largest float16.
        describe_config: Returns the configuration as text; all processes must have the same.

    Raises:
        ConfigError: There is no such run or step.
    """
    if step < 1 or largest <= 0:
        raise ConfigError(
            f"step is {step} and largest {largest}; expected a step from 1 and a positive number",
            "replay.step",
            "replay.largest",
        )
    parameters = inspect.signature(prepare_run).parameters
    shared = {name: value for name, value in settings.items() if name in parameters}
    with prepare_run(**shared, describe_config=describe_config) as prepared:
        _replay(prepared, settings.get("callbacks", ()), step=step, largest=largest)


def _replay(run: PreparedRun, callbacks: Sequence[Callback], *, step: int, largest: float) -> None:
    """Compute the step, print the ranges, and exit with 1 if a value is invalid."""
    console = run.console
    if not (run.directory / MODEL).exists():
        raise ConfigError(f"{run.directory} has no run", "MODEL_DIR")
    with Checkpointer(run.directory) as saved:
        start = _start(run, saved, step)
        _LOG.info(f"replaying from step {start.step:,} to step {step:,}")
        decisions = read_decisions(run.directory)
        state, batch, train_step = _forward(run, start, decisions, callbacks, step)
        with logged_wait(_LOG, f"measuring the values in step {step:,}"):
            ranges = _measure(run, state.params, batch, state.step)
        _, metrics = train_step(state, batch)
        metrics = metrics.unpack()
    for line in _table(ranges.rows):
        console.print(line)
    norm = float(metrics["grad_norm"])
    console.print(f"step {step:,}: sum of losses {ranges.loss.low:.6g}, gradient norm {norm:.6g}")
    console.print(_compare_with_step_hash(run, step, metrics))
    finding = next(findings(ranges, largest), None)
    if finding is None:
        console.print(f"all weights, outputs and gradients are finite and at most {largest:g}")
        return
    console.print(f"first value that is not finite and at most {largest:g}: {finding}")
    sys.exit(1)


def _start(run: PreparedRun, saved: Checkpointer, step: int) -> RunStart:
    """Return the newest intact checkpoint before the step, or else the beginning of the run.

    A checkpoint that the anomaly guard rolled back is not part of the run.
    """
    taken = read_decisions(run.directory)
    for saved_step in reversed([number for number in saved.steps if number < step]):
        corruption = saved.find_corruption(saved_step) if processes.is_first() else None
        if processes.broadcast(corruption) is not None:
            _LOG.info(f"checkpoint of step {saved_step:,} is corrupt ({corruption}); skipping it")
        elif not is_discarded(taken, saved_step, saved.progress(saved_step)):
            return resume_from(run.program, saved, saved_step)
    if run.init_from is not None:
        return start_from_weights(run.program, saved, run.init_from)
    return RunStart(run.program.initial(), 0, None, 0.0)


def _forward(
    run: PreparedRun,
    start: RunStart,
    taken: Sequence[Decision],
    callbacks: Sequence[Callback],
    step: int,
) -> tuple[Any, Any, Any]:
    """Train up to a step; return the state before it, its batch, and the compiled step."""
    stream, sharding = run.feed.stream, run.program.batch_sharding
    with logged_wait(_LOG, "compiling the training step"):
        train_step = compiled_step(run.program, stream)
    state, at, position, _, progress = start
    first: StreamPosition = stream.start() if position is None else position
    jumps = data_jumps(taken, at, progress.get("decisions", 0))
    size = stream.batch_size
    for batch, before, _ in batches_from(stream, at, first, jumps, process_rows(size, sharding)):
        for callback in callbacks:  # the run's own, which may have changed its batches
            batch = callback.on_batch(at + 1, batch, before)
        batch = to_devices(batch, sharding, batch_size=size)
        if at == step - 1:
            return state, batch, train_step
        state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)
        at += 1
    raise ConfigError(f"the data ends after step {at:,}; expected step {step:,}", "replay.step")


def _measure(run: PreparedRun, params: Any, batch: Any, step: jax.Array) -> StepRanges:
    """Compute the losses and gradients of a step with probes in every module."""
    program, has_microbatches = run.program, run.update.microbatches > 1
    probes = Probes(program.graphdef, program.abstract.params)
    floats = {k: x for k, x in batch.items() if jnp.issubdtype(x.dtype, jnp.floating)}

    def measure(params, batch, step):
        key = jax.random.fold_in(jax.random.key(run.seed), step)
        weights = probes.with_probes(params)
        part, items = split_microbatches(
            probes.graphdef, run.loss, run.update, weights, program.frozen, batch, key
        )

        def body(total, item):
            grads, sums, _ = part(*item)
            probed, grads = probes.split_gradients(grads)
            return jax.tree.map(jnp.add, total, (grads, jnp.sum(sums.loss))), probed

        trained = {k: x for k, x in flatten(params).items() if k not in program.frozen}
        zeros = jax.tree.map(jnp.zeros_like, trained), jnp.float32(0)
        if has_microbatches:
            (grads, loss), probed = jax.lax.scan(body, zeros, items)
        else:
            (grads, loss), probed = body(zeros, items)
            probed = jax.tree.map(lambda x: x[None], probed)
        ranges_of = probes.ranges_of_weights
        of_batch = {name: summary(batch[name]) for name in floats}
        return probed, ranges_of(flatten(params)), ranges_of(grads), of_batch, summary(loss)

    compiled = jax.jit(measure, out_shardings=program.replicated)
    probed, weights, grads, of_batch, loss = jax.device_get(compiled(params, batch, step))
    of_batch = {name: as_range(values) for name, values in of_batch.items()}
    return StepRanges(probes.rows(probed, weights, grads), of_batch, as_range(loss))


def findings(ranges: StepRanges, largest: float) -> Iterator[Finding]:
    """Yield values that are not finite or out of range, in the order of the computation.

    Args:
        ranges: Ranges of all values of the step.
        largest: Magnitudes above it are out of range, except in the batch and the sum of losses.
    """
    values = [Finding(f"batch/{name}", "numbers", of) for name, of in ranges.batch.items()]
    for row in ranges.rows:
        values += [Finding(row.name, "weights", row.weights or Range())]
        values += [Finding(row.name, "output", row.output or Range())]
    values.append(Finding("loss", "sum", ranges.loss))
    for row in reversed(ranges.rows):  # the backward pass
        values += [Finding(row.name, "output's gradient", row.output_gradient or Range())]
        values += [Finding(row.name, "weights' gradient", row.weights_gradient or Range())]
    for value in values:
        has_limit = value.name != "loss" and not value.name.startswith("batch/")
        if value.range.bad or (has_limit and value.range.largest > largest):
            yield value


def _table(rows: Sequence[ProbeRow]) -> Iterator[str]:
    """Yield the lines of a table of all modules."""
    width = max(len(row.name) for row in rows)
    yield "  ".join(["module".ljust(width), *(name.rjust(17) for name in _COLUMNS)])
    for name, *ranges in rows:
        cells = ("-" if values is None else str(values) for values in ranges)
        yield "  ".join([name.ljust(width), *(text.rjust(17) for text in cells)])


def _compare_with_step_hash(run: PreparedRun, step: int, metrics: Any) -> str:
    """Return whether the step's batch and loss have the bits that the run recorded."""
    lines = read_json_lines(run.directory / RECEIPTS)
    recorded = next((line for line in lines if line["step"] == step), None)
    if recorded is None or f"{FINGERPRINT_PREFIX}batch" not in metrics:
        return f"{RECEIPTS} has no entry for step {step:,}"
    same = [
        recorded["batch"] == to_hex(metrics[f"{FINGERPRINT_PREFIX}batch"]),
        recorded["loss"] == float(metrics["loss"]).hex(),
    ]
    batch, loss = ("bit-exact" if equal else "DIFFERENT" for equal in same)
    return f"compared with the run's step hashes, the batch is {batch} and the loss {loss}"
