"""Tokenizer files with wrong lengths and numbers, and odd ones that are valid and must encode as the description says."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import reference_text
from reference_text import Vocabulary

import llama2c

from .case import BASE, TOKENIZER_DOORS, VOCABULARY, Case, content, pack_tokenizer, refused

N = len(VOCABULARY)
WHOLE = pack_tokenizer()
INT_MIN, INT_MAX = -(2**31), 2**31 - 1


def token_at(index: int) -> int:
    """The byte at which a token begins."""
    return 4 + sum(8 + len(spelling) for spelling, _ in VOCABULARY[:index])


def with_length(index: int, length: int) -> bytes:
    data, place = bytearray(WHOLE), token_at(index) + 4
    data[place : place + 4] = struct.pack("<i", length)
    return bytes(data)


def with_score(index: int, score: bytes) -> bytes:
    data, place = bytearray(WHOLE), token_at(index)
    data[place : place + 4] = score
    return bytes(data)


def cuts() -> Iterator[tuple[str, bytes, str]]:
    for n in (1, 3):
        yield f"cut in the header after {n} bytes", WHOLE[:n], f"expected a header of 4 bytes, found {n}"
    yield "cut after the header", WHOLE[:4], f"expected {N} tokens, found 0"
    for index in (0, 2, 3, 258, N - 1):
        at = token_at(index)
        n_bytes = len(VOCABULARY[index][0])
        said = f"token {index}: expected 8 bytes of score and length, found"
        yield f"cut in the score of token {index}", WHOLE[: at + 2], f"{said} 2"
        yield f"cut in the length of token {index}", WHOLE[: at + 7], f"{said} 7"
        said = f"token {index}: expected a length of 1 to {n_bytes - 1}, the bytes left, found {n_bytes}"
        yield f"cut in the spelling of token {index}", WHOLE[: at + 8 + n_bytes - 1], said
        yield f"cut before token {index}", WHOLE[:at], f"expected {N} tokens, found {index}"


def wrong_fields() -> Iterator[tuple[str, bytes, str]]:
    end = f"expected the end after {N} tokens, at byte {len(WHOLE)}"
    yield "a token too few", pack_tokenizer(VOCABULARY[:-1]), f"expected {N} tokens, found {N - 1}"
    yield "a token too many", pack_tokenizer([*VOCABULARY, (b"b", 0.0)]), end
    yield "a byte too many", WHOLE + b"\0", end
    yield "a text", b"Once upon a time, there was a little girl.", "token 0: expected a length of 1 to "
    yield "zeros", bytes(5000), "token 0: expected a length of 1 to 4988, the bytes left, found 0"
    yield "ones", b"\xff" * 5000, "token 0: expected a score, found NaN"
    for length in (0, -1, INT_MIN, INT_MAX):
        for index in (0, 5, N - 1):
            left = len(WHOLE) - token_at(index) - 8
            said = f"token {index}: expected a length of 1 to {left}, the bytes left, found {length}"
            yield f"length {length} of token {index}", with_length(index, length), said
    left = len(WHOLE) - token_at(5) - 8
    yield "a length one beyond the file", with_length(5, left + 1), f"the bytes left, found {left + 1}"
    yield "a length up to the end of the file", with_length(5, left), f"expected {N} tokens, found 6"
    for title, bits in (("NaN", 0x7FC00000), ("negative NaN", 0xFFC00000), ("signalling NaN", 0x7F800001)):
        for index in (0, 5, N - 1):
            data = with_score(index, struct.pack("<I", bits))
            yield f"{title} as the score of token {index}", data, f"token {index}: expected a score, found NaN"


def refusals() -> Iterator[Case]:
    for title, data, words in (*cuts(), *wrong_fields()):
        yield from refused(f"tokenizer: {title}", content(data, "a.bin"), ValueError, words, doors=TOKENIZER_DOORS)
    few = pack_tokenizer(BASE[:258])
    said = "expected at least 259 tokens, found 258"
    for title, vocab_size in (("asked for", 258), ("not asked for", None)):
        yield opened(f"fewer than 259 tokens, {title}", few, vocab_size, said)
    for vocab_size in (2**31 - 1, 2**31, 2**63, 2**70):
        yield opened(f"vocab_size {vocab_size}", WHOLE, vocab_size, f"expected {vocab_size} tokens, found {N}")
    for vocab_size in (0, -1, -(2**63)):
        words = f"vocab_size: expected a positive int, found {vocab_size}"
        yield opened(f"vocab_size {vocab_size}", WHOLE, vocab_size, words)
    yield opened("vocab_size 1.5", WHOLE, 1.5, "float", TypeError)


def opened(title: str, data: bytes, vocab_size: Any, words: str, error: type[Exception] = ValueError) -> Case:
    def run(folder: Path) -> object:
        return llama2c.Tokenizer.open(content(data)(folder), vocab_size)

    return Case(f"tokenizer: {title}", run, error, (words,))


# ---------------------------------------------------------------------------
# odd, but valid

TEXTS = [b"", b"a", b"a a\0a", b"ab\xff\xc3\xa9\xc3", b"\xed\xa0\x80", b"\0", b"<0x-1><0x0A>", b" " * 20, "aé€😀".encode()]


def agrees(vocabulary: Vocabulary, max_token_length: int = 6) -> Callable[[Path], None]:
    """The tokenizer encodes and decodes as the plain one of reference_text does, which looks at every pair for every merge."""

    def run(folder: Path) -> None:
        tokenizer = llama2c.Tokenizer.open(content(pack_tokenizer(vocabulary, max_token_length))(folder), len(vocabulary))
        for text in TEXTS:
            for bos in (True, False):
                ids = tokenizer.encode(text, bos=bos)
                assert ids == reference_text.encode(vocabulary, text, bos), (text, ids)
        everything = range(len(vocabulary))
        assert tokenizer.decode([1, *everything]) == reference_text.decode(vocabulary, everything).decode(errors="replace")

    return run


ODD: dict[str, Vocabulary] = {
    "duplicates": [*BASE, (b" ", 0.0), (b"a", 0.0), (b"a", 5.0), (b" a", 1.0), (b" a", 9.0), (b"<0x41>", 0.0)],
    "embedded NUL": [*BASE, (b"a\0a", 1.0), (b"\0", 0.0), (b"\0a", 2.0), (b"a\0", 3.0)],
    "invalid UTF-8": [*BASE, (b"\xff", 0.0), (b"\xc3", 0.0), (b"\xed\xa0\x80", 0.0), (b"a\x80", 1.0)],
    'no " " token': [*BASE, (b"a", 0.0), (b"aa", 1.0)],
    "<0x-1>": [*BASE, *((b"<0x%b>" % digits, 0.0) for digits in (b"-1", b"+1", b" 1", b"G0", b"1", b"001", b""))],
    "byte tokens spelled otherwise": [*BASE[:3], *((b"b%d" % byte, 0.0) for byte in range(256)), (b" ", 0.0)],
    "infinite scores": [*BASE, (b" ", 0.0), (b"a", 0.0), (b" a", float("inf")), (b"a ", float("-inf"))],
    "scores that no merge has": [*BASE, (b" ", 0.0), (b"a", 0.0), (b" a", -1e10), (b"aa", -3e38)],
    "the fewest tokens there may be": BASE,
    "a long spelling": [*BASE, (b"a" * 100_000, 0.0), (b"a", 0.0)],
}


def odd() -> Iterator[Case]:
    for title, vocabulary in ODD.items():
        yield Case(f"tokenizer: {title}", agrees(vocabulary), None)
    for length in (0, 1, -1, INT_MIN, INT_MAX):
        yield Case(f"tokenizer: a lying max_token_length {length}", agrees(VOCABULARY, length), None)


CASES = [*refusals(), *odd()]
