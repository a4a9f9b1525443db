"""Sequence: the state of one request, from its prompt to its last token. generate() drives one with a model.

A Sequence never calls the model. It says which ids it wants to be fed, and it is given logits. So one loop serves a single
request, another many at once, and neither knows stop strings, budgets, penalties or random numbers.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import index
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import _kernels
from .constraints import Constraint
from .errors import RequestError, check_int
from .sampler import LogitBias, Sampler, SamplerOptions
from .text.stops import StopStrings
from .text.tokenizer import TextStream

if TYPE_CHECKING:
    from .transformer import KVCache, Transformer

Floats: TypeAlias = "NDArray[np.float32]"
TopLogprobs: TypeAlias = "tuple[tuple[int, float], ...]"  # (id, logprob), the likeliest first

# A mask or a bias: (logits, ids so far) -> the logits to draw from. It must not change the logits that it is given: the
# log-probabilities of a step are those of the model.
LogitProcessor: TypeAlias = "Callable[[Floats, abc.Sequence[int]], Floats]"


NO_DISTRIBUTION = "logits: expected numbers that make a distribution, found NaN or infinity"


class Options(SamplerOptions, total=False):
    """The options of a request. Sampler and Sequence have the meanings and the defaults."""

    max_tokens: int | None
    stop: str | abc.Sequence[str]
    logprobs: int
    logit_bias: Mapping[int, float] | None
    schema: Mapping[str, Any] | None
    regex: str | None
    grammar: str | None


class Step(NamedTuple):
    """One token that was drawn. logprob and top_logprobs are those of the model: before bias, penalty and temperature."""

    token: int
    text: str  # the text that this token completes, up to a stop string; often "" for a part of a character
    logprob: float | None  # None: not asked for
    top_logprobs: TopLogprobs
    finish_reason: str | None  # of the last step: "stop" (a stop token or string, a complete text) or "length"


class Sequence:
    """The state of one request.

    prompt_ids   one id at least
    sampler      draws the tokens; no other Sequence may use it
    vocab_size   ids are below it
    max_length   positions there are for the prompt and the tokens that are fed; as the last token drawn is not fed, a prompt of
                 n ids has room for max_length - n + 1 tokens
    max_tokens   at most so many tokens are drawn; None: no such limit; 0: none at all
    stop_tokens  each of them ends the text, and is the token of the last step
    stop         strings; the text ends before the first that appears
    text_stream  makes the decoder of a text, given the last id of the prompt (Tokenizer.text_stream); None: the steps have no
                 text, and there can be no stop strings
    logprobs     k > 0: log-probabilities of each token and of the k likeliest, ties by id
    logit_bias   {id: value}: is added to the logit of the id before a token is drawn; -inf excludes it
    processors   masks and biases, applied in this order after logit_bias
    constraint   masks what is left; no other Sequence may use it. Where nothing can follow, the text ends without a draw

    The loop of its user:

        while sequence.finish_reason is None:
            cache.truncate(sequence.n_fed)
            logits = transformer.forward(sequence.to_feed, cache, logits=sequence.wanted)
            steps = sequence.accept(logits)

    A wrong option is a RequestError, a value of another type a TypeError.
    """

    __slots__ = (
        "_constraint", "_draft", "_logprobs", "_max_length", "_n_left", "_new_text_stream", "_processors", "_seen", "_stop",
        "_stop_tokens", "_text_stream", "_top_n", "_vocab_size", "_wrong", "finish_reason", "ids", "n_fed", "n_prompt",
        "sampler", "wanted",
    )  # fmt: skip

    def __init__(
        self,
        prompt_ids: Iterable[int],
        sampler: Sampler,
        *,
        vocab_size: int,
        max_length: int,
        max_tokens: int | None = 256,
        stop_tokens: Iterable[int] = (),
        stop: str | abc.Sequence[str] = (),
        text_stream: Callable[[int], TextStream] | None = None,
        logprobs: int = 0,
        logit_bias: Mapping[int, float] | None = None,
        processors: Iterable[LogitProcessor] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.sampler: Sampler = sampler
        self._vocab_size = vocab_size
        self._max_length = max_length
        self._stop_tokens = frozenset(stop_tokens)
        self._stop = StopStrings(stop)
        if self._stop.strings and text_stream is None:
            raise RequestError("stop: stop strings need a text_stream", "stop")
        self._top_n = check_int("logprobs", logprobs, 0, vocab_size)
        self._logprobs = np.empty(vocab_size, np.float32) if self._top_n else None
        biases = [] if logit_bias is None else [LogitBias(logit_bias, vocab_size)]
        self._processors: list[LogitProcessor] = [*biases, *processors]
        self._constraint = constraint
        self._new_text_stream = text_stream
        self.n_fed: int = 0  # how many of `ids` the cache has to hold, and holds once it was cut to that many positions
        self.ids: list[int] = []  # the prompt, then the tokens drawn
        self.n_prompt: int = 0
        self.restart(prompt_ids, max_tokens)

    def restart(self, ids: Iterable[int], max_tokens: int | None = None) -> None:
        """Begin another reply with `ids` as the prompt, as the next turn of a chat does. The sampler goes on.

        Positions that the new prompt has in common with what was fed stay fed: n_fed says how many. Errors as above.
        """
        prompt = self._checked("prompt", ids)
        if not 0 < len(prompt) <= self._max_length:
            raise RequestError(f"prompt: expected 1 to {self._max_length} tokens (the context), found {len(prompt)}", "prompt")
        budget = self._max_length - len(prompt) + 1
        if max_tokens is not None:
            budget = min(budget, check_int("max_tokens", max_tokens, 0))
        self.n_fed = min(count_common(self.ids[: self.n_fed], prompt), len(prompt) - 1)
        self.ids, self.n_prompt = prompt, len(prompt)
        self._n_left = budget
        self._draft: list[int] = []  # guesses that were not yet compared
        self._wrong = False  # whether one was wrong, so that the rows that are still to come are of another text
        self._text_stream = None if self._new_text_stream is None else self._new_text_stream(prompt[-1])
        self._stop = StopStrings(self._stop.strings)
        self._seen: NDArray[np.intp] | None = None
        if self.sampler.has_penalties:
            self._seen = np.empty(len(prompt) + budget, np.intp)
            self._seen[: len(prompt)] = prompt
        self.finish_reason: str | None = None if budget else "length"
        if self._constraint is not None:
            self._constraint.reset()
            if self._constraint.finished:
                self.finish_reason = "stop"
        self.wanted = 0 if self.finish_reason else 1  # rows of logits that accept() still needs

    @property
    def n_positions(self) -> int:
        """Positions that a cache needs for all that may yet be fed."""
        return len(self.ids) + max(self._n_left - 1, 0)

    @property
    def to_feed(self) -> list[int]:
        """The ids that the model has to be fed next, at the positions from n_fed on: what is due, then the draft."""
        if self.finish_reason is not None:
            return []
        return self.ids[self.n_fed :] + self._draft if self._draft else self.ids[self.n_fed :]

    def propose(self, draft: abc.Sequence[int]) -> None:
        """Guess the next tokens. They are fed together with what is due, and a right guess costs no step of its own.

        A guess changes no token, only how many steps they take. As much of the draft is used as there is room for.
        """
        room = min(self._n_left - 1, self._max_length - len(self.ids))
        self._draft = self._checked("draft", draft[: max(room, 0)])
        self.wanted = 1 + len(self._draft)

    @property
    def draft(self) -> list[int]:
        """The guesses that are not compared yet. The rows of to_feed that `wanted` asks for are one more."""
        return self._draft

    def to_draw(self, logits: Floats) -> list[Floats] | None:
        """What the sampler has to draw from, for an engine that draws the tokens of many at once and gives them to accept().

        A row for each of `logits`, as accept() takes them. None where what a row becomes depends on the token before, so that
        accept() itself has to draw. Errors as there.
        """
        if not self._processors and self._constraint is None and self._seen is None:
            return list(logits)
        if len(logits) != 1:
            return None
        adjusted = self._adjusted(logits[0])
        if self._seen is None:
            return [adjusted]
        return [self.sampler.penalise(adjusted, self._seen[: len(self.ids)], self.n_prompt)]

    def accept(self, logits: Floats, drawn: abc.Sequence[int] | None = None) -> list[Step]:
        """Draw a token from each row of `logits`, (rows, vocab_size), up to the first that is not the one that was guessed.

        The rows are those after the last `wanted` ids of to_feed, in order; they may come in several calls. Rows after a wrong
        guess, and after the end of the text, are ignored: they draw no random number. Without a draft one row gives one step.
        drawn: the tokens, if they were drawn already: see to_draw(); -1: there was none to draw.
        ValueError: more rows than are wanted, NaN in a row, or every token is excluded.
        """
        n_rows = len(logits)
        if n_rows > self.wanted:
            raise ValueError(f"logits: expected at most {self.wanted} rows, found {n_rows}")
        self.wanted -= n_rows
        steps = []
        for i in range(n_rows):
            if self.finish_reason is not None or self._wrong:
                break
            self.n_fed = len(self.ids)  # the row comes after all of them
            steps.append(self._draw(logits[i], None if drawn is None else drawn[i]))
            if self._draft:
                self._wrong = self._draft.pop(0) != self.ids[-1]
        if self.wanted == 0 and self.finish_reason is None:
            self.wanted = 1
            if self._wrong:
                self._draft, self._wrong = [], False
        return steps

    def _checked(self, name: str, ids: Iterable[int]) -> list[int]:
        """The ids as a list of int. RequestError: one is outside the vocabulary; TypeError: one is not an integer."""
        tokens = []
        for token in ids:
            try:
                tokens.append(index(token))
            except TypeError:
                raise TypeError(f"{name}: expected token ids, found {type(token).__name__}") from None
        if tokens and not (min(tokens) >= 0 and max(tokens) < self._vocab_size):
            wrong = next(token for token in tokens if not 0 <= token < self._vocab_size)
            raise RequestError(f"{name}: expected token ids from 0 to {self._vocab_size - 1}, found {wrong}", name)
        return tokens

    def _adjusted(self, row: Floats) -> Floats:
        """The row with biases and masks."""
        for processor in self._processors:
            row = processor(row, self.ids)
        return row if self._constraint is None else self._constraint.mask(row)

    def _draw(self, row: Floats, token: int | None) -> Step:
        """The next token, from its row of logits (vocab_size,); None: it is not drawn yet."""
        if token is None:
            seen = None if self._seen is None else self._seen[: len(self.ids)]
            token = self.sampler.sample(self._adjusted(row), seen, self.n_prompt)
        elif token < 0:
            raise ValueError(NO_DISTRIBUTION)
        if self._seen is not None:
            self._seen[len(self.ids)] = token
        self.ids.append(token)
        self._n_left -= 1
        reason = "stop" if self._ends(token) else None if self._n_left else "length"
        text = ""
        if self._text_stream is not None:
            text = self._text_stream.feed(token)
            if reason is not None:
                text += self._text_stream.flush()
            if self._stop.strings:
                text, reason = self._cut(text, reason)
        self.finish_reason = reason
        if self._logprobs is None:
            return Step(token, text, None, (), reason)
        _kernels.logprobs(row, self._logprobs)
        return Step(token, text, float(self._logprobs[token]), likeliest(self._logprobs, self._top_n), reason)

    def _ends(self, token: int) -> bool:
        """Whether nothing may come after this token, which was drawn."""
        if token in self._stop_tokens:
            return True
        if self._constraint is None:
            return False
        self._constraint.advance(token)
        return self._constraint.finished

    def _cut(self, text: str, reason: str | None) -> tuple[str, str | None]:
        """The text that is sure to come before any stop string, and why the text ends, if it does."""
        text = self._stop.feed(text)
        if self._stop.found:
            return text, "stop"
        return text if reason is None else text + self._stop.flush(), reason


class Drafter(Protocol):
    """Guesses the next tokens of one request. A guess changes how long a text takes, and never the text."""

    def propose(self, ids: abc.Sequence[int], most: int = ..., n_rows: int = ...) -> list[int]:
        """At most `most` guesses for what follows ids; [] where none would save time.

        n_rows  rows that the step has without these guesses, one at least
        """

    def timed(self, n_rows: int, seconds: float) -> None:
        """A step with so many rows took so long. Steps with a prompt do not count."""


def generate(transformer: Transformer, cache: KVCache, sequence: Sequence, drafter: Drafter | None = None) -> Iterator[Step]:
    """Drive one sequence to its end: a Step for each token, as it is drawn.

    The cache holds the positions that the sequence has had fed, none for a new one; more than that are dropped. The last token
    drawn is not fed. A drafter guesses in all steps but that of a prompt. ValueError: the cache holds fewer.
    """
    logits = np.empty((1, transformer.config.vocab_size), np.float32)
    row = logits[0]
    while sequence.finish_reason is None:
        if cache.length != sequence.n_fed:
            cache.truncate(sequence.n_fed)
        guesses = drafter if len(sequence.ids) == sequence.n_fed + 1 else None  # not beside a prompt
        if guesses is not None and (draft := guesses.propose(sequence.ids)):
            sequence.propose(draft)
        start = perf_counter()
        if sequence.wanted == 1:  # nearly always: a tiny model makes a step in 15 us, so no array is made for it
            transformer.forward(sequence.to_feed, cache, out=row)
            rows = logits
        else:
            rows = transformer.forward(sequence.to_feed, cache, logits=sequence.wanted)
        if guesses is not None:
            guesses.timed(len(rows), perf_counter() - start)
        yield from sequence.accept(rows)


def count_common(a: abc.Sequence[int], b: abc.Sequence[int]) -> int:
    """How many ids two sequences begin with in common: [1, 2, 3], [1, 2, 4] -> 2."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def likeliest(logprobs: Floats, n: int) -> TopLogprobs:
    """The n largest, downwards, ties by id: [-2, -1, -2], 2 -> ((1, -1.0), (0, -2.0))."""
    threshold = np.partition(logprobs, -n)[-n]
    ids = np.flatnonzero(logprobs >= threshold)  # n of them, more if there are ties at the threshold
    ids = ids[np.argsort(-logprobs[ids], kind="stable")[:n]]
    return tuple(zip(ids.tolist(), logprobs[ids].tolist(), strict=True))
