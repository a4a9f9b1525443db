"""The command line as a function: finds the verb, and turns every error into one line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from .. import __version__, _warn_if_stale
from .flags import FLAG_OF_PARAM, Arguments, help_text, parse
from .guess import guess
from .terminal import UsageError, describe_error, named_as, put, say

INTERRUPTED = 130  # the exit codes a shell gives for SIGINT and SIGPIPE
PIPE_CLOSED = 141


class Verb(NamedTuple):
    """What to do instead of a story, if the first argument names it. `module` has run(argv). A file of that name is ./NAME."""

    module: str
    help: str


VERBS = {
    "batch": Verb("batch", "answer a file of prompts; may be interrupted, and goes on"),
    "bench": Verb("bench", "measure how many tokens a second a model reads and writes"),
    "completion": Verb("completion", "print a script that completes llama2c in bash, zsh or fish"),
    "download": Verb("download", "fetch a model from the Hugging Face hub, with its tokenizer"),
    "doctor": Verb("doctor", "say what a bug report needs, and what does not work here"),
    "export": Verb("export", "convert or quantise a model, from and to GGUF too"),
    "perplexity": Verb("perplexity", "measure how likely a model finds a text, compare two models"),
    "serve": Verb("serve", "answer over HTTP, with OpenAI's interface"),
    "verify": Verb("verify", "draw the answers of a batch again, and say which differ"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says, print, and return the exit code. argv: sys.argv without its first."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        try:
            if sys.stdout is None:
                raise OSError("stdout: expected an open file, found it closed")
            _warn_if_stale()
            start(sys.argv[1:] if argv is None else argv)
            return 0
        except UsageError as error:
            say(f"error: {error}")
            return 2
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):
                if sys.stdout.isatty():
                    put("\n")  # so that the prompt of the shell is on a line of its own
            return INTERRUPTED
        except BrokenPipeError:
            return PIPE_CLOSED
        except (ImportError, OSError, ValueError, MemoryError) as error:
            say(f"error: {describe_error(error)}")
            return 1


def start(argv: Sequence[str]) -> None:
    """Do what the command line says: the verb that the first argument names, or else a story, a chat or an answer.

    `help` is --help, and `help VERB` is VERB --help, unless there is a file of that name.
    """
    if argv and argv[0] == "help" and not os.path.lexists("help"):
        argv = [*argv[1:], "--help"]
    if argv and argv[0] in VERBS:
        module = importlib.import_module(f"llama2c.commands.{VERBS[argv[0]].module}")
        with contextlib.suppress(SystemExit):  # argparse has printed the help it was asked for
            module.run(argv[1:])
        return
    arguments = understand(argv)
    if arguments.help:
        put(help_text({name: verb.help for name, verb in VERBS.items()}))
    elif arguments.version:
        put(f"llama2c {__version__}\n")
    else:
        from .run import run  # loads NumPy, which nothing above needs

        with named_as(FLAG_OF_PARAM):
            run(arguments)


def understand(argv: Sequence[str]) -> Arguments:
    """What the flags say. UsageError: as parse, but first of all about the first word, if that was probably meant otherwise."""
    meant = guess(argv, VERBS)
    try:
        arguments = parse(argv)
    except UsageError as error:
        raise UsageError(meant or str(error)) from None
    if meant and not (arguments.help or arguments.version):
        raise UsageError(meant)
    return arguments
