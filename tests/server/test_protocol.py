"""Bodies as jobs, without a server."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

pytest.importorskip("starlette")

from llama2c import RequestError
from llama2c.server.fields import DEPTH, read_body
from llama2c.server.protocol import (
    COMPLETION_TOKENS,
    Job,
    read_chat,
    read_completion,
    read_detokenize,
    read_tokenize,
    seed_of_choice,
)

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


def test_what_is_missing_has_the_defaults() -> None:
    options: Any = {"max_tokens": COMPLETION_TOKENS, "stop": [], "logit_bias": None}
    assert read_completion({"prompt": "x"}) == Job(["x"], 1, None, options, False, False, None, None)
    assert read_chat(CHAT).options == {**options, "max_tokens": None}  # up to the end of the context


def test_null_is_as_good_as_missing() -> None:
    names = ("n", "seed", "stream", "stop", "logprobs", "temperature", "suffix", "echo", "best_of", "top_k", "unheard_of")
    assert read_completion({"prompt": "x", **dict.fromkeys(names)}) == read_completion({"prompt": "x"})
    names = ("tools", "response_format", "date", "top_logprobs", "max_completion_tokens", "stream_options", "function_call")
    assert read_chat({**CHAT, **dict.fromkeys(names)}) == read_chat(CHAT)


def test_values_come_through() -> None:
    body = {"temperature": 0, "top_p": 1, "frequency_penalty": -0.5, "stop": ["a", "b"], "top_k": 3.0}
    body["logit_bias"] = {"7": -100}
    options = read_completion({"prompt": "x", "max_tokens": 0, "logprobs": 0, **body}).options
    assert options == {
        "temperature": 0.0, "top_p": 1.0, "frequency_penalty": -0.5, "stop": ["a", "b"], "logit_bias": {7: -100.0}, "top_k": 3,
        "max_tokens": 0, "logprobs": 1,
    }  # fmt: skip
    job = read_chat({**CHAT, "max_tokens": 3, "date": "2026-01-31", "n": 2, "seed": -1, "logprobs": True, "top_logprobs": 5})
    assert (job.options["max_tokens"], job.date, job.n, job.seed) == (3, date(2026, 1, 31), 2, 2**64 - 1)
    assert (job.options["logprobs"], job.top_logprobs) == (5, 5)


def test_messages_become_what_templates_take() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "developer", "content": "Be brief.", "name": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
        {"role": "assistant", "content": "3", "tool_calls": []},
    ]
    [job] = read_chat({"messages": messages}).prompts
    assert job == [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "tool_calls": [{**call, "function": {"name": "f", "arguments": {"a": 1}}}]},
        messages[2],
        {"role": "assistant", "content": "3"},
    ]


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("n", 0), ("n", 1.5), ("n", True), ("n", 257), ("n", "1"), ("n", 1e300), ("n", float("inf")), ("seed", 2**64),
        ("seed", -(2**63) - 1), ("stream", 1), ("stream", "true"), ("stream_options", {"include_usage": True}),
        ("stop", 5), ("stop", ["a"] * 17), ("stop", ["a" * 1025]), ("stop", [1]), ("logprobs", 21), ("logprobs", -1),
        ("logprobs", True), ("max_tokens", -1), ("temperature", "1"), ("temperature", 10**400), ("logit_bias", []),
        ("logit_bias", {"x": 1}), ("logit_bias", {"1": "x"}), ("logit_bias", {"-1": 1}), ("suffix", "x"), ("best_of", 2),
        ("best_of", True), ("echo", "yes"), ("model", 3), ("prompt", 3), ("prompt", []), ("prompt", [[]]), ("prompt", [True]),
        ("prompt", ["a", 1]), ("prompt", [[1], "a"]), ("prompt", [1.0]), ("prompt", ["a"] * 257), ("prompt", None),
        ("ignore_eos", True), ("messages", []),
    ],
)  # fmt: skip
def test_refused_fields_of_a_completion_are_named(param: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"^{param}: ") as error:
        read_completion({"prompt": "x", param: value})
    assert error.value.param == param


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("messages", "Hi"), ("messages", []), ("messages", [1]), ("messages", [{}]), ("messages", [{"role": "user"}]),
        ("messages", [{"role": 1, "content": ""}]), ("messages", [{"role": "user", "content": 1}]),
        ("messages", [{"role": "assistant", "tool_calls": 1}]), ("messages", [{"role": "assistant", "tool_calls": [{}]}]),
        ("messages", [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]}]),
        ("top_logprobs", 1), ("logprobs", 1), ("response_format", "json"), ("response_format", {"type": "xml"}),
        ("response_format", {"type": "json_schema"}), ("response_format", {"type": "json_object", "schema": {}}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x"}}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 70000]}}}),
        ("date", "tomorrow"), ("date", "20260131"), ("date", 5),
        ("tools", [1]), ("tool_choice", "required"), ("functions", [1]),
        ("modalities", ["audio"]), ("reasoning_effort", "low"), ("prompt", "x"), ("chat_template_kwargs", 5), ("audio", {}),
    ],
)  # fmt: skip
def test_refused_fields_of_a_chat_are_named(param: str, value: Any) -> None:
    with pytest.raises(RequestError, match=rf"^{param}\b") as error:
        read_chat({**CHAT, param: value})
    assert error.value.param == param


def test_two_limits_that_differ() -> None:
    assert read_chat({**CHAT, "max_tokens": 5, "max_completion_tokens": 5}).options["max_tokens"] == 5
    with pytest.raises(RequestError, match="max_tokens: "):
        read_chat({**CHAT, "max_tokens": 5, "max_completion_tokens": 6})


def test_too_many_choices_in_all() -> None:
    assert read_completion({"prompt": ["a"] * 128, "n": 2}).n == 2
    with pytest.raises(RequestError, match="n: expected at most 256 choices"):
        read_completion({"prompt": ["a"] * 128, "n": 3})


def test_bodies_have_a_depth() -> None:
    def nested(n: int) -> bytes:
        return b'{"a":' * n + b"1" + b"}" * n

    assert read_body(nested(DEPTH))
    with pytest.raises(RequestError, match="body: expected at most 64"):
        read_body(nested(DEPTH + 1))


def test_the_tokenizers_bodies() -> None:
    assert read_tokenize({"prompt": "a", "add_special_tokens": False}) == ("a", False)
    assert read_tokenize({"prompt": "a"}) == ("a", True)
    assert read_detokenize({"tokens": [1, 2]}, 2) == [1, 2]
    for body in ({"tokens": [1, 2, 3]}, {"tokens": [True]}, {"tokens": "1"}, {}):
        with pytest.raises(RequestError, match="tokens: "):
            read_detokenize(body, 2)


def test_seeds_wrap() -> None:
    assert seed_of_choice(2**64 - 1, 1, 0) == 0
