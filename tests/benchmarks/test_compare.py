"""The comparison, on models so small that a run takes seconds. Its figures exist and are plausible; no test asserts a speed.

The "C programs" are scripts that start llama2c itself. One prints the right text; others print something else or fail.
"""

from __future__ import annotations

import importlib
import json
import math
import shutil
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkpoints
import numpy as np
import pytest
from reference import Reference

from llama2c import Config

FOLDER = Path(__file__).parents[2] / "benchmarks"
TINY = Config(dim=64, hidden_dim=64, n_layers=2, n_heads=4, n_kv_heads=4, vocab_size=32000, seq_len=64)
TINIER = Config(dim=32, hidden_dim=64, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=512, seq_len=300)
FLAGS = ["--rounds", "1", "--tokens", "16", "--prompt", "16", "--threads", "1"]


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripts as modules, with tiny models instead of the large ones, and without pauses."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("make_checkpoint", "measure", "peers", "compare")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    loaded = SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for shape in ("15M", "42M", "110M"):
        monkeypatch.setitem(loaded.make_checkpoint.PRESETS, shape, TINY)
    monkeypatch.setitem(loaded.make_checkpoint.PRESETS, "260K", TINIER)
    monkeypatch.setattr(loaded.measure, "PAUSE", 0)
    monkeypatch.setattr(loaded.measure, "RUNS", 1)
    monkeypatch.setattr(loaded.peers, "PACKAGES", (loaded.peers.PlainNumPy,))
    monkeypatch.setattr(loaded.compare, "PACKAGES", (loaded.peers.PlainNumPy,))
    return loaded


