"""Hugging Face directories with their own tokenizers: the same ids and texts as in transformers."""

import json
import subprocess
import sys
from pathlib import Path

import gin
import numpy as np
import pytest

import t5x_lite
from t5x_lite.cli import main
from t5x_lite.errors import ConfigError

pytestmark = pytest.mark.parity
REFERENCES = Path(__file__).resolve().parents[1] / "models" / "references"
TEXT = ["ban det fol!", "gum con", "det det ban, fol gum con ban"]
SPECIAL = {
    "gpt2": {"eos_token": "<|endoftext|>"},
    "bart": {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "mask_token": "<mask>"},
    "llama": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "bert": {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")},
}
CLASS = {"gpt2": "GPT2Tokenizer", "bart": "BartTokenizer", "bert": "BertTokenizer"}


def tokenizer_of(family):
    """A small tokenizer of a family's kind, trained on a few words."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer, WordPieceTrainer

    special = list(SPECIAL[family].values())
    if family == "bart":
        special.insert(3, "<unk>")
    if family == "bert":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.train_from_iterator(TEXT, WordPieceTrainer(vocab_size=60, special_tokens=special))
        made.decoder = decoders.WordPiece()
        ends = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=ends
        )
        return made
    unknown = "<unk>" if family == "llama" else None
    made = Tokenizer(models.BPE(unk_token=unknown))
    if family == "llama":
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    if family == "gpt2":
        special = []  # "!" is its token 0, as in the original
    made.train_from_iterator(TEXT, BpeTrainer(vocab_size=50, special_tokens=special))
    if family == "gpt2":
        made.add_special_tokens(["<|endoftext|>"])
        assert made.token_to_id("!") == 0
    if family == "bart":
        made.post_processor = processors.RobertaProcessing(
            ("</s>", made.token_to_id("</s>")), ("<s>", made.token_to_id("<s>"))
        )
    return made


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A function that gives a Hugging Face directory: untrained weights, and a tokenizer."""
    import torch
    import transformers

    made = {}

    def make(family):
        if family in made:
            return made[family]
        place = tmp_path_factory.mktemp(family)
        tokenizer = tokenizer_of(family)
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, **SPECIAL[family], add_prefix_space=False
        )
        fast.save_pretrained(place)
        fields = json.loads((REFERENCES / family / "config.json").read_text())
        fields |= {"vocab_size": 64}
        for name in ("bos", "eos", "pad", "decoder_start"):
            fields.pop(f"{name}_token_id", None)
        fields |= {"eos_token_id": fast.eos_token_id, "bos_token_id": fast.bos_token_id}
        if family == "bart":
            fields |= {"decoder_start_token_id": fast.eos_token_id, "forced_eos_token_id": None}
            fields |= {"pad_token_id": fast.pad_token_id}
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(**fields)
        kinds = {"bart": "Seq2SeqLM", "bert": "MaskedLM"}
        model = getattr(transformers, f"AutoModelFor{kinds.get(family, 'CausalLM')}")
        model = model.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:  # and norms stay as they are
                    weight.copy_(torch.randn_like(weight) * 0.5)
        model.save_pretrained(place)
        made[family] = place
        return place

    return make


