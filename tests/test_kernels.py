"""_kernels: every function against plain NumPy, bit for bit where the design fixes the order; wrong arguments are refused.

Runs on whichever level was chosen; test_same_bits runs it again on the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from decimal import Decimal, localcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import checkpoints
import numpy as np
import pytest
import reference
from reference import F32, fma, tree_sum

from llama2c import _kernels
from llama2c._kernels import KEY_BLOCK
from llama2c.config import Config
from llama2c.tensors import BFloat16Tensor, Layers, QuantizedTensor
from llama2c.transformer import rotary_frequencies

SIZES = [1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 48, 63, 64, 100, 172, 255, 256, 300]
REFUSED = (TypeError, ValueError)
UNIT = 16  # outputs that threads do not share


def rng_of(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(F32)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal to the last bit, NaN to NaN; generic may lack a fused operation, so there to fp32's precision."""
    if _kernels.isa == "generic":
        scale = np.abs(expected[np.isfinite(expected)]).max(initial=1e-30)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * scale)
    else:
        np.testing.assert_array_equal(found, expected)


# ---------------------------------------------------------------------------------------------- the tools of these tests


def test_the_reference_fma_rounds_once() -> None:
    tiny = F32(2**-12)
    one, near = F32(1), F32(1) + tiny
    # (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24: half of the last bit, which two roundings lose whatever is added after
    assert fma(near, near, F32(2**-60)) == F32(1 + 2**-11 + 2**-23)
    assert fma(near, near, F32(-(2**-60))) == F32(1 + 2**-11)
    assert fma(near, near, F32(0)) == F32(1 + 2**-11)  # a tie: to even
    assert fma(near, near, -F32(1 + 2**-11)) == F32(2**-24)
    assert fma(one, one, F32(2**-24)) == one
    assert np.isnan(fma(F32(np.nan), one, one))
    assert fma(F32(2e38), F32(2), one) == np.inf


def test_tree_sum_adds_the_upper_half_to_the_lower() -> None:
    lanes = np.zeros(16, F32)
    lanes[[0, 1, 8]] = 2**24, 1, 1  # 0 + 8 comes before + 1, and 2^24 + 1 rounds to 2^24
    assert tree_sum(lanes) == 2**24
    lanes[[0, 1, 8, 9]] = 2**24, 1, 0, 1
    assert tree_sum(lanes) == 2**24 + 2


# ---------------------------------------------------------------------------------------------- rmsnorm, softmax, SwiGLU


@pytest.mark.parametrize("n", SIZES)
def test_rmsnorm(n: int) -> None:
    """Many vectors of each size: of most, the root hides what another order or an unfused square does to the last bit."""
    rng = rng_of(n)
    rows, weight, out = normal(rng, 60, n), normal(rng, n), np.full(n, np.nan, F32)
    lanes = np.zeros((60, 16), F32)
    for chunk in np.pad(rows, ((0, 0), (0, -n % 16))).reshape(60, -1, 16).transpose(1, 0, 2):
        lanes = fma(chunk, chunk, lanes)
    scales = F32(1) / np.sqrt(tree_sum(lanes) / F32(n) + F32(1e-5))
    for x, scale in zip(rows, scales, strict=True):
        _kernels.rmsnorm(out, x, weight, 1e-5)
        assert_same(out, weight * (scale * x))
        exact = weight.astype(float) * x / np.sqrt((x.astype(float) ** 2).mean() + 1e-5)
        np.testing.assert_allclose(out, exact, rtol=1e-6)


def test_rmsnorm_of_special_values() -> None:
    ones, out = np.ones(20, F32), np.empty(20, F32)
    _kernels.rmsnorm(out, np.zeros(20, F32), ones, 1e-5)
    assert (out == 0).all()
    _kernels.rmsnorm(out, np.full(20, 1e-41, F32), ones, 1e-5)  # squares vanish: eps alone is left
    np.testing.assert_allclose(out, 1e-41 / 1e-5**0.5, rtol=1e-3)
    for place in (0, 15, 16, 19):
        x = np.ones(20, F32)
        x[place] = np.nan
        _kernels.rmsnorm(out, x, ones, 1e-5)
        assert np.isnan(out).all()
        x[place] = np.inf
        _kernels.rmsnorm(out, x, ones, 1e-5)
        assert np.isnan(out[place])
        assert (np.delete(out, place) == 0).all()


def test_read_all_reads_every_number_once() -> None:
    x = rng_of(0).integers(-9, 10, 5000).astype(F32)
    for n in (0, 1, 15, 16, 127, 128, 129, 5000):
        for n_threads in (1, 2, 3):
            assert _kernels.read_all(x[:n], n_threads) == x[:n].sum()


def exact_softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp((x - x.max()).astype(float))  # the difference is rounded to the type of x, as in the kernel
    return np.asarray(e / e.sum())


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("spread", [1, 30])
def test_softmax(n: int, spread: float) -> None:
    x = normal(rng_of(n), n) * F32(spread)
    expected = exact_softmax(x)
    _kernels.softmax(x)
    np.testing.assert_allclose(x, expected, rtol=2e-6, atol=1e-44)


