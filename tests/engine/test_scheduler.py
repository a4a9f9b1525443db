"""The scheduler by itself: requests are numbers, and a whole run is played without a model."""

from __future__ import annotations

import random

import pytest

from llama2c.engine.scheduler import FIRST_ROWS, LEAST_CHUNK, STEP_SECONDS, Pace, Scheduler, Share


class Item:
    """A request: so many ids now, so many in the end. A cache takes a byte a position, in powers of two from 8 on."""

    def __init__(self, arrival: int, n_prompt: int, n_made: int = 1) -> None:
        self.arrival = arrival
        self.held = 0
        self.n_ids = n_prompt
        self.n_filled = 0
        self.n_end = n_prompt + n_made
        self.capacity = 0  # of the cache that it has

    def __repr__(self) -> str:
        return f"#{self.arrival}"

    def bytes_for(self, n_positions: int) -> int:
        size = 8
        while size < n_positions:
            size *= 2
        return min(size, self.n_end - 1)


def never(item: Item) -> bool:
    return False


def start(scheduler: Scheduler[Item], *items: Item) -> None:
    for item in items:
        scheduler.add(item)
    list(scheduler.admit(never))


def fill(*items: Item) -> None:
    """As after a step that has read all prompts and drawn a token of each."""
    for item in items:
        item.n_filled, item.n_ids = item.n_ids, item.n_ids + 1


def test_first_come_first_served() -> None:
    scheduler: Scheduler[Item] = Scheduler(2, 1000)
    late, early, middle = Item(5, 3), Item(1, 3), Item(3, 3)
    start(scheduler, late, early, middle)
    assert (scheduler.running, scheduler.waiting, scheduler.used) == ([early, middle], [late], 6)
    scheduler.remove(middle)
    assert list(scheduler.admit(never)) == [late]
    assert (scheduler.running, scheduler.waiting) == ([early, late], [])
    scheduler.remove(early)
    scheduler.remove(early)
    assert (scheduler.running, scheduler.used) == ([late], 3)


def test_who_waits_for_another_is_overtaken() -> None:
    scheduler: Scheduler[Item] = Scheduler(2, 1000)
    first, second, third = Item(0, 3), Item(1, 3), Item(2, 3)
    for item in (first, second, third):
        scheduler.add(item)
    assert list(scheduler.admit(lambda item: item is second)) == [first, third]
    assert scheduler.waiting == [second]


def test_a_request_without_room_is_not_overtaken() -> None:
    scheduler: Scheduler[Item] = Scheduler(9, 100)
    small, large, smaller = Item(0, 40, 21), Item(1, 50), Item(2, 2)
    start(scheduler, small, large, smaller)
    assert (scheduler.running, scheduler.waiting, scheduler.used) == ([small], [large, smaller], 60)
    scheduler.remove(small)
    assert list(scheduler.admit(never)) == [large, smaller]


def test_texts_go_first_and_prompts_share_what_is_left() -> None:
    scheduler: Scheduler[Item] = Scheduler(9, 10_000)
    texts, prompts = [Item(0, 3, 50), Item(3, 3, 50)], [Item(1, 100), Item(2, 70)]
    start(scheduler, *texts, *prompts)
    fill(*texts)
    assert scheduler.share(50) == [Share(texts[0], 1, 0), Share(prompts[0], 48, 0), Share(texts[1], 1, 0)]
    prompts[0].n_filled = 48
    assert scheduler.share(110) == [Share(texts[0], 1, 0), *[Share(p, n, 0) for p, n in zip(prompts, (52, 56), strict=True)],
                                    Share(texts[1], 1, 0)]  # fmt: skip
    prompts[0].n_filled = 99  # its last id is due: as one of a text
    assert [share.n_rows for share in scheduler.share(60)] == [1, 1, 57, 1]


def test_a_prompt_always_goes_on() -> None:
    scheduler: Scheduler[Item] = Scheduler(99, 10_000)
    texts = [Item(i, 3, 50) for i in range(40)]
    prompt = Item(40, 100)
    start(scheduler, *texts, prompt)
    fill(*texts)
    shares = scheduler.share(16)
    assert [share.n_rows for share in shares] == [1] * 40 + [LEAST_CHUNK]


def test_guesses_share_the_rows_that_are_left() -> None:
    scheduler: Scheduler[Item] = Scheduler(9, 10_000)
    texts = [Item(i, 3, 50) for i in range(3)]
    start(scheduler, *texts)
    fill(*texts)
    assert scheduler.share(13) == [Share(text, 1, 3) for text in texts]
    assert scheduler.share(2) == [Share(text, 1, 0) for text in texts]
    prompt = Item(7, 20)
    start(scheduler, prompt)
    assert scheduler.share(23) == [Share(text, 1, 0) for text in texts] + [Share(prompt, 20, 0)]
    assert scheduler.share(32) == [Share(text, 1, 3) for text in texts] + [Share(prompt, 20, 0)]


def test_the_youngest_makes_room() -> None:
    scheduler: Scheduler[Item] = Scheduler(9, 60)
    old, middle, young = [Item(i, 8, 100) for i in range(3)]
    start(scheduler, old, middle, young)
    fill(old, middle, young)
    assert scheduler.used == 24
    # each needs 16 bytes in place of 8, and both count while it grows: 24 + 16, 32 + 16, 40 + 16
    assert list(scheduler.make_room()) == [(old, True), (middle, True), (young, True)]
    assert (scheduler.used, old.held) == (48, 16)
    old.n_ids = 17  # 48 + 32 is too much: the youngest goes, 32 + 32 still is: so does the next
    assert list(scheduler.make_room()) == [(young, False), (middle, False), (old, True)]
    assert (scheduler.running, scheduler.waiting, scheduler.used) == ([old], [middle, young], 32)
    assert (middle.held, young.held) == (0, 0)
    assert list(scheduler.admit(never)) == [middle]
    assert scheduler.used == 48


