"""Tools: what a request says of them, what a model gets, grammars, and whole conversations over real sockets."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("jinja2")

import chat_templates
from tool_models import Scripted, open_scripted, write_folder

from llama2c import generation
from llama2c.constraints import constrain
from llama2c.errors import RequestError
from llama2c.llama import Llama
from llama2c.sampler import Sampler
from llama2c.server import tools as tools_module
from llama2c.server.protocol import read_chat
from llama2c.server.tools import Calls, Tools, Use, join_calls, prepare, read_tools
from llama2c.text.chat import chat_ids
from llama2c.text.tokenizer import Tokenizer

WEATHER_SCHEMA = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 3}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"city": {"enum": ["Paris", "Łódź"]}},
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city", "parameters": WEATHER_SCHEMA},
}
TIME = {"type": "function", "function": {"name": "get-time", "description": "The time now"}}
TOOLS = [WEATHER, TIME]
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
PARIS = '{"city": "Paris", "days": 1}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>'


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def strict(tool: dict[str, Any]) -> dict[str, Any]:
    return {**tool, "function": {**tool["function"], "strict": True}}


# ---------------------------------------------------------------------------
# models

SPECIAL = {"mistral": ["[TOOL_CALLS]"], "phi": ["<|tool_call|>", "<|/tool_call|>"]}


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Llama]:
    """One with each template; with "text" the marks of Mistral are not special tokens."""
    folder = tmp_path_factory.mktemp("models")
    made = {
        name: open_scripted(write_folder(folder / name, source, SPECIAL.get(name, ())))
        for name, source in chat_templates.WITH_TOOLS.items()
    }
    made["text"] = open_scripted(write_folder(folder / "text", chat_templates.MISTRAL))
    made["chatml"] = open_scripted(write_folder(folder / "chatml", "{{ tools }}" + chat_templates.CHATML))
    made["zephyr"] = open_scripted(write_folder(folder / "zephyr", chat_templates.ZEPHYR))
    return made


@pytest.fixture(scope="module")
def hermes(llamas: dict[str, Llama]) -> Llama:
    return llamas["hermes"]


def use_of(tokenizer: Tokenizer, **body: Any) -> Use:
    tools = read_tools({"tools": TOOLS, **body})
    assert tools is not None
    return prepare(tools, tokenizer)


# ---------------------------------------------------------------------------
# what a request says


def test_what_is_read() -> None:
    tools = read_tools({"tools": [strict(WEATHER), TIME]})
    assert isinstance(tools, Tools)
    weather, time = tools.functions
    assert (weather.name, weather.tool, weather.parameters, weather.strict) == ("get_weather", WEATHER, WEATHER_SCHEMA, True)
    assert time.tool["function"] == {**TIME["function"], "parameters": {"type": "object", "properties": {}}}  # none
    assert (tools.chosen, tools.required, tools.most, tools.constrained) == (tools.functions, False, None, True)


@pytest.mark.parametrize(
    ("body", "chosen", "required", "most"),
    [
        ({}, ["get_weather", "get-time"], False, None),
        ({"tool_choice": "auto", "parallel_tool_calls": True}, ["get_weather", "get-time"], False, None),
        ({"tool_choice": None, "parallel_tool_calls": False}, ["get_weather", "get-time"], False, 1),
        ({"tool_choice": "required"}, ["get_weather", "get-time"], True, None),
        ({"tool_choice": named("get-time")}, ["get-time"], True, 1),
    ],
)
def test_choices(body: dict[str, Any], chosen: list[str], required: bool, most: int | None) -> None:
    tools = read_tools({"tools": TOOLS, **body})
    assert tools is not None
    assert [function.name for function in tools.functions] == ["get_weather", "get-time"]
    assert ([function.name for function in tools.chosen], tools.required, tools.most) == (chosen, required, most)
    assert tools.constrained is required


@pytest.mark.parametrize("body", [{}, {"tools": []}, {"tools": None}, {"tools": TOOLS, "tool_choice": "none"}])
def test_nothing_to_call(body: dict[str, Any]) -> None:
    assert read_tools(body) is None


def function(**values: Any) -> list[Any]:
    return [{"type": "function", "function": {"name": "f", **values}}]


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("tools", {}), ("tools", [1]), ("tools", [{}]), ("tools", [{"type": "web_search"}]), ("tools", [{"type": "function"}]),
        ("tools", [{"type": "custom", "custom": {"name": "f"}}]), ("tools", function(name=None)), ("tools", function(name="")),
        ("tools", function(name="a b")), ("tools", function(name="a" * 65)), ("tools", function(description=1)),
        ("tools", function(strict="yes")), ("tools", function(parameters=[])),
        ("tools", function(parameters={"type": "array"})),
        ("tools", function(more=1)), ("tools", [{**function()[0], "more": 1}]), ("tools", [*function(), *function()]),
        ("tools", function() * 129), ("tools", function(description="x" * 200_000)), ("tool_choice", "any"), ("tool_choice", 1),
        ("tool_choice", named("other")), ("tool_choice", {"type": "function"}), ("tool_choice", {"type": "allowed_tools"}),
        ("tool_choice", {**named("f"), "more": 1}), ("parallel_tool_calls", "no"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(param: str, value: Any) -> None:
    with pytest.raises(RequestError, match=rf"^{param}\b") as error:
        read_tools({"tools": function(), param: value})
    assert error.value.param == param


@pytest.mark.parametrize("choice", ["required", named("f")])
def test_a_choice_without_tools(choice: Any) -> None:
    with pytest.raises(RequestError, match=r"^tool_choice: needs tools"):
        read_tools({"tool_choice": choice})


def test_what_goes_together() -> None:
    body = {"messages": ASK, "tools": TOOLS}
    assert read_chat({**body, "response_format": {"type": "text"}}).tools == read_tools(body)
    with pytest.raises(RequestError, match=r"^response_format: "):
        read_chat({**body, "response_format": {"type": "json_object"}})
    assert read_chat({**body, "tool_choice": "none", "response_format": {"type": "json_object"}}).tools is None
    with pytest.raises(RequestError, match=r"^chat_template_kwargs: "):
        read_chat({**body, "chat_template_kwargs": {"tools": []}})


# ---------------------------------------------------------------------------
# what a model gets

CONVERSATION = [
    {"role": "user", "content": "What is the weather in Łódź?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "a1b2c3d4e", "type": "function", "function": {
            "name": "get_weather", "arguments": '{"city": "Łódź", "days": 2}',
        }},
    ]},
    {"role": "tool", "tool_call_id": "a1b2c3d4e", "content": '{"degrees": 3}'},
    {"role": "assistant", "content": "3 degrees."},
    {"role": "user", "content": "And the time?"},
]  # fmt: skip


@pytest.mark.parametrize("name", list(chat_templates.WITH_TOOLS))
@pytest.mark.parametrize("n", [1, 3, 5], ids=["question", "result", "turn"])
def test_the_prompt_is_that_of_transformers(llamas: dict[str, Llama], name: str, n: int) -> None:
    """apply_chat_template gets what a client sends, but for the arguments of calls, which are objects there."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    tokenizer = llamas[name].tokenizer
    assert tokenizer.path is not None and tokenizer.chat_template is not None
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=tokenizer.path, **tokenizer.chat_template.special_tokens)
    messages = json.loads(json.dumps(CONVERSATION[:n]))
    for call in (call for message in messages for call in message.get("tool_calls", ())):
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    tools = [WEATHER, {**TIME, "function": {**TIME["function"], "parameters": {"type": "object", "properties": {}}}}]
    source = tokenizer.chat_template.source
    options = {"tools": tools, "chat_template": source, "add_generation_prompt": True, "tokenize": False}
    expected = theirs.apply_chat_template(messages, **options)
    job = read_chat({"messages": CONVERSATION[:n], "tools": TOOLS})
    assert job.tools is not None
    ids = chat_ids(tokenizer, job.prompts[0], prepare(job.tools, tokenizer).template_options)  # type: ignore[arg-type]
    assert ids == tokenizer.encode(expected, bos=False)
    assert "get_weather" in expected


