"""`t5x_lite train`: the one call that makes a mesh, a state and a stream, and runs the step."""

import resource
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import NamedTuple

import jax
from etils import epath

from t5x_lite.checkpoints.checkpointer import Checkpointer
from t5x_lite.checkpoints.policy import CheckpointPolicy
from t5x_lite.checkpoints.run_directory import check_model_dir, write_launch
from t5x_lite.console import Console, duration
from t5x_lite.data.data_config import Data
from t5x_lite.decoding.generation import Generation, SpecialTokens
from t5x_lite.distributed import processes
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation.task_eval import (
    TaskEvalCallback,
    TaskEvaluation,
    TaskEvaluator,
    make_task_evaluator,
)
from t5x_lite.evaluation.validation_loss import Evaluation, Validator
from t5x_lite.inference.engine import Inference
from t5x_lite.io.metric_writers import EVENTS
from t5x_lite.models import transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.reporting.results import read_results, show_results, write_results
from t5x_lite.tokenizers.text_codec import TextRecord, write_text_record
from t5x_lite.trainer.anomaly_guard import AnomalyGuard, AnomalyGuardCallback
from t5x_lite.trainer.goodput import Goodput, StartupTimer
from t5x_lite.trainer.loop import TrainingLoop
from t5x_lite.trainer.profiler import Profile, Profiler
from t5x_lite.trainer.restore import InitFrom, check_init_from, last_step
from t5x_lite.trainer.step_hashes import StepHashes, StepHashWriter
from t5x_lite.trainer.throughput import StepWork
from t5x_lite.trainer.wandb_tracker import Tracker, WeightsAndBiases
from t5x_lite.trainer.watchdog import HangTimeouts, Watchdog
from t5x_lite.training.callbacks import Callback
from t5x_lite.training.inputs import TrainInputs, make_inputs
from t5x_lite.training.optimizers import OptimizerConfig
from t5x_lite.training.schedules import Schedule
from t5x_lite.training.setup import TrainSetup, build
from t5x_lite.training.step import Loss, Update


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
    task_evaluation: TaskEvaluation | None = None,
    init_from: InitFrom | None = None,
    loss_on_inputs: bool = False,
    log_every_steps: int = 20,
    profile: Profile = Profile(),  # noqa: B008 frozen
    receipts: StepHashes = StepHashes(),  # noqa: B008 frozen
    guard: AnomalyGuard = AnomalyGuard(),  # noqa: B008 frozen
    patience: HangTimeouts = HangTimeouts(),  # noqa: B008 frozen
    tracker: WeightsAndBiases | None = None,
    seed: int = 0,
    deterministic: bool = False,
    cpu_devices: int | None = None,
    instead: "Callable[[PreparedRun], None] | None" = None,
    describe_config: Callable[[], str] = str,
) -> None:
    """Train until `steps` steps are done; the newest checkpoint of `model_dir` is gone on from.

    batch_size: rows of the global batch, over all devices. mesh: sizes of mesh axes, -1 for the
    rest. seed: of the initial weights and of dropout; the order of the data has `data.seed`.
    deterministic: the same bits at every run also on GPUs, which are slower for it.
    init_from: whose weights a run without checkpoints starts with. loss_on_inputs: a decoder
    without an encoder learns its inputs too. cpu_devices: simulate so many devices on a CPU, over
    all processes.
    profile: which steps to trace. receipts: what is noted of each. guard: when the run goes back.
    patience: how long nothing may happen. tracker: a service that gets the records too.
    task_evaluation: judge the tasks by their own metrics, too, each time the held-out losses are
    taken. instead: what is done with the run in the place of training, such as `debugging.replay`.
    describe_config: gives the text that is saved beside the checkpoints as the operative
    configuration.

    Raises ConfigError, before anything expensive, for settings that cannot work together.
    """
    startup, directory = StartupTimer(), epath.Path(model_dir)
    if steps < 1 or log_every_steps < 1:
        raise ConfigError(
            "steps and log_every_steps must be at least 1", "train.steps", "TRAIN_STEPS"
        )
    check_model_dir(directory, model)
    processes.simulate_devices(cpu_devices)
    program = build(
        model,
        optimizer,
        learning_rate,
        loss,
        update,
        mesh=mesh,
        batch_size=batch_size,
        seed=seed,
        fingerprint_every=receipts.fingerprint_every,
        deterministic=deterministic,
    )
    if init_from is not None and not (directory / "checkpoints").exists():
        check_init_from(init_from, program.abstract.params)
    steps = last_step(directory, init_from, steps, program.abstract.params)
    processes.check_same("their configuration", describe_config().splitlines())
    console = Console(silent=not processes.is_first())
    startup.lap("import")
    feed = make_inputs(
        data, model, batch_size=batch_size, loss_on_inputs=loss_on_inputs, report=console.note
    )
    startup.lap("data")
    ready = PreparedRun(
        directory, model, program, feed, loss, update, seed, init_from, console, startup
    )
    beside = CallbackSettings(profile, receipts, guard, tracker)
    with jax.set_mesh(program.mesh), closing(feed.plan):
        if instead is not None:
            instead(ready)
            return
        held_out = _held_out(program, feed, model, evaluation)
        judge = task_evaluation and make_task_evaluator(
            task_evaluation, data, feed.plan, model, program.mesh, batch_size, console.note
        )
        work = StepWork.of(model, program.mesh, batch_size, data.feature_lengths)
        directory.mkdir(parents=True, exist_ok=True)
        with Checkpointer(directory, checkpoints, report=console.note) as saved:
            run = TrainingLoop(program, feed.stream, held_out, saved, console, directory, startup)
            _introduce(console, model, program, directory)
            with Watchdog(patience, startup.ledger):
                run.begin(init_from, steps)
                goodput = Goodput(directory, startup.ledger)
                record = _record(ready, run.step, describe_config)
                if run.step < steps:
                    watching = beside.observers(ready, saved, goodput, judge, describe_config)
                    every = evaluation.period, log_every_steps
                    run.train(steps, *every, work, watching, record)
            finish(run, feed, evaluation, directory, console, goodput)


