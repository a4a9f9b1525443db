"""Chat templates: the text is that of transformers; what a template may not do is one line and does nothing."""

from __future__ import annotations

import itertools
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="needs Jinja2")
import chat_templates

from llama2c.text.chat_template import render, takes_parts, variables
from llama2c.text.vocabulary import ChatTemplate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
HELLO = [{"role": "user", "content": "Hi"}]


def rendered(source: str, messages: Any = HELLO, **tokens: str) -> str:
    return render(ChatTemplate(source, "chat_template.jinja", tokens or TOKENS), messages)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "sum", "arguments": {"a": 1, "ż": [None, True, "<&'\""]}}}]}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [user(" Hi ")],
    "system": [{"role": "system", "content": "Be brief.\n"}, user("żółw 🐢"), assistant(" x "), user("")],
    "special": [user("<|eot_id|></s>{{ bos_token }}")],
}
MORE: dict[str, list[dict[str, Any]]] = {
    "tools": [user("1 + 2?"), CALL, {"role": "tool", "content": {"sum": 3}}, {"role": "tool", "content": "3"}, user("so?")],
    "turns": [user("a"), {"role": "skip"}, assistant("b"), user("c"), {"role": "stop"}, user("d")],
}


@pytest.mark.parametrize(
    ("template", "conversation"),
    [*itertools.product(chat_templates.TEMPLATES, CONVERSATIONS), ("llama3", "tools"), ("zephyr", "turns")],
)
def test_text_is_that_of_transformers(template: str, conversation: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils", reason="needs transformers")
    messages = {**CONVERSATIONS, **MORE}[conversation]
    source = chat_templates.TEMPLATES[template]
    if not hasattr(utils, "render_jinja_template"):
        pytest.skip("needs a transformers that has render_jinja_template")
    (expected,), _ = utils.render_jinja_template([messages], chat_template=source, add_generation_prompt=True, **TOKENS)
    assert rendered(source, messages) == expected
    assert len(expected) > 5


def test_texts_written_out() -> None:
    """The same without transformers."""
    start = "<|im_start|>system\nYou are helpful.<|im_end|>\n"
    turn = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert rendered(chat_templates.CHATML) == start + turn
    system = {"role": "system", "content": "S"}
    assert rendered(chat_templates.CHATML, [system, *HELLO]) == "<|im_start|>system\nS<|im_end|>\n" + turn
    assert rendered(chat_templates.LLAMA2, [system, *HELLO, assistant("a"), user("b")]).split("\n") == [
        "<s>[INST] <<SYS>>", "S", "<</SYS>>", "", "Hi [/INST] a </s><s>[INST] b [/INST]",
    ]  # fmt: skip
    template = ChatTemplate(chat_templates.LLAMA3, "chat_template.jinja", TOKENS)
    assert "Today: 1999 AD\n" in render(template, HELLO, now=date(1999, 12, 31))
    assert f"Today: {date.today().year} AD\n" in rendered(chat_templates.LLAMA3)
    assert rendered("{% for a in [1, 2, 3, 4] %}{% if a == 2 %}{% continue %}{% endif %}{{ a }}{% endfor %}") == "134"
    assert rendered("a{% generation %}b{{ 1 }}{% endgeneration %}c") == "ab1c"


def test_names_a_template_may_use() -> None:
    names = "messages tools documents add_generation_prompt bos_token eos_token pad_token raise_exception strftime_now".split()
    source = "|".join(f"{{{{ {name} is defined }}}}" for name in names)
    assert rendered(source) == "True|True|True|True|True|True|False|True|True"
    assert rendered("{{ tools }} {{ documents }} {{ add_generation_prompt }} {{ messages }}") == f"None None True {HELLO}"
    assert rendered("{{ pad_token }}{{ bos_token }}", pad_token="<pad>") == "<pad>"
    assert rendered("{{ {'a': '<&ż', 'b': [1.5, none, true]} | tojson }}") == '{"a": "<&ż", "b": [1.5, null, true]}'
    assert rendered("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}") == '{\n "a": 2,\n "b": 1\n}'


def test_operators() -> None:
    for expression, value in {
        "'a' ~ 1 ~ none ~ [2] ~ missing": "a1None[2]",
        "'ab' * 3 + 'c'": "abababc",
        "2 * 'ab'": "abab",
        "[1] * 2 + [3]": "[1, 1, 3]",
        "2 ** 10 * 3 + 1": "3073",
        "2 ** -1": "0.5",
        "1.5 * 2 + 1": "4.0",
        "2 * 1.5 ** 2": "4.5",
        "'a' * -1": "",
        "true * 3": "3",
        "100000 * 100000": "10000000000",
    }.items():
        assert rendered(f"{{{{ {expression} }}}}") == value
    assert rendered("{% set turn = 1 %}{% for concatenate in [1, 2] %}{{ turn ~ concatenate }}{% endfor %}") == "1112"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("{% for c in messages[0].content %}{% endfor %}", True),
        ("{% for c in messages[0]['content'] %}{% endfor %}", True),
        ("{% macro f(content) %}{% for c in content | list %}{% endfor %}{% endmacro %}", True),
        ("{% for c in message.content | selectattr('type', 'equalto', 'text') %}{% endfor %}", True),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
        ("{{ messages[0]['content'][0] }}{% for c in messages[0].tools %}{% endfor %}", False),
        (chat_templates.LLAMA3, False),
        (chat_templates.CHATML, False),
    ],
)
def test_templates_that_take_parts(source: str, found: bool) -> None:
    assert takes_parts(ChatTemplate(source, "chat_template.jinja", TOKENS)) is found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (chat_templates.CHATML, {"tools", "messages", "add_generation_prompt"}),
        ("{% for tools in messages %}{{ tools }}{% endfor %}", {"messages"}),
        ("{% set tools = 1 %}{{ tools }}", set()),
        ("{% if custom is defined %}{% set tools = custom %}{% endif %}{{ tools }}", {"custom", "tools"}),
        ("{{ messages[0].tools }}{{ raise_exception }}{{ strftime_now('%d') }}", {"messages"}),
        ("{% generation %}{{ tools }}{% endgeneration %}{# documents #}", {"tools"}),
    ],
)
def test_names_that_a_template_looks_up(source: str, found: set[str]) -> None:
    assert variables(ChatTemplate(source, "chat_template.jinja", TOKENS)) == found