def test_where_a_template_wants_its_tools(llamas: dict[str, Llama]) -> None:
    assert use_of(llamas["hermes"].tokenizer).variable == "tools"
    assert tools_module.variable_of({"messages", "xml_tools", "python_tools"}) == "xml_tools"
    assert tools_module.variable_of({"messages"}) is None


def test_marks_that_are_special_tokens_are_known(llamas: dict[str, Llama]) -> None:
    """They have no text of their own."""
    for name, marks in SPECIAL.items():
        tokenizer = llamas[name].tokenizer
        assert use_of(tokenizer).marks == {tokenizer.encode(mark, bos=False)[0]: mark for mark in marks}
    assert use_of(llamas["text"].tokenizer).marks == use_of(llamas["hermes"].tokenizer).marks == {}


def test_models_without_tools(llamas: dict[str, Llama], llama: Llama) -> None:
    for tokenizer, reason in (
        (llama.tokenizer, "has no chat template"),
        (llamas["zephyr"].tokenizer, "has no tools"),
        (llamas["chatml"].tokenizer, "a form of calls that is not supported"),
    ):
        with pytest.raises(RequestError, match=f"^tools: .*{reason}"):
            use_of(tokenizer)


# ---------------------------------------------------------------------------
# grammars


def draw(tokenizer: Tokenizer, grammar: str, seed: int, bias: dict[int, float] | None = None) -> tuple[list[Any], str]:
    """Tokens, with their texts, that random logits draw where a grammar allows them; and why they end."""
    rng = np.random.default_rng(seed)
    sequence = generation.Sequence(
        [0], Sampler(seed=seed, top_p=1.0), vocab_size=tokenizer.vocab_size, max_length=4096, max_tokens=160,
        stop_tokens=tokenizer.end_ids, text_stream=tokenizer.text_stream, constraint=constrain(tokenizer, grammar=grammar),
        logit_bias=bias,
    )  # fmt: skip
    steps = []
    while sequence.finish_reason is None:
        steps += sequence.accept(rng.normal(0, 2, (1, tokenizer.vocab_size)).astype(np.float32))
    assert sequence.finish_reason is not None
    return [(step.token, step.text) for step in steps], sequence.finish_reason


