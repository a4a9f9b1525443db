"""Compares llama2c with other programs on the same checkpoints: `python benchmarks/compare.py --c run=PATH --c runq=PATH`.

The programs take turns. Every figure is the median of several rounds, and every ratio the median of the ratios of the rounds,
so that a machine whose speed drifts does not decide it. A figure counts only if both sides gave the same result for the same
input: the same text for whole commands, the same logits for peers in this process.

C's "achieved tok/s" leaves out its first step and counts the positions of a prompt. Ours counts the tokens made after the
prompt. So decode is compared from an empty prompt, where both count the same steps: all but the first. For a prompt, C's figure
is the speed of its positions, and ours is the speed of the whole prompt at once.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from make_checkpoint import PRESETS, make_checkpoint, make_tokenizer
from measure import Curve, Measure, Record, Result, compared, peak_memory, seconds, settled, slower, take_turns, whole_run
from peers import PACKAGES, Ours, Program, ids, installed, is_quantized, our_program

from llama2c.architecture import EMBEDDING, NORMS
from llama2c.commands import bench
from llama2c.config import Config
from llama2c.formats.checkpoint import Checkpoint
from llama2c.formats.layout import make_layout
from llama2c.threads import available_cores
from llama2c.transformer import count_weights

SAME = 8  # the least number of words that two Q8_0 texts must share: one value that rounds the other way changes the rest
POSITIONS = (10, 100, 250, 500, 750, 1000)
BATCHES = (1, 2, 4, 8, 16, 32)
BARS: dict[tuple[str, str, str], float] = {  # (work, model, peer) -> the aim for the ratio, with two threads
    **{("decode", f"{shape} fp32", "run"): 1.0 for shape in ("15M", "42M", "110M")},
    **{("decode", f"{shape} fp32", "read bandwidth"): 0.93 for shape in ("15M", "42M", "110M")},
    **{("decode", f"{shape} Q8_0", "runq"): 1.8 for shape in ("42M", "110M")},
    **{("decode", f"{shape} Q8_0", "llama.cpp"): 1.3 for shape in ("42M", "110M")},
    **{("prefill", f"{shape} fp32", "run"): 12.0 for shape in ("42M", "110M")},
    **{("prefill", f"{shape} fp32", "SGEMM"): 0.85 for shape in ("42M", "110M")},
    ("prefill", "42M fp32", "llama.cpp"): 1.15,
    ("prefill", "110M fp32", "llama.cpp"): 1.0,
    **{("prefill", f"{shape} Q8_0", "llama.cpp"): 2.5 for shape in ("42M", "110M")},
}
# Ratios to llama.cpp for GGUF files of a small model (below SMALL weights), by the name of the mix: for AVX-512 with VNNI.
GGUF_BARS = {
    "decode": {"Q4_0": 1.3, "Q4_1": 2.2, "Q4_K_M": 1.5, "Q8_0": 1.4},
    "prefill": {"Q4_0": 1.5, "Q4_1": 4.0, "Q4_K_M": 2.0, "Q8_0": 2.2},
}
SMALL = 500e6
GGUF_PROMPT = 128  # tokens
FILE_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 15: "Q4_K_M", 18: "Q6_K", 25: "IQ4_NL"}


class Comparison:
    """Makes the checkpoints in a folder, and measures ours and theirs in turn."""

    def __init__(self, options: argparse.Namespace, folder: Path, c_programs: dict[str, Path], record: Record) -> None:
        self.folder, self.c_programs, self.record = folder, c_programs, record
        self.n_threads, self.rounds, self.only = options.threads, options.rounds, options.only
        self.n_decode, self.n_prompt = options.tokens, options.prompt
        self.tokenizer = folder / "tokenizer.bin"
        make_tokenizer(self.tokenizer, 32000)
        self.packages = [peer for peer in PACKAGES if installed(peer)]
        for peer in PACKAGES:
            if peer not in self.packages:
                self.skip(f"{peer.name}: {peer.packages} not installed")
        for kind, wanted in (("an fp32", False), ("a Q8_0", True)):
            if not any(is_quantized(name) == wanted for name in c_programs):
                self.skip(f"{kind} C program: not given; name one with --c {'runq' if wanted else 'run'}=PATH")

    def skip(self, line: str) -> None:
        self.record.skipped.append(line)
        print(f"left out: {line}", file=sys.stderr, flush=True)

    # -- one kind of work, against every program that can do it

    def decode(self, shape: str, group_size: int | None = None) -> None:
        """Tokens one by one from an empty context."""
        if not (path := self.wanted("decode", shape, group_size)):
            return
        kind, n = label(shape, group_size), self.n_decode
        command = our_program(path, self.tokenizer, self.n_threads)
        for program in self.programs(path, bool(group_size)):
            flags = ("-n", str(n))
            note = same_text(command, program, flags, exact=not group_size)
            self.take("decode", kind, program.name, rate_of(command, flags), rate_of(program, flags), note=note, c=True)
        ours = Ours(path, self.n_threads)
        for peer in self.peers(path, bool(group_size), ours):
            self.take("decode", kind, peer.name, settled(lambda: ours.decode(n)), settled(decode_of(peer, n)))
        self.take("decode", kind, "read bandwidth", lambda: ours.decode(n), self.bandwidth(path))

    def prefill(self, shape: str, group_size: int | None = None) -> None:
        """A prompt, until its last logits are computed."""
        if not (path := self.wanted("prefill", shape, group_size)):
            return
        kind, n = label(shape, group_size), self.n_prompt
        ours = Ours(path, self.n_threads)
        our_prefill = settled(lambda: ours.prefill(n), 5)
        command = our_program(path, self.tokenizer, self.n_threads)
        for program in self.programs(path, bool(group_size)):
            prompt = ("-i", "x" * (n - 2))  # n tokens: BOS, the leading space, and one for each byte
            note = same_text(command, program, (*prompt, "-n", str(n + 9)), exact=not group_size)
            self.take("prefill", kind, program.name, our_prefill, rate_of(program, (*prompt, "-n", str(n))), note=note, c=True)
        for peer in self.peers(path, bool(group_size), ours):
            self.take("prefill", kind, peer.name, our_prefill, settled(prefill_of(peer, n), 5))
        if not group_size:
            self.take("prefill", kind, "SGEMM", our_prefill, settled(self.sgemm(ours.transformer.config), 5))

    def gguf(self, path: Path) -> None:
        """A GGUF file as it is: decode, a prompt, the first token and memory, against llama.cpp on the same file."""
        checkpoint = Checkpoint.open(path)
        kind, mix = f"{path.stem}", FILE_TYPES.get(checkpoint.metadata.get("general.file_type", -1), checkpoint.kind)
        if self.only not in f"decode, prefill, first token, memory, {kind}":
            return
        bars = {work: aims.get(mix) for work, aims in GGUF_BARS.items()} if count_weights(checkpoint.config) < SMALL else {}
        ours, n, n_prompt = Ours(path, self.n_threads), self.n_decode, GGUF_PROMPT
        for peer in self.peers(path, True, ours):
            our_decode, our_prefill = settled(lambda: ours.decode(n)), settled(lambda: ours.prefill(n_prompt), 5)
            self.take("decode", kind, peer.name, our_decode, settled(decode_of(peer, n)), bars.get("decode"))
            self.take("prefill", kind, peer.name, our_prefill, settled(prefill_of(peer, n_prompt), 5), bars.get("prefill"))
        read_whole = [weight for name, weight in checkpoint.weights.items() if name not in (*NORMS, EMBEDDING.name)]
        n_bytes = sum(weight.nbytes for weight in read_whole)  # a shared classifier counts as the classifier
        memory = np.ones(n_bytes // 4, np.float32)
        read = lambda: bench.read_bandwidth(memory, self.n_threads) / memory.nbytes  # noqa: E731
        self.take("decode", kind, "read bandwidth", lambda: ours.decode(n), read, 0.9)
        command = [sys.executable, "-m", "llama2c", str(path), "-i", "Hello", "-n", "1", "-t", "0"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.n_threads)}
        self.take("first token", kind, "limit", timed(command, environment), lambda: 0.7, 1.0, unit="s", less=True)
        beyond = [sys.executable, __file__, "--memory-beyond", str(path), "--prompt", str(n_prompt)]
        used = lambda: peak_beyond(beyond)  # noqa: E731
        self.take("memory beyond weights and cache", kind, "limit", used, lambda: 100.0, 1.0, unit="MB", less=True)

    def tiny(self) -> None:
        """The whole command on the smallest model, minus the time of a run that makes one token."""
        if not (path := self.wanted("whole run less start-up", "260K")):
            return
        tokenizer = self.folder / "tokenizer512.bin"
        make_tokenizer(tokenizer, PRESETS["260K"].vocab_size)
        ours = our_program(path, tokenizer, self.n_threads)
        for program in self.programs(path, False, tokenizer):
            note = same_text(ours, program, ("-n", "256"), exact=True)
            measure, theirs = whole_of(ours), whole_of(program)
            self.take("whole run less start-up", "260K fp32", program.name, measure, theirs, 1.3, note=note, c=True)

    def batch(self, shape: str) -> None:
        """Sequences that share each step: 1 to 32 of them, and 16 compared with one."""
        if not (path := self.wanted("sequences together", shape)):
            return
        ours, work = Ours(path, self.n_threads), label(shape)
        n = min(32, self.n_decode)
        self.take("16 sequences together", work, "one sequence", lambda: ours.batch(16, n), lambda: ours.batch(1, 2 * n), 7.0)
        curve = Curve("batch", "sequences in a step", "tok/s", f"{work}, all sequences together", list(BATCHES))
        self.bend(curve, {"llama2c": [lambda b=b: ours.batch(b, n) for b in BATCHES]})

    def position(self, shape: str) -> None:
        """Decode at the beginning and at the end of the context, where attention has more to read."""
        if not (path := self.wanted("position", shape)):
            return
        ours, work, c = Ours(path, self.n_threads), label(shape), PRESETS[shape]
        last = min(1000, c.seq_len - 16)
        self.take(f"decode at position {last}", work, "position 10", at(ours, last), at(ours, 10), 0.78)
        x = [position for position in POSITIONS if position <= last]
        speed, size, cached = self.bandwidth(path), path.stat().st_size, 2 * 4 * c.n_layers * c.kv_dim
        curve = Curve("position", "position in the context", "tok/s", f"{work}, one token at a time", list(x))
        limits = [scaled(speed, size / (size + position * cached)) for position in x]
        self.bend(curve, {"llama2c": [at(ours, position) for position in x], "read bandwidth": limits})

    def threads(self, shape: str) -> None:
        """Decode with one thread, and up to twice as many threads as cores."""
        if not (path := self.wanted("threads", shape)):
            return
        cores = available_cores()
        counts = sorted({n for n in range(1, 2 * cores + 1) if n <= 8 or n % (cores // 2) == 0})
        flags = ("-n", str(self.n_decode))
        series: dict[str, list[Measure]] = {"llama2c": [rate_of(our_program(path, self.tokenizer, n), flags) for n in counts]}
        for name, binary in self.c_programs.items():
            if not is_quantized(name):
                series[name] = [rate_of(Program(name, [str(binary)], path, self.tokenizer, n), flags) for n in counts]
        self.bend(Curve("threads", "threads", "tok/s", f"{label(shape)}, one token at a time", list(counts)), series)

    def limits(self, shape: str) -> None:
        """Seconds from the shell to the first token, and peak memory, of whole commands."""
        if not (path := self.wanted("first token, memory", shape)):
            return
        work = label(shape)
        ours, theirs = our_program(path, self.tokenizer, self.n_threads), self.programs(path, False)
        commands = {p.name: ([*p.command, "-n"], p.environment) for p in (ours, *theirs)}
        first = {name: timed([*command, "1"], environment) for name, (command, environment) in commands.items()}
        memory = {name: peak([*command, "17"], environment) for name, (command, environment) in commands.items()}
        for peer in self.packages:
            command = [sys.executable, str(Path(__file__).with_name("peers.py")), peer.name, str(path), str(self.n_threads)]
            first[peer.name], memory[peer.name] = timed(command, None), peak(command, None)
        self.take("first token", work, "limit", first["llama2c"], lambda: 0.5, 1.0, unit="s", less=True)
        for program in theirs:
            self.take("first token", work, program.name, first["llama2c"], first[program.name], unit="s", less=True, c=True)
        beyond = [sys.executable, __file__, "--memory-beyond", str(path), "--prompt", str(self.n_prompt)]
        used = lambda: peak_beyond(beyond)  # noqa: E731
        self.take("memory beyond weights and cache", work, "limit", used, lambda: 60.0, 1.0, unit="MB", less=True)
        for name, unit, measures in (("start-up", "s", first), ("memory", "MB", memory)):
            curve = Curve(name, "", unit, f"{work} ({path.stat().st_size / 1e6:.0f} MB), whole commands", [0])
            self.bend(curve, {program: [measure] for program, measure in measures.items()})

    # -- how it is measured

    def take(
        self, work: str, kind: str, peer: str, ours: Measure, theirs: Measure, bar: float | None = None,
        unit: str = "tok/s", less: bool = False, note: str = "", c: bool = False,
    ) -> None:  # fmt: skip
        """Measures both in turn, and prints the line of the table."""
        if note.startswith("!"):
            self.skip(f"{work}, {kind}, {peer}: {note[1:]}")
            return
        bar = BARS.get((work, kind, peer), bar) if self.n_threads == 2 else bar
        result = Result(f"{work}, {kind}", unit, peer, bar, less, c, note=note)
        take_turns(result, ours, theirs, self.rounds)
        self.record.results.append(result)
        print(f"| {' | '.join(result.cells())} |", flush=True)

    def bend(self, curve: Curve, series: dict[str, list[Measure]]) -> None:
        """Measures all programs at all x in turn, round by round."""
        curve.series = {program: [[] for _ in measures] for program, measures in series.items()}
        for turn in range(self.rounds + 1):
            for i in range(len(curve.x)):
                for program, measures in series.items():
                    value = measures[i]()
                    if turn:
                        curve.series[program][i].append(value)
        self.record.curves.append(curve)

    def wanted(self, work: str, shape: str, group_size: int | None = None) -> Path | None:
        """The checkpoint for a kind of work, made if necessary. None if --only leaves it out, or if memory is too small."""
        name = label(shape, group_size)
        if self.only not in f"{work}, {name}":
            return None
        config = PRESETS[shape]
        size = make_layout(config, 2 if group_size else 0, True, group_size).file_size
        fp32 = make_layout(config, 0, True).file_size
        needed, available = size + 3 * fp32, bench.available_memory()  # ours, the buffer that is read, and two copies
        if needed > available:
            self.skip(f"{work}, {name}: expected {needed / 1e6:.0f} MB of free memory, found {available / 1e6:.0f} MB")
            return None
        path = self.folder / (f"{shape}_q{group_size}.bin" if group_size else f"{shape}.bin")
        if not path.exists() or path.stat().st_size != size:
            make_checkpoint(path, config, 2 if group_size else 0, 0, group_size)
        return path

    def programs(self, path: Path, quantized: bool, tokenizer: Path | None = None) -> list[Program]:
        """The C programs that can read this checkpoint."""
        chosen = {name: binary for name, binary in self.c_programs.items() if is_quantized(name) == quantized}
        return [Program(n, [str(b)], path, tokenizer or self.tokenizer, self.n_threads) for n, b in chosen.items()]

    def peers(self, path: Path, quantized: bool, ours: Ours) -> Iterator[Any]:
        """The installed peers for this checkpoint, one after the other. A peer with other logits than ours is left out."""
        for make in self.packages:
            if quantized and make.name != "llama.cpp":
                continue
            peer = make(path, self.n_threads)
            tokens = ids(12, ours.vocab_size)
            expected, found = ours.logits(tokens), peer.logits(tokens)
            error = float(np.abs(expected - found).max() / np.abs(expected).max())
            # llama.cpp rounds some values to 16 bits, and of blocks the scales of the activations, which moves single logits.
            limit = 0.2 if path.suffix == ".gguf" else 5e-2 if quantized else 1e-2
            if error < limit:
                yield peer
            else:
                self.skip(f"{peer.name}, {path.stem}: its logits differ from ours by {error:.2g} of the largest")

    def bandwidth(self, path: Path) -> Measure:
        """Tokens per second if decode only read memory: a loop that reads as many bytes as the checkpoint has."""
        memory = np.ones(path.stat().st_size // 4, np.float32)
        return lambda: bench.read_bandwidth(memory, self.n_threads) / memory.nbytes

    def sgemm(self, config: Config) -> Measure:
        """Tokens per second if prefill were only the products of its layers, at NumPy's speed."""
        rng, n = np.random.default_rng(0), self.n_prompt
        q_dim, kv_dim, dim, hidden = config.n_heads * config.head_size, config.kv_dim, config.dim, config.hidden_dim
        shapes = [(dim, q_dim + 2 * kv_dim), (q_dim, dim), (dim, 2 * hidden), (hidden, dim)]
        pairs = [(rng.random((n, k), np.float32), rng.random((k, m), np.float32)) for k, m in shapes]

        def measure() -> float:
            start = time.perf_counter()
            for _ in range(config.n_layers):
                for x, w in pairs:
                    np.dot(x, w)
            return n / (time.perf_counter() - start)

        return measure


