"""One answer: the text of llama.chat alone on stdout, by a chat template and in the form of Llama 2."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf_files
import pytest
from command_line import LETTERS, SECONDS, TALKER, Command, process, write_model
from gguf_files import ARRAY, F32, I32, STRING
from gguf_tokenizers import BYTE, CONTROL, KEY, NORMAL, UNKNOWN

import llama2c
from llama2c import Transformer
from llama2c.text.chat import chat_ids

QUESTION = "who are you"
USER = [{"role": "user", "content": QUESTION}]
SYSTEM = [{"role": "system", "content": "be nice"}]


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file with the weights of `talker` and a chat template."""
    pytest.importorskip("jinja2", reason="needs Jinja2")
    folder = tmp_path_factory.mktemp("chatty")
    file = gguf_files.good(TALKER, write_model(folder, TALKER, turns=True))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS.replace(" ", "\u2581")]
    file.set(f"{KEY}model", STRING, "llama").set(f"{KEY}tokens", ARRAY, (STRING, tokens))
    file.set(f"{KEY}scores", ARRAY, (F32, [0.0] * len(tokens)))
    file.set(f"{KEY}token_type", ARRAY, (I32, [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(LETTERS)]))
    short = "{% for message in messages %}{{ message.role[0] + ' ' + message.content + '. ' }}{% endfor %}a "
    file.set("tokenizer.chat_template", STRING, short)
    (folder / "model.gguf").write_bytes(file.pack())
    return folder / "model.gguf"


def expected(path: Path, messages: Sequence[dict[str, str]], **options: Any) -> bytes:
    """What llama.chat replies, and a newline."""
    return llama2c.load(path).chat(messages, max_tokens=None, **options).text.encode() + b"\n"


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"seed": 3, "temperature": 5},
    {"seed": 2**64 - 1, "temperature": 0.5, "top_p": 0.5},
    {"seed": 4, "top_k": 3, "top_p": 0},
    {"seed": 5, "min_p": 0.1, "repetition_penalty": 1.3, "temperature": 2},
    {"temperature": 0, "repetition_penalty": 2.5},
    {"seed": 9, "temperature": 5, "stop": ["m", "zz"]},
]


def flags(options: dict[str, Any]) -> list[str]:
    names = [(name, value) for name, value in options.items() if name != "stop"]
    names += [("stop", text) for text in options.get("stop", ())]
    return [word for name, value in names for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options))
@pytest.mark.parametrize("form", ["template", "llama2"])
def test_the_text_of_chat_alone(
    command: Command, chatty: Path, talker: tuple[Path, Any], form: str, options: dict[str, Any]
) -> None:
    path, mode = (chatty, []) if form == "template" else (talker[0], ["-m", "chat"])
    result = command(path, QUESTION, *mode, *flags(options))
    assert (result.code, result.out) == (0, expected(path, USER, **options))
    told = result.err.splitlines()
    assert told in ([], ["llama2c: The answer is cut off: the context of 110 positions is full"])
    result = command(*mode, path, *flags(options), "-y", "be nice", "--", QUESTION)
    assert (result.code, result.out) == (0, expected(path, SYSTEM + USER, **options))


def test_a_constraint(command: Command, chatty: Path) -> None:
    pytest.importorskip("llguidance", reason="needs llguidance")
    result = command(chatty, QUESTION, "--regex", "(yes|no) [0-9]{4}", "-s", "3")
    assert (result.code, result.out) == (0, expected(chatty, USER, regex="(yes|no) [0-9]{4}", seed=3))
    assert re.fullmatch(rb"(yes|no) [0-9]{4}\n", result.out) and result.err == ""


def test_options_matter(chatty: Path) -> None:
    """Else the comparison above says nothing."""
    assert len({expected(chatty, USER, **options) for options in OPTIONS}) == len(OPTIONS)
    assert expected(chatty, SYSTEM + USER, seed=3) != expected(chatty, USER, seed=3)


def test_an_empty_system_prompt_is_none(command: Command, chatty: Path) -> None:
    assert command(chatty, QUESTION, "-s", "3", "-y", "").out == expected(chatty, USER, seed=3)


def test_mode_chat_uses_the_template_of_a_model_that_has_one(command: Command, chatty: Path) -> None:
    assert command(chatty, QUESTION, "-s", "3", "-m", "chat").out == expected(chatty, USER, seed=3)


def test_the_question_from_stdin(command: Command, chatty: Path) -> None:
    """All lines, without the newline at the end, which a shell adds."""
    for stdin in (QUESTION, QUESTION + "\n"):
        assert command(chatty, "-", "-s", "3", stdin=stdin.encode()).out == expected(chatty, USER, seed=3)
    lines = [{"role": "user", "content": "a\nb\n"}]
    assert command(chatty, "-", "-s", "3", stdin=b"a\nb\n\n").out == expected(chatty, lines, seed=3)
    assert command(chatty, "-", stdin=b"a\xff") == (
        2, b"", "llama2c: error: stdin: expected valid UTF-8, found byte 0xFF at index 1\n"
    )  # fmt: skip


# ---------------------------------------------------------------------------
# where an answer ends


def ended(path: Path, reason: str, **options: Any) -> tuple[int, int]:
    """A seed whose reply ends for this reason, and the positions of its prompt and its reply, without a stop token."""
    llama = llama2c.load(path)
    for seed in range(1, 50):
        done = llama.chat(USER, max_tokens=None, seed=seed, **options)
        if done.finish_reason == reason and len(done.tokens) > 5:
            return seed, done.prompt_tokens + len(done.tokens) - 1
    raise AssertionError(f"no reply ends with {reason}")


