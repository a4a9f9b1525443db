"""Hugging Face folders with something wrong: settings, shards, tensors, and paths that are not regular files."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import folders
import numpy as np

from .case import Case, pack_tokenizer, refused, weights
from .files import GGUF, HTML, LFS
from .version3 import CONFIG, LLAMA3

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
BROKEN = "expected a safetensors file, found: "
LEADS_OUT = "expected names of files beside it"
POSITIVE = "expected an integer from 1 to 2147483647, found"
FILE = "model.safetensors"
SHARD = "model-00002-of-00003.safetensors"
QUERY = "model.layers.1.self_attn.q_proj.weight"
Spoil = Callable[[Path], None]


def settings(**changed: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({**folders.hf_settings(CONFIG, False), **changed}))

    return spoil


def tensors(**changed: np.ndarray | None) -> Spoil:
    """The valid tensors with these changes. None: the tensor is missing."""

    def spoil(folder: Path) -> None:
        found = {**folders.hf_tensors(weights(), CONFIG.head_size), **changed}
        folders.write_safetensors(folder / FILE, {name: array for name, array in found.items() if array is not None})

    return spoil


def replaced(name: str, data: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return spoil


def cut(n_bytes: int) -> Spoil:
    def spoil(folder: Path) -> None:
        os.truncate(folder / FILE, (folder / FILE).stat().st_size + n_bytes)

    return spoil


def header(text: bytes | str, size: int | None = None, body: bytes = b"") -> Spoil:
    raw = text.encode() if isinstance(text, str) else text
    return replaced(FILE, (len(raw) if size is None else size).to_bytes(8, "little") + raw + body)


def entries(**changed: Any) -> Spoil:
    """The valid file, with one tensor described differently in its header."""

    def spoil(folder: Path) -> None:
        content = (folder / FILE).read_bytes()
        size = int.from_bytes(content[:8], "little")
        found = json.loads(content[8 : 8 + size])
        found[QUERY] = {**found[QUERY], **changed}
        header(json.dumps(found), body=content[8 + size :])(folder)

    return spoil


def no_file(name: str, kind: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        if kind == "a FIFO":
            os.mkfifo(folder / name)
        elif kind == "a directory":
            (folder / name).mkdir()
        elif kind == "a symlink loop":
            (folder / name).symlink_to(folder / name)
        elif kind == "a dangling link":
            (folder / name).symlink_to(folder / "blob")

    return spoil


def index(content: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / FILE).unlink()
        (folder / f"{FILE}.index.json").write_text(content if isinstance(content, str) else json.dumps(content))

    return spoil


def shards(spoil: Spoil) -> Spoil:
    def act(folder: Path) -> None:
        shutil.rmtree(folder)
        folders.write_model(folder, CONFIG, weights(), n_shards=3)
        spoil(folder)

    return act


def norm(value: float) -> Spoil:
    return tensors(**{"model.norm.weight": np.full(CONFIG.dim, value, "<f4")})


BAD: dict[str, tuple[Spoil, type[Exception], str]] = {
    "config.json absent": (no_file("config.json", "absent"), OSError, "expected a file, or a folder with config.json"),
    "config.json a FIFO": (no_file("config.json", "a FIFO"), ValueError, "expected a regular file, found a special file"),
    "config.json a directory": (no_file("config.json", "a directory"), ValueError, "regular file, found a directory"),
    "config.json empty": (replaced("config.json", b""), ValueError, "config.json: expected JSON"),
    "config.json cut": (replaced("config.json", b'{"model_type": "llama"'), ValueError, "config.json: expected JSON"),
    "config.json a list": (replaced("config.json", b"[]"), ValueError, "expected a JSON object, found list"),
    "config.json no text": (replaced("config.json", b"\xff\xfe\xfd"), ValueError, "config.json: expected JSON"),
    "config.json deep": (replaced("config.json", b"[" * 100_000), ValueError, "config.json: expected JSON"),
    "config.json a number without end": (replaced("config.json", b"9" * 100_000), ValueError, "config.json: expected JSON"),
    "another architecture": (settings(model_type="mixtral"), ValueError, "model_type: expected llama, found mixtral"),
    "an architecture that is a list": (settings(model_type=["llama"]), ValueError, "model_type: expected llama, found "),
    "another activation": (settings(hidden_act="gelu"), ValueError, 'hidden_act: expected "silu", found "gelu"'),
    "biases of attention": (settings(attention_bias=True), ValueError, "attention_bias: expected false, found true"),
    "biases of the feed-forward": (settings(mlp_bias=True), ValueError, "mlp_bias: expected false, found true"),
    "quantised": (settings(quantization_config={"bits": 4}), ValueError, "quantization_config: expected null"),
    "an unknown rotary type": (settings(rope_scaling={"rope_type": "yarn"}), ValueError, "found yarn"),
    "an unknown rotary type beside a known one": (
        settings(rope_parameters={"rope_type": "default"}, rope_scaling={"rope_type": "yarn", "factor": 2}),
        ValueError,
        "found yarn",
    ),
    "rotary settings of another type": (settings(rope_scaling="llama3"), ValueError, "rope_scaling: expected an object"),
    "a rotary type that is a list": (settings(rope_scaling={"rope_type": []}), ValueError, "rope_type: expected default, "),
    "llama3 without its factors": (settings(rope_scaling={"type": "llama3", "factor": 8}), ValueError, "low_freq_factor: "),
    "llama3 with a factor of 0": (settings(rope_scaling={**LLAMA3, "factor": 0}), ValueError, "factor: expected a finite"),
    "a part of the heads turned": (settings(partial_rotary_factor=0.5), ValueError, "partial_rotary_factor: expected 1"),
    "an odd head_dim": (settings(head_dim=3), ValueError, "head_size: expected an even number, found 3"),
    "a negative head_dim": (settings(head_dim=-2), ValueError, f"head_size: {POSITIVE} -2"),
    "epsilon 0": (settings(rms_norm_eps=0), ValueError, "norm_eps: expected a finite positive number, found 0.0"),
    "theta NaN": (settings(rope_theta=float("nan")), ValueError, "rope_theta: expected a finite positive number, found nan"),
    "key heads that do not divide": (settings(num_key_value_heads=4), ValueError, "n_kv_heads: expected a divisor of n_heads"),
    "no weights": (no_file(FILE, "absent"), OSError, "expected model.safetensors or model.safetensors.index.json"),
    "config.json a dangling link": (no_file("config.json", "a dangling link"), FileNotFoundError, "found a link to "),
    "config.json a Git LFS pointer": (replaced("config.json", LFS), ValueError, "config.json: expected JSON, found: a Git LFS"),
    "config.json an HTML page": (replaced("config.json", HTML), ValueError, "config.json: expected JSON, found: an HTML page"),
    "weights a dangling link": (no_file(FILE, "a dangling link"), FileNotFoundError, f"{FILE}: expected a readable file, "),
    "weights a Git LFS pointer": (replaced(FILE, LFS), ValueError, f"{BROKEN}a Git LFS pointer: "),
    "weights an HTML page": (replaced(FILE, HTML), ValueError, f"{BROKEN}an HTML page: "),
    "weights of GGUF": (replaced(FILE, GGUF), ValueError, f"{BROKEN}a GGUF file"),
    "weights a FIFO": (no_file(FILE, "a FIFO"), ValueError, "expected a regular file, found a special file"),
    "weights a directory": (no_file(FILE, "a directory"), ValueError, "expected a regular file, found a directory"),
    "weights a symlink loop": (no_file(FILE, "a symlink loop"), OSError, f"{FILE}: expected a readable file, found: Too many"),
    "weights empty": (replaced(FILE, b""), ValueError, BROKEN),
    "weights a text": (replaced(FILE, b"Once upon a time, there was a little girl."), ValueError, BROKEN),
    "weights cut by a byte": (cut(-1), ValueError, BROKEN),
    "weights a byte too long": (cut(1), ValueError, BROKEN),
    "header of 2^64-1 bytes": (header(b"{}", 2**64 - 1), ValueError, BROKEN),
    "header of 2^63 bytes": (header(b"{}", 2**63), ValueError, BROKEN),
    "header longer than the file": (header(b"{}", 10), ValueError, BROKEN),
    "header that is no JSON": (header("{dim"), ValueError, BROKEN),
    "header that is a list": (header("[1]"), ValueError, BROKEN),
    "header that is no UTF-8": (header(b"{\xff}"), ValueError, BROKEN),
    "header that is deep": (header(b"[" * 100_000), ValueError, BROKEN),
    "header without tensors": (header("{}"), ValueError, "expected a tensor model.embed_tokens.weight, found none"),
    "a type unknown to all": (entries(dtype="F7"), ValueError, BROKEN),
    "a type of no weights": (entries(dtype="I32"), ValueError, f"{QUERY}: expected float32, float16 or bfloat16, found I32"),
    "a negative size": (entries(shape=[-12, -12]), ValueError, BROKEN),
    "sizes that wrap in 64 bits": (entries(shape=[2**32, 2**32]), ValueError, BROKEN),
    "sizes of another product": (entries(shape=[12, 13]), ValueError, BROKEN),
    "offsets beyond the file": (entries(data_offsets=[2**40, 2**40 + 576]), ValueError, BROKEN),
    "offsets that overlap": (entries(data_offsets=[0, 576]), ValueError, BROKEN),
    "offsets backwards": (entries(data_offsets=[576, 0]), ValueError, BROKEN),
    "a tensor missing": (tensors(**{QUERY: None}), ValueError, f"expected a tensor {QUERY}, found none"),
    "a tensor too many": (tensors(**{"x": np.zeros(3, "<f4")}), ValueError, "found one more: x"),
    "a tensor of another shape": (tensors(**{QUERY: np.zeros((12, 9), "<f4")}), ValueError, "(12, 12), found (12, 9)"),
    "a tensor of 64 bits": (tensors(**{QUERY: np.zeros((12, 12), "<f8")}), ValueError, "found F64"),
    "a bias": (tensors(**{QUERY.replace("weight", "bias"): np.zeros(12, "<f4")}), ValueError, "q_proj.bias"),
    "a classifier that is said to be tied": (settings(tie_word_embeddings=True), ValueError, "they are tied, found others"),
    "NaN in a norm": (norm(np.nan), ValueError, "rms_final_weight[0]: expected a finite number, found nan"),
    "Inf in a norm": (norm(np.inf), ValueError, "rms_final_weight[0]: expected a finite number, found inf"),
    "index that is no JSON": (index("{"), ValueError, "index.json: expected JSON"),
    "index without a map": (index({}), ValueError, "expected a weight_map"),
    "index with another map": (index({"weight_map": [1]}), ValueError, "expected a weight_map"),
    "index that leads out": (index({"weight_map": {"x": "../m.safetensors"}}), ValueError, LEADS_OUT),
    "index that leads to the root": (index({"weight_map": {"x": "/dev/zero"}}), ValueError, LEADS_OUT),
    "index that names the folder": (index({"weight_map": {"x": ".."}}), OSError, "expected the shard .. that "),
    "index with NUL in a name": (index({"weight_map": {"x": "a\0b"}}), OSError, "expected the shard a\0b that "),
    "index that names numbers": (index({"weight_map": {"x": 7}}), OSError, "expected the shard 7 that "),
    "a shard missing": (shards(lambda folder: (folder / SHARD).unlink()), OSError, f"expected the shard {SHARD}"),
    "a shard empty": (shards(replaced(SHARD, b"")), ValueError, f"{SHARD}: expected a safetensors file"),
    "a shard twice": (
        shards(lambda folder: shutil.copy(folder / SHARD, folder / SHARD.replace("2-of", "1-of")) and None),
        ValueError,
        "expected each tensor once",
    ),
}  # fmt: skip


def dimensions() -> Iterator[tuple[str, tuple[Spoil, type[Exception], str]]]:
    keys = {
        "hidden_size": "dim",
        "intermediate_size": "hidden_dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "vocab_size": "vocab_size",
        "max_position_embeddings": "seq_len",
    }
    for key, name in keys.items():
        for value in (0, -1, INT_MIN, 2**31, 10**30):
            yield f"{key} {value}", (settings(**{key: value}), ValueError, f"{name}: {POSITIVE} {value}")
        for value in (1.5, True, "12", [12]):
            said = f"{name}: expected an integer, found {type(value).__name__}"
            yield f"{key} {value!r}", (settings(**{key: value}), ValueError, said)
        if key != "max_position_embeddings":
            yield f"{key} 2^31-1", (settings(**{key: INT_MAX}), ValueError, ": expected ")


def spoilt(spoil: Spoil) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "tokenizer.bin").write_bytes(pack_tokenizer())
        place = folders.write_model(folder / "hf", CONFIG, weights())
        spoil(place)
        return place

    return make


def cases() -> Iterator[Case]:
    if importlib.util.find_spec("safetensors") is None:
        return
    for title, (spoil, error, words) in {**BAD, **dict(dimensions())}.items():
        yield from refused(f"folder: {title}", spoilt(spoil), error, words)


CASES = [*cases()]
