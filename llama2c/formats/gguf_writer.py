"""Writes GGUF files as a stream: the metadata, the list of the tensors, and their numbers, one matrix after another.

The names, the order and the types of the tensors are those of llama.cpp's converter and of llama-quantize, so that llama.cpp
runs the files. docs/format.md describes the format.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..architecture import CLASSIFIER, EMBEDDING, GGUF, LLAMA, ROPE_FACTORS, Tensor
from ..blocks import BLOCK_TYPES, LARGE, SMALL, BlockType, dequantize
from ..errors import ModelError
from ..files import GGUF_MAGIC
from ..tensors import Floats
from .quantize import quantize_blocks
from .writer import CHUNK, Progress, Rounding, Source, counted, replacing, write_floats

VERSION, ALIGNMENT = 3, 32
QUANTIZATION_VERSION = 2  # of the block types; ggml has not changed them since
FLOAT_CODES = {"float32": 0, "float16": 1, "bfloat16": 30}
# general.file_type, which says what most matrices are. q4_k is the mix that llama-quantize calls Q4_K_M.
FILE_TYPES = {
    "float32": 0, "float16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q4_k": 15, "q6_k": 18, "bfloat16": 32,
}  # fmt: skip
SMALLER = {"q4_k": "q5_0", "q6_k": "q8_0"}  # what llama-quantize takes where rows do not have whole blocks of 256
NOT_COPIED = ("general.architecture", "general.file_type", "general.quantization_version", "general.alignment")

# The types of values in the metadata
U32, I32, F32, BOOL, STRING, ARRAY, U64, I64 = 4, 5, 6, 7, 8, 9, 10, 11
NUMPY_CODES = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": U32, "int32": I32, "float32": F32, "bool": BOOL, "uint64": U64,
    "int64": I64, "float64": 12,
}  # fmt: skip


class Part(NamedTuple):
    """A tensor of the file."""

    name: str
    shape: tuple[int, ...]  # (rows, columns) or (elements,)
    dtype: str
    read: Callable[[], Floats]

    @property
    def block_type(self) -> BlockType | None:
        """None: plain numbers."""
        return BLOCK_TYPES.get(self.dtype)

    @property
    def nbytes(self) -> int:
        if self.block_type is None:
            return math.prod(self.shape) * (4 if self.dtype == "float32" else 2)
        return math.prod(self.shape[:-1]) * self.block_type.row_bytes(self.shape[-1])

    @property
    def padding(self) -> int:
        """Zero bytes between this tensor and the next."""
        return -self.nbytes % ALIGNMENT


class Written(NamedTuple):
    """What was written: bytes of the file, the largest rounding error, and what the user should know, a line each."""

    size: int
    rounding: Rounding
    notes: tuple[str, ...]


def write_gguf(path: Path, source: Source, dtype: str, progress: Progress | None = None) -> Written:
    """Write a model as a GGUF file, with what source.metadata says of its tokenizer.

    dtype: one of FILE_TYPES, for most matrices (see choose_type); norms are float32. `progress` is called with the number of
    tensors written and their total.

    Raises OSError if the file cannot be written, ModelError if a value is not finite or is too large for the type.
    """
    parts, notes = list_parts(source, dtype)
    start = header(metadata(source, dtype), parts)
    size = len(start) + sum(part.nbytes + part.padding for part in parts)
    worst = Rounding(0.0, "")
    with replacing(path, size) as unfinished, unfinished.open("wb") as file:
        file.write(start)
        for part in counted(parts, progress):
            values = part.read()
            if part.block_type is None:
                rounding = write_floats(file, part.name, math.prod(part.shape), [values], part.dtype)
            else:
                rounding = write_blocks(file, part.name, part.block_type, values)
            worst = max(worst, rounding)
            file.write(bytes(part.padding))
    return Written(size, worst, notes)


def write_blocks(file: BinaryIO, name: str, type: BlockType, matrix: Floats) -> Rounding:
    """Write the rows of a matrix in blocks. ModelError: a value is not finite or is too large for the type."""
    error = 0.0
    step = max(CHUNK // matrix.shape[1], 1)
    for first in range(0, len(matrix), step):
        rows = np.ascontiguousarray(matrix[first : first + step], np.float32)
        if not np.isfinite(rows).all():
            raise ModelError(f"{name}: expected finite weights, found {rows[~np.isfinite(rows)][0]}")
        try:
            blocks = quantize_blocks(type, rows)
        except ModelError as reason:
            raise ModelError(f"{name}: {reason}") from None
        error = max(error, float(np.abs(rows - dequantize(type, blocks)).max()))
        file.write(blocks.data)
    return Rounding(error, name if error else "")


# ---------------------------------------------------------------------------
# tensors


def list_parts(source: Source, dtype: str) -> tuple[list[Part], tuple[str, ...]]:
    """The tensors in the order of the file, and a line about those that have another type because of their shape."""
    parts = []
    others: Counter[tuple[str, str]] = Counter()
    factors = rope_factors(source)
    if factors is not None:
        parts.append(Part(ROPE_FACTORS, factors.shape, "float32", lambda: factors))
    for tensor, layer in tensors_in_order(source):
        shape = tensor.shape_of_one(source.config)
        wanted = choose_type(tensor, layer, source, dtype)
        fitting = fit_type(wanted, shape[-1])
        if fitting != wanted:
            others[fitting, wanted] += 1
        spelled = tensor.spelled(GGUF, layer)
        parts.append(Part(spelled, shape, fitting, lambda tensor=tensor, layer=layer: source.read(tensor.name, layer)))  # type: ignore[misc]
    return parts, (others_note(others),) if others else ()


def others_note(others: Mapping[tuple[str, str], int]) -> str:
    """How many matrices have which type instead of which, and why."""
    sizes = sorted({SMALL if fitting == "float16" else LARGE for fitting, _ in others}, reverse=True)
    because = f"the number of columns of some matrices is not a multiple of {' or '.join(map(str, sizes))}"
    counts = (f"{n} {'is' if n == 1 else 'are'} {fitting} instead of {wanted}" for (fitting, wanted), n in others.items())
    return f"{because}: {', '.join(counts)}"


def tensors_in_order(source: Source) -> Iterator[tuple[Tensor, int]]:
    """The tensors as llama.cpp orders them, each with its layer: the embedding, the layers, the last norm, the classifier."""
    tensors = LLAMA.tensors.values()
    yield EMBEDDING, 0
    for layer in range(source.config.n_layers):
        yield from ((tensor, layer) for tensor in tensors if tensor.per_layer)
    for tensor in tensors:
        if not tensor.per_layer and tensor is not EMBEDDING and not (tensor is CLASSIFIER and source.shared_classifier):
            yield tensor, 0


def choose_type(tensor: Tensor, layer: int, source: Source, dtype: str) -> str:
    """The type of one matrix, by the rules of llama-quantize, whatever its shape.

    Next to blocks of 4 and 5 bits, the classifier has 6 bits; and in the mix Q4_K_M, some of wv and w2.
    """
    if tensor.is_norm:
        return "float32"
    if dtype not in BLOCK_TYPES or dtype == "q8_0":
        return dtype
    if tensor is (EMBEDDING if source.shared_classifier else CLASSIFIER):
        return "q6_k"
    if dtype == "q4_k" and tensor.name in ("wv", "w2") and has_more_bits(layer, source.config.n_layers):
        return "q6_k"
    return dtype


def has_more_bits(layer: int, n_layers: int) -> bool:
    """Whether a layer is one of the first or the last eighth, or every third between them."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def fit_type(dtype: str, columns: int) -> str:
    """The type, or the one that llama-quantize takes instead because a row of `columns` numbers does not have whole blocks."""
    if dtype not in BLOCK_TYPES or columns % BLOCK_TYPES[dtype].n_values == 0:
        return dtype
    return fit_type(SMALLER.get(dtype, "float16"), columns)


