"""What both fuzzers share: libFuzzer's flags, the folders of inputs, and a count of what came of them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import atheris
import seeds

HERE = Path(__file__).resolve().parent
CORPUS = HERE.parent / "build" / "fuzz"  # kept between runs, so that a long search goes on where it stopped
Target = Callable[[bytes, Path], str]
Mutator = Callable[[bytes, int, int], bytes]  # an input, the most bytes there may be, a seed -> another input


def start(name: str, target: Target, mutator: Mutator, starts: dict[str, bytes], most_bytes: int) -> None:
    """Fuzz `target` until -max_total_time or a find, which is printed with its traceback and kept in build/fuzz/."""
    corpus = CORPUS / name
    seeds.write(corpus, starts)
    folder = CORPUS / f"{name}-files"
    folder.mkdir(exist_ok=True)
    outcomes: Counter[str] = Counter()

    def once(data: bytes) -> None:
        outcomes[target(data, folder).partition(":")[0]] += 1
        if sum(outcomes.values()) % 5000 == 0:
            print(f"{name}: {dict(outcomes)}", file=sys.stderr)

    flags = [f"-max_len={most_bytes}", f"-artifact_prefix={CORPUS}/{name}-", "-timeout=20"]
    regressions = HERE / "regressions" / name
    folders = [str(corpus), *([str(regressions)] if regressions.is_dir() else [])]
    atheris.Setup([sys.argv[0], *flags, *sys.argv[1:], *folders], once, custom_mutator=mutator)
    atheris.Fuzz()
