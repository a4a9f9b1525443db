"""The verb export: files of every kind into each other, bit by bit, and one line for each thing that can be wrong with them.

Hugging Face folders are written here from the description of their format, with a permutation of our own; where PyTorch and
transformers are installed, they have the last word.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkpoints
import numpy as np
import pytest
import tokenizer_models
from checkpoints import Arrays
from folders import hf_settings, hf_tensors, write_hf, write_safetensors

import llama2c
from llama2c import Checkpoint, Config, RopeScaling, Tokenizer, Transformer
from llama2c.commands import export as export_command
from llama2c.commands import main as cli
from llama2c.formats import export as convert
from llama2c.formats import writer
from llama2c.tensors import as_floats

CONFIG = Config(dim=64, hidden_dim=96, n_layers=2, n_heads=8, n_kv_heads=4, vocab_size=300, seq_len=40)
NORMS = ("rms_att_weight", "rms_ffn_weight", "rms_final_weight")


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


needs_safetensors = needs("safetensors")
needs_torch = needs("torch")
needs_transformers = needs("torch", "transformers", "safetensors")


def random_weights(shared: bool = True, config: Config = CONFIG, seed: int = 5) -> Arrays:
    return checkpoints.random_weights(config, np.random.default_rng(seed), shared)


def opened_weights(path: Path) -> Arrays:
    """The weights of a file in fp32; wcls only if it has its own."""
    checkpoint = Checkpoint.open(path)
    assert checkpoint.config == CONFIG
    weights = {n: as_floats(w) for n, w in checkpoint.weights.items()}
    if checkpoint.shared_classifier:
        del weights["wcls"]
    return weights


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def as_bf16(array: np.ndarray) -> np.ndarray:
    """The upper halves."""
    return (np.ascontiguousarray(array, "<f4").view("<u4") >> 16).astype("<u2")


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype("<u4") << 16).view("<f4")


# ---------------------------------------------------------------------------
# llama2.c's files


@pytest.mark.parametrize("shared", [True, False])
def test_v0_to_v1_and_back_is_the_same_file(tmp_path: Path, shared: bool) -> None:
    weights = random_weights(shared)
    a, b, c = (tmp_path / name for name in ("a.bin", "b.bin", "c.bin"))
    checkpoints.write(b, CONFIG, 1, weights)
    llama2c.export(b, a)  # v0, with zeros for the rotary tables
    expected = checkpoints.parts(CONFIG, 0, weights)
    expected[12] = bytes(len(expected[12]))
    assert a.read_bytes() == b"".join(expected)
    done = llama2c.export(a, c, version=1)
    assert c.read_bytes() == b.read_bytes()
    assert (done.path, done.version, done.group_size, done.size) == (c, 1, None, c.stat().st_size)
    assert done.rounding == (0, "")
    llama2c.export(c, b, version=0)
    assert b.read_bytes() == a.read_bytes()


def test_the_old_rotary_tables_are_not_looked_at(tmp_path: Path) -> None:
    weights = random_weights()
    checkpoints.write(tmp_path / "old.bin", CONFIG, 0, weights)  # NaNs
    llama2c.export(tmp_path / "old.bin", tmp_path / "new.bin")
    assert_same(opened_weights(tmp_path / "new.bin"), weights)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("group_size", [32, 8])
@pytest.mark.parametrize("chunk", [1, 500, 1 << 16])
def test_v0_to_v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool, group_size: int, chunk: int) -> None:
    """Byte for byte what the tests' own quantiser makes; back again, its values multiplied out."""
    monkeypatch.setattr(writer, "CHUNK", chunk)
    weights = random_weights(shared)
    weights["w2"][1, 3] = 0  # whole groups of zeros
    weights["wq"][0, 0, :4] = [1.27, 0.005, 0.015, -0.025]  # halves, or as near as fp32 gets
    checkpoints.write(tmp_path / "a.bin", CONFIG, 0, weights)
    done = llama2c.export(tmp_path / "a.bin", tmp_path / "q.bin", "q8_0", group_size=group_size)
    assert (tmp_path / "q.bin").read_bytes() == b"".join(checkpoints.parts(CONFIG, 2, weights, group_size))
    llama2c.export(tmp_path / "q.bin", tmp_path / "b.bin")
    expected, errors = {}, {}
    for name, tensor in weights.items():
        if name in NORMS:
            expected[name] = tensor
            continue
        matrices = tensor.reshape(-1, *tensor.shape[-2:])
        quantized = [checkpoints.quantize(matrix, group_size) for matrix in matrices]
        expected[name] = np.array([v * s.repeat(group_size).reshape(v.shape) for v, s in quantized]).reshape(tensor.shape)
        for layer, (matrix, back) in enumerate(zip(matrices, expected[name].reshape(matrices.shape), strict=True)):
            errors[f"{name}[{layer}]" if tensor.ndim > 2 else name] = float(np.abs(matrix - back).max())
    assert_same(opened_weights(tmp_path / "b.bin"), expected)
    assert done.rounding == (pytest.approx(max(errors.values())), max(errors, key=lambda name: errors[name]))
    assert (done.version, done.group_size) == (2, group_size)


def test_quantized_values() -> None:
    """Scales are max / 127, halves go to the even number, a group of zeros stays one, and tiny ones stay in range."""
    matrix = np.array([[127, 2.5, -3.5, 0.4], [0, 0, 0, 0], [-1, 0.5, 0.25, 0]], np.float32)
    values, scales = writer.quantize(matrix, 4)
    assert values.dtype == np.int8 and scales.dtype == np.float32
    assert values.tolist() == [[127, 2, -4, 0], [0, 0, 0, 0], [-127, 64, 32, 0]]
    np.testing.assert_array_equal(scales, np.array([1, 0, np.float32(1) / np.float32(127)], np.float32))
    smallest = np.finfo(np.float32).smallest_subnormal
    values, scales = writer.quantize(np.array([180, -180], np.float32) * smallest, 2)
    assert scales.tolist() == [smallest]
    assert values.tolist() == [[127, -127]]


