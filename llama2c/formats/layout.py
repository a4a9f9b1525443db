"""The layout of llama2c's checkpoint files: the header, and where each tensor begins. docs/format.md describes it in words.

No file is opened here. A reader parses a header and finds the tensors by their entries (checkpoint.py). A writer writes
header(...) and then each entry in order (writer.py).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from ..architecture import CLASSIFIER, LLAMA, NORMS
from ..config import DIMENSIONS, NORM_EPS, ROPE_THETA, Config, RopeScaling
from ..errors import ModelError
from ..tensors import FLOAT_DTYPES

MAGIC = 0x616B3432  # the first four bytes of v1, v2 and v3, little-endian; v0 starts with dim
HEADER_V0 = struct.Struct("<7i")  # the dimensions; vocab_size is negative if the classifier is not tied
HEADER_V1 = struct.Struct("<Ii7iB")  # magic, version, the dimensions, tied flag
HEADER_V2 = struct.Struct("<Ii7iBi")  # as v1, then group_size directly after the flag, at byte 37
HEADER_V3 = struct.Struct("<Ii")  # magic, version; then JSON, padded with spaces
_VOCAB_SIZE = DIMENSIONS.index("vocab_size")
HEADER_SIZES = (HEADER_V0.size, 256, 256, 1024)  # by version; v1 and v2 are padded with zeros

ROPE_TABLES = "rope_tables"  # in v0 only: (seq_len, head_size) floats that nothing reads any more
_ORDER_V0 = (
    "token_embedding_table", "rms_att_weight", "wq", "wk", "wv", "wo", "rms_ffn_weight",
    "w1", "w2", "w3", "rms_final_weight", ROPE_TABLES, "wcls",
)  # fmt: skip
_ORDER_V1 = (*NORMS, "token_embedding_table", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "wcls")
ORDERS = (_ORDER_V0, _ORDER_V1, _ORDER_V1, _ORDER_V1)  # by version: the order of the tensors in the file
Q8_0 = "q8_0"
DTYPES = (("float32",), ("float32",), (Q8_0,), (*FLOAT_DTYPES, Q8_0))  # by version: what matrices may be; the default first


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a file can have, by name."""
    shapes = {name: tensor.whole_shape(config) for name, tensor in LLAMA.tensors.items()}
    return {**shapes, ROPE_TABLES: (config.seq_len, config.head_size)}


# --------------------------------------------------------------------------------------
# Layout: where everything is in a file


class Entry(NamedTuple):
    """One tensor in a file. For each of its n_matrices matrices: n_values values of `dtype`, then n_scales scales.

    Only q8_0 has scales. Its values are int8, its scales fp32.
    """

    name: str
    shape: tuple[int, ...]
    offset: int  # in bytes from the start of the file
    dtype: str
    group_size: int | None  # values that share a scale; None if there are no scales

    @property
    def n_matrices(self) -> int:
        return math.prod(self.shape[:-2])

    @property
    def n_values(self) -> int:
        """Values of one matrix."""
        return math.prod(self.shape[-2:])

    @property
    def n_scales(self) -> int:
        """Scales of one matrix."""
        return 0 if self.group_size is None else self.n_values // self.group_size

    @property
    def stride(self) -> int:
        """Bytes from one matrix to the next."""
        return self.n_values * {"float32": 4, Q8_0: 1}.get(self.dtype, 2) + self.n_scales * 4

    @property
    def nbytes(self) -> int:
        return self.n_matrices * self.stride


class Layout(NamedTuple):
    """A file without its numbers: the content of the header, and the entries, which follow it without a gap."""

    config: Config
    version: int
    shared_classifier: bool
    group_size: int | None
    dtype: str  # of the matrices; the norms are float32
    entries: tuple[Entry, ...]
    file_size: int


def make_layout(
    config: Config, version: int, shared_classifier: bool, group_size: int | None = None, dtype: str | None = None
) -> Layout:
    """The layout of a file of `version` (0 to 3) with matrices of `dtype`. None: the version's default (DTYPES).

    Only q8_0 has a group_size, a positive divisor of dim. Only v3 can store head_size, rope_theta, norm_eps and rope_scaling:
    `header` refuses other values than the usual ones in the other versions. Raises ValueError.
    """
    _check_version(version, (0, 1, 2, 3))
    dtype = DTYPES[version][0] if dtype is None else dtype
    if dtype not in DTYPES[version]:
        raise ValueError(f"dtype: expected {' or '.join(DTYPES[version])} in version {version}, found {dtype!r}")
    if dtype == Q8_0:
        if type(group_size) is not int or group_size <= 0 or config.dim % group_size:
            raise ValueError(f"group_size: expected a divisor of dim = {config.dim}, found {group_size}")
    elif group_size is not None:
        raise ValueError(f"group_size: expected none for {dtype}, found {group_size}")
    shapes = tensor_shapes(config)
    entries: list[Entry] = []
    offset = HEADER_SIZES[version]
    for name in ORDERS[version]:
        if name == CLASSIFIER.name and shared_classifier:
            continue
        kind = ("float32", None) if name in NORMS or name == ROPE_TABLES else (dtype, group_size)
        entry = Entry(name, shapes[name], offset, *kind)
        entries.append(entry)
        offset += entry.nbytes  # a Python int does not overflow
    return Layout(config, version, shared_classifier, group_size, dtype, tuple(entries), offset)


# --------------------------------------------------------------------------------------
# Header


