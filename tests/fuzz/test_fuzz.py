"""What the fuzzers try inputs with (fuzz/targets.py), without atheris: seeds pass, old finds pass, breaches do not."""

from __future__ import annotations

import base64
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from workers import FUZZ, Worker


@pytest.fixture(scope="module")
def modules() -> Iterator[tuple[ModuleType, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FUZZ))
        path = list(sys.path)
        yield importlib.import_module("targets"), importlib.import_module("seeds")
        sys.path[:] = path


@pytest.fixture(scope="module")
def targets(modules: tuple[ModuleType, ModuleType]) -> ModuleType:
    return modules[0]


@pytest.fixture(scope="module")
def seeds(modules: tuple[ModuleType, ModuleType]) -> ModuleType:
    return modules[1]


def test_seeds_are_good(targets: ModuleType, seeds: ModuleType, tmp_path: Path) -> None:
    assert {name: targets.checkpoint(data, tmp_path) for name, data in seeds.checkpoints().items()} == dict.fromkeys(
        [
            *(f"v{version}_{kind}" for version in (0, 1, 2) for kind in ("tied", "untied")),
            *(f"v3_{dtype}" for dtype in ("float32", "float16", "bfloat16", "q8_0")),
            *(f"gguf_{kind}" for kind in ("float32", "float16", "bfloat16", "32", "256")),
        ],
        "runs",
    )
    found = {name: targets.tokenizer(data, tmp_path) for name, data in seeds.tokenizers().items()}
    assert found.pop("header") == "refused: expected at least 259 tokens, found 0"
    assert found == dict.fromkeys(("good", "base", "whole"), "runs")
    seeds.write(tmp_path / "new" / "corpus", seeds.tokenizers())
    assert len(list((tmp_path / "new" / "corpus").iterdir())) == 4


def test_what_was_found_once_is_mended() -> None:
    worker = Worker()
    for path in sorted((FUZZ / "regressions").glob("*/*")):
        answer = worker.ask(fuzz=path.parent.name, data=base64.b64encode(path.read_bytes()).decode())
        assert answer.raised == (), (path, answer.message)
    worker.close()


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError("x"), AssertionError("x"), OverflowError("x")])
def test_another_exception_is_a_find(
    targets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    for target, name in ((targets.checkpoint, "Checkpoint"), (targets.tokenizer, "Tokenizer")):
        monkeypatch.setattr(getattr(targets, name), "open", fail)
        with pytest.raises(type(error)):
            target(b"abc", tmp_path)


@pytest.mark.parametrize("message", ["expected a file", "{path}: expected\nfound", "other.bin: expected"])
def test_a_refusal_that_is_not_one_line_about_the_file_is_a_find(
    targets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def fail(path: Path, *_: Any, **__: Any) -> None:
        raise ValueError(message.format(path=path))

    for target, name in ((targets.checkpoint, "Checkpoint"), (targets.tokenizer, "Tokenizer")):
        monkeypatch.setattr(getattr(targets, name), "open", fail)
        with pytest.raises(targets.FindError, match="expected one line that begins with the path"):
            target(b"abc", tmp_path)


def test_other_results_are_finds(
    targets: ModuleType, seeds: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = seeds.checkpoints()["v0_tied"], seeds.tokenizers()["good"]
    with monkeypatch.context() as patch:
        forward = targets.Transformer.forward

        def uneven(self: Any, ids: Any, cache: Any, **options: Any) -> Any:
            return forward(self, ids, cache, **options) + np.float32(len(ids) * 1e-6)

        patch.setattr(targets.Transformer, "forward", uneven)
        with pytest.raises(targets.FindError, match="the same bits one by one"):
            targets.checkpoint(model, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(targets.Sampler, "sample", lambda *_: 10**6)
        with pytest.raises(targets.FindError, match="expected a token below 8"):
            targets.checkpoint(model, tmp_path)
    for name, result in (("encode", [1]), ("decode", "x")):
        with monkeypatch.context() as patch:
            patch.setattr(targets.Tokenizer, name, lambda *_, result=result, **__: result)
            with pytest.raises(targets.FindError, match="expected "):
                targets.tokenizer(tokens, tmp_path)
