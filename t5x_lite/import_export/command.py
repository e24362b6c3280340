"""The commands `t5x_lite import` and `t5x_lite export`."""

from t5x_lite.command import Command, Flag

COMMANDS = (
    Command(
        name="import",
        group="use a model",
        summary="Make a run directory from a Hugging Face model.",
        function="t5x_lite.import_export.import_hf.import_weights",
        default_gin="runs/import.gin",
        flags=(
            Flag(
                "source",
                "SOURCE",
                "Directory with config.json and safetensors files.",
                kind="text",
                metavar="DIR",
            ),
            Flag("model_dir", "MODEL_DIR", "Run directory to make.", kind="text", metavar="DIR"),
            Flag(
                "step",
                "import_weights.step",
                "Step that the weights count as, from which schedules continue.",
                metavar="N",
            ),
            Flag(
                "vocab_size",
                "import_weights.vocab_size",
                "Rows of the embedding: more are zeros, fewer are cut off; None keeps them.",
                metavar="N",
            ),
        ),
        examples=(
            "t5x_lite import --source=downloads/t5-small --model_dir=runs/t5_small",
            "t5x_lite import --source=downloads/t5-base --model_dir=runs/t5_base --step=1000000",
        ),
        docs=("README.md", "docs/models.md", "docs/finetuning.md"),
    ),
    Command(
        name="export",
        group="use a model",
        summary="Write a run's model as a Hugging Face directory, StableHLO or a SavedModel.",
        function="t5x_lite.import_export.export_hf.export_weights",
        default_gin="runs/export.gin",
        flags=(
            Flag("model_dir", "MODEL_DIR", "Directory of the run.", kind="text", metavar="DIR"),
            Flag("destination", "DESTINATION", "Directory to make.", kind="text", metavar="DIR"),
            Flag(
                "form",
                "FORM",
                "huggingface, stablehlo or saved_model.",
                kind="text",
                metavar="NAME",
            ),
            Flag(
                "step",
                "export_weights.step",
                "Checkpoint to export; None is the newest.",
                metavar="N",
            ),
            Flag(
                "model_type",
                "export_weights.model_type",
                "Model type of transformers, such as mt5; None is the first that fits.",
                metavar="NAME",
            ),
            Flag(
                "encoder_only",
                "export_weights.encoder_only",
                "Export the encoder without decoder and head.",
                kind="switch",
            ),
            Flag(
                "vocab_size",
                "export_weights.vocab_size",
                "Rows of the embedding: more are zeros, fewer are cut off; None keeps them.",
                metavar="N",
            ),
        ),
        examples=(
            "t5x_lite export --model_dir=runs/tiny --destination=exported/tiny",
            "t5x_lite export --model_dir=runs/tiny --destination=exported/program --form=stablehlo "
            "--gin.Generation.num_beams=4",
        ),
        docs=("README.md", "docs/models.md", "docs/inference.md"),
    ),
)
