"""What the verbs say about this machine: its processor and its memory."""

from __future__ import annotations

import os
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


def total_memory() -> int:
    """Bytes of memory of the whole machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int:
    """Bytes that can be used without swapping (on Linux), or the memory of the whole machine."""
    try:
        text = Path("/proc/meminfo").read_text()
        return 1024 * int(text.partition("MemAvailable:")[2].split()[0])
    except (OSError, IndexError):
        return total_memory()


def read_bandwidth(memory: NDArray[np.float32], n_threads: int) -> float:
    """Bytes per second at which `n_threads` threads read this array: the median of three times."""
    from .. import _kernels

    seconds = []
    for _ in range(3):
        start = perf_counter()
        _kernels.read_all(memory, n_threads)
        seconds.append(perf_counter() - start)
    return memory.nbytes / statistics.median(seconds)
