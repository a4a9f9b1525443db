"""A tokenizer.json of the Hugging Face tokenizers package, and the settings beside it, as a Vocabulary.

The package encodes. Decoding is done here, so that each token has its bytes and a stream of tokens gives the same text as all
tokens at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

from ..errors import ModelError, RequestError
from ..files import read_file
from .settings import read_special, surplus_message
from .vocabulary import Special, as_index

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")  # what the package takes for a byte; the plus is its parser's
PROBES = ("a", "0", " ", "\n", "e", "\u2581", "\u00e9")  # texts; every vocabulary should have one of them
PACKAGE = (0, 20)  # the oldest version that reads the merges of today's files
NO_PACKAGE = "expected the package tokenizers, for this tokenizer, found none: pip install 'llama2c[hf]'"


def read(path: str | os.PathLike[str], vocab_size: int | None) -> tuple[JsonVocabulary, Special]:
    """The vocabulary of a tokenizer.json for a model of `vocab_size` ids (None: as many as it has), and its special tokens.

    settings.py says which files are read beside it. The model may have more ids than the tokenizer, and the tokenizer may have
    added tokens beyond those of the model: a text that contains one is a RequestError when it is encoded.
    ModelError: a file is broken, does not fit the others or has too many tokens; OSError: it cannot be read, or the package is
    missing.
    """
    path = Path(path)
    package = load(path)
    try:
        ids = set(package.get_vocab().values())
        size = max(ids, default=-1) + 1
        if vocab_size is None:
            vocab_size = size
        added = set(package.get_added_tokens_decoder())
        if not ids or any(id >= vocab_size for id in ids - added):
            raise ModelError(f"expected 1 to {vocab_size} tokens, because the model has {vocab_size} ids, found {size}")
        decoder = read_decoder(None if package.decoder is None else json.loads(package.decoder.__getstate__()))
        prefix = find_prefix(package)
        if any(id >= vocab_size for id in prefix):
            raise ModelError(f"puts the ids {list(prefix)} before a text, but the model has only {vocab_size} ids")
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    special = read_special(path, package.token_to_id, vocab_size, prefix)
    return JsonVocabulary(package, vocab_size, decoder, special), special


def load(path: Path) -> Any:
    """The tokenizers.Tokenizer of a file."""
    data = read_file(path)
    tokenizers = import_package(path)
    with explained(f"{path}: expected a tokenizer.json"):
        package = tokenizers.Tokenizer.from_buffer(data)
    package.no_truncation()  # both are settings of a training, and would change the ids of a text
    package.no_padding()
    return package


def import_package(path: str | os.PathLike[str]) -> Any:
    """The package tokenizers, for the tokenizer of a file. OSError: it is missing, or too old."""
    try:
        import tokenizers  # slow to import, and an extra
    except ImportError:
        raise OSError(f"{os.fspath(path)}: {NO_PACKAGE}") from None
    found = tuple(int(number) for number in re.findall(r"\d+", tokenizers.__version__)[:2])
    if found < PACKAGE:
        expected = f"expected the package tokenizers, version {'.'.join(map(str, PACKAGE))} or later"
        raise OSError(f"{os.fspath(path)}: {expected}, found {tokenizers.__version__}: pip install 'llama2c[hf]'")
    return tokenizers


@contextlib.contextmanager
def explained(expected: str, param: str | None = None) -> Iterator[None]:
    """Turns whatever the package raises into one line: a RequestError about the argument `param`, or a ModelError (None).

    A panic of its Rust code is not even an Exception.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        message = f"{expected}, found: {' '.join(str(error).split())}"
        raise (ModelError(message) if param is None else RequestError(message, param)) from None


# ---------------------------------------------------------------------------
# decoding


# The decoders that are read, by the types of their steps. What they do to a token depends only on the token, and on whether
# the text begins with it.
DECODERS = re.compile(r"ByteLevel (Fuse )?|(Replace )*(ByteFallback )?(Fuse (Strip )?)?|(ByteFallback )?Metaspace (Fuse )?")


class Decoder(NamedTuple):
    """How the spelling of a token becomes bytes."""

    alphabet: Mapping[str, int] | None = None  # the byte of each character; None: spellings are text
    replaced: tuple[tuple[str, str], ...] = ()  # in text
    byte_fallback: bool = False  # the text <0x0A> is a byte
    strips: bool = False  # the text loses a space at its beginning

    def piece(self, spelling: str) -> bytes:
        if self.alphabet is not None:
            values = [self.alphabet.get(character, -1) for character in spelling]
            # A spelling with a character outside the alphabet, as an added token may have, is text.
            return spelling.encode() if -1 in values else bytes(values)
        for old, new in self.replaced:
            spelling = spelling.replace(old, new)
        byte = BYTE.fullmatch(spelling) if self.byte_fallback else None
        return spelling.encode() if byte is None else bytes((int(byte[1], 16),))


