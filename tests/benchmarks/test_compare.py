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
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkpoints
import numpy as np
import pytest
from reference import Reference

from llama2c import Config, export

FOLDER = Path(__file__).parents[2] / "benchmarks"
TINY = Config(dim=64, hidden_dim=64, n_layers=2, n_heads=4, n_kv_heads=4, vocab_size=32000, seq_len=64)
TINIER = Config(dim=32, hidden_dim=64, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=512, seq_len=300)
FLAGS = ["--rounds", "1", "--tokens", "16", "--prompt", "16", "--threads", "1"]


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripts as modules, with tiny models instead of the large ones, and without pauses."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("make_checkpoint", "measure", "peers", "pages", "compare")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    loaded = SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for shape in ("15M", "42M", "110M"):
        monkeypatch.setitem(loaded.make_checkpoint.PRESETS, shape, TINY)
    monkeypatch.setitem(loaded.make_checkpoint.PRESETS, "135M", replace(TINY, vocab_size=400))
    monkeypatch.setitem(loaded.make_checkpoint.PRESETS, "260K", TINIER)
    monkeypatch.setattr(loaded.compare, "PROMPT", 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
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
    ours = f"""'{sys.executable}' -m llama2c "$@" && echo 'achieved tok/s: 1.5' >&2"""  # after one token llama2c prints none
    return ["--c", program(tmp_path, "run", ours), "--c", program(tmp_path, "runq", ours)]


def only(modules: Any, tmp_path: Path, text: str, *flags: str) -> Any:
    """Runs the work that has `text` in its name. Returns the record."""
    out = tmp_path / "results"
    assert modules.compare.main([*FLAGS, "--folder", str(tmp_path), "--only", text, "-o", str(out), *flags]) == 0
    return modules.measure.Record.load(out / "results.json")


# ---------------------------------------------------------------------------
# whole runs


def keys(record: Any) -> list[tuple[str, str, str, int | None]]:
    return [(samples.work, samples.model, samples.program, samples.at) for samples in record.samples]


def test_decode_against_everybody(modules: Any, tmp_path: Path, honest: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    record = only(modules, tmp_path, "decode, 42M", *honest)
    both = ["llama2c", "llama2c, automatic threads"]
    fp32 = [("decode", "42M fp32", name, None) for name in (*both, "run", "NumPy", "read bandwidth")]
    assert keys(record) == fp32 + [("decode", "42M Q8_0", name, None) for name in (*both, "runq", "read bandwidth")]
    assert all(len(samples.values) == 1 and 0 < samples.values[0] < 1e9 for samples in record.samples)
    assert record.notes == [f"decode, 42M {name}: the same text" for name in ("fp32, run", "Q8_0, runq")]
    rows = [(row.work, row.against) for row in record.rows()]
    assert rows == [
        ("decode on automatic threads, 42M fp32", "1 thread"),
        *[("decode, 42M fp32", name) for name in ("run", "NumPy", "read bandwidth")],
        ("decode on automatic threads, 42M Q8_0", "1 thread"),
        *[("decode, 42M Q8_0", name) for name in ("runq", "read bandwidth")],
    ]
    out, err = capsys.readouterr()
    assert [line.partition(":")[0] for line in err.splitlines()] == ["round 0 of 1", "round 1 of 1"]
    assert out.count("\n| decode, 42M") == 5
    page = (tmp_path / "results" / "results.md").read_text()
    assert page.count("\n| decode, 42M") == 5
    assert "- decode, 42M fp32, run: the same text" in page
    assert record.info["command"].startswith("python benchmarks/compare.py --rounds 1")


def test_prefill(modules: Any, tmp_path: Path, honest: list[str]) -> None:
    record = only(modules, tmp_path, "prefill, 42M", *honest)
    assert [samples.program for samples in record.samples] == ["llama2c", "run", "NumPy", "SGEMM", "llama2c", "runq"]
    assert record.notes[0] == "prefill, 42M fp32, run: the same text"


def test_curves_pass_through_decode(modules: Any, tmp_path: Path, honest: list[str]) -> None:
    """One sequence, the first position and --threads are decode: the same samples, which are measured once."""
    for work, x, others in (("sequences", 1, [2, 4, 8, 16, 32]), ("threads", 1, [2, 3, 4]), ("position", 8, [20, 40])):
        modules.compare.POSITIONS = (20, 40, 60)  # 60 is beyond the context of 64 less 16
        modules.compare.available_cores = lambda: 2
        record = only(modules, tmp_path, f"{work}, 42M", *honest)
        points = record.curve(work, "42M fp32", "llama2c")
        assert [point[0] for point in points] == sorted([x, *others])
        assert dict(points)[x] is record.find("decode", "42M fp32")
        assert all(len(samples.values) == 1 and 0 < samples.values[0] < 1e9 for samples in record.samples)
    limits = record.curve("position", "42M fp32", "read bandwidth")
    first, *later = [samples.values[0] for _, samples in limits]
    assert [x for x, _ in limits] == [8, 20, 40]
    size, cached = (tmp_path / "42M.bin").stat().st_size, 2 * 4 * TINY.n_layers * TINY.kv_dim
    assert later == [pytest.approx(first * size / (size + x * cached)) for x in (20, 40)]


def test_starts(modules: Any, tmp_path: Path, honest: list[str]) -> None:
    record = only(modules, tmp_path, "first token", *honest)
    works = ("first token", "first token after 16 tokens", "memory beyond the file")
    programs = ("llama2c", "run", "NumPy")
    less = [("first token less `import numpy`", "110M fp32", name, None) for name in ("llama2c", "python -c 'import numpy'")]
    assert keys(record) == [(work, "110M fp32", name, None) for work in works for name in programs] + less
    assert record.notes == ["first token, 110M fp32, run: the same text"]
    for work in works[:2]:
        assert all(0.001 < record.find(work, "110M fp32", name).values[0] < 600 for name in programs)
    assert 5 < record.find("memory beyond the file", "110M fp32").values[0] < 2000
    first, numpy = (record.find(*key[:3]).values[0] for key in less)
    assert 0.001 < numpy < 600 and -numpy < first < 600
    assert record.find(*less[0][:3]).limit == 0.05
    assert {samples.limit for samples in record.samples if samples.program != "llama2c"} == {None}


def test_tiny(modules: Any, tmp_path: Path, honest: list[str]) -> None:
    record = only(modules, tmp_path, "less start-up", *honest)
    assert [(row.work, row.against) for row in record.rows()] == [("whole run less start-up, 260K fp32 on one thread", "run")]


def test_gguf(modules: Any, tmp_path: Path) -> None:
    """A GGUF file, without llama.cpp: ours alone, as a model in this process and as a command."""
    modules.make_checkpoint.make_tokenizer(tmp_path / "tokenizer.bin", 32000)
    modules.make_checkpoint.make_checkpoint(tmp_path / "m.bin", replace(TINY, seq_len=128))
    export(tmp_path / "m.bin", tmp_path / "m.gguf", "q8_0")
    flags = ["--gguf", str(tmp_path / "m.gguf")]
    record = only(modules, tmp_path, "", *flags)
    works = [
        "decode",
        "prefill",
        "prompt",
        "step",
        "5 rows of a sequence",
        "depth",
        "first token",
        "first token after 66 tokens",
    ]
    assert [*dict.fromkeys(samples.work for samples in record.samples)] == [*works, "memory beyond the file"]
    assert {samples.model for samples in record.samples} == {"m"}
    assert all(samples.values[0] > 0 for samples in record.samples[:-1])
    record = only(modules, tmp_path, "prefill", "--only", "rows", *flags)
    assert [samples.work for samples in record.samples] == ["prefill", *2 * ["5 rows of a sequence"]]


def test_parts_that_a_gguf_file_has(modules: Any, tmp_path: Path) -> None:
    """Few rows for Q4_0 and Q8_0, long contexts for Q8_0: others only if --only names them."""
    modules.make_checkpoint.make_tokenizer(tmp_path / "tokenizer.bin", 32000)
    modules.make_checkpoint.make_checkpoint(tmp_path / "m.bin", replace(TINY, seq_len=128))
    few, long = {"step", "5 rows of a sequence"}, {"depth"}  # no long prompt fits
    for mix, flags, found in (
        ("q4_0", [], few), ("q4_1", [], set()), ("q8_0", [], few | long), ("q4_1", ["--only", "m"], few | long),
    ):  # fmt: skip
        export(tmp_path / "m.bin", tmp_path / "m.gguf", mix)
        options = modules.compare.parse([*FLAGS, *flags])
        comparison = modules.compare.Comparison(options, tmp_path, {}, modules.measure.Record({"threads": 1}))
        comparison.gguf(tmp_path / "m.gguf")
        assert {group.work for group in comparison.groups} & (few | long) == found


# ---------------------------------------------------------------------------
# few rows and long contexts


@pytest.fixture
def twin(modules: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Takes the place of llama.cpp: llama2c again, with the same methods."""

    class Twin(modules.peers.Ours):  # type: ignore[misc, name-defined]
        name, modules, packages = "llama.cpp", ("numpy",), "numpy"

        def with_context(
            self, n_sequences: int = 1, n_positions: int = 512, kv: str = "float16", flash_attention: bool | None = None
        ) -> Any:
            return super().with_context(n_sequences, n_positions, kv)

    monkeypatch.setattr(modules.compare, "PACKAGES", (Twin,))
    return Twin


def test_steps_and_their_bound(modules: Any, tmp_path: Path, twin: Any) -> None:
    record = only(modules, tmp_path, "step, 135M Q8_0", "--threads", "2", "--rounds", "2")
    prompt, *steps = record.samples
    assert (prompt.work, prompt.at, prompt.unit) == ("prompt", 16, "tok/s")
    bound = "step of 1 + R tokens of a prompt"
    points = [(1, "llama2c"), (1, "llama.cpp")]
    points += [(n, name) for n in (2, 4, 8, 16, 32) for name in ("llama2c", "llama.cpp", bound)]
    assert [(s.at, s.program) for s in steps] == points
    assert {(s.work, s.model, s.unit) for s in steps} == {("step", "135M Q8_0", "ms")}
    one = record.find("step", "135M Q8_0", at=1)
    for n in (2, 8, 32):
        times = [step + n / speed * 1000 for step, speed in zip(one.values, prompt.values, strict=True)]
        assert record.find("step", "135M Q8_0", bound, n).values == pytest.approx(times)
    lines = {(row.work, row.against): row for row in record.rows()}
    eight = lines["step of R = 8, 135M Q8_0", bound]
    assert eight.aim == pytest.approx(1 / 0.9)
    assert eight.ratio == pytest.approx(eight.theirs.median / eight.ours.median)
    assert lines["step of R = 8, 135M Q8_0", "llama.cpp"].aim == 2.5
    assert lines["step of R = 4, 135M Q8_0", "llama.cpp"].aim is None
    assert len(lines) == 11
    page = (tmp_path / "results" / "results.md").read_text()
    assert (
        f"Milliseconds of a step, 135M Q8_0:\n\n| sequences R | llama2c | llama.cpp | {bound} |\n|---:|---:|---:|---:|\n| 1 |"
        in page
    )


def test_rows_of_one_sequence(modules: Any, tmp_path: Path, twin: Any) -> None:
    record = only(modules, tmp_path, "5 rows of a sequence", "--threads", "2")
    models = ["110M fp32", "110M Q8_0", "135M Q8_0", "135M bf16"]
    programs = ["llama2c", "llama2c, 1 row", "llama.cpp"]
    assert keys(record) == [("5 rows of a sequence", model, name, None) for model in models for name in programs]
    aims = {(row.work, row.against): row.aim for row in record.rows() if row.aim is not None}
    expected = {(f"5 rows of a sequence, {model}", "llama2c, 1 row"): pytest.approx(1 / 1.35) for model in models[:2]}
    assert aims == expected


def test_depth_and_long_prompts(modules: Any, tmp_path: Path, twin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules.compare, "DEPTHS", (0, 20, 60))
    monkeypatch.setattr(modules.compare, "DEPTH_TOKENS", 5)
    modules.make_checkpoint.make_tokenizer(tmp_path / "tokenizer.bin", 32000)
    modules.make_checkpoint.make_checkpoint(tmp_path / "m.bin", replace(TINY, seq_len=128))
    export(tmp_path / "m.bin", tmp_path / "m.gguf", "q8_0")
    flags = ["--gguf", str(tmp_path / "m.gguf"), "--only", "prompt", "--long", "40,100,1000", "--threads", "2"]
    record = only(modules, tmp_path, "depth", *flags)
    deep = [("depth", "m", name, at) for at in (0, 20, 60) for name in ("llama2c", "llama2c, fp32 cache", "llama.cpp")]
    names = ("llama2c", "llama.cpp, flash attention", "llama.cpp, no flash attention")
    assert keys(record) == deep + [("prompt", "m", name, at) for at in (40, 100) for name in names]
    assert [(row.work, row.against, row.aim) for row in record.rows() if row.aim is not None] == [
        ("decode with an fp16 cache at position 60, m", "llama2c, fp32 cache", 1.3),
        ("decode with an fp16 cache at position 60, m", "llama.cpp", 1.5),
        *[(f"prompt of {at} tokens, m", name, 1.5) for at in (40, 100) for name in names[1:]],
    ]
    assert all(0 < samples.values[0] < 1e9 for samples in record.samples)
    assert record.skipped[-1] == "prompt of 1000 tokens, m: expected a context of at least 1000 positions, found 128"


@pytest.mark.parametrize("mixed_up", ["each", "rows"])
def test_a_peer_with_other_logits_in_steps_does_not_count(
    modules: Any, tmp_path: Path, twin: Any, monkeypatch: pytest.MonkeyPatch, mixed_up: str
) -> None:
    right = getattr(modules.peers.Ours, mixed_up)
    monkeypatch.setattr(twin, mixed_up, lambda self, tokens: right(self, tokens)[::-1])
    record = only(modules, tmp_path, "step, 135M Q8_0")
    assert {samples.program for samples in record.samples} == {"llama2c", "step of 1 + R tokens of a prompt"}
    (line,) = [line for line in record.skipped if "steps" in line]
    assert line.startswith("llama.cpp, 135M_q64: in steps of 32 sequences, its logits differ by ")


def test_depth_is_evaluated_once(modules: Any) -> None:
    """Later measurements cut back to the position. Those at the beginning feed nothing before."""

    class Counting(modules.peers.Steps):  # type: ignore[misc, name-defined]
        vocab_size = 10

        def __init__(self) -> None:
            self.length, self.calls = 0, []

        def filled(self) -> int:
            return self.length

        def truncate(self, length: int) -> None:
            self.length = min(length, self.length)

        def feed(self, tokens: list[int]) -> Any:
            self.calls.append((self.length, len(tokens)))
            self.length += len(tokens)
            return np.zeros(10)

        def rows(self, tokens: list[int]) -> Any:
            return self.feed(tokens)

        def each(self, tokens: list[int]) -> Any:
            self.calls.append(len(tokens))
            return np.zeros((len(tokens), 10))

    context = Counting()
    assert context.decode_at(100, 5) > 0
    assert context.calls == [(0, 98), *[(98 + i, 1) for i in range(5)]]
    context.calls.clear()
    context.decode_at(100, 5)
    assert context.calls == [(98 + i, 1) for i in range(5)]
    context.calls.clear()
    context.decode_at(0, 3)
    assert context.calls == [(0, 1), (1, 1), (2, 1)]
    context.calls.clear()
    assert context.verify(5) > 0
    assert context.calls == [(0, 32), *[(32, 5)] * 4]
    context.calls.clear()
    context.step(3)
    assert context.calls == [3] * 4
    context.calls.clear()
    assert context.read(7) > 0
    assert context.calls == [(0, 7)]


def test_points_have_lines_of_their_own(modules: Any) -> None:
    """Each x is compared with the same x, not with decode."""
    samples = modules.measure.Samples
    kept = [samples("decode", "m", "llama2c", values=[1.0]), samples("decode", "m", "llama.cpp", values=[1.0])]
    for at, ours in ((1000, 30.0), (4000, 20.0)):
        kept += [
            samples("depth", "m", "llama2c", at=at, values=[ours]),
            samples("depth", "m", "llama.cpp", at=at, values=[10.0]),
        ]
    record = modules.measure.Record({"threads": 2, "tokens": 100}, kept)
    found = [(row.work, row.against, row.ratio, row.is_few_or_long) for row in record.rows()]
    assert found == [
        ("decode, m", "llama.cpp", 1.0, False),
        ("decode with an fp16 cache at position 1,000, m", "llama.cpp", 3.0, True),
        ("decode with an fp16 cache at position 4,000, m", "llama.cpp", 2.0, True),
    ]
    assert [x for x, _ in record.curve("depth", "m", "llama2c")] == [1000, 4000]


def test_missing_programs_are_named(modules: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = SimpleNamespace(name="Absent", modules=("no_such_module",), packages="no-such")
    modules.compare.PACKAGES = (modules.peers.PlainNumPy, absent)
    record = only(modules, tmp_path, "decode, 15M")
    lines = ["Absent: no-such not installed", "an fp32 C program: not given; name one with --c run=PATH"]
    lines.append("a Q8_0 C program: not given; name one with --c runq=PATH")
    assert record.skipped == lines
    assert capsys.readouterr().err.startswith("".join(f"left out: {line}\n" for line in lines) + "round 0 of 1: ")


def test_programs_with_other_texts_or_logits_do_not_count(
    modules: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = program(tmp_path, "run", "echo 'w1 w2'; echo 'achieved tok/s: 1000000' >&2")
    monkeypatch.setattr(modules.peers.PlainNumPy, "norm", lambda self, x, weight: x)
    record = only(modules, tmp_path, "decode, 15M", "--c", other)
    assert [samples.program for samples in record.samples] == ["llama2c", "llama2c, automatic threads", "read bandwidth"]
    assert "decode, 15M fp32, run: expected the same text, found the same text for 0 of" in capsys.readouterr().err
    assert any(line.startswith("NumPy, 15M: its logits differ from ours by") for line in record.skipped)


def test_models_too_large_for_memory_are_named(modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules.compare.bench, "available_memory", lambda: 1_000_000)
    record = only(modules, tmp_path, "decode, 15M")
    assert record.samples == []
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


@pytest.mark.parametrize(
    "flags",
    [["--tokens", "1"], ["--prompt", "x"], ["--rounds", "0"], ["--threads", "-1"], ["--long", "2048,"], ["--long", "8"]],
)
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


def row(modules: Any, ours: list[float], theirs: list[float], against: str = "run", unit: str = "tok/s", **more: Any) -> Any:
    """The row of a record with these samples."""
    samples = modules.measure.Samples
    limit = more.pop("limit", None)
    kept = [
        samples("w", "m", "llama2c", unit, limit=limit, values=ours),
        samples("w", "m", against, unit, values=theirs, **more),
    ]
    (found,) = modules.measure.Record({"threads": 2, "tokens": 100}, kept).rows()
    return found


def test_a_ratio_is_that_of_the_medians(modules: Any) -> None:
    drifting = row(modules, [100, 50, 10], [50, 25, 1], aim=2.1)
    assert (drifting.ratio, drifting.ratios) == (2, [2, 2, 10])
    assert drifting.cells() == [
        "w, m", "50.0 tok/s (10.0 to 100)", "run", "25.0 (1.00 to 50.0)", "2.00 (2.00 to 10.0)", "≥ 2.10", "no",
    ]  # fmt: skip
    seconds = row(modules, [4, 5], [2, 2], unit="s", limit=4.5)
    assert seconds.cells()[4:] == ["0.444 (0.400 to 0.500)", "≤ 4.5 s", "yes"]
    assert row(modules, [1], [1]).cells()[5:] == ["", ""]
    assert row(modules, [12345.6], [0.043214]).cells()[1:4:2] == [
        "12,346 tok/s (12,346 to 12,346)",
        "0.0432 (0.0432 to 0.0432)",
    ]
    assert [modules.measure.short(value) for value in (1.4, 999.4, 999.6, 0.0)] == ["1.40", "999", "1,000", "0.00"]


def test_the_ratio_is_between_those_of_the_rounds(modules: Any) -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        found = row(modules, list(rng.lognormal(size=5)), list(rng.lognormal(size=5)))
        assert min(found.ratios) <= found.ratio <= max(found.ratios)


def test_rounds_take_turns(modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round measures each task once and begins with another one. The first round does not count."""
    order: list[str] = []

    def task(name: str) -> Any:
        def measure() -> float:
            order.append(name)
            return len(order)

        return modules.measure.Task(modules.measure.Samples("w", "m", name), measure)

    groups = [[task("a"), task("b"), task("c")], [task("d"), task("e")]]
    modules.measure.take_rounds(groups, 3)
    assert "".join(order) == "abcde" + "bcaed" + "cabde" + "abced"
    assert [t.samples.values for t in groups[0]] == [[8, 12, 16], [6, 13, 17], [7, 11, 18]]


def test_first_byte_waits_for_what_follows_the_prompt(modules: Any, tmp_path: Path) -> None:
    """The command prints "ab", waits for a file, and then prints more. It would go on forever."""
    seen, ready = tmp_path / "seen", tmp_path / "ready"
    script = (
        f"printf ab; while [ ! -e {ready} ]; do [ -e {seen} ] && : > {ready}; : > {seen}; done; printf c; while :; do :; done"
    )
    assert modules.measure.first_byte(["sh", "-c", script], after=2) > 0
    assert ready.exists()
    with pytest.raises(ValueError, match="expected more than 2 bytes on stdout, found 2"):
        modules.measure.first_byte(["printf", "ab"], after=2)


def test_noise_of_a_median(modules: Any) -> None:
    """Compared with the spread of the medians of many random runs."""
    rng = np.random.default_rng(1)
    rounds = rng.normal(10, 1, (4000, 9))
    true = np.median(rounds, axis=1).std()
    estimated = [row(modules, list(values), [1.0] * 9).noise for values in rounds]
    assert np.mean(estimated) == pytest.approx(true, rel=0.2)


def test_slower_means_more_than_the_noise(modules: Any) -> None:
    samples = modules.measure.Samples

    def run(*ratios: float, peer: str = "run") -> Any:
        ones = [1.0] * len(ratios)
        kept = [samples("w", "m", "llama2c", values=list(ratios)), samples("w", "m", peer, values=ones)]
        return modules.measure.Record({"threads": 2, "tokens": 100}, kept)

    steady = run(2.00, 2.01, 1.99, 2.0, 2.0)
    assert modules.measure.slower(run(1.80, 1.81, 1.79, 1.8, 1.8), steady) == ["w, m: 1.80 times run, was 2.00"]
    assert modules.measure.slower(run(1.96, 1.96, 1.96, 1.96, 1.96), steady) == []  # 2% is too little
    assert modules.measure.slower(run(1.4, 2.2, 1.8, 1.6, 2.0), steady) == []  # within its own noise
    assert modules.measure.slower(run(2.20, 2.21, 2.19, 2.2, 2.2), steady) == []  # faster
    fell = run(1.8, 1.8, 1.8, 1.8, 1.8, peer="llama.cpp"), run(2.0, 2.0, 2.0, 2.0, 2.0, peer="llama.cpp")
    assert modules.measure.slower(*fell) == []  # not a C program
    assert len(modules.measure.pairs(steady, steady)) == 1


def test_against(modules: Any, tmp_path: Path, honest: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    record = only(modules, tmp_path, "decode, 15M", *honest)
    path = tmp_path / "past.json"
    flags = [*FLAGS, "--folder", str(tmp_path), "--only", "decode, 15M", *honest, "--against", str(path)]
    for times, code in ((1e-6, 0), (1e6, 1)):  # the past was slower, or faster
        kept = record.find("decode", "15M fp32")
        kept.values = [value * times for value in record.find("decode", "15M fp32", "run").values]
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


def test_program_reads_its_rate(modules: Any, tmp_path: Path) -> None:
    name, _, path = program(tmp_path, "run", "printf 'a b'; echo 'achieved tok/s: inf' >&2").partition("=")
    run = modules.peers.Program(name, [path], ["m", "-t", "0"], 3).run("-n", "4")
    assert run == (b"a b", math.inf)


def test_llama_cpp_feeds_rows_and_sequences(modules: Any, tmp_path: Path) -> None:
    """The logits of sequences in one batch, of the rows of one, and after cutting back, are ours."""
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install '.[peers]'")
    modules.make_checkpoint.make_tokenizer(tmp_path / "tokenizer.bin", 300)
    modules.make_checkpoint.make_checkpoint(tmp_path / "m.bin", replace(TINY, vocab_size=300, seq_len=128))
    ours = modules.peers.Ours(tmp_path / "m.bin", 1).with_context(6, 64, "float32")
    for flash in (None, True, False):
        theirs = modules.peers.LlamaCpp(tmp_path / "m.bin", 1).with_context(6, 64, flash_attention=flash)
        assert modules.compare.most_different(ours, theirs, 6) < 1e-2
    for context in (ours, theirs):
        context.clear()
        context.feed([5, 6, 7, 8])
        context.truncate(2)
        assert context.filled() == 2
    rows = [context.rows([9, 10, 11]).copy() for context in (ours, theirs)]
    np.testing.assert_allclose(rows[1], rows[0], rtol=0, atol=1e-2 * np.abs(rows[0]).max())
    np.testing.assert_allclose(rows[1][-1], ours.logits([5, 6, 9, 10, 11]), rtol=0, atol=1e-2 * np.abs(rows[0]).max())
    theirs.clear()
    with pytest.raises(ValueError, match="expected at most 64 tokens at once, found 65"):
        theirs.feed([5] * 65)
