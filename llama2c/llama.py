"""Llama: text in, text out. Completions, streams of pieces, chat and scores: what most users need.

Every request has its own cache and its own Sequence, so requests never influence each other.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from typing import TYPE_CHECKING, Any, Literal, overload

from . import generation
from .engine.drafts import Drafts, drafts_pay
from .errors import ModelError, check_int
from .formats.checkpoint import Checkpoint
from .generation import Drafter, Options, Step, generate
from .locate import find_tokenizer, resolve
from .requests import Completion, Piece, PieceMaker, Prompt, check_options, complete, new_sequence
from .text.tokenizer import Tokenizer
from .transformer import KVCache, KVType, Transformer

if TYPE_CHECKING:
    from typing_extensions import Unpack  # for type checkers alone; typing has it from Python 3.11

    from .engine.prefixes import Prefixes
    from .scoring import Score


def load(
    path: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    mmap: bool = True,
    kv: KVType = "float32",
    drafts: bool = True,
    draft: str | os.PathLike[str] | None = None,
) -> Llama:
    """A model and its tokenizer from files.

    path       also the name of a downloaded model: "stories15M"; a file of that name comes first. None: the small model that
               comes with llama2c
    tokenizer  a path; None: the one in a GGUF file, else the one that find_tokenizer finds
    n_threads  None: OMP_NUM_THREADS, else what is fastest now, up to the number of cores this process may use
    mmap       False reads the checkpoint into memory instead of mapping it
    kv         the type of the numbers in a cache: "float32", or "float16" for half the memory, which rounds them
    drafts     False never guesses the next tokens from what a text repeats. Guesses change no text, only how long it takes
    draft      a much smaller model with the same tokenizer, which guesses the next tokens, too
    ModelError or OSError, one line: a file is missing, broken or does not fit the other.
    """
    path = resolve(path)
    checkpoint = Checkpoint.open(path, mmap=mmap)
    found = _open_tokenizer(path, checkpoint, tokenizer)
    small = None if draft is None else _open_draft(resolve(draft), found, n_threads, mmap)
    return Llama(Transformer(checkpoint, n_threads, kv=kv), found, drafts, small)


def _open_draft(path: str | os.PathLike[str], tokenizer: Tokenizer, n_threads: int | None, mmap: bool) -> Transformer:
    """A model that has the tokens of this tokenizer, as far as can be seen: it may come without one of its own."""
    checkpoint = Checkpoint.open(path, mmap=mmap)
    same = checkpoint.config.vocab_size == tokenizer.vocab_size
    with suppress(OSError, ModelError):
        same = same and _open_tokenizer(path, checkpoint, None).has_tokens_of(tokenizer)
    if not same:
        raise ModelError(f"{checkpoint.path}: expected a draft model with the tokens of the large one, found other tokens")
    return Transformer(checkpoint, n_threads)


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

    chat_bytes  an attribute: the memory for what chat() remembers of conversations. None: up to an eighth of what there is at
                the first one; 0: nothing is kept. Set it before the first

    It has no close(), as it owns no file. The mapping of the weights is freed with the last array that uses it; unmapping it
    earlier would take the memory from under those arrays. copy, deepcopy and pickle open the files again.
    """

    def __init__(
        self, transformer: Transformer, tokenizer: Tokenizer, drafts: bool = True, draft: Transformer | None = None
    ) -> None:
        expected, found = transformer.config.vocab_size, tokenizer.vocab_size
        if expected != found:
            raise ModelError(f"tokenizer: expected {expected} tokens as the model has, found {found}")
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.draft: Transformer | None = draft
        self._drafts = Drafts(0, draft) if drafts and drafts_pay(transformer) else None
        self._fingerprint: str | None = None
        self.chat_bytes: int | None = None
        self._chats: Prefixes | None = None
        self._chat_lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Llama], tuple[Transformer, Tokenizer, bool, Transformer | None]]:
        return type(self), (self.transformer, self.tokenizer, self._drafts is not None, self.draft)

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits. Models with the same give the same bytes for the same request, seed and date.

        The order of all sums, fused or generic arithmetic, the type of the cache, the shape, the weights, the tokenizer and the
        chat template decide it. The first time, all weights are read, 10 GB in a few seconds; the result is remembered in the
        cache folder until the file changes.
        """
        if self._fingerprint is None:
            from .fingerprint import fingerprint  # a story needs neither this nor what it imports

            self._fingerprint = fingerprint(self.transformer, self.tokenizer)
        return self._fingerprint

    def __repr__(self) -> str:
        return f"Llama({self.transformer.config}, n_threads={self.transformer.n_threads})"

    def generate(self, prompt: str | bytes | Sequence[int], **options: Unpack[Options]) -> Completion:
        """The whole continuation of `prompt` at once. Options and errors are those of stream."""
        sequence = self.sequence(prompt, **options)
        return _completion(self._pieces(sequence), sequence)

    def stream(self, prompt: str | bytes | Sequence[int], **options: Unpack[Options]) -> Iterator[Piece]:
        """The continuation of `prompt`, a Piece for each token as it is made.

        prompt              text, encoded with BOS if the tokenizer adds one; or the token ids themselves
        max_tokens          at most so many tokens (default 256); None: up to the end of the context; 0: no piece at all
        temperature         default 1.0; 0 takes the likeliest token
        top_p               default 0.9; 0 or 1: off
        top_k               default 0: off
        min_p               default 0.0: off
        repetition_penalty  default 1.0: off
        frequency_penalty, presence_penalty  default 0.0: off
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
        return self._pieces(sequence)

    def sequence(self, prompt: str | bytes | Sequence[int], **options: Unpack[Options]) -> generation.Sequence:
        """The request itself, for generation.generate or your own loop to drive. Options and errors are those of stream."""
        return new_sequence(self.transformer.config, self.tokenizer, prompt, options)

    def generate_many(
        self,
        prompts: Iterable[Prompt | Mapping[str, Any]],
        *,
        on_error: Literal["raise", "return"] = "raise",
        max_sequences: int = 32,
        cache_bytes: int | None = None,
        prefix_bytes: int | None = None,
        **options: Unpack[Options],
    ) -> Iterator[Completion]:
        """The Completions of many prompts, in their order, as they are ready: those of generate and chat, but several times as
        fast, because an Engine works on many at once.

        prompts    any iterable, a generator over a million lines too: it is read a little ahead. A prompt is a text, ids, the
                   messages of a chat, or a dict with options of its own: {"prompt": ..., "max_tokens": 5}, {"messages": ...,
                   "now": ...}
        on_error   "raise": an error of a prompt is raised in its place; "return": it is the `error` of a Completion with the
                   finish_reason "error", and the others go on
        max_sequences, cache_bytes, prefix_bytes  as in Engine
        options    those of stream, for all prompts. With a seed, prompt i has the seed (seed + i) mod 2**64
        """
        from .engine.engine import Engine
        from .engine.many import check_arguments

        check_arguments(prompts, on_error, options.get("seed"))
        check_options(self.transformer.config, self.tokenizer, options)

        def completions() -> Iterator[Completion]:
            with Engine(self, max_sequences, cache_bytes, prefix_bytes, drafts=self._drafts is not None) as engine:
                yield from engine.generate_many(prompts, on_error=on_error, **options)

        return completions()

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

        A reply to a longer conversation does not compute the earlier turns again, unless they are forgotten: the last few
        conversations are kept, in up to an eighth of the memory there is.

        Warns (RuntimeWarning) if a template was looked for and there is none. RequestError: the messages or template_options
        are not as they must be; ModelError: the template is broken or refuses them; OSError: Jinja2 is not installed.
        """
        from .text.chat import chat_ids  # a story needs neither this nor scoring

        sequence = self.sequence(chat_ids(self.tokenizer, messages, template_options, now), **options)
        pieces = self._reply(sequence, self.transformer.new_cache(sequence.n_positions))
        return pieces if stream else _completion(pieces, sequence)

    def score(self, text: str | bytes | Sequence[int], *, context_length: int = 1, stride: int | None = None) -> Score:
        """How likely the model finds `text`, token by token: perplexity, bits per byte.

        text            a text, which is scored after BOS; or token ids as they are, nothing is put before them
        context_length  how many of the first tokens are context, which is read and not scored: at least 1, and the first of
                        a text is BOS
        stride          a text longer than the context is read in windows of seq_len tokens that begin so far apart, 1 to
                        seq_len; None: half of seq_len

        Each token is scored once: token i, counted from 0, given the tokens from s to i - 1, with
        s = stride * max(0, ceil((i - seq_len) / stride)). So it is given all before it while i <= seq_len, and later at
        least seq_len - stride + 1; a smaller stride gives more and takes longer. Where the tokenizer puts no BOS before a
        text, token 0 is its bos_id all the same, or its eos_id if it has none.
        RequestError: an empty text, fewer than two ids, a lone surrogate, ids, a context_length or a stride out of range;
        TypeError: an argument is of another type.
        """
        from .scoring import check_ids, score_ids, scored_ids

        context_length = check_int("context_length", context_length, 1)
        n_bytes = None
        if isinstance(text, (str, bytes)):
            ids = scored_ids(self.tokenizer, text)
            if context_length == 1:
                n_bytes = len(text.encode() if isinstance(text, str) else text)
        else:
            ids = check_ids(text, self.tokenizer.vocab_size)
        if n_bytes is None:
            n_bytes = sum(len(self.tokenizer.piece(token)) for token in ids[context_length:])
        return score_ids(self.transformer, ids, n_bytes, stride, context_length)

    def _pieces(self, sequence: generation.Sequence) -> Iterator[Piece]:
        """The pieces of a sequence on a cache of its own, which is made now."""
        steps = generate(self.transformer, self.transformer.new_cache(sequence.n_positions), sequence, self.drafter())
        return _pieces(steps, PieceMaker(sequence.n_prompt))

    def _reply(self, sequence: generation.Sequence, cache: KVCache) -> Iterator[Piece]:
        """The pieces of a reply. What earlier conversations have in common with this one is not computed again."""
        with self._remembered() as known:
            if known is not None:
                sequence.n_fed = known.fill(cache, sequence.ids)
        try:
            yield from reply_pieces(self, sequence, cache)
        finally:
            with self._remembered() as known:
                if known is not None:
                    known.add(sequence.ids[: min(cache.length, sequence.n_fed)], cache)

    @contextmanager
    def _remembered(self) -> Iterator[Prefixes | None]:
        """What was computed for conversations; None: another thread uses it, or an observer wants to see every token computed.

        No thread waits here, so that nothing hangs after a fork, or where a garbage collector ends a reply. Without memory
        for a copy, the positions are computed.
        """
        if self.transformer.observer is not None or not self._chat_lock.acquire(blocking=False):
            yield None
            return
        try:
            if self._chats is None:
                from .engine.prefixes import Prefixes, default_bytes  # a story needs neither this nor what it imports

                self._chats = Prefixes(self.transformer, default_bytes() if self.chat_bytes is None else self.chat_bytes)
            with suppress(MemoryError):
                yield self._chats
        finally:
            self._chat_lock.release()

    def drafter(self) -> Drafter | None:
        """Guesses the tokens of one request. None: guesses are off, the model is tiny, or an observer would see wrong ones."""
        return None if self._drafts is None or self.transformer.observer is not None else self._drafts.drafter()


def reply_pieces(llama: Llama, sequence: generation.Sequence, cache: KVCache) -> Iterator[Piece]:
    """The reply to a conversation that chat_ids has made the prompt of `sequence`; `cache` holds its first n_fed ids.

    So a chat that keeps its cache gets the replies of Llama.chat.
    """
    maker = PieceMaker(sequence.n_prompt, without_first_space=llama.tokenizer.chat_template is None)
    return _pieces(generate(llama.transformer, cache, sequence, llama.drafter()), maker)


def _pieces(steps: Iterator[Step], maker: PieceMaker) -> Iterator[Piece]:
    maker.begin()
    for step in steps:
        yield maker.make(step)


def _completion(pieces: Iterator[Piece], sequence: generation.Sequence) -> Completion:
    return complete(list(pieces), sequence.n_prompt, sequence.sampler.seed, sequence.finish_reason or "length")
