"""The shape of a model: its dimensions, and the rules they have to obey.

A Config cannot exist with dimensions that break a rule, so nothing above checks them again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

DIMENSIONS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
ROPE_THETA = 10000.0
NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Config:
    """Dimensions of a Llama model, under the names of llama2.c.

    Raises ValueError for a value that breaks a rule, TypeError for one that is no number.
    """

    dim: int  # width of the residual stream
    hidden_dim: int  # width inside the feed-forward block
    n_layers: int
    n_heads: int  # query heads
    n_kv_heads: int  # key/value heads, each shared by n_heads / n_kv_heads query heads
    vocab_size: int
    seq_len: int  # the most positions a sequence may have
    head_size: int = 0  # elements of one head; 0 stands for dim / n_heads
    rope_theta: float = ROPE_THETA
    norm_eps: float = NORM_EPS

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            _check_dimension(name, getattr(self, name))
        n_heads, n_kv_heads = self.n_heads, self.n_kv_heads
        if n_heads % n_kv_heads:
            raise ValueError(f"n_kv_heads: expected a divisor of n_heads = {n_heads}, found {n_kv_heads}")
        if self.head_size == 0:
            if self.dim % n_heads:
                raise ValueError(f"n_heads: expected a divisor of dim = {self.dim}, found {n_heads}")
            object.__setattr__(self, "head_size", self.dim // n_heads)
        _check_dimension("head_size", self.head_size)
        if self.head_size % 2:  # RoPE turns pairs
            raise ValueError(f"head_size: expected an even number, found {self.head_size}")
        _check_positive("rope_theta", self.rope_theta)
        _check_positive("norm_eps", self.norm_eps)

    @property
    def kv_dim(self) -> int:
        """The keys (or the values) of one position: n_kv_heads * head_size elements."""
        return self.n_kv_heads * self.head_size


def _check_dimension(name: str, value: int) -> None:
    if type(value) is not int:  # a bool is not a size either
        raise TypeError(f"{name}: expected an int, found {value!r}")
    if not 0 < value < 2**31:
        raise ValueError(f"{name}: expected a positive number below 2**31, found {value}")


def _check_positive(name: str, value: float) -> None:
    if type(value) not in (int, float):
        raise TypeError(f"{name}: expected a float, found {value!r}")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: expected a finite positive number, found {value}")
