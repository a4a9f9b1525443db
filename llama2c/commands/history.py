"""What a user has typed in chats, kept in a file from one chat to the next: a JSON string on each line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO

from ..errors import file_error
from ..files import exists, read_file
from ..formats.writer import replacing

MOST = 1000  # entries that are kept


def state_folder() -> Path:
    """llama2c in XDG_STATE_HOME, else ~/.local/state/llama2c. OSError: there is no home folder either."""
    if place := os.environ.get("XDG_STATE_HOME"):
        return Path(place, "llama2c")
    try:
        return Path.home() / ".local" / "state" / "llama2c"
    except RuntimeError:
        raise OSError("XDG_STATE_HOME: not set, and there is no home folder") from None


class History:
    """The entries, oldest first. Several chats may add to one file at the same time.

    path     the file; None: nothing is kept
    problem  why nothing is kept, as one line; None: there is no problem. It is no reason to end a chat.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.entries: list[str] = []
        self.path = path
        self.problem: str | None = None

    @classmethod
    def open(cls) -> History:
        """The history of this user, with the entries of earlier chats. Lines that are no JSON strings are left out."""
        history = cls()
        try:
            history.path = state_folder() / "chat_history"
            history.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            history._read(history.path)
        except (OSError, ValueError) as error:
            history.path, history.problem = None, str(error)
        return history

    def add(self, text: str) -> None:
        """An entry, unless it is the last one again."""
        if self.entries[-1:] == [text]:
            return
        self.entries.append(text)
        path = self.path
        if path is None:
            return
        try:
            with _open_private(path, os.O_APPEND) as file:
                file.write(_line(text))
        except OSError as error:
            self.path, self.problem = None, str(file_error(error, path, "a place to write to"))

    def _read(self, path: Path) -> None:
        lines = read_file(path).splitlines() if exists(path) else []
        for line in lines:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, str):
                self.entries.append(entry)
        if len(lines) > 2 * MOST:  # now and then, so that the file does not grow for ever
            self.entries = self.entries[-MOST:]
            content = b"".join(map(_line, self.entries))
            with replacing(path, len(content)) as unfinished, _open_private(unfinished, os.O_TRUNC) as file:
                file.write(content)


def _line(text: str) -> bytes:
    return json.dumps(text).encode() + b"\n"  # ASCII: any text, and a newline only at the end


def _open_private(path: Path, how: int) -> BinaryIO:
    """A file that only its owner may read, opened for writing."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600), "wb", buffering=0)
