"""The flags of a story or a chat: one table, from which the command line is parsed and the help is printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .terminal import UsageError, say


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
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: list[str] = field(default_factory=list)
    context: int | None = None


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
    Flag("-t", "--temperature", "T", _number, "0 takes the likeliest token; higher values vary more (default 1.0)"),
    Flag("-p", "--top-p", "P", _number, "draw from the likeliest tokens that make up P; 0 or 1: from all (default 0.9)"),
    Flag("-s", "--seed", "S", _integer, "the same seed gives the same story (default 0: from the clock)"),
    Flag("-n", "--steps", "N", _integer, "positions, including those of the prompt; 0: the whole context (default 256)"),
    Flag("-i", "--prompt", "TEXT", str, "how the story begins, in chat the first message; - reads all of stdin"),
    Flag("-z", "--tokenizer", "FILE", str, "default: the one in a GGUF file or beside the model, or tokenizer.bin here"),
    Flag("-m", "--mode", "MODE", _mode, "generate or chat (default generate)"),
    Flag("-y", "--system-prompt", "TEXT", str, "in chat: the system prompt (default: asks for one)"),
    Flag("", "--threads", "N", _integer, "default: OMP_NUM_THREADS, else the number of cores, fewer for tiny models"),
    Flag("", "--trace", "FILE", str, "write what passes through the model, to compare implementations (see below)"),
    Flag("-v", "--verbose", "", str, "print the model's shape, threads, instruction set and speeds on stderr"),
    Flag("", "--version", "", str, "print the version"),
    Flag("-h", "--help", "", str, "print this help"),
)
BY_NAME = {name: flag for flag in FLAGS for name in (flag.short, flag.long) if name}

USAGE = "usage: python -m llama2c [MODEL] [flags]\n       python -m llama2c VERB ... (VERB --help explains it)"
ABOUT = """\
Run a Llama model: print a story, or chat. MODEL is a file, a Hugging Face folder, or the name of a
downloaded model; without one, the small model that comes with llama2c tells a story."""
NOTES = """\
stdout has the story only; speed, warnings and errors go to stderr. The exit code is 0, 1 after an error, 2 for
a wrong command line, 130 after Ctrl-C.

--trace writes lines of fields separated by tabs ("-": to stderr). For each position and layer, the norm and the
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
    """The flags and the one model file, in any order. UsageError: something else.

    As in run.c, a flag takes the argument after it as its value, whatever that looks like (`-t -1`, `-i -x`). argparse
    refuses such values.
    """
    arguments = Arguments()
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        flag = BY_NAME.get(name)
        if flag is None:
            if word.startswith("-"):
                raise UsageError(f"Unknown flag: {word} (--help lists the flags)")
            if arguments.model:
                raise UsageError(f"Expected one model, found two: {arguments.model} and {word}")
            arguments.model = word
            continue
        if not flag.value and equals:
            raise UsageError(f"{name}: takes no value, found {value!r}")
        if flag.value and not equals:
            following = next(rest, None)
            if following is None:
                raise UsageError(f"{name}: needs a value")
            value = following
        try:
            setattr(arguments, flag.long[2:].replace("-", "_"), flag.convert(value) if flag.value else True)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
    return arguments


def help_text(verbs: dict[str, str]) -> str:
    """The help. verbs: name -> what it does."""
    flags = [f"  {flag.short or '  '} {f'{flag.long} {flag.value}':23} {flag.help}\n" for flag in FLAGS]
    lines = [f"  {name:26} {help}\n" for name, help in verbs.items()]
    return f"{USAGE}\n\n{ABOUT}\n\n{''.join(flags)}\nverbs:\n{''.join(lines)}\n{NOTES}"


def adjust(arguments: Arguments) -> None:
    """Correct the values that run.c corrects too; a warning names each."""
    if arguments.temperature < 0:
        say(f"warning: --temperature {arguments.temperature:g} is below 0: using 0")
        arguments.temperature = 0.0
    if arguments.top_p < 0 or arguments.top_p > 1:  # the sampler refuses a NaN
        say(f"warning: --top-p {arguments.top_p:g} is outside 0 to 1: using 0.9")
        arguments.top_p = 0.9
    if -(2**64) < arguments.seed < 0:
        arguments.seed += 2**64  # no warning: every seed is as good as another


def count_positions(steps: int | None, seq_len: int) -> int:
    """How many positions to fill: as many as --steps asks for, at most the context; a warning if that is not what was asked."""
    if steps is None:
        return min(256, seq_len)
    if steps < 0:
        say(f"warning: --steps {steps} is below 0: using 0, the whole context")
    elif steps > seq_len:
        say(f"warning: --steps {steps} is more than the context: using {seq_len}")
    return min(steps, seq_len) if steps > 0 else seq_len
