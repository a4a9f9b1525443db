"""Many prompts from any iterable: their Completions in the same order, as they are ready."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from ..errors import RequestError, check_int
from ..generation import Options
from ..requests import Completion, Prompt, complete
from ..sampler import Sampler
from .request import Request

if TYPE_CHECKING:
    from .engine import Engine

OnError: TypeAlias = Literal["raise", "return"]
N_SEEDS = 2**64
AT_ONCE = 2  # times as many requests are begun as run at once, so that none has to be waited for
AHEAD = 4  # times as many prompts are read ahead, where one at the front takes long


def check_arguments(prompts: Iterable[Any], on_error: OnError, seed: int | None) -> None:
    """TypeError or RequestError: one of them is wrong."""
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
        raise TypeError(f"prompts: expected an iterable of prompts, found {type(prompts).__name__}")
    if on_error not in ("raise", "return"):
        raise RequestError(f"on_error: expected 'raise' or 'return', found {on_error!r}", "on_error")
    if seed is not None:
        check_int("seed", seed, 0, N_SEEDS - 1)


def completions(
    engine: Engine, prompts: Iterable[Prompt | Mapping[str, Any]], on_error: OnError, options: Options
) -> Iterator[Completion]:
    """The Completions of the prompts. What is raised, by a prompt or by the iterable, comes after those before it."""
    source: Iterator[tuple[int, Any]] | None = enumerate(prompts)
    pending: deque[Request | Completion] = deque()
    failure: Exception | None = None
    try:
        while source is not None or pending:
            room = _has_room(pending, engine.max_sequences)
            if source is not None and room:
                try:
                    number, prompt = next(source)
                    pending.append(_begin(engine, number, prompt, options))
                except StopIteration:
                    source = None
                except Exception as error:  # of the iterable
                    source, failure = None, error
            if pending and (source is None or not room or _is_done(pending[0])):
                done = pending.popleft()
                completion = done if isinstance(done, Completion) else done.wait()
                if completion.error is not None and on_error == "raise":
                    raise completion.error
                yield completion
        if failure is not None:
            raise failure
    finally:
        for left in pending:
            if isinstance(left, Request):
                left.cancel()


def _has_room(pending: deque[Request | Completion], max_sequences: int) -> bool:
    """Whether to read another prompt before the next Completion is given out."""
    n_working = sum(not _is_done(request) for request in pending)
    return n_working < AT_ONCE * max_sequences and len(pending) < AHEAD * max_sequences


def _is_done(request: Request | Completion) -> bool:
    return request.finish_reason is not None


def _begin(engine: Engine, number: int, prompt: Prompt | Mapping[str, Any], options: Options) -> Request | Completion:
    """The request of one prompt; if it is a bad one, the Completion that says so."""
    own: dict[str, Any] = dict(options)
    if own.get("seed") is not None:
        own["seed"] = (own["seed"] + number) % N_SEEDS
    try:
        if isinstance(prompt, Mapping):
            own |= prompt
            prompt = pop_prompt(own)
        return engine.submit(prompt, **cast(Options, own))
    except (TypeError, ValueError) as error:
        seed = own.get("seed")
        return complete([], 0, seed if isinstance(seed, int) else Sampler().seed, "error", error)


def pop_prompt(own: dict[str, Any]) -> Prompt:
    """The prompt of a dict, taken out of it: {"prompt": "Once", "max_tokens": 5} -> "Once"."""
    if ("prompt" in own) == ("messages" in own):
        found = ", ".join(own) or "nothing"
        raise RequestError(f"prompt: expected a dict with either 'prompt' or 'messages', found {found}", "prompt")
    if "n" in own:
        raise RequestError("n: expected one request for each prompt, found several", "n")
    prompt: Prompt = own.pop("prompt") if "prompt" in own else own.pop("messages")
    return prompt
