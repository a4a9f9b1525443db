"""Transformer and KVCache: every way to run a step against plain NumPy on random models, and errors that change nothing.

What is compared bit for bit is in test_same_bits; the real models and golden files have a test of their own.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Thread
from typing import Any, NamedTuple

import checkpoints
import numpy as np
import pytest
from reference import F32, Reference, Result

from llama2c import transformer as module
from llama2c.config import Config
from llama2c.errors import RequestError
from llama2c.formats.checkpoint import Checkpoint
from llama2c.tensors import QuantizedTensor
from llama2c.transformer import KVCache, KVType, ObservedStep, Transformer, count_weights, plan_steps


class Case(NamedTuple):
    config: Config
    version: int
    tied: bool
    group_size: int | None = None


def shape(dim: int, hidden_dim: int, n_heads: int, n_kv_heads: int, vocab_size: int, n_layers: int = 2) -> Config:
    return Config(dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, 40)


FP32 = {
    "smallest": Case(Config(2, 1, 1, 1, 1, 2, 40), 0, True),
    "mha": Case(shape(48, 80, 3, 3, 97), 0, True),
    "mha_untied": Case(shape(48, 80, 4, 4, 97), 1, False),
    "gqa": Case(shape(64, 172, 8, 4, 130), 1, True),
    "gqa_untied": Case(shape(96, 100, 12, 3, 77), 0, False),
    "mqa_odd": Case(shape(70, 93, 5, 1, 61, n_layers=3), 0, True),
    "wide_heads": Case(shape(216, 50, 2, 1, 33), 1, False),
}
Q8 = {
    "q8_32": Case(shape(64, 160, 4, 2, 90), 2, True, 32),
    "q8_64": Case(shape(128, 192, 4, 4, 70), 2, False, 64),
    "q8_odd": Case(shape(30, 45, 3, 1, 41), 2, True, 15),
    "q8_4": Case(shape(64, 172, 8, 4, 130), 2, False, 4),
    "q8_straddling": Case(shape(64, 172, 8, 4, 130), 2, True, 64),
    "q8_straddling_odd": Case(shape(36, 25, 3, 1, 50), 2, False, 9),
}
CASES = {**FP32, **Q8}


class Made(NamedTuple):
    transformer: Transformer
    reference: Reference
    checkpoint: Checkpoint


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A case's name -> the model from a file, and the same weights in NumPy; made once."""
    made: dict[str, Made] = {}

    def get(name: str) -> Made:
        if name not in made:
            case = CASES[name]
            rng = np.random.default_rng([case.config.dim, case.version, case.tied])
            weights = checkpoints.random_weights(case.config, rng, case.tied)
            path = tmp_path_factory.mktemp("model") / f"{name}.bin"
            checkpoint = Checkpoint.open(checkpoints.write(path, case.config, case.version, weights, case.group_size))
            reference = Reference(case.config, weights, group_size=case.group_size)
            made[name] = Made(Transformer(checkpoint, n_threads=1), reference, checkpoint)
        return made[name]

    return get


@pytest.fixture(scope="module")
def gqa(make: Callable[[str], Made]) -> Made:
    return make("gqa")


def random_tokens(config: Config, n: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, config.vocab_size, n)]


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    """Within `tolerance` of the largest magnitude of all."""
    assert found.shape == expected.shape
    assert found.dtype == F32
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@contextlib.contextmanager
def observed(transformer: Transformer) -> Iterator[list[ObservedStep]]:
    """The steps that the transformer takes in the meantime."""
    steps: list[ObservedStep] = []
    transformer.observer = steps.append
    try:
        yield steps
    finally:
        transformer.observer = None


# ---------------------------------------------------------------------------------------------- against plain NumPy


def at_odd_bytes(weight: Any) -> Any:
    """A copy that no load of four bytes is aligned to."""
    if isinstance(weight, QuantizedTensor):
        return QuantizedTensor(at_odd_bytes(weight.values), at_odd_bytes(weight.scales), weight.group_size)
    moved = np.ndarray(weight.shape, weight.dtype, bytearray(weight.nbytes + 1), 1)
    moved[...] = weight
    return moved


@pytest.mark.parametrize("name", ["gqa_untied", "mqa_odd", "q8_32", "q8_odd", "q8_straddling"])
def test_weights_may_lie_at_any_byte(make: Callable[[str], Made], name: str) -> None:
    """Which the sanitizer of `make sanitize` holds against every load; without it, x86 would not tell."""
    transformer, _, checkpoint = make(name)
    weights = {name: at_odd_bytes(weight) for name, weight in checkpoint.weights.items()}
    moved = Transformer(dataclasses.replace(checkpoint, weights=weights), n_threads=1)
    tokens = random_tokens(transformer.config, 30)
    for n in (30, 1):
        expected = transformer.forward(tokens[:n], transformer.new_cache(), logits=None)
        np.testing.assert_array_equal(moved.forward(tokens[:n], moved.new_cache(), logits=None), expected)


