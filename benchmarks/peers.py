"""The programs that we compare with, on the same weights and with the same methods: logits, decode, prefill.

A peer is left out if its binary was not named or its package is not installed; compare.py says so. As a command,
`peers.py NAME CHECKPOINT THREADS IDS` starts one peer, feeds it a prompt and writes 17 tokens, to measure start-up and memory.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llama2c import Checkpoint, Config, Transformer, export

if TYPE_CHECKING:
    from typing_extensions import Self

Floats = NDArray[np.float32]
REPEATS = 5  # runs of something short for one sample
FEW_REPEATS = 3  # the same, for steps of few rows: there are many of them
BEFORE = 32  # positions that are filled before a draft is verified
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "Q8_0": "q8_0"}  # the names of Checkpoint.kind for export


def ids(n: int, vocab_size: int = 1 << 30) -> list[int]:
    """Arbitrary tokens: speed does not depend on them."""
    return [token % vocab_size for token in range(5, 5 + n)]


def middle(measure: Callable[[], float], repeats: int = REPEATS) -> float:
    """The median of so many measurements, after one that wakes up sleeping threads."""
    measure()
    return statistics.median(measure() for _ in range(repeats))


class InProcess:
    """A model in this process, on a number of threads. Speeds are in tokens per second.

    A subclass defines how to empty the context and how to feed tokens.
    """

    name: str
    vocab_size: int

    def clear(self) -> None:
        raise NotImplementedError

    def feed(self, tokens: list[int]) -> Floats:
        """Continues the context with these tokens. Returns the logits after the last."""
        raise NotImplementedError

    def logits(self, tokens: list[int]) -> Floats:
        """float32 (vocab_size,) after the last token, from an empty context."""
        self.clear()
        return self.feed(tokens).copy()

    def choose(self, tokens: list[int]) -> int:
        """Continues the context with these tokens. Returns the likeliest next one."""
        return int(self.feed(tokens).argmax())

    def decode(self, n_tokens: int) -> float:
        """Speed of tokens written one by one from an empty context, without the first step: as C's "achieved tok/s" counts."""
        self.clear()
        token = self.choose([1])
        start = time.perf_counter()
        for _ in range(n_tokens - 1):
            token = self.choose([token])
        return (n_tokens - 1) / (time.perf_counter() - start)

    def prefill(self, n_tokens: int) -> float:
        """Speed of a prompt, until the logits after its last token are computed."""
        tokens = ids(n_tokens, self.vocab_size)

        def read() -> float:
            self.clear()
            start = time.perf_counter()
            self.feed(tokens)
            return n_tokens / (time.perf_counter() - start)

        return middle(read)


