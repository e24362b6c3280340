"""The innermost loops of the data stream as numba kernels, bit for bit equal to the NumPy code.

Only `data.stream.numba_loader` imports this module. Random numbers are kept in unsigned 64-bit
integers throughout: numba converts to float64 where signed and unsigned 64-bit integers meet.

Kernels write into arrays that the caller allocates: `inputs`, `rows` and the like are out
parameters. Letters of shapes: n examples, l positions, t tokens of a store, r rounds.
"""

import numba  # pyright: ignore[reportMissingImports]  an extra
import numpy as np

# nogil: batches are made in a thread beside the training step. error_model "numpy": without it,
# every integer division gets a check for zero that keeps the loop from being vectorized.
_compile = numba.njit(cache=True, nogil=True, error_model="numpy")

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_SIGN, _ZERO = np.uint64(31), np.uint64(0)
# Philox4x32-10 (Salmon et al. 2011), as in `objectives.philox`.
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
# The key with which TensorFlow scrambles a seed.
_SCRAMBLING_0, _SCRAMBLING_1 = np.uint64(0x3EC8F720), np.uint64(0x02461E29)
_MANTISSA = np.uint32(0x7FFFFF)  # the 23 bits of a float32
_MAX_UINT32 = np.uint32(0xFFFFFFFF)
# The finalizer of SplitMix64, as in `shuffle._mix`.
_MIX_0, _MIX_1 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_MAX_COUNTED_CUTS = 128  # up to this number of cuts, counting is faster than sorting


# Random numbers


@_compile
def _philox(c0, c1, c2, c3, k0, k1):
    """Return one block of `objectives.philox.philox_4x32`."""
    for _ in range(10):
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0 = (product_1 >> _HALF) ^ c1 ^ k0
        c2 = (product_0 >> _HALF) ^ c3 ^ k1
        c1, c3 = product_1 & _LOW, product_0 & _LOW
        k0, k1 = (k0 + _WEYL_0) & _LOW, (k1 + _WEYL_1) & _LOW
    return c0, c1, c2, c3


@_compile
def _scramble(k0, k1):
    """Return the Philox key (two words) and counter (two words) that TensorFlow makes of a seed.

    A seed is two int32, which TensorFlow widens to int64: the upper words repeat the sign bit.
    """
    high_0 = _LOW if k0 >> _SIGN else _ZERO
    high_1 = _LOW if k1 >> _SIGN else _ZERO
    return _philox(k0, high_0, k1, high_1, _SCRAMBLING_0, _SCRAMBLING_1)


@_compile
def example_keys(seed, stream, epochs, indices, keys):
    """Write `objectives.philox.example_keys` of examples into `keys` [n, 2]."""
    k0, k1 = seed & _LOW, seed >> _HALF
    for n in range(len(indices)):
        index, epoch = np.uint64(indices[n]), np.uint64(epochs[n])
        w0, w1, _, _ = _philox(index & _LOW, index >> _HALF, epoch & _LOW, stream, k0, k1)
        keys[n, 0], keys[n, 1] = np.uint32(w0), np.uint32(w1)


