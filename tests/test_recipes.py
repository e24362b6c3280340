"""Recipes for TPU slices: the figures in their headers follow from the recipe."""

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
    """The model of a recipe and its macros: built(name, flags) -> model, macros."""
    import gin

    from t5x_lite.models.config import TransformerConfig

    def read(name, flags=()):
        bindings = gin_config.read([name], flags, [CONFIGS])
        gin.clear_config()
        gin_config.parse([name], flags, ["", CONFIGS])
        model = gin.get_configurable(TransformerConfig)()
        return model, {b.name: b.value for b in bindings if "." not in b.name}

    yield read
    gin.clear_config()


CHIPS = ("v5e", "v5p", "v6e")
PLANNED = [(name, header) for name in PLANS.RECIPES for header in PLANS.read(name).values()]
each_plan = pytest.mark.parametrize(
    ("name", "header"), PLANNED, ids=[f"{name} {header.slice}" for name, header in PLANNED]
)


def test_every_size_has_a_recipe_with_a_plan_for_every_kind_of_slice():
    sizes = (
        "t5_1_1/base",
        "t5_1_1/large",
        "t5_1_1/xl",
        "t5_1_1/xxl",
        "mt5/base",
        "switch/base_128",
    )
    assert set(PLANS.RECIPES) == {f"recipes/{size}.gin" for size in sizes}
    for name in PLANS.RECIPES:
        chips = [topology(header.slice).chip.name for header in PLANS.read(name).values()]
        assert chips == list(CHIPS), name
        text = (Path(CONFIGS) / name).read_text()
        assert f"t5x_lite train --gin_file={name} " in text
        assert "\n# Published: " in text


@each_plan
def test_a_recipe_fits_the_slices_it_was_planned_for(name, header, built):
    model, macros = built(name, header.flags)
    machine = topology(header.slice)
    assert header.chips == machine.chips
    mesh = resolve_mesh_shape(macros["MESH"], machine.devices)
    parts = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    assert macros["BATCH_SIZE"] % parts == 0
    assert model.emb_dim / mesh["fsdp"] >= 128  # a TPU's tile: benchmarks/planning.md


@each_plan
def test_a_plan_is_of_the_settings_in_the_header_and_its_figures_follow_from_its_step(
    name, header, built
):
    if header.values is None:
        return  # "not computed": there are no figures
    given, machine = header.values, topology(header.slice)
    model, macros = built(name, header.flags)
    lengths = macros["TASK_FEATURE_LENGTHS"]
    mesh = resolve_mesh_shape(macros["MESH"], machine.devices)
    assert given["parameters"] == f"{num_parameters(model):,}"
    assert given["mesh"] == ", ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1)
    assert given["remat"] == model.remat
    assert given["rows"] == f"{macros['BATCH_SIZE']:,}"
    assert given["lengths"] == "/".join(map(str, lengths.values()))
    assert given["steps"] == f"{macros['TRAIN_STEPS']:,}"
    assert number(given["limit"]) == pytest.approx(machine.chip.hbm / 1e9, abs=0.01)
    assert number(given["memory"]) < number(given["limit"])
    forward = forward_flops(model, batch_size=macros["BATCH_SIZE"], lengths=lengths).total
    peak = machine.chips * machine.chip.peak
    for end, mfu in (("low", "mfu_high"), ("high", "mfu_low")):
        seconds = number(given[end]) / 1e3
        days = macros["TRAIN_STEPS"] * seconds / 86_400
        rounding = 0.5 / number(given[end]) + 1e-3
        assert number(given[f"days_{end}"]) == pytest.approx(days, rel=rounding, abs=0.01)
        hours = 24 * days * machine.chips
        assert number(given[f"hours_{end}"]) == pytest.approx(hours, rel=rounding)
        share = 100 * forward * TRAINING / seconds / peak
        assert number(given[mfu]) == pytest.approx(share, abs=share * rounding + 0.051)


def test_all_published_plans_are_of_one_compiler():
    cells = json.loads((ROOT / "benchmarks" / "plan_table.json").read_text()).values()
    compilers = {(header.values["jax"], header.values["libtpu"]) for _, header in PLANNED}
    compilers |= {(cell["compiler"]["jax"], cell["compiler"]["libtpu"]) for cell in cells}
    assert len(compilers) == 1


def test_a_header_that_was_edited_by_hand_is_noticed(tmp_path, monkeypatch):
    name = "recipes/t5_1_1/base.gin"
    text = (Path(CONFIGS) / name).read_text()
    monkeypatch.setattr(PLANS, "GIN_CONFIGS", tmp_path)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(text.replace(" ms; MFU", " ms, MFU"))
    with pytest.raises(ValueError, match=r"base\.gin:\d+ is .* expected"):
        PLANS.read(name)


def test_a_plan_is_written_where_the_last_one_of_its_slice_is(tmp_path, monkeypatch):
    name, values = "recipes/t5_1_1/large.gin", dict.fromkeys(("parameters", "rows", "steps"), 1)
    values |= dict.fromkeys(("mesh", "remat", "lengths", "jax", "libtpu"), "x")
    numbers = ("memory", "limit", "low", "high", "mfu_low", "mfu_high")
    values |= dict.fromkeys((*numbers, "days_low", "days_high", "hours_low", "hours_high"), 2.0)
    text = (Path(CONFIGS) / name).read_text()
    monkeypatch.setattr(PLANS, "GIN_CONFIGS", tmp_path)
    monkeypatch.setattr(PLANS, "values_of", lambda plan: values)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(text)
    before = PLANS.read(name)
    PLANS.write(name, "v5p:2x4x4", {})
    after = PLANS.read(name)
    assert after["v5p:2x4x4"].values["mesh"] == "x"
    assert after["v5p:2x4x4"].flags == before["v5p:2x4x4"].flags == ("--gin.MESH={'data': 32}",)
    for other in ("v5e:8x16", "v6e:8x8"):
        assert after[other] == before[other]


@pytest.mark.slow
@pytest.mark.usefixtures("needs_libtpu")
def test_a_recipe_still_compiles_to_what_its_header_says(tmp_path):
    name = "recipes/t5_1_1/base.gin"
    header = PLANS.read(name)["v5e:8x8"]
    given, made = header.values, PLANS.values_of(PLANS.planned(name, header, tmp_path))
    same = (given["jax"], given["libtpu"]) == (made["jax"], made["libtpu"])
    for key in ("memory", "low", "high"):
        assert math.isclose(number(given[key]), made[key], rel_tol=0.01 if same else 0.15), key
