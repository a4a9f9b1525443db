"""Chat templates of Hugging Face, rendered by Jinja2 in its sandbox, with the names that transformers gives them.

Whoever made the weights wrote the template, so it is not trusted: it reaches no file, no module and no Python attribute that
Jinja2 calls unsafe, and its loops and the strings it joins are counted. Filters and methods of strings are not: such a template
can still take long, or much memory.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from .vocabulary import ChatTemplate

WORK = 1 << 26  # what a template may do: characters joined and put out, and STEP for each turn of a loop and call of a macro
STEP = 256


def render(template: ChatTemplate, messages: list[Any]) -> str:
    """The prompt of a conversation, up to where the reply begins.

    messages are plain data: str, int, float, bool, None, lists and dicts. ValueError, one line: the template is broken, does
    what it may not, or refuses the messages.
    """
    environment = Sandbox()
    try:
        tree = Counted().visit(environment.parse(template.source))
        output = environment.from_string(tree).generate(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **template.special_tokens
        )
        parts = []
        for part in output:
            environment.spend(len(part))
            parts.append(part)
        return "".join(parts)
    except TemplateSyntaxError as error:
        raise ValueError(f"{template.path}: chat template, line {error.lineno}: {one_line(error)}") from None
    except Exception as error:  # whatever Python raises inside of a template
        raise ValueError(f"{template.path}: chat template: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, TemplateError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")


# ---------------------------------------------------------------------------
# the sandbox


class Sandbox(ImmutableSandboxedEnvironment):  # type: ignore[misc]
    """The environment of one rendering."""

    intercepted_binops = frozenset(("+", "*", "**"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
        self.left = WORK
        self.filters["tojson"] = to_json
        self.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
        del self.globals["lipsum"]  # makes text of any length

    def spend(self, work: int) -> None:
        """Count work. TemplateError: it is too much."""
        self.left -= work
        if self.left < 0:
            raise TemplateError("expected a prompt, found a template that does not come to an end")

    def turn(self) -> None:
        self.spend(STEP)

    def concatenate(self, *values: object) -> str:
        """What the operator ~ does."""
        texts = list(map(str, values))
        self.spend(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.spend(cost_of(operator, left, right))
        return super().call_binop(context, operator, left, right)


def cost_of(operator: str, left: Any, right: Any) -> int:
    """About how much work an operation is, before it is done: the characters or elements of its result."""
    if operator == "+" or (operator == "*" and type(left) is type(right)):
        return size_of(left) + size_of(right)
    if isinstance(right, int):  # 2**100 is 100 times as long as 2; "ab" * 3
        return size_of(left) * max(right, 0)
    return size_of(right) * max(left, 0) if isinstance(left, int) else 0


def size_of(value: Any) -> int:
    if isinstance(value, int):
        return value.bit_length() * STEP  # arithmetic with long ones is slow
    return len(value) if hasattr(value, "__len__") else 1


class Counted(NodeTransformer):  # type: ignore[misc]
    """Makes a template count its turns and what it joins with ~."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(call("turn", [])))
        return node

    visit_Macro = visit_CallBlock = visit_For  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return call("concatenate", node.nodes)


def call(method: str, arguments: list[nodes.Expr]) -> nodes.Call:
    """A call of a method of Sandbox, which no name of the template can stand in for."""
    return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)


class Generation(Extension):  # type: ignore[misc]
    """The block `{% generation %}`, which marks what a model has written: here it only holds its content."""

    tags = frozenset(("generation",))

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


# ---------------------------------------------------------------------------
# functions for templates


def raise_exception(message: str) -> NoReturn:
    raise TemplateError(str(message))


def strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    """JSON as it is, where Jinja2's own filter writes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
