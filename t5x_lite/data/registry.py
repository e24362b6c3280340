"""Look up tasks that are registered with seqio: those of a mixture, their rates and vocabulary."""

import dataclasses
import difflib
import importlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from t5x_lite.data.tasks.preprocessors import to_vocabulary
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.objective import Objective
from t5x_lite.tokenizers.vocabularies import AnyVocabulary

if TYPE_CHECKING:
    import seqio

    from t5x_lite.data.data_config import Data


def registered_tasks(data: "Data") -> list[tuple["seqio.Task", float]]:
    """Register all tasks of a run's data with seqio and look up those that it names.

    Imports `data.modules` and calls `register` of `data.task_providers`.

    Args:
        data: The run's data.

    Returns:
        Tasks of the mixture with their rates; a single task has rate 1. If `data.vocabulary` is
        set, the tasks have that vocabulary.

    Raises:
        ConfigError: If a module cannot be imported, or no task or mixture has the name.
    """
    import seqio

    for module in data.module_names:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f"module {module!r}: {error}", "Data.modules") from error
    for task_provider in data.task_providers:
        task_provider.register(data.data_dir)
    check_name(data, [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()])
    provider = seqio.get_mixture_or_task(data.mixture_or_task_name)
    if isinstance(provider, seqio.Mixture):
        rates = [(task, float(provider.get_rate(task))) for task in provider.tasks]
    else:
        rates = [(provider, 1.0)]
    if data.vocabulary is None:
        return rates
    vocabulary = data.vocabulary.to_seqio()
    return [(_with_vocabulary(task, vocabulary), rate) for task, rate in rates]


def check_name(data: "Data", names: Iterable[str]) -> None:
    """Check that the data's mixture or task is among the known ones.

    Args:
        data: The run's data.
        names: Names of all tasks and mixtures.

    Raises:
        ConfigError: If it is not; the message lists the nearest names.
    """
    name, names = data.mixture_or_task_name, sorted(names)
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names
        raise ConfigError(
            f"no task or mixture is named {name!r}: the nearest are {', '.join(nearest[:10])}"
            if names
            else f"no task or mixture is named {name!r}: none are registered",
            "MIXTURE_OR_TASK_NAME",
        )


def shared_vocabulary(data: "Data", tasks: Sequence["seqio.Task"]) -> AnyVocabulary:
    """Return the vocabulary that all features of all tasks share.

    Args:
        data: The run's data, for the error's text.
        tasks: The tasks of its mixture.

    Returns:
        The vocabulary.

    Raises:
        ConfigError: If there are several, or one is neither SentencePiece nor bytes.
    """
    vocabularies = {
        to_vocabulary(feature.vocabulary)
        for task in tasks
        for feature in task.output_features.values()
    }
    if len({(vocabulary.fingerprint, vocabulary.size) for vocabulary in vocabularies}) > 1:
        raise ConfigError(
            f"the tasks of {data.mixture_or_task_name!r} use different vocabularies: "
            + ", ".join(sorted(vocabulary.path for vocabulary in vocabularies)),
            "MIXTURE_OR_TASK_NAME",
        )
    # The same model may be at several paths: the choice must not depend on the order of a set.
    return min(vocabularies, key=lambda vocabulary: vocabulary.path)


def _with_vocabulary(task: "seqio.Task", vocabulary: "seqio.Vocabulary") -> "seqio.Task":
    return task.replace(
        output_features={
            name: dataclasses.replace(feature, vocabulary=vocabulary)
            for name, feature in task.output_features.items()
        }
    )


def provided_objectives(data: "Data") -> dict[str, Objective]:
    """Return the objectives of those tasks that do not use the run's, by task name.

    Only task providers with a property `objectives` can name them without registering the tasks,
    which takes seconds.

    Args:
        data: The run's data.
    """
    objectives: dict[str, Objective] = {}
    for provider in data.task_providers:
        objectives |= getattr(provider, "objectives", {})
    return objectives
