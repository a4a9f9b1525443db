"""Calls of functions in the text that a model writes: recognised while the text arrives, whatever pieces it comes in.

Functions of text alone. tools.py has what a request says about its tools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Generator
from typing import Any, NamedTuple, TypeAlias

from ..text.stops import overlap

PYTHON_TAG = "<|python_tag|>"  # what Llama 3 may write before a call


class Format(NamedTuple):
    """How a model writes calls: JSON objects with a name and arguments, one or an array of them, between two marks.

    opening    the mark before them; "": there is none, and a text is calls if it begins with them
    closing    the mark after them. Models forget it, so it may be missing
    arguments  the key of the arguments
    most       calls in a text that its templates take; None: any number
    """

    opening: str
    closing: str = ""
    arguments: str = "arguments"
    most: int | None = None


class Known(NamedTuple):
    """A format, and how the source of a chat template shows that the model uses it."""

    format: Format
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()  # what templates of other formats with the same mark have


KNOWN = (
    Known(Format("[TOOL_CALLS]"), ("[TOOL_CALLS]",), ("[ARGS]", "[CALL_ID]")),  # Mistral
    Known(Format("<|tool_call|>", "<|/tool_call|>"), ("<|tool_call|>",)),  # Granite 3, Phi-4-mini
    Known(Format("<TOOLCALL>", "</TOOLCALL>"), ("<TOOLCALL>",)),  # Nemotron
    # Hermes, Qwen, SmolLM, Granite 4
    Known(Format("<tool_call>", "</tool_call>"), ("<tool_call>",), ("<function=", "<arg_key>")),
    Known(
        Format("", arguments="parameters", most=1),  # Llama 3.1 and 3.2
        ('{"name": "', '"parameters": '),
        ("<function=", "<arg_key>", "<|tool_call_start|>", "functools[", "tool▁call"),
    ),
)


def recognise(source: str) -> Format | None:
    """How a model with this chat template writes calls. None: in no way that is known here."""
    source = source.replace('\\"', '"')  # in a string of the template
    for known in KNOWN:
        if all(part in source for part in known.has) and not any(part in source for part in known.lacks):
            return known.format
    return None


# ---------------------------------------------------------------------------
# reading


class Part(NamedTuple):
    """What is new of a call. The first part of a call has its name; the arguments of all its parts, joined, are one text."""

    number: int  # of the call in the answer, from 0
    name: str | None
    arguments: str


# The beginning of a call, as nearly all are written: after it, the arguments can be given out as they arrive. It has limits, so
# that looking for it again with each piece costs little.
_S = r"\s{0,64}"
HEADER = re.compile(rf'\{{{_S}"name"{_S}:{_S}"([^"\\]{{0,64}})"{_S},{_S}"(?:arguments|parameters)"{_S}:{_S}(?=\{{)')
News: TypeAlias = "tuple[str, list[Part]]"
Steps: TypeAlias = "Generator[None, None, None]"  # each yield waits for more text
Question: TypeAlias = "Generator[None, None, bool]"


class CallReader:
    """Divides a text into calls and other text. How the text is cut into pieces makes no difference to what comes out, joined.

    With the format of Hermes and the name "f":
        feed('Hm. <tool_')                           -> "Hm.", []
        feed('call>{"name": "f", "arguments": {"a"') -> "", [Part(0, "f", ""), Part(0, None, '{"a"')]
        feed(': 1}}</tool_call>')                    -> "", [Part(0, None, ': 1}')]

    A call of a function that is not among `names`, and whatever else is not a call, is text. White space around calls is
    dropped; between two texts there is a line break. The arguments are what the model wrote, even if they are not JSON or stop
    in the middle. most: calls after so many are dropped.
    """

    def __init__(self, format: Format, names: Collection[str], most: int | None = None) -> None:
        self._format, self._names, self._most = format, frozenset(names), most
        self._buffer = ""  # what was neither given out nor dropped
        self._at = 0  # how far it was read: before that is what may turn out to be text
        self._ended = False
        self._texts: list[str] = []
        self._has_text = self._after_call = False
        self._parts: list[Part] = []
        self.n_calls = 0
        self._run = self._read_unmarked() if not format.opening else self._read_marked()

    def feed(self, text: str) -> News:
        """What is now known: text outside of calls, and parts of calls."""
        self._buffer += text
        return self._go_on()

    def finish(self) -> News:
        """The rest, at the end of the text."""
        self._ended = True
        return self._go_on()

    def _go_on(self) -> News:
        next(self._run, None)
        news = "".join(self._texts), self._parts
        self._texts, self._parts = [], []
        return news

    # What is read becomes text, or it is dropped.

    def _give(self, n: int) -> None:
        """The first n characters are text."""
        if n:
            if self._has_text and self._after_call:
                self._texts.append("\n")  # in place of the calls
            self._texts.append(self._buffer[:n])
            self._has_text, self._after_call = True, False
        self._drop(n)

    def _drop(self, n: int) -> None:
        self._buffer = self._buffer[n:]
        self._at = max(self._at - n, 0)

    # The parts of a text, from the largest to the smallest.

    def _read_marked(self) -> Steps:
        while (yield from self._find_opening()):
            before = self.n_calls
            yield from self._read_block()
            if self.n_calls > before:
                yield from self._read_closing()
            else:
                self._give(self._at)

    def _read_unmarked(self) -> Steps:
        yield from self._skip_space()
        if (yield from self._follows(PYTHON_TAG)):
            self._at += len(PYTHON_TAG)
        while True:
            before = self.n_calls
            yield from self._read_block()
            if self.n_calls == before:
                break
            yield from self._skip_space()
            if (yield from self._follows(";")):
                self._at += 1
                yield from self._skip_space()
            self._drop(self._at)
        while not self._ended:
            self._give(len(self._buffer))
            yield
        self._give(len(self._buffer))

    def _find_opening(self) -> Question:
        """Give out the text before the next opening mark, and read the mark. False: there is none."""
        mark = self._format.opening
        while (start := self._buffer.find(mark)) < 0:
            if self._ended:
                self._give(len(self._buffer))
                return False
            sure = self._buffer[: len(self._buffer) - overlap(self._buffer, mark)]
            self._give(len(sure.rstrip()))
            yield
        self._give(len(self._buffer[:start].rstrip()))
        self._at = self._buffer.index(mark) + len(mark)
        return True

    def _read_closing(self) -> Steps:
        yield from self._skip_space()
        if (yield from self._follows(self._format.closing)):
            self._at += len(self._format.closing)
            yield from self._skip_space()
        elif self._ended and self._format.closing.startswith(self._buffer[self._at :]):
            self._at = len(self._buffer)  # the mark was cut short
        self._drop(self._at)

    def _read_block(self) -> Steps:
        """A call, or an array of calls."""
        yield from self._skip_space()
        if not (yield from self._follows("[")):
            yield from self._read_call()
            return
        self._at += 1
        while True:
            yield from self._skip_space()
            if not (yield from self._read_call()):
                break
            yield from self._skip_space()
            if (yield from self._follows(",")):
                self._at += 1
        if (yield from self._follows("]")):
            self._at += 1

    def _read_call(self) -> Question:
        """An object that is a call. False: something else; then nothing is read."""
        if not (yield from self._follows("{")):
            return False
        balance = Balance()
        looked = start = self._at
        while True:
            header = HEADER.match(self._buffer, start)
            if header and header[1] in self._names:
                self._begin_call(header[1], header.end())
                yield from self._read_arguments()
                yield from self._read_rest()
                return True
            end = balance.find_end(self._buffer, looked)
            if end is not None:
                call = parse_call(self._buffer[start:end], self._names)
                if call is None:
                    return False
                self._begin_call(call[0], end)
                self._add_arguments(call[1])
                return True
            if self._ended:
                return False
            looked = len(self._buffer)
            yield

    def _begin_call(self, name: str, end: int) -> None:
        """A call of this name; what is read up to `end` is dropped."""
        self.n_calls += 1
        self._after_call = True
        self._add(Part(self.n_calls - 1, name, ""))
        self._drop(end)

    def _add_arguments(self, text: str) -> None:
        self._add(Part(self.n_calls - 1, None, text))

    def _add(self, part: Part) -> None:
        if self._most is None or part.number < self._most:
            self._parts.append(part)

    def _read_arguments(self) -> Steps:
        balance = Balance()
        while True:
            end = balance.find_end(self._buffer)
            n = len(self._buffer) if end is None else end
            if n:
                self._add_arguments(self._buffer[:n])
                self._drop(n)
            if end is not None or self._ended:
                return
            yield

    def _read_rest(self) -> Steps:
        """What a call has after its arguments: more keys, which mean nothing, and the brace, which models forget."""
        yield from self._skip_space()
        if (yield from self._follows("}")):
            self._at += 1
        elif (yield from self._follows(",")):
            balance = Balance(depth=1)
            looked = self._at
            while (end := balance.find_end(self._buffer, looked)) is None and not self._ended:
                looked = len(self._buffer)
                yield
            self._at = len(self._buffer) if end is None else end
        self._drop(self._at)

    # What comes next.

    def _skip_space(self) -> Steps:
        while True:
            rest = self._buffer[self._at :]
            self._at += len(rest) - len(rest.lstrip())
            if self._at < len(self._buffer) or self._ended:
                return
            yield

    def _follows(self, mark: str) -> Question:
        """Whether this text comes next. It is not read."""
        while len(self._buffer) < self._at + len(mark):
            if self._ended or not mark.startswith(self._buffer[self._at :]):
                return False
            yield
        return self._buffer.startswith(mark, self._at)


class Balance:
    """Finds the end of a JSON object or array in a text that arrives in pieces, by its brackets. depth: how many are open."""

    __slots__ = ("_depth", "_escaped", "_quoted")

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._quoted = self._escaped = False

    def find_end(self, text: str, start: int = 0) -> int | None:
        """The index after the last bracket; None: it has not come. Looks at text[start:], which follows what it saw before."""
        for i in range(start, len(text)):
            character = text[i]
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = character == "\\"
                self._quoted = character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return i + 1
        return None


def parse_call(text: str, names: Collection[str]) -> tuple[str, str] | None:
    """The name and the arguments of a call in any order of its keys: '{"arguments": {}, "name": "f"}' -> ("f", "{}").

    It may be inside of {"type": "function", "function": ...}, and its arguments may be missing, or a string with JSON in it.
    None: it is not JSON, or not a call of one of these functions.
    """
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name")
    if not isinstance(name, str) or name not in names:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        return name, arguments
    return name, "{}" if arguments is None else json.dumps(arguments, ensure_ascii=False)

