"""What a user can tell a chat, instead of the model: /help and others, as a table."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from ..errors import check_int
from .saved_chat import load, save
from .session import DEFAULTS, Reply, Session


class Chat(Protocol):
    """The chat that a command changes."""

    session: Session
    ended: bool

    def say(self, line: str) -> None:
        """Show a line to the user."""

    def show(self, reply: Reply) -> None:
        """Write a reply as it is made, and keep it."""


class Command(NamedTuple):
    argument: str  # what may follow, for the help
    help: str
    run: Callable[[Chat, str], None]  # with what follows, without spaces around it


def run_command(chat: Chat, line: str) -> None:
    """Do what a line that begins with a slash says. An unknown command is named, and nothing else is done.

    RequestError, TypeError, ModelError or OSError, one line: it cannot be done, and nothing has changed.
    """
    name, _, argument = line.partition(" ") if "\n" not in line.split(" ")[0] else line.partition("\n")
    command = COMMANDS.get(name)
    if command is None:
        shown = name if len(name) <= 40 else f"{name[:40]}…"
        guess = nearest(name)
        meant = f" The nearest one is {guess}." if guess else ""
        chat.say(f"Unknown command: {shown}.{meant} /help lists them. To send it as a message, write /{shown}")
    elif argument.strip() and not command.argument:
        chat.say(f"{name} takes nothing after it. To send it as a message, write /{name}")
    else:
        command.run(chat, argument.strip())


def nearest(name: str) -> str | None:
    """The command with the most similar name, or with the same meaning in other programs: "/rest", "/clear" -> "/reset"."""
    name = name.lower()
    words = [command.removeprefix("/") for command in COMMANDS]
    found = difflib.get_close_matches(name.removeprefix("/"), words, n=1)
    return ELSEWHERE.get(name) or (f"/{found[0]}" if found else None)


def complete(line: str) -> list[str]:
    """The commands, and the settings after /set, that a line may become: "/re" -> ["/retry", "/reset"]."""
    possible = [*COMMANDS, *(f"/set {name} " for name in DEFAULTS)]
    exact = "/set " in line
    return [text for text in possible if line.startswith("/") and text.startswith(line) and (" " in text) == exact]


# ---------------------------------------------------------------------------
# the commands


def help_(chat: Chat, _: str) -> None:
    width = max(len(f"{name} {command.argument}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        chat.say(f"{f'{name} {command.argument}':{width}}  {command.help}")
    chat.say("A message that begins with a slash is written with two: //etc/hosts")
    chat.say("Ctrl-C ends a reply and keeps what there is of it. Ctrl-D ends the chat.")


def system(chat: Chat, argument: str) -> None:
    session = chat.session
    if argument == "off":
        session.system = ""
    elif argument:
        session.system = argument
    if session.system:
        chat.say(f"System prompt: {session.system}")
    else:
        chat.say("There is no system prompt. The model's template may have one of its own.")


def retry(chat: Chat, _: str) -> None:
    if has_turns(chat):
        reply = chat.session.retry()
        chat.say(f"Another reply, with seed {reply.seed}:")
        chat.show(reply)


def undo(chat: Chat, _: str) -> None:
    if has_turns(chat):
        chat.say(f"Dropped: {shorten(chat.session.undo().user)}")


def forget(chat: Chat, argument: str) -> None:
    n = as_value(argument) if argument else None
    if n is not None:
        check_int("/forget", n, 1)
    if has_turns(chat):
        dropped = chat.session.forget(n)
        chat.say(f"Dropped the {plural(dropped, 'oldest turn')}. {context_line(chat.session)}")


def reset(chat: Chat, _: str) -> None:
    chat.session.reset()
    chat.say("The chat starts anew. The system prompt and the settings are as before.")


def save_(chat: Chat, argument: str) -> None:
    if needs(chat, argument, "/save"):
        path = save(chat.session, argument)
        chat.say(f"Saved to {path}: {plural(len(chat.session.turns), 'turn')}")


def load_(chat: Chat, argument: str) -> None:
    if needs(chat, argument, "/load"):
        path = load(chat.session, argument)
        chat.say(f"Loaded {path}: {plural(len(chat.session.turns), 'turn')}. {context_line(chat.session)}")
        if chat.session.turns:
            chat.say(f"The last message was: {shorten(chat.session.turns[-1].user)}")


def set_(chat: Chat, argument: str) -> None:
    name, _, value = argument.partition(" ")
    if value.strip():
        chat.session.change(name, as_value(value.strip()))
    elif name and name not in DEFAULTS:
        chat.session.checked({name: None})  # says that it is unknown
    for each in [name] if name else DEFAULTS:
        chat.say(f"{each} {json.dumps(chat.session.settings[each], ensure_ascii=False)}")


def stats(chat: Chat, _: str) -> None:
    session = chat.session
    transformer = session.llama.transformer
    chat.say(f"Model: {transformer.checkpoint.path}, threads: {transformer.n_threads}")
    chat.say(f"Turns: {len(session.turns)}. {context_line(session)}")
    seeds = ", ".join(str(turn.seed) for turn in session.turns) or "none"
    chat.say(f"Seeds of the replies: {seeds}. The next reply has seed {session.settings['seed']}.")


def quit_(chat: Chat, _: str) -> None:
    chat.ended = True


COMMANDS = {
    "/help": Command("", "list the commands", help_),
    "/system": Command("TEXT", "set the system prompt; without TEXT show it; /system off: none", system),
    "/retry": Command("", "make another reply to the last message, with the next seed", retry),
    "/undo": Command("", "drop the last message and its reply", undo),
    "/forget": Command("N", "drop the N oldest turns; without N as many as free half of the context", forget),
    "/reset": Command("", "drop all turns", reset),
    "/save": Command("FILE", "save the chat", save_),
    "/load": Command("FILE", "go on with a saved chat", load_),
    "/set": Command("NAME VALUE", "change a setting, such as temperature 0.7; without VALUE show it", set_),
    "/stats": Command("", "the model, the context in use, the seeds of the replies", stats),
    "/quit": Command("", "end the chat, as Ctrl-D does", quit_),
}
ELSEWHERE = {
    "/exit": "/quit", "/bye": "/quit", "/q": "/quit", "/clear": "/reset", "/new": "/reset", "/regenerate": "/retry",
    "/?": "/help",
}  # fmt: skip


# ---------------------------------------------------------------------------
# what they share


def has_turns(chat: Chat) -> bool:
    if not chat.session.turns:
        chat.say("There is no message yet.")
    return bool(chat.session.turns)


def needs(chat: Chat, argument: str, name: str) -> bool:
    if not argument:
        chat.say(f"{name} needs the name of a file: {name} chat.json")
    return bool(argument)


def as_value(text: str) -> Any:
    """A value as it is typed: JSON, "none" or "off" for null, else the text itself. "0.7" -> 0.7, "END" -> "END"."""
    if text.lower() in ("none", "off"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def context_line(session: Session) -> str:
    return f"{session.count_tokens()} of {session.context} tokens of the context are used."


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def shorten(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:60]}…"
