"""Writes a random checkpoint: `python benchmarks/make_checkpoint.py 42M model.bin --version 2 --group-size 32`.

Speed depends on the shape of a model and not on its numbers, so a benchmark needs no trained model. Greedy decoding of these
models never gives BOS or EOS. The file is written as a stream: only one chunk of a matrix is in memory at a time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llama2c.architecture import NORMS
from llama2c.commands.export import Bar
from llama2c.config import DIMENSIONS, Config
from llama2c.formats.layout import Entry, make_layout
from llama2c.formats.writer import Floats, pack_tokenizer, write_checkpoint

PRESETS = {
    "260K": Config(64, 172, 5, 8, 4, 512, 512),
    "15M": Config(288, 768, 6, 6, 6, 32000, 256),
    "42M": Config(512, 1376, 8, 8, 8, 32000, 1024),
    "110M": Config(768, 2048, 12, 12, 12, 32000, 1024),
    "135M": Config(576, 1536, 30, 9, 3, 49152, 8192),  # SmolLM2's
    "1.1B": Config(2048, 5632, 22, 32, 4, 32000, 2048),
}
CHUNK = 1 << 22  # values made at once, or more if a few rows have more
CLASSIFIERS = ("token_embedding_table", "wcls")


def make_checkpoint(
    path: Path, config: Config, version: int = 0, seed: int = 0, group_size: int | None = None, shared_classifier: bool = True,
    dtype: str | None = None,
) -> None:  # fmt: skip
    """Writes normally distributed weights in version 0 to 3. Their scale keeps the activations near 1.

    dtype is that of the matrices in version 3, such as "bfloat16"; None is the version's default.
    """
    layout = make_layout(config, version, shared_classifier, group_size, dtype)
    streams = {entry.name: np.random.default_rng([seed, number]) for number, entry in enumerate(layout.entries)}

    def numbers(entry: Entry, _: int) -> Iterator[Floats]:
        return chunks(entry, streams[entry.name])

    write_checkpoint(path, layout, numbers, Bar())


def chunks(entry: Entry, rng: np.random.Generator) -> Iterator[Floats]:
    """The rows of one matrix, (n, columns) at a time. n * columns is a multiple of the group size, except at the end."""
    rows, columns = entry.shape[-2:] if len(entry.shape) > 1 else (1, entry.shape[0])
    step = max(8, CHUNK // columns)  # the first chunk must have the rows of all special tokens
    if entry.group_size is not None:  # group_size rows always are whole groups
        step = -(-step // entry.group_size) * entry.group_size
    for first in range(0, rows, step):
        count = min(step, rows - first)
        if entry.name in NORMS:
            yield np.ones((count, columns), np.float32)
        else:
            chunk = rng.standard_normal((count, columns), np.float32) * np.float32(columns**-0.5)
            if entry.name in CLASSIFIERS and first == 0:
                silence_special_tokens(chunk)
            yield chunk


def silence_special_tokens(rows: Floats) -> None:
    """Makes rows 3 and 4 opposites, and 1 and 2 their halves. Then logit 3 or 4 is always larger than those of BOS and EOS."""
    rows[4] = -rows[3]
    rows[1] = rows[3] / 2
    rows[2] = rows[4] / 2


def make_tokenizer(path: Path, vocab_size: int) -> None:
    """Writes a tokenizer.bin with the special tokens, the byte tokens and made-up words, `vocab_size` tokens in all."""
    spellings = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), " "]
    spellings += [f" w{i}" for i in range(vocab_size - len(spellings))]
    path.write_bytes(pack_tokenizer([(spelling.encode(), -float(i)) for i, spelling in enumerate(spellings[:vocab_size])]))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", help=f"one of {', '.join(PRESETS)}, or seven numbers: {','.join(DIMENSIONS)}")
    parser.add_argument("path", type=Path, help="the file to write")
    parser.add_argument("--version", type=int, choices=(0, 1, 2), default=0, help="file format (default 0)")
    parser.add_argument("--group-size", type=int, help="values that share a scale, version 2 only (default 32)")
    parser.add_argument("--untied", action="store_true", help="give the classifier its own weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="also write a tokenizer that fits")
    options = parser.parse_args(arguments)
    if options.version == 2 and options.group_size is None:
        options.group_size = 32
    try:
        config = PRESETS.get(options.shape) or Config(*map(int, options.shape.split(",")))
        make_checkpoint(options.path, config, options.version, options.seed, options.group_size, not options.untied)
        if options.tokenizer:
            make_tokenizer(options.tokenizer, config.vocab_size)
    except (ValueError, TypeError, OSError) as error:
        print(f"make_checkpoint: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
