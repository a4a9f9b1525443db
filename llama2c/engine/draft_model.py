"""A draft model: a second, smaller model with the same tokenizer guesses where a text does not repeat itself.

Its likeliest tokens are guesses like any other: a Sequence compares them with what it draws, so they change how long a text
takes, and never the text.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from ..generation import count_common
from .drafts import MOST, StepTimes, TextDrafter, choose_length

if TYPE_CHECKING:
    from ..transformer import KVCache, Transformer

FIRST_RATE = 0.7  # of right guesses, before any was compared
MEMORY = 32  # the rate is about that of so many guesses
TRIAL = 2  # guesses that find out whether they pay again
FIRST_PAUSE, LONGEST_PAUSE = 16, 512  # tokens until the next trial; each that does not pay doubles them


class DraftModel:
    """The small model and its cache. It serves one text at a time, and keeps what that has in common with the next one."""

    def __init__(self, transformer: Transformer) -> None:
        self.transformer = transformer
        self.seconds = 0.0  # that one guess takes; 0: none was made
        self._cache: KVCache = transformer.new_cache()
        self._ids: list[int] = []  # those in the cache
        self._lock = threading.Lock()
        self._user: weakref.ref[ModelDrafter] | None = None

    def claim(self, user: ModelDrafter) -> bool:
        """Whether it serves this drafter: no other one that still exists has claimed it."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            current = None if self._user is None else self._user()
            if current is None:
                self._user = weakref.ref(user)
            return current is None or current is user
        finally:
            self._lock.release()

    def drafter(self, text: TextDrafter, times: StepTimes) -> ModelDrafter:
        """A drafter for one request, whose own text is looked at first. times: of steps of the large model."""
        return ModelDrafter(text, self, times)

    def guess(self, ids: Sequence[int], n: int) -> list[int]:
        """The n likeliest tokens, one after the other, that follow ids; fewer at the end of its context."""
        n = min(n, self.transformer.config.seq_len - len(ids) + 1)
        if n < 1:
            return []
        known = min(count_common(self._ids, ids), len(ids) - 1)
        self._cache.truncate(known)
        del self._ids[known:]
        to_feed, guesses = list(ids[known:]), []
        for _ in range(n):
            start = perf_counter()
            try:
                logits = self.transformer.forward(to_feed, self._cache)
            except MemoryError:  # the text goes on without guesses
                break
            self._ids += to_feed
            guesses.append(int(np.argmax(logits)))
            if len(to_feed) == 1:
                seconds = perf_counter() - start
                self.seconds = seconds if self.seconds == 0.0 else self.seconds + (seconds - self.seconds) / MEMORY
            to_feed = guesses[-1:]
        return guesses


class ModelDrafter:
    """A Drafter for one request: what its text repeats, else what the small model finds likeliest, as far as that pays."""

    def __init__(self, text: TextDrafter, model: DraftModel, times: StepTimes) -> None:
        self._text, self._model, self._times = text, model, times
        self._rate = FIRST_RATE
        self._guess: list[int] = []  # of the small model, for the ids from _at on
        self._at = 0
        self._pause = FIRST_PAUSE
        self._next_trial = 0  # the length of the text from which on guesses that did not pay are tried again

    def propose(self, ids: Sequence[int], most: int = MOST, n_rows: int = 1) -> list[int]:
        """See Drafter. In a step with other texts the small model is not asked, because it makes one row at a time."""
        self._compare(ids)
        guess = self._text.propose(ids, most, n_rows)
        if guess or n_rows > 1 or not self._model.claim(self):
            return guess
        self._guess, self._at = self._model.guess(ids, self._choose(min(most, MOST), len(ids))), len(ids)
        return self._guess

    def timed(self, n_rows: int, seconds: float) -> None:
        """See Drafter."""
        self._text.timed(n_rows, seconds)

    def _compare(self, ids: Sequence[int]) -> None:
        """Learn from what came in the place of the last guesses; those behind a wrong one say nothing."""
        for guessed, token in zip(self._guess, ids[self._at :], strict=False):
            self._rate += ((guessed == token) - self._rate) / MEMORY
            if guessed != token:
                break
        self._guess = []

    def _choose(self, most: int, n_ids: int) -> int:
        """How many guesses pay; now and then some although they did not."""
        steps = self._times.expected(1, 1 + most)
        if not steps:
            return 0
        seconds = [step + n * self._model.seconds for n, step in enumerate(steps)]
        n = choose_length([self._rate] * most, seconds)
        if n:
            self._pause = FIRST_PAUSE
            return n
        if n_ids < self._next_trial:
            return 0
        self._next_trial, self._pause = n_ids + self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return min(TRIAL, most)
