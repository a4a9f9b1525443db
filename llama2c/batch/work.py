"""From an entry of IN to its line of OUT: the requests to the engine, and the answer. A line depends on its entry and the plan.

So it has no time and no speed, nothing random, and nothing that depends on the other lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, cast

from ..constraints import CONSTRAINTS
from ..engine.engine import Engine
from ..engine.many import pop_prompt
from ..engine.request import Request
from ..errors import RequestError, RoomError
from ..fingerprint import fingerprint
from ..generation import Options, TopLogprobs
from ..llama import Llama
from ..requests import Completion, Prompt, is_conversation, new_request
from ..sampler import seed_of_id
from ..scoring import TokenScore, score_and_continue
from ..server.answers import Answer, Delta, error_body, finite, usage
from ..server.fields import mapping, string
from ..server.protocol import Job, read_bias, read_chat, read_completion, read_messages, seed_of_choice
from .lines import Entry
from .plan import Plan, dump

READERS: Mapping[str, Callable[[Mapping[str, Any]], Job]] = {
    "/v1/chat/completions": read_chat,
    "/v1/completions": read_completion,
}
LIMITS = ("max_tokens", "max_completion_tokens")
# What is wrong with a line is one of these; RequestError and ModelError are ValueErrors. Other errors are of this machine.
FAULTS = (TypeError, ValueError)


class Text(NamedTuple):
    """One text of an answer."""

    delta: Delta
    prompt_tokens: int
    generation_tokens: int
    cached_tokens: int


@dataclass(slots=True, eq=False)
class Work:
    """An entry in work. Its line can be made when all of its requests are at their end.

    requests  of a text each
    scored    the texts of a line that wants its prompt scored, which are computed when it begins
    error     what is wrong with the line
    """

    entry: Entry
    start: float
    requests: list[Request] = field(default_factory=list)
    scored: list[Text] = field(default_factory=list)
    job: Job | None = None  # of one of OpenAI's lines
    seed: int = 0
    error: Exception | None = None
    left: int = 0  # requests that are not at their end
    end: float = 0.0


class Answered(NamedTuple):
    """An entry with its line of OUT."""

    entry: Entry
    line: bytes
    error: Exception | None
    prompt_tokens: int = 0
    generation_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0  # in work, and waiting for others


class Worker:
    """Begins the entries of a plan, and makes their lines."""

    def __init__(self, llama: Llama, engine: Engine, plan: Plan) -> None:
        self.engine, self.plan = engine, plan
        self._llama = llama
        self._name = Path(llama.transformer.checkpoint.path).stem or "llama2c"
        self._fingerprints = {False: plan.fingerprint}  # by whether a request has a constraint

    def begin(self, entry: Entry) -> Work:
        """Begin an entry. What is wrong with it is in the Work.

        RoomError, MemoryError, OSError: it cannot be done here, and may be elsewhere.
        """
        work = Work(entry, perf_counter(), error=entry.error)
        if work.error is None:
            try:
                if entry.openai:
                    self._begin_openai(work)
                else:
                    self._begin_own(work)
            except RoomError:
                raise
            except FAULTS as error:
                work.error, work.requests = error, []  # requests that nobody holds are cancelled
        return work

    def finish(self, work: Work) -> Answered:
        """The line of an entry whose requests are at their end. What this machine is to blame for is raised."""
        completions = [request.wait() for request in work.requests]
        for completion in completions:
            if completion.error is not None and not isinstance(completion.error, FAULTS):
                raise completion.error
            if completion.finish_reason == "cancelled":
                raise RuntimeError("batch: the engine was closed")
            work.error = work.error or completion.error
        texts = work.scored or [self._text(work.job, request) for request in work.requests]
        line = dump(self._openai_answer(work, texts) if work.entry.openai else _own_answer(work, completions))
        first_texts = texts[:: work.job.n if work.job else 1]  # a prompt counts once, however many samples there are
        return Answered(
            work.entry,
            line,
            work.error,
            sum(text.prompt_tokens for text in first_texts),
            sum(text.generation_tokens for text in texts),
            sum(text.cached_tokens for text in first_texts),
            max(0.0, work.end - work.start),
        )

    # ---- our own lines

    def _begin_own(self, work: Work) -> None:
        own = {name: value for name, value in work.entry.content.items() if value is not None and name != "id"}
        if "messages" in own:
            own["messages"] = read_messages(own)
        if "logit_bias" in own:
            own["logit_bias"] = read_bias(mapping(own, "logit_bias"))
        now, template_options = _read_now(string(own, "now")), mapping(own, "template_options")
        prompt = pop_prompt(own)
        options = self._with_defaults({name: own[name] for name in own if name not in ("now", "template_options")})
        options.setdefault("seed", seed_of_id(self.plan.seed, work.entry.id))
        work.requests.append(self._submit(prompt, template_options, now, options))

    # ---- OpenAI's lines

    def _begin_openai(self, work: Work) -> None:
        job = self._read_job(work.entry.content)
        work.job = job
        work.seed = seed_of_id(self.plan.seed, work.entry.id) if job.seed is None else job.seed
        for i, prompt in enumerate(job.prompts):
            for k in range(job.n):
                options = {**job.options, "seed": seed_of_choice(work.seed, i, k)}
                if job.scores_prompt:
                    work.scored.append(self._score(prompt, job, options))
                else:
                    work.requests.append(self._submit(prompt, job.template_options, job.date, options))

    def _read_job(self, content: Mapping[str, Any]) -> Job:
        """What a line asks for, with the options of the plan where it has none."""
        fields = ("custom_id", "method", "url", "body")
        unknown = next((name for name in content if name not in fields), None)
        if unknown is not None:
            raise RequestError(f"{unknown[:40]}: unknown field; there are {', '.join(fields)}", unknown)
        method, url, body = string(content, "method"), string(content, "url"), mapping(content, "body")
        if string(content, "custom_id") is None:
            raise RequestError("custom_id: expected a string, found none", "custom_id")
        if method not in (None, "POST"):
            raise RequestError(f"method: expected POST, found {method[:20]!r}", "method")
        read = READERS.get(url or "")
        if read is None:
            found = "none" if url is None else repr(url[:40])
            raise RequestError(f"url: expected {' or '.join(READERS)}, found {found}", "url")
        if body is None:
            raise RequestError("body: expected an object, found none", "body")
        job = read(body)
        if job.stream:
            raise RequestError("stream: expected false, as nobody reads along", "stream")
        if job.model is not None and job.model != self._name:
            raise RequestError(f"model: expected {self._name!r}, found {job.model[:80]!r}", "model")
        own = {name: value for name, value in job.options.items() if value not in (None, [])}
        if all(body.get(name) is None for name in LIMITS):
            own.pop("max_tokens", None)
        options = {"max_tokens": job.options.get("max_tokens"), **self._with_defaults(own)}
        return replace(job, options=cast(Options, options))

    def _score(self, prompt: Prompt, job: Job, options: Mapping[str, Any]) -> Text:
        """A text with the log-probabilities of its prompt, which is computed between the steps of other requests."""
        transformer, tokenizer = self._llama.transformer, self._llama.tokenizer
        sequence, _ = new_request(transformer.config, tokenizer, prompt, cast(Options, options))
        parts = score_and_continue(transformer, sequence, job.top_logprobs or 0)
        text, tokens, reason = self._decoded(prompt), list[TokenScore](), sequence.finish_reason
        while (part := self.engine.call(partial(next, parts, None))) is not None:
            text += part.text
            tokens += part.scores
            reason = part.finish_reason or reason
        n_prompt = sequence.n_prompt
        return Text(Delta(text, tokens, reason), n_prompt, len(tokens) - n_prompt, 0)

    def _text(self, job: Job | None, request: Request) -> Text:
        """What a request at its end has made."""
        done = request.wait()
        scores: list[TokenScore] = []
        if job is not None and job.top_logprobs is not None and done.logprobs and done.top_logprobs:
            pairs = zip(done.tokens, done.logprobs, done.top_logprobs, strict=True)
            scores = [TokenScore(token, logprob, top[: job.top_logprobs]) for token, logprob, top in pairs]
        delta = Delta(done.text, scores, done.finish_reason)
        return Text(delta, done.prompt_tokens, done.generation_tokens, request.cached_tokens)

    def _openai_answer(self, work: Work, texts: list[Text]) -> dict[str, Any]:
        digest = f"{work.entry.request:016x}"
        refusal = None if work.error is None else _refusal(work.error)
        response = {
            "status_code": 200 if refusal is None else 400,
            "request_id": f"req_{digest}",
            "body": self._body(work, texts, digest) if refusal is None else refusal,
        }
        error = refusal and {name: refusal["error"][name] for name in ("code", "message")}
        return {"id": f"batch_req_{digest}", "custom_id": work.entry.id, "response": response, "error": error}

    def _body(self, work: Work, texts: list[Text], digest: str) -> dict[str, Any]:
        """What the server would have answered, but for the time and what depends on other requests."""
        job = work.job
        assert job is not None
        head = {
            "id": f"{'chatcmpl' if job.is_chat else 'cmpl'}-{digest}",
            "created": 0,
            "model": self._name,
            "system_fingerprint": self._fingerprint(_has_constraint(job.options)),
            "seed": work.seed,
            **({"date": (job.date or self.plan.date).isoformat()} if job.is_chat else {}),
        }
        deltas = [text.delta for text in texts]
        if job.echo and not job.scores_prompt:
            prompts = [self._decoded(prompt) for prompt in job.prompts for _ in range(job.n)]
            deltas = [delta._replace(text=prompt + delta.text) for prompt, delta in zip(prompts, deltas, strict=True)]
        prompt_tokens = sum(text.prompt_tokens for text in texts[:: job.n])
        used = usage(prompt_tokens, sum(text.generation_tokens for text in texts), 0)
        del used["prompt_tokens_details"]  # which depend on other requests
        answer = Answer(self._llama.tokenizer, job.is_chat, head, job.top_logprobs is not None, include_usage=False)
        return answer.whole(deltas, used)

    # ---- what both have

    def _with_defaults(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Options with those of the plan where there are none. A constraint of the line takes the place of the plan's."""
        replaced = CONSTRAINTS if _has_constraint(own) else ()
        return {**{name: value for name, value in self.plan.options.items() if name not in replaced}, **own}

    def _submit(
        self, prompt: Prompt, template_options: Mapping[str, Any] | None, now: date | None, options: Mapping[str, Any]
    ) -> Request:
        if _has_constraint(options):
            self.plan.check_llguidance()
        if now is None and is_conversation(prompt):
            now = self.plan.date
        return self.engine.submit(prompt, template_options=template_options, now=now, **cast(Options, options))

    def _fingerprint(self, constrained: bool) -> str:
        if constrained not in self._fingerprints:
            self._fingerprints[constrained] = fingerprint(self._llama.transformer, self._llama.tokenizer, constrained)
        return self._fingerprints[constrained]

    def _decoded(self, prompt: Prompt) -> str:
        return prompt if isinstance(prompt, str) else self._llama.tokenizer.decode(cast("list[int]", prompt))


