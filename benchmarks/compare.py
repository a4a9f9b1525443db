"""llama2c against others on the same checkpoints, in one run: `python benchmarks/compare.py --c run=PATH --c runq=PATH`.

The programs take turns. Every figure is the median of several rounds, every ratio the median of the ratios round by round, so
that a machine whose speed drifts does not decide it. Read bandwidth and SGEMM are measured in the same rounds. C's "achieved
tok/s" counts the steps after the first, prompt positions too; ours are counted the same way. Absent peers are named.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from make_checkpoint import PRESETS, make_checkpoint, make_tokenizer
from peers import CProgram, LlamaCpp, Ours, write_gguf

import llama2c
from llama2c import _kernels
from llama2c.checkpoint import Checkpoint
from llama2c.config import Config

Measure = Callable[[], float]
DECODED = 100  # tokens of one decode measurement
PROMPT = 200  # tokens of one prefill measurement


@dataclass
class Result:
    """One line of the table: what was measured, ours and theirs in each round, and the ratio that is asked for."""

    work: str
    unit: str
    peer: str
    bar: float
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    less_is_better: bool = False

    @property
    def ratio(self) -> float:
        """How many times better ours is."""
        ratio = statistics.median(a / b for a, b in zip(self.ours, self.theirs, strict=True))
        return 1 / ratio if self.less_is_better else ratio

    def row(self) -> str:
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        cells = [self.work, f"{ours:.4g} {self.unit}", f"{self.peer} {theirs:.4g}", f"{self.ratio:.2f}", f"{self.bar:.2f}"]
        return f"| {' | '.join(cells)} | {'yes' if self.ratio >= self.bar else 'no'} |"


class Comparison:
    """Makes the checkpoints it needs in a folder, and takes measurements in turn."""

    def __init__(self, folder: Path, c_programs: dict[str, Path], n_threads: int, rounds: int, only: str = "") -> None:
        self.folder, self.c_programs, self.n_threads, self.rounds = folder, c_programs, n_threads, rounds
        self.only = only
        self.results: list[Result] = []
        self.skipped: list[str] = []
        self.tokenizer = folder / "tokenizer.bin"
        make_tokenizer(self.tokenizer, 32000)
        self.has_llama_cpp = all(importlib.util.find_spec(name) is not None for name in ("gguf", "llama_cpp"))
        if not self.has_llama_cpp:
            self.skipped.append("llama.cpp: the packages llama-cpp-python and gguf are not installed")
        for name in ("run", "runq"):
            if name not in c_programs:
                self.skipped.append(f"{name}: no binary was named with --c {name}=PATH")

    # -- what is compared

    def decode(self, shape: str, group_size: int | None = None) -> None:
        path = self.checkpoint(shape, group_size)
        ours = Ours(path, self.n_threads)
        work = f"decode {label(shape, group_size)}"
        entries: list[tuple[str, float, Measure]] = []
        program = "runq" if group_size else "run"
        if program in self.c_programs:
            peer = CProgram(self.c_programs[program], path, self.tokenizer, self.n_threads, program)
            entries.append((program, 1.8 if group_size else 1.0, lambda: peer.decode(DECODED)))
        if self.has_llama_cpp:
            theirs = LlamaCpp(self.gguf(path, bool(group_size)), self.n_threads, "llama.cpp")
            entries.append(("llama.cpp", 1.3 if group_size else 1.0, lambda: theirs.decode(DECODED)))
        if not group_size:
            entries.append(("read bandwidth", 0.93, self.bandwidth(path)))
        self.take(work, "tok/s", lambda: ours.decode(DECODED), entries)

    def prefill(self, shape: str, group_size: int | None = None) -> None:
        path = self.checkpoint(shape, group_size)
        ours = Ours(path, self.n_threads)
        entries: list[tuple[str, float, Measure]] = []
        if not group_size:
            entries.append(("SGEMM", 0.85, settled(self.sgemm(ours.transformer.config))))
            if "run" in self.c_programs:
                peer = CProgram(self.c_programs["run"], path, self.tokenizer, self.n_threads, "run")
                entries.append(("run", 12.0, lambda: peer.prefill(PROMPT)))
        if self.has_llama_cpp:
            bar = 2.5 if group_size else 1.15 if shape == "42M" else 1.0
            theirs = LlamaCpp(self.gguf(path, bool(group_size)), self.n_threads, "llama.cpp")
            entries.append(("llama.cpp", bar, settled(lambda: theirs.prefill(PROMPT))))
        self.take(f"prefill of {PROMPT}, {label(shape, group_size)}", "tok/s", settled(lambda: ours.prefill(PROMPT)), entries)

    def batch(self, shape: str, n_sequences: int) -> None:
        ours = Ours(self.checkpoint(shape), self.n_threads)
        entries: list[tuple[str, float, Measure]] = [("one sequence", 7.0, lambda: ours.decode(65))]
        self.take(f"{n_sequences} sequences together, fp32 {shape}", "tok/s", lambda: ours.batch(n_sequences, 32), entries)

    def position(self, shape: str) -> None:
        ours = Ours(self.checkpoint(shape), self.n_threads)
        ours.decode_at(960, 2)
        entries: list[tuple[str, float, Measure]] = [("position 10", 0.78, lambda: ours.decode_at(0, 21))]
        late = Ours(self.checkpoint(shape), self.n_threads)
        late.decode_at(985, 2)
        self.take(f"decode at position 1000, fp32 {shape}", "tok/s", lambda: late.decode_at(985, 31), entries)

    def tiny(self) -> None:
        """The whole command on the smallest model, less the time of a run that makes one token."""
        path, tokenizer = self.checkpoint("260K"), self.folder / "tokenizer512.bin"
        make_tokenizer(tokenizer, 512)
        if "run" not in self.c_programs:
            return
        flags = [str(path), "-z", str(tokenizer), "-t", "0"]
        ours = [sys.executable, "-m", "llama2c", *flags, "--threads", str(self.n_threads)]
        theirs = [str(self.c_programs["run"]), *flags]
        entries: list[tuple[str, float, Measure]] = [("run", 1.3, lambda: whole_run(theirs))]
        self.take("260K through the command line, less start-up", "tok/s", lambda: whole_run(ours), entries)

    def limits(self, shape: str) -> None:
        """Seconds from the shell to the first token; peak memory beyond the checkpoint's pages and the cache, in MB."""
        path = self.checkpoint(shape)
        one_token = [sys.executable, "-m", "llama2c", str(path), "-z", str(self.tokenizer), "-n", "1"]
        memory = [sys.executable, __file__, "--peak-memory", str(path)]
        limit: Measure = lambda: 0.5  # noqa: E731
        self.take(f"first token of {shape}", "s", lambda: seconds(one_token), [("limit", 1.0, limit)], less_is_better=True)
        peak = lambda: float(subprocess.run(memory, check=True, capture_output=True).stdout)  # noqa: E731
        self.take(f"memory beyond weights and cache, {shape}", "MB", peak, [("limit", 1.0, lambda: 60.0)], less_is_better=True)

    # -- how it is measured

    def take(
        self, work: str, unit: str, ours: Measure, entries: list[tuple[str, float, Measure]], less_is_better: bool = False
    ) -> None:
        """Measure ours and each peer in turn."""
        if self.only not in work:
            return
        results = [Result(work, unit, peer, bar, less_is_better=less_is_better) for peer, bar, _ in entries]
        for turn in range(self.rounds + 1):  # the first warms up
            for result, (_, _, theirs) in zip(results, entries, strict=True):
                a, b = ours(), theirs()
                if turn:
                    result.ours.append(a)
                    result.theirs.append(b)
        for result in results:
            print(result.row(), flush=True)
        self.results += results

    def bandwidth(self, path: Path) -> Measure:
        """Tokens a second if decode did nothing but read: the memory's speed on as many bytes as the checkpoint has."""
        buffer = np.ones(path.stat().st_size // 4, np.float32)

        def measure() -> float:
            times = []
            for _ in range(5):
                start = time.perf_counter()
                _kernels.read_all(buffer, self.n_threads)
                times.append(time.perf_counter() - start)
            return 1 / statistics.median(times)

        return measure

    def sgemm(self, config: Config) -> Measure:
        """Tokens a second if prefill were nothing but the products of its layers, each at NumPy's speed."""
        rng = np.random.default_rng(0)
        q_dim, kv_dim, dim, hidden = config.n_heads * config.head_size, config.kv_dim, config.dim, config.hidden_dim
        shapes = [(dim, q_dim + 2 * kv_dim), (q_dim, dim), (dim, 2 * hidden), (hidden, dim)]
        pairs = [(rng.random((PROMPT, n), np.float32), rng.random((n, m), np.float32)) for n, m in shapes]

        def measure() -> float:
            start = time.perf_counter()
            for _ in range(config.n_layers):
                for x, w in pairs:
                    np.dot(x, w)
            return PROMPT / (time.perf_counter() - start)

        return measure

    def checkpoint(self, shape: str, group_size: int | None = None) -> Path:
        path = self.folder / (f"{shape}_q{group_size}.bin" if group_size else f"{shape}.bin")
        if not path.exists():
            make_checkpoint(path, PRESETS[shape], 2 if group_size else 0, 0, group_size)
        return path

    def gguf(self, checkpoint: Path, quantized: bool) -> Path:
        path = checkpoint.with_suffix(".gguf")
        if not path.exists():
            write_gguf(Checkpoint.open(checkpoint), path, quantized)
        return path


def label(shape: str, group_size: int | None) -> str:
    return f"Q8_0 {shape} (group {group_size})" if group_size else f"fp32 {shape}"


def seconds(command: list[str]) -> float:
    """Of a whole command. What it prints goes into a file: a reader at the other end of a pipe would take a core from it."""
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=output, stderr=subprocess.DEVNULL)
        return time.perf_counter() - start


