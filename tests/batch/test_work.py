"""Lines of OUT: what Llama gives for the same request and seed, in both forms, and what is wrong with a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from llama2c.batch.plan import Plan
from llama2c.batch.work import Worker
from llama2c.engine.engine import Engine
from llama2c.errors import RoomError
from llama2c.llama import Llama
from llama2c.sampler import seed_of_id, seed_of_sample

from .conftest import DAY, entries_of

Answer = Callable[..., Any]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def engine(llama: Llama) -> Iterator[Engine]:
    with Engine(llama, 4) as engine:
        yield engine


@pytest.fixture
def answer(llama: Llama, engine: Engine, plan: Plan) -> Answer:
    """The answer to one line, read back."""

    def answer(line: Any, **fields: Any) -> Any:
        worker = Worker(llama, engine, replace(plan, **fields))
        [entry] = entries_of(line)
        work = worker.begin(entry)
        for request in work.requests:
            request.wait()
        answered = worker.finish(work)
        found = json.loads(answered.line)
        assert (answered.error is None) == (found["error"] is None)
        return found

    return answer


def openai(url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": "q", "method": "POST", "url": url, "body": body}


# ---------------------------------------------------------------------------
# our own lines


def test_a_prompt(answer: Answer, llama: Llama) -> None:
    found = answer({"prompt": "The dog", "id": "a", "max_tokens": 12})
    expected = llama.generate("The dog", max_tokens=12, seed=seed_of_id(1, "a"))
    assert found.pop("request") == f"{entries_of({'prompt': 'The dog', 'id': 'a', 'max_tokens': 12})[0].request:016x}"
    assert found == {
        "id": "a", "text": expected.text, "finish_reason": "length", "prompt_tokens": expected.prompt_tokens,
        "generation_tokens": 12, "seed": seed_of_id(1, "a"), "error": None,
    }  # fmt: skip
    assert list(found)[-1] == "error"


def test_options_of_the_line_of_the_plan_and_null(answer: Answer, llama: Llama) -> None:
    line = {"prompt": "The dog", "id": 5, "temperature": 0.5, "top_k": None, "messages": None, "max_tokens": None}
    found = answer(line, seed=7, options={"temperature": 2.0, "max_tokens": 9, "top_k": 3})
    assert found["text"] == llama.generate("The dog", temperature=0.5, top_k=3, max_tokens=9, seed=seed_of_id(7, 5)).text
    found = answer({"prompt": "The dog", "seed": 2**64 - 1, "stop": "."})
    assert found["text"] == llama.generate("The dog", seed=2**64 - 1, stop=".").text
    assert found["seed"] == 2**64 - 1


def test_ids_messages_and_the_date(answer: Answer, llama: Llama) -> None:
    ids = llama.tokenizer.encode("The cat")
    assert answer({"prompt": ids, "max_tokens": 5, "seed": 1})["text"] == llama.generate(ids, max_tokens=5, seed=1).text
    messages = [{"role": "user", "content": "Hello"}]
    expected = llama.chat(messages, max_tokens=5, seed=1).text
    assert answer({"messages": messages, "max_tokens": 5, "seed": 1})["text"] == expected
    assert answer({"messages": messages, "max_tokens": 5, "seed": 1, "now": "2020-02-02"})["text"] == expected


def test_templates_see_the_date_of_the_run_or_of_the_line(llama: Llama, plan: Plan) -> None:
    seen: list[Any] = []

    class Spy:
        def submit(self, prompt: Any, **options: Any) -> Any:
            seen.append(options["now"])
            raise ValueError

    worker = Worker(llama, Spy(), plan)  # type: ignore[arg-type]
    messages = [{"role": "user", "content": "Hello"}]
    body = openai(CHAT, messages=messages)
    for entry in entries_of({"messages": messages}, {"messages": messages, "now": "2020-02-02"}, {"prompt": "a"}, body):
        worker.begin(entry)
    assert seen == [DAY, date(2020, 2, 2), None, DAY]


def test_logprobs(answer: Answer, llama: Llama) -> None:
    found = answer({"prompt": "The dog", "max_tokens": 3, "seed": 1, "logprobs": 2, "logit_bias": {"5": -100}})
    expected = llama.generate("The dog", max_tokens=3, seed=1, logprobs=2, logit_bias={5: -100.0})
    assert found["tokens"] == list(expected.tokens)
    assert found["logprobs"] == list(expected.logprobs or ())
    assert found["top_logprobs"] == [list(map(list, top)) for top in expected.top_logprobs or ()]


def test_a_constraint_of_the_line_replaces_that_of_the_plan(answer: Answer) -> None:
    pytest.importorskip("llguidance")
    options = {"regex": "(yes|no)", "max_tokens": 9}
    assert answer({"prompt": "a"}, options=options)["text"] in ("yes", "no")
    assert answer({"prompt": "a", "regex": "maybe"}, options=options)["text"] == "maybe"
    found = answer(openai(COMPLETIONS, prompt="a"), options=options)
    assert found["response"]["body"]["choices"][0]["text"] in ("yes", "no")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ({"prompt": "a", "temprature": 1}, "temprature: unknown option; there are "),
        ({"prompt": "a", "temperature": -1}, "temperature: expected a finite number of at least 0, found -1"),
        ({"prompt": "a", "temperature": "hot"}, "temperature: expected a number, found str"),
        ({"prompt": "a", "n": 2}, "n: expected one request for each prompt, found several"),
        ({"prompt": "a", "seed": 2**64}, "seed: expected an integer from 0 to"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias: expected token ids as keys, found 'x'"),
        ({"prompt": "a", "now": "2020-01-01"}, "prompt: expected messages, as there are template_options or now"),
        ({"messages": [{"role": "user", "content": "a"}], "now": "today"}, "now: expected a date such as"),
        ({"prompt": "a", "messages": []}, "messages: expected at least one message, found none"),
        ({"prompt": "a", "messages": "Hi"}, "messages: expected an array, found a string"),
        ({"prompt": 5}, "prompt: expected str, bytes or token ids, found int"),
        ({"prompt": ["a", "b"]}, "prompt: expected token ids, found str"),
        ({"prompt": [99999]}, "prompt: expected token ids from 0 to"),
        ({"prompt": "\ud800"}, "text: expected valid Unicode, found a lone surrogate U+D800 at index 0"),
        ({}, "prompt: expected a dict with either 'prompt' or 'messages', found nothing"),
        ({"prompt": "word " * 5000}, "prompt: expected 1 to "),
        (b"?", "line: expected valid JSON"),
    ],
)
def test_wrong_lines(answer: Answer, line: Any, error: str) -> None:
    found = answer(line)
    assert found["error"].startswith(error)
    nothing = dict.fromkeys(("text", "prompt_tokens", "generation_tokens", "seed"))
    assert {name: found[name] for name in nothing} == nothing
    assert (found["id"], found["finish_reason"]) == ("line-1", "error")
    assert list(found) == list(answer({"prompt": "a", "max_tokens": 0}))


def test_too_little_memory_is_no_error_of_the_line(llama: Llama, plan: Plan) -> None:
    with Engine(llama, 1, cache_bytes=1) as engine, pytest.raises(RoomError):
        Worker(llama, engine, plan).begin(entries_of({"prompt": "a"})[0])


def test_a_missing_package_is_no_error_of_the_line(llama: Llama, engine: Engine, plan: Plan) -> None:
    worker = Worker(llama, engine, replace(plan, llguidance="0.0.1"))
    with pytest.raises(OSError, match=r"^llguidance: expected version 0.0.1, found"):
        worker.begin(entries_of({"prompt": "a", "regex": "b"})[0])
    assert worker.begin(entries_of({"prompt": "a"})[0]).error is None


# ---------------------------------------------------------------------------
# OpenAI's lines


def test_a_completion(answer: Answer, llama: Llama, plan: Plan) -> None:
    line = openai(COMPLETIONS, prompt=["The dog", "The cat"], n=2, seed=3, max_tokens=4, echo=True)
    found = answer(line)
    digest = f"{entries_of(line)[0].request:016x}"
    assert list(found) == ["id", "custom_id", "response", "error"]
    assert (found["id"], found["custom_id"], found["error"]) == (f"batch_req_{digest}", "q", None)
    response = found["response"]
    assert (response["status_code"], response["request_id"]) == (200, f"req_{digest}")
    body = response["body"]
    prompts = [("The dog", 3), ("The dog", seed_of_sample(3, 1)), ("The cat", 4), ("The cat", seed_of_sample(4, 1))]
    expected = [prompt + llama.generate(prompt, max_tokens=4, seed=seed).text for prompt, seed in prompts]
    assert [choice["text"] for choice in body.pop("choices")] == expected
    n_prompt = sum(len(llama.tokenizer.encode(prompt)) for prompt in ("The dog", "The cat"))
    assert body.pop("usage") == {"prompt_tokens": n_prompt, "completion_tokens": 16, "total_tokens": n_prompt + 16}
    assert body == {
        "id": f"cmpl-{digest}", "object": "text_completion", "created": 0, "model": "tales1M",
        "system_fingerprint": plan.fingerprint, "seed": 3,
    }  # fmt: skip


def test_a_chat(answer: Answer, llama: Llama) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    line = openai(CHAT, messages=messages, max_completion_tokens=6, logprobs=True, top_logprobs=1, model="tales1M")
    body = answer(line)["response"]["body"]
    expected = llama.chat(messages, max_tokens=6, seed=seed_of_id(1, "q"), logprobs=1)
    [choice] = body["choices"]
    assert choice["message"]["content"] == expected.text
    assert [entry["logprob"] for entry in choice["logprobs"]["content"]] == list(expected.logprobs or ())
    assert (body["seed"], body["date"], body["object"]) == (seed_of_id(1, "q"), "2026-01-31", "chat.completion")
    assert answer(openai(CHAT, messages=messages, date="2020-02-02", max_tokens=1))["response"]["body"]["date"] == "2020-02-02"


def test_the_length_of_an_openai_line(answer: Answer) -> None:
    def made(line: Any, **options: Any) -> int:
        n: int = answer(line, options={"temperature": 0, **options})["response"]["body"]["usage"]["completion_tokens"]
        return n

    chat = [{"role": "user", "content": "Hello"}]
    assert made(openai(COMPLETIONS, prompt="The dog")) == 16
    assert made(openai(COMPLETIONS, prompt="The dog"), max_tokens=5) == 5
    assert made(openai(COMPLETIONS, prompt="The dog", max_tokens=7), max_tokens=5) == 7
    assert made(openai(CHAT, messages=chat, max_completion_tokens=7), max_tokens=5) == 7
    assert made(openai(CHAT, messages=chat), max_tokens=5) == 5


def test_scores_of_a_prompt(answer: Answer, llama: Llama) -> None:
    line = openai(COMPLETIONS, prompt="The dog ran.", max_tokens=2, echo=True, logprobs=0, seed=1)
    body = answer(line)["response"]["body"]
    [choice] = body["choices"]
    score = llama.score("The dog ran.")
    assert choice["logprobs"]["token_logprobs"][1 : len(score.tokens)] == list(score.logprobs)
    assert choice["text"] == "The dog ran." + llama.generate("The dog ran.", max_tokens=2, seed=1).text
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (len(score.tokens), 2)


@pytest.mark.parametrize(
    ("line", "error", "code"),
    [
        (openai("/v1/embeddings"), "url: expected /v1/chat/completions or /v1/completions, found", "invalid_request"),
        ({"custom_id": "q", "body": {}}, "url: expected", "invalid_request"),
        ({"custom_id": "q", "url": CHAT}, "body: expected an object, found none", "invalid_request"),
        ({"body": {}, "url": CHAT}, "custom_id: expected a string, found none", "invalid_request"),
        ({**openai(CHAT), "method": "GET"}, "method: expected POST, found 'GET'", "invalid_request"),
        ({**openai(CHAT), "priority": 1}, "priority: unknown field", "invalid_request"),
        (openai(COMPLETIONS, prompt="a", stream=True), "stream: expected false", "invalid_request"),
        (openai(COMPLETIONS, prompt="a", model="gpt-4"), "model: expected 'tales1M', found 'gpt-4'", "invalid_request"),
        (openai(COMPLETIONS, prompt="a", best_off=1), "best_off: this field is not supported", "invalid_request"),
        (openai(COMPLETIONS, prompt="word " * 5000), "prompt: expected 1 to ", "context_length_exceeded"),
        (openai(COMPLETIONS, prompt=["a", "word " * 5000]), "prompt: expected 1 to ", "context_length_exceeded"),
    ],
)
def test_wrong_lines_of_openai(answer: Answer, line: Any, error: str, code: str) -> None:
    found = answer(line)
    assert found["custom_id"] == line.get("custom_id", "line-1")
    assert found["error"]["message"].startswith(error)
    assert found["error"]["code"] == code
    assert found["response"]["status_code"] == 400
    inner = found["response"]["body"]["error"]
    assert (inner["message"], inner["type"], inner["param"]) == (
        found["error"]["message"], "invalid_request_error", error.partition(":")[0],
    )  # fmt: skip
