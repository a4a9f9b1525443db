"""An Engine with its thread: from any thread, from asyncio, and all the ways in which it ends."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from controlled import PATIENCE, POISON

import llama2c
from llama2c.engine import engine as module
from llama2c.engine.engine import Engine
from llama2c.errors import RequestError
from llama2c.llama import Llama
from llama2c.sampler import seed_of_sample

MESSAGES = [{"role": "user", "content": "Tell me a story."}]


def wait_for(thread: threading.Thread) -> None:
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_text_ids_and_messages(llama: Llama) -> None:
    with Engine(llama) as engine:
        assert (
            engine.submit("The dog", seed=1, max_tokens=9).result().text == llama.generate("The dog", seed=1, max_tokens=9).text
        )
        ids = llama.tokenizer.encode("The dog")
        assert engine.submit(ids, seed=1, max_tokens=9).result().text == llama.generate(ids, seed=1, max_tokens=9).text
        assert engine.submit(MESSAGES, seed=1, max_tokens=9).result().text == llama.chat(MESSAGES, seed=1, max_tokens=9).text


def test_a_completion_is_that_of_generate(llama: Llama) -> None:
    options: dict[str, Any] = {"seed": 7, "max_tokens": 20, "logprobs": 2, "stop": "."}
    with Engine(llama) as engine:
        done = engine.submit("Once upon a time", **options).result(PATIENCE)
    expected = llama.generate("Once upon a time", **options)
    for name in ("text", "tokens", "logprobs", "top_logprobs", "prompt_tokens", "generation_tokens", "finish_reason", "seed"):
        assert getattr(done, name) == getattr(expected, name), name
    assert done.prompt_tps > 0 and done.generation_tps > 0 and done.error is None


def test_when_done_is_called_once_at_the_end_or_at_once(controlled: Any) -> None:
    calls: list[str] = []
    controlled.transformer.hold()
    with Engine(controlled) as engine:
        request = engine.submit("The dog", seed=1, max_tokens=2)
        request.when_done(lambda: calls.append("end"))
        assert controlled.transformer.entered.acquire(timeout=PATIENCE)
        assert calls == []
        controlled.transformer.let_go()
        request.wait(PATIENCE)
        assert calls == ["end"]
        request.when_done(lambda: calls.append("later"))
        assert calls == ["end", "later"]
        cancelled = engine.submit("The cat", max_tokens=2)
        cancelled.when_done(lambda: calls.append("cancelled"))
    cancelled.wait(PATIENCE)
    assert calls == ["end", "later", "cancelled"]


def test_pieces(llama: Llama) -> None:
    with Engine(llama) as engine:
        request = engine.submit("The dog", seed=1, max_tokens=20)
        pieces = list(request)
        expected = list(llama.stream("The dog", seed=1, max_tokens=20))
        assert [(piece.text, piece.token, piece.generation_tokens, piece.finish_reason) for piece in pieces] == [
            (piece.text, piece.token, piece.generation_tokens, piece.finish_reason) for piece in expected
        ]
        assert request.result().text == "".join(piece.text for piece in pieces)
        assert list(request) == []  # each piece comes once
        assert request.finish_reason == "length"
        request.cancel()
        assert request.result().finish_reason == "length"


def test_requests_that_end_at_once(llama: Llama) -> None:
    with Engine(llama) as engine:
        request = engine.submit("The dog", max_tokens=0, seed=3)
        done = request.result()
        assert (done.tokens, done.finish_reason, done.seed, list(request)) == ((), "length", 3, [])


def test_several_samples(llama: Llama) -> None:
    prompt = "Once upon a time, there was a little girl called Lily. She liked to play with her red ball."
    with Engine(llama) as engine:
        requests = engine.submit(prompt, n=3, seed=5, max_tokens=12)
        assert [request.seed for request in requests] == [5, seed_of_sample(5, 1), seed_of_sample(5, 2)]
        for request in requests:
            assert request.result().tokens == llama.generate(prompt, seed=request.seed, max_tokens=12).tokens
        n_prompt = requests[0].result().prompt_tokens
        assert engine.stats().prompt_tokens < n_prompt + 3  # it was computed once
        assert len({request.seed for request in engine.submit("Once", n=4, max_tokens=1)}) == 4
        assert all(request.seed < 2**53 for request in engine.submit("Once", n=4, max_tokens=1))


def test_wrong_requests_are_refused_at_once(llama: Llama) -> None:
    size = llama.transformer.cache_bytes(100, 100)
    with Engine(llama, cache_bytes=size) as engine:
        for arguments, options, message in (
            (("",), {"temperature": -1}, "temperature: "),
            (([],), {}, "prompt: expected 1 to 320 tokens"),
            (([1] * 321,), {}, "prompt: expected 1 to 320 tokens"),
            (([5000],), {}, "prompt: expected token ids from 0 to 2047"),
            (([{"role": "robot", "content": "x"}],), {}, r"messages\[0\]: "),
            (("Once",), {"n": 0}, "n: expected an integer of at least 1"),
            (("Once",), {"now": __import__("datetime").date(2026, 1, 1)}, "prompt: expected messages"),
            (([1] * 50,), {"max_tokens": 200}, "request: expected to need at most"),
        ):
            with pytest.raises(RequestError, match=f"^{message}"):
                engine.submit(*arguments, **options)
        with pytest.raises(TypeError, match=r"^tempreature: unknown option"):
            engine.submit("Once", tempreature=1)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match=r"^prompt: expected str"):
            engine.submit(5)  # type: ignore[call-overload]
        assert engine.submit([1] * 50, max_tokens=51).result().finish_reason  # 100 positions fit
        assert engine.stats().running == 0


@pytest.mark.parametrize(
    "wrong", [{"max_sequences": 0}, {"max_sequences": 10**6}, {"cache_bytes": 0}, {"prefix_bytes": -1}, {"max_sequences": "2"}]
)
def test_wrong_arguments(llama: Llama, wrong: dict[str, Any]) -> None:
    n_threads = threading.active_count()
    with pytest.raises((RequestError, TypeError), match=f"^{next(iter(wrong))}: expected an integer"):
        Engine(llama, **wrong)
    assert threading.active_count() == n_threads


def test_an_error_comes_after_the_pieces_before_it(controlled: Any) -> None:
    with Engine(controlled) as engine:
        request = engine.submit([1, POISON], seed=1)
        with pytest.raises(ValueError, match=r"^logits: "):
            next(request)
        with pytest.raises(ValueError, match=r"^logits: "):
            request.result()
        done = request.wait()
        assert (done.finish_reason, done.tokens, type(done.error)) == ("error", (), ValueError)
        bias = {POISON: 1e6}  # the first token is the one after which the logits are broken
        request = engine.submit("The dog", seed=1, logit_bias=bias)
        assert next(request).token == POISON
        with pytest.raises(ValueError, match=r"^logits: "):
            list(request)
        assert engine.submit("The dog", seed=1, max_tokens=3).result().generation_tokens == 3


# ---------------------------------------------------------------------------
# cancelling


def test_cancel_takes_effect_within_a_step(controlled: Any) -> None:
    transformer = controlled.transformer
    transformer.hold()
    with Engine(controlled) as engine:
        request, other = engine.submit("The dog", seed=1), engine.submit("The cat", seed=1, max_tokens=12)
        assert transformer.entered.acquire(timeout=PATIENCE)
        for _ in range(3):
            transformer.step()
        request.cancel()
        transformer.step()  # the one that was being made
        done = request.result(PATIENCE)
        n_made = len(done.tokens)
        assert done.finish_reason == "cancelled" and 3 <= n_made <= 5
        assert done.tokens == controlled.generate("The dog", seed=1, max_tokens=n_made).tokens
        assert list(request)[-1].finish_reason is None
        transformer.let_go()
        assert other.result(PATIENCE).tokens == controlled.generate("The cat", seed=1, max_tokens=12).tokens


def test_a_request_that_nobody_holds_is_cancelled(controlled: Any) -> None:
    transformer = controlled.transformer
    transformer.hold()
    with Engine(controlled) as engine:
        request = engine.submit("The dog", max_tokens=None)
        assert transformer.entered.acquire(timeout=PATIENCE)
        task = request._task
        del request
        gc.collect()
        transformer.let_go()
        assert task.done.wait(PATIENCE)
        assert task.finish_reason == "cancelled"


def test_a_thousand_random_cancels_leave_nothing(llama: Llama) -> None:
    rng = random.Random(1)
    n_threads = threading.active_count()
    with Engine(llama, max_sequences=16) as engine:

        def use(seed: int) -> bool:
            own = random.Random(seed)
            request = engine.submit(
                [1, *own.choices(range(300, 2000), k=own.randrange(1, 60))], max_tokens=own.randrange(1, 40)
            )
            for _, _ in zip(range(own.randrange(4)), request, strict=False):
                pass
            request.cancel()
            return request.result(PATIENCE).finish_reason in ("cancelled", "length", "stop")

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(use, (rng.randrange(2**32) for _ in range(1000)), timeout=8 * PATIENCE))
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.cache_bytes) == (0, 0, 0)
    assert threading.active_count() == n_threads


# ---------------------------------------------------------------------------
# asyncio


def test_asyncio(llama: Llama) -> None:
    async def use() -> tuple[str, str, str]:
        texts = ["", ""]

        async def read(number: int, prompt: Any) -> None:
            async for piece in engine.stream(prompt, seed=number, max_tokens=15):
                texts[number] += piece.text

        await asyncio.gather(read(0, "The dog"), read(1, MESSAGES))
        done = await engine.submit("The cat", seed=2, max_tokens=15)
        return texts[0], texts[1], done.text

    with Engine(llama) as engine:
        found = asyncio.run(use())
    assert found == (
        llama.generate("The dog", seed=0, max_tokens=15).text,
        llama.chat(MESSAGES, seed=1, max_tokens=15).text,
        llama.generate("The cat", seed=2, max_tokens=15).text,
    )


def test_asyncio_cancels_what_is_left(controlled: Any) -> None:
    """A loop that is left, and a task that is cancelled while it waits."""

    async def leave() -> None:
        pieces = engine.stream("The dog", max_tokens=None)
        async for _ in pieces:
            break
        await pieces.aclose()
        transformer.hold()
        stuck = asyncio.create_task(anext(engine.stream("The cat", max_tokens=None)))
        await asyncio.to_thread(transformer.entered.acquire, timeout=PATIENCE)
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stuck

    transformer = controlled.transformer
    with Engine(controlled) as engine:
        asyncio.run(leave())
        transformer.let_go()
        request = engine.submit("The end", seed=1, max_tokens=2)
        request.result(PATIENCE)
        assert (engine.stats().running, engine.stats().waiting) == (0, 0)


def test_asyncio_errors(controlled: Any) -> None:
    async def use() -> None:
        with pytest.raises(ValueError, match=r"^logits: "):
            await engine.submit([1, POISON])
        with pytest.raises(ValueError, match=r"^logits: "):
            async for _ in engine.submit([1, POISON]):
                pass
        with pytest.raises(RequestError, match=r"^temperature: "):
            await anext(engine.stream("Once", temperature=-1))

    with Engine(controlled) as engine:
        asyncio.run(use())


def test_a_loop_that_ends_before_its_request(controlled: Any) -> None:
    transformer = controlled.transformer
    transformer.hold()

    async def leave() -> None:
        task = asyncio.create_task(request.__anext__())  # type: ignore[arg-type]
        await asyncio.to_thread(transformer.entered.acquire, timeout=PATIENCE)
        task.cancel()

    with Engine(controlled) as engine:
        request = engine.submit("The dog", seed=1, max_tokens=5)
        asyncio.run(leave())
        transformer.let_go()
        assert request.result(PATIENCE).tokens == controlled.generate("The dog", seed=1, max_tokens=5).tokens


# ---------------------------------------------------------------------------
# the end


def test_close(controlled: Any) -> None:
    transformer = controlled.transformer
    transformer.hold()
    engine = Engine(controlled)
    request = engine.submit("The dog", max_tokens=None)
    assert transformer.entered.acquire(timeout=PATIENCE)
    waiter = threading.Thread(target=lambda: found.append(request.result(PATIENCE).finish_reason))
    found: list[str] = []
    waiter.start()
    closer = threading.Thread(target=engine.close)
    closer.start()
    transformer.let_go()
    wait_for(closer)
    wait_for(waiter)
    assert found == ["cancelled"]
    assert not engine._thread.is_alive()
    with pytest.raises(RuntimeError, match=r"^engine: it is closed$"):
        engine.submit("The dog")
    engine.close()


def test_submit_while_it_closes(llama: Llama) -> None:
    """Each request ends or is refused; none is forgotten in the queue."""
    for _ in range(20):
        engine, go = Engine(llama), threading.Barrier(3)

        def use(engine: Engine = engine, go: threading.Barrier = go) -> str:
            go.wait(PATIENCE)
            try:
                return engine.submit("The dog", max_tokens=2).result(PATIENCE).finish_reason
            except RuntimeError as error:
                return str(error)

        with ThreadPoolExecutor(2) as pool:
            found = [pool.submit(use) for _ in range(2)]
            go.wait(PATIENCE)
            engine.close()
            assert all(one.result(PATIENCE) in ("length", "stop", "cancelled", "engine: it is closed") for one in found)


def test_an_engine_that_is_garbage_ends(llama: Llama) -> None:
    engine = Engine(llama)
    thread, request = engine._thread, engine.submit("The dog", seed=1, max_tokens=30)
    gone = weakref.ref(engine)
    del engine
    assert request.result(PATIENCE).generation_tokens == 30  # a request keeps its engine
    assert gone() is not None
    del request
    gc.collect()
    assert gone() is None
    wait_for(thread)


def test_threads_that_share_an_engine(llama: Llama) -> None:
    prompts = [f"The {word}" for word in ("dog", "cat", "bird", "fox", "bear", "mouse", "cow", "duck")] * 3
    expected = [llama.generate(prompt, seed=i, max_tokens=25).tokens for i, prompt in enumerate(prompts)]
    with Engine(llama, max_sequences=5) as engine, ThreadPoolExecutor(len(prompts)) as pool:
        found = pool.map(
            lambda i: engine.submit(prompts[i], seed=i, max_tokens=25).result(PATIENCE).tokens, range(len(prompts))
        )
        assert list(found) == expected


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    place = str(Path(llama2c.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": place, "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=2 * PATIENCE, cwd="/"
    )


BEGIN = """
import gc, os, signal, sys, threading, llama2c
llama = llama2c.load()
"""
ENDS = {
    "in the middle of a request": "engine = llama2c.Engine(llama); r = engine.submit('Once', max_tokens=None); next(r)",
    "never used": "engine = llama2c.Engine(llama)",
    "closed twice": "engine = llama2c.Engine(llama); engine.close(); engine.close()",
    "in the middle of many": "many = llama.generate_many(['Once'] * 9, max_tokens=50); next(many)",
    "a cycle": "engine = llama2c.Engine(llama); engine.me = engine; engine.r = engine.submit('Once', max_tokens=None)",
    "an error": "engine = llama2c.Engine(llama); r = engine.submit('Once', max_tokens=None); sys.excepthook = print; 1 / 0",
    "a thread that waits": """
