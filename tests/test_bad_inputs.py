"""Every bad input of the catalogue is one Python exception of the right type, in one line with what was expected and found.

They are run in a subprocess with little address space, so that a crash, an exit, a hang or a huge allocation is a failed test.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bad_inputs
import pytest
from bad_inputs import CASES, case
from workers import SANITIZED, Worker


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@pytest.mark.parametrize("name", CASES)
def test_bad_input(worker: Worker, name: str) -> None:
    wanted = CASES[name]
    if wanted.linux and not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    if wanted.limit and SANITIZED:
        pytest.skip("needs a limit on memory, which sanitizers cannot live with")
    found = worker.ask(case=name)
    if wanted.error is None:
        assert found.raised == (), found.message
        return
    assert wanted.error.__name__ in found.raised, found
    assert "\n" not in found.message
    for words in wanted.words:
        assert words in found.message


# ---------------------------------------------------------------------------
# the catalogue and the worker themselves


def test_the_good_model_is_good(tmp_path: Path) -> None:
    """Each bad file differs from it in one thing: were it bad itself, its cases would tell nothing."""
    for version in case.VERSIONS:
        llama = case.open_good(tmp_path, version)
        assert vars(case.MODEL) == {name: getattr(llama.transformer.config, name) for name in case.FIELDS}
        assert len(llama.generate("a", max_tokens=3, temperature=0).tokens) == 3
        assert (tmp_path / "good.bin").read_bytes()[: len(case.pack_header(version))] == case.pack_header(version)


def test_the_catalogue_is_whole() -> None:
    """What the names speak of: the list of what a loader has to bear."""
    text = "\n".join(CASES)
    assert len(CASES) > 2000
    wanted = [f"v{v} header: {field} {kind} (" for v in (0, 1, 2) for field in case.FIELDS[:4] for kind in ("zero", "INT_MIN")]
    wanted += ["wrap to nothing in 64 bits", "byte-swapped magic", "version 99", "tied flag 7", "group_size 0", "group_size 24"]
    wanted += ["a byte before the end of wcls", "a byte too many", "NaN first in rms_att_weight", "Inf in the scales of w2"]
    wanted += ["int8 -128", "empty", "a directory", "a FIFO", "a device", "no permission", "symlink loop", "replaced while"]
    wanted += ["shrunk while it is read", "RLIMIT_AS", "cache that grows beyond memory", "a token too few", "length -1"]
    wanted += ["NaN as the score", "duplicates", "embedded NUL", "invalid UTF-8", 'no " " token', "<0x-1>", "fewer than 259"]
    wanted += ["id -1", "lone surrogate", f"max_tokens {2**63}", "temperature nan", "top_p nan", "seed -1", f"seed {2**64}"]
    wanted += ["max_token", "logits with a NaN", "after it was closed", "from two threads", "n_threads 1000000"]
    wanted += ["OMP_NUM_THREADS=abc"]
    assert [words for words in wanted if words not in text] == []


def test_the_figures_of_the_documentation() -> None:
    text = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text(encoding="utf-8")
    figures = dict(re.findall(r"^\| (\w+) \| (\d+) \|", text, re.MULTILINE))
    found = {module.__name__.rpartition(".")[2]: str(len(module.CASES)) for module in bad_inputs.MODULES}
    if not bad_inputs.hf_folders.CASES:
        pytest.skip("needs safetensors for the cases of folders: pip install '.[hf]'")
    assert figures == found


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), 9)", "os._exit(3)", "os.abort()"])
def test_a_death_is_blamed_on_its_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str) -> None:
    live = "def live(data, folder): raise KeyError('x')"
    (tmp_path / "targets.py").write_text(f"import os\ndef die(data, folder): {how}\n{live}\n")
    monkeypatch.setattr("workers.FUZZ", tmp_path)
    worker = Worker()
    assert worker.ask(fuzz="live", data="").raised[:2] == ("KeyError", "LookupError")
    with pytest.raises(AssertionError, match=r"'die'.*: the process died, exit code -?\d+$"):
        worker.ask(fuzz="die", data="")
    assert worker.ask(fuzz="live", data="").message == "'x'"
    worker.close()


def test_a_hang_is_blamed_on_its_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "targets.py").write_text("def hang(data, folder):\n    while True: pass\n")
    monkeypatch.setattr("workers.FUZZ", tmp_path)
    monkeypatch.setattr("workers.HANG", 0.2)
    with pytest.raises(AssertionError, match=r"'hang'.*: the process hung$"):
        Worker().ask(fuzz="hang", data="")


# ---------------------------------------------------------------------------
# the real command


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "llama2c", *arguments]
    return subprocess.run(words, capture_output=True, encoding="utf-8", env={**os.environ, **environment}, cwd=folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("cut.bin", "cut.bin: expected "),
        ("fifo", "fifo: expected a regular file, found a FIFO"),
        ("good.bin -z fifo", "fifo: expected a regular file, found a special file"),
        ("good.bin -z story.txt", "story.txt: token 0: expected a length"),
        (f"good.bin -s {2**64}", f"--seed: expected an integer from 0 to {2**64 - 1}"),
        ("good.bin -t nan", "--temperature: expected a finite number"),
        ("good.bin -t inf", "--temperature: expected a finite number"),
        ("good.bin -p nan", "--top-p: expected a number from 0 to 1"),
        ("good.bin --threads 0", "--threads: expected an integer from 1 to 1024, found 0"),
        ("good.bin --threads 1000000", "--threads: expected an integer from 1 to 1024, found 1000000"),
    ],
)
def test_the_command_tells_of_bad_inputs_in_one_line(tmp_path: Path, arguments: str, words: str) -> None:
    good = case.good_model(tmp_path)
    (tmp_path / "cut.bin").write_bytes(good.read_bytes()[:-1])
    (tmp_path / "story.txt").write_text("Once upon a time, there was a little girl.")
    os.mkfifo(tmp_path / "fifo")
    done = command(tmp_path, *arguments.split())
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("llama2c: error: ") and done.stderr.count("\n") == 1
    assert words in done.stderr


def test_as_many_positions_as_no_context_has(tmp_path: Path) -> None:
    done = command(tmp_path, str(case.good_model(tmp_path)), "-n", str(2**63), "-t", "0")
    assert done.returncode == 0
    assert done.stderr.startswith(f"llama2c: warning: --steps {2**63} is more than the context: using 16\n")


@pytest.mark.parametrize("text", ["0", "1000000", "abc"])
def test_omp_num_threads(tmp_path: Path, text: str) -> None:
    """The OpenMP library has read the variable before us, and may have a line of its own to say."""
    done = command(tmp_path, str(case.good_model(tmp_path)), OMP_NUM_THREADS=text)
    assert done.returncode == 1
    ours = [line for line in done.stderr.splitlines() if line and not line.startswith("libgomp: ")]
    assert len(ours) == 1 and ours[0].startswith("llama2c: error: OMP_NUM_THREADS: expected "), done.stderr
