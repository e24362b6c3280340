"""Convert between text and the token ids of a model, as its directory specifies.

A run directory has text.json, beside a copy of the SentencePiece model or Hugging Face tokenizer. A
Hugging Face directory has config.json and the files of its tokenizer.
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
    """A text as token ids.

    Attributes:
        ids: The token ids.
        truncated: Whether the end of the text was cut.
    """

    ids: list[int]
    truncated: bool


class TextCodec:
    """Converts between text and the token ids of a model.

        codec.encode("ban <extra_id_0> gum", 5)   ->   ids of "ban", sentinel 0, "gum", EOS

    The special tokens that a Hugging Face tokenizer puts around a text (BERT's [CLS] and [SEP],
    LLaMA's <s>) are kept.

    Args:
        tokenizer: The model's tokenizer.
        special: The ids that start and end a text.
        decoder_only: Whether the model has no encoder.
        end_inputs: Whether inputs end with EOS; None: if the model has an encoder.
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
        self._decoder_only, self._configured_end = decoder_only, end_inputs
        self.end_inputs = not decoder_only if end_inputs is None else end_inputs

    def encode(self, text: str, max_length: int) -> Encoded:
        """Return the ids of an input; "<extra_id_0>" and so on become sentinels.

        Args:
            text: The input.
            max_length: The number of ids at most, EOS included.
        """
        if isinstance(self._tokenizer, HFTokenizer):
            return self._encode_with_special_tokens(self._tokenizer, text, max_length)
        ids, last, sentinels = [], 0, self._tokenizer.sentinels
        for match in SENTINEL.finditer(text):
            number = int(match[1])
            if number >= sentinels.count:
                break  # the vocabulary has no such sentinel: this is ordinary text
            ids += [*self._tokenizer.encode(text[last : match.start()]), sentinels.first - number]
            last = match.end()
        ids += self._tokenizer.encode(text[last:])
        max_length -= self.end_inputs
        end = [self._special.end] * self.end_inputs
        return Encoded(ids[:max_length] + end, len(ids) > max_length)

    def encode_target(self, text: str) -> list[int]:
        """Return the ids of a target, with EOS."""
        if isinstance(self._tokenizer, HFTokenizer) and not self._decoder_only:
            return self._tokenizer.encode_with_special_tokens(text)
        return [*self._tokenizer.encode(text), self._special.end]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of ids up to EOS; padding is omitted."""
        ids = self.until_end(tokens)
        if isinstance(self._tokenizer, HFTokenizer):
            return self._tokenizer.decode(ids)  # 0 may be an ordinary token
        return self._tokenizer.decode([token for token in ids if token])

    def until_end(self, tokens: Iterable[int]) -> list[int]:
        """Return the ids before the first EOS."""
        ids = [int(token) for token in tokens]
        return ids[: ids.index(self._special.end)] if self._special.end in ids else ids

    def _encode_with_special_tokens(
        self, tokenizer: HFTokenizer, text: str, max_length: int
    ) -> Encoded:
        """Encode as the tokenizer does; add or remove its EOS only if `end_inputs` is set."""
        end = [self._special.end]
        ids = tokenizer.encode_with_special_tokens(text)
        if self._configured_end is False and ids[-1:] == end:
            ids = ids[:-1]
        added = end if self._configured_end and ids[-1:] != end else []
        if len(ids) + len(added) <= max_length:
            return Encoded(ids + added, False)
        # The tokenizer cuts the text, so that special tokens at the end are kept.
        truncated = tokenizer.encode_with_special_tokens(text, max_length - len(added))
        return Encoded(truncated + added, True)


TEXT = "text.json"
PIECES = "vocabulary.model"  # the copy of a SentencePiece model
TOKENIZER = "tokenizer"  # the folder with the copy of a Hugging Face tokenizer


class TokenizerInfo(NamedTuple):
    """What a directory says about text.

    Attributes:
        vocabulary: The tokenizer of the model; None if it is not known.
        special: The ids that start and end a text.
    """

    vocabulary: Tokenizer | None
    special: SpecialTokens


def write_text_record(model_dir: epath.PathLike, record: TokenizerInfo) -> None:
    """Write text.json and a copy of the vocabulary, from the first process only.

    Args:
        model_dir: The run directory.
        record: What to write.
    """
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


def read_tokenizer_info(directory: epath.PathLike) -> TokenizerInfo:
    """Read the tokenizer and the special tokens of a model's directory, ours or Hugging Face's.

    Args:
        directory: The model's directory. Without text.json and config.json it has no vocabulary and
            T5's special tokens.

    Raises:
        ConfigError: If a file is invalid.
    """
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
        return TokenizerInfo(vocabulary, SpecialTokens(about["start"], about["end"]))
    if (directory / CONFIG).exists():
        return _huggingface_record(directory, read_json_object(directory / CONFIG, "MODEL_DIR"))
    return TokenizerInfo(None, SpecialTokens())


def _name(vocabulary: Tokenizer) -> str:
    if isinstance(vocabulary, HFTokenizer):
        return TOKENIZER
    return PIECES if isinstance(vocabulary, Vocabulary) else BYTES


def _copy_tokenizer(tokenizer: HFTokenizer, directory: epath.Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as local:  # transformers writes to local paths only
        tokenizer.save(local)
        for path in Path(local).iterdir():
            atomic.write_bytes(directory / path.name, path.read_bytes())


def _huggingface_record(directory: epath.Path, fields: dict[str, Any]) -> TokenizerInfo:
    """Return the tokenizer and special tokens of a Hugging Face model with this config.json."""
    end = fields.get("eos_token_id")
    end = end[0] if isinstance(end, list) else end
    decoder_only = not fields.get("is_encoder_decoder", "decoder_start_token_id" in fields)
    start = None if decoder_only else fields.get("decoder_start_token_id", 0)
    special = SpecialTokens(start, 1 if end is None else end)
    return TokenizerInfo(read_tokenizer(Path(directory)), special)
