"""Conversations as token ids: the template of Llama 2, and those that come with a tokenizer.json.

What the messages are is checked here; what a template makes of them is its own affair (chat_template.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .tokenizer import Tokenizer
from .vocabulary import ChatTemplate

JINJA2 = (3, 1, 6)  # there are known ways out of the sandbox of those before it


def chat_ids(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The ids of a conversation, up to where the reply begins: by the tokenizer's template, else by that of Llama 2.

    ValueError: the messages are not as chat_messages or the template wants them; OSError: Jinja2 is missing.
    """
    template = tokenizer.chat_template
    if template is None:
        return llama2_ids(tokenizer, messages)
    return tokenizer.encode(render(template, check_messages(messages)), bos=False)


# ---------------------------------------------------------------------------
# the template of Llama 2


def chat_turn(user: str, system: str = "") -> str:
    """One user turn as the model was trained on it: ("Hi") -> "[INST] Hi [/INST]".

    A system prompt stands in the first turn only; an empty one is none. Encode the result with BOS.
    """
    if system:
        user = f"<<SYS>>\n{system}\n<</SYS>>\n\n{user}"
    return f"[INST] {user} [/INST]"


def llama2_ids(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """The ids of a conversation that ends with a user turn.

    Each user turn is encoded on its own with BOS, then the reply after a space, closed with EOS; so the ids
    of a conversation begin with those of its earlier turns. ValueError, naming the message, unless they are
    perhaps one system, then user and assistant in turn, a user the last.
    """
    ids: list[int] = []
    system = ""
    expected = "user"
    for i, message in enumerate(messages):
        role, content = _role_and_content(i, message)
        if i == 0 and role == "system":
            system = content
            continue
        if role != expected:
            raise ValueError(f"messages[{i}]: expected role '{expected}', found {role!r}")
        if role == "user":
            ids += tokenizer.encode(chat_turn(content, system))
            system, expected = "", "assistant"
        else:
            ids += tokenizer.encode(content, bos=False, eos=True)  # encode itself puts the space before it
            expected = "user"
    if not messages:
        raise ValueError("messages[0]: expected a 'user' turn, found no messages")
    if expected == "user":  # the last was a reply, or a system prompt alone
        raise ValueError(f"messages[{len(messages) - 1}]: expected role 'user' at the end, found {role!r}")
    return ids


def _role_and_content(i: int, message: Any) -> tuple[str, str]:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        found = sorted(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
        raise ValueError(f"messages[{i}]: expected a dict of 'role' and 'content', found {found}")
    role, content = message["role"], message["content"]
    if not isinstance(content, str):
        raise ValueError(f"messages[{i}]: expected a str as content, found {type(content).__name__}")
    return role, content


# ---------------------------------------------------------------------------
# templates of Jinja2


def render(template: ChatTemplate, messages: list[Any]) -> str:
    """The text of a conversation. ValueError: the template is broken or refuses it; OSError: Jinja2 is missing or too old."""
    try:
        from importlib.metadata import version

        from . import chat_template  # Jinja2 is slow to import, and an extra

        found = version("jinja2")
    except ImportError:
        found = "none"
    if tuple(map(int, re.findall(r"\d+", found)[:3])) < JINJA2:
        expected = f"expected the package jinja2, version {'.'.join(map(str, JINJA2))} or later, for the chat template"
        raise OSError(f"{template.path}: {expected}, found {found}: pip install 'llama2c[hf]'")
    return chat_template.render(template, messages)


def check_messages(messages: Any) -> list[Any]:
    """A copy of the messages in plain data, which is all that a template gets to see.

    ValueError: they are no list of dicts that each have a str as 'role' and hold nothing but what JSON has.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise ValueError(f"messages: expected a list of dicts, found {type(messages).__name__}")
    if not messages:
        raise ValueError("messages[0]: expected a message, found none")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            found = dict(message) if isinstance(message, Mapping) else type(message).__name__
            raise ValueError(f"messages[{i}]: expected a dict with a str as 'role', found {found}")
    return [plain(message, f"messages[{i}]") for i, message in enumerate(messages)]


def plain(value: Any, where: str) -> Any:
    """A copy that holds nothing but dicts with str as keys, lists, and str, int, float, bool or None exactly."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise ValueError(f"{where}: expected a str as key, found {type(key).__name__}")
        return {key: plain(element, f"{where}[{key!r}]") for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(element, f"{where}[{i}]") for i, element in enumerate(value)]
    raise ValueError(f"{where}: expected what JSON has, found {type(value).__name__}")


# ---------------------------------------------------------------------------
# conversations that grow


class Conversation(Protocol):
    """A conversation of one user, turn by turn."""

    end_ids: frozenset[int]  # the tokens that end a reply

    def ask(self, user: str) -> list[int]:
        """Add a turn of the user, bytes that are no text as os.fsdecode keeps them. The ids of all so far; a reply follows."""

    def answer(self, tokens: Sequence[int]) -> None:
        """Add the reply: the tokens drawn, one of end_ids the last."""


def start_conversation(tokenizer: Tokenizer, system: str) -> Conversation:
    """A conversation by the tokenizer's template, else as the C program has it. system: "" for none."""
    if tokenizer.chat_template is None:
        return Llama2Conversation(tokenizer, system)
    return TemplateConversation(tokenizer, tokenizer.chat_template, system)


class Llama2Conversation:
    """By the template of Llama 2. A reply stays as it was drawn; BOS does not end it."""

    def __init__(self, tokenizer: Tokenizer, system: str) -> None:
        self.end_ids = tokenizer.end_ids - ({tokenizer.bos_id} - {tokenizer.eos_id})  # some have one token for both
        self._tokenizer = tokenizer
        self._system = system
        self._ids: list[int] = []

    def ask(self, user: str) -> list[int]:
        self._ids = self._ids + self._tokenizer.encode(os.fsencode(chat_turn(user, self._system)))
        self._system = ""
        return self._ids

    def answer(self, tokens: Sequence[int]) -> None:
        self._ids = [*self._ids, *tokens]


class TemplateConversation:
    """By a template, which sees the whole conversation each time, and may write earlier turns in another way than before."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, system: str) -> None:
        self.end_ids = tokenizer.end_ids
        self._tokenizer = tokenizer
        self._template = template
        self._messages = [{"role": "system", "content": system}] if system else []
        self._last: int | None = None  # of the ids before the reply

    def ask(self, user: str) -> list[int]:
        self._messages.append({"role": "user", "content": user})
        ids = self._tokenizer.encode(os.fsencode(render(self._template, self._messages)), bos=False)
        if not ids:
            raise ValueError(f"{self._template.path}: chat template: expected a prompt of at least one token, found none")
        self._last = ids[-1]
        return ids

    def answer(self, tokens: Sequence[int]) -> None:
        stream = self._tokenizer.text_stream(previous=self._last)
        content = "".join(map(stream.feed, tokens)) + stream.flush()
        self._messages.append({"role": "assistant", "content": content})
