"""`t5x_lite train`: set up a run, restore it, train it to its end and show its results."""

import logging
import resource
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from t5x_lite.checkpoints.checkpointer import Checkpointer
from t5x_lite.checkpoints.policy import CheckpointPolicy
from t5x_lite.checkpoints.run_directory import write_launch
from t5x_lite.console import Console, count, duration
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
from t5x_lite.tokenizers.text_codec import TokenizerInfo, write_text_record
from t5x_lite.trainer.anomaly_guard import AnomalyGuard, AnomalyGuardCallback
from t5x_lite.trainer.goodput import Goodput
from t5x_lite.trainer.loop import TrainingLoop
from t5x_lite.trainer.prepare_run import PreparedRun, prepare_run
from t5x_lite.trainer.profiler import Profile, Profiler
from t5x_lite.trainer.resume import InitFrom
from t5x_lite.trainer.step_hashes import StepHashes, StepHashWriter
from t5x_lite.trainer.throughput import StepWork
from t5x_lite.trainer.wandb_tracker import Tracker, WeightsAndBiases
from t5x_lite.trainer.watchdog import HangTimeouts, Watchdog
from t5x_lite.training.callbacks import Callback
from t5x_lite.training.inputs import TrainInputs
from t5x_lite.training.optimizers import OptimizerConfig
from t5x_lite.training.schedules import Schedule
from t5x_lite.training.step import Loss, Update

_LOG = logging.getLogger(__name__)


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
    step_hashes: StepHashes = StepHashes(),  # noqa: B008 frozen
    anomaly_guard: AnomalyGuard = AnomalyGuard(),  # noqa: B008 frozen
    hang_timeouts: HangTimeouts = HangTimeouts(),  # noqa: B008 frozen
    tracker: WeightsAndBiases | None = None,
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
    deterministic: bool = False,
    cpu_devices: int | None = None,
    describe_config: Callable[[], str] = str,
) -> None:
    """Train until `steps` steps are done, resuming from the newest checkpoint of `model_dir`.

    Args:
        model_dir: Directory of the run: checkpoints, metrics, events, logs and configurations.
        model: The model's configuration.
        data: Tasks, mixture and features to train and validate on.
        optimizer: The optimizer's configuration.
        learning_rate: Schedule of the learning rate, a function of the step.
        batch_size: Rows of the global batch, over all devices.
        steps: Number of training steps of the whole run.
        mesh: Sizes of the mesh axes data, fsdp, tensor, expert and sequence; -1 takes the rest.
        loss: What a step minimizes.
        update: How gradients become new weights.
        evaluation: When validation losses are computed, and on how many examples.
        checkpoints: When checkpoints are saved, and which are kept.
        task_evaluation: Also compute the tasks' own metrics with each validation loss; None does
            not.
        init_from: Whose weights a run without checkpoints starts with; None initializes them.
        loss_on_inputs: A decoder without an encoder is also trained on its inputs.
        log_every_steps: Steps between two lines of metrics.
        profile: Which steps to trace.
        step_hashes: Which step hashes (receipts.jsonl) are recorded.
        anomaly_guard: When the run rolls back to a checkpoint and skips data.
        hang_timeouts: Seconds without progress after which the run ends with an error.
        tracker: A service that gets the metrics as well; None is none.
        callbacks: More callbacks of the run, called after its own (`training.callbacks.Callback`).
        seed: Seed of the initial weights and of dropout. The order of the data has `data.seed`.
        deterministic: Bit-exact runs on GPUs as well, where this is slower.
        cpu_devices: Number of devices to simulate on a CPU, over all processes; None is none.
        describe_config: Returns the text that is saved beside the checkpoints as the operative
            configuration.

    Raises:
        ConfigError: Settings that cannot work together, before anything expensive.
    """
    if log_every_steps < 1:
        raise ConfigError(
            f"log_every_steps is {log_every_steps}; expected 1 or more", "train.log_every_steps"
        )
    with prepare_run(
        model_dir=model_dir,
        model=model,
        data=data,
        optimizer=optimizer,
        learning_rate=learning_rate,
        batch_size=batch_size,
        steps=steps,
        mesh=mesh,
        loss=loss,
        update=update,
        init_from=init_from,
        loss_on_inputs=loss_on_inputs,
        step_hashes=step_hashes,
        seed=seed,
        deterministic=deterministic,
        cpu_devices=cpu_devices,
        describe_config=describe_config,
        write_log=True,
    ) as prepared:
        task_evaluator = task_evaluation and make_task_evaluator(
            task_evaluation,
            data,
            prepared.feed.plan,
            model,
            prepared.program.mesh,
            batch_size,
        )
        _train(
            prepared,
            evaluation=evaluation,
            task_evaluator=task_evaluator,
            checkpoints=checkpoints,
            work=StepWork.of(model, prepared.program.mesh, batch_size, data.feature_lengths),
            hang_timeouts=hang_timeouts,
            settings=CallbackSettings(profile, step_hashes, anomaly_guard, tracker, callbacks),
            log_every_steps=log_every_steps,
            describe_config=describe_config,
        )


