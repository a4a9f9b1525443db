"""The source distribution, built in the ways that users build it: python release/sdist.py

Each way installs it with pip into a new virtual environment. Then the bundled model tells its stories, and random models of all
kinds give the bits that the llama2c of this Python gives. The ways:

- without git and without OpenMP (a compiler that refuses -fopenmp),
- with CFLAGS=-march=native,
- with clang, or what CLANG names, if there is one,
- without a compiler: that must end in one line that says what to do.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from wheels import COMPILERS, ROOT, environment, make_source, pip, run

TOOLS = ROOT / "build" / "sdist"
# A compiler needs these beside itself. Everything else, git too, is missing from PATH.
NEEDED = ("as", "ld", "ar", "sh", "env", "ranlib", "strip")
NO_OPENMP = """#!/bin/sh
for word; do case "$word" in -fopenmp*) echo "error: no $word" >&2; exit 1;; esac; done
exec "{}" "$@"
"""


def programs(folder: Path, *names: str) -> Path:
    """A folder for PATH with these programs, as far as this machine has them."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        if found is not None:
            (folder / name).symlink_to(found)
    return folder


def build(folder: Path, archive: Path, **variables: str) -> Path:
    """Install the source distribution with these variables. -> its Python"""
    python = environment(folder, sys.executable, "--upgrade", "pip")
    pip(python, "install", archive, "safetensors>=0.4", env={**os.environ, **variables})
    return python


def check(python: Path, *, openmp: bool | None, compiler: str) -> None:
    """What was built is what was meant (openmp None: with or without), tells the stories, and gives this Python's bits."""
    report = run(python, "-c", "import json, llama2c; print(json.dumps(llama2c.build_info()))", cwd=python.parent)
    info = json.loads(report)
    if openmp not in (None, info["openmp"]) or not info["compiler"].startswith(compiler):
        sys.exit(f"expected a build by {compiler} with openmp={openmp}, found {info}")
    for case in json.loads((ROOT / "tests/golden/tales1M.json").read_text(encoding="utf-8"))["stories"]:
        told = run(python, "-m", "llama2c", *case["flags"], cwd=python.parent, stderr=None)
        if told != case["text"] + "\n":
            sys.exit(f"another story with {case['flags']}:\n{told}")
    options = ["-q", "-p", "no:cacheprovider", "tests/test_same_bits.py", "-k", "another_python"]
    run(sys.executable, "-m", "pytest", *options, cwd=ROOT, env={**os.environ, "LLAMA2C_OTHER_PYTHON": str(python)})
    print(f"    {info}: the golden stories, the same bits", flush=True)


def main() -> None:
    shutil.rmtree(TOOLS, ignore_errors=True)
    tools = environment(TOOLS / "tools", sys.executable, "build", "twine")
    make_source(tools)
    (archive,) = (ROOT / "dist").glob("*.tar.gz")
    run(tools, "-m", "twine", "check", "--strict", archive)
    with tempfile.TemporaryDirectory(prefix="llama2c-sdist-") as name:
        folder = Path(name).resolve()
        without_compiler(folder, archive)
        compiler = shutil.which(os.environ.get("CC", "cc"))
        print("without git and OpenMP:", flush=True)
        serial = programs(folder / "serial", *NEEDED)
        (serial / "cc").write_text(NO_OPENMP.format(compiler))
        (serial / "cc").chmod(0o755)
        check(build(folder / "a", archive, PATH=str(serial), CC="cc"), openmp=False, compiler="gcc")
        print("with CFLAGS=-march=native:", flush=True)
        check(build(folder / "b", archive, CFLAGS="-march=native"), openmp=True, compiler="gcc")
        clang = shutil.which(os.environ.get("CLANG", "clang"))
        if clang is None:
            print("with clang: there is none here, so this was not tried; CLANG names one")
        else:
            print("with clang:", flush=True)
            check(build(folder / "c", archive, CC=clang), openmp=None, compiler="clang")


def without_compiler(folder: Path, archive: Path) -> None:
    """pip fails, and one line of what it shows is ours: it says what is missing and how to get it."""
    python = environment(folder / "none", sys.executable, "--upgrade", "pip")
    path = programs(folder / "empty", "sh", "env")
    assert not [name for name in COMPILERS if shutil.which(name, path=str(path))]
    settings = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX", "LDSHARED")}
    done = subprocess.run(
        [python, "-m", "pip", "install", archive], env={**settings, "PATH": str(path)}, capture_output=True, encoding="utf-8"
    )
    ours = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "llama2c: " in line]
    if done.returncode == 0 or len(ours) != 1 or "Building llama2c needs a C compiler" not in ours[0]:
        sys.exit(f"without a compiler, pip should fail and say why in one line:\n{done.stdout}{done.stderr}")
    print(f"without a compiler:\n    {ours[0]}", flush=True)


if __name__ == "__main__":
    main()
