"""benchmarks/engine.py: every work is measured on a tiny model, and the table compares what it says."""

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
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("measure", "pages", "peers", "engine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("engine")
    monkeypatch.setattr(module, "TURNS", 2)
    monkeypatch.setattr(module, "TURN_TOKENS", 8)
    return module


def test_all_works(engine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--rounds", "1", "--threads", "1", "--prompts", "3", "--tokens", "6", "--long", "40", "--no-llama-cpp"]
    assert engine.main(["--model", str(BUNDLED), *sizes, "-o", str(tmp_path)]) == 0
    samples = json.loads((tmp_path / "engine.json").read_text())["samples"]
    assert len(samples) == 3 + 8 * 2 and all(len(kept["values"]) == 1 and kept["values"][0] > 0 for kept in samples)
    lines = (tmp_path / "engine.md").read_text().splitlines()
    name = BUNDLED.stem
    for start in (
        f"| 16 texts at once, {name} | ",
        f"| 3 prompts of 200 + 20 tokens, 8 made, {name} | ",
        f"| 8 samples of one prompt of 200 tokens, {name} | ",
        f"| prompt of 40 tokens from a file, {name} | ",
        f"| a text with one word changed, {name} | ",
        f"| a free story, {name} | ",
        f"| prompt of 40 tokens beside 4 texts, {name} | ",
        f"| first token at turn 2 of a chat, {name} | ",
        f"| gap between tokens beside that prompt, 99th percentile, {name} | ",
    ):
        assert sum(line.startswith(start) for line in lines) == 1 + (start.startswith("| 16"))
    assert "\n".join(lines) in capsys.readouterr().out


def test_gaps(engine: Any) -> None:
    assert engine.gaps([0.0, 1.0, 1.5, 3.5], 1.0, 2.0) == [1000.0, 500.0]
    assert engine.percentile([1.0] * 99 + [5.0]) == pytest.approx(1.04)


def test_a_model_is_needed(engine: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        engine.main([])
    assert engine.main(["--model", str(tmp_path / "no.bin")]) == 2