def check_calls(use: Use, calls: list[dict[str, Any]]) -> None:
    """Each is one of a function that may be called, with arguments that are valid."""
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")
    schemas = {function.name: function.parameters for function in use.tools.chosen}
    for call in calls:
        arguments = json.loads(call["function"]["arguments"])
        jsonschema.validate(arguments, schemas[call["function"]["name"]])


@pytest.mark.parametrize("name", ["hermes", "mistral", "text", "phi", "llama3"])
@pytest.mark.parametrize("body", [{}, {"parallel_tool_calls": False}, {"tool_choice": named("get_weather")}], ids=str)
def test_a_call_that_is_required(llamas: dict[str, Llama], name: str, body: dict[str, Any]) -> None:
    pytest.importorskip("llguidance", reason="needs llguidance")
    tokenizer = llamas[name].tokenizer
    use = use_of(tokenizer, **{"tool_choice": "required", **body})
    assert use.grammar is not None
    counts = []
    for seed in range(4):
        steps, reason = draw(tokenizer, use.grammar, seed)
        text, entries, finish = Calls(use, "").read(steps, reason)
        calls = join_calls(entries)
        check_calls(use, calls if reason == "stop" else calls[:-1])
        counts.append(len(calls))
        if reason == "length":  # random logits may ask for calls without end
            assert len(calls) > 1
        else:
            assert (text, finish) == ("", "tool_calls")
    assert min(counts) >= 1
    assert (max(counts) > 1) is (not body and name != "llama3")  # the templates of Llama 3 take one call


@pytest.mark.parametrize("name", ["hermes", "mistral", "text", "phi", "llama3"])
@pytest.mark.parametrize("parallel", [True, False])
def test_strict_functions_among_text(llamas: dict[str, Llama], name: str, parallel: bool) -> None:
    """After the mark of a call only a valid call can follow; before it, any text. Its first token is made likely."""
    pytest.importorskip("llguidance", reason="needs llguidance")
    tokenizer = llamas[name].tokenizer
    use = use_of(tokenizer, tools=[strict(WEATHER)], parallel_tool_calls=parallel)
    assert use.grammar is not None
    constraint = constrain(tokenizer, grammar=use.grammar)
    assert constraint is not None

    def allowed() -> set[int]:
        return set(np.flatnonzero(constraint.mask(np.zeros(tokenizer.vocab_size, np.float32)) == 0).tolist())

    opening = use.format.opening
    head = f'{opening}{{"name": "get_weather", "{use.format.arguments}": {{"city": "'
    for text in (head, f"Well, {head}") if opening else (head,):
        constraint.reset()
        for token in tokenizer.encode(text, bos=False):
            assert token in allowed()
            constraint.advance(token)
        pieces = {tokenizer.piece(token) for token in allowed()}
        assert all(b"Paris".startswith(piece[:5]) or "Łódź".encode().startswith(piece[:7]) for piece in pieces), pieces
    constraint.reset()
    for token in tokenizer.encode("Just text, as long as it likes.", bos=False):
        assert token in allowed()
        constraint.advance(token)
    assert tokenizer.end_ids <= allowed()
    for seed in range(4):
        first = tokenizer.encode(opening or "{", bos=False)[0]
        steps, reason = draw(tokenizer, use.grammar, seed, {first: 6.0 if use.marks else 3.0})
        _, entries, _ = Calls(use, "").read(steps, reason)
        calls = join_calls(entries)
        check_calls(use, calls if reason == "stop" else calls[:-1])
        assert parallel or len(calls) <= 1


