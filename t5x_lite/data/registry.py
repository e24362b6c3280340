"""What is registered with seqio: the tasks of a mixture, their rates, and of what kind they are."""

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from t5x_lite.data.tasks.preprocessors import to_vocabulary
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.span_corruption import Objective
from t5x_lite.tokenizers.vocabularies import AnyVocabulary

if TYPE_CHECKING:
    import seqio

    from t5x_lite.data.data_config import Data


def registered_tasks(
    data: "Data", report: Callable[[str], None]
) -> list[tuple["seqio.Task", float]]:
    """Let the user's modules and task_providers register; return the tasks asked for and rates."""
    import seqio

    for module in data.module_names:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f"module {module!r}: {error}", "Data.modules") from error
    for declaration in data.task_providers:
        declaration.register(data.data_dir, report)
    check_name(data, [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()])
    provider = seqio.get_mixture_or_task(data.mixture_or_task_name)
    if isinstance(provider, seqio.Mixture):
        rates = [(task, float(provider.get_rate(task))) for task in provider.tasks]
    else:
        rates = [(provider, 1.0)]
    if data.vocabulary is None:
        return rates
    pieces = data.vocabulary.to_seqio()
    return [(_with_vocabulary(task, pieces), rate) for task, rate in rates]


def check_name(data: "Data", names: Iterable[str]) -> None:
    """Raise ConfigError with the nearest names where the mixture or task is none of `names`."""
    wanted, names = data.mixture_or_task_name, sorted(names)
    if wanted not in names:
        nearest = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5) or names
        raise ConfigError(
            f"no task or mixture is named {wanted!r}: the nearest are {', '.join(nearest[:10])}"
            if names
            else f"no task or mixture is named {wanted!r}: nothing is declared",
            "MIXTURE_OR_TASK_NAME",
        )


def shared_vocabulary(data: "Data", tasks: Sequence["seqio.Task"]) -> AnyVocabulary:
    """Return the vocabulary of all tasks; raises ConfigError if they have several."""
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
    return min(vocabularies, key=lambda each: each.path)


def _with_vocabulary(task: "seqio.Task", vocabulary: "seqio.Vocabulary") -> "seqio.Task":
    return task.replace(
        output_features={
            name: dataclasses.replace(feature, vocabulary=vocabulary)
            for name, feature in task.output_features.items()
        }
    )


def own_objectives(data: "Data") -> dict[str, Objective]:
    """Return the objectives that tasks have of their own, as far as the task_providers tell."""
    found: dict[str, Objective] = {}
    for declaration in data.task_providers:
        found |= getattr(declaration, "objectives", {})
    return found
