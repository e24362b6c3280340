"""Longer texts to write: translations and summaries. Nothing is done to the text but a prefix."""

from collections.abc import Mapping
from typing import Any

from t5x_lite.data.code_identity import versioned

Example = Mapping[str, Any]

LANGUAGES = {"en": "English", "de": "German", "fr": "French", "ro": "Romanian"}


@versioned("translate_summarize.translation", 1)
def translation(example: Example, *, source: str, target: str) -> list[dict[str, Any]]:
    """Ask for a translation: "translate English to German: That is good." -> "Das ist gut."."""
    task = f"translate {LANGUAGES[source]} to {LANGUAGES[target]}:"
    return [{"inputs": f"{task} {example[source]}", "targets": example[target]}]


@versioned("translate_summarize.summary", 1)
def summary(example: Example) -> list[dict[str, Any]]:
    """Ask for a news article's highlights, which are sentences on lines of their own."""
    inputs = f"summarize: {example['article']}"
    return [{"inputs": inputs, "targets": example["highlights"]}]


@versioned("translate_summarize.pair", 1)
def pair(example: Example, *, inputs: str, targets: str) -> list[dict[str, Any]]:
    """Take inputs and targets as they stand in two fields."""
    return [{"inputs": example[inputs], "targets": example[targets]}]
