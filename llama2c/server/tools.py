"""The tools of a chat: what a request says of them, what the chat template and the grammar get, and the calls in an answer.

No server and no model. calls.py finds calls in a text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

from ..constraints import grammar_of_schema
from ..errors import RequestError
from ..text.chat import variables
from ..text.tokenizer import Tokenizer
from .calls import CallReader, Format, recognise
from .fields import Body, array, boolean, check_keys, name_of

MOST_TOOLS = 128
TOOLS_LENGTH = 1 << 17  # characters of all tools as JSON
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
VARIABLES = ("tools", "xml_tools")  # what templates call the tools; the second is SmolLM3's
ID_LENGTH = 9  # letters and digits: the templates of Mistral take no others
NO_PACKAGE = "needs the package llguidance: pip install 'llama2c[json]'"


class Function(NamedTuple):
    """A function that a model may call. tool: as a chat template takes it."""

    name: str
    tool: dict[str, Any]
    parameters: dict[str, Any]  # the schema of its arguments
    strict: bool


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request.

    functions  all of them; the model is told of each
    chosen     those that it may call
    required   whether the answer has to be a call
    most       calls in an answer; None: any number
    """

    functions: tuple[Function, ...]
    chosen: tuple[Function, ...]
    required: bool
    most: int | None

    @property
    def constrained(self) -> bool:
        """Whether a grammar says what the answer may be."""
        return self.required or any(function.strict for function in self.chosen)


# ---------------------------------------------------------------------------
# what a request says


def read_tools(body: Body) -> Tools | None:
    """tools, tool_choice and parallel_tool_calls. None: nothing is to be called. RequestError: one of them is wrong."""
    functions = [read_function(i, tool) for i, tool in enumerate(array(body, "tools", MOST_TOOLS) or [])]
    names = [function.name for function in functions]
    if len(set(names)) < len(names):
        raise RequestError("tools: expected functions with names of their own, found one twice", "tools")
    if len(json.dumps([function.tool for function in functions])) > TOOLS_LENGTH:
        raise RequestError(f"tools: expected at most {TOOLS_LENGTH} characters in all, found more", "tools")
    one = body.get("parallel_tool_calls") is not None and not boolean(body, "parallel_tool_calls")
    required, named = read_choice(body.get("tool_choice"))
    if required and not functions:
        raise RequestError("tool_choice: needs tools", "tool_choice")
    if named is not None and named not in names:
        raise RequestError(f"tool_choice: expected the name of one of the tools, found {named[:64]!r}", "tool_choice")
    if not functions or body.get("tool_choice") == "none":
        return None
    chosen = tuple(function for function in functions if named in (None, function.name))
    return Tools(tuple(functions), chosen, required, 1 if one or named is not None else None)


def read_choice(choice: Any) -> tuple[bool, str | None]:
    """Whether a tool has to be called, and which one: "required" -> (True, None)."""
    name = "tool_choice"
    if choice in (None, "none", "auto", "required"):
        return choice == "required", None
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        expected = 'expected "none", "auto", "required" or {"type": "function", "function": {"name": ...}}'
        raise RequestError(f"{name}: {expected}, found {json.dumps(choice)[:40]}", name)
    check_keys(choice, ("type", "function"), name)
    check_keys(function, ("name",), name)
    return True, function["name"]


def read_function(i: int, tool: Any) -> Function:
    where = f"tools[{i}]"

    def wrong(message: str) -> RequestError:
        return RequestError(f"{where}: {message}", "tools")

    kind = tool.get("type") if isinstance(tool, dict) else None
    function = tool.get("function") if kind == "function" else None
    if not isinstance(function, dict):
        raise wrong('expected {"type": "function", "function": {...}}; no other tools are supported')
    check_keys(tool, ("type", "function"), where, "tools")
    check_keys(function, ("name", "description", "parameters", "strict"), where, "tools")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise wrong("expected a name of 1 to 64 letters, digits, _ and -")
    if not isinstance(function.get("description"), (str, type(None))):
        raise wrong(f"expected a string as description, found {name_of(function['description'])}")
    if not isinstance(function.get("strict"), (bool, type(None))):
        raise wrong(f"expected a boolean as strict, found {name_of(function['strict'])}")
    described = {key: value for key, value in function.items() if value is not None and key != "strict"}
    if parameters is None:  # there are none
        described["parameters"] = {"type": "object", "properties": {}}
        parameters = {**described["parameters"], "additionalProperties": False}
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise wrong('expected a schema with the type "object" as parameters')
    return Function(name, {"type": "function", "function": described}, parameters, function.get("strict") is True)


# ---------------------------------------------------------------------------
# what the model gets


class Use(NamedTuple):
    """How the model at hand uses the tools of a request."""

    tools: Tools
    variable: str  # of the chat template
    format: Format
    marks: Mapping[int, str]  # special tokens that mark calls. They have no text, so the marks are put there for them
    grammar: str | None  # what the answer has to be

    @property
    def template_options(self) -> dict[str, Any]:
        return {self.variable: [function.tool for function in self.tools.functions]}

    @property
    def most(self) -> int | None:
        """Calls in an answer; None: any number."""
        return self.format.most or self.tools.most

    def calls_of(self, messages: Any, seed: int) -> Calls:
        """What reads the choice with this seed in the answer to these messages."""
        return Calls(self, json.dumps([messages, seed]))


