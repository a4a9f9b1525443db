"""The verb `export`: turns a model of any kind into a file for llama2c, or into a Hugging Face folder."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..files import exists
from ..formats.export import FORMATS, GROUP_SIZE, Exported, check_place, prepare
from ..formats.layout import DTYPES, Q8_0
from ..formats.writer import replacing
from ..locate import TOKENIZERS
from ..text import sentencepiece
from .terminal import Parser, UsageError, progress, say

NOTES = """\
SOURCE is one of
    a file that llama2c runs (v0 to v3), or the name of a downloaded model
    a Hugging Face folder of the Llama architecture: config.json and .safetensors (pip install 'llama2c[hf]')
    ckpt.pt of llama2.c's trainer, or Meta's folder with params.json and consolidated.*.pth (pip install torch)

OUT is a file or, with a slash at the end, a Hugging Face folder. The C programs read versions 0 to 2. Version 3 is written for
models that those cannot store: --dtype float16 or bfloat16, another RoPE base, scaled positions, another epsilon or head size.

A folder made from a Hugging Face folder gets copies of its tokenizer, chat template and generation settings.

stdout gets the path of what was written; messages go to stderr.
    python -m llama2c export stories15M -o stories15M_q8.bin --dtype q8_0
    python -m llama2c export TinyLlama/ -o tiny.bin --tokenizer tokenizer.bin
    python -m llama2c export Llama-3.2-1B/ -o llama.bin --dtype bfloat16
    python -m llama2c export tiny.bin -o tiny/
"""


# ---------------------------------------------------------------------------
# the command line


def parse(argv: Sequence[str]) -> Namespace:
    parser = Parser(
        prog="python -m llama2c export",
        description="Turn a model into a file for llama2c, and where possible for the C programs, or a Hugging Face folder.",
        epilog=NOTES,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a checkpoint or a folder (see below)")
    add("-o", "--out", required=True, metavar="OUT", help="the file to write, or FOLDER/")
    add("--dtype", choices=DTYPES[3], help="of the matrices (default float32; q8_0 for --version 2)")
    add("--version", type=int, choices=range(len(DTYPES)), help="of the format (default: the lowest that can store the model)")
    add("--group-size", type=int, metavar="N", help="q8_0: values that share a scale (default 64, or less if 64 does not fit)")
    add("--format", choices=FORMATS, help="default: hf if OUT ends in a slash")
    add("--tokenizer", metavar="FILE", help="also convert the tokenizer.model beside SOURCE to this tokenizer.bin")
    options = parser.parse_args(argv)
    if options.dtype is None:
        options.dtype = Q8_0 if options.version == 2 else "float32"
    if options.tokenizer is not None and os.path.abspath(options.tokenizer) == os.path.abspath(options.out):
        raise UsageError(f"argument --tokenizer: expected another file than OUT, found {options.tokenizer}")
    return options


def run(argv: Sequence[str]) -> None:
    """Export what the command line names and print the path of what was written."""
    o = parse(argv)
    task = prepare(o.source, o.out, o.dtype, o.version, o.group_size, o.format)
    if o.dtype == Q8_0 and o.group_size is None and task.group_size != GROUP_SIZE:
        c = task.source.config
        sizes = f"dim = {c.dim} and hidden_dim = {c.hidden_dim}"
        say(f"group size: {task.group_size}, because {GROUP_SIZE} does not divide {sizes}")
    source = task.source.path
    beside = source if source.is_dir() else source.parent
    if o.tokenizer is None:
        exported = task.write(Bar())
    else:
        tokenizer_path = Path(o.tokenizer)
        check_place(tokenizer_path)
        tokenizer = sentencepiece.convert(beside / "tokenizer.model", task.source.config.vocab_size)
        with replacing(tokenizer_path, len(tokenizer)) as unfinished:  # an error leaves neither of the two files
            unfinished.write_bytes(tokenizer)
            exported = task.write(Bar())
    report(exported)
    report_tokenizer(exported.path, beside)
    sys.stdout.buffer.write(os.fsencode(exported.path) + b"\n")
    sys.stdout.buffer.flush()


class Bar:
    """A progress callback that moves the bar on stderr."""

    def __init__(self) -> None:
        self._items: Iterator[int] | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._items is None:
            self._items = iter(progress(range(total), total, "matrix"))
        next(self._items, None)


def report(exported: Exported) -> None:
    format = "a Hugging Face folder" if exported.version is None else f"version {exported.version}"
    groups = "" if exported.group_size is None else f" in groups of {exported.group_size}"
    say(f"{exported.path}: {format}, {exported.dtype}{groups}, {exported.size / 1e6:.1f} MB")
    if exported.dtype != "float32":
        where = f", in {exported.rounding.tensor}" if exported.rounding.tensor else ""
        name = "quantisation" if exported.dtype == Q8_0 else "rounding"
        say(f"largest {name} error: {exported.rounding.error:.3g}{where}")


def report_tokenizer(out: Path, source_folder: Path) -> None:
    """Say so if there is no tokenizer beside what was written, because then it does not run without -z."""
    folder = out if out.is_dir() else out.parent
    if any(exists(folder / name) for name in TOKENIZERS):
        return
    found = next((source_folder / name for name in TOKENIZERS if exists(source_folder / name)), None)
    what = f"put one into {folder}, or name one with -z when you run it" if found is None else f"run it with -z {found}"
    say(f"{out}: no tokenizer {'in' if out.is_dir() else 'beside'} it: {what}")
