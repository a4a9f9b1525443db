"""Completion: the script for bash in bash, those for zsh and fish in theirs where they are installed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import SECONDS, Command

from llama2c.commands.completion import SCRIPTS, Option, Value, commands, fish_quote, zsh_specs
from llama2c.commands.completion import Command as Completed
from llama2c.commands.flags import FLAGS
from llama2c.commands.main import VERBS
from llama2c.locate import NAMES

Complete = Callable[..., list[str]]
# A llama2c in PATH that is this one.
LLAMA2C = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m llama2c "$@"\n'


def needs(shell: str) -> str:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"needs {shell}")
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two models and a text; in the cache a model and a repository."""
    for name in ("my model.gguf", "other.bin", "text.txt"):
        (tmp_path / name).touch()
    cache = tmp_path / ".cache"
    for path in ("stories15M/stories15M.bin", "repositories/me--tales/config.json"):
        (cache / path).parent.mkdir(parents=True)
        (cache / path).touch()
    (tmp_path / ".bin").mkdir()
    (tmp_path / ".bin" / "llama2c").write_text(LLAMA2C)
    (tmp_path / ".bin" / "llama2c").chmod(0o755)
    monkeypatch.setenv("LLAMA2C_CACHE", str(cache))
    monkeypatch.setenv("PATH", f"{tmp_path / '.bin'}:{os.environ['PATH']}")
    return tmp_path


def script(command: Command, shell: str) -> str:
    result = command("completion", shell)
    assert (result.code, result.err) == (0, "")
    return result.out.decode()


# ---------------------------------------------------------------------------
# bash


@pytest.fixture
def complete(command: Command, place: Path) -> Complete:
    """What bash offers for the words of a line, the last of which is being typed; sorted."""
    bash, text = needs("bash"), script(command, "bash")

    def run(*words: str) -> list[str]:
        line = " ".join(shlex.quote(word) for word in ("llama2c", *words))
        ask = f"\ncomplete -p llama2c >/dev/null || exit 9\nCOMP_WORDS=({line}) COMP_CWORD={len(words)}\n_llama2c\n"
        show = '(( ${#COMPREPLY[@]} )) && printf "%s\\n" "${COMPREPLY[@]}"\ntrue'
        done = subprocess.run(
            [bash, "--norc", "-c", text + ask + show], cwd=place, capture_output=True, encoding="utf-8", timeout=SECONDS
        )
        assert (done.returncode, done.stderr) == (0, "")
        return sorted(done.stdout.splitlines())

    return run


FILES = ["my model.gguf", "other.bin", "text.txt"]
MODELS = sorted([*FILES, "me/tales", "stories15M"])


def visible(words: list[str]) -> list[str]:
    return [word for word in words if not word.startswith(".")]


def test_bash_completes_words(complete: Complete) -> None:
    assert visible(complete("")) == sorted([*MODELS, *VERBS])
    assert complete("be") == ["bench"]
    assert complete("st") == ["stories15M"]
    assert complete("my") == ["my model.gguf"]
    assert visible(complete("bench", "")) == MODELS
    assert complete("bench", "be") == []  # a verb is the first word
    assert visible(complete("stories15M", "-i", "b", "")) == MODELS
    assert complete("download", "") == sorted(NAMES)
    assert complete("completion", "") == sorted(SCRIPTS)


def test_bash_completes_flags(complete: Complete) -> None:
    flags = sorted(name for flag in FLAGS for name in flag[:2] if name)
    assert complete("-") == complete("m.bin", "-v", "-") == flags
    assert complete("--te") == ["--temperature"]
    assert complete("perplexity", "a", "--s") == ["--stride"]
    assert complete("export", "--g") == ["--group-size"]


def test_bash_completes_values(complete: Complete) -> None:
    assert complete("-m", "") == complete("m.bin", "--mode", "") == ["chat", "generate"]
    assert complete("--mode", "=", "c") == ["chat"]  # bash makes three words of --mode=c
    assert complete("--mode", "=") == ["chat", "generate"]
    for flag in ("-t", "--seed", "-i", "--stop"):
        assert complete("m.bin", flag, "") == complete("m.bin", flag, "-") == []
    assert visible(complete("m.bin", "-z", "")) == FILES
    assert complete("bench", "-o", "") == ["csv", "json", "md"]
    assert visible(complete("perplexity", "a", "--against", "")) == MODELS
    assert complete("export", "--dtype", "q4") == ["q4_0", "q4_1", "q4_k", "q4_k_m"]


