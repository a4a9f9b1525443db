"""The server among many clients, good ones and bad ones, over real sockets. benchmarks/soak_server.py does more of the same."""

from __future__ import annotations

import gc
import http.client
import json
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import server_clients as clients
from server_clients import CHAT, COMPLETIONS, CUTS, ENDLESS, GET, HOSTILE, Hostile, answer_on, ask, asked, connect, post

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from controlled import PATIENCE

from llama2c.llama import Llama
from llama2c.server.app import Settings
from llama2c.server.connection import Connection
from llama2c.transformer import KVCache, Transformer

from .conftest import Running

SOON = 0.1  # seconds after which a server gives up a client, where a test waits for that
STALLED = 600.0  # where it must not happen


def until(holds: Callable[[], bool]) -> None:
    """Wait for what takes milliseconds."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        threading.Event().wait(0.001)


def is_idle(server: Running) -> bool:
    stats = server.service.engine.stats()
    return (server.service.active, server.service.reading, stats.running, stats.waiting, stats.cache_bytes) == (0,) * 5


def ends(client: Any) -> bytes:
    """What a client can still read until its connection ends, in whatever way."""
    data = b""
    try:
        while part := client.recv(1 << 16):
            data += part
    except ConnectionResetError:
        pass
    return data


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> Iterator[weakref.WeakSet[Any]]:
    """The caches that are alive of those made from now on."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Tracked(KVCache):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            alive.add(self)

    monkeypatch.setattr("llama2c.transformer.KVCache", Tracked)
    yield alive


# ---------------------------------------------------------------------------
# the same bytes in every company


def contents(server: Running, numbers: list[int], n_clients: int) -> dict[int, Any]:
    """What the answer to each request says, so many at once."""
    with ThreadPoolExecutor(n_clients) as threads:
        found = threads.map(lambda i: clients.fetch(server.port, i), numbers)
        return dict(zip(numbers, found, strict=True))


def test_requests_under_load_have_the_bytes_of_each_alone(start, llama: Llama) -> None:
    server = start(llama)
    numbers = list(range(64))
    alone = contents(server, numbers, 1)
    random.Random(1).shuffle(numbers)
    assert contents(server, numbers, 64) == alone
    for i in (0, 8):  # one is a stream, the other is not
        _, body = clients.mixed(i)
        [[text, _, reason]], seed, found = alone[i]
        expected = llama.generate(body["prompt"], max_tokens=body["max_tokens"], seed=body["seed"])
        assert (text, reason, seed, found) == (expected.text, expected.finish_reason, 7 * i, llama.fingerprint)
    assert is_idle(server)


class Company(Transformer):
    """Its logits depend on the other sequences of a step."""

    def forward_batch(self, sequences: Any, *, logits: Any = 1, out: Any = None) -> Any:
        rows = super().forward_batch(sequences, logits=logits, out=out)
        rows[:, ::2] += 0.5 * (len(sequences) - 1)
        return rows


def test_that_comparison_finds_answers_that_depend_on_others(start, llama: Llama) -> None:
    server = start(Llama(Company(llama.transformer.checkpoint, n_threads=1), llama.tokenizer))
    numbers = list(range(16))
    assert contents(server, numbers, 16) != contents(server, numbers, 1)


def test_100_clients_at_once(start, llama: Llama) -> None:
    """All are answered, whoever waits."""
    server = start(llama, max_sequences=4)
    ready = threading.Barrier(100)

    def one(i: int) -> str:
        with connect(server.port) as client:
            ready.wait(PATIENCE)
            client.sendall(asked(COMPLETIONS, prompt=f"The {i} dogs", max_tokens=3, seed=i))
            status, data = answer_on(client)
        assert status == 200
        return json.loads(data)["choices"][0]["text"]

    with ThreadPoolExecutor(100) as threads:
        found = list(threads.map(one, range(100)))
    assert found == [llama.generate(f"The {i} dogs", max_tokens=3, seed=i).text for i in range(100)]
    assert is_idle(server)


# ---------------------------------------------------------------------------
# clients that go away


