"""Scores of small random models against NumPy: log-probabilities, windows, memory."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from reference import Reference, log_softmax, windowed_logits

from llama2c import Checkpoint, Config, RequestError, Score, Transformer
from llama2c.scoring import ROWS, Chunk, check_ids, plan_chunks, read_chunks, score_ids

CONFIG = Config(dim=16, hidden_dim=24, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=40, seq_len=24)


def model(folder: Path, config: Config, seed: int = 1) -> tuple[Transformer, Reference]:
    weights = checkpoints.random_weights(config, np.random.default_rng(seed), shared_classifier=False)
    weights["wcls"] *= 3  # so that some tokens are much likelier than others
    path = checkpoints.write(folder / "model.bin", config, 1, weights)
    return Transformer(Checkpoint.open(path), n_threads=1), Reference(config, weights)


def random_ids(n: int, vocab_size: int = CONFIG.vocab_size) -> list[int]:
    return [1, *np.random.default_rng(n).integers(0, vocab_size, n - 1).tolist()]


# ---------------------------------------------------------------------------
# windows


def test_plan_chunks() -> None:
    assert plan_chunks(2, 8, 4) == [Chunk(0, 0, 1)]
    assert plan_chunks(9, 8, 4) == [Chunk(0, 0, 8)]
    assert plan_chunks(10, 8, 4) == [Chunk(0, 0, 8), Chunk(4, 8, 9)]
    assert plan_chunks(18, 8, 4) == [Chunk(0, 0, 8), Chunk(4, 8, 12), Chunk(8, 12, 16), Chunk(12, 16, 17)]
    assert plan_chunks(18, 8, 8) == [Chunk(0, 0, 8), Chunk(8, 8, 16), Chunk(16, 16, 17)]
    assert plan_chunks(5, 2, 1) == [Chunk(0, 0, 2), Chunk(1, 2, 3), Chunk(2, 3, 4)]
    assert plan_chunks(200, 150, 70) == [Chunk(0, 0, 64), Chunk(0, 64, 128), Chunk(0, 128, 150), Chunk(70, 150, 199)]
    for n_ids in (0, 1):
        with pytest.raises(ValueError, match=r"^text: expected at least one byte, found an empty text$"):
            plan_chunks(n_ids, 8, 4)


def test_plan_chunks_after_a_context() -> None:
    assert plan_chunks(9, 8, 4, 3) == [Chunk(0, 2, 8)]
    assert plan_chunks(10, 8, 4, 9) == [Chunk(4, 8, 9)]
    assert plan_chunks(18, 8, 4, 12) == [Chunk(4, 11, 12), Chunk(8, 12, 16), Chunk(12, 16, 17)]
    assert plan_chunks(5, 2, 1, 4) == [Chunk(2, 3, 4)]
    for n in (0, 5):
        with pytest.raises(ValueError, match=rf"^context_length: expected an integer from 1 to 4, found {n}$"):
            plan_chunks(5, 8, 4, n)


def test_every_id_is_scored_once_within_the_context() -> None:
    for context in (1, 2, 7, 64, 130):
        for stride in {1, context // 2 or 1, context}:
            for n_ids in (2, context, context + 1, context + 2, 3 * context + 5):
                if n_ids < 2:
                    continue
                chunks = plan_chunks(n_ids, context, stride)
                fed = [i for _, first, stop in chunks for i in range(first, stop)]
                assert fed == list(range(n_ids - 1))
                for start, first, stop in chunks:
                    assert start <= first < stop <= start + context
                    assert stop - first <= ROWS
                    assert start == 0 or first - start >= context - stride  # what is known before the first


# ---------------------------------------------------------------------------
# numbers


@pytest.mark.parametrize("stride", [None, 1, 5, 24])
def test_logprobs_are_numpys(tmp_path: Path, stride: int | None) -> None:
    transformer, reference = model(tmp_path, CONFIG)
    for n in (2, 20, 24, 25, 26, 80):
        ids = random_ids(n)
        score = score_ids(transformer, ids, 100, stride)
        expected = log_softmax(windowed_logits(reference, ids, 24, stride or 12))[range(n - 1), ids[1:]]
        np.testing.assert_allclose(score.logprobs, expected, atol=2e-5)
        assert score.perplexity == pytest.approx(np.exp(-expected.mean()), rel=1e-5)
        assert score.bits_per_byte == pytest.approx(-np.log2(np.exp(expected)).sum() / 100, rel=1e-5)


def test_windows_made_by_hand(tmp_path: Path) -> None:
    """60 ids, context 24, stride 10: the first 25 ids in one go; then from 10 on, from 20 on, and so forth."""
    transformer, _ = model(tmp_path, CONFIG)
    ids = random_ids(60)
    expected: list[float] = []
    for start, stop, first_scored in ((0, 24, 1), (10, 34, 25), (20, 44, 35), (30, 54, 45), (40, 59, 55)):
        rows = log_softmax(transformer.forward(ids[start:stop], transformer.new_cache(), logits=None))
        expected += [float(rows[i - 1 - start, ids[i]]) for i in range(first_scored, stop + 1)]
    assert len(expected) == 59
    np.testing.assert_allclose(score_ids(transformer, ids, 1, 10).logprobs, expected, atol=1e-6)


def test_what_follows_changes_nothing(tmp_path: Path) -> None:
    transformer, _ = model(tmp_path, CONFIG)
    ids = random_ids(90)
    whole = score_ids(transformer, ids, 1).logprobs
    for n in (2, 24, 25, 26, 37, 60):
        assert score_ids(transformer, ids[:n], 1).logprobs == whole[: n - 1]


@pytest.mark.parametrize("stride", [None, 1, 5, 24])
def test_a_context_is_read_and_not_scored(tmp_path: Path, stride: int | None) -> None:
    transformer, _ = model(tmp_path, CONFIG)
    ids = random_ids(90)
    whole = score_ids(transformer, ids, 1, stride).logprobs
    for n in (1, 2, 23, 24, 25, 26, 40, 89):
        assert score_ids(transformer, ids, 1, stride, n).logprobs == whole[n - 1 :]  # the same bits


def test_ids() -> None:
    assert check_ids(np.array([0, 39]), 40) == [0, 39]
    for wrong, error, message in [
        ([1], RequestError, "text: expected at least two token ids, found 1"),
        ([1, 40], RequestError, "text: expected an integer from 0 to 39, found 40"),
        ([-1, 1], RequestError, "text: expected an integer from 0 to 39, found -1"),
        ([1, 2.0], TypeError, "text: expected an integer, found float"),
        ([1, "a"], TypeError, "text: expected an integer, found str"),
        (5, TypeError, "text: expected str, bytes or token ids, found int"),
    ]:
        with pytest.raises(error) as caught:
            check_ids(wrong, 40)  # type: ignore[arg-type]
        assert str(caught.value) == message


def test_several_chunks_are_one_pass(tmp_path: Path) -> None:
    """Cutting a window into chunks does not change a bit."""
    transformer, _ = model(tmp_path, replace(CONFIG, seq_len=300))
    ids = random_ids(290)
    cache = transformer.new_cache()
    whole = transformer.forward(ids[:-1], cache, logits=None)
    chunks = plan_chunks(len(ids), 300, 150)
    assert len(chunks) == 5
    found = np.concatenate([rows.logits.copy() for rows in read_chunks(transformer, ids, chunks)])
    np.testing.assert_array_equal(found, whole)


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Logits of 400 rows would take 16 MB, and as much again their logarithms."""
    config = Config(dim=4, hidden_dim=4, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=10_000, seq_len=400)
    transformer, _ = model(tmp_path, config)
    ids = random_ids(401, 10_000)
    tracemalloc.start()
    try:
        score_ids(transformer, ids, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    rows = ROWS * 10_000 * 4
    assert 2 * rows <= peak < 3 * rows


def test_no_numbers(tmp_path: Path) -> None:
    weights = checkpoints.random_weights(CONFIG, np.random.default_rng(1), shared_classifier=False)
    weights["wcls"][7, 3] = np.nan  # the logit of one token, and with it the sum of all
    transformer = Transformer(Checkpoint.open(checkpoints.write(tmp_path / "nan.bin", CONFIG, 1, weights)))
    with pytest.raises(ValueError, match=r"^logits: expected numbers that make a distribution, found NaN or infinity$"):
        score_ids(transformer, [1, 2, 3], 2)


def test_score_properties() -> None:
    score = Score((1, 5, 6), (math.log(0.5), math.log(0.125)), 8)
    assert score.logprob == pytest.approx(math.log(1 / 16))
    assert score.perplexity == pytest.approx(4.0)  # as unsure as among four
    assert score.bits_per_byte == pytest.approx(0.5)  # four bits of eight bytes
    assert Score((1, 5), (-1000.0,), 1).perplexity == math.inf
    assert Score((1, 2), (-1.0,), 0).bits_per_byte == math.inf  # a special token has no bytes
