"""Trains a model: `python training/train.py --corpus corpus --tokenizer tokenizer.bin --out run`.

The folder `run` gets the ids of the corpus, log.jsonl, and checkpoint.pt. The same command with --resume continues from
checkpoint.pt, with the same result as a run that never stopped. The same options, number of threads and machine give the same
losses.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import Batches, cut, token_file, window_starts
from model import Llama
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from llama2c import Config, Tokenizer

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"


def option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Recipe:
    """All settings that change the result. A resumed run must have those of its start."""

    dim: int = option(128, "width of the residual stream")
    hidden_dim: int = option(352, "width of the feed-forward block")
    n_layers: int = option(5, "layers")
    n_heads: int = option(4, "query heads")
    n_kv_heads: int = option(2, "key/value heads")
    seq_len: int = option(320, "context of the model")
    window: int = option(320, "ids of a training window, at most seq_len")
    batch: int = option(24, "windows per step")
    steps: int = option(7800, "number of steps")
    lr: float = option(2e-3, "highest learning rate")
    lr_end: float = option(1e-4, "learning rate of the last step")
    warmup: int = option(200, "steps until the highest learning rate")
    weight_decay: float = option(0.1, "for matrices, not for norms")
    clip: float = option(1.0, "maximum norm of the gradient")
    bf16: bool = option(False, "matrix products in bfloat16: faster on processors that have it")
    log_every: int = option(10, "steps between two lines of the log")
    eval_every: int = option(250, "steps between two measurements of the held-out loss; each also saves a checkpoint")
    eval_windows: int = option(256, "windows of the held-out text that are measured")
    seed: int = option(0, "for the initial weights and the order of the windows")

    def __post_init__(self) -> None:
        for name in ("batch", "steps", "log_every", "eval_every", "eval_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive number, found {getattr(self, name)}")
        if not 1 <= self.window <= self.seq_len:
            raise ValueError(f"window: expected 1 to seq_len = {self.seq_len}, found {self.window}")

    def config(self, vocab_size: int) -> Config:
        return Config(self.dim, self.hidden_dim, self.n_layers, self.n_heads, self.n_kv_heads, vocab_size, self.seq_len)

    def learning_rate(self, step: int) -> float:
        """Linear up to `lr` during the warm-up, then down to `lr_end` along half a cosine."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - 1 - self.warmup)
        return self.lr_end + (self.lr - self.lr_end) * (1 + math.cos(math.pi * min(progress, 1))) / 2


