"""Blocks of GGUF as numbers, against the package gguf, whose code is independent of ours."""

from __future__ import annotations

import numpy as np
import pytest

from llama2c.blocks import BLOCK_TYPES, BlockType, dequantize
from llama2c.tensors import BlockTensor, as_floats

TYPES = [pytest.param(type, id=name) for name, type in BLOCK_TYPES.items()]


def random_blocks(type: BlockType, *shape: int, seed: int = 0) -> np.ndarray:
    """Blocks of random bytes, (*shape, n_bytes) with the blocks of a row joined. Scales may be infinite or NaN."""
    *rows, per_row = shape
    return np.random.default_rng(seed).integers(0, 256, (*rows, per_row * type.n_bytes), dtype=np.uint8)


@pytest.mark.parametrize("type", TYPES)
def test_dequantised_as_the_package_gguf_does(type: BlockType) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    code = gguf.GGMLQuantizationType(type.code)
    assert code.name.lower() == type.name
    assert (type.n_values, type.n_bytes) == gguf.GGML_QUANT_SIZES[code]
    blocks = random_blocks(type, 7, 3)
    with np.errstate(all="ignore"):
        found, expected = dequantize(type, blocks), gguf.quants.dequantize(blocks, code)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_many_blocks_are_dequantised_in_several_steps() -> None:
    type = BLOCK_TYPES["q4_0"]
    blocks = random_blocks(type, 3, 8192 // 3 * 2)
    blocks[..., 1::18] &= 0x3B  # finite scales
    parts = [dequantize(type, row) for row in blocks]
    np.testing.assert_array_equal(dequantize(type, blocks), np.stack(parts))


def test_one_block_by_hand() -> None:
    # d = 0.5 (0x3800), m = -1 (0xBC00); byte j has value j below and 15 - j above
    block = np.array([0x00, 0x38, 0x00, 0xBC, *(j | (15 - j) << 4 for j in range(16))], np.uint8)
    expected = [0.5 * j - 1 for j in range(16)] + [0.5 * (15 - j) - 1 for j in range(16)]
    assert dequantize(BLOCK_TYPES["q4_1"], block).tolist() == expected


def test_a_stack_of_matrices_in_blocks() -> None:
    type = BLOCK_TYPES["q5_0"]
    blocks = random_blocks(type, 2, 3, 4)
    blocks[..., 1::22] &= 0x3B
    tensor = BlockTensor(type, blocks)
    assert (tensor.shape, tensor.nbytes, tensor.kind) == ((2, 3, 128), 2 * 3 * 4 * 22, "gguf_q5_0")
    assert tensor[1].shape == (3, 128)
    np.testing.assert_array_equal(as_floats(tensor)[1], as_floats(tensor[1]))
