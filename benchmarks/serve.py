"""Measures the server under load: `python benchmarks/serve.py`, or beside others: `... llama-server=http://127.0.0.1:8081`.

It starts `python -m llama2c serve` and asks it, and every other server that has OpenAI's interface, from 1, 4, 16 and 64
clients at once. In every round each server gets the same requests from the same client, in turn, whole and as streams. What the
server is held against runs in this process, while the servers are idle: Llama.generate_many with the same requests, and
Llama.stream for one client. The texts of our server must be those of generate_many.

Each load has prompts of its own, so that no server knows them from the one before. A text always has --tokens tokens: those
that end it are excluded. The client is one thread that reads all connections. It shares the cores with the servers, and the
page says how much of a core it took.
"""

from __future__ import annotations

import argparse
import bisect
import http.client
import itertools
import json
import re
import selectors
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from measure import OURS, PAUSE, Record, Samples
from pages import BETWEEN, FIRST, served

import llama2c
from llama2c.commands import bench

PATIENCE = 600  # seconds for a server to send something
MANY, STREAM = "generate_many", "Llama.stream"
# The defaults of llama-server, so that every server draws in the same way.
OPTIONS: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "min_p": 0.05}
AIMS = {("16 clients, whole answers", MANY): 0.85, ("16 clients, streams", MANY): 0.65, ("1 client, streams", STREAM): 0.9}
OTHERS_AIM = 1.5  # times another server, with 16 clients


# ---------------------------------------------------------------------------
# the client


