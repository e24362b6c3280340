"""SentencePiece and byte vocabularies in T5's layout: pad 0, eos 1, unk 2, sentinels at the top.

    id        0    1    2     3 ... 7,999     8,000 ... 8,099                   8,100 ... 8,191
    piece     pad  eos  unk   the model's     <extra_id_99> ... <extra_id_0>    rows without a piece

Ids and text are those of `seqio.SentencePieceVocabulary`, without TensorFlow.
"""

import functools
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic, files
from t5x_lite.io.urls import is_url
from t5x_lite.objectives.sentinels import Sentinels

if TYPE_CHECKING:
    import seqio

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
BYTES = "bytes"  # instead of the path of a model file
_FIRST_BYTE_ID = 3
_BYTES_IN_NO_TEXT = 11  # 245 ... 255
_ROWS_MULTIPLE = 128  # of embedding rows: they then divide over devices and fill TPU lanes
_ModelProto = getattr(sentencepiece_model_pb2, "ModelProto")  # noqa: B009  # made at run time
_TRAINING_THREADS = 2  # the order of floating-point sums, and so the bytes, depend on it


@dataclass(frozen=True)
class Vocabulary:
    """A SentencePiece vocabulary with sentinels.

    Its properties and methods raise ConfigError if the file is missing or has another layout.

    Args:
        path: A SentencePiece model file, a path or a URL, with pad 0, eos 1 and unk 2.
        extra_ids: How many sentinels are added above its pieces. 100 is T5's number. Use 0 for a
            file that has the sentinels among its pieces, such as T5's "cc_all.32000.100extra".
    """

    path: str
    extra_ids: int = 100

    @property
    def size(self) -> int:
        """The number of ids: pieces and extra ids."""
        return self._processor.get_piece_size()

    @property
    def padded_size(self) -> int:
        """The number of embedding rows: the size, rounded up to a multiple of 128."""
        return -(-self.size // _ROWS_MULTIPLE) * _ROWS_MULTIPLE

    @functools.cached_property
    def sentinels(self) -> Sentinels:
        """The ids of <extra_id_0>, <extra_id_1> ..., which descend from the last."""
        count = 0
        while count < self.size and self._piece(self.size - 1 - count) == f"<extra_id_{count}>":
            count += 1
        return Sentinels(first=self.size - 1, count=count)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the model file."""
        return hashlib.sha256(self._content()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without EOS."""
        return self._processor.encode(text)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of several texts, without EOS, in one call and one thread."""
        return self._processor.encode(list(texts), num_threads=1)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids up to the first EOS; an id beyond the vocabulary is unknown."""
        ids = [int(token) if token < self.size else UNK_ID for token in ids]
        return self._processor.decode(ids[: ids.index(EOS_ID)] if EOS_ID in ids else ids)

    def _piece(self, token: int) -> str:
        return self._processor.id_to_piece(token).removeprefix("▁")

    def to_seqio(self) -> "seqio.SentencePieceVocabulary":
        """Return the vocabulary as seqio's class, which reads the file when it is used."""
        import seqio

        return seqio.SentencePieceVocabulary(self.path, self.extra_ids)

    def _content(self) -> bytes:
        try:
            return files.read_bytes(self.path)
        except Exception as error:
            if not isinstance(error, OSError) and not is_url(self.path):
                raise
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"the vocabulary {self.path!r} cannot be read: {reason}",
                "VOCABULARY",
                "Vocabulary.path",
            ) from None

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        try:
            model = _ModelProto.FromString(self._content())
        except DecodeError:
            raise ConfigError(
                f"the vocabulary {self.path!r} is not a SentencePiece model",
                "VOCABULARY",
                "Vocabulary.path",
            ) from None
        content = _with_extra_ids(model, self.extra_ids)
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        layout = processor.pad_id(), processor.eos_id(), processor.unk_id()
        if layout != (PAD_ID, EOS_ID, UNK_ID):
            raise ConfigError(
                f"the vocabulary {self.path!r} has pad, eos and unk at {layout}: T5's layout is "
                f"{(PAD_ID, EOS_ID, UNK_ID)}",
                "VOCABULARY",
                "Vocabulary.path",
            )
        return processor


