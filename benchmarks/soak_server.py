"""Asks a server for minutes in every bad way: `python benchmarks/soak_server.py --rounds 10`, or `make soak`.

It starts `python -m llama2c serve` with the bundled model. In each round 100 clients ask at once, while 100 others cut their
connections (in the headers, in the body, while they wait, in the prompt, in the stream), five read a byte and then nothing, and
one sends what no client should and 1,000 mutated requests. The answers must be those that each request had alone; no answer may
be a 500; afterwards the server must have no request, no cache, no thread and no open file more, and after a warm-up its memory
must not grow. The exit code is 1 if a check failed. This does not measure speed.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import server_clients as clients

CLIENTS = 100  # at once, good ones
CUTS = 100  # connections of a round
SLOW = 5
MUTATED = 1000  # requests of a round
PATIENCE = 60  # seconds for what takes milliseconds
POOL = 4  # threads that a server makes when it needs them, and keeps
WARM_UP = 0.3  # the share of the rounds before memory is measured
GROWTH = 24 << 20  # bytes that the server may grow by; less may be what the C library keeps of the largest bodies
# `python -m llama2c`, which remembers so few texts that their memory is soon full.
SERVE = """
import sys
from llama2c.commands.main import main
from llama2c.engine import engine
engine.default_bytes = lambda: 1 << 20
sys.exit(main(sys.argv[1:]))
"""
NOW = ("running", "waiting", "cache_bytes")  # of the engine; 0 when nobody asks


class Server:
    """The server, as a process."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  as long as the process
        command = [sys.executable, "-c", SERVE, "serve", "--port", "0", "--max-sequences", "16", "--threads", "1"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rpartition(b":")[2])
        self._folder = Path(f"/proc/{self.process.pid}")

    @property
    def memory(self) -> int:
        """Bytes in use."""
        return int((self._folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    @property
    def n_threads(self) -> int:
        return len(os.listdir(self._folder / "task"))

    @property
    def n_files(self) -> int:
        return len(os.listdir(self._folder / "fd"))

    def left(self) -> dict[str, float]:
        """What is still in work."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as connection:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        values = {name: re.search(rf"^llama2c_engine_{name} (\S+)$", text, re.MULTILINE) for name in NOW}
        return {name: float(value[1]) for name, value in values.items() if value and float(value[1])}

    def end(self) -> tuple[int, str]:
        """The exit code after SIGTERM, and the log."""
        self.process.terminate()
        self.process.communicate(timeout=PATIENCE)
        with self._log:
            self._log.seek(0)
            return self.process.returncode, self._log.read().decode()


def until(holds: Callable[[], bool]) -> bool:
    """Whether it holds soon."""
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            return False
        threading.Event().wait(0.01)
    return True


def hostile(port: int) -> None:
    for sent in clients.HOSTILE:
        clients.send_hostile(port, sent)


def one_round(server: Server, expected: dict[int, Any], turn: int) -> list[str]:
    """What went wrong in a round."""
    rng = random.Random(turn)
    slow = [clients.slow_reader(server.port, n=4, seed=turn) for _ in range(SLOW)]
    with ThreadPoolExecutor(CLIENTS) as good, ThreadPoolExecutor(8) as bad:
        numbers = [i % len(expected) for i in range(CLIENTS)]
        answers = [good.submit(clients.fetch, server.port, i) for i in numbers]
        cuts = clients.CUTS * (CUTS // len(clients.CUTS))
        others = [bad.submit(cut, server.port, random.Random(rng.random())) for cut in cuts]
        others.append(bad.submit(hostile, server.port))
        others.append(bad.submit(clients.send_mutated, server.port, random.Random(rng.random()), MUTATED))
        failures = [error for work in (*answers, *others) if (error := work.exception()) is not None]
    wrong = [f"{type(error).__name__}: {error}" for error in failures]
    for i, work in zip(numbers, answers, strict=True):
        if work.exception() is None and work.result() != expected[i]:
            wrong.append(f"request {i} has another answer")
    for client in slow:
        clients.go(client, rng)
    if not until(lambda: not server.left()):
        wrong.append(f"still in work: {server.left()}")
    return wrong


def soak(server: Server, rounds: int) -> tuple[str, list[str]]:
    """One line of figures, and what went wrong."""
    begin, n_files, n_threads = time.monotonic(), server.n_files, server.n_threads
    expected = {i: clients.fetch(server.port, i) for i in range(64)}
    wrong: list[str] = []
    memory: list[int] = []
    for turn in range(rounds):
        wrong += one_round(server, expected, turn)
        if turn >= int(WARM_UP * rounds):
            memory.append(server.memory)
        print(f"round {turn + 1} of {rounds}: {server.memory / 2**20:.1f} MiB", file=sys.stderr, flush=True)
    if server.n_threads > n_threads + POOL:
        wrong.append(f"{server.n_threads} threads, {n_threads} before the first round")
    if not until(lambda: server.n_files <= n_files):
        wrong.append(f"{server.n_files} open files, {n_files} before the first round")
    half = max(1, len(memory) // 2)  # the least of several rounds: what was freed is not always given back at once
    if min(memory[-half:]) - min(memory[:half]) > GROWTH:
        wrong.append(f"memory grew by more than {GROWTH / 2**20:g} MiB")
    line = (
        f"{(time.monotonic() - begin) / 60:.1f} min: {rounds * CLIENTS} answers, {rounds * CUTS} cut connections, "
        f"{rounds * SLOW} slow readers, {rounds * MUTATED} mutated requests; memory {memory[0] / 2**20:.1f} MiB after warm-up, "
        f"{memory[-1] / 2**20:.1f} at the end, {max(memory) / 2**20:.1f} at most; {server.n_files} open files, "
        f"{server.n_threads} threads"
    )
    return line, wrong


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args(arguments).rounds
    server = Server()
    try:
        line, wrong = soak(server, rounds)
    finally:
        code, log = server.end()
    wrong += [f"exit code {code}"] * (code != 0)
    wrong += [f"in the log: {line}" for line in log.splitlines() if re.search(r"Traceback|Error|(completions|chat) 500", line)]
    print(line)
    for what in wrong:
        print(f"FAILED: {what}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