engine = llama2c.Engine(llama)
thread = threading.Thread(target=lambda: engine.submit('Once', max_tokens=50, seed=1).result())
thread.start()""",
}


@pytest.mark.parametrize("end", ENDS)
def test_the_interpreter_ends(end: str) -> None:
    done = run(BEGIN + ENDS[end])
    assert (done.returncode, done.stderr) == (1 if end == "an error" else 0, "")


CTRL_C = """
engine = llama2c.Engine(llama)
request = engine.submit("Once", max_tokens=None)
signal.setitimer(signal.ITIMER_REAL, 0.01)
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
try:
    while True:
        engine.submit("Once", max_tokens=None).result()
except KeyboardInterrupt:
    print("interrupted")
print(engine.submit("Once", max_tokens=3, seed=1).result().tokens == llama.generate("Once", max_tokens=3, seed=1).tokens)
engine.close()
print(threading.active_count())
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a signal")
def test_an_interrupt_of_who_waits_leaves_the_engine_usable() -> None:
    done = run(BEGIN + CTRL_C)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["interrupted", "True", "1"], "")


FORK = """
engine = llama2c.Engine(llama)
running = engine.submit("Once", max_tokens=None)
old = engine.submit("Once", max_tokens=5, seed=1)
old.result()
pid = os.fork()
if pid == 0:
    for use in (lambda: engine.submit("Once"), running.result, lambda: next(running), old.result):
        try:
            use()
            os._exit(9)
        except RuntimeError as error:
            assert "fork" in str(error)
    running.cancel()
    engine.close()
    with llama2c.Engine(llama) as own:
        assert own.submit("Once", max_tokens=5, seed=1).result().tokens == llama.generate("Once", max_tokens=5, seed=1).tokens
    del running, engine
    gc.collect()
    print("child", flush=True)
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
running.cancel()  # it may have come to its end in the meantime
running.result()
print(engine.submit("Once", max_tokens=5, seed=1).result().tokens == old.result().tokens)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork() -> None:
    done = run(BEGIN + FORK)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["child", "True"], "")


def test_no_thread_is_listed_any_more(llama: Llama) -> None:
    before = len(module._workers)
    with Engine(llama) as engine:
        engine.submit("Once", max_tokens=2).result(PATIENCE)
        assert len(module._workers) == before + 1
    assert len(module._workers) == before


def test_stats(llama: Llama) -> None:
    with Engine(llama, drafts=False) as engine:
        engine.submit("The dog", seed=1, max_tokens=8).result()
        engine.submit("The dog", seed=1, max_tokens=8).result()
        stats = engine.stats()
        assert (stats.tokens, stats.steps, stats.rows, stats.prefix_hits) == (16, 16, 17 + 1, 1) and stats.rows_per_step > 1
        assert "running=0" in repr(engine)