def test_softmax_over_the_whole_range_of_exp() -> None:
    x = np.linspace(-110, 0, 100_001).astype(F32)
    expected = exact_softmax(x)
    _kernels.softmax(x)
    np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1.5e-45)  # the smallest number of all, where it has no bits left
    assert x[0] == 0


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 33])
def test_softmax_of_special_values(n: int) -> None:
    for place in {0, n // 2, n - 1}:
        x = np.zeros(n, F32)
        x[place] = np.nan
        _kernels.softmax(x)
        assert np.isnan(x).all()
        x = np.zeros(n, F32)
        x[place] = np.inf
        _kernels.softmax(x)
        assert np.isnan(x[place])
        if n > 1:
            x = np.zeros(n, F32)
            x[place] = -np.inf
            _kernels.softmax(x)
            np.testing.assert_array_equal(x, np.where(np.arange(n) == place, F32(0), F32(1) / F32(n - 1)))
    x = np.full(n, 3e38, F32)
    _kernels.softmax(x)
    np.testing.assert_array_equal(x, np.full(n, F32(1) / F32(n)))


@pytest.mark.parametrize("n", SIZES)
def test_swiglu(n: int) -> None:
    rng = rng_of(n)
    gate, up = normal(rng, n) * F32(4), normal(rng, n)
    expected = gate.astype(float) / (1 + np.exp(-gate.astype(float))) * up
    _kernels.swiglu(gate, up)
    np.testing.assert_allclose(gate, expected, rtol=5e-7)


def test_swiglu_at_both_ends() -> None:
    gate = np.array([-np.inf, -1e30, -200, -100, -88, -1e-42, -0.0, 0, 1e-42, 88, 200, 1e30, np.inf, np.nan], F32)
    found = gate.copy()
    _kernels.swiglu(found, np.ones(len(gate), F32))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = gate / (1 + np.exp(-gate.astype(float)))
    np.testing.assert_allclose(found[1:], expected[1:], rtol=5e-7, atol=1e-36)  # from -88.8 on 1 + exp(-gate) is infinite
    assert np.isnan(found[-1])
    np.testing.assert_array_equal(found[-5:-1], gate[-5:-1])


@pytest.mark.parametrize("n", [0, 2, 4, 10, 16, 30, 64, 128, 254])
def test_rotate(n: int) -> None:
    rng = rng_of(n)
    x, angles = normal(rng, n), rng.uniform(-9, 9, n // 2)
    table = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(F32)
    turned = x.astype(float).view(complex) * np.exp(1j * angles)
    out = np.empty_like(x)
    _kernels.rotate(out, x, table)
    np.testing.assert_allclose(out, turned.view(float), atol=1e-6)
    in_halves = np.concatenate([x[0::2], x[1::2]])
    again = np.empty_like(x)
    _kernels.rotate(again, in_halves, table, "halves")  # other places, the same bits
    np.testing.assert_array_equal(again, out)
    quarter = np.tile(F32([0, 1]), (n // 2, 1))
    _kernels.rotate(out, x, quarter)  # (a, b) -> (-b, a)
    np.testing.assert_array_equal(out.reshape(-1, 2), np.stack([-x[1::2], x[0::2]], axis=1))


# ---------------------------------------------------------------------------------------------- matrix product


def product(x: np.ndarray, w: Any, n_threads: int = 1) -> np.ndarray:
    out = np.full((len(x), w.shape[0]), 777, F32)
    _kernels.matmul(out, x, w, n_threads)
    return out


@pytest.mark.parametrize("n", [*SIZES, 512, 513, 1040])  # long rows are read in another way
def test_matmul_has_the_order_of_16_lanes(n: int) -> None:
    rng = rng_of(n)
    for n_rows, n_out in [(1, 1), (1, 40), (2, 17), (4, 6), (5, 3), (8, 12), (rng.integers(9, 21), rng.integers(1, 50))]:
        x, w = normal(rng, n_rows, n), normal(rng, n_out, n)
        expected = reference.dot(x, w)
        np.testing.assert_allclose(expected, x.astype(float) @ w.T.astype(float), atol=1e-6 * n + 1e-6)
        for n_threads in (1, 2, 3):
            assert_same(product(x, w, n_threads), expected)


def test_matmul_where_every_other_order_gives_another_number() -> None:
    x = np.ones((1, 48), F32)
    w = np.zeros((1, 48), F32)
    w[0, [0, 16, 32]] = 2**24, 1, 1  # one lane, upwards: each 1 is lost
    assert product(x, w) == 2**24
    w[0] = 0
    w[0, [0, 1, 17]] = 2**24, 1, 1  # lane 1 makes 2 before the lanes meet
    assert product(x, w) == 2**24 + 2
    w[0] = 0
    w[0, [0, 8, 1, 9]] = 2**24, 1, 1, 1  # the tree: (0 + 8) + (1 + 9)
    assert product(x, w) == 2**24 + 2
    w[0] = 0
    w[0, [0, 4, 2, 6]] = 2**24, 1, 1, 1  # (0 + 4) + (2 + 6)
    assert product(x, w) == 2**24 + 2
    w[0] = 0
    w[0, [0, 1, 2, 3]] = 2**24, 1, 1, 1  # (0 + 2) + (1 + 3)
    assert product(x, w) == 2**24 + 2


@pytest.mark.parametrize("n", [1, 16, 37, 160])
def test_matmul_of_integers_is_exact_at_every_level(n: int) -> None:
    rng = rng_of(n)
    x, w = (rng.integers(-9, 10, shape).astype(F32) for shape in ((19, n), (43, n)))
    for n_rows in range(1, 20):
        np.testing.assert_array_equal(product(x[:n_rows], w, 2), x[:n_rows] @ w.T)


def test_matmul_rows_do_not_depend_on_each_other() -> None:
    rng = rng_of(1)
    x, w = normal(rng, 20, 93), normal(rng, 50, 93)
    alone = np.vstack([product(row[None], w) for row in x])
    for n_rows in range(2, 21):
        np.testing.assert_array_equal(product(x[:n_rows], w, 1 + n_rows % 3), alone[:n_rows])


@pytest.mark.parametrize("n", [300, 768, 769, 1376, 2051])
def test_matmul_of_long_rows_and_of_many(n: int) -> None:
    """However the work is cut (rows in stretches, packed weights, several passes), a row gets the result that it gets alone."""
    rng = rng_of(n)
    x, w = normal(rng, 270, n), normal(rng, 29, n)
    alone = np.vstack([product(row[None], w) for row in x])
    assert_same(alone[:3], reference.dot(x[:3], w))
    for n_rows in (2, 7, 8, 19, 20, 23, 64, 65, 97, 135, 191, 200, 270):
        assert_same(product(x[:n_rows], w, 1 + n_rows % 3), alone[:n_rows])
    off = np.concatenate([[F32(0)], w.ravel()])[1:].reshape(w.shape)  # four bytes off, as in a file
    assert_same(product(x, off, 2), alone)


def half_size(w: np.ndarray, dtype: str) -> tuple[Any, np.ndarray]:
    """fp32 weights as a kernel takes them in another type, and what these stand for in fp32."""
    stored = checkpoints.narrow(w, dtype)
    return stored if dtype == "float16" else BFloat16Tensor(stored), checkpoints.widen(stored, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("n", [*SIZES, 513, 1040, 1376])
def test_matmul_of_half_size_weights_is_that_of_the_same_numbers_in_fp32(n: int, dtype: str) -> None:
    rng = rng_of(n)
    x, (w, wide) = normal(rng, 70, n), half_size(normal(rng, 2 * UNIT + 5, n), dtype)
    for n_rows in (1, 2, 3, 4, 5, 19, 21, 70):
        for n_threads in (1, 2, 3):
            np.testing.assert_array_equal(product(x[:n_rows], w, n_threads), product(x[:n_rows], wide, n_threads))
    assert_same(product(x[:2], w), reference.dot(x[:2], wide))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("n_rows", [1, 2])
def test_every_number_of_16_bits_is_widened_exactly(n_rows: int, dtype: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)[:, None]
    w = bits.view(np.float16) if dtype == "float16" else BFloat16Tensor(bits)
    with np.errstate(invalid="ignore"):
        expected = checkpoints.widen(w if dtype == "float16" else bits, dtype)
    found = product(np.ones((n_rows, 1), F32), w)
    np.testing.assert_array_equal(found, np.broadcast_to(expected.T, found.shape))  # NaN to NaN, 0 to 0
    subnormal = expected[np.isfinite(expected) & (expected != 0)]
    assert np.abs(subnormal).min() == {"float16": 2**-24, "bfloat16": 2**-133}[dtype]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_size_weights_at_any_byte(dtype: str) -> None:
    rng = rng_of(3)
    x, (w, _) = normal(rng, 25, 37), half_size(normal(rng, 21, 37), dtype)
    stored = w if dtype == "float16" else w.bits
    buffer = np.zeros(stored.nbytes + 1, np.uint8)
    off = np.ndarray(stored.shape, stored.dtype, buffer, 1)
    off[:] = stored
    assert not off.flags.aligned
    for n_rows in (1, 2, 25):
        moved = product(x[:n_rows], off if dtype == "float16" else BFloat16Tensor(off))
        np.testing.assert_array_equal(moved, product(x[:n_rows], w))


def test_matmul_keeps_nan_and_infinity_where_they_belong() -> None:
    for n_rows in (1, 9, 25):
        x, w = np.ones((n_rows, 33), F32), np.ones((20, 33), F32)
        w[3, 32], w[4, 0], w[5, 7] = np.nan, np.inf, 1e-42
        out = product(x, w)
        assert np.isnan(out[:, 3]).all()
        assert (out[:, 4] == np.inf).all()
        assert (np.delete(out, [3, 4, 5], axis=1) == 33).all()
        assert (out[:, 5] == 32).all()


def test_matmul_without_rows_outputs_or_columns() -> None:
    for shape in ((0, 4, 3), (2, 0, 3), (2, 4, 0)):
        n_rows, n_out, n = shape
        np.testing.assert_array_equal(product(np.ones((n_rows, n), F32), np.ones((n_out, n), F32)), np.zeros((n_rows, n_out)))


# ---------------------------------------------------------------------------------------------- Q8_0


GROUP_SIZES = [1, 3, 4, 16, 32, 64, 96, 128]


def assert_quantized(x: np.ndarray, group_size: int) -> None:
    """Values, scales and offsets are exactly those of NumPy."""
    values, scales, offsets = _kernels.quantize(x, group_size)
    expected_values, expected_scales = reference.quantize_rows(x, group_size)
    np.testing.assert_array_equal(values, expected_values)
    np.testing.assert_array_equal(scales, expected_scales)
    starts = range(0, x.shape[1], group_size)
    expected_offsets = [-128 * expected_values[:, k : k + group_size].sum(axis=1, dtype=np.int32) for k in starts]
    np.testing.assert_array_equal(offsets, np.stack(expected_offsets, axis=1))


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("n", [1, 5, 32, 96, 172, 300])
def test_quantize_is_exactly_that_of_numpy(group_size: int, n: int) -> None:
    rng = rng_of(group_size, n)
    assert_quantized(normal(rng, 7, n) * rng.choice(F32([1e-42, 1e-38, 1e-3, 1, 1e30]), (7, 1)), group_size)
    assert_quantized(rng.integers(-254, 255, (7, n)).astype(F32) / F32(2), group_size)  # many halves, where scale is 1


def test_quantize_rounds_half_away_from_zero() -> None:
    x = F32([[127, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 0.49999997, -0.49999997, 126.5, -126.5, 0]])
    values, scales, offsets = _kernels.quantize(x, 16)
    np.testing.assert_array_equal(values, [[127, 1, -1, 2, -2, 3, -3, 0, 0, 127, -127, 0]])
    assert scales == 1
    assert offsets == -128 * 127


def test_quantize_of_special_values() -> None:
    x = np.zeros((1, 22), F32)
    x[0, 4:8] = 1, np.nan, 2, 3
    x[0, 8:12] = 1, -np.inf, 2, 3
    x[0, 12:16] = 1, 2, -127, 3
    x[0, 16:20] = 1e-45, 0, 0, -1e-45  # the scale underflows to 0
    x[0, 20:] = 254, -254  # a short last group
    values, scales, offsets = _kernels.quantize(x, 4)
    np.testing.assert_array_equal(scales, [[0, np.nan, np.nan, 1, 0, 2]])
    np.testing.assert_array_equal(values[0], [*[0] * 12, 1, 2, -127, 3, *[0] * 4, 127, -127])
    np.testing.assert_array_equal(offsets, [[0, 0, 0, 128 * 121, 0, 0]])
    assert_quantized(x, 4)


def random_q8(rng: np.random.Generator, n_out: int, n: int, group_size: int, offset: int = 0) -> SimpleNamespace:
    """Any int8 at all, -128 too; the scales at any byte."""
    values = rng.integers(-128, 128, (n_out, n)).astype(np.int8)
    n_scales = n_out * n // group_size
    scales = np.ndarray(n_scales, "<f4", bytearray(4 * n_scales + offset), offset)
    scales[:] = rng.uniform(0.001, 0.02, n_scales)
    return SimpleNamespace(kind="q8_0", values=values, scales=scales, group_size=group_size)


def product_q8(x: np.ndarray, w: Any, n_threads: int = 1) -> np.ndarray:
    out = np.full((len(x), len(w.values)), 777, F32)
    _kernels.matmul(out, x, w, n_threads)
    return out


# Sizes that the group size divides; then groups that run on from row to row. 608 is 19 groups of 32: more than one register.
Q8_SHAPES = [(size, size * m) for size in GROUP_SIZES for m in (1, 3)]
Q8_SHAPES += [(1, 37), (32, 608), (64, 64 * 17), (96, 96 * 17)]
Q8_SHAPES += [(3, 10), (4, 43), (16, 40), (32, 48), (32, 20), (64, 172), (64, 100), (96, 36), (128, 172), (128, 300)]


@pytest.mark.parametrize(("group_size", "n"), Q8_SHAPES)
def test_matmul_q8_is_exact(group_size: int, n: int) -> None:
    rng = rng_of(group_size, n)
    step = group_size // np.gcd(group_size, n)  # so many rows hold whole groups
    for n_rows, n_out in [(1, 1), (2, 19), (3, 16), (11, 35), (int(rng.integers(4, 21)), 50)]:
        n_out = -(-n_out // step) * step
        x, w = normal(rng, n_rows, n), random_q8(rng, n_out, n, group_size, offset=n_rows % 4)
        expected = reference.q8_product(x, w.values, w.scales, group_size)
        for n_threads in (1, 2, 3):
            assert_same(product_q8(x, w, n_threads), expected)


@pytest.mark.parametrize(("group_size", "n"), Q8_SHAPES)
def test_matmul_q8_rows_do_not_depend_on_each_other(group_size: int, n: int) -> None:
    rng = rng_of(group_size, n)
    x, w = normal(rng, 20, n), random_q8(rng, 128 * 3, n, group_size)
    alone = np.vstack([product_q8(row[None], w) for row in x])
    for n_rows in (2, 3, 4, 5, 7, 8, 9, 16, 20):
        np.testing.assert_array_equal(product_q8(x[:n_rows], w, 1 + n_rows % 3), alone[:n_rows])


@pytest.mark.parametrize(
    ("group_size", "n"), [(1, 7), (4, 12), (32, 64), (64, 64), (96, 192), (128, 256), (64, 96), (65536, 65536)]
)
@pytest.mark.parametrize("n_rows", [1, 2, 5])
def test_integer_sums_do_not_overflow_at_the_extremes(group_size: int, n: int, n_rows: int) -> None:
    for value in (-128, 127):
        for sign in (-1, 1):
            w = SimpleNamespace(kind="q8_0", values=np.full((2, n), value, np.int8), group_size=group_size)
            w.scales = np.ones(2 * n // group_size, F32)
            x = np.full((n_rows, n), sign * 127, F32)  # scale 1, so the result is the integer itself
            assert (product_q8(x, w) == F32(n * value * sign * 127)).all()


def test_matmul_q8_of_special_values() -> None:
    w = random_q8(rng_of(1), 20, 64, 32)
    x = normal(rng_of(2), 5, 64)
    expected = product_q8(x, w)
    x[1, 40], x[3, 3] = np.inf, np.nan
    out = product_q8(x, w)
    assert np.isnan(out[[1, 3]]).all()
    np.testing.assert_array_equal(out[[0, 2, 4]], expected[[0, 2, 4]])
    assert (product_q8(np.zeros((5, 64), F32), w) == 0).all()
    assert product_q8(np.empty((0, 64), F32), w).shape == (0, 20)


# ---------------------------------------------------------------------------------------------- attention


def key_blocks(keys: np.ndarray) -> np.ndarray:
    """(n_positions, head_size) as in a cache: (n_blocks, head_size, 16), NaN where there are no positions."""
    whole = np.full((-(-len(keys) // KEY_BLOCK) * KEY_BLOCK, keys.shape[1]), np.nan, keys.dtype)
    whole[: len(keys)] = keys
    return np.ascontiguousarray(whole.reshape(-1, KEY_BLOCK, keys.shape[1]).transpose(0, 2, 1))


def attend(queries: np.ndarray, lengths: Any, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    out = np.full(queries.shape, 777, F32)
    blocks = key_blocks(keys)
    padded = np.full((len(blocks) * KEY_BLOCK, values.shape[1]), np.nan, values.dtype)
    padded[: len(values)] = values
    _kernels.attention(out, queries, np.asarray(lengths, np.int64), blocks, padded)
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("head_size", [1, 2, 6, 10, 16, 18, 32, 48, 64, 100, 128, 130])
def test_attention(head_size: int, dtype: Any) -> None:
    rng = rng_of(head_size)
    for n_queries in range(1, 17):
        lengths = np.sort(rng.integers(1, 150, n_queries))
        q, k, v = (normal(rng, n, head_size) for n in (n_queries, 160, 160))
        k, v = k.astype(dtype), v.astype(dtype)
        k[lengths[-1] :] = v[lengths[-1] :] = np.nan  # no query may read these
        out = attend(q, lengths, k, v)
        np.testing.assert_array_equal(out, attend(q, lengths, k.astype(F32), v.astype(F32)))  # fp16 is read exactly
        for i, length in enumerate(lengths):
            weights = exact_softmax(k[:length].astype(float) @ q[i] / head_size**0.5)
            np.testing.assert_allclose(out[i], weights @ v[:length], atol=3e-6)
            seen = np.arange(160)[:, None] < length
            alone = attend(q[i : i + 1], [length], np.where(seen, k, dtype(np.nan)), np.where(seen, v, dtype(np.nan)))
            np.testing.assert_array_equal(out[i], alone[0])


@pytest.mark.parametrize("head_size", [1, 7, 16, 40, 64, 136])
def test_attention_walks_time_in_order(head_size: int) -> None:
    rng = rng_of(head_size)
    values = normal(rng, 150, head_size) * rng.choice(F32([1e-4, 1, 1e4]), (150, 1))
    lengths = [1, 3, 50, 64, 100, 149, 150, 150]
    out = attend(np.ones((8, head_size), F32), lengths, np.zeros((150, head_size), F32), values)  # all weights are 1
    upwards = np.add.accumulate(values, axis=0)
    np.testing.assert_array_equal(out, np.stack([upwards[n - 1] / F32(n) for n in lengths]))


@pytest.mark.skipif(_kernels.isa == "generic", reason="generic may have no fused multiply-add")
@pytest.mark.parametrize("head_size", [5, 8, 16, 40, 64, 100])
def test_scores_of_attention_have_the_order_of_every_dot_product(head_size: int) -> None:
    """Two keys have the same weight only if their scores are equal: a key, and one whose score is one product."""
    rng = rng_of(head_size)
    q, k = 1000 * normal(rng, 1, head_size), normal(rng, 40, head_size)
    scores = reference.dot(q, k)[0]
    query = np.append(q[0], F32(1))[None]
    values = np.zeros((2, head_size + 1), F32)
    values[0], values[1] = 1, -1
    for key, score in zip(k, scores, strict=True):
        pair = np.zeros((2, head_size + 1), F32)
        pair[0, :head_size], pair[1, head_size] = key, score
        assert (attend(query, [2], pair, values) == 0).all()
        pair[1, head_size] = np.nextafter(score, F32(np.inf))
        assert (attend(query, [2], pair, values) != 0).all()


def test_numbers_of_a_cache_in_float16() -> None:
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = np.sort(every[np.isfinite(every)].astype(F32))
    between = (finite[1:] + finite[:-1]) / 2  # ties, exact in fp32
    beside = [np.nextafter(between, F32(limit)) for limit in (-np.inf, np.inf)]
    x = np.concatenate([finite, between, *beside, F32([1e-45, -0.0])])
    np.testing.assert_array_equal(_kernels.to_float16(x).view(np.uint16), x.astype(np.float16).view(np.uint16))
    large = F32([65504, 65505, 65520, 1e30, np.inf, -65505, -np.inf])
    np.testing.assert_array_equal(_kernels.to_float16(large), np.float16([65504] * 5 + [-65504] * 2))
    assert np.isnan(_kernels.to_float16(F32([np.nan, 1, -np.nan, 2, 3]))).tolist() == [True, False, True, False, False]
    for n in (0, 1, 7, 16, 63, 64, 65, 130):
        np.testing.assert_array_equal(_kernels.to_float16(x[:n]), x[:n].astype(np.float16))


def test_attention_of_special_values() -> None:
    keys, values = np.zeros((5, 6), F32), np.ones((5, 6), F32)
    keys[:, 0] = 0, 1000, 0, 0, 0  # one weight of 1, the others 0
    values[1] = 1e-42
    queries = np.ones((2, 6), F32)
    np.testing.assert_array_equal(attend(queries, [1, 5], keys, values), [[1] * 6, [F32(1e-42)] * 6])
    keys[4, 3] = np.nan
    out = attend(queries, [4, 5], keys, values)
    assert (out[0] == F32(1e-42)).all()
    assert np.isnan(out[1]).all()


# ---------------------------------------------------------------------------------------------- rotary angles


PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


def cosine(angle: Decimal) -> Decimal:
    """By the Taylor series, to 40 digits and more."""
    angle = angle - (angle / (2 * PI)).to_integral_value() * 2 * PI
    term = total = Decimal(1)
    for i in range(1, 40):
        term = -term * angle * angle / ((2 * i - 1) * 2 * i)
        total += term
    return total


@pytest.mark.parametrize("head_size", [2, 6, 48, 128])
def test_rope_table_is_rounded_once(head_size: int) -> None:
    frequencies = rotary_frequencies(Config(head_size, 1, 1, 1, 1, 1, 1))
    n = head_size // 2
    for start in (0, 1, 4095, 32_768, 99_990):
        out = np.empty((11, n, 2), F32)
        _kernels.rope_table(out, frequencies, start)
        with localcontext() as context:
            context.prec = 60
            for p in (0, 3, 10):
                for i in {0, 1 % n, n // 2, n - 1}:
                    angle = Decimal(float((start + p) * frequencies[i]))  # the angle as a double
                    assert out[p, i, 0] == F32(float(cosine(angle))), (start + p, i)
                    assert out[p, i, 1] == F32(float(cosine(angle - PI / 2))), (start + p, i)


def test_rope_table_beside_the_zeros() -> None:
    """Angles next to a multiple of pi / 2, where a cosine or sine is about 1e-12 and shows how exactly pi is known."""
    multiples = np.array([1, 2, 3, 4, 7, 100, 1001, 20_002, 41_003, 63_000, 63_661])
    frequencies = multiples * (np.pi / 2)
    out = np.empty((1, len(multiples), 2), F32)
    _kernels.rope_table(out, frequencies, 1)
    with localcontext() as context:
        context.prec = 70
        for (c, s), angle in zip(out[0], frequencies, strict=True):
            assert min(abs(c), abs(s)) < 1e-10
            assert c == F32(float(cosine(Decimal(float(angle)))))
            assert s == F32(float(cosine(Decimal(float(angle)) - PI / 2)))


@pytest.mark.parametrize("head_size", [2, 6, 48, 128])
def test_rope_table_has_the_angles_of_the_model(head_size: int) -> None:
    exponents = np.arange(0, head_size, 2) / head_size
    frequencies = rotary_frequencies(Config(head_size, 1, 1, 1, 1, 1, 1))
    np.testing.assert_allclose(frequencies, 10000.0**-exponents, rtol=1e-14)
    other = rotary_frequencies(Config(head_size, 1, 1, 1, 1, 1, 1, rope_theta=5e5))
    np.testing.assert_allclose(other, 5e5**-exponents, rtol=1e-14)
    out = np.empty((100_000, len(frequencies), 2), F32) if head_size < 10 else np.empty((3000, len(frequencies), 2), F32)
    _kernels.rope_table(out, frequencies, 0)
    angles = np.arange(len(out))[:, None] * frequencies
    np.testing.assert_allclose(out[..., 0], np.cos(angles), atol=3.1e-8)  # half of the last bit below 1
    np.testing.assert_allclose(out[..., 1], np.sin(angles), atol=3.1e-8)
    np.testing.assert_array_equal(out[0], np.tile(F32([1, 0]), (len(frequencies), 1)))


# ---------------------------------------------------------------------------------------------- sampling


def sample(logits: Any, temperature: float = 1, top_p: float = 1, top_k: int = 0, min_p: float = 0, coin: float = 0) -> int:
    logits = np.asarray(logits, F32)
    probs, candidates = np.empty_like(logits), np.empty(2 * len(logits), np.uint64)
    before = logits.copy()
    token = _kernels.sample(logits, probs, candidates, temperature, top_p, top_k, min_p, coin)
    np.testing.assert_array_equal(logits, before)
    return token


def upto(probs: np.ndarray) -> np.ndarray:
    """The running sum in fp32, one after the other."""
    return np.add.accumulate(probs, dtype=F32)


def walk(ids: Any, probs: np.ndarray, target: Any) -> int:
    """The first id at which the running sum exceeds `target`, else the last."""
    above = np.flatnonzero(target < upto(probs))
    return int(ids[above[0] if len(above) else -1])


def expected_sample(logits: np.ndarray, t: float, top_p: float, top_k: int, min_p: float, coin: float) -> int:
    """The rules of the design in NumPy, in fp32 and in sequence."""
    if t == 0:
        return int(logits.argmax())
    scaled = logits / F32(t)
    e = np.exp((scaled - scaled.max()).astype(float)).astype(F32)
    probs = e / upto(e)[-1]
    n, nucleus, p, flip = len(probs), 0 < top_p < 1, F32(top_p), F32(coin)
    if not nucleus and not top_k and not min_p:
        return walk(np.arange(n), probs, flip)
    ids = np.array(sorted(range(n), key=lambda i: (-probs[i], i)))
    if not top_k and not min_p:
        if n > 1:
            ids = ids[probs[ids] >= (F32(1) - p) / F32(n - 1)]
        if len(ids) == 0:
            return int(probs.argmax())
        kept = probs[ids]
    else:
        ids = ids[: top_k or n]
        ids = ids[probs[ids] >= F32(min_p) * probs.max()]
        kept = probs[ids] / upto(probs[ids])[-1]
    if nucleus:
        over = np.flatnonzero(upto(kept) > p)
        kept = kept[: over[0] + 1 if len(over) else None]
    return walk(ids, kept, flip * upto(kept)[-1])


COINS = [0, 1 / 2**24, 0.5, 1 - 1 / 2**24]
FILTERS = [(1, 0, 0), (0, 0, 0), (0.9, 0, 0), (0.3, 0, 0), (1e-6, 0, 0), (1, 5, 0), (1, 1, 0)]
FILTERS += [(1, 10**6, 0), (1, 0, 0.1), (1, 0, 1)]
FILTERS += [(0.8, 7, 0), (0.8, 0, 0.05), (0.7, 9, 0.2), (0, 3, 0.01)]


@pytest.mark.parametrize(("top_p", "top_k", "min_p"), FILTERS)
@pytest.mark.parametrize("n", [1, 2, 5, 17, 100, 300])
def test_sample_follows_the_rules(n: int, top_p: float, top_k: int, min_p: float) -> None:
    rng = rng_of(n)
    for temperature in (0.0, 0.3, 1.0, 1.7):
        for coin in [*COINS, *(rng.integers(0, 2**24, 6) / 2**24)]:
            for logits in (normal(rng, n) * F32(3), rng.integers(-2, 3, n).astype(F32)):  # the latter with many ties
                expected = expected_sample(logits, temperature, top_p, top_k, min_p, coin)
                assert sample(logits, temperature, top_p, top_k, min_p, coin) == expected


def test_ties_go_to_the_lower_id() -> None:
    logits = [0, 3, 3, 1, 3]
    assert sample(logits, temperature=0) == 1
    assert [sample(logits, top_k=3, coin=c) for c in (0, 0.34, 0.67, 0.999)] == [1, 2, 4, 4]
    assert [sample(logits, top_k=2, coin=c) for c in (0, 0.49, 0.51)] == [1, 1, 2]
    assert [sample(logits, top_p=0.5, coin=c) for c in (0, 0.49, 0.51, 0.999)] == [1, 1, 2, 2]
    assert [sample(logits, min_p=1, coin=c) for c in (0, 0.34, 0.67)] == [1, 2, 4]


def test_if_top_p_keeps_none_the_likeliest_is_taken() -> None:
    assert sample([0, 0.1], top_p=0.1, coin=0.99) == 1  # both are below 0.9
    assert sample([0.1, 0], top_p=0.1, coin=0.99) == 0


def test_a_walk_that_runs_out_takes_the_last_kept_token() -> None:
    assert sample(np.zeros(3), coin=1) == 2
    assert sample([0, -80], coin=1) == 1
    assert sample([0, -200], coin=1) == 0  # the second has probability 0
    assert sample([0, 5, 4, 0], top_k=2, coin=1) == 2


def test_impossible_tokens_are_not_drawn() -> None:
    logits = np.full(50, -np.inf)
    logits[[7, 30]] = 2
    assert [sample(logits, coin=c) for c in (0, 0.49, 0.51, 1 - 2**-24)] == [7, 7, 30, 30]
    assert [sample(logits, top_p=0.9, coin=c) for c in (0, 0.49, 0.51, 1 - 2**-24)] == [7, 7, 30, 30]
    assert sample(logits, temperature=0) == 7


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("n", [1, 5, 40])
def test_logits_without_a_distribution_are_refused(bad: float, n: int) -> None:
    for place in {0, n // 2, n - 1}:
        logits = np.zeros(n, F32)
        logits[place] = bad
        for top_p, top_k in ((1, 0), (0.9, 0), (1, 2)):
            with pytest.raises(ValueError, match=r"^logits: expected numbers that make a distribution, found NaN or infinity$"):
                sample(logits, 1, top_p, top_k)
        if np.isnan(bad):
            with pytest.raises(ValueError, match=r"^logits: "):
                sample(logits, temperature=0)


@pytest.mark.parametrize("n", SIZES)
def test_logprobs(n: int) -> None:
    logits = normal(rng_of(n), n) * F32(10)
    wide = logits.astype(float)
    expected = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    out = np.empty(n, F32)
    _kernels.logprobs(logits, out)
    np.testing.assert_allclose(out, expected, rtol=5e-7, atol=5e-7)


def test_logprobs_of_special_values() -> None:
    out = np.empty(3, F32)
    _kernels.logprobs(F32([-np.inf, 0, -1000]), out)
    np.testing.assert_array_equal(out, F32([-np.inf, 0, -1000]))
    _kernels.logprobs(F32([3e38, 3e38, -3e38]), out)
    np.testing.assert_allclose(out[:2], -np.log(2), rtol=1e-6)
    for bad in (np.nan, np.inf):
        for place in range(3):
            logits = np.zeros(3, F32)
            logits[place] = bad
            _kernels.logprobs(logits, out)
            assert np.isnan(out[place])


# ---------------------------------------------------------------------------------------------- wrong arguments


def good_arguments() -> dict[str, list[Any]]:
    """For each function, arguments that it takes, and that the next test spoils one by one."""
    rng = rng_of(0)
    a, b, c = (normal(rng, 16) for _ in range(3))
    m = [normal(rng, *shape) for shape in ((3, 5), (3, 16), (5, 16))]
    heads = [normal(rng, *shape) for shape in ((2, 8), (2, 8), (2, 8, 16), (32, 8))]
    return {
        "rmsnorm": [a, b, c, 1e-5],
        "read_all": [a, 2],
        "softmax": [a],
        "swiglu": [a, b],
        "rotate": [c, a, normal(rng, 8, 2)],
        "matmul": [*m, 2],
        "quantize": [m[1], 4],
        "attention": [*heads[:2], np.array([3, 9]), *heads[2:]],
        "rope_table": [normal(rng, 4, 8, 2), np.ones(8), 0],
        "sample": [a, b, np.empty(32, np.uint64), 1.0, 0.9, 0, 0.0, 0.5],
        "logprobs": [a, b],
    }


FUNCTIONS = list(good_arguments())
OUTPUTS = {"read_all": [], "sample": [1, 2], "logprobs": [1], "quantize": []}  # written to; in the others the first argument is


def spoiled_arrays(array: np.ndarray) -> dict[str, Any]:
    other = np.float64 if array.dtype == F32 else F32
    return {
        "None": None,
        "a list": array.tolist(),
        "a number": 1.0,
        "another type": array.astype(other),
        "as bytes": array.view(np.int8),
        "one too long": np.concatenate([array, array[:1]]),
        "one too short": np.ascontiguousarray(array[:-1]),
        "another rank": array[None],
        "every other element": np.repeat(array, 2, axis=-1)[..., ::2],
        "backwards": np.ascontiguousarray(array[::-1])[::-1],
        "the other byte order": array.astype(array.dtype.newbyteorder()),
    }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_good_arguments_are_taken(name: str) -> None:
    getattr(_kernels, name)(*good_arguments()[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wrong_array_is_refused(name: str) -> None:
    function, good = getattr(_kernels, name), good_arguments()[name]
    for i, argument in enumerate(good):
        if not isinstance(argument, np.ndarray):
            continue
        for what, spoiled in spoiled_arrays(argument).items():
            if (name, i) in {("read_all", 0), ("softmax", 0), ("quantize", 0), ("rope_table", 0)} and what.startswith(
                "one too"
            ):
                continue  # any length is good
            with pytest.raises(REFUSED):
                function(*good[:i], spoiled, *good[i + 1 :])
                pytest.fail(f"{name}: argument {i} may be {what}")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_written_to_may_not_be_read_only_and_what_is_read_may(name: str) -> None:
    function, good = getattr(_kernels, name), good_arguments()[name]
    for i, argument in enumerate(good):
        if not isinstance(argument, np.ndarray):
            continue
        frozen = argument.copy()
        frozen.flags.writeable = False
        arguments = [*good[:i], frozen, *good[i + 1 :]]
        if i in OUTPUTS.get(name, [0]):
            with pytest.raises(ValueError, match="read-only"):
                function(*arguments)
            np.testing.assert_array_equal(frozen, argument)
        else:
            function(*arguments)


def test_wrong_numbers_are_refused() -> None:
    good = good_arguments()

    def refused(name: str, place: int, *values: Any) -> None:
        for value in values:
            arguments = good[name].copy()
            arguments[place] = value
            with pytest.raises(REFUSED):
                getattr(_kernels, name)(*arguments)
                pytest.fail(f"{name}: argument {place} may be {value!r}")

    refused("rmsnorm", 3, None, "1")
    refused("read_all", 1, 0, -1, 4097, None)
    refused("matmul", 3, 0, -1, 4097, None, "2")
    refused("quantize", 1, 0, -4, 65537, None, "4")
    refused("attention", 2, *(np.array(wrong) for wrong in ([0, 3], [-1, 3], [3, 33], [4, 3], [3], [3, 9, 9])))
    refused("rope_table", 2, -1, None)
    refused("sample", 3, -1.0, np.nan, None)
    refused("sample", 5, -1, None)
    refused("sample", 6, -0.1, 1.1, np.nan)
    empty, none = np.empty(0, F32), np.empty(0, np.uint64)
    with pytest.raises(ValueError, match="sample: "):
        _kernels.sample(empty, empty, none, 1, 1, 0, 0, 0)
    with pytest.raises(ValueError, match="logprobs: "):
        _kernels.logprobs(empty, empty)
    many = np.zeros((17, 8), F32)
    with pytest.raises(ValueError, match="attention: expected 1 to 16 queries, found 17"):
        _kernels.attention(many.copy(), many, np.arange(1, 18), np.zeros((1, 8, 16), F32), np.zeros((16, 8), F32))


@pytest.mark.parametrize(("name", "place"), [("matmul", 3), ("quantize", 1), ("rope_table", 2), ("sample", 5)])
def test_a_fraction_is_not_an_integer(name: str, place: int) -> None:
    arguments = good_arguments()[name]
    arguments[place] = 1.5
    with pytest.raises(TypeError):
        getattr(_kernels, name)(*arguments)


def q8_arguments() -> tuple[np.ndarray, np.ndarray, SimpleNamespace]:
    rng = rng_of(0)
    return normal(rng, 3, 5), normal(rng, 3, 16), random_q8(rng, 5, 16, 8)


def test_a_matrix_of_an_unknown_kind_is_a_type_error() -> None:
    out, x, good = q8_arguments()
    _kernels.matmul(out, x, good)
    untagged = SimpleNamespace(values=good.values, scales=good.scales, group_size=8)
    unknown = SimpleNamespace(**{**vars(good), "kind": "q4_9"})
    w = np.ones((5, 16), F32)
    spoiled = {"list": w.tolist(), "SimpleNamespace": untagged, "q4_9": unknown, "float64": w.astype(float)}
    for found, wrong in spoiled.items():
        message = f"w: expected a matrix of a kind that the kernels know, found {found}"
        with pytest.raises(TypeError, match=f"^{message}$"):
            _kernels.matmul(out, x, wrong)
    with pytest.raises(TypeError):
        _kernels.matmul(out, x, None)  # type: ignore[arg-type]


def test_a_wrong_q8_matrix_is_refused() -> None:
    out, x, good = q8_arguments()
    spoiled = [SimpleNamespace(**{**vars(good), "group_size": size}) for size in (0, -8, 7, 16, 1, 65537)]
    for name in ("values", "scales"):
        for what, array in spoiled_arrays(getattr(good, name)).items():
            if isinstance(array, np.ndarray) and not (name == "values" and what in ("as bytes", "the other byte order")):
                spoiled.append(SimpleNamespace(**{**vars(good), name: array}))
    for w in spoiled:
        with pytest.raises(REFUSED):
            _kernels.matmul(out, x, w)
            pytest.fail(f"taken: {w}")


def test_messages_say_what_was_expected_and_found() -> None:
    a, m = np.zeros(4, F32), np.zeros((2, 4), F32)
    with pytest.raises(ValueError, match=r"^rmsnorm: expected three equal lengths, found 4, 3, 4$"):
        _kernels.rmsnorm(a, a[:3].copy(), a, 1e-5)
    with pytest.raises(ValueError, match=r"^w: expected shape \(4, 4\), found \(3, 4\)$"):
        _kernels.matmul(m.copy(), m, np.zeros((3, 4), F32))
    with pytest.raises(ValueError, match=r"^matmul: expected out \(3, 2\), found \(2, 2\)$"):
        _kernels.matmul(np.zeros((2, 2), F32), np.zeros((3, 4), F32), m)
    with pytest.raises(TypeError, match=r"^w.bits: expected uint16, found int16$"):
        wrong = SimpleNamespace(kind="bfloat16", bits=np.zeros((2, 4), np.int16))
        _kernels.matmul(np.zeros((2, 2), F32), m, wrong)
    with pytest.raises(ValueError, match=r"^group_size: expected 1 to 65536, found 0$"):
        _kernels.quantize(m, 0)
    with pytest.raises(ValueError, match=r"^n_threads: expected 1 to 4096, found 0$"):
        _kernels.matmul(np.zeros((2, 2), F32), m, m, 0)


# ---------------------------------------------------------------------------------------------- the model's weights

CONFIG = Config(dim=12, hidden_dim=10, n_layers=2, n_heads=6, n_kv_heads=2, vocab_size=7, seq_len=5)
MATRICES = ("token_embedding_table", "wcls", "wq", "wk", "wv", "wo", "w1", "w2", "w3")


def model_weights() -> dict[str, Any]:
    return dict(checkpoints.random_weights(CONFIG, rng_of(0), shared_classifier=False))


def test_a_model_takes_weights_of_its_shape_only() -> None:
    _kernels.Model(CONFIG, model_weights())
    for name in (*MATRICES, "rms_att_weight", "rms_ffn_weight", "rms_final_weight"):
        good = model_weights()[name]
        # axis by axis, types, order
        for wrong in (good[:1], good[..., :-1].copy(), good[None], good.astype(float), np.repeat(good, 2, axis=-1)[..., ::2]):
            with pytest.raises(REFUSED, match=name):
                _kernels.Model(CONFIG, {**model_weights(), name: wrong})


def new_buffer(n_layers: int, n_kv_heads: int, n_positions: int, head_size: int, dtype: Any = F32) -> _kernels.KVBuffer:
    n_blocks = -(-n_positions // KEY_BLOCK)
    keys = np.zeros((n_layers, n_kv_heads, n_blocks, head_size, KEY_BLOCK), dtype)
    return _kernels.KVBuffer(keys, np.zeros((n_layers, n_kv_heads, n_blocks * KEY_BLOCK, head_size), dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_cache_buffer_takes_writable_arrays_that_fit_each_other(dtype: Any) -> None:
    buffer = new_buffer(2, 2, 30, 2, dtype)
    assert buffer.capacity == 32
    keys, values = buffer.keys, buffer.values
    frozen = values.copy()
    frozen.flags.writeable = False
    other = np.float16 if dtype is F32 else F32
    for wrong in (values.astype(float), values.astype(other), values[:, :, :16], values[:, :, ::-1], frozen, values.tolist()):
        with pytest.raises(REFUSED):
            _kernels.KVBuffer(keys, wrong)
    for wrong in (keys.astype(float), keys[:, :, :1], keys[..., ::-1], keys.reshape(values.shape), keys.tolist(), None):
        with pytest.raises(REFUSED):
            _kernels.KVBuffer(wrong, values)
    with pytest.raises(ValueError, match=r"^values: expected a capacity that is a multiple of 16, found 30$"):
        _kernels.KVBuffer(keys, np.zeros((2, 2, 30, 2), dtype))
    larger = new_buffer(2, 2, 48, 2, dtype)
    buffer.hold(larger.keys, larger.values)
    assert (buffer.capacity, buffer.keys is larger.keys, buffer.values is larger.values) == (48, True, True)


def test_a_claim_is_all_or_nothing() -> None:
    def buffer() -> _kernels.KVBuffer:
        return new_buffer(2, 2, 5, 2)

    first, second, third = buffer(), buffer(), buffer()
    claim, other = _kernels.Claim(), _kernels.Claim()
    claim.take([first, second])
    for wrong in ([third, second], [third, third], [third, None]):
        with pytest.raises(REFUSED):
            other.take(wrong)  # type: ignore[arg-type]
    other.take([third])  # which the attempts have left free
    with pytest.raises(ValueError, match=r"^claim: it already holds buffers: release them first$"):
        other.take([])
    for counts in ([1], [1, 2, 3], [1, "2"]):
        with pytest.raises(REFUSED):
            claim.advance(counts)  # type: ignore[list-item]
    assert first.length == second.length == 0
    claim.advance([3, 4])
    assert (first.length, second.length, third.length) == (3, 4, 0)
    claim.release()
    claim.release()
    claim.take([second, first])
    claim.advance([1, 0])
    assert (first.length, second.length) == (3, 5)


def test_what_is_written_is_aligned() -> None:
    odd = np.ndarray((2, 2, 16, 2), F32, bytearray(513), 1)
    with pytest.raises(ValueError, match=r"^values: expected an aligned float32 array, found one at 0x"):
        _kernels.KVBuffer(new_buffer(2, 2, 16, 2).keys, odd)


def test_a_step_refuses_what_does_not_fit_its_model() -> None:
    model, scratch = _kernels.Model(CONFIG, model_weights()), _kernels.Scratch()
    buffer, other = new_buffer(2, 2, 16, 2), new_buffer(2, 1, 16, 2)
    rope, logits, trace = np.zeros((5, 1, 2), F32), np.zeros((1, 7), F32), np.zeros((2, 2, 4), F32)
    good: list[Any] = [scratch, [([1, 2], 0, buffer)], rope, [1], logits, trace, 1]
    model.run(*good)
    wrong: list[tuple[int, Any]] = [(0, None), (1, []), (1, [([], 0, buffer)]), (1, [([1, 2], 15, buffer)])]
    wrong += [(1, [([1, 2], -1, buffer)]), (1, [([1, 7], 0, buffer)]), (1, [([1, -1], 0, buffer)]), (1, [([1, 2], 0, other)])]
    wrong += [(1, [([1, "2"], 0, buffer)]), (2, rope[:1]), (2, rope.astype(float))]
    wrong += [(3, [2]), (3, [-1]), (3, [0, 1]), (4, np.zeros((1, 8), F32)), (4, np.zeros((1, 7))), (5, trace[:1]), (6, 0)]
    for place, value in wrong:
        with pytest.raises(REFUSED):
            model.run(*good[:place], value, *good[place + 1 :])
            pytest.fail(f"argument {place} may be {value!r}")


def test_a_step_needs_a_cache_buffer() -> None:
    model, logits = _kernels.Model(CONFIG, model_weights()), np.zeros((1, 7), F32)
    with pytest.raises(TypeError):
        model.run(_kernels.Scratch(), [([1, 2], 0, None)], np.zeros((5, 1, 2), F32), [1], logits, None, 1)


# ---------------------------------------------------------------------------------------------- matrices of different kinds

MIXED = Config(dim=64, hidden_dim=160, n_layers=3, n_heads=4, n_kv_heads=4, vocab_size=90, seq_len=24)
Kind = str | int  # a type of numbers, or the group size of Q8_0
ALL_KINDS: tuple[Kind, ...] = ("float32", 32, "bfloat16", 64, "float16", 16, 8)  # 64 goes over the ends of w2's rows


def of_kind(matrix: np.ndarray, kind: Kind) -> tuple[Any, np.ndarray]:
    """A matrix as the kernels take it, and what its numbers stand for in fp32."""
    if kind == "float32":
        return matrix, matrix
    if isinstance(kind, str):
        return half_size(matrix, kind)
    values, scales = checkpoints.quantize(matrix, kind)
    wide = (values.reshape(-1, kind) * scales[:, None]).reshape(matrix.shape)
    return QuantizedTensor(values, scales, kind), wide


def mixed(kinds: Callable[[str, int], Kind]) -> tuple[dict[str, Any], reference.Reference]:
    """Weights of MIXED in which each matrix has its own kind, for the kernels and as a model in NumPy."""
    plain = checkpoints.random_weights(MIXED, rng_of(5), shared_classifier=False)
    weights: dict[str, Any] = dict(plain)
    model = reference.Reference(MIXED, {name: tensor.copy() for name, tensor in plain.items()})
    for name in MATRICES:
        stack, made = plain[name].reshape(-1, *plain[name].shape[-2:]), []
        for layer, matrix in enumerate(stack):
            kind = kinds(name, layer)
            stored, wide = of_kind(matrix, kind)
            made.append(stored)
            model.weights[name].reshape(stack.shape)[layer] = wide
            if isinstance(kind, int):
                model.q8[name, layer] = stored.values, stored.scales
                model.sizes[name, layer] = kind
        weights[name] = Layers(tuple(made)) if name.startswith("w") and name != "wcls" else made[0]
    return weights, model


class Run(NamedTuple):
    logits: np.ndarray  # (n_tokens, vocab_size)
    trace: np.ndarray  # (n_tokens, n_layers, 4)
    keys: np.ndarray  # of a KVBuffer
    values: np.ndarray


def run_model(weights: dict[str, Any], tokens: list[int], n_threads: int = 1, size: int | None = None) -> Run:
    """All tokens, `size` at a time (None: at once)."""
    model, n = _kernels.Model(MIXED, weights), len(tokens)
    buffer = new_buffer(3, 4, n, 16)
    rope, logits, trace = np.empty((n, 8, 2), F32), np.full((n, 90), np.nan, F32), np.full((n, 3, 4), np.nan, F32)
    _kernels.rope_table(rope, rotary_frequencies(MIXED), 0)
    scratch = _kernels.Scratch()
    for start in range(0, n, size or n):
        part = tokens[start : start + (size or n)]
        rows, place = list(range(len(part))), slice(start, start + len(part))
        model.run(scratch, [(part, start, buffer)], rope, rows, logits[place], trace[place], n_threads)
    return Run(logits, trace, buffer.keys, buffer.values)


def shuffled(seed: int) -> Callable[[str, int], Kind]:
    """Every matrix of every layer gets any kind, but all of them are used."""
    places = [(name, layer) for name in MATRICES for layer in range(3)]
    rng_of(seed).shuffle(places)
    kinds = {place: ALL_KINDS[i % len(ALL_KINDS)] for i, place in enumerate(places)}
    return lambda name, layer: kinds[name, layer]


MIXES: dict[str, Callable[[str, int], Kind]] = {
    "layer by layer": lambda name, layer: ("float32", 32, "float16")[layer],
    "embedding and classifier": lambda name, layer: {"token_embedding_table": 32, "wcls": 64}.get(name, "float32"),
    "classifier alone": lambda name, layer: 16 if name == "wcls" else "bfloat16",
    "sizes that share an input": lambda name, layer: {"wq": 64, "wk": 32, "wv": 8, "w1": 16, "w3": 64, "w2": 64}.get(name, 32),
    "half of an input": lambda name, layer: {"wq": 32, "w3": 16, "wo": 64}.get(name, "float32"),
    **{f"any {seed}": shuffled(seed) for seed in range(4)},
}


@pytest.mark.parametrize("mix", MIXES)
def test_every_matrix_may_have_a_kind_of_its_own(mix: str) -> None:
    """Against the model in NumPy. Where an activation rounds the other way, all that follows differs a little, as with Q8_0."""
    weights, model = mixed(MIXES[mix])
    close = []
    for seed in range(12):
        tokens = [int(token) for token in rng_of(seed).integers(0, 90, 5)]
        found, expected = run_model(weights, tokens), model.forward(tokens)
        scale = np.abs(expected.logits).max()
        np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=5e-2 * scale)
        close.append(np.abs(found.logits - expected.logits).max() <= 2e-5 * scale)
        if close[-1]:
            np.testing.assert_allclose(found.trace, expected.trace, rtol=0, atol=2e-5 * np.abs(expected.trace).max())
    assert np.mean(close) >= 0.7, close


@pytest.mark.parametrize("mix", MIXES)
def test_a_mixed_model_gives_the_same_bits_by_any_threads_and_rows(mix: str) -> None:
    weights, _ = mixed(MIXES[mix])
    tokens = [int(token) for token in rng_of(9).integers(0, 90, 23)]
    expected = run_model(weights, tokens, size=1)
    assert np.isfinite(expected.logits).all()
    for n_threads, size in [(2, 1), (3, 1), (1, None), (2, None), (3, None), (1, 2), (2, 5), (3, 7)]:
        found = run_model(weights, tokens, n_threads, size)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize("sizes", [*itertools.permutations((64, 32, "float32")), (64, 32, 8), (16, 64, 16)])
def test_matrices_that_share_an_input_do_as_each_alone(sizes: tuple[Kind, ...], size: int | None) -> None:
    """What wk and wv of the first layer give is in the cache: compared with models where all three have that kind."""
    tokens = [int(token) for token in rng_of(3).integers(0, 90, 9)]

    def first_layer(wq: Kind, wk: Kind, wv: Kind) -> Run:
        kinds = {"wq": wq, "wk": wk, "wv": wv}
        return run_model(mixed(lambda name, layer: kinds.get(name, "float32"))[0], tokens, 2, size)

    found = first_layer(*sizes)
    _, wk, wv = sizes
    np.testing.assert_array_equal(found.keys[0], first_layer(wk, wk, wk).keys[0])
    np.testing.assert_array_equal(found.values[0], first_layer(wv, wv, wv).values[0])
    assert np.count_nonzero(found.keys[0]) == 4 * 9 * 16  # of every head and position


def test_what_is_fp32_in_a_mixed_model_is_as_in_a_model_of_fp32() -> None:
    """Only w2 of the last layer and the classifier are Q8_0: all before them has the bits of fp32, and what follows has not."""
    tokens = [int(token) for token in rng_of(4).integers(0, 90, 11)]
    plain = run_model(mixed(lambda name, layer: "float32")[0], tokens)
    last_w2, _ = mixed(lambda name, layer: 32 if (name, layer) == ("w2", 2) else "float32")
    classifier, _ = mixed(lambda name, layer: 32 if name == "wcls" else "float32")
    for n_threads, size in ((1, None), (2, 1), (3, 4)):
        found = run_model(last_w2, tokens, n_threads, size)
        for one, other in zip(found[2:], plain[2:], strict=True):
            np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))
        np.testing.assert_array_equal(found.trace[:, :2], plain.trace[:, :2])
        np.testing.assert_array_equal(found.trace[:, 2, :2], plain.trace[:, 2, :2])
        assert (found.trace[:, 2, 2:] != plain.trace[:, 2, 2:]).any(axis=1).all()
        found = run_model(classifier, tokens, n_threads, size)
        np.testing.assert_array_equal(found.trace, plain.trace)
        assert (found.logits != plain.logits).any(axis=1).all()


def test_embedding_groups_may_go_over_the_ends_of_rows() -> None:
    """The group size of a file divides dim; that of the kernels' embedding need not."""
    weights, model = mixed(lambda name, layer: 48 if name == "token_embedding_table" else "float32")
    tokens = list(range(20))
    logits, expected = run_model(weights, tokens).logits, model.forward(tokens).logits
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_a_wrong_matrix_of_one_layer_is_named() -> None:
    weights, _ = mixed(lambda name, layer: 32)
    good = weights["w3"]
    wrong = QuantizedTensor(good[1].values, good[1].scales[:-1], 32)
    with pytest.raises(ValueError, match=r"^w3\[1\].scales: expected shape \(320,\), found \(319,\)$"):
        _kernels.Model(MIXED, {**weights, "w3": Layers((good[0], wrong, good[2]))})


def test_draw_rows_refuses_what_does_not_fit() -> None:
    def arguments(**changed: Any) -> dict[str, Any]:
        good = {
            "rows": [np.zeros(4, np.float32)] * 2,
            "firsts": np.array([0, 1, 2]),
            "guesses": np.array([-1, -1]),
            "coins": np.zeros(2, np.float32),
            "options": np.ones((2, 3), np.float32),
            "top_k": np.zeros(2, np.int64),
            "tokens": np.zeros(2, np.int64),
            "probs": np.zeros((1, 4), np.float32),
            "candidates": np.zeros((1, 8), np.uint64),
        }
        return {**good, **changed}

    _kernels.draw_rows(**arguments())
    for changed in (
        {"rows": [np.zeros(4, np.float32)]},
        {"rows": [np.zeros(4, np.float32), np.zeros(5, np.float32)]},
        {"rows": [np.zeros(4, np.float32), np.zeros(4, np.float64)]},
        {"firsts": np.array([0, 1])},
        {"firsts": np.array([0, 3, 2])},
        {"firsts": np.array([1, 1, 2])},
        {"coins": np.zeros(3, np.float32)},
        {"options": np.full((2, 3), -1, np.float32)},
        {"options": np.full((2, 3), np.nan, np.float32)},
        {"top_k": np.array([0, -1])},
        {"probs": np.zeros((2, 4), np.float32)},
        {"probs": np.zeros((0, 4), np.float32), "candidates": np.zeros((0, 8), np.uint64)},
        {"candidates": np.zeros((1, 4), np.uint64)},
    ):
        with pytest.raises((ValueError, TypeError)):
            _kernels.draw_rows(**arguments(**changed))
