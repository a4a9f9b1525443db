"""The server over real sockets: the answers are those of Llama, in the shapes that OpenAI's clients take."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import llama2c
from llama2c.llama import Llama
from llama2c.sampler import seed_of_sample
from llama2c.scoring import score_ids

HELLO = [{"role": "user", "content": "Hi"}]
LONG = [{"role": "user", "content": "dog " * 2000}]


# ---------------------------------------------------------------------------
# the same bytes as in Python


def test_a_completion_is_that_of_generate(server, llama: Llama) -> None:
    options = {"max_tokens": 30, "temperature": 0.9, "top_p": 0.8, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1}
    options |= {"frequency_penalty": 0.3, "presence_penalty": 0.2, "seed": 5}
    expected = llama.generate("The little dog", stop=["zzz"], logit_bias={300: 1.5}, **options)
    answer = server.complete(prompt="The little dog", stop="zzz", logit_bias={"300": 1.5}, model="tales1M", **options)
    assert answer.status == 200
    [choice] = answer.json["choices"]
    assert choice == {"index": 0, "text": expected.text, "logprobs": None, "finish_reason": expected.finish_reason}
    used = {"prompt_tokens": expected.prompt_tokens, "completion_tokens": 30, "total_tokens": expected.prompt_tokens + 30}
    found = answer.json["usage"]
    assert {key: found[key] for key in used} == used
    assert answer.json["system_fingerprint"] == llama.fingerprint
    assert (answer.json["object"], answer.json["model"], answer.json["seed"]) == ("text_completion", "tales1M", 5)


def test_a_chat_is_that_of_chat(server, llama: Llama) -> None:
    expected = llama.chat(HELLO, max_tokens=12, seed=2**64 - 1)
    answer = server.chat("Hi", max_completion_tokens=12, seed=-1)
    [choice] = answer.json["choices"]
    message = {"role": "assistant", "content": expected.text, "refusal": None}
    assert choice == {"index": 0, "message": message, "logprobs": None, "finish_reason": expected.finish_reason}
    assert answer.json["object"] == "chat.completion"
    assert answer.json["seed"] == 2**64 - 1
    assert date.fromisoformat(answer.json["date"])


def test_prompts_and_samples_have_seeds_of_their_own(server, llama: Llama) -> None:
    answer = server.complete(prompt=["A cat", "The farm"], n=2, max_tokens=9, seed=7, top_p=1, best_of=2)
    texts = [choice["text"] for choice in answer.json["choices"]]
    assert texts == [
        llama.generate(prompt, max_tokens=9, seed=seed_of_sample(7 + i, k), top_p=1).text
        for i, prompt in enumerate(["A cat", "The farm"])
        for k in range(2)
    ]
    assert [choice["index"] for choice in answer.json["choices"]] == [0, 1, 2, 3]
    assert answer.json["usage"]["prompt_tokens"] == sum(len(llama.tokenizer.encode(text)) for text in ("A cat", "The farm"))


def test_a_seed_that_was_drawn_gives_the_same_again(server) -> None:
    first = server.complete(prompt="Once", max_tokens=20).json
    again = server.complete(prompt="Once", max_tokens=20, seed=first["seed"]).json
    assert first["choices"] == again["choices"]
    assert 0 <= first["seed"] < 2**53


@pytest.mark.parametrize("prompt", [[1, 347, 320], [[1, 347, 320]], "The little dog", ["The little dog"]])
def test_prompts_of_all_kinds(server, llama: Llama, prompt: Any) -> None:
    given = prompt[0] if isinstance(prompt[0], list) or (isinstance(prompt, list) and isinstance(prompt[0], str)) else prompt
    expected = llama.generate(given, max_tokens=5, temperature=0).text
    assert server.complete(prompt=prompt, max_tokens=5, temperature=0).json["choices"][0]["text"] == expected


def test_many_at_once_have_the_bytes_of_each_alone(server, llama: Llama) -> None:
    """Half of them stream."""

    def text(seed: int) -> str:
        body = {"prompt": f"The {seed} dogs", "max_tokens": 20, "seed": seed, "stream": seed % 2 == 0}
        answer = server.complete(**body)
        parts = answer.events if body["stream"] else [answer.json]
        return "".join(choice["text"] for part in parts for choice in part["choices"])

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(text, range(64)))
    assert found == [llama.generate(f"The {seed} dogs", max_tokens=20, seed=seed).text for seed in range(64)]


# ---------------------------------------------------------------------------
# streams


def test_a_stream_of_a_completion(server, llama: Llama) -> None:
    events = server.complete(prompt="The little dog", max_tokens=8, seed=3, stream=True).events
    assert all(set(event) == {"id", "created", "model", "system_fingerprint", "seed", "object", "choices"} for event in events)
    choices = [choice for event in events for choice in event["choices"]]
    assert all(isinstance(choice["text"], str) for choice in choices)  # the last one, too
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    assert choices[-1]["text"] == ""
    assert "".join(choice["text"] for choice in choices) == llama.generate("The little dog", max_tokens=8, seed=3).text
    assert len({event["id"] for event in events}) == 1


def test_a_stream_of_a_chat(server, llama: Llama) -> None:
    events = server.chat(max_tokens=8, seed=3, stream=True, stream_options={"include_usage": True}).events
    *chunks, last = events
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 8
    assert all(chunk["usage"] is None and chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}  # the end has no content
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert "".join(delta.get("content", "") for delta in deltas) == llama.chat(HELLO, max_tokens=8, seed=3).text


def test_a_stream_of_several_choices(server, llama: Llama) -> None:
    events = server.chat(max_tokens=6, seed=3, n=3, stream=True).events
    for k in range(3):
        own = [choice["delta"] for event in events for choice in event["choices"] if choice["index"] == k]
        expected = llama.chat(HELLO, max_tokens=6, seed=seed_of_sample(3, k)).text
        assert "".join(delta.get("content", "") for delta in own) == expected


# ---------------------------------------------------------------------------
# log-probabilities


def test_logprobs_of_a_completion(server, llama: Llama) -> None:
    expected = llama.generate("The little dog", max_tokens=6, seed=1, temperature=2.0, top_p=1, logprobs=3)
    body = {"prompt": "The little dog", "max_tokens": 6, "seed": 1, "temperature": 2.0, "top_p": 1, "logprobs": 3}
    found = server.complete(**body).json["choices"][0]["logprobs"]
    assert found["token_logprobs"] == list(expected.logprobs)
    assert "".join(found["tokens"]) == expected.text
    assert found["text_offset"] == [len("".join(found["tokens"][:i])) for i in range(6)]
    for token, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert top[token] >= logprob  # the drawn token is in the list, whatever its rank
    parts = [choice["logprobs"] for event in server.complete(**body, stream=True).events for choice in event["choices"]]
    joined = {key: [value for part in parts if part for value in part[key]] for key in found}
    assert joined == found


def test_logprobs_of_a_chat(server, llama: Llama) -> None:
    expected = llama.chat(HELLO, max_tokens=6, seed=1, logprobs=2)
    found = server.chat(max_tokens=6, seed=1, logprobs=True, top_logprobs=2).json["choices"][0]["logprobs"]
    assert set(found) == {"content", "refusal"}
    assert [entry["logprob"] for entry in found["content"]] == list(expected.logprobs)
    tops = [[top["logprob"] for top in entry["top_logprobs"]] for entry in found["content"]]
    assert tops == [[logprob for _, logprob in top] for top in expected.top_logprobs]
    assert all(bytes(entry["bytes"]).decode() == entry["token"] for entry in found["content"])
    without = server.chat(max_tokens=1, seed=1, logprobs=True).json["choices"][0]["logprobs"]["content"]
    assert without[0]["top_logprobs"] == []


@pytest.mark.parametrize("n_ids", [1, 2, 64, 65, 150])
def test_echo_with_logprobs_scores_the_prompt(server, llama: Llama, n_ids: int) -> None:
    """As an evaluation harness asks: ids without BOS, a token that is dropped, many prompts at once. Bit for bit."""
    ids = [(7 * i) % 1000 + 300 for i in range(n_ids)]
    other = ids[::-1]
    body = {"prompt": [ids, other], "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1}
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: server.complete(**body).json, range(4)))
    for answer in answers:
        for choice, tokens in zip(answer["choices"], (ids, other), strict=True):
            found = choice["logprobs"]
            expected = [] if n_ids == 1 else list(score_ids(llama.transformer, tokens, 1).logprobs)
            drawn = llama.generate(tokens, max_tokens=1, temperature=0, logprobs=1)
            assert found["token_logprobs"] == [None, *expected, *drawn.logprobs]
            assert found["top_logprobs"][0] is None
            for logprob, top in zip(found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True):
                assert logprob in top.values()
            assert choice["text"] == llama.tokenizer.decode(tokens) + drawn.text


def test_echo_without_tokens_and_without_logprobs(server, llama: Llama) -> None:
    choice = server.complete(prompt="The dog", max_tokens=0, logprobs=0, echo=True).json["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("The dog", "length")
    assert choice["logprobs"]["token_logprobs"][1:] == list(llama.score("The dog").logprobs)
    expected = "The dog" + llama.generate("The dog", max_tokens=4, temperature=0).text
    assert server.complete(prompt="The dog", max_tokens=4, temperature=0, echo=True).json["choices"][0]["text"] == expected
    parts = server.complete(prompt="The dog", max_tokens=4, temperature=0, echo=True, logprobs=1, stream=True).events
    assert "".join(choice["text"] for part in parts for choice in part["choices"]) == expected


def test_a_known_prompt_is_said_to_be_cached(start, llama: Llama) -> None:
    server = start(llama)
    body = {"prompt": "The little dog lived on a farm near the forest.", "max_tokens": 1, "temperature": 0}
    first, again = (server.complete(**body).json["usage"] for _ in range(2))
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    assert again["prompt_tokens_details"]["cached_tokens"] == again["prompt_tokens"] - 1


# ---------------------------------------------------------------------------
# constrained answers


def test_json_schema_and_json_object(server, llama: Llama) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    answer = server.chat(response_format=form, seed=1, max_tokens=40).json
    assert json.loads(answer["choices"][0]["message"]["content"])["a"] in (True, False)
    assert answer["system_fingerprint"] != llama.fingerprint  # the package that restricts the tokens counts, too
    free = server.chat(response_format={"type": "json_object"}, seed=1, max_tokens=40).json["choices"][0]
    assert free["message"]["content"].startswith("{")
    assert server.chat(response_format={"type": "text"}, seed=1, max_tokens=3).status == 200
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}
    refused = server.chat(response_format=wrong)
    assert (refused.status, refused.error["param"]) == (400, "response_format")
    assert refused.error["message"].startswith("response_format: ")


# ---------------------------------------------------------------------------
# errors


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "code"),
    [
        ("completions", {"prompt": "x", "suffix": "y"}, 400, "suffix", None),
        ("completions", {"prompt": "x", "best_of": 2}, 400, "best_of", None),
        ("completions", {"prompt": "x", "temperature": -1}, 400, "temperature", None),
        ("completions", {"prompt": "x", "temperature": "hot"}, 400, "temperature", None),
        ("completions", {"prompt": "\ud800"}, 400, "prompt", None),
        ("completions", {"prompt": [999999]}, 400, "prompt", None),
        ("completions", {"prompt": "dog " * 2000}, 400, "prompt", "context_length_exceeded"),
        ("completions", {"prompt": "x", "model": "gpt-4"}, 404, "model", "model_not_found"),
        ("completions", {"prompt": "x", "guided_regex": "a"}, 400, "guided_regex", None),
        ("completions", {}, 400, "prompt", None),
        ("completions", {"prompt": "x", "stop": ""}, 400, "stop", None),
        ("completions", {"prompt": "x", "logit_bias": {"5000000": 1}}, 400, "logit_bias", None),
        ("chat/completions", {"messages": LONG}, 400, "messages", "context_length_exceeded"),
        ("chat/completions", {"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages", None),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages", None),
        ("chat/completions", {"messages": HELLO, "tools": [{"type": "function"}]}, 400, "tools", None),
        ("chat/completions", {"messages": HELLO, "top_logprobs": 2}, 400, "top_logprobs", None),
        ("chat/completions", {"messages": HELLO, "chat_template_kwargs": {"a": 1}}, 400, "chat_template_kwargs", None),
    ],
)
def test_refused_requests(server, path: str, body: Any, status: int, param: str, code: str | None) -> None:
    for stream in (False, True):  # also a stream is refused with a status
        answer = server.ask("POST", f"/v1/{path}", {**body, "stream": stream})
        assert answer.status == status
        assert (answer.error["param"], answer.error["code"]) == (param, code)
        assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"prompt": NaN}', b'{"n": ' + b"9" * 5000 + b"}", b"[" * 100000])
def test_bodies_that_are_not_json(server, data: bytes) -> None:
    answer = server.ask("POST", "/v1/completions", data)
    assert answer.status == 400
    assert answer.error["message"].startswith("body: ")


def test_content_type_length_path_and_method(server) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = server.ask("POST", "/v1/completions", b'{"prompt": "x"}', {"Content-Type": kind})
        assert (answer.status, answer.error["param"]) == (400, "Content-Type")
    assert server.ask("POST", "/v1/completions", b" " * (9 << 20)).status == 413
    assert server.ask("GET", "/v1/nothing").error["type"] == "invalid_request_error"
    assert server.ask("GET", "/v1/completions").status == 405


def test_a_full_queue(start, controlled) -> None:
    server = start(controlled, max_waiting=2)
    controlled.transformer.hold()
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(server.complete, prompt="A", n=2, max_tokens=1, seed=1)
        assert controlled.transformer.entered.acquire(timeout=60)
        refused = server.complete(prompt="B")
        assert refused.status == 429
        assert int(refused.headers["retry-after"]) > 0
        assert refused.error["type"] == "rate_limit_error"
        controlled.transformer.let_go()
        assert running.result(60).status == 200
    assert server.service.active == 0


def test_a_server_that_stops(start, llama: Llama) -> None:
    server = start(llama)
    assert server.ask("GET", "/health").json == {"status": "ok"}
    server.service.stop()
    assert server.ask("GET", "/health").status == 503
    assert (server.chat().status, server.chat().error["code"]) == (503, "stopping")


# ---------------------------------------------------------------------------
# clients that go away


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["A", "The dog " * 60], ids=["text", "prompt"])
def test_a_disconnect_ends_the_request_and_no_other(start, controlled, stream: bool, prompt: str) -> None:
    server = start(controlled)
    model = controlled.transformer
    model.hold()
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(server.complete, prompt="The little dog", max_tokens=40, seed=4, logit_bias={"2": -100})
        assert model.entered.acquire(timeout=60)
        gone = server.connect()
        body = {"prompt": prompt, "max_tokens": 200, "stream": stream, "logit_bias": {"2": -100, "1": -100}}
        gone.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        while server.service.engine.stats().running < 2:
            model.step()
        gone.sock.close()
        gone.close()
        while server.service.active > 1:
            threading.Event().wait(0.001)
        model.step()
        model.step()
        assert server.service.engine.stats().running == 1
        model.let_go()
        answer = other.result(60)
    assert answer.json["choices"][0]["text"] == controlled.generate(
        "The little dog", max_tokens=40, seed=4, logit_bias={2: -100}
    ).text
    assert any(line.startswith("completions disconnect") for line in server.lines)
    assert server.service.engine.stats().cache_bytes == 0


# ---------------------------------------------------------------------------
# the other routes


def test_models_tokens_and_metrics(server, llama: Llama) -> None:
    [model] = server.ask("GET", "/v1/models").json["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("tales1M", "model", "llama2c")
    assert server.ask("GET", "/v1/models/tales1M").json == model
    assert server.ask("GET", "/v1/models/other").status == 404
    ids = llama.tokenizer.encode("The dog")
    assert server.ask("POST", "/tokenize", {"prompt": "The dog"}).json["tokens"] == ids
    assert server.ask("POST", "/tokenize", {"prompt": "The dog", "add_special_tokens": False}).json["tokens"] == ids[1:]
    assert server.ask("POST", "/detokenize", {"tokens": ids}).json == {"prompt": "The dog"}
    assert server.ask("POST", "/detokenize", {"tokens": [10**9]}).error["param"] == "tokens"
    assert server.ask("GET", "/tokenizer_info").json["eos_token_id"] == 2
    text = server.ask("GET", "/metrics").data.decode()
    assert 'llama2c_answers_total{route="completions",status="200"}' in text
    assert "llama2c_engine_tokens_total" in text


def test_special_tokens_are_encoded_as_their_ids(start, smollm2: Path) -> None:
    """So a client that knows only their texts finds their ids."""
    pytest.importorskip("tokenizers")
    server = start(llama2c.load(smollm2, n_threads=1))
    info = server.ask("GET", "/tokenizer_info").json
    assert (info["bos_token"], info["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    for name in ("bos", "eos"):
        body = {"prompt": info[f"{name}_token"], "add_special_tokens": False}
        assert server.ask("POST", "/tokenize", body).json["tokens"] == [info[f"{name}_token_id"]]


def test_what_has_no_effect_passes(server) -> None:
    neutral = {"user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "suffix": None, "best_of": 1}
    assert server.complete(prompt="x", max_tokens=1, **neutral).status == 200
    chat = {"user": "u", "tools": None, "tool_choice": "auto", "modalities": ["text"], "n": None, "stop": None, "seed": None}
    assert server.chat(max_tokens=1, **chat).status == 200
    parts = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert server.ask("POST", "/v1/chat/completions", {"messages": parts, "max_tokens": 1}).status == 200


def test_the_log_has_a_line_for_each_request_and_no_prompt(start, llama: Llama) -> None:
    server = start(llama)
    server.complete(prompt="The secret dog", max_tokens=3, temperature=0)
    server.complete(prompt="The secret dog", n=0)
    assert len(server.lines) == 2
    assert server.lines[0].startswith("completions 200 ")
    assert "new 3, " in server.lines[0]
    assert server.lines[1].startswith("completions 400, req_")
    assert "secret" not in "".join(server.lines)
