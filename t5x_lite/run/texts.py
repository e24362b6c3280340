"""Texts as a model reads and writes them: T5's way, or that of a Hugging Face tokenizer."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from t5x_lite.convert.foreign_tokenizer import ForeignTokenizer
from t5x_lite.data.vocabularies import AnyVocabulary
from t5x_lite.decoding.generation import SpecialTokens

SENTINEL = re.compile(r"\s*<extra_id_(\d+)>\s*")
Tokenizer = AnyVocabulary | ForeignTokenizer


class Encoded(NamedTuple):
    """A text as token ids, and whether its end was cut off."""

    ids: list[int]
    truncated: bool


class Texts:
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
        if isinstance(self._tokenizer, ForeignTokenizer):
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
        if isinstance(self._tokenizer, ForeignTokenizer) and not self._decoder_only:
            return self._tokenizer.encode_whole(text)
        return [*self._tokenizer.encode(text), self._special.end]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some ids up to their EOS."""
        ids = self.until_end(tokens)
        if isinstance(self._tokenizer, ForeignTokenizer):
            return self._tokenizer.decode(ids)  # in which 0 may be a token like others
        return self._tokenizer.decode([token for token in ids if token])

    def until_end(self, tokens: Iterable[int]) -> list[int]:
        """Ids up to their EOS."""
        ids = [int(token) for token in tokens]
        return ids[: ids.index(self._special.end)] if self._special.end in ids else ids

    def _encode_whole(self, tokenizer: ForeignTokenizer, text: str, room: int) -> Encoded:
        end = [self._special.end]
        whole = tokenizer.encode_whole(text)
        if self._asked is False and whole[-1:] == end:
            whole = whole[:-1]
        more = end if self._asked and whole[-1:] != end else []
        if len(whole) + len(more) <= room:
            return Encoded(whole + more, False)
        cut = tokenizer.encode_whole(text, room - len(more))
        return Encoded(cut + more, True)