def prepare(tools: Tools, tokenizer: Tokenizer) -> Use:
    """How a model with this tokenizer uses tools.

    RequestError: its chat template has no tools, or makes it write calls in a way that is not known here; something cannot be
    enforced. OSError: there is no Jinja2.
    """
    template = tokenizer.chat_template
    if template is None:
        raise RequestError("tools: the model has no chat template, so nothing can tell it of tools", "tools")
    variable = variable_of(variables(template))
    format = recognise(template.source)
    if variable is None:
        raise RequestError("tools: the chat template of the model has no tools", "tools")
    if format is None:
        raise RequestError("tools: the chat template of the model has a form of calls that is not supported", "tools")
    special = {mark: id for mark in format[:2] if mark and (id := special_id(tokenizer, mark)) is not None}
    grammar = write_grammar(tools, format, special) if tools.constrained else None
    return Use(tools, variable, format, {id: mark for mark, id in special.items()}, grammar)


def variable_of(names: Iterable[str]) -> str | None:
    """Where a template that looks up these names expects the tools."""
    found = set(names)
    return next((name for name in VARIABLES if name in found), None)


def special_id(tokenizer: Tokenizer, text: str) -> int | None:
    """The special token that is written like this; None: it is text like any other."""
    try:
        ids = tokenizer.encode(text, bos=False)
    except RequestError:
        return None
    return ids[0] if len(ids) == 1 and not tokenizer.piece(ids[0]) else None


# ---------------------------------------------------------------------------
# what the answer has to be


SPACE = '(" " | "\\n")?'


def write_grammar(tools: Tools, format: Format, special: Mapping[str, int]) -> str:
    """What an answer may be, for `constraints.constrain(grammar=)`: calls, or with tools that are not required also text.

    special: ids of those marks that are special tokens. Where a call is required or the function is strict, the arguments
    follow its schema; others are any object. RequestError: a schema has what cannot be enforced.
    """
    param = "tool_choice" if tools.required else "tools"
    if find_spec("llguidance") is None:
        reason = "a call that is required" if tools.required else "a function that is strict"
        raise RequestError(f"{param}: {reason} {NO_PACKAGE}", param)
    rules = marked_answer(tools, format, special) if format.opening else unmarked_answer(tools.required)
    rules.append(f"call: {' | '.join(f'call_{i}' for i in range(len(tools.chosen)))}")
    for i, function in enumerate(tools.chosen):
        head = json.dumps(f'{{"name": "{function.name}", "{format.arguments}": ')
        rules.append(f'call_{i}: {head} {arguments_rule(function, tools.required or function.strict)} "}}"')
    return "\n".join(rules)


def unmarked_answer(required: bool) -> list[str]:
    """One call, or a text that does not begin like one."""
    if required:
        return ["start: call"]
    return ["start: TEXT | call", r"TEXT: /([^\[{<\s]|<[^|])(?s:.*)/"]


def marked_answer(tools: Tools, format: Format, special: Mapping[str, int]) -> list[str]:
    """Calls between marks, or text with such calls in it: after the first mark there is a call."""

    def spelled(mark: str) -> str:
        return f"<[{special[mark]}]>" if mark in special else json.dumps(mark)

    opening = spelled(format.opening)
    closing = f" {SPACE} {spelled(format.closing)}" if format.closing else ""
    one = tools.most == 1
    items = "call" if one else 'call (", " call)*'
    calls = f'calls: {SPACE} (call | "[" {items} "]"){closing}'
    if tools.required:
        return [f"start: {opening} calls" if one else f"start: {opening} calls ({SPACE} {opening} calls)*", calls]
    start = "start: text | opened calls" if one else "start: (opened calls)* text"
    spelled_mark = f"spelled[lazy]: TEXT {json.dumps(format.opening)}"  # lazy: it ends as soon as it has the mark
    rules = [start, calls, "text: TEXT", r"TEXT: /(?s:.*)/", spelled_mark]
    if format.opening not in special:
        return [*rules, "opened: spelled"]
    return [*rules, "opened: spelled | special", f"special: TEXT {opening}"]


def arguments_rule(function: Function, follows_schema: bool) -> str:
    if not follows_schema:
        return '%json {"type": "object"}'
    try:
        return grammar_of_schema({"type": "object", **function.parameters})
    except RequestError as error:
        raise RequestError(f"tools: function {function.name!r}: {error}", "tools") from None


# ---------------------------------------------------------------------------
# the calls in an answer


class Calls:
    """The calls in one choice of an answer, as entries of `tool_calls` in a stream: one that begins a call, then its arguments.

    key: what the ids of the calls are made from, so that the same request gets the same
    """

    def __init__(self, use: Use, key: str) -> None:
        self._reader = CallReader(use.format, [function.name for function in use.tools.chosen], use.most)
        self._marks, self._key = use.marks, key

    def read(self, pieces: Iterable[tuple[int, str]], reason: str | None) -> tuple[str, list[dict[str, Any]], str | None]:
        """Of tokens, each with its text, and the finish_reason: the text outside of calls, entries, and the finish_reason."""
        text, parts = self._reader.feed("".join([text + self._marks.get(token, "") for token, text in pieces]))
        if reason is not None:
            rest, more = self._reader.finish()
            text, parts = text + rest, parts + more
        if reason == "stop" and self._reader.n_calls:
            reason = "tool_calls"
        return text, [self._entry(*part) for part in parts], reason

    def _entry(self, index: int, name: str | None, arguments: str) -> dict[str, Any]:
        if name is None:
            return {"index": index, "function": {"arguments": arguments}}
        id = hashlib.sha256(f"{index} {self._key}".encode()).hexdigest()[:ID_LENGTH]
        return {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}


def join_calls(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The `tool_calls` of a message, from the entries of a stream."""
    calls: list[dict[str, Any]] = []
    for entry in entries:
        function = entry["function"]
        if "id" in entry:
            calls.append({"id": entry["id"], "type": entry["type"], "function": dict(function)})
        else:
            calls[-1]["function"]["arguments"] += function["arguments"]
    return calls
