"""IN: lines in any chunks, every format, ids, and what is wrong with a line."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import pytest

from llama2c import RequestError
from llama2c.batch.ids import key_of
from llama2c.batch.lines import MOST_BYTES, Entry, Shape, format_of, lines_of, read_blocks, read_entries

from .conftest import entries_of, reader

TEXT = Shape("text")
CSV = Shape("csv", "text")


def read(data: bytes, shape: Shape, most: int = 1 << 20) -> list[Entry]:
    return list(read_entries(reader(data, most), shape, "IN"))


def error_of(*lines: Any) -> str:
    [entry] = entries_of(*lines)
    assert entry.error is not None
    assert entry.id == "line-1"
    return str(entry.error)


# ---------------------------------------------------------------------------
# lines


@pytest.mark.parametrize("most", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("data", [b"", b"\n", b"a", b"a\n", b"a\nbc\n\n\nd", b"a\r\nb\r\n", "ż\n🐢".encode(), b"\r\r\n"])
def test_lines_in_any_chunks(data: bytes, most: int) -> None:
    lines = list(chain.from_iterable(map(lines_of, read_blocks(reader(data, most)))))
    texts = data.split(b"\n")
    ends = [len(b"\n".join(texts[: i + 1])) + 1 for i in range(len(texts))]
    if not texts[-1]:
        texts.pop()
    assert [line.data for line in lines] == [text.removesuffix(b"\r") for text in texts]
    assert [line.number for line in lines] == list(range(1, len(texts) + 1))
    assert [line.end for line in lines] == [min(end, len(data)) for end in ends[: len(texts)]]


@pytest.mark.parametrize("most", [1, 4, 5, 6, 100])
def test_a_line_that_is_too_long_is_cut_and_the_next_is_read(most: int) -> None:
    blocks = read_blocks(reader(b"12345\n123456\n" + b"x" * 1000 + b"\nab\n" + b"y" * 9, most), 5)
    lines = [line for block in blocks for line in lines_of(block, 5)]
    assert [(line.data, line.too_long) for line in lines] == [
        (b"12345", False), (b"12345", True), (b"xxxxx", True), (b"ab", False), (b"yyyyy", True),
    ]  # fmt: skip


def test_a_line_of_100_megabytes_takes_no_such_memory() -> None:
    left, largest = 100, 0

    def endless(n: int) -> bytes:
        nonlocal left
        left -= 1
        return b'{"prompt": "a"}\n' if left == 0 else b"x" * (1 << 20) if left > 0 else b""

    for block in read_blocks(endless):
        largest = max(largest, len(block.data))
    assert largest == MOST_BYTES
    [entry] = entries_of(b"x" * (MOST_BYTES + 1))
    assert str(entry.error) == f"line: expected at most {MOST_BYTES} bytes, found more"


@pytest.mark.parametrize("shape", [Shape(), TEXT, CSV])
def test_utf_16_is_named(shape: Shape) -> None:
    with pytest.raises(RequestError, match=r"^IN: expected UTF-8, found UTF-16$"):
        read('{"prompt": "a"}\n'.encode("utf-16"), shape)


def test_formats_by_names() -> None:
    names = ["a.csv", "A.CSV", "a.txt", "a.jsonl", "a", "-", "a.csv.gz"]
    assert list(map(format_of, names)) == ["csv", "csv", "text", "jsonl", "jsonl", "jsonl", "jsonl"]


# ---------------------------------------------------------------------------
# JSON Lines


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False])
def test_json_lines(end: bytes, mark: bytes, last: bool) -> None:
    lines = [b'{"prompt": "a", "id": "x"}', b"", b'  {"prompt": "\xc5\xbc", "id": 5}', b" \t", b'{"prompt": "c"}']
    found = read(mark + end.join(lines) + end * last, Shape())
    assert [(entry.number, entry.position, entry.id, entry.content.get("prompt")) for entry in found] == [
        (1, 0, "x", "a"), (3, 1, 5, "ż"), (5, 2, "line-5", "c"),
    ]  # fmt: skip
    assert all(entry.error is None and not entry.openai for entry in found)


def test_the_hash_is_of_the_line() -> None:
    same = entries_of(b'{"prompt": "a", "top_k": 1}', b'{"prompt": "a", "top_k": 1}\r')
    other = entries_of(b'{"prompt": "a", "top_k": 2}', b'{"prompt": "b", "top_k": 1}', b'{"prompt": "a"}')
    assert same[0].request == same[1].request
    assert len({entry.request for entry in same + other}) == 4


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"{", "line: expected valid JSON"),
        (b"Once upon a time", "line: expected valid JSON"),
        (b'{"prompt": NaN}', "line: expected valid JSON"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", None),  # Python 3.10 may read it
        (b'{"a":' * 100000, "line: expected valid JSON"),
        (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "line: expected at most 64 lists and objects in each other, found more"),
        (b"5", "line: expected a JSON object, found a number"),
        (b'"a"', "line: expected a JSON object, found a string"),
        (b"null", "line: expected a JSON object, found null"),
        (b'{"prompt": "\xff"}', "line: expected valid UTF-8, found byte 0xFF at index 12"),
        (b'{"prompt": "a", "id": 1.5}', "id: expected a string or an integer, found a number"),
        (b'{"prompt": "a", "id": true}', "id: expected a string or an integer, found a boolean"),
        (b'{"custom_id": 5, "body": {}}', "custom_id: expected a string, found a number"),
    ],
)
def test_wrong_lines(line: bytes, error: str | None) -> None:
    if error is not None:
        assert error_of(line) == error
    found = entries_of({"prompt": "before"}, line, {"prompt": "after"})
    assert [entry.content.get("prompt") for entry in found][::2] == ["before", "after"]


def test_64_levels_are_enough() -> None:
    [entry] = entries_of(b'{"a":' + b"[" * 63 + b"]" * 63 + b"}")
    assert entry.error is None


def test_an_array_is_named() -> None:
    with pytest.raises(RequestError, match=r"^IN: expected JSON Lines, which has an object in each line, found an array$"):
        entries_of(b"[", {"prompt": "a"})
    assert entries_of({"prompt": "a"}, b"[]")[1].error is not None


def test_a_line_that_cannot_be_read_has_the_form_of_the_one_before() -> None:
    found = entries_of(b"?", {"custom_id": "a", "body": {}}, b"?", {"prompt": "b"}, b"?")
    assert [entry.openai for entry in found] == [False, True, True, False, False]


# ---------------------------------------------------------------------------
# text and CSV


def test_text() -> None:
    found = read(b"\xef\xbb\xbfOnce\r\n\r\n  a tab\t\n\xff\n{\"prompt\": 5}", TEXT)
    assert [(entry.id, entry.content.get("prompt")) for entry in found] == [
        ("line-1", "Once"), ("line-3", "  a tab\t"), ("line-4", None), ("line-5", '{"prompt": 5}'),
    ]  # fmt: skip
    assert str(found[2].error) == "line: expected valid UTF-8, found byte 0xFF at index 0"


def test_chat_makes_messages_of_prompts() -> None:
    [entry] = read(b"Hi\n", Shape("text", chat=True))
    assert entry.content == {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize("most", [1, 5, 1000])
def test_csv(most: int) -> None:
    data = 'n,text,id\r\n1,"a, ""b""\r\nc",x\r\n\r\n2,ż,\r\n3,"",y'.encode()
    found = read(data, CSV, most)
    assert [(entry.number, entry.position, entry.id, entry.content["prompt"]) for entry in found] == [
        (2, 0, "x", 'a, "b"\nc'), (5, 1, "line-5", "ż"), (6, 2, "y", ""),
    ]  # fmt: skip
    assert [entry.end for entry in found] == [data.index(b"\r\n\r\n") + 2, data.index(b"3,"), len(data)]


def test_csv_without_the_column() -> None:
    with pytest.raises(RequestError, match=r"^IN: expected a column 'text', found a, b \(--column names it\)$"):
        read(b"a,b\n1,2\n", CSV)
    with pytest.raises(RequestError, match="found none"):
        read(b"", CSV)


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (b"a", "line: expected 2 columns, found 1"),
        (b"a,b,c", "line: expected 2 columns, found 3"),
        (b"a,\xff", "line: expected valid UTF-8, found other bytes"),
        (b'a,"b"c', "line: expected valid CSV"),
    ],
)
def test_wrong_rows(row: bytes, error: str) -> None:
    found = read(b"id,text\nx,before\n" + row + b"\ny,after\n", CSV)
    assert [entry.id for entry in found] == ["x", "line-3", "y"]
    assert str(found[1].error) == error
    assert found[2].content == {"prompt": "after"}


def test_a_quote_that_is_not_closed_is_an_error_of_its_row() -> None:
    found = read(b'id,text\nx,before\ny,"open\nz,lost\n', CSV)
    assert [(entry.id, entry.error is None) for entry in found] == [("x", True), ("line-3", False)]


def test_prompts_in_csv_may_be_long() -> None:
    text = "word " * 100_000
    [entry] = read(f'text\n"{text}"\n'.encode(), CSV)
    assert entry.content == {"prompt": text}


def test_what_an_entry_has_does_not_depend_on_chunks() -> None:
    data = b"".join(json.dumps({"prompt": "x" * n, "id": n}).encode() + b"\n" for n in range(50))
    assert read(data, Shape(), 3) == read(data, Shape())


def test_lines_that_are_known_are_left_out() -> None:
    lines = [
        b'{"id": "a", "prompt": "x"}', b'{"prompt": "x", "id": "a"}', b' { "custom_id" : "\xc5\xbc", "body": {}}', b"?",
        b'{"id": "other", "id": "a"}', b'{"id": 5}', b'{"id": "a\\u0062"}', b'{"id": "\xff"}',
    ]  # fmt: skip
    plain = entries_of(*lines)
    answered = {(key_of(entry.id), entry.request.to_bytes(8, "big")) for entry in plain}
    asked: list[bytes] = []

    def known(keys: bytes, requests: bytes) -> list[bool]:
        pairs = [(keys[16 * i : 16 * i + 16], requests[8 * i : 8 * i + 8]) for i in range(len(requests) // 8)]
        asked.extend(key for key, _ in pairs)
        return [pair in answered for pair in pairs]

    assert list(read_entries(reader(lines[0] + b"\n" + lines[2] + b"\r\n" + lines[5]), Shape(), "IN", known)) == []
    [last] = read_entries(reader(b"\n".join([lines[2], lines[2], b"?"]), 90), Shape(), "IN", known)
    assert (last.number, last.position, last.id, last.openai) == (3, 2, "line-3", True)
    for most in (1 << 20, 7):
        asked.clear()
        found = list(read_entries(reader(b"\n".join([*lines, b""]), most), Shape(), "IN", known))
        assert asked[:3] == [key_of(id) for id in ("a", "ż", "other")] and asked[3] == key_of(5) and len(asked) == 5
        expected = [entry for i, entry in enumerate(plain) if i not in (0, 2, 5)]
        assert [entry._replace(error=None) for entry in found] == [entry._replace(error=None) for entry in expected]
        assert [str(entry.error) for entry in found] == [str(entry.error) for entry in expected]