class Steps(InProcess):
    """A model whose context can be cut back, and that feeds several sequences in one step.

    `feed` continues the first sequence. Times of steps are in milliseconds.
    """

    def with_context(self, n_sequences: int = 1, n_positions: int = 512, kv: str = "float16") -> Self:
        """Another one with the same weights, and an empty context for so many sequences of so many positions each."""
        raise NotImplementedError

    def filled(self) -> int:
        """The number of positions that the first sequence has."""
        raise NotImplementedError

    def truncate(self, length: int) -> None:
        """Forgets what every sequence has beyond `length` positions."""
        raise NotImplementedError

    def each(self, tokens: list[int]) -> Floats:
        """Continues the first len(tokens) sequences with a token each, in one step: (len(tokens), vocab_size)."""
        raise NotImplementedError

    def rows(self, tokens: list[int]) -> Floats:
        """Continues the first sequence. Returns the logits after every token: (len(tokens), vocab_size)."""
        raise NotImplementedError

    def clear(self) -> None:
        self.truncate(0)

    def together(self, texts: list[list[int]]) -> Floats:
        """The logits after these texts of one length, from empty contexts, a step for each token: (len(texts), vocab_size)."""
        self.clear()
        for tokens in zip(*texts, strict=True):
            logits = self.each(list(tokens))
        return logits.copy()

    def step(self, n_sequences: int) -> float:
        """The time of a step with one token of each of so many sequences, at their beginnings."""
        self.clear()
        tokens = ids(n_sequences, self.vocab_size)
        return middle(lambda: milliseconds(lambda: self.each(tokens)), FEW_REPEATS)

    def verify(self, n_rows: int) -> float:
        """The time of a step with so many tokens of one sequence and the logits of each, as a draft is verified."""
        self.clear()
        self.feed(ids(BEFORE, self.vocab_size))
        tokens = ids(n_rows, self.vocab_size)

        def once() -> float:
            took = milliseconds(lambda: self.rows(tokens))
            self.truncate(BEFORE)
            return took

        return middle(once, FEW_REPEATS)

    def decode_at(self, position: int, n_tokens: int) -> float:
        """Speed around a position: `n_tokens` steps, of which the middle one is at `position`."""
        first = max(position - n_tokens // 2, 0)
        self.truncate(first)
        if first > self.filled():
            self.feed(ids(first - self.filled(), self.vocab_size))
        token = self.choose([1])
        start = time.perf_counter()
        for _ in range(n_tokens - 1):
            token = self.choose([token])
        return (n_tokens - 1) / (time.perf_counter() - start)

    def read(self, n_tokens: int) -> float:
        """Speed of a long prompt, which is read once."""
        self.clear()
        tokens = ids(n_tokens, self.vocab_size)
        return 1000 * n_tokens / milliseconds(lambda: self.feed(tokens))


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


class Ours(Steps):
    """llama2c, through its public functions."""

    name = "llama2c"

    def __init__(self, checkpoint: Path, n_threads: int | None) -> None:
        self.transformer = Transformer(Checkpoint.open(checkpoint), n_threads=n_threads)
        self.vocab_size = self.transformer.config.vocab_size
        self.caches = [self.transformer.new_cache()]
        self.out = np.empty(self.vocab_size, np.float32)

    def with_context(self, n_sequences: int = 1, n_positions: int = 512, kv: str = "float16") -> Self:
        other = copy.copy(self)
        other.caches = [self.transformer.new_cache(n_positions, kv) for _ in range(n_sequences)]
        return other

    def filled(self) -> int:
        return self.caches[0].length

    def truncate(self, length: int) -> None:
        for cache in self.caches:
            cache.truncate(min(length, cache.length))

    def feed(self, tokens: list[int]) -> Floats:
        return self.transformer.forward(tokens, self.caches[0], out=self.out)

    def rows(self, tokens: list[int]) -> Floats:
        return self.transformer.forward(tokens, self.caches[0], logits=None)

    def each(self, tokens: list[int]) -> Floats:
        return self.transformer.forward_batch([([token], cache) for token, cache in zip(tokens, self.caches, strict=False)])

    def batch(self, n_sequences: int, n_tokens: int) -> float:
        """Speed of all sequences together, written in the same steps, without the first step."""
        caches = [self.transformer.new_cache(n_tokens) for _ in range(n_sequences)]
        out = self.transformer.forward_batch([([1], cache) for cache in caches])
        start = time.perf_counter()
        for _ in range(n_tokens - 1):
            steps = [([int(row.argmax())], cache) for row, cache in zip(out, caches, strict=True)]
            self.transformer.forward_batch(steps, out=out)
        return n_sequences * (n_tokens - 1) / (time.perf_counter() - start)


class LlamaCpp(Steps):
    """llama.cpp through llama-cpp-python, on the same weights written as GGUF.

    Its first context has a cache in fp32, so that logits can be compared; those of with_context have what it has by default.
    """

    name = "llama.cpp"
    modules = ("llama_cpp",)
    packages = "llama-cpp-python"

    def __init__(self, checkpoint: Path, n_threads: int) -> None:
        import llama_cpp

        gguf = checkpoint.with_suffix(".gguf")
        if gguf != checkpoint:
            converted(checkpoint, gguf, dtype=DTYPES[Checkpoint.open(checkpoint).kind])
        self.api, self.n_threads = llama_cpp, n_threads
        logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL + 1)  # it prints what C logs
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), llama_cpp.llama_model_default_params())
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.open(1, 512, "float32", None)

    def with_context(
        self, n_sequences: int = 1, n_positions: int = 512, kv: str = "float16", flash_attention: bool | None = None
    ) -> Self:
        """`flash_attention`: None: what llama.cpp chooses."""
        other = copy.copy(self)
        other.open(n_sequences, n_positions, kv, flash_attention)
        return other

    def open(self, n_sequences: int, n_positions: int, kv: str, flash_attention: bool | None) -> None:
        """A context of its own. Any prompt that fits is one batch, which is computed 512 tokens at a time, its default."""
        api = self.api
        params = api.llama_context_default_params()
        params.n_ctx, params.n_seq_max = n_sequences * n_positions, n_sequences
        params.n_batch, params.n_ubatch = max(n_positions, n_sequences), 512
        params.n_threads = params.n_threads_batch = self.n_threads
        params.type_k = params.type_v = {"float32": api.GGML_TYPE_F32, "float16": api.GGML_TYPE_F16}[kv]
        if flash_attention is not None:
            kinds = (api.LLAMA_FLASH_ATTN_TYPE_DISABLED, api.LLAMA_FLASH_ATTN_TYPE_ENABLED)
            params.flash_attn_type = kinds[flash_attention]
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise ValueError(f"{self.name}: no context for {n_sequences} sequences of {n_positions} positions")
        self.lengths = [0] * n_sequences

    def filled(self) -> int:
        return self.lengths[0]

    def truncate(self, length: int) -> None:
        memory = self.api.llama_get_memory(self.context)
        for sequence, filled in enumerate(self.lengths):
            if filled > length:
                self.api.llama_memory_seq_rm(memory, sequence, length, -1)
                self.lengths[sequence] = length

    def feed(self, tokens: list[int]) -> Floats:
        return self.fed([(0, token) for token in tokens], 1)[0]

    def rows(self, tokens: list[int]) -> Floats:
        return self.fed([(0, token) for token in tokens], len(tokens))

    def each(self, tokens: list[int]) -> Floats:
        return self.fed(list(enumerate(tokens)), len(tokens))

    def fed(self, pairs: list[tuple[int, int]], n_rows: int) -> Floats:
        """Feeds pairs of a sequence and its next token in one batch. Returns the logits of the last n_rows, which C owns."""
        most = self.api.llama_n_batch(self.context)
        if len(pairs) > most:  # llama.cpp would end the process
            raise ValueError(f"{self.name}: expected at most {most} tokens at once, found {len(pairs)}")
        batch = self.api.llama_batch_init(len(pairs), 0, 1)
        try:
            batch.n_tokens = len(pairs)
            for i, (sequence, token) in enumerate(pairs):
                batch.token[i], batch.pos[i] = token, self.lengths[sequence]
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
                batch.logits[i] = i >= len(pairs) - n_rows
                self.lengths[sequence] += 1
            if self.api.llama_decode(self.context, batch):
                raise ValueError(f"{self.name}: llama_decode failed on {len(pairs)} tokens")
            shape = (n_rows, self.vocab_size)
            logits: Floats = np.ctypeslib.as_array(self.api.llama_get_logits(self.context), shape)  # this waits
            return logits
        finally:
            self.api.llama_batch_free(batch)


