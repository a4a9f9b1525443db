"""The command line as a whole: help, bad files, streams, signals and exit codes.

`command` runs it in this process; what needs a real process (pipes, signals, warnings) starts one.
"""

from __future__ import annotations

import io
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest
from command_line import (
    CONFIG,
    LETTERS,
    SECONDS,
    Command,
    expected_story,
    process,
    tokenizer_bin,
)

from llama2c import Transformer, __version__
from llama2c.commands.flags import FLAGS
from llama2c.commands.main import VERBS, main
from llama2c.config import DIMENSIONS

# ---------------------------------------------------------------------------
# help


def test_help(command: Command) -> None:
    for flag in ("-h", "--help"):
        result = command("no model", flag)
        assert (result.code, result.err) == (0, "")
    for flag in "-t -p -s -n -i -z -m -y --threads --trace -v --version -h".split():
        assert re.search(rf"^ *{flag} ", result.out.decode(), re.MULTILINE)
    for flag in FLAGS:
        assert re.search(rf"^  ..? +{flag.long} ", result.out.decode(), re.MULTILINE), flag.long
    for verb in VERBS:
        assert re.search(rf"^  {verb} +\w", result.out.decode(), re.MULTILINE), verb
    assert command("help") == command("help", "model.bin") == result


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_the_help_fits_a_terminal(command: Command, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = command(*filter(None, [verb, "--help"]))
    assert (result.code, result.err) == (0, "")
    lines = result.out.decode().splitlines()
    assert max(map(len, lines)) <= 80
    assert 10 < len(lines) <= (64 if verb else 42)
    assert any(f"llama2c {verb}" in line for line in lines[lines.index("examples:") + 1 :])
    if verb:
        assert command("help", verb) == result


def test_version(command: Command) -> None:
    assert command("--version") == (0, f"llama2c {__version__}\n".encode(), "")


def test_light_imports() -> None:
    """Nothing but the standard library beyond NumPy, by the modules of two fresh processes."""

    def modules(statement: str) -> set[str]:
        code = f"import sys\n{statement}\nprint(*sys.modules, file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=SECONDS)
        return {name.partition(".")[0] for name in done.stderr.decode().split()}

    help = modules("from llama2c.commands.main import main\nmain(['--help'])")
    more = help - modules("import numpy") - sys.stdlib_module_names
    assert {name for name in more if not name.startswith(("_cython_", "cython_runtime"))} == {"llama2c"}


# ---------------------------------------------------------------------------
# bad input: exit code 1, nothing on stdout, one line that names the file


def header(version: int = 1, *, magic: int = 0x616B3432, tied: int = 0, group_size: int = 0, **sizes: int) -> bytes:
    values = [sizes.get(name, getattr(CONFIG, name)) for name in DIMENSIONS]
    return struct.pack("<Ii7iBi", magic, version, *values, tied, group_size).ljust(256, b"\0")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda good: b"", "expected 28 bytes, found 0"),
        (lambda good: good[:100], "expected 256 bytes, found 100"),
        (lambda good: good[:-1], "expected {size} bytes according to the v1 header, found {less}"),
        (lambda good: good + b"\0", "expected {size} bytes according to the v1 header, found {more}"),
        (lambda good: struct.pack("<7i", 16, 24, 2, 4, 2, -286, 64) + good[256:], "bytes according to the v0 header"),
        (lambda good: header(2, group_size=8) + good[256:], "bytes according to the v2 header"),
        (lambda good: header(dim=0) + good[256:], "dim: expected an integer from 1 to 2147483647, found 0"),
        (lambda good: header(n_layers=-2) + good[256:], "n_layers: expected an integer from 1 to 2147483647, found -2"),
        (lambda good: header(hidden_dim=2**31 - 1, n_layers=2**31 - 1) + good[256:], "bytes according to the v1 header"),
        (lambda good: header(n_heads=3, n_kv_heads=3) + good[256:], "n_heads: expected a divisor of dim = 16, found 3"),
        (lambda good: header(n_kv_heads=3) + good[256:], "n_kv_heads: expected a divisor of n_heads = 4, found 3"),
        (lambda good: header(dim=12) + good[256:], "head_size: expected an even number, found 3"),
        (lambda good: header(magic=0x616B3433) + good[256:], "magic number 0x616b3432 not found"),
        (lambda good: header(7) + good[256:], "version: expected one of 1, 2, 3, found 7"),
        (lambda good: header(tied=2) + good[256:], "tied flag: expected 0 or 1, found 2"),
        (lambda good: header(2, group_size=0) + good[256:], "group_size: expected a divisor of dim = 16, found 0"),
        (lambda good: header(2, group_size=5) + good[256:], "group_size: expected a divisor of dim = 16, found 5"),
    ],
)
def test_bad_checkpoint(command: Command, model: Path, content: Callable[[bytes], bytes], words: str) -> None:
    good = model.read_bytes()
    Path("bad.bin").write_bytes(content(good))
    result = command("bad.bin", "-z", model.with_name("tokenizer.bin"))
    size = len(good)
    assert (result.code, result.out, result.err.count("\n")) == (1, b"", 1)
    assert result.err.startswith("llama2c: error: bad.bin: ")
    assert words.format(size=size, less=size - 1, more=size + 1) in result.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda good: b"", "found 0"),
        (lambda good: good[:-1], "token 285: expected a length of 1 to 0, the bytes left, found 1"),
        (lambda good: good + b"\0\0\0\0\1\0\0\0a", "expected the end after 286 tokens, at byte {size}, found {more} bytes"),
        (lambda good: tokenizer_bin(LETTERS[:-1]), "286"),
        (lambda good: good[:8] + struct.pack("<i", 2**31 - 1) + good[12:], "token 0: expected a length of 1 to "),
        (lambda good: good[:8] + struct.pack("<i", -1) + good[12:], "the bytes left, found -1"),
    ],
)
def test_bad_tokenizer(command: Command, model: Path, content: Callable[[bytes], bytes], words: str) -> None:
    good = tokenizer_bin()
    Path("bad.bin").write_bytes(content(good))
    result = command(model, "-z", "bad.bin")
    assert (result.code, result.out, result.err.count("\n")) == (1, b"", 1)
    assert result.err.startswith("llama2c: error: bad.bin: ")
    assert words.format(size=len(good), more=len(good) + 9) in result.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-t", "nan"], "--temperature: expected a finite number of at least 0, found nan"),
        (["-t", "inf"], "--temperature: expected a finite number of at least 0, found inf"),
        (["-p", "nan"], "--top-p: expected a number from 0 to 1, found nan"),
        (["-s", str(2**64)], f"--seed: expected an integer from 0 to {2**64 - 1}, found {2**64}"),
        (["-s", str(-(2**64))], f"--seed: expected an integer from 0 to {2**64 - 1}, found -{2**64}"),
        (["--threads", "0"], "--threads: expected an integer from 1 to 1024, found 0"),
        (["--top-k", "-1"], "--top-k: expected an integer of at least 0, found -1"),
        (["--min-p", "1.5"], "--min-p: expected a number from 0 to 1, found 1.5"),
        (["--min-p", "nan"], "--min-p: expected a number from 0 to 1, found nan"),
        (["--repetition-penalty", "0"], "--repetition-penalty: expected a finite number above 0, found 0.0"),
        (["--repetition-penalty", "inf"], "--repetition-penalty: expected a finite number above 0, found inf"),
        (["--stop", "a", "--stop", ""], "--stop: expected a string of at least one character, found an empty one"),
        (["--context", "0"], "--context: expected an integer from 1 to 64, found 0"),
        (["--context", "65"], "--context: expected an integer from 1 to 64, found 65"),
    ],
)
def test_bad_values(command: Command, model: Path, flags: list[str], message: str) -> None:
    assert command(model, *flags) == (1, b"", f"llama2c: error: {message}\n")


