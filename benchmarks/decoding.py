"""Compare greedy and beam search with transformers' PyTorch: CPU seconds, same weights and texts.

    pip install -e '.[parity]'
    python benchmarks/decoding.py            # T5 1.1 small, batch 4, 64 tokens, beam 4, float32

Both generate from the same random weights, in the same process, alternating. EOS is not allowed,
so every search generates all tokens. One line shows whether the texts are the same. T5's length
penalty divides by ((5 + n) / 6)**alpha, transformers' by n**alpha: texts of equal length have the
same rank.
"""

import argparse
import json
import os
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch
import transformers

from t5x_lite.convert.huggingface import export_checkpoint
from t5x_lite.decoding.generation import Generation
from t5x_lite.inference.engine import Inference
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.transformer import initialize
from t5x_lite.partitioning import make_mesh

SMALL = dict(vocab_size=32128, emb_dim=512, num_heads=6, head_dim=64, mlp_dim=1024)
SMALL |= dict(num_encoder_layers=8, num_decoder_layers=8, dtype="float32")
END = 1


def weights(config):
    """Random weights under which no token is much likelier than all others."""
    return jax.jit(lambda: initialize(config, jax.random.key(0)))()


def main() -> None:
    """Measure both and print a JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beams", type=int, nargs="+", default=[4, 1])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--input_length", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--layers", type=int, default=8)
    options = parser.parse_args()
    layers = dict(num_encoder_layers=options.layers, num_decoder_layers=options.layers)
    config = TransformerConfig(**{**SMALL, **layers})
    params = weights(config)
    with tempfile.TemporaryDirectory() as directory:
        export_checkpoint(directory, config, params)
        theirs = transformers.T5ForConditionalGeneration.from_pretrained(directory).eval()
    rng = np.random.default_rng(0)
    inputs = rng.integers(3, 32000, (options.batch_size, options.input_length)).astype(np.int32)
    for beams in options.beams:
        ours = Inference(
            config,
            # No text is complete before its last token: all searches write all of them.
            Generation(max_length=options.tokens, min_length=options.tokens, num_beams=beams),
            mesh=make_mesh({}, jax.devices()[:1]),
            batch_size=options.batch_size,
        )
        settings = dict(max_new_tokens=options.tokens, num_beams=beams, do_sample=False)
        settings |= dict(suppress_tokens=[END])
        if beams > 1:
            settings |= dict(length_penalty=0.6, early_stopping="never")

        def run_ours(ours=ours):
            return ours.generate(params, {"inputs": inputs}).tokens[:, 0]

        def run_theirs(settings=settings):
            with torch.inference_mode():
                found = theirs.generate(torch.tensor(inputs, dtype=torch.long), **settings)
            return found[:, 1:].numpy()

        texts = {"ours": run_ours(), "transformers": run_theirs()}  # compiles
        seconds = {name: [] for name in texts}
        for _ in range(options.rounds):
            for name, run in (("ours", run_ours), ("transformers", run_theirs)):
                began, wall = time.process_time(), time.perf_counter()
                run()
                seconds[name].append((time.process_time() - began, time.perf_counter() - wall))
        agree = texts["ours"][:, :-1] == texts["transformers"][:, : options.tokens - 1]
        distinct = len(np.unique(texts["ours"]))
        for name, found in seconds.items():
            cpu, wall = np.min(found, axis=0)
            line = {"beams": beams, "who": name, "cpu_s": round(cpu, 2), "wall_s": round(wall, 2)}
            print(
                json.dumps(
                    {**line, "same_tokens": round(float(agree.mean()), 4), "distinct": distinct}
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
