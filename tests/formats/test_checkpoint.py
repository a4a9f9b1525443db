"""Checkpoint: each format is read exactly, each malformed file refused in one line, mappings live on."""

from __future__ import annotations

import copy
import dataclasses
import errno
import gc
import itertools
import mmap
import os
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest

import llama2c
from llama2c.config import Config
from llama2c.errors import ModelError
from llama2c.formats import checkpoint as module
from llama2c.formats.checkpoint import Checkpoint
from llama2c.formats.layout import make_layout, parse_header
from llama2c.tensors import BFloat16Tensor, QuantizedTensor, as_floats

NAMES = set(checkpoints.V1)
NORMS = {"rms_att_weight", "rms_ffn_weight", "rms_final_weight"}
SMALL = Config(dim=12, hidden_dim=10, n_layers=2, n_heads=6, n_kv_heads=2, vocab_size=7, seq_len=5)
# (config, group_size): one of everything, then MQA, GQA and MHA with sizes that are no multiple of anything.
SHAPES = [
    (Config(2, 1, 1, 1, 1, 1, 1), 1),
    (SMALL, 4),  # a group straddles the rows of w2: 10 = 2.5 groups
    (Config(dim=36, hidden_dim=52, n_layers=2, n_heads=6, n_kv_heads=1, vocab_size=11, seq_len=3), 9),
    (Config(dim=30, hidden_dim=7, n_layers=3, n_heads=3, n_kv_heads=3, vocab_size=5, seq_len=9), 15),
    (Config(dim=64, hidden_dim=43, n_layers=3, n_heads=8, n_kv_heads=4, vocab_size=9, seq_len=4), 64),
]
DTYPES = {0: ("float32",), 1: ("float32",), 2: ("q8_0",), 3: ("float32", "float16", "bfloat16", "q8_0")}
FORMATS = [(version, dtype) for version, dtypes in DTYPES.items() for dtype in dtypes]


def make(
    path: Path, config: Config = SMALL, version: int = 0, shared: bool = True, group_size: int = 4, dtype: str | None = None
) -> dict[str, Any]:
    """Write a random file; return its fp32 weights."""
    weights = checkpoints.random_weights(config, np.random.default_rng(config.dim + version), shared)
    dtype = dtype or DTYPES[version][0]
    checkpoints.write(path, config, version, weights, group_size if dtype == "q8_0" else None, dtype)
    return weights


def assert_refused(path: Path, *messages: str) -> None:
    """Both ways of opening give one line that starts with the file's name and has all of `messages`."""
    for use_mmap in (True, False):
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: ") as error:
            Checkpoint.open(path, mmap=use_mmap)
        text = str(error.value)
        assert "\n" not in text
        for message in messages:
            assert message in text


def patched(path: Path, offset: int, data: bytes) -> Path:
    """Overwrite bytes of a file in place."""
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return path


# ---- what is read ----------------------------------------------------------------------


