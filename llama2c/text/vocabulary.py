"""What a Tokenizer is made of, whatever file it comes from: a vocabulary, its special tokens and its chat template."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import NamedTuple, Protocol, SupportsIndex

UNK = 0  # in a tokenizer.bin
BOS = 1
EOS = 2


class Vocabulary(Protocol):
    """Tokens, each with its bytes, which are the same wherever it appears, except for one space after BOS."""

    @property
    def size(self) -> int:
        """The number of ids, with or without a token."""

    def encode(self, text: bytes, bos: bool, eos: bool, /) -> list[int]:
        """The ids of a text. ValueError: bytes that this vocabulary cannot take."""

    def piece(self, token: SupportsIndex, after_bos: bool = False, /) -> bytes:
        """The bytes of a token, b"" of a special one. ValueError, TypeError: there is no such token."""

    def definition(self) -> bytes:
        """What decides how it encodes and decodes, as bytes: vocabularies that have the same do the same."""


def as_index(token: SupportsIndex) -> int:
    """A token id as an int. TypeError: it is not an integer."""
    try:
        return operator.index(token)
    except TypeError:
        raise TypeError(f"token: expected an int, found {type(token).__name__}") from None


class ChatTemplate(NamedTuple):
    """A template of Jinja2 that turns messages into a prompt; chat_template.py renders it."""

    source: str
    path: str  # of the file that contains it
    special_tokens: Mapping[str, str]  # what it may use besides the messages: {"bos_token": "<s>", ...}


class Special(NamedTuple):
    """The special tokens of a vocabulary. The defaults are those of every tokenizer.bin."""

    bos_id: int | None = BOS
    eos_id: int | None = EOS
    end_ids: frozenset[int] = frozenset((BOS, EOS))  # a text ends with any of them
    prefix: tuple[int, ...] = (BOS,)  # what encode puts before a text; nothing for some tokenizers
    chat_template: ChatTemplate | None = None  # None: the form of Llama 2
    no_template: str | None = None  # says where a chat template was looked for in vain; None: it was not looked for

    @property
    def starts(self) -> frozenset[int | None]:
        """The ids after which a text begins. None is one of them if a text begins without an id before it."""
        return frozenset((self.prefix[-1] if self.prefix else None, *({self.bos_id} - {None})))
