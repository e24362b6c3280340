"""Write what Hugging Face's PyTorch models compute for tiny random models of every family.

Each folder beside this file then holds what transformers itself saved (config.json and
model.safetensors) and expected.npz: what went in, and what came out. The tests that read them need
neither torch nor transformers. To make them again, from the root:

    python3.11 -m venv /tmp/hf && /tmp/hf/bin/pip install torch==2.13.0 transformers==5.23.0
    /tmp/hf/bin/python tests/models/references/make_references.py

Made with torch 2.13.0, transformers 5.23.0, numpy 2.4.6, safetensors 0.8.0 on a CPU, float32.
Keys of expected.npz, arrays of [batch, length]:

    inputs, inputs_real              token ids, and 1 where they are not padding
    targets_in, targets_real         what a decoder reads, likewise
    labels, loss, gradients/<name>   of T5: the mean loss of the real labels, and its gradient
    token_types, next_sentence       of BERT
    logits                           [batch, length, vocab]
    logits_dropping                  of Switch: with three places an expert in each row
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

VOCAB = 60
T5 = dict(vocab_size=VOCAB, d_model=12, d_kv=5, num_heads=3, d_ff=20, num_layers=2)
T5 |= dict(num_decoder_layers=3, dropout_rate=0.0, decoder_start_token_id=0)
BERT = dict(vocab_size=VOCAB, hidden_size=12, num_hidden_layers=2, num_attention_heads=3)
BERT |= dict(intermediate_size=20)
BART = dict(vocab_size=VOCAB, d_model=12, encoder_layers=2, decoder_layers=3)
BART |= dict(encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=20)
BART |= dict(decoder_ffn_dim=20, max_position_embeddings=80)
GPT2 = dict(vocab_size=VOCAB, n_embd=12, n_layer=2, n_head=3, n_positions=80, n_inner=20)
LLAMA = dict(vocab_size=VOCAB, hidden_size=12, intermediate_size=20, num_hidden_layers=2)
LLAMA |= dict(num_attention_heads=4, num_key_value_heads=2, head_dim=4)
SWITCH = {**T5, "num_layers": 4, "num_decoder_layers": 4, "num_experts": 3, "d_kv": 4}
SWITCH |= dict(num_sparse_encoder_layers=2, num_sparse_decoder_layers=2)
# Family -> class of transformers, its configuration.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5_1_0": ("T5ForConditionalGeneration", dict(T5, feed_forward_proj="relu")),
    "t5_1_1": (
        "T5ForConditionalGeneration",
        dict(T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    ),
    "mt5": ("MT5ForConditionalGeneration", dict(T5, tie_word_embeddings=False)),
    "umt5": ("UMT5ForConditionalGeneration", dict(T5, tie_word_embeddings=False)),
    "byt5": (
        "T5ForConditionalGeneration",
        dict(
            T5,
            feed_forward_proj="gated-gelu",
            num_layers=3,
            num_decoder_layers=1,
            tie_word_embeddings=False,
        ),
    ),
    "switch": ("SwitchTransformersForConditionalGeneration", SWITCH),
    "bert": ("BertForPreTraining", dict(BERT, max_position_embeddings=80)),
    "roberta": (
        "RobertaForMaskedLM",
        dict(BERT, max_position_embeddings=82, type_vocab_size=1, layer_norm_eps=1e-5),
    ),
    "gpt2": ("GPT2LMHeadModel", dict(GPT2, bos_token_id=1, eos_token_id=1)),
    "llama": ("LlamaForCausalLM", LLAMA),
    "bart": ("BartForConditionalGeneration", BART),
}
UNTIED = ("t5_1_1", "mt5", "umt5", "byt5")
PADDING = {"roberta": 1, "bart": 1}
START = {"bart": 2}
ENCODERS, DECODERS = ("bert", "roberta"), ("gpt2", "llama")
DROPPING_CAPACITY = 3


def make_model(name: str, seed: int = 0, **changes: Any):
    """A model of a family whose every weight is drawn so that it matters."""
    class_name, fields = MODELS[name]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(seed)
    model = model_class(model_class.config_class(**{**fields, **changes})).eval()
    if name in UNTIED:  # transformers 5.23 ties them, whatever the configuration says
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if any(mark in key.lower() for mark in ("norm", "ln_")) and key.endswith("weight"):
                weight.uniform_(0.5, 1.5)
            elif weight.ndim == 1:
                weight.normal_(std=0.3)
            elif any(mark in key for mark in ("embed", "shared", "wte", "wpe", "relative")):
                weight.normal_()
            else:  # a kernel: [out, in], but [in, out] in GPT-2
                weight.normal_(std=weight.shape[0 if name == "gpt2" else 1] ** -0.5)
        if name == "bart":
            model.final_logits_bias.normal_()
    return as_published(model, name)


def as_published(model, name: str):
    """Undo what transformers 5.23 does to umT5: it scales logits of a head that is not tied."""
    if name == "umt5":
        model.config.tie_word_embeddings = False
    return model


def make_example(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of different lengths, long enough for far relative positions, padded."""
    rng = np.random.default_rng(seed)
    lengths = [24, 11, 5] if name == "switch" else [70, 41, 9]
    target_lengths = [24, 7, 16] if name == "switch" else [30, 7, 22]
    padding = PADDING.get(name, 0)
    inputs, real = _ragged(rng, lengths, padding)
    example = {"inputs": inputs, "inputs_real": real}
    if name == "bert":
        example["token_types"] = rng.integers(0, 2, inputs.shape)
    if name not in ENCODERS + DECODERS:
        labels, target_real = _ragged(rng, target_lengths, padding)
        start = np.full((len(labels), 1), START.get(name, 0))
        example["labels"], example["targets_real"] = labels, target_real
        example["targets_in"] = np.concatenate([start, labels[:, :-1]], axis=1)
    return {key: array.astype(np.int32) for key, array in example.items()}


