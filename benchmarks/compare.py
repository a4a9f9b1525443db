"""Compares llama2c with other programs on the same checkpoints: `python benchmarks/compare.py --c run=PATH --c runq=PATH`.

Every program is measured once at each work in every round, in turn. All tables and pictures come from these samples
(measure.py), so there is one figure for one work. A program takes part only if it gives the same result for the same input: the
same text for whole commands, the same logits for peers in this process.

C's "achieved tok/s" leaves out its first step and counts the positions of a prompt. So decode is compared from an empty prompt,
where all count the same steps: all but the first. For a prompt, C's figure is the speed of its positions, and ours is the speed
of the whole prompt at once. The first token is timed from the start of the command to its first byte beyond the prompt.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from make_checkpoint import PRESETS, make_checkpoint, make_tokenizer
from measure import (
    AUTO,
    BOUND,
    OURS,
    ROWS_OF_ONE,
    Measure,
    Record,
    Samples,
    Task,
    first_byte,
    pairs,
    peak_memory,
    seconds,
    slower,
    take_rounds,
    whole_run,
)
from pages import markdown
from peers import FEW_REPEATS, PACKAGES, LlamaCpp, Ours, Program, Steps, ids, installed, is_quantized, middle, our_program

import llama2c
from llama2c import Checkpoint
from llama2c.architecture import EMBEDDING, NORMS
from llama2c.commands import bench
from llama2c.config import Config
from llama2c.formats.layout import make_layout
from llama2c.threads import available_cores
from llama2c.transformer import count_weights

SAME = 8  # the least number of words that two Q8_0 texts must share: one value that rounds the other way changes the rest
POSITIONS = (250, 500, 750, 1000)  # beside the beginning
SEQUENCES = (2, 4, 8, 16, 32)  # beside one
AIMS: dict[tuple[str, str, str], float] = {  # (work, model, peer) -> the aim for the ratio, with two threads
    **{("decode", f"{shape} fp32", "run"): 1.0 for shape in ("15M", "42M", "110M")},
    **{("decode", f"{shape} fp32", "read bandwidth"): 0.93 for shape in ("15M", "42M", "110M")},
    **{("decode", f"{shape} Q8_0", "runq"): 1.8 for shape in ("42M", "110M")},
    **{("decode", f"{shape} Q8_0", "llama.cpp"): 1.3 for shape in ("42M", "110M")},
    **{("prefill", f"{shape} fp32", "run"): 12.0 for shape in ("42M", "110M")},
    **{("prefill", f"{shape} fp32", "SGEMM"): 0.85 for shape in ("42M", "110M")},
    ("decode", "110M Q8_0", "read bandwidth"): 0.93,
    ("prefill", "42M fp32", "llama.cpp"): 1.15,
    ("prefill", "110M fp32", "llama.cpp"): 1.0,
    **{("prefill", f"{shape} Q8_0", "llama.cpp"): 2.5 for shape in ("42M", "110M")},
}
AUTO_AIM = 0.97  # of the speed with an explicit number of threads
# Ratios to llama.cpp for GGUF files of a small model (below SMALL weights), by the name of the mix: for AVX-512 with VNNI.
GGUF_AIMS = {
    "decode": {"Q4_0": 1.3, "Q4_1": 2.2, "Q4_K_M": 1.5, "Q8_0": 1.4},
    "prefill": {"Q4_0": 1.5, "Q4_1": 4.0, "Q4_K_M": 2.0, "Q8_0": 2.2},
}
SMALL = 500e6
# Few rows and long contexts. The aims are for AVX-512 with VNNI, too. A time of at most 0.9 is a ratio of at least 1 / 0.9.
PROMPT = 128  # tokens of the prompt that gives the time of a token for BOUND
DEPTHS = (0, 1000, 4000)
DEPTH_TOKENS = 21  # as of "position": the middle one is there
BOUND_AIMS = {"135M Q8_0": 1 / 0.9, "135M bf16": 1 / 0.9}
ROWS_AIMS = {"110M fp32": 1 / 1.35, "110M Q8_0": 1 / 1.35}
GGUF_ROWS_AIMS = {"Q4_0": 1 / 1.6}
EIGHT_AIM = 2.5  # times llama.cpp, 8 sequences of SmolLM2 in Q8_0
DEPTH_AIMS = {"llama2c, fp32 cache": 1.3, "llama.cpp": 1.5}  # at the last of DEPTHS, SmolLM2 in Q8_0
LONG_PROMPT_AIM = 1.5  # times llama.cpp
FEW_MIXES, LONG_MIXES = ("Q4_0", "Q8_0"), ("Q8_0",)  # the GGUF files that these are measured for unless --only names others
START_LIMIT = 0.05  # seconds to the first token of 110M in fp32, less those of NumPy's import
FILE_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 15: "Q4_K_M", 18: "Q6_K", 25: "IQ4_NL"}


IMPORT = [sys.executable, "-c", "import numpy"]
TOKENIZER, VOCABULARY = "tokenizer.bin", 32000  # tokens of most models
CURVES = ("sequences", "position", "threads")
CURVED = "42M"  # the shape that has curves


class Group:
    """Tasks that are compared with each other, for one work and model."""

    def __init__(self, record: Record, work: str, model: str) -> None:
        self.record, self.work, self.model = record, work, model
        self.tasks: list[Task] = []
        self.samples: list[Samples] = []  # of the tasks, and those that are computed from others
        self.derived: list[tuple[Samples, Callable[[], list[float]]]] = []

    def add(
        self, program: str, measure: Measure, unit: str = "tok/s", at: int | None = None, aim: float | None = None,
        limit: float | None = None,
    ) -> Samples:  # fmt: skip
        """The fields are those of Samples. Aims are for two threads."""
        samples = self.new(program, unit, at, AIMS.get((self.work, self.model, program), aim), limit)
        self.tasks.append(Task(samples, measure))
        return samples

    def derive(
        self, program: str, values: Callable[[], list[float]], unit: str = "tok/s", *, at: int, aim: float | None = None
    ) -> None:
        """Samples that are computed after the rounds: `values` returns one for each."""
        self.derived.append((self.new(program, unit, at, aim), values))

    def new(self, program: str, unit: str, at: int | None, aim: float | None, limit: float | None = None) -> Samples:
        samples = Samples(self.work, self.model, program, unit, at, aim if self.record.info["threads"] == 2 else None, limit)
        self.samples.append(samples)
        self.record.samples.append(samples)
        return samples


class Comparison:
    """Makes the checkpoints in a folder, loads the programs, and lists what each round measures."""

    def __init__(self, options: argparse.Namespace, folder: Path, c_programs: dict[str, Path], record: Record) -> None:
        self.folder, self.c_programs, self.record = folder, c_programs, record
        self.n_threads, self.only = options.threads, options.only
        self.n_decode, self.n_prompt, self.n_long = options.tokens, options.prompt, options.long
        self.tokenizer = folder / TOKENIZER
        self.groups: list[Group] = []
        self.loaded: dict[tuple[Path, int | None], Ours] = {}
        self.checked: dict[Path, list[Any]] = {}  # the peers of a checkpoint
        self.memory = np.ones(0, np.float32)  # what the bandwidth is measured on
        self.packages = [peer for peer in PACKAGES if installed(peer)]
        for peer in PACKAGES:
            if peer not in self.packages:
                self.skip(f"{peer.name}: {peer.packages} not installed")

    def skip(self, line: str) -> None:
        self.record.skipped.append(line)
        print(f"left out: {line}", file=sys.stderr, flush=True)

    def plan(self) -> None:
        """Everything about checkpoints in the shapes of the story models."""
        make_tokenizer(self.tokenizer, VOCABULARY)
        for kind, wanted in (("an fp32", False), ("a Q8_0", True)):
            if not any(is_quantized(name) == wanted for name in self.c_programs):
                self.skip(f"{kind} C program: not given; name one with --c {'runq' if wanted else 'run'}=PATH")
        for shape, group_size in (("15M", None), ("42M", None), ("110M", None), ("42M", 32), ("110M", 64)):
            self.decode(shape, group_size)
        self.curves(CURVED)
        for shape, group_size in (("42M", None), ("42M", 32), ("110M", None), ("110M", 64)):
            self.prefill(shape, group_size)
        self.few("110M")
        self.few("110M", 64)
        self.few("135M", 64)
        self.few("135M", dtype="bfloat16")
        self.tiny()
        self.starts("110M")

    # -- one kind of work, by every program that can do it

    def decode(self, shape: str, group_size: int | None = None) -> None:
        """Tokens one by one from an empty context."""
        works = ("decode", *CURVES) if (shape, group_size) == (CURVED, None) else ("decode",)
        if not (path := self.wanted(works, shape, group_size)):
            return
        model, n = label(shape, group_size), self.n_decode
        group = self.group("decode", model)
        group.add(OURS, decode_of(self.ours(path), n))
        group.add(AUTO, decode_of(self.ours(path, None), n), aim=AUTO_AIM)
        for program in self.programs(path):
            if self.agrees(group, program, path, "-n", str(n)):
                group.add(program.name, rate_of(program, "-n", str(n)))
        for peer in self.peers(path):
            group.add(peer.name, decode_of(peer, n))
        group.add("read bandwidth", self.bandwidth(path.stat().st_size))

    def curves(self, shape: str) -> None:
        """How the speed of decode depends on the number of sequences, the position and the number of threads.

        Each curve has the samples of decode itself as one of its points: they are not measured again.
        """
        if not (path := self.wanted(CURVES, shape)):
            return
        ours, model, n, config = self.ours(path), label(shape), self.n_decode, PRESETS[shape]
        sequences, position, threads = (self.group(work, model) for work in CURVES)
        for x in SEQUENCES:
            sequences.add(OURS, batch_of(ours, x, n), at=x, aim=7.0 if x == 16 else None)
        size, cached = path.stat().st_size, 2 * 4 * config.n_layers * config.kv_dim
        for x in [x for x in POSITIONS if x <= config.seq_len - 16]:
            position.add(OURS, position_of(ours, x), at=x, aim=0.78 if x == POSITIONS[-1] else None)
            position.derive("read bandwidth", self.scaled(model, size / (size + x * cached)), at=x)
        cores = available_cores()
        for x in [x for x in range(1, 2 * cores + 1) if (x <= 8 or x % (cores // 2) == 0) and x != self.n_threads]:
            threads.add(OURS, decode_of(self.ours(path, x), n), at=x)
            for program in self.programs(path, n_threads=x):
                if self.record.find("decode", model, program.name):
                    threads.add(program.name, rate_of(program, "-n", str(n)), at=x)

    def scaled(self, model: str, factor: float) -> Callable[[], list[float]]:
        """The speed of a loop that reads as many bytes as decode, times a factor."""

        def values() -> list[float]:
            limit = self.record.find("decode", model, "read bandwidth")
            assert limit is not None
            return [value * factor for value in limit.values]

        return values

    def prefill(self, shape: str, group_size: int | None = None) -> None:
        """A prompt, until its last logits are computed."""
        if not (path := self.wanted(("prefill",), shape, group_size)):
            return
        n, prompt = self.n_prompt, ("-i", self.prompt())
        group = self.group("prefill", label(shape, group_size))
        group.add(OURS, prefill_of(self.ours(path), n))
        for program in self.programs(path):
            if self.agrees(group, program, path, *prompt, "-n", str(n + 9)):
                group.add(program.name, rate_of(program, *prompt, "-n", str(n)))
        for peer in self.peers(path):
            group.add(peer.name, prefill_of(peer, n))
        if not group_size:
            group.add("SGEMM", self.sgemm(self.ours(path).transformer.config))

    def tiny(self) -> None:
        """The whole command on the smallest model, minus the time of a run that makes one token.

        Everybody has one thread, because a second one makes a model of this size slower, in C too.
        """
        if not (path := self.wanted(("whole run less start-up",), "260K")):
            return
        group = self.group("whole run less start-up", "260K fp32 on one thread")
        ours, *others = self.programs(path, path.with_name(TOKENIZER), n_threads=1, with_ours=True)
        group.add(OURS, whole_of(ours))
        for program in others:
            if self.agrees(group, program, path, "-n", "256"):
                group.add(program.name, whole_of(program), aim=1.3)

    def starts(self, shape: str) -> None:
        """Whole commands: seconds from the start to the first token, without a prompt and with one, and peak memory."""
        if path := self.wanted(("first token", "memory"), shape):
            programs = self.programs(path, with_ours=True)
            self.commands(path, label(shape), programs, "", self.prompt(), self.tokenizer, limits=(0.5, 60.0))
            group = self.group("first token less `import numpy`", label(shape))
            group.add(OURS, beyond_numpy(programs[0]), "s", limit=START_LIMIT)
            group.add("python -c 'import numpy'", lambda: middle(lambda: seconds(IMPORT, programs[0].environment)), "s")

    # -- few rows and long contexts

    def few(self, shape: str, group_size: int | None = None, dtype: str | None = None) -> None:
        """Steps of several sequences and of several rows, of a checkpoint."""
        if path := self.wanted(("step", ROWS_OF_ONE), shape, group_size, dtype):
            model = label(shape, group_size, dtype)
            if self.only or model != "110M Q8_0":  # whose steps are like those of 135M
                self.steps(path, model, bound_aim=BOUND_AIMS.get(model), aims={8: EIGHT_AIM} if model == "135M Q8_0" else {})
            self.rows(path, model, ROWS_AIMS.get(model))

    def steps(self, path: Path, model: str, bound_aim: float | None, aims: dict[int, float]) -> None:
        """Steps of R sequences, beside the time of a step of one and R tokens of a prompt. `aims`: R -> ratio to llama.cpp."""
        if not self.chosen("step", model):
            return
        ours = self.ours(path).with_context(SEQUENCES[-1], 64, "float32")
        peers = self.steppers(path, ours, SEQUENCES[-1])
        prompt = self.group("prompt", model).add(OURS, brief_of(self.ours(path), PROMPT), at=PROMPT)
        for n in (1, *SEQUENCES):
            group = self.group("step", model)
            own = group.add(OURS, step_of(ours, n), "ms", at=n)
            for peer in peers:
                group.add(peer.name, step_of(peer, n), "ms", at=n, aim=aims.get(n))
            if n == 1:
                one = own
            else:
                group.derive(BOUND, bound(one, prompt, n), "ms", at=n, aim=bound_aim)

    def rows(self, path: Path, model: str, aim: float | None) -> None:
        """Five tokens of one sequence in a step, with the logits of each, as a draft is verified; and one."""
        if not self.chosen(ROWS_OF_ONE, model):
            return
        ours = self.ours(path).with_context(1, 64, "float32")
        group = self.group(ROWS_OF_ONE, model)
        group.add(OURS, rows_of(ours, 5), "ms")
        group.add("llama2c, 1 row", rows_of(ours, 1), "ms", aim=aim)
        for peer in self.steppers(path, ours, 1):
            group.add(peer.name, rows_of(peer, 5), "ms")

    def depth(self, path: Path, model: str, aims: dict[str, float]) -> None:
        """Decode with so many positions in the cache. They are evaluated once: later rounds cut back to them."""
        if not self.chosen("depth", model):
            return
        for at in DEPTHS:
            n = at + DEPTH_TOKENS
            if not self.fits(path, n, f"decode at position {at}, {model}"):
                continue
            half, full = (self.ours(path).with_context(1, n, kv) for kv in ("float16", "float32"))
            group = self.group("depth", model)
            group.add(OURS, depth_of(half, at), at=at)
            contexts: list[Steps] = [full, *self.steppers(path, half, 1, n)]
            for context, name in zip(contexts, ("llama2c, fp32 cache", LlamaCpp.name), strict=False):
                aim = aims.get(name) if at == DEPTHS[-1] else None
                group.add(name, depth_of(context, at), at=at, aim=aim)

    def prompts(self, path: Path, model: str, aim: float | None) -> None:
        """Long prompts. llama.cpp reads them with flash attention and without: the faster one counts, so both have the aim."""
        for n in self.n_long if self.chosen("prompt", model) else []:
            if not self.fits(path, n, f"prompt of {n} tokens, {model}"):
                continue
            ours = self.ours(path).with_context(1, n, "float32")
            group = self.group("prompt", model)
            group.add(OURS, read_of(ours, n), at=n)
            for flash, name in ((True, "flash attention"), (False, "no flash attention")):
                for peer in self.steppers(path, ours, 1, n, flash_attention=flash):
                    group.add(f"{peer.name}, {name}", read_of(peer, n), at=n, aim=aim)

    def fits(self, path: Path, n_positions: int, work: str) -> bool:
        """Whether the context of a model has so many positions. Otherwise the work is left out, and a line says so."""
        has = self.ours(path).transformer.config.seq_len
        if n_positions > has:
            self.skip(f"{work}: expected a context of at least {n_positions} positions, found {has}")
        return n_positions <= has

    def steppers(self, path: Path, ours: Ours, n_sequences: int, n_positions: int = 64, **more: Any) -> list[Steps]:
        """llama.cpp with a context for this, if it is installed and its logits agree: in steps of several rows, too."""
        found = []
        for peer in self.peers(path):
            if isinstance(peer, Steps):
                context = peer.with_context(n_sequences, n_positions, **more)
                if (error := most_different(ours, context, min(n_sequences, 4))) < self.tolerance(path):
                    found.append(context)
                else:
                    said = f"in steps of {n_sequences} sequences, its logits differ by {error:.2g} of the largest"
                    self.skip(f"{peer.name}, {path.stem}: {said}")
        return found

    def gguf(self, path: Path) -> None:
        """A GGUF file as it is, against llama.cpp on the same file."""
        checkpoint = Checkpoint.open(path)
        model, mix = path.stem, FILE_TYPES.get(checkpoint.metadata.get("general.file_type", -1), checkpoint.kind)
        small = count_weights(checkpoint.config) < SMALL
        for work, measure_of, n in (("decode", decode_of, self.n_decode), ("prefill", prefill_of, self.n_prompt)):
            if not self.chosen(work, model):
                continue
            aim = GGUF_AIMS[work].get(mix) if small else None
            group = self.group(work, model)
            group.add(OURS, measure_of(self.ours(path), n))
            if work == "decode":
                group.add(AUTO, decode_of(self.ours(path, None), n), aim=AUTO_AIM)
            for peer in self.peers(path):
                group.add(peer.name, measure_of(peer, n), aim=aim)
            if work == "decode":
                read_whole = [weight for name, weight in checkpoint.weights.items() if name not in (*NORMS, EMBEDDING.name)]
                n_bytes = sum(weight.nbytes for weight in read_whole)  # a shared classifier counts as the classifier
                group.add("read bandwidth", self.bandwidth(n_bytes), aim=0.9)
        if self.only or mix in FEW_MIXES:
            self.steps(path, model, bound_aim=None, aims={8: EIGHT_AIM} if small and mix == "Q8_0" else {})
            self.rows(path, model, GGUF_ROWS_AIMS.get(mix) if small else None)
        if self.only or mix in LONG_MIXES:
            aimed = small and mix == "Q8_0"
            self.depth(path, model, DEPTH_AIMS if aimed else {})
            self.prompts(path, model, LONG_PROMPT_AIM if aimed else None)
        if self.chosen("first token", model) or self.chosen("memory", model):
            ours = our_program(path, None, self.n_threads)
            self.commands(path, model, [ours], "Hello", " the" * self.n_prompt, path, limits=(0.7, 100.0))

    def commands(
        self, path: Path, model: str, programs: list[Program], brief: str, long: str, tokenizer: Path,
        limits: tuple[float, float],
    ) -> None:  # fmt: skip
        """The first token after a brief prompt and after a long one, and peak memory, of commands and of peers as commands.

        `limits` are what we hold ourselves to: seconds to the first token after the brief prompt, and megabytes.
        """
        encode = llama2c.Tokenizer.open(tokenizer, vocab_size=self.ours(path).vocab_size).encode
        n_long = len(encode(long))
        first, later = self.group("first token", model), self.group(f"first token after {n_long} tokens", model)
        memory = self.group("memory beyond the file", model)
        for program in programs:
            ours = program.name == OURS
            if not ours and not self.agrees(first, program, path, "-i", long, "-n", str(n_long + 9)):
                continue
            for group, prompt, limit in ((first, brief, limits[0]), (later, long, None)):
                command = program.command("-n", str(n_long + 16), *(["-i", prompt] if prompt else []))
                measure = first_byte_of(command, program.environment, len(prompt.encode()))
                group.add(program.name, measure, "s", limit=limit if ours else None)
            memory.add(program.name, beyond(command, program.environment, path), "MB", limit=limits[1] if ours else None)
        for peer in (peer for peer in self.peers(path) if peer.name != "PyTorch"):  # its import alone takes seconds
            start = [sys.executable, str(Path(__file__).with_name("peers.py")), peer.name, str(path), str(self.n_threads)]
            for group, prompt in ((first, brief), (later, long)):
                command = [*start, ",".join(map(str, encode(prompt)))]
                group.add(peer.name, first_byte_of(command, programs[0].environment, 0), "s")
            memory.add(peer.name, beyond(command, programs[0].environment, path), "MB")

    # -- what takes part

    def group(self, work: str, model: str) -> Group:
        self.groups.append(Group(self.record, work, model))
        return self.groups[-1]

    def chosen(self, work: str, model: str) -> bool:
        """Whether --only has this work, or everything."""
        return not self.only or any(text in f"{work}, {model}" for text in self.only)

    def wanted(
        self, works: tuple[str, ...], shape: str, group_size: int | None = None, dtype: str | None = None
    ) -> Path | None:
        """The checkpoint for kinds of work, made if necessary. None if --only leaves them out, or if memory is too small."""
        model = label(shape, group_size, dtype)
        if not any(self.chosen(work, model) for work in works):
            return None
        config = PRESETS[shape]
        version = 3 if dtype else 2 if group_size else 0
        size = make_layout(config, version, True, group_size, dtype).file_size
        fp32 = make_layout(config, 0, True).file_size
        needed, available = size + 3 * fp32, bench.available_memory()  # ours, the buffer that is read, and two copies
        if needed > available:
            self.skip(f"{works[0]}, {model}: expected {needed / 1e6:.0f} MB of free memory, found {available / 1e6:.0f} MB")
            return None
        kind = f"_q{group_size}" if group_size else f"_{dtype}" if dtype else ""
        folder = self.folder
        if config.vocab_size != VOCABULARY:  # its tokenizer has to be beside it, for the GGUF file that is made from both
            folder = usable(folder / shape)
            make_tokenizer(folder / TOKENIZER, config.vocab_size)
        path = folder / f"{shape}{kind}.bin"
        if not path.exists() or path.stat().st_size != size:
            make_checkpoint(path, config, version, 0, group_size, dtype=dtype)
        return path

    def ours(self, path: Path, n_threads: int | None = 0) -> Ours:
        """llama2c on this checkpoint, on --threads threads unless another number is given (None: as many as it chooses)."""
        key = (path, self.n_threads if n_threads == 0 else n_threads)
        if key not in self.loaded:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # more threads than cores: one of the things that we measure
                self.loaded[key] = Ours(*key)
        return self.loaded[key]

    def programs(
        self, path: Path, tokenizer: Path | None = None, n_threads: int | None = None, with_ours: bool = False
    ) -> list[Program]:
        """The C programs that can read this checkpoint."""
        ours = our_program(path, tokenizer or self.tokenizer, n_threads or self.n_threads)
        quantized = Checkpoint.open(path).group_size is not None
        chosen = {name: binary for name, binary in self.c_programs.items() if is_quantized(name) == quantized}
        others = [replace(ours, name=name, binary=[str(binary)]) for name, binary in chosen.items()]
        return [ours, *others] if with_ours else others

    def agrees(self, group: Group, program: Program, path: Path, *flags: str) -> bool:
        """Whether a C program prints the same text as ours. What was found becomes a note, or a line about what is left out."""
        ours = replace(program, binary=our_program(path, None, 1).binary)
        same, words = same_words(ours.run(*flags).text, program.run(*flags).text)
        exact = Checkpoint.open(path).group_size is None
        found = "the same text" if same == words else f"the same text for {same} of {words} words"
        agreed = same == words or (not exact and same >= SAME)
        if agreed:
            self.record.notes.append(f"{group.work}, {group.model}, {program.name}: {found}")
        else:
            self.skip(f"{group.work}, {group.model}, {program.name}: expected the same text, found {found}")
        return agreed

    def peers(self, path: Path) -> list[Any]:
        """The installed peers for this checkpoint. A peer with other logits than ours is left out."""
        if path not in self.checked:
            fp32 = path.suffix != ".gguf" and Checkpoint.open(path).kind == "fp32"
            made = [make(path, self.n_threads) for make in self.packages if make.name == "llama.cpp" or fp32]
            most = self.tolerance(path)
            tokens = ids(12, self.ours(path).vocab_size)
            expected = self.ours(path).logits(tokens)
            errors = [float(np.abs(expected - peer.logits(tokens)).max() / np.abs(expected).max()) for peer in made]
            for peer, error in zip(made, errors, strict=True):
                if error >= most:
                    self.skip(f"{peer.name}, {path.stem}: its logits differ from ours by {error:.2g} of the largest")
            self.checked[path] = [peer for peer, error in zip(made, errors, strict=True) if error < most]
        return self.checked[path]

    def tolerance(self, path: Path) -> float:
        """How much the logits of others may differ from ours, as a part of the largest.

        llama.cpp rounds some values to 16 bits, and of blocks the scales of the activations, which moves single logits.
        """
        return 0.2 if path.suffix == ".gguf" else 1e-2 if Checkpoint.open(path).kind == "fp32" else 5e-2

    def prompt(self) -> str:
        """--prompt tokens of the made-up tokenizer: BOS, the leading space, and one for each byte."""
        return "x" * (self.n_prompt - 2)

    # -- the limits of the machine

    def bandwidth(self, n_bytes: int) -> Measure:
        """Tokens per second if decode only read memory: a loop that reads as many bytes as the weights have."""
        if self.memory.nbytes < n_bytes:
            self.memory = np.ones(n_bytes // 4, np.float32)
        return lambda: bench.read_bandwidth(self.memory[: n_bytes // 4], self.n_threads) / n_bytes

    def sgemm(self, config: Config) -> Measure:
        """Tokens per second if prefill were only the products of its layers, at NumPy's speed."""
        rng, n = np.random.default_rng(0), self.n_prompt
        q_dim, kv_dim, dim, hidden = config.n_heads * config.head_size, config.kv_dim, config.dim, config.hidden_dim
        shapes = [(dim, q_dim + 2 * kv_dim), (q_dim, dim), (dim, 2 * hidden), (hidden, dim)]
        matrices = [(rng.random((n, k), np.float32), rng.random((k, m), np.float32)) for k, m in shapes]

        def products() -> float:
            start = time.perf_counter()
            for _ in range(config.n_layers):
                for x, w in matrices:
                    np.dot(x, w)
            return n / (time.perf_counter() - start)

        return lambda: middle(products)

    # -- the rounds

    def measure(self, rounds: int) -> None:
        self.record.samples = [samples for group in self.groups for samples in group.samples]
        take_rounds([group.tasks for group in self.groups if group.tasks], rounds)
        for group in self.groups:
            for samples, values in group.derived:
                samples.values = values()


