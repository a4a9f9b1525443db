"""Ids: which lines are done, for files of many million lines. An id is kept as a hash of 16 bytes."""

from __future__ import annotations

from bisect import bisect_left
from enum import Enum
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
    """The hash of an id, of 16 bytes, in this process. 5 and "5" are two ids."""
    return keys_of([literal_of(id)])


def keys_of(literals: list[bytes]) -> bytes:
    """Those of ids of which there is literal_of(), after each other.

    Each is two of Python's own hashes, which take a third of the time of BLAKE2b, and know nothing of other processes.
    """
    halves = [hash(literal) for literal in literals], [hash(b"+" + literal) for literal in literals]
    return np.array(halves, np.int64).T.tobytes()


def literal_of(id: str | int) -> bytes:
    """An id as JSON has it, without escapes: "a" -> b'"a"', 5 -> b"5"."""
    return b'"%b"' % id.encode("utf-8", "surrogatepass") if isinstance(id, str) else b"%d" % id


class Ids:
    """Keys of 16 bytes, each with a number of 64 bits. A million of them take 25 MB, and some for the last RECENT.

    Most are in arrays that are sorted by the first 8 bytes of the keys. New ones are collected, in a dict or as arrays, and
    sorted in together.
    """

    def __init__(self) -> None:
        self._firsts: Words = np.empty(0, np.uint64)
        self._lasts: Words = np.empty(0, np.uint64)
        self._numbers: Words = np.empty(0, np.uint64)
        self._met: NDArray[np.bool_] = np.empty(0, np.bool_)
        self._view = memoryview(self._firsts.data)
        self._recent: dict[bytes, tuple[int, bool]] = {}
        self._added: list[tuple[Words, Words]] = []  # keys (n, 2) and numbers (n,) of add_many
        self._n_added = 0

    def __len__(self) -> int:
        return len(self._firsts) + len(self._recent) + self._n_added

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

    def add_many(self, keys: bytes, numbers: Words) -> None:
        """As add(), for keys of 16 bytes after each other."""
        self._added.append((_words(keys), numbers))
        self._n_added += len(numbers)
        if self._n_added >= RECENT:
            self._sort_in()

    def meet_done(self, keys: bytes, numbers: bytes) -> list[bool]:
        """Lines of IN have these keys and numbers (8 bytes each, the highest first) -> which of them are surely DONE.

        Those are met then. About the others, meet() has to be asked: what add() has added since is not looked at, as that
        would have to be sorted in each time.
        """
        if self._n_added:
            self._sort_in()
        if not len(self._firsts):
            return [False] * (len(keys) // 16)
        words = _words(keys)
        places = np.searchsorted(self._firsts, words[:, 0])
        places[places == len(self._firsts)] = 0
        done = (self._firsts[places] == words[:, 0]) & (self._lasts[places] == words[:, 1])
        done &= (self._numbers[places] == np.frombuffer(numbers, ">u8")) & ~self._met[places]
        first = np.zeros(len(done), np.bool_)
        first[np.unique(places, return_index=True)[1]] = True  # the same key may come again
        done &= first
        self._met[places[done]] = True
        known: list[bool] = done.tolist()
        return known

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
        self._sort_in()
        return int(np.count_nonzero(~self._met))

    def keys(self) -> NDArray[np.uint8]:
        """All keys, (len(self), 16)."""
        self._sort_in()
        return np.stack([self._firsts, self._lasts], axis=1).view(np.uint8).reshape(-1, 16)

    def _find(self, key: bytes) -> int | None:
        """The place of a key in the arrays."""
        if self._n_added:
            self._sort_in()
        first, last = unpack("<QQ", key)
        i = bisect_left(self._view, first)
        while i < len(self._view) and self._view[i] == first:
            if self._lasts[i] == last:
                return i
            i += 1
        return None

    def _sort_in(self) -> None:
        if self._recent:
            numbers, met = zip(*self._recent.values(), strict=True)
            self._merge(_words(b"".join(self._recent)), np.array(numbers, np.uint64), np.array(met, np.bool_))
            self._recent = {}
        if self._added:
            keys, added = (np.concatenate(arrays) for arrays in zip(*self._added, strict=True))
            self._merge(keys, added, np.zeros(len(added), np.bool_))
            self._added, self._n_added = [], 0

    def _merge(self, keys: Words, numbers: Words, met: NDArray[np.bool_]) -> None:
        firsts = np.concatenate([self._firsts, keys[:, 0]])
        order = np.argsort(firsts)
        self._firsts = firsts[order]
        self._lasts = np.concatenate([self._lasts, keys[:, 1]])[order]
        self._numbers = np.concatenate([self._numbers, numbers])[order]
        self._met = np.concatenate([self._met, met])[order]
        self._view = memoryview(self._firsts.data)


def _words(keys: bytes) -> Words:
    """Keys after each other as numbers, (n, 2)."""
    return np.frombuffer(keys, "<u8").reshape(-1, 2)
