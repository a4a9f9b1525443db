"""What the tests of batches share: the small model, and entries from lines."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

import llama2c
from llama2c.batch.lines import Entry, Shape, read_entries
from llama2c.batch.plan import Plan, make_plan
from llama2c.llama import Llama

DAY = date(2026, 1, 31)


def reader(data: bytes, most: int = 1 << 20) -> Callable[[int], bytes]:
    """As a pipe that gives at most so many bytes at a time."""
    stream = io.BytesIO(data)
    return lambda n: stream.read(min(n, most))


def entries_of(*lines: Any, shape: Shape | None = None) -> list[Entry]:
    """The entries of lines: bytes as they are, anything else as JSON."""
    data = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    return list(read_entries(reader(data), shape or Shape(), "IN"))


@pytest.fixture(scope="session")
def llama() -> Llama:
    return llama2c.load(n_threads=1)


@pytest.fixture(scope="session")
def plan(llama: Llama) -> Plan:
    from dataclasses import replace

    return replace(make_plan(llama), date=DAY)
