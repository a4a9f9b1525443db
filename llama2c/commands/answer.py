"""One answer: what a chat model replies to one question, alone on stdout, so that a script can use it."""

from __future__ import annotations

from typing import Any

from ..errors import RequestError
from ..llama import Llama, reply_pieces
from ..requests import Piece
from ..text.chat import chat_ids
from .flags import Arguments, count_positions
from .printing import stdin, tell_rates
from .prompt_cache import PromptCache
from .terminal import UsageError, put, say, utf8


def read_question(word: str) -> str:
    """The question of the command line; "-" reads all of stdin, without the newline at its end. UsageError: it is empty."""
    question = utf8(stdin().read(), "stdin").removesuffix("\n") if word == "-" else utf8(word, "question")
    if not question.strip():
        raise UsageError("The question is empty")
    return question


def answer(
    llama: Llama, arguments: Arguments, options: dict[str, Any], context: int, prompt_cache: PromptCache
) -> None:
    """Print the text of llama.chat for the question, and a newline. A note on stderr if the context is what ended it.

    context  positions that the question and its answer may fill, if -n does not ask for fewer
    UsageError: the model has no chat template; RequestError: the question alone needs more positions.
    """
    if llama.tokenizer.chat_template is None and arguments.mode != "chat":
        instead = "-i TEXT continues a text, and -m chat asks in the form of Llama 2"
        raise UsageError(f"{arguments.model}: this model has no chat template, so it takes no question: {instead}")
    ids = chat_ids(llama.tokenizer, messages(arguments))
    n_positions = count_positions(arguments.steps, context, default=context)
    if len(ids) > n_positions:
        raise RequestError(f"The question needs {len(ids)} positions, and there are only {n_positions}", "question")
    sequence = llama.sequence(ids, max_tokens=n_positions - len(ids) + 1, stop=arguments.stop, **options)
    cache = llama.transformer.new_cache(sequence.n_positions)
    prompt_cache.begin(sequence, cache)
    last: Piece | None = None
    for last in reply_pieces(llama, sequence, cache):
        if last.text:
            put(last.text)
    put("\n")
    assert last is not None  # there is room for one token at least
    if arguments.verbose:
        tell_rates(last.prompt_tokens, last.prompt_tps, last.generation_tokens - 1, last.generation_tps)
    if last.finish_reason == "length" and n_positions == context:
        say(f"The answer is cut off: the context of {context} positions is full")


def messages(arguments: Arguments) -> list[dict[str, str]]:
    """The system prompt, if there is one, and the question."""
    assert arguments.question is not None
    system = utf8(arguments.system_prompt or "", "--system-prompt")
    return [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": arguments.question}]