def _ragged(rng: np.random.Generator, lengths: list[int], padding: int):
    real = np.arange(max(lengths)) < np.array(lengths)[:, None]
    return np.where(real, rng.integers(3, VOCAB, real.shape), padding), real


def forward(model, name: str, example: dict[str, np.ndarray]):
    """What transformers returns for an example."""
    ids = {key: torch.tensor(array.astype(np.int64)) for key, array in example.items()}
    given = dict(input_ids=ids["inputs"], attention_mask=ids["inputs_real"])
    if "token_types" in ids:
        given["token_type_ids"] = ids["token_types"]
    if "targets_in" in ids:
        given["decoder_input_ids"] = ids["targets_in"]
        given["decoder_attention_mask"] = ids["targets_real"]
    if name.startswith("t5"):
        given["labels"] = ids["labels"].masked_fill(ids["targets_real"] == 0, -100)
    return model(**given)


def predict(model, name: str, example: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits, and BERT's second head."""
    with torch.no_grad():
        output = forward(model, name, example)
    if name != "bert":
        return {"logits": output.logits.numpy()}
    return {
        "logits": output.prediction_logits.numpy(),
        "next_sentence": output.seq_relationship_logits.numpy(),
    }


def expect(model, name: str, example: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All that a reference holds."""
    arrays = {**example, **predict(model, name, example)}
    if name.startswith("t5"):
        loss = forward(model, name, example).loss
        loss.backward()
        arrays["loss"] = loss.detach().numpy()
        for key, weight in model.named_parameters():
            arrays[f"gradients/{key}"] = weight.grad.numpy()
    if name == "switch":
        for module in model.modules():
            if hasattr(module, "expert_capacity"):
                module.expert_capacity = DROPPING_CAPACITY
        arrays["logits_dropping"] = predict(model, name, example)["logits"]
    return arrays


def main() -> None:
    """Write a folder for each family."""
    for name in MODELS:
        directory = Path(__file__).parent / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        model, example = make_model(name), make_example(name)
        with tempfile.TemporaryDirectory() as saved:
            model.save_pretrained(saved)
            for file in ("config.json", "model.safetensors"):
                shutil.copyfile(Path(saved, file), directory / file)
        np.savez_compressed(directory / "expected.npz", **expect(model, name, example))
        sizes = {file.name: file.stat().st_size for file in sorted(directory.iterdir())}
        print(name, sizes, "torch", torch.__version__, "transformers", transformers.__version__)


if __name__ == "__main__":
    main()
