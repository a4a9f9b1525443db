"""Wrong arguments for a good model."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

import llama2c

from .case import MODEL, VERSIONS, Case, good_model, open_good

NAN, INF = math.nan, math.inf
V = MODEL.vocab_size
Act = Callable[[llama2c.Llama], object]


def on_good(act: Act, version: int = 0) -> Callable[[Path], object]:
    """`act` on a good model, which afterwards writes what it wrote before."""

    def run(folder: Path) -> object:
        llama = open_good(folder, version)
        before = llama.generate("a", max_tokens=4, temperature=0).tokens
        try:
            return act(llama)
        finally:
            assert llama.generate("a", max_tokens=4, temperature=0).tokens == before

    return run


def forward(tokens: Any) -> Act:
    return lambda llama: llama.transformer.forward(tokens, llama.transformer.new_cache())


def generate(prompt: Any = "a", **options: Any) -> Act:
    return lambda llama: llama.generate(prompt, **options)


def decode(token: Any) -> Act:
    return lambda llama: llama.tokenizer.decode([token])


# ---------------------------------------------------------------------------
# ids and texts


def ids() -> Iterator[Case]:
    for token in (-1, -(2**31), -(2**63), -(2**70), V, 2**31, 2**32 + 1, 2**63, 2**70):
        for version in VERSIONS:
            said = f"tokens: expected ids from 0 to {V - 1}, found {token}"
            yield Case(f"v{version} call: id {token} to forward", on_good(forward([1, token]), version), ValueError, (said,))
        said = f"prompt: expected token ids from 0 to {V - 1}, found {token}"
        yield Case(f"call: id {token} to generate", on_good(generate([1, token, 1])), ValueError, (said,))
        said = f"token: expected 0 to {V - 1}, found {token}"
        yield Case(f"call: id {token} last to generate", on_good(generate([1, token])), ValueError, (f"found {token}",))
        yield Case(f"call: id {token} to decode", on_good(decode(token)), ValueError, (said,))
        yield Case(f"call: id {token} to piece", on_good(lambda llama, t=token: llama.tokenizer.piece(t)), ValueError, (said,))
    for token in (1.0, "1", None, b"1", [1]):
        kind = type(token).__name__
        yield Case(f"call: an id of type {kind} to forward", on_good(forward([1, token])), TypeError, (kind,))
        yield Case(f"call: an id of type {kind} to generate", on_good(generate([token])), TypeError, (kind,))
        yield Case(f"call: an id of type {kind} to decode", on_good(decode(token)), TypeError, (kind,))
    yield Case("call: no ids to forward", on_good(forward([])), ValueError, ("tokens: expected 1 to 16", "found 0"))
    said = "tokens: expected 1 to 16", "found 17"
    yield Case("call: more ids to forward than the context", on_good(forward([1] * 17)), ValueError, said)
    said = ("prompt: expected 1 to 16 tokens",)
    yield Case("call: an empty prompt of ids", on_good(generate([])), ValueError, said)
    yield Case("call: a prompt beyond the context", on_good(generate("b" * 99)), ValueError, said)


def texts() -> Iterator[Case]:
    said = "text: expected valid Unicode, found a lone surrogate U+D800 at index 1"
    lone = "a\ud800"
    acts: dict[str, Act] = {
        "encode": lambda llama: llama.tokenizer.encode(lone),
        "generate": generate(lone),
        "stream": lambda llama: llama.stream(lone),
        "score": lambda llama: llama.score(lone),
    }
    for title, act in acts.items():
        yield Case(f"call: a lone surrogate to {title}", on_good(act), ValueError, (said,))
    chat = lambda llama: llama.chat([{"role": "user", "content": lone}])  # noqa: E731
    yield Case("call: a lone surrogate to chat", on_good(chat), ValueError, ("a lone surrogate U+D800",))
    yield Case("call: a prompt of type int", on_good(generate(3)), TypeError, ("prompt: expected str, bytes or token ids",))
    yield Case("call: NUL in a prompt", on_good(generate("a\0a", max_tokens=2)), None)


# ---------------------------------------------------------------------------
# numbers

WRONG_OPTIONS: list[tuple[str, Any, type[Exception], str]] = [  # option, value, error, words
    *(("max_tokens", n, ValueError, "max_tokens: expected an integer of at least 0") for n in (-1, -(2**63))),
    ("max_tokens", 1.5, TypeError, "max_tokens: expected an integer, found float"),
    *(("temperature", t, ValueError, "temperature: expected a finite") for t in (NAN, INF, -INF, -1.0, -1e-300, 10**400)),
    ("temperature", "1", TypeError, "temperature: expected a number, found str"),
    *(("top_p", p, ValueError, "top_p: expected a number from 0 to 1") for p in (NAN, INF, -INF, -0.1, 1.1, 10**400)),
    *(("min_p", p, ValueError, "min_p: expected a number from 0 to 1") for p in (NAN, -0.1, 1.1, -(10**400))),
    *(("repetition_penalty", r, ValueError, "repetition_penalty: expected a") for r in (NAN, INF, 0, -1.0, 10**400)),
    *(("seed", s, ValueError, f"seed: expected an integer from 0 to {2**64 - 1}") for s in (-1, 2**64, 2**70)),
    ("seed", 1.5, TypeError, "seed: expected an integer, found float"),
    ("top_k", -1, ValueError, "top_k: expected an integer of at least 0"),
    *(("logprobs", n, ValueError, f"logprobs: expected an integer from 0 to {V}") for n in (-1, V + 1, 2**63)),
    ("stop", "", ValueError, "stop: expected a string of at least one character"),
    ("stop", 3, TypeError, "stop: expected a str"),
]
HUGE_OPTIONS: list[tuple[str, Any]] = [  # odd, but with a meaning
    *(("max_tokens", n) for n in (2**31, 2**63, 2**70)),
    *(("top_k", n) for n in (2**31, 2**62 + 1, 2**63, 2**70)),
    *(("temperature", t) for t in (1e-300, 1e-45, 1e30, 1e300, 0)),
    *(("repetition_penalty", r) for r in (5e-324, 1e-45, 1e-38, 1e-30, 1e30, 1e300)),
    *((name, p) for name in ("frequency_penalty", "presence_penalty") for p in (3.4e38, -3.4e38)),
    *(("seed", s) for s in (0, 2**64 - 1)),
    *(("top_p", p) for p in (0, 1, 1e-300, 1 - 1e-16)),
    ("min_p", 1),
]


def options() -> Iterator[Case]:
    for name, value, error, words in WRONG_OPTIONS:
        shown = str(value) if len(str(value)) < 30 else "10^400"
        yield Case(f"call: {name} {shown} ({type(value).__name__})", on_good(generate(**{name: value})), error, (words,))
    for name, value in HUGE_OPTIONS:
        yield Case(f"call: {name} {value} has a meaning", on_good(defined({name: value})), None)
    for length in (0, -1, 17, 2**31, 2**63, 2**70):
        new_cache = lambda llama, n=length: llama.transformer.new_cache(n)  # noqa: E731
        said = f"max_length: expected an integer from 1 to 16, found {length}"
        yield Case(f"call: new_cache({length})", on_good(new_cache), ValueError, (said,))
        if length:
            truncate = lambda llama, n=length: llama.transformer.new_cache().truncate(n)  # noqa: E731
            said = f"length: expected 0 to 0, found {length}"
            yield Case(f"call: truncate({length})", on_good(truncate), ValueError, (said,))
    for stride in (0, -1, 17, 2**63):
        score = lambda llama, n=stride: llama.score("a" * 40, stride=n)  # noqa: E731
        yield Case(f"call: score with stride {stride}", on_good(score), ValueError, ("stride: expected ", f"found {stride}"))
    yield Case("call: score of an empty text", on_good(lambda llama: llama.score("")), ValueError, ("text",))


def defined(chosen: dict[str, Any]) -> Act:
    """The same tokens twice, all of the vocabulary, and no warning."""

    def act(llama: llama2c.Llama) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            twice = [llama.generate("a", **{"seed": 7, "max_tokens": 9, **chosen}).tokens for _ in range(2)]
        assert twice[0] == twice[1] and len(twice[0]) > 0
        assert all(0 <= token < V for token in twice[0])

    return act


# ---------------------------------------------------------------------------
# logits

NO_DISTRIBUTION = "logits: expected numbers that make a distribution, found NaN or infinity"
SAMPLERS: dict[str, dict[str, Any]] = {
    "temperature 0": {"temperature": 0},
    "temperature 1": {"top_p": 0},
    "top_p": {"top_p": 0.5},
    "top_k": {"top_k": 3},
    "min_p": {"min_p": 0.1},
    "a penalty": {"repetition_penalty": 1.5},
    "all": {"top_p": 0.9, "top_k": 9, "min_p": 0.01, "repetition_penalty": 1.1},
}
LOGITS: dict[str, list[float]] = {
    "a NaN": [0, NAN, 1],
    "a NaN first": [NAN, 0, 1],
    "only NaN": [NAN, NAN],
    "one NaN": [NAN],
    "-Inf and NaN": [-INF, NAN, 0],
}


def logits() -> Iterator[Case]:
    for title, options in SAMPLERS.items():
        for kind, numbers in LOGITS.items():
            for n in (0, 5000):  # short, and so long that the sampler sorts in another way
                row = np.array([*numbers, *[0.0] * n], np.float32)
                act = lambda folder, row=row, options=options: llama2c.Sampler(seed=1, **options).sample(row, [0, 0])  # noqa: E731
                many = " among many" if n else ""
                yield Case(f"call: logits with {kind}{many}, {title}", act, ValueError, (NO_DISTRIBUTION,))
    wrong: dict[str, Any] = {
        "none": np.empty(0, np.float32),
        "of float64": np.zeros(3),
        "of int": np.zeros(3, np.int32),
        "a matrix": np.zeros((2, 3), np.float32),
        "every other": np.zeros(6, np.float32)[::2],
    }
    for title, row in wrong.items():
        yield Case(f"call: logits, {title}", lambda folder, row=row: llama2c.Sampler(seed=1).sample(row), ValueError)
    for title, seen in {"-1": [-1], "beyond": [3], "2^63": [2**63], "2^70": [2**70]}.items():
        act = lambda folder, seen=seen: llama2c.Sampler(repetition_penalty=2.0).sample(np.zeros(3, np.float32), seen)  # noqa: E731
        yield Case(f"call: seen ids, {title}", act, (TypeError if title == "2^70" else ValueError), ("seen: expected ",))


# ---------------------------------------------------------------------------
# lifetimes and threads


def close_the_mapping(folder: Path) -> None:
    """There is no close(). What could be closed under the weights, the mapping, cannot: they still use its memory."""
    checkpoint = llama2c.Checkpoint.open(good_model(folder))
    base: Any = checkpoint.weights["wq"]
    while not hasattr(base, "close"):
        base = base.obj if isinstance(base, memoryview) else base.base
    base.close()


def outlives_everything(folder: Path) -> None:
    """The last object that needs the file's memory keeps it, whatever is dropped and deleted around it."""
    path = good_model(folder)
    checkpoint = llama2c.Checkpoint.open(path)
    transformer = llama2c.Transformer(checkpoint, n_threads=1)
    expected = transformer.forward([1, 5], transformer.new_cache())
    table = cast("np.ndarray[Any, np.dtype[np.float32]]", checkpoint.weights["token_embedding_table"])[5]
    row = table.copy()
    del checkpoint
    path.unlink()
    np.testing.assert_array_equal(transformer.forward([1, 5], transformer.new_cache()), expected)
    cache = transformer.new_cache()
    del transformer
    np.testing.assert_array_equal(table, row)
    assert cache.length == 0