@pytest.mark.parametrize("name", FP32)
def test_forward(make: Callable[[str], Made], name: str) -> None:
    """The prompt at once, with and without all logits, then token by token; with the trace."""
    transformer, reference, _ = make(name)
    tokens = random_tokens(transformer.config, 30)
    expected = reference.forward(tokens)
    cache = transformer.new_cache()
    assert_close(transformer.forward(tokens[:17], cache), expected.logits[16])
    assert cache.length == 17
    for i in range(17, 30):
        assert_close(transformer.forward(tokens[i : i + 1], cache), expected.logits[i])
    assert cache.length == 30
    cache.truncate(0)
    with observed(transformer) as steps:
        assert_close(transformer.forward(tokens, cache, logits=None), expected.logits)
    assert_close(np.concatenate([step.layers for step in steps]), expected.trace)


def test_the_reference_in_fp32_is_close_to_itself_in_float64(gqa: Made) -> None:
    """The tolerance of these tests is that of fp32."""
    tokens = random_tokens(gqa.transformer.config, 20)
    single = Reference(gqa.reference.config, gqa.reference.weights, dtype=F32).forward(tokens)
    assert_close(single.logits, gqa.reference.forward(tokens).logits)


@pytest.mark.parametrize("name", Q8)
def test_forward_of_q8(make: Callable[[str], Made], name: str) -> None:
    """One activation that rounds the other way moves all logits a little: most short sequences agree, and all nearly do."""
    transformer, reference, _ = make(name)
    close = []
    for seed in range(20):
        tokens = random_tokens(transformer.config, 4, seed)
        expected = reference.forward(tokens)
        with observed(transformer) as steps:
            logits = transformer.forward(tokens, transformer.new_cache(), logits=None)
        assert_close(logits, expected.logits, 5e-2)
        close.append(np.abs(logits - expected.logits).max() <= 2e-5 * np.abs(expected.logits).max())
        if close[-1]:
            assert_close(steps[0].layers, expected.trace)
        np.testing.assert_array_equal(transformer.forward(tokens, transformer.new_cache()), logits[3])
    assert np.mean(close) >= 0.85


@pytest.mark.parametrize("name", CASES)
def test_the_weights_may_be_mapped_or_read(make: Callable[[str], Made], name: str) -> None:
    transformer, _, checkpoint = make(name)
    read = Transformer(Checkpoint.open(checkpoint.path, mmap=False), n_threads=1)
    tokens = random_tokens(transformer.config, 5)
    expected = transformer.forward(tokens, transformer.new_cache())
    np.testing.assert_array_equal(read.forward(tokens, read.new_cache()), expected)


@pytest.mark.parametrize("name", ["gqa", "mqa_odd", "wide_heads"])
def test_forward_batch(make: Callable[[str], Made], name: str) -> None:
    """Sequences of different lengths, some of which go on from a filled cache."""
    transformer, reference, _ = make(name)
    prompts = [random_tokens(transformer.config, n, seed=n) for n in (1, 20, 7, 33, 2)]
    caches = [transformer.new_cache() for _ in prompts]
    fed = [0, 13, 0, 32, 1]
    for prompt, cache, n in zip(prompts, caches, fed, strict=True):
        if n:
            transformer.forward(prompt[:n], cache)
    parts = [(prompt[n:], cache) for prompt, cache, n in zip(prompts, caches, fed, strict=True)]
    expected = np.stack([reference.forward(prompt).logits[-1] for prompt in prompts])
    assert_close(transformer.forward_batch(parts), expected)
    assert [cache.length for cache in caches] == [len(prompt) for prompt in prompts]


def long_config() -> Config:
    return Config(dim=32, hidden_dim=40, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=50, seq_len=1000)


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Transformer, list[int], Result]:
    """A model with room for three steps and more, 700 tokens, and what NumPy makes of them."""
    config = long_config()
    weights = checkpoints.random_weights(config, np.random.default_rng(7))
    path = checkpoints.write(tmp_path_factory.mktemp("long") / "model.bin", config, 0, weights)
    tokens = random_tokens(config, 700)
    return Transformer(Checkpoint.open(path), n_threads=1), tokens, Reference(config, weights).forward(tokens)


@pytest.mark.parametrize("n", [255, 256, 257, 512, 700])
def test_a_prompt_longer_than_a_step(long_model: tuple[Transformer, list[int], Result], n: int) -> None:
    transformer, tokens, expected = long_model
    cache = transformer.new_cache()
    assert_close(transformer.forward(tokens[:n], cache), expected.logits[n - 1])
    assert cache.length == n
    cache = transformer.new_cache()
    with observed(transformer) as steps:
        assert_close(transformer.forward(tokens[:n], cache, logits=None), expected.logits[:n])
    assert_close(np.concatenate([step.layers for step in steps]), expected.trace[:n])


