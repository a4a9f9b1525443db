"""Sampler: logits in, one token id out. Repetition penalty, temperature, softmax, top-k, min-p, top-p.

Holds the random numbers of one request (xorshift64*, those of run.c); the arithmetic is in _kernels.sample.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from ._kernels import draw_rows as _draw_rows
from ._kernels import sample as _sample
from .errors import check_int, check_real

_MASK64 = 2**64 - 1
_MULTIPLIER = 0x2545F4914F6CDD1D
_GAMMA = 0x9E3779B97F4A7C15
_STATE_OF_SEED_0 = _GAMMA  # any constant but 0: xorshift never leaves the state 0
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_SEED_BITS = 53  # of seeds that are chosen here: JSON and JavaScript keep integers of so many bits


class SamplerOptions(TypedDict, total=False):
    """The options of a Sampler, which has their meanings and defaults."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    seed: int | None


class Sampler:
    """Draws tokens from logits. One Sampler serves one request and one thread: its random state moves on.

    temperature         0 takes the likeliest token and draws no random number; otherwise logits are divided by it
    top_k               keep the k likeliest tokens (0: off)
    min_p               keep tokens with at least min_p times the largest probability (0: off)
    top_p               keep the likeliest tokens until their sum exceeds top_p (0 or 1: off)
    repetition_penalty  positive logits of tokens seen before are divided by it, negative ones multiplied
                        (Keskar et al. 2019, CTRL; 1: off)
    frequency_penalty   is subtracted from the logit of a token for each time that it was drawn (0: off)
    presence_penalty    is subtracted once from that of every token that was drawn (0: off). Both are those of OpenAI's
                        interface: they count what was drawn, not the prompt, and come after the repetition penalty
    seed                0..2**64 - 1; None: a random one below 2**53; the attribute `seed` has it

    Each filter gets the distribution that the one before it left. With top_k, min_p and the penalties off the
    result is that of run.c. A wrong type is a TypeError, a wrong value a RequestError.
    """

    __slots__ = (
        "_candidates", "_probs", "_state", "frequency_penalty", "min_p", "presence_penalty", "repetition_penalty", "seed",
        "temperature", "top_k", "top_p",
    )  # fmt: skip

    def __init__(
        self,
        temperature: float = 1.0,
        top_p: float = 0.9,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
    ) -> None:
        self.temperature: float = check_real(
            "temperature", temperature, "a finite number of at least 0", lambda t: 0.0 <= t < math.inf
        )
        self.top_p: float = check_real("top_p", top_p, "a number from 0 to 1", lambda p: 0.0 <= p <= 1.0)
        self.top_k: int = check_int("top_k", top_k, 0)
        self.min_p: float = check_real("min_p", min_p, "a number from 0 to 1", lambda p: 0.0 <= p <= 1.0)
        self.repetition_penalty: float = check_real(
            "repetition_penalty", repetition_penalty, "a finite number above 0", lambda r: 0.0 < r < math.inf
        )
        self.frequency_penalty: float = check_real("frequency_penalty", frequency_penalty, "a finite float32", _is_float32)
        self.presence_penalty: float = check_real("presence_penalty", presence_penalty, "a finite float32", _is_float32)
        if seed is None:
            seed = int.from_bytes(os.urandom(8), "little") >> (64 - _SEED_BITS)
        self.seed: int = check_int("seed", seed, 0, _MASK64)
        self._state = self.seed or _STATE_OF_SEED_0
        self._probs: NDArray[np.float32] = np.empty(0, np.float32)  # scratch of the kernel, made on first use
        self._candidates: NDArray[np.uint64] = np.empty(0, np.uint64)

    def coin(self) -> float:
        """The next random number in [0, 1): 24 bits of xorshift64* (Vigna 2016), as run.c draws them."""
        x = self._state
        x ^= x >> 12
        x ^= (x << 25) & _MASK64
        x ^= x >> 27
        self._state = x
        return ((x * _MULTIPLIER & _MASK64) >> 40) / 16777216.0

    @property
    def has_penalties(self) -> bool:
        """Whether sample() needs to know the ids so far."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0

    def sample(
        self, logits: NDArray[np.float32], seen: Sequence[int] | NDArray[Any] | None = None, n_prompt: int = 0
    ) -> int:
        """Draw one token id from `logits` (vocab_size,) float32, which are not changed.

        seen: ids of the prompt and of the output so far, repeats allowed, the first n_prompt of them the prompt; only the
        penalties need them. ValueError: NaN logits, every token excluded, or an id outside the vocabulary.
        """
        if seen is not None:
            logits = self.penalise(logits, seen, n_prompt)
        n = len(logits)
        if len(self._probs) != n:
            self._probs = np.empty(n, np.float32)
            self._candidates = np.empty(2 * n, np.uint64)
        coin = self.coin() if self.temperature > 0.0 else 0.0
        top_k = min(self.top_k, n)
        return _sample(logits, self._probs, self._candidates, self.temperature, self.top_p, top_k, self.min_p, coin)

    def penalise(
        self, logits: NDArray[np.float32], seen: Sequence[int] | NDArray[Any], n_prompt: int = 0
    ) -> NDArray[np.float32]:
        """The logits, or with a penalty a copy, the seen tokens less likely: [2, -2, 2], seen [0, 1, 0].

        A repetition penalty of 2 makes [1, -4, 2] of them; a frequency penalty of 2, all of seen drawn, [-2, -4, 2].
        Where a result is beyond all floats, it is the largest of them.
        """
        seen, penalty = np.asarray(seen), min(self.repetition_penalty, _MAX_FLOAT32)
        if seen.size == 0 or not self.has_penalties:
            return logits
        if seen.dtype.kind not in "iu":
            raise TypeError(f"seen: expected a sequence of token ids, found values of type {seen.dtype}")
        for token in (seen.min(), seen.max()):
            check_int("seen", token, 0, len(logits) - 1)  # a negative index would count from the end
        logits = logits.copy()
        if penalty != 1.0:
            values = logits[seen]
            with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
                changed = np.where(values > 0, values / penalty, values * penalty)
            logits[seen] = _bounded(changed, values)
        if self.frequency_penalty or self.presence_penalty:
            drawn, counts = np.unique(seen[n_prompt:], return_counts=True)
            penalties = np.clip(counts * self.frequency_penalty + self.presence_penalty, -_MAX_FLOAT32, _MAX_FLOAT32)
            values = logits[drawn]
            with np.errstate(over="ignore"):
                changed = values - penalties.astype(np.float32)
            logits[drawn] = _bounded(changed, values)
        return logits


def _bounded(changed: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a penalty makes of `values`, as finite numbers. Tokens that are excluded stay so."""
    return np.where(np.isfinite(values), np.clip(changed, -_MAX_FLOAT32, _MAX_FLOAT32), values)


