"""Write t5_registry.json: the tasks and mixtures that the T5 library registers.

The tests need neither the T5 library nor the network. To make the file again, from the root:

    python3.11 -m venv /tmp/t5 && /tmp/t5/bin/pip install t5==0.9.4
    /tmp/t5/bin/pip install --force-reinstall --no-deps seqio==0.0.20
    /tmp/t5/bin/python tests/suites/references/make_t5_registry.py

Made with t5 0.9.4, seqio 0.0.20, tensorflow-datasets 4.9.10, Python 3.11.2. A rate that is a
function of the task is written as the function's name.
"""

import functools
import json
import os
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import seqio
from t5.data import mixtures as t5


def described_rate(rate):
    if isinstance(rate, functools.partial):
        rate = rate.func
    return rate.__name__ if callable(rate) else float(rate)


def main():
    tasks, mixtures = {}, {}
    for name in sorted(seqio.TaskRegistry.names()):
        task = seqio.TaskRegistry.get(name)
        tasks[name] = {
            "tfds": task.source.tfds_dataset.name,
            "metrics": len(task.metric_fns),
            "postprocess": task.postprocessor is not None,
        }
    for name in sorted(t5.MixtureRegistry.names()):
        rates = t5.MixtureRegistry.get(name)._task_to_rate
        mixtures[name] = {task: described_rate(rate) for task, rate in sorted(rates.items())}
    path = Path(__file__).with_name("t5_registry.json")
    path.write_text(json.dumps({"tasks": tasks, "mixtures": mixtures}, indent=1) + "\n")


main()
