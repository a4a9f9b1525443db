"""Files written in llama2.c's formats: checkpoints in a stream, whatever the numbers come from, and tokenizer.bin.

The other half of checkpoint.py, which says which bytes belong where. A file gets its name only when it is whole.
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

from .checkpoint import ROPE_TABLES, Entry, Layout, header
from .config import Config

CHUNK = 1 << 16  # values that are looked at and rounded at once; they stay in the cache

Floats: TypeAlias = NDArray[np.float32]
Numbers: TypeAlias = Callable[[Entry, int], Iterable[Floats]]
T = TypeVar("T")


class Track(Protocol):
    """Something that gives the same items, and may count them while they are taken."""

    def __call__(self, items: Sequence[T], /) -> Iterable[T]: ...


class Rounding(NamedTuple):
    """How far a value of the file is from what it stands for, where that is farthest. Without Q8_0: 0, nowhere."""

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
    start = header(plan.config, plan.version, plan.shared_classifier, plan.group_size)
    worst = Rounding(0.0, "")
    with replacing(path, plan.file_size) as unfinished, unfinished.open("wb") as file:
        file.write(start)
        for entry, i in track([(e, i) for e in plan.entries for i in range(e.n_matrices)]):
            error = write_matrix(file, entry, i, [] if entry.name == ROPE_TABLES else numbers(entry, i))
            if error > worst.error:
                worst = Rounding(error, f"{entry.name}[{i}]" if len(entry.shape) > 2 else entry.name)
    return worst


def write_matrix(file: BinaryIO, entry: Entry, i: int, arrays: Iterable[Floats]) -> float:
    """Matrix i of an entry: fp32 values, or int8 values and then their scales. The largest rounding error of its values.

    What the arrays do not fill is filled with zeros: the rotary tables of v0, which have none.
    """
    n_written, error = 0, 0.0
    all_scales: list[Floats] = []
    for values in pieces(arrays, entry.group_size or 1):
        if not np.isfinite(values).all():
            place = f" in layer {i}" if len(entry.shape) > 2 else ""
            raise ValueError(f"{entry.name}: expected finite weights, found {values[~np.isfinite(values)][0]}{place}")
        n_written += values.size
        if entry.group_size is None:
            file.write(values.astype("<f4", copy=False).data)
            continue
        rounded, scales = quantize(values, entry.group_size)
        file.write(rounded.data)
        all_scales.append(scales.astype("<f4", copy=False))
        error = max(error, float(np.abs(values.reshape(rounded.shape) - rounded * scales[:, np.newaxis]).max()))
    for scales in all_scales:
        file.write(scales.data)
    if entry.name == ROPE_TABLES:
        for first in range(0, entry.n_values, CHUNK):
            file.write(bytes(4 * min(CHUNK, entry.n_values - first)))
    elif n_written != entry.n_values:
        raise ValueError(f"{entry.name}: expected {entry.n_values} values, found {n_written}")
    return error


def pieces(arrays: Iterable[Floats], group_size: int) -> Iterator[Floats]:
    """The same values in one dimension, at most CHUNK at a time (or a group, if that is more), in whole groups."""
    step = max(CHUNK // group_size, 1) * group_size
    for array in arrays:
        values = np.ascontiguousarray(array, np.float32).reshape(-1)
        for first in range(0, values.size, step):
            yield values[first : first + step]


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
