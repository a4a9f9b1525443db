"""What the verbs of the command line share: output, messages, tables and progress."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, TypeVar

from ..errors import RequestError

T = TypeVar("T")
EVERY = 10.0  # seconds between two lines about progress


class UsageError(Exception):
    """A command line that cannot be understood. The message is one line."""


def hint(word: str, flags: Collection[str]) -> str:
    """Where to find the right flag: "--temp" -> "did you mean --temperature? --help lists the flags"."""
    import difflib  # most command lines have no such error

    word = word.partition("=")[0]
    longer = [flag for flag in flags if flag.startswith(word)] if word.startswith("--") and len(word) > 2 else []
    near = longer or difflib.get_close_matches(word, flags if word.strip("-") else (), n=1)
    return f"did you mean {near[0]}? --help lists the flags" if near else "--help lists the flags"


@contextlib.contextmanager
def named_as(flags: Mapping[str, str]) -> Iterator[None]:
    """Calls an argument that the API refuses by its flag: {"top_k": "--top-k"} -> "--top-k: expected an integer ..."."""
    try:
        yield
    except RequestError as error:
        flag = flags.get(error.param or "")
        if flag is None:
            raise
        raise RequestError(flag + str(error).removeprefix(error.param or ""), error.param) from None


def utf8(word: str | bytes, name: str = "") -> str:
    """A word of the command line, or bytes of stdin, read as UTF-8 in any locale. UsageError: it is not UTF-8."""
    data = os.fsencode(word)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        found = f"expected valid UTF-8, found byte 0x{data[error.start]:02X} at index {error.start}"
        raise UsageError(f"{name}: {found}" if name else found) from None


# ---------------------------------------------------------------------------
# lines and tables


def put(text: str) -> None:
    """Writes text to stdout at once, as UTF-8 in any locale. Bytes that os.fsdecode could not decode come out unchanged."""
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()


def say(line: str, name: str = "llama2c: ") -> None:
    """Writes one line to stderr. Does nothing if stderr is closed, or if nobody reads it any more."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(name + line.replace("\n", " "), file=sys.stderr, flush=True)


def describe_error(error: Exception) -> str:
    """An exception as the text of one message: "model.bin: Permission denied".

    An OSError of the system begins with its file name. Without one it comes from writing ("output"), because we name what we
    read. A MemoryError without a text becomes "not enough memory". Other exceptions, ours too, already say everything.
    """
    if isinstance(error, OSError) and error.strerror:
        name = "output" if error.filename is None else error.filename
        return f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {error.strerror}"
    return str(error) or ("not enough memory" if isinstance(error, MemoryError) else type(error).__name__)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the header first, as a Markdown table with aligned columns: text on the left, then numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    header, *others = ([f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows)
    rule = ["-" * width for width in widths[:1]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *others))


# ---------------------------------------------------------------------------
# progress: bars of tqdm if stderr is a terminal and it is installed, else a line now and then


def find_tqdm() -> Any:
    """The class tqdm, or None if no bar is to be drawn."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm


class Lines:
    """Says on stderr how far the work is, at most once in EVERY seconds, and not before the first EVERY have passed."""

    def __init__(self) -> None:
        self._next = monotonic() + EVERY

    def __call__(self, line: str) -> None:
        now = monotonic()
        if now >= self._next:
            self._next = now + EVERY
            say(line)


def progress(items: Iterable[T], total: int, unit: str) -> Iterable[T]:
    """The same items, with a bar or lines on stderr that count them as they are taken."""
    tqdm = find_tqdm()
    if tqdm is None:
        return with_lines(items, total, unit)
    bar: Iterable[T] = tqdm(items, total=total, unit=unit, leave=False, dynamic_ncols=True)
    return bar


def with_lines(items: Iterable[T], total: int, unit: str) -> Iterator[T]:
    lines = Lines()
    for done, item in enumerate(items):
        lines(f"{unit} {done} of {total}")
        yield item


@contextlib.contextmanager
def byte_bar() -> Iterator[Callable[[int, int | None, str], None]]:
    """A callback progress(done, total, name), in bytes, that shows a bar or lines for one file after the other."""
    tqdm = find_tqdm()
    if tqdm is None:
        lines = Lines()
        yield lambda done, total, name: lines(f"{name}: {done / 1e6:.1f}{f' of {total / 1e6:.1f}' if total else ''} MB")
        return
    with contextlib.ExitStack() as last:  # the bar on the screen
        bar, drawn = None, ""

        def show(done: int, total: int | None, name: str) -> None:
            nonlocal bar, drawn
            if bar is None or name != drawn:
                last.close()
                bar = tqdm(total=total, desc=name, unit="B", unit_scale=True, leave=False, dynamic_ncols=True)
                last.callback(bar.close)
                drawn = name
            bar.update(done - bar.n)

        yield show
