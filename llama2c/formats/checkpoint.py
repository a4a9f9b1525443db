"""A checkpoint as named arrays: views of the mapped file, nothing copied. It is a file (llama2.c's v0, v1 and v2, our v3) or
a folder of Hugging Face.

All checking of files is done here and in layout.py, that of folders in folder.py. This module reads; writer.py writes.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..tensors import FLOAT_DTYPES, Floats, QuantizedTensor, Weight, as_weight
from .folder import open_folder
from .layout import HEADER_SIZES, NORMS, Q8_0, ROPE_TABLES, Entry, Layout, header_name, parse_header

SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", Q8_0: "Q8_0"}


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """An opened checkpoint. `weights` has each tensor under its name, with the shape `layout.tensor_shapes` gives.

    Norms are float32 arrays. Matrices are float32 or float16 arrays, BFloat16Tensor or QuantizedTensor; those of a folder's
    layers are Layers of these. All are read-only and C-contiguous. If the classifier is shared, weights["wcls"] is
    weights["token_embedding_table"].
    """

    path: str
    version: int | None  # of the format; None: a Hugging Face folder
    config: Config
    shared_classifier: bool
    dtype: str  # of the matrices: "float32", "float16", "bfloat16" or "q8_0"; of a folder with several, joined by "+"
    group_size: int | None  # of q8_0 alone
    rope_pairs: str  # elements of a head that RoPE turns together: "adjacent", 2i and 2i + 1; "halves", i and i + head_size / 2
    weights: dict[str, Weight] = field(repr=False)

    @classmethod
    def open(cls, path: str | bytes | os.PathLike[Any], *, mmap: bool = True) -> Checkpoint:
        """Open a v0 to v3 file, told apart by its content, or a folder of Hugging Face with a Llama model.

        Files are mapped, so that processes share one copy in memory. Do not overwrite a file in use: put a new one in its place
        with a rename. With mmap=False a file is read into memory and may change afterwards.

        Raises OSError if something cannot be read or, for a folder, the package safetensors is missing; ValueError if it is
        not a valid checkpoint.
        """
        path = os.fsdecode(path)
        if os.path.isdir(path):
            return cls._of_folder(path, mmap)
        try:
            with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
                found, content = _load(file, mmap)
            weights = {e.name: _view(content, e) for e in found.entries if e.name != ROPE_TABLES}
            _check_norms(weights)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        except OSError as error:
            readable = type(error)(f"{path}: expected a readable file, found: {error.strerror}")
            readable.errno = error.errno
            raise readable from None
        except MemoryError:
            raise MemoryError(f"{path}: expected memory for its content, found too little") from None
        if found.shared_classifier:
            weights["wcls"] = weights["token_embedding_table"]
        shared, dtype = found.shared_classifier, found.dtype
        return cls(path, found.version, found.config, shared, dtype, found.group_size, "adjacent", weights)

    @classmethod
    def _of_folder(cls, path: str, mmap: bool) -> Checkpoint:
        found = open_folder(Path(path), mmap)
        try:
            _check_norms(found.weights)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        weights = found.weights
        if found.shared_classifier:
            weights["wcls"] = weights["token_embedding_table"]
        return cls(path, None, found.config, found.shared_classifier, "+".join(found.dtypes), None, "halves", weights)

    @property
    def format(self) -> str:
        """For people: "v2", "Hugging Face folder"."""
        return "Hugging Face folder" if self.version is None else f"v{self.version}"

    @property
    def kind(self) -> str:
        """For people, what the matrices are made of: "fp32", "bf16", "Q8_0"."""
        return "+".join(SHORT[dtype] for dtype in self.dtype.split("+"))


def _view(content: NDArray[np.uint8], entry: Entry) -> Weight:
    """The tensor of `entry` as it lies in the file's `content`, which its arrays keep alive."""
    if entry.group_size is None:
        return as_weight(np.ndarray(entry.shape, FLOAT_DTYPES[entry.dtype], content, entry.offset), entry.dtype)
    stack = entry.shape[:-2]  # (n_layers,), or () for a single matrix
    step = (entry.stride,) * len(stack)
    n_cols, scales_at = entry.shape[-1], entry.offset + entry.n_values
    values: NDArray[np.int8] = np.ndarray(entry.shape, np.int8, content, entry.offset, (*step, n_cols, 1))
    scales: Floats = np.ndarray((*stack, entry.n_scales), "<f4", content, scales_at, (*step, 4))
    return QuantizedTensor(values, scales, entry.group_size)


def _check_norms(weights: Mapping[str, Weight]) -> None:
    """One NaN here makes every logit NaN. Other weights are not looked at: that would read the whole file."""
    for name in NORMS:
        norm = cast("Floats", weights[name])  # in every version
        finite = np.isfinite(norm)
        if not finite.all():
            index = np.unravel_index(finite.argmin(), finite.shape)
            place = ", ".join(str(i) for i in index)
            raise ValueError(f"{name}[{place}]: expected a finite number, found {norm[index]}")


# --------------------------------------------------------------------------------------
# The file


def _open_without_waiting(path: str, flags: int) -> int:
    # Opening a FIFO would wait for its writer; opening a terminal could make it ours. `open` sets O_CLOEXEC.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def _load(file: FileIO, use_mmap: bool) -> tuple[Layout, NDArray[np.uint8]]:
    """Check kind, header and size of `file`, then give its layout and its content (read-only)."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):  # `open` has refused directories
        kind = "FIFO" if stat.S_ISFIFO(status.st_mode) else "device"
        raise ValueError(f"expected a regular file, found a {kind}")
    found, size = parse_header(file.read(max(HEADER_SIZES))), status.st_size
    if size != found.file_size:
        source = header_name(found.version)
        raise ValueError(f"expected {found.file_size} bytes according to the {source}, found {size}")
    return found, (_map if use_mmap else _read)(file, found.file_size)


def _map(file: FileIO, size: int) -> NDArray[np.uint8]:
    try:
        mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except ValueError:  # mmap looks at the size once more
        raise ValueError(f"expected {size} bytes, found fewer: the file shrank while it was opened") from None
    # frombuffer exports the mapping's buffer, so that it can no longer be closed under the arrays.
    return np.frombuffer(mapping, np.uint8)


def _read(file: FileIO, size: int) -> NDArray[np.uint8]:
    content = np.empty(size, np.uint8)  # unlike a bytearray, not filled with zeros first
    file.seek(0)
    done = 0
    while done < size:  # one read gives 2 GB at most
        count = file.readinto(content[done:].data)
        if not count:
            raise ValueError(f"expected {size} bytes, found {done}: the file shrank while it was read")
        done += count
    content.flags.writeable = False
    return content