def write_to_weights(folder: Path, **options: Any) -> None:
    weights: Any = llama2c.Checkpoint.open(good_model(folder), **options).weights
    weights["wq"][0, 0, 0] = 1


def stream_given_up(llama: llama2c.Llama) -> None:
    pieces = llama.stream("a", temperature=0)
    next(pieces)
    cast(Any, pieces).close()
    assert list(pieces) == []


def one_cache_two_threads(llama: llama2c.Llama) -> None:
    """However two threads meet in one cache: a step is taken or refused, never half of it."""
    transformer = llama.transformer
    cache = transformer.new_cache()
    taken: list[int] = []
    errors: list[str] = []
    start = threading.Barrier(2)

    def walk() -> None:
        start.wait()
        for _ in range(16):
            try:
                transformer.forward([5], cache)
                taken.append(1)
            except ValueError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=walk) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) + len(errors) == 32 and cache.length == len(taken)
    known = ("cache: another step is using it", "tokens: expected 1 to 0")
    assert all(error.startswith(known) for error in errors), errors
    fresh = transformer.new_cache()
    transformer.forward([5] * (cache.length - 1), fresh)
    cache.truncate(cache.length - 1)
    np.testing.assert_array_equal(transformer.forward([5], cache), transformer.forward([5], fresh))


