"""Text formats as seqio preprocessors: the one place where `data/formats` meets tf.data."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from t5x_lite.data.code_identity import versioned
from t5x_lite.errors import ConfigError

if TYPE_CHECKING:
    import tensorflow as tf

Example = Mapping[str, Any]
MakeExamples = Callable[[Example], Sequence[Mapping[str, Any]]]
Kind = Literal["text", "texts", "number"]
_EXAMPLES_PER_READ = 256
_FEATURES: Mapping[str, Kind] = {"inputs": "text", "targets": "text"}


@versioned("format_examples", 1)
def format_examples(
    dataset: "tf.data.Dataset",
    make: MakeExamples,
    fields: Iterable[str],
    extras: Mapping[str, Kind] | None = None,
) -> "tf.data.Dataset":
    """Turn each example of a data set into the text examples that `make` returns of it.

    `make` is given the `fields` only (those of nested features joined by "/"), as Python's text,
    numbers and lists; it returns "inputs", "targets" and the `extras`. Examples are handed over
    some hundred at a time. Raises ConfigError where the data set lacks a field.
    """
    import tensorflow as tf

    fields = tuple(fields)
    kinds: dict[str, Kind] = {**_FEATURES, **(extras or {})}
    _check(dataset.element_spec, fields)

    def run(*columns: Any) -> list[Any]:
        made = [result for example in _rows(columns, plan) for result in make(example)]
        return [part for name, kind in kinds.items() for part in _column(made, name, kind)]

    plan: list[tuple[str, bool]] = []

    def convert(batch: Mapping[str, Any]) -> dict[str, Any]:
        plan[:] = [(field, isinstance(batch[field], tf.RaggedTensor)) for field in fields]
        columns = [part for field, ragged in plan for part in _parts(batch[field], ragged)]
        types = [type_ for kind in kinds.values() for type_ in _types(kind)]
        parts = iter(tf.numpy_function(run, columns, types))
        return {name: _rebuilt(parts, kind) for name, kind in kinds.items()}

    selected = dataset.map(lambda example: {field: _leaf(example, field) for field in fields})
    return selected.ragged_batch(_EXAMPLES_PER_READ).map(convert).unbatch()


def _leaf(example: Mapping[str, Any], field: str) -> Any:
    value: Any = example
    for part in field.split("/"):
        value = value[part]
    return value


def _check(spec: Any, fields: Sequence[str]) -> None:
    for field in fields:
        try:
            _leaf(spec, field)
        except (KeyError, TypeError):
            raise ConfigError(
                f"the data set has no field {field!r}: it has {', '.join(sorted(spec))}",
                "MIXTURE_OR_TASK_NAME",
            ) from None


def _parts(value: Any, ragged: bool) -> list[Any]:
    return [value.flat_values, value.row_lengths()] if ragged else [value]


def _rows(columns: Sequence[Any], plan: Sequence[tuple[str, bool]]) -> Iterator[dict[str, Any]]:
    """Yield the examples of a batch as Python values, from each field's values (and lengths)."""
    parts, lists = iter(columns), []
    for _, ragged in plan:
        values = next(parts)
        rows = np.split(values, np.cumsum(next(parts))[:-1]) if ragged else values
        lists.append([_python(row) for row in rows])
    for row in zip(*lists, strict=True):
        yield {field: value for (field, _), value in zip(plan, row, strict=True)}


def _python(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray):
        return [_python(part) for part in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value


def _column(made: Sequence[Mapping[str, Any]], name: str, kind: Kind) -> list[Any]:
    values = [result[name] for result in made]
    if kind == "number":
        return [np.array(values, np.int64)]
    if kind == "text":
        return [_text(values)]
    lengths = np.array([len(texts) for texts in values], np.int64)
    return [_text([text for texts in values for text in texts]), lengths]


def _text(values: Sequence[str]) -> Any:
    return np.array([value.encode() for value in values], object)


def _types(kind: Kind) -> list[Any]:
    import tensorflow as tf

    return {"text": [tf.string], "number": [tf.int64], "texts": [tf.string, tf.int64]}[kind]


def _rebuilt(parts: Iterator[Any], kind: Kind) -> Any:
    import tensorflow as tf

    values = tf.ensure_shape(next(parts), [None])
    if kind != "texts":
        return values
    ragged: Any = tf.RaggedTensor
    return ragged.from_row_lengths(values, tf.ensure_shape(next(parts), [None]))
