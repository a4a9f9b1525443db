"""A tokenizer.json of the Hugging Face tokenizers package, and the settings that lie beside it, as a Vocabulary.

The package encodes. Decoding is ours, so that each token has its bytes and a stream of tokens equals the whole.
"""

from __future__ import annotations

import contextlib
import json
import operator
import os
import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

from ..files import read_file, read_json
from .vocabulary import ChatTemplate, Special

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")  # what the package takes for a byte; the plus is its parser's
PROBES = ("a", "0", " ", "\n", "e", "\u2581", "\u00e9")  # texts, one of which any vocabulary is expected to have
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
NO_PACKAGE = "expected the package tokenizers, which reads it, found none: pip install 'llama2c[hf]'"


def read(path: str | os.PathLike[str], vocab_size: int | None) -> tuple[JsonVocabulary, Special]:
    """The vocabulary of a tokenizer.json, filled up to `vocab_size` ids (None: as it is), and its special tokens.

    Beside it are looked for tokenizer_config.json, special_tokens_map.json, config.json, generation_config.json, and
    chat_template.jinja or .json. ValueError: a file is broken, does not fit the others or has more than vocab_size tokens;
    OSError: it cannot be read, or the package is missing.
    """
    path = Path(path)
    package = load(path)
    try:
        size = max(package.get_vocab().values(), default=-1) + 1
        if vocab_size is None:
            vocab_size = size
        if not 0 < size <= vocab_size:
            raise ValueError(f"expected 1 to {vocab_size} tokens, as many ids as the model has, found {size}")
        decoder = read_decoder(None if package.decoder is None else json.loads(package.decoder.__getstate__()))
        prefix = find_prefix(package)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    special = read_special(path.parent, package, vocab_size, prefix)
    return JsonVocabulary(package, vocab_size, decoder, special), special


def load(path: Path) -> Any:
    """The tokenizers.Tokenizer of a file."""
    data = read_file(path)
    try:
        import tokenizers  # slow to import, and an extra
    except ImportError:
        raise OSError(f"{path}: {NO_PACKAGE}") from None
    with explained(f"{path}: expected a tokenizer.json"):
        package = tokenizers.Tokenizer.from_buffer(data)
    package.no_truncation()  # settings of a training, not of the text
    package.no_padding()
    return package


@contextlib.contextmanager
def explained(expected: str) -> Iterator[None]:
    """Whatever the package raises as a ValueError in one line. Where its Rust code panics, that is no Exception even."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise ValueError(f"{expected}, found: {' '.join(str(error).split())}") from None


# ---------------------------------------------------------------------------
# decoding


# The decoders that are read, by the types of their steps. What they do to a token depends on nothing but the token, and on
# whether the text begins with it.
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
            # With a character outside the alphabet, as an added token may have, it is no spelling of bytes but text.
            return spelling.encode() if -1 in values else bytes(values)
        for old, new in self.replaced:
            spelling = spelling.replace(old, new)
        byte = BYTE.fullmatch(spelling) if self.byte_fallback else None
        return spelling.encode() if byte is None else bytes((int(byte[1], 16),))


def read_decoder(settings: Any) -> Decoder:
    """The decoder of a tokenizer.json, given as there. ValueError: it is of another kind than DECODERS.

    ByteLevel is that of GPT-2 and Llama 3; the others are those of SentencePiece's tokenizers, as Llama 2's, which spell a
    space as U+2581 and put one before the text.
    """
    steps: list[Any] = flatten(settings)
    kinds = [str(step["type"]) for step in steps]
    if not steps or not DECODERS.fullmatch("".join(f"{kind} " for kind in kinds)):
        raise ValueError(f"expected a decoder of ByteLevel or of SentencePiece's kind, found {', '.join(kinds) or 'none'}")
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
                raise ValueError(f"expected a decoder that replaces strings, found the pattern {step['pattern']}")
            replaced.append((step["pattern"]["String"], step["content"]))
        elif kind == "Strip":
            if (step["content"], step["stop"]) != (" ", 0) or step["start"] > 1:
                raise ValueError(f"expected a decoder that strips one space at the beginning, found {step}")
            strips = step["start"] == 1
    return Decoder(None, tuple(replaced), "ByteFallback" in kinds, strips)


def flatten(settings: Any) -> list[Any]:
    """The steps of a decoder in their order, sequences of sequences taken apart."""
    if settings is None:
        return []
    if settings["type"] != "Sequence":
        return [settings]
    return [step for part in settings["decoders"] for step in flatten(part)]


def byte_alphabet() -> dict[str, int]:
    """The byte of each character in GPT-2's spelling: printable ones of Latin-1 are themselves, U+0100 and on the others."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


# ---------------------------------------------------------------------------
# the vocabulary


