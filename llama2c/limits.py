"""What the system lets this process use: memory, and the control groups that limit it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

LIMIT_FILES = {1: "memory.limit_in_bytes", 2: "memory.max"}  # of a control group, by version


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


def usable_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """available_memory(), but no more than the control groups of this process may use (Linux containers)."""
    limits = [_limit(folder / LIMIT_FILES[version]) for version, folder in control_groups("memory", root, own)]
    return min([available_memory(), *(limit for limit in limits if limit is not None)])


def _limit(file: Path) -> int | None:
    """The bytes in the file of a control group: "1000" -> 1000, "max" -> None."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def control_groups(controller: str, root: Path, own: Path) -> Iterator[tuple[int, Path]]:
    """The folders of the control groups this process is in, from its own up to the root, each with its version, 1 or 2."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, version = root, 2
        elif controller in controllers.split(","):
            base, version = root / controller, 1
        else:
            continue
        folder = base / path.lstrip("/")
        for place in [folder, *folder.parents]:
            if place == base.parent:
                break
            yield version, place
