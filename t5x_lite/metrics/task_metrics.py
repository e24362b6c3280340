"""Evaluation of a task: from generated texts, or log-likelihoods of targets, to its metrics.

The steps are those of seqio's evaluation: texts and targets are postprocessed with their example,
then each metric is computed over all of them.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from t5x_lite.errors import ConfigError

Kind = Literal["predictions", "aux_values", "scores"]
# What a metric needs, by the names of its arguments, as in seqio.
_KIND_OF_ARGUMENTS: Mapping[tuple[str, ...], Kind] = {
    ("targets", "predictions"): "predictions",
    ("targets", "predictions", "aux_values"): "aux_values",
    ("targets", "scores"): "scores",
}
# Targets of examples with hidden labels, as in the test sets of benchmarks; "-1.0" is STS-B's.
_HIDDEN_TARGETS = ("<unk>", "-1.0")


class TaskMetrics(NamedTuple):
    """The evaluation of a task.

    Attributes:
        postprocess: Converts texts to what the metrics compare (`metrics.postprocessors`); None
            compares texts.
        metrics: Functions of (targets, predictions), (targets, predictions, aux_values) or
            (targets, scores) that return scores by name.
    """

    postprocess: Callable[..., Any] | None
    metrics: Sequence[Callable[..., Mapping[str, Any]]]

    def needs(self, kind: Kind) -> bool:
        """Return whether a metric needs generated texts ("predictions") or target scores."""
        kinds = {metric_kind(metric) for metric in self.metrics}
        return kind in kinds or (kind == "predictions" and "aux_values" in kinds)


class EvalExample(NamedTuple):
    """One example of an evaluation.

    Attributes:
        inputs: Token ids, EOS included.
        targets: Token ids, EOS included.
        example: All features of the task's dataset, strings as bytes.
    """

    inputs: list[int]
    targets: list[int]
    example: Mapping[str, Any]


def metric_kind(metric: Callable[..., Any]) -> Kind:
    """Return what a metric needs besides targets, by the names of its arguments, as in seqio.

    Raises:
        ConfigError: The metric has other required arguments.
    """
    required = tuple(
        name
        for name, parameter in inspect.signature(metric).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    )
    if required in _KIND_OF_ARGUMENTS:
        return _KIND_OF_ARGUMENTS[required]
    name = getattr(metric, "__name__", repr(metric))
    expected = " or ".join(f"({', '.join(arguments)})" for arguments in _KIND_OF_ARGUMENTS)
    raise ConfigError(
        f"the metric {name} has the arguments ({', '.join(required)}); expected {expected}"
    )


def labels_are_hidden(examples: Sequence[EvalExample]) -> bool:
    """Return whether all labels are hidden, as in the test sets of benchmarks.

    Such examples have the label -1, the target of an unknown label, or no correct option.
    """
    return all(_is_hidden(example) for example in examples)


def evaluate_task(
    task_metrics: TaskMetrics,
    examples: Sequence[EvalExample],
    *,
    decode: Callable[[Sequence[int]], str],
    texts: Sequence[str] | None = None,
    text_scores: Sequence[float] | None = None,
    scores: Sequence[float] | None = None,
) -> tuple[dict[str, float], list[Any], list[Any]]:
    """Compute the metrics of a task.

    Args:
        task_metrics: Postprocessor and metrics.
        examples: The examples.
        decode: Converts token ids to text, for targets without "targets_pretokenized".
        texts: Generated text of each example, if a metric needs them.
        text_scores: Log-likelihood of each generated text.
        scores: Log-likelihood of each example's targets, if a metric needs them.

    Returns:
        Scores by name, none if the labels are hidden; postprocessed targets; and postprocessed
        predictions, or the scores if there are no texts.
    """
    targets = [
        _postprocess(task_metrics, _target_text(example, decode), example, is_target=True)
        for example in examples
    ]
    predictions = None
    if texts is not None:
        predictions = [
            _postprocess(task_metrics, text, example, is_target=False)
            for text, example in zip(texts, examples, strict=True)
        ]
    arguments = {
        "predictions": (predictions,),
        "aux_values": (predictions, {"scores": text_scores}),
        "scores": (scores,),
    }
    results: dict[str, float] = {}
    for metric in () if labels_are_hidden(examples) else task_metrics.metrics:
        for name, value in metric(targets, *arguments[metric_kind(metric)]).items():
            if (number := _number(value)) is not None:
                results[name] = number
    return results, targets, list(scores or []) if predictions is None else predictions


def _is_hidden(example: EvalExample) -> bool:
    features = example.example
    if "is_correct" in features:
        return not features["is_correct"]
    target = features.get("targets_pretokenized")
    target = target.decode() if isinstance(target, bytes) else target
    return target in _HIDDEN_TARGETS or _number(features.get("label")) == -1


def _target_text(example: EvalExample, decode: Callable[[Sequence[int]], str]) -> str:
    text = example.example.get("targets_pretokenized")
    if text is None:
        return decode(example.targets)
    return text.decode() if isinstance(text, bytes) else str(text)


def _postprocess(
    task_metrics: TaskMetrics, text: str, example: EvalExample, *, is_target: bool
) -> Any:
    if task_metrics.postprocess is None:
        return text
    return task_metrics.postprocess(text, example=example.example, is_target=is_target)


def _number(value: Any) -> float | None:
    """Convert a value, or the value of seqio's Scalar, to float; None for other types."""
    try:
        return float(getattr(value, "value", value))
    except (TypeError, ValueError):
        return None
