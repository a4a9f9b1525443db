"""benchmarks/batch.py: every work is measured on a tiny model, and the table compares what it says. No test asserts a speed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llama2c.locate import BUNDLED

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("measure", "pages", "peers", "batch"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(importlib.import_module("measure"), "PAUSE", 0)
    return importlib.import_module("batch")


def test_all_works(batch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MADE", 4)
    sizes = ["--rounds", "1", "--threads", "1", "--prompts", "3", "--lines", "5", "--no-llama-cpp"]
    assert batch.main(["--model", str(BUNDLED), *sizes, "-o", str(tmp_path)]) == 0
    samples = json.loads((tmp_path / "batch.json").read_text())["samples"]
    assert [len(kept["values"]) for kept in samples] == [1] * 6 and all(kept["values"][0] > 0 for kept in samples)
    lines = (tmp_path / "batch.md").read_text().splitlines()
    for start in (
        f"| 3 prompts of 50 tokens, 4 made, {BUNDLED.stem} | ",
        "| first answer after 5 finished lines, bundled model | ",
        "| memory with 5 finished lines, bundled model | ",
    ):
        assert sum(line.startswith(start) for line in lines) == 1
    assert "\n".join(lines) in capsys.readouterr().out


def test_all_programs_of_a_round_have_the_same_prompts(batch: Any, tmp_path: Path) -> None:
    works = batch.Works(BUNDLED, 1, 3, 2, tmp_path)
    first, second = works.prompts("batch"), works.prompts("batch")
    assert first == works.prompts("generate_many") != second == works.prompts("generate_many")
    assert len({*first, *second}) == 6 and all(50 <= len(works.tokenizer.encode(prompt)) < 60 for prompt in first + second)


def test_a_file_that_is_done_but_for_a_line(batch: Any, tmp_path: Path) -> None:
    resumed = batch.Resumed(5, tmp_path)
    for _ in range(2):
        assert resumed.seconds() > 0
        ids = [json.loads(line).get("id") for line in resumed.out.read_bytes().splitlines()]
        assert ids == [None, *(f"request-{i}" for i in range(5)), "new"]


def test_a_model_that_is_not_there(batch: Any, tmp_path: Path) -> None:
    assert batch.main(["--model", str(tmp_path / "no.bin")]) == 2
