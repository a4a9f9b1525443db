"""Rows of tables as entries: what a column may hold, what is missing, what is wrong."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import numpy as np
import pytest

from llama2c.batch.columns import RESULTS, Names, entries_of, id_of, lists_of, plain, results_of, with_results
from llama2c.batch.lines import Entry
from llama2c.errors import RequestError

from .conftest import entries_of as entries_of_lines

NAMES = Names(id="id")


def objects(*values: Any) -> Any:
    """A column as Ray Data hands it."""
    found = np.empty(len(values), object)
    found[:] = values
    return found


def rows(table: Any, names: Names = NAMES, first: int = 0) -> list[Entry]:
    return list(entries_of(lists_of(table, names), names, first))


def test_a_row_is_the_entry_of_the_same_line() -> None:
    [prompt, chat] = rows(
        {
            "prompt": objects("Once", None),
            "messages": objects(None, np.array([{"role": "user", "content": "Hi", "name": None}], object)),
            "id": objects("a", np.int64(5)),
            "max_tokens": np.array([np.nan, 9.0]),
            "temperature": np.array([0.5, np.nan]),
            "stop": objects(np.array([".", "!"], object), None),
            "url": objects("not", "read"),
        }
    )
    assert (prompt.id, prompt.content) == ("a", {"prompt": "Once", "temperature": 0.5, "stop": [".", "!"]})
    message = {"role": "user", "content": "Hi", "name": None}
    assert (chat.id, chat.content) == (5, {"messages": [message], "max_tokens": 9})
    assert (prompt.number, prompt.position, chat.number, chat.position) == (1, 0, 2, 1)
    [line] = entries_of_lines({"prompt": "Once", "temperature": 0.5, "stop": [".", "!"]})
    assert prompt.content == line.content and prompt.error is None


@pytest.mark.parametrize("make", [np.array, list, tuple, lambda values: objects(*values)])
def test_columns_of_every_kind(make: Any) -> None:
    found = rows({"prompt": make(["a", "b"]), "id": make([1, 2])}, first=10)
    assert [(entry.number, entry.position, entry.id, entry.content) for entry in found] == [
        (11, 10, 1, {"prompt": "a"}),
        (12, 11, 2, {"prompt": "b"}),
    ]


def test_ids_of_tokens_in_an_array_of_two_dimensions() -> None:
    found = rows({"prompt": np.array([[1, 5], [1, 6]])}, Names())
    assert [entry.content for entry in found] == [{"prompt": [1, 5]}, {"prompt": [1, 6]}]
    assert [entry.id for entry in found] == ["line-1", "line-2"]


def test_the_names_of_columns_and_prompts_of_a_chat() -> None:
    [entry] = rows({"question": ["Why?"], "key": ["k"]}, Names(prompt="question", id="key", chat=True))
    assert (entry.id, entry.content) == ("k", {"messages": [{"role": "user", "content": "Why?"}]})


def test_json_in_a_string() -> None:
    table = {"messages": ['[{"role": "user", "content": "Hi"}]'], "schema": ['{"type": "string"}'], "logit_bias": ['{"5": 1}']}
    [entry] = rows(table, Names())
    assert entry.content == {
        "messages": [{"role": "user", "content": "Hi"}],
        "schema": {"type": "string"},
        "logit_bias": {"5": 1},
    }


def test_values_as_json_has_them() -> None:
    class NAType:
        """What pandas has for a missing value."""

    class Pair(tuple[Any, ...]):
        pass

    assert plain(np.float32(0.5)) == 0.5 and type(plain(np.int8(3))) is int
    assert plain({1: [np.nan, Pair((NAType(), date(2026, 1, 31)))]}) == {"1": [None, [None, "2026-01-31"]]}
    assert plain(datetime(2026, 1, 31, 5)) == "2026-01-31"
    assert plain(True) is True and plain(float("inf")) == float("inf")


def test_integers_that_a_column_has_as_floats() -> None:
    found = rows({"prompt": ["a"] * 3, "seed": [3.0, 2.0**60, 0.5], "top_k": [1.0, None, 2]}, Names())
    assert [entry.content.get("seed") for entry in found] == [3, 2.0**60, 0.5]
    assert type(found[0].content["seed"]) is int and type(found[1].content["seed"]) is float
    assert [entry.content.get("top_k") for entry in found] == [1, None, 2]
    assert id_of({"id": 7.0}, NAMES, 1) == 7


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": None, "messages": None}, "prompt: expected a prompt or messages, found neither"),
        ({"prompt": "a", "messages": "[]"}, "prompt: expected either a prompt or messages, found both"),
        ({"prompt": None, "messages": "[{"}, "messages: expected valid JSON, found another text"),
        ({"prompt": b"a"}, "row: expected values that JSON has, found others"),
        ({"prompt": "a", "id": 0.5}, "id: expected a string or an integer, found float"),
        ({"prompt": "a", "id": True}, "id: expected a string or an integer, found bool"),
    ],
)
def test_a_row_that_is_wrong(row: dict[str, Any], message: str) -> None:
    first, second = rows({name: [value, "b" if name == "prompt" else None] for name, value in row.items()}, _names(row))
    assert first.error is not None and str(first.error).startswith(message)
    assert first.content == {} and second.error is None


def _names(row: dict[str, Any]) -> Names:
    return Names(id="id" if "id" in row else None)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"text": ["a"]}, "batch: expected a column 'prompt' or 'messages', found text"),
        ({}, "batch: expected a column 'prompt' or 'messages', found no columns"),
        ({"prompt": ["a"]}, "batch: expected a column 'id' with ids, found prompt"),
        ({"prompt": ["a"], "id": ["a"], "error": [1]}, "error: expected no column of this name"),
        ({"prompt": ["a"], "id": []}, "batch: expected columns of one length, found prompt with 1, id with 0"),
    ],
)
def test_a_table_that_is_wrong(table: Any, message: str) -> None:
    with pytest.raises(RequestError) as error:
        rows(table)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("table", [[{"prompt": "a"}], "prompt", None, {"prompt": "abc"}])
def test_what_is_no_table(table: Any) -> None:
    with pytest.raises(TypeError, match=r"batch: expected a dict of columns|prompt: expected a column"):
        lists_of(table, Names())


def test_the_columns_of_answers() -> None:
    good = {"id": "a", "text": "x", "finish_reason": "stop", "prompt_tokens": 2, "generation_tokens": 3, "error": None}
    wrong = {"text": None, "finish_reason": "error", "prompt_tokens": None, "generation_tokens": None, "error": "no"}
    results = results_of([good, wrong], ["f", "g"])
    table = {"prompt": ["a", "b"]}
    found = with_results(table, results)
    assert table == {"prompt": ["a", "b"]}
    assert list(found) == ["prompt", *RESULTS]
    assert {name: list(found[name]) for name in RESULTS} == {
        "text": ["x", None],
        "finish_reason": ["stop", "error"],
        "prompt_tokens": [2, 0],
        "generation_tokens": [3, 0],
        "error": [None, "no"],
        "fingerprint": ["f", "g"],
    }
    assert [np.asarray(found[name]).dtype for name in RESULTS] == [object, object, np.int64, np.int64, object, object]
    assert {name: len(values) for name, values in with_results({}, results_of([], [])).items()} == dict.fromkeys(RESULTS, 0)
