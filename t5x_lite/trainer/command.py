"""The command `t5x_lite train`."""

from t5x_lite.command import Command, Flag

COMMANDS = (
    Command(
        name="train",
        group="train",
        summary="Pretrain or fine-tune a model, or resume a run that was stopped.",
        function="t5x_lite.trainer.train.train",
        default_gin="runs/pretrain.gin",
        flags=(
            Flag(
                "model_dir",
                "MODEL_DIR",
                "Directory of the run: checkpoints, metrics and logs; an existing run is resumed.",
                kind="text",
                metavar="DIR",
            ),
        ),
        examples=(
            "t5x_lite train --gin_file=recipes/tiny_embedded.gin --model_dir=runs/tiny",
            "t5x_lite train --gin_file=models/tiny.gin --gin_file=objectives/span_corruption.gin "
            "--gin_file=tasks/embedded.gin --gin_file=optimizers/adafactor.gin "
            "--model_dir=runs/mine --gin.TRAIN_STEPS=100 --gin.BATCH_SIZE=32 "
            "--gin.TASK_FEATURE_LENGTHS=\"{'inputs': 128, 'targets': 32}\"",
        ),
        docs=("README.md", "docs/finetuning.md", "docs/durability.md", "docs/several_processes.md"),
        multi_process=True,
    ),
)
