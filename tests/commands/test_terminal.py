"""Lines, tables, errors in words, wrong command lines, and bars that are only drawn on a terminal."""

from __future__ import annotations

import builtins
import errno
import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from llama2c.commands import terminal
from llama2c.commands.terminal import (
    UsageError,
    byte_bar,
    describe_error,
    markdown_table,
    named_as,
    progress,
    put,
    say,
    utf8,
)
from llama2c.errors import ModelError, RequestError, file_error, not_found


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_say_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("two\nlines")
    say("bare", name="")
    assert capsys.readouterr().err == "llama2c: two lines\nbare\n"


def test_say_without_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    for stderr in (None, Broken()):
        monkeypatch.setattr(sys, "stderr", stderr)
        say("nobody is there")


def test_put_is_utf8_and_gives_bytes_back(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    put("\u00b1 \U0001f422\n")
    put(os.fsdecode(b"a\xff.bin"))
    assert capsysbinary.readouterr().out == "\u00b1 \U0001f422\n".encode() + b"a\xff.bin"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out.bin"), "out.bin: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), "output: No space left on device"),
        (OSError(errno.EACCES, "Permission denied", b"caf\xc3\xa9"), "caf\u00e9: Permission denied"),
        (OSError(errno.EBADF, "Bad file descriptor", 3), "3: Bad file descriptor"),
        (OSError("LLAMA2C_CACHE: no home"), "LLAMA2C_CACHE: no home"),
        (file_error(OSError(errno.EIO, "I/O error"), "a.bin"), "a.bin: expected a readable file, found: I/O error"),
        (not_found("stories15M", "expected a file, found none"), "stories15M: expected a file, found none"),
        (RequestError("stride: expected 1 to 24, found 0", "stride"), "stride: expected 1 to 24, found 0"),
        (ModelError("a.bin: broken"), "a.bin: broken"),
        (MemoryError(), "not enough memory"),
        (MemoryError("a.bin: expected memory for 8 bytes"), "a.bin: expected memory for 8 bytes"),
        (ValueError(), "ValueError"),
    ],
)
def test_describe_error(error: Exception, line: str) -> None:
    assert describe_error(error) == line


def test_an_error_of_the_system_in_words(tmp_path: Path) -> None:
    with pytest.raises(OSError) as error:
        (tmp_path / "absent").read_bytes()
    assert describe_error(error.value) == f"{tmp_path / 'absent'}: No such file or directory"


def test_an_argument_is_called_by_its_flag() -> None:
    for error, message in (
        (RequestError("top_k: expected 1", "top_k"), "--top-k: expected 1"),
        (RequestError("seed: expected 1", "seed"), "seed: expected 1"),
        (RequestError("top_k of no one"), "top_k of no one"),
    ):
        with pytest.raises(RequestError) as caught, named_as({"top_k": "--top-k"}):
            raise error
        assert (str(caught.value), caught.value.param) == (message, error.param)


def test_words_are_utf8_in_any_locale() -> None:
    assert utf8("żółw") == utf8("żółw".encode()) == "żółw"
    assert utf8(os.fsdecode("żółw".encode())) == "żółw"
    with pytest.raises(UsageError, match=r"^stdin: expected valid UTF-8, found byte 0xE4 at index 2$"):
        utf8(b"ab\xe4", "stdin")
    with pytest.raises(UsageError, match=r"^expected valid UTF-8, found byte 0xFF at index 0$"):
        utf8("\udcff")


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm", reason="needs tqdm")
    for stream, drawn in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(progress(iter("abc"), 3, "run")) == ["a", "b", "c"]
        assert ("3" in stream.getvalue()) == drawn


def test_byte_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar for each file, one after the other, and none at the end; it works without a size."""
    pytest.importorskip("tqdm", reason="needs tqdm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with byte_bar() as show:
        for call in ((0, 2_000_000, "a.bin"), (1_000_000, 2_000_000, "a.bin"), (2_000_000, 2_000_000, "a.bin"), (0, None, "t")):
            show(*call)
    drawn = [line for line in stream.getvalue().split("\r") if line.strip()]
    assert drawn[0].startswith("a.bin:   0%|") and "/2.00M" in drawn[0]
    assert drawn[-1].startswith("t: 0.00B")
    assert stream.getvalue().endswith("\r")


@pytest.mark.parametrize("with_tqdm", [True, False])
def test_lines_instead_of_bars(monkeypatch: pytest.MonkeyPatch, with_tqdm: bool) -> None:
    """Without a terminal, and on one without tqdm: at most one in ten seconds, and none in the first ten."""
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name == "tqdm":
            raise ImportError
        return real(name, *rest, **named)

    stream = io.StringIO() if with_tqdm else Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    if not with_tqdm:
        monkeypatch.setattr(builtins, "__import__", refuse)
    clock = 100.0
    monkeypatch.setattr(terminal, "monotonic", lambda: clock)
    taken = []
    for letter in progress(iter("abcdefg"), 7, "run"):  # each takes four seconds
        taken.append(letter)
        clock += 4
    assert "".join(taken) == "abcdefg"
    assert stream.getvalue() == "llama2c: run 3 of 7\nllama2c: run 6 of 7\n"
    with byte_bar() as show:
        for done, total, name in ((0, 7, "a"), (1, 7, "a"), (2, 7, "a.bin"), (0, None, "t"), (0.1, None, "t")):
            show(int(done * 1e6), total and total * 10**6, name)
            clock += 5
    assert stream.getvalue().splitlines()[2:] == ["llama2c: a.bin: 2.0 of 7.0 MB", "llama2c: t: 0.1 MB"]


def test_quick_work_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    assert list(progress(iter("abc"), 3, "run")) == ["a", "b", "c"]
    with byte_bar() as show:
        show(0, 5, "a.bin")
        show(5, 5, "a.bin")
    assert stream.getvalue() == ""


def test_no_lines_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 60))
    monkeypatch.setattr(terminal, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress(iter("abc"), 3, "run")) == ["a", "b", "c"]


def test_markdown_table() -> None:
    rows = [["model", "t/s"], ["tiny", "10.25"], ["a", ""]]
    assert markdown_table(rows) == (
        "| model | t/s   |\n"
        "| ----- | ----: |\n"
        "| tiny  | 10.25 |\n"
        "| a     |       |"
    )  # fmt: skip
