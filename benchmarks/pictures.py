"""Draws the figures of compare.py: `python benchmarks/pictures.py results.json FOLDER` draws them again from its JSON.

Each picture has one subject: speed compared with others, speed by threads, position or batch, and the cost of a start.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib
from measure import Curve, Record, Result

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS = "#1b6ca8"
OTHERS = ("#d98c3f", "#8a9a5b", "#9b7fb0", "#b0b0b0", "#c97b84", "#7fa6b0")
LIMIT = "#c0392b"
CEILINGS = ("read bandwidth", "SGEMM")  # limits of the machine, not programs


def draw(record: Record, folder: Path) -> list[Path]:
    """Draws every picture that the record has figures for, as PNG. Returns their paths."""
    curves = {curve.name: curve for curve in record.curves}
    drawn = []
    with plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110}):
        for work in ("decode", "prefill"):
            if any(result.work.startswith(f"{work}, ") for result in record.results):
                drawn.append(save(against_everybody(record, work), folder / f"{work}.png"))
        for name in ("threads", "position", "batch"):
            if name in curves:
                drawn.append(save(over(curves[name], record), folder / f"{name}.png"))
        if "start-up" in curves and "memory" in curves:
            drawn.append(save(start(curves["start-up"], curves["memory"], record), folder / "start.png"))
    return drawn


def save(figure: Any, path: Path) -> Path:
    figure.savefig(path, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return path


def footer(figure: Any, record: Record) -> None:
    info = record.info
    where = f"{info['cpu']}, {info['cores']} cores, {info['isa']}"
    how = f"{info['threads']} threads, medians of {info['rounds']} rounds, {info['date']}"
    figure.text(0.01, -0.02, f"{where}; {how}", fontsize=8, color="#666666", va="top")


def against_everybody(record: Record, work: str) -> Any:
    """A panel for each model: a bar for each program, and a line for the limit of the machine. Longer is faster."""
    groups: dict[str, list[Result]] = {}
    for result in record.results:
        name, _, model = result.work.partition(", ")
        if name == work:
            groups.setdefault(model, []).append(result)
    names = dict.fromkeys(result.peer for result in record.results if result.peer not in CEILINGS)
    colours = {"llama2c": OURS, **{name: OTHERS[i % len(OTHERS)] for i, name in enumerate(names)}}
    figure, panels = plt.subplots(len(groups), 1, figsize=(8.5, 0.5 + 1.75 * len(groups)), squeeze=False, layout="constrained")
    for axes, (model, results) in zip(panels[:, 0], groups.items(), strict=True):
        rates = {"llama2c": statistics.median([rate for result in results for rate in result.ours])}
        rates |= {result.peer: statistics.median(result.theirs) for result in results}
        limits = {name: rates.pop(name) for name in CEILINGS if name in rates}
        drawn = axes.barh(list(rates), list(rates.values()), color=[colours[name] for name in rates], height=0.72)
        for name, limit in limits.items():
            axes.axvline(limit, color=LIMIT, linestyle="--", linewidth=1.2)
            axes.text(limit, -0.62, name, color=LIMIT, fontsize=8.5, ha="center")
        plate = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # so that a number stays readable on a limit
        axes.bar_label(drawn, [f"{rate:,.0f}" for rate in rates.values()], padding=4, fontsize=9, bbox=plate)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_title(model, loc="left", fontsize=11, fontweight="bold")
        axes.tick_params(left=False)
    what = "writing one token after the other" if work == "decode" else "reading a prompt"
    figure.suptitle(f"{work.capitalize()}: {what}, tok/s (longer is faster)", fontsize=13)
    footer(figure, record)
    return figure


def over(curve: Curve, record: Record) -> Any:
    """Speed over the x of the curve: a line for each program, with its rounds as dots."""
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    others = iter(OTHERS)
    ends: list[tuple[float, str, str]] = []
    for program, rounds in curve.series.items():
        limit = program in CEILINGS
        colour = LIMIT if limit else OURS if program == "llama2c" else next(others)
        style: dict[str, Any] = {"color": colour, "linestyle": "--" if limit else "-", "linewidth": 1.3 if limit else 2.2}
        medians = curve.medians(program)
        axes.plot(curve.x, medians, marker=None if limit else "o", **style)
        if not limit:
            for x, values in zip(curve.x, rounds, strict=True):
                axes.scatter([x] * len(values), values, s=8, color=colour, alpha=0.45)
        ends.append((medians[-1], program, colour))
    if curve.name == "batch":
        one = curve.medians("llama2c")[0]
        axes.set_xscale("log", base=2)
        axes.set_xticks(curve.x, [f"{x:g}" for x in curve.x])
        for x, median in list(zip(curve.x, curve.medians("llama2c"), strict=True))[1:]:
            times = f"{median / one:.1f} times"
            axes.annotate(times, (x, median), xytext=(-8, 5), textcoords="offset points", ha="right", fontsize=9)
    if curve.name == "threads":
        axes.set_xticks(curve.x)
        cores = record.info["cores"]
        axes.axvline(cores, color="#999999", linestyle=":", linewidth=1)
        axes.text(cores, axes.get_ylim()[1], f" {cores} cores", color="#777777", fontsize=9, va="top")
    axes.set_ylim(bottom=0)
    name_lines(axes, curve.x[-1], ends)
    axes.set_xlabel(curve.x_name)
    axes.set_ylabel(curve.unit)
    axes.set_title(f"{curve.name.capitalize()}: {curve.work}", loc="left")
    axes.grid(axis="y", color="#eeeeee")
    footer(figure, record)
    return figure


def name_lines(axes: Any, x: float, ends: list[tuple[float, str, str]]) -> None:
    """Writes the name of each line (y at its end, name, colour) after its end. Names that would overlap are moved up."""
    height, lowest = axes.get_ylim()[1] * 0.06, -1.0
    for y, program, colour in sorted(ends):
        lowest = max(y, lowest)
        axes.annotate(program, (x, lowest), xytext=(8, 0), textcoords="offset points", color=colour, va="center")
        lowest += height


def start(seconds: Curve, memory: Curve, record: Record) -> Any:
    """Two panels with a bar for each program: time to the first token, and peak memory. Shorter is better."""
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 0.9 + 0.42 * len(seconds.series)), layout="constrained")
    titles = (f"first token, {seconds.unit}", f"peak memory, {memory.unit}")
    for axes, curve, title in zip(panels, (seconds, memory), titles, strict=True):
        names = list(curve.series)
        values = [curve.medians(name)[0] for name in names]
        drawn = axes.barh(names, values, color=[OURS, *(OTHERS[i % len(OTHERS)] for i in range(len(names) - 1))], height=0.72)
        axes.bar_label(drawn, [f"{v:.3g}" if v < 100 else f"{v:,.0f}" for v in values], padding=4, fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.tick_params(left=False)
    figure.suptitle(f"Starting: {seconds.work} (shorter is better)", fontsize=13)
    footer(figure, record)
    return figure


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the results.json of a run")
    parser.add_argument("folder", type=Path, help="the folder for the pictures")
    options = parser.parse_args(arguments)
    try:
        for path in draw(Record.load(options.results), options.folder):
            print(path)
    except (OSError, ValueError) as error:
        print(f"pictures: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
