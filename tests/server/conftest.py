"""A real server on a port of its own for each module, and requests to it with the standard library alone."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from controlled import PATIENCE, Controlled

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
uvicorn = pytest.importorskip("uvicorn")

import llama2c  # noqa: E402
from llama2c.engine.engine import Engine  # noqa: E402
from llama2c.llama import Llama  # noqa: E402
from llama2c.server.app import Service, Settings  # noqa: E402
from llama2c.server.connection import make_config  # noqa: E402


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> Any:
        assert set(self.json) == {"error"}
        assert set(self.json["error"]) == {"message", "type", "param", "code"}
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The data of a stream of events, without [DONE], which must be its end."""
        assert self.headers["content-type"].startswith("text/event-stream")
        parts = self.data.decode().split("\n\n")
        assert parts.pop() == ""
        assert parts.pop() == "data: [DONE]"
        return [json.loads(part.removeprefix("data: ")) for part in parts if not part.startswith(":")]


@dataclass
class Running:
    """A server in a thread."""

    service: Service
    port: int
    lines: list[str]
    state: Any  # of uvicorn: its connections

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if data is not None else {}
        connection = self.connect()
        try:
            connection.request(method, path, data, {**sent, **(headers or {})})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def complete(self, **body: Any) -> Reply:
        return self.ask("POST", "/v1/completions", body)

    def chat(self, text: str = "Hi", **body: Any) -> Reply:
        return self.ask("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **body})


@dataclass
class Starter:
    """Starts servers, and stops them all at the end."""

    ends: list[Callable[[], None]] = field(default_factory=list)

    def __call__(self, llama: Llama, **options: Any) -> Running:
        """options: those of Engine and Settings; send_buffer: bytes that the system keeps for a client that does not read."""
        engine = Engine(llama, options.pop("max_sequences", 8), options.pop("cache_bytes", None))
        send_buffer = options.pop("send_buffer", 0)
        lines: list[str] = []
        service = Service(llama, engine, Settings(log=lines.append, **options))
        listener = socket.create_server(("127.0.0.1", 0))
        if send_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = uvicorn.Server(make_config(service))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()

        def end() -> None:
            server.should_exit = True
            engine.close()
            thread.join(PATIENCE)
            service._threads.shutdown()  # later tests count threads
            listener.close()

        self.ends.append(end)
        return Running(service, listener.getsockname()[1], lines, server.server_state)


@pytest.fixture(scope="session")
def llama() -> Llama:
    return llama2c.load(n_threads=1)


@pytest.fixture(scope="module")
def start() -> Iterator[Starter]:
    starter = Starter()
    yield starter
    for end in starter.ends:
        end()


@pytest.fixture(scope="module")
def server(start: Starter, llama: Llama) -> Running:
    return start(llama)


@pytest.fixture
def controlled(llama: Llama) -> Iterator[Llama]:
    """A Llama whose steps a test controls. No step is held when the test ends."""
    transformer = Controlled(llama.transformer.checkpoint, n_threads=1)
    yield Llama(transformer, llama.tokenizer)
    transformer.let_go()