def test_largest_error_is_found_where_it_is(tmp_path: Path) -> None:
    weights = random_weights(False)
    weights["w3"][1, 95, :32] = 1000.0 * np.arange(32)
    checkpoints.write(tmp_path / "a.bin", CONFIG, 1, weights)
    rounding = llama2c.export(tmp_path / "a.bin", tmp_path / "q.bin", "q8_0", group_size=32).rounding
    assert rounding.tensor == "w3[1]"
    assert 31000 / 127 / 4 < rounding.error < 31000 / 127 / 2 * 1.001
    weights["wcls"][299, -1] = 1e6
    checkpoints.write(tmp_path / "a.bin", CONFIG, 1, weights)
    assert llama2c.export(tmp_path / "a.bin", tmp_path / "q.bin", "q8_0", group_size=32).rounding.tensor == "w3[1]"
    weights["wcls"][299, -2] = 1e6 / 127 * 3.5
    checkpoints.write(tmp_path / "a.bin", CONFIG, 1, weights)
    assert llama2c.export(tmp_path / "a.bin", tmp_path / "q.bin", "q8_0", group_size=32).rounding.tensor == "wcls"


@pytest.mark.parametrize(
    ("dim", "hidden_dim", "group_size"), [(128, 192, 64), (64, 96, 32), (64, 172, 4), (64, 6, 2), (64, 5, 1), (48, 128, 16)]
)
def test_default_group_size(tmp_path: Path, dim: int, hidden_dim: int, group_size: int) -> None:
    config = Config(dim, hidden_dim, 1, 8, 8, 300, 8)
    checkpoints.write(tmp_path / "a.bin", config, 0, random_weights(config=config))
    assert llama2c.export(tmp_path / "a.bin", tmp_path / "q.bin", "q8_0").group_size == group_size
    assert Checkpoint.open(tmp_path / "q.bin").group_size == group_size


def test_out_may_be_the_source(tmp_path: Path) -> None:
    """It is replaced, not overwritten: who has it open keeps what there was."""
    path = tmp_path / "m.bin"
    checkpoints.write(path, CONFIG, 1, random_weights())
    before = Checkpoint.open(path)
    llama2c.export(path, path, "q8_0")
    assert_same({n: w for n, w in before.weights.items() if n != "wcls"}, random_weights())
    assert Checkpoint.open(path).version == 2
    assert os.listdir(tmp_path) == ["m.bin"]


# ---------------------------------------------------------------------------
# Hugging Face folders


@needs_safetensors
@pytest.mark.parametrize("n_shards", [0, 1, 3])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_folder_to_file(tmp_path: Path, dtype: str, shared: bool, n_shards: int) -> None:
    weights = random_weights(shared)
    tensors = hf_tensors(weights, CONFIG.head_size)
    if dtype == "float16":
        tensors = {name: array.astype("<f2") for name, array in tensors.items()}
        weights = {name: array.astype("<f2").astype("<f4") for name, array in weights.items()}
    elif dtype == "bfloat16":
        tensors = {name: as_bf16(array) for name, array in tensors.items()}
        weights = {name: from_bf16(as_bf16(array)) for name, array in weights.items()}
    folder = write_hf(tmp_path / "hf", tensors, hf_settings(CONFIG, shared), n_shards)
    done = llama2c.export(folder, tmp_path / "m.bin")
    assert done.version == 0
    assert_same(opened_weights(tmp_path / "m.bin"), weights)
    llama2c.export(folder, tmp_path / "q.bin", "q8_0", group_size=16)
    assert (tmp_path / "q.bin").read_bytes() == b"".join(checkpoints.parts(CONFIG, 2, weights, 16))


@needs_safetensors
def test_what_a_folder_may_leave_out_or_say_twice(tmp_path: Path) -> None:
    weights = random_weights()
    settings = hf_settings(CONFIG, True)
    del settings["tie_word_embeddings"], settings["rope_theta"], settings["hidden_act"]
    tensors = hf_tensors(weights, CONFIG.head_size)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, "<f8")  # old files have it; it is computed
    more = {"rope_scaling": None, "attention_bias": False, "mlp_bias": False, "head_dim": 8, "quantization_config": None}
    for i, extra in enumerate([{}, more, {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}]):
        folder = write_hf(tmp_path / str(i), tensors, {**settings, **extra})
        llama2c.export(folder, tmp_path / "m.bin")
        assert_same(opened_weights(tmp_path / "m.bin"), weights)
    tensors["lm_head.weight"] = weights["token_embedding_table"]  # tied, and there
    for i, tied in enumerate((True, False)):
        folder = write_hf(tmp_path / f"tied{i}", tensors, hf_settings(CONFIG, tied))
        llama2c.export(folder, tmp_path / "m.bin")
        assert Checkpoint.open(tmp_path / "m.bin").shared_classifier


@needs_safetensors
def test_no_kv_heads_means_as_many_as_heads(tmp_path: Path) -> None:
    config = Config(64, 96, 1, 8, 8, 300, 2048)
    settings = hf_settings(config, True)
    del settings["num_key_value_heads"], settings["max_position_embeddings"]
    folder = write_hf(tmp_path / "hf", hf_tensors(random_weights(config=config), config.head_size), settings)
    llama2c.export(folder, tmp_path / "m.bin")
    assert Checkpoint.open(tmp_path / "m.bin").config == config


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_file_to_folder(tmp_path: Path, version: int, shared: bool) -> None:
    """Read by hand: what safetensors says about the format is not asked."""
    weights = random_weights(shared)
    checkpoints.write(tmp_path / "m.bin", CONFIG, version, weights, 16 if version == 2 else None)
    weights = opened_weights(tmp_path / "m.bin")
    done = llama2c.export(tmp_path / "m.bin", f"{tmp_path}/hf/")
    assert (done.path, done.version) == (tmp_path / "hf", None)
    assert sorted(os.listdir(tmp_path)) == ["hf", "m.bin"]
    assert sorted(os.listdir(tmp_path / "hf")) == ["config.json", "model.safetensors"]
    settings = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert hf_settings(CONFIG, shared).items() <= settings.items()
    assert (settings["bos_token_id"], settings["eos_token_id"]) == (1, 2)
    content = (tmp_path / "hf" / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    assert size % 8 == 0 and done.size == len(content)
    entries = json.loads(content[8 : 8 + size])
    assert entries.pop("__metadata__") == {"format": "pt"}
    found = {}
    end = 0
    for name, entry in entries.items():
        begin, end = entry["data_offsets"]
        assert entry["dtype"] == "F32"
        found[name] = np.frombuffer(content[8 + size + begin : 8 + size + end], "<f4").reshape(entry["shape"])
    assert 8 + size + end == len(content)
    assert_same(found, hf_tensors(weights, CONFIG.head_size))


@needs_safetensors
def test_folder_and_back_is_the_same_file(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "a.bin", CONFIG, 1, random_weights(False))
    llama2c.export(tmp_path / "a.bin", tmp_path / "hf", format="hf")
    llama2c.export(tmp_path / "hf", tmp_path / "b.bin", version=1)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "m.bin", CONFIG, 0, random_weights())
    with pytest.raises(OSError, match=r": expected a new or an empty folder, found one that is not$"):
        llama2c.export(tmp_path / "m.bin", f"{tmp_path}/")
    with pytest.raises(OSError, match=r"m.bin: expected a new or an empty folder, found one that is not$"):
        llama2c.export(tmp_path / "m.bin", tmp_path / "m.bin", format="hf")
    assert os.listdir(tmp_path) == ["m.bin"]
    (tmp_path / "empty").mkdir()
    llama2c.export(tmp_path / "m.bin", f"{tmp_path}/empty/")
    assert len(os.listdir(tmp_path / "empty")) == 2


