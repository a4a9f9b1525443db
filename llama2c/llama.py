"""Llama: text in, text out. Completions, streams of pieces, chat, stop strings, scores; the door most users take.

Every request has a cache and a sampler of its own, so requests never influence each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, overload

from . import generation
from .errors import check_int
from .formats.checkpoint import Checkpoint
from .locate import find_tokenizer, resolve
from .sampler import Sampler
from .scoring import Score, score_ids, scored_ids
from .text.chat import chat_ids
from .text.stops import StopStrings
from .text.tokenizer import TextStream, Tokenizer
from .transformer import Transformer

if TYPE_CHECKING:
    from typing_extensions import Unpack  # for type checkers alone; typing has it from Python 3.11

TopLogprobs: TypeAlias = tuple[tuple[int, float], ...]  # (id, logprob), the likeliest first


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
    finish_reason: str  # "stop" (a stop token or string) or "length" (max_tokens or the end of the context)


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of a stream. The texts of all pieces, joined, are the text of the Completion.

    `text` may be empty: of a stop token, of a part of a character, of what may yet become a stop string.
    Counts and speeds are those so far (Completion says of what); only the last piece has a finish_reason.
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


class Options(TypedDict, total=False):
    """The options of a request; meanings and defaults are those of Llama.stream."""

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    logprobs: int


# ---------------------------------------------------------------------------
# loading

def load(
    path: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    mmap: bool = True,
) -> Llama:
    """A model and its tokenizer from files.

    path       also the name of a downloaded model: "stories15M"; a file of that name comes first. None: the small model that
               comes with llama2c
    tokenizer  a path; None: as find_tokenizer finds it
    n_threads  None: OMP_NUM_THREADS, else the cores this process may use, fewer for tiny models
    mmap       False reads the checkpoint into memory instead of mapping it
    ValueError or OSError, one line, if a file is missing, broken or does not fit the other.
    """
    path = resolve(path)
    checkpoint = Checkpoint.open(path, mmap=mmap)
    tokenizer_path = find_tokenizer(path) if tokenizer is None else tokenizer
    return Llama(
        Transformer(checkpoint, n_threads=n_threads),
        Tokenizer.open(tokenizer_path, vocab_size=checkpoint.config.vocab_size),
    )


# ---------------------------------------------------------------------------
# the model


class Llama:
    """A transformer and its tokenizer. May be used from many threads at once.

    It has no close(): it owns no file. The weights' mapping is freed with the last array that uses it, and
    unmapping it earlier would pull the memory from under those arrays.
    """

    def __init__(self, transformer: Transformer, tokenizer: Tokenizer) -> None:
        expected, found = transformer.config.vocab_size, tokenizer.vocab_size
        if expected != found:
            raise ValueError(f"tokenizer: expected {expected} tokens as the model has, found {found}")
        self.transformer = transformer
        self.tokenizer = tokenizer

    def __repr__(self) -> str:
        return f"Llama({self.transformer.config}, n_threads={self.transformer.n_threads})"

    def generate(
        self,
        prompt: str | bytes | Sequence[int],
        *,
        max_tokens: int | None = 256,
        temperature: float = 1.0,
        top_p: float = 0.9,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        logprobs: int = 0,
    ) -> Completion:
        """The whole continuation of `prompt` at once. Arguments and errors: those of stream."""
        ids = self._ids(prompt)
        pieces = self.stream(
            ids,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
            logprobs=logprobs,
        )
        return _completion(pieces, len(ids))

    def stream(
        self,
        prompt: str | bytes | Sequence[int],
        *,
        max_tokens: int | None = 256,
        temperature: float = 1.0,
        top_p: float = 0.9,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        logprobs: int = 0,
    ) -> Iterator[Piece]:
        """The continuation of `prompt`, a Piece for each token as it is made.

        prompt      text, encoded with BOS if the tokenizer adds one; or the token ids themselves
        max_tokens  at most so many tokens; None: up to the end of the context; 0: no piece at all
        temperature, top_p, top_k, min_p, repetition_penalty, seed   see Sampler
        stop        one or more strings; the text ends before the first that appears
        logprobs    k > 0: also the token's log-probability and the k likeliest tokens, before temperature

        Arguments are checked now: TypeError, or ValueError (also for a prompt that does not fit the context).
        The work starts with the first next(), and may be given up at any piece.
        """
        sampler = Sampler(temperature, top_p, top_k, min_p, repetition_penalty, seed)
        stop_strings = StopStrings(stop)
        ids = self._ids(prompt)
        seq_len = self.transformer.config.seq_len
        if not 0 < len(ids) <= seq_len:
            raise ValueError(f"prompt: expected 1 to {seq_len} tokens (the context), found {len(ids)}")
        length = seq_len
        if max_tokens is not None:
            length = min(seq_len, len(ids) + check_int("max_tokens", max_tokens, 0))
        cache = self.transformer.new_cache(length)
        stop_tokens = self.tokenizer.end_ids
        steps = generation.generate(
            self.transformer, cache, ids, sampler, stop_tokens=stop_tokens, max_tokens=max_tokens, logprobs=logprobs
        )
        text_stream = self.tokenizer.text_stream(previous=ids[-1])
        return _pieces(steps, len(ids), text_stream, stop_strings)

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: Literal[False] = False,
        **options: Unpack[Options],
    ) -> Completion: ...

    @overload
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[True], **options: Unpack[Options]
    ) -> Iterator[Piece]: ...

    @overload
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: bool, **options: Unpack[Options]
    ) -> Completion | Iterator[Piece]: ...

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: bool = False, **options: Unpack[Options]
    ) -> Completion | Iterator[Piece]:
        """The model's reply to a conversation, by the tokenizer's chat template, else by that of Llama 2.

        messages  [{"role": "user", "content": "Hello"}]. With the template of Llama 2: perhaps one "system" first, then "user"
                  and "assistant" in turn, a "user" the last, and the reply comes without the one space that it begins with.
                  Another template says itself which roles it takes, and what else than content a message may hold.
        stream    True: an iterator of pieces
        options   those of stream

        ValueError: the messages are others, or the template is broken; OSError: it needs Jinja2, which is missing.
        """
        ids = chat_ids(self.tokenizer, messages)
        pieces = self.stream(ids, **options)
        if self.tokenizer.chat_template is None:
            pieces = _without_first_space(pieces)
        return pieces if stream else _completion(pieces, len(ids))

    def score(self, text: str | bytes, *, stride: int | None = None) -> Score:
        """How likely the model finds `text`, token by token: perplexity, bits per byte.

        A text longer than the context is read in windows of seq_len tokens that begin `stride` (1 to seq_len; None: half of
        seq_len) apart. Each token is scored once: token i, where BOS is token 0, given the tokens from s to i - 1, with
        s = stride * max(0, ceil((i - seq_len) / stride)). So it is given all before it while i <= seq_len, and later at
        least seq_len - stride + 1; a smaller stride gives more and takes longer. Where the tokenizer puts no BOS before a
        text, token 0 is its bos_id all the same, or its eos_id if it has none.
        ValueError: an empty text, a lone surrogate, a stride out of range; TypeError: no text, a stride that is no integer.
        """
        ids = scored_ids(self.tokenizer, text)
        n_bytes = len(text.encode() if isinstance(text, str) else text)
        return score_ids(self.transformer, ids, n_bytes, stride)

    def _ids(self, prompt: str | bytes | Sequence[int]) -> list[int]:
        if isinstance(prompt, (str, bytes)):
            return self.tokenizer.encode(prompt)
        if not isinstance(prompt, Iterable):
            raise TypeError(f"prompt: expected str, bytes or token ids, found {type(prompt).__name__}")
        return list(prompt)


def _pieces(
    steps: Iterator[generation.Step], prompt_tokens: int, text_stream: TextStream, stop_strings: StopStrings
) -> Iterator[Piece]:
    """Decode the steps, look for stop strings, keep the time."""
    feed = text_stream.feed
    first = start = perf_counter()
    prompt_tps = generation_tps = 0.0
    for generation_tokens, (token, logprob, top_logprobs, finish_reason) in enumerate(steps, 1):
        now = perf_counter()
        if generation_tokens == 1:
            first = now
            prompt_tps = prompt_tokens / max(now - start, 1e-9)  # a coarse clock may not have moved
        else:
            generation_tps = (generation_tokens - 1) / max(now - first, 1e-9)

        text = feed(token)
        if finish_reason is not None:
            text += text_stream.flush()
        if stop_strings.strings:
            text = stop_strings.feed(text)
            if stop_strings.found:
                finish_reason = "stop"
            elif finish_reason is not None:
                text += stop_strings.flush()
        yield Piece(
            text, token, logprob, top_logprobs,
            prompt_tokens, prompt_tps, generation_tokens, generation_tps, finish_reason,
        )  # fmt: skip
        if finish_reason is not None:
            return


def _without_first_space(pieces: Iterator[Piece]) -> Iterator[Piece]:
    started = False
    for piece in pieces:
        if not started and piece.text:
            started = True
            piece = replace(piece, text=piece.text.removeprefix(" "))
        yield piece


def _completion(pieces: Iterator[Piece], prompt_tokens: int) -> Completion:
    made = list(pieces)
    last = made[-1] if made else None  # max_tokens=0 makes none
    logprobs = tuple(piece.logprob for piece in made if piece.logprob is not None)
    return Completion(
        text="".join([piece.text for piece in made]),
        tokens=tuple([piece.token for piece in made]),
        logprobs=logprobs or None,
        top_logprobs=tuple([piece.top_logprobs for piece in made]) if logprobs else None,
        prompt_tokens=prompt_tokens,
        prompt_tps=last.prompt_tps if last else 0.0,
        generation_tokens=len(made),
        generation_tps=last.generation_tps if last else 0.0,
        finish_reason=(last and last.finish_reason) or "length",
    )
