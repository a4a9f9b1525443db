"""Drafts: what is guessed, how many guesses pay, and that no guess changes a text."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fakes import BOS, FakeCache, FakeTokenizer, FakeTransformer

import llama2c
from llama2c import generation
from llama2c.engine.drafts import MOST, Drafts, StepTimes, TextDrafter, Texts, choose_length
from llama2c.generation import count_common
from llama2c.sampler import Sampler

# ---------------------------------------------------------------------------
# how many guesses pay


def test_the_length_that_makes_the_most_tokens_a_second() -> None:
    flat = [1.0] * 6
    assert choose_length([0.9] * 5, flat) == 5  # more rows cost nothing
    assert choose_length([0.9] * 5, [float(n) for n in range(1, 7)]) == 0  # each costs as much as a step
    assert choose_length([1.0] * 5, [1.0, 1.5, 2.0, 2.5, 3.0, 3.5]) == 5
    assert choose_length([0.4] * 5, [1.0, 1.5, 2.0, 2.5, 3.0, 3.5]) == 0
    assert choose_length([0.8] * 5, [1.0, 1.9, 1.9, 1.9, 9.0, 9.0]) == 3  # two rows do not pay, four do
    assert choose_length([], [1.0]) == 0


def test_the_length_is_the_best_of_all() -> None:
    rng = np.random.default_rng(1)
    lengths = set()
    for _ in range(300):
        rates, n_rows = rng.uniform(0.3, 1, 6).tolist(), int(rng.integers(1, 5))
        seconds = np.cumsum([1.0, *rng.uniform(0, 0.8, 6) ** 2]).tolist()
        speeds = [(n_rows + sum(np.cumprod(rates[:n]))) / seconds[n] for n in range(7)]
        assert choose_length(rates, seconds, n_rows) == int(np.argmax(speeds))
        lengths.add(int(np.argmax(speeds)))
    assert lengths == set(range(7))


def test_a_step_that_others_share_has_less_room() -> None:
    """A row for a guess that is right half of the time pays where the step is cheap, not where each row costs the same."""
    times = StepTimes()
    for n_rows, seconds in ((1, 1.0), (2, 1.2), (16, 8.0), (17, 8.6)):
        times.add(n_rows, seconds)
    assert choose_length([0.5], times.expected(1, 2), 1) == 1
    assert choose_length([0.5], times.expected(16, 2), 16) == 0


def test_times_are_medians_and_lie_on_lines() -> None:
    times = StepTimes()
    assert times.expected(1, 3) == []
    times.add(1, 10.0)
    assert times.expected(1, 3) == pytest.approx([10.0, 11.0, 12.0])  # a row is taken to cost little
    times.add(5, 30.0)
    assert times.expected(1, 7) == pytest.approx([10.0, 15.0, 20.0, 25.0, 30.0, 31.0, 32.0])
    for seconds in (12.0, 500.0):  # such as while the process was stopped
        times.add(1, seconds)
    assert times.expected(1, 1) == [12.0]
    for _ in range(times.KEPT):
        times.add(1, 20.0)
    assert times.expected(1, 1) == [20.0]
    only = StepTimes()
    only.add(8, 16.0)
    assert only.expected(4, 6) == pytest.approx([16.0] * 5 + [16.2])


def test_old_times_are_forgotten() -> None:
    times = StepTimes()
    times.add(4, 99.0)  # while another program ran
    for _ in range(2 * times.FORGOTTEN):
        times.add(1, 10.0)
    assert times.expected(4, 1) == pytest.approx([13.0])


# ---------------------------------------------------------------------------
# where a text was seen before


def slow_match(ids: Sequence[int]) -> tuple[int, int] | None:
    """The latest earlier place after the longest of the ends that are looked up."""
    for length in (8, 4, 2):
        for place in range(len(ids) - 1, length - 1, -1):
            if list(ids[place - length : place]) == list(ids[len(ids) - length :]):
                return place, length
    return None


@pytest.mark.parametrize("n_ids", [2, 3, 6])
def test_matches_are_those_of_a_search(n_ids: int) -> None:
    ids = np.random.default_rng(n_ids).integers(0, n_ids, 400).tolist()
    texts = Texts()
    lengths = set()
    for n, token in enumerate(ids, 1):
        found = texts.extend([token])
        assert found == slow_match(ids[:n])
        lengths.add(found and found[1])
    assert lengths >= {2, 4, None} and texts.ids == ids
    assert Texts().extend(ids) == slow_match(ids)


def test_what_follows_is_repeated_at_the_end() -> None:
    texts = Texts()
    texts.extend([5, 6, 7, 8])
    assert texts.after(1, 2) == [6, 7]
    assert texts.after(2, 5) == [7, 8, 7, 8, 7]
    assert texts.after(4, 3) == []


def test_recent_texts_are_bounded() -> None:
    drafts = Drafts(limit=200)
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, 10_000, 60).tolist() for _ in range(20)]
    for text in texts:
        drafts.add(text)
        assert sum(len(recent.ids) for recent in drafts._recent) <= 200
    assert [match.texts.after(match.place, 4) for match in drafts.matches(texts[-1][:30])] == [texts[-1][30:34]]
    assert drafts.matches(texts[0][:30]) == []
    drafts.add(list(range(1000)))
    assert drafts.matches([997, 998])[0].texts.after(drafts.matches([997, 998])[0].place, 1) == [999]
    off = Drafts(0)
    off.add(texts[0])
    assert off.matches(texts[0][:30]) == []


# ---------------------------------------------------------------------------
# a drafter


def replay(
    drafter: TextDrafter, ids: Sequence[int], n_prompt: int, seconds: Any = lambda n_rows: 1 + n_rows / 20
) -> list[tuple[int, int]]:
    """As if a model wrote ids[n_prompt:]: of each step the number of guesses, and of right ones."""
    n, steps = n_prompt, []
    while n < len(ids):
        draft = drafter.propose(ids[:n])
        n_right = count_common(draft, ids[n:])
        steps.append((len(draft), n_right))
        drafter.timed(1 + len(draft), seconds(1 + len(draft)))
        n += n_right + 1
    return steps


def random_text(n: int, seed: int = 0, n_ids: int = 5000) -> list[int]:
    return np.random.default_rng(seed).integers(0, n_ids, n).tolist()


def test_a_copy_takes_few_steps() -> None:
    text = random_text(300)
    assert len(replay(Drafts().drafter(), [*text, 7, *text[1:]], 301)) < 40  # 300 tokens


@pytest.mark.parametrize(("change", "most_steps"), [("replaced", 40), ("added", 57), ("left out", 34)])
def test_a_copy_with_changes_is_found_again(change: str, most_steps: int) -> None:
    """Near the place where it was, before two tokens in a row could be looked up: that would take 45, 62 and 36 steps."""
    text = random_text(300)
    copied: list[int] = []
    for i, token in enumerate(text):
        if i % 30 == 29:
            copied += {"replaced": [9], "added": [token, 8, 9], "left out": []}[change]
        else:
            copied.append(token)
    assert len(replay(Drafts().drafter(), [*text, 7, *copied], 301)) <= most_steps


def test_a_text_without_repetitions_has_no_guesses() -> None:
    assert set(replay(Drafts().drafter(), random_text(800), 100)) == {(0, 0)}


def noise(n: int) -> list[int]:
    """A text in which the same two ids come again and again, each time with another one after them."""
    return list(itertools.chain.from_iterable((1, 2, token) for token in random_text(n)))


def test_wrong_guesses_end() -> None:
    steps = replay(Drafts().drafter(), noise(600), 10)
    wrong = [proposed - right for proposed, right in steps]
    assert sum(wrong) > 0 and sum(wrong[-1000:]) < 60  # of 333 that could be


def test_guesses_begin_again_when_they_are_right() -> None:
    """They are compared also while none is proposed."""
    text = random_text(150, seed=2)
    steps = replay(Drafts().drafter(), [*noise(300), *text, *text], 10)
    assert sum(right for _, right in steps[-12:]) > 80


def test_where_rows_cost_too_much_nothing_is_proposed_but_for_a_try() -> None:
    text = random_text(300)
    steps = replay(Drafts().drafter(), [*text, *text], 302, seconds=float)
    assert 0 < sum(proposed > 0 for proposed, _ in steps) <= 4


def test_another_text_is_a_source() -> None:
    drafts, text = Drafts(), random_text(300)
    drafts.add(text)
    assert len(replay(drafts.drafter(), text, 20)) < 45
    assert len(replay(Drafts(0).drafter(), text, 20)) == 280


def test_no_more_than_there_is_room_for() -> None:
    drafts, text = Drafts(), random_text(100)
    drafts.times.add(1, 1.0)
    drafts.times.add(16, 1.0)
    for most in (0, 1, 3, 99):
        drafter = drafts.drafter()
        ids = text + text[:60]
        assert drafter.propose(ids, most) == text[60 : 60 + min(most, MOST)]


def test_ids_that_are_not_the_ones_before() -> None:
    """As after a restart of the Sequence: guesses may be wrong, and that is all."""
    drafts = Drafts()
    drafts.times.add(1, 1.0)
    drafter = drafts.drafter()
    drafter.propose([1, 2, 3, 4, 5])
    assert drafter.propose([1, 2]) in ([], [3, 4, 5], [3])
    assert drafter.propose([9] * 40)[:3] == [9, 9, 9]


# ---------------------------------------------------------------------------
# no guess changes a text


class Repeating(FakeTransformer):
    """Random logits of the last two tokens, so that its texts repeat themselves."""

    def logits(self, cache: FakeCache) -> np.ndarray:
        return np.random.default_rng(cache.tokens[-2:]).normal(0, 4, self.config.vocab_size).astype(np.float32)


class NotTwice:
    """A constraint: no token comes twice in a row, and 90 are enough."""

    def reset(self) -> None:
        self.last, self.n, self.finished = -1, 0, False

    def mask(self, logits: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(logits)) == self.last, np.float32(-np.inf), logits)

    def advance(self, token: int) -> None:
        assert token != self.last
        self.last, self.n, self.finished = token, self.n + 1, self.n == 89


def steps_of(transformer: Any, drafter: Any, prompt: list[int], options: dict[str, Any], sampling: dict[str, Any]) -> Any:
    sequence = generation.Sequence(
        prompt, Sampler(**sampling), vocab_size=transformer.config.vocab_size, max_length=120, max_tokens=None, **options
    )
    steps = list(generation.generate(transformer, FakeCache(120), sequence, drafter))  # type: ignore[arg-type]
    return steps, sequence.ids, sequence.sampler.coin()


@pytest.mark.parametrize("seed", range(12))
def test_texts_and_log_probabilities_are_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sampling = {
        "temperature": [0.0, 0.4, 1.0][seed % 3],
        "top_p": float(rng.choice([0.9, 1.0])),
        "top_k": int(rng.choice([0, 5])),
        "min_p": float(rng.choice([0.0, 0.05])),
        "repetition_penalty": float(rng.choice([1.0, 1.05])),
        "seed": seed,
    }
    options: dict[str, Any] = {"logprobs": 3, "logit_bias": {3: 1.5}, "stop_tokens": rng.integers(0, 30, int(rng.integers(2)))}
    if seed % 2:
        options |= {"text_stream": FakeTokenizer().text_stream, "stop": "\x1b\x05"}
    if seed % 4 > 1:
        options["constraint"] = NotTwice()
    drafts = Drafts()
    prompt = [BOS, *rng.integers(0, 30, 20).tolist()]
    plain = Repeating(vocab_size=30)
    expected = steps_of(plain, None, prompt, options, sampling)
    n_saved = 0
    for _ in range(3):  # the later ones know the text of the first
        drafted = Repeating(vocab_size=30)
        drafts.times = StepTimes()
        drafts.times.add(1, 1e9)  # rows seem to cost nothing
        drafter = drafts.drafter()
        drafter.timed = lambda n_rows, seconds: None  # type: ignore[method-assign]
        found = steps_of(drafted, drafter, prompt, options, sampling)
        assert found == expected
        drafts.add(found[1])
        n_saved = len(plain.steps) - len(drafted.steps)
    assert n_saved > 0 or len(expected[0]) < 10


@pytest.fixture
def guessing(monkeypatch: pytest.MonkeyPatch) -> llama2c.Llama:
    """The bundled model, with guesses although it is tiny."""
    assert llama2c.load().drafter() is None
    monkeypatch.setattr("llama2c.engine.drafts.LEAST_WEIGHTS", 0)
    return llama2c.load()


def test_a_real_model_says_the_same(guessing: llama2c.Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(StepTimes, "expected", lambda times, n_rows, n_sizes: [1.0] * n_sizes)  # as if rows cost nothing
    monkeypatch.setattr(StepTimes, "add", lambda times, n_rows, seconds: sizes.append(n_rows))
    other = llama2c.load(drafts=False)
    assert other.drafter() is None
    for options in ({"temperature": 0.0}, {"temperature": 0.6, "seed": 3, "repetition_penalty": 1.1}):
        asked: Any = {"prompt": "Tom ran. Tom ran. Tom ran.", "max_tokens": 80, "logprobs": 2, **options}
        found, expected = guessing.generate(**asked), other.generate(**asked)
        assert (found.tokens, found.logprobs, found.top_logprobs) == (expected.tokens, expected.logprobs, expected.top_logprobs)
    assert max(sizes) > 4 and min(sizes) == 1


def test_an_observer_sees_no_guess(guessing: llama2c.Llama) -> None:
    assert guessing.drafter() is not None
    guessing.transformer.observer = lambda step: None
    assert guessing.drafter() is None


def test_copies_of_a_llama(guessing: llama2c.Llama) -> None:
    for other in (copy.copy(guessing), copy.deepcopy(guessing), pickle.loads(pickle.dumps(guessing))):
        assert other.drafter() is not None
        assert other.generate("Once", seed=1, max_tokens=5).tokens == guessing.generate("Once", seed=1, max_tokens=5).tokens
