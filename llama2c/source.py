"""The weights of a model by llama2c's names, whatever they are stored in: what all readers of foreign files share.

Nothing is loaded here: a tensor is read when the writer asks for it, and then converted to fp32.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .checkpoint import ROPE_TABLES, Checkpoint, Entry, QuantizedTensor, tensor_shapes
from .config import Config
from .writer import Floats

WHOLE = ("token_embedding_table", "rms_final_weight", "wcls")  # one for the model; of the others there is one for each layer
DTYPES = ("float32", "float16", "bfloat16")  # that are read
N_ROWS_COMPARED = 256  # of two classifiers, at a time

Raw: TypeAlias = NDArray[Any]  # numbers as they are stored; bfloat16, which NumPy lacks, as uint16


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A model to be written: its shape, and its weights one at a time."""

    path: Path
    config: Config
    shared_classifier: bool
    read: Callable[[str, int], Floats]  # (name, layer) -> (rows, cols), of norms (dim,); WHOLE have layer 0
    rope_scaling: Mapping[str, Any] | None = None  # in the spelling of Hugging Face; None: positions as they are

    def numbers(self, entry: Entry, i: int) -> Iterator[Floats]:
        """Matrix i of a tensor, for write_checkpoint; a file has the norms of all layers in one matrix."""
        per_layer_norm = len(entry.shape) == 2 and entry.name not in WHOLE
        for layer in range(entry.shape[0]) if per_layer_norm else [i]:
            yield self.read(entry.name, layer)


def from_checkpoint(path: Path) -> Source:
    """A file in one of llama2c's formats; what is quantised is multiplied out."""
    checkpoint = Checkpoint.open(path)

    def read(name: str, layer: int) -> Floats:
        weight = checkpoint.weights[name]
        part = weight if name in WHOLE else weight[layer]
        return part.dequantize() if isinstance(part, QuantizedTensor) else part

    return Source(path, checkpoint.config, checkpoint.shared_classifier, read)


# ---------------------------------------------------------------------------
# tensors under foreign names


class Stored(NamedTuple):
    """A tensor of a foreign file."""

    dtype: str  # "float32", or what the file calls it if it is none of DTYPES
    shape: tuple[int, ...]
    raw: Callable[[], Raw]

    def floats(self, order: Callable[[Raw], Raw] | None = None) -> Floats:
        """All of it in fp32, brought into another order before it is larger."""
        return as_floats(self.raw() if order is None else order(self.raw()), self.dtype)


class Names(NamedTuple):
    """How a kind of file spells the tensors: patterns with {} for the layer."""

    patterns: Mapping[str, str]
    ignored: re.Pattern[str]  # what can be computed from the config

    def spelled(self, name: str, layer: int) -> str:
        return self.patterns[name].format(layer)


def from_tensors(
    path: Path,
    config: Config,
    names: Names,
    tensors: Mapping[str, Stored],
    tied: bool = False,
    rope_scaling: Mapping[str, Any] | None = None,
    orders: Mapping[str, Callable[[Raw], Raw]] | None = None,
) -> Source:
    """A Source of tensors that were found. `orders`: how those, by llama2c's names, get into its order, that are in another.

    `tied`: there need be no classifier.

    ValueError: a tensor is missing, is one too many, or has another shape or type than the config says.
    """
    shapes = tensor_shapes(config)
    del shapes[ROPE_TABLES]
    has_classifier = names.patterns["wcls"] in tensors
    if not has_classifier and tied:
        del shapes["wcls"]
    expected: set[str] = set()
    for name, shape in shapes.items():
        for layer in range(1 if name in WHOLE else config.n_layers):
            spelled = names.spelled(name, layer)
            check_tensor(path, spelled, tensors.get(spelled), shape if name in WHOLE else shape[1:])
            expected.add(spelled)
    surplus = next((name for name in tensors if name not in expected and not names.ignored.fullmatch(name)), None)
    if surplus is not None:
        raise ValueError(f"{path}: expected the {len(expected)} tensors of a Llama model, found one more: {surplus}")

    def read(name: str, layer: int) -> Floats:
        return tensors[names.spelled(name, layer)].floats((orders or {}).get(name))

    classifier, embedding = names.patterns["wcls"], names.patterns["token_embedding_table"]
    shared = not has_classifier or same_values(tensors[classifier], tensors[embedding])
    if tied and not shared:
        raise ValueError(f"{path}: {classifier}: expected the values of {embedding}, as they are tied, found others")
    return Source(path, config, shared, read, rope_scaling)


def check_tensor(path: Path, name: str, stored: Stored | None, shape: tuple[int, ...]) -> None:
    if stored is None:
        raise ValueError(f"{path}: expected a tensor {name}, found none")
    if stored.shape != shape:
        raise ValueError(f"{path}: {name}: expected shape {shape}, found {stored.shape}")
    if stored.dtype not in DTYPES:
        raise ValueError(f"{path}: {name}: expected {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, found {stored.dtype}")


def same_values(a: Stored, b: Stored) -> bool:
    """Whether two matrices of one shape are equal; a few rows at a time, as most differ in the first."""
    raw_a, raw_b = a.raw(), b.raw()
    blocks = [slice(first, first + N_ROWS_COMPARED) for first in range(0, len(raw_a), N_ROWS_COMPARED)]
    return all(np.array_equal(as_floats(raw_a[rows], a.dtype), as_floats(raw_b[rows], b.dtype)) for rows in blocks)


def as_floats(raw: Raw, dtype: str) -> Floats:
    """Numbers in fp32. bfloat16 is the upper half of it, so its bits get 16 zeros behind them."""
    if dtype != "bfloat16":
        return raw.astype(np.float32, copy=False)
    wide = raw.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


# ---------------------------------------------------------------------------
# settings in JSON


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. ValueError if there is none, OSError if it cannot be read: one line each."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise type(error)(f"{path}: expected a readable file, found: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, found: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def make_config(path: Path, **values: Any) -> Config:
    """A Config of values that came out of a file; whatever is wrong with them is a ValueError that names the file."""
    try:
        return Config(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def require(path: Path, settings: Mapping[str, Any], keys: Iterable[str]) -> None:
    missing = next((key for key in keys if settings.get(key) is None), None)
    if missing is not None:
        raise ValueError(f"{path}: expected a setting {missing}, found none")
