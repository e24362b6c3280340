"""The tokenizers of Hugging Face directories that are not T5's SentencePiece or bytes.

transformers reads them (extra [huggingface]): GPT-2's and BART's merges, BERT's word pieces,
LLaMA's SentencePiece, tokenizer.json of any kind. Nothing in a directory is run as code.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t5x_lite.errors import ConfigError
from t5x_lite.objectives.sentinels import Sentinels

# One of these makes a directory one with a tokenizer.
FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


class HFTokenizer:
    """Texts to ids and back as transformers does it, with the special tokens of the model's own."""

    extra_ids = 0  # its sentinels, if it has any, are among its pieces

    def __init__(self, directory: str | Path):
        self.path = str(directory)
        try:
            from transformers import AutoTokenizer  # pyright: ignore[reportMissingImports]  an extra
        except ImportError as error:
            raise ConfigError(
                f"the tokenizer of {directory} is none of T5's: transformers reads it; "
                f"pip install 't5x_lite[huggingface]', or give a vocabulary",
                "MODEL_DIR",
                "VOCABULARY",
            ) from error
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                self.path, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"transformers cannot read the tokenizer of {directory}: "
                f"{str(error).strip().splitlines()[0]}",
                "MODEL_DIR",
            ) from error

    @property
    def size(self) -> int:
        """How many ids have a meaning."""
        return len(self._tokenizer)

    @functools.cached_property
    def sentinels(self) -> Sentinels:
        """The ids of <extra_id_0>, <extra_id_1> ..., which descend; none for most models."""
        ids = self._tokenizer.get_vocab()
        first, count = ids.get("<extra_id_0>", self.size - 1), 0
        while ids.get(f"<extra_id_{count}>") == first - count:
            count += 1
        return Sentinels(first=first, count=count)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of tokenizer.json as transformers would write it."""
        return hashlib.sha256(self._tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def encode_whole(self, text: str, room: int | None = None) -> list[int]:
        """Return the ids of a text with the special tokens around it, at most `room` in all."""
        if room is None:
            return self._tokenizer.encode(text)
        return self._tokenizer.encode(text, truncation=True, max_length=room)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, special tokens left out; ids without a piece are nothing."""
        known = [int(token) for token in ids if token < self.size]
        return self._tokenizer.decode(
            known, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def write_json(self, path: str | Path) -> None:
        """Write tokenizer.json alone, which the library `tokenizers` reads."""
        self._tokenizer.backend_tokenizer.save(str(path))

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and what belongs to it."""
        self._tokenizer.save_pretrained(str(directory))
