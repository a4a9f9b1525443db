"""--trace: what it writes, against NumPy, and that it changes nothing."""

from __future__ import annotations

import io
from pathlib import Path

import checkpoints
import numpy as np
from command_line import (
    CONFIG,
    Command,
    ids_of,
)
from reference import Reference

from llama2c import Checkpoint, Transformer
from llama2c.commands.trace import TraceWriter


def test_trace(command: Command, model: Path, weights: checkpoints.Arrays) -> None:
    """Against NumPy: what a position shows is of the token it was fed, and the digits are enough to compare."""
    flags = (model, "-t", "0", "-n", "12", "-i", "abc")
    result = command(*flags, "--trace", "trace")
    assert result.out == command(*flags).out
    ids = ids_of(result.out.removesuffix(b"\n"))[:12]
    expected = Reference(CONFIG, weights).forward(ids)
    lines = [line.split("\t") for line in Path("trace").read_text().splitlines()]
    assert [line[:4] for line in lines if line[0] == "layer"] == [
        ["layer", str(position), str(ids[position]), str(layer)] for position in range(12) for layer in range(2)
    ]
    numbers = np.array([line[4:] for line in lines if line[0] == "layer"], float).reshape(12, 2, 4)
    np.testing.assert_allclose(numbers, expected.trace, rtol=1e-4, atol=1e-5)
    tops = [line[1:] for line in lines if line[0] == "top"]
    assert [top[:2] for top in tops] == [[str(position), str(id)] for position, id in enumerate(ids)]
    for top, logits in zip(tops, expected.logits, strict=True):
        assert [int(id) for id in top[2::2]] == np.argsort(-logits)[:5].tolist()
        np.testing.assert_allclose(np.array(top[3::2], float), np.sort(logits)[:-6:-1], atol=2e-5)


def test_trace_of_a_cut_prompt_and_of_a_chat(command: Command, model: Path) -> None:
    command(model, "-t", "0", "-n", "12", "-i", "abcdef", "--trace", "whole")
    command(model, "-t", "0", "-n", "4", "-i", "abcdef", "--trace", "cut")
    whole, cut = Path("whole").read_text().splitlines(), Path("cut").read_text().splitlines()
    assert cut == whole[: 4 * 3]
    result = command(model, "-m", "chat", "-t", "0", "-n", "40", "-y", "", "-i", "hi", "--trace", "-")
    assert len(result.err.splitlines()) == 40 * 3
    assert result.out == command(model, "-m", "chat", "-t", "0", "-n", "40", "-y", "", "-i", "hi").out


def test_a_traced_model_gives_the_same(model: Path) -> None:
    """Alone, with logits of several rows, and in a batch, whose rows are all written."""
    checkpoint, file = Checkpoint.open(model), io.StringIO()
    plain, traced = Transformer(checkpoint, 1), Transformer(checkpoint, 1, TraceWriter(file))
    tokens = [1, 260, 261]
    for logits in (1, 0, 2, None):
        expected = plain.forward(tokens, plain.new_cache(), logits=logits)
        found = traced.forward(tokens, traced.new_cache(), logits=logits)
        np.testing.assert_array_equal(found, expected)
        assert found.shape == expected.shape
    assert file.getvalue().count("top") == 12
    whole = file.getvalue()[: len(file.getvalue()) // 4]
    file.truncate(file.seek(0))
    pair = [(tokens, traced.new_cache()), (tokens[:2], traced.new_cache())]
    np.testing.assert_array_equal(traced.forward_batch(pair)[0], plain.forward(tokens, plain.new_cache()))
    assert file.getvalue() == whole + "".join(whole.splitlines(keepends=True)[:6])


def test_a_trace_that_cannot_be_written(command: Command, model: Path) -> None:
    result = command(model, "--trace", "no/trace")
    assert result == (1, b"", "llama2c: error: no/trace: expected a file to write to, found: No such file or directory\n")
