"""Small files, read whole: settings and tokenizers. Everything that is no regular file is refused before it is opened."""

from __future__ import annotations

import os
import stat


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file. The kind is asked first: opening a FIFO would wait for its writer.

    ValueError: it is of another kind; OSError: it cannot be read; one line that names it.
    """
    try:
        check_regular(path)
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise type(error)(f"{os.fspath(path)}: expected a readable file, found: {error.strerror}") from None


def check_regular(path: str | os.PathLike[str]) -> None:
    """ValueError for what is no regular file, OSError where nothing is known of it."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        kind = "directory" if os.path.isdir(path) else "special file"
        raise ValueError(f"{os.fspath(path)}: expected a regular file, found a {kind}")
