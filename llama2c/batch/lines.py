"""IN: the lines of a file or a pipe as entries, each with an id. JSON Lines, CSV or plain text, in UTF-8.

A line is never longer in memory than MOST_BYTES. What is wrong with a line is an entry, too.
The messages of errors are the same with every version of Python; what it says itself is their cause.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, zip_longest
from typing import Any, NamedTuple, NoReturn, TypeAlias

from ..errors import RequestError
from ..server.fields import DEPTH, name_of
from .ids import keys_of

# How most lines of JSON begin: with their id.
FIRST_ID = re.compile(rb'\s*\{\s*"(id|custom_id)"\s*:\s*("[^"\\]*"|-?\d+)')
MOST_BYTES = 8 << 20  # of a line; a longer one is an error. 8 MiB are two million tokens
CHUNK = 1 << 20  # bytes that are read at once
FORMATS = ("jsonl", "csv", "text")
ENDINGS = {".csv": "csv", ".txt": "text"}  # of names of files; others are JSON Lines


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which JSON does not have")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


class Block(NamedTuple):
    """Some bytes of IN: whole lines with their ends, which the last line of IN may lack, or one line that is too long."""

    number: int  # of the line before it
    end: int  # bytes of IN up to its end
    data: bytes  # of a line that is too long, the first of them
    too_long: bool


class RawLine(NamedTuple):
    """The bytes of a line, without its end: of a line that is too long, the first of them."""

    number: int  # from 1
    data: bytes
    end: int  # bytes of IN up to the end of the line
    too_long: bool


class Entry(NamedTuple):
    """A request of IN, or what is wrong with its line."""

    number: int  # of its (first) line
    end: int  # bytes of IN up to its end
    position: int  # of the entry among all, from 0
    id: str | int
    request: int  # a hash of the line: 64 bits
    content: Mapping[str, Any]
    openai: bool  # whether it is one of OpenAI's lines, and so is its answer
    error: RequestError | None


class Place(NamedTuple):
    """A place between two entries of JSON Lines: where the one before it is."""

    number: int
    end: int
    position: int
    openai: bool


START = Place(number=0, end=0, position=-1, openai=False)
# Keys of ids (key_of) and hashes of requests (hash_of), of 16 and 8 bytes each -> of which the answer is known, so that the
# request is not needed.
Known: TypeAlias = Callable[[bytes, bytes], Sequence[bool]]


@dataclass(frozen=True, slots=True)
class Shape:
    """How IN is written.

    format  one of FORMATS
    column  of CSV: the one with the prompts
    chat    of CSV and text: a prompt is the message of a user, and not a text to continue
    """

    format: str = "jsonl"
    column: str = "prompt"
    chat: bool = False


def format_of(path: str) -> str:
    """By the ending of a name: "a.csv" -> "csv"."""
    return ENDINGS.get(os.path.splitext(path)[1].lower(), "jsonl")


# ---------------------------------------------------------------------------
# bytes to lines


def read_blocks(read: Callable[[int], bytes], most: int = MOST_BYTES) -> Iterator[Block]:
    """What read(n) reads, which gives at most n bytes and b"" at the end. most: bytes of a line; the rest of it is left out."""
    number = end = 0
    rest = b""  # of a line whose end is not read yet
    too_long = False
    while chunk := read(CHUNK):
        place = chunk.find(b"\n") + 1 if too_long else 0
        if too_long and place:
            yield Block(number, end + place, rest, True)
            number, rest, too_long = number + 1, b"", False
        ending = chunk.rfind(b"\n") + 1
        if ending > place:
            data = rest + chunk[place:ending]
            yield Block(number, end + ending, data, False)
            number, rest = number + data.count(b"\n"), b""
        if not too_long:
            rest += chunk[ending:]
            if len(rest) > most:
                rest, too_long = rest[:most], True
        end += len(chunk)
    if rest:
        yield Block(number, end, rest, too_long)


def lines_of(block: Block, most: int = MOST_BYTES) -> list[RawLine]:
    """A \\r before the end is not of the line. most: as for read_blocks."""
    end = block.end - len(block.data)
    lines = []
    for number, text in enumerate(_split(block), block.number + 1):
        end = min(end + len(text) + 1, block.end)
        if block.too_long or len(text) > most:
            lines.append(RawLine(number, text[:most], end, True))
        else:
            lines.append(RawLine(number, text.removesuffix(b"\r"), end, False))
    return lines


def _split(block: Block) -> list[bytes]:
    """The lines, without \\n."""
    texts = block.data.split(b"\n")
    return texts if texts[-1] else texts[:-1]


def without_bom(blocks: Iterator[Block], name: str) -> Iterator[Block]:
    """The blocks without the mark that some programs write before UTF-8. RequestError: the mark is that of UTF-16."""
    for block in blocks:
        if block.number == 0:
            if block.data.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise RequestError(f"{name}: expected UTF-8, found UTF-16")
            block = block._replace(data=block.data.removeprefix(b"\xef\xbb\xbf"))
        yield block


# ---------------------------------------------------------------------------
# lines to entries


def read_entries(read: Callable[[int], bytes], shape: Shape, name: str, known: Known | None = None) -> Iterator[Entry]:
    """The entries of IN, which read(n) reads and `name` names. Ids may come twice.

    Of JSON Lines, those that are known are left out, unless it would take a parser to find their ids.
    RequestError: it is UTF-16, CSV without the column, or JSON that is not JSON Lines.
    """
    blocks = without_bom(read_blocks(read), name)
    if shape.format == "jsonl":
        return _read_json(blocks, name, known)
    lines = chain.from_iterable(map(lines_of, blocks))
    return _read_csv(lines, shape, name) if shape.format == "csv" else _read_text(lines, shape)


def continue_entries(read: Callable[[int], bytes], place: Place, name: str) -> Iterator[Entry]:
    """The entries of JSON Lines after a place. read(n) begins there."""
    blocks = (
        block._replace(number=place.number + block.number, end=place.end + block.end) for block in read_blocks(read)
    )
    return _read_json(without_bom(blocks, name), name, None, place)


def own_id(number: int) -> str:
    """The id of a line that has none, or none that can be used."""
    return f"line-{number}"


def _read_json(blocks: Iterable[Block], name: str, known: Known | None = None, place: Place = START) -> Iterator[Entry]:
    """A line that cannot be read is taken for one of OpenAI's if the last one was, so that its answer has their form."""
    index, openai = place.position, place.openai
    for block in blocks:
        forms = _known_forms(block, known) if known else []
        if forms and None not in forms:
            index, openai = index + len(forms), forms[-1] is True
            continue
        for line, form in zip_longest(lines_of(block), forms):
            if form is not None:
                index += 1
                openai = form
                continue
            if not line.data or line.data.isspace():
                continue
            index += 1
            if index == 0 and line.data.lstrip().startswith(b"["):
                raise RequestError(f"{name}: expected JSON Lines, which has an object in each line, found an array")
            entry = _json_entry(line, index, openai)
            openai = entry.openai
            yield entry


