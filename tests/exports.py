"""What the tests of export share: a model, its weights, and comparisons."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from checkpoints import Arrays

from llama2c import Checkpoint, Config, Transformer
from llama2c.tensors import as_floats

CONFIG = Config(dim=64, hidden_dim=96, n_layers=2, n_heads=8, n_kv_heads=4, vocab_size=300, seq_len=40)
NORMS = ("rms_att_weight", "rms_ffn_weight", "rms_final_weight")


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


needs_safetensors = needs("safetensors")
needs_torch = needs("torch")
needs_transformers = needs("torch", "transformers", "safetensors")


def random_weights(shared: bool = True, config: Config = CONFIG, seed: int = 5) -> Arrays:
    return checkpoints.random_weights(config, np.random.default_rng(seed), shared)


def opened_weights(path: Path) -> Arrays:
    """The weights of a file in fp32; wcls only if it has its own."""
    checkpoint = Checkpoint.open(path)
    assert checkpoint.config == CONFIG
    weights = {n: as_floats(w) for n, w in checkpoint.weights.items()}
    if checkpoint.shared_classifier:
        del weights["wcls"]
    return weights


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def as_bf16(array: np.ndarray) -> np.ndarray:
    """The upper halves."""
    return (np.ascontiguousarray(array, "<f4").view("<u4") >> 16).astype("<u2")


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype("<u4") << 16).view("<f4")


def logits_of(path: Path, ids: np.ndarray) -> np.ndarray:
    transformer = Transformer(Checkpoint.open(path), n_threads=1)
    return transformer.forward(ids, transformer.new_cache(), logits=None)


def transformers_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor(ids)[None]).logits[0].float().numpy()
    return logits
