"""llama2c.export: its arguments, places that cannot be written, full disks, interruptions and memory."""

from __future__ import annotations

import errno
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkpoints
import pytest
from exports import CONFIG, as_bf16, assert_same, needs_safetensors, opened_weights, random_weights
from folders import hf_settings, hf_tensors, write_hf

import llama2c
from llama2c import Config
from llama2c.errors import RequestError
from llama2c.formats import export as convert


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected a folder with config.json and this file, found only the file$"):
        llama2c.export(tmp_path / "model.safetensors", tmp_path / "m.bin")
    (tmp_path / "text.bin").write_text("Once upon a time, there was no checkpoint.")
    with pytest.raises(ValueError, match=r"text.bin: v0 header \(magic number 0x616b3432 not found\): "):
        llama2c.export(tmp_path / "text.bin", tmp_path / "m.bin")
    with pytest.raises(OSError, match=r"none.bin: expected a readable file, found: No such file or directory$"):
        llama2c.export(tmp_path / "none.bin", tmp_path / "m.bin")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            {"dtype": "int4"},
            "dtype: expected float32, float16, bfloat16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k or q6_k, found 'int4'",
        ),
        ({"dtype": "q4_0"}, "dtype: expected float32, float16, bfloat16 or q8_0 for a file of llama2c, found q4_0"),
        (
            {"dtype": "q4_k_m", "format": "hf"},
            "dtype: expected float32, float16 or bfloat16 for a Hugging Face folder, found q4_k",
        ),
        ({"format": "onnx"}, "format: expected llama2c, hf or gguf, found 'onnx'"),
        ({"format": "gguf", "version": 3}, "version: expected None for a GGUF file, found 3"),
        ({"format": "gguf", "dtype": "q8_0", "group_size": 32}, "group_size: expected None for a GGUF file, found 32"),
        ({"tokenizer": "t.bin"}, "tokenizer: expected None for a file of llama2c, found t.bin"),
        ({"version": 2}, "version: expected 0 or 1 or 3 for float32, found 2"),
        ({"version": 4}, "version: expected 0 or 1 or 3 for float32, found 4"),
        ({"dtype": "q8_0", "version": 0}, "version: expected 2 or 3 for q8_0, found 0"),
        ({"dtype": "bfloat16", "version": 1}, "version: expected 3 for bfloat16, found 1"),
        ({"dtype": "float16", "group_size": 32}, "group_size: expected None for float16, found 32"),
        ({"group_size": 32}, "group_size: expected None for float32, found 32"),
        ({"dtype": "q8_0", "group_size": 64}, "group_size: expected a divisor of hidden_dim = 96, found 64"),
        ({"dtype": "q8_0", "group_size": 48}, "group_size: expected a divisor of dim = 64, found 48"),
        ({"dtype": "q8_0", "group_size": 0}, "group_size: expected a divisor of dim = 64, found 0"),
        (
            {"dtype": "q8_0", "format": "hf"},
            "dtype: expected float32, float16 or bfloat16 for a Hugging Face folder, found q8_0",
        ),
        ({"version": 0, "format": "hf"}, "version: expected None for a Hugging Face folder, found 0"),
        ({"group_size": 8, "format": "hf"}, "group_size: expected None for a Hugging Face folder, found 8"),
    ],
)
def test_arguments_that_are_wrong(tmp_path: Path, arguments: dict[str, Any], error: str) -> None:
    checkpoints.write(tmp_path / "m.bin", CONFIG, 0, random_weights())
    with pytest.raises(RequestError) as caught:
        llama2c.export(tmp_path / "m.bin", tmp_path / "out", **arguments)
    assert str(caught.value) == error
    assert caught.value.param == error.partition(":")[0]
    assert os.listdir(tmp_path) == ["m.bin"]


# ---------------------------------------------------------------------------
# a disk, a hurry


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return checkpoints.write(tmp_path / "in" / "m.bin", CONFIG, 0, random_weights())


@pytest.mark.parametrize(("out", "format"), [("a.gguf", "gguf"), ("A.GGUF", "gguf"), ("gguf", "llama2c"), ("a.gguf/", "hf")])
def test_the_format_that_a_name_means(model: Path, tmp_path: Path, out: str, format: str) -> None:
    assert llama2c.export(model, f"{tmp_path}/{out}").format == format
    assert llama2c.export(model, tmp_path / "named.gguf", format="llama2c").version == 0


@pytest.mark.parametrize(("name", "other"), [("float32", "f32"), ("float16", "f16"), ("bfloat16", "bf16"), ("q4_k", "q4_k_m")])
def test_both_names_of_a_type(model: Path, tmp_path: Path, name: str, other: str) -> None:
    """They write the same bytes; the result has the first."""
    for dtype in (name, other):
        assert llama2c.export(model, tmp_path / f"{dtype}.gguf", dtype).dtype == name
    assert (tmp_path / f"{name}.gguf").read_bytes() == (tmp_path / f"{other}.gguf").read_bytes()


