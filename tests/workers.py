"""A subprocess that runs bad inputs and may crash: tests send it cases and get the results (bad_inputs/worker.py)."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, NamedTuple

TESTS = Path(__file__).parent
FUZZ = TESTS.parent / "fuzz"
HANG = 120  # seconds without an answer: far more than any input takes, a sanitizer's slowness included
# Sanitizers reserve more address space than any limit leaves.
SANITIZED = any(name in os.environ.get("LD_PRELOAD", "") for name in ("asan", "tsan", "ubsan"))


class Answer(NamedTuple):
    raised: tuple[str, ...]  # the names of the exception's class and of those it derives from; () if nothing was raised
    message: str


class Worker:
    """Started when it is first asked, and again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, **request: str) -> Answer:
        """What came of a request; AssertionError if the process died of it, or hangs."""
        process = self._running()
        stdin, stdout = pipes(process)
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            line = stdout.readline() if selector.select(HANG) else None
        if not line:
            if line is None:
                process.kill()
            code = process.wait()
            self.close()
            fate = "hung" if line is None else f"died, exit code {code}"
            raise AssertionError(f"{request}: the process {fate}")
        found: dict[str, Any] = json.loads(line)
        return Answer(tuple(found["raised"] or ()), found["message"])

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            path = os.pathsep.join([str(TESTS), str(FUZZ), os.environ.get("PYTHONPATH", "")])
            environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
            environment.pop("OMP_NUM_THREADS", None)
            command = [sys.executable, "-m", "bad_inputs.worker", *["--no-limit"] * SANITIZED]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", cwd="/", env=environment
            )
        return self._process

    def close(self) -> None:
        if self._process is not None:
            for pipe in pipes(self._process):
                pipe.close()
            self._process.wait()
            self._process = None


def pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout
