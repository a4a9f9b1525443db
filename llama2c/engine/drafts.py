"""Drafts: guesses of the next tokens that need no second model, and how many of them pay.

A text often goes on as it did before: a name, a quoted sentence, code that is edited. So a guess is what followed the last
tokens at their latest earlier occurrence, in the request's own text or in a recent one. A Sequence compares guesses with what
it draws (Sequence.propose), so they change how long a text takes, and never the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..generation import Drafter
from ..transformer import Transformer, count_weights

if TYPE_CHECKING:
    from .draft_model import DraftModel

__all__ = ["Drafter", "Drafts", "StepTimes", "Texts", "choose_length", "drafts_pay"]

LENGTHS = (2, 4, 8)  # of the ends of a text that are looked up
MATCHES = (32, 16, 8, 4, 2, 1, 0)  # the least lengths of the classes of matches; after longer ones guesses are right more often
# Of right guesses in each class, before any was compared: after a match in the own text or in another, and near the last match.
FIRST_RATES = ((0.97, 0.9, 0.7, 0.4, 0.2, 0.0, 0.0), (0.97, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4))
LOOKED_UP, NEARBY = 0, 1
FIRST_WEIGHT = 4  # so many comparisons are as much as a first rate
MEMORY = 24  # a rate is about that of so many comparisons
MOST = 15  # guesses in one step
NEAR = 3  # ids that a change may leave out, for a copy to be found again
CHANGED = 8  # tokens that it may add
LEAST_RATE = 0.2  # below it no number of guesses pays
LEAST_WEIGHTS = 4_000_000  # a smaller model makes a token in so little time that looking for guesses takes some percent of it


def drafts_pay(transformer: Transformer) -> bool:
    """Whether a model is large enough."""
    return count_weights(transformer.config) >= LEAST_WEIGHTS


# ---------------------------------------------------------------------------
# how many guesses pay


class StepTimes:
    """How long steps take, by their number of rows: the median of the last few, in seconds. Any thread may use it: what it
    measured may get lost where two add to it at once, and that is all.

    A size that was not measured lately is put on the line between its neighbours. Above all of them a row is taken to cost
    little, so that more rows are tried. What was measured long ago is forgotten, and so tried again: it may have been slow
    because of another program.
    """

    KEPT = 8  # times of each size
    FORGOTTEN = 512  # steps after which a size counts as not measured
    SLOPE = 0.1  # what another row costs as a part of the first, until it is measured

    def __init__(self) -> None:
        self._n_steps = 0
        self._seconds: dict[int, list[float]] = {}  # the last ones of each size
        self._last: dict[int, int] = {}  # the number of the last step of each size
        self._medians: dict[int, float] = {}  # never changed, but replaced

    def add(self, n_rows: int, seconds: float) -> None:
        """A step with so many rows took so long."""
        self._n_steps += 1
        kept = [*self._seconds.get(n_rows, ()), seconds][-self.KEPT :]
        self._seconds[n_rows] = kept
        self._last[n_rows] = self._n_steps
        self._medians = {**self._medians, n_rows: sorted(kept)[len(kept) // 2]}
        if self._n_steps % self.FORGOTTEN == 0:
            old = [size for size, last in [*self._last.items()] if last <= self._n_steps - self.FORGOTTEN]
            for size in old:
                self._seconds.pop(size, None)
                self._last.pop(size, None)
            self._medians = {size: time for size, time in self._medians.items() if size not in old}

    def expected(self, n_rows: int, n_sizes: int) -> list[float]:
        """Seconds that steps with n_rows rows, one more and so on probably take: n_sizes numbers; [] without measurements."""
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


def keys_of(ids: Sequence[int], end: int) -> list[int]:
    """A key for the last 2, 4 and 8 ids before `end`, as far as there are so many.

    It is their hash alone: guesses need not be right.
    """
    return [hash(tuple(ids[end - length : end])) for length in LENGTHS if length <= end]


class Texts:
    """Ids, and where each of their parts of 2, 4 and 8 was last seen: the place after it is what is remembered."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._places: dict[int, int] = {}  # by the key

    def extend(self, ids: Iterable[int]) -> tuple[int, int] | None:
        """Add ids, which takes 2 us for each. The match of their end: (the place after an earlier occurrence, its length)."""
        own, places, found = self.ids, self._places, None
        first = len(own) + 1
        own.extend(ids)
        for end in range(first, len(own) + 1):
            keys = keys_of(own, end)
            if end == len(own):
                found = self.find(keys)
            for key in keys:
                places[key] = end
        return found

    def find(self, keys: Sequence[int]) -> tuple[int, int] | None:
        """The match of the end of a text that has these keys."""
        found = None
        for key, length in zip(keys, LENGTHS, strict=False):
            place = self._places.get(key)
            if place is None:
                break  # a longer end is not there either
            found = place, length
        return found

    def after(self, place: int, n: int) -> list[int]:
        """n ids from a place on. What is there may be shorter, and is then repeated: [5, 6, 7], place 1, n 3 -> [6, 7, 6]."""
        ids = self.ids[place : place + n]
        return ids if len(ids) == n or not ids else [ids[i % len(ids)] for i in range(n)]


