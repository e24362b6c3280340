"""Is pretraining worth it? The tiny model fine-tuned after it, and trained from scratch.

    python benchmarks/transfer.py --directory=runs/transfer

For each seed: a tiny T5 1.1 learns span corruption on the embedded corpus's text (none of the
supervised tasks); then each supervised task is trained for the same steps, with the same data in
the same order, from those weights and from fresh ones. The held-out losses, their means over the
seeds and the paired differences go to `DIRECTORY/transfer.json` and, as a table, to the screen.

A killed benchmark goes on where it was.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

TASKS = ("embedded_summarize", "embedded_name")


def main() -> None:
    """Run what is missing, and show the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pretraining_steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--scratch_rate", type=float, default=None, help="of the runs from scratch")
    options = parser.parse_args()
    losses: dict[str, dict[str, list[float]]] = {
        task: {"pretrained": [], "scratch": []} for task in TASKS
    }
    for seed in options.seeds:
        base = options.directory / f"base_{seed}"
        common = [f"--gin.BATCH_SIZE={options.batch_size}", f"--gin.train.seed={seed}"]
        common += [f"--gin.Data.seed={seed}", f"--gin.DATA_DIR={options.directory / 'data'}"]
        pretrain(base, options.pretraining_steps, common)
        for task in TASKS:
            for start in ("pretrained", "scratch"):
                directory = options.directory / f"{task}_{start}_{seed}"
                init = base if start == "pretrained" else None
                rate = options.scratch_rate if start == "scratch" else None
                losses[task][start].append(tune(directory, task, init, options.steps, common, rate))
    report = summary(losses, options)
    (options.directory / "transfer.json").write_text(json.dumps(report, indent=2) + "\n")
    show(report)


def pretrain(directory: Path, steps: int, common: list[str]) -> None:
    """Learn span corruption on text alone; the warm-up of the recipe's length."""
    t5x_lite(
        "train",
        "--gin_file=recipes/tiny_embedded.gin",
        f"--gin.MODEL_DIR={directory}",
        f"--gin.TRAIN_STEPS={steps}",
        "--gin.MIXTURE_OR_TASK_NAME=embedded_text",
        *one_device(steps),
        *common,
    )


def tune(
    directory: Path,
    task: str,
    init: Path | None,
    steps: int,
    common: list[str],
    rate: float | None = None,
) -> float:
    """Train a task from another run's weights or, without one, from fresh ones; held-out loss."""
    begin = ["--gin.train.init_from=None"] if init is None else [f"--gin.INIT_FROM={init}"]
    t5x_lite(
        "train",
        "--gin_file=recipes/tiny_finetune.gin",
        f"--gin.MODEL_DIR={directory}",
        f"--gin.TRAIN_STEPS={steps}",
        f"--gin.MIXTURE_OR_TASK_NAME={task}",
        *begin,
        *([] if rate is None else [f"--gin.Constant.value={rate}"]),
        *one_device(steps),
        *common,
    )
    return json.loads((directory / "results.json").read_text())["tasks"][task]["loss"]


def one_device(steps: int) -> list[str]:
    """No simulated devices, short rows, one evaluation at the end."""
    lengths = {"inputs": 64, "targets": 32}
    return [
        f"--gin.TASK_FEATURE_LENGTHS={lengths}",
        "--gin.MESH={'data': 1}",
        "--gin.CPU_DEVICES=None",
        f"--gin.CHECKPOINT_EVERY={steps}",
        f"--gin.EVAL_EVERY={steps}",
        "--gin.Evaluation.samples=0",
        "--gin.train.log_every_steps=50",
    ]


def t5x_lite(*arguments: str) -> None:
    """Run a command of ours; what it says passes through."""
    subprocess.run([sys.executable, "-m", "t5x_lite", *arguments], check=True)


def summary(losses: dict, options: argparse.Namespace) -> dict:
    """Means, spreads (standard deviations over seeds) and paired differences."""
    settings = {
        name: getattr(options, name)
        for name in ("seeds", "pretraining_steps", "steps", "batch_size", "scratch_rate")
    }
    tasks = {}
    for task, by_start in losses.items():
        gains = np.subtract(by_start["scratch"], by_start["pretrained"])
        tasks[task] = {
            "losses": by_start,
            **{f"{start}_mean": float(np.mean(x)) for start, x in by_start.items()},
            **{f"{start}_sd": float(np.std(x, ddof=1)) for start, x in by_start.items()},
            "gain_mean": float(np.mean(gains)),
            "gain_sd": float(np.std(gains, ddof=1)),
            "gain_least": float(np.min(gains)),
        }
    return {"settings": settings, "tasks": tasks}


def show(report: dict) -> None:
    """Print the table."""
    print(json.dumps(report["settings"]))
    print(f"{'task':<20} {'scratch':>15} {'pretrained':>15} {'gain':>15} {'least gain':>11}")
    for task, found in report["tasks"].items():
        cells = [
            f"{found[f'{name}_mean']:.3f} ± {found[f'{name}_sd']:.3f}"
            for name in ("scratch", "pretrained", "gain")
        ]
        print(f"{task:<20} " + " ".join(f"{cell:>15}" for cell in cells), end="")
        print(f" {found['gain_least']:>11.3f}")


if __name__ == "__main__":
    main()
