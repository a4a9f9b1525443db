"""Tokenizers for tests: SentencePiece's tokenizer.model, and the tokenizer.bin it should become, written from the formats.

Shares no code with llama2c: what it writes checks what llama2c reads.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest

CORPUS = [
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.",
    "One day, she saw a big red ball. She wanted to play with it, but it was too high: 12 345 678!",
    "żółw and naïve café, 中文 中文, こんにちは 🐢🐢, it's they're\n\n\tdef f(x):\n        return x  # so",
] * 3
BASE = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 420, "normalization_rule_name": "identity"}
BASE |= {"remove_extra_whitespaces": False, "minloglevel": 2, "num_threads": 1, "allow_whitespace_only_pieces": True}

Piece = tuple[str, float, int]  # spelling, score, kind: 1 text, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte


def pieces(vocab_size: int) -> list[Piece]:
    """<unk>, BOS, EOS and the bytes, then " t", the characters that words are made of, and made-up words."""
    fixed: list[Piece] = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    fixed += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    words = ["\u2581t", *"\u2581té0123456789abcdef", *(f"\u2581é{i:x}" for i in range(vocab_size))]
    return [*fixed, *((word, -float(i), 1) for i, word in enumerate(words))][:vocab_size]


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number: int, content: bytes) -> bytes:
    """A field that is a string or a message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def model(tokens: list[Piece], kind: int = 2) -> bytes:
    """A tokenizer.model that changes no text but for a space before it. Text is the kind that is not written.

    Fields that are not read are between the others.
    """
    out = b""
    for spelling, score, piece_kind in tokens:
        piece = field(1, spelling.encode()) + b"\x15" + struct.pack("<f", score)
        out += field(1, piece + (b"\x18" + varint(piece_kind) if piece_kind != 1 else b""))
    trainer = field(1, b"corpus.txt") + b"\x18" + varint(kind) + b"\x20" + varint(32000) + b"\x55" + struct.pack("<f", 0.75)
    trainer += varint(35 << 3) + b"\x01"  # byte_fallback
    normalizer = field(1, b"identity") + b"\x20\x00"  # remove_extra_whitespaces
    return out + field(2, trainer) + field(3, normalizer) + b"\x49" + bytes(8) + varint(300 << 3) + b"\x01"


def tokenizer_bin(tokens: list[Piece]) -> bytes:
    spelled = [("\n<s>\n", 0.0), ("\n</s>\n", 0.0)]
    spelled = [(tokens[0][0], 0.0), *spelled, *((spelling.replace("\u2581", " "), score) for spelling, score, _ in tokens[3:])]
    encoded = [(spelling.encode(), score) for spelling, score in spelled]
    out = struct.pack("<i", max(len(spelling) for spelling, _ in encoded))
    return out + b"".join(struct.pack("<fi", score, len(spelling)) + spelling for spelling, score in encoded)


# ---------------------------------------------------------------------------
# with the package sentencepiece


def train(**settings: Any) -> bytes:
    """A tokenizer.model."""
    package = pytest.importorskip("sentencepiece", reason="needs sentencepiece: pip install sentencepiece")
    written = io.BytesIO()
    package.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=written, **{**BASE, **settings})
    return written.getvalue()


def processor(content: bytes) -> Any:
    package = pytest.importorskip("sentencepiece", reason="needs sentencepiece: pip install sentencepiece")
    return package.SentencePieceProcessor(model_proto=content)


def write(folder: Path, content: bytes, **files: Any) -> Path:
    """A tokenizer.model, and JSON files beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(content)
    for name, settings in files.items():
        (folder / f"{name}.json").write_text(json.dumps(settings))
    return folder / "tokenizer.model"
