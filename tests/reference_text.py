"""The tokenizer and the sampler in plain Python, written only from their description, to compare the real ones with.

Shares no code with llama2c, and nothing here is clever.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Vocabulary = list[tuple[bytes, float]]  # spelling and score of each token


def read_vocabulary(path: Path) -> Vocabulary:
    """A tokenizer.bin, to its end."""
    data, place, vocabulary = path.read_bytes(), 4, []
    while place < len(data):
        score, length = struct.unpack_from("<fi", data, place)
        vocabulary.append((data[place + 8 : place + 8 + length], score))
        place += 8 + length
    return vocabulary


def encode(vocabulary: Vocabulary, text: bytes, bos: bool = True) -> list[int]:
    """The encoder as it is described, step by step: every merge looks at every pair."""
    lookup: dict[bytes, int] = {}
    for token, (spelling, _) in enumerate(vocabulary):
        lookup.setdefault(spelling, token)
    ids = [1] if bos else []
    if text:
        ids.append(lookup.get(b" ", ord(" ") + 3))
    start = 0
    while start < len(text):
        end = start + 1
        while end < len(text) and end - start < 4 and 0x80 <= text[end] < 0xC0:
            end += 1
        point = text[start:end]
        ids += [lookup[point]] if point in lookup else [byte + 3 for byte in point]
        start = end
    while True:
        pairs = []
        for place in range(len(ids) - 1):
            joined = lookup.get(vocabulary[ids[place]][0] + vocabulary[ids[place + 1]][0])
            if joined is not None and vocabulary[joined][1] > -1e10:
                pairs.append((-vocabulary[joined][1], place, joined))
        if not pairs:
            return ids
        _, place, joined = min(pairs)
        ids[place : place + 2] = [joined]


def decode(vocabulary: Vocabulary, ids: Iterable[int]) -> bytes:
    """The bytes of some ids that follow BOS: without those of ids 0 to 2, and without the first one's leading space."""
    pieces = []
    for token in ids:
        spelling = vocabulary[token][0] if token > 2 else b""
        byte = re.fullmatch(rb"<0x([0-9A-F]{2})>", spelling)
        pieces.append(bytes([int(byte[1], 16)]) if byte else spelling)
    return b"".join(pieces).removeprefix(b" ")


def coins(seed: int) -> Iterator[float]:
    """xorshift64* (Vigna 2014), its upper 24 bits as numbers from 0 to 1."""
    state = seed
    while True:
        state ^= state >> 12
        state = (state ^ state << 25) % 2**64
        state ^= state >> 27
        yield (state * 0x2545F4914F6CDD1D % 2**64 >> 40) / 2**24


def sample(logits: Any, coin: float, temperature: float, top_p: float = 0.0, top_k: int = 0, min_p: float = 0.0) -> int:
    """The definition, step by step, in float64; sorted is by probability downwards, then by id upwards."""
    logits = np.asarray(logits, np.float64)
    n = len(logits)
    if temperature == 0:
        return int(np.argmax(logits))
    probs = np.exp((logits - logits.max()) / temperature)
    probs /= probs.sum()

    kept = np.arange(n)
    if 0 < top_p < 1 or top_k or min_p:  # else run.c walks the vocabulary in its own order
        kept = np.argsort(-probs.astype(np.float32), kind="stable")
    likeliest = kept[:1]
    if top_k:
        kept = kept[:top_k]
    if min_p:
        kept = kept[probs[kept] >= min_p * probs.max()]
    total = probs[kept].sum()
    if 0 < top_p < 1:
        if not (top_k or min_p):  # run.c's shortcut, which for a small top_p keeps none
            kept = kept[probs[kept] >= (1 - top_p) / (n - 1)] if n > 1 else kept[:0]
            kept = kept if len(kept) else likeliest
        exceeds = np.cumsum(probs[kept]) > top_p * total
        if exceeds.any():
            kept = kept[: int(np.argmax(exceeds)) + 1]
    cdf = np.cumsum(probs[kept])
    before = coin * cdf[-1] < cdf
    return int(kept[np.argmax(before)] if before.any() else kept[-1])
