"""Files of version 3: headers that are wrong or not JSON; bodies of every type, cut, too long, or with NaN and infinities."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import checkpoints
import numpy as np

from .bodies import BAD_NUMBERS, NO_DISTRIBUTION, NORMS, generate_from, logits_of, sample_from, take_from
from .case import FIELDS, GROUP_SIZE, MODEL, Case, content, refused, weights

CONFIG = SimpleNamespace(**vars(MODEL), head_size=2, rope_theta=500000.0, norm_eps=1e-6, rope_scaling=None)
DTYPES = ("float32", "float16", "bfloat16", "q8_0")
INT_MIN, INT_MAX = -(2**31), 2**31 - 1
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
POSITIVE = "expected an integer from 1 to 2147483647, found"
FINITE = "expected a finite positive number, found"


def parts(dtype: str, numbers: checkpoints.Arrays | None = None) -> list[bytes]:
    group_size = GROUP_SIZE if dtype == "q8_0" else None
    return checkpoints.parts(CONFIG, 3, weights() if numbers is None else numbers, group_size, dtype)


BODY = b"".join(parts("bfloat16")[1:])


def said(**changed: Any) -> dict[str, Any]:
    return {**checkpoints.header_v3(CONFIG, False, "bfloat16", None), **changed}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in said().items() if name != key}


def scaling(**changed: Any) -> dict[str, Any]:
    return said(rope_scaling={**LLAMA3, **changed})


# ---------------------------------------------------------------------------
# the header

LIES: dict[str, tuple[dict[str, Any], str]] = {  # what is wrong: what is said instead, and the error
    "head_size zero": (said(head_size=0), f"head_size: {POSITIVE} 0"),
    "head_size odd": (said(head_size=3), "head_size: expected an even number, found 3"),
    "head_size 2^31-2": (said(head_size=2**31 - 2), "bytes according to the v3 header"),
    "n_kv_heads no divisor": (said(n_kv_heads=4), "n_kv_heads: expected a divisor of n_heads = 6, found 4"),
    "rope_theta zero": (said(rope_theta=0), f"rope_theta: {FINITE} 0"),
    "rope_theta negative": (said(rope_theta=-1e4), f"rope_theta: {FINITE} -10000.0"),
    "rope_theta NaN": (said(rope_theta=np.nan), f"rope_theta: {FINITE} nan"),
    "rope_theta beyond all floats": (said(rope_theta=10**400), f"rope_theta: {FINITE} an integer beyond all floats"),
    "rope_theta a text": (said(rope_theta="1e4"), "rope_theta: expected a number, found str"),
    "norm_eps zero": (said(norm_eps=0.0), f"norm_eps: {FINITE} 0.0"),
    "norm_eps Inf": (said(norm_eps=np.inf), f"norm_eps: {FINITE} inf"),
    "norm_eps null": (said(norm_eps=None), "norm_eps: expected a number, found NoneType"),
    "rope_scaling a number": (said(rope_scaling=8), "expected a JSON object, found int"),
    "rope_scaling empty": (said(rope_scaling={}), "expected the settings rope_type, factor, "),
    "rope_type unknown": (scaling(rope_type="yarn"), "rope_type: expected linear or llama3, found 'yarn'"),
    "rope_type a list": (scaling(rope_type=[]), "rope_type: expected linear or llama3, found []"),
    "factor zero": (scaling(factor=0), f"factor: {FINITE} 0"),
    "low_freq_factor above high_freq_factor": (scaling(low_freq_factor=5), "high_freq_factor: expected more than "),
    "original context zero": (scaling(original_max_position_embeddings=0), f"original_max_position_embeddings: {POSITIVE} 0"),
    "linear with factors of llama3": (scaling(rope_type="linear"), "low_freq_factor: expected none for rope_type linear"),
    "shared_classifier 7": (said(shared_classifier=7), "shared_classifier: expected true or false, found 7"),
    "shared_classifier that has a wcls": (said(shared_classifier=True), "bytes according to the v3 header"),
    "dtype unknown": (said(dtype="int4"), "dtype: expected float32 or "),
    "dtype a list": (said(dtype=["q8_0"]), 'dtype: expected a name, found ["q8_0"]'),
    "dtype of more bytes": (said(dtype="float32"), "bytes according to the v3 header"),
    "group_size without q8_0": (said(group_size=4), "group_size: expected none for bfloat16, found 4"),
    **{
        f"group_size {size}": (said(dtype="q8_0", group_size=size), "group_size: expected a divisor of dim = 12, found ")
        for size in (0, -1, 5, 24, 4.0, True, None, INT_MIN, 10**30)
    },
    **{f"without {key}": (without(key), f"found none: {key}") for key in said()},
    "one key more": (said(n_experts=8), "found one more: n_experts"),
}


def dimensions() -> Iterator[Case]:
    values: dict[str, Any] = {"zero": 0, "negative": -1, "INT_MIN": INT_MIN, "2^31": 2**31, "10^30": 10**30}
    for field in FIELDS:
        for title, value in values.items():
            data = checkpoints.pack_v3(said(**{field: value})) + BODY
            yield from refused(f"v3 header: {field} {title}", content(data), ValueError, f"{field}: {POSITIVE} {value}")
        for title, other in {"a fraction": 12.5, "true": True, "null": None, "a text": "12", "a list": [12]}.items():
            data = checkpoints.pack_v3(said(**{field: other})) + BODY
            words = f"{field}: expected an integer, found "
            yield from refused(f"v3 header: {field} {title}", content(data), ValueError, words)
        if field != "seq_len":  # nothing in the file is as long
            data = checkpoints.pack_v3(said(**{field: INT_MAX})) + BODY
            yield from refused(f"v3 header: {field} 2^31-1", content(data), ValueError, "v3 header")


NO_JSON = {
    "nothing": b"",
    "an open object": b'{"dim": 12',
    "a value missing": b'{"dim": }',
    "no ASCII": '{"dim": "\u00e9"}'.encode(),
    "NUL behind it": json.dumps(said()).encode() + b"\0",
    "a thousand lists": b"[" * 1016,
    "a number of a thousand digits": b"9" * 1016,
    "zeros": bytes(1016),
}


def headers() -> Iterator[Case]:
    for title, (header, words) in LIES.items():
        yield from refused(f"v3 header: {title}", content(checkpoints.pack_v3(header) + BODY), ValueError, words)
    start = checkpoints.pack_v3({})[:8]
    for title, text in NO_JSON.items():
        data = (start + text).ljust(1024, b" ")[:1024] + BODY
        yield from refused(f"v3 header: {title}", content(data), ValueError, "v3 header: expected a JSON object")
    for title, value in {"a list": [1], "a number": 3, "null": None, "a text": "dim"}.items():
        data = checkpoints.pack_v3(value) + BODY
        yield from refused(f"v3 header: {title} for an object", content(data), ValueError, "expected a JSON object, found ")
    whole = checkpoints.pack_v3(said())
    for n in (8, 9, 256, 1023):
        yield from refused(f"v3 header: cut after {n} bytes", content(whole[:n]), ValueError, f"1024 bytes, found {n}")


# ---------------------------------------------------------------------------
# the body


def lengths() -> Iterator[Case]:
    for dtype in DTYPES:
        pieces = parts(dtype)
        whole = b"".join(pieces)
        words = f"expected {len(whole)} bytes according to the v3 header"
        for name, edge in zip(("header", *checkpoints.V1), itertools.accumulate(map(len, pieces)), strict=True):
            for delta, place in ((-1, "a byte before"), (0, "at"), (1, "a byte after")):
                cut = edge + delta
                if 1024 <= cut < len(whole):
                    title = f"v3 body of {dtype}: cut {place} the end of {name}"
                    yield from refused(title, content(whole[:cut]), ValueError, words, f"found {cut}")
        yield from refused(f"v3 body of {dtype}: one byte too many", content(whole + b"\0"), ValueError, words)


def norms() -> Iterator[Case]:
    for name in NORMS:
        for title, value in BAD_NUMBERS.items():
            numbers = weights()
            numbers[name].reshape(-1)[0] = value
            make = content(b"".join(parts("bfloat16", numbers)))
            yield from refused(f"v3 body: {title} in {name}", make, ValueError, f"expected a finite number, found {value}")


def spoilt_weights() -> Iterator[Case]:
    """Numbers of 16 bits that are none: widened, they are none either, and the sampler says so."""
    doors = {"sample": sample_from, "take": take_from, "generate": generate_from}
    for dtype in ("float16", "bfloat16"):
        for name in ("token_embedding_table", "wq", "w2"):
            for title, value in BAD_NUMBERS.items():
                numbers = weights()
                numbers[name].reshape(-1, numbers[name].shape[-1])[1, 0] = value
                data = b"".join(parts(dtype, numbers))
                for door, act in doors.items():
                    yield Case(
                        f"v3 body of {dtype}: {title} in {name} ({door})",
                        lambda folder, data=data, act=act: act(content(data)(folder)),
                        ValueError,
                        (NO_DISTRIBUTION,),
                    )


def smallest_numbers() -> Iterator[Case]:
    for dtype, value in {"float16": 2.0**-24, "bfloat16": 2.0**-133}.items():  # the smallest that are not zero
        numbers = weights()
        numbers["wcls"][:] = value
        data = b"".join(parts(dtype, numbers))
        yield Case(f"v3 body of {dtype}: smallest numbers", lambda folder, data=data: logits_of(content(data)(folder)), None)


CASES = [*dimensions(), *headers(), *lengths(), *norms(), *spoilt_weights(), *smallest_numbers()]
