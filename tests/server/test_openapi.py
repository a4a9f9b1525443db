"""The description of the server: it names what the server accepts, no more and no less, and answers are as it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("starlette")

from llama2c import RequestError  # noqa: E402
from llama2c.llama import Llama  # noqa: E402
from llama2c.server.app import Routes  # noqa: E402
from llama2c.server.openapi import describe  # noqa: E402
from llama2c.server.protocol import read_chat, read_completion, read_detokenize, read_tokenize  # noqa: E402

MODEL = "tales1M"
HELLO = {"messages": [{"role": "user", "content": "Hi"}]}
SIZE = 2048
DESCRIBED = describe(MODEL, SIZE, False)
BODIES: dict[str, Any] = {
    "CompletionRequest": (read_completion, {"prompt": "x"}),
    "ChatRequest": (read_chat, {**HELLO, "logprobs": True}),
    "TokenizeRequest": (read_tokenize, {"prompt": "x"}),
    "DetokenizeRequest": (lambda body: read_detokenize(body, 10**6), {"tokens": [1]}),
}


def conforms(value: Any, schema: Any, described: Any = DESCRIBED) -> bool:
    whole = {**schema, "components": described["components"]}
    checker = jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker())
    return bool(checker.is_valid(value))


def named(name: str) -> Any:
    return {"$ref": f"#/components/schemas/{name}"}


# ---------------------------------------------------------------------------
# what is accepted


def unknown(name: str, field: str) -> bool:
    """Whether the server says that it does not know a field of a body."""
    read, good = BODIES[name]
    try:
        read({**good, field: {"?": 1}})
    except RequestError as error:
        return str(error) == f"{field}: this field is not supported"  # otherwise the value is what is wrong
    return False


def openais(name: str) -> list[str]:
    """The fields that OpenAI's own package has for an endpoint."""
    types = pytest.importorskip("openai.types")
    kinds = {"CompletionRequest": types.CompletionCreateParams, "ChatRequest": types.chat.CompletionCreateParams}
    return sorted({field for kind in kinds[name].__args__ for field in kind.__annotations__})


@pytest.mark.parametrize("name", BODIES)
def test_a_field_is_described_if_and_only_if_it_is_known(name: str) -> None:
    described = set(DESCRIBED["components"]["schemas"][name]["properties"])
    everywhere = {field for other in BODIES for field in DESCRIBED["components"]["schemas"][other]["properties"]}
    for field in everywhere | {"ignore_eos", "guided_json", "input", "", "Prompt"}:
        assert unknown(name, field) == (field not in described), field


@pytest.mark.parametrize("name", ["CompletionRequest", "ChatRequest"])
def test_every_field_of_openai_is_described_or_refused(name: str) -> None:
    described = set(DESCRIBED["components"]["schemas"][name]["properties"])
    fields = openais(name)
    assert len(fields) > 15
    refused = {field for field in fields if unknown(name, field)}
    assert refused == set(fields) - described
    assert refused <= {"moderation"}  # a new one has to be looked at


def numbers(schema: Any) -> Iterator[Any]:
    """The schemas of numbers that a field may be."""
    for one in schema.get("anyOf", [schema]):
        if one.get("type") in ("integer", "number"):
            yield one


def accepted(llama: Llama, name: str, body: Any) -> bool:
    try:
        job = BODIES[name][0](body)
        if name in ("CompletionRequest", "ChatRequest"):
            llama.sequence("x", **{**job.options, "stop": ()})
    except RequestError:
        return False
    return True


