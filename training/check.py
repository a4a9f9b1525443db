"""Checks that a model file is the trained model: `python training/check.py run/checkpoint.pt model.bin`.

It compares the weights one by one. Then it compares the logits on held-out stories: those of the file in llama2c with those of
the checkpoint in PyTorch. In fp32 they must agree within 2e-5 of the largest. With Q8_0 the difference is printed, and the
perplexity must not change much. The exit code is 1 if they disagree.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from data import read_stories
from model import Llama, weight_arrays
from numpy.typing import NDArray
from train import load, load_model

from llama2c import Checkpoint, QuantizedTensor, Tokenizer, Transformer

FP32_TOLERANCE = 2e-5  # as a share of the largest logit
Q8_PERPLEXITY_TOLERANCE = 0.02  # as a share of the perplexity per token
Q8_ROUNDING = 0.501  # in scales: rounding changes a weight by half a scale at most, plus its last bits


@dataclass
class Score:
    """How well a model predicts: the sum of -ln p over tokens, and the number of tokens, words and bytes."""

    loss: float = 0.0
    n_tokens: int = 0
    n_words: int = 0
    n_bytes: int = 0

    def add(self, logits: NDArray[np.float32], targets: NDArray[np.int64], story: str) -> None:
        """logits (n, vocab_size) for targets (n,): the tokens of a story and the BOS that ends it."""
        wide = logits.astype(np.float64)
        top = wide.max(1)
        chosen = wide[np.arange(len(targets)), targets]
        self.loss += float((top + np.log(np.exp(wide - top[:, np.newaxis]).sum(1)) - chosen).sum())
        self.n_tokens += len(targets)
        self.n_words += len(story.split())
        self.n_bytes += len(story.encode())

    def perplexity(self, n: int) -> float:
        return float(np.exp(self.loss / n))

    def __str__(self) -> str:
        """White space separates words. The end of a story counts as a token, and adds to the cost of its words and bytes."""
        units = {"token": self.n_tokens, "word": self.n_words, "byte": self.n_bytes}
        return ", ".join(f"{self.perplexity(n):.4f} per {unit}" for unit, n in units.items())


def wrong_weights(model: Llama, opened: Checkpoint) -> Iterator[str]:
    """A line for each tensor of the file that differs from the model. fp32 must be equal, Q8_0 equal after rounding."""
    for name, expected in weight_arrays(model).items():
        weight = opened.weights[name]
        if not isinstance(weight, QuantizedTensor):
            off = ~(weight == expected)
        else:
            allowed = np.repeat(weight.scales * np.float32(Q8_ROUNDING), weight.group_size, axis=-1).reshape(weight.shape)
            off = ~(np.abs(weight.dequantize() - expected) <= allowed)  # a NaN is off too
        if off.any():
            place = ", ".join(str(i) for i in np.argwhere(off)[0])
            yield f"{name}: {off.sum()} of {off.size} weights differ, the first at [{place}]"


def held_out(text: Path, tokenizer: Tokenizer, n_stories: int, seq_len: int) -> Iterator[tuple[list[int], str]]:
    """The first stories of `text` that fit into the context: the ids with a BOS at both ends, and the story."""
    for story in islice(read_stories(text), n_stories):
        ids = [*tokenizer.encode(story), tokenizer.bos_id]
        if len(ids) <= seq_len + 1:
            yield ids, story


def compare(model: Llama, opened: Checkpoint, stories: list[tuple[list[int], str]]) -> tuple[float, float, Score, Score]:
    """Runs both on the stories. Returns the largest difference of two logits, the largest logit, and both scores."""
    transformer = Transformer(opened)
    difference, largest, of_model, of_file = 0.0, 0.0, Score(), Score()
    for ids, story in stories:
        inputs, targets = ids[:-1], np.array(ids[1:])
        with torch.no_grad():
            expected = model(torch.tensor([inputs]))[0].numpy()
        found = transformer.forward(inputs, transformer.new_cache(), logits=None)
        difference = float(np.maximum(difference, np.abs(found - expected).max()))  # keeps a NaN
        largest = max(largest, float(np.abs(expected).max()))
        of_model.add(expected, targets, story)
        of_file.add(found, targets, story)
    return difference, largest, of_model, of_file


def check(model: Llama, opened: Checkpoint, stories: list[tuple[list[int], str]]) -> bool:
    """Prints how model and file compare. Returns True if they agree."""
    if opened.config != model.config:
        print(f"differs: {opened.config} in the file, {model.config} in the checkpoint")
        return False
    wrong = list(wrong_weights(model, opened))
    for line in wrong:
        print(f"differs: {line}")
    difference, largest, of_model, of_file = compare(model, opened, stories)
    print(f"{len(stories)} held-out stories, {of_model.n_tokens} tokens")
    print(f"largest difference of logits: {difference:.3g}, {difference / largest:.2g} of the largest")
    print(f"perplexity in PyTorch: {of_model}")
    print(f"perplexity in llama2c: {of_file}")
    if opened.group_size is None:
        close = difference <= FP32_TOLERANCE * largest
    else:
        ratio = of_file.perplexity(of_file.n_tokens) / of_model.perplexity(of_model.n_tokens)
        close = abs(ratio - 1) <= Q8_PERPLEXITY_TOLERANCE
    print("they agree" if close and not wrong else "they DISAGREE")
    return close and not wrong


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt of train.py")
    parser.add_argument("path", type=Path, help="the file that export.py wrote")
    parser.add_argument("--corpus", type=Path, help="a folder with held_out.txt (default: that of the training)")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.bin (default: that of the training)")
    parser.add_argument("--stories", type=int, default=200, help="held-out stories to run (default 200)")
    options = parser.parse_args(arguments)
    try:
        state = load(options.checkpoint)
        model = load_model(options.checkpoint)
        tokenizer = Tokenizer.open(options.tokenizer or state["tokenizer"], model.config.vocab_size)
        text = (options.corpus or Path(state["corpus"])) / "held_out.txt"
        stories = list(held_out(text, tokenizer, options.stories, model.config.seq_len))
        if not stories:
            raise ValueError(f"{text}: expected stories of at most {model.config.seq_len} tokens, found none")
        agree = check(model, Checkpoint.open(options.path), stories)
    except (ValueError, OSError) as error:
        print(f"check: error: {error}", file=sys.stderr)
        return 1
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
