"""Clients of a server on this machine that has the bundled model, for tests of it and for benchmarks/soak_server.py.

Good ones, whose answers are compared, and others that it must survive: they cut connections, read slowly, and send what no
client should. Everything goes over real sockets. Whatever is random depends on the random.Random that is given.
"""

from __future__ import annotations

import http.client
import io
import json
import random
import socket
import struct
from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any, NamedTuple

PATIENCE = 60  # seconds for what takes milliseconds
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ENDLESS = {"logit_bias": {"1": -100, "2": -100}}  # no token ends the text


# ---------------------------------------------------------------------------
# requests as bytes


def connect(port: int, receive_buffer: int = 0) -> socket.socket:
    client = socket.socket()
    client.settimeout(PATIENCE)
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.connect(("127.0.0.1", port))
    return client


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A request with these headers, beside those that every one needs."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", *headers]
    if not any(line.lower().startswith("content-type:") for line in headers):
        lines.append("Content-Type: application/json")
    if not any(line.lower().startswith(("transfer-encoding:", "content-length:")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def asked(path: str, **body: Any) -> bytes:
    return post(path, json.dumps(body).encode())


def answer_on(client: socket.socket) -> tuple[int, bytes]:
    """The status and the body of the next answer. OSError or HTTPException: there is none."""
    answer = http.client.HTTPResponse(client)
    answer.begin()
    return answer.status, answer.read()


def parse(data: bytes) -> tuple[int, bytes]:
    """The same, of an answer that was read."""
    return answer_on(SimpleNamespace(makefile=lambda mode: io.BytesIO(data)))  # type: ignore[arg-type]


def ask(port: int, data: bytes) -> tuple[int, bytes]:
    with connect(port) as client:
        client.sendall(data)
        return answer_on(client)


# ---------------------------------------------------------------------------
# good requests of all kinds, whose answers are compared

SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 22, 333]}, "b": {"type": "boolean"}}, "required": ["n", "b"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
COMMON = "Once upon a time there was a little dog. "  # a beginning that some of them share


def mixed(i: int) -> tuple[str, dict[str, Any]]:
    """The path and the body of request i: all kinds in turn, half of each as a stream."""
    prompt, messages = f"The {i} dogs", [{"role": "user", "content": f"Tell me of {i} cats."}]
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        (COMPLETIONS, {"prompt": prompt}),
        (COMPLETIONS, {"prompt": [prompt, COMMON + prompt], "n": 2, "logprobs": 3, "temperature": 1.5, "top_p": 1}),
        (COMPLETIONS, {"prompt": [[1, 300 + i, 400], [1, 500 + i]], "echo": True, "logprobs": 2}),
        (COMPLETIONS, {"prompt": COMMON + prompt, "echo": True, "frequency_penalty": 0.5, "presence_penalty": -0.5}),
        (COMPLETIONS, {"prompt": prompt, "stop": [".", "a"], "repetition_penalty": 1.2, "min_p": 0.02, "top_k": 50}),
        (CHAT, {"messages": messages, "n": 3}),
        (CHAT, {"messages": messages, "logprobs": True, "top_logprobs": 4, "logit_bias": {"300": 2}}),
        (CHAT, {"messages": messages, "response_format": FORMAT, "max_tokens": 40}),
    )
    path, content = kinds[i % len(kinds)]
    return path, {"max_tokens": 5 + i % 13, "seed": 7 * i, "stream": i // len(kinds) % 2 == 0, **content}


def fetch(port: int, i: int) -> Any:
    """What the answer to request i says: of each choice its text, its log-probabilities and why it ended; the seed, the
    fingerprint. Those of a stream are joined."""
    path, sent = mixed(i)
    status, data = ask(port, asked(path, **sent))
    assert status == 200, data
    parts = [json.loads(data)] if not sent["stream"] else events(data)
    found: dict[int, list[Any]] = {}
    for part in parts:
        for choice in part["choices"]:
            own = found.setdefault(choice["index"], ["", [], None])
            own[0] += choice["text"] if "text" in choice else choice.get("message", choice.get("delta")).get("content", "")
            logprobs = choice["logprobs"] or {"content": []}
            own[1] += logprobs["content"] if "content" in logprobs else zip(*logprobs.values(), strict=True)
            own[2] = choice["finish_reason"]
    return [found[k] for k in sorted(found)], parts[0]["seed"], parts[0]["system_fingerprint"]


def events(data: bytes) -> list[Any]:
    """The events of a stream, without its end and without comments."""
    *parts, done, rest = data.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b""), data[-300:]
    return [json.loads(part.removeprefix(b"data: ")) for part in parts if not part.startswith(b":")]


