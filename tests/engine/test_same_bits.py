"""Whatever an engine does, each request has the tokens and the bits of the log-probabilities that it has alone.

How many run at once, random arrivals and cancels, prefixes that are remembered in memory or come from a file that another
process wrote, guesses: all of it together, compared with ==. One test breaks the order of a sum, to see that it is found.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from controlled import PATIENCE

import llama2c
from llama2c import _kernels
from llama2c.engine.engine import Engine
from llama2c.engine.request import Request
from llama2c.llama import Llama
from llama2c.transformer import Transformer

STORY = "Once upon a time, there was a little girl called Lily. She liked to play with her red ball. One day, "
WORDS = "the dog ran and said I am happy because it was a big red ball in the old house by the sea".split()


class Wanted(NamedTuple):
    """A request, and its result alone."""

    prompt: Any
    options: dict[str, Any]
    tokens: tuple[int, ...]
    logprobs: bytes
    text: str
    reason: str


def make_requests(llama: Llama, n: int, seed: int = 0) -> list[tuple[Any, dict[str, Any]]]:
    """Requests of many kinds. Half of them have a beginning in common, and some repeat themselves."""
    rng = random.Random(seed)
    found: list[tuple[Any, dict[str, Any]]] = []
    for i in range(n):
        words = " ".join(rng.choices(WORDS, k=rng.randrange(1, 12)))
        prompt: Any = [STORY + words, words, (words + " ") * 4, [{"role": "user", "content": STORY + words}]][i % 4]
        options: dict[str, Any] = {
            "max_tokens": rng.randrange(1, 20),
            "seed": rng.randrange(2**64),
            "logprobs": rng.choice([1, 1, 3]),
        }
        options["temperature"] = [0.0, 1.0][i % 2]
        if rng.random() < 0.3:
            options |= {"repetition_penalty": 1.2, "top_k": 40}
        if rng.random() < 0.3:
            options |= {"stop": [".", "dog"], "min_p": 0.02}
        if rng.random() < 0.2:
            options["logit_bias"] = {300 + i: 3.0, 2: -5.0}
        found.append((prompt, options))
    return found


def bits(logprobs: Any) -> bytes:
    return np.array(logprobs, np.float64).tobytes()


@pytest.fixture(scope="module")
def wanted(llama: Llama) -> list[Wanted]:
    """Each by itself, in a new model without guesses, so that nothing is remembered."""
    found = []
    for prompt, options in make_requests(llama, 24):
        alone = llama2c.load(n_threads=1, drafts=False)
        done = alone.chat(prompt, **options) if isinstance(prompt, list) else alone.generate(prompt, **options)
        found.append(Wanted(prompt, options, done.tokens, bits(done.logprobs), done.text, done.finish_reason))
    assert len({one.tokens for one in found}) > 15
    assert {one.reason for one in found} == {"stop", "length"}
    return found


SAVE = """
import json, sys, llama2c
llama = llama2c.load(n_threads=1)
with llama2c.Engine(llama) as engine:
    list(engine.generate_many(json.loads(sys.argv[1]), max_tokens=1))
    engine.save_prefixes(sys.argv[2])
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, llama: Llama) -> Path:
    """The prefixes of half of the prompts, and of others, computed and written by another process."""
    path = tmp_path_factory.mktemp("saved") / "prefixes"
    prompts = [prompt for prompt, _ in make_requests(llama, 24)[::2] + make_requests(llama, 8, seed=5)]
    run(SAVE, json.dumps(prompts), str(path))
    assert path.stat().st_size > 100_000
    return path


