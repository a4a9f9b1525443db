"""layout: every byte of each format in its place, headers there and back, and each wrong one named."""

from __future__ import annotations

import dataclasses
import json
import re
import struct
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest

from llama2c.architecture import NORMS
from llama2c.config import Config, RopeScaling
from llama2c.formats.layout import DTYPES, ROPE_TABLES, Entry, header, make_layout, parse_header

SMALL = Config(dim=12, hidden_dim=10, n_layers=2, n_heads=6, n_kv_heads=2, vocab_size=7, seq_len=5)
SCALING = RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
OWN = dataclasses.replace(SMALL, head_size=4, rope_theta=500000.0, norm_eps=1e-6, rope_scaling=SCALING)
# (config, group_size): one of everything, then MQA, GQA and MHA with sizes that are no multiple of anything.
SHAPES = [
    (Config(2, 1, 1, 1, 1, 1, 1), 1),
    (SMALL, 4),  # a group straddles the rows of w2: 10 = 2.5 groups
    (Config(dim=36, hidden_dim=52, n_layers=2, n_heads=6, n_kv_heads=1, vocab_size=11, seq_len=3), 9),
    (Config(dim=30, hidden_dim=7, n_layers=3, n_heads=3, n_kv_heads=3, vocab_size=5, seq_len=9), 15),
    (Config(dim=64, hidden_dim=43, n_layers=3, n_heads=8, n_kv_heads=4, vocab_size=9, seq_len=4), 64),
]
FORMATS = [(version, dtype) for version, dtypes in enumerate(DTYPES) for dtype in dtypes]


def stream(config: Config, version: int, weights: dict[str, Any], group_size: int | None, dtype: str) -> bytes:
    """A file written as benchmarks and exporters do it: header, then entry by entry, matrix by matrix."""
    found = make_layout(config, version, "wcls" not in weights, group_size, dtype)
    out = header(found)
    for entry in found.entries:
        assert len(out) == entry.offset
        tensor = weights.get(entry.name, np.full(entry.shape, np.nan, "<f4")).reshape(entry.n_matrices, -1)
        for matrix in tensor:
            assert matrix.size == entry.n_values
            if entry.dtype == "q8_0":
                assert entry.group_size is not None
                values, scales = checkpoints.quantize(matrix, entry.group_size)
                assert scales.size == entry.n_scales
                out += values.tobytes() + scales.tobytes()
            else:
                out += (matrix if entry.dtype == "float32" else checkpoints.narrow(matrix, entry.dtype)).tobytes()
        assert len(out) == entry.offset + entry.nbytes
    assert len(out) == found.file_size
    return out


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("version", "dtype"), FORMATS)
@pytest.mark.parametrize(("config", "group_size"), SHAPES)
def test_streaming_by_the_layout_gives_the_same_file(
    config: Config, group_size: int, version: int, dtype: str, shared: bool
) -> None:
    weights = checkpoints.random_weights(config, np.random.default_rng(3), shared)
    group = group_size if dtype == "q8_0" else None
    parts = checkpoints.parts(config, version, weights, group, dtype)
    assert stream(config, version, weights, group, dtype)[1024:] == b"".join(parts)[1024:]
    assert stream(config, version, weights, group, dtype)[: len(parts[0])].rstrip() == parts[0].rstrip()
    found = make_layout(config, version, shared, group, dtype)
    assert parse_header(header(found)) == found
    assert [e.name for e in found.entries if e.name != ROPE_TABLES] == [
        name for name in (checkpoints.V1 if version else checkpoints.V0) if name in weights
    ]
    assert {e.dtype for e in found.entries if e.name in NORMS} == {"float32"}


def test_sizes_beyond_64_bits_are_exact() -> None:
    huge = 2**31 - 2
    config = Config(huge, huge, huge, 1, 1, huge, huge)
    weights = 2 * huge * huge + 7 * huge**3 + 2 * huge * huge + huge  # embedding and wcls, matrices, norms
    assert make_layout(config, 1, False).file_size == 256 + 4 * weights
    assert make_layout(config, 0, True).file_size == 28 + 4 * weights  # rope tables as large as wcls


def test_llama_2_7b() -> None:
    """A model larger than 2**32 bytes, whose number of parameters is published: 6,738,415,616."""
    config = Config(4096, 11008, 32, 32, 32, 32000, 2048)
    assert make_layout(config, 0, False).file_size == 28 + 4 * (6_738_415_616 + 2048 * 128)


