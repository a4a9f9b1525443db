"""The steps of an engine, without its thread: what is fed, copied, dropped and drawn."""

from __future__ import annotations

from typing import Any

import pytest
from controlled import POISON

from llama2c.engine.drafts import Drafts
from llama2c.engine.prefixes import Prefixes
from llama2c.engine.request import Task
from llama2c.engine.worker import Call, Cancel, Close, Worker
from llama2c.errors import RequestError
from llama2c.llama import Llama
from llama2c.requests import new_request

STORY = "Once upon a time, there was a little girl called Lily. She liked to play in the garden with her red ball."


def make_worker(llama: Llama, max_sequences: int = 8, cache_bytes: int = 1 << 30, **options: Any) -> Worker:
    return Worker(llama.transformer, max_sequences, cache_bytes, **options)


def begin(worker: Worker, llama: Llama, prompt: Any, arrival: int = 0, keeps_all: bool = False, **options: Any) -> Task:
    sequence, maker = new_request(llama.transformer.config, llama.tokenizer, prompt, options)  # type: ignore[arg-type]
    task = Task(llama.transformer, sequence, arrival, maker, keeps_all)
    worker.commands.put(task)
    worker.take_commands()
    return task


def finish(worker: Worker, *tasks: Task) -> list[tuple[int, ...]]:
    """Step until these are done. Their tokens."""
    while any(task.finish_reason is None for task in tasks):
        worker.step()
    return [tuple(piece.token for piece in task.pieces) for task in tasks]


def test_each_request_gets_what_generate_makes(llama: Llama) -> None:
    worker = make_worker(llama)
    requests: list[dict[str, Any]] = [
        {"seed": 1, "max_tokens": 40},
        {"temperature": 0, "max_tokens": 25},
        {"seed": 3, "max_tokens": 30, "repetition_penalty": 1.3, "top_k": 20},
        {"seed": 4, "max_tokens": 30, "logit_bias": {406: 2.0}, "logprobs": 2, "stop": "."},
        {"seed": 5, "max_tokens": 1},
    ]
    prompts = [STORY[: 15 * i + 10] for i in range(len(requests))]
    tasks = [
        begin(worker, llama, prompt, i, **options) for i, (prompt, options) in enumerate(zip(prompts, requests, strict=True))
    ]
    expected = [llama.generate(prompt, **options) for prompt, options in zip(prompts, requests, strict=True)]
    assert finish(worker, *tasks) == [done.tokens for done in expected]
    for task, done in zip(tasks, expected, strict=True):
        assert task.finish_reason == done.finish_reason
        assert "".join(piece.text for piece in task.pieces) == done.text
        assert [piece.logprob for piece in task.pieces if piece.logprob is not None] == list(done.logprobs or ())
        assert task.cache is None
    assert worker.stats.tokens == sum(len(done.tokens) for done in expected)
    assert (worker.stats.running, worker.stats.waiting, worker.stats.cache_bytes) == (0, 0, 0)


def test_rows_of_all_are_in_one_step(controlled: Any) -> None:
    worker = make_worker(controlled)
    n = [len(controlled.tokenizer.encode(text)) for text in (STORY, "The dog")]
    tasks = [begin(worker, controlled, text, i, max_tokens=3, seed=1) for i, text in enumerate((STORY, "The dog"))]
    finish(worker, *tasks)
    assert controlled.transformer.batches == [n, [1, 1], [1, 1]]
    assert (worker.stats.steps, worker.stats.rows, worker.stats.prompt_tokens) == (3, sum(n) + 4, sum(n))


def test_a_prompt_is_read_in_parts_beside_a_running_text(controlled: Any) -> None:
    worker = make_worker(controlled)
    first = begin(worker, controlled, "The dog", 0, max_tokens=60, seed=1)
    worker.step()
    ids = [1, *range(300, 540)]
    second = begin(worker, controlled, ids, 1, max_tokens=2, seed=2)
    while not second.pieces:
        n_made = len(first.pieces)
        worker.step()
        assert len(first.pieces) == n_made + 1  # it never waits
    parts = [batch[1] for batch in controlled.transformer.batches[1:] if len(batch) > 1]
    assert sum(parts) == len(ids) and len(parts) > 2
    assert finish(worker, second) == [controlled.generate(ids, max_tokens=2, seed=2).tokens]


