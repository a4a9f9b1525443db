"""The command line: flags in, bytes out. It prints what run.c prints, as it is made, and every error in one line.

No logic the API lacks: what stands here is about flags, terminals and files to look at.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter, time_ns
from typing import Any, BinaryIO, NamedTuple, TextIO

import numpy as np

from .. import __version__, _kernels, generation
from ..config import DIMENSIONS
from ..formats.checkpoint import Checkpoint
from ..llama import Llama
from ..locate import find_tokenizer, resolve
from ..sampler import Sampler
from ..text.chat import start_conversation
from ..text.tokenizer import TextStream, Tokenizer
from ..transformer import Floats, KVCache, Tokens, Transformer
from .terminal import UsageError, say

INTERRUPTED = 130  # the exit codes a shell gives for SIGINT and SIGPIPE
PIPE_CLOSED = 141

# ---------------------------------------------------------------------------
# flags


@dataclass(slots=True)
class Arguments:
    """What the command line asks for, with the defaults of run.c."""

    model: str = ""
    temperature: float = 1.0
    top_p: float = 0.9
    seed: int = 0
    steps: int | None = None  # None: not given
    prompt: str | None = None
    tokenizer: str | None = None
    mode: str = "generate"
    system_prompt: str | None = None
    threads: int | None = None
    trace: str | None = None
    verbose: bool = False
    version: bool = False
    help: bool = False


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"expected a number, found {text!r}") from None


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"expected an integer, found {text!r}") from None


def _mode(text: str) -> str:
    if text not in ("generate", "chat"):
        raise UsageError(f"expected generate or chat, found {text!r}")
    return text


class Flag(NamedTuple):
    """One flag; without `value` (the name of its value in the help) it is a switch."""

    short: str
    long: str
    value: str
    convert: Callable[[str], Any]
    help: str


FLAGS = (
    Flag("-t", "--temperature", "T", _number, "0 takes the likeliest token; the larger, the wilder (default 1.0)"),
    Flag("-p", "--top-p", "P", _number, "draw from the likeliest tokens that make up P; 0 or 1: from all (default 0.9)"),
    Flag("-s", "--seed", "S", _integer, "the same seed gives the same story (default 0: from the clock)"),
    Flag("-n", "--steps", "N", _integer, "positions, those of the prompt too; 0: the whole context (default 256)"),
    Flag("-i", "--prompt", "TEXT", str, "the beginning of the story, in chat the first line; - reads it from stdin, all of it"),
    Flag("-z", "--tokenizer", "FILE", str, "default: tokenizer.bin, .json or .model beside the model, or tokenizer.bin here"),
    Flag("-m", "--mode", "MODE", _mode, "generate or chat (default generate)"),
    Flag("-y", "--system-prompt", "TEXT", str, "in chat: the system prompt; without it, it is asked for"),
    Flag("", "--threads", "N", _integer, "default: OMP_NUM_THREADS, else the cores there are, fewer for tiny models"),
    Flag("", "--trace", "FILE", str, "write what passes through the model, to compare implementations (see below)"),
    Flag("-v", "--verbose", "", str, "tell the model's shape, threads, instruction set and speeds on stderr"),
    Flag("", "--version", "", str, "print the version"),
    Flag("-h", "--help", "", str, "print this"),
)
BY_NAME = {name: flag for flag in FLAGS for name in (flag.short, flag.long) if name}


class Verb(NamedTuple):
    """Something else than a story, told by the first argument; `module` has run(argv). A file of that name is ./NAME."""

    module: str
    help: str


VERBS = {
    "bench": Verb("llama2c.commands.bench", "measure how many tokens a second a model reads and writes here"),
    "download": Verb("llama2c.commands.download", "fetch a model from the Hugging Face hub, with its tokenizer"),
    "perplexity": Verb("llama2c.commands.perplexity", "tell how likely a model finds a text, and compare two models"),
    "export": Verb("llama2c.commands.export", "turn weights of others into a file for llama2c, quantise one, or turn it back"),
}

USAGE = "usage: python -m llama2c [MODEL] [flags]\n       python -m llama2c VERB ... (VERB --help tells more)"
NOTES = """\
stdout is the story alone; speed, warnings and errors go to stderr. Exit code 0, 1 after an error, 2 for a wrong
command line, 130 after Ctrl-C.

--trace writes lines of fields separated by tabs ("-": to stderr). For each position and layer, with the norm and the
mean of the residual stream after attention, then after the feed-forward:
    layer  position  token  layer  norm  mean  norm  mean
and for each position the five likeliest next tokens with their logits:
    top    position  token  id  logit  id  logit  ...

