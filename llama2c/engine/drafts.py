"""Drafts: guesses of the next tokens that need no second model, and how many of them pay.

A text often goes on as it did before: a name, a quoted sentence, code that is edited. So a guess is what followed the last
tokens at their latest earlier occurrence, in the request's own text or in a recent one. A Sequence compares guesses with what
it draws (Sequence.propose), so they change how long a text takes, and never the text.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from statistics import median

from ..generation import Drafter

__all__ = ["Drafter", "Drafts", "StepTimes", "Texts", "choose_length"]

LENGTHS = (8, 4, 2)  # of the ends of a text that are looked up, the longest first
MATCHES = (16, 8, 4, 2)  # the least lengths of the classes of matches; guesses after a longer match are right more often
FIRST_RATES = (0.8, 0.6, 0.4, 0.2)  # of right guesses in each class, before any was compared
MEMORY = 16  # a rate is about that of so many comparisons
MOST = 15  # guesses in one step
LEAST_RATE = 0.2  # below it no number of guesses pays
TINY_STEP = 1e-4  # seconds: where a step takes less, looking for guesses is a part of the time that shows


# ---------------------------------------------------------------------------
# how many guesses pay


class StepTimes:
    """How long steps take, by their number of rows: the median of the last few, in seconds. Any thread may use it.

    A size that was not measured lately is put on the line between its neighbours. Above all of them a row is taken to cost
    little, so that more rows are tried. What was measured long ago is forgotten, and so tried again: it may have been slow
    because of another program.
    """

    KEPT = 8  # times of each size
    FORGOTTEN = 512  # steps after which a size counts as not measured
    SLOPE = 0.1  # what another row costs as a part of the first, until it is measured

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_steps = 0
        self._seconds: dict[int, list[float]] = {}  # the last ones of each size
        self._last: dict[int, int] = {}  # the number of the last step of each size
        self._medians: dict[int, float] = {}

    def add(self, n_rows: int, seconds: float) -> None:
        """A step with so many rows took so long."""
        with self._lock:
            self._n_steps += 1
            kept = self._seconds.setdefault(n_rows, [])
            kept.append(seconds)
            del kept[: -self.KEPT]
            self._last[n_rows] = self._n_steps
            self._medians[n_rows] = median(kept)
            if self._n_steps % self.FORGOTTEN == 0:
                for old in [size for size, last in self._last.items() if last <= self._n_steps - self.FORGOTTEN]:
                    del self._seconds[old], self._last[old], self._medians[old]

    def expected(self, n_rows: int, n_sizes: int) -> list[float]:
        """Seconds that steps with n_rows rows, one more and so on probably take: n_sizes numbers; [] without measurements."""
        with self._lock:
            measured = sorted(self._medians.items())
        if not measured:
            return []
        size, seconds = measured[0]
        slope = self.SLOPE * seconds / size
        low = (min(size, n_rows), seconds)  # the sizes below all that were measured are taken to be as slow
        points = iter(measured)
        high = next(points, None)
        found = []
        for size in range(n_rows, n_rows + n_sizes):
            while high is not None and high[0] <= size:
                low, high = high, next(points, None)
            rise = slope if high is None else (high[1] - low[1]) / (high[0] - low[0])
            found.append(low[1] + rise * (size - low[0]))
        return found


def choose_length(rates: Sequence[float], seconds: Sequence[float], n_rows: int = 1) -> int:
    """How many guesses make the most tokens a second; 0: none.

    rates    of each guess the probability that it is right, if those before it are
    seconds  of a step without guesses, with one, and so on: one more than rates
    n_rows   rows of the step without guesses, each of which makes a token
    """
    best, best_speed = 0, n_rows / seconds[0]
    reached, tokens = 1.0, float(n_rows)
    for length, (rate, time) in enumerate(zip(rates, seconds[1:], strict=True), 1):
        reached *= rate
        tokens += reached
        if tokens / time > best_speed:
            best, best_speed = length, tokens / time
    return best


# ---------------------------------------------------------------------------
# where a text was seen before


class Texts:
    """Ids, and where each of their parts of 8, 4 and 2 was last seen: all that is remembered of it is the place after it.

    Guesses need not be right, so parts are told apart by their hashes alone.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._places: tuple[dict[int, int], ...] = tuple({} for _ in LENGTHS)

    def extend(self, ids: Iterable[int]) -> tuple[int, int] | None:
        """Add ids. The match of the last one: (the place after an earlier occurrence of the end, its length). Else None.

        That takes 1 us for each.
        """
        own, found = self.ids, None
        for token in ids:
            own.append(token)
            end, found = len(own), None
            for length, places in zip(LENGTHS, self._places, strict=True):
                if end >= length:
                    key = hash(tuple(own[end - length :]))
                    place = places.get(key)
                    places[key] = end
                    if found is None and place is not None:
                        found = place, length
        if found is not None and found[1] == LENGTHS[0]:
            found = found[0], self._longer(found[0], own)
        return found

    def find(self, end: Sequence[int]) -> tuple[int, int] | None:
        """The match of the end of another text."""
        for length, places in zip(LENGTHS, self._places, strict=True):
            if len(end) >= length:
                place = places.get(hash(tuple(end[-length:])))
                if place is not None:
                    return place, self._longer(place, end) if length == LENGTHS[0] else length
        return None

    def _longer(self, place: int, end: Sequence[int]) -> int:
        """The length of a match of 8, if it is even one of 16."""
        longest = MATCHES[0]
        same = place >= longest and len(end) >= longest and self.ids[place - longest : place] == list(end[-longest:])
        return longest if same else LENGTHS[0]


