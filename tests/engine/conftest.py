"""What the tests of the engine share: the small model, and one whose steps a test controls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from controlled import Controlled

import llama2c
from llama2c.llama import Llama


@pytest.fixture(scope="session")
def llama() -> Llama:
    return llama2c.load(n_threads=1)


@pytest.fixture
def controlled(llama: Llama) -> Iterator[Any]:
    """A Llama with a Controlled model. No step is held when the test ends."""
    transformer = Controlled(llama.transformer.checkpoint, n_threads=1)
    yield Llama(transformer, llama.tokenizer)
    transformer.held = False
    transformer.go.release()