def label(shape: str, group_size: int | None = None, dtype: str | None = None) -> str:
    return f"{shape} {'Q8_0' if group_size else 'bf16' if dtype == 'bfloat16' else 'fp32'}"


def most_different(ours: Steps, theirs: Steps, n_sequences: int) -> float:
    """The largest difference between their logits and ours, as a part of the largest of ours.

    Ours, of a step with several sequences, are compared with theirs of the same step, and with theirs of each sequence alone.
    Then the rows of one sequence are compared. All tokens differ, so that one in the place of another is seen.
    """
    texts = [[(5 + 11 * i + 3 * j) % ours.vocab_size for j in range(4)] for i in range(n_sequences)]
    together, theirs_together = ours.together(texts), theirs.together(texts)
    alone = np.stack([theirs.logits(text) for text in texts])
    ours.clear()
    theirs.clear()
    rows = (ours.rows(texts[0]), theirs.rows(texts[0]))
    compared = ((together, theirs_together), (together, alone), rows)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in compared)


def same_words(ours: bytes, theirs: bytes) -> tuple[int, int]:
    """The number of words at the beginning that both texts share, and the number of words of ours: equal for equal texts."""
    a, b = ours.split(b" "), theirs.split(b" ")
    if a == b:
        return len(a), len(a)
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return same, max(len(a), len(b))


