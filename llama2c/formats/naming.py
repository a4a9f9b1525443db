"""Tensors under foreign names, and settings: what the readers of other programs' models share.

Nothing is loaded here: a Stored tensor is read when somebody asks for its numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..config import Config
from ..tensors import FLOAT_DTYPES, Floats, Raw, as_floats, as_weight
from .layout import ROPE_TABLES, tensor_shapes

WHOLE = ("token_embedding_table", "rms_final_weight", "wcls")  # one for the model; of the others there is one for each layer
N_ROWS_COMPARED = 256  # of two classifiers, at a time


class Stored(NamedTuple):
    """A tensor of a foreign file."""

    dtype: str  # one of FLOAT_DTYPES, or what the file calls it if it is none of them
    shape: tuple[int, ...]
    raw: Callable[[], Raw]


class Names(NamedTuple):
    """How a kind of file spells the tensors: patterns with {} for the layer."""

    patterns: Mapping[str, str]
    ignored: re.Pattern[str]  # what can be computed from the config

    def spelled(self, name: str, layer: int) -> str:
        return self.patterns[name].format(layer)


def tensor_names(config: Config) -> dict[str, tuple[int, tuple[int, ...]]]:
    """llama2c's name -> how many tensors of it a foreign file has, and the shape of each; wcls may be left out."""
    shapes = tensor_shapes(config)
    del shapes[ROPE_TABLES]
    return {name: (1, shape) if name in WHOLE else (config.n_layers, shape[1:]) for name, shape in shapes.items()}


def check_tensors(path: Path, config: Config, names: Names, tensors: Mapping[str, Stored], tied: bool) -> bool:
    """Whether the classifier is shared, once every tensor was found to be there, of the right shape, and of a type we read.

    `tied`: the settings say that it is, and there need be none. ValueError: a tensor is missing, is one too many, or has
    another shape or type than the config says; the classifier is said to be tied and has other values.
    """
    classifier, embedding = names.patterns["wcls"], names.patterns["token_embedding_table"]
    expected: set[str] = set()
    for name, (n_tensors, shape) in tensor_names(config).items():
        if name == "wcls" and tied and classifier not in tensors:
            continue
        for layer in range(n_tensors):
            spelled = names.spelled(name, layer)
            check_tensor(path, spelled, tensors.get(spelled), shape)
            expected.add(spelled)
    surplus = next((name for name in tensors if name not in expected and not names.ignored.fullmatch(name)), None)
    if surplus is not None:
        raise ValueError(f"{path}: expected the {len(expected)} tensors of a Llama model, found one more: {surplus}")
    shared = classifier not in tensors or same_values(tensors[classifier], tensors[embedding])
    if tied and not shared:
        raise ValueError(f"{path}: {classifier}: expected the values of {embedding}, as they are tied, found others")
    return shared


def check_tensor(path: Path, name: str, stored: Stored | None, shape: tuple[int, ...]) -> None:
    if stored is None:
        raise ValueError(f"{path}: expected a tensor {name}, found none")
    if stored.shape != shape:
        raise ValueError(f"{path}: {name}: expected shape {shape}, found {stored.shape}")
    if stored.dtype not in FLOAT_DTYPES:
        *others, last = FLOAT_DTYPES
        raise ValueError(f"{path}: {name}: expected {', '.join(others)} or {last}, found {stored.dtype}")


def same_values(a: Stored, b: Stored) -> bool:
    """Whether two matrices of one shape are equal; a few rows at a time, as most differ in the first."""
    raw_a, raw_b = a.raw(), b.raw()
    blocks = [slice(first, first + N_ROWS_COMPARED) for first in range(0, len(raw_a), N_ROWS_COMPARED)]

    def floats(raw: Raw, dtype: str, rows: slice) -> Floats:
        return as_floats(as_weight(raw[rows], dtype))

    return all(np.array_equal(floats(raw_a, a.dtype, rows), floats(raw_b, b.dtype, rows)) for rows in blocks)


# ---------------------------------------------------------------------------
# settings


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
