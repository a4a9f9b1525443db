"""The bytes of a model file: mapped, so that processes share one copy, or read into memory."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable
from io import FileIO
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError

Content: TypeAlias = NDArray[np.uint8]  # of a whole file, read-only
Load: TypeAlias = Callable[[FileIO, int], Content]  # map_content or read_content


def open_file(path: str) -> FileIO:
    """A regular file, opened for reading without a buffer. Raises ModelError if it is of another kind, OSError, ValueError."""
    file = open(path, "rb", buffering=0, opener=_open_without_waiting)  # noqa: SIM115 (the caller closes it)
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):  # `open` has refused directories
        file.close()
        kind = "FIFO" if stat.S_ISFIFO(mode) else "device"
        raise ModelError(f"expected a regular file, found a {kind}")
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    # Opening a FIFO would wait for its writer. Opening a terminal could make it the controlling one. `open` sets O_CLOEXEC.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def map_content(file: FileIO, size: int) -> Content:
    """The first `size` bytes of a file, mapped. ModelError: it has fewer."""
    if size == 0:  # mmap refuses it
        return np.empty(0, np.uint8)
    try:
        mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except ValueError:  # mmap checks the size again
        raise ModelError(f"expected {size} bytes, found fewer: the file shrank while it was opened") from None
    # frombuffer exports the mapping's buffer, so that the mapping cannot be closed while arrays use it.
    return np.frombuffer(mapping, np.uint8)


def read_content(file: FileIO, size: int) -> Content:
    """The first `size` bytes of a file, read into memory. ModelError: it has fewer; MemoryError."""
    content = np.empty(size, np.uint8)  # unlike a bytearray, not filled with zeros first
    file.seek(0)
    done = 0
    while done < size:  # one read returns at most 2 GB
        count = file.readinto(content[done:].data)
        if not count:
            raise ModelError(f"expected {size} bytes, found {done}: the file shrank while it was read")
        done += count
    content.flags.writeable = False
    return content
