"""The command `t5x_lite plan`."""

from t5x_lite.command import Command, Flag

COMMANDS = (
    Command(
        name="plan",
        group="plan and check",
        summary="Estimate memory and time of a step on hardware that is not available.",
        function="t5x_lite.planning.plan.plan",
        default_gin="runs/plan.gin",
        flags=(
            Flag(
                "topology",
                "plan.topology_name",
                "Kind and shape of the slice, such as v5e:4x4, or GPUs, such as h200:8.",
                kind="text",
                metavar="NAME",
            ),
            Flag("slices", "plan.slices", "Number of slices.", metavar="N"),
            Flag(
                "mode",
                "MODE",
                "train, eval or decode (generate texts).",
                kind="text",
                metavar="NAME",
            ),
            Flag(
                "price", "plan.price", "Price of one chip for one hour, for the cost.", metavar="X"
            ),
            Flag(
                "explain",
                "plan.explain",
                "List the operations that cost the most, and draw plan.png.",
                kind="switch",
            ),
            Flag(
                "search",
                "plan.search",
                "Try meshes, remat policies and batch sizes, and plan the best.",
                kind="switch",
            ),
            Flag("output", "plan.output", "Directory for the plan.", kind="text", metavar="DIR"),
        ),
        examples=(
            "t5x_lite plan --gin_file=models/t5_1_1/base.gin --gin_file=optimizers/adafactor.gin "
            "--topology=v5e:4x4 --gin.BATCH_SIZE=256 --gin.MESH=\"{'fsdp': -1}\"",
            "t5x_lite plan --gin_file=recipes/tiny_embedded.gin --topology=h200:8",
        ),
        docs=("docs/planning.md",),
    ),
)
