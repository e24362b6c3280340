"""The stream's innermost loops, compiled by numba: bit for bit what the NumPy beside them makes.

Only `data.kernels` imports this file. Integers are 64-bit and unsigned where they are random
numbers: numba makes floats of mixed signs.
"""

import numba
import numpy as np

_compile = numba.njit(cache=True, nogil=True, error_model="numpy")

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_SCRAMBLING_0, _SCRAMBLING_1 = np.uint64(0x3EC8F720), np.uint64(0x02461E29)
_SIGN, _ZERO = np.uint64(31), np.uint64(0)
_MANTISSA = np.uint32(0x7FFFFF)
_BINS, _BIN_SHIFT = 256, 15  # a mantissa has 23 bits
_SMALL = 48  # numbers that insertion sorts faster


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
    """Write `objectives.philox.mantissas` of one key, rounded up to blocks, into `words`."""
    high_0 = _LOW if k0 >> _SIGN else _ZERO
    high_1 = _LOW if k1 >> _SIGN else _ZERO
    key_0, key_1, c2, c3 = _philox(k0, high_0, k1, high_1, _SCRAMBLING_0, _SCRAMBLING_1)
    for block in range((count + 3) // 4):
        w0, w1, w2, w3 = _philox(np.uint64(block), _ZERO, c2, c3, key_0, key_1)
        words[4 * block] = np.uint32(w0) & _MANTISSA
        words[4 * block + 1] = np.uint32(w1) & _MANTISSA
        words[4 * block + 2] = np.uint32(w2) & _MANTISSA
        words[4 * block + 3] = np.uint32(w3) & _MANTISSA


@_compile
def _sort(values, count):
    if count > _SMALL:
        values[:count] = np.sort(values[:count])
        return
    for i in range(1, count):
        value = values[i]
        j = i - 1
        while j >= 0 and values[j] > value:
            values[j + 1] = values[j]
            j -= 1
        values[j + 1] = value


@_compile
def _cut(items, parts, k0, k1, words, cuts, below, first_in_bin, ends):
    """Write the ends of `objectives.spans._random_composition` of one row.

    A cut is where one of the first parts - 1 numbers stands once all are sorted. So only those are
    sorted; of the others it is enough to know between which two of them each falls. (Equal numbers
    keep their order, so one of the others always comes after its equals.)
    """
    count, gaps = parts - 1, items - 1
    ends[count] = items
    if count == 0:
        return
    _draw_mantissas(k0, k1, gaps, words)
    for i in range(count):
        cuts[i] = words[i]
        below[i] = 0
    below[count] = 0
    _sort(cuts, count)
    lower = 0
    for number in range(_BINS):
        while lower < count and (cuts[lower] >> _BIN_SHIFT) < number:
            lower += 1
        first_in_bin[number] = lower
    for place in range(count, gaps):
        word = words[place]
        after = first_in_bin[word >> _BIN_SHIFT]
        while after < count and cuts[after] <= word:
            after += 1
        below[after] += 1
    before = 0
    for i in range(count):
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
    below = np.empty(most + 1, np.int64)
    first_in_bin = np.empty(_BINS, np.int64)
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
        _cut(noise[n], spans[n], n0, n1, words, cuts, below, first_in_bin, noise_ends)
        _cut(total - noise[n], spans[n], p0, p1, words, cuts, below, first_in_bin, kept_ends)
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
def gather_with_eos(tokens, starts, lengths, eos, rows):
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