def rope_factors(source: Source) -> Floats | None:
    """What divides each rotary frequency, (head_size / 2,); None: nothing but linear scaling, which has keys of its own.

    That of Llama 3 is computed in fp32, as llama.cpp's converter does.
    """
    if source.rope_factors is not None:
        return np.array(source.rope_factors, np.float32)
    c, scaling = source.config, source.config.rope_scaling
    if scaling is None or scaling.rope_type != "llama3":
        return None
    low, high, length = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position_embeddings
    assert low is not None and high is not None and length is not None  # RopeScaling has checked it
    one = np.float32(1)
    exponents = np.arange(0, c.head_size, 2, dtype=np.float32) / np.float32(c.head_size)
    wavelengths = np.float32(2 * math.pi) * np.float32(c.rope_theta) ** exponents
    smooth = (np.float32(length) / wavelengths - np.float32(low)) / np.float32(high - low)
    blended = one / ((one - smooth) / np.float32(scaling.factor) + smooth)
    factors = np.where(wavelengths > length / low, np.float32(scaling.factor), blended)
    return np.where(wavelengths < length / high, one, factors).astype(np.float32)


# ---------------------------------------------------------------------------
# metadata


def metadata(source: Source, dtype: str) -> dict[str, Any]:
    """The keys of the file: general ones, those of the Config, and those of the source (general ones, and its tokenizer)."""
    c = source.config
    keys: dict[str, Any] = {"general.architecture": LLAMA.name, "general.type": "model", "general.name": name_of(source.path)}
    keys |= {k: v for k, v in source.metadata.items() if k.startswith("general.") and k not in NOT_COPIED}
    keys |= {
        "llama.vocab_size": c.vocab_size,
        "llama.context_length": c.seq_len,
        "llama.embedding_length": c.dim,
        "llama.block_count": c.n_layers,
        "llama.feed_forward_length": c.hidden_dim,
        "llama.attention.head_count": c.n_heads,
        "llama.attention.head_count_kv": c.n_kv_heads,
    }
    if c.q_dim != c.dim:
        keys |= {"llama.attention.key_length": c.head_size, "llama.attention.value_length": c.head_size}
    keys |= {
        "llama.attention.layer_norm_rms_epsilon": as_fp32("norm_eps", c.norm_eps),
        "llama.rope.dimension_count": c.head_size,
        "llama.rope.freq_base": as_fp32("rope_theta", c.rope_theta),
    }
    if c.rope_scaling is not None and c.rope_scaling.rope_type == "linear":
        factor = as_fp32("rope_scaling.factor", c.rope_scaling.factor)
        keys |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": factor}
    keys["general.file_type"] = FILE_TYPES[dtype]
    if dtype in BLOCK_TYPES:
        keys["general.quantization_version"] = QUANTIZATION_VERSION
    return keys | {key: value for key, value in source.metadata.items() if key.startswith("tokenizer.")}


