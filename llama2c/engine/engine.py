"""Engine: many requests at once, from any number of threads and event loops. One thread of its own makes the steps.

Nothing that other requests do changes a byte of a result: each is that of Llama.generate or Llama.chat.
"""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from ..errors import RoomError, check_int
from ..fingerprint import fingerprint as compute_fingerprint
from ..generation import Options
from ..limits import usable_memory
from ..requests import Completion, Piece, Prompt, check_options, is_conversation, new_request
from ..sampler import seed_of_sample
from .drafts import Drafts, drafts_pay
from .many import OnError, check_arguments, completions
from .prefixes import Prefixes, default_bytes
from .request import Request, Task
from .worker import CLOSED, Call, Cancel, Close, Stats, Worker

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..text.tokenizer import Tokenizer
    from ..transformer import Transformer

T = TypeVar("T")
MOST_SEQUENCES = 1024  # more is a typing error
CACHE_SHARE = 2  # caches may take one part in so many of the memory there is


class Model(Protocol):
    """What an engine uses of a Llama."""

    transformer: Transformer
    tokenizer: Tokenizer
    draft: Transformer | None


class Engine:
    """Works on many requests at once, which is several times as fast as one after the other.

    llama          a Llama. It may also be used directly at the same time
    max_sequences  requests that run at once; others wait. First come, first served
    cache_bytes    memory for the caches of running requests; None: half of what there is now. A request that never fits is
                   refused, one that does not fit now waits
    prefix_bytes   memory for what was computed for earlier requests, so that one that begins like them costs less; None: an
                   eighth of what there is now; 0: nothing is kept
    drafts         guess what follows where a text repeats itself or a recent one, and compute several tokens in one step; the
                   draft model of llama, if it has one, guesses while one request runs

    Use it from any number of threads. close() ends it, and so does the end of a `with` block, or of the last reference to it
    and to its requests. In a process made by fork() it cannot be used: make another one there.
    """

    def __init__(
        self,
        llama: Model,
        max_sequences: int = 32,
        cache_bytes: int | None = None,
        prefix_bytes: int | None = None,
        drafts: bool = True,
    ) -> None:
        self._transformer, self._tokenizer = llama.transformer, llama.tokenizer
        self.max_sequences: int = check_int("max_sequences", max_sequences, 1, MOST_SEQUENCES)
        self.cache_bytes: int = check_int(
            "cache_bytes", usable_memory() // CACHE_SHARE if cache_bytes is None else cache_bytes, 1
        )
        self.prefix_bytes: int = check_int("prefix_bytes", default_bytes() if prefix_bytes is None else prefix_bytes, 0)
        self._prefixes = Prefixes(self._transformer, self.prefix_bytes) if self.prefix_bytes else None
        guesses = Drafts(draft=llama.draft) if drafts and drafts_pay(self._transformer) else None
        self._arrivals = itertools.count()
        self._pid = os.getpid()
        self._worker = Worker(self._transformer, self.max_sequences, self.cache_bytes, self._prefixes, guesses)
        self._thread = threading.Thread(target=_run, args=(self._worker,), name="llama2c engine", daemon=True)
        self._thread.start()
        weakref.finalize(self, _tell_to_close, self._worker, self._pid).atexit = False

    def __repr__(self) -> str:
        return f"Engine({self.stats()})"

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, after the step that it is making. Requests that are not at their end are cancelled."""
        _tell_to_close(self._worker, self._pid)
        if os.getpid() == self._pid and threading.current_thread() is not self._thread:
            self._thread.join()

    def stats(self) -> Stats:
        """What it does now, and has done."""
        return replace(self._worker.stats)

    @overload
    def submit(
        self,
        prompt: Prompt,
        *,
        n: None = None,
        template_options: Mapping[str, Any] | None = None,
        now: date | None = None,
        **options: Unpack[Options],
    ) -> Request: ...

    @overload
    def submit(
        self,
        prompt: Prompt,
        *,
        n: int,
        template_options: Mapping[str, Any] | None = None,
        now: date | None = None,
        **options: Unpack[Options],
    ) -> list[Request]: ...

    def submit(
        self,
        prompt: Prompt,
        *,
        n: int | None = None,
        template_options: Mapping[str, Any] | None = None,
        now: date | None = None,
        **options: Unpack[Options],
    ) -> Request | list[Request]:
        """Begin a request, and return at once.

        prompt                 text, token ids, or the messages of a chat
        n                      a list of so many requests for the same prompt, which is computed once. With a seed, the first
                               has it, and number k has sampler.seed_of_sample(seed, k)
        template_options, now  as in Llama.chat, for messages
        options                those of Llama.stream

        Errors are those of Llama.stream and Llama.chat; RoomError: it needs more cache than the engine has; RuntimeError:
        the engine is closed, or was made before a fork.
        """
        self._check_process(os.getpid())
        if n is None:
            return self._submit(prompt, template_options, now, options)
        seed = options.get("seed")
        requests = []
        for k in range(check_int("n", n, 1)):
            own: Options = options if seed is None else {**options, "seed": seed_of_sample(seed, k)}
            requests.append(self._submit(prompt, template_options, now, own))
        return requests

    def save_prefixes(self, path: str | os.PathLike[str]) -> None:
        """Write what is remembered of earlier requests to a file, which another engine with the same model can load.

        The file is replaced when the new one is complete. OSError, one line: it cannot be written, or there is a file of
        another kind at that path.
        """
        fingerprint = compute_fingerprint(self._transformer, self._tokenizer)
        self.call(lambda: None if self._prefixes is None else self._prefixes.save(path, fingerprint))

    def load_prefixes(self, path: str | os.PathLike[str]) -> int:
        """Remember what such a file has, as far as there is room. Returns how many positions are known now.

        A file of another model, cut or damaged adds nothing (RuntimeWarning), and no file is as good as an empty one.
        """
        fingerprint = compute_fingerprint(self._transformer, self._tokenizer)
        return self.call(lambda: 0 if self._prefixes is None else self._prefixes.load(path, fingerprint))

    def call(self, call: Callable[[], T]) -> T:
        """Have the thread call something between two steps, and wait for what it returns. What it raises is raised.

        So work on the same model neither disturbs a step nor is disturbed by one. RuntimeError: the engine is closed.
        """
        self._check_process(os.getpid())
        command: Call[T] = Call(call)
        if not self._worker.closed:
            self._worker.commands.put(command)
        if self._worker.closed:
            command.end()
        return command.wait()

    async def stream(
        self,
        prompt: Prompt,
        *,
        template_options: Mapping[str, Any] | None = None,
        now: date | None = None,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of a request, for asyncio. It is cancelled when the loop over them ends. Arguments as in submit."""
        request = self.submit(prompt, template_options=template_options, now=now, **options)
        try:
            async for piece in request:
                yield piece
        finally:
            request.cancel()

    def generate_many(
        self, prompts: Iterable[Prompt | Mapping[str, Any]], *, on_error: OnError = "raise", **options: Unpack[Options]
    ) -> Iterator[Completion]:
        """As Llama.generate_many, with this engine."""
        check_arguments(prompts, on_error, options.get("seed"))
        check_options(self._transformer.config, self._tokenizer, options)
        return completions(self, prompts, on_error, options)

    def _submit(
        self, prompt: Prompt, template_options: Mapping[str, Any] | None, now: date | None, options: Options
    ) -> Request:
        sequence, maker = new_request(self._transformer.config, self._tokenizer, prompt, options, template_options, now)
        task = Task(self._transformer, sequence, next(self._arrivals), maker, keeps_all=is_conversation(prompt))
        needed = task.bytes_for(sequence.n_positions)
        if needed > self.cache_bytes:
            expected = f"expected to need at most {self.cache_bytes} bytes of cache"
            raise RoomError(f"request: {expected}, found {needed} for {sequence.n_positions} positions", "max_tokens")
        if sequence.finish_reason is not None:
            task.finish(sequence.finish_reason)
            return Request(self, task)
        if not self._worker.closed:
            self._worker.commands.put(task)
        if self._worker.closed:  # the thread may have ended before it saw the task
            task.finish("cancelled")
            raise RuntimeError(CLOSED)
        return Request(self, task)

    def _cancel(self, task: Task) -> None:
        if os.getpid() == self._pid:
            self._worker.commands.put(Cancel(task))

    def _check_process(self, pid: int) -> None:
        if pid != self._pid:
            raise RuntimeError("engine: it was made before a fork and has no thread in this process: make a new one here")


# ---------------------------------------------------------------------------
# the end of an engine

_workers: dict[threading.Thread, Worker] = {}  # those of the threads that run


def _run(worker: Worker) -> None:
    """The thread. It knows the Worker alone, so that an Engine that nobody uses is garbage."""
    _workers[threading.current_thread()] = worker
    try:
        worker.run()
    finally:
        del _workers[threading.current_thread()]


def _tell_to_close(worker: Worker, pid: int) -> None:
    """May be called by a destructor: it takes no lock and does not wait."""
    if os.getpid() == pid:
        worker.commands.put(Close)


@atexit.register
def _close_all() -> None:
    """Before the interpreter ends: a thread that is in the middle of a step would be in the way."""
    for thread, worker in list(_workers.items()):
        worker.commands.put(Close)
        thread.join()
