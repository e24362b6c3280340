"""The command `t5x_lite explore`."""

from t5x_lite.command import Command, Flag

COMMANDS = (
    Command(
        name="explore",
        group="train",
        summary="Repeat a study: pretrain, fine-tune and compare the rows of a gin file.",
        function="t5x_lite.sweep.explore.explore",
        default_gin="runs/explore.gin",
        flags=(
            Flag("scale", "SCALE", "Name of one of SCALES.", kind="text", metavar="NAME"),
            Flag("seeds", "SEEDS", "Number of seeds per row.", metavar="N"),
            Flag("output", "OUTPUT", "Directory for the runs.", kind="text", metavar="DIR"),
            Flag(
                "budget",
                "explore.budget",
                "Minutes, after which the runs are saved and stopped; None is no limit.",
                metavar="X",
            ),
            Flag("jobs", "explore.jobs", "Number of rows that run at the same time.", metavar="N"),
            Flag("only", "explore.only", "Name of one row to run; None is all.", metavar="NAME"),
            Flag("seed", "explore.seed", "One seed to run; None is all.", metavar="N"),
            Flag(
                "write_jobs",
                "explore.write_jobs",
                "Write the commands of all rows for slurm, jobset or xpk and run none.",
                metavar="NAME",
            ),
        ),
        examples=(
            "t5x_lite explore --gin_file=explore/objectives.gin --scale=tiny --seeds=3 --budget=45",
            "t5x_lite explore --gin_file=explore/objectives.gin --scale=base "
            "--output=/shared/explore --write_jobs=slurm",
        ),
        docs=("docs/explore.md", "docs/explore_studies.md"),
    ),
)
