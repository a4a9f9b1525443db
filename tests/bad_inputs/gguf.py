"""GGUF files with something wrong: each fault that has made a reader of the format crash, and each rule of the format.

The header of such a file counts its keys, tensors, strings and elements in 64 bits. CVE-2024-21802, -21825, -21836, -23496 and
-23605, CVE-2025-53630, CVE-2026-27940 and -33298 came of believing one of these, and CVE-2026-7482 of data past the end.
"""

from __future__ import annotations

import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf_files
import numpy as np
from gguf_files import ARRAY, BOOL, F32, F64, I32, STRING, U8, U16, U32, U64, File, Tensor

import llama2c
from llama2c.formats.gguf import read_metadata

from .case import DOORS, MODEL, Case, Door, content, good_model, refused, weights
from .files import HTML, LFS

MOST_MEMORY = 10_000_000  # bytes that refusing a file may allocate
HUGE = {"2^64-1": 2**64 - 1, "2^63": 2**63, "2^61": 2**61, "2^32": 2**32, "2^30+1": 2**30 + 1}
QUERY, NORM, EMBEDDING = "blk.1.attn_q.weight", "blk.0.attn_norm.weight", "token_embd.weight"
ROPE = "rope_freqs.weight"
Spoil = Callable[[File], object]


def good(tied: bool = False) -> File:
    return gguf_files.good(MODEL, weights(tied))


# ---------------------------------------------------------------------------
# ways to spoil a file


def changed(**values: Any) -> Spoil:
    """Fields of File: the version, the counts."""

    def spoil(file: File) -> None:
        for name, value in values.items():
            setattr(file, name, value)

    return spoil


def keyed(name: str, kind: int, value: Any) -> Spoil:
    return lambda file: file.set(name, kind, value)


def llama(name: str, kind: int, value: Any) -> Spoil:
    return keyed(f"llama.{name}", kind, value)


def without_key(name: str) -> Spoil:
    return lambda file: file.keys.pop(name)


def raw_key(packed: bytes) -> Spoil:
    return lambda file: file.extra.append(packed)


def raw_value(kind: int, packed: bytes) -> Spoil:
    return raw_key(gguf_files.string("general.x") + struct.pack("<I", kind) + packed)


def raw_array(element: int, n: int, packed: bytes = b"") -> Spoil:
    return raw_value(ARRAY, struct.pack("<IQ", element, n) + packed)


def tensor(name: str, **values: Any) -> Spoil:
    """Fields of one of the tensors."""

    def spoil(file: File) -> None:
        for field, value in values.items():
            setattr(file.tensors[name], field, value)

    return spoil


def without(name: str) -> Spoil:
    return lambda file: file.tensors.pop(name)


def added(name: str, *shape: int, code: int = 0, n_bytes: int | None = None) -> Spoil:
    """One tensor more, of zeros."""
    n_bytes = 4 * int(np.prod(shape)) if n_bytes is None else n_bytes

    def spoil(file: File) -> None:
        file.tensors[f"{name} (added)"] = Tensor(name, shape, code, bytes(n_bytes))

    return spoil


def numbers(name: str, array: Any) -> Spoil:
    return lambda file: file.add(name, np.array(array, np.float32))


def with_number(name: str, value: float) -> Spoil:
    """A norm with this number in its second place."""
    return lambda file: setattr(file.tensors[name], "data", np.array([1, value, *[1] * 10], "<f4").tobytes())


# ---------------------------------------------------------------------------
# the header

