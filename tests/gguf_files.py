"""GGUF files for tests, packed byte by byte from the description of the format (docs/format.md).

It shares no code with llama2c, so that it can check what llama2c reads. `good` is a whole model, in pieces that may be changed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from checkpoints import Arrays, narrow

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
CODES = {"float32": 0, "float16": 1, "bfloat16": 30}
# Block types: their code, the numbers of a block, its bytes, and where its fp16 numbers are.
BLOCKS = {
    "q4_0": (2, 32, 18, (0,)),
    "q4_1": (3, 32, 20, (0, 2)),
    "q5_0": (6, 32, 22, (0,)),
    "q5_1": (7, 32, 24, (0, 2)),
    "q8_0": (8, 32, 34, (0,)),
    "q2_k": (10, 256, 84, (80, 82)),
    "q3_k": (11, 256, 110, (108,)),
    "q4_k": (12, 256, 144, (0, 2)),
    "q5_k": (13, 256, 176, (0, 2)),
    "q6_k": (14, 256, 210, (208,)),
    "iq4_nl": (20, 32, 18, (0,)),
    "iq4_xs": (23, 256, 136, (0,)),
    "mxfp4": (39, 32, 17, ()),
}
LAYER = {
    "rms_att_weight": "attn_norm",
    "wq": "attn_q",
    "wk": "attn_k",
    "wv": "attn_v",
    "wo": "attn_output",
    "rms_ffn_weight": "ffn_norm",
    "w1": "ffn_gate",
    "w2": "ffn_down",
    "w3": "ffn_up",
}
WHOLE = {"token_embedding_table": "token_embd", "rms_final_weight": "output_norm", "wcls": "output"}


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(type: int, content: Any) -> bytes:
    """A value without its type. That of an array is (type of the elements, elements)."""
    if type == STRING:
        return string(content)
    if type == ARRAY:
        element, items = content
        return struct.pack("<IQ", element, len(items)) + b"".join(value(element, item) for item in items)
    return struct.pack(f"<{FORMATS[type]}", content)


def key(name: str | bytes, type: int, content: Any) -> bytes:
    return string(name) + struct.pack("<I", type) + value(type, content)


@dataclass
class Tensor:
    name: str
    shape: tuple[int, ...]  # NumPy's
    code: int
    data: bytes
    offset: int | None = None  # None: the right one
    n_dims: int | None = None

    def info(self, offset: int) -> bytes:
        n_dims = len(self.shape) if self.n_dims is None else self.n_dims
        sizes = struct.pack(f"<{len(self.shape)}Q", *self.shape[::-1])
        offset = offset if self.offset is None else self.offset
        return string(self.name) + struct.pack("<I", n_dims) + sizes + struct.pack("<IQ", self.code, offset)


@dataclass
class File:
    keys: dict[str, bytes]  # by name, packed
    tensors: dict[str, Tensor]
    version: int = 3
    alignment: int = 32
    n_tensors: int | None = None  # None: the right number
    n_keys: int | None = None
    magic: bytes = b"GGUF"
    extra: list[bytes] = field(default_factory=list)  # more keys, packed

    def set(self, name: str, type: int, content: Any) -> File:
        self.keys[name] = key(name, type, content)
        return self

    def add(self, name: str, array: np.ndarray, dtype: str = "float32") -> File:
        stored = array.astype("<f4") if dtype == "float32" else narrow(array, dtype)
        self.tensors[name] = Tensor(name, array.shape, CODES[dtype], stored.tobytes())
        return self

    def header(self) -> bytes:
        """All before the data, and the padding."""
        keys = [*self.keys.values(), *self.extra]
        counts = (
            len(self.tensors) if self.n_tensors is None else self.n_tensors,
            len(keys) if self.n_keys is None else self.n_keys,
        )
        infos, end = [], 0
        for tensor in self.tensors.values():
            infos.append(tensor.info(end))
            end += self.padded(len(tensor.data))
        return self.magic + struct.pack("<IQQ", self.version, *counts) + b"".join(keys) + b"".join(infos)

    def padded(self, n_bytes: int) -> int:
        return -(-n_bytes // self.alignment) * self.alignment

    def pack(self) -> bytes:
        header = self.header()
        data = b"".join(tensor.data.ljust(self.padded(len(tensor.data)), b"\0") for tensor in self.tensors.values())
        return header.ljust(self.padded(len(header)), b"\0") + data


def settings(config: Any) -> dict[str, bytes]:
    """The keys of a Config, as converters write them. A head_size that is not given is dim / n_heads."""
    head_size = getattr(config, "head_size", config.dim // config.n_heads)
    integers = {
        "context_length": config.seq_len,
        "embedding_length": config.dim,
        "block_count": config.n_layers,
        "feed_forward_length": config.hidden_dim,
        "rope.dimension_count": head_size,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": head_size,
        "attention.value_length": head_size,
    }
    numbers = {
        "rope.freq_base": getattr(config, "rope_theta", 10000.0),
        "attention.layer_norm_rms_epsilon": getattr(config, "norm_eps", 1e-5),
    }
    packed = {"general.architecture": key("general.architecture", STRING, "llama")}
    packed |= {f"llama.{name}": key(f"llama.{name}", U32, number) for name, number in integers.items()}
    return packed | {f"llama.{name}": key(f"llama.{name}", F32, number) for name, number in numbers.items()}


def random_blocks(dtype: str, shape: tuple[int, int], rng: np.random.Generator) -> bytes:
    """Rows of blocks, whose bytes are random and whose scales are small."""
    _, n_values, n_bytes, halves = BLOCKS[dtype]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // n_values, n_bytes), np.uint8)
    for place in halves:
        blocks[:, place : place + 2] = rng.uniform(0.001, 0.01, len(blocks)).astype("<f2")[:, None].view(np.uint8)
    if dtype == "mxfp4":
        blocks[:, 0] = rng.integers(118, 124, len(blocks))
    return blocks.tobytes()


def names(n_layers: int) -> dict[str, tuple[str, int | None]]:
    """Each name of GGUF with llama2c's and the layer."""
    found: dict[str, tuple[str, int | None]] = {f"{part}.weight": (name, None) for name, part in WHOLE.items()}
    layers = [(layer, name, part) for layer in range(n_layers) for name, part in LAYER.items()]
    return found | {f"blk.{layer}.{part}.weight": (name, layer) for layer, name, part in layers}


def good(config: Any, weights: Arrays, dtype: str = "float32", norms: str = "float32") -> File:
    """The file of weights under llama2c's names. Without wcls the classifier is shared. `dtype`: of the matrices."""
    file = File(settings(config), {})
    for name, (own, layer) in names(config.n_layers).items():
        if own in weights:
            array = weights[own] if layer is None else weights[own][layer]
            file.add(name, array, norms if array.ndim == 1 else dtype)
    return file


def in_blocks(file: File, dtypes: list[str], rng: np.random.Generator) -> File:
    """The file with matrices of these types in turn, where their rows are whole blocks; their numbers are random."""
    matrices = [tensor for tensor in file.tensors.values() if len(tensor.shape) > 1]
    for i, tensor in enumerate(matrices):
        code, n_values, _, _ = BLOCKS[dtypes[i % len(dtypes)]]
        if tensor.shape[1] % n_values == 0:
            tensor.code, tensor.data = code, random_blocks(dtypes[i % len(dtypes)], (tensor.shape[0], tensor.shape[1]), rng)
    return file
