"""A cluster of Ray on this machine: two nodes of one core each, with little memory, for as long as a test takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MEMORY = 100 << 20  # of the object store of a node
SECONDS = 240  # for what takes a few: the machine may be busy


class Nodes:
    """A head without cores, on which the driver runs, and workers of one core each."""

    def __init__(self, n: int) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False},
        )
        self.workers = [self.add() for _ in range(n)]
        self.address: str = self.cluster.address

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=MEMORY)

    def actors(self, node: Any) -> list[int]:
        """The processes of the actors on a node that answer parts."""
        import psutil

        found = []
        for raylet in [one.process.pid for one in node.all_processes["raylet"]]:
            for child in psutil.Process(raylet).children(recursive=True):
                if " ".join(child.cmdline()).startswith("ray::MapWorker"):
                    found.append(child.pid)
        return found


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Nodes]]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    pytest.importorskip("ray", reason="needs Ray: pip install 'ray[data]'")
    made: list[Nodes] = []

    def make(n: int) -> Nodes:
        made.append(Nodes(n))
        return made[-1]

    yield make
    for one in made:
        one.cluster.shutdown()


class Batch:
    """A run of `batch` in a process of its own."""

    def __init__(self, cache: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "llama2c", "batch", *arguments]
        self.process = subprocess.Popen(
            command, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "LLAMA2C_CACHE": str(cache)},
        )  # fmt: skip

    def wait_for(self, event: Callable[[], bool]) -> None:
        """Until something has happened."""
        end = time.monotonic() + SECONDS
        while not event():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.01)

    def result(self) -> tuple[int, str]:
        printed, _ = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, printed


@pytest.fixture
def batch(tmp_path: Path) -> Iterator[Callable[..., Batch]]:
    started: list[Batch] = []

    def start(*arguments: Any) -> Batch:
        started.append(Batch(tmp_path / "cache", *map(str, arguments)))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()
