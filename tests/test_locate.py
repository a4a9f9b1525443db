"""Where files are found that are not named: the tokenizer of a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama2c.locate import find_tokenizer


def test_find_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "models" / "model.bin"
    model.parent.mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    beside = model.parent / "tokenizer.bin"
    names, here = "tokenizer.bin, tokenizer.json or tokenizer.model", "or tokenizer.bin in the working directory, found none"
    for path, folder in ((model, model.parent), (model.parent, model.parent), ("model.bin", ".")):
        with pytest.raises(FileNotFoundError) as caught:
            find_tokenizer(path)
        assert str(caught.value) == f"{path}: expected {names} in {folder}, {here}"
    Path("tokenizer.json").touch()
    with pytest.raises(FileNotFoundError):  # in the working directory it may be that of another model
        find_tokenizer(model)
    assert find_tokenizer("model.bin") == Path("tokenizer.json")
    Path("tokenizer.bin").touch()
    assert find_tokenizer(str(model)) == find_tokenizer(model.parent) == Path("tokenizer.bin")
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer.bin"):  # each before the one before
        beside.with_name(name).touch()
        assert find_tokenizer(str(model)) == find_tokenizer(model.parent) == beside.with_name(name)
