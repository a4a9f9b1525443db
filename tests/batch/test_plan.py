"""The plan in the first line of OUT: read back as it was, and compared."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from llama2c import RequestError
from llama2c.batch.lines import Shape
from llama2c.batch.plan import MARK, Plan, dump, read_plan

from .conftest import DAY

OPTIONS = {"temperature": 0.5, "stop": ["a", "\n"]}
PLAN = Plan("f" * 32, "1.8", DAY, 5, OPTIONS, Shape("csv", "ż", True), (3, 8), "/m", "/t", "float16", "/in")


def test_it_is_read_back() -> None:
    line = PLAN.header()
    assert line.startswith(MARK) and line.count(b"\n") == 1
    assert read_plan(line, "OUT") == PLAN
    assert read_plan(Plan("f", None, DAY).header(), "OUT") == Plan("f", None, DAY)
    assert json.loads(line)["date"] == "2026-01-31"


def test_paths_are_not_compared() -> None:
    PLAN.check_same(replace(PLAN, model="/other", tokenizer=None, input=None, date=DAY.replace(year=2020)), "OUT")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"fingerprint": "e"}, "expected a model with the fingerprint e, as OUT was made with, found ffff"),
        ({"seed": 6}, "--seed: OUT was made with 6, found 5 (--restart begins anew)"),
        ({"shard": (1, 1)}, '--shard: OUT was made with "1/1", found "3/8"'),
        ({"shape": Shape("text", "ż", True)}, '--format: OUT was made with "text", found "csv"'),
        ({"shape": Shape("csv", "z", True)}, "--column: OUT was made with"),
        ({"shape": Shape("csv", "ż", False)}, "--chat: OUT was made with false, found true"),
        ({"options": {"temperature": 0.5}}, '--stop: OUT was made with none, found ["a", "\\n"]'),
        ({"options": {**PLAN.options, "max_tokens": 5}}, "--max-tokens: OUT was made with 5, found none"),
        ({"options": {**PLAN.options, "temperature": 1}}, "--temperature: OUT was made with 1, found 0.5"),
    ],
)
def test_what_gives_other_bytes_is_refused(other: Any, message: str) -> None:
    with pytest.raises(RequestError) as raised:
        PLAN.check_same(read_plan(replace(PLAN, **other).header(), "OUT"), "OUT")
    assert str(raised.value).startswith(message)
    assert str(raised.value).endswith("(--restart begins anew)")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b"5",
        b'{"llama2c_batch":1}',
        b'{"llama2c_batch":1',
        PLAN.header().replace(b"2026-01-31", b"yesterday"),
    ],
)
def test_another_line_is_refused(line: bytes) -> None:
    with pytest.raises(RequestError, match=r"^OUT: expected the output of a batch, found another file$"):
        read_plan(line, "OUT")


def test_another_version_is_named() -> None:
    with pytest.raises(RequestError, match=r"^OUT: expected version 1 of the output of a batch, found 2$"):
        read_plan(PLAN.header().replace(b":1,", b":2,", 1), "OUT")


def test_llguidance_must_be_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama2c.batch.plan.llguidance_version", lambda: "1.8")
    PLAN.check_llguidance()
    monkeypatch.setattr("llama2c.batch.plan.llguidance_version", lambda: None)
    with pytest.raises(OSError, match=r"^llguidance: expected version 1.8, found None"):
        PLAN.check_llguidance()


@pytest.mark.parametrize("text", ["ż🐢", "\ud800", "a\nb\r\u2028\x00", '"\\'])
def test_any_text_is_a_line_of_json(text: str) -> None:
    line = dump({"a": text})
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert json.loads(line.decode()) == {"a": text}
