"""release/wheels.py: what is wrong with a wheel or with the place of its tests is found. Building one takes too long here."""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

RELEASE = Path(__file__).parents[2] / "release"
SOURCES = ("__init__.py", "py.typed", "_kernels.pyx", "_kernels.pyi", "team.h", "simd/loops.h", "bundled/tales1M.bin")
NAME = "llama2c-0.1.0-cp311-cp311-manylinux_2_34_x86_64.whl"
COMPILED = "_kernels.cpython-311-x86_64-linux-gnu.so"
GOOD = ("__init__.py", "py.typed", COMPILED, "_kernels.pyi", "bundled/tales1M.bin")


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """release/wheels.py, without twine"""
    if not RELEASE.is_dir():
        pytest.skip(f"needs the source tree: there is no {RELEASE}")
    monkeypatch.syspath_prepend(str(RELEASE))
    monkeypatch.delitem(sys.modules, "wheels", raising=False)
    module = importlib.import_module("wheels")
    monkeypatch.setattr(module, "run", lambda *_, **__: "")
    return module


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An unpacked source distribution, as far as it matters here."""
    for name in SOURCES:
        path = tmp_path / "source" / "llama2c" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "source"


def pack(folder: Path, names: tuple[str, ...], size: int = 10) -> Path:
    with zipfile.ZipFile(folder / NAME, "w") as file:
        for name in names:
            file.writestr(f"llama2c/{name}", os.urandom(size))
        file.writestr("llama2c.libs/libgomp-0123.so.1.0.0", b"")
        file.writestr("llama2c-0.1.0.dist-info/METADATA", b"")
    return folder / NAME


def test_a_good_wheel_passes(wheels: ModuleType, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = pack(tmp_path, GOOD)
    wheels.check(Path("python"), wheel, source)
    assert f"{NAME}: {wheel.stat().st_size:,} bytes" in capsys.readouterr().out
    (source / ".commit").touch()
    with pytest.raises(SystemExit, match=r"missing \['llama2c/_commit.py'\], not expected \[\]"):
        wheels.check(Path("python"), wheel, source)
    wheels.check(Path("python"), pack(tmp_path, (*GOOD, "_commit.py")), source)


def test_a_wheel_may_have_4_megabytes(wheels: ModuleType, source: Path, tmp_path: Path) -> None:
    overhead = pack(tmp_path, GOOD, 0).stat().st_size
    per_file = (4_000_000 - overhead) // len(GOOD)
    wheels.check(Path("python"), pack(tmp_path, GOOD, per_file), source)
    with pytest.raises(SystemExit, match="may have 4,000,000"):
        wheels.check(Path("python"), pack(tmp_path, GOOD, per_file + 1), source)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (tuple(name for name in GOOD if name != COMPILED), r"missing \['llama2c/_kernels.pyx'\]"),
        (GOOD[1:], r"missing \['llama2c/__init__.py'\]"),
        ((*GOOD, "team.h"), r"not expected \['llama2c/team.h'\]"),
        ((*GOOD, "bundled/more.bin"), r"not expected \['llama2c/bundled/more.bin'\]"),
    ],
)
def test_files_missing_and_too_many(
    wheels: ModuleType, source: Path, tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        wheels.check(Path("python"), pack(tmp_path, names), source)


def test_a_library_of_the_building_machine(
    wheels: ModuleType, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "run", lambda *_, **__: "$ORIGIN/../llama2c.libs\n")
    wheels.check(Path("python"), pack(tmp_path, GOOD), source)
    monkeypatch.setattr(wheels, "run", lambda *_, **__: "/home/somebody/lib\n")
    with pytest.raises(SystemExit, match=f"{COMPILED} looks for libraries in /home/somebody/lib"):
        wheels.check(Path("python"), pack(tmp_path, GOOD), source)


def test_the_path_of_the_tests_has_no_compiler(wheels: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wheels, "PROGRAMS", ("sh", "env"))
    (tmp_path / "bin").mkdir()
    path = wheels.path_without_compiler(tmp_path / "programs", tmp_path / "bin" / "python")
    assert path == f"{tmp_path / 'bin'}{os.pathsep}{tmp_path / 'programs'}"
    assert sorted(file.name for file in (tmp_path / "programs").iterdir()) == ["env", "sh"]
    (tmp_path / "bin" / "gcc").touch(mode=0o755)
    with pytest.raises(SystemExit, match="should have no compiler, but has gcc"):
        wheels.path_without_compiler(tmp_path / "more", tmp_path / "bin" / "python")


def test_the_newest_python_of_each_version_is_found(
    wheels: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those in PATH first; one that does not start is passed over."""

    def python(path: Path, code: int) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\nexit {code}\n")
        path.chmod(0o755)
        return str(path)

    versions = tmp_path / "pyenv" / "versions"
    python(tmp_path / "path" / "python3.11", 1)
    expected = [
        python(tmp_path / "path" / "python3.10", 0),
        python(versions / "3.11.7" / "bin" / "python", 0),
        python(versions / "3.12.10" / "bin" / "python", 0),
    ]
    python(versions / "3.10.13" / "bin" / "python", 0)
    python(versions / "3.11.8" / "bin" / "python", 1)
    python(versions / "3.12.9" / "bin" / "python", 0)
    python(versions / "3.9.18" / "bin" / "python", 0)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert wheels.find_pythons() == expected
