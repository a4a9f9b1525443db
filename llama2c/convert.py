"""The verb `export`, and llama2c.export: weights from elsewhere into a file for llama2c, and back into a Hugging Face folder.

Each kind of source has a module of its own (huggingface, pytorch); writer has the formats. Nothing half-written is left behind.
"""

from __future__ import annotations

import argparse
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import huggingface, pytorch, tokenizer_model
from .cache import resolve
from .checkpoint import Layout, header, layout
from .config import Config
from .source import Source, from_checkpoint
from .terminal import Parser, T, UsageError, progress, say
from .writer import Rounding, Track, check_group_size, replacing, write_checkpoint

VERSIONS = {"float32": (0, 1), "q8_0": (2,)}  # those that hold a dtype; the first is the default
GROUP_SIZE = 64

NOTES = """\
SOURCE is one of
    a checkpoint of llama2.c (v0, v1, v2), or the name of a downloaded model
    a Hugging Face folder of the Llama architecture: config.json and .safetensors (pip install 'llama2c[hf]')
    ckpt.pt of llama2.c's trainer, or Meta's folder with params.json and consolidated.*.pth (pip install torch)

OUT is a file in llama2.c's formats; with a slash at the end, a Hugging Face folder (fp32).

stdout gets the path of what was written; messages go to stderr.
    python -m llama2c export stories15M -o stories15M_q8.bin --dtype q8_0
    python -m llama2c export TinyLlama/ -o tiny.bin --tokenizer tokenizer.bin
    python -m llama2c export tiny.bin -o tiny/
"""


# ---------------------------------------------------------------------------
# the command line


