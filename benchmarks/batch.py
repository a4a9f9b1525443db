"""Measures files of requests: `python benchmarks/batch.py --model FILE -o benchmarks/results`.

What `python -m llama2c batch` costs beside `generate_many` in memory, how much faster it is than a loop over llama-cpp-python,
and how long a file of many finished lines takes to go on. Each work is measured once in every round (measure.py). The prompts
of a round are drawn with its number, so that no program knows them from another round.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from measure import OURS, Record, Samples, Task, peak_memory, table, take_rounds
from pages import how
from peers import DTYPES, LlamaCpp, converted, installed

import llama2c
from llama2c import Checkpoint
from llama2c.batch.lines import Shape, read_entries
from llama2c.batch.plan import dump
from llama2c.commands import bench

PROMPT, MADE = 50, 64  # tokens
WORDS = "time people water house city river winter summer road light green letter music story ship garden".split()
BATCH = [sys.executable, "-m", "llama2c", "batch"]


class Works:
    """What is measured of one model. Each method is one measurement, in the unit that `tasks` says."""

    def __init__(self, path: Path, n_threads: int, n_prompts: int, n_of_loop: int, folder: Path) -> None:
        self.path, self.n_threads, self.n_prompts, self.n_of_loop = path, n_threads, n_prompts, n_of_loop
        self.folder = folder
        self.tokenizer = llama2c.load(path, n_threads=n_threads).tokenizer
        self.excluded = dict.fromkeys(self.tokenizer.end_ids, -100.0)  # so that every text has MADE tokens
        self.rounds = dict.fromkeys(("batch", "generate_many", "loop"), 0)  # that each has begun

    def prompts(self, program: str) -> list[str]:
        """Those of the next round of a program, of PROMPT tokens."""
        rng = random.Random(self.rounds[program])
        self.rounds[program] += 1
        found = []
        for _ in range(self.n_prompts):
            text = rng.choice(WORDS)
            while len(self.tokenizer.encode(text)) < PROMPT:
                text += " " + rng.choice(WORDS)
            found.append(text)
        return found

    # ---- speed

    def batch(self) -> float:
        """The speed that the command tells, from the first line of IN to the last of OUT on the disk."""
        shared = {"max_tokens": MADE, "logit_bias": {str(token): value for token, value in self.excluded.items()}}
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            source = Path(folder, "in.jsonl")
            prompts = self.prompts("batch")
            lines = [dump({"prompt": prompt, "id": i, **shared}) for i, prompt in enumerate(prompts)]
            source.write_bytes(b"".join(lines))
            command = [*BATCH, str(self.path), str(source), "-o", f"{folder}/out", "--threads", str(self.n_threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            made, rate = re.search(r"(\d+) tokens for .* s, ([0-9.]+) tok/s$", done.stderr, re.MULTILINE).groups()  # type: ignore[union-attr]
        if int(made) != MADE * self.n_prompts:
            raise ValueError(f"expected {MADE * self.n_prompts} tokens, found {made}")
        return float(rate)

    def generate_many(self) -> float:
        llama = llama2c.load(self.path, n_threads=self.n_threads)
        prompts = [{"prompt": prompt, "seed": i} for i, prompt in enumerate(self.prompts("generate_many"))]
        start = perf_counter()
        n = sum(len(done.tokens) for done in llama.generate_many(prompts, max_tokens=MADE, logit_bias=self.excluded))
        return n / (perf_counter() - start)

    def loop(self) -> float:
        """llama-cpp-python as its readme uses it, a prompt after another. Fewer prompts, as its speed does not change."""
        import llama_cpp

        gguf = self.path.with_suffix(".gguf")
        if gguf != self.path:
            converted(self.path, gguf, dtype=DTYPES[Checkpoint.open(self.path).kind])
        n = self.n_threads
        model = llama_cpp.Llama(str(gguf), n_ctx=512, n_threads=n, n_threads_batch=n, verbose=False)
        drawn: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
        start = perf_counter()
        made = 0
        for prompt in self.prompts("loop")[: self.n_of_loop]:
            answer = model.create_completion(prompt, max_tokens=MADE, logit_bias=self.excluded, **drawn)
            made += answer["usage"]["completion_tokens"]
        return made / (perf_counter() - start)


class Resumed:
    """A file whose lines are done but for the last one."""

    def __init__(self, n: int, folder: Path) -> None:
        self.n = n
        self.source, self.out = folder / f"{n}.jsonl", folder / f"{n}.out"
        self.source.write_bytes(b"".join(self.requests()) + dump({"id": "new", "prompt": "The dog", "max_tokens": 1}))
        first = folder / "first.jsonl"
        first.write_bytes(dump({"prompt": "", "max_tokens": 1}))
        subprocess.run([*BATCH, str(first), "-o", str(self.out), "--restart"], check=True, capture_output=True)
        header = self.out.read_bytes().partition(b"\n")[0] + b"\n"
        with open(self.source, "rb", 0) as file, open(self.out, "wb") as out:
            out.write(header)
            for entry in read_entries(file.read, Shape(), str(self.source)):
                if entry.id != "new":
                    out.write(self.answer(entry.id, entry.request))
        self.begun = self.out.stat().st_size

    def requests(self) -> Iterator[bytes]:
        rest = " ".join(["word"] * (PROMPT - 5))
        return (dump({"id": f"request-{i}", "prompt": f"{i} {rest}", "max_tokens": MADE}) for i in range(self.n))

    def answer(self, id: str | int, request: int) -> bytes:
        """A line of OUT as long as that of a text of MADE tokens."""
        return dump(
            {
                "id": id, "request": f"{request:016x}", "text": "x" * 4 * MADE, "finish_reason": "length",
                "prompt_tokens": PROMPT, "generation_tokens": MADE, "seed": 123456789, "error": None,
            }
        )  # fmt: skip

    def command(self) -> list[str]:
        """Answers the line that is new."""
        with open(self.out, "r+b") as file:
            file.truncate(self.begun)
        return [*BATCH, str(self.source), "-o", str(self.out), "--timings", "/dev/stdout"]

    def seconds(self) -> float:
        """From the start of the command to the first answer that is new."""
        start = perf_counter()
        with subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            if b'"new"' not in process.stdout.readline():
                raise ValueError("expected the last line to be answered")
            return perf_counter() - start

    def memory(self) -> float:
        """Megabytes, with the pages of the model that are mapped."""
        return peak_memory(self.command()) / 1e6


def tasks_of(works: Works, record: Record, with_peer: bool) -> list[Task]:
    """The tasks of a model. Their samples are added to the record."""
    work = f"{works.n_prompts:,} prompts of {PROMPT} tokens, {MADE} made"
    measures = [(OURS, works.batch, None), ("generate_many", works.generate_many, 0.97)]
    if with_peer:
        measures.append(("a loop over llama-cpp-python", works.loop, 5.0))
    tasks = []
    for program, measure, aim in measures:
        record.samples.append(Samples(work, works.path.stem, program, aim=aim))
        tasks.append(Task(record.samples[-1], measure))
    return tasks


def tasks_of_resume(n: int, folder: Path, record: Record) -> list[list[Task]]:
    one, many = Resumed(0, folder), Resumed(n, folder)
    groups = []
    for work, unit, limit, name in (
        (f"first answer after {n:,} finished lines", "s", 10.0, "seconds"),
        (f"memory with {n:,} finished lines", "MB", 200.0, "memory"),
    ):
        record.samples.append(Samples(work, "bundled model", OURS, unit, limit=limit))
        ours = Task(record.samples[-1], getattr(many, name))
        record.samples.append(Samples(work, "bundled model", "none finished", unit))
        groups.append([ours, Task(record.samples[-1], getattr(one, name))])
    return groups


def markdown(record: Record) -> str:
    return "\n".join(["# Files of requests", "", f"{how(record.info)}:", "", *table(record.rows()), ""])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", action="append", default=[], type=Path, metavar="FILE", help="may be repeated")
    add("--threads", type=int, default=2, metavar="N", help="default 2")
    add("--rounds", type=int, default=3, metavar="N", help="rounds, after one to warm up (default 3)")
    add("--prompts", type=int, default=1000, metavar="N", help="default 1000")
    add("--loop", type=int, default=30, metavar="N", help="prompts of the loop over llama-cpp-python (default 30)")
    add("--lines", type=int, default=1_000_000, metavar="N", help="finished lines (default 1,000,000)")
    add("--no-llama-cpp", action="store_true", help="leave llama.cpp out, although llama-cpp-python is installed")
    add("-o", "--output", type=Path, metavar="FOLDER", help="write batch.json and batch.md")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    command = "python benchmarks/batch.py " + " ".join(sys.argv[1:] if arguments is None else arguments)
    asked = {"threads": options.threads, "rounds": options.rounds, "command": command}
    record = Record({**bench.machine(), **asked})
    with_peer = installed(LlamaCpp) and not options.no_llama_cpp
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            groups = []
            for path in options.model:
                works = Works(path, options.threads, options.prompts, options.loop, folder)
                groups.append(tasks_of(works, record, with_peer))
            groups += tasks_of_resume(options.lines, folder, record)
            take_rounds(groups, options.rounds)
            print(markdown(record))
            if options.output:
                record.save(options.output / "batch.json")
                (options.output / "batch.md").write_text(markdown(record), encoding="utf-8")
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            print(f"batch: error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
