"""The flags of a story, a chat or an answer: one table, from which the command line is parsed and the help is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import check_int
from .terminal import UsageError, hint, say, utf8

if TYPE_CHECKING:
    from ..transformer import KVType


@dataclass(slots=True)
class Arguments:
    """What the command line asks for, with the defaults of run.c."""

    model: str = ""
    question: str | None = None  # "-": all of stdin
    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: list[str] = field(default_factory=list)
    schema: str | None = None  # a file
    regex: str | None = None
    grammar: str | None = None  # a file
    seed: int = 0
    steps: int | None = None  # None: not given
    context: int | None = None  # None: that of the model
    kv: KVType = "float32"
    prompt: str | None = None
    tokenizer: str | None = None
    mode: str = "generate"
    system_prompt: str | None = None
    threads: int | None = None
    prompt_cache: str | None = None
    draft: str | None = None
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


CHOICES = {"MODE": ("generate", "chat"), "TYPE": ("float32", "float16")}  # by the name of the value


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in choices:
            raise UsageError(f"expected {' or '.join(choices)}, found {text!r}")
        return text

    return convert


class Flag(NamedTuple):
    """One flag; without `value` (the name of its value in the help) it is a switch."""

    short: str
    long: str
    value: str
    convert: Callable[[str], Any]
    help: str
    repeats: bool = False  # each use adds a value to a list

    @property
    def field(self) -> str:
        """Of Arguments: "--top-p" -> "top_p"."""
        return self.long[2:].replace("-", "_")


FLAGS = (
    Flag("-t", "--temperature", "T", _number, "0 takes the likeliest token (default 1.0)"),
    Flag("-p", "--top-p", "P", _number, "draw from the likeliest that sum to P (default 0.9)"),
    Flag("", "--top-k", "K", _integer, "draw from the K likeliest; 0: from all (default 0)"),
    Flag("", "--min-p", "P", _number, "skip those below P times the likeliest (default 0)"),
    Flag("", "--repetition-penalty", "R", _number, "above 1 avoids repeated tokens (default 1)"),
    Flag("", "--stop", "TEXT", utf8, "end before this text; may be given several times", repeats=True),
    Flag("", "--schema", "FILE", str, "write JSON that is valid for this JSON schema"),
    Flag("", "--regex", "R", utf8, "write a text that matches this regular expression"),
    Flag("", "--grammar", "FILE", str, "write a text of this grammar, in llguidance's Lark"),
    Flag("-s", "--seed", "S", _integer, "same seed, same text; 0: from the clock (default 0)"),
    Flag("-n", "--steps", "N", _integer, "positions; 0: the context (default 256, answers 0)"),
    Flag("", "--context", "N", _integer, "at most N positions, for less memory (default: all)"),
    Flag("", "--kv", "TYPE", _one_of(CHOICES["TYPE"]), "cache in float32 or, half as large, float16"),
    Flag("-i", "--prompt", "TEXT", str, "how a story or chat begins; - reads all of stdin"),
    Flag("-z", "--tokenizer", "FILE", str, "default: the one in the model, beside it, or here"),
    Flag("-m", "--mode", "MODE", _one_of(CHOICES["MODE"]), "generate or chat (default generate)"),
    Flag("-y", "--system-prompt", "TEXT", str, "the system prompt of a chat or an answer"),
    Flag("", "--threads", "N", _integer, "default: OMP_NUM_THREADS, else the fastest number"),
    Flag("", "--prompt-cache", "FILE", str, "keep computed prompts here, for a faster start"),
    Flag("", "--draft", "MODEL", str, "a small model that guesses tokens, for speed"),
    Flag("", "--trace", "FILE", str, "write what passes through the model, to compare"),
    Flag("-v", "--verbose", "", str, "print shape, threads, instruction set and speeds"),
    Flag("", "--version", "", str, "print the version"),
    Flag("-h", "--help", "", str, "print this help"),
)
BY_NAME = {name: flag for flag in FLAGS for name in (flag.short, flag.long) if name}
# The arguments of the API that a flag gives a value to, and its name.
FLAG_OF_PARAM = {flag.field: flag.long for flag in FLAGS if flag.field != "prompt"} | {"n_threads": "--threads"}

USAGE = """\
usage: python -m llama2c [MODEL] [flags]            a story, or a chat (-m chat)
       python -m llama2c MODEL [flags] "QUESTION"   the answer of a chat model"""
ABOUT = """\
MODEL is a file, a Hugging Face folder, or the name of a downloaded model; the
default is the small model that comes with llama2c. QUESTION "-" reads stdin."""
NOTES = """\
examples:
  python -m llama2c download smollm2-135m
  python -m llama2c smollm2-135m "What is the capital of France?"
