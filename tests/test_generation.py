"""Sequence, and the loop that drives one, on a fake model: what is fed, what comes out, when it stops."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fakes import BOS, EOS, FakeCache, FakeTokenizer, FakeTransformer, spell

from llama2c.constraints import CONSTRAINTS, constrain
from llama2c.errors import RequestError
from llama2c.generation import Options, Sequence, Step, count_common, generate
from llama2c.sampler import Sampler


def make(prompt: Any, *, vocab_size: int = 259, length: int = 512, sampler: Sampler | None = None, **options: Any) -> Sequence:
    """A sequence that ends at BOS and EOS, or the end of the context; greedy unless there is a sampler."""
    options = {"stop_tokens": (BOS, EOS), "max_tokens": None, **options}
    return Sequence(prompt, sampler or Sampler(temperature=0), vocab_size=vocab_size, max_length=length, **options)


def run(transformer: Any, prompt: Any, *, length: int = 512, **options: Any) -> tuple[FakeCache, Iterator[Step]]:
    """The cache, and an iterator of steps."""
    cache: Any = FakeCache(length)
    sequence = make(prompt, vocab_size=transformer.config.vocab_size, length=length, **options)
    return cache, generate(transformer, cache, sequence)


def test_prompt_in_one_step_then_token_by_token() -> None:
    transformer = FakeTransformer([10, 11, 12])
    cache, steps = run(transformer, [BOS, 50, 51])
    assert list(steps) == [
        Step(10, "", None, (), None),
        Step(11, "", None, (), None),
        Step(12, "", None, (), None),
        Step(EOS, "", None, (), "stop"),
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


def test_a_request_that_is_given_up_can_be_taken_up_again() -> None:
    transformer: Any = FakeTransformer(vocab_size=50)
    cache: Any = FakeCache(20)
    sequence = make([BOS, 9], vocab_size=50, length=20, stop_tokens=())
    steps = generate(transformer, cache, sequence)
    tokens = [next(steps).token, next(steps).token]
    steps.close()  # type: ignore[attr-defined]
    assert (cache.tokens, sequence.ids, sequence.to_feed) == ([BOS, 9, tokens[0]], [BOS, 9, *tokens], tokens[1:])
    tokens += [step.token for step in generate(transformer, cache, sequence)]
    _, whole = run(transformer, [BOS, 9], length=20, stop_tokens=())
    assert [step.token for step in whole] == tokens


def test_a_cache_that_is_ahead_is_cut() -> None:
    """As after an interrupt between a step and its draw."""
    transformer: Any = FakeTransformer(vocab_size=50)
    cache: Any = FakeCache(20)
    cache.tokens += [7, 7, 7]
    found = [step.token for step in generate(transformer, cache, make([BOS, 9], vocab_size=50, length=20, stop_tokens=()))]
    _, whole = run(transformer, [BOS, 9], length=20, stop_tokens=())
    assert [step.token for step in whole] == found


# ---------------------------------------------------------------------------
# a sequence that is pushed from outside


def test_what_a_sequence_asks_for() -> None:
    sequence = make([BOS, 5, 6], length=8, max_tokens=3)
    assert (sequence.to_feed, sequence.wanted, sequence.n_fed, sequence.n_positions) == ([BOS, 5, 6], 1, 0, 5)
    rows = np.eye(259, dtype=np.float32)
    assert sequence.accept(rows[[20]]) == [Step(20, "", None, (), None)]
    assert (sequence.to_feed, sequence.wanted, sequence.n_fed, sequence.n_positions) == ([20], 1, 3, 5)
    assert (sequence.ids, sequence.n_prompt, sequence.finish_reason) == ([BOS, 5, 6, 20], 3, None)
    sequence.accept(rows[[21]])
    assert sequence.accept(rows[[22]])[0].finish_reason == sequence.finish_reason == "length"
    assert (sequence.to_feed, sequence.wanted) == ([], 0)
    with pytest.raises(ValueError, match=r"^logits: expected at most 0 rows, found 1$"):
        sequence.accept(rows[[23]])


def test_a_sequence_that_lost_its_cache_is_computed_again() -> None:
    """An engine may take the cache away: the ids are all that is needed, and the sampler goes on where it was."""
    transformer: Any = FakeTransformer(vocab_size=50)

    def tokens(lost_after: int | None) -> list[int]:
        sequence = make([BOS, 9], vocab_size=50, length=30, stop_tokens=(), sampler=Sampler(seed=5))
        cache: Any = FakeCache(30)
        drawn = [step.token for step in itertools.islice(generate(transformer, cache, sequence), lost_after)]
        sequence.n_fed = 0
        return drawn + [step.token for step in generate(transformer, FakeCache(30), sequence)]  # type: ignore[arg-type]

    assert tokens(7) == tokens(1) == tokens(None)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rows_at_once", [1, 2, 99])
def test_a_draft_changes_no_token(seed: int, rows_at_once: int) -> None:
    """Drafts that are right, wrong at some place, too long, or end the text; with penalty, text and stop strings."""
    rng = np.random.default_rng(seed)
    transformer: Any = FakeTransformer(vocab_size=259)
    options: Any = {"length": 40, "logprobs": 2, "text_stream": FakeTokenizer().text_stream, "stop": ["zz", "q"]}

    def sampler() -> Sampler:
        return Sampler(0.3, repetition_penalty=1.2, seed=seed)

    _, whole = run(transformer, [BOS, 70], sampler=sampler(), **options)
    expected = list(whole)
    sequence, cache, found, n_steps = make([BOS, 70], sampler=sampler(), **options), FakeCache(40), list[Step](), 0
    while sequence.finish_reason is None:
        ahead = [step.token for step in expected[len(found) :]] + [4] * 40
        draft = ahead[: rng.integers(0, 7)]
        if draft and rng.random() < 0.5:
            draft[rng.integers(len(draft))] = int(rng.integers(259))
        sequence.propose(draft)
        cache.truncate(sequence.n_fed)
        assert cache.tokens == sequence.ids[: sequence.n_fed]
        logits = transformer.forward(sequence.to_feed, cache, logits=None)[-sequence.wanted :]
        for first in range(0, len(logits), rows_at_once):
            found += sequence.accept(logits[first : first + rows_at_once])
        n_steps += 1
    assert found == expected
    assert (sequence.ids, sequence.wanted) == ([BOS, 70, *(step.token for step in expected)], 0)
    assert len(expected) > 5 and n_steps < len(expected)


def test_a_draft_is_cut_to_the_room_there_is() -> None:
    sequence = make([BOS, 5], length=6, max_tokens=3)
    sequence.propose([7] * 9)
    assert (sequence.to_feed, sequence.wanted) == ([BOS, 5, 7, 7], 3)  # the last token drawn is never fed
    sequence.propose([])
    assert (sequence.to_feed, sequence.wanted) == ([BOS, 5], 1)
    with pytest.raises(RequestError, match=r"^draft: expected token ids from 0 to 258, found 259$"):
        sequence.propose([259])


def test_a_restart_keeps_what_both_have_in_common() -> None:
    transformer: Any = FakeTransformer(vocab_size=50)
    cache: Any = FakeCache(40)
    sequence = make([BOS, 9, 8], vocab_size=50, length=40, stop_tokens=(), max_tokens=4, sampler=Sampler(seed=3))
    first = [step.token for step in generate(transformer, cache, sequence)]
    assert sequence.n_fed == 6
    for ids, n_kept in (([BOS, 9, 8, *first, 30], 6), ([BOS, 9, 7, 7], 2), ([BOS, 9], 1), ([5], 0), ([5], 0)):
        fed = sequence.ids[: sequence.n_fed]
        sequence.restart(ids, max_tokens=2)
        assert (sequence.n_fed, sequence.n_prompt, sequence.finish_reason) == (n_kept, len(ids), None)
        assert fed[:n_kept] == ids[:n_kept] and sequence.to_feed == ids[n_kept:]
        tokens = [step.token for step in generate(transformer, cache, sequence)]
        assert cache.tokens == [*ids, tokens[0]]
    with pytest.raises(RequestError, match=r"^prompt: expected 1 to 40 tokens \(the context\), found 0$"):
        sequence.restart([])


def test_count_common() -> None:
    assert count_common([1, 2, 3], [1, 2, 4]) == 2
    assert count_common([1, 2], [1, 2, 4]) == count_common([1, 2, 4], [1, 2]) == 2
    assert count_common([], [1]) == count_common([2], [1]) == 0


# ---------------------------------------------------------------------------
# text


def text_of(script: str, **options: Any) -> list[tuple[str, str | None]]:
    _, steps = run(FakeTransformer(spell(script)), [BOS, *spell(" x")], text_stream=FakeTokenizer().text_stream, **options)
    return [(step.text, step.finish_reason) for step in steps]


def test_text_and_stop_strings() -> None:
    assert text_of("é!") == [("", None), ("é", None), ("!", None), ("", "stop")]
    assert text_of("aé", max_tokens=2) == [("a", None), ("\ufffd", "length")]
    assert text_of("a END b", stop="END") == [("a", None), (" ", None), ("", None), ("", None), ("", "stop")]
    assert text_of("a E", stop=["END"]) == [("a", None), (" ", None), ("", None), ("E", "stop")]
    with pytest.raises(RequestError, match=r"^stop: stop strings need a text_stream$"):
        make([BOS], stop="a")


# ---------------------------------------------------------------------------
# bias and masks


def test_logit_bias() -> None:
    class Fixed(FakeTransformer):
        def logits(self, cache: FakeCache) -> np.ndarray:
            return np.array([0, 0, 0, 1.0, 2.0, 1.5], np.float32)

    def tokens(bias: Any, sampler: Sampler | None = None) -> list[int]:
        _, steps = run(Fixed(vocab_size=6), [BOS], max_tokens=3, logit_bias=bias, sampler=sampler)
        return [step.token for step in steps]

    assert tokens(None) == tokens({}) == tokens({4: -0.25}) == [4] * 3
    assert tokens({4: -1.0}) == tokens({4: -math.inf}) == tokens({5: 0.75}) == [5] * 3
    assert tokens({np.int64(3): 100}) == [3] * 3
    # before the penalty: 2 - 0.5 = 1.5 -> 0.375, then 1.5 -> 0.375, then 1
    assert tokens({4: -0.25}, Sampler(temperature=0, repetition_penalty=4.0)) == [4, 5, 3]


def test_an_excluded_token_is_never_drawn_and_logprobs_stay_the_models() -> None:
    excluded = {id: -math.inf for id in range(259) if id % 3}
    for options in ({}, {"top_p": 1.0}, {"top_k": 200}, {"min_p": 0.001}):
        sampler = Sampler(5.0, seed=1, **options)
        _, steps = run(FakeTransformer(), [BOS], sampler=sampler, max_tokens=60, logit_bias=excluded)
        assert all(step.token % 3 == 0 for step in steps)
    replay = FakeCache(99)
    _, steps = run(FakeTransformer(), [BOS], max_tokens=5, logit_bias=excluded, logprobs=259)
    tokens = [BOS]
    for step in steps:
        replay.tokens += tokens
        logits = FakeTransformer().logits(replay).astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum())
        assert step.logprob == pytest.approx(expected[step.token], abs=1e-5)
        assert step.top_logprobs[0][1] == pytest.approx(expected.max(), abs=1e-5)
        tokens = [step.token]


def test_all_tokens_excluded_is_an_error_of_the_request() -> None:
    for sampler in (Sampler(0.0), Sampler(1.0), Sampler(1.0, top_k=5)):
        _, steps = run(FakeTransformer(), [BOS], logit_bias=dict.fromkeys(range(259), -math.inf), sampler=sampler)
        with pytest.raises(ValueError, match=r"^logits: "):
            next(steps)


def test_processors_come_after_the_bias_in_their_order() -> None:
    def first(logits: np.ndarray, ids: Any) -> np.ndarray:
        calls.append((logits[7], list(ids)))
        return logits + np.float32(1)

    def second(logits: np.ndarray, ids: Any) -> np.ndarray:
        calls.append((logits[7], list(ids)))
        return np.where(np.arange(259) == 9, logits, -np.inf).astype(np.float32)

    calls: list[Any] = []
    processors = [first, second]
    _, steps = run(FakeTransformer([10, 10]), [BOS, 3], logit_bias={7: 0.5}, processors=processors, max_tokens=2)
    assert [step.token for step in steps] == [9, 9]
    assert calls == [(0.5, [BOS, 3]), (1.5, [BOS, 3]), (0.5, [BOS, 3, 9]), (1.5, [BOS, 3, 9])]


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
        def sample(self, logits: Any, seen: Any = None, n_prompt: int = 0) -> int:
            calls.append(None if seen is None else seen.tolist())
            assert n_prompt == n_prompt_ids
            return super().sample(logits, seen, n_prompt)

    calls: list[Any] = []
    script, n_prompt_ids = [10, 11, 12], 2
    _, steps = run(FakeTransformer(script), [BOS, 50], sampler=Recorder(0.0, repetition_penalty=1.1))
    assert [step.token for step in steps] == [*script, EOS]
    assert calls == [[BOS, 50], [BOS, 50, 10], [BOS, 50, 10, 11], [BOS, 50, 10, 11, 12]]
    calls.clear()
    n_prompt_ids = 1
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
        ([], {}, ValueError, "prompt: expected 1 to 8 tokens (the context), found 0"),
        ([1] * 9, {}, ValueError, "prompt: expected 1 to 8 tokens (the context), found 9"),
        ([1, 259], {}, ValueError, "prompt: expected token ids from 0 to 258, found 259"),
        ([1, -1], {}, ValueError, "prompt: expected token ids from 0 to 258, found -1"),
        ([1, 2.0], {}, TypeError, "prompt: expected token ids, found float"),
        ("ab", {}, TypeError, "prompt: expected token ids, found str"),
        ([1], {"max_tokens": -1}, ValueError, "max_tokens: expected an integer of at least 0, found -1"),
        ([1], {"max_tokens": 2.5}, TypeError, "max_tokens: expected an integer, found float"),
        ([1], {"logprobs": -1}, ValueError, "logprobs: expected an integer from 0 to 259, found -1"),
        ([1], {"logprobs": 260}, ValueError, "logprobs: expected an integer from 0 to 259, found 260"),
        ([1], {"logprobs": None}, TypeError, "logprobs: expected an integer, found NoneType"),
        ([1], {"logit_bias": {259: 1.0}}, ValueError, "logit_bias: expected an integer from 0 to 258, found 259"),
        ([1], {"logit_bias": {"a": 1.0}}, TypeError, "logit_bias: expected an integer, found str"),
        ([1], {"logit_bias": {1: "a"}}, TypeError, "logit_bias: expected a number, found str"),
        ([1], {"logit_bias": {1: math.inf}}, ValueError, "logit_bias: expected a finite float32 or -inf, found inf"),
        ([1], {"logit_bias": {1: math.nan}}, ValueError, "logit_bias: expected a finite float32 or -inf, found nan"),
        ([1], {"logit_bias": {1: 1e39}}, ValueError, "logit_bias: expected a finite float32 or -inf, found 1e+39"),
        ([1], {"logit_bias": [1]}, TypeError, "logit_bias: expected a dict from ids to numbers, found list"),
    ],
)
def test_bad_arguments(prompt: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make(prompt, length=8, **options)
    assert str(caught.value) == message
    if error is ValueError:
        assert isinstance(caught.value, RequestError) and caught.value.param == message.partition(":")[0]


def test_the_options_of_a_request_are_those_of_its_parts() -> None:
    """Options names them for type checkers; the defaults are in Sampler and Sequence, and nowhere else."""
    sampler, sequence = inspect.signature(Sampler).parameters, inspect.signature(Sequence).parameters
    internal = {"prompt_ids", "sampler", "vocab_size", "max_length", "stop_tokens", "text_stream", "processors", "constraint"}
    expected = {*sampler, *sequence, *CONSTRAINTS} - internal
    assert set(Options.__annotations__) | set(sampler) == expected
    assert Options.__optional_keys__ == expected
    assert set(CONSTRAINTS) == set(inspect.signature(constrain).parameters) - {"tokenizer"}
