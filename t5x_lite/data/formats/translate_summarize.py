"""Format translation and summarization: the text itself after a prefix that names the task."""

from collections.abc import Mapping
from typing import Any

from t5x_lite.data.code_identity import versioned

Example = Mapping[str, Any]

LANGUAGES = {"en": "English", "de": "German", "fr": "French", "ro": "Romanian"}


@versioned("translate_summarize.translation", 1)
def translation(example: Example, *, source: str, target: str) -> list[dict[str, Any]]:
    """Ask for a translation.

        inputs     translate English to German: That is good.
        targets    Das ist gut.

    Args:
        example: Sentences by language code.
        source: The code of the language to translate from: en, de, fr or ro.
        target: The code of the language to translate to.
    """
    task = f"translate {LANGUAGES[source]} to {LANGUAGES[target]}:"
    return [{"inputs": f"{task} {example[source]}", "targets": example[target]}]


@versioned("translate_summarize.summary", 1)
def summary(example: Example) -> list[dict[str, Any]]:
    """Ask for the highlights of a news article: sentences, each on its own line.

    Args:
        example: An example of CNN/DailyMail.
    """
    inputs = f"summarize: {example['article']}"
    return [{"inputs": inputs, "targets": example["highlights"]}]


@versioned("translate_summarize.pair", 1)
def pair(example: Example, *, inputs: str, targets: str) -> list[dict[str, Any]]:
    """Take the inputs and the targets unchanged from two fields.

    Args:
        example: An example of the data set.
        inputs: The field of the inputs.
        targets: The field of the targets.
    """
    return [{"inputs": example[inputs], "targets": example[targets]}]
