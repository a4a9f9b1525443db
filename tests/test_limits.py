"""limits: the memory that the system says there is, what there is without /proc, and the limits of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama2c import limits


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that seems to be /proc."""
    monkeypatch.setattr(limits, "Path", lambda path: tmp_path / path.removeprefix("/proc/"))
    return tmp_path


def test_memory(proc: Path) -> None:
    assert 10e6 < limits.total_memory() < 1e15
    assert limits.available_memory() == limits.total_memory()  # without /proc
    (proc / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:   123 kB\n")
    assert limits.available_memory() == 123 * 1024
    (proc / "meminfo").write_text("MemTotal: 900 kB\n")  # of an old kernel
    assert limits.available_memory() == limits.total_memory()


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a/b\n", {}, 10_000),
        ("0::/a/b\n", {"a/memory.max": "700", "a/b/memory.max": "max"}, 700),
        ("0::/a/b\n", {"memory.max": "90000", "a/b/memory.max": "5000\n"}, 5000),
        ("4:memory:/c\n0::/\n", {"memory/c/memory.limit_in_bytes": "800", "c/memory.max": "1"}, 800),
        ("4:cpu,memory:/c\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 10_000),
        ("4:cpu:/c\n", {"cpu/c/memory.limit_in_bytes": "1"}, 10_000),
        (None, {}, 10_000),
    ],
)
def test_control_groups_limit_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(limits, "available_memory", lambda: 10_000)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    if own is not None:
        (tmp_path / "own").write_text(own)
    assert limits.usable_memory(tmp_path / "groups", tmp_path / "own") == expected
