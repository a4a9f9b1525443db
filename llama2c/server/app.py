"""The routes: what comes in is checked by guard and protocol, the engine does the work, answers has the shapes that go out.

A request whose client goes away is cancelled, whole or in a stream. Nothing here computes: whatever may take longer than a
millisecond (templates, tokenizing, schemas, large bodies and answers) is done in a few threads beside the event loop.
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from os import urandom
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from ..engine.engine import Engine
from ..engine.request import Request as EngineRequest
from ..engine.worker import CLOSED
from ..errors import ModelError, RequestError
from ..fingerprint import fingerprint
from ..generation import Options
from ..llama import Llama
from ..requests import Piece, Prompt, new_request
from ..scoring import Part, TokenScore, score_and_continue
from .answers import COMMENT, DONE, Answer, Delta, dump, error_body, event, usage
from .fields import Body, read_body, string
from .guard import REQUEST_ID, Guard, json_response
from .metrics import Metrics
from .openapi import describe
from .page import Page
from .protocol import Job, read_chat, read_completion, read_detokenize, read_tokenize, seed_of_choice
from .tools import Calls, prepare

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

T = TypeVar("T")
MOST_BYTES = 8 << 20  # of a body
MOST_IN_ALL = 64 << 20  # of all bodies that are being read
LARGE = 1 << 16  # bytes of a body that takes longer than a millisecond to parse
MOST_PIECES = 32  # tokens in one write to a stream, which bounds what waits for a client that does not read
THREADS = 4
# Names of the engine's arguments, where the interface has others.
PARAMS = {
    "schema": "response_format",
    "grammar": "tools",
    "template_options": "chat_template_kwargs",
    "now": "date",
    "token": "tokens",
}
KINDS = {400: "invalid_request_error", 404: "invalid_request_error", 405: "invalid_request_error", 413: "invalid_request_error"}


class StoppedError(Exception):
    """The server stops, and has cancelled what was running."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server is set up.

    host             the one that it is bound to
    allowed_origins  of pages of other sites that may use it
    key              that every request has to have; None: none
    max_waiting      choices in work, running and waiting, from which on requests are refused
    log              gets one line for each request
    log_prompts      whether these lines have the prompts, too
    silence          seconds until a comment says that a stream is still there
    body_seconds     for a body to arrive
    stalled          seconds in which a client has to read something of what waits for it; else it is given up
    idle             seconds for a request to come, on a connection that has none
    """

    host: str = "127.0.0.1"
    allowed_origins: tuple[str, ...] = ()
    key: str | None = None
    max_waiting: int = 512
    log: Callable[[str], object] = field(default=lambda line: None)
    log_prompts: bool = False
    silence: float = 5.0
    body_seconds: float = 60.0
    stalled: float = 120.0
    idle: float = 75.0


# ---------------------------------------------------------------------------
# one choice of an answer


class Choice(Protocol):
    """One text that is being made."""

    prompt_tokens: int

    @property
    def n_tokens(self) -> int:
        """Drawn so far."""

    @property
    def cached_tokens(self) -> int: ...

    def deltas(self) -> AsyncGenerator[Delta, None]:
        """What is new, as it is made."""

    def cancel(self) -> None: ...


class EngineChoice:
    """A choice that the engine makes, together with all others. Without a stream nobody has to know of each token."""

    def __init__(self, request: EngineRequest, prompt_text: str, job: Job, calls: Calls | None = None) -> None:
        """calls: reads the calls of tools in the text; None: there are no tools."""
        self._request, self._prompt_text, self._top, self._streams = request, prompt_text, job.top_logprobs, job.stream
        self._calls = calls
        self.prompt_tokens = request.prompt_tokens

    @property
    def n_tokens(self) -> int:
        return self._request.generation_tokens

    @property
    def cached_tokens(self) -> int:
        return self._request.cached_tokens

    def cancel(self) -> None:
        self._request.cancel()

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        if self._prompt_text:
            yield Delta(self._prompt_text, (), None)
        while pieces := await self._request.news():
            for i in range(0, len(pieces), MOST_PIECES):
                part = pieces[i : i + MOST_PIECES]
                yield self._delta(part, part[-1].finish_reason)
            if pieces[-1].finish_reason is not None:
                return
            if not self._streams:
                await self._request
        ended = self._request.finish_reason  # no piece says why
        if ended == "cancelled":
            raise StoppedError
        yield self._delta([], ended)

    def _delta(self, pieces: list[Piece], reason: str | None) -> Delta:
        if self._calls is None:
            return Delta("".join([piece.text for piece in pieces]), self._scores(pieces), reason)
        text, calls, reason = self._calls.read([(piece.token, piece.text) for piece in pieces], reason)
        return Delta(text, self._scores(pieces), reason, calls)

    def _scores(self, pieces: list[Piece]) -> list[TokenScore]:
        if self._top is None:
            return []
        return [TokenScore(piece.token, piece.logprob, piece.top_logprobs[: self._top]) for piece in pieces]


class ScoredChoice:
    """A choice whose prompt is scored: computed whole, whatever is known of it, in parts between the steps of the engine."""

    def __init__(self, service: Service, prompt: Prompt, job: Job, seed: int) -> None:
        self._service = service
        transformer = service.llama.transformer
        sequence, _ = new_request(transformer.config, service.llama.tokenizer, prompt, {**job.options, "seed": seed})
        self._finish_reason = sequence.finish_reason
        self._text = service.text_of(prompt)
        self._parts: Iterator[Part] | None = score_and_continue(transformer, sequence, job.top_logprobs or 0)
        self.prompt_tokens, self.n_tokens, self.cached_tokens = sequence.n_prompt, 0, 0

    def cancel(self) -> None:
        """Its work is done by who reads the deltas."""

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """One choice at a time, so that there is one cache beside those of the engine."""
        service, end = self._service, self._finish_reason
        parts, self._parts = self._parts, None  # they have the cache, which goes with them at the end
        assert parts is not None
        async with service.scoring:
            scores: list[TokenScore] = []
            n_prompt = 0
            while n_prompt < self.prompt_tokens or end is None:
                call = partial(service.engine.call, partial(next, parts))
                part = await service.in_thread(call)
                if n_prompt < self.prompt_tokens:  # the lists of a prompt come in one part
                    n_prompt += len(part.scores)
                    scores += part.scores
                    if n_prompt == self.prompt_tokens:
                        yield Delta(self._text, scores, end)
                    continue
                self.n_tokens += 1
                end = part.finish_reason
                yield Delta(part.text, part.scores, end)


# ---------------------------------------------------------------------------
# the service


class Service:
    """What the routes share: the model, its engine, and how much is in work."""

    def __init__(self, llama: Llama, engine: Engine, settings: Settings) -> None:
        self.llama, self.engine, self.settings = llama, engine, settings
        self.name = Path(llama.transformer.checkpoint.path).stem or "llama2c"
        self.created = int(time.time())
        self.metrics = Metrics(engine)
        self.scoring = asyncio.Lock()
        self.stopping = False
        self.active = 0  # choices
        self.reading = 0  # bytes of bodies
        self._fingerprints = [fingerprint(llama.transformer, llama.tokenizer, constrained) for constrained in (False, True)]
        self._threads = ThreadPoolExecutor(THREADS, "llama2c server")

    def stop(self) -> None:
        """Refuse new requests from now on."""
        self.stopping = True

    async def in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def body_of(self, request: Request, read: Callable[[Body], T]) -> T:
        """What read() makes of the JSON object that was sent. Refused: it is not JSON, too long, or does not arrive."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(f"Content-Type: expected application/json, found {kind[:40]!r}", "Content-Type")
        try:
            data = await asyncio.wait_for(self._read(request), self.settings.body_seconds)
        except asyncio.TimeoutError:
            raise Refused(408, error_body("the body did not arrive in time", KINDS[400])) from None
        if len(data) < LARGE:
            return read(read_body(data))
        return await self.in_thread(lambda: read(read_body(data)))

    async def _read(self, request: Request) -> bytes:
        data = bytearray()
        try:
            async for part in request.stream():
                data += part
                self.reading += len(part)
                if len(data) > MOST_BYTES:
                    raise Refused(413, error_body(f"body: expected at most {MOST_BYTES} bytes, found more", KINDS[413]))
                if self.reading > MOST_IN_ALL:
                    raise queue_full()
            return bytes(data)
        finally:
            self.reading -= len(data)

    def text_of(self, prompt: Prompt) -> str:
        return prompt if isinstance(prompt, str) else self.llama.tokenizer.decode(prompt)  # type: ignore[arg-type]

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.name:
            message = f"model: expected {self.name!r}, found {name[:80]!r}"
            raise Refused(404, error_body(message, KINDS[404], "model", "model_not_found"))

    def check_room(self) -> None:
        if self.stopping:
            raise Refused(503, error_body("the server is stopping", "server_error", None, "stopping"), {"Retry-After": "5"})
        if self.active >= self.settings.max_waiting:
            raise queue_full()

    def begin(self, job: Job, seed: int, day: date) -> list[Choice]:
        """The choices of a request, in work. Errors: those of Llama.generate and Llama.chat. May take long."""
        choices: list[Choice] = []
        use = None if job.tools is None else prepare(job.tools, self.llama.tokenizer)
        if use is not None:
            options: Options = {**job.options, "grammar": use.grammar}
            job = replace(job, options=options, template_options={**(job.template_options or {}), **use.template_options})
        try:
            for i, prompt in enumerate(job.prompts):
                for k in range(job.n):
                    own = seed_of_choice(seed, i, k)
                    calls = None if use is None else use.calls_of(prompt, own)
                    choices.append(self._begin(job, prompt, own, day, calls))
        except Exception:
            for choice in choices:
                choice.cancel()
            raise
        return choices

    def _begin(self, job: Job, prompt: Prompt, seed: int, day: date, calls: Calls | None) -> Choice:
        if job.scores_prompt:
            return ScoredChoice(self, prompt, job, seed)
        options: Options = {**job.options, "seed": seed}
        now = day if job.is_chat else None
        request = self.engine.submit(prompt, template_options=job.template_options, now=now, **options)
        return EngineChoice(request, self.text_of(prompt) if job.echo else "", job, calls)

    def answer(self, job: Job, seed: int, day: date) -> Answer:
        head = {
            "id": f"{'chatcmpl' if job.is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.name,
            "system_fingerprint": self._fingerprints[job.constrained],
            "seed": seed,
            **({"date": day.isoformat()} if job.is_chat else {}),
        }
        return Answer(self.llama.tokenizer, job.is_chat, head, job.top_logprobs is not None, job.include_usage)


