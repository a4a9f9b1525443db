"""The transformer: weights, the caches of sequences, and the steps that turn token ids into logits.

A step is a list of rows, each one token of one sequence; prefill, decode and batches differ only in which rows they bring.
This module owns shapes, buffers and threads; the arithmetic is in _kernels, and nothing here knows text or sampling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from decimal import Decimal, localcontext
from operator import index
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import _kernels
from .config import Config, RopeScaling
from .formats.checkpoint import Checkpoint
from .threads import decide_n_threads

Floats: TypeAlias = "NDArray[np.float32]"
Tokens: TypeAlias = "Sequence[int] | NDArray[np.integer]"
Part: TypeAlias = "tuple[list[int], int, _kernels.KVBuffer]"  # ids, the position of the first, where keys and values go

MAX_ROWS = 256  # rows of one step: enough to read the weights once for many
MIN_ROWS = 32  # below this, rows wait for weights
MAX_WORK = 1 << 31  # multiply-adds of a thread in one layer, a tenth of a second: signals are looked for between two layers


class KVCache:
    """The keys and values of one sequence, and how many of its positions are filled. For one step at a time."""

    __slots__ = ("_buffer", "max_length")

    def __init__(self, config: Config, max_length: int) -> None:
        shape = (config.n_layers, config.n_kv_heads, max_length, config.head_size)
        try:  # not filled: the system gives the memory as it is written, in pages of up to 2 MB
            self._buffer = _kernels.KVBuffer(np.empty(shape, np.float32), np.empty(shape, np.float32))
        except (MemoryError, ValueError):
            size = 2 * 4 * math.prod(shape)
            raise MemoryError(f"max_length: expected room for a cache of {max_length} positions, {size} bytes") from None
        self.max_length = max_length

    def __repr__(self) -> str:
        return f"KVCache(length={self.length}, max_length={self.max_length})"

    @property
    def length(self) -> int:
        """Positions filled so far; the next forward() continues there."""
        return self._buffer.length

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on, to go on from an earlier one."""
        length = index(length)
        if not 0 <= length <= self.length:
            raise ValueError(f"length: expected 0 to {self.length}, found {length}")
        self._buffer.length = length


