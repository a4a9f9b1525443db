"""Text to token ids and back, with a vocabulary from any file: tokenizer.bin, tokenizer.model or tokenizer.json.

This half knows str; a vocabulary knows bytes (_bpe is compiled, tokenizer_json uses a package). Nothing here knows a model.
"""

from __future__ import annotations

import codecs
import operator
import os
from collections.abc import Iterable
from typing import SupportsIndex

from ..files import read_file
from . import _bpe
from .vocabulary import BOS, EOS, UNK, ChatTemplate, Special, Vocabulary

__all__ = ["BOS", "EOS", "UNK", "TextStream", "Tokenizer"]


class Tokenizer:
    """A vocabulary with its encoder and decoder. It never changes: any number of threads may share one.

    vocab_size     how many ids there are; those without a token have no text
    bos_id, eos_id the tokens that begin and end a text; None: the tokenizer has none
    end_ids        every token that ends a text, in a chat a turn
    prefix         the ids that encode puts before a text; () of a tokenizer that adds none
    chat_template  what turns messages into a prompt; None: that of Llama 2

    The vocabulary of a tokenizer.bin is that of llama2.c. Byte-pair encoding starts from one token per code point (its UTF-8
    bytes where there is none) and merges the neighbours whose joined spelling is the token with the highest score, the leftmost
    among equals. Where it spells two tokens alike, text becomes the one with the lower id.
    """

    __slots__ = ("_starts", "_vocabulary", "bos_id", "chat_template", "end_ids", "eos_id", "prefix", "vocab_size")

    def __init__(self, vocabulary: Vocabulary, special: Special | None = None) -> None:
        """special: None for those of a tokenizer.bin."""
        special = Special() if special is None else special
        self._vocabulary = vocabulary
        self._starts = special.starts
        self.vocab_size = vocabulary.size
        self.bos_id = special.bos_id
        self.eos_id = special.eos_id
        self.end_ids = special.end_ids
        self.prefix = special.prefix
        self.chat_template: ChatTemplate | None = special.chat_template

    @classmethod
    def open(cls, path: str | os.PathLike[str], vocab_size: int | None = None) -> Tokenizer:
        """Read a tokenizer for a model of vocab_size tokens (None: of as many as the tokenizer has).

        The name says what it is: tokenizer.json of the tokenizers package, with the settings that lie beside it
        (*.json); tokenizer.model of SentencePiece (*.model), which becomes a tokenizer.bin in memory; anything else is a
        tokenizer.bin. A tokenizer.json may have fewer tokens than the model, the others exactly as many.
        ValueError: the file is none, or of another size; OSError: it cannot be read, or the package is missing.
        """
        if vocab_size is not None and operator.index(vocab_size) < 1:
            raise ValueError(f"vocab_size: expected a positive int, found {vocab_size}")
        suffix = os.path.splitext(os.fspath(path))[1]
        if suffix == ".json":
            from . import tokenizer_json  # the other two, which most need not, are imported when there is such a file

            return cls(*tokenizer_json.read(path, vocab_size))
        data = read_file(path)
        try:
            if suffix == ".model":
                from . import sentencepiece as tokenizer_model

                data, _ = tokenizer_model.pack(data)
            return cls(_bpe.Vocabulary(data, vocab_size))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None
        except MemoryError:
            raise MemoryError(f"{os.fspath(path)}: expected memory for its tokens, found too little") from None

    def encode(self, text: str | bytes, bos: bool = True, eos: bool = False) -> list[int]:
        """The ids of a text. bos: with what the tokenizer puts in front; eos: with eos_id at the end.

        With a tokenizer.bin bytes are taken as they are, valid UTF-8 or not, and a text that is not empty gets a leading space.
        A tokenizer.json takes valid UTF-8 alone, and finds its special tokens in the text where they are spelled out. NUL is a
        byte like any other.
        ValueError: a lone surrogate, which has no UTF-8; bytes that are none; eos of a tokenizer without an eos_id.
        """
        if isinstance(text, str):
            try:
                text = text.encode()
            except UnicodeEncodeError as error:
                found = f"a lone surrogate U+{ord(error.object[error.start]):04X} at index {error.start}"
                raise ValueError(f"text: expected valid Unicode, found {found}") from None
        elif not isinstance(text, bytes):
            raise TypeError(f"text: expected str or bytes, found {type(text).__name__}")
        return self._vocabulary.encode(text, bos, eos)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of some ids: U+FFFD for broken bytes, nothing for special tokens (ids 0 to 2 of a tokenizer.bin).

        Where encode puts a space before a text, it is dropped after BOS, so decode(encode(text)) == text; with bos=False it
        stays. (Of a tokenizer that adds no BOS it is dropped at the beginning.) ValueError: an id outside the vocabulary.
        """
        stream = self.text_stream()
        return "".join(map(stream.feed, ids)) + stream.flush()

    def piece(self, token: SupportsIndex) -> bytes:
        """The bytes of one token, which may be part of a character: b"" for special ones, b"\\n" for <0x0A>."""
        return self._vocabulary.piece(token)

    def text_stream(self, previous: SupportsIndex | None = None, errors: str = "replace") -> TextStream:
        """A decoder for one token at a time. `previous` is the token before the first, if there is one.

        `errors` says what becomes of bytes that are no UTF-8: "replace" (U+FFFD) or "ignore" (nothing).
        """
        return TextStream(self._vocabulary, self._starts, previous, errors)


class TextStream:
    """Turns tokens into text as they come; an unfinished character waits for its rest."""

    __slots__ = ("_after_bos", "_errors", "_piece", "_rest", "_starts")

    def __init__(
        self, vocabulary: Vocabulary, starts: frozenset[int | None], previous: SupportsIndex | None, errors: str
    ) -> None:
        if errors not in ("replace", "ignore"):
            raise ValueError(f'errors: expected "replace" or "ignore", found {errors!r}')
        if previous is not None:
            vocabulary.piece(previous)  # checks it
        self._piece = vocabulary.piece
        self._errors = errors
        self._starts = starts
        self._after_bos = previous in starts
        self._rest = b""  # the first bytes of an unfinished character

    def feed(self, token: SupportsIndex) -> str:
        """The text this token completes, often "" for a byte.

        ValueError: the token is outside the vocabulary; the stream is unchanged.
        """
        data = self._rest + self._piece(token, self._after_bos)
        self._after_bos = token in self._starts
        text, used = codecs.utf_8_decode(data, self._errors, False)
        self._rest = data[used:]
        return text

    def flush(self) -> str:
        """The end of the text: what an unfinished character comes to ("replace": U+FFFD)."""
        text, _ = codecs.utf_8_decode(self._rest, self._errors, True)
        self._rest = b""
        return text