# ---------------------------------------------------------------------------
# with transformers


def logits_of(path: Path, ids: np.ndarray) -> np.ndarray:
    transformer = Transformer(Checkpoint.open(path), n_threads=1)
    return transformer.forward(ids, transformer.new_cache(), logits=None)


def transformers_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor(ids)[None]).logits[0].float().numpy()
    return logits


def random_llama(tied: bool, n_kv_heads: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(3)
    settings = {**hf_settings(CONFIG, tied), "num_key_value_heads": n_kv_heads, "initializer_range": 0.2}
    return AutoModelForCausalLM.from_config(LlamaConfig(**settings)).eval()


@needs_transformers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n_kv_heads", [8, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_transformers(tmp_path: Path, tied: bool, n_kv_heads: int) -> None:
    model = random_llama(tied, n_kv_heads)
    model.save_pretrained(tmp_path / "hf", max_shard_size="60KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    ids = np.random.default_rng(1).integers(0, CONFIG.vocab_size, CONFIG.seq_len)
    expected = transformers_logits(model, ids)
    for version in (0, 1):
        llama2c.export(tmp_path / "hf", tmp_path / "m.bin", version=version)
        assert Checkpoint.open(tmp_path / "m.bin").shared_classifier == tied
        found = logits_of(tmp_path / "m.bin", ids)
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    llama2c.export(tmp_path / "hf", tmp_path / "q.bin", "q8_0")
    found = logits_of(tmp_path / "q.bin", ids)
    assert 1e-4 * np.abs(expected).max() < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


@needs_transformers
@pytest.mark.filterwarnings("ignore")
def test_transformers_loads_what_is_written(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    for shared in (True, False):
        weights = random_weights(shared)
        checkpoints.write(tmp_path / "m.bin", CONFIG, 1, weights)
        folder = tmp_path / f"hf{shared}"
        llama2c.export(tmp_path / "m.bin", folder, format="hf")
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        assert model.dtype == torch.float32
        assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)
        ids = np.random.default_rng(2).integers(0, CONFIG.vocab_size, CONFIG.seq_len)
        expected, found = logits_of(tmp_path / "m.bin", ids), transformers_logits(model, ids)
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@needs_transformers
@pytest.mark.filterwarnings("ignore")
def test_folder_to_folder_keeps_what_files_cannot_hold(tmp_path: Path) -> None:
    """Shards become one, and the rotary settings of Llama 3.1 and the width of the heads stay."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    scaling = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 16
    settings = hf_settings(CONFIG, False, rope_theta=500.0, rope_scaling=scaling, head_dim=16, rms_norm_eps=1e-3)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**settings, initializer_range=0.2)).eval()
    model.save_pretrained(tmp_path / "a", max_shard_size="60KB")
    llama2c.export(tmp_path / "a", f"{tmp_path}/b/")
    ids = np.random.default_rng(6).integers(0, CONFIG.vocab_size, CONFIG.seq_len)
    expected = transformers_logits(model, ids)
    found = transformers_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "b"), ids)
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()
    (tmp_path / "b" / "config.json").write_text(json.dumps({**settings, "rope_scaling": None}))
    other = transformers_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "b"), ids)
    assert np.abs(other - expected).max() > 1e-3 * np.abs(expected).max()  # they do make a difference


@needs_transformers
@pytest.mark.filterwarnings("ignore")
def test_bfloat16_of_transformers(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    random_llama(False, 4).to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    llama2c.export(tmp_path / "hf", tmp_path / "m.bin")
    ids = np.random.default_rng(4).integers(0, CONFIG.vocab_size, CONFIG.seq_len)
    expected = transformers_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "hf", torch_dtype=torch.float32), ids)
    assert np.abs(logits_of(tmp_path / "m.bin", ids) - expected).max() < 1e-4 * np.abs(expected).max()


# ---------------------------------------------------------------------------
# PyTorch's files

TORCH_LAYER = {
    "rms_att_weight": "attention_norm",
    "wq": "attention.wq",
    "wk": "attention.wk",
    "wv": "attention.wv",
    "wo": "attention.wo",
    "rms_ffn_weight": "ffn_norm",
    "w1": "feed_forward.w1",
    "w2": "feed_forward.w2",
    "w3": "feed_forward.w3",
}
TORCH_WHOLE = {"token_embedding_table": "tok_embeddings", "rms_final_weight": "norm", "wcls": "output"}
BY_COLUMNS = ("wo", "w2", "token_embedding_table")
ARGS = {"dim": 64, "n_layers": 2, "n_heads": 8, "n_kv_heads": 4, "vocab_size": 300, "max_seq_len": 40, "multiple_of": 32}


def torch_tensors(weights: Arrays, prefix: str = "") -> dict[str, Any]:
    """A classifier that is not there is the embedding again, as when llama2.c's trainer saves it."""
    import torch

    arrays = {f"{prefix}{TORCH_WHOLE[n]}.weight": a for n, a in weights.items() if n in TORCH_WHOLE}
    for name, part in TORCH_LAYER.items():
        arrays |= {f"{prefix}layers.{layer}.{part}.weight": array for layer, array in enumerate(weights[name])}
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    tensors.setdefault(f"{prefix}output.weight", tensors[f"{prefix}tok_embeddings.weight"])
    return tensors


def trainer_file(path: Path, model: dict[str, Any], **args: Any) -> Path:
    import torch

    content = {"model": model, "model_args": {**ARGS, **args}, "iter_num": 5, "best_val_loss": torch.tensor(1.5), "config": {}}
    torch.save(content, path)
    return path


@needs_torch
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("shared", [True, False])
def test_trainer_file(tmp_path: Path, shared: bool, prefix: str) -> None:
    weights = random_weights(shared)
    path = trainer_file(tmp_path / "ckpt.pt", torch_tensors(weights, prefix))
    llama2c.export(path, tmp_path / "m.bin")
    assert_same(opened_weights(tmp_path / "m.bin"), weights)


@needs_torch
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_trainer_file_of_16_bits(tmp_path: Path, dtype: str) -> None:
    import torch

    model = {name: tensor.to(getattr(torch, dtype)) for name, tensor in torch_tensors(random_weights(False)).items()}
    llama2c.export(trainer_file(tmp_path / "ckpt.pt", model), tmp_path / "m.bin")
    found = opened_weights(tmp_path / "m.bin")
    np.testing.assert_array_equal(found["wcls"], model["output.weight"].float().numpy())
    np.testing.assert_array_equal(found["wk"][1], model["layers.1.attention.wk.weight"].float().numpy())


def write_meta(folder: Path, weights: Arrays, n_shards: int, rows: bool = False, **params: Any) -> Path:
    """Matrices cut by rows or by columns, as Meta's layers in parallel have them; norms whole in each. rows: as Llama 3."""
    import torch

    folder.mkdir()
    settings = {"dim": 64, "multiple_of": 32, "n_heads": 8, "n_kv_heads": 4, "n_layers": 2, "norm_eps": 1e-5, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps({**settings, **params}))
    shards: list[dict[str, Any]] = [{"rope.freqs": torch.zeros(4, dtype=torch.float64)} for _ in range(n_shards)]
    names = {f"layers.{layer}.{part}.weight": (name, layer) for name, part in TORCH_LAYER.items() for layer in range(2)}
    names |= {f"{part}.weight": (name, -1) for name, part in TORCH_WHOLE.items()}
    for spelled, (name, layer) in names.items():
        array = weights[name] if layer < 0 else weights[name][layer]
        by_columns = name in BY_COLUMNS and not (rows and name == "token_embedding_table")
        parts = [array] * n_shards if array.ndim == 1 else np.split(array, n_shards, axis=1 if by_columns else 0)
        for shard, part in zip(shards, parts, strict=True):
            shard[spelled] = torch.tensor(part).to(torch.bfloat16)
    for i, shard in enumerate(shards):
        torch.save(shard, folder / f"consolidated.{i:02}.pth")
    return folder


@needs_torch
@pytest.mark.parametrize(("n_shards", "rows"), [(1, False), (2, False), (4, False), (2, True)])
def test_meta_folder(tmp_path: Path, n_shards: int, rows: bool) -> None:
    weights = {name: from_bf16(as_bf16(array)) for name, array in random_weights(False).items()}
    folder = write_meta(tmp_path / "meta", weights, n_shards, rows, max_seq_len=40)
    llama2c.export(folder, tmp_path / "m.bin")
    assert_same(opened_weights(tmp_path / "m.bin"), weights)
    params = json.loads((folder / "params.json").read_text())
    del params["max_seq_len"]
    (folder / "params.json").write_text(json.dumps(params))
    llama2c.export(folder, tmp_path / "m.bin")
    assert Checkpoint.open(tmp_path / "m.bin").config.seq_len == 2048


@needs_torch
def test_errors_of_trainer_files(tmp_path: Path) -> None:
    import torch

    def error(**args: Any) -> str:
        with pytest.raises(ValueError) as caught:
            llama2c.export(trainer_file(tmp_path / "ckpt.pt", model, **args), tmp_path / "m.bin")
        return str(caught.value).removeprefix(f"{tmp_path}/ckpt.pt: ")

    model = torch_tensors(random_weights())
    assert error(n_layers=3) == "expected a tensor layers.2.attention_norm.weight, found none"
    assert error(vocab_size=299) == "tok_embeddings.weight: expected shape (299, 64), found (300, 64)"
    assert error(n_heads="8") == "n_heads: expected an int, found '8'"
    assert error(dim=None) == "expected a setting dim, found none"
    assert error(rope_theta=0) == "rope_theta: expected a finite positive number, found 0"
    model["layers.0.attention.wq.bias"] = torch.zeros(64)
    assert error() == "expected the 21 tensors of a Llama model, found one more: layers.0.attention.wq.bias"
    del model["layers.0.attention.wq.bias"]
    model["norm.weight"] = model["norm.weight"].double()
    assert error() == "norm.weight: expected float32, float16 or bfloat16, found float64"
    model["norm.weight"] = [1.0]
    assert error() == "norm.weight: expected a dense tensor, found list"
    del model["norm.weight"]
    assert error() == "expected a tensor norm.weight, found none"
    del model["layers.0.feed_forward.w1.weight"]
    assert error() == "expected a matrix layers.0.feed_forward.w1.weight, found none"
    torch.save({"step": 1}, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=r": expected model and model_args, as llama2.c's trainer saves them, found step$"):
        llama2c.export(tmp_path / "ckpt.pt", tmp_path / "m.bin")
    torch.save([1], tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=r"ckpt.pt: expected a dict of tensors, found list$"):
        llama2c.export(tmp_path / "ckpt.pt", tmp_path / "m.bin")
    assert os.listdir(tmp_path) == ["ckpt.pt"]


class Trap:
    """What a pickle can do: loading it calls a function."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, ("sprung",)


@needs_torch
def test_a_pickle_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "model_args": Trap()}, "ckpt.pt")
    with pytest.raises(ValueError, match=r"^ckpt.pt: expected tensors and numbers alone, found \w+.mkdir, which would run"):
        llama2c.export("ckpt.pt", "m.bin")
    Path("old.pt").write_bytes(pickle.dumps({"model": Trap()}))  # no zip file
    with pytest.raises(ValueError, match=r"^old.pt: expected "):
        llama2c.export("old.pt", "m.bin")
    assert sorted(os.listdir()) == ["ckpt.pt", "old.pt"]


@needs_torch
@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x80\x02}q\x00.", bytes(100)])
def test_broken_files_of_pytorch(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ckpt.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"ckpt.pt: expected .*, found") as caught:
        llama2c.export(tmp_path / "ckpt.pt", tmp_path / "m.bin")
    assert "\n" not in str(caught.value)
    with pytest.raises(OSError, match=r"none.pt: expected a checkpoint written by torch.save, found: No such file"):
        llama2c.export(tmp_path / "none.pt", tmp_path / "m.bin")


@needs_torch
def test_errors_of_meta_folders(tmp_path: Path) -> None:
    def error(folder: Path) -> str:
        with pytest.raises((ValueError, OSError)) as caught:
            llama2c.export(folder, tmp_path / "m.bin")
        return str(caught.value).replace(f"{tmp_path}/", "")

    weights = random_weights(False)
    folder = write_meta(tmp_path / "a", weights, 4)
    (folder / "consolidated.01.pth").unlink()
    assert error(folder) == "a: expected the shard consolidated.01.pth, found none"
    for path in folder.glob("*.pth"):
        path.unlink()
    assert error(folder) == "a: expected the shard consolidated.00.pth, found none"
    folder = write_meta(tmp_path / "b", weights, 4)
    (folder / "consolidated.03.pth").unlink()  # the last: that it is missing shows in the shapes alone
    assert error(folder).startswith("b: tok_embeddings.weight: expected shape (")
    folder = write_meta(tmp_path / "d", weights, 2, use_scaled_rope=True)
    assert error(folder) == (
        "d/params.json: use_scaled_rope: expected false, as its factors are not in the file, found true"
    )
    (folder / "params.json").write_text("{")
    assert error(folder).startswith("d/params.json: expected JSON, found: ")
    assert not (tmp_path / "m.bin").exists()


def test_without_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "ckpt.pt").write_bytes(b"PK\3\4")
    with pytest.raises(OSError, match=r"ckpt.pt: expected PyTorch, to read it, found none: pip install torch$"):
        llama2c.export(tmp_path / "ckpt.pt", tmp_path / "m.bin")


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps(hf_settings(CONFIG, True)))
    with pytest.raises(OSError, match=r"expected the package safetensors, to read it, found none: pip install 'llama2c\[hf\]"):
        llama2c.export(tmp_path, tmp_path / "m.bin")


# ---------------------------------------------------------------------------
# what the formats cannot hold, and what is wrong with a folder


@pytest.fixture
def export_error(tmp_path: Path) -> Callable[..., str]:
    """Write a folder with changed settings or tensors, and give the one line about it, from the folder's name on."""

    def error(tensors: Arrays | None = None, version: int | None = None, **settings: Any) -> str:
        folder = tmp_path / "hf"
        shutil.rmtree(folder, ignore_errors=True)
        tensors = hf_tensors(random_weights(), CONFIG.head_size) if tensors is None else tensors
        write_hf(folder, tensors, {**hf_settings(CONFIG, True), **settings})
        with pytest.raises((ValueError, OSError)) as caught:
            llama2c.export(folder, tmp_path / "m.bin", version=version)
        assert os.listdir(tmp_path) == ["hf"]
        assert "\n" not in str(caught.value)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return error


@needs_safetensors
@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"rope_theta": 500000.0}, "rope_theta: expected 10000 in a v0 file, found 500000.0"),
        (
            {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
            "rope_theta: expected 10000 in a v0 file, found 1000000.0",
        ),
        ({"rms_norm_eps": 1e-6}, "norm_eps: expected 1e-05 in a v0 file, found 1e-06"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            f"rope_scaling: expected none in a v0 file, found {RopeScaling('linear', 2.0)}",
        ),
    ],
)
def test_what_v0_cannot_hold_is_refused_if_it_is_asked_for(
    export_error: Callable[..., str], settings: dict[str, Any], error: str
) -> None:
    assert export_error(version=0, **settings) == f"hf: {error}"