def test_who_lost_its_cache_goes_on_as_if_nothing_were(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama2c.transformer.FIRST_BYTES", 0)  # a cache begins with 16 positions
    size = llama.transformer.cache_bytes(16, 320)
    worker = make_worker(llama, cache_bytes=12 * size)
    options: dict[str, Any] = {"max_tokens": 100, "repetition_penalty": 1.1, "top_p": 1.0, "logit_bias": {2: -100.0}}
    prompts = [f"The {word}" for word in ("dog", "cat", "bird", "girl", "mouse")]
    tasks = [begin(worker, llama, prompt, i, seed=i, **options) for i, prompt in enumerate(prompts)]
    n_dropped = 0
    while any(task.finish_reason is None for task in tasks):
        running = {task for task in tasks if task.cache is not None}
        worker.step()
        n_dropped += sum(task.cache is None and task.finish_reason is None for task in running)
        held = sum(task.cache._buffer.capacity for task in tasks if task.cache is not None) * size // 16
        assert held <= 12 * size
    assert n_dropped > 0
    expected = [llama.generate(prompt, seed=i, **options).tokens for i, prompt in enumerate(prompts)]
    assert finish(worker, *tasks) == expected
    assert worker.stats.prompt_tokens > sum(task.sequence.n_prompt for task in tasks)  # some was computed again


# ---------------------------------------------------------------------------
# ends


def test_a_cancel_in_the_middle_of_a_prompt(controlled: Any) -> None:
    worker = make_worker(controlled)
    running = begin(worker, controlled, "The dog", 0, max_tokens=9, seed=1)
    worker.step()
    task = begin(worker, controlled, [1, *range(300, 540)], 1, max_tokens=2)
    worker.step()
    assert task.cache is not None and 0 < task.n_filled < task.n_ids
    worker.commands.put(Cancel(task))
    assert worker.take_commands()
    assert (task.finish_reason, task.cache, task.pieces, worker.stats.running) == ("cancelled", None, [], 1)
    assert finish(worker, running) == [controlled.generate("The dog", max_tokens=9, seed=1).tokens]


def test_a_cancel_of_one_that_waits_or_has_ended(llama: Llama) -> None:
    worker = make_worker(llama, max_sequences=1)
    running, waiting = (begin(worker, llama, "The dog", i, max_tokens=3, seed=1) for i in range(2))
    worker.step()
    assert (worker.stats.running, worker.stats.waiting) == (1, 1)
    worker.commands.put(Cancel(waiting))
    worker.take_commands()
    assert (waiting.finish_reason, worker.stats.waiting) == ("cancelled", 0)
    finish(worker, running)
    worker.commands.put(Cancel(running))
    worker.take_commands()
    assert running.finish_reason == "length"


def test_nan_ends_one_request_alone(controlled: Any) -> None:
    worker = make_worker(controlled)
    for temperature, penalty in ((1.0, 1.0), (0.0, 1.0), (1.0, 1.2)):
        options: dict[str, Any] = {"temperature": temperature, "repetition_penalty": penalty, "seed": 1, "max_tokens": 5}
        good, bad, other = (
            begin(worker, controlled, prompt, i, **options) for i, prompt in enumerate(([1, 300], [1, POISON], [1, 301]))
        )
        assert finish(worker, good, other) == [controlled.generate(ids, **options).tokens for ids in ([1, 300], [1, 301])]
        assert bad.finish_reason == "error"
        assert isinstance(bad.error, ValueError) and str(bad.error).startswith("logits: ")


def test_all_tokens_excluded_ends_one_request_alone(llama: Llama) -> None:
    worker = make_worker(llama)
    excluded = dict.fromkeys(range(llama.tokenizer.vocab_size), float("-inf"))
    good, bad = begin(worker, llama, "The", 0, seed=1, max_tokens=5), begin(worker, llama, "The", 1, logit_bias=excluded)
    finish(worker, good)
    assert (good.finish_reason, bad.finish_reason) == ("length", "error")


def test_a_step_without_memory_ends_the_youngest(controlled: Any) -> None:
    worker = make_worker(controlled)
    tasks = [begin(worker, controlled, "The dog", i, seed=i, max_tokens=4) for i in range(3)]
    controlled.transformer.failure = MemoryError("no room")
    worker.step()
    assert [task.finish_reason for task in tasks] == [None, None, "error"]
    assert finish(worker, *tasks[:2]) == [controlled.generate("The dog", seed=i, max_tokens=4).tokens for i in range(2)]


def test_a_cache_without_memory_is_an_error_of_its_request(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = make_worker(llama)
    good = begin(worker, llama, "The dog", 0, seed=1, max_tokens=4)
    worker.step()
    bad = begin(worker, llama, "The cat", 1, seed=1, max_tokens=4)
    with monkeypatch.context() as patch:
        patch.setattr(llama.transformer, "new_cache", lambda length: (_ for _ in ()).throw(MemoryError("no room")))
        worker.step()
    assert (bad.finish_reason, str(bad.error), worker.stats.running) == ("error", "no room", 1)
    assert finish(worker, good) == [llama.generate("The dog", seed=1, max_tokens=4).tokens]


def test_a_step_that_fails_ends_those_in_it_and_no_other(controlled: Any) -> None:
    worker = make_worker(controlled, max_sequences=2)
    tasks = [begin(worker, controlled, "The dog", i, seed=i, max_tokens=4) for i in range(3)]
    controlled.transformer.failure = RuntimeError("broken")
    worker.step()
    assert [task.finish_reason for task in tasks] == ["error", "error", None]
    assert finish(worker, tasks[2]) == [controlled.generate("The dog", seed=2, max_tokens=4).tokens]


def test_close_ends_everything(llama: Llama) -> None:
    worker = make_worker(llama, max_sequences=1)
    tasks = [begin(worker, llama, "The dog", i) for i in range(2)]
    worker.step()
    late = Task(llama.transformer, tasks[0].sequence, 9, tasks[0].maker, False)
    call = Call(lambda: 1)
    for command in (Close, late, call):
        worker.commands.put(command)  # type: ignore[arg-type]
    worker.run()
    assert [task.finish_reason for task in (*tasks, late)] == ["cancelled"] * 3
    assert all(task.done.is_set() and task.cache is None for task in tasks)
    with pytest.raises(RuntimeError, match=r"^engine: it is closed$"):
        call.wait()


def test_an_error_of_our_own_leaves_nobody_waiting(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = make_worker(llama)
    task = begin(worker, llama, "The dog")
    monkeypatch.setattr(worker, "_share", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        worker.run()
    assert (task.finish_reason, type(task.error), worker.closed) == ("error", ZeroDivisionError, True)


def test_calls_are_made_between_steps(llama: Llama) -> None:
    worker = make_worker(llama)
    good, bad = Call(lambda: 7), Call(lambda: 1 / 0)
    worker.commands.put(good)
    worker.commands.put(bad)
    worker.take_commands()
    assert good.wait() == 7
    with pytest.raises(ZeroDivisionError):
        bad.wait()


# ---------------------------------------------------------------------------
# prefixes, guesses


def test_a_prompt_that_another_reads_is_read_once(controlled: Any) -> None:
    worker = make_worker(controlled)
    ids = controlled.tokenizer.encode(STORY)
    own = [[*ids, 300 + i, 301] for i in range(4)]
    tasks = [begin(worker, controlled, prompt, i, seed=i, max_tokens=6) for i, prompt in enumerate(own)]
    worker.step()
    assert [task.cache is not None for task in tasks] == [True, False, False, False]
    found = finish(worker, *tasks)
    assert controlled.transformer.batches[0] == [len(ids) + 2]
    assert controlled.transformer.batches[1] == [1, 2, 2, 2]
    assert (worker.stats.prompt_tokens, worker.stats.shared_tokens) == (len(ids) + 8, 3 * len(ids))
    assert found == [controlled.generate(prompt, seed=i, max_tokens=6).tokens for i, prompt in enumerate(own)]


def test_who_waits_for_a_request_that_ends_goes_on_by_itself(controlled: Any) -> None:
    worker = make_worker(controlled)
    ids = [1, *range(300, 560)]
    first, second = (begin(worker, controlled, [*ids, 299 + i], i, seed=i, max_tokens=3) for i in range(2))
    worker.step()  # 256 rows are the most of a step
    assert (first.n_filled, second.cache) == (256, None)
    worker.commands.put(Cancel(first))
    worker.take_commands()
    assert finish(worker, second) == [controlled.generate([*ids, 300], seed=1, max_tokens=3).tokens]
    assert (first.finish_reason, worker.stats.shared_tokens) == ("cancelled", 0)


def test_earlier_requests_are_remembered(controlled: Any) -> None:
    llama, ids = controlled, controlled.tokenizer.encode(STORY)
    worker = make_worker(llama, prefixes=Prefixes(llama.transformer, 1 << 24))
    finish(worker, begin(worker, llama, ids, 0, seed=1, max_tokens=4))
    task = begin(worker, llama, [*ids, 400], 1, seed=2, max_tokens=4)
    assert finish(worker, task) == [llama.generate([*ids, 400], seed=2, max_tokens=4).tokens]
    assert llama.transformer.batches[-4] == [1]  # all of the prompt but its last token was copied
    assert (worker.stats.prefix_hits, worker.stats.prefix_tokens) == (1, len(ids))
    assert worker.stats.prefix_bytes > 0
    chat = begin(worker, llama, ids[:30], 2, keeps_all=True, seed=3, max_tokens=20)
    [tokens] = finish(worker, chat)
    begin(worker, llama, [*ids[:30], *tokens, 500, 501], 3, seed=4, max_tokens=2)
    worker.step()
    assert llama.transformer.batches[-1] == [3]  # the last token drawn, and the two that are new


def test_what_was_cancelled_in_a_prompt_is_remembered(controlled: Any) -> None:
    worker = make_worker(controlled, prefixes=Prefixes(controlled.transformer, 1 << 24))
    ids = [1, *range(300, 560)]
    first = begin(worker, controlled, ids, 0, max_tokens=2)
    worker.step()
    worker.commands.put(Cancel(first))
    worker.take_commands()
    second = begin(worker, controlled, ids, 1, max_tokens=2, seed=5)
    worker.step()
    assert controlled.transformer.batches == [[256], [5]]
    assert finish(worker, second) == [controlled.generate(ids, max_tokens=2, seed=5).tokens]


def test_guesses_change_no_token(controlled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that repeats itself; the second request has the text of the first to guess from."""
    # Another row seems to cost nothing, so that guesses pay.
    monkeypatch.setattr("llama2c.engine.drafts.StepTimes.expected", lambda self, n_rows, n_sizes: [1.0] * n_sizes)
    worker = make_worker(controlled, drafts=Drafts())
    prompt = "The dog ran. The dog ran. The dog ran. The dog ran."
    options: dict[str, Any] = {"max_tokens": 60, "temperature": 0.3, "seed": 3, "repetition_penalty": 1.05, "stop": "never"}
    expected = controlled.generate(prompt, **options)
    for i in range(2):
        task = begin(worker, controlled, prompt, i, **options)
        assert finish(worker, task) == [expected.tokens]
        assert "".join(piece.text for piece in task.pieces) == expected.text
    stats = worker.stats
    assert 0 < stats.drafts_accepted <= stats.drafts_proposed
    assert stats.steps < stats.tokens
    assert worker.stats.rows == sum(sum(batch) for batch in controlled.transformer.batches)


def test_a_bad_constraint_ends_one_request_alone(llama: Llama) -> None:
    class Bad:
        finished = False

        def mask(self, logits: Any) -> Any:
            raise RequestError("grammar: it is too complex", "grammar")

        def advance(self, token: int) -> None: ...

        def reset(self) -> None: ...

    worker = make_worker(llama)
    good, bad = (begin(worker, llama, "The dog", i, seed=1, max_tokens=4) for i in range(2))
    bad.sequence._constraint = Bad()
    assert finish(worker, good) == [llama.generate("The dog", seed=1, max_tokens=4).tokens]
    assert (bad.finish_reason, str(bad.error)) == ("error", "grammar: it is too complex")
