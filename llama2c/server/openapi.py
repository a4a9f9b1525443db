"""GET /openapi.json: what the server takes and gives, in OpenAPI 3.1, so that other programs can make clients and tests of it.

The fields of a body and the limits of their values are those that protocol.py checks. The answers are those of answers.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

from .protocol import (
    CHAT_FIELDS,
    CHAT_NEUTRAL,
    COMPLETION_FIELDS,
    COMPLETION_NEUTRAL,
    DETOKENIZE_FIELDS,
    MOST_CHOICES,
    MOST_LOGPROBS,
    MOST_MESSAGES,
    MOST_STOPS,
    MOST_TOKENS,
    NO_EFFECT,
    NUMBERS,
    STOP_LENGTH,
    TOKENIZE_FIELDS,
)
from .tools import MOST_TOOLS, NAME

Schema: TypeAlias = "dict[str, Any]"

ANY: Schema = {}
NULL: Schema = {"type": "null"}
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
COUNT: Schema = {"type": "integer", "minimum": 0}
LARGEST = 3.4028234663852886e38  # of float32
RANGES: dict[str, Schema] = {
    "temperature": {"minimum": 0},
    "top_p": {"minimum": 0, "maximum": 1},
    "min_p": {"minimum": 0, "maximum": 1},
    "repetition_penalty": {"exclusiveMinimum": 0},
    "frequency_penalty": {"minimum": -LARGEST, "maximum": LARGEST},
    "presence_penalty": {"minimum": -LARGEST, "maximum": LARGEST},
}


def whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def any_of(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def nullable(schema: Schema) -> Schema:
    return any_of(schema, NULL) if schema else ANY


def array(of: Schema, least: int = 0, most: int | None = None) -> Schema:
    found: Schema = {"type": "array", "items": of}
    if least:
        found["minItems"] = least
    if most is not None:
        found["maxItems"] = most
    return found


def record(**fields: Schema) -> Schema:
    """An object with exactly these fields."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def options(**fields: Schema) -> Schema:
    """An object with any of these fields and no other."""
    return {"type": "object", "properties": fields, "additionalProperties": False}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


# ---------------------------------------------------------------------------
# bodies

CALL: Schema = {
    "type": "object",
    "properties": {
        "function": {
            "type": "object",
            "properties": {"name": TEXT, "arguments": any_of({**TEXT, "description": "a JSON object"}, OBJECT)},
            "required": ["name"],
        }
    },
    "required": ["function"],
}
PART: Schema = {"type": "object", "properties": {"type": {"enum": ["text"]}, "text": TEXT}, "required": ["type", "text"]}
CONTENT = any_of(TEXT, array(PART))
MESSAGE: Schema = {
    "type": "object",
    "description": "What else it may have, and which roles there are, is for the chat template of the model to say.",
    "properties": {"role": TEXT, "content": nullable(CONTENT), "tool_calls": nullable(array(CALL))},
    "required": ["role"],
    **any_of(
        {"properties": {"content": CONTENT}, "required": ["content"]},
        {"properties": {"tool_calls": {"type": "array"}}, "required": ["tool_calls"]},
    ),
}
FORMAT = any_of(
    record(type={"enum": ["text", "json_object"]}),
    record(
        type={"enum": ["json_schema"]},
        json_schema={**options(name=ANY, description=ANY, schema=OBJECT, strict=ANY), "required": ["schema"]},
    ),
)
FUNCTION_NAME: Schema = {**TEXT, "pattern": f"^{NAME.pattern}$"}
TOOL = record(
    type={"enum": ["function"]},
    function={
        **options(
            name=FUNCTION_NAME,
            description=nullable(TEXT),
            parameters=nullable({"type": "object", "properties": {"type": {"enum": ["object"]}}}),
            strict=nullable(FLAG),
        ),
        "required": ["name"],
    },
)
TOOL_CHOICE = any_of(
    {"enum": ["none", "auto", "required"]}, record(type={"enum": ["function"]}, function=record(name=FUNCTION_NAME))
)
STOP: Schema = {"type": "string", "minLength": 1, "maxLength": STOP_LENGTH}


