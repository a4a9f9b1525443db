"""The inputs a fuzzer starts from: small valid files, made from the description of the formats."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import checkpoints as checkpoint_files
import gguf_files
import numpy as np
from targets import BASE, MOST_BYTES, pack

from llama2c.config import Config
from llama2c.formats.layout import parse_header

MAGIC = 0x616B3432
SIZES = (4, 3, 1, 2, 1, 8, 4)  # dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
NAMES = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
DTYPES = ("float32", "float16", "bfloat16", "q8_0")
SCALING = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALING |= {"original_max_position_embeddings": 4}


def checkpoints() -> dict[str, bytes]:
    """The smallest models of each version, with and without a classifier of their own."""
    seeds = {}
    for version in (0, 1, 2):
        for tied in (True, False):
            if version == 0:
                header = struct.pack("<7i", *SIZES[:5], SIZES[5] if tied else -SIZES[5], SIZES[6])
            else:
                header = struct.pack("<Ii7iB", MAGIC, version, *SIZES, tied)
                header = (header + struct.pack("<i", 2) * (version == 2)).ljust(256, b"\0")
            seeds[f"v{version}_{'tied' if tied else 'untied'}"] = fitted(header)
    for dtype in DTYPES:
        said = {**dict(zip(NAMES, SIZES, strict=True)), "head_size": 2, "rope_theta": 500000.0, "norm_eps": 1e-6}
        said |= {"rope_scaling": SCALING if dtype == "bfloat16" else None, "shared_classifier": dtype == "q8_0"}
        said |= {"dtype": dtype, "group_size": 2 if dtype == "q8_0" else None}
        seeds[f"v3_{dtype}"] = fitted(pack_v3(json.dumps(said)))
    return seeds | {name: file.pack() for name, file in gguf().items()}


def gguf() -> dict[str, gguf_files.File]:
    """The smallest models in GGUF: of floats, and of every block type. The last has a tokenizer, RoPE factors and a window."""
    rng = np.random.default_rng(1)
    files = {}
    for dtype in ("float32", "float16", "bfloat16"):
        config = Config(*SIZES)
        weights = checkpoint_files.random_weights(config, rng, dtype == "float32")
        files[f"gguf_{dtype}"] = gguf_files.good(config, weights, dtype)
    for columns in (32, 256):
        config = Config(columns, columns % 224, 1, 2, 1, 8, 4, head_size=16 if columns == 32 else 2)
        dtypes = [dtype for dtype, (_, n_values, _, _) in gguf_files.BLOCKS.items() if n_values == columns]
        file = gguf_files.good(config, checkpoint_files.random_weights(config, rng, False))
        files[f"gguf_{columns}"] = gguf_files.in_blocks(file, dtypes, rng)
    file.add("rope_freqs.weight", np.array([2.5]))
    file.set("general.name", gguf_files.STRING, "é").set("llama.attention.sliding_window", gguf_files.U32, 3)
    file.set("tokenizer.ggml.tokens", gguf_files.ARRAY, (gguf_files.STRING, ["<unk>", "<s>", "</s>", "a"]))
    file.set("tokenizer.ggml.scores", gguf_files.ARRAY, (gguf_files.F32, [0.0, 0.0, 0.0, -1.5]))
    return files


def pack_v3(text: str) -> bytes:
    """A header of version 3 that says `text`."""
    return (struct.pack("<Ii", MAGIC, 3) + text.encode()).ljust(1024)[:1024]


def header_size(data: bytes) -> int:
    if data[:4] != MAGIC.to_bytes(4, "little"):
        return 28
    return 1024 if data[4:8] == b"\3\0\0\0" else 256


def fitted(data: bytes) -> bytes:
    """The same header, with a body of the length that it asks for (if short): the given body, repeated. GGUF stays as it is."""
    if data.startswith(b"GGUF"):
        return data
    try:
        size = parse_header(data[:1024]).file_size
    except Exception:  # the target judges it
        return data
    if size > MOST_BYTES:
        return data
    start = header_size(data)
    body = data[start:] or struct.pack("<3f", 0.5, -0.25, 0.125)
    return (data[:start] + body * (size // len(body) + 1))[:size]


def tokenizers() -> dict[str, bytes]:
    """Files and texts, as targets.split takes them."""
    more = [(b" ", 0.0), (b"a", 0.0), (b"b", 0.0), (b"ab", -1.0), (b" a", 2.0), ("é".encode(), 0.5), (b"<0xG1>", 0.0)]
    tokens = b"".join(struct.pack("<fi", score, len(spelling)) + spelling for spelling, score in more)
    text = "ab aé\0b ab".encode()
    return {
        "good": bytes([128 | len(text)]) + tokens + text,
        "base": bytes([128]),
        "whole": bytes([len(text)]) + pack([*BASE, *more]) + text,
        "header": bytes(5),
    }


def write(folder: Path, seeds: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds.items():
        (folder / name).write_bytes(data)
