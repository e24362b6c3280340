"""The commands `t5x_lite infer` and `t5x_lite serve`."""

from t5x_lite.command import Command, Flag

_MODEL_DIR = Flag(
    "model_dir",
    "MODEL_DIR",
    "Directory of a run, an import or a Hugging Face model.",
    kind="text",
    metavar="DIR",
)

COMMANDS = (
    Command(
        name="infer",
        group="use a model",
        summary="Generate, fill, embed or score the lines of a file, resumably.",
        function="t5x_lite.inference.infer.infer",
        default_gin="runs/infer.gin",
        flags=(
            _MODEL_DIR,
            Flag(
                "inputs",
                "INPUTS",
                "File with one text per line, or .jsonl with objects; - is standard input.",
                kind="text",
                metavar="FILE",
            ),
            Flag(
                "outputs",
                "OUTPUTS",
                "File of JSON lines to write; - is standard output.",
                kind="text",
                metavar="FILE",
            ),
            Flag(
                "mode",
                "MODE",
                "generate (texts), fill (sentinels), embed (vectors) or score (log-probabilities).",
                kind="text",
                metavar="NAME",
            ),
            Flag(
                "prefix",
                "PREFIX",
                "Text before each input, such as 'summarize: '.",
                kind="text",
                metavar="TEXT",
            ),
            Flag("step", "STEP", "Checkpoint of the run; None is the newest.", metavar="N"),
            Flag("batch_size", "BATCH_SIZE", "Rows per batch, over all devices.", metavar="N"),
        ),
        examples=(
            "t5x_lite infer --model_dir=runs/tiny --inputs=texts.txt --outputs=results.jsonl "
            "--prefix='summarize: ' --gin.Generation.num_beams=4",
            'echo "The <extra_id_0> sat." | '
            "t5x_lite infer --model_dir=runs/tiny --mode=fill --inputs=- --outputs=-",
        ),
        docs=("docs/inference.md",),
        multi_process=True,
    ),
    Command(
        name="serve",
        group="use a model",
        summary="Open a web page on this machine to try a model.",
        function="t5x_lite.inference.serve.serve",
        default_gin="runs/serve.gin",
        flags=(
            _MODEL_DIR,
            Flag(
                "host",
                "HOST",
                "Address to listen at; others than the default show the model to the network.",
                kind="text",
                metavar="ADDRESS",
            ),
            Flag("port", "PORT", "Port to listen at; 0 is any free port.", metavar="N"),
            Flag("step", "serve.step", "Checkpoint of the run; None is the newest.", metavar="N"),
        ),
        examples=(
            "t5x_lite serve --model_dir=runs/tiny",
            "t5x_lite serve --model_dir=downloads/t5-small --port=8080",
        ),
        docs=("docs/inference.md",),
    ),
)
