"""The openai package against the server: what its users call, and which exceptions they get."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

openai = pytest.importorskip("openai")

from openai import AsyncOpenAI, OpenAI  # noqa: E402

from llama2c.llama import Llama  # noqa: E402
from llama2c.sampler import seed_of_sample  # noqa: E402
from llama2c.transformer import Transformer  # noqa: E402

HELLO: Any = [{"role": "user", "content": "Hi"}]
MODEL = "tales1M"
PATIENCE = 60


def address(server: Any) -> dict[str, Any]:
    return {"base_url": f"http://127.0.0.1:{server.port}/v1", "api_key": "none", "max_retries": 0, "timeout": PATIENCE}


@pytest.fixture(scope="module")
def client(server: Any) -> Any:
    with OpenAI(**address(server)) as made:
        yield made


# ---------------------------------------------------------------------------
# answers


def test_a_completion(client: OpenAI, llama: Llama) -> None:
    expected = llama.generate("The little dog", max_tokens=12, seed=3, temperature=0.7, stop=["zz"])
    found = client.completions.create(
        model=MODEL, prompt="The little dog", max_tokens=12, seed=3, temperature=0.7, stop=["zz"], user="me"
    )
    assert [choice.text for choice in found.choices] == [expected.text]
    assert found.choices[0].finish_reason == expected.finish_reason
    assert found.usage and found.usage.prompt_tokens == expected.prompt_tokens
    assert (found.usage.completion_tokens, found.usage.total_tokens) == (12, expected.prompt_tokens + 12)
    assert found.usage.prompt_tokens_details and found.usage.prompt_tokens_details.cached_tokens is not None
    assert found.system_fingerprint == llama.fingerprint
    assert found.model_extra and found.model_extra["seed"] == 3


def test_prompts_as_lists_and_ids(client: OpenAI, llama: Llama) -> None:
    ids = llama.tokenizer.encode("The farm")
    for prompt in (["A cat", "The farm"], [llama.tokenizer.encode("A cat"), ids]):
        found = client.completions.create(model=MODEL, prompt=prompt, max_tokens=5, temperature=0, n=2)
        texts = [llama.generate(text, max_tokens=5, temperature=0).text for text in ("A cat", "The farm") for _ in range(2)]
        assert [choice.text for choice in found.choices] == texts


def test_a_chat_with_several_choices(client: OpenAI, llama: Llama) -> None:
    found = client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=9, n=3, seed=5)
    assert [choice.message.content for choice in found.choices] == [
        llama.chat(HELLO, max_tokens=9, seed=seed_of_sample(5, k)).text for k in range(3)
    ]
    assert all(choice.message.role == "assistant" and choice.finish_reason == "length" for choice in found.choices)
    assert found.usage and found.usage.completion_tokens == 27


def test_a_conversation_goes_on_with_the_answer_as_it_was(client: OpenAI, llama: Llama) -> None:
    """An answer that is put back into the messages has fields that are null."""
    first = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=9, seed=5).choices[0].message
    more: Any = {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "then?"}]}
    found = client.chat.completions.create(model=MODEL, messages=[*HELLO, first, more], max_tokens=9, seed=6)
    texts = [*HELLO, {"role": "assistant", "content": first.content}, {"role": "user", "content": "And then?"}]
    assert found.choices[0].message.content == llama.chat(texts, max_tokens=9, seed=6).text


def test_stop_ends_the_text_before_it(client: OpenAI, llama: Llama) -> None:
    whole = llama.generate("The little dog", max_tokens=40, temperature=0).text
    stop = whole[12:16]
    found = client.completions.create(model=MODEL, prompt="The little dog", max_tokens=40, temperature=0, stop=stop)
    assert found.choices[0].text == whole[: whole.index(stop)]
    assert found.choices[0].finish_reason == "stop"


def test_the_same_seed_gives_the_same_text(client: OpenAI) -> None:
    ask = {"model": MODEL, "messages": HELLO, "max_tokens": 20}
    texts = [client.chat.completions.create(**ask, seed=seed).choices[0].message.content for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_logprobs(client: OpenAI, llama: Llama) -> None:
    expected = llama.generate("The little dog", max_tokens=5, seed=1, logprobs=2)
    answer = client.completions.create(model=MODEL, prompt="The little dog", max_tokens=5, seed=1, logprobs=2)
    found = answer.choices[0].logprobs
    assert found and found.token_logprobs == list(expected.logprobs or ())
    assert found.tokens and "".join(found.tokens) == expected.text
    assert found.top_logprobs and all(len(top) in (2, 3) for top in found.top_logprobs)  # and the one that was drawn
    chat = llama.chat(HELLO, max_tokens=5, seed=1, logprobs=2)
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5, seed=1, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert content and [entry.logprob for entry in content] == list(chat.logprobs or ())
    for entry, top in zip(content, chat.top_logprobs or (), strict=True):
        assert [one.logprob for one in entry.top_logprobs] == [logprob for _, logprob in top]
        assert bytes(entry.bytes or ()).decode() == entry.token


def test_models(client: OpenAI) -> None:
    [model] = list(client.models.list())
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "llama2c")
    assert client.models.retrieve(MODEL) == model


def test_raw_responses_have_headers_and_a_request_id(client: OpenAI, server: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, max_tokens=1)
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].finish_reason == "length"
    name = raw.headers["x-request-id"]
    assert raw.request_id == raw.parse()._request_id == name
    assert sum(name in line for line in server.lines) == 1  # in the log, too
    ask = {"model": MODEL, "messages": HELLO, "max_tokens": 3, "stream": True}
    with client.chat.completions.with_streaming_response.create(**ask) as streamed:
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert streamed.headers["x-request-id"] != name
        assert list(streamed.iter_lines())[-2] == "data: [DONE]"


# ---------------------------------------------------------------------------
# streams


def text_of(chunks: Any) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_a_stream_of_a_chat(client: OpenAI, llama: Llama) -> None:
    expected = llama.chat(HELLO, max_tokens=9, seed=4)
    ask = {"model": MODEL, "messages": HELLO, "max_tokens": 9, "seed": 4, "stream": True}
    chunks = list(client.chat.completions.create(**ask))
    assert text_of(chunks) == expected.text
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, expected.finish_reason]
    *chunks, last = client.chat.completions.create(**ask, stream_options={"include_usage": True})
    assert text_of(chunks) == expected.text
    assert last.choices == [] and last.usage.completion_tokens == expected.generation_tokens
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_of_a_completion(client: OpenAI, llama: Llama) -> None:
    ask = {"model": MODEL, "prompt": "A cat", "max_tokens": 9, "seed": 4, "logprobs": 1, "stream": True}
    *chunks, last = client.completions.create(**ask, stream_options={"include_usage": True})
    expected = llama.generate("A cat", max_tokens=9, seed=4, logprobs=1)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
    found = [value for chunk in chunks if chunk.choices[0].logprobs for value in chunk.choices[0].logprobs.token_logprobs]
    assert found == list(expected.logprobs or ())
    assert last.choices == [] and last.usage.completion_tokens == expected.generation_tokens


def test_the_helper_that_collects_a_stream(client: OpenAI, llama: Llama) -> None:
    with client.chat.completions.stream(model=MODEL, messages=HELLO, max_tokens=9, seed=4) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    expected = llama.chat(HELLO, max_tokens=9, seed=4)
    assert final.choices[0].message.content == expected.text
    assert final.choices[0].finish_reason == expected.finish_reason


def test_sixteen_at_once_from_asyncio(server: Any, llama: Llama) -> None:
    """Half of them as streams, and each has the text that it has alone."""

    async def one(client: AsyncOpenAI, seed: int) -> str:
        ask: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 12, "seed": seed}
        if seed % 2:
            return (await client.chat.completions.create(**ask)).choices[0].message.content or ""
        return text_of([chunk async for chunk in await client.chat.completions.create(**ask, stream=True)])

    async def all_of_them() -> list[str]:
        async with AsyncOpenAI(**address(server)) as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(16)))

    assert asyncio.run(all_of_them()) == [llama.chat(HELLO, max_tokens=12, seed=seed).text for seed in range(16)]


def test_comments_during_a_long_prompt_are_skipped(start: Any, controlled: Llama) -> None:
    server = start(controlled, silence=0.01)
    controlled.transformer.hold()
    connection = server.connect()
    body = {"messages": HELLO, "max_tokens": 4, "seed": 1, "stream": True}
    with ThreadPoolExecutor(1) as threads, OpenAI(**address(server)) as client:
        ask = {"model": MODEL, "messages": HELLO, "max_tokens": 4, "seed": 1, "stream": True}
        waiting = threads.submit(lambda: text_of(client.chat.completions.create(**ask)))
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        while answer.readline() != b": still here\n":  # after the chunk with the role
            pass
        controlled.transformer.let_go()
        assert waiting.result(PATIENCE) == controlled.chat(HELLO, max_tokens=4, seed=1).text
        assert answer.read().endswith(b"data: [DONE]\n\n")
    connection.close()


# ---------------------------------------------------------------------------
# structured output


def test_structured_output(client: OpenAI) -> None:
    pytest.importorskip("llguidance")
    pydantic = pytest.importorskip("pydantic")

    class Dog(pydantic.BaseModel):
        happy: bool
        size: int = pydantic.Field(ge=0, le=9)

    ask: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 60, "seed": 1}
    parsed = client.chat.completions.parse(**ask, response_format=Dog).choices[0].message.parsed
    assert isinstance(parsed, Dog) and 0 <= parsed.size <= 9
    schema = {"name": "dog", "strict": True, "schema": Dog.model_json_schema() | {"additionalProperties": False}}
    answer = client.chat.completions.create(**ask, response_format={"type": "json_schema", "json_schema": schema})
    assert set(json.loads(answer.choices[0].message.content)) <= {"happy", "size"}
    with client.chat.completions.stream(**ask, response_format=Dog) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Dog)
    answer = client.chat.completions.create(**ask, response_format={"type": "json_object"})
    assert answer.choices[0].message.content.startswith("{")
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**{**ask, "max_tokens": 2}, response_format=Dog)


# ---------------------------------------------------------------------------
# errors


def test_bad_requests(client: OpenAI) -> None:
    for extra, param in (({"temperature": -1}, "temperature"), ({"reasoning_effort": "low"}, "reasoning_effort")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1, **extra)
        assert (caught.value.param, caught.value.type, caught.value.code) == (param, "invalid_request_error", None)
        assert param in caught.value.message and caught.value.request_id
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="dog " * 2000, stream=True)
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")
    with pytest.raises(openai.BadRequestError, match="guided_regex: this field is not supported"):
        client.completions.create(model=MODEL, prompt="x", extra_body={"guided_regex": "a"})


def test_another_model_and_paths_that_are_not_there(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings"):
        client.embeddings.create(model=MODEL, input="x")


def test_keys_and_origins(locked: Any) -> None:
    with OpenAI(**{**address(locked), "api_key": "sk-other"}) as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    with OpenAI(**{**address(locked), "api_key": "sk-test"}) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        with pytest.raises(openai.PermissionDeniedError):
            client.models.list(extra_headers={"Origin": "https://evil.example"})


def test_a_full_queue_and_a_client_that_tries_again(start: Any, controlled: Llama) -> None:
    server = start(controlled, max_waiting=1)
    controlled.transformer.hold()
    ask: dict[str, Any] = {"model": MODEL, "prompt": "A", "max_tokens": 3, "seed": 1}
    with ThreadPoolExecutor(2) as threads, OpenAI(**address(server)) as client:
        running = threads.submit(client.completions.create, **ask)
        assert controlled.transformer.entered.acquire(timeout=PATIENCE)
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(**ask)
        assert caught.value.response.headers["retry-after"] == "1"
        again = threads.submit(client.with_options(max_retries=3).completions.create, **ask)
        while sum("completions 429" in line for line in server.lines) < 2:
            threading.Event().wait(0.001)
        controlled.transformer.let_go()
        assert running.result(PATIENCE).choices[0].text == again.result(PATIENCE).choices[0].text


def test_a_timeout_ends_the_request_in_the_server(start: Any, controlled: Llama) -> None:
    server = start(controlled)
    controlled.transformer.hold()
    with OpenAI(**address(server)) as client, pytest.raises(openai.APITimeoutError):
        client.completions.create(model=MODEL, prompt="A", max_tokens=9, timeout=0.05)
    while server.service.active:
        threading.Event().wait(0.001)
    controlled.transformer.let_go()
    assert any("disconnect" in line for line in server.lines)


def test_a_server_that_stops(start: Any, controlled: Llama) -> None:
    """New requests get a 503; the stream that is cut off says why."""
    server = start(controlled)
    controlled.transformer.hold()
    with OpenAI(**address(server)) as client:
        chunks = iter(client.completions.create(model=MODEL, prompt="A", max_tokens=400, logit_bias={"2": -100}, stream=True))
        controlled.transformer.step()
        controlled.transformer.step()
        assert next(chunks).choices[0].finish_reason is None
        server.service.stop()
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model=MODEL, prompt="A")
        assert (caught.value.status_code, caught.value.code) == (503, "stopping")
        closing = threading.Thread(target=server.service.engine.close)
        closing.start()
        while closing.is_alive():  # one step after the other, until the engine sees that it has to close
            controlled.transformer.go.release()
            closing.join(0.001)
        with pytest.raises(openai.APIError, match="the server is stopping") as cut:
            list(chunks)
        assert (cut.value.type, cut.value.code) == ("server_error", "stopping")


class Broken(Transformer):
    """Logits that are not numbers."""

    def forward_batch(self, sequences: Any, *, logits: Any = 1, out: Any = None) -> Any:
        rows = super().forward_batch(sequences, logits=logits, out=out)
        rows[:] = np.nan
        return rows


def test_a_model_that_fails(start: Any, llama: Llama, capfd: pytest.CaptureFixture[str]) -> None:
    server = start(Llama(Broken(llama.transformer.checkpoint, n_threads=1), llama.tokenizer))
    with OpenAI(**address(server)) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model=MODEL, messages=HELLO)
        assert (caught.value.status_code, caught.value.type) == (500, "server_error")
        with pytest.raises(openai.APIError, match="the server has failed"):
            list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    assert "NaN or infinity" in capfd.readouterr().err
    while server.service.active:  # the end of a stream comes after its last event
        threading.Event().wait(0.001)
