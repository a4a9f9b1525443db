"""machine: what the system says about the processor, and what there is without /proc."""

from __future__ import annotations

import itertools
import platform
from pathlib import Path

import numpy as np
import pytest

from llama2c.commands import machine


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that seems to be /proc."""
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / path.removeprefix("/proc/"))
    return tmp_path


def test_the_name_of_the_processor(proc: Path) -> None:
    assert machine.cpu_name() in (platform.processor(), platform.machine())
    (proc / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A CPU: 2 cores\nmodel name\t: B\n")
    assert machine.cpu_name() == "A CPU: 2 cores"


def test_read_bandwidth_is_bytes_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(machine, "perf_counter", lambda: float(next(seconds)))
    assert machine.read_bandwidth(np.ones(1000, np.float32), 1) == 4000
