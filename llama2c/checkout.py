"""A folder of sources without compiled modules steps aside for the installed package, and knows whether the two differ.

`python -m` and pytest put the working directory first on the path. In a clone that is not installed there, this folder would be
imported, which cannot run. Only such a folder uses this module, and setup.py, which stores the digest of what it compiled.
"""

from __future__ import annotations

import hashlib
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

BUILD = "_commit.py"  # written by setup.py: the commit, and the digest of the sources that it compiled
PYTHON = (".py", ".pyi")  # these files are installed as they are
COMPILED = (".pyx", ".h", ".c")


def find_installed(folder: Path) -> list[str]:
    """Where the modules of the installed package are. `folder`: these sources. ImportError: it is not installed."""
    elsewhere = [place for place in sys.path if Path(place or ".").resolve() != folder.parent]
    spec = PathFinder.find_spec("llama2c", elsewhere)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"{folder} has the source of llama2c, which is not compiled: run `pip install .` in {folder.parent}")
    return list(spec.submodule_search_locations)


def stale_message(folder: Path, installed: Path) -> str | None:
    """Says that an edit in `folder` is not what runs, and what to do. None: nothing differs, or a file cannot be read."""
    try:
        changed = find_change(str(folder), str(installed))
    except OSError:
        return None
    if changed is None:
        return None
    what = f"{folder / changed} is not the same in the installed package, which is the one that runs ({installed})"
    return f"{what}: run `pip install .` again in {folder.parent}, or `pip install -e .` once"


def find_change(folder: str, installed: str) -> str | None:
    """The first file of `folder` that is not what was installed: "llama.py". None: there is none. Takes a few milliseconds."""
    ours, theirs = (set(files_of(place, PYTHON)) - {BUILD} for place in (folder, installed))
    for name in sorted(ours | theirs):
        if name not in ours or name not in theirs or read(folder, name) != read(installed, name):
            return name
    stored = read(installed, BUILD) if os.path.exists(f"{installed}/{BUILD}") else b""
    compiled = b"SOURCES = " in stored and digest_of_compiled(folder).encode() not in stored
    return "_kernels.pyx (or another file that is compiled)" if compiled else None


def digest_of_compiled(folder: str) -> str:
    """One number for the content of all sources in a folder that are compiled, and for their names."""
    digest = hashlib.sha256()
    for name in files_of(folder, COMPILED):
        content = read(folder, name)
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def files_of(folder: str, endings: tuple[str, ...]) -> list[str]:
    """The files in a folder and in those in it, sorted: ["llama.py", "text/tokenizer.py", ...]. Path.rglob takes longer."""
    names = [f"{place}/{name}" for place, _, files in os.walk(folder) for name in files if name.endswith(endings)]
    return sorted(name[len(folder) + 1 :] for name in names)


def read(folder: str, name: str) -> bytes:
    with open(f"{folder}/{name}", "rb") as file:
        return file.read()
