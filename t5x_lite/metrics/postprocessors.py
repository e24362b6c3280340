"""Postprocessors: from decoded text, or a task's example, to the values that metrics compare.

They are called as in seqio: `postprocess(text, example=..., is_target=...)`, once for the
prediction and once, with `is_target`, for the target. Strings in an example are bytes.

The arguments of all postprocessors are:

    text        decoded text of the prediction or the target (of rank classification: the score)
    example     the example of the task's dataset, by feature
    is_target   whether the text is the target
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_DETERMINERS = frozenset(
    (
        *("a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our", "some"),
        *("that", "the", "their", "these", "this", "those", "which", "whose", "your"),
    )
)


def label(text: str, *, labels: Sequence[str], **_: Any) -> int:
    """Return the index of a label, -1 for any other text.

    Args:
        text: Decoded text.
        labels: Texts of the labels in the order of their indices.
    """
    return labels.index(text) if text in labels else -1


def number(text: str, *, default: float = -1.0, **_: Any) -> float:
    """Parse a number.

    Args:
        text: Decoded text.
        default: Result for texts that are not numbers.
    """
    try:
        return float(text)
    except ValueError:
        return default


def lower(text: str, **_: Any) -> str:
    """Return a text in lower case."""
    return text.lower()


def answers(text: str, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    """Return the predicted text; for the target, all correct answers."""
    return _texts(example, "answers") if is_target else text


def span_answers(
    text: str, example: Mapping[str, Any] | None = None, is_target: bool = False
) -> Any:
    """Return the predicted span as text; for the target, the correct answers and the context."""
    if not is_target:
        return text
    assert example is not None
    return {"answers": _texts(example, "answers"), "context": _decode(example["context"])}


def multirc(text: str, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    """Return whether an answer is called true; for the target, also its question (MultiRC)."""
    value = {"value": label(text, labels=("False", "True"))}
    return value | {"group": int(_require(example)["idx/question"])} if is_target else value


def record(text: str, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    """Return the predicted entity; for the target, all correct ones and the query (ReCoRD)."""
    if not is_target:
        return {"value": text}
    group = tuple(int(_require(example)[f"idx/{part}"]) for part in ("passage", "query"))
    return {"value": _texts(example, "answers"), "group": group}


def wsc(text: str, example: Mapping[str, Any] | None = None, is_target: bool = False) -> int:
    """Return whether the predicted noun is the candidate: 1, 0, or -1 if nothing is predicted.

    They match if all words of one are words of the other, ignoring determiners, unless only one of
    them is possessive. For the target, returns whether the candidate is the referent (WSC).
    """
    example = _require(example)
    if is_target:
        return int(example["label"])
    predicted = _without_determiners(text)
    candidate = _without_determiners(_decode(example["targets_pretokenized"]))
    if not predicted:
        return -1
    if ("'" in predicted) != ("'" in candidate):
        return 0
    one, other = set(predicted.split(" ")), set(candidate.split(" "))
    return int(one <= other or other <= one)


def ranked(score: Any, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    """Return a candidate's score; for the target, a `metrics.Ranked`.

    Question and candidate are the example's "idx", or "idx/question" and "idx/option". In MultiRC
    the question is "idx/paragraph", "idx/question" and "idx/answer".

    Args:
        score: Log-likelihood of the candidate.
        example: The example of the task's dataset.
        is_target: Whether the target is postprocessed.
    """
    if not is_target:
        return score
    example = _require(example)
    if "idx" in example:
        question, candidate = (int(part) for part in example["idx"])
    else:
        parts = ("paragraph", "question", "answer") if "idx/answer" in example else ("question",)
        question = tuple(int(example[f"idx/{part}"]) for part in parts)
        candidate = int(example["idx/option"])
    return (question, candidate), bool(example["is_correct"]), len(example["targets"])


def after_sentinels(
    text: str, *, count: int, postprocess: Callable[..., Any] | None = None, **arguments: Any
) -> Any:
    """Remove sentinels from the start of a text, then apply the task's postprocessor.

    Args:
        text: Decoded text.
        count: Number of sentinels, from <extra_id_0> on.
        postprocess: The task's postprocessor; None for none.
        **arguments: Its other arguments.
    """
    for number in range(count):
        text = text.strip().removeprefix(f"<extra_id_{number}>")
    return postprocess(text.strip(), **arguments) if postprocess else text.strip()


def _without_determiners(text: str) -> str:
    return " ".join(word for word in text.strip().lower().split(" ") if word not in _DETERMINERS)


def _texts(example: Mapping[str, Any] | None, name: str) -> list[str]:
    return [_decode(text) for text in _require(example)[name]]


def _require(example: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if example is None:
        raise ValueError("this postprocessor requires the example")
    return example


def _decode(text: str | bytes) -> str:
    return text.decode() if isinstance(text, bytes) else text
