"""Ids: what a dict would say, with keys in the dict of recent ones and in the sorted arrays."""

from __future__ import annotations

import numpy as np
import pytest

from llama2c.batch import ids as module
from llama2c.batch.ids import Ids, Meeting, key_of


@pytest.fixture(autouse=True)
def few_recent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECENT", 50)


def test_keys() -> None:
    assert len({key_of(id) for id in ("5", 5, "", "a", "\ud800", "line-5", -5)}) == 7
    assert {len(key_of(id)) for id in ("", 5, "a" * 1000)} == {16}
    assert key_of("a") == key_of("a")


def test_it_knows_what_a_dict_knows() -> None:
    rng = np.random.default_rng(1)
    expected: dict[bytes, int] = {}
    found = Ids()
    keys = [rng.bytes(16) for _ in range(330)]
    keys += [keys[i][:8] + rng.bytes(8) for i in range(0, 330, 3)]  # the same first half
    for key in keys:
        number = int(rng.integers(0, 2**64, dtype=np.uint64))
        found.add(key, number)
        expected[key] = number
    assert len(found) == len(expected) == 440
    assert {key: found.get(key) for key in keys} == expected
    assert found.get(bytes(16)) is None
    assert found.get(keys[0][:8] + bytes(8)) is None
    assert {row.tobytes() for row in found.keys()} == set(keys)  # noqa: SIM118  it is no dict
    assert len(found) == 440


def test_meetings() -> None:
    found = Ids()
    done = {key_of(i): i for i in range(120)}
    for key, number in done.items():
        found.add(key, number)
    assert found.unmet() == 120
    meetings = [found.meet(key_of(i), 7 if i == 60 else i) for i in range(200)]
    assert meetings == [Meeting.DONE] * 60 + [Meeting.CHANGED] + [Meeting.DONE] * 59 + [Meeting.NEW] * 80
    assert {found.meet(key_of(i), i) for i in range(200)} == {Meeting.TWICE}
    assert (len(found), found.unmet()) == (200, 0)


def test_an_array_holds_25_bytes_for_each() -> None:
    found = Ids()
    for i in range(1000):
        found.add(key_of(i), i)
    arrays = [value for value in vars(found).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) == 25 * 1000
    assert not found._recent


def numbers_of(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(8, "big") for number in numbers)


def test_many_that_are_added_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    for n in (3, 49, 50, 51, 200):
        found = Ids()
        expected = {rng.bytes(16): int(rng.integers(0, 2**64, dtype=np.uint64)) for _ in range(2 * n)}
        keys = list(expected)
        for some in (keys[:n], keys[n:]):
            found.add_many(b"".join(some), np.array([expected[key] for key in some], np.uint64))
        assert len(found) == 2 * n and found.unmet() == 2 * n
        assert {key: found.get(key) for key in keys} == expected


def test_those_that_are_surely_done() -> None:
    found = Ids()
    keys = [key_of(f"a{i}") for i in range(70)]
    for part in (slice(0, 60), slice(60, 70)):
        found.add_many(b"".join(keys[part]), np.arange(70, dtype=np.uint64)[part])
    asked = [keys[3], keys[65], keys[4], key_of("b"), keys[3], keys[69]]
    assert found.meet_done(b"".join(asked), numbers_of(3, 65, 5, 3, 3, 69)) == [True, True, False, False, False, True]
    assert found.unmet() == 67
    assert found.meet_done(keys[3], numbers_of(3)) == [False]  # it comes twice
    assert found.meet(keys[3], 3) is found.meet(keys[65], 65) is Meeting.TWICE
    assert found.meet(keys[4], 5) is Meeting.CHANGED and found.meet(keys[5], 5) is Meeting.DONE
    assert found.meet_done(b"", b"") == []
    found.add(key_of("new"), 1, met=True)
    assert found.meet_done(key_of("new"), numbers_of(1)) == [False]
    assert found._recent  # it was not sorted in: a run of new lines would sort all of them again and again
    assert Ids().meet_done(keys[0] + keys[1], numbers_of(0, 1)) == [False, False]


def test_a_key_with_the_first_half_of_another_is_left_to_meet() -> None:
    found = Ids()
    keys = [bytes(16), bytes(8) + b"12345678", b"\xff" * 16]
    found.add_many(b"".join(keys), np.array([1, 2, 3], np.uint64))
    known = found.meet_done(b"".join(keys), numbers_of(1, 2, 3))
    assert known[2] and known[:2].count(True) <= 1
    rest = [key for key, is_known in zip(keys, known, strict=True) if not is_known]
    assert {found.meet(key, keys.index(key) + 1) for key in rest} <= {Meeting.DONE}
    assert found.unmet() == 0
