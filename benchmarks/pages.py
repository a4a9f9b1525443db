"""Puts the figures of stored runs into pages: `python benchmarks/pages.py` updates README.md and docs/benchmarks.md.

Each part that this writes is between two comments: <!-- figures: NAME --> and <!-- end -->. The figures are those of
results.json, gguf/results.json, engine.json, serve.json and batch.json in benchmarks/results.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import OURS, Record, Row, short, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "docs/benchmarks.md")
CURVES = {"sequences": "sequences in a step", "position": "position", "threads": "threads"}
PICTURES = {"step": "Milliseconds of a step over its sequences", "depth": "Decode over the position"}
POINT_CURVES = {
    "step": ("Milliseconds of a step", "sequences R"),
    "depth": ("Decode, tok/s", "position"),
}  # of several programs
FIRST, BETWEEN = "first token", "between tokens"  # of streams, in milliseconds


def number(n: int, word: str) -> str:
    """ "1 core", "2 cores" """
    return f"{n} {word}{'s' * (n > 1)}"


def how(info: dict[str, Any]) -> str:
    """When, where and how often."""
    machine = f"{info['cpu']}, {number(info['cores'], 'core')}, {info['system']}, {info['isa']}"
    rounds = number(info["rounds"], "round")
    return f"{info['date']}, {machine}, {number(info['threads'], 'thread')}, medians (lowest to highest) of {rounds}"


def curves(record: Record) -> list[str]:
    """A table for each curve of llama2c."""
    lines = []
    for work, x_name in CURVES.items():
        models = dict.fromkeys(samples.model for samples in record.samples if samples.work == work)
        for model in models:
            points = [f"| {x} | {samples.cell()} |" for x, samples in record.curve(work, model, OURS)]
            lines += [f"Decode by {x_name}, {model}:", "", f"| {x_name} | tok/s |", "|---:|---:|", *points, ""]
    return lines


def point_curves(record: Record) -> list[str]:
    """A table for each model at a work that several programs are measured at, with a column for each program."""
    lines = []
    for work, (heading, x_name) in POINT_CURVES.items():
        for model in dict.fromkeys(samples.model for samples in record.samples if samples.work == work):
            samples = [s for s in record.samples if (s.work, s.model) == (work, model)]
            programs = list(dict.fromkeys(s.program for s in samples))
            lines += [f"{heading}, {model}:", "", f"| {x_name} | {' | '.join(programs)} |", "|" + "---:|" * (1 + len(programs))]
            for x in dict.fromkeys(s.at for s in samples):
                found = [record.find(work, model, program, x) for program in programs]
                lines.append(f"| {x} | {' | '.join(s.cell() if s else '' for s in found)} |")
            lines.append("")
    return lines


def markdown(record: Record) -> str:
    """All figures of a run as a page: results.md."""
    info = record.info
    build = f"llama2c {info['version']}" + (f" ({info['commit']})" if info["commit"] else "")
    lines = ["# Results", "", f"{how(info)}; {build}, Python {info['python']}:", "", f"    {info['command']}", ""]
    lines += [*table(record.rows()), "", *curves(record), *point_curves(record)]
    if record.notes:
        lines += ["What both sides printed:", "", *(f"- {line}" for line in record.notes), ""]
    if record.skipped:
        lines += ["Left out:", "", *(f"- {line}" for line in record.skipped), ""]
    return "\n".join(lines)


def loads(record: Record) -> list[str]:
    """A line for each load and program of benchmarks/serve.py: its speed, the ratio of our server to it, times of streams."""
    head = ["load", "program", "tok/s in all", "llama2c's ratio, aim", f"{FIRST}, ms (99th)", f"{BETWEEN}, ms (99th)"]
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * 4]
    ratios = {(row.theirs.work, row.against): row.cells()[4:] for row in record.rows() if row.is_speed}
    for samples in record.samples:
        if samples.unit != "tok/s":
            continue
        ratio, aim, met = ratios.get((samples.work, samples.program), ("", "", ""))
        cells = [samples.work, samples.program, samples.cell(), f"{ratio}, {aim}: {met}" if aim else ratio]
        for kind in (FIRST, BETWEEN):
            works = [f"{part}, {samples.work}" for part in (kind, f"{kind} (99th)")]
            half, most = (record.find(work, samples.model, samples.program) for work in works)
            cells.append(f"{short(half.median)} ({short(most.median)})" if half and most else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


# ---------------------------------------------------------------------------
# the parts of README.md and docs/benchmarks.md


def chosen(record: Record, choose: Callable[[Row], bool]) -> str:
    info = record.info
    return "\n".join([f"{how(info)}:", "", *table([row for row in record.rows() if choose(row)])])


def in_readme(row: Row) -> bool:
    """The largest model against C in everything, and against llama.cpp in speed."""
    return row.work.endswith((", 110M fp32", ", 110M Q8_0")) and (
        row.against in ("run", "runq") or (row.against == "llama.cpp" and row.is_speed)
    )


def few_and_long(stored: dict[str, Record]) -> str:
    """Few rows and long contexts of all runs, by the folder of each: the lines with an aim, and the pictures."""
    blocks = []
    for folder, record in stored.items():
        rows = [row for row in record.rows() if row.is_few_or_long and row.has_aim]
        works = dict.fromkeys(samples.work for samples in record.samples)
        if rows:
            blocks.append("\n".join([f"{how(record.info)}:", "", *table(rows)]))
        blocks += [f"![{PICTURES[work]}](../{folder}/{work}.png)" for work in PICTURES if work in works]
    return "\n\n".join(blocks) or "The stored runs are older than these measurements and have no figures of them."


def all_rows(record: Record) -> str:
    return f"`{record.info['command']}`\n\n" + chosen(record, lambda row: True)


def parts(record: Record, gguf: Record, engine: Record) -> dict[str, str]:
    """What is written between the comments, by name."""

    def aimed(row: Row) -> bool:
        return row.has_aim and not row.is_few_or_long

    return {
        "readme": chosen(record, in_readme),
        "stories": f"`{record.info['command']}`\n\n" + chosen(record, aimed),
        "gguf": f"`{gguf.info['command']}`\n\n" + chosen(gguf, aimed),
        "engine": all_rows(engine),
        "few": few_and_long({"benchmarks/results": record, "benchmarks/results/gguf": gguf}),
    }


def served(record: Record) -> str:
    """The server under load."""
    return "\n".join([f"{how(record.info)}, {record.info['tokens']} tokens for each client:", "", *loads(record)])


def stored_parts() -> dict[str, str]:
    """The parts of all stored runs. OSError or ValueError: a file of theirs is missing or is not one."""
    content = parts(*(Record.load(RESULTS / name) for name in ("results.json", "gguf/results.json", "engine.json")))
    for name, shown in (("serve", served), ("batch", all_rows)):
        path = RESULTS / f"{name}.json"
        content[name] = shown(Record.load(path)) if path.exists() else "There is no stored run yet."
    return content


def filled(text: str, content: dict[str, str]) -> str:
    """The page with these parts in it. KeyError if it asks for another part."""

    def part(found: re.Match[str]) -> str:
        return f"<!-- figures: {found[1]} -->\n{content[found[1]]}\n<!-- end -->"

    return re.sub(r"<!-- figures: (\w+) -->\n.*?<!-- end -->", part, text, flags=re.DOTALL)


def main() -> int:
    try:
        content = stored_parts()
        for page in (ROOT / name for name in PAGES):
            page.write_text(filled(page.read_text(encoding="utf-8"), content), encoding="utf-8")
            print(page)
    except (OSError, ValueError) as error:
        print(f"pages: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