BAD: dict[str, tuple[Spoil, str]] = {
    "big-endian": (changed(version=0x03000000), "expected a little-endian GGUF file, found a big-endian one"),
    "version 0": (changed(version=0), "found a big-endian one"),
    "version 1": (changed(version=1), "version: expected 2 or 3, found 1"),
    "version 4": (changed(version=4), "version: expected 2 or 3, found 4"),
    "version 2^32-1": (changed(version=2**32 - 1), "version: expected 2 or 3, found 4294967295"),
    "a key too many in the count": (changed(n_keys=13), ": expected "),
    "a key too few in the count": (changed(n_keys=11), "expected"),
    "a tensor too many in the count": (changed(n_tensors=22), "tensor 21: expected a name of its own, found an empty one"),
    "a tensor too few in the count": (changed(n_tensors=20), "expected a tensor blk.1.ffn_up.weight, found none"),
    "no tensors": (changed(n_tensors=0), "expected a matrix token_embd.weight, found none"),
    "no keys": (changed(keys={}), "general.architecture: expected llama, found None"),
    "65537 tensors": (changed(n_tensors=65537), "expected at most 65536 tensors, found 65537"),
    "65537 keys": (changed(n_keys=65537), "expected at most 65536 keys, found 65537"),
    "65536 tensors": (changed(n_tensors=65536), "tensor 21: expected a name of its own, found an empty one"),
    "65536 keys": (changed(n_keys=65536), ": expected "),
    # keys
    "an empty key": (raw_key(gguf_files.key("", U32, 1)), "key 12: expected a name of its own, found an empty one"),
    "a key twice": (raw_key(gguf_files.key("general.architecture", STRING, "llama")), "found general.architecture"),
    "a key that is not UTF-8": (raw_key(gguf_files.key(b"a\xff", U32, 1)), "key 12: expected UTF-8, found byte 0xff at 1"),
    "a key of 65536 bytes": (raw_key(gguf_files.key("a" * 65536, U32, 1)), "key 12: expected at most 65535 bytes, found 65536"),
    "a key with line breaks": (raw_key(gguf_files.string("a\nb") + struct.pack("<I", 13)), r"'a\nb': expected a type from"),
    "an architecture that is not UTF-8": (keyed("general.architecture", STRING, b"\xff"), "architecture: expected UTF-8"),
    # values
    "type 13": (raw_value(13, bytes(8)), "general.x: expected a type from 0 to 12, found 13"),
    "type 2^32-1": (raw_value(2**32 - 1, bytes(8)), "general.x: expected a type from 0 to 12, found 4294967295"),
    "an array of arrays": (raw_array(ARRAY, 1, struct.pack("<IQ", U8, 1)), "general.x: expected an array of numbers or "),
    "an array of type 13": (raw_array(13, 1, bytes(8)), "general.x: expected a type from 0 to 12, found 13"),
    "an array of 2^28 numbers": (raw_array(F64, 2**28), f"general.x: expected {2**31} bytes, found"),
    "an array of 2^30 strings": (raw_array(STRING, 2**30), f"general.x: expected {2**30} strings, found the end of the file"),
    "strings whose lengths wrap to nothing": (
        raw_array(STRING, 3, struct.pack("<3Q", 2**64 - 8, 2**64 - 16, 0)), "general.x: expected 3 strings, found the end of"
    ),
    "a string in an array past the end": (
        raw_array(STRING, 2, gguf_files.string("a") + struct.pack("<Q", 2**40)), "general.x: expected 2 strings, found the end"
    ),
    # the alignment
    **{
        f"alignment {n}": (keyed("general.alignment", U32, n), f"alignment: expected a power of 2 of at least 8, found {n}")
        for n in (0, 1, 4, 3, 24, 33, 2**32 - 1)
    },
    "alignment 2^31": (keyed("general.alignment", U32, 2**31), ": expected "),
    "an alignment of 64 bits": (keyed("general.alignment", U64, 32), "general.alignment: expected a value of type 4 (uint32)"),
    "an alignment that is text": (keyed("general.alignment", STRING, b"\xff"), "found type 8"),
    "an alignment that is a list": (keyed("general.alignment", ARRAY, (U32, [32])), "found type 9"),
    # tensors
    "a name of 64 bytes": (added("x" * 64, 4), "tensor 21: expected at most 63 bytes, found 64"),
    "a name that is not UTF-8": (lambda file: setattr(file.tensors[QUERY], "name", b"\xc3"), "tensor 13: expected UTF-8"),
    "a tensor twice": (added(QUERY, 12, 12), f"tensor 21: expected a name of its own, found {QUERY}"),
    "5 dimensions": (tensor(QUERY, n_dims=5, shape=(1, 1, 1, 12, 12)), f"{QUERY}: expected at most 4 dimensions, found 5"),
    "2^32-1 dimensions": (tensor(QUERY, n_dims=2**32 - 1), f"{QUERY}: expected at most 4 dimensions, found 4294967295"),
    "no dimensions": (tensor(QUERY, shape=(), data=bytes(4)), f"{QUERY}: expected shape (12, 12), found ()"),
    "a dimension of 0": (tensor(QUERY, shape=(0, 12), data=b""), f"{QUERY}: expected shape (12, 12), found (0, 12)"),
    "a row of 0": (tensor(QUERY, shape=(12, 0), data=b""), f"{QUERY}: expected shape (12, 12), found (12, 0)"),
    "an embedding without rows": (tensor(EMBEDDING, shape=(0, 12), data=b""), "vocab_size: expected an integer from 1 to"),
    "sizes that wrap to nothing": (tensor(QUERY, shape=(2**32, 2**32)), f"{QUERY}: expected less than 2^63 numbers"),
    "sizes that wrap to the right one": (tensor(QUERY, shape=(2**62, 4)), f"{QUERY}: expected less than 2^63 numbers"),
    "a negative size": (tensor(QUERY, shape=(2**64 - 12, 12)), f"{QUERY}: expected less than 2^63 numbers"),
    "bytes that wrap": (tensor(QUERY, shape=(2**60, 4)), "blk.1.attn_k.weight: expected offset"),
    "a large last tensor": (tensor("output_norm.weight", shape=(2**60,)), ": expected"),
    "rows of no whole blocks": (tensor(QUERY, code=2), f"{QUERY}: expected rows of a multiple of 32 numbers for Q4_0"),
    "rows of no whole large blocks": (tensor(QUERY, code=14), f"{QUERY}: expected rows of a multiple of 256 numbers for Q6_K"),
    **{
        f"type {name}": (tensor(QUERY, code=code), f"{QUERY}: expected one of the types FLOAT32, ")
        for code, name in {4: "Q4_2", 9: "Q8_1", 16: "IQ2_XXS", 19: "IQ1_S", 28: "F64", 31: "Q4_0_4_4", 35: "TQ2_0"}.items()
    },
    "tensor type 42": (tensor(QUERY, code=42), "found type 42"),
    "tensor type 2^32-1": (tensor(QUERY, code=2**32 - 1), "found type 4294967295"),
    "an offset that is not aligned": (tensor(QUERY, offset=1), f"{QUERY}: expected offset "),
    "an offset with a gap": (tensor("output_norm.weight", offset=2**20), "output_norm.weight: expected offset "),
    "an offset of another tensor": (tensor(QUERY, offset=0), f"{QUERY}: expected offset "),
    "an offset that wraps": (tensor(QUERY, offset=2**64 - 32), f"{QUERY}: expected offset "),
    # the model's tensors
    "a bias": (added("blk.0.attn_q.bias", 12), "expected the 21 tensors of a Llama model, found one more: blk.0.attn_q.bias"),
    "an expert": (added("blk.0.ffn_gate_inp.weight", 8, 12), "found one more: blk.0.ffn_gate_inp.weight"),
    "factors of a long context": (added("rope_factors_long.weight", 1), "found one more: rope_factors_long.weight"),
    "a tensor with line breaks in its name": (added("a\nb", 1), r"found one more: 'a\nb'"),
    **{
        f"without {name}": (without(name), f"expected a {'matrix' if name == EMBEDDING else 'tensor'} {name}, found none")
        for name in (QUERY, NORM, EMBEDDING, "output_norm.weight", "blk.0.ffn_down.weight")
    },
    "an embedding of one dimension": (tensor(EMBEDDING, shape=(262 * 12,)), f"matrix {EMBEDDING}, found shape (3144,)"),
    "a matrix of another shape": (tensor(QUERY, shape=(9, 16)), f"{QUERY}: expected shape (12, 12), found (9, 16)"),
    "a matrix the other way round": (
        tensor("blk.0.ffn_up.weight", shape=(12, 10)), "blk.0.ffn_up.weight: expected shape (10, 12), found (12, 10)"
    ),
    "a norm of two dimensions": (tensor(NORM, shape=(1, 12)), f"{NORM}: expected shape (12,), found (1, 12)"),
    "NaN in a norm": (with_number(NORM, np.nan), "rms_att_weight[0, 1]: expected a finite number, found nan"),
    "Inf in the last norm": (with_number("output_norm.weight", np.inf), "rms_final_weight[1]: expected a finite number, "),
    "factors NaN": (numbers(ROPE, [np.nan]), f"{ROPE}: expected finite positive numbers, found nan"),
    "factors 0": (numbers(ROPE, [0]), f"{ROPE}: expected finite positive numbers, found 0.0"),
    "factors negative": (numbers(ROPE, [-1]), f"{ROPE}: expected finite positive numbers, found -1.0"),
    "factors too many": (numbers(ROPE, [1, 2]), f"{ROPE}: expected float32 of shape (1,), found float32 of shape (2,)"),
    "factors of 16 bits": (added(ROPE, 1, code=1, n_bytes=2), f"{ROPE}: expected float32 of shape (1,), found float16"),
}  # fmt: skip


