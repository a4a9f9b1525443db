"""Calls in texts: every format, cut at every place, and what only looks like a call."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

pytest.importorskip("starlette")

import chat_templates

from llama2c.server.calls import Balance, CallReader, Format, Part, parse_call, recognise

HERMES = Format("<tool_call>", "</tool_call>")
MISTRAL = Format("[TOOL_CALLS]")
PHI = Format("<|tool_call|>", "<|/tool_call|>")
NEMOTRON = Format("<TOOLCALL>", "</TOOLCALL>")
LLAMA3 = Format("", arguments="parameters", most=1)
NAMES = ("f", "get_weather")
Calls = list[tuple[str, str]]


def read(format: Format, pieces: list[str], most: int | None = None) -> tuple[str, Calls]:
    """The text outside of calls, and the calls."""
    reader = CallReader(format, NAMES, most)
    text = ""
    calls: Calls = []
    for news in (*map(reader.feed, pieces), reader.finish()):
        text += news[0]
        for part in news[1]:
            assert (part.number, part.arguments) == (len(calls), "") if part.name else part.number == len(calls) - 1
            if part.name:
                calls.append((part.name, ""))
            else:
                calls[-1] = (calls[-1][0], calls[-1][1] + part.arguments)
    return text, calls


ARGUMENTS = '{"city": "Łódź \\"x\\" </tool_call> }]", "n": [1, {"a": {}}]}'
WEATHER = f'{{"name": "get_weather", "arguments": {ARGUMENTS}}}'
F = '{"name": "f", "arguments": {}}'

# A text, what of it is text, and the calls in it.
CASES: dict[str, tuple[Format, str, str, Calls]] = {
    "hermes": (HERMES, f"<tool_call>\n{WEATHER}\n</tool_call>", "", [("get_weather", ARGUMENTS)]),
    "hermes, text before": (HERMES, f"Let me see.\n\n<tool_call>{F}</tool_call>\n", "Let me see.", [("f", "{}")]),
    "hermes, two": (HERMES, f"<tool_call>\n{F}\n</tool_call>\n<tool_call>\n{WEATHER}\n</tool_call>", "",
                    [("f", "{}"), ("get_weather", ARGUMENTS)]),
    "hermes, an array": (HERMES, f"<tool_call>[{F}, {WEATHER}]</tool_call>", "", [("f", "{}"), ("get_weather", ARGUMENTS)]),
    "hermes, text after": (HERMES, f"<tool_call>{F}</tool_call>\n\nDone. ", "Done. ", [("f", "{}")]),
    "hermes, text between": (HERMES, f"a <tool_call>{F}</tool_call> b <tool_call>{F}</tool_call> c", "a\nb\nc",
                             [("f", "{}")] * 2),
    "hermes, no closing mark": (HERMES, f"<tool_call>\n{F}\n", "", [("f", "{}")]),
    "hermes, half a closing mark": (HERMES, f"<tool_call>\n{F}\n</tool_c", "", [("f", "{}")]),
    "hermes, no brace": (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}\n</tool_call>x', "x", [("f", '{"a": 1}')]),
    "hermes, more keys": (HERMES, '<tool_call>{"name":"f","arguments":{"a":1}, "id": "}"}</tool_call>', "", [("f", '{"a":1}')]),
    "hermes, another order": (HERMES, '<tool_call>{"arguments": {"a":  1}, "name": "f"}</tool_call>', "", [("f", '{"a": 1}')]),
    "hermes, a string": (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\":1}"}</tool_call>', "", [("f", '{"a":1}')]),
    "hermes, nothing": (HERMES, '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    "hermes, null": (HERMES, '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "{}")]),
    "hermes, not JSON": (HERMES, '<tool_call>{"name": "f", "arguments": {a: \'1\'}}</tool_call>', "", [("f", "{a: '1'}")]),
    "hermes, cut": (HERMES, 'So <tool_call>{"name": "f", "arguments": {"a": "b', "So", [("f", '{"a": "b')]),
    "hermes, deep": (HERMES, "<tool_call>" + '{"function": ' + F + "}", "", [("f", "{}")]),
    "mistral": (MISTRAL, f"[TOOL_CALLS] [{F}, {WEATHER}]", "", [("f", "{}"), ("get_weather", ARGUMENTS)]),
    "mistral, ids": (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}, "id": "123456789"}]', "", [("f", '{"a": 1}')]),
    "mistral, no bracket": (MISTRAL, f"[TOOL_CALLS] {F}", "", [("f", "{}")]),
    "phi": (PHI, f"Sure. <|tool_call|>[{WEATHER}]<|/tool_call|>", "Sure.", [("get_weather", ARGUMENTS)]),
    "phi, an object": (PHI, f"<|tool_call|>{F}<|/tool_call|>", "", [("f", "{}")]),
    "phi, as in the request": (PHI, f'<|tool_call|>[{{"type": "function", "function": {F}}}]', "", [("f", "{}")]),
    "granite": (PHI, f"<|tool_call|>[{F}, {F}]", "", [("f", "{}")] * 2),
    "nemotron": (NEMOTRON, f"<TOOLCALL>[{F}]</TOOLCALL>", "", [("f", "{}")]),
    "llama3": (LLAMA3, '{"name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
    "llama3, its mark": (LLAMA3, '<|python_tag|>{"name": "f", "parameters": {}}\n', "", [("f", "{}")]),
    "llama3, its type": (LLAMA3, '{"type": "function", "name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
    "llama3, space": (LLAMA3, ' \n{"name" : "f" ,"parameters":{"a":1} } ', "", [("f", '{"a":1}')]),
    "llama3, two": (LLAMA3, '{"name": "f", "parameters": {}}; {"name": "f", "parameters": {"a": 2}}', "",
                    [("f", "{}"), ("f", '{"a": 2}')]),
    "llama3, an array": (LLAMA3, f"[{F}, {F}]", "", [("f", "{}")] * 2),
    "llama3, text after": (LLAMA3, f"{F} That is all.", "That is all.", [("f", "{}")]),
}  # fmt: skip

# What only looks like a call is text, to the last character.
TEXTS: dict[str, tuple[Format, str]] = {
    "nothing": (HERMES, ""),
    "space": (HERMES, " \n "),
    "text": (HERMES, "  The dog is < 3 years old. \n"),
    "half a mark": (HERMES, "a < <tool <tool_cal"),
    "a mark": (HERMES, "Write <tool_call> first.  "),
    "a mark at the end": (HERMES, "a \n<tool_call>\n"),
    "another function": (HERMES, 'a\n<tool_call>\n{"name": "g", "arguments": {"a": 1}}\n</tool_call>\n'),
    "no name": (HERMES, '<tool_call>{"arguments": {}}</tool_call>'),
    "a name that is none": (HERMES, '<tool_call>{"name": ["f"], "arguments": {}}</tool_call>'),
    "not JSON": (HERMES, "<tool_call>{f(1)}</tool_call>"),
    "cut": (HERMES, 'b <tool_call>{"name": "f", "argum'),
    "a call without marks": (HERMES, F),
    "an empty array": (MISTRAL, "[TOOL_CALLS] [ ] "),
    "an array of numbers": (MISTRAL, "[TOOL_CALLS] [1, 2] x"),
    "JSON": (LLAMA3, '{"name": "Bob", "parameters": {"f": 1}} '),
    "JSON that is cut": (LLAMA3, '{"name": "f", "para'),
    "an array": (LLAMA3, "[1, [2]]"),
    "a call in a text": (LLAMA3, f"I call {F}"),
    "a brace": (LLAMA3, "{}{"),
    "a mark of another kind": (LLAMA3, f"<tool_call>{F}</tool_call>"),
}


def cuts(text: str) -> list[list[str]]:
    """A text in one piece, in two at every place, letter by letter, and in random pieces."""
    found = [[text], [*text], *([text[:i], text[i:]] for i in range(len(text) + 1))]
    chance = random.Random(1)
    for _ in range(20):
        places = sorted(chance.choices(range(len(text) + 1), k=4))
        found.append([text[i:j] for i, j in zip([0, *places], [*places, len(text)], strict=True)])
    return found


@pytest.mark.parametrize("case", CASES)
def test_calls_however_the_text_is_cut(case: str) -> None:
    format, text, *expected = CASES[case]
    for pieces in cuts(text):
        assert read(format, pieces) == tuple(expected), pieces


@pytest.mark.parametrize("case", TEXTS)
def test_what_is_not_a_call_is_text(case: str) -> None:
    format, text = TEXTS[case]
    for pieces in cuts(text):
        assert read(format, pieces) == (text, []), pieces


@pytest.mark.parametrize("case", CASES)
def test_a_text_that_ends_anywhere(case: str) -> None:
    """Up to the name of the first call, all of it is text; the arguments are never longer than what was written."""
    format, text, _, calls = CASES[case]
    for end in range(len(text)):
        found, begun = read(format, [text[:end]])
        if not begun:
            assert found == text[:end]
        for (name, arguments), (whole_name, whole) in zip(begun, calls, strict=False):
            assert name == whole_name and whole.startswith(arguments)


def test_a_random_mix_of_marks_and_json_is_the_same_for_every_cut() -> None:
    """Nothing is known of what comes out, but that the cuts make no difference."""
    chance = random.Random(7)
    bits = [HERMES.opening, HERMES.closing, F, WEATHER, *"{}[],;\"\\ \nfa", '"name": "f"']
    for _ in range(400):
        text = "".join(chance.choices(bits, k=chance.randrange(1, 12)))
        for format in (HERMES, LLAMA3):
            whole = read(format, [text])
            middle = chance.randrange(len(text) + 1)
            assert read(format, [*text]) == read(format, [text[:middle], text[middle:]]) == whole, text


def test_arguments_come_as_they_are_written() -> None:
    """The example of CallReader."""
    reader = CallReader(HERMES, ["f"])
    assert reader.feed("Hm. <tool_") == ("Hm.", [])
    assert reader.feed('call>{"name": "f", "arguments": {"a"') == ("", [Part(0, "f", ""), Part(0, None, '{"a"')])
    assert reader.feed(": 1}}</tool_call>") == ("", [Part(0, None, ": 1}")])
    assert reader.finish() == ("", [])
    assert reader.n_calls == 1


def test_text_is_not_held_longer_than_it_has_to_be() -> None:
    reader = CallReader(HERMES, ["f"])
    assert reader.feed("a b") == ("a b", [])
    assert reader.feed(" <") == ("", [])
    assert reader.feed("b> ") == (" <b>", [])
    plain = CallReader(LLAMA3, ["f"])
    assert plain.feed(" ") == ("", [])
    assert plain.feed("a") == (" a", [])
    assert plain.feed(" ") == (" ", [])


def test_calls_after_the_last_one_wanted_are_dropped() -> None:
    text = f"a <tool_call>{F}</tool_call><tool_call>{WEATHER}</tool_call> b"
    for pieces in cuts(text):
        assert read(HERMES, pieces, most=1) == ("a\nb", [("f", "{}")])


def test_balance() -> None:
    assert Balance().find_end('{"a": "}\\"}", "b": [{}]} {') == 24
    assert Balance().find_end("{[") is None
    assert Balance(depth=1).find_end(' "x"} }') == 5
    balance = Balance()
    assert balance.find_end('{"\\') is None
    assert balance.find_end('{"\\"}"}', 3) == 7


def test_parse_call() -> None:
    assert parse_call('{"arguments": {}, "name": "f"}', NAMES) == ("f", "{}")
    assert parse_call('{"name": "f", "parameters": {"ż": [1.5, null]}}', NAMES) == ("f", '{"ż": [1.5, null]}')
    assert parse_call('{"name": "f", "arguments": [1]}', NAMES) == ("f", "[1]")
    for text in ("{", '{"name": "g"}', '{"function": {"name": 1}}', '{"a":' * 5000 + "1" + "}" * 5000):
        assert parse_call(text, NAMES) is None


# ---------------------------------------------------------------------------
# the format, from the source of a template


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (chat_templates.HERMES, HERMES),
        (chat_templates.MISTRAL, MISTRAL),
        (chat_templates.PHI, PHI),
        (chat_templates.LLAMA3, LLAMA3),
        (json.dumps(chat_templates.LLAMA3), LLAMA3),  # its strings in double quotes
        ("{{ '<TOOLCALL>' }}", NEMOTRON),
        ("{{ tools }}{{ '<tool_call>\n<function=' }}", None),  # Qwen3-Coder
        ("{{ tools }}{{ '<tool_call>' ~ name ~ '<arg_key>' }}", None),  # GLM
        ("{{ tools }}{{ '[TOOL_CALLS]' ~ name ~ '[ARGS]' }}", None),  # Mistral, since 2025
        ("{{ tools }}{{ '<|tool_call_start|>' }}", None),  # LFM2
        (chat_templates.CHATML, None),
        (chat_templates.ZEPHYR, None),
        ("", None),
    ],
)
def test_recognise(source: str, expected: Any) -> None:
    assert recognise(source) == expected