@pytest.mark.parametrize("name", ["CompletionRequest", "ChatRequest"])
def test_the_limits_of_numbers_are_those_of_the_server(llama: Llama, name: str) -> None:
    """At each limit a value is accepted, one step further it is refused; by the schema and by the server."""
    schema = DESCRIBED["components"]["schemas"][name]
    tried = 0
    for field, described in schema["properties"].items():
        for number in numbers(described):
            cases = [(0, False), (1e-9, True)] if "exclusiveMinimum" in number else []
            for key, sign in (("minimum", -1), ("maximum", 1)):
                if key in number:
                    limit = number[key]
                    step = 1 if number["type"] == "integer" else 1e-9 * max(1, abs(limit))
                    cases += [(limit, True), (limit + sign * step, False)]
            for value, expected in cases:
                body = {**BODIES[name][1], field: value}
                if field == "best_of" and expected:  # has to be n
                    body["n"] = value
                assert accepted(llama, name, body) is expected, (field, value)
                assert conforms(body, named(name)) is expected, (field, value)
                tried += 1
    assert tried > 40


@pytest.mark.parametrize(
    ("name", "field", "good", "bad"),
    [
        ("CompletionRequest", "prompt", ["x", ["x"], [1], [[1], [2, 3]]], [None, 1, [], [[]], ["x", 1], [[1], "x"], [-1.5]]),
        ("CompletionRequest", "stop", ["x", ["x", "y"], [], None, ["x"] * 16], ["x" * 1025, ["x"] * 17, 5, [1]]),
        ("CompletionRequest", "logit_bias", [{}, {"5": 1, "6": -1.5}, {"7": None}, None], [{"x": 1}, {"-1": 1}, {"5": ""}, []]),
        ("CompletionRequest", "logprobs", [0, 20, None], [True, -1, 21, "1"]),
        ("CompletionRequest", "suffix", ["", None], ["x", 0, False]),
        ("CompletionRequest", "echo", [True, False, None], [1, "true"]),
        ("ChatRequest", "logprobs", [True, None], [1, 0]),
        ("ChatRequest", "messages", [
            [{"role": "user", "content": "x", "name": "me"}], [{"role": "x", "content": [{"type": "text", "text": "x"}]}],
            [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}],
        ], [
            [], None, [1], [{}], [{"role": "user"}], [{"content": "x"}], [{"role": 1, "content": "x"}],
            [{"role": "user", "content": 5}], [{"role": "user", "content": None}], [{"role": "x", "tool_calls": [{}]}],
        ]),
        ("ChatRequest", "response_format", [
            None, {"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": {}}},
            {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "description": "", "schema": {"a": 1}}},
        ], [
            {}, {"type": "xml"}, {"type": "text", "x": 1}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}},
            {"type": "json_schema", "json_schema": {"schema": {}, "x": 1}},
            {"type": "json_schema", "json_schema": {"schema": []}}, "json",
        ]),
        ("ChatRequest", "date", ["2026-01-31", None], ["2026-02-30", "20260131", "tomorrow", 5]),
        ("ChatRequest", "modalities", [["text"], None], [["audio"], [], "text"]),
        ("ChatRequest", "metadata", [{"a": "b"}, 5, None], []),
        ("ChatRequest", "unheard_of", [None], [0, "", {}]),
        ("TokenizeRequest", "add_special_tokens", [True, False, None], [1, "x"]),
        ("DetokenizeRequest", "tokens", [[], [0, 1]], [None, ["x"], [True], 5]),
    ],
)  # fmt: skip
def test_values_that_the_server_takes_and_refuses(name: str, field: str, good: list[Any], bad: list[Any]) -> None:
    read, body = BODIES[name]
    for value in good:
        read({**body, field: value})
        assert conforms({**body, field: value}, named(name)), value
    for value in bad:
        with pytest.raises(RequestError):
            read({**body, field: value})
        assert not conforms({**body, field: value}, named(name)), value


# ---------------------------------------------------------------------------
# what is answered


