"""The JSON that OpenAI's clients get: answers, chunks of streams, log-probabilities, usage and errors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..scoring import TokenScore
from ..text.tokenizer import Tokenizer
from .tools import join_calls

SMALLEST = -9999.0  # what OpenAI's interface has for a probability of 0, as JSON has no infinity
ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def dump(value: Any) -> bytes:
    """JSON in ASCII, so that any str can be sent, also a message that quotes half of a surrogate pair."""
    return ENCODER.encode(value).encode()


def event(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + dump(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"
COMMENT = b": still here\n\n"


class Delta(NamedTuple):
    """What is new of a choice."""

    text: str
    tokens: Sequence[TokenScore]  # none where no log-probabilities are asked for
    finish_reason: str | None
    calls: Sequence[Mapping[str, Any]] = ()  # entries of `tool_calls` in a stream


def token_text(tokenizer: Tokenizer, token: int) -> str:
    r"""A token as OpenAI's lists have it: " dog", or "bytes:\xe2\x82" for a part of a character."""
    piece = tokenizer.piece(token)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else SMALLEST


def completion_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenScore], offset: int) -> dict[str, Any]:
    """The lists of /v1/completions. offset: characters of the text before the first of these tokens.

    The token itself is always among the likeliest. Of tokens with the same text, the likeliest is there.
    """
    texts = [token_text(tokenizer, token.token) for token in tokens]
    tops: list[dict[str, float] | None] = []
    offsets = []
    for text, (token, logprob, top) in zip(texts, tokens, strict=True):
        offsets.append(offset)
        offset += len(text)
        if logprob is None:
            tops.append(None)
            continue
        found: dict[str, float] = {}
        for other, value in (*top, (token, logprob)):
            name = token_text(tokenizer, other)
            found[name] = max(finite(value), found.get(name, -math.inf))
        tops.append(found)
    return {
        "tokens": texts,
        "token_logprobs": [None if token.logprob is None else finite(token.logprob) for token in tokens],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenScore]) -> dict[str, Any]:
    """The list of /v1/chat/completions."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        value = SMALLEST if logprob is None else finite(logprob)
        return {"token": token_text(tokenizer, token), "logprob": value, "bytes": list(tokenizer.piece(token))}

    content = [
        {**entry(token.token, token.logprob), "top_logprobs": [entry(*one) for one in token.top]} for token in tokens
    ]
    return {"content": content, "refusal": None}


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


class Answer:
    """The shapes of one answer. is_chat: of /v1/chat/completions. head: the fields that all its parts begin with."""

    def __init__(self, tokenizer: Tokenizer, is_chat: bool, head: dict[str, Any], logprobs: bool, include_usage: bool) -> None:
        self._tokenizer, self._is_chat, self._logprobs = tokenizer, is_chat, logprobs
        name = "chat.completion" if is_chat else "text_completion"
        self._head = {**head, "object": name}
        self._chunk = {**head, "object": f"{name}.chunk" if is_chat else name}
        self._before = b"data: " + dump(self._chunk)[:-1] + b',"choices":['  # of the choice in an event; the same for all
        self._after = b"]" + (b',"usage":null' if include_usage else b"") + b"}\n\n"
        self._offsets: dict[int, int] = {}  # of each choice: characters of the tokens so far

    def whole(self, choices: Sequence[Delta], used: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request without a stream."""
        return {**self._head, "choices": [self._choice(i, choice) for i, choice in enumerate(choices)], "usage": used}

    def _choice(self, i: int, made: Delta) -> dict[str, Any]:
        text: dict[str, Any] = {"text": made.text}
        if self._is_chat:
            text = {"message": self._message(made)}
        return {"index": i, **text, "logprobs": self._of_tokens(i, made.tokens), "finish_reason": made.finish_reason}

    def _message(self, made: Delta) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": made.text, "refusal": None}
        if made.calls:
            message |= {"content": made.text or None, "tool_calls": join_calls(made.calls)}
        return message

    def _of_tokens(self, i: int, tokens: Sequence[TokenScore]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        if self._is_chat:
            return chat_logprobs(self._tokenizer, tokens)
        offset = self._offsets.get(i, 0)
        found = completion_logprobs(self._tokenizer, tokens, offset)
        self._offsets[i] = offset + sum(map(len, found["tokens"]))
        return found

    def first_chunk(self, i: int) -> bytes:
        """What a stream sends before the text of a choice."""
        return self._of_choice(i, {"delta": {"role": "assistant", "content": ""}}, None, None) if self._is_chat else b""

    def chunks(self, i: int, delta: Delta) -> bytes:
        """What a stream sends for something new. The end has a chunk of its own, without text."""
        found = b""
        if delta.text or delta.tokens:
            text = {"delta": {"content": delta.text}} if self._is_chat else {"text": delta.text}
            found += self._of_choice(i, text, self._of_tokens(i, delta.tokens), None)
        for entry in delta.calls:
            found += self._of_choice(i, {"delta": {"tool_calls": [entry]}}, None, None)
        if delta.finish_reason is not None:
            nothing: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
            found += self._of_choice(i, nothing, None, delta.finish_reason)
        return found

    def _of_choice(self, i: int, made: dict[str, Any], logprobs: Any, finish_reason: str | None) -> bytes:
        choice = {"index": i, **made, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._before + dump(choice) + self._after

    def last_chunk(self, used: dict[str, Any]) -> dict[str, Any]:
        """The usage, of a stream that was asked for it."""
        return {**self._chunk, "choices": [], "usage": used}


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
