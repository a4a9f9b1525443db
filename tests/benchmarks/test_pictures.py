"""benchmarks/pictures.py: what is plotted is what results.json has, median and spread. Nobody looks at the pictures here."""

from __future__ import annotations

import importlib
import random
import struct
import sys
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install '.[bench]'")

FOLDER = Path(__file__).parents[2] / "benchmarks"
INFO = {"cpu": "CPU", "cores": 2, "isa": "avx2", "threads": 2, "rounds": 3, "date": "2026-01-02", "tokens": 100}

BOUND = "step of 1 + R tokens of a prompt"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("measure", "pictures"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return SimpleNamespace(**{name: importlib.import_module(name) for name in ("measure", "pictures")})


@pytest.fixture
def record(modules: SimpleNamespace) -> Any:
    rng = random.Random(3)
    kept = modules.measure.Record(INFO)

    def add(work: str, programs: tuple[str, ...], at: int | None = None, model: str = "42M fp32", unit: str = "tok/s") -> None:
        for program in programs:
            values = [rng.uniform(10, 20) for _ in range(3)]
            kept.samples.append(modules.measure.Samples(work, model, program, unit, at, values=values))

    add("decode", ("llama2c", "llama2c, automatic threads", "run", "other", "read bandwidth"))
    add("decode", ("llama2c", "runq"), model="42M Q8_0")
    add("prefill", ("llama2c", "run", "SGEMM"))
    add("first token", ("llama2c", "run"), unit="s")
    add("memory beyond the file", ("llama2c", "run"), unit="MB")
    for at in (2, 16):
        add("sequences", ("llama2c",), at)
    for at in (1, 3):
        add("threads", ("llama2c", "run"), at)
    add("position", ("llama2c", "read bandwidth"), 500)
    for model in ("135M Q8_0", "135M bf16", "110M fp32"):
        for at in (1, 2, 16):
            add("step", ("llama2c", "llama.cpp", BOUND)[: 3 if at > 1 else 2], at, model, "ms")
    for at in (0, 4000):
        add("depth", ("llama2c", "llama2c, fp32 cache", "llama.cpp"), at, "smollm2")
    return kept


def whiskers(container: Any, axis: int) -> list[tuple[float, float]]:
    """The ends of the error bars: along x (0) or y (1)."""
    (collection,) = container[2]
    return [tuple(sorted(end[axis] for end in segment)) for segment in collection.get_segments()]


def test_bars_are_the_samples(modules: SimpleNamespace, record: Any) -> None:
    figures = modules.pictures.figures(record)
    shown = {"decode": [("decode", "42M fp32"), ("decode", "42M Q8_0")], "prefill": [("prefill", "42M fp32")]}
    shown["start"] = [("first token", "42M fp32"), ("memory beyond the file", "42M fp32")]
    for name, panels in shown.items():
        for axes, (work, model) in zip(figures[name].axes, panels, strict=True):
            samples = [s for s in record.samples if (s.work, s.model, s.at) == (work, model, None)]
            programs = [s for s in samples if s.program not in ("read bandwidth", "SGEMM")]
            assert [bar.get_width() for bar in axes.patches] == [median(s.values) for s in programs]
            assert [label.get_text() for label in axes.get_yticklabels()] == [s.program for s in programs]
            ends = whiskers(axes.containers[1], 0)
            assert ends == [pytest.approx((min(s.values), max(s.values))) for s in programs]
            limits = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
            assert limits == [median(s.values) for s in samples if s not in programs]
            assert axes.get_xlim()[1] > max(max(s.values) for s in samples)
        assert figures[name].get_suptitle().endswith("\nCPU, 2 cores, avx2, 2 threads, 2026-01-02")


def test_lines_are_the_samples_and_pass_through_decode(modules: SimpleNamespace, record: Any) -> None:
    figures = modules.pictures.figures(record)
    shown = {"sequences": ([1, 2, 16], ["llama2c"]), "threads": ([1, 2, 3], ["llama2c", "run"])}
    shown["position"] = ([50, 500], ["llama2c", "read bandwidth"])
    for work, (xs, programs) in shown.items():
        (axes,) = figures[work].axes
        assert [container.get_label() for container in axes.containers] == programs
        for container, program in zip(axes.containers, programs, strict=True):
            expected = [record.find(work, "42M fp32", program, x) or record.find("decode", "42M fp32", program) for x in xs]
            assert list(container[0].get_xdata()) == xs
            assert list(container[0].get_ydata()) == [median(s.values) for s in expected]
            assert whiskers(container, 1) == [pytest.approx((min(s.values), max(s.values))) for s in expected]
    one, sixteen = (
        median(record.find(*key).values) for key in (("decode", "42M fp32"), ("sequences", "42M fp32", "llama2c", 16))
    )
    assert f"{modules.measure.short(sixteen / one)} times" in [text.get_text() for text in figures["sequences"].axes[0].texts]
    auto = [line.get_ydata()[0] for line in figures["threads"].axes[0].lines if line.get_linestyle() == ":"]
    assert auto == [median(record.find("decode", "42M fp32", "llama2c, automatic threads").values)]


def test_panels_of_lines_are_the_samples(modules: SimpleNamespace, record: Any) -> None:
    """A panel for each model, a line for each program: only of the x that it has."""
    figures = modules.pictures.figures(record)
    theirs = {"step": ("llama.cpp", BOUND), "depth": ("llama2c, fp32 cache", "llama.cpp")}
    for work, models, xs in (("step", ["135M Q8_0", "135M bf16", "110M fp32"], [1, 2, 16]), ("depth", ["smollm2"], [0, 4000])):
        panels = [axes for axes in figures[work].axes if axes.get_visible()]
        assert [axes.get_title(loc="left") for axes in panels] == models
        for axes, model in zip(panels, models, strict=True):
            assert [container.get_label() for container in axes.containers] == ["llama2c", *theirs[work]]
            for container in axes.containers:
                program = container.get_label()
                shown = [x for x in xs if program != BOUND or x > 1]
                expected = [record.find(work, model, program, x) for x in shown]
                assert list(container[0].get_xdata()) == shown
                assert list(container[0].get_ydata()) == [median(s.values) for s in expected]
                assert whiskers(container, 1) == [pytest.approx((min(s.values), max(s.values))) for s in expected]
            assert axes.get_ylim()[0] == 0
        assert [text.get_text() for text in panels[0].get_legend().get_texts()] == ["llama2c", *theirs[work]]


def test_a_program_has_one_colour(modules: SimpleNamespace, record: Any) -> None:
    seen: dict[str, set[str]] = {}
    for figure in modules.pictures.figures(record).values():
        for axes in figure.axes:
            bars = {label.get_text(): bar for label, bar in zip(axes.get_yticklabels(), axes.patches, strict=False)}
            for program, bar in bars.items():
                seen.setdefault(program, set()).add(str(bar.get_facecolor()[:3]))
    assert all(len(colours) == 1 for colours in seen.values())
    assert len({*map(str, seen.values())}) == len(seen) == 5


def test_pictures_contain_the_checksum_of_their_samples(modules: SimpleNamespace, record: Any, tmp_path: Path) -> None:
    record.save(tmp_path / "results.json")
    assert modules.pictures.main([str(tmp_path)]) == 0
    drawn = sorted(tmp_path.glob("*.png"))
    assert [path.stem for path in drawn] == ["decode", "depth", "position", "prefill", "sequences", "start", "step", "threads"]
    sums = {source_of(path) for path in drawn}
    assert sums == {modules.pictures.checksum(modules.measure.Record.load(tmp_path / "results.json"))}
    record.samples[-1].values[0] += 1e-9
    assert sums != {modules.pictures.checksum(record)}


def test_errors_are_one_line(modules: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert modules.pictures.main([str(tmp_path / "absent")]) == 1
    (tmp_path / "results.json").write_text('{"info": {}, "results": []}')
    assert modules.pictures.main([str(tmp_path)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("pictures: error: [Errno 2]")
    assert "expected the JSON of compare.py" in second


def source_of(path: Path) -> str:
    """The text named "Source" in a PNG file."""
    data, place = path.read_bytes(), 8
    while place < len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"tEXt" and data[place + 8 :].startswith(b"Source\0"):
            return data[place + 15 : place + 8 + size].decode()
        place += size + 12
    raise AssertionError(f"{path}: no Source")