def _own_answer(work: Work, completions: list[Completion]) -> dict[str, Any]:
    """All lines have the same names, but for what `logprobs` adds."""
    answer: dict[str, Any] = {
        "id": work.entry.id,
        "request": f"{work.entry.request:016x}",
        "text": None,
        "finish_reason": "error",
        "prompt_tokens": None,
        "generation_tokens": None,
        "seed": None,
    }
    if work.error is not None:
        return {**answer, "error": str(work.error)}
    [done] = completions
    answer |= {name: getattr(done, name) for name in answer if name not in ("id", "request")}
    if done.logprobs and done.top_logprobs:
        answer["tokens"] = done.tokens
        answer["logprobs"] = [finite(logprob) for logprob in done.logprobs]
        answer["top_logprobs"] = [_finite_pairs(top) for top in done.top_logprobs]
    return {**answer, "error": None}


def _read_now(text: str | None) -> date | None:
    """ "2026-01-31" as a date."""
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise RequestError("now: expected a date such as 2026-01-31, found another text", "now") from None


def _finite_pairs(top: TopLogprobs) -> list[tuple[int, float]]:
    return [(token, finite(logprob)) for token, logprob in top]


def _refusal(error: Exception) -> dict[str, Any]:
    """The body of the answer to a line that is wrong."""
    param, message = getattr(error, "param", None), str(error)
    too_long = param == "prompt" and "(the context)" in message
    code = "context_length_exceeded" if too_long else "invalid_request"
    return error_body(message, "invalid_request_error", param, code)


def _has_constraint(options: Mapping[str, Any]) -> bool:
    return any(options.get(name) is not None for name in CONSTRAINTS)
