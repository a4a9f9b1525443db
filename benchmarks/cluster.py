"""How much faster two actors of one core are than one: `python benchmarks/cluster.py MODEL`. Needs Ray, and two cores.

Runs `batch --ray local` with one actor and with two, in turn, on prompts of 50 tokens, and prints the tokens a second that each
run tells. They include the start of the actors, so that a run has to take minutes. The answers must have the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import llama2c

WORDS = "time people water house city river winter summer road light green letter music story ship garden".split()
N_TOKENS = 50  # of a prompt
AT_LEAST = 1.6


def write_prompts(folder: Path, model: str, n: int) -> None:
    """A file of n prompts."""
    tokenizer = llama2c.load(model).tokenizer
    rng = random.Random(1)
    folder.mkdir()
    with open(folder / "prompts.jsonl", "w", encoding="utf-8") as file:
        for i in range(n):
            text = rng.choice(WORDS)
            while len(tokenizer.encode(text)) < N_TOKENS:
                text += " " + rng.choice(WORDS)
            print(json.dumps({"id": i, "prompt": text}), file=file)


def measure(folder: Path, model: str, n_actors: int, part: int) -> tuple[float, bytes]:
    """The tokens a second of a run, and its answers."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, "-m", "llama2c", "batch", model, str(folder / "IN"), "-o", f"{out}/OUT"]
        command += ["--max-tokens", "64", "--ray", "local", "--actors", str(n_actors), "--part", str(part)]
        done = subprocess.run(command, capture_output=True, text=True)
        found = re.search(r", ([0-9.]+) tok/s$", done.stderr, re.MULTILINE)
        if done.returncode or found is None:
            raise SystemExit(done.stderr)
        return float(found[1]), b"".join(path.read_bytes() for path in sorted(Path(out, "OUT").glob("*.jsonl")))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare two actors of one core with one.")
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--part", type=int, default=32, help="requests of a part (default 32)")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    model = str(Path(arguments.model).resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_prompts(folder / "IN", model, arguments.requests)
        ratios, answers = [], set()
        for _ in range(arguments.rounds):
            one, first = measure(folder, model, 1, arguments.part)
            two, second = measure(folder, model, 2, arguments.part)
            answers |= {first, second}
            ratios.append(two / one)
            print(f"one actor {one:.1f} tok/s, two {two:.1f} tok/s, ratio {two / one:.2f}", flush=True)
    ratio, same = statistics.median(ratios), len(answers) == 1
    print(f"ratio {ratio:.2f}, at least {AT_LEAST} is wanted; the answers are {'the same' if same else 'not the same'}")
    return 0 if same and ratio >= AT_LEAST else 1


if __name__ == "__main__":
    raise SystemExit(main())
