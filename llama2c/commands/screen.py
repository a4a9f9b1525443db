"""The terminal that a chat runs in: its width, dim text, what it does with keys while a reply is written, and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from .terminal import put
from .wrapping import printable

try:
    import termios
except ImportError:  # not a Unix: keys that are pressed during a reply show up in it
    termios = None  # type: ignore[assignment]

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
PASTE_MARKS_ON, PASTE_MARKS_OFF = "\x1b[?2004h", "\x1b[?2004l"  # "bracketed paste": the terminal marks what is pasted


def has_terminal() -> bool:
    """Whether a person sits at both ends: stdin and stdout are a terminal."""
    return all(stream is not None and not stream.closed and stream.isatty() for stream in (sys.stdin, sys.stdout))


def is_dumb() -> bool:
    """Whether the terminal obeys no commands, such as those that move the cursor."""
    return os.environ.get("TERM", "") in ("", "dumb", "unknown")


def line_width() -> int:
    """The columns that a line may have now: one fewer than the terminal, which breaks a full line in its own way."""
    try:
        columns = os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return max((columns or 80) - 1, 1)


def note(line: str) -> None:
    """Writes a line about the chat, dim where the terminal can, so that it is not taken for a reply."""
    plain = is_dumb() or bool(os.environ.get("NO_COLOR"))
    put(f"{printable(line)}\n" if plain else f"{DIM}{printable(line)}{PLAIN}\n")


# ---------------------------------------------------------------------------
# keys


@contextlib.contextmanager
def quiet_keys(mark_pastes: bool) -> Iterator[None]:
    """Keys are not shown, and wait for the next prompt, however many.

    Otherwise the terminal would write them into the reply, and would keep only 4,095 characters of a line.
    mark_pastes: whether a paste is to have marks, because who reads it next knows them
    """
    if termios is None or not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = termios.tcgetattr(sys.stdin)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    try:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
        if mark_pastes:
            put(PASTE_MARKS_ON)
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        if mark_pastes:
            put(PASTE_MARKS_OFF)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt here, once."""
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C does nothing, except within interruptible(): a second one must not end what the first one has begun."""
    before = signal.signal(signal.SIGINT, _ignore)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _ignore)
    raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None:
    pass