@needs_safetensors
def test_epsilon_that_is_not_said(tmp_path: Path) -> None:
    """It is that of transformers, 1e-6, not that of the files."""
    settings = hf_settings(CONFIG, True)
    del settings["rms_norm_eps"]
    folder = write_hf(tmp_path / "hf", hf_tensors(random_weights(), CONFIG.head_size), settings)
    with pytest.raises(ValueError, match=r"hf: norm_eps: expected 1e-05 in a v1 file, found 1e-06$"):
        llama2c.export(folder, tmp_path / "m.bin", version=1)


@needs_safetensors
def test_other_head_sizes(tmp_path: Path) -> None:
    weights = random_weights()
    for name in ("wq", "wk", "wv"):
        weights[name] = weights[name].repeat(2, axis=1)
    weights["wo"] = weights["wo"].repeat(2, axis=2)
    folder = write_hf(tmp_path / "hf", hf_tensors(weights, 16), {**hf_settings(CONFIG, True), "head_dim": 16})
    with pytest.raises(ValueError, match=r"hf: head_size: expected 8 in a v2 file, found 16$"):
        llama2c.export(folder, tmp_path / "m.bin", "q8_0", version=2)


@needs_safetensors
@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"model_type": "mistral"}, "model_type: expected llama, found mistral"),
        ({"model_type": None}, "model_type: expected llama, found None"),
        ({"hidden_act": "gelu"}, 'hidden_act: expected "silu", found "gelu"'),
        ({"attention_bias": True}, "attention_bias: expected false, found true"),
        ({"mlp_bias": True}, "mlp_bias: expected false, found true"),
        ({"quantization_config": {"bits": 4}}, 'quantization_config: expected null, found {"bits": 4}'),
        (
            {"rope_scaling": {"rope_type": "spiral"}},
            "rope_type: expected default, linear or llama3, found spiral",
        ),
        ({"rope_scaling": {"type": "linear"}}, "factor: expected a float, found None"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type: expected default, linear or llama3, found yarn"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor: expected a float, found None"),
        ({"rope_scaling": 2}, "rope_scaling: expected an object, found 2"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1, found 0.5"),
        ({"hidden_size": None}, "expected a setting hidden_size, found none"),
        ({"hidden_size": "64"}, "dim: expected an int, found '64'"),
        ({"num_hidden_layers": 0}, "n_layers: expected a positive number below 2**31, found 0"),
        ({"num_key_value_heads": 3}, "n_kv_heads: expected a divisor of n_heads = 8, found 3"),
        ({"rope_theta": None}, "rope_theta: expected a float, found None"),
        ({"rms_norm_eps": float("nan")}, "norm_eps: expected a finite positive number, found nan"),
    ],
)
def test_settings_that_are_wrong(export_error: Callable[..., str], settings: dict[str, Any], error: str) -> None:
    assert export_error(**settings) == f"hf/config.json: {error}"


