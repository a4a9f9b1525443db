"""What stands before every route: Host and Origin, so that no page of another site can use the server, and the key.

A page that a browser shows can send requests to a server on the same machine: with its own origin, or, once its name was made
to mean 127.0.0.1 (DNS rebinding), with its own name as the Host. Both are refused unless they were allowed.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Collection
from os import urandom
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

from ..errors import RequestError
from .answers import dump, error_body

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = ("/", "/health")  # need no key
REQUEST_ID = "llama2c.request_id"  # of a scope: what the header X-Request-Id says, and the log
NOT_ALLOWED = "this server does not answer other sites; --allow-origin allows one"


def json_response(status: int, content: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(dump(content), status, headers, "application/json")


def host_of(netloc: str) -> str:
    """The name without the port, in small letters: "[::1]:8080" -> "::1". "" if it is not valid."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_address(host: str) -> bool:
    """Whether a host is an IP address, which no DNS can make mean something else."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def check_origin(text: str) -> str:
    """An origin as browsers send it: "https://Example.com/" -> "https://example.com". RequestError: it is not one."""
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  it is checked when it is read
    except ValueError:
        parts = urlsplit("")
    more = parts.path not in ("", "/") or parts.query or parts.fragment or parts.username
    if parts.scheme not in ("http", "https") or not parts.hostname or more:
        raise RequestError(f"allow-origin: expected an origin such as https://example.com, found {text!r}", "allow-origin")
    return f"{parts.scheme}://{parts.netloc.lower()}"


class Guard:
    """Refuses requests of other sites (403) and those without the key (401), and says which origins a browser may answer.
    Every answer gets the header X-Request-Id, which the log has, too.

    host            the one that the server is bound to; requests may name it
    allowed_origins as check_origin gives them; their names are allowed as hosts, too
    key             None: none is needed
    """

    def __init__(self, app: ASGIApp, *, host: str, allowed_origins: Collection[str], key: str | None) -> None:
        self._app = app
        self._origins = frozenset(allowed_origins)
        names = {host_of(urlsplit(one).netloc) for one in self._origins}
        self._names = {"localhost", host.lower(), socket.gethostname().lower(), *names} - {""}
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        refused = self._refuse(scope, headers, origin)
        scope[REQUEST_ID] = f"req_{urandom(8).hex()}"
        answer = _with_headers(send, {"X-Request-Id": scope[REQUEST_ID]})
        if origin in self._origins:
            answer = _with_headers(answer, {"Access-Control-Allow-Origin": origin, "Vary": "Origin"})
            if scope["method"] == "OPTIONS" and (refused is None or refused.status_code == 401):  # a preflight has no key
                refused = Response(status_code=204, headers=_preflight())
        if refused is not None:
            await refused(scope, receive, answer)
            return
        await self._app(scope, receive, answer)

    def _refuse(self, scope: Scope, headers: Headers, origin: str | None) -> Response | None:
        hosts = headers.getlist("host")
        host = host_of(hosts[0]) if len(hosts) == 1 else ""
        if not (host in self._names or is_address(host)):
            return json_response(403, error_body(f"Host: {NOT_ALLOWED}", "permission_error", "Host"))
        own = f"{scope['scheme']}://{hosts[0].lower()}"
        if origin is not None and origin != own and origin not in self._origins:
            return json_response(403, error_body(f"Origin: {NOT_ALLOWED}", "permission_error", "Origin"))
        if self._key is not None and scope["path"] not in OPEN and not self._has_key(headers):
            message = "Authorization: expected the API key as a Bearer token"
            body = error_body(message, "authentication_error", None, "invalid_api_key")
            return json_response(401, body, {"WWW-Authenticate": "Bearer"})
        return None

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key or b"")


def _preflight() -> dict[str, str]:
    return {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": "Authorization, Content-Type",
        "Access-Control-Max-Age": "600",
    }


def _with_headers(send: Send, added: dict[str, str]) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(added)
        await send(message)

    return answer
