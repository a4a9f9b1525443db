"""lm-evaluation-harness gets the log-probabilities of Llama.score, bit for bit, however many requests it sends at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llama2c.llama import Llama

pytestmark = pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm-eval: make clients")

SECONDS = 900
QUESTIONS = [
    ("The little dog lived on a", [" farm", " cloud", " farm near the forest."]),
    ("Lily had a red", [" ball", " ball that she loved", " the", " dog and a red dog and a red dog"]),
    ("One day, Tom saw a big", [" tree.", " cat.", " "]),
    ("", ["Once upon a time", "One day, a little girl"]),  # after the token that begins a text
    ("Once upon a time there was a girl. Her name was", [" Lily.", " Tom.", " żółw 🐢."]),
    ("She said: \"", ["Thank you!\"", "No\"", "\n\n"]),
    ("a " * 100 + "b", [" c", " a" * 90]),  # more than one chunk
]  # fmt: skip
TEXTS = ["The little dog lived on a farm.", "Lily had a ball. " * 8]


@pytest.fixture(scope="module")
def runs(start: Any, llama: Llama, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the harness got, for each batch size and number of requests at once."""
    folder = tmp_path_factory.mktemp("lm_eval")
    questions = [{"context": context, "choices": choices, "target": 0} for context, choices in QUESTIONS]
    stories = [{"context": context} for context, _ in QUESTIONS if context]
    for name, rows in (("questions", questions), ("stories", stories), ("texts", [{"text": text} for text in TEXTS])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    server = start(llama)
    command = [sys.executable, str(Path(__file__).with_name("evaluate.py")), f"http://127.0.0.1:{server.port}", str(folder)]
    environment = {**os.environ, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    run = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert run.returncode == 0, run.stderr[-4000:]
    assert {line.partition(" ")[0] for line in server.lines} == {"completions"}
    assert all(line.startswith("completions 200 ") for line in server.lines)
    found = json.loads((folder / "found.json").read_text())
    assert [(run["batch_size"], run["concurrent"]) for run in found] == [(1, 1), (8, 1), (1, 16), (8, 16)]
    return found


def samples(run: Any, task: str) -> list[tuple[Any, Any]]:
    """The arguments and the answer of each request."""
    return [
        (arguments, resp[0] if isinstance(resp[0], (list, str)) else resp)
        for sample in run["samples"][task]
        for arguments, resp in zip(sample["arguments"], sample["resps"], strict=True)
    ]


def expected(llama: Llama, context: str, continuation: str) -> list[Any]:
    """The sum of the log-probabilities, and whether greedy drawing gives the same tokens. The harness puts no BOS anywhere."""
    given = llama.tokenizer.encode(context, bos=False)
    ids = given + llama.tokenizer.encode(context + continuation, bos=False)[len(given) :]
    if not context:
        given, ids = [1], [1, *ids]
    rows = llama.transformer.forward(ids[:-1], llama.transformer.new_cache(), logits=None)
    likeliest = [rows[i - 1, ids[i]] == rows[i - 1].max() for i in range(len(given), len(ids))]
    return [sum(llama.score(ids, context_length=len(given)).logprobs), all(likeliest)]


def test_choices_have_the_scores_of_llama(runs: Any, llama: Llama) -> None:
    for run in runs:
        found = samples(run, "choice")
        assert len(found) == sum(len(choices) for _, choices in QUESTIONS)
        for (context, continuation), answer in found:
            assert answer == expected(llama, context, continuation), (context, continuation)  # the same bits
        assert any(greedy for _, (_, greedy) in found)


def test_whole_texts_have_the_scores_of_llama(runs: Any, llama: Llama) -> None:
    for run in runs:
        found = samples(run, "text")
        assert [answer for _, answer in found] == [[sum(llama.score(text).logprobs)] for text in TEXTS]


def test_texts_are_those_of_llama(runs: Any, llama: Llama) -> None:
    for run in runs:
        for (context, _), answer in samples(run, "story"):
            ids = llama.tokenizer.encode(context, bos=False)
            assert answer == llama.generate(ids, max_tokens=20, temperature=0, stop=[".", "\n"]).text
