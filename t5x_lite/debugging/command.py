"""The commands `t5x_lite compare` and `t5x_lite replay`."""

from t5x_lite.command import Argument, Command, Flag

COMMANDS = (
    Command(
        name="compare",
        group="look inside a run",
        summary="Name the first step at which two runs diverge.",
        function="t5x_lite.debugging.compare.compare",
        default_gin="runs/compare.gin",
        arguments=(
            Argument("RUN_A", "RUN_A", "Directory of a run."),
            Argument("RUN_B", "RUN_B", "Directory of the run to compare with."),
        ),
        examples=(
            "t5x_lite compare runs/one runs/other",
            "t5x_lite compare runs/tiny /mnt/bucket/runs/tiny",
        ),
        docs=("docs/durability.md",),
    ),
    Command(
        name="replay",
        group="look inside a run",
        summary="Compute one step of a run again and name the first module whose numbers are bad.",
        function="t5x_lite.debugging.replay.replay",
        default_gin="runs/replay.gin",
        builds_on="train",
        flags=(
            Flag("step", "replay.step", "Step to compute again, from 1.", metavar="N"),
            Flag(
                "largest",
                "replay.largest",
                "Magnitudes above this count as out of range.",
                metavar="X",
            ),
            Flag("model_dir", "MODEL_DIR", "Directory of the run.", kind="text", metavar="DIR"),
        ),
        examples=(
            "t5x_lite replay --step=12 --gin_file=recipes/tiny_embedded.gin --model_dir=runs/tiny",
            "t5x_lite replay --step=12 --gin_file=recipes/tiny_embedded.gin --model_dir=runs/tiny "
            "--largest=1000",
        ),
        docs=("docs/durability.md",),
        multi_process=True,
    ),
)
