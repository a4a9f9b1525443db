"""Columns: the rows of a table as entries, and their answers as more columns.

A table is a dict of arrays, a DataFrame of pandas or a Table of pyarrow. Neither package is imported unless its table comes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np

from ..errors import RequestError
from ..generation import Options
from .lines import Entry, hash_of, own_id

Lists = Mapping[str, Sequence[Any]]
RESULTS = ("text", "finish_reason", "prompt_tokens", "generation_tokens", "error", "fingerprint")
COUNTS = ("prompt_tokens", "generation_tokens")
OPTIONS = (*sorted(Options.__optional_keys__), "template_options", "now")
INTEGERS = ("max_tokens", "seed", "top_k", "logprobs")  # which pandas makes floats of where some are missing
PARSED = ("messages", "schema", "logit_bias", "template_options")  # may be JSON in a string
LARGEST_FLOAT = 2**53  # of the integers that a float has exactly


@dataclass(frozen=True, slots=True)
class Names:
    """Which columns are read, besides those that have the names of options.

    id        None: there are no ids
    messages  of a chat; a row has either a prompt or messages
    chat      prompts are messages of a user
    """

    prompt: str = "prompt"
    messages: str = "messages"
    id: str | None = None
    chat: bool = False


# ---------------------------------------------------------------------------
# tables


def lists_of(table: Any, names: Names) -> dict[str, list[Any]]:
    """The columns that are read, as lists of the same length. RequestError: one is missing, or one of RESULTS is there."""
    columns = _columns(table)
    check_names(columns, names)
    lists = {name: _list_of(name, columns[name]) for name in columns if name in read_names(names)}
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} with {n}" for name, n in lengths.items())
        raise RequestError(f"batch: expected columns of one length, found {found}")
    return lists


def read_names(names: Names) -> tuple[str, ...]:
    """The columns that are read, if they are there."""
    return tuple(name for name in (names.prompt, names.messages, names.id, *OPTIONS) if name is not None)


def check_names(columns: Iterable[str], names: Names) -> None:
    """RequestError: a column that is needed is missing, or one of RESULTS is there already."""
    columns = list(columns)
    found = ", ".join(map(str, columns))[:200] or "no columns"
    if names.prompt not in columns and names.messages not in columns:
        raise RequestError(f"batch: expected a column {names.prompt!r} or {names.messages!r}, found {found}")
    if names.id is not None and names.id not in columns:
        raise RequestError(f"batch: expected a column {names.id!r} with ids, found {found}")
    for name in RESULTS:
        if name in columns:
            raise RequestError(f"{name}: expected no column of this name, as the result gets one (rename it)")


def with_results(table: Any, results: Lists) -> Any:
    """A copy of a table with more columns, those of RESULTS."""
    made = {name: np.array(values, np.int64 if name in COUNTS else object) for name, values in results.items()}
    if isinstance(table, Mapping):
        return {**table, **made}
    if hasattr(table, "assign"):
        return table.assign(**made)
    import pyarrow as pa

    for name, values in made.items():
        kind = pa.int64() if name in COUNTS else pa.string()
        table = table.append_column(name, pa.array(values, kind))
    return table


def _columns(table: Any) -> dict[str, Any]:
    if isinstance(table, Mapping):
        return dict(table)
    if hasattr(table, "assign") and hasattr(table, "columns"):  # pandas
        return {name: table[name] for name in table.columns}
    if hasattr(table, "append_column"):  # pyarrow
        return dict(zip(table.column_names, table.columns, strict=True))
    raise TypeError(f"batch: expected a dict of columns, a DataFrame or a pyarrow.Table, found {type(table).__name__}")


def _list_of(name: str, values: Any) -> list[Any]:
    if isinstance(values, (str, bytes, Mapping)):
        raise TypeError(f"{name}: expected a column, found {type(values).__name__}")
    for method in ("to_pylist", "tolist"):  # of pyarrow; of NumPy and pandas
        if hasattr(values, method):
            values = getattr(values, method)()
    return list(values)


# ---------------------------------------------------------------------------
# rows


def entries_of(lists: Lists, names: Names, first: int = 0) -> Iterator[Entry]:
    """The entries of rows. first: the rows before them; row i has the number first + i + 1.

    A row without an id has own_id(). What is wrong with a row is in its entry.
    """
    n_rows = len(next(iter(lists.values()), ()))
    for i in range(n_rows):
        row = {name: plain(values[i]) for name, values in lists.items()}
        number = first + i + 1
        id: str | int = own_id(number)
        try:
            id = id_of(row, names, number)
            content = _content_of(row, names)
            request = hash_of(_canonical(content))
            yield Entry(number, 0, first + i, id, request, content, False, None)
        except RequestError as error:
            request = hash_of(str(error).encode("utf-8", "surrogatepass"))
            yield Entry(number, 0, first + i, id, request, {}, False, error)


def id_of(row: Mapping[str, Any], names: Names, number: int) -> str | int:
    """The id of a row, as JSON has it: own_id() where there is none."""
    id = None if names.id is None else _integer(row.get(names.id))
    if id is None:
        return own_id(number)
    if isinstance(id, str) or type(id) is int:
        return id
    raise RequestError(f"id: expected a string or an integer, found {type(id).__name__}", "id")


def _content_of(row: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """What a line of JSON would have, without what is missing."""
    content = {name: _value_of(name, row[name]) for name in OPTIONS if row.get(name) is not None}
    prompt, messages = row.get(names.prompt), row.get(names.messages)
    if prompt is not None:
        content |= {"messages": [{"role": "user", "content": prompt}]} if names.chat else {"prompt": prompt}
    if messages is not None:
        if prompt is not None:
            raise RequestError("prompt: expected either a prompt or messages, found both", "prompt")
        content["messages"] = _value_of("messages", messages)
    if prompt is None and messages is None:
        raise RequestError("prompt: expected a prompt or messages, found neither", "prompt")
    return content


def _value_of(name: str, value: Any) -> Any:
    if name in INTEGERS:
        return _integer(value)
    if name in PARSED and isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise RequestError(f"{name}: expected valid JSON, found another text", name) from None
    return value


def _integer(value: Any) -> Any:
    """3.0 -> 3; anything else is as it was."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_FLOAT else value


def _canonical(content: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(content, sort_keys=True).encode()
    except (TypeError, ValueError) as error:
        raise RequestError(f"row: expected values that JSON has, found others ({error})") from None


def plain(value: Any) -> Any:
    """A value as JSON has it: arrays become lists, dates texts, and what is missing (NaN, NA, NaT) None."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, date):
        return (value.date() if isinstance(value, datetime) else value).isoformat()
    return value


# ---------------------------------------------------------------------------
# answers


def results_of(answers: Iterable[Mapping[str, Any]], fingerprints: Iterable[str]) -> dict[str, list[Any]]:
    """The columns of RESULTS, from the lines of a batch. Where there is an error, the text is missing and counts are 0."""
    rows = [{**answer, "fingerprint": found} for answer, found in zip(answers, fingerprints, strict=True)]
    return {name: [(row[name] or 0) if name in COUNTS else row[name] for row in rows] for name in RESULTS}
