"""Writes llama2c's files, one matrix after another: checkpoints (v0 to v3) and tokenizer.bin.

layout.py says which bytes belong where. A file gets its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..architecture import LLAMA
from ..config import Config
from ..errors import FileError, ModelError, RequestError, file_error
from ..tensors import Floats, Raw, as_floats, as_weight
from .layout import ROPE_TABLES, Entry, Layout, header

CHUNK = 1 << 16  # values that are checked and rounded at once; they stay in the processor's cache

Numbers: TypeAlias = Callable[[Entry, int], Iterable[Floats]]
Progress: TypeAlias = Callable[[int, int], None]  # called with how many matrices are written, and how many there are
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A model to be written. Its weights are read one matrix at a time, when the writer asks for them."""

    path: Path
    config: Config
    shared_classifier: bool
    read: Callable[[str, int], Floats]  # (name, layer) -> (rows, cols), of norms (dim,); fp32, rows in llama2.c's order
    settings: Mapping[str, Any] = field(default_factory=dict)  # what else is known of the model, as config.json has it
    metadata: Mapping[str, Any] = field(default_factory=dict)  # the same and the tokenizer, as the metadata of GGUF has it
    # The other files of a folder, by name: a tokenizer and the like. A path is copied.
    companions: Mapping[str, Path | bytes] = field(default_factory=dict)
    rope_factors: tuple[float, ...] | None = None  # as in Checkpoint; only GGUF has them

    def numbers(self, entry: Entry, i: int) -> Iterator[Floats]:
        """Matrix i of a tensor, for write_checkpoint. A file has the norms of all layers in one matrix."""
        tensor = LLAMA.tensors[entry.name]
        for layer in range(self.config.n_layers) if tensor.is_norm and tensor.per_layer else [i]:
            yield self.read(entry.name, layer)


class Rounding(NamedTuple):
    """The largest difference between a written value and the original, and the tensor it is in. Nothing rounded: 0 and ""."""

    error: float
    tensor: str  # "w2[3]": w2 of layer 3


def counted(items: Sequence[T], progress: Progress | None) -> Iterator[T]:
    """The same items. `progress` is called at the start and after each of them."""
    for done, item in enumerate(items):
        if progress is not None:
            progress(done, len(items))
        yield item
    if progress is not None:
        progress(len(items), len(items))


# ---------------------------------------------------------------------------
# a place to write to


@contextlib.contextmanager
def replacing(path: Path, size: int) -> Iterator[Path]:
    """A temporary name beside `path` for a file or a folder. At the end it replaces `path`; after an error it is removed.

    Programs that have mapped the old file keep its content. Raises OSError, one line: there is no room for `size` bytes, or
    `path` cannot be written.
    """
    import shutil  # loading it takes milliseconds, and whoever only reads files does without

    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")  # another process may write the same file now
    try:
        free = shutil.disk_usage(path.absolute().parent).free
        if size > free:
            raise FileError(errno.ENOSPC, f"expected {size / 1e6:.0f} MB of free disk, found {free / 1e6:.0f} MB", str(path))
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        raise file_error(error, path, "a place to write to") from None
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        with contextlib.suppress(OSError):
            unfinished.unlink()


# ---------------------------------------------------------------------------
# checkpoints


def check_group_size(config: Config, group_size: int) -> None:
    """Groups must not straddle two rows of a file written here, because other programs compute nonsense from such files.

    Raises RequestError.
    """
    for name in ("dim", "hidden_dim"):
        if group_size <= 0 or getattr(config, name) % group_size:
            found = f"expected a divisor of {name} = {getattr(config, name)}, found {group_size}"
            raise RequestError(f"group_size: {found}", "group_size")


def write_checkpoint(path: Path, layout: Layout, numbers: Numbers, progress: Progress | None = None) -> Rounding:
    """Write the file of a layout, one matrix after another.

    numbers(entry, i) gives the values of matrix i of a tensor in row-major order: fp32 arrays of any shape, each with whole
    groups. It is not called for ROPE_TABLES. `progress` is called with the number of matrices written and their total.

    Raises OSError if the file cannot be written, ValueError if the format cannot store the config, ModelError if a value is
    not finite or is too large for the type.
    """
    start = header(layout)
    worst = Rounding(0.0, "")
    with replacing(path, layout.file_size) as unfinished, unfinished.open("wb") as file:
        file.write(start)
        for entry, i in counted([(e, i) for e in layout.entries for i in range(e.n_matrices)], progress):
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
    """Write the `n_values` values of a matrix as float32, float16 or bfloat16. ModelError: one is not finite or too large."""
    error = 0.0
    for values in checked_pieces(name, n_values, arrays):
        narrowed = narrow(values, dtype)
        if dtype != "float32":
            back = as_floats(as_weight(narrowed, dtype))
            if not np.isfinite(back).all():
                raise ModelError(f"{name}: expected weights that {dtype} holds, found {values[~np.isfinite(back)][0]}")
            error = max(error, float(np.abs(values - back).max()))
        file.write(narrowed.data)
    return Rounding(error, name if error else "")


def write_q8(file: BinaryIO, name: str, n_values: int, arrays: Iterable[Floats], group_size: int) -> Rounding:
    """Write the values of one matrix as int8, then their scales."""
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
    """`pieces`, checked. ModelError: a value is not finite; ValueError: there are not `n_values` of them."""
    n_found = 0
    for values in pieces(arrays, group_size):
        if not np.isfinite(values).all():
            raise ModelError(f"{name}: expected finite weights, found {values[~np.isfinite(values)][0]}")
        n_found += values.size
        yield values
    if n_found != n_values:
        raise ValueError(f"{name}: expected {n_values} values, found {n_found}")


def pieces(arrays: Iterable[Floats], group_size: int) -> Iterator[Floats]:
    """The same values in one dimension and in whole groups, at most CHUNK values at a time (or one group, if it is larger)."""
    step = max(CHUNK // group_size, 1) * group_size
    for array in arrays:
        values = np.ascontiguousarray(array, np.float32).reshape(-1)
        for first in range(0, values.size, step):
            yield values[first : first + step]


def narrow(values: Floats, dtype: str) -> Raw:
    """fp32 numbers as they are stored in a type, rounded half to even. Numbers too large for the type become infinite."""
    if dtype == "float32":
        return values.astype("<f4", copy=False)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype("<f2")
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def quantize(values: Floats, group_size: int) -> tuple[NDArray[np.int8], Floats]:
    """Q8_0: (n_groups, group_size) values w / scale, rounded half to even, and (n_groups,) scales, max|w| / 127 of each group.

    A group of zeros stays a group of zeros, with scale 0.
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
    """The content of a tokenizer.bin: the length of the longest spelling, then score, length and spelling of each token."""
    longest = max(len(spelling) for spelling, _ in tokens)
    packed = [struct.pack("<fi", score, len(spelling)) + spelling for spelling, score in tokens]
    return struct.pack("<i", longest) + b"".join(packed)
