"""Checkpoint files for tests, written by NumPy straight from the description of the formats (docs/format.md).

Shares no code with llama2c: what it writes checks what llama2c reads.
"""

from __future__ import annotations

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
    c, kv_dim = config, config.dim // config.n_heads * config.n_kv_heads
    shapes = {
        "token_embedding_table": (c.vocab_size, c.dim),
        "wq": (c.n_layers, c.dim, c.dim),
        "wk": (c.n_layers, kv_dim, c.dim),
        "wv": (c.n_layers, kv_dim, c.dim),
        "wo": (c.n_layers, c.dim, c.dim),
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


def parts(config: Any, version: int, weights: Arrays, group_size: int | None = None) -> list[bytes]:
    """The file in pieces: the header, then one for each tensor."""
    c, tied = config, "wcls" not in weights
    sizes = [c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.vocab_size, c.seq_len]
    if version == 0:
        sizes[5] *= 1 if tied else -1
        rope_tables = np.full(c.seq_len * c.dim // c.n_heads, np.nan, "<f4")  # must never be looked at
        tensors = {**weights, "-": rope_tables}
        return [struct.pack("<7i", *sizes), *(tensors[name].tobytes() for name in V0 if name in tensors)]
    head = struct.pack("<Ii7iB", 0x616B3432, version, *sizes, tied)
    if version == 2:
        head += struct.pack("<i", group_size)
    out = [head + bytes(256 - len(head))]
    for name in V1:
        if name not in weights:
            continue
        tensor = weights[name]
        if version == 1 or name.startswith("rms_"):
            out.append(tensor.tobytes())
        else:
            matrices = [quantize(m, group_size or 0) for m in tensor.reshape(-1, *tensor.shape[-2:])]
            out.append(b"".join(values.tobytes() + scales.tobytes() for values, scales in matrices))
    return out


def write(path: Path, config: Any, version: int, weights: Arrays, group_size: int | None = None) -> Path:
    """Write a checkpoint file; the classifier is shared if `weights` has no wcls."""
    path.write_bytes(b"".join(parts(config, version, weights, group_size)))
    return path
