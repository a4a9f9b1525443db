"""The token loop: prompt ids in, an iterator of steps out, one for each token that is sampled.

Knows nothing of text: stop strings and decoding are in llama.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _kernels
from .errors import check_int
from .sampler import Sampler

if TYPE_CHECKING:
    from .transformer import KVCache, Transformer


class Step(NamedTuple):
    """One sampled token. logprob and top_logprobs are those of the model: before penalty and temperature."""

    token: int
    logprob: float | None  # None: not asked for
    top_logprobs: tuple[tuple[int, float], ...]  # (id, logprob), the likeliest first
    finish_reason: str | None  # of the last step: "stop" (a stop token) or "length"


def generate(
    transformer: Transformer,
    cache: KVCache,
    prompt_ids: Iterable[int],
    sampler: Sampler,
    *,
    stop_tokens: Iterable[int],
    max_tokens: int | None = None,
    logprobs: int = 0,
) -> Iterator[Step]:
    """Continue `cache` with the prompt, then with tokens of `sampler`, each of them a Step.

    Ends with a stop token (which is a Step too), after max_tokens (None: no such limit; 0: no work at all),
    or with a full cache. The last token drawn is never fed to the model, so the cache holds all but that one,
    and a cache with room for n tokens after the prompt gives n + 1.
    logprobs k > 0: the log-probability of the token and the k likeliest with theirs, ties by id.

    Arguments are checked now (ValueError, TypeError); the work starts with the first next().
    """
    vocab_size = transformer.config.vocab_size
    prompt = [check_int("prompt token", token, 0, vocab_size - 1) for token in prompt_ids]
    room = cache.max_length - cache.length
    if not 0 < len(prompt) <= room:
        raise ValueError(f"prompt: expected 1 to {room} tokens, found {len(prompt)}")
    budget = room - len(prompt) + 1
    if max_tokens is not None:
        budget = min(budget, check_int("max_tokens", max_tokens, 0))
    top_n = check_int("logprobs", logprobs, 0, vocab_size)
    return _steps(transformer, cache, prompt, sampler, budget, frozenset(stop_tokens), top_n)


def _steps(
    transformer: Transformer,
    cache: KVCache,
    prompt: list[int],
    sampler: Sampler,
    budget: int,
    stop_tokens: frozenset[int],
    top_n: int,
) -> Iterator[Step]:
    # A tiny model makes a step in 15 us: buffers are made once, and a token costs only what it must.
    forward, sample = transformer.forward, sampler.sample
    logits = np.empty(transformer.config.vocab_size, np.float32)
    logprobs = np.empty_like(logits) if top_n else None
    seen: NDArray[np.intp] | None = None
    if sampler.repetition_penalty != 1.0:
        seen = np.empty(len(prompt) + budget, np.intp)
        seen[: len(prompt)] = prompt
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()

    tokens = prompt
    for n_drawn in range(1, budget + 1):
        forward(tokens, cache, out=logits)
        if seen is None:
            token = sample(logits)
        else:
            n_seen = len(prompt) + n_drawn - 1
            token = sample(logits, seen[:n_seen])
            seen[n_seen] = token
        if logprobs is not None:
            _kernels.logprobs(logits, logprobs)
            logprob, top_logprobs = float(logprobs[token]), _likeliest(logprobs, top_n)
        if token in stop_tokens:
            yield Step(token, logprob, top_logprobs, "stop")
            return
        yield Step(token, logprob, top_logprobs, "length" if n_drawn == budget else None)
        tokens = [token]


def _likeliest(logprobs: NDArray[np.float32], n: int) -> tuple[tuple[int, float], ...]:
    """The n largest, downwards, ties by id: [-2, -1, -2], 2 -> ((1, -1.0), (0, -2.0))."""
    threshold = np.partition(logprobs, -n)[-n]
    ids = np.flatnonzero(logprobs >= threshold)  # n of them, more if there are ties at the threshold
    ids = ids[np.argsort(-logprobs[ids], kind="stable")[:n]]
    return tuple(zip(ids.tolist(), logprobs[ids].tolist(), strict=True))
