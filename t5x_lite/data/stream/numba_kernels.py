"""The stream's innermost loops, compiled by numba: bit for bit what the NumPy beside them makes.

Only `data.stream.numba_loader` imports this file. Integers are 64-bit and unsigned where they are
random
numbers: numba makes floats of mixed signs.
"""

import numba  # pyright: ignore[reportMissingImports]  an extra
import numpy as np

_compile = numba.njit(cache=True, nogil=True, error_model="numpy")

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_SCRAMBLING_0, _SCRAMBLING_1 = np.uint64(0x3EC8F720), np.uint64(0x02461E29)
_SIGN, _ZERO = np.uint64(31), np.uint64(0)
_MANTISSA = np.uint32(0x7FFFFF)
_MIX_0, _MIX_1 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_MOST = np.uint32(0xFFFFFFFF)
_FEW = 128  # cuts for which counting is faster than sorting


@_compile
def _philox(c0, c1, c2, c3, k0, k1):
    """One block of `objectives.philox.philox_4x32`."""
    for _ in range(10):
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0 = (product_1 >> _HALF) ^ c1 ^ k0
        c2 = (product_0 >> _HALF) ^ c3 ^ k1
        c1, c3 = product_1 & _LOW, product_0 & _LOW
        k0, k1 = (k0 + _WEYL_0) & _LOW, (k1 + _WEYL_1) & _LOW
    return c0, c1, c2, c3


