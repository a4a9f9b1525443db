"""Folders of Hugging Face, run as they are: against NumPy, against the files that are made of them, and against transformers.

test_huggingface_errors has the broken ones: what is wrong with a folder is the same whoever opens it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import checkpoints
import folders
import numpy as np
import pytest
import reference

import llama2c
from llama2c import BFloat16Tensor, Checkpoint, Config, Layers, RopeScaling, Transformer
from llama2c.commands import main as cli
from llama2c.formats.huggingface import read_config, read_rope_scaling
from llama2c.transformer import rotary_frequencies

pytest.importorskip("safetensors", reason="needs safetensors")

LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
LINEAR = RopeScaling("linear", 3.0)
CONFIG = Config(64, 96, 2, 8, 4, 300, 40)
OWN = dataclasses.replace(CONFIG, head_size=12, rope_theta=500000.0, norm_eps=1e-6, rope_scaling=LLAMA3)
IDS = [int(token) for token in np.random.default_rng(8).integers(0, 300, 40)]


def weights_of(config: Config, shared: bool = True) -> checkpoints.Arrays:
    return checkpoints.random_weights(config, np.random.default_rng(4), shared)


def logits_of(path: Path, ids: Any = IDS, n_threads: int = 1) -> np.ndarray:
    transformer = Transformer(Checkpoint.open(path), n_threads=n_threads)
    return transformer.forward(ids, transformer.new_cache(), logits=None)


# ---- what is read ----------------------------------------------------------------------


@pytest.mark.parametrize("use_mmap", [True, False])
@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("n_shards", [0, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_what_was_written_is_read(tmp_path: Path, shared: bool, n_shards: int, bfloat16: bool, use_mmap: bool) -> None:
    weights = weights_of(OWN, shared)
    folder = folders.write_model(tmp_path / "hf", OWN, weights, bfloat16, n_shards)
    opened = Checkpoint.open(folder, mmap=use_mmap)
    assert opened.config == OWN
    assert (opened.version, opened.shared_classifier, opened.rope_pairs, opened.group_size) == (None, shared, "halves", None)
    assert (opened.path, opened.format) == (str(folder), "Hugging Face folder")
    assert (opened.dtype, opened.kind) == (("bfloat16", "bf16") if bfloat16 else ("float32", "fp32"))
    assert set(opened.weights) == set(checkpoints.V1)
    assert (opened.weights["wcls"] is opened.weights["token_embedding_table"]) == shared
    for name, expected in weights.items():
        found = opened.weights[name]
        assert found.shape == expected.shape
        if name.startswith("rms_"):
            assert isinstance(found, np.ndarray) and not found.flags.writeable
            np.testing.assert_array_equal(found, expected)
            continue
        assert isinstance(found, Layers) == (expected.ndim == 3)
        for layer, matrix in enumerate(expected if expected.ndim == 3 else [expected]):
            stored = found[layer] if isinstance(found, Layers) else found
            rows = folders.rows_in_halves(matrix, OWN.head_size) if name in ("wq", "wk") else matrix
            if bfloat16:
                assert isinstance(stored, BFloat16Tensor)
                np.testing.assert_array_equal(stored.bits, checkpoints.narrow(rows, "bfloat16"))
                np.testing.assert_array_equal(stored.widen(), checkpoints.widen(stored.bits, "bfloat16"))
            else:
                np.testing.assert_array_equal(stored, rows)
            array = stored.bits if isinstance(stored, BFloat16Tensor) else stored
            assert not array.flags.writeable  # type: ignore[union-attr]


def test_matrices_are_mapped_not_copied(tmp_path: Path) -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc/self/maps")
    folder = folders.write_model(tmp_path / "hf", CONFIG, weights_of(CONFIG))
    mapped, read = Checkpoint.open(folder), Checkpoint.open(folder, mmap=False)
    places = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("model.safetensors"):
            places.append([int(address, 16) for address in line.split()[0].split("-")])
    assert places
    for opened, expected in ((mapped, True), (read, False)):
        layers = opened.weights["w2"]
        assert isinstance(layers, Layers)
        address = layers[1].ctypes.data  # type: ignore[union-attr]
        assert any(start <= address < stop for start, stop in places) is expected


def test_tensors_of_several_types_in_one_folder(tmp_path: Path) -> None:
    """As it happens: the classifier in fp32, all else in bf16, a matrix in fp16."""
    weights = weights_of(CONFIG, False)
    tensors = folders.hf_tensors(weights, CONFIG.head_size)
    exact = {}
    for name, array in tensors.items():
        dtype = "float32" if name == "lm_head.weight" else "float16" if "layers.1.mlp.up" in name else "bfloat16"
        tensors[name] = array if dtype == "float32" else checkpoints.narrow(array, dtype)
        exact[name] = array if dtype == "float32" else checkpoints.widen(tensors[name], dtype)
    mixed = folders.write_hf(tmp_path / "mixed", tensors, folders.hf_settings(CONFIG, False))
    wide = folders.write_hf(tmp_path / "wide", exact, folders.hf_settings(CONFIG, False))
    assert Checkpoint.open(mixed).kind == "bf16+fp16+fp32"
    np.testing.assert_array_equal(logits_of(mixed), logits_of(wide))


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_numbers_may_lie_at_any_byte(tmp_path: Path, shift: int) -> None:
    """The format asks for no alignment: here the header is filled up to an odd length."""
    folder = folders.write_model(tmp_path / "hf", CONFIG, weights_of(CONFIG))
    expected = logits_of(folder)
    content = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    padding = (8 - size) % 8 + shift
    (folder / "model.safetensors").write_bytes(
        (size + padding).to_bytes(8, "little") + content[8 : 8 + size] + b" " * padding + content[8 + size :]
    )
    np.testing.assert_array_equal(logits_of(folder), expected)


@pytest.mark.parametrize("use_mmap", [True, False])
def test_norms_are_finite(tmp_path: Path, use_mmap: bool) -> None:
    weights = weights_of(CONFIG)
    weights["rms_ffn_weight"][1, 5] = np.nan
    folder = folders.write_model(tmp_path / "hf", CONFIG, weights)
    with pytest.raises(ValueError, match=r"hf: rms_ffn_weight\[1, 5\]: expected a finite number, found nan$"):
        Checkpoint.open(folder, mmap=use_mmap)


def test_a_fifo_among_the_files_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        folder = folders.write_model(tmp_path / f"with {name}", CONFIG, weights_of(CONFIG))
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(ValueError, match=rf"{name}: expected a regular file, found a special file$"):
            Checkpoint.open(folder)


def test_a_mapping_that_fails_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders.write_model(tmp_path / "hf", CONFIG, weights_of(CONFIG))

    def fail(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("numpy.memmap", fail)
    with pytest.raises(OSError, match=r"model\.safetensors: expected a readable file, found: Cannot allocate memory$"):
        Checkpoint.open(folder)


# ---- config.json -----------------------------------------------------------------------


def test_both_spellings_of_the_rotary_settings(tmp_path: Path) -> None:
    weights = weights_of(OWN)
    scaling = folders.scaling_settings(LLAMA3)
    old = folders.hf_settings(OWN, True)
    new = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {"rope_theta": OWN.rope_theta, **scaling}
    tensors = folders.hf_tensors(weights, OWN.head_size)
    for i, settings in enumerate((old, new)):
        assert Checkpoint.open(folders.write_hf(tmp_path / str(i), tensors, settings)).config == OWN


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, None),
        ({"rope_scaling": None}, None),
        ({"rope_scaling": {"rope_type": "default"}}, None),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, RopeScaling("linear", 4.0)),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 1e4}}, RopeScaling("linear", 2)),
        ({"rope_scaling": folders.scaling_settings(LLAMA3)}, LLAMA3),
        ({"rope_parameters": {}}, None),
        ({"rope_scaling": {}, "rope_parameters": {"type": "linear", "factor": 2}}, RopeScaling("linear", 2)),
        ({"rope_scaling": {"type": "linear", "factor": 3.0}, "rope_parameters": {"rope_type": "default"}}, LINEAR),
        ({"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"type": "linear", "factor": 2}}, None),
    ],
)
def test_rope_scaling(settings: dict[str, Any], expected: RopeScaling | None) -> None:
    assert read_rope_scaling(Path("config.json"), settings) == expected


ROTARY: dict[str, dict[str, Any]] = {
    "nothing": {},
    "theta": {"rope_theta": 500.0},
    "empty rope_parameters": {"rope_parameters": {}},
    "empty rope_parameters, theta": {"rope_parameters": {}, "rope_theta": 500.0},
    "rope_parameters": {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
    "rope_parameters without theta": {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 700.0},
    "both": {
        "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "both, and theta": {
        "rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 8.0},
        "rope_scaling": folders.scaling_settings(LLAMA3),
        "rope_theta": 700.0,
    },
    "rope_scaling with theta": {"rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 300.0}, "rope_theta": 700.0},
    "rope_scaling of default over rope_parameters": {
        "rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 8.0},
        "rope_scaling": {"rope_type": "default"},
    },
    "empty rope_scaling": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 9.0}, "rope_scaling": {}},
    "null": {"rope_parameters": None, "rope_scaling": None},
    "both names of the type": {"rope_scaling": {"type": "default", "rope_type": "linear", "factor": 2.0}},
    "llama3 without its context": {
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "max_position_embeddings": 64,
    },
}


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")), reason="needs torch, transformers"
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ROTARY)
def test_rotary_frequencies_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    """Whichever of the two settings a config.json has, or both."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    settings = folders.hf_settings(CONFIG, True)
    for key in ("rope_theta", "rope_scaling"):
        del settings[key]
    settings |= ROTARY[name]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    expected = LlamaRotaryEmbedding(LlamaConfig.from_pretrained(tmp_path)).inv_freq.numpy()
    found = rotary_frequencies(read_config(tmp_path / "config.json", settings))
    np.testing.assert_allclose(found, expected, rtol=2e-6)