@pytest.mark.parametrize("use_mmap", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("version", "dtype"), FORMATS)
@pytest.mark.parametrize(("config", "group_size"), SHAPES)
def test_what_was_written_is_read(
    tmp_path: Path, config: Config, group_size: int, version: int, dtype: str, shared: bool, use_mmap: bool
) -> None:
    written = make(tmp_path / "m.bin", config, version, shared, group_size, dtype)
    checkpoint = Checkpoint.open(tmp_path / "m.bin", mmap=use_mmap)
    assert checkpoint.path == str(tmp_path / "m.bin")
    assert (checkpoint.version, checkpoint.config, checkpoint.shared_classifier) == (version, config, shared)
    assert checkpoint.group_size == (group_size if dtype == "q8_0" else None)
    assert (checkpoint.dtype, checkpoint.rope_pairs, checkpoint.format) == (dtype, "adjacent", f"v{version}")
    assert checkpoint.kind == {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "q8_0": "Q8_0"}[dtype]
    assert set(checkpoint.weights) == NAMES
    if shared:
        assert checkpoint.weights["wcls"] is checkpoint.weights["token_embedding_table"]
    for name, expected in written.items():
        found = checkpoint.weights[name]
        assert found.shape == expected.shape
        if name in NORMS or dtype != "q8_0":
            array = found.bits if isinstance(found, BFloat16Tensor) else found
            assert isinstance(array, np.ndarray)
            stored = "float32" if name in NORMS else dtype
            assert array.dtype == np.dtype({"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}[stored])
            assert array.flags.c_contiguous
            assert array.flags.aligned
            assert not array.flags.writeable
            np.testing.assert_array_equal(array, expected if stored == "float32" else checkpoints.narrow(expected, stored))
        else:
            assert isinstance(found, QuantizedTensor)
            assert_quantized(found, expected, group_size)


def assert_quantized(found: QuantizedTensor, expected: np.ndarray, group_size: int) -> None:
    assert found.group_size == group_size
    assert not found.values.flags.writeable
    assert not found.scales.flags.writeable
    layers = expected.shape[:-2]
    assert found.scales.shape == (
        *layers,
        expected[0].size // group_size if layers else expected.size // group_size,
    )
    dequantized = found.dequantize()
    assert dequantized.shape == expected.shape
    assert dequantized.dtype == np.float32
    for layer in np.ndindex(layers):
        values, scales = checkpoints.quantize(expected[layer], group_size)
        np.testing.assert_array_equal(found.values[layer], values)
        np.testing.assert_array_equal(found.scales[layer], scales)
        each = np.repeat(scales, group_size).reshape(values.shape)
        np.testing.assert_array_equal(dequantized[layer], values.astype(np.float32) * each)
        assert (np.abs(dequantized[layer] - expected[layer]) <= each * 0.50001).all()


def test_stacked_quantized_tensors_are_views_of_one_buffer(tmp_path: Path) -> None:
    make(tmp_path / "m.bin", SMALL, 2)
    buffers: set[int] = set()
    for tensor in Checkpoint.open(tmp_path / "m.bin").weights.values():
        for array in (tensor.values, tensor.scales) if isinstance(tensor, QuantizedTensor) else (tensor,):
            assert array.base is not None
            buffers.add(id(array.base))
    assert len(buffers) == 1


def test_scales_may_lie_at_any_byte(tmp_path: Path) -> None:
    config = Config(2, 1, 1, 1, 1, 1, 1)  # matrices of 2 and 4 values: scales at odd multiples of 2
    make(tmp_path / "m.bin", config, 2, True, 2)
    table = Checkpoint.open(tmp_path / "m.bin").weights["token_embedding_table"]
    assert isinstance(table, QuantizedTensor)
    assert not table.scales.flags.aligned


@pytest.mark.parametrize("path_type", [str, os.fsencode, Path])
def test_a_path_may_be_str_bytes_or_path(tmp_path: Path, path_type: Any) -> None:
    make(tmp_path / "m.bin")
    assert Checkpoint.open(path_type(tmp_path / "m.bin")).path == str(tmp_path / "m.bin")


def test_a_file_descriptor_is_not_a_path() -> None:
    with pytest.raises(TypeError):
        Checkpoint.open(0)  # type: ignore[arg-type]


# ---- real files ------------------------------------------------------------------------


def open_model(shared: Path, name: str) -> Checkpoint:
    return Checkpoint.open(shared / "models" / f"{name}.bin")


def test_the_shapes_of_real_files(shared: Path) -> None:
    checkpoint = open_model(shared, "stories260K")
    assert checkpoint.config == Config(64, 172, 5, 8, 4, 512, 512)
    assert checkpoint.shared_classifier
    assert open_model(shared, "gqa_untied").config == Config(96, 192, 3, 6, 2, 320, 48)
    assert open_model(shared, "mqa_odd").config == Config(36, 52, 2, 6, 1, 270, 24)
    for name, is_shared in {
        "mha": True,
        "gqa_untied": False,
        "mqa_odd": True,
        "stories260K_eos": False,
    }.items():
        assert open_model(shared, name).shared_classifier is is_shared


@pytest.mark.parametrize("name", ["stories260K", "mha", "gqa_untied", "mqa_odd"])
def test_v0_and_v1_hold_the_same_numbers(shared: Path, name: str) -> None:
    v0, v1 = open_model(shared, name), open_model(shared, f"{name}_v1")
    assert (v0.version, v1.version) == (0, 1)
    assert v0.config == v1.config
    for weight in NAMES:
        np.testing.assert_array_equal(v0.weights[weight], v1.weights[weight])


@pytest.mark.parametrize(
    ("name", "base", "group_size"),
    [
        ("stories260K_q80", "stories260K", 4),
        ("stories260K_straddle_q80", "stories260K", 64),
        ("mha_q80", "mha", 64),
        ("gqa_untied_q80", "gqa_untied", 32),
    ],
)
def test_v2_is_within_half_a_scale_of_fp32(shared: Path, name: str, base: str, group_size: int) -> None:
    q80, fp32 = open_model(shared, name), open_model(shared, base)
    assert (q80.version, q80.group_size, q80.config) == (2, group_size, fp32.config)
    for weight in NAMES:
        tensor, expected = q80.weights[weight], fp32.weights[weight]
        assert isinstance(expected, np.ndarray)
        if weight in NORMS:
            np.testing.assert_array_equal(tensor, expected)
        else:
            assert isinstance(tensor, QuantizedTensor)
            half = np.repeat(tensor.scales, group_size, axis=-1).reshape(expected.shape) / 2
            assert (np.abs(tensor.dequantize() - expected) <= half * 1.0001).all()


# ---- what is refused -------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("version", "dtype"), FORMATS)
def test_only_the_exact_size_is_taken(tmp_path: Path, version: int, dtype: str, shared: bool) -> None:
    """Cut at the edge of every tensor, one byte before and one after it; one byte and four too many."""
    weights = checkpoints.random_weights(SMALL, np.random.default_rng(1), shared)
    pieces = checkpoints.parts(SMALL, version, weights, 4 if dtype == "q8_0" else None, dtype)
    content, path = b"".join(pieces), tmp_path / "m.bin"
    size, minimum = len(content), len(pieces[0])
    edges = [0, *itertools.accumulate(len(piece) for piece in pieces)]
    for cut in sorted({edge + delta for edge in edges for delta in (-1, 0, 1)} | {size + 4}):
        if cut < 0 or cut == size:
            continue
        path.write_bytes((content + bytes(4))[:cut])
        assert_refused(path, f"found {cut}", f"expected {size} bytes" if cut >= minimum else "expected ")
    path.write_bytes(content)
    assert Checkpoint.open(path).version == version


@pytest.mark.parametrize("size", range(10))
@pytest.mark.parametrize("start", [b"24ka\1\0\0\0", b"\0" * 8])
def test_a_few_bytes_are_no_checkpoint(tmp_path: Path, start: bytes, size: int) -> None:
    (tmp_path / "m.bin").write_bytes((start + bytes(2))[:size])
    assert_refused(tmp_path / "m.bin", "expected ", f"found {size}")


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        *((i, value, f"expected an integer from 1 to 2147483647, found {value}") for i in range(7) for value in (0, -3)),
        (3, 5, "n_kv_heads: expected a divisor of n_heads = 5, found 2"),
        (4, 4, "n_kv_heads: expected a divisor of n_heads = 6, found 4"),
        (0, 14, "n_heads: expected a divisor of dim = 14, found 6"),
        (0, 18, "head_size: expected an even number, found 3"),
        *((i, 2**31 - 1, "found ") for i in range(6)),  # terabytes: counted exactly, nothing allocated
    ],
)
def test_bad_dimensions(tmp_path: Path, version: int, index: int, value: int, message: str) -> None:
    path = tmp_path / "m.bin"
    make(path, SMALL, version)
    patched(path, (8 if version else 0) + 4 * index, struct.pack("<i", value))
    if version == 0 and index == 5 and value < 0:  # there the sign says that the classifier is not shared
        message = f"expected {make_layout(dataclasses.replace(SMALL, vocab_size=3), 0, False).file_size} bytes"
    assert_refused(path, message, f"v{version} header")


