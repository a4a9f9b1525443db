"""Who may ask: hosts, origins and keys."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")

from llama2c import RequestError
from llama2c.server.guard import check_origin, host_of

HERE = "127.0.0.1:1"


@pytest.fixture(scope="module")
def locked(start, llama):
    return start(llama, key="secret", allowed_origins=("https://page.example",))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("127.0.0.1:9", 200), ("localhost:9", 200), ("LOCALHOST", 200), ("[::1]:9", 200),
        ("evil.example", 403), ("evil.example:8080", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403),
        ("", 403), ("[::1", 403), ("user@evil.example", 403), ("page.example", 403),
    ],
)  # fmt: skip
def test_a_foreign_host_is_refused(server, host: str, status: int) -> None:
    answer = server.ask("GET", "/v1/models", headers={"Host": host})
    assert answer.status == status
    if status == 403:
        assert answer.error["param"] == "Host"


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200), ("http://127.0.0.1:1", 200), ("http://127.0.0.1:2", 403), ("https://127.0.0.1:1", 403),
        ("https://evil.example", 403), ("null", 403), ("", 403),
    ],
)  # fmt: skip
def test_a_foreign_origin_is_refused(server, origin: str | None, status: int) -> None:
    headers = {"Host": HERE} | ({} if origin is None else {"Origin": origin})
    answer = server.ask("GET", "/v1/models", headers=headers)
    assert answer.status == status
    assert "access-control-allow-origin" not in answer.headers


def test_an_allowed_origin_may_read_the_answer(locked) -> None:
    headers = {"Origin": "https://page.example", "Authorization": "Bearer secret"}
    answer = locked.ask("GET", "/v1/models", headers=headers)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://page.example")
    preflight = locked.ask("OPTIONS", "/v1/chat/completions", headers={"Origin": "https://page.example"})  # it has no key
    assert preflight.status == 204
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    assert preflight.headers["access-control-allow-origin"] == "https://page.example"
    assert locked.ask("OPTIONS", "/v1/models", headers={"Origin": "https://evil.example"}).status == 403
    assert locked.ask("GET", "/health", headers={"Host": "page.example"}).status == 200
    without = locked.ask("GET", "/v1/models", headers={"Origin": "https://page.example"})
    assert (without.status, without.headers["access-control-allow-origin"]) == (401, "https://page.example")


def test_every_answer_has_an_id_of_its_own(locked) -> None:
    key = {"Authorization": "Bearer secret"}
    others = [{"Host": "evil.example"}, {"Origin": "https://page.example"}, {"X-Request-Id": "mine"}]
    asked = [{}, key, *({**key, **other} for other in others)]
    answers = [locked.ask("GET", "/v1/models", headers=headers) for headers in asked]
    assert [answer.status for answer in answers] == [401, 200, 403, 200, 200]
    assert len({answer.headers["x-request-id"] for answer in answers} - {"mine"}) == 5


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer other", "Bearer secretx", "Basic secret", "Bearer sécret", "secret"]
)
def test_a_wrong_key(locked, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given}
    answer = locked.ask("GET", "/v1/models", headers=headers)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_the_key_opens_every_route_and_health_needs_none(locked) -> None:
    assert locked.ask("GET", "/v1/models", headers={"Authorization": "bearer secret"}).status == 200
    assert locked.ask("GET", "/metrics").status == 401
    assert locked.ask("GET", "/health").status == 200


@pytest.mark.parametrize(("text", "expected"), [("https://Page.example/", "https://page.example"), ("http://a:8", "http://a:8")])
def test_origins(text: str, expected: str) -> None:
    assert check_origin(text) == expected


@pytest.mark.parametrize(
    "text", ["*", "", "page.example", "https://", "https://a/b", "ftp://a", "https://a:x", "https://u@a", "null"]
)
def test_what_is_no_origin(text: str) -> None:
    with pytest.raises(RequestError, match="allow-origin: expected an origin"):
        check_origin(text)


def test_hosts_without_their_port() -> None:
    assert [host_of(text) for text in ("A.b:8080", "[::1]:80", "a.", "[", "")] == ["a.b", "::1", "a", "", ""]
