"""Rounding to the block types of GGUF: the error against other programs and against a search, and the bytes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2c.blocks import BLOCK_TYPES, BlockType, dequantize
from llama2c.errors import ModelError
from llama2c.formats.quantize import CHUNK, WRITERS, quantize_blocks

SMALL = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]
LARGE = ["q4_k", "q5_k", "q6_k"]
ALL = [*SMALL, *LARGE]


def squared_error(type: BlockType, blocks: NDArray[np.uint8], values: NDArray[np.float32]) -> float:
    return float(((dequantize(type, blocks).astype(np.float64) - values) ** 2).sum())


def matrices() -> dict[str, NDArray[np.float32]]:
    """Weights of several shapes of distribution, (rows, 1024)."""
    rng = np.random.default_rng(5)
    normal = rng.standard_normal((96, 1024)) * 0.02
    found = {
        "normal": normal,
        "heavy tails": rng.standard_t(3, (96, 1024)) * 0.02,
        "columns of their own size": normal * np.exp(rng.standard_normal(1024)),
        "all above zero": normal + 0.1,
        "all below zero": normal - 0.1,
        "uniform": rng.uniform(-1, 1, (96, 1024)),
        "subnormal scales": normal * 1e-4,
        "large": normal * 2e5,
        "one outlier a row": normal + 3 * np.eye(96, 1024),
        "sparse": normal * (rng.random((96, 1024)) < 0.02),
    }
    return {name: numbers.astype(np.float32) for name, numbers in found.items()}


MATRICES = matrices()


# ---------------------------------------------------------------------------
# the error


@pytest.mark.parametrize("name", SMALL)
def test_no_larger_than_that_of_the_package_gguf(name: str) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    type = BLOCK_TYPES[name]
    for what, values in MATRICES.items():
        theirs = squared_error(type, gguf.quants.quantize(values, gguf.GGMLQuantizationType(type.code)), values)
        assert squared_error(type, quantize_blocks(type, values), values) <= theirs, what


Peer = Callable[[BlockType, NDArray[np.float32]], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def ggml() -> Peer:
    """ggml's own rounding, which llama-quantize uses, without an importance matrix."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs the package llama-cpp-python")
    library = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]

    def quantize(type: BlockType, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        values = np.ascontiguousarray(values)
        found = np.empty((len(values), type.row_bytes(values.shape[1])), np.uint8)
        library.ggml_quantize_init(type.code)
        size = library.ggml_quantize_chunk(type.code, values.ctypes.data, found.ctypes.data, 0, *values.shape, None)
        assert size == found.nbytes
        return found

    return quantize


@pytest.mark.parametrize("name", LARGE)
def test_no_larger_than_that_of_ggml(name: str, ggml: Peer) -> None:
    type = BLOCK_TYPES[name]
    for what, values in MATRICES.items():
        theirs = squared_error(type, ggml(type, values), values)
        assert squared_error(type, quantize_blocks(type, values), values) <= theirs, what


@pytest.fixture(scope="module")
def real(smollm2: Path) -> list[tuple[str, NDArray[np.float32]]]:
    """Rows of the embedding and of some matrices, (n, 768), with their type in the file: 256 does not divide 576."""
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    names = ("token_embd.weight", "blk.0.attn_v.weight", "blk.0.ffn_down.weight", "blk.29.attn_q.weight")
    tensors = [tensor for tensor in gguf.GGUFReader(smollm2).tensors if tensor.name in names]
    assert len(tensors) == len(names)
    return [(t.tensor_type.name.lower(), gguf.quants.dequantize(t.data, t.tensor_type)[:128].reshape(-1, 768)) for t in tensors]


@pytest.mark.parametrize("name", ALL)
def test_real_weights(name: str, real: list[tuple[str, NDArray[np.float32]]], request: pytest.FixtureRequest) -> None:
    """The embedding is in Q8_0, the matrices are in Q4_1: in the same type their numbers come back."""
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    type = BLOCK_TYPES[name]
    ours = theirs = 0.0
    for name_in_file, values in real:
        found = quantize_blocks(type, values)
        if name_in_file == name:
            np.testing.assert_array_equal(dequantize(type, found), values)
        if name in LARGE:
            other = request.getfixturevalue("ggml")(type, values)
        else:
            other = gguf.quants.quantize(values, gguf.GGMLQuantizationType(type.code))
        ours += squared_error(type, found, values)
        theirs += squared_error(type, other, values)
    assert ours <= theirs


def nearest(values: NDArray[np.float64], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """The squared error of each row of `steps`, the numbers that a group can have in ascending order: (m, k) -> (m,)."""
    middles = (steps[:, 1:] + steps[:, :-1]) / 2
    chosen = np.stack([row[np.searchsorted(middle, values)] for row, middle in zip(steps, middles, strict=True)])
    return ((chosen - values) ** 2).sum(axis=1)


def searched(name: str, values: NDArray[np.float32]) -> float:
    """About the least squared error that a group can have with any scale and minimum, in fp64, by a fine search."""
    largest = float(np.abs(values).max())
    low, high = {"q4_0": (-8, 7), "q5_0": (-16, 15), "q8_0": (-127, 127), "q6_k": (-32, 31)}.get(name, (0, 15))
    if name in ("q5_1", "q5_k"):
        high = 31
    if low:
        scales = np.linspace(0.6, 1.4, 1001) * largest / high
        grids = [scale[:, None] * np.arange(low, high + 1) for scale in (scales, -scales)]
        return float(min(nearest(values.astype(np.float64), np.sort(grid, axis=1)).min() for grid in grids))
    span = float(np.ptp(values))
    scales = (np.linspace(0.6, 1.1, 51) * span / high).repeat(51)
    starts = values.min() + np.tile(np.linspace(-0.1, 0.3, 51), 51) * span
    if name in LARGE:
        starts = np.minimum(starts, 0)
    return float(nearest(values.astype(np.float64), starts[:, None] + scales[:, None] * np.arange(high + 1)).min())


@pytest.mark.parametrize("name", ALL)
def test_near_the_best_that_a_search_finds(name: str) -> None:
    """The search knows no fp16 and no small integer scales. q8_0 tries 14 scales of the many that are about as good."""
    type = BLOCK_TYPES[name]
    size = 16 if name == "q6_k" else 32
    values = MATRICES["normal"][0, :256]
    best = sum(searched(name, group) for group in values.reshape(-1, size))
    margin = 1.1 if name == "q8_0" else 1.06
    assert squared_error(type, quantize_blocks(type, values[np.newaxis]), values) <= margin * best


# ---------------------------------------------------------------------------
# the bytes


@pytest.mark.parametrize("name", ALL)
def test_valid_blocks(name: str) -> None:
    """The package gguf reads the same finite numbers; rows keep their order."""
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    type = BLOCK_TYPES[name]
    for values in MATRICES.values():
        blocks = quantize_blocks(type, values)
        assert (blocks.shape, blocks.dtype) == ((96, type.row_bytes(1024)), np.uint8)
        numbers = dequantize(type, blocks)
        assert np.isfinite(numbers).all()
        np.testing.assert_array_equal(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(type.code)), numbers)


@pytest.mark.parametrize("name", ALL)
def test_zeros(name: str) -> None:
    """Also zeros with a sign, and numbers that are too small for fp16."""
    type = BLOCK_TYPES[name]
    for number in (0.0, -0.0, 1e-12, -1e-40, 1e-45):
        blocks = quantize_blocks(type, np.full((2, 512), number, np.float32))
        assert (dequantize(type, blocks) == 0).all()
        np.testing.assert_array_equal(blocks, quantize_blocks(type, np.zeros((2, 512), np.float32)))


@pytest.mark.parametrize("name", ALL)
def test_no_rows(name: str) -> None:
    type = BLOCK_TYPES[name]
    assert quantize_blocks(type, np.empty((0, 512), np.float32)).shape == (0, type.row_bytes(512))


def grid(name: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """Numbers that blocks of the type have exactly, with all integers in each group, (64, 512)."""
    size = 16 if name == "q6_k" else 32
    shape = (64, 512 // size, size)
    if name in SMALL:
        low, high = {"q4_0": (-8, 7), "q5_0": (-16, 15), "q8_0": (-127, 127), "q4_1": (0, 15), "q5_1": (0, 31)}[name]
        scale = np.exp(rng.standard_normal((*shape[:2], 1))).astype(np.float16)
        minimum = rng.standard_normal(scale.shape).astype(np.float16) * (low == 0)
    else:
        low, high = {"q4_k": (0, 15), "q5_k": (0, 31), "q6_k": (-32, 31)}[name]
        small, least = rng.integers(1, 64, (2, *shape[:2], 1))
        if name == "q6_k":
            small = rng.integers(-127, 128, small.shape)
            least = least * 0
        per_block = 256 // size
        small[:, ::per_block], least[:, ::per_block] = (-128, 0) if name == "q6_k" else (63, 63)  # the largest
        d, dmin = np.exp(rng.standard_normal((2, 64, 2))).astype(np.float16).repeat(per_block, axis=2)[..., np.newaxis]
        scale, minimum = d.astype(np.float32) * small, -dmin.astype(np.float32) * least
    q = rng.integers(low, high + 1, shape)
    q[..., :2] = low, high
    return (scale.astype(np.float32) * q.astype(np.float32) + minimum.astype(np.float32)).astype(np.float32).reshape(64, 512)


@pytest.mark.parametrize("name", ALL)
def test_what_blocks_can_have_comes_back(name: str) -> None:
    type = BLOCK_TYPES[name]
    values = grid(name, np.random.default_rng(8))
    np.testing.assert_array_equal(dequantize(type, quantize_blocks(type, values)), values)


@pytest.mark.parametrize("name", SMALL)
def test_ternary_weights_come_back(name: str) -> None:
    type = BLOCK_TYPES[name]
    values = np.random.default_rng(8).integers(-1, 2, (4, 512)).astype(np.float32) * np.float32(0.75)
    np.testing.assert_array_equal(dequantize(type, quantize_blocks(type, values)), values)


@pytest.mark.parametrize("name", ALL)
def test_too_large_for_fp16(name: str) -> None:
    type, limit = BLOCK_TYPES[name], WRITERS[name].largest
    values = np.zeros((2, 512), np.float32)
    for sign in (1, -1):
        values[1, 300] = sign * limit
        assert dequantize(type, quantize_blocks(type, values))[1, 300] == pytest.approx(sign * limit, rel=0.01)
        values[1, 300] = sign * np.nextafter(np.float32(limit), np.float32(np.inf))
        with pytest.raises(ModelError, match=rf"^expected values up to {limit:.0f}, the limit of {name}, found \d"):
            quantize_blocks(type, values)
    values[1, 300] = 3e38
    with pytest.raises(ModelError, match=r"found 3e\+38$"):
        quantize_blocks(type, values)


@pytest.mark.parametrize("name", ALL)
def test_rows_do_not_depend_on_each_other(name: str) -> None:
    """One row alone, a part of memory that is not contiguous, and a matrix of several chunks give the same bytes."""
    type = BLOCK_TYPES[name]
    values = np.concatenate([MATRICES["normal"], MATRICES["heavy tails"]])
    assert values.size > 2 * CHUNK
    blocks = quantize_blocks(type, values)
    for row in (0, 95, 191):
        np.testing.assert_array_equal(quantize_blocks(type, values[row : row + 1]), blocks[row : row + 1])
    np.testing.assert_array_equal(quantize_blocks(type, values[::7, 256:768]), middle_columns(type, blocks)[::7])


def middle_columns(type: BlockType, blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The blocks of columns 256 to 768."""
    return blocks[:, type.row_bytes(256) : type.row_bytes(768)]


HASH = """
import hashlib, sys
import numpy as np
from llama2c.blocks import BLOCK_TYPES
from llama2c.formats.quantize import WRITERS, quantize_blocks
values = np.frombuffer(sys.stdin.buffer.read(), np.float32).reshape(-1, 1024)
for name in WRITERS:
    print(name, hashlib.sha256(quantize_blocks(BLOCK_TYPES[name], values)).hexdigest())
"""


def test_the_same_bytes_without_the_instructions_of_this_machine() -> None:
    """NumPy has loops for each instruction set. Here it may use only those that every machine has."""
    values = np.concatenate(list(MATRICES.values()))[::5]
    core = np._core if hasattr(np, "_core") else np.core  # NumPy 2 and 1
    features = core._multiarray_umath.__cpu_dispatch__
    env = os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(features), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", HASH], input=values.tobytes(), env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    expected = [f"{name} {hashlib.sha256(quantize_blocks(BLOCK_TYPES[name], values)).hexdigest()}" for name in WRITERS]
    assert done.stdout.decode().splitlines() == expected
