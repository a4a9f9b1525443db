"""Draws the figures of a run: `python benchmarks/pictures.py benchmarks/results` draws them again from its results.json.

A bar or a point is the median of the rounds, and the thin line on it goes from the lowest round to the highest. Each picture
contains a checksum of the samples that it was drawn from, so that a test can tell a picture of another run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from measure import AUTO, BOUND, CEILINGS, OURS, Record, Samples, short

COLOURS = {
    OURS: "#1b6ca8", AUTO: "#7db4dc", "run": "#d98c3f", "runq": "#b5651d", "llama.cpp": "#6f8f3f", "PyTorch": "#9b7fb0",
    "NumPy": "#a3a3a3", "llama2c, fp32 cache": "#7db4dc", **dict.fromkeys((*CEILINGS, BOUND), "#c0392b"),
}  # fmt: skip
OTHERS = ("#c97b84", "#5f9ea0", "#8c6d46", "#4f4f4f")  # for programs that have no colour of their own
TITLES = {
    "decode": "Decode: writing one token after the other, tok/s (longer is faster)",
    "prefill": "Prefill: reading a prompt, tok/s (longer is faster)",
    "start": "Whole commands: seconds from the start to the first token, and memory (shorter is better)",
    "threads": "Decode by the number of threads",
    "position": "Decode by the position in the context",
    "sequences": "Decode of several sequences in the same steps",
    "step": "Time of a step by the number of sequences, milliseconds (lower is faster)",
    "depth": "Decode by the position, with a cache in fp16 unless the line says fp32, tok/s",
}
STARTS = ("first token", "memory")
WHISKER = {"ecolor": "#222222", "elinewidth": 1, "capsize": 2.5}
X_NAMES = {"threads": "threads", "position": "position", "sequences": "sequences"}
POINT_NAMES = {"step": "sequences R", "depth": "position"}  # a panel for each model


def draw(record: Record, folder: Path) -> list[Path]:
    """Draws every picture that the record has samples for, as PNG. Returns their paths."""
    paths = []
    for name, figure in figures(record).items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], facecolor="white", metadata={"Source": checksum(record), "Software": None})
    return paths


def checksum(record: Record) -> str:
    """Of all samples, as hexadecimal digits."""
    return hashlib.sha256(json.dumps([asdict(samples) for samples in record.samples]).encode()).hexdigest()


def figures(record: Record) -> dict[str, Any]:
    """The pictures by name, as figures of matplotlib."""
    drawn: dict[str, Any] = {}
    with matplotlib.rc_context({"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110}):
        for name in ("decode", "prefill", "start"):
            if panels := panels_of(record, name):
                drawn[name] = bars(record, name, panels)
        for work in X_NAMES:
            for model in models_of(record, work):
                drawn[work] = lines(record, work, model)
        for work in POINT_NAMES:
            if models := models_of(record, work):
                drawn[work] = panels_of_lines(record, work, models)
    return drawn


def title(figure: Any, record: Record, text: str) -> None:
    """What is shown, on which machine, and when."""
    info = record.info
    where = f"{info['cpu']}, {info['cores']} cores, {info['isa']}, {info['threads']} threads, {info['date']}"
    how = f"medians of {info['rounds']} rounds, thin lines from the lowest to the highest"
    figure.suptitle(f"{text}\n{where}", x=0.01, ha="left", fontsize=11.5)
    figure.supxlabel(how, x=0.01, ha="left", fontsize=8.5, color="#555555")


def colours_of(programs: Sequence[str]) -> dict[str, str]:
    """A colour for each program, the same in all pictures."""
    others = [name for name in dict.fromkeys(programs) if name not in COLOURS]
    return {**COLOURS, **{name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}}


# ---------------------------------------------------------------------------
# bars


class Panel(NamedTuple):
    """A model at a work: a bar for each program, and a line for the limit of the machine."""

    heading: str
    programs: list[Samples]
    limits: list[Samples]


def panels_of(record: Record, name: str) -> list[list[Panel]]:
    """The rows of a picture: one for each model."""
    works = [s.work for s in record.samples if s.work == name or (name == "start" and s.work.startswith(STARTS))]
    rows = []
    for model in models_of(record, *works):
        row = []
        for work in dict.fromkeys(works):
            shown = [s for s in record.samples if (s.work, s.model, s.at) == (work, model, None)]
            heading = model if name == work else f"{model}\n{work}, {shown[0].unit}"
            limits = [samples for samples in shown if samples.program in CEILINGS]
            row.append(Panel(heading, [samples for samples in shown if samples not in limits], limits))
        rows.append(row)
    return rows


def models_of(record: Record, *works: str) -> list[str]:
    return list(dict.fromkeys(samples.model for samples in record.samples if samples.work in works))


def bars(record: Record, name: str, rows: list[list[Panel]]) -> Any:
    """A grid of panels."""
    heights = [0.8 + 0.32 * max(len(panel.programs) for panel in row) for row in rows]
    columns = len(rows[0])
    size = (8.5 if columns == 1 else 4.0 * columns, 0.9 + sum(heights))
    figure = Figure(size, layout="constrained")
    grid = figure.subplots(len(rows), columns, height_ratios=heights, squeeze=False)
    colours = colours_of([samples.program for samples in record.samples])
    for axes, panel in zip(grid.flat, [panel for row in rows for panel in row], strict=True):
        draw_panel(axes, panel, colours)
    title(figure, record, TITLES[name])
    return figure


def draw_panel(axes: Any, panel: Panel, colours: dict[str, str]) -> None:
    names, medians = [s.program for s in panel.programs], [s.median for s in panel.programs]
    axes.barh(names, medians, color=[colours[name] for name in names], height=0.72)
    axes.errorbar(medians, names, xerr=spreads(panel.programs), fmt="none", **WHISKER)
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}  # a number stays readable on a limit
    for samples in panel.programs:
        end = (samples.spread[1], samples.program)
        axes.annotate(
            short(samples.median), end, xytext=(5, 0), textcoords="offset points", va="center", fontsize=9, bbox=plate
        )
    for limit in panel.limits:
        colour, text = colours[limit.program], f"{limit.program} {short(limit.median)}"
        axes.axvline(limit.median, color=colour, linestyle="--", linewidth=1.2, zorder=0)
        above = axes.get_xaxis_transform()
        axes.text(limit.median, 1.01, text, transform=above, color=colour, fontsize=8.5, ha="center", va="bottom")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.16 * max(samples.spread[1] for samples in [*panel.programs, *panel.limits]))
    axes.set_title(panel.heading, loc="left", fontsize=10.5, fontweight="bold")
    axes.tick_params(left=False)


def spreads(samples: list[Samples]) -> list[list[float]]:
    """How far the lowest and the highest round are from each median: what errorbar wants."""
    return [[s.median - s.spread[0] for s in samples], [s.spread[1] - s.median for s in samples]]


# ---------------------------------------------------------------------------
# lines


def lines(record: Record, work: str, model: str) -> Any:
    """Speed over x: a line for each program, with the spread of its rounds."""
    figure = Figure((8, 4.6), layout="constrained")
    axes = figure.subplots()
    colours = colours_of([s.program for s in record.samples if (s.work, s.model) == (work, model)])
    xs, ends = draw_lines(axes, record, work, model, colours)
    auto = record.find("decode", model, AUTO)
    if work == "threads" and auto:
        axes.axhline(auto.median, color=colours[AUTO], linestyle=":", linewidth=1.8, zorder=0)
        ends.append((auto.median, AUTO))
    if work == "sequences":
        axes.set_xscale("log", base=2)
        (_, one), *more = record.curve(work, model, OURS)
        for x, point in more:
            times = f"{short(point.median / one.median)} times"
            axes.annotate(times, (x, point.median), xytext=(-9, 6), textcoords="offset points", ha="right", fontsize=9)
    axes.set_xticks(xs, [f"{x:g}" for x in xs])
    axes.minorticks_off()
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    name_lines(axes, xs[-1], ends, colours)
    axes.set(xlabel=X_NAMES[work], ylabel="tok/s")
    axes.grid(axis="y", color="#eeeeee")
    title(figure, record, f"{TITLES[work]}, {model}")
    return figure


def draw_lines(
    axes: Any, record: Record, work: str, model: str, colours: dict[str, str]
) -> tuple[list[int], list[tuple[float, str]]]:
    """Draws a line for each program. Returns all x, and where each line ends: its last y and the program."""
    all_xs: set[int] = set()
    ends = []
    for program in dict.fromkeys(s.program for s in record.samples if (s.work, s.model) == (work, model)):
        xs, samples = zip(*record.curve(work, model, program), strict=True)
        medians = [s.median for s in samples]
        limit = program in (*CEILINGS, BOUND)
        style: dict[str, Any] = {"linestyle": "--", "linewidth": 1.3} if limit else {"marker": "o", "linewidth": 2}
        axes.errorbar(
            xs, medians, yerr=spreads(samples), color=colours[program], label=program, **{**WHISKER, "ecolor": None}, **style
        )
        all_xs.update(xs)
        ends.append((medians[-1], program))
    return sorted(all_xs), ends


def panels_of_lines(record: Record, work: str, models: list[str]) -> Any:
    """A panel for each model, with a line for each program, and one legend."""
    columns = min(2, len(models))
    rows = -(-len(models) // columns)
    figure = Figure((4.5 * columns if columns > 1 else 7.5, 3.4 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    colours = colours_of([s.program for s in record.samples if s.work == work])
    handles: dict[str, Any] = {}
    for axes, model in zip(grid.flat, models, strict=False):
        if work == "step":
            axes.set_xscale("log", base=2)
        xs, _ = draw_lines(axes, record, work, model, colours)
        axes.set_xticks(xs, [f"{x:,}" for x in xs])
        axes.minorticks_off()
        axes.set_ylim(0)
        axes.set_title(model, loc="left", fontsize=10.5, fontweight="bold")
        axes.set_xlabel(POINT_NAMES[work])
        axes.grid(axis="y", color="#eeeeee")
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    for axes in grid.flat[len(models) :]:
        axes.set_visible(False)
    grid.flat[0].legend(handles.values(), handles.keys(), frameon=False, fontsize=9)
    title(figure, record, TITLES[work])
    return figure


def name_lines(axes: Any, x: float, ends: list[tuple[float, str]], colours: dict[str, str]) -> None:
    """Writes the name of each line (y at its end, name) after its end. Names that would overlap are moved up."""
    height, lowest = axes.get_ylim()[1] * 0.055, -1.0
    for y, program in sorted(ends):
        lowest = max(y, lowest)
        text = program.replace(", ", "\n")
        axes.annotate(text, (x, lowest), xytext=(10, 0), textcoords="offset points", color=colours[program], va="center",
                      annotation_clip=False)  # fmt: skip
        lowest += height * (1 + text.count("\n"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder with results.json, which gets the pictures")
    options = parser.parse_args(arguments)
    try:
        for path in draw(Record.load(options.folder / "results.json"), options.folder):
            print(path)
    except (OSError, ValueError) as error:
        print(f"pictures: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
