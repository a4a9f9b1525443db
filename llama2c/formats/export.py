"""Exports: which file or folder is to be written from which model, checked before a byte is written.

checkpoint.py, huggingface.py, gguf.py and pytorch.py read the sources; writer.py, huggingface.py and gguf_writer.py write the
results. An export that fails leaves no file behind. conversion.py adds the tokenizers.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..architecture import LLAMA, ROPE_FACTORS
from ..config import Config
from ..errors import FileError, FolderError, ModelError, RequestError, not_found
from ..files import exists, file_size, read_json, read_start
from ..locate import CONFIG, TOKENIZERS, resolve
from ..tensors import Floats, as_floats, paired
from . import gguf_writer, huggingface, pytorch
from .checkpoint import Checkpoint
from .layout import DTYPES as DTYPES_OF_VERSIONS
from .layout import Q8_0, Layout, header, make_layout
from .writer import Progress, Rounding, Source, check_group_size, write_checkpoint

GROUP_SIZE = 64
PARAMS = "params.json"  # the file that makes a folder one of Meta's

# What can be written, and what messages call it
FORMATS = {"llama2c": "a file of llama2c", "hf": "a Hugging Face folder", "gguf": "a GGUF file"}


class Dtype(NamedTuple):
    """A type that matrices can be written in."""

    name: str  # in results, in messages, and in files of llama2c
    other_name: str | None  # the one that llama.cpp's tools use; it is accepted, too
    formats: tuple[str, ...]  # that have it


DTYPES = {
    dtype.name: dtype
    for dtype in (
        Dtype("float32", "f32", ("llama2c", "hf", "gguf")),
        Dtype("float16", "f16", ("llama2c", "hf", "gguf")),
        Dtype("bfloat16", "bf16", ("llama2c", "hf", "gguf")),
        Dtype("q8_0", None, ("llama2c", "gguf")),
        Dtype("q4_0", None, ("gguf",)),
        Dtype("q4_1", None, ("gguf",)),
        Dtype("q5_0", None, ("gguf",)),
        Dtype("q5_1", None, ("gguf",)),
        Dtype("q4_k", "q4_k_m", ("gguf",)),
        Dtype("q6_k", None, ("gguf",)),
    )
}
DTYPE_NAMES = {name: dtype.name for dtype in DTYPES.values() for name in (dtype.name, dtype.other_name) if name is not None}


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    path: Path
    format: str  # one of FORMATS
    version: int | None  # only of a file of llama2c
    dtype: str  # of the matrices, one of DTYPES
    group_size: int | None  # only for q8_0 in a file of llama2c
    size: int  # bytes of the file, or of the folder's weights
    rounding: Rounding  # the largest rounding error, and the tensor it is in
    notes: tuple[str, ...] = ()  # what is not as it was asked for, a line each


@dataclass(frozen=True, slots=True)
class Task:
    """An export whose arguments and source have been checked."""

    source: Source
    out: Path
    format: str
    dtype: str
    layout: Layout | None = None  # only of a file of llama2c
    notes: tuple[str, ...] = ()

    @property
    def group_size(self) -> int | None:
        return None if self.layout is None else self.layout.group_size

    def with_companions(self, files: Mapping[str, bytes]) -> Task:
        """The same, with more files in the folder."""
        return replace(self, source=replace(self.source, companions={**self.source.companions, **files}))

    def with_metadata(self, keys: Mapping[str, Any], *notes: str) -> Task:
        """The same, with these keys from the source in a GGUF file, and with more notes."""
        return replace(self, source=replace(self.source, metadata=keys), notes=(*self.notes, *notes))

    def write(self, progress: Progress | None = None) -> Exported:
        version = None if self.layout is None else self.layout.version
        notes = self.notes
        try:
            if self.layout is not None:
                size = self.layout.file_size
                rounding = write_checkpoint(self.out, self.layout, self.source.numbers, progress)
            elif self.format == "hf":
                size, rounding = huggingface.write_folder(self.out, self.source, self.dtype, progress)
            else:
                size, rounding, more = gguf_writer.write_gguf(self.out, self.source, self.dtype, progress)
                notes += more
        except ValueError as error:
            raise ModelError(f"{self.source.path}: {error}") from None
        return Exported(self.out, self.format, version, self.dtype, self.group_size, size, rounding, notes)


def prepare(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str,
    version: int | None = None,
    group_size: int | None = None,
    format: str | None = None,
) -> Task:
    """Check everything that can be checked before a byte is written. Arguments and errors are those of conversion.export."""
    format = choose_format(out, format)
    dtype = check_dtype(dtype, format)
    if format != "llama2c":
        for name, value in {"version": version, "group_size": group_size}.items():
            if value is not None:
                raise RequestError(f"{name}: expected None for {FORMATS[format]}, found {value}", name)
    versions = check_version(dtype, version, group_size) if format == "llama2c" else ()
    if format != "hf":
        check_place(Path(out))
    opened = open_source(source)
    if format == "gguf":
        return Task(opened, Path(out), format, dtype)
    if opened.rope_factors is not None:
        expected = f"expected the table of Llama 3, or none, because {FORMATS[format]} stores no other"
        raise ModelError(f"{opened.path}: {ROPE_FACTORS}: {expected}")
    if format == "hf":
        return Task(opened, Path(out), format, dtype)
    if dtype == Q8_0:
        group_size = choose_group_size(opened.config) if group_size is None else group_size
        check_group_size(opened.config, group_size)
    try:
        layout = choose_layout(opened, versions, group_size, dtype)
    except ValueError as error:
        raise RequestError(f"{opened.path}: {error}", "version") from None
    return Task(opened, Path(out), format, dtype, layout)


def choose_format(out: str | os.PathLike[str], format: str | None) -> str:
    """The format that was asked for, or the one that the name of the result means."""
    if format is None:
        name = os.fspath(out)
        return "hf" if name.endswith(os.sep) else "gguf" if name.lower().endswith(".gguf") else "llama2c"
    if format not in FORMATS:
        raise RequestError(f"format: expected {listed(FORMATS)}, found {format!r}", "format")
    return format


def check_dtype(dtype: str, format: str) -> str:
    """The name in DTYPES. RequestError: there is no such type, or the format does not have it."""
    if dtype not in DTYPE_NAMES:
        raise RequestError(f"dtype: expected {listed(DTYPES)}, found {dtype!r}", "dtype")
    dtype = DTYPE_NAMES[dtype]
    if format not in DTYPES[dtype].formats:
        expected = listed([name for name, known in DTYPES.items() if format in known.formats])
        raise RequestError(f"dtype: expected {expected} for {FORMATS[format]}, found {dtype}", "dtype")
    return dtype


def check_version(dtype: str, version: int | None, group_size: int | None) -> Sequence[int]:
    """The versions that may be written, the lowest first. Raises RequestError for arguments that do not fit together."""
    versions = [number for number, dtypes in enumerate(DTYPES_OF_VERSIONS) if dtype in dtypes]
    if version is not None and version not in versions:
        raise RequestError(f"version: expected {' or '.join(map(str, versions))} for {dtype}, found {version}", "version")
    if group_size is not None and dtype != Q8_0:
        raise RequestError(f"group_size: expected None for {dtype}, found {group_size}", "group_size")
    return versions if version is None else [version]


def listed(names: Iterable[str]) -> str:
    """ "a, b or c" """
    *others, last = names
    return f"{', '.join(others)} or {last}"


def check_place(out: Path) -> None:
    """A file may be replaced. A device, or a folder where a file was asked for, may not."""
    if os.path.exists(out) and not out.is_file():
        if out.is_dir():
            raise FolderError(errno.EISDIR, "expected a file to write to, found a folder", str(out))
        raise FileError(errno.EINVAL, "expected a file to write to, found a device", str(out))


def choose_group_size(config: Config) -> int:
    group_size = GROUP_SIZE
    while config.dim % group_size or config.hidden_dim % group_size:
        group_size //= 2
    return group_size


def choose_layout(source: Source, versions: Sequence[int], group_size: int | None, dtype: str) -> Layout:
    """The layout of the first version that can store the model; v3 always can. ValueError: what the last one cannot store."""
    for version in versions:
        layout = make_layout(source.config, version, source.shared_classifier, group_size, dtype)
        try:
            header(layout)
        except ValueError:
            if version == versions[-1]:
                raise
        else:
            break
    return layout


# ---------------------------------------------------------------------------
# sources


def open_source(source: str | os.PathLike[str]) -> Source:
    """The model that a path or a name means. Its kind is recognised by its content."""
    path = Path(source)
    if path.is_dir():
        if exists(path / CONFIG):
            return from_folder(path)
        if exists(path / PARAMS):
            return pytorch.from_meta(path)
        raise not_found(path, f"expected {CONFIG} (Hugging Face) or {PARAMS} (Meta) in the folder, found neither")
    if path.suffix in (".pt", ".pth"):
        return pytorch.from_trainer(path)
    if path.suffix == ".safetensors":
        raise ModelError(f"{path}: expected a folder with config.json and this file, found only the file")
    path = Path(resolve(os.fspath(source)))
    try:
        return from_file(path)
    except ModelError:
        if pytorch.SAVED.match(read_start(path)):
            return pytorch.from_trainer(path)
        raise


def from_file(path: Path) -> Source:
    """A file that llama2c runs. Only the tokenizer.bin beside it says which ids are BOS and EOS: it always has 1 and 2."""
    checkpoint = Checkpoint.open(path)
    if checkpoint.metadata:
        return from_gguf(path, checkpoint)
    tokenizer = path.with_name(TOKENIZERS[0])
    known = exists(tokenizer)
    settings = {"bos_token_id": 1 if known else None, "eos_token_id": 2 if known else None}
    companions: dict[str, Path | bytes] = {tokenizer.name: tokenizer} if known else {}
    return Source(path, checkpoint.config, checkpoint.shared_classifier, reader(checkpoint), settings, companions=companions)


def from_gguf(path: Path, checkpoint: Checkpoint) -> Source:
    """A GGUF file, with the tokenizer that is in it."""
    keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    settings = {name: checkpoint.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    c = checkpoint
    return Source(path, c.config, c.shared_classifier, reader(c), settings, c.metadata, rope_factors=c.rope_factors)


def from_folder(path: Path) -> Source:
    """A Hugging Face folder, with its settings and the other files of its model."""
    checkpoint = Checkpoint.open(path)
    settings = read_json(path / CONFIG)
    companions: dict[str, Path | bytes] = {name: path / name for name in huggingface.COMPANIONS if exists(path / name)}
    for name in companions:
        file_size(path / name)  # refuses what is not a regular file
    return Source(path, checkpoint.config, checkpoint.shared_classifier, reader(checkpoint), settings, companions=companions)


def reader(checkpoint: Checkpoint) -> Callable[[str, int], Floats]:
    """How a Source reads a checkpoint. Quantised matrices are dequantised."""

    def read(name: str, layer: int) -> Floats:
        tensor, weight = LLAMA.tensors[name], checkpoint.weights[name]
        floats = as_floats(weight[layer] if tensor.per_layer else weight)
        in_halves = tensor.rotary and checkpoint.rope_pairs == "halves"
        return paired(floats, checkpoint.config.head_size) if in_halves else floats

    return read
