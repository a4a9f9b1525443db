"""A real model, SmolLM2-135M-Instruct from a GGUF file in 4 bits, against transformers on the same numbers in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2c
from llama2c.text.chat import chat_ids

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Write a short poem about the sea.",
    "How many legs does a spider have?",
    "Explain what a computer is to a child.",
    "Name three fruits that are red.",
    "What is 7 times 8?",
    "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?",
    "Give me a recipe for pancakes 🥞, bitte.",
)
N_TOKENS = 24
MOST_APART = 0.3  # nats: where we differ from fp32, its two likeliest tokens are no further apart


@pytest.fixture(scope="module")
def llama(smollm2: Path) -> llama2c.Llama:
    return llama2c.load(smollm2)


@pytest.fixture(scope="module")
def reference(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """The model and the tokenizer of transformers, from the folder that export makes of the file."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    folder = tmp_path_factory.mktemp("smollm2") / "folder"
    llama2c.export(smollm2, folder, format="hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    yield model, transformers.AutoTokenizer.from_pretrained(folder)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def test_greedy_replies_are_those_of_fp32_up_to_near_ties(llama: llama2c.Llama, reference: tuple[Any, Any]) -> None:
    """Activations are rounded to 8 bits here. Up to the first token that differs, all tokens are transformers' likeliest; that
    one is its second likeliest, nearly as likely as the first."""
    import torch

    model, tokenizer = reference
    same = 0
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        ids = chat_ids(llama.tokenizer, messages)
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        assert ids == list(encoded["input_ids"])
        reply = llama.chat(messages, temperature=0, max_tokens=N_TOKENS)
        assert len(reply.tokens) > 3
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *reply.tokens]])).logits[0].double().numpy()
        for logprobs, token in zip(log_softmax(logits[len(ids) - 1 : -1]), reply.tokens, strict=True):
            first, second = np.argsort(-logprobs)[:2]
            if token == first:
                same += 1
                continue
            assert token == second
            assert logprobs[first] - logprobs[second] < MOST_APART
            break
    assert same > len(QUESTIONS) * N_TOKENS / 4


def test_the_file_is_read_as_it_is(llama: llama2c.Llama) -> None:
    checkpoint = llama.transformer.checkpoint
    assert (checkpoint.format, checkpoint.kind) == ("GGUF", "Q4_1+Q8_0")
    assert checkpoint.config == llama2c.Config(576, 1536, 30, 9, 3, 49152, 8192, 64, 100000.0, 1e-5)
    assert llama.tokenizer.encode("Hello  World 123", bos=True) == [19556, 216, 2260, 216, 33, 34, 35]


def test_logits_do_not_depend_on_threads_or_on_the_cut_of_the_prompt(llama: llama2c.Llama) -> None:
    ids = chat_ids(llama.tokenizer, [{"role": "user", "content": "Tell me about rivers. " * 20}])
    tokens = {}
    for n_threads in (1, 2):
        transformer = llama2c.Transformer(llama.transformer.checkpoint, n_threads)
        for cut in (1, 5, len(ids) - 1):
            cache = transformer.new_cache(256)
            transformer.forward(ids[:cut], cache, logits=0)
            tokens[n_threads, cut] = transformer.forward(ids[cut:], cache).tobytes()
    assert len(set(tokens.values())) == 1
