"""The verb `bench`: how many tokens per second a model reads and writes on this machine, and how fast its memory is read.

The columns are those of llama-bench. All tests of a model run in turn, round by round, so that a change of the machine's speed
affects all of them. The token ids are arbitrary (speed does not depend on them), and nothing is sampled.
benchmarks/compare.py measures other programs.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import platform
import statistics
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from .. import build_info
from ..errors import RequestError
from ..formats.checkpoint import Checkpoint
from ..limits import available_memory
from ..locate import resolve
from ..tensors import count
from ..threads import Threads, available_cores
from ..transformer import Transformer
from .machine import cpu_name, read_bandwidth
from .parser import Parser
from .terminal import UsageError, markdown_table, progress, put, say

# ---------------------------------------------------------------------------
# the command line


EPILOG = """\
-p, -n, -d, -b and -t take several numbers, separated by commas. Every
combination is measured. Lengths are cut to the context.

examples:
    python -m llama2c bench
    python -m llama2c bench stories15M.bin stories15M_q80.bin -t 1,2,4
    python -m llama2c bench stories15M.bin -b 1,4,16 -o json
    python -m llama2c bench stories15M.bin --sweep-threads
"""


def number(least: int) -> Callable[[str], int]:
    """A converter of "5" to 5, for argparse."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(f"expected an integer, found {text!r}") from None
        if value < least:
            raise ArgumentTypeError(f"expected an integer of at least {least}, found {value}")
        return value

    return convert


def numbers(least: int) -> Callable[[str], list[int]]:
    """A converter of "1,2,4" to [1, 2, 4], for argparse. A number that comes twice is taken once."""
    one = number(least)

    def convert(text: str) -> list[int]:
        return list(dict.fromkeys(one(part) for part in text.split(",")))

    return convert


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m llama2c bench",
        description="Measure how many tokens per second a model reads and writes here.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="files or names of models (default: the small model of llama2c)")
    add("-p", "--prompt", type=numbers(0), default=[128], metavar="N", help="tokens of a prompt (pp); 0: none (default 128)")
    add("-n", "--generate", type=numbers(0), default=[64], metavar="N", help="tokens to write (tg); 0: none (default 64)")
    add("-d", "--depth", type=numbers(0), default=[0], metavar="N", help="tokens in the cache before each test (default 0)")
    add("-b", "--batch", type=numbers(1), default=[1], metavar="N", help="sequences that share each step (default 1)")
    add("-t", "--threads", type=numbers(1), metavar="N", help="default: OMP_NUM_THREADS, else what is fastest, up to all cores")
    add("-r", "--rounds", type=number(1), default=5, metavar="N", help="runs of each test, after a warm-up (default 5)")
    add("-o", "--output", choices=("md", "csv", "json"), default="md", help="format of the results (default md)")
    add("--sweep-threads", action="store_true", help="try 1 thread up to all cores; print the best as a line to export")
    return parser


def parse(argv: Sequence[str]) -> Namespace:
    options = make_parser().parse_intermixed_args(argv)
    options.models = options.models or [None]
    if options.sweep_threads and options.threads:
        raise UsageError("argument --sweep-threads: cannot be used together with -t/--threads")
    if options.sweep_threads and len(options.models) > 1:
        raise UsageError(f"argument --sweep-threads: takes one model, found {len(options.models)}")
    if max(options.prompt) == max(options.generate) == 0:
        raise UsageError("nothing to measure: -p/--prompt and -n/--generate are both 0")
    return options


def run(argv: Sequence[str]) -> None:
    """Measures each model in turn and prints the results."""
    options = parse(argv)
    checkpoints = [Checkpoint.open(resolve(model)) for model in options.models]
    tests = [list_tests(options, checkpoint.config.seq_len) for checkpoint in checkpoints]
    for checkpoint, works in zip(checkpoints, tests, strict=True):
        check_memory(checkpoint, works)
    thread_counts = sweep() if options.sweep_threads else options.threads or [None]
    info = machine()
    writer = WRITERS[options.output](info)
    for checkpoint, works in zip(checkpoints, tests, strict=True):
        results = measure(checkpoint, works, thread_counts, options.rounds)
        writer.rows(results)
        if options.sweep_threads:
            info["best_threads"] = best_threads(results)
    writer.end()
    if options.sweep_threads:
        line = f"export OMP_NUM_THREADS={info['best_threads']}"
        put(f"\n{line}\n") if options.output == "md" else say(line, name="")


# ---------------------------------------------------------------------------
# what is measured


@dataclass(frozen=True, slots=True)
class Work:
    """One test: `n_tokens` of each of `batch` sequences with `depth` tokens in the cache: pp all at once, tg one by one."""

    kind: str  # "pp" (prompt processing) or "tg" (text generation)
    n_tokens: int
    depth: int
    batch: int

    @property
    def name(self) -> str:
        """As in llama-bench: "pp128", "tg64 @ d100". We add "x8" for eight sequences."""
        batch = f" x{self.batch}" if self.batch > 1 else ""
        return f"{self.kind}{self.n_tokens}{batch}" + (f" @ d{self.depth}" if self.depth else "")


