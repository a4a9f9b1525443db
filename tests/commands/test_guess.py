"""A wrong first word: the line says what was probably meant, and says nothing where the word may be right."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Command

from llama2c import __version__
from llama2c.commands.guess import guess
from llama2c.commands.main import VERBS


@pytest.fixture(autouse=True)
def an_empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMA2C_CACHE", str(tmp_path / "cache"))


RUN = 'to continue a text: python -m llama2c {0} -i "..."; to ask a chat model: python -m llama2c {0} "..."'
NO_VERB = "there is no such verb or file; "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat"], f"chat: {NO_VERB}to chat: python -m llama2c MODEL -m chat"),
        (["chat", "a.gguf", "-t", "0"], f"chat: {NO_VERB}to chat: python -m llama2c a.gguf -m chat"),
        (["chat", "my model.gguf"], f"chat: {NO_VERB}to chat: python -m llama2c 'my model.gguf' -m chat"),
        (["chat", "-t", "0"], f"chat: {NO_VERB}to chat: python -m llama2c MODEL -m chat"),
        (["chat", "--sys", "x"], f"chat: {NO_VERB}to chat: python -m llama2c MODEL -m chat"),
        (["run", "a.bin", "one", "two"], f"run: {NO_VERB}{RUN.format('a.bin')}"),
        (["generate"], f"generate: {NO_VERB}{RUN.format('MODEL')}"),
        (["version"], f"version: {NO_VERB}python -m llama2c --version prints the version"),
        (["quantize", "a.bin"], f"quantize: {NO_VERB}to convert or quantise a model: python -m llama2c export a.bin -o OUT"),
        (["pull", "me/tales"], f"pull: {NO_VERB}to fetch a model: python -m llama2c download me/tales"),
        (["benhc"], "benhc: there is no such verb, file or model; did you mean bench?"),
        (["Downlaod", "stories15M"], "Downlaod: there is no such verb, file or model; did you mean download?"),
        (["perplexty", "-"], "perplexty: there is no such verb, file or model; did you mean perplexity?"),
        (
            ["stories15m"],
            "stories15m: there is no such verb, file or model; did you mean stories15M? "
            "python -m llama2c download stories15M fetches it",
        ),
        (
            ["Once upon a time"],
            "Once upon a time: there is no such file; to continue a text: python -m llama2c -i 'Once upon a time'",
        ),
        (
            ["What's TCP/IP?", "-t", "0"],
            "What's TCP/IP?: there is no such file; to continue a text: python -m llama2c -i 'What'\"'\"'s TCP/IP?'",
        ),
    ],
)
def test_what_was_meant(command: Command, arguments: list[str], message: str) -> None:
    assert command(*arguments) == (2, b"", f"llama2c: error: {message}\n")


@pytest.mark.parametrize("name", ["stories15M", "smollm2-135m", "me/tales", "me/tales:a.gguf"])
def test_a_model_to_download(command: Command, name: str) -> None:
    message = f"{name}: expected a file, or a model downloaded with `python -m llama2c download {name}`, found neither"
    assert command(name) == (1, b"", f"llama2c: error: {message}\n")


@pytest.mark.parametrize("word", ["absent.bin", "no such/model", "./chat", "qqqq", "Chat.gguf", "a b.bin"])
def test_a_missing_file_is_one(command: Command, tmp_path: Path, word: str) -> None:
    (tmp_path / "no such").mkdir()
    result = command(word)
    assert (result.code, result.out) == (1, b"")
    assert result.err == f"llama2c: error: {word}: expected a readable file, found: No such file or directory\n"


@pytest.mark.parametrize("name", ["chat", "run", "help", "benhc", "Once upon a time", "stories15m"])
def test_a_real_file_comes_first(command: Command, model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(model.read_bytes())
    (tmp_path / "tokenizer.bin").write_bytes(model.with_name("tokenizer.bin").read_bytes())
    result = command(name, "-t", "0", "-n", "9")
    assert (result.code, result.out) == (0, command(model, "-t", "0", "-n", "9").out)


def test_a_link_that_leads_nowhere_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "chat").symlink_to("absent")
    assert guess(["chat"], VERBS) is None


def test_help_and_version_need_no_right_word(command: Command) -> None:
    usage = command("--help").out
    assert command("chat", "-h").out == command("help", "chat").out == command("help").out == usage
    assert command("chat", "--version").out == f"llama2c {__version__}\n".encode()


def test_a_downloaded_model_needs_no_download(tmp_path: Path) -> None:
    (tmp_path / "cache" / "stories42M").mkdir(parents=True)
    (tmp_path / "cache" / "stories42M" / "stories42M.bin").touch()
    line = "stories42: there is no such verb, file or model; did you mean stories42M?"
    assert guess(["stories42"], VERBS) == line
    assert guess([], VERBS) is guess([""], VERBS) is guess(["-x"], VERBS) is None