examples:
    python -m llama2c
    python -m llama2c -i "The little dog"
    python -m llama2c download stories15M
    python -m llama2c stories15M
    python -m llama2c stories15M.bin -t 0.8 -n 256 -s 42 -i "One day, Lily met a Shoggoth"
    printf 'Once upon a time' | python -m llama2c stories15M.bin -i - --threads 2
    python -m llama2c llama2_7b_chat.bin -m chat -y "You are a pirate"
"""


def parse(argv: Sequence[str]) -> Arguments:
    """The flags and the one model file, in any order. UsageError if they are not.

    As in run.c a flag takes the argument after it for its value whatever that looks like (`-t -1`, `-i -x`), which
    argparse refuses.
    """
    arguments = Arguments()
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        flag = BY_NAME.get(name)
        if flag is None:
            if word.startswith("-"):
                raise UsageError(f"{word}: expected a flag that there is, found an unknown one")
            if arguments.model:
                raise UsageError(f"{word}: expected one model file, found a second")
            arguments.model = word
            continue
        if not flag.value and equals:
            raise UsageError(f"{name}: expected no value, found {value!r}")
        if flag.value and not equals:
            following = next(rest, None)
            if following is None:
                raise UsageError(f"{name}: expected a value, found none")
            value = following
        try:
            setattr(arguments, flag.long[2:].replace("-", "_"), flag.convert(value) if flag.value else True)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
    return arguments


def help_text() -> str:
    lines = [f"  {flag.short or '  '} {f'{flag.long} {flag.value}':23} {flag.help}\n" for flag in FLAGS]
    verbs = [f"  {name:26} {verb.help}\n" for name, verb in VERBS.items()]
    about = "Run a Llama model: print a story, or chat. MODEL is a file, a Hugging Face folder, or the name of a\n"
    about += "downloaded model; without one, the small model that comes with llama2c tells a story."
    return f"{USAGE}\n\n{about}\n\n{''.join(lines)}\nverbs:\n{''.join(verbs)}\n{NOTES}"


def adjusted(arguments: Arguments) -> None:
    """What run.c puts right without a word is put right with one."""
    if arguments.temperature < 0:
        say(f"warning: --temperature {arguments.temperature:g} is below 0: taken as 0")
        arguments.temperature = 0.0
    if arguments.top_p < 0 or arguments.top_p > 1:  # a NaN is left to the sampler, which refuses it
        say(f"warning: --top-p {arguments.top_p:g} is outside 0 to 1: taken as 0.9")
        arguments.top_p = 0.9
    if -(2**64) < arguments.seed < 0:
        arguments.seed += 2**64  # no warning: every seed is as good as another


def count_positions(steps: int | None, seq_len: int) -> int:
    """The positions to fill: those asked for, cut to the context."""
    if steps is None:
        return min(256, seq_len)
    if steps < 0:
        say(f"warning: --steps {steps} is below 0: taken as 0, the whole context")
    elif steps > seq_len:
        say(f"warning: --steps {steps} is more than the context: taken as {seq_len}")
    return min(steps, seq_len) if steps > 0 else seq_len


# ---------------------------------------------------------------------------
# input and output

# What the text of a token must not be: nothing, or a control character on its own that is no white space.
SILENT = frozenset(["", *map(chr, range(9)), *map(chr, range(14, 32)), "\x7f"])


def put(text: str) -> None:
    """Text to stdout, as UTF-8 whatever the locale, seen at once."""
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def stdin() -> BinaryIO:
    return io.BytesIO() if sys.stdin is None else sys.stdin.buffer


def ask(guide: str) -> str | None:
    """A line of the user, bytes that are no text kept as os.fsdecode keeps them; None at the end of input."""
    put(guide)
    line = stdin().readline()
    return os.fsdecode(line.removesuffix(b"\n")) if line else None


class Timing(NamedTuple):
    """How one request went. The first token comes out of the prefill step, so the speed is that of the others."""

    n_prompt: int
    prompt_seconds: float
    tokens: list[int]  # those drawn
    seconds: float  # from the first of them to the last
    finish_reason: str | None

    @property
    def n_made(self) -> int:
        """Of the tokens, those after the first."""
        return len(self.tokens) - 1

    @property
    def rate(self) -> float:
        return self.n_made / max(self.seconds, 1e-9)  # a coarse clock may not have moved


def print_steps(steps: Iterator[generation.Step], text_stream: TextStream, n_prompt: int) -> Timing:
    """Print the text of each step as it comes. A tiny model makes one in 15 us: nothing is looked up twice."""
    write, flush, feed, silent = sys.stdout.buffer.write, sys.stdout.buffer.flush, text_stream.feed, SILENT
    tokens: list[int] = []
    start = first = perf_counter()
    finish_reason = None
    for token, _, _, finish_reason in steps:  # noqa: B007
        if not tokens:
            first = perf_counter()
        tokens.append(token)
        text = feed(token)
        if text not in silent:
            write(text.encode())
            flush()
    return Timing(n_prompt, first - start, tokens, perf_counter() - first, finish_reason)


def tell_speed(timing: Timing) -> None:
    say(f"prompt: {timing.n_prompt} tokens, {timing.n_prompt / max(timing.prompt_seconds, 1e-9):.1f} tok/s")
    if timing.n_made > 0:
        say(f"generation: {timing.n_made} tokens, {timing.rate:.1f} tok/s")


# ---------------------------------------------------------------------------
# the two modes


def generate(llama: Llama, sampler: Sampler, prompt: str, n_positions: int, verbose: bool) -> None:
    """The prompt's text and what follows it, up to `n_positions`."""
    ids = llama.tokenizer.encode(os.fsencode(prompt))
    seq_len = llama.transformer.config.seq_len
    if not 0 < len(ids) <= seq_len:
        raise ValueError(f"prompt: expected 1 to {seq_len} tokens (the context), found {len(ids)}")
    cache = llama.transformer.new_cache(n_positions)
    text_stream = llama.tokenizer.text_stream(errors="ignore")
    put("".join(text for text in map(text_stream.feed, ids[: n_positions + 1]) if text not in SILENT))
    if len(ids) > n_positions:  # nothing is drawn, but a trace shows every position asked for
        llama.transformer.forward(ids[:n_positions], cache)
        put("\n")
        return
    steps = generation.generate(llama.transformer, cache, ids, sampler, stop_tokens=llama.tokenizer.end_ids)
    timing = print_steps(steps, text_stream, len(ids))
    put("\n")
    if verbose:
        tell_speed(timing)
    if timing.n_made > 0:
        say(f"achieved tok/s: {timing.rate:f}", name="")  # to the letter as run.c says it