@needs_safetensors
def test_tensors_that_are_wrong(export_error: Callable[..., str]) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def error(**changed: np.ndarray | None) -> str:
        tensors = {**hf_tensors(random_weights(), CONFIG.head_size), **changed}
        return export_error({n: a for n, a in tensors.items() if a is not None})

    ones = np.ones((96, 64), "<f4")
    assert error(**{name: None}) == f"hf: expected a tensor {name}, found none"
    assert error(**{name: ones.T}) == f"hf: {name}: expected shape (96, 64), found (64, 96)"
    assert error(**{name: ones.astype("<f8")}) == f"hf: {name}: expected float32, float16 or bfloat16, found F64"
    assert error(**{name: ones.astype("i1")}) == f"hf: {name}: expected float32, float16 or bfloat16, found I8"
    for surplus in ("model.layers.1.self_attn.q_proj.bias", "model.layers.2.mlp.up_proj.weight", "score.weight"):
        expected = f"hf: expected the 20 tensors of a Llama model, found one more: {surplus}"
        assert error(**{surplus: np.zeros(64, "<f4")}) == expected
    assert error(**{name: ones * np.inf}) == "hf: w3[1]: expected finite weights, found inf"
    other = random_weights()["token_embedding_table"] + 1
    expected = "hf: lm_head.weight: expected the values of model.embed_tokens.weight, as they are tied, found others"
    assert error(**{"lm_head.weight": other}) == expected
    assert export_error(tie_word_embeddings=False) == "hf: expected a tensor lm_head.weight, found none"
    assert export_error(num_hidden_layers=2**31 - 1).startswith("hf: expected a tensor model.layers.2.")
    assert export_error(vocab_size=301) == "hf: model.embed_tokens.weight: expected shape (301, 64), found (300, 64)"