# ---- against NumPy, and the exported file ----------------------------------------------


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        OWN,
        dataclasses.replace(OWN, n_kv_heads=1, rope_scaling=RopeScaling("linear", 4.0)),
        dataclasses.replace(CONFIG, n_kv_heads=8, head_size=36),
    ],
)
def test_logits_are_those_of_numpy_and_of_the_exported_files(tmp_path: Path, config: Config, bfloat16: bool) -> None:
    weights = weights_of(config, False)
    folder = folders.write_model(tmp_path / "hf", config, weights, bfloat16)
    if bfloat16:
        narrow = {n: a if n.startswith("rms_") else checkpoints.narrow(a, "bfloat16") for n, a in weights.items()}
        weights = {n: a if n.startswith("rms_") else checkpoints.widen(a, "bfloat16") for n, a in narrow.items()}
    expected = reference.Reference(config, weights).forward(IDS).logits
    found = logits_of(folder, n_threads=2)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
    for dtype in ("float32", *(["bfloat16"] if bfloat16 else [])):
        done = llama2c.export(folder, tmp_path / "m.bin", dtype)
        own = config.head_size != config.dim // config.n_heads
        assert done.version == (3 if dtype == "bfloat16" or own else 0)
        assert (done.dtype, done.rounding) == (dtype, (0, ""))
        np.testing.assert_array_equal(logits_of(tmp_path / "m.bin"), found)