def fields(model: str, vocab_size: int) -> dict[str, Schema]:
    """The schema of each field that no table of protocol.py describes. logprobs is that of /v1/completions."""
    token = whole(0, vocab_size - 1)
    ids = array(token, 1)
    return {
        "model": {"type": "string", "enum": [model]},
        "n": whole(1, MOST_CHOICES),
        "seed": {**whole(-(2**63), 2**64 - 1), "description": "a negative one counts from 2**64 down"},
        "stream": FLAG,
        "stream_options": {
            **options(include_usage=nullable(FLAG), include_obfuscation=nullable(FLAG)),
            "description": "only where stream is true",
        },
        "stop": any_of(STOP, array(STOP, 0, MOST_STOPS)),
        "max_tokens": whole(0, MOST_TOKENS),
        "max_completion_tokens": whole(0, MOST_TOKENS),
        "logprobs": whole(0, MOST_LOGPROBS),
        "top_logprobs": {**whole(0, MOST_LOGPROBS), "description": "above 0 only where logprobs is true"},
        "logit_bias": {
            "type": "object",
            "description": "token ids and what is added to their logits",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": nullable({**NUMBER, "minimum": -LARGEST, "maximum": LARGEST}),
        },
        "top_k": whole(0, MOST_TOKENS),
        "prompt": any_of(TEXT, array(TEXT, 1, MOST_CHOICES), ids, array(ids, 1, MOST_CHOICES)),
        "echo": FLAG,
        "best_of": {**whole(1, MOST_CHOICES), "description": "1, or the value of n"},
        "messages": array(MESSAGE, 1, MOST_MESSAGES),
        "response_format": FORMAT,
        "tools": {**array(TOOL, 0, MOST_TOOLS), "description": "functions, for models whose chat template has tools"},
        "tool_choice": TOOL_CHOICE,
        "parallel_tool_calls": FLAG,
        "chat_template_kwargs": {**OBJECT, "description": "what the chat template gets besides the messages"},
        "date": {"type": "string", "format": "date", "description": "the date that the chat template sees"},
        "add_special_tokens": {**FLAG, "description": "whether what comes before a text (BOS) is wanted; true if missing"},
        "tokens": array(token),
    }


def body(
    names: Collection[str],
    own: Mapping[str, Schema],
    required: Collection[str],
    neutral: Mapping[str, tuple[Any, ...]] | None = None,
) -> Schema:
    """A body with these fields. Of the others it may have those that are null.

    own: the schemas of fields that are in no table. neutral: fields that may only have some values.
    """
    neutral = {} if neutral is None else neutral
    properties: dict[str, Schema] = {}
    for name in names:
        if name in NO_EFFECT:
            properties[name] = {"description": "has no effect"}
        elif name in neutral:
            properties[name] = {"enum": [*neutral[name], None]}
        elif name in NUMBERS:
            properties[name] = nullable({**NUMBER, **RANGES[name]})
        else:
            properties[name] = own[name] if name in required else nullable(own[name])
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": NULL}


# ---------------------------------------------------------------------------
# answers

USAGE = record(
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    total_tokens=COUNT,
    prompt_tokens_details=record(cached_tokens=COUNT),
)
COMPLETION_LOGPROBS = record(
    tokens=array(TEXT),
    token_logprobs=array(nullable(NUMBER)),
    top_logprobs=array(nullable({"type": "object", "additionalProperties": NUMBER})),
    text_offset=array(COUNT),
)
TOKEN: dict[str, Schema] = {"token": TEXT, "logprob": NUMBER, "bytes": array(whole(0, 255))}
CHAT_LOGPROBS = record(content=array(record(**TOKEN, top_logprobs=array(record(**TOKEN)))), refusal=NULL)
REASON: Schema = {"enum": ["stop", "length"]}
CHAT_REASON: Schema = {"enum": ["stop", "length", "tool_calls"]}
ERROR = record(error=record(message=TEXT, type=TEXT, param=nullable(TEXT), code=nullable(TEXT)))


