"""Stop strings: they end a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import RequestError


class StopStrings:
    """Cuts a text that arrives in pieces before the first stop string, and never gives out a part of one.

    StopStrings("END"): feed("a E") -> "a ", feed("Nx") -> "ENx", feed("yENDz") -> "y" and .found is True.
    The first stop string is the one that is complete first (of two, the longer), as if the text came letter by letter: it
    does not matter how the text was cut into pieces. RequestError for an empty stop string.
    """

    __slots__ = ("_held", "found", "strings")

    def __init__(self, stop: str | Sequence[str]) -> None:
        one = isinstance(stop, (str, bytes)) or not isinstance(stop, Iterable)
        self.strings: tuple[Any, ...] = (stop,) if one else tuple(stop)
        for string in self.strings:
            if not isinstance(string, str):
                raise TypeError(f"stop: expected a str or a sequence of str, found {type(string).__name__}")
            if not string:
                raise RequestError("stop: expected a string of at least one character, found an empty one", "stop")
        self.found = False
        self._held = ""

    def feed(self, text: str) -> str:
        """The text that is now known to be before any stop string."""
        text = self._held + text
        starts = [(text.find(string), len(string)) for string in self.strings]
        found = [(start + length, start) for start, length in starts if start >= 0]
        if found:
            self.found = True
            return text[: min(found)[1]]
        n_sure = len(text) - max((overlap(text, string) for string in self.strings), default=0)
        self._held = text[n_sure:]
        return text[:n_sure]

    def flush(self) -> str:
        """The text held back. At the end of the text it can no longer become a stop string."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, string: str) -> int:
    """The number of characters at the end of `text` with which `string` begins: ("a EN", "END") -> 2."""
    for n in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:n]):
            return n
    return 0