def parse(argv: Sequence[str]) -> Namespace:
    parser = Parser(
        prog="python -m llama2c export",
        description="Turn weights into a file for llama2c and the C programs, or a file into a Hugging Face folder.",
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a checkpoint or a folder (see below)")
    add("-o", "--out", required=True, metavar="OUT", help="the file to write, or FOLDER/")
    add("--dtype", choices=tuple(VERSIONS), help="of the matrices (default float32, or what --version holds)")
    add("--version", type=int, choices=(0, 1, 2), help="of the format: 0 (default) or 1 for float32, 2 for q8_0")
    add("--group-size", type=int, metavar="N", help="q8_0: values that share a scale (default 64, or less if 64 does not fit)")
    add("--format", choices=("llama2c", "hf"), help="default: hf if OUT ends in a slash")
    add("--tokenizer", metavar="FILE", help="also write the tokenizer.model beside SOURCE as a tokenizer.bin")
    options = parser.parse_args(argv)
    if options.dtype is None:
        options.dtype = "q8_0" if options.version == 2 else "float32"
    if options.tokenizer is not None and os.path.abspath(options.tokenizer) == os.path.abspath(options.out):
        raise UsageError(f"argument --tokenizer: expected another file than OUT, found {options.tokenizer}")
    return options


def run(argv: Sequence[str]) -> None:
    """Export what the command line names and print the path of what was written."""
    o = parse(argv)
    task = plan(o.source, o.out, o.dtype, o.version, o.group_size, o.format)
    if o.dtype == "q8_0" and o.group_size is None and task.group_size != GROUP_SIZE:
        c = task.source.config
        fits = f"{GROUP_SIZE} does not divide dim = {c.dim} and hidden_dim = {c.hidden_dim}"
        say(f"group size: {task.group_size}, as {fits}")
    if o.tokenizer is None:
        exported = task.write(bar)
    else:
        tokenizer_path = Path(o.tokenizer)
        check_place(tokenizer_path)
        beside = task.source.path if task.source.path.is_dir() else task.source.path.parent
        tokenizer = tokenizer_model.convert(beside / "tokenizer.model", task.source.config.vocab_size)
        with replacing(tokenizer_path, len(tokenizer)) as unfinished:  # both or none
            unfinished.write_bytes(tokenizer)
            exported = task.write(bar)
    tell(exported)
    sys.stdout.buffer.write(os.fsencode(exported.path) + b"\n")
    sys.stdout.buffer.flush()


def bar(items: Sequence[T]) -> Iterable[T]:
    return progress(items, len(items), "matrix")


def tell(exported: Exported) -> None:
    if exported.version is None:
        kind = "a Hugging Face folder, float32"
    elif exported.group_size is None:
        kind = f"version {exported.version}, float32"
    else:
        kind = f"version {exported.version}, q8_0 in groups of {exported.group_size}"
    say(f"{exported.path}: {kind}, {exported.size / 1e6:.1f} MB")
    if exported.group_size is not None:
        where = f", in {exported.rounding.tensor}" if exported.rounding.tensor else ""
        say(f"largest quantisation error: {exported.rounding.error:.3g}{where}")


# ---------------------------------------------------------------------------
# what is done


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. Of a Hugging Face folder the version is None."""

    path: Path
    version: int | None
    group_size: int | None  # q8_0 alone
    size: int  # bytes
    rounding: Rounding  # the largest error of q8_0, and the tensor it is in


@dataclass(frozen=True, slots=True)
class Task:
    """An export that was found to be possible."""

    source: Source
    out: Path
    plan: Layout | None  # None: a Hugging Face folder

    @property
    def group_size(self) -> int | None:
        return None if self.plan is None else self.plan.group_size

    def write(self, track: Track = iter) -> Exported:
        if self.plan is None:
            size = huggingface.write_folder(self.out, self.source, track)
            return Exported(self.out, None, None, size, Rounding(0.0, ""))
        try:
            rounding = write_checkpoint(self.out, self.plan, self.source.numbers, track)
        except ValueError as error:
            raise ValueError(f"{self.source.path}: {error}") from None
        return Exported(self.out, self.plan.version, self.plan.group_size, self.plan.file_size, rounding)


def export(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str = "float32",
    version: int | None = None,
    group_size: int | None = None,
    *,
    format: str | None = None,
) -> Exported:
    """Write the weights of `source` as a file that llama2c and the C programs read, or as a Hugging Face folder.

    source: a llama2.c checkpoint or the name of a downloaded one, a Hugging Face folder of the Llama architecture, ckpt.pt of
    llama2.c's trainer, or Meta's folder. dtype: "float32" (version 0 or 1) or "q8_0" (version 2). group_size: of q8_0, a
    divisor of dim and hidden_dim; None: 64, or the half, a quarter ... of it that is one. format: "llama2c", or "hf" for a
    folder; None: "hf" if `out` ends in a slash. `out` may be `source`: it is replaced when the new file is whole.

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
    if dtype not in VERSIONS:
        raise ValueError(f"dtype: expected {' or '.join(VERSIONS)}, found {dtype!r}")
    if format not in (None, "llama2c", "hf"):
        raise ValueError(f"format: expected llama2c or hf, found {format!r}")
    if format == "hf" or (format is None and os.fspath(out).endswith(os.sep)):
        fixed = {"dtype": (dtype, "float32"), "version": (version, None), "group_size": (group_size, None)}
        for name, (found, expected) in fixed.items():
            if found != expected:
                raise ValueError(f"{name}: expected {expected} for a Hugging Face folder, found {found}")
        return Task(open_source(source), Path(out), None)
    if version is not None and version not in VERSIONS[dtype]:
        held = " or ".join(map(str, VERSIONS[dtype]))
        raise ValueError(f"version: expected {held} for {dtype}, found {version}")
    if group_size is not None and dtype != "q8_0":
        raise ValueError(f"group_size: expected None for {dtype}, found {group_size}")
    check_place(Path(out))
    opened = open_source(source)
    version = VERSIONS[dtype][0] if version is None else version
    if dtype == "q8_0":
        group_size = choose_group_size(opened.config) if group_size is None else group_size
        check_group_size(opened.config, group_size)
    check_version_holds(opened, version, group_size)
    return Task(opened, Path(out), layout(opened.config, version, opened.shared_classifier, group_size))


def check_place(out: Path) -> None:
    """A file may be replaced; a device or a folder by a file, never."""
    if out.exists() and not out.is_file():
        raise OSError(f"{out}: expected a file to write to, found a {'folder' if out.is_dir() else 'device'}")


def choose_group_size(config: Config) -> int:
    group_size = GROUP_SIZE
    while config.dim % group_size or config.hidden_dim % group_size:
        group_size //= 2
    return group_size


def check_version_holds(source: Source, version: int, group_size: int | None) -> None:
    """What files of version 0 to 2 cannot hold: another theta, epsilon or head size than theirs, and scaled positions."""
    try:
        header(source.config, version, source.shared_classifier, group_size)
        if source.rope_scaling is not None:
            raise ValueError(f"rope_scaling: expected none in a v{version} file, found {dict(source.rope_scaling)}")
    except ValueError as error:
        raise ValueError(f"{source.path}: {error}") from None


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


FOLDERS: dict[str, Callable[[Path], Source]] = {"config.json": huggingface.from_folder, "params.json": pytorch.from_meta}
