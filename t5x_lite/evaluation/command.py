"""The command `t5x_lite evaluate`."""

from t5x_lite.command import Command, Flag

COMMANDS = (
    Command(
        name="evaluate",
        group="evaluate",
        summary="Compute validation losses and task metrics of checkpoints.",
        function="t5x_lite.evaluation.evaluate.evaluate",
        default_gin="runs/evaluate.gin",
        flags=(
            Flag(
                "model_dir",
                "MODEL_DIR",
                "Directory of the run or import.",
                kind="text",
                metavar="DIR",
            ),
            Flag("steps", "STEPS", "newest, all, a step, or a tuple of steps.", metavar="STEPS"),
            Flag(
                "split",
                "SPLIT",
                "Split of all tasks, such as test, or of some: \"{'TASK': 'test'}\".",
                metavar="NAME",
            ),
            Flag(
                "max_examples",
                "evaluate.max_examples",
                "Examples of each task; None is all.",
                metavar="N",
            ),
            Flag("batch_size", "BATCH_SIZE", "Rows per batch, over all devices.", metavar="N"),
            Flag(
                "output_dir",
                "evaluate.output_dir",
                "Directory for the results; None is MODEL_DIR.",
                metavar="DIR",
            ),
        ),
        examples=(
            "t5x_lite evaluate --gin_file=recipes/tiny_finetune.gin "
            "--model_dir=runs/tiny_finetuned --steps=all",
            "t5x_lite evaluate --gin_file=objectives/span_corruption.gin --gin_file=tasks/glue.gin "
            "--model_dir=runs/glue --split=test",
        ),
        docs=("docs/finetuning.md",),
        multi_process=True,
    ),
)
