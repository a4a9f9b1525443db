"""OUT: whole lines whatever happens, found again, and never another file."""

from __future__ import annotations

import errno
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama2c import RequestError
from llama2c.batch.ids import Meeting, key_of
from llama2c.batch.lines import Shape
from llama2c.batch.output import Output, parse_answer, recorded
from llama2c.batch.plan import Plan, dump

from .conftest import DAY

PLAN = Plan("f" * 32, None, DAY)
GOOD = b'{"id":"a","request":"00000000000000ff","text":"x\\"y","error":null}\n'
WRONG = b'{"id":"line-2","request":"0000000000000001","text":null,"error":"line: expected valid JSON"}\n'
OPENAI = b'{"id":"batch_req_8000000000000000","custom_id":"\\u0001\\"","response":{},"error":null}\n'


def write(path: Path, *lines: bytes, plan: Plan = PLAN) -> None:
    with Output(str(path)) as out:
        out.begin(plan)
        for line in lines:
            out.write(line)
        out.sync()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_a_new_file(path: Path) -> None:
    write(path, GOOD, WRONG)
    assert path.read_bytes() == PLAN.header() + GOOD + WRONG


def test_what_is_done_is_found_again(path: Path) -> None:
    write(path, GOOD, WRONG, OPENAI)
    with Output(str(path)) as out:
        later = replace(PLAN, date=DAY.replace(year=2030), model="elsewhere")
        assert out.begin(later).date == DAY
        assert (len(out.done), out.n_wrong, out.repaired) == (3, 1, 0)
        assert out.done.meet(key_of("a"), 255) is Meeting.DONE
        assert out.done.meet(key_of("line-2"), 2) is Meeting.CHANGED
        assert out.done.meet(key_of('\x01"'), 2**63) is Meeting.DONE
        assert out.done.unmet() == 0
        out.write(OPENAI)
    assert path.read_bytes() == PLAN.header() + GOOD + WRONG + OPENAI + OPENAI


def test_a_file_that_ends_anywhere_is_repaired(path: Path) -> None:
    whole = PLAN.header() + GOOD + WRONG
    ends = [0, len(PLAN.header()), len(PLAN.header() + GOOD), len(whole)]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with Output(str(path)) as out:
            out.begin(PLAN)
            n_lines = sum(size >= end for end in ends[2:])
            assert len(out.done) == n_lines
            assert out.repaired == size - max(end for end in ends if end <= size)
        assert path.read_bytes() == whole[: ends[1 + n_lines]]


def test_a_file_that_an_editor_gave_other_ends_of_lines(path: Path) -> None:
    path.write_bytes((PLAN.header() + GOOD + WRONG + OPENAI).replace(b"\n", b"\r\n"))
    with Output(str(path)) as out:
        out.begin(PLAN)
        assert (len(out.done), out.n_wrong, out.repaired) == (3, 1, 0)


def test_a_long_end_without_a_newline_is_cut_off(path: Path) -> None:
    write(path, GOOD)
    with open(path, "ab") as file:
        file.write(bytes(3 << 20))
    with Output(str(path)) as out:
        out.begin(PLAN)
        assert out.repaired == 3 << 20
    assert path.read_bytes() == PLAN.header() + GOOD


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("content", [b"my notes\n", b"x", b'{"prompt": "a"}\n', b'{"llama2c_other":1}\n'])
def test_another_file_is_refused_and_stays(path: Path, content: bytes, restart: bool) -> None:
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"expected the output of a batch, found another file$"):
        Output(str(path), restart)
    assert path.read_bytes() == content


def test_restart(path: Path) -> None:
    write(path, GOOD)
    other = replace(PLAN, seed=9, shape=Shape("text"))
    with Output(str(path), restart=True) as out:
        assert out.begin(other) == other
        assert (len(out.done), out.repaired) == (0, 0)
        out.write(WRONG)
    assert path.read_bytes() == other.header() + WRONG


def test_a_line_in_the_middle_that_is_none_of_ours(path: Path) -> None:
    write(path, GOOD, b"{}\n", WRONG)
    with Output(str(path)) as out, pytest.raises(RequestError, match="line 3: expected an answer of a batch"):
        out.begin(PLAN)
    assert path.read_bytes() == PLAN.header() + GOOD + b"{}\n" + WRONG


