"""The verb `perplexity`: how likely a model finds a text, and how close another model comes to it.

Both models read the same windows, chunk by chunk, so a long text needs no more memory than a short one.
"""

from __future__ import annotations

import json
import math
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ..errors import ModelError, RequestError
from ..files import read_file
from ..formats.checkpoint import Checkpoint
from ..llama import load
from ..locate import resolve
from ..scoring import Chunk, Rows, Score, choose_stride, pick_logprobs, plan_chunks, read_chunks, scored_ids
from ..text.tokenizer import Tokenizer
from ..transformer import Floats, Transformer
from .flags import choose_context
from .parser import Parser
from .terminal import markdown_table, named_as, progress, put

NOTES = """\
Perplexity is exp(-mean ln p) over the tokens of the text. The lower it is, the
better the model predicts the text. It compares models that have the same
tokenizer; bits per byte compares any. BOS is fed first and is not counted.
A text longer than the context is read in windows that begin --stride tokens
apart. Each token is counted once, with at least context - stride + 1 tokens
before it. A small stride is slower and gives each token more of the text.
A smaller --context needs less memory, and compares models that have different
ones.

-o tsv prints a line for each token: its position in the text (from 1), its id,
ln p, and its text, in which "\\t", "\\n", "\\r" and "\\\\" stand for characters and
"\\x09" for a byte. --against adds OTHER's ln p and the KL of that position.

--against shows what other weights cost, for example 8-bit ones. KL is the mean
over the tokens of KL(MODEL || OTHER), the Kullback-Leibler divergence of the
two predictions, in nats. Its standard error is computed as if the tokens were
independent. "same top" is how often both models have the same likeliest token.
Both models are given the shorter of their contexts.

examples:
    python -m llama2c perplexity stories15M.bin story.txt
    python -m llama2c perplexity stories15M.bin story.txt -o tsv
    python -m llama2c perplexity stories15M.bin story.txt \\
        --against stories15M_q80.bin
    python -m llama2c -s 42 | python -m llama2c perplexity -
"""


def integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"expected an integer, found {text!r}") from None


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m llama2c perplexity",
        description="Measure how likely a model finds a text: its perplexity.",
        epilog=NOTES,
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="file or name of a model (default: the small model of llama2c)")
    add("text", metavar="TEXT_FILE", help="a file, read as bytes; - reads stdin, for pipes too")
    add("-z", "--tokenizer", metavar="FILE", help="default: the one in a GGUF file or beside MODEL, or tokenizer.bin here")
    add("--context", type=integer, metavar="N", help="tokens of a window (default: the context of the model)")
    add("--stride", type=integer, metavar="N", help="tokens from one window to the next (default: half the context)")
    add("--threads", type=integer, metavar="N", help="default: OMP_NUM_THREADS, or what is fastest now, up to all cores")
    add("--against", metavar="OTHER", help="another model to compare, with the same tokenizer")
    add("-o", "--output", choices=("md", "json", "tsv"), default="md", help="format of the results (default md)")
    return parser


def run(argv: Sequence[str]) -> None:
    """Reads the text with one model or two, and prints the results."""
    options = make_parser().parse_intermixed_args(argv)
    with named_as({"context": "--context", "stride": "--stride", "n_threads": "--threads"}):
        read(options)


def read(options: Namespace) -> None:
    """What run does, with the options."""
    llama = load(options.model, options.tokenizer, options.threads)
    transformers = [llama.transformer]
    if options.against is not None:
        transformers.append(Transformer(Checkpoint.open(resolve(options.against)), options.threads))
        vocab_size, found = (transformer.config.vocab_size for transformer in transformers)
        if found != vocab_size:
            expected = f"expected {vocab_size} tokens as {llama.transformer.checkpoint.path} has"
            raise ModelError(f"{options.against}: {expected}, found {found}")
    context = choose_context(options.context, min(transformer.config.seq_len for transformer in transformers))
    stride = choose_stride(options.stride, context)
    text = read_text(options.text)
    ids = scored_ids(llama.tokenizer, text)
    results = [Result(name_of(transformer.checkpoint), transformer) for transformer in transformers]
    measure(results, ids, plan_chunks(len(ids), context, stride))
    if options.output == "tsv":
        print_tokens(llama.tokenizer, ids[1:], results)
        return
    info = {"tokens": len(ids) - 1, "bytes": len(text), "context": context, "stride": stride}
    WRITERS[options.output](info, [result.figures(tuple(ids), len(text)) for result in results])