def test_a_function_that_is_not_strict_takes_any_object(hermes: Llama) -> None:
    pytest.importorskip("llguidance", reason="needs llguidance")
    grammar = use_of(hermes.tokenizer, tools=[WEATHER, strict(TIME)]).grammar
    assert grammar is not None
    for text, fits in ((CALL, True), (CALL.replace("Paris", "Rome"), True), (CALL.replace(PARIS, "5"), False),
                       (CALL.replace("get_weather", "get-time"), False)):  # fmt: skip
        constraint = constrain(hermes.tokenizer, grammar=grammar)
        assert constraint is not None
        row = np.zeros(hermes.tokenizer.vocab_size, np.float32)
        tokens = iter(hermes.tokenizer.encode(text, bos=False))
        for token in tokens:
            if constraint.mask(row)[token] != 0:
                break
            constraint.advance(token)
        assert (next(tokens, None) is None) is fits


def test_what_cannot_be_enforced(hermes: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance", reason="needs llguidance")
    impossible = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(RequestError, match=r"^tools: function 'f': .*uniqueItems"):
        use_of(hermes.tokenizer, tools=function(parameters=impossible), tool_choice="required")
    assert use_of(hermes.tokenizer, tools=function(parameters=impossible)).grammar is None
    monkeypatch.setattr(tools_module, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"^tool_choice: .* needs the package llguidance: pip install 'llama2c\[json\]'$"):
        use_of(hermes.tokenizer, tool_choice="required")
    with pytest.raises(RequestError, match=r"^tools: a function that is strict needs the package llguidance"):
        use_of(hermes.tokenizer, tools=[strict(WEATHER)])
    assert use_of(hermes.tokenizer).grammar is None


# ---------------------------------------------------------------------------
# through the server


@pytest.fixture(scope="module")
def server(start: Any, hermes: Llama) -> Any:
    return start(hermes)


@pytest.fixture
def write(hermes: Llama) -> Any:
    """Sets the next answer of the model."""
    model = hermes.transformer
    assert isinstance(model, Scripted)
    yield lambda text: model.write(hermes, text)
    model.write(hermes, None)


def ask(server: Any, messages: list[Any] = ASK, **body: Any) -> Any:
    return server.ask("POST", "/v1/chat/completions", {"messages": messages, "tools": TOOLS, "max_tokens": 200, **body})


def streamed(server: Any, **body: Any) -> tuple[dict[str, Any], list[Any]]:
    """The choice of an answer from its stream, as a client puts it together; and the deltas."""
    events = ask(server, stream=True, **body).events
    deltas = [event["choices"][0]["delta"] for event in events]
    calls = join_calls([entry for delta in deltas for entry in delta.get("tool_calls", ())])
    content = "".join(delta.get("content", "") for delta in deltas)
    message = {"role": "assistant", "content": content, "refusal": None}
    if calls:
        message |= {"content": content or None, "tool_calls": calls}
    reason = events[-1]["choices"][0]["finish_reason"]
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}, deltas


def test_a_call(server: Any, write: Callable[[str], None]) -> None:
    write(f"Let me see.\n{CALL}")
    answer = ask(server, seed=5).json
    [choice] = answer["choices"]
    [call] = choice["message"]["tool_calls"]
    assert call == {"id": call["id"], "type": "function", "function": {"name": "get_weather", "arguments": PARIS}}
    assert len(call["id"]) == 9 and call["id"].isalnum()
    message = {"role": "assistant", "content": "Let me see.", "refusal": None, "tool_calls": [call]}
    assert choice == {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}
    assert answer["usage"]["completion_tokens"] > 20
    write(f"Let me see.\n{CALL}")
    found, deltas = streamed(server, seed=5)
    assert found == choice
    first, *others = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert first == [{"index": 0, "id": call["id"], "type": "function", "function": {"name": "get_weather", "arguments": ""}}]
    assert others
    assert all(set(entry) == {"index", "function"} and set(entry["function"]) == {"arguments"} for [entry] in others)
    assert deltas[-1] == {}