class Run:
    """A model in training, with its data, its optimiser and its progress."""

    def __init__(self, recipe: Recipe, corpus: Path, tokenizer: Path, out: Path) -> None:
        self.recipe, self.corpus, self.tokenizer, self.out = recipe, corpus, tokenizer, out
        self.step = 0
        self.seconds = 0.0  # spent training
        self.recent: list[float] = []  # losses since the last line of the log
        bos_id, vocab_size = Tokenizer.open(tokenizer).bos_id, Tokenizer.open(tokenizer).vocab_size
        files = {name: token_file(corpus / f"{name}.txt", tokenizer, out) for name in ("train", "held_out")}
        self.data = {name: file.name for name, file in files.items()}  # the names contain hashes of the content
        train, self.held_out = (np.load(file, mmap_mode="r") for file in files.values())
        self.batches = Batches(train, window_starts(train, recipe.window, bos_id), recipe.window, recipe.batch, recipe.seed)
        starts = window_starts(self.held_out, recipe.window, bos_id)
        picked = np.linspace(0, len(starts) - 1, min(len(starts), recipe.eval_windows)).astype(int)  # spread evenly
        self.eval_starts = starts[picked].tolist()
        torch.manual_seed(recipe.seed)
        self.model = Llama(recipe.config(vocab_size))
        weights = list(self.model.parameters())
        groups = [
            {"params": [w for w in weights if w.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [w for w in weights if w.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95))

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean of -log p(target)."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16):
            logits = self.model(inputs)
        return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def train_step(self) -> float:
        """Trains on one batch. Returns its loss before the weights change."""
        started, lr = time.perf_counter(), self.recipe.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = self.loss(*self.batches[self.step])
        if not math.isfinite(loss.item()):
            raise ValueError(f"step {self.step}: expected a finite loss, found {loss.item()}: try a lower --lr")
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.step += 1
        self.seconds += time.perf_counter() - started
        self.recent.append(loss.item())
        return loss.item()

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The mean loss of the chosen windows of the held-out text, one batch at a time."""
        total, size = 0.0, self.recipe.batch
        for first in range(0, len(self.eval_starts), size):
            starts = self.eval_starts[first : first + size]
            total += self.loss(*cut(self.held_out, starts, self.recipe.window)).item() * len(starts)
        return total / len(self.eval_starts)

    def save(self) -> None:
        """Writes checkpoint.pt with a rename, so that a crash leaves the earlier one."""
        state = {
            "recipe": asdict(self.recipe),
            "config": asdict(self.model.config),
            "corpus": str(self.corpus),
            "tokenizer": str(self.tokenizer),
            "data": self.data,
            "step": self.step,
            "seconds": self.seconds,
            "recent": self.recent,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        unfinished = self.out / (CHECKPOINT + ".tmp")
        torch.save(state, unfinished)
        os.replace(unfinished, self.out / CHECKPOINT)

    def resume(self) -> None:
        """Continues from checkpoint.pt. ValueError if that run had other settings or other data."""
        path = self.out / CHECKPOINT
        state = load(path)
        for kind, mine in (("recipe", asdict(self.recipe)), ("data", self.data)):
            for name, value in state[kind].items():
                if mine.get(name) != value:
                    raise ValueError(f"{path}: {name}: expected {value}, as at the start of the run, found {mine.get(name)}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.recent = state["step"], state["seconds"], state["recent"]


def load(path: Path) -> dict[str, Any]:
    """Reads what `Run.save` wrote. ValueError if the file is not a checkpoint of this trainer."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # PyTorch raises many kinds of errors for a file that it did not write
        state = None
    if not isinstance(state, dict) or "recipe" not in state:
        raise ValueError(f"{path}: expected a checkpoint written by train.py, found something else")
    return state


def load_model(path: Path) -> Llama:
    """The model of a checkpoint."""
    state = load(path)
    model = Llama(Config(**state["config"]))
    model.load_state_dict(state["model"])
    return model


class Log:
    """log.jsonl: one object per line. A resumed run drops the lines after its checkpoint and writes them again."""

    def __init__(self, path: Path, step: int) -> None:
        lines = path.read_text().splitlines(keepends=True) if step else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        self.file = path.open("w")
        self.file.writelines(kept)

    def write(self, run: Run, held_out: float | None) -> None:
        """train_loss is the mean since the previous line. held_out_loss is null if it was not measured."""
        recipe = run.recipe
        line = {
            "step": run.step,
            "tokens": run.step * recipe.batch * recipe.window,
            "train_loss": sum(run.recent) / len(run.recent),
            "held_out_loss": held_out,
            "lr": recipe.learning_rate(run.step - 1),
            "seconds": round(run.seconds, 3),
        }
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        run.recent = []


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that receives the signal of Ctrl-C or `kill`, so that the step can finish first. A second signal stops at once."""
    received: list[int] = []
    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, earlier[signal.Signals(number)])

    for number in earlier:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def train(run: Run) -> bool:
    """Trains to the last step, or until a signal. Saves in both cases. Returns True if it reached the last step."""
    recipe, held_out = run.recipe, math.nan
    log = Log(run.out / LOG, run.step)
    with (
        log.file,
        stop_requests() as requests,
        tqdm(total=recipe.steps, initial=run.step, unit="step", desc="training", smoothing=0.05) as bar,
    ):
        while run.step < recipe.steps and not requests:
            loss = run.train_step()
            is_last = run.step == recipe.steps
            if run.step % recipe.eval_every == 0 or is_last:
                held_out = run.held_out_loss()
                log.write(run, held_out)
                run.save()
            elif run.step % recipe.log_every == 0:
                log.write(run, None)
            bar.set_postfix(loss=f"{loss:.3f}", held_out=f"{held_out:.3f}", refresh=False)
            bar.update()
        run.save()
    return run.step == recipe.steps


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="a folder with train.txt and held_out.txt")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.bin")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out, with the same options")
    parser.add_argument("--threads", type=int, help="default: OMP_NUM_THREADS, or the default of PyTorch")
    for item in fields(Recipe):
        flag, text = "--" + item.name.replace("_", "-"), item.metadata["help"]
        if isinstance(item.default, bool):
            parser.add_argument(flag, action="store_true", help=text)
        else:
            kind = type(item.default)
            parser.add_argument(flag, type=kind, default=item.default, help=f"{text} (default {item.default:g})")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        recipe = Recipe(**{item.name: getattr(options, item.name) for item in fields(Recipe)})
        options.out.mkdir(parents=True, exist_ok=True)
        if not options.resume and (options.out / CHECKPOINT).exists():
            raise ValueError(f"{options.out / CHECKPOINT}: exists already: use --resume, or another --out")
        run = Run(recipe, options.corpus, options.tokenizer, options.out)
        if options.resume:
            run.resume()
        if not train(run):
            print(f"train: stopped at step {run.step}; the same command with --resume continues", file=sys.stderr)
            return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"train: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
