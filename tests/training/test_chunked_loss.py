"""The loss in chunks, alone and on meshes of eight devices, against float64."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.partitioning import make_mesh, named_sharding
from t5x_lite.training.chunked_loss import OutputSpec, chunked_cross_entropy
from t5x_lite.training.losses import TokenLossConfig

# Rows, length, embedding, vocabulary: what the meshes below divide.
BATCH, LENGTH, EMBED, VOCAB = 8, 5, 16, 24
FORMS = {
    "mT5, T5 1.1: a head of its own": (OutputSpec(), False),
    "T5 1.0: tied and scaled": (OutputSpec(vocab_first=True, scale=EMBED**-0.5), False),
    "BERT, BART: tied, with a bias": (OutputSpec(vocab_first=True), True),
}


class Hidden:
    """Hidden states, output layer and targets, with the loss and its gradients in float64."""

    def __init__(self, form, has_bias, wanted, expected_sums):
        rng = np.random.default_rng(3)
        self.form, self.wanted = form, wanted
        self.hidden = rng.normal(size=(BATCH, LENGTH, EMBED)).astype(np.float32)
        shape = (VOCAB, EMBED) if form.vocab_first else (EMBED, VOCAB)
        self.kernel = rng.normal(size=shape).astype(np.float32)
        self.bias = rng.normal(size=VOCAB).astype(np.float32) if has_bias else None
        self.targets = rng.integers(0, VOCAB, size=(BATCH, LENGTH)).astype(np.int32)
        self.weights = rng.choice([0, 0.5, 1], size=(BATCH, LENGTH)).astype(np.float32)
        self.shares = self.weights * rng.uniform(size=(BATCH, 1)).astype(np.float32)
        matrix = np.float64(self.kernel.T if form.vocab_first else self.kernel)
        logits = form.scale * np.float64(self.hidden) @ matrix + (self.bias if has_bias else 0.0)
        self.targets[:2] = logits[:2].argmax(-1)  # some right answers
        settings = wanted._asdict()
        self.sums = expected_sums(logits, self.targets, self.weights, **settings)
        self.value = expected_sums(logits, self.targets, self.shares, **settings).loss
        exponentials = np.exp(logits)
        z = exponentials.sum(-1, keepdims=True)
        off = wanted.label_smoothing / (VOCAB - 1)
        true = np.eye(VOCAB)[self.targets]
        smooth = true * (1 - wanted.label_smoothing - off) + off
        slopes = exponentials / z * (1 + 2 * wanted.z_loss * np.log(z)) - smooth
        slopes *= self.shares[..., None]
        kernel = form.scale * np.einsum("ble,blv->ev", self.hidden, slopes)
        self.gradients = [
            form.scale * slopes @ matrix.T,
            kernel.T if form.vocab_first else kernel,
            *([slopes.sum((0, 1))] if has_bias else []),
        ]

    @property
    def arguments(self):
        return self.hidden, self.kernel, self.bias, self.targets, self.weights, self.shares

    def differentiated(self, chunk):
        """The jitted function to ((value, sums), gradients), and without gradients."""

        def call(*arguments):
            return chunked_cross_entropy(
                *arguments, output=self.form, config=self.wanted, chunk_size=chunk
            )

        wrt = (0, 1) if self.bias is None else (0, 1, 2)
        return jax.jit(jax.value_and_grad(call, wrt, has_aux=True)), jax.jit(call)


@pytest.fixture(scope="module", params=FORMS, ids=lambda name: name.split(":")[0])
def hidden_case(request, expected_sums):
    form, has_bias = FORMS[request.param]
    smoothing = 0.1 if has_bias else 0.0  # BART fine-tunes with it
    wanted = TokenLossConfig(z_loss=1e-2, label_smoothing=smoothing)
    return Hidden(form, has_bias, wanted, expected_sums)


def assert_equals_float64(case, values, gradients):
    value, sums = values
    assert float(value) == pytest.approx(case.value, rel=1e-5)
    for name, expected in case.sums._asdict().items():
        assert float(getattr(sums, name)) == pytest.approx(expected, rel=1e-5), name
    for found, expected in zip(gradients, case.gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("chunk", [7, 1000])
def test_a_loss_in_chunks_and_its_gradients_equal_float64(hidden_case, chunk):
    with_gradients, without = hidden_case.differentiated(chunk)
    values, gradients = with_gradients(*hidden_case.arguments)
    assert_equals_float64(hidden_case, values, gradients)
    again = without(*hidden_case.arguments)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), values, again)


MESHES = [
    dict(data=2, fsdp=2, tensor=2),
    dict(tensor=4, sequence=2),
    dict(fsdp=4, expert=2),
]


@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "-".join(sizes))
def test_a_loss_in_chunks_is_the_same_on_every_mesh(hidden_case, sizes):
    """And no device ever sees more of the logits than its own chunk and part of the vocabulary."""
    mesh, chunk = make_mesh(sizes), 3
    kernel_axes = ("vocab", "embed") if hidden_case.form.vocab_first else ("embed", "vocab")
    tokens = ("batch", None)
    axes = (("batch", None, None), kernel_axes, ("vocab",), tokens, tokens, tokens)
    with jax.set_mesh(mesh):
        placed = [
            None if array is None else jax.device_put(array, named_sharding(mesh, names))
            for array, names in zip(hidden_case.arguments, axes, strict=True)
        ]
        compiled = hidden_case.differentiated(chunk)[0].lower(*placed).compile()
        values, gradients = compiled(*placed)
    assert_equals_float64(hidden_case, values, gradients)
    assert gradients[1].sharding.is_equivalent_to(named_sharding(mesh, kernel_axes), 2)
    text = compiled.as_text()
    here = VOCAB // sizes.get("tensor", 1)
    assert f"f32[{chunk},{here}]" in text
    if here < VOCAB:
        assert not re.search(rf"f32\[[\d,]*\d,{VOCAB}\]", text.replace(f"{EMBED},{VOCAB}", ""))


@pytest.mark.parametrize("sizes", [None, dict(data=2, tensor=2, sequence=2)], ids=["", "mesh"])
def test_the_sums_of_each_task_equal_float64_of_its_tokens_alone(expected_sums, sizes):
    case = Hidden(OutputSpec(), False, TokenLossConfig(z_loss=1e-2), expected_sums)
    tasks = np.random.default_rng(5).integers(0, 3, case.targets.shape).astype(np.int32)
    with jax.set_mesh(make_mesh(sizes)) if sizes else contextlib.nullcontext():
        sums = jax.jit(
            lambda *arguments: chunked_cross_entropy(
                *arguments, output=case.form, config=case.wanted, chunk_size=7, num_tasks=4
            )[1]
        )(*case.arguments, tasks)
    logits = np.float64(case.hidden) @ np.float64(case.kernel)
    settings = case.wanted._asdict()
    for task in range(4):  # of the last there is no token
        weights = np.where(tasks == task, case.weights, 0.0)
        expected = expected_sums(logits, case.targets, weights, **settings)._asdict()
        for name, value in expected.items():
            assert float(getattr(sums, name)[task]) == pytest.approx(value, rel=1e-5), (task, name)


def test_products_in_bfloat16_are_added_up_in_float32(expected_sums):
    case = Hidden(OutputSpec(), False, TokenLossConfig(), expected_sums)
    hidden, kernel, *others = case.arguments
    hidden, kernel = (
        np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in (hidden, kernel)
    )
    with_gradients, _ = case.differentiated(7)
    expected, slopes = with_gradients(hidden, kernel, *others)
    found, rounded = with_gradients(jnp.asarray(hidden, jnp.bfloat16), kernel, *others)
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    assert (rounded[0].dtype, rounded[1].dtype) == (jnp.bfloat16, jnp.float32)
    for one, other in zip(rounded, slopes, strict=True):
        gap = np.abs(np.asarray(one, np.float32) - other).max()
        assert gap < 0.01 * np.abs(other).max()


def test_only_the_objective_has_a_gradient(expected_sums):
    case = Hidden(OutputSpec(), False, TokenLossConfig(z_loss=1.0), expected_sums)

    def count(hidden):
        arguments = (hidden, *case.arguments[1:])
        return chunked_cross_entropy(
            *arguments, output=case.form, config=case.wanted, chunk_size=7
        )[1].loss

    assert not jax.grad(count)(case.hidden).any()
