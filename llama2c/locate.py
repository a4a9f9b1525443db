"""Finds the files that a name or a path means: the bundled model, downloaded models, and the tokenizer beside a model.

Works with paths only: nothing here opens a file or uses the network.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .errors import not_found
from .files import exists

CONFIG = "config.json"  # a folder with this file is a Hugging Face folder
GGUF = ".gguf"  # files with this ending have their own tokenizer
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.ASCII | re.DOTALL)
BUNDLED = Path(__file__).with_name("bundled") / "tales1M.bin"  # docs/model-card.md says what it is


class HubModel(NamedTuple):
    """A model of the Hugging Face hub, and where it is once it is downloaded."""

    name: str  # what users call it
    folder: str  # of the cache
    repo_id: str
    file: str | None  # its path in the repository; None: the repository is a Hugging Face folder
    tokenizer: str | None = None  # of a checkpoint of llama2.c: its path in the repository; None: the tokenizer of Llama 2

    @property
    def path(self) -> Path:
        folder = cache_folder() / self.folder
        return folder / PurePosixPath(self.file).name if self.file else folder

    @property
    def is_gguf(self) -> bool:
        return self.file is not None and self.file.endswith(GGUF)

    @property
    def parts(self) -> list[str]:
        """Of a file: its path in the repository, or those of all parts of a split GGUF file: a-00001-of-00002.gguf, ..."""
        assert self.file is not None
        split = PART.fullmatch(self.file)
        if split is None:
            return [self.file]
        stem, _, count = split.groups()
        return [f"{stem}-{number:05}-of-{count}{GGUF}" for number in range(1, int(count) + 1)]

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
# Small models to chat with, in GGUF.
CHATS = {
    name: HubModel(name, name, repo_id, file)
    for name, repo_id, file in (
        ("smollm2-135m", "bartowski/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct-Q8_0.gguf"),
        ("smollm2-360m", "bartowski/SmolLM2-360M-Instruct-GGUF", "SmolLM2-360M-Instruct-Q8_0.gguf"),
        ("smollm2-1.7b", "bartowski/SmolLM2-1.7B-Instruct-GGUF", "SmolLM2-1.7B-Instruct-Q4_K_M.gguf"),
        ("tinyllama-1.1b", "TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF", "tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf"),
        ("llama-3.2-1b", "bartowski/Llama-3.2-1B-Instruct-GGUF", "Llama-3.2-1B-Instruct-Q4_K_M.gguf"),
    )
}
NAMES = STORIES | CHATS
REPOSITORIES = "repositories"  # the folder of the cache for Hugging Face folders
_REPO = re.compile(r"[a-zA-Z0-9][\w.-]*/[a-zA-Z0-9][\w.-]*", re.ASCII)
_FILE = re.compile(r"[^\s:\\]+", re.ASCII)
FILE_ENDINGS = (".bin", GGUF, ".safetensors", ".pt", ".pth", ".json", ".model")  # a/b.bin is a path and no repository


def cache_folder() -> Path:
    """LLAMA2C_CACHE, else llama2c in XDG_CACHE_HOME, else ~/.cache/llama2c. OSError if there is no home folder either."""
    if place := os.environ.get("LLAMA2C_CACHE"):
        return Path(place)
    if place := os.environ.get("XDG_CACHE_HOME"):
        return Path(place, "llama2c")
    try:
        return Path.home() / ".cache" / "llama2c"
    except RuntimeError:
        raise OSError("LLAMA2C_CACHE: not set, and there is no home folder: set it to a folder for models") from None


def find_hub_model(name: str) -> HubModel | None:
    """The model that a name stands for: one of NAMES, REPO_ID:FILE, or REPO_ID; None if it is none of them.

    "me/tales:big/a.bin" has the folder me--tales/big--a, so that no two files of a repository share a folder. "me/tales" has
    the folder repositories/me--tales.
    """
    if name in NAMES:
        return NAMES[name]
    repo_id, colon, file = name.partition(":")
    if _REPO.fullmatch(repo_id) is None:
        return None
    repository = repo_id.replace("/", "--")
    if not colon:
        is_path = repo_id.endswith(FILE_ENDINGS)
        return None if is_path else HubModel(name, f"{REPOSITORIES}/{repository}", repo_id, None)
    if _FILE.fullmatch(file) is None or any(
        part in ("", ".", "..") for part in file.split("/")
    ):  # could lead out of the folder
        return None
    stem = str(PurePosixPath(file).with_suffix(""))
    return HubModel(name, f"{repository}/{stem.replace('/', '--')}", repo_id, file)


def resolve(model: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    """The path of a model given by path or by name: "stories15M" -> ~/.cache/llama2c/stories15M/stories15M.bin.

    None is the bundled model. A file with the name, or a folder with config.json, comes before a downloaded model, and before
    that of a name like me/tales any folder. What is not a name is taken as a path. FileNotFoundError: the model is not
    downloaded; OSError: a link that leads to no file.
    """
    if model is None:
        return BUNDLED
    source = find_hub_model(model) if isinstance(model, str) else None
    if source is None:
        return model
    if exists(model) and (os.path.isfile(model) or source.file is None or exists(os.path.join(model, CONFIG))):
        return model
    if not exists(source.path):
        command = f"python -m llama2c download {model}"
        raise not_found(model, f"expected a file, or a model downloaded with `{command}`, found neither")
    return source.path


def downloaded() -> list[str]:
    """The names of the models in the cache, as resolve takes them: those of NAMES, then repositories and files of others.

    OSError: the cache cannot be read, or has no place.
    """
    cache = cache_folder()
    others = [(config.parent.name, "", config.parent) for config in sorted(cache.glob(f"{REPOSITORIES}/*--*/{CONFIG}"))]
    for path in sorted(cache.glob("*--*/*/*")):
        file = path.parent.name.replace("--", "/") + path.suffix  # of big/a.bin the folder is big--a
        others.append((path.parent.parent.name, f":{file}", path))
    found = [name for name, model in NAMES.items() if os.path.exists(model.path)]
    for repository, file, path in others:
        name = repository.replace("--", "/", 1) + file
        model = find_hub_model(name)
        if model is not None and model.path == path:  # not a tokenizer, or a later part of a model
            found.append(name)
    return found


TOKENIZERS = ("tokenizer.bin", "tokenizer.json", "tokenizer.model")  # the order of the search
# In a Hugging Face folder: a tokenizer.bin that was written there has neither the chat template nor the added tokens.
HF_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer.bin")


def tokenizer_in(folder: str | os.PathLike[str]) -> Path | None:
    """The tokenizer in a folder: the first of TOKENIZERS, or of HF_TOKENIZERS if it has config.json. None: it has none."""
    names = HF_TOKENIZERS if exists(os.path.join(folder, CONFIG)) else TOKENIZERS
    return next((path for path in (Path(folder, name) for name in names) if exists(path)), None)


def find_tokenizer(model_path: str | os.PathLike[str], within: str = "") -> Path:
    """The tokenizer beside a model file, or in the model's folder; else a tokenizer.bin in the working directory.

    within  where else the caller has looked, for the message: "a tokenizer in the file"
    FileNotFoundError: there is none; OSError: a link that leads to no file.
    """
    path = Path(model_path)
    folder = path if path.is_dir() else path.parent
    here = Path(TOKENIZERS[0])
    found = tokenizer_in(folder) or (here if exists(here) else None)
    if found is None:
        names = f"{within}, or {tokenizer_names()}" if within else tokenizer_names()
        expected = f"expected {names} in {folder}, or {here} in the working directory, found none"
        raise not_found(model_path, expected)
    return found


def tokenizer_names() -> str:
    """The names that a tokenizer may have, for messages."""
    return f"{', '.join(TOKENIZERS[:-1])} or {TOKENIZERS[-1]}"