class PreparedRun(NamedTuple):
    """A run that is laid out, with its data at hand, before anything of it is read or written."""

    directory: epath.Path
    model: TransformerConfig
    program: TrainSetup
    feed: TrainInputs
    loss: Loss
    update: Update
    seed: int
    init_from: InitFrom | None
    console: Console
    startup: StartupTimer


class CallbackSettings(NamedTuple):
    """What goes on beside the steps, as it was configured."""

    profile: Profile
    receipts: StepHashes
    guard: AnomalyGuard
    tracker: WeightsAndBiases | None

    def observers(
        self,
        ready: PreparedRun,
        saved: Checkpointer,
        goodput: Goodput,
        judge: TaskEvaluator | None,
        describe_config: Callable[[], str],
    ) -> list[Callback]:
        """Make them, in the order in which they are told."""
        directory, stream, note = ready.directory, ready.feed.stream, ready.console.note
        observers: list[Callback] = [
            Profiler(self.profile, directory / EVENTS, ready.console),
            goodput,
            StepHashWriter(self.receipts, directory, stream, note),
            AnomalyGuardCallback(
                self.guard, directory, stream, ready.seed, lambda: saved.steps, note
            ),
        ]
        if self.tracker is not None:
            observers.append(Tracker(self.tracker, directory, describe_config))
        if judge is not None:
            observers.append(TaskEvalCallback(judge, note))
        return observers


def _record(ready: PreparedRun, step: int, describe_config: Callable[[], str]) -> dict[str, object]:
    """Write down what is launched, and how its texts are read."""
    record = write_launch(
        ready.directory,
        ready.model,
        start_step=step,
        describe_config=describe_config,
        mixture=ready.feed.mixture,
    )
    text = TextRecord(ready.feed.plan.vocabulary(), SpecialTokens())
    write_text_record(ready.directory, text)
    return record


def _introduce(
    console: Console, model: TransformerConfig, program: TrainSetup, directory: epath.Path
) -> None:
    mesh = ", ".join(f"{name} {size}" for name, size in program.mesh.shape.items() if size > 1)
    parameters = transformer.num_parameters(model)
    console.note(f"model: {parameters:,} parameters in {directory}; mesh: {mesh}")


def finish(
    run: TrainingLoop,
    feed: TrainInputs,
    evaluation: Evaluation,
    directory: epath.Path,
    console: Console,
    goodput: Goodput,
) -> None:
    """Show the results of a run that is done; what a finished run left is not made again."""
    results = processes.broadcast(read_results(directory))
    if results is None or results["step"] != run.step:
        results = run.results(feed.baselines(evaluation.max_examples), goodput.seconds)
        console.note(goodput.line())
        if processes.is_first():
            write_results(directory, results)
    if not processes.is_first():
        return
    show_results(console, directory, results)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    console.note(
        f"{run.step:,} steps, {duration(results['seconds'])} of training; "
        f"peak memory of this process {peak:.2f} GiB"
    )


def _held_out(
    program: TrainSetup, feed: TrainInputs, model: TransformerConfig, evaluation: Evaluation
) -> Validator:
    greedy = Generation(max_length=feed.settings["feature_lengths"]["targets"])
    batch_size = feed.settings["batch_size"]
    return Validator(
        program.graphdef,
        feed.plan.validation_tasks(),
        feed.plan.vocabulary(),
        evaluation,
        Inference(model, greedy, mesh=program.mesh, batch_size=batch_size),
        batch_sharding=program.batch_sharding,
        replicated=program.replicated,
        stream_settings=feed.settings,
    )
