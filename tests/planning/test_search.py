"""The search among meshes, remat policies and batches."""

import math

import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.hardware.topologies import topology
from t5x_lite.models.config import MixtureOfExperts, TransformerConfig
from t5x_lite.planning import search as search_module
from t5x_lite.planning.lowering import Setting
from t5x_lite.planning.plan_step import Planned
from t5x_lite.planning.search import meshes, search
from t5x_lite.training.optimizers import Adafactor
from t5x_lite.training.schedules import InverseSquareRoot
from t5x_lite.training.step import Loss, Update

SIZES = dict(vocab_size=512, emb_dim=128, num_heads=4, head_dim=32, mlp_dim=256)
MODEL = TransformerConfig(**SIZES, num_encoder_layers=2, num_decoder_layers=2)


def _setting(**changes):
    setting = Setting(
        model=MODEL,
        optimizer=Adafactor(),
        learning_rate=InverseSquareRoot(base=1.0, warmup_steps=10),
        loss=Loss(),
        update=Update(),
        mesh={"fsdp": -1},
        batch_size=32,
        lengths={"inputs": 64, "targets": 32},
        packed=True,
        mode="train",
        compiler_options={},
    )
    return setting._replace(**changes)


@pytest.mark.parametrize("devices", [1, 4, 16, 256])
def test_every_mesh_uses_all_devices_and_divides_the_model(devices):
    found = list(meshes(MODEL, devices))
    assert {} not in found
    for mesh in found:
        assert math.prod(mesh.values()) == devices
        assert MODEL.num_heads % mesh.get("tensor", 1) == 0
        assert MODEL.emb_dim % mesh.get("fsdp", 1) == 0
        assert "expert" not in mesh
    assert len({tuple(sorted(mesh.items())) for mesh in found}) == len(found)


def test_a_mixture_of_experts_may_split_its_experts():
    moe = MixtureOfExperts(num_experts=8)
    model = TransformerConfig(**SIZES, num_encoder_layers=2, num_decoder_layers=2, moe=moe)
    assert {mesh.get("expert", 1) for mesh in meshes(model, 16)} == {1, 2, 4, 8}


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that finds the step of a mesh faster the more of it is data parallel."""
    asked = []

    def plan_step(setting, wanted, tokens, cache):
        asked.append(setting)
        fits = setting.mesh.get("tensor", 1) == 1
        seconds = 1.0 / setting.mesh.get("data", 1)
        plan = {
            "estimate": {"step_seconds": [seconds / 2, seconds]} if fits else None,
            "memory": {"total": 1e9},
        }
        return Planned(plan, [])

    monkeypatch.setattr(search_module, "plan_step", plan_step)
    return asked


def test_only_the_most_promising_are_compiled_and_the_fastest_of_them_wins(
    compiler, tmp_path, log_lines
):
    text, best = search(_setting(), topology("v5e:4x4"), 1e9, tmp_path, compile_best=12)
    assert len(compiler) == 12
    rates = [
        setting.batch_size * setting.mesh.get("data", 1)
        for setting in compiler
        if setting.mesh.get("tensor", 1) == 1
    ]
    assert best.setting.batch_size * best.setting.mesh.get("data", 1) == max(rates)
    assert f"MESH = {dict(best.setting.mesh)}" in text
    assert f"BATCH_SIZE = {best.setting.batch_size}" in text
    assert f"TransformerConfig.remat = '{best.setting.model.remat}'" in text
    assert "does not fit" in text
    assert "of them fit by arithmetic; compiling the fastest 12" in log_lines[0]


def test_where_nothing_fits_the_search_says_so(compiler, tmp_path, shipped):
    setting = _setting(model=shipped("t5_1_1/xxl"), lengths={"inputs": 64, "targets": 32})
    with pytest.raises(ConfigError, match="no mesh, remat policy or batch that was tried fits"):
        search(setting, topology("v5e:2x2"), 1e9, tmp_path, compile_best=2)
    assert compiler == []