def lengths() -> Iterator[tuple[str, tuple[Spoil, str]]]:
    """Counts and lengths of 64 bits that are more than the file has."""
    for title, n in HUGE.items():
        yield f"{title} tensors", (changed(n_tensors=n), f"expected at most 65536 tensors, found {n}")
        yield f"{title} keys", (changed(n_keys=n), f"expected at most 65536 keys, found {n}")
        yield f"a key of {title} bytes", (raw_key(struct.pack("<Q", n) + b"abc"), f"expected at most 65535 bytes, found {n}")
        yield f"a string of {title} bytes", (raw_value(STRING, struct.pack("<Q", n)), "x: expected at most 1073741824 bytes")
        for element in (U8, U16, F64, STRING):
            said = f"general.x: expected at most 1073741824 elements, found {n}"
            yield f"an array of {title} elements of type {element}", (raw_array(element, n), said)
        yield f"an offset of {title}", (tensor("output_norm.weight", offset=n), "output_norm.weight: expected offset ")
        yield f"a row of {title}", (tensor(QUERY, shape=(12, n)), ": expected ")


# ---------------------------------------------------------------------------
# settings


def settings() -> Iterator[tuple[str, tuple[Spoil, str]]]:
    keys = {
        "context_length": "seq_len",
        "embedding_length": "dim",
        "block_count": "n_layers",
        "feed_forward_length": "hidden_dim",
        "attention.head_count": "n_heads",
        "attention.head_count_kv": "n_kv_heads",
    }
    for key, name in keys.items():
        if key != "attention.head_count_kv":
            yield f"without {key}", (without_key(f"llama.{key}"), f"expected a setting llama.{key}, found none")
        yield f"{key} 0", (llama(key, U32, 0), f"{name}: expected an integer from 1 to 2147483647, found 0")
        yield f"{key} -1", (llama(key, I32, -1), f"{name}: expected an integer from 1 to 2147483647, found -1")
        yield f"{key} 2^64-1", (llama(key, U64, 2**64 - 1), f"{name}: expected an integer from 1 to 2147483647, found 18446744")
        if name != "seq_len":
            yield f"{key} 2^31-1", (llama(key, U32, 2**31 - 1), ": expected ")
        others = ((F32, 12.0, "float"), (STRING, "12", "str"), (BOOL, 1, "bool"), (ARRAY, (U32, [12]), "ndarray"))
        for kind, value, found in others:
            yield f"{key} of type {found}", (llama(key, kind, value), f"llama.{key}: expected an integer, found {found}")
    for name in ("qwen2", "gemma2", "phi3", "mistral3", "clip", "a\nb"):
        shown = name if name.isprintable() else repr(name)
        said = f"general.architecture: expected llama, found {shown}"
        yield f"architecture {shown}", (keyed("general.architecture", STRING, name), said)
    refusals: dict[str, tuple[int, Any, str]] = {
        "general.architecture": (ARRAY, (U32, [1, 2]), "general.architecture: expected llama, found an array"),
        "general.type": (STRING, "adapter", "general.type: expected model, found adapter"),
        "llama.expert_count": (U32, 8, "llama.expert_count: expected 0, found 8"),
        "llama.attention.causal": (BOOL, 0, "llama.attention.causal: expected True, found False"),
        "llama.rope.scaling.attn_factor": (F32, 1.25, "llama.rope.scaling.attn_factor: expected 1.0, found 1.25"),
        "llama.attention.key_length": (U32, 3, "head_size: expected an even number, found 3"),
        "llama.attention.value_length": (U32, 4, "llama.attention.value_length: expected 2, the size of a head, found 4"),
        "llama.rope.dimension_count": (U32, 1, "llama.rope.dimension_count: expected 2, the size of a head, found 1"),
        "llama.attention.head_count_kv": (U32, 4, "n_kv_heads: expected a divisor of n_heads = 6, found 4"),
        "llama.attention.head_count": (U32, 5, ": expected "),
    }
    for name, (kind, value, said) in refusals.items():
        yield f"{name} refused", (keyed(name, kind, value), said)
    scaling, factor = "llama.rope.scaling.type", "llama.rope.scaling.factor"
    for kind_of_scaling in ("yarn", "longrope", "dynamic", ""):
        yield f"scaling {kind_of_scaling!r}", (
            keyed(scaling, STRING, kind_of_scaling), f"{scaling}: expected none or linear, found {kind_of_scaling}"
        )  # fmt: skip
    yield "scaling of type 4", (keyed(scaling, U32, 4), f"{scaling}: expected none or linear, found 4")
    for value in (float("nan"), float("inf"), -2.0):
        yield f"scaling by {value}", (keyed(factor, F32, value), f"factor: expected a finite positive number, found {value}")
        for key, name in {"attention.layer_norm_rms_epsilon": "norm_eps", "rope.freq_base": "rope_theta"}.items():
            yield f"{key} {value}", (llama(key, F32, value), f"{name}: expected a finite positive number, found {value}")
    yield "scaling by a text", (keyed(factor, STRING, "2"), f"{factor}: expected a number, found str")
    yield "without epsilon", (without_key("llama.attention.layer_norm_rms_epsilon"), "found none")
    yield "epsilon a list", (llama("attention.layer_norm_rms_epsilon", ARRAY, (F32, [1.0])), "expected a number, found ndarray")


