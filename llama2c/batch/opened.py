"""What a process has open: one Llama and one Engine for each model, whoever asks for it. With a share of the memory.

A process that was given some of the cores of a machine takes no more of its memory: others have the rest.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from ..constraints import CONSTRAINTS
from ..engine.engine import CACHE_SHARE, Engine
from ..engine.prefixes import default_bytes
from ..errors import ModelError
from ..fingerprint import fingerprint
from ..limits import usable_memory
from ..llama import load
from ..threads import available_cores
from ..transformer import KVType


@dataclass(frozen=True, slots=True)
class Model:
    """What to open, and how. Another process, and another machine, opens the same.

    path           as load() takes it; a relative path is that of the process that opens it
    max_sequences  that an engine works on at once
    cache_bytes    for them; None: half of what is free, or this process' share of it
    """

    path: str | None = None
    tokenizer: str | None = None
    kv: KVType = "float32"
    n_threads: int | None = None
    max_sequences: int = 32
    cache_bytes: int | None = None


class Opened:
    """A model and its engine. OSError, ModelError: as load()."""

    def __init__(self, model: Model) -> None:
        self.llama = load(model.path, model.tokenizer, model.n_threads, kv=model.kv)
        share = share_of_machine(model.n_threads)
        cache_bytes, prefix_bytes = model.cache_bytes, int(default_bytes() * share)
        if cache_bytes is None:
            cache_bytes = int(usable_memory() * share) // CACHE_SHARE
        self.engine = Engine(self.llama, model.max_sequences, cache_bytes, prefix_bytes)
        self._fingerprints: dict[bool, str] = {}

    def fingerprint_of(self, options: Mapping[str, Any]) -> str:
        """What decides the bytes of a request with these options: with a constraint, the version of llguidance does, too."""
        constrained = any(options.get(name) is not None for name in CONSTRAINTS)
        if constrained not in self._fingerprints:
            self._fingerprints[constrained] = fingerprint(self.llama.transformer, self.llama.tokenizer, constrained)
        return self._fingerprints[constrained]

    def check_fingerprint(self, expected: str) -> None:
        """ModelError: it is another model, which would give other bytes."""
        found = self.fingerprint_of({})
        if found != expected:
            path = self.llama.transformer.checkpoint.path
            raise ModelError(f"{path}: expected a model with the fingerprint {expected}, found {found}")


def share_of_machine(n_threads: int | None) -> float:
    """1 core of 16 -> 1/16. 1 where nobody says how many: n_threads, or OMP_NUM_THREADS, as Ray sets it."""
    threads = os.environ.get("OMP_NUM_THREADS", "") if n_threads is None else str(n_threads)
    return min(1.0, int(threads) / available_cores()) if threads.isdecimal() else 1.0


_lock = threading.Lock()
_opened: WeakValueDictionary[tuple[int, Model], Opened] = WeakValueDictionary()


def opened(model: Model) -> Opened:
    """The one of this process. A child of fork() opens it anew: the thread of an engine is not there."""
    key = os.getpid(), model
    with _lock:
        found = _opened.get(key)
        if found is None:
            found = _opened[key] = Opened(model)
        return found