def read_text(name: str) -> bytes:
    """All bytes of a file, or of stdin if the name is "-". RequestError: there are none; otherwise as read_file."""
    text = read_stdin() if name == "-" else read_file(name)
    if not text:
        raise RequestError(f"{'stdin' if name == '-' else name}: the text is empty", "text")
    return text


def read_stdin() -> bytes:
    return b"" if sys.stdin is None else sys.stdin.buffer.read()


def name_of(checkpoint: Checkpoint) -> str:
    """As bench calls it: "stories15M fp32"."""
    return f"{Path(checkpoint.path).stem} {checkpoint.kind}"


# ---------------------------------------------------------------------------
# what is measured


@dataclass(slots=True)
class Result:
    """What one model made of the text. Only the second model has `kl` and `n_same_top`, which compare it with the first."""

    model: str
    transformer: Transformer
    logprobs: list[float] = field(default_factory=list)  # of each token
    seconds: float = 0.0  # that its steps took
    kl: list[float] = field(default_factory=list)  # of each token, in nats
    n_same_top: int = 0

    def figures(self, ids: tuple[int, ...], n_bytes: int) -> dict[str, Any]:
        """All fields of the json output, by name."""
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
    """Lets the models of the results read the chunks side by side, and fills in the results."""
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
    """KL(p || q) = sum of p (ln p - ln q) in nats, given ln p and ln q, (vocab_size,) each. The sum is in float64."""
    own = logprobs.astype(np.float64)
    return float((np.exp(own) * (own - others)).sum())


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error, sd / sqrt(n): [1, 3] -> (2, 1). A single value has no standard error: None."""
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


# ---------------------------------------------------------------------------
# printing


def print_markdown(info: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """A table with a line for each model, then the context and the stride."""
    table = [["model", "tokens", "bytes", "perplexity", "bits per byte", "t/s"]]
    for r in results:
        numbers = [f"{r['perplexity']:.4f}", f"{r['bits_per_byte']:.4f}", f"{r['t/s']:.1f}"]
        table.append([r["model"], str(info["tokens"]), str(info["bytes"]), *numbers])
    if len(results) > 1:
        r = results[1]
        error = "" if r["kl_error"] is None else f" ± {r['kl_error']:.6f}"
        comparison = (["KL", "same top"], ["", ""], [f"{r['kl']:.6f}{error}", f"{r['same_top']:.2%}"])
        table = [row + cells for row, cells in zip(table, comparison, strict=True)]
    put(f"{markdown_table(table)}\n\ncontext {info['context']}, stride {info['stride']}\n")


def print_json(info: dict[str, Any], results: list[dict[str, Any]]) -> None:
    put(json.dumps({"info": info, "results": results}, indent=1) + "\n")


def print_tokens(tokenizer: Tokenizer, ids: Sequence[int], results: Sequence[Result]) -> None:
    """A line of names, then one for each token, with fields separated by tabs. Nine digits are enough to get a float32 back."""
    columns = [map(str, range(1, len(ids) + 1)), map(str, ids), digits(results[0].logprobs)]
    names = ["position", "token", "logprob"]
    if len(results) > 1:
        columns += [digits(results[1].logprobs), digits(results[1].kl)]
        names += ["other_logprob", "kl"]
    columns.append(map(escaped, map(tokenizer.piece, ids)))
    for fields in ([*names, "text"], *zip(*columns, strict=True)):
        put("\t".join(fields) + "\n")


def digits(values: Sequence[float]) -> Iterator[str]:
    return (f"{value:.9g}" for value in values)


ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def escaped(piece: bytes) -> str:
    """The bytes of a token on one line: b"a\\n\\xc3" -> "a\\\\n\\\\xc3". Replacing the escapes gives the bytes back."""
    text = piece.decode(errors="surrogateescape")
    return "".join(ESCAPES.get(letter) or (letter if letter.isprintable() else hexadecimal(letter)) for letter in text)


def hexadecimal(letter: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in letter.encode(errors="surrogateescape"))


WRITERS: dict[str, Callable[[dict[str, Any], list[dict[str, Any]]], None]] = {"md": print_markdown, "json": print_json}
