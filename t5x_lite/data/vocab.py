"""`t5x_lite vocab`: train a SentencePiece vocabulary on a corpus."""

import logging
import os
from collections.abc import Callable, Mapping

from t5x_lite.console import count, logged_wait
from t5x_lite.data.sources.jsonl_and_tsv import STRICT, LineStats, MalformedLines
from t5x_lite.data.sources.reservoir_sample import sample_lines
from t5x_lite.errors import ConfigError
from t5x_lite.tokenizers.vocabularies import Vocabulary, train_vocabulary

_LOG = logging.getLogger(__name__)


def vocab(
    *,
    corpus: str | Mapping[str, float],
    output: str,
    vocab_size: int = 32_000,
    extra_ids: int = 0,
    max_lines: int = 1_000_000,
    character_coverage: float = 0.9995,
    text_field: str = "text",
    bad_lines: MalformedLines = STRICT,
    seed: int = 0,
    describe_config: Callable[[], str] = str,
) -> None:
    """Train a unigram vocabulary in T5's layout on a sample of lines and write it to a file.

    The same files, versions and settings give the same bytes.

    Args:
        corpus: A pattern of files, or patterns with their weights in the sample:
            {"en/*": 10, "de/*": 1} samples ten lines of English to one of German.
        output: The file to write, which must not exist.
        vocab_size: Number of pieces, without the sentinels.
        extra_ids: Number of sentinels to store in the file; 0 leaves them to
            the macro EXTRA_IDS, as T5's own vocabulary does.
        max_lines: Number of lines to sample; the memory needed grows with it.
        character_coverage: Fraction of the corpus's characters that get a piece of their own.
        text_field: Field of JSON lines that contains the text.
        bad_lines: Tolerance for malformed lines.
        seed: Seed of the sample.
        describe_config: Not used.

    Raises:
        ConfigError: The output exists, no file matches, or there is too little text.
    """
    if isinstance(corpus, str):
        corpus = {corpus: 1.0}
    if os.path.exists(output):
        raise ConfigError(
            f"{output} exists already: give another name", "VOCABULARY", "vocab.output"
        )
    line_stats = LineStats()
    with logged_wait(_LOG, "reading the corpus"):
        lines = sample_lines(
            corpus,
            max_lines=max_lines,
            seed=seed,
            text_field=text_field,
            bad_lines=bad_lines,
            line_stats=line_stats,
        )
    if line_stats.bad:
        _LOG.warning(line_stats.describe())
    what = f"training a vocabulary of {vocab_size:,} pieces on {count(len(lines), 'line')}"
    with logged_wait(_LOG, what):
        train_vocabulary(
            lines,
            output,
            vocab_size=vocab_size,
            max_lines=len(lines),
            character_coverage=character_coverage,
            extra_ids=extra_ids,
        )
    made = Vocabulary(output, 0 if extra_ids else 100)
    sample = lines[:1000]
    pieces = sum(len(made.encode(line)) for line in sample)
    words = sum(len(line.split()) for line in sample)
    _LOG.info(
        f"wrote {output}: {made.size:,} ids including {count(made.sentinels.count, 'sentinel')}, "
        f"{count(made.padded_size, 'embedding row')}; {pieces / max(words, 1):.2f} pieces per "
        f"word; use it with VOCABULARY = {output!r} and EXTRA_IDS = {made.extra_ids}"
    )