def cache_in_use(llama: llama2c.Llama) -> None:
    """The same, on purpose: while a step reads its ids, one of them asks for another step in the same cache."""
    cache = llama.transformer.new_cache()

    class Id:
        def __index__(self) -> int:
            llama.transformer.forward([1], cache)
            return 1

    llama.transformer.forward(cast(Any, [Id()]), cache)


def other_cache(folder: Path) -> None:
    (folder / "other").mkdir()
    other = open_good(folder / "other").transformer
    longer = llama2c.Config(dim=24, hidden_dim=8, n_layers=1, n_heads=6, n_kv_heads=2, vocab_size=V, seq_len=16)
    from llama2c.transformer import KVCache

    other.forward([1], KVCache(longer, 4))


def lifetimes() -> Iterator[Case]:
    yield Case("call: close the mapping under the weights", close_the_mapping, BufferError, ("exported pointers",))
    yield Case("call: use after all else is gone", outlives_everything, None)
    for title, options in {"mapped": {}, "read": {"mmap": False}}.items():
        act = lambda folder, options=options: write_to_weights(folder, **options)  # noqa: E731
        yield Case(f"call: write to the weights ({title})", act, ValueError, ("read-only",))
    yield Case("call: a stream after it was closed", on_good(stream_given_up), None)
    yield Case("call: one cache from two threads", on_good(one_cache_two_threads), None)
    said = "cache: another step is using it"
    yield Case("call: a cache in use", on_good(cache_in_use), ValueError, (said,))
    twice = lambda llama: llama.transformer.forward_batch([([1], cache := llama.transformer.new_cache()), ([1], cache)])  # noqa: E731
    yield Case("call: one cache twice in a batch", on_good(twice), ValueError, (said,))
    yield Case("call: the cache of another model", other_cache, ValueError, ("cache: expected the shape of this model",))


