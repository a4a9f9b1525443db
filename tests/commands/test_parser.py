"""The parser of the verbs' flags: wrong command lines are errors of one line."""

from __future__ import annotations

import pytest

from llama2c.commands.parser import Parser
from llama2c.commands.terminal import UsageError


def test_parser_raises() -> None:
    parser = Parser()
    parser.add_argument("--number", type=int)
    with pytest.raises(UsageError, match=r"^argument --number: invalid int value: 'x'$"):
        parser.parse_args(["--number", "x"])


def test_unknown_flags_of_a_verb() -> None:
    parser = Parser()
    parser.add_argument("-n", "--number", type=int)
    assert [action.dest for action in parser.actions] == ["help", "number"]
    for word, near in (("--nubmer", "did you mean --number? "), ("--x", ""), ("-q", "")):
        with pytest.raises(UsageError) as error:
            parser.parse_args([word, "1"])
        assert str(error.value) == f"unrecognized arguments: {word} 1 ({near}--help lists the flags)"
    with pytest.raises(UsageError, match=r"^unrecognized arguments: more$"):
        parser.parse_args(["more"])
