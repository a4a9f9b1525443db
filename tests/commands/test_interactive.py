"""The chat in a terminal: the faults that a new user met, with each way to read a line, in a pseudo-terminal."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest
from fakes import FakeCache, FakeTransformer, fake_llama
from pseudo_terminal import PseudoTerminal

import llama2c
from llama2c.commands.flags import Arguments
from llama2c.commands.interactive import TerminalChat, open_session
from llama2c.commands.session import Session
from llama2c.commands.wrapping import WordWrap, printable

Open = Callable[..., PseudoTerminal]
Talker = tuple[Path, checkpoints.Arrays]
EDITORS = ("prompt_toolkit", "readline", "plain")
DONE = "in use]"


def without(folder: Path, *modules: str) -> dict[str, str]:
    """The environment of a Python that lacks some modules."""
    folder.mkdir(exist_ok=True)
    for module in modules:
        (folder / f"{module}.py").write_text("raise ImportError")
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(params=EDITORS)
def editor(request: pytest.FixtureRequest) -> str:
    if request.param != "plain" and importlib.util.find_spec(request.param) is None:
        pytest.skip(f"needs {request.param}")
    name: str = request.param
    return name


@pytest.fixture
def terminal(tmp_path: Path, editor: str) -> Open:
    """Opens a chat in a pseudo-terminal, with the editor of the test and a home of its own."""
    missing = EDITORS[: EDITORS.index(editor)]
    environment = {
        **without(tmp_path / "missing", *missing),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TERM": "xterm-256color",
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "LC_ALL": "C.UTF-8",
        "INPUTRC": "/dev/null",
    }

    def start(model: Path, *flags: str, columns: int = 80, **more: str) -> PseudoTerminal:
        opened = PseudoTerminal(model, "-m", "chat", *flags, columns=columns, environment=environment | more)
        opened.wait_for("\n>")
        return opened

    return start


def reply_of(model: Path, *contents: str, **options: float) -> str:
    """The reply of the API to a conversation, as a terminal of 80 columns shows it."""
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    done = llama2c.load(model).chat(messages, max_tokens=None, **options)  # type: ignore[arg-type]
    return done.text


def shown(text: str) -> str:
    wrap = WordWrap(lambda: 79)
    return (wrap.feed(text) + wrap.flush()).rstrip("\n")


def test_a_chat(terminal: Open, talker: Talker) -> None:
    """Replies are those of the API with the seeds 7, 8 and 9; empty lines are ignored; Ctrl-D ends the chat."""
    path, _ = talker
    with terminal(path, "-s", "7") as chat:
        chat.type("hi\r")
        assert chat.wait_for("[").endswith(f"\n{shown(reply_of(path, 'hi', seed=7))}\n")
        chat.wait_for("\n>")
        chat.type("\r")
        chat.wait_for("\n>")
        chat.type("   \r")
        chat.wait_for("\n>")
        chat.type("/stats\r")
        chat.wait_for("Turns: 1.")
        chat.wait_for("The next reply has seed 8.")
        chat.wait_for("\n>")
        chat.type("/retry\r")
        chat.wait_for("Another reply, with seed 8:\n")
        assert chat.wait_for("[") == f"{shown(reply_of(path, 'hi', seed=8))}\n"
        chat.wait_for("\n>")
        chat.type("\x04")
        assert chat.end() == 0
        assert "Traceback" not in chat.text and "Assistant:" not in chat.text


def test_help_is_not_sent(terminal: Open, model: Path) -> None:
    with terminal(model, "-s", "1") as chat:
        chat.type("/help\r")
        listed = chat.wait_for("Ctrl-C ends a reply")
        for name in "help system retry undo forget reset save load set stats quit".split():
            assert f"/{name} " in listed
        chat.wait_for("\n>")
        chat.type("/rest\r")
        chat.wait_for("Unknown command: /rest. The nearest one is /reset.")
        chat.wait_for("\n>")
        chat.type("/stats\r")
        chat.wait_for("Turns: 0.")
        chat.wait_for("\n>")
        chat.type("/quit\r")
        assert chat.end() == 0


def test_ctrl_c_ends_the_reply_and_keeps_the_conversation(terminal: Open, endless: Path, tmp_path: Path) -> None:
    with terminal(endless, "-t", "0", "-n", "100000") as chat:
        chat.type("hi\r")
        chat.wait_for("hi\n")
        chat.wait_for("\n")  # a line of the reply
        chat.interrupt()
        chat.wait_for("Stopped. What there is of the reply is kept.")
        chat.wait_for("\n>")
        chat.interrupt_until("Ctrl-D or /quit ends the chat.")
        chat.wait_for("\n>")
        chat.type(f"/save {tmp_path / 'c.json'}\r")
        chat.wait_for("1 turn")
        chat.wait_for("\n>")
        chat.type("/quit\r")
        assert chat.end() == 0
    (user, reply) = json.loads((tmp_path / "c.json").read_text())["messages"]
    assert user == {"role": "user", "content": "hi"}
    assert len(reply["content"]) > 79
    whole = llama2c.load(endless).chat([user], temperature=0, max_tokens=len(reply["content"]) + 1)
    assert whole.text.startswith(reply["content"])


def test_a_pasted_text_is_one_message(terminal: Open, model: Path, editor: str, tmp_path: Path) -> None:
    text = "one\ntwo 漢字\n  three\n\nfive"
    with terminal(model, "-s", "1") as chat:
        if editor == "plain":  # a terminal that was not asked for marks
            chat.type(text + "\n")
        else:
            chat.paste(text)
            chat.wait_for("five")
            chat.type("\r")
        chat.wait_for(DONE)
        chat.wait_for("\n>")
        chat.type("/save c.json\r")
        chat.wait_for("1 turn\n")
    assert json.loads((tmp_path / "c.json").read_text())["messages"][0]["content"] == text


def test_a_long_line_is_whole(terminal: Open, talker: Talker, editor: str) -> None:
    """6,000 characters do not fit into the context of 110: the message names how many tokens there are."""
    path, _ = talker
    n = 4000 if editor == "plain" else 6000  # the greeting says that longer lines are cut
    with terminal(path, "-s", "1", columns=200) as chat:
        chat.type("a" * n)
        chat.type("\r")
        n_tokens = n + len("[INST]  [/INST]") + 2  # with BOS and a space
        chat.wait_for(f"The message has {n_tokens} tokens, and the context 110: it was not sent. Shorten it.")
        chat.wait_for("\n>")
        chat.type("/stats\r")
        chat.wait_for("Turns: 0. 0 of 110 tokens")
        assert ("4,095" in chat.text) == (editor == "plain")


def test_keys_during_a_reply_wait_for_the_prompt(terminal: Open, endless: Path, editor: str) -> None:
    """They are not shown in the reply, and a paste is one message then too."""
    with terminal(endless, "-t", "0", "-n", "8000", columns=200) as chat:
        chat.type("hi\r")
        chat.wait_for("hi\n")
        chat.wait_for("\n")  # a line of the reply
        if editor == "plain":
            chat.paste("TWO\nLINES\n")
        else:
            chat.paste("l" * 9000 + "\nTWO")
            chat.type("\r")
        assert "TWO" not in chat.wait_for("8000 of 8000 in use]")
        chat.wait_for("The conversation with this message has " if editor == "plain" else "The message has 9021 tokens")
        chat.wait_for(", and the context 8000: it was not sent.")
        chat.wait_for("\n>")
        chat.type("/stats\r")
        chat.wait_for("Turns: 1.")
        assert chat.text.count("it was not sent") == 1


def test_arrow_keys_edit_the_line_and_bring_back_earlier_ones(terminal: Open, talker: Talker, editor: str) -> None:
    if editor == "plain":
        pytest.skip("the terminal itself knows no arrow keys")
    path, _ = talker
    up, left = "\x1b[A", "\x1b[D"
    with terminal(path, "-s", "7") as chat:
        chat.type("i" + left + "h\r")
        assert chat.wait_for("[").endswith(f"\n{shown(reply_of(path, 'hi', seed=7))}\n")
        chat.wait_for("\n>")
        chat.type("/reset\r")
        chat.wait_for("starts anew")
        chat.wait_for("\n>")
    with terminal(path, "-s", "7") as chat:  # from the file of the history
        chat.type(up + up + "\r")
        assert chat.wait_for("[").endswith(f"\n{shown(reply_of(path, 'hi', seed=7))}\n")


def test_a_full_context_is_said(terminal: Open, model: Path) -> None:
    """The model does not end its replies: the first one fills all 64 positions."""
    with terminal(model, "-t", "0", columns=200) as chat:
        chat.type("hi\r")
        chat.wait_for("64 of 64 in use] The context is full, so the reply ends here. /forget drops the oldest turns")
        chat.wait_for("\n>")
        chat.type("more\r")
        chat.wait_for("and the context 64: it was not sent. /forget drops the oldest turns, /reset starts anew.")
        chat.wait_for("\n>")
        chat.type("/forget\r")
        chat.wait_for("Dropped the 1 oldest turn. 0 of 64 tokens")
        chat.wait_for("\n>")
        chat.type("more\r")
        chat.wait_for("The context is full")


def test_the_reply_is_wrapped(terminal: Open, model: Path) -> None:
    with terminal(model, "-t", "0", columns=24) as chat:
        chat.type("hi\r")
        lines = chat.wait_for("[").splitlines()
        assert all(len(line) <= 24 for line in lines) and len(lines) > 2
        assert "".join(lines).replace(" ", "").endswith(printable(reply_of(model, "hi", temperature=0)).replace(" ", ""))


def test_the_history_is_private_and_a_folder_that_cannot_be_written_is_no_end(
    terminal: Open, talker: Talker, tmp_path: Path
) -> None:
    path, _ = talker
    with terminal(path, "-s", "7") as chat:
        chat.type("hi\r")
        chat.wait_for(DONE)
    kept = tmp_path / "state" / "llama2c" / "chat_history"
    assert kept.read_text() == '"hi"\n'
    assert kept.stat().st_mode & 0o777 == 0o600
    (tmp_path / "file").write_text("")
    with terminal(path, "-s", "7", XDG_STATE_HOME=str(tmp_path / "file")) as chat:
        assert "What you type is not kept for the next chat" in chat.text
        chat.type("hi\r")
        chat.wait_for(DONE)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_other_terminals(talker: Talker, tmp_path: Path, locale: str, term: str) -> None:
    path, _ = talker
    environment = {"XDG_STATE_HOME": str(tmp_path / "state"), "TERM": term, "LC_ALL": locale, "PROMPT_TOOLKIT_NO_CPR": "1"}
    with PseudoTerminal(path, "-m", "chat", "-s", "1", "-y", "é", environment=environment) as chat:
        chat.wait_for("\n>")
        chat.type("ü漢\r")
        chat.wait_for(DONE)
        chat.wait_for("\n>")
        chat.type("/save c.json\r")
        chat.wait_for("Saved to")
        chat.wait_for("\n>")
        chat.type("\x04")
        assert chat.end() == 0
        assert (b"\x1b" in chat.written) == (term != "dumb")
    messages = json.loads((tmp_path / "c.json").read_text("utf-8"))["messages"]
    assert [message["content"] for message in messages[:2]] == ["é", "ü漢"]


# ---------------------------------------------------------------------------
# without a terminal


class FakeEditor:
    """Gives some lines, then the end of input. An exception is raised."""

    hint = ""
    marks_pastes = False

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.lines = list(lines)

    def read(self) -> str:
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, str):
            return line
        raise line


@pytest.fixture
def chat_of(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, Session]]:
    """Chats with a fake model that writes `script`; returns what was written, and the session."""
    monkeypatch.setenv("TERM", "dumb")

    def run(script: str, *lines: str | type[BaseException], context: int = 512) -> tuple[str, Session]:
        llama = fake_llama(script)
        session = Session(llama, {"temperature": 0, "seed": 5}, context)
        TerminalChat(session, FakeEditor(*lines)).run()
        return re.sub(r"read in [\d.]+ s|, [\d.]+ tok/s", "", capsysbinary.readouterr().out.decode()), session

    return run


ChatOf = Callable[..., "tuple[str, Session]"]


def test_the_text_of_a_model_does_not_control_the_terminal(chat_of: ChatOf) -> None:
    """Not even in one token of several characters. The API keeps what the terminal does not get."""
    script = "a\x1b]0;title\x07b\x1b[2J \u009b31m c\r\nd\x7f"
    written, session = chat_of(script, "hi")
    assert written.startswith("a]0;titleb[2J 31m c\nd\n[")
    assert session.turns[0].reply == script
    assert not any(c in written for c in "\x1b\x07\x9b\r\x7f")


def test_what_is_sent_and_what_is_not(chat_of: ChatOf) -> None:
    lines = ["", "  ", "\n\n", "/nonsense", " /stat", "//etc/hosts ", "  indented\n  text\n", KeyboardInterrupt, "/set top_p 7"]
    written, session = chat_of("yes", *lines)
    assert [turn.user for turn in session.turns] == ["/etc/hosts", "  indented\n  text"]
    assert "Unknown command: /nonsense." in written
    assert "Unknown command: /stat. The nearest one is /stats." in written
    assert "Ctrl-D or /quit ends the chat.\n" in written
    assert "top_p: expected a number from 0 to 1, found 7.0\n" in written


def test_why_a_reply_ends(chat_of: ChatOf) -> None:
    written, _ = chat_of("yes", "hi")
    assert written == "yes\n[19 tokens , 4 written, 23 of 512 in use]\n"
    written, session = chat_of("yes", "/set max_tokens 2", "hi")
    assert "ye [19 tokens , 2 written, 21 of 512 in use] The reply ends after max_tokens, 2." in " ".join(written.split())
    written, session = chat_of("yes" * 9, "hi", "more", context=23)
    assert " ".join(written.split()) == (
        "yesye [19 tokens , 5 written, 23 of 23 in use] The context is full, so the reply ends here. "
        "/forget drops the oldest turns, /reset starts anew. "
        "The conversation with this message has 47 tokens, and the context 23: it was not sent. "
        "/forget drops the oldest turns, /reset starts anew."
    )
    assert [turn.reply for turn in session.turns] == ["yesye"]


def test_a_model_that_fails_is_a_line(chat_of: ChatOf, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("logits: NaN")

    monkeypatch.setattr(FakeTransformer, "logits", broken)
    written, session = chat_of("yes", "hi")
    assert written == "logits: NaN\n" and session.turns == []


def test_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    for context, steps, expected in [
        (None, None, 512), (None, 0, 512), (100, None, 100), (None, 100, 100), (200, 100, 100), (9999, None, 512),
    ]:  # fmt: skip
        session = open_session(fake_llama(), {}, Arguments(context=context, steps=steps))
        assert session.context == expected

    new_cache = FakeTransformer.new_cache

    def limited(self: FakeTransformer, max_length: int) -> FakeCache:
        if max_length > 1500:
            raise MemoryError("too much")
        return new_cache(self, max_length)

    monkeypatch.setattr(FakeTransformer, "new_cache", limited)
    llama = fake_llama(seq_len=8192)
    assert open_session(llama, {}, Arguments()).context == 1024
    with pytest.raises(MemoryError):  # what is asked for is done, or refused
        open_session(llama, {}, Arguments(context=4096))


def test_without_a_terminal_it_is_the_chat_of_run_c(model: Path) -> None:
    """tests/commands/test_chat.py has the bytes. Here stdout is a terminal, and stdin is not."""
    master, slave = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "llama2c", model, "-m", "chat", "-t", "0"], stdin=subprocess.DEVNULL, stdout=slave, timeout=120
    )
    assert done.returncode == 0
    assert os.read(master, 1000).startswith(b"Enter system prompt (optional): ")
    os.close(master)
    os.close(slave)
