"""Llama: text in, text out. Completions, streams of pieces, chat and scores: what most users need.

Every request has its own cache and its own Sequence, so requests never influence each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, overload

from . import generation
from .constraints import CONSTRAINTS, constrain
from .engine.drafts import Drafts
from .errors import ModelError
from .formats.checkpoint import Checkpoint
from .generation import Drafter, Options, Step, TopLogprobs, generate
from .locate import find_tokenizer, resolve
from .sampler import Sampler, SamplerOptions
from .scoring import Score, score_ids, scored_ids
from .text.chat import chat_ids
from .text.tokenizer import Tokenizer
from .transformer import KVCache, KVType, Transformer, count_weights

if TYPE_CHECKING:
    from typing_extensions import Unpack  # for type checkers alone; typing has it from Python 3.11

LEAST_WEIGHTS = 4_000_000  # a smaller model makes a token in so little time that looking for guesses takes some percent of it


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
    finish_reason: str  # "stop" (a stop token or string, a complete text) or "length" (max_tokens, the end of the context)
    seed: int  # with it the same request gives the same tokens again


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


def load(
    path: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    mmap: bool = True,
    kv: KVType = "float32",
    drafts: bool = True,
) -> Llama:
    """A model and its tokenizer from files.

    path       also the name of a downloaded model: "stories15M"; a file of that name comes first. None: the small model that
               comes with llama2c
    tokenizer  a path; None: the one in a GGUF file, else the one that find_tokenizer finds
    n_threads  None: OMP_NUM_THREADS, else what is fastest now, up to the number of cores this process may use
    mmap       False reads the checkpoint into memory instead of mapping it
    kv         the type of the numbers in a cache: "float32", or "float16" for half the memory, which rounds them
    drafts     False never guesses the next tokens from what a text repeats. Guesses change no text, only how long it takes
    ModelError or OSError, one line: a file is missing, broken or does not fit the other.
    """
    path = resolve(path)
    checkpoint = Checkpoint.open(path, mmap=mmap)
    return Llama(Transformer(checkpoint, n_threads, kv=kv), _open_tokenizer(path, checkpoint, tokenizer), drafts)


def _open_tokenizer(
    path: str | os.PathLike[str], checkpoint: Checkpoint, tokenizer: str | os.PathLike[str] | None
) -> Tokenizer:
    """The given tokenizer, else the one in a GGUF file, else the one beside the model `path`."""
    vocab_size = checkpoint.config.vocab_size
    if tokenizer is None:
        found = Tokenizer.of_metadata(checkpoint.path, checkpoint.metadata, vocab_size)
        if found is not None:
            return found
        tokenizer = find_tokenizer(path, "a tokenizer in the file" if checkpoint.metadata else "")
    return Tokenizer.open(tokenizer, vocab_size=vocab_size)


class Llama:
    """A transformer and its tokenizer. May be used from many threads at once.

    It has no close(), as it owns no file. The mapping of the weights is freed with the last array that uses it; unmapping it
    earlier would take the memory from under those arrays. copy, deepcopy and pickle open the files again.
    """

    def __init__(self, transformer: Transformer, tokenizer: Tokenizer, drafts: bool = True) -> None:
        expected, found = transformer.config.vocab_size, tokenizer.vocab_size
        if expected != found:
            raise ModelError(f"tokenizer: expected {expected} tokens as the model has, found {found}")
        self.transformer = transformer
        self.tokenizer = tokenizer
        self._drafts = Drafts(0) if drafts and count_weights(transformer.config) >= LEAST_WEIGHTS else None

    def __repr__(self) -> str:
        return f"Llama({self.transformer.config}, n_threads={self.transformer.n_threads})"

    def generate(self, prompt: str | bytes | Sequence[int], **options: Unpack[Options]) -> Completion:
        """The whole continuation of `prompt` at once. Options and errors are those of stream."""
        sequence = self.sequence(prompt, **options)
        return _completion(_pieces(self._steps(sequence), sequence.n_prompt), sequence)

    def stream(self, prompt: str | bytes | Sequence[int], **options: Unpack[Options]) -> Iterator[Piece]:
        """The continuation of `prompt`, a Piece for each token as it is made.

        prompt              text, encoded with BOS if the tokenizer adds one; or the token ids themselves
        max_tokens          at most so many tokens (default 256); None: up to the end of the context; 0: no piece at all
        temperature         default 1.0; 0 takes the likeliest token
        top_p               default 0.9; 0 or 1: off
        top_k               default 0: off
        min_p               default 0.0: off
        repetition_penalty  default 1.0: off
        seed                0 to 2**64 - 1; default None: random. The others are explained at Sampler
        stop                one or more strings; the text ends before the first that appears
        logprobs            k > 0: also the log-probability of the token and the k likeliest tokens, before bias and temperature
        logit_bias          {id: value}: is added to the logit of that id; -inf excludes it
        schema              a JSON schema as a dict: the text is JSON that is valid for it, unless max_tokens cuts it off
        regex, grammar      the text matches a regular expression, or a grammar; constraints.constrain explains all three

        The arguments are checked now: TypeError, or RequestError (also for a prompt that does not fit the context).
        The work starts with the first next(), and may be given up at any piece.
        """
        sequence = self.sequence(prompt, **options)
        return _pieces(self._steps(sequence), sequence.n_prompt)

    def sequence(self, prompt: str | bytes | Sequence[int], **options: Unpack[Options]) -> generation.Sequence:
        """The request itself, for generation.generate or your own loop to drive. Options and errors are those of stream."""
        unknown = next((name for name in options if name not in Options.__optional_keys__), None)
        if unknown is not None:
            raise TypeError(f"{unknown}: unknown option; there are {', '.join(sorted(Options.__optional_keys__))}")
        sampler, constraint, others = split_options(options)
        return generation.Sequence(
            self._ids(prompt),
            Sampler(**sampler),
            vocab_size=self.transformer.config.vocab_size,
            max_length=self.transformer.config.seq_len,
            stop_tokens=self.tokenizer.end_ids,
            text_stream=self.tokenizer.text_stream,
            constraint=constrain(self.tokenizer, **constraint),
            **others,
        )

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: Literal[False] = False,
        template_options: Mapping[str, Any] | None = None,
        now: date | None = None,
        **options: Unpack[Options],
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: Literal[True],
        template_options: Mapping[str, Any] | None = None,
        now: date | None = None,
        **options: Unpack[Options],
    ) -> Iterator[Piece]: ...

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: bool,
        template_options: Mapping[str, Any] | None = None,
        now: date | None = None,
        **options: Unpack[Options],
    ) -> Completion | Iterator[Piece]: ...

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: bool = False,
        template_options: Mapping[str, Any] | None = None,
        now: date | None = None,
        **options: Unpack[Options],
    ) -> Completion | Iterator[Piece]:
        """The reply of the model to a conversation, by the chat template of the tokenizer, else in the form of Llama 2.

        messages          [{"role": "user", "content": "Hello"}]. In the form of Llama 2 there may be one "system" first, then
                          "user" and "assistant" in turn, a "user" the last, and the reply comes without the one space that it
                          begins with. A template decides itself which roles it takes, and what else a message may have.
        stream            True: an iterator of pieces
        template_options  more names for the template: {"tools": [...]}, {"enable_thinking": False}
        now               the date that the template sees; None: today
        options           those of stream

        Warns (RuntimeWarning) if a template was looked for and there is none. RequestError: the messages or template_options
        are not as they must be; ModelError: the template is broken or refuses them; OSError: Jinja2 is not installed.
        """
        sequence = self.sequence(chat_ids(self.tokenizer, messages, template_options, now), **options)
        pieces = reply_pieces(self, sequence, self.transformer.new_cache(sequence.n_positions))
        return pieces if stream else _completion(pieces, sequence)

    def score(self, text: str | bytes, *, stride: int | None = None) -> Score:
        """How likely the model finds `text`, token by token: perplexity, bits per byte.

        A text longer than the context is read in windows of seq_len tokens that begin `stride` (1 to seq_len; None: half of
        seq_len) apart. Each token is scored once: token i, where BOS is token 0, given the tokens from s to i - 1, with
        s = stride * max(0, ceil((i - seq_len) / stride)). So it is given all before it while i <= seq_len, and later at
        least seq_len - stride + 1; a smaller stride gives more and takes longer. Where the tokenizer puts no BOS before a
        text, token 0 is its bos_id all the same, or its eos_id if it has none.
        RequestError: an empty text, a lone surrogate, a stride out of range; TypeError: text or stride are of another type.
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

    def _steps(self, sequence: generation.Sequence) -> Iterator[Step]:
        """The steps of a sequence on a cache of its own, which is made now."""
        return generate(self.transformer, self.transformer.new_cache(sequence.n_positions), sequence, self.drafter())

    def drafter(self) -> Drafter | None:
        """Guesses the tokens of one request. None: guesses are off, the model is tiny, or an observer would see wrong ones."""
        return None if self._drafts is None or self.transformer.observer is not None else self._drafts.drafter()