# Each of these binds its arguments: a lambda in a loop would see the last values of the loop.


def rate_of(program: Program, *flags: str) -> Measure:
    return lambda: program.run(*flags).rate


def whole_of(program: Program) -> Measure:
    return lambda: whole_run(program.command(), program.environment)


def decode_of(peer: Any, n: int) -> Measure:
    return lambda: float(peer.decode(n))


def prefill_of(peer: Any, n: int) -> Measure:
    return lambda: float(peer.prefill(n))


def batch_of(ours: Ours, n_sequences: int, n: int) -> Measure:
    return lambda: ours.batch(n_sequences, n)


def position_of(ours: Ours, position: int) -> Measure:
    return lambda: ours.decode_at(position, 21)


def step_of(context: Steps, n_sequences: int) -> Measure:
    return lambda: context.step(n_sequences)


def rows_of(context: Steps, n_rows: int) -> Measure:
    return lambda: context.verify(n_rows)


def depth_of(context: Steps, position: int) -> Measure:
    return lambda: context.decode_at(position, DEPTH_TOKENS)


def brief_of(context: Steps, n: int) -> Measure:
    return lambda: middle(lambda: context.read(n), FEW_REPEATS)


def read_of(context: Steps, n: int) -> Measure:
    return lambda: context.read(n)


