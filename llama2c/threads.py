"""How many threads a step runs on: the number the caller asks for, else the cores that this process may use."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from ._kernels import bound_cores, openmp
from .errors import RequestError, check_int

MOST = 1024  # more is a typing error
SMALL_MODEL = 1_000_000  # weights: in a smaller model a second thread costs more time than it saves (docs/kernels.md)


def decide_n_threads(n_threads: int | None, n_weights: int) -> int:
    """The number of threads for a model of `n_weights` weights.

    An explicit `n_threads` comes first, then OMP_NUM_THREADS. Without either it is the number of cores this process may use, or
    one for a tiny model. TypeError: it is not an integer; RequestError: it is not from 1 to 1024.
    """
    source, wanted = "n_threads", n_threads
    if wanted is None and os.environ.get("OMP_NUM_THREADS", "").strip():
        source, wanted = "OMP_NUM_THREADS", _from_environment(os.environ["OMP_NUM_THREADS"])
    if wanted is None:
        return available_cores() if openmp and n_weights >= SMALL_MODEL else 1
    wanted = check_int(source, wanted, 1, MOST)
    if not openmp and wanted > 1:
        warnings.warn(f"{source}={wanted}: this build has no OpenMP and runs on one thread", RuntimeWarning, stacklevel=3)
        return 1
    if wanted > available_cores():
        found = f"{available_cores()} core{'s' * (available_cores() > 1)}"
        warnings.warn(f"{source}={wanted} is more than the {found} here, which is slower", RuntimeWarning, stacklevel=3)
    return wanted


def explain_n_threads(n_weights: int) -> str:
    """Why decide_n_threads(None, n_weights) gives the number that it gives, in words: "OMP_NUM_THREADS=2"."""
    if os.environ.get("OMP_NUM_THREADS", "").strip():
        return f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"
    if not openmp:
        return "this build has no OpenMP"
    if n_weights < SMALL_MODEL:
        return f"a model of less than {SMALL_MODEL:,} weights"
    quota = cgroup_quota()
    if quota is not None and round(quota) <= available_cores():
        return f"the CPU quota of the control group, {quota:g} cores"
    return "the cores that OpenMP has bound its threads to" if bound_cores() else "the cores that this process may use"


def _from_environment(text: str) -> int:
    """The first number of OMP_NUM_THREADS, which may be a list with one for each level: "4,2" -> 4."""
    try:
        return int(text.split(",")[0])
    except ValueError:
        raise RequestError(f"OMP_NUM_THREADS: expected a number, found {text!r}", "OMP_NUM_THREADS") from None


def available_cores() -> int:
    """The cores this process may use: its affinity, cut by the CPU quota of its control groups (Linux containers).

    Where the OpenMP runtime binds threads (OMP_PROC_BIND, OMP_PLACES, GOMP_CPU_AFFINITY), the cores it binds them to: it has
    bound the thread that loaded it already, so the affinity of that thread is one core.
    """
    cores = bound_cores()
    if not cores:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return cores if quota is None else max(1, min(cores, round(quota)))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """The smallest CPU quota, in cores, of the control groups this process is in; None without one (versions 1 and 2)."""
    quotas = []
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, read = root, _quota_v2
        elif "cpu" in controllers.split(","):
            base, read = root / "cpu", _quota_v1
        else:
            continue
        folder = base / path.lstrip("/")
        for place in [folder, *folder.parents]:
            if place == base.parent:
                break
            quotas.append(read(place))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(folder: Path) -> float | None:
    """cpu.max: "150000 100000" -> 1.5, "max 100000" -> None."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return float(quota) / float(period)
    except (OSError, ValueError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = float((folder / "cpu.cfs_quota_us").read_text())
        return quota / float((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError):
        return None
