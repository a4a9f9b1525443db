"""--trace: writes down what passes through a model, step by step. docs/command-line.md has the format."""

from __future__ import annotations

import contextlib
import sys
from typing import TextIO

import numpy as np

from ..errors import file_error
from ..transformer import Floats, ObservedStep


class TraceWriter:
    """An observer for Transformer that writes lines to `file`."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __call__(self, step: ObservedStep) -> None:
        for position, token, layers, logits in zip(step.positions, step.tokens, step.layers, step.logits, strict=True):
            self._write(position, token, layers, logits)

    def _write(self, position: int, token: int, layers: Floats, logits: Floats) -> None:
        """The lines of one position. IN layers (n_layers, 4), logits (vocab_size,)."""
        for layer, (att_norm, att_mean, ffn_norm, ffn_mean) in enumerate(layers.tolist()):
            numbers = f"{att_norm:.5g}\t{att_mean:.5f}\t{ffn_norm:.5g}\t{ffn_mean:.5f}"
            self._file.write(f"layer\t{position}\t{token}\t{layer}\t{numbers}\n")
        likeliest = np.argsort(-logits, kind="stable")[:5]  # ties by id
        numbers = "\t".join(f"{id}\t{logits[id]:.5f}" for id in likeliest)
        self._file.write(f"top\t{position}\t{token}\t{numbers}\n")


def open_trace(name: str) -> contextlib.AbstractContextManager[TextIO]:
    """The file of that name, to be written; "-" is stderr."""
    if name == "-":
        return contextlib.nullcontext(sys.stderr)
    try:
        return open(name, "w", encoding="ascii")
    except OSError as error:
        raise file_error(error, name, "a file to write to") from None
