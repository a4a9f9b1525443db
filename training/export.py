"""Write a trained model as a file for llama2c: `python training/export.py run/checkpoint.pt model.bin --version 2`.

Versions 0 and 1 hold the weights as they are (fp32), version 2 in 8 bits (Q8_0).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from model import Llama, weight_arrays
from numpy.typing import NDArray
from train import load_model

from llama2c.checkpoint import ROPE_TABLES, Entry, header, layout


def export(model: Llama, path: Path, version: int, group_size: int | None = None) -> None:
    """Write the file of `version` (0, 1, 2); only 2 has a group_size, which must divide dim and hidden_dim."""
    config = model.config
    plan = layout(config, version, True, group_size)
    if group_size is not None and config.hidden_dim % group_size:
        raise ValueError(f"group_size: expected a divisor of hidden_dim = {config.hidden_dim}, found {group_size}")
    arrays = weight_arrays(model)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: expected finite weights, found others")
    arrays[ROPE_TABLES] = np.zeros((config.seq_len, config.head_size), np.float32)
    unfinished = path.with_name(path.name + ".tmp")  # a file in use must be replaced, not overwritten
    with unfinished.open("wb") as file:
        file.write(header(config, version, True, group_size))
        for entry in plan.entries:
            file.write(pack(arrays[entry.name], entry))
    os.replace(unfinished, path)


def pack(array: NDArray[np.float32], entry: Entry) -> bytes:
    """One tensor as it stands in the file: fp32, or for each of its matrices the int8 values and then their scales."""
    if entry.group_size is None:
        return array.astype("<f4").tobytes()
    parts: list[bytes] = []
    for matrix in array.reshape(entry.n_matrices, entry.n_values):
        values, scales = quantize(matrix, entry.group_size)
        parts += [values.tobytes(), scales.astype("<f4").tobytes()]
    return b"".join(parts)


def quantize(matrix: NDArray[np.float32], group_size: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Q8_0: scale = max|w| / 127 of each group, values w / scale rounded half to even. A group of zeros: all zero."""
    groups = matrix.reshape(-1, group_size)
    scales = np.abs(groups).max(1) / np.float32(127)
    divisors = np.where(scales > 0, scales, np.float32(1))
    return np.rint(groups / divisors[:, np.newaxis]).astype(np.int8), scales


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt of train.py")
    parser.add_argument("path", type=Path, help="the file to write")
    parser.add_argument("--version", type=int, choices=(0, 1, 2), default=0, help="file format (default 0)")
    parser.add_argument("--group-size", type=int, help="values that share a scale, version 2 only (default 32)")
    options = parser.parse_args(arguments)
    if options.version == 2 and options.group_size is None:
        options.group_size = 32
    try:
        export(load_model(options.checkpoint), options.path, options.version, options.group_size)
    except (ValueError, OSError) as error:
        print(f"export: error: {error}", file=sys.stderr)
        return 1
    print(f"{options.path}: version {options.version}, {options.path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
