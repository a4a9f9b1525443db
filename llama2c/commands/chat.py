"""The chat of the command line: user and assistant in turn, as in run.c."""

from __future__ import annotations

import functools
from collections.abc import Collection

from ..generation import Sequence, count_common, generate
from ..llama import Llama
from ..sampler import Sampler
from ..text.chat import start_conversation
from .printing import print_steps, stdin, tell_speed
from .prompt_cache import PromptCache
from .terminal import put


def chat(
    llama: Llama,
    sampler: Sampler,
    prompt: bytes | None,
    system: bytes | None,
    n_positions: int,
    prompt_cache: PromptCache,
    verbose: bool,
    stop: Collection[str] = (),
) -> None:
    """Ask and answer, all in one cache, until `n_positions` are filled or the input ends.

    Each turn has the ids of the whole conversation. The cache usually has all of them up to the end of the last reply; it has
    fewer where a template writes earlier turns in another way than before.
    """
    transformer, tokenizer = llama.transformer, llama.tokenizer
    cache = transformer.new_cache(n_positions)
    sequence: Sequence | None = None
    user, input_ended = prompt, False
    if system is None:
        system = ask("Enter system prompt (optional): ")
        input_ended = system is None
    conversation = start_conversation(tokenizer, system or b"")
    drafter = llama.drafter()
    while True:
        if user is None and not input_ended:
            user = ask("User: ")
        if user is None:
            break
        ids = conversation.ask(user)
        user = None
        put("Assistant: ")
        if len(ids) > n_positions:  # feed what fits; there is no room for a reply
            cache.truncate(count_common([] if sequence is None else sequence.ids[: sequence.n_fed], ids))
            transformer.forward(ids[cache.length : n_positions], cache)
            break
        if sequence is None:
            sequence = Sequence(
                ids,
                sampler,
                vocab_size=transformer.config.vocab_size,
                max_length=n_positions,
                max_tokens=None,
                stop_tokens=conversation.end_ids,
                stop=tuple(stop),
                text_stream=functools.partial(tokenizer.text_stream, errors="ignore"),
            )
        else:
            sequence.restart(ids)
        new = sequence.to_feed
        for _ in new[:-1]:
            sampler.coin()  # run.c samples at these positions too
        prompt_cache.begin(sequence, cache)
        timing = print_steps(generate(transformer, cache, sequence, drafter), len(new))
        if timing.finish_reason == "stop":
            put("\n")
        if verbose:
            tell_speed(timing)
        by_string = timing.finish_reason == "stop" and timing.tokens[-1] not in conversation.end_ids
        eos = [] if tokenizer.eos_id is None or not by_string else [tokenizer.eos_id]
        conversation.answer(timing.tokens + eos)  # what was drawn stays, also where a stop string cut the text
        if len(sequence.ids) >= n_positions:
            break
    put("\n")


def ask(guide: str) -> bytes | None:
    """Print a guide and read a line of the user, as its bytes; None at the end of input."""
    put(guide)
    line = stdin().readline()
    return line.removesuffix(b"\n") if line else None
