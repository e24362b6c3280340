"""The command `t5x_lite torture`."""

from t5x_lite.command import Command, Flag

COMMANDS = (
    Command(
        name="torture",
        group="look inside a run",
        summary="Train under injected faults and verify that the result is bit-exact.",
        function="t5x_lite.debugging.fault_injection.torture.torture",
        default_gin="runs/torture.gin",
        builds_on="train",
        flags=(
            Flag(
                "model_dir",
                "MODEL_DIR",
                "Directory for all runs of the test.",
                kind="text",
                metavar="DIR",
            ),
            Flag("minutes", "torture.minutes", "Minutes of injecting faults.", metavar="X"),
            Flag(
                "num_faults",
                "torture.num_faults",
                "Stop after this number of faults; None is no limit.",
                metavar="N",
            ),
            Flag(
                "faults",
                "torture.faults",
                "Names of the faults to inject, such as \"('kill', 'full disk')\"; None is all.",
                metavar="NAMES",
            ),
            Flag(
                "processes",
                "torture.processes",
                "Processes of the run; more than 1 are a simulated pod.",
                metavar="N",
            ),
            Flag(
                "devices",
                "torture.devices",
                "Simulated devices of each process of a pod.",
                metavar="N",
            ),
            Flag("seed", "torture.seed", "Seed of the faults and their times.", metavar="N"),
        ),
        examples=(
            "t5x_lite torture --gin_file=recipes/tiny_embedded.gin --model_dir=runs/torture "
            "--minutes=10",
            "t5x_lite torture --gin_file=recipes/tiny_embedded.gin --model_dir=runs/torture "
            "--num_faults=3 --processes=2 --gin.CPU_DEVICES=None",
        ),
        docs=("docs/durability.md",),
    ),
)
