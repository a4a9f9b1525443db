"""The errors that a caller can tell apart, and the checks of arguments that raise them.

RequestError   the caller asked for something that cannot be done: a server answers 400
               RoomError: not with the memory that it may have here
ModelError     a file or a model that cannot be used
FileError      the system refused a file: an OSError with its errno and file name, and a message of one line

A wrong type is a TypeError. Nothing here knows what an argument or a file is for.
"""

from __future__ import annotations

import errno
import operator
import os
from collections.abc import Callable
from numbers import Real
from typing import Any


class RequestError(ValueError):
    """What was asked for cannot be done. `param` is the argument at fault, None if it is no single one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, str | None]]:
        return type(self), (str(self), self.param)


class RoomError(RequestError):
    """It needs more memory than it may have here. Where there is more, the same request can be done."""


class ModelError(ValueError):
    """A file or a model that cannot be used. The message begins with the name of the file, where there is one."""


# ---------------------------------------------------------------------------
# files


class FileError(OSError):
    """An OSError whose message is one line: "model.bin: expected a readable file, found: Permission denied".

    `errno` and `filename` are the system's; `strerror` is the line without the file name.
    """

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class MissingFileError(FileError, FileNotFoundError):
    """A FileError that is a FileNotFoundError."""


class ForbiddenFileError(FileError, PermissionError):
    """A FileError that is a PermissionError."""


class FolderError(FileError, IsADirectoryError):
    """A FileError that is an IsADirectoryError."""


class FilePathError(FileError, NotADirectoryError):
    """A FileError that is a NotADirectoryError."""


class ExistingFileError(FileError, FileExistsError):
    """A FileError that is a FileExistsError."""


_CLASSES: dict[type[OSError], type[FileError]] = {
    FileNotFoundError: MissingFileError,
    PermissionError: ForbiddenFileError,
    IsADirectoryError: FolderError,
    NotADirectoryError: FilePathError,
    FileExistsError: ExistingFileError,
}


def file_error(error: OSError, path: str | os.PathLike[str], expected: str = "a readable file") -> FileError:
    """`error` about the file `path` in one line: "PATH: expected EXPECTED, found: No such file or directory"."""
    if isinstance(error, FileError):  # says it already
        return error
    found = f"expected {expected}, found: {error.strerror or error}"
    return _CLASSES.get(type(error), FileError)(error.errno, found, os.fspath(path))


def not_found(path: str | os.PathLike[str], message: str) -> MissingFileError:
    """A FileNotFoundError for a file that we looked for: not_found("model", "expected a file, found none")."""
    return MissingFileError(errno.ENOENT, message, os.fspath(path))


# ---------------------------------------------------------------------------
# arguments


def check_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int in low..high (None: no end), e.g. ("top_k", np.int32(3), 0) -> 3.

    TypeError: it is not an integer, or is a bool; RequestError: it is out of bounds.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, found {type(value).__name__}")
    if number < low or (high is not None and number > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise RequestError(f"{name}: expected an integer {bounds}, found {number}", name)
    return number


def check_real(name: str, value: Any, expected: str, valid: Callable[[float], bool]) -> float:
    """`value` as a float for which `valid` holds; `expected` says in words what that is.

    TypeError: it is not a number, or is a bool; RequestError: `valid` does not hold.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, found {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise RequestError(f"{name}: expected {expected}, found an integer beyond all floats", name) from None
    if not valid(number):
        raise RequestError(f"{name}: expected {expected}, found {number}", name)
    return number