class Torch(InProcess):
    """LlamaForCausalLM of transformers, in fp32 on PyTorch's CPU kernels, with its own cache."""

    name = "PyTorch"
    modules = ("torch", "transformers")
    packages = "torch and transformers"

    def __init__(self, checkpoint: Path, n_threads: int) -> None:
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        warnings.filterwarnings("ignore", message=".*past_key_values")  # newer versions call it `cache`
        torch.set_num_threads(n_threads)
        torch.set_grad_enabled(False)
        folder = converted(checkpoint, checkpoint.with_name(f"{checkpoint.stem}_hf"), format="hf")
        self.model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.torch, self.new_cache, self.vocab_size = torch, transformers.DynamicCache, self.model.config.vocab_size
        self.cache = self.new_cache()

    def clear(self) -> None:
        self.cache = self.new_cache()

    def feed(self, tokens: list[int]) -> Floats:
        out = self.model(self.torch.tensor([tokens]), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        logits: Floats = out.logits[0, -1].numpy()
        return logits


class PlainNumPy(InProcess):
    """A straightforward forward pass in NumPy with a cache: fp32, matrix products by its BLAS on all cores."""

    name = "NumPy"
    modules = ("numpy",)
    packages = "numpy"

    def __init__(self, checkpoint: Path, n_threads: int) -> None:
        opened = Checkpoint.open(checkpoint)
        self.config: Config = opened.config
        self.w: Any = opened.weights
        self.vocab_size = self.config.vocab_size
        c = self.config
        frequencies = c.rope_theta ** (-np.arange(0, c.head_size, 2) / c.head_size)
        self.turns = np.exp(1j * np.arange(c.seq_len)[:, None] * frequencies).astype(np.complex64)
        self.keys = np.empty((c.n_layers, c.n_kv_heads, c.seq_len, c.head_size), np.float32)
        self.values = np.empty_like(self.keys)
        self.length = 0

    def clear(self) -> None:
        self.length = 0

    def feed(self, tokens: list[int]) -> Floats:
        start, self.length = self.length, self.length + len(tokens)
        x = self.w["token_embedding_table"][tokens]
        for layer in range(self.config.n_layers):
            x = x + self.attention(self.norm(x, self.w["rms_att_weight"][layer]), layer, start)
            h = self.norm(x, self.w["rms_ffn_weight"][layer])
            gate = h @ self.w["w1"][layer].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ self.w["w3"][layer].T)) @ self.w["w2"][layer].T
        logits: Floats = self.w["wcls"] @ self.norm(x[-1:], self.w["rms_final_weight"])[0]
        return logits

    def norm(self, x: Floats, weight: Floats) -> Floats:
        scaled: Floats = weight * x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(self.config.norm_eps))
        return scaled

    def rotate(self, x: Floats, start: int) -> Floats:
        turned = x.view(np.complex64) * self.turns[start : start + len(x), None]
        return turned.view(np.float32)

    def attention(self, x: Floats, layer: int, start: int) -> Floats:
        c, n = self.config, len(x)
        q = self.rotate((x @ self.w["wq"][layer].T).reshape(n, c.n_heads, c.head_size), start)
        k = self.rotate((x @ self.w["wk"][layer].T).reshape(n, c.n_kv_heads, c.head_size), start)
        v = (x @ self.w["wv"][layer].T).reshape(n, c.n_kv_heads, c.head_size)
        keys, values = self.keys[layer, :, : self.length], self.values[layer, :, : self.length]
        keys[:, start:], values[:, start:] = k.swapaxes(0, 1), v.swapaxes(0, 1)
        q = q.reshape(n, c.n_kv_heads, -1, c.head_size).transpose(1, 2, 0, 3)  # (kv heads, heads of each, n, head_size)
        scores = q @ keys[:, None].swapaxes(-1, -2) / np.sqrt(np.float32(c.head_size))
        if n > 1:
            scores = np.where(np.tri(n, self.length, start, dtype=bool), scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out: Floats = (weights @ values[:, None]).transpose(2, 0, 1, 3).reshape(n, -1) @ self.w["wo"][layer].T
        return out


PACKAGES = (LlamaCpp, Torch, PlainNumPy)


def installed(peer: Any) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in peer.modules)


