"""OUT: a file that grows by whole lines, so that a run which was ended in any way goes on with the next one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
import sys
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import FileError, ModelError, RequestError, file_error, not_found
from .ids import Ids, Words, keys_of, literal_of
from .lines import CHUNK, MOST_BYTES, read_blocks
from .plan import MARK, Plan, not_ours, read_plan

if TYPE_CHECKING:
    from typing_extensions import Self

# A line with an answer. Groups 1 and 2 are the id and the hash of the request if it is ours, 4 and 3 if it is OpenAI's; group 5
# is there if it has no error. An editor may have put \r at the end.
OWN = rb'"id":("[^"\\\n]*(?:\\.[^"\\\n]*)*"|-?\d+),"request":"([0-9a-f]{16})"'
OPENAI = rb'"id":"batch_req_([0-9a-f]{16})","custom_id":("[^"\\\n]*(?:\\.[^"\\\n]*)*")'
GOOD_END = b',"error":null}'
ANSWER = re.compile(rb"^\{(?:%b|%b)(?=,)(?:.*(%b)|.*\})\r?$" % (OWN, OPENAI, re.escape(GOOD_END)), re.MULTILINE)


class Output:
    """OUT for one run: its plan, the ids of what is done, and more lines at its end.

    plan      the one in the file, or None: the file was empty, and has no line yet
    done      the ids of its lines, with the hashes of their requests
    n_wrong   how many of these lines have an error
    repaired  bytes of a last line without an end, which were cut off

    The file is locked until close(). A device or a pipe has none of this: it is written only.
    """

    def __init__(self, path: str, restart: bool = False) -> None:
        """OSError: it cannot be written, or another run has it. RequestError: it is another file, or damaged."""
        self.path = path
        self.plan: Plan | None = None
        self.done = Ids()
        self.n_wrong = self.repaired = 0
        self._fd, self._resumable = _open(path)
        self._end = 0
        try:
            if self._resumable:
                _lock(self._fd, path)
                self._read(restart)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def begin(self, plan: Plan) -> Plan:
        """The plan to follow: the one in the file, or `plan`, which a new file gets. Reads what is done.

        RequestError: the file was made with another plan, or has a line that is none of ours.
        """
        if self.plan is None:
            self.write(plan.header())
            return plan
        plan.check_same(self.plan, self.path)
        for block in recorded(self._fd, self.path, self._end):
            self.done.add_many(block.keys, block.requests)
            self.n_wrong += block.n_wrong
        return self.plan

    def write(self, line: bytes) -> None:
        """Add a line at the end. OSError: it cannot be; the file ends with the line before it."""
        try:
            rest = line
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            self._end += len(line)
        except OSError as error:
            if self._resumable:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self._end)
            raise OSError(error.errno, error.strerror, self.path) from None

    def sync(self) -> None:
        """Wait until the disk has everything."""
        if self._resumable:
            os.fsync(self._fd)

    def _read(self, restart: bool) -> None:
        """Find the plan and the end of the last whole line; cut off what comes after it."""
        size = os.fstat(self._fd).st_size
        start = os.pread(self._fd, MOST_BYTES, 0)
        header, newline, _ = start.partition(b"\n")
        if start[: len(MARK)] != MARK[: len(start)] or (not newline and size >= MOST_BYTES):
            raise not_ours(self.path)
        if newline and not restart:
            self.plan = read_plan(header, self.path)
            self._end = last_line_end(self._fd, size)
        self.repaired = 0 if restart else size - self._end
        os.ftruncate(self._fd, self._end)
        os.lseek(self._fd, self._end, os.SEEK_SET)


def _open(path: str) -> tuple[int, bool]:
    """A file descriptor, and whether it is a regular file."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise not_found(path, f"expected a file in a folder that exists, found no folder {folder}")
    try:
        special = os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode)
        return os.open(path, os.O_WRONLY if special else os.O_RDWR | os.O_CREAT, 0o666), not special
    except OSError as error:
        raise file_error(error, path, "a place to write to") from None
    except ValueError as error:  # NUL in the path
        raise ModelError(f"{path!r}: {error}") from None


def _lock(fd: int, path: str) -> None:
    """OSError: another run has the file. Warns (RuntimeWarning) where files cannot be locked, as in some shared folders."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise FileError(error.errno, "another run is writing this file now", path) from None
        message = f"{path}: cannot be locked ({error.strerror}): make sure that only one run writes it"
        warnings.warn(message, RuntimeWarning, stacklevel=4)


def last_line_end(fd: int, size: int) -> int:
    """Bytes up to the end of the last whole line."""
    end = size
    while end > 0:
        start = max(0, end - CHUNK)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


class Answers(NamedTuple):
    """Lines of OUT.

    start     of the first, in bytes of OUT
    data      the lines with their ends
    keys      of their ids, 16 bytes each
    requests  the hashes of their requests
    n_wrong   how many of the requests were wrong
    """

    start: int
    data: bytes
    keys: bytes
    requests: Words
    n_wrong: int

    def starts(self) -> Words:
        """Where each line begins."""
        ends = np.flatnonzero(np.frombuffer(self.data, np.uint8) == ord("\n"))
        return (self.start + np.concatenate([[0], ends + 1])[:-1]).astype(np.uint64)


def recorded(fd: int, name: str, size: int) -> Iterator[Answers]:
    """The answers in the first `size` bytes of OUT. RequestError: a line is none of ours."""
    place = 0

    def read(n: int) -> bytes:
        nonlocal place
        data = os.pread(fd, min(n, size - place), place)
        place += len(data)
        return data

    for block in read_blocks(read, sys.maxsize):
        number, data = block.number, block.data
        if number == 0:
            number, data = 1, data.partition(b"\n")[2]
        found = ANSWER.findall(data)
        if len(found) != data.count(b"\n"):
            number += [ANSWER.fullmatch(line) is not None for line in data.split(b"\n")].index(False) + 1
            raise RequestError(f"{name}: line {number}: expected an answer of a batch, found something else")
        ids = [own or openai for own, _, _, openai, _ in found]
        keys = keys_of([id if b"\\" not in id else literal_of(_read_id(id)) for id in ids])
        requests = b"".join([own or openai for _, own, openai, _, _ in found])
        n_wrong = sum([not good for *_, good in found])
        yield Answers(block.end - len(data), data, keys, _numbers(requests), n_wrong)


def parse_answer(line: bytes) -> tuple[str | int, int] | None:
    """The id of a line of OUT and the hash of its request; None: it is none of ours."""
    found = ANSWER.fullmatch(line)
    return None if found is None else (_read_id(found[1] or found[4]), int(found[2] or found[3], 16))


def _numbers(digits: bytes) -> Words:
    """Numbers of 16 hex digits each, after each other."""
    return np.frombuffer(bytes.fromhex(digits.decode()), ">u8").astype(np.uint64)


def _read_id(literal: bytes) -> str | int:
    """An id as JSON has it: b'"a"' -> "a", b"5" -> 5."""
    id: str | int = json.loads(literal)
    return id
