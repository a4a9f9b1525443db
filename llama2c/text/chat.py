"""Conversations as token ids: by the chat template of the tokenizer, else by the form of Llama 2.

Messages and options are checked here; chat_template.py renders templates.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Protocol

from ..errors import RequestError
from .tokenizer import Tokenizer
from .vocabulary import ChatTemplate

JINJA2 = (3, 1, 6)  # its sandbox had known holes before


def chat_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    template_options: Mapping[str, Any] | None = None,
    now: date | None = None,
) -> list[int]:
    """The ids of a conversation, up to where the reply begins: by the tokenizer's template, else in the form of Llama 2.

    template_options  more names for the template, such as tools or enable_thinking: {"enable_thinking": False}
    now               the date that a template sees; None: today
    Warns (RuntimeWarning) where a template was looked for and not found. RequestError: the messages or the options are not as
    they must be; ModelError: the template is broken or refuses them; OSError: Jinja2 is missing.
    """
    options = check_options(template_options)
    template = tokenizer.chat_template
    if template is None:
        if options:
            raise RequestError("template_options: this tokenizer has no chat template to take them", "template_options")
        warn_without_template(tokenizer)
        return llama2_ids(tokenizer, messages)
    return tokenizer.encode(render(template, check_messages(messages), options, now), bos=False)


def warn_without_template(tokenizer: Tokenizer) -> None:
    """Says that the form of Llama 2 is used for a model that may not know it.

    A tokenizer.bin has no place for a template, and the C program always uses this form for it: no warning.
    """
    if tokenizer.no_template is not None:
        used = "so chat uses the form of Llama 2, [INST] ... [/INST], which other models do not know"
        warnings.warn(f"{tokenizer.no_template}, {used}", RuntimeWarning, stacklevel=4)


# ---------------------------------------------------------------------------
# the form of Llama 2


def chat_turn(user: str, system: str = "") -> str:
    """One user turn in the form that the model was trained on: ("Hi") -> "[INST] Hi [/INST]".

    Only the first turn has a system prompt; "" means none. Encode the result with BOS.
    """
    if system:
        user = f"<<SYS>>\n{system}\n<</SYS>>\n\n{user}"
    return f"[INST] {user} [/INST]"


def llama2_ids(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The ids of a conversation that ends with a user turn.

    Each user turn is encoded by itself with BOS, then the reply after a space, and EOS; so the ids of a conversation begin
    with those of its earlier turns. A content is a str, or a list of parts of text, which are joined as they are.
    RequestError, which names the message, unless there is at most one system message, the first, and then user and assistant
    in turn, a user the last.
    """
    ids: list[int] = []
    system = ""
    expected = "user"
    check_list(messages)
    for i, message in enumerate(messages):
        role, content = _role_and_content(i, message)
        if i == 0 and role == "system":
            system = content
            continue
        if role != expected:
            raise RequestError(f"messages[{i}]: expected role '{expected}', found {role!r}", "messages")
        if role == "user":
            ids += tokenizer.encode(chat_turn(content, system))
            system, expected = "", "assistant"
        else:
            ids += tokenizer.encode(content, bos=False, eos=True)  # encode puts the space before it
            expected = "user"
    if not messages:
        raise RequestError("messages[0]: expected a 'user' turn, found no messages", "messages")
    if expected == "user":  # the last was a reply, or only a system prompt
        raise RequestError(f"messages[{len(messages) - 1}]: expected role 'user' at the end, found {role!r}", "messages")
    return ids


