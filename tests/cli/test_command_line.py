"""What a user types and what comes back, above all when it is wrong: one line, exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite.cli import gin_config, main
from t5x_lite.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = str(ROOT / "gin_configs")
RECIPE = "--gin_file=recipes/tiny_embedded.gin"


@pytest.fixture
def command(tmp_path, capsys, monkeypatch):
    """Run the command line in this process with an empty gin: command("train", ...) -> stderr."""
    import gin

    def run(*arguments):
        gin.clear_config()
        with pytest.raises(SystemExit) as ended:
            main.main(arguments)
        assert ended.value.code == 2
        text = capsys.readouterr().err.strip()
        assert "\n" not in text
        assert "Traceback" not in text
        return text

    monkeypatch.chdir(tmp_path)
    yield run
    gin.clear_config()


@pytest.fixture
def model_dir(tmp_path):
    return f"--gin.MODEL_DIR={tmp_path}/run"


def test_an_unknown_file_is_reported_with_the_paths_tried_and_nothing_imported(tmp_path):
    command = ["-X", "importtime", "-m", "t5x_lite", "train", "--gin_file=no/such.gin"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "| numpy\n" not in done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("t5x_lite train: gin file 'no/such.gin' not found; looked in ")
    assert CONFIGS in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "a"], "t5x_lite compare: the following arguments are required: RUN_B"),
        (["vocab", "--vocab_size"], "t5x_lite vocab: argument --vocab_size: expected one argument"),
        (["traim"], "invalid choice: 'traim' (choose from 'c4', 'cache', "),
        (["train", "--gin_fil=x"], "unrecognized arguments: --gin_fil=x"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line_that_names_the_help(command, words, said):
    text = command(*words)
    assert said in text
    assert text.endswith("--help")


def test_an_unknown_include_is_reported_with_the_line_that_names_it(command, tmp_path):
    (tmp_path / "a.gin").write_text('# one\ninclude "gone.gin"\n')
    said = command("train", "--gin_file=a.gin")
    assert "gin file 'gone.gin' not found" in said
    assert "named by a.gin:2" in said


def test_files_are_found_in_the_working_directory_before_the_search_paths(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "x.gin").write_text("A = 1\n")
    (tmp_path / "there" / "x.gin").write_text("A = 2\n")
    (tmp_path / "there" / "y.gin").write_text("B = 3\n")
    monkeypatch.chdir(tmp_path)
    search = ["", str(tmp_path / "there"), CONFIGS]
    found = gin_config.read(["x.gin", "y.gin"], ["--gin.C=text"], search)
    assert [(b.name, b.value) for b in found] == [("A", 1), ("B", 3), ("C", "text")]


def test_a_misspelt_macro_is_refused_with_the_nearest_name(command, model_dir):
    said = command("train", RECIPE, model_dir, "--gin.TRAIN_STEP=5")
    assert "TRAIN_STEP is set (flag --gin.TRAIN_STEP=5) but nothing uses %TRAIN_STEP" in said
    assert "did you mean TRAIN_STEPS" in said


def test_a_macro_that_is_used_but_never_set_is_refused(command, tmp_path, model_dir):
    (tmp_path / "a.gin").write_text('include "recipes/tiny_embedded.gin"\nBATCH_SIZE = %BATHC\n')
    said = command("train", "--gin_file=a.gin", model_dir)
    assert "%BATHC is used (a.gin:2) but never set" in said


def test_an_unset_required_value_is_named_with_the_line_that_requires_it(command):
    said = command("train", RECIPE)
    assert said.startswith(
        "t5x_lite train: MODEL_DIR must be set, for example with --model_dir=DIR"
    )
    assert "runs/pretrain.gin:" in said


def test_a_misspelt_parameter_is_refused_with_the_nearest_name(command, model_dir):
    said = command("train", RECIPE, model_dir, "--gin.TransformerConfig.droput_rate=0.1")
    assert "TransformerConfig has no parameter 'droput_rate'; did you mean dropout_rate" in said
    assert "(flag --gin.TransformerConfig.droput_rate=0.1)" in said


def test_a_misspelt_parameter_in_a_file_is_reported_with_file_and_line(
    command, tmp_path, model_dir
):
    (tmp_path / "a.gin").write_text(
        'include "recipes/tiny_embedded.gin"\n\nTransformerConfig.emb_dims = 8\n'
    )
    said = command("train", "--gin_file=a.gin", model_dir)
    assert "no parameter 'emb_dims'; did you mean emb_dim" in said
    assert "a.gin:3" in said


def test_a_misspelt_function_is_refused_with_the_nearest_name(command, model_dir):
    said = command("train", RECIPE, model_dir, "--gin.TransformConfig.emb_dim=8")
    assert "nothing is called 'TransformConfig'" in said
    assert "did you mean TransformerConfig" in said


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--gin.TransformerConfig.emb_dim=wide",
            "TransformerConfig.emb_dim is 'wide'; expected int",
        ),
        ("--gin.BATCH_SIZE=1.5", "train.batch_size is 1.5; expected int"),
        ("--gin.MESH=8", "train.mesh is 8; expected"),
        ("--gin.MODEL=3", "train.model is 3; expected TransformerConfig"),
        ("--gin.MODEL=@step.Loss()", "expected TransformerConfig"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_type_wanted(
    flag, message, command, tmp_path, model_dir
):
    (tmp_path / "a.gin").write_text(
        'from __gin__ import dynamic_registration\ninclude "recipes/tiny_embedded.gin"\n'
        "from t5x_lite.training import step\n" + ("MODEL = @step.Loss()\n" if "@" in flag else "")
    )
    flags = [] if "@" in flag else [flag]
    said = command("train", "--gin_file=a.gin", model_dir, *flags)
    assert message in said
    assert (flag if flags else "a.gin:4") in said


def test_a_flag_without_a_value_is_refused(command):
    said = command("train", RECIPE, "--gin.BATCH_SIZE")
    assert "flag '--gin.BATCH_SIZE' is not of the form --gin.NAME=VALUE" in said


def test_broken_gin_syntax_is_reported_with_file_and_line(command, tmp_path):
    (tmp_path / "a.gin").write_text("A = 1\nB = = 2\n")
    assert "a.gin:2" in command("train", "--gin_file=a.gin")


def test_a_value_out_of_range_names_the_parameter_and_who_set_it(command, model_dir):
    flag = "--gin.TransformerConfig.dropout_rate=1.5"
    said = command("train", RECIPE, model_dir, flag)
    assert "TransformerConfig.dropout_rate must be in [0, 1); got 1.5" in said
    assert f"is set by flag {flag}" in said


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--gin.MESH={'data': 3}", "needs 3 devices, but 8 are visible"),
        ("--gin.BATCH_SIZE=30", "a batch of 30 rows does not divide into the 4 parts"),
        ("--gin.MIXTURE_OR_TASK_NAME=embedded_mx", "embedded_mix"),
    ],
)
def test_what_the_library_refuses_is_traced_to_the_flag_that_set_it(
    flag, message, command, model_dir
):
    said = command("train", RECIPE, model_dir, flag)
    assert message in said
    assert f"is set by flag {flag}" in said


def test_a_parameter_set_through_a_macro_is_traced_to_the_macro(tmp_path):
    bindings = [
        gin_config.Binding(
            "train.batch_size", gin_config.Reference("BATCH_SIZE", True), "run.gin:3"
        ),
        gin_config.Binding("BATCH_SIZE", 3, "flag --gin.BATCH_SIZE=3"),
    ]
    assert list(gin_config.where_set(["train.batch_size"], bindings)) == [
        "train.batch_size is set by run.gin:3",
        "BATCH_SIZE is set by flag --gin.BATCH_SIZE=3",
    ]


def test_values_of_flags_need_no_quotes():
    texts = [
        gin_config.flag_to_text(f"--gin.{flag}")
        for flag in (
            *("A=/tmp/some dir", "A=3e-4", "A='x'", "A=None", "A=%OTHER", "f.x=@g()", "A={'a': 1}"),
            "A=it's $HOME",
        )
    ]
    assert texts == [
        *("A = '/tmp/some dir'", "A = 3e-4", "A = 'x'", "A = None", "A = %OTHER", "f.x = @g()"),
        *("A = {'a': 1}", 'A = "it\'s $HOME"'),
    ]


def test_a_users_file_is_inspected_without_a_line_of_code(tmp_path, capsys, monkeypatch):
    import gin

    (tmp_path / "train.tsv").write_text("inputs\ttargets\n1 + 1\t2\n")
    (tmp_path / "bytes.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom t5x_lite.data import data_config\n"
        "from t5x_lite.tokenizers import vocabularies\n"
        "data_config.Data.vocabulary = @vocabularies.ByteVocabulary()\n"
    )
    monkeypatch.chdir(tmp_path)
    gin.clear_config()
    try:
        names = ("objectives/span_corruption", "tasks/my_pairs")
        files = [f"--gin_file={name}.gin" for name in (*names, "bytes")]
        main.main(["inspect", *files, "--gin.TRAIN_FILES=train.tsv", "--gin.DATA_DIR=data"])
    finally:
        gin.clear_config()
    assert "1 + 1" in capsys.readouterr().out


TINY = (
    f"--gin_file={ROOT}/tests/gin_configs/models/t5_1_1/tiny.gin",
    "--gin_file=optimizers/adafactor.gin",
)


def test_a_plan_needs_no_more_than_a_model_an_optimizer_and_a_batch(tmp_path, capsys, monkeypatch):
    import gin

    monkeypatch.chdir(tmp_path)
    gin.clear_config()
    try:
        main.main(["plan", *TINY, "--topology=h200:8", "--gin.BATCH_SIZE=8", "--output=here"])
    finally:
        gin.clear_config()
    assert "# Plan of a training step on h200:8" in capsys.readouterr().out
    assert sorted(os.listdir("here")) == ["plan.json", "plan.md"]


def test_a_recipe_can_be_planned_without_what_only_training_requires(tmp_path, capsys, monkeypatch):
    import gin

    monkeypatch.chdir(tmp_path)
    gin.clear_config()
    try:
        main.main(["plan", RECIPE, "--topology=a100:8"])
    finally:
        gin.clear_config()
    said = capsys.readouterr().out
    assert "32 rows of 128/32 tokens" in said
    assert "mesh: data 2, fsdp 2, tensor 2" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gin.BATCH_SIZE=8", "--topology=v5x:4x4"], "names no chip that is known"),
        (["--gin.BATCH_SIZE=8", "--topology=v5e:4x5"], "the nearest are v5e:4x4"),
        (["--topology=h200:8"], "BATCH_SIZE must be set"),
        (["--gin.BATCH_SIZE=8"], "plan.topology_name must be set"),
        (["--gin.BATCH_SIZE=8", "--topology=h200:8", "--mode=sing"], "plan.mode is 'sing'"),
        (["--gin.BATCH_SIZE=8", "--topology=h200:8", "--slices=none"], "plan.slices is 'none'"),
        (
            ["--gin.BATCH_SIZE=8", "--topology=h200:8", "--search"],
            "a search needs the TPU compiler",
        ),
        (["--gin.BATCH_SIZE=8", "--topology=h200:8", "--explain"], "cannot be explained"),
    ],
)
def test_a_plan_that_cannot_be_made_is_one_clear_line(flags, message, command):
    assert message in command("plan", *TINY, *flags)


def test_only_what_a_command_uses_must_be_set(tmp_path):
    (tmp_path / "two.gin").write_text(
        "A = %gin.REQUIRED\nB = %gin.REQUIRED\nfirst.x = %A\nsecond.y = %B\n"
    )
    bindings = gin_config.read(["two.gin"], ["--gin.A=1"], [str(tmp_path)])
    gin_config.check_macros(bindings, "first")
    with pytest.raises(ConfigError, match="B must be set"):
        gin_config.check_macros(bindings, "second")
    with pytest.raises(ConfigError, match="B must be set"):
        gin_config.check_macros(bindings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import os\nMODEL = 1\n", "bad.gin:1 imports os; --gin_imports allows t5x_lite"),
        ("from t5x_lite_evil import x\n", "imports t5x_lite_evil.x"),
        (
            "from __gin__ import dynamic_registration\n"
            "from t5x_lite.checkpoints import run_directory\n"
            "MODEL = @run_directory.subprocess.run()\n",
            "is written in subprocess; --gin_imports allows t5x_lite",
        ),
    ],
)
def test_gin_files_may_be_held_to_packages(text, said, command, tmp_path, model_dir):
    (tmp_path / "bad.gin").write_text(text)
    flags = (RECIPE, "--gin_file=bad.gin", model_dir, "--gin_imports=t5x_lite")
    assert said in command("train", *flags)
    assert not (tmp_path / "run").exists()


def test_the_shipped_recipe_needs_no_other_package(command, model_dir):
    flags = (RECIPE, model_dir, "--gin_imports=t5x_lite", "--gin.BATCH_SIZE=0")
    assert "BATCH_SIZE" in command("train", *flags)
