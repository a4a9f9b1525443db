"""Files of llama2c into each other: every byte, and the rounding of Q8_0."""

from __future__ import annotations

import os
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from exports import CONFIG, NORMS, assert_same, opened_weights, random_weights

import llama2c
from llama2c import Checkpoint, Config
from llama2c.formats import writer


@pytest.mark.parametrize("shared", [True, False])
def test_v0_to_v1_and_back_is_the_same_file(tmp_path: Path, shared: bool) -> None:
    weights = random_weights(shared)
    a, b, c = (tmp_path / name for name in ("a.bin", "b.bin", "c.bin"))
    checkpoints.write(b, CONFIG, 1, weights)
    llama2c.export(b, a)  # v0, with zeros for the rotary tables
    expected = checkpoints.parts(CONFIG, 0, weights)
    expected[12] = bytes(len(expected[12]))
    assert a.read_bytes() == b"".join(expected)
    done = llama2c.export(a, c, version=1)
    assert c.read_bytes() == b.read_bytes()
    assert (done.path, done.version, done.group_size, done.size) == (c, 1, None, c.stat().st_size)
    assert done.rounding == (0, "")
    llama2c.export(c, b, version=0)
    assert b.read_bytes() == a.read_bytes()


def test_the_old_rotary_tables_are_not_looked_at(tmp_path: Path) -> None:
    weights = random_weights()
    checkpoints.write(tmp_path / "old.bin", CONFIG, 0, weights)  # NaNs
    llama2c.export(tmp_path / "old.bin", tmp_path / "new.bin")
    assert_same(opened_weights(tmp_path / "new.bin"), weights)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("group_size", [32, 8])
@pytest.mark.parametrize("chunk", [1, 500, 1 << 16])
def test_v0_to_v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool, group_size: int, chunk: int) -> None:
    """Byte for byte what the tests' own quantiser makes; back again, its values multiplied out."""
    monkeypatch.setattr(writer, "CHUNK", chunk)
    weights = random_weights(shared)
    weights["w2"][1, 3] = 0  # whole groups of zeros
    weights["wq"][0, 0, :4] = [1.27, 0.005, 0.015, -0.025]  # halves, or as near as fp32 gets
    checkpoints.write(tmp_path / "a.bin", CONFIG, 0, weights)
    done = llama2c.export(tmp_path / "a.bin", tmp_path / "q.bin", "q8_0", group_size=group_size)
    assert (tmp_path / "q.bin").read_bytes() == b"".join(checkpoints.parts(CONFIG, 2, weights, group_size))
    llama2c.export(tmp_path / "q.bin", tmp_path / "b.bin")
    expected, errors = {}, {}
    for name, tensor in weights.items():
        if name in NORMS:
            expected[name] = tensor
            continue
        matrices = tensor.reshape(-1, *tensor.shape[-2:])
        quantized = [checkpoints.quantize(matrix, group_size) for matrix in matrices]
        expected[name] = np.array([v * s.repeat(group_size).reshape(v.shape) for v, s in quantized]).reshape(tensor.shape)
        for layer, (matrix, back) in enumerate(zip(matrices, expected[name].reshape(matrices.shape), strict=True)):
            errors[f"{name}[{layer}]" if tensor.ndim > 2 else name] = float(np.abs(matrix - back).max())
    assert_same(opened_weights(tmp_path / "b.bin"), expected)
    assert done.rounding == (pytest.approx(max(errors.values())), max(errors, key=lambda name: errors[name]))
    assert (done.version, done.group_size) == (2, group_size)


def test_quantized_values() -> None:
    """Scales are max / 127, halves go to the even number, a group of zeros stays one, and tiny ones stay in range."""
    matrix = np.array([[127, 2.5, -3.5, 0.4], [0, 0, 0, 0], [-1, 0.5, 0.25, 0]], np.float32)
    values, scales = writer.quantize(matrix, 4)
    assert values.dtype == np.int8 and scales.dtype == np.float32
    assert values.tolist() == [[127, 2, -4, 0], [0, 0, 0, 0], [-127, 64, 32, 0]]
    np.testing.assert_array_equal(scales, np.array([1, 0, np.float32(1) / np.float32(127)], np.float32))
    smallest = np.finfo(np.float32).smallest_subnormal
    values, scales = writer.quantize(np.array([180, -180], np.float32) * smallest, 2)
    assert scales.tolist() == [smallest]
    assert values.tolist() == [[127, -127]]


def test_largest_error_is_found_where_it_is(tmp_path: Path) -> None:
    weights = random_weights(False)
    weights["w3"][1, 95, :32] = 1000.0 * np.arange(32)
    checkpoints.write(tmp_path / "a.bin", CONFIG, 1, weights)
    rounding = llama2c.export(tmp_path / "a.bin", tmp_path / "q.bin", "q8_0", group_size=32).rounding
    assert rounding.tensor == "w3[1]"
    assert 31000 / 127 / 4 < rounding.error < 31000 / 127 / 2 * 1.001
    weights["wcls"][299, -1] = 1e6
    checkpoints.write(tmp_path / "a.bin", CONFIG, 1, weights)
    assert llama2c.export(tmp_path / "a.bin", tmp_path / "q.bin", "q8_0", group_size=32).rounding.tensor == "w3[1]"
    weights["wcls"][299, -2] = 1e6 / 127 * 3.5
    checkpoints.write(tmp_path / "a.bin", CONFIG, 1, weights)
    assert llama2c.export(tmp_path / "a.bin", tmp_path / "q.bin", "q8_0", group_size=32).rounding.tensor == "wcls"


@pytest.mark.parametrize(
    ("dim", "hidden_dim", "group_size"), [(128, 192, 64), (64, 96, 32), (64, 172, 4), (64, 6, 2), (64, 5, 1), (48, 128, 16)]
)
def test_default_group_size(tmp_path: Path, dim: int, hidden_dim: int, group_size: int) -> None:
    config = Config(dim, hidden_dim, 1, 8, 8, 300, 8)
    checkpoints.write(tmp_path / "a.bin", config, 0, random_weights(config=config))
    assert llama2c.export(tmp_path / "a.bin", tmp_path / "q.bin", "q8_0").group_size == group_size
    assert Checkpoint.open(tmp_path / "q.bin").group_size == group_size


def test_out_may_be_the_source(tmp_path: Path) -> None:
    """It is replaced, not overwritten: who has it open keeps what there was."""
    path = tmp_path / "m.bin"
    checkpoints.write(path, CONFIG, 1, random_weights())
    before = Checkpoint.open(path)
    llama2c.export(path, path, "q8_0")
    assert_same({n: w for n, w in before.weights.items() if n != "wcls"}, random_weights())
    assert Checkpoint.open(path).version == 2
    assert os.listdir(tmp_path) == ["m.bin"]
