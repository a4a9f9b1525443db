"""The transformer: weights, the caches of sequences, and the steps that turn token ids into logits.

A step is a list of rows, each one token of one sequence; prefill, decode and batches differ only in which rows they bring.
This module owns shapes, buffers and threads; the arithmetic is in _kernels, and nothing here knows text or sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import partial
from operator import index
from typing import Any, Literal, NoReturn, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from . import _kernels
from ._kernels import KEY_BLOCK, MAX_WORK, count_layer_weights
from .config import Config, RopeScaling
from .errors import RequestError, check_int
from .formats.checkpoint import Checkpoint
from .threads import SMALL_MODEL, Threads, Tuners, decide_n_threads

Floats: TypeAlias = "NDArray[np.float32]"
CacheArray: TypeAlias = "NDArray[np.float32] | NDArray[np.float16]"
# Some positions of a block of a cache: keys (n_layers, n_kv_heads, head_size, n), values (n_layers, n_kv_heads, n, head_size)
Positions: TypeAlias = "tuple[CacheArray, CacheArray]"
KVType: TypeAlias = Literal["float32", "float16"]
Tokens: TypeAlias = "Sequence[int] | NDArray[np.integer]"
Part: TypeAlias = "tuple[list[int], int, _kernels.KVBuffer]"  # ids, the position of the first, where keys and values go
PlannedStep: TypeAlias = "tuple[list[Part], list[int], Sequence[int]]"  # parts, the number of the sequence of each, logit rows

MAX_ROWS = 256  # rows of one step: enough that reading the weights is a small part of the work
MIN_ROWS = 32  # with fewer rows, reading the weights takes longer than computing
FIRST_BYTES = 1 << 24  # of a new cache, unless fewer are enough
READING = 16  # reading a weight from memory costs about what using it so many times does


class KVCache:
    """The keys and values of one sequence, and how many of its positions are filled. For one step at a time.

    It begins small and grows as positions are filled, up to max_length (cache_capacity says how). A cache cannot be pickled.
    """

    __slots__ = ("_buffer", "_first", "kv", "max_length")

    def __init__(self, config: Config, max_length: int, kv: KVType = "float32") -> None:
        self.max_length: int = max_length
        self.kv: KVType = kv  # the type of the stored numbers
        self._first = first_capacity(bytes_per_position(config, kv))
        n_positions = cache_capacity(1, max_length, self._first)
        self._buffer = _kernels.KVBuffer(*self._arrays((config.n_layers, config.n_kv_heads, n_positions, config.head_size)))

    def _arrays(self, shape: tuple[int, int, int, int]) -> tuple[CacheArray, CacheArray]:
        """Keys and values for (n_layers, n_kv_heads, n_positions, head_size). Their memory is provided as it is written."""
        n_layers, n_kv_heads, n_positions, head_size = shape
        n_blocks = -(-n_positions // KEY_BLOCK)
        try:
            return (
                np.empty((n_layers, n_kv_heads, n_blocks, head_size, KEY_BLOCK), self.kv),
                np.empty((n_layers, n_kv_heads, n_blocks * KEY_BLOCK, head_size), self.kv),
            )
        except (MemoryError, ValueError):
            size = 2 * np.dtype(self.kv).itemsize * math.prod(shape)
            message = f"cache: {n_positions} positions take {size} bytes, more than there is room for"
            raise MemoryError(message) from None

    def _make_room(self, n_positions: int) -> None:
        """Grow so that n_positions fit. Only while the buffer is claimed."""
        own = self._buffer
        if n_positions > own.capacity:
            n_layers, n_kv_heads, _, head_size = own.values.shape
            wanted = cache_capacity(n_positions, self.max_length, self._first)
            own.hold(*self._copied((n_layers, n_kv_heads, wanted, head_size)))

    def _copied(self, shape: tuple[int, int, int, int]) -> tuple[CacheArray, CacheArray]:
        """New arrays of this shape with the positions that are filled."""
        own, length = self._buffer, self.length
        keys, values = self._arrays(shape)
        n_blocks = -(-length // KEY_BLOCK)
        keys[:, :, :n_blocks] = own.keys[:, :, :n_blocks]
        values[:, :, :length] = own.values[:, :, :length]
        return keys, values

    def __repr__(self) -> str:
        return f"KVCache(length={self.length}, max_length={self.max_length})"

    @property
    def length(self) -> int:
        """Positions filled so far; the next forward() continues there."""
        return self._buffer.length

    def reserve(self, n_positions: int) -> None:
        """Allocate the memory for n_positions now, at most max_length. MemoryError: there is too little; nothing changed."""
        claim = _kernels.Claim()
        try:
            claim.take([self._buffer])
            self._make_room(min(n_positions, self.max_length))
        finally:
            claim.release()

    def copy_from(self, other: KVCache, length: int) -> None:
        """Take over the first `length` positions of a cache of the same model, in place of what is here.

        ValueError: the other has fewer, this one has not so much room, or a step uses one of them; MemoryError.
        """
        if not 0 <= length <= min(other.length, self.max_length):
            raise RequestError(f"length: expected 0 to {min(other.length, self.max_length)}, found {length}", "length")
        claim = _kernels.Claim()
        try:
            claim.take([self._buffer, other._buffer])
            self._make_room(length)
            own, theirs, n_blocks = self._buffer, other._buffer, -(-length // KEY_BLOCK)
            own.keys[:, :, :n_blocks] = theirs.keys[:, :, :n_blocks]
            own.values[:, :, :length] = theirs.values[:, :, :length]
            own.length = length
        finally:
            claim.release()

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on, to go on from an earlier one. ValueError: there are not so many."""
        length = index(length)
        if not 0 <= length <= self.length:
            raise RequestError(f"length: expected 0 to {self.length}, found {length}", "length")
        self._buffer.length = length

    def fork(self) -> KVCache:
        """A cache of its own with the same positions, to go on in another way. ValueError: a step uses this one now."""
        forked = KVCache.__new__(KVCache)
        forked.max_length, forked.kv, forked._first = self.max_length, self.kv, self._first
        claim = _kernels.Claim()
        try:
            claim.take([self._buffer])
            forked._buffer = _kernels.KVBuffer(*self._copied(self._buffer.values.shape))
            forked._buffer.length = self.length
        finally:
            claim.release()
        return forked

    def __copy__(self) -> KVCache:
        return self.fork()

    def __deepcopy__(self, memo: dict[int, Any]) -> KVCache:
        return self.fork()

    def positions(self, start: int, stop: int) -> Positions:
        """The keys and the values of positions start to stop - 1, all of one block of KEY_BLOCK, as views of the cache.

        The views are good until the next positions are filled. ValueError: they are of two blocks, or not all are filled.
        """
        if not (0 <= start < stop <= self.length and start // KEY_BLOCK == (stop - 1) // KEY_BLOCK):
            expected = f"expected filled positions (0 to {self.length - 1}) of one block of {KEY_BLOCK}"
            raise ValueError(f"positions: {expected}, found {start} to {stop - 1}")
        return self._views(start, stop)

    def append(self, parts: Sequence[Positions]) -> None:
        """Fill the next positions with copies of keys and values that `positions` has given, in their order.

        ValueError: they are of another model or type, there are more than the cache has room for, a part would be in two
        blocks, or a step uses the cache; MemoryError. Then the cache is as it was.
        """
        claim = _kernels.Claim()
        try:
            claim.take([self._buffer])
            places = self._places(parts)
            n = sum(stop - start for start, stop in places)
            self._make_room(self.length + n)
            for (keys, values), place in zip(parts, places, strict=True):
                own_keys, own_values = self._views(*place)
                own_keys[...] = keys
                own_values[...] = values
            claim.advance([n])
        finally:
            claim.release()

    def _places(self, parts: Sequence[Positions]) -> list[tuple[int, int]]:
        """Where the positions of each part begin and end, when they are appended. ValueError: they cannot be."""
        n_layers, n_kv_heads, _, head_size = self._buffer.values.shape
        places = []
        stop = self.length
        for keys, values in parts:
            start, n = stop, values.shape[2]
            stop += n
            shapes = (n_layers, n_kv_heads, head_size, n), (n_layers, n_kv_heads, n, head_size)
            if (keys.shape, values.shape) != shapes or not keys.dtype == values.dtype == self._buffer.values.dtype:
                expected = f"expected {self.kv} arrays {shapes[0]} and {shapes[1]}"
                raise ValueError(f"parts: {expected}, found {keys.dtype} {keys.shape} and {values.dtype} {values.shape}")
            if n < 1 or start // KEY_BLOCK != (stop - 1) // KEY_BLOCK:
                raise ValueError(f"parts: expected positions of one block of {KEY_BLOCK}, found {start} to {stop - 1}")
            places.append((start, stop))
        if stop > self.max_length:
            raise ValueError(f"parts: expected up to {self.max_length - self.length} positions, found {stop - self.length}")
        return places

    def _views(self, start: int, stop: int) -> Positions:
        """Of positions of one block, filled or not."""
        block, first = divmod(start, KEY_BLOCK)
        keys = self._buffer.keys[:, :, block, :, first : first + stop - start]
        return keys, self._buffer.values[:, :, start:stop]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a KVCache cannot be pickled: compute it again from its ids")


@dataclass(frozen=True, slots=True, eq=False)
class ObservedStep:
    """What passed through a model in one step, a row for each token of each sequence."""

    sequences: tuple[int, ...]  # of each row: the index of its sequence in the batch
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    layers: Floats  # (n_rows, n_layers, 4): norm and mean of the residual stream after attention, then after the feed-forward
    logits: Floats  # (n_rows, vocab_size)


Observer: TypeAlias = "Callable[[ObservedStep], object]"


class Transformer:
    """A model ready to run. Any number of threads may use one at once, each with caches of its own.

    checkpoint  its weights stay mapped and are shared, never copied
    n_threads   None: OMP_NUM_THREADS, else up to the number of cores this process may use: a step runs on fewer where that is
                faster now, because other programs use the cores or the model is small. The attribute is the largest number
    observer    None, or is called after each step with an ObservedStep. That computes the logits of all rows, which is slower;
                the results are the same. May be set later

    kv          the type of the numbers in a cache: "float32", or "float16", which rounds keys and values and halves the memory.
                Another type is another model, a little: the results differ, but not with threads, cuts or levels

    copy, deepcopy and pickle open the checkpoint again, and leave out the observer.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        n_threads: int | None = None,
        observer: Observer | None = None,
        kv: KVType = "float32",
    ) -> None:
        self.checkpoint = checkpoint
        self.config: Config = checkpoint.config
        self._n_threads_wanted = n_threads
        n_weights = count_weights(checkpoint.config)
        self.threads: Threads = decide_n_threads(n_threads, n_weights)
        self.n_threads: int = self.threads.n_threads
        self._tuners: Tuners | None = None
        if self.threads.adapts:
            self._tuners = Tuners(self.n_threads, 1 if n_weights < SMALL_MODEL else self.n_threads)
        self._attention = 2 * self.config.n_layers * self.config.n_heads * self.config.head_size / n_weights
        self.observer = observer
        self.kv: KVType = check_kv(kv)
        self._model = _kernels.Model(checkpoint.config, checkpoint.weights, checkpoint.rope_pairs)
        self._frequencies = rotary_frequencies(checkpoint.config, checkpoint.rope_factors)
        self._rope: Floats = np.empty((0, self.config.head_size // 2, 2), np.float32)
        self._free_scratch: list[_kernels.Scratch] = []
        self._rows_per_step = rows_per_step(checkpoint.config, self.n_threads)

    def __reduce__(self) -> tuple[type[Transformer], tuple[Checkpoint, int | None, None, KVType]]:
        return Transformer, (self.checkpoint, self._n_threads_wanted, None, self.kv)

    def new_cache(self, max_length: int | None = None, kv: KVType | None = None) -> KVCache:
        """An empty cache for up to `max_length` positions, 1 to seq_len (None: seq_len). kv: None: that of the Transformer."""
        if max_length is None:
            max_length = self.config.seq_len
        max_length = check_int("max_length", max_length, 1, self.config.seq_len)
        return KVCache(self.config, max_length, self.kv if kv is None else check_kv(kv))

    def cache_bytes(self, n_positions: int, max_length: int) -> int:
        """Bytes that a cache for up to max_length positions takes once n_positions of them are filled or reserved."""
        size = bytes_per_position(self.config, self.kv)
        capacity = cache_capacity(n_positions, max_length, first_capacity(size))
        return size * -(-capacity // KEY_BLOCK) * KEY_BLOCK

    @property
    def rows_per_step(self) -> int:
        """The most rows of one step. forward takes longer prompts in several."""
        return self._rows_per_step

    def forward(self, tokens: Tokens, cache: KVCache, *, logits: int | None = 1, out: Floats | None = None) -> Floats:
        """Feed the tokens, which take the positions from cache.length on, and compute logits.

        logits  1 (default): those after the last token, (vocab_size,)
                k: those after each of the last k tokens, (k, vocab_size); 0: none, (0, vocab_size)
                None: those after every token, (n_tokens, vocab_size)
        out     a writable float32 array of this shape for the result; None: a new one

        ValueError: an id outside the vocabulary, no tokens, more than the cache has room for, logits of more rows than there
        are; TypeError: ids that are not integers. After an error the cache is as it was. After an interrupt it is as it was,
        or everything was done: cache.length shows which.
        """
        if logits == 1:
            out = self._output((self.config.vocab_size,), out)
            self._run([(tokens, cache)], (1,), out[np.newaxis])
        else:
            wanted = wanted_rows(logits, len(tokens))
            out = self._output((wanted, self.config.vocab_size), out)
            self._run([(tokens, cache)], (wanted,), out)
        return out

    def forward_batch(
        self,
        sequences: Sequence[tuple[Tokens, KVCache]],
        *,
        logits: int | Sequence[int | None] | None = 1,
        out: Floats | None = None,
    ) -> Floats:
        """Feed the tokens of several sequences, each with its own cache, in the same steps: the weights are read once for all.

        logits is as in forward, one value for all sequences or a list with one for each. The result has all rows that are
        wanted, in the order of the sequences: (rows wanted, vocab_size), also where that is one row. The numbers are those of
        one forward() for each. Errors: those of forward; ValueError: a list of another length, a cache that comes twice.
        """
        wanted: Sequence[int] = (1,) * len(sequences)
        if logits != 1:
            each = logits if isinstance(logits, Sequence) else [logits] * len(sequences)
            if len(each) != len(sequences):
                found = f"expected one value for each of {len(sequences)} sequences, found {len(each)}"
                raise RequestError(f"logits: {found}", "logits")
            wanted = [wanted_rows(rows, len(tokens)) for rows, (tokens, _) in zip(each, sequences, strict=True)]
        out = self._output((sum(wanted), self.config.vocab_size), out)
        self._run(sequences, wanted, out)
        return out

    def _output(self, shape: tuple[int, ...], out: Floats | None) -> Floats:
        if out is None:
            return np.empty(shape, np.float32)
        if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError(f"out: expected a writable float32 array {shape} in C order, found {out.dtype} {out.shape}")
        return out

    def _run(self, sequences: Sequence[tuple[Tokens, KVCache]], wanted: Sequence[int], logits: Floats) -> None:
        """All steps for these sequences; logits (sum of wanted, vocab_size) are filled in order."""
        claim = _kernels.Claim()
        try:
            claim.take([cache._buffer for _, cache in sequences])
            parts: list[Part] = [
                (self._checked_tokens(tokens, cache), cache.length, cache._buffer) for tokens, cache in sequences
            ]
            if not parts:
                return
            for (_, cache), (ids, position, _) in zip(sequences, parts, strict=True):
                cache._make_room(position + len(ids))
            rope = self._rope_up_to(max(position + len(ids) for ids, position, _ in parts))
            first = 0
            for step, numbers, logit_rows in plan_steps(parts, wanted, self._rows_per_step):
                last = first + len(logit_rows)
                if self.observer is None:
                    self._step(step, rope, logit_rows, logits[first:last], None)
                else:
                    self._observed_step(step, numbers, rope, logit_rows, logits[first:last])
                first = last
            claim.advance([len(ids) for ids, _, _ in parts])
        finally:
            claim.release()

    def _step(
        self, parts: list[Part], rope: Floats, logit_rows: Sequence[int], logits: Floats, trace: Floats | None
    ) -> None:
        """One step on a scratch of its own: one from the free list, or a new one if all are in use."""
        try:
            scratch = self._free_scratch.pop()
        except IndexError:
            scratch = _kernels.Scratch()
        if self._tuners is None:
            self._model.run(scratch, parts, rope, logit_rows, logits, trace, self.n_threads)
        else:
            step = partial(self._model.run, scratch, parts, rope, logit_rows, logits, trace)
            self._tuners.run(step, *self._size_of(parts))
        self._free_scratch.append(scratch)

    def _size_of(self, parts: list[Part]) -> tuple[int, float]:
        """The number of rows of a step, and about how much work it is. 1 is the work of using each weight once."""
        n_rows, work = 0, float(READING)
        for ids, position, _ in parts:
            n_rows += len(ids)
            work += len(ids) * (1 + position * self._attention)
        return n_rows, work

    def _observed_step(
        self, parts: list[Part], numbers: list[int], rope: Floats, logit_rows: Sequence[int], logits: Floats
    ) -> None:
        """The same step with the logits of all rows, for the observer to see. numbers: of each part, that of its sequence."""
        assert self.observer is not None
        rows = [(position + i, token) for ids, position, _ in parts for i, token in enumerate(ids)]
        layers = np.empty((len(rows), self.config.n_layers, 4), np.float32)
        every = np.empty((len(rows), self.config.vocab_size), np.float32)
        self._step(parts, rope, range(len(rows)), every, layers)
        logits[:] = every[list(logit_rows)]
        sequences = (number for number, (ids, _, _) in zip(numbers, parts, strict=True) for _ in ids)
        positions, tokens = zip(*rows, strict=True)
        self.observer(ObservedStep(tuple(sequences), positions, tokens, layers, every))

    def _checked_tokens(self, tokens: Tokens, cache: KVCache) -> list[int]:
        ids = [index(token) for token in tokens]
        room = cache.max_length - cache.length
        if not 0 < len(ids) <= room:
            raise RequestError(f"tokens: expected 1 to {room} (the room left in the cache), found {len(ids)}", "tokens")
        if not (min(ids) >= 0 and max(ids) < self.config.vocab_size):
            wrong = next(token for token in ids if not 0 <= token < self.config.vocab_size)
            raise RequestError(f"tokens: expected ids from 0 to {self.config.vocab_size - 1}, found {wrong}", "tokens")
        return ids

    def _rope_up_to(self, n_positions: int) -> Floats:
        """The table of rotary angles for at least `n_positions` positions. It doubles; one that a step uses never changes."""
        rope = self._rope
        have = len(rope)
        if have < n_positions:
            rope = np.empty((max(n_positions, min(2 * have, self.config.seq_len), 16), *rope.shape[1:]), np.float32)
            rope[:have] = self._rope[:have]
            _kernels.rope_table(rope[have:], self._frequencies, have)
            self._rope = rope
        return rope


def bytes_per_position(config: Config, kv: KVType) -> int:
    """Bytes of the keys and values of one position in a cache."""
    return 2 * np.dtype(kv).itemsize * config.n_layers * config.n_kv_heads * config.head_size


def first_capacity(size: int) -> int:
    """Positions of a new cache that will need them, where one takes `size` bytes."""
    return max(KEY_BLOCK, FIRST_BYTES // size)


def cache_capacity(n_positions: int, max_length: int, first: int) -> int:
    """Positions that a cache has memory for when n_positions have to fit: `first`, doubled until they do, up to max_length.

    (5, 100, 16) -> 16, (17, 100, 16) -> 32, (70, 100, 16) -> 100
    """
    capacity = first
    while capacity < n_positions:
        capacity *= 2
    return min(capacity, max_length)


def check_kv(kv: KVType) -> KVType:
    """The type of the numbers in a cache. RequestError: there is no such type."""
    if kv not in get_args(KVType):
        raise RequestError(f"kv: expected 'float32' or 'float16', found {kv!r}", "kv")
    return kv


def wanted_rows(logits: int | None, n_tokens: int) -> int:
    """How many rows of logits `logits` asks for, of n_tokens: None: all, k: k. RequestError: more than there are."""
    return n_tokens if logits is None else check_int("logits", logits, 0, max(1, n_tokens))


def plan_steps(sequences: list[Part], wanted: Sequence[int], max_rows: int) -> Iterator[PlannedStep]:
    """Cut sequences into steps of at most max_rows rows. Of each sequence the logits of its last `wanted` rows are wanted.

    With max_rows = 4, lengths 5 and 2 at position 0, wanted 1 and 2: ([4 ids at 0], [0], []), then
    ([1 id at 4, 2 ids at 0], [0, 1], [0, 1, 2]).
    """
    n_rows = len(sequences[0][0]) if len(sequences) == 1 else max_rows + 1
    if n_rows <= max_rows:  # every token of a single text: no time is lost on it
        yield sequences, [0], range(n_rows - wanted[0], n_rows)
        return
    parts: list[Part] = []
    numbers: list[int] = []
    logit_rows: list[int] = []
    rows = 0
    for number, (ids, position, buffer) in enumerate(sequences):
        start, first_wanted = 0, len(ids) - wanted[number]
        while start < len(ids):
            stop = min(len(ids), start + max_rows - rows)
            parts.append((ids[start:stop], position + start, buffer))
            numbers.append(number)
            logit_rows += range(rows + max(first_wanted - start, 0), rows + stop - start)
            rows += stop - start
            start = stop
            if rows == max_rows:
                yield parts, numbers, logit_rows
                parts, numbers, logit_rows, rows = [], [], [], 0
    if parts:
        yield parts, numbers, logit_rows


def count_weights(config: Config) -> int:
    """Numbers in the matrices of a model, each read once for a token."""
    return config.n_layers * count_layer_weights(config) + config.vocab_size * config.dim


def rows_per_step(config: Config, n_threads: int) -> int:
    """MAX_ROWS, or fewer for a model whose layers are so large that Ctrl-C would have to wait for a step."""
    return max(MIN_ROWS, min(MAX_ROWS, MAX_WORK * n_threads // count_layer_weights(config)))


def rotary_frequencies(config: Config, factors: Sequence[float] | None = None) -> NDArray[np.float64]:
    """theta^(-i / head_size) for even i, (head_size / 2,): radians a position. Su et al. 2021, section 3.2.2.

    Computed with decimal arithmetic, which gives the same digits on every machine; the pow of a libm does not. A rope_scaling
    of the model lowers them, and so do `factors`, one for each (Checkpoint.rope_factors).
    """
    with localcontext() as context:
        context.prec = 40
        log_theta = Decimal(config.rope_theta).ln()
        exponents = [-log_theta * i / config.head_size for i in range(0, config.head_size, 2)]
        frequencies = [float(exponent.exp()) for exponent in exponents]
    if config.rope_scaling is not None:
        frequencies = [scale_frequency(frequency, config.rope_scaling) for frequency in frequencies]
    if factors is not None:
        frequencies = [frequency / factor for frequency, factor in zip(frequencies, factors, strict=True)]
    return np.array(frequencies)


def scale_frequency(frequency: float, scaling: RopeScaling) -> float:
    """A rotary frequency as a model with this scaling has it. "llama3" as in the reference code of Llama 3.1."""
    if scaling.rope_type == "linear":
        return frequency / scaling.factor
    low, high, original = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position_embeddings
    assert low is not None and high is not None and original is not None  # RopeScaling checks it
    turns = original * frequency / (2 * math.pi)  # of the pair, in the context of the first training
    kept = min(1.0, max(0.0, (turns - low) / (high - low)))
    return (1 - kept) * frequency / scaling.factor + kept * frequency
