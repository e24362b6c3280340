"""The command `t5x_lite doctor`."""

from t5x_lite.command import Command, Flag

COMMANDS = (
    Command(
        name="doctor",
        group="plan and check",
        summary="Check all hosts of a run before the first step.",
        function="t5x_lite.doctor.doctor.doctor",
        default_gin="runs/doctor.gin",
        flags=(
            Flag("model_dir", "MODEL_DIR", "Directory of the run.", kind="text", metavar="DIR"),
            Flag(
                "devices",
                "doctor.devices",
                "Devices expected over all processes; None accepts any number.",
                metavar="N",
            ),
        ),
        examples=(
            "t5x_lite doctor --gin_file=recipes/tiny_embedded.gin --model_dir=runs/tiny",
            "t5x_lite doctor --gin_file=recipes/tiny_embedded.gin --model_dir=runs/tiny "
            "--devices=8",
        ),
        docs=("docs/several_processes.md",),
        multi_process=True,
        rendezvous=True,
    ),
)