def test_a_batch_larger_than_a_step(long_model: tuple[Transformer, list[int], Result]) -> None:
    transformer, tokens, expected = long_model
    lengths = [200, 100, 1, 300, 99, 256, 5]  # cut at 256, 512 and 768: inside sequences, and between two
    parts = [(tokens[:n], transformer.new_cache()) for n in lengths]
    assert_close(transformer.forward_batch(parts), expected.logits[[n - 1 for n in lengths]])
    assert [cache.length for _, cache in parts] == lengths


# ---------------------------------------------------------------------------------------------- what comes in and out


def test_tokens_may_be_any_sequence_of_integers(gqa: Made) -> None:
    transformer = gqa.transformer
    expected = transformer.forward([5, 9, 2], transformer.new_cache())
    for tokens in ((5, 9, 2), np.array([5, 9, 2]), np.array([5, 9, 2], np.uint16), [np.int32(5), 9, 2], b"\x05\x09\x02"):
        np.testing.assert_array_equal(transformer.forward(tokens, transformer.new_cache()), expected)


def test_a_result_is_new_unless_out_is_given(gqa: Made) -> None:
    transformer, size = gqa.transformer, gqa.transformer.config.vocab_size
    cache = transformer.new_cache()
    first = transformer.forward([1], cache)
    kept = first.copy()
    second = transformer.forward([2], cache)
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)
    cache.truncate(1)
    out = np.empty(size, F32)
    assert transformer.forward([2], cache, out=out) is out
    np.testing.assert_array_equal(out, second)
    for logits, wanted in ((None, (2, size)), (2, (2, size)), (1, (size,)), (0, (0, size))):
        out = np.empty(wanted, F32)
        assert transformer.forward([3, 4], transformer.new_cache(), logits=logits, out=out) is out
        np.testing.assert_array_equal(out, transformer.forward([3, 4], transformer.new_cache(), logits=logits))
    out = np.empty((2, size), F32)
    assert transformer.forward_batch([([1], transformer.new_cache()), ([2], transformer.new_cache())], out=out) is out
    np.testing.assert_array_equal(out[0], kept)


