"""`t5x_lite train`: the one call that makes a mesh, a state and a stream, and runs the step."""

import math
import resource
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from t5x_lite.checkpoints import CheckpointPolicy, Checkpoints
from t5x_lite.data import converters
from t5x_lite.data.baselines import target_baselines
from t5x_lite.data.batches import prefetch, process_rows, to_devices
from t5x_lite.data.converters import Converter
from t5x_lite.data.plan import Data, Plan, prepare
from t5x_lite.data.stream import Stream
from t5x_lite.errors import ConfigError
from t5x_lite.models import transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.run.console import Console, duration, training_line
from t5x_lite.run.held_out import Evaluation, HeldOut
from t5x_lite.run.meter import Meter, stopping
from t5x_lite.run.program import Program, build
from t5x_lite.run.record import check_model_dir, write_launch
from t5x_lite.run.results import Results, TaskResult, read_results, show_results, write_results
from t5x_lite.training.optimizers import OptimizerConfig
from t5x_lite.training.schedules import Schedule
from t5x_lite.training.step import Loss, Update
from t5x_lite.training.writers import Writers


def train(
    *,
    model_dir: str,
    model: TransformerConfig,
    data: Data,
    optimizer: OptimizerConfig,
    learning_rate: Schedule,
    batch_size: int,
    steps: int,
    mesh: Mapping[str, int],
    loss: Loss,
    update: Update,
    evaluation: Evaluation,
    checkpoints: CheckpointPolicy,
    loss_on_inputs: bool = False,
    log_every_steps: int = 20,
    seed: int = 0,
    cpu_devices: int | None = None,
    describe_config: Callable[[], str] = str,
) -> None:
    """Train until `steps` steps are done, from scratch or the newest checkpoint of `model_dir`.

    batch_size: rows of the global batch, over all devices. mesh: sizes of mesh axes, -1 for the
    rest. seed: of the initial weights and of dropout; the order of the data has `data.seed`.
    loss_on_inputs: a decoder without an encoder learns its inputs too.
    cpu_devices: simulate so many devices on a CPU. describe_config: gives the text that is saved
    beside the checkpoints as the operative configuration.

    Raises ConfigError, before anything expensive, for settings that cannot work together.
    """
    directory = Path(model_dir)
    if steps < 1 or log_every_steps < 1:
        raise ConfigError(
            "steps and log_every_steps must be at least 1", "train.steps", "TRAIN_STEPS"
        )
    check_model_dir(directory, model)
    if model.encoder_only:
        raise ConfigError(
            "`train` has no data for a model without a decoder; wanted num_decoder_layers >= 1",
            "TransformerConfig.num_decoder_layers",
        )
    if cpu_devices not in (None, jax.config.jax_num_cpu_devices):  # pyright: ignore
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    program = build(
        model, optimizer, learning_rate, loss, update, mesh=mesh, batch_size=batch_size, seed=seed
    )
    console = Console(silent=jax.process_index() != 0)
    plan = prepare(data, report=console.note)
    check_vocabulary(plan, model)
    settings = {
        "feature_lengths": data.feature_lengths,
        "batch_size": batch_size,
        "seed": data.seed,
        "sentinels": plan.vocabulary().sentinels,
        "converter": _converter(model, loss_on_inputs=loss_on_inputs),
    }
    stream = Stream(plan.train_tasks(), **settings, pack=data.pack)
    held_out = HeldOut(
        program.graphdef,
        plan.validation_tasks(),
        plan.vocabulary(),
        evaluation,
        batch_sharding=program.batch_sharding,
        replicated=program.replicated,
        stream_settings=settings,
    )
    directory.mkdir(parents=True, exist_ok=True)
    with jax.set_mesh(program.mesh), Checkpoints(directory, checkpoints) as saved:
        run = Run(program, stream, held_out, saved, console, directory)
        console.note(
            f"model: {transformer.num_parameters(model):,} parameters in {directory}; mesh: "
            + ", ".join(f"{name} {size}" for name, size in program.mesh.shape.items() if size > 1)
        )
        run.restore_or_start(steps)
        write_launch(directory, model, start_step=run.step, describe_config=describe_config)
        if run.step < steps:
            run.train(steps, evaluation.every_steps, log_every_steps)
        results = read_results(directory)
        if results is None or results["step"] != run.step:
            results = run.results(_baselines(plan, evaluation, settings))
            write_results(directory, results)
        show_results(console, directory, results)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        console.note(
            f"{run.step:,} steps, {duration(results['seconds'])} of training; "
            f"peak memory of this process {peak:.2f} GiB"
        )


def check_vocabulary(plan: Plan, model: TransformerConfig) -> None:
    """Raise ConfigError if the data holds token ids that the model's embedding has no row for."""
    vocabulary = plan.vocabulary()
    if vocabulary.size > model.vocab_size:
        raise ConfigError(
            f"the vocabulary has {vocabulary.size} ids but the model's embedding only "
            f"{model.vocab_size} rows; wanted at least {vocabulary.size}, best "
            f"{vocabulary.padded_size} (a multiple of 128)",
            "TransformerConfig.vocab_size",
        )


def _converter(model: TransformerConfig, *, loss_on_inputs: bool) -> Converter:
    """How features become what this kind of model takes."""
    if not model.decoder_only:
        return converters.encoder_decoder
    visible = model.prefix_attention
    return partial(converters.decoder_only, prefix_visible=visible, loss_on_inputs=loss_on_inputs)


