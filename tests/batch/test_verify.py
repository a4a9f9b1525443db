"""Verify: what was changed in OUT, in IN or in the order of OUT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama2c import RequestError
from llama2c.batch.output import Output
from llama2c.batch.plan import Plan
from llama2c.batch.run import Runner
from llama2c.batch.verify import Recorded, verify
from llama2c.batch.work import Answered, Worker
from llama2c.engine.engine import Engine
from llama2c.llama import Llama

from .conftest import entries_of

LINES: list[Any] = [{"prompt": f"The {word}", "max_tokens": 4, "id": word} for word in ("dog", "cat", "bird")]
LINES.append(b"?")
Found = Callable[..., "tuple[tuple[int, int, int, int], list[str]]"]


@pytest.fixture
def path(tmp_path: Path, llama: Llama, plan: Plan) -> Path:
    path = tmp_path / "out"
    with Output(str(path)) as out, Engine(llama) as engine:
        worker = Worker(llama, engine, out.begin(plan))
        with Runner(worker, lambda answered: out.write(answered.line)) as runner:
            for entry in entries_of(*LINES):
                runner.add(entry)
            runner.finish()
    return path


@pytest.fixture
def found(path: Path, llama: Llama) -> Found:
    """The counts (same, different, missing, without a request), and what was told."""

    def found(lines: list[Any] = LINES, sample: int | None = None) -> tuple[tuple[int, int, int, int], list[str]]:
        told: list[str] = []
        drawn: list[Answered] = []
        with Recorded(str(path)) as record, Engine(llama) as engine:
            worker = Worker(llama, engine, record.plan)
            counts = verify(record, worker, entries_of(*lines), told.append, sample, drawn.append)
            assert sample is None or len(drawn) == sample
            return (counts.same, counts.different, counts.missing, record.answers.unmet()), told

    return found


def test_all_are_the_same_in_any_order(found: Found, path: Path) -> None:
    assert found() == ((4, 0, 0, 0), [])
    header, *lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + b"".join(reversed(lines)) + lines[0][:-1])  # and one that is being written
    assert found() == ((4, 0, 0, 0), [])


def test_a_sample(found: Found) -> None:
    assert found(sample=2) == ((2, 0, 0, 0), [])


def test_every_changed_byte_is_seen(found: Found, path: Path) -> None:
    content = path.read_bytes()
    for old, new in ((b'"prompt_tokens":3', b'"prompt_tokens":4'), (b'"text":"', b'"text":" '), (b"valid JSON", b"valid jSON")):
        assert old in content
        path.write_bytes(content.replace(old, new, 1))
        counts, told = found()
        assert counts == (3, 1, 0, 0)
        assert len(told) == 1 and told[0].endswith("of the input: the answer differs")


def test_a_changed_request_is_named(found: Found) -> None:
    lines = [{**LINES[0], "max_tokens": 5}, *LINES[1:]]
    assert found(lines) == ((3, 1, 0, 0), ["'dog', line 1 of the input: the request is another one now"])


def test_requests_without_answers_and_answers_without_requests(found: Found) -> None:
    assert found([*LINES, {"prompt": "more"}]) == ((4, 0, 1, 0), [])
    assert found(LINES[:2]) == ((2, 0, 0, 2), [])


def test_another_file(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("notes\n")
    with pytest.raises(RequestError, match=r"expected the output of a batch, found another file$"):
        Recorded(str(tmp_path / "notes"))
    with pytest.raises(FileNotFoundError):
        Recorded(str(tmp_path / "none"))


def test_the_plan_is_that_of_the_file(path: Path, plan: Plan) -> None:
    with Recorded(str(path)) as record:
        assert record.plan == plan
