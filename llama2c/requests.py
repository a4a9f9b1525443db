"""A request from end to end: a prompt and options become a Sequence, its steps become Pieces and a Completion.

Llama serves one request at a time with it, the engine many. The model is not called here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from . import generation
from .constraints import CONSTRAINTS, constrain
from .errors import RequestError
from .generation import Options, Step, TopLogprobs
from .sampler import Sampler, SamplerOptions
from .text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from .config import Config

Messages: TypeAlias = "Sequence[Mapping[str, Any]]"
Prompt: TypeAlias = "str | bytes | Sequence[int] | Messages"  # text, ids or a conversation


@dataclass(frozen=True, slots=True)
class Completion:
    """What a request made. `tokens` has every token drawn, a stop token at the end too."""

    text: str  # without the prompt, the stop token and the stop string
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None  # of each token; None unless asked for
    top_logprobs: tuple[TopLogprobs, ...] | None
    prompt_tokens: int
    prompt_tps: float  # tokens a second, up to the first token drawn
    generation_tokens: int  # == len(tokens)
    generation_tps: float  # tokens a second, those after the first token; 0.0 if there are none
    finish_reason: str  # "stop" (a stop token or string, a complete text), "length" (max_tokens, the end of the context);
    #                     with an engine also "cancelled" and "error"
    seed: int  # with it the same request gives the same tokens again
    error: Exception | None = None  # what ended the request; None unless finish_reason is "error"


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of a stream. The texts of all pieces, joined, are the text of the Completion.

    `text` may be empty: of a stop token, of a part of a character, of what may yet become a stop string.
    Counts and speeds are those so far, as in Completion; only the last piece has a finish_reason.
    """

    text: str
    token: int
    logprob: float | None
    top_logprobs: TopLogprobs
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    finish_reason: str | None


def new_sequence(
    config: Config, tokenizer: Tokenizer, prompt: str | bytes | Sequence[int], options: Options
) -> generation.Sequence:
    """The Sequence of a request. Options and errors are those of Llama.stream."""
    unknown = next((name for name in options if name not in Options.__optional_keys__), None)
    if unknown is not None:
        raise TypeError(f"{unknown}: unknown option; there are {', '.join(sorted(Options.__optional_keys__))}")
    sampler, constraint, others = _split_options(options)
    return generation.Sequence(
        _prompt_ids(tokenizer, prompt),
        Sampler(**sampler),
        vocab_size=config.vocab_size,
        max_length=config.seq_len,
        stop_tokens=tokenizer.end_ids,
        text_stream=tokenizer.text_stream,
        constraint=constrain(tokenizer, **constraint),
        **others,
    )


def _split_options(options: Options) -> tuple[Any, Any, Any]:
    """The options of the Sampler, of the constraint, and the others, which are those of a Sequence."""
    sampler: dict[str, Any] = {}
    constraint: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in options.items():
        group = sampler if name in SamplerOptions.__optional_keys__ else constraint if name in CONSTRAINTS else others
        group[name] = value
    return sampler, constraint, others


def is_conversation(prompt: Any) -> bool:
    """Whether a prompt is a list of messages: [{"role": "user", "content": "Hi"}]."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, (str, bytes)):
        return False
    return len(prompt) > 0 and isinstance(prompt[0], Mapping)


def new_request(
    config: Config,
    tokenizer: Tokenizer,
    prompt: Prompt,
    options: Options,
    template_options: Mapping[str, Any] | None = None,
    now: date | None = None,
) -> tuple[generation.Sequence, PieceMaker]:
    """What serves a text, ids or a conversation. Options and errors are those of Llama.stream and Llama.chat."""
    chats = is_conversation(prompt)
    if chats:
        from .text.chat import chat_ids  # a story does not need it

        prompt = chat_ids(tokenizer, cast("Messages", prompt), template_options, now)
    elif template_options is not None or now is not None:
        raise RequestError("prompt: expected messages, as there are template_options or now, found no messages", "prompt")
    sequence = new_sequence(config, tokenizer, cast("str | bytes | Sequence[int]", prompt), options)
    return sequence, PieceMaker(sequence.n_prompt, without_first_space=chats and tokenizer.chat_template is None)


def check_options(config: Config, tokenizer: Tokenizer, options: Options) -> None:
    """Errors are those of new_sequence, for a prompt that is none."""
    new_sequence(config, tokenizer, [0], options)


def _prompt_ids(tokenizer: Tokenizer, prompt: str | bytes | Sequence[int]) -> list[int]:
    if isinstance(prompt, (str, bytes)):
        return tokenizer.encode(prompt)
    if not isinstance(prompt, Iterable):
        raise TypeError(f"prompt: expected str, bytes or token ids, found {type(prompt).__name__}")
    return list(prompt)


class PieceMaker:
    """Makes the Piece of each step, with counts and speeds. The time of the prompt begins at begin().

    without_first_space  drop the one space that a reply in the form of Llama 2 begins with
    """

    __slots__ = ("_first", "_generation_tokens", "_prompt_tps", "_start", "_without_first_space", "prompt_tokens")

    def __init__(self, prompt_tokens: int, without_first_space: bool = False) -> None:
        self.prompt_tokens = prompt_tokens
        self._without_first_space = without_first_space
        self._generation_tokens = 0
        self._prompt_tps = self._start = self._first = 0.0

    def begin(self) -> None:
        self._start = perf_counter()

    def make(self, step: Step) -> Piece:
        """The piece of the next step, which was made now."""
        token, text, logprob, top_logprobs, finish_reason = step
        now = perf_counter()
        self._generation_tokens += 1
        generation_tps = 0.0
        if self._generation_tokens == 1:
            self._first = now
            self._prompt_tps = self.prompt_tokens / max(now - self._start, 1e-9)  # a coarse clock may not have moved
        else:
            generation_tps = (self._generation_tokens - 1) / max(now - self._first, 1e-9)
        if self._without_first_space and text:
            self._without_first_space, text = False, text.removeprefix(" ")
        return Piece(
            text, token, logprob, top_logprobs,
            self.prompt_tokens, self._prompt_tps, self._generation_tokens, generation_tps, finish_reason,
        )  # fmt: skip


def complete(
    pieces: Sequence[Piece], prompt_tokens: int, seed: int, finish_reason: str, error: Exception | None = None
) -> Completion:
    """The Completion of a request that has made these pieces."""
    last = pieces[-1] if pieces else None
    logprobs = tuple([piece.logprob for piece in pieces if piece.logprob is not None])
    return Completion(
        text="".join([piece.text for piece in pieces]),
        tokens=tuple([piece.token for piece in pieces]),
        logprobs=logprobs or None,
        top_logprobs=tuple([piece.top_logprobs for piece in pieces]) if logprobs else None,
        prompt_tokens=prompt_tokens,
        prompt_tps=last.prompt_tps if last else 0.0,
        generation_tokens=len(pieces),
        generation_tps=last.generation_tps if last else 0.0,
        finish_reason=finish_reason,
        seed=seed,
        error=error,
    )
