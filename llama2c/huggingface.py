"""Folders of the Hugging Face kind: a Llama model as config.json and .safetensors, read and written.

Theirs turns the pairs (i, i + head_size / 2) of a head, llama2.c (2i, 2i + 1): the rows of wq and wk stand in another order.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import ROPE_TABLES, tensor_shapes
from .config import Config
from .source import WHOLE, Names, Raw, Source, Stored, from_tensors, make_config, read_json, require
from .tokenizer import BOS, EOS
from .writer import Track, replacing

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
SAFETENSORS_DTYPES = {"F32": ("float32", "<f4"), "F16": ("float16", "<f2"), "BF16": ("bfloat16", "<u2")}
ROPE_TYPES = ("linear", "dynamic", "yarn", "longrope", "llama3")  # that transformers knows, beside "default"


def paired(rows: Raw, head_size: int) -> Raw:
    """Rows 0, h, 1, h + 1, ... of each head, h its half: wq or wk from Hugging Face's order into llama2.c's."""
    return rows.reshape(-1, 2, head_size // 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def halved(rows: Raw, head_size: int) -> Raw:
    """Rows 0, 2, 4, ..., then 1, 3, 5, ... of each head: the way back."""
    return rows.reshape(-1, head_size // 2, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


# ---------------------------------------------------------------------------
# reading


def from_folder(folder: Path) -> Source:
    """The model of a folder. ValueError or OSError: one line that says what is wrong with it."""
    path = folder / "config.json"
    settings = read_json(path)
    config = read_config(path, settings)
    tensors = read_tensors(folder)

    def order(rows: Raw) -> Raw:
        return paired(rows, config.head_size)

    tied = settings.get("tie_word_embeddings", NAMES.spelled("wcls", 0) not in tensors)
    return from_tensors(folder, config, NAMES, tensors, tied is True, rope_scaling(path, settings), {"wq": order, "wk": order})


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


def rope_scaling(path: Path, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How the angles of the positions are changed; None: they are not."""
    found = dict(rotary(path, settings))
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in (*ROPE_TYPES, "default"):
        raise ValueError(f"{path}: rope_type: expected default or one of {', '.join(ROPE_TYPES)}, found {kind}")
    part = found.get("partial_rotary_factor", settings.get("partial_rotary_factor"))
    if part not in (None, 1):
        raise ValueError(f"{path}: partial_rotary_factor: expected 1, found {part}")
    return None if kind == "default" else found


def read_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors of all the folder's .safetensors that belong to the model, by name."""
    tensors: dict[str, Stored] = {}
    for path in shards(folder):
        for name, stored in open_safetensors(path).items():
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


def open_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a file, which is mapped. The package checks it (sizes, offsets, types); NumPy reads it, bfloat16 too."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        expected = "expected the package safetensors, to read it, found none"
        raise OSError(f"{path}: {expected}: pip install 'llama2c[hf]'") from None
    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, found: {error}") from None
    except OSError as error:
        raise type(error)(f"{path}: expected a readable file, found: {error.strerror or error}") from None
    content = np.memmap(path, np.uint8, "r")
    (size,) = struct.unpack("<Q", content[:8].tobytes())
    entries = json.loads(content[8 : 8 + size].tobytes())
    return {name: stored(content, 8 + size, **entry) for name, entry in entries.items() if name != "__metadata__"}


def stored(content: np.memmap[Any, Any], start: int, dtype: str, shape: Sequence[int], data_offsets: Sequence[int]) -> Stored:
    """One tensor, as the header says: its numbers begin data_offsets[0] bytes after `start`."""
    name, code = SAFETENSORS_DTYPES.get(dtype, (dtype, ""))

    def raw() -> Raw:
        return np.ndarray(tuple(shape), code, content, start + data_offsets[0])

    return Stored(name, tuple(shape), raw)


# ---------------------------------------------------------------------------
# writing


def write_folder(folder: Path, source: Source, track: Track = iter) -> int:
    """Write config.json and model.safetensors (fp32) into a new folder, one matrix after another; how many bytes.

    OSError: the folder is there and holds something, or it cannot be written.
    """
    tensors = list_tensors(source)
    start = safetensors_header(tensors)
    size = len(start) + sum(4 * int(np.prod(shape)) for _, _, _, shape in tensors)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder}: expected a new or an empty folder, found one that is not")
    with replacing(folder, size) as unfinished:
        unfinished.mkdir(exist_ok=True)
        (unfinished / "config.json").write_text(json.dumps(hf_settings(source), indent=2) + "\n", encoding="ascii")
        with (unfinished / "model.safetensors").open("wb") as file:
            file.write(start)
            for _, name, layer, _ in track(tensors):
                values = source.read(name, layer)
                ordered = halved(values, source.config.head_size) if name in ("wq", "wk") else values
                file.write(np.ascontiguousarray(ordered, "<f4").data)
    return size


def list_tensors(source: Source) -> list[tuple[str, str, int, tuple[int, ...]]]:
    """The tensors of a folder in their order: their spelling, llama2c's name and layer, the shape."""
    tensors = []
    for name, shape in tensor_shapes(source.config).items():
        if name == ROPE_TABLES or (name == "wcls" and source.shared_classifier):
            continue
        for layer in range(1 if name in WHOLE else source.config.n_layers):
            tensors.append((NAMES.spelled(name, layer), name, layer, shape if name in WHOLE else shape[1:]))
    return tensors


def safetensors_header(tensors: Iterable[tuple[str, str, int, tuple[int, ...]]]) -> bytes:
    """The bytes before the numbers: a length and JSON, filled up with spaces so that the numbers are aligned."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for spelled, _, _, shape in tensors:
        begin, end = end, end + 4 * int(np.prod(shape))
        entries[spelled] = {"dtype": "F32", "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def hf_settings(source: Source) -> dict[str, Any]:
    """config.json, with the rotary settings in the older spelling, which every version of transformers reads."""
    c = source.config
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "head_dim": c.head_size,
        "hidden_act": "silu",
        "hidden_size": c.dim,
        "intermediate_size": c.hidden_dim,
        "max_position_embeddings": c.seq_len,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": c.n_heads,
        "num_hidden_layers": c.n_layers,
        "num_key_value_heads": c.n_kv_heads,
        "rms_norm_eps": c.norm_eps,
        "rope_scaling": dict(source.rope_scaling) if source.rope_scaling else None,
        "rope_theta": c.rope_theta,
        "tie_word_embeddings": source.shared_classifier,
        "torch_dtype": "float32",
        "vocab_size": c.vocab_size,
    }
