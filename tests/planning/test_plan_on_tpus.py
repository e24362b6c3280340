"""Plans that the TPU's compiler makes: minutes on two cores, so not among the fast tests."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite.hardware.topologies import topology
from t5x_lite.models.config import TransformerConfig
from t5x_lite.planning.lowering import Setting
from t5x_lite.planning.plan_step import plan_step
from t5x_lite.training.optimizers import Adafactor
from t5x_lite.training.schedules import InverseSquareRoot
from t5x_lite.training.step import Loss, Update

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("needs_libtpu")]


def _benchmark(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def compute(cache):
    """Compiler-estimated seconds of the decoder alone: compute(layers, rows, topology name)."""

    def estimate(layers, rows, name):
        sizes = dict(vocab_size=256, emb_dim=1024, num_heads=8, head_dim=128, mlp_dim=4096)
        setting = Setting(
            model=TransformerConfig(**sizes, num_decoder_layers=layers, positions="none"),
            optimizer=Adafactor(),
            learning_rate=InverseSquareRoot(base=1.0, warmup_steps=10),
            loss=Loss(),
            update=Update(),
            mesh={"data": -1},
            batch_size=rows,
            lengths={"inputs": 128, "targets": 128},
            packed=True,
            mode="train",
            compiler_options={},
        )
        plan = plan_step(setting, topology(name), 1e9, cache).plan
        parts = plan["compute"]["parts"]
        return sum(part["seconds"] for part in parts if part["part"] == "decoder")

    return estimate


def test_the_estimate_scales_as_it_must(compute):
    """Twice the layers, twice the rows, half the chips: twice the time of the layers."""
    once = compute(4, 64, "v5e:2x4")
    twice = {
        "rows": compute(4, 128, "v5e:2x4"),
        "a chip's share": compute(4, 64, "v5e:2x2"),
        "layers": compute(8, 64, "v5e:2x4"),
    }
    assert twice == pytest.approx(dict.fromkeys(twice, 2 * once), rel=0.2)


def test_the_newest_generation_is_planned_with_times_where_the_stack_allows(tmp_path):
    """Its compiler's stack is set where a process begins, so in a shell."""
    sizes = dict(vocab_size=256, emb_dim=128, num_heads=1, head_dim=128, mlp_dim=128)
    sizes |= dict(num_encoder_layers=0, num_decoder_layers=1)
    words = ["--gin_file=models/t5_1_1/small.gin", "--gin_file=optimizers/adafactor.gin"]
    words += [f"--gin.TransformerConfig.{name}={size}" for name, size in sizes.items()]
    words += ["--topology=tpu7x:2x2x1", f"--output={tmp_path}", "--gin.BATCH_SIZE=8"]
    words += [
        f"--gin.plan.cache={tmp_path}",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 8}",
    ]
    shell = ["bash", "-c", 'ulimit -s unlimited && exec "$@"', "plan"]
    command = [*shell, sys.executable, "-m", "t5x_lite", "plan", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["topology"]["devices"] == 2 * plan["topology"]["chips"] == 8
    assert plan["compute"]["seconds"] > plan["compute"]["instruction_roofline"] > 0
    assert plan["notes"] == []


def test_a_cell_of_the_published_table_still_compiles_to_what_it_says(cache):
    bench = _benchmark("plan_table")
    kept = json.loads(bench.RESULTS.read_text())
    name, where = "t5_1_1/base", "v5e:16x16"
    setting = bench.setting_of(bench.shipped(name), topology(where))
    plan = plan_step(setting, topology(where), 2.0**35, cache).plan
    published = kept[f"{name} {where}"]
    assert plan["mesh"] == published["mesh"]
    assert plan["memory"]["total"] == pytest.approx(published["memory"]["total"], rel=0.1)
    for new, old in zip(
        plan["estimate"]["step_seconds"], published["estimate"]["step_seconds"], strict=True
    ):
        assert new == pytest.approx(old, rel=0.15)


def test_the_published_run_is_estimated_as_the_documents_say(cache):
    bench = _benchmark("plan_calibration")
    planned = plan_step(bench.SETTING, topology("v5e:16x16"), 1e12, cache)
    core = sum(cost.flops for cost in planned.costs if bench.in_attention_core(cost))
    product = 2 * 2048**2 * 8192 * 32  # scores or weighted sums of a row, in all layers
    assert core == 8 * product  # two forward, two recomputed, four backward
    ratios = bench.calibrate(planned, topology("v5e:16x16").chip)
    assert ratios["measured / estimated"] == pytest.approx(1.0, abs=0.1)
