"""The fields of a JSON body, checked one by one. What is wrong is a RequestError that names the field."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn, TypeVar

from ..errors import RequestError

T = TypeVar("T")
DEPTH = 64  # of lists and dicts in each other
Body = Mapping[str, Any]


def read_body(data: bytes) -> dict[str, Any]:
    """The JSON object in a body: b'{"n": 1}' -> {"n": 1}. RequestError: it is not one, or is too deep."""
    try:
        body = json.loads(data.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        found = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"body: expected valid JSON in UTF-8, found: {found}") from None
    if not isinstance(body, dict):
        raise RequestError(f"body: expected a JSON object, found {name_of(body)}")
    if is_too_deep(body):
        raise RequestError(f"body: expected at most {DEPTH} lists and objects in each other, found more")
    return body


def is_too_deep(value: dict[str, Any]) -> bool:
    """Whether a JSON object has more than DEPTH lists and objects in each other."""
    level: list[Any] = [value]
    for _ in range(DEPTH):
        level = [part for value in level for part in _parts(value)]
        if not level:
            return False
    return True


def _parts(value: Any) -> list[Any]:
    """The lists and dicts directly inside of a list or dict."""
    parts = value.values() if isinstance(value, dict) else value
    return [part for part in parts if isinstance(part, (dict, list))]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which JSON does not have")


def name_of(value: Any) -> str:
    """What JSON calls the type of a value: [] -> "an array"."""
    names = {
        dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number",
        type(None): "null",
    }  # fmt: skip
    return names[type(value)]


def check_known(body: Body, known: Collection[str]) -> None:
    """RequestError: a field that is not known has a value, so that it would be ignored."""
    for name, value in body.items():
        if name not in known and value is not None:
            raise RequestError(f"{name}: this field is not supported", name)


def check_keys(value: Body, known: Collection[str], where: str, param: str | None = None) -> None:
    """RequestError about the field `param` (None: `where`): an object has another key than these."""
    unknown = next((key for key in value if key not in known), None)
    if unknown is not None:
        raise RequestError(f"{where}: expected {', '.join(known)}, found {unknown[:40]!r}", param or where)


def check_neutral(body: Body, neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """RequestError: one of these fields has a value that would change the answer. neutral: those that do not."""
    for name, values in neutral.items():
        value = body.get(name)
        if value is not None and not any(type(value) is type(one) and value == one for one in values):
            raise RequestError(f"{name}: this field is not supported, found {_short(value)}", name)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _typed(body: Body, name: str, types: tuple[type, ...], expected: str) -> Any:
    value = body.get(name)
    if value is not None and type(value) not in types:
        raise RequestError(f"{name}: expected {expected}, found {name_of(value)}", name)
    return value


def boolean(body: Body, name: str) -> bool:
    """A field that is true or false; false where it is missing or null."""
    return bool(_typed(body, name, (bool,), "a boolean"))


def string(body: Body, name: str) -> str | None:
    value: str | None = _typed(body, name, (str,), "a string")
    return value


def mapping(body: Body, name: str) -> dict[str, Any] | None:
    value: dict[str, Any] | None = _typed(body, name, (dict,), "an object")
    return value


def array(body: Body, name: str, most: int) -> list[Any] | None:
    value: list[Any] | None = _typed(body, name, (list,), "an array")
    if value is not None and len(value) > most:
        raise RequestError(f"{name}: expected at most {most} elements, found {len(value)}", name)
    return value


def integer(body: Body, name: str, low: int, high: int) -> int | None:
    """A whole number from low to high; 3.0 is one too."""
    value = _typed(body, name, (int, float), "an integer")
    if value is None:
        return None
    if value != value // 1:
        raise RequestError(f"{name}: expected an integer, found {value}", name)
    if not low <= value <= high:
        raise RequestError(f"{name}: expected an integer from {low} to {high}, found {_short(value)}", name)
    return int(value)


def number(body: Body, name: str) -> float | None:
    """A finite number. What range it may have is for its user to say."""
    value = _typed(body, name, (int, float), "a number")
    if value is None:
        return None
    try:
        found = float(value)
    except OverflowError:
        found = float("inf")
    if abs(found) == float("inf"):
        raise RequestError(f"{name}: expected a finite number, found one beyond all floats", name)
    return found


def given(body: Body, readers: Mapping[str, Callable[[Body, str], T | None]]) -> dict[str, T]:
    """The fields that have a value, each read by its reader."""
    found = {name: read(body, name) for name, read in readers.items()}
    return {name: value for name, value in found.items() if value is not None}
