"""A tokenizer.model of SentencePiece, used in place with the settings beside it, as a Vocabulary.

Ids are those of SentencePiece; with settings beside it (a Hugging Face folder), those of transformers: special and added tokens
are found in a text where it spells them out.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import NamedTuple, SupportsIndex

from ..errors import ModelError, RequestError
from ..files import read_file
from ..formats.writer import pack_tokenizer
from . import _bpe, sentencepiece
from .sentencepiece import SPACE, TEXT, USER, SentencePieceModel
from .settings import (
    TOKENIZER_CONFIG,
    AddedToken,
    has_settings,
    read_added,
    read_settings,
    read_special,
    short,
    surplus_message,
)
from .vocabulary import Special, as_index

SPACES = re.compile(rb" +")
# The kinds of _bpe.Vocabulary
MERGED, SPECIAL, WHOLE, HIDDEN = range(4)


class Spaces(NamedTuple):
    """What happens to the white space of a text before it is encoded."""

    add: bool  # put a space before it
    add_after_special: bool  # also before what comes after a special token
    squeeze: bool  # of a run of spaces keep one, and none at the ends

    def prepare(self, text: bytes, first: bool) -> bytes:
        """A part of a text as it is encoded; U+2581 is a space to SentencePiece. first: the text begins with it."""
        if self.squeeze:
            text = SPACES.sub(b" ", text).lstrip(b" ")
            end = len(text)
            while text.endswith((b" ", SPACE), 0, end):
                end -= 1 if text.endswith(b" ", 0, end) else len(SPACE)
            text = text[:end]
        if not text:
            return b""
        text = text.replace(SPACE, b" ")
        return b" " + text if self.add and (first or self.add_after_special) else text


def read(path: str | os.PathLike[str], vocab_size: int | None) -> tuple[ModelVocabulary, Special]:
    """The vocabulary of a tokenizer.model for a model of `vocab_size` ids (None: as many as it has), and its special tokens.

    ModelError: the file, or one beside it, is broken, does not fit the others or has another size; OSError: one cannot be read.
    """
    path = Path(path)
    content = read_file(path)
    try:
        model = sentencepiece.parse(content)
        sentencepiece.check_alphabet(model, first_byte(model))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    if has_settings(path.parent):
        return read_folder(path, model, vocab_size)
    size = check_size(path, model, [], vocab_size)
    ids = [id for id in (model.bos_id, model.eos_id) if id is not None]
    prefix = () if model.bos_id is None else (model.bos_id,)
    special = Special(model.bos_id, model.eos_id, frozenset(ids), prefix)
    spaces = Spaces(model.add_dummy_prefix, True, model.remove_extra_whitespaces)
    return ModelVocabulary(model, size, spaces, [], special), special


def first_byte(model: SentencePieceModel) -> int:
    """The first token of a byte, which SentencePiece puts behind control and user-defined pieces."""
    return next((id for id, piece in enumerate(model.pieces) if piece.kind == sentencepiece.BYTE), len(model.pieces))


def read_folder(path: Path, model: SentencePieceModel, vocab_size: int | None) -> tuple[ModelVocabulary, Special]:
    """As read, with the settings beside the file."""
    ids: dict[str, int] = {}
    for id, piece in enumerate(model.pieces):
        ids.setdefault(piece.spelling.replace(b" ", SPACE).decode(errors="replace"), id)
    added = {token.content: token for token in read_added(path.parent, ids.get)}
    unknown = next((id for id, piece in enumerate(model.pieces) if piece.kind == sentencepiece.UNKNOWN), None)
    defaults: dict[str, str] = {}
    for name, default in (("bos_token", model.bos_id), ("eos_token", model.eos_id), ("unk_token", unknown)):
        if default is not None:
            defaults[name] = model.pieces[default].spelling.decode(errors="replace")
            added.setdefault(defaults[name], AddedToken(defaults[name], default, special=True))
    size = check_size(path, model, list(added.values()), vocab_size)
    special = read_special(path, {token.content: token.id for token in added.values()}.get, size, defaults=defaults)
    adds_bos, spaces = read_switches(path.parent, model)
    if adds_bos and special.bos_id is not None:
        special = special._replace(prefix=(special.bos_id,))
    return ModelVocabulary(model, size, spaces, list(added.values()), special), special


def read_switches(folder: Path, model: SentencePieceModel) -> tuple[bool, Spaces]:
    """Whether BOS is put before a text, and what happens to white space, by tokenizer_config.json and the model.

    Where `legacy` is not given it is true, as it was when folders without a tokenizer.json were written.
    """
    path = folder / TOKENIZER_CONFIG
    settings = read_settings(path)
    values = []
    for name in ("add_bos_token", "add_prefix_space", "legacy"):
        value = settings.get(name)
        if not isinstance(value, bool | None):
            raise ModelError(f"{path}: {name}: expected true or false, found {short(value)}")
        values.append(value is not False)
    adds_bos, adds_space, legacy = values
    return adds_bos, Spaces(model.add_dummy_prefix and adds_space, legacy, model.remove_extra_whitespaces)


def check_size(path: Path, model: SentencePieceModel, added: list[AddedToken], vocab_size: int | None) -> int:
    """The number of ids for a model of vocab_size: only beside settings (`added`) may it have more than the tokenizer.

    ModelError: it has another size, or text that is not an added token can become an id that the model does not have.
    """
    last = max(id for id, piece in enumerate(model.pieces) if piece.kind != sentencepiece.CONTROL)
    size = max([len(model.pieces), *(token.id + 1 for token in added)])
    if vocab_size is None:
        return size
    if last >= vocab_size or (vocab_size > size and not added):
        raise ModelError(f"{path}: expected {vocab_size} tokens, found {size}")
    return vocab_size


class ModelVocabulary:
    """The pieces of a tokenizer.model and the added tokens, as a Vocabulary of `size` ids. Ids without a token have no text."""

    def __init__(
        self,
        model: SentencePieceModel,
        size: int,
        spaces: Spaces,
        added: list[AddedToken],
        special: Special,
    ) -> None:
        self.size = size
        self.spaces = spaces
        self._special = special
        self._start = list(special.prefix) or ([] if special.bos_id is None else [special.bos_id])  # an empty text
        self._pieces = compile_pieces(model, spaces)
        self.added = sorted(added, key=lambda token: -len(token.content))  # so that the longest match wins
        self._pattern = re.compile("|".join(map(pattern_of, self.added)))
        self._bytes: dict[int, bytes] = {}  # of what is not a piece, and of the pieces that have a meaning here
        if added:
            self._bytes = {token.id: b"" if token.special else token.content.encode(errors="replace") for token in added}
            self._bytes |= dict.fromkeys({*special.end_ids, *special.prefix}, b"")

    def encode(self, text: bytes, bos: bool, eos: bool) -> list[int]:
        """The ids of SentencePiece, and of added tokens. bos: after the prefix; an empty text has at least BOS."""
        ids = self._split(text) if self.added else self._encode(text, first=True)
        if bos:
            ids = [*self._special.prefix, *ids] or self._start.copy()
        if eos:
            if self._special.eos_id is None:
                raise RequestError("eos: this tokenizer has no end token", "eos")
            ids.append(self._special.eos_id)
        return ids

    def _split(self, text: bytes) -> list[int]:
        """The ids of a text that may contain added tokens."""
        decoded = text.decode(errors="surrogateescape")
        ids: list[int] = []
        at = 0
        for match in self._pattern.finditer(decoded):
            ids += self._encode(decoded[at : match.start()].encode(errors="surrogateescape"), first=at == 0)
            token = self.added[(match.lastindex or 0) - 1]
            if token.id >= self.size:
                raise RequestError(surplus_message(token.content, token.id, self.size), "text")
            ids.append(token.id)
            at = match.end()
        return ids + self._encode(decoded[at:].encode(errors="surrogateescape"), first=at == 0)

    def _encode(self, text: bytes, first: bool) -> list[int]:
        """The ids of a part of a text, without added tokens. first: the text begins with it."""
        return self._pieces.encode(self.spaces.prepare(text, first), False, False)

    def piece(self, token: SupportsIndex, after_bos: bool = False) -> bytes:
        index = as_index(token)
        if not 0 <= index < self.size:
            raise RequestError(f"token: expected 0 to {self.size - 1}, found {index}", "token")
        known = self._bytes.get(index)
        if known is not None:
            return known
        return self._pieces.piece(index, after_bos) if index < self._pieces.size else b""

    def definition(self) -> bytes:
        return json.dumps([self.size, self.spaces, self.added]).encode() + b"\n" + self._pieces.definition()


def pattern_of(token: AddedToken) -> str:
    """A regular expression for an added token, with one group."""
    word = re.escape(token.content)
    if token.single_word:
        word = rf"(?<!\w){word}(?!\w)"
    left, right = r"(?:(?<!\s)\s+)?", r"\s*"  # the left one does not start in the middle of a long run
    return f"{left * token.lstrip}({word}){right * token.rstrip}"


def compile_pieces(model: SentencePieceModel, spaces: Spaces) -> _bpe.Vocabulary:
    """The pieces for the compiled encoder.

    SentencePiece merges characters, also those that are not pieces themselves; they are added as hidden tokens.
    """
    tokens = [(piece.spelling, piece.score) for piece in model.pieces]
    kinds = bytearray(MERGED if piece.kind == TEXT else WHOLE if piece.kind == USER else SPECIAL for piece in model.pieces)
    hidden = sentencepiece.hidden_characters(model)
    tokens += [(character.encode(), 0.0) for character in hidden]
    kinds += bytes([HIDDEN]) * len(hidden)
    return _bpe.Vocabulary(pack_tokenizer(tokens), None, bytes(kinds), first_byte(model), spaces.add or spaces.squeeze)