def test_cut_connections_leave_nothing_and_disturb_nobody(start, llama: Llama, caches) -> None:
    """No cache, no thread, no open file; the answers of others are what they are without."""
    server = start(llama, max_sequences=4)
    numbers = list(range(16))
    alone = contents(server, numbers, 4)  # and all threads are there
    until(lambda: is_idle(server) and not server.state.connections)
    n_threads, n_files = count_threads(), count_files()
    rng = random.Random(2)
    with ThreadPoolExecutor(5) as threads:
        cuts = [threads.submit(cut, server.port, random.Random(rng.random())) for cut in CUTS * 12]
        assert contents(server, numbers, 8) == alone
        for cut in cuts:
            cut.result(PATIENCE)
    until(lambda: is_idle(server) and not server.state.connections)
    gc.collect()
    assert len(caches) == 0
    assert count_threads() == n_threads
    until(lambda: count_files() <= n_files)
    assert sum(line.startswith(("completions disconnect", "chat disconnect")) for line in server.lines) > 0
    assert {line.split()[1].rstrip(",") for line in server.lines} <= {"200", "400", "disconnect"}


def count_threads() -> int:
    """Those that the server has for templates and the like are made when they are needed; there is a limit."""
    return sum(not thread.name.startswith("llama2c server") for thread in threading.enumerate())


def count_files() -> int:
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder)) if folder.exists() else 0


def test_a_body_that_is_cut_is_no_failure_of_the_server(start, llama: Llama, capfd) -> None:
    server = start(llama)
    clients.in_the_body(server.port, random.Random(1))
    until(lambda: bool(server.lines))
    assert server.lines[0].split(",")[0].endswith(" 400")
    assert capfd.readouterr().err == ""


def test_of_prompts_of_which_one_is_refused_none_goes_on(start, controlled) -> None:
    server = start(controlled)
    controlled.transformer.hold()
    gc.disable()
    try:
        assert server.complete(prompt=["The dog", "The cat", "dog " * 2000], max_tokens=200, **ENDLESS).status == 400
        controlled.transformer.let_go()
        until(lambda: is_idle(server))
        assert server.service.engine.stats().tokens <= 2  # of the step that was being made
    finally:
        gc.enable()


def test_prompts_that_are_scored_have_one_cache_at_a_time(start, llama: Llama, caches, monkeypatch) -> None:
    server, most = start(llama), 0
    forward = Transformer.forward

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal most
        most = max(most, len(caches))
        return forward(*arguments, **options)

    monkeypatch.setattr(Transformer, "forward", counted)
    body = {"prompt": [[1, 300 + i, 301] for i in range(20)], "echo": True, "logprobs": 1, "max_tokens": 2, "temperature": 0}
    assert len(server.complete(**body).json["choices"]) == 20
    assert most <= 2  # the one before is given back while the next begins
    assert len(caches) == 0


# ---------------------------------------------------------------------------
# clients that are slow


def test_a_slow_reader_holds_up_nobody_and_its_text_is_made(start, llama: Llama, caches) -> None:
    server = start(llama, send_buffer=2048, stalled=STALLED)
    alone = contents(server, list(range(8)), 1)
    until(lambda: not server.state.connections)
    slow = [clients.slow_reader(server.port) for _ in range(3)]
    assert contents(server, list(range(8)), 8) == alone
    until(lambda: server.service.engine.stats().running == 0)
    gc.collect()
    assert len(caches) == 0
    assert contents(server, list(range(8)), 8) == alone
    until(lambda: len(server.state.connections) == 3)
    waiting = [connection.transport.get_write_buffer_size() for connection in server.state.connections]
    assert all(0 < size < 1 << 16 for size in waiting), waiting  # of 200 KB
    assert server.service.active == 3
    expected = llama.generate("The dog", max_tokens=300, seed=1, logprobs=20, logit_bias={1: -100, 2: -100})
    for client in slow:  # now they read on, and nothing was lost
        answer = b"H"
        while not answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") and (part := client.recv(1 << 16)):
            answer += part
        client.close()
        _, data = clients.parse(answer)
        parts = [choice for event in clients.events(data) for choice in event["choices"]]
        assert "".join(part["text"] for part in parts) == expected.text
        found = [one for part in parts if part["logprobs"] for one in part["logprobs"]["token_logprobs"]]
        assert found == list(expected.logprobs)
    until(lambda: is_idle(server))


def test_a_reader_that_stalls_is_given_up(start, llama: Llama, caches) -> None:
    server = start(llama, send_buffer=2048, stalled=SOON)
    with clients.slow_reader(server.port) as slow:
        until(lambda: is_idle(server) and not server.state.connections)
        assert b"[DONE]" not in ends(slow)
    assert [line.split()[1] for line in server.lines] == ["disconnect"]
    gc.collect()
    assert len(caches) == 0


