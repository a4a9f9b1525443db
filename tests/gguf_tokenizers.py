"""Tokenizers as GGUF metadata, for tests: as formats.gguf.read_metadata gives it, or in a file that the gguf package writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
KEY = "tokenizer.ggml."
FIXED = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
Piece = tuple[str, float, int]  # spelling, score, type


def llama(pieces: Sequence[Piece], **more: Any) -> dict[str, Any]:
    """The metadata of SentencePiece's tokens: <unk>, BOS, EOS, the bytes and these. more: keys, as bos_token_id=1."""
    tokens = [*FIXED, *((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)), *pieces]
    return with_keys(
        {
            "model": "llama",
            "tokens": [spelling.encode() for spelling, _, _ in tokens],
            "scores": np.array([score for _, score, _ in tokens], np.float32),
            "token_type": np.array([type for _, _, type in tokens], np.int32),
            **more,
        }
    )


def gpt2(package: Any, pre: str, **more: Any) -> dict[str, Any]:
    """The metadata of a tokenizer of the package tokenizers, as llama.cpp's converter writes it."""
    model = json.loads(package.to_str())["model"]
    added = package.get_added_tokens_decoder()
    spellings = {id: spelling for spelling, id in package.get_vocab().items()}
    size = max(spellings) + 1
    types = [CONTROL if id in added and added[id].special else USER if id in added else NORMAL for id in range(size)]
    types = [type if id in spellings else UNUSED for id, type in enumerate(types)]
    return with_keys(
        {
            "model": "gpt2",
            "pre": pre,
            "tokens": [spellings.get(id, f"[PAD{id}]").encode() for id in range(size)],
            "token_type": np.array(types, np.int32),
            "merges": [" ".join(pair).encode() for pair in model["merges"]],
            **more,
        }
    )


def with_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"pre": "gpt-2"} -> {"tokenizer.ggml.pre": "gpt-2"}; values of None are left out."""
    names = {"chat_template": "tokenizer.chat_template"}
    return {names.get(name, KEY + name): value for name, value in values.items() if value is not None}


def write(path: Path, metadata: Mapping[str, Any]) -> Path:
    """A GGUF file of this metadata, without a tensor, by the gguf package."""
    gguf = pytest.importorskip("gguf", reason="needs the package gguf: pip install gguf")
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value) if value >= 0 else writer.add_int32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value if isinstance(value, list) else value.tolist())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
