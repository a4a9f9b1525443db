"""The chat in a terminal. Where stdin or stdout is no terminal, chat.py chats as run.c does."""

from __future__ import annotations

import os
from typing import Any

from ..llama import Llama
from .flags import Arguments
from .history import History
from .line_editor import Editor, open_editor
from .prompt_cache import PromptCache
from .screen import has_terminal, interruptible, line_width, note, quiet_keys, uninterrupted
from .session import ContextFullError, Reply, Session
from .slash_commands import complete, run_command
from .terminal import describe_error, put
from .wrapping import WordWrap

__all__ = ["has_terminal", "interactive"]

WAY_OUT = "/forget drops the oldest turns, /reset starts anew."
LEAST_CONTEXT = 512  # with less there is no chat
STOPPED = "Stopped before there was a reply: the conversation is as it was."


def interactive(llama: Llama, arguments: Arguments, prompt_cache: PromptCache) -> None:
    """Chat until the user ends it. arguments.seed is the seed of the first reply. Errors as of Session."""
    settings = {
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "stop": arguments.stop,
        "seed": arguments.seed,
    }
    session = open_session(llama, settings, arguments, prompt_cache)
    history = History.open()
    with uninterrupted():
        chat = TerminalChat(session, open_editor(history, complete))
        chat.greet(history.problem)
        chat.run(None if arguments.prompt is None else as_text(arguments.prompt))


def open_session(
    llama: Llama, settings: dict[str, Any], arguments: Arguments, prompt_cache: PromptCache | None = None
) -> Session:
    """A session with the whole context of the model, or what --context or --steps ask for, if that is less.

    Where nothing was asked for and there is not enough memory for the whole context, it is half of it, a quarter, and so on.
    """
    seq_len = llama.transformer.config.seq_len
    asked = [n for n in (arguments.context, arguments.steps) if n is not None and n > 0]
    context = min([*asked, seq_len])
    system = as_text(arguments.system_prompt or "")
    while True:
        try:
            return Session(llama, settings, context, system, prompt_cache=prompt_cache)
        except MemoryError:
            if asked or context <= LEAST_CONTEXT:
                raise
            context //= 2


def as_text(argument: str) -> str:
    """An argument of the command line as valid Unicode: bytes that were not become U+FFFD."""
    return os.fsencode(argument).decode("utf-8", "replace")


class TerminalChat:
    """A session with a user at a terminal: reads messages and commands, writes replies."""

    def __init__(self, session: Session, editor: Editor) -> None:
        self.session = session
        self.ended = False
        self._editor = editor

    def greet(self, problem: str | None) -> None:
        """Say which model this is, and what to do. problem: why messages will not be remembered."""
        session = self.session
        transformer = session.llama.transformer
        name = os.path.basename(os.fsdecode(transformer.checkpoint.path))
        whole = transformer.config.seq_len
        of = "" if session.context == whole else f" of {whole}"
        self.say(f"{name}, context {session.context}{of} tokens")
        self.say("/help lists the commands, /system sets a system prompt, Ctrl-D ends the chat.")
        if self._editor.hint:
            self.say(self._editor.hint)
        if problem is not None:
            self.say(f"What you type is not kept for the next chat: {problem}")

    def run(self, first: str | None = None) -> None:
        """Until Ctrl-D or /quit. first: the first message, as if it had been typed."""
        if first is not None:
            self.take(first)
        while not self.ended:
            try:
                with interruptible():
                    line = self._editor.read()
            except KeyboardInterrupt:
                self.say("Ctrl-D or /quit ends the chat.")
            except EOFError:
                break
            else:
                self.take(line)

    def take(self, line: str) -> None:
        """A message or a command; an empty one is ignored. An error becomes a line, and the chat goes on."""
        try:
            with interruptible(), quiet_keys(self._editor.marks_pastes):
                self._answer(line.rstrip())
        except KeyboardInterrupt:
            put("\n")
            self.say(STOPPED)
        except ContextFullError as error:
            self.say(f"{error}: it was not sent. {'Shorten it.' if error.alone else WAY_OUT}")
        except (ValueError, TypeError, OSError, MemoryError) as error:
            self.say(describe_error(error))

    def _answer(self, line: str) -> None:
        start = line.lstrip()
        if start.startswith("//"):
            self.show(self.session.ask(start[1:]))
        elif start.startswith("/"):
            run_command(self, start)
        elif line:
            self.show(self.session.ask(line))

    def say(self, line: str) -> None:
        """A line about the chat, wrapped."""
        wrap = WordWrap(line_width)
        note(wrap.feed(line) + wrap.flush())

    def show(self, reply: Reply) -> None:
        """Write a reply as it is made, wrapped, then its speed. What there is of it when Ctrl-C ends it is kept."""
        wrap = WordWrap(line_width)
        try:
            for piece in reply:
                put(wrap.feed(piece.text))
        except KeyboardInterrupt:
            pass
        finally:
            end = wrap.flush()
            put(f"{end}\n" if wrap.column else end)
        if reply.finish_reason is None and not reply.text:
            self.say(STOPPED)
            return
        self.session.keep(reply)
        self.say(self._summary(reply))

    def _summary(self, reply: Reply) -> str:
        """How fast a reply was made, and why it ends, unless the model ended it."""
        context = self.session.context
        speed = f", {reply.rate:.1f} tok/s" if reply.rate else ""
        figures = (
            f"[{reply.n_read} tokens read in {reply.read_seconds:.2f} s, {reply.n_written} written{speed}, "
            f"{min(reply.n_tokens, context)} of {context} in use]"
        )
        if reply.finish_reason is None:
            return f"{figures} Stopped. What there is of the reply is kept."
        if reply.finish_reason == "stop":
            return figures
        if reply.n_tokens > context:
            return f"{figures} The context is full, so the reply ends here. {WAY_OUT}"
        return f"{figures} The reply ends after max_tokens, {self.session.settings['max_tokens']}."