class Drafts:
    """What the drafters of several requests share: recent texts, of at most `limit` ids, and the times of steps.

    draft    a smaller model that guesses, too; None: there is none

    limit=0: no request has guesses from another's text. Then any thread may use it, otherwise one at a time.
    """

    def __init__(self, limit: int = 1 << 15, draft: Transformer | None = None) -> None:
        self.times = StepTimes()
        self._model: DraftModel | None = None
        if draft is not None:
            from .draft_model import DraftModel  # few have one

            self._model = DraftModel(draft)
        self._limit = limit
        self._recent: tuple[Texts, ...] = (Texts(), Texts())  # the one that is added to, and the one before

    def drafter(self) -> Drafter:
        """A drafter for one request."""
        text = TextDrafter(self)
        return text if self._model is None else self._model.drafter(text, self.times)

    def add(self, ids: Sequence[int]) -> None:
        """Remember a text, its prompt too, for later requests. The oldest are forgotten."""
        half = self._limit // 2
        if len(ids) > half:
            ids = ids[len(ids) - half :]
        if not ids:
            return
        if len(self._recent[0].ids) + len(ids) > half:
            self._recent = (Texts(), self._recent[0])
        self._recent[0].extend(ids)

    def matches(self, end: Sequence[int]) -> list[Match]:
        """Where the end of a text is found in recent ones."""
        if not self._recent[0].ids:
            return []
        keys = keys_of(end, len(end))
        return [Match(texts, *found) for texts in self._recent if (found := texts.find(keys)) is not None]


class Match(NamedTuple):
    """Where the end of a text was seen before."""

    texts: Texts
    place: int  # after it; there the guess begins
    length: int
    source: int = LOOKED_UP


class TextDrafter:
    """A Drafter for one request: what followed an earlier occurrence of the last tokens.

    After a change in a text that is copied, the copy is looked for near the place where it was. A guess is compared with the
    next token also where none was proposed. So no step is needed to find out how often guesses are right.
    """

    def __init__(self, drafts: Drafts) -> None:
        self._drafts = drafts
        self._own = Texts()
        self._rates = [list(rates) for rates in FIRST_RATES]  # for each source: of right guesses in each class
        self._weights = [[FIRST_WEIGHT] * len(MATCHES) for _ in FIRST_RATES]
        self._match: Match | None = None  # of the last guess
        self._guess: Sequence[int] = ()  # for the ids from _at on
        self._at = 0
        self._near: tuple[Texts, int] | None = None  # where a copy was before the last change
        self._n_changed = 0  # tokens since then

    def propose(self, ids: Sequence[int], most: int = MOST, n_rows: int = 1) -> list[int]:
        """See Drafter."""
        goes_on = self._compare(ids)
        self._match = match = self._best(ids, goes_on)
        self._guess, self._at = (), len(ids)
        if match is None:
            return []
        guess = match.texts.after(match.place, min(most, MOST) + 1)
        length = self._choose(match, len(guess) - 1, n_rows)
        self._guess = guess[: length + 1]  # the one after the draft is compared, too
        return guess[:length]

    def timed(self, n_rows: int, seconds: float) -> None:
        """See Drafter."""
        self._drafts.times.add(n_rows, seconds)

    def _compare(self, ids: Sequence[int]) -> Match | None:
        """Learn from what came in the place of the last guess. The match that it makes, if all of it was right."""
        match = self._match
        if match is None:
            return None
        rates, weights = self._rates[match.source], self._weights[match.source]
        new = ids[self._at :]
        for n_right, (guessed, token) in enumerate(zip(self._guess, new, strict=False)):
            kind = _class_of(match.length + n_right)
            weights[kind] = min(weights[kind] + 1, MEMORY)
            rates[kind] += ((guessed == token) - rates[kind]) / weights[kind]
            if guessed != token:
                if match.length + n_right >= LENGTHS[1]:
                    self._near, self._n_changed = (match.texts, match.place + n_right), 0
                return None
        return match._replace(place=match.place + len(new), length=match.length + len(new))

    def _best(self, ids: Sequence[int], goes_on: Match | None) -> Match | None:
        """The match after which a guess is most often right."""
        found = self._own.extend(ids[len(self._own.ids) :])
        if goes_on is not None and goes_on.length >= LENGTHS[-1]:
            return goes_on
        matches = [] if goes_on is None else [goes_on]
        matches += [] if found is None else [Match(self._own, *found)]
        matches += self._drafts.matches(ids)
        if goes_on is None and self._near is not None:
            nearby = self._nearby(*self._near, ids[-1])
            matches += [] if nearby is None else [nearby]
        return max(matches, key=lambda match: self._rates[match.source][_class_of(match.length)], default=None)

    def _nearby(self, texts: Texts, place: int, token: int) -> Match | None:
        """The match of the last token near the place where a copy was; else, for the first one, as if it were replaced."""
        self._n_changed += 1
        if self._n_changed == CHANGED:
            self._near = None
        near = texts.ids[place : place + NEAR + self._n_changed]
        if token in near:
            return Match(texts, place + near.index(token) + 1, 1, NEARBY)
        return Match(texts, place + 1, 0, NEARBY) if self._n_changed == 1 else None

    def _choose(self, match: Match, n_guesses: int, n_rows: int) -> int:
        """How many of the guesses pay. Each right one makes the match longer, and the next is more likely right."""
        rates = self._rates[match.source]
        if n_guesses < 1 or rates[_class_of(match.length)] < LEAST_RATE:
            return 0
        seconds = self._drafts.times.expected(n_rows, 1 + n_guesses)
        if not seconds:
            return 0
        return choose_length([rates[_class_of(match.length + i)] for i in range(n_guesses)], seconds, n_rows)


def _class_of(length: int) -> int:
    """The number of the class in MATCHES that a match of this length is in: 5 -> 3, which is that from 4 on."""
    return next(kind for kind, least in enumerate(MATCHES) if length >= least)
