"""SentencePiece vocabularies in T5's layout: pad 0, eos 1, unk 2, sentinels at the top.

    id        0    1    2     3 ... 7,999     8,000 ... 8,099                   8,100 ... 8,191
    piece     pad  eos  unk   the model's     <extra_id_99> ... <extra_id_0>    rows without a piece

Ids and texts are those of `seqio.SentencePieceVocabulary`, without TensorFlow.
"""

import functools
import hashlib
import io
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from t5x_lite.errors import ConfigError
from t5x_lite.objectives.spans import Sentinels

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
_ROWS_MULTIPLE = 128  # of embedding rows, so that they divide among devices and fill TPU lanes
_ModelProto = getattr(sentencepiece_model_pb2, "ModelProto")  # noqa: B009  # made at run time
_TRAINING_THREADS = 2  # sums are added in the order of the threads: part of what fixes the bytes


@dataclass(frozen=True)
class Vocabulary:
    """A SentencePiece model file and how many sentinels are added above its own pieces.

    A model that has the sentinels among its pieces (T5's "cc_all.32000.100extra") is used with
    `extra_ids` 0. Raises ConfigError where the file is missing or has another layout.
    """

    path: str
    extra_ids: int = 100

    @property
    def size(self) -> int:
        """How many ids have a meaning: pieces and extra ids."""
        return self._processor.get_piece_size()

    @property
    def padded_size(self) -> int:
        """How many embedding rows to use: the size, rounded up to a multiple of 128."""
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

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids up to the first EOS; ids without a piece are unknown."""
        ids = [int(token) if token < self.size else UNK_ID for token in ids]
        return self._processor.decode(ids[: ids.index(EOS_ID)] if EOS_ID in ids else ids)

    def _piece(self, token: int) -> str:
        return self._processor.id_to_piece(token).removeprefix("▁")

    def _content(self) -> bytes:
        try:
            return Path(self.path).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"the vocabulary {self.path!r} cannot be read: {error.strerror}", "Vocabulary.path"
            ) from None

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        try:
            model = _ModelProto.FromString(self._content())
        except DecodeError:
            raise ConfigError(
                f"the vocabulary {self.path!r} is no SentencePiece model", "Vocabulary.path"
            ) from None
        for extra_id in reversed(range(self.extra_ids)):
            piece = model.pieces.add(piece=f"▁<extra_id_{extra_id}>", score=0.0)
            piece.type = piece.USER_DEFINED
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        layout = processor.pad_id(), processor.eos_id(), processor.unk_id()
        if layout != (PAD_ID, EOS_ID, UNK_ID):
            raise ConfigError(
                f"the vocabulary {self.path!r} has pad, eos and unk at {layout}: T5's layout is "
                f"{(PAD_ID, EOS_ID, UNK_ID)}",
                "Vocabulary.path",
            )
        return processor


def train_vocabulary(
    texts: Iterable[str],
    path: str | os.PathLike,
    *,
    vocab_size: int = 8000,
    max_lines: int = 100_000,
    character_coverage: float = 0.9995,
) -> None:
    """Train a unigram model on the first lines of some texts and write it to a file.

    The same texts give the same bytes. The file appears only when it is complete. Raises
    ConfigError where the texts are too few for the size.
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
        ) from None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        file.write(model.getvalue())
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