@pytest.mark.parametrize("kind", ["absent", "directory", "fifo", "two\nlines"])
@pytest.mark.parametrize("flag", [(), ("-z",)])
def test_no_such_file(model: Path, tmp_path: Path, kind: str, flag: tuple[str, ...]) -> None:
    """In a process of its own, which a FIFO must not hold up."""
    path = tmp_path / kind
    if kind == "directory":
        path.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    running = process(model, *flag, path) if flag else process(path)
    try:
        out, err = running.communicate(timeout=SECONDS)
    finally:
        running.kill()
    assert (running.returncode, out, err.count(b"\n")) == (1, b"", 1)
    assert err.decode().startswith(f"llama2c: error: {path}: expected".replace("\n", " "))


def test_no_memory(command: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_cache(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Transformer, "new_cache", no_cache)
    assert command(model) == (1, b"", "llama2c: error: not enough memory\n")


# ---------------------------------------------------------------------------
# streams, and how it ends


class Recorder(io.BytesIO):
    """A stdout that keeps what was written between two flushes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def flush(self) -> None:
        if not self.closed and self.getvalue():
            self.pieces.append(self.getvalue())
            self.seek(0)
            self.truncate()


def test_every_piece_is_flushed(model: Path, weights: checkpoints.Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = Recorder()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stdout))
    assert main([str(model), "-t", "0", "-n", "20", "-i", "abc"]) == 0
    story = expected_story(weights, b"abc", 20).decode()
    assert stdout.pieces == [letters.encode() for letters in ["abc", *story[3:]]]


def test_ctrl_c(endless: Path) -> None:
    """Exit code 130, no word on stderr, and what was printed stays."""
    running = process(endless, "-t", "0", "-n", "0")
    assert running.stdout is not None
    begin = running.stdout.read(20)  # more than a pipe holds is to come, so it is still at work
    running.send_signal(signal.SIGINT)
    rest, err = running.communicate(timeout=SECONDS)
    assert (running.returncode, err) == (130, b"")
    assert len(begin) == 20
    assert re.fullmatch(rb"[a-z ]+", begin + rest)  # no newline: nobody's prompt follows


def test_ctrl_c_on_a_terminal(endless: Path) -> None:
    """There the shell's prompt follows: it gets a line of its own."""
    ours, theirs = os.openpty()
    running = process(endless, "-t", "0", "-n", "0", stdout=theirs)
    os.close(theirs)
    text = os.read(ours, 20)
    running.send_signal(signal.SIGINT)

    def read() -> bytes:
        try:
            return os.read(ours, 65536)
        except OSError:  # Linux says so where nobody has the other end open
            return b""

    while part := read():
        text += part
    _, err = running.communicate(timeout=SECONDS)
    os.close(ours)
    assert (running.returncode, err) == (130, b"")
    assert re.fullmatch(rb"[a-z ]+\r?\n", text)


@pytest.mark.parametrize("flags", [["-n", "0"], ["-n", "0", "-v"], ["-m", "chat", "-y", "", "-i", "hi", "-n", "0"]])
def test_closed_pipe(endless: Path, flags: list[str]) -> None:
    running = process(endless, "-t", "0", *flags)
    assert running.stdout is not None and running.stderr is not None
    assert len(running.stdout.read(20)) == 20
    running.stdout.close()
    told = running.stderr.read().decode().splitlines()
    running.stderr.close()
    assert running.wait(timeout=SECONDS) == 141
    assert told == [line for line in told if line.startswith("llama2c: ") and "error" not in line]
    assert bool(told) == ("-v" in flags)


def test_closed_pipe_for_both(endless: Path) -> None:
    running = process(endless, "-t", "0", "-n", "0", "-v", stderr=subprocess.STDOUT)
    assert running.stdout is not None
    assert running.stdout.read(9) == b"llama2c: "
    running.stdout.close()
    assert running.wait(timeout=SECONDS) == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device without room")
def test_no_room_for_stdout(model: Path) -> None:
    with open("/dev/full", "wb") as full:
        running = process(model, stdout=full)
        _, err = running.communicate(timeout=SECONDS)
    assert (running.returncode, err) == (1, b"llama2c: error: output: No space left on device\n")


def test_no_streams(model: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python gives None for a stream that was closed before it started."""
    story = command(model, "-t", "0").out
    monkeypatch.setattr(sys, "stderr", None)
    assert command(model, "-t", "0", "-n", "99").out == story
    monkeypatch.undo()
    closed = ["sh", "-c", 'exec "$@" >&- <&-', "sh", sys.executable, "-m", "llama2c", str(model), "-i", "-"]
    done = subprocess.run(closed, capture_output=True, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (1, b"llama2c: error: stdout: expected an open file, found it closed\n")
    closed[2] = 'exec "$@" <&-'
    done = subprocess.run([*closed, "-t", "0"], capture_output=True, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (0, story)
