"""Looks for checkpoint files that break a promise: `make fuzz`, or python fuzz/fuzz_checkpoint.py FLAGS.

The flags are libFuzzer's, -max_total_time=60 for instance. Python code is instrumented; the compiled kernels are only run.
"""

from __future__ import annotations

import random
import re
import struct

import atheris

with atheris.instrument_imports(include=["llama2c", "targets"]):
    import targets
import fuzzing
import seeds

STARTS = list(seeds.checkpoints().values())
ODD = (0, 7, 64, 255, 256, -1, -2, -(2**31), 2**31 - 1, 2**31 - 4, 2**30, 2**16, 2**15)
FLOATS = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e-45, 1e-38, 3e38, -3e38, 1.0)
WORDS = (*map(str, ODD), "null", "true", "false", "0.0", "1e-6", "1e999", "NaN", "-Infinity", "{}", "[1]")
WORDS += ('"q8_0"', '"float16"', '"float32"', '"bfloat16"', '"linear"', '"llama3"', '"dim"', "9" * 500, "2.5")
VALUES = (*(struct.pack("<f", value) for value in FLOATS), b"\x80", b"\x7f", b"\xff", b"\0")


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """libFuzzer's mutation, or one of the header, or of the body; then, mostly, the length that the header asks for."""
    numbers = random.Random(seed)
    if numbers.random() < 0.3:  # a good one again: most that come of others are refused early
        data = numbers.choice(STARTS)
    kind = numbers.random()
    if kind < 0.3:
        data = atheris.Mutate(data, most)
    elif kind < 0.7:
        data = with_header(data, numbers)
    else:
        data = with_body(data, numbers)
    return seeds.fitted(data)[:most] if numbers.random() < 0.8 else data[:most]


def with_header(data: bytes, numbers: random.Random) -> bytes:
    """Change a dimension, the version or the group_size; in v3 a word of the JSON."""
    if seeds.header_size(data) == 1024 and numbers.random() < 0.9:
        return with_words(data, numbers)
    changed = bytearray(data.ljust(41, b"\0"))
    place = 4 * numbers.randrange(7) if seeds.header_size(data) == 28 else numbers.choice((*range(4, 37, 4), 37))
    struct.pack_into("<i", changed, place, numbers.randint(1, 12) if numbers.random() < 0.5 else numbers.choice(ODD))
    return bytes(changed)


def with_body(data: bytes, numbers: random.Random) -> bytes:
    """Change a few numbers after the header."""
    changed = bytearray(data)
    start = seeds.header_size(data)
    for _ in range(numbers.randint(1, 4) if len(data) > start else 0):
        value = numbers.choice(VALUES)
        place = numbers.randrange(start, len(data))
        changed[place : place + len(value)] = value
    return bytes(changed)


def with_words(data: bytes, numbers: random.Random) -> bytes:
    """Replace one or two numbers, names or literals of the JSON."""
    text = data[8:1024].decode("ascii", "replace").rstrip()
    for _ in range(numbers.randint(1, 2)):
        words = list(re.finditer(r'"[^"]*"|[-+.\w]+', text))
        if not words:
            break
        word = numbers.choice(words)
        text = text[: word.start()] + numbers.choice((*WORDS, str(numbers.randint(1, 12)))) + text[word.end() :]
    return seeds.pack_v3(text) + data[1024:]


if __name__ == "__main__":
    fuzzing.start("checkpoint", targets.checkpoint, mutate, seeds.checkpoints(), targets.MOST_BYTES)
