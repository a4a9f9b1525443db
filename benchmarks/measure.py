"""Measures and stores figures: rounds in which both sides take turns, a ratio for each round, medians; as JSON and back."""

from __future__ import annotations

import json
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
PAUSE = 0.3  # seconds: the threads of OpenBLAS and others spin for a tenth of a second after their work
RUNS = 15  # runs of a whole command for one figure


def short(value: float) -> str:
    """Four digits, or all digits before the point: 0.04321 -> "0.04321", 12345.6 -> "12,346"."""
    return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


@dataclass
class Result:
    """The figures of llama2c and a peer for one kind of work, round by round. `bar` is the aim for the ratio (None: no aim)."""

    work: str
    unit: str
    peer: str
    bar: float | None = None
    less_is_better: bool = False
    c_program: bool = False  # the peer is a C program: --against compares these ratios
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """How many times better ours was, for each round."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [b / a if self.less_is_better else a / b for a, b in pairs]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def noise(self) -> float:
        """The standard deviation of the median ratio, estimated from the spread of the rounds so that an outlier has no effect.

        1.4826 times the median deviation estimates the standard deviation of a round. The median of n rounds has
        1.2533 / sqrt(n) times that.
        """
        deviation = statistics.median(abs(ratio - self.ratio) for ratio in self.ratios)
        return 1.4826 * deviation * 1.2533 / len(self.ratios) ** 0.5

    @property
    def met(self) -> str:
        return "" if self.bar is None else "yes" if self.ratio >= self.bar else "no"

    def cells(self) -> list[str]:
        """work, ours, peer, theirs, ratio, bar, met."""
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        bar = "" if self.bar is None else f"{self.bar:.2f}"
        return [self.work, f"{short(ours)} {self.unit}", self.peer, short(theirs), f"{self.ratio:.3g}", bar, self.met]


@dataclass
class Curve:
    """How a speed depends on x: for each program, the value of every round at each x."""

    name: str
    x_name: str
    unit: str
    work: str
    x: list[float]
    series: dict[str, list[list[float]]] = field(default_factory=dict)  # program -> for each x -> rounds

    def medians(self, program: str) -> list[float]:
        return [statistics.median(rounds) for rounds in self.series[program]]


@dataclass
class Record:
    """All figures of one run of compare.py. `info` has the machine, the date and the command."""

    info: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        content = asdict(self)
        for kept, result in zip(content["results"], self.results, strict=True):
            kept["ratio"] = result.ratio
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Record:
        """ValueError if `save` did not write the file."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            results = [Result(**{k: v for k, v in kept.items() if k != "ratio"}) for kept in content["results"]]
            return cls(content["info"], results, [Curve(**kept) for kept in content["curves"]], content["skipped"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected the JSON of compare.py, found something else ({error})") from None


def take_turns(result: Result, ours: Measure, theirs: Measure, rounds: int) -> None:
    """One round to warm up, then `rounds` rounds that count."""
    for turn in range(rounds + 1):
        a, b = ours(), theirs()
        if turn:
            result.ours.append(a)
            result.theirs.append(b)


def slower(new: Record, old: Record) -> list[str]:
    """A line for each ratio to a C program that became worse by more than the noise of both runs.

    That is more than three standard deviations of the difference, and more than 3%.
    """
    before = {(result.work, result.peer): result for result in old.results}
    lines = []
    for result in new.results:
        past = before.get((result.work, result.peer))
        if past is None or not result.c_program:
            continue
        lost = past.ratio - result.ratio
        if lost > max(3 * (past.noise**2 + result.noise**2) ** 0.5, 0.03 * past.ratio):
            lines.append(f"{result.work}: {result.ratio:.2f} times {result.peer}, was {past.ratio:.2f}")
    return lines


def compared(new: Record, old: Record) -> int:
    """The number of ratios to C programs that both runs have."""
    known = {(result.work, result.peer) for result in old.results}
    return sum(result.c_program and (result.work, result.peer) in known for result in new.results)


def settled(measure: Measure, repeats: int = 1) -> Measure:
    """The same measure after a pause, in which the threads of the program before stop spinning.

    repeats > 1 is for short measurements: one run to wake up sleeping threads, then the median of `repeats` runs.
    """

    def measure_settled() -> float:
        time.sleep(PAUSE)
        if repeats > 1:
            measure()
        return statistics.median(measure() for _ in range(repeats))

    return measure_settled


def seconds(command: list[str], environment: dict[str, str] | None = None) -> float:
    """Seconds of a whole command. Its output goes to a file, because the reader of a pipe would take a core from it."""
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=output, stderr=subprocess.DEVNULL)
        return time.perf_counter() - start


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
