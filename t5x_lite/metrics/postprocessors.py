"""From decoded text, or a task's example, to what a metric compares.

Called as seqio calls them: `postprocess(text, example=..., is_target=...)`, once for the prediction
and once, with `is_target`, for the target. Texts in an example are bytes.
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
    """Return the number of a label, -1 for any other text."""
    return labels.index(text) if text in labels else -1


def number(text: str, *, default: float = -1.0, **_: Any) -> float:
    """Return a text as a number, `default` where it is none."""
    try:
        return float(text)
    except ValueError:
        return default


def lower(text: str, **_: Any) -> str:
    """Return a text in lower case."""
    return text.lower()


def answers(text: str, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    """Return the predicted text; for the target, all answers that count as right."""
    return _texts(example, "answers") if is_target else text


def span_answers(
    text: str, example: Mapping[str, Any] | None = None, is_target: bool = False
) -> Any:
    """Return the predicted places; for the target, the answers and the context they are in."""
    if not is_target:
        return text
    assert example is not None
    return {"answers": _texts(example, "answers"), "context": _decode(example["context"])}


def multirc(text: str, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    """Return whether an answer is called right; for the target, also the question it answers."""
    found = {"value": label(text, labels=("False", "True"))}
    return found | {"group": int(_given(example)["idx/question"])} if is_target else found


def record(text: str, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    """Return the predicted entity; for the target, all right ones and which query they answer."""
    if not is_target:
        return {"value": text}
    group = tuple(int(_given(example)[f"idx/{part}"]) for part in ("passage", "query"))
    return {"value": _texts(example, "answers"), "group": group}


def wsc(text: str, example: Mapping[str, Any] | None = None, is_target: bool = False) -> int:
    """Return whether the predicted noun is the candidate: 1, 0, or -1 if nothing is predicted.

    They are the same when all words of one are words of the other, determiners aside, unless only
    one of them is possessive. For the target, return whether the candidate is the right one.
    """
    given = _given(example)
    if is_target:
        return int(given["label"])
    predicted, candidate = _bare(text), _bare(_decode(given["targets_pretokenized"]))
    if not predicted:
        return -1
    if ("'" in predicted) != ("'" in candidate):
        return 0
    one, other = set(predicted.split(" ")), set(candidate.split(" "))
    return int(one <= other or other <= one)


def ranked(score: Any, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    """Return a candidate's score; for the target, its place, whether it is right, its length.

    The place is (question, number of the candidate): the example's "idx", or its "idx/question" and
    "idx/option". MultiRC asks of each (paragraph, question, answer), all under "idx/".
    """
    if not is_target:
        return score
    given = _given(example)
    if "idx" in given:
        question, candidate = (int(part) for part in given["idx"])
    else:
        parts = ("paragraph", "question", "answer") if "idx/answer" in given else ("question",)
        question = tuple(int(given[f"idx/{part}"]) for part in parts)
        candidate = int(given["idx/option"])
    return (question, candidate), bool(given["is_correct"]), len(given["targets"])


def after_sentinels(
    text: str, *, count: int, postprocess: Callable[..., Any] | None = None, **arguments: Any
) -> Any:
    """Cut sentinels off the start of a decoded text, then do what the task does."""
    for number in range(count):
        text = text.strip().removeprefix(f"<extra_id_{number}>")
    return postprocess(text.strip(), **arguments) if postprocess else text.strip()


def _bare(text: str) -> str:
    return " ".join(word for word in text.strip().lower().split(" ") if word not in _DETERMINERS)


def _texts(example: Mapping[str, Any] | None, name: str) -> list[str]:
    return [_decode(text) for text in _given(example)[name]]


def _given(example: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if example is None:
        raise ValueError("the example is needed to postprocess this task")
    return example


def _decode(text: str | bytes) -> str:
    return text.decode() if isinstance(text, bytes) else text