def answers(model: str) -> dict[str, Schema]:
    """The answers of both endpoints, and the chunks of their streams, by name."""
    head: dict[str, Schema] = {
        "id": TEXT,
        "created": COUNT,
        "model": {"enum": [model]},
        "system_fingerprint": {**TEXT, "description": "with the same, seed, date and request, an answer has the same bytes"},
        "seed": COUNT,
    }
    chat_head = {**head, "date": {"type": "string", "format": "date"}}

    def choices(logprobs: Schema, reason: Schema, **made: Schema) -> Schema:
        return array(record(index=COUNT, **made, logprobs=nullable(logprobs), finish_reason=reason))

    def chunk(head: dict[str, Schema], name: str, choices: Schema) -> Schema:
        made = record(**head, object={"enum": [name]}, choices=choices)
        made["properties"]["usage"] = nullable(USAGE)  # only where it was asked for
        return made

    role, function = {"enum": ["assistant"]}, {"enum": ["function"]}
    call = record(id=TEXT, type=function, function=record(name=TEXT, arguments=TEXT))
    begun = record(index=COUNT, id=TEXT, type=function, function=record(name=TEXT, arguments=TEXT))
    more = record(index=COUNT, function=record(arguments=TEXT))
    message = any_of(
        record(role=role, content=TEXT, refusal=NULL),
        record(role=role, content=nullable(TEXT), refusal=NULL, tool_calls=array(call, 1)),
    )
    called = record(tool_calls=array(any_of(begun, more), 1))
    delta = any_of(record(role=role, content=TEXT), record(content=TEXT), called, record())
    name, chat_name = {"enum": ["text_completion"]}, {"enum": ["chat.completion"]}
    replies = choices(CHAT_LOGPROBS, CHAT_REASON, message=message)
    return {
        "Completion": record(**head, object=name, choices=choices(COMPLETION_LOGPROBS, REASON, text=TEXT), usage=USAGE),
        "CompletionChunk": chunk(head, "text_completion", choices(COMPLETION_LOGPROBS, nullable(REASON), text=TEXT)),
        "Chat": record(**chat_head, object=chat_name, choices=replies, usage=USAGE),
        "ChatChunk": chunk(chat_head, "chat.completion.chunk", choices(CHAT_LOGPROBS, nullable(CHAT_REASON), delta=delta)),
        "Error": ERROR,
    }


# ---------------------------------------------------------------------------
# routes

ERRORS = {
    400: "A field is wrong or not supported.",
    401: "The server needs a key, and the request has none or a wrong one.",
    403: "Another Host, or a page of another site.",
    404: "Another model.",
    408: "The body did not arrive in time.",
    413: "The body is too long.",
    429: "The queue is full.",
    500: "The server has failed.",
    503: "The server is stopping, or there is too little memory.",
}
ALWAYS = (401, 403, 500)
WITH_BODY = (400, *ALWAYS, 404, 408, 413, 503)
SECONDS = {"Retry-After": {"schema": COUNT, "required": True, "description": "seconds until it is worth trying again"}}
HEADERS: dict[int, Schema] = {
    401: {"WWW-Authenticate": {"schema": TEXT, "required": True}},
    429: SECONDS,
    503: SECONDS,
}


def content(schema: Schema, kind: str = "application/json") -> Schema:
    return {kind: {"schema": schema}}


def get(summary: str, found: Schema, statuses: Collection[int] = ALWAYS) -> Schema:
    """A route that takes no body. found: the content of its answer."""
    responses: Schema = {"200": {"description": summary, "content": found}}
    return {"get": {"summary": summary, "responses": {**responses, **refusals(statuses)}}}