class Run:
    """A run under way: state, position and clock, and what happens to them."""

    def __init__(
        self,
        program: Program,
        stream: Stream,
        held_out: HeldOut,
        saved: Checkpoints,
        console: Console,
        directory: Path,
    ):
        self._program, self._stream, self._held_out = program, stream, held_out
        self._saved, self._console, self._directory = saved, console, directory
        self.step = 0
        self._seconds = 0.0  # of training, over all launches

    def restore_or_start(self, steps: int) -> None:
        """Take up the newest checkpoint, or make fresh weights."""
        latest = self._saved.latest_step
        if latest is None:
            self._position = self._stream.start()
            with self._console.waiting("initialising weights"):
                self._state = jax.block_until_ready(self._program.initial())
            return
        with self._console.waiting(f"restoring step {latest:,}"):
            self._state, progress = self._saved.restore(latest, self._program.abstract)
        self.step, self._position = latest, progress["position"]
        self._seconds = progress["seconds"]
        if self.step >= steps:
            self._console.note(f"the run is finished: {self.step:,} of {steps:,} steps are done")
        else:
            epochs = ", ".join(
                f"{name} {value:.2f}" for name, value in self._stream.epochs(self._position).items()
            )
            self._console.note(
                f"going on after step {self.step:,} of {steps:,}, with the next example "
                f"(epochs seen: {epochs})"
            )

    def train(self, steps: int, evaluate_every: int, log_every: int) -> None:
        """Run the steps that are left, reporting, evaluating and saving on the way."""
        with (
            Writers(self._directory, start_step=self.step) as writers,
            self._batches() as batches,
            stopping() as stop_signal,
        ):
            with self._console.waiting("compiling the training step"):
                first = next(batches)
                step = self._program.step.lower(self._state, first[0]).compile()
            meter = Meter(self._seconds, batches)
            with self._console.line():
                upcoming = first
                while self.step < steps:
                    batch, self._position = upcoming
                    self._state, metrics = step(self._state, batch)
                    self.step += 1
                    meter.add(metrics, batch)
                    if self.step % log_every == 0 or self.step == steps:
                        self._log(meter, writers, steps)
                    if self.step % evaluate_every == 0 and self.step < steps:
                        with meter.paused():
                            self._evaluate(writers)
                    self._save(meter, force=self.step == steps or stop_signal() is not None)
                    if stop_signal() is not None:
                        break
                    if self.step < steps:
                        upcoming = next(batches)
            if self.step == steps:
                self._evaluate(writers)
        with self._console.waiting(f"saving step {self.step:,}"):
            self._saved.wait()
        if (signal_number := stop_signal()) is not None:
            self._console.note(
                f"stopped after step {self.step:,}; the same command goes on from here"
            )
            sys.exit(128 + signal_number)

    def results(self, baselines: Mapping[str, Any]) -> Results:
        """Held-out losses beside their baselines, and samples."""
        with self._console.waiting("decoding held-out examples"):
            samples = self._held_out.samples(self._state.evaluated)
        tasks = {
            name: TaskResult(
                loss=numbers["loss"],
                accuracy=numbers["accuracy"],
                tokens=int(numbers["tokens"]),
                **baselines[name]._asdict(),
            )
            for name, numbers in self._held_out.losses(self._state.evaluated).items()
        }
        return Results(step=self.step, seconds=self._seconds, tasks=tasks, samples=samples)

    def _batches(self):
        size = self._stream.batch_size
        sharding = self._program.batch_sharding
        rows = process_rows(size, sharding)
        return prefetch(
            self._stream.batches(self._position, rows),
            lambda item: (to_devices(item[0], sharding, batch_size=size), item[1]),
        )

    def _log(self, meter: "Meter", writers: Writers, steps: int) -> None:
        numbers = meter.read()
        self._seconds = meter.seconds
        if not math.isfinite(numbers["loss"]):
            self._console.note(f"the loss is {numbers['loss']} near step {self.step:,}")
        eta = (steps - self.step) * numbers["seconds_per_step"]
        self._console.update(training_line(self.step, steps, numbers, eta))
        writers.write(self.step, "train", numbers)

    def _evaluate(self, writers: Writers) -> None:
        losses = self._held_out.losses(self._state.evaluated)
        for name, numbers in losses.items():
            writers.write(self.step, f"validation/{name}", numbers)
        shown = ", ".join(f"{name} {numbers['loss']:.3f}" for name, numbers in losses.items())
        self._console.note(f"held-out loss after step {self.step:,}: {shown}")

    def _save(self, meter: "Meter", *, force: bool) -> None:
        self._seconds = meter.seconds
        progress = {"position": self._position, "seconds": self._seconds}
        self._saved.save(self.step, self._state, progress, force=force)


def _baselines(plan: Plan, evaluation: Evaluation, settings: Mapping[str, Any]) -> dict[str, Any]:
    same = {name: settings[name] for name in ("feature_lengths", "sentinels", "seed")}
    train_tasks = {task.name: task for task in plan.train_tasks()}
    return {
        task.name: target_baselines(
            train_tasks.get(task.name, task),
            task,
            **same,
            vocabulary_size=plan.vocabulary().size,
            validation_limit=evaluation.max_examples,
        )
        for task in plan.validation_tasks()
    }