def test_the_most_negative_vocab_size(tmp_path: Path) -> None:
    make(tmp_path / "m.bin")
    patched(tmp_path / "m.bin", 20, struct.pack("<i", -(2**31)))
    assert_refused(tmp_path / "m.bin", "vocab_size: expected an integer from 1 to 2147483647, found 2147483648")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (0, b"ak42", "expected magic number 0x616b3432 in little-endian order, found its bytes swapped"),
        (0, b"25ka", "v0 header (magic number 0x616b3432 not found): "),
        (4, struct.pack("<i", 0), "version: expected one of 1, 2, 3, found 0"),
        (4, struct.pack("<i", 4), "version: expected one of 1, 2, 3, found 4"),
        (4, struct.pack("<i", -1), "version: expected one of 1, 2, 3, found -1"),
        (4, struct.pack("<i", 3), "v3 header: expected a JSON object padded with spaces, found something else"),
        (36, b"\2", "tied flag: expected 0 or 1, found 2"),
        (36, b"\xff", "tied flag: expected 0 or 1, found 255"),
    ],
)
def test_bad_headers(tmp_path: Path, version: int, offset: int, data: bytes, message: str) -> None:
    make(tmp_path / "m.bin", SMALL, version)
    assert_refused(patched(tmp_path / "m.bin", offset, data), message)


