"""The flags: what is refused, and the defaults. What each flag does is tested with run.py and chat.py."""

from __future__ import annotations

import inspect

import pytest
from command_line import Command

from llama2c.commands.flags import FLAGS, Arguments
from llama2c.sampler import Sampler


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.bin", "other.bin"], "Expected one model, found two: model.bin and other.bin"),
        (["model.bin", "-x", "1"], "Unknown flag: -x (--help lists the flags)"),
        (["model.bin", "-t0"], "Unknown flag: -t0 (--help lists the flags)"),
        (["model.bin", "-t=0"], "Unknown flag: -t=0 (--help lists the flags)"),
        (["model.bin", "--temp", "0"], "Unknown flag: --temp (--help lists the flags)"),
        (["model.bin", "-t"], "-t: needs a value"),
        (["model.bin", "-i", "a", "--steps"], "--steps: needs a value"),
        (["model.bin", "-t", "warm"], "-t: expected a number, found 'warm'"),
        (["model.bin", "-t", "1.0x"], "-t: expected a number, found '1.0x'"),
        (["model.bin", "-p", ""], "-p: expected a number, found ''"),
        (["model.bin", "--top-p="], "--top-p: expected a number, found ''"),
        (["model.bin", "-n", "12.5"], "-n: expected an integer, found '12.5'"),
        (["model.bin", "-s", "1e3"], "-s: expected an integer, found '1e3'"),
        (["model.bin", "--threads", "two"], "--threads: expected an integer, found 'two'"),
        (["model.bin", "-m", "sing"], "-m: expected generate or chat, found 'sing'"),
        (["model.bin", "--verbose=1"], "--verbose: takes no value, found '1'"),
    ],
)
def test_usage_errors(command: Command, arguments: list[str], message: str) -> None:
    assert command(*arguments) == (2, b"", f"llama2c: error: {message}\n")


def test_defaults_are_those_of_the_sampler() -> None:
    """run.c and llama2c have the same, so a story and llama.generate draw the same tokens."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(Sampler).parameters.items()}
    arguments = Arguments()
    assert (arguments.temperature, arguments.top_p) == (defaults["temperature"], defaults["top_p"])
    texts = {flag.long: flag.help for flag in FLAGS}
    assert f"(default {defaults['temperature']})" in texts["--temperature"]
    assert f"(default {defaults['top_p']})" in texts["--top-p"]
