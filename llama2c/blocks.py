"""The block types of GGUF: how many bytes a block has, and which numbers they stand for.

A row of a matrix is a sequence of blocks, each with 32 or 256 numbers. Readers, writers and kernels share the table. Kernels
read blocks as they are; the functions here turn them into fp32 with NumPy, for whoever needs the numbers themselves.
The layouts are those of ggml; docs/format.md describes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]  # (n_blocks, bytes of a block), or some of the columns
Floats: TypeAlias = NDArray[np.float32]

SMALL, LARGE = 32, 256  # numbers in a block


class BlockType(NamedTuple):
    """One way to store a block of numbers."""

    name: str  # "q4_k"; in the kernels its kind is "gguf_q4_k"
    code: int  # in a GGUF file
    n_values: int  # numbers in a block
    n_bytes: int
    decode: Callable[[Bytes], Floats]  # (n, n_bytes) -> (n, n_values)

    @property
    def kind(self) -> str:
        return f"gguf_{self.name}"

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` numbers, a multiple of n_values."""
        return columns // self.n_values * self.n_bytes


def dequantize(type: BlockType, rows: Bytes) -> Floats:
    """Rows of blocks, (..., bytes of a row), as fp32 numbers, (..., columns): the numbers that ggml's own code gives."""
    blocks = rows.reshape(-1, type.n_bytes)
    values = np.empty((len(blocks), type.n_values), np.float32)
    step = (1 << 18) // type.n_values  # what is worked on at once stays in the cache
    for first in range(0, len(blocks), step):
        values[first : first + step] = type.decode(blocks[first : first + step])
    return values.reshape(*rows.shape[:-1], rows.shape[-1] // type.n_bytes * type.n_values)


# ---------------------------------------------------------------------------
# parts of a block


def _half(two_bytes: Bytes) -> Floats:
    """fp16 numbers, (n, 1)."""
    halves: NDArray[np.float16] = np.ascontiguousarray(two_bytes).view("<f2")
    return halves.astype(np.float32)


def _nibbles(qs: Bytes) -> Bytes:
    """The low halves of all bytes, then the high ones: (n, m) -> (n, 2 m)."""
    return np.concatenate([qs & 15, qs >> 4], axis=1)


def _pairs_of_bits(qs: Bytes) -> Bytes:
    """The bits 0-1 of all bytes, then 2-3, 4-5 and 6-7: (n, 32) -> (n, 4, 32)."""
    shifts: Bytes = np.array([[0], [2], [4], [6]], np.uint8)
    pairs: Bytes = np.bitwise_and(qs[:, np.newaxis, :] >> shifts, 3, dtype=np.uint8)
    return pairs


def _fifth_bits(qh: Bytes) -> Bytes:
    """The 32 bits of qh, (n, 4) -> (n, 32), each moved to where a fifth bit is: 0 or 16."""
    bits: Bytes = np.left_shift(np.unpackbits(qh, axis=1, bitorder="little"), 4, dtype=np.uint8)
    return bits


def _products(scales: Floats, values: NDArray[np.generic]) -> Floats:
    """scales (n, 1) or (n, groups, 1) times values, with one rounding."""
    return np.multiply(scales, values.astype(np.float32), dtype=np.float32)


# ---------------------------------------------------------------------------
# blocks of 32 numbers

_NON_LINEAR = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
_FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)  # twice the value, to be integers


def _q4_0(b: Bytes) -> Floats:
    return _products(_half(b[:, :2]), _nibbles(b[:, 2:]).astype(np.int8) - 8)


def _q4_1(b: Bytes) -> Floats:
    return _products(_half(b[:, :2]), _nibbles(b[:, 4:])) + _half(b[:, 2:4])


def _q5_0(b: Bytes) -> Floats:
    values = _nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6])
    return _products(_half(b[:, :2]), values.astype(np.int8) - 16)


def _q5_1(b: Bytes) -> Floats:
    values = _nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8])
    return _products(_half(b[:, :2]), values) + _half(b[:, 2:4])


def _q8_0(b: Bytes) -> Floats:
    return _products(_half(b[:, :2]), b[:, 2:].view(np.int8))


def _iq4_nl(b: Bytes) -> Floats:
    return _products(_half(b[:, :2]), _NON_LINEAR[_nibbles(b[:, 2:])])


def _mxfp4(b: Bytes) -> Floats:
    exponents = b[:, :1].astype(np.int32) - 128
    return _products(np.ldexp(np.float32(1), exponents), _FP4[_nibbles(b[:, 1:])])


# ---------------------------------------------------------------------------
# blocks of 256 numbers: groups of 32 or 16, each with a small integer scale


