"""The parts of a batch on a Ray cluster. Ray Data starts actors, gives them parts, and gives those of a dead one to another.

What passes through Ray is small: the names and places of parts, and what became of them. The actors read and write the files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import ModelError, RequestError
from .columns import Names
from .parts import Job, Part, PartWorker, Report, plan_file

REACH = 10.0  # seconds until a cluster has to answer
TRIES = 3  # of a part that a machine could not make
Row = Mapping[str, Any]


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """The package ray, connected to a cluster.

    address  "auto": RAY_ADDRESS, or the cluster that this machine is in; "local": a new one, which only this machine can reach
    OSError, one line: Ray is not installed, or there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what it writes to stderr besides its log
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise OSError(f"ray: expected Ray Data (pip install 'llama2c[ray]'), found: {error}") from None
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        options |= {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    try:
        check_reachable(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
        ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        found = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(f"--ray: expected a cluster at {address} (ray start --head begins one), found: {found}") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """OSError: nobody listens at HOST:PORT. Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()


def plan_files(ray: Any, files: Sequence[str], names: Names, n: int) -> list[Part]:
    """The parts of all files, in their order. Each file is read once, by a task. Errors are those of plan_file."""
    rows = [{"place": place, "file": file} for place, file in enumerate(files)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_plan, fn_args=(names, n))
    planned = {row["place"]: pickle.loads(row["parts"]) for row in dataset.iter_rows()}
    parts: list[Part] = []
    for place in range(len(files)):
        if isinstance(planned[place], Exception):
            raise planned[place]
        parts += planned[place]
    return parts


def answer_parts(ray: Any, job: Job, parts: Sequence[Part], actor_cpus: float, n_actors: int | None = None) -> Iterator[Report]:
    """What became of each part, as they end. A part that a machine could not make is tried again when the others are done.

    actor_cpus  cores of an actor, which has a model and an engine
    n_actors    at most; None: as many as the cluster has room for now
    ModelError: a machine has another model or cannot open it, or OUT has other answers. RequestError: no room for an actor.
    """
    for attempt in range(1, TRIES + 1):
        left = {part.name: part for part in parts}
        for report in _answer_once(ray, job, parts, actor_cpus, n_actors):
            if report.is_fatal:
                raise ModelError(report.error)
            if report.error is None or attempt == TRIES:
                del left[report.name]
                yield report
        if not left:
            return
        parts = list(left.values())


def _answer_once(ray: Any, job: Job, parts: Sequence[Part], actor_cpus: float, n_actors: int | None) -> Iterator[Report]:
    room = sum(int(node["Resources"].get("CPU", 0) // actor_cpus) for node in ray.nodes() if node["Alive"])
    if not room:
        raise RequestError(f"--actor-cpus: expected a machine with {actor_cpus:g} cores in the cluster, found none")
    most = min(n_actors or room, len(parts))
    pool = ray.data.ActorPoolStrategy(
        min_size=1, max_size=most, initial_size=min(room, most), max_tasks_in_flight_per_actor=1
    )
    rows = [{"part": pickle.dumps(part)} for part in parts]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Answerer, fn_constructor_args=(job,), compute=pool, num_cpus=actor_cpus
    )
    for row in dataset.iter_rows():
        yield pickle.loads(row["report"])


def _plan(row: Row, names: Names, n: int) -> dict[str, Any]:
    try:
        planned: list[Part] | Exception = plan_file(row["file"], names, n)
    except (OSError, ValueError) as error:
        planned = error
    return {"place": row["place"], "parts": pickle.dumps(planned)}


class _Answerer:
    """The actor."""

    def __init__(self, job: Job) -> None:
        self._worker = PartWorker(job)

    def __call__(self, row: Row) -> dict[str, Any]:
        return {"report": pickle.dumps(self._worker.answer(pickle.loads(row["part"])))}