def _known_forms(block: Block, known: Known) -> list[bool | None]:
    """For each line: if it is known, whether it is one of OpenAI's; else None."""
    heads = list(map(FIRST_ID.match, _split(block)))
    found = [head for head in heads if head]
    keys = keys_of([head[2] for head in found])
    requests = b"".join([_digest(head.string.removesuffix(b"\r")) for head in found])
    are_known = iter(known(keys, requests))
    return [head[1] == b"custom_id" if head and next(are_known) else None for head in heads]


def _json_entry(line: RawLine, index: int, openai: bool) -> Entry:
    """The entry of a line. openai: what is assumed of a line that cannot be read."""
    number, data, end, _ = line
    try:
        content = _read_object(line)
        openai = "custom_id" in content or "body" in content
        id = _id_of(content, openai, number)
        return Entry(number, end, index, id, hash_of(data), content, openai, None)
    except RequestError as error:
        return Entry(number, end, index, own_id(number), hash_of(data), {}, openai, error)


def _read_text(lines: Iterator[RawLine], shape: Shape) -> Iterator[Entry]:
    index = -1
    for line in lines:
        number, data, end, _ = line
        if not data or data.isspace():
            continue
        index += 1
        entry = Entry(number, end, index, own_id(number), hash_of(data), {}, False, None)
        try:
            entry = entry._replace(content=_content_of(decoded(line), shape))
        except RequestError as error:
            entry = entry._replace(error=error)
        yield entry


