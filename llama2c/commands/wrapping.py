"""Wraps text at the width of a terminal while it arrives, between words. It knows no terminal: text in, text out.

Widths are those of the characters' East Asian width. Where terminals disagree (some emoji), the larger width is used, so that a
line is never longer than the terminal.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

TAB = 8  # columns from one tab stop to the next
ZERO_WIDTH = frozenset(("Mn", "Me", "Cf"))  # categories: marks on the character before, and formats such as the joiner
OPENING = frozenset(("Ps", "Pi"))
CLOSING = frozenset(("Pe", "Pf", "Po"))
JOINER = "\u200d"  # makes one emoji of two
EMOJI_STYLE = "\ufe0f"  # draws the character before it as an emoji, two columns wide


def printable(text: str) -> str:
    """The text without control characters other than newline and tab, so that no text can control the terminal.

    "a\\x1b[2Jb" -> "a[2Jb". Drops C0, DEL and C1, in which U+009B begins a command as ESC [ does.
    """
    if text.isprintable():
        return text
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def char_width(c: str) -> int:
    """Columns of one character: "a" -> 1, "漢" -> 2, a combining accent -> 0."""
    if c < "\u0300":
        return 1
    if unicodedata.category(c) in ZERO_WIDTH:
        return 0
    # Python's tables may be older than an emoji, so the blocks of emoji count as a whole.
    return 2 if unicodedata.east_asian_width(c) in "WF" or "\U0001f300" <= c <= "\U0001faff" else 1


def may_break(before: str, after: str) -> bool:
    """Whether a line may end between two characters that are not spaces: next to a wide one, as in Chinese text.

    Not after an opening bracket, not before closing punctuation, and not within an emoji of several characters.
    """
    if char_width(before) != 2 and char_width(after) != 2:
        return False
    if char_width(after) == 0 or JOINER in (before, after) or "\U0001f3fb" <= after <= "\U0001f3ff":  # a tone of skin
        return False
    return unicodedata.category(before) not in OPENING and unicodedata.category(after) not in CLOSING


class WordWrap:
    """Breaks lines between words, one call of feed() after another. Holds a word back until it is complete.

    width  called for each word: the columns of a line now, so that a new size of the window counts at once

    With width 6, feed("one two") -> "one", then feed(" three\\n") -> "\\ntwo\\nthree\\n". The spaces where a line is broken are
    dropped; a word wider than a line is broken anywhere.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._limit = 0  # the width at the last word
        self._column = 0
        self._spaces = ""
        self._word = ""
        self._word_width = 0

    def feed(self, text: str) -> str:
        """What can be written now."""
        return "".join([self._take(c) for c in printable(text)])

    def flush(self) -> str:
        """The word that was held back, at the end of the text."""
        return self._place()

    @property
    def column(self) -> int:
        """Where the next character goes; 0: at the beginning of a line."""
        return self._column

    def _take(self, c: str) -> str:
        if c == "\n":
            placed = self._place()
            self._column, self._spaces = 0, ""
            return placed + "\n"
        if c in " \t":
            placed = self._place()
            at = self._column + len(self._spaces)
            self._spaces += " " * (TAB - at % TAB) if c == "\t" else c
            return placed
        width = char_width(c)
        if c == EMOJI_STYLE and self._word and char_width(self._word[-1]) == 1:
            width = 1
        placed = ""
        if self._word and (may_break(self._word[-1], c) or self._word_width + width > self._width()):
            placed = self._place()
        self._word += c
        self._word_width += width
        return placed

    def _place(self) -> str:
        """The word that is complete, after a space or on a new line."""
        if not self._word:
            return ""
        limit = self._width()
        if limit < self._limit:  # the terminal has broken the line itself
            self._column %= limit
        self._limit = limit
        start = self._spaces
        if self._column + len(start) + self._word_width > limit:
            start = "\n" if self._column else ""
            self._column = 0
        else:
            self._column += len(start)
        placed = start + self._word
        self._column += self._word_width
        self._spaces, self._word, self._word_width = "", "", 0
        return placed
