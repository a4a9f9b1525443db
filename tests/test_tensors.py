"""tensors: every kind of matrix in fp32, its size, and the two orders of the rows of wq and wk."""

from __future__ import annotations

import checkpoints
import folders
import numpy as np
import pytest

from llama2c import _kernels
from llama2c.blocks import BLOCK_TYPES
from llama2c.tensors import BFloat16Tensor, BlockTensor, Layers, QuantizedTensor, as_floats, as_weight, count, halved, paired

RNG = np.random.default_rng(2)
MATRIX = RNG.normal(size=(6, 8)).astype(np.float32)


def test_as_floats() -> None:
    assert as_floats(MATRIX) is MATRIX
    half = MATRIX.astype(np.float16)
    np.testing.assert_array_equal(as_floats(half), half.astype(np.float32))
    bits = checkpoints.narrow(MATRIX, "bfloat16")
    tensor = as_weight(bits, "bfloat16")
    assert isinstance(tensor, BFloat16Tensor)
    np.testing.assert_array_equal(as_floats(tensor), checkpoints.widen(bits, "bfloat16"))
    np.testing.assert_array_equal(as_floats(tensor[1:3]), checkpoints.widen(bits[1:3], "bfloat16"))
    assert as_weight(half, "float16") is half
    values, scales = checkpoints.quantize(MATRIX, 4)
    quantized = QuantizedTensor(values, scales, 4)
    np.testing.assert_array_equal(as_floats(quantized), values * np.repeat(scales, 4).reshape(values.shape))
    layers = Layers((MATRIX, tensor, half))
    np.testing.assert_array_equal(as_floats(layers), np.stack([as_floats(part) for part in (MATRIX, tensor, half)]))
    assert layers[1] is tensor


def test_numpy_makes_fp32_arrays_of_them() -> None:
    values, scales = checkpoints.quantize(np.stack([MATRIX, MATRIX[::-1]]), 4)
    quantized = QuantizedTensor(values, scales.reshape(2, -1), 4)
    bits = BFloat16Tensor(checkpoints.narrow(MATRIX, "bfloat16"))
    blocks = BlockTensor(BLOCK_TYPES["q8_0"], RNG.integers(0, 60, (3, 68), np.uint8))  # scales like 1e-3
    for tensor in (quantized, quantized[1], bits, blocks, Layers((MATRIX, bits))):
        found = np.asarray(tensor)
        assert found.dtype == np.float32 and found.shape == tensor.shape
        np.testing.assert_array_equal(found, as_floats(tensor))
        assert np.array(tensor, np.float64).dtype == np.float64
        with pytest.raises(ValueError, match=f"^{type(tensor).__name__}: "):
            tensor.__array__(copy=False)
    x = RNG.normal(size=8).astype(np.float32)
    np.testing.assert_array_equal(quantized[1] @ x, as_floats(quantized)[1] @ x)
    row = np.array(quantized[1][2])
    row *= 2  # it is the caller's own
    np.testing.assert_array_equal(np.asarray(quantized)[1, 2], row / 2)


def test_rows_of_a_quantised_matrix() -> None:
    values, scales = checkpoints.quantize(MATRIX, 4)
    matrix = QuantizedTensor(values, scales.reshape(-1), 4)
    for part in (3, -1, slice(1, 3), slice(None, None, -2)):
        assert matrix[part].shape == MATRIX[part].shape
        np.testing.assert_array_equal(as_floats(matrix[part]), as_floats(matrix)[part])
    across = QuantizedTensor(values, scales.reshape(-1)[:4], 12)  # a group is a row and a half
    with pytest.raises(ValueError, match="rows of 8 numbers in groups of 12 have no scales of their own"):
        across[0]


def test_kinds_are_those_of_the_kernels() -> None:
    """One name each: a class has it as `kind`, an array as the name of its dtype."""
    values, scales = checkpoints.quantize(MATRIX, 4)
    half, bits = MATRIX.astype(np.float16), BFloat16Tensor(checkpoints.narrow(MATRIX, "bfloat16"))
    kinds = [MATRIX.dtype.name, half.dtype.name, bits.kind, QuantizedTensor(values, scales, 4).kind]
    assert kinds == ["float32", "float16", "bfloat16", "q8_0"]
    blocks = [BlockTensor(type, np.zeros((1, type.n_bytes), np.uint8)).kind for type in BLOCK_TYPES.values()]
    assert set(_kernels.KINDS) == {*kinds, *blocks} and len(_kernels.KINDS) == len(kinds) + len(blocks)


def test_sizes() -> None:
    bits = BFloat16Tensor(np.zeros((6, 8), np.uint16))
    quantized = QuantizedTensor(np.zeros((2, 6, 8), np.int8), np.zeros((2, 12), np.float32), 4)
    layers = Layers((MATRIX, bits))
    assert [weight.shape for weight in (bits, quantized, layers)] == [(6, 8), (2, 6, 8), (2, 6, 8)]
    assert [weight.nbytes for weight in (bits, quantized, layers)] == [96, 2 * (48 + 48), 192 + 96]
    assert [count(weight) for weight in (MATRIX, bits, quantized, layers)] == [48, 48, 96, 96]


@pytest.mark.parametrize("head_size", [2, 4, 6, 12])
def test_the_two_orders_of_rows(head_size: int) -> None:
    rows = RNG.normal(size=(24, 3)).astype(np.float32)
    in_halves = halved(rows, head_size)
    np.testing.assert_array_equal(in_halves, folders.rows_in_halves(rows, head_size))
    np.testing.assert_array_equal(paired(in_halves, head_size), rows)