def list_tests(options: Namespace, seq_len: int) -> list[Work]:
    """The tests that the flags ask for. Lengths are cut to the context, and tests that this makes equal are done once."""
    if max(options.depth) >= seq_len:
        found = f"expected at most {seq_len - 1} (the context less one), found {max(options.depth)}"
        raise RequestError(f"argument -d/--depth: {found}", "depth")
    tests = [
        Work(kind, min(n_tokens, seq_len - depth), depth, batch)
        for depth in options.depth
        for batch in options.batch
        for kind, lengths in (("pp", options.prompt), ("tg", options.generate))
        for n_tokens in lengths
        if n_tokens
    ]
    return list(dict.fromkeys(tests))


@dataclass(slots=True)
class Result:
    """What was measured in one test of one model with one number of threads."""

    model: str
    size: int  # bytes of the weights
    params: int
    threads: Threads
    test: str
    rates: list[float] = field(default_factory=list)  # tokens per second of all sequences together, one for each round
    bandwidths: list[float] = field(default_factory=list)  # bytes per second, in the same rounds
    bytes_per_token: float | None = None  # of weights, keys and values, that tg has to read

    @property
    def sd(self) -> float:
        return statistics.stdev(self.rates) if len(self.rates) > 1 else 0.0

    @property
    def share(self) -> float | None:
        """The part of the read bandwidth that tg uses (1: a step takes as long as reading its bytes). None for pp."""
        if self.bytes_per_token is None:
            return None
        return statistics.median(a * self.bytes_per_token / b for a, b in zip(self.rates, self.bandwidths, strict=True))

    def figures(self) -> dict[str, Any]:
        """All columns of the csv and json output, by name."""
        return {
            "model": self.model,
            "size": self.size,
            "params": self.params,
            "threads": self.threads.n_threads,
            "adapts": self.threads.adapts,
            "test": self.test,
            "t/s": statistics.mean(self.rates),
            "sd": self.sd,
            "median": statistics.median(self.rates),
            "bandwidth": statistics.median(self.bandwidths),
            "share": self.share,
        }


