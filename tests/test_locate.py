"""Which tokenizer belongs to a model, and links that lead nowhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from llama2c.locate import BUNDLED, cache_folder, downloaded, find_hub_model, find_tokenizer, resolve, tokenizer_in

NAMES = ("tokenizer.bin", "tokenizer.json", "tokenizer.model")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a model; the working directory is another one."""
    for name in ("model", "cwd"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("LLAMA2C_CACHE", str(tmp_path / "cache"))
    return tmp_path / "model"


def test_beside_a_file_of_llama2_c(folder: Path) -> None:
    """tokenizer.bin first, because download and the C program put it there."""
    assert tokenizer_in(folder) is None
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer.bin"):  # each before the one before
        (folder / name).touch()
        assert tokenizer_in(folder) == find_tokenizer(folder / "model.bin") == find_tokenizer(folder) == folder / name


def test_in_a_hugging_face_folder(folder: Path) -> None:
    """tokenizer.bin last: a converted tokenizer has no chat template. For a .bin file in such a folder too."""
    (folder / "config.json").touch()
    for name in ("tokenizer.bin", "tokenizer.model", "tokenizer.json"):
        (folder / name).touch()
        assert tokenizer_in(folder) == find_tokenizer(folder) == find_tokenizer(folder / "model.bin") == folder / name


def test_the_working_directory_comes_last(folder: Path) -> None:
    Path("tokenizer.json").touch()  # may belong to another model
    names = "tokenizer.bin, tokenizer.json or tokenizer.model"
    expected = f"expected {names} in {folder}, or tokenizer.bin in the working directory"
    with pytest.raises(FileNotFoundError) as caught:
        find_tokenizer(folder)
    assert str(caught.value) == f"{folder}: {expected}, found none"
    Path("tokenizer.bin").touch()
    assert find_tokenizer(folder) == Path("tokenizer.bin")
    (folder / "tokenizer.model").touch()
    assert find_tokenizer(folder) == folder / "tokenizer.model"


def test_a_link_that_leads_nowhere_is_not_an_absent_file(folder: Path) -> None:
    (folder / "tokenizer.bin").touch()
    for name in ("tokenizer.json", "config.json"):  # each would be looked at before tokenizer.bin
        (folder / "config.json").touch()
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to("../blobs/gone")
        says = f"{link}: expected a readable file, found a link to ../blobs/gone, which does not exist"
        for call in (find_tokenizer, tokenizer_in):
            with pytest.raises(OSError, match=f"^{re.escape(says)}$") as caught:
                call(folder)
            assert caught.value.filename == str(link)
            assert caught.value.errno == 2
        link.unlink()


def test_a_name_that_is_a_broken_link(folder: Path) -> None:
    os.symlink("gone", "stories15M")
    with pytest.raises(OSError, match=r"^stories15M: expected a readable file, found a link to gone, which does not exist$"):
        resolve("stories15M")
    os.unlink("stories15M")
    with pytest.raises(FileNotFoundError) as caught:
        resolve("stories15M")
    command = "`python -m llama2c download stories15M`"
    assert str(caught.value) == f"stories15M: expected a file, or a model downloaded with {command}, found neither"
    assert resolve(None) == BUNDLED
    assert resolve("elsewhere.bin") == "elsewhere.bin"


def test_downloaded_models(folder: Path) -> None:
    """As resolve takes them. Tokenizers, later parts, and what no name stands for are not listed."""
    assert downloaded() == []  # there is no cache folder
    names = ["stories15M", "smollm2-135m", "me/tales", "you/far--away", "me/tales:a.bin", "me/tales:big/b.gguf"]
    names.append("x/y:m-00001-of-00002.gguf")
    for name in names:
        model = find_hub_model(name)
        assert model is not None
        model.path.parent.mkdir(parents=True, exist_ok=True)
        if model.file is None:
            model.path.mkdir()
            (model.path / "config.json").touch()
        else:
            model.path.touch()
            model.path.with_name("tokenizer.bin").touch()
    cache = cache_folder()
    (cache / "x--y" / "m-00001-of-00002" / "m-00002-of-00002.gguf").touch()
    (cache / "stories42M").mkdir()  # a download that broke off
    (cache / "repositories" / ".me--other").mkdir()
    (cache / "repositories" / ".me--other" / "config.json").touch()
    for odd in ("a b", "$(x)"):
        (cache / "me--tales" / odd).mkdir()
        (cache / "me--tales" / odd / "c.bin").touch()
    found = downloaded()
    assert sorted(found) == sorted(names)
    assert all(os.path.exists(resolve(name)) for name in found)
