"""benchmarks/pages.py: the parts of a page between its comments."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
INFO = {"cpu": "CPU", "cores": 1, "isa": "avx2", "system": "S", "threads": 1, "rounds": 3, "date": "2026-01-02", "tokens": 100}


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("measure", "pages"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("pages")


@pytest.fixture
def record(pages: Any) -> Any:
    measure = importlib.import_module("measure")

    def samples(model: str, program: str, values: list[float], aim: float | None = None) -> Any:
        return measure.Samples("decode", model, program, aim=aim, values=values)

    kept = [
        samples("110M fp32", "llama2c", [1, 2, 3]),
        samples("110M fp32", "run", [1, 1, 2], 1.5),
        samples("110M fp32", "NumPy", [1, 1, 1]),
        samples("42M fp32", "llama2c", [5, 5, 5]),
        samples("42M fp32", "run", [4, 4, 4], 1.0),
    ]
    return pages.Record({**INFO, "command": "compare"}, kept)


def test_parts(pages: Any, record: Any) -> None:
    parts = pages.parts(record, record, record)
    sentence = "2026-01-02, CPU, 1 core, S, avx2, 1 thread, medians (lowest to highest) of 3 rounds:"
    big = "| decode, 110M fp32 | 2.00 tok/s (1.00 to 3.00) | run | 1.00 (1.00 to 2.00) | 2.00 (1.00 to 2.00) | ≥ 1.50 | yes |"
    small = "| decode, 42M fp32 | 5.00 tok/s (5.00 to 5.00) | run | 4.00 (4.00 to 4.00) | 1.25 (1.25 to 1.25) | ≥ 1.00 | yes |"
    head = ["| work | llama2c | against | theirs | ratio | aim | met |", "|---|---:|---|---:|---:|---:|---|"]
    assert parts["readme"].splitlines() == [sentence, "", *head, big]
    assert parts["stories"].splitlines() == ["`compare`", "", sentence, "", *head, big, small]
    assert parts["gguf"] == parts["stories"]


def test_filled(pages: Any) -> None:
    page = "a\n\n<!-- figures: x -->\nold\n<!-- end -->\n\nb\n<!-- figures: y -->\n<!-- end -->\n"
    new = "a\n\n<!-- figures: x -->\n1\n<!-- end -->\n\nb\n<!-- figures: y -->\n2\n<!-- end -->\n"
    assert pages.filled(page, {"x": "1", "y": "2"}) == new
    assert pages.filled(new, {"x": "1", "y": "2"}) == new
    with pytest.raises(KeyError):
        pages.filled(page, {"x": "1"})


def test_few_rows_and_long_contexts_have_their_own_part(pages: Any, record: Any) -> None:
    """Their lines with an aim and their pictures, of both runs. The other parts leave them out."""
    nothing = "The stored runs are older than these measurements and have no figures of them."
    assert pages.parts(record, record, record)["few"] == nothing
    before = pages.parts(record, record, record)["stories"]
    samples = importlib.import_module("measure").Samples
    for program, value, aim in (("llama2c", 10.0, None), ("llama.cpp", 30.0, 2.5), ("other", 5.0, None)):
        record.samples.append(samples("step", "135M Q8_0", program, "ms", 8, aim, values=[value] * 3))
    parts = pages.parts(pages.Record({**record.info}), record, record)
    sentence = "2026-01-02, CPU, 1 core, S, avx2, 1 thread, medians (lowest to highest) of 3 rounds:"
    line = "| step of R = 8, 135M Q8_0 | 10.0 ms (10.0 to 10.0) | llama.cpp | 30.0 (30.0 to 30.0) | 3.00 (3.00 to 3.00) "
    line += "| ≥ 2.50 | yes |"
    head = ["| work | llama2c | against | theirs | ratio | aim | met |", "|---|---:|---|---:|---:|---:|---|"]
    picture = "![Milliseconds of a step over its sequences](../benchmarks/results/gguf/step.png)"
    assert parts["few"].splitlines() == [sentence, "", *head, line, "", picture]
    assert pages.parts(record, record, record)["stories"] == before
    record.info |= {"version": "1", "commit": "", "python": "3"}
    page = pages.markdown(record)
    assert line in page
    table = (
        "| sequences R | llama2c | llama.cpp | other |\n|---:|---:|---:|---:|\n| 8 | 10.0 (10.0 to 10.0) | 30.0 (30.0 to 30.0) "
    )
    assert table in page
