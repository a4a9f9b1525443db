"""A chat in a file: it comes back whole, and a file that is broken or edited is one line and changes nothing."""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import fake_llama

from llama2c import ModelError, RequestError
from llama2c.commands.saved_chat import load, save
from llama2c.commands.session import Session


def new_session(**settings: Any) -> Session:
    llama = fake_llama()
    llama.transformer.checkpoint = SimpleNamespace(path="models/fake.bin")  # type: ignore[assignment]
    return Session(llama, {"seed": 5, "max_tokens": 9, **settings}, 512, now=date(2026, 1, 31))


def ask(session: Session, text: str) -> None:
    reply = session.ask(text)
    list(reply)
    session.keep(reply)


@pytest.fixture
def session() -> Session:
    session = new_session(stop=["END"], top_k=7)
    session.system = "Sei höflich."
    for text in ("one", "zwei 漢字 🥞\n\ttwo"):
        ask(session, text)
    return session


def test_the_form(session: Session, tmp_path: Path) -> None:
    """docs/command-line.md describes it: the messages are those of Llama.chat, and make the same replies with the seeds."""
    path = save(session, str(tmp_path / "chat.json"))
    content = json.loads(path.read_text("utf-8"))
    assert list(content) == ["format", "model", "date", "settings", "messages", "seeds"]
    assert content["format"] == "llama2c chat 1"
    assert content["model"] == "models/fake.bin"
    assert content["date"] == "2026-01-31"
    assert content["settings"] == {
        "temperature": 1.0, "top_p": 0.9, "top_k": 7, "min_p": 0.0, "repetition_penalty": 1.0, "max_tokens": 9,
        "stop": ["END"], "seed": 7,
    }  # fmt: skip
    assert content["seeds"] == [5, 6]
    messages = content["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    for i, seed in enumerate(content["seeds"]):
        options = {**content["settings"], "seed": seed}
        assert session.llama.chat(messages[: 2 * i + 2], **options).text == messages[2 * i + 2]["content"]
    assert "höflich" in path.read_text("utf-8")


def test_a_loaded_chat_goes_on_as_if_it_had_not_ended(session: Session, tmp_path: Path) -> None:
    path = save(session, str(tmp_path / "chat.json"))
    other = new_session()
    ask(other, "something else")
    other.now = date(2020, 2, 2)
    assert load(other, str(path)) == path
    for each in (session, other):
        ask(each, "three")
    assert other.turns == session.turns and len(other.turns) == 3
    assert (other.settings, other.system, other.now) == (session.settings, session.system, session.now)
    fresh = new_session()
    load(fresh, str(save(new_session(), str(tmp_path / "empty.json"))))
    assert fresh.turns == [] and fresh.system == ""


def test_only_a_saved_chat_is_replaced(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    save(session, str(path))
    session.undo()
    save(session, str(path))
    assert len(json.loads(path.read_text("utf-8"))["seeds"]) == 1
    for name, content in (
        ("notes.txt", b"my notes"),
        ("other.json", b'{"format": "other"}'),
        ("list.json", b"[1]"),
        ("none", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RequestError, match=f"{name}: expected a new file or a saved chat, found another file"):
            save(session, str(tmp_path / name))
        assert (tmp_path / name).read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["chat.json", "list.json", "none", "notes.txt", "other.json"]


def test_places_that_cannot_be_written(session: Session, tmp_path: Path) -> None:
    for name in ("missing/chat.json", ".", "a" * 300, "notes/x/y"):
        with pytest.raises((OSError, ValueError)) as error:
            save(session, str(tmp_path / name))
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    assert os.listdir(tmp_path) == []


def test_home_and_links(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    target = tmp_path / "real.json"
    save(session, str(target))
    (tmp_path / "link.json").symlink_to("real.json")
    session.undo()
    assert save(session, "~/link.json") == target  # the link stays one
    assert (tmp_path / "link.json").is_symlink()
    assert load(new_session(), "~/link.json") == tmp_path / "link.json"


GOOD = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "llama2c chat 9"}, "format: expected 'llama2c chat 1', found 'llama2c chat 9'"),
        ({"format": None}, "format: expected 'llama2c chat 1', found None"),
        ({"date": "31.1.2026"}, "date: expected a date such as '2026-01-31', found '31.1.2026'"),
        ({"date": 7}, "date: expected a date"),
        ({"settings": []}, "settings: expected a dict, found list"),
        ({"settings": {"heat": 1}}, "heat: unknown setting"),
        ({"settings": {"temperature": -1}}, "temperature: expected a finite number of at least 0, found -1.0"),
        ({"settings": {"temperature": "1"}}, "temperature: expected a number, found str"),
        ({"settings": {"stop": [1]}}, "stop: expected a str or a sequence of str, found int"),
        ({"messages": "x"}, "messages: expected a list, found str"),
        ({"messages": GOOD[::-1]}, "messages[0]: expected a dict with 'role': 'user' and a str as 'content'"),
        ({"messages": [*GOOD, GOOD[0]]}, "messages[2]: expected a reply after it, found the end"),
        ({"messages": [GOOD[0], {"role": "assistant", "content": 7}]}, "messages[1]: expected a dict with 'role': 'assistant'"),
        ({"messages": [GOOD[0], "b"]}, "messages[1]: expected a dict"),
        ({"messages": [GOOD[0], {"role": "assistant", "content": "\udc80"}]}, "messages[1]: expected valid Unicode"),
        ({"seeds": []}, "seeds: expected 1 integers, one for each reply, found []"),
        ({"seeds": ["1"]}, "seeds: expected 1 integers, one for each reply, found ['1']"),
        ({"seeds": None}, "seeds: expected a list, found NoneType"),
    ],
)
def test_an_edited_file(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "chat.json"
    content = {"format": "llama2c chat 1", "date": "2026-01-31", "settings": {}, "messages": GOOD, "seeds": [1]}
    path.write_text(json.dumps(content))
    session = new_session()
    load(session, str(path))
    assert [turn.reply for turn in session.turns] == ["b"]
    path.write_text(json.dumps({**content, **change}))
    before = (session.turns, session.settings.copy(), session.system, session.now)
    with pytest.raises(ModelError) as error:
        load(session, str(path))
    assert str(error.value).startswith(f"{path}: {message}")
    assert (session.turns, session.settings, session.system, session.now) == before


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"null", b"GGUF", b'{"a": 1' + b"0" * 5000 + b"}"]
)
def test_a_broken_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "chat.json"
    path.write_bytes(content)
    with pytest.raises(ModelError) as error:
        load(new_session(), str(path))
    assert str(error.value).startswith(f"{path}: expected ") or str(error.value).startswith(f"{path}: format: expected ")
    assert "\n" not in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.json: expected a readable file, found: No such file"):
        load(new_session(), str(tmp_path / "missing.json"))
    with pytest.raises(ModelError, match="expected a regular file, found a directory"):
        load(new_session(), str(tmp_path))
