"""Checkpoint files for tests, written by NumPy straight from the description of the formats (docs/format.md).

Shares no code with llama2c: what it writes checks what llama2c reads.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

ATTENTION = ("wq", "wk", "wv", "wo")
FEED_FORWARD = ("w1", "w2", "w3")
V0: tuple[str, ...] = (
    "token_embedding_table",
    "rms_att_weight",
    *ATTENTION,
    "rms_ffn_weight",
    *FEED_FORWARD,
    "rms_final_weight",
)
V0 += ("-", "wcls")  # "-": the old RoPE tables
V1: tuple[str, ...] = ("rms_att_weight", "rms_ffn_weight", "rms_final_weight")
V1 += ("token_embedding_table", *ATTENTION, *FEED_FORWARD, "wcls")
Arrays = dict[str, np.ndarray]


def random_weights(config: Any, rng: np.random.Generator, shared_classifier: bool = True) -> Arrays:
    """fp32 arrays under llama2c's names, scaled so that a forward pass stays finite; wcls if not shared."""
    c, head_size = config, getattr(config, "head_size", config.dim // config.n_heads)
    q_dim, kv_dim = c.n_heads * head_size, c.n_kv_heads * head_size
    shapes = {
        "token_embedding_table": (c.vocab_size, c.dim),
        "wq": (c.n_layers, q_dim, c.dim),
        "wk": (c.n_layers, kv_dim, c.dim),
        "wv": (c.n_layers, kv_dim, c.dim),
        "wo": (c.n_layers, c.dim, q_dim),
        "w1": (c.n_layers, c.hidden_dim, c.dim),
        "w2": (c.n_layers, c.dim, c.hidden_dim),
        "w3": (c.n_layers, c.hidden_dim, c.dim),
        "wcls": (c.vocab_size, c.dim),
    }
    if shared_classifier:
        del shapes["wcls"]
    weights = {name: rng.normal(0, shape[-1] ** -0.5, shape).astype("<f4") for name, shape in shapes.items()}
    for name, shape in {"att": (c.n_layers, c.dim), "ffn": (c.n_layers, c.dim), "final": (c.dim,)}.items():
        weights[f"rms_{name}_weight"] = rng.uniform(0.5, 1.5, shape).astype("<f4")
    return weights


def quantize(matrix: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix -> (int8 of its shape, fp32 scales (size / group_size,)); groups run on from row to row."""
    groups = matrix.reshape(-1, group_size)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    values = np.rint(groups / np.where(scales == 0, np.float32(1), scales)[:, None])  # half to even
    return values.astype(np.int8).reshape(matrix.shape), scales.astype("<f4")


def narrow(array: np.ndarray, dtype: str) -> np.ndarray:
    """fp32 numbers as float16, or as the bits of bfloat16: the nearest, or the even one of two that are as near."""
    if dtype == "float16":
        return array.astype("<f2")
    bits = array.view("<u4")
    low, rest = bits >> 16, bits & 0xFFFF
    return (low + ((rest > 0x8000) | ((rest == 0x8000) & (low % 2 == 1)))).astype("<u2")


def widen(array: np.ndarray, dtype: str) -> np.ndarray:
    """The way back: what a stored number stands for, in fp32."""
    return array.astype("<f4") if dtype == "float16" else (array.astype("<u4") << 16).view("<f4")


def header_v3(config: Any, tied: bool, dtype: str, group_size: int | None) -> dict[str, Any]:
    """What the header of version 3 says."""
    names = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len", "head_size")
    said: dict[str, Any] = {name: getattr(config, name) for name in (*names, "rope_theta", "norm_eps")}
    keys = ("rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    s = config.rope_scaling
    said["rope_scaling"] = None if s is None else {key: getattr(s, key) for key in keys}
    return {**said, "shared_classifier": tied, "dtype": dtype, "group_size": group_size}


def pack_v3(said: Any) -> bytes:
    """The 1024 bytes of such a header."""
    return (struct.pack("<Ii", 0x616B3432, 3) + json.dumps(said).encode()).ljust(1024, b" ")


def parts(config: Any, version: int, weights: Arrays, group_size: int | None = None, dtype: str = "float32") -> list[bytes]:
    """The file in pieces: the header, then one for each tensor. `dtype` counts in version 3 alone; q8_0 has a group_size."""
    c, tied = config, "wcls" not in weights
    sizes = [c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.vocab_size, c.seq_len]
    if version == 0:
        sizes[5] *= 1 if tied else -1
        rope_tables = np.full(c.seq_len * c.dim // c.n_heads, np.nan, "<f4")  # must never be looked at
        tensors = {**weights, "-": rope_tables}
        return [struct.pack("<7i", *sizes), *(tensors[name].tobytes() for name in V0 if name in tensors)]
    if version == 3:
        out = [pack_v3(header_v3(config, tied, dtype, group_size))]
    else:
        head = struct.pack("<Ii7iB", 0x616B3432, version, *sizes, tied)
        if version == 2:
            head, dtype = head + struct.pack("<i", group_size), "q8_0"
        out = [head + bytes(256 - len(head))]
    for name in V1:
        if name not in weights:
            continue
        tensor = weights[name]
        if dtype == "float32" or name.startswith("rms_"):
            out.append(tensor.tobytes())
        elif dtype != "q8_0":
            out.append(narrow(tensor, dtype).tobytes())
        else:
            matrices = [quantize(m, group_size or 0) for m in tensor.reshape(-1, *tensor.shape[-2:])]
            out.append(b"".join(values.tobytes() + scales.tobytes() for values, scales in matrices))
    return out


def write(
    path: Path, config: Any, version: int, weights: Arrays, group_size: int | None = None, dtype: str = "float32"
) -> Path:
    """Write a checkpoint file; the classifier is shared if `weights` has no wcls."""
    path.write_bytes(b"".join(parts(config, version, weights, group_size, dtype)))
    return path


def read_v2(path: Path) -> tuple[dict[str, int], Arrays, dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]]:
    """A v2 file -> its sizes, its norms, and (values, scales) of each matrix by (name, layer)."""
    data = path.read_bytes()
    magic, version, *numbers, tied, group_size = struct.unpack_from("<Ii7iBi", data)
    assert (magic, version) == (0x616B3432, 2)
    names = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
    sizes = {**dict(zip(names, numbers, strict=True)), "group_size": group_size}
    sizes["head_size"] = sizes["dim"] // sizes["n_heads"]
    dim, hidden_dim, n_layers = sizes["dim"], sizes["hidden_dim"], sizes["n_layers"]
    kv_dim = dim // sizes["n_heads"] * sizes["n_kv_heads"]
    shapes = {"wq": (dim, dim), "wk": (kv_dim, dim), "wv": (kv_dim, dim), "wo": (dim, dim)}
    shapes |= {"w1": (hidden_dim, dim), "w2": (dim, hidden_dim), "w3": (hidden_dim, dim)}
    shapes |= dict.fromkeys(("token_embedding_table", "wcls"), (sizes["vocab_size"], dim))
    norms: Arrays = {}
    matrices = {}
    place = 256
    for name in V1:
        if name.startswith("rms_"):
            count = 1 if name == "rms_final_weight" else n_layers
            norms[name] = np.frombuffer(data, "<f4", count * dim, place).reshape(count, dim).squeeze(0 if count == 1 else ())
            place += count * dim * 4
        elif name != "wcls" or not tied:
            for layer in range(1 if name in ("token_embedding_table", "wcls") else n_layers):
                rows, cols = shapes[name]
                values = np.frombuffer(data, np.int8, rows * cols, place).reshape(rows, cols)
                place += rows * cols
                matrices[name, layer] = values, np.frombuffer(data, "<f4", rows * cols // group_size, place)
                place += rows * cols // group_size * 4
    assert place == len(data)
    return sizes, norms, matrices