"""


def parse(argv: Sequence[str]) -> Arguments:
    """The flags, the model and the question, in any order; after "--" there are no flags. UsageError: something else.

    As in run.c, a flag takes the argument after it as its value, whatever that looks like (`-t -1`, `-i -x`). argparse
    refuses such values.
    """
    arguments = Arguments()
    words: list[str] = []
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        flag = BY_NAME.get(name)
        if word == "--":
            words += rest
        elif flag is None and word.startswith("-") and (word != "-" or not words):  # "-" may only be the question
            raise UsageError(f"Unknown flag: {word} ({hint(word, BY_NAME)})")
        elif flag is None:
            words.append(word)
        else:
            _take(arguments, flag, name, value if equals else None, rest)
    _place(arguments, words)
    return arguments


def _take(arguments: Arguments, flag: Flag, name: str, value: str | None, rest: Iterator[str]) -> None:
    """Give a flag its value: the one that was written with "=", or else the next of the rest."""
    if not flag.value:
        if value is not None:
            raise UsageError(f"{name}: takes no value, found {value!r}")
        setattr(arguments, flag.field, True)
        return
    if value is None:
        value = next(rest, None)
    if value is None:
        raise UsageError(f"{name}: needs a value")
    try:
        converted = flag.convert(value)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    if flag.repeats:
        getattr(arguments, flag.field).append(converted)
    else:
        setattr(arguments, flag.field, converted)


def _place(arguments: Arguments, words: list[str]) -> None:
    """The words that are no flags: a model, and a question."""
    if len(words) > 2:
        raise UsageError(f"Expected a model and a question, found a third word: {words[2]} (put the question in quotes)")
    if len(words) == 2:
        if arguments.prompt is not None:
            raise UsageError("-i/--prompt: cannot be used together with a question")
        if not words[0]:
            raise UsageError("Expected a model before the question, found an empty word")
        arguments.question = words[1]
    if words:
        arguments.model = words[0]


def help_text(verbs: Mapping[str, str]) -> str:
    """The help. verbs: name -> what it does."""
    flags = [f"  {flag.short or '  '} {f'{flag.long} {flag.value}':23} {flag.help}\n" for flag in FLAGS]
    lines = [f"  {name:11} {help}\n" for name, help in verbs.items()]
    return f"{USAGE}\n{ABOUT}\n{''.join(flags)}\nverbs (python -m llama2c VERB --help explains it):\n{''.join(lines)}{NOTES}"


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


def choose_context(context: int | None, seq_len: int) -> int:
    """The most positions to use: --context, or those of the model. RequestError: more than the model has, or none."""
    return seq_len if context is None else check_int("context", context, 1, seq_len)


def count_positions(steps: int | None, context: int, default: int = 256) -> int:
    """How many positions to fill: as many as --steps asks for (0: the context), at most the context.

    default: for None, where the flag was not given. A warning if the result is not what was asked for.
    """
    if steps is None:
        steps = min(default, context)
    if steps < 0:
        say(f"warning: --steps {steps} is below 0: using 0, the whole context")
    elif steps > context:
        say(f"warning: --steps {steps} is more than the context: using {context}")
    return min(steps, context) if steps > 0 else context
