"""The command line on small random models: what it has to print, by the loops of the C program over a NumPy model."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import checkpoints
import numpy as np
from reference import Reference

from llama2c import Config

LETTERS = " abcdefghijklmnopqrstuvwxyz"
PIECES = [b""] * 3 + [bytes([byte]) for byte in range(256)] + [letter.encode() for letter in LETTERS]
BOS, EOS, SPACE = 1, 2, 259
CONFIG = Config(dim=16, hidden_dim=24, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=len(PIECES), seq_len=64)
TALKER = replace(CONFIG, seq_len=110)
ENDLESS = Config(dim=8, hidden_dim=8, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=len(PIECES), seq_len=10**6)
SECONDS = 120  # what hangs is ended


def tokenizer_bin(letters: str = LETTERS) -> bytes:
    spellings = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256)), *map(str.encode, letters)]
    return struct.pack("<i", 7) + b"".join(struct.pack("<fi", 0, len(s)) + s for s in spellings)


def write_model(folder: Path, config: Config, version: int = 1, *, turns: bool = False) -> checkpoints.Arrays:
    """model.bin, which writes letters and does not end, or with `turns` draws BOS and EOS now and then; and tokenizer.bin."""
    weights = checkpoints.random_weights(config, np.random.default_rng(5), shared_classifier=False)
    weights["wcls"] *= 4
    weights["wcls"][:259] = 0  # logit 0, far below the best of 27 random ones
    if turns:
        weights["wcls"][[EOS, BOS, SPACE]] = weights["wcls"][[SPACE + 13, SPACE + 17, SPACE + 10]]  # as likely as m, q, j
    checkpoints.write(folder / "model.bin", config, version, weights, config.dim // 2 if version == 2 else None)
    (folder / "tokenizer.bin").write_bytes(tokenizer_bin())
    return weights


class Result(NamedTuple):
    code: int
    out: bytes
    err: str


Command = Callable[..., Result]


def process(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", "llama2c", *arguments], **{**pipes, **options})


def printable(text: bytes) -> bytes:
    """At temperature 1 a byte token may be drawn too; other tests see to what becomes of those."""
    return re.sub(rb"[^\n -~]", b"", text)


# ---------------------------------------------------------------------------
# the C loops over a NumPy model, one position at a time


class Coins:
    def __init__(self, seed: int) -> None:
        self.state = seed

    def __next__(self) -> float:
        x = self.state
        x ^= x >> 12
        x = (x ^ x << 25) % 2**64
        x ^= x >> 27
        self.state = x
        return (x * 0x2545F4914F6CDD1D % 2**64 >> 40) / 2**24


def draw(logits: np.ndarray, coins: Coins | None) -> int:
    """The likeliest without coins, else from the whole distribution (-t 1 -p 0)."""
    if coins is None:
        return int(logits.argmax())
    probabilities = np.exp(logits - logits.max())
    return int(np.searchsorted(np.cumsum(probabilities) / probabilities.sum(), next(coins), side="right"))


def ids_of(text: bytes) -> list[int]:
    letter_ids = {piece: id for id, piece in enumerate(PIECES)}  # a letter's own token comes after its byte token
    return [BOS, *(letter_ids[bytes([byte])] for byte in b" " * bool(text) + text)]


def decoded(ids: Sequence[int], previous: int) -> bytes:
    text = b"".join(PIECES[id] for id in ids)
    return text.removeprefix(b" ") if previous == BOS else text


def expected_story(weights: checkpoints.Arrays, prompt: bytes, steps: int, coins: Coins | None = None) -> bytes:
    reference, ids, n_prompt = Reference(CONFIG, weights), ids_of(prompt), len(ids_of(prompt))
    while len(ids) <= steps:
        ids.append(draw(reference.forward(ids).logits[-1], coins))
        if ids[-1] in (BOS, EOS):
            break
    assert len(ids) > n_prompt or len(ids) > steps
    return decoded(ids[1 : steps + 1], BOS) + b"\n"


def expected_chat(
    weights: checkpoints.Arrays, lines: list[bytes], system: bytes, steps: int, coins: Coins | None, seen: dict[Any, np.ndarray]
) -> bytes:
    """The loop of run.c, with the differences on purpose; the first line is a -i. `seen` spares the work of a longer chat."""
    reference, out, lines = Reference(CONFIG, weights), b"", lines.copy()
    fed: list[int] = []
    forced: list[int] = []
    users_turn, token = True, 0
    while len(fed) < steps:
        if users_turn:
            out += b"User: " if fed else b""
            if not lines:
                break
            line = lines.pop(0)
            text = b"<<SYS>>\n%s\n<</SYS>>\n\n%s" % (system, line) if system and not fed else line
            forced, users_turn = ids_of(b"[INST] %s [/INST]" % text), False
            out += b"Assistant: "
        if forced:
            token = forced.pop(0)
        users_turn = token == EOS
        fed.append(token)
        key = tuple(fed)
        if key not in seen:
            seen[key] = reference.forward(fed).logits[-1]
        previous, token = token, draw(seen[key], coins)
        if not forced and not users_turn:
            out += b"\n" if token == EOS else decoded([token], previous)
    return out + b"\n"
