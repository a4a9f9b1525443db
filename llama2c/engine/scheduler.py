"""Which requests take part in the next step of an engine, and with how many rows: policy alone, no model, thread or clock.

The rules:

- First come, first served. A request has an arrival number; the lists are sorted by it. So the oldest request always goes on,
  and nobody starves.
- Requests that decode go first, with one row each. The rest of a step is for prompts, oldest first, which are read in chunks,
  so that a long prompt never stops the texts that are running. Room that is left is for guesses of the next tokens.
- The caches of all running requests stay below a limit of bytes. A request starts when its prompt fits. When a running one
  needs a larger cache and there is no room, the youngest goes back to waiting, until there is.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Generic, NamedTuple, Protocol, TypeVar

OVERTAKE = 4  # times as many requests as run at once are looked at, where those in front wait for others
LEAST_CHUNK = 16  # rows of a prompt in a step, however many others decode
FIRST_ROWS = 32  # of a step beside running texts, before any was timed
STEP_SECONDS = 0.045  # of a step beside running texts: what a reader of a stream does not notice


class Work(Protocol):
    """What the scheduler knows of a request."""

    arrival: int  # the older, the smaller
    held: int  # bytes of its cache, as counted here; the scheduler alone changes it

    @property
    def n_ids(self) -> int:
        """Ids that it has so far, those of the prompt and those drawn."""

    @property
    def n_filled(self) -> int:
        """How many of them are in its cache. The others are due: one while it decodes, more while it reads its prompt."""

    def bytes_for(self, n_positions: int) -> int:
        """Bytes of a cache in which so many positions fit."""


W = TypeVar("W", bound=Work)
_age = attrgetter("arrival")


class Share(NamedTuple, Generic[W]):
    """The part of one request in a step."""

    work: W
    n_rows: int  # ids that are due; fewer than all of them in the middle of a prompt
    n_guesses: int  # rows that it may have beyond those, for a draft


class Scheduler(Generic[W]):
    """The requests that wait and those that run. In each step: make_room, admit, then share.

    max_sequences  requests that run at the same time
    cache_bytes    the limit for the caches of those
    """

    def __init__(self, max_sequences: int, cache_bytes: int) -> None:
        self.max_sequences = max_sequences
        self.cache_bytes = cache_bytes
        self.waiting: list[W] = []  # both lists are sorted by arrival
        self.running: list[W] = []
        self.used = 0  # bytes of the caches of running requests

    def add(self, work: W) -> None:
        insort(self.waiting, work, key=_age)

    def remove(self, work: W) -> None:
        """Forget a request, wherever it is."""
        if work in self.running:
            self.running.remove(work)
            self._hold(work, 0)
        elif work in self.waiting:
            self.waiting.remove(work)

    def make_room(self) -> Iterator[tuple[W, bool]]:
        """The running requests that need another cache now, oldest first: (request, True) has to grow, before the next is
        asked for; (request, False) went back to waiting, and has to drop its cache.

        A cache grows into a new one, so both count until it has.
        """
        for work in list(self.running):
            need = work.bytes_for(work.n_ids)
            if work not in self.running or need <= work.held:
                continue
            while self.used + need > self.cache_bytes and work in self.running:
                youngest = self.running.pop()
                self._hold(youngest, 0)
                self.add(youngest)
                yield youngest, False
            if work in self.running:
                self._hold(work, need)
                yield work, True

    def admit(self, waits: Callable[[W], bool]) -> Iterator[W]:
        """The requests that start to run now, each with a cache for all its ids.

        waits  whether a request has to wait for one that is running, for another reason than room. Those behind may overtake it
        """
        for work in self.waiting[: OVERTAKE * self.max_sequences]:
            if len(self.running) >= self.max_sequences:
                break
            if waits(work):
                continue
            need = work.bytes_for(work.n_ids)
            if self.used + need > self.cache_bytes:
                break
            self.waiting.remove(work)
            insort(self.running, work, key=_age)
            self._hold(work, need)
            yield work

    def share(self, max_rows: int) -> list[Share[W]]:
        """The next step: at most max_rows rows, but a row for each request that decodes, and LEAST_CHUNK for a prompt."""
        due = [work.n_ids - work.n_filled for work in self.running]
        n_decoding = due.count(1)
        left = max_rows - n_decoding
        if n_decoding < len(due):
            left = max(left, LEAST_CHUNK)
        rows = []
        for n_due in due:
            rows.append(n_due if n_due == 1 else min(n_due, left))
            left -= 0 if n_due == 1 else rows[-1]
        n_guesses = max(left, 0) // max(n_decoding, 1)
        return [
            Share(work, n_rows, n_guesses if n_due == 1 else 0)
            for work, n_rows, n_due in zip(self.running, rows, due, strict=True)
            if n_rows
        ]

    def _hold(self, work: W, n_bytes: int) -> None:
        self.used += n_bytes - work.held
        work.held = n_bytes


class Pace:
    """How many rows a step may have beside running texts, so that they do not have to wait: found out from the steps before.

    A step then takes STEP_SECONDS; or twice the time of a step without a prompt, where the model is so large that this is more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._alone = 0.0  # seconds of a step without a prompt, lately
        self.rows: int = min(FIRST_ROWS, most)

    def note(self, n_rows: int, n_read: int, seconds: float) -> None:
        """A step of n_rows rows, n_read of them of prompts, has taken so long."""
        if n_read == 0:
            self._alone = min(seconds, 1.25 * self._alone) if self._alone else seconds  # a step that was held up counts little
            return
        wanted = max(STEP_SECONDS, 2 * self._alone)
        if n_rows >= self.rows or seconds > wanted:  # a smaller step says only that it was not too large
            change = min(max(wanted / max(seconds, 1e-9), 0.5), 1.5)
            self.rows = min(max(int(n_rows * change), LEAST_CHUNK), self._most)
