"""The commands that features declare: help, defaults, examples, and the order of gin files."""

import ast
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import gin
import pytest

from t5x_lite.cli import arguments, gin_config, help_text, main
from t5x_lite.cli.command_table import commands, function_names, load_function
from t5x_lite.command import Group
from t5x_lite.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "gin_configs"
SEARCH = ["", str(CONFIGS)]
# A run without runs/pretrain.gin, with a macro and a parameter that only `train` uses.
PARTS = ("models/tiny.gin", "objectives/span_corruption.gin", "tasks/embedded.gin")
PARTS = (*PARTS, "optimizers/adafactor.gin")
RUN = (
    *("--gin.TRAIN_STEPS=100", "--gin.BATCH_SIZE=32", "--gin.MODEL_DIR=runs/x"),
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 128, 'targets': 32}",
    *("--gin.EVAL_PERIOD=50", "--gin.AnomalyGuard.max_rollbacks=2"),
)


@pytest.fixture(autouse=True)
def _no_bindings_left():
    gin.clear_config()
    yield
    gin.clear_config()


def request(*words):
    return arguments.parse(list(words))


def config(files, settings=()):
    """All that gin has bound after it has read files and settings, as text."""
    gin.clear_config()
    gin_config.parse(list(files), list(settings), SEARCH)
    text = gin.config_str(max_line_length=10**6)
    gin.clear_config()
    return text


