"""What GGUF's blocks contain, one block at a time in plain Python, and their exact product: for the tests of the kernels.

Written from the description of the format (docs/format.md). Only the sizes of the blocks are llama2c's.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from reference import F32, fma, quantize_rows

from llama2c.blocks import BLOCK_TYPES

NON_LINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
LARGE = 256
# Where the fp16 numbers of a block are.
TWO_HALVES = {"q4_1": (0, 2), "q5_1": (0, 2), "q2_k": (80, 82), "q4_k": (0, 2), "q5_k": (0, 2)}
HALVES = {**dict.fromkeys(BLOCK_TYPES, (0,)), **TWO_HALVES, "q3_k": (108,), "q6_k": (208,), "mxfp4": ()}


class Group(NamedTuple):
    """32 weights: scale * sub[i // 16] * q[i] + minimum * sub_minimum[i // 16]."""

    q: list[int]
    scale: np.float32
    sub: tuple[int, int] = (1, 1)
    minimum: np.float32 = F32(0)
    sub_minimum: tuple[int, int] = (1, 1)


def half(raw: bytes, at: int) -> np.float32:
    return F32(struct.unpack_from("<e", raw, at)[0])


def small_group(name: str, b: bytes) -> Group:
    qs = b[-16:]
    nibbles = [byte & 15 for byte in qs] + [byte >> 4 for byte in qs]
    if name in ("q5_0", "q5_1"):
        (fifth,) = struct.unpack_from("<I", b, len(b) - 20)
        nibbles = [value | (fifth >> j & 1) << 4 for j, value in enumerate(nibbles)]
    if name == "q8_0":
        return Group(list(struct.unpack("<32b", b[2:])), half(b, 0))
    if name == "mxfp4":
        return Group([FP4[value] for value in nibbles], F32(2.0 ** (b[0] - 128)))
    if name == "iq4_nl":
        return Group([NON_LINEAR[value] for value in nibbles], half(b, 0))
    if name in ("q4_1", "q5_1"):
        return Group(nibbles, half(b, 0), minimum=half(b, 2))
    return Group([value - {"q4_0": 8, "q5_0": 16}[name] for value in nibbles], half(b, 0))


def k4_scale(s: bytes, j: int) -> tuple[int, int]:
    if j < 4:
        return s[j] & 63, s[j + 4] & 63
    return s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4


def large_group(name: str, b: bytes, g: int) -> Group:
    if name in ("q4_k", "q5_k"):
        scale, minimum = k4_scale(b[4:16], g)
        qs = b[len(b) - 128 :][32 * (g // 2) :][:32]
        q = [byte >> 4 * (g % 2) & 15 for byte in qs]
        if name == "q5_k":
            q = [value | (b[16 + i] >> g & 1) << 4 for i, value in enumerate(q)]
        return Group(q, half(b, 0) * F32(scale), minimum=-(half(b, 2) * F32(minimum)))
    if name == "iq4_xs":
        (high,) = struct.unpack_from("<H", b, 2)
        scale = (b[4 + g // 2] >> 4 * (g % 2) & 15 | (high >> 2 * g & 3) << 4) - 32
        qs = b[8 + 16 * g :][:16]
        return Group([NON_LINEAR[byte & 15] for byte in qs] + [NON_LINEAR[byte >> 4] for byte in qs], half(b, 0) * F32(scale))
    half_block, part = g // 4, g % 4
    if name == "q6_k":
        low, high = b[64 * half_block + 32 * (part % 2) :], b[128 + 32 * half_block :]
        q = [(low[i] >> 4 * (part // 2) & 15 | (high[i] >> 2 * part & 3) << 4) - 32 for i in range(32)]
        return Group(q, half(b, 208), struct.unpack_from("<2b", b, 192 + 2 * g))
    if name == "q2_k":
        q = [byte >> 2 * part & 3 for byte in b[16 + 32 * half_block :][:32]]
        low, high = b[2 * g], b[2 * g + 1]
        return Group(q, half(b, 80), (low & 15, high & 15), -half(b, 82), (low >> 4, high >> 4))
    q = [(b[32 + 32 * half_block + i] >> 2 * part & 3 | (b[i] >> g & 1) << 2) - 4 for i in range(32)]
    return Group(q, half(b, 108), (q3_scale(b[96:108], 2 * g), q3_scale(b[96:108], 2 * g + 1)))


def q3_scale(s: bytes, j: int) -> int:
    low = s[j] & 15 if j < 8 else s[j - 8] >> 4
    return (low | (s[8 + j % 4] >> 2 * (j // 4) & 3) << 4) - 32


def groups_of(name: str, row: np.ndarray) -> list[Group]:
    """The groups of a row of blocks, (bytes of the row,)."""
    n_values, n_bytes = BLOCK_TYPES[name].n_values, BLOCK_TYPES[name].n_bytes
    blocks = [row[at : at + n_bytes].tobytes() for at in range(0, len(row), n_bytes)]
    if n_values == LARGE:
        return [large_group(name, block, g) for block in blocks for g in range(8)]
    return [small_group(name, block) for block in blocks]


def random_rows(name: str, rng: np.random.Generator, n_rows: int, columns: int, offset: int = 0) -> np.ndarray:
    """(n_rows, bytes of a row) with scales as models have them; they begin `offset` bytes after an even address."""
    n_values, n_bytes = BLOCK_TYPES[name].n_values, BLOCK_TYPES[name].n_bytes
    shape = (n_rows, columns // n_values, n_bytes)
    blocks = np.ndarray(shape, np.uint8, bytearray(offset + n_rows * columns // n_values * n_bytes), offset)
    blocks[:] = rng.integers(0, 256, shape)
    for at in HALVES[name]:
        blocks[..., at : at + 2] = rng.normal(scale=0.03, size=(*shape[:2], 1)).astype("<f2").view(np.uint8)
    if name == "mxfp4":
        blocks[..., 0] = rng.integers(120, 127, shape[:2])
    return blocks.reshape(n_rows, -1)


def block_product(name: str, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(n_rows, n) fp32 times (n_out, bytes of a row) -> (n_rows, n_out), each operation rounded as docs/kernels.md says."""
    values, scales = quantize_rows(x, 32)
    values = values.astype(np.int64).reshape(len(x), -1, 2, 16)
    out = np.zeros((len(x), len(rows)), F32)
    for o, row in enumerate(rows):
        acc, low = np.zeros(len(x), F32), np.zeros(len(x), F32)
        for g, group in enumerate(groups_of(name, row)):
            sums, x_scale = values[:, g].sum(-1), scales[:, g]
            q = np.array(group.q).reshape(2, 16) * np.array(group.sub)[:, None]
            acc = fma(F32((values[:, g] * q).sum((1, 2))) * group.scale, x_scale, acc)
            if name == "q2_k":
                low = fma(F32(sums @ np.array(group.sub_minimum)) * group.minimum, x_scale, low)
            else:
                low = fma(group.minimum, x_scale * F32(sums.sum(-1)), low)
        out[:, o] = acc + low
    return out
