"""Models, and the command line as a function, for the tests of this folder."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import checkpoints
import pytest
from command_line import CONFIG, ENDLESS, TALKER, Command, Result, write_model

from llama2c.commands.main import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, CONFIG)
    return folder / "model.bin"


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So long a context that no pipe takes the whole story."""
    folder = tmp_path_factory.mktemp("endless")
    write_model(folder, ENDLESS)
    return folder / "model.bin"


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, checkpoints.Arrays]:
    """A model that ends its turns."""
    folder = tmp_path_factory.mktemp("talker")
    return folder / "model.bin", write_model(folder, TALKER, turns=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> checkpoints.Arrays:
    """Those of `model`."""
    return write_model(tmp_path_factory.mktemp("weights"), CONFIG)


@pytest.fixture(autouse=True)
def a_place_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)


@pytest.fixture
def command(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Command:

    def run(*arguments: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([os.fspath(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return Result(code, out, err.decode())

    return run
