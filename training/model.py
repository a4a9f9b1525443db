"""The Llama architecture in PyTorch, for training. It has the sizes, names and arithmetic of llama2c.Transformer.

RMSNorm, rotary positions over neighbouring pairs as in llama2.c, grouped-query attention, SwiGLU, a tied classifier, no biases.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from llama2c.config import Config

INIT_STD = 0.02  # standard deviation of all matrices at the start


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotary_table(config: Config, n_positions: int) -> Tensor:
    """cos and sin of pos * theta^(-i / head_size) for the pairs i = 0, 2, ...: (n_positions, head_size / 2, 2) fp32.

    Computed in double precision and rounded once, as in llama2c.
    """
    pairs = torch.arange(0, config.head_size, 2, dtype=torch.float64)
    angles = torch.outer(torch.arange(n_positions, dtype=torch.float64), config.rope_theta ** (-pairs / config.head_size))
    return torch.stack((angles.cos(), angles.sin()), -1).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotates each pair (i, i + 1) of x (batch, n_tokens, heads, head_size) by the angle of its position."""
    cos, sin = table[:, None, :, 0], table[:, None, :, 1]  # (n_tokens, 1, head_size / 2)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class Layer(nn.Module):
    """One layer: attention, then feed-forward. Each reads a normed copy of the residual stream and is added to it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, hidden_dim, q_dim = config.dim, config.hidden_dim, config.n_heads * config.head_size
        self.head_size = config.head_size
        self.rms_att = RMSNorm(dim, config.norm_eps)
        self.wq = nn.Linear(dim, q_dim, bias=False)
        self.wk = nn.Linear(dim, config.kv_dim, bias=False)
        self.wv = nn.Linear(dim, config.kv_dim, bias=False)
        self.wo = nn.Linear(q_dim, dim, bias=False)
        self.rms_ffn = RMSNorm(dim, config.norm_eps)
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """x: the residual stream, (batch, n_tokens, dim); table: the angles of its positions."""
        x = x + self.attend(self.rms_att(x), table)
        normed = self.rms_ffn(x)
        return x + self.w2(functional.silu(self.w1(normed)) * self.w3(normed))

    def attend(self, x: Tensor, table: Tensor) -> Tensor:
        q, k, v = (project(x).unflatten(-1, (-1, self.head_size)) for project in (self.wq, self.wk, self.wv))
        q, k = rotate(q, table), rotate(k, table)
        n_shared = q.shape[2] // k.shape[2]  # query heads that use one key/value head
        k, v = k.repeat_interleave(n_shared, 2), v.repeat_interleave(n_shared, 2)
        # Attention takes (batch, heads, n_tokens, head_size). It is slower in bfloat16, so it always runs in fp32.
        with torch.autocast("cpu", enabled=False):
            mixed = functional.scaled_dot_product_attention(*(t.transpose(1, 2).float() for t in (q, k, v)), is_causal=True)
        return self.wo(mixed.transpose(1, 2).flatten(-2))


class Llama(nn.Module):
    """ids (batch, n_tokens) -> logits (batch, n_tokens, vocab_size). Random weights, drawn from PyTorch's generator."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.token_embedding_table = nn.Embedding(config.vocab_size, config.dim)  # also the classifier
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.rms_final = RMSNorm(config.dim, config.norm_eps)
        self.register_buffer("table", rotary_table(config, config.seq_len), persistent=False)
        self.initialise()

    def initialise(self) -> None:
        """Matrices whose output is added to the residual stream start smaller, so that it does not grow with the layers."""
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                added = name.endswith(("wo.weight", "w2.weight"))
                nn.init.normal_(weight, std=INIT_STD / (2 * self.config.n_layers) ** 0.5 if added else INIT_STD)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embedding_table(ids)
        for layer in self.layers:
            x = layer(x, self.table[: ids.shape[1]])
        return functional.linear(self.rms_final(x), self.token_embedding_table.weight)


def weight_arrays(model: Llama) -> dict[str, NDArray[np.float32]]:
    """The weights with the names and shapes of llama2c: all layers in one array, (n_layers, ...). No wcls: it is tied."""
    arrays = {"token_embedding_table": model.token_embedding_table.weight, "rms_final_weight": model.rms_final.weight}
    modules = {"rms_att_weight": "rms_att", "rms_ffn_weight": "rms_ffn"}
    modules |= {name: name for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3")}
    for name, module in modules.items():
        arrays[name] = torch.stack([layer.get_submodule(module).weight for layer in model.layers])
    return {name: array.detach().numpy() for name, array in arrays.items()}
