"""The span corruption of Hugging Face's run_t5_mlm_flax example, for data_stream.py.

The example is not part of a package. This module reimplements what its collator does with a batch
of chunks of equal length, with NumPy's global random numbers: a mask per chunk, sentinels from
the end of the vocabulary downwards, the filtered rows, EOS, and the decoder's inputs.
"""

import numpy as np

EOS = 1


def noise_mask(length: int, density: float = 0.15, mean_span: float = 3.0) -> np.ndarray:
    """Return which tokens of a chunk are noise, as T5 does: noise spans alternate with others."""
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(round(noise / mean_span), 1)

    def lengths(items: int) -> np.ndarray:
        first_in_span = np.arange(items - 1) < spans - 1
        np.random.shuffle(first_in_span)
        span_of = np.cumsum(np.pad(first_in_span, [[1, 0]]))
        return np.unique(span_of, return_counts=True)[1]

    noise_lengths, kept_lengths = lengths(noise), lengths(length - noise)
    interleaved = np.stack([kept_lengths, noise_lengths], axis=1).reshape(-1)
    starts = np.zeros(length, np.int8)
    starts[np.cumsum(interleaved)[:-1]] = 1
    return np.cumsum(starts) % 2 == 1


def sentinels(mask_bl: np.ndarray, vocab_size: int) -> np.ndarray:
    """A sentinel where a span begins, -1 in the rest of it, 0 elsewhere."""
    begins_bl = mask_bl - np.roll(mask_bl, 1, axis=-1) * mask_bl
    begins_bl[:, 0] = mask_bl[:, 0]
    numbers_bl = np.where(begins_bl != 0, np.cumsum(begins_bl, axis=-1), begins_bl)
    ids_bl = np.where(numbers_bl != 0, vocab_size - numbers_bl, 0)
    return ids_bl - (mask_bl - begins_bl)


def filtered(tokens_bl: np.ndarray, sentinels_bl: np.ndarray) -> np.ndarray:
    """Rows in which a sentinel replaces each span, with EOS at the end."""
    whole_bl = np.where(sentinels_bl != 0, sentinels_bl, tokens_bl)
    rows = whole_bl[whole_bl >= 0].reshape(len(tokens_bl), -1)
    return np.concatenate([rows, np.full((len(rows), 1), EOS, np.int32)], axis=-1)


def collate(tokens_bl: np.ndarray, vocab_size: int) -> dict[str, np.ndarray]:
    """The batch for chunks of equal length."""
    mask_bl = np.stack([noise_mask(tokens_bl.shape[1]) for _ in tokens_bl])
    inputs = filtered(tokens_bl, sentinels(mask_bl.astype(np.int8), vocab_size))
    labels = filtered(tokens_bl, sentinels((~mask_bl).astype(np.int8), vocab_size))
    shifted = np.zeros_like(labels)
    shifted[:, 1:] = labels[:, :-1]
    return {"input_ids": inputs, "labels": labels, "decoder_input_ids": shifted}
