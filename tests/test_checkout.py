"""checkout: sources that step aside for the installed package say so if an edit of theirs has no effect, and only then."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import llama2c
from llama2c.checkout import COMPILED, digest_of_compiled, find_change, stale_message

ROOT = Path(__file__).parents[1]
PACKAGE = Path(llama2c.__path__[0])


class Pair(NamedTuple):
    """A clone, and a folder for packages in which it is installed."""

    clone: Path
    site: Path

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd or self.clone,
            env={**os.environ, "PYTHONPATH": str(self.site), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""},
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Two folders that agree: the package as it is installed here, and a clone with its sources."""
    clone, site = tmp_path / "clone", tmp_path / "site"
    shutil.copytree(PACKAGE, site / "llama2c", ignore=shutil.ignore_patterns("__pycache__", *(f"*{e}" for e in COMPILED)))
    shutil.copytree(site / "llama2c", clone / "llama2c", ignore=shutil.ignore_patterns("*.so", "_commit.py"))
    for source in (path for path in (ROOT / "llama2c").rglob("*") if path.suffix in COMPILED):
        target = clone / source.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(source, target)
    digest = digest_of_compiled(str(clone / "llama2c"))
    (site / "llama2c" / "_commit.py").write_text(f"COMMIT = 'abc'\nSOURCES = {digest!r}\n")
    return Pair(clone, site)


def change(pair: Pair) -> str | None:
    return find_change(str(pair.clone / "llama2c"), str(pair.site / "llama2c"))


def test_what_agrees_is_silent(pair: Pair) -> None:
    assert change(pair) is None
    done = pair.run("-W", "error", "-m", "llama2c", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"llama2c {llama2c.__version__}\n", "")
    done = pair.run("-W", "error", "-c", "import llama2c; print(llama2c.__path__, llama2c.load().tokenizer.vocab_size)")
    assert (done.stdout, done.stderr) == (f"['{pair.site / 'llama2c'}'] 2048\n", "")


def test_an_edit_is_told_once_and_the_installed_package_runs(pair: Pair) -> None:
    edited = pair.clone / "llama2c" / "sampler.py"
    edited.write_text(edited.read_text() + "raise SystemExit('the clone runs')\n")
    message = f"{edited} is not the same in the installed package, which is the one that runs ({pair.site / 'llama2c'}): "
    message += f"run `pip install .` again in {pair.clone}, or `pip install -e .` once"
    done = pair.run("-m", "llama2c", "--version")
    assert (done.stdout, done.stderr) == (f"llama2c {llama2c.__version__}\n", f"llama2c: warning: {message}\n")
    done = pair.run("-c", "import llama2c\nllama2c.Sampler\nllama2c.load()")
    assert done.stderr == f"<string>:2: RuntimeWarning: {message}\n"
    done = pair.run("-m", "llama2c", "--version", cwd=pair.site)  # not in the clone
    assert done.stderr == ""


def test_every_kind_of_edit_is_seen(pair: Pair) -> None:
    clone, site = pair.clone / "llama2c", pair.site / "llama2c"
    new = clone / "text" / "new.py"
    new.write_text("")
    assert change(pair) == "text/new.py"
    new.unlink()
    gone = clone / "scoring.py"
    gone.rename(clone / "scoring.txt")
    assert change(pair) == "scoring.py"
    (clone / "scoring.txt").rename(gone)
    (clone / "_kernels.pyi").write_text("")
    assert change(pair) == "_kernels.pyi"
    shutil.copy(site / "_kernels.pyi", clone)
    loops = clone / "simd" / "loops.h"
    loops.write_text(loops.read_text().replace("+", "-", 1))  # of the same length
    assert change(pair) == "_kernels.pyx (or another file that is compiled)"
    (site / "_commit.py").write_text("COMMIT = 'abc'\n")  # of a version that did not store the digest
    assert change(pair) is None
    (site / "_commit.py").unlink()
    assert change(pair) is None


def test_what_cannot_be_read_is_no_error(pair: Pair) -> None:
    (pair.clone / "llama2c" / "new.py").symlink_to("/nonexistent")
    (pair.site / "llama2c" / "new.py").write_text("")
    assert stale_message(pair.clone / "llama2c", pair.site / "llama2c") is None


def test_without_an_installed_package_there_is_one_line(pair: Pair) -> None:
    shutil.rmtree(pair.site)
    done = pair.run("-S", "-c", "import llama2c")
    sources = pair.clone / "llama2c"
    expected = f"{sources} has the source of llama2c, which is not compiled: run `pip install .` in {pair.clone}"
    assert done.stderr.splitlines()[-1] == f"ImportError: {expected}"
