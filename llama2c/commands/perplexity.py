"""`python -m llama2c perplexity`: how likely a model finds a text, and how near another model comes to it.

Both models read the same windows, chunk by chunk, so that a long text needs no more memory than a short one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ..formats.checkpoint import Checkpoint
from ..locate import find_tokenizer, resolve
from ..scoring import Chunk, Rows, Score, choose_stride, pick_logprobs, plan_chunks, read_chunks, scored_ids
from ..text.tokenizer import Tokenizer
from ..transformer import Floats, Transformer
from .terminal import Parser, markdown_table, progress

NOTES = """\
perplexity is exp(-mean ln p) of the tokens: the lower, the better the model expects the text. It compares models with the
same tokenizer; bits per byte compares any. BOS goes in first and is not counted. A text longer than the context is read
in windows that begin --stride tokens apart. Each token counts once, given at least context - stride + 1 tokens before it:
with a small stride the model knows more of the text, and it takes longer.

--against tells what other weights cost, 8-bit ones for instance. KL is the mean over the tokens of KL(MODEL || OTHER), the
Kullback-Leibler divergence of what the two expect next, in nats, with its standard error as if tokens were independent;
"same top" is how often both have the same likeliest token. The shorter context of the two holds for both.

examples:
    python -m llama2c perplexity stories15M.bin story.txt
    python -m llama2c perplexity stories15M.bin story.txt --against stories15M_q80.bin
    python -m llama2c -s 42 | python -m llama2c perplexity -
