"""Scoring: ids in, the log-probability of each out. Perplexities and the comparison of two models are made from these.

A text longer than the context is read in windows that overlap. Only a few rows of logits are in memory, however long it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, SupportsIndex

import numpy as np

from . import _kernels
from .errors import ModelError, RequestError, check_int
from .generation import NO_DISTRIBUTION, TopLogprobs, likeliest
from .generation import Sequence as Request
from .text.tokenizer import Tokenizer
from .transformer import Floats, Transformer

ROWS = 64  # logits held at a time: 8 MB if there are 32,000 tokens, and enough rows to read the weights once for many


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a model finds a text."""

    tokens: tuple[int, ...]  # of a text, the first is BOS, or what stands for it (see scored_ids)
    logprobs: tuple[float, ...]  # ln p of the last len(logprobs) tokens, given those before: of all that are not context
    n_bytes: int  # of the text; of tokens after a context or given as ids, the bytes of those that are scored

    @property
    def logprob(self) -> float:
        """ln p of all that is scored, the sum of `logprobs`."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """exp(-logprob / len(logprobs)): the model was as unsure as among so many equally likely tokens."""
        nats = -self.logprob / len(self.logprobs)
        return math.exp(nats) if nats < 709 else math.inf  # exp(710) is more than a float can hold

    @property
    def bits_per_byte(self) -> float:
        """-logprob / (n_bytes ln 2): also compares models whose tokens differ. Infinite where no token has bytes."""
        return -self.logprob / (self.n_bytes * math.log(2)) if self.n_bytes else math.inf


class Chunk(NamedTuple):
    """A part of a window: ids[first:stop] go in and score the ids one further on, given all from `start` on."""

    start: int
    first: int
    stop: int


def choose_stride(stride: int | None, context: int) -> int:
    """How far apart windows begin: `stride`, 1 to `context`; None: half of the context. Errors: those of check_int."""
    return max(1, context // 2) if stride is None else check_int("stride", stride, 1, context)


def plan_chunks(n_ids: int, context: int, stride: int, context_length: int = 1) -> list[Chunk]:
    """Chunks of at most ROWS rows that score each of `n_ids` ids, except the first `context_length`, once.

    Window k has the `context` ids from k * stride on, and scores those that no window before it has scored. So id i is scored
    given the ids from s to i - 1, where s = stride * max(0, ceil((i - context) / stride)): all of them while i <= context, then
    context - stride + 1 to context of them. What follows an id does not change its score, nor does context_length. 5 ids,
    context 2, stride 1: (0, 0, 2), (1, 2, 3), (2, 3, 4).
    RequestError: fewer than two ids; context_length is not 1 to n_ids - 1.
    """
    if n_ids < 2:
        raise RequestError("text: expected at least one byte, found an empty text", "text")
    first = check_int("context_length", context_length, 1, n_ids - 1) - 1
    start = stride * max(0, -((context - first - 1) // stride))
    chunks: list[Chunk] = []
    while first < n_ids - 1:  # the last id is scored, but need not go in
        stop = min(start + context, n_ids - 1)
        chunks += [Chunk(start, row, min(row + ROWS, stop)) for row in range(first, stop, ROWS)]
        first, start = stop, start + stride
    return chunks


class Rows(NamedTuple):
    """The distributions for the tokens that a chunk scores; both (stop - first, vocab_size), overwritten by the next chunk."""

    logits: Floats
    logprobs: Floats


def read_chunks(transformer: Transformer, ids: Sequence[int], chunks: Sequence[Chunk]) -> Iterator[Rows]:
    """The rows of each chunk in turn, on one cache."""
    cache = transformer.new_cache(max(chunk.stop - chunk.start for chunk in chunks))
    logits = np.empty((max(chunk.stop - chunk.first for chunk in chunks), transformer.config.vocab_size), np.float32)
    logprobs = np.empty_like(logits)
    for start, first, stop in chunks:
        if cache.length != first - start:  # a new window: its first ids were scored before, and are only context here
            cache.truncate(0)
            if first > start:
                transformer.forward(ids[start:first], cache, logits=0)
        n = stop - first
        transformer.forward(ids[first:stop], cache, logits=None, out=logits[:n])
        for i in range(n):
            _kernels.logprobs(logits[i], logprobs[i])
        yield Rows(logits[:n], logprobs[:n])


def pick_logprobs(rows: Rows, ids: Sequence[int], chunk: Chunk) -> list[float]:
    """ln p of the ids that a chunk scores. ValueError: the logits of the model are not finite."""
    picked = rows.logprobs[np.arange(chunk.stop - chunk.first), ids[chunk.first + 1 : chunk.stop + 1]]
    if not np.isfinite(picked).all():
        raise ValueError(NO_DISTRIBUTION)
    return list(map(float, picked))


def scored_ids(tokenizer: Tokenizer, text: str | bytes) -> list[int]:
    """The ids of a text after BOS, so that the first token of the text has something to be scored after.

    Where encode puts nothing before a text, bos_id is put there all the same, or eos_id if there is none: the end of one text
    comes before the next. ModelError: the tokenizer has neither.
    """
    if tokenizer.prefix:
        return tokenizer.encode(text)
    first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if first is None:
        raise ModelError("tokenizer: scoring needs a BOS or EOS before the text, and it has neither")
    return [first, *tokenizer.encode(text, bos=False)]


def check_ids(ids: Iterable[SupportsIndex], vocab_size: int) -> list[int]:
    """Ids as a list of int. TypeError: they are not ids; RequestError: fewer than two, or one outside the vocabulary."""
    if not isinstance(ids, Iterable):
        raise TypeError(f"text: expected str, bytes or token ids, found {type(ids).__name__}")
    tokens = [check_int("text", token, 0, vocab_size - 1) for token in ids]
    if len(tokens) < 2:
        raise RequestError(f"text: expected at least two token ids, found {len(tokens)}", "text")
    return tokens


def score_ids(
    transformer: Transformer, ids: Sequence[int], n_bytes: int, stride: int | None = None, context_length: int = 1
) -> Score:
    """The Score of `n_bytes` bytes: of the ids after the first context_length. Errors are those of Llama.score."""
    context = transformer.config.seq_len
    chunks = plan_chunks(len(ids), context, choose_stride(stride, context), context_length)
    logprobs: list[float] = []
    for chunk, rows in zip(chunks, read_chunks(transformer, ids, chunks), strict=True):
        logprobs += pick_logprobs(rows, ids, chunk)
    return Score(tuple(ids), tuple(logprobs), n_bytes)


# ---------------------------------------------------------------------------
# a prompt that is scored, and what follows it


class TokenScore(NamedTuple):
    """A token with its log-probability, given all before it; None: it is the first. `top` has the likeliest tokens there."""

    token: int
    logprob: float | None
    top: TopLogprobs


class Part(NamedTuple):
    """What a step of score_and_continue has found: the next tokens of a text, those of the prompt or one that was drawn."""

    scores: list[TokenScore]
    text: str  # of a token that was drawn
    finish_reason: str | None


def score_and_continue(transformer: Transformer, request: Request, top_n: int) -> Iterator[Part]:
    """The tokens of a request's prompt with their log-probabilities, then those that it draws: a Part for each step.

    Every token of the prompt is computed, on a cache of its own. top_n: how many of the likeliest tokens each one has. The
    request must not have begun; if tokens are drawn, it has to ask for the log-probabilities of as many. ValueError: logits are
    not finite.
    """
    ids = list(request.ids)
    cache = transformer.new_cache(request.n_positions)
    logprobs = np.empty(transformer.config.vocab_size, np.float32)
    rows = np.empty((0, len(logprobs)), np.float32)
    yield Part([TokenScore(ids[0], None, ())], "", None)
    for first in range(0, len(ids), ROWS):
        rows = transformer.forward(ids[first : first + ROWS], cache, logits=None)
        scores = []
        for row, token in zip(rows, ids[first + 1 : first + ROWS + 1], strict=False):  # the last row is of a token to come
            _kernels.logprobs(row, logprobs)
            if not np.isfinite(logprobs[token]):
                raise ValueError(NO_DISTRIBUTION)
            scores.append(TokenScore(token, float(logprobs[token]), likeliest(logprobs, top_n) if top_n else ()))
        yield Part(scores, "", None)
    rows = rows[-1:]
    while request.finish_reason is None:
        for step in request.accept(rows):
            yield Part([TokenScore(step.token, step.logprob, step.top_logprobs[:top_n])], step.text, step.finish_reason)
        if request.finish_reason is None:
            rows = transformer.forward(request.to_feed, cache).reshape(1, -1)
