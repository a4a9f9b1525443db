"""The commands of a chat, without a terminal: what they change, and what they say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import fake_llama

from llama2c import ModelError, RequestError
from llama2c.commands.session import Reply, Session, Turn
from llama2c.commands.slash_commands import COMMANDS, as_value, complete, nearest, run_command


class FakeChat:
    """Keeps what is said, and makes replies as a terminal does."""

    def __init__(self, script: str | None = "yes", seq_len: int = 512) -> None:
        llama = fake_llama(script, seq_len=seq_len)
        llama.transformer.checkpoint = SimpleNamespace(path="fake.bin")  # type: ignore[assignment]
        self.session = Session(llama, {"seed": 5, "max_tokens": 9}, seq_len)
        self.ended = False
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def show(self, reply: Reply) -> None:
        list(reply)
        self.session.keep(reply)

    def ask(self, *texts: str) -> None:
        for text in texts:
            self.show(self.session.ask(text))

    def run(self, line: str) -> str:
        """What a command says."""
        self.said.clear()
        run_command(self, line)
        return "\n".join(self.said)


def test_every_command_is_in_the_help() -> None:
    help = FakeChat().run("/help")
    assert list(COMMANDS) == [
        "/help", "/system", "/retry", "/undo", "/forget", "/reset", "/save", "/load", "/set", "/stats", "/quit",
    ]  # fmt: skip
    assert [line.split()[0] for line in help.splitlines()[: len(COMMANDS)]] == list(COMMANDS)
    assert "//etc/hosts" in help and "Ctrl-C" in help


@pytest.mark.parametrize(
    ("line", "guess"),
    [
        ("/rest", "/reset"),
        ("/Help", "/help"),
        ("/stat", "/stats"),
        ("/retri x", "/retry"),
        ("/exit", "/quit"),
        ("/clear", "/reset"),
        ("/etc/hosts", None),
    ],
)
def test_an_unknown_command_is_named_with_the_nearest(line: str, guess: str | None) -> None:
    chat = FakeChat()
    said = chat.run(line)
    name = line.split()[0]
    meant = f" The nearest one is {guess}." if guess else ""
    assert said == f"Unknown command: {name}.{meant} /help lists them. To send it as a message, write /{name}"
    assert chat.session.turns == [] and not chat.ended


def test_a_long_unknown_command_is_not_repeated_whole() -> None:
    assert len(FakeChat().run("/" + "x" * 5000)) < 200
    assert "\n" not in FakeChat().run("/usr/bin/env\nmore lines")


def test_what_takes_nothing_after_it() -> None:
    chat = FakeChat()
    chat.ask("one")
    for name in ("/undo", "/reset", "/quit", "/retry"):
        assert chat.run(f"{name} everything").startswith(f"{name} takes nothing after it.")
    assert len(chat.session.turns) == 1 and not chat.ended


def test_system() -> None:
    chat = FakeChat()
    none = "There is no system prompt. The model's template may have one of its own."
    assert chat.run("/system") == none
    assert chat.run("/system  Be brief.\nBe kind. ") == "System prompt: Be brief.\nBe kind."
    assert chat.session.messages() == [{"role": "system", "content": "Be brief.\nBe kind."}]
    assert chat.run("/system") == "System prompt: Be brief.\nBe kind."
    assert chat.run("/system off") == none
    assert chat.session.messages() == []


def test_retry_says_its_seed_and_replaces_the_reply() -> None:
    chat = FakeChat(None)
    assert chat.run("/retry") == "There is no message yet."
    chat.ask("one", "two")
    first = chat.session.turns[-1]
    assert chat.run("/retry") == "Another reply, with seed 7:"
    assert len(chat.session.turns) == 2
    last = chat.session.turns[-1]
    assert (last.user, last.seed) == ("two", 7) and last.reply != first.reply


def test_undo_reset_and_forget() -> None:
    chat = FakeChat()
    for name in ("/undo", "/forget"):
        assert chat.run(name) == "There is no message yet."
    chat.ask("one", "two", "three " * 20, "four")
    assert chat.run("/undo") == "Dropped: four"
    assert chat.run("/undo") == f"Dropped: {('three ' * 20)[:60]}…"
    assert [turn.user for turn in chat.session.turns] == ["one", "two"]
    assert chat.run("/forget 1").startswith("Dropped the 1 oldest turn. ")
    assert chat.session.turns == [Turn("two", "", 6)]
    for wrong in ("0", "-1"):
        with pytest.raises(RequestError, match=f"/forget: expected an integer of at least 1, found {wrong}"):
            chat.run(f"/forget {wrong}")
    with pytest.raises(TypeError, match="/forget: expected an integer, found str"):
        chat.run("/forget all")
    assert len(chat.session.turns) == 1
    chat.session.system = "s"
    assert chat.run("/reset") == "The chat starts anew. The system prompt and the settings are as before."
    assert chat.session.turns == [] and chat.session.system == "s"


def test_save_and_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chat = FakeChat()
    chat.ask("one", "two")
    assert chat.run("/save") == "/save needs the name of a file: /save chat.json"
    assert chat.run("/save my chat.json") == f"Saved to {tmp_path / 'my chat.json'}: 2 turns"
    other = FakeChat()
    assert other.run("/load") == "/load needs the name of a file: /load chat.json"
    said = other.run("/load my chat.json")
    assert said.startswith("Loaded my chat.json: 2 turns. ") and said.endswith("The last message was: two")
    assert other.session.turns == chat.session.turns
    with pytest.raises(ModelError):
        (tmp_path / "broken").write_text("{")
        other.run("/load broken")


def test_set() -> None:
    chat = FakeChat()
    assert chat.run("/set").splitlines() == [
        "temperature 1.0", "top_p 0.9", "top_k 0", "min_p 0.0", "repetition_penalty 1.0", "max_tokens 9", "stop []", "seed 5",
    ]  # fmt: skip
    assert chat.run("/set temperature 0.5") == "temperature 0.5"
    assert chat.run("/set temperature") == "temperature 0.5"
    assert chat.run("/set max_tokens none") == "max_tokens null"
    assert chat.run('/set stop ["a b", "c"]') == 'stop ["a b", "c"]'
    assert chat.run("/set stop THE END") == 'stop "THE END"'
    assert chat.run('/set stop "\\n"') == 'stop "\\n"'
    assert chat.run("/set seed 18446744073709551615") == "seed 18446744073709551615"
    for wrong in ("/set heat", "/set heat 3"):
        with pytest.raises(RequestError, match="heat: unknown setting; there are temperature, "):
            chat.run(wrong)
    with pytest.raises(RequestError, match="top_p: expected a number from 0 to 1, found 7"):
        chat.run("/set top_p 7")
    with pytest.raises(TypeError, match="top_k: expected an integer, found float"):
        chat.run("/set top_k 1.5")
    assert chat.session.settings["top_p"] == 0.9


def test_stats() -> None:
    chat = FakeChat()
    assert "Seeds of the replies: none. The next reply has seed 5." in chat.run("/stats")
    chat.ask("one", "two")
    said = chat.run("/stats").splitlines()
    assert said[0] == "Model: fake.bin, threads: 1"
    assert said[1] == f"Turns: 2. {chat.session.count_tokens()} of 512 tokens of the context are used."
    assert said[2] == "Seeds of the replies: 5, 6. The next reply has seed 7."


def test_quit() -> None:
    chat = FakeChat()
    assert chat.run("/quit") == "" and chat.ended


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.7", 0.7),
        ("3", 3),
        ("none", None),
        ("OFF", None),
        ("true", True),
        ('"x"', "x"),
        ("x y", "x y"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_values(text: str, value: object) -> None:
    assert as_value(text) == value


def test_completion() -> None:
    assert complete("/re") == ["/retry", "/reset"]
    assert complete("/set t") == ["/set temperature ", "/set top_p ", "/set top_k "]
    assert complete("hello") == complete("") == complete("/x") == []
    assert nearest("/zzz") is None
