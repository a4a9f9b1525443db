"""Looks for checkpoint files that break a promise: `make fuzz`, or python fuzz/fuzz_checkpoint.py FLAGS.

The flags are libFuzzer's, -max_total_time=60 for instance. Python code is instrumented; the compiled kernels are only run.
"""

from __future__ import annotations

import random
import re
import struct

import atheris
import numpy as np

with atheris.instrument_imports(include=["llama2c", "targets"]):
    import targets
import fuzzing
import gguf_files
import seeds

STARTS = list(seeds.checkpoints().values())
ODD = (0, 7, 64, 255, 256, -1, -2, -(2**31), 2**31 - 1, 2**31 - 4, 2**30, 2**16, 2**15)
FLOATS = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e-45, 1e-38, 3e38, -3e38, 1.0)
WORDS = (*map(str, ODD), "null", "true", "false", "0.0", "1e-6", "1e999", "NaN", "-Infinity", "{}", "[1]")
WORDS += ('"q8_0"', '"float16"', '"float32"', '"bfloat16"', '"linear"', '"llama3"', '"dim"', "9" * 500, "2.5")
SETTINGS = ("general.alignment", "general.type", "split.count", "split.no", "llama.expert_count", "llama.rope.scale_linear")
SETTINGS += ("llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.attention.sliding_window")
VALUES = (*(struct.pack("<f", value) for value in FLOATS), b"\x80", b"\x7f", b"\xff", b"\0")


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """libFuzzer's mutation, or one of the header, or of the body; then, mostly, the length that the header asks for."""
    numbers = random.Random(seed)
    if numbers.random() < 0.3:  # a good one again: most that come of others are refused early
        data = numbers.choice(STARTS)
    kind = numbers.random()
    if kind < 0.3:
        data = atheris.Mutate(data, most)
    elif data.startswith(b"GGUF"):
        data = with_gguf(numbers) if kind < 0.7 else with_count(data, numbers)
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


def with_gguf(numbers: random.Random) -> bytes:
    """A good GGUF file with one to three keys or tensors changed."""
    file = numbers.choice(list(seeds.gguf().values()))
    for _ in range(numbers.randint(1, 3)):
        if numbers.random() < 0.5:
            change_key(file, numbers)
        else:
            change_tensor(file, numbers)
    return file.pack()


def change_key(file: gguf_files.File, numbers: random.Random) -> None:
    """Another value, or another type, or no value at all."""
    name = numbers.choice([*file.keys, *SETTINGS])
    kind = numbers.choice((gguf_files.U32, gguf_files.U32, gguf_files.F32, numbers.randrange(13)))
    if numbers.random() < 0.1:
        file.keys.pop(name, None)
    elif kind == gguf_files.STRING:
        file.set(name, kind, numbers.choice((b"llama", b"linear", b"yarn", b"\xff", b"", b"model")))
    elif kind == gguf_files.ARRAY:
        file.set(name, kind, (gguf_files.STRING, numbers.choices((b"", b"a", b"\xff\xff"), k=numbers.randrange(5))))
    elif kind in (gguf_files.F32, gguf_files.F64):
        file.set(name, kind, numbers.choice((*FLOATS, 2.5)))
    else:
        bits = 8 * struct.calcsize(gguf_files.FORMATS[kind])
        value = (numbers.randint(0, 12) if numbers.random() < 0.7 else numbers.choice(ODD)) % 2**bits
        file.keys[name] = gguf_files.string(name) + struct.pack("<I", kind) + value.to_bytes(bits // 8, "little")


def change_tensor(file: gguf_files.File, numbers: random.Random) -> None:
    """Another shape, type or offset, other numbers, or none of the tensor."""
    name = numbers.choice(list(file.tensors))
    tensor, kind = file.tensors[name], numbers.randrange(6)
    if kind == 0:
        sizes = (*tensor.shape, *(value % 2**64 for value in ODD))
        tensor.shape = tuple(numbers.choice(sizes) for _ in range(numbers.randrange(6)))
    elif kind == 1:
        tensor.code = numbers.randrange(43)
    elif kind == 2:
        tensor.offset = numbers.choice(ODD) % 2**64
    elif kind == 3:
        file.tensors.pop(name)
    elif kind == 4:
        data = bytearray(tensor.data)
        value = numbers.choice((*VALUES, np.float16("nan").tobytes(), np.float16("inf").tobytes()))
        place = numbers.randrange(0, max(len(data) - 4, 1), 2)
        data[place : place + len(value)] = value
        tensor.data = bytes(data)
    else:
        tensor.data = tensor.data[: numbers.randrange(len(tensor.data) + 1)]


def with_count(data: bytes, numbers: random.Random) -> bytes:
    """A number of 32 or 64 bits anywhere in the first part replaced: most are counts, lengths, types and sizes."""
    changed = bytearray(data.ljust(24, b"\0"))
    size = numbers.choice((4, 8))
    place = numbers.randrange(4, min(len(changed) - size, 2000) + 1)
    value = numbers.randint(0, 40) if numbers.random() < 0.5 else numbers.choice(ODD) + numbers.randint(-8, 8)
    changed[place : place + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
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