class JsonVocabulary:
    """A tokenizers.Tokenizer as a Vocabulary. Ids that stand for no token, up to `size`, have no text."""

    def __init__(self, package: Any, size: int, decoder: Decoder, special: Special) -> None:
        self._package = package
        self._decoder = decoder
        self._special = special
        self.size = size
        self._start = list(special.prefix) or ([] if special.bos_id is None else [special.bos_id])  # of an empty text
        silent = {id for id, token in package.get_added_tokens_decoder().items() if token.special}
        silent |= {*special.end_ids, *special.prefix, *({special.bos_id, special.eos_id} - {None})}
        self._pieces = dict.fromkeys(silent, b"")  # filled as tokens are met

    def encode(self, text: bytes, bos: bool, eos: bool) -> list[int]:
        """The ids of the package; with bos those its post-processor puts in front, of an empty text at least BOS."""
        try:
            decoded = text.decode()
        except UnicodeDecodeError as error:
            found = f"byte 0x{text[error.start]:02X} at index {error.start}"
            raise ValueError(f"text: expected valid UTF-8, found {found}") from None
        with explained("text: expected one that the tokenizer can take"):
            ids: list[int] = self._package.encode(decoded, add_special_tokens=False).ids
        if bos:
            ids = [*self._special.prefix, *ids] or self._start.copy()
        if eos:
            if self._special.eos_id is None:
                raise ValueError("eos: expected a tokenizer with an end token, found one without")
            ids.append(self._special.eos_id)
        return ids

    def piece(self, token: SupportsIndex, after_bos: bool = False) -> bytes:
        try:
            index = operator.index(token)
        except TypeError:
            raise TypeError(f"token: expected an int, found {type(token).__name__}") from None
        piece = self._pieces.get(index)
        if piece is None:
            if not 0 <= index < self.size:
                raise ValueError(f"token: expected 0 to {self.size - 1}, found {index}")
            spelling = self._package.id_to_token(index)
            piece = self._pieces[index] = b"" if spelling is None else self._decoder.piece(spelling)
        return piece.removeprefix(b" ") if after_bos and self._decoder.strips else piece


def find_prefix(package: Any) -> tuple[int, ...]:
    """The ids that the post-processor puts before a text, found out with a short one."""
    for text in PROBES:
        with explained("expected a tokenizer that can take a text"):
            encoded = package.encode(text)
        if any(sequence is not None for sequence in encoded.sequence_ids):
            front = takewhile(lambda pair: pair[1] is None, zip(encoded.ids, encoded.sequence_ids, strict=True))
            return tuple(id for id, _ in front)
    raise ValueError(f"expected a vocabulary that has a token for one of {', '.join(map(repr, PROBES))}, found none")


# ---------------------------------------------------------------------------
# special tokens


def read_special(folder: Path, package: Any, vocab_size: int, prefix: tuple[int, ...]) -> Special:
    """The special tokens, from the files beside a tokenizer.json.

    tokenizer_config.json (else special_tokens_map.json) names tokens, generation_config.json (else config.json) gives ids. The
    names come first for BOS and EOS, for BOS then what is put before a text; whatever one of the two calls EOS ends a text.
    """
    names = token_names(folder)

    def named(name: str) -> list[int]:
        if name not in names:
            return []
        spelling, path = names[name]
        id = package.token_to_id(spelling)
        if id is None:
            raise ValueError(f"{path}: {name}: expected a token of the tokenizer, found {spelling!r}")
        return [id]

    bos = [*named("bos_token"), *prefix, *model_ids(folder, "bos_token_id", vocab_size)]
    eos = [*named("eos_token"), *model_ids(folder, "eos_token_id", vocab_size)]
    return Special(
        bos_id=bos[0] if bos else None,
        eos_id=eos[0] if eos else None,
        end_ids=frozenset(eos),
        prefix=prefix,
        chat_template=read_template(folder, {name: spelling for name, (spelling, _) in names.items()}),
    )


def token_names(folder: Path) -> dict[str, tuple[str, Path]]:
    """The spellings of the special tokens that have a name, and the file that says so: {"bos_token": ("<s>", path)}."""
    names: dict[str, tuple[str, Path]] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):  # the later one counts
        path = folder / file
        settings = read_settings(path)
        for name in TOKEN_NAMES:
            token = settings.get(name)
            spelling = token.get("content") if isinstance(token, dict) else token  # an AddedToken, or its spelling
            if token is None:
                continue
            if not isinstance(spelling, str):
                raise ValueError(f"{path}: {name}: expected a str or a dict with 'content', found {short(token)}")
            names[name] = spelling, path
    return names


def model_ids(folder: Path, name: str, vocab_size: int) -> list[int]:
    """The ids of that name, one or a list of them, in generation_config.json, else in config.json."""
    for file in ("generation_config.json", "config.json"):
        path = folder / file
        found = read_settings(path).get(name)
        ids = found if isinstance(found, list) else [] if found is None else [found]
        for id in ids:
            if type(id) is not int or not 0 <= id < vocab_size:  # a bool is no id
                raise ValueError(f"{path}: {name}: expected ids from 0 to {vocab_size - 1}, found {short(found)}")
        if ids:
            return ids
    return []


# ---------------------------------------------------------------------------
# the chat template


def read_template(folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template of a folder: chat_template.jinja, else chat_template.json, else the one in tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return ChatTemplate(read_file(path).decode(), str(path), special_tokens)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected UTF-8, found {error.reason} at byte {error.start}") from None
    for file in ("chat_template.json", "tokenizer_config.json"):
        path = folder / file
        found = read_settings(path).get("chat_template")
        if found is not None:
            return ChatTemplate(choose_template(found, path), str(path), special_tokens)
    return None


def choose_template(found: Any, path: Path) -> str:
    """The one template, or of several the one that is called default."""
    if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        by_name = {entry.get("name"): entry.get("template") for entry in found}
        if "default" not in by_name:
            raise ValueError(f"{path}: chat_template: expected one with the name 'default', found {short(list(by_name))}")
        found = by_name["default"]
    if not isinstance(found, str):
        raise ValueError(f"{path}: chat_template: expected a str or a list of dicts, found {short(found)}")
    return found


def read_settings(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is no such file."""
    return read_json(path) if path.exists() else {}


def short(value: Any) -> str:
    """A value in an error: on one line, and not a long one."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
