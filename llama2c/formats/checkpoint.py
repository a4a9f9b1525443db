"""A checkpoint as named arrays: views of the mapped file, without a copy. It is a file of llama2.c (v0, v1, v2), our v3, a GGUF
file, or a Hugging Face folder.

Our own files are checked here and in layout.py, GGUF in gguf.py, folders in huggingface.py. writer.py writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path
from time import time_ns
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ..architecture import CLASSIFIER, EMBEDDING, GGUF, HUGGING_FACE, LLAMA, LLAMA2C, NORMS
from ..config import Config
from ..errors import ModelError
from ..files import GGUF_MAGIC, FileState, file_state, recognise, unreadable
from ..tensors import FLOAT_DTYPES, Floats, QuantizedTensor, Weight, as_weight
from .content import Content, map_content, open_file, read_content
from .layout import HEADER_SIZES, Q8_0, ROPE_TABLES, Entry, Layout, header_name, parse_header

SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", Q8_0: "Q8_0"}  # block types: their names in capitals
SPLIT = re.compile(r"(.*)-00001-of-(\d{5})\.gguf", re.DOTALL)  # the first file of a split model
SETTLED = 2_000_000_000  # nanoseconds: the coarsest clock of a file system in use has ticks of 2 seconds
NO_METADATA: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """An opened checkpoint. `weights` has each tensor under its name, with the shape `layout.tensor_shapes` gives.

    Norms are float32 arrays. Matrices are float32 or float16 arrays, BFloat16Tensor, QuantizedTensor or, in GGUF, BlockTensor;
    the layers of a folder or of GGUF are Layers of these, each with a type of its own. All are read-only and C-contiguous. If
    the classifier is shared, weights["wcls"] is weights["token_embedding_table"].

    copy and deepcopy return the checkpoint itself, because it is read-only. A pickle contains the path and not the weights.
    Loading it opens the file again, and raises ModelError if the file has another model by then. A checkpoint opened with
    mmap=False cannot be pickled (TypeError), because its file may have changed.
    """

    path: str
    format: str  # for people: "v0" to "v3", "GGUF" or "Hugging Face folder"
    version: int | None  # 0 to 3; None: another format
    config: Config
    shared_classifier: bool
    dtype: str  # of the matrices: "float32", "float16", "bfloat16", "q8_0", "q4_1", ...; if there are several: "q4_1+q8_0"
    group_size: int | None  # of the q8_0 of v2 and v3
    rope_pairs: str  # elements of a head that RoPE turns together: "adjacent", 2i and 2i + 1; "halves", i and i + head_size / 2
    weights: dict[str, Weight] = field(repr=False)
    # The rotary frequencies are divided by these, too, (head_size / 2,). None: by nothing but what config.rope_scaling says.
    rope_factors: tuple[float, ...] | None = field(default=None, repr=False)
    metadata: Mapping[str, Any] = field(default_factory=lambda: NO_METADATA, repr=False)  # the keys of a GGUF file
    _mapped: bool = field(default=True, repr=False)  # the weights are the file's bytes, which a pickle can find again
    # Of the files with the weights, before they were opened; () if a change since then might not show.
    states: tuple[FileState, ...] = field(default=(), repr=False)

    @classmethod
    def open(cls, path: str | bytes | os.PathLike[Any], *, mmap: bool = True) -> Checkpoint:
        """Open a v0 to v3 file, a GGUF file (of a split model, the first), or a Hugging Face folder with a Llama model. The
        format is recognised by the content.

        Files are mapped, so that processes share one copy in memory. Do not overwrite a file in use: write a new file and
        rename it. With mmap=False a file is read into memory and may change afterwards.

        Raises ModelError (a ValueError) if it is not a valid checkpoint; OSError if a file cannot be read or, for a folder, the
        package safetensors is missing; MemoryError. Warns (RuntimeWarning) if the context of a GGUF file had to be shortened.
        """
        path = os.fsdecode(path)
        states = weight_states(path)
        found = cls._of_folder(path, mmap) if os.path.isdir(path) else cls._open_file(path, mmap)
        return replace(found, states=states if is_settled(states) else ())

    @classmethod
    def _open_file(cls, path: str, mmap: bool) -> Checkpoint:
        try:
            with open_file(path) as file:
                start = file.read(max(HEADER_SIZES))
                if not start.startswith(GGUF_MAGIC):
                    return cls._of_file(path, file, start, mmap)
        except ValueError as error:
            raise ModelError(f"{path}: {error}") from None
        except OSError as error:
            raise unreadable(error, path) from None
        except MemoryError:
            raise MemoryError(f"{path}: expected memory for its content, found too little") from None
        return cls._of_gguf(path, mmap)

    @classmethod
    def _of_file(cls, path: str, file: FileIO, start: bytes, mmap: bool) -> Checkpoint:
        found, content = _load(file, start, mmap)
        weights = {e.name: _view(content, e) for e in found.entries if e.name != ROPE_TABLES}
        _check_norms(weights)
        shared, version, pairs = found.shared_classifier, found.version, LLAMA.rope_pairs[LLAMA2C]
        if shared:
            weights[CLASSIFIER.name] = weights[EMBEDDING.name]
        group_size = found.group_size
        return cls(path, f"v{version}", version, found.config, shared, found.dtype, group_size, pairs, weights, _mapped=mmap)

    @classmethod
    def _of_gguf(cls, path: str, mmap: bool) -> Checkpoint:
        from .gguf import open_gguf  # other files need neither this nor what it imports

        found = open_gguf(path, mmap)
        weights, dtype = _checked(path, found.weights, found.shared_classifier), "+".join(found.dtypes)
        return cls(
            path, "GGUF", None, found.config, found.shared_classifier, dtype, None, LLAMA.rope_pairs[GGUF], weights,
            found.rope_factors, found.metadata, mmap,
        )  # fmt: skip

    @classmethod
    def _of_folder(cls, path: str, mmap: bool) -> Checkpoint:
        from .huggingface import open_folder  # a file needs neither this nor what it imports

        found = open_folder(Path(path), mmap)
        weights, dtype = _checked(path, found.weights, found.shared_classifier), "+".join(found.dtypes)
        pairs = LLAMA.rope_pairs[HUGGING_FACE]
        shared = found.shared_classifier
        return cls(path, "Hugging Face folder", None, found.config, shared, dtype, None, pairs, weights, _mapped=mmap)

    @property
    def kind(self) -> str:
        """For people, the types of the matrices: "fp32", "bf16", "Q8_0"; if there are several: "Q4_1+Q8_0"."""
        return "+".join(SHORT.get(dtype, dtype.upper()) for dtype in self.dtype.split("+"))

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
        return _Identity(self.format, self.config, self.shared_classifier, self.dtype, self.group_size, self.rope_factors)


def weight_states(path: str) -> tuple[FileState, ...]:
    """The states of the files with the weights of a model, in a folder of all that may have some. (): they are not known."""
    try:
        if os.path.isdir(path):
            return tuple(map(file_state, sorted(Path(path).glob("*.safetensors"))))
        part = SPLIT.fullmatch(path)
        if part is None:
            return (file_state(path),)
        n_parts = int(part[2])
        return tuple(file_state(f"{part[1]}-{number:05}-of-{n_parts:05}.gguf") for number in range(1, n_parts + 1))
    except (OSError, ValueError):
        return ()


def is_settled(states: tuple[FileState, ...]) -> bool:
    """Whether every change from now on will show. Two changes within a tick of the clock leave the same times."""
    newest = max((max(state.mtime_ns, state.ctime_ns) for state in states), default=0)
    return newest < time_ns() - SETTLED


class _Identity(NamedTuple):
    """What must be the same when a pickled checkpoint is opened again."""

    format: str
    config: Config
    shared_classifier: bool
    dtype: str
    group_size: int | None
    rope_factors: tuple[float, ...] | None


def _reopen(path: str, expected: _Identity) -> Checkpoint:
    found = Checkpoint.open(path)
    if found._identity != expected:
        raise ModelError(f"{path}: expected the model that was pickled, {expected.config}, found another, {found.config}")
    return found


def _view(content: Content, entry: Entry) -> Weight:
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


def _checked(path: str, weights: dict[str, Weight], shared_classifier: bool) -> dict[str, Weight]:
    """The weights of another program's model with the classifier, if it is shared. ModelError: a norm is not finite."""
    try:
        _check_norms(weights)
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from None
    return weights | {CLASSIFIER.name: weights[EMBEDDING.name]} if shared_classifier else weights


def _load(file: FileIO, start: bytes, use_mmap: bool) -> tuple[Layout, Content]:
    """Check the header and the size of `file`, then return its layout and its content. `start`: its first bytes."""
    size = os.fstat(file.fileno()).st_size
    try:
        found = parse_header(start)
        if size != found.file_size:
            source = header_name(found.version)
            raise ModelError(f"expected {found.file_size} bytes according to the {source}, found {size}")
    except ModelError:
        if (other := recognise(start)) is not None:
            raise ModelError(f"expected a checkpoint, found {other}") from None
        raise
    return found, (map_content if use_mmap else read_content)(file, found.file_size)
