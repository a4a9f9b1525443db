"""Runs lm-evaluation-harness against a server, and writes what it got as JSON: python evaluate.py ADDRESS FOLDER

A program of its own, because the harness takes seconds to import, and warns about much.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate

RUNS = [(1, 1), (8, 1), (1, 16), (8, 16)]  # batch size, requests at once


def tasks(folder: Path) -> list[dict[str, Any]]:
    """The tasks, from the questions that the test has written."""

    def data(name: str) -> dict[str, Any]:
        files = {"test": str(folder / name)}
        return {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test", "num_fewshot": 0}

    choice = {"task": "choice", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{target}}"}
    story = {"task": "story", "output_type": "generate_until", "doc_to_target": "."}
    until = {"until": [".", "\n"], "max_gen_toks": 20, "temperature": 0.0, "do_sample": False}
    text = {"task": "text", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    metrics = [{"metric": "word_perplexity"}]
    return [
        {**data("questions.jsonl"), **choice, "doc_to_text": "{{context}}", "target_delimiter": ""},
        {**data("stories.jsonl"), **story, "doc_to_text": "{{context}}", "generation_kwargs": until},
        {**data("texts.jsonl"), **text, "metric_list": metrics},
    ]


def main() -> None:
    address, folder = sys.argv[1], Path(sys.argv[2])
    found = []
    for batch_size, concurrent in RUNS:
        model = {"model": "tales1M", "base_url": f"{address}/v1/completions", "tokenizer_backend": "auto", "max_length": 256}
        model |= {"num_concurrent": concurrent, "custom_prefix_token_id": 1}
        results = simple_evaluate(
            "local-completions", model, tasks(folder), batch_size=batch_size, bootstrap_iters=0, log_samples=True
        )
        samples = {
            task: [{"arguments": sample["arguments"], "resps": sample["resps"]} for sample in found]
            for task, found in results["samples"].items()
        }
        found.append({"batch_size": batch_size, "concurrent": concurrent, "samples": samples})
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
