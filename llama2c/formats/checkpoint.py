"""A checkpoint as named arrays: views of the mapped file, without a copy. It is a file of llama2.c (v0, v1, v2), our v3, or a
Hugging Face folder.

Files are checked here and in layout.py, folders in huggingface.py. This module reads; writer.py writes.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ..architecture import CLASSIFIER, EMBEDDING, HUGGING_FACE, LLAMA, LLAMA2C, NORMS
from ..config import Config
from ..errors import ModelError
from ..files import recognise, unreadable
from ..tensors import FLOAT_DTYPES, Floats, QuantizedTensor, Weight, as_weight
from .layout import HEADER_SIZES, Q8_0, ROPE_TABLES, Entry, Layout, header_name, parse_header

SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", Q8_0: "Q8_0"}


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """An opened checkpoint. `weights` has each tensor under its name, with the shape `layout.tensor_shapes` gives.

    Norms are float32 arrays. Matrices are float32 or float16 arrays, BFloat16Tensor or QuantizedTensor; the layers of a folder
    are Layers of these, each with a type of its own. All are read-only and C-contiguous. If the classifier is shared,
    weights["wcls"] is weights["token_embedding_table"].

    copy and deepcopy return the checkpoint itself, because it is read-only. A pickle contains the path and not the weights.
    Loading it opens the file again, and raises ModelError if the file has another model by then. A checkpoint opened with
    mmap=False cannot be pickled (TypeError), because its file may have changed.
    """

    path: str
    version: int | None  # of the format; None: a Hugging Face folder
    config: Config
    shared_classifier: bool
    dtype: str  # of the matrices: "float32", "float16", "bfloat16" or "q8_0"; if there are several, joined by "+"
    group_size: int | None  # of q8_0, if all matrices have the same
    rope_pairs: str  # elements of a head that RoPE turns together: "adjacent", 2i and 2i + 1; "halves", i and i + head_size / 2
    weights: dict[str, Weight] = field(repr=False)
    _mapped: bool = field(default=True, repr=False)  # the weights are the file's bytes, which a pickle can find again

    @classmethod
    def open(cls, path: str | bytes | os.PathLike[Any], *, mmap: bool = True) -> Checkpoint:
        """Open a v0 to v3 file, or a Hugging Face folder with a Llama model. The version is recognised by the content.

        Files are mapped, so that processes share one copy in memory. Do not overwrite a file in use: write a new file and
        rename it. With mmap=False a file is read into memory and may change afterwards.

        Raises ModelError (a ValueError) if it is not a valid checkpoint; OSError if a file cannot be read or, for a folder, the
        package safetensors is missing; MemoryError.
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
            raise ModelError(f"{path}: {error}") from None
        except OSError as error:
            raise unreadable(error, path) from None
        except MemoryError:
            raise MemoryError(f"{path}: expected memory for its content, found too little") from None
        if found.shared_classifier:
            weights[CLASSIFIER.name] = weights[EMBEDDING.name]
        shared, dtype, pairs = found.shared_classifier, found.dtype, LLAMA.rope_pairs[LLAMA2C]
        return cls(path, found.version, found.config, shared, dtype, found.group_size, pairs, weights, mmap)

    @classmethod
    def _of_folder(cls, path: str, mmap: bool) -> Checkpoint:
        from .huggingface import open_folder  # a file needs neither this nor what it imports

        found = open_folder(Path(path), mmap)
        try:
            _check_norms(found.weights)
        except ValueError as error:
            raise ModelError(f"{path}: {error}") from None
        weights = found.weights
        if found.shared_classifier:
            weights[CLASSIFIER.name] = weights[EMBEDDING.name]
        dtype, pairs = "+".join(found.dtypes), LLAMA.rope_pairs[HUGGING_FACE]
        return cls(path, None, found.config, found.shared_classifier, dtype, None, pairs, weights, mmap)

    @property
    def format(self) -> str:
        """For people: "v2", "Hugging Face folder"."""
        return "Hugging Face folder" if self.version is None else f"v{self.version}"

    @property
    def kind(self) -> str:
        """For people, the types of the matrices: "fp32", "bf16", "Q8_0"; if there are several: "bf16+fp32"."""
        return "+".join(SHORT[dtype] for dtype in self.dtype.split("+"))

    def __copy__(self) -> Checkpoint:
        return self

    def __deepcopy__(self, memo: object) -> Checkpoint:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._mapped:
            reason = "its file may have changed since it was read: open it with mmap=True, or open it again where it is needed"
            raise TypeError(f"{self.path}: a checkpoint opened with mmap=False cannot be pickled, because {reason}")
        return _reopen, (os.path.abspath(self.path), self._identity)

    @property
    def _identity(self) -> _Identity:
        return _Identity(self.version, self.config, self.shared_classifier, self.dtype, self.group_size)


