"""A chat that can be changed: its turns, its settings, and the cache that they share. Prints nothing.

Each reply is the one that Llama.chat gives for the same messages, settings and seed. The first reply has the seed that the
settings name, the next one that seed + 1, and so on; a reply that is made again, or whose turn was dropped, counts too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from time import perf_counter
from typing import Any, TypeAlias, cast

from .. import generation
from ..errors import RequestError, check_int
from ..generation import Options, count_common
from ..llama import Llama, reply_pieces
from ..requests import Piece
from ..text.chat import chat_ids
from .prompt_cache import PromptCache

# The settings with their defaults: options of Llama.chat. `seed` is that of the next reply.
DEFAULTS: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 0.9,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "max_tokens": None,
    "stop": [],
    "seed": 0,
}
N_SEEDS = 2**64

Message: TypeAlias = "dict[str, str]"


class ContextFullError(RequestError):
    """A message does not fit into the context. `alone`: not even without the turns before it."""

    def __init__(self, message: str, alone: bool) -> None:
        super().__init__(message, "messages")
        self.alone = alone


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user said, and the reply with its seed."""

    user: str
    reply: str
    seed: int


class Reply:
    """A reply while it is made: iterate over its pieces. `text` and the figures are those so far."""

    def __init__(self, turns: list[Turn], user: str, seed: int, sequence: generation.Sequence, pieces: Iterator[Piece]) -> None:
        self.turns, self.user, self.seed = turns, user, seed
        self.text = ""
        self.n_read = len(sequence.to_feed)  # tokens of the prompt that were not in the cache
        self.read_seconds = 0.0
        self.n_written = 0
        self.rate = 0.0  # tokens a second, without the first; 0.0 if there is no other
        self._sequence, self._pieces = sequence, pieces

    def __iter__(self) -> Iterator[Piece]:
        start = perf_counter()
        for piece in self._pieces:
            if not self.n_written:
                self.read_seconds = perf_counter() - start
            self.text += piece.text
            self.n_written, self.rate = piece.generation_tokens, piece.generation_tps
            yield piece

    @property
    def finish_reason(self) -> str | None:
        """None: it is not at its end."""
        return self._sequence.finish_reason

    @property
    def n_tokens(self) -> int:
        """Tokens of the whole conversation with those of the reply so far: one more than the context if it is full."""
        return len(self._sequence.ids)


class Session:
    """A conversation with a model.

    settings  those of DEFAULTS that are to be different
    context   positions that the conversation may fill, at most those of the model
    system    the system prompt; "": none, so that a template may put its own
    now       the date that a template sees in all turns; None: today
    prompt_cache  what earlier runs have computed; None: nothing
    RequestError or TypeError: a wrong setting or context. MemoryError: there is no room for so long a context.
    """

    def __init__(
        self,
        llama: Llama,
        settings: Mapping[str, Any],
        context: int,
        system: str = "",
        now: date | None = None,
        prompt_cache: PromptCache | None = None,
    ) -> None:
        self.llama = llama
        self._prompt_cache = PromptCache(llama, None) if prompt_cache is None else prompt_cache
        self.context = check_int("context", context, 1, llama.transformer.config.seq_len)
        self.system = system
        self.now = date.today() if now is None else now
        self.turns: list[Turn] = []
        self.settings: dict[str, Any] = self.checked({**DEFAULTS, **settings})
        self._cache = llama.transformer.new_cache(context)
        self._sequence: generation.Sequence | None = None  # of the last reply; the cache holds the first n_fed of its ids

    def checked(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of some settings, in which a seed of None has become a number.

        RequestError or TypeError: one of them is unknown, or is one that Llama.chat refuses.
        """
        unknown = next((name for name in settings if name not in DEFAULTS), None)
        if unknown is not None:
            raise RequestError(f"{unknown}: unknown setting; there are {', '.join(DEFAULTS)}", unknown)
        sequence = self.llama.sequence([0], **cast(Options, settings))
        return {**settings, "seed": sequence.sampler.seed} if "seed" in settings else {**settings}

    def change(self, name: str, value: Any) -> None:
        """Another value of a setting; errors as in checked()."""
        self.settings |= self.checked({name: value})

    def messages(self, turns: Iterable[Turn] | None = None) -> list[Message]:
        """The conversation, or these turns of it, as Llama.chat takes it. It ends with a reply."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns if turns is None else turns:
            messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.reply}]
        return messages

    def count_tokens(self, turns: Sequence[Turn] | None = None) -> int:
        """Tokens of the conversation, or of these turns, up to the last reply."""
        turns = self.turns if turns is None else turns
        if not turns:
            return 0
        *earlier, last = turns
        return len(self._ids(earlier, last.user)) + len(self.llama.tokenizer.encode(last.reply, bos=False))

    # ---- replies

    def ask(self, user: str) -> Reply:
        """Begin the reply to a message. The conversation is as before until keep().

        ContextFullError: there is no room for it. Other errors are those of Llama.chat.
        """
        return self._begin(self.turns, user)

    def retry(self) -> Reply:
        """Begin another reply to the last message; keep() replaces the one before. There must be a turn. Errors as in ask."""
        return self._begin(self.turns[:-1], self.turns[-1].user)

    def keep(self, reply: Reply) -> None:
        """Make a reply, as far as it was made, part of the conversation."""
        self.turns = [*reply.turns, Turn(reply.user, reply.text, reply.seed)]

    def _begin(self, turns: list[Turn], user: str) -> Reply:
        ids = self._ids(turns, user)
        room = self.context - len(ids) + 1
        if room < 1:
            n_alone = len(self._ids([], user))
            what, n = ("message", n_alone) if n_alone > self.context else ("conversation with this message", len(ids))
            raise ContextFullError(f"The {what} has {n} tokens, and the context {self.context}", alone=n_alone > self.context)
        most = self.settings["max_tokens"]
        options = {**self.settings, "max_tokens": room if most is None else min(room, most)}
        sequence = self.llama.sequence(ids, **cast(Options, options))
        if self._sequence is not None:
            fed = self._sequence.ids[: self._sequence.n_fed]
            sequence.n_fed = min(count_common(fed, ids), len(ids) - 1)
        self._prompt_cache.begin(sequence, self._cache)
        self._sequence = sequence
        self.settings["seed"] = (sequence.sampler.seed + 1) % N_SEEDS
        return Reply(turns, user, sequence.sampler.seed, sequence, reply_pieces(self.llama, sequence, self._cache))

    def _ids(self, turns: Sequence[Turn], user: str) -> list[int]:
        messages = [*self.messages(turns), {"role": "user", "content": user}]
        return chat_ids(self.llama.tokenizer, messages, now=self.now)

    # ---- changes

    def undo(self) -> Turn:
        """Drop the last turn, and return it. There must be one."""
        *self.turns, last = self.turns
        return last

    def reset(self) -> None:
        """Drop all turns. The system prompt, the settings and the next seed stay."""
        self.turns = []

    def forget(self, n: int | None = None) -> int:
        """Drop the n oldest turns; None: as few as make half of the context free, but one at least. Returns how many."""
        if n is None:
            n = 1
            while self.count_tokens(self.turns[n:]) > self.context // 2:
                n += 1
        n = min(n, len(self.turns))
        self.turns = self.turns[n:]
        return n
