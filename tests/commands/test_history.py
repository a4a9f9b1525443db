"""What was typed, from one chat to the next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama2c.commands.history import MOST, History, state_folder


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "llama2c" / "chat_history"


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert state_folder() == tmp_path / ".local" / "state" / "llama2c"
    monkeypatch.setenv("XDG_STATE_HOME", "")
    assert state_folder() == tmp_path / ".local" / "state" / "llama2c"
    monkeypatch.setenv("XDG_STATE_HOME", "/var/x")
    assert state_folder() == Path("/var/x/llama2c")


def test_entries_come_back(path: Path) -> None:
    texts = ["one", "two\nlines", '漢字 🥞 \u2028 "quoted"', "one"]
    history = History.open()
    assert history.entries == [] and history.problem is None
    for text in texts:
        history.add(text)
        history.add(text)  # the same again is no new entry
    other = History.open()
    assert other.entries == texts
    other.add("from another chat")
    history.add("from this one")
    assert History.open().entries == [*texts, "from another chat", "from this one"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_lines_that_are_no_strings_are_left_out(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b'"good"\n{\n7\nnull\n\xff\xfe\n' + b"[" * 100_000 + b'\n\n"also"\n"cut')
    assert History.open().entries == ["good", "also"]


def test_the_file_does_not_grow_for_ever(path: Path) -> None:
    path.parent.mkdir(parents=True)
    texts = [f"message {i}" for i in range(2 * MOST + 1)]
    path.write_text("".join(json.dumps(text) + "\n" for text in texts))
    assert History.open().entries == texts[-MOST:]
    assert path.read_text().count("\n") == MOST
    assert History.open().entries == texts[-MOST:]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_place_that_cannot_be_used(path: Path, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    history = History.open()
    assert history.path is None and history.problem is not None and "\n" not in history.problem
    history.add("one")
    assert history.entries == ["one"]
    (tmp_path / "state").unlink()
    path.mkdir(parents=True)
    history = History.open()
    assert history.problem == f"{path}: expected a regular file, found a directory"


def test_a_full_disk(path: Path) -> None:
    """The chat goes on, and nothing more is written."""
    history = History.open()
    history.path = Path("/dev/full")
    history.add("one")
    assert history.path is None and history.problem is not None and "/dev/full" in history.problem
    history.add("two")
    assert history.entries == ["one", "two"]
