"""Small files, read whole: settings and tokenizers. And what can be said of a file that cannot be read or is of another kind.

Every error is one line that begins with the name of the file.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

from .errors import FileError, ModelError, file_error, not_found

MOST_BYTES = 1 << 31  # a tokenizer.bin counts its bytes in 32 bits, and no other file that is read whole is nearly as large
GGUF_MAGIC = b"GGUF"  # how a GGUF file begins
START = 512  # bytes that recognise() needs


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file. Its kind and size are checked first, because opening a FIFO would wait for its writer.

    Raises ModelError if it is another kind of file, is too large, or the path is not valid; OSError if it cannot be read;
    MemoryError.
    """
    name, size = os.fspath(path), file_size(path)
    if size >= MOST_BYTES:
        raise ModelError(f"{name}: expected a file of less than 2 GiB, found {size} bytes")
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise unreadable(error, path) from None
    except MemoryError:
        raise no_memory(path, size) from None


def read_start(path: str | os.PathLike[str]) -> bytes:
    """The first START bytes of a regular file, which recognise() needs. Errors are those of read_file."""
    file_size(path)
    try:
        with open(path, "rb") as file:
            return file.read(START)
    except OSError as error:
        raise unreadable(error, path) from None


def file_size(path: str | os.PathLike[str]) -> int:
    """Bytes of a regular file. ModelError: it is another kind of file, or the path is not valid; OSError: it cannot be read."""
    name = os.fspath(path)
    try:
        status = os.stat(path)
    except OSError as error:
        raise unreadable(error, path) from None
    except ValueError as error:  # a path that no system accepts: one with NUL
        raise ModelError(f"{name}: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "directory" if stat.S_ISDIR(status.st_mode) else "special file"
        raise ModelError(f"{name}: expected a regular file, found a {kind}")
    return status.st_size


class FileState(NamedTuple):
    """What differs after a file was changed or replaced, even if its size is the same and its old time was set again."""

    path: str  # absolute
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def file_state(path: str | os.PathLike[str]) -> FileState:
    """The state of a file now. OSError, ValueError: the system does not say."""
    status = os.stat(path)
    return FileState(os.path.abspath(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ModelError: the file does not contain one; other errors are those of read_file."""
    import json  # a checkpoint with a tokenizer.bin needs no JSON

    raw = read_file(path)
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        kind = None if raw.lstrip()[:1] in (b"{", b"[") else recognise(raw)  # it was meant to be JSON
        raise ModelError(f"{path}: expected JSON, found: {kind or error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file or a folder at a path.

    Raises FileNotFoundError if there is a link whose target does not exist: that is not the same as no file at all. Raises
    another OSError if the system does not say, for example because a folder may not be entered.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if os.path.islink(path):
            raise unreadable(error, path) from None
        return False
    except OSError as error:
        raise unreadable(error, path) from None
    except ValueError:  # NUL in the path
        return False
    return True


# ---------------------------------------------------------------------------
# errors


def unreadable(error: OSError, path: str | os.PathLike[str]) -> FileError:
    """`error` about reading a file, in one line. It names the target of a link that leads nowhere."""
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return not_found(path, f"expected a readable file, found a link to {os.readlink(path)}, which does not exist")
    return file_error(error, path)


def no_memory(path: str | os.PathLike[str], size: int) -> MemoryError:
    return MemoryError(f"{os.fspath(path)}: expected memory for {size} bytes, found too little")


# ---------------------------------------------------------------------------
# files of another kind

_KINDS = (
    (rb"version https://git-lfs", "a Git LFS pointer: the file itself was not downloaded, run `git lfs pull` to get it"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body)\b", "an HTML page: download the file itself, not its web page"),
    (GGUF_MAGIC, "a GGUF file: give it as the model itself"),
    (rb"lmgg|fmgg|tjgg", "an old GGML file, which llama2c does not read: use the Hugging Face folder of the model"),
    (rb"PK\x03\x04", "a zip file: if torch.save wrote it, run `python -m llama2c export FILE -o model.bin`"),
    (rb"\x80[\x02-\x05][^\x00]", "a pickle: if torch.save wrote it, run `python -m llama2c export FILE -o model.bin`"),
    (rb"\x1f\x8b\x08", "a gzip file: unpack it first"),
    (rb".{4}\x00{4}\s*\{", "a safetensors file: use the folder that contains it and config.json"),
    (rb"(\xef\xbb\xbf)?\s*[{\[]\s*[\"\]}]", "JSON: use the folder with config.json and the weights"),
)


def recognise(start: bytes) -> str | None:
    """What a file is, by its first START bytes, and what to do with it. None: it is not one of the kinds we know.

    b"GGUF..." -> "a GGUF file: ...". Ask it only about a file that was refused: a checkpoint may begin with any bytes.
    """
    return next((words for pattern, words in _KINDS if re.match(pattern, start, re.DOTALL)), None)
