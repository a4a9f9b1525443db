"""Checkpoints of PyTorch, read: ckpt.pt of llama2.c's trainer, and Meta's folders with params.json and consolidated.*.pth.

Both name their tensors alike. PyTorch is asked for weights alone (no pickle may run code) and maps its files.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_json
from ..tensors import Floats, Raw, as_floats, as_weight
from .naming import Names, Stored, check_tensors, make_config, require
from .source import Source

_LAYER = "layers.{}."
NAMES = Names(
    {
        "token_embedding_table": "tok_embeddings.weight",
        "rms_att_weight": _LAYER + "attention_norm.weight",
        "wq": _LAYER + "attention.wq.weight",
        "wk": _LAYER + "attention.wk.weight",
        "wv": _LAYER + "attention.wv.weight",
        "wo": _LAYER + "attention.wo.weight",
        "rms_ffn_weight": _LAYER + "ffn_norm.weight",
        "w1": _LAYER + "feed_forward.w1.weight",
        "w2": _LAYER + "feed_forward.w2.weight",
        "w3": _LAYER + "feed_forward.w3.weight",
        "rms_final_weight": "norm.weight",
        "wcls": "output.weight",
    },
    re.compile(r"(layers\.\d+\.attention\.inner_attention\.)?rope\.freqs|freqs_cos|freqs_sin|layers\.\d+\.attention\.mask"),
)
SPLIT_BY_COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight", "tok_embeddings.weight")  # among Meta's shards
COMPILED = "_orig_mod."  # what torch.compile puts before each name
SEQ_LEN = 2048  # of a model whose settings do not say it, as llama2.c has it


def from_trainer(path: Path) -> Source:
    """ckpt.pt: {"model": tensors, "model_args": settings, ...}."""
    content = load(path)
    model, settings = content.get("model"), content.get("model_args")
    if not isinstance(model, dict) or not isinstance(settings, dict):
        found = ", ".join(map(str, list(content)[:3]))
        raise ValueError(f"{path}: expected model and model_args, as llama2.c's trainer saves them, found {found}")
    return from_shards(path, path, settings, [path], [model])


def from_meta(folder: Path) -> Source:
    """A folder with params.json and the shards consolidated.00.pth, consolidated.01.pth, ..."""
    settings = read_json(folder / "params.json")
    paths = sorted(folder.glob("consolidated.*.pth"))
    for number, path in enumerate(paths or [folder / "none"]):
        if path.name != f"consolidated.{number:02}.pth":
            raise FileNotFoundError(f"{folder}: expected the shard consolidated.{number:02}.pth, found none")
    return from_shards(folder, folder / "params.json", settings, paths, [load(path) for path in paths])


def from_shards(
    path: Path, settings_path: Path, settings: Mapping[str, Any], paths: Sequence[Path], shards: Sequence[Mapping[str, Any]]
) -> Source:
    """A model whose matrices are cut into as many parts as there are shards. The tensors say what the settings leave out."""
    require(settings_path, settings, ("dim", "n_layers", "n_heads"))
    if settings.get("use_scaled_rope"):
        raise ValueError(f"{settings_path}: use_scaled_rope: expected false, as its factors are not in the file, found true")
    parts = [{str(name).removeprefix(COMPILED): tensor for name, tensor in shard.items()} for shard in shards]
    tensors = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        absent = next((file for file, part in zip(paths, parts, strict=True) if name not in part), None)
        if absent is not None:
            raise ValueError(f"{absent}: expected a tensor {name}, as in the other shards, found none")
        tensors[name] = joined(path, name, [part[name] for part in parts], settings["dim"])
    vocab_size = settings.get("vocab_size", -1)
    config = make_config(
        settings_path,
        dim=settings["dim"],
        hidden_dim=n_rows(path, tensors, NAMES.spelled("w1", 0)),
        n_layers=settings["n_layers"],
        n_heads=settings["n_heads"],
        n_kv_heads=settings.get("n_kv_heads") or settings["n_heads"],
        vocab_size=n_rows(path, tensors, NAMES.spelled("token_embedding_table", 0)) if vocab_size == -1 else vocab_size,
        seq_len=settings.get("max_seq_len", SEQ_LEN),
        head_size=settings.get("head_dim") or 0,
        rope_theta=settings.get("rope_theta", 10000.0),
        norm_eps=settings.get("norm_eps", 1e-5),
    )
    shared = check_tensors(path, config, NAMES, tensors, tied=False)

    def read(name: str, layer: int) -> Floats:
        tensor = tensors[NAMES.spelled(name, layer)]
        return as_floats(as_weight(tensor.raw(), tensor.dtype))

    return Source(path, config, shared, read)


def n_rows(path: Path, tensors: Mapping[str, Stored], name: str) -> int:
    found = tensors.get(name)
    if found is None or len(found.shape) != 2:
        raise ValueError(f"{path}: expected a matrix {name}, found {'none' if found is None else found.shape}")
    return found.shape[0]


def joined(path: Path, name: str, parts: Sequence[Any], dim: int) -> Stored:
    """One tensor of all its parts. Norms stand whole in each shard; Llama 3 cuts the embedding by rows, Llama 2 by columns."""
    import torch

    for part in parts:
        if not isinstance(part, torch.Tensor) or part.layout is not torch.strided:
            raise ValueError(f"{path}: {name}: expected a dense tensor, found {type(part).__name__}")
    shape, dtype = list(parts[0].shape), str(parts[0].dtype).removeprefix("torch.")
    if len(shape) < 2:
        parts = parts[:1]
    axis = 1 if name.endswith(SPLIT_BY_COLUMNS) and not (name.startswith("tok_") and shape[-1] == dim) else 0
    if any(part.dtype != parts[0].dtype or part.ndim != len(shape) for part in parts):
        raise ValueError(f"{path}: {name}: expected parts of one kind in all shards, found several")
    if len(parts) > 1:
        shape[axis] = sum(part.shape[axis] for part in parts)
        rest = 1 - axis
        if any(part.shape[rest] != shape[rest] for part in parts):
            raise ValueError(f"{path}: {name}: expected parts that fit together, found {[tuple(part.shape) for part in parts]}")

    def raw() -> Raw:
        arrays = [as_array(part) for part in parts]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis)

    return Stored(dtype, tuple(shape), raw)


def as_array(tensor: Any) -> Raw:
    """The numbers of a tensor, not copied; those of bfloat16 as their bits."""
    import torch

    tensor = tensor.detach()
    array: Raw = tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
    return array


def load(path: Path) -> dict[str, Any]:
    """The dict in a file of torch.save, its tensors mapped. ValueError or OSError: one line."""
    try:
        import torch
    except ImportError:
        raise OSError(f"{path}: expected PyTorch, to read it, found none: pip install torch") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL|global:?|class) [`']?([\w.]+)", str(error))
        what = f"{refused[1]}, which would run code" if refused else "something else"
        raise ValueError(f"{path}: expected tensors and numbers alone, found {what}") from None
    except MemoryError:
        raise
    except Exception as error:  # torch raises many kinds for a file that is broken
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
        kind = OSError if getattr(error, "strerror", None) else ValueError
        raise kind(f"{path}: expected a checkpoint written by torch.save, found: {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dict of tensors, found {type(content).__name__}")
    return content
