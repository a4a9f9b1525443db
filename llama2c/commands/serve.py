"""The verb `serve`: a server with OpenAI's interface. Flags, the address, signals; server/ has the rest."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import ipaddress
import os
import signal
import socket
import sys
from argparse import Namespace
from collections.abc import Sequence
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..engine.engine import Engine
from ..errors import RequestError
from ..llama import load
from .bench import number
from .parser import Parser
from .prompt_cache import check_path
from .terminal import UsageError, describe_error, named_as, put, say

if TYPE_CHECKING:
    from ..server.app import Service

NO_PACKAGE = "serve needs the packages starlette, uvicorn and prometheus-client: pip install 'llama2c[server]'"
KEY_VARIABLE = "LLAMA2C_API_KEY"
FINISH = 30.0  # seconds for what runs to come to its end
SWITCH = 0.0005  # seconds until a thread of Python lets another one go on; the engine's waits after each step
FLAG_OF_PARAM = {"max_sequences": "--max-sequences", "cache_bytes": "--cache-mb", "allow-origin": "--allow-origin"}

EPILOG = """\
The key may also be in the environment variable LLAMA2C_API_KEY, where other
users of the machine cannot see it.

examples:
    python -m llama2c serve
    python -m llama2c serve smollm2-135m --port 8000 --max-sequences 64
"""


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m llama2c serve",
        description="Answer requests over HTTP, with OpenAI's interface.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="a file, folder or name (default: the small model of llama2c)")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default 127.0.0.1: this machine alone)")
    add("--port", type=number(0), default=8080, metavar="N", help="0: any that is free (default 8080)")
    add("--api-key", metavar="KEY", help="what every request has to have as its Bearer token (default: none)")
    add("--max-sequences", type=number(1), default=32, metavar="N", help="texts that are made at once (default 32)")
    add("--cache-mb", type=number(1), metavar="N", help="memory for their caches (default: half of what is free)")
    add("--prompt-cache", metavar="FILE", help="keep what was computed for prompts here, from one start to the next")
    add("--allow-origin", action="append", default=[], metavar="URL", help="a site whose pages may use it; several times")
    add("--threads", type=number(1), metavar="N", help="default: OMP_NUM_THREADS, else what is fastest, up to all cores")
    add("--log-prompts", action="store_true", help="write the prompts into the log, too")
    return parser


def run(argv: Sequence[str]) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    options = make_parser().parse_args(argv)
    if options.port > 65535:
        raise UsageError(f"argument --port: expected an integer from 0 to 65535, found {options.port}")
    for package in ("starlette", "uvicorn", "prometheus_client"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise OSError(f"{NO_PACKAGE} ({error})") from None
    with named_as(FLAG_OF_PARAM):
        serve(options)


def serve(options: Namespace) -> None:
    from ..server.app import Service, Settings
    from ..server.guard import check_origin

    key = os.environ.get(KEY_VARIABLE) if options.api_key is None else options.api_key
    if key is not None and not (key and key.isascii() and key.isprintable()):
        raise RequestError("--api-key: expected a key of at least one character, all of them printable ASCII")
    origins = tuple(check_origin(origin) for origin in options.allow_origin)
    if options.prompt_cache is not None:
        check_path(options.prompt_cache)
    with contextlib.closing(bind(options.host, options.port)) as listener:
        llama = load(options.model, n_threads=options.threads)
        cache_bytes = None if options.cache_mb is None else options.cache_mb << 20
        with Engine(llama, options.max_sequences, cache_bytes) as engine:
            if options.prompt_cache is not None:
                engine.load_prefixes(options.prompt_cache)
            settings = Settings(options.host, origins, key, log=log, log_prompts=options.log_prompts)
            service = Service(llama, engine, settings)
            if not is_loopback(options.host):
                whom = "everyone who reaches it may use it" if key is None else "only the key protects it"
                say(f"warning: {options.host} is not only this machine: {whom}, and nothing is encrypted")
            sys.setswitchinterval(SWITCH)
            serve_app(service, listener)
            if options.prompt_cache is not None:
                keep_prefixes(engine, options.prompt_cache)


def log(line: str) -> None:
    say(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}", name="")


def keep_prefixes(engine: Engine, path: str) -> None:
    try:
        engine.save_prefixes(path)
    except (OSError, ValueError, MemoryError) as error:
        say(f"warning: the prompts were not kept: {describe_error(error)}")


# ---------------------------------------------------------------------------
# the socket and the signals


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody is answered on yet. OSError, one line: the address is not ours, or in use."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(f"{host}: expected an address of this machine, found: {error.strerror or error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(f"{url_of(host, port)}: expected an address that is free, found: {error.strerror or error}") from None
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve_app(service: Service, listener: socket.socket) -> None:
    """Answer until a signal comes, then finish what runs."""
    import uvicorn

    from ..server.connection import make_config

    class Server(uvicorn.Server):  # type: ignore[misc]
        """uvicorn's, which says when it is ready, and still refuses requests with an answer while it finishes."""

        async def startup(self, sockets: Any = None) -> None:
            self.loop = asyncio.get_running_loop()
            await super().startup(sockets)
            put(f"llama2c serves {service.name} at {url_of(service.settings.host, listener.getsockname()[1])}\n")

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """The first signal: finish; another one: end now. Neither is raised again, so the exit code is 0."""
            if service.stopping:
                self.should_exit = self.force_exit = True
                return
            service.stop()
            say(f"{signal.Signals(sig).name}: finishing {service.active} texts, for {FINISH:.0f} seconds at most")
            self.finishing = asyncio.run_coroutine_threadsafe(self.finish(), self.loop)

        async def finish(self) -> None:
            end = self.loop.time() + FINISH
            while service.active and self.loop.time() < end and not self.should_exit:
                await asyncio.sleep(0.05)
            for connection in list(self.server_state.connections):
                connection.end_unfinished()
            self.should_exit = True

    Server(make_config(service)).run(sockets=[listener])
