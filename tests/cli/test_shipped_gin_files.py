"""Every gin file that ships parses, and configures what it is for."""

import re
import shlex
from pathlib import Path

import gin
import pytest

from t5x_lite.cli import arguments, gin_config, main
from t5x_lite.cli.command_table import load_function

CONFIGS = Path(__file__).resolve().parents[2] / "gin_configs"
SEARCH = ["", str(CONFIGS)]


@pytest.fixture(autouse=True)
def _no_bindings_left():
    gin.clear_config()
    yield
    gin.clear_config()


def shipped(folder=""):
    return sorted(str(path.relative_to(CONFIGS)) for path in (CONFIGS / folder).rglob("*.gin"))


def test_every_shipped_gin_file_parses_and_has_a_header():
    for name in shipped():
        assert gin_config.read([name], [], SEARCH), name
        assert (CONFIGS / name).read_text().startswith("# "), name


def commands_of_header(name):
    """The commands in the header of a gin file, as words after "t5x_lite"."""
    header = re.match(r"(?:#.*\n)+", (CONFIGS / name).read_text())[0]
    text = re.sub(r"\s*\\\n#\s*", " ", header)
    return [shlex.split(line) for line in re.findall(r"^#   t5x_lite (.*)", text, re.MULTILINE)]


def test_every_command_in_a_header_works_up_to_the_call():
    """Up to the call: the files are read, and the function accepts the values."""
    for name in shipped():
        for words in commands_of_header(name):
            request = arguments.parse(words)
            if any(file.startswith("runs/t5_base/") for file in request.files):
                continue  # the model file of an import
            main.check(request)
            gin.clear_config()
            gin_config.parse(request.files, request.settings, request.search)
            function = load_function(request.command)
            gin_config.check_values(function, given=("invocation", "settings"))


def test_every_shipped_task_builds_its_task_providers():
    from t5x_lite.reporting.inspect_data import inspect

    values = {"MIXTURE_OR_TASK_NAME": "glue_cola_v002", "TASK_FEATURE_LENGTHS": {"inputs": 9}}
    values |= {"C4_DIR": "/c4", "TRAIN_FILES": "a.tsv", "TEXT_DIR": "/texts", "TBC_DIR": "/books"}
    for name in shipped("tasks"):
        if "DATA" not in {b.name for b in gin_config.read([name], [], SEARCH)}:
            continue  # a part of the others, such as tasks/vocabulary.gin
        files = ["runs/inspect.gin", "objectives/span_corruption.gin", name]
        final = {b.name: b.value for b in gin_config.read(files, [], SEARCH)}
        flags = [
            f"--gin.{macro}={values[macro]}"
            for macro, value in final.items()
            if value == gin_config.REQUIRED and macro in values
        ]
        gin.clear_config()
        gin_config.check_macros(gin_config.read(files, flags, SEARCH), "inspect")
        gin_config.parse(files, flags, SEARCH)
        gin_config.check_values(inspect)
        data = gin.get_configurable("Data")()
        provided = [task for provider in data.task_providers for task in provider.names]
        # tasks/base.gin takes its tasks from a module of the user's.
        assert (data.mixture_or_task_name in provided) == (name != "tasks/base.gin"), name


def test_every_shipped_recipe_builds_all_that_it_passes(tmp_path):
    from t5x_lite.trainer.train import train

    values = {"C4_DIR": "c4", "TEXT_DIR": "text", "TRAIN_FILES": "a.tsv", "MODEL_DIR": tmp_path}
    for name in shipped("recipes"):
        if "MODEL" not in {b.name for b in gin_config.read([name], [], SEARCH)}:
            continue  # a part of the others, such as recipes/my_model.gin
        files = ["runs/pretrain.gin", name]
        final = {b.name: b.value for b in gin_config.read(files, [], SEARCH)}
        flags = [f"--gin.{n}={values[n]}" for n in values if final.get(n) == gin_config.REQUIRED]
        gin.clear_config()
        gin_config.check_macros(gin_config.read(files, flags, SEARCH), "train")
        gin_config.parse(files, flags, SEARCH)
        gin_config.check_values(train)


def test_every_shipped_model_builds_by_its_shapes():
    from t5x_lite.models import transformer

    for name in shipped("models"):
        gin.clear_config()
        gin_config.parse([name], [], SEARCH)
        gin.parse_config("from t5x_lite.models import transformer")
        config = gin.get_configurable("TransformerConfig")()
        assert transformer.num_parameters(config) > 0, name


def test_a_package_without_the_checkout_finds_its_gin_files():
    assert Path(main.GIN_CONFIGS, "recipes", "tiny_embedded.gin").is_file()
