"""--prompt-cache: the same bytes with it as without, in stories, answers and chats, and files that cannot be used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import SECONDS, Command

from llama2c import load
from llama2c.commands.prompt_cache import PromptCache
from llama2c.commands.session import Session

STORY = ["-i", "a story of many words and letters", "-s", "3", "-n", "60"]


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA2C_CACHE", str(tmp_path / "digests"))
    return tmp_path / "prompts"


def test_stories(command: Command, talker: tuple[Path, Any], cache: Path) -> None:
    """The first run computes the prompt, the second one and a longer prompt use what it kept."""
    plain = command(talker[0], *STORY)
    for known in (0, 34):
        result = command(talker[0], *STORY, "--prompt-cache", cache, "-v")
        assert (result.code, result.out) == (0, plain.out)
        assert f"llama2c: prompt cache: {known} of 35 tokens were computed before\n" in result.err
    longer = ["-i", f"{STORY[1]} about a dog", *STORY[2:]]
    kept = cache.read_bytes()
    result = command(talker[0], *longer, "--prompt-cache", cache, "-v")
    assert result.out == command(talker[0], *longer).out
    assert "prompt cache: 35 of 47 tokens" in result.err
    assert cache.stat().st_size > len(kept)
    kept = cache.read_bytes()
    slightly = ["-i", f"{longer[1]}s", *STORY[2:]]
    result = command(talker[0], *slightly, "--prompt-cache", cache)
    assert result.out == command(talker[0], *slightly).out
    assert cache.read_bytes() == kept  # nearly all of it was known


def test_a_new_process(talker: tuple[Path, Any], cache: Path) -> None:
    words = [sys.executable, "-m", "llama2c", talker[0], *STORY]
    plain, *others = (
        subprocess.run([*words, *more], capture_output=True, timeout=SECONDS, check=True).stdout
        for more in ([], ["--prompt-cache", cache], ["--prompt-cache", cache])
    )
    assert others == [plain, plain]


@pytest.mark.parametrize("kv", ["float32", "float16"])
def test_answers(command: Command, talker: tuple[Path, Any], cache: Path, kv: str) -> None:
    words = [talker[0], "-m", "chat", "-s", "5", "--kv", kv, "what is a word"]
    plain = command(*words)
    for _ in range(2):
        result = command(*words, "--prompt-cache", cache)
        assert (result.code, result.out, result.err) == (0, plain.out, plain.err)
    assert "prompt cache: 30 of 31 tokens" in command(*words, "--prompt-cache", cache, "-v").err


def test_chats(command: Command, talker: tuple[Path, Any], cache: Path) -> None:
    """A coin is drawn for every token of a prompt, also for those that were computed before."""
    words = [talker[0], "-m", "chat", "-s", "5", "-y", "", "-i", "hi there you"]
    plain = command(*words, stdin=b"and now\nwhat\n")
    for _ in range(2):
        result = command(*words, "--prompt-cache", cache, stdin=b"and now\nwhat\n")
        assert (result.code, result.out) == (0, plain.out)
    other = command(*words, stdin=b"and then\n")
    assert command(*words, "--prompt-cache", cache, stdin=b"and then\n").out == other.out


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: flip(path, 40), "not used: damaged between byte 28"),
        (lambda path: flip(path, path.stat().st_size - 1), "damaged between byte"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "not used: expected "),
        (lambda path: path.write_bytes(b""), "not used: the file is empty"),
    ],
)
def test_a_damaged_file(
    command: Command, talker: tuple[Path, Any], cache: Path, damage: Callable[[Path], Any], said: str
) -> None:
    """A warning, and the text is as it was; then the file is good again."""
    plain = command(talker[0], *STORY, "--prompt-cache", cache)
    damage(cache)
    result = command(talker[0], *STORY, "--prompt-cache", cache)
    assert (result.code, result.out) == (0, plain.out)
    assert result.err.count("warning") == 1
    assert f"llama2c: warning: {cache}: {said}" in result.err
    again = command(talker[0], *STORY, "--prompt-cache", cache, "-v")
    assert again.out == plain.out
    assert "prompt cache: 34 of 35 tokens" in again.err
    assert "warning" not in again.err


@pytest.mark.filterwarnings("always")
def test_the_file_of_another_model(command: Command, talker: tuple[Path, Any], cache: Path) -> None:
    command(talker[0], *STORY, "--prompt-cache", cache)
    plain = command(talker[0], *STORY, "--kv", "float16")
    result = command(talker[0], *STORY, "--kv", "float16", "--prompt-cache", cache)
    assert result.out == plain.out
    assert f"warning: {cache}: not used: expected those of the fingerprint " in result.err


def test_files_that_cannot_be_written(command: Command, talker: tuple[Path, Any], cache: Path) -> None:
    """What can be known before the model is loaded is an error, and no other file is overwritten."""
    model = talker[0]
    before = model.read_bytes()
    result = command(model, *STORY, "--prompt-cache", model)
    assert (result.code, result.out) == (1, b"")
    assert result.err == f"llama2c: error: {model}: expected a new file or saved prefixes, found another file\n"
    assert model.read_bytes() == before
    missing = cache / "none" / "file"
    result = command(model, *STORY, "--prompt-cache", missing)
    assert (result.code, result.out) == (1, b"")
    expected = f"expected a file in a folder that exists, found no folder {missing.parent}"
    assert result.err == f"llama2c: error: {missing}: {expected}\n"
    result = command(model, *STORY, "--prompt-cache", cache.parent)
    assert result.err == f"llama2c: error: {cache.parent}: expected a regular file, found a directory\n"
    result = command(model, *STORY, "--prompt-cache", cache, "--trace", cache)
    assert (result.code, result.out) == (2, b"")
    assert "--trace and --prompt-cache cannot be used together" in result.err


def test_a_disk_that_is_full_at_the_end_is_a_warning(
    command: Command, talker: tuple[Path, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device", str(cache))

    plain = command(talker[0], *STORY)
    monkeypatch.setattr("llama2c.engine.prefixes.Prefixes.save", fails)
    result = command(talker[0], *STORY, "--prompt-cache", cache)
    assert (result.code, result.out) == (0, plain.out)
    assert f"llama2c: warning: the prompt was not kept: {cache}: No space left on device\n" in result.err


def test_a_session(talker: tuple[Path, Any], cache: Path) -> None:
    llama = load(talker[0])
    settings = {"seed": 5, "max_tokens": 8}
    said = []
    for path in (None, str(cache), str(cache)):
        with PromptCache(llama, path) as prompt_cache:
            session = Session(llama, settings, 110, prompt_cache=prompt_cache)
            for text in ("hi there", "and"):
                reply = session.ask(text)
                list(reply)
                session.keep(reply)
                said.append((reply.text, reply.n_read))
    assert said[2:4] == said[:2]
    assert [text for text, _ in said[4:]] == [text for text, _ in said[:2]]
    assert said[4][1] == 1 < said[0][1]  # all but the last id were known