# ---------------------------------------------------------------------------
# whole commands


class Run(NamedTuple):
    """The text that a command with the flags of run.c printed, and the speed that it reported."""

    text: bytes
    rate: float


@dataclass(frozen=True)
class Program:
    """A command with the flags of run.c that prints "achieved tok/s": ours, or a C program."""

    name: str
    binary: list[str]
    arguments: list[str]  # the checkpoint, its tokenizer, and temperature 0
    n_threads: int

    def command(self, *flags: str) -> list[str]:
        return [*self.binary, *self.arguments, *flags]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": str(self.n_threads)}

    def run(self, *flags: str) -> Run:
        """Runs it. Both outputs go to files, because the reader of a pipe would take a core from the program."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            code = subprocess.run(self.command(*flags), env=self.environment, stdout=out, stderr=err).returncode
            out.seek(0)
            err.seek(0)
            text, said = out.read(), err.read()
        found = re.search(rb"achieved tok/s: ([0-9.]+|inf)", said)
        if code or found is None:
            end = said.decode(errors="replace").strip()[-200:]
            raise ValueError(f"{self.name}: expected exit code 0 and a line 'achieved tok/s', found {code} and {end!r}")
        return Run(text, float(found[1]))


def our_program(checkpoint: Path, tokenizer: Path | None, n_threads: int) -> Program:
    """`python -m llama2c`, with the tokenizer of the checkpoint itself if there is no other."""
    arguments = [str(checkpoint), *(["-z", str(tokenizer)] if tokenizer else []), "-t", "0"]
    return Program(Ours.name, [sys.executable, "-m", "llama2c"], arguments, n_threads)


def is_quantized(name: str) -> bool:
    """Whether a C program reads Q8_0: then its name begins with "runq". "run", "run_omp", ... read fp32."""
    return name.startswith("runq")


# ---------------------------------------------------------------------------
# the same weights for others


def converted(checkpoint: Path, out: Path, **options: Any) -> Path:
    """The checkpoint in another format, written by llama2c.export unless it is there and not older."""
    if not out.exists() or out.stat().st_mtime_ns < checkpoint.stat().st_mtime_ns:
        export(checkpoint, out, **options)
    return out


def main() -> int:
    name, checkpoint, n_threads, prompt = sys.argv[1:]
    peer = {peer.name: peer for peer in (Ours, *PACKAGES)}[name](Path(checkpoint), int(n_threads))
    token = peer.choose([int(token) for token in prompt.split(",")])
    print(token, flush=True)
    for _ in range(16):
        token = peer.choose([token])
    return 0


if __name__ == "__main__":
    sys.exit(main())