def chat(llama: Llama, sampler: Sampler, prompt: str | None, system: str | None, n_positions: int, verbose: bool) -> None:
    """User and assistant in turn, all in one cache, until `n_positions` are filled or the input ends.

    Each turn has the ids of the whole conversation, of which the cache holds the first ones: as a rule all but those since the
    end token of the last reply; fewer where a template writes earlier turns in another way than before.
    """
    transformer, tokenizer = llama.transformer, llama.tokenizer
    cache = transformer.new_cache(n_positions)
    fed: list[int] = []  # what the cache holds
    user, input_ended = prompt, False
    if system is None:
        system = ask("Enter system prompt (optional): ")
        input_ended = system is None
    conversation = start_conversation(tokenizer, system or "")
    while True:
        if user is None and not input_ended:
            user = ask("User: ")
        if user is None:
            break
        ids = conversation.ask(user)
        user = None
        put("Assistant: ")
        cache.truncate(min(count_common(fed, ids), len(ids) - 1))
        new, room = ids[cache.length :], n_positions - cache.length
        if len(new) > room:
            transformer.forward(new[:room], cache)
            break
        for _ in new[:-1]:
            sampler.coin()  # run.c samples at these positions too
        text_stream = tokenizer.text_stream(previous=new[-1], errors="ignore")
        steps = generation.generate(transformer, cache, new, sampler, stop_tokens=conversation.end_ids)
        timing = print_steps(steps, text_stream, len(new))
        if timing.finish_reason == "stop":
            put("\n")
        if verbose:
            tell_speed(timing)
        conversation.answer(timing.tokens)
        fed = ids + timing.tokens[:-1]
        if len(ids) + len(timing.tokens) >= n_positions:
            break
    put("\n")


def count_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences begin with in common: [1, 2, 3], [1, 2, 4] -> 2."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# ---------------------------------------------------------------------------
# trace


class TracedTransformer(Transformer):
    """A Transformer that writes down what passes through it; NOTES has the format."""

    def __init__(self, checkpoint: Checkpoint, n_threads: int | None, file: TextIO) -> None:
        super().__init__(checkpoint, n_threads)
        self._file = file

    def forward(
        self,
        tokens: Tokens,
        cache: KVCache,
        *,
        all_logits: bool = False,
        out: Floats | None = None,
        trace: Floats | None = None,
    ) -> Floats:
        start = cache.length
        if trace is None:
            trace = np.empty((len(tokens), self.config.n_layers, 4), np.float32)
        logits = super().forward(tokens, cache, all_logits=True, out=out if all_logits else None, trace=trace)
        for position, (token, layers, row) in enumerate(zip(tokens, trace, logits, strict=True), start):
            self._write(position, int(token), layers, row)
        if all_logits:
            return logits
        out = np.empty(self.config.vocab_size, np.float32) if out is None else out
        out[:] = logits[-1]
        return out

    def _write(self, position: int, token: int, layers: Floats, logits: Floats) -> None:
        for layer, (att_norm, att_mean, ffn_norm, ffn_mean) in enumerate(layers.tolist()):
            numbers = f"{att_norm:.5g}\t{att_mean:.5f}\t{ffn_norm:.5g}\t{ffn_mean:.5f}"
            self._file.write(f"layer\t{position}\t{token}\t{layer}\t{numbers}\n")
        likeliest = np.argsort(-logits, kind="stable")[:5]  # ties by id
        numbers = "\t".join(f"{id}\t{logits[id]:.5f}" for id in likeliest)
        self._file.write(f"top\t{position}\t{token}\t{numbers}\n")


