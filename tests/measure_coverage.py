"""The tests, and what they did not take: lines and branches of the Python modules, lines of the compiled tokenizer.

Run by `make coverage`, which has installed what it needs; arguments are pytest's. The tests run against a copy of the installed
package, whose _bpe is compiled so that it tells its lines, which is slow. The kernels are not measured.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "coverage"  # the working directory of all that follows: reports name files from there
BIN = Path(sys.executable).parent


def installed() -> Path:
    """The folder of the installed package, which holds its compiled modules."""
    sys.path = [path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "tests")]
    spec = importlib.util.find_spec("llama2c")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def run(*command: str | Path) -> int:
    environment = {**os.environ, "PYTHONPATH": str(PLACE), "COVERAGE_RCFILE": str(ROOT / "pyproject.toml")}
    return subprocess.run(list(map(str, command)), cwd=PLACE, env=environment).returncode


def copy_with_traced_bpe() -> None:
    shutil.rmtree(PLACE, ignore_errors=True)
    shutil.copytree(installed(), PLACE / "llama2c", ignore=shutil.ignore_patterns("_bpe.*.so", "__pycache__"))
    shutil.copy(ROOT / "llama2c" / "text" / "_bpe.pyx", PLACE / "llama2c" / "text")
    traced = ["-DCYTHON_TRACE=1", "-DCYTHON_TRACE_NOGIL=1"]
    includes = ["-I", sysconfig.get_path("include")]
    if run(BIN / "cython", "-3", "-X", "linetrace=True", "llama2c/text/_bpe.pyx"):
        sys.exit(1)
    if run("cc", "-O1", "-shared", "-fPIC", *traced, *includes, "llama2c/text/_bpe.c", "-o", "llama2c/text/_bpe.so"):
        sys.exit(1)


def main() -> int:
    copy_with_traced_bpe()
    tests = run(BIN / "coverage", "run", BIN / "pytest", "-q", "-c", ROOT / "pyproject.toml", ROOT / "tests", *sys.argv[1:])
    run(BIN / "coverage", "combine", "-q")
    return run(BIN / "coverage", "report") or tests


if __name__ == "__main__":
    sys.exit(main())
