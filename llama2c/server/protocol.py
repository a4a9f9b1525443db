"""What OpenAI's clients ask for, as requests to an engine: a JSON body becomes a Job. No server, no model, no clock.

Whatever would change the answer and is not supported is a RequestError that names the field. What changes nothing passes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, cast

from ..errors import RequestError
from ..generation import Options
from ..requests import Prompt
from ..sampler import seed_of_sample
from .fields import (
    Body,
    array,
    boolean,
    check_keys,
    check_known,
    check_neutral,
    given,
    integer,
    is_too_deep,
    mapping,
    name_of,
    number,
    string,
)
from .tools import VARIABLES, Tools, read_tools

MOST_CHOICES = 256  # of one request: prompts times n
MOST_LOGPROBS = 20
MOST_STOPS = 16
MOST_MESSAGES = 4096
STOP_LENGTH = 1024  # characters
SCHEMA_LENGTH = 1 << 16  # characters of a schema as JSON
MOST_TOKENS = 1 << 31
COMPLETION_TOKENS = 16  # what OpenAI's interface says of /v1/completions without max_tokens

# They change no byte of an answer.
NO_EFFECT = (
    "user", "store", "metadata", "service_tier", "prediction", "safety_identifier", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention",
)  # fmt: skip
NUMBERS = {
    "temperature": number,
    "top_p": number,
    "min_p": number,
    "repetition_penalty": number,
    "frequency_penalty": number,
    "presence_penalty": number,
}
COMMON = (
    "model", "n", "seed", "stream", "stream_options", "stop", "max_tokens", "logprobs", "logit_bias", "top_k",
    *NUMBERS, *NO_EFFECT,
)  # fmt: skip
COMPLETION_NEUTRAL: dict[str, tuple[Any, ...]] = {"suffix": ("",)}
CHAT_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none",),
    "audio": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
# All fields that a body may have. openapi.py describes them.
COMPLETION_FIELDS = (*COMMON, *COMPLETION_NEUTRAL, "prompt", "echo", "best_of")
CHAT_FIELDS = (
    *COMMON, *CHAT_NEUTRAL, "messages", "top_logprobs", "max_completion_tokens", "response_format", "chat_template_kwargs",
    "date", "tools", "tool_choice", "parallel_tool_calls",
)  # fmt: skip
TOKENIZE_FIELDS = ("model", "prompt", "add_special_tokens")
DETOKENIZE_FIELDS = ("model", "tokens")


@dataclass(frozen=True, slots=True)
class Job:
    """What a body asks for. Choice i * n + k of the answer is sample k of prompt i."""

    prompts: list[Prompt]  # a chat has one
    n: int
    seed: int | None  # None: the server draws one
    options: Options  # of all choices; without a seed
    stream: bool
    include_usage: bool
    top_logprobs: int | None  # None: no log-probabilities
    model: str | None
    echo: bool = False
    template_options: Mapping[str, Any] | None = None
    date: date | None = None
    tools: Tools | None = None
    is_chat: bool = field(default=False)

    @property
    def scores_prompt(self) -> bool:
        """Whether it asks for the log-probabilities of the prompt."""
        return self.echo and self.top_logprobs is not None

    @property
    def constrained(self) -> bool:
        """Whether a schema or a grammar says what the answer may be."""
        return "schema" in self.options or (self.tools is not None and self.tools.constrained)


def seed_of_choice(seed: int, prompt: int, sample: int) -> int:
    """The seed of sample k of prompt i, as Llama.generate_many and Engine.submit have it."""
    return seed_of_sample((seed + prompt) % 2**64, sample)


def read_completion(body: Body) -> Job:
    """A body of /v1/completions."""
    check_known(body, COMPLETION_FIELDS)
    check_neutral(body, COMPLETION_NEUTRAL)
    prompts = read_prompts(body.get("prompt"))
    job_fields = read_common(body, len(prompts))
    check_neutral(body, {"best_of": (1, job_fields["n"])})
    top_logprobs = integer(body, "logprobs", 0, MOST_LOGPROBS)
    max_tokens = integer(body, "max_tokens", 0, MOST_TOKENS)
    options = read_options(body, top_logprobs)
    options["max_tokens"] = COMPLETION_TOKENS if max_tokens is None else max_tokens
    return Job(prompts=prompts, options=options, top_logprobs=top_logprobs, echo=boolean(body, "echo"), **job_fields)


def read_chat(body: Body) -> Job:
    """A body of /v1/chat/completions."""
    check_known(body, CHAT_FIELDS)
    check_neutral(body, CHAT_NEUTRAL)
    top_logprobs = integer(body, "top_logprobs", 0, MOST_LOGPROBS)
    if not boolean(body, "logprobs"):
        if top_logprobs:
            raise RequestError("top_logprobs: needs logprobs to be true", "top_logprobs")
        top_logprobs = None
    elif top_logprobs is None:
        top_logprobs = 0
    options = read_options(body, top_logprobs)
    options["max_tokens"] = read_limit(body)
    schema = read_format(mapping(body, "response_format"))
    if schema is not None:
        options["schema"] = schema
    tools = read_tools(body)
    template_options = mapping(body, "chat_template_kwargs")
    if tools is not None:
        if schema is not None:
            raise RequestError("response_format: expected text, as there are tools, found another type", "response_format")
        twice = next((name for name in VARIABLES if name in (template_options or ())), None)
        if twice is not None:
            raise RequestError(f"chat_template_kwargs: {twice} is a field of the request, too", "chat_template_kwargs")
    return Job(
        prompts=[read_messages(body)],
        options=options,
        top_logprobs=top_logprobs,
        template_options=template_options,
        date=read_date(string(body, "date")),
        tools=tools,
        is_chat=True,
        **read_common(body, 1),
    )


def read_common(body: Body, n_prompts: int) -> dict[str, Any]:
    """The fields of a Job that both endpoints have."""
    n = integer(body, "n", 1, MOST_CHOICES)
    n = 1 if n is None else n
    if n * n_prompts > MOST_CHOICES:
        raise RequestError(f"n: expected at most {MOST_CHOICES} choices of all prompts, found {n * n_prompts}", "n")
    stream = boolean(body, "stream")
    seed = integer(body, "seed", -(2**63), 2**64 - 1)
    return {
        "n": n,
        "seed": None if seed is None else seed % 2**64,
        "stream": stream,
        "include_usage": read_stream_options(mapping(body, "stream_options"), stream),
        "model": string(body, "model"),
    }


def read_stream_options(options: Body | None, stream: bool) -> bool:
    """Whether a stream ends with the usage."""
    if options is None:
        return False
    name = "stream_options"
    if not stream:
        raise RequestError(f"{name}: needs stream to be true", name)
    for key, value in options.items():
        if key not in ("include_usage", "include_obfuscation") or not isinstance(value, (bool, type(None))):
            raise RequestError(f"{name}: expected include_usage as a boolean, found {key} as {name_of(value)}", name)
    return bool(options.get("include_usage"))


def read_options(body: Body, top_logprobs: int | None) -> Options:
    """The options of each choice. The ranges are for the engine to check."""
    options = dict(given(body, NUMBERS))
    top_k = integer(body, "top_k", 0, MOST_TOKENS)
    if top_k is not None:
        options["top_k"] = top_k
    found = cast("Options", options)
    found["stop"] = read_stops(body.get("stop"))
    found["logit_bias"] = read_bias(mapping(body, "logit_bias"))
    if top_logprobs is not None:
        found["logprobs"] = max(top_logprobs, 1)  # 0: the drawn token alone
    return found


def read_limit(body: Body) -> int | None:
    """max_tokens of a chat, by its new or its old name. None: up to the end of the context."""
    new, old = (integer(body, name, 0, MOST_TOKENS) for name in ("max_completion_tokens", "max_tokens"))
    if new is not None and old is not None and new != old:
        raise RequestError("max_tokens: expected no other value than max_completion_tokens has", "max_tokens")
    return old if new is None else new


def read_stops(value: Any) -> list[str]:
    name = "stop"
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise RequestError(f"{name}: expected a string or an array of strings, found another type", name)
    if len(stops) > MOST_STOPS or any(len(stop) > STOP_LENGTH for stop in stops):
        raise RequestError(f"{name}: expected at most {MOST_STOPS} strings of at most {STOP_LENGTH} characters", name)
    return stops


def read_bias(value: Body | None) -> dict[int, float] | None:
    """{"5": -100} -> {5: -100.0}."""
    if value is None:
        return None
    name = "logit_bias"
    bias = {}
    for key in value:
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise RequestError(f"{name}: expected token ids as keys, found {key[:20]!r}", name)
        try:
            bias[int(key)] = number(value, key) or 0.0
        except RequestError as error:
            raise RequestError(f"{name}: {error}", name) from None
    return bias


def read_prompts(value: Any) -> list[Prompt]:
    """A text, texts, ids or lists of ids: [1, 2] -> [[1, 2]]."""
    name = "prompt"
    expected = f"{name}: expected a string, an array of strings, of token ids, or of arrays of token ids"
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise RequestError(f"{expected}, found {'an empty array' if value == [] else name_of(value)}", name)
    if _is_ids(value):
        return [value]
    if not all(isinstance(prompt, str) for prompt in value) and not all(_is_ids(prompt) for prompt in value):
        raise RequestError(f"{expected}, found an array of something else", name)
    if len(value) > MOST_CHOICES:
        raise RequestError(f"{name}: expected at most {MOST_CHOICES} prompts, found {len(value)}", name)
    return value


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(element) is int for element in value)


def read_messages(body: Body) -> Prompt:
    """The messages as a chat template takes them: without what is null, arguments of tool calls as objects."""
    messages = array(body, "messages", MOST_MESSAGES)
    if not messages:
        raise RequestError("messages: expected at least one message, found none", "messages")
    return [read_message(i, message) for i, message in enumerate(messages)]


def read_message(i: int, message: Any) -> dict[str, Any]:
    where = f"messages[{i}]"
    if not isinstance(message, dict):
        raise RequestError(f"{where}: expected an object, found {name_of(message)}", "messages")
    found = {key: value for key, value in message.items() if value is not None}
    if found.get("tool_calls") == []:  # some clients send it; templates would take it for a call
        del found["tool_calls"]
    if not isinstance(found.get("role"), str):
        raise RequestError(f"{where}: expected a string as role, found {name_of(found.get('role'))}", "messages")
    if not isinstance(found.get("content", ""), (str, list)):
        raise RequestError(f"{where}: expected a string or parts as content, found {name_of(found['content'])}", "messages")
    if "content" not in found and "tool_calls" not in found:
        raise RequestError(f"{where}: expected content, found none", "messages")
    if found["role"] == "developer":  # what OpenAI calls it now; templates know the old name
        found["role"] = "system"
    if "tool_calls" in found:
        found["tool_calls"] = read_calls(found["tool_calls"], f"{where}.tool_calls")
    return found


def read_calls(calls: Any, where: str) -> list[Any]:
    """Calls of an earlier turn, as templates take them."""
    if not isinstance(calls, list):
        raise RequestError(f"{where}: expected an array, found {name_of(calls)}", "messages")
    read = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RequestError(f"{where}: expected calls of functions that have a name", "messages")
        arguments = function.get("arguments", "")
        if not isinstance(arguments, (str, dict)):
            raise RequestError(f"{where}: expected JSON in a string as arguments, found {name_of(arguments)}", "messages")
        read.append({**call, "function": {**function, "arguments": read_arguments(arguments)}})
    return read


def read_arguments(arguments: str | dict[str, Any]) -> str | dict[str, Any]:
    """The arguments of a call as an object: "" -> {}. A string that is not a JSON object stays what the model has written."""
    if isinstance(arguments, dict):
        return arguments
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) and not is_too_deep(value) else arguments


def read_format(value: Body | None) -> dict[str, Any] | None:
    """The schema that a response_format asks for; None: any text."""
    name = "response_format"
    if value is None:
        return None
    kind = value.get("type")
    if kind in ("text", "json_object"):
        check_keys(value, ("type",), name)
        return None if kind == "text" else {"type": "object"}
    if kind != "json_schema":
        raise RequestError(f"{name}: expected the type text, json_object or json_schema, found {json.dumps(kind)[:40]}", name)
    check_keys(value, ("type", "json_schema"), name)
    described = value.get("json_schema")
    if not isinstance(described, dict):
        raise RequestError(f"{name}: expected an object as json_schema, found {name_of(described)}", name)
    check_keys(described, ("name", "description", "schema", "strict"), name)
    schema = described.get("schema")
    if not isinstance(schema, dict):
        raise RequestError(f"{name}: expected an object as json_schema.schema, found {name_of(schema)}", name)
    if len(json.dumps(schema)) > SCHEMA_LENGTH:
        raise RequestError(f"{name}: expected a schema of at most {SCHEMA_LENGTH} characters, found more", name)
    return schema


def read_date(text: str | None) -> date | None:
    """The date that a chat template sees: "2026-01-31"."""
    if text is None:
        return None
    try:
        found = date.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.isoformat() != text:  # Python 3.11 also reads 20260131
        raise RequestError("date: expected a date such as 2026-01-31, found another text", "date")
    return found


# ---------------------------------------------------------------------------
# the tokenizer's endpoints


def read_tokenize(body: Body) -> tuple[str, bool]:
    """A text, and whether what comes before a text (BOS) is wanted: yes unless add_special_tokens is false."""
    check_known(body, TOKENIZE_FIELDS)
    prompt = string(body, "prompt")
    if prompt is None:
        raise RequestError("prompt: expected a string, found none", "prompt")
    return prompt, body.get("add_special_tokens") is None or boolean(body, "add_special_tokens")


def read_detokenize(body: Body, most: int) -> list[int]:
    check_known(body, DETOKENIZE_FIELDS)
    tokens = array(body, "tokens", most)
    if tokens is None or not all(type(token) is int for token in tokens):
        raise RequestError("tokens: expected an array of token ids, found another type", "tokens")
    return tokens
