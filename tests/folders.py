"""Hugging Face folders for tests, written from the description of their format, with a permutation written here.

It shares no code with llama2c, so that it can check what llama2c reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import Arrays, narrow

HF_LAYER = {
    "rms_att_weight": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "rms_ffn_weight": "post_attention_layernorm",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}
HF_WHOLE = {
    "token_embedding_table": "model.embed_tokens.weight",
    "rms_final_weight": "model.norm.weight",
    "wcls": "lm_head.weight",
}
DTYPES = {"<f4": "F32", "<f2": "F16", "<u2": "BF16", "<f8": "F64", "|i1": "I8"}


def rows_in_halves(matrix: np.ndarray, head_size: int) -> np.ndarray:
    """Row by row: rows 2i and 2i + 1 of a head in llama2.c are rows i and i + head_size / 2 in Hugging Face."""
    out = np.empty_like(matrix)
    half = head_size // 2
    for first in range(0, len(matrix), head_size):
        for i in range(half):
            out[first + i] = matrix[first + 2 * i]
            out[first + half + i] = matrix[first + 2 * i + 1]
    return out


def hf_tensors(weights: Arrays, head_size: int) -> Arrays:
    """llama2c's weights under Hugging Face's names, wq and wk in its order."""
    tensors = {HF_WHOLE[name]: array for name, array in weights.items() if name in HF_WHOLE}
    for name, part in HF_LAYER.items():
        for layer, array in enumerate(weights[name]):
            ordered = rows_in_halves(array, head_size) if name in ("wq", "wk") else array
            tensors[f"model.layers.{layer}.{part}.weight"] = ordered
    return tensors


def scaling_settings(scaling: Any) -> dict[str, Any]:
    keys = ("rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return {key: getattr(scaling, key) for key in keys if getattr(scaling, key) is not None}


def hf_settings(config: Any, tied: bool, **others: Any) -> dict[str, Any]:
    """config.json, with `others` added or replaced."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": tied,
        "head_dim": config.head_size,
        "rope_scaling": config.rope_scaling and scaling_settings(config.rope_scaling),
        **others,
    }


def write_safetensors(path: Path, tensors: Arrays) -> None:
    """uint16 arrays are the bits of bfloat16. The package checks the file before anything is read."""
    entries: dict[str, Any] = {}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        entries[name] = {"dtype": DTYPES[array.dtype.str], "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in tensors.values()))


def write_hf(folder: Path, tensors: Arrays, settings: dict[str, Any], n_shards: int = 0) -> Path:
    """A folder; with shards, tensor i is in shard i % n_shards and an index says so."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    if not n_shards:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    files = [f"model-{i + 1:05}-of-{n_shards:05}.safetensors" for i in range(n_shards)]
    places = {name: files[i % n_shards] for i, name in enumerate(tensors)}
    for file in files:
        write_safetensors(folder / file, {name: array for name, array in tensors.items() if places[name] == file})
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_model(folder: Path, config: Any, weights: Arrays, bfloat16: bool = False, n_shards: int = 0) -> Path:
    """A folder with these weights of llama2c; those of bfloat16 are rounded, the norms stay fp32."""
    tensors = hf_tensors(weights, config.head_size)
    if bfloat16:
        tensors = {name: array if array.ndim == 1 else narrow(array, "bfloat16") for name, array in tensors.items()}
    return write_hf(folder, tensors, hf_settings(config, "wcls" not in weights), n_shards)
