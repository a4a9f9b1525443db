"""Lines to stderr, wrong command lines, and a bar that is there on a terminal alone."""

from __future__ import annotations

import builtins
import io
import sys
from typing import Any

import pytest

from llama2c.commands.terminal import Parser, UsageError, markdown_table, progress, say


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


def test_parser_raises() -> None:
    parser = Parser()
    parser.add_argument("--number", type=int)
    with pytest.raises(UsageError, match=r"^argument --number: invalid int value: 'x'$"):
        parser.parse_args(["--number", "x"])


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm", reason="needs tqdm")
    for stream, drawn in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(progress(iter("abc"), 3, "run")) == ["a", "b", "c"]
        assert ("3" in stream.getvalue()) == drawn


def test_progress_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name == "tqdm":
            raise ImportError
        return real(name, *rest, **named)

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert list(progress(iter("abc"), 3, "run")) == ["a", "b", "c"]
    assert stream.getvalue() == ""


def test_markdown_table() -> None:
    rows = [["model", "t/s"], ["tiny", "10.25"], ["a", ""]]
    assert markdown_table(rows) == (
        "| model | t/s   |\n"
        "| ----- | ----: |\n"
        "| tiny  | 10.25 |\n"
        "| a     |       |"
    )  # fmt: skip
