"""setup.py: the flags hold whatever CFLAGS says, the commit is this folder's own, and a missing compiler is one line.

The script is run with a setup() that only takes down its arguments. Where a compiler is needed, it is the machine's own.
"""

from __future__ import annotations

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llama2c.checkout import digest_of_compiled

setuptools = pytest.importorskip("setuptools")
build = pytest.importorskip("Cython.Build")

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which(os.environ.get("CC", "cc"))
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler here")
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")
needs_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="this is about the levels of x86-64")


def run_setup(monkeypatch: pytest.MonkeyPatch, folder: Path = ROOT) -> SimpleNamespace:
    """All names of the setup.py in this folder, and as `given` what it hands to setup()."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    monkeypatch.setattr(build, "cythonize", lambda extensions, **_: extensions)
    monkeypatch.delenv("LLAMA2C_SANITIZE", raising=False)
    monkeypatch.chdir(folder)
    return SimpleNamespace(**runpy.run_path("setup.py"), given=given)


def last_of(flags: list[str], *candidates: str) -> str:
    """Which of the candidates comes last: the one that counts."""
    return next(flag for flag in reversed(flags) if flag in candidates)


# ---------------------------------------------------------------------------------------------- flags


def test_every_part_is_compiled_and_linked_strictly(monkeypatch: pytest.MonkeyPatch) -> None:
    given = run_setup(monkeypatch).given
    compiled = [library["cflags"] for _, library in given["libraries"]]
    compiled += [extension.extra_compile_args for extension in given["ext_modules"]]
    linked = [extension.extra_link_args for extension in given["ext_modules"]]
    assert len(compiled) >= 4
    assert len(linked) == 2
    for flags in (["-Ofast", "-ffast-math", *part] for part in compiled + linked):
        assert last_of(flags, "-Ofast", "-O3") == "-O3"
        assert last_of(flags, "-ffast-math", "-fno-fast-math") == "-fno-fast-math"
        assert "-fno-unsafe-math-optimizations" in flags
    for flags in (["-ffp-contract=fast", *part] for part in compiled):
        assert last_of(flags, "-ffp-contract=fast", "-ffp-contract=off") == "-ffp-contract=off"


@needs_compiler
@pytest.mark.parametrize("fast", ["-Ofast", "-ffast-math", "-funsafe-math-optimizations"])
def test_nothing_is_linked_that_flushes_subnormals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fast: str) -> None:
    (tmp_path / "empty.c").write_text("")
    link = run_setup(monkeypatch).given["ext_modules"][0].extra_link_args

    def plan(*flags: str) -> str:
        command = [str(COMPILER), "-###", "-shared", fast, str(tmp_path / "empty.c"), *flags]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr

    if "crtfastmath" not in plan():
        pytest.skip("this compiler links no such code into a shared library")
    assert "crtfastmath" not in plan(*link)


@needs_x86
@needs_compiler
@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3", "x86-64-v4"])
def test_levels_are_what_they_say_whatever_the_compiler_may_use(monkeypatch: pytest.MonkeyPatch, march: str) -> None:
    """Each can be compiled, and may use no instruction of a higher level: a fused one would change the bits of generic."""
    given = run_setup(monkeypatch).given

    def compiler(*arguments: str) -> str:
        done = subprocess.run([str(COMPILER), f"-march={march}", *arguments], capture_output=True, text=True)
        if march != "x86-64" and "-march=" in done.stderr:
            pytest.skip(f"this compiler does not know {march}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def instruction_sets(flags: list[str]) -> set[str]:
        defined = compiler(*flags, "-dM", "-E", "-x", "c", "/dev/null")
        return {name for name in ("AVX", "FMA", "AVX2", "AVX512F", "AVX512VNNI") if f"#define __{name}__ " in defined}

    levels = {"dispatch": set(), "generic": set(), "avx2": {"AVX", "FMA", "AVX2"}}
    levels["avx512"] = {*levels["avx2"], "AVX512F", "AVX512VNNI"}
    assert [name for name, _ in given["libraries"]] == ["llama2c_dispatch", "llama2c_avx512", "llama2c_avx2", "llama2c_generic"]
    for name, library in given["libraries"]:
        assert instruction_sets(library["cflags"]) == levels[name.removeprefix("llama2c_")]
        compiler(*library["cflags"], "-fsyntax-only", *library["sources"])
    for extension in given["ext_modules"]:
        assert instruction_sets(extension.extra_compile_args) == set()


# ---------------------------------------------------------------------------------------------- compilers


def message_of(check: Any, command: list[str]) -> str:
    with pytest.raises(SystemExit) as error:
        check(command)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_a_compiler_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    script = run_setup(monkeypatch)
    found = message_of(script.check_compiler, ["/nonexistent/cc", "-O2"])
    assert found.startswith("llama2c: cannot compile C with '/nonexistent/cc': No such file or directory. ")
    assert "apt install gcc python3-dev" in found
    assert script.openmp_flags(["/nonexistent/cc"]) == ([], [])


@needs_compiler
def test_what_the_compiler_says_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    script = run_setup(monkeypatch)
    script.check_compiler([str(COMPILER)])
    assert "-no-such-flag" in message_of(script.check_compiler, [str(COMPILER), "-no-such-flag"])
    script.sysconfig = SimpleNamespace(get_path=lambda _: "/nonexistent")
    script.check_compiler.__globals__["sysconfig"] = script.sysconfig
    assert "Python.h" in message_of(script.check_compiler, [str(COMPILER)])


def test_the_commands_look_at_the_compiler_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """setup() itself needs none: a source distribution can be made without."""
    monkeypatch.setenv("PATH", "")
    script = run_setup(monkeypatch)
    for name, method, arguments in (("build_clib", "build_libraries", [[]]), ("build_ext", "build_extensions", [])):
        command = script.given["cmdclass"][name](setuptools.Distribution())
        command.compiler = SimpleNamespace(compiler=["cc"])
        with pytest.raises(SystemExit, match=r"^llama2c: cannot compile C with 'cc': "):
            getattr(command, method)(*arguments)


# ---------------------------------------------------------------------------------------------- the commit


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *names, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_git
def test_the_commit_is_that_of_this_folder_and_not_of_one_around_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    inner = tmp_path / "outer" / "vendored llama2c"
    inner.mkdir(parents=True)
    for name in ("setup.py", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, inner)
    own_commit = run_setup(monkeypatch, inner).own_commit
    assert own_commit() is None  # no repository at all
    git(tmp_path / "outer", "init", "--quiet")
    git(tmp_path / "outer", "add", ".")
    git(tmp_path / "outer", "commit", "--quiet", "-m", "all")
    assert own_commit() is None  # the repository of somebody else
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "outer" / ".git"))  # as in a hook
    assert own_commit() is None
    monkeypatch.delenv("GIT_DIR")
    git(inner, "init", "--quiet")
    git(inner, "add", ".")
    git(inner, "commit", "--quiet", "-m", "ours")
    commit = git(inner, "rev-parse", "--short", "HEAD")
    assert own_commit() == commit
    (inner / "setup.py").write_text("# edited")
    assert own_commit() == f"{commit}-dirty"
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "outer" / ".git"))
    assert own_commit() == f"{commit}-dirty"


def test_the_build_stores_the_commit_and_what_it_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = run_setup(monkeypatch)
    command = script.BuildPy(setuptools.Distribution())
    command.packages, command.py_modules, command.build_lib = [], [], str(tmp_path)
    (tmp_path / "llama2c").mkdir()
    command.run()
    stored = runpy.run_path(str(tmp_path / "llama2c" / "_commit.py"))
    assert stored["COMMIT"] == script.own_commit()
    assert stored["SOURCES"] == digest_of_compiled(str(ROOT / "llama2c")) and len(stored["SOURCES"]) == 64


@pytest.mark.skipif(sys.platform == "win32", reason="PATH alone decides elsewhere")
def test_without_git_the_source_distribution_says_which_commit_it_is_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = run_setup(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert script.own_commit() is None
    (tmp_path / ".commit").write_text("0123abc\n")
    assert script.own_commit() == "0123abc"
    (tmp_path / "made").mkdir()
    command = script.Sdist(setuptools.Distribution({"name": "llama2c"}))
    command.make_release_tree(str(tmp_path / "made"), [])
    assert (tmp_path / "made" / ".commit").read_text() == "0123abc\n"


# ---------------------------------------------------------------------------------------------- what PyPI shows


def test_links_are_absolute_where_pypi_shows_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each relative link of README.md leads to the same file in the repository; nothing else is changed."""
    given = run_setup(monkeypatch).given
    assert given["long_description_content_type"] == "text/markdown"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    repository = re.search(r'^Repository = "(https://.*)"$', settings, re.MULTILINE)[1]  # type: ignore[index]
    relative = [link for link in re.findall(r"\]\(([^)]*)\)", readme) if not link.startswith(("https:", "#"))]
    assert len(relative) >= 10
    found = re.findall(r"\]\(([^)]*)\)", given["long_description"])
    assert [link for link in found if not link.startswith(("https:", "#"))] == []
    for link in relative:
        kind = "raw" if link.endswith(".png") else "blob"
        assert f"{repository}/{kind}/main/{link}" in found
    back = re.sub(rf"\]\({re.escape(repository)}/(blob|raw)/main/", "](", given["long_description"])
    assert back == readme


