"""End to end: the text and the logits of the C programs, on real and on random models, with one thread and with two.

Needs the folder of models and golden files (conftest.py); every text comes out of a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama2c import Checkpoint, Transformer

# A second thread is worth a warning on a machine of one core; here it is only to change nothing.
pytestmark = pytest.mark.filterwarnings("ignore:n_threads=2 is more than:RuntimeWarning")

TEXTS = {"stories260K.json": 14, "stories260K_eos_chat.json": 3}  # the cases in each file
FP32 = ("mha", "gqa_untied", "mqa_odd", "stories260K")
Q8_0 = ("mha", "gqa_untied", "stories260K", "stories260K_straddle")


def golden(shared: Path, name: str) -> Any:
    return json.loads((shared / "golden" / name).read_text("utf-8"))


def check_text(shared: Path, folder: Path, model: str, case: dict[str, Any], n_threads: int) -> None:
    """One case of a golden file: the bytes on stdout, and nothing but the speed on stderr."""
    place = shared / "models"
    command: list[str | Path] = [sys.executable, "-m", "llama2c", place / model, "-z", place / "tok512.bin"]
    command += ["--threads", str(n_threads), *case["args"]]
    given = (case["stdin"] or "").encode()
    done = subprocess.run(command, input=given, capture_output=True, env=environment(), cwd=folder, timeout=120)
    assert done.stdout.decode() == case["stdout"]
    assert done.returncode == 0
    told = [line for line in done.stderr.decode().splitlines() if "more than the 1 core" not in line]
    assert all(line.startswith("achieved tok/s: ") for line in told)


def environment() -> dict[str, str]:
    """No threads but those asked for, and those wait asleep: on a busy machine spinning ones take each other's core."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    return {**mine, "OMP_WAIT_POLICY": "passive"}


def test_every_case_is_taken(shared: Path) -> None:
    assert {name: len(golden(shared, name)) for name in TEXTS} == TEXTS


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("model", ["stories260K.bin", "stories260K_v1.bin"])
@pytest.mark.parametrize("case", range(TEXTS["stories260K.json"]))
def test_text(shared: Path, tmp_path: Path, case: int, model: str, n_threads: int) -> None:
    check_text(shared, tmp_path, model, golden(shared, "stories260K.json")[case], n_threads)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("case", range(TEXTS["stories260K_eos_chat.json"]))
def test_text_of_turns(shared: Path, tmp_path: Path, case: int, n_threads: int) -> None:
    check_text(shared, tmp_path, "stories260K_eos.bin", golden(shared, "stories260K_eos_chat.json")[case], n_threads)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("name", FP32)
def test_logits(shared: Path, name: str, version: int, n_threads: int) -> None:
    expected = np.load(shared / "golden" / f"{name}_logits.npy")
    models = golden(shared, "models.json")
    tokens = models[name]["tokens"] if name in models else golden(shared, f"{name}_logits_tokens.json")
    checkpoint = Checkpoint.open(shared / "models" / f"{name}{'_v1' * version}.bin")
    assert checkpoint.version == version
    transformer = Transformer(checkpoint, n_threads)
    found = transformer.forward(tokens, transformer.new_cache(), logits=None)
    assert found.shape == expected.shape == (len(tokens), checkpoint.config.vocab_size)
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("name", Q8_0)
def test_q8_0_logits(shared: Path, name: str, n_threads: int) -> None:
    """One activation that rounds the other way moves the logits by up to 1e-2: correct programs agree on most, not all."""
    with np.load(shared / "golden" / f"{name}_q80_short.npz") as content:
        tokens, expected = content["tokens"], content["logits"]
    checkpoint = Checkpoint.open(shared / "models" / f"{name}_q80.bin")
    assert checkpoint.version == 2
    transformer = Transformer(checkpoint, n_threads)
    found = transformer.forward_batch([(sequence, transformer.new_cache(4)) for sequence in tokens])
    assert found.shape == expected.shape
    apart = np.abs(found - expected).max(axis=1) / np.abs(expected).max()
    assert (apart <= 2e-5).mean() >= 0.85
    assert apart.max() <= 5e-2
