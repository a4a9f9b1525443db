"""Reads what a user types: with prompt_toolkit if it is installed, else with readline, else as the terminal gives it."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from .history import History
from .screen import is_dumb
from .terminal import put

Complete = Callable[[str], "list[str]"]  # the beginning of a line -> the lines that it may become

PROMPT = "> "
MORE = ". "  # before the other lines of a message
EXTRA = "pip install 'llama2c[chat]'"


class Editor(Protocol):
    """How a message is typed.

    hint          what a user should know about it; "" for nothing
    marks_pastes  whether it asks the terminal to mark what is pasted ("bracketed paste"), and knows these marks
    """

    hint: str
    marks_pastes: bool

    def read(self) -> str:
        """A message, without its last newline. EOFError: Ctrl-D; KeyboardInterrupt: Ctrl-C.

        In each case the cursor is at the beginning of a line.
        """


def open_editor(history: History, complete: Complete) -> Editor:
    """The best editor there is here. What is read is added to the history, except empty lines.

    prompt_toolkit does not know the marks of a paste in a dumb terminal, and would take its lines for several messages.
    """
    if not is_dumb():
        try:
            return ToolkitEditor(history, complete)
        except ImportError:
            pass
    try:
        return ReadlineEditor(history, complete)
    except ImportError:
        return PlainEditor(history)


def remember(history: History, text: str) -> str:
    """The text that was read, as valid Unicode, after it was added to the history."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if text.strip():
        history.add(text)
    return text


class ToolkitEditor:
    """Lines edited by prompt_toolkit. Enter sends, Alt-Enter begins another line, and so does a newline in a paste."""

    hint = "Alt-Enter begins another line."
    marks_pastes = True

    def __init__(self, history: History, complete: Complete) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import Completer, Completion
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings

        class Commands(Completer):  # type: ignore[misc]
            def get_completions(self, document: Any, event: Any) -> Any:
                line = document.text
                return [Completion(found, start_position=-len(line)) for found in complete(line)]

        keys = KeyBindings()
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        self._history = history
        self._session: Any = PromptSession(
            history=InMemoryHistory(history.entries),
            completer=Commands(),
            complete_while_typing=False,
            key_bindings=keys,
            prompt_continuation=MORE,
        )

    def read(self) -> str:
        text: str = self._session.prompt(PROMPT)
        return remember(self._history, text)


class ReadlineEditor:
    """Lines edited by readline. A paste of several lines is one message."""

    hint = ""

    def __init__(self, history: History, complete: Complete) -> None:
        import readline

        self._history = history
        self._readline = readline
        is_libedit = "libedit" in (readline.__doc__ or "")
        self.marks_pastes = not is_libedit and not is_dumb()
        if self.marks_pastes:
            readline.parse_and_bind("set enable-bracketed-paste on")
        if not is_libedit:  # UTF-8 also in the locale C, where readline would take its bytes for keys with Alt
            for setting in ("input-meta on", "output-meta on", "convert-meta off"):
                readline.parse_and_bind(f"set {setting}")
        readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
        readline.set_completer_delims("")
        readline.set_completer(lambda line, i: [*complete(line), None][i])
        readline.set_auto_history(False)
        for entry in history.entries:
            self._offer(entry)
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]

    def read(self) -> str:
        with newline_at_the_end():
            text = input(PROMPT)
        if not self.marks_pastes:
            with contextlib.suppress(EOFError):
                while has_input():
                    text += "\n" + input(MORE)
        text = remember(self._history, text)
        if text.strip():
            self._offer(text)
        return text

    def _offer(self, entry: str) -> None:
        """Let the arrow keys bring an entry back: as the bytes that the terminal gives for it, in any locale."""
        data = entry.encode(sys.stdin.encoding, "replace")
        self._readline.add_history(data.decode("ascii", "surrogateescape"))


class PlainEditor:
    """Lines as the terminal gives them. Lines that arrive at once, as a paste does, are one message."""

    hint = f"This Python has no readline: there are no arrow keys, and lines end at 4,095 characters. {EXTRA} helps."
    marks_pastes = False

    def __init__(self, history: History) -> None:
        self._history = history

    def read(self) -> str:
        put(PROMPT)
        data = b""
        with newline_at_the_end():
            while chunk := os.read(sys.stdin.fileno(), 1 << 16):
                data += chunk
                if data.endswith(b"\n") and not has_input():
                    break
            if not data:
                raise EOFError
        return remember(self._history, data.decode("utf-8", "replace").removesuffix("\n"))


@contextlib.contextmanager
def newline_at_the_end() -> Iterator[None]:
    """Ends the line of a prompt that Ctrl-C or Ctrl-D has left."""
    try:
        yield
    except (KeyboardInterrupt, EOFError):
        put("\n")
        raise


def has_input() -> bool:
    """Whether there is more to read from the terminal now, which nobody types so quickly: the next line of a paste."""
    return bool(select.select([sys.stdin], [], [], 0)[0])