@pytest.mark.parametrize("out", ["out.bin", "out/", "out.gguf"])
def test_a_full_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    """Known before, or found out while writing: then what was written is removed, and what there was is kept."""
    if not out.endswith("/"):
        (tmp_path / out).write_text("before")
    before = sorted(os.listdir(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=123_456))
        with pytest.raises(OSError, match=r"out(.bin|.gguf)?: expected 0 MB of free disk, found 0 MB$"):
            llama2c.export(model, f"{tmp_path}/{out}")
    assert sorted(os.listdir(tmp_path)) == before

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert.Source, "numbers", full)
    monkeypatch.setattr(convert.huggingface, "halved", full)
    monkeypatch.setattr(convert.gguf_writer, "write_floats", full)
    with pytest.raises(
        OSError, match=r"out(.bin|.gguf)?: expected a place to write to, found: No space left on device$"
    ) as caught:
        llama2c.export(model, f"{tmp_path}/{out}")
    assert caught.value.errno == errno.ENOSPC
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("out", ["out.bin", "out/", "out.gguf"])
def test_an_interrupted_run_leaves_nothing(model: Path, tmp_path: Path, out: str) -> None:
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        if done == 5:
            seen.append(len(os.listdir(tmp_path)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llama2c.export(model, f"{tmp_path}/{out}", progress=progress)
    assert seen == [2]
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize(("out", "total"), [("out.bin", 19), ("out/", 20), ("out.gguf", 20)])
def test_progress(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, total: int) -> None:
    """A file has the norms of all layers in one matrix, and v0 has rotary tables: 4 + 7 * 2 + 1; others 2 + 9 * 2 tensors."""
    calls: list[tuple[int, int]] = []
    llama2c.export(model, f"{tmp_path}/{out}", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, total) for done in range(total + 1)]
    assert capsys.readouterr() == ("", "")


def test_places_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    for out, found in (("none/m.bin", "No such file or directory"), ("none/hf/", "No such file or directory")):
        with pytest.raises(OSError, match=f": expected a place to write to, found: {found}$"):
            llama2c.export(model, f"{tmp_path}/{out}")
    with pytest.raises(OSError, match=r"in: expected a file to write to, found a folder$"):
        llama2c.export(model, tmp_path / "in")
    with pytest.raises(OSError, match=r"^/dev/null: expected a file to write to, found a device$"):
        llama2c.export(model, "/dev/null")
    if os.geteuid() != 0:  # root may write everywhere
        (tmp_path / "in").chmod(0o500)
        with pytest.raises(OSError, match=r"o.bin: expected a place to write to, found: Permission denied$"):
            llama2c.export(model, tmp_path / "in" / "o.bin")
        (tmp_path / "in").chmod(0o700)
    assert os.listdir(tmp_path) == ["in"]


@pytest.fixture
def wide() -> Config:
    """Its largest tensor is a small part of the whole: 2.6 of 25 MB."""
    return Config(dim=256, hidden_dim=2560, n_layers=3, n_heads=4, n_kv_heads=4, vocab_size=2560, seq_len=16)


def peak_memory(work: Callable[[], object]) -> int:
    """Of what Python and NumPy allocate; mapped files are not counted."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["fp32", "q8_0", "to a folder", "from q8_0", "to GGUF", "to q4_k", "from GGUF"])
def test_memory(tmp_path: Path, wide: Config, kind: str) -> None:
    version = 2 if kind == "from q8_0" else 0
    path = checkpoints.write(tmp_path / "m.bin", wide, version, random_weights(False, wide), 64 if version else None)
    if kind == "from GGUF":
        llama2c.export(path, tmp_path / "m.gguf", "q5_0")
        path = tmp_path / "m.gguf"
    out = {"to a folder": "hf/", "to GGUF": "out.gguf", "to q4_k": "out.gguf"}.get(kind, "out.bin")
    dtype = {"q8_0": "q8_0", "to q4_k": "q4_k"}.get(kind, "float32")
    llama2c.export(path, f"{tmp_path}/first.gguf", format="gguf")  # what is imported once is not counted
    peak = peak_memory(lambda: llama2c.export(path, f"{tmp_path}/{out}", dtype))
    assert peak < 4 * 4 * wide.vocab_size * wide.dim


@needs_safetensors
@pytest.mark.parametrize("dtype", ["float32", "q8_0"])
def test_memory_of_folders(tmp_path: Path, wide: Config, dtype: str) -> None:
    """The largest tensor has 16 bits a value there."""
    tensors = {name: as_bf16(array) for name, array in hf_tensors(random_weights(False, wide), wide.head_size).items()}
    folder = write_hf(tmp_path / "hf", tensors, hf_settings(wide, False), 2)
    llama2c.export(folder, tmp_path / "first.bin")
    peak = peak_memory(lambda: llama2c.export(folder, tmp_path / "m.bin", dtype))
    assert peak < 4 * 2 * wide.vocab_size * wide.dim


def test_models_are_called_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA2C_CACHE", str(tmp_path))
    (tmp_path / "stories15M").mkdir()
    weights = random_weights()
    checkpoints.write(tmp_path / "stories15M" / "stories15M.bin", CONFIG, 1, weights)
    llama2c.export("stories15M", tmp_path / "m.bin")
    assert_same(opened_weights(tmp_path / "m.bin"), weights)
