"""The conversation of a terminal: its replies are those of Llama.chat, whatever was changed, interrupted or dropped before."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from fakes import FakeTransformer, fake_llama

from llama2c import RequestError, load
from llama2c.commands.session import DEFAULTS, ContextFullError, Reply, Session, Turn
from llama2c.llama import Llama
from llama2c.text.chat import chat_ids

SEED = 5


def session_of(llama: Llama, context: int = 512, **settings: Any) -> Session:
    return Session(llama, {"seed": SEED, "max_tokens": 12, **settings}, context)


def finish(session: Session, reply: Reply, n_pieces: int | None = None) -> Turn:
    """The turn of a reply, made to its end or interrupted after some pieces."""
    for i, _ in enumerate(reply, 1):
        if i == n_pieces:
            break
    session.keep(reply)
    return session.turns[-1]


def expected(session: Session, messages: list[dict[str, str]], seed: int) -> str:
    """The reply of the API, from a cache of its own."""
    return session.llama.chat(messages, **{**session.settings, "seed": seed}).text


def test_every_reply_is_that_of_the_api() -> None:
    """With the seed, the next one, and so on: also for a reply that is made again, and after turns were dropped."""
    session = session_of(fake_llama(pieces=[b" the", "漢".encode()]), top_k=40)
    messages: list[dict[str, str]] = []
    for i, text in enumerate(("one", "two", "three")):
        messages.append({"role": "user", "content": text})
        turn = finish(session, session.ask(text))
        assert turn == Turn(text, expected(session, messages, SEED + i), SEED + i)
        messages.append({"role": "assistant", "content": turn.reply})
    assert session.messages() == messages
    again = finish(session, session.retry())
    assert again == Turn("three", expected(session, messages[:-1], SEED + 3), SEED + 3)
    assert len(session.turns) == 3
    assert session.undo() == again
    assert session.messages() == messages[:4]
    assert session.forget(1) == 1
    asked = [*messages[2:4], {"role": "user", "content": "new"}]
    assert finish(session, session.ask("new")) == Turn("new", expected(session, asked, SEED + 4), SEED + 4)
    session.system = "be brief"
    asked = [{"role": "system", "content": "be brief"}, *messages[2:4]]
    assert session.undo().user == "new"
    finished = finish(session, session.ask("more"))
    assert finished.reply == expected(session, [*asked, {"role": "user", "content": "more"}], SEED + 5)


def test_only_what_is_new_is_fed() -> None:
    """The first prompt has 20 ids, and its reply 6 with the space: they are in the cache."""
    llama = fake_llama(" hello")
    session = session_of(llama, temperature=0)
    finish(session, session.ask("one"))
    ids = chat_ids(llama.tokenizer, [*session.messages(), {"role": "user", "content": "two"}])
    steps = cast(FakeTransformer, llama.transformer).steps
    steps.clear()
    reply = session.ask("two")
    assert reply.n_read == len(ids) - 26
    next(iter(reply))
    assert steps == [ids[26:]]


@pytest.mark.parametrize("n_pieces", [1, 3])
def test_an_interrupted_reply_stays_as_far_as_it_was_made(n_pieces: int) -> None:
    session = session_of(fake_llama("a reply of the model"), temperature=0)
    turn = finish(session, session.ask("one"), n_pieces)
    assert turn.reply == "a reply of the model"[:n_pieces]
    reply = session.ask("two")
    assert reply.finish_reason is None
    asked = [*session.messages(), {"role": "user", "content": "two"}]
    session.llama.transformer.script = None  # type: ignore[attr-defined]
    assert finish(session, session.ask("two")).reply == expected(session, asked, 0)


@pytest.mark.parametrize("n_steps", range(5))
def test_ctrl_c_at_any_step(n_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is that of the conversation also if the interrupt came after the model had been fed."""
    llama = fake_llama()
    session = session_of(llama)
    finish(session, session.ask("one"))
    forward = FakeTransformer.forward
    left = n_steps

    def interrupted(self: FakeTransformer, *arguments: Any, **options: Any) -> np.ndarray:
        nonlocal left
        row = forward(self, *arguments, **options)
        left -= 1
        if left == -1:
            raise KeyboardInterrupt
        return row

    monkeypatch.setattr(FakeTransformer, "forward", interrupted)
    reply = session.ask("two")
    with pytest.raises(KeyboardInterrupt):
        finish(session, reply)
    assert len(session.turns) == 1
    if reply.text:
        session.keep(reply)
    asked = [*session.messages(), {"role": "user", "content": "three"}]
    assert finish(session, session.ask("three")).reply == expected(session, asked, SEED + 2)