def test_it_is_valid_and_names_every_route(server: Any) -> None:
    served = server.ask("GET", "/openapi.json").json
    assert served == json.loads(json.dumps(describe(MODEL, server.service.llama.tokenizer.vocab_size, False)))
    for schema in served["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    text = json.dumps(served)
    for kind in ("schemas", "responses"):
        for name in served["components"][kind]:
            assert f"#/components/{kind}/{name}" in text or name.endswith("Chunk"), name
    routes = {route.path.replace(":path", ""): route.methods - {"HEAD"} for route in Routes(server.service).all()}
    routes.pop("/", None)  # the page is for people
    methods = {path: {key.upper() for key in found if key in ("get", "post")} for path, found in served["paths"].items()}
    assert methods == routes


def test_a_key_is_described() -> None:
    described = describe(MODEL, SIZE, True)
    assert described["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert described["security"] == [{"key": []}]
    assert described["paths"]["/health"]["get"]["security"] == []


CASES: list[tuple[str, dict[str, Any]]] = [
    ("completions", {"prompt": "The dog", "max_tokens": 4}),
    ("completions", {"prompt": ["A", "B"], "max_tokens": 3, "n": 2, "logprobs": 2}),
    ("completions", {"prompt": [5, 300, 6], "max_tokens": 0, "echo": True, "logprobs": 0}),
    ("chat/completions", {**HELLO, "max_tokens": 4}),
    ("chat/completions", {**HELLO, "max_tokens": 3, "n": 2, "logprobs": True, "top_logprobs": 3}),
]


@pytest.mark.parametrize(("path", "body"), CASES)
def test_answers_are_as_described(server: Any, path: str, body: dict[str, Any]) -> None:
    name = "Chat" if path.startswith("chat") else "Completion"
    taken = DESCRIBED["paths"][f"/v1/{path}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert conforms(body, taken)
    answer = server.ask("POST", f"/v1/{path}", body).json
    assert conforms(answer, named(name)), answer
    answer["choices"][0]["finish_reason"] = ""
    assert not conforms(answer, named(name))
    for options in (None, {"include_usage": True}):
        sent = {**body, "stream": True, "stream_options": options}
        chunks = server.ask("POST", f"/v1/{path}", sent).events
        assert chunks
        assert all(conforms(chunk, named(f"{name}Chunk")) for chunk in chunks), chunks
        chunks[0]["choices"][0]["finish_reason"] = ""
        assert not conforms(chunks[0], named(f"{name}Chunk"))


def test_other_routes_are_as_described(server: Any) -> None:
    for path, body in (
        ("/v1/models", None), ("/v1/models/tales1M", None), ("/tokenizer_info", None), ("/health", None),
        ("/openapi.json", None), ("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1, 300]}),
    ):  # fmt: skip
        method = "GET" if body is None else "POST"
        found = DESCRIBED["paths"][path.replace(MODEL, "{model}")][method.lower()]["responses"]["200"]["content"]
        answer = server.ask(method, path, body)
        assert answer.status == 200
        assert conforms(answer.json, found[answer.headers["content-type"]]["schema"]), path
    assert server.ask("GET", "/metrics").headers["content-type"].startswith("text/plain;")


def test_errors_are_as_described(start: Any, llama: Llama) -> None:
    server = start(llama, key="secret", max_waiting=0)
    key = {"Authorization": "Bearer secret"}
    ask = {
        400: lambda: server.ask("POST", "/tokenize", {"prompt": 5}, key),
        401: lambda: server.ask("POST", "/v1/completions", {"prompt": "x"}),
        403: lambda: server.ask("POST", "/v1/completions", {"prompt": "x"}, {**key, "Origin": "https://evil.example"}),
        404: lambda: server.ask("POST", "/detokenize", {"tokens": [1], "model": "x"}, key),
        413: lambda: server.ask("POST", "/tokenize", b" " * (9 << 20), key),
        429: lambda: server.ask("POST", "/v1/completions", {"prompt": "x"}, key),
    }
    for status, send in ask.items():
        described = DESCRIBED["components"]["responses"][str(status)]
        answer = send()
        assert answer.status == status
        assert conforms(answer.json, described["content"]["application/json"]["schema"])
        assert set(map(str.lower, described["headers"])) <= set(answer.headers)
    server.service.stop()
    answer = server.ask("POST", "/v1/completions", {"prompt": "x"}, key)
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert conforms(answer.json, named("Error"))
    health = DESCRIBED["paths"]["/health"]["get"]["responses"]["503"]
    assert conforms(server.ask("GET", "/health").json, health["content"]["application/json"]["schema"])