@_compile
def _draw_mantissas(k0, k1, count, words):
    """Write `objectives.philox.mantissas` of one key into `words`, as four rows of blocks.

    Number i stands at [i % 4, i // 4] of them; what the last block has beyond `count` is the
    largest number. Round by round over all blocks, which becomes vector instructions.
    """
    blocks = (count + 3) // 4
    c0, c1 = words[:blocks], words[blocks : 2 * blocks]
    c2, c3 = words[2 * blocks : 3 * blocks], words[3 * blocks : 4 * blocks]
    high_0 = _LOW if k0 >> _SIGN else _ZERO
    high_1 = _LOW if k1 >> _SIGN else _ZERO
    key_0, key_1, upper_0, upper_1 = _philox(k0, high_0, k1, high_1, _SCRAMBLING_0, _SCRAMBLING_1)
    for i in range(blocks):
        c0[i], c1[i], c2[i], c3[i] = np.uint32(i), 0, np.uint32(upper_0), np.uint32(upper_1)
    for _ in range(10):
        small_0, small_1 = np.uint32(key_0), np.uint32(key_1)
        for i in range(blocks):
            product_0 = np.uint64(c0[i]) * _MULTIPLIER_0
            product_1 = np.uint64(c2[i]) * _MULTIPLIER_1
            c0[i] = np.uint32(product_1 >> _HALF) ^ c1[i] ^ small_0
            c2[i] = np.uint32(product_0 >> _HALF) ^ c3[i] ^ small_1
            c1[i], c3[i] = np.uint32(product_1), np.uint32(product_0)
        key_0, key_1 = (key_0 + _WEYL_0) & _LOW, (key_1 + _WEYL_1) & _LOW
    for i in range(blocks):
        c0[i] &= _MANTISSA
        c1[i] &= _MANTISSA
        c2[i] &= _MANTISSA
        c3[i] &= _MANTISSA
    for i in range(count, 4 * blocks):
        words[i % 4 * blocks + i // 4] = _MOST


@_compile
def _below(words, bound):
    """Return how many numbers are smaller than another."""
    count = np.uint32(0)
    for i in range(len(words)):
        count += np.uint32(words[i] < bound)
    return np.int64(count)


@_compile
def _cut(items, parts, k0, k1, words, cuts, ends):
    """Write the ends of `objectives.spans._random_composition` of one row.

    A cut is where one of the first parts - 1 numbers stands once all are sorted. Nothing needs to
    be sorted for that: it stands behind as many as are smaller, and equal numbers keep their order.
    """
    count, blocks = parts - 1, (items + 2) // 4
    ends[count] = items
    if count == 0:
        return
    _draw_mantissas(k0, k1, items - 1, words)
    for i in range(count):
        place = i % 4 * blocks + i // 4
        cuts[i] = words[place]
        words[place] = _MOST
    if count > _FEW:
        _place_many(words[: 4 * blocks], cuts[:count], ends)
        return
    for i in range(count):
        cut = cuts[i]
        place = _below(cuts[:i], cut + np.uint32(1)) + _below(cuts[i + 1 : count], cut)
        ends[place] = _below(words[: 4 * blocks], cut) + place + 1


@_compile
def _place_many(words, cuts, ends):
    """Write the ends of many cuts: sorted, then found for every number, then counted."""
    cuts.sort()
    below = np.zeros(len(cuts) + 1, np.int64)
    for i in range(len(words)):
        below[np.searchsorted(cuts, words[i], side="right")] += 1
    before = 0
    for i in range(len(cuts)):
        before += below[i]
        ends[i] = before + i + 1


@_compile
def corrupt_spans(
    tokens, starts, lengths, noise, spans, keys, first_sentinel, eos, inputs, targets, made_lengths
):
    """Fill rows of zeros with `SpanCorruption` of stretches of tokens, cut to their width with EOS.

    `noise` and `spans` are `objectives.spans.noise_counts` of the lengths (at least 2), `keys` the
    examples' own, `made_lengths` [2, n] is given the lengths of inputs and targets, EOS included.
    """
    most = 2
    for n in range(len(lengths)):
        most = max(most, lengths[n])
    words = np.empty(most + 4, np.uint32)
    cuts = np.empty(most, np.uint32)
    noise_ends = np.empty(most + 1, np.int64)
    kept_ends = np.empty(most + 1, np.int64)
    room_inputs, room_targets = inputs.shape[1] - 1, targets.shape[1] - 1
    for n in range(len(lengths)):
        length, start = lengths[n], starts[n]
        total = max(length, 2)
        k0, k1 = np.uint64(keys[n, 0]), np.uint64(keys[n, 1])
        high_0 = _LOW if k0 >> _SIGN else _ZERO
        high_1 = _LOW if k1 >> _SIGN else _ZERO
        a0, a1, c2, c3 = _philox(k0, high_0, k1, high_1, _SCRAMBLING_0, _SCRAMBLING_1)
        n0, n1, p0, p1 = _philox(_ZERO, _ZERO, c2, c3, a0, a1)  # philox.split(key, 2)
        _cut(noise[n], spans[n], n0, n1, words, cuts, noise_ends)
        _cut(total - noise[n], spans[n], p0, p1, words, cuts, kept_ends)
        at_inputs, at_targets, place = 0, 0, 0
        for span in range(spans[n]):
            kept_end = kept_ends[span] + (noise_ends[span - 1] if span else 0)
            noise_end = min(kept_ends[span] + noise_ends[span], length)
            sentinel = first_sentinel - span
            if place < min(kept_end, length):  # of a kept run, the targets hold a sentinel
                stop = min(kept_end, length)
                copied = max(min(stop - place, room_inputs - at_inputs), 0)
                for k in range(copied):
                    inputs[n, at_inputs + k] = tokens[start + place + k]
                at_inputs += copied
                if at_targets < room_targets:
                    targets[n, at_targets] = sentinel
                    at_targets += 1
                place = stop
            if place < noise_end:
                if at_inputs < room_inputs:
                    inputs[n, at_inputs] = sentinel
                    at_inputs += 1
                copied = max(min(noise_end - place, room_targets - at_targets), 0)
                for k in range(copied):
                    targets[n, at_targets + k] = tokens[start + place + k]
                at_targets += copied
                place = noise_end
        inputs[n, at_inputs] = eos
        targets[n, at_targets] = eos
        made_lengths[0, n], made_lengths[1, n] = at_inputs + 1, at_targets + 1


@_compile
def example_keys(seed, stream, epochs, indices, keys):
    """Write `objectives.philox.example_keys` of examples into [n, 2]."""
    k0, k1 = seed & _LOW, seed >> _HALF
    for n in range(len(indices)):
        index, epoch = np.uint64(indices[n]), np.uint64(epochs[n])
        w0, w1, _, _ = _philox(index & _LOW, index >> _HALF, epoch & _LOW, stream, k0, k1)
        keys[n, 0], keys[n, 1] = np.uint32(w0), np.uint32(w1)


@_compile
def window_bits(seed, window, purpose, count, bits):
    """Write `objectives.philox.random_bits` of a window's key, folded with a purpose."""
    a0, a1, _, _ = _philox(window & _LOW, window >> _HALF, _ZERO, _ZERO, seed & _LOW, seed >> _HALF)
    b0, b1, _, _ = _philox(purpose, _ZERO, _ZERO, _ZERO, a0, a1)
    high_0 = _LOW if b0 >> _SIGN else _ZERO
    high_1 = _LOW if b1 >> _SIGN else _ZERO
    k0, k1, c2, c3 = _philox(b0, high_0, b1, high_1, _SCRAMBLING_0, _SCRAMBLING_1)
    for block in range((count + 3) // 4):
        w0, w1, w2, w3 = _philox(np.uint64(block), _ZERO, c2, c3, k0, k1)
        bits[4 * block], bits[4 * block + 1] = np.uint32(w0), np.uint32(w1)
        bits[4 * block + 2], bits[4 * block + 3] = np.uint32(w2), np.uint32(w3)


@_compile
def _mix(value):
    """As `order._mix`."""
    value = (value ^ value >> np.uint64(30)) * _MIX_0
    value = (value ^ value >> np.uint64(27)) * _MIX_1
    return (value ^ value >> np.uint64(31)) >> np.uint64(1)


@_compile
def permute(places, size, left_size, right_size, round_keys, moved):
    """Write where `order.permute` takes each place."""
    for n in range(len(places)):
        value = np.uint64(places[n])
        while True:
            left, right = value // right_size, value % right_size
            for number in range(0, round_keys.shape[1], 2):
                left = (left + _mix(right + round_keys[n, number])) % left_size
                right = (right + _mix(left + round_keys[n, number + 1])) % right_size
            value = left * right_size + right
            if value < size:
                break
        moved[n] = value


@_compile
def gather_rows_with_eos(tokens, starts, lengths, eos, rows):
    """Fill rows of zeros with stretches of tokens, EOS after each; they must have room for both."""
    for n in range(len(lengths)):
        for k in range(lengths[n]):
            rows[n, k] = tokens[starts[n] + k]
        rows[n, lengths[n]] = eos


@_compile
def write_segments(tokens, lengths, row, start, segment, out_tokens, out_segments, out_positions):
    """Write each example to its row, from its start on, as its segment."""
    for n in range(len(lengths)):
        r, first, number = row[n], start[n], segment[n]
        for k in range(lengths[n]):
            out_tokens[r, first + k] = tokens[n, k]
            out_segments[r, first + k] = number
            out_positions[r, first + k] = k


@_compile
def best_fit(lengths, order, capacity, capacity_other, smallest, smallest_other, row_of):
    """Write the rows of `packing.best_fit_decreasing`, given the order in which it takes examples.

    Rows with so much free hang in a chain from `newest[free]`, the last that came there first.
    """
    newest = np.full(capacity + 1, -1, np.int64)
    older = np.empty(len(order), np.int64)
    free_other = np.empty(len(order), np.int64)
    rows = 0
    for place in range(len(order)):
        n = order[place]
        needed, needed_other = lengths[n, 0], lengths[n, 1]
        row, free = -1, capacity
        for found in range(needed, capacity + 1):
            above, candidate = -1, newest[found]
            while candidate >= 0 and free_other[candidate] < needed_other:
                above, candidate = candidate, older[candidate]
            if candidate >= 0:
                if above >= 0:
                    older[above] = older[candidate]
                else:
                    newest[found] = older[candidate]
                row, free = candidate, found
                break
        if row < 0:
            row = rows
            rows += 1
            free_other[row] = capacity_other
        free -= needed
        free_other[row] -= needed_other
        if free >= smallest and free_other[row] >= smallest_other:
            older[row] = newest[free]
            newest[free] = row
        row_of[n] = row