def shown_help(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        request(*words, "--help")
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_lists_every_command_once_in_its_group(capsys):
    text = shown_help(capsys)
    for group in get_args(Group):
        block = text.split(f"{group}:\n")[1].split("\n\n")[0]
        listed = [line.split()[0] for line in block.splitlines()]
        assert listed == [c.name for c in commands().values() if c.group == group], group


def test_help_imports_nothing_heavy():
    for words in (["--help"], ["train", "--help"], ["plan", "--help"], ["--version"]):
        program = [sys.executable, "-X", "importtime", "-m", "t5x_lite", *words]
        done = subprocess.run(program, capture_output=True, text=True, check=True)
        assert done.stdout
        imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
        assert not imported & {"numpy", "jax", "tensorflow", "seqio", "gin", "optax"}, words


def test_the_help_of_every_command_has_flags_with_defaults_requirements_examples_and_docs(capsys):
    for command in commands().values():
        text = shown_help(capsys, command.name)
        lines = " ".join(text.split())
        assert command.summary.split()[0] in text
        for flag in (*command.flags, *command.arguments):
            assert re.search(
                rf"{re.escape(flag.help)} (Required|Default: [^ ].*?)\. Sets {flag.sets}\.", lines
            ), (command.name, flag.name)
        shared = [line for line in text.split("flags:")[-1].splitlines() if line.startswith("  --")]
        assert len(shared) >= 4
        assert lines.count("Default:") + lines.count("Required.") >= len(shared), command.name
        assert len(command.examples) >= 2
        examples = text.split("examples:\n")[1].split("\n\n")[0].replace(" \\\n      ", " ")
        assert [line.strip() for line in examples.splitlines()] == list(command.examples)
        for document in command.docs:
            assert document in text
            assert (ROOT / document).is_file(), document
        macros = [name for name in required(command) if "." not in name]
        for name in macros:
            assert re.search(rf"^  {name}  ", text.split("required settings:")[1], re.MULTILINE)


def required(command):
    defaults = help_text.read_defaults(command.default_gin)
    return help_text.required_settings(command, defaults)


def test_required_settings_are_those_without_which_the_command_is_refused():
    for command in commands().values():
        for name in required(command):
            rest = [f"--gin.{other}=1" for other in required(command) if other != name]
            bindings = gin_config.read([command.default_gin], rest, SEARCH)
            with pytest.raises(ConfigError) as raised:
                gin_config.check_macros(bindings, *function_names(command))
            assert re.match(rf"%?(\w+\.)?{name} (must be set|is used)", str(raised.value))
        everything = [f"--gin.{name}=1" for name in required(command)]
        bindings = gin_config.read([command.default_gin], everything, SEARCH)
        gin_config.check_macros(bindings, *function_names(command))


def test_the_defaults_in_help_are_those_that_gin_reads():
    for command in commands().values():
        shown = help_text.read_defaults(command.default_gin)
        bound = {b.name: b.value for b in gin_config.read([command.default_gin], [], SEARCH)}
        assert shown.keys() == bound.keys()
        for name, default in shown.items():
            if "%" in default.text or "@" in default.text:
                assert list(gin_config.references(bound[name])), name
            else:
                assert ast.literal_eval(default.text) == bound[name], name


def test_every_parameter_of_a_command_is_in_its_default_gin_file_or_has_a_default():
    given = {"describe_config", "invocation", "settings"}
    for command in commands().values():
        bound = help_text.read_defaults(command.default_gin)
        name = command.function.rpartition(".")[2]
        for parameter in inspect.signature(load_function(command)).parameters.values():
            if parameter.default is parameter.empty and parameter.name not in given:
                assert any(b.endswith(f".{name}.{parameter.name}") for b in bound), command.name


def test_every_example_of_the_help_works(monkeypatch, tmp_path):
    """Up to the call: gin reads the files, and the function accepts the values."""
    monkeypatch.chdir(tmp_path)
    for command in commands().values():
        for example in command.examples:
            words = shlex.split(example.rpartition("| ")[2])
            assert words[:2] == ["t5x_lite", command.name]
            parsed = request(*words[1:])
            main.check(parsed)
            gin.clear_config()
            gin_config.parse(parsed.files, parsed.settings, parsed.search)
            gin_config.check_values(load_function(command), given=("invocation", "settings"))


def recipes():
    """The shipped recipes, without the files that only others include."""
    paths = sorted(str(p.relative_to(CONFIGS)) for p in (CONFIGS / "recipes").rglob("*.gin"))
    return [p for p in paths if "MODEL" in {b.name for b in gin_config.read([p], [], SEARCH)}]


def test_a_recipe_configures_the_same_with_and_without_the_default_file_before_it():
    fine_tuning = (*PARTS[:3], "runs/finetune.gin")
    for files in (*([recipe] for recipe in recipes()), fine_tuning):
        alone = config(files)
        assert config(["runs/pretrain.gin", *files]) == alone, files


def test_a_default_file_that_is_named_again_changes_nothing():
    """As commands were once called: t5x_lite evaluate ... --gin_file=runs/evaluate.gin."""
    settings = {
        "train": RUN,
        "cache": RUN[3:4],
        "evaluate": (RUN[2], RUN[3], "--gin.STEPS=all"),
        "vocab": ("--gin.CORPUS=text/*", "--gin.VOCABULARY=my.model"),
        "import": ("--gin.SOURCE=downloads/t5", RUN[2]),
        "export": ("--gin.DESTINATION=exported", RUN[2]),
    }
    for name, flags in settings.items():
        files = PARTS if name in ("train", "cache", "evaluate") else ()
        default = commands()[name].default_gin
        again = config([*files, default], flags)
        assert config([default, *files], flags) == again, name
        assert config([default, *files, default], flags) == again, name


def test_the_users_files_and_flags_override_the_default_file(tmp_path):
    mine = tmp_path / "mine.gin"
    mine.write_text("BATCH_SIZE = 3\nSTEPS = 'all'\n")
    files = [f"--gin_file={name}" for name in (*PARTS, mine)]
    final = {b.name: b.value for b in main.check(request("evaluate", *files, *RUN[2:4]))}
    assert (final["BATCH_SIZE"], final["STEPS"], final["SPLIT"]) == (3, "all", "validation")
    flags = (*RUN[2:4], "--batch_size=5", "--steps=(10, 20)")
    final = {b.name: b.value for b in main.check(request("evaluate", *files, *flags))}
    assert (final["BATCH_SIZE"], final["STEPS"], final["SPLIT"]) == (5, (10, 20), "validation")


def test_the_files_and_settings_of_train_work_with_every_command_that_looks_at_a_run():
    files = [f"--gin_file={name}" for name in PARTS]
    more = {"replay": ["--step=3"], "plan": ["--topology=h200:8"]}
    for name in ("train", "doctor", "inspect", "cache", "plan", "evaluate", "replay", "torture"):
        parsed = request(name, *files, *RUN, *more.get(name, []))
        main.check(parsed)
        gin.clear_config()
        gin_config.parse(parsed.files, parsed.settings, parsed.search)
        gin_config.check_values(load_function(parsed.command), given=("invocation", "settings"))


def test_a_flag_sets_text_a_value_or_a_switch(capsys):
    flags = ("--model_dir=2024", "--inputs=-", "--outputs=None", "--mode=fill", "--step=7")
    final = {b.name: b.value for b in main.check(request("infer", *flags, "--prefix=a: 'b'"))}
    names = ("MODEL_DIR", "INPUTS", "OUTPUTS", "MODE", "STEP", "PREFIX")
    assert [final[n] for n in names] == ["2024", "-", "None", "fill", 7, "a: 'b'"]
    plan = ("plan", "--gin_file=recipes/tiny_embedded.gin", "--topology=h200:8")
    switched = {b.name: b.value for b in main.check(request(*plan, "--search", "--explain=False"))}
    assert (switched["plan.search"], switched["plan.explain"]) == (True, False)
    corpus = "--corpus={'a/*': 10, 'b/*': 1}"
    final = {b.name: b.value for b in main.check(request("vocab", corpus, "--output=x.model"))}
    assert final["CORPUS"] == {"a/*": 10, "b/*": 1}
    ordered = request("serve", "--port=1", "--gin.PORT=2", "--model_dir=a", "--port=3").settings
    assert ordered == ("--gin.PORT=1", "--gin.PORT=2", "--gin.MODEL_DIR='a'", "--gin.PORT=3")
    for words in (["infer", "--model_dir"], ["compare", "one"], ["train", "--what=x"], ["sing"]):
        with pytest.raises(SystemExit) as ended:
            request(*words)
        assert ended.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_arguments_without_flags_are_the_runs_to_compare_or_to_report():
    final = {b.name: b.value for b in main.check(request("compare", "runs/1", "2"))}
    assert (final["RUN_A"], final["RUN_B"]) == ("runs/1", "2")
    final = {b.name: b.value for b in main.check(request("report", "runs/1", "2", "--output=x"))}
    assert (final["RUNS"], final["report.output"]) == (["runs/1", "2"], "x")
    with pytest.raises(ConfigError, match="RUNS must be set"):
        main.check(request("report"))


def test_an_unset_value_is_named_with_the_commands_own_flag():
    with pytest.raises(ConfigError, match="SOURCE must be set, for example with --source=DIR"):
        main.check(request("import", "--model_dir=x"))
    with pytest.raises(ConfigError, match=r"replay.step must be set, for example with --step=N"):
        main.check(request("replay", "--gin_file=recipes/tiny_embedded.gin", "--model_dir=x"))


def test_a_command_that_starts_another_hands_over_all_but_its_own_settings():
    words = (
        *("--gin_file=a.gin", "--gin_search_paths=here,there", "--gin_file=b.gin", "--minutes=3"),
        *("--model_dir=runs/t", "--gin.TRAIN_STEPS=9", "--gin.torture.seed=1", "--gin_imports=x"),
    )
    parsed = request("torture", *words)
    assert parsed.arguments == words
    assert parsed.gin_arguments() == [
        *("--gin_file=a.gin", "--gin_file=b.gin", "--gin_search_paths=here,there"),
        *("--gin_imports=x", "--gin.MODEL_DIR='runs/t'", "--gin.TRAIN_STEPS=9"),
    ]
    assert parsed.search_arguments() == ["--gin_search_paths=here,there", "--gin_imports=x"]


def test_what_a_command_builds_on_is_required_before_anything_is_imported():
    for name in ("replay", "torture"):
        flags = [f"--gin_file={file}" for file in PARTS[1:]]
        with pytest.raises(ConfigError, match=r"%MODEL is used .* but never set"):
            main.check(request(name, *flags, *RUN, *(["--step=1"] if name == "replay" else [])))


def test_a_setting_may_be_overridden_directly_but_its_macro_not_set_after_that(tmp_path):
    (tmp_path / "x.gin").write_text("f.x = %X\nX = 1\n")
    search = [str(tmp_path)]
    gin_config.check_macros(gin_config.read(["x.gin"], ["--gin.f.x=2"], search))
    with pytest.raises(ConfigError, match=r"X is set .* but nothing uses %X"):
        gin_config.check_macros(gin_config.read(["x.gin"], ["--gin.f.x=2", "--gin.X=3"], search))


def test_a_default_file_that_lacks_a_flags_setting_is_an_error_of_the_command(tmp_path):
    (tmp_path / "x.gin").write_text("f.x = 1  # why\n")
    defaults = help_text.read_defaults("x.gin", tmp_path)
    assert help_text.default_of("f.x", defaults) == ("1", "why")
    with pytest.raises(LookupError, match=r"does not bind f\.y"):
        help_text.flag_help("Y.", "f.y", defaults)
