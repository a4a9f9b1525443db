"""Looks for tokenizer files and texts that do anything but what is promised: `make fuzz`, or fuzz/fuzz_tokenizer.py FLAGS.

The flags are libFuzzer's. The encoder is compiled and only run, but what it gives is compared with the plain one of the tests,
which is instrumented: inputs that take new ways through that one are kept.
"""

from __future__ import annotations

import random
import struct

import atheris

with atheris.instrument_imports(include=["llama2c", "targets", "reference_text"]):
    import targets
import fuzzing
import seeds

PIECES = (b" ", b"a", b"b", b"<s>", b"<0x61>", b"<0xC3>", b"\xc3\xa9", b"\xc3", b"\xa9", b"\0", b"\xff", b"\x80", "😀".encode())
SCORES = (0.0, -0.0, 1.0, 2.0, -1e10, -9.9e9, 1e38, float("inf"), float("-inf"), float("nan"), 1e-45)
LENGTHS = (0, -1, 1, 2, 6, 127, 2**31 - 1, -(2**31))


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """libFuzzer's mutation, or one that knows what tokens are."""
    numbers = random.Random(seed)
    return (atheris.Mutate(data, most) if numbers.random() < 0.4 else with_tokens(data, numbers))[:most]


def with_tokens(data: bytes, numbers: random.Random) -> bytes:
    """The tokens behind the 259 good ones taken apart, changed, and put together again; the text made of what they spell."""
    tokens = parsed(targets.split(bytes([data[0] & 127]) + data[1:])[0]) if data and data[0] & 128 else []
    for _ in range(numbers.randint(1, 3)):
        spelling = b"".join(numbers.choices(PIECES, k=numbers.choice((1, 1, 2, 2, 3, 4, 40))))
        if len(tokens) > 1 and numbers.random() < 0.4:  # a spelling that is two others
            spelling = numbers.choice(tokens)[1] + numbers.choice(tokens)[1]
        score = numbers.choice(SCORES[:-2]) if numbers.random() < 0.98 else numbers.choice(SCORES)
        tokens.insert(numbers.randint(0, len(tokens)), (score, spelling[:100]))
        if numbers.random() < 0.3:
            tokens.pop(numbers.randrange(len(tokens)))
    packed = bytearray()
    for score, spelling in tokens[:60]:
        length = len(spelling) if numbers.random() < 0.995 else numbers.choice(LENGTHS)
        packed += struct.pack("<fi", score, length) + spelling
    words = [spelling for _, spelling in tokens] + list(PIECES)
    text = b"".join(numbers.choices(words, k=numbers.randint(0, 30)))[:127]
    return bytes([128 | len(text)]) + bytes(packed) + text


def parsed(data: bytes) -> list[tuple[float, bytes]]:
    """As many whole tokens as there are."""
    tokens, place = [], 0
    while place + 8 < len(data):
        score, length = struct.unpack_from("<fi", data, place)
        if not 0 < length <= len(data) - place - 8:
            break
        tokens.append((score, data[place + 8 : place + 8 + length]))
        place += 8 + length
    return tokens


if __name__ == "__main__":
    fuzzing.start("tokenizer", targets.tokenizer, mutate, seeds.tokenizers(), 8192)
