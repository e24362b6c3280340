"""The tokenizer of a Hugging Face directory: SentencePiece in T5's layout, or bytes."""

import json
from pathlib import Path
from typing import Any

from t5x_lite.convert.tensor_files import read_json
from t5x_lite.data.vocabularies import (
    AnyVocabulary,
    ByteVocabulary,
    Vocabulary,
    stored_pieces,
)

PIECES = "spiece.model"
SETTINGS = "tokenizer_config.json"
_T5_EXTRA_IDS = 100
_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def read_tokenizer(directory: str | Path) -> AnyVocabulary | None:
    """The vocabulary of a directory of T5's kind; None where there is another or none."""
    directory = Path(directory)
    settings = read_json(directory / SETTINGS) if (directory / SETTINGS).exists() else {}
    if settings.get("tokenizer_class") == "ByT5Tokenizer":
        return ByteVocabulary()
    path = directory / PIECES
    if not path.exists():
        return None
    if Vocabulary(str(path), 0).sentinels.count:
        return Vocabulary(str(path), 0)
    return Vocabulary(str(path), settings.get("extra_ids", _T5_EXTRA_IDS))


def write_tokenizer(directory: str | Path, vocabulary: AnyVocabulary) -> None:
    """Write what transformers' T5Tokenizer or ByT5Tokenizer is loaded from.

    transformers adds the sentinels itself, so a file that has them is written without.
    """
    directory = Path(directory)
    settings: dict[str, Any] = {"model_max_length": 512, **_SPECIAL}
    if isinstance(vocabulary, ByteVocabulary):
        settings |= {"tokenizer_class": "ByT5Tokenizer", "extra_ids": vocabulary.extra_ids}
    else:
        count = vocabulary.sentinels.count
        (directory / PIECES).write_bytes(stored_pieces(vocabulary, sentinels=False))
        sentinels = [f"<extra_id_{i}>" for i in range(count)]
        settings |= {
            "tokenizer_class": "T5Tokenizer",
            "extra_ids": count,
            "additional_special_tokens": sentinels,
        }
    (directory / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
