"""A model to be exported: its shape, and its weights by llama2c's names, one matrix at a time and in fp32.

Nothing is loaded here: a tensor is read when the writer asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config import Config
from ..tensors import Floats, as_floats, paired
from .checkpoint import Checkpoint
from .layout import Entry
from .naming import WHOLE


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A model to be written."""

    path: Path
    config: Config
    shared_classifier: bool
    read: Callable[[str, int], Floats]  # (name, layer) -> (rows, cols), of norms (dim,); WHOLE have layer 0

    def numbers(self, entry: Entry, i: int) -> Iterator[Floats]:
        """Matrix i of a tensor, for write_checkpoint; a file has the norms of all layers in one matrix."""
        per_layer_norm = len(entry.shape) == 2 and entry.name not in WHOLE
        for layer in range(entry.shape[0]) if per_layer_norm else [i]:
            yield self.read(entry.name, layer)


def from_checkpoint(path: Path) -> Source:
    """Whatever llama2c runs: a file or a Hugging Face folder. What is quantised is multiplied out."""
    checkpoint = Checkpoint.open(path)

    def read(name: str, layer: int) -> Floats:
        weight = checkpoint.weights[name]
        floats = as_floats(weight if name in WHOLE else weight[layer])
        in_halves = checkpoint.rope_pairs == "halves" and name in ("wq", "wk")
        return paired(floats, checkpoint.config.head_size) if in_halves else floats

    return Source(path, checkpoint.config, checkpoint.shared_classifier, read)