@_compile
def window_bits(seed, window, purpose, count, bits):
    """Write `shuffle._window_bits` into `bits`, whole blocks of four words."""
    # philox.example_keys(seed, 0, epoch 0, window), then philox.fold_in(key, purpose)
    a0, a1, _, _ = _philox(window & _LOW, window >> _HALF, _ZERO, _ZERO, seed & _LOW, seed >> _HALF)
    b0, b1, _, _ = _philox(purpose, _ZERO, _ZERO, _ZERO, a0, a1)
    k0, k1, c2, c3 = _scramble(b0, b1)
    for block in range((count + 3) // 4):
        w0, w1, w2, w3 = _philox(np.uint64(block), _ZERO, c2, c3, k0, k1)
        bits[4 * block], bits[4 * block + 1] = np.uint32(w0), np.uint32(w1)
        bits[4 * block + 2], bits[4 * block + 3] = np.uint32(w2), np.uint32(w3)


@_compile
def _draw_mantissas(k0, k1, count, words):
    """Write `objectives.philox.mantissas` of one key into `words`.

    The order is by word of a block, then by block: number i is at i % 4 * blocks + i // 4. So the
    loops below run over contiguous words and become vector instructions, round by round over all
    blocks. Numbers of the last block beyond `count` become the largest uint32, which never counts
    as smaller than another number.
    """
    blocks = (count + 3) // 4
    c0, c1 = words[:blocks], words[blocks : 2 * blocks]
    c2, c3 = words[2 * blocks : 3 * blocks], words[3 * blocks : 4 * blocks]
    key_0, key_1, upper_0, upper_1 = _scramble(k0, k1)
    for i in range(blocks):
        c0[i], c1[i], c2[i], c3[i] = np.uint32(i), 0, np.uint32(upper_0), np.uint32(upper_1)
    for _ in range(10):
        word_0, word_1 = np.uint32(key_0), np.uint32(key_1)
        for i in range(blocks):
            product_0 = np.uint64(c0[i]) * _MULTIPLIER_0
            product_1 = np.uint64(c2[i]) * _MULTIPLIER_1
            c0[i] = np.uint32(product_1 >> _HALF) ^ c1[i] ^ word_0
            c2[i] = np.uint32(product_0 >> _HALF) ^ c3[i] ^ word_1
            c1[i], c3[i] = np.uint32(product_1), np.uint32(product_0)
        key_0, key_1 = (key_0 + _WEYL_0) & _LOW, (key_1 + _WEYL_1) & _LOW
    for i in range(blocks):
        c0[i] &= _MANTISSA
        c1[i] &= _MANTISSA
        c2[i] &= _MANTISSA
        c3[i] &= _MANTISSA
    for i in range(count, 4 * blocks):
        words[i % 4 * blocks + i // 4] = _MAX_UINT32


# Span corruption


@_compile
def _count_below(words, bound):
    """Return how many words are smaller than a bound."""
    count = np.uint32(0)
    for i in range(len(words)):
        count += np.uint32(words[i] < bound)
    return np.int64(count)


@_compile
def _draw_segment_ends(items, parts, k0, k1, words, cuts, ends):
    """Write the ends of `objectives.spans._random_composition` of one row into `ends`.

    The composition shuffles `parts - 1` cut marks among `items - 1` gaps by sorting random numbers,
    of which the first `parts - 1` belong to the cut marks. A cut mark's gap is the rank of its
    number. A rank needs no sort: it is how many numbers are smaller, with equal numbers in their
    original order.
    """
    count, blocks = parts - 1, (items + 2) // 4
    ends[count] = items
    if count == 0:
        return
    _draw_mantissas(k0, k1, items - 1, words)
    # Take the numbers of the cut marks out of the others, so that each is counted once.
    for i in range(count):
        position = i % 4 * blocks + i // 4
        cuts[i] = words[position]
        words[position] = _MAX_UINT32
    if count > _MAX_COUNTED_CUTS:
        _rank_many_cuts(words[: 4 * blocks], cuts[:count], ends)
        return
    for i in range(count):
        cut = cuts[i]
        # Cut marks before this one count if they are smaller or equal, later ones if smaller.
        order = _count_below(cuts[:i], cut + np.uint32(1)) + _count_below(cuts[i + 1 : count], cut)
        ends[order] = _count_below(words[: 4 * blocks], cut) + order + 1


@_compile
def _rank_many_cuts(words, cuts, ends):
    """Write the ends of many cuts: sort the cuts, then count the words between neighbors."""
    cuts.sort()
    between = np.zeros(len(cuts) + 1, np.int64)
    for i in range(len(words)):
        between[np.searchsorted(cuts, words[i], side="right")] += 1
    before = 0
    for i in range(len(cuts)):
        before += between[i]
        ends[i] = before + i + 1


@_compile
def _copy(source, begin, stop, row, at, room):
    """Copy source[begin:stop] to row[at:], at most up to position `room`; return the new end."""
    count = max(min(stop - begin, room - at), 0)
    for k in range(count):
        row[at + k] = source[begin + k]
    return at + count


@_compile
def corrupt_spans(
    tokens,
    starts,
    lengths,
    noise,
    spans,
    keys,
    first_sentinel,
    eos,
    inputs,
    targets,
    feature_lengths,
):
    """Apply `SpanCorruption` to ranges of tokens, trim to the widths and append EOS.

    Args:
        tokens: all tokens of a store [t].
        starts: where the range of each example starts [n].
        lengths: the length of each range [n].
        noise: how many tokens of each range are corrupted (`objectives.spans.noise_counts`) [n].
        spans: in how many spans [n].
        keys: the random key of each example [n, 2].
        first_sentinel: the id of the first sentinel; the others descend from it.
        eos: the id that ends inputs and targets.
        inputs: zeros, to be filled [n, l].
        targets: zeros, to be filled [n, l].
        feature_lengths: to be filled with the lengths of inputs and targets, EOS included [2, n].
    """
    max_length = 2
    for n in range(len(lengths)):
        max_length = max(max_length, lengths[n])
    # Scratch space for one example, used again for the next.
    words = np.empty(max_length + 4, np.uint32)
    cuts = np.empty(max_length, np.uint32)
    noise_ends = np.empty(max_length + 1, np.int64)
    kept_ends = np.empty(max_length + 1, np.int64)
    room_inputs, room_targets = inputs.shape[1] - 1, targets.shape[1] - 1  # without EOS
    for n in range(len(lengths)):
        begin, stop = starts[n], starts[n] + lengths[n]
        total = max(lengths[n], 2)  # as T5 does: a range of one token is masked as if it had two
        # philox.split(key, 2): one key for the noise spans, one for the spans between them.
        a0, a1, c2, c3 = _scramble(np.uint64(keys[n, 0]), np.uint64(keys[n, 1]))
        n0, n1, p0, p1 = _philox(_ZERO, _ZERO, c2, c3, a0, a1)
        _draw_segment_ends(noise[n], spans[n], n0, n1, words, cuts, noise_ends)
        _draw_segment_ends(total - noise[n], spans[n], p0, p1, words, cuts, kept_ends)
        at_inputs, at_targets, position = 0, 0, begin
        # Kept and noise spans alternate. The inputs get the kept tokens and a sentinel for each
        # noise span; the targets a sentinel for each kept span and the noise tokens.
        for span in range(spans[n]):
            kept_end = begin + kept_ends[span] + (noise_ends[span - 1] if span else 0)
            noise_end = begin + kept_ends[span] + noise_ends[span]
            kept_end, noise_end = min(kept_end, stop), min(noise_end, stop)
            sentinel = first_sentinel - span
            if position < kept_end:
                at_inputs = _copy(tokens, position, kept_end, inputs[n], at_inputs, room_inputs)
                if at_targets < room_targets:
                    targets[n, at_targets] = sentinel
                    at_targets += 1
                position = kept_end
            if position < noise_end:
                if at_inputs < room_inputs:
                    inputs[n, at_inputs] = sentinel
                    at_inputs += 1
                at_targets = _copy(
                    tokens, position, noise_end, targets[n], at_targets, room_targets
                )
                position = noise_end
        inputs[n, at_inputs] = eos
        targets[n, at_targets] = eos
        feature_lengths[0, n], feature_lengths[1, n] = at_inputs + 1, at_targets + 1


# Shuffling


@_compile
def _mix(value):
    """Return `shuffle._mix` of one value."""
    value = (value ^ value >> np.uint64(30)) * _MIX_0
    value = (value ^ value >> np.uint64(27)) * _MIX_1
    return (value ^ value >> np.uint64(31)) >> np.uint64(1)


@_compile
def permute(indices, size, left_size, right_size, round_keys, permuted):
    """Write `shuffle.permute` of indices [n], with round keys [n, r], into `permuted` [n]."""
    for n in range(len(indices)):
        value = np.uint64(indices[n])
        while True:  # cycle walking: until the result is inside [0, size)
            left, right = value // right_size, value % right_size
            for number in range(0, round_keys.shape[1], 2):
                left = (left + _mix(right + round_keys[n, number])) % left_size
                right = (right + _mix(left + round_keys[n, number + 1])) % right_size
            value = left * right_size + right
            if value < size:
                break
        permuted[n] = value


# Rows and packing


@_compile
def gather_rows_with_eos(tokens, starts, lengths, eos, rows):
    """Fill rows of zeros [n, l] with ranges of tokens shorter than l, EOS after each."""
    for n in range(len(lengths)):
        for k in range(lengths[n]):
            rows[n, k] = tokens[starts[n] + k]
        rows[n, lengths[n]] = eos


@_compile
def write_segments(tokens, lengths, row, start, segment, out_tokens, out_segments, out_positions):
    """Write each example [n, l] to its row, from its start, as its segment (`packing.Segments`)."""
    for n in range(len(lengths)):
        r, first, number = row[n], start[n], segment[n]
        for k in range(lengths[n]):
            out_tokens[r, first + k] = tokens[n, k]
            out_segments[r, first + k] = number
            out_positions[r, first + k] = k


@_compile
def best_fit(lengths, order, capacity, capacity_second, smallest, smallest_second, row_of):
    """Write the rows of `packing.best_fit_decreasing` into `row_of` [n].

    The rows with a given amount of free space in the first feature form a linked list: `newest` is
    its head and `older` the next row of each row, so that the row added last is tried first, as
    `packing._last_with_room` does.

    Args:
        lengths: the lengths of both features of each example [n, 2].
        order: the order in which examples are taken [n].
        capacity: the length of a row's first feature.
        capacity_second: the length of a row's second feature.
        smallest: the smallest length of the first feature; a row with less free space is full.
        smallest_second: the same for the second feature.
        row_of: to be filled with the row of each example [n].
    """
    newest = np.full(capacity + 1, -1, np.int64)
    older = np.empty(len(order), np.int64)
    free_second = np.empty(len(order), np.int64)
    rows = 0
    for i in range(len(order)):
        n = order[i]
        needed, needed_second = lengths[n, 0], lengths[n, 1]
        row, free = -1, capacity
        for candidate_free in range(needed, capacity + 1):
            previous, candidate = -1, newest[candidate_free]
            while candidate >= 0 and free_second[candidate] < needed_second:
                previous, candidate = candidate, older[candidate]
            if candidate >= 0:
                # Unlink the row: its free space changes.
                if previous >= 0:
                    older[previous] = older[candidate]
                else:
                    newest[candidate_free] = older[candidate]
                row, free = candidate, candidate_free
                break
        if row < 0:
            row = rows
            rows += 1
            free_second[row] = capacity_second
        free -= needed
        free_second[row] -= needed_second
        if free >= smallest and free_second[row] >= smallest_second:
            older[row] = newest[free]
            newest[free] = row
        row_of[n] = row
