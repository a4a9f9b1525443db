"""The forward pass in plain NumPy, written only from the description of the model, to compare the kernels with.

Shares no code with llama2c. It takes whole sequences: no cache, no threads, no steps. fp32 weights run in float64 (or float32),
Q8_0 weights in exact integers; `fma` and `dot` redo the fused operation and the 16-lane order of the kernels bit for bit.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import checkpoints
import numpy as np
from checkpoints import Arrays

F32 = np.float32


def fma(a: Any, b: Any, c: Any) -> np.ndarray:
    """a * b + c of fp32 numbers, rounded once.

    The product is exact in float64. The sum is rounded there to odd (an inexact one gets an odd last bit), after which
    rounding to fp32 gives what rounding the exact sum would (Boldo and Melquiond 2008).
    """
    with np.errstate(all="ignore"):
        product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
        c = np.asarray(c, np.float64)
        total = product + c
        rest = total - product
        error = (product - (total - rest)) + (c - rest)  # exact: product + c = total + error
        bits = np.atleast_1d(total).view(np.int64)
        even = (error != 0) & np.isfinite(error) & (bits.reshape(total.shape) % 2 == 0)
        bits = bits.reshape(total.shape) + np.where(even, np.where((error > 0) == (total > 0), 1, -1), 0)
        return np.atleast_1d(bits).view(np.float64).reshape(total.shape).astype(F32)


def tree_sum(lanes: np.ndarray) -> np.ndarray:
    """(..., 16) -> (...): the upper half is added to the lower half until one is left."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def dot(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """(n_rows, n), (n_out, n) -> (n_rows, n_out): 16 lanes, lane j takes the elements j, j + 16, ..., zeros past the end."""
    missing = -x.shape[1] % 16
    x, w = (np.pad(a, ((0, 0), (0, missing))).reshape(len(a), -1, 16) for a in (x, w))
    lanes = np.zeros((len(x), len(w), 16), F32)
    for step in range(x.shape[1]):
        lanes = fma(x[:, None, step], w[None, :, step], lanes)
    return tree_sum(lanes)


def quantize_rows(x: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Q8_0 of activations (n_rows, n) fp32 -> int8 values, fp32 scales (n_rows, n_groups); the last group may be short."""
    values, scales = np.zeros(x.shape, np.int8), []
    for start in range(0, x.shape[1], group_size):
        group = x[:, start : start + group_size]
        finite = np.isfinite(group).all(axis=1)
        scale = np.where(finite, np.abs(np.where(finite[:, None], group, 0)).max(axis=1) / F32(127), F32(np.nan))
        usable = finite & (scale > 0)
        q = np.where(usable[:, None], group, F32(0)) / np.where(usable, scale, F32(1))[:, None]
        rounded = np.floor(np.abs(q.astype(np.float64)) + 0.5)  # half away from zero; exact in float64
        values[:, start : start + group_size] = np.copysign(np.minimum(rounded, 127), q)
        scales.append(scale.astype(F32))
    return values, np.stack(scales, axis=1)


