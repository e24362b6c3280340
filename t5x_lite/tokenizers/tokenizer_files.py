"""Read and write the tokenizer files of Hugging Face model directories."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5x_lite.io import atomic
from t5x_lite.io.safe_files import read_json_object
from t5x_lite.tokenizers.hf_tokenizer import FILES, HFTokenizer
from t5x_lite.tokenizers.vocabularies import (
    AnyVocabulary,
    ByteVocabulary,
    Vocabulary,
    sentencepiece_bytes,
)

PIECES = "spiece.model"
SETTINGS = "tokenizer_config.json"
_T5_EXTRA_IDS = 100
_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def read_tokenizer(directory: str | Path) -> AnyVocabulary | HFTokenizer | None:
    """Return the tokenizer of a model directory, None if it has none.

    Tokenizers of T5 and ByT5 need sentencepiece only, all others the package transformers.

    Args:
        directory: The directory of a Hugging Face model.

    Raises:
        ConfigError: If a file is invalid, or transformers is needed and not installed.
    """
    directory = Path(directory)
    settings = read_json_object(directory / SETTINGS) if (directory / SETTINGS).exists() else {}
    if settings.get("tokenizer_class") == "ByT5Tokenizer":
        return ByteVocabulary()
    if _is_t5(directory, settings):
        path = directory / PIECES
        if Vocabulary(str(path), 0).sentinels.count:
            return Vocabulary(str(path), 0)
        return Vocabulary(str(path), settings.get("extra_ids", _T5_EXTRA_IDS))
    if any((directory / name).exists() for name in FILES):
        return HFTokenizer(directory)
    return None


def _is_t5(directory: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether there is a SentencePiece file of T5: other families have such files too."""
    kind = str(settings.get("tokenizer_class", "T5Tokenizer"))
    return (directory / PIECES).exists() and "T5" in kind


def write_tokenizer(directory: str | Path, vocabulary: AnyVocabulary | HFTokenizer) -> None:
    """Write the files that transformers loads a tokenizer from.

    transformers adds T5's sentinels itself, so the SentencePiece file is written without them.

    Args:
        directory: The model's directory.
        vocabulary: The tokenizer to write.
    """
    directory = Path(directory)
    if isinstance(vocabulary, HFTokenizer):
        vocabulary.save(directory)
        return
    settings: dict[str, Any] = {"model_max_length": 512, **_SPECIAL}
    if isinstance(vocabulary, ByteVocabulary):
        settings |= {"tokenizer_class": "ByT5Tokenizer", "extra_ids": vocabulary.extra_ids}
    else:
        count = vocabulary.sentinels.count
        atomic.write_bytes(directory / PIECES, sentencepiece_bytes(vocabulary, sentinels=False))
        sentinels = [f"<extra_id_{i}>" for i in range(count)]
        settings |= {
            "tokenizer_class": "T5Tokenizer",
            "extra_ids": count,
            "additional_special_tokens": sentinels,
        }
    atomic.write_json(directory / SETTINGS, settings)