@needs_safetensors
def test_shards_that_are_wrong(tmp_path: Path) -> None:
    def error() -> str:
        with pytest.raises((ValueError, OSError)) as caught:
            llama2c.export(tmp_path / "hf", tmp_path / "m.bin")
        return str(caught.value).replace(f"{tmp_path}/", "")

    tensors = hf_tensors(random_weights(), CONFIG.head_size)
    folder = write_hf(tmp_path / "hf", tensors, hf_settings(CONFIG, True), 3)
    first, second, _ = sorted(folder.glob("*.safetensors"))
    write_safetensors(first, tensors)
    assert error().startswith(f"hf/{second.name}: expected each tensor once, found model.")
    second.unlink()
    assert error() == f"hf: expected the shard {second.name} that model.safetensors.index.json names, found none"
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../m.safetensors"}}))
    assert error() == f"hf/{index.name}: expected names of files beside it, found ../m.safetensors"
    index.write_text("{}")
    assert error() == f"hf/{index.name}: expected a weight_map from tensors to files, found none"
    index.write_text("[")
    assert error().startswith(f"hf/{index.name}: expected JSON, found: ")
    index.unlink()
    assert error() == f"hf: expected model.safetensors or {index.name}, found neither"
    (folder / "config.json").unlink()
    assert error() == "hf: expected config.json (Hugging Face) or params.json (Meta) in the folder, found neither"
    assert os.listdir(tmp_path) == ["hf"]


@needs_safetensors
@pytest.mark.parametrize("name", ["empty", "short", "no JSON", "cut off", "too long", "overlapping"])
def test_safetensors_that_are_broken(tmp_path: Path, name: str) -> None:
    folder = write_hf(tmp_path / "hf", hf_tensors(random_weights(), CONFIG.head_size), hf_settings(CONFIG, True))
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    entries = json.loads(whole[8 : 8 + size])
    entries["model.norm.weight"]["data_offsets"] = [0, 256]
    overlapping = json.dumps(entries).encode()
    broken = {
        "empty": b"",
        "short": whole[:5],
        "no JSON": whole[:8] + b"x" * size + whole[8 + size :],
        "cut off": whole[:-4],
        "too long": whole + b"1234",
        "overlapping": len(overlapping).to_bytes(8, "little") + overlapping + whole[8 + size :],
    }
    path.write_bytes(broken[name])
    with pytest.raises(ValueError, match=r"model.safetensors: expected a safetensors file, found: ") as caught:
        llama2c.export(folder, tmp_path / "m.bin")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["hf"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"9" * 10_000])
def test_json_that_is_broken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json: expected JSON, found: "):
        llama2c.export(tmp_path, tmp_path / "m.bin")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config.json: expected a JSON object, found list$"):
        llama2c.export(tmp_path, tmp_path / "m.bin")
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ValueError, match=r"config.json: expected a regular file, found a directory$"):
        llama2c.export(tmp_path, tmp_path / "m.bin")


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected the folder that holds it and config.json, found the file alone$"):
        llama2c.export(tmp_path / "model.safetensors", tmp_path / "m.bin")
    (tmp_path / "text.bin").write_text("Once upon a time, there was no checkpoint.")
    with pytest.raises(ValueError, match=r"text.bin: v0 header \(magic number 0x616b3432 not found\): "):
        llama2c.export(tmp_path / "text.bin", tmp_path / "m.bin")
    with pytest.raises(OSError, match=r"none.bin: expected a readable file, found: No such file or directory$"):
        llama2c.export(tmp_path / "none.bin", tmp_path / "m.bin")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"dtype": "int4"}, "dtype: expected float32 or float16 or bfloat16 or q8_0, found 'int4'"),
        ({"format": "gguf"}, "format: expected llama2c or hf, found 'gguf'"),
        ({"version": 2}, "version: expected 0 or 1 or 3 for float32, found 2"),
        ({"version": 4}, "version: expected 0 or 1 or 3 for float32, found 4"),
        ({"dtype": "q8_0", "version": 0}, "version: expected 2 or 3 for q8_0, found 0"),
        ({"dtype": "bfloat16", "version": 1}, "version: expected 3 for bfloat16, found 1"),
        ({"dtype": "float16", "group_size": 32}, "group_size: expected None for float16, found 32"),
        ({"group_size": 32}, "group_size: expected None for float32, found 32"),
        ({"dtype": "q8_0", "group_size": 64}, "group_size: expected a divisor of hidden_dim = 96, found 64"),
        ({"dtype": "q8_0", "group_size": 48}, "group_size: expected a divisor of dim = 64, found 48"),
        ({"dtype": "q8_0", "group_size": 0}, "group_size: expected a divisor of dim = 64, found 0"),
        (
            {"dtype": "q8_0", "format": "hf"},
            "dtype: expected float32, float16 or bfloat16 for a Hugging Face folder, found q8_0",
        ),
        ({"version": 0, "format": "hf"}, "version: expected None for a Hugging Face folder, found 0"),
        ({"group_size": 8, "format": "hf"}, "group_size: expected None for a Hugging Face folder, found 8"),
    ],
)
def test_arguments_that_are_wrong(tmp_path: Path, arguments: dict[str, Any], error: str) -> None:
    checkpoints.write(tmp_path / "m.bin", CONFIG, 0, random_weights())
    with pytest.raises(ValueError) as caught:
        llama2c.export(tmp_path / "m.bin", tmp_path / "out", **arguments)
    assert str(caught.value) == error
    assert os.listdir(tmp_path) == ["m.bin"]