"""


def integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"expected an integer, found {text!r}") from None


def parse(argv: Sequence[str]) -> Namespace:
    parser = Parser(
        prog="python -m llama2c perplexity",
        description="Tell how likely a model finds a text, by its perplexity.",
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="a file, or the name of a downloaded model; none: the one that comes along")
    add("text", metavar="TEXT_FILE", help="its bytes are taken as they are; - is stdin")
    add("-z", "--tokenizer", metavar="FILE", help="default: tokenizer.bin, .json or .model beside MODEL, or tokenizer.bin here")
    add("--stride", type=integer, metavar="N", help="from one window to the next (default: half the context)")
    add("--threads", type=integer, metavar="N", help="default: as many as for a story")
    add("--against", metavar="OTHER", help="another model, with the same tokenizer, to compare")
    add("-o", "--output", choices=("md", "json"), default="md", help="how the figures are printed (default md)")
    return parser.parse_intermixed_args(argv)


def run(argv: Sequence[str]) -> None:
    """Read the text with one model or two, and print the figures on stdout."""
    options = parse(argv)
    path = resolve(options.model)
    checkpoints = [Checkpoint.open(path)]
    vocab_size = checkpoints[0].config.vocab_size
    if options.against is not None:
        checkpoints.append(Checkpoint.open(resolve(options.against)))
        if checkpoints[1].config.vocab_size != vocab_size:
            found = f"expected {vocab_size} tokens as {os.fspath(path)} has, found {checkpoints[1].config.vocab_size}"
            raise ValueError(f"{options.against}: {found}")
    tokenizer = Tokenizer.open(find_tokenizer(path) if options.tokenizer is None else options.tokenizer, vocab_size)
    context = min(checkpoint.config.seq_len for checkpoint in checkpoints)
    stride = choose_stride(options.stride, context)
    results = [Result(name_of(checkpoint), Transformer(checkpoint, options.threads)) for checkpoint in checkpoints]
    text = read_text(options.text)
    ids = scored_ids(tokenizer, text)
    measure(results, ids, plan_chunks(len(ids), context, stride))
    info = {"tokens": len(ids) - 1, "bytes": len(text), "context": context, "stride": stride}
    WRITERS[options.output](info, [result.figures(tuple(ids), len(text)) for result in results])


def read_text(name: str) -> bytes:
    """All bytes of a file, "-" of stdin. OSError: it cannot be read; ValueError: there are none."""
    if name == "-":
        text = b"" if sys.stdin is None else sys.stdin.buffer.read()
    else:
        try:
            text = Path(name).read_bytes()
        except OSError as error:
            raise type(error)(f"{name}: expected a readable file, found: {error.strerror}") from None
    if not text:
        raise ValueError(f"{'stdin' if name == '-' else name}: expected a text of at least one byte, found none")
    return text


def name_of(checkpoint: Checkpoint) -> str:
    """As bench calls it: "stories15M fp32"."""
    return f"{Path(checkpoint.path).stem} {checkpoint.kind}"


# ---------------------------------------------------------------------------
# what is measured


@dataclass(slots=True)
class Result:
    """What one model made of the text. `kl` and `n_same_top` are of the second model alone, compared with the first."""

    model: str
    transformer: Transformer
    logprobs: list[float] = field(default_factory=list)  # of each token
    seconds: float = 0.0  # that its steps took
    kl: list[float] = field(default_factory=list)  # of each token, in nats
    n_same_top: int = 0

    def figures(self, ids: tuple[int, ...], n_bytes: int) -> dict[str, Any]:
        """Everything, under the names of the json output."""
        score = Score(ids, tuple(self.logprobs), n_bytes)
        figures: dict[str, Any] = {
            "model": self.model,
            "perplexity": score.perplexity,
            "bits_per_byte": score.bits_per_byte,
            "t/s": len(self.logprobs) / max(self.seconds, 1e-9),  # a coarse clock may not have moved
        }
        if self.kl:
            kl, error = mean_and_error(self.kl)
            figures |= {"kl": kl, "kl_error": error, "same_top": self.n_same_top / len(self.kl)}
        return figures


def measure(results: Sequence[Result], ids: Sequence[int], chunks: Sequence[Chunk]) -> None:
    """Let the models of the results read the chunks side by side, and fill the results in."""
    readers = [read_chunks(result.transformer, ids, chunks) for result in results]
    for chunk in progress(chunks, len(chunks), "chunk"):
        rows = [timed_rows(reader, result) for reader, result in zip(readers, results, strict=True)]
        for result, own in zip(results, rows, strict=True):
            result.logprobs += pick_logprobs(own, ids, chunk)
        for result, other in zip(results[1:], rows[1:], strict=True):
            result.kl += map(divergence, rows[0].logprobs, other.logprobs)
            result.n_same_top += int((rows[0].logits.argmax(axis=1) == other.logits.argmax(axis=1)).sum())


def timed_rows(reader: Iterator[Rows], result: Result) -> Rows:
    start = perf_counter()
    rows = next(reader)
    result.seconds += perf_counter() - start
    return rows


def divergence(logprobs: Floats, others: Floats) -> float:
    """KL(p || q) = sum of p (ln p - ln q), in nats, of ln p and ln q (vocab_size,); summed in float64."""
    own = logprobs.astype(np.float64)
    return float((np.exp(own) * (own - others)).sum())


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error, sd / sqrt(n): [1, 3] -> (2, 1). One value tells nothing of its error: None."""
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


# ---------------------------------------------------------------------------
# printing


def print_markdown(info: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """A table with a line for each model, and what the figures hold for."""
    table = [["model", "tokens", "bytes", "perplexity", "bits per byte", "t/s"]]
    for r in results:
        numbers = [f"{r['perplexity']:.4f}", f"{r['bits_per_byte']:.4f}", f"{r['t/s']:.1f}"]
        table.append([r["model"], str(info["tokens"]), str(info["bytes"]), *numbers])
    if len(results) > 1:
        r = results[1]
        error = "" if r["kl_error"] is None else f" ± {r['kl_error']:.6f}"
        comparison = (["KL", "same top"], ["", ""], [f"{r['kl']:.6f}{error}", f"{r['same_top']:.2%}"])
        table = [row + cells for row, cells in zip(table, comparison, strict=True)]
    print(markdown_table(table))
    print(f"\ncontext {info['context']}, stride {info['stride']}")


def print_json(info: dict[str, Any], results: list[dict[str, Any]]) -> None:
    print(json.dumps({"info": info, "results": results}, indent=1))


WRITERS: dict[str, Callable[[dict[str, Any], list[dict[str, Any]]], None]] = {"md": print_markdown, "json": print_json}
