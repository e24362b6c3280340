"""The training loop: steps, and the log lines, evaluations and checkpoints between them.

One iteration of `TrainingLoop.train`:

    batch ready (prefetched)  ->  callbacks.before_step
                              ->  step on the devices, which returns before it is computed
                              ->  callbacks.after_step
    every log_every steps     ->  fetch and write metrics, callbacks.on_log
    every evaluate_every      ->  validation losses, callbacks.on_evaluate
    if the policy wants one   ->  callbacks.on_save, checkpoint in the background
    on SIGTERM or SIGINT      ->  checkpoint, then exit

The loop dispatches steps faster than the devices compute them. Nothing between two steps may wait
for a result, or the devices become idle: metrics are fetched for all steps of a log line at once.

A callback that raises `anomaly_guard.Rollback` ends the iterations. The loop then restores a
checkpoint as at a start, and iterates again.
"""

import contextlib
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from etils import epath

from t5x_lite.checkpoints.checkpointer import Checkpointer, Json
from t5x_lite.console import Console, logged_wait, training_line
from t5x_lite.data.stream.prefetch import Prefetch, process_rows, to_devices
from t5x_lite.data.stream.stream import Batch, Stream, StreamPosition
from t5x_lite.distributed import processes
from t5x_lite.distributed.preemption import PreemptionHandler, StopRequest
from t5x_lite.evaluation.validation_loss import Validator
from t5x_lite.io.metric_writers import MetricWriters
from t5x_lite.reporting.results import Results, TaskResult
from t5x_lite.trainer.anomaly_guard import Rollback, data_jumps, read_decisions
from t5x_lite.trainer.goodput import StartupTimer
from t5x_lite.trainer.resume import InitFrom, restore_or_initialize
from t5x_lite.trainer.throughput import StepWork, ThroughputMeter
from t5x_lite.training.callbacks import Callback, StepInfo
from t5x_lite.training.inputs import batches_from
from t5x_lite.training.setup import TrainSetup

_LOG = logging.getLogger(__name__)