def test_a_context_that_needs_the_scaling(tmp_path: Path) -> None:
    """The scaling shows: without it, the logits are others."""
    weights = weights_of(OWN)
    plain = dataclasses.replace(OWN, rope_scaling=None)
    found = [logits_of(folders.write_model(tmp_path / str(i), c, weights)) for i, c in enumerate((OWN, plain))]
    assert np.abs(found[0] - found[1]).max() > 1e-3 * np.abs(found[0]).max()


def test_rounded_to_16_bits(tmp_path: Path) -> None:
    """export --dtype rounds to the nearest, half to even, and says where it is farthest off."""
    weights = weights_of(OWN, False)
    weights["wq"][0, 0, :4] = [1.00390625, 1.01171875, 3.3895314e38, -1.0]  # two ties of bfloat16, its largest number
    folder = folders.write_model(tmp_path / "hf", OWN, weights)
    done = llama2c.export(folder, tmp_path / "b.bin", "bfloat16")
    expected = checkpoints.parts(OWN, 3, weights, None, "bfloat16")
    assert (tmp_path / "b.bin").read_bytes()[1024:] == b"".join(expected[1:])
    bits = checkpoints.narrow(weights["wq"][0, 0, :2], "bfloat16")
    np.testing.assert_array_equal(checkpoints.widen(bits, "bfloat16"), [1.0, 1.015625])
    errors = {
        f"{name}[{layer}]" if array.ndim > 2 else name: np.abs(
            matrix - checkpoints.widen(checkpoints.narrow(matrix, "bfloat16"), "bfloat16")
        ).max()
        for name, array in weights.items()
        if not name.startswith("rms_")
        for layer, matrix in enumerate(array.reshape(-1, *array.shape[-2:]))
    }
    assert done.rounding == (max(errors.values()), max(errors, key=lambda name: errors[name]))
    with pytest.raises(ValueError, match=r"hf: wq\[0\]: expected weights that float16 holds, found 3.38953\d*e\+38$"):
        llama2c.export(folder, tmp_path / "h.bin", "float16")
    assert sorted(os.listdir(tmp_path)) == ["b.bin", "hf"]


