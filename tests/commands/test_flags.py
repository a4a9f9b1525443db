"""The flags: what is refused, and the defaults. What each flag does is tested with run.py and chat.py."""

from __future__ import annotations

import inspect

import pytest
from command_line import Command

from llama2c.commands.flags import FLAGS, Arguments, count_positions, parse
from llama2c.sampler import Sampler


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["model.bin", "How", "are you?"],
            "Expected a model and a question, found a third word: are you? (put the question in quotes)",
        ),
        (["model.bin", "Hi", "-i", "Once"], "-i/--prompt: cannot be used together with a question"),
        (["--prompt=Once", "model.bin", "Hi"], "-i/--prompt: cannot be used together with a question"),
        (["", "Hi"], "Expected a model before the question, found an empty word"),
        (["model.bin", ""], "The question is empty"),
        (["model.bin", " \n"], "The question is empty"),
        (["model.bin", "-"], "The question is empty"),  # stdin is
        (["model.bin", "a\udcff"], "question: expected valid UTF-8, found byte 0xFF at index 1"),
        (["-", "model.bin"], "Unknown flag: - (--help lists the flags)"),
        (["model.bin", "-x", "1"], "Unknown flag: -x (--help lists the flags)"),
        (["model.bin", "-t0"], "Unknown flag: -t0 (did you mean -t? --help lists the flags)"),
        (["model.bin", "-t=0"], "Unknown flag: -t=0 (did you mean -t? --help lists the flags)"),
        (["model.bin", "--temp", "0"], "Unknown flag: --temp (did you mean --temperature? --help lists the flags)"),
        (["model.bin", "--temprature=0"], "Unknown flag: --temprature=0 (did you mean --temperature? --help lists the flags)"),
        (["model.bin", "-seed", "0"], "Unknown flag: -seed (did you mean --seed? --help lists the flags)"),
        (["model.bin", "--top_k", "4"], "Unknown flag: --top_k (did you mean --top-k? --help lists the flags)"),
        (["model.bin", "--qqq"], "Unknown flag: --qqq (--help lists the flags)"),
        (["model.bin", "-t"], "-t: needs a value"),
        (["model.bin", "-i", "a", "--steps"], "--steps: needs a value"),
        (["model.bin", "-t", "warm"], "-t: expected a number, found 'warm'"),
        (["model.bin", "-t", "1.0x"], "-t: expected a number, found '1.0x'"),
        (["model.bin", "-p", ""], "-p: expected a number, found ''"),
        (["model.bin", "--top-p="], "--top-p: expected a number, found ''"),
        (["model.bin", "-n", "12.5"], "-n: expected an integer, found '12.5'"),
        (["model.bin", "-s", "1e3"], "-s: expected an integer, found '1e3'"),
        (["model.bin", "--threads", "two"], "--threads: expected an integer, found 'two'"),
        (["model.bin", "--top-k", "1.5"], "--top-k: expected an integer, found '1.5'"),
        (["model.bin", "--min-p", "half"], "--min-p: expected a number, found 'half'"),
        (["model.bin", "--repetition-penalty="], "--repetition-penalty: expected a number, found ''"),
        (["model.bin", "--context", "2k"], "--context: expected an integer, found '2k'"),
        (["model.bin", "--stop"], "--stop: needs a value"),
        (["model.bin", "--stop", "\udce4"], "--stop: expected valid UTF-8, found byte 0xE4 at index 0"),
        (["model.bin", "-m", "sing"], "-m: expected generate or chat, found 'sing'"),
        (["model.bin", "--verbose=1"], "--verbose: takes no value, found '1'"),
    ],
)
def test_usage_errors(command: Command, arguments: list[str], message: str) -> None:
    assert command(*arguments) == (2, b"", f"llama2c: error: {message}\n")


def test_defaults_are_those_of_the_sampler() -> None:
    """run.c and llama2c have the same, so a story and llama.generate draw the same tokens."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(Sampler).parameters.items()}
    del defaults["seed"]  # None is 0 here
    assert (defaults.pop("frequency_penalty"), defaults.pop("presence_penalty")) == (0.0, 0.0)  # off, and no flags
    assert {name: getattr(Arguments(), name) for name in defaults} == defaults
    texts = {flag.field: flag.help for flag in FLAGS}
    for name, value in defaults.items():
        assert f"(default {value:g})" in texts[name].replace("1.0)", "1)")


def test_words_and_flags_in_any_order() -> None:
    for argv in (
        ["model.bin", "-t", "0", "Hi", "--stop", "a", "--stop=b"],
        ["--stop", "a", "model.bin", "Hi", "--stop", "b", "-t", "0"],
        ["-t", "0", "--stop=a", "--stop", "b", "--", "model.bin", "Hi"],
    ):
        arguments = parse(argv)
        assert (arguments.model, arguments.question) == ("model.bin", "Hi")
        assert (arguments.temperature, arguments.stop) == (0, ["a", "b"])
    assert Arguments().stop == []  # each has a list of its own


def test_after_two_dashes_there_are_no_flags() -> None:
    arguments = parse(["model.bin", "-v", "--", "--help me -t 0"])
    assert (arguments.model, arguments.question, arguments.help) == ("model.bin", "--help me -t 0", False)
    assert parse(["-i", "--", "model.bin"]).prompt == "--"


@pytest.mark.parametrize(
    ("steps", "context", "default", "positions"),
    [(None, 64, 256, 64), (None, 500, 256, 256), (None, 500, 500, 500), (0, 64, 5, 64), (9, 64, 5, 9), (65, 64, 5, 64)],
)
def test_count_positions(steps: int | None, context: int, default: int, positions: int) -> None:
    assert count_positions(steps, context, default) == positions
