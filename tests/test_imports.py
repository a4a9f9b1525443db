"""Imports point down one list only, so that each module can be read knowing those below it alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llama2c

# From the top down. A module imports from the lines below its own, a wing's modules also from each other.
ORDER = (
    "__main__",
    "__init__",
    "commands",
    "batch",
    "server",
    "conversion",
    "downloads",
    "llama",
    "engine",
    "scoring",
    "requests",
    "generation",
    "sampler",
    "constraints",
    "fingerprint",
    "text",
    "transformer",
    "formats",
    "locate",
    "architecture",
    "config",
    "tensors",
    "blocks",
    "threads",
    "limits",
    "files",
    "errors",
    "checkout",
    "_kernels",
)
FOLDER = Path(__file__).parents[1] / "llama2c"
MODULES = sorted(path.relative_to(FOLDER) for ending in ("*.py", "*.pyx") for path in FOLDER.rglob(ending))


def floor(module: tuple[str, ...]) -> int:
    """The line of ORDER that a module is on, given as its path in the package; 0 is the top."""
    return ORDER.index(module[0] if module else "__init__")


def imported(path: Path) -> set[tuple[str, ...]]:
    """The modules of llama2c that a module imports, for types alone too, as paths in the package."""
    package = path.parts[:-1]
    text = (FOLDER / path).read_text(encoding="utf-8")
    found: set[tuple[str, ...]] = set()
    if path.suffix == ".pyx":  # not Python: nothing of ours may be imported there
        assert "import llama2c" not in text and "from llama2c" not in text and "from ." not in text
        return found
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            start = (*package[: len(package) + 1 - node.level], *(node.module or "").split("."))
            start = tuple(part for part in start if part)
            for name in node.names:
                inner = (*start, name.name)
                is_module = any(FOLDER.joinpath(*inner).with_suffix(ending).exists() for ending in (".py", ".pyx"))
                found.add(inner if is_module or FOLDER.joinpath(*inner).is_dir() else start)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(name.split(".")[0] == "llama2c" for name in names), f"{path}: expected a relative import"
    return found


def test_the_order_names_every_module_once() -> None:
    there = {path.parts[0].removesuffix(path.suffix) for path in MODULES}
    assert sorted(ORDER) == sorted(there)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_down(path: Path) -> None:
    own = floor((path.parts[0].removesuffix(path.suffix),))
    for module in imported(path):
        same_wing = len(path.parts) > 1 and module[:1] == path.parts[:1]
        if path.name == "__init__.py" and len(path.parts) == 1:
            continue  # offers the names of all wings; nothing imports it but for those below
        if module == () and path.parts[0] == "commands":
            continue  # the version and what the build is
        assert same_wing or floor(module) > own, f"{path} imports {'.'.join(module)}"


def test_the_check_sees_what_it_should() -> None:
    assert ("formats", "checkpoint") in imported(Path("llama.py"))
    assert ("text", "chat") in imported(Path("llama.py"))
    assert ("_kernels",) in imported(Path("transformer.py"))
    assert floor(("formats", "export")) < floor(("locate",))
    assert llama2c.__version__


# What a story of a checkpoint v0 to v2 imports, as the bundled one. A line more here is a slower start.
OURS = (
    "_kernels", "architecture", "blocks", "commands", "commands.flags", "commands.guess", "commands.main", "commands.printing",
    "commands.prompt_cache", "commands.run", "commands.terminal", "config", "constraints", "engine", "engine.drafts", "errors",
    "files", "formats", "formats.checkpoint", "formats.content", "formats.layout", "generation", "limits", "llama", "locate",
    "requests", "sampler", "tensors", "text", "text._bpe", "text.stops", "text.tokenizer", "text.vocabulary", "threads",
    "transformer",
)  # fmt: skip
NOT_NEEDED = (
    "argparse", "asyncio", "difflib", "email", "gettext", "hashlib", "http", "importlib.metadata", "jinja2", "json", "logging",
    "multiprocessing", "prompt_toolkit", "random", "readline", "safetensors", "shlex", "shutil", "socket", "ssl", "subprocess",
    "tempfile", "tokenizers", "torch", "tqdm", "typing_extensions", "urllib.request", "zipfile",
)  # fmt: skip
STORY = """
import sys
import numpy
before = set(sys.modules)
from llama2c.commands.main import main
assert main([*sys.argv[1:], "-n", "1"]) == 0
print(*sorted(set(sys.modules) - before), file=sys.stderr)
"""


def test_a_story_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STORY]  # in another folder: sources would first be compared with the installed package
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = run.stderr.splitlines()[-1].split()
    assert [name.removeprefix("llama2c.") for name in found if name.startswith("llama2c.")] == list(OURS)
    assert not set(NOT_NEEDED) & set(found)