# ---------------------------------------------------------------------------
# cut connections


def go(client: socket.socket, rng: random.Random) -> None:
    """Close a connection, in order or as a process that is killed."""
    if rng.random() < 0.5:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def some_request(rng: random.Random, stream: bool) -> bytes:
    """A request that would take long."""
    options = {"max_tokens": 300, "stream": stream, "seed": rng.randrange(2**32), **ENDLESS}
    prompt = " ".join(rng.choices(["the", "little", "dog", "cat", "ball"], k=rng.randrange(1, 9)))
    if rng.random() < 0.5:
        return asked(COMPLETIONS, prompt=prompt, **options)
    return asked(CHAT, messages=[{"role": "user", "content": prompt}], n=rng.choice([1, 1, 3]), **options)


def in_the_headers(port: int, rng: random.Random) -> None:
    data = some_request(rng, False)
    client = connect(port)
    client.sendall(data[: rng.randrange(data.index(b"\r\n\r\n"))])
    go(client, rng)


def in_the_body(port: int, rng: random.Random) -> None:
    data = some_request(rng, False)
    client = connect(port)
    client.sendall(data[: rng.randrange(data.index(b"\r\n\r\n") + 4, len(data))])
    go(client, rng)


def while_waiting(port: int, rng: random.Random) -> None:
    client = connect(port)
    client.sendall(some_request(rng, False))
    go(client, rng)


def in_the_prompt(port: int, rng: random.Random) -> None:
    """The head of a stream comes when the request has begun."""
    words = rng.choices(["the", "little", "dog", "cat", "ball"], k=200)
    client = connect(port)
    client.sendall(asked(COMPLETIONS, prompt=" ".join(words), stream=True, max_tokens=50, **ENDLESS))
    client.recv(1)
    go(client, rng)


def in_the_stream(port: int, rng: random.Random) -> None:
    client = connect(port)
    client.sendall(some_request(rng, True))
    read, n_events = b"", rng.randrange(1, 9)
    while read.count(b"data: ") < n_events and b"[DONE]" not in read and (part := client.recv(1 << 16)):
        read += part
    go(client, rng)


Cut = Callable[[int, random.Random], None]
CUTS: tuple[Cut, ...] = (in_the_headers, in_the_body, while_waiting, in_the_prompt, in_the_stream)


# ---------------------------------------------------------------------------
# slow clients


def slow_reader(port: int, **options: Any) -> socket.socket:
    """A client of a long stream that has read its first byte, and then reads nothing."""
    body: dict[str, Any] = {"prompt": "The dog", "max_tokens": 300, "logprobs": 20, "seed": 1, "stream": True, **ENDLESS}
    client = connect(port, receive_buffer=2048)
    client.sendall(asked(COMPLETIONS, **{**body, **options}))
    assert client.recv(1)
    return client


def slow_writer(port: int) -> socket.socket:
    """A client that has sent half of its body, and then sends nothing."""
    data = asked(COMPLETIONS, prompt="The dog")
    client = connect(port)
    client.sendall(data[:-5])
    return client


def send_for_ever(client: socket.socket, part: bytes) -> int:
    """Send the same again and again, until the server ends the connection. The bytes that were sent."""
    n_bytes = 0
    try:
        while True:
            client.sendall(part)
            n_bytes += len(part)
    except OSError:
        return n_bytes


# ---------------------------------------------------------------------------
# what no client should send


class Hostile(NamedTuple):
    name: str
    data: bytes  # of a whole request
    status: int  # of its answer
    may_end: bool = False  # the connection may end instead, before all is sent


def body(name: str, data: bytes, status: int = 400, path: str = COMPLETIONS) -> Hostile:
    return Hostile(name, post(path, data), status)


def with_schema(schema: bytes) -> bytes:
    head = b'{"messages": [{"role": "user", "content": "x"}], "response_format": '
    head += b'{"type": "json_schema", "json_schema": {"schema": '
    return head + schema + b"}}}"


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


