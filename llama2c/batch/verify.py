"""Verify: draws again what OUT has, and compares the lines byte by byte."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..files import file_size
from .ids import Ids, Meeting, key_of
from .lines import MOST_BYTES, Entry
from .output import last_line_end, recorded
from .plan import MARK, Plan, not_ours, read_plan
from .run import Runner, met
from .work import Answered, Worker

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(slots=True)
class Counts:
    """What a verification has found."""

    same: int = 0
    different: int = 0
    missing: int = 0  # requests of IN without an answer in OUT


class Recorded:
    """OUT, to be read: its plan, and where the answer to each request is. A last line without an end does not count."""

    def __init__(self, path: str) -> None:
        """OSError: it cannot be read. ModelError or RequestError: it is another file, or damaged."""
        file_size(path)
        self.path = path
        self.answers, self._places = Ids(), Ids()
        self._fd = os.open(path, os.O_RDONLY)
        try:
            header, newline, _ = os.pread(self._fd, MOST_BYTES, 0).partition(b"\n")
            if not newline or not header.startswith(MARK):
                raise not_ours(path)
            self.plan: Plan = read_plan(header, path)
            for block in recorded(self._fd, path, last_line_end(self._fd, os.fstat(self._fd).st_size)):
                self.answers.add_many(block.keys, block.requests)
                self._places.add_many(block.keys, block.starts())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def has(self, key: bytes, line: bytes) -> bool:
        """Whether the answer of a key that is there is this line."""
        place = self._places.get(key)
        assert place is not None
        return os.pread(self._fd, len(line), place) == line

    def sample(self, n: int) -> set[bytes]:
        """The keys of n answers, drawn at random; of all, if there are no more."""
        keys = self.answers.keys()
        chosen = np.random.default_rng().choice(len(keys), min(n, len(keys)), replace=False)
        return {keys[i].tobytes() for i in chosen}


def verify(
    record: Recorded,
    worker: Worker,
    entries: Iterable[Entry],
    tell: Callable[[str], object],
    sample: int | None = None,
    progress: Callable[[Answered], object] = lambda answered: None,
) -> Counts:
    """Draw the answers that OUT has again.

    entries  of IN
    tell     gets a line for each one that differs
    sample   so many, drawn at random; None: all
    progress gets each answer that was drawn
    """
    counts = Counts()
    wanted = None if sample is None else record.sample(sample)

    def compare(answered: Answered) -> None:
        if record.has(key_of(answered.entry.id), answered.line):
            counts.same += 1
        else:
            counts.different += 1
            tell(f"{answered.entry.id!r}, line {answered.entry.number} of the input: the answer differs")
        progress(answered)

    k, n = record.plan.shard
    with Runner(worker, compare) as runner:
        for entry, meeting in met(entries, record.answers):
            runner.poll()
            if entry.position % n != k - 1:
                continue
            if meeting is Meeting.NEW:
                counts.missing += 1
            elif wanted is None or key_of(entry.id) in wanted:
                if meeting is Meeting.CHANGED:
                    counts.different += 1
                    tell(f"{entry.id!r}, line {entry.number} of the input: the request is another one now")
                else:
                    runner.add(entry)
        runner.finish()
    return counts