def split_options(options: Options) -> tuple[Any, Any, Any]:
    """The options of the Sampler, of the constraint, and the others, which are those of a Sequence."""
    sampler: dict[str, Any] = {}
    constraint: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in options.items():
        group = sampler if name in SamplerOptions.__optional_keys__ else constraint if name in CONSTRAINTS else others
        group[name] = value
    return sampler, constraint, others


def reply_pieces(llama: Llama, sequence: generation.Sequence, cache: KVCache) -> Iterator[Piece]:
    """The reply to a conversation that chat_ids has made the prompt of `sequence`; `cache` holds its first n_fed ids.

    So a chat that keeps its cache gets the replies of Llama.chat.
    """
    pieces = _pieces(generate(llama.transformer, cache, sequence, llama.drafter()), sequence.n_prompt)
    return _without_first_space(pieces) if llama.tokenizer.chat_template is None else pieces


def _pieces(steps: Iterator[Step], prompt_tokens: int) -> Iterator[Piece]:
    """The steps with counts and speeds."""
    first = start = perf_counter()
    prompt_tps = generation_tps = 0.0
    for generation_tokens, (token, text, logprob, top_logprobs, finish_reason) in enumerate(steps, 1):
        now = perf_counter()
        if generation_tokens == 1:
            first = now
            prompt_tps = prompt_tokens / max(now - start, 1e-9)  # a coarse clock may not have moved
        else:
            generation_tps = (generation_tokens - 1) / max(now - first, 1e-9)
        yield Piece(
            text, token, logprob, top_logprobs,
            prompt_tokens, prompt_tps, generation_tokens, generation_tps, finish_reason,
        )  # fmt: skip


def _without_first_space(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces of a reply in the form of Llama 2, without the one space that it begins with."""
    started = False
    for piece in pieces:
        if not started and piece.text:
            started = True
            piece = replace(piece, text=piece.text.removeprefix(" "))
        yield piece


def _completion(pieces: Iterator[Piece], sequence: generation.Sequence) -> Completion:
    made = list(pieces)
    last = made[-1] if made else None  # max_tokens=0 makes none
    logprobs = tuple(piece.logprob for piece in made if piece.logprob is not None)
    return Completion(
        text="".join([piece.text for piece in made]),
        tokens=tuple([piece.token for piece in made]),
        logprobs=logprobs or None,
        top_logprobs=tuple([piece.top_logprobs for piece in made]) if logprobs else None,
        prompt_tokens=sequence.n_prompt,
        prompt_tps=last.prompt_tps if last else 0.0,
        generation_tokens=len(made),
        generation_tps=last.generation_tps if last else 0.0,
        finish_reason=sequence.finish_reason or "length",
        seed=sequence.sampler.seed,
    )
