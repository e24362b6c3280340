"""What a directory says about texts: the vocabulary of its model, and how its texts begin and end.

A run directory has text.json, with a copy of the SentencePiece model or of a Hugging Face tokenizer
beside it; of a Hugging Face directory, config.json and the tokenizer's files tell.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from t5x_lite import processes
from t5x_lite.convert.foreign_tokenizer import ForeignTokenizer
from t5x_lite.convert.tensor_files import CONFIG
from t5x_lite.convert.tokenizer_files import read_tokenizer
from t5x_lite.data import files
from t5x_lite.data.vocabularies import BYTES, ByteVocabulary, Vocabulary
from t5x_lite.decoding.generation import SpecialTokens
from t5x_lite.errors import ConfigError
from t5x_lite.run.texts import Tokenizer

TEXT = "text.json"
PIECES = "vocabulary.model"  # a run's copy
TOKENIZER = "tokenizer"  # the folder of another's


class TextRecord(NamedTuple):
    """The vocabulary, if it is known, and the special tokens."""

    vocabulary: Tokenizer | None
    special: SpecialTokens


def write_text_record(model_dir: epath.PathLike, record: TextRecord) -> None:
    """Write text.json and the copy of the vocabulary; only the first process does."""
    if not processes.is_first():
        return
    directory, vocabulary = epath.Path(model_dir), record.vocabulary
    about: dict[str, Any] = {"start": record.special.start, "end": record.special.end}
    if vocabulary is not None:
        about["extra_ids"] = vocabulary.extra_ids
        about["vocabulary"] = _name(vocabulary)
        about["fingerprint"] = vocabulary.fingerprint
    if isinstance(vocabulary, Vocabulary):
        (directory / PIECES).write_bytes(files.read_bytes(vocabulary.path))
    if isinstance(vocabulary, ForeignTokenizer):
        _copy_tokenizer(vocabulary, directory / TOKENIZER)
    (directory / TEXT).write_text(json.dumps(about, indent=2) + "\n")


def read_text_record(directory: epath.PathLike) -> TextRecord:
    """What a run directory or a Hugging Face directory says, which may be nothing."""
    directory = epath.Path(directory)
    if (directory / TEXT).exists():
        about = _json(directory / TEXT)
        vocabulary = None
        if about.get("vocabulary") == BYTES:
            vocabulary = ByteVocabulary(about["extra_ids"])
        elif about.get("vocabulary") == TOKENIZER:
            vocabulary = ForeignTokenizer(Path(directory / TOKENIZER))
        elif "vocabulary" in about:
            vocabulary = Vocabulary(str(directory / about["vocabulary"]), about["extra_ids"])
        return TextRecord(vocabulary, SpecialTokens(about["start"], about["end"]))
    if (directory / CONFIG).exists():
        return _foreign(directory, _json(directory / CONFIG))
    return TextRecord(None, SpecialTokens())


def _name(vocabulary: Tokenizer) -> str:
    if isinstance(vocabulary, ForeignTokenizer):
        return TOKENIZER
    return PIECES if isinstance(vocabulary, Vocabulary) else BYTES


def _copy_tokenizer(tokenizer: ForeignTokenizer, directory: epath.Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as written:
        tokenizer.save(written)
        for path in Path(written).iterdir():
            (directory / path.name).write_bytes(path.read_bytes())


def _foreign(directory: epath.Path, fields: dict[str, Any]) -> TextRecord:
    end = fields.get("eos_token_id")
    end = end[0] if isinstance(end, list) else end
    decoder_only = not fields.get("is_encoder_decoder", "decoder_start_token_id" in fields)
    start = None if decoder_only else fields.get("decoder_start_token_id", 0)
    special = SpecialTokens(start, 1 if end is None else end)
    return TextRecord(read_tokenizer(Path(directory)), special)


def _json(path: epath.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not readable as JSON: {error}", "MODEL_DIR") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no JSON object", "MODEL_DIR")
    return found
