"""The commands `t5x_lite report` and `t5x_lite inspect`."""

from t5x_lite.command import Argument, Command, Flag

COMMANDS = (
    Command(
        name="report",
        group="evaluate",
        summary="Write a page with tables and curves of one run, several runs or a study.",
        function="t5x_lite.reporting.report.report",
        default_gin="runs/report.gin",
        arguments=(
            Argument(
                "RUN",
                "RUNS",
                "Directories of runs, finished or not, or results of `t5x_lite explore`.",
                many=True,
            ),
        ),
        flags=(
            Flag("output", "report.output", "Directory for the page.", kind="text", metavar="DIR"),
        ),
        examples=(
            "t5x_lite report runs/tiny",
            "t5x_lite report runs/tiny runs/other --output=comparison",
        ),
        docs=("README.md", "docs/explore.md"),
    ),
    Command(
        name="inspect",
        group="prepare data",
        summary="Show examples as a model reads them, mixing rates, padding and learning rates.",
        function="t5x_lite.reporting.inspect_data.inspect",
        default_gin="runs/inspect.gin",
        flags=(
            Flag("examples", "inspect.examples", "Examples to show of each task.", metavar="N"),
            Flag(
                "output",
                "inspect.output",
                "Directory for the picture of the schedule.",
                kind="text",
                metavar="DIR",
            ),
        ),
        examples=(
            "t5x_lite inspect --gin_file=recipes/tiny_embedded.gin --examples=1",
            "t5x_lite inspect --gin_file=optimizers/adafactor.gin --gin.TRAIN_STEPS=1000000",
        ),
        docs=("README.md", "docs/data.md"),
    ),
)
