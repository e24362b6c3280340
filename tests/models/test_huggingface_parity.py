"""Our model against Hugging Face's T5, whose numbers are kept in references/t5_reference.npz."""

from pathlib import Path

import jax
import numpy as np
import pytest

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.transformer import abstract, bind
from t5x_lite.training.losses import cross_entropy

REFERENCE = Path(__file__).parent / "references" / "t5_reference.npz"
SIZES = dict(vocab_size=60, emb_dim=12, head_dim=5, num_heads=3, mlp_dim=20)
MODELS = {
    "t5_1_0": dict(mlp_activations=("relu",), logits_via_embedding=True),
    "t5_1_1": dict(mlp_activations=("gelu", "linear"), logits_via_embedding=False),
}
TOP = {
    "shared": "token_embedder/embedding",
    "lm_head": "head/kernel",
    "final_layer_norm": "norm/scale",
    "relative_attention_bias": "relpos_bias/rel_embedding",
}
SUBLAYERS = {
    "SelfAttention": "self_attention",
    "EncDecAttention": "cross_attention",
    "DenseReluDense": "mlp",
}
WEIGHTS = {"q": "query", "k": "key", "v": "value", "o": "out", "wi": "wi_0"}
NORMS = {
    "encoder": ("pre_self_attention_norm", "pre_mlp_norm"),
    "decoder": ("pre_self_attention_norm", "pre_cross_attention_norm", "pre_mlp_norm"),
}


def our_place(name: str) -> tuple[str, int | None]:
    """Our path of a Hugging Face weight, and its layer if it stands in a stack of layers."""
    *path, weight, _ = name.split(".")
    if weight in TOP:
        stack = f"{path[0]}/" if path else ""
        return stack + TOP[weight], None
    stack, _, layer, _, sublayer, *module = path
    if weight == "layer_norm":
        return f"{stack}/layers/{NORMS[stack][int(sublayer)]}/scale", int(layer)
    return f"{stack}/layers/{SUBLAYERS[module[0]]}/{WEIGHTS.get(weight, weight)}", int(layer)


def in_our_layout(path: str, array: np.ndarray) -> np.ndarray:
    """Dense kernels and the bias table stand the other way round there; the embedding does not."""
    return array if path.endswith("embedding") and "relpos" not in path else array.T


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module", params=MODELS)
def computed(request, reference):
    """Of one model: its part of the reference, our logits, loss, and gradients by our paths."""
    prefix = request.param + "/"
    theirs = {k.removeprefix(prefix): v for k, v in reference.items() if k.startswith(prefix)}
    config = TransformerConfig(
        **SIZES,
        **MODELS[request.param],
        num_encoder_layers=2,
        num_decoder_layers=3,
        dtype="float32",
    )
    graphdef, shapes, _ = abstract(config)
    paths, treedef = jax.tree.flatten_with_path(shapes)
    ours = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.full(leaf.shape, np.nan, "f4")
        for path, leaf in paths
    }
    for name, array in theirs.items():
        if name.startswith("weights/"):
            path, layer = our_place(name.removeprefix("weights/"))
            ours[path][... if layer is None else layer] = in_our_layout(path, array)
    labels = reference["labels"]
    batch = {
        "encoder_input_tokens": reference["inputs"],
        "decoder_target_tokens": labels,
        "decoder_input_tokens": np.pad(labels, ((0, 0), (1, 0)))[:, :-1],
    }
    real = (labels > 0).astype(np.float32)

    def mean_loss(params):
        logits_blv = bind(graphdef, params)(batch)
        sums = cross_entropy(logits_blv, labels, real)
        return sums.loss / sums.weight, logits_blv

    params = treedef.unflatten(ours.values())
    (loss, logits), gradients = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
    return theirs, logits, loss, dict(zip(ours, jax.tree.leaves(gradients), strict=True)), params


def relative_error(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def test_every_weight_has_its_place(computed):
    *_, params = computed
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_logits_of_real_tokens_equal_hugging_faces(computed, reference):
    theirs, logits, *_ = computed
    real = reference["labels"] > 0
    assert relative_error(np.asarray(logits)[real], theirs["logits"][real]) < 1e-5


def test_loss_equals_hugging_faces(computed):
    theirs, _, loss, *_ = computed
    assert float(loss) == pytest.approx(float(theirs["loss"]), rel=1e-6)


def test_gradients_equal_hugging_faces(computed):
    theirs, _, _, gradients, _ = computed
    compared = {}
    for name, array in theirs.items():
        if name.startswith("gradients/"):
            path, layer = our_place(name.removeprefix("gradients/"))
            ours = np.asarray(gradients[path])[... if layer is None else layer]
            compared[path] = relative_error(ours, in_our_layout(path, array))
    assert len(compared) >= 8
    assert max(compared.values()) < 1e-4, compared
