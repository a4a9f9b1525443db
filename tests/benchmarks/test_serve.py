"""benchmarks/serve.py: its client reads answers and streams, and its figures exist. No test asserts a speed."""

from __future__ import annotations

import importlib
import json
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("measure", "pages", "serve"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(importlib.import_module("measure"), "PAUSE", 0)
    return importlib.import_module("serve")


def chunk(text: str | None, **more: Any) -> bytes:
    choices = [] if text is None else [{"index": 0, "text": text}]
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


class Other(socketserver.StreamRequestHandler):
    """A server of another kind: it says "a b c" to everyone, and adds fields of its own."""

    asked: list[Any] = []  # noqa: RUF012  of all

    def handle(self) -> None:
        line, length = self.rfile.readline(), 0
        while (header := self.rfile.readline().strip().lower()) != b"":
            if header.startswith(b"content-length:"):
                length = int(header.rpartition(b":")[2])
        sent = json.loads(self.rfile.read(length) or b"{}")
        self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        if line.startswith(b"GET"):
            self.wfile.write(b'{"data": [{"id": "other"}]}')
            return
        self.asked.append(sent)
        if not sent["stream"]:
            self.wfile.write(json.dumps({"choices": [{"text": "a b c"}], "usage": {"completion_tokens": 3}}).encode())
            return
        first, second = chunk("a"), chunk(" b") + chunk(" c")
        for part in (b"9\r\n", first[:9], first[9:], b"\r\n", second, chunk(""), chunk(None, usage={"completion_tokens": 3})):
            self.wfile.write(part)
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")


@pytest.fixture
def other() -> Iterator[str]:
    Other.asked.clear()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_client_reads_answers_and_streams(serve: Any, other: str) -> None:
    server = serve.Server.at(f"name={other}/v1/")
    assert (server.name, server.path, server.model()) == ("name", "/v1", "other")
    server.fields = {"model": "other"}
    contents = [{"prompt": f"{i}"} for i in range(3)]
    whole = serve.ask_all(server, contents, False)
    assert [(reply.text, reply.n_tokens, len(reply.times)) for reply in whole.replies] == [("a b c", 3, 1)] * 3
    assert whole.rate == 9 / whole.seconds
    stream = serve.ask_all(server, contents, True)
    assert [(reply.text, reply.n_tokens, len(reply.times)) for reply in stream.replies] == [("a b c", 3, 3)] * 3
    assert len(stream.first) == 3 and len(stream.between) == 6
    assert all(0 <= time <= 1000 * stream.seconds for time in (*stream.first, *stream.between))
    assert sorted(asked["prompt"] for asked in Other.asked) == sorted("012" * 2)


def test_events_in_several_parts_and_several_in_one(serve: Any) -> None:
    server = serve.Server("name", "127.0.0.1", 1, "/v1")
    data = chunk("a") + chunk("b")
    arrivals = [(1.0, data[:10]), (2.0, data[10:-2]), (3.0, data[-2:] + chunk(None, usage={"completion_tokens": 2}))]
    assert serve.read_stream(server, arrivals) == serve.Reply("ab", 2, [2.0, 2.0])
    with pytest.raises(ValueError, match=r"^name: expected the events of a completion, found b'HTTP"):
        serve.read_stream(server, [(1.0, b'HTTP/1.1 400 Bad Request\r\n\r\n{"error": 1}')])
    with pytest.raises(ValueError, match="name: expected a completion, found"):
        serve.read_whole(server, [(1.0, b'HTTP/1.1 400 Bad Request\r\n\r\n{"error": 1}')])


def test_figures_of_both_servers(serve: Any, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "serve.json"
    flags = ["--clients", "1,2", "--tokens", "5", "--rounds", "2", "--threads", "1", "-o", str(path), f"peer={other}"]
    assert serve.main(flags) == 0
    page = capsys.readouterr().out
    assert (tmp_path / "serve.md").read_text() + "\n" == page
    assert "- peer: some texts had another number of tokens than 5" in page
    record = serve.Record.load(path)
    for work in ("1 client, whole answers", "1 client, streams", "2 clients, whole answers", "2 clients, streams"):
        for program in ("llama2c", "peer", "generate_many"):
            assert len(record.find(work, "tales1M", program).values) == 2
            assert f"| {work} | {program} |" in page
    assert record.find("1 client, streams", "tales1M", "Llama.stream").aim == 0.9
    assert len(record.find("between tokens (99th), 2 clients, streams", "tales1M").values) == 2
    assert Other.asked[0]["ignore_eos"] is True and Other.asked[0]["model"] == "other"
    prompts = {asked["prompt"] for asked in Other.asked}  # no server knows one, so that it cannot guess what it has said before
    assert len(Other.asked) == len(prompts) == 3 * 2 * (1 + 2)


def test_another_text_is_an_error(serve: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(serve.Reference, "many", lambda reference, contents: (["another"] * len(contents), 1.0))
    assert serve.main(["--clients", "1", "--tokens", "2", "--rounds", "1", "--threads", "1"]) == 1
    assert capsys.readouterr().err == "serve: error: the texts of the server are not those of generate_many\n"


def test_errors(serve: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        (["ftp://x"], "expected http://HOST:PORT or NAME=http://HOST:PORT, found 'ftp://x'"),
        (["--ours", "http://127.0.0.1:1"], "llama2c: expected a list of models at /v1/models, found: "),
        (["-o", str(tmp_path / "no" / "a.json")], "expected a file in a folder that exists"),
        (["--model", str(tmp_path / "absent.gguf")], "absent.gguf"),
    ):
        assert serve.main(flags) == 1
        assert message in capsys.readouterr().err


def test_percentiles(serve: Any) -> None:
    assert [serve.percentile([3, 1, 2], n) for n in (1, 50, 99)] == [1, 2, 3]
    assert serve.percentile(list(range(1, 101)), 99) == 99