def test_an_answer_without_a_stream_that_nobody_reads(start, llama: Llama) -> None:
    server = start(llama, send_buffer=2048, stalled=SOON)
    with connect(server.port, receive_buffer=2048) as slow:
        slow.sendall(asked(COMPLETIONS, prompt="The dog", max_tokens=300, logprobs=20, **ENDLESS))
        until(lambda: len(server.lines) == 1)
        until(lambda: not server.state.connections)
        assert not ends(slow).endswith(b"}")


def test_a_reader_that_goes_on_is_not_given_up() -> None:
    """However long it takes in all. The server looks from time to time at how much is still unread."""
    sizes, looks, aborted = iter([500, 300, 100, 100]), [], []
    connection = Connection.__new__(Connection)
    connection._settings = Settings(stalled=7)
    connection.loop = SimpleNamespace(call_later=lambda seconds, call, before: looks.append((seconds, call, before)))
    connection.transport = SimpleNamespace(get_write_buffer_size=lambda: next(sizes), abort=lambda: aborted.append(True))
    connection._end_if_unread(None)
    for left in (500, 300, 100):
        seconds, look, before = looks.pop()
        assert (seconds, before, aborted) == (7, left, [])
        look(before)
    assert aborted == [True]
    assert looks == []


def test_a_body_that_does_not_arrive(start, llama: Llama) -> None:
    server = start(llama, body_seconds=SOON, idle=SOON)
    with clients.slow_writer(server.port) as slow:
        assert server.complete(prompt="The dog", max_tokens=1).status == 200
        status, data = answer_on(slow)
        assert (status, json.loads(data)["error"]["type"]) == (408, "invalid_request_error")
        assert ends(slow) == b""  # and if the rest does not come, the connection ends
    assert is_idle(server)


SENT = (b"", b"POST /v1/chat", GET + b"X: y\r\n", GET + b"\r\n")


@pytest.mark.parametrize("sent", SENT, ids=["none", "line", "headers", "all"])
def test_a_connection_without_a_request_ends(start, llama: Llama, sent: bytes) -> None:
    server = start(llama, idle=SOON)
    with connect(server.port) as client:
        client.sendall(sent)
        assert ends(client).startswith(b"HTTP/1.1 200 OK" if sent.endswith(b"\r\n\r\n") else b"")
    until(lambda: not server.state.connections)


