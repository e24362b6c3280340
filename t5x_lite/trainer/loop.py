"""A run under way: the loop around the step, and what happens beside it."""

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
from t5x_lite.trainer import anomaly_guard
from t5x_lite.trainer.anomaly_guard import Rollback
from t5x_lite.trainer.goodput import StartupTimer
from t5x_lite.trainer.restore import InitFrom, start
from t5x_lite.trainer.throughput import StepWork, ThroughputMeter
from t5x_lite.training.callbacks import Callback, StepInfo
from t5x_lite.training.inputs import in_order
from t5x_lite.training.setup import TrainSetup

_LOG = logging.getLogger(__name__)


class TrainingLoop:
    """A run under way: state, position and clock, and what happens to them."""

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
        self._observers: Sequence[Callback] = ()
        self._reported: dict[str, float] = {}  # of the step at hand, "kind/name"

    def begin(self, init_from: InitFrom | None, steps: int) -> None:
        """Take up the newest checkpoint, another run's weights, or fresh ones.

        Meanwhile a thread compiles the step, which needs no more than shapes.
        """
        with ThreadPoolExecutor(1) as pool:
            compiled = None
            if (self._saved.latest_step or 0) < steps:
                compiled = pool.submit(self._compile)
            self._init_from = init_from
            self._take_up()
            self._startup.lap("weights")
            self._step = compiled and compiled.result()
            processes.barrier("compiled", seconds=processes.LONG)  # before they talk in a step
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
        observers: Sequence[Callback] = (),
        record: Json | None = None,
    ) -> None:
        """Run the steps that are left, reporting, evaluating and saving on the way.

        record: what every checkpoint says for a person, such as the configuration.
        """
        self._observers, self._record = observers, record
        self._work = work
        with PreemptionHandler() as stopping, self._console.line():
            while True:
                try:
                    stop = self._train(steps, evaluate_every, log_every, stopping)
                    break
                except Rollback:
                    self._take_up_again()
        if stop is not None:
            _LOG.info(
                f"stopped after step {self.step:,} ({stop}); the same command resumes the run"
            )
            sys.exit(stop.exit_code)

    def results(
        self, baselines: Mapping[str, Any], goodput: Callable[[], dict[str, float]]
    ) -> Results:
        """Held-out losses beside their baselines, samples, and where the time went."""
        with self._ledger.spending("evaluating"):
            found = self._results(baselines)
        return {**found, "goodput": goodput()}

    def _results(self, baselines: Mapping[str, Any]) -> Results:
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

    def _take_up_again(self) -> None:
        self._saved.wait()
        self._take_up()

    def _take_up(self) -> None:
        """Take up where the checkpoints and decisions say, at a start and when going back."""
        self._start = start(self._program, self._saved, self._init_from)
        self._state, self.step, position, self._seconds, progress = self._start
        taken, known = anomaly_guard.read(self._directory), progress.get("decisions", 0)
        self._jumps = anomaly_guard.jumps(taken, self.step, known)
        self._taken = len(taken)
        self._position = self._stream.start() if position is None else position

    def _train(
        self,
        steps: int,
        evaluate_every: int,
        log_every: int,
        stopping: PreemptionHandler,
    ) -> StopRequest | None:
        stop = None
        entered = contextlib.ExitStack()
        with (
            MetricWriters(
                self._directory,
                start_step=self.step,
                silent=not processes.is_first(),
            ) as self._writers,
            self._batches() as batches,
            entered,
        ):
            for observer in self._observers:
                entered.enter_context(observer)
                observer.on_start(self.step, self._start.progress)
            self._meter = ThroughputMeter(
                self._seconds, batches, self._work, self._stream.task_names
            )
            for batch, before, position in self._ledger.waited_for(batches, "waiting for data"):
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
            with (
                self._ledger.spending("saving"),
                logged_wait(_LOG, f"finishing the checkpoint at step {self.step:,}"),
            ):
                self._saved.save_surely(self.step, self._state, **self._beside_state())
        return stop

    def _compile(self) -> Any:
        """The step for this run's shapes; safe in a thread."""
        with logged_wait(_LOG, "compiling the training step"):
            return compiled_step(self._program, self._stream)

    def _first_step_done(self, metrics: Any) -> None:
        jax.block_until_ready(metrics)
        self._startup.lap("first step")
        self._startup.open = False
        _LOG.info(self._startup.line())

    def _batches(self):
        size = self._stream.batch_size
        sharding = self._program.batch_sharding
        rows = process_rows(size, sharding)
        return Prefetch(
            self._positioned(rows),
            lambda item: (to_devices(item[0], sharding, batch_size=size), *item[1:]),
        )

    def _positioned(self, rows: slice) -> Iterator[tuple[Batch, StreamPosition, StreamPosition]]:
        """Each batch with the positions before and after it, leaving out what was decided."""
        batches = in_order(self._stream, self.step, self._position, self._jumps, rows)
        for step, (batch, before, after) in enumerate(batches, self.step + 1):
            for observer in self._observers:
                batch = observer.on_batch(step, batch, before)
            yield batch, before, after

    def _take_step(
        self, batch: Mapping[str, jax.Array], before: StreamPosition, position: StreamPosition
    ) -> None:
        assert self._step is not None
        for observer in self._observers:
            observer.before_step(self.step + 1, self._state)
        self._state, metrics = self._step(self._state, batch)
        self.step, self._position, self._reported = self.step + 1, position, {}
        moment = StepInfo(self.step, self._state, batch, before, position, metrics)
        for observer in self._observers:
            observer.after_step(moment)
        self._meter.add(metrics, batch)
        if self._startup.open:
            self._first_step_done(metrics)

    def _report(self, kind: str, numbers: Mapping[str, float]) -> None:
        self._writers.write(self.step, kind, numbers)
        for observer in self._observers:
            observer.on_report(self.step, kind, numbers)
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
        for observer in self._observers:
            observer.on_log(self.step, numbers, self._report)

    def _evaluate(self) -> None:
        with self._meter.paused(), self._ledger.spending("evaluating"):
            losses = self._held_out.losses(self._state.eval_params)
            for name, numbers in losses.items():
                self._report(f"validation/{name}", numbers)
            shown = ", ".join(f"{name} {numbers['loss']:.3f}" for name, numbers in losses.items())
            _LOG.info(f"validation loss at step {self.step:,}: {shown}")
            for observer in self._observers:
                observer.on_evaluate(self.step, self._state, self._report)

    def _save(self, *, force: bool) -> None:
        self._seconds = self._meter.seconds
        if not self._saved.due(self.step, force=force):
            return
        for observer in self._observers:
            observer.on_save(self.step)
        with self._ledger.spending("saving"):
            saving = self._saved.save(self.step, self._state, force=True, **self._beside_state())
        if saving:
            blocked = self._saved.blocked_seconds
            _LOG.info(f"saving checkpoint at step {self.step:,} (blocked {blocked * 1e3:,.0f} ms)")
            self._report("checkpoint", {"blocked_seconds": blocked})

    def _beside_state(self) -> dict[str, Any]:
        """What is saved with the state, for `Checkpointer.save`."""
        progress: Json = {
            "position": self._position,
            "seconds": self._seconds,
            "decisions": self._taken,
        }
        for observer in self._observers:
            progress |= observer.to_save()
        return {"progress": progress, "metrics": self._reported, "record": self._record}


def compiled_step(program: TrainSetup, stream: Stream) -> Any:
    """The step for the shapes of a stream, as a function of state and batch; safe in a thread."""
    size, sharding = stream.batch_size, program.batch_sharding
    first, _ = next(stream.batches(stream.start(), process_rows(size, sharding)))
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        to_devices(first, sharding, batch_size=size),
    )
    with jax.set_mesh(program.mesh):
        lowered = program.step.lower(program.abstract, batch, num_tasks=len(stream.task_names))
        return lowered.compile(compiler_options=program.compiler_options)