def post(summary: str, taken: str, example: Schema, found: Schema, statuses: Collection[int] = WITH_BODY) -> Schema:
    """A route with a body. taken: the name of its schema."""
    request = {"required": True, "content": {"application/json": {"schema": ref(taken), "example": example}}}
    responses: Schema = {"200": {"description": summary, "content": found}}
    return {"post": {"summary": summary, "requestBody": request, "responses": {**responses, **refusals(statuses)}}}


def refusals(statuses: Collection[int]) -> Schema:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(statuses)}


def paths(model: str) -> Schema:
    described = record(id={"enum": [model]}, object={"enum": ["model"]}, created=COUNT, owned_by=TEXT, context_length=COUNT)
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": [model]}}
    prompt = {"prompt": "Once upon a time", "max_tokens": 8, "seed": 1}
    chat = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 8, "seed": 1}
    tokens = record(count=COUNT, max_model_len=COUNT, tokens=array(COUNT))
    special = {f"{name}_token": nullable(TEXT) for name in ("bos", "eos", "pad")}
    ids = {f"{name}_token_id": nullable(COUNT) for name in ("bos", "eos")}
    tokenizer = record(**special, **ids, vocab_size=COUNT, chat_template=nullable(TEXT))
    health = {
        str(status): {"description": "Whether the server takes requests", "content": content(record(status={"enum": [word]}))}
        for status, word in ((200, "ok"), (503, "stopping"))
    }
    generated = (*WITH_BODY, 429)
    return {
        "/v1/models": get("The one model", content(record(object={"enum": ["list"]}, data=array(described, 1, 1)))),
        "/v1/models/{model}": {"parameters": [name], **get("The one model", content(described), (*ALWAYS, 404))},
        "/v1/completions": post("Continue a text", "CompletionRequest", prompt, stream_or("Completion"), generated),
        "/v1/chat/completions": post("Answer in a conversation", "ChatRequest", chat, stream_or("Chat"), generated),
        "/tokenize": post("The ids of a text", "TokenizeRequest", {"prompt": "The dog"}, content(tokens)),
        "/detokenize": post("The text of ids", "DetokenizeRequest", {"tokens": [1, 2]}, content(record(prompt=TEXT))),
        "/tokenizer_info": get("Special tokens and the chat template", content(tokenizer)),
        "/health": {"get": {"summary": "Whether it is up", "security": [], "responses": {**health, **refusals((403, 500))}}},
        "/metrics": get("Counters for Prometheus", content(TEXT, "text/plain")),
        "/openapi.json": get("This description", content(OBJECT)),
    }


def stream_or(name: str) -> Schema:
    """An answer as a whole, or its chunks as events, each the JSON of a chunk or of an Error, the last one [DONE]."""
    return {**content(ref(name)), "text/event-stream": {}}


def describe(model: str, vocab_size: int, needs_key: bool) -> Schema:
    """The description of a server with this model. needs_key: whether requests need its key."""
    own = fields(model, vocab_size)
    chat = {**own, "logprobs": FLAG}
    tokenize = {**own, "prompt": TEXT}
    schemas = {
        **answers(model),
        "CompletionRequest": body(COMPLETION_FIELDS, own, ("prompt",), COMPLETION_NEUTRAL),
        "ChatRequest": body(CHAT_FIELDS, chat, ("messages",), CHAT_NEUTRAL),
        "TokenizeRequest": body(TOKENIZE_FIELDS, tokenize, ("prompt",)),
        "DetokenizeRequest": body(DETOKENIZE_FIELDS, own, ("tokens",)),
    }
    responses = {
        str(status): {"description": text, "content": content(ref("Error")), "headers": HEADERS.get(status, {})}
        for status, text in ERRORS.items()
    }
    described: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "llama2c", "version": "1", "description": "OpenAI's interface in front of one local model"},
        "paths": paths(model),
        "components": {"schemas": schemas, "responses": responses},
    }
    if needs_key:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"key": []}]
    return described
