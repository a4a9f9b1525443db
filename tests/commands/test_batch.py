"""The verb batch as a whole: every form of IN, interruptions of every kind, and what it refuses."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from command_line import SECONDS, Command, Result, process
from pseudo_terminal import PseudoTerminal

import llama2c
from llama2c.commands import batch as module
from llama2c.engine.engine import Engine
from llama2c.llama import Llama
from llama2c.sampler import seed_of_id

WORDS = "dog cat bird girl mouse bear cow fox hen pig".split()
PROMPTS = [f"The {word} {n}" for word in WORDS for n in range(4)]
FLAGS = ("--max-tokens", "12", "--threads", "1")
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def llama() -> Llama:
    return llama2c.load(n_threads=1)


def write_lines(path: str, lines: list[Any]) -> None:
    Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path: str = "out") -> tuple[dict[str, Any], Lines]:
    header, *lines = (json.loads(line) for line in Path(path).read_bytes().splitlines())
    return header, lines


def by_id(path: str = "out") -> list[bytes]:
    """The lines of OUT after the header, sorted by id."""
    return sorted(Path(path).read_bytes().splitlines(keepends=True)[1:], key=lambda line: str(json.loads(line)["id"]))


def done(result: Result) -> str:
    """stderr of a run in which no line was wrong."""
    assert (result.code, result.out) == (0, b""), result.err
    return result.err


# ---------------------------------------------------------------------------
# forms


def test_a_text(command: Command, llama: Llama) -> None:
    Path("in.txt").write_text("\n".join(PROMPTS))
    err = done(command("batch", "in.txt", "-o", "out", *FLAGS))
    header, lines = read_lines()
    assert header["llama2c_batch"] == 1
    assert header["fingerprint"] == llama.fingerprint
    assert header["date"] == date.today().isoformat()
    assert (header["options"], header["seed"], header["format"]) == ({"max_tokens": 12}, 1, "text")
    assert (header["input"], header["shard"]) == (str(Path("in.txt").absolute()), "1/1")
    texts = {line["id"]: line["text"] for line in lines}
    for i, prompt in enumerate(PROMPTS, 1):
        expected = llama.generate(prompt, max_tokens=12, seed=seed_of_id(1, f"line-{i}"))
        assert texts[f"line-{i}"] == expected.text
    tokens = sum(line["generation_tokens"] for line in lines)
    prompt_tokens = sum(line["prompt_tokens"] for line in lines)
    counts = f"{tokens} tokens for {prompt_tokens} of prompts"
    summary = rf"^llama2c: 40 lines answered, 0 wrong; {counts} in [\d.]+ s, [\d.]+ tok/s$"
    assert re.search(summary, err, re.MULTILINE)


def test_csv_json_and_text_give_the_same(command: Command) -> None:
    ids = [f"line-{i}" for i in range(1, 11)]
    Path("in.txt").write_text("\n".join(WORDS))
    Path("in.csv").write_text("id,story\n" + "".join(f"{id},{word}\n" for id, word in zip(ids, WORDS, strict=True)))
    write_lines("in.jsonl", [{"prompt": word} for word in WORDS])
    found = []
    for name, flags in (("in.txt", ()), ("in.csv", ("--column", "story")), ("in.jsonl", ())):
        done(command("batch", name, "-o", f"{name}.out", *FLAGS, *flags))
        found.append([{**json.loads(line), "request": None} for line in by_id(f"{name}.out")])
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 10


def test_messages_and_chat(command: Command, llama: Llama) -> None:
    write_lines("in.jsonl", [{"messages": [{"role": "user", "content": "Hello"}], "id": "line-1"}])
    Path("in.txt").write_text("Hello")
    expected = llama.chat([{"role": "user", "content": "Hello"}], max_tokens=12, seed=seed_of_id(1, "line-1")).text
    done(command("batch", "in.jsonl", "-o", "a", *FLAGS))
    done(command("batch", "in.txt", "-o", "b", "--chat", *FLAGS))
    assert read_lines("a")[1][0]["text"] == read_lines("b")[1][0]["text"] == expected


def test_lines_of_openai(command: Command, llama: Llama) -> None:
    body = {"prompt": "The dog", "max_tokens": 5}
    line = {"custom_id": "q-1", "method": "POST", "url": "/v1/completions", "body": body}
    write_lines("in.jsonl", [line, {**line, "custom_id": "q-2", "url": "/v1/files"}])
    result = command("batch", "in.jsonl", "-o", "out", "--ordered")
    assert result.code == 1
    good, wrong = read_lines()[1]
    choice = good["response"]["body"]["choices"][0]
    assert choice["text"] == llama.generate("The dog", max_tokens=5, seed=seed_of_id(1, "q-1")).text
    assert (good["custom_id"], good["error"], good["response"]["body"]["created"]) == ("q-1", None, 0)
    assert (wrong["custom_id"], wrong["response"]["status_code"]) == ("q-2", 400)
    assert wrong["error"]["message"].startswith("url: expected")
    assert "cached_tokens" not in Path("out").read_text()


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "POSIX"])
def test_pipes_in_any_locale(locale: str, tmp_path: Path) -> None:
    content = "\ufeff" + json.dumps({"prompt": "żółw", "id": "🐢"}, ensure_ascii=False) + "\r\n" + '{"prompt": "a", "id": "b"}'
    run = process("batch", "-", "-o", "-", *FLAGS, stdin=subprocess.PIPE, cwd=tmp_path, env={**os.environ, "LC_ALL": locale})
    out, err = run.communicate(content.encode(), timeout=SECONDS)
    assert run.returncode == 0, err
    header, *lines = (json.loads(line) for line in out.decode().splitlines())
    assert (header["input"], header["format"]) == (None, "jsonl")
    assert {line["id"] for line in lines} == {"🐢", "b"}
    assert "🐢".encode() in out


def test_a_slow_pipe_gets_each_answer_before_the_next_prompt(tmp_path: Path) -> None:
    run = process("batch", "-", "-o", "-", "--format", "text", *FLAGS, stdin=subprocess.PIPE, cwd=tmp_path)
    assert run.stdin is not None and run.stdout is not None
    assert run.stdout.readline().startswith(b'{"llama2c_batch"')
    for i in range(1, 4):
        run.stdin.write(b"The dog\n")
        run.stdin.flush()
        assert json.loads(run.stdout.readline())["id"] == f"line-{i}"
    assert run.communicate(timeout=SECONDS)[0] == b""
    assert run.returncode == 0


# ---------------------------------------------------------------------------
# seeds, order, shards


def test_neither_order_nor_batch_nor_shards_change_a_byte(command: Command) -> None:
    lines: list[Any] = [{"prompt": prompt, "id": i} for i, prompt in enumerate(PROMPTS)]
    lines[7]["id"] = lines[3]["id"]  # an id twice, in two shards
    write_lines("in.jsonl", lines)
    runs = {
        "one": ("--max-sequences", "1"),
        "many": ("--max-sequences", "20"),
        "ordered": ("--ordered", "--max-sequences", "7"),
        **{f"shard{k}": ("--shard", f"{k}/3") for k in (1, 2, 3)},
    }
    for name, flags in runs.items():
        result = command("batch", "in.jsonl", "-o", name, *FLAGS, *flags)
        assert result.code == (1 if name in ("one", "many", "ordered", "shard2") else 0), result.err
    assert by_id("one") == by_id("many") == by_id("ordered")
    assert sorted(by_id("shard1") + by_id("shard2") + by_id("shard3")) == sorted(by_id("one"))
    assert [len(by_id(f"shard{k}")) for k in (1, 2, 3)] == [14, 13, 13]
    ids = [i if i != 7 else "line-8" for i in range(40)]
    assert [line["id"] for line in read_lines("ordered")[1]] == ids
    assert read_lines("ordered")[1][7]["error"] == "id: expected one that no earlier line has, found 3"


def test_defaults_by_flags_and_the_seed(command: Command, llama: Llama) -> None:
    write_lines("in.jsonl", [{"prompt": "The dog", "id": "a"}, {"prompt": "The dog", "id": "b", "seed": 3, "top_p": 0.5}])
    flags = ("-n", "9", "-t", "0.7", "-p", "0.8", "--top-k", "50", "--min-p", "0.01", "--repetition-penalty", "1.1")
    done(command("batch", "in.jsonl", "-o", "out", "--ordered", *flags, "--stop", "xyz", "--stop", "!", "-s", "5"))
    options: Any = {
        "max_tokens": 9, "temperature": 0.7, "top_p": 0.8, "top_k": 50, "min_p": 0.01, "repetition_penalty": 1.1,
        "stop": ["xyz", "!"],
    }  # fmt: skip
    header, lines = read_lines()
    assert header["options"] == options
    expected = [
        llama.generate("The dog", **options, seed=seed_of_id(5, "a")).text,
        llama.generate("The dog", **{**options, "top_p": 0.5}, seed=3).text,
    ]
    assert [line["text"] for line in lines] == expected


def test_a_schema_for_all_lines(command: Command) -> None:
    pytest.importorskip("llguidance")
    Path("schema.json").write_text('{"enum": ["yes", "no"]}')
    Path("in.txt").write_text("A\nB\n")
    done(command("batch", "in.txt", "-o", "out", "--schema", "schema.json"))
    assert {line["text"] for line in read_lines()[1]} <= {'"yes"', '"no"'}


# ---------------------------------------------------------------------------
# interruptions


@pytest.fixture
def undisturbed(command: Command) -> list[bytes]:
    """The lines that in.jsonl has to give, by id."""
    lines: list[Any] = [{"prompt": prompt, "id": i} for i, prompt in enumerate(PROMPTS)]
    write_lines("in.jsonl", [*lines, {"prompt": 5, "id": "wrong"}])
    assert command("batch", "in.jsonl", "-o", "expected", *FLAGS).code == 1
    return by_id("expected")


def test_the_same_command_again_has_nothing_to_do(command: Command, undisturbed: list[bytes]) -> None:
    before = Path("expected").read_bytes()
    result = command("batch", "in.jsonl", "-o", "expected", *FLAGS)
    assert result.code == 1
    assert "0 lines answered, 1 wrong, 41 were done before" in result.err
    assert Path("expected").read_bytes() == before


def run_until(n_lines: int, *arguments: str, **options: Any) -> tuple[subprocess.Popen[bytes], BinaryIO]:
    """A run that has written so many more lines, as its timings tell through a pipe; and the end of the pipe."""
    readable, writable = os.pipe()
    flags = (*FLAGS, "-o", "out", "--timings", f"/dev/fd/{writable}")
    run = process("batch", *arguments, *flags, pass_fds=[writable], **options)
    os.close(writable)
    timings = open(readable, "rb")  # noqa: SIM115  the caller closes it
    if run.stdin is not None:
        run.stdin.write(Path("in.jsonl").read_bytes())
        run.stdin.flush()
    for _ in range(n_lines):
        assert timings.readline()
    return run, timings


@pytest.mark.parametrize("ordered", [(), ("--ordered",)])
def test_killed_and_cut_anywhere_it_goes_on(command: Command, undisturbed: list[bytes], ordered: tuple[str, ...]) -> None:
    rng = random.Random(3)
    for _ in range(2):
        run, timings = run_until(rng.randrange(1, 10), "in.jsonl", "--max-sequences", "4", *ordered)
        with timings:
            run.kill()
            run.communicate(timeout=SECONDS)
        with open("out", "r+b") as file:  # as if it had been in the middle of a write
            file.truncate(os.fstat(file.fileno()).st_size - rng.randrange(0, 60))
    result = command("batch", "in.jsonl", "-o", "out", *FLAGS, *ordered)
    assert result.code == 1
    assert by_id() == undisturbed
    if ordered:
        assert [line["id"] for line in read_lines()[1]] == [*range(40), "wrong"]


def test_ctrl_c_keeps_what_is_finished(command: Command, undisturbed: list[bytes]) -> None:
    run, timings = run_until(3, "-", stdin=subprocess.PIPE)  # which does not end
    with timings:
        run.send_signal(signal.SIGINT)
        assert run.stdin is not None and run.stdout is not None and run.stderr is not None
        with run.stdin, run.stdout, run.stderr:
            err = run.stderr.read().decode()
            assert run.wait(SECONDS) == 130
    lines = by_id()
    assert f"interrupted: {len(lines)} lines were added; the same command goes on" in err
    assert len(lines) >= 3
    assert set(lines) <= set(undisturbed)
    assert command("batch", "in.jsonl", "-o", "out", *FLAGS).code == 1
    assert by_id() == undisturbed


def test_ctrl_c_in_a_terminal() -> None:
    Path("in.txt").write_text("The dog\n" * 5000)
    with PseudoTerminal("batch", "in.txt", "-o", "out", "-n", "200", "--max-sequences", "2", columns=100) as terminal:
        terminal.wait_for("tok/s")
        terminal.interrupt()
        assert terminal.end() == 130
        assert re.search(r"interrupted: \d+ lines were added; the same command goes on", terminal.text)
    assert Path("out").read_bytes().endswith(b"}\n")


def test_a_full_disk_keeps_what_is_finished(command: Command, undisturbed: list[bytes]) -> None:
    sizes = []
    for limit in (3, 1000):  # blocks of 512 bytes, of 1024 in some shells
        script = f'ulimit -f {limit}; exec "$@"'
        full = ["sh", "-c", script, "sh", sys.executable, "-m", "llama2c", "batch", "in.jsonl", "-o", "out", *FLAGS]
        run = subprocess.run(full, capture_output=True, timeout=SECONDS)
        assert run.returncode == 1
        content = Path("out").read_bytes()
        assert content.endswith(b"}\n")
        sizes.append(len(content))
        if limit < 1000:
            assert b"llama2c: error: out: File too large" in run.stderr
    assert 1000 < sizes[0] < sizes[1]
    assert by_id() == undisturbed


def test_the_date_is_that_of_the_first_run(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    write_lines("in.jsonl", [line, {**line, "custom_id": "b"}])
    done(command("batch", "in.jsonl", "-o", "out", *FLAGS, "--shard", "1/1"))
    content = Path("out").read_text().replace(date.today().isoformat(), "2020-02-02")
    Path("out").write_text("".join(content.splitlines(keepends=True)[:2]))
    done(command("batch", "in.jsonl", "-o", "out", *FLAGS))
    assert [line["response"]["body"]["date"] for line in read_lines()[1]] == ["2020-02-02"] * 2


def test_requests_may_be_added(command: Command, undisturbed: list[bytes]) -> None:
    shutil.copy("expected", "out")
    with open("in.jsonl", "a") as file:
        file.write('{"prompt": "more", "id": "more"}\n')
    assert command("batch", "in.jsonl", "-o", "out", *FLAGS).code == 1
    assert len(by_id()) == 42
    assert set(undisturbed) < set(by_id())


def test_what_is_refused_on_resuming(command: Command, undisturbed: list[bytes], model: Path) -> None:
    before = Path("expected").read_bytes()

    def refused(*arguments: str | Path) -> str:
        result = command("batch", *arguments)
        assert (result.code, result.out) == (1, b"")
        assert Path("expected").read_bytes() == before
        return result.err

    assert "--temperature: expected was made with none, found 0.5 (--restart begins anew)" in refused(
        "in.jsonl", "-o", "expected", *FLAGS, "-t", "0.5"
    )
    assert "--seed: expected was made with 1, found 2" in refused("in.jsonl", "-o", "expected", *FLAGS, "-s", "2")
    assert "--shard" in refused("in.jsonl", "-o", "expected", *FLAGS, "--shard", "1/2")
    assert "expected a model with the fingerprint" in refused(model, "in.jsonl", "-o", "expected", *FLAGS)
    assert "--kv" not in refused("in.jsonl", "-o", "expected", *FLAGS, "--kv", "float16")  # the fingerprint says it
    lines = Path("in.jsonl").read_text().splitlines(keepends=True)
    Path("in.jsonl").write_text("".join([lines[0], lines[1].replace("The dog", "A dog"), *lines[2:]]))
    assert "in.jsonl: line 2: expected has the answer to another request with the id 1" in refused(
        "in.jsonl", "-o", "expected", *FLAGS
    )
    assert command("batch", "in.jsonl", "-o", "expected", *FLAGS, "--restart", "-s", "2").code == 1
    assert len(by_id("expected")) == 41
    assert read_lines("expected")[0]["seed"] == 2


def test_answers_without_a_request_are_told(command: Command) -> None:
    Path("in.txt").write_text("A\nB\nC\n")
    done(command("batch", "in.txt", "-o", "out", *FLAGS))
    Path("in.txt").write_text("A\n")
    err = done(command("batch", "in.txt", "-o", "out", *FLAGS))
    assert "warning: out has 2 answers to requests that are not in in.txt" in err


# ---------------------------------------------------------------------------
# bad input


def test_wrong_lines_are_answered_told_and_counted(command: Command) -> None:
    good = b'{"prompt": "a", "id": "x"}'
    lines = [good, b"{", good, b'{"prompt": "\xff"}', b'{"prompt": "a", "hot": 1}']
    lines += [b'{"prompt": "%s"}' % (b"word " * 5000), b'"x"', b'{"prompt": "b"}', b'{"prompt": "%s"}' % (b"x" * (9 << 20))]
    Path("in.jsonl").write_bytes(b"\n".join(lines))
    result = command("batch", "in.jsonl", "-o", "out", "--ordered", *FLAGS)
    assert result.code == 1
    found = [(line["id"], line["error"]) for line in read_lines()[1]]
    assert found[0] == ("x", None) and found[7] == ("line-8", None)
    assert [id for id, _ in found[1:]] == [f"line-{n}" for n in range(2, 10)]
    starts = ("line: expected valid JSON", "id: ", "line: expected valid UTF-8", "hot: unknown option", "prompt: expected 1 to")
    for (_, error), start in zip(found[1:6], starts, strict=True):
        assert error.startswith(start)
    assert found[8][1] == "line: expected at most 8388608 bytes, found more"
    err = result.err.splitlines()
    assert err[0].startswith("llama2c: in.jsonl: line 2: line: expected valid JSON (Expecting property name")
    assert "llama2c: 9 lines answered, 7 wrong;" in result.err
    assert err[-1] == "llama2c: error: 7 lines are wrong; `error` in their answers says why"


def test_few_wrong_lines_are_told(command: Command) -> None:
    Path("in.jsonl").write_text("?\n" * 30)
    result = command("batch", "in.jsonl", "-o", "out")
    assert result.err.count("line: expected valid JSON") == module.MOST_TOLD
    assert len(read_lines()[1]) == 30


def test_strict(command: Command) -> None:
    first, last = {"prompt": "a", "max_tokens": 0}, {"prompt": "b", "max_tokens": 0}
    write_lines("in.jsonl", [first, {"prompt": "a", "top_k": -1}, last])
    result = command("batch", "in.jsonl", "-o", "out", "--strict")
    assert (result.code, result.err) == (1, "llama2c: error: line 2: top_k: expected an integer of at least 0, found -1\n")
    assert [line["id"] for line in read_lines()[1]] == ["line-1"]
    write_lines("in.jsonl", [first, {"prompt": "a", "top_k": 1}, last])
    done(command("batch", "in.jsonl", "-o", "out", "--strict"))
    assert read_lines()[1][0]["id"] == "line-1"
    assert len(read_lines()[1]) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("none.jsonl", "-o", "out"), 1, "none.jsonl: expected a readable file, found: No such file or directory"),
        ((".", "-o", "out"), 1, ".: expected a readable file, found: Is a directory"),
        (("in.txt", "-o", "none/out"), 1, "none/out: expected a file in a folder that exists, found no folder"),
        (("in.txt", "-o", "in.txt"), 2, "OUT: expected another file than IN, found in.txt"),
        (("in.txt", "-o", "./in.txt"), 2, "OUT: expected another file than IN, found ./in.txt"),
        (("in.txt", "-o", "link.txt"), 2, "OUT: expected another file than IN, found link.txt"),
        (("in.txt", "-o", "notes"), 1, "notes: expected the output of a batch, found another file"),
        (("in.txt", "-o", "notes", "--restart"), 1, "notes: expected the output of a batch, found another file"),
        (("in.txt", "-o", "out", "--timings", "in.txt"), 2, "--timings: expected another file than IN, found in.txt"),
        (("in.txt", "-o", "out", "--timings", "./out"), 2, "--timings: expected another file than OUT, found ./out"),
        (("in.txt", "-o", "out", "--timings", "none/t"), 1, "none/t: expected a place to write to"),
        (("in.txt", "-o", "-", "--restart"), 2, "--restart: is for a file"),
        (("in.txt", "-o", "out", "--column", "a"), 1, "in.txt: expected a column 'a', found Once"),
        (("in.txt", "-o", "out", "--column", "a", "--format", "text"), 2, "--column: is for CSV, and IN is text"),
        (("in.jsonl", "-o", "out", "--chat"), 2, "--chat: is for CSV and text"),
        (("in.txt", "-o", "out", "--shard", "0/3"), 2, "argument --shard: expected K/N such as 3/8"),
        (("in.txt", "-o", "out", "--shard", "4/3"), 2, "argument --shard: expected K/N such as 3/8"),
        (("in.txt", "-o", "out", "-t", "-1"), 1, "--temperature: expected a finite number of at least 0, found -1"),
        (("in.txt", "-o", "out", "-t", "hot"), 2, "argument -t/--temperature: invalid float value: 'hot'"),
        (("in.txt", "-o", "out", "-s", str(2**64)), 1, "--seed: expected an integer from 0 to"),
        (("in.txt", "-o", "out", "--max-sequences", "9999"), 1, "--max-sequences: expected an integer from 1 to 1024"),
        (("in.txt", "-o", "out", "--regex", "a", "--schema", "s"), 2, "--schema: cannot be used together with --regex"),
        (("in.txt",), 2, "the following arguments are required: -o/--out"),
        (("none.bin", "in.txt", "-o", "out"), 1, "none.bin"),
    ],
)
def test_what_cannot_be_done(command: Command, arguments: tuple[str, ...], code: int, message: str) -> None:
    Path("in.txt").write_text("Once\n")
    Path("in.jsonl").write_text("{}\n")
    Path("notes").write_text("notes\n")
    Path("link.txt").symlink_to("in.txt")
    result = command("batch", *arguments)
    assert (result.code, result.out) == (code, b"")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert Path("in.txt").read_text() == "Once\n"
    assert Path("notes").read_text() == "notes\n"


def test_a_cache_that_is_too_small_ends_the_run_and_not_the_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines("in.jsonl", [{"prompt": "b", "max_tokens": 0, "top_k": -1}, {"prompt": "a", "max_tokens": 40}])
    with monkeypatch.context() as patch:
        patch.setattr(module, "open_engine", lambda llama, options: Engine(llama, cache_bytes=100))
        result = command("batch", "in.jsonl", "-o", "out", "--ordered")
    assert result.code == 1
    assert "llama2c: error: line 2: request: expected to need at most 100 bytes of cache, found" in result.err
    assert [line["id"] for line in read_lines()[1]] == ["line-1"]
    assert command("batch", "in.jsonl", "-o", "out", "--ordered").code == 1
    assert [line["error"] is None for line in read_lines()[1]] == [False, True]


def test_a_closed_stdin(tmp_path: Path) -> None:
    command = f'exec "{sys.executable}" -m llama2c batch - -o out <&-'
    run = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, timeout=SECONDS)
    assert (run.returncode, run.stderr) == (1, b"llama2c: error: stdin: expected an open file, found it closed\n")


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("The dog\n" * 2000)
    run = process("batch", "in.txt", "-o", "-", "-n", "3", cwd=tmp_path)
    assert run.stdout is not None and run.stderr is not None
    run.stdout.readline()
    run.stdout.close()
    with run.stderr:
        assert run.stderr.read() == b""
    assert run.wait(SECONDS) == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_devices(command: Command) -> None:
    Path("in.txt").write_text("The dog\n" * 3)
    result = command("batch", "in.txt", "-o", "/dev/full", *FLAGS)
    assert (result.code, result.err) == (1, "llama2c: error: /dev/full: No space left on device\n")
    result = command("batch", "in.txt", "-o", "out", *FLAGS, "--timings", "/dev/full")
    assert result.code == 1
    assert result.err == "llama2c: error: /dev/full: No space left on device\n"
    done(command("batch", "in.txt", "-o", "out", *FLAGS))
    assert len(read_lines()[1]) == 3


def test_out_may_be_a_pipe_with_a_name(command: Command) -> None:
    Path("in.txt").write_text("The dog\n" * 3)
    os.mkfifo("fifo")
    with subprocess.Popen(["cat", "fifo"], stdout=subprocess.PIPE) as cat:
        try:
            done(command("batch", "in.txt", "-o", "fifo", *FLAGS))
            out, _ = cat.communicate(timeout=SECONDS)
        finally:
            cat.kill()
    assert len(out.splitlines()) == 4
    assert stat.S_ISFIFO(os.stat("fifo").st_mode)


def test_in_may_be_a_pipe_with_a_name(command: Command) -> None:
    os.mkfifo("fifo.txt")
    with subprocess.Popen(["sh", "-c", "printf 'The dog\\nThe cat\\n' > fifo.txt"]) as writer:
        try:
            done(command("batch", "fifo.txt", "-o", "out", *FLAGS))
        finally:
            writer.kill()
    assert [line["id"] for line in read_lines()[1]] == ["line-1", "line-2"]


# ---------------------------------------------------------------------------
# what is told


def test_timings_are_added(command: Command) -> None:
    Path("in.txt").write_text("The dog\nThe cat\n")
    for i in (1, 2):
        done(command("batch", "in.txt", "-o", f"out{i}", "--timings", "times", *FLAGS))
    found = [json.loads(line) for line in Path("times").read_text().splitlines()]
    assert [sorted(line["id"] for line in found[i : i + 2]) for i in (0, 2)] == [["line-1", "line-2"]] * 2
    assert all(line["seconds"] > 0 and line["generation_tokens"] == 12 for line in found)
    assert set(found[0]) == {"id", "seconds", "prompt_tokens", "cached_tokens", "generation_tokens"}
    assert by_id("out1") == by_id("out2")


def test_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "perf_counter", lambda: 110.0)
    tally = module.Tally(n_done=10, n_answered=2, generation_tokens=50, start=100.0, first=1000, place=2000)
    assert tally.describe(None) == "12 lines, 5 tok/s"
    assert tally.describe(2000 + 3600 * 100 + 6100) == "12 lines, 5 tok/s, 1:01:01 left"
    tally.place = 1000
    assert tally.describe(5000) == "12 lines, 5 tok/s"


def test_progress_lines(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama2c.commands.terminal.EVERY", 0.0)
    Path("in.txt").write_text("The dog\nThe cat\n")
    err = done(command("batch", "in.txt", "-o", "out", *FLAGS))
    assert re.search(r"^llama2c: 1 lines, \d+ tok/s, 0:00:\d\d left$", err, re.MULTILINE)


def test_a_bar_in_a_terminal() -> None:
    pytest.importorskip("tqdm")
    Path("in.txt").write_text("The dog\n" * 50)
    with PseudoTerminal("batch", "in.txt", "-o", "out", *FLAGS, columns=100) as terminal:
        assert terminal.end() == 0
        assert "100%|" in terminal.text
        assert re.search(r"\d+ lines, \d+ tok/s, 0:00:\d\d left", terminal.text)
        assert "50 lines answered, 0 wrong" in terminal.text


