"""Programs in a pseudo-terminal, for tests of what a person at a keyboard meets."""

from __future__ import annotations

import codecs
import errno
import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path

SECONDS = 60  # what hangs is ended
# Makes stdin the terminal of its session, whose Ctrl-C is for it, and becomes the program after it. A fork in this process with
# its threads would be a warning of Python.
IN_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
# Of terminals: colours, the cursor, titles; the last one may not have arrived as a whole.
COMMANDS = re.compile(rb"\x1b(\[[0-?]*[ -/]*)?$|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[=>()][0B]?|\r|\x1b\][^\x07]*\x07")


class PseudoTerminal:
    """`python -m llama2c ARGUMENTS` with a terminal of its own. `text`: what it has written so far, without commands."""

    def __init__(self, *arguments: str | Path, columns: int = 80, environment: Mapping[str, str] | None = None) -> None:
        self.fd, slave = os.openpty()
        self.resize(columns)
        self.process = subprocess.Popen(
            [sys.executable, "-SEc", IN_TERMINAL, sys.executable, "-m", "llama2c", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        os.close(slave)
        self.written = b""
        self.seen = 0  # how much of the text the calls of wait_for have passed

    @property
    def text(self) -> str:
        return codecs.utf_8_decode(COMMANDS.sub(b"", self.written), "replace", False)[0]

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

    def interrupt_until(self, text: str) -> None:
        """Ctrl-C at a prompt. It is pressed again where the signal came after the prompt and before Python's wait for a key."""
        while text not in self.text[self.seen :]:
            self.interrupt()
            while text not in self.text[self.seen :] and self._read(1):
                pass
        self.wait_for(text)

    def end(self) -> int:
        """Read to the end; the exit code."""
        while self._read(SECONDS):
            pass
        return self.process.wait(SECONDS)

    def __enter__(self) -> PseudoTerminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
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
