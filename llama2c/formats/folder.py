"""Folders of the Hugging Face kind, read: config.json and .safetensors, as a Config and named arrays that lie where they lay.

Theirs turns the pairs (i, i + head_size / 2) of a head, llama2.c (2i, 2i + 1): the rows of wq and wk stand in another order,
and stay in it. Folders are written by huggingface.py.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..config import ROPE_TYPES, Config, RopeScaling
from ..files import file_size, read_json
from ..locate import CONFIG
from ..tensors import FLOAT_DTYPES, Layers, Raw, Weight, as_floats, as_weight
from .layout import NORMS
from .naming import WHOLE, Names, Stored, check_tensors, make_config, require, tensor_names

_LAYER = "model.layers.{}."
NAMES = Names(
    {
        "token_embedding_table": "model.embed_tokens.weight",
        "rms_att_weight": _LAYER + "input_layernorm.weight",
        "wq": _LAYER + "self_attn.q_proj.weight",
        "wk": _LAYER + "self_attn.k_proj.weight",
        "wv": _LAYER + "self_attn.v_proj.weight",
        "wo": _LAYER + "self_attn.o_proj.weight",
        "rms_ffn_weight": _LAYER + "post_attention_layernorm.weight",
        "w1": _LAYER + "mlp.gate_proj.weight",
        "w2": _LAYER + "mlp.down_proj.weight",
        "w3": _LAYER + "mlp.up_proj.weight",
        "rms_final_weight": "model.norm.weight",
        "wcls": "lm_head.weight",
    },
    re.compile(r"(model\.layers\.\d+\.self_attn|model)\.rotary_emb\.inv_freq"),
)
SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Folder(NamedTuple):
    """A model as its folder has it. `weights` by llama2c's names; norms are fp32, matrices as they are stored."""

    config: Config
    shared_classifier: bool
    weights: dict[str, Weight]
    dtypes: tuple[str, ...]  # of the matrices, each once


def open_folder(folder: Path, mmap: bool = True) -> Folder:
    """The model of a folder. ValueError or OSError: one line that says what is wrong with it."""
    path = folder / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"{folder}: expected a file, or a folder with {CONFIG}, found a folder without it")
    settings = read_json(path)
    config = read_config(path, settings)
    tensors = read_tensors(folder, mmap)
    tied = settings.get("tie_word_embeddings", NAMES.spelled("wcls", 0) not in tensors)
    shared = check_tensors(folder, config, NAMES, tensors, tied is True)
    weights: dict[str, Weight] = {}
    dtypes: dict[str, None] = {}
    for name, (n_tensors, _) in tensor_names(config).items():
        if name == "wcls" and shared:
            continue
        found = [tensors[NAMES.spelled(name, layer)] for layer in range(n_tensors)]
        parts = [as_weight(tensor.raw(), tensor.dtype) for tensor in found]
        if name in NORMS:
            norms = np.stack([as_floats(part) for part in parts])
            norms.flags.writeable = False
            weights[name] = norms[0] if name in WHOLE else norms
        else:
            dtypes |= dict.fromkeys(tensor.dtype for tensor in found)
            weights[name] = parts[0] if name in WHOLE else Layers(tuple(parts))
    return Folder(config, shared, weights, tuple(dtypes))


# ---------------------------------------------------------------------------
# config.json


