"""Measure the gain from pretraining: the tiny model fine-tuned after it, and trained from scratch.

    python benchmarks/transfer.py --directory=runs/transfer

For each seed: a tiny T5 1.1 learns span corruption on the embedded corpus's text (none of the
supervised tasks). Then each supervised task is trained for the same number of steps, with the
same data in the same order, from those weights and from random ones, both at each of some
learning rates; the rate that is best on average counts for each. Validation losses, their means
over the seeds and the paired differences are written to `DIRECTORY/transfer.json` and printed as
a table.

The same command resumes a killed benchmark.
"""

import argparse
import json
from pathlib import Path

import gin
import numpy as np

from t5x_lite.cli.main import main as command_line

TASKS = ("embedded_summarize", "embedded_name")
STARTS = ("pretrained", "scratch")


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pretraining_steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.03])
    options = parser.parse_args()
    starts = [(start, rate) for rate in options.rates for start in STARTS]
    losses = {task: {f"{start} {rate:g}": [] for start, rate in starts} for task in TASKS}
    for seed in options.seeds:
        base = options.directory / f"base_{seed}"
        common = [f"--gin.BATCH_SIZE={options.batch_size}", f"--gin.RANDOM_SEED={seed}"]
        common += [f"--gin.Data.seed={seed}", f"--gin.DATA_DIR={options.directory / 'data'}"]
        pretrain(base, options.pretraining_steps, common)
        for task in TASKS:
            for start, rate in starts:
                name = f"{task}_{start}_{rate:g}_{seed}"
                init = base if start == "pretrained" else None
                loss = tune(options.directory / name, task, init, options.steps, rate, common)
                losses[task][f"{start} {rate:g}"].append(loss)
    report = {"settings": {**vars(options), "directory": None}, "tasks": summary(losses)}
    (options.directory / "transfer.json").write_text(json.dumps(report, indent=2) + "\n")
    show(report["tasks"])


def pretrain(directory: Path, steps: int, common: list[str]) -> None:
    """Learn span corruption on text only, as the recipe does."""
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
    directory: Path, task: str, init: Path | None, steps: int, rate: float, common: list[str]
) -> float:
    """Train a task from another run's weights or from random ones; return its validation loss."""
    t5x_lite(
        "train",
        "--gin_file=recipes/tiny_finetune.gin",
        f"--gin.MODEL_DIR={directory}",
        f"--gin.TRAIN_STEPS={steps}",
        f"--gin.MIXTURE_OR_TASK_NAME={task}",
        f"--gin.Constant.value={rate}",
        "--gin.train.init_from=None" if init is None else f"--gin.INITIAL_CHECKPOINT_PATH={init}",
        *one_device(steps),
        *common,
    )
    return json.loads((directory / "results.json").read_text())["tasks"][task]["loss"]


def one_device(steps: int) -> list[str]:
    """No simulated devices, short rows, one evaluation at the end."""
    return [
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 32}",
        "--gin.MESH={'data': 1}",
        "--gin.CPU_DEVICES=None",
        f"--gin.CHECKPOINT_PERIOD={steps}",
        f"--gin.EVAL_PERIOD={steps}",
        "--gin.Evaluation.samples=0",
        "--gin.Evaluation.max_examples=256",
        "--gin.train.log_every_steps=50",
    ]


def t5x_lite(*arguments: str) -> None:
    """Run a command in this process, to share imports and compiled programs."""
    gin.clear_config()
    command_line(arguments)


def summary(losses: dict[str, dict[str, list[float]]]) -> dict:
    """Means, spreads (standard deviations over seeds) and the differences of each seed's pair."""
    tasks = {}
    for task, by_start in losses.items():
        means = {start: float(np.mean(found)) for start, found in by_start.items()}
        best = {
            start: min((name for name in means if name.startswith(start)), key=means.__getitem__)
            for start in STARTS
        }
        gains = np.subtract(by_start[best["scratch"]], by_start[best["pretrained"]])
        tasks[task] = {
            "losses": by_start,
            "means": means,
            "spreads": {start: float(np.std(x, ddof=1)) for start, x in by_start.items()},
            "best": best,
            "gain": {"mean": float(gains.mean()), "spread": float(gains.std(ddof=1))},
            "gains": gains.tolist(),
        }
    return tasks


def show(tasks: dict) -> None:
    """Print the table."""
    for task, found in tasks.items():
        cells = [f"{s} {m:.3f} ± {found['spreads'][s]:.3f}" for s, m in found["means"].items()]
        gain = found["gain"]
        print(f"{task}: held-out loss: {' | '.join(cells)}")
        print(f"  gain {gain['mean']:.3f} ± {gain['spread']:.3f}, least {min(found['gains']):.3f}")


if __name__ == "__main__":
    main()