def test_bash_runs_no_name(complete: Complete, place: Path) -> None:
    """Names of files are offered as they are, whatever is in them."""
    (place / "$(touch broken).gguf").touch()
    (place / "*").touch()
    assert complete("$") == ["$(touch broken).gguf"]
    assert complete("*") == ["*"]
    assert not (place / "broken").exists()


def test_bash_without_a_cache(complete: Complete, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setenv("LLAMA2C_CACHE", str(place / "absent"))
    assert visible(complete("bench", "")) == FILES


# ---------------------------------------------------------------------------
# the others


def test_fish(command: Command, place: Path) -> None:
    fish, text = needs("fish"), script(command, "fish")
    for line, expected in [
        ("llama2c be", ["bench"]),
        ("llama2c m -m ", ["chat", "generate"]),
        ("llama2c bench st", ["stories15M"]),
    ]:
        done = subprocess.run(
            [fish, "--no-config", "-c", f"{text}\ncomplete -C {fish_quote(line)}"],
            cwd=place, capture_output=True, encoding="utf-8", timeout=SECONDS,
        )  # fmt: skip
        assert [found.split("\t")[0] for found in done.stdout.splitlines()] == expected


def test_zsh_understands_its_script(command: Command, tmp_path: Path) -> None:
    (tmp_path / "_llama2c").write_text(script(command, "zsh"))
    done = subprocess.run([needs("zsh"), "-n", tmp_path / "_llama2c"], capture_output=True, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("shell", SCRIPTS)
def test_every_flag_is_in_every_script(command: Command, shell: str) -> None:
    """By the help of each verb, not by the parsers that the script is made from."""
    text = script(command, shell)
    for verb in ("", *VERBS):
        help = command(*filter(None, [verb, "--help"])).out.decode()
        flags = re.findall(r"^ +(?:-\w,? )?(?:\S+ )?(--[\w-]+)", help.partition("examples:")[0], re.MULTILINE)
        assert len(flags) >= 2 - (verb == "download")
        for flag in flags:
            assert re.search(rf"{'-l ' + flag[2:] if shell == 'fish' else flag}\b", text), (verb, flag)


def test_what_a_command_takes() -> None:
    by_name = {command.name: command for command in commands()}
    assert [*by_name] == [*VERBS, ""]
    files, models = Value(files=True), Value(models=True, files=True)
    assert by_name["perplexity"].kind == by_name["export"].kind == by_name["bench"].kind == by_name[""].kind == models
    export = {name: option for option in by_name["export"].options for name in option.names}
    assert export["-o"] == export["--out"] == Option(("-o", "--out"), "OUT", files, export["-o"].help, False)
    assert export["--help"].value == ""
    story = {option.names[-1]: option for option in by_name[""].options}
    assert [story[name].repeats for name in ("--stop", "--seed")] == [True, False]


def test_quoting() -> None:
    option = Option(("-o", "--out"), "OUT", Value(files=True), "a [b]: 'c' \\", False)
    assert zsh_specs(option)[1] == r"(-o --out)--out=[a \[b\]\: 'c' \\]:OUT:_files"
    assert zsh_specs(Option(("--stop",), "TEXT", Value(), "end", True)) == ["*--stop=[end]:TEXT: "]
    assert fish_quote("it's \\") == r"'it\'s \\'"
    odd = Completed("verb", "it's", [option], Value())
    assert "'verb:it'\"'\"'s'" in SCRIPTS["zsh"]([odd])


@pytest.mark.parametrize("arguments", [[], ["bash", "--models"]])
def test_one_thing_at_a_time(command: Command, arguments: list[str]) -> None:
    message = "llama2c: error: Expected one of bash, zsh, fish, or --models\n"
    assert command("completion", *arguments) == (2, b"", message)


def test_another_shell(command: Command) -> None:
    result = command("completion", "tcsh")
    assert (result.code, result.out) == (2, b"")
    assert "invalid choice: 'tcsh'" in result.err


def test_names_of_models_come_without_numpy(place: Path) -> None:
    """Each Tab asks for them."""
    code = "import sys; from llama2c.commands.main import main; main(['completion', '--models']); "
    code += "assert 'numpy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=SECONDS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "stories15M\nme/tales\n", "")