def label(shape: str, group_size: int | None = None) -> str:
    return f"{shape} Q8_0" if group_size else f"{shape} fp32"


# Each of these binds its arguments: a lambda in a loop would see the last values of the loop.


def rate_of(program: Program, flags: tuple[str, ...]) -> Measure:
    return lambda: program.run(*flags).rate


def whole_of(program: Program) -> Measure:
    return lambda: whole_run(program.command, program.environment)


def decode_of(peer: Any, n: int) -> Measure:
    return lambda: float(peer.decode(n))


def prefill_of(peer: Any, n: int) -> Measure:
    return lambda: float(peer.prefill(n))


def at(ours: Ours, position: int) -> Measure:
    return lambda: ours.decode_at(position, 21)


def scaled(measure: Measure, factor: float) -> Measure:
    return lambda: measure() * factor


def timed(command: list[str], environment: dict[str, str] | None) -> Measure:
    return lambda: seconds(command, environment)


def peak(command: list[str], environment: dict[str, str] | None) -> Measure:
    return lambda: peak_memory(command, environment) / 1e6


def same_text(ours: Program, theirs: Program, flags: tuple[str, ...], exact: bool) -> str:
    """A note that compares what both print for the same flags. It begins with "!" if the figures must not count."""
    a, b = ours.run(*flags).text.split(b" "), theirs.run(*flags).text.split(b" ")
    if a == b:
        return "the same text"
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    where = f"the same text for {same} of {len(a)} words"
    return where if same >= SAME and not exact else f"!expected the same text, found {where}"


