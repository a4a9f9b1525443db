"""Paths without a file, files of another kind, files that change, and too little memory for valid files."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import json
import os
import pickle
import resource
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import folders
import numpy as np

import llama2c
from llama2c.formats import checkpoint as checkpoint_module

from . import version3
from .case import (
    DOORS,
    TOKENIZER_DOORS,
    Case,
    CommandLineError,
    Door,
    command_line,
    content,
    good_model,
    named,
    open_good,
    pack_header,
    pack_tokenizer,
    parts,
    refused,
    weights,
)

NOBODY = 65534


# ---------------------------------------------------------------------------
# paths without a file


def directory(folder: Path) -> Path:
    (folder / "a.bin").mkdir()
    return folder / "a.bin"


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "a.bin")  # nobody writes to it, so a plain open would wait for ever
    return folder / "a.bin"


def unix_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "a.bin"))  # the name of a socket has to be short
    return folder / "a.bin"


def loop(folder: Path) -> Path:
    (folder / "a.bin").symlink_to(folder / "b.bin")
    (folder / "b.bin").symlink_to(folder / "a.bin")
    return folder / "a.bin"


def dangling(folder: Path) -> Path:
    (folder / "a.bin").symlink_to(folder / "b.bin")
    return folder / "a.bin"


def through_a_file(folder: Path) -> Path:
    (folder / "a.bin").write_bytes(b"")
    return folder / "a.bin" / "b.bin"


Make = Callable[[Path], Path]
NO_FILES: list[tuple[str, Make, type[Exception], str, bool]] = [  # title, path, error, words, checkpoints only
    ("empty", content(b""), ValueError, "expected ", False),
    ("absent", lambda folder: folder / "absent.bin", FileNotFoundError, "No such file or directory", False),
    ("a FIFO", fifo, ValueError, "expected a regular file, found a", False),
    ("a device without end", lambda folder: Path("/dev/zero"), ValueError, "expected a regular file, found a", False),
    ("an empty device", lambda folder: Path("/dev/null"), ValueError, "expected a regular file, found a", False),
    ("a symlink loop", loop, OSError, "Too many levels of symbolic links", False),
    ("a dangling symlink", dangling, FileNotFoundError, "found a link to ", False),
    ("a path through a file", through_a_file, NotADirectoryError, "Not a directory", False),
    ("a name too long", lambda folder: folder / ("a" * 300), OSError, "File name too long", False),
    ("a name with NUL", lambda folder: folder / "a\0b", ValueError, "null byte", False),
    ("a directory", directory, FileNotFoundError, "expected a file, or a folder with config.json, found a folder", True),
    ("a socket", unix_socket, OSError, "No such device or address", True),
]


def no_files() -> Iterator[Case]:
    for title, make, error, words, _ in NO_FILES:
        yield from refused(f"checkpoint: {title}", make, error, words)
    yield from refused("checkpoint: a name with a lone surrogate", lambda folder: folder / "\ud800", ValueError, "surrogate")
    yield from no_tokenizers()


def no_tokenizers() -> Iterator[Case]:
    for title, make, error, words, checkpoint_alone in NO_FILES:
        if not checkpoint_alone:
            yield from refused(f"tokenizer: {title}", make, error, words, doors=TOKENIZER_DOORS)
    words = "expected a regular file, found a"
    none = "tokenizer.model in this folder, found none"
    yield from refused("tokenizer: a directory", directory, FileNotFoundError, none, doors=TOKENIZER_DOORS)
    yield from refused("tokenizer: a socket", unix_socket, ValueError, words, doors=TOKENIZER_DOORS)


# ---------------------------------------------------------------------------
# files of another kind

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 438123\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
GGUF = b"GGUF" + struct.pack("<IQQ", 3, 291, 24) + b"\x14\0\0\0\0\0\0\0general.architecture"
OTHERS: dict[str, tuple[bytes, str]] = {  # the content, and what is said of it
    "a Git LFS pointer": (LFS, "a Git LFS pointer: the file itself was not downloaded, run `git lfs pull` to get it"),
    "an HTML page": (HTML, "an HTML page: download the file itself, not its web page"),
    "an HTML page after white space": (b"\n  <html lang='en'>\n<body>" + bytes(9), "an HTML page: "),
    "GGUF": (GGUF, "a GGUF file: give it as the model itself"),
    "GGML": (b"tjgg" + struct.pack("<8I", 3, 32000, 4096, 256, 32, 32, 128, 2), "an old GGML file, "),
    "a zip file": (b"PK\3\4" + bytes(60), "a zip file: if torch.save wrote it, run `python -m llama2c export FILE -o "),
    "a pickle": (pickle.dumps({"model": [1.0] * 9}, 2), "a pickle: if torch.save wrote it, run `python -m llama2c export "),
    "a gzip file": (gzip.compress(bytes(999)), "a gzip file: unpack it first"),
    "safetensors": (struct.pack("<Q", 40) + b'{"x":{"dtype":"F32"}}'.ljust(40), "a safetensors file: use the folder that "),
    "JSON": (b'{\n  "architectures": ["LlamaForCausalLM"]\n}\n', "JSON: use the folder with config.json and the weights"),
}


def others() -> Iterator[Case]:
    for title, (data, words) in OTHERS.items():
        if data is GGUF:  # which is a checkpoint; where a tokenizer or a shard is expected, it is not
            continue
        yield from refused(f"checkpoint: {title}", content(data), ValueError, f"expected a checkpoint, found {words}")


# ---------------------------------------------------------------------------
# no permission


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Run as a user without permissions, because root may read every file."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def without_permission(make: Make, door: Door) -> Callable[[Path], object]:
    def run(folder: Path) -> object:
        with tempfile.TemporaryDirectory() as place:
            os.chmod(place, 0o755)  # so that the folder may be entered
            path = Path(place, "a.bin")
            path.write_bytes(make(folder).read_bytes())
            with nobody():
                assert path.read_bytes()
            path.chmod(0)
            with nobody():
                return named(door)(path)

    return run


def permissions() -> Iterator[Case]:
    said = "expected a readable file, found: Permission denied"
    for kind, make, doors in (("checkpoint", good_model, DOORS), ("tokenizer", good_tokenizer, TOKENIZER_DOORS)):
        for title, door in doors.items():
            error = CommandLineError if title == "command line" else PermissionError
            yield Case(f"{kind}: no permission ({title})", without_permission(make, door), error, (said,))


def good_tokenizer(folder: Path) -> Path:
    return content(pack_tokenizer(), "tokenizer.bin")(folder)


# ---------------------------------------------------------------------------
# files that change


def shrunk(use_mmap: bool) -> Callable[[Path], object]:
    """Truncated by another program after its size was checked and before its content is read."""

    def run(folder: Path) -> object:
        path = good_model(folder)
        parse = checkpoint_module.parse_header

        def parse_and_cut(raw: bytes) -> object:
            os.truncate(path, 100)
            return parse(raw)

        checkpoint_module.parse_header = parse_and_cut  # type: ignore[assignment]
        try:
            return named(lambda path: llama2c.Checkpoint.open(path, mmap=use_mmap))(path)
        finally:
            checkpoint_module.parse_header = parse

    return run


def logits(checkpoint: llama2c.Checkpoint) -> np.ndarray:
    transformer = llama2c.Transformer(checkpoint, n_threads=1)
    return transformer.forward([1, 260, 5], transformer.new_cache())


def unharmed(change: Callable[[Path], None], use_mmap: bool) -> Callable[[Path], object]:
    """An open model gives the same logits, whatever happens to its file."""

    def run(folder: Path) -> None:
        path = good_model(folder)
        expected = logits(llama2c.Checkpoint.open(path))
        checkpoint = llama2c.Checkpoint.open(path, mmap=use_mmap)
        change(path)
        np.testing.assert_array_equal(logits(checkpoint), expected)

    return run


def replace(path: Path) -> None:
    path.with_name("new.bin").write_bytes(b"\xff" * path.stat().st_size)
    os.replace(path.with_name("new.bin"), path)


def changes() -> Iterator[Case]:
    shrank = "found 100: the file shrank while it was read"
    yield Case("checkpoint: shrunk while it is read", shrunk(False), ValueError, (shrank,))
    yield Case("checkpoint: shrunk while it is mapped", shrunk(True), ValueError, ("the file shrank while it was opened",))
    for title, use_mmap in (("mapped", True), ("read", False)):
        yield Case(f"checkpoint: replaced while open ({title})", unharmed(replace, use_mmap), None)
        yield Case(f"checkpoint: deleted while open ({title})", unharmed(os.unlink, use_mmap), None)
    yield Case("checkpoint: cut short after it was read", unharmed(lambda path: os.truncate(path, 0), False), None)
    yield Case("checkpoint: overwritten after it was read", unharmed(overwrite, False), None)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)


# ---------------------------------------------------------------------------
# memory


@contextlib.contextmanager
def memory_limit(room: int) -> Iterator[None]:
    """No more than `room` bytes beyond what this process has mapped."""
    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (n_pages * resource.getpagesize() + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


LARGE = 2**28  # bytes of a sparse file


def large_model(folder: Path) -> Path:
    """A consistent v1 file of a quarter of a gigabyte, all zeros: a wide vocabulary."""
    sizes = {"dim": 64, "n_heads": 4, "vocab_size": LARGE // 4 // 64}
    head = pack_header(1, tied=1, **sizes)
    path = content(head)(folder)
    numbers = 64 * (sizes["vocab_size"] + 2 * (2 + 2 * 64 + 2 * 32 + 3 * 10) + 1)
    os.truncate(path, len(head) + 4 * numbers)
    return path


def large_folder(folder: Path) -> Path:
    """A Hugging Face folder whose weights are as large."""
    path = folders.write_model(folder / "hf", version3.CONFIG, weights())
    size = (path / "model.safetensors").stat().st_size
    content = (path / "model.safetensors").read_bytes()
    n_header = int.from_bytes(content[:8], "little")
    entries = {**json.loads(content[8 : 8 + n_header]), "x": {"dtype": "I8", "shape": [LARGE], "data_offsets": []}}
    end = size - 8 - n_header
    entries["x"]["data_offsets"] = [end, end + LARGE]
    text = json.dumps(entries).encode()
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + n_header :])
    os.truncate(path / "model.safetensors", 8 + len(text) + end + LARGE)
    return path


def large_tokenizer(folder: Path) -> Path:
    path = good_tokenizer(folder)
    os.truncate(path, LARGE)
    return path


def many_tokens(folder: Path) -> Path:
    """18 MB of a file, of which each token needs more in memory than in the file."""
    path = good_tokenizer(folder)
    with path.open("ab") as file:
        file.write((bytes(4) + b"\1\0\0\0a") * 2_000_000)
    return path


def limited(make: Make, door: Door, room: int = LARGE // 4) -> Callable[[Path], object]:
    """`door` with little memory. An open model still works afterwards."""

    def run(folder: Path) -> object:
        llama = open_good(folder)
        before = llama.generate("a", max_tokens=3, temperature=0).tokens
        path = make(folder)
        try:
            with memory_limit(room):
                return named(door)(path)
        finally:
            assert llama.generate("a", max_tokens=3, temperature=0).tokens == before

    return run


def long_model(folder: Path) -> Path:
    """A few kilobytes of weights, and a context of 2^31 - 1 positions."""
    pieces = parts(1)
    (folder / "tokenizer.bin").write_bytes(pack_tokenizer())
    return content(pack_header(1, seq_len=2**31 - 1) + b"".join(pieces[1:]))(folder)


def full_cache(path: Path) -> None:
    """As if all positions of the context were filled."""
    llama2c.Transformer(llama2c.Checkpoint.open(path), n_threads=1).new_cache()._make_room(2**31 - 1)


def few_tokens(path: Path) -> None:
    """A cache has the positions that are used, not those of the context."""
    assert llama2c.load(path, n_threads=1).generate("a", max_tokens=3, temperature=0).finish_reason
    command_line(path)


def cache_cases() -> Iterator[Case]:
    name = "checkpoint: a KV cache that grows beyond memory though the weights are tiny"
    words = (f"cache: {2**31 - 1} positions take ",)
    yield Case(name, lambda folder: full_cache(long_model(folder)), MemoryError, words, limit=True)
    name = "checkpoint: a context beyond memory of which little is used"
    yield Case(name, lambda folder: few_tokens(long_model(folder)), None)


def encode_much(path: Path) -> object:
    return llama2c.Tokenizer.open(path).encode(bytes(LARGE // 8))


def wide_step(path: Path) -> object:
    """The logits of many rows of a wide vocabulary."""
    transformer = llama2c.Transformer(llama2c.Checkpoint.open(path), n_threads=1)
    return transformer.forward([1] * 16, transformer.new_cache(), logits=None)


def memory_cases() -> Iterator[Case]:
    said = "expected a readable file, found: Cannot allocate memory"
    for title, error, door in (
        ("mapped", OSError, DOORS["mapped"]),
        ("read", MemoryError, DOORS["read"]),
        ("load", OSError, DOORS["load"]),
    ):
        words = (said,) if error is OSError else ("expected memory for ",)
        run = limited(large_model, door)
        yield Case(f"checkpoint: RLIMIT_AS hit ({title})", run, error, words, linux=True, limit=True)
    if importlib.util.find_spec("safetensors"):
        for title in ("mapped", "read", "load"):
            run = limited(large_folder, DOORS[title])
            words = ("model.safetensors: expected memory for ",)
            yield Case(f"folder: RLIMIT_AS hit ({title})", run, MemoryError, words, linux=True, limit=True)
    for title, make, words in (
        ("by the file", large_tokenizer, f"expected memory for {LARGE} bytes, found too little"),
        ("by its tokens", many_tokens, "expected memory for its tokens, found too little"),
    ):
        run = limited(make, llama2c.Tokenizer.open)
        yield Case(f"tokenizer: RLIMIT_AS hit {title}", run, MemoryError, (words,), linux=True, limit=True)
    for title, make, act, room in (
        ("encode", good_tokenizer, encode_much, LARGE // 4),
        ("forward", large_model, wide_step, LARGE + LARGE // 8),
    ):
        run = limited(make, lambda path, act=act: unnamed(act, path), room)
        yield Case(f"call: RLIMIT_AS hit in {title}", run, MemoryError, linux=True, limit=True)


def unnamed(act: Callable[[Path], object], path: Path) -> object:
    """`act`, whose MemoryError need not name the file, because the file is not the reason."""
    try:
        return act(path)
    except MemoryError as error:
        raise MemoryError(f"{path}: {error}") from None


CASES = [*no_files(), *others(), *permissions(), *changes(), *cache_cases(), *memory_cases()]
