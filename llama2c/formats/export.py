"""llama2c.export: weights from elsewhere into a file for llama2c, and back into a Hugging Face folder.

Each kind of source has a module of its own (checkpoint, pytorch); writer and huggingface write the files. Nothing half-written
is left behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import Config
from ..locate import CONFIG, resolve
from . import huggingface, pytorch
from .layout import DTYPES, Q8_0, Layout, header, layout
from .source import Source, from_checkpoint
from .writer import Rounding, Track, check_group_size, write_checkpoint

GROUP_SIZE = 64


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. Of a Hugging Face folder the version is None."""

    path: Path
    version: int | None
    dtype: str  # of the matrices
    group_size: int | None  # q8_0 alone
    size: int  # bytes
    rounding: Rounding  # the largest error of a dtype that rounds, and the tensor it is in


@dataclass(frozen=True, slots=True)
class Task:
    """An export that was found to be possible."""

    source: Source
    out: Path
    dtype: str
    plan: Layout | None  # None: a Hugging Face folder

    @property
    def group_size(self) -> int | None:
        return None if self.plan is None else self.plan.group_size

    def write(self, track: Track = iter) -> Exported:
        version = None if self.plan is None else self.plan.version
        try:
            if self.plan is None:
                size, rounding = huggingface.write_folder(self.out, self.source, self.dtype, track)
            else:
                size, rounding = self.plan.file_size, write_checkpoint(self.out, self.plan, self.source.numbers, track)
        except ValueError as error:
            raise ValueError(f"{self.source.path}: {error}") from None
        return Exported(self.out, version, self.dtype, self.group_size, size, rounding)


def export(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str = "float32",
    version: int | None = None,
    group_size: int | None = None,
    *,
    format: str | None = None,
) -> Exported:
    """Write the weights of `source` as a file that llama2c reads (up to version 2 C does too), or as a Hugging Face folder.

    source: a checkpoint or the name of a downloaded one, a Hugging Face folder of the Llama architecture, ckpt.pt of
    llama2.c's trainer, or Meta's folder. dtype: "float32", "float16", "bfloat16" or "q8_0". version: of the format, 0 or 1 for
    float32, 2 for q8_0, 3 for any; None: the lowest that holds the model. group_size: of q8_0, a divisor of dim and
    hidden_dim; None: 64, or the half, a quarter ... of it that is one. format: "llama2c", or "hf" for a folder (not q8_0);
    None: "hf" if `out` ends in a slash. `out` may be `source`: it is replaced when the new file is whole.

    ValueError: the source is broken, is no Llama model, or is one that the format cannot hold; OSError: something cannot be
    read or written, or a package is missing. Then nothing has been written.
    """
    return plan(source, out, dtype, version, group_size, format).write()


def plan(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str,
    version: int | None,
    group_size: int | None,
    format: str | None,
) -> Task:
    """Everything that can be checked before a byte is written."""
    if dtype not in DTYPES[3]:
        raise ValueError(f"dtype: expected {' or '.join(DTYPES[3])}, found {dtype!r}")
    if format not in (None, "llama2c", "hf"):
        raise ValueError(f"format: expected llama2c or hf, found {format!r}")
    if format == "hf" or (format is None and os.fspath(out).endswith(os.sep)):
        if dtype == Q8_0:
            raise ValueError(f"dtype: expected float32, float16 or bfloat16 for a Hugging Face folder, found {dtype}")
        for name, found in {"version": version, "group_size": group_size}.items():
            if found is not None:
                raise ValueError(f"{name}: expected None for a Hugging Face folder, found {found}")
        return Task(open_source(source), Path(out), dtype, None)
    versions = [number for number, dtypes in enumerate(DTYPES) if dtype in dtypes]
    if version is not None and version not in versions:
        raise ValueError(f"version: expected {' or '.join(map(str, versions))} for {dtype}, found {version}")
    if group_size is not None and dtype != Q8_0:
        raise ValueError(f"group_size: expected None for {dtype}, found {group_size}")
    check_place(Path(out))
    opened = open_source(source)
    if dtype == Q8_0:
        group_size = choose_group_size(opened.config) if group_size is None else group_size
        check_group_size(opened.config, group_size)
    try:
        found_plan = choose_layout(opened, versions if version is None else [version], group_size, dtype)
    except ValueError as error:
        raise ValueError(f"{opened.path}: {error}") from None
    return Task(opened, Path(out), dtype, found_plan)


def check_place(out: Path) -> None:
    """A file may be replaced; a device or a folder by a file, never."""
    if out.exists() and not out.is_file():
        raise OSError(f"{out}: expected a file to write to, found a {'folder' if out.is_dir() else 'device'}")


def choose_group_size(config: Config) -> int:
    group_size = GROUP_SIZE
    while config.dim % group_size or config.hidden_dim % group_size:
        group_size //= 2
    return group_size


def choose_layout(source: Source, versions: Sequence[int], group_size: int | None, dtype: str) -> Layout:
    """That of the first version whose header holds the model, which v3's always does. ValueError: what the last one lacks."""
    for version in versions:
        plan = layout(source.config, version, source.shared_classifier, group_size, dtype)
        try:
            header(plan)
        except ValueError:
            if version == versions[-1]:
                raise
        else:
            break
    return plan


def open_source(source: str | os.PathLike[str]) -> Source:
    """The weights that a path or a name stands for, told apart by what is there."""
    path = Path(source)
    if path.is_dir():
        for name, reader in FOLDERS.items():
            if (path / name).exists():
                return reader(path)
        expected = f"expected {' (Hugging Face) or '.join(FOLDERS)} (Meta) in the folder, found neither"
        raise FileNotFoundError(f"{path}: {expected}")
    if path.suffix in (".pt", ".pth"):
        return pytorch.from_trainer(path)
    if path.suffix == ".safetensors":
        raise ValueError(f"{path}: expected the folder that holds it and config.json, found the file alone")
    return from_checkpoint(Path(resolve(os.fspath(source))))


FOLDERS: dict[str, Callable[[Path], Source]] = {CONFIG: from_checkpoint, "params.json": pytorch.from_meta}