def whole_run(command: list[str]) -> float:
    """Tokens a second of a whole command: 256 tokens, less what a run of one token takes; medians, since start-up varies."""
    times = [[seconds([*command, "-n", n]) for n in ("256", "1")] for _ in range(15)]
    whole, start_up = (statistics.median(column) for column in zip(*times, strict=True))
    return 255 / max(whole - start_up, 1e-6)


def settled(measure: Measure) -> Measure:
    """The median of five, after one that wakes up what the other program has put to sleep.

    Before that a pause: the threads of OpenBLAS spin on for a tenth of a second when their work is done, on our cores.
    """

    def measure_settled() -> float:
        time.sleep(0.4)
        measure()
        return statistics.median(measure() for _ in range(5))

    return measure_settled


def peak_memory(path: Path) -> float:
    """Peak resident megabytes of this process beyond the file's pages and the cache, after a prompt and some decoding."""
    ours = Ours(path, 2)
    ours.prefill(PROMPT)
    ours.decode_at(PROMPT, 20)
    cache = 8 * ours.cache.max_length * ours.transformer.config.n_layers * ours.transformer.config.kv_dim
    status = Path("/proc/self/status").read_text()  # getrusage would count the process that started this one
    peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    return (peak - path.stat().st_size - cache) / 1e6


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--c", action="append", default=[], metavar="NAME=PATH", help="a C binary: run=PATH or runq=PATH")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where checkpoints are made and kept (default: a temporary folder)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only what has this in its name, e.g. 'prefill'")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--peak-memory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peak_memory:
        print(peak_memory(options.peak_memory))
        return 0
    programs = {name: Path(path).resolve() for name, _, path in (text.partition("=") for text in options.c)}
    for name, path in programs.items():
        if name not in ("run", "runq") or not path.is_file():
            print(f"compare: error: --c: expected run=PATH or runq=PATH with a binary, found {name}={path}", file=sys.stderr)
            return 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        comparison = Comparison(folder, programs, options.threads, options.rounds, options.only)
        info = {**llama2c.build_info(), "machine": platform.machine(), "threads": options.threads, "rounds": options.rounds}
        print(", ".join(f"{key} {value}" for key, value in info.items()))
        for line in comparison.skipped:
            print(f"left out: {line}")
        print("\n| work | llama2c | against | ratio | bar | met |\n|---|---|---|---|---|---|", flush=True)
        for shape in ("15M", "42M", "110M"):
            comparison.decode(shape)
        comparison.tiny()
        comparison.decode("42M", 32)
        comparison.decode("110M", 64)
        for group_size in (None, 32):
            comparison.prefill("42M", group_size)
        for group_size in (None, 64):
            comparison.prefill("110M", group_size)
        comparison.batch("42M", 16)
        comparison.position("42M")
        comparison.limits("110M")
    if options.output:
        figures = [{**asdict(result), "ratio": result.ratio} for result in comparison.results]
        options.output.write_text(json.dumps({"info": info, "results": figures}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
