"""Turns text into batches for the trainer: a file of stories -> one array of token ids -> batches of windows.

A corpus is a folder with train.txt and held_out.txt, UTF-8. An empty line ends a story; a single newline is part of it.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from llama2c import Tokenizer

Ids = NDArray[np.uint16]


def read_stories(path: Path) -> Iterator[str]:
    """The stories of a file, one at a time: "a\\nb\\n\\nc\\n" -> "a\\nb", "c"."""
    lines: list[str] = []
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                if line != "\n":
                    lines.append(line)
                elif lines:
                    yield "".join(lines).removesuffix("\n")
                    lines = []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, found the byte 0x{error.object[error.start]:02x}") from None
    if lines:
        yield "".join(lines).removesuffix("\n")


def token_file(text: Path, tokenizer_path: Path, folder: Path) -> Path:
    """The .npy file with the ids of all stories of `text`. It is written to `folder` if it does not exist yet.

    Its name contains a hash of the text and the tokenizer, so it is never confused with a file of other ids.
    """
    tokenizer = Tokenizer.open(tokenizer_path)
    if tokenizer.vocab_size > 1 << 16:
        raise ValueError(f"{tokenizer_path}: expected at most 65536 tokens, found {tokenizer.vocab_size}")
    digest = hashlib.sha256(tokenizer_path.read_bytes() + text.read_bytes()).hexdigest()
    target = folder / f"{text.stem}-{digest[:12]}.npy"
    if not target.exists():
        unfinished = target.with_suffix(".tmp")
        with unfinished.open("wb") as file:
            np.save(file, tokenize(text, tokenizer))
        os.replace(unfinished, target)
    return target


def tokenize(text: Path, tokenizer: Tokenizer) -> Ids:
    """BOS and the ids of each story, and a BOS at the end. So a BOS follows every story and marks its end."""
    ids = array("H")
    with tqdm(total=text.stat().st_size, unit="B", unit_scale=True, desc=f"tokens of {text.name}") as bar:
        for story in read_stories(text):
            data = story.encode()
            ids.extend(tokenizer.encode(data))
            bar.update(len(data) + 2)  # with the two newlines after it
    if not ids:
        raise ValueError(f"{text}: expected stories, found none")
    ids.append(tokenizer.bos_id)
    return np.array(ids, np.uint16)


def window_starts(ids: Ids, window: int, bos_id: int) -> NDArray[np.int64]:
    """Where the windows of `window` inputs start in `ids`. Each input predicts the id after it.

    Every id except the first is predicted at least once. A window starts at a BOS, like a story of the model: at the first
    story that the window before does not contain completely. The rest of a story longer than a window gets windows that start
    inside it. The last window is moved back so that it ends with the ids.
    """
    last = len(ids) - window - 1
    if last < 0:
        raise ValueError(f"window: expected at most {len(ids) - 1} with this corpus, found {window}")
    stories = np.flatnonzero(ids == bos_id).tolist()
    starts, start = [0], 0
    while start < last:
        end = start + window  # the id there has been predicted, but has not been an input
        story = stories[bisect_right(stories, end) - 1]
        start = min(story if story > start else end, last)
        starts.append(start)
    return np.array(starts)


class Batches:
    """An endless list of batches: each epoch has every window once, in a new order drawn from the seed.

    Batch `step` depends only on the seed and on `step`. So a resumed run goes on with the same data.
    """

    def __init__(self, ids: Ids, starts: NDArray[np.int64], window: int, size: int, seed: int) -> None:
        self.ids = ids
        self.starts = starts
        self.window = window
        self.size = size
        self.seed = seed
        self._epoch = -1
        self._order = starts

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs, and targets shifted by one: each (size, window) int64."""
        return cut(self.ids, [self._start(i) for i in range(step * self.size, (step + 1) * self.size)], self.window)

    def _start(self, i: int) -> int:
        epoch, place = divmod(i, len(self.starts))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.starts)
        return int(self._order[place])


def cut(ids: Ids, starts: list[int], window: int) -> tuple[Tensor, Tensor]:
    """The windows at `starts` as inputs and targets: each (len(starts), window) int64."""
    rows = torch.from_numpy(np.stack([ids[start : start + window + 1] for start in starts]).astype(np.int64))
    return rows[:, :-1], rows[:, 1:]
