"""Prints the text of a request while it is made, and its speed: for stories and chats."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from time import perf_counter
from typing import BinaryIO, NamedTuple

from ..generation import Step
from .terminal import say

# Texts of a token that are not printed: nothing, and a single control character other than white space.
SILENT = frozenset(["", *map(chr, range(9)), *map(chr, range(14, 32)), "\x7f"])


def stdin() -> BinaryIO:
    """The bytes of stdin; none if it is closed."""
    return io.BytesIO() if sys.stdin is None else sys.stdin.buffer


class Timing(NamedTuple):
    """How one request went. The first token comes out of the prefill step, so the speed is that of the others."""

    n_prompt: int
    prompt_seconds: float
    tokens: list[int]  # those drawn
    seconds: float  # from the first of them to the last
    finish_reason: str | None

    @property
    def n_made(self) -> int:
        """How many tokens there are after the first."""
        return len(self.tokens) - 1

    @property
    def rate(self) -> float:
        """Tokens a second, without the first."""
        return self.n_made / max(self.seconds, 1e-9)  # a coarse clock may not have moved


def print_steps(steps: Iterator[Step], n_prompt: int) -> Timing:
    """Print the text of each step as it comes. A tiny model makes one in 15 us, so this loop looks nothing up twice."""
    write, flush, silent = sys.stdout.buffer.write, sys.stdout.buffer.flush, SILENT
    tokens: list[int] = []
    start = first = perf_counter()
    finish_reason = None
    for token, text, _, _, finish_reason in steps:  # noqa: B007
        if not tokens:
            first = perf_counter()
        tokens.append(token)
        if text not in silent:
            write(text.encode())
            flush()
    return Timing(n_prompt, first - start, tokens, perf_counter() - first, finish_reason)


def tell_speed(timing: Timing) -> None:
    """Print both speeds on stderr."""
    tell_rates(timing.n_prompt, timing.n_prompt / max(timing.prompt_seconds, 1e-9), timing.n_made, timing.rate)


def tell_rates(n_prompt: int, prompt_rate: float, n_made: int, rate: float) -> None:
    """The same from the numbers of tokens, those of the prompt and those made after the first one, and tokens a second."""
    say(f"prompt: {n_prompt} tokens, {prompt_rate:.1f} tok/s")
    if n_made > 0:
        say(f"generation: {n_made} tokens, {rate:.1f} tok/s")
