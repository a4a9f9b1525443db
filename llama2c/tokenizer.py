"""Text to token ids and back, with the vocabulary of a tokenizer.bin, as llama2.c does it.

This half reads the file and knows str; parsing and merging are compiled (_bpe). Nothing here knows a model.
"""

from __future__ import annotations

import codecs
import operator
import os
import stat
from collections.abc import Iterable
from typing import SupportsIndex

from llama2c._bpe import Vocabulary

UNK = 0
BOS = 1
EOS = 2
MOST_BYTES = 1 << 31  # of a file: the vocabulary counts them in 32 bits


class Tokenizer:
    """A vocabulary with its encoder and decoder. It never changes: any number of threads may share one.

    Byte-pair encoding starts from one token per code point (its UTF-8 bytes where there is none) and merges
    the neighbours whose joined spelling is the token with the highest score, the leftmost among equals.
    Where a vocabulary spells two tokens alike, text becomes the one with the lower id.
    """

    __slots__ = ("_vocabulary", "bos_id", "eos_id", "vocab_size")

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.vocab_size = vocabulary.size
        self.bos_id = BOS
        self.eos_id = EOS

    @classmethod
    def open(cls, path: str | os.PathLike[str], vocab_size: int | None = None) -> Tokenizer:
        """Read a tokenizer.bin of exactly vocab_size tokens (None: all up to the end of the file).

        ValueError: the file is none, or of another size; OSError: it cannot be read.
        """
        if vocab_size is not None and operator.index(vocab_size) < 1:
            raise ValueError(f"vocab_size: expected a positive int, found {vocab_size}")
        data = _read_file(path)
        try:
            return cls(Vocabulary(data, vocab_size))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None
        except MemoryError:
            raise MemoryError(f"{os.fspath(path)}: expected memory for its tokens, found too little") from None

    def encode(self, text: str | bytes, bos: bool = True, eos: bool = False) -> list[int]:
        """The ids of a text. bytes are taken as they are, valid UTF-8 or not; NUL is a byte like any other.

        A text that is not empty gets a leading space. ValueError: a lone surrogate, which has no UTF-8.
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
        """The text of some ids: U+FFFD for broken bytes, nothing for ids 0 to 2.

        After BOS one leading space is dropped, so decode(encode(text)) == text; with bos=False it stays.
        ValueError: an id outside the vocabulary.
        """
        stream = self.text_stream()
        return "".join(map(stream.feed, ids)) + stream.flush()

    def piece(self, token: SupportsIndex) -> bytes:
        """The bytes of one token, which may be part of a character: b"" for ids 0 to 2, b"\\n" for <0x0A>."""
        return self._vocabulary.piece(token)

    def text_stream(self, previous: SupportsIndex | None = None, errors: str = "replace") -> TextStream:
        """A decoder for one token at a time. `previous` is the token before the first, if there is one.

        `errors` says what becomes of bytes that are no UTF-8: "replace" (U+FFFD) or "ignore" (nothing).
        """
        return TextStream(self._vocabulary, previous, errors)


class TextStream:
    """Turns tokens into text as they come; an unfinished character waits for its rest."""

    __slots__ = ("_after_bos", "_errors", "_piece", "_rest")

    def __init__(self, vocabulary: Vocabulary, previous: SupportsIndex | None, errors: str) -> None:
        if errors not in ("replace", "ignore"):
            raise ValueError(f'errors: expected "replace" or "ignore", found {errors!r}')
        if previous is not None:
            vocabulary.piece(previous)  # checks it
        self._piece = vocabulary.piece
        self._errors = errors
        self._after_bos = previous == BOS
        self._rest = b""  # the first bytes of an unfinished character

    def feed(self, token: SupportsIndex) -> str:
        """The text this token completes, often "" for a byte.

        ValueError: the token is outside the vocabulary; the stream is unchanged.
        """
        data = self._rest + self._piece(token, self._after_bos)
        self._after_bos = token == BOS
        text, used = codecs.utf_8_decode(data, self._errors, False)
        self._rest = data[used:]
        return text

    def flush(self) -> str:
        """The end of the text: what an unfinished character comes to ("replace": U+FFFD)."""
        text, _ = codecs.utf_8_decode(self._rest, self._errors, True)
        self._rest = b""
        return text


def _read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file. Kind and size are asked first: opening a FIFO would wait for its writer."""
    name = os.fspath(path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "directory" if stat.S_ISDIR(status.st_mode) else "special file"
            raise ValueError(f"expected a regular file, found a {kind}")
        if status.st_size >= MOST_BYTES:
            raise ValueError(f"expected a tokenizer of less than 2 GiB, found {status.st_size} bytes")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise type(error)(f"{name}: expected a readable file, found: {error.strerror}") from None
    except ValueError as error:  # those above, and a path that no system takes: one with NUL
        raise ValueError(f"{name}: {error}") from None
    except MemoryError:
        raise MemoryError(f"{name}: expected memory for {status.st_size} bytes, found too little") from None
