"""benchmarks/story.py prints both stories, and compares them correctly."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from llama2c.locate import BUNDLED


@pytest.fixture(scope="module")
def story() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "story.py"
    spec = importlib.util.spec_from_file_location("story", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(folder: Path, name: str, line: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return f"{name}={path}"


def test_two_stories(story: ModuleType, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    same = script(tmp_path, "run", f"exec '{sys.executable}' -m llama2c \"$@\"")
    other = script(tmp_path, "other", "printf 'One day, Bob'")
    assert story.main(["--model", str(BUNDLED), "--c", same]) == 0
    out = capfdbinary.readouterr().out
    first, _, rest = out.partition(b"\nrun:\n")
    assert first.startswith(b"One day, Lily met a Shoggoth")
    assert rest == first + b"\nthey agree\n"
    assert story.main(["--model", str(BUNDLED), "--c", same, "--c", other]) == 1
    out = capfdbinary.readouterr().out
    assert b"\nthey differ after 9 bytes: llama2c continues with 'Lily met a Shoggoth" in out
    assert out.endswith(b"the other with 'Bob'\n")


def test_errors(story: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = script(tmp_path, "run", "exit 3")
    for flags, message in (
        (["--model", str(BUNDLED), "--c", broken], "run: expected exit code 0, found 3"),
        (["--model", str(BUNDLED), "--c", "run=/no/such"], "No such file or directory: '/no/such'"),
        (["--model", str(tmp_path / "absent.bin")], "expected"),
    ):
        assert story.main(flags) == 2
        assert message in capfd.readouterr().err
