"""Which way to read a line is taken. tests/commands/test_interactive.py tries each of them at a keyboard."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import checkpoints
import pytest
from pseudo_terminal import PseudoTerminal

from llama2c.commands.history import History
from llama2c.commands.line_editor import PlainEditor, ReadlineEditor, ToolkitEditor, open_editor, remember


@pytest.mark.parametrize(
    ("term", "missing", "expected"),
    [
        ("xterm", [], ToolkitEditor),
        ("xterm", ["prompt_toolkit"], ReadlineEditor),
        ("xterm", ["prompt_toolkit", "readline"], PlainEditor),
        ("dumb", [], ReadlineEditor),
        ("", ["readline"], PlainEditor),
    ],
)
def test_the_best_editor_there_is(
    monkeypatch: pytest.MonkeyPatch, term: str, missing: list[str], expected: type[object]
) -> None:
    if expected is ToolkitEditor:
        pytest.importorskip("prompt_toolkit")
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    for module in missing:
        monkeypatch.setitem(sys.modules, module, None)
    editor = open_editor(History(), lambda line: [])
    assert type(editor) is expected
    assert ("4,095" in editor.hint and "pip install 'llama2c[chat]'" in editor.hint) == (expected is PlainEditor)


def test_what_is_remembered() -> None:
    """Nothing that is empty; bytes that are not UTF-8 become U+FFFD."""
    history = History()
    assert [remember(history, text) for text in ("one", "", "  ", "a\udcffb")] == ["one", "", "  ", "a\ufffdb"]
    assert history.entries == ["one", "a\ufffdb"]


def test_a_paste_into_a_dumb_terminal_is_one_message(talker: tuple[Path, checkpoints.Arrays], tmp_path: Path) -> None:
    environment = {"XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "dumb", "LC_ALL": "C"}
    with PseudoTerminal(talker[0], "-m", "chat", environment=environment) as chat:
        chat.wait_for("\n>")
        chat.type("one\ntwo\nthree\nfour\nfive\n")
        chat.wait_for("in use]")
        chat.wait_for("\n>")
        chat.type("/save c.json\n")
        chat.wait_for("Saved to")
    assert json.loads((tmp_path / "c.json").read_text())["messages"][0]["content"] == "one\ntwo\nthree\nfour\nfive"
