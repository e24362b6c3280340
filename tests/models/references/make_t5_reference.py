"""Write t5_reference.npz: what Hugging Face's T5 computes for two tiny random models.

The test beside it needs neither torch nor transformers. To make the file again, from the root:

    python3.11 -m venv /tmp/hf && /tmp/hf/bin/pip install torch==2.13.0 transformers==5.23.0
    /tmp/hf/bin/python tests/models/references/make_t5_reference.py

Made with torch 2.13.0, transformers 5.23.0, numpy 2.4.6 on a CPU, float32. Keys of the file:

    inputs, labels            int32 [batch, length], 0 is padding, rows of different lengths
    <model>/weights/<name>    under Hugging Face's names
    <model>/gradients/<name>  of the mean loss of the real labels, for some weights
    <model>/logits, <model>/loss
"""

from pathlib import Path

import numpy as np
import torch
import transformers

SIZES = dict(vocab_size=60, d_model=12, d_kv=5, num_heads=3, d_ff=20, num_layers=2)
MODELS = {
    "t5_1_0": dict(feed_forward_proj="relu", scale_decoder_outputs=True),
    "t5_1_1": dict(feed_forward_proj="gated-gelu", scale_decoder_outputs=False),
}
GRADIENTS = (
    "shared.weight",
    "lm_head.weight",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "encoder.block.1.layer.0.SelfAttention.q.weight",
    "decoder.block.2.layer.1.EncDecAttention.k.weight",
    "encoder.block.0.layer.1.DenseReluDense.wo.weight",
    "decoder.block.1.layer.2.layer_norm.weight",
    "encoder.final_layer_norm.weight",
)


def make_model(name: str) -> transformers.T5ForConditionalGeneration:
    """Build a model with random weights, its norms and biases far from their initial values."""
    config = transformers.T5Config(
        **SIZES, **MODELS[name], num_decoder_layers=3, dropout_rate=0.0, decoder_start_token_id=0
    )
    torch.manual_seed(len(name))
    model = transformers.T5ForConditionalGeneration(config).eval()
    if name == "t5_1_1":  # transformers 5.23 ties whatever the config says
        model.lm_head.weight = torch.nn.Parameter(torch.randn(60, 12) * 12**-0.5)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "layer_norm" in key:
                weight.uniform_(0.5, 1.5)
            elif "relative_attention_bias" in key:
                weight.normal_()
            elif weight.std() < 1e-3:
                raise ValueError(f"{key} was not initialised")
    return model


def ragged(rng: np.random.Generator, lengths: list[int]) -> np.ndarray:
    """Rows of random tokens that end in EOS (1), padded by 0."""
    rows = np.zeros((len(lengths), max(lengths)), np.int32)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = [*rng.integers(2, SIZES["vocab_size"], length - 1), 1]
    return rows


def main() -> None:
    """Run both models and save what went in and what came out."""
    rng = np.random.default_rng(0)
    arrays = {"inputs": ragged(rng, [70, 41, 9]), "labels": ragged(rng, [30, 7, 22])}
    inputs, labels = (torch.tensor(arrays[k].astype(np.int64)) for k in ("inputs", "labels"))
    for name in MODELS:
        model = make_model(name)
        result = model(
            input_ids=inputs,
            attention_mask=(inputs > 0).long(),
            labels=labels.masked_fill(labels == 0, -100),
        )
        result.loss.backward()
        weights = dict(model.named_parameters())
        arrays |= {f"{name}/weights/{k}": w.detach().numpy() for k, w in weights.items()}
        arrays |= {
            f"{name}/gradients/{k}": weights[k].grad.numpy() for k in GRADIENTS if k in weights
        }
        arrays[f"{name}/logits"] = result.logits.detach().numpy()
        arrays[f"{name}/loss"] = result.loss.detach().numpy()
        print(name, len(weights), "weights, loss", result.loss.item())
    path = Path(__file__).with_name("t5_reference.npz")
    np.savez_compressed(path, **arrays)
    print(path.stat().st_size, "bytes; torch", torch.__version__, transformers.__version__)


if __name__ == "__main__":
    main()
