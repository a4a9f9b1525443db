"""Tiny models whose chat templates have tools, and which write what a test wants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import checkpoints
import folders
import json_tokenizers
import numpy as np

import llama2c
from llama2c.llama import Llama
from llama2c.transformer import Transformer


class Scripted(Transformer):
    """Writes the text that a test gives it, whatever it is asked, and then ends; None: what its random weights say."""

    _script: list[int] | None = None
    _start: int | None = None  # the position of the first token

    def write(self, llama: Llama, text: str | None) -> None:
        tokenizer = llama.tokenizer
        self._script = None if text is None else [*tokenizer.encode(text, bos=False), min(tokenizer.end_ids)]
        self._start = None

    def forward_batch(self, sequences: Any, *, logits: Any = 1, out: Any = None) -> Any:
        rows = super().forward_batch(sequences, logits=logits, out=out)
        if self._script is None:
            return rows
        each = logits if isinstance(logits, Sequence) else [logits] * len(sequences)
        row = 0
        for (_, cache), n in zip(sequences, each, strict=True):
            for position in range(cache.length - n, cache.length):
                self._start = position if self._start is None else self._start
                rows[row] = -100
                rows[row, self._script[min(position - self._start, len(self._script) - 1)]] = 100
                row += 1
        return rows


def write_folder(folder: Path, template: str | None, special: Sequence[str] = ()) -> Path:
    """A model of random weights, and a tokenizer with this template and, besides its own, these special tokens."""
    package = json_tokenizers.byte_level(None, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special])
    size = package.get_vocab_size()
    config = llama2c.Config(dim=32, hidden_dim=48, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=size, seq_len=4096)
    folders.write_model(folder, config, checkpoints.random_weights(config, np.random.default_rng(3)))
    json_tokenizers.save(folder, package, json_tokenizers.CONFIGS["chatml"])
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def open_scripted(folder: Path) -> Llama:
    llama = llama2c.load(folder, n_threads=1)
    return Llama(Scripted(llama.transformer.checkpoint, n_threads=1), llama.tokenizer)