# ---------------------------------------------------------------------------
# files cut, and splits


def cut_in_the_header(folder: Path) -> None:
    """At every byte. What is left is never a model."""
    data, size = small().pack(), len(small().header())
    for n in range(4, size):
        assert_refused(folder, data[:n])


def cut_in_the_data(folder: Path) -> None:
    file = small()
    data, last = file.pack(), list(file.tensors.values())[-1]
    end = len(data) - (file.padded(len(last.data)) - len(last.data))  # the padding of the last tensor may be missing
    for n in (len(file.header()), len(file.header()) + 33, len(data) // 2, end - 1):
        for use_mmap in (True, False):
            message = assert_refused(folder, data[:n], use_mmap)
            assert "it was cut short" in message, message
    path = content(data[:end], "m.gguf")(folder)
    assert llama2c.Checkpoint.open(path).config.vocab_size == MODEL.vocab_size


def changed_bytes(folder: Path) -> None:
    """Each byte of the header changed: a model or one line, whatever it is."""
    data, size = small().pack(), len(small().header())
    for place in range(4, size):
        spoilt = bytearray(data)
        spoilt[place] ^= 255 if place % 2 else 1
        path = content(bytes(spoilt), "m.gguf")(folder)
        try:
            llama2c.Checkpoint.open(path)
        except ValueError as error:
            message = str(error)
            assert message.startswith(f"{path}: "), (place, message)
            assert "\n" not in message, (place, message)


def small() -> File:
    """A model of one layer."""
    one = SimpleNamespace(**{**vars(MODEL), "n_layers": 1})
    return gguf_files.good(one, weights(True))


def assert_refused(folder: Path, data: bytes, use_mmap: bool = True) -> str:
    path = content(data, "m.gguf")(folder)
    try:
        llama2c.Checkpoint.open(path, mmap=use_mmap)
    except ValueError as error:
        message = str(error)
    else:
        raise AssertionError(f"expected a refusal of {len(data)} bytes")
    assert message.startswith(f"{path}: "), message
    assert "\n" not in message, message
    return message


def frugal(door: Door) -> Door:
    """The same door, with a check of what it allocates."""

    def checked(path: Path) -> object:
        tracemalloc.start()
        try:
            return door(path)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < MOST_MEMORY, peak

    return checked


def split(folder: Path, name: str = "m", spoil: Callable[[list[File]], object] = lambda parts: None) -> list[Path]:
    """A model of three files, each spoilt or not."""
    whole = good()
    names = list(whole.tensors)
    parts = []
    for number in range(3):
        part = File(dict(whole.keys) if number == 0 else {}, {each: whole.tensors[each] for each in names[number::3]})
        parts.append(part.set("split.no", U16, number).set("split.count", U16, 3).set("split.tensors.count", I32, len(names)))
    spoil(parts)
    return [content(part.pack(), f"{name}-{i:05}-of-00003.gguf")(folder) for i, part in enumerate(parts, 1)]


def spoilt_parts(number: int, spoil: Spoil) -> Callable[[Path], Path]:
    return lambda folder: split(folder, spoil=lambda parts: spoil(parts[number]))[0]


def other_names(folder: Path) -> Path:
    return split(folder, spoil=lambda parts: [part.set("general.name", STRING, str(i)) for i, part in enumerate(parts)])[0]


def missing(folder: Path) -> Path:
    paths = split(folder)
    paths[1].unlink()
    return paths[0]


def second(folder: Path) -> Path:
    return split(folder)[1]


def renamed(folder: Path) -> Path:
    return split(folder)[0].rename(folder / "renamed.gguf")


def swapped(folder: Path) -> Path:
    first, a, b = split(folder)
    c = folder / "c"
    a.rename(c)
    b.rename(a)
    c.rename(b)
    return first


def same_twice(folder: Path) -> Path:
    first, a, b = split(folder)
    shutil.copy(a, b)
    return first


def another_kind(data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        first, a, _ = split(folder)
        a.write_bytes(data)
        return first

    return make


Splits = dict[str, tuple[Callable[[Path], Path], type[Exception], str]]
SPLITS: Splits = {
    "a part missing": (missing, FileNotFoundError, "m-00001-of-00003.gguf: expected the other parts of the model beside it, "),
    "not the first part": (second, ValueError, "m-00002-of-00003.gguf: expected the first of the 3 files of a model, found "),
    "another name": (renamed, ValueError, "renamed.gguf: expected a name that ends in -00001-of-00003.gguf"),
    "parts swapped": (swapped, ValueError, "m-00002-of-00003.gguf: split.no: expected 1, as in the first file, found 2"),
    "a part twice": (same_twice, ValueError, "m-00003-of-00003.gguf: split.no: expected 2, as in the first file, found 1"),
    "a part cut": (another_kind(good().pack()[:99]), ValueError, "m-00002-of-00003.gguf: "),
    "a part of another kind": (another_kind(HTML), ValueError, "m-00002-of-00003.gguf: expected a GGUF file, "),
    "a part empty": (another_kind(b""), ValueError, "m-00002-of-00003.gguf: expected a GGUF file, which begins with b'GGUF', "),
    "a part that is a whole model": (another_kind(good().pack()), ValueError, "m-00002-of-00003.gguf: split.no: expected 1"),
    "a part of a model of more tensors": (
        spoilt_parts(2, keyed("split.tensors.count", I32, 30)), ValueError, "split.tensors.count: expected 21, as in the first "
    ),
    "a part of a model of more files": (
        spoilt_parts(1, keyed("split.count", U16, 4)), ValueError, "split.count: expected 3, as in the first file, found 4"
    ),
    "a part of a model of another name": (
        other_names, ValueError, "m-00002-of-00003.gguf: general.name: expected 0, as in the first file, found 1"
    ),
    "a tensor in two parts": (
        spoilt_parts(1, added(EMBEDDING, 262, 12)), ValueError, f"expected each tensor once, found {EMBEDDING} in another, too"
    ),
    "a part with a tensor too few": (
        spoilt_parts(1, lambda file: file.tensors.popitem()), ValueError, "split.tensors.count: expected 20, the tensors of "
    ),
    "a part without split.no": (spoilt_parts(1, without_key("split.no")), ValueError, "split.no: expected 1, as in the first "),
    "a split.no of text": (spoilt_parts(0, keyed("split.no", STRING, "0")), ValueError, "found another: split.no is 0"),
    "65536 parts": (spoilt_parts(0, keyed("split.count", U32, 65536)), ValueError, "split.count: expected 1 to 65535, found 6"),
    "-1 parts": (spoilt_parts(0, keyed("split.count", I32, -1)), ValueError, "split.count: expected 1 to 65535, found -1"),
    "a count of text": (spoilt_parts(0, keyed("split.count", STRING, "3")), ValueError, "split.count: expected 1 to 65535, "),
}  # fmt: skip


def value_that_is_not_utf8(folder: Path) -> object:
    """It is not needed to open the file, so it is refused when it is asked for."""
    path = content(good().set("general.name", STRING, b"a\xff").pack())(folder)
    metadata = llama2c.Checkpoint.open(path).metadata
    assert metadata.keys() == read_metadata(path).keys()
    return metadata["general.name"]


# ---------------------------------------------------------------------------
# the cases


def spoilt(spoil: Spoil) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        good_model(folder)  # a tokenizer
        file = good()
        spoil(file)
        return content(file.pack(), "model.gguf")(folder)

    return make


def through(door: Door, make: Callable[[Path], Path]) -> Callable[[Path], object]:
    return lambda folder: door(make(folder))


def cases() -> Iterator[Case]:
    doors = {title: frugal(door) if title in ("mapped", "read") else door for title, door in DOORS.items()}
    for title, (spoil, words) in {**BAD, **dict(lengths()), **dict(settings())}.items():
        yield from refused(f"gguf: {title}", spoilt(spoil), ValueError, words, doors=doors)
    for title, (make, error, words) in SPLITS.items():
        for way in ("mapped", "read"):
            yield Case(f"gguf split: {title} ({way})", through(doors[way], make), error, (words,))
    yield from refused("gguf: a Git LFS pointer", content(LFS, "m.gguf"), ValueError, "found a Git LFS pointer", doors=doors)
    yield from refused("gguf: an HTML page", content(HTML, "m.gguf"), ValueError, "found an HTML page", doors=doors)
    for n in range(4):
        yield from refused(f"gguf: {n} bytes", content(b"GGUF"[:n], "m.gguf"), ValueError, "header", doors=doors)
    yield Case("gguf: cut anywhere in the header", frugal(cut_in_the_header), None)
    yield Case("gguf: cut in the data", cut_in_the_data, None)
    yield Case("gguf: any byte of the header changed", changed_bytes, None)
    yield Case("gguf: a value that is not UTF-8", value_that_is_not_utf8, ValueError, ("general.name: expected UTF-8",))


CASES = [*cases()]