def _k4_scales(b: Bytes) -> tuple[Bytes, Bytes]:
    """The eight 6-bit scales and the eight 6-bit minimums of q4_k and q5_k, (n, 12) -> (n, 8) each.

    The first four are in the low six bits of a byte; the last four are in a half byte and two high bits elsewhere.
    """
    low, middle, high = b[:, :4], b[:, 4:8], b[:, 8:]
    scales = np.concatenate([low & 63, high & 15 | low >> 6 << 4], axis=1)
    minimums = np.concatenate([middle & 63, high >> 4 | middle >> 6 << 4], axis=1)
    return scales, minimums


def _scaled_groups(d: Floats, scales: NDArray[np.generic], values: NDArray[np.generic]) -> Floats:
    """(d * scale of the group) * value: d (n, 1), scales (n, groups), values (n, ..., 256 in all) -> (n, groups, size)."""
    groups = values.reshape(*scales.shape, -1)
    return _products(_products(d, scales)[..., np.newaxis], groups)


def _q4_k(b: Bytes) -> Floats:
    scales, minimums = _k4_scales(b[:, 4:16])
    values = np.stack([b[:, 16:].reshape(-1, 4, 32) & 15, b[:, 16:].reshape(-1, 4, 32) >> 4], axis=2)
    less = _products(_half(b[:, 2:4]), minimums)[..., np.newaxis]
    return (_scaled_groups(_half(b[:, :2]), scales, values) - less).reshape(-1, LARGE)


def _q5_k(b: Bytes) -> Floats:
    scales, minimums = _k4_scales(b[:, 4:16])
    qs = b[:, 48:].reshape(-1, 4, 32)
    fifth = (b[:, np.newaxis, 16:48] >> np.arange(8, dtype=np.uint8)[:, np.newaxis] & 1) << 4
    values = np.stack([qs & 15, qs >> 4], axis=2).reshape(-1, 8, 32) | fifth
    less = _products(_half(b[:, 2:4]), minimums)[..., np.newaxis]
    return (_scaled_groups(_half(b[:, :2]), scales, values) - less).reshape(-1, LARGE)


def _q6_k(b: Bytes) -> Floats:
    low = b[:, :128].reshape(-1, 2, 2, 32)  # (n, half of the block, first or second 32 bytes, 32)
    high = _pairs_of_bits(b[:, 128:192].reshape(-1, 32)).reshape(-1, 2, 4, 32)
    values = np.concatenate([low & 15, low >> 4], axis=2) | high << 4
    return _scaled_groups(_half(b[:, 208:]), b[:, 192:208].view(np.int8), values.astype(np.int8) - 32).reshape(-1, LARGE)


def _q2_k(b: Bytes) -> Floats:
    values = _pairs_of_bits(b[:, 16:80].reshape(-1, 32)).reshape(-1, 16, 16)
    less = _products(_half(b[:, 82:]), b[:, :16] >> 4)[..., np.newaxis]
    return (_scaled_groups(_half(b[:, 80:82]), b[:, :16] & 15, values) - less).reshape(-1, LARGE)


def _q3_k(b: Bytes) -> Floats:
    low, high = b[:, 96:104], b[:, 104:108]  # four bits of each scale, then two more
    scales = np.concatenate([low & 15, low >> 4], axis=1) | _pairs_of_bits(high).reshape(-1, 16) << 4
    bits = b[:, np.newaxis, :32] >> np.arange(8, dtype=np.uint8)[:, np.newaxis] & 1
    values = _pairs_of_bits(b[:, 32:96].reshape(-1, 32)).reshape(-1, 8, 32) | bits << 2
    return _scaled_groups(_half(b[:, 108:]), scales.astype(np.int8) - 32, values.astype(np.int8) - 4).reshape(-1, LARGE)


def _iq4_xs(b: Bytes) -> Floats:
    high = np.ascontiguousarray(b[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    values = _NON_LINEAR[_nibbles(b[:, 8:].reshape(-1, 16))]
    return _scaled_groups(_half(b[:, :2]), (low | high << 4).astype(np.int8) - 32, values).reshape(-1, LARGE)


BLOCK_TYPES: Mapping[str, BlockType] = {
    name: BlockType(name, code, n_values, n_bytes, decode)
    for name, code, n_values, n_bytes, decode in (
        ("q4_0", 2, SMALL, 18, _q4_0),
        ("q4_1", 3, SMALL, 20, _q4_1),
        ("q5_0", 6, SMALL, 22, _q5_0),
        ("q5_1", 7, SMALL, 24, _q5_1),
        ("q8_0", 8, SMALL, 34, _q8_0),
        ("q2_k", 10, LARGE, 84, _q2_k),
        ("q3_k", 11, LARGE, 110, _q3_k),
        ("q4_k", 12, LARGE, 144, _q4_k),
        ("q5_k", 13, LARGE, 176, _q5_k),
        ("q6_k", 14, LARGE, 210, _q6_k),
        ("iq4_nl", 20, SMALL, 18, _iq4_nl),
        ("iq4_xs", 23, LARGE, 136, _iq4_xs),
        ("mxfp4", 39, SMALL, 17, _mxfp4),
    )
}
