"""A story, a chat or an answer, as the flags ask for. Stories and chats are what run.c prints, as it is made."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from time import time_ns

from .. import __version__, _kernels
from ..config import DIMENSIONS
from ..constraints import CONSTRAINTS, constrain
from ..files import read_file, read_json
from ..generation import Options, Sequence, generate
from ..llama import Llama, load
from ..sampler import Sampler, SamplerOptions
from ..text.stops import StopStrings
from .flags import Arguments, adjust, choose_context, count_positions
from .printing import SILENT, print_steps, stdin, tell_speed
from .prompt_cache import PromptCache, check_path
from .terminal import UsageError, put, say, utf8


def run(arguments: Arguments) -> None:
    """Load what the flags name, then generate, chat or answer. What can be checked before the model is loaded comes first."""
    adjust(arguments)
    seed = arguments.seed or time_ns() % 2**53  # so that JSON keeps it
    options = sampling(arguments, seed)
    sampler = Sampler(**options)
    StopStrings(arguments.stop)
    constraint = read_constraint(arguments)
    if arguments.prompt_cache is not None:
        check_path(arguments.prompt_cache)
        if arguments.trace is not None:
            raise UsageError("--trace and --prompt-cache cannot be used together: a trace shows what is computed")
    if arguments.question is not None:
        from .answer import read_question  # a story needs neither this nor the other modules imported below

        arguments.question = read_question(arguments.question)
    llama = load(arguments.model or None, arguments.tokenizer, arguments.threads, kv=arguments.kv, draft=arguments.draft)
    context = choose_context(arguments.context, llama.transformer.config.seq_len)
    prompt = None if arguments.prompt is None else os.fsencode(arguments.prompt)
    if arguments.prompt == "-":
        prompt = stdin().read()
    with contextlib.ExitStack() as stack:
        if arguments.trace is not None:
            from .trace import TraceWriter, open_trace

            llama.transformer.observer = TraceWriter(stack.enter_context(open_trace(arguments.trace)))
        if arguments.verbose:
            describe(llama, seed)
        prompt_cache = stack.enter_context(PromptCache(llama, arguments.prompt_cache, arguments.verbose))
        if arguments.question is not None:
            from .answer import answer

            answer(llama, arguments, {**options, **constraint}, context, prompt_cache)
            return
        if arguments.mode == "chat":
            from .interactive import has_terminal, interactive

            if has_terminal():
                interactive(llama, replace(arguments, seed=seed), prompt_cache)
                return
        n_positions = count_positions(arguments.steps, context)
        if arguments.mode == "chat":
            from .chat import chat

            system = None if arguments.system_prompt is None else os.fsencode(arguments.system_prompt)
            chat(llama, sampler, prompt, system, n_positions, prompt_cache, arguments.verbose, arguments.stop)
        else:
            story(
                llama, sampler, constraint, prompt or b"", n_positions, context, prompt_cache, arguments.stop, arguments.verbose
            )


def sampling(arguments: Arguments, seed: int) -> SamplerOptions:
    """How tokens are drawn."""
    return {
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "seed": seed,
    }


def read_constraint(arguments: Arguments) -> Options:
    """What --schema, --regex or --grammar asks for, as an option of Llama.stream. {} without them.

    UsageError: in a chat, or more than one. ModelError or OSError: a file is not readable, not JSON or not UTF-8.
    """
    given = [name for name in CONSTRAINTS if getattr(arguments, name) is not None]
    if not given:
        return {}
    if len(given) > 1:
        raise UsageError(f"--{given[0]}: cannot be used together with --{given[1]}")
    if arguments.mode == "chat" and arguments.question is None:
        raise UsageError(f"--{given[0]}: is for stories and answers, not for a chat")
    if arguments.schema is not None:
        return {"schema": read_json(Path(arguments.schema))}
    if arguments.grammar is not None:
        return {"grammar": utf8(read_file(arguments.grammar), arguments.grammar)}
    return {"regex": arguments.regex}


def describe(llama: Llama, seed: int) -> None:
    """--verbose: what runs, and how."""
    checkpoint, c = llama.transformer.checkpoint, llama.transformer.config
    groups = "" if checkpoint.group_size is None else f" in groups of {checkpoint.group_size}"
    say(f"version {__version__}, instruction set {_kernels.isa}, threads: {llama.transformer.threads}")
    say(f"model: {checkpoint.path}, format {checkpoint.format}, {checkpoint.kind}{groups}")
    shape = ", ".join(f"{name} {getattr(c, name)}" for name in (*DIMENSIONS, "head_size"))
    say(f"shape: {shape}, classifier {'' if checkpoint.shared_classifier else 'not '}shared")
    scaling = "" if c.rope_scaling is None else f", {c.rope_scaling.rope_type} scaling by {c.rope_scaling.factor:g}"
    say(f"RoPE base {c.rope_theta:g}{scaling}; norm_eps {c.norm_eps:g}")
    say(f"tokenizer: {llama.tokenizer.path}")
    say(f"seed: {seed}")


def story(
    llama: Llama,
    sampler: Sampler,
    constraint: Options,
    prompt: bytes,
    n_positions: int,
    context: int,
    prompt_cache: PromptCache,
    stop: list[str],
    verbose: bool,
) -> None:
    """Print the text of the prompt and what follows it, up to a stop string or `n_positions`. The prompt must fit `context`."""
    transformer, tokenizer = llama.transformer, llama.tokenizer
    ids = tokenizer.encode(prompt)
    text_stream = tokenizer.text_stream(errors="ignore")
    sequence = Sequence(
        ids,
        sampler,
        vocab_size=transformer.config.vocab_size,
        max_length=context,
        max_tokens=max(0, n_positions - len(ids) + 1),
        stop_tokens=tokenizer.end_ids,
        stop=stop,
        constraint=constrain(tokenizer, **constraint),  # type: ignore[misc]  # it has only these options
        text_stream=lambda _: text_stream,  # which has the prompt: a character may begin there and end in the first token
    )
    cache = transformer.new_cache(n_positions)
    put("".join(text for text in map(text_stream.feed, ids[: n_positions + 1]) if text not in SILENT))
    if len(ids) > n_positions:  # nothing is drawn, but a trace shows every position asked for
        transformer.forward(ids[:n_positions], cache)
        put("\n")
        return
    prompt_cache.begin(sequence, cache)
    timing = print_steps(generate(transformer, cache, sequence, llama.drafter()), len(ids))
    put("\n")
    if verbose:
        tell_speed(timing)
    if timing.n_made > 0:
        say(f"achieved tok/s: {timing.rate:f}", name="")  # spelled as in run.c
