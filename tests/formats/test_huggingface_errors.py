"""What can be wrong with a Hugging Face folder, and what a file cannot store of one: one line for each."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import Arrays
from exports import CONFIG, needs_safetensors, random_weights
from folders import hf_settings, hf_tensors, write_hf, write_safetensors

import llama2c
from llama2c import RopeScaling
from llama2c.errors import ModelError, RequestError


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps(hf_settings(CONFIG, True)))
    with pytest.raises(OSError, match=r"safetensors is needed to read it: pip install 'llama2c\[hf\]'$"):
        llama2c.export(tmp_path, tmp_path / "m.bin")


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
        ({"rope_scaling": {"type": "linear"}}, "factor: expected a number, found NoneType"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type: expected default, linear or llama3, found yarn"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor: expected a number, found NoneType"),
        ({"rope_scaling": 2}, "rope_scaling: expected an object, found 2"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1, found 0.5"),
        ({"hidden_size": None}, "expected a setting hidden_size, found none"),
        ({"hidden_size": "64"}, "dim: expected an integer, found str"),
        ({"num_hidden_layers": 0}, "n_layers: expected an integer from 1 to 2147483647, found 0"),
        ({"num_key_value_heads": 3}, "n_kv_heads: expected a divisor of n_heads = 8, found 3"),
        ({"rope_theta": None}, "rope_theta: expected a number, found NoneType"),
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
    expected = "hf: lm_head.weight: expected the values of model.embed_tokens.weight, because they are tied, found others"
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


@needs_safetensors
def test_errors_say_whose_fault_it_is(tmp_path: Path) -> None:
    """A folder that is wrong is a ModelError; a version that was asked for and cannot store the model is a RequestError."""
    tensors = hf_tensors(random_weights(), CONFIG.head_size)
    folder = write_hf(tmp_path / "hf", tensors, {**hf_settings(CONFIG, True), "rope_theta": 500000.0})
    with pytest.raises(RequestError) as caught:
        llama2c.export(folder, tmp_path / "m.bin", version=1)
    assert caught.value.param == "version"
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = np.inf
    write_hf(tmp_path / "inf", tensors, hf_settings(CONFIG, True))
    with pytest.raises(ModelError, match=r"inf: w3\[1\]: expected finite weights, found inf$"):
        llama2c.export(tmp_path / "inf", tmp_path / "m.bin")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"config.json: model_type: "):
        llama2c.export(folder, tmp_path / "m.bin")


@needs_safetensors
def test_safetensors_without_memory_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package raises a MemoryError that does not name it."""
    folder = write_hf(tmp_path / "hf", hf_tensors(random_weights(), CONFIG.head_size), hf_settings(CONFIG, True))

    def fail(*_: object, **__: object) -> None:
        raise MemoryError("Cannot allocate memory (os error 12)")

    monkeypatch.setattr("safetensors.safe_open", fail)
    size = (folder / "model.safetensors").stat().st_size
    with pytest.raises(MemoryError, match=rf"hf/model.safetensors: expected memory for {size} bytes, found too little$"):
        llama2c.Checkpoint.open(folder)
