"""The verb verify: what it needs, and what its exit code says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Command

from llama2c.locate import BUNDLED

FLAGS = ("--max-tokens", "6", "--threads", "1")


@pytest.fixture(autouse=True)
def out(command: Command) -> Path:
    """OUT of two good lines and a wrong one."""
    Path("in.jsonl").write_text('{"prompt": "The dog"}\n?\n{"prompt": "The cat", "temperature": 0}\n')
    assert command("batch", "in.jsonl", "-o", "out", *FLAGS).code == 1
    return Path("out")


def test_all_are_the_same(command: Command) -> None:
    assert command("verify", "out") == (0, b"", "llama2c: out: 3 answers are the same\n")
    assert command("verify", "out", "--sample", "2") == (0, b"", "llama2c: out: 2 answers are the same\n")
    assert command("verify", "out", "--sample", "9", "--max-sequences", "1").code == 0


def test_one_differs(command: Command, out: Path) -> None:
    *others, last = out.read_text().splitlines(keepends=True)
    out.write_text("".join([*others, last.replace('"error":', '"error": ')]))
    id = json.loads(last)["id"]
    result = command("verify", "out")
    assert (result.code, result.out) == (1, b"")
    assert result.err.splitlines() == [
        f"llama2c: {id!r}, line {id[-1]} of the input: the answer differs",
        "llama2c: error: out: 1 of 3 answers differ",
    ]


def test_a_moved_input_and_a_moved_model(command: Command, tmp_path: Path) -> None:
    Path("in.jsonl").rename("moved.jsonl")
    result = command("verify", "out")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "in.jsonl: expected a readable file, found: No such file or directory" in result.err
    assert command("verify", "out", "--input", "moved.jsonl").code == 0
    copy = tmp_path / "copy.bin"
    copy.write_bytes(BUNDLED.read_bytes())
    (tmp_path / "tokenizer.bin").write_bytes(BUNDLED.with_name("tokenizer.bin").read_bytes())
    assert command("verify", copy, "out", "--input", "moved.jsonl").code == 0


def test_another_model(command: Command, model: Path) -> None:
    result = command("verify", model, "out")
    assert result.code == 1
    assert "expected the fingerprint" in result.err and "which out was made with, found" in result.err


def test_a_part_of_the_requests(command: Command) -> None:
    content = Path("in.jsonl").read_text()
    Path("in.jsonl").write_text(content + '{"prompt": "more"}\n')
    result = command("verify", "out")
    missing = f"llama2c: 1 requests of {Path('in.jsonl').absolute()} have no answer in out yet"
    assert (result.code, result.err.splitlines()[0]) == (0, missing)
    Path("in.jsonl").write_text(content.splitlines(keepends=True)[0])
    result = command("verify", "out", "--input", "in.jsonl")
    assert (result.code, result.out) == (1, b"")
    assert result.err == "llama2c: error: out: 2 answers are to requests that are not in in.jsonl\n"


def test_a_shard_and_its_options(command: Command) -> None:
    Path("in.txt").write_text("Hello\nYou\n\nThere\n")
    flags = ("--shard", "2/2", "--chat", "-t", "0.3", "--kv", "float16", *FLAGS)
    assert command("batch", "in.txt", "-o", "third", *flags).code == 0
    assert command("verify", "third") == (0, b"", "llama2c: third: 1 answers are the same\n")


def test_what_was_made_from_a_pipe(command: Command, out: Path) -> None:
    header, *lines = out.read_text().splitlines(keepends=True)
    out.write_text(json.dumps({**json.loads(header), "input": None}).replace(": ", ":", 1) + "\n" + "".join(lines))
    result = command("verify", "out")
    assert (result.code, result.out) == (2, b"")
    assert result.err == "llama2c: error: --input: out was made from a pipe: name a file with the same content\n"
    assert command("verify", "out", "--input", "in.jsonl").code == 0


@pytest.mark.parametrize("content", [b"", b"notes\n", b'{"llama2c_batch":9}\n'])
def test_another_file(command: Command, content: bytes) -> None:
    Path("notes").write_bytes(content)
    result = command("verify", "notes")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "notes: expected" in result.err
