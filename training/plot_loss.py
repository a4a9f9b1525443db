"""Draws the loss curve of a training: `python training/plot_loss.py run/log.jsonl loss.png`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # draws into a file without a screen
from matplotlib import pyplot

TICKS = (1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500, 1000)  # for the perplexity
SMOOTHING = 0.02  # a mean takes this share of all lines, half of them on each side


def read_log(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if lines and all(line["tokens"] and line["train_loss"] for line in lines):
            return lines
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path}: expected the log.jsonl of a training, found something else")


def smooth(values: list[float]) -> list[float]:
    """The mean of each value and its neighbours. Near the ends it takes fewer, but the same number on both sides."""
    reach, last = math.ceil(len(values) * SMOOTHING / 2), len(values) - 1
    means: list[float] = []
    for i in range(len(values)):
        near = min(reach, i, last - i)
        means.append(sum(values[i - near : i + near + 1]) / (2 * near + 1))
    return means


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Loss over tokens: the training loss, raw and smoothed, and the held-out loss. Perplexity is on the right axis."""
    tokens, train = [line["tokens"] / 1e6 for line in lines], [line["train_loss"] for line in lines]
    measured = [line for line in lines if line["held_out_loss"] is not None]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(tokens, train, color="tab:blue", alpha=0.25, linewidth=1)
    axes.plot(tokens, smooth(train), color="tab:blue", label="training (smoothed)")
    if measured:
        held_out = [line["held_out_loss"] for line in measured]
        label = f"held-out text (at the end {held_out[-1]:.3f}, perplexity {np.exp(held_out[-1]):.2f})"
        axes.plot([line["tokens"] / 1e6 for line in measured], held_out, "o-", color="tab:orange", markersize=3, label=label)
    lowest = min(train + [line["held_out_loss"] for line in measured])
    axes.set_ylim(lowest - 0.1, min(max(train), lowest + 3) + 0.1)  # the high losses of the first steps are cut off
    axes.set(xlabel="tokens seen (millions)", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    right = axes.twinx()
    right.set_ylim(*np.exp(axes.get_ylim()))
    right.set(yscale="log", ylabel="perplexity per token")
    low, high = right.get_ylim()
    ticks = [n for n in TICKS if low <= n <= high]
    right.set_yticks(ticks, [f"{n:g}" for n in ticks])
    right.minorticks_off()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path, help="log.jsonl of train.py")
    parser.add_argument("path", type=Path, help="the picture to write: .png, .svg or .pdf")
    options = parser.parse_args(arguments)
    try:
        draw(read_log(options.log), options.path)
    except (ValueError, OSError) as error:
        print(f"plot_loss: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