class Draw(NamedTuple):
    """Rows of logits that one request draws from in order, up to the first token that is not the one that was guessed."""

    sampler: Sampler
    rows: list[NDArray[np.float32]]  # each (vocab_size,)
    guesses: Sequence[int]  # of all rows but the last


class Drawer:
    """Draws the tokens of many requests in one call, on several threads: those that Sampler.sample would draw."""

    SMALL = 1 << 14  # logits, of all rows together, that are not worth a second thread

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._probs: NDArray[np.float32] = np.empty((0, vocab_size), np.float32)  # scratch of the kernel, for each thread
        self._candidates: NDArray[np.uint64] = np.empty((0, 2 * vocab_size), np.uint64)

    def draw(self, draws: Sequence[Draw], n_threads: int = 1) -> list[list[int]]:
        """The tokens of each request, which are fewer than its rows after a wrong guess. -1: no distribution, the last."""
        if not draws:
            return []
        rows = [row for draw in draws for row in draw.rows]
        n_threads = 1 if len(rows) * self._vocab_size < self.SMALL else min(n_threads, len(draws))
        if len(self._probs) < n_threads:
            self._probs = np.empty((n_threads, self._vocab_size), np.float32)
            self._candidates = np.empty((n_threads, 2 * self._vocab_size), np.uint64)
        samplers = [draw.sampler for draw in draws]
        before = [sampler._state for sampler in samplers]
        coins = [draw.sampler.coin() if draw.sampler.temperature > 0.0 else 0.0 for draw in draws for _ in draw.rows]
        guesses = [guess for draw in draws for guess in (*draw.guesses, -1)]
        firsts = np.cumsum([0, *[len(draw.rows) for draw in draws]], dtype=np.int64)
        options = [(sampler.temperature, sampler.top_p, sampler.min_p) for sampler in samplers]
        top_k = [min(sampler.top_k, self._vocab_size) for sampler in samplers]
        tokens = np.empty(len(rows), np.int64)
        _draw_rows(
            rows, firsts, np.array(guesses, np.int64), np.array(coins, np.float32),
            np.array(options, np.float32).reshape(-1, 3), np.array(top_k, np.int64),
            tokens, self._probs[:n_threads], self._candidates[:n_threads],
        )  # fmt: skip
        drawn = []
        for i, sampler in enumerate(samplers):
            own = [token for token in tokens[firsts[i] : firsts[i + 1]].tolist() if token != -2]
            if len(own) < len(draws[i].rows) and sampler.temperature > 0.0:  # rows that were not drawn from have no coin
                sampler._state = before[i]
                for _ in own:
                    sampler.coin()
            drawn.append(own)
        return drawn


def seed_of_sample(seed: int, k: int) -> int:
    """The seed of sample k of several of one request: `seed` itself, then what SplitMix64 gives (Steele et al. 2014)."""
    if k == 0:
        return seed
    z = (seed + k * _GAMMA) & _MASK64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK64
    return z ^ (z >> 31)


def seed_of_id(seed: int, id: str | int) -> int:
    """The seed of the request `id` of a batch, of 53 bits: the first of BLAKE2b's hash of "SEED:ID", e.g. of "1:line-5".

    So it does not depend on the order of the requests, on how many are done together, or where.
    """
    from hashlib import blake2b  # a story does not need it

    digest = blake2b(f"{seed}:{id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _SEED_BITS)


class LogitBias:
    """Adds a number to the logits of some tokens: {5: 2.0} makes token 5 e^2 times as likely, {5: -inf} excludes it.

    RequestError: an id outside the vocabulary, a value that is not a finite number or -inf; TypeError: another type.
    """

    __slots__ = ("_ids", "_values")

    def __init__(self, bias: Mapping[int, float], vocab_size: int) -> None:
        if not isinstance(bias, Mapping):
            raise TypeError(f"logit_bias: expected a dict from ids to numbers, found {type(bias).__name__}")
        ids = [check_int("logit_bias", token, 0, vocab_size - 1) for token in bias]
        self._ids: NDArray[np.intp] = np.array(ids, np.intp)
        values = [check_real("logit_bias", value, "a finite float32 or -inf", _is_bias) for value in bias.values()]
        self._values: NDArray[np.float32] = np.array(values, np.float32)

    def __call__(self, logits: NDArray[np.float32], ids: Sequence[int] = ()) -> NDArray[np.float32]:
        """A copy of `logits` (vocab_size,) with the bias."""
        logits = logits.copy()
        logits[self._ids] += self._values
        return logits


def _is_float32(value: float) -> bool:
    return abs(value) <= _MAX_FLOAT32


def _is_bias(value: float) -> bool:
    return value == -math.inf or _is_float32(value)