def run(code: str, *arguments: str, **environment: str) -> str:
    places = {"PYTHONPATH": str(Path(llama2c.__file__).parents[1]), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env={**os.environ, **places, **environment}, capture_output=True, text=True,
        timeout=5 * PATIENCE, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(params=[False, True], ids=["without guesses", "with guesses"])
def drafts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Guesses although the model is tiny: another row seems to cost nothing."""
    if request.param:
        monkeypatch.setattr("llama2c.engine.drafts.LEAST_WEIGHTS", 0)
        monkeypatch.setattr("llama2c.engine.drafts.StepTimes.expected", lambda self, n_rows, n_sizes: [1.0] * n_sizes)
    yield request.param


def check(request: Request, one: Wanted) -> None:
    done = request.result(PATIENCE)
    assert (done.tokens, done.text, done.finish_reason) == (one.tokens, one.text, one.reason)
    assert bits(done.logprobs) == one.logprobs


def play(engine: Engine, wanted: list[Wanted], seed: int) -> None:
    """Requests come when others have made a few pieces; more of them come and are cancelled anywhere."""
    rng = random.Random(seed)
    running: list[tuple[Request, Wanted]] = []
    cancelled: list[Request] = []
    for one in rng.sample(wanted, len(wanted)):
        running.append((engine.submit(one.prompt, **one.options), one))
        if rng.random() < 0.4:
            extra = rng.choice(wanted)
            noise = engine.submit(extra.prompt, **{**extra.options, "max_tokens": 60, "seed": rng.randrange(2**64)})
            for _, _ in zip(range(rng.randrange(4)), noise, strict=False):
                pass
            noise.cancel()
            cancelled.append(noise)
        if rng.random() < 0.5:
            next(rng.choice(running)[0], None)
    for request, one in running:
        check(request, one)
    assert {request.result(PATIENCE).finish_reason for request in cancelled} <= {"cancelled", "stop", "length"}


@pytest.mark.parametrize("known", ["nothing", "memory", "file"])
@pytest.mark.parametrize("at_once", [1, 2, 7, 16])
def test_nothing_changes_a_bit(llama: Llama, wanted: list[Wanted], saved: Path, drafts: bool, at_once: int, known: str) -> None:
    with Engine(llama, max_sequences=at_once, prefix_bytes=0 if known == "nothing" else None, drafts=drafts) as engine:
        if known == "file":
            assert engine.load_prefixes(saved) > 100
        play(engine, wanted, seed=at_once)
        if known == "memory":  # now all of it is
            play(engine, wanted, seed=at_once + 100)
        stats = engine.stats()
        assert (stats.prefix_tokens > 100) == (known != "nothing")
        assert (stats.drafts_accepted > 5) == drafts
        assert stats.cache_bytes == 0


def test_nothing_changes_a_bit_where_caches_have_little_room(
    llama: Llama, wanted: list[Wanted], drafts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama2c.transformer.FIRST_BYTES", 0)
    with Engine(llama, cache_bytes=llama.transformer.cache_bytes(320, 320), prefix_bytes=0, drafts=drafts) as engine:
        play(engine, wanted, seed=3)


def test_nothing_changes_a_bit_on_two_threads_and_in_half_the_memory(wanted: list[Wanted], drafts: bool) -> None:
    two = Llama(Transformer(llama2c.load().transformer.checkpoint, n_threads=2), llama2c.load().tokenizer, drafts)
    with Engine(two, max_sequences=7, prefix_bytes=1 << 18, drafts=drafts) as engine:
        play(engine, wanted[::2], seed=4)
        assert engine.stats().prefix_bytes <= 1 << 18


def test_the_comparison_finds_a_sum_in_another_order(llama: Llama, wanted: list[Wanted]) -> None:
    """Where several sequences share a step, every second logit is the next float: what another order would do to it."""

    class Careless(Transformer):
        def forward_batch(self, sequences: Any, *, logits: Any = 1, out: Any = None) -> Any:
            rows = super().forward_batch(sequences, logits=logits, out=out)
            if len(sequences) > 1:
                rows[:, ::2] = np.nextafter(rows[:, ::2], np.float32(np.inf))
            return rows

    careless = Llama(Careless(llama.transformer.checkpoint, n_threads=1), llama.tokenizer)
    with Engine(careless, max_sequences=16, prefix_bytes=0) as engine, pytest.raises(AssertionError):
        play(engine, wanted, seed=16)


THOUSAND = """
import hashlib, random, llama2c
llama, rng, digest = llama2c.load(), random.Random(1), hashlib.sha256()
WORDS = "the dog ran and said I am happy because it was a big red ball".split()
STORY = "Once upon a time, there was a little girl. "

def prompts():
    for i in range(1000):
        yield {
            "prompt": STORY * (i % 3 < 2) + " ".join(rng.choices(WORDS, k=rng.randrange(1, 9))),
            "max_tokens": rng.randrange(1, 9),
            "temperature": rng.choice([0.0, 1.0]),
            "repetition_penalty": rng.choice([1.0, 1.2]),
            "top_k": rng.choice([0, 30]),
            "logprobs": rng.choice([0, 0, 2]),
        }

for done in llama.generate_many(prompts(), seed=3):
    digest.update(repr((done.tokens, done.text, done.logprobs, done.top_logprobs)).encode())
print(digest.hexdigest())
"""
# Seen with avx2. It changes with the bundled model, and where the order of a sum is changed on purpose (fingerprint.NUMERICS).
DIGEST = "76a01d0132b69240767624ae8db6b16501b2721d1e7b5eea38296173572f6d36"


@pytest.mark.parametrize("level", [level for level in _kernels.levels if level != "generic"])
def test_a_thousand_requests_on_every_instruction_set(level: str) -> None:
    assert run(THOUSAND, LLAMA2C_ISA=level, OMP_NUM_THREADS="1").strip() == DIGEST