def header(layout: Layout) -> bytes:
    """The bytes before the first entry. ValueError: a file of this version cannot store the config."""
    config, version = layout.config, layout.version
    if version == 3:
        import json  # only v3 has JSON

        described = asdict(config) | {"shared_classifier": layout.shared_classifier}
        text = json.dumps(described | {"dtype": layout.dtype, "group_size": layout.group_size}, allow_nan=False)
        return (HEADER_V3.pack(MAGIC, version) + text.encode("ascii")).ljust(HEADER_SIZES[version])
    held = {"head_size": config.dim / config.n_heads, "rope_theta": ROPE_THETA, "norm_eps": NORM_EPS, "rope_scaling": None}
    for name, value in held.items():
        if getattr(config, name) != value:
            expected = "none" if value is None else f"{value:g}"
            raise ValueError(f"{name}: expected {expected} in a v{version} file, found {getattr(config, name)}")
    sizes = [getattr(config, name) for name in DIMENSIONS]
    if version == 0:
        if not layout.shared_classifier:
            sizes[_VOCAB_SIZE] = -config.vocab_size
        return HEADER_V0.pack(*sizes)
    if version == 1:
        packed = HEADER_V1.pack(MAGIC, version, *sizes, layout.shared_classifier)
    else:
        packed = HEADER_V2.pack(MAGIC, version, *sizes, layout.shared_classifier, layout.group_size)
    return packed.ljust(HEADER_SIZES[version], b"\0")


def parse_header(raw: bytes) -> Layout:
    """The layout of a file whose first max(HEADER_SIZES) bytes are `raw` (or all bytes, if the file has fewer).

    Raises ModelError if they are not a valid header.
    """
    version = _find_version(raw)
    try:
        return _parse(raw, version)
    except (ValueError, TypeError) as error:  # a TypeError: v3 has a value of another type
        raise ModelError(f"{header_name(version)}: {error}") from None


def header_name(version: int) -> str:
    """What messages call a header. Every file without the magic number is read as v0, so they say that it was not found."""
    return f"v{version} header" if version else f"v0 header (magic number 0x{MAGIC:x} not found)"


def _find_version(raw: bytes) -> int:
    magic = raw[:4]
    if magic == MAGIC.to_bytes(4, "big"):
        raise ModelError(f"expected magic number 0x{MAGIC:x} in little-endian order, found its bytes swapped")
    if magic != MAGIC.to_bytes(4, "little"):
        return 0
    if len(raw) < 8:
        raise ModelError(f"expected a header of {HEADER_SIZES[1]} bytes, found {len(raw)}")
    version = int.from_bytes(raw[4:8], "little", signed=True)
    try:
        _check_version(version, (1, 2, 3))
    except ValueError as error:
        raise ModelError(str(error)) from None
    return version


def _check_version(version: int, known: tuple[int, ...]) -> None:
    if version not in known:
        raise ValueError(f"version: expected one of {', '.join(map(str, known))}, found {version}")


def _parse(raw: bytes, version: int) -> Layout:
    if len(raw) < HEADER_SIZES[version]:
        raise ValueError(f"expected {HEADER_SIZES[version]} bytes, found {len(raw)}")
    if version == 3:
        return _parse_json(raw[HEADER_V3.size : HEADER_SIZES[3]])
    if version == 0:
        sizes = list(HEADER_V0.unpack_from(raw))
        shared_classifier = sizes[_VOCAB_SIZE] > 0
        sizes[_VOCAB_SIZE] = abs(sizes[_VOCAB_SIZE])
        return make_layout(Config(*sizes), version, shared_classifier)
    _, _, *sizes, tied, group_size = HEADER_V2.unpack_from(raw)  # in v1 the last is padding
    if tied not in (0, 1):
        raise ValueError(f"tied flag: expected 0 or 1, found {tied}")
    return make_layout(Config(*sizes), version, tied == 1, group_size if version == 2 else None)


def _parse_json(text: bytes) -> Layout:
    """The header of v3: an object with exactly the fields of Config and three more."""
    import json

    try:
        content = json.loads(text.decode("ascii"))
    except (ValueError, RecursionError):
        raise ValueError("expected a JSON object padded with spaces, found something else") from None
    values = _checked_keys(content, [field.name for field in fields(Config)] + ["shared_classifier", "dtype", "group_size"])
    shared_classifier, dtype, group_size = values.pop("shared_classifier"), values.pop("dtype"), values.pop("group_size")
    if type(shared_classifier) is not bool:
        raise ValueError(f"shared_classifier: expected true or false, found {json.dumps(shared_classifier)}")
    if not isinstance(dtype, str):
        raise ValueError(f"dtype: expected a name, found {json.dumps(dtype)}")
    if values["head_size"] == 0:  # Config would replace it
        raise ValueError("head_size: expected an integer from 1 to 2147483647, found 0")
    if values["rope_scaling"] is not None:
        scaling = _checked_keys(values["rope_scaling"], [field.name for field in fields(RopeScaling)])
        values["rope_scaling"] = RopeScaling(**scaling)
    return make_layout(Config(**values), 3, shared_classifier, group_size, dtype)


def _checked_keys(content: Any, expected: list[str]) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"expected a JSON object, found {type(content).__name__}")
    different = next(iter(sorted(content.keys() ^ set(expected))), None)
    if different is not None:
        found = "one more" if different in content else "none"
        raise ValueError(f"expected the settings {', '.join(expected)}, found {found}: {different}"[:400])
    return dict(content)