class TrainingLoop:
    """A training run: its state, its position in the data and its clock.

    `begin` restores or initializes the state, `train` computes the steps, and `results` evaluates
    the end.

    Args:
        program: The compiled functions, shapes and shardings of the run.
        stream: The training data.
        held_out: Computes validation losses and decodes samples.
        saved: The run's checkpoints.
        console: Shows the live line.
        directory: The run's directory, for metrics.
        startup: Measures the start; its ledger measures the rest.
    """

    def __init__(
        self,
        program: TrainSetup,
        stream: Stream,
        held_out: Validator,
        saved: Checkpointer,
        console: Console,
        directory: epath.Path,
        startup: StartupTimer,
    ):
        self._program, self._stream, self._held_out = program, stream, held_out
        self._saved, self._console, self._directory = saved, console, directory
        self._startup, self._ledger = startup, startup.ledger
        self.step = 0
        self._seconds = 0.0  # of training, over all launches
        self._callbacks: Sequence[Callback] = ()
        self._reported: dict[str, float] = {}  # at this step, by "kind/name"

    def begin(self, init_from: InitFrom | None, steps: int) -> None:
        """Restore the newest checkpoint, another run's weights, or initialize the weights.

        Meanwhile a thread compiles the step, which needs shapes only. Both take minutes for large
        models.

        Args:
            init_from: Whose weights a run without checkpoints starts with.
            steps: The step at which the run ends. A finished run compiles nothing.
        """
        with ThreadPoolExecutor(1) as pool:
            compiled = None
            if (self._saved.latest_step or 0) < steps:
                compiled = pool.submit(self._compile)
            self._init_from = init_from
            self._restore()
            self._startup.lap("weights")
            self._step = compiled and compiled.result()
            # A step contains collectives, which time out if other processes still compile.
            processes.barrier("compiled", seconds=processes.LONG)
            self._startup.lap("rest of compiling")
        if self.step >= steps:
            _LOG.info(f"the run is finished: step {self.step:,} of {steps:,}")
        elif self.step:
            epochs = ", ".join(
                f"{name} {value:.2f}"
                for name, value in self._stream.epochs_seen(self._position).items()
            )
            _LOG.info(
                f"resuming from step {self.step:,} of {steps:,}, at the next example of each task "
                f"(epochs so far: {epochs})"
            )

    def train(
        self,
        steps: int,
        evaluate_every: int,
        log_every: int,
        work: StepWork,
        callbacks: Sequence[Callback] = (),
        record: Json | None = None,
    ) -> None:
        """Compute the remaining steps; report, evaluate and save between them.

        It exits the process after a stop request, once a checkpoint is saved.

        Args:
            steps: The step at which the run ends.
            evaluate_every: Steps between two validation losses. The last step has one, too.
            log_every: Steps between two log lines.
            work: FLOPs of a step, for throughput and MFU.
            callbacks: Called in this order.
            record: JSON that is saved with every checkpoint for a reader, such as the
                configuration.
        """
        self._callbacks, self._record = callbacks, record
        self._work = work
        with PreemptionHandler() as stopping, self._console.line():
            while True:
                try:
                    stop = self._train(steps, evaluate_every, log_every, stopping)
                    break
                except Rollback:
                    self._saved.wait()
                    self._restore()
        if stop is not None:
            _LOG.info(
                f"stopped after step {self.step:,} ({stop}); the same command resumes the run"
            )
            sys.exit(stop.exit_code)

    def results(
        self, baselines: Mapping[str, Any], goodput: Callable[[], dict[str, float]]
    ) -> Results:
        """Evaluate the run at its end: validation losses beside baselines, samples, goodput.

        Args:
            baselines: The unigram and uniform losses of each validation task.
            goodput: Returns the seconds of all launches by purpose, this evaluation included.
        """
        with self._ledger.spending("evaluating"):
            evaluated = self._evaluate_end(baselines)
        return {**evaluated, "goodput": goodput()}

    def _evaluate_end(self, baselines: Mapping[str, Any]) -> Results:
        with logged_wait(_LOG, "decoding validation examples"):
            samples = self._held_out.samples(self._state.eval_params)
        tasks = {
            name: TaskResult(
                loss=numbers["loss"],
                accuracy=numbers["accuracy"],
                tokens=int(numbers["tokens"]),
                **baselines[name]._asdict(),
            )
            for name, numbers in self._held_out.losses(self._state.eval_params).items()
        }
        return Results(
            step=self.step, seconds=self._seconds, tasks=tasks, samples=samples, goodput={}
        )

    def _restore(self) -> None:
        """Restore state and position as checkpoints and decisions say: at a start or a rollback."""
        self._start = restore_or_initialize(self._program, self._saved, self._init_from)
        self._state, self.step, position, self._seconds, progress = self._start
        decisions = read_decisions(self._directory)
        self._jumps = data_jumps(decisions, self.step, progress.get("decisions", 0))
        self._num_decisions = len(decisions)
        self._position = self._stream.start() if position is None else position

    def _train(
        self,
        steps: int,
        evaluate_every: int,
        log_every: int,
        stopping: PreemptionHandler,
    ) -> StopRequest | None:
        """Iterate until the last step, the end of the data, a stop request or a rollback."""
        stop = None
        entered = contextlib.ExitStack()
        with (
            MetricWriters(
                self._directory,
                start_step=self.step,
                silent=not processes.is_first(),
            ) as self._writers,
            self._prefetched_batches() as batches,
            entered,
        ):
            for callback in self._callbacks:
                entered.enter_context(callback)
                callback.on_start(self.step, self._start.progress)
            self._meter = ThroughputMeter(
                self._seconds, batches, self._work, self._stream.task_names
            )
            for batch, before, position in self._ledger.timed_items(batches, "waiting for data"):
                self._take_step(batch, before, position)
                if self.step % log_every == 0 or self.step == steps:
                    self._log(steps)
                if self.step % evaluate_every == 0 or self.step == steps:
                    self._evaluate()
                stop = stopping.reached()
                last = self.step == steps or stop is not None
                self._save(force=last)
                if last:
                    break
            else:
                _LOG.info(f"the data ends after step {self.step:,} of {steps:,}")
                self._evaluate()
                self._save(force=True)
            # The checkpoint above is written in the background and may yet fail. Do not end before
            # it is complete.
            with (
                self._ledger.spending("saving"),
                logged_wait(_LOG, f"finishing the checkpoint at step {self.step:,}"),
            ):
                self._saved.save_with_retries(self.step, self._state, **self._saved_with_state())
        return stop

    def _compile(self) -> Any:
        with logged_wait(_LOG, "compiling the training step"):
            return compiled_step(self._program, self._stream)

    def _end_startup(self, metrics: Any) -> None:
        jax.block_until_ready(metrics)
        self._startup.lap("first step")
        self._startup.open = False
        _LOG.info(self._startup.line())

    def _prefetched_batches(self):
        """Batches on the devices with the positions before and after them."""
        size = self._stream.batch_size
        sharding = self._program.batch_sharding
        rows = process_rows(size, sharding)
        return Prefetch(
            self._positioned_batches(rows),
            lambda item: (to_devices(item[0], sharding, batch_size=size), *item[1:]),
        )

    def _positioned_batches(
        self, rows: slice
    ) -> Iterator[tuple[Batch, StreamPosition, StreamPosition]]:
        """This process's rows of each batch, with the positions in the data before and after it.

        Data that a rollback decided to skip does not occur.
        """
        batches = batches_from(self._stream, self.step, self._position, self._jumps, rows)
        for step, (batch, before, after) in enumerate(batches, self.step + 1):
            for callback in self._callbacks:
                batch = callback.on_batch(step, batch, before)
            yield batch, before, after

    def _take_step(
        self, batch: Mapping[str, jax.Array], before: StreamPosition, position: StreamPosition
    ) -> None:
        assert self._step is not None
        for callback in self._callbacks:
            callback.before_step(self.step + 1, self._state)
        # Returns at once; the devices compute later. The old state's buffers are donated.
        self._state, metrics = self._step(self._state, batch)
        self.step, self._position, self._reported = self.step + 1, position, {}
        info = StepInfo(self.step, self._state, batch, before, position, metrics)
        for callback in self._callbacks:
            callback.after_step(info)
        self._meter.add(metrics, batch)
        if self._startup.open:
            self._end_startup(metrics)

    def _report(self, kind: str, numbers: Mapping[str, float]) -> None:
        self._writers.write(self.step, kind, numbers)
        for callback in self._callbacks:
            callback.on_report(self.step, kind, numbers)
        self._reported |= {f"{kind}/{name}": value for name, value in numbers.items()}

    def _log(self, steps: int) -> None:
        numbers = self._meter.read()
        if not math.isfinite(numbers["loss"]) and processes.is_first():
            _LOG.warning(f"training loss is {numbers['loss']} in the steps up to {self.step:,}")
        eta = (steps - self.step) * numbers["seconds_per_step"]
        self._console.update(training_line(self.step, steps, numbers, eta))
        self._report("train", numbers)
        for name, of_task in self._meter.by_task.items():
            self._report(f"train/{name}", of_task)
        examples = self._stream.examples_seen(self._position)
        self._report("epochs", self._stream.epochs_of(examples))
        self._report("examples", examples)
        for callback in self._callbacks:
            callback.on_log(self.step, numbers, self._report)

    def _evaluate(self) -> None:
        with self._meter.paused(), self._ledger.spending("evaluating"):
            losses = self._held_out.losses(self._state.eval_params)
            for name, numbers in losses.items():
                self._report(f"validation/{name}", numbers)
            shown = ", ".join(f"{name} {numbers['loss']:.3f}" for name, numbers in losses.items())
            _LOG.info(f"validation loss at step {self.step:,}: {shown}")
            for callback in self._callbacks:
                callback.on_evaluate(self.step, self._state, self._report)

    def _save(self, *, force: bool) -> None:
        self._seconds = self._meter.seconds
        if not self._saved.due(self.step, force=force):
            return
        # Before the checkpoint: callbacks complete what they save with it, or start a rollback.
        for callback in self._callbacks:
            callback.on_save(self.step)
        with self._ledger.spending("saving"):
            saving = self._saved.save(
                self.step, self._state, force=True, **self._saved_with_state()
            )
        if saving:
            blocked = self._saved.blocked_seconds
            _LOG.info(f"saving checkpoint at step {self.step:,} (blocked {blocked * 1e3:,.0f} ms)")
            self._report("checkpoint", {"blocked_seconds": blocked})

    def _saved_with_state(self) -> dict[str, Any]:
        """The arguments of `Checkpointer.save` besides the state."""
        progress: Json = {
            "position": self._position,
            "seconds": self._seconds,
            "decisions": self._num_decisions,
        }
        for callback in self._callbacks:
            progress |= callback.to_save()
        return {"progress": progress, "metrics": self._reported, "record": self._record}


def compiled_step(program: TrainSetup, stream: Stream) -> Any:
    """Compile the training step for the shapes of a stream; may be called in a thread.

    Args:
        program: The jitted step and the shapes of the state.
        stream: The data. Its first batch is read for the names, shapes and types of the features.

    Returns:
        A function (state, batch) -> (new state, metrics). It donates the state.
    """
    size, sharding = stream.batch_size, program.batch_sharding
    first, _ = next(stream.batches(stream.start(), process_rows(size, sharding)))
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        to_devices(first, sharding, batch_size=size),
    )
    with jax.set_mesh(program.mesh):
        lowered = program.step.lower(program.abstract, batch, num_tasks=len(stream.task_names))
        return lowered.compile(compiler_options=program.compiler_options)
