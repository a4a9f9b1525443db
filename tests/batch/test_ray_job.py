"""What of a Ray job needs no Ray. tests/cluster has the rest."""

from __future__ import annotations

import socket

import pytest

from llama2c.batch.ray_job import check_reachable


def test_whether_somebody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check_reachable(f"127.0.0.1:{port}")
    with pytest.raises(ConnectionRefusedError):
        check_reachable(f"127.0.0.1:{port}")
    for address in ("auto", "local", f"ray://127.0.0.1:{port}"):
        check_reachable(address)
