"""A model whose steps a test controls."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from llama2c.transformer import Transformer

PATIENCE = 60  # seconds for what takes milliseconds
POISON = 9  # a byte that no text has: the logits after this token are NaN in a Controlled model


class Controlled(Transformer):
    """Logits after POISON are NaN. With `steps` held, each step waits until the test lets it go; `failure` is raised once."""

    held = False
    failure: Exception | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.entered = threading.Semaphore(0)  # a step has begun
        self.go = threading.Semaphore(0)  # and may go on
        self.batches: list[list[int]] = []  # the numbers of tokens of each sequence, for each step

    def forward_batch(self, sequences: Any, *, logits: Any = 1, out: Any = None) -> Any:
        self.batches.append([len(tokens) for tokens, _ in sequences])
        if self.held:
            self.entered.release()
            assert self.go.acquire(timeout=PATIENCE)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        rows = super().forward_batch(sequences, logits=logits, out=out)
        last = np.cumsum(list(logits))
        for (tokens, _), wanted, end in zip(sequences, logits, last, strict=True):
            if wanted and tokens[-1] == POISON:
                rows[end - 1] = np.nan
        return rows

    def step(self) -> None:
        """Let one step go, and wait until the next has begun."""
        self.go.release()
        assert self.entered.acquire(timeout=PATIENCE)

    def hold(self) -> None:
        self.held = True

    def let_go(self) -> None:
        self.held = False
        self.go.release()
