"""The README and the pages it leads to, held against the code: examples and commands are run as printed, on real models.

What stands in a ```text block is what the ```python block before it prints; a ```console block shows commands with their
output; the commands of a ```sh block are run if they need no network.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llama2c.locate import cache_folder, find_hub_model

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CHANGELOG.md", "docs/how-it-works.md", "docs/format.md", "docs/model-card.md", "docs/reliability.md")
PAGES += ("SECURITY.md", "training/README.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")
# The names the pages use. Any checkpoint will do for those whose output they do not show.
MODELS = {"stories260K.bin": "stories260K.bin", "stories15M.bin": "stories260K.bin"}
DOWNLOAD = "python -m llama2c download "
TOKENIZERS = {"tok512.bin": "tok512.bin", "tokenizer.bin": "tok512.bin"}


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page, as (language, content)."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    """A working directory as the README's reader has it: the models under their names, and `python` on the path."""
    for name, real in {**MODELS, **TOKENIZERS}.items():
        shutil.copyfile(shared / "models" / real, tmp_path / name)
    for command in commands(DOWNLOAD):
        source = find_hub_model(command.removeprefix(DOWNLOAD))
        assert source is not None, command
        downloaded = tmp_path / "cache" / source.path.relative_to(cache_folder())
        downloaded.parent.mkdir(parents=True)
        shutil.copyfile(shared / "models" / MODELS["stories260K.bin"], downloaded)
        shutil.copyfile(shared / "models" / TOKENIZERS["tok512.bin"], downloaded.with_name("tokenizer.bin"))
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return tmp_path


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command line of a page, its stderr in with its stdout but for the speed."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": path, "LLAMA2C_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
    )
    done.stdout = re.sub(r"^achieved tok/s: [\d.]+\n", "", done.stdout, flags=re.MULTILINE)
    return done


# ---------------------------------------------------------------------------
# examples


@pytest.mark.parametrize("page", [page for page in PAGES if any(kind == "python" for kind, _ in blocks(page))])
def test_python_examples_print_what_the_page_says(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "__main__"}  # the examples of a page build on each other
    printed = None
    compared = 0
    for number, (kind, content) in enumerate(blocks(page)):
        if kind == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(content, f"{page}, block {number}", "exec"), names)
            printed = out.getvalue()
        elif kind == "text":
            assert printed is not None, f"{page}, block {number}: no example before this output"
            assert printed == content
            printed = None
            compared += 1
    # A page that lost its outputs would pass without having been looked at.
    assert compared >= {"README.md": 3, "docs/how-it-works.md": 4}.get(page, 0)


def test_six_line_example_is_six_lines() -> None:
    examples = [content for kind, content in blocks("README.md") if kind == "python" and "llama.stream(" in content]
    assert len(examples[0].splitlines()) == 6


def test_console_blocks_show_what_the_commands_print(folder: Path) -> None:
    shown = "".join(content for kind, content in blocks("README.md") if kind == "console")
    sessions = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", shown, re.MULTILINE)
    assert len(sessions) >= 2
    for command, output in sessions:
        assert run(command, folder).stdout == output, command


def commands(word: str) -> list[str]:
    lines = "".join(content for kind, content in blocks("README.md") if kind == "sh").splitlines()
    return [line for line in lines if line.startswith(word)]


@pytest.mark.parametrize("command", [line for line in commands("python -m llama2c") if not line.startswith(DOWNLOAD)])
def test_shell_commands_run(command: str, folder: Path) -> None:
    done = run(command, folder)
    assert done.returncode == 0, done.stdout
    prompt, out = re.search(r'-i "(.*)"', command), re.search(r" export .* -o (\S+)", command)
    assert done.stdout.startswith(prompt[1] if prompt else "")
    assert (folder / out[1]).exists() if out else len(done.stdout) > 100


def test_every_file_that_is_used_is_downloaded_first() -> None:
    downloaded = {line.rpartition("/")[2] for line in commands("curl")}
    assert downloaded == {*MODELS, *TOKENIZERS}  # these tests have put there what the reader would have
    used = "".join(re.sub(r" -o \S+", "", line) for line in commands("python -m llama2c"))  # -o is written
    assert set(re.findall(r"\w+\.bin", used)) <= downloaded


def test_shell_blocks_hold_nothing_untested() -> None:
    """The other commands need the network or are how these tests were started."""
    known = {*commands("python -m llama2c"), *commands("curl"), *commands("make "), "pip install ."}
    assert set(commands("")) == known