def program(folder: Path, name: str, script: str) -> str:
    """A script for --c."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return f"{name}={path}"


@pytest.fixture
def honest(tmp_path: Path) -> list[str]:
    ours = f"""'{sys.executable}' -m llama2c "$@" && echo 'achieved tok/s: 1.5' >&2"""  # for one token, llama2c prints no speed
    return ["--c", program(tmp_path, "run", ours), "--c", program(tmp_path, "runq", ours)]


def only(modules: Any, tmp_path: Path, text: str, *flags: str) -> Any:
    """Runs the work that has `text` in its name. Returns the record."""
    out = tmp_path / "results"
    assert modules.compare.main([*FLAGS, "--folder", str(tmp_path), "--only", text, "-o", str(out), *flags]) == 0
    return modules.measure.Record.load(out / "results.json")


# ---------------------------------------------------------------------------
# whole runs


def test_decode_against_everybody(modules: Any, tmp_path: Path, honest: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    record = only(modules, tmp_path, "decode, 42M", *honest)
    rows = [(result.work, result.peer, result.c_program) for result in record.results]
    assert rows == [
        ("decode, 42M fp32", "run", True),
        ("decode, 42M fp32", "NumPy", False),
        ("decode, 42M fp32", "read bandwidth", False),
        ("decode, 42M Q8_0", "runq", True),
        ("decode, 42M Q8_0", "read bandwidth", False),
    ]
    assert all(0 < value < 1e9 for result in record.results for value in [*result.ours, *result.theirs])
    assert [result.note for result in record.results] == ["the same text", "", "", "the same text", ""]
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n| decode, 42M") == 5
    page = (tmp_path / "results" / "results.md").read_text()
    assert page.count("\n| decode, 42M") == 5
    assert "- decode, 42M fp32, run: the same text" in page
    assert record.info["command"].startswith("python benchmarks/compare.py --rounds 1")


def test_prefill(modules: Any, tmp_path: Path, honest: list[str]) -> None:
    record = only(modules, tmp_path, "prefill, 42M", *honest)
    assert [result.peer for result in record.results] == ["run", "NumPy", "SGEMM", "runq"]
    assert record.results[0].note == "the same text"


def test_curves_and_the_rest(modules: Any, tmp_path: Path, honest: list[str]) -> None:
    parts = ("together", "position", "threads", "memory", "less start-up")
    records = [only(modules, tmp_path, part, *honest) for part in parts]
    curves = {curve.name: curve for record in records for curve in record.curves}
    assert set(curves) == {"batch", "position", "threads", "start-up", "memory"}
    assert curves["batch"].x == [1, 2, 4, 8, 16, 32]
    assert curves["position"].x == [10]  # of a context of 64
    assert set(curves["position"].series) == {"llama2c", "read bandwidth"}
    assert set(curves["threads"].series) == {"llama2c", "run"}
    assert set(curves["start-up"].series) == set(curves["memory"].series) == {"llama2c", "run", "NumPy"}
    for curve in curves.values():
        for rounds in curve.series.values():
            assert len(rounds) == len(curve.x)
            assert all(len(values) == 1 and 0 < values[0] < 1e9 for values in rounds)
    assert 5 < curves["memory"].medians("llama2c")[0] < 2000  # megabytes
    rows = {(result.work, result.peer) for record in records for result in record.results}
    assert ("16 sequences together, 42M fp32", "one sequence") in rows
    assert ("decode at position 48, 42M fp32", "position 10") in rows
    assert ("memory beyond weights and cache, 110M fp32", "limit") in rows
    assert ("whole run less start-up, 260K fp32", "run") in rows


def test_pictures(modules: Any, tmp_path: Path, honest: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install '.[bench]'")
    records = [only(modules, tmp_path, text, *honest) for text in ("42M", "110M")]
    for field in ("results", "curves"):
        getattr(records[0], field).extend(getattr(records[1], field))
    path = tmp_path / "all.json"
    records[0].save(path)
    monkeypatch.delitem(sys.modules, "pictures", raising=False)
    pictures = importlib.import_module("pictures")
    out = tmp_path / "pictures"
    out.mkdir()
    assert pictures.main([str(path), str(out)]) == 0
    names = {"decode.png", "prefill.png", "threads.png", "position.png", "batch.png", "start.png"}
    assert {file.name for file in out.iterdir()} == names
    assert all(file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 5000 for file in out.iterdir())
    assert pictures.main([str(tmp_path / "absent.json"), str(out)]) == 1


def test_missing_programs_are_named(modules: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = SimpleNamespace(name="Absent", modules=("no_such_module",), packages="no-such")
    modules.compare.PACKAGES = (modules.peers.PlainNumPy, absent)
    record = only(modules, tmp_path, "decode, 15M")
    lines = ["Absent: no-such not installed", "an fp32 C program: not given; name one with --c run=PATH"]
    lines.append("a Q8_0 C program: not given; name one with --c runq=PATH")
    assert record.skipped == lines
    assert capsys.readouterr().err == "".join(f"left out: {line}\n" for line in lines)


def test_programs_with_other_texts_or_logits_do_not_count(
    modules: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = program(tmp_path, "run", "echo 'w1 w2'; echo 'achieved tok/s: 1000000' >&2")
    monkeypatch.setattr(modules.peers.PlainNumPy, "norm", lambda self, x, weight: x)
    record = only(modules, tmp_path, "decode, 15M", "--c", other)
    assert [result.peer for result in record.results] == ["read bandwidth"]
    assert "decode, 15M fp32, run: expected the same text, found the same text for 0 of" in capsys.readouterr().err
    assert any(line.startswith("NumPy, 15M: its logits differ from ours by") for line in record.skipped)


def test_models_too_large_for_memory_are_named(modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules.compare.bench, "available_memory", lambda: 1_000_000)
    record = only(modules, tmp_path, "decode, 15M")
    assert record.results == []
    assert record.skipped[-1] == "decode, 15M fp32: expected 34 MB of free memory, found 1 MB"


# ---------------------------------------------------------------------------
# errors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--c", "run=/no/such/binary"], "--c run: not an executable file: /no/such/binary"),
        (["--c", "run"], "--c: expected run..=PATH or runq..=PATH, found 'run'"),
        (["--c", "walk=x"], "--c: expected run..=PATH or runq..=PATH, found 'walk=x'"),
        (["-o", "/proc/results"], "/proc/results: expected a folder to write to, found: "),
        (["--folder", "/proc/models"], "/proc/models: expected a folder to write to, found: "),
        (["--against", "/no/such.json"], "[Errno 2]"),
    ],
)
def test_errors(modules: Any, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert modules.compare.main([*FLAGS, *flags]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith(f"compare: error: {message}")
    assert not [line for line in err if "Traceback" in line]


@pytest.mark.parametrize("flags", [["--tokens", "1"], ["--prompt", "x"], ["--rounds", "0"], ["--threads", "-1"]])
def test_too_few(modules: Any, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        modules.compare.main(flags)
    assert "expected a number of at least" in capsys.readouterr().err


def test_a_program_that_fails(modules: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = program(tmp_path, "run", "echo 'no model' >&2; exit 3")
    assert modules.compare.main([*FLAGS, "--only", "decode, 15M", "--c", broken]) == 2
    line = "compare: error: run: expected exit code 0 and a line 'achieved tok/s', found 3 and 'no model'\n"
    assert capsys.readouterr().err.endswith(line)


def test_a_full_disk(modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    assert modules.compare.main([*FLAGS, "--only", "decode, 15M", "--folder", str(tmp_path)]) == 2
    assert "15M.bin: expected 8 MB of free disk, found 1 MB" in capsys.readouterr().err
    assert not list(tmp_path.glob("15M*"))


# ---------------------------------------------------------------------------
# the arithmetic of figures


def result(modules: Any, ours: list[float], theirs: list[float], **more: Any) -> Any:
    return modules.measure.Result("w", "tok/s", "run", ours=ours, theirs=theirs, c_program=True, **more)


def test_ratios_are_those_of_the_rounds(modules: Any) -> None:
    drifting = result(modules, [100, 50, 10], [50, 25, 1], bar=2.0)
    assert drifting.ratios == [2, 2, 10]
    assert (drifting.ratio, drifting.met) == (2, "yes")
    assert result(modules, [4, 4], [2, 2], less_is_better=True, bar=1.0).cells()[4:] == ["0.5", "1.00", "no"]
    assert result(modules, [1], [1]).met == ""
    assert result(modules, [12345.6], [0.043214]).cells()[1:4] == ["12,346 tok/s", "run", "0.04321"]


def test_noise_of_a_median(modules: Any) -> None:
    """Compared with the spread of the medians of many random runs."""
    rng = np.random.default_rng(1)
    rounds = rng.normal(10, 1, (4000, 9))
    true = np.median(rounds, axis=1).std()
    estimated = [result(modules, list(row), [1.0] * 9).noise for row in rounds]
    assert np.mean(estimated) == pytest.approx(true, rel=0.2)


def test_slower_means_more_than_the_noise(modules: Any) -> None:
    record = modules.measure.Record

    def run(*ratios: float, peer: bool = True) -> Any:
        kept = result(modules, list(ratios), [1.0] * len(ratios))
        kept.c_program = peer
        return record({}, [kept])

    steady = run(2.00, 2.01, 1.99, 2.0, 2.0)
    assert modules.measure.slower(run(1.80, 1.81, 1.79, 1.8, 1.8), steady) == ["w: 1.80 times run, was 2.00"]
    assert modules.measure.slower(run(1.96, 1.96, 1.96, 1.96, 1.96), steady) == []  # 2% is too little
    assert modules.measure.slower(run(1.4, 2.2, 1.8, 1.6, 2.0), steady) == []  # within its own noise
    assert modules.measure.slower(run(2.20, 2.21, 2.19, 2.2, 2.2), steady) == []  # faster
    assert modules.measure.slower(run(1.8, 1.8, 1.8, peer=False), steady) == []  # the peer is not a C program
    assert modules.measure.compared(steady, steady) == 1


def test_against(modules: Any, tmp_path: Path, honest: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    record = only(modules, tmp_path, "decode, 15M", *honest)
    path = tmp_path / "past.json"
    flags = [*FLAGS, "--folder", str(tmp_path), "--only", "decode, 15M", *honest, "--against", str(path)]
    for times, code in ((1e-6, 0), (1e6, 1)):  # the past was slower, or faster
        kept = record.results[0]
        kept.ours = [value * times for value in kept.theirs]
        record.save(path)
        capsys.readouterr()
        assert modules.compare.main(flags) == code
        out = capsys.readouterr().out
        assert f"1 ratios to C programs compared with {path} ({record.info['date']}): {code} slower\n" in out
        assert ("slower: decode, 15M fp32: " in out) == bool(code)
    path.write_text(json.dumps({"info": {}}))
    assert modules.compare.main(flags) == 2
    assert "expected the JSON of compare.py" in capsys.readouterr().err


# ---------------------------------------------------------------------------
# peers


def test_numpy_peer_is_the_model(modules: Any, tmp_path: Path) -> None:
    """Its logits are those of the reference model of the tests, for all tokens at once and one by one."""
    config = Config(dim=32, hidden_dim=48, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=40, seq_len=32)
    weights = checkpoints.random_weights(config, np.random.default_rng(8), shared_classifier=False)
    path = checkpoints.write(tmp_path / "m.bin", config, 0, weights)
    tokens = [1, 7, 39, 4, 4]
    expected = Reference(config, weights).forward(tokens).logits
    peer = modules.peers.PlainNumPy(path, 1)
    np.testing.assert_allclose(peer.logits(tokens), expected[-1], rtol=0, atol=1e-5 * np.abs(expected).max())
    peer.clear()
    rows = [peer.feed([token]).copy() for token in tokens]
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_halves_moves_pairs_apart(modules: Any) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(12, 1)
    moved = modules.peers.halves(rows, 2)[:, 0].tolist()  # two heads of six: the pairs (0, 1), (2, 3), (4, 5)
    assert moved == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_program_reads_its_rate(modules: Any, tmp_path: Path) -> None:
    name, _, path = program(tmp_path, "run", "printf 'a b'; echo 'achieved tok/s: inf' >&2").partition("=")
    run = modules.peers.Program(name, [path], tmp_path / "m", tmp_path / "t", 3).run("-n", "4")
    assert run == (b"a b", math.inf)
