"""The verb bench: its figures are what a clock and a model say they are, in three notations. No test asserts a speed."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest

from llama2c import Checkpoint, Config, Transformer
from llama2c.commands import bench
from llama2c.commands.bench import Result, Runner, Work
from llama2c.commands.main import main
from llama2c.commands.terminal import UsageError
from llama2c.threads import Threads, available_cores

CONFIG = Config(dim=32, hidden_dim=48, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=40, seq_len=64)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for name, version, shared in (("tied", 1, True), ("untied", 1, False), ("q8", 2, True), ("q8_untied", 2, False)):
        weights = checkpoints.random_weights(CONFIG, np.random.default_rng(3), shared)
        made[name] = checkpoints.write(folder / f"{name}.bin", CONFIG, version, weights, 16 if version == 2 else None)
    return made


def works(*flags: str, seq_len: int = 64) -> list[Work]:
    return bench.list_tests(bench.parse(["model.bin", *flags]), seq_len)


# ---------------------------------------------------------------------------
# which tests


def test_by_default_128_and_64_cut_to_the_context() -> None:
    assert works(seq_len=1024) == [Work("pp", 128, 0, 1), Work("tg", 64, 0, 1)]
    assert works(seq_len=50) == [Work("pp", 50, 0, 1), Work("tg", 50, 0, 1)]
    assert works("-d", "30,49", seq_len=50) == [Work(k, n, d, 1) for d, n in ((30, 20), (49, 1)) for k in ("pp", "tg")]


def test_several_of_each_and_none_twice() -> None:
    found = works("-p", "8,16,100,200", "-n", "0", "-b", "1,3")
    assert found == [Work("pp", n, 0, b) for b in (1, 3) for n in (8, 16, 64)]
    assert [work.name for work in found] == ["pp8", "pp16", "pp64", "pp8 x3", "pp16 x3", "pp64 x3"]
    assert [work.name for work in works("-p", "0", "-d", "5", "-b", "2")] == ["tg59 x2 @ d5"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-p", "x"], "argument -p/--prompt: expected an integer, found 'x'"),
        (["-n", "1,,2"], "argument -n/--generate: expected an integer, found ''"),
        (["-t", "1,0"], "argument -t/--threads: expected an integer of at least 1, found 0"),
        (["-b", "0"], "argument -b/--batch: expected an integer of at least 1, found 0"),
        (["-d", "-1"], "argument -d/--depth: expected an integer of at least 0, found -1"),
        (["-r", "1,2"], "argument -r/--rounds: expected an integer, found '1,2'"),
        (["-r", "0"], "argument -r/--rounds: expected an integer of at least 1, found 0"),
        (["-o", "xml"], "argument -o/--output: invalid choice"),
        (["-p", "0", "-n", "0"], "nothing to measure: -p/--prompt and -n/--generate are both 0"),
        (["--sweep-threads", "-t", "1"], "argument --sweep-threads: cannot be used together with -t/--threads"),
        (["--sweep-threads", "second.bin"], "argument --sweep-threads: takes one model, found 2"),
    ],
)
def test_wrong_command_lines(flags: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
        works(*flags)


def test_errors_are_one_line(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, absent = str(models["tied"]), str(tmp_path / "absent.bin")
    for code, flags, message in (
        (2, [model, "-p", "x"], "argument -p/--prompt: expected an integer, found 'x'"),
        (1, [absent], f"{absent}: expected a readable file, found: No such file or directory"),
        (1, [model, "-t", "1,5000"], "n_threads: expected an integer from 1 to 1024, found 5000"),
        (1, [model, "-d", "64"], "argument -d/--depth: expected at most 63 (the context less one), found 64"),
    ):
        assert main(["bench", *flags]) == code
        assert capsys.readouterr() == ("", f"llama2c: error: {message}\n")


def test_what_does_not_fit_is_refused(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size, _ = bench.weigh(Checkpoint.open(models["tied"]))
    cache = (64 + 64) * 2 * 4 * CONFIG.n_layers * CONFIG.kv_dim  # the two tests each have one
    monkeypatch.setattr(bench, "available_memory", lambda: 2 * size + cache - 1)
    assert main(["bench", str(models["tied"])]) == 1
    message = f"{models['tied']}: expected 0.2 MB of free memory for these tests, found 0.2 MB"
    assert capsys.readouterr() == ("", f"llama2c: error: {message}\n")
    monkeypatch.setattr(bench, "available_memory", lambda: 2 * size + cache)
    assert main(["bench", str(models["tied"]), "-r", "1"]) == 0


# ---------------------------------------------------------------------------
# what is counted


class Clock:
    """Says 0, 1, 2, ... seconds."""

    def __init__(self) -> None:
        self.seconds = itertools.count()

    def __call__(self) -> float:
        return float(next(self.seconds))


class Recorder:
    """A transformer that notes its steps."""

    def __init__(self, transformer: Transformer) -> None:
        self.config, self.new_cache = transformer.config, transformer.new_cache
        self.transformer = transformer
        self.steps: list[list[tuple[int, int]]] = []  # (position, number of tokens) of each sequence

    def forward_batch(self, sequences: Any, out: Any = None) -> Any:
        self.steps.append([(cache.length, len(tokens)) for tokens, cache in sequences])
        return self.transformer.forward_batch(sequences, out=out)


@pytest.mark.parametrize(
    ("work", "steps"),
    [
        (Work("pp", 20, 0, 1), [[(0, 20)]]),
        (Work("pp", 20, 7, 2), [[(7, 20), (7, 20)]]),
        (Work("tg", 3, 0, 1), [[(0, 1)], [(1, 1)], [(2, 1)]]),
        (Work("tg", 2, 50, 3), [[(50, 1)] * 3, [(51, 1)] * 3]),
    ],
)
def test_each_round_does_the_same_work(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, work: Work, steps: list[list[tuple[int, int]]]
) -> None:
    recorder = Recorder(Transformer(Checkpoint.open(models["tied"]), n_threads=1))
    runner = Runner(recorder, work)  # type: ignore[arg-type]
    assert recorder.steps == ([[(0, work.depth)] * work.batch] if work.depth else [])
    monkeypatch.setattr(bench, "perf_counter", Clock())
    for _ in range(2):
        recorder.steps.clear()
        assert runner.rate() == work.batch * work.n_tokens  # in one second
        assert recorder.steps == steps


def test_sizes(models: dict[str, Path]) -> None:
    """By hand: matrices, norms; Q8_0 has a scale of 4 bytes for 16 numbers."""
    matrices = 2 * (32 * 32 * 2 + 16 * 32 * 2 + 3 * 48 * 32)
    norms, table = 5 * 32, 40 * 32
    cache = 2 * 4 * 2 * 16  # bytes of a position
    work = Work("tg", 10, 20, 4)
    for name, n_tables, per_weight in (("tied", 1, 4.0), ("untied", 2, 4.0), ("q8", 1, 1.25), ("q8_untied", 2, 1.25)):
        checkpoint = Checkpoint.open(models[name])
        size = norms * 4 + (matrices + n_tables * table) * per_weight
        assert bench.weigh(checkpoint) == (size, norms + matrices + n_tables * table)
        read = norms * 4 + (matrices + table) * per_weight  # of a table that is not the classifier one row is read
        assert bench.read_per_token(checkpoint, work) == read / 4 + 25 * cache


def test_figures() -> None:
    result = Result("m", 100, 25, Threads(2, "n_threads"), "tg4", [10.0, 20.0, 60.0], [1000.0, 1000.0, 4000.0], 50.0)
    figures = result.figures()
    assert (figures["t/s"], figures["median"], figures["bandwidth"]) == (30, 20, 1000)
    assert figures["sd"] == pytest.approx(26.4575, abs=1e-4)
    assert figures["share"] == 0.75  # the median of 0.5, 1, 0.75
    assert Result("m", 100, 25, Threads(2, "n_threads"), "pp4", [1.0], [1.0]).figures()["share"] is None
    assert Result("m", 100, 25, Threads(2, "n_threads"), "pp4", [1.0], [1.0]).sd == 0


def test_best_threads_is_the_fewest_within_two_percent() -> None:
    def results(**speeds: list[float]) -> list[Result]:
        return [
            Result("m", 1, 1, Threads(n, "n_threads"), test, [v])
            for test, values in speeds.items()
            for n, v in enumerate(values, 1)
        ]

    assert bench.best_threads(results(tg=[50.0, 90.0, 100.0, 98.0])) == 3
    assert bench.best_threads(results(tg=[50.0, 99.0, 100.0, 98.0])) == 2
    assert bench.best_threads(results(tg=[100.0, 50.0], pp=[1000.0, 1010.0])) == 1  # pp's larger numbers do not outweigh tg's


def test_sweep_tries_every_number_of_few_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, [1]), (6, [1, 2, 3, 4, 5, 6]), (20, [*range(1, 9), 16, 20])):
        monkeypatch.setattr(bench, "available_cores", lambda cores=cores: cores)
        assert bench.sweep() == expected


# ---------------------------------------------------------------------------
# what is printed


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["bench", *argv]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_markdown(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, str(models["tied"]), str(models["q8"]), "-r", "2", "-t", "1", "-b", "1,2")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    assert rows[0] == ["model", "size", "params", "threads", "test", "t/s", "median", "of bandwidth"]
    assert [[row[0], *row[2:5]] for row in rows[2:]] == [
        [model, "0.02 M", "1", test] for model in ("tied fp32", "q8 Q8_0") for test in ("pp64", "tg64", "pp64 x2", "tg64 x2")
    ]
    for row in rows[2:]:
        mean, sd = map(float, row[5].split(" ± "))
        assert mean > 0 and sd >= 0 and abs(float(row[6]) - mean) < 0.01 + sd  # of two rounds: the same
        assert bool(row[7]) == row[4].startswith("tg")
    assert len({len(line) for line in out.splitlines() if line.startswith("|")}) == 1  # it can be read as it is
    assert re.search(r"^read bandwidth of an array as large as q8 Q8_0, 1 thread: [\d.]+ GB/s$", out, re.MULTILINE)
    assert re.match(r"llama2c \d.*, .*OpenMP; .*, Python [\d.]+, \d{4}-\d\d-\d\d\n\n", out)


def test_csv_and_json_say_the_same_of_the_machine(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    lines = list(csv.DictReader(io.StringIO(printed(capsys, str(models["q8"]), "-r", "3", "-o", "csv"))))
    read = json.loads(printed(capsys, str(models["q8"]), "-r", "3", "-o", "json"))
    assert [line["test"] for line in lines] == [result["test"] for result in read["results"]] == ["pp64", "tg64"]
    assert {*lines[0]} == {*read["info"], *read["results"][0]} - {"rates"}
    for line, result in zip(lines, read["results"], strict=True):
        assert {name: line[name] for name in read["info"]} == {k: "" if v is None else str(v) for k, v in read["info"].items()}
        assert float(line["t/s"]) > 0
        assert len(result["rates"]) == 3
        assert result["t/s"] == pytest.approx(sum(result["rates"]) / 3)


def test_sweep_prints_what_to_export(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, str(models["tied"]), "--sweep-threads", "-r", "1", "-p", "0")
    counts = re.findall(r"\| (\d+) +\| tg64", out)
    assert counts == [str(n) for n in bench.sweep()]
    assert counts[-1] == str(available_cores())
    last = re.search(r"\n\nexport OMP_NUM_THREADS=(\d+)\n$", out)
    assert last is not None and last[1] in counts


@pytest.mark.parametrize("name", ["tied", "\u017c\u00f3\u0142w", "\udcff"])
def test_any_locale_and_any_file_name(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    """The table has a plus-minus sign, and a file name may not even be text."""
    model = tmp_path / f"{name}.bin"
    model.write_bytes(models["tied"].read_bytes())
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    for output in ("md", "csv", "json"):
        command = [sys.executable, "-m", "llama2c", "bench", str(model), "-r", "1", "-o", output]
        ended = subprocess.run(command, env=env, capture_output=True, check=False, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, b"")
        shown = os.fsencode(json.loads(ended.stdout)["results"][0]["model"]) if output == "json" else ended.stdout
        assert os.fsencode(f"{name} fp32") in shown
        assert ("\u00b1".encode() in ended.stdout) == (output == "md")


def test_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = printed(capsys, "--help").splitlines()
    assert max(map(len, lines)) <= 80
    assert "    python -m llama2c bench stories15M.bin --sweep-threads" in lines