def test_to_a_folder_in_16_bits_and_back(tmp_path: Path) -> None:
    weights = weights_of(OWN, False)
    path = checkpoints.write(tmp_path / "m.bin", OWN, 3, weights, None, "bfloat16")
    done = llama2c.export(path, f"{tmp_path}/hf/", "bfloat16")
    assert (done.version, done.dtype) == (None, "bfloat16")
    settings = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert settings["torch_dtype"] == "bfloat16"
    assert settings["rope_scaling"] == folders.scaling_settings(LLAMA3)
    opened = Checkpoint.open(tmp_path / "hf")
    assert (opened.config, opened.dtype) == (OWN, "bfloat16")
    np.testing.assert_array_equal(logits_of(tmp_path / "hf"), logits_of(path))


# ---- the command line ------------------------------------------------------------------


def test_the_command_line_runs_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shared: Path
) -> None:
    """A real model: the folder tells the story of the file."""
    model, tokenizer = shared / "models" / "stories260K.bin", str(shared / "models" / "tok512.bin")
    llama2c.export(model, f"{tmp_path}/stories15M/")  # a folder here comes before a model of that name
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMA2C_CACHE", str(tmp_path / "cache"))
    told = []
    for name in (str(model), "stories15M"):
        assert cli.main([name, "-z", tokenizer, "-t", "0", "-n", "60", "-v"]) == 0
        told.append(capsys.readouterr())
    assert told[0].out == told[1].out
    assert told[0].out.startswith("Once upon a time, there was a little girl named Lily.")
    assert "llama2c: model: stories15M, format Hugging Face folder, fp32\n" in told[1].err
    assert cli.main(["bench", "stories15M", "-p", "8", "-n", "4", "-r", "1"]) == 0
    assert "stories15M fp32" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert cli.main(["empty"]) == 1
    expected = "llama2c: error: empty: expected a file, or a folder with config.json, found a folder without it\n"
    assert capsys.readouterr().err == expected


# ---- with transformers -----------------------------------------------------------------

MODELS = {
    "multi-head, tied": {"num_key_value_heads": 8, "tie_word_embeddings": True},
    "grouped-query": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "multi-query, theta": {"num_key_value_heads": 1, "tie_word_embeddings": True, "rope_theta": 500000.0},
    "llama3": {"tie_word_embeddings": False, "rope_theta": 500000.0, "rope_scaling": folders.scaling_settings(LLAMA3)},
    "linear": {"tie_word_embeddings": True, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "head_dim": {"tie_word_embeddings": False, "head_dim": 24, "rms_norm_eps": 1e-6},
}


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")), reason="needs torch, transformers"
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str, dtype: str, sharded: bool) -> None:
    """Through the folder, through the file made of it, and back in transformers through a folder made of the file."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    def theirs(folder: Path) -> np.ndarray:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            logits: np.ndarray = model(torch.tensor(ids)[None]).logits[0].numpy()
        return logits

    config = dataclasses.replace(CONFIG, seq_len=200)
    settings = {**folders.hf_settings(config, True), "head_dim": None, **MODELS[name]}
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**settings, initializer_range=0.2)).to(getattr(torch, dtype)).eval()
    model.save_pretrained(tmp_path / "hf", max_shard_size="60KB" if sharded else "5GB")
    assert (len(list((tmp_path / "hf").glob("*.safetensors"))) > 1) == sharded
    assert Checkpoint.open(tmp_path / "hf").dtype == dtype
    ids = np.random.default_rng(1).integers(0, config.vocab_size, config.seq_len)
    expected = theirs(tmp_path / "hf")
    found = logits_of(tmp_path / "hf", ids)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    llama2c.export(tmp_path / "hf", tmp_path / "m.bin", dtype)
    np.testing.assert_array_equal(logits_of(tmp_path / "m.bin", ids), found)
    llama2c.export(tmp_path / "m.bin", f"{tmp_path}/back/", dtype)
    assert np.abs(theirs(tmp_path / "back") - expected).max() < 1e-6 * np.abs(expected).max()
