"""The model that comes with llama2c: it is found, it tells what NumPy tells (golden/tales1M.json), and its card is true.

These are the golden tests that need no file from outside: make_golden.py made the expected texts, without llama2c.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_text
from reference import Reference

import llama2c
from llama2c.commands.main import main
from llama2c.locate import BUNDLED

ROOT = Path(__file__).parents[1]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "tales1M.json").read_text())
CARD = (ROOT / "docs" / "model-card.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.filterwarnings("ignore:n_threads=2 is more than:RuntimeWarning")


@pytest.fixture(scope="module")
def llama() -> llama2c.Llama:
    return llama2c.load()


def test_the_golden_file_is_of_this_model() -> None:
    assert hashlib.sha256(BUNDLED.read_bytes()).hexdigest() == GOLDEN["sha256"]
    assert (ROOT / "llama2c" / "bundled" / BUNDLED.name).read_bytes() == BUNDLED.read_bytes()  # as installed


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in BUNDLED.parent.iterdir()) <= 3_000_000
    assert {file.name for file in BUNDLED.parent.iterdir()} == {"tales1M.bin", "tokenizer.bin"}


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("case", GOLDEN["stories"], ids=range(len(GOLDEN["stories"])))
def test_stories(case: dict[str, Any], n_threads: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llama2c", "--threads", str(n_threads), *case["flags"]]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path, check=True, timeout=120)
    assert done.stdout == case["text"] + "\n"


@pytest.mark.parametrize("case", GOLDEN["stories"], ids=range(len(GOLDEN["stories"])))
def test_the_golden_stories_are_numpys(case: dict[str, Any]) -> None:
    """Given what came before, the NumPy model draws each token of a golden story: by induction, it tells that story."""
    flags = dict(zip(case["flags"][::2], case["flags"][1::2], strict=True))
    vocabulary = reference_text.read_vocabulary(BUNDLED.with_name("tokenizer.bin"))
    ids, prompt = case["ids"], reference_text.encode(vocabulary, flags["-i"].encode())
    assert ids[: len(prompt)] == prompt
    logits = Reference.of_v2(BUNDLED).forward(ids[:-1]).logits
    coins, temperature = reference_text.coins(int(flags["-s"])), float(flags["-t"])
    for place in range(len(prompt), len(ids)):
        coin = next(coins) if temperature else 0.0
        assert reference_text.sample(logits[place - 1], coin, temperature, float(flags["-p"])) == ids[place]
    assert reference_text.decode(vocabulary, ids).decode() == case["text"]


def test_logits(llama: llama2c.Llama) -> None:
    """As with the C program's: Q8_0 programs agree on most short sequences to the last bits, and on all roughly."""
    apart = []
    for case in GOLDEN["logits"]:
        found = llama.transformer.forward(case["ids"], llama.transformer.new_cache(4))
        apart.append(np.abs(found[case["likeliest"]] - case["logits"]).max() / max(map(abs, case["logits"])))
    assert len(apart) >= 40
    assert np.mean(np.array(apart) <= 2e-5) >= 0.85
    assert max(apart) <= 5e-2


def test_load_without_a_path(llama: llama2c.Llama) -> None:
    case = GOLDEN["stories"][1]
    done = llama.generate(case["flags"][1], max_tokens=90, temperature=0)
    assert case["text"].startswith(case["flags"][1] + done.text[:300])
    config = llama.transformer.config
    assert config.seq_len >= 256
    assert llama.tokenizer.vocab_size == config.vocab_size


def test_any_prompt_works(llama: llama2c.Llama) -> None:
    for prompt in ("Žofie 犬 \N{DOG FACE}", "\x00\n\t", "x" * 300):
        assert llama.generate(prompt, max_tokens=3, seed=1).generation_tokens >= 1
        assert llama.tokenizer.decode(llama.tokenizer.encode(prompt)) == prompt


def test_stories_end(llama: llama2c.Llama) -> None:
    """A story of every seed comes to its end by itself, within the context, and begins with a capital letter."""
    stories = [llama.generate("", seed=seed, temperature=1.0, top_p=0.9) for seed in range(1, 31)]
    assert sum(story.finish_reason == "stop" for story in stories) >= 29
    assert len({story.text for story in stories}) == 30
    assert all(story.text[0].isupper() for story in stories)
    ends = [story.text.rstrip()[-1] for story in stories if story.finish_reason == "stop"]
    assert sum(end in '.!?"' for end in ends) >= 29


def test_the_card_shows_what_the_model_says(capsys: pytest.CaptureFixture[str]) -> None:
    """The samples are those of the seeds 1 to 10, none left out."""
    shown = re.findall(r"^\*\*Seed (\d+)\.\*\*\n\n((?:> .*\n|>\n)+)", CARD, re.MULTILINE)
    assert [int(seed) for seed, _ in shown] == list(range(1, 11))
    for seed, quoted in shown:
        assert main(["-s", seed, "-n", "0"]) == 0
        paragraphs = [line.removeprefix("> ") for line in quoted.splitlines() if line != ">"]
        assert capsys.readouterr().out == "\n".join(paragraphs) + "\n"


def test_the_card_has_the_sizes(llama: llama2c.Llama) -> None:
    config = llama.transformer.config
    for name in ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len"):
        assert f"| `{name}` | {getattr(config, name)} |" in CARD
    assert f"{BUNDLED.stat().st_size:,} bytes" in CARD
