"""What the thread of an engine does: take in what its users want, plan a step, feed the model, draw, deliver.

Each request is fed what generation.generate would feed it, so that its tokens are those of Llama.generate: the model gives the
same bits in every company, and the Sequence draws with its own random numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np

from ..generation import count_common
from ..sampler import Draw, Drawer
from ..threads import Tuners
from .request import Task, wake
from .scheduler import Pace, Scheduler, Share

if TYPE_CHECKING:
    from ..generation import Floats
    from ..transformer import KVCache, Transformer
    from .drafts import Drafts
    from .prefixes import Prefixes

T = TypeVar("T")
CLOSED = "engine: it is closed"
LEAST_SHARED = 16  # positions that are worth waiting for, or copying


@dataclass(slots=True)
class Stats:
    """What an engine does and has done. Counts are those since it was made."""

    running: int = 0  # requests now
    waiting: int = 0
    tokens: int = 0  # drawn
    prompt_tokens: int = 0  # computed: those that were copied are not counted, those that were computed again are
    steps: int = 0
    rows: int = 0
    cache_bytes: int = 0  # of the caches of running requests, now
    shared_tokens: int = 0  # positions that were copied from the cache of a running request
    prefix_bytes: int = 0  # of texts that are remembered, now
    prefix_hits: int = 0  # requests that began like one of them
    prefix_tokens: int = 0  # positions that were copied from them
    drafts_proposed: int = 0  # guesses that were computed
    drafts_accepted: int = 0  # those that were right

    @property
    def rows_per_step(self) -> float:
        return self.rows / self.steps if self.steps else 0.0


# ---------------------------------------------------------------------------
# commands


class Close:
    """The command to end."""


class Cancel(NamedTuple):
    """The command to end one request."""

    task: Task


class Call(Generic[T]):
    """The command to call something in the thread, between two steps. wait() gives what comes of it."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._done = threading.Event()
        self._result: list[T] = []
        self._error: Exception = RuntimeError(CLOSED)

    def run(self) -> None:
        try:
            self._result.append(self._call())
        except Exception as error:
            self._error = error
        self.end()

    def end(self) -> None:
        self._done.set()

    def wait(self) -> T:
        """What the call returned; what it raised is raised."""
        self._done.wait()
        if not self._result:
            raise self._error
        return self._result[0]


Command: TypeAlias = "Task | Cancel | Call[Any] | type[Close]"


