"""GGUF files, read: the keys, the places of the tensors, and both as a Config and named arrays.

Nothing that a file says is believed before it is checked against the bytes that are there, by the rules of ggml's own reader.
The keys are walked over once. Their values, and the strings of an array, become Python objects only when they are asked for.
docs/format.md describes the format.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, cast, overload

import numpy as np

from ..architecture import CLASSIFIER, EMBEDDING, GGUF, LLAMA, ROPE_FACTORS
from ..blocks import BLOCK_TYPES
from ..config import ROPE_THETA, Config, RopeScaling
from ..errors import ModelError, not_found
from ..files import GGUF_MAGIC, exists, unreadable
from ..tensors import FLOAT_DTYPES, Floats, Raw, Weight
from .content import Content, Load, map_content, open_file, read_content
from .naming import Stored, check_tensors, gather, make_config, require, shown

VERSIONS = (2, 3)
MOST_ITEMS = 1 << 16  # keys or tensors of a file; a large model has about a thousand of each
MOST_BYTES = 1 << 30  # of a string; elements of an array
MOST_NAME, MOST_KEY = 63, (1 << 16) - 1  # bytes of the name of a tensor, and of a key
MOST_DIMENSIONS = 4
MOST_PARTS = (1 << 16) - 1
ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
SMALLEST_ALIGNMENT = 8  # by the description of the format; numbers of 4 bytes are aligned then
PART_NO, PART_COUNT, PART_TENSORS = "split.no", "split.count", "split.tensors.count"

# The types of values, as NumPy reads them. A bool is a byte that is not 0.
SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8"}
UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
# The types of tensors: the name of each, the numbers of a block, and its bytes.
TYPES = {0: ("float32", 1, 4), 1: ("float16", 1, 2), 30: ("bfloat16", 1, 2)}
TYPES |= {type.code: (type.name, type.n_values, type.n_bytes) for type in BLOCK_TYPES.values()}
# The names of those that llama2c does not read, for messages.
OTHER_TYPES = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S",
    22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 31: "Q4_0_4_4", 32: "Q4_0_4_8",
    33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip

_U32, _U64, _COUNTS, _ARRAY = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<QQ"), struct.Struct("<IQ")
_INFO = struct.Struct("<IQ")  # of a tensor: its type and its offset


class Model(NamedTuple):
    """The model in a GGUF file. `weights` has llama2c's names. Norms are fp32; matrices are as they are stored."""

    config: Config
    shared_classifier: bool
    weights: dict[str, Weight]
    dtypes: tuple[str, ...]  # of the matrices, each type once, those of most matrices first
    rope_factors: tuple[float, ...] | None  # as in Checkpoint
    metadata: Mapping[str, Any]


def open_gguf(path: str | os.PathLike[str], mmap: bool = True) -> Model:
    """The model in a GGUF file, or in a split model whose first file this is. Warns if its context had to be shortened.

    Raises ModelError, OSError or MemoryError: one line that says what is wrong with it.
    """
    name = os.fspath(path)
    found = _open(name, map_content)  # checks everything before anything is read into memory
    if not mmap:
        found = _open(name, read_content)
    trained = found.metadata[f"{LLAMA.name}.context_length"]
    if found.config.seq_len < trained:
        window = f"its attention sees only the last {found.config.seq_len} positions"
        warnings.warn(f"{name}: {window}: the context is shortened to them, from {trained}", RuntimeWarning, stacklevel=5)
    return found


