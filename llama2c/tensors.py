"""The kinds of matrices that weights come in, and the conversion of each to fp32. NumPy has neither bfloat16 nor Q8_0.

Each class has a `kind`; the kind of a NumPy array is its dtype, float32 or float16. The kernels read every kind as it is
stored, and nothing here computes with it. Each matrix of a model may have another kind. To compute with one in NumPy, make an
fp32 array of it: np.asarray(weights["wq"]), or np.asarray(weights["wq"][layer]) for one matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .blocks import BLOCK_TYPES, BlockType, dequantize

Floats: TypeAlias = NDArray[np.float32]
Raw: TypeAlias = NDArray[Any]  # numbers as they are stored: fp32, fp16, or the bits of bfloat16 as uint16
FLOAT_DTYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}  # how NumPy reads the bytes of each


class AsArray:
    """What the types below share: NumPy makes an fp32 array of them, np.asarray(tensor). It is a new one each time."""

    __slots__ = ()

    @overload
    def __array__(self, dtype: None = None, copy: bool | None = None) -> Floats: ...

    @overload
    def __array__(self, dtype: DTypeLike, copy: bool | None = None) -> Raw: ...

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Raw:
        """The numbers in fp32, or converted from there to `dtype`. ValueError: copy=False, since there is nothing to share."""
        if copy is False:
            raise ValueError(f"{type(self).__name__}: its numbers are not stored as an array: copy=False cannot be met")
        return as_floats(self).astype(dtype or np.float32, copy=False)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor(AsArray):
    """A Q8_0 tensor: element i of a matrix, counted row by row, is values[i] * scales[i // group_size].

    A group may go on from one row into the next, but not from one matrix into the next.
    """

    kind: ClassVar[str] = "q8_0"

    values: NDArray[np.int8]  # (..., rows, cols); each matrix is contiguous
    scales: Floats  # (..., rows * cols / group_size); may begin at any byte
    group_size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    def __getitem__(self, part: int | slice) -> QuantizedTensor:
        """One matrix of a stack, or some rows of a matrix. ValueError: its groups go on from one row into the next."""
        values, scales = self.values[part], self.scales
        if self.values.ndim == 2:  # a matrix: its scales are one list for all rows
            rows, cols = self.values.shape
            if cols % self.group_size:
                raise ValueError(f"rows of {cols} numbers in groups of {self.group_size} have no scales of their own")
            return QuantizedTensor(values, scales.reshape(rows, -1)[part].reshape(-1), self.group_size)
        return QuantizedTensor(values, scales[part], self.group_size)

    def dequantize(self) -> Floats:
        """A new fp32 array of this shape."""
        groups = self.values.reshape(*self.scales.shape, self.group_size)
        product: Floats = np.multiply(groups, self.scales[..., np.newaxis], dtype=np.float32)
        return product.reshape(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class BFloat16Tensor(AsArray):
    """A bfloat16 tensor: each number is the upper half of an fp32 one."""

    kind: ClassVar[str] = "bfloat16"

    bits: NDArray[np.uint16]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes

    def __getitem__(self, part: Any) -> BFloat16Tensor:
        """One matrix of a stack, or some rows of a matrix."""
        return BFloat16Tensor(self.bits[part])

    def widen(self) -> Floats:
        """A new fp32 array of this shape, with the same numbers."""
        wide = self.bits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class BlockTensor(AsArray):
    """A tensor in the blocks of one of GGUF's types, as a file has them."""

    type: BlockType
    blocks: NDArray[np.uint8]  # (..., rows, bytes of a row); each matrix is contiguous and may begin at any byte

    @property
    def kind(self) -> str:
        return self.type.kind

    @property
    def shape(self) -> tuple[int, ...]:
        *stack, row_bytes = self.blocks.shape
        return (*stack, row_bytes // self.type.n_bytes * self.type.n_values)

    @property
    def nbytes(self) -> int:
        return self.blocks.nbytes

    def __getitem__(self, part: Any) -> BlockTensor:
        """One matrix of a stack, or some rows of a matrix."""
        return BlockTensor(self.type, self.blocks[part])

    def dequantize(self) -> Floats:
        """A new fp32 array of this shape."""
        return dequantize(self.type, self.blocks)


Matrix: TypeAlias = "Floats | NDArray[np.float16] | BFloat16Tensor | QuantizedTensor | BlockTensor"


@dataclass(frozen=True, slots=True, eq=False)
class Layers(AsArray):
    """One matrix of each layer, each anywhere in memory and of any kind: like a stack of them, without a copy."""

    matrices: tuple[Matrix, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.matrices), *self.matrices[0].shape)

    @property
    def nbytes(self) -> int:
        return sum(matrix.nbytes for matrix in self.matrices)

    def __getitem__(self, layer: int) -> Matrix:
        return self.matrices[layer]


Weight: TypeAlias = "Matrix | Layers"


def as_weight(raw: Raw, dtype: str) -> Matrix:
    """The array of stored numbers, or the bytes of rows of a block type of GGUF, as a matrix of one of the kinds above."""
    if dtype in BLOCK_TYPES:
        return BlockTensor(BLOCK_TYPES[dtype], raw)
    return BFloat16Tensor(raw) if dtype == "bfloat16" else raw


def as_floats(weight: Weight) -> Floats:
    """The numbers of a weight in fp32: the array itself if it is fp32, else a new array."""
    if isinstance(weight, QuantizedTensor | BlockTensor):
        return weight.dequantize()
    if isinstance(weight, BFloat16Tensor):
        return weight.widen()
    if isinstance(weight, Layers):
        return np.stack([as_floats(matrix) for matrix in weight.matrices])
    return weight.astype(np.float32, copy=False)


def count(weight: Weight) -> int:
    """How many numbers a weight has."""
    return math.prod(weight.shape)


# ---------------------------------------------------------------------------
# The rows of wq and wk come in one of two orders. RoPE turns pairs of a head's elements: in llama2.c they are neighbours,
# (2i, 2i + 1); in Hugging Face they are in the two halves of the head, (i, i + head_size / 2).


def paired(rows: Raw, head_size: int) -> Raw:
    """Rows 0, h, 1, h + 1, ... of each head, h its half: wq or wk from Hugging Face's order into llama2.c's."""
    return rows.reshape(-1, 2, head_size // 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def halved(rows: Raw, head_size: int) -> Raw:
    """Rows 0, 2, 4, ..., then 1, 3, 5, ... of each head: from llama2.c's order into Hugging Face's."""
    return rows.reshape(-1, head_size // 2, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)
