"""The fingerprint: what changes it, what does not, and that a remembered digest is never taken for a changed file."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import CONFIG, tokenizer_bin, write_model

import llama2c
from llama2c import Checkpoint, Llama, Tokenizer, Transformer
from llama2c import fingerprint as module
from llama2c.fingerprint import arithmetic, fingerprint
from llama2c.text.vocabulary import ChatTemplate, Special

HOUR = 3600 * 10**9


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and its tokenizer, and a cache folder beside it. Changes to files need not be seconds apart."""
    monkeypatch.setenv("LLAMA2C_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("llama2c.formats.checkpoint.SETTLED", -HOUR)
    folder = tmp_path / "model"
    folder.mkdir()
    write_model(folder, CONFIG)
    return folder


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The path of each checkpoint whose weights are read for a digest."""
    paths: list[str] = []
    original = module.digest

    def counted(checkpoint: Checkpoint, n_threads: int) -> str:
        paths.append(checkpoint.path)
        return original(checkpoint, n_threads)

    monkeypatch.setattr(module, "digest", counted)
    return paths


def flip(path: Path, byte: int) -> None:
    """Change one bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(byte)
        (value,) = file.read(1)
        file.seek(byte)
        file.write(bytes([value ^ 1]))


def of(folder: Path) -> str:
    return llama2c.load(folder / "model.bin").fingerprint


# ---------------------------------------------------------------------------
# what decides it


def test_the_same_files_have_the_same_one_anywhere(folder: Path, digests: list[str]) -> None:
    found = of(folder)
    assert len(found) == 32
    int(found, 16)
    other = folder.parent / "copy"
    shutil.copytree(folder, other)
    assert of(other) == found
    assert len(digests) == 2
    assert llama2c.load(folder / "model.bin", n_threads=2, mmap=False).fingerprint == found


def test_every_part_changes_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = llama2c.load(folder / "model.bin")
    transformer, tokenizer = llama.transformer, llama.tokenizer
    half = Transformer(transformer.checkpoint, kv="float16")
    found = {llama.fingerprint, fingerprint(transformer), fingerprint(half, tokenizer)}
    checkpoint = transformer.checkpoint
    for changed in (
        replace(checkpoint, config=replace(CONFIG, norm_eps=1e-6)),
        replace(checkpoint, config=replace(CONFIG, rope_theta=10001.0)),
        replace(checkpoint, rope_pairs="halves"),
        replace(checkpoint, rope_factors=(1.0, 2.0)),
        replace(checkpoint, weights=checkpoint.weights | {"wq": checkpoint.weights["wk"]}, states=()),
    ):
        other = copy.copy(transformer)
        other.checkpoint = changed
        found.add(fingerprint(other, tokenizer))
    for name, value in {"NUMERICS": 2, "arithmetic": lambda: "another"}.items():
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            found.add(fingerprint(transformer, tokenizer))
    with monkeypatch.context() as patch:
        patch.setattr(module, "llguidance_version", lambda: "1.0")
        found.add(fingerprint(transformer, tokenizer, constrained=True))
    assert len(found) == 11
    assert fingerprint(transformer, tokenizer) == llama.fingerprint


@pytest.mark.parametrize("version", [0, 1, 2])
def test_every_tensor_changes_it(folder: Path, version: int, digests: list[str]) -> None:
    """A bit in each of 40 places of the file, the norms too."""
    path, found = folder / "model.bin", set()
    write_model(folder, CONFIG, version)
    good, start = path.read_bytes(), 256 if version else 28
    for byte in np.linspace(start, len(good) - 4, 40).astype(int):
        if version == 0 and abs(byte - len(good) + 4 * CONFIG.vocab_size * CONFIG.dim) < 4 * 64 * 8:
            continue  # in the old RoPE tables, which nothing reads
        path.write_bytes(good)
        flip(path, int(byte))
        found.add(of(folder))
    path.write_bytes(good)
    assert of(folder) not in found
    assert len(found) == len(digests) - 1 >= 35


def test_a_tokenizer_changes_it(folder: Path) -> None:
    transformer = llama2c.load(folder / "model.bin").transformer
    data = tokenizer_bin()
    other = bytearray(data)
    other[-5 - 4] ^= 1  # the score of the last token

    def opened(name: str, content: bytes) -> Tokenizer:
        (folder / name).write_bytes(content)
        return Tokenizer.open(folder / name, CONFIG.vocab_size)

    vocabulary = opened("a.bin", data)._vocabulary
    template = ChatTemplate("{{ messages }}", "somewhere", {"bos_token": "<s>"})
    tokenizers = [
        opened("a.bin", data),
        opened("b.bin", bytes(other)),
        opened("c.bin", data.replace(b"a", b"A")),
        *(Tokenizer(vocabulary, special) for special in (
            Special(bos_id=3), Special(eos_id=None), Special(end_ids=frozenset([2])), Special(prefix=()),
            Special(chat_template=template), Special(chat_template=template._replace(source="{{ messages[0] }}")),
            Special(chat_template=template._replace(special_tokens={"bos_token": "<S>"})),
        )),
    ]  # fmt: skip
    assert len({fingerprint(transformer, tokenizer) for tokenizer in tokenizers}) == len(tokenizers)
    same = [opened("d.bin", data), Tokenizer(vocabulary), Tokenizer(vocabulary, Special(no_template="nowhere"))]
    assert {fingerprint(transformer, tokenizer) for tokenizer in same} == {fingerprint(transformer, tokenizers[0])}
    elsewhere = Special(chat_template=template._replace(path="elsewhere"))
    assert Tokenizer(vocabulary, elsewhere).definition() == tokenizers[-3].definition()


def test_arithmetic() -> None:
    isa = llama2c.build_info()["isa"]
    assert arithmetic() == {"avx512": "fma", "avx2": "fma", "neon": "fma", "generic": "generic"}[str(isa)]


# ---------------------------------------------------------------------------
# what is remembered


def test_the_weights_are_read_once_for_a_file(folder: Path, digests: list[str]) -> None:
    llama = llama2c.load(folder / "model.bin")
    assert digests == []  # nothing is read until somebody asks
    found = llama.fingerprint
    assert llama.fingerprint == of(folder) == of(folder) == found
    assert len(digests) == 1
    (record,) = (folder.parent / "cache" / "fingerprints").iterdir()
    status = os.stat(folder / "model.bin")
    expected = [str(folder / "model.bin"), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    assert json.loads(record.read_text())["files"] == [expected]


def replaced(path: Path) -> None:
    """By another file of the same size and time."""
    new = path.with_name("new")
    shutil.copy2(path, new)
    flip(new, 3000)
    times = os.stat(path)
    os.replace(new, path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def changed_in_place(path: Path) -> None:
    """With the old time set again: its ctime is another."""
    times = os.stat(path)
    flip(path, 3000)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [replaced, changed_in_place])
def test_a_changed_file_has_another_one(folder: Path, change: Callable[[Path], None], digests: list[str]) -> None:
    path = folder / "model.bin"
    found = of(folder)
    change(path)
    other = of(folder)
    assert other != found
    assert of(folder) == other
    assert len(digests) == 2
    assert len(list((folder.parent / "cache" / "fingerprints").iterdir())) == 1  # the old digest is gone


def test_a_file_that_was_replaced_after_it_was_opened(folder: Path, digests: list[str]) -> None:
    """A model in use keeps its own fingerprint: neither is it given that of the new file, nor the new file its."""
    path = folder / "model.bin"
    old = of(folder)
    opened, unread = llama2c.load(path), llama2c.load(path, mmap=False)
    replaced(path)
    assert opened.fingerprint == unread.fingerprint == old
    new = of(folder)
    assert new != old
    assert llama2c.load(path).fingerprint == new
    again = llama2c.load(path)
    replaced(path)  # back to the first bytes, in another file
    assert again.fingerprint == new
    assert of(folder) == old
    assert len(digests) == 6  # old, twice what was opened before, new, again, and old once more


def test_a_pickle_takes_no_fingerprint_along(folder: Path) -> None:
    llama = llama2c.load(folder / "model.bin")
    old = llama.fingerprint
    pickled = pickle.dumps(llama)
    replaced(folder / "model.bin")
    loaded: Llama = pickle.loads(pickled)
    assert loaded.fingerprint == of(folder) != old
    assert copy.copy(llama).fingerprint == old  # it has the weights that were opened


def test_a_file_that_was_just_written_is_not_remembered(
    folder: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of a file system has ticks: a change in the same one would not show."""
    monkeypatch.setattr("llama2c.formats.checkpoint.SETTLED", HOUR)
    assert of(folder) == of(folder)
    assert len(digests) == 2
    assert not (folder.parent / "cache").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": [], "weights": "00"}', '{"files": null, "weights": 1}'])
def test_a_damaged_record_is_not_used(folder: Path, content: str, digests: list[str]) -> None:
    found = of(folder)
    (record,) = (folder.parent / "cache" / "fingerprints").iterdir()
    record.write_text(content)
    assert of(folder) == found
    assert len(digests) == 2
    assert of(folder) == found
    assert len(digests) == 2  # it was written again


def test_without_a_place_for_the_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = of(folder)
    (folder / "file").write_bytes(b"")
    monkeypatch.setenv("LLAMA2C_CACHE", str(folder / "file"))
    assert of(folder) == found
    monkeypatch.delenv("LLAMA2C_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    assert of(folder) == found


def test_the_files_of_a_split_model_and_of_a_folder_count(tmp_path: Path) -> None:
    from llama2c.formats.checkpoint import weight_states

    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "a.safetensors", "b.safetensors", "config.json"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    split = weight_states(str(tmp_path / names[0]))
    assert [state.path for state in split] == [str(tmp_path / name) for name in names[:2]]
    assert [state.path for state in weight_states(str(tmp_path))] == [str(tmp_path / name) for name in names[2:4]]
    assert split[1].size == len(names[1])
    (tmp_path / names[1]).unlink()
    assert weight_states(str(tmp_path / names[0])) == ()
    assert weight_states("no\0file") == ()


def test_every_kind_of_tokenizer_changes_it(tmp_path: Path) -> None:
    """A tokenizer.json and a tokenizer.model: the same for the same files in another folder, another one after any change."""
    pytest.importorskip("tokenizers", reason="needs tokenizers")
    import json_tokenizers
    import tokenizer_models

    def folder(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    package = json_tokenizers.llama3()
    found = [Tokenizer.open(json_tokenizers.save(folder(name), package)).definition() for name in "ab"]
    package.add_tokens(["another"])
    found.append(Tokenizer.open(json_tokenizers.save(folder("c"), package)).definition())
    pieces = tokenizer_models.pieces(300)
    content = tokenizer_models.model(pieces)
    found += [Tokenizer.open(tokenizer_models.write(folder(name), content)).definition() for name in "de"]
    swapped = [*pieces[:-2], pieces[-1], pieces[-2]]
    found.append(Tokenizer.open(tokenizer_models.write(folder("f"), tokenizer_models.model(swapped))).definition())
    path = tokenizer_models.write(folder("g"), content, tokenizer_config={"add_prefix_space": False})
    found.append(Tokenizer.open(path).definition())
    assert found[0] == found[1]
    assert found[3] == found[4]
    assert len(set(found)) == 5