def test_more_connections_than_there_may_be(start, llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama2c.server.connection.MOST", 2)
    server = start(llama)
    with connect(server.port) as first, connect(server.port):
        until(lambda: len(server.state.connections) == 2)
        with connect(server.port) as third:
            assert ends(third) == b""
        first.sendall(GET + b"\r\n")
        assert answer_on(first)[0] == 200
    until(lambda: not server.state.connections)
    assert server.ask("GET", "/health").status == 200


def test_chunks_without_an_end(start, llama: Llama) -> None:
    server = start(llama, idle=SOON)
    head = post(COMPLETIONS, b"", "Transfer-Encoding: chunked")
    with connect(server.port) as client:
        client.sendall(head)
        assert clients.send_for_ever(client, b"10000\r\n" + b" " * 65536 + b"\r\n") > 8 << 20
    until(lambda: is_idle(server) and not server.state.connections)
    assert [line[:15] for line in server.lines] == ["completions 413"]


def test_the_bodies_of_all_together_are_limited(start, llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama2c.server.app.MOST_IN_ALL", 1 << 20)
    server = start(llama)
    data = asked(COMPLETIONS, prompt="x", max_tokens=1, user="y" * (600 << 10))
    with connect(server.port) as slow:
        slow.sendall(data[:-5])
        until(lambda: server.service.reading > 600 << 10)
        status, refused = ask(server.port, data)
        assert (status, json.loads(refused)["error"]["code"]) == (429, "queue_full")
        slow.sendall(data[-5:])
        assert answer_on(slow)[0] == 200
    assert ask(server.port, data)[0] == 200


# ---------------------------------------------------------------------------
# a stream that has nothing to say, a queue that is full, a server that stops


def test_a_long_prompt_is_not_silent(start, controlled) -> None:
    server = start(controlled, silence=0.01)
    controlled.transformer.hold()
    body = {"prompt": "The dog " * 60, "max_tokens": 3, "seed": 1, "stream": True}
    with connect(server.port) as client:
        client.sendall(asked(COMPLETIONS, **body))
        answer = http.client.HTTPResponse(client)
        answer.begin()
        before = [answer.readline() for _ in range(6)]
        assert before == [b": still here\n", b"\n"] * 3
        controlled.transformer.let_go()
        lines = [line for line in answer.read().split(b"\n\n") if line and not line.startswith(b":")]
    assert lines.pop() == b"data: [DONE]"
    texts = [json.loads(line.removeprefix(b"data: "))["choices"][0]["text"] for line in lines]
    assert "".join(texts) == controlled.generate(body["prompt"], max_tokens=3, seed=1).text


def test_a_prompt_that_waits_to_be_scored_is_not_silent(start, controlled) -> None:
    server = start(controlled, silence=0.01)
    body = {"prompt": [[1, 300], [1, 301]], "echo": True, "logprobs": 1, "max_tokens": 1, "stream": True}
    controlled.transformer.hold()
    running = threading.Thread(target=server.complete, kwargs={"prompt": "The dog", "max_tokens": 1})
    running.start()
    assert controlled.transformer.entered.acquire(timeout=PATIENCE)  # what is scored waits for this step
    with connect(server.port) as client:
        client.sendall(asked(COMPLETIONS, **body))
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert answer.readline() == b": still here\n"
        controlled.transformer.let_go()
        assert answer.read().endswith(b"data: [DONE]\n\n")
    running.join(PATIENCE)


def test_a_full_queue_and_a_server_that_stops(start, controlled) -> None:
    """What runs comes to its end all the same. Refused clients may use their connection again."""
    server = start(controlled, max_waiting=1)
    controlled.transformer.hold()
    with connect(server.port) as running, connect(server.port) as other:
        running.sendall(asked(COMPLETIONS, prompt="The dog", max_tokens=5, seed=1, stream=True))
        until(lambda: server.service.active == 1)
        for _ in range(2):
            other.sendall(asked(CHAT, messages=[{"role": "user", "content": "Hi"}]))
            answer = http.client.HTTPResponse(other)
            answer.begin()
            assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
            answer.read()
        server.service.stop()
        other.sendall(asked(COMPLETIONS, prompt="x"))
        answer = http.client.HTTPResponse(other)
        answer.begin()
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        answer.read()
        controlled.transformer.let_go()
        status, data = answer_on(running)
    assert (status, data.endswith(b"data: [DONE]\n\n")) == (200, True)


# ---------------------------------------------------------------------------
# what no client should send


@pytest.mark.parametrize("sent", HOSTILE, ids=[hostile.name for hostile in HOSTILE])
def test_hostile_requests(server: Running, sent: Hostile) -> None:
    data = clients.send_hostile(server.port, sent)
    if data and sent.status != 200:
        assert set(json.loads(data)["error"]) == {"message", "type", "param", "code"}
    assert server.complete(prompt="The dog", max_tokens=1).status == 200
    assert server.service.reading == 0


def test_two_requests_in_one_packet_are_answered_in_their_order(server: Running) -> None:
    with connect(server.port) as client:
        last = GET + b"Connection: close\r\n\r\n"
        client.sendall(asked("/tokenize", prompt="The dog") + asked(COMPLETIONS, prompt="x", max_tokens=0) + last)
        answers = ends(client).split(b"HTTP/1.1 200 OK\r\n")[1:]
    kinds = [set(json.loads(answer.partition(b"\r\n\r\n")[2])) for answer in answers]
    assert ["tokens" in kinds[0], "choices" in kinds[1], kinds[2]] == [True, True, {"data", "object"}]


def test_a_wrong_chunk_after_the_answer_ends_the_connection(server: Running, capfd) -> None:
    with connect(server.port) as client:
        client.sendall(GET + b"Transfer-Encoding: chunked\r\n\r\n")
        assert answer_on(client)[0] == 200
        client.sendall(b"zz\r\n")
        assert ends(client) == b""
    assert capfd.readouterr().err == ""


def test_mutated_requests_never_fail_in_the_server(server: Running) -> None:
    seen = clients.send_mutated(server.port, random.Random(1), 300)
    assert set(seen) == set(clients.ALLOWED)
    until(lambda: is_idle(server))


def test_a_handler_that_is_broken_is_found_by_mutated_requests(start, llama: Llama, monkeypatch, capfd) -> None:
    from llama2c.server import app

    def broken(body: Any) -> Any:
        if body.get("echo") is None:
            raise KeyError("echo")
        return read(body)

    read = app.read_completion
    monkeypatch.setattr(app, "read_completion", broken)
    server = start(llama)
    with pytest.raises(AssertionError, match="500"):
        clients.send_mutated(server.port, random.Random(1), 300)
    assert "KeyError: 'echo'" in capfd.readouterr().err
