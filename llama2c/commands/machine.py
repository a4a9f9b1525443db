"""What the verbs say about this machine: its processor, and how fast it reads memory."""

from __future__ import annotations

import platform
import statistics
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def cpu_name() -> str:
    """The name that the system gives, or else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def read_bandwidth(memory: NDArray[np.float32], n_threads: int) -> float:
    """Bytes per second at which `n_threads` threads read this array: the median of three times."""
    from .. import _kernels

    seconds = []
    for _ in range(3):
        start = perf_counter()
        _kernels.read_all(memory, n_threads)
        seconds.append(perf_counter() - start)
    return memory.nbytes / statistics.median(seconds)