class _Identity(NamedTuple):
    """What must be the same when a pickled checkpoint is opened again."""

    version: int | None
    config: Config
    shared_classifier: bool
    dtype: str
    group_size: int | None


def _reopen(path: str, expected: _Identity) -> Checkpoint:
    found = Checkpoint.open(path)
    if found._identity != expected:
        raise ModelError(f"{path}: expected the model that was pickled, {expected.config}, found another, {found.config}")
    return found


def _view(content: NDArray[np.uint8], entry: Entry) -> Weight:
    """The tensor of `entry` as a view of the file's `content`. Its arrays keep the content alive."""
    if entry.group_size is None:
        return as_weight(np.ndarray(entry.shape, FLOAT_DTYPES[entry.dtype], content, entry.offset), entry.dtype)
    stack = entry.shape[:-2]  # (n_layers,), or () for a single matrix
    step = (entry.stride,) * len(stack)
    n_cols, scales_at = entry.shape[-1], entry.offset + entry.n_values
    values: NDArray[np.int8] = np.ndarray(entry.shape, np.int8, content, entry.offset, (*step, n_cols, 1))
    scales: Floats = np.ndarray((*stack, entry.n_scales), "<f4", content, scales_at, (*step, 4))
    return QuantizedTensor(values, scales, entry.group_size)


def _check_norms(weights: Mapping[str, Weight]) -> None:
    """One NaN in a norm makes every logit NaN. Matrices are not checked, because that would read the whole file."""
    for name in NORMS:
        norm = cast("Floats", weights[name])  # fp32 in every version
        finite = np.isfinite(norm)
        if not finite.all():
            index = np.unravel_index(finite.argmin(), finite.shape)
            place = ", ".join(str(i) for i in index)
            raise ModelError(f"{name}[{place}]: expected a finite number, found {norm[index]}")


# --------------------------------------------------------------------------------------
# The file


def _open_without_waiting(path: str, flags: int) -> int:
    # Opening a FIFO would wait for its writer. Opening a terminal could make it the controlling one. `open` sets O_CLOEXEC.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def _load(file: FileIO, use_mmap: bool) -> tuple[Layout, NDArray[np.uint8]]:
    """Check the kind, the header and the size of `file`, then return its layout and its content (read-only)."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):  # `open` has refused directories
        kind = "FIFO" if stat.S_ISFIFO(status.st_mode) else "device"
        raise ModelError(f"expected a regular file, found a {kind}")
    start, size = file.read(max(HEADER_SIZES)), status.st_size
    try:
        found = parse_header(start)
        if size != found.file_size:
            source = header_name(found.version)
            raise ModelError(f"expected {found.file_size} bytes according to the {source}, found {size}")
    except ModelError:
        if (other := recognise(start)) is not None:
            raise ModelError(f"expected a checkpoint, found {other}") from None
        raise
    return found, (_map if use_mmap else _read)(file, found.file_size)


def _map(file: FileIO, size: int) -> NDArray[np.uint8]:
    try:
        mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except ValueError:  # mmap checks the size again
        raise ModelError(f"expected {size} bytes, found fewer: the file shrank while it was opened") from None
    # frombuffer exports the mapping's buffer, so that the mapping cannot be closed while arrays use it.
    return np.frombuffer(mapping, np.uint8)


def _read(file: FileIO, size: int) -> NDArray[np.uint8]:
    content = np.empty(size, np.uint8)  # unlike a bytearray, not filled with zeros first
    file.seek(0)
    done = 0
    while done < size:  # one read returns at most 2 GB
        count = file.readinto(content[done:].data)
        if not count:
            raise ModelError(f"expected {size} bytes, found {done}: the file shrank while it was read")
        done += count
    content.flags.writeable = False
    return content
