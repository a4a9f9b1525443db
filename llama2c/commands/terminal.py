"""What the verbs of the command line share: lines to stderr, tables, a progress bar, and wrong command lines in one line."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn, TypeVar

T = TypeVar("T")


class UsageError(Exception):
    """A command line that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UsageError where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def say(line: str, name: str = "llama2c: ") -> None:
    """One line to stderr. Without a stderr, or with nobody listening there, no one misses it."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(name + line.replace("\n", " "), file=sys.stderr, flush=True)


def progress(items: Iterable[T], total: int, unit: str) -> Iterable[T]:
    """The same items, with a bar on stderr while they are taken: on a terminal, and if tqdm is installed."""
    if sys.stderr is None or not sys.stderr.isatty():
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    bar: Iterable[T] = tqdm(items, total=total, unit=unit, leave=False, dynamic_ncols=True)
    return bar


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the header first, as a Markdown table that can be read as it is; all columns but the first are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    header, *others = ([f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows)
    rule = ["-" * width for width in widths[:1]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *others))
