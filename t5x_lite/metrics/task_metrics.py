"""From what a model said, or how likely it found the targets, to a task's scores.

The steps and their order are those of seqio's evaluation (`seqio.metrics`): texts and targets are
postprocessed with their example, then every metric sees all of them at once.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from t5x_lite.errors import ConfigError

Kind = Literal["predictions", "aux_values", "scores"]
# What a metric is called with, by the names of its arguments, as in seqio.
_FORMS: Mapping[tuple[str, ...], Kind] = {
    ("targets", "predictions"): "predictions",
    ("targets", "predictions", "aux_values"): "aux_values",
    ("targets", "scores"): "scores",
}
# The targets of examples whose labels are kept secret; STS-B, whose scores are 0 to 5, says -1.
_SECRET_TARGETS = ("<unk>", "-1.0")


class TaskMetrics(NamedTuple):
    """How a task is judged: what is done to texts before the metrics, None for nothing."""

    postprocess: Callable[..., Any] | None
    metrics: Sequence[Callable[..., Mapping[str, Any]]]

    def needs(self, kind: Kind) -> bool:
        """Whether a metric takes generated texts (and their scores), or the scores of targets."""
        kinds = {metric_kind(metric) for metric in self.metrics}
        return kind in kinds or (kind == "predictions" and "aux_values" in kinds)


class EvalExample(NamedTuple):
    """One example of an evaluation: token ids, EOS included, and all that the task's dataset holds.

    example: as seqio gives it, texts as bytes.
    """

    inputs: list[int]
    targets: list[int]
    example: Mapping[str, Any]


def metric_kind(metric: Callable[..., Any]) -> Kind:
    """What a metric takes beside the targets, by the names of its arguments, as in seqio."""
    needed = tuple(
        name
        for name, parameter in inspect.signature(metric).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    )
    if needed in _FORMS:
        return _FORMS[needed]
    name = getattr(metric, "__name__", repr(metric))
    wanted = " or ".join(f"({', '.join(form)})" for form in _FORMS)
    raise ConfigError(f"the metric {name} takes {', '.join(needed)}; wanted {wanted}")


def labels_are_secret(cases: Sequence[EvalExample]) -> bool:
    """Whether no example tells its label, as in the test sets of benchmarks: nothing to judge by.

    Such examples have the label -1, the target of an unknown label, or no right option.
    """
    return all(_is_secret(case) for case in cases)


def evaluate_task(
    how: TaskMetrics,
    cases: Sequence[EvalExample],
    *,
    decode: Callable[[Sequence[int]], str],
    texts: Sequence[str] | None = None,
    text_scores: Sequence[float] | None = None,
    scores: Sequence[float] | None = None,
) -> tuple[dict[str, float], list[Any], list[Any]]:
    """Return a task's scores by name, and what its metrics compared: targets and predictions.

    `texts` (with `text_scores`, their log p) and `scores` of the targets belong to `cases`, one
    each; whichever the metrics need must be given. Secret labels give no scores.
    """
    targets = [
        _postprocessed(how, _target_text(case, decode), case, is_target=True) for case in cases
    ]
    predictions = None
    if texts is not None:
        predictions = [
            _postprocessed(how, text, case, is_target=False)
            for text, case in zip(texts, cases, strict=True)
        ]
    compared = {
        "predictions": (predictions,),
        "aux_values": (predictions, {"scores": text_scores}),
        "scores": (scores,),
    }
    found: dict[str, float] = {}
    for metric in () if labels_are_secret(cases) else how.metrics:
        for name, value in metric(targets, *compared[metric_kind(metric)]).items():
            if (number := _number(value)) is not None:
                found[name] = number
    return found, targets, list(scores or []) if predictions is None else predictions


def _is_secret(case: EvalExample) -> bool:
    example = case.example
    if "is_correct" in example:
        return not example["is_correct"]
    target = example.get("targets_pretokenized")
    target = target.decode() if isinstance(target, bytes) else target
    return target in _SECRET_TARGETS or _number(example.get("label")) == -1


def _target_text(case: EvalExample, decode: Callable[[Sequence[int]], str]) -> str:
    text = case.example.get("targets_pretokenized")
    if text is None:
        return decode(case.targets)
    return text.decode() if isinstance(text, bytes) else str(text)


def _postprocessed(how: TaskMetrics, text: str, case: EvalExample, *, is_target: bool) -> Any:
    if how.postprocess is None:
        return text
    return how.postprocess(text, example=case.example, is_target=is_target)


def _number(value: Any) -> float | None:
    """A value, or what seqio's Scalar holds, as a number; None for texts, pictures and the like."""
    try:
        return float(getattr(value, "value", value))
    except (TypeError, ValueError):
        return None
