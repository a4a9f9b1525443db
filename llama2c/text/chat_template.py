"""Chat templates of Hugging Face, rendered by Jinja2 in its sandbox, with the names that transformers gives them.

The template comes from whoever made the weights, so it is not trusted: it can reach no file, no module and no Python
attribute that Jinja2 calls unsafe, and its loops and the strings that it joins are counted. Filters and methods of strings
are not counted: with them, a template can still take long, or much memory.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

from ..errors import ModelError, RequestError
from .vocabulary import ChatTemplate

WORK = 1 << 26  # the limit: characters joined and put out, and STEP for each turn of a loop or call of a macro
STEP = 256
ADVICE = "give another template: -z (tokenizer=) takes a folder with a tokenizer and a chat_template.jinja"


def render(
    template: ChatTemplate, messages: list[Any], options: Mapping[str, Any] | None = None, now: date | None = None
) -> str:
    """The prompt of a conversation, up to where the reply begins.

    messages and options are plain data: str, int, float, bool, None, lists and dicts.
    options  more names for the template; they come before the usual ones, such as tools and add_generation_prompt
    now      the date that strftime_now writes; None: today
    ModelError, one line: the template is broken or does what it may not; RequestError, one line: it refuses the messages, or
    they are not as it needs them.
    """
    environment = Sandbox(date.today() if now is None else now)
    names = {"tools": None, "documents": None, "add_generation_prompt": True, **template.special_tokens, **(options or {})}
    with explained(template):
        tree = Counted().visit(environment.parse(template.source))
        parts = []
        for part in environment.from_string(tree).generate({**names, "messages": messages}):
            environment.spend(len(part))
            parts.append(part)
        return "".join(parts)


def takes_parts(template: ChatTemplate) -> bool:
    """Whether a template loops over the content of a message, so that it takes a list of parts. ModelError: it is broken."""
    with explained(template):
        loops = Sandbox(date.today()).parse(template.source).find_all(nodes.For)
        return any(is_content(node) for loop in loops for node in [loop.iter, *loop.iter.find_all(nodes.Expr)])


def variables(template: ChatTemplate) -> set[str]:
    """The names that a template looks up and does not define itself. ModelError: it is broken."""
    with explained(template):
        found: set[str] = meta.find_undeclared_variables(Sandbox(date.today()).parse(template.source))
    return found


def is_content(node: nodes.Node) -> bool:
    """Whether an expression is message.content, message['content'], or a variable named content."""
    return (
        (isinstance(node, nodes.Name) and node.name == "content")
        or (isinstance(node, nodes.Getattr) and node.attr == "content")
        or (isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content")
    )


@contextlib.contextmanager
def explained(template: ChatTemplate) -> Iterator[None]:
    """Turns whatever Python raises in a template into one line.

    What it raises while it runs is a RequestError, because with other messages it may run, unless no template may do that.
    """
    try:
        yield
    except TemplateSyntaxError as error:
        raise ModelError(f"{template.path}: chat template, line {error.lineno}: {one_line(error)}; {ADVICE}") from None
    except (SecurityError, EndlessError, MemoryError, RecursionError) as error:
        raise ModelError(f"{template.path}: chat template: {one_line(error).rstrip('.')}; {ADVICE}") from None
    except Exception as error:
        raise RequestError(f"{template.path}: chat template: {one_line(error)}", "messages") from None


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, TemplateError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")


# ---------------------------------------------------------------------------
# the sandbox


class EndlessError(TemplateError):  # type: ignore[misc]
    """A template does more than WORK."""


class Sandbox(ImmutableSandboxedEnvironment):  # type: ignore[misc]
    """The environment of one rendering. now: the date that strftime_now writes."""

    intercepted_binops = frozenset(("+", "*", "**"))

    def __init__(self, now: date) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
        self.left = WORK
        self.filters["tojson"] = to_json
        self.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_of(now)}
        del self.globals["lipsum"]  # makes text of any length

    def spend(self, work: int) -> None:
        """Count work. EndlessError: it is more than a template may do."""
        self.left -= work
        if self.left < 0:
            raise EndlessError("does not come to an end")

    def turn(self) -> None:
        self.spend(STEP)

    def concatenate(self, *values: object) -> str:
        """The operator ~."""
        texts = list(map(str, values))
        self.spend(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.spend(cost_of(operator, left, right))
        return super().call_binop(context, operator, left, right)


def cost_of(operator: str, left: Any, right: Any) -> int:
    """About the work of an operation, before it is done: the characters or elements of its result."""
    if operator == "+" or (operator == "*" and type(left) is type(right)):
        return size_of(left) + size_of(right)
    if isinstance(right, int):  # 2**100 is 100 times as long as 2; "ab" * 3
        return size_of(left) * max(right, 0)
    return size_of(right) * max(left, 0) if isinstance(left, int) else 0


def size_of(value: Any) -> int:
    if isinstance(value, int):
        return value.bit_length() * STEP  # arithmetic with long integers is slow
    return len(value) if hasattr(value, "__len__") else 1


class Counted(NodeTransformer):  # type: ignore[misc]
    """Makes a template count the turns of its loops, its calls, and what it joins with ~."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(call("turn", [])))
        return node

    visit_Macro = visit_CallBlock = visit_For  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return call("concatenate", node.nodes)


def call(method: str, arguments: list[nodes.Expr]) -> nodes.Call:
    """A call of a method of Sandbox, which no name in the template can replace."""
    return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)


class Generation(Extension):  # type: ignore[misc]
    """The block `{% generation %}`, which marks what a model has written. Here it is its content, no more."""

    tags = frozenset(("generation",))

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


# ---------------------------------------------------------------------------
# functions for templates


def raise_exception(message: str) -> NoReturn:
    raise TemplateError(str(message))


def strftime_of(now: date) -> Callable[[str], str]:
    """The function strftime_now of templates: a date, without the time of day."""

    def strftime_now(format: str) -> str:
        return date(now.year, now.month, now.day).strftime(format)

    return strftime_now


def to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    """Plain JSON; Jinja2's own filter writes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