def peak_beyond(command: list[str]) -> float:
    """The megabytes that this file prints with --memory-beyond."""
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


def memory_beyond(path: Path, n_prompt: int) -> float:
    """Peak resident megabytes of this process beyond the file's pages and the cache, after a prompt and some decoding."""
    ours = Ours(path, min(2, available_cores()))
    ours.prefill(n_prompt)
    ours.decode_at(n_prompt, 20)
    config = ours.transformer.config
    cache = 8 * ours.cache.max_length * config.n_layers * config.kv_dim
    status = Path("/proc/self/status").read_text()  # getrusage would count the process that started this one
    resident = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    return (resident - path.stat().st_size - cache) / 1e6


# ---------------------------------------------------------------------------
# the command line

HEADER = ["work", "llama2c", "against", "theirs", "ratio", "aim", "met"]


def markdown(record: Record) -> str:
    """The figures as a page in Markdown."""
    info = record.info
    machine = f"{info['cpu']}, {info['cores']} cores, {info['system']}, {info['isa']}"
    build = f"llama2c {info['version']}" + (f" ({info['commit']})" if info["commit"] else "")
    lines = [
        "# Results",
        "",
        f"{info['date']}, {machine}; {build}, Python {info['python']}; {info['threads']} threads, {info['rounds']} rounds:",
        "",
        f"    {info['command']}",
        "",
        f"| {' | '.join(HEADER)} |",
        "|---|---:|---|---:|---:|---:|---|",
        *(f"| {' | '.join(result.cells())} |" for result in record.results),
        "",
    ]
    notes = [f"- {result.work}, {result.peer}: {result.note}" for result in record.results if result.note]
    if notes:
        lines += ["What both sides printed:", "", *notes, ""]
    if record.skipped:
        lines += ["Left out:", "", *(f"- {line}" for line in record.skipped), ""]
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--c", action="append", default=[], metavar="NAME=PATH", help="a C binary: run..=PATH (fp32) or runq..=PATH (Q8_0)")
    add("--gguf", action="append", default=[], type=Path, metavar="FILE", help="only GGUF files: measure FILE; may be repeated")
    add("--threads", type=at_least(1), default=min(2, available_cores()), metavar="N", help="default: 2 if there are two cores")
    add("--rounds", type=at_least(1), default=5, metavar="N", help="rounds, after one to warm up (default 5)")
    add("--tokens", type=at_least(16), default=100, metavar="N", help="tokens of one decode measurement (default 100)")
    add("--prompt", type=at_least(16), default=200, metavar="N", help="tokens of one prefill measurement (default 200)")
    add("--folder", type=Path, help="the folder for the checkpoints (default: a temporary folder)")
    add("--only", default="", metavar="TEXT", help="only work with TEXT in its name, e.g. 'prefill' or 'decode, 42M fp32'")
    add("-o", "--output", type=Path, metavar="FOLDER", help="write results.json, results.md and, with matplotlib, pictures")
    add("--against", type=Path, metavar="JSON", help="print what became slower than in this run, as a ratio to the C programs")
    add("--memory-beyond", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.command = shlex.join(["python", "benchmarks/compare.py", *(sys.argv[1:] if arguments is None else arguments)])
    return options


def at_least(least: int) -> Any:
    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a number of at least {least}, found {text!r}")
        return int(text)

    return convert


def c_programs(arguments: list[str]) -> dict[str, Path]:
    """NAME=PATH of each --c, checked."""
    programs = {}
    for text in arguments:
        name, _, path = text.partition("=")
        if not name.startswith("run") or not path:
            raise ValueError(f"--c: expected run..=PATH or runq..=PATH, found {text!r}")
        if not os.access(path, os.X_OK) or not Path(path).is_file():
            raise ValueError(f"--c {name}: not an executable file: {path}")
        programs[name] = Path(path).resolve()
    return programs


def usable(folder: Path) -> Path:
    """The folder, created if necessary. OSError, with one line, if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(f"{folder}: expected a folder to write to, found: {error.strerror}") from None


def measure_all(comparison: Comparison) -> None:
    for shape in ("15M", "42M", "110M"):
        comparison.decode(shape)
    comparison.tiny()
    comparison.decode("42M", 32)
    comparison.decode("110M", 64)
    comparison.prefill("42M")
    comparison.prefill("42M", 32)
    comparison.prefill("110M")
    comparison.prefill("110M", 64)
    comparison.batch("42M")
    comparison.position("42M")
    comparison.threads("42M")
    comparison.limits("110M")


def run(options: argparse.Namespace) -> int:
    """Measures, prints and writes. Returns 1 if --against finds something slower."""
    programs = c_programs(options.c)
    past = Record.load(options.against) if options.against else None
    if options.output:
        usable(options.output)
    info = {**bench.machine(), "threads": options.threads, "rounds": options.rounds, "command": options.command}
    record = Record(info)
    print(", ".join(f"{key} {value}" for key, value in info.items()))
    with tempfile.TemporaryDirectory() as temporary:
        comparison = Comparison(options, usable(options.folder or Path(temporary)), programs, record)
        print(f"\n| {' | '.join(HEADER)} |\n|---|---:|---|---:|---:|---:|---|", flush=True)
        for path in options.gguf:
            comparison.gguf(path)
        if not options.gguf:
            measure_all(comparison)
    if options.output:
        record.save(options.output / "results.json")
        (options.output / "results.md").write_text(markdown(record), encoding="utf-8")
        if importlib.util.find_spec("matplotlib") is None:
            print("left out: pictures: matplotlib is not installed: pip install matplotlib", file=sys.stderr)
        else:
            import pictures

            pictures.draw(record, options.output)
    if past is None:
        return 0
    lines = slower(record, past)
    n = compared(record, past)
    print(f"\n{n} ratios to C programs compared with {options.against} ({past.info['date']}): {len(lines)} slower")
    print("".join(f"slower: {line}\n" for line in lines), end="")
    return 1 if lines else 0


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.memory_beyond:
        print(memory_beyond(options.memory_beyond, options.prompt))
        return 0
    try:
        return run(options)
    except (OSError, ValueError) as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
