"""Text to token ids and back, with a vocabulary from any file: tokenizer.bin, tokenizer.model, tokenizer.json or a GGUF model.

This module handles str; a vocabulary handles bytes (_bpe is compiled, tokenizer_json uses a package). It knows no model.
"""

from __future__ import annotations

import codecs
import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

from ..errors import ModelError, RequestError, not_found
from ..files import GGUF_MAGIC, read_file, read_start
from ..locate import tokenizer_in, tokenizer_names
from . import _bpe
from .vocabulary import BOS, EOS, UNK, ChatTemplate, Special, Vocabulary

__all__ = ["BOS", "EOS", "UNK", "TextStream", "Tokenizer"]


class Tokenizer:
    """A vocabulary with its encoder and decoder. It never changes: any number of threads may share one.

    vocab_size     the number of ids; an id without a token has no text
    bos_id, eos_id the tokens that begin and end a text; None: the tokenizer has none
    end_ids        every token that ends a text, and in a chat a turn
    prefix         the ids that encode puts before a text; () if the tokenizer puts none there
    chat_template  turns messages into a prompt; None: the form of Llama 2 is used
    path           the file it was opened from; None: it was made from a vocabulary
    no_template    says where a chat template was looked for in vain; None for a tokenizer.bin, which never has one

    The vocabulary of a tokenizer.bin is that of llama2.c. Byte-pair encoding starts from one token for each code point (the
    tokens of its UTF-8 bytes where it has none) and merges the neighbours whose joined spelling is the token with the highest
    score, the leftmost of equals. Where two tokens have the same spelling, text becomes the one with the lower id.
    """

    __slots__ = (
        "_starts", "_vocabulary", "bos_id", "chat_template", "end_ids", "eos_id", "no_template", "path", "prefix",
        "vocab_size",
    )  # fmt: skip

    def __init__(self, vocabulary: Vocabulary, special: Special | None = None) -> None:
        """special: None means the special tokens of a tokenizer.bin."""
        special = Special() if special is None else special
        self._vocabulary = vocabulary
        self._starts = special.starts
        self.vocab_size: int = vocabulary.size
        self.bos_id: int | None = special.bos_id
        self.eos_id: int | None = special.eos_id
        self.end_ids: frozenset[int] = special.end_ids
        self.prefix: tuple[int, ...] = special.prefix
        self.chat_template: ChatTemplate | None = special.chat_template
        self.no_template: str | None = special.no_template
        self.path: str | None = None

    def __copy__(self) -> Tokenizer:
        return self  # it never changes

    def __deepcopy__(self, memo: object) -> Tokenizer:
        return self

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        if self.path is None:
            raise TypeError("a Tokenizer that was not opened from a file cannot be pickled")
        return Tokenizer.open, (os.path.abspath(self.path), self.vocab_size)

    @classmethod
    def open(cls, path: str | os.PathLike[str], vocab_size: int | None = None) -> Tokenizer:
        """Read a tokenizer for a model of vocab_size tokens (None: of as many as the tokenizer has).

        A GGUF file is recognised by its content, and has the tokenizer in it. For others the name says what the file is:
        tokenizer.json of the tokenizers package (*.json) or tokenizer.model of SentencePiece (*.model), each with the settings
        beside it; anything else is a tokenizer.bin. In a folder, the tokenizer there is used.
        A tokenizer.bin must have exactly vocab_size tokens. The others may have fewer (a tokenizer.model only with settings
        beside it). Those of a folder may have added tokens beyond vocab_size: a text with one is refused when it is encoded.
        ModelError: the file is not a tokenizer, or has another size; OSError: it cannot be read, or a package is missing.
        """
        if vocab_size is not None and operator.index(vocab_size) < 1:
            raise RequestError(f"vocab_size: expected a positive int, found {vocab_size}", "vocab_size")
        if os.path.isdir(path):
            found = tokenizer_in(path)
            if found is None:
                raise not_found(path, f"expected {tokenizer_names()} in this folder, found none")
            path = found
        tokenizer = cls(*_read(os.fspath(path), vocab_size))
        tokenizer.path = os.fspath(path)
        return tokenizer

    @classmethod
    def of_metadata(cls, path: str, metadata: Mapping[str, Any], vocab_size: int | None = None) -> Tokenizer | None:
        """As open, of the GGUF file `path` with this metadata. None: it has no tokenizer, or is not a GGUF file ({})."""
        if not metadata:
            return None
        from .tokenizer_gguf import has_tokenizer

        if not has_tokenizer(metadata):
            return None
        tokenizer = cls(*_read_metadata(path, metadata, vocab_size))
        tokenizer.path = path
        return tokenizer

    def encode(self, text: str | bytes, bos: bool = True, eos: bool = False) -> list[int]:
        """The ids of a text. bos: after the ids that the tokenizer puts before a text; eos: with eos_id at the end.

        A tokenizer.bin and a tokenizer.model take bytes as they are, valid UTF-8 or not; a tokenizer.json takes only valid
        UTF-8. With a tokenizer.bin, a text that is not empty gets a leading space. A tokenizer.json, and a tokenizer.model with
        settings beside it, find their special tokens where a text spells them out. NUL is a byte like any other. The tokenizer
        of a GGUF file is like one of the last two: of "gpt2" like a tokenizer.json, of "llama" like a tokenizer.model.
        RequestError: a lone surrogate, which has no UTF-8; invalid UTF-8 for a tokenizer.json; eos=True without an eos_id; an
        added token that the model does not have.
        """
        if isinstance(text, str):
            try:
                text = text.encode()
            except UnicodeEncodeError as error:
                found = f"a lone surrogate U+{ord(error.object[error.start]):04X} at index {error.start}"
                raise RequestError(f"text: expected valid Unicode, found {found}", "text") from None
        elif not isinstance(text, bytes):
            raise TypeError(f"text: expected str or bytes, found {type(text).__name__}")
        return self._vocabulary.encode(text, bos, eos)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of some ids: U+FFFD for broken bytes, nothing for special tokens (ids 0 to 2 of a tokenizer.bin).

        Where encode puts a space before a text, decode drops it after BOS, so decode(encode(text)) == text; with bos=False it
        stays. (If the tokenizer adds no BOS, it is dropped at the beginning.) RequestError: an id outside the vocabulary.
        """
        stream = self.text_stream()
        return "".join(map(stream.feed, ids)) + stream.flush()

    def piece(self, token: SupportsIndex) -> bytes:
        """The bytes of one token, which may be part of a character: b"" for special ones, b"\\n" for <0x0A>."""
        return _piece(self._vocabulary, token)

    def has_tokens_of(self, other: Tokenizer) -> bool:
        """Whether each id means the same bytes, or a special token, in both."""
        if self.vocab_size != other.vocab_size:
            return False
        return all(self.piece(token) == other.piece(token) for token in range(self.vocab_size))

    def text_stream(self, previous: SupportsIndex | None = None, errors: str = "replace") -> TextStream:
        """A decoder for one token at a time. `previous` is the token before the first, if there is one.

        `errors` says what invalid UTF-8 becomes: "replace" (U+FFFD) or "ignore" (nothing).
        """
        return TextStream(self._vocabulary, self._starts, previous, errors)

    def definition(self) -> bytes:
        """What decides how it encodes, decodes and renders messages, as bytes: tokenizers that have the same do the same."""
        import json  # a story does not need it

        template = self.chat_template
        settings = {
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "end_ids": sorted(self.end_ids),
            "prefix": self.prefix,
            "template": template and [template.source, sorted(template.special_tokens.items())],
        }
        return json.dumps(settings).encode() + b"\n" + self._vocabulary.definition()


def _read(path: str, vocab_size: int | None) -> tuple[Vocabulary, Special | None]:
    """The vocabulary and the special tokens of a file, by its content and the ending of its name. Errors: those of open."""
    if read_start(path).startswith(GGUF_MAGIC):
        from ..formats.gguf import read_metadata  # most models need neither this nor the modules below

        return _read_metadata(path, read_metadata(path), vocab_size)
    if path.endswith(".json"):
        from . import tokenizer_json

        return tokenizer_json.read(path, vocab_size)
    try:
        if path.endswith(".model"):
            from . import tokenizer_model

            return tokenizer_model.read(path, vocab_size)
        data = read_file(path)
        try:
            return _bpe.Vocabulary(data, vocab_size), None
        except ValueError as error:
            raise ModelError(f"{path}: {error}") from None
    except MemoryError as error:
        if str(error):  # says it already
            raise
        raise MemoryError(f"{path}: expected memory for its tokens, found too little") from None


def _read_metadata(path: str, metadata: Mapping[str, Any], vocab_size: int | None) -> tuple[Vocabulary, Special]:
    from .tokenizer_gguf import read

    try:
        return read(path, metadata, vocab_size)
    except MemoryError:
        raise MemoryError(f"{path}: expected memory for its tokens, found too little") from None


class TextStream:
    """Turns tokens into text as they come. The bytes of an unfinished character wait for the others."""

    __slots__ = ("_after_bos", "_errors", "_piece", "_rest", "_starts")

    def __init__(
        self, vocabulary: Vocabulary, starts: frozenset[int | None], previous: SupportsIndex | None, errors: str
    ) -> None:
        if errors not in ("replace", "ignore"):
            raise RequestError(f'errors: expected "replace" or "ignore", found {errors!r}', "errors")
        if previous is not None:
            _piece(vocabulary, previous)  # checks it
        self._piece = vocabulary.piece
        self._errors = errors
        self._starts = starts
        self._after_bos = previous in starts
        self._rest = b""  # the first bytes of an unfinished character

    def feed(self, token: SupportsIndex) -> str:
        """The text that this token completes, often "" for a byte.

        RequestError: the token is outside the vocabulary; the stream is unchanged.
        """
        try:
            data = self._rest + self._piece(token, self._after_bos)
        except ValueError as error:
            raise RequestError(str(error), "token") from None
        self._after_bos = token in self._starts
        text, used = codecs.utf_8_decode(data, self._errors, False)
        self._rest = data[used:]
        return text

    def flush(self) -> str:
        """The end of the text: what an unfinished character becomes ("replace": U+FFFD)."""
        text, _ = codecs.utf_8_decode(self._rest, self._errors, True)
        self._rest = b""
        return text


def _piece(vocabulary: Vocabulary, token: SupportsIndex) -> bytes:
    """vocabulary.piece, whose ValueError (the compiled one knows no other) becomes a RequestError."""
    try:
        return vocabulary.piece(token)
    except ValueError as error:
        raise RequestError(str(error), "token") from None