GET = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n"
HOSTILE: tuple[Hostile, ...] = (
    # bodies
    body("too long", b'{"prompt": "' + b"x" * (9 << 20) + b'"}', 413),
    body("as long as may be", b'{"prompt": "x", "max_tokens": 1, "user": "' + b"x" * (4 << 20) + b'"}', 200),
    body("many lists", b'{"prompt": [' + b"[]," * (1 << 17) + b"[]]}"),
    body("many objects", b'{"messages": [' + b"{}," * (1 << 17) + b"{}]}", path=CHAT),
    body("many ids", b'{"prompt": [' + b"1," * (1 << 17) + b"1]}"),
    body("too deep", b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    body("deep", b'{"prompt": ' + b"[" * 65 + b"]" * 65 + b"}"),
    body("not closed", b'{"a":' * 100_000),
    body("empty", b""),
    body("no object", b"[1]"),
    body("two objects", b'{"prompt": "x"}{"prompt": "x"}'),
    body("not UTF-8", b'{"prompt": "\xff"}'),
    body("UTF-16", '{"prompt": "x"}'.encode("utf-16")),
    body("a BOM", b'\xef\xbb\xbf{"prompt": "x"}'),
    body("many digits", b'{"max_tokens": ' + b"9" * 5000 + b"}"),
    body("a huge integer", b'{"prompt": "x", "max_tokens": ' + b"9" * 400 + b"}"),
    body("a huge number", b'{"prompt": "x", "temperature": 1e999}'),
    body("a huge count", b'{"prompt": "x", "n": 1e999}'),
    body("a huge bias", b'{"prompt": "x", "logit_bias": {"5": 1e999}}'),
    body("NaN", b'{"prompt": "x", "temperature": NaN}'),
    body("-Infinity", b'{"prompt": "x", "metadata": -Infinity}'),
    body("a key twice", b'{"prompt": "x", "max_tokens": 1, "max_tokens": 1}', 200),
    body("half of a pair", b'{"prompt": "\\ud800"}'),
    body("half of a pair as a name", b'{"prompt": "x", "\\ud800": 1}'),
    body("half of a pair as a model", b'{"prompt": "x", "model": "\\ud800"}', 404),
    body("half of a pair that does nothing", b'{"prompt": "x", "max_tokens": 1, "user": "\\ud800"}', 200),
    body("NUL", b'{"prompt": "x\\u0000y", "max_tokens": 1, "stop": "\\u0000"}', 200),
    body("NUL as it is", b'{"prompt": "\0"}'),
    body("NUL as a model", b'{"prompt": "x", "model": "\\u0000"}', 404),
    body("a schema without an end", with_schema(b'{"$ref": "#"}'), path=CHAT),
    body("a schema in a file", with_schema(b'{"$ref": "file:///etc/passwd"}'), path=CHAT),
    body("a picture", b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": '
         b'"file:///etc/passwd"}}]}]}', path=CHAT),
    # around the body
    Hostile("a form", post(COMPLETIONS, b"prompt=x", "Content-Type: application/x-www-form-urlencoded"), 400),
    Hostile("text", post(COMPLETIONS, b'{"prompt": "x"}', "Content-Type: text/plain"), 400),
    Hostile("in chunks", post(COMPLETIONS, chunked(b'{"prompt": "', b'x"}'), "Transfer-Encoding: chunked"), 200),
    Hostile("a wrong chunk", post(COMPLETIONS, b"zz\r\n", "Transfer-Encoding: chunked"), 400),
    Hostile("two lengths", post(COMPLETIONS, b"{}", "Content-Length: 2", "Content-Length: 3"), 400),
    Hostile("a negative length", post(COMPLETIONS, b"", "Content-Length: -1"), 400),
    Hostile("a length and chunks", post(COMPLETIONS, chunked(b"{}"), "Content-Length: 2", "Transfer-Encoding: chunked"), 400),
    Hostile("compressed", post(COMPLETIONS, b"\x1f\x8b\x08\0\0", "Content-Encoding: gzip"), 400),
    # not HTTP, or hardly
    Hostile("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(range(256)) + b"\r\n\r\n", 400),
    Hostile("words", b"hello\r\n\r\n", 400),
    Hostile("no host", b"GET /v1/models HTTP/1.1\r\n\r\n", 400),
    Hostile("two hosts", GET + b"Host: localhost\r\n\r\n", 400),
    Hostile("a header of 1 MB", GET + b"X: " + b"x" * 1_000_000 + b"\r\n\r\n", 400, True),
    Hostile("200,000 headers", GET + b"X: y\r\n" * 200_000 + b"\r\n", 400, True),
    Hostile("NUL in a header", GET + b"X: a\0b\r\n\r\n", 400),
    Hostile("a header without a name", GET + b": x\r\n\r\n", 400),
    Hostile("spaces in the path", b"GET /a b c HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
    Hostile("a path that goes up", b"GET /v1/models/../../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 404),
    Hostile("a path that is no UTF-8", b"GET /v1/models/%ff%00%ed%a0%80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 404),
    Hostile("another site", b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
    Hostile("all paths", b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 404),
    Hostile("a tunnel", b"CONNECT evil.example:443 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 404),
    Hostile("a websocket", GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", 200),
    Hostile("a method of its own", b"BREW /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 405),
)  # fmt: skip


def send_hostile(port: int, sent: Hostile) -> bytes:
    """The body of the answer. AssertionError: it has another status."""
    try:
        status, data = ask(port, sent.data)
    except (ConnectionError, http.client.RemoteDisconnected):
        assert sent.may_end, sent.name
        return b""
    assert status == sent.status, (sent.name, status, data)
    return data


# ---------------------------------------------------------------------------
# mutated requests

MESSAGES = [{"role": "user", "content": "Hi"}]
GOOD: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"prompt": ["The dog", "A cat"], "max_tokens": 1, "n": 1, "seed": 1, "stop": ["x"], "logprobs": 2}),
    (COMPLETIONS, {"model": "tales1M", "prompt": [5], "echo": True, "max_tokens": 1, "logit_bias": {"5": 1}}),
    (CHAT, {"messages": MESSAGES, "max_tokens": 1, "logprobs": True, "top_logprobs": 1, "temperature": 0.5, "top_p": 0.5}),
    (CHAT, {"messages": MESSAGES, "max_tokens": 1, "stream": True, "stream_options": {"include_usage": True}}),
    (CHAT, {"messages": MESSAGES, "max_tokens": 1, "response_format": {
        "type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"a": {"enum": [1]}}}},
    }}),
    ("/tokenize", {"model": "tales1M", "prompt": "a", "add_special_tokens": True}),
    ("/detokenize", {"tokens": [1, 2, 300]}),
]  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, "", "a", "\ud800", "\0", "é", "true", [], {},
    [[]], [None], [0], [1, "a"], {"": 0}, {"type": "text"}, [{"role": "user", "content": "x"}], "x" * 3000,
)  # fmt: skip
ALLOWED = (200, 400, 404)


def mutated(rng: random.Random, value: Any) -> Any:
    """A copy with one part changed, dropped or added."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return rng.choice(ODD)
    copy = value.copy()
    key = rng.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
    if isinstance(copy, dict) and rng.random() < 0.1:
        copy[rng.choice(["temperature", "n", "seed", "x", "tools", "min_p", "user", "date"])] = rng.choice(ODD)
    elif rng.random() < 0.1:
        del copy[key]
    else:
        copy[key] = mutated(rng, copy[key])
    return copy


def mutated_request(rng: random.Random) -> tuple[str, bytes]:
    """A path, and a body that was good once. Its bytes may be changed, too."""
    path, content = rng.choice(GOOD)
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = mutated(rng, content)
    data = bytearray(json.dumps(content).encode())
    if rng.random() < 0.1 and data:
        data[rng.randrange(len(data))] = rng.randrange(256)
    return path, bytes(data)


def send_mutated(port: int, rng: random.Random, n: int) -> dict[int, int]:
    """How often each status came. AssertionError: one that a client would not know what to do with."""
    seen: dict[int, int] = {}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        for _ in range(n):
            path, data = mutated_request(rng)
            connection.request("POST", path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status in ALLOWED and b"server_error" not in text, (path, data, answer.status, text)
            seen[answer.status] = seen.get(answer.status, 0) + 1
    return seen
