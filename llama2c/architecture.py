"""The one table of a model's tensors: the shape of each, its kind, and its name in each file format.

Readers, writers and layouts loop over it. No other module lists the names of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .config import Config

HUGGING_FACE, PYTORCH, GGUF = "huggingface", "pytorch", "gguf"  # formats that have names of their own
LLAMA2C = "llama2c"  # v0 to v3: their tensors have no names, only an order (formats/layout.py)


class Tensor(NamedTuple):
    """A tensor of the model: one matrix or norm, or one for each layer."""

    name: str  # in llama2c
    shape: tuple[str, ...]  # of one matrix or norm, as properties of Config: (rows, cols) or (elements,)
    per_layer: bool  # there is one for each layer; otherwise one for the model
    names: Mapping[str, str]  # by format; {} stands for the layer
    rotary: bool = False  # RoPE turns its rows, so their order depends on the format's rope_pairs

    @property
    def is_norm(self) -> bool:
        """Norms are fp32 in every format. All other tensors are matrices and may have any kind."""
        return len(self.shape) == 1

    def how_many(self, config: Config) -> int:
        """The matrices or norms that a model has of this tensor: n_layers or 1."""
        return config.n_layers if self.per_layer else 1

    def shape_of_one(self, config: Config) -> tuple[int, ...]:
        """The shape of one matrix, (rows, cols), or of one norm, (dim,)."""
        return tuple(getattr(config, dimension) for dimension in self.shape)

    def whole_shape(self, config: Config) -> tuple[int, ...]:
        """The shape of the whole tensor: with n_layers in front if there is one for each layer."""
        shape = self.shape_of_one(config)
        return (config.n_layers, *shape) if self.per_layer else shape

    def spelled(self, format: str, layer: int = 0) -> str:
        """Its name in a format: wq, "huggingface", layer 3 -> "model.layers.3.self_attn.q_proj.weight"."""
        return self.names[format].format(layer)


class Architecture(NamedTuple):
    """What distinguishes one family of models from another."""

    name: str  # model_type in config.json, general.architecture in GGUF
    tensors: Mapping[str, Tensor]  # by llama2c's name
    rope_pairs: Mapping[str, str]  # by format: the elements of a head that RoPE turns together, as in Checkpoint.rope_pairs
    computed: Mapping[str, str]  # by format, a regular expression: names of tensors that files may have and llama2c computes


def _tensor(
    name: str,
    shape: tuple[str, ...],
    huggingface: str,
    pytorch: str,
    gguf: str,
    *,
    per_layer: bool = True,
    rotary: bool = False,
) -> Tensor:
    if per_layer:
        huggingface, pytorch, gguf = f"model.layers.{{}}.{huggingface}", f"layers.{{}}.{pytorch}", f"blk.{{}}.{gguf}"
    names = {HUGGING_FACE: huggingface, PYTORCH: pytorch, GGUF: gguf}
    return Tensor(name, shape, per_layer, {format: f"{spelled}.weight" for format, spelled in names.items()}, rotary)


_TENSORS = (
    _tensor(
        "token_embedding_table", ("vocab_size", "dim"), "model.embed_tokens", "tok_embeddings", "token_embd", per_layer=False
    ),
    _tensor("rms_att_weight", ("dim",), "input_layernorm", "attention_norm", "attn_norm"),
    _tensor("wq", ("q_dim", "dim"), "self_attn.q_proj", "attention.wq", "attn_q", rotary=True),
    _tensor("wk", ("kv_dim", "dim"), "self_attn.k_proj", "attention.wk", "attn_k", rotary=True),
    _tensor("wv", ("kv_dim", "dim"), "self_attn.v_proj", "attention.wv", "attn_v"),
    _tensor("wo", ("dim", "q_dim"), "self_attn.o_proj", "attention.wo", "attn_output"),
    _tensor("rms_ffn_weight", ("dim",), "post_attention_layernorm", "ffn_norm", "ffn_norm"),
    _tensor("w1", ("hidden_dim", "dim"), "mlp.gate_proj", "feed_forward.w1", "ffn_gate"),
    _tensor("w2", ("dim", "hidden_dim"), "mlp.down_proj", "feed_forward.w2", "ffn_down"),
    _tensor("w3", ("hidden_dim", "dim"), "mlp.up_proj", "feed_forward.w3", "ffn_up"),
    _tensor("rms_final_weight", ("dim",), "model.norm", "norm", "output_norm", per_layer=False),
    _tensor("wcls", ("vocab_size", "dim"), "lm_head", "output", "output", per_layer=False),
)  # wcls may be missing: then the classifier is shared with the embedding
LLAMA = Architecture(
    "llama",
    {tensor.name: tensor for tensor in _TENSORS},
    {LLAMA2C: "adjacent", HUGGING_FACE: "halves", PYTORCH: "adjacent", GGUF: "adjacent"},
    {
        HUGGING_FACE: r"(model\.layers\.\d+\.self_attn|model)\.rotary_emb\.inv_freq",
        GGUF: r"blk\.\d+\.attn_rot_embd\.weight",
        PYTORCH: r"(layers\.\d+\.attention\.inner_attention\.)?rope\.freqs|freqs_cos|freqs_sin|layers\.\d+\.attention\.mask",
    },
)
ROPE_FACTORS = "rope_freqs.weight"  # in GGUF alone, and no matrix: what the rotary frequencies are divided by, (head_size / 2,)
EMBEDDING, CLASSIFIER = LLAMA.tensors["token_embedding_table"], LLAMA.tensors["wcls"]
NORMS = tuple(tensor.name for tensor in _TENSORS if tensor.is_norm)
