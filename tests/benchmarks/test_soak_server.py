"""benchmarks/soak_server.py finds an answer that changes, and what a server does not give back. A few requests."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc, for the memory of the process")


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "soak_server.py"
    spec = importlib.util.spec_from_file_location("soak_server", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in {"CLIENTS": 4, "CUTS": 5, "SLOW": 1, "MUTATED": 10, "GROWTH": 1 << 30, "WARM_UP": 0.0}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module.clients, "HOSTILE", module.clients.HOSTILE[-3:])
    return module


def test_a_good_run(soak: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--rounds", "2"]) == 0
    line = capsys.readouterr().out
    assert re.match(r"\d\.\d min: 8 answers, 10 cut connections, 2 slow readers, 20 mutated requests; memory \d+\.\d MiB", line)


def test_what_went_wrong_is_found(
    soak: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch, asked = soak.clients.fetch, []

    def changing(port: int, i: int) -> Any:
        asked.append(i)
        return fetch(port, i + 1 if len(asked) > 64 and i == 2 else i)

    monkeypatch.setattr(soak.clients, "fetch", changing)
    monkeypatch.setattr(soak.clients, "HOSTILE", [soak.clients.HOSTILE[-1]._replace(status=200)])
    sizes = iter([100 << 20, 100 << 20, (100 << 20) + (2 << 30), (100 << 20) + (2 << 30)])
    monkeypatch.setattr(soak.Server, "memory", property(lambda server: next(sizes)))
    assert soak.main(["--rounds", "2"]) == 1
    out = capsys.readouterr().out
    assert out.count("FAILED: request 2 has another answer\n") == 2
    assert "FAILED: AssertionError: ('a method of its own', 405, " in out
    assert "FAILED: memory grew by more than 1024 MiB\n" in out
