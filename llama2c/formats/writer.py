"""Files written in llama2.c's formats: checkpoints in a stream, whatever the numbers come from, and tokenizer.bin.

layout.py says which bytes belong where. A file gets its name only when it is whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..tensors import Floats, Raw, as_floats, as_weight
from .layout import ROPE_TABLES, Entry, Layout, header

CHUNK = 1 << 16  # values that are looked at and rounded at once; they stay in the cache

Numbers: TypeAlias = Callable[[Entry, int], Iterable[Floats]]
T = TypeVar("T")


class Track(Protocol):
    """Something that gives the same items, and may count them while they are taken."""

    def __call__(self, items: Sequence[T], /) -> Iterable[T]: ...


class Rounding(NamedTuple):
    """How far a value of the file is from what it stands for, where that is farthest. Where nothing is rounded: 0, nowhere."""

    error: float
    tensor: str  # "w2[3]": that of layer 3


# ---------------------------------------------------------------------------
# a place to write to


@contextlib.contextmanager
def replacing(path: Path, size: int) -> Iterator[Path]:
    """A name beside `path` for a file or a folder, which takes its place at the end; after an error nothing is left of it.

    What is mapped under the old name stays as it is. OSError, one line: there is no room for `size` bytes, or no way to write.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        free = shutil.disk_usage(path.absolute().parent).free
        if size > free:
            raise OSError(f"{path}: expected {size / 1e6:.0f} MB of free disk, found {free / 1e6:.0f} MB")
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        if not error.strerror:  # one of ours, which says it all
            raise
        readable = type(error)(f"{path}: expected a place to write to, found: {error.strerror}")
        readable.errno = error.errno
        raise readable from None
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        with contextlib.suppress(OSError):
            unfinished.unlink()


# ---------------------------------------------------------------------------
# checkpoints


def check_group_size(config: Config, group_size: int) -> None:
    """Files that are made here have whole groups in each row: other programs compute nonsense from those that straddle two."""
    for name in ("dim", "hidden_dim"):
        if group_size <= 0 or getattr(config, name) % group_size:
            raise ValueError(f"group_size: expected a divisor of {name} = {getattr(config, name)}, found {group_size}")


def write_checkpoint(path: Path, plan: Layout, numbers: Numbers, track: Track = iter) -> Rounding:
    """Write the file of `plan`, one matrix after another.

    numbers(entry, i) gives the values of matrix i of a tensor in row-major order, fp32, in arrays of any shape that hold whole
    groups each; it is not asked for ROPE_TABLES. `track` may count the matrices while they are written.

    OSError: the file cannot be written; ValueError: the format cannot hold the config, or a value is not finite.
    """
    start = header(plan)
    worst = Rounding(0.0, "")
    with replacing(path, plan.file_size) as unfinished, unfinished.open("wb") as file:
        file.write(start)
        for entry, i in track([(e, i) for e in plan.entries for i in range(e.n_matrices)]):
            name = f"{entry.name}[{i}]" if len(entry.shape) > 2 else entry.name
            if entry.name == ROPE_TABLES:
                write_zeros(file, entry.nbytes)
            elif entry.group_size is None:
                worst = max(worst, write_floats(file, name, entry.n_values, numbers(entry, i), entry.dtype))
            else:
                worst = max(worst, write_q8(file, name, entry.n_values, numbers(entry, i), entry.group_size))
    return worst


def write_zeros(file: BinaryIO, n_bytes: int) -> None:
    for first in range(0, n_bytes, CHUNK):
        file.write(bytes(min(CHUNK, n_bytes - first)))


def write_floats(file: BinaryIO, name: str, n_values: int, arrays: Iterable[Floats], dtype: str) -> Rounding:
    """The `n_values` values of a matrix as float32, float16 or bfloat16. ValueError: other values, or some it cannot hold."""
    error = 0.0
    for values in checked_pieces(name, n_values, arrays):
        narrowed = narrow(values, dtype)
        if dtype != "float32":
            back = as_floats(as_weight(narrowed, dtype))
            if not np.isfinite(back).all():
                raise ValueError(f"{name}: expected weights that {dtype} holds, found {values[~np.isfinite(back)][0]}")
            error = max(error, float(np.abs(values - back).max()))
        file.write(narrowed.data)
    return Rounding(error, name if error else "")


def write_q8(file: BinaryIO, name: str, n_values: int, arrays: Iterable[Floats], group_size: int) -> Rounding:
    """The values of one matrix as int8, then their scales."""
    error = 0.0
    all_scales: list[Floats] = []
    for values in checked_pieces(name, n_values, arrays, group_size):
        rounded, scales = quantize(values, group_size)
        file.write(rounded.data)
        all_scales.append(scales.astype("<f4", copy=False))
        error = max(error, float(np.abs(values.reshape(rounded.shape) - rounded * scales[:, np.newaxis]).max()))
    for scales in all_scales:
        file.write(scales.data)
    return Rounding(error, name if error else "")


def checked_pieces(name: str, n_values: int, arrays: Iterable[Floats], group_size: int = 1) -> Iterator[Floats]:
    """`pieces`, each of finite numbers and all together `n_values`; else ValueError."""
    n_found = 0
    for values in pieces(arrays, group_size):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: expected finite weights, found {values[~np.isfinite(values)][0]}")
        n_found += values.size
        yield values
    if n_found != n_values:
        raise ValueError(f"{name}: expected {n_values} values, found {n_found}")


def pieces(arrays: Iterable[Floats], group_size: int) -> Iterator[Floats]:
    """The same values in one dimension, at most CHUNK at a time (or a group, if that is more), in whole groups."""
    step = max(CHUNK // group_size, 1) * group_size
    for array in arrays:
        values = np.ascontiguousarray(array, np.float32).reshape(-1)
        for first in range(0, values.size, step):
            yield values[first : first + step]


def narrow(values: Floats, dtype: str) -> Raw:
    """fp32 numbers as they are stored in a type, rounded half to even; what is too large for it is infinite."""
    if dtype == "float32":
        return values.astype("<f4", copy=False)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype("<f2")
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def quantize(values: Floats, group_size: int) -> tuple[NDArray[np.int8], Floats]:
    """Q8_0: (n_groups, group_size) values w / scale, rounded half to even, and (n_groups,) scales, max|w| / 127 of each group.

    A group of zeros stays one, with scale 0.
    """
    groups = values.reshape(-1, group_size)
    scales: Floats = np.divide(np.abs(groups).max(1), 127, dtype=np.float32)
    divisors = np.where(scales > 0, scales, 1)[:, np.newaxis]
    quotients: Floats = np.divide(groups, divisors, dtype=np.float32)
    np.rint(quotients, out=quotients)
    np.clip(quotients, -127, 127, out=quotients)  # a scale that is nearly 0 has lost digits
    return quotients.astype(np.int8), scales


# ---------------------------------------------------------------------------
# tokenizers


def pack_tokenizer(tokens: Sequence[tuple[bytes, float]]) -> bytes:
    """The content of a tokenizer.bin: the longest spelling's length, then score, length and spelling of each token."""
    longest = max(len(spelling) for spelling, _ in tokens)
    packed = [struct.pack("<fi", score, len(spelling)) + spelling for spelling, score in tokens]
    return struct.pack("<i", longest) + b"".join(packed)
