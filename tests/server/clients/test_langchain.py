"""LangChain's ChatOpenAI against the server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

langchain_openai = pytest.importorskip("langchain_openai", reason="needs langchain-openai: make clients")

from langchain_openai import ChatOpenAI, OpenAI  # noqa: E402
from pydantic import BaseModel, Field  # noqa: E402

from llama2c.llama import Llama  # noqa: E402

HELLO = [{"role": "user", "content": "Hi"}]
MODEL = "tales1M"


@pytest.fixture(scope="module")
def options(server: Any) -> dict[str, Any]:
    return {"base_url": f"http://127.0.0.1:{server.port}/v1", "api_key": "none", "model": MODEL, "max_retries": 0, "seed": 4}


def test_invoke_and_usage(options: dict[str, Any], llama: Llama) -> None:
    expected = llama.chat(HELLO, max_tokens=9, seed=4)
    message = ChatOpenAI(**options, max_tokens=9).invoke("Hi")
    assert message.content == expected.text
    assert message.usage_metadata is not None
    assert message.usage_metadata["input_tokens"] == expected.prompt_tokens
    assert message.usage_metadata["output_tokens"] == expected.generation_tokens
    assert message.response_metadata["finish_reason"] == expected.finish_reason
    assert message.response_metadata["system_fingerprint"] == llama.fingerprint


def test_a_conversation(options: dict[str, Any], llama: Llama) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HELLO, {"role": "assistant", "content": "Hello."}, *HELLO]
    pairs = [("system", "Be brief."), ("human", "Hi"), ("ai", "Hello."), ("human", "Hi")]
    found = ChatOpenAI(**options, max_tokens=9).invoke(pairs)
    assert found.content == llama.chat(messages, max_tokens=9, seed=4).text


def test_stream(options: dict[str, Any], llama: Llama) -> None:
    chunks = list(ChatOpenAI(**options, max_tokens=9, stream_usage=True).stream("Hi"))
    expected = llama.chat(HELLO, max_tokens=9, seed=4)
    assert "".join(chunk.content for chunk in chunks) == expected.text
    counts = [chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata]
    assert counts == [expected.generation_tokens]


def test_logprobs(options: dict[str, Any], llama: Llama) -> None:
    model = ChatOpenAI(**options, max_tokens=5, logprobs=True, top_logprobs=2)
    content = model.invoke("Hi").response_metadata["logprobs"]["content"]
    expected = llama.chat(HELLO, max_tokens=5, seed=4, logprobs=2)
    assert [entry["logprob"] for entry in content] == list(expected.logprobs or ())


def test_several_at_once(options: dict[str, Any], llama: Llama) -> None:
    model = ChatOpenAI(**options, max_tokens=9)
    texts = ["Hi", "The dog", "A cat", "One day"]
    expected = [llama.chat([{"role": "user", "content": text}], max_tokens=9, seed=4).text for text in texts]
    assert [message.content for message in model.batch(texts)] == expected

    async def together() -> list[Any]:
        return [message.content for message in await asyncio.gather(*map(model.ainvoke, texts))]

    assert asyncio.run(together()) == expected


def test_structured_output(options: dict[str, Any]) -> None:
    pytest.importorskip("llguidance")

    class Dog(BaseModel):
        happy: bool
        size: int = Field(ge=0, le=9)

    model = ChatOpenAI(**options, max_tokens=60).with_structured_output(Dog, method="json_schema", include_raw=True)
    found = model.invoke("Describe a dog as JSON.")
    assert isinstance(found["parsed"], Dog) and 0 <= found["parsed"].size <= 9
    assert Dog.model_validate_json(found["raw"].content) == found["parsed"]


def test_a_text_model(options: dict[str, Any], llama: Llama) -> None:
    """OpenAI's older interface, /v1/completions."""
    model = OpenAI(**options, max_tokens=9, top_p=0.9, temperature=1.0)
    expected = llama.generate("The dog", max_tokens=9, seed=4).text
    assert model.invoke("The dog") == expected
    assert "".join(model.stream("The dog")) == expected
