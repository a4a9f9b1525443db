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


def test_is_done() -> None:
    found = Ids()
    for i in range(70):
        found.add(key_of(f"a{i}"), i)
    for i in (3, 65):  # in the arrays, and in the dict
        assert found.is_done(f"a{i}", i)
        assert not found.is_done(f"a{i}", i + 1)
        found.meet(key_of(f"a{i}"), i)
        assert not found.is_done(f"a{i}", i)
    assert not found.is_done("b", 3)
