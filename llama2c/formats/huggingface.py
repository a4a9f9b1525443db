"""Hugging Face folders, read and written: config.json and .safetensors, as a Config and named arrays.

RoPE turns the pairs (i, i + head_size / 2) of a head there, and (2i, 2i + 1) in llama2.c. So the rows of wq and wk have another
order. Reading keeps their order, and writing a folder from a file changes it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..architecture import CLASSIFIER, HUGGING_FACE, LLAMA, Tensor
from ..config import ROPE_THETA, ROPE_TYPES, Config, RopeScaling
from ..errors import ExistingFileError, FileError, ModelError, not_found
from ..files import exists, file_size, no_memory, read_file, read_json, read_start, recognise, unreadable
from ..locate import CONFIG
from ..tensors import FLOAT_DTYPES, Raw, Weight, halved
from .naming import Stored, check_tensors, gather, make_config, require
from .writer import Progress, Rounding, Source, counted, replacing, write_floats

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # in its place, where the weights are in several files
SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Files that belong to a model and that llama2c does not change. Whatever writes a folder from a folder copies them.
COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "tokenizer.bin", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
# Settings that are not true of a folder written here: it has one type, no rope_parameters, and none of the model's own code.
DROPPED = ("dtype", "rope_parameters", "auto_map", "_name_or_path")


class Folder(NamedTuple):
    """The model in a folder. `weights` has llama2c's names. Norms are fp32; matrices are as they are stored."""

    config: Config
    shared_classifier: bool
    weights: dict[str, Weight]
    dtypes: tuple[str, ...]  # of the matrices, each type once


def open_folder(folder: Path, mmap: bool = True) -> Folder:
    """The model in a folder. Raises ModelError, OSError or MemoryError: one line that says what is wrong with it."""
    path = folder / CONFIG
    if not exists(path):
        raise not_found(folder, f"expected a file, or a folder with {CONFIG}, found a folder without it")
    settings = read_json(path)
    config = read_config(path, settings)
    tensors = read_tensors(folder, mmap)
    tied = settings.get("tie_word_embeddings", CLASSIFIER.spelled(HUGGING_FACE) not in tensors)
    shared = check_tensors(folder, config, HUGGING_FACE, tensors, tied is True)
    weights, dtypes = gather(config, HUGGING_FACE, tensors, shared)
    return Folder(config, shared, weights, tuple(dtypes))


# ---------------------------------------------------------------------------
# config.json


def read_config(path: Path, settings: Mapping[str, Any]) -> Config:
    """The Config of config.json. A missing setting has the default of transformers.

    Raises ModelError if a setting is wrong, or means a model that llama2c does not compute.
    """
    if settings.get("model_type") != LLAMA.name:
        raise ModelError(f"{path}: model_type: expected {LLAMA.name}, found {settings.get('model_type')}")
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    require(path, settings, keys)
    computed = {"hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,)}
    for key, known in {**computed, "quantization_config": (None,)}.items():
        if settings.get(key, known[0]) not in known:
            raise ModelError(f"{path}: {key}: expected {json.dumps(known[0])}, found {json.dumps(settings[key])}")
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
        rope_theta=rotary(path, settings).get("rope_theta", settings.get("rope_theta", ROPE_THETA)),
        norm_eps=settings.get("rms_norm_eps", 1e-6),
        rope_scaling=read_rope_scaling(path, settings),
    )