def as_fp32(name: str, value: float) -> float:
    """A number of the Config, as GGUF has it. ModelError: fp32 has no such number."""
    with np.errstate(over="ignore", under="ignore"):
        number = float(np.float32(value))
    if not 0 < number < math.inf:
        raise ModelError(f"{name}: expected a number that fp32 holds, as GGUF has it, found {value}")
    return number


def name_of(path: Path) -> str:
    """What general.name says of a model without a name: that of its file or folder."""
    path = path.absolute()
    return path.name if path.is_dir() else path.stem


def header(keys: Mapping[str, Any], parts: Sequence[Part]) -> bytes:
    """Everything before the numbers, padded so that they are aligned."""
    out = [GGUF_MAGIC + struct.pack("<IQQ", VERSION, len(parts), len(keys))]
    out += [pack_string(key) + pack_value(value) for key, value in keys.items()]
    offset = 0
    for part in parts:
        code = FLOAT_CODES[part.dtype] if part.block_type is None else part.block_type.code
        sizes = struct.pack(f"<{len(part.shape)}Q", *reversed(part.shape))  # the length of a row is first
        out.append(pack_string(part.name) + struct.pack("<I", len(part.shape)) + sizes + struct.pack("<IQ", code, offset))
        offset += part.nbytes + part.padding
    joined = b"".join(out)
    return joined + bytes(-len(joined) % ALIGNMENT)


def pack_value(value: Any) -> bytes:
    """A value of the metadata with its type: bool, int (32 bits if that is enough), float (as fp32), str, or an array of them.

    A NumPy array keeps its type; a list is one of strings.
    """
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        fitting = ((U32, "I", 0, 1 << 32), (I32, "i", -(1 << 31), 0), (U64, "Q", 0, 1 << 64), (I64, "q", -(1 << 63), 0))
        code, letter = next((code, letter) for code, letter, low, end in fitting if low <= value < end)
        return struct.pack(f"<I{letter}", code, value)
    if isinstance(value, float):
        return struct.pack("<If", F32, value)
    if isinstance(value, str | bytes):
        return struct.pack("<I", STRING) + pack_string(value)
    if isinstance(value, np.ndarray):
        code = NUMPY_CODES[value.dtype.name]
        return struct.pack("<IIQ", ARRAY, code, value.size) + value.astype(value.dtype.newbyteorder("<")).tobytes()
    return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(pack_string, value))


def pack_string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    return struct.pack("<Q", len(raw)) + raw