# ---------------------------------------------------------------------------
# a disk, a hurry


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return checkpoints.write(tmp_path / "in" / "m.bin", CONFIG, 0, random_weights())


@pytest.mark.parametrize("out", ["out.bin", "out/"])
def test_a_full_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    """Known before, or found out while writing: then what was written is removed, and what there was is kept."""
    if not out.endswith("/"):
        (tmp_path / out).write_text("before")
    before = sorted(os.listdir(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=123_456))
        with pytest.raises(OSError, match=r"out(.bin)?: expected 0 MB of free disk, found 0 MB$"):
            llama2c.export(model, f"{tmp_path}/{out}")
    assert sorted(os.listdir(tmp_path)) == before

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert.Source, "numbers", full)
    monkeypatch.setattr(convert.huggingface, "halved", full)
    with pytest.raises(OSError, match=r"out(.bin)?: expected a place to write to, found: No space left on device$") as caught:
        llama2c.export(model, f"{tmp_path}/{out}")
    assert caught.value.errno == errno.ENOSPC
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("out", ["out.bin", "out/"])
def test_an_interrupted_run_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    seen: list[int] = []

    def bar(items: Any) -> Any:
        for i, item in enumerate(items):
            if i == 5:
                seen.append(len(os.listdir(tmp_path)))
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(export_command, "bar", bar)
    assert cli.main(["export", str(model), "-o", f"{tmp_path}/{out}"]) == 130
    assert seen == [2]
    assert os.listdir(tmp_path) == ["in"]
    assert capsys.readouterr().out == ""


def test_places_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    for out, found in (("none/m.bin", "No such file or directory"), ("none/hf/", "No such file or directory")):
        with pytest.raises(OSError, match=f": expected a place to write to, found: {found}$"):
            llama2c.export(model, f"{tmp_path}/{out}")
    with pytest.raises(OSError, match=r"in: expected a file to write to, found a folder$"):
        llama2c.export(model, tmp_path / "in")
    with pytest.raises(OSError, match=r"^/dev/null: expected a file to write to, found a device$"):
        llama2c.export(model, "/dev/null")
    if os.geteuid() != 0:  # root may write everywhere
        (tmp_path / "in").chmod(0o500)
        with pytest.raises(OSError, match=r"o.bin: expected a place to write to, found: Permission denied$"):
            llama2c.export(model, tmp_path / "in" / "o.bin")
        (tmp_path / "in").chmod(0o700)
    assert os.listdir(tmp_path) == ["in"]


@pytest.fixture
def wide() -> Config:
    """Its largest tensor is a small part of the whole: 2.6 of 25 MB."""
    return Config(dim=256, hidden_dim=2560, n_layers=3, n_heads=4, n_kv_heads=4, vocab_size=2560, seq_len=16)


