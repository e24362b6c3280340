"""`t5x_lite replay`: compute one step of a run again, module by module, and find bad numbers."""

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
from t5x_lite.io.json_lines import read_json_lines
from t5x_lite.trainer import anomaly_guard
from t5x_lite.trainer.loop import compiled_step
from t5x_lite.trainer.prepare_run import PreparedRun, prepare_run
from t5x_lite.trainer.restore import Start, from_weights, go_on
from t5x_lite.trainer.step_hashes import RECEIPTS
from t5x_lite.training.bit_fingerprints import to_hex
from t5x_lite.training.callbacks import Callback
from t5x_lite.training.inputs import in_order
from t5x_lite.training.step import split_microbatches
from t5x_lite.training.step_metrics import FINGERPRINT_PREFIX
from t5x_lite.tree_paths import flatten

LARGEST = 65504.0  # of float16
_LOG = logging.getLogger(__name__)
_COLUMNS = ("weights", "output", "its gradient", "weights' gradient")


class Looked(NamedTuple):
    """What a step looked like inside. batch: of its features that are no integers."""

    rows: list[ProbeRow]
    batch: dict[str, Range]
    loss: Range


class Finding(NamedTuple):
    """The first thing that is not as it should be, in the order of the computation."""

    name: str
    what: str
    range: Range

    def __str__(self) -> str:
        if self.range.bad:
            said = f"{self.range.bad:,.0f} of {self.range.size:,.0f} are not finite"
        else:
            said = f"up to {self.range.largest:.3g} in magnitude"
        return f"{self.name}: its {self.what}: {said}"


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


def _replay(
    ready: PreparedRun, callbacks: Sequence[Callback], *, step: int, largest: float
) -> None:
    console = ready.console
    if not (ready.directory / MODEL).exists():
        raise ConfigError(f"{ready.directory} holds no run", "MODEL_DIR")
    with Checkpointer(ready.directory) as saved:
        start = _start(ready, saved, step)
        _LOG.info(f"replaying from step {start.step:,} to step {step:,}")
        decisions = anomaly_guard.read(ready.directory)
        state, batch, train_step = _forward(ready, start, decisions, callbacks, step)
        with logged_wait(_LOG, f"measuring the values in step {step:,}"):
            looked = _look(ready, state.params, batch, state.step)
        _, metrics = train_step(state, batch)
        metrics = metrics.unpack()
    for line in _table(looked.rows):
        console.print(line)
    norm = float(metrics["grad_norm"])
    console.print(f"step {step:,}: sum of losses {looked.loss.low:.6g}, gradient norm {norm:.6g}")
    console.print(_compare_with_receipt(ready, step, metrics))
    found = next(findings(looked, largest), None)
    if found is None:
        console.print(f"all weights, outputs and gradients are finite and at most {largest:g}")
        return
    console.print(f"first value that is not finite and at most {largest:g}: {found}")
    sys.exit(1)


def _start(ready: PreparedRun, saved: Checkpointer, step: int) -> Start:
    """The newest intact checkpoint before the step that no decision gave up, or the beginning."""
    taken = anomaly_guard.read(ready.directory)
    for found in reversed([each for each in saved.steps if each < step]):
        corruption = saved.find_corruption(found) if processes.is_first() else None
        if processes.broadcast(corruption) is not None:
            _LOG.info(f"checkpoint of step {found:,} is corrupt ({corruption}); skipping it")
        elif not anomaly_guard.gave_up(taken, found, saved.progress(found)):
            return go_on(ready.program, saved, found)
    if ready.init_from is not None:
        return from_weights(ready.program, saved, ready.init_from)
    return Start(ready.program.initial(), 0, None, 0.0)


def _forward(
    ready: PreparedRun,
    start: Start,
    taken: Sequence[anomaly_guard.Decision],
    callbacks: Sequence[Callback],
    step: int,
) -> tuple[Any, Any, Any]:
    """The state before a step, the step's batch, and the compiled step."""
    stream, sharding = ready.feed.stream, ready.program.batch_sharding
    with logged_wait(_LOG, "compiling the training step"):
        train_step = compiled_step(ready.program, stream)
    state, at, position, _, progress = start
    first: StreamPosition = stream.start() if position is None else position
    jumps = anomaly_guard.jumps(taken, at, progress.get("decisions", 0))
    size = stream.batch_size
    for batch, before, _ in in_order(stream, at, first, jumps, process_rows(size, sharding)):
        for callback in callbacks:  # the run's own, which may have changed its batches
            batch = callback.on_batch(at + 1, batch, before)
        batch = to_devices(batch, sharding, batch_size=size)
        if at == step - 1:
            return state, batch, train_step
        state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)
        at += 1
    raise ConfigError(f"the data ends after step {at:,}; wanted step {step:,}", "replay.step")