class Worker:
    """The requests of an engine, and the step that brings all of them on. All methods are for one thread.

    commands  what the users want: a Task is a request to begin. Its put() may be called from anywhere, also by a destructor
              in the middle of something else, which a lock would not allow
    """

    def __init__(
        self,
        transformer: Transformer,
        max_sequences: int,
        cache_bytes: int,
        prefixes: Prefixes | None = None,
        drafts: Drafts | None = None,
    ) -> None:
        self.commands: SimpleQueue[Command] = SimpleQueue()
        self.stats = Stats()
        self.closed = False  # from then on no command is looked at
        self._transformer = transformer
        self._scheduler: Scheduler[Task] = Scheduler(max_sequences, cache_bytes)
        self._pace = Pace(transformer.rows_per_step)
        self._drawer = Drawer(transformer.config.vocab_size)
        self._tuners = Tuners(transformer.n_threads, 1) if transformer.threads.adapts else None  # of draws
        self._logits: Floats = np.empty((0, transformer.config.vocab_size), np.float32)  # of a step; the next one overwrites it
        self._prefixes = prefixes
        self._drafts = drafts

    def run(self) -> None:
        """Work until a Close comes. Whatever happens, every request has an end then."""
        error: Exception | None = None
        try:
            while self.take_commands():
                if self._scheduler.running or self._scheduler.waiting:
                    self.step()
        except Exception as caught:  # none is known; nobody must wait for ever because of it
            error = caught
            raise
        finally:
            self.end(error)

    def end(self, error: Exception | None = None) -> None:
        """End all requests, those in the queue too. To be called again after a put() that may have come too late."""
        self.closed = True
        reason = "error" if error else "cancelled"
        for task in [*self._scheduler.running, *self._scheduler.waiting]:
            self._finish(task, reason, error)
        while (command := self._next_command(wait=False)) is not None:
            if isinstance(command, Task):
                command.finish(reason, error)
            elif isinstance(command, Call):
                command.end()

    def take_commands(self) -> bool:
        """Do what was asked for, and wait for more if there is nothing to work on. Whether to go on."""
        idle = not (self._scheduler.running or self._scheduler.waiting)
        while (command := self._next_command(wait=idle)) is not None:
            idle = False
            if isinstance(command, Task):
                self._scheduler.add(command)
                self._count()
            elif isinstance(command, Cancel):
                self._finish(command.task, "cancelled")
            elif isinstance(command, Call):
                command.run()
            else:
                return False
        return True

    def _next_command(self, wait: bool) -> Command | None:
        try:
            return self.commands.get(block=wait)
        except Empty:
            return None

    # ---- one step

    def step(self) -> None:
        """Bring each running request on, by a token or a part of its prompt."""
        self._make_room()
        self._admit()
        shares = self._share()
        if not shares:
            return
        start = perf_counter()
        n_guesses = self._guess(shares)
        try:
            logits = self._feed(shares)
        except MemoryError as error:  # the step has to become smaller
            self._finish(shares[-1].work, "error", error)
            return
        except Exception as error:  # none is known
            for share in shares:
                self._finish(share.work, "error", error)
            return
        self._draw(shares, logits)
        self._note(shares, n_guesses, perf_counter() - start)

    def _note(self, shares: list[Share[Task]], n_guesses: int, seconds: float) -> None:
        """Learn from a step that took so long."""
        n_rows = sum(share.n_rows for share in shares) + n_guesses
        n_read = sum(share.n_rows for share in shares if share.n_rows > 1)
        self._pace.note(n_rows, n_read, seconds)
        if self._drafts is not None and n_read == 0:
            self._drafts.times.add(n_rows, seconds)
        self.stats.steps += 1
        self.stats.rows += n_rows
        self.stats.prompt_tokens += n_read
        self._count()

    def _make_room(self) -> None:
        for task, grows in self._scheduler.make_room():
            if not grows:
                self._remember(task)
                task.drop_cache()
                continue
            assert task.cache is not None
            try:
                task.cache.reserve(task.n_ids)
            except MemoryError as error:
                self._finish(task, "error", error)

    def _admit(self) -> None:
        for task in self._scheduler.admit(self._has_to_wait):
            try:
                task.new_cache()
                self._copy_prefix(task)
            except Exception as error:  # no memory; or a warning about a damaged file, where warnings are errors
                self._finish(task, "error", error)
                continue
            if not task.pieces:
                task.cached_tokens = task.n_filled
                task.maker.begin()
                if self._drafts is not None and self._transformer.observer is None:  # which would see wrong guesses
                    task.drafter = self._drafts.drafter()

    def _share(self) -> list[Share[Task]]:
        """The step: large where all requests read their prompts, else so small that texts go on."""
        flows = any(task.pieces for task in self._scheduler.running)
        return self._scheduler.share(self._pace.rows if flows else self._transformer.rows_per_step)

    def _guess(self, shares: list[Share[Task]]) -> int:
        """Have the drafters guess what follows, where there is room. How many guesses there are in all."""
        n_rows, n_guesses = sum(share.n_rows for share in shares), 0
        if n_rows > len(shares):  # with a part of a prompt a step takes long enough
            return 0
        for task, _, most in shares:
            if task.drafter is None:
                continue
            if task.bytes_for(task.n_ids + most) > task.held:  # for a guess no cache grows
                most = 0
            draft = task.drafter.propose(task.sequence.ids, most, n_rows + n_guesses)
            if draft:
                task.sequence.propose(draft)
                n_guesses += len(task.sequence.draft)
        return n_guesses

    def _feed(self, shares: list[Share[Task]]) -> Floats:
        """The logits of all rows that are wanted, in the order of the shares."""
        parts: list[tuple[list[int], KVCache]] = []
        wanted: list[int] = []
        for task, n_rows, _ in shares:
            assert task.cache is not None
            start, stop = task.n_filled, task.n_filled + n_rows
            due = task.sequence.ids[start:stop]
            ready = stop == task.n_ids  # the prompt is read to its end
            parts.append((due + task.sequence.draft if ready else due, task.cache))
            wanted.append(task.sequence.wanted if ready else 0)
        n_logits = sum(wanted)
        if len(self._logits) < n_logits:
            self._logits = np.empty((n_logits, self._transformer.config.vocab_size), np.float32)
        return self._transformer.forward_batch(parts, logits=wanted, out=self._logits[:n_logits])

    def _draw(self, shares: list[Share[Task]], logits: Floats) -> None:
        """Draw the tokens of all requests that are ready, in one call as far as that is possible, and deliver them."""
        rows: dict[Task, Floats] = {}
        draws: dict[Task, Draw] = {}
        first = 0
        for task, _, _ in shares:
            if task.n_filled < task.n_ids:  # in the middle of its prompt
                continue
            own = logits[first : first + task.sequence.wanted]
            first += len(own)
            try:
                to_draw = task.sequence.to_draw(own)
            except Exception as error:
                self._finish(task, "error", error)
                continue
            rows[task] = own
            if to_draw is not None:
                draws[task] = Draw(task.sequence.sampler, to_draw, task.sequence.draft)
        tokens = dict(zip(draws, self._draw_together(list(draws.values())), strict=True))
        for task, own in rows.items():
            self._accept(task, own, tokens.get(task))
        wake(rows)  # at the end: who is woken needs the lock of the interpreter

    def _draw_together(self, draws: list[Draw]) -> list[list[int]]:
        """The tokens, on as many threads as are fastest now: where other programs use the cores, waiting for a thread takes
        longer than drawing."""
        if self._tuners is None or len(draws) < 2:
            return self._drawer.draw(draws, self._transformer.n_threads)
        drawn: list[list[int]] = []
        self._tuners.run(lambda n_threads: drawn.extend(self._drawer.draw(draws, n_threads)), len(draws), len(draws))
        return drawn

    def _accept(self, task: Task, rows: Floats, drawn: list[int] | None) -> None:
        n_guesses = len(task.sequence.draft)
        try:
            steps = task.sequence.accept(rows, drawn)
        except Exception as error:  # of this request alone: NaN, a mask that leaves no token
            self._finish(task, "error", error)
            return
        assert task.cache is not None
        task.cache.truncate(task.sequence.n_fed)  # without what was behind a wrong guess
        self.stats.tokens += len(steps)
        self.stats.drafts_proposed += n_guesses
        self.stats.drafts_accepted += len(steps) - 1
        task.deliver(steps)
        if task.sequence.finish_reason is not None:
            self._finish(task, task.sequence.finish_reason)

    def _finish(self, task: Task, reason: str, error: Exception | None = None) -> None:
        if task.finish_reason is None and error is None:
            self._remember(task)
            if self._drafts is not None and task.pieces:
                self._drafts.add(task.sequence.ids)
        self._scheduler.remove(task)
        self._count()
        task.finish(reason, error)

    def _count(self) -> None:
        stats = self.stats
        stats.running, stats.waiting = len(self._scheduler.running), len(self._scheduler.waiting)
        stats.cache_bytes = self._scheduler.used
        if self._prefixes is not None:
            stats.prefix_bytes, stats.prefix_hits = self._prefixes.bytes, self._prefixes.hits
            stats.prefix_tokens = self._prefixes.tokens_reused

    # ---- prefixes in common

    def _has_to_wait(self, task: Task) -> bool:
        """Whether a running request is computing a part of the prompt of this one, which it can then copy."""
        if task.waits_for is not None:
            other, n = task.waits_for
            if other.cache is not None and other.n_filled < n:
                return True
        task.waits_for = None
        ids = task.sequence.ids
        best = max(self._count_known(task), self._longest_filled(task)[1])
        for other in self._scheduler.running:
            n = min(count_common(other.sequence.ids, ids), len(ids) - 1)
            if n >= best + LEAST_SHARED and other.n_filled < n:
                best, task.waits_for = n, (other, n)
        return task.waits_for is not None

    def _longest_filled(self, task: Task) -> tuple[Task | None, int]:
        """The running request whose cache has most of the text of this one, and how many positions."""
        best, most = None, 0
        for other in self._scheduler.running:
            if other is not task and other.cache is not None:
                n = min(count_common(other.sequence.ids[: other.n_filled], task.sequence.ids), task.n_ids - 1)
                if n > most:
                    best, most = other, n
        return best, most

    def _count_known(self, task: Task) -> int:
        return 0 if self._prefixes is None else self._prefixes.find(task.sequence.ids)

    def _copy_prefix(self, task: Task) -> None:
        """Fill a new cache with what is known of its text: from the cache of a running request, or from those remembered."""
        assert task.cache is not None
        known = self._count_known(task)
        other, n = self._longest_filled(task)
        if other is not None and n >= max(LEAST_SHARED, known):
            assert other.cache is not None
            task.cache.copy_from(other.cache, n)
            self.stats.shared_tokens += n
        elif self._prefixes is not None and known:
            self._prefixes.fill(task.cache, task.sequence.ids)

    def _remember(self, task: Task) -> None:
        """Keep what was computed for a request that ends, or has to wait: of a chat all of it, else the prompt."""
        if self._prefixes is not None and task.cache is not None:
            n = task.n_filled if task.keeps_all else min(task.n_filled, task.sequence.n_prompt)
            with suppress(MemoryError):  # it is computed again where it is needed
                self._prefixes.add(task.sequence.ids[:n], task.cache)