@pytest.mark.parametrize("name", ["gqa", "q8_odd"])
def test_logits_of_the_last_rows(make: Callable[[str], Made], name: str) -> None:
    """forward with k is the end of forward with None, whether the rows are in one step or in several."""
    transformer = make(name).transformer
    tokens = random_tokens(transformer.config, 20)
    every = transformer.forward(tokens, transformer.new_cache(), logits=None)
    for k in (0, 2, 5, 19, 20):
        cache = transformer.new_cache()
        np.testing.assert_array_equal(transformer.forward(tokens, cache, logits=k), every[20 - k :])
        assert cache.length == 20
    np.testing.assert_array_equal(transformer.forward(tokens, transformer.new_cache(), logits=1), every[-1])
    for wrong in (-1, 21):
        with pytest.raises(RequestError, match=f"^logits: expected an integer from 0 to 20, found {wrong}$"):
            transformer.forward(tokens, transformer.new_cache(), logits=wrong)
    with pytest.raises(TypeError, match=r"^logits: expected an integer, found str$"):
        transformer.forward(tokens, transformer.new_cache(), logits="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("wanted", [[1, 1, 1, 1], [0, 2, None, 1], [None, 0, 0, 3], [0, 0, 0, 0], 1, 2, None, 0])
def test_logits_of_each_sequence_of_a_batch(long_model: tuple[Transformer, list[int], Result], wanted: Any) -> None:
    """Also of sequences that several steps share: 300 + 5 + 4 + 290 rows are cut at 256 and 512."""
    transformer, tokens, _ = long_model
    lengths = [300, 5, 4, 290]
    parts = [(tokens[:n], transformer.new_cache()) for n in lengths]
    found = transformer.forward_batch(parts, logits=wanted)
    each = wanted if isinstance(wanted, list) else [wanted] * 4
    every = transformer.forward(tokens[:300], transformer.new_cache(), logits=None)
    rows = [every[n - (n if k is None else k) : n] for n, k in zip(lengths, each, strict=True)]
    np.testing.assert_array_equal(found, np.concatenate(rows))
    assert [cache.length for _, cache in parts] == lengths


def test_wrong_logits_of_a_batch(gqa: Made) -> None:
    transformer = gqa.transformer
    parts = [([1], transformer.new_cache()), ([2, 3], transformer.new_cache())]
    with pytest.raises(RequestError, match=r"^logits: expected one value for each of 2 sequences, found 1$"):
        transformer.forward_batch(parts, logits=[1])
    with pytest.raises(RequestError, match=r"^logits: expected an integer from 0 to 1, found 2$"):
        transformer.forward_batch(parts, logits=2)
    with pytest.raises(TypeError, match=r"^logits: expected an integer, found float$"):
        transformer.forward_batch(parts, logits=[1, 1.0])  # type: ignore[list-item]
    assert [cache.length for _, cache in parts] == [0, 0]


def test_steps_of_several_sequences() -> None:
    buffers: list[Any] = [object(), object(), object()]
    parts = [(list(range(5)), 0, buffers[0]), ([7, 8], 3, buffers[1]), ([9], 6, buffers[2])]
    steps = list(plan_steps(parts, [3, 2, 0], 4))
    assert [parts for parts, _, _ in steps] == [
        [([0, 1, 2, 3], 0, buffers[0])],
        [([4], 4, buffers[0]), ([7, 8], 3, buffers[1]), ([9], 6, buffers[2])],
    ]
    assert [numbers for _, numbers, _ in steps] == [[0], [0, 1, 2]]
    assert [logit_rows for _, _, logit_rows in steps] == [[2, 3], [0, 1, 2]]
    assert list(plan_steps([], [], 4)) == []


def test_an_observer_sees_every_row_of_a_batch(long_model: tuple[Transformer, list[int], Result]) -> None:
    """Positions, tokens, layers and logits of all rows; what the caller gets is the same as without it."""
    transformer, tokens, expected = long_model
    starts, lengths = [0, 10, 3], [200, 100, 1]
    found = {}
    for watched in (False, True):
        parts = []
        for start, n in zip(starts, lengths, strict=True):
            cache = transformer.new_cache()
            if start:
                transformer.forward(tokens[:start], cache, logits=0)
            parts.append((tokens[start : start + n], cache))
        with observed(transformer) if watched else contextlib.nullcontext() as steps:
            found[watched] = transformer.forward_batch(parts, logits=[2, 0, 1])
    np.testing.assert_array_equal(found[True], found[False])
    assert steps is not None and [len(step.tokens) for step in steps] == [256, 45]
    rows = [(s, p, t) for step in steps for s, p, t in zip(step.sequences, step.positions, step.tokens, strict=True)]
    assert rows == [
        (sequence, start + i, tokens[start + i])
        for sequence, (start, n) in enumerate(zip(starts, lengths, strict=True))
        for i in range(n)
    ]
    positions = [position for _, position, _ in rows]
    assert_close(np.concatenate([step.logits for step in steps]), expected.logits[positions])
    assert_close(np.concatenate([step.layers for step in steps]), expected.trace[positions])


def test_copies_of_a_model_open_its_file_again(gqa: Made) -> None:
    transformer = gqa.transformer
    expected = transformer.forward([5, 9], transformer.new_cache())
    with observed(transformer):  # which is not copied
        copies = [copy.copy(transformer), copy.deepcopy(transformer), pickle.loads(pickle.dumps(transformer))]
    for copied in copies:
        assert copied is not transformer and copied.observer is None
        assert (copied.config, copied.n_threads) == (transformer.config, transformer.n_threads)
        np.testing.assert_array_equal(copied.forward([5, 9], copied.new_cache()), expected)


def test_an_empty_batch_has_no_logits(gqa: Made) -> None:
    assert gqa.transformer.forward_batch([]).shape == (0, gqa.transformer.config.vocab_size)


def test_count_weights() -> None:
    config = FP32["gqa_untied"].config
    weights = checkpoints.random_weights(config, np.random.default_rng(0))
    assert count_weights(config) == sum(w.size for name, w in weights.items() if not name.startswith("rms_"))


# ---------------------------------------------------------------------------------------------- caches


def test_a_cache_goes_on_where_it_was_cut(gqa: Made) -> None:
    transformer, cache = gqa.transformer, gqa.transformer.new_cache()
    tokens, other = random_tokens(transformer.config, 20), random_tokens(transformer.config, 20, seed=1)
    transformer.forward(tokens, cache)
    for n in (20, 12, 5, 0):
        cache.truncate(n)
        assert cache.length == n
        expected = gqa.reference.forward(tokens[:n] + other[:8]).logits[-1]
        assert_close(transformer.forward(other[:8], cache), expected)
        cache.truncate(n)
    for wrong in (-1, 1):
        with pytest.raises(ValueError, match=f"^length: expected 0 to 0, found {wrong}$"):
            cache.truncate(wrong)
        assert cache.length == 0


def test_caches_share_nothing(gqa: Made) -> None:
    transformer = gqa.transformer
    a, b = transformer.new_cache(), transformer.new_cache()
    tokens, other = random_tokens(transformer.config, 12), random_tokens(transformer.config, 12, seed=1)
    for i in range(12):
        logits_a, logits_b = transformer.forward(tokens[i : i + 1], a), transformer.forward(other[i : i + 1], b)
    assert_close(logits_a, gqa.reference.forward(tokens).logits[-1])
    assert_close(logits_b, gqa.reference.forward(other).logits[-1])


@pytest.mark.parametrize("duplicate", [KVCache.fork, copy.copy, copy.deepcopy])
def test_a_copy_of_a_cache_is_independent(gqa: Made, duplicate: Callable[[KVCache], KVCache]) -> None:
    transformer, cache = gqa.transformer, gqa.transformer.new_cache(30)
    tokens, other = random_tokens(transformer.config, 20), random_tokens(transformer.config, 10, seed=1)
    transformer.forward(tokens[:12], cache)
    copied = duplicate(cache)
    assert (copied.length, copied.max_length) == (12, 30)
    assert_close(transformer.forward(other, copied), gqa.reference.forward(tokens[:12] + other).logits[-1])
    assert (copied.length, cache.length) == (22, 12)
    assert_close(transformer.forward(tokens[12:], cache), gqa.reference.forward(tokens).logits[-1])
    assert duplicate(transformer.new_cache()).length == 0


def test_a_cache_cannot_be_pickled(gqa: Made) -> None:
    with pytest.raises(TypeError, match=r"^a KVCache cannot be pickled: compute it again from its ids$"):
        pickle.dumps(gqa.transformer.new_cache())


def test_a_cache_in_use_is_not_copied(gqa: Made, unchanged: KVCache) -> None:
    with pytest.raises(ValueError, match=r"^cache: another step is using it$"):
        gqa.transformer.forward([Hook(lambda: copy.copy(unchanged) and None)], unchanged)  # type: ignore[list-item]
    assert copy.copy(unchanged).length == 5


@pytest.mark.parametrize("kv", ["float32", "float16"])
def test_positions_of_a_cache_as_arrays(gqa: Made, kv: KVType) -> None:
    """Keys and values of position p are found where the layout of the kernels has them, and append puts them there."""
    transformer, tokens = gqa.transformer, random_tokens(gqa.transformer.config, 40)
    cache, other = transformer.new_cache(kv=kv), transformer.new_cache(kv=kv)
    rows = transformer.forward(tokens, cache, logits=None)
    c = transformer.config
    keys, values = cache.positions(19, 26)
    assert keys.shape == (c.n_layers, c.n_kv_heads, c.head_size, 7)
    assert values.shape == (c.n_layers, c.n_kv_heads, 7, c.head_size)
    assert keys.dtype == values.dtype == kv
    for p in range(19, 26):
        np.testing.assert_array_equal(keys[..., p - 19], cache._buffer.keys[:, :, p // 16, :, p % 16])
        np.testing.assert_array_equal(values[:, :, p - 19], cache._buffer.values[:, :, p])
    for start, stop in ((0, 5), (5, 16), (16, 17), (17, 32), (32, 37)):
        other.append([cache.positions(start, stop)])
        assert other.length == stop
    np.testing.assert_array_equal(transformer.forward(tokens[37:], other, logits=None), rows[37:])
    other.truncate(20)
    other.append([cache.positions(20, 32), cache.positions(32, 39)])
    np.testing.assert_array_equal(transformer.forward(tokens[39:], other), rows[39])


def test_append_refuses_what_does_not_fit(gqa: Made, unchanged: KVCache) -> None:
    transformer = gqa.transformer
    for start, stop in ((0, 0), (3, 2), (-1, 2), (0, 6)):
        with pytest.raises(ValueError, match=r"^positions: expected filled positions \(0 to 4\) of one block of 16, found "):
            unchanged.positions(start, stop)
    full = transformer.new_cache(40)
    transformer.forward(random_tokens(transformer.config, 40), full)
    with pytest.raises(ValueError, match=r"^positions: .* of one block of 16, found 10 to 16$"):
        full.positions(10, 17)
    keys, values = full.positions(16, 32)
    small = transformer.new_cache(20)
    for parts, why in (
        ([(keys, values), (keys, values)], r"^parts: expected up to 20 positions, found 32$"),
        ([(keys, values[:, :, :9])], r"^parts: expected float32 arrays .* and .*, found float32 .* and float32 .*$"),
        ([(keys.astype(np.float16), values)], r"^parts: expected float32 arrays .*, found float16 .*$"),
        ([(keys[:1], values[:1])], r"^parts: expected float32 arrays "),
        ([(keys[..., :3], values[:, :, :3]), (keys, values)], r"^parts: expected positions of one block of 16, found 3 to 18$"),
        ([(keys[..., :0], values[:, :, :0])], r"^parts: expected positions of one block of 16, found 0 to -1$"),
    ):
        with pytest.raises(ValueError, match=why):
            small.append(parts)
        assert small.length == 0
    with pytest.raises(ValueError, match=r"^cache: another step is using it$"):
        transformer.forward([Hook(lambda: unchanged.append([(keys, values)]))], unchanged)  # type: ignore[list-item]


def test_max_length(gqa: Made) -> None:
    transformer = gqa.transformer
    assert transformer.new_cache().max_length == transformer.config.seq_len == 40
    assert transformer.new_cache(40).max_length == 40
    cache = transformer.new_cache(3)
    assert cache.max_length == 3
    assert repr(cache) == "KVCache(length=0, max_length=3)"
    assert_close(transformer.forward([1, 2, 3], cache), gqa.reference.forward([1, 2, 3]).logits[-1])
    with pytest.raises(ValueError, match=r"^tokens: expected 1 to 0 .*, found 1$"):
        transformer.forward([1], cache)
    for wrong in (0, -1, 41):
        with pytest.raises(ValueError, match=f"^max_length: expected an integer from 1 to 40, found {wrong}$"):
            transformer.new_cache(wrong)


def test_a_cache_that_does_not_fit_the_memory(tmp_path: Path) -> None:
    """2^48 bytes are more than any process can address today; the second size does not even fit 64 bits."""
    config = Config(dim=8, hidden_dim=1, n_layers=4096, n_heads=4, n_kv_heads=4, vocab_size=2, seq_len=2**31 - 1)
    weights = checkpoints.random_weights(config, np.random.default_rng(0))
    transformer = Transformer(Checkpoint.open(checkpoints.write(tmp_path / "m.bin", config, 1, weights)), n_threads=1)
    size = 2 * 4 * 8 * 4096 * (2**31 - 1)
    cache = transformer.new_cache()  # which begins small
    logits = transformer.forward([1, 0], cache)
    with pytest.raises(MemoryError, match=f"^cache: {2**31 - 1} positions take {size} bytes, more than there is room for$"):
        cache._make_room(2**31 - 1)
    cache.truncate(1)
    np.testing.assert_array_equal(transformer.forward([0], cache), logits)  # and is unharmed
    with pytest.raises(MemoryError, match=r"^cache: 16 positions take "):
        KVCache(dataclasses.replace(config, n_layers=2**31 - 1, n_kv_heads=4), 2**31 - 1)


def test_a_cache_grows_as_positions_are_filled(monkeypatch: pytest.MonkeyPatch, gqa: Made) -> None:
    monkeypatch.setattr("llama2c.transformer.FIRST_BYTES", 0)
    transformer, tokens = gqa.transformer, random_tokens(gqa.transformer.config, 40)
    grown, whole = transformer.new_cache(), transformer.new_cache()
    sizes, rows = [], []
    for token in tokens:
        rows.append(transformer.forward([token], grown))
        sizes.append(grown._buffer.capacity)
    assert sizes == [16] * 16 + [32] * 16 + [48] * 8  # whole blocks of 16, and no more than max_length needs
    np.testing.assert_array_equal(np.stack(rows), transformer.forward(tokens, whole, logits=None))
    assert whole._buffer.capacity == 48  # at once
    copied = copy.copy(grown)
    for cache in (grown, copied):
        with pytest.raises(ValueError, match=r"^tokens: expected 1 to 0 "):
            transformer.forward([1], cache)
        cache.truncate(35)
        np.testing.assert_array_equal(transformer.forward(tokens[35:], cache), rows[-1])
    small = transformer.new_cache(3)
    assert (small._buffer.capacity, small.max_length) == (16, 3)


def test_a_new_cache_asks_for_little_memory(tmp_path: Path) -> None:
    """Not for the 8.6 GB that the context of a Llama 3.2 takes."""
    config = Config(dim=64, hidden_dim=1, n_layers=16, n_heads=8, n_kv_heads=8, vocab_size=2, seq_len=131072, head_size=64)
    cache = KVCache(config, config.seq_len)
    assert cache._buffer.keys.nbytes + cache._buffer.values.nbytes == 1 << 24
    assert cache.max_length == 131072


# ---------------------------------------------------------------------------------------------- a cache in fp16


def test_a_float16_cache_holds_half_the_bytes_and_rounded_numbers(gqa: Made) -> None:
    transformer, tokens = gqa.transformer, random_tokens(gqa.transformer.config, 20)
    wide, half = transformer.new_cache(), transformer.new_cache(kv="float16")
    transformer.forward(tokens[:1], wide)
    transformer.forward(tokens[:1], half)
    assert half._buffer.keys.nbytes * 2 == wide._buffer.keys.nbytes
    for a, b in ((half._buffer.keys[:1, :, 0, :, 0], wide._buffer.keys[:1, :, 0, :, 0]),
                 (half._buffer.values[:1, :, 0], wide._buffer.values[:1, :, 0])):  # fmt: skip
        np.testing.assert_array_equal(a, b.astype(np.float16))  # of the first layer, which no rounding has reached
    assert copy.copy(half).kv == half.kv == "float16"
    assert wide.kv == "float32"


def test_a_float16_cache_gives_the_same_bits_however_it_is_filled(gqa: Made) -> None:
    transformer, tokens = gqa.transformer, random_tokens(gqa.transformer.config, 30)
    cache = transformer.new_cache(kv="float16")
    rows = transformer.forward(tokens, cache, logits=None)
    for size in (1, 7):
        cache, wide = transformer.new_cache(kv="float16"), transformer.new_cache()
        found = [transformer.forward_batch([(tokens[i : i + size], cache), ([1], wide)])[0] for i in range(0, 28, size)]
        np.testing.assert_array_equal(np.stack(found), rows[size - 1 : 28 : size])
    exact = transformer.forward(tokens, transformer.new_cache(), logits=None)
    assert 0 < np.abs(rows - exact).max() < 0.01 * np.abs(exact).max()


def test_the_type_of_a_cache_is_that_of_its_transformer(gqa: Made) -> None:
    checkpoint, tokens = gqa.transformer.checkpoint, random_tokens(gqa.transformer.config, 9)
    half = Transformer(checkpoint, n_threads=1, kv="float16")
    assert (half.new_cache().kv, half.new_cache(kv="float32").kv, gqa.transformer.new_cache().kv) == (
        "float16", "float32", "float32",
    )  # fmt: skip
    expected = gqa.transformer.forward(tokens, gqa.transformer.new_cache(kv="float16"))
    for transformer in (half, copy.copy(half), pickle.loads(pickle.dumps(half))):
        np.testing.assert_array_equal(transformer.forward(tokens, transformer.new_cache()), expected)
    for make in (lambda: Transformer(checkpoint, kv="int8"), lambda: half.new_cache(kv="int8")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"^kv: expected 'float32' or 'float16', found 'int8'$"):
            make()


# ---------------------------------------------------------------------------------------------- errors change nothing

WRONG_TOKENS: list[tuple[Any, type[Exception], str | None]] = [
    ([], ValueError, r"^tokens: expected 1 to 35 \(the room left in the cache\), found 0$"),
    ([1] * 36, ValueError, r"^tokens: expected 1 to 35 \(the room left in the cache\), found 36$"),
    ([1, 130], ValueError, "^tokens: expected ids from 0 to 129, found 130$"),
    ([-1, 3], ValueError, "^tokens: expected ids from 0 to 129, found -1$"),
    ([1, 2**31], ValueError, f"^tokens: expected ids from 0 to 129, found {2**31}$"),
    ([1, 2**70], ValueError, f"^tokens: expected ids from 0 to 129, found {2**70}$"),
    ([1, 2.0], TypeError, None),
    (["1"], TypeError, None),
    ("1", TypeError, None),
    (np.array([1.0]), TypeError, None),
    (3, TypeError, None),
    (None, TypeError, None),
]


@pytest.fixture
def unchanged(gqa: Made) -> Any:
    """A cache of five positions; afterwards it must have these still, and go on as if nothing had been."""
    transformer, tokens = gqa.transformer, random_tokens(gqa.transformer.config, 6)
    cache = transformer.new_cache()
    transformer.forward(tokens[:5], cache)
    expected = transformer.forward(tokens[5:], cache)
    cache.truncate(5)
    yield cache
    assert cache.length == 5
    np.testing.assert_array_equal(transformer.forward(tokens[5:], cache), expected)


@pytest.mark.parametrize(("tokens", "error", "message"), WRONG_TOKENS)
def test_wrong_tokens(gqa: Made, unchanged: KVCache, tokens: Any, error: type[Exception], message: str | None) -> None:
    for logits in (0, 1, None):
        with pytest.raises(error, match=message):
            gqa.transformer.forward(tokens, unchanged, logits=logits)
    other = gqa.transformer.new_cache()
    for parts in ([(tokens, unchanged), ([1], other)], [([1], other), (tokens, unchanged)]):
        with pytest.raises(error, match=message):
            gqa.transformer.forward_batch(parts)
        assert other.length == 0
    gqa.transformer.forward([1], other)  # which is free again


@pytest.mark.parametrize(
    "out",
    [
        np.empty(129, F32),
        np.empty(131, F32),
        np.empty((1, 130), F32),
        np.empty(130),
        np.empty(260, F32)[::2],
        np.broadcast_to(F32(0), 130),
        np.empty(130, np.int32),
    ],
)
def test_wrong_out(gqa: Made, unchanged: KVCache, out: np.ndarray) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^out: expected .*float32 array \(130,\)"):
        gqa.transformer.forward([1], unchanged, out=out)
    with pytest.raises((TypeError, ValueError), match=r"^out: "):
        gqa.transformer.forward([1, 2], unchanged, logits=None, out=out)
    if out.shape != (1, 130):
        with pytest.raises((TypeError, ValueError), match=r"^out: "):
            gqa.transformer.forward_batch([([1], unchanged)], out=out)


def test_an_error_in_a_later_step_leaves_the_cache_as_it_was(
    long_model: tuple[Transformer, list[int], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between two steps of a long prompt: the first has written keys that must not count."""
    transformer, tokens, expected = long_model
    cache, steps = transformer.new_cache(), []
    transformer.forward(tokens[:10], cache)
    run_step = Transformer._step

    def interrupted(self: Transformer, *arguments: Any) -> None:
        steps.append(arguments)
        if len(steps) == 2:
            raise KeyboardInterrupt
        run_step(self, *arguments)

    monkeypatch.setattr(Transformer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        transformer.forward(tokens[20:620], cache)
    monkeypatch.undo()
    assert len(steps) == 2
    assert cache.length == 10
    assert_close(transformer.forward(tokens[10:300], cache), expected.logits[299])


def test_a_cache_of_another_model(gqa: Made, make: Callable[[str], Made]) -> None:
    other = make("mqa_odd").transformer.new_cache()
    with pytest.raises(ValueError, match=r"^cache: expected the shape of this model, found "):
        gqa.transformer.forward([1], other)
    assert other.length == 0


# ---------------------------------------------------------------------------------------------- threads


class Hook:
    """A token id that does something when it is looked at, which is while its cache is in use."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def __index__(self) -> int:
        self.action()
        return 1


def test_a_cache_in_use_is_refused_in_another_thread(gqa: Made, unchanged: KVCache) -> None:
    transformer, errors = gqa.transformer, []

    def use() -> None:
        for forward in (
            lambda: transformer.forward([1], unchanged),
            lambda: transformer.forward_batch([([1], transformer.new_cache()), ([1], unchanged)]),
        ):
            try:
                forward()
            except ValueError as error:
                errors.append(str(error))

    def use_from_another_thread() -> None:
        thread = Thread(target=use)
        thread.start()
        thread.join()

    transformer.forward([Hook(use_from_another_thread)], unchanged)  # type: ignore[list-item]
    assert errors == ["cache: another step is using it"] * 2
    assert unchanged.length == 6
    unchanged.truncate(5)


def test_a_cache_twice_in_a_batch_is_refused(gqa: Made, unchanged: KVCache) -> None:
    with pytest.raises(ValueError, match=r"^cache: another step is using it$"):
        gqa.transformer.forward_batch([([1], unchanged), ([2], unchanged)])


@pytest.mark.parametrize("name", ["gqa", "q8_straddling"])
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.filterwarnings("ignore:n_threads=2 is more than:RuntimeWarning")
def test_many_threads_may_use_one_transformer(make: Callable[[str], Made], name: str, n_threads: int) -> None:
    """Each walks on its own cache, starting at the same time, and finds what it would have found alone."""
    transformer = Transformer(make(name).checkpoint, n_threads=n_threads)
    start = Barrier(6)

    def walk(seed: int, together: bool = True) -> np.ndarray:
        tokens, cache = random_tokens(transformer.config, 40 if n_threads == 1 else 16, seed), transformer.new_cache()
        if together:
            start.wait()
        logits = [transformer.forward(tokens[:9], cache)]
        logits += [transformer.forward([token], cache) for token in tokens[9:]]
        return np.stack(logits)

    expected = [walk(seed, together=False) for seed in range(6)]
    transformer = Transformer(make(name).checkpoint, n_threads=n_threads)  # the rope table grows under them, too
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(walk, range(6)))
    np.testing.assert_array_equal(found, expected)


def test_a_step_is_at_most_256_rows() -> None:
    assert module.MAX_ROWS == 256


def test_truncate_takes_whole_positions_only(gqa: Made) -> None:
    cache = gqa.transformer.new_cache()
    gqa.transformer.forward([1, 2, 3], cache)
    with pytest.raises(TypeError):
        cache.truncate(1.5)  # type: ignore[arg-type]
    assert cache.length == 3
    cache.truncate(np.int64(2))
    assert type(cache.length) is int
    assert cache.length == 2


def test_a_cache_takes_the_bytes_that_are_said(monkeypatch: pytest.MonkeyPatch, gqa: Made) -> None:
    """What an engine counts is what a cache allocates, as it grows, at once, and as a copy."""
    transformer = Transformer(gqa.checkpoint)
    for first in (0, 1 << 24):
        monkeypatch.setattr("llama2c.transformer.FIRST_BYTES", first)
        for max_length in (1, 3, 16, 17, 40):
            grown = transformer.new_cache(max_length)
            for n in range(1, max_length + 1):
                transformer.forward([1], grown)
                reserved = transformer.new_cache(max_length)
                reserved.reserve(n)
                copied = transformer.new_cache(max_length)
                copied.copy_from(grown, n)
                for cache in (grown, reserved, copied, grown.fork()):
                    said = transformer.cache_bytes(n, max_length)
                    assert cache._buffer.keys.nbytes + cache._buffer.values.nbytes == said


def test_positions_that_are_copied_are_those_that_would_be_computed(gqa: Made) -> None:
    transformer = Transformer(gqa.checkpoint)
    ids = list(range(1, 30))
    whole = transformer.new_cache()
    expected = transformer.forward(ids, whole)
    for n in (0, 1, 15, 16, 17, 28):
        cache = transformer.new_cache(30)
        transformer.forward([9] * 5, cache)  # what was there goes
        cache.copy_from(whole, n)
        assert cache.length == n
        np.testing.assert_array_equal(transformer.forward(ids[n:], cache), expected)
    small = transformer.new_cache(8)
    for wrong in (-1, 9, 30):
        with pytest.raises(RequestError, match=r"^length: expected 0 to 8, found "):
            small.copy_from(whole, wrong)
    with pytest.raises(ValueError, match=r"^cache: another step is using it$"):
        whole.copy_from(whole, 3)
    assert whole.length == 29