def n_threads() -> Iterator[Case]:
    def given(n: Any) -> Callable[[Path], object]:
        return lambda folder: llama2c.load(good_model(folder), n_threads=n)

    for n in (0, -1, 10**6, 2**31, 2**63, 2**70):
        yield Case(f"call: n_threads {n}", given(n), ValueError, (f"n_threads: expected an integer from 1 to 1024, found {n}",))
    for n in ("2", 2.0, True):
        kind = type(n).__name__
        yield Case(f"call: n_threads of type {kind}", given(n), TypeError, (f"n_threads: expected an integer, found {kind}",))
    for text in ("0", "-3", "1000000", "9" * 30):
        said = f"OMP_NUM_THREADS: expected an integer from 1 to 1024, found {text}"
        yield Case(f"call: OMP_NUM_THREADS={text}", from_environment(text), ValueError, (said,))
    for text in ("abc", "1.5", "2x", "9" * 9999):
        said = "OMP_NUM_THREADS: expected a number"
        yield Case(f"call: OMP_NUM_THREADS={text[:30]} is not a number", from_environment(text), ValueError, (said,))


def from_environment(text: str) -> Callable[[Path], object]:
    def run(folder: Path) -> object:
        path = good_model(folder)
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = text
        try:
            return llama2c.load(path)
        finally:
            del os.environ["OMP_NUM_THREADS"]
            if before is not None:
                os.environ["OMP_NUM_THREADS"] = before

    return run


CASES = [*ids(), *texts(), *options(), *logits(), *lifetimes(), *n_threads()]
