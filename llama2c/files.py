"""Small files, read whole: settings and tokenizers. Whatever is wrong with one is an exception of one line that names it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 31  # the vocabulary of a tokenizer.bin counts them in 32 bits, and no other is nearly as large


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file. Kind and size are asked first: opening a FIFO would wait for its writer.

    ValueError: it is of another kind, or no path at all; OSError: it cannot be read; MemoryError.
    """
    name, size = os.fspath(path), file_size(path)
    if size >= MOST_BYTES:
        raise ValueError(f"{name}: expected a file of less than 2 GiB, found {size} bytes")
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise type(error)(f"{name}: expected a readable file, found: {error.strerror}") from None
    except MemoryError:
        raise MemoryError(f"{name}: expected memory for {size} bytes, found too little") from None


def file_size(path: str | os.PathLike[str]) -> int:
    """Bytes of a regular file. ValueError: it is of another kind, or no path at all; OSError: nothing is known of it."""
    name = os.fspath(path)
    try:
        status = os.stat(path)
    except OSError as error:
        raise type(error)(f"{name}: expected a readable file, found: {error.strerror}") from None
    except ValueError as error:  # a path that no system takes: one with NUL
        raise ValueError(f"{name}: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "directory" if stat.S_ISDIR(status.st_mode) else "special file"
        raise ValueError(f"{name}: expected a regular file, found a {kind}")
    return status.st_size


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError: there is none in it; otherwise as read_file."""
    raw = read_file(path)
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, found: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
