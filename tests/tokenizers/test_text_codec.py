"""A run or a Hugging Face directory as a text model: `load`, `infer`, `export`."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import t5x_lite
from t5x_lite.decoding.generation import Generation
from t5x_lite.errors import ConfigError
from t5x_lite.import_export.saved_model import export_saved_model
from t5x_lite.tokenizers.vocabularies import ByteVocabulary

WORDS = [f"{a}{b}" for a in "bcdfg" for b in ("an", "et", "ol", "um")]


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_run_directory_keeps_its_vocabulary(run_directory, pieces):
    model = t5x_lite.load(run_directory())
    assert Path(model.vocabulary.path).parent == run_directory()
    text = "ban fol <extra_id_1> gum"
    ids = model.encode(text).ids
    assert ids[-1] == 1
    assert model.vocabulary.sentinels.first - 1 in ids
    assert model.decode(ids) == text


def test_a_few_lines_generate_score_embed_and_fill(run_directory):
    model = t5x_lite.load(run_directory(), batch_size=2)
    texts = ["ban", "det fol gum", "con"]
    outputs = model.generate(texts, max_length=5, num_beams=2, num_returns=2)
    assert [len(found) for found in outputs] == [2, 2, 2]
    assert model.generate("det fol gum", max_length=5, num_beams=2)[0].text == outputs[1][0].text
    scores = model.score(texts, ["gum", "ban", "fol det"])
    assert all(score < 0 for score in scores)
    assert model.score("det fol gum", "ban") == pytest.approx(scores[1], rel=1e-4)
    vectors = model.embed(texts)
    assert vectors.shape == (3, 16)
    np.testing.assert_allclose(model.embed("con"), vectors[2], rtol=1e-4, atol=1e-5)
    assert model.generate([]) == []
    assert model.embed([]).shape == (0, 16)
    with pytest.raises(ValueError, match="1 inputs and 2 targets; expected equal numbers"):
        model.score("ban", ["gum", "det"])
    filled = model.fill("ban <extra_id_0> gum", max_length=4)
    assert len(filled.spans) == 1


def test_what_was_generated_for_a_sentinel_stands_in_its_place(run_directory):
    model = t5x_lite.load(run_directory())
    first = model.vocabulary.sentinels.first
    said = {n: model.vocabulary.encode(text) for n, text in ((0, "fol gum"), (1, "det"))}
    tokens = np.array([first, *said[0], first - 1, *said[1], first - 2, 1, 0, 0])
    filled = model.fill_sentinels("ban <extra_id_0> con <extra_id_1>.", tokens, -1.0)
    assert filled.text == "ban fol gum con det."
    assert filled.spans == ["fol gum", "det"]


def test_inputs_too_long_lose_their_end_and_keep_their_eos(run_directory):
    model = t5x_lite.load(run_directory(), max_input_length=4)
    ids, truncated = model.encode("ban fol gum det con ban fol")
    assert truncated
    assert len(ids) == 4
    assert ids[-1] == 1


def test_infer_keeps_lines_and_their_order(run_directory, command, capsys):
    texts = ["ban", "", "det fol " * 20, "gum con", "fol"]
    Path("in.txt").write_text("\n".join(texts) + "\n")
    flags = (
        f"--model_dir={run_directory()}",
        "--gin.Generation.max_length=4",
        "--gin.BATCH_SIZE=2",
    )
    command("infer", *flags, "--inputs=in.txt", "--outputs=out.jsonl", "--gin.MAX_INPUT_LENGTH=8")
    said = capsys.readouterr().out
    assert "5/5 lines" in said
    assert "truncated 1 input longer than 8 tokens (MAX_INPUT_LENGTH)" in said
    records = read("out.jsonl")
    assert [record["inputs"] for record in records] == texts
    assert [record.get("truncated", False) for record in records] == [0, 0, 1, 0, 0]
    model = t5x_lite.load(run_directory(), max_input_length=8)
    for record, text in zip(records, texts, strict=True):
        assert record["output"] == model.generate(text, max_length=4)[0].text
    command("infer", *flags, "--inputs=in.txt", "--outputs=out.jsonl", "--gin.MAX_INPUT_LENGTH=8")
    assert "out.jsonl is complete, 5 lines" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command("infer", *flags, "--inputs=in.txt", "--outputs=out.jsonl", "--prefix=x")
    assert "has results of other settings (max_input_length 8 -> 512" in capsys.readouterr().err


def test_infer_does_not_mix_the_texts_of_two_checkpoints(run_directory, command, tmp_path, capsys):
    """A run that saved once more between two starts would give the rest of the lines."""
    run = tmp_path / "run"
    shutil.copytree(run_directory(), run)
    Path("in.txt").write_text("ban\n")
    flags = (f"--model_dir={run}", "--inputs=in.txt", "--outputs=out.jsonl")
    command("infer", *flags, "--gin.Generation.max_length=4")
    shutil.copytree(run / "checkpoints" / "3", run / "checkpoints" / "4")
    with pytest.raises(SystemExit):
        command("infer", *flags, "--gin.Generation.max_length=4")
    assert (
        "has results of other settings (step 3 -> 4); use another OUTPUTS"
        in capsys.readouterr().err
    )
    command("infer", *flags, "--gin.Generation.max_length=4", "--gin.STEP=3")
    assert "out.jsonl is complete" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["score", "embed", "fill"])
def test_infer_takes_json_lines_and_keeps_their_fields(what, run_directory, command):
    given = [
        {"id": i, "inputs": f"ban <extra_id_0> {w}", "targets": w} for i, w in enumerate(WORDS)
    ]
    Path("in.jsonl").write_text("\n".join(map(json.dumps, given)))
    flags = (f"--model_dir={run_directory()}", "--gin.Generation.max_length=4", f"--mode={what}")
    command("infer", *flags, "--inputs=in.jsonl", "--outputs=out.jsonl")
    records = read("out.jsonl")
    new = {
        "score": {"score", "target_tokens"},
        "embed": {"embedding"},
        "fill": {"output", "spans", "score"},
    }
    for record, before in zip(records, given, strict=True):
        assert {name: record[name] for name in before} == before
        assert record.keys() - before.keys() == new[what]


def test_infer_goes_on_where_it_was_killed(run_directory, tmp_path):
    """Killed by signal 9 three times, in the middle of its work: the same file as in one go."""
    (tmp_path / "in.txt").write_text("\n".join(f"{a} {b}" for a in WORDS for b in WORDS[:6]))
    arguments = (
        *(sys.executable, "-m", "t5x_lite", "infer", f"--model_dir={run_directory()}"),
        *(f"--inputs={tmp_path}/in.txt", "--gin.BATCH_SIZE=2", "--gin.Generation.max_length=6"),
        "--gin.Generation.temperature=1.0",
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    for _ in range(2):
        process = subprocess.Popen(
            [*arguments, f"--outputs={out}"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for line in process.stdout:
            if "lines |" in line:
                process.send_signal(signal.SIGKILL)
                break
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        with open(partial, "ab") as file:
            file.write(b'{"inputs": "half a li')
    subprocess.run([*arguments, f"--outputs={out}"], env=environment, check=True)
    subprocess.run([*arguments, f"--outputs={tmp_path}/once.jsonl"], env=environment, check=True)
    assert not partial.exists()
    assert out.read_bytes() == (tmp_path / "once.jsonl").read_bytes()
    assert [r["inputs"] for r in read(out)] == (tmp_path / "in.txt").read_text().split("\n")


@pytest.mark.parametrize(
    ("content", "flags", "said"),
    [
        ("", {}, "in.jsonl is empty; expected at least one line"),
        ('{"inputs": "a"}\n{"inputs": ', {}, "in.jsonl, line 2: no JSON"),
        ('{"text": "a"}', {}, "line 1: no text field (not a JSON object with a string 'inputs')"),
        (
            '{"inputs": "a"}',
            {"mode": "score"},
            "line 1: no text field (not a JSON object with a string 'targets')",
        ),
        ('{"inputs": "a"}', {"mode": "guess"}, "mode is 'guess'; expected 'generate' or"),
        ('{"inputs": "a"}', {"gin.BATCH_SIZE": "0"}, "batch_size is 0; expected 1 or more"),
        ('{"inputs": "a"}', {"outputs": "in.jsonl/out"}, "in.jsonl/out cannot be written"),
        ('{"inputs": "a"}', {"inputs": "gone"}, "gone cannot be read: No such file"),
        ('{"inputs": "a"}', {"model_dir": "gone"}, "gone has no model"),
        ('{"inputs": "a"}', {"gin.STEP": "7"}, "no checkpoint of step 7; the steps there: 3"),
    ],
)
def test_what_infer_cannot_use_is_one_line(content, flags, said, run_directory, command, capsys):
    Path("in.jsonl").write_text(content)
    given = {"model_dir": run_directory(), "inputs": "in.jsonl", "outputs": "out.jsonl", **flags}
    with pytest.raises(SystemExit) as ended:
        command("infer", *(f"--{name}={value}" for name, value in given.items()))
    assert ended.value.code == 2
    text = capsys.readouterr().err.strip()
    assert said in text
    assert "\n" not in text
    assert not Path("out.jsonl").exists()


def test_a_directory_without_a_vocabulary_is_said(run_directory, tmp_path):
    (tmp_path / "model.json").write_text((run_directory() / "model.json").read_text())
    with pytest.raises(ConfigError, match="has no vocabulary") as error:
        t5x_lite.load(tmp_path)
    assert "VOCABULARY" in error.value.names
    with pytest.raises(
        ConfigError, match=r"has 259 ids; the embedding of the model in .* has 128 rows"
    ):
        t5x_lite.load(run_directory(), vocabulary=ByteVocabulary())


def test_an_export_with_its_tokenizer_is_the_same_text_model(run_directory, command):
    command(
        *("export", f"--gin.MODEL_DIR={run_directory()}"),
        "--gin.DESTINATION=out",
    )
    ours, theirs = t5x_lite.load(run_directory()), t5x_lite.load("out")
    text = "ban <extra_id_0> gum"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.generate(text, max_length=6) == theirs.generate(text, max_length=6)
    assert json.loads(Path("out/tokenizer_config.json").read_text())["extra_ids"] == 20


@pytest.mark.parametrize("name", ["t5_1_1/tiny", "gpt2/tiny"])
def test_stablehlo_runs_without_this_package(name, run_directory, command, tmp_path):
    directory = run_directory(name)
    command(
        *("export", f"--gin.MODEL_DIR={directory}"),
        *("--gin.DESTINATION=out", "--gin.FORM=stablehlo", "--gin.Generation.num_beams=2"),
        *("--gin.Generation.max_length=5", "--gin.export_weights.input_lengths=(16,)"),
    )
    text = "ban <extra_id_0> gum"
    code = (
        "import runpy, sys; sys.modules['t5x_lite'] = sys.modules['flax'] = None; "
        f"sys.argv = ['run.py', {text!r}]; runpy.run_path('out/run.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    expected = t5x_lite.load(directory).generate(text, max_length=5, num_beams=2)
    record = json.loads(done.stdout)
    assert record["outputs"] == [output.text for output in expected]
    np.testing.assert_allclose(record["scores"], [o.score for o in expected], rtol=1e-4)


def test_a_saved_model_generates_what_the_model_generates(run_directory, command, tmp_path):
    import tensorflow as tf

    directory = run_directory("t5_1_1/tiny")
    command(
        *("export", f"--gin.MODEL_DIR={directory}"),
        *("--gin.DESTINATION=saved", "--gin.FORM=saved_model", "--gin.Generation.num_beams=1"),
        *("--gin.Generation.max_length=5", "--gin.export_weights.input_lengths=(16,)"),
    )
    model = t5x_lite.load(directory)
    ids = model.encode("ban <extra_id_0> gum").ids
    inputs = np.zeros((4, 16), np.int32)
    inputs[:, : len(ids)] = ids
    read = tf.saved_model.load(str(tmp_path / "saved")).signatures["length_16"](
        inputs=tf.constant(inputs),
        numbers=tf.constant(np.arange(4, dtype=np.uint32)),
        active=tf.constant([True] * 4),
    )
    expected = model.generate("ban <extra_id_0> gum", max_length=5, num_beams=1)
    found = [model.vocabulary.decode(row.tolist()) for row in read["tokens"].numpy()[0]]
    assert found == [output.text for output in expected]
    np.testing.assert_allclose(read["scores"][0], [o.score for o in expected], rtol=1e-4)


def test_what_tensorflow_cannot_run_is_not_left_behind(run_directory, tmp_path, monkeypatch):
    import tensorflow as tf

    def broken(path):
        raise tf.errors.NotFoundError(None, None, "no such operation\nat all")

    monkeypatch.setattr(tf.saved_model, "load", broken)
    with pytest.raises(ConfigError, match=r"cannot run a program of jax .*: no such operation;"):
        export_saved_model(
            model_dir=str(run_directory("t5_1_1/tiny")),
            destination=str(tmp_path / "saved"),
            generation=Generation(max_length=4),
            input_lengths=(16,),
        )
    assert not (tmp_path / "saved").exists()


@pytest.mark.parity
@pytest.mark.parametrize("beams", [1, 4])
def test_transformers_generates_the_same_texts_from_an_export(beams, run_directory, command):
    """Where its rules coincide with T5's: no text ends before the length, and no penalty.

    At the last token transformers lets unfinished texts compete with finished ones, T5 does not.
    """
    import torch
    import transformers

    command(
        *("export", f"--gin.MODEL_DIR={run_directory()}"),
        "--gin.DESTINATION=out",
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained("out")
    ours = t5x_lite.load(run_directory())
    texts = ["ban <extra_id_0> gum", "det", "fol con ban det gum"]
    for text in texts:
        asked = tokenizer(text, return_tensors="pt")
        assert asked.input_ids[0].tolist() == ours.encode(text).ids
        with torch.no_grad():
            found = theirs.generate(
                **asked,
                max_new_tokens=8,
                min_new_tokens=8,
                num_beams=beams,
                num_return_sequences=beams,
                length_penalty=0.0,
                do_sample=False,
            )
        generation = Generation(
            max_length=8, min_length=8, num_beams=beams, num_returns=beams, length_penalty=0.0
        )
        ((tokens, _),) = ours.generate_ids([{"inputs": ours.encode(text).ids}], generation)
        assert 1 not in tokens
        assert tokens.tolist() == found[:, 1:].tolist()
        best = [t for t in tokens[0].tolist() if 2 < t <= ours.vocabulary.sentinels.first - 20]
        assert tokenizer.decode(best).split() == ours.vocabulary.decode(best).split()