def bound(one: Samples, prompt: Samples, n: int) -> Callable[[], list[float]]:
    """BOUND for n sequences, of each round: the time of a step of one, and n times that of a token of a prompt."""
    return lambda: [step + n * 1000 / speed for step, speed in zip(one.values, prompt.values, strict=True)]


def beyond_numpy(program: Program) -> Measure:
    """Seconds to the first token beyond those that Python and the import of NumPy take: the median of several pairs."""

    def once() -> float:
        return first_byte(program.command("-n", "16"), program.environment) - seconds(IMPORT, program.environment)

    return lambda: middle(once)


def first_byte_of(command: list[str], environment: dict[str, str], after: int) -> Measure:
    return lambda: first_byte(command, environment, after)


def beyond(command: list[str], environment: dict[str, str], path: Path) -> Measure:
    """Megabytes of peak memory beyond those of the model's file, whose pages are in memory anyway."""
    return lambda: (peak_memory(command, environment) - path.stat().st_size) / 1e6


# ---------------------------------------------------------------------------
# the command line


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--c", action="append", default=[], metavar="NAME=PATH", help="a C binary: run..=PATH (fp32) or runq..=PATH (Q8_0)")
    add("--gguf", action="append", default=[], type=Path, metavar="FILE", help="only GGUF files: measure FILE; may be repeated")
    add("--threads", type=at_least(1), default=min(2, available_cores()), metavar="N", help="default: 2 if there are two cores")
    add("--rounds", type=at_least(1), default=5, metavar="N", help="rounds, after one to warm up (default 5)")
    add("--tokens", type=at_least(16), default=100, metavar="N", help="tokens of one decode measurement (default 100)")
    add("--prompt", type=at_least(16), default=200, metavar="N", help="tokens of one prefill measurement (default 200)")
    add("--folder", type=Path, help="the folder for the checkpoints (default: a temporary folder)")
    add("--long", type=lengths, default=[2048], metavar="N", help="tokens of long prompts (default 2048), e.g. 2048,8192")
    add("--only", action="append", default=[], metavar="TEXT",
        help="only work with TEXT in its name, e.g. 'prefill' or 'decode, 42M fp32'; may be repeated")  # fmt: skip
    add("-o", "--output", type=Path, metavar="FOLDER", help="write results.json, results.md and, with matplotlib, pictures")
    add("--against", type=Path, metavar="JSON", help="print what became slower than in this run, as a ratio to the C programs")
    options = parser.parse_args(arguments)
    options.command = shlex.join(["python", "benchmarks/compare.py", *(sys.argv[1:] if arguments is None else arguments)])
    return options


