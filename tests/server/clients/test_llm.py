"""The command `llm` against the server. It needs no plugin: its own file of models has the address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeAlias

import pytest

from llama2c.llama import Llama

pytestmark = pytest.mark.skipif(find_spec("llm") is None, reason="needs llm: make clients")

HELLO = [{"role": "user", "content": "Hi"}]
SECONDS = 120
MODELS = """\
- model_id: tales
  model_name: tales1M
  api_base: "http://127.0.0.1:PORT/v1"
  supports_schema: true
- model_id: tales-text
  model_name: tales1M
  api_base: "http://127.0.0.1:PORT/v1"
  completion: true
"""
Llm: TypeAlias = "Callable[..., str]"


@pytest.fixture(scope="module")
def run(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Llm:
    """Runs the command, and gives what it prints."""
    folder = tmp_path_factory.mktemp("llm")
    (folder / "extra-openai-models.yaml").write_text(MODELS.replace("PORT", str(server.port)))

    def run(*arguments: str) -> str:
        environment = {**os.environ, "LLM_USER_PATH": str(folder), "OPENAI_API_KEY": "none"}
        command = [sys.executable, "-m", "llm", *arguments]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    return run


@pytest.mark.parametrize("flags", [[], ["--no-stream"]], ids=["stream", "whole"])
def test_a_prompt_and_its_usage(run: Llm, llama: Llama, flags: list[str]) -> None:
    expected = llama.chat(HELLO, max_tokens=9, seed=4)
    assert run("-m", "tales", "-o", "seed", "4", "-o", "max_tokens", "9", *flags, "Hi") == expected.text + "\n"
    [logged] = json.loads(run("logs", "-n", "1", "--json"))
    counts = logged["input_tokens"], logged["output_tokens"]
    assert (logged["response"], *counts) == (expected.text, expected.prompt_tokens, expected.generation_tokens)


def test_a_conversation_goes_on(run: Llm, llama: Llama) -> None:
    flags = ["-o", "seed", "4", "-o", "max_tokens", "9"]
    system = {"role": "system", "content": "Be brief."}
    first = llama.chat([system, *HELLO], max_tokens=9, seed=4).text
    assert run("-m", "tales", *flags, "-s", "Be brief.", "Hi") == first + "\n"
    more = [system, *HELLO, {"role": "assistant", "content": first}, *HELLO]
    assert run("-c", *flags, "Hi") == llama.chat(more, max_tokens=9, seed=4).text + "\n"


def test_a_schema(run: Llm) -> None:
    pytest.importorskip("llguidance")
    form = {"type": "object", "properties": {"happy": {"type": "boolean"}}, "required": ["happy"]}
    form["additionalProperties"] = False
    text = run("-m", "tales", "-o", "seed", "4", "-o", "max_tokens", "60", "--schema", json.dumps(form), "A dog")
    assert json.loads(text)["happy"] in (True, False)


def test_a_text_model(run: Llm, llama: Llama) -> None:
    text = run("-m", "tales-text", "-o", "seed", "4", "-o", "max_tokens", "9", "The dog")
    assert text == llama.generate("The dog", max_tokens=9, seed=4).text + "\n"
