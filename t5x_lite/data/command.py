"""The commands `t5x_lite vocab` and `t5x_lite cache`."""

from t5x_lite.command import Command, Flag

COMMANDS = (
    Command(
        name="vocab",
        group="prepare data",
        summary="Train a SentencePiece vocabulary on text files.",
        function="t5x_lite.data.vocab.vocab",
        default_gin="runs/vocab.gin",
        flags=(
            Flag(
                "corpus",
                "CORPUS",
                "Pattern of text files (JSON lines or plain text, gzipped or not), or patterns "
                "with their weights: \"{'en/*.gz': 10, 'de/*.gz': 1}\".",
                metavar="PATTERN",
            ),
            Flag("output", "VOCABULARY", "File to write.", kind="text", metavar="FILE"),
            Flag(
                "vocab_size",
                "vocab.vocab_size",
                "Number of pieces, without the sentinels.",
                metavar="N",
            ),
            Flag(
                "extra_ids",
                "vocab.extra_ids",
                "Number of sentinels to store in the file; 0 leaves them to the macro EXTRA_IDS.",
                metavar="N",
            ),
            Flag(
                "max_lines",
                "vocab.max_lines",
                "Number of lines to sample from the corpus; the memory needed grows with it.",
                metavar="N",
            ),
            Flag(
                "character_coverage",
                "vocab.character_coverage",
                "Fraction of the corpus's characters that get a piece of their own.",
                metavar="X",
            ),
            Flag(
                "text_field",
                "vocab.text_field",
                "Field of JSON lines that contains the text.",
                kind="text",
                metavar="NAME",
            ),
            Flag("seed", "vocab.seed", "Seed of the sample.", metavar="N"),
        ),
        examples=(
            "t5x_lite vocab --corpus='text/*.jsonl' --output=my.model --vocab_size=8000",
            "t5x_lite vocab --corpus=\"{'en/*.json.gz': 10, 'de/*.json.gz': 1}\" --output=my.model",
        ),
        docs=("README.md",),
    ),
    Command(
        name="cache",
        group="prepare data",
        summary="Tokenize a task or mixture before training, resumably and in parallel.",
        function="t5x_lite.data.cache.cache",
        default_gin="runs/cache.gin",
        flags=(
            Flag(
                "processes",
                "cache.processes",
                "Number of processes on this machine; None is one per core.",
                metavar="N",
            ),
        ),
        examples=(
            "t5x_lite cache --gin_file=recipes/tiny_embedded.gin",
            "t5x_lite cache --gin_file=objectives/span_corruption.gin "
            "--gin_file=tasks/c4_json_lines.gin --gin.C4_DIR=c4/en --processes=8",
        ),
        docs=("README.md", "docs/data.md", "docs/launch/beam.md"),
    ),
)