@dataclass(frozen=True)
class ByteVocabulary:
    """A vocabulary of UTF-8 bytes with ids from 3, as in ByT5 (Xue et al. 2022).

    Args:
        extra_ids: How many sentinels are added. With 0, as in ByT5, the last 11 ids serve as
            sentinels: they are bytes that occur in no UTF-8 text.
    """

    extra_ids: int = 0

    @property
    def path(self) -> str:
        """The name "bytes" instead of a file."""
        return BYTES

    @property
    def size(self) -> int:
        """The number of ids: 3 special ones, 256 bytes, and the extra ids."""
        return _FIRST_BYTE_ID + 256 + self.extra_ids

    @property
    def padded_size(self) -> int:
        """The number of embedding rows: the size, rounded up to a multiple of 128."""
        return -(-self.size // _ROWS_MULTIPLE) * _ROWS_MULTIPLE

    @property
    def sentinels(self) -> Sentinels:
        """The extra ids, descending from the last; without any, the ids 258 ... 248."""
        return Sentinels(self.size - 1, self.extra_ids or _BYTES_IN_NO_TEXT)

    @property
    def fingerprint(self) -> str:
        """A hash that identifies the vocabulary, like that of a model file."""
        return hashlib.sha256(f"{BYTES}.{self.extra_ids}".encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without EOS."""
        return [byte + _FIRST_BYTE_ID for byte in text.encode()]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of several texts, without EOS."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids up to the first EOS; invalid UTF-8 is omitted."""
        ids = [int(token) for token in ids]
        ids = ids[: ids.index(EOS_ID)] if EOS_ID in ids else ids
        values = (token - _FIRST_BYTE_ID for token in ids)
        return bytes(value for value in values if 0 <= value < 256).decode(errors="ignore")

    def to_seqio(self) -> "seqio.ByteVocabulary":
        """Return the vocabulary as seqio's class."""
        import seqio

        return seqio.ByteVocabulary(extra_ids=self.extra_ids)


AnyVocabulary = Vocabulary | ByteVocabulary


def open_vocabulary(path: str, extra_ids: int) -> AnyVocabulary:
    """Return the vocabulary of a SentencePiece model, or of bytes.

    Args:
        path: The path or address of a SentencePiece model, or "bytes" for `ByteVocabulary`.
        extra_ids: How many sentinels to add above the model's pieces or above the bytes.
    """
    return ByteVocabulary(extra_ids) if path == BYTES else Vocabulary(path, extra_ids)


def sentencepiece_bytes(vocabulary: Vocabulary, *, sentinels: bool) -> bytes:
    """Return the content of a SentencePiece model file of a vocabulary.

    Args:
        vocabulary: The vocabulary.
        sentinels: Whether its sentinels are among the pieces of the file.
    """
    model = _ModelProto.FromString(files.read_bytes(vocabulary.path))
    if sentinels:
        return _with_extra_ids(model, vocabulary.extra_ids)
    stored = vocabulary.sentinels.count - vocabulary.extra_ids  # those already in the file
    del model.pieces[len(model.pieces) - stored :]
    return model.SerializeToString()


def _with_extra_ids(model: Any, extra_ids: int) -> bytes:
    """Return the content of a model file with sentinels after its pieces, <extra_id_0> last."""
    for extra_id in reversed(range(extra_ids)):
        piece = model.pieces.add(piece=f"▁<extra_id_{extra_id}>", score=0.0)
        piece.type = piece.USER_DEFINED
    return model.SerializeToString()


def train_vocabulary(
    texts: Iterable[str],
    path: str | os.PathLike,
    *,
    vocab_size: int = 8000,
    max_lines: int = 100_000,
    character_coverage: float = 0.9995,
    extra_ids: int = 0,
) -> None:
    """Train a unigram SentencePiece model and write it to a file.

    The same texts give the same bytes. The file appears when it is complete.

    Args:
        texts: The texts to train on.
        path: The file to write.
        vocab_size: The number of pieces, without the sentinels.
        max_lines: How many lines are used, from the first.
        character_coverage: The fraction of the characters that get a piece of their own.
        extra_ids: How many sentinels are stored above the pieces; the file is then used with
            `Vocabulary.extra_ids` 0.

    Raises:
        ConfigError: If there is too little text for the size.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts for line in text.splitlines() if line),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            normalization_rule_name="nmt_nfkc",
            byte_fallback=False,
            character_coverage=character_coverage,
            input_sentence_size=max_lines,
            shuffle_input_sentence=False,
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"no vocabulary of {vocab_size} pieces can be made of the corpus: {error}",
            "EmbeddedCorpus.vocab_size",
            "vocab.vocab_size",
        ) from None
    content = _with_extra_ids(_ModelProto.FromString(model.getvalue()), extra_ids)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, content)
