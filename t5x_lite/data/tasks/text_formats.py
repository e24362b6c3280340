"""Run the functions of `data/formats` as seqio preprocessors, on tf.data datasets."""

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
    """Turn each example of a dataset into the text examples that a Python function returns for it.

    The function is called through `tf.numpy_function` for a few hundred examples at a time, because
    a call from TensorFlow costs more than an example.

    Args:
        dataset: Examples as dictionaries, possibly nested.
        make: The function. It gets the `fields` as Python text, numbers and lists, and returns
            mappings with "inputs", "targets" and the `extras`.
        fields: The fields to read; "a/b" is field "b" of field "a".
        extras: Further fields that `make` returns, and what they are: "text", "texts" or "number".

    Returns:
        A dataset of dictionaries with "inputs", "targets" and the extras.

    Raises:
        ConfigError: If the dataset lacks a field.
    """
    import tensorflow as tf

    fields = tuple(fields)
    kinds: dict[str, Kind] = {**_FEATURES, **(extras or {})}
    _check(dataset.element_spec, fields)

    def run(*columns: Any) -> list[Any]:
        results = [result for example in _rows(columns, layout) for result in make(example)]
        return [part for name, kind in kinds.items() for part in _column(results, name, kind)]

    # Each field, and whether it is ragged (two columns); known once `convert` is traced.
    layout: list[tuple[str, bool]] = []

    def convert(batch: Mapping[str, Any]) -> dict[str, Any]:
        layout[:] = [(field, isinstance(batch[field], tf.RaggedTensor)) for field in fields]
        columns = [part for field, ragged in layout for part in _parts(batch[field], ragged)]
        types = [type_ for kind in kinds.values() for type_ in _types(kind)]
        parts = iter(tf.numpy_function(run, columns, types))
        return {name: _rebuilt(parts, kind) for name, kind in kinds.items()}

    selected = dataset.map(lambda example: {field: _leaf(example, field) for field in fields})
    return selected.ragged_batch(_EXAMPLES_PER_READ).map(convert).unbatch()


def _leaf(example: Mapping[str, Any], field: str) -> Any:
    """Return a field of nested dictionaries, its path joined by "/"."""
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
    """Return the columns of a field: its values, and the lengths of its rows if it is ragged."""
    return [value.flat_values, value.row_lengths()] if ragged else [value]


def _rows(columns: Sequence[Any], layout: Sequence[tuple[str, bool]]) -> Iterator[dict[str, Any]]:
    """Yield the examples of a batch as Python values, from the columns of `_parts`."""
    parts, lists = iter(columns), []
    for _, ragged in layout:
        values = next(parts)
        rows = np.split(values, np.cumsum(next(parts))[:-1]) if ragged else values
        lists.append([_python(row) for row in rows])
    for row in zip(*lists, strict=True):
        yield {field: value for (field, _), value in zip(layout, row, strict=True)}


def _python(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray):
        return [_python(part) for part in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value


def _column(results: Sequence[Mapping[str, Any]], name: str, kind: Kind) -> list[Any]:
    """Return a field of all results as the arrays that `_types` announces."""
    values = [result[name] for result in results]
    if kind == "number":
        return [np.array(values, np.int64)]
    if kind == "text":
        return [_text(values)]
    lengths = np.array([len(texts) for texts in values], np.int64)
    return [_text([text for texts in values for text in texts]), lengths]


def _text(values: Sequence[str]) -> Any:
    return np.array([value.encode() for value in values], object)


def _types(kind: Kind) -> list[Any]:
    """Return the types of the arrays that represent a field; "texts" has values and lengths."""
    import tensorflow as tf

    return {"text": [tf.string], "number": [tf.int64], "texts": [tf.string, tf.int64]}[kind]


def _rebuilt(parts: Iterator[Any], kind: Kind) -> Any:
    """Return a field from its next arrays, with the shapes that `tf.numpy_function` loses."""
    import tensorflow as tf

    values = tf.ensure_shape(next(parts), [None])
    if kind != "texts":
        return values
    ragged: Any = tf.RaggedTensor
    return ragged.from_row_lengths(values, tf.ensure_shape(next(parts), [None]))
