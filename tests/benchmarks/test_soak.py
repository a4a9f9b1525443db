"""benchmarks/soak.py finds a result that changes and memory that grows. A few jobs, with the bundled model."""

from __future__ import annotations

import importlib.util
import itertools
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc, for the memory of the process")


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "soak.py"
    spec = importlib.util.spec_from_file_location("soak", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in {"KNOWN": 5, "NEW": 1, "GROWTH": 1 << 30}.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_a_good_run(soak: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--minutes", "0"]) == 0
    line = capsys.readouterr().out
    assert re.match(r"\d\.\d min, 2 rounds, 19 jobs, 0 results that changed; memory \d+\.\d MiB after", line), line


def test_a_result_that_changes_is_found(
    soak: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count, result = itertools.count(), soak.result

    def changing(*arguments: Any) -> str:
        return "another" if next(count) == 7 else result(*arguments)

    monkeypatch.setattr(soak, "result", changing)
    assert soak.main(["--minutes", "0"]) == 1
    assert ", 1 results that changed;" in capsys.readouterr().out


def test_memory_that_grows_is_found(
    soak: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = iter([100 << 20, (100 << 20) + (2 << 30)])
    monkeypatch.setattr(soak, "resident", lambda: next(sizes))
    assert soak.main(["--minutes", "0"]) == 1
    assert "memory 100.0 MiB after warm-up, 2148.0 at the end" in capsys.readouterr().out
