"""A whole run beside Hugging Face and PyTorch, live: `pytest -m parity`, extra [parity]."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.convert.huggingface import export_checkpoint
from t5x_lite.data.sources.embedded_corpus import embedded_documents
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.transformer import abstract_model, initialize
from t5x_lite.objectives.noise import Rows
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.training.optimizers import AdamW
from t5x_lite.training.schedules import Constant
from t5x_lite.training.state import TrainState
from t5x_lite.training.step import Loss, Update, make_train_step

pytestmark = [
    pytest.mark.parity,
    # PyTorch and transformers warn of their own future.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
STEPS, ROWS, EOS = 200, 8, 1
LENGTHS = {"inputs": 64, "targets": 32}
RATE, DECAY, CLIP = 3e-4, 0.1, 1.0
FIRST_BYTE, VOCAB_SIZE = 3, 384  # ByT5's ids; sentinels are the last ones
SENTINELS = Sentinels(first=VOCAB_SIZE - 1, count=100)
CONFIG = TransformerConfig(
    vocab_size=VOCAB_SIZE,
    emb_dim=64,
    num_heads=4,
    head_dim=16,
    mlp_dim=128,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dtype="float32",
)


def padded(rows, length):
    """Tokens of rows with EOS after each, [rows, length], and which of them are real."""
    tokens = np.zeros((len(rows.lengths), length), np.int32)
    for row, size in enumerate(rows.lengths):
        kept = min(size, length - 1)
        tokens[row, :kept] = rows.tokens[row, :kept]
        tokens[row, kept] = EOS
    return tokens, tokens > 0


@pytest.fixture(scope="module")
def batches():
    """Real text of installed packages, span-corrupted, another for every step."""
    text = "\n\n".join(embedded_documents(("gin", "beartype")).values()).encode()
    text = np.frombuffer(text, np.uint8).astype(np.int32) + FIRST_BYTE
    objective = SpanCorruption()
    length = objective.raw_length(LENGTHS)
    pieces = len(text) // length
    assert pieces >= STEPS * ROWS // 2
    order = np.random.default_rng(0).permutation(pieces)
    found = []
    for step in range(STEPS):
        chosen = order[np.arange(step * ROWS, (step + 1) * ROWS) % pieces]
        tokens = np.stack([text[i * length : (i + 1) * length] for i in chosen])
        keys = np.stack([np.full(ROWS, step), np.arange(ROWS)], axis=1).astype(np.uint32)
        rows = objective(Rows(tokens, np.full(ROWS, length, np.int32)), keys, SENTINELS)
        inputs, inputs_real = padded(rows["inputs"], LENGTHS["inputs"])
        targets, targets_real = padded(rows["targets"], LENGTHS["targets"])
        found.append((inputs, inputs_real, targets, targets_real))
    return found


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: initialize(CONFIG, key))(jax.random.key(0))


@pytest.fixture(scope="module")
def our_losses(batches, params):
    graphdef, shapes, axes = abstract_model(CONFIG)
    optimizer = AdamW(weight_decay=DECAY).for_weights(shapes, axes)
    loss, update = Loss(z_loss=0.0, logits_chunk=100), Update(clip_norm=CLIP)
    step = make_train_step(graphdef, optimizer, Constant(value=RATE), loss, update, seed=0)
    step, losses = jax.jit(step), []
    state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))
    for inputs, inputs_real, targets, targets_real in batches:
        batch = {
            "encoder_input_tokens": inputs,
            "encoder_segment_ids": inputs_real.astype(np.int32),
            "decoder_target_tokens": targets,
            "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
            "decoder_loss_weights": targets_real.astype(np.float32),
        }
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"] / metrics["weight"]))
    return losses


@pytest.fixture(scope="module")
def their_losses(batches, params, tmp_path_factory):
    import torch

    torch.set_num_threads(1)  # for a model of this size more threads only wait for each other
    import transformers

    directory = tmp_path_factory.mktemp("exported") / "t5"
    export_checkpoint(directory, CONFIG, params)
    model = transformers.T5ForConditionalGeneration.from_pretrained(directory, dropout_rate=0.0)
    model = model.float().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=1e-8, weight_decay=DECAY)
    losses = []
    for inputs, inputs_real, targets, targets_real in batches:
        labels = torch.tensor(np.where(targets_real, targets, -100)).long()
        loss = model(
            input_ids=torch.tensor(inputs).long(),
            attention_mask=torch.tensor(inputs_real).long(),
            labels=labels,
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_loss_of_two_hundred_steps_on_real_text_equals_pytorchs(our_losses, their_losses):
    """Same weights, batches and AdamW; a thousandth is what float32 leaves after 200 steps."""
    assert np.abs(np.subtract(our_losses, their_losses)).max() < 1e-3
    assert np.mean(our_losses[-20:]) < 0.8 * our_losses[0]  # it learned
