"""Connections: uvicorn's, which end when a client neither sends nor reads; and the settings of uvicorn itself.

uvicorn waits for ever for the headers of a request, for the rest of a body that nobody reads, and for a client to read what it
was sent. A few hundred such clients would take all the open files that a process may have.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .answers import dump, error_body
from .app import make_app

if TYPE_CHECKING:
    from .app import Service, Settings

KEEP_ALIVE = 75  # seconds that an unused connection stays open: longer than clients keep theirs
MOST = 768  # connections; with BACKLOG more, which are accepted before one is ended, below the usual limit of 1,024 open files
BACKLOG = 128  # connections that the system keeps for us
NOT_HTTP = dump(error_body("expected a request of HTTP/1.1, found something else", "invalid_request_error"))
NOT_HTTP_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(NOT_HTTP), NOT_HTTP)
)


class Connection(H11Protocol):  # type: ignore[misc]
    """One connection of a client.

    A part of an answer that the system does not take at once is the only one that waits here: the next is made when that one
    has been read. If none of it is read for Settings.stalled seconds, or if no request comes for Settings.idle seconds, or not
    the rest of one, the connection ends at once. Its request is then cancelled, as for any client that goes away.
    """

    def __init__(self, settings: Settings, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._settings = settings
        self._idle_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > MOST:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=0)
        self._end_if_idle(self)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._idle_timer, self._read_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _end_if_idle(self, before: Any) -> None:
        """before: the request that had been answered last, a while ago; None: there was none."""
        now = self.cycle
        if now is not None and not now.response_complete:
            now = self  # it is being answered, or its body read: the routes have their own limits
        elif now is before and not self.flow.write_paused:
            self.transport.abort()
            return
        self._idle_timer = self.loop.call_later(self._settings.idle, self._end_if_idle, now)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._end_if_unread(None)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._read_timer is not None:
            self._read_timer.cancel()

    def _end_if_unread(self, before: int | None) -> None:
        """before: bytes that the client had not read a while ago."""
        now = self.transport.get_write_buffer_size()
        if now == before:
            self.transport.abort()
            return
        self._read_timer = self.loop.call_later(self._settings.stalled, self._end_if_unread, now)

    def end_unfinished(self) -> None:
        """End it if a request is being answered, because the server ends."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """The answer to what is not HTTP. Where an answer has begun already, the connection just ends."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(NOT_HTTP_ANSWER)
        self.transport.close()


def make_config(service: Service) -> uvicorn.Config:
    """How uvicorn serves the routes. h11 parses HTTP: httptools takes microseconds less, but headers of any size."""
    return uvicorn.Config(
        make_app(service),
        http=partial(Connection, service.settings),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        backlog=BACKLOG,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=1,
    )