def measure(checkpoint: Checkpoint, tests: list[Work], thread_counts: Sequence[int | None], rounds: int) -> list[Result]:
    """Runs every test with every number of threads, in turn: one round to warm up, then `rounds`."""
    size, params = weigh(checkpoint)
    name = f"{Path(checkpoint.path).stem} {checkpoint.kind}"
    memory = np.ones(max(1, size // 4), np.float32)
    runs: list[tuple[Result, Runner]] = []
    for threads in thread_counts:
        transformer = Transformer(checkpoint, threads)
        for test in tests:
            result = Result(name, size, params, transformer.threads, test.name)
            if test.kind == "tg":
                result.bytes_per_token = read_per_token(checkpoint, test)
            runs.append((result, Runner(transformer, test)))
    order = [(round_, *run) for round_ in range(rounds + 1) for run in runs]
    for round_, result, runner in progress(order, len(order), "run"):
        rate, bandwidth = runner.rate(), read_bandwidth(memory, result.threads.n_threads)
        if round_:
            result.rates.append(rate)
            result.bandwidths.append(bandwidth)
    return [result for result, _ in runs]


class Runner:
    """A test that is ready to run: its caches are filled to the depth, and its arrays exist."""

    def __init__(self, transformer: Transformer, test: Work) -> None:
        self.transformer, self.test = transformer, test
        vocab_size = transformer.config.vocab_size
        self.ids = [token % vocab_size for token in range(5, 5 + test.n_tokens)]
        self.caches = [transformer.new_cache(test.depth + test.n_tokens) for _ in range(test.batch)]
        self.logits = np.empty((test.batch, vocab_size), np.float32)
        if test.depth:
            tokens = [token % vocab_size for token in range(5, 5 + test.depth)]
            transformer.forward_batch([(tokens, cache) for cache in self.caches])

    def rate(self) -> float:
        """Runs the test once. Returns the tokens per second of all sequences together."""
        for cache in self.caches:
            cache.truncate(self.test.depth)
        start = perf_counter()
        for tokens in [self.ids] if self.test.kind == "pp" else [[token] for token in self.ids]:
            self.transformer.forward_batch([(tokens, cache) for cache in self.caches], out=self.logits)
        return self.test.batch * self.test.n_tokens / (perf_counter() - start)


def weigh(checkpoint: Checkpoint) -> tuple[int, int]:
    """The bytes of a model's weights and how many numbers they are. A shared classifier counts once."""
    own = [w for name, w in checkpoint.weights.items() if name != "wcls" or not checkpoint.shared_classifier]
    return sum(weight.nbytes for weight in own), sum(map(count, own))


def read_per_token(checkpoint: Checkpoint, test: Work) -> float:
    """Bytes that one token of a tg test has to read: its share of the weights, and its keys and values (on average)."""
    size, _ = weigh(checkpoint)
    c = checkpoint.config
    if not checkpoint.shared_classifier:  # of the embeddings a step reads only one row
        size -= checkpoint.weights["token_embedding_table"].nbytes
    return size / test.batch + 2 * 4 * c.n_layers * c.kv_dim * (test.depth + test.n_tokens / 2)


def check_memory(checkpoint: Checkpoint, tests: list[Work]) -> None:
    """MemoryError if there is no room for the weights, an array of their size to measure the memory with, and the caches."""
    c = checkpoint.config
    caches = sum(test.batch * (test.depth + test.n_tokens) for test in tests) * 2 * 4 * c.n_layers * c.kv_dim
    needed, available = 2 * weigh(checkpoint)[0] + caches, available_memory()
    if needed > available:
        found = f"found {available / 1e6:.1f} MB"
        raise MemoryError(f"{checkpoint.path}: expected {needed / 1e6:.1f} MB of free memory for these tests, {found}")


# ---------------------------------------------------------------------------
# the best number of threads


def sweep() -> list[int]:
    """The numbers of threads to try: 1 to 8, then multiples of 8 (from 64 on of 32), up to the number of cores."""
    cores = available_cores()
    return [n for n in range(1, cores + 1) if n <= 8 or n == cores or n % (8 if n <= 64 else 32) == 0]


def best_threads(results: list[Result]) -> int:
    """The fewest threads within 2% of the best. The speed of each test is taken relative to its best, then averaged."""
    best = {name: max(statistics.median(r.rates) for r in results if r.test == name) for name in {r.test for r in results}}
    scores: dict[int, list[float]] = {}
    for result in results:
        scores.setdefault(result.threads.n_threads, []).append(statistics.median(result.rates) / best[result.test])
    means = {threads: statistics.mean(values) for threads, values in scores.items()}
    return min(threads for threads, mean in means.items() if mean >= 0.98 * max(means.values()))


# ---------------------------------------------------------------------------
# printing


def machine() -> dict[str, Any]:
    """Where and when the results were measured: build, machine, date."""
    info = build_info()
    return {
        **{name: info[name] for name in ("version", "commit", "isa", "openmp")},
        "cpu": cpu_name(),
        "cores": available_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


class Writer(Protocol):
    """Prints results in one format: gets the machine's description, then the results of each model, then end()."""

    def __init__(self, info: dict[str, Any]) -> None: ...
    def rows(self, results: list[Result]) -> None: ...
    def end(self) -> None: ...


class MarkdownWriter:
    """A line about the machine, a table, and the read bandwidths."""

    COLUMNS = ("model", "size", "params", "threads", "test", "t/s", "median", "of bandwidth")

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        self.table = [self.COLUMNS]
        self.bandwidths: dict[tuple[str, int], list[float]] = {}

    def rows(self, results: list[Result]) -> None:
        for r in results:
            size, params = f"{r.size / 2**20:.2f} MiB", f"{r.params / 1e6:.2f} M"
            share = "" if r.share is None else f"{r.share:.0%}"
            rate = f"{statistics.mean(r.rates):.2f} ± {r.sd:.2f}"
            median = f"{statistics.median(r.rates):.2f}"
            self.table.append((r.model, size, params, str(r.threads), r.test, rate, median, share))
            self.bandwidths.setdefault((r.model, r.threads.n_threads), []).extend(r.bandwidths)

    def end(self) -> None:
        i = self.info
        commit = f" ({i['commit']})" if i["commit"] else ""
        on = f"{i['cpu']}, {i['cores']} cores, {i['system']}, Python {i['python']}, {i['date']}"
        put(f"llama2c {i['version']}{commit}, {i['isa']}, {'' if i['openmp'] else 'no '}OpenMP; {on}\n\n")
        put(f"{markdown_table(self.table)}\n\n")
        for (model, threads), values in self.bandwidths.items():
            speed = statistics.median(values) / 1e9
            put(f"read bandwidth of an array as large as {model}, {threads} thread{'s' * (threads > 1)}: {speed:.1f} GB/s\n")


class CsvWriter:
    """A line of names, then a line for each result, which repeats the description of the machine."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        self.lines: list[dict[str, Any]] = []

    def rows(self, results: list[Result]) -> None:
        self.lines += [{**self.info, **result.figures()} for result in results]

    def end(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.lines)
        put(text.getvalue())


class JsonWriter:
    """One object: the description of the machine, and the results with the rate of every round."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        self.results: list[dict[str, Any]] = []

    def rows(self, results: list[Result]) -> None:
        self.results += [{**result.figures(), "rates": result.rates} for result in results]

    def end(self) -> None:
        put(json.dumps({"info": self.info, "results": self.results}, indent=1) + "\n")


WRITERS: dict[str, type[Writer]] = {"md": MarkdownWriter, "csv": CsvWriter, "json": JsonWriter}