def _look(ready: PreparedRun, params: Any, batch: Any, step: jax.Array) -> Looked:
    program, several = ready.program, ready.update.microbatches > 1
    probes = Probes(program.graphdef, program.abstract.params)
    floats = {k: x for k, x in batch.items() if jnp.issubdtype(x.dtype, jnp.floating)}

    def look(params, batch, step):
        key = jax.random.fold_in(jax.random.key(ready.seed), step)
        weights = probes.with_probes(params)
        part, items = split_microbatches(
            probes.graphdef, ready.loss, ready.update, weights, program.frozen, batch, key
        )

        def body(total, item):
            grads, sums, _ = part(*item)
            seen, grads = probes.split_gradients(grads)
            return jax.tree.map(jnp.add, total, (grads, jnp.sum(sums.loss))), seen

        trained = {k: x for k, x in flatten(params).items() if k not in program.frozen}
        zeros = jax.tree.map(jnp.zeros_like, trained), jnp.float32(0)
        if several:
            (grads, loss), seen = jax.lax.scan(body, zeros, items)
        else:
            (grads, loss), seen = body(zeros, items)
            seen = jax.tree.map(lambda x: x[None], seen)
        ranges = probes.ranges_of_weights
        of_batch = {name: summary(batch[name]) for name in floats}
        return seen, ranges(flatten(params)), ranges(grads), of_batch, summary(loss)

    looking = jax.jit(look, out_shardings=program.replicated)
    seen, weights, grads, of_batch, loss = jax.device_get(looking(params, batch, step))
    of_batch = {name: as_range(found) for name, found in of_batch.items()}
    return Looked(probes.rows(seen, weights, grads), of_batch, as_range(loss))


def findings(looked: Looked, largest: float) -> Iterator[Finding]:
    """What is not finite or out of range, in the order of the computation."""
    said = [Finding(f"batch/{name}", "numbers", found) for name, found in looked.batch.items()]
    for row in looked.rows:
        said += [Finding(row.name, "weights", row.weights or Range())]
        said += [Finding(row.name, "output", row.output or Range())]
    said.append(Finding("loss", "sum", looked.loss))
    for row in reversed(looked.rows):
        said += [Finding(row.name, "output's gradient", row.output_gradient or Range())]
        said += [Finding(row.name, "weights' gradient", row.weights_gradient or Range())]
    for each in said:
        is_sum = each.name == "loss" or each.name.startswith("batch/")
        if each.range.bad or (each.range.largest > largest and not is_sum):
            yield each


def _table(rows: Sequence[ProbeRow]) -> Iterator[str]:
    width = max(len(row.name) for row in rows)
    yield "  ".join(["module".ljust(width), *(name.rjust(17) for name in _COLUMNS)])
    for name, *ranges in rows:
        shown = ("-" if each is None else str(each) for each in ranges)
        yield "  ".join([name.ljust(width), *(text.rjust(17) for text in shown)])


def _compare_with_receipt(ready: PreparedRun, step: int, metrics: Any) -> str:
    """Return whether the step's batch and loss have the bits that the run recorded."""
    lines = read_json_lines(ready.directory / RECEIPTS)
    receipt = next((line for line in lines if line["step"] == step), None)
    if receipt is None or f"{FINGERPRINT_PREFIX}batch" not in metrics:
        return f"{RECEIPTS} has no entry for step {step:,}"
    same = [
        receipt["batch"] == to_hex(metrics[f"{FINGERPRINT_PREFIX}batch"]),
        receipt["loss"] == float(metrics["loss"]).hex(),
    ]
    batch, loss = ("bit-exact" if equal else "DIFFERENT" for equal in same)
    return f"compared with the run's receipt, the batch is {batch} and the loss {loss}"
