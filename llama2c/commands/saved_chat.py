"""A chat in a file, as JSON, so that it can go on later. docs/command-line.md describes the form."""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path
from typing import Any

from ..errors import ModelError, RequestError
from ..files import exists, read_json
from ..formats.writer import replacing
from .session import Session, Turn

FORM = "llama2c chat 1"  # the value of "format"


def save(session: Session, name: str) -> Path:
    """Write a chat to a file, which is replaced when the new one is complete. Returns its path.

    OSError, one line: it cannot be written. RequestError: the name is taken by a file that is not a saved chat.
    """
    path = Path(os.path.realpath(os.path.expanduser(name)))
    if exists(path) and not is_saved(path):
        raise RequestError(f"{path}: expected a new file or a saved chat, found another file", "path")
    content = {
        "format": FORM,
        "model": os.fsdecode(session.llama.transformer.checkpoint.path),
        "date": session.now.isoformat(),
        "settings": session.settings,
        "messages": session.messages(),
        "seeds": [turn.seed for turn in session.turns],
    }
    data = (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "replace")
    with replacing(path, len(data)) as unfinished:
        unfinished.write_bytes(data)
    return path


def is_saved(path: Path) -> bool:
    """Whether a file looks like a saved chat."""
    try:
        return read_json(path).get("format") == FORM
    except ValueError:
        return False


def load(session: Session, name: str) -> Path:
    """Go on with the chat of a file: its turns, system prompt, settings and date. Returns the path.

    ModelError or OSError, one line that begins with the path: the file is missing, broken, or says what cannot be. Then the
    session has not changed.
    """
    path = Path(os.path.expanduser(name))
    content = read_json(path)
    try:
        if content.get("format") != FORM:
            raise RequestError(f"format: expected {FORM!r}, found {content.get('format')!r}")
        now = read_date(content.get("date"))
        settings = session.checked(expect(content, "settings", dict))
        system, pairs = read_messages(expect(content, "messages", list))
        turns = [Turn(*pair, seed) for pair, seed in zip(pairs, read_seeds(content, len(pairs)), strict=True)]
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path}: {error}") from None
    session.now, session.system, session.turns = now, system, turns
    session.settings |= settings
    return path


def expect(content: dict[str, Any], key: str, kind: type) -> Any:
    """content[key]. RequestError: it is not of that type, or missing."""
    if not isinstance(content.get(key), kind):
        raise RequestError(f"{key}: expected a {kind.__name__}, found {type(content.get(key)).__name__}")
    return content[key]


def read_date(text: Any) -> date:
    try:
        return date.fromisoformat(text)
    except (ValueError, TypeError):
        raise RequestError(f"date: expected a date such as '2026-01-31', found {text!r}") from None


def read_seeds(content: dict[str, Any], n: int) -> list[int]:
    """The seed of each of n replies."""
    seeds: list[int] = expect(content, "seeds", list)
    if len(seeds) != n or any(type(seed) is not int for seed in seeds):
        raise RequestError(f"seeds: expected {n} integers, one for each reply, found {seeds!r:.60}")
    return seeds


def read_messages(messages: list[Any]) -> tuple[str, list[tuple[str, str]]]:
    """The system prompt, and (message, reply) of each turn. RequestError: they are not in turn, or not text."""
    texts = []
    has_system = bool(messages) and isinstance(messages[0], dict) and messages[0].get("role") == "system"
    for i, message in enumerate(messages):
        role = "system" if has_system and i == 0 else ("user", "assistant")[(i - has_system) % 2]
        if not isinstance(message, dict) or message.get("role") != role or not isinstance(message.get("content"), str):
            raise RequestError(f"messages[{i}]: expected a dict with 'role': {role!r} and a str as 'content'")
        texts.append(as_text(message["content"], f"messages[{i}]"))
    system = texts.pop(0) if has_system else ""
    if len(texts) % 2:
        raise RequestError(f"messages[{len(messages) - 1}]: expected a reply after it, found the end")
    return system, list(zip(texts[::2], texts[1::2], strict=True))


def as_text(text: str, where: str) -> str:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise RequestError(f"{where}: expected valid Unicode, found a lone surrogate")
    return text