def peak_memory(work: Callable[[], object]) -> int:
    """Of what Python and NumPy allocate; mapped files are not counted."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["fp32", "q8_0", "to a folder", "from q8_0"])
def test_memory(tmp_path: Path, wide: Config, kind: str) -> None:
    version = 2 if kind == "from q8_0" else 0
    path = checkpoints.write(tmp_path / "m.bin", wide, version, random_weights(False, wide), 64 if version else None)
    out = f"{tmp_path}/hf/" if kind == "to a folder" else f"{tmp_path}/out.bin"
    llama2c.export(path, f"{tmp_path}/first.bin")  # what is imported once is not counted
    peak = peak_memory(lambda: llama2c.export(path, out, "q8_0" if kind == "q8_0" else "float32"))
    assert peak < 4 * 4 * wide.vocab_size * wide.dim


@needs_safetensors
@pytest.mark.parametrize("dtype", ["float32", "q8_0"])
def test_memory_of_folders(tmp_path: Path, wide: Config, dtype: str) -> None:
    """The largest tensor has 16 bits a value there."""
    tensors = {name: as_bf16(array) for name, array in hf_tensors(random_weights(False, wide), wide.head_size).items()}
    folder = write_hf(tmp_path / "hf", tensors, hf_settings(wide, False), 2)
    llama2c.export(folder, tmp_path / "first.bin")
    peak = peak_memory(lambda: llama2c.export(folder, tmp_path / "m.bin", dtype))
    assert peak < 4 * 2 * wide.vocab_size * wide.dim


# ---------------------------------------------------------------------------
# the command line


def test_command_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "q.bin")
    assert cli.main(["export", str(model), "-o", out, "--dtype", "q8_0"]) == 0
    done = capsys.readouterr()
    assert done.out == f"{out}\n"
    said = done.err.splitlines()
    assert said[0] == "llama2c: group size: 32, as 64 does not divide dim = 64 and hidden_dim = 96"
    assert said[1] == f"llama2c: {out}: version 2, q8_0 in groups of 32, 0.1 MB"
    rounding = llama2c.export(model, tmp_path / "again.bin", "q8_0").rounding
    assert said[2:] == [f"llama2c: largest quantisation error: {rounding.error:.3g}, in {rounding.tensor}"]
    assert cli.main(["export", str(model), "-o", out, "--version", "2", "--group-size", "16"]) == 0
    assert Checkpoint.open(out).group_size == 16
    assert "group size" not in capsys.readouterr().err
    assert cli.main(["export", str(model), "-o", out]) == 0
    assert capsys.readouterr().err == f"llama2c: {out}: version 0, float32, 0.3 MB\n"
    assert cli.main(["export", str(model), f"--out={tmp_path}/hf/"]) == 0
    assert capsys.readouterr() == (f"{tmp_path}/hf\n", f"llama2c: {tmp_path}/hf: a Hugging Face folder, float32, 0.3 MB\n")
    assert cli.main(["export", str(model), "-o", f"{tmp_path}/hf2", "--format", "hf"]) == 0
    assert (tmp_path / "hf2" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "error", "status"),
    [
        ([], "the following arguments are required: SOURCE, -o/--out", 2),
        (["{in}"], "the following arguments are required: -o/--out", 2),
        (["{in}", "-o", "m.bin", "--version", "7"], "argument --version: invalid choice: 7", 2),
        (["{in}", "-o", "m.bin", "--tokenizer", "m.bin"], "argument --tokenizer: expected another file than OUT, found", 2),
        (["{in}", "-o", "m.bin", "--dtype", "q8_0", "--version", "1"], "version: expected 2 or 3 for q8_0, found 1", 1),
        (["none.bin", "-o", "m.bin"], "none.bin: expected a readable file, found: No such file or directory", 1),
        (["stories15M", "-o", "m.bin"], "stories15M: expected a file, or a model downloaded with ", 1),
    ],
)
def test_command_lines_that_are_wrong(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    error: str,
    status: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMA2C_CACHE", str(tmp_path / "cache"))
    assert cli.main(["export", *(argument.replace("{in}", str(model)) for argument in arguments)]) == status
    done = capsys.readouterr()
    assert done.out == "" and done.err.count("\n") == 1
    assert done.err.startswith(f"llama2c: error: {error}")
    assert os.listdir(tmp_path) == ["in"]


def test_models_are_called_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA2C_CACHE", str(tmp_path))
    (tmp_path / "stories15M").mkdir()
    weights = random_weights()
    checkpoints.write(tmp_path / "stories15M" / "stories15M.bin", CONFIG, 1, weights)
    llama2c.export("stories15M", tmp_path / "m.bin")
    assert_same(opened_weights(tmp_path / "m.bin"), weights)


def test_help_and_the_name_in_python() -> None:
    """llama2c.export is the function, whatever has been imported before; the other packages are not needed for the help."""
    code = "import llama2c, sys; from llama2c.commands.main import main; main(['export', '--help']); llama2c.export.__call__; "
    code += "assert not {'torch', 'safetensors', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    for word in ("SOURCE", "--out", "--dtype", "--version", "--group-size", "--format", "--tokenizer"):
        assert word in done.stdout
    assert done.stderr == ""


# ---------------------------------------------------------------------------
# tokenizers


@pytest.fixture
def tokenizer_model(model: Path) -> Path:
    path = model.with_name("tokenizer.model")
    path.write_bytes(tokenizer_models.model(tokenizer_models.pieces(CONFIG.vocab_size)))
    return path


def test_tokenizer_is_written_too(
    model: Path, tokenizer_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokenizer.bin"
    assert cli.main(["export", str(model), "-o", str(tmp_path / "m.bin"), "--tokenizer", str(out)]) == 0
    assert out.read_bytes() == tokenizer_models.tokenizer_bin(tokenizer_models.pieces(CONFIG.vocab_size))
    assert Tokenizer.open(out, CONFIG.vocab_size).piece(259) == b" t"
    assert capsys.readouterr().out == f"{tmp_path}/m.bin\n"
    llama2c.export(model, f"{tmp_path}/hf/")
    shutil.copy(tokenizer_model, tmp_path / "hf")
    if importlib.util.find_spec("safetensors"):
        arguments = ["export", f"{tmp_path}/hf", "-o", str(tmp_path / "n.bin"), "--tokenizer", str(tmp_path / "again.bin")]
        assert cli.main(arguments) == 0
        assert (tmp_path / "again.bin").read_bytes() == out.read_bytes()


@needs("sentencepiece")
def test_tokenizer_that_sentencepiece_has_trained(tmp_path: Path) -> None:
    """Scores and spellings as the package tells them, and the same ids for a text."""
    import io

    import sentencepiece

    from llama2c.text import sentencepiece as ours

    written = io.BytesIO()
    settings = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 300, "normalization_rule_name": "identity"}
    settings |= {"remove_extra_whitespaces": False, "minloglevel": 2, "num_threads": 1}
    stories = [f"One day, {name} saw a {thing}." for name in ("Lily", "Tom", "Zoë") for thing in ("ball", "kite")]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(stories), model_writer=written, **settings)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    expected = [(theirs.id_to_piece(i).replace("\u2581", " ").encode(), theirs.get_score(i)) for i in range(300)]
    expected[1:3] = [(b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    (tmp_path / "t.model").write_bytes(written.getvalue())
    (tmp_path / "t.bin").write_bytes(ours.convert(tmp_path / "t.model", 300))
    assert (tmp_path / "t.bin").read_bytes() == writer.pack_tokenizer(expected)
    opened = Tokenizer.open(tmp_path / "t.bin", 300)
    for text in ("One day, Zoë saw a kite.", "Lily 猫"):
        assert opened.encode(text) == [1, *theirs.encode(text)]


def test_tokenizers_that_are_wrong(
    model: Path, tokenizer_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(content: bytes) -> str:
        tokenizer_model.write_bytes(content)
        assert cli.main(["export", str(model), "-o", str(tmp_path / "m.bin"), "--tokenizer", str(tmp_path / "t.bin")]) == 1
        assert os.listdir(tmp_path) == ["in"]
        done = capsys.readouterr()
        assert done.out == "" and done.err.count("\n") == 1
        return done.err.removeprefix(f"llama2c: error: {tokenizer_model}: ").removesuffix("\n")

    pieces = tokenizer_models.pieces(300)
    whole = tokenizer_models.model(pieces)
    assert error(tokenizer_models.model(pieces[:299])) == "expected 300 tokens, as the model has, found 299"
    assert error(b"") == "expected a tokenizer of SentencePiece, found no token in it"
    assert error(whole[:-1]) == "expected a tokenizer of SentencePiece, found it cut off"
    assert error(whole[:1000]).startswith("expected a tokenizer of SentencePiece, found it cut off: ")
    assert error(b"\x0b" + whole) == "expected a tokenizer of SentencePiece, found a field of wire type 3"
    assert error(b"\x80" * 20) == "expected a tokenizer of SentencePiece, found a number of more than 10 bytes"
    assert error(b'{"version": "1.0"}').startswith("expected a tokenizer of SentencePiece, found ")
    assert error(tokenizer_models.model(pieces, kind=1)) == "expected a model of byte-pair encoding (kind 2), found kind 1"
    swapped = [*pieces[:3], pieces[4], pieces[3], *pieces[5:]]
    assert error(tokenizer_models.model(swapped)) == "expected token 3 to be <0x00>, found b'<0x01>'"
    kinds = "(unknown, BOS, EOS, then the bytes)"
    assert error(tokenizer_models.model(pieces[1:])) == f"expected a token 0 of kind 2 {kinds}, found kind 3"
    assert error(tokenizer_models.model(pieces[:200])) == f"expected a token 200 of kind 6 {kinds}, found none"
    nameless = [*pieces[:270], ("", 0.0, 1)]
    assert error(tokenizer_models.model(nameless)) == "expected a token 270 with a spelling and a score, found b'' and 0.0"
    tokenizer_model.unlink()
    assert cli.main(["export", str(model), "-o", str(tmp_path / "m.bin"), "--tokenizer", str(tmp_path / "t.bin")]) == 1
    assert "expected a tokenizer of SentencePiece, found: No such file or directory" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["in"]
