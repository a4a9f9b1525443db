"""PyTorch's checkpoints, read: ckpt.pt of llama2.c's trainer, and Meta's folders with params.json and consolidated.*.pth.

Both have the same names of tensors. PyTorch loads weights only, so that no pickle runs code, and maps its files.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..architecture import EMBEDDING, LLAMA, PYTORCH
from ..errors import FileError, ModelError, not_found
from ..files import file_size, no_memory, read_json, read_start, recognise, unreadable
from ..tensors import Floats, Raw, as_floats, as_weight
from .naming import Stored, check_tensors, make_config, require
from .writer import Source

SPLIT_BY_COLUMNS = tuple(LLAMA.tensors[name].names[PYTORCH].split("{}.")[-1] for name in ("wo", "w2", EMBEDDING.name))
WRAPPED = re.compile(r"^(_orig_mod\.|module\.)+")  # what torch.compile and DistributedDataParallel put before each name
SAVED = re.compile(rb"PK\x03\x04|\x80[\x02-\x05][^\x00]")  # how a file of torch.save begins: a zip file; an old one: a pickle
SEQ_LEN = 2048  # if the settings do not say it, as in llama2.c


def from_trainer(path: Path) -> Source:
    """ckpt.pt: {"model": tensors, "model_args": settings, ...}."""
    content = load(path)
    model, settings = content.get("model"), content.get("model_args")
    if isinstance(model, dict) and {"config", "recipe", "corpus"} <= content.keys():  # of training/train.py
        ours = "found one of llama2c's own trainer: run `python training/export.py FILE model.bin` in its repository"
        raise ModelError(f"{path}: expected a checkpoint of llama2.c's trainer, {ours}")
    if not isinstance(model, dict) or not isinstance(settings, dict):
        found = ", ".join(map(str, list(content)[:3]))
        raise ModelError(f"{path}: expected model and model_args, as llama2.c's trainer saves them, found {found}")
    return from_shards(path, path, settings, [path], [model])


def from_meta(folder: Path) -> Source:
    """A folder with params.json and the shards consolidated.00.pth, consolidated.01.pth, ..."""
    settings = read_json(folder / "params.json")
    paths = sorted(folder.glob("consolidated.*.pth"))
    for number, path in enumerate(paths or [folder / "none"]):
        if path.name != f"consolidated.{number:02}.pth":
            raise not_found(folder, f"expected the shard consolidated.{number:02}.pth, found none")
    return from_shards(folder, folder / "params.json", settings, paths, [load(path) for path in paths])


def from_shards(
    path: Path, settings_path: Path, settings: Mapping[str, Any], paths: Sequence[Path], shards: Sequence[Mapping[str, Any]]
) -> Source:
    """A model whose matrices are split into one part for each shard. The tensors give the settings that are missing."""
    require(settings_path, settings, ("dim", "n_layers", "n_heads"))
    if settings.get("use_scaled_rope"):
        expected = "expected false, because its factors are not in the file"
        raise ModelError(f"{settings_path}: use_scaled_rope: {expected}, found true")
    parts = [{WRAPPED.sub("", str(name)): tensor for name, tensor in shard.items()} for shard in shards]
    tensors = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        absent = next((file for file, part in zip(paths, parts, strict=True) if name not in part), None)
        if absent is not None:
            raise ModelError(f"{absent}: expected a tensor {name}, as in the other shards, found none")
        tensors[name] = joined(path, name, [part[name] for part in parts], settings["dim"])
    vocab_size = settings.get("vocab_size", -1)
    config = make_config(
        settings_path,
        dim=settings["dim"],
        hidden_dim=n_rows(path, tensors, LLAMA.tensors["w1"].spelled(PYTORCH)),
        n_layers=settings["n_layers"],
        n_heads=settings["n_heads"],
        n_kv_heads=settings.get("n_kv_heads") or settings["n_heads"],
        vocab_size=n_rows(path, tensors, EMBEDDING.spelled(PYTORCH)) if vocab_size == -1 else vocab_size,
        seq_len=settings.get("max_seq_len", SEQ_LEN),
        head_size=settings.get("head_dim") or 0,
        rope_theta=settings.get("rope_theta", 10000.0),
        norm_eps=settings.get("norm_eps", 1e-5),
    )
    shared = check_tensors(path, config, PYTORCH, tensors, tied=False)

    def read(name: str, layer: int) -> Floats:
        tensor = tensors[LLAMA.tensors[name].spelled(PYTORCH, layer)]
        return as_floats(as_weight(tensor.raw(), tensor.dtype))

    return Source(path, config, shared, read)


def n_rows(path: Path, tensors: Mapping[str, Stored], name: str) -> int:
    found = tensors.get(name)
    if found is None or len(found.shape) != 2:
        raise ModelError(f"{path}: expected a matrix {name}, found {'none' if found is None else found.shape}")
    return found.shape[0]


def joined(path: Path, name: str, parts: Sequence[Any], dim: int) -> Stored:
    """One tensor, joined from its parts. Each shard has the whole norms. Llama 3 splits the embedding by rows, Llama 2 by
    columns.
    """
    import torch

    for part in parts:
        if not isinstance(part, torch.Tensor) or part.layout is not torch.strided:
            raise ModelError(f"{path}: {name}: expected a dense tensor, found {type(part).__name__}")
    shape, dtype = list(parts[0].shape), str(parts[0].dtype).removeprefix("torch.")
    if len(shape) < 2:
        parts = parts[:1]
    axis = 1 if name.endswith(SPLIT_BY_COLUMNS) and not (name == EMBEDDING.spelled(PYTORCH) and shape[-1] == dim) else 0
    if any(part.dtype != parts[0].dtype or part.ndim != len(shape) for part in parts):
        raise ModelError(f"{path}: {name}: expected parts of one kind in all shards, found several")
    if len(parts) > 1:
        shape[axis] = sum(part.shape[axis] for part in parts)
        rest = 1 - axis
        if any(part.shape[rest] != shape[rest] for part in parts):
            raise ModelError(f"{path}: {name}: expected parts that fit together, found {[tuple(part.shape) for part in parts]}")

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
    """The dict in a file of torch.save, its tensors mapped. Raises ModelError, OSError or MemoryError: one line."""
    size = file_size(path)
    start = read_start(path)
    if not SAVED.match(start) and (found := recognise(start)) is not None:
        raise ModelError(f"{path}: expected a checkpoint written by torch.save, found {found}")
    try:
        import torch
    except ImportError:
        raise FileError(None, "PyTorch is needed to read it: pip install torch", str(path)) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(r"class [`']?([\w.]+)", str(error))
        what = f"the class or function {refused[1]}, which could run code" if refused else "something else"
        raise ModelError(f"{path}: expected only tensors and numbers, found {what}") from None
    except MemoryError:
        raise no_memory(path, size) from None
    except OSError as error:
        raise unreadable(error, path) from None
    except Exception as error:  # torch raises many kinds for a broken file
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if "allocate memory" in str(error):
            raise no_memory(path, size) from None
        raise ModelError(f"{path}: expected a checkpoint written by torch.save, found: {reason}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a dict of tensors, found {type(content).__name__}")
    return content