@pytest.mark.parametrize("group_size", [0, -4, 5, 24, 2**31 - 1])
def test_bad_group_sizes(tmp_path: Path, group_size: int) -> None:
    make(tmp_path / "m.bin", SMALL, 2)
    patched(tmp_path / "m.bin", 37, struct.pack("<i", group_size))
    assert_refused(tmp_path / "m.bin", f"v2 header: group_size: expected a divisor of dim = 12, found {group_size}")


def test_something_else_altogether(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("Once upon a time, there was a little girl named Lily.\n")
    assert_refused(tmp_path / "story.txt", "v0 header (magic number 0x616b3432 not found): ", "expected ", "found ")


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", sorted(NORMS))
def test_norms_are_finite(tmp_path: Path, version: int, name: str, value: float) -> None:
    weights = checkpoints.random_weights(SMALL, np.random.default_rng(2))
    weights[name].reshape(-1)[-SMALL.dim + 3] = value  # of the last layer
    path = checkpoints.write(tmp_path / "m.bin", SMALL, version, weights, 4 if version == 2 else None)
    place = "3" if name == "rms_final_weight" else "1, 3"
    assert_refused(path, f"{name}[{place}]: expected a finite number, found {value}")


def test_other_weights_are_not_scanned(tmp_path: Path) -> None:
    weights = checkpoints.random_weights(SMALL, np.random.default_rng(2))
    weights["wq"][1, 2, 3] = np.nan
    checkpoint = Checkpoint.open(checkpoints.write(tmp_path / "m.bin", SMALL, 1, weights))
    np.testing.assert_array_equal(checkpoint.weights["wq"], weights["wq"])


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "absent.bin"
    with pytest.raises(FileNotFoundError) as error:
        Checkpoint.open(path)
    assert str(error.value) == f"{path}: expected a readable file, found: No such file or directory"
    assert error.value.errno == errno.ENOENT
    with pytest.raises(FileNotFoundError) as error:
        Checkpoint.open(tmp_path)
    assert str(error.value) == f"{tmp_path}: expected a file, or a folder with config.json, found a folder without it"


def test_a_fifo_or_device_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert_refused(tmp_path / "fifo", "expected a regular file, found a FIFO")
    assert_refused(Path("/dev/zero"), "expected a regular file, found a device")


@pytest.mark.parametrize("use_mmap", [True, False])
def test_a_file_that_shrinks_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_mmap: bool) -> None:
    make(tmp_path / "m.bin")
    size = (tmp_path / "m.bin").stat().st_size

    def shrink(raw: bytes) -> Any:
        os.truncate(tmp_path / "m.bin", 100)
        return parse_header(raw)

    monkeypatch.setattr(module, "parse_header", shrink)
    with pytest.raises(ValueError, match=f"m.bin: expected {size} bytes, found .*: the file shrank while it was"):
        Checkpoint.open(tmp_path / "m.bin", mmap=use_mmap)