@dataclass
class Server:
    """A server, and what its requests have beside the prompt."""

    name: str
    host: str
    port: int
    path: str  # of its interface: "/v1"
    fields: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def at(cls, text: str) -> Server:
        """NAME=URL or a URL. ValueError: it is not one."""
        name, url = re.fullmatch(r"(?:([^=/]+)=)?(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"expected http://HOST:PORT or NAME=http://HOST:PORT, found {text!r}")
        path = parts.path.rstrip("/") or "/v1"
        return cls(name or f"{parts.hostname}:{parts.port or 80}", parts.hostname, parts.port or 80, path)

    def model(self) -> str:
        """The model that it has. OSError or ValueError: it does not answer as expected."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE)
        try:
            connection.request("GET", f"{self.path}/models")
            return str(json.loads(connection.getresponse().read())["data"][0]["id"])
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{self.name}: expected a list of models at {self.path}/models, found: {error}") from None
        finally:
            connection.close()

    def request(self, content: dict[str, Any], stream: bool) -> bytes:
        body: dict[str, Any] = {**content, **self.fields, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        data = json.dumps(body).encode()
        lines = [f"POST {self.path}/completions HTTP/1.1", f"Host: {self.host}:{self.port}", "Connection: close"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}", "", ""]
        return "\r\n".join(lines).encode() + data


class Reply(NamedTuple):
    """An answer, with times in seconds since all requests were sent."""

    text: str
    n_tokens: int
    times: list[float]  # when the parts with text came; of an answer without a stream, its end


class Load(NamedTuple):
    """The answers to requests that were sent at once."""

    replies: list[Reply]
    seconds: float  # to the end of the last one
    client: float  # processor seconds of the client

    @property
    def rate(self) -> float:
        """Tokens a second in all."""
        return sum(reply.n_tokens for reply in self.replies) / self.seconds

    @property
    def first(self) -> list[float]:
        return [1000 * reply.times[0] for reply in self.replies]

    @property
    def between(self) -> list[float]:
        """Milliseconds between parts, each of which is one token, or more where the server joins them."""
        return [1000 * (b - a) for reply in self.replies for a, b in zip(reply.times, reply.times[1:], strict=False)]


def ask_all(server: Server, contents: Sequence[dict[str, Any]], stream: bool) -> Load:
    """Send all requests at once, each on a connection of its own, and read the answers as they come."""
    requests = [server.request(content, stream) for content in contents]
    arrivals: list[list[tuple[float, bytes]]] = [[] for _ in requests]
    with selectors.DefaultSelector() as selector, ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection((server.host, server.port), PATIENCE)) for _ in requests]
        cpu, start = time.thread_time(), time.perf_counter()
        for client, data, own in zip(clients, requests, arrivals, strict=True):
            client.sendall(data)
            selector.register(client, selectors.EVENT_READ, own)
        while selector.get_map():
            ready = selector.select(PATIENCE)
            if not ready:
                raise ValueError(f"{server.name}: nothing came in {PATIENCE} seconds")
            now = time.perf_counter() - start
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                if part := key.fileobj.recv(1 << 16):
                    key.data.append((now, part))
                else:
                    selector.unregister(key.fileobj)
        seconds, client_seconds = time.perf_counter() - start, time.thread_time() - cpu
    read = read_stream if stream else read_whole
    return Load([read(server, own) for own in arrivals], seconds, client_seconds)


def read_whole(server: Server, arrivals: list[tuple[float, bytes]]) -> Reply:
    data = b"".join(part for _, part in arrivals)
    try:
        answer = json.loads(data[data.index(b"{") : data.rindex(b"}") + 1])
        return Reply(answer["choices"][0]["text"], answer["usage"]["completion_tokens"], [arrivals[-1][0]])
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{server.name}: expected a completion, found {data[:300]!r}") from None


def read_stream(server: Server, arrivals: list[tuple[float, bytes]]) -> Reply:
    """Each event is in one arrival, or in several: then the last one counts."""
    data = b"".join(part for _, part in arrivals)
    ends = [0]
    for _, part in arrivals:
        ends.append(ends[-1] + len(part))
    texts, times, used = [], [], None
    try:
        for found in re.finditer(rb"data: (\{.*\})\r?\n", data):
            event = json.loads(found[1])
            used = event.get("usage") or used
            if event["choices"] and (text := event["choices"][0]["text"]):
                texts.append(text)
                times.append(arrivals[bisect.bisect_left(ends, found.end(1)) - 1][0])
        return Reply("".join(texts), used["completion_tokens"], times)  # type: ignore[index]
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{server.name}: expected the events of a completion, found {data[:300]!r}") from None


# ---------------------------------------------------------------------------
# our server, and the same work without one


@contextmanager
def serving(model: Path | None, threads: int | None) -> Iterator[Server]:
    """Our server, in a process of its own."""
    flags = [] if threads is None else ["--threads", str(threads)]
    command = [sys.executable, "-m", "llama2c", "serve", *([] if model is None else [str(model)]), "--port", "0", *flags]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline().decode()
            if " at http" not in line:
                log.seek(0)
                raise ValueError(f"serve: expected its address, found {log.read().decode().strip()!r}")
            yield Server.at(line.rpartition(" ")[2].strip())
        finally:
            process.terminate()


class Reference:
    """Llama in this process."""

    def __init__(self, model: Path | None, threads: int | None) -> None:
        self.llama = llama2c.load(model, n_threads=threads)

    @property
    def excluded(self) -> dict[int, float]:
        """The bias that keeps a text from ending."""
        return dict.fromkeys(self.llama.tokenizer.end_ids, -100.0)

    def requests(self, turn: int, n_clients: int, n_tokens: int) -> list[dict[str, Any]]:
        """The requests of a load. turn: a number that makes them others than those of earlier loads."""
        bias = {str(token): value for token, value in self.excluded.items()}
        shared = {**OPTIONS, "max_tokens": n_tokens, "logit_bias": bias}
        said = "a story of a little dog, a red ball and a long day"
        prompts = [f"{turn} and {n_clients} and {i}: {said}." for i in range(n_clients)]
        return [{"prompt": prompt, "seed": 1000 * turn + i, **shared} for i, prompt in enumerate(prompts)]

    def _own(self, content: dict[str, Any]) -> dict[str, Any]:
        return {**content, "logit_bias": self.excluded}

    def many(self, contents: Sequence[dict[str, Any]]) -> tuple[list[str], float]:
        """The texts, and tokens a second."""
        start = time.perf_counter()
        done = list(self.llama.generate_many(map(self._own, contents)))
        seconds = time.perf_counter() - start
        return [one.text for one in done], sum(one.generation_tokens for one in done) / seconds

    def stream(self, content: dict[str, Any]) -> float:
        """Tokens a second."""
        start = time.perf_counter()
        n_tokens = sum(1 for _ in self.llama.stream(**self._own(content)))
        return n_tokens / (time.perf_counter() - start)


# ---------------------------------------------------------------------------
# rounds


def name_of(n_clients: int, stream: bool) -> str:
    """ "1 client, streams" """
    return f"{n_clients} client{'s' * (n_clients > 1)}, {'streams' if stream else 'whole answers'}"


class Comparison:
    """Measures everything once in a round, and keeps the figures."""

    def __init__(self, record: Record, reference: Reference, servers: Sequence[Server], model: str) -> None:
        self.record, self.reference, self.servers, self.model = record, reference, servers, model
        self.client: list[float] = []  # the share of a core that it took

    def note(self, work: str, program: str, value: float, unit: str = "tok/s") -> None:
        samples = self.record.find(work, self.model, program)
        if samples is None:
            aim = AIMS.get((work, program))
            if program not in (OURS, MANY, STREAM) and work.startswith("16 "):
                aim = OTHERS_AIM
            samples = Samples(work, self.model, program, unit, aim=aim)
            self.record.samples.append(samples)
        samples.values.append(value)

    def round(self, turn: int, counts: Sequence[int], modes: Sequence[bool], n_tokens: int, counts_too: bool) -> None:
        """turn: the number of the round, which decides who is first. counts_too: whether its figures count."""
        for n, stream in itertools.product(counts, modes):
            contents = self.reference.requests(2 * turn + stream, n, n_tokens)  # a server guesses what it has said before
            time.sleep(PAUSE)
            texts, rate = self.reference.many(contents)
            alone = self.reference.stream(contents[0]) if n == 1 else None
            first = turn % len(self.servers)
            loads = {}
            for server in [*self.servers[first:], *self.servers[:first]]:
                time.sleep(PAUSE)
                loads[server.name] = load = ask_all(server, contents, stream)
                self.check(server, load, texts, n_tokens)
            if counts_too:
                self.keep(name_of(n, stream), loads, rate, alone, stream)

    def check(self, server: Server, load: Load, texts: list[str], n_tokens: int) -> None:
        """ValueError: our server has answered with another text."""
        if server.name == OURS and [reply.text for reply in load.replies] != texts:
            raise ValueError("the texts of the server are not those of generate_many")
        fewer = sum(reply.n_tokens != n_tokens for reply in load.replies)
        line = f"{server.name}: some texts had another number of tokens than {n_tokens}"
        if fewer and line not in self.record.notes:
            self.record.notes.append(line)

    def keep(self, work: str, loads: dict[str, Load], rate: float, alone: float | None, stream: bool) -> None:
        for name in sorted(loads, key=lambda name: name != OURS):
            load = loads[name]
            self.note(work, name, load.rate)
            self.client.append(load.client / load.seconds)
            for kind, values in ((FIRST, load.first), (BETWEEN, load.between)):
                if stream:
                    values = values or [0.0]  # the whole text came at once
                    self.note(f"{kind}, {work}", name, statistics.median(values), "ms")
                    self.note(f"{kind} (99th), {work}", name, percentile(values, 99), "ms")
        self.note(work, MANY, rate)
        if alone is not None:
            self.note(work, STREAM, alone)


def percentile(values: Sequence[float], n: int) -> float:
    """The least value that n in a hundred do not exceed: [1, 2, 3], 50 -> 2."""
    ordered = sorted(values)
    return ordered[max(0, -(-n * len(ordered) // 100) - 1)]


# ---------------------------------------------------------------------------
# the page


def markdown(record: Record) -> str:
    info = record.info
    lines = ["# The server under load", "", f"llama2c {info['version']}, Python {info['python']}:", ""]
    lines += [f"    {info['command']}", "", served(record), ""]
    lines += [f"The client took {100 * info['client']:.0f}% of a core.", "", *(f"- {line}" for line in record.notes), ""]
    return "\n".join(lines)


# ---------------------------------------------------------------------------
# the command line


def numbers(text: str) -> list[int]:
    """ "1,4,16" -> [1, 4, 16]"""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,4,16, found {text!r}")
    return [int(part) for part in text.split(",")]


def number(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, found {text!r}")
    return int(text)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("others", nargs="*", metavar="[NAME=]URL", help="another server with OpenAI's interface and the same model")
    add("--model", type=Path, metavar="FILE", help="default: the model that comes with llama2c")
    add("--ours", metavar="URL", help="a server of llama2c that runs already, with that model (default: one is started)")
    add("--clients", type=numbers, default=[1, 4, 16, 64], metavar="N,N", help="numbers of clients (default 1,4,16,64)")
    add("--tokens", type=number, default=128, metavar="N", help="tokens of a text (default 128)")
    add("--stream", action=argparse.BooleanOptionalAction, help="only streams, or only whole answers (default: both)")
    add("--rounds", type=number, default=5, metavar="N", help="rounds, after one to warm up (default 5)")
    add("--threads", type=number, metavar="N", help="of llama2c (default: as it decides)")
    add("-o", "--output", type=Path, metavar="FILE.json", help="write the figures, and FILE.md")
    options = parser.parse_args(arguments)
    options.command = shlex.join(["python", "benchmarks/serve.py", *(sys.argv[1:] if arguments is None else arguments)])
    return options


def run(options: argparse.Namespace) -> None:
    others = [Server.at(text) for text in options.others]
    if options.output is not None and not options.output.parent.is_dir():
        raise ValueError(f"{options.output}: expected a file in a folder that exists")
    reference = Reference(options.model, options.threads)
    asked = {name: getattr(options, name) for name in ("rounds", "tokens", "command")}
    record = Record({**bench.machine(), "threads": reference.llama.transformer.n_threads, **asked})
    started = serving(options.model, options.threads) if options.ours is None else nullcontext(Server.at(options.ours))
    with started as ours:
        ours.name = OURS
        for server in (ours, *others):
            server.fields = {"model": server.model(), **({} if server is ours else {"ignore_eos": True})}
        comparison = Comparison(record, reference, [ours, *others], ours.fields["model"])
        modes = (False, True) if options.stream is None else (options.stream,)
        for turn in range(options.rounds + 1):
            start = time.perf_counter()
            comparison.round(turn, options.clients, modes, options.tokens, counts_too=turn > 0)
            print(f"round {turn} of {options.rounds}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    record.info["client"] = statistics.median(comparison.client)
    print(markdown(record))
    if options.output is not None:
        record.save(options.output)
        options.output.with_suffix(".md").write_text(markdown(record), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    try:
        run(parse(arguments))
        return 0
    except (OSError, ValueError) as error:
        print(f"serve: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
