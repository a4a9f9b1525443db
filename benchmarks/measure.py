"""Rounds, and the figures they give: samples of each program at each work, ratios and their spread; as JSON and back.

Every figure, in a table or in a picture, is the median of one list of samples. A ratio is the ratio of two such medians, so a
reader who divides two figures of a table gets the ratio beside them. The spread is the lowest and the highest round; that of a
ratio is the lowest and the highest ratio of two samples of the same round.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Measure = Callable[[], float]
OURS, AUTO = "llama2c", "llama2c, automatic threads"
CEILINGS = ("read bandwidth", "SGEMM")  # limits of the machine, not programs
BOUND = "step of 1 + R tokens of a prompt"  # what a step of R sequences is compared with
# Works that are compared at each x by itself, and what a line of the table calls them.
POINTS = {
    "step": "step of R = {at:,}",
    "depth": "decode with an fp16 cache at position {at:,}",
    "prompt": "prompt of {at:,} tokens",
}
ROWS_OF_ONE = "5 rows of a sequence"
HEADER = ["work", "llama2c", "against", "theirs", "ratio", "aim", "met"]
PAUSE = 0.2  # seconds: the threads of OpenBLAS and others spin for a tenth of a second after their work
RUNS = 9  # runs of a whole command for one sample


def short(value: float) -> str:
    """Three digits, or all digits before the point: 0.04321 -> "0.0432", 1.4 -> "1.40", 12345.6 -> "12,346"."""
    return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:,.0f}"


# ---------------------------------------------------------------------------
# figures


@dataclass
class Samples:
    """What one program reached at one work, a value for each round.

    `at` is the x of a curve: sequences in a step, a position, a number of threads. `aim` is the least ratio that we want in the
    row of these samples, and `limit` the most that the value itself may be (seconds, megabytes).
    """

    work: str
    model: str
    program: str
    unit: str = "tok/s"
    at: int | None = None
    aim: float | None = None
    limit: float | None = None
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.values), max(self.values)

    def cell(self, unit: str = "") -> str:
        """ "158 tok/s (151 to 160)" """
        low, high = map(short, self.spread)
        return f"{short(self.median)}{unit} ({low} to {high})"


@dataclass
class Row:
    """A line of a table: two samples and how many times better the first one is."""

    work: str
    ours: Samples
    against: str
    theirs: Samples
    aim: float | None = None

    @property
    def is_speed(self) -> bool:
        return self.ours.unit == "tok/s"

    @property
    def is_few_or_long(self) -> bool:
        """Whether few rows or a long context are measured."""
        return self.ours.work in (*POINTS, ROWS_OF_ONE)

    @property
    def ratio(self) -> float:
        return self.better(self.ours.median, self.theirs.median)

    @property
    def ratios(self) -> list[float]:
        """That of each round. The ratio of the medians is never outside of these."""
        return [self.better(a, b) for a, b in zip(self.ours.values, self.theirs.values, strict=True)]

    def better(self, ours: float, theirs: float) -> float:
        return ours / theirs if self.is_speed else theirs / ours

    @property
    def noise(self) -> float:
        """The standard deviation of the ratio, estimated from the spread of the rounds so that an outlier has no effect.

        1.4826 times the median deviation estimates the standard deviation of a round. The median of n rounds has
        1.2533 / sqrt(n) times that.
        """
        middle = statistics.median(self.ratios)
        deviation = statistics.median(abs(ratio - middle) for ratio in self.ratios)
        return 1.4826 * deviation * 1.2533 / len(self.ratios) ** 0.5

    @property
    def has_aim(self) -> bool:
        return self.aim is not None or self.ours.limit is not None

    def cells(self) -> list[str]:
        """The line in the order of HEADER."""
        low, high = short(min(self.ratios)), short(max(self.ratios))
        aim, met = "", ""
        if self.aim is not None:
            aim, met = f"≥ {self.aim:.2f}", "yes" if self.ratio >= self.aim else "no"
        elif self.ours.limit is not None:
            aim, met = f"≤ {self.ours.limit:g} {self.ours.unit}", "yes" if self.ours.median <= self.ours.limit else "no"
        ratio = f"{short(self.ratio)} ({low} to {high})"
        return [self.work, self.ours.cell(f" {self.ours.unit}"), self.against, self.theirs.cell(), ratio, aim, met]

    def line(self) -> str:
        return f"| {' | '.join(self.cells())} |"


def table(rows: list[Row]) -> list[str]:
    """The lines of a table in Markdown."""
    return [f"| {' | '.join(HEADER)} |", "|---|---:|---|---:|---:|---:|---|", *(row.line() for row in rows)]


@dataclass
class Record:
    """All samples of one run of compare.py. `info` has the machine, the date, the command and what was asked for."""

    info: dict[str, Any]
    samples: list[Samples] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def find(self, work: str, model: str, program: str = OURS, at: int | None = None) -> Samples | None:
        wanted = (work, model, program, at)
        return next((s for s in self.samples if (s.work, s.model, s.program, s.at) == wanted), None)

    def start(self, work: str) -> int:
        """The x at which a curve has the samples of "decode", because it is the same work."""
        return {"sequences": 1, "threads": self.info["threads"], "position": self.info["tokens"] // 2}[work]

    def curve(self, work: str, model: str, program: str) -> list[tuple[int, Samples]]:
        """The points of one program, in the order of x."""
        points = {s.at: s for s in self.samples if (s.work, s.model, s.program) == (work, model, program) and s.at is not None}
        start = None if work in POINTS else self.find("decode", model, program)
        if points and start:
            points[self.start(work)] = start
        return sorted(points.items())

    def rows(self) -> list[Row]:
        """The lines of the table, in the order of the samples."""
        rows = []
        for samples in self.samples:
            on_curve = samples.at is not None and samples.work not in POINTS  # a curve of decode
            ours = self.find("decode", samples.model) if on_curve else self.find(samples.work, samples.model, at=samples.at)
            if ours is None or samples is ours or (on_curve and samples.aim is None):
                continue
            if samples.program == AUTO or on_curve:
                rows.append(self.row_of_ours(samples, ours))
            else:
                work = POINTS.get(samples.work, samples.work).format(at=samples.at)
                rows.append(Row(f"{work}, {samples.model}", ours, samples.program, samples, samples.aim))
        return rows

    def row_of_ours(self, samples: Samples, base: Samples) -> Row:
        """A line that compares llama2c with its own decode: one sequence, near the beginning, on a fixed number of threads."""
        threads = self.info["threads"]
        name, against = {
            "decode": ("decode on automatic threads", f"{threads} thread{'s' * (threads > 1)}"),
            "sequences": (f"{samples.at} sequences together", "one sequence"),
            "position": (f"decode at position {samples.at}", f"position {self.start('position')}"),
        }[samples.work]
        return Row(f"{name}, {samples.model}", samples, against, base, samples.aim)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Record:
        """ValueError if `save` did not write the file."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            samples = [Samples(**kept) for kept in content["samples"]]
            if not all(kept.values for kept in samples):
                raise ValueError("samples without values")
            return cls(content["info"], samples, content["notes"], content["skipped"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected the JSON of compare.py, found something else ({error})") from None


# ---------------------------------------------------------------------------
# compared with an earlier run


def pairs(new: Record, old: Record) -> list[tuple[Row, Row]]:
    """The rows against C programs that both runs have."""
    before = {(row.work, row.against): row for row in old.rows()}
    rows = [row for row in new.rows() if row.against.startswith("run")]
    return [(row, before[row.work, row.against]) for row in rows if (row.work, row.against) in before]


def slower(new: Record, old: Record) -> list[str]:
    """A line for each ratio to a C program that became worse by more than the noise of both runs.

    That is more than three standard deviations of the difference, and more than 3%.
    """
    lines = []
    for row, past in pairs(new, old):
        if past.ratio - row.ratio > max(3 * (past.noise**2 + row.noise**2) ** 0.5, 0.03 * past.ratio):
            lines.append(f"{row.work}: {row.ratio:.2f} times {row.against}, was {past.ratio:.2f}")
    return lines


# ---------------------------------------------------------------------------
# measuring


@dataclass
class Task:
    """What fills some samples."""

    samples: Samples
    measure: Measure


def take_rounds(groups: list[list[Task]], rounds: int) -> None:
    """One round to warm up, then `rounds` rounds that count. Prints how long it will take on stderr.

    Each round measures every task once. The tasks of a group are compared with each other, so they take turns: in each round
    another one of them is the first.
    """
    for turn in range(rounds + 1):
        start = time.perf_counter()
        for group in groups:
            first = turn % len(group)
            for task in group[first:] + group[:first]:
                time.sleep(PAUSE)  # the threads of the program before stop spinning
                value = task.measure()
                if turn:
                    task.samples.values.append(value)
        took, left = time.perf_counter() - start, rounds - turn
        print(f"round {turn} of {rounds}: {took:.0f} s, {took * left / 60:.1f} minutes left", file=sys.stderr, flush=True)


def seconds(command: list[str], environment: dict[str, str] | None = None) -> float:
    """Seconds of a whole command. Its output goes to a file, because the reader of a pipe would take a core from it."""
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=output, stderr=subprocess.DEVNULL)
        return time.perf_counter() - start


def first_byte(command: list[str], environment: dict[str, str] | None = None, after: int = 0) -> float:
    """Seconds from the start of a command to the first byte on its stdout beyond the first `after` ones. Then it is ended."""
    with tempfile.TemporaryFile() as said:
        start, printed = time.perf_counter(), 0
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=said) as process:
            assert process.stdout is not None
            while printed <= after and (piece := os.read(process.stdout.fileno(), 1 << 16)):
                printed += len(piece)
            took = time.perf_counter() - start
            process.kill()
        if printed <= after:
            said.seek(0)
            end = said.read().decode(errors="replace").strip()[-200:]
            raise ValueError(f"{command[0]}: expected more than {after} bytes on stdout, found {printed} and {end!r}")
        return took


def whole_run(command: list[str], environment: dict[str, str] | None = None) -> float:
    """Tokens per second of a whole command: 256 tokens, minus the time of a run of one token. Medians, as start-up varies."""
    times = [[seconds([*command, "-n", n], environment) for n in ("256", "1")] for _ in range(RUNS)]
    whole, start_up = (statistics.median(column) for column in zip(*times, strict=True))
    return 255 / max(whole - start_up, 1e-6)


def peak_memory(command: list[str], environment: dict[str, str] | None = None) -> float:
    """Peak resident bytes of a whole command, with the pages of the files that it maps.

    A process inherits the peak of its parent, so a small Python process starts the command.
    """
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=-3, stderr=-3); "
    code += f"print(resource.getrusage({resource.RUSAGE_CHILDREN}).ru_maxrss)"
    done = subprocess.run([sys.executable, "-SE", "-c", code, *command], env=environment, check=True, capture_output=True)
    return float(done.stdout) * (1 if sys.platform == "darwin" else 1024)
