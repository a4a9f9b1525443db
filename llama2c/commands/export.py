"""The verb `export`: turns a model of any kind into a file for llama2c, or into a Hugging Face folder."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..conversion import folder_of, prepare, tokenizer_bin
from ..files import exists
from ..formats.export import DTYPE_NAMES, FORMATS, GROUP_SIZE, Exported, Task, check_place
from ..formats.huggingface import COMPANIONS, WEIGHTS
from ..formats.layout import DTYPES as DTYPES_OF_VERSIONS
from ..formats.layout import Q8_0
from ..formats.writer import replacing
from ..locate import CONFIG, TOKENIZERS
from .parser import Parser
from .terminal import UsageError, progress, say

NOTES = """\
SOURCE is one of
    a file that llama2c runs (v0 to v3, GGUF), or the name of a downloaded model
    a Hugging Face folder of the Llama architecture (pip install 'llama2c[hf]')
    ckpt.pt of llama2.c's trainer, or Meta's folder with params.json and
        consolidated.*.pth (pip install torch)

OUT is
    FILE.gguf: a GGUF file, for llama.cpp and the programs built on it, with the
        tokenizer and the chat template in it
    FOLDER/: a Hugging Face folder. If SOURCE is one too, or a GGUF file, it has
        its tokenizer, chat template and settings
    another file: one for llama2c. The C programs read versions 0 to 2. Version
        3 is written for what those cannot store: float16 and bfloat16, another
        RoPE base, scaled positions, another epsilon or head size

TYPE is one of
    float32, float16, bfloat16   or f32, f16, bf16
    q8_0                         for files: 8 bits, a scale for each group
    q4_0, q4_1, q5_0, q5_1       for GGUF: 4 or 5 bits, a scale for 32 values;
                                 those with _1 have a minimum, too
    q4_k, q6_k                   for GGUF: blocks of 256 values; q4_k is the mix
                                 that llama-quantize calls Q4_K_M
Next to 4 and 5 bits the classifier has q6_k. Rows that are not a multiple of a
block get another type, and a message says so.

stdout gets the path of what was written; messages go to stderr.

examples:
    python -m llama2c export stories15M -o stories15M_q8.bin --dtype q8_0
    python -m llama2c export TinyLlama/ -o tiny.bin --tokenizer tokenizer.bin
    python -m llama2c export Llama-3.2-1B/ -o llama.gguf --dtype q4_k
    python -m llama2c export llama.gguf -o llama/
"""


# ---------------------------------------------------------------------------
# the command line


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m llama2c export",
        description="Turn a model into a checkpoint of llama2c, a GGUF file or a folder.",
        epilog=NOTES,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a checkpoint or a folder (see below)")
    add("-o", "--out", required=True, metavar="OUT", help="the file to write, or FOLDER/ (see below)")
    add("--dtype", choices=DTYPE_NAMES, metavar="TYPE", help="of the matrices (default float32; q8_0 for --version 2)")
    versions = range(len(DTYPES_OF_VERSIONS))
    add("--version", type=int, choices=versions, help="of llama2c's format (default: the lowest that can store the model)")
    groups = "q8_0 in llama2c's format: values that share a scale (default 64, or less if 64 does not fit)"
    add("--group-size", type=int, metavar="N", help=groups)
    add("--format", choices=FORMATS, help="default: hf if OUT ends in a slash, gguf if it ends in .gguf")
    add("-z", dest="source_tokenizer", metavar="FILE", help="the tokenizer for a GGUF file (default: that of SOURCE)")
    what = "also write this tokenizer.bin, from the tokenizer.model beside SOURCE or from the GGUF file"
    add("--tokenizer", metavar="FILE", help=what)
    return parser


def parse(argv: Sequence[str]) -> Namespace:
    options = make_parser().parse_args(argv)
    if options.dtype is None:
        options.dtype = Q8_0 if options.version == 2 else "float32"
    if options.tokenizer is not None and os.path.abspath(options.tokenizer) == os.path.abspath(options.out):
        raise UsageError(f"argument --tokenizer: expected another file than OUT, found {options.tokenizer}")
    return options


def run(argv: Sequence[str]) -> None:
    """Export what the command line names and print the path of what was written."""
    o = parse(argv)
    task = prepare(o.source, o.out, o.dtype, o.version, o.group_size, o.format, o.source_tokenizer)
    if o.dtype == Q8_0 and o.group_size is None and task.group_size not in (None, GROUP_SIZE):
        c = task.source.config
        sizes = f"dim = {c.dim} and hidden_dim = {c.hidden_dim}"
        say(f"group size: {task.group_size}, because {GROUP_SIZE} does not divide {sizes}")
    exported = task.write(Bar()) if o.tokenizer is None else write_both(task, Path(o.tokenizer))
    report(exported)
    if exported.format != "gguf":  # that has its tokenizer in it, or a note that it has none
        report_tokenizer(exported.path, folder_of(task.source))
    sys.stdout.buffer.write(os.fsencode(exported.path) + b"\n")
    sys.stdout.buffer.flush()


def write_both(task: Task, path: Path) -> Exported:
    """Write the model, and its tokenizer.bin at `path`, which may be in the folder that is written. An error leaves neither."""
    check_place(path)
    content = tokenizer_bin(task.source)
    if task.format == "hf" and path.absolute().parent == task.out.absolute():
        if path.name in (CONFIG, WEIGHTS, *COMPANIONS) and path.name != TOKENIZERS[0]:
            raise UsageError(f"argument --tokenizer: expected another name, found that of a file of the folder: {path}")
        return task.with_companions({path.name: content}).write(Bar())
    with replacing(path, len(content)) as unfinished:
        unfinished.write_bytes(content)
        return task.write(Bar())


class Bar:
    """A progress callback that moves the bar on stderr."""

    def __init__(self) -> None:
        self._items: Iterator[int] | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._items is None:
            self._items = iter(progress(range(total), total, "matrix"))
        next(self._items, None)


def report(exported: Exported) -> None:
    format = f"version {exported.version}" if exported.format == "llama2c" else FORMATS[exported.format]
    groups = "" if exported.group_size is None else f" in groups of {exported.group_size}"
    say(f"{exported.path}: {format}, {exported.dtype}{groups}, {exported.size / 1e6:.1f} MB")
    if exported.dtype != "float32":
        where = f", in {exported.rounding.tensor}" if exported.rounding.tensor else ""
        name = "quantisation" if exported.dtype.startswith("q") else "rounding"
        say(f"largest {name} error: {exported.rounding.error:.3g}{where}")
    for note in exported.notes:
        say(f"{exported.path}: {note}")


def report_tokenizer(out: Path, source_folder: Path) -> None:
    """Say so if there is no tokenizer beside what was written, because then it does not run without -z."""
    folder = out if out.is_dir() else out.parent
    if any(exists(folder / name) for name in TOKENIZERS):
        return
    found = next((source_folder / name for name in TOKENIZERS if exists(source_folder / name)), None)
    what = f"put one into {folder}, or name one with -z when you run it" if found is None else f"run it with -z {found}"
    say(f"{out}: no tokenizer {'in' if out.is_dir() else 'beside'} it: {what}")
