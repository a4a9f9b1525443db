"""SentencePiece's tokenizer.model: its tokens, the settings that change ids, and its conversion to llama2.c's tokenizer.bin.

A tokenizer.model is a message in the wire format of Protocol Buffers: fields, each with a number, a wire type and a value.
Models of byte-pair encoding with tokens for the 256 bytes are read. A setting that is not followed is refused by its name.
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import ModelError, not_found
from ..files import exists, read_file
from ..formats.writer import pack_tokenizer
from .vocabulary import BOS, EOS

SPACE = "\u2581".encode()  # how SentencePiece spells a space
N_BYTES = 256
BPE = 2  # the kind of model that is read
TEXT, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # the kinds of pieces
SPELLED = {BOS: b"\n<s>\n", EOS: b"\n</s>\n"}  # how llama2.c spells them
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


class ModelPiece(NamedTuple):
    """A token of a tokenizer.model. A space in its spelling is a space here."""

    spelling: bytes
    score: float
    kind: int


class SentencePieceModel(NamedTuple):
    """What a tokenizer.model contains. The settings have the names that SentencePiece gives them."""

    pieces: list[ModelPiece]
    bos_id: int | None
    eos_id: int | None
    add_dummy_prefix: bool  # put a space before a text
    remove_extra_whitespaces: bool  # of a run of spaces keep one, and none at the ends of a text


# ---------------------------------------------------------------------------
# conversion


def convert(path: Path, vocab_size: int) -> bytes:
    """The tokenizer.bin for a model of `vocab_size` tokens, from a tokenizer.model.

    Warns (RuntimeWarning) if the model has settings that a tokenizer.bin does not have, so that some texts get other ids.
    ModelError, OSError: one line that names the file.
    """
    if not exists(path):
        raise not_found(path, "expected a tokenizer of SentencePiece, found: No such file or directory")
    content = read_file(path)
    try:
        model = parse(content)
        converted = pack_model(model)
        if len(model.pieces) != vocab_size:
            raise ModelError(f"expected {vocab_size} tokens, as the model has, found {len(model.pieces)}")
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    for difference in differences(model):
        warnings.warn(f"{path}: {difference}", RuntimeWarning, stacklevel=2)
    return converted


def pack(content: bytes) -> tuple[bytes, int]:
    """The content of a tokenizer.bin from that of a tokenizer.model, and the number of its tokens.

    ModelError: it is not a tokenizer.model; its first tokens are not the unknown token, BOS, EOS and the 256 bytes; or every
    text would be encoded in another way.
    """
    model = parse(content)
    return pack_model(model), len(model.pieces)


def pack_model(model: SentencePieceModel) -> bytes:
    fixed = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * N_BYTES
    for id, expected in enumerate(fixed):
        found = f"kind {model.pieces[id].kind}" if id < len(model.pieces) else "none"
        if found != f"kind {expected}":
            raise ModelError(f"expected a token {id} of kind {expected} (unknown, BOS, EOS, then the bytes), found {found}")
    check_alphabet(model, 3)
    if (model.bos_id, model.eos_id) != (BOS, EOS):
        raise ModelError(f"expected token {BOS} as BOS and {EOS} as EOS, found {model.bos_id} and {model.eos_id}")
    if not model.add_dummy_prefix:
        says = "normalizer_spec.add_dummy_prefix is false, but with a tokenizer.bin every text gets a space before it"
        raise ModelError(f"{says}: use the tokenizer.model itself")
    return pack_tokenizer([(SPELLED.get(id, piece.spelling), piece.score) for id, piece in enumerate(model.pieces)])


def differences(model: SentencePieceModel) -> list[str]:
    """Why some texts get other ids from the tokenizer.bin of this model, a line for each reason."""
    found = []
    other = "may get other ids than from the tokenizer.model"
    if model.remove_extra_whitespaces:
        says = "normalizer_spec.remove_extra_whitespaces is true, and a tokenizer.bin has no such setting"
        found.append(f"{says}: texts with two spaces in a row, or with spaces at an end, {other}")
    users = [piece.spelling.decode(errors="replace") for piece in model.pieces if piece.kind == USER]
    if users:
        says = f"{len(users)} user-defined pieces, as {users[0]!r}, are not marked in a tokenizer.bin"
        found.append(f"{says}: texts that contain one {other}")
    if characters := hidden_characters(model):
        says = f"{len(characters)} characters, as {characters[0]!r}, are parts of pieces without being pieces themselves"
        found.append(f"{says}, and with a tokenizer.bin they are not joined: texts that contain one {other}")
    return found


def hidden_characters(model: SentencePieceModel) -> list[str]:
    """The characters that are part of a piece and not a piece themselves. SentencePiece merges them all the same."""
    merged = {piece.spelling for piece in model.pieces if piece.kind == TEXT}
    characters = set(b"".join(merged).decode(errors="ignore"))
    return sorted(characters - {spelling.decode(errors="ignore") for spelling in merged})


def check_alphabet(model: SentencePieceModel, first: int) -> None:
    """ModelError unless the 256 tokens from `first` on are the bytes in their order, and there is a token for the space."""
    for byte in range(N_BYTES):
        id, expected = first + byte, b"<0x%02X>" % byte
        piece = model.pieces[id] if id < len(model.pieces) else None
        if piece is None or piece.spelling != expected or piece.kind != BYTE:
            raise ModelError(f"expected token {id} to be {expected.decode()}, found {piece.spelling if piece else None!r}")
    if not any(piece.spelling == b" " and piece.kind in (TEXT, USER) for piece in model.pieces):
        raise ModelError("expected a piece for the space, U+2581, found none")


# ---------------------------------------------------------------------------
# the message


def parse(content: bytes) -> SentencePieceModel:
    """The content of a tokenizer.model.

    ModelError: it is something else, or a model that llama2c would not encode with as SentencePiece does.
    """
    pieces: list[ModelPiece] = []
    trainer: dict[int, int | float | bytes] = {}
    normalizer: dict[int, int | float | bytes] = {}
    denormalizer: dict[int, int | float | bytes] = {}
    for number, value in fields(content):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            pieces.append(parse_piece(value, len(pieces)))
        elif number in (2, 3, 5):  # the last value of a field counts
            {2: trainer, 3: normalizer, 5: denormalizer}[number].update(fields(value))
    if not pieces:
        raise ModelError("expected a tokenizer of SentencePiece, found no token in it")
    check_trainer(trainer)
    check_pieces(pieces)
    for name, settings in (("normalizer_spec", normalizer), ("denormalizer_spec", denormalizer)):
        if settings.get(2):
            rules = settings.get(1)
            found = rules.decode(errors="replace") if isinstance(rules, bytes) else rules
            raise ModelError(f"{name}.name: expected rules that change no characters (identity), found {found!r}")
    if not normalizer.get(5, True):
        raise ModelError("normalizer_spec.escape_whitespaces: expected true, found false")
    pieces = [piece._replace(spelling=piece.spelling.replace(SPACE, b" ")) for piece in pieces]
    controls = {piece.spelling: id for id, piece in enumerate(pieces) if piece.kind == CONTROL}
    bos, eos = (controls.get(trainer.get(number, usual)) for number, usual in ((46, b"<s>"), (47, b"</s>")))  # type: ignore[arg-type]
    return SentencePieceModel(pieces, bos, eos, bool(normalizer.get(3, True)), bool(normalizer.get(4, True)))


def check_trainer(trainer: dict[int, int | float | bytes]) -> None:
    """ModelError unless llama2c encodes as a model with this trainer_spec."""
    kind = trainer.get(3, 1)
    if kind != BPE:
        raise ModelError(f"expected a model of byte-pair encoding (kind {BPE}), found kind {kind!r}")
    if not trainer.get(35, False):
        raise ModelError("trainer_spec.byte_fallback: expected true, found false")
    if trainer.get(24, False):
        raise ModelError("trainer_spec.treat_whitespace_as_suffix: expected false, found true")


def check_pieces(pieces: list[ModelPiece]) -> None:
    """ModelError unless llama2c encodes as a model with these pieces."""
    for id, piece in enumerate(pieces):
        if piece.kind == UNUSED:
            raise ModelError(f"token {id}: expected no unused piece (kind {UNUSED}), found {piece.spelling!r}")
        if piece.kind in (TEXT, USER) and b" " in piece.spelling:
            raise ModelError(f"token {id}: expected a piece that spells spaces as U+2581, found {piece.spelling!r}")


def parse_piece(message: bytes, id: int) -> ModelPiece:
    spelling, score, kind = b"", 0.0, TEXT
    for number, value in fields(message):
        if number == 1 and isinstance(value, bytes):
            spelling = value
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and isinstance(value, int):
            kind = value
    if not spelling or math.isnan(score):
        raise ModelError(f"expected a token {id} with a spelling and a score, found {spelling!r} and {score}")
    return ModelPiece(spelling, score, kind)


def fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """The fields of a message: b"\\x08\\x05" is (1, 5). A field of 4 bytes is read as fp32."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = varint(message, at)
            yield number, value
            continue
        if wire not in (FIXED64, BYTES, FIXED32):
            raise ModelError(f"expected a tokenizer of SentencePiece, found a field of wire type {wire}")
        size = {FIXED64: 8, FIXED32: 4}.get(wire)
        if size is None:
            size, at = varint(message, at)
        content = message[at : at + size]
        at += size
        if at > len(message):
            raise ModelError(f"expected a tokenizer of SentencePiece, found it cut off: {at - len(message)} bytes are missing")
        yield number, struct.unpack("<f", content)[0] if wire == FIXED32 else content


def varint(message: bytes, at: int) -> tuple[int, int]:
    """The integer at byte `at`, 7 bits in each byte, the lowest first; and where the next field begins."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ModelError("expected a tokenizer of SentencePiece, found it cut off")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ModelError("expected a tokenizer of SentencePiece, found a number of more than 10 bytes")
