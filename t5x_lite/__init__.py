"""t5x_lite: pretraining of T5-family text models on TPUs, GPUs and laptops.

Axis letters. Inside `models`, `training.losses` and `decoding` an array's name ends in its axes,
and the einsum that makes it spells the same letters:

    b batch   l length   q query length   k key length   n layers   e embed
    h heads   d head_dim   m mlp   v vocab   x experts
"""

__version__ = "0.1.0"
