"""Checkpoints of llama2.c's trainer and Meta's folders, written here with PyTorch, and what can be wrong with them."""

from __future__ import annotations

import json
import os
import pickle
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_inputs.files import OTHERS
from checkpoints import Arrays
from exports import as_bf16, assert_same, from_bf16, needs_torch, opened_weights, random_weights

import llama2c
from llama2c import Checkpoint
from llama2c.errors import ModelError

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
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("shared", [True, False])
def test_trainer_file(tmp_path: Path, shared: bool, prefix: str) -> None:
    weights = random_weights(shared)
    path = trainer_file(tmp_path / "ckpt.pt", torch_tensors(weights, prefix))
    llama2c.export(path, tmp_path / "m.bin")
    assert_same(opened_weights(tmp_path / "m.bin"), weights)


@needs_torch
def test_a_trainer_file_of_any_name_is_recognised_by_its_content(tmp_path: Path) -> None:
    weights = random_weights()
    path = trainer_file(tmp_path / "ckpt.bin", torch_tensors(weights))
    with pytest.raises(ModelError, match=r"ckpt.bin: expected a checkpoint, found a zip file: if torch.save wrote it, run "):
        Checkpoint.open(path)
    llama2c.export(path, tmp_path / "m.bin")
    assert_same(opened_weights(tmp_path / "m.bin"), weights)


@pytest.mark.parametrize("title", ["a Git LFS pointer", "an HTML page", "GGUF"])
def test_files_of_another_kind(tmp_path: Path, title: str) -> None:
    """Recognised without PyTorch, and before it is loaded."""
    content, words = OTHERS[title]
    (tmp_path / "ckpt.pt").write_bytes(content)
    with pytest.raises(ModelError, match=rf"ckpt.pt: expected a checkpoint written by torch.save, found {words[:20]}"):
        llama2c.export(tmp_path / "ckpt.pt", tmp_path / "m.bin")


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
    assert error(n_heads="8") == "n_heads: expected an integer, found str"
    assert error(dim=None) == "expected a setting dim, found none"
    assert error(rope_theta=0) == "rope_theta: expected a finite positive number, found 0.0"
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
    ours = {"recipe": {}, "config": {}, "corpus": "tales", "model": model}  # training/train.py
    torch.save(ours, tmp_path / "ckpt.pt")
    with pytest.raises(ModelError, match=r"llama2c's own trainer: run `python training/export.py FILE model.bin` "):
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
    said = rf"^ckpt.pt: expected only tensors and numbers, found the class or function {os.name}.mkdir, which could run code$"
    with pytest.raises(ModelError, match=said):
        llama2c.export("ckpt.pt", "m.bin")
    Path("old.pt").write_bytes(pickle.dumps({"model": Trap()}))  # no zip file
    with pytest.raises(ValueError, match=r"^old.pt: expected "):
        llama2c.export("old.pt", "m.bin")
    assert sorted(os.listdir()) == ["ckpt.pt", "old.pt"]


@needs_torch
@pytest.mark.parametrize(
    ("value", "name"),
    [(Namespace(dim=4), "argparse.Namespace"), (np.float64(1), r"numpy\.\w+\.multiarray\.scalar"), (Trap, r"[\w.]+\.Trap")],
)
def test_the_refusal_of_a_pickle_names_the_class(tmp_path: Path, value: object, name: str) -> None:
    import torch

    torch.save({"model": {}, "model_args": value}, tmp_path / "ckpt.pt")
    with pytest.raises(ModelError, match=rf"ckpt.pt: expected only tensors and numbers, found the class or function {name}, "):
        llama2c.export(tmp_path / "ckpt.pt", tmp_path / "m.bin")


@needs_torch
@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x80\x02}q\x00.", bytes(100)])
def test_broken_files_of_pytorch(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ckpt.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"ckpt.pt: expected .*, found") as caught:
        llama2c.export(tmp_path / "ckpt.pt", tmp_path / "m.bin")
    assert "\n" not in str(caught.value)
    with pytest.raises(OSError, match=r"none.pt: expected a readable file, found: No such file"):
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
        "d/params.json: use_scaled_rope: expected false, because its factors are not in the file, found true"
    )
    (folder / "params.json").write_text("{")
    assert error(folder).startswith("d/params.json: expected JSON, found: ")
    assert not (tmp_path / "m.bin").exists()


def test_without_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "ckpt.pt").write_bytes(b"PK\3\4")
    with pytest.raises(OSError, match=r"ckpt.pt: PyTorch is needed to read it: pip install torch$"):
        llama2c.export(tmp_path / "ckpt.pt", tmp_path / "m.bin")
