"""The programs that we compare with, on the same weights and with the same methods: logits, decode, prefill.

A peer is left out if its binary was not named or its package is not installed; compare.py says so. As a command,
`peers.py NAME CHECKPOINT THREADS IDS` starts one peer, feeds it a prompt and writes 17 tokens, to measure start-up and memory.
"""

from __future__ import annotations

import importlib.util
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
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llama2c import Checkpoint, Config, Transformer, export

Floats = NDArray[np.float32]
REPEATS = 5  # runs of something short for one sample


def ids(n: int, vocab_size: int = 1 << 30) -> list[int]:
    """Arbitrary tokens: speed does not depend on them."""
    return [token % vocab_size for token in range(5, 5 + n)]


def middle(measure: Callable[[], float]) -> float:
    """The median of REPEATS measurements, after one that wakes up sleeping threads."""
    measure()
    return statistics.median(measure() for _ in range(REPEATS))


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


class Ours(InProcess):
    """llama2c, through its public functions."""

    name = "llama2c"

    def __init__(self, checkpoint: Path, n_threads: int | None) -> None:
        self.transformer = Transformer(Checkpoint.open(checkpoint), n_threads=n_threads)
        self.vocab_size = self.transformer.config.vocab_size
        self.cache = self.transformer.new_cache()
        self.out = np.empty(self.vocab_size, np.float32)

    def clear(self) -> None:
        self.cache.truncate(0)

    def feed(self, tokens: list[int]) -> Floats:
        return self.transformer.forward(tokens, self.cache, out=self.out)

    def decode_at(self, position: int, n_tokens: int) -> float:
        """Speed around a position: `n_tokens` steps, of which the middle one is at `position`."""
        first = max(position - n_tokens // 2, 0)
        self.cache.truncate(min(first, self.cache.length))
        if first > self.cache.length:
            self.feed(ids(first - self.cache.length, self.vocab_size))
        token = self.choose([1])
        start = time.perf_counter()
        for _ in range(n_tokens - 1):
            token = self.choose([token])
        return (n_tokens - 1) / (time.perf_counter() - start)

    def batch(self, n_sequences: int, n_tokens: int) -> float:
        """Speed of all sequences together, written in the same steps, without the first step."""
        caches = [self.transformer.new_cache(n_tokens) for _ in range(n_sequences)]
        out = self.transformer.forward_batch([([1], cache) for cache in caches])
        start = time.perf_counter()
        for _ in range(n_tokens - 1):
            steps = [([int(row.argmax())], cache) for row, cache in zip(out, caches, strict=True)]
            self.transformer.forward_batch(steps, out=out)
        return n_sequences * (n_tokens - 1) / (time.perf_counter() - start)


class LlamaCpp(InProcess):
    """llama.cpp through llama-cpp-python, on the same weights written as GGUF."""

    name = "llama.cpp"
    modules = ("llama_cpp",)
    packages = "llama-cpp-python"

    def __init__(self, checkpoint: Path, n_threads: int) -> None:
        import llama_cpp

        gguf = checkpoint.with_suffix(".gguf")
        if gguf != checkpoint:
            converted(checkpoint, gguf, dtype="float32" if Checkpoint.open(checkpoint).group_size is None else "q8_0")
        self.api = llama_cpp
        self.silent = llama_cpp.llama_log_callback(lambda *_: None)  # kept alive: C calls it
        llama_cpp.llama_log_set(self.silent, None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = n_threads
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        self.context = llama_cpp.llama_init_from_model(model, params)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def clear(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def feed(self, tokens: list[int]) -> Floats:
        array = (self.api.llama_token * len(tokens))(*tokens)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError(f"{self.name}: llama_decode failed on {len(tokens)} tokens")
        logits: Floats = np.ctypeslib.as_array(self.api.llama_get_logits(self.context), (self.vocab_size,))  # this waits
        return logits


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
