"""A request to an engine: a Task as the engine's thread sees it, and the Request that its user holds.

The thread appends pieces and in the end the reason; any number of threads and event loops may read. No lock is needed: a reader
that has nothing to read leaves what wakes it, and then looks again.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from .. import generation
from ..requests import Completion, Piece, PieceMaker, complete

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future

    from ..transformer import KVCache, Transformer
    from .engine import Engine

    Waiter: TypeAlias = "threading.Event | Future[None]"


class Task:
    """One request inside of the engine. Its thread alone changes it, but for those who wait, and `ends`."""

    __slots__ = (
        "_n_positions", "_transformer", "arrival", "cache", "cached_tokens", "done", "drafter", "ends", "error",
        "finish_reason", "held", "keeps_all", "maker", "pieces", "sequence", "wait_for_end", "wait_for_news", "waits_for",
    )  # fmt: skip

    def __init__(
        self, transformer: Transformer, sequence: generation.Sequence, arrival: int, maker: PieceMaker, keeps_all: bool
    ) -> None:
        self.sequence = sequence
        self.arrival = arrival
        self.maker = maker
        self.keeps_all = keeps_all  # the next request probably begins with all of its text: it is a chat
        self.cache: KVCache | None = None  # while it runs
        self.held = 0
        self.cached_tokens = 0  # of the prompt, when the request began to run: known from others, and not computed
        self.drafter: generation.Drafter | None = None
        self.waits_for: tuple[Task, int] | None = None  # a running task, and how many positions it has to have
        self.pieces: list[Piece] = []
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self.done = threading.Event()
        self.wait_for_news: deque[Waiter] = deque()
        self.wait_for_end: deque[Waiter] = deque()
        self.ends: deque[Callable[[], object]] = deque()  # what is called at the end
        self._transformer = transformer
        self._n_positions = sequence.n_positions

    # ---- what the scheduler asks

    @property
    def n_ids(self) -> int:
        return len(self.sequence.ids)

    @property
    def n_filled(self) -> int:
        return 0 if self.cache is None else self.cache.length

    def bytes_for(self, n_positions: int) -> int:
        return self._transformer.cache_bytes(min(n_positions, self._n_positions), self._n_positions)

    # ---- what the thread does

    def new_cache(self) -> None:
        """An empty cache for all ids. MemoryError: there is too little."""
        self.cache = self._transformer.new_cache(self._n_positions)
        self.cache.reserve(self.n_ids)

    def drop_cache(self) -> None:
        """Its ids are enough to compute everything again; the sampler goes on where it is."""
        self.cache = None
        self.sequence.n_fed = 0
        self.sequence.propose([])

    def deliver(self, steps: list[generation.Step]) -> None:
        """Who waits for it is woken by wake(), for all tasks of a step together."""
        self.pieces += [self.maker.make(step) for step in steps]

    def finish(self, reason: str, error: Exception | None = None) -> None:
        """The first end counts."""
        if self.finish_reason is None:
            self.error = error
            self.finish_reason = reason
            self.cache = self.waits_for = None
            self.tell_end()
            self.done.set()
            wake([self])

    def tell_end(self) -> None:
        """Make the calls of `ends`, each once, whichever thread comes first."""
        while self.ends:
            try:
                call = self.ends.popleft()
            except IndexError:  # another thread has taken it
                return
            call()


class Request:
    """A request that an engine works on: an iterator of Pieces, with `for` as well as with `async for`.

    result() and `await request` give the Completion. A request that nobody holds any more is cancelled.
    """

    def __init__(self, engine: Engine, task: Task) -> None:
        self._engine = engine  # an engine goes on while somebody holds a request
        self._task = task
        self._n_read = 0

    def __repr__(self) -> str:
        return f"Request({self.generation_tokens} tokens, finish_reason={self.finish_reason!r})"

    def __del__(self) -> None:
        if self._task.finish_reason is None:
            self._engine._cancel(self._task)

    @property
    def finish_reason(self) -> str | None:
        """None: it is not at its end. "stop", "length", "cancelled" or "error"."""
        return self._task.finish_reason

    @property
    def seed(self) -> int:
        """With it the same request gives the same tokens again."""
        return self._task.sequence.sampler.seed

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has."""
        return self._task.sequence.n_prompt

    @property
    def cached_tokens(self) -> int:
        """How many tokens of the prompt were known from other requests when this one began, so that they were not computed."""
        return self._task.cached_tokens

    @property
    def generation_tokens(self) -> int:
        """How many tokens it has made so far."""
        return len(self._task.pieces)

    def cancel(self) -> None:
        """End it, after the step that is being made now. What it has made so far stays. Does nothing at its end."""
        if self._task.finish_reason is None:
            self._engine._cancel(self._task)

    def when_done(self, call: Callable[[], object]) -> None:
        """Have call() called once at the end, by the thread of the engine, or now if that has come.

        It must take no time, and not wait for the request. Nothing is called after wait() has returned.
        """
        self._task.ends.append(call)
        if self._task.finish_reason is not None:
            self._task.tell_end()

    def result(self, timeout: float | None = None) -> Completion:
        """The whole Completion, when it is there. Waiting takes no piece from an iterator.

        An error of this request is raised. TimeoutError: it is not at its end after so many seconds.
        """
        return _raise_error(self.wait(timeout))

    def wait(self, timeout: float | None = None) -> Completion:
        """As result(), but an error of this request is not raised: it is Completion.error."""
        self._check_process()
        if not self._task.done.wait(timeout):
            raise TimeoutError(f"request: it is not at its end after {timeout} seconds")
        return self._completion()

    def __iter__(self) -> Request:
        return self

    def __next__(self) -> Piece:
        """The next piece. An error of this request is raised after the pieces before it."""
        self._check_process()
        while (piece := self._take()) is None:
            if self._ended():
                raise StopIteration
            event = threading.Event()
            if self._wait_for(event):
                event.wait()
        return piece

    def __aiter__(self) -> Request:
        return self

    async def __anext__(self) -> Piece:
        self._check_process()
        while (piece := self._take()) is None:
            if self._ended():
                raise StopAsyncIteration
            future = _future()
            if self._wait_for(future):
                await future
        return piece

    async def news(self) -> list[Piece]:
        """All pieces that no iterator has given yet, one at least; [] at the end.

        For a reader that may be slower than the model. An error of this request is raised after the pieces before it.
        """
        self._check_process()
        while self._n_read == len(self._task.pieces) and not self._ended():
            future = _future()
            if self._wait_for(future):
                await future
        first, self._n_read = self._n_read, len(self._task.pieces)
        return self._task.pieces[first : self._n_read]

    def __await__(self) -> Generator[Any, None, Completion]:
        return self._result().__await__()

    async def _result(self) -> Completion:
        """result() for asyncio."""
        self._check_process()
        while not self._task.done.is_set():
            future = _future()
            self._task.wait_for_end.append(future)
            if not self._task.done.is_set():
                await future
        return _raise_error(self._completion())

    def _take(self) -> Piece | None:
        pieces = self._task.pieces
        if self._n_read == len(pieces):
            return None
        self._n_read += 1
        return pieces[self._n_read - 1]

    def _ended(self) -> bool:
        """Whether there will be no piece any more; raises the error that has ended the request."""
        task = self._task
        if task.finish_reason is None or self._n_read < len(task.pieces):
            return False
        if task.error is not None:
            raise task.error
        return True

    def _wait_for(self, waiter: Waiter) -> bool:
        """Have it woken when there is news. Whether there is none yet."""
        self._task.wait_for_news.append(waiter)
        return self._n_read == len(self._task.pieces) and self._task.finish_reason is None

    def _completion(self) -> Completion:
        task = self._task
        assert task.finish_reason is not None
        return complete(task.pieces, task.sequence.n_prompt, self.seed, task.finish_reason, task.error)

    def _check_process(self) -> None:
        self._engine._check_process(os.getpid())


def _raise_error(completion: Completion) -> Completion:
    if completion.error is not None:
        raise completion.error
    return completion


# ---------------------------------------------------------------------------
# who waits


def wake(tasks: Iterable[Task]) -> None:
    """Wake who waits for news of these tasks, or for the end of those that have ended. Each event loop is woken once."""
    futures: dict[AbstractEventLoop, list[Future[None]]] = {}
    for task in tasks:
        for waiters in (task.wait_for_news, task.wait_for_end) if task.done.is_set() else (task.wait_for_news,):
            while waiters:
                waiter = waiters.popleft()
                if isinstance(waiter, threading.Event):
                    waiter.set()
                else:
                    futures.setdefault(waiter.get_loop(), []).append(waiter)
    for loop, those in futures.items():
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            loop.call_soon_threadsafe(_set, those)


def _future() -> Future[None]:
    """What the loop that runs here can await, and any thread can wake."""
    import asyncio  # slow; who comes here has it

    return asyncio.get_running_loop().create_future()


def _set(futures: list[Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
