"""What the verbs of the command line share: output, messages, tables, progress bars, and the parser of their flags."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


class UsageError(Exception):
    """A command line that cannot be understood. The message is one line."""


class Parser(argparse.ArgumentParser):
    """An argparse parser that keeps the line breaks of `epilog`, and raises UsageError where argparse would exit."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


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
# progress bars, drawn by tqdm if it is installed, and only if stderr is a terminal


def find_tqdm() -> Any:
    """The class tqdm, or None if no bar is to be drawn."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm


def progress(items: Iterable[T], total: int, unit: str) -> Iterable[T]:
    """The same items, with a bar on stderr that counts them as they are taken."""
    tqdm = find_tqdm()
    if tqdm is None:
        return items
    bar: Iterable[T] = tqdm(items, total=total, unit=unit, leave=False, dynamic_ncols=True)
    return bar


@contextlib.contextmanager
def byte_bar() -> Iterator[Callable[[int, int | None, str], None] | None]:
    """A callback progress(done, total, name) that draws a bar of bytes for one file after the other; None: no bar is drawn."""
    tqdm = find_tqdm()
    if tqdm is None:
        yield None
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
