"""Rounds fp32 matrices to the block types of GGUF, for export. blocks.py turns blocks back into numbers.

A block keeps small integers and an fp16 scale; some types keep an fp16 minimum too, or a small scale for each group of a block.
Several scales are tried for each group, and the one with the least squared error is taken. Sums are taken in one order, and
every operation is one that IEEE 754 rounds exactly, so the bytes are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..blocks import BlockType
from ..errors import ModelError

Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]

# Shapes below: (s, n), where s is how many values a group has and n how many groups are rounded at once, or (s, g, n) with the
# g groups of a block of 256. Values of a group lie along the first axis, so every operation runs over many groups at once.
CHUNK = 1 << 15  # values that are rounded at once; they stay in the processor's cache
LARGEST_HALF = 65504.0


class Writer(NamedTuple):
    """How a block type is written."""

    encode: Callable[[Floats], Bytes]  # blocks, (n, values of a block) -> (n, bytes of a block)
    largest: float  # the magnitude of a value from which on fp16 may have no scale or minimum for it


def quantize_blocks(type: BlockType, values: Floats) -> Bytes:
    """A matrix in blocks of `type`, one of WRITERS: (rows, columns) -> (rows, type.row_bytes(columns)).

    columns  a multiple of type.n_values
    values   finite numbers

    ModelError: a value is so large that fp16 has no scale for it.
    """
    writer = WRITERS[type.name]
    blocks = np.asarray(values, np.float32).reshape(-1, type.n_values)
    found = np.empty((len(blocks), type.n_bytes), np.uint8)
    step = CHUNK // type.n_values
    with np.errstate(all="ignore"):  # groups of zeros or of very small numbers, whose scales are then not taken
        for first in range(0, len(blocks), step):
            chunk = blocks[first : first + step]
            largest = max(float(chunk.max()), -float(chunk.min()))
            if largest > writer.largest:
                raise ModelError(f"expected values up to {writer.largest:.0f}, the limit of {type.name}, found {largest:g}")
            found[first : first + step] = writer.encode(chunk)
    return found.reshape(len(values), type.row_bytes(values.shape[-1]))


# ---------------------------------------------------------------------------
# sums and integers


def _sum(terms: Floats) -> Floats:
    """The sum along the first axis, whose length is a power of two: (s, ...) -> (...). Overwrites `terms`.

    np.sum adds in an order that depends on the shape. Here one half is added to the other, again and again.
    """
    while len(terms) > 2:
        half = len(terms) // 2
        terms = np.add(terms[:half], terms[half:], out=terms[:half])
    total: Floats = np.add(terms[0], terms[1])
    return total


def _integers(values: Floats, scale: Floats, low: int, high: int, out: Floats) -> Floats:
    """values / scale as integers from low to high, zeros where the scale is 0: (s, ...) and (...) -> (s, ...)."""
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    np.multiply(values, inverse, out=out)
    np.rint(out, out=out)
    return np.clip(out, low, high, out=out)


def _ratio(over: Floats, under: Floats) -> Floats:
    """over / under, and 0 where that is 0 / 0."""
    return np.divide(over, under, out=np.zeros_like(over), where=under != 0)


def _half(numbers: Floats) -> Floats:
    """The nearest finite numbers that fp16 has, as fp32; there is no -0."""
    return np.clip(numbers, -LARGEST_HALF, LARGEST_HALF).astype(np.float16).astype(np.float32) + np.float32(0)


def _squared_error(values: Floats, q: Floats, scale: Floats, out: Floats) -> Floats:
    """The sum of (scale * q - value)^2 along the first axis. Overwrites `out`."""
    np.multiply(q, scale, out=out)
    np.subtract(out, values, out=out)
    return _sum(np.multiply(out, out, out=out))


def _keep_better(best: Sequence[Floats | Doubles], new: Sequence[Floats | Doubles]) -> None:
    """Takes over what is new where the error, which is the last array, is less than that of the best so far."""
    better = new[-1] < best[-1]
    for kept, other in zip(best, new, strict=True):
        np.copyto(kept, other, where=better)


# ---------------------------------------------------------------------------
# the scale of a group, or its scale and its minimum


def _find_scale(x: Floats, low: int, high: int, peaks: Sequence[float], to_half: bool = True) -> Floats:
    """The scale with which the integers low..high come nearest to the values of a group: (s, ...) -> (...).

    peaks    what the value of the largest magnitude is tried to be, in units of the scale
    to_half  whether only scales that fp16 has are taken

    For the integers q of each peak, least squares gives the scale. The error is x.x - scale * (2 * x.q - scale * q.q).
    """
    largest = _of_largest_magnitude(x)
    q, work = np.empty_like(x), np.empty_like(x)
    best = np.zeros_like(largest), np.zeros(largest.shape)  # with scale 0 the error is x.x, which is left out
    for peak in peaks:
        _integers(x, largest / np.float32(peak), low, high, q)
        along = _sum(np.multiply(x, q, out=work))
        length = _sum(np.multiply(q, q, out=work))
        scale = _ratio(along, length)
        if to_half:
            scale = _half(scale)
        _keep_better(best, (scale, _lost(scale, along, length)))
    return best[0]


def _lost(scale: Floats, along: Floats, length: Floats) -> Doubles:
    """The squared error of scale * q, less x.x: along = x.q, length = q.q. In fp64, in which no digit of it is lost."""
    wide = scale.astype(np.float64)
    return -wide * (2.0 * along - wide * length)


def _of_largest_magnitude(x: Floats) -> Floats:
    """Along the first axis: (s, ...) -> (...)."""
    top, bottom = x.max(axis=0), x.min(axis=0)
    largest: Floats = np.where(top > -bottom, top, bottom)
    return largest


def _find_scale_and_minimum(x: Floats, high: int, peaks: Sequence[float], below_zero: bool = False) -> tuple[Floats, Floats]:
    """The scale and the minimum with which scale * (0..high) + minimum comes nearest to the values of a group.

    peaks       what the range of the values is tried to be, in units of the scale
    below_zero  whether the minimum must not be above 0

    (s, ...) -> (...), twice. Works with y = x - base, where base is the least value, so that sums are exact enough.
    """
    base = x.min(axis=0)
    if below_zero:
        np.minimum(base, 0, out=base)
    y = x - base
    span, total = y.max(axis=0), _sum(y.copy())
    most = -base if below_zero else None
    q, work = np.empty_like(x), np.empty_like(x)
    best = np.zeros_like(base), np.zeros_like(base), np.full(base.shape, np.inf)
    for peak in peaks:
        _integers(y, span / np.float32(peak), 0, high, q)
        along = _sum(np.multiply(y, q, out=work))
        length = _sum(np.multiply(q, q, out=work))
        _keep_better(best, _line(len(x), along, length, _sum(q), total, most))
    return best[0], base + best[1]


def _line(
    n: int, along: Floats, length: Floats, count: Floats, total: Floats, most: Floats | None
) -> tuple[Floats, Floats, Doubles]:
    """The line scale * q + start that is nearest to y: its scale, its start, and its squared error less y.y.

    Of n points: along = y.q, length = q.q, count and total are the sums of q and of y. The scale is one that fp16 has, or,
    if `most` is given, any, but the start is no more than that.
    """
    size = np.float32(n)
    scale = _ratio(along * size - total * count, length * size - count * count)
    if most is None:
        scale = _half(scale)
    start: Floats = np.divide(total - scale * count, size)
    if most is not None:
        over = start > most
        np.copyto(start, most, where=over)
        np.copyto(scale, _ratio(along - start * count, length), where=over)
    wide = start.astype(np.float64)
    lost: Doubles = _lost(scale, along, length) + wide * (2.0 * (count * scale - total) + wide * n)
    return scale, start, lost


# ---------------------------------------------------------------------------
# blocks of 32 values, each a group


def _half_bytes(numbers: Floats) -> Bytes:
    """fp16 numbers (n,) as bytes, (n, 2)."""
    return numbers.astype("<f2").view(np.uint8).reshape(-1, 2)


def _nibbles(q: Bytes) -> Bytes:
    """Two halves of a group in the low and the high halves of bytes: (32, n) -> (n, 16)."""
    joined: Bytes = np.bitwise_or(q[:16] & 15, q[16:] << 4, dtype=np.uint8)
    return joined.T


def _fifth_bits(q: Bytes) -> Bytes:
    """Bit 4 of 32 values: (32, n) -> (n, 4)."""
    return np.packbits(q >> 4, axis=0, bitorder="little").T


def _symmetric(blocks: Floats, low: int, high: int, peaks: Sequence[float]) -> tuple[Floats, Floats]:
    """Scales (n,) and integers (32, n) for blocks (n, 32)."""
    x = np.ascontiguousarray(blocks.T)
    q, work = np.empty_like(x), np.empty_like(x)
    scale = _find_scale(x, low, high, peaks)
    best = np.zeros_like(scale), np.full_like(scale, np.inf)
    for _ in range(2):  # the integers may have changed with the fp16 scale, and another scale may be better for them
        _integers(x, scale, low, high, q)
        _keep_better(best, (scale, _squared_error(x, q, scale, work)))
        along = _sum(np.multiply(x, q, out=work))
        scale = _half(_ratio(along, _sum(np.multiply(q, q, out=work))))
    return best[0], _integers(x, best[0], low, high, q)


def _with_minimum(blocks: Floats, high: int, peaks: Sequence[float]) -> tuple[Floats, Floats, Floats]:
    """Scales (n,), minimums (n,) and integers (32, n) for blocks (n, 32)."""
    x = np.ascontiguousarray(blocks.T)
    y, q, work = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    bottom = x.min(axis=0)
    plain = (x.max(axis=0) - bottom) / np.float32(high), bottom  # can be better where fp16 has few numbers near the minimum
    best = np.zeros_like(bottom), np.zeros_like(bottom), np.full_like(bottom, np.inf)
    for scale, minimum in (_find_scale_and_minimum(x, high, peaks), plain):
        scale, minimum = _half(scale), _half(minimum)
        np.subtract(x, minimum, out=y)
        for _ in range(2):
            _integers(y, scale, 0, high, q)
            _keep_better(best, (scale, minimum, _squared_error(y, q, scale, work)))
            along = _sum(np.multiply(y, q, out=work))
            scale = _half(_ratio(along, _sum(np.multiply(q, q, out=work))))  # the best one with this minimum
    scale, minimum, _ = best
    return scale, minimum, _integers(np.subtract(x, minimum, out=y), scale, 0, high, q)


def _q4_0(blocks: Floats) -> Bytes:
    scale, q = _symmetric(blocks, -8, 7, (-8, -7, -6, -5, -4, -9, -8.5, -7.5, -6.5, 8, 7.5))
    return np.concatenate([_half_bytes(scale), _nibbles((q + 8).astype(np.uint8))], axis=1)


def _q5_0(blocks: Floats) -> Bytes:
    scale, q = _symmetric(blocks, -16, 15, (-16, -15, -14, -13, -12, -11, -10, -9, -8, -16.5, -15.5, -14.5, 16))
    q5 = (q + 16).astype(np.uint8)
    return np.concatenate([_half_bytes(scale), _fifth_bits(q5), _nibbles(q5)], axis=1)


def _q8_0(blocks: Floats) -> Bytes:
    scale, q = _symmetric(blocks, -127, 127, (*range(127, 99, -2), 96, 64))
    return np.concatenate([_half_bytes(scale), q.astype(np.int8).view(np.uint8).T], axis=1)


def _q4_1(blocks: Floats) -> Bytes:
    scale, minimum, q = _with_minimum(blocks, 15, PEAKS_4)
    return np.concatenate([_half_bytes(scale), _half_bytes(minimum), _nibbles(q.astype(np.uint8))], axis=1)


def _q5_1(blocks: Floats) -> Bytes:
    scale, minimum, q = _with_minimum(blocks, 31, PEAKS_5)
    q5 = q.astype(np.uint8)
    return np.concatenate([_half_bytes(scale), _half_bytes(minimum), _fifth_bits(q5), _nibbles(q5)], axis=1)


# ---------------------------------------------------------------------------
# blocks of 256 values: groups of 32 or 16, whose scales and minimums are small integers times an fp16 number

TRIALS = (0, -1, 1)  # added to the integer scale of a group that is nearest to the scale that it should have


class Groups(NamedTuple):
    """Integer scales and minimums of groups, (g, n), and d and dmin of blocks, (n,): a value is d*scale*q - dmin*minimum."""

    d: Floats
    dmin: Floats
    scales: Floats
    minimums: Floats
    error: Floats  # of a block: (n,)


def _sum_of_groups(terms: Floats) -> Floats:
    """The sum over the groups of a block: (g, n) -> (n,)."""
    return _sum(terms.copy())


def _units(numbers: Floats, unit: Floats) -> Floats:
    """Which multiples of a unit (n,) are nearest to the numbers (g, n)."""
    return np.rint(_ratio(numbers, np.broadcast_to(unit, numbers.shape)))


def _with_minimums(blocks: Floats, high: int, peaks: Sequence[float]) -> tuple[Groups, Bytes]:
    """Scales, minimums and integers (32, 8, n) for blocks (n, 256) of q4_k or q5_k."""
    x = np.ascontiguousarray(blocks.reshape(-1, 8, 32).transpose(2, 1, 0))
    total = _sum(x.copy())
    scale, minimum = _find_scale_and_minimum(x, high, peaks, below_zero=True)
    below = -minimum
    d, dmin = _half(scale.max(axis=0) / np.float32(63)), _half(below.max(axis=0) / np.float32(63))
    best = _choose_both(x, total, d, dmin, scale, below, high)
    for _ in range(2):
        d, dmin = _fit_halves(x, total, best, high)
        _keep_better(best, _choose_both(x, total, d, dmin, best.d * best.scales, best.dmin * best.minimums, high))
    q = _integers(x + best.dmin * best.minimums, best.d * best.scales, 0, high, np.empty_like(x))
    return best, q.astype(np.uint8)


def _choose_both(x: Floats, total: Floats, d: Floats, dmin: Floats, scale: Floats, below: Floats, high: int) -> Groups:
    """The integer scales and minimums with the least error among some near scale / d and below / dmin.

    x (32, 8, n), its sums `total` and the wanted scale and minimum (8, n)
    """
    y, q, work = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    nearest = _units(scale, d)
    best = np.zeros_like(nearest), np.zeros_like(nearest), np.full_like(nearest, np.inf)
    for trial in TRIALS:
        scales = np.clip(nearest + np.float32(trial), 0, 63)
        actual = d * scales
        np.add(x, below, out=y)
        count = _sum(_integers(y, actual, 0, high, q))
        wanted = (actual * count - total) / np.float32(len(x))  # the minimum that is best with these integers
        minimums = np.clip(_units(wanted, dmin), 0, 63)
        np.add(x, dmin * minimums, out=y)
        _integers(y, actual, 0, high, q)
        _keep_better(best, (scales, minimums, _squared_error(y, q, actual, work)))
    return Groups(d, dmin, best[0], best[1], _sum_of_groups(best[2]))


def _fit_halves(x: Floats, total: Floats, groups: Groups, high: int) -> tuple[Floats, Floats]:
    """The d and dmin of each block that are best with the integers of `groups`, by least squares."""
    scales, minimums = groups.scales, groups.minimums
    q, work = np.empty_like(x), np.empty_like(x)
    _integers(np.add(x, groups.dmin * minimums, out=work), groups.d * scales, 0, high, q)
    along = _sum_of_groups(scales * _sum(np.multiply(x, q, out=work)))
    length = _sum_of_groups(scales * scales * _sum(np.multiply(q, q, out=work)))
    count = _sum_of_groups(scales * minimums * _sum(q))
    below = _sum_of_groups(minimums * total)
    weight = _sum_of_groups(minimums * minimums) * np.float32(len(x))
    under = length * weight - count * count
    d = np.where(under > 0, _ratio(along * weight - below * count, under), _ratio(along, length))
    dmin = _ratio(d * count - below, weight)
    return _half(np.maximum(d, 0)), _half(np.maximum(dmin, 0))


def _six_bits(groups: Groups) -> Bytes:
    """d, dmin, and eight scales and minimums of six bits in 12 bytes: (n, 16)."""
    scales, minimums = groups.scales.astype(np.uint8).T, groups.minimums.astype(np.uint8).T
    low = scales[:, :4] | scales[:, 4:] >> 4 << 6
    middle = minimums[:, :4] | minimums[:, 4:] >> 4 << 6
    high = scales[:, 4:] & 15 | minimums[:, 4:] << 4
    return np.concatenate([_half_bytes(groups.d), _half_bytes(groups.dmin), low, middle, high], axis=1)


def _k_nibbles(q: Bytes) -> Bytes:
    """Two groups after each other in the low and the high halves of 32 bytes: (32, 8, n) -> (n, 128)."""
    pairs: Bytes = np.bitwise_or(q[:, 0::2] & 15, q[:, 1::2] << 4, dtype=np.uint8)  # (32, 4, n)
    return pairs.transpose(2, 1, 0).reshape(-1, 128)


def _q4_k(blocks: Floats) -> Bytes:
    groups, q = _with_minimums(blocks, 15, PEAKS_4)
    return np.concatenate([_six_bits(groups), _k_nibbles(q)], axis=1)


def _q5_k(blocks: Floats) -> Bytes:
    groups, q = _with_minimums(blocks, 31, PEAKS_5)
    fifth = np.packbits(q >> 4, axis=1, bitorder="little")[:, 0].T  # bit g of byte l: value l of group g
    return np.concatenate([_six_bits(groups), fifth, _k_nibbles(q)], axis=1)


def _choose_scales(x: Floats, d: Floats, wanted: Floats) -> tuple[Floats, Floats, Floats]:
    """d, the integer scales (16, n) near wanted / d with the least error, and that error (n,): for x (16, 16, n)."""
    q, work = np.empty_like(x), np.empty_like(x)
    nearest = _units(wanted, d)
    best = np.zeros_like(nearest), np.full_like(nearest, np.inf)
    for trial in TRIALS:
        scales = np.clip(nearest + np.float32(trial), -128, 127)
        _integers(x, d * scales, -32, 31, q)
        _keep_better(best, (scales, _squared_error(x, q, d * scales, work)))
    return d, best[0], _sum_of_groups(best[1])


def _q6_k(blocks: Floats) -> Bytes:
    x = np.ascontiguousarray(blocks.reshape(-1, 16, 16).transpose(2, 1, 0))
    q, work = np.empty_like(x), np.empty_like(x)
    wanted = _find_scale(x, -32, 31, PEAKS_6, to_half=False)
    best = _choose_scales(x, _half(_of_largest_magnitude(wanted) / np.float32(-128)), wanted)
    d, scales, _ = best
    _integers(x, d * scales, -32, 31, q)
    along = _sum_of_groups(scales * _sum(np.multiply(x, q, out=work)))
    length = _sum_of_groups(scales * scales * _sum(np.multiply(q, q, out=work)))
    _keep_better(best, _choose_scales(x, _half(_ratio(along, length)), d * scales))
    d, scales, _ = best
    _integers(x, d * scales, -32, 31, q)
    return np.concatenate(
        [*_six_bit_values((q + 32).astype(np.uint8)), scales.T.astype(np.int8).view(np.uint8), _half_bytes(d)], axis=1
    )


def _six_bit_values(q: Bytes) -> tuple[Bytes, Bytes]:
    """The low four bits and the high two of the values of q6_k: (16, 16, n) -> (n, 128) and (n, 64)."""
    parts = q.transpose(2, 1, 0).reshape(-1, 2, 4, 32)  # (n, half of the block, quarter of the half, value)
    low = np.bitwise_or(parts[:, :, :2] & 15, parts[:, :, 2:] << 4, dtype=np.uint8)
    high = parts >> 4
    high = np.bitwise_or.reduce(high << np.array([[0], [2], [4], [6]], np.uint8), axis=2)
    return low.reshape(-1, 128), high.reshape(-1, 64)


PEAKS_4 = (15, 14, 13, 12, 11, 10, 9, 8, 15.5, 14.5, 13.5, 16.5)
PEAKS_5 = (31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 18, 16, 31.5, 32.5)
PEAKS_6 = (-32, -31, -30, -29, -28, -27, -26, -25, -24, -23, -22, -21, -20, 32)
WRITERS: Mapping[str, Writer] = {
    "q4_0": Writer(_q4_0, 8 * LARGEST_HALF),
    "q4_1": Writer(_q4_1, LARGEST_HALF),
    "q5_0": Writer(_q5_0, 16 * LARGEST_HALF),
    "q5_1": Writer(_q5_1, LARGEST_HALF),
    "q4_k": Writer(_q4_k, 63 * LARGEST_HALF),
    "q5_k": Writer(_q5_k, 63 * LARGEST_HALF),
    "q6_k": Writer(_q6_k, 128 * 32 * LARGEST_HALF),
    "q8_0": Writer(_q8_0, 127 * LARGEST_HALF),
}