def rotary(path: Path, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the rotary positions, which have two names. As in transformers, rope_scaling comes before the newer
    rope_parameters: it is used if it is there and not empty, and nothing of the other counts then.
    """
    for key in ("rope_scaling", "rope_parameters"):
        found = settings.get(key)
        if found is not None and not isinstance(found, dict):
            raise ModelError(f"{path}: {key}: expected an object, found {json.dumps(found)}")
    return settings.get("rope_scaling") or settings.get("rope_parameters") or {}


def read_rope_scaling(path: Path, settings: Mapping[str, Any]) -> RopeScaling | None:
    """How the frequencies are scaled. None: they are not. ModelError: in a way that llama2c does not compute."""
    found = rotary(path, settings)
    part = found.get("partial_rotary_factor", settings.get("partial_rotary_factor"))
    if part not in (None, 1):
        raise ModelError(f"{path}: partial_rotary_factor: expected 1, found {part}")
    kind = found.get("rope_type", found.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ROPE_TYPES:
        raise ModelError(f"{path}: rope_type: expected default, {' or '.join(ROPE_TYPES)}, found {kind}")
    values: dict[str, Any] = {"factor": found.get("factor")}
    if kind == "llama3":
        values |= {key: found.get(key) for key in ("low_freq_factor", "high_freq_factor")}
        trained = settings.get("max_position_embeddings", 2048)
        values["original_max_position_embeddings"] = found.get("original_max_position_embeddings", trained)
    try:
        return RopeScaling(kind, **values)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path}: {error}") from None


# ---------------------------------------------------------------------------
# .safetensors, read


def read_tensors(folder: Path, mmap: bool) -> dict[str, Stored]:
    """All tensors in the .safetensors files of the model, by name."""
    tensors: dict[str, Stored] = {}
    for path in shards(folder):
        for name, stored in open_safetensors(path, mmap).items():
            if name in tensors:
                raise ModelError(f"{path}: expected each tensor once, found {name} in another shard, too")
            tensors[name] = stored
    return tensors


def shards(folder: Path) -> list[Path]:
    """The .safetensors files of the model: one, or those that the index names."""
    if exists(folder / WEIGHTS):
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not exists(index):
        raise not_found(folder, f"expected {WEIGHTS} or {index.name}, found neither")
    paths = []
    for file in shard_names(index):
        if not exists(folder / file) or (folder / file).is_dir():
            raise not_found(folder, f"expected the shard {file} that {index.name} names, found none")
        paths.append(folder / file)
    return paths


def shard_names(index: Path) -> list[str]:
    """The names of the .safetensors files that an index names. They are beside it, or should be."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ModelError(f"{index}: expected a weight_map from tensors to files, found none")
    names = list(dict.fromkeys(map(str, files.values())))
    for name in names:
        if Path(name).name != name:  # it would be outside the folder
            raise ModelError(f"{index}: expected names of files beside it, found {name}")
    return names


def open_safetensors(path: Path, mmap: bool) -> dict[str, Stored]:
    """The tensors of a file, mapped or read into memory. The package checks its sizes, offsets and types. NumPy reads it."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise FileError(None, "safetensors is needed to read it: pip install 'llama2c[hf]'", str(path)) from None
    n_bytes = file_size(path)  # also refuses a FIFO, which would wait for its writer
    try:
        with safe_open(path, framework="np"):
            pass
        content: Raw = np.memmap(path, np.uint8, "r") if mmap else np.fromfile(path, np.uint8)
        content.flags.writeable = False
        (size,) = struct.unpack("<Q", content[:8].tobytes())
        entries = json.loads(content[8 : 8 + size].tobytes())
        return {name: stored(content, 8 + size, **entry) for name, entry in entries.items() if name != "__metadata__"}
    except MemoryError:  # that of safetensors does not name the file
        raise no_memory(path, n_bytes) from None
    except (SafetensorError, ValueError, TypeError, AttributeError, struct.error) as error:  # the latter: it was replaced since
        found = recognise(read_start(path)) or error
        raise ModelError(f"{path}: expected a safetensors file, found: {found}") from None
    except OSError as error:
        raise unreadable(error, path) from None


def stored(content: Raw, start: int, dtype: str, shape: Sequence[int], data_offsets: Sequence[int]) -> Stored:
    """One tensor of the header: its numbers begin data_offsets[0] bytes after `start`."""
    name = SAFETENSORS_DTYPES.get(dtype, dtype)
    raw: Raw = content[start + data_offsets[0] : start + data_offsets[1]]
    if name in FLOAT_DTYPES:  # the numbers of other types are never read
        raw = np.ndarray(tuple(shape), FLOAT_DTYPES[name], raw)
    return Stored(name, tuple(shape), lambda: raw)


# ---------------------------------------------------------------------------
# written


class Part(NamedTuple):
    """A matrix or a norm to be written."""

    tensor: Tensor
    layer: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (4 if self.dtype == "float32" else 2)


def write_folder(folder: Path, source: Source, dtype: str, progress: Progress | None = None) -> tuple[int, Rounding]:
    """Write a new folder: config.json, model.safetensors, and the source's companions.

    dtype: float32, float16 or bfloat16, for all matrices; norms are float32. Returns the size in bytes of model.safetensors,
    and the largest rounding error.

    Raises OSError if the folder exists and is not empty, or cannot be written; ModelError if a value is not finite or is too
    large for dtype.
    """
    parts = list_parts(source, dtype)
    start = safetensors_header(parts)
    size = len(start) + sum(part.nbytes for part in parts)
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise ExistingFileError(errno.EEXIST, "expected a new or an empty folder, found one that is not", str(folder))
    worst = Rounding(0.0, "")
    sizes = [len(file) if isinstance(file, bytes) else file_size(file) for file in source.companions.values()]
    with replacing(folder, size + sum(sizes)) as unfinished:
        unfinished.mkdir(exist_ok=True)
        (unfinished / CONFIG).write_text(json.dumps(hf_settings(source, dtype), indent=2) + "\n", encoding="ascii")
        for name, content in source.companions.items():
            (unfinished / name).write_bytes(content if isinstance(content, bytes) else read_file(content))
        with (unfinished / WEIGHTS).open("wb") as file:
            file.write(start)
            for part in counted(parts, progress):
                tensor, values = part.tensor, source.read(part.tensor.name, part.layer)
                if tensor.rotary:
                    values = halved(values, source.config.head_size)
                spelled = tensor.spelled(HUGGING_FACE, part.layer)
                worst = max(worst, write_floats(file, spelled, math.prod(part.shape), [values], part.dtype))
    return size, worst


def list_parts(source: Source, dtype: str) -> list[Part]:
    """The matrices and norms of a folder, in the order of its file."""
    return [
        Part(tensor, layer, tensor.shape_of_one(source.config), "float32" if tensor.is_norm else dtype)
        for tensor in LLAMA.tensors.values()
        if tensor is not CLASSIFIER or not source.shared_classifier
        for layer in range(tensor.how_many(source.config))
    ]


def safetensors_header(parts: Iterable[Part]) -> bytes:
    """The bytes before the numbers: a length and JSON, padded with spaces so that the numbers are aligned."""
    codes = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers requires it
    end = 0
    for part in parts:
        begin, end = end, end + part.nbytes
        spelled = part.tensor.spelled(HUGGING_FACE, part.layer)
        entries[spelled] = {"dtype": codes[part.dtype], "shape": part.shape, "data_offsets": (begin, end)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def hf_settings(source: Source, dtype: str) -> dict[str, Any]:
    """config.json: the settings of the source that are still true, and those of its Config.

    The rotary settings are written as rope_theta and rope_scaling, which every version of transformers reads.
    """
    c = source.config
    scaling = {} if c.rope_scaling is None else asdict(c.rope_scaling)
    kept = {key: value for key, value in source.settings.items() if key not in DROPPED}
    return {
        **kept,
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "head_dim": c.head_size,
        "hidden_act": "silu",
        "hidden_size": c.dim,
        "intermediate_size": c.hidden_dim,
        "max_position_embeddings": c.seq_len,
        "mlp_bias": False,
        "model_type": LLAMA.name,
        "num_attention_heads": c.n_heads,
        "num_hidden_layers": c.n_layers,
        "num_key_value_heads": c.n_kv_heads,
        "rms_norm_eps": c.norm_eps,
        "rope_scaling": {key: value for key, value in scaling.items() if value is not None} or None,
        "rope_theta": c.rope_theta,
        "tie_word_embeddings": source.shared_classifier,
        "torch_dtype": dtype,
        "vocab_size": c.vocab_size,
    }