def _train(
    prepared: PreparedRun,
    *,
    evaluation: Evaluation,
    task_evaluator: TaskEvaluator | None,
    checkpoints: CheckpointPolicy,
    work: StepWork,
    hang_timeouts: HangTimeouts,
    settings: "CallbackSettings",
    log_every_steps: int,
    describe_config: Callable[[], str],
) -> None:
    """Restore the newest checkpoint, train the remaining steps and show the results."""
    directory, console, steps = prepared.directory, prepared.console, prepared.steps
    validator = _validator(prepared, evaluation)
    directory.mkdir(parents=True, exist_ok=True)
    with Checkpointer(directory, checkpoints) as saved:
        run = TrainingLoop(
            prepared.program,
            prepared.feed.stream,
            validator,
            saved,
            console,
            directory,
            prepared.startup,
        )
        _log_model(prepared)
        with Watchdog(hang_timeouts, prepared.startup.ledger):
            run.begin(prepared.init_from, steps)
            goodput = Goodput(directory, prepared.startup.ledger)
            record = _record(prepared, run.step, describe_config)
            if run.step < steps:
                callbacks = settings.callbacks(
                    prepared, saved, goodput, task_evaluator, describe_config
                )
                run.train(steps, evaluation.period, log_every_steps, work, callbacks, record)
        finish(run, prepared.feed, evaluation, directory, console, goodput)


class CallbackSettings(NamedTuple):
    """The configuration of the run's callbacks.

    Args:
        profile: Which steps to trace.
        step_hashes: Which step hashes are recorded.
        anomaly_guard: When the run rolls back.
        tracker: A service that gets the metrics; None is none.
        more: Callbacks of the user, called after the run's own.
    """

    profile: Profile
    step_hashes: StepHashes
    anomaly_guard: AnomalyGuard
    tracker: WeightsAndBiases | None
    more: Sequence[Callback] = ()

    def callbacks(
        self,
        prepared: PreparedRun,
        saved: Checkpointer,
        goodput: Goodput,
        task_evaluator: TaskEvaluator | None,
        describe_config: Callable[[], str],
    ) -> list[Callback]:
        """Return the callbacks, in the order in which the loop calls them.

        Args:
            prepared: The run.
            saved: Its checkpoints.
            goodput: The callback that writes goodput records.
            task_evaluator: Computes the tasks' own metrics; None does not.
            describe_config: Returns the configuration as text.
        """
        directory, stream = prepared.directory, prepared.feed.stream
        callbacks: list[Callback] = [
            Profiler(self.profile, directory / EVENTS),
            goodput,
            StepHashWriter(self.step_hashes, directory, stream),
            AnomalyGuardCallback(
                self.anomaly_guard, directory, stream, prepared.seed, lambda: saved.steps
            ),
        ]
        if self.tracker is not None:
            callbacks.append(Tracker(self.tracker, directory, describe_config))
        if task_evaluator is not None:
            callbacks.append(TaskEvalCallback(task_evaluator))
        return [*callbacks, *self.more]


def _record(
    prepared: PreparedRun, step: int, describe_config: Callable[[], str]
) -> dict[str, object]:
    """Write model, configuration and tokenizer to the run's directory.

    Returns:
        The record of the launch, which is saved with every checkpoint too.
    """
    record = write_launch(
        prepared.directory,
        prepared.model,
        start_step=step,
        describe_config=describe_config,
        mixture=prepared.feed.mixture,
    )
    text = TokenizerInfo(prepared.feed.plan.vocabulary(), SpecialTokens())
    write_text_record(prepared.directory, text)
    return record


def _log_model(prepared: PreparedRun) -> None:
    mesh, parameters = prepared.program.mesh, transformer.num_parameters(prepared.model)
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    _LOG.info(
        f"model: {parameters:,} parameters; mesh: {axes or count(mesh.size, 'device')}; "
        f"model directory: {prepared.directory}"
    )


def finish(
    run: TrainingLoop,
    feed: TrainInputs,
    evaluation: Evaluation,
    directory: epath.Path,
    console: Console,
    goodput: Goodput,
) -> None:
    """Compute, write and show the results of a finished run.

    A later start of the same run reads them from the file and computes nothing.

    Args:
        run: The loop, at its last step.
        feed: The data of the run.
        evaluation: The number of validation examples.
        directory: The run's directory.
        console: Shows the results.
        goodput: Where the time of the run went.
    """
    results = processes.broadcast(read_results(directory))
    if results is None or results["step"] != run.step:
        results = run.results(feed.baselines(evaluation.max_examples), goodput.seconds)
        _LOG.info(goodput.line())
        if processes.is_first():
            write_results(directory, results)
    if not processes.is_first():
        return
    show_results(console, directory, results)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    _LOG.info(
        f"done: {count(run.step, 'step')}, {duration(results['seconds'])} of training; "
        f"peak memory of this process {peak:.2f} GiB"
    )


def _validator(prepared: PreparedRun, evaluation: Evaluation) -> Validator:
    program, feed = prepared.program, prepared.feed
    greedy = Generation(max_length=feed.settings["feature_lengths"]["targets"])
    batch_size = feed.settings["batch_size"]
    return Validator(
        program.graphdef,
        feed.plan.validation_tasks(),
        feed.plan.vocabulary(),
        evaluation,
        Inference(prepared.model, greedy, mesh=program.mesh, batch_size=batch_size),
        batch_sharding=program.batch_sharding,
        replicated=program.replicated,
        stream_settings=feed.settings,
    )