def read_metadata(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The keys of a GGUF file and their values; nothing is checked but their part of the file. Of a split model, the first file
    has them.

    Numbers are int, float or bool; a float that was fp32 is the shortest decimal that rounds to it. Strings are str. Arrays of
    strings are a Sequence[bytes]; other arrays are NumPy's, those of bools uint8. Values are made when they are asked for, and
    then a string that is not UTF-8 is a ModelError, too.

    Raises ModelError, OSError or MemoryError: one line.
    """
    name = os.fspath(path)
    with _about(name), open_file(name) as file:
        metadata = read_keys(name, _Cursor(map_content(file, _size(file.fileno()))))[0]
    check_first(name, metadata)
    return metadata


# ---------------------------------------------------------------------------
# bytes


@contextlib.contextmanager
def _about(name: str) -> Iterator[None]:
    """Errors about the file `name` in one line that begins with it."""
    try:
        yield
    except ValueError as error:
        raise ModelError(f"{name}: {error}") from None
    except OSError as error:
        raise unreadable(error, name) from None
    except MemoryError:
        raise MemoryError(f"{name}: expected memory for its content, found too little") from None


def _size(descriptor: int) -> int:
    return os.fstat(descriptor).st_size


class _Cursor:
    """A place in the bytes of a file, which moves on behind what was read. Errors are ModelError and do not name the file."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self.view = content.data
        self.at = 0

    def skip(self, n_bytes: int, what: str) -> int:
        """The place of the next n_bytes, which are `what`. All reading goes through here, or through skip_strings."""
        start, left = self.at, len(self.view) - self.at
        if n_bytes > left:
            raise ModelError(f"{what}: expected {n_bytes} bytes, found {left} before the end of the file")
        self.at += n_bytes
        return start

    def unpack(self, form: struct.Struct, what: str) -> tuple[int, ...]:
        return form.unpack_from(self.view, self.skip(form.size, what))

    def text(self, most: int, what: str) -> str:
        """A string of at most `most` bytes."""
        (size,) = self.unpack(_U64, what)
        if size > most:
            raise ModelError(f"{what}: expected at most {most} bytes, found {size}")
        start = self.skip(size, what)
        return _decoded(bytes(self.view[start : start + size]), what)

    def skip_strings(self, n: int, what: str) -> None:
        """Walk over the lengths of n strings. An array may have hundreds of thousands, so nothing else is done here."""
        view, at, last, unpack = self.view, self.at, len(self.view) - _U64.size, _U64.unpack_from
        for _ in range(n):
            if at > last:
                break
            at += _U64.size + unpack(view, at)[0]
        else:
            if at <= len(view):
                self.at = at
                return
        raise ModelError(f"{what}: expected {n} strings, found the end of the file before that of the last")


def _equal(found: object, expected: object) -> bool:
    return not isinstance(found, np.ndarray) and found == expected


def _decoded(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{what}: expected UTF-8, found byte {error.object[error.start]:#04x} at {error.start}") from None


# ---------------------------------------------------------------------------
# keys


class Field(NamedTuple):
    """Where the value of a key is, and of which type."""

    type: int
    element: int | None  # the type of the elements, if it is an array
    n: int  # bytes of a string, elements of an array, else 1
    start: int
    end: int


class Strings(Sequence[bytes]):
    """An array of strings in a file. They are read when the first of them is asked for."""

    def __init__(self, raw: memoryview, n: int) -> None:
        self._raw = raw  # the lengths and the strings, checked
        self._n = n

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        return self._items[index]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._items)

    @cached_property
    def _items(self) -> list[bytes]:
        raw, start, unpack = bytes(self._raw), 0, _U64.unpack_from
        items = []
        for _ in range(self._n):
            end = start + 8 + unpack(raw, start)[0]
            items.append(raw[start + 8 : end])
            start = end
        return items


class Metadata(Mapping[str, Any]):
    """The keys of a file. A value is made when it is asked for: read_metadata says which types they have."""

    def __init__(self, path: str, content: Content, fields: Mapping[str, Field]) -> None:
        self._path = path
        self._content = content
        self._fields = fields

    def __getitem__(self, key: str) -> Any:
        field = self._fields[key]
        raw = self._content[field.start : field.end]
        if field.type == STRING:
            with _about(self._path):
                return _decoded(raw.tobytes(), key)
        if field.element == STRING:
            return Strings(raw.data, field.n)
        if field.type == ARRAY:
            array = raw.view(SCALARS[cast("int", field.element)]).copy()
            return (array != 0).view(np.uint8) if field.element == BOOL else array
        number = raw.view(SCALARS[field.type])[0]
        if field.type == BOOL:
            return bool(number)
        return float(str(number)) if field.type == FLOAT32 else number.item()

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def type_of(self, key: str) -> int | None:
        """The type of the value. None: there is no such key."""
        return self._fields[key].type if key in self._fields else None


def read_keys(path: str, cursor: _Cursor) -> tuple[Metadata, int]:
    """The keys of the file that a cursor is at the start of, and how many tensors follow. Errors do not name the file."""
    magic = bytes(cursor.view[:4])
    if magic != GGUF_MAGIC:
        raise ModelError(f"expected a GGUF file, which begins with {GGUF_MAGIC!r}, found {magic!r}")
    cursor.skip(len(GGUF_MAGIC), "the magic number")
    (version,) = cursor.unpack(_U32, "version")
    if version & 0xFFFF == 0:  # 3 in the other order of the bytes
        raise ModelError("expected a little-endian GGUF file, found a big-endian one")
    if version not in VERSIONS:
        raise ModelError(f"version: expected {' or '.join(map(str, VERSIONS))}, found {version}")
    n_tensors, n_keys = cursor.unpack(_COUNTS, "the header")
    for what, n in (("tensors", n_tensors), ("keys", n_keys)):
        if n > MOST_ITEMS:
            raise ModelError(f"expected at most {MOST_ITEMS} {what}, found {n}")
    fields: dict[str, Field] = {}
    for i in range(n_keys):
        key = cursor.text(MOST_KEY, f"key {i}")
        if not key or key in fields:
            raise ModelError(f"key {i}: expected a name of its own, found {shown(key) or 'an empty one'}")
        fields[key] = read_field(cursor, shown(key))
    return Metadata(path, cursor.content, fields), n_tensors


def read_field(cursor: _Cursor, key: str) -> Field:
    """The value that a cursor is at. `key` is for messages."""
    (type,) = cursor.unpack(_U32, key)
    element, n = None, 1
    if type == ARRAY:
        element, n = cursor.unpack(_ARRAY, key)
        if element == ARRAY:
            raise ModelError(f"{key}: expected an array of numbers or strings, found one of arrays")
    elif type == STRING:
        (n,) = cursor.unpack(_U64, key)
    if n > MOST_BYTES:
        raise ModelError(f"{key}: expected at most {MOST_BYTES} {'elements' if type == ARRAY else 'bytes'}, found {n}")
    start, stored = cursor.at, type if element is None else element
    if element == STRING:
        cursor.skip_strings(n, key)
    elif stored == STRING:
        cursor.skip(n, key)
    elif stored in SCALARS:
        cursor.skip(n * np.dtype(SCALARS[stored]).itemsize, key)
    else:
        raise ModelError(f"{key}: expected a type from 0 to 12, found {stored}")
    return Field(type, element, n, start, cursor.at)


# ---------------------------------------------------------------------------
# tensors


class Info(NamedTuple):
    """A tensor in a file: `shape` is NumPy's, the reverse of the file's."""

    dtype: str
    shape: tuple[int, ...]
    row_bytes: int  # of a row of numbers or blocks
    offset: int  # from the start of the data

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_bytes


def read_tensors(cursor: _Cursor, metadata: Metadata, n_tensors: int) -> dict[str, Stored]:
    """The tensors of a file whose cursor is behind the keys. Errors do not name the file."""
    alignment = read_alignment(metadata)
    infos: dict[str, Info] = {}
    end = 0
    for i in range(n_tensors):
        name = cursor.text(MOST_NAME, f"tensor {i}")
        if not name or name in infos:
            raise ModelError(f"tensor {i}: expected a name of its own, found {shown(name) or 'an empty one'}")
        infos[name] = info = read_info(cursor, shown(name))
        if info.offset != end:
            raise ModelError(f"{shown(name)}: expected offset {end}, behind the tensor before it, found {info.offset}")
        end += padded(info.nbytes, alignment)
    start, size = padded(cursor.at, alignment), len(cursor.view)
    for name, info in infos.items():
        last = start + info.offset + info.nbytes
        if last > size:
            raise ModelError(f"{shown(name)}: expected a file of at least {last} bytes, found {size}: it was cut short")
    return {name: stored(cursor.content, start, info) for name, info in infos.items()}


def padded(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment


def read_alignment(metadata: Metadata) -> int:
    type = metadata.type_of(ALIGNMENT)
    if type not in (None, UINT32):
        raise ModelError(f"{ALIGNMENT}: expected a value of type {UINT32} (uint32), found type {type}")
    alignment: int = metadata.get(ALIGNMENT, DEFAULT_ALIGNMENT)
    if alignment < SMALLEST_ALIGNMENT or alignment & (alignment - 1):
        raise ModelError(f"{ALIGNMENT}: expected a power of 2 of at least {SMALLEST_ALIGNMENT}, found {alignment}")
    return alignment


def read_info(cursor: _Cursor, name: str) -> Info:
    """The tensor whose description a cursor is in, behind the name, which is for messages."""
    (n_dims,) = cursor.unpack(_U32, name)
    if n_dims > MOST_DIMENSIONS:
        raise ModelError(f"{name}: expected at most {MOST_DIMENSIONS} dimensions, found {n_dims}")
    shape = cursor.unpack(struct.Struct(f"<{n_dims}Q"), name)[::-1]
    type, offset = cursor.unpack(_INFO, name)
    if type not in TYPES:
        known = ", ".join(dtype.upper() for dtype, _, _ in TYPES.values())
        raise ModelError(f"{name}: expected one of the types {known}, found {OTHER_TYPES.get(type, f'type {type}')}")
    dtype, n_values, n_bytes = TYPES[type]
    columns = shape[-1] if shape else 1
    if columns % n_values:
        raise ModelError(f"{name}: expected rows of a multiple of {n_values} numbers for {dtype.upper()}, found {columns}")
    if math.prod(shape) >= 1 << 63:
        raise ModelError(f"{name}: expected less than 2^63 numbers, found shape {shape}")
    return Info(dtype, shape, columns // n_values * n_bytes, offset)


def stored(content: Content, start: int, info: Info) -> Stored:
    """A tensor whose place has been checked. `start`: of the data. The rows of block types are bytes."""

    def raw() -> Raw:
        data: Raw = content[start + info.offset : start + info.offset + info.nbytes]
        if info.dtype in FLOAT_DTYPES:
            return np.ndarray(info.shape, FLOAT_DTYPES[info.dtype], data)
        return data.reshape(*info.shape[:-1], info.row_bytes)

    return Stored(info.dtype, info.shape, raw)


# ---------------------------------------------------------------------------
# files


def read_part(path: str, load: Load) -> tuple[Metadata, dict[str, Stored]]:
    """The keys and the tensors of one file."""
    with _about(path), open_file(path) as file:
        cursor = _Cursor(load(file, _size(file.fileno())))
        metadata, n_tensors = read_keys(path, cursor)
        return metadata, read_tensors(cursor, metadata, n_tensors)


def read_parts(path: str, load: Load) -> tuple[Metadata, dict[str, Stored]]:
    """The keys of a file, and the tensors of all files of its model."""
    metadata, tensors = read_part(path, load)
    n_parts = check_first(path, metadata)
    for number, part in enumerate(list_parts(path, n_parts)[1:], 1):
        if not exists(part):
            raise not_found(path, f"expected the other parts of the model beside it, found no {os.path.basename(part)}")
        others, more = read_part(part, load)
        check_part(part, number, metadata, others)
        twice = next((name for name in more if name in tensors), None)
        if twice is not None:
            raise ModelError(f"{part}: expected each tensor once, found {shown(twice)} in another, too")
        tensors |= more
    total = metadata.get(PART_TENSORS, len(tensors)) if n_parts > 1 else len(tensors)
    if not _equal(total, len(tensors)):
        raise ModelError(f"{path}: {PART_TENSORS}: expected {len(tensors)}, the tensors of all files, found {shown(total)}")
    return metadata, tensors


def check_first(path: str, metadata: Metadata) -> int:
    """How many files the model has. ModelError: this is not the first of them, or its name is not that of a first one."""
    n_parts, number = metadata.get(PART_COUNT, 1), metadata.get(PART_NO, 0)
    if not isinstance(n_parts, int) or not 0 <= n_parts <= MOST_PARTS:
        raise ModelError(f"{path}: {PART_COUNT}: expected 1 to {MOST_PARTS}, found {shown(n_parts)}")
    if n_parts < 2:
        return 1
    if not _equal(number, 0):
        found = f"another: {PART_NO} is {shown(number)}"
        raise ModelError(f"{path}: expected the first of the {n_parts} files of a model, found {found}")
    if not path.endswith(_ending(1, n_parts)):
        ending = _ending(1, n_parts)
        raise ModelError(f"{path}: expected a name that ends in {ending}, because it is the first of {n_parts} files")
    return n_parts


def check_part(part: str, number: int, first: Metadata, others: Metadata) -> None:
    """ModelError: `part` is not file `number`, counted from 0, of the model whose first file has the keys `first`."""
    expected = {PART_NO: number, PART_COUNT: first.get(PART_COUNT), PART_TENSORS: first.get(PART_TENSORS)}
    general = ("general.architecture", "general.name")  # that a part need not have
    expected |= {key: first.get(key) for key in general if key in others}
    for key, value in expected.items():
        if not _equal(others.get(key), value):
            raise ModelError(f"{part}: {key}: expected {shown(value)}, as in the first file, found {shown(others.get(key))}")


def _ending(number: int, n_parts: int) -> str:
    return f"-{number:05}-of-{n_parts:05}.gguf"


def list_parts(path: str, n_parts: int) -> list[str]:
    """The files of a model: m-00001-of-00002.gguf and m-00002-of-00002.gguf, from the path of the first."""
    if n_parts == 1:
        return [path]
    stem = path.removesuffix(_ending(1, n_parts))
    return [stem + _ending(number, n_parts) for number in range(1, n_parts + 1)]


# ---------------------------------------------------------------------------
# the model


def _open(path: str, load: Load) -> Model:
    metadata, tensors = read_parts(path, load)
    check_architecture(path, metadata)
    embedding = tensors.get(EMBEDDING.spelled(GGUF))
    if embedding is None or len(embedding.shape) != 2:
        found = "none" if embedding is None else f"shape {embedding.shape}"
        raise ModelError(f"{path}: expected a matrix {EMBEDDING.spelled(GGUF)}, found {found}")
    config = read_config(path, metadata, embedding.shape[0])
    config, factors = with_rope_factors(path, config, tensors.pop(ROPE_FACTORS, None))
    tied = CLASSIFIER.spelled(GGUF) not in tensors
    shared = check_tensors(path, config, GGUF, tensors, tied, (*FLOAT_DTYPES, *BLOCK_TYPES))
    weights, dtypes = gather(config, GGUF, tensors, shared)
    order = tuple(dtype for dtype, _ in dtypes.most_common())
    return Model(config, shared, weights, order, factors, metadata)


# ---------------------------------------------------------------------------
# settings


def check_architecture(path: str, metadata: Mapping[str, Any]) -> None:
    """ModelError: the file has something else than a Llama model, or one that llama2c does not compute."""
    name = LLAMA.name
    computed = {
        "general.type": ("model", "model"),  # not an adapter, for instance
        "general.architecture": (name, None),
        f"{name}.expert_count": (0, 0),  # a mixture of experts
        f"{name}.attention.causal": (True, True),
        f"{name}.rope.scaling.attn_factor": (1.0, 1.0),
    }
    for key, (known, default) in computed.items():
        found = metadata.get(key, default)
        if not _equal(found, known):
            raise ModelError(f"{path}: {key}: expected {known}, found {shown(found)}")


def read_config(path: str, metadata: Mapping[str, Any], vocab_size: int) -> Config:
    """The Config of a file. The rows of the embedding are its vocabulary: a tokenizer may have fewer tokens.

    Raises ModelError if a setting is wrong, or means a model that llama2c does not compute.
    """
    name = LLAMA.name

    def integer(key: str, default: int | None = None) -> int:
        return cast("int", _number(path, metadata, f"{name}.{key}", default, (int,)))

    def number(key: str, default: float | None = None) -> float:
        return _number(path, metadata, f"{name}.{key}", default, (int, float))

    dim, n_heads, context = integer("embedding_length"), integer("attention.head_count"), integer("context_length")
    window = integer("attention.sliding_window", context)
    config = make_config(
        path,
        dim=dim,
        hidden_dim=integer("feed_forward_length"),
        n_layers=integer("block_count"),
        n_heads=n_heads,
        n_kv_heads=integer("attention.head_count_kv", n_heads),
        vocab_size=vocab_size,
        seq_len=min(context, window) if window > 0 else context,
        head_size=integer("attention.key_length", 0),
        rope_theta=number("rope.freq_base", ROPE_THETA),
        norm_eps=number("attention.layer_norm_rms_epsilon"),
        rope_scaling=read_rope_scaling(path, metadata),
    )
    for key, default in (("attention.value_length", dim // n_heads), ("rope.dimension_count", config.head_size)):
        found = integer(key, default)
        if found != config.head_size:
            raise ModelError(f"{path}: {name}.{key}: expected {config.head_size}, the size of a head, found {found}")
    return config


def _number(path: str, metadata: Mapping[str, Any], key: str, default: float | None, types: tuple[type, ...]) -> float:
    """The value of a key. Without a default, it has to be there."""
    if default is None:
        require(path, metadata, [key])
    value = metadata.get(key, default)
    if type(value) not in types:
        expected = "an integer" if types == (int,) else "a number"
        raise ModelError(f"{path}: {key}: expected {expected}, found {type(value).__name__}")
    return cast("float", value)


def read_rope_scaling(path: str, metadata: Mapping[str, Any]) -> RopeScaling | None:
    """How the frequencies are scaled by the keys. None: they are not. ModelError: in a way that llama2c does not compute."""
    prefix = f"{LLAMA.name}.rope"
    key, old = f"{prefix}.scaling.factor", f"{prefix}.scale_linear"
    kind = metadata.get(f"{prefix}.scaling.type", "linear" if key in metadata or old in metadata else "none")
    if _equal(kind, "none"):
        return None
    if not _equal(kind, "linear"):
        raise ModelError(f"{path}: {prefix}.scaling.type: expected none or linear, found {shown(kind)}")
    factor = _number(path, metadata, key if key in metadata else old, 1.0, (int, float))
    if factor in (0, 1):  # 0: as llama.cpp writes a factor that is not set
        return None
    try:
        return RopeScaling("linear", factor)
    except ValueError as error:
        raise ModelError(f"{path}: {key}: {error}") from None


# ---------------------------------------------------------------------------
# the factors of the rotary frequencies

LLAMA3: dict[str, Any] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3_FACTORS = (8.0, 32.0)  # of Llama 3.1 and 3.2
CLOSE = 1e-5  # the converter computes the table in fp32; its values differ by up to 2e-6 from the exact ones, and by machine


def with_rope_factors(path: str, config: Config, tensor: Stored | None) -> tuple[Config, tuple[float, ...] | None]:
    """The Config of a file with a tensor of factors, and these, as in Checkpoint.

    Files of Llama 3 have its scaling as such a table, rounded to fp32. Where it is found again, it is used instead, so that the
    file has the same bits as its Hugging Face folder.
    """
    if tensor is None:
        return config, None
    shape = (config.head_size // 2,)
    if (tensor.dtype, tensor.shape) != ("float32", shape):
        found = f"{tensor.dtype} of shape {tensor.shape}"
        raise ModelError(f"{path}: {ROPE_FACTORS}: expected float32 of shape {shape}, found {found}")
    factors: Floats = tensor.raw()
    valid = np.isfinite(factors) & (factors > 0)
    if not valid.all():
        raise ModelError(f"{path}: {ROPE_FACTORS}: expected finite positive numbers, found {factors[~valid][0]}")
    if (factors == 1).all():
        return config, None
    if config.rope_scaling is None:
        for factor in (*LLAMA3_FACTORS, float(factors[-1])):
            if np.allclose(factors, llama3_factors(config, factor), rtol=CLOSE, atol=0):
                return replace(config, rope_scaling=RopeScaling("llama3", factor, **LLAMA3)), None
    return config, tuple(factors.tolist())


def llama3_factors(config: Config, factor: float) -> list[float]:
    """What Llama 3 divides the frequencies by: transformer.scale_frequency as a table, near enough to be compared."""
    low, high, original = LLAMA3.values()
    exponents = (-i / config.head_size for i in range(0, config.head_size, 2))
    turns = (original * config.rope_theta**exponent / (2 * math.pi) for exponent in exponents)
    kept = (min(1.0, max(0.0, (turn - low) / (high - low))) for turn in turns)
    return [1 / ((1 - k) / factor + k) for k in kept]
