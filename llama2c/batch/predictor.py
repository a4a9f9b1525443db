"""Predictor: one class for Ray Data, pandas and Spark. A batch of columns in, with the columns of the results out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ..errors import RequestError, RoomError, check_int
from ..generation import Options
from ..locate import resolve
from ..requests import check_options
from ..transformer import KVType
from .columns import Lists, Names, entries_of, lists_of, results_of, with_results
from .lines import Entry
from .opened import Model, opened
from .plan import make_plan
from .run import Runner
from .work import Worker

if TYPE_CHECKING:
    from typing_extensions import Unpack

Table = TypeVar("Table")
NO_SEED = "seed: expected an id_column, a column `seed` or temperature 0, as a row must not depend on its place, found none"


class Predictor:
    """Answers the rows of tables: predictor(table) is the table with six more columns.

    model            a path, or the name of a downloaded model, as load() takes it; None: the one that comes with llama2c
    tokenizer, kv    as load() takes them
    n_threads        None: OMP_NUM_THREADS, as Ray sets it, else what is fastest
    prompt_column    texts to continue, or lists of token ids
    messages_column  messages of a chat, also as JSON in a string. A row has either a prompt or messages
    id_column        an id for each row, from which its seed is made. Only rows with a seed, or with temperature 0, need none
    chat             prompts are messages of a user
    now              the date that chat templates see; None: today
    max_sequences    rows that are worked on at once
    cache_bytes      memory for them; None: half of what is free, or less where a process has a share of the cores
    fingerprint      the model has to have this one (Llama.fingerprint); None: any
    options          those of Llama.stream, for rows that have none of their own. `seed` is that of the run: 1 without it

    A table is a dict of arrays, a DataFrame of pandas or a pyarrow.Table, and so is the result. Columns with names of options
    (`temperature`, `max_tokens`, `seed`, ...) count for their rows; what is missing in a row is as without the column. Other
    columns are left as they are. A row depends on itself and these arguments alone: on no other row, and not on how a table was
    cut into batches, in which order they come, or where they are answered.

    The result has `text`, `finish_reason`, `prompt_tokens`, `generation_tokens`, `error` (None, or what is wrong with the row,
    which then has no text) and `fingerprint`. All Predictors of a process with the same model share one engine. A pickle has
    the arguments; loading it opens the model again.

    Errors are those of load() and Llama.stream; RequestError: a column is missing, or has the name of a result.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        tokenizer: str | os.PathLike[str] | None = None,
        kv: KVType = "float32",
        n_threads: int | None = None,
        prompt_column: str = "prompt",
        messages_column: str = "messages",
        id_column: str | None = None,
        chat: bool = False,
        now: date | None = None,
        max_sequences: int = 32,
        cache_bytes: int | None = None,
        fingerprint: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        tokenizer = None if tokenizer is None else os.path.abspath(tokenizer)
        self._model = Model(absolute(model), tokenizer, kv, n_threads, max_sequences, cache_bytes)
        self._names = Names(prompt_column, messages_column, id_column, chat)
        seed = check_int("seed", options.get("seed", 1), 0, 2**64 - 1)
        defaults = {name: value for name, value in options.items() if name != "seed"}
        self._opened = opened(self._model)
        llama = self._opened.llama
        check_options(llama.transformer.config, llama.tokenizer, options)
        if fingerprint is not None:
            self._opened.check_fingerprint(fingerprint)
        plan = make_plan(llama, seed=seed, options=defaults)
        self._plan = plan if now is None else replace(plan, date=now)
        self._arguments: dict[str, Any] = {
            "prompt_column": prompt_column, "messages_column": messages_column, "id_column": id_column, "chat": chat,
            "now": self._plan.date, "fingerprint": fingerprint, **options,
        }  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        how = asdict(self._model)
        return partial(type(self), how.pop("path"), **how, **self._arguments), ()

    def __repr__(self) -> str:
        return f"Predictor({self._model.path!r}, fingerprint={self._plan.fingerprint!r})"

    @property
    def fingerprint(self) -> str:
        """That of the model, without the version of llguidance, which decides what rows with a constraint get."""
        return self._plan.fingerprint

    @overload
    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]: ...

    @overload
    def __call__(self, batch: Table) -> Table: ...

    def __call__(self, batch: Any) -> Any:
        """A batch with the columns of the results. The rows are in their order."""
        lists = lists_of(batch, self._names)
        self._check_seeds(lists)
        entries = [self._checked(entry) for entry in entries_of(lists, self._names)]
        answers: list[Mapping[str, Any]] = []
        self._opened = opened(self._model)  # another one after a fork
        worker = Worker(self._opened.llama, self._opened.engine, self._plan)
        with Runner(worker, lambda answered: answers.append(json.loads(answered.line)), ordered=True) as runner:
            for entry in entries:
                add_or_refuse(runner, entry)
            runner.finish()
        fingerprints = [self._opened.fingerprint_of({**self._plan.options, **entry.content}) for entry in entries]
        return with_results(batch, results_of(answers, fingerprints))

    def _check_seeds(self, lists: Lists) -> None:
        """RequestError: no row can have a seed."""
        if "seed" not in lists and "temperature" not in lists and not self._has_seed({}):
            raise RequestError(NO_SEED, "id_column")

    def _checked(self, entry: Entry) -> Entry:
        if entry.error is None and not self._has_seed(entry.content):
            return entry._replace(error=RequestError(NO_SEED, "seed"))
        return entry

    def _has_seed(self, content: Mapping[str, Any]) -> bool:
        """Whether a row has a seed, or needs none."""
        temperature = content.get("temperature", self._plan.options.get("temperature", 1.0))
        return self._names.id is not None or "seed" in content or temperature == 0


def add_or_refuse(runner: Runner, entry: Entry) -> None:
    """Begin an entry. If it can never have the memory that it needs here, that is its error."""
    try:
        runner.add(entry)
    except RoomError as error:
        message = str(error).removeprefix(f"line {entry.number}: ")  # a row has no number of its own
        runner.add(entry._replace(error=RoomError(message, error.param)))


def absolute(model: str | os.PathLike[str] | None) -> str | None:
    """A model for processes with another working directory. The name of a downloaded one stays a name, as does None."""
    if model is None:
        return None
    return os.path.abspath(model) if resolve(model) == model else os.fspath(model)
