"""What the readers of other programs' models share: tensors under the names of a format, and settings.

A Stored tensor is read only when its numbers are asked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..architecture import CLASSIFIER, EMBEDDING, LLAMA
from ..config import Config
from ..errors import ModelError
from ..tensors import FLOAT_DTYPES, Floats, Layers, Raw, Weight, as_floats, as_weight

N_ROWS_COMPARED = 256  # of two classifiers, at a time


class Stored(NamedTuple):
    """A tensor in a file of another program."""

    dtype: str  # one of FLOAT_DTYPES or BLOCK_TYPES; other types have the name that the file gives them
    shape: tuple[int, ...]
    raw: Callable[[], Raw]


def check_tensors(
    path: str | Path,
    config: Config,
    format: str,
    tensors: Mapping[str, Stored],
    tied: bool,
    dtypes: Collection[str] = FLOAT_DTYPES,
) -> bool:
    """Check that the tensors of a model are all there, by their names in `format`; return whether the classifier is shared.

    `tied`: the settings say that the classifier is shared, so it may be missing. `dtypes`: the types that a tensor may have.

    Raises ModelError if a tensor is missing, unknown, or has another shape or type than the config says, or if the classifier
    is said to be tied and has other values than the embedding.
    """
    classifier, embedding = CLASSIFIER.spelled(format), EMBEDDING.spelled(format)
    expected: set[str] = set()
    for tensor in LLAMA.tensors.values():
        if tensor is CLASSIFIER and tied and classifier not in tensors:
            continue
        shape = tensor.shape_of_one(config)
        for layer in range(tensor.how_many(config)):
            spelled = tensor.spelled(format, layer)
            check_tensor(path, spelled, tensors.get(spelled), shape, dtypes)
            expected.add(spelled)
    computed = LLAMA.computed[format]
    unknown = next((name for name in tensors if name not in expected and not re.fullmatch(computed, name)), None)
    if unknown is not None:
        raise ModelError(f"{path}: expected the {len(expected)} tensors of a Llama model, found one more: {shown(unknown)}")
    shared = classifier not in tensors or same_values(tensors[classifier], tensors[embedding])
    if tied and not shared:
        raise ModelError(f"{path}: {classifier}: expected the values of {embedding}, because they are tied, found others")
    return shared


def check_tensor(
    path: str | Path, name: str, stored: Stored | None, shape: tuple[int, ...], dtypes: Collection[str] = FLOAT_DTYPES
) -> None:
    if stored is None:
        raise ModelError(f"{path}: expected a tensor {name}, found none")
    if stored.shape != shape:
        raise ModelError(f"{path}: {name}: expected shape {shape}, found {stored.shape}")
    if stored.dtype not in dtypes:
        *others, last = dtypes
        raise ModelError(f"{path}: {name}: expected {', '.join(others)} or {last}, found {stored.dtype}")


def gather(config: Config, format: str, tensors: Mapping[str, Stored], shared: bool) -> tuple[dict[str, Weight], Counter[str]]:
    """The checked tensors of a model under llama2c's names, as in Checkpoint.weights, and how many matrices have which type."""
    weights: dict[str, Weight] = {}
    dtypes: Counter[str] = Counter()
    for tensor in LLAMA.tensors.values():
        if tensor is CLASSIFIER and shared:
            continue
        found = [tensors[tensor.spelled(format, layer)] for layer in range(tensor.how_many(config))]
        parts = [as_weight(stored.raw(), stored.dtype) for stored in found]
        if tensor.is_norm:
            norms = np.stack([as_floats(part) for part in parts])
            norms.flags.writeable = False
            weights[tensor.name] = norms if tensor.per_layer else norms[0]
        else:
            dtypes.update(stored.dtype for stored in found)
            weights[tensor.name] = Layers(tuple(parts)) if tensor.per_layer else parts[0]
    return weights, dtypes


def same_values(a: Stored, b: Stored) -> bool:
    """Whether two matrices of the same shape are equal. Compares a few rows at a time, because most differ in the first."""
    raw_a, raw_b = a.raw(), b.raw()
    blocks = [slice(first, first + N_ROWS_COMPARED) for first in range(0, len(raw_a), N_ROWS_COMPARED)]

    def floats(raw: Raw, dtype: str, rows: slice) -> Floats:
        return as_floats(as_weight(raw[rows], dtype))

    return all(np.array_equal(floats(raw_a, a.dtype, rows), floats(raw_b, b.dtype, rows)) for rows in blocks)


# ---------------------------------------------------------------------------
# settings


def shown(value: object) -> str:
    """A name or a value from a file, for a message: in one line, and not a long one."""
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        return "an array"
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def make_config(path: str | Path, **values: Any) -> Config:
    """A Config of values from a file. Raises ModelError that names the file."""
    try:
        return Config(**values)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path}: {error}") from None


def require(path: str | Path, settings: Mapping[str, Any], keys: Iterable[str]) -> None:
    missing = next((key for key in keys if settings.get(key) is None), None)
    if missing is not None:
        raise ModelError(f"{path}: expected a setting {missing}, found none")
