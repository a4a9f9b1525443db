"""A draft model: what it guesses, when it is asked, and that no guess changes a text."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import random_weights, write
from fakes import BOS, FakeCache, FakeTransformer

import llama2c
from llama2c import generation
from llama2c.config import Config
from llama2c.engine.draft_model import FIRST_PAUSE, LONGEST_PAUSE, DraftModel, ModelDrafter
from llama2c.engine.drafts import MOST, Drafts, StepTimes, Texts
from llama2c.engine.engine import Engine
from llama2c.sampler import Sampler


class Nearly(FakeTransformer):
    """Logits of the last two tokens; of models with the same seed, two agree in most of their likeliest tokens."""

    def __init__(self, seed: int = 0, noise: float = 0.0, **options: Any) -> None:
        super().__init__(vocab_size=300, **options)
        self.seed, self.noise = seed, noise

    def logits(self, cache: FakeCache) -> np.ndarray:
        last = cache.tokens[-2:]
        logits = np.random.default_rng([self.seed, *last]).normal(0, 4, 300)
        return (logits + np.random.default_rng([7, *last]).normal(0, self.noise, 300)).astype(np.float32)


def free_rows() -> StepTimes:
    """As if a step took a second with any number of rows."""
    times = StepTimes()
    times.add(1, 1.0)
    times.add(16, 1.0)
    return times


class NoTexts:
    """In the place of a TextDrafter: a text never repeats itself."""

    def propose(self, ids: Any, most: int = MOST, n_rows: int = 1) -> list[int]:
        return []

    def timed(self, n_rows: int, seconds: float) -> None:
        pass


def drafter_of(model: Any, times: StepTimes | None = None) -> ModelDrafter:
    return DraftModel(model).drafter(NoTexts(), free_rows() if times is None else times)  # type: ignore[arg-type]


def greedy(model: FakeTransformer, ids: list[int], n: int) -> list[int]:
    cache = FakeCache(512)
    text = list(ids)
    for _ in range(n):
        cache.tokens = list(text)
        text.append(int(np.argmax(model.logits(cache))))
    return text[len(ids) :]


# ---------------------------------------------------------------------------
# what is guessed


def test_the_likeliest_tokens_one_after_the_other() -> None:
    small = Nearly()
    assert DraftModel(small).guess([BOS, 5, 9], 4) == greedy(small, [BOS, 5, 9], 4)  # type: ignore[arg-type]


def test_only_what_is_new_is_computed() -> None:
    small = Nearly()
    model = DraftModel(small)  # type: ignore[arg-type]
    a, b, c = model.guess([BOS, 5, 9], 3)
    assert small.steps == [[BOS, 5, 9], [a], [b]]
    small.steps.clear()
    assert model.guess([BOS, 5, 9, a, b, c, 8], 1) == greedy(small, [BOS, 5, 9, a, b, c, 8], 1)  # all were right
    assert small.steps == [[c, 8]]
    small.steps.clear()
    model.guess([BOS, 5, 9, a, 8], 1)  # one was right
    assert small.steps == [[8]]
    small.steps.clear()
    assert model.guess([BOS, 6], 1) == greedy(small, [BOS, 6], 1)  # another text
    assert small.steps == [[6]]


@pytest.mark.parametrize(("n_ids", "n_guesses"), [(15, 4), (18, 3), (20, 1), (21, 0), (40, 0)])
def test_its_context_may_be_shorter(n_ids: int, n_guesses: int) -> None:
    assert len(DraftModel(Nearly(seq_len=20)).guess([BOS] * n_ids, 4)) == n_guesses  # type: ignore[arg-type]


def test_an_interrupt_leaves_a_cache_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Nearly()
    model = DraftModel(small)  # type: ignore[arg-type]
    forward = small.forward

    def interrupted(tokens: Any, cache: Any, **options: Any) -> Any:
        if len(small.steps) == 2:
            raise KeyboardInterrupt
        return forward(tokens, cache, **options)

    monkeypatch.setattr(small, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.guess([BOS, 5, 9], 4)
    monkeypatch.undo()
    assert model.guess([BOS, 5, 7, 7, 7], 3) == greedy(small, [BOS, 5, 7, 7, 7], 3)


def test_without_memory_the_text_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Nearly()

    def fail(*arguments: Any, **options: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(small, "forward", fail)
    assert drafter_of(small).propose([BOS, 5]) == []


# ---------------------------------------------------------------------------
# when it is asked


def test_what_the_text_repeats_comes_first() -> None:
    small = Nearly()
    drafts = Drafts(draft=small)  # type: ignore[arg-type]
    drafts.times = free_rows()
    drafter = drafts.drafter()
    text = list(range(10, 60))
    assert drafter.propose([*text, *text[:20]], 5) == text[20:25]
    assert small.steps == []
    assert drafts.drafter().propose([BOS, 250, 251], 5) == greedy(small, [BOS, 250, 251], 5)


def test_one_text_at_a_time() -> None:
    model = DraftModel(Nearly())  # type: ignore[arg-type]
    first, second = (model.drafter(NoTexts(), free_rows()) for _ in range(2))  # type: ignore[arg-type]
    assert first.propose([BOS, 5]) and not second.propose([BOS, 6]) and first.propose([BOS, 5])
    del first
    gc.collect()
    assert second.propose([BOS, 6])


def test_not_beside_other_texts() -> None:
    small = Nearly()
    assert drafter_of(small).propose([BOS, 5], n_rows=2) == [] and small.steps == []


def test_as_many_as_pay() -> None:
    """A guess costs a step of the small model, too."""
    drafter = drafter_of(Nearly())
    assert len(drafter.propose([BOS, 5])) == MOST
    drafter._model.seconds = 0.2  # of a second for a step
    assert 2 <= len(drafter.propose([BOS, 5])) <= 6


def test_guesses_that_do_not_pay_are_tried_seldom() -> None:
    drafter = drafter_of(Nearly(seq_len=8000))
    ids = [BOS, 5]
    asked = []
    for _ in range(6000):
        drafter._model.seconds = 0.2
        guess = drafter.propose(ids)
        if guess:
            asked.append(len(ids))
        ids.append((guess[0] + 1) % 300 if guess else 3)  # never right
    pauses = np.diff(asked)
    assert pauses[-1] == LONGEST_PAUSE and FIRST_PAUSE in pauses and len(asked) < 60


def test_they_begin_again_when_they_are_right() -> None:
    small = Nearly(seq_len=4000)
    drafter = drafter_of(small)
    ids = [BOS, 5]
    for right in (False, True):
        asked = 0
        for _ in range(1500):
            drafter._model.seconds = 0.2
            guess = drafter.propose(ids)
            asked += bool(guess)
            ids.append((greedy(small, ids, 1)[0] + (not right)) % 300)
    assert asked > 300


# ---------------------------------------------------------------------------
# no guess changes a text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("noise", [0.0, 1.0, 100.0])
def test_texts_are_the_same(temperature: float, noise: float) -> None:
    def made(drafter: ModelDrafter | None) -> tuple[list[int], int]:
        large = Nearly()
        sequence = generation.Sequence(
            [BOS, 5], Sampler(temperature=temperature, seed=3), vocab_size=300, max_length=200, max_tokens=None
        )
        list(generation.generate(large, FakeCache(200), sequence, drafter))  # type: ignore[arg-type]
        return sequence.ids, len(large.steps)

    (expected, n_plain), (found, n_drafted) = made(None), made(drafter_of(Nearly(noise=noise)))
    assert found == expected and n_plain == 199
    if noise == temperature == 0.0:
        assert n_drafted < 30  # of 16 rows, if all guesses are right


@pytest.fixture
def drafted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> llama2c.Llama:
    """The bundled model, which guesses for itself, as if rows cost nothing."""
    monkeypatch.setattr("llama2c.engine.drafts.LEAST_WEIGHTS", 0)
    monkeypatch.setattr(StepTimes, "expected", lambda times, n_rows, n_sizes: [1.0] * n_sizes)
    monkeypatch.setattr(Texts, "find", lambda texts, keys: None)
    llama = llama2c.load()
    return llama2c.Llama(llama.transformer, llama.tokenizer, draft=llama2c.load().transformer)


def test_a_real_model_says_the_same(drafted: llama2c.Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(StepTimes, "add", lambda times, n_rows, seconds: sizes.append(n_rows))
    for options in ({"temperature": 0.0}, {"temperature": 0.6, "seed": 3}):
        asked: Any = {"prompt": "Once upon", "max_tokens": 80, "logprobs": 2, **options}
        found, expected = drafted.generate(**asked), llama2c.load(drafts=False).generate(**asked)
        assert (found.tokens, found.logprobs, found.top_logprobs) == (expected.tokens, expected.logprobs, expected.top_logprobs)
    assert max(sizes) == 1 + MOST


def test_an_engine_has_it_too(drafted: llama2c.Llama) -> None:
    expected = llama2c.load(drafts=False).generate("Once upon", seed=1, max_tokens=60)
    with Engine(drafted) as engine:
        assert engine.submit("Once upon", seed=1, max_tokens=60).result().tokens == expected.tokens
        stats = engine.stats()
        assert stats.drafts_accepted > 0 and stats.steps < 60


def test_copies_keep_it(drafted: llama2c.Llama) -> None:
    assert drafted.draft is not None
    for other in (copy.copy(drafted), copy.deepcopy(drafted), pickle.loads(pickle.dumps(drafted))):
        assert other.draft is not None and other.draft.config == drafted.draft.config


def test_from_files(tmp_path: Path) -> None:
    bundled = llama2c.load().transformer.checkpoint.path
    llama = llama2c.load(draft=bundled)
    assert llama.draft is not None and llama.draft.config == llama.transformer.config
    assert llama2c.load().draft is None


def test_a_model_with_other_tokens_is_refused(tmp_path: Path) -> None:
    config = Config(dim=32, hidden_dim=64, n_layers=1, n_heads=2, n_kv_heads=2, vocab_size=64, seq_len=32)
    path = write(tmp_path / "other.bin", config, 0, random_weights(config, np.random.default_rng(1)))
    with pytest.raises(llama2c.ModelError, match=r"other\.bin: expected a draft model with the tokens of the large one"):
        llama2c.load(draft=path)
