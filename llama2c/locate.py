"""Finds the files that a name or a path means: the bundled model, downloaded ones, and the tokenizer beside a model.

Paths alone: nothing here opens a file or asks the network.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

CONFIG = "config.json"  # what makes a folder one of Hugging Face
BUNDLED = Path(__file__).with_name("bundled") / "tales1M.bin"  # docs/model-card.md says what it is


class HubModel(NamedTuple):
    """A model of the Hugging Face hub, with where it lies once it is downloaded."""

    name: str  # what users call it
    folder: str  # of the cache
    repo_id: str
    file: str  # its path in the repository
    tokenizer: str | None = None  # also in the repository; None: the tokenizer of Llama 2

    @property
    def path(self) -> Path:
        return cache_folder() / self.folder / PurePosixPath(self.file).name

    @property
    def tokenizer_path(self) -> Path:
        """Where find_tokenizer looks. The ending says which kind of tokenizer it is."""
        ending = PurePosixPath(self.tokenizer or "").suffix
        return self.path.with_name(f"tokenizer{ending if ending in ('.json', '.model') else '.bin'}")


STORIES = {
    name: HubModel(name, name, "karpathy/tinyllamas", file, tokenizer)
    for name, file, tokenizer in (
        ("stories260K", "stories260K/stories260K.bin", "stories260K/tok512.bin"),
        ("stories15M", "stories15M.bin", None),
        ("stories42M", "stories42M.bin", None),
        ("stories110M", "stories110M.bin", None),
    )
}
_REPO_FILE = re.compile(r"([a-zA-Z0-9][\w.-]*/[a-zA-Z0-9][\w.-]*):([^\s:\\]+)", re.ASCII)


def cache_folder() -> Path:
    """LLAMA2C_CACHE, else llama2c in XDG_CACHE_HOME, else ~/.cache/llama2c. OSError if there is no home either."""
    if place := os.environ.get("LLAMA2C_CACHE"):
        return Path(place)
    if place := os.environ.get("XDG_CACHE_HOME"):
        return Path(place, "llama2c")
    try:
        return Path.home() / ".cache" / "llama2c"
    except RuntimeError:
        raise OSError("LLAMA2C_CACHE: expected a folder for models, as there is no home folder, found none") from None


def find_hub_model(name: str) -> HubModel | None:
    """What a name stands for: one of STORIES, or REPO_ID:FILE; None if it is neither.

    "me/tales:big/a.bin" lies in me--tales/big--a, so that no two files of a repository share a folder.
    """
    if name in STORIES:
        return STORIES[name]
    match = _REPO_FILE.fullmatch(name)
    if match is None:
        return None
    repo_id, file = match.groups()
    if any(part in ("", ".", "..") for part in file.split("/")):  # would lead out of the folder
        return None
    stem = str(PurePosixPath(file).with_suffix(""))
    return HubModel(name, f"{repo_id.replace('/', '--')}/{stem.replace('/', '--')}", repo_id, file)


def resolve(model: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    """The path of a model given by path or by name: "stories15M" -> ~/.cache/llama2c/stories15M/stories15M.bin.

    None is the bundled one. A file of that name, or a folder with config.json, comes first; what is no name is taken for a
    path. FileNotFoundError: it is not downloaded.
    """
    if model is None:
        return BUNDLED
    here = os.path.isfile(model) or os.path.isfile(os.path.join(model, CONFIG))
    source = find_hub_model(model) if isinstance(model, str) and not here else None
    if source is None:
        return model
    if not source.path.is_file():
        expected = f"expected a file, or a model downloaded with `python -m llama2c download {model}`"
        raise FileNotFoundError(f"{model}: {expected}, found neither")
    return source.path


TOKENIZERS = ("tokenizer.bin", "tokenizer.json", "tokenizer.model")  # looked for in this order


def find_tokenizer(model_path: str | os.PathLike[str]) -> Path:
    """The tokenizer beside a model, or in the model's folder if it is one; else a tokenizer.bin in the working directory.

    The first there is of tokenizer.bin, tokenizer.json and tokenizer.model. FileNotFoundError: there is none.
    """
    path = Path(model_path)
    folder = path if path.is_dir() else path.parent
    for place in [*(folder / name for name in TOKENIZERS), Path(TOKENIZERS[0])]:
        if place.exists():
            return place
    names = f"{', '.join(TOKENIZERS[:-1])} or {TOKENIZERS[-1]}"
    looked_in = f"in {folder}, or {TOKENIZERS[0]} in the working directory"
    raise FileNotFoundError(f"{os.fspath(model_path)}: expected {names} {looked_in}, found none")
