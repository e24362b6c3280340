"""Tokenize with the tokenizer of a Hugging Face model other than T5 and ByT5.

The package transformers reads it (extra [huggingface]): GPT-2's and BART's merges, BERT's word
pieces, LLaMA's SentencePiece, any tokenizer.json. Code in a model directory is never run.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t5x_lite.errors import ConfigError
from t5x_lite.objectives.sentinels import Sentinels

# A directory with one of these files has a tokenizer.
FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


class HFTokenizer:
    """A tokenizer of transformers, with the special tokens of its model.

    Args:
        directory: The model's directory.

    Raises:
        ConfigError: If transformers is not installed or cannot read the tokenizer.
    """

    extra_ids = 0  # sentinels, if there are any, are among the pieces

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
        """The number of ids, special tokens included."""
        return len(self._tokenizer)

    @functools.cached_property
    def sentinels(self) -> Sentinels:
        """The ids of <extra_id_0>, <extra_id_1> ..., which descend. Most models have none."""
        ids = self._tokenizer.get_vocab()
        first, count = ids.get("<extra_id_0>", self.size - 1), 0
        while ids.get(f"<extra_id_{count}>") == first - count:
            count += 1
        return Sentinels(first=first, count=count)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of tokenizer.json as transformers writes it."""
        return hashlib.sha256(self._tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def encode_with_special_tokens(self, text: str, max_length: int | None = None) -> list[int]:
        """Return the ids of a text with the special tokens around it.

        Args:
            text: The text.
            max_length: The text is cut so that there are at most this many ids in all.
        """
        if max_length is None:
            return self._tokenizer.encode(text)
        return self._tokenizer.encode(text, truncation=True, max_length=max_length)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens and ids beyond the vocabulary are omitted."""
        known = [int(token) for token in ids if token < self.size]
        return self._tokenizer.decode(
            known, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def write_json(self, path: str | Path) -> None:
        """Write only tokenizer.json, which the package tokenizers reads."""
        self._tokenizer.backend_tokenizer.save(str(path))

    def save(self, directory: str | Path) -> None:
        """Write all files of the tokenizer to a directory."""
        self._tokenizer.save_pretrained(str(directory))
