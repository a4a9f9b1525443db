"""A story or a chat, as the flags ask for. Prints what run.c prints, as it is made."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from time import perf_counter, time_ns
from typing import BinaryIO, NamedTuple

from .. import __version__, _kernels
from ..config import DIMENSIONS
from ..generation import Sequence, Step, generate
from ..llama import Llama, load
from ..locate import find_tokenizer
from ..sampler import Sampler
from .flags import Arguments, adjust, count_positions
from .terminal import say
from .trace import TraceWriter, open_trace

# Texts of a token that are not printed: nothing, and a single control character other than white space.
SILENT = frozenset(["", *map(chr, range(9)), *map(chr, range(14, 32)), "\x7f"])


def run(arguments: Arguments) -> None:
    """Load what the flags name, then generate or chat."""
    adjust(arguments)
    seed = arguments.seed or time_ns()
    sampler = Sampler(arguments.temperature, arguments.top_p, seed=seed)
    llama = load(arguments.model or None, arguments.tokenizer, arguments.threads)
    prompt = None if arguments.prompt is None else os.fsencode(arguments.prompt)
    if arguments.prompt == "-":
        prompt = stdin().read()
    with contextlib.ExitStack() as stack:
        if arguments.trace is not None:
            llama.transformer.observer = TraceWriter(stack.enter_context(open_trace(arguments.trace)))
        if arguments.verbose:
            describe(arguments, llama, seed)
        n_positions = count_positions(arguments.steps, llama.transformer.config.seq_len)
        if arguments.mode == "chat":
            from .chat import chat

            chat(llama, sampler, prompt, arguments.system_prompt, n_positions, arguments.verbose)
        else:
            story(llama, sampler, prompt or b"", n_positions, arguments.verbose)


def describe(arguments: Arguments, llama: Llama, seed: int) -> None:
    """--verbose: what runs, and how."""
    checkpoint, c = llama.transformer.checkpoint, llama.transformer.config
    groups = "" if checkpoint.group_size is None else f" in groups of {checkpoint.group_size}"
    say(f"version {__version__}, instruction set {_kernels.isa}, threads: {llama.transformer.n_threads}")
    say(f"model: {checkpoint.path}, format {checkpoint.format}, {checkpoint.kind}{groups}")
    shape = ", ".join(f"{name} {getattr(c, name)}" for name in (*DIMENSIONS, "head_size"))
    say(f"shape: {shape}, classifier {'' if checkpoint.shared_classifier else 'not '}shared")
    scaling = "" if c.rope_scaling is None else f", {c.rope_scaling.rope_type} scaling by {c.rope_scaling.factor:g}"
    say(f"RoPE base {c.rope_theta:g}{scaling}; norm_eps {c.norm_eps:g}")
    say(f"tokenizer: {arguments.tokenizer or find_tokenizer(checkpoint.path)}")
    say(f"seed: {seed}")


def story(llama: Llama, sampler: Sampler, prompt: bytes, n_positions: int, verbose: bool) -> None:
    """Print the text of the prompt and what follows it, up to `n_positions`."""
    transformer, tokenizer = llama.transformer, llama.tokenizer
    ids = tokenizer.encode(prompt)
    text_stream = tokenizer.text_stream(errors="ignore")
    sequence = Sequence(
        ids,
        sampler,
        vocab_size=transformer.config.vocab_size,
        max_length=transformer.config.seq_len,
        max_tokens=max(0, n_positions - len(ids) + 1),
        stop_tokens=tokenizer.end_ids,
        text_stream=lambda _: text_stream,  # which has the prompt: a character may begin there and end in the first token
    )
    cache = transformer.new_cache(n_positions)
    put("".join(text for text in map(text_stream.feed, ids[: n_positions + 1]) if text not in SILENT))
    if len(ids) > n_positions:  # nothing is drawn, but a trace shows every position asked for
        transformer.forward(ids[:n_positions], cache)
        put("\n")
        return
    timing = print_steps(generate(transformer, cache, sequence), len(ids))
    put("\n")
    if verbose:
        tell_speed(timing)
    if timing.n_made > 0:
        say(f"achieved tok/s: {timing.rate:f}", name="")  # spelled as in run.c


# ---------------------------------------------------------------------------
# input and output, for a chat too


def put(text: str) -> None:
    """Print text on stdout, as UTF-8 whatever the locale is, without delay."""
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


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
    say(f"prompt: {timing.n_prompt} tokens, {timing.n_prompt / max(timing.prompt_seconds, 1e-9):.1f} tok/s")
    if timing.n_made > 0:
        say(f"generation: {timing.n_made} tokens, {timing.rate:.1f} tok/s")