def test_make_test_is_a_target_and_make_lists_every_target() -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # this may run under make
    listed = subprocess.run(["make"], cwd=ROOT, env=env, capture_output=True, encoding="utf-8", check=True).stdout
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.search(r"^\.PHONY: help (.*)$", makefile, re.MULTILINE)[1].split())  # type: ignore[index]
    uses = dict(line.split(maxsplit=1) for line in listed.splitlines())
    checks = {"test", "lint", "fuzz", "coverage", "sanitize", "races", "valgrind", "soak"}
    assert set(uses) == phony == {"run", "story", *checks, "bench", "annotate", "asm", "clean"}
    assert all(len(use) > 20 for use in uses.values())


# ---------------------------------------------------------------------------
# the figures


def test_figures_are_those_of_the_run_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line that has an aim, met or not, as results.json has it; date, machine and command too."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "measure", raising=False)
    record = importlib.import_module("measure").Record.load(ROOT / "benchmarks" / "results" / "results.json")
    expected = [f"| {' | '.join(result.cells())} |" for result in record.results if result.bar is not None]
    assert len(expected) >= 20
    assert [line for line in README.splitlines() if re.search(r" \| (yes|no) \|$", line)] == expected
    flat = " ".join(README.split())
    for name in ("date", "cpu", "command"):
        assert record.info[name] in flat, name


# ---------------------------------------------------------------------------
# the flag table


def test_flag_table_equals_help(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llama2c", "--help"], cwd=tmp_path, capture_output=True, encoding="utf-8", check=True
    )
    in_help = re.findall(r"^ +(-\w)? *(--[\w-]+(?: [A-Z]+)?) {2,}(.*)$", done.stdout, re.MULTILINE)
    in_table = [
        (short.strip(), long, meaning.replace("`", ""))
        for short, long, meaning in re.findall(r"^\| `?(-\w)?`? ?\| `(--[^`]+)` \| (.*) \|$", README, re.MULTILINE)
    ]
    assert len(in_help) >= 10
    assert [flag[:2] for flag in in_table] == [flag[:2] for flag in in_help]
    for (_, name, meaning), (_, _, help_meaning) in zip(in_table, in_help, strict=True):
        # A remark in brackets at the end may point to another place; a default may not differ.
        if "(see below)" in help_meaning:
            meaning, help_meaning = meaning.partition(" (")[0], help_meaning.partition(" (")[0]
        assert meaning == help_meaning, name


# ---------------------------------------------------------------------------
# the file tree


def tree_patterns() -> list[str]:
    """The README's tree as patterns of paths; a folder without lines of its own is "folder/*"."""
    tree = next(content for kind, content in blocks("README.md") if kind == "tree")
    patterns: list[str] = []
    folders: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        del folders[depth:]
        for name in re.split(r" {2,}", line.strip())[0].split(", "):
            if name.startswith(".") and patterns:  # "_bpe.pyx, .pyi": the same name with another ending
                name = patterns[-1].rpartition("/")[2].rpartition(".")[0] + name
            patterns.append("".join(folders) + name)
        if patterns[-1].endswith("/"):
            folders.append(name)
    for i, pattern in enumerate(patterns):
        if pattern.endswith("/"):
            has_lines = any(other.startswith(pattern) and other != pattern for other in patterns)
            patterns[i] = "" if has_lines else pattern + "*"
    return [pattern for pattern in patterns if pattern]


def is_ignored(path: str, patterns: list[str]) -> bool:
    """What .gitignore leaves out (as far as ours goes), and hidden files."""
    parts = path.split("/")
    if any(part.startswith(".") for part in parts):
        return True
    if any(fnmatch.fnmatch(path, pattern[1:]) for pattern in patterns if pattern.startswith("!")):
        return False
    for pattern in (pattern.removeprefix("/") for pattern in patterns):  # ours with a slash in front are folders
        if pattern.endswith("/"):
            if any(fnmatch.fnmatch(part, pattern[:-1]) for part in parts[:-1]):
                return True
        elif "/" in pattern:
            if fnmatch.fnmatch(path, pattern) and path.count("/") == pattern.count("/"):
                return True
        elif fnmatch.fnmatch(parts[-1], pattern):
            return True
    return False


def test_file_tree_equals_the_files() -> None:
    ignored = (ROOT / ".gitignore").read_text().split() if (ROOT / ".gitignore").exists() else ["build/", "*.egg-info/"]
    found = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()]
    files = [path for path in found if not is_ignored(path, ignored)]
    patterns = tree_patterns()
    assert "llama2c/simd/loops.h" in files and "llama2c/simd/loops.h" in patterns  # both are read as they are meant
    assert [path for path in files if not any(fnmatch.fnmatch(path, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not fnmatch.filter(files, pattern)] == []


# ---------------------------------------------------------------------------
# links


def anchors(page: Path) -> set[str]:
    """The anchors GitHub makes of headings: lower case, without punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_resolve(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link
