"""A checkpoint file (llama2.c's v0, v1 or v2) as named arrays: views of the mapped file, nothing copied.

All checking of checkpoint files is done here; docs/format.md has the formats in full. This module reads;
for those that write, `header` and `layout` say which bytes belong where.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
import struct
from dataclasses import dataclass, field
from io import FileIO
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from llama2c.config import DIMENSIONS, NORM_EPS, ROPE_THETA, Config

MAGIC = 0x616B3432  # the first four bytes of v1 and v2, little-endian; v0 starts with dim
HEADER_V0 = struct.Struct("<7i")  # the dimensions; vocab_size is negative if the classifier is not tied
HEADER_V1 = struct.Struct("<Ii7iB")  # magic, version, the dimensions, tied flag
HEADER_V2 = struct.Struct("<Ii7iBi")  # as v1, and group_size right behind the flag, at byte 37
_VOCAB_SIZE = DIMENSIONS.index("vocab_size")
HEADER_SIZES = (HEADER_V0.size, 256, 256)  # by version; v1 and v2 are padded with zeros

ROPE_TABLES = "rope_tables"  # in v0 only: floats that no one reads any more
NORMS = ("rms_att_weight", "rms_ffn_weight", "rms_final_weight")  # fp32 in every version
_ORDER_V0 = (
    "token_embedding_table", "rms_att_weight", "wq", "wk", "wv", "wo", "rms_ffn_weight",
    "w1", "w2", "w3", "rms_final_weight", ROPE_TABLES, "wcls",
)  # fmt: skip
_ORDER_V1 = (*NORMS, "token_embedding_table", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "wcls")
ORDERS = (_ORDER_V0, _ORDER_V1, _ORDER_V1)  # by version: the tensors as they follow each other in the file


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor a file can have, by name: norms (dim,), matrices (rows, cols), per layer."""
    dim, hidden_dim, n_layers = config.dim, config.hidden_dim, config.n_layers
    q_dim, kv_dim = config.n_heads * config.head_size, config.kv_dim
    return {
        "token_embedding_table": (config.vocab_size, dim),
        "rms_att_weight": (n_layers, dim),
        "wq": (n_layers, q_dim, dim),
        "wk": (n_layers, kv_dim, dim),
        "wv": (n_layers, kv_dim, dim),
        "wo": (n_layers, dim, q_dim),
        "rms_ffn_weight": (n_layers, dim),
        "w1": (n_layers, hidden_dim, dim),
        "w2": (n_layers, dim, hidden_dim),
        "w3": (n_layers, hidden_dim, dim),
        "rms_final_weight": (dim,),
        ROPE_TABLES: (config.seq_len, config.head_size),
        "wcls": (config.vocab_size, dim),
    }


