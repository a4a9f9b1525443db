"""Writes a trained model as a file for llama2c: `python training/export.py run/checkpoint.pt model.bin --version 2`.

Versions 0 and 1 have the weights in fp32, version 2 in 8 bits (Q8_0).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from model import Llama, weight_arrays
from train import load_model

from llama2c.formats.layout import make_layout
from llama2c.formats.writer import check_group_size, write_checkpoint


def export(model: Llama, path: Path, version: int, group_size: int | None = None) -> None:
    """Writes a file of version 0, 1 or 2. Only version 2 has a group_size, which must divide dim and hidden_dim."""
    arrays = weight_arrays(model)
    layout = make_layout(model.config, version, True, group_size)
    if group_size is not None:
        check_group_size(model.config, group_size)
    write_checkpoint(path, layout, lambda entry, i: [arrays[entry.name].reshape(entry.n_matrices, entry.n_values)[i]])


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