def test_the_context_ends_an_answer_and_says_so(command: Command, chatty: Path) -> None:
    seed, n_positions = ended(chatty, "length", temperature=5)
    assert n_positions == 110
    hot = ("-s", str(seed), "-t", "5")
    result = command(chatty, QUESTION, *hot)
    assert result.err == "llama2c: The answer is cut off: the context of 110 positions is full\n"
    assert result.out == expected(chatty, USER, seed=seed, temperature=5)
    assert command(chatty, QUESTION, *hot, "-n", "0") == result
    more = command(chatty, QUESTION, *hot, "-n", "111")
    assert (more.out, more.err.count("\n")) == (result.out, 2)  # a warning, too


def test_fewer_positions(command: Command, chatty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """-n ends it without a word: it was asked for. --context says so, and makes a smaller cache."""
    seed, n_positions = ended(chatty, "stop")
    n_prompt = len(chat_ids(llama2c.load(chatty).tokenizer, USER))
    sizes = []
    new_cache = Transformer.new_cache

    def spy(transformer: Transformer, max_length: int | None = None) -> Any:
        sizes.append(max_length)
        return new_cache(transformer, max_length)

    monkeypatch.setattr(Transformer, "new_cache", spy)
    for n, cut in ((n_prompt, True), (n_positions - 1, True), (n_positions, False)):
        text = llama2c.load(chatty).chat(USER, max_tokens=n - n_prompt + 1, seed=seed).text.encode() + b"\n"
        sizes.clear()
        assert command(chatty, QUESTION, "-s", str(seed), "-n", str(n)) == (0, text, "")
        note = f"llama2c: The answer is cut off: the context of {n} positions is full\n" if cut else ""
        assert command(chatty, QUESTION, "-s", str(seed), "--context", str(n)) == (0, text, note)
        assert sizes == [n, n]


@pytest.mark.parametrize("flag", ["-n", "--context"])
def test_no_room_for_an_answer(command: Command, chatty: Path, flag: str) -> None:
    n_prompt = len(chat_ids(llama2c.load(chatty).tokenizer, USER))
    message = f"The question needs {n_prompt} positions, and there are only {n_prompt - 1}"
    assert command(chatty, QUESTION, flag, str(n_prompt - 1)) == (1, b"", f"llama2c: error: {message}\n")
    result = command(chatty, "word " * 99)
    assert (result.code, result.out) == (1, b"")
    assert result.err.endswith("positions, and there are only 110\n")


def test_an_empty_reply_is_an_empty_line(command: Command, chatty: Path) -> None:
    first = {len(llama2c.load(chatty).chat(USER, seed=seed).text): seed for seed in range(400)}
    assert 0 in first
    assert command(chatty, QUESTION, "-s", str(first[0])) == (0, b"\n", "")


# ---------------------------------------------------------------------------
# what is said on stderr, and errors


def test_verbose(command: Command, chatty: Path) -> None:
    quiet, told = command(chatty, QUESTION, "-t", "0"), command(chatty, QUESTION, "-t", "0", "-v")
    assert told.out == quiet.out
    lines = told.err.splitlines()
    assert lines[0].startswith("llama2c: version ")
    assert any(line.startswith("llama2c: prompt: ") for line in lines)
    assert any(line.startswith("llama2c: generation: ") for line in lines)


def test_a_model_without_a_template(command: Command, model: Path) -> None:
    line = (
        f"{model}: this model has no chat template, so it takes no question: "
        "-i TEXT continues a text, and -m chat asks in the form of Llama 2"
    )
    assert command(model, QUESTION) == (2, b"", f"llama2c: error: {line}\n")
    assert command(model, "-", stdin=b"hi").code == 2


def test_a_trace_of_an_answer(command: Command, chatty: Path) -> None:
    command(chatty, QUESTION, "-t", "0", "-n", "50", "--trace", "trace")
    ids = [int(line.split("\t")[2]) for line in Path("trace").read_text().splitlines() if line.startswith("top")]
    prompt = chat_ids(llama2c.load(chatty).tokenizer, USER)
    assert ids[: len(prompt)] == prompt


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_any_locale(tmp_path: Path, chatty: Path, locale: str) -> None:
    """The words are UTF-8, whatever the locale makes of them."""
    environment = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-m", "llama2c", os.fspath(chatty), "żółw?", "-s", "3", "-y", "é", "--stop", "ü"]
    done = subprocess.run(
        [word.encode() for word in words], env=environment, cwd=tmp_path, capture_output=True, timeout=SECONDS
    )
    messages = [{"role": "system", "content": "é"}, {"role": "user", "content": "żółw?"}]
    assert (done.returncode, done.stdout) == (0, expected(chatty, messages, seed=3))


def test_a_closed_stdin_and_a_closed_pipe(chatty: Path) -> None:
    closed = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-m", "llama2c", os.fspath(chatty), "-"]
    done = subprocess.run(closed, capture_output=True, timeout=SECONDS)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"llama2c: error: The question is empty\n")
    reader, writer = os.pipe()
    os.close(reader)
    running = process(chatty, QUESTION, stdout=writer)
    os.close(writer)
    _, err = running.communicate(timeout=SECONDS)
    assert (running.returncode, err) == (141, b"")


def test_a_real_model(command: Command, smollm2: Path) -> None:
    """A real model: the reply alone, which its end token ends."""
    result = command(smollm2, "What is the capital of France?", "-y", "You are a helpful assistant.", "-t", "0")
    assert result == (0, b"The capital of France is Paris.\n", "")