def test_ids_are_those_of_the_request(server: Any, write: Callable[[str], None]) -> None:
    """The same with the same seed; others for another seed, in another turn, and for each call."""

    def ids(**body: Any) -> list[str]:
        write(f"{CALL}\n{CALL}")
        message = ask(server, **body).json["choices"][0]["message"]
        assert message["content"] is None
        return [call["id"] for call in message["tool_calls"]]

    found = [ids(seed=1), ids(seed=2), ids(seed=1, messages=[*ASK, *ASK])]
    assert len({id for each in found for id in each}) == 6
    assert ids(seed=1) == found[0]


def test_text_stays_text(server: Any, write: Callable[[str], None]) -> None:
    for text in ("It is 3 < 4 degrees <tool", "  \n", CALL.replace("get_weather", "other"), "<tool_call>\n{"):
        write(text)
        choice = ask(server, seed=1).json["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
        assert choice["finish_reason"] == "stop"
        write(text)
        assert streamed(server, seed=1)[0] == choice


def test_an_answer_that_is_cut(server: Any, write: Callable[[str], None]) -> None:
    """By its length: what was written of the arguments is handed on, with the reason, as OpenAI's interface does."""
    for body in ({"max_tokens": 60}, {"stop": "days"}):
        write(CALL)
        choice = ask(server, seed=1, **body).json["choices"][0]
        assert choice["finish_reason"] == ("length" if "max_tokens" in body else "tool_calls")
        [call] = choice["message"]["tool_calls"]
        assert PARIS.startswith(call["function"]["arguments"]) and call["function"]["arguments"] != PARIS
        write(CALL)
        assert streamed(server, seed=1, **body)[0] == choice


def test_calls_one_at_a_time_and_none(server: Any, write: Callable[[str], None]) -> None:
    write(f"{CALL}\n{CALL}")
    assert len(ask(server, parallel_tool_calls=False).json["choices"][0]["message"]["tool_calls"]) == 1
    write(CALL)
    choice = ask(server, tool_choice="none").json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")


def test_arguments_that_are_not_json_go_there_and_back(server: Any, write: Callable[[str], None]) -> None:
    write(CALL.replace(PARIS, "{city: Paris}"))
    message = ask(server).json["choices"][0]["message"]
    [call] = message["tool_calls"]
    assert call["function"]["arguments"] == "{city: Paris}"
    write("I am sorry.")
    result = {"role": "tool", "tool_call_id": call["id"], "content": "error: the arguments are not JSON"}
    assert ask(server, [*ASK, message, result]).json["choices"][0]["message"]["content"] == "I am sorry."


def test_logprobs_and_calls(server: Any, write: Callable[[str], None]) -> None:
    """Every token is in the list, also those of the call."""
    write(CALL)
    answer = ask(server, logprobs=True).json
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    assert "".join(entry["token"] for entry in content) == CALL
    write(CALL)
    events = ask(server, logprobs=True, stream=True).events
    parts = [event["choices"][0]["logprobs"] for event in events]
    assert [entry for part in parts if part for entry in part["content"]] == content


@pytest.mark.parametrize("name", ["mistral", "phi", "llama3"])
def test_the_other_formats(start: Any, llamas: dict[str, Llama], name: str) -> None:
    """Those with marks that have no text, too."""
    llama = llamas[name]
    assert isinstance(llama.transformer, Scripted)
    server = start(llama)
    texts = {
        "mistral": f'Well. [TOOL_CALLS] [{{"name": "get_weather", "arguments": {PARIS}}}]',
        "phi": f'Well. <|tool_call|>[{{"name": "get_weather", "arguments": {PARIS}}}]<|/tool_call|>',
        "llama3": f'{{"name": "get_weather", "parameters": {PARIS}}}',
    }
    llama.transformer.write(llama, texts[name])
    choice = ask(server, seed=1).json["choices"][0]
    assert choice["message"]["content"] == (None if name == "llama3" else "Well.")
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": PARIS}
    assert choice["finish_reason"] == "tool_calls"
    llama.transformer.write(llama, texts[name])
    assert streamed(server, seed=1)[0] == choice
    message = {**choice["message"], "content": choice["message"]["content"] or ""}
    llama.transformer.write(llama, "3 degrees.")
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "3"}
    assert ask(server, [*ASK, message, result]).json["choices"][0]["message"]["content"] == "3 degrees."
    llama.transformer.write(llama, None)