def test_pictures_are_linked_as_files_and_anchors_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("![a](docs/a.png) [b](docs/b.md#c) [d](#e) [f](https://g) ![h](http://i/j.png)\n[k](l)")
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://r"\n')
    script = run_setup(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert script.readme_for_pypi() == (
        "![a](https://r/raw/main/docs/a.png) [b](https://r/blob/main/docs/b.md#c) [d](#e) [f](https://g) ![h](http://i/j.png)\n"
        "[k](https://r/blob/main/l)"
    )


# ---------------------------------------------------------------------------------------------- other machines


@pytest.mark.parametrize(
    ("host", "levels"),
    [
        ("linux-x86_64", ["avx512", "avx2", "generic"]),
        ("linux-aarch64", ["neon", "generic"]),
        ("macosx-11.0-arm64", ["neon", "generic"]),
        ("linux-riscv64", ["generic"]),
    ],
)
def test_the_levels_are_those_of_the_machine_that_is_built_for(
    monkeypatch: pytest.MonkeyPatch, host: str, levels: list[str]
) -> None:
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", host)
    given = run_setup(monkeypatch).given
    assert [name.removeprefix("llama2c_") for name, _ in given["libraries"]] == ["dispatch", *levels]
    assert given["options"]["build_clib"]["build_temp"] == f"build/levels-{host.rpartition('-')[2]}"
    assert ("-mno-avx" in given["ext_modules"][0].extra_compile_args) == (host == "linux-x86_64")


@pytest.mark.parametrize("given", [None, "-arch x86_64"])
def test_macos_compiles_for_one_machine(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    """Python's own flags may name two, and no level can be compiled for both."""
    monkeypatch.setenv("ARCHFLAGS", given or "")
    if given is None:
        monkeypatch.delenv("ARCHFLAGS")
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", "macosx-11.0-arm64")
    monkeypatch.setattr(sys, "platform", "darwin")
    run_setup(monkeypatch)
    assert os.environ["ARCHFLAGS"] == (given or "-arch arm64")