def at_least(least: int) -> Any:
    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a number of at least {least}, found {text!r}")
        return int(text)

    return convert


def lengths(text: str) -> list[int]:
    """ "2048,8192" -> [2048, 8192]"""
    return [at_least(16)(part) for part in text.split(",")]


def c_programs(arguments: list[str]) -> dict[str, Path]:
    """NAME=PATH of each --c, checked."""
    programs = {}
    for text in arguments:
        name, _, path = text.partition("=")
        if not name.startswith("run") or not path:
            raise ValueError(f"--c: expected run..=PATH or runq..=PATH, found {text!r}")
        if not os.access(path, os.X_OK) or not Path(path).is_file():
            raise ValueError(f"--c {name}: not an executable file: {path}")
        programs[name] = Path(path).resolve()
    return programs


def usable(folder: Path) -> Path:
    """The folder, created if necessary. OSError, with one line, if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(f"{folder}: expected a folder to write to, found: {error.strerror}") from None


def write(record: Record, folder: Path) -> None:
    """results.json, results.md, and pictures if matplotlib is installed."""
    record.save(folder / "results.json")
    (folder / "results.md").write_text(markdown(record), encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        print("left out: pictures: matplotlib is not installed: pip install matplotlib", file=sys.stderr)
    else:
        import pictures

        pictures.draw(record, folder)


def run(options: argparse.Namespace) -> int:
    """Measures, prints and writes. Returns 1 if --against finds something slower."""
    programs = c_programs(options.c)
    past = Record.load(options.against) if options.against else None
    if options.output:
        usable(options.output)
    if os.environ.pop("OMP_NUM_THREADS", None):
        print("compare: OMP_NUM_THREADS is not used: --threads sets the number of threads", file=sys.stderr)
    asked = {name: getattr(options, name) for name in ("threads", "rounds", "tokens", "prompt", "command")}
    record = Record({**bench.machine(), **asked})
    with tempfile.TemporaryDirectory() as temporary:
        comparison = Comparison(options, usable(options.folder or Path(temporary)), programs, record)
        for path in options.gguf:
            comparison.gguf(path)
        if not options.gguf:
            comparison.plan()
        comparison.measure(options.rounds)
    print(markdown(record))
    if options.output:
        write(record, options.output)
    if past is None:
        return 0
    lines = slower(record, past)
    n = len(pairs(record, past))
    print(f"{n} ratios to C programs compared with {options.against} ({past.info['date']}): {len(lines)} slower")
    print("".join(f"slower: {line}\n" for line in lines), end="")
    return 1 if lines else 0


def main(arguments: list[str] | None = None) -> int:
    try:
        return run(parse(arguments))
    except (OSError, ValueError) as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
