"""llama2c.export: turns a model of any kind into a file for llama2c, or into a Hugging Face folder.

checkpoint.py, huggingface.py and pytorch.py read the sources; writer.py and huggingface.py write the result. An export that
fails leaves no file behind.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..architecture import LLAMA, ROPE_FACTORS
from ..config import Config
from ..errors import FileError, FolderError, ModelError, RequestError, not_found
from ..files import exists, file_size, read_json, read_start
from ..locate import CONFIG, TOKENIZERS, resolve
from ..tensors import Floats, as_floats, paired
from . import huggingface, pytorch
from .checkpoint import Checkpoint
from .layout import DTYPES, Q8_0, Layout, header, make_layout
from .writer import Progress, Rounding, Source, check_group_size, write_checkpoint

GROUP_SIZE = 64
FORMATS = ("llama2c", "hf")
PARAMS = "params.json"  # the file that makes a folder one of Meta's


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. For a Hugging Face folder the version is None."""

    path: Path
    version: int | None
    dtype: str  # of the matrices
    group_size: int | None  # only for q8_0
    size: int  # bytes of the file, or of the folder's weights
    rounding: Rounding  # the largest rounding error, and the tensor it is in


@dataclass(frozen=True, slots=True)
class Task:
    """An export whose arguments and source have been checked."""

    source: Source
    out: Path
    dtype: str
    layout: Layout | None  # None: a Hugging Face folder

    @property
    def group_size(self) -> int | None:
        return None if self.layout is None else self.layout.group_size

    def write(self, progress: Progress | None = None) -> Exported:
        version = None if self.layout is None else self.layout.version
        try:
            if self.layout is None:
                size, rounding = huggingface.write_folder(self.out, self.source, self.dtype, progress)
            else:
                size = self.layout.file_size
                rounding = write_checkpoint(self.out, self.layout, self.source.numbers, progress)
        except ValueError as error:
            raise ModelError(f"{self.source.path}: {error}") from None
        return Exported(self.out, version, self.dtype, self.group_size, size, rounding)


def export(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str = "float32",
    version: int | None = None,
    group_size: int | None = None,
    *,
    format: str | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write the model `source` as a file for llama2c (the C programs read versions 0 to 2), or as a Hugging Face folder.

    source: a checkpoint or the name of a downloaded one, a Hugging Face folder of the Llama architecture, ckpt.pt of llama2.c's
    trainer, or Meta's folder. out: may be `source`; it is replaced when the new file is complete. dtype: "float32", "float16",
    "bfloat16" or "q8_0". version: of the format: 0 or 1 for float32, 2 for q8_0, 3 for any; None: the lowest that can store the
    model. group_size: only for q8_0, a divisor of dim and hidden_dim; None: 64, or 32, 16, ... if 64 is not a divisor. format:
    "llama2c", or "hf" for a folder (not q8_0); None: "hf" if `out` ends in a slash. progress: called as progress(done, total)
    with the number of matrices written and their total, first with done = 0.

    A folder made from a Hugging Face folder keeps its other settings (the ids of BOS, EOS and padding among them), and gets
    copies of its tokenizer, chat template and generation_config.json. A folder made from a file gets a copy of the
    tokenizer.bin beside the file; without one, the ids of BOS and EOS are not known and are null in config.json.

    Raises RequestError (a ValueError) if an argument is wrong or the version cannot store the model; ModelError (a ValueError)
    if the source is broken or is not a Llama model; OSError if a file cannot be read or written, or a package is missing. Then
    nothing has been written.
    """
    return prepare(source, out, dtype, version, group_size, format).write(progress)


def prepare(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str,
    version: int | None,
    group_size: int | None,
    format: str | None,
) -> Task:
    """Check everything that can be checked before a byte is written. Arguments and errors are those of export."""
    to_folder = format == "hf" or (format is None and os.fspath(out).endswith(os.sep))
    versions = check_arguments(dtype, version, group_size, format, to_folder)
    if to_folder:
        return Task(open_source(source), Path(out), dtype, None)
    check_place(Path(out))
    opened = open_source(source)
    if dtype == Q8_0:
        group_size = choose_group_size(opened.config) if group_size is None else group_size
        check_group_size(opened.config, group_size)
    try:
        layout = choose_layout(opened, versions, group_size, dtype)
    except ValueError as error:
        raise RequestError(f"{opened.path}: {error}", "version") from None
    return Task(opened, Path(out), dtype, layout)


def check_arguments(
    dtype: str, version: int | None, group_size: int | None, format: str | None, to_folder: bool
) -> Sequence[int]:
    """The versions that may be written, the lowest first. Raises RequestError for arguments that do not fit together."""
    if dtype not in DTYPES[3]:
        raise RequestError(f"dtype: expected {' or '.join(DTYPES[3])}, found {dtype!r}", "dtype")
    if format is not None and format not in FORMATS:
        raise RequestError(f"format: expected {' or '.join(FORMATS)}, found {format!r}", "format")
    if to_folder:
        if dtype == Q8_0:
            found = f"expected float32, float16 or bfloat16 for a Hugging Face folder, found {dtype}"
            raise RequestError(f"dtype: {found}", "dtype")
        for name, value in {"version": version, "group_size": group_size}.items():
            if value is not None:
                raise RequestError(f"{name}: expected None for a Hugging Face folder, found {value}", name)
        return ()
    versions = [number for number, dtypes in enumerate(DTYPES) if dtype in dtypes]
    if version is not None and version not in versions:
        raise RequestError(f"version: expected {' or '.join(map(str, versions))} for {dtype}, found {version}", "version")
    if group_size is not None and dtype != Q8_0:
        raise RequestError(f"group_size: expected None for {dtype}, found {group_size}", "group_size")
    return versions if version is None else [version]


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
    if checkpoint.rope_factors is not None:
        raise ModelError(f"{path}: {ROPE_FACTORS}: expected the table of Llama 3, or none, because no other format stores one")
    tokenizer = path.with_name(TOKENIZERS[0])
    known = exists(tokenizer)
    settings = {"bos_token_id": 1 if known else None, "eos_token_id": 2 if known else None}
    companions = [tokenizer] if known else []
    return Source(path, checkpoint.config, checkpoint.shared_classifier, reader(checkpoint), settings, companions)


def from_folder(path: Path) -> Source:
    """A Hugging Face folder, with its settings and the other files of its model."""
    checkpoint = Checkpoint.open(path)
    settings = read_json(path / CONFIG)
    companions = [path / name for name in huggingface.COMPANIONS if exists(path / name)]
    for companion in companions:
        file_size(companion)  # refuses what is not a regular file
    return Source(path, checkpoint.config, checkpoint.shared_classifier, reader(checkpoint), settings, companions)


def reader(checkpoint: Checkpoint) -> Callable[[str, int], Floats]:
    """How a Source reads a checkpoint. Quantised matrices are dequantised."""

    def read(name: str, layer: int) -> Floats:
        tensor, weight = LLAMA.tensors[name], checkpoint.weights[name]
        floats = as_floats(weight[layer] if tensor.per_layer else weight)
        in_halves = tensor.rotary and checkpoint.rope_pairs == "halves"
        return paired(floats, checkpoint.config.head_size) if in_halves else floats

    return read
