"""The token loop on a fake model: what it feeds, what it yields, when it stops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes import BOS, EOS, FakeCache, FakeTransformer

from llama2c.generation import Step, generate
from llama2c.sampler import Sampler


def run(transformer: Any, prompt: Any, *, length: int = 512, sampler: Sampler | None = None, **options: Any):
    """The cache, and an iterator of steps; greedy unless there is a sampler."""
    cache = FakeCache(length)
    options.setdefault("stop_tokens", (BOS, EOS))
    return cache, generate(transformer, cache, prompt, sampler or Sampler(temperature=0), **options)


def test_prompt_in_one_step_then_token_by_token() -> None:
    transformer = FakeTransformer([10, 11, 12])
    cache, steps = run(transformer, [BOS, 50, 51])
    assert list(steps) == [
        Step(10, None, (), None),
        Step(11, None, (), None),
        Step(12, None, (), None),
        Step(EOS, None, (), "stop"),
    ]
    assert transformer.steps == [[BOS, 50, 51], [10], [11], [12]]  # the last token is not fed
    assert cache.tokens == [BOS, 50, 51, 10, 11, 12]


@pytest.mark.parametrize("stop_token", [BOS, EOS])
def test_stop_tokens(stop_token: int) -> None:
    _, steps = run(FakeTransformer([10, stop_token, 11]), [BOS])
    assert [(step.token, step.finish_reason) for step in steps] == [(10, None), (stop_token, "stop")]


def test_other_stop_tokens() -> None:
    _, steps = run(FakeTransformer([10, EOS, 11, 12]), [BOS], stop_tokens=[11])
    assert [(step.token, step.finish_reason) for step in steps] == [(10, None), (EOS, None), (11, "stop")]
    _, steps = run(FakeTransformer([10, EOS, 11]), [BOS], stop_tokens=(), max_tokens=3)
    assert [step.token for step in steps] == [10, EOS, 11]


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_max_tokens(max_tokens: int) -> None:
    _, steps = run(FakeTransformer([10, 11, 12, 13]), [BOS], max_tokens=max_tokens)
    expected = [(10, None), (11, None), (12, None)][:max_tokens]
    expected[-1] = (expected[-1][0], "length")
    assert [(step.token, step.finish_reason) for step in steps] == expected


def test_a_stop_token_that_is_also_the_last_is_a_stop() -> None:
    _, steps = run(FakeTransformer([10, EOS]), [BOS], max_tokens=2)
    assert [step.finish_reason for step in steps] == [None, "stop"]


def test_max_tokens_0_does_nothing() -> None:
    transformer = FakeTransformer([10])
    _, steps = run(transformer, [BOS], max_tokens=0)
    assert list(steps) == []
    assert transformer.steps == []


@pytest.mark.parametrize(("n_prompt", "n_tokens"), [(1, 5), (3, 3), (5, 1)])
def test_end_of_the_context(n_prompt: int, n_tokens: int) -> None:
    # a cache of 5 gives 5 rows of logits; the token drawn from the last of them is the last
    cache, steps = run(FakeTransformer([10] * 99), [BOS] * n_prompt, length=5, max_tokens=50)
    assert [step.finish_reason for step in steps] == [None] * (n_tokens - 1) + ["length"]
    assert cache.length == 5


def test_continues_a_cache() -> None:
    transformer = FakeTransformer(vocab_size=50)
    sampler = Sampler(temperature=0)
    cache = FakeCache(20)
    first = [s.token for s in generate(transformer, cache, [BOS, 9], sampler, max_tokens=3, stop_tokens=())]
    assert cache.length == 4
    second = list(generate(transformer, cache, [first[-1], 30], sampler, stop_tokens=()))
    assert len(second) == 20 - 6 + 1
    _, whole = run(transformer, [BOS, 9, *first, 30], length=20, stop_tokens=())
    assert [step.token for step in whole] == [step.token for step in second]


def test_an_iterator_given_up_leaves_the_cache_usable() -> None:
    transformer = FakeTransformer(vocab_size=50)
    cache, steps = run(transformer, [BOS, 9], length=20, stop_tokens=())
    tokens = [next(steps).token, next(steps).token]
    steps.close()  # type: ignore[attr-defined]
    assert cache.tokens == [BOS, 9, tokens[0]]
    rest = generate(transformer, cache, tokens[1:], Sampler(temperature=0), stop_tokens=())
    _, whole = run(transformer, [BOS, 9], length=20, stop_tokens=())
    assert [*tokens, *(step.token for step in rest)] == [step.token for step in whole]


def test_seeds() -> None:
    def tokens(seed: int) -> list[int]:
        _, steps = run(FakeTransformer(), [BOS], sampler=Sampler(seed=seed), max_tokens=30, stop_tokens=())
        return [step.token for step in steps]

    assert tokens(7) == tokens(7)
    assert len({tuple(tokens(seed)) for seed in range(8)}) == 8


def test_tokens_are_those_of_the_sampler() -> None:
    # the same loop, written with the sampler by hand
    _, steps = run(FakeTransformer(), [BOS], sampler=Sampler(seed=7), max_tokens=30, stop_tokens=())
    model, cache, sampler = FakeTransformer(), FakeCache(99), Sampler(seed=7)
    tokens = [BOS]
    for _ in range(30):
        logits = model.forward(tokens[-1:], cache, out=np.empty(259, np.float32))
        tokens.append(sampler.sample(logits))
    assert [step.token for step in steps] == tokens[1:]


def test_the_penalty_sees_prompt_and_output() -> None:
    class Recorder(Sampler):
        def sample(self, logits: Any, seen: Any = None) -> int:
            calls.append(None if seen is None else seen.tolist())
            return super().sample(logits, seen)

    calls: list[Any] = []
    script = [10, 11, 12]
    _, steps = run(FakeTransformer(script), [BOS, 50], sampler=Recorder(0.0, repetition_penalty=1.1))
    assert [step.token for step in steps] == [*script, EOS]
    assert calls == [[BOS, 50], [BOS, 50, 10], [BOS, 50, 10, 11], [BOS, 50, 10, 11, 12]]
    calls.clear()
    list(run(FakeTransformer([10]), [BOS], sampler=Recorder(0.0))[1])
    assert calls == [None, None]


def test_the_penalty_ends_a_repetition() -> None:
    class Parrot(FakeTransformer):
        def logits(self, cache: FakeCache) -> np.ndarray:
            return np.array([0, 0, 0, 1.0, 2.0, 1.5], np.float32)

    sampler = Sampler(temperature=0, repetition_penalty=4.0)
    _, steps = run(Parrot(vocab_size=6), [BOS], sampler=sampler, max_tokens=4)
    assert [step.token for step in steps] == [4, 5, 3, 4]  # 2 -> 0.5, 1.5 -> 0.375, 1 -> 0.25


@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("ties", [False, True])
def test_logprobs(k: int, ties: bool) -> None:
    class Model(FakeTransformer):
        def logits(self, cache: FakeCache) -> np.ndarray:
            row = super().logits(cache)
            return np.round(row) if ties else row

    model = Model(vocab_size=40)
    # neither the temperature nor the penalty shows in them
    sampler = Sampler(temperature=2.0, repetition_penalty=3.0, seed=1)
    cache, steps = run(model, [BOS, 5], sampler=sampler, max_tokens=20, logprobs=k, stop_tokens=())
    replay = FakeCache(99)
    tokens = [BOS, 5]
    for step in steps:
        replay.tokens += tokens
        logits = model.logits(replay).astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum())
        best = sorted(range(40), key=lambda i: (-expected[i], i))[:k]
        assert step.logprob == pytest.approx(expected[step.token], abs=1e-5)
        assert [token for token, _ in step.top_logprobs] == best
        assert [value for _, value in step.top_logprobs] == pytest.approx(expected[best].tolist(), abs=1e-5)
        assert type(step.logprob) is float
        assert type(step.top_logprobs[0][0]) is int
        tokens = [step.token]
    assert cache.length == 21


def test_logprobs_do_not_change_the_tokens() -> None:
    def tokens(k: int) -> list[int]:
        _, steps = run(FakeTransformer(), [BOS], sampler=Sampler(seed=3), max_tokens=20, logprobs=k)
        return [step.token for step in steps]

    assert tokens(0) == tokens(5)


@pytest.mark.parametrize("prompt", [np.array([1, 50]), (1, 50), iter([1, 50]), [np.int32(1), 50]])
def test_kinds_of_prompts(prompt: Any) -> None:
    transformer = FakeTransformer([10])
    _, steps = run(transformer, prompt)
    assert [step.token for step in steps] == [10, EOS]
    assert transformer.steps[0] == [1, 50]


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ([], {}, ValueError, "prompt: expected 1 to 8 tokens, found 0"),
        ([1] * 9, {}, ValueError, "prompt: expected 1 to 8 tokens, found 9"),
        ([1, 259], {}, ValueError, "prompt token: expected an integer from 0 to 258, found 259"),
        ([1, -1], {}, ValueError, "prompt token: expected an integer from 0 to 258, found -1"),
        ([1, 2.0], {}, TypeError, "prompt token: expected an integer, found float"),
        ("ab", {}, TypeError, "prompt token: expected an integer, found str"),
        ([1], {"max_tokens": -1}, ValueError, "max_tokens: expected an integer of at least 0, found -1"),
        ([1], {"max_tokens": 2.5}, TypeError, "max_tokens: expected an integer, found float"),
        ([1], {"logprobs": -1}, ValueError, "logprobs: expected an integer from 0 to 259, found -1"),
        ([1], {"logprobs": 260}, ValueError, "logprobs: expected an integer from 0 to 259, found 260"),
        ([1], {"logprobs": None}, TypeError, "logprobs: expected an integer, found NoneType"),
    ],
)
def test_bad_arguments(prompt: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    transformer = FakeTransformer([10])
    with pytest.raises(error) as caught:
        run(transformer, prompt, length=8, **options)  # at the call, not at the first next()
    assert str(caught.value) == message
    assert transformer.steps == []
