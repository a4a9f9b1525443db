"""The sampler against run.c's random numbers and the plain sampler of reference_text, and its arguments."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
import reference_text

from llama2c import _kernels
from llama2c.sampler import Draw, Drawer, LogitBias, Sampler, seed_of_id, seed_of_sample

INF = math.inf
MAX = float(np.finfo(np.float32).max)

# seed -> draws 1 to 5, and 1000, of the top 24 bits, from a C program of uint64_t arithmetic
C_RANDOM = {
    1: (4711630, 11259814, 12177677, 5092376, 942489, 197863),
    100: (12137847, 1368783, 1278250, 2948954, 9048106, 16588622),
    2**64 - 1: (16329929, 9434244, 3435669, 12932812, 7089509, 3214927),
}

TEMPERATURE = "temperature: expected a finite number of at least 0, found "


def acceptable(logits, coin, temperature, top_p, top_k, min_p):
    """Every answer that rounding may give: the thresholds moved by a few float32 roundings either way.

    Nearly always a single one; a coin, or a cut, that falls just between two tokens allows both.
    """
    nudges = (1.0, 1 - 3e-6, 1 + 3e-6)
    return {
        reference_text.sample(logits, coin * a, temperature, top_p * b, top_k, min(1.0, min_p * c))
        for a, b, c in itertools.product(nudges, nudges if top_p < 1 else (1,), nudges if min_p else (1,))
    }


def fixed_coin(sampler: Sampler) -> float:
    """The coin that the next sample() of `sampler` will use."""
    state = sampler._state
    coin = sampler.coin()
    sampler._state = state
    return coin


# ---------------------------------------------------------------------------
# random numbers


@pytest.mark.parametrize("seed", C_RANDOM)
def test_coins_are_those_of_the_c_program(seed: int) -> None:
    sampler = Sampler(seed=seed)
    coins = [sampler.coin() for _ in range(1000)]
    assert [*coins[:5], coins[-1]] == [draw / 2**24 for draw in C_RANDOM[seed]]


def test_seed_0_starts_from_a_constant() -> None:
    a, b = Sampler(seed=0), Sampler(seed=0)
    coins = [a.coin() for _ in range(100)]
    assert coins == [b.coin() for _ in range(100)]
    assert len(set(coins)) == 100
    assert coins[:5] == [draw / 2**24 for draw in (885683, 5555276, 11027955, 8220171, 9492694)]


def test_no_seed_is_random() -> None:
    assert len({Sampler().coin() for _ in range(20)}) > 15


# ---------------------------------------------------------------------------
# one token

OPTIONS = {
    "all": {"top_p": 1.0},
    "top_p 0 is off": {"top_p": 0.0},
    "top_p": {"top_p": 0.9},
    "narrow top_p": {"top_p": 0.05},
    "top_k": {"top_p": 1.0, "top_k": 3},
    "top_k of all": {"top_p": 1.0, "top_k": 10**6},
    "top_k beyond 64 bits": {"top_p": 1.0, "top_k": 2**70},
    "min_p": {"top_p": 1.0, "min_p": 0.1},
    "min_p 1": {"top_p": 1.0, "min_p": 1.0},
    "top_k, min_p": {"top_p": 1.0, "top_k": 5, "min_p": 0.2},
    "top_k, min_p, top_p": {"top_p": 0.7, "top_k": 7, "min_p": 0.05},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_sample_is_that_of_numpy(options: dict, temperature: float) -> None:
    rng = np.random.default_rng(0)
    sampler = Sampler(temperature=temperature, seed=1, **options)
    top_p, top_k, min_p = sampler.top_p, sampler.top_k, sampler.min_p
    n_draws = n_sure = 0
    drawn = set()
    for n in (1, 2, 3, 10, 64, 300):
        for kind in ("normal", "ties", "equal"):
            logits = rng.normal(0, 2, n).astype(np.float32)
            if kind == "ties":
                logits = np.round(logits)
            if kind == "equal":
                logits[:] = 0.25
            for _ in range(15):
                allowed = acceptable(logits, fixed_coin(sampler), temperature, top_p, top_k, min_p)
                token = sampler.sample(logits)
                assert token in allowed, (n, kind)
                drawn.add((n, token))
                n_draws += 1
                n_sure += len(allowed) == 1
    assert n_sure > 0.9 * n_draws  # the tolerance decides next to nothing
    assert len(drawn) > 6 or options.get("min_p") == 1.0


def test_a_large_vocabulary() -> None:
    logits = np.random.default_rng(5).normal(0, 3, 32000).astype(np.float32)
    for options in ({"top_p": 0.9}, {"top_p": 1.0, "top_k": 40}, {"top_p": 0.95, "top_k": 100, "min_p": 0.02}):
        sampler = Sampler(seed=3, **options)
        for _ in range(3):
            top_p, top_k, min_p = sampler.top_p, sampler.top_k, sampler.min_p
            allowed = acceptable(logits, fixed_coin(sampler), 1.0, top_p, top_k, min_p)
            assert sampler.sample(logits) in allowed


def test_each_filter_sees_what_the_one_before_left() -> None:
    # top_k keeps 0.4 + 0.3 + 0.2 = 0.9: three quarters of it are two tokens, of the whole they would be three
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    sampler = Sampler(top_p=0.75, top_k=3, seed=1)
    assert {sampler.sample(logits) for _ in range(300)} == {0, 1}


def test_ties_go_to_the_lower_id() -> None:
    logits = np.zeros(50, np.float32)
    sampler = Sampler(top_p=1.0, top_k=4, seed=1)
    assert {sampler.sample(logits) for _ in range(200)} == {0, 1, 2, 3}
    assert Sampler(temperature=0).sample(np.array([1, 3, 2, 3], np.float32)) == 1


def test_temperature_0_draws_no_coin() -> None:
    sampler = Sampler(temperature=0.0, seed=1)
    sampler.sample(np.array([0, 1], np.float32))
    assert sampler.coin() == C_RANDOM[1][0] / 2**24


def test_sample_takes_one_coin() -> None:
    sampler = Sampler(seed=1)
    sampler.sample(np.array([0, 1], np.float32))
    assert sampler.coin() == C_RANDOM[1][1] / 2**24


def test_one_sampler_for_logits_of_several_lengths() -> None:
    sampler = Sampler(temperature=0)
    assert [sampler.sample(np.arange(n, dtype=np.float32)) for n in (5, 2, 9)] == [4, 1, 8]


def test_logits_are_left_alone() -> None:
    logits = np.random.default_rng(0).normal(size=64).astype(np.float32)
    before = logits.copy()
    Sampler(temperature=0.7, top_k=5, min_p=0.1, repetition_penalty=1.3, seed=1).sample(logits, [0, 1, 2])
    assert np.array_equal(logits, before)


# ---------------------------------------------------------------------------
# repetition penalty


@pytest.mark.parametrize(
    ("logits", "seen", "penalty", "expected"),
    [
        ([2.0, 1.5], [0], 2.0, 1),  # 2.0 / 2 < 1.5
        ([2.0, 1.5], [0], 1.2, 0),  # 2.0 / 1.2 > 1.5
        ([-1.0, -1.5], [0], 2.0, 1),  # -1.0 * 2 < -1.5
        ([2.0, 1.5], [0, 0, 0], 1.2, 0),  # a repeat counts once
        ([2.0, 1.5], [1], 0.5, 1),  # below 1 it rewards
        ([2.0, 1.5], [], 2.0, 0),
        ([2.0, 1.5], None, 2.0, 0),
        ([2.0, 1.5], np.array([0], np.int32), 2.0, 1),
        ([2.0, 1.5], [0], 1.0, 0),
    ],
)
def test_repetition_penalty(logits, seen, penalty: float, expected: int) -> None:
    sampler = Sampler(temperature=0, repetition_penalty=penalty)
    assert sampler.sample(np.array(logits, np.float32), seen) == expected


@pytest.mark.parametrize("repetition", [1.0, 2.0])
@pytest.mark.parametrize(("frequency", "presence"), [(0.5, 0.0), (0.0, 1.5), (-2.0, 0.25)])
def test_frequency_and_presence_count_what_was_drawn(repetition: float, frequency: float, presence: float) -> None:
    """The formula of OpenAI's interface, after the repetition penalty; the first two ids are the prompt."""
    logits = np.array([4.0, -1.0, 2.0, 0.5], np.float32)
    seen = [0, 1, 2, 1, 1, 0]
    sampler = Sampler(repetition_penalty=repetition, frequency_penalty=frequency, presence_penalty=presence)
    expected = []
    for token, x in enumerate([4.0, -1.0, 2.0, 0.5]):
        count = seen[2:].count(token)
        if token in seen:
            x = x / repetition if x > 0 else x * repetition
        expected.append(x - count * frequency - (count > 0) * presence)
    assert sampler.penalise(logits, seen, 2).tolist() == expected
    assert logits.tolist() == [4.0, -1.0, 2.0, 0.5]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"repetition_penalty": 5e-324}, [MAX, 0, 0, -INF, 5]),  # 0 as a float32
        ({"repetition_penalty": 1e-38}, [MAX, 0, 0, -INF, 5]),
        ({"repetition_penalty": 1e300}, [0, 0, -MAX, -INF, 5]),
        ({"frequency_penalty": MAX}, [-MAX, -MAX, -MAX, -INF, 5]),
        ({"frequency_penalty": -MAX, "presence_penalty": -MAX}, [MAX, MAX, MAX, -INF, 5]),
    ],
)
def test_a_penalty_beyond_all_floats(options: dict, expected: list[float]) -> None:
    """There is still a distribution to draw from, and what is excluded stays so."""
    logits = np.array([10, 0, -2, -INF, 5], np.float32)
    sampler = Sampler(**options)
    found = sampler.penalise(logits, [0, 1, 2, 3, 0])
    np.testing.assert_allclose(found, np.array(expected, np.float32), rtol=1e-6, atol=1e-30)
    sampler.sample(logits, [0, 1, 2, 3, 0])


