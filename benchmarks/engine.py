"""Measures many requests at once: `python benchmarks/engine.py --model FILE -o benchmarks/results`.

What an Engine, its memory of prefixes and its guesses save, against the same work without them, and against llama.cpp where it
does the same. Each work is measured once in every round (measure.py). Texts are drawn with seeds, so all rounds make the same.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from measure import OURS, Measure, Record, Samples, Task, table, take_rounds
from pages import how
from peers import LlamaCpp, installed

import llama2c
from llama2c import Engine, Llama, chat_ids
from llama2c.commands import bench
from llama2c.engine.prefixes import Prefixes

TOGETHER = 16
COMMON, OWN, MADE = 200, 20, 8  # tokens of prompts that begin alike, and of each text
N_SAMPLES = 8
SAMPLE_TOKENS = 16
TURNS = 8
TURN_TOKENS = 50
LONG = 1000  # tokens of a prompt that joins, or is restored
STREAMS = 4  # texts beside it
EDIT = """\
Repeat this with one word changed: The committee met on Tuesday in the old town hall to talk about the new bridge over the \
river, which will cost twelve million euros and take three years to build. The mayor said that the town could not wait any \
longer, and that the bridge would bring more visitors to the shops along the river."""
STORY = "Once upon a time there was a lighthouse at the end of the world."


def timed(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


class Works:
    """What is measured of one model. Each method is one measurement, in the unit that `tasks` says."""

    def __init__(self, path: Path, n_threads: int, n_prompts: int, n_tokens: int, long: int, llama_cpp: bool) -> None:
        self.path, self.n_prompts, self.n_tokens, self.long = path, n_prompts, n_tokens, long
        self.llama = llama2c.load(path, n_threads=n_threads)
        self.plain = Llama(self.llama.transformer, self.llama.tokenizer, drafts=False)
        self.peer = LlamaCpp(path, n_threads) if llama_cpp else None
        rng = random.Random(1)
        self.vocab_size = self.llama.transformer.config.vocab_size
        self.common = self.some_ids(rng, COMMON)
        self.alike = [self.common + self.some_ids(rng, OWN) for _ in range(n_prompts)]
        self.unlike = [self.some_ids(rng, COMMON + OWN) for _ in range(n_prompts)]
        self.joining = self.some_ids(rng, long)
        self.gap = 0.0  # the 99th percentile of the last measurement of `joined`, in ms; and that before the prompt
        self.gap_before = 0.0

    def some_ids(self, rng: random.Random, n: int) -> list[int]:
        return [rng.randrange(min(300, self.vocab_size // 2), self.vocab_size) for _ in range(n)]

    # ---- many texts at once

    def prompts(self, n: int) -> list[str]:
        return [f"Once upon a time, number {i}" for i in range(n)]

    def together(self) -> float:
        n = 2 * TOGETHER
        start = perf_counter()
        done = list(self.llama.generate_many(self.prompts(n), max_sequences=TOGETHER, max_tokens=self.n_tokens, seed=1))
        return sum(len(one.tokens) for one in done) / (perf_counter() - start)

    def forward_batch(self) -> float:
        """The model alone, without draws."""
        transformer = self.llama.transformer
        caches = [transformer.new_cache() for _ in range(TOGETHER)]
        out = np.empty((TOGETHER, self.vocab_size), np.float32)
        ids = map(self.llama.tokenizer.encode, self.prompts(TOGETHER))
        transformer.forward_batch(list(zip(ids, caches, strict=True)), out=out)
        parts = [([9], cache) for cache in caches]
        took = timed(lambda: [transformer.forward_batch(parts, out=out) for _ in range(self.n_tokens)])
        return TOGETHER * self.n_tokens / took

    def one_after_another(self) -> float:
        start = perf_counter()
        done = [self.llama.generate(prompt, max_tokens=self.n_tokens, seed=1) for prompt in self.prompts(3)]
        return sum(len(one.tokens) for one in done) / (perf_counter() - start)

    def batch_of_peer(self) -> float:
        """llama_batch with a token of each sequence in a step, without draws."""
        assert self.peer is not None
        peer = self.peer.with_context(TOGETHER, self.n_tokens + 1)
        took = timed(lambda: [peer.each([9] * TOGETHER) for _ in range(self.n_tokens)])
        return TOGETHER * self.n_tokens / took

    # ---- what is computed once

    def begin_alike(self) -> float:
        return timed(lambda: list(self.llama.generate_many(self.alike, max_tokens=MADE, seed=1)))

    def begin_unlike(self) -> float:
        return timed(lambda: list(self.llama.generate_many(self.unlike, max_tokens=MADE, seed=1)))

    def samples(self) -> float:
        with Engine(self.llama, prefix_bytes=0) as engine:
            asked: Any = {"seed": 1, "max_tokens": SAMPLE_TOKENS}
            return timed(lambda: [request.result() for request in engine.submit(self.common, n=N_SAMPLES, **asked)])

    def samples_alone(self) -> float:
        return timed(lambda: [self.llama.generate(self.common, seed=i, max_tokens=SAMPLE_TOKENS) for i in range(N_SAMPLES)])

    def restored(self) -> float:
        """From a file to the first token."""
        cache = self.llama.transformer.new_cache()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "prefixes"
            known = Prefixes(self.llama.transformer, 1 << 30)
            self.llama.transformer.forward(self.joining, cache)
            known.add(self.joining, cache)
            known.save(path, "")

            def restore() -> None:
                new = self.llama.transformer.new_cache()
                found = Prefixes(self.llama.transformer, 1 << 30)
                found.load(path, "")
                if found.fill(new, [*self.joining, 5]) != len(self.joining):
                    raise ValueError("expected the whole prompt to be restored")
                self.llama.transformer.forward([5], new)

            return timed(restore)

    def computed(self) -> float:
        cache = self.llama.transformer.new_cache()
        return timed(lambda: self.llama.transformer.forward([*self.joining, 5], cache))

    # ---- guesses

    def editing(self, llama: Llama) -> float:
        start = perf_counter()
        done = llama.chat([{"role": "user", "content": EDIT}], temperature=0.0, max_tokens=2 * self.n_tokens)
        return len(done.tokens) / (perf_counter() - start)

    def story(self, llama: Llama) -> float:
        start = perf_counter()
        done = llama.generate(STORY, seed=1, max_tokens=2 * self.n_tokens)
        return len(done.tokens) / (perf_counter() - start)

    # ---- a chat

    def turn(self) -> float:
        """Seconds to the first token of the last turn."""
        messages: list[dict[str, str]] = []
        for i in range(TURNS):
            messages.append({"role": "user", "content": f"Tell me something new about the number {i} and the sea, please."})
            start = perf_counter()
            pieces = self.llama.chat(messages, stream=True, seed=i, max_tokens=TURN_TOKENS)
            first = next(pieces)
            took = perf_counter() - start
            messages.append({"role": "assistant", "content": first.text + "".join(piece.text for piece in pieces)})
        self.last_ids = chat_ids(self.llama.tokenizer, messages[:-1])
        self.known_ids = chat_ids(self.llama.tokenizer, messages[:-3])
        return took

    def turn_of_peer(self) -> float:
        """The same last turn, of which the cache has all but the last question and the template around it."""
        assert self.peer is not None
        known = len(self.known_ids) + TURN_TOKENS
        peer = self.peer.with_context(1, len(self.last_ids) + 8)
        peer.feed(self.last_ids[:known])
        return timed(lambda: peer.feed(self.last_ids[known:]).argmax())

    # ---- a long prompt beside running texts

    def joined(self) -> float:
        times: list[list[float]] = [[] for _ in range(STREAMS)]
        flowing = threading.Barrier(STREAMS + 1)
        with Engine(self.llama, prefix_bytes=0, drafts=False) as engine:

            def read(i: int) -> None:
                eos = self.llama.tokenizer.eos_id
                asked: Any = {"logit_bias": {} if eos is None else {eos: -100.0}, "seed": i}
                for n, _ in enumerate(engine.submit(f"Once upon a time {i}", max_tokens=None, **asked)):
                    times[i].append(perf_counter())
                    if n == self.n_tokens:
                        flowing.wait()
                    if done.is_set():
                        return

            done = threading.Event()
            readers = [threading.Thread(target=read, args=(i,)) for i in range(STREAMS)]
            for reader in readers:
                reader.start()
            flowing.wait()
            start = perf_counter()
            engine.submit(self.joining, max_tokens=1, seed=1).result()
            end = perf_counter()
            done.set()
            for reader in readers:
                reader.join()
        self.gap = percentile([gap for own in times for gap in gaps(own, start, end)])
        self.gap_before = percentile([gap for own in times for gap in gaps(own[self.n_tokens // 2 :], 0.0, start)])
        return len(self.joining) / (end - start)

    def undisturbed(self) -> float:
        with Engine(self.llama, prefix_bytes=0, drafts=False) as engine:
            return len(self.joining) / timed(lambda: engine.submit(self.joining, max_tokens=1, seed=1).result())

    # ---- all

    def groups(self, record: Record, guesses: bool) -> list[list[Task]]:
        """The tasks, by what is compared. Their samples are added to the record."""

        def group(work: str, unit: str, *measures: tuple[str, Measure, float | None], limit: float | None = None) -> list[Task]:
            tasks = []
            for program, measure, aim in measures:
                own = limit if program == OURS else None
                record.samples.append(Samples(work, self.path.stem, program, unit, aim=aim, limit=own))
                tasks.append(Task(record.samples[-1], measure))
            return tasks

        batch: list[tuple[str, Measure, float | None]] = [
            (OURS, self.together, None),
            ("forward_batch alone", self.forward_batch, 0.90),
            ("one after another", self.one_after_another, None),
        ]
        if self.peer is not None:
            batch.append(("llama.cpp", self.batch_of_peer, 2.0))
        groups = [group(f"{TOGETHER} texts at once", "tok/s", *batch)]
        if not guesses:
            return groups
        alike = f"{self.n_prompts} prompts of {COMMON} + {OWN} tokens, {MADE} made"
        groups += [
            group(alike, "s", (OURS, self.begin_alike, None), ("nothing in common", self.begin_unlike, 4.0)),
            group(
                f"{N_SAMPLES} samples of one prompt of {COMMON} tokens", "s",
                (OURS, self.samples, None), ("one after another", self.samples_alone, 3.0),
            ),
            group(
                f"prompt of {self.long} tokens from a file", "s",
                (OURS, self.restored, None), ("computed", self.computed, 10.0),
            ),
            group(
                "a text with one word changed", "tok/s",
                (OURS, lambda: self.editing(self.llama), None), ("without guesses", lambda: self.editing(self.plain), 2.0),
            ),
            group(
                "a free story", "tok/s",
                (OURS, lambda: self.story(self.llama), None), ("without guesses", lambda: self.story(self.plain), 0.97),
            ),
            group(
                f"prompt of {self.long} tokens beside {STREAMS} texts", "tok/s",
                (OURS, self.joined, None), ("alone", self.undisturbed, 0.75),
            ),
        ]  # fmt: skip
        peer = ("all computed", self.turn_computed) if self.peer is None else ("llama.cpp", self.turn_of_peer)
        turn = group(f"first token at turn {TURNS} of a chat", "s", (OURS, self.turn, None), (*peer, None), limit=0.05)
        gap = group(
            "gap between tokens beside that prompt, 99th percentile", "ms",
            (OURS, lambda: self.gap, None), ("before it", lambda: self.gap_before, None), limit=60.0,
        )  # fmt: skip
        return [*groups, turn, gap]

    def turn_computed(self) -> float:
        cache = self.llama.transformer.new_cache()
        return timed(lambda: self.llama.transformer.forward(self.last_ids, cache))


def gaps(times: list[float], start: float, end: float) -> list[float]:
    """Milliseconds between tokens, of those that come from `start` to `end`."""
    return [1000 * (b - a) for a, b in itertools.pairwise(times) if start <= b <= end]


def percentile(values: list[float]) -> float:
    """The 99th."""
    return float(np.percentile(values, 99))


def markdown(record: Record) -> str:
    return "\n".join(["# Many requests at once", "", f"{how(record.info)}:", "", *table(record.rows()), ""])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", action="append", type=Path, metavar="FILE", help="the first: all works; others: texts at once")
    add("--threads", type=int, default=2, metavar="N", help="default 2")
    add("--rounds", type=int, default=5, metavar="N", help="rounds, after one to warm up (default 5)")
    add("--prompts", type=int, default=60, metavar="N", help="prompts that begin alike (default 60)")
    add("--tokens", type=int, default=60, metavar="N", help="tokens of a text (default 60)")
    add("--long", type=int, default=LONG, metavar="N", help=f"tokens of a long prompt (default {LONG})")
    add("--no-llama-cpp", action="store_true", help="leave llama.cpp out, although llama-cpp-python is installed")
    add("-o", "--output", type=Path, metavar="FOLDER", help="write engine.json and engine.md")
    options = parser.parse_args(arguments)
    if not options.model:
        parser.error("--model: needs at least one")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    command = "python benchmarks/engine.py " + " ".join(sys.argv[1:] if arguments is None else arguments)
    asked = {"threads": options.threads, "rounds": options.rounds, "command": command}
    record = Record({**bench.machine(), **asked})
    with_peer = installed(LlamaCpp) and not options.no_llama_cpp
    try:
        groups = []
        for i, path in enumerate(options.model):
            works = Works(path, options.threads, options.prompts, options.tokens, options.long, with_peer)
            groups += works.groups(record, guesses=i == 0)
        take_rounds(groups, options.rounds)
        print(markdown(record))
        if options.output:
            record.save(options.output / "engine.json")
            (options.output / "engine.md").write_text(markdown(record), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"engine: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
