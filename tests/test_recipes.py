"""Recipes for TPU slices: what their headers say follows from the recipe, so that neither rots."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

from t5x_lite.cli import gin_config
from t5x_lite.hardware.topologies import topology
from t5x_lite.models.flops import TRAINING, forward_flops
from t5x_lite.models.transformer import num_parameters
from t5x_lite.partitioning import resolve_mesh_shape

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = str(ROOT / "gin_configs")


def _plan_recipes():
    path = ROOT / "benchmarks" / "plan_recipes.py"
    spec = importlib.util.spec_from_file_location("plan_recipes", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PLANS = _plan_recipes()


def number(text):
    return float(text.replace(",", ""))


@pytest.fixture
def built():
    """What a recipe makes of its model, and its macros: built(name) -> model, macros."""
    import gin

    from t5x_lite.models.config import TransformerConfig

    def read(name):
        bindings = gin_config.read([name], [], [CONFIGS])
        gin.clear_config()
        gin_config.parse([name], [], ["", CONFIGS])
        model = gin.get_configurable(TransformerConfig)()
        return model, {b.name: b.value for b in bindings if "." not in b.name}

    yield read
    gin.clear_config()


def test_every_size_has_a_recipe_for_every_kind_of_slice():
    sizes = (
        "t5_1_1/base",
        "t5_1_1/large",
        "t5_1_1/xl",
        "t5_1_1/xxl",
        "mt5/base",
        "switch/base_128",
    )
    wanted = {f"recipes/{size}_{chip}.gin" for size in sizes for chip in ("v5e", "v5p", "v6e")}
    assert set(PLANS.RECIPES) == wanted


@pytest.mark.parametrize("name", PLANS.RECIPES)
def test_a_recipe_fits_its_slice(name, built):
    model, macros = built(name)
    wanted = topology(PLANS.read(name).slice)
    assert name.endswith(f"_{wanted.chip.name}.gin")
    mesh = resolve_mesh_shape(macros["MESH"], wanted.devices)
    parts = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    assert macros["BATCH_SIZE"] % parts == 0
    assert model.emb_dim / mesh["fsdp"] >= 128  # a TPU's tile: benchmarks/planning.md
    text = (Path(CONFIGS) / name).read_text()
    assert f"{wanted.name}, {wanted.chips} chips" in text
    assert "\n# Published: " in text


@pytest.mark.parametrize("name", PLANS.RECIPES)
def test_the_header_tells_the_setting_that_was_planned_and_what_follows_from_its_step(name, built):
    header = PLANS.read(name)
    if header.values is None:
        return  # "not computed", and no figure
    said, wanted = header.values, topology(header.slice)
    model, macros = built(name)
    lengths = macros["TASK_FEATURE_LENGTHS"]
    mesh = resolve_mesh_shape(macros["MESH"], wanted.devices)
    assert said["parameters"] == f"{num_parameters(model):,}"
    assert said["mesh"] == ", ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1)
    assert said["remat"] == model.remat
    assert said["rows"] == f"{macros['BATCH_SIZE']:,}"
    assert said["lengths"] == "/".join(map(str, lengths.values()))
    assert said["steps"] == f"{macros['TRAIN_STEPS']:,}"
    assert number(said["limit"]) == pytest.approx(wanted.chip.hbm / 1e9, abs=0.01)
    assert number(said["memory"]) < number(said["limit"])
    forward = forward_flops(model, batch_size=macros["BATCH_SIZE"], lengths=lengths).total
    peak = wanted.chips * wanted.chip.peak
    for end, mfu in (("low", "mfu_high"), ("high", "mfu_low")):
        seconds = number(said[end]) / 1e3
        days = macros["TRAIN_STEPS"] * seconds / 86_400
        rounding = 0.5 / number(said[end]) + 1e-3
        assert number(said[f"days_{end}"]) == pytest.approx(days, rel=rounding, abs=0.01)
        hours = 24 * days * wanted.chips
        assert number(said[f"hours_{end}"]) == pytest.approx(hours, rel=rounding)
        share = 100 * forward * TRAINING / seconds / peak
        assert number(said[mfu]) == pytest.approx(share, abs=share * rounding + 0.051)


def test_all_published_plans_are_of_one_compiler():
    headers = [PLANS.read(name).values for name in PLANS.RECIPES]
    cells = json.loads((ROOT / "benchmarks" / "plan_table.json").read_text()).values()
    found = {(values["jax"], values["libtpu"]) for values in headers}
    found |= {(cell["compiler"]["jax"], cell["compiler"]["libtpu"]) for cell in cells}
    assert len(found) == 1


def test_a_header_that_was_edited_by_hand_is_noticed(tmp_path, monkeypatch):
    name = "recipes/t5_1_1/base_v5e.gin"
    text = (Path(CONFIGS) / name).read_text()
    monkeypatch.setattr(PLANS, "GIN_CONFIGS", tmp_path)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(text.replace(" ms; MFU", " ms, MFU"))
    with pytest.raises(ValueError, match=r"base_v5e\.gin:\d+ is .* wanted"):
        PLANS.read(name)


@pytest.mark.slow
@pytest.mark.usefixtures("needs_libtpu")
def test_a_recipe_still_compiles_to_what_its_header_says(tmp_path):
    name = "recipes/t5_1_1/base_v5e.gin"
    said, made = PLANS.read(name).values, PLANS.values_of(PLANS.planned(name, tmp_path))
    same = (said["jax"], said["libtpu"]) == (made["jax"], made["libtpu"])
    for key in ("memory", "low", "high"):
        assert math.isclose(number(said[key]), made[key], rel_tol=0.01 if same else 0.15), key