class Refused(Exception):  # noqa: N818  it is an answer
    """An answer that is an error."""

    def __init__(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers


def queue_full() -> Refused:
    body = error_body("the queue is full: try again later", "rate_limit_error", None, "queue_full")
    return Refused(429, body, {"Retry-After": "1"})


def refusal(error: Exception, is_chat: bool = False) -> Refused:
    """The answer to a request that has failed. What is not known to be the request's fault is a 500, and told on stderr."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, ClientDisconnect):  # in the middle of its body; nobody reads this
        return Refused(400, error_body("the body was cut short", KINDS[400]))
    if isinstance(error, (RequestError, ModelError, OSError)):
        found = getattr(error, "param", None)
        message = str(error)
        too_long = found == "prompt" and "(the context)" in message
        param = PARAMS.get(found, found) if found else None
        if is_chat and param in ("prompt", "text"):
            param = "messages"
        elif param == "text":
            param = "prompt"
        if found and param and message.startswith(f"{found}:"):
            message = param + message.removeprefix(found)
        if param is None and "llguidance" in message:
            param = "response_format"
        return Refused(400, error_body(message, KINDS[400], param, "context_length_exceeded" if too_long else None))
    if isinstance(error, StoppedError) or str(error) == CLOSED:
        return Refused(503, error_body("the server is stopping", "server_error", None, "stopping"), {"Retry-After": "5"})
    if isinstance(error, MemoryError):
        return Refused(503, error_body("not enough memory now", "server_error"), {"Retry-After": "5"})
    traceback.print_exception(error, file=sys.stderr)
    return Refused(500, error_body("the server has failed; its log says why", "server_error"))


class Work:
    """A request from its body to its last byte: its choices, what they made, and the line in the log."""

    def __init__(self, service: Service, route: str, job: Job, request_id: str) -> None:
        self._service, self._route, self.job, self._id = service, route, job, request_id
        self._start = time.perf_counter()
        self._first: float | None = None
        self._spoke = self._start  # when something was sent last
        self._choices: list[Choice] = []
        self._room = len(job.prompts) * job.n
        seed = int.from_bytes(urandom(8), "little") >> 11 if job.seed is None else job.seed  # 53 bits, which JavaScript keeps
        self._seed, self._day = seed, job.date or date.today()
        self.answer = service.answer(job, seed, self._day)
        service.active += self._room

    async def begin(self) -> None:
        begin = partial(self._service.begin, self.job, self._seed, self._day)
        self._choices = await self._service.in_thread(begin)

    @property
    def usage(self) -> dict[str, Any]:
        per_prompt = self._choices[:: self.job.n]  # a prompt counts once, however many samples there are
        return usage(
            sum(choice.prompt_tokens for choice in per_prompt),
            sum(choice.n_tokens for choice in self._choices),
            sum(choice.cached_tokens for choice in per_prompt),
        )

    def note_first(self) -> None:
        if self._first is None:
            self._first = time.perf_counter() - self._start
            self._service.metrics.first.observe(self._first)

    async def whole(self) -> bytes:
        """The answer to a request without a stream."""
        found = await gather([self._whole_choice(choice) for choice in self._choices])
        return await self._service.in_thread(lambda: dump(self.answer.whole(found, self.usage)))

    async def _whole_choice(self, choice: Choice) -> Delta:
        texts: list[str] = []
        tokens: list[TokenScore] = []
        calls: list[Mapping[str, Any]] = []
        reason: str | None = None
        async with aclosing(choice.deltas()) as deltas:
            async for text, scores, reason, found in deltas:  # noqa: B007
                self.note_first()
                texts.append(text)
                tokens += scores
                calls += found
        return Delta("".join(texts), tokens, reason, calls)

    async def stream(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """The events of a stream. send() waits while the client does not read, and so do they; the engine does not."""
        comments = asyncio.ensure_future(self._break_silence(send))
        try:
            await gather([self._stream_choice(i, choice, send) for i, choice in enumerate(self._choices)])
            end = (event(self.answer.last_chunk(self.usage)) if self.job.include_usage else b"") + DONE
        except Exception as error:  # it is too late for another status
            end = event(refusal(error, self.job.is_chat).body)
        finally:
            comments.cancel()
        await send(end)

    async def _break_silence(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """A comment for each so many seconds without anything else: proxies end a connection that is silent."""
        silence = self._service.settings.silence
        while True:
            left = self._spoke + silence - time.perf_counter()
            if left > 0:
                await asyncio.sleep(left)
            else:
                self._spoke = time.perf_counter()
                await send(COMMENT)

    async def _stream_choice(self, i: int, choice: Choice, send: Callable[[bytes], Awaitable[None]]) -> None:
        if head := self.answer.first_chunk(i):
            await send(head)
        async with aclosing(choice.deltas()) as deltas:
            async for delta in deltas:
                self.note_first()
                if chunks := self.answer.chunks(i, delta):  # nothing, where a token has no text yet
                    self._spoke = time.perf_counter()
                    await send(chunks)

    def end(self, status: int | None) -> None:
        """Whatever has happened. status: None where the client has gone."""
        service, metrics = self._service, self._service.metrics
        for choice in self._choices:
            choice.cancel()
        service.active -= self._room
        seconds = time.perf_counter() - self._start
        used = self.usage
        cached, prompt, made = used["prompt_tokens_details"]["cached_tokens"], used["prompt_tokens"], used["completion_tokens"]
        metrics.seconds.observe(seconds)
        metrics.prompt_tokens.inc(prompt)
        metrics.cached_tokens.inc(cached)
        metrics.tokens.inc(made)
        if status is None:
            metrics.disconnects.inc()
        metrics.answers.labels(self._route, "disconnect" if status is None else str(status)).inc()
        speed = made / max(seconds - (self._first or 0.0), 1e-9) if made > 1 else 0.0
        counts = f"prompt {prompt} (cached {cached}), new {made}, {speed:.1f} tok/s"
        line = f"{self._route} {status or 'disconnect'} {seconds:.2f} s, {counts}, {self._id}"
        if service.settings.log_prompts:
            line += f", prompts {dump(self.job.prompts).decode()}"
        service.settings.log(line)


async def gather(works: list[Coroutine[Any, Any, T]]) -> list[T]:
    """All results. The first error is raised, and ends the others."""
    if len(works) == 1:
        return [await works[0]]
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> tuple[T] | None:
    """(what the work gives,), or None if the client closes its connection before that: then the work is cancelled."""
    watch = asyncio.ensure_future(_until_gone(receive))
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((watch, task), return_when=asyncio.FIRST_COMPLETED)
        return None if watch.done() else (await task,)
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Events(Response):  # type: ignore[misc]
    """A stream of server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, work: Work) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_part(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        status: int | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if await unless_gone(receive, self._work.stream(send_part)) is not None:
                status = 200
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._work.end(status)


# ---------------------------------------------------------------------------
# routes


Handler = Callable[["Request"], Awaitable[Response]]


def answered(handler: Handler, is_chat: bool = False) -> Handler:
    """A route whose errors are answers in OpenAI's form."""

    async def route(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:
            refused = refusal(error, is_chat)
            return json_response(refused.status, refused.body, refused.headers)

    return route


class Routes:
    """The endpoints of a service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._page = Page()

    def all(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/v1/models", answered(self.models)),
            Route("/v1/models/{model:path}", answered(self.model)),
            Route("/v1/completions", answered(self.completions), methods=["POST"]),
            Route("/v1/chat/completions", answered(self.chat, True), methods=["POST"]),
            Route("/tokenize", answered(self.tokenize), methods=["POST"]),
            Route("/detokenize", answered(self.detokenize), methods=["POST"]),
            Route("/tokenizer_info", answered(self.tokenizer_info)),
            Route("/health", answered(self.health)),
            Route("/metrics", answered(self.metrics)),
            Route("/openapi.json", answered(self.openapi)),
        ]

    async def completions(self, request: Request) -> Response:
        return await self._work(request, "completions", read_completion)

    async def chat(self, request: Request) -> Response:
        return await self._work(request, "chat", read_chat)

    async def _work(self, request: Request, route: str, read: Callable[[Body], Job]) -> Response:
        service, request_id = self._service, request.scope[REQUEST_ID]
        try:
            service.check_room()
            job = await service.body_of(request, read)
            service.check_model(job.model)
            service.check_room()  # a body takes its time
        except Exception as error:
            refused = refusal(error, read is read_chat)
            service.metrics.answers.labels(route, str(refused.status)).inc()
            service.settings.log(f"{route} {refused.status}, {request_id}")
            raise refused from None
        work = Work(service, route, job, request_id)
        status: int | None = None
        streams = False
        try:
            begun = await unless_gone(request.receive, work.begin())
            if begun is not None and job.stream:
                streams = True
                return Events(work)
            found = None if begun is None else await unless_gone(request.receive, work.whole())
            if found is None:
                return Response(status_code=400)  # nobody reads it
            status = 200
            return Response(found[0], media_type="application/json")
        except Exception as error:
            refused = refusal(error, job.is_chat)
            status = refused.status
            raise refused from None
        finally:
            if not streams:  # a stream ends itself
                work.end(status)

    def _described(self) -> dict[str, Any]:
        service = self._service
        return {
            "id": service.name,
            "object": "model",
            "created": service.created,
            "owned_by": "llama2c",
            "context_length": service.llama.transformer.config.seq_len,
        }

    async def models(self, request: Request) -> Response:
        return json_response(200, {"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        self._service.check_model(request.path_params["model"])
        return json_response(200, self._described())

    async def tokenize(self, request: Request) -> Response:
        service = self._service
        (text, with_bos), model = await service.body_of(request, lambda body: (read_tokenize(body), string(body, "model")))
        service.check_model(model)
        tokens = await service.in_thread(lambda: service.llama.tokenizer.encode(text, bos=with_bos))
        limit = service.llama.transformer.config.seq_len
        return json_response(200, {"count": len(tokens), "max_model_len": limit, "tokens": tokens})

    async def detokenize(self, request: Request) -> Response:
        service = self._service
        tokens, model = await service.body_of(
            request, lambda body: (read_detokenize(body, MOST_BYTES), string(body, "model"))
        )
        service.check_model(model)
        return json_response(200, {"prompt": await service.in_thread(lambda: service.llama.tokenizer.decode(tokens))})

    async def tokenizer_info(self, request: Request) -> Response:
        tokenizer = self._service.llama.tokenizer
        template = tokenizer.chat_template
        names = dict(template.special_tokens) if template else {}
        return json_response(
            200,
            {
                "bos_token": names.get("bos_token"),
                "eos_token": names.get("eos_token"),
                "pad_token": names.get("pad_token"),
                "bos_token_id": tokenizer.bos_id,
                "eos_token_id": tokenizer.eos_id,
                "vocab_size": tokenizer.vocab_size,
                "chat_template": template.source if template else None,
            },
        )

    async def page(self, request: Request) -> Response:
        return self._page.response()

    async def health(self, request: Request) -> Response:
        stopping = self._service.stopping
        return json_response(503 if stopping else 200, {"status": "stopping" if stopping else "ok"})

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        service = self._service
        needs_key = service.settings.key is not None
        return json_response(200, describe(service.name, service.llama.tokenizer.vocab_size, needs_key))


async def http_error(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    kind = KINDS.get(error.status_code, "server_error")
    return json_response(error.status_code, error_body(f"{request.url.path}: {error.detail}", kind), dict(error.headers or {}))


def make_app(service: Service) -> Starlette:
    """The application, for an ASGI server. Its caller closes the engine."""
    settings = service.settings
    guard = Middleware(Guard, host=settings.host, allowed_origins=settings.allowed_origins, key=settings.key)
    return Starlette(routes=Routes(service).all(), middleware=[guard], exception_handlers={HTTPException: http_error})