def open_trace(name: str) -> contextlib.AbstractContextManager[TextIO]:
    if name == "-":
        return contextlib.nullcontext(sys.stderr)
    try:
        return open(name, "w", encoding="ascii")
    except OSError as error:
        raise OSError(f"{name}: expected a file to write to, found: {error.strerror}") from None


# ---------------------------------------------------------------------------
# main


def describe(checkpoint: Checkpoint, tokenizer_path: str, llama: Llama, seed: int) -> None:
    c = checkpoint.config
    groups = "" if checkpoint.group_size is None else f" in groups of {checkpoint.group_size}"
    say(f"version {__version__}, instruction set {_kernels.isa}, threads: {llama.transformer.n_threads}")
    say(f"model: {checkpoint.path}, format {checkpoint.format}, {checkpoint.kind}{groups}")
    shape = ", ".join(f"{name} {getattr(c, name)}" for name in (*DIMENSIONS, "head_size"))
    say(f"shape: {shape}, classifier {'' if checkpoint.shared_classifier else 'not '}shared")
    scaling = "" if c.rope_scaling is None else f", {c.rope_scaling.rope_type} scaling by {c.rope_scaling.factor:g}"
    say(f"RoPE base {c.rope_theta:g}{scaling}; norm_eps {c.norm_eps:g}")
    say(f"tokenizer: {tokenizer_path}")
    say(f"seed: {seed}")


def run(arguments: Arguments) -> None:
    """Load what the flags name, then generate or chat."""
    adjusted(arguments)
    seed = arguments.seed or time_ns()
    sampler = Sampler(arguments.temperature, arguments.top_p, seed=seed)
    path = resolve(arguments.model or None)
    checkpoint = Checkpoint.open(path)
    tokenizer_path = str(find_tokenizer(path)) if arguments.tokenizer is None else arguments.tokenizer
    tokenizer = Tokenizer.open(tokenizer_path, checkpoint.config.vocab_size)
    prompt = os.fsdecode(stdin().read()) if arguments.prompt == "-" else arguments.prompt
    with contextlib.ExitStack() as stack:
        if arguments.trace is None:
            transformer = Transformer(checkpoint, arguments.threads)
        else:
            transformer = TracedTransformer(checkpoint, arguments.threads, stack.enter_context(open_trace(arguments.trace)))
        llama = Llama(transformer, tokenizer)
        if arguments.verbose:
            describe(checkpoint, tokenizer_path, llama, seed)
        n_positions = count_positions(arguments.steps, checkpoint.config.seq_len)
        if arguments.mode == "chat":
            chat(llama, sampler, prompt, arguments.system_prompt, n_positions, arguments.verbose)
        else:
            generate(llama, sampler, prompt or "", n_positions, arguments.verbose)


def start(argv: Sequence[str]) -> None:
    """Do what the command line says: the verb that the first argument names, or else a story."""
    if argv and argv[0] in VERBS:
        with contextlib.suppress(SystemExit):  # argparse has printed the help it was asked for
            importlib.import_module(VERBS[argv[0]].module).run(argv[1:])
        return
    arguments = parse(argv)
    if arguments.help:
        put(help_text())
    elif arguments.version:
        put(f"llama2c {__version__}\n")
    else:
        run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line as a function: prints, and returns the exit code. argv: sys.argv without its first."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        try:
            if sys.stdout is None:
                raise OSError("stdout: expected an open file, found it closed")
            start(sys.argv[1:] if argv is None else argv)
            return 0
        except UsageError as error:
            say(f"error: {error}")
            return 2
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):
                if sys.stdout.isatty():
                    put("\n")  # so that the shell's prompt does not stick to the story
            return INTERRUPTED
        except BrokenPipeError:
            return PIPE_CLOSED
        except (OSError, ValueError, MemoryError) as error:
            say(f"error: {_explained(error)}")
            return 1


def _explained(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # not one of ours, which say it all: "[Errno 28] No space left on device"
        return f"{error.filename or 'output'}: {error.strerror}"
    return str(error) or "not enough memory"
