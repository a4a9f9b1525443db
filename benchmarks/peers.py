"""The programs we are compared with, each behind the same two questions: how fast is decode, how fast is prefill.

A peer that is not there (a binary not named, a package not installed) is not made; compare.py says so.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llama2c.checkpoint import Checkpoint, QuantizedTensor
from llama2c.transformer import Transformer

FIRST_ID = 5  # the ids fed to in-process peers: FIRST_ID, FIRST_ID + 1, ...; speed does not depend on them


class Peer(Protocol):
    """One program with one model and one number of threads. Speeds are in tokens a second."""

    name: str

    def decode(self, n_tokens: int) -> float:
        """Tokens made one by one from an empty context, the first step not counted."""

    def prefill(self, n_tokens: int) -> float:
        """Prompt tokens, until the logits after the last of them are there."""


class Ours:
    """llama2c, through the same calls as any user's."""

    def __init__(self, checkpoint: Path, n_threads: int, name: str = "llama2c") -> None:
        self.name = name
        self.transformer = Transformer(Checkpoint.open(checkpoint), n_threads=n_threads)
        self.cache = self.transformer.new_cache()
        self.logits = np.empty(self.transformer.config.vocab_size, np.float32)

    def decode(self, n_tokens: int) -> float:
        return self.decode_at(0, n_tokens)

    def decode_at(self, position: int, n_tokens: int) -> float:
        """The same, from `position` on."""
        self.cache.truncate(min(position, self.cache.length))
        if position > self.cache.length:
            self.transformer.forward(ids(position - self.cache.length), self.cache)
        forward, cache, logits = self.transformer.forward, self.cache, self.logits
        forward([1], cache, out=logits)
        start = time.perf_counter()
        for _ in range(n_tokens - 1):
            forward([int(logits.argmax())], cache, out=logits)
        return (n_tokens - 1) / (time.perf_counter() - start)

    def prefill(self, n_tokens: int) -> float:
        self.cache.truncate(0)
        tokens = ids(n_tokens)
        start = time.perf_counter()
        self.transformer.forward(tokens, self.cache, out=self.logits)
        return n_tokens / (time.perf_counter() - start)

    def batch(self, n_sequences: int, n_tokens: int) -> float:
        """Tokens a second of all sequences together, decoded in the same steps."""
        caches = [self.transformer.new_cache(n_tokens + 1) for _ in range(n_sequences)]
        out = self.transformer.forward_batch([([1], cache) for cache in caches])
        start = time.perf_counter()
        for token in ids(n_tokens):
            self.transformer.forward_batch([([token], cache) for cache in caches], out=out)
        return n_sequences * n_tokens / (time.perf_counter() - start)


class CProgram:
    """run or runq of llama2.c, by its own "achieved tok/s": steps after the first, prompt positions included."""

    def __init__(self, binary: Path, checkpoint: Path, tokenizer: Path, n_threads: int, name: str) -> None:
        self.name = name
        self.command = [str(binary), str(checkpoint), "-z", str(tokenizer), "-t", "0"]
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(n_threads)}

    def decode(self, n_tokens: int) -> float:
        return self._run("-n", str(n_tokens))

    def prefill(self, n_tokens: int) -> float:
        # The program takes a prompt one position after the other, so its speed there is that of decode.
        return self.decode(n_tokens)

    def _run(self, *flags: str) -> float:
        done = subprocess.run([*self.command, *flags], env=self.environment, capture_output=True, check=True)
        found = re.search(rb"achieved tok/s: ([0-9.]+|inf)", done.stderr)
        if found is None:
            raise ValueError(f"{self.name}: expected a line 'achieved tok/s', found {done.stderr[-200:]!r}")
        return float(found[1])


class LlamaCpp:
    """llama.cpp through llama-cpp-python, on the same weights written as GGUF."""

    def __init__(self, gguf: Path, n_threads: int, name: str) -> None:
        import llama_cpp

        self.api = llama_cpp
        self.name = name
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

    def logits(self, tokens: list[int]) -> Any:
        """float32 (vocab_size,) after the last token, from an empty context."""
        self._clear()
        self._feed(tokens)
        return np.ctypeslib.as_array(self.api.llama_get_logits(self.context), (self.vocab_size,)).copy()

    def decode(self, n_tokens: int) -> float:
        self._clear()
        self._feed([1])
        start = time.perf_counter()
        for token in ids(n_tokens - 1):
            self._feed([token])
        return (n_tokens - 1) / (time.perf_counter() - start)

    def prefill(self, n_tokens: int) -> float:
        self._clear()
        start = time.perf_counter()
        self._feed(ids(n_tokens))
        return n_tokens / (time.perf_counter() - start)

    def _clear(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def _feed(self, tokens: list[int]) -> None:
        array = (self.api.llama_token * len(tokens))(*tokens)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError(f"{self.name}: llama_decode failed on {len(tokens)} tokens")
        self.api.llama_get_logits(self.context)  # waits for them


def ids(n: int) -> list[int]:
    return list(range(FIRST_ID, FIRST_ID + n))


def write_gguf(checkpoint: Checkpoint, path: Path, quantized: bool) -> None:
    """The same weights for llama.cpp: F32, or Q8_0 in its own groups of 32."""
    import gguf

    c, w = checkpoint.config, checkpoint.weights
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(c.seq_len)
    writer.add_embedding_length(c.dim)
    writer.add_block_count(c.n_layers)
    writer.add_feed_forward_length(c.hidden_dim)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_rope_dimension_count(c.head_size)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<0x{i - 3:02X}>" if 3 <= i < 259 else f"t{i}" for i in range(c.vocab_size)])
    writer.add_token_scores([0.0] * c.vocab_size)
    writer.add_token_types([6 if 3 <= i < 259 else 3 if i < 3 else 1 for i in range(c.vocab_size)])

    def add(name: str, weight: Any, matrix: bool) -> None:
        array = weight.dequantize() if isinstance(weight, QuantizedTensor) else np.ascontiguousarray(weight)
        if matrix and quantized:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)

    add("token_embd.weight", w["token_embedding_table"], True)
    add("output_norm.weight", w["rms_final_weight"], False)
    if not checkpoint.shared_classifier:
        add("output.weight", w["wcls"], True)
    names = {"wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output"}
    names |= {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}
    for layer in range(c.n_layers):
        add(f"blk.{layer}.attn_norm.weight", w["rms_att_weight"][layer], False)
        add(f"blk.{layer}.ffn_norm.weight", w["rms_ffn_weight"][layer], False)
        for ours, theirs in names.items():
            add(f"blk.{layer}.{theirs}.weight", w[ours][layer], True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