class Drafts:
    """What the drafters of several requests share: recent texts, of at most `limit` ids, and the times of steps.

    Any thread may use it. limit=0: no request has guesses from another's text.
    """

    def __init__(self, limit: int = 1 << 15) -> None:
        self.times = StepTimes()
        self._limit = limit
        self._lock = threading.Lock()
        self._recent: tuple[Texts, ...] = (Texts(), Texts())  # the one that is added to, and the one before

    def drafter(self) -> TextDrafter:
        """A drafter for one request."""
        return TextDrafter(self)

    def add(self, ids: Sequence[int]) -> None:
        """Remember a text, its prompt too, for later requests. The oldest are forgotten."""
        half = self._limit // 2
        if len(ids) > half:
            ids = ids[len(ids) - half :]
        if not ids:
            return
        with self._lock:
            if len(self._recent[0].ids) + len(ids) > half:
                self._recent = (Texts(), self._recent[0])
            self._recent[0].extend(ids)

    def find(self, end: Sequence[int]) -> tuple[Texts, int, int] | None:
        """The longest match of the end of a text in the recent ones: (texts, place, length)."""
        matches = [(texts, *found) for texts in self._recent if (found := texts.find(end)) is not None]
        return max(matches, key=lambda match: match[2], default=None)


class TextDrafter:
    """A Drafter for one request: what followed an earlier occurrence of the last tokens.

    It compares its guess with the next token also where none was proposed. So it always knows how often it is right, and
    needs no step to find out.
    """

    def __init__(self, drafts: Drafts) -> None:
        self._drafts = drafts
        self._own = Texts()
        self._rates = {True: list(FIRST_RATES), False: list(FIRST_RATES)}  # of guesses from the own text, and from others
        self._guess: Sequence[int] = ()  # for the ids from _at on
        self._at = 0
        self._from_own, self._match = True, 0  # where the guess is from, and the length of the match

    def propose(self, ids: Sequence[int], most: int = MOST, n_rows: int = 1) -> list[int]:
        """See Drafter."""
        self._compare(ids)
        self._guess = ()
        own = self._own
        match = own.extend(ids[len(own.ids) :])
        found = None if match is None else (own, *match)
        self._from_own = True
        if found is None or found[2] < LENGTHS[0]:
            recent = self._drafts.find(ids)
            if recent is not None and (found is None or recent[2] > found[2]):
                found, self._from_own = recent, False
        if found is None or most < 1:
            return []
        texts, place, self._match = found
        guess = texts.ids[place : place + min(most, MOST)]
        length = self._choose(len(guess), n_rows)
        self._guess, self._at = guess[: max(length, 1)], len(ids)
        return guess[:length]

    def timed(self, n_rows: int, seconds: float) -> None:
        """See Drafter."""
        self._drafts.times.add(n_rows, seconds)

    def _choose(self, n_guesses: int, n_rows: int) -> int:
        """How many of the guesses pay. Each right one makes the match longer, and the next is more likely right."""
        rates = self._rates[self._from_own]
        if not n_guesses or rates[_class_of(self._match)] < LEAST_RATE:
            return 0
        seconds = self._drafts.times.expected(n_rows, 1 + n_guesses)
        if not seconds or seconds[0] < TINY_STEP:
            return 0
        return choose_length([rates[_class_of(self._match + i)] for i in range(n_guesses)], seconds, n_rows)

    def _compare(self, ids: Sequence[int]) -> None:
        """Learn from what came in the place of the last guess."""
        rates = self._rates[self._from_own]
        for i, (guessed, token) in enumerate(zip(self._guess, ids[self._at :], strict=False)):
            right = guessed == token
            kind = _class_of(self._match + i)
            rates[kind] += (right - rates[kind]) / MEMORY
            if not right:
                break


def _class_of(match: int) -> int:
    """The number of the class in MATCHES: 5 -> 2."""
    return 0 if match >= 16 else 1 if match >= 8 else 2 if match >= 4 else 3
