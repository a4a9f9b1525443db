"""Checkpoint headers with wrong numbers: sizes, products of sizes, magic numbers, versions, flags."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .case import FIELDS, MODEL, VERSIONS, Case, content, pack_header, parts, refused

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
POSITIVE = "expected an integer from 1 to 2147483647, found"
BODY = b"".join(parts(0)[1:])  # its length fits none of the wrong headers


def dimension(version: int, field: str, value: int) -> str | None:
    """The message about a header in which this one number is changed. None: the header is still valid."""
    if version == 0 and field == "vocab_size" and value < 0:  # in v0 the sign says whether the classifier is shared
        return f"vocab_size: {POSITIVE} {-value}" if value == INT_MIN else "bytes according to the v0 header"
    if value <= 0:
        return f"{field}: {POSITIVE} {value}"
    if field == "dim":
        return f"n_heads: expected a divisor of dim = {value}, found {MODEL.n_heads}"
    if field == "n_heads":
        return f"n_kv_heads: expected a divisor of n_heads = {value}, found {MODEL.n_kv_heads}"
    if field == "n_kv_heads":
        return f"n_kv_heads: expected a divisor of n_heads = {MODEL.n_heads}, found {value}"
    if field == "seq_len" and version:
        return None  # the size of the file does not depend on it; files.py tests the cache
    return f"bytes according to the v{version} header"


def dimensions() -> Iterator[Case]:
    names = {0: "zero", -1: "negative", INT_MIN: "INT_MIN", INT_MAX: "2^31-1"}
    for version in VERSIONS:
        for field in FIELDS:
            for value, title in names.items():
                words = dimension(version, field, value)
                if words is not None:
                    data = pack_header(version, **{field: value}) + BODY
                    yield from refused(f"v{version} header: {field} {title}", content(data), ValueError, words)


RULES: list[tuple[str, dict[str, int], str]] = [  # what is wrong, what is changed, the message
    ("dim no multiple of n_heads", {"dim": 14}, "n_heads: expected a divisor of dim = 14, found 6"),
    ("n_heads no multiple of n_kv_heads", {"n_kv_heads": 4}, "n_kv_heads: expected a divisor of n_heads = 6, found 4"),
    ("n_kv_heads above n_heads", {"n_kv_heads": 12}, "n_kv_heads: expected a divisor of n_heads = 6, found 12"),
    ("odd head_size", {"dim": 18}, "head_size: expected an even number, found 3"),
    ("all sizes 2^31-4", dict.fromkeys(FIELDS, 2**31 - 4) | {"n_heads": 2, "n_kv_heads": 1}, "bytes according to the "),
]

# The sizes of these bodies are 0 modulo 2^32 or 2^64. A reader that counts in 32 or 64 bits would accept the header alone.
PAIRS = {"hidden_dim": 1, "n_layers": 1, "n_kv_heads": 1, "seq_len": 2**29}  # with a head_size of 2
WRAPPING: list[tuple[int, int, dict[str, int]]] = [  # bits, version, sizes
    (32, 0, {**PAIRS, "dim": 2**16, "n_heads": 2**15, "vocab_size": 2**14 - 10}),
    (32, 1, {**PAIRS, "dim": 2**16, "n_heads": 2**15, "vocab_size": 2**14 - 10}),
    (64, 0, {**PAIRS, "dim": 2**30, "n_heads": 2**29, "vocab_size": 2**31 - 11}),
    (64, 1, {**PAIRS, "dim": 2**30, "n_heads": 2**29, "vocab_size": 2**31 - 10}),
]


def wrapping() -> Iterator[Case]:
    for bits, version, sizes in WRAPPING:
        n_bytes = 4 * count(version, sizes)
        assert n_bytes > 0 and n_bytes % 2**bits == 0
        data = pack_header(version, tied=1, **sizes)
        words = f"expected {len(data) + n_bytes} bytes according to the v{version} header"
        yield from refused(f"v{version} header: sizes that wrap to nothing in {bits} bits", content(data), ValueError, words)


def count(version: int, s: dict[str, int]) -> int:
    """The numbers in a body with a shared classifier."""
    head_size = s["dim"] // s["n_heads"]
    kv_dim = head_size * s["n_kv_heads"]
    layers = s["n_layers"] * (2 + 2 * s["dim"] + 2 * kv_dim + 3 * s["hidden_dim"])
    return s["dim"] * (s["vocab_size"] + layers + 1) + (0 if version else s["seq_len"] * head_size)


def rules() -> Iterator[Case]:
    for version in VERSIONS:
        for name, changed, words in RULES:
            data = pack_header(version, group_size=1, **changed) + BODY
            yield from refused(f"v{version} header: {name}", content(data), ValueError, words, f"v{version} header")


def patched(version: int, offset: int, data: bytes) -> bytes:
    head = bytearray(pack_header(version))
    head[offset : offset + len(data)] = data
    return bytes(head) + BODY


def identity() -> Iterator[Case]:
    """Magic number, version, tied flag, group_size; and files that end in the header."""
    swapped = "expected magic number 0x616b3432 in little-endian order, found its bytes swapped"
    not_found = "v0 header (magic number 0x616b3432 not found)"
    yield from refused("v1 header: byte-swapped magic", content(patched(1, 0, b"ak42")), ValueError, swapped)
    yield from refused("v1 header: wrong magic", content(patched(1, 0, b"25ka")), ValueError, not_found)
    yield from refused("v0 header: a text", content(b"Once upon a time, there was a little girl."), ValueError, not_found)
    for version in (0, -1, 4, 99, INT_MIN, INT_MAX):
        words = "version: expected one of ", f"found {version}"
        data = content(patched(1, 4, struct.pack("<i", version)))
        yield from refused(f"header: version {version}", data, ValueError, *words)
    for version in (1, 2):
        for flag in (2, 7, 255):
            words = "tied flag: expected 0 or 1", f"found {flag}"
            data = content(patched(version, 36, bytes([flag])))
            yield from refused(f"v{version} header: tied flag {flag}", data, ValueError, *words)
    for size in (0, -1, INT_MIN, INT_MAX, 5, 24):  # 24 is above dim, 5 does not divide it
        words = f"group_size: expected a divisor of dim = {MODEL.dim}", f"found {size}"
        data = content(patched(2, 37, struct.pack("<i", size)))
        yield from refused(f"v2 header: group_size {size}", data, ValueError, *words)
    for version in VERSIONS:
        whole = pack_header(version)
        for n in sorted({0, 1, 3, 4, 7, 8, 27, 28, 40, 255} & set(range(len(whole)))):
            words = "expected ", f"found {n}"
            yield from refused(f"v{version} header: cut after {n} bytes", content(whole[:n]), ValueError, *words)
        yield from refused(f"v{version} header: nothing after it", content(whole), ValueError, f"found {len(whole)}")


CASES = [*dimensions(), *rules(), *wrapping(), *identity()]
