"""Folders of the Hugging Face kind, written: config.json and model.safetensors, for transformers. folder.py reads them."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ..locate import CONFIG
from ..tensors import halved
from .folder import NAMES, SAFETENSORS_DTYPES
from .layout import NORMS
from .naming import tensor_names
from .source import Source
from .writer import Rounding, Track, replacing, write_floats


class Tensor(NamedTuple):
    """A tensor to be written."""

    spelled: str
    name: str  # llama2c's
    layer: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (4 if self.dtype == "float32" else 2)


def write_folder(folder: Path, source: Source, dtype: str = "float32", track: Track = iter) -> tuple[int, Rounding]:
    """Write config.json and model.safetensors into a new folder, a matrix after another; how many bytes, and what was rounded.

    dtype: float32, float16 or bfloat16, of all matrices; norms are float32, as in files. OSError: the folder is there and holds
    something, or it cannot be written; ValueError: a value is not finite, or too large for dtype.
    """
    tensors = list_tensors(source, dtype)
    start = safetensors_header(tensors)
    size = len(start) + sum(tensor.nbytes for tensor in tensors)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder}: expected a new or an empty folder, found one that is not")
    worst = Rounding(0.0, "")
    with replacing(folder, size) as unfinished:
        unfinished.mkdir(exist_ok=True)
        (unfinished / CONFIG).write_text(json.dumps(hf_settings(source, dtype), indent=2) + "\n", encoding="ascii")
        with (unfinished / "model.safetensors").open("wb") as file:
            file.write(start)
            for tensor in track(tensors):
                values = source.read(tensor.name, tensor.layer)
                if tensor.name in ("wq", "wk"):
                    values = halved(values, source.config.head_size)
                worst = max(worst, write_floats(file, tensor.spelled, math.prod(tensor.shape), [values], tensor.dtype))
    return size, worst


def list_tensors(source: Source, dtype: str) -> list[Tensor]:
    """The tensors of a folder in their order."""
    return [
        Tensor(NAMES.spelled(name, layer), name, layer, shape, "float32" if name in NORMS else dtype)
        for name, (n_tensors, shape) in tensor_names(source.config).items()
        if name != "wcls" or not source.shared_classifier
        for layer in range(n_tensors)
    ]


def safetensors_header(tensors: Iterable[Tensor]) -> bytes:
    """The bytes before the numbers: a length and JSON, filled up with spaces so that the numbers are aligned."""
    codes = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.nbytes
        entries[tensor.spelled] = {"dtype": codes[tensor.dtype], "shape": tensor.shape, "data_offsets": (begin, end)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def hf_settings(source: Source, dtype: str) -> dict[str, Any]:
    """config.json, with the rotary settings in the older spelling, which every version of transformers reads."""
    c = source.config
    scaling = {} if c.rope_scaling is None else asdict(c.rope_scaling)
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
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
        "rope_scaling": {key: value for key, value in scaling.items() if value is not None} or None,
        "rope_theta": c.rope_theta,
        "tie_word_embeddings": source.shared_classifier,
        "torch_dtype": dtype,
        "vocab_size": c.vocab_size,
    }
