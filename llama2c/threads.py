"""How many threads a step runs on: the number the caller asks for, else what is fastest now, up to the cores there are.

The results do not depend on the number of threads, so it may change from step to step. decide_n_threads gives the largest
number; a Tuner finds out whether fewer are faster, because other programs use the cores or because the steps are short.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import ClassVar, NamedTuple

from ._kernels import bound_cores, openmp
from .errors import RequestError, check_int
from .limits import control_groups

MOST = 1024  # more is a typing error
TINY_MODEL = 1_000_000  # weights: in a smaller model a second thread costs more time than it saves (docs/kernels.md)
SMALL_MODEL = 4_000_000  # a smaller one begins on one thread, and others have to prove that they are faster


class Threads(NamedTuple):
    """A number of threads, and where it comes from."""

    n_threads: int
    source: str  # "n_threads", "OMP_NUM_THREADS", "cores", "tiny model" or "no OpenMP"

    @property
    def adapts(self) -> bool:
        """Whether steps may run on fewer, if that is faster: nobody has asked for this number."""
        return self.source == "cores" and self.n_threads > 1

    @property
    def reason(self) -> str:
        """Why it is this number, in words."""
        if self.source == "OMP_NUM_THREADS":
            return f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')}"
        if self.source == "no OpenMP":
            return "this build has no OpenMP"
        if self.source == "tiny model":
            return f"a model of less than {TINY_MODEL:,} weights"
        if self.source == "n_threads":
            return "asked for"
        quota = cgroup_quota()
        if quota is not None and round(quota) <= self.n_threads:
            return f"the CPU quota of the control group, {quota:g} cores"
        return "the cores that OpenMP has bound its threads to" if bound_cores() else "the cores that this process may use"

    def __str__(self) -> str:
        return f"up to {self.n_threads}" if self.adapts else str(self.n_threads)


def decide_n_threads(n_threads: int | None, n_weights: int) -> Threads:
    """The most threads for a model of `n_weights` weights.

    An explicit `n_threads` comes first, then OMP_NUM_THREADS. Without either it is the number of cores this process may use, or
    one for a tiny model. TypeError: it is not an integer; RequestError: it is not from 1 to 1024.
    """
    source, wanted = "n_threads", n_threads
    if wanted is None and os.environ.get("OMP_NUM_THREADS", "").strip():
        source, wanted = "OMP_NUM_THREADS", _from_environment(os.environ["OMP_NUM_THREADS"])
    if wanted is None:
        if not openmp:
            return Threads(1, "no OpenMP")
        return Threads(1, "tiny model") if n_weights < TINY_MODEL else Threads(available_cores(), "cores")
    wanted = check_int(source, wanted, 1, MOST)
    if not openmp and wanted > 1:
        warnings.warn(f"{source}={wanted}: this build has no OpenMP and runs on one thread", RuntimeWarning, stacklevel=3)
        return Threads(1, "no OpenMP")
    if wanted > available_cores():
        found = f"{available_cores()} core{'s' * (available_cores() > 1)}"
        warnings.warn(f"{source}={wanted} is more than the {found} here, which is slower", RuntimeWarning, stacklevel=3)
    return Threads(wanted, source)


def _from_environment(text: str) -> int:
    """The first number of OMP_NUM_THREADS, which may be a list with one for each level: "4,2" -> 4."""
    try:
        return int(text.split(",")[0])
    except ValueError:
        raise RequestError(f"OMP_NUM_THREADS: expected a number, found {text!r}", "OMP_NUM_THREADS") from None


# ---------------------------------------------------------------------------
# how many are fastest now

WINDOW = 0.02  # seconds: several of the times for which a busy system takes a core away
TASTE = 0.003  # seconds after which a trial that is clearly slower ends
CLEARLY_SLOWER = 0.85  # of the speed before
FASTER = 1.05  # a trial has to be so much faster to win
SHARE = 1 / 64  # of the time may be lost in trials
FREE = 0.01  # seconds that the first trial may lose at once
PATIENCE = 4  # lost trials of fewer threads in a row make the next one wait longer, up to so many times
TAKEN = 0.8  # of their time: threads that ran for less had to wait for a core
FEW_ROWS = 15  # the most rows of a step that reads weights more than it computes


class Tuners:
    """A Tuner for each kind of steps: for one row, few and many, other numbers of threads may be the fastest.

    Steps that threads of Python make at the same time, with any model, share the cores.
    """

    _running: ClassVar[set[object]] = set()  # a mark for each step of this process that is being made

    def __init__(self, most: int, start: int, cpu_clock: Callable[[], float] = process_time) -> None:
        """Arguments as in Tuner."""
        self._most = most
        self._lock = threading.Lock()  # of all Tuners; who finds it taken goes on without a note
        self._all = [Tuner(most, start, cpu_clock) for _ in range(3)]
        for tuner in self._all:
            tuner._peers = [peer for peer in self._all if peer is not tuner]

    def for_step(self, n_rows: int) -> Tuner:
        """The Tuner for a step of so many rows."""
        return self._all[0 if n_rows == 1 else 1 if n_rows <= FEW_ROWS else 2]

    def run(self, step: Callable[[int], object], n_rows: int, work: float) -> None:
        """Make a step of so many rows and so much work: call step(n_threads), timed. work is as in Tuner.note."""
        tuner = self.for_step(n_rows)
        self._running.add(step)
        try:
            n_threads = min(tuner.n_threads, max(1, self._most // len(self._running)))
            start = perf_counter()
            step(n_threads)
            now = perf_counter()
        finally:
            self._running.discard(step)
        if self._lock.acquire(blocking=False):
            try:
                tuner.note(n_threads, work, now - start, now)
            finally:
                self._lock.release()


class Tuner:
    """Finds out, by trying, how many threads are the fastest now for one kind of steps.

    The number that has won so far is kept, and from time to time half of it or twice as many are tried: soon when the
    processor time of the process shows that other programs use the cores, otherwise so seldom that trials cost little.
    """

    __slots__ = (
        "_awake", "_contended", "_cpu_clock", "_cpu_start", "_fewer", "_last", "_lost", "_most", "_next_trial", "_peers",
        "_rate", "_seconds", "_settled", "_soonest", "_start", "_steps", "_work", "n_threads",
    )  # fmt: skip

    def __init__(self, most: int, start: int, cpu_clock: Callable[[], float] = process_time) -> None:
        """most: the largest number of threads; start: the first one. cpu_clock: the processor time of this process so far."""
        self.n_threads = start  # of the next step
        self._most = most
        self._settled = start
        self._peers: list[Tuner] = []  # those of other kinds of steps
        self._cpu_clock = cpu_clock
        self._rate = 0.0  # work per second with the settled number; 0: not known yet
        self._fewer = True  # what to try next: fewer or more
        self._lost = 0  # trials of fewer threads, in a row
        self._contended = False
        self._next_trial = self._soonest = self._last = -1.0
        self._awake = False  # whether the threads of a trial have made a step
        self._begin(0.0)

    def note(self, n_threads: int, work: float, seconds: float, now: float) -> None:
        """A step of so much work on `n_threads` threads has taken so long. work: in any unit; now: seconds of any clock."""
        if n_threads != self.n_threads:  # other threads of Python are making steps
            return
        if now - seconds > self._last + WINDOW:  # after a pause; what came before it says little
            self._last = now
            self._begin(now)
            return
        self._last = now
        if n_threads != self._settled and not self._awake:  # the first step of a trial also wakes threads, unless it is long
            self._awake = True
            if seconds < TASTE:
                return
        self._work += work
        self._seconds += seconds
        self._steps += 1
        if n_threads == self._settled:
            if self._seconds >= WINDOW:
                self._end_window(now)
        elif self._seconds >= TASTE and self._work < CLEARLY_SLOWER * self._rate * self._seconds:
            self._lose(now)
        elif self._seconds >= WINDOW and self._steps > 1:
            if self._work > FASTER * self._rate * self._seconds:
                self._win(now)
            else:
                self._lose(now)

    def _begin(self, now: float) -> None:
        """Begin a window, or a trial."""
        self._work = self._seconds = 0.0
        self._steps = 0
        self._awake = False
        self._start, self._cpu_start = now, self._cpu_clock()

    def _end_window(self, now: float) -> None:
        """The settled number was measured once more. Is it time to try another?"""
        rate = self._work / self._seconds
        ran = self._cpu_clock() - self._cpu_start
        contended = ran < TAKEN * self._settled * (now - self._start)
        self._rate = (self._rate + rate) / 2 if self._rate and contended == self._contended else rate
        if self._next_trial < 0:  # with one step or TASTE it costs about as much again
            loss = max(self._seconds / self._steps, TASTE)
            self._next_trial = now + max(0.0, loss - FREE) / SHARE
        if contended and not self._contended and self._settled > 1:
            self._fewer, self._lost = True, 0
            self._next_trial = min(self._next_trial, max(now, self._soonest))
        self._contended = contended
        if now >= self._next_trial:
            self._fewer = self._settled == self._most or (self._fewer and self._settled > 1)
            self.n_threads = max(1, self._settled // 2) if self._fewer else min(self._most, 2 * self._settled)
        self._begin(now)

    def _win(self, now: float) -> None:
        """Keep the number that was tried. The next trial follows soon, in the same direction if it can go further.

        If other programs have taken the cores, or have left them, that is so for steps of other kinds too. Those may be too
        rare to find it out: a chat has one long prompt in a while.
        """
        if self._contended or self.n_threads > self._settled:
            for peer in self._peers:
                peer._follow(self.n_threads, now)
        self._settled = self.n_threads
        self._rate = self._work / self._seconds
        self._contended = False
        self._lost = 0
        self._next_trial = now
        self._begin(now)

    def _follow(self, n_threads: int, now: float) -> None:
        """Settle on the number that has won for another kind of steps."""
        self.n_threads = self._settled = n_threads
        self._rate = 0.0
        self._contended = False
        self._begin(now)

    def _lose(self, now: float) -> None:
        """Go back. Time for the next trial is when what this one has cost is a small share of the time."""
        cost = max(self._seconds - self._work / self._rate, TASTE)
        self._next_trial = now + cost / SHARE * (min(2**self._lost, PATIENCE) if self._fewer else 1)
        self._soonest = now + 8 * cost
        self._lost += self._fewer
        self._fewer = not self._fewer
        self.n_threads = self._settled
        self._begin(now)


# ---------------------------------------------------------------------------
# the cores of this process


def available_cores() -> int:
    """The cores this process may use: its affinity, cut by the CPU quota of its control groups (Linux containers).

    Where the OpenMP runtime binds threads (OMP_PROC_BIND, OMP_PLACES, GOMP_CPU_AFFINITY), the cores it binds them to: it has
    bound the thread that loaded it already, so the affinity of that thread is one core.
    """
    cores = bound_cores()
    if not cores:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return cores if quota is None else max(1, min(cores, round(quota)))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """The smallest CPU quota, in cores, of the control groups this process is in; None without one (versions 1 and 2)."""
    quotas = [_quota_v2(place) if version == 2 else _quota_v1(place) for version, place in control_groups("cpu", root, own)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(folder: Path) -> float | None:
    """cpu.max: "150000 100000" -> 1.5, "max 100000" -> None."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return float(quota) / float(period)
    except (OSError, ValueError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = float((folder / "cpu.cfs_quota_us").read_text())
        return quota / float((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError):
        return None
