"""References that several tests of this folder share."""

import numpy as np
import pytest

from t5x_lite.training.losses import LossSums


@pytest.fixture(scope="session")
def expected_sums():
    """The loss in float64: expected_sums(logits, targets, weights, z_loss=..., ...)."""
    return _expected_sums


def _expected_sums(logits, targets, weights, *, z_loss, label_smoothing):
    """Float64, token by token, from the definitions (T5X's label smoothing)."""
    vocab_size = logits.shape[-1]
    total = dict.fromkeys(LossSums._fields, 0.0)
    for place in np.ndindex(targets.shape):
        log_z = np.log(np.sum(np.exp(logits[place])))
        wanted = np.full(vocab_size, label_smoothing / (vocab_size - 1))
        wanted[targets[place]] = 1 - label_smoothing
        surprise = -np.sum(wanted * (logits[place] - log_z))
        least = -np.sum(wanted[wanted > 0] * np.log(wanted[wanted > 0]))
        z_term = z_loss * log_z**2
        for name, value in {
            "loss": surprise - least + z_term,
            "z_loss": z_term,
            "correct": logits[place].argmax() == targets[place],
            "weight": 1.0,
        }.items():
            total[name] += weights[place] * value
    return LossSums(**total)
