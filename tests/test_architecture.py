"""The table of tensors: shapes and names against lists written down here, and no other module has such a list."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from checkpoints import V1
from folders import HF_LAYER, HF_WHOLE

from llama2c.architecture import GGUF, HUGGING_FACE, LLAMA, LLAMA2C, NORMS, PYTORCH
from llama2c.config import Config

CONFIG = Config(dim=8, hidden_dim=12, n_layers=3, n_heads=2, n_kv_heads=1, vocab_size=20, seq_len=5, head_size=6)
SHAPES = {
    "token_embedding_table": (20, 8),
    "rms_att_weight": (3, 8),
    "wq": (3, 12, 8),
    "wk": (3, 6, 8),
    "wv": (3, 6, 8),
    "wo": (3, 8, 12),
    "rms_ffn_weight": (3, 8),
    "w1": (3, 12, 8),
    "w2": (3, 8, 12),
    "w3": (3, 12, 8),
    "rms_final_weight": (8,),
    "wcls": (20, 8),
}
OTHER_NAMES = {  # PyTorch's, GGUF's, of layer 2 where there are layers
    "token_embedding_table": ("tok_embeddings.weight", "token_embd.weight"),
    "rms_att_weight": ("layers.2.attention_norm.weight", "blk.2.attn_norm.weight"),
    "wq": ("layers.2.attention.wq.weight", "blk.2.attn_q.weight"),
    "wk": ("layers.2.attention.wk.weight", "blk.2.attn_k.weight"),
    "wv": ("layers.2.attention.wv.weight", "blk.2.attn_v.weight"),
    "wo": ("layers.2.attention.wo.weight", "blk.2.attn_output.weight"),
    "rms_ffn_weight": ("layers.2.ffn_norm.weight", "blk.2.ffn_norm.weight"),
    "w1": ("layers.2.feed_forward.w1.weight", "blk.2.ffn_gate.weight"),
    "w2": ("layers.2.feed_forward.w2.weight", "blk.2.ffn_down.weight"),
    "w3": ("layers.2.feed_forward.w3.weight", "blk.2.ffn_up.weight"),
    "rms_final_weight": ("norm.weight", "output_norm.weight"),
    "wcls": ("output.weight", "output.weight"),
}


def test_shapes() -> None:
    assert {name: tensor.whole_shape(CONFIG) for name, tensor in LLAMA.tensors.items()} == SHAPES
    for name, tensor in LLAMA.tensors.items():
        per_layer = SHAPES[name][0] == 3
        assert (tensor.name, tensor.per_layer, tensor.how_many(CONFIG)) == (name, per_layer, 3 if per_layer else 1)
        assert tensor.shape_of_one(CONFIG) == (SHAPES[name][1:] if per_layer else SHAPES[name])
    assert sorted(LLAMA.tensors) == sorted(V1)


def test_names() -> None:
    hugging_face = {name: f"model.layers.2.{part}.weight" for name, part in HF_LAYER.items()} | HF_WHOLE
    assert {name: tensor.spelled(HUGGING_FACE, 2) for name, tensor in LLAMA.tensors.items()} == hugging_face
    assert {name: (t.spelled(PYTORCH, 2), t.spelled(GGUF, 2)) for name, t in LLAMA.tensors.items()} == OTHER_NAMES


def test_switches() -> None:
    assert NORMS == ("rms_att_weight", "rms_ffn_weight", "rms_final_weight")
    assert [name for name, tensor in LLAMA.tensors.items() if tensor.rotary] == ["wq", "wk"]
    assert LLAMA.rope_pairs == {LLAMA2C: "adjacent", HUGGING_FACE: "halves", PYTORCH: "adjacent", GGUF: "adjacent"}


@pytest.mark.parametrize("name", ["self_attn.q_proj", "feed_forward.w1", "ffn_gate", "rms_ffn_weight"])
def test_no_other_module_has_a_list_of_names(name: str) -> None:
    """But for the order of the tensors in a file without names (layout.py), and the arithmetic on each of them."""
    folder = Path(__file__).parents[1] / "llama2c"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.py") if re.search(rf"\b{name}\b", path.read_text())}
    assert found == ({"architecture.py", "formats/layout.py"} if name == "rms_ffn_weight" else {"architecture.py"})