def test_a_request_alone_that_cannot_grow_begins_again() -> None:
    """Both caches would not fit at once; the new one alone does."""
    scheduler: Scheduler[Item] = Scheduler(9, 40)
    item = Item(0, 16, 17)
    start(scheduler, item)
    fill(item)
    assert list(scheduler.make_room()) == [(item, False)]
    assert list(scheduler.admit(never)) == [item]
    assert scheduler.used == 32


@pytest.mark.parametrize("seed", range(20))
def test_random_runs_end_in_order_and_within_the_limit(seed: int) -> None:
    """Requests come and are cancelled; each of the others ends, and the oldest goes on in every step."""
    rng = random.Random(seed)
    limit = rng.choice([64, 200, 1000])
    scheduler: Scheduler[Item] = Scheduler(rng.randrange(1, 9), limit)
    items = []
    for i in range(60):
        n_prompt = rng.randrange(1, 60)
        items.append(Item(i, n_prompt, rng.randrange(1, 65 - n_prompt)))
    coming, left, n_steps = list(items), set(items), 0
    while left:
        while coming and rng.random() < 0.5:
            scheduler.add(coming.pop(0))
        if rng.random() < 0.05:
            cancelled = rng.choice(items)
            if cancelled not in coming:
                scheduler.remove(cancelled)
                left.discard(cancelled)
        for item, grows in scheduler.make_room():
            held = sum(other.capacity for other in scheduler.running)
            assert not grows or held + item.bytes_for(item.n_ids) <= limit  # the old cache is there until the new one is
            item.capacity = item.bytes_for(item.n_ids) if grows else 0
            item.n_filled = item.n_filled if grows else 0
        for item in scheduler.admit(never):
            item.capacity, item.n_filled = item.bytes_for(item.n_ids), 0
        assert scheduler.used == sum(item.capacity for item in scheduler.running) <= limit
        assert len(scheduler.running) <= scheduler.max_sequences
        max_rows = rng.choice([1, 16, 40])
        shares = scheduler.share(max_rows)
        assert [share.work for share in shares] == sorted((share.work for share in shares), key=lambda item: item.arrival)
        if scheduler.running:
            assert shares[0].work is scheduler.running[0]
            assert all(other.arrival > scheduler.running[0].arrival for other in scheduler.waiting)
        assert sum(share.n_rows + share.n_guesses for share in shares) <= max(max_rows, len(shares) + LEAST_CHUNK)
        for item, n_rows, _ in shares:
            assert 0 < n_rows <= item.n_ids - item.n_filled
            item.n_filled += n_rows
            assert item.n_filled <= max(item.capacity, 1)
            if item.n_filled == item.n_ids:
                item.n_ids += 1
                if item.n_ids == item.n_end:
                    scheduler.remove(item)
                    left.discard(item)
                    item.capacity = 0
        n_steps += 1
        assert n_steps < 20_000
    assert not coming or all(item not in left for item in coming)


# ---------------------------------------------------------------------------
# how many rows


def seconds(n_rows: int) -> float:
    """Of a step of some model: 10 ms and 0.7 ms a row."""
    return 0.010 + 0.0007 * n_rows


def test_the_pace_finds_the_rows_that_take_the_time() -> None:
    pace = Pace(256)
    assert pace.rows == FIRST_ROWS
    for _ in range(20):
        pace.note(pace.rows, pace.rows - 4, seconds(pace.rows))
    assert seconds(pace.rows) == pytest.approx(STEP_SECONDS, rel=0.05)
    rows = pace.rows
    pace.note(pace.rows, 3, 1.0)  # the machine was busy with something else
    assert pace.rows == rows // 2
    for _ in range(20):
        pace.note(pace.rows, pace.rows - 4, seconds(pace.rows))
    assert abs(pace.rows - rows) <= 1


def test_a_small_step_says_nothing_unless_it_was_slow() -> None:
    pace = Pace(256)
    pace.note(8, 4, 0.001)
    assert pace.rows == FIRST_ROWS
    pace.note(28, 4, 2 * STEP_SECONDS)
    assert pace.rows == LEAST_CHUNK  # 14 would be too few


def test_the_pace_has_bounds() -> None:
    pace = Pace(100)
    for _ in range(20):
        pace.note(pace.rows, 9, 1e-9)
    assert pace.rows == 100
    for _ in range(20):
        pace.note(pace.rows, 9, 10.0)
    assert pace.rows == LEAST_CHUNK


def test_a_large_model_takes_its_time() -> None:
    """Where a step of running texts alone takes long, one with a part of a prompt may take twice that."""
    pace = Pace(256)
    for _ in range(20):
        pace.note(4, 0, 0.2)
        pace.note(pace.rows, pace.rows - 4, 20 * seconds(pace.rows))
    assert 20 * seconds(pace.rows) == pytest.approx(0.4, rel=0.06)
    pace.note(4, 0, 5.0)  # held up once
    pace.note(pace.rows, pace.rows - 4, 0.4)
    assert 20 * seconds(pace.rows) < 0.65
