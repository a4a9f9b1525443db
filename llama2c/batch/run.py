"""The loop of a batch: entries in, as many as the engine can use, and their lines out as they are finished or in order."""

from __future__ import annotations

import json
import os
import select
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING

from ..engine.many import AHEAD, AT_ONCE
from ..errors import RequestError, RoomError
from .ids import Ids, Meeting, key_of
from .lines import Entry, own_id
from .work import Answered, Work, Worker

if TYPE_CHECKING:
    from typing_extensions import Self


class StrictError(RequestError):
    """A line is wrong, and the run is to end there."""


class Runner:
    """Has a worker do entries, and delivers their lines. One thread uses it, but for stop().

    deliver  gets each line when it is there
    ordered  in the order of the entries; else as they are finished
    strict   a line that is wrong is not delivered: it raises a StrictError

    At the end of the `with` block what is finished is delivered, and what is not is cancelled.
    """

    def __init__(
        self, worker: Worker, deliver: Callable[[Answered], object], ordered: bool = False, strict: bool = False
    ) -> None:
        self._worker, self._deliver = worker, deliver
        self._ordered, self._strict = ordered, strict
        self._works: deque[Work] = deque()  # begun and not delivered; in order, if that matters
        self._n_works = self._n_requests = 0  # those that are not finished
        self._ended: deque[Work] = deque()  # one for each request that has ended: from the thread of the engine
        self._delivers = False  # whether a line is just being delivered, or was when that failed
        self._stopped = False
        self._wakes, self._wake = os.pipe()
        for fd in (self._wakes, self._wake):
            os.set_blocking(fd, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is not None and not self._delivers:
                self._take_ended(at_end=True)
        finally:
            for work in self._works:
                for request in work.requests:
                    request.cancel()
                    request.wait()  # so that nothing writes to the pipe any more
            os.close(self._wake)
            os.close(self._wakes)

    def stop(self) -> None:
        """Have the next call, or the one that waits, raise a KeyboardInterrupt. A signal handler may call it."""
        self._stopped = True
        self._wake_up()

    def add(self, entry: Entry) -> None:
        """Begin an entry, as soon as there is room. Errors: those of Worker, StrictError, those of deliver()."""
        self.poll()
        while not self._has_room():
            self.wait()
        try:
            work = self._worker.begin(entry)
        except RoomError as error:
            raise RoomError(f"line {entry.number}: {error}") from None
        self._works.append(work)
        work.left = len(work.requests)
        self._n_works += 1
        self._n_requests += work.left
        for request in work.requests:
            request.when_done(partial(self._note_end, work))
        if not work.requests:
            self._finish(work)

    def finish(self) -> None:
        """Wait for all entries."""
        while self._n_works:
            self.wait()

    def poll(self) -> None:
        """Deliver what is finished."""
        if self._stopped:
            raise KeyboardInterrupt
        self._take_ended()

    def wait(self, fd: int | None = None) -> bool:
        """Wait until a request ends, and deliver what is finished; or until there is something to read. Whether there is."""
        readable, _, _ = select.select([self._wakes] if fd is None else [self._wakes, fd], [], [])
        if self._wakes in readable:
            os.read(self._wakes, 1 << 12)
        self.poll()
        return fd in readable

    def _has_room(self) -> bool:
        most = self._worker.engine.max_sequences
        return self._n_requests < AT_ONCE * most and len(self._works) < AHEAD * most

    def _note_end(self, work: Work) -> None:
        """Called by the thread of the engine."""
        self._ended.append(work)
        self._wake_up()

    def _wake_up(self) -> None:
        with suppress(BlockingIOError):  # there is enough in the pipe
            os.write(self._wake, b"\0")

    def _take_ended(self, at_end: bool = False) -> None:
        """at_end: what is wrong is left out where it is not to be delivered, and nothing is raised for it."""
        while self._ended:
            work = self._ended.popleft()
            work.left -= 1
            self._n_requests -= 1
            if not work.left:
                work.end = perf_counter()
                self._finish(work, at_end)

    def _finish(self, work: Work, at_end: bool = False) -> None:
        """All requests of a work are at their end."""
        self._n_works -= 1
        if not self._ordered:
            self._works.remove(work)
            self._hand_over(work, at_end)
            return
        while self._works and not self._works[0].left and self._hand_over(self._works[0], at_end):
            self._works.popleft()

    def _hand_over(self, work: Work, at_end: bool) -> bool:
        """Whether it was delivered."""
        answered = self._worker.finish(work)
        if answered.error is not None and self._strict:
            if at_end:
                return False
            raise StrictError(f"line {work.entry.number}: {answered.error}")
        self._delivers = True
        self._deliver(answered)
        self._delivers = False
        return True


def met(entries: Iterable[Entry], ids: Ids) -> Iterator[tuple[Entry, Meeting]]:
    """The entries with what is known of their ids. An id that an earlier entry has is an error of the later one."""
    for entry in entries:
        meeting = ids.meet(key_of(entry.id), entry.request)
        if meeting is Meeting.TWICE:
            found = json.dumps(entry.id)[:80]
            error = RequestError(f"id: expected one that no earlier line has, found {found}", "id")
            entry = entry._replace(id=own_id(entry.number), error=error)
            while (meeting := ids.meet(key_of(entry.id), entry.request)) is Meeting.TWICE:
                entry = entry._replace(id=f"{entry.id}+")
        yield entry, meeting
