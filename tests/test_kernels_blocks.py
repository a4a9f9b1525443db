"""_kernels: products with GGUF's blocks, against the integers of each block and the same order of operations in NumPy."""

from __future__ import annotations

import mmap
from types import SimpleNamespace

import block_reference
import numpy as np
import pytest
from block_reference import HALVES, block_product, random_rows
from reference import F32

from llama2c import _kernels
from llama2c.blocks import BLOCK_TYPES
from llama2c.tensors import BlockTensor

NAMES = list(BLOCK_TYPES)


def columns_of(name: str) -> list[int]:
    """Rows of whole chunks of 256, and of fewer, more and odd numbers of groups where a block has 32."""
    return [256, 1280] if BLOCK_TYPES[name].n_values == 256 else [32, 96, 256, 288, 576]


def product(x: np.ndarray, name: str, rows: np.ndarray, n_threads: int = 1) -> np.ndarray:
    out = np.full((len(x), len(rows)), 777, F32)
    _kernels.matmul(out, x, BlockTensor(BLOCK_TYPES[name], rows), n_threads)
    return out


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """To the last bit; generic may lack a fused operation."""
    if _kernels.isa == "generic":
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_has_the_numbers_of_dequantize(name: str) -> None:
    rows = random_rows(name, np.random.default_rng(1), 3, 512)
    for row, expected in zip(rows, BlockTensor(BLOCK_TYPES[name], rows).dequantize(), strict=True):
        for group, numbers in zip(block_reference.groups_of(name, row), expected.reshape(-1, 32), strict=True):
            scales = np.repeat([group.scale * F32(sub) for sub in group.sub], 16)
            minimums = np.repeat([group.minimum * F32(sub) for sub in group.sub_minimum], 16)
            np.testing.assert_array_equal(scales * np.array(group.q, F32) + minimums, numbers)


@pytest.mark.parametrize("name", NAMES)
def test_products_are_exact(name: str) -> None:
    """Few rows read the blocks directly, many read tiles: both, with outputs that fill no tile, blocks at any byte, threads."""
    for columns in columns_of(name):
        rng = np.random.default_rng(columns)
        rows = random_rows(name, rng, 37, columns, offset=1)
        x = rng.normal(size=(14, columns)).astype(F32)
        x[3, :32] = 0
        expected = block_product(name, x, rows)
        for n_rows in (1, 2, 8, 9, 14):
            for n_threads in (1, 3):
                assert_same(product(x[:n_rows], name, rows, n_threads), expected[:n_rows])


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_depend_on_each_other(name: str) -> None:
    rng = np.random.default_rng(2)
    rows, x = random_rows(name, rng, 64, 768), rng.normal(size=(41, 768)).astype(F32)
    alone = np.vstack([product(row[None], name, rows) for row in x])
    for n_rows in range(2, 42):
        np.testing.assert_array_equal(product(x[:n_rows], name, rows, 1 + n_rows % 3), alone[:n_rows])


@pytest.mark.parametrize("n_rows", [1, 3, 9, 13])
@pytest.mark.parametrize("fill", [0x00, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("name", NAMES)
def test_integer_sums_do_not_overflow_at_the_extremes(name: str, fill: int, n_rows: int) -> None:
    n_bytes = BLOCK_TYPES[name].n_bytes
    rows = np.full((19, BLOCK_TYPES[name].row_bytes(512)), fill, np.uint8)
    for at in HALVES[name]:
        rows.reshape(-1, n_bytes)[:, at : at + 2] = np.array([1], "<f2").view(np.uint8)
    if name == "mxfp4":
        rows.reshape(-1, n_bytes)[:, 0] = 128
    for sign in (-1, 1):
        x = np.full((n_rows, 512), sign * 127, F32)  # scale 1, so the result is an integer
        expected = x.astype(np.float64) @ BlockTensor(BLOCK_TYPES[name], rows).dequantize().astype(np.float64).T
        np.testing.assert_allclose(product(x, name, rows), expected, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity_stay_in_their_row_and_output(name: str) -> None:
    rng = np.random.default_rng(3)
    for n_rows in (3, 11):
        rows, x = random_rows(name, rng, 20, 512), rng.normal(size=(n_rows, 512)).astype(F32)
        expected = product(x, name, rows)
        x[1, 40] = np.inf
        if name != "mxfp4":  # it has no scale that is not finite
            at = HALVES[name][0]
            rows[7, at : at + 2] = np.array([np.nan], "<f2").view(np.uint8)
        found = product(x, name, rows)
        wrong = np.zeros(found.shape, bool)
        wrong[1] = True
        wrong[:, 7] |= name != "mxfp4"
        np.testing.assert_array_equal(np.isnan(found), wrong)
        np.testing.assert_array_equal(found[~wrong], expected[~wrong])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_past_the_end(name: str) -> None:
    """The last byte of the matrix is the last one before a page that may not be read."""
    import ctypes

    size = mmap.PAGESIZE * 64
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address + size), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    rng = np.random.default_rng(4)
    good = random_rows(name, rng, 21, 256 if BLOCK_TYPES[name].n_values == 256 else 96)
    rows = np.frombuffer(memory, np.uint8, good.size, size - good.size).reshape(good.shape)
    rows[:] = good
    columns = BLOCK_TYPES[name].n_values * good.shape[1] // BLOCK_TYPES[name].n_bytes
    for n_rows in (1, 5, 12):
        x = rng.normal(size=(n_rows, columns)).astype(F32)
        np.testing.assert_array_equal(product(x, name, rows), product(x, name, good))
    assert libc.mprotect(ctypes.c_void_p(address + size), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ) == 0


def test_a_wrong_matrix_of_blocks_is_refused() -> None:
    x, out = np.ones((1, 64), F32), np.empty((1, 5), F32)
    good = np.zeros((5, 2 * 18), np.uint8)
    _kernels.matmul(out, x, SimpleNamespace(kind="gguf_q4_0", blocks=good))
    for blocks, error in ((good[:4], ValueError), (good[:, 1:], ValueError), (good.view(np.int8), TypeError), (None, TypeError)):
        with pytest.raises(error, match=r"^w\.blocks: expected"):
            _kernels.matmul(out, x, SimpleNamespace(kind="gguf_q4_0", blocks=blocks))
    with pytest.raises(ValueError, match="^w: expected rows of whole blocks of 256, found 64 numbers$"):
        _kernels.matmul(out, x, SimpleNamespace(kind="gguf_q4_k", blocks=good))