def test_a_mapping_that_fails_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "m.bin")

    def fail(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", fail)
    with pytest.raises(OSError, match=r"m\.bin: expected a readable file, found: Cannot allocate") as error:
        Checkpoint.open(tmp_path / "m.bin")
    assert error.value.errno == 12


def test_a_content_that_no_memory_takes_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "m.bin")

    def fail(*_: object) -> None:
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr(module, "read_content", fail)
    with pytest.raises(MemoryError, match=r"m\.bin: expected memory for its content, found too little$"):
        Checkpoint.open(tmp_path / "m.bin", mmap=False)


# ---- how long it lives -----------------------------------------------------------------


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
@pytest.mark.parametrize("version", [0, 2])
def test_arrays_keep_the_mapping_and_nothing_else_does(tmp_path: Path, version: int) -> None:
    path = tmp_path / "m.bin"
    written = make(path, SMALL, version)
    checkpoint = Checkpoint.open(path)
    assert is_mapped(path)
    tensor: Any = checkpoint.weights["w2"]
    row = tensor.values[1, 2] if version == 2 else tensor[1, 2]
    expected = checkpoints.quantize(written["w2"][1], 4)[0][2] if version == 2 else written["w2"][1, 2]
    del checkpoint, tensor
    gc.collect()
    assert is_mapped(path)
    np.testing.assert_array_equal(row, expected)
    del row
    gc.collect()
    assert not is_mapped(path)


def test_a_mapping_in_use_cannot_be_closed(tmp_path: Path) -> None:
    make(tmp_path / "m.bin")
    array: Any = Checkpoint.open(tmp_path / "m.bin").weights["wq"]
    base = array
    while not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else base.base
    with pytest.raises(BufferError):
        base.close()
    assert np.isfinite(array).all()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
