"""What the tests with real clients share: addresses, and a server with a key."""

from __future__ import annotations

from typing import Any

import pytest

KEY = "sk-test"


@pytest.fixture(scope="module")
def locked(start: Any, llama: Any) -> Any:
    """A server that wants a key."""
    return start(llama, key=KEY)


@pytest.fixture(autouse=True, scope="module")
def no_proxies() -> Any:
    """Requests to this machine go to no proxy, whatever the environment says, and clients find no keys or addresses there."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "LANGSMITH_TRACING"):
            patch.delenv(name, raising=False)
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("no_proxy", "127.0.0.1")
        yield