class Transformer:
    """A model ready to run. Any number of threads may use one at once, each with caches of its own.

    checkpoint  its weights stay mapped and are shared, never copied
    n_threads   None: OMP_NUM_THREADS, else the cores this process may use, fewer for a tiny model
    """

    def __init__(self, checkpoint: Checkpoint, n_threads: int | None = None) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.n_threads = decide_n_threads(n_threads, count_weights(checkpoint.config))
        self._model = _kernels.Model(checkpoint.config, checkpoint.weights, checkpoint.rope_pairs)
        self._frequencies = rotary_frequencies(checkpoint.config)
        self._rope: Floats = np.empty((0, self.config.head_size // 2, 2), np.float32)
        self._free_scratch: list[_kernels.Scratch] = []
        self._rows_per_step = rows_per_step(checkpoint.config, self.n_threads)

    def new_cache(self, max_length: int | None = None) -> KVCache:
        """An empty cache for up to `max_length` positions, 1 to seq_len (None: seq_len)."""
        if max_length is None:
            max_length = self.config.seq_len
        if not 1 <= max_length <= self.config.seq_len:
            raise ValueError(f"max_length: expected 1 to {self.config.seq_len}, found {max_length}")
        return KVCache(self.config, max_length)

    def forward(
        self,
        tokens: Tokens,
        cache: KVCache,
        *,
        all_logits: bool = False,
        out: Floats | None = None,
        trace: Floats | None = None,
    ) -> Floats:
        """Logits after the last of `tokens`, (vocab_size,), or after each, (n_tokens, vocab_size), with all_logits.

        The tokens take the positions from cache.length on. The result is `out` if that is given, else a new array.
        trace, (n_tokens, n_layers, 4), receives the norm and mean of the residual stream after attention and after the
        feed-forward. ValueError: an id outside the vocabulary, no tokens, or more than the cache has room for; TypeError: ids
        that are no integers. After an error the cache is as it was; after an interrupt too, or all was done: its length tells.
        """
        shape = (len(tokens), self.config.vocab_size) if all_logits else (self.config.vocab_size,)
        out = self._output(shape, out)
        if trace is not None and np.shape(trace) != (len(tokens), self.config.n_layers, 4):
            raise ValueError(f"trace: expected shape {(len(tokens), self.config.n_layers, 4)}, found {np.shape(trace)}")
        self._run([(tokens, cache)], out if all_logits else out[np.newaxis], all_logits, trace)
        return out

    def forward_batch(self, sequences: Sequence[tuple[Tokens, KVCache]], *, out: Floats | None = None) -> Floats:
        """Logits after the last token of each sequence, (n_sequences, vocab_size), all taken in the same steps.

        The same numbers as one forward() for each, but the weights are read once for all. Errors: those of forward.
        """
        out = self._output((len(sequences), self.config.vocab_size), out)
        self._run(sequences, out, False, None)
        return out

    def _output(self, shape: tuple[int, ...], out: Floats | None) -> Floats:
        if out is None:
            return np.empty(shape, np.float32)
        if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError(f"out: expected a writable float32 array {shape} in C order, found {out.dtype} {out.shape}")
        return out

    def _run(
        self, sequences: Sequence[tuple[Tokens, KVCache]], logits: Floats, all_logits: bool, trace: Floats | None
    ) -> None:
        """All steps for these sequences; logits (rows that are wanted, vocab_size) are filled in order."""
        claim = _kernels.Claim()
        try:
            claim.take([cache._buffer for _, cache in sequences])
            parts: list[Part] = [
                (self._checked_tokens(tokens, cache), cache.length, cache._buffer) for tokens, cache in sequences
            ]
            if not parts:
                return
            rope = self._rope_up_to(max(position + len(ids) for ids, position, _ in parts))
            first_row = first_logit = 0
            for step, wanted in plan_steps(parts, all_logits, self._rows_per_step):
                last_row, last_logit = first_row + sum(len(ids) for ids, _, _ in step), first_logit + len(wanted)
                traced = None if trace is None else trace[first_row:last_row]
                self._step(step, rope, wanted, logits[first_logit:last_logit], traced)
                first_row, first_logit = last_row, last_logit
            claim.advance([len(ids) for ids, _, _ in parts])
        finally:
            claim.release()

    def _step(
        self, parts: list[Part], rope: Floats, logit_rows: list[int], logits: Floats, trace: Floats | None
    ) -> None:
        """One step on a scratch of its own: from the free list, or new if as many steps run as never before."""
        try:
            scratch = self._free_scratch.pop()
        except IndexError:
            scratch = _kernels.Scratch()
        self._model.run(scratch, parts, rope, logit_rows, logits, trace, self.n_threads)
        self._free_scratch.append(scratch)

    def _checked_tokens(self, tokens: Tokens, cache: KVCache) -> list[int]:
        ids = [index(token) for token in tokens]
        room = cache.max_length - cache.length
        if not 0 < len(ids) <= room:
            raise ValueError(f"tokens: expected 1 to {room} (the room left in the cache), found {len(ids)}")
        if not (min(ids) >= 0 and max(ids) < self.config.vocab_size):
            wrong = next(token for token in ids if not 0 <= token < self.config.vocab_size)
            raise ValueError(f"tokens: expected ids from 0 to {self.config.vocab_size - 1}, found {wrong}")
        return ids

    def _rope_up_to(self, n_positions: int) -> Floats:
        """The table of rotary angles for at least so many positions; it doubles, and what a step holds never changes."""
        rope = self._rope
        have = len(rope)
        if have < n_positions:
            rope = np.empty((max(n_positions, min(2 * have, self.config.seq_len), 16), *rope.shape[1:]), np.float32)
            rope[:have] = self._rope[:have]
            _kernels.rope_table(rope[have:], self._frequencies, have)
            self._rope = rope
        return rope


def plan_steps(sequences: list[Part], all_logits: bool, max_rows: int) -> Iterator[tuple[list[Part], list[int]]]:
    """Cut sequences into steps of at most max_rows rows, each with the rows whose logits are wanted: the last of each sequence.

    With max_rows = 4, lengths 5 and 2 at position 0: ([4 ids at 0], []), then ([1 id at 4, 2 ids at 0], [0, 2]).
    """
    step: list[Part] = []
    wanted: list[int] = []
    rows = 0
    for ids, position, buffer in sequences:
        start = 0
        while start < len(ids):
            stop = min(len(ids), start + max_rows - rows)
            step.append((ids[start:stop], position + start, buffer))
            rows += stop - start
            if all_logits:
                wanted.extend(range(rows - stop + start, rows))
            elif stop == len(ids):
                wanted.append(rows - 1)
            start = stop
            if rows == max_rows:
                yield step, wanted
                step, wanted, rows = [], [], 0
    if step:
        yield step, wanted


def count_layer_weights(config: Config) -> int:
    """Numbers in the matrices of one layer."""
    q_dim = config.n_heads * config.head_size
    return config.dim * (2 * q_dim + 2 * config.kv_dim + 3 * config.hidden_dim)


def count_weights(config: Config) -> int:
    """Numbers in the matrices of a model, each read once for a token."""
    return config.n_layers * count_layer_weights(config) + config.vocab_size * config.dim


def rows_per_step(config: Config, n_threads: int) -> int:
    """MAX_ROWS, or fewer where the layers are so large that a Ctrl-C would have to wait."""
    return max(MIN_ROWS, min(MAX_ROWS, MAX_WORK * n_threads // count_layer_weights(config)))


def rotary_frequencies(config: Config) -> NDArray[np.float64]:
    """theta^(-i / head_size) for even i, (head_size / 2,): radians a position. Su et al. 2021, section 3.2.2.

    By decimal arithmetic, which gives the same digits on every machine; a libm's pow does not. Where the model has a
    rope_scaling, they are lowered by it.
    """
    with localcontext() as context:
        context.prec = 40
        log_theta = Decimal(config.rope_theta).ln()
        exponents = [-log_theta * i / config.head_size for i in range(0, config.head_size, 2)]
        frequencies = [float(exponent.exp()) for exponent in exponents]
    if config.rope_scaling is not None:
        frequencies = [scale_frequency(frequency, config.rope_scaling) for frequency in frequencies]
    return np.array(frequencies)


def scale_frequency(frequency: float, scaling: RopeScaling) -> float:
    """A rotary frequency as a model with this scaling has it. "llama3" as in the reference code of Llama 3.1."""
    if scaling.rope_type == "linear":
        return frequency / scaling.factor
    low, high, original = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position_embeddings
    assert low is not None and high is not None and original is not None  # RopeScaling has seen to it
    turns = original * frequency / (2 * math.pi)  # that the pair makes in the context of the first training
    kept = min(1.0, max(0.0, (turns - low) / (high - low)))
    return (1 - kept) * frequency / scaling.factor + kept * frequency
