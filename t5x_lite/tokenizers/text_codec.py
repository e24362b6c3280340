"""What a directory says about texts: the vocabulary of its model, and how its texts begin and end.

A run directory has text.json, with a copy of the SentencePiece model or of a Hugging Face tokenizer
beside it; of a Hugging Face directory, config.json and the tokenizer's files tell.
"""

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from t5x_lite.decoding.generation import SpecialTokens
from t5x_lite.distributed import processes
from t5x_lite.io import atomic, files
from t5x_lite.io.safe_files import read_json_object
from t5x_lite.io.tensor_files import CONFIG
from t5x_lite.tokenizers.hf_tokenizer import HFTokenizer
from t5x_lite.tokenizers.tokenizer_files import read_tokenizer
from t5x_lite.tokenizers.vocabularies import BYTES, AnyVocabulary, ByteVocabulary, Vocabulary

SENTINEL = re.compile(r"\s*<extra_id_(\d+)>\s*")
Tokenizer = AnyVocabulary | HFTokenizer


class Encoded(NamedTuple):
    """A text as token ids, and whether its end was cut off."""

    ids: list[int]
    truncated: bool


class TextCodec:
    """Between texts and the ids of a model whose texts begin and end as `special` says.

    end_inputs: whether inputs get an EOS; None: for an encoder. What a Hugging Face tokenizer puts
    around a text by itself (BERT's [CLS] and [SEP], LLaMA's <s>) stays.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        special: SpecialTokens,
        *,
        decoder_only: bool,
        end_inputs: bool | None = None,
    ):
        self._tokenizer, self._special = tokenizer, special
        self._decoder_only, self._asked = decoder_only, end_inputs
        self.end_inputs = not decoder_only if end_inputs is None else end_inputs

    def encode(self, text: str, room: int) -> Encoded:
        """An input's ids, at most `room` of them, EOS included."""
        if isinstance(self._tokenizer, HFTokenizer):
            return self._encode_whole(self._tokenizer, text, room)
        ids, last, sentinels = [], 0, self._tokenizer.sentinels
        for found in SENTINEL.finditer(text):
            number = int(found[1])
            if number >= sentinels.count:
                break  # no such sentinel: text like any other
            ids += [*self._tokenizer.encode(text[last : found.start()]), sentinels.first - number]
            last = found.end()
        ids += self._tokenizer.encode(text[last:])
        room -= self.end_inputs
        return Encoded(ids[:room] + [self._special.end] * self.end_inputs, len(ids) > room)

    def encode_target(self, text: str) -> list[int]:
        """A target's ids, with the EOS of a text."""
        if isinstance(self._tokenizer, HFTokenizer) and not self._decoder_only:
            return self._tokenizer.encode_whole(text)
        return [*self._tokenizer.encode(text), self._special.end]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some ids up to their EOS."""
        ids = self.until_end(tokens)
        if isinstance(self._tokenizer, HFTokenizer):
            return self._tokenizer.decode(ids)  # in which 0 may be a token like others
        return self._tokenizer.decode([token for token in ids if token])

    def until_end(self, tokens: Iterable[int]) -> list[int]:
        """Ids up to their EOS."""
        ids = [int(token) for token in tokens]
        return ids[: ids.index(self._special.end)] if self._special.end in ids else ids

    def _encode_whole(self, tokenizer: HFTokenizer, text: str, room: int) -> Encoded:
        end = [self._special.end]
        whole = tokenizer.encode_whole(text)
        if self._asked is False and whole[-1:] == end:
            whole = whole[:-1]
        more = end if self._asked and whole[-1:] != end else []
        if len(whole) + len(more) <= room:
            return Encoded(whole + more, False)
        cut = tokenizer.encode_whole(text, room - len(more))
        return Encoded(cut + more, True)


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
        atomic.write_bytes(directory / PIECES, files.read_bytes(vocabulary.path))
    if isinstance(vocabulary, HFTokenizer):
        _copy_tokenizer(vocabulary, directory / TOKENIZER)
    atomic.write_json(directory / TEXT, about)


def read_text_record(directory: epath.PathLike) -> TextRecord:
    """What a run directory or a Hugging Face directory says, which may be nothing."""
    directory = epath.Path(directory)
    if (directory / TEXT).exists():
        about = read_json_object(directory / TEXT, "MODEL_DIR")
        vocabulary = None
        if about.get("vocabulary") == BYTES:
            vocabulary = ByteVocabulary(about["extra_ids"])
        elif about.get("vocabulary") == TOKENIZER:
            vocabulary = HFTokenizer(Path(directory / TOKENIZER))
        elif "vocabulary" in about:
            vocabulary = Vocabulary(str(directory / about["vocabulary"]), about["extra_ids"])
        return TextRecord(vocabulary, SpecialTokens(about["start"], about["end"]))
    if (directory / CONFIG).exists():
        return _foreign(directory, read_json_object(directory / CONFIG, "MODEL_DIR"))
    return TextRecord(None, SpecialTokens())


def _name(vocabulary: Tokenizer) -> str:
    if isinstance(vocabulary, HFTokenizer):
        return TOKENIZER
    return PIECES if isinstance(vocabulary, Vocabulary) else BYTES


def _copy_tokenizer(tokenizer: HFTokenizer, directory: epath.Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as written:
        tokenizer.save(written)
        for path in Path(written).iterdir():
            atomic.write_bytes(directory / path.name, path.read_bytes())


def _foreign(directory: epath.Path, fields: dict[str, Any]) -> TextRecord:
    end = fields.get("eos_token_id")
    end = end[0] if isinstance(end, list) else end
    decoder_only = not fields.get("is_encoder_decoder", "decoder_start_token_id" in fields)
    start = None if decoder_only else fields.get("decoder_start_token_id", 0)
    special = SpecialTokens(start, 1 if end is None else end)
    return TextRecord(read_tokenizer(Path(directory)), special)
