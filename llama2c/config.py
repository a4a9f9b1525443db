"""The shape of a model: its dimensions, and the rules they obey.

A Config that breaks a rule cannot be made, so no other module checks the dimensions again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import RequestError, check_int, check_real

DIMENSIONS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
MAX_DIMENSION = 2**31 - 1
ROPE_THETA = 10000.0
NORM_EPS = 1e-5
ROPE_TYPES = ("linear", "llama3")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How the rotary frequencies of a model are lowered for a longer context, under the names of Hugging Face.

    "linear" divides all of them by `factor` and has no other value. "llama3" (Llama 3.1 and later) divides those whose
    wavelength is more than original_max_position_embeddings / low_freq_factor, keeps those whose wavelength is less than
    original_max_position_embeddings / high_freq_factor, and blends in between.

    Raises RequestError for a value that breaks a rule, TypeError for a value of the wrong type.
    """

    rope_type: str  # "linear" or "llama3"
    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None  # positions the model was first trained on

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise RequestError(f"rope_type: expected {' or '.join(ROPE_TYPES)}, found {self.rope_type!r}", "rope_type")
        _check_positive("factor", self.factor)
        low, high = self.low_freq_factor, self.high_freq_factor
        if self.rope_type == "linear":
            for name in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
                if getattr(self, name) is not None:
                    raise RequestError(f"{name}: expected none for rope_type linear, found {getattr(self, name)!r}", name)
            return
        _check_positive("low_freq_factor", low)
        _check_positive("high_freq_factor", high)
        if not low < high:  # type: ignore[operator]
            found = f"expected more than low_freq_factor = {low}, found {high}"
            raise RequestError(f"high_freq_factor: {found}", "high_freq_factor")
        _check_dimension("original_max_position_embeddings", self.original_max_position_embeddings)


@dataclass(frozen=True, slots=True)
class Config:
    """Dimensions of a Llama model, under the names of llama2.c.

    Raises RequestError for a value that breaks a rule, TypeError for a value that is not a number.
    """

    dim: int  # width of the residual stream
    hidden_dim: int  # width inside the feed-forward block
    n_layers: int
    n_heads: int  # query heads
    n_kv_heads: int  # key/value heads, each shared by n_heads / n_kv_heads query heads
    vocab_size: int
    seq_len: int  # the largest number of positions of a sequence
    head_size: int = 0  # elements of one head; 0 means dim / n_heads
    rope_theta: float = ROPE_THETA
    norm_eps: float = NORM_EPS
    rope_scaling: RopeScaling | None = None  # None: the frequencies are not scaled

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            object.__setattr__(self, name, _check_dimension(name, getattr(self, name)))  # NumPy's integers become int
        n_heads, n_kv_heads = self.n_heads, self.n_kv_heads
        if n_heads % n_kv_heads:
            raise RequestError(f"n_kv_heads: expected a divisor of n_heads = {n_heads}, found {n_kv_heads}", "n_kv_heads")
        if self.head_size == 0:
            if self.dim % n_heads:
                raise RequestError(f"n_heads: expected a divisor of dim = {self.dim}, found {n_heads}", "n_heads")
            object.__setattr__(self, "head_size", self.dim // n_heads)
        object.__setattr__(self, "head_size", _check_dimension("head_size", self.head_size))
        if self.head_size % 2:  # RoPE turns pairs
            raise RequestError(f"head_size: expected an even number, found {self.head_size}", "head_size")
        _check_positive("rope_theta", self.rope_theta)
        _check_positive("norm_eps", self.norm_eps)
        if not isinstance(self.rope_scaling, RopeScaling | None):
            raise TypeError(f"rope_scaling: expected a RopeScaling or None, found {type(self.rope_scaling).__name__}")

    @property
    def q_dim(self) -> int:
        """Elements of the queries of one position: n_heads * head_size."""
        return self.n_heads * self.head_size

    @property
    def kv_dim(self) -> int:
        """Elements of the keys (or of the values) of one position: n_kv_heads * head_size."""
        return self.n_kv_heads * self.head_size


def _check_dimension(name: str, value: object) -> int:
    return check_int(name, value, 1, MAX_DIMENSION)


def _check_positive(name: str, value: object) -> None:
    check_real(name, value, "a finite positive number", lambda number: 0 < number < math.inf)