def _read_csv(lines: Iterator[RawLine], shape: Shape, name: str) -> Iterator[Entry]:
    """Rows may have several lines. A column `id` has the ids, if there is one."""
    last: list[RawLine] = []  # the line that the reader has taken last

    def texts() -> Iterator[str]:
        for line in lines:
            last[:] = [line]
            yield line.data.decode("utf-8", "surrogateescape") + "\n"

    csv.field_size_limit(MOST_BYTES)
    reader = csv.reader(texts(), strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise RequestError(f"{name}: expected CSV, found: {error}") from None
    if shape.column not in header:
        columns = ", ".join(header) or "none"
        raise RequestError(f"{name}: expected a column {shape.column!r}, found {columns[:200]} (--column names it)")
    index, first = -1, reader.line_num + 1
    while True:
        wrong: RequestError | None = None
        row: list[str] | None = []
        try:
            row = next(reader, None)
        except csv.Error as error:
            wrong = RequestError("line: expected valid CSV")
            wrong.__cause__ = error
        if row is None:
            return
        number, first = first, reader.line_num + 1
        if not row and wrong is None:  # a blank line
            continue
        index += 1
        data = "\0".join(row).encode("utf-8", "surrogateescape")
        entry = Entry(number, last[0].end, index, own_id(number), hash_of(data or last[0].data), {}, False, wrong)
        yield entry if wrong else _row_entry(entry, header, row, last[0], shape)


def _row_entry(entry: Entry, header: list[str], row: list[str], line: RawLine, shape: Shape) -> Entry:
    """The entry of a row, which ends with a line."""
    try:
        if line.too_long:
            raise _too_long(line)
        if len(row) != len(header):
            raise RequestError(f"line: expected {len(header)} columns, found {len(row)}")
        values = dict(zip(header, row, strict=True))
        for value in values.values():
            _check_unicode(value)
        id = values.get("id") or entry.id
        return entry._replace(id=id, content=_content_of(values[shape.column], shape))
    except RequestError as error:
        return entry._replace(error=error)


def _content_of(text: str, shape: Shape) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]} if shape.chat else {"prompt": text}


def _read_object(line: RawLine) -> dict[str, Any]:
    text = decoded(line)
    try:
        content = _decode(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise RequestError("line: expected valid JSON") from error
    if not isinstance(content, dict):
        raise RequestError(f"line: expected a JSON object, found {name_of(content)}")
    if text.count("{") + text.count("[") > DEPTH and _is_deep(content, DEPTH):
        raise RequestError(f"line: expected at most {DEPTH} lists and objects in each other, found more")
    return content


def _is_deep(value: Any, most: int) -> bool:
    """Whether more than so many lists and dicts are in each other."""
    parts = value.values() if isinstance(value, dict) else value
    return most == 0 or any(_is_deep(part, most - 1) for part in parts if isinstance(part, (dict, list)))


def _id_of(content: Mapping[str, Any], openai: bool, number: int) -> str | int:
    """The id that a line gives itself, else own_id()."""
    name = "custom_id" if openai else "id"
    id = content.get(name)
    if id is None:
        return own_id(number)
    if isinstance(id, str) or (type(id) is int and not openai):
        return id
    raise RequestError(f"{name}: expected a string{'' if openai else ' or an integer'}, found {name_of(id)}", name)


def decoded(line: RawLine) -> str:
    """The text of a line. RequestError: it is too long, or not UTF-8."""
    if line.too_long:
        raise _too_long(line)
    try:
        return line.data.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{line.data[error.start]:02X} at index {error.start}"
        raise RequestError(f"line: expected valid UTF-8, found {found}") from None


def _check_unicode(text: str) -> None:
    """RequestError: a text has bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError("line: expected valid UTF-8, found other bytes") from None


def _too_long(line: RawLine) -> RequestError:
    return RequestError(f"line: expected at most {MOST_BYTES} bytes, found more")


def hash_of(data: bytes) -> int:
    """64 bits of a hash."""
    return int.from_bytes(_digest(data), "big")


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=8).digest()