def test_repetition_penalty_comes_before_temperature() -> None:
    rng = np.random.default_rng(2)
    sampler = Sampler(temperature=0.8, top_p=0.95, repetition_penalty=1.5, seed=9)
    for _ in range(200):
        logits = rng.normal(0, 2, 20).astype(np.float32)
        seen = rng.integers(0, 20, 8)
        expected = [(x / 1.5 if x > 0 else x * 1.5) if i in seen else x for i, x in enumerate(logits.tolist())]
        allowed = acceptable(expected, fixed_coin(sampler), 0.8, 0.95, 0, 0.0)
        assert sampler.sample(logits, seen) in allowed


@pytest.mark.parametrize(
    ("seen", "error", "message"),
    [
        ([0, 4], ValueError, "seen: expected an integer from 0 to 3, found 4"),
        ([-1], ValueError, "seen: expected an integer from 0 to 3, found -1"),
        ([1.5], TypeError, "seen: expected a sequence of token ids, found values of type float64"),
    ],
)
def test_bad_seen(seen, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        Sampler(repetition_penalty=2.0).sample(np.zeros(4, np.float32), seen)
    assert str(caught.value) == message


# ---------------------------------------------------------------------------
# arguments


@pytest.mark.parametrize("logit", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(logit: float, temperature: float) -> None:
    if logit == math.inf and temperature == 0.0:
        return  # a largest logit there is
    with pytest.raises(ValueError, match="logits"):
        Sampler(temperature=temperature).sample(np.array([0, logit, 1], np.float32))


def test_a_token_masked_with_minus_infinity_is_never_drawn() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0], np.float32)
    for top_p in (0.9, 1.0):
        sampler = Sampler(top_p=top_p, seed=1)
        assert {sampler.sample(logits) for _ in range(100)} == {1, 3}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": math.nan}, ValueError, TEMPERATURE + "nan"),
        ({"temperature": math.inf}, ValueError, TEMPERATURE + "inf"),
        ({"temperature": 10**400}, ValueError, TEMPERATURE + "an integer beyond all floats"),
        ({"top_p": -(10**400)}, ValueError, "top_p: expected a number from 0 to 1, found an integer beyond all floats"),
        ({"temperature": -0.5}, ValueError, TEMPERATURE + "-0.5"),
        ({"temperature": "1"}, TypeError, "temperature: expected a number, found str"),
        ({"temperature": None}, TypeError, "temperature: expected a number, found NoneType"),
        ({"top_p": math.nan}, ValueError, "top_p: expected a number from 0 to 1, found nan"),
        ({"top_p": 1.5}, ValueError, "top_p: expected a number from 0 to 1, found 1.5"),
        ({"top_p": -0.1}, ValueError, "top_p: expected a number from 0 to 1, found -0.1"),
        ({"top_k": -1}, ValueError, "top_k: expected an integer of at least 0, found -1"),
        ({"top_k": 2.0}, TypeError, "top_k: expected an integer, found float"),
        ({"min_p": 1.01}, ValueError, "min_p: expected a number from 0 to 1, found 1.01"),
        ({"min_p": math.nan}, ValueError, "min_p: expected a number from 0 to 1, found nan"),
        ({"frequency_penalty": 1e39}, ValueError, "frequency_penalty: expected a finite float32, found 1e+39"),
        ({"presence_penalty": math.nan}, ValueError, "presence_penalty: expected a finite float32, found nan"),
        ({"repetition_penalty": 0}, ValueError,
         "repetition_penalty: expected a finite number above 0, found 0.0"),
        ({"repetition_penalty": math.inf}, ValueError,
         "repetition_penalty: expected a finite number above 0, found inf"),
        ({"seed": -1}, ValueError, f"seed: expected an integer from 0 to {2**64 - 1}, found -1"),
        ({"seed": 2**64}, ValueError, f"seed: expected an integer from 0 to {2**64 - 1}, found {2**64}"),
        ({"seed": 1.0}, TypeError, "seed: expected an integer, found float"),
    ],
)  # fmt: skip
def test_bad_arguments(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        Sampler(**options)
    assert str(caught.value) == message


def test_numpy_numbers_are_numbers() -> None:
    sampler = Sampler(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.uint64(2**64 - 1))
    assert (sampler.temperature, sampler.top_k) == (0.5, 3)
    assert sampler.coin() == C_RANDOM[2**64 - 1][0] / 2**24


@pytest.mark.parametrize("options", [(1, 0, 0), (0, 0, 0), (0.95, 0, 0), (1, 5, 0), (0.9, 4, 0), (1, 0, 1e-9)])
def test_the_largest_coin_draws_no_excluded_token(options: tuple[float, int, float]) -> None:
    """A coin above every running sum, as rounding may leave one: the last token that has any probability is drawn."""
    top_p, top_k, min_p = options
    logits = np.array([-np.inf, 0, 0, -np.inf, 0, -np.inf, -np.inf], np.float32)
    token = _kernels.sample(logits, np.empty(7, np.float32), np.empty(14, np.uint64), 1.0, top_p, top_k, min_p, 1.5)
    assert token == 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_left(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"^logits: expected numbers that make a distribution, found NaN or infinity$"):
        Sampler(temperature).sample(np.full(5, -np.inf, np.float32))
    one = np.full(5, -np.inf, np.float32)
    one[3] = -2.0
    assert Sampler(temperature).sample(one) == 3


def test_seed_is_kept() -> None:
    assert [Sampler(seed=seed).seed for seed in (0, 7, 2**64 - 1)] == [0, 7, 2**64 - 1]
    seeds = {Sampler().seed for _ in range(50)}
    assert len(seeds) == 50 and max(seeds) < 2**53  # JSON keeps them
    drawn = Sampler()
    assert Sampler(seed=drawn.seed).coin() == drawn.coin()


def test_a_bias_leaves_the_logits_alone() -> None:
    logits = np.arange(5, dtype=np.float32)
    biased = LogitBias({1: 2.5, 4: -np.inf}, 5)(logits)
    assert biased.tolist() == [0, 3.5, 2, 3, -np.inf]
    assert logits.tolist() == [0, 1, 2, 3, 4]


# ---------------------------------------------------------------------------
# the tokens of many requests at once


def test_seeds_of_samples() -> None:
    """SplitMix64 as published: the first outputs for the state 0, and 1234567."""
    assert [seed_of_sample(0, k) for k in range(4)] == [0, 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [seed_of_sample(1234567, k) for k in (1, 2, 3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert seed_of_sample(2**64 - 1, 0) == 2**64 - 1
    assert 0 <= seed_of_sample(2**64 - 1, 99) < 2**64


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("vocab_size", [1, 37, 5000])
def test_many_are_drawn_as_each_alone(vocab_size: int, n_threads: int) -> None:
    rng = np.random.default_rng(vocab_size)
    choices: list[dict[str, float]] = [
        {"temperature": 0}, {}, {"top_p": 1.0}, {"top_k": 5}, {"min_p": 0.1}, {"temperature": 2.0, "top_k": 9, "min_p": 0.01},
    ]  # fmt: skip
    drawer = Drawer(vocab_size)
    drawer.SMALL = 0
    together = [Sampler(seed=i, **choices[i % len(choices)]) for i in range(11)]  # type: ignore[arg-type]
    alone = [Sampler(seed=i, **choices[i % len(choices)]) for i in range(11)]  # type: ignore[arg-type]
    for _ in range(5):
        rows = rng.normal(0, 3, (11, vocab_size)).astype(np.float32)
        drawn = drawer.draw([Draw(sampler, [row], []) for sampler, row in zip(together, rows, strict=True)], n_threads)
        assert drawn == [[sampler.sample(row)] for sampler, row in zip(alone, rows, strict=True)]
    assert drawer.draw([], n_threads) == []


def test_rows_after_a_wrong_guess_draw_no_coin() -> None:
    rng = np.random.default_rng(3)
    drawer = Drawer(50)
    for n_right in range(4):
        rows = list(rng.normal(0, 1, (4, 50)).astype(np.float32))
        one, other = Sampler(seed=n_right), Sampler(seed=n_right)
        tokens = [other.sample(row) for row in rows[: n_right + 1]]
        guesses = [*tokens[:n_right], (tokens[n_right] + 1) % 50, 0, 0][:3]
        assert drawer.draw([Draw(one, rows, guesses)]) == [tokens]
        assert one.coin() == other.coin()


def test_a_row_that_is_no_distribution() -> None:
    rows = np.zeros((3, 8), np.float32)
    rows[1, 3] = np.nan
    greedy = [Draw(Sampler(temperature=0), [rows[i]], []) for i in (0, 1)]
    drawn = Drawer(8).draw([*greedy, Draw(Sampler(), list(rows), [0, 0])])
    assert drawn[:2] == [[0], [-1]]
    assert drawn[2][-1] in range(-1, 8) and len(drawn[2]) <= 2
    excluded = np.full(8, -np.inf, np.float32)
    assert Drawer(8).draw([Draw(Sampler(temperature=t), [excluded], []) for t in (0.0, 1.0)]) == [[-1], [-1]]


def test_the_seed_of_an_id() -> None:
    expected = int.from_bytes(hashlib.blake2b(b"1:line-5", digest_size=8).digest(), "big") // 2**11
    assert seed_of_id(1, "line-5") == expected
    assert seed_of_id(1, 5) == seed_of_id(1, "5")
    seeds = {seed_of_id(run, id) for run in range(20) for id in ("a", "b", "\ud800", "", *range(100))}
    assert len(seeds) == 20 * 104
    assert max(seeds) < 2**53 and max(seeds) > 2**52