def theirs(place, texts, tokens):
    """What transformers generates greedily from a directory, one text at a time."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    fields = json.loads((place / "config.json").read_text())
    kind = "Seq2SeqLM" if fields.get("is_encoder_decoder") else "CausalLM"
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(place).eval()
    found = []
    for text in texts:
        asked = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            (ids,) = model.generate(
                **asked,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id or 0,
            )
        ids = ids if kind == "Seq2SeqLM" else ids[asked.input_ids.shape[1] :]
        found.append(tokenizer.decode(ids, skip_special_tokens=True))
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama", "bart"])
def test_a_directory_generates_what_transformers_generates(family, directory):
    """GPT-2's token 0, "!", stands at the end of a prompt; BART's texts begin with its token 0."""
    place = directory(family)
    model = t5x_lite.load(place, batch_size=2)
    texts = [*TEXT, "ban det fol!!"]
    ours = [found[0].text for found in model.generate(texts, max_length=6)]
    assert ours == theirs(place, texts, 6)
    assert len(set(ours)) > 1


@pytest.mark.parametrize("family", ["gpt2", "llama", "bart"])
def test_scores_are_the_log_likelihoods_of_the_same_ids(family, directory):
    import torch
    import transformers

    place = directory(family)
    model = t5x_lite.load(place)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    text, target = "ban det!", " fol gum!"
    source = tokenizer(text).input_ids
    if family == "bart":
        network = transformers.AutoModelForSeq2SeqLM.from_pretrained(place).eval()
        labels = tokenizer(target).input_ids
        with torch.no_grad():
            logits = network(input_ids=torch.tensor([source]), labels=torch.tensor([labels])).logits
    else:
        network = transformers.AutoModelForCausalLM.from_pretrained(place).eval()
        labels = [*tokenizer(target, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            logits = network(input_ids=torch.tensor([source + labels])).logits
        logits = logits[:, len(source) - 1 : -1]
    expected = torch.log_softmax(logits[0], dim=-1)[torch.arange(len(labels)), labels].sum()
    assert model.score(text, target) == pytest.approx(float(expected), rel=1e-4)


def test_berts_embedding_is_the_mean_of_its_outputs(directory):
    import torch
    import transformers

    place = directory("bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    network = transformers.AutoModel.from_pretrained(place).eval()
    vectors = t5x_lite.load(place).embed(TEXT)
    for text, vector in zip(TEXT, vectors, strict=True):
        with torch.no_grad():
            asked = tokenizer(text, return_tensors="pt")
            expected = network(**asked).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(vector, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_an_import_keeps_the_tokenizer_and_exports_take_it_along(directory, tmp_path, monkeypatch):
    """A run directory, a Hugging Face directory again, and a program that runs with tokenizers."""
    place = directory("gpt2")
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        gin.clear_config()
        main.main(list(arguments))
        gin.clear_config()

    command("import", f"--gin.SOURCE={place}", "--gin.MODEL_DIR=run")
    flags = ("export", "--gin.MODEL_DIR=run")
    command(*flags, "--gin.DESTINATION=out")
    command(
        *(*flags, "--gin.DESTINATION=program", "--gin.FORM=stablehlo"),
        *("--gin.Generation.max_length=6", "--gin.export_weights.input_lengths=(16,)"),
    )
    expected = theirs(place, TEXT, 6)
    for source in ("run", "out"):
        found = t5x_lite.load(source).generate(TEXT, max_length=6)
        assert [texts[0].text for texts in found] == expected
    assert theirs(Path("out"), TEXT, 6) == expected
    done = subprocess.run(
        [sys.executable, "program/run.py", *TEXT], capture_output=True, text=True, check=True
    )
    said = [json.loads(line)["outputs"][0] for line in done.stdout.splitlines()]
    assert said == expected


def test_inputs_too_long_keep_their_special_tokens(directory):
    model = t5x_lite.load(directory("bart"), max_input_length=6)
    ids, truncated = model.encode(TEXT[2])
    assert truncated
    assert len(ids) == 6
    assert (ids[0], ids[-1]) == (0, model.special.end)


def test_a_vocabulary_without_sentinels_fills_nothing(directory, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("ban <extra_id_0>")
    flags = (f"--model_dir={directory('bart')}", f"--inputs={tmp_path}/in.txt", "--mode=fill")
    gin.clear_config()
    with pytest.raises(SystemExit):
        main.main(["infer", *flags, f"--outputs={tmp_path}/out"])
    gin.clear_config()
    assert "has no sentinels (<extra_id_0> ...)" in capsys.readouterr().err


def test_without_transformers_what_is_missing_is_said(directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 't5x_lite\[huggingface\]'"):
        t5x_lite.load(directory("gpt2"))
