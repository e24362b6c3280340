"""A sample of a corpus that fits into memory, however large the corpus is."""

import random
from collections.abc import Iterable, Iterator, Mapping

from t5x_lite.data.sources.jsonl_and_tsv import STRICT, LineStats, MalformedLines, read_records
from t5x_lite.errors import ConfigError
from t5x_lite.io import files

_MAX_BYTES = 4000  # of a line: SentencePiece passes over lines of more than 4,192


def sample_lines(
    shares: Mapping[str, float],
    *,
    max_lines: int,
    seed: int = 0,
    text_field: str = "text",
    bad_lines: MalformedLines = STRICT,
    line_stats: LineStats | None = None,
) -> list[str]:
    """Return `max_lines` lines of text, or all where there are fewer, in a random order.

    shares: for each pattern of files, its part of the lines: {"en/*": 10, "de/*": 1} gives ten of
    English to one of German. All files are read once; the same files and seed give the same lines.
    Raises ConfigError where no file matches a pattern.
    """
    if max_lines < 1 or not shares or min(shares.values()) <= 0:
        raise ConfigError(
            f"max_lines takes 1 or more, shares are positive; got {max_lines} and {dict(shares)}",
            "vocab.max_lines",
            "vocab.corpus",
        )
    chosen: list[str] = []
    for pattern, share in shares.items():
        paths = files.matching(pattern)
        if not paths:
            raise ConfigError(f"no file matches {pattern}", "vocab.corpus")
        count = max(round(max_lines * share / sum(shares.values())), 1)
        lines = (
            line
            for path in paths
            for record in read_records(path, (text_field,), bad_lines, line_stats)
            for line in split_lines(record[text_field])
        )
        chosen += reservoir(lines, count, seed=seed)
    random.Random(seed).shuffle(chosen)
    return chosen


def reservoir(items: Iterable[str], count: int, *, seed: int) -> list[str]:
    """Return `count` items, each set of so many as likely as any other, in one pass.

    Source: Vitter 1985, algorithm R.
    """
    generator = random.Random(seed)
    kept: list[str] = []
    for number, item in enumerate(items):
        if number < count:
            kept.append(item)
        elif (place := generator.randrange(number + 1)) < count:
            kept[place] = item
    return kept


def split_lines(text: str) -> Iterator[str]:
    """Yield the lines of a text that are not empty, long ones in pieces cut between words."""
    for line in text.splitlines():
        line = line.strip()
        while len(line.encode()) > _MAX_BYTES:
            piece = line.encode()[:_MAX_BYTES].decode(errors="ignore")
            cut = piece.rfind(" ") if " " in piece else len(piece)
            yield line[:cut]
            line = line[cut:].lstrip()
        if line:
            yield line