# --------------------------------------------------------------------------------------
# Layout: where everything is in a file


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in a file: n_matrices times its n_values values, each time followed by its n_scales scales.

    Values are fp32 and there are no scales if group_size is None; else values are int8, scales fp32.
    """

    name: str
    shape: tuple[int, ...]
    offset: int  # in bytes from the start of the file
    group_size: int | None  # values that share a scale

    @property
    def n_matrices(self) -> int:
        return math.prod(self.shape[:-2])

    @property
    def n_values(self) -> int:
        """Values of one matrix."""
        return math.prod(self.shape[-2:])

    @property
    def n_scales(self) -> int:
        """Scales of one matrix."""
        return 0 if self.group_size is None else self.n_values // self.group_size

    @property
    def stride(self) -> int:
        """Bytes from one matrix to the next."""
        return self.n_values * (4 if self.group_size is None else 1) + self.n_scales * 4

    @property
    def nbytes(self) -> int:
        return self.n_matrices * self.stride


@dataclass(frozen=True, slots=True)
class Layout:
    """All of a file but the numbers: the header's content, and the entries that follow it without a gap.

    A writer streams a file by writing header(...) and then each entry in order (ROPE_TABLES as zeros).
    """

    config: Config
    version: int
    shared_classifier: bool
    group_size: int | None
    entries: tuple[Entry, ...]
    file_size: int


def layout(config: Config, version: int, shared_classifier: bool, group_size: int | None = None) -> Layout:
    """The layout of a file of `version` (0, 1, 2). Only v2 has a group_size, a positive divisor of dim."""
    _check_version(version, (0, 1, 2))
    if version == 2:
        if group_size is None or group_size <= 0 or config.dim % group_size:
            raise ValueError(f"group_size: expected a divisor of dim = {config.dim}, found {group_size}")
    elif group_size is not None:
        raise ValueError(f"group_size: expected None for version {version}, found {group_size}")
    shapes = tensor_shapes(config)
    entries: list[Entry] = []
    offset = HEADER_SIZES[version]
    for name in ORDERS[version]:
        if name == "wcls" and shared_classifier:
            continue
        entry = Entry(name, shapes[name], offset, None if name in NORMS else group_size)
        entries.append(entry)
        offset += entry.nbytes  # a Python int: no file is too large to be counted
    return Layout(config, version, shared_classifier, group_size, tuple(entries), offset)


# --------------------------------------------------------------------------------------
# Header


def header(config: Config, version: int, shared_classifier: bool, group_size: int | None = None) -> bytes:
    """The bytes before the first entry. ValueError for a config that a file of these versions cannot hold."""
    layout(config, version, shared_classifier, group_size)  # for its checks
    held = {"head_size": config.dim / config.n_heads, "rope_theta": ROPE_THETA, "norm_eps": NORM_EPS}
    for name, value in held.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name}: expected {value:g} in a v{version} file, found {getattr(config, name)}"
            )
    sizes = [getattr(config, name) for name in DIMENSIONS]
    if version == 0:
        if not shared_classifier:
            sizes[_VOCAB_SIZE] = -config.vocab_size
        return HEADER_V0.pack(*sizes)
    if version == 1:
        packed = HEADER_V1.pack(MAGIC, version, *sizes, shared_classifier)
    else:
        packed = HEADER_V2.pack(MAGIC, version, *sizes, shared_classifier, group_size)
    return packed.ljust(HEADER_SIZES[version], b"\0")


def parse_header(raw: bytes) -> Layout:
    """The inverse of `header`: the layout of a file whose first 256 bytes (or all, if fewer) are `raw`."""
    version = _find_version(raw)
    try:
        return _parse(raw, version)
    except ValueError as error:
        raise ValueError(f"{_header_name(version)}: {error}") from None


def _header_name(version: int) -> str:
    # Without the magic number anything at all is taken for v0: the message has to say so.
    return f"v{version} header" if version else f"v0 header (magic number 0x{MAGIC:x} not found)"


def _find_version(raw: bytes) -> int:
    magic = raw[:4]
    if magic == MAGIC.to_bytes(4, "big"):
        raise ValueError(f"expected magic number 0x{MAGIC:x} in little-endian order, found its bytes swapped")
    if magic != MAGIC.to_bytes(4, "little"):
        return 0
    if len(raw) < 8:
        raise ValueError(f"expected a header of {HEADER_SIZES[1]} bytes, found {len(raw)}")
    version = int.from_bytes(raw[4:8], "little", signed=True)
    _check_version(version, (1, 2))
    return version


def _check_version(version: int, known: tuple[int, ...]) -> None:
    if version not in known:
        raise ValueError(f"version: expected one of {', '.join(map(str, known))}, found {version}")


def _parse(raw: bytes, version: int) -> Layout:
    if len(raw) < HEADER_SIZES[version]:
        raise ValueError(f"expected {HEADER_SIZES[version]} bytes, found {len(raw)}")
    if version == 0:
        sizes = list(HEADER_V0.unpack_from(raw))
        shared_classifier = sizes[_VOCAB_SIZE] > 0
        sizes[_VOCAB_SIZE] = abs(sizes[_VOCAB_SIZE])
        return layout(Config(*sizes), version, shared_classifier)
    _, _, *sizes, tied, group_size = HEADER_V2.unpack_from(raw)  # in v1 the last is padding
    if tied not in (0, 1):
        raise ValueError(f"tied flag: expected 0 or 1, found {tied}")
    return layout(Config(*sizes), version, tied == 1, group_size if version == 2 else None)


# --------------------------------------------------------------------------------------
# Weights


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """A Q8_0 tensor: element i of a matrix, counted row by row, is values[i] * scales[i // group_size].

    A group may run over the end of a row into the next one, never over the end of a matrix.
    """

    values: NDArray[np.int8]  # (..., rows, cols); each matrix is contiguous
    scales: NDArray[np.float32]  # (..., rows * cols / group_size); may lie at any byte
    group_size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def __getitem__(self, layer: int) -> QuantizedTensor:
        """One matrix of a stack."""
        return QuantizedTensor(self.values[layer], self.scales[layer], self.group_size)

    def dequantize(self) -> NDArray[np.float32]:
        """A new fp32 array of this shape."""
        groups = self.values.reshape(*self.scales.shape, self.group_size)
        product: NDArray[np.float32] = np.multiply(groups, self.scales[..., np.newaxis], dtype=np.float32)
        return product.reshape(self.shape)


Weight: TypeAlias = "NDArray[np.float32] | QuantizedTensor"


def _view(content: NDArray[np.uint8], entry: Entry) -> Weight:
    """The tensor of `entry` as it lies in the file's `content`, which its arrays keep alive."""
    if entry.group_size is None:
        return np.ndarray(entry.shape, "<f4", content, entry.offset)
    stack = entry.shape[:-2]  # (n_layers,), or () for a single matrix
    step = (entry.stride,) * len(stack)
    n_cols, scales_at = entry.shape[-1], entry.offset + entry.n_values
    values: NDArray[np.int8] = np.ndarray(entry.shape, np.int8, content, entry.offset, (*step, n_cols, 1))
    scales: NDArray[np.float32] = np.ndarray((*stack, entry.n_scales), "<f4", content, scales_at, (*step, 4))
    return QuantizedTensor(values, scales, entry.group_size)


def _check_norms(weights: dict[str, Weight]) -> None:
    """One NaN here makes every logit NaN. Other weights are not looked at: that would read the whole file."""
    for name in NORMS:
        norm = cast("NDArray[np.float32]", weights[name])  # in every version
        finite = np.isfinite(norm)
        if not finite.all():
            index = np.unravel_index(finite.argmin(), finite.shape)
            place = ", ".join(str(i) for i in index)
            raise ValueError(f"{name}[{place}]: expected a finite number, found {norm[index]}")


# --------------------------------------------------------------------------------------
# The file


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """An opened checkpoint. `weights` has each tensor under its name, with the shape `tensor_shapes` gives.

    Arrays are read-only. fp32 ones are C-contiguous; v2 has QuantizedTensor for all but the norms.
    If the classifier is shared, weights["wcls"] is weights["token_embedding_table"].
    """

    path: str
    version: int
    config: Config
    shared_classifier: bool
    group_size: int | None
    weights: dict[str, Weight] = field(repr=False)

    @classmethod
    def open(cls, path: str | bytes | os.PathLike[Any], *, mmap: bool = True) -> Checkpoint:
        """Open a v0, v1 or v2 file, told apart by its content.

        It is mapped, so that processes share one copy in memory. Do not overwrite a file in use: put a new
        one in its place with a rename. With mmap=False it is read into memory and may change afterwards.

        Raises OSError if the file cannot be read, ValueError if it is not a valid checkpoint.
        """
        path = os.fsdecode(path)
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
        return cls(path, found.version, found.config, found.shared_classifier, found.group_size, weights)


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
        source = _header_name(found.version)
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
