"""A story or a chat, as the flags ask for. Prints what run.c prints, as it is made."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from time import time_ns

from .. import __version__, _kernels
from ..config import DIMENSIONS
from ..generation import Sequence, generate
from ..llama import Llama, load
from ..sampler import Sampler
from .chat import chat
from .flags import Arguments, adjust, count_positions
from .printing import SILENT, print_steps, stdin, tell_speed
from .terminal import put, say
from .trace import TraceWriter, open_trace


def run(arguments: Arguments) -> None:
    """Load what the flags name, then generate or chat."""
    adjust(arguments)
    seed = arguments.seed or time_ns() % 2**53  # so that JSON keeps it
    sampler = Sampler(arguments.temperature, arguments.top_p, seed=seed)
    llama = load(arguments.model or None, arguments.tokenizer, arguments.threads)
    prompt = None if arguments.prompt is None else os.fsencode(arguments.prompt)
    if arguments.prompt == "-":
        prompt = stdin().read()
    with contextlib.ExitStack() as stack:
        if arguments.trace is not None:
            llama.transformer.observer = TraceWriter(stack.enter_context(open_trace(arguments.trace)))
        if arguments.verbose:
            describe(llama, seed)
        if arguments.mode == "chat":
            from .interactive import has_terminal, interactive  # only a chat needs what it imports

            if has_terminal():
                interactive(llama, replace(arguments, seed=seed))
                return
        n_positions = count_positions(arguments.steps, llama.transformer.config.seq_len)
        if arguments.mode == "chat":
            system = None if arguments.system_prompt is None else os.fsencode(arguments.system_prompt)
            chat(llama, sampler, prompt, system, n_positions, arguments.verbose)
        else:
            story(llama, sampler, prompt or b"", n_positions, arguments.verbose)


def describe(llama: Llama, seed: int) -> None:
    """--verbose: what runs, and how."""
    checkpoint, c = llama.transformer.checkpoint, llama.transformer.config
    groups = "" if checkpoint.group_size is None else f" in groups of {checkpoint.group_size}"
    say(f"version {__version__}, instruction set {_kernels.isa}, threads: {llama.transformer.n_threads}")
    say(f"model: {checkpoint.path}, format {checkpoint.format}, {checkpoint.kind}{groups}")
    shape = ", ".join(f"{name} {getattr(c, name)}" for name in (*DIMENSIONS, "head_size"))
    say(f"shape: {shape}, classifier {'' if checkpoint.shared_classifier else 'not '}shared")
    scaling = "" if c.rope_scaling is None else f", {c.rope_scaling.rope_type} scaling by {c.rope_scaling.factor:g}"
    say(f"RoPE base {c.rope_theta:g}{scaling}; norm_eps {c.norm_eps:g}")
    say(f"tokenizer: {llama.tokenizer.path}")
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