@pytest.mark.parametrize("chunk", [64, 300, 1 << 20])
def test_what_is_read_of_answers_is_what_a_parser_reads(path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    texts = ["", "x" * 300, 'a"b', "a\\", ',"error":null}', "ż\n🐢", '","request":"', "{}"]
    answers: list[dict[str, Any]] = []
    for i in range(200):
        text, request = rng.choice(texts), f"{rng.getrandbits(64):016x}"
        id = rng.choice([i, f"{i}", f'{i}"\\ż🐢\x01', f"{i}\ud800"])
        ours = {"id": id, "request": request, "text": text}
        openai = {"id": f"batch_req_{request}", "custom_id": str(id), "response": {"text": text}}
        answers.append({**rng.choice([ours, openai]), "error": rng.choice([None, text])})
    lines = [dump(answer) for answer in answers]
    path.write_bytes(PLAN.header() + b"".join(lines))
    monkeypatch.setattr("llama2c.batch.lines.CHUNK", chunk)
    data = path.read_bytes()
    with open(path, "rb") as file:
        found = list(recorded(file.fileno(), str(path), len(data)))
    keys, requests = b"".join(block.keys for block in found), [int(number) for block in found for number in block.requests]
    assert keys == b"".join(key_of(answer.get("custom_id", answer["id"])) for answer in answers)
    assert requests == [int(answer.get("request") or answer["id"][-16:], 16) for answer in answers]
    assert sum(block.n_wrong for block in found) == sum(answer["error"] is not None for answer in answers)
    starts = [int(start) for block in found for start in block.starts()]
    assert [data[start:].partition(b"\n")[0] + b"\n" for start in starts] == lines
    for i in (0, 57, 199):
        path.write_bytes(PLAN.header() + b"".join([*lines[:i], lines[i][1:], *lines[i + 1 :]]))
        with open(path, "rb") as file, pytest.raises(RequestError, match=f": line {i + 2}: expected an answer of a batch"):
            list(recorded(file.fileno(), str(path), len(data) - 1))


def test_two_runs_do_not_mix(path: Path) -> None:
    with Output(str(path)) as out:
        out.begin(PLAN)
        for restart in (False, True):
            with pytest.raises(OSError, match="another run is writing this file now") as raised:
                Output(str(path), restart)
            assert raised.value.filename == str(path)
        out.write(GOOD)
    write(path)
    assert path.read_bytes() == PLAN.header() + GOOD


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a file in a folder that exists, found no folder"):
        Output(str(tmp_path / "none" / "out"))
    with pytest.raises(IsADirectoryError):
        Output(str(tmp_path))
    with pytest.raises(ValueError, match="null"):
        Output(str(tmp_path / "a\0b"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_device_is_named() -> None:
    with Output("/dev/full") as out, pytest.raises(OSError) as raised:
        out.begin(PLAN)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "/dev/full")


def test_a_part_of_a_line_is_taken_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full after some bytes of a line."""
    write(path, GOOD)
    with Output(str(path)) as out:
        out.begin(PLAN)
        real, room = os.write, [10]

        def full(fd: int, data: bytes) -> int:
            if not room[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            n = real(fd, data[: room[0]])
            room[0] -= n
            return n

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OSError, match="No space left"):
                out.write(WRONG)
        assert path.read_bytes() == PLAN.header() + GOOD


@pytest.mark.parametrize(
    "line", [b"", b"{}", GOOD[:-3], GOOD[:-1].replace(b"ff", b"fg"), b'{"id":1.5,"request":"00000000000000ff","error":null}']
)
def test_what_is_none_of_our_lines(line: bytes) -> None:
    assert parse_answer(line) is None


def test_ids_of_lines() -> None:
    assert parse_answer(GOOD[:-1]) == ("a", 255)
    assert parse_answer(GOOD[:-1].replace(b'"a"', b"-5")) == (-5, 255)
    assert parse_answer(GOOD[:-1].replace(b'"a"', '"ż\\\\\\""'.encode())) == ('ż\\"', 255)


def test_a_folder_without_locks_is_a_warning(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(RuntimeWarning, match=r"cannot be locked \(Operation not supported\): make sure that only one run"):
        write(path, GOOD)
    assert path.read_bytes() == PLAN.header() + GOOD
