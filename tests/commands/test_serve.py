"""The verb `serve` as a process: the address, the log, signals and the exit code."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import SECONDS, process

import llama2c
from llama2c.locate import BUNDLED

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

Serve = Callable[..., "tuple[subprocess.Popen[bytes], int]"]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers on ports of their own; gives the process and the port when it is ready."""
    started = []

    def start(*flags: str | Path, **options: Any) -> tuple[subprocess.Popen[bytes], int]:
        server = process("serve", "--port", "0", *flags, **options)
        started.append(server)
        assert server.stdout is not None
        line = server.stdout.readline().decode()
        assert " at http://" in line, (line, server.communicate(timeout=SECONDS))
        return server, int(line.strip().rpartition(":")[2])

    yield start
    for server in started:
        server.kill()
        server.communicate(timeout=SECONDS)


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)) as connection:
        connection.request(method, path, data, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_a_signal_finishes_what_runs_and_ends_with_0(serve: Serve, sent: signal.Signals, endless: Path) -> None:
    """A stream that runs comes to its end; a request that comes after the signal is refused with an answer."""
    server, port = serve(endless, "--max-sequences", "2")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    body = {"prompt": "a", "max_tokens": 5000, "stream": True, "temperature": 0}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.readline().startswith(b"data: ")
    server.send_signal(sent)
    rest = answer.read()
    connection.close()
    assert rest.endswith(b"data: [DONE]\n\n")
    out, err = server.communicate(timeout=SECONDS)
    assert (server.returncode, out) == (0, b"")
    lines = err.decode().splitlines()
    assert lines[0].startswith(f"llama2c: {sent.name}: finishing 1 texts")
    assert "completions 200 " in lines[1]
    assert "new 5000, " in lines[1]
    assert len(lines) == 2


def test_the_key_from_the_environment_and_the_log(serve: Serve) -> None:
    server, port = serve("--log-prompts", env={**os.environ, "LLAMA2C_API_KEY": "secret"})
    assert ask(port, "GET", "/v1/models")[0] == 401
    status, answer = ask(port, "POST", "/v1/completions", {"prompt": "The dog", "max_tokens": 2}, Authorization="Bearer secret")
    assert (status, answer["model"]) == (200, "tales1M")
    server.terminate()
    _, err = server.communicate(timeout=SECONDS)
    assert server.returncode == 0
    assert "new 2, " in err.decode()
    assert 'prompts ["The dog"]' in err.decode()
    assert "secret" not in err.decode()


def test_the_prompt_cache_is_kept_from_one_start_to_the_next(serve: Serve, tmp_path: Path) -> None:
    body = {"prompt": "The little dog lived on a farm near the forest. His name was Sunny.", "max_tokens": 1}
    cached = []
    for _ in range(2):
        server, port = serve("--prompt-cache", tmp_path / "prompts")
        cached.append(ask(port, "POST", "/v1/completions", body)[1]["usage"]["prompt_tokens_details"]["cached_tokens"])
        server.terminate()
        server.communicate(timeout=SECONDS)
        assert server.returncode == 0
    assert cached[0] == 0
    assert cached[1] > 10


def test_the_model_is_opened_as_everywhere(serve: Serve, tmp_path: Path) -> None:
    """A model whose tokenizer is elsewhere, a cache in float16, and a model that guesses for it."""
    model, tokenizer = tmp_path / "model.bin", tmp_path / "words.bin"
    model.write_bytes(BUNDLED.read_bytes())
    tokenizer.write_bytes(BUNDLED.with_name("tokenizer.bin").read_bytes())
    _, port = serve(model, "-z", tokenizer, "--kv", "float16", "--draft", BUNDLED)
    asked: dict[str, Any] = {"prompt": "Once", "max_tokens": 40, "temperature": 0, "logprobs": 1}
    [choice] = ask(port, "POST", "/v1/completions", asked)[1]["choices"]
    expected, other = (llama2c.load(BUNDLED, kv=kv).generate(**asked) for kv in ("float16", "float32"))
    assert (choice["text"], tuple(choice["logprobs"]["token_logprobs"])) == (expected.text, expected.logprobs)
    assert expected.logprobs != other.logprobs


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = process("serve", "--port", str(port))
        out, err = server.communicate(timeout=SECONDS)
    assert (server.returncode, out) == (1, b"")
    assert err.decode() == (
        f"llama2c: error: http://127.0.0.1:{port}: expected an address that is free, found: Address already in use\n"
    )


def test_another_address_than_loopback_is_said(serve: Serve) -> None:
    server, port = serve("--host", "0.0.0.0")
    assert ask(port, "GET", "/health") == (200, {"status": "ok"})
    server.terminate()
    _, err = server.communicate(timeout=SECONDS)
    assert b"warning: 0.0.0.0 is not only this machine: everyone who reaches it may use it" in err


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--port", "70000"], 2, "argument --port: expected an integer from 0 to 65535, found 70000"),
        (["--max-sequences", "0"], 2, "expected an integer of at least 1, found 0"),
        (["--max-sequences", "5000"], 1, "--max-sequences: expected an integer from 1 to 1024, found 5000"),
        (["--allow-origin", "*"], 1, "--allow-origin: expected an origin such as https://example.com, found '*'"),
        (["--api-key", ""], 1, "--api-key: expected a key"),
        (["--host", "no.such.host.invalid"], 1, "no.such.host.invalid: expected an address of this machine"),
        (["--prompt-cache", "no/such/folder/file"], 1, "expected a file in a folder that exists"),
        (["nothing.bin"], 1, "nothing.bin"),
        (["--tokenizer", "no.bin"], 1, "no.bin: expected a readable file"),
        (["--draft", "no.bin"], 1, "no.bin: "),
        (["--kv", "int8"], 2, "argument --kv: invalid choice: 'int8'"),
    ],
)
def test_wrong_flags(command, flags: list[str], code: int, message: str) -> None:
    result = command("serve", *flags)
    assert (result.code, result.out) == (code, b"")
    assert message in result.err
    assert len(result.err.splitlines()) == 1
