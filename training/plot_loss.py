"""Draws the loss curve of a training on logarithmic axes: `python training/plot_loss.py run/log.jsonl loss.png`.

docs/loss.png is that of loss.jsonl: the log of the bundled model was not kept, only a picture of it, and loss.jsonl has the
held-out losses as they were read from that picture, to about 0.002. It has no training losses.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

LOSSES = (0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.5, 2, 3, 4, 6, 8, 10)  # the ticks on the left
PERPLEXITIES = (1.25, 1.3, 1.35, 1.4, 1.5, 1.7, 2, 2.5, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)  # and on the right
TOKENS = (1, 2, 5)  # ticks at these numbers times a power of ten, in millions
SMOOTHING = 0.02  # a mean takes this share of all lines, half of them on each side


def read_log(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if lines and all(line["tokens"] and (line["train_loss"] or line["held_out_loss"]) for line in lines):
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


def draw(lines: list[dict[str, Any]]) -> Figure:
    """Loss over tokens as a figure of matplotlib: the training loss, raw and smoothed, and the held-out loss.

    Both axes are logarithmic, so that the last steps can be seen beside the first ones. Perplexity is on the right axis.
    """
    figure = Figure((8, 4.8), layout="constrained")
    axes = figure.subplots()
    trained = [line for line in lines if line["train_loss"] is not None]
    measured = [line for line in lines if line["held_out_loss"] is not None]
    if trained:
        tokens, losses = [line["tokens"] / 1e6 for line in trained], [line["train_loss"] for line in trained]
        axes.plot(tokens, losses, color="tab:blue", alpha=0.25, linewidth=1)
        axes.plot(tokens, smooth(losses), color="tab:blue", label="training (smoothed)")
    if measured:
        tokens, losses = [line["tokens"] / 1e6 for line in measured], [line["held_out_loss"] for line in measured]
        label = f"held-out text (at the end {losses[-1]:.3f}, perplexity {np.exp(losses[-1]):.2f})"
        axes.plot(tokens, losses, "o-", color="tab:orange", markersize=4, label=label)
    axes.set(xscale="log", yscale="log", xlabel="tokens seen (millions)", ylabel="loss (nats per token)")
    low, high = axes.get_xlim()
    set_ticks(
        axes.xaxis, {tokens: tokens for tokens in (n * 10.0**k for k in range(-4, 5) for n in TOKENS) if low <= tokens <= high}
    )
    low, high = axes.get_ylim()
    set_ticks(axes.yaxis, {loss: loss for loss in LOSSES if low <= loss <= high})
    axes.grid(alpha=0.3)
    axes.legend()
    right = axes.twinx()
    right.set(yscale="log", ylim=(low, high), ylabel="perplexity per token")
    set_ticks(right.yaxis, {math.log(n): n for n in PERPLEXITIES if low <= math.log(n) <= high})
    return figure


def set_ticks(axis: Any, labels: dict[float, float]) -> None:
    """Ticks at these places, with these numbers, and no others."""
    axis.set_ticks(list(labels), [f"{number:g}" for number in labels.values()])
    axis.set_ticks([], minor=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path, help="log.jsonl of train.py")
    parser.add_argument("path", type=Path, help="the picture to write: .png, .svg or .pdf")
    options = parser.parse_args(arguments)
    try:
        draw(read_log(options.log)).savefig(options.path, dpi=120)
    except (ValueError, OSError) as error:
        print(f"plot_loss: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
