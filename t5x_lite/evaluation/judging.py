"""From what a model said, or how likely it found the targets, to a task's scores.

The steps and their order are those of seqio's evaluation (`seqio.metrics`): texts and targets are
postprocessed with their example, then every metric sees all of them at once.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from t5x_lite.errors import ConfigError

Kind = Literal["predictions", "scores"]


class TaskMetrics(NamedTuple):
    """How a task is judged: what is done to texts before the metrics, None for nothing."""

    postprocess: Callable[..., Any] | None
    metrics: Sequence[Callable[..., Mapping[str, Any]]]

    def needs(self, kind: Kind) -> bool:
        """Whether a metric takes generated texts, or the scores of the targets."""
        return any(metric_kind(metric) == kind for metric in self.metrics)


class Case(NamedTuple):
    """One example of an evaluation: token ids, EOS included, and all that the task's dataset holds.

    example: as seqio gives it, texts as bytes.
    """

    inputs: list[int]
    targets: list[int]
    example: Mapping[str, Any]


def metric_kind(metric: Callable[..., Any]) -> Kind:
    """What a metric takes beside the targets, by the name of its second argument, as in seqio."""
    needed = [
        name
        for name, parameter in inspect.signature(metric).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if needed == ["targets", "predictions"]:
        return "predictions"
    if needed == ["targets", "scores"]:
        return "scores"
    name = getattr(metric, "__name__", repr(metric))
    raise ConfigError(
        f"the metric {name} takes {', '.join(needed)}; wanted (targets, predictions) or "
        f"(targets, scores)"
    )


def judge(
    how: TaskMetrics,
    cases: Sequence[Case],
    *,
    decode: Callable[[Sequence[int]], str],
    texts: Sequence[str] | None = None,
    scores: Sequence[float] | None = None,
) -> tuple[dict[str, float], list[Any], list[Any]]:
    """Return a task's scores by name, and what its metrics compared: targets and predictions.

    `texts` and `scores` belong to `cases`, one each; whichever the metrics need must be given.
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
    found: dict[str, float] = {}
    for metric in how.metrics:
        compared = predictions if metric_kind(metric) == "predictions" else scores
        assert compared is not None
        for name, value in metric(targets, compared).items():
            found[name] = float(value)
    return found, targets, list(scores or []) if predictions is None else predictions


def _target_text(case: Case, decode: Callable[[Sequence[int]], str]) -> str:
    text = case.example.get("targets_pretokenized")
    if text is None:
        return decode(case.targets)
    return text.decode() if isinstance(text, bytes) else str(text)


def _postprocessed(how: TaskMetrics, text: str, case: Case, *, is_target: bool) -> Any:
    if how.postprocess is None:
        return text
    return how.postprocess(text, example=case.example, is_target=is_target)
