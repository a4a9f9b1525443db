"""Programs in a pseudo-terminal, for tests of what a person at a keyboard meets."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path

SECONDS = 60  # what hangs is ended
# Of terminals: colours, the cursor, titles.
COMMANDS = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[=>()][0B]?|\r|\x1b\][^\x07]*\x07")


class PseudoTerminal:
    """`python -m llama2c ARGUMENTS` with a terminal of its own. `text`: what it has written so far, without commands."""

    def __init__(self, *arguments: str | Path, columns: int = 80, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "llama2c", *map(os.fspath, arguments)]
        self.pid, self.fd = pty.fork()
        if not self.pid:
            try:
                os.execve(command[0], command, {**os.environ, **(environment or {})})
            finally:
                os._exit(127)
        self.written = b""
        self.seen = 0  # how much of the text the calls of wait_for have passed
        self.resize(columns)

    @property
    def text(self) -> str:
        return COMMANDS.sub(b"", self.written).decode("utf-8", "replace")

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def type(self, keys: str | bytes) -> None:
        """All keys, also if the terminal takes only a few at a time."""
        data = keys.encode() if isinstance(keys, str) else keys
        while data:
            readable, writable, _ = select.select([self.fd], [self.fd], [], SECONDS)
            assert readable or writable, self.text
            if writable:
                data = data[os.write(self.fd, data[:512]) :]
            self._read(0)

    def paste(self, text: str) -> None:
        """As a terminal does: with marks if the program has asked for them."""
        self._read(0)
        marked = self.written.rfind(b"\x1b[?2004h") > self.written.rfind(b"\x1b[?2004l")
        self.type((f"\x1b[200~{text}\x1b[201~" if marked else text).replace("\n", "\r"))

    def wait_for(self, text: str) -> str:
        """Read until `text` is written, after the text of the last call. Returns what comes before it."""
        deadline = time.monotonic() + SECONDS
        while (found := self.text.find(text, self.seen)) < 0:
            assert time.monotonic() < deadline and self._read(SECONDS), f"{text!r} was not written:\n{self.text[self.seen :]}"
        before = self.text[self.seen : found]
        self.seen = found + len(text)
        return before

    def interrupt(self) -> None:
        self.type(b"\x03")

    def end(self) -> int:
        """Read to the end; the exit code."""
        while self._read(SECONDS):
            pass
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def __enter__(self) -> PseudoTerminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)

    def _read(self, seconds: float) -> bool:
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.fd, 1 << 16)
        except OSError as error:  # the program has ended
            if error.errno != errno.EIO:
                raise
            data = b""
        self.written += data
        return bool(data)
