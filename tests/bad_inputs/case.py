"""What a case is, the ways to open a bad file (doors), and the small valid model that each bad file is made from."""

from __future__ import annotations

import contextlib
import io
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkpoints
import numpy as np

import llama2c
from llama2c.commands import main as cli

Door = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One input and the expected result. `run` is called in the worker, with an empty folder."""

    name: str
    run: Callable[[Path], object]
    error: type[BaseException] | None  # what it must raise; None: nothing, and `run` checks the result
    words: tuple[str, ...] = ()  # of the message
    linux: bool = False  # needs Linux
    limit: bool = False  # needs RLIMIT_AS, which sanitizers do not support


# ---------------------------------------------------------------------------
# a good model

FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
MODEL = SimpleNamespace(dim=12, hidden_dim=10, n_layers=2, n_heads=6, n_kv_heads=2, vocab_size=262, seq_len=16)
GROUP_SIZE = 4  # a group straddles the rows of w2: 10 is two and a half groups
MAGIC = 0x616B3432
VERSIONS = (0, 1, 2)
BASE = [(b"<unk>", 0.0), (b"<s>", 0.0), (b"</s>", 0.0), *((b"<0x%02X>" % byte, 0.0) for byte in range(256))]
VOCABULARY = [*BASE, (b" ", 0.0), (b"a", 0.0), (b" a", 1.0)]  # as many tokens as the model has


def weights(tied: bool = False) -> checkpoints.Arrays:
    return checkpoints.random_weights(MODEL, np.random.default_rng(1), shared_classifier=tied)


def parts(version: int, numbers: checkpoints.Arrays | None = None) -> list[bytes]:
    """The good file in pieces, the header first, then a piece for each tensor of `order(version)`."""
    return checkpoints.parts(MODEL, version, weights() if numbers is None else numbers, GROUP_SIZE if version == 2 else None)


def order(version: int) -> list[str]:
    names = checkpoints.V1 if version else checkpoints.V0
    return ["header", *("rope tables" if name == "-" else name for name in names)]


def pack_header(version: int, *, tied: int = 0, group_size: int = GROUP_SIZE, **changed: int) -> bytes:
    """The good header with some dimensions changed."""
    sizes = [{**vars(MODEL), **changed}[name] for name in FIELDS]
    if version == 0:
        if "vocab_size" not in changed:
            sizes[5] *= 1 if tied else -1
        return struct.pack("<7i", *sizes)
    head = struct.pack("<Ii7iB", MAGIC, version, *sizes, tied) + struct.pack("<i", group_size) * (version == 2)
    return head.ljust(256, b"\0")


def pack_tokenizer(vocabulary: list[tuple[bytes, float]] = VOCABULARY, max_token_length: int = 6) -> bytes:
    tokens = (struct.pack("<fi", score, len(spelling)) + spelling for spelling, score in vocabulary)
    return struct.pack("<i", max_token_length) + b"".join(tokens)


def good_model(folder: Path, version: int = 0) -> Path:
    (folder / "tokenizer.bin").write_bytes(pack_tokenizer())
    (folder / "good.bin").write_bytes(b"".join(parts(version)))
    return folder / "good.bin"


def open_good(folder: Path, version: int = 0) -> llama2c.Llama:
    return llama2c.load(good_model(folder, version), n_threads=1)


# ---------------------------------------------------------------------------
# doors


def command_line(path: Path, *flags: str) -> None:
    """Run the command line; raise its one line on stderr as an exception."""
    err = io.StringIO()
    out = io.TextIOWrapper(io.BytesIO())
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        code = cli.main([str(path), "-t", "0", "-n", "3", *flags])
    if code == 0:
        return
    assert code == 1, (code, err.getvalue())
    line = err.getvalue()
    assert line.startswith("llama2c: error: "), line
    assert line.count("\n") == 1 and line.endswith("\n"), line
    raise CommandLineError(line.removeprefix("llama2c: error: ").removesuffix("\n"))


class CommandLineError(Exception):
    """The one line of a command that failed. It has no type."""


DOORS: dict[str, Door] = {
    "mapped": lambda path: llama2c.Checkpoint.open(path),
    "read": lambda path: llama2c.Checkpoint.open(path, mmap=False),
    "load": lambda path: llama2c.load(path),
    "command line": command_line,
}


def load_with_tokenizer(path: Path) -> object:
    with tempfile.TemporaryDirectory() as folder:
        return llama2c.load(good_model(Path(folder)), tokenizer=path, n_threads=1)


def command_line_with_tokenizer(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command_line(good_model(Path(folder)), "-z", str(path))


TOKENIZER_DOORS: dict[str, Door] = {
    "open": lambda path: llama2c.Tokenizer.open(path, len(VOCABULARY)),
    "load": load_with_tokenizer,
    "command line": command_line_with_tokenizer,
}


def named(door: Door) -> Door:
    """The same door, with a check that every message begins with the path, or with that of a file in it."""

    def checked(path: Path) -> object:
        try:
            return door(path)
        except (ValueError, OSError, MemoryError, CommandLineError) as error:
            assert str(error).startswith((f"{path}: ", f"{path}/")), error
            raise

    return checked


def refused(
    name: str,
    make: Callable[[Path], Path],
    error: type[BaseException],
    *words: str,
    doors: Mapping[str, Door] = DOORS,
    **options: Any,
) -> Iterator[Case]:
    """A bad file, written by `make`, that every door must refuse."""
    for title, door in doors.items():
        expected = CommandLineError if title == "command line" else error

        def run(folder: Path, door: Door = door) -> object:
            return named(door)(make(folder))

        yield Case(f"{name} ({title})", run, expected, words, **options)


def content(data: bytes, name: str = "model.bin") -> Callable[[Path], Path]:
    """Returns a function that writes a file of these bytes."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make
