"""A batch on a cluster, simulated: how long it takes with slow nodes, and with nodes that fail, for several sizes of parts.

    python benchmarks/cluster_simulation.py

prints the table of docs/cluster.md. The time of a request comes from a measured machine; everything else is assumed, and said
there. As in `batch --ray`, an actor takes the next part when it is done with one. A part of a node that fails goes on
elsewhere, with the requests that it lacks. Whether a cluster behaves so is not shown by this: it shows what follows if it does.
"""

from __future__ import annotations

import argparse
import heapq
from collections import deque
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Work:
    """What is to be done. Times are seconds of one core.

    request    of a request
    spread     standard deviation of that, as a share of it
    in_work    requests that an actor works on at once: half of their work is lost with a node
    drain      for each part: while its last requests end, an actor works on fewer at once
    """

    requests: int = 10_000_000
    request: float = 0.5
    spread: float = 0.5
    in_work: int = 32
    drain: float = 1.0


@dataclass(frozen=True)
class Cluster:
    """Where it is done. An actor has one core.

    spread    standard deviation of the speeds of nodes
    slow      share of nodes that have half the speed
    failures  of a node in an hour
    notice    seconds until a node that failed is missed
    away      seconds until another one takes its place
    start     seconds of an actor before its first request
    dispatch  seconds of the driver to give out a part
    """

    nodes: int = 100
    cores: int = 16
    spread: float = 0.05
    slow: float = 0.02
    failures: float = 0.0
    notice: float = 30.0
    away: float = 300.0
    start: float = 10.0
    dispatch: float = 0.002


class Outcome(NamedTuple):
    """What came out. ideal: the seconds it would take if no core ever waited and all had the same speed."""

    seconds: float
    ideal: float
    failed: int  # nodes
    lost: float  # core-seconds of work that was done and is done again

    @property
    def efficiency(self) -> float:
        return self.ideal / self.seconds


def simulate(work: Work, cluster: Cluster, part: int, resumes: bool = True, seed: int = 1) -> Outcome:
    """One run. part: requests of a part; resumes: a part that was begun goes on with the requests that it lacks."""
    random = np.random.default_rng(seed)
    speeds = np.exp(random.normal(0.0, cluster.spread, cluster.nodes))
    speeds[: round(cluster.slow * cluster.nodes)] *= 0.5
    sizes = [part] * (work.requests // part) + ([work.requests % part] if work.requests % part else [])
    noise = random.normal(0.0, work.spread, len(sizes))
    todo = deque(n * work.request + z * work.request * n**0.5 for n, z in zip(sizes, noise, strict=True))
    left = len(todo)

    doing: dict[tuple[int, int], tuple[float, float, float]] = {}  # (node, core) -> when begun, the work, when it ends
    lives = [0] * cluster.nodes  # how often a node has failed: events of an earlier life do not count
    idle: list[tuple[int, int]] = []
    driver = 0.0  # when it is free
    failed, lost = 0, 0.0
    events: list[tuple[float, int, str, int, int, float]] = []  # time, order, kind, node, life, what it is about
    order = 0

    def plan(time: float, kind: str, node: int, about: float = 0.0) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (time, order, kind, node, lives[node], about))

    def begin(now: float, node: int, core: int) -> None:
        nonlocal driver
        if not todo:
            idle.append((node, core))
            return
        driver = max(driver, now) + cluster.dispatch
        size = todo.popleft()
        end = driver + (size + work.drain) / speeds[node]
        doing[node, core] = driver, size, end
        plan(end, "end", node, core)

    def start(now: float, node: int) -> None:
        for core in range(cluster.cores):
            plan(now + cluster.start, "ready", node, core)
        if cluster.failures:
            plan(now + random.exponential(3600.0 / cluster.failures), "fail", node)

    for node in range(cluster.nodes):
        start(0.0, node)
    while left:
        now, _, kind, node, life, about = heapq.heappop(events)
        if kind == "missed":
            todo.appendleft(about)
            if idle:
                begin(now, *idle.pop())
        elif kind == "back":
            start(now, node)
        elif life != lives[node]:
            continue
        elif kind == "ready":
            begin(now, node, int(about))
        elif kind == "end":
            del doing[node, int(about)]
            left -= 1
            begin(now, node, int(about))
        else:
            failed += 1
            lives[node] += 1
            idle = [place for place in idle if place[0] != node]
            for core in range(cluster.cores):
                if (node, core) in doing:
                    begun, size, _ = doing.pop((node, core))
                    did = max(0.0, min(size, (now - begun) * speeds[node]))
                    kept = max(0.0, did - work.in_work * work.request / 2) if resumes else 0.0
                    lost += did - kept
                    plan(now + cluster.notice, "missed", node, size - kept)
            plan(now + cluster.away, "back", node)
    ideal = work.requests * work.request / (cluster.nodes * cluster.cores)
    return Outcome(now, ideal, failed, lost)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Simulate a batch on a cluster, and print the table of docs/cluster.md.")
    parser.add_argument("--request", type=float, default=Work().request, help="seconds of a core for a request")
    parser.add_argument("--requests", type=int, default=Work().requests)
    parser.add_argument("--nodes", type=int, default=Cluster().nodes)
    parser.add_argument("--cores", type=int, default=Cluster().cores, help="of a node")
    arguments = parser.parse_args(argv)
    work = Work(arguments.requests, arguments.request)
    cluster = Cluster(arguments.nodes, arguments.cores)
    even = replace(cluster, spread=0.0, slow=0.0)
    failing = replace(cluster, failures=1.0)
    print("| requests of a part | parts | all nodes alike | some slow | and a failure an hour | the same, parts begun anew |")
    print("|---:|---:|---:|---:|---:|---:|")
    share = -(-work.requests // (cluster.nodes * cluster.cores))
    for part in (64, 256, 1024, share):
        outcomes = [simulate(work, even, part), simulate(work, cluster, part), simulate(work, failing, part)]
        outcomes.append(simulate(work, failing, part, resumes=False))
        cells = [f"{outcome.seconds / 60:.1f} min ({outcome.efficiency:.0%})" for outcome in outcomes]
        print(f"| {part:,} | {-(-work.requests // part):,} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