def test_llama_3_2_1b() -> None:
    """Published: 1,235,814,400 parameters, 65 times 16 * 2 + 1 of them in norms of 2048."""
    config = Config(2048, 8192, 16, 32, 8, 128256, 131072, 64, 500000.0, 1e-5, SCALING)
    norms = (2 * 16 + 1) * 2048
    assert make_layout(config, 3, True, dtype="bfloat16").file_size == 1024 + 2 * (1_235_814_400 - norms) + 4 * norms


def test_an_entry_counts_itself() -> None:
    entry = Entry("w1", (3, 10, 8), 100, "q8_0", 4)
    assert (entry.n_matrices, entry.n_values, entry.n_scales) == (3, 80, 20)
    assert (entry.stride, entry.nbytes) == (160, 480)
    assert Entry("rms_final_weight", (8,), 0, "float32", None).nbytes == 32
    assert Entry("wq", (3, 4, 8), 0, "bfloat16", None).nbytes == Entry("wq", (3, 4, 8), 0, "float16", None).nbytes == 192


@pytest.mark.parametrize(
    ("version", "group_size", "dtype", "message"),
    [
        (0, 4, None, "group_size: expected none for float32, found 4"),
        (1, 4, None, "group_size: expected none for float32, found 4"),
        (2, None, None, "group_size: expected a divisor of dim = 12, found None"),
        (3, 4, "float16", "group_size: expected none for float16, found 4"),
        (3, 5, "q8_0", "group_size: expected a divisor of dim = 12, found 5"),
        (3, 4.0, "q8_0", "group_size: expected a divisor of dim = 12, found 4.0"),
        (1, None, "bfloat16", "dtype: expected float32 in version 1, found 'bfloat16'"),
        (3, None, "F64", "dtype: expected float32 or float16 or bfloat16 or q8_0 in version 3, found 'F64'"),
        (4, None, None, "version: expected one of 0, 1, 2, 3, found 4"),
    ],
)
def test_layout_refuses(version: int, group_size: Any, dtype: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_layout(SMALL, version, True, group_size, dtype)


@pytest.mark.parametrize(
    ("name", "value"), [("head_size", 4), ("rope_theta", 5e5), ("norm_eps", 1e-6), ("rope_scaling", SCALING)]
)
def test_a_header_of_v0_to_v2_holds_no_head_size_theta_eps_or_scaling(name: str, value: Any) -> None:
    config = dataclasses.replace(SMALL, **{name: value})
    for version in (0, 1, 2):
        with pytest.raises(ValueError, match=f"^{name}: expected .* in a v{version} file, found {re.escape(str(value))}$"):
            header(make_layout(config, version, True, 4 if version == 2 else None))


# ---- version 3 -------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", [None, SCALING, RopeScaling("linear", 4)])
@pytest.mark.parametrize("dtype", DTYPES[3])
def test_a_header_of_v3_tells_everything(dtype: str, scaling: RopeScaling | None) -> None:
    config = dataclasses.replace(OWN, rope_scaling=scaling)
    plan = make_layout(config, 3, False, 4 if dtype == "q8_0" else None, dtype)
    raw = header(plan)
    assert len(raw) == 1024
    assert struct.unpack_from("<Ii", raw) == (0x616B3432, 3)
    assert json.loads(raw[8:]) == checkpoints.header_v3(config, False, dtype, plan.group_size)
    assert parse_header(raw) == plan
    assert parse_header(raw).config == config


def said(**changes: Any) -> dict[str, Any]:
    return {**checkpoints.header_v3(OWN, True, "bfloat16", None), **changes}


def test_numbers_of_a_header_keep_their_last_bit() -> None:
    config = dataclasses.replace(OWN, rope_theta=123456.78901234567, norm_eps=1.0000000000000002e-5)
    assert parse_header(header(make_layout(config, 3, True, dtype="float32"))).config == config


SETTINGS = "dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, head_size, rope_theta, norm_eps, "
SETTINGS += "rope_scaling, shared_classifier, dtype, group_size"


def scaling(**changes: Any) -> dict[str, Any]:
    return said(rope_scaling={**said()["rope_scaling"], **changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (said(dim=0), "dim: expected an integer from 1 to 2147483647, found 0"),
        (said(dim=12.0), "dim: expected an integer, found float"),
        (said(dim=True), "dim: expected an integer, found bool"),
        (said(vocab_size=-7), "vocab_size: expected an integer from 1 to 2147483647, found -7"),
        (said(seq_len=2**31), "seq_len: expected an integer from 1 to 2147483647, found 2147483648"),
        (said(seq_len=10**600), "seq_len: expected an integer from 1 to 2147483647, found 1000"),
        (said(n_heads=4, n_kv_heads=3), "n_kv_heads: expected a divisor of n_heads = 4, found 3"),
        (said(head_size=0), "head_size: expected an integer from 1 to 2147483647, found 0"),
        (said(head_size=3), "head_size: expected an even number, found 3"),
        (said(head_size=None), "head_size: expected an integer, found NoneType"),
        (said(rope_theta=0), "rope_theta: expected a finite positive number, found 0.0"),
        (said(rope_theta=float("nan")), "rope_theta: expected a finite positive number, found nan"),
        (said(norm_eps=float("inf")), "norm_eps: expected a finite positive number, found inf"),
        (said(norm_eps="1e-5"), "norm_eps: expected a number, found str"),
        (said(rope_scaling=8), "expected a JSON object, found int"),
        (said(rope_scaling={"factor": 8}), "expected the settings rope_type, factor, low_freq_factor, "),
        (scaling(rope_type="yarn"), "rope_type: expected linear or llama3, found 'yarn'"),
        (scaling(factor=-1), "factor: expected a finite positive number, found -1.0"),
        (scaling(high_freq_factor=1), "high_freq_factor: expected more than low_freq_factor = 1.0, found 1"),
        (
            scaling(original_max_position_embeddings=None),
            "original_max_position_embeddings: expected an integer, found NoneType",
        ),
        (scaling(rope_type="linear"), "low_freq_factor: expected none for rope_type linear, found 1.0"),
        (said(shared_classifier=1), "shared_classifier: expected true or false, found 1"),
        (said(dtype=None), "dtype: expected a name, found null"),
        (said(dtype="int4"), "dtype: expected float32 or float16 or bfloat16 or q8_0 in version 3, found 'int4'"),
        (said(group_size=4), "group_size: expected none for bfloat16, found 4"),
        (said(dtype="q8_0"), "group_size: expected a divisor of dim = 12, found None"),
        (said(dtype="q8_0", group_size=True), "group_size: expected a divisor of dim = 12, found True"),
        (said(dtype="q8_0", group_size=0), "group_size: expected a divisor of dim = 12, found 0"),
        (said(more=1), f"expected the settings {SETTINGS}, found one more: more"),
        ({key: said()[key] for key in said() if key != "norm_eps"}, f"expected the settings {SETTINGS}, found none: norm_eps"),
        ([1, 2], "expected a JSON object, found list"),
    ],
)
def test_a_header_of_v3_that_is_wrong(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^v3 header: {re.escape(message)}") as error:
        parse_header(checkpoints.pack_v3(content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [b"", b"{", b'{"dim": }', b"\xff\xfe", b"[" * 1016, b"{}\0", b'"' + b"a" * 2000])
def test_a_header_of_v3_that_is_no_json(text: bytes) -> None:
    raw = (struct.pack("<Ii", 0x616B3432, 3) + text).ljust(1024, b" ")
    with pytest.raises(ValueError, match=r"^v3 header: expected a JSON object padded with spaces, found something else$"):
        parse_header(raw)


def test_a_header_of_v3_that_is_cut_off() -> None:
    with pytest.raises(ValueError, match=r"^v3 header: expected 1024 bytes, found 1023$"):
        parse_header(checkpoints.pack_v3(said())[:-1])


# ---- docs/format.md --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "group_size", "dtype"), [(0, None, None), (1, None, None), (2, 64, None), (3, None, "bfloat16")]
)
def test_the_worked_example_of_the_documentation(version: int, group_size: int | None, dtype: str | None) -> None:
    """The table of each version lists `name`, shape, offset and bytes of every entry, and the file's size."""
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    section = text.split("## A worked example")[1].split(f"### v{version}")[1].split("\n#")[0]
    rows = re.findall(r"^\| `(\w+)` \| \(([\d, ]+)\) \| ([\d,]+) \| ([\d,]+) \|$", section, re.MULTILINE)
    number = [(name, shape, int(at.replace(",", "")), int(size.replace(",", ""))) for name, shape, at, size in rows]
    found = make_layout(Config(64, 172, 5, 8, 4, 512, 512), version, True, group_size, dtype)
    assert number == [(e.name, ", ".join(map(str, e.shape)), e.offset, e.nbytes) for e in found.entries]
    assert f"{found.file_size:,} bytes" in section
    if version == 3:
        assert json.loads(section.split("```json")[1].split("```")[0]) == json.loads(header(found)[8:])
