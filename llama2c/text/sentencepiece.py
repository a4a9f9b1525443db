"""SentencePiece's tokenizer.model as llama2.c's tokenizer.bin. Only what that file needs is read of it.

A tokenizer.model is a message in the wire format of Protocol Buffers: fields, each a number, a wire type and a value.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..formats.writer import pack_tokenizer
from .vocabulary import BOS, EOS

SPACE = "\u2581"  # sentencepiece's spelling of a space
N_BYTES = 256
BPE = 2  # of the kinds of models
UNKNOWN, CONTROL, BYTE = 2, 3, 6  # of the kinds of pieces; text is 1
SPELLED = {BOS: b"\n<s>\n", EOS: b"\n</s>\n"}  # as llama2.c has them
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


class Piece(NamedTuple):
    """A token of a tokenizer.model."""

    spelling: bytes
    score: float
    kind: int


def convert(path: Path, vocab_size: int) -> bytes:
    """The tokenizer.bin of a tokenizer.model with `vocab_size` tokens. ValueError, OSError: one line that names the file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise type(error)(f"{path}: expected a tokenizer of SentencePiece, found: {error.strerror}") from None
    try:
        converted, n_pieces = pack(content)
        if n_pieces != vocab_size:
            raise ValueError(f"expected {vocab_size} tokens, as the model has, found {n_pieces}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return converted


def pack(model: bytes) -> tuple[bytes, int]:
    """The content of a tokenizer.bin from that of a tokenizer.model, and how many tokens it has.

    ValueError: it is none, or one that llama2c would not encode with as SentencePiece does: not byte-pair encoding, or without
    the unknown token, BOS, EOS and the 256 bytes as the first tokens.
    """
    pieces, kind = parse(model)
    if kind != BPE:
        raise ValueError(f"expected a model of byte-pair encoding (kind {BPE}), found kind {kind}")
    fixed = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * N_BYTES
    for id, expected in enumerate(fixed):
        if id >= len(pieces) or pieces[id].kind != expected:
            found = f"kind {pieces[id].kind}" if id < len(pieces) else "none"
            raise ValueError(f"expected a token {id} of kind {expected} (unknown, BOS, EOS, then the bytes), found {found}")
        if expected == BYTE and pieces[id].spelling != b"<0x%02X>" % (id - 3):
            raise ValueError(f"expected token {id} to be <0x{id - 3:02X}>, found {pieces[id].spelling!r}")
    space = SPACE.encode()
    spellings = [SPELLED.get(id, piece.spelling.replace(space, b" ")) for id, piece in enumerate(pieces)]
    return pack_tokenizer([(spelling, piece.score) for spelling, piece in zip(spellings, pieces, strict=True)]), len(pieces)


# ---------------------------------------------------------------------------
# the message


def parse(model: bytes) -> tuple[list[Piece], int]:
    """The pieces of a tokenizer.model (its field 1, repeated), and the kind of the model (field 3 of its field 2)."""
    pieces: list[Piece] = []
    model_kind = 1  # where it is not said
    for number, value in fields(model):
        if number == 1 and isinstance(value, bytes):
            pieces.append(parse_piece(value, len(pieces)))
        elif number == 2 and isinstance(value, bytes):
            model_kind = next((kind for n, kind in fields(value) if n == 3 and isinstance(kind, int)), model_kind)
    if not pieces:
        raise ValueError("expected a tokenizer of SentencePiece, found no token in it")
    return pieces, model_kind


def parse_piece(message: bytes, id: int) -> Piece:
    spelling, score, kind = b"", 0.0, 1
    for number, value in fields(message):
        if number == 1 and isinstance(value, bytes):
            spelling = value
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and isinstance(value, int):
            kind = value
    if not spelling or math.isnan(score):
        raise ValueError(f"expected a token {id} with a spelling and a score, found {spelling!r} and {score}")
    return Piece(spelling, score, kind)


def fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """The fields of a message: b"\\x08\\x05" is (1, 5). Those of 4 bytes are taken for fp32."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = varint(message, at)
            yield number, value
            continue
        if wire not in (FIXED64, BYTES, FIXED32):
            raise ValueError(f"expected a tokenizer of SentencePiece, found a field of wire type {wire}")
        size = {FIXED64: 8, FIXED32: 4}.get(wire)
        if size is None:
            size, at = varint(message, at)
        content = message[at : at + size]
        at += size
        if at > len(message):
            raise ValueError(f"expected a tokenizer of SentencePiece, found it cut off: {at - len(message)} bytes are missing")
        yield number, struct.unpack("<f", content)[0] if wire == FIXED32 else content


def varint(message: bytes, at: int) -> tuple[int, int]:
    """The whole number at a place, 7 bits in each byte, the lowest first; and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("expected a tokenizer of SentencePiece, found it cut off")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("expected a tokenizer of SentencePiece, found a number of more than 10 bytes")
