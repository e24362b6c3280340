"""Sample lines of a corpus of any size, in one pass and limited memory (for `vocab`)."""

import random
from collections.abc import Iterable, Iterator, Mapping

from t5x_lite.data.sources.jsonl_and_tsv import STRICT, LineStats, MalformedLines, read_records
from t5x_lite.errors import ConfigError
from t5x_lite.io import files

_MAX_BYTES = 4000  # of a line: SentencePiece skips lines of more than 4,192


def sample_lines(
    weights: Mapping[str, float],
    *,
    max_lines: int,
    seed: int = 0,
    text_field: str = "text",
    bad_lines: MalformedLines = STRICT,
    line_stats: LineStats | None = None,
) -> list[str]:
    """Return a random sample of the lines of text files, in a random order.

    All files are read once. The same files and seed give the same lines.

    Args:
        weights: The weight of each pattern of files in the sample: {"en/*": 10, "de/*": 1} gives
            ten lines of English to one of German.
        max_lines: How many lines to sample, or all if there are fewer.
        seed: Seed of the sample.
        text_field: The field of JSON lines that contains the text.
        bad_lines: The tolerance for malformed lines.
        line_stats: Counts lines and malformed lines.

    Raises:
        ConfigError: If no file matches a pattern, or a number is out of range.
    """
    if max_lines < 1 or not weights or min(weights.values()) <= 0:
        raise ConfigError(
            f"max_lines takes 1 or more, weights are positive; got {max_lines} and {dict(weights)}",
            "vocab.max_lines",
            "vocab.corpus",
        )
    chosen: list[str] = []
    for pattern, weight in weights.items():
        paths = files.matching(pattern)
        if not paths:
            raise ConfigError(f"no file matches {pattern}", "vocab.corpus")
        count = max(round(max_lines * weight / sum(weights.values())), 1)
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
    """Return a uniform random sample of `count` items, in one pass.

    Args:
        items: Any number of items.
        count: The size of the sample, or all items if there are fewer.
        seed: Seed of the sample.

    Source: Vitter 1985, "Random Sampling with a Reservoir", algorithm R.
    """
    generator = random.Random(seed)
    kept: list[str] = []
    for number, item in enumerate(items):
        if number < count:
            kept.append(item)
        elif (slot := generator.randrange(number + 1)) < count:
            kept[slot] = item
    return kept


def split_lines(text: str) -> Iterator[str]:
    """Yield the non-empty lines of a text; lines above 4,000 bytes are split between words."""
    for line in text.splitlines():
        line = line.strip()
        while len(line.encode()) > _MAX_BYTES:
            piece = line.encode()[:_MAX_BYTES].decode(errors="ignore")
            cut = piece.rfind(" ") if " " in piece else len(piece)
            yield line[:cut]
            line = line[cut:].lstrip()
        if line:
            yield line