def test_nothing_stays_mapped_or_open_after_an_error_or_a_read(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    make(path)
    descriptors = set(os.listdir("/proc/self/fd"))
    checkpoint = Checkpoint.open(path, mmap=False)
    assert not is_mapped(path)
    assert set(os.listdir("/proc/self/fd")) == descriptors
    del checkpoint
    patched(path, offset_of("rms_final_weight"), struct.pack("<f", np.nan))
    assert_refused(path, "rms_final_weight[0]")
    gc.collect()
    assert not is_mapped(path)
    assert set(os.listdir("/proc/self/fd")) == descriptors


def offset_of(name: str) -> int:
    return next(entry.offset for entry in make_layout(SMALL, 0, True).entries if entry.name == name)


@pytest.mark.parametrize("use_mmap", [True, False])
def test_a_file_replaced_by_a_rename_keeps_its_old_content(tmp_path: Path, use_mmap: bool) -> None:
    written = make(tmp_path / "m.bin")
    checkpoint = Checkpoint.open(tmp_path / "m.bin", mmap=use_mmap)
    (tmp_path / "new.bin").write_bytes(b"\xff" * (tmp_path / "m.bin").stat().st_size)
    os.replace(tmp_path / "new.bin", tmp_path / "m.bin")
    for name, expected in written.items():
        np.testing.assert_array_equal(checkpoint.weights[name], expected)


def test_what_was_read_into_memory_does_not_follow_the_file(tmp_path: Path) -> None:
    written = make(tmp_path / "m.bin")
    checkpoint = Checkpoint.open(tmp_path / "m.bin", mmap=False)
    patched(tmp_path / "m.bin", 28, b"\xff" * 1000)
    np.testing.assert_array_equal(checkpoint.weights["token_embedding_table"], written["token_embedding_table"])


# ---- copies and pickles ------------------------------------------------------------------


def test_copies_share_everything(tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path / "m.bin", SMALL, 0, weights_for_copies())
    for use_mmap in (True, False):
        checkpoint = Checkpoint.open(path, mmap=use_mmap)
        assert copy.copy(checkpoint) is checkpoint and copy.deepcopy([checkpoint])[0] is checkpoint


def weights_for_copies() -> checkpoints.Arrays:
    return checkpoints.random_weights(SMALL, np.random.default_rng(2), True)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_pickle_opens_the_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    checkpoints.write(tmp_path / "m.bin", SMALL, version, weights_for_copies(), 4 if version == 2 else None)
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint.open("m.bin")
    raw = pickle.dumps(checkpoint)
    assert len(raw) < 2000  # no weights in it
    monkeypatch.chdir("/")
    again = pickle.loads(raw)
    assert again.path == str(tmp_path / "m.bin")
    for name in ("version", "config", "shared_classifier", "dtype", "group_size", "rope_pairs"):
        assert getattr(again, name) == getattr(checkpoint, name)
    for name, weight in checkpoint.weights.items():
        np.testing.assert_array_equal(as_floats(again.weights[name]), as_floats(weight))


def test_a_pickle_whose_file_is_gone_or_another(tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path / "m.bin", SMALL, 0, weights_for_copies())
    raw = pickle.dumps(Checkpoint.open(path))
    other = dataclasses.replace(SMALL, seq_len=SMALL.seq_len + 1)
    checkpoints.write(path, other, 0, weights_for_copies())
    with pytest.raises(ModelError, match=r"m.bin: expected the model that was pickled, Config\(.*\), found another, Config\("):
        pickle.loads(raw)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"m.bin: expected a readable file, found: No such file"):
        pickle.loads(raw)


def test_what_was_read_into_memory_is_not_pickled(tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path / "m.bin", SMALL, 0, weights_for_copies())
    with pytest.raises(TypeError, match=r"m.bin: a checkpoint opened with mmap=False cannot be pickled, because its file may "):
        pickle.dumps(Checkpoint.open(path, mmap=False))


# ---- errors ------------------------------------------------------------------------------


def test_the_kinds_of_errors(tmp_path: Path) -> None:
    """A ModelError for what is wrong with a file; the system's errors keep their number and the name of the file."""
    path = checkpoints.write(tmp_path / "m.bin", SMALL, 0, weights_for_copies())
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError):
        Checkpoint.open(path)
    with pytest.raises(FileNotFoundError) as caught:
        Checkpoint.open(tmp_path / "none.bin")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(tmp_path / "none.bin"))


def test_a_model_whose_width_begins_like_a_pickle(tmp_path: Path) -> None:
    """dim = 640 is 80 02 00 00."""
    config = Config(640, 8, 1, 1, 1, 8, 4)
    weights = checkpoints.random_weights(config, np.random.default_rng(3), True)
    path = checkpoints.write(tmp_path / "m.bin", config, 0, weights)
    assert Checkpoint.open(path).config == config
    with path.open("ab") as file:
        file.write(b"x")
    for open_it in (Checkpoint.open, lambda path: llama2c.export(path, tmp_path / "out.bin")):
        with pytest.raises(ModelError, match=r"bytes according to the v0 header"):
            open_it(path)