# ---------------------------------------------------------------------------
# what is refused


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("{{ raise_exception('Only\n user turns') }}", ": Only user turns"),
        ("{% if %}", ", line 1: Expected an expression"),
        ("\n\n{{ a", ", line 3: unexpected end of template"),
        ("{% generation %}a", ", line 1: Unexpected end of template"),
        ("{% unknown %}", ", line 1: Encountered unknown tag 'unknown'"),
        ("{{ messages[0].content.nothing.more }}", ": 'str object' has no attribute 'nothing'"),
        ("{{ 'a' + 1 }}", ": TypeError: can only concatenate str"),
        ("{{ missing | tojson }}", ": TypeError: Object of type Undefined is not JSON serializable"),
        ("{{ 1 // 0 }}", ": ZeroDivisionError: "),
        ("{{ 'a' | nothing }}", ", line 1: No filter named 'nothing'"),
    ],
)
def test_broken_templates(source: str, found: str) -> None:
    with pytest.raises(ValueError) as caught:
        rendered(source)
    assert str(caught.value).startswith(f"chat_template.jinja: chat template{found}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ raise_exception.__globals__['os'].system('touch TOUCHED') }}",
        "{{ strftime_now.__globals__ }}{{ strftime_now.__globals__['datetime'].x }}",
        "{{ self.__init__.__globals__.x }}",
        "{{ cycler.__init__.__globals__.os.popen('touch TOUCHED').read() }}",
        "{{ ('{0.__class__.__mro__}').format(1) }}",
        "{{ ('{0.__class__.__mro__}' | attr('format'))(1) }}",
        "{{ namespace.__init__.__globals__.x }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'a' %}",
        "{{ open('TOUCHED', 'w') }}",
        "{{ lipsum.__globals__['os'].system('touch TOUCHED') }}",
    ],
)
def test_nothing_outside_is_reached(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    messages = [dict(HELLO[0])]
    with pytest.raises(ValueError, match=r"^chat_template.jinja: chat template: .+$"):
        rendered(source, messages)
    assert messages == HELLO
    assert list(tmp_path.iterdir()) == []


LONG = "does not come to an end"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**12 }}",
        "{{ 10**12 * [1] }}",
        "{{ ('a' * 10**6) * 10**6 }}",
        "{{ 9 ** (9 ** (9 ** 9)) }}",
        "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(n=9) %}{% for i in range(99) %}{% set ns.n = ns.n ** 9 %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
        "{% for i in [1] recursive %}{{ loop([1]) + loop([1]) }}{% endfor %}",
        "{% macro f(n) %}{{ caller() if n else '' }}{% endmacro %}"
        "{% for i in range(9**5) %}{% for j in range(9**5) %}{% call f(1) %}{% endcall %}{% endfor %}{% endfor %}",
        "{% for i in range(1000) %}{{ 'x' | center(99999) }}{% endfor %}",
    ],
)
def test_a_template_without_end(source: str) -> None:
    with pytest.raises(ValueError) as caught:
        rendered(source)
    recursion = "RecursionError: maximum recursion depth exceeded"
    assert re.match(rf"chat_template.jinja: chat template: ({LONG}|{recursion}.*); give another template", str(caught.value))


def test_other_ends() -> None:
    for source in ("{{ range(10**9) }}", "{{ lipsum(10**9) }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"):
        with pytest.raises(ValueError, match=r"^chat_template.jinja: chat template: .+$"):
            rendered(source)


def test_long_conversations_are_no_blow_up() -> None:
    """500 messages, 5 million characters, added one by one."""
    messages = [user("x" * 10000) for _ in range(500)]
    assert len(rendered(chat_templates.CHATML, messages)) > 5 * 10**6
    assert rendered(chat_templates.CHATML) == rendered(chat_templates.CHATML)  # each rendering counts anew
