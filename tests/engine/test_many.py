"""generate_many: order, laziness, dicts and errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from controlled import POISON

from llama2c.engine.engine import Engine
from llama2c.engine.many import AHEAD, AT_ONCE, completions
from llama2c.errors import RequestError
from llama2c.llama import Llama
from llama2c.requests import complete

WORDS = ["dog", "cat", "bird", "girl", "mouse", "bear"]
PROMPTS = [f"The {word}" for word in WORDS]


def test_the_texts_of_one_after_another(llama: Llama) -> None:
    found = list(llama.generate_many(PROMPTS, max_tokens=20, seed=2**64 - 2))
    expected = [llama.generate(prompt, max_tokens=20, seed=(2**64 - 2 + i) % 2**64) for i, prompt in enumerate(PROMPTS)]
    assert [done.text for done in found] == [done.text for done in expected]
    assert [done.seed for done in found] == [2**64 - 2, 2**64 - 1, 0, 1, 2, 3]


def test_the_order_is_that_of_the_prompts(llama: Llama) -> None:
    lengths = [60, 1, 30, 2, 50, 3]
    many = llama.generate_many(
        ({"prompt": prompt, "max_tokens": n} for prompt, n in zip(PROMPTS, lengths, strict=True)),
        temperature=0,
        max_sequences=2,
    )
    assert [done.generation_tokens for done in many] == lengths


def test_prompts_of_all_kinds(llama: Llama) -> None:
    ids, messages = llama.tokenizer.encode("The dog"), [{"role": "user", "content": "Hello"}]
    prompts: list[Any] = [
        "The dog",
        b"The dog",
        ids,
        messages,
        {"prompt": ids, "seed": 9},
        {"messages": messages, "max_tokens": 3},
    ]
    found = [done.tokens for done in llama.generate_many(prompts, max_tokens=8, seed=1)]
    assert found == [
        llama.generate("The dog", max_tokens=8, seed=1).tokens,
        llama.generate("The dog", max_tokens=8, seed=2).tokens,
        llama.generate("The dog", max_tokens=8, seed=3).tokens,
        llama.chat(messages, max_tokens=8, seed=4).tokens,
        llama.generate("The dog", max_tokens=8, seed=9).tokens,
        llama.chat(messages, max_tokens=3, seed=6).tokens,
    ]


def test_a_million_prompts_are_read_as_they_are_needed(llama: Llama) -> None:
    n_read = 0

    def prompts() -> Iterator[list[int]]:
        nonlocal n_read
        for n_read in range(1, 10**6):
            yield [1, 300 + n_read % 1000]

    many = llama.generate_many(prompts(), max_tokens=3, seed=1, max_sequences=2)
    assert n_read == 0
    for n_given in range(1, 30):
        next(many)
        assert n_given <= n_read <= n_given + AHEAD * 2
    n_threads = threading.active_count()
    many.close()  # type: ignore[attr-defined]
    assert threading.active_count() == n_threads - 1


def test_a_slow_source_does_not_hold_back_what_is_done() -> None:
    """Where every request is done before the next prompt comes, each is given out before another prompt is asked for."""

    class Instant:
        max_sequences = 4

        def submit(self, prompt: str, **options: Any) -> Any:
            return complete([], 1, options["seed"], "length")

    events: list[str] = []

    def prompts() -> Iterator[str]:
        for i in range(3):
            events.append(f"read {i}")
            yield "The"

    for done in completions(Instant(), prompts(), "raise", {"seed": 0}):  # type: ignore[arg-type]
        events.append(f"given {done.seed}")
    assert events == ["read 0", "given 0", "read 1", "given 1", "read 2", "given 2"]


def test_bad_prompts_are_errors_in_their_place(controlled: Any) -> None:
    bad = [None, "\ud800", [], [5000], {"max_tokens": 3}, {"prompt": "a", "messages": []}, {"prompt": "a", "size": 1},
           {"prompt": "a", "n": 2}, [{"role": "robot", "content": "a"}], [1, POISON], {"prompt": "a", "seed": -1}]  # fmt: skip
    prompts: list[Any] = [item for pair in zip(PROMPTS * 2, bad, strict=False) for item in pair]
    found = list(controlled.generate_many(prompts, max_tokens=3, seed=1, on_error="return"))
    assert [done.finish_reason for done in found] == ["length", "error"] * len(bad)
    assert [type(done.error) for done in found[1::2]] == [
        TypeError, RequestError, RequestError, RequestError, RequestError, RequestError, TypeError,
        RequestError, RequestError, ValueError, RequestError,
    ]  # fmt: skip
    assert all(done.error is None for done in found[::2])
    for i in (0, 4, 20):
        assert found[i].tokens == controlled.generate(prompts[i], max_tokens=3, seed=1 + i).tokens
    assert [found[i].seed for i in (1, 3, 19)] == [2, 4, 20]

    many = controlled.generate_many(["The dog", [], "The cat"], max_tokens=3)
    assert next(many).finish_reason == "length"
    with pytest.raises(RequestError, match=r"^prompt: expected 1 to 320"):
        next(many)
    assert list(many) == []


def test_an_error_of_the_iterable_comes_last(llama: Llama) -> None:
    def prompts() -> Iterator[str]:
        yield from PROMPTS[:3]
        raise OSError("the disk is gone")

    found = []
    with pytest.raises(OSError, match="the disk is gone"):
        for done in llama.generate_many(prompts(), max_tokens=3, on_error="return"):
            found.append(done)
    assert len(found) == 3


def test_arguments_are_checked_at_once(llama: Llama) -> None:
    n_threads = threading.active_count()
    for prompts, options, error, message in (
        (PROMPTS, {"temperature": -1}, RequestError, "temperature: "),
        (PROMPTS, {"size": 1}, TypeError, "size: unknown option"),
        (PROMPTS, {"on_error": "ignore"}, RequestError, "on_error: expected 'raise' or 'return', found 'ignore'"),
        (PROMPTS, {"seed": 2**64}, RequestError, "seed: "),
        ("The dog", {}, TypeError, "prompts: expected an iterable of prompts, found str"),
        ({"prompt": "The dog"}, {}, TypeError, "prompts: expected an iterable of prompts, found dict"),
        (5, {}, TypeError, "prompts: expected an iterable of prompts, found int"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            llama.generate_many(prompts, **options)  # type: ignore[arg-type]
        with Engine(llama) as engine, pytest.raises(error, match=f"^{message}"):
            engine.generate_many(prompts, **options)  # type: ignore[arg-type]
    assert list(llama.generate_many([])) == []
    assert threading.active_count() == n_threads


def test_an_engine_goes_on_after_many(llama: Llama) -> None:
    with Engine(llama, max_sequences=2) as engine:
        many = engine.generate_many(PROMPTS * 5, max_tokens=None, seed=1)
        next(many)
        many.close()  # type: ignore[attr-defined]
        request = engine.submit("The dog", seed=1, max_tokens=4)
        assert request.result().tokens == llama.generate("The dog", seed=1, max_tokens=4).tokens
        assert list(
            engine.generate_many([{"messages": [{"role": "user", "content": "Hi"}], "now": date(2026, 1, 1)}], max_tokens=1)
        )


def test_it_begins_enough_to_keep_the_engine_busy(controlled: Any) -> None:
    with Engine(controlled, max_sequences=4) as engine:
        found = [
            done.generation_tokens
            for done in engine.generate_many(PROMPTS * 4, max_tokens=8, temperature=0, logit_bias={2: -99.0})
        ]
        assert found == [8] * 24
        assert max(map(len, controlled.transformer.batches)) == 4
        assert AT_ONCE > 1
