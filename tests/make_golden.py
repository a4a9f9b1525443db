"""Make golden/tales1M.json, what the bundled model should say: `python tests/make_golden.py`.

By the plain NumPy forward pass, tokenizer and sampler of the tests alone; nothing of llama2c takes part but its two files. Each
token takes a forward pass over all before it, so this is a matter of minutes.
"""

from __future__ import annotations

import hashlib
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import reference_text
from reference import Reference

BUNDLED = Path(__file__).parents[1] / "llama2c" / "bundled"
GOLDEN = Path(__file__).with_name("golden") / "tales1M.json"
CASES = (  # prompt, temperature, top-p, seed, positions
    ("", 0.0, 0.9, 1, 256),
    ("The little dog", 0.0, 0.9, 1, 100),
    ("Once upon a time", 1.0, 0.9, 42, 90),
    ("One day, Lily met a Shoggoth", 0.8, 0.9, 100, 80),
    ("", 1.0, 1.0, 7, 60),
)


def tell(model: Reference, ids: list[int], temperature: float, top_p: float, seed: int, n_positions: int) -> list[int]:
    """The prompt and what follows it, up to n_positions after BOS, or until BOS or EOS is drawn."""
    ids, coins = list(ids), reference_text.coins(seed)
    while len(ids) <= n_positions:
        logits = model.forward(ids).logits[-1]
        token = reference_text.sample(logits, next(coins) if temperature else 0.0, temperature, top_p)
        ids.append(token)
        if token in (1, 2):
            break
    return ids


def main() -> None:
    path = BUNDLED / "tales1M.bin"
    model, vocabulary = Reference.of_v2(path), reference_text.read_vocabulary(BUNDLED / "tokenizer.bin")
    cases: list[dict[str, Any]] = []
    for prompt, temperature, top_p, seed, n in CASES:
        ids = tell(model, reference_text.encode(vocabulary, prompt.encode()), temperature, top_p, seed, n)
        flags = ["-i", prompt, "-t", str(temperature), "-p", str(top_p), "-s", str(seed), "-n", str(n)]
        cases.append({"flags": flags, "ids": ids, "text": reference_text.decode(vocabulary, ids).decode()})
        print(json.dumps(cases[-1]["text"]))
    short = [[1, *islice(case["ids"], start, start + 3)] for case in cases for start in range(1, 40, 4)]
    logits = [np.sort(model.forward(ids).logits[-1])[::-1][:5] for ids in short]
    likeliest = [np.argsort(-model.forward(ids).logits[-1], kind="stable")[:5].tolist() for ids in short]
    golden = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "stories": cases,
        "logits": [
            {"ids": ids, "likeliest": best, "logits": [round(float(value), 6) for value in values]}
            for ids, best, values in zip(short, likeliest, logits, strict=True)
        ],
    }
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
