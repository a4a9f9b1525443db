"""benchmarks/cluster_simulation.py: cases that can be worked out by hand, and what has to be better than what."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def simulation() -> Iterator[ModuleType]:
    path = Path(__file__).parents[2] / "benchmarks" / "cluster_simulation.py"
    spec = importlib.util.spec_from_file_location("cluster_simulation", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cluster_simulation"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["cluster_simulation"]


def even(simulation: ModuleType, **changes: object) -> object:
    same = {"nodes": 2, "cores": 2, "spread": 0.0, "slow": 0.0, "start": 7.0, "dispatch": 0.0}
    return simulation.Cluster(**{**same, **changes})


def test_parts_of_the_same_length(simulation: ModuleType) -> None:
    """9 parts of 10 s, and 1 s at the end of each, on 4 cores: three rounds."""
    work = simulation.Work(requests=90, request=1.0, spread=0.0, drain=1.0)
    found = simulation.simulate(work, even(simulation), 10)
    assert found.seconds == pytest.approx(7 + 3 * 11)
    assert found.ideal == pytest.approx(90 / 4)
    assert (found.failed, found.lost) == (0, 0)


def test_a_last_part_that_is_smaller(simulation: ModuleType) -> None:
    work = simulation.Work(requests=45, request=1.0, spread=0.0, drain=0.0)
    assert simulation.simulate(work, even(simulation), 10).seconds == pytest.approx(7 + 10 + 5)


def test_a_slow_node_and_the_driver(simulation: ModuleType) -> None:
    """One of two nodes of a core has half the speed: of 6 parts it does 2. The driver gives out a part in a second."""
    work = simulation.Work(requests=60, request=1.0, spread=0.0, drain=0.0)
    cluster = even(simulation, cores=1, slow=0.5)
    assert simulation.simulate(work, cluster, 10).seconds == pytest.approx(7 + 40)
    slower = even(simulation, cores=1, dispatch=100.0)
    assert simulation.simulate(work, slower, 10).seconds == pytest.approx(7 + 6 * 100 + 10)


def test_failures_lose_less_if_parts_go_on(simulation: ModuleType) -> None:
    work = simulation.Work(requests=100_000, request=0.1)
    cluster = even(simulation, nodes=10, cores=4, failures=20.0, away=60.0)
    without = simulation.simulate(work, even(simulation, nodes=10, cores=4), 1000)
    resumed = simulation.simulate(work, cluster, 1000)
    anew = simulation.simulate(work, cluster, 1000, resumes=False)
    assert without.failed == 0 < resumed.failed
    assert without.seconds < resumed.seconds < anew.seconds
    assert 0 < resumed.lost < anew.lost
    assert resumed.lost <= resumed.failed * 4 * work.in_work * work.request / 2 + 1e-6


def test_the_same_seed_gives_the_same(simulation: ModuleType) -> None:
    work, cluster = simulation.Work(requests=20_000), simulation.Cluster(nodes=5, failures=10.0)
    first = simulation.simulate(work, cluster, 100)
    assert first == simulation.simulate(work, cluster, 100)
    assert first != simulation.simulate(work, cluster, 100, seed=2)
    assert 0 < first.efficiency < 1


def test_the_table(simulation: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulation.main(["--requests", "64000", "--nodes", "5", "--cores", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 64", "| 256", "| 1,024", "| 3,200"]
    assert all(line.count("%") == 4 for line in lines[2:])
