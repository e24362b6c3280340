"""The command `t5x_lite c4`."""

from t5x_lite.command import Command, Flag

COMMANDS = (
    Command(
        name="c4",
        group="prepare data",
        summary="Build C4 or one of its variants from Common Crawl's WET files.",
        function="t5x_lite.data.c4.build_c4.c4",
        default_gin="runs/c4.gin",
        flags=(
            Flag("wet", "WET", "Pattern of WET files.", kind="text", metavar="PATTERN"),
            Flag("out", "OUT", "Directory to write.", kind="text", metavar="DIR"),
            Flag(
                "bad_words",
                "BAD_WORDS",
                "File with one word per line: pages that contain one are removed. Required for all "
                "variants except en.noclean and en.noblocklist.",
                metavar="FILE",
            ),
            Flag(
                "variant",
                "VARIANT",
                "en, en.noclean, en.noblocklist, realnewslike or webtextlike.",
                kind="text",
                metavar="NAME",
            ),
            Flag(
                "processes",
                "c4.processes",
                "Number of processes on this machine; None is one per core.",
                metavar="N",
            ),
            Flag(
                "runner",
                "c4.runner",
                "local (this machine) or beam (Apache Beam, with c4.beam_options).",
                kind="text",
                metavar="NAME",
            ),
        ),
        examples=(
            "t5x_lite c4 --wet='crawl/*.warc.wet.gz' --out=c4/en --bad_words=bad_words.txt",
            "t5x_lite c4 --wet='crawl/*.warc.wet.gz' --out=c4/noclean --variant=en.noclean",
        ),
        docs=("README.md", "docs/launch/beam.md"),
    ),
)