def q8_product(x: np.ndarray, values: np.ndarray, scales: np.ndarray, group_size: int) -> np.ndarray:
    """x (n_rows, n) fp32 by the Q8_0 matrix (n_out, n) -> (n_rows, n_out) fp32.

    Integer sums over each intersection of a weight group (they run on from row to row) and an activation group (they start
    afresh), then acc = fma(isum * weight scale, activation scale, acc), from left to right.
    """
    xv, xs = quantize_rows(x, group_size)
    n_out, n = values.shape
    out, starts = np.zeros((len(x), n_out), F32), np.arange(n_out) * n
    for phase in np.unique(starts % group_size):  # rows that begin at the same place of a group are cut at the same places
        mine = np.flatnonzero(starts % group_size == phase)
        cuts = {0, n, *range(0, n, group_size), *range(int(-phase % group_size), n, group_size)}
        for start, stop in pairwise(sorted(cuts)):
            # In float64, whose products and sums are exact this far below 2^53, and which NumPy multiplies faster.
            isum = xv[:, start:stop].astype(float) @ values[mine, start:stop].astype(float).T
            product = isum.astype(F32) * scales[(starts[mine] + start) // group_size]
            out[:, mine] = fma(product, xs[:, [start // group_size]], out[:, mine])
    return out


def scaled(frequencies: np.ndarray, scaling: Any) -> np.ndarray:
    """Rotary frequencies of a longer context: all divided, or (llama3) the long waves divided and the short ones kept."""
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    waves, original = 2 * np.pi / frequencies, scaling.original_max_position_embeddings
    longest, shortest = original / scaling.low_freq_factor, original / scaling.high_freq_factor
    smooth = (original / waves - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    return np.where(waves > longest, frequencies / scaling.factor, np.where(waves < shortest, frequencies, blended))


class Result(NamedTuple):
    logits: np.ndarray  # (n_tokens, vocab_size)
    trace: np.ndarray  # (n_tokens, n_layers, 4): norm and mean of the residual after attention, and after the feed-forward


class Reference:
    """A model of fp32 `weights` (checkpoints.random_weights), or of their Q8_0 if a group_size is given.

    q8 has the Q8_0 matrices by (name, layer); sizes has the group size of those whose size is another one.
    """

    def __init__(self, config: Any, weights: Arrays, *, dtype: Any = np.float64, group_size: int | None = None) -> None:
        self.config, self.weights, self.dtype, self.group_size = config, weights, dtype, group_size
        self.q8: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
        self.sizes: dict[tuple[str, int], int] = {}
        for name, tensor in weights.items():
            if group_size is not None and not name.startswith("rms_"):
                for layer, matrix in enumerate(tensor.reshape(-1, *tensor.shape[-2:])):
                    self.q8[name, layer] = checkpoints.quantize(matrix, group_size)

    @classmethod
    def of_v2(cls, path: Path) -> Reference:
        """The model of a Q8_0 file."""
        sizes, norms, matrices = checkpoints.read_v2(path)
        group_size = sizes.pop("group_size")
        made = cls(SimpleNamespace(**sizes), norms, group_size=group_size)
        made.q8 = matrices
        return made

    def multiply(self, x: np.ndarray, name: str, layer: int = 0) -> np.ndarray:
        if (name, layer) in self.q8:
            return q8_product(x.astype(F32), *self.q8[name, layer], self.size_of(name, layer)).astype(self.dtype)
        tensor = self.weights[name]
        return x @ tensor.reshape(-1, *tensor.shape[-2:])[layer].astype(self.dtype).T

    def size_of(self, name: str, layer: int) -> int:
        size = self.sizes.get((name, layer), self.group_size)
        assert size is not None
        return size

    def embed(self, tokens: list[int]) -> np.ndarray:
        if ("token_embedding_table", 0) not in self.q8:
            return self.weights["token_embedding_table"][tokens].astype(self.dtype)
        values, scales = self.q8["token_embedding_table", 0]
        table = values.reshape(-1, self.size_of("token_embedding_table", 0)) * scales[:, None]
        return table.reshape(values.shape)[tokens].astype(self.dtype)

    def norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        eps = self.dtype(getattr(self.config, "norm_eps", 1e-5))
        return weight.astype(self.dtype) * x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)

    def rotate(self, x: np.ndarray) -> np.ndarray:
        """(n_tokens, heads, head_size): the pairs (i, i + 1) turned by position * theta^(-i / head_size)."""
        theta, scaling = (getattr(self.config, name, None) for name in ("rope_theta", "rope_scaling"))
        frequencies = (theta or 10000.0) ** (-np.arange(0, x.shape[2], 2) / x.shape[2])
        angles = np.arange(len(x))[:, None] * (frequencies if scaling is None else scaled(frequencies, scaling))
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None, :]
        return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape).astype(self.dtype)

    def attend(self, x: np.ndarray, layer: int) -> np.ndarray:
        c, n = self.config, len(x)
        head_size = getattr(c, "head_size", c.dim // c.n_heads)
        q = self.rotate(self.multiply(x, "wq", layer).reshape(n, c.n_heads, head_size))
        k = self.rotate(self.multiply(x, "wk", layer).reshape(n, c.n_kv_heads, head_size))
        v = self.multiply(x, "wv", layer).reshape(n, c.n_kv_heads, head_size)
        k, v = (np.repeat(a, c.n_heads // c.n_kv_heads, axis=1) for a in (k, v))
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(self.dtype(head_size))
        scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.einsum("hts,shd->thd", weights, v).reshape(n, c.n_heads * head_size)

    def forward(self, tokens: list[int]) -> Result:
        """Everything for a sequence that starts at position 0."""
        w, x = self.weights, self.embed(tokens)
        trace = []
        for layer in range(self.config.n_layers):
            x = x + self.multiply(self.attend(self.norm(x, w["rms_att_weight"][layer]), layer), "wo", layer)
            trace += [np.linalg.norm(x, axis=1), x.mean(axis=1)]
            normed = self.norm(x, w["rms_ffn_weight"][layer])
            gate = self.multiply(normed, "w1", layer)
            with np.errstate(over="ignore"):
                gate = gate / (1 + np.exp(-gate)) * self.multiply(normed, "w3", layer)
            x = x + self.multiply(gate, "w2", layer)
            trace += [np.linalg.norm(x, axis=1), x.mean(axis=1)]
        classifier = "wcls" if "wcls" in w or ("wcls", 0) in self.q8 else "token_embedding_table"
        logits = self.multiply(self.norm(x, w["rms_final_weight"]), classifier)
        return Result(logits, np.stack(trace, axis=1).reshape(len(x), self.config.n_layers, 4))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """ln p over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def windowed_logits(model: Reference, ids: list[int], context: int, stride: int) -> np.ndarray:
    """The logits about each of ids[1:], each from a forward pass of its own: (len(ids) - 1, vocab_size).

    Id i is given the ids from s to i - 1, where s is the smallest multiple of the stride that leaves at most `context` of them.
    """
    rows = []
    for i in range(1, len(ids)):
        s = next(s for s in range(0, i, stride) if i - s <= context)
        rows.append(model.forward(ids[s:i]).logits[-1])
    return np.array(rows)