def test_a_required_call_of_random_weights(server: Any, hermes: Llama) -> None:
    """The same bytes alone, in a stream, and among others."""
    pytest.importorskip("llguidance", reason="needs llguidance")
    body = {"tool_choice": named("get_weather"), "temperature": 1.5}
    alone = [ask(server, seed=seed, **body).json for seed in range(8)]
    for answer in alone:
        choice = answer["choices"][0]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
        arguments = json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])
        assert set(arguments) == {"city", "days"} and arguments["city"] in ("Paris", "Łódź") and arguments["days"] in (1, 2, 3)
        assert answer["system_fingerprint"] != hermes.fingerprint  # llguidance counts, too
    assert len({answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] for answer in alone}) > 3
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda seed: streamed(server, seed=seed, **body)[0], range(8)))
    assert together == [answer["choices"][0] for answer in alone]


def test_refused_by_the_server(server: Any, start: Any, llama: Llama) -> None:
    answer = ask(start(llama))
    assert (answer.status, answer.error["param"]) == (400, "tools")
    for stream in (False, True):
        unique = function(parameters={"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}})
        answer = ask(server, tools=unique, tool_choice="required", stream=stream)
        assert (answer.status, answer.error["param"]) == (400, "tools")
        answer = ask(server, tools=[], tool_choice="required", stream=stream)
        assert (answer.status, answer.error["param"]) == (400, "tool_choice")


def test_mutated_tools_never_fail_in_the_server(server: Any) -> None:
    """As test_protocol.py does with other fields; here also with texts that a grammar or a template may not take."""
    chance = random.Random(3)
    odd: list[Any] = [None, True, 0, -1, 10**30, 0.5, "", "\ud800", "\0", '"', "%json {", "é" * 70, [], {}, [None], {"": 0},
                      {"type": "object"}, {"$ref": "#"}, {"$ref": "http://a/b"}, {"x-guidance": {"lenient": True}}]  # fmt: skip
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"a":' * 100 + "1" + "}" * 100}}
    good = {
        "tools": [strict(WEATHER), TIME], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 2,
        "messages": [*ASK, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "3"}],
    }  # fmt: skip

    def mutated(value: Any) -> Any:
        if not isinstance(value, (dict, list)) or not value or chance.random() < 0.1:
            return chance.choice(odd)
        copy = value.copy()
        key = chance.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
        copy[key] = mutated(copy[key])
        return copy

    seen = set()
    assert server.ask("POST", "/v1/chat/completions", good).status == 200
    for i in range(60):
        body = mutated(good if i % 2 else mutated(good))
        answer = server.ask("POST", "/v1/chat/completions", body)
        seen.add(answer.status)
        assert answer.status in (200, 400), (body, answer.data)
    assert seen == {200, 400}


# ---------------------------------------------------------------------------
# OpenAI's client


@pytest.fixture
def client(server: Any) -> Any:
    openai = pytest.importorskip("openai", reason="needs openai")
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_call_its_result_and_the_answer(client: Any, server: Any, write: Callable[[str], None]) -> None:
    messages: list[Any] = list(ASK)
    write(CALL)
    choice = client.chat.completions.create(model=server.service.name, messages=messages, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris", "days": 1})
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "3 degrees"}]
    write("It is 3 degrees in Paris.")
    answer = client.chat.completions.create(model=server.service.name, messages=messages, tools=TOOLS).choices[0]
    assert (answer.message.content, answer.finish_reason) == ("It is 3 degrees in Paris.", "stop")
    assert answer.message.tool_calls is None


def test_the_clients_own_accumulation_of_a_stream(client: Any, server: Any, write: Callable[[str], None]) -> None:
    """It also parses the arguments of strict functions while they arrive."""
    openai = pytest.importorskip("openai")
    pydantic = pytest.importorskip("pydantic")
    pytest.importorskip("llguidance", reason="needs llguidance")
    model = pydantic.create_model("get_weather", city=(str, ...), days=(int, ...))
    write(f"Well. {CALL}\n{CALL}")
    tools = [openai.pydantic_function_tool(model)]
    with client.chat.completions.stream(model=server.service.name, messages=ASK, tools=tools) as stream:
        names = [event.type for event in stream]
        final = stream.get_final_completion().choices[0]
    assert names.count("tool_calls.function.arguments.done") == 2
    assert (final.finish_reason, final.message.content) == ("tool_calls", "Well.")
    assert [call.function.parsed_arguments for call in final.message.tool_calls] == [model(city="Paris", days=1)] * 2
