"""The loop: order, room, waiting for a pipe, ends of all kinds."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from llama2c.batch.ids import Ids, Meeting
from llama2c.batch.plan import Plan
from llama2c.batch.run import Runner, StrictError, met
from llama2c.batch.work import Answered, Worker
from llama2c.engine.engine import Engine
from llama2c.errors import RoomError
from llama2c.llama import Llama

from .conftest import entries_of

LENGTHS = [40, 1, 30, 2, 20, 3, 10, 4]
LINES = [{"prompt": "The dog", "max_tokens": n, "id": n, "logit_bias": {"1": -100, "2": -100}} for n in LENGTHS]


@pytest.fixture
def worker(llama: Llama, plan: Plan) -> Iterator[Worker]:
    with Engine(llama, 2, prefix_bytes=0) as engine:
        yield Worker(llama, engine, plan)


def ids_of(delivered: list[Answered]) -> list[Any]:
    return [json.loads(answered.line)["id"] for answered in delivered]


def test_in_order_or_as_they_are_finished(worker: Worker) -> None:
    found: dict[bool, list[Answered]] = {}
    for ordered in (False, True):
        found[ordered] = []
        with Runner(worker, found[ordered].append, ordered) as runner:
            for entry in entries_of(*LINES):
                runner.add(entry)
            runner.finish()
    assert ids_of(found[True]) == LENGTHS
    assert ids_of(found[False]) != LENGTHS
    assert ids_of(found[False])[0] == 1
    assert sorted(answered.line for answered in found[False]) == sorted(answered.line for answered in found[True])
    assert all(answered.seconds > 0 for answered in found[True])


@pytest.mark.parametrize("ordered", [False, True])
def test_entries_are_taken_as_there_is_room(worker: Worker, ordered: bool) -> None:
    """A million lines are not begun at once."""
    taken = delivered = most = 0

    def deliver(answered: Answered) -> None:
        nonlocal delivered
        delivered += 1

    with Runner(worker, deliver, ordered) as runner:
        for entry in entries_of(*[{"prompt": "a", "max_tokens": 1 + 20 * (i == 0)} for i in range(60)]):
            taken += 1
            runner.add(entry)
            most = max(most, taken - delivered)
        runner.finish()
    assert delivered == 60
    assert most <= (8 if ordered else 4) + 1


def test_wrong_lines_among_others(worker: Worker) -> None:
    delivered: list[Answered] = []
    with Runner(worker, delivered.append, ordered=True) as runner:
        for entry in entries_of({"prompt": "a", "max_tokens": 9, "id": 1}, b"?", {"prompt": "b", "max_tokens": 1, "id": 3}):
            runner.add(entry)
        runner.finish()
    assert ids_of(delivered) == [1, "line-2", 3]
    assert [answered.error is None for answered in delivered] == [True, False, True]


@pytest.mark.parametrize("ordered", [False, True])
def test_strict_ends_at_a_wrong_line_and_keeps_what_is_finished(worker: Worker, ordered: bool) -> None:
    delivered: list[Answered] = []
    lines = [{"prompt": "a", "max_tokens": 0, "id": id} for id in (1, 2, 3)]
    lines[1]["top_k"] = -1
    wrong = r"^line 2: top_k: expected an integer of at least 0, found -1$"
    with pytest.raises(StrictError, match=wrong), Runner(worker, delivered.append, ordered, strict=True) as runner:
        for entry in entries_of(*lines):
            runner.add(entry)
        runner.finish()
    assert ids_of(delivered) == [1]


def test_stop_ends_between_two_lines(worker: Worker) -> None:
    delivered: list[Answered] = []

    def deliver(answered: Answered) -> None:
        delivered.append(answered)
        runner.stop()

    with pytest.raises(KeyboardInterrupt), Runner(worker, deliver) as runner:
        for entry in entries_of(*LINES):
            runner.add(entry)
        runner.finish()
    assert 1 <= len(delivered) < len(LINES)
    assert len(set(ids_of(delivered))) == len(delivered)


def test_stop_wakes_a_runner_that_waits_for_a_pipe(worker: Worker) -> None:
    readable, writable = os.pipe()
    try:
        with pytest.raises(KeyboardInterrupt), Runner(worker, lambda answered: None) as runner:
            threading.Timer(0, runner.stop).start()
            runner.wait(readable)
    finally:
        os.close(readable)
        os.close(writable)


def test_what_is_finished_is_delivered_while_a_pipe_has_nothing(worker: Worker) -> None:
    readable, writable = os.pipe()
    try:

        def deliver(answered: Answered) -> None:
            os.write(writable, b"x")  # the next line comes when this one is answered

        with Runner(worker, deliver) as runner:
            runner.add(entries_of({"prompt": "a", "max_tokens": 3})[0])
            while not runner.wait(readable):
                pass
            runner.finish()
    finally:
        os.close(readable)
        os.close(writable)


def test_an_error_of_deliver_ends_it_and_nothing_more_is_delivered(worker: Worker) -> None:
    calls = []

    def deliver(answered: Answered) -> None:
        calls.append(answered)
        raise OSError("full")

    with pytest.raises(OSError, match="full"), Runner(worker, deliver) as runner:
        for entry in entries_of(*LINES):
            runner.add(entry)
        runner.finish()
    assert len(calls) == 1


def test_too_little_memory_names_the_line(llama: Llama, plan: Plan) -> None:
    with (
        Engine(llama, 2, cache_bytes=1) as engine,
        pytest.raises(RoomError, match=r"^line 1: request: expected to need"),
        Runner(Worker(llama, engine, plan), lambda answered: None) as runner,
    ):
        runner.add(entries_of({"prompt": "a"})[0])


def test_an_error_inside_of_the_model_is_raised(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(worker._llama.transformer), "forward_batch", _no_memory)
    delivered: list[Answered] = []
    with pytest.raises(MemoryError), Runner(worker, delivered.append) as runner:
        runner.add(entries_of({"prompt": "a"})[0])
        runner.finish()
    assert not delivered


def _no_memory(*arguments: Any, **options: Any) -> Any:
    raise MemoryError


def test_ids_that_come_twice() -> None:
    lines = [{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}, {"prompt": "c", "id": "line-5"}, b"?", b"?"]
    found = list(met(entries_of(*lines), Ids()))
    assert [entry.id for entry, _ in found] == ["x", "line-2", "line-5", "line-4", "line-5+"]
    assert str(found[1][0].error) == 'id: expected one that no earlier line has, found "x"'
    assert {meeting for _, meeting in found} == {Meeting.NEW}