def test_the_end_of_the_context() -> None:
    """What fits of a reply is kept. A message that does not fit changes nothing, and takes no seed."""
    session = session_of(fake_llama(b"x" * 200, seq_len=64), 48, max_tokens=None, temperature=0)
    reply = session.ask("one")  # 17 tokens with BOS and a space
    turn = finish(session, reply)
    n_prompt = len(chat_ids(session.llama.tokenizer, [{"role": "user", "content": "one"}]))
    assert reply.finish_reason == "length" and reply.n_tokens == 49
    assert turn.reply == "x" * (48 - n_prompt + 1)
    with pytest.raises(ContextFullError, match=r"The conversation with this message has 71 tokens, and the context 48") as full:
        session.ask("two")
    assert not full.value.alone and full.value.param == "messages"
    with pytest.raises(ContextFullError, match="The message has 75 tokens, and the context 48") as full:
        session.ask("y" * 58)
    assert full.value.alone
    assert session.turns == [turn] and session.settings["seed"] == SEED + 1
    assert session.forget() == 1
    assert finish(session, session.ask("two")).user == "two"


def test_forget_frees_half_of_the_context() -> None:
    session = session_of(fake_llama("yes"), 200, temperature=0)
    for text in ("one", "two", "three", "four", "five", "six"):
        finish(session, session.ask(text))
    before = session.turns
    assert session.count_tokens() > 100
    n = session.forget()
    assert session.turns == before[n:] and 0 < n < 6
    assert session.count_tokens() <= 100 < session.count_tokens(before[n - 1 :])
    assert session.forget() == 1  # one at least
    assert session.forget(100) == len(before) - n - 1
    assert session.turns == []


def test_settings() -> None:
    session = session_of(fake_llama("abcdef"), temperature=0)
    assert session.settings == {**DEFAULTS, "seed": SEED, "max_tokens": 12, "temperature": 0}
    session.change("stop", "d")
    assert finish(session, session.ask("x")).reply == "abc"
    for name, value, message in [
        ("temperature", -1, "temperature: expected a finite number of at least 0, found -1.0"),
        ("temperature", "warm", "temperature: expected a number, found str"),
        ("top_p", 2, "top_p: expected a number from 0 to 1, found 2.0"),
        ("max_tokens", -1, "max_tokens: expected an integer of at least 0, found -1"),
        ("stop", "", "stop: expected a string of at least one character, found an empty one"),
        ("heat", 1, "heat: unknown setting; there are temperature, top_p, top_k, "),
        ("logprobs", 1, "logprobs: unknown setting"),
    ]:
        with pytest.raises((RequestError, TypeError)) as wrong:
            session.change(name, value)
        assert str(wrong.value).startswith(message)
        assert session.settings["stop"] == "d" and session.settings["temperature"] == 0
    session.change("seed", 2**64 - 1)
    assert finish(session, session.ask("x")).seed == 2**64 - 1
    assert finish(session, session.ask("x")).seed == 0
    session.change("seed", None)
    assert 0 <= session.settings["seed"] < 2**53


def test_an_empty_reply_is_a_turn() -> None:
    session = session_of(fake_llama(""), temperature=0)
    assert finish(session, session.ask("x")) == Turn("x", "", SEED)
    session.change("max_tokens", 0)
    reply = session.ask("x")
    assert finish(session, reply).reply == "" and reply.finish_reason == "length"


def test_a_real_model_with_its_template(smollm2: Path) -> None:
    """After an interrupted reply, another try and a dropped turn, the replies are those of the API."""
    pytest.importorskip("tokenizers")
    pytest.importorskip("jinja2")
    session = Session(load(smollm2), {"seed": SEED, "max_tokens": 8, "temperature": 0.7}, 256, "Be brief.")
    finish(session, session.ask("Name a river."), 4)
    for text in ("And one in Asia?", "Is it long? 🥞"):
        asked = [*session.messages(), {"role": "user", "content": text}]
        reply = session.ask(text)
        assert reply.n_read < 30 < reply.n_tokens
        turn = finish(session, reply)
        assert turn.reply == expected(session, asked, turn.seed)
    turn = finish(session, session.retry())
    assert turn.seed == SEED + 3 and turn.reply == expected(session, session.messages()[:-1], SEED + 3)
    session.forget(1)
    asked = [*session.messages(), {"role": "user", "content": "Why?"}]
    assert finish(session, session.ask("Why?")).reply == expected(session, asked, SEED + 4)
