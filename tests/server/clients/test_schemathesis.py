"""schemathesis makes requests from the description of the server, valid and not, and checks that every answer is as it says."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llama2c.llama import Llama

pytestmark = pytest.mark.skipif(find_spec("schemathesis") is None, reason="needs schemathesis: make clients")

KEY = "sk-test"
SECONDS = 900
EXAMPLES = 40  # of each route, beside those for each limit and each type
# A valid body may still be too long for the model, or have roles in an order that a template refuses.
NOT_CHECKED = "positive_data_acceptance"


def test_no_answer_surprises(start: Any, llama: Llama, tmp_path: Path) -> None:
    server = start(llama, key=KEY)
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{server.port}/openapi.json",
        "-H", f"Authorization: Bearer {KEY}", "--seed", "1", "--max-examples", str(EXAMPLES), "--no-color",
        "--phases", "examples,coverage,fuzzing", "--exclude-checks", NOT_CHECKED, "--request-timeout", "120",
        "--continue-on-failure",
    ]  # fmt: skip
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    statuses = {line.split()[1].rstrip(",") for line in server.lines}
    assert {"200", "400"} <= statuses
    assert not any(status.startswith("5") for status in statuses)
    assert server.service.active == 0
