"""The fingerprint of a model: what, besides the request, its seed and its date, decides the bytes of an answer.

The weights are the largest part of it. Their digest is remembered in the cache folder, with the state of the files that it was
computed from, so that it is computed once for a file and never taken for another one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from . import _kernels
from .architecture import CLASSIFIER
from .files import FileState, file_state, read_json
from .formats.checkpoint import Checkpoint
from .formats.writer import replacing
from .locate import cache_folder
from .tensors import BFloat16Tensor, BlockTensor, Layers, QuantizedTensor, Raw, Weight
from .text.tokenizer import Tokenizer
from .transformer import Transformer

NUMERICS = 1  # is raised when any sum changes its order, or anything else does that changes a bit of a logit or a draw
DIGESTS = "fingerprints"  # the folder of the cache with the digests of weights


def arithmetic() -> str:
    """"fma": with a fused multiply-add, whose bits are the same on every such instruction set; or "generic": without."""
    return "generic" if _kernels.isa == "generic" else "fma"


def fingerprint(transformer: Transformer, tokenizer: Tokenizer | None = None, constrained: bool = False) -> str:
    """32 hexadecimal digits: the same for models that give the same bytes for the same request, seed and date.

    tokenizer    None: the requests are token ids, not text
    constrained  the requests have a schema, a regular expression or a grammar: the version of llguidance counts too
    """
    checkpoint = transformer.checkpoint
    parts = {
        "numerics": NUMERICS,
        "arithmetic": arithmetic(),
        "kv": transformer.kv,
        "config": asdict(checkpoint.config),
        "rope_pairs": checkpoint.rope_pairs,
        "rope_factors": checkpoint.rope_factors,
        "weights": weights_digest(checkpoint, transformer.n_threads),
        "tokenizer": None if tokenizer is None else hashlib.sha256(tokenizer.definition()).hexdigest(),
        "llguidance": llguidance_version() if constrained else None,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def llguidance_version() -> str | None:
    """The version of the package that restricts tokens; None: it is not installed."""
    from importlib import metadata  # takes milliseconds

    try:
        return metadata.version("llguidance")
    except metadata.PackageNotFoundError:
        return None


# ---------------------------------------------------------------------------
# the weights


def weights_digest(checkpoint: Checkpoint, n_threads: int) -> str:
    """The digest of the weights: one that was remembered, if the files have not changed since, or else a new one."""
    states = checkpoint.states
    if not states or not are_now(states):  # the weights in use are not those of the files any more
        return digest(checkpoint, n_threads)
    found = recall(states)
    if found is None:
        found = digest(checkpoint, n_threads)
        if are_now(states):  # also at the end of it
            remember(states, found)
    return found


def are_now(states: tuple[FileState, ...]) -> bool:
    """Whether files still are in these states."""
    try:
        return all(file_state(state.path) == state for state in states)
    except (OSError, ValueError):
        return False


def recall(states: tuple[FileState, ...]) -> str | None:
    """The digest that was remembered for files in these states."""
    with contextlib.suppress(OSError, ValueError):
        content = read_json(digest_path(states))
        if content.get("files") == [list(state) for state in states] and isinstance(content.get("weights"), str):
            return str(content["weights"])
    return None


def remember(states: tuple[FileState, ...], found: str) -> None:
    """Write down a digest, in place of the one for earlier states of these files. No error if that is not possible."""
    text = json.dumps({"files": states, "weights": found})
    with contextlib.suppress(OSError, ValueError):
        path = digest_path(states)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, len(text)) as unfinished:
            unfinished.write_text(text)


def digest_path(states: tuple[FileState, ...]) -> Path:
    """Where the digest for some files is: one file for each model. OSError: there is no cache folder."""
    name = hashlib.sha256(os.fsencode(states[0].path)).hexdigest()[:32]
    return cache_folder() / DIGESTS / f"{name}.json"


def digest(checkpoint: Checkpoint, n_threads: int) -> str:
    """A digest of all numbers as they are stored, with the names, kinds and shapes of their tensors. Reads all of them."""
    weights = dict(checkpoint.weights)
    if checkpoint.shared_classifier:
        del weights[CLASSIFIER.name]  # it is another name of the embedding
    parts = [(f"{name} {description}", raw) for name in sorted(weights) for description, raw in raw_arrays(weights[name])]
    with ThreadPoolExecutor(n_threads, "llama2c-digest") as threads:
        digests = threads.map(lambda part: hashlib.sha256(part[1].view(np.uint8).data).hexdigest(), parts)
        lines = [f"{description} {found}\n" for (description, _), found in zip(parts, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def raw_arrays(weight: Weight) -> Iterator[tuple[str, Raw]]:
    """The arrays that a tensor consists of, each contiguous, with a description of each."""
    if isinstance(weight, Layers):
        for matrix in weight.matrices:
            yield from raw_arrays(matrix)
    elif isinstance(weight, QuantizedTensor) and weight.values.ndim > 2:  # matrices that may be apart
        for i in range(weight.shape[0]):
            yield from raw_arrays(weight[i])
    elif isinstance(weight, QuantizedTensor):
        yield f"{weight.kind} {weight.shape} {weight.group_size}", weight.values
        yield "scales", weight.scales
    elif isinstance(weight, BlockTensor):
        yield f"{weight.kind} {weight.shape}", weight.blocks
    elif isinstance(weight, BFloat16Tensor):
        yield f"{weight.kind} {weight.shape}", weight.bits
    else:
        yield f"{weight.dtype} {weight.shape}", weight
