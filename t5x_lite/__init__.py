"""t5x_lite: pretraining of T5-family text models on TPUs, GPUs and laptops.

Axis letters. Inside `models`, `training.losses` and `decoding` an array's name ends in its axes,
and the einsum that makes it spells the same letters:

    b batch   l length   q query length   k key length   n layers   e embed
    h heads   d head_dim   m mlp   v vocab   x experts

`load` gives a trained model with `generate`, `score`, `embed` and `fill`, for a notebook.
"""

from typing import Any

__version__ = "0.1.0"


def load(directory: str, **options: Any) -> Any:
    """Load the `inference.text_model.TextModel` of a run or a Hugging Face directory.

    >>> model = t5x_lite.load("runs/tiny")
    >>> model.generate("summarize: ...", num_beams=4)
    [Output(text='...', score=-1.25)]
    """
    from t5x_lite.inference import text_model  # here: `import t5x_lite` alone stays fast

    return text_model.load(directory, **options)