def _role_and_content(i: int, message: Any) -> tuple[str, str]:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        found = sorted(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
        raise RequestError(f"messages[{i}]: expected a dict of 'role' and 'content', found {found}", "messages")
    role, content = message["role"], message["content"]
    if isinstance(content, (list, tuple)):
        content = join_parts(content, f"messages[{i}]['content']")
    if not isinstance(content, str):
        found = type(content).__name__
        raise RequestError(f"messages[{i}]: expected a str as content, found {found}", "messages")
    return role, content


def join_parts(parts: Sequence[Any], where: str) -> str:
    """The text of a content that is a list of parts: [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}] -> "ab"."""
    texts = []
    for i, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            found = type(part).__name__ if kind is None else f"type {kind!r}"
            raise RequestError(f"{where}[{i}]: expected a part of type 'text', found {found}", "messages")
        if not isinstance(part.get("text"), str):
            raise RequestError(f"{where}[{i}]: expected a str as 'text', found {type(part.get('text')).__name__}", "messages")
        texts.append(part["text"])
    return "".join(texts)


# ---------------------------------------------------------------------------
# templates of Jinja2


def render(
    template: ChatTemplate, messages: list[Any], options: Mapping[str, Any] | None = None, now: date | None = None
) -> str:
    """The text of a conversation; arguments as in chat_template.render. OSError: Jinja2 is missing or too old.

    A content that is a list of parts is given as it is to a template that loops over contents. Other templates take only text:
    they get the texts of the parts joined, and a part of another type is a RequestError.
    """
    check_jinja2(template)
    from . import chat_template  # Jinja2 is slow to import, and an extra

    if any(isinstance(message.get("content"), list) for message in messages) and not chat_template.takes_parts(template):
        messages = [
            {**message, "content": join_parts(content, f"messages[{i}]['content']")} if isinstance(content, list) else message
            for i, message in enumerate(messages)
            for content in [message.get("content")]
        ]
    return chat_template.render(template, messages, options, now)


def variables(template: ChatTemplate) -> set[str]:
    """The names that a template looks up: messages, tools, ... ModelError: it is broken; OSError: as in render."""
    check_jinja2(template)
    from . import chat_template

    return chat_template.variables(template)


def check_jinja2(template: ChatTemplate) -> None:
    """OSError: Jinja2 is missing or too old."""
    try:
        from importlib.metadata import version

        import jinja2  # noqa: F401

        found = version("jinja2")
    except ImportError:
        found = "none"
    if tuple(map(int, re.findall(r"\d+", found)[:3])) < JINJA2:
        expected = f"expected the package jinja2, version {'.'.join(map(str, JINJA2))} or later, for the chat template"
        raise OSError(f"{template.path}: {expected}, found {found}: pip install 'llama2c[hf]'")


def check_list(messages: Any) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise RequestError(f"messages: expected a list of dicts, found {type(messages).__name__}", "messages")


def check_messages(messages: Any) -> list[Any]:
    """A copy of the messages in plain data, the only thing that a template gets to see.

    RequestError: they are not a list of dicts that each have a str as 'role' and contain only what JSON has.
    """
    check_list(messages)
    if not messages:
        raise RequestError("messages[0]: expected a message, found none", "messages")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            found = dict(message) if isinstance(message, Mapping) else type(message).__name__
            raise RequestError(f"messages[{i}]: expected a dict with a str as 'role', found {found}", "messages")
    return [plain(message, f"messages[{i}]", "messages") for i, message in enumerate(messages)]


def check_options(options: Any) -> dict[str, Any]:
    """A copy of template_options in plain data; {} for None. RequestError: not a dict of that, or 'messages' is in it."""
    param = "template_options"
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise RequestError(f"{param}: expected a dict, found {type(options).__name__}", param)
    if "messages" in options:
        raise RequestError(f"{param}: 'messages' cannot be an option", param)
    copied: dict[str, Any] = plain(options, param, param)
    return copied


def plain(value: Any, where: str, param: str) -> Any:
    """A copy that contains only dicts with str as keys, lists, and exactly str, int, float, bool or None."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise RequestError(f"{where}: expected a str as key, found {type(key).__name__}", param)
        return {key: plain(element, f"{where}[{key!r}]", param) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(element, f"{where}[{i}]", param) for i, element in enumerate(value)]
    raise RequestError(f"{where}: expected what JSON has, found {type(value).__name__}", param)


# ---------------------------------------------------------------------------
# conversations that grow


class Conversation(Protocol):
    """A conversation of one user, turn by turn."""

    end_ids: frozenset[int]  # the tokens that end a reply

    def ask(self, user: str | bytes) -> list[int]:
        """Add a turn of the user. Returns the ids of the whole conversation, after which the reply follows.

        bytes are what a terminal gave, in whatever encoding. A str is text; bytes that os.fsdecode has kept in it as surrogates
        become bytes again.
        """

    def answer(self, tokens: Sequence[int]) -> None:
        """Add the reply: the tokens drawn, the last of them one of end_ids."""


def start_conversation(tokenizer: Tokenizer, system: str | bytes, now: date | None = None) -> Conversation:
    """A conversation by the tokenizer's template, else in the form of Llama 2, as the C program has it.

    system: "" for none; str or bytes as in ask. now: as in chat_ids. Warns as chat_ids does.
    """
    if tokenizer.chat_template is None:
        warn_without_template(tokenizer)
        return Llama2Conversation(tokenizer, system)
    return TemplateConversation(tokenizer, tokenizer.chat_template, system, now)


class Llama2Conversation:
    """In the form of Llama 2, which takes any bytes. A reply stays as it was drawn; BOS does not end it."""

    def __init__(self, tokenizer: Tokenizer, system: str | bytes) -> None:
        self.end_ids = tokenizer.end_ids - ({tokenizer.bos_id} - {tokenizer.eos_id})  # some have one token for both
        self._tokenizer = tokenizer
        self._system = _escaped(system)
        self._ids: list[int] = []

    def ask(self, user: str | bytes) -> list[int]:
        self._ids = self._ids + self._tokenizer.encode(_bytes(chat_turn(_escaped(user), self._system)))
        self._system = ""
        return self._ids

    def answer(self, tokens: Sequence[int]) -> None:
        self._ids = [*self._ids, *tokens]


class TemplateConversation:
    """By a template, which sees the whole conversation each time, and may write earlier turns in another way than before."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, system: str | bytes, now: date | None = None) -> None:
        self.end_ids = tokenizer.end_ids
        self._tokenizer = tokenizer
        self._template = template
        self._messages = [{"role": "system", "content": _text(system, "system")}] if system else []
        self._now = date.today() if now is None else now  # the same for all turns
        self._last: int | None = None  # of the ids before the reply

    def ask(self, user: str | bytes) -> list[int]:
        self._messages.append({"role": "user", "content": _text(user, "text")})
        ids = self._tokenizer.encode(render(self._template, self._messages, now=self._now), bos=False)
        if not ids:
            raise RequestError(f"{self._template.path}: chat template: expected a prompt of at least one token, found none")
        self._last = ids[-1]
        return ids

    def answer(self, tokens: Sequence[int]) -> None:
        stream = self._tokenizer.text_stream(previous=self._last)
        content = "".join(map(stream.feed, tokens)) + stream.flush()
        self._messages.append({"role": "assistant", "content": content})


def _bytes(text: str) -> bytes:
    """UTF-8, whatever the locale; surrogates that stand for bytes become those bytes. RequestError: other surrogates."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        found = f"a lone surrogate U+{ord(text[error.start]):04X} at index {error.start}"
        raise RequestError(f"text: expected valid Unicode, found {found}", "text") from None


def _escaped(text: str | bytes) -> str:
    """Bytes as a str that _bytes turns back, valid UTF-8 or not."""
    return text.decode(errors="surrogateescape") if isinstance(text, bytes) else text


def _text(text: str | bytes, name: str) -> str:
    """What a template needs: text. RequestError: bytes that are not UTF-8."""
    data = text if isinstance(text, bytes) else _bytes(text)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02X} at index {error.start}"
        raise RequestError(f"{name}: expected valid UTF-8, found {found}", name) from None