def read_config(path: Path, settings: Mapping[str, Any]) -> Config:
    """What is left out has the value that transformers gives it. ValueError: it is not a model that llama2c computes."""
    if settings.get("model_type") != "llama":
        raise ValueError(f"{path}: model_type: expected llama, found {settings.get('model_type')}")
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    require(path, settings, keys)
    computed = {"hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,)}
    for key, known in {**computed, "quantization_config": (None,)}.items():
        if settings.get(key, known[0]) not in known:
            raise ValueError(f"{path}: {key}: expected {json.dumps(known[0])}, found {json.dumps(settings[key])}")
    dim, hidden_dim, n_layers, n_heads, vocab_size = (settings[key] for key in keys)
    n_kv_heads = settings.get("num_key_value_heads")
    return make_config(
        path,
        dim=dim,
        hidden_dim=hidden_dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads if n_kv_heads is None else n_kv_heads,
        vocab_size=vocab_size,
        seq_len=settings.get("max_position_embeddings", 2048),
        head_size=settings.get("head_dim") or 0,
        rope_theta=rotary(path, settings).get("rope_theta", settings.get("rope_theta", 10000.0)),
        norm_eps=settings.get("rms_norm_eps", 1e-6),
        rope_scaling=read_rope_scaling(path, settings),
    )


def rotary(path: Path, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the rotary positions: `rope_parameters` since transformers 5, before it `rope_scaling`."""
    for key in ("rope_parameters", "rope_scaling"):
        found = settings.get(key)
        if found is not None:
            if not isinstance(found, dict):
                raise ValueError(f"{path}: {key}: expected an object, found {json.dumps(found)}")
            return found
    return {}


def read_rope_scaling(path: Path, settings: Mapping[str, Any]) -> RopeScaling | None:
    """How the frequencies are scaled; None: they are not. ValueError: in a way that llama2c does not compute."""
    found = rotary(path, settings)
    part = found.get("partial_rotary_factor", settings.get("partial_rotary_factor"))
    if part not in (None, 1):
        raise ValueError(f"{path}: partial_rotary_factor: expected 1, found {part}")
    kind = found.get("rope_type", found.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ROPE_TYPES:
        raise ValueError(f"{path}: rope_type: expected default, {' or '.join(ROPE_TYPES)}, found {kind}")
    values: dict[str, Any] = {"factor": found.get("factor")}
    if kind == "llama3":
        for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
            values[key] = found.get(key)
    try:
        return RopeScaling(kind, **values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


# ---------------------------------------------------------------------------
# .safetensors


def read_tensors(folder: Path, mmap: bool) -> dict[str, Stored]:
    """The tensors of all the folder's .safetensors that belong to the model, by name."""
    tensors: dict[str, Stored] = {}
    for path in shards(folder):
        for name, stored in open_safetensors(path, mmap).items():
            if name in tensors:
                raise ValueError(f"{path}: expected each tensor once, found {name} in another shard, too")
            tensors[name] = stored
    return tensors


def shards(folder: Path) -> list[Path]:
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        raise FileNotFoundError(f"{folder}: expected model.safetensors or {index.name}, found neither")
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{index}: expected a weight_map from tensors to files, found none")
    paths = []
    for file in dict.fromkeys(map(str, files.values())):
        if Path(file).name != file:  # would lead out of the folder
            raise ValueError(f"{index}: expected names of files beside it, found {file}")
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder}: expected the shard {file} that {index.name} names, found none")
        paths.append(folder / file)
    return paths


def open_safetensors(path: Path, mmap: bool) -> dict[str, Stored]:
    """The tensors of a file, which is mapped, or else read. The package checks it (sizes, offsets, types), NumPy reads it."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        expected = "expected the package safetensors, to read it, found none"
        raise OSError(f"{path}: {expected}: pip install 'llama2c[hf]'") from None
    file_size(path)  # opening a FIFO would wait for its writer
    try:
        with safe_open(path, framework="np"):
            pass
        content: Raw = np.memmap(path, np.uint8, "r") if mmap else np.fromfile(path, np.uint8)
        content.flags.writeable = False
        (size,) = struct.unpack("<Q", content[:8].tobytes())
        entries = json.loads(content[8 : 8 + size].tobytes())
        return {name: stored(content, 8 + size, **entry) for name, entry in entries.items() if name != "__metadata__"}
    except (SafetensorError, ValueError, TypeError, AttributeError, struct.error) as error:  # the latter: it was replaced since
        raise ValueError(f"{path}: expected a safetensors file, found: {error}") from None
    except OSError as error:
        raise type(error)(f"{path}: expected a readable file, found: {error.strerror or error}") from None


def stored(content: Raw, start: int, dtype: str, shape: Sequence[int], data_offsets: Sequence[int]) -> Stored:
    """One tensor, as the header says: its numbers begin data_offsets[0] bytes after `start`."""
    name = SAFETENSORS_DTYPES.get(dtype, dtype)
    raw: Raw = content[start + data_offsets[0] : start + data_offsets[1]]
    if name in FLOAT_DTYPES:  # of other types nobody reads the numbers
        raw = np.ndarray(tuple(shape), FLOAT_DTYPES[name], raw)
    return Stored(name, tuple(shape), lambda: raw)
