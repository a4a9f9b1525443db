"""A fake model and a byte tokenizer, so that stopping, streaming and seeds are tested without a checkpoint.

FakeTransformer keeps the real one's rules for its arguments. Greedy decoding gives its script; without a
script its logits depend on every token so far, as a real model's do.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from llama2c.config import Config
from llama2c.llama import Llama

BOS, EOS, N_BYTES = 1, 2, 259
SCRIPTED = np.float32(30.0)  # the logit of the scripted token; the others have 0


class FakeCache:
    """The tokens fed so far, in place of keys and values."""

    kv = "float32"

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.tokens: list[int] = []
        self.n_prompt = 0  # tokens up to the end of the first step

    @property
    def length(self) -> int:
        return len(self.tokens)

    def truncate(self, length: int) -> None:
        assert 0 <= length <= self.length
        del self.tokens[length:]

    def positions(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens in place of keys (1, 1, 2, n) and values (1, 1, n, 2)."""
        tokens = np.array([self.tokens[start:stop]] * 2, np.float32)
        return tokens[None, None], tokens.T[None, None]

    def append(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        for keys, _ in parts:
            self.tokens += keys[0, 0, 0].astype(int).tolist()
        assert self.length <= self.max_length


class FakeTransformer:
    n_threads = 1
    kv = "float32"
    observer = None

    def __init__(self, script: Sequence[int] | None = None, *, vocab_size: int = N_BYTES, seq_len: int = 512) -> None:
        self.config = Config(dim=2, hidden_dim=2, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=vocab_size, seq_len=seq_len)
        self.script = script
        self.caches: list[FakeCache] = []
        self.steps: list[list[int]] = []  # what each forward was fed

    def new_cache(self, max_length: int | None = None) -> FakeCache:
        self.caches.append(FakeCache(self.config.seq_len if max_length is None else max_length))
        return self.caches[-1]

    def forward(
        self, tokens: Sequence[int], cache: FakeCache, *, logits: int | None = 1, out: np.ndarray | None = None
    ) -> np.ndarray:
        tokens = list(tokens)
        wanted = len(tokens) if logits is None else logits
        if out is None:
            out = np.empty((wanted, self.config.vocab_size), np.float32)
        assert tokens
        assert all(0 <= token < self.config.vocab_size for token in tokens)
        assert cache.length + len(tokens) <= cache.max_length
        if not cache.tokens or not cache.n_prompt:  # its first step, or one after it was emptied
            cache.n_prompt = cache.length + len(tokens)
        self.steps.append(tokens)
        assert out.shape in ((wanted, self.config.vocab_size), (self.config.vocab_size,) * (logits == 1))
        cache.tokens += tokens[: len(tokens) - wanted]
        for row, token in zip(out.reshape(wanted, self.config.vocab_size), tokens[len(tokens) - wanted :], strict=True):
            cache.tokens.append(token)
            row[:] = self.logits(cache)
        return out

    def logits(self, cache: FakeCache) -> np.ndarray:
        """The row after everything in `cache`; after the script it is EOS that is the likeliest."""
        vocab_size = self.config.vocab_size
        if self.script is None:
            return np.random.default_rng(cache.tokens).normal(0, 2, vocab_size).astype(np.float32)
        n_drawn = cache.length - cache.n_prompt
        row = np.zeros(vocab_size, np.float32)
        row[self.script[n_drawn] if n_drawn < len(self.script) else EOS] = SCRIPTED
        return row


class FakeTokenizer:
    """Token b + 3 is the byte b, as in tokenizer.bin; `pieces` are the tokens from 259 on."""

    def __init__(self, pieces: Sequence[bytes] = ()) -> None:
        self.pieces = [b"", b"", b"", *(bytes([byte]) for byte in range(256)), *pieces]
        self.vocab_size = len(self.pieces)
        self.bos_id, self.eos_id = BOS, EOS
        self.end_ids = frozenset((BOS, EOS))
        self.prefix = (BOS,)
        self.chat_template = None
        self.no_template = None

    def encode(self, text: str | bytes, bos: bool = True, eos: bool = False) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        data = b" " + data if data else b""
        return [BOS] * bos + [byte + 3 for byte in data] + [EOS] * eos

    def text_stream(self, previous: int | None = None, errors: str = "replace") -> FakeTextStream:
        return FakeTextStream(self.pieces, previous)


class FakeTextStream:
    def __init__(self, pieces: list[bytes], previous: int | None) -> None:
        self.pieces, self.previous = pieces, previous
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        piece = self.pieces[token]
        if self.previous == BOS:
            piece = piece.removeprefix(b" ")
        self.previous = token
        return self.decoder.decode(piece)

    def flush(self) -> str:
        return self.decoder.decode(b"", True)


def spell(text: str | bytes) -> list[int]:
    """The ids of a text's bytes, nothing added: "Hi" -> [75, 108]."""
    data = text.encode() if isinstance(text, str) else text
    return [byte + 3 for byte in data]


def fake_llama(script: Sequence[int] | str | bytes | None = None, *, pieces: Sequence[bytes] = (), seq_len: int = 512) -> Llama:
    """A Llama that, greedy, writes `script` (a text, or ids) and then EOS; None: see FakeTransformer."""
    tokenizer = FakeTokenizer(pieces)
    ids = spell(script) if isinstance(script, (str, bytes)) else script
    transformer = FakeTransformer(ids, vocab_size=tokenizer.vocab_size, seq_len=seq_len)
    return Llama(cast(Any, transformer), cast(Any, tokenizer))
