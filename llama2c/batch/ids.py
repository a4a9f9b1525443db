"""Ids: which lines are done, for files of many million lines. An id is kept as a hash of 16 bytes."""

from __future__ import annotations

from bisect import bisect_left
from enum import Enum
from hashlib import blake2b
from struct import unpack
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Words: TypeAlias = "NDArray[np.uint64]"
RECENT = 1 << 17  # ids that are kept in a dict before they are sorted into the arrays


class Meeting(Enum):
    """What is known of the id of a line of IN."""

    NEW = 0
    DONE = 1  # OUT has its answer
    CHANGED = 2  # OUT has the answer to another request of this id
    TWICE = 3  # an earlier line of IN has the same id


def key_of(id: str | int) -> bytes:
    """The hash of an id, of 16 bytes. 5 and "5" are two ids."""
    data = b"%d" % id if isinstance(id, int) else b'"' + id.encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=16).digest()


class Ids:
    """Keys of 16 bytes, each with a number of 64 bits. A million of them take 25 MB, and some for the last RECENT.

    Most are in arrays that are sorted by the first 8 bytes of the keys. New ones are collected in a dict, and sorted in
    together.
    """

    def __init__(self) -> None:
        self._firsts: Words = np.empty(0, np.uint64)
        self._lasts: Words = np.empty(0, np.uint64)
        self._numbers: Words = np.empty(0, np.uint64)
        self._met: NDArray[np.bool_] = np.empty(0, np.bool_)
        self._view = memoryview(self._firsts.data)
        self._recent: dict[bytes, tuple[int, bool]] = {}

    def __len__(self) -> int:
        return len(self._firsts) + len(self._recent)

    def add(self, key: bytes, number: int, met: bool = False) -> None:
        """A key that is not there yet, with its number. met: as after meet()."""
        self._recent[key] = number, met
        if len(self._recent) >= RECENT:
            self._sort_in()

    def get(self, key: bytes) -> int | None:
        """The number of a key; None: it is not there."""
        if key in self._recent:
            return self._recent[key][0]
        i = self._find(key)
        return None if i is None else int(self._numbers[i])

    def is_done(self, id: str, number: int) -> bool:
        """Whether an id is there with this number, and was not met."""
        key = key_of(id)
        if key in self._recent:
            return self._recent[key] == (number, False)
        i = self._find(key)
        return i is not None and self._numbers[i] == number and not self._met[i]

    def meet(self, key: bytes, number: int) -> Meeting:
        """A line of IN has this key and this number. A new key is added."""
        if key in self._recent:
            known, met = self._recent[key]
            self._recent[key] = known, True
        else:
            i = self._find(key)
            if i is None:
                self.add(key, number, met=True)
                return Meeting.NEW
            known, met = int(self._numbers[i]), bool(self._met[i])
            self._met[i] = True
        if met:
            return Meeting.TWICE
        return Meeting.DONE if known == number else Meeting.CHANGED

    def unmet(self) -> int:
        """How many keys no line of IN has had."""
        return int(np.count_nonzero(~self._met)) + sum(not met for _, met in self._recent.values())

    def keys(self) -> NDArray[np.uint8]:
        """All keys, (len(self), 16)."""
        self._sort_in()
        return np.stack([self._firsts, self._lasts], axis=1).view(np.uint8).reshape(-1, 16)

    def _find(self, key: bytes) -> int | None:
        """The place of a key in the arrays."""
        first, last = unpack("<QQ", key)
        i = bisect_left(self._view, first)
        while i < len(self._view) and self._view[i] == first:
            if self._lasts[i] == last:
                return i
            i += 1
        return None

    def _sort_in(self) -> None:
        if not self._recent:
            return
        words = np.frombuffer(b"".join(self._recent), "<u8").reshape(-1, 2)
        numbers, met = zip(*self._recent.values(), strict=True)
        firsts = np.concatenate([self._firsts, words[:, 0]])
        order = np.argsort(firsts)
        self._firsts = firsts[order]
        self._lasts = np.concatenate([self._lasts, words[:, 1]])[order]
        self._numbers = np.concatenate([self._numbers, np.array(numbers, np.uint64)])[order]
        self._met = np.concatenate([self._met, np.array(met, np.bool_)])[order]
        self._view = memoryview(self._firsts.data)
        self._recent = {}
