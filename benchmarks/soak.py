"""Decodes for minutes and checks that memory does not grow: `python benchmarks/soak.py --minutes 10`, or `make soak`.

Jobs of seven kinds (stories, streams that are left, chats, batches, caches cut back and filled again, many prompts, requests to
an engine that all jobs share) run on one thread and on two, one after the other and many at once. Each job depends only on its
number, and must give the same result every time. After a warm-up, the memory of the process must no longer grow. This does not
measure speed. The exit code is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import random
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import llama2c
from llama2c.transformer import KVCache

KNOWN = 40  # jobs that run in every round; their results must not change
NEW = 10  # new jobs of a round: each runs on one thread and on two
REMEMBERED = 1 << 20  # bytes of earlier texts, of chats and of an engine: so few that they are soon full
WARM_UP = 0.2  # the share of the time before memory is measured
GROWTH = 4 << 20  # bytes that the process may grow by after that
WORDS = "Once upon a time there was little dog who had big red ball and she said I am happy because 日本 é \x00 !".split(" ")
Job = Callable[[llama2c.Llama, random.Random], bytes]


def options(rng: random.Random) -> dict[str, float | int]:
    return {
        "max_tokens": rng.randrange(1, 120),
        "temperature": rng.choice([0.0, 0.7, 1.0, 1.5]),
        "top_p": rng.choice([0.0, 0.5, 0.9, 1.0]),
        "top_k": rng.choice([0, 0, 1, 20]),
        "min_p": rng.choice([0.0, 0.0, 0.05]),
        "repetition_penalty": rng.choice([1.0, 1.0, 1.2]),
        "seed": rng.randrange(2**64),
    }


def prompt(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randrange(40)))


def tokens(llama: llama2c.Llama, rng: random.Random, most: int) -> list[int]:
    return [rng.randrange(llama.transformer.config.vocab_size) for _ in range(rng.randrange(1, most))]


def story(llama: llama2c.Llama, rng: random.Random) -> bytes:
    done = llama.generate(prompt(rng), stop=rng.choice(["", ".", "the end"]) or (), logprobs=rng.choice([0, 3]), **options(rng))
    return repr((done.tokens, done.text, done.logprobs)).encode()


def left_stream(llama: llama2c.Llama, rng: random.Random) -> bytes:
    pieces, n = llama.stream(prompt(rng), **options(rng)), rng.randrange(1, 30)
    return repr([piece.text for _, piece in zip(range(n), pieces, strict=False)]).encode()


def chat(llama: llama2c.Llama, rng: random.Random) -> bytes:
    messages = [{"role": "system", "content": prompt(rng)}] if rng.random() < 0.5 else []
    messages.append({"role": "user", "content": " ".join(rng.choices(WORDS, k=8))})
    return llama.chat(messages, **options(rng)).text.encode()


def batch(llama: llama2c.Llama, rng: random.Random) -> bytes:
    """Sequences that join and leave from step to step."""
    sequences: list[KVCache] = []
    digest = hashlib.sha256()
    for _ in range(12):
        if len(sequences) < 8:
            sequences.append(llama.transformer.new_cache(100))
        chosen = rng.sample(sequences, rng.randrange(1, len(sequences) + 1))
        digest.update(llama.transformer.forward_batch([(tokens(llama, rng, 8), cache) for cache in chosen]))
        if rng.random() < 0.3:
            sequences.pop(rng.randrange(len(sequences)))
    return digest.digest()


def cut_back(llama: llama2c.Llama, rng: random.Random) -> bytes:
    """One cache, filled and cut again and again. Some requests are too long for it."""
    cache, digest = llama.transformer.new_cache(rng.randrange(60, 256)), hashlib.sha256()
    for _ in range(12):
        try:
            digest.update(llama.transformer.forward(tokens(llama, rng, 80), cache, logits=None if rng.random() < 0.5 else 1))
        except ValueError as error:
            digest.update(str(error).encode())
        cache.truncate(rng.randrange(cache.length + 1))
    return digest.digest()


def many(llama: llama2c.Llama, rng: random.Random) -> bytes:
    """Prompts with a beginning in common, bad ones among them, in an engine that has little room."""
    common = tokens(llama, rng, 60)
    prompts = [common + tokens(llama, rng, 20) if rng.random() < 0.9 else [] for _ in range(rng.randrange(1, 12))]
    small = {"max_sequences": rng.randrange(1, 9), "cache_bytes": 4 << 20, "prefix_bytes": rng.choice([0, 1 << 18])}
    chosen = {**options(rng), "max_tokens": rng.randrange(1, 20)}
    found = llama.generate_many(prompts, on_error="return", **small, **chosen)
    return repr([(done.tokens, done.finish_reason) for done in found]).encode()


def request(llama: llama2c.Llama, rng: random.Random) -> bytes:
    """One request of those that many jobs have at once; others are cancelled, some while their prompts are read."""
    engine = ENGINES[llama]
    wanted = engine.submit(tokens(llama, rng, 80), **options(rng))
    for _ in range(rng.randrange(4)):
        other = engine.submit(tokens(llama, rng, 200), max_tokens=20)
        for _, _ in zip(range(rng.randrange(3)), other, strict=False):
            pass
        other.cancel()
    return repr(wanted.result().tokens).encode()


KINDS: list[Job] = [story, left_stream, chat, batch, cut_back, many, request]
ENGINES: dict[llama2c.Llama, llama2c.Engine] = {}  # one for each model


def result(llama: llama2c.Llama, number: int) -> str:
    """A digest of the result of job `number`, which does not depend on when and where it runs."""
    return hashlib.sha256(KINDS[number % len(KINDS)](llama, random.Random(number))).hexdigest()


def resident() -> int:
    """Bytes of memory in use by this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def soak(llamas: list[llama2c.Llama], seconds: float) -> tuple[str, bool]:
    """One line of figures, and whether every check passed."""
    begin, rng = time.monotonic(), random.Random(0)
    expected = [result(llamas[0], number) for number in range(KNOWN)]
    jobs, rounds, wrong, memory = KNOWN, 0, 0, []
    while (now := time.monotonic() - begin) < seconds or len(memory) < 2:
        work = [(rng.choice(llamas), number) for number in rng.sample(range(KNOWN), KNOWN)]
        fresh = range(KNOWN + NEW * rounds, KNOWN + NEW * (rounds + 1))
        work += [(llama, number) for number in fresh for llama in llamas]
        n_workers = rng.choice([1, 2, 4])
        with ThreadPoolExecutor(n_workers) as pool:  # new threads in every round
            found = list(pool.map(result, *zip(*work, strict=True)))
        wrong += sum(a != b for a, b in zip(found, (expected[number] for _, number in work[:KNOWN]), strict=False))
        news = np.array(found[KNOWN:]).reshape(NEW, len(llamas))
        wrong += int((news != news[:, :1]).any(axis=1).sum())
        jobs, rounds = jobs + len(work), rounds + 1
        if now > WARM_UP * seconds:
            memory.append(resident())
    grown = max(memory) - memory[0]
    line = (
        f"{(time.monotonic() - begin) / 60:.1f} min, {rounds} rounds, {jobs} jobs, {wrong} results that changed; "
        f"memory {memory[0] / 2**20:.1f} MiB after warm-up, {memory[-1] / 2**20:.1f} at the end, "
        f"{max(memory) / 2**20:.1f} at most; "
        f"{len(os.listdir('/proc/self/fd'))} open files, {len(os.listdir('/proc/self/task'))} threads"
    )
    return line, wrong == 0 and grown <= GROWTH


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("model", nargs="?", help="a file or a name (default: the model that comes with llama2c)")
    chosen = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message="n_threads=2 is more than")
    model = () if chosen.model is None else (chosen.model,)
    llamas = [llama2c.load(*model, n_threads=n) for n in (1, 2)]
    for llama in llamas:
        llama.chat_bytes = REMEMBERED
        ENGINES[llama] = llama2c.Engine(llama, max_sequences=6, cache_bytes=32 << 20, prefix_bytes=REMEMBERED)
    line, well = soak(llamas, 60 * chosen.minutes)
    for llama in llamas:
        ENGINES.pop(llama).close()
    print(line if well else f"{line}: FAILED: no result may change, and memory may grow by at most {GROWTH / 2**20:g} MiB")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