def read_decoder(settings: Any) -> Decoder:
    """The decoder of a tokenizer.json, from its settings there. ModelError: it is not one of DECODERS.

    ByteLevel is that of GPT-2 and Llama 3. The others belong to SentencePiece's tokenizers, such as Llama 2's, which spell a
    space as U+2581 and put one before the text.
    """
    steps: list[Any] = flatten(settings)
    kinds = [str(step["type"]) for step in steps]
    if not steps or not DECODERS.fullmatch("".join(f"{kind} " for kind in kinds)):
        raise ModelError(f"expected a decoder of ByteLevel or of SentencePiece's kind, found {', '.join(kinds) or 'none'}")
    if kinds[0] == "ByteLevel":
        return Decoder(byte_alphabet())
    replaced: list[tuple[str, str]] = []
    strips = False
    for kind, step in zip(kinds, steps, strict=True):
        if kind == "Metaspace":
            replaced.append((step["replacement"], " "))
            strips = step["prepend_scheme"] != "never"
        elif kind == "Replace":
            if "String" not in step["pattern"]:
                raise ModelError(f"expected a decoder that replaces strings, found the pattern {step['pattern']}")
            replaced.append((step["pattern"]["String"], step["content"]))
        elif kind == "Strip":
            if (step["content"], step["stop"]) != (" ", 0) or step["start"] > 1:
                raise ModelError(f"expected a decoder that strips one space at the beginning, found {step}")
            strips = step["start"] == 1
    return Decoder(None, tuple(replaced), "ByteFallback" in kinds, strips)


def flatten(settings: Any) -> list[Any]:
    """The steps of a decoder in their order; nested sequences become one."""
    if settings is None:
        return []
    if settings["type"] != "Sequence":
        return [settings]
    return [step for part in settings["decoders"] for step in flatten(part)]


def byte_alphabet() -> dict[str, int]:
    """The byte of each character in GPT-2's spelling.

    Printable characters of Latin-1 stand for themselves; the other bytes are spelled U+0100, U+0101 and so on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


# ---------------------------------------------------------------------------
# the vocabulary


class JsonVocabulary:
    """A tokenizers.Tokenizer as a Vocabulary of `size` ids. Ids without a token have no text."""

    def __init__(self, package: Any, size: int, decoder: Decoder, special: Special) -> None:
        self._package = package
        self._decoder = decoder
        self._special = special
        self.size = size
        self._start = list(special.prefix) or ([] if special.bos_id is None else [special.bos_id])  # an empty text
        added = package.get_added_tokens_decoder()
        self._surplus = {id: token.content for id, token in added.items() if id >= size}  # the model does not have these
        silent = {id for id, token in added.items() if token.special and id < size}
        silent |= {*special.end_ids, *special.prefix, *({special.bos_id, special.eos_id} - {None})}
        self._pieces = dict.fromkeys(silent, b"")  # filled as tokens are met

    def encode(self, text: bytes, bos: bool, eos: bool) -> list[int]:
        """The ids of the package. bos: after those that its post-processor puts in front; an empty text has at least BOS."""
        try:
            decoded = text.decode()
        except UnicodeDecodeError as error:
            found = f"byte 0x{text[error.start]:02X} at index {error.start}"
            raise RequestError(f"text: expected valid UTF-8, found {found}", "text") from None
        with explained("text: expected one that the tokenizer can take", "text"):
            ids: list[int] = self._package.encode(decoded, add_special_tokens=False).ids
        if self._surplus and (largest := max(ids, default=0)) >= self.size:
            raise RequestError(surplus_message(self._surplus[largest], largest, self.size), "text")
        if bos:
            ids = [*self._special.prefix, *ids] or self._start.copy()
        if eos:
            if self._special.eos_id is None:
                raise RequestError("eos: this tokenizer has no end token", "eos")
            ids.append(self._special.eos_id)
        return ids

    def piece(self, token: SupportsIndex, after_bos: bool = False) -> bytes:
        index = as_index(token)
        piece = self._pieces.get(index)
        if piece is None:
            if not 0 <= index < self.size:
                raise RequestError(f"token: expected 0 to {self.size - 1}, found {index}", "token")
            spelling = self._package.id_to_token(index)
            piece = self._pieces[index] = b"" if spelling is None else self._decoder.piece(spelling)
        return piece.removeprefix(b" ") if after_bos and self._decoder.strips else piece

    def definition(self) -> bytes:
        settings: str = self._package.to_str()
        return f"{self.size}\n{settings}".encode()


def find_prefix(package: Any) -> tuple[int, ...]:
    """The ids that the post-processor puts before a text, found by encoding a short one."""
    for text in PROBES:
        with explained("expected a tokenizer that can take a text"):
            encoded = package.encode(text)
        if any(sequence is not None for sequence in encoded.sequence_ids):
            front = takewhile(lambda pair: pair[1] is None, zip(encoded.ids, encoded.sequence_ids, strict=True))
            return tuple(id for id, _ in front)
    raise ModelError(f"expected a vocabulary with a token for one of {', '.join(map(repr, PROBES))}, found none")
