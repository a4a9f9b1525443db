"""GGUF: what is read equals what the `gguf` package reads, and runs like the same weights in a Hugging Face folder.

Files that must be refused are in bad_inputs/gguf.py.
"""

from __future__ import annotations

import copy
import os
import pickle
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import folders
import gguf_files
import numpy as np
import pytest
import reference
from gguf_files import ARRAY, BOOL, F32, F64, I8, I16, I32, I64, STRING, U8, U16, U32, U64

from llama2c import Checkpoint, Transformer, export
from llama2c.architecture import LLAMA
from llama2c.config import Config, RopeScaling
from llama2c.errors import ModelError
from llama2c.formats.gguf import read_metadata
from llama2c.tensors import BFloat16Tensor, BlockTensor, Layers, as_floats
from llama2c.transformer import rotary_frequencies

CONFIG = Config(dim=24, hidden_dim=20, n_layers=2, n_heads=3, n_kv_heads=1, vocab_size=19, seq_len=9, head_size=16)
TOKENS = [1, 18, 7, 7, 0, 3, 11]
SHARED = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_m", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k"]
SHARED += ["iq4_nl", "iq4_xs"]


def weights(config: Config = CONFIG, tied: bool = True) -> checkpoints.Arrays:
    return checkpoints.random_weights(config, np.random.default_rng(config.dim), tied)


def written(path: Path, file: gguf_files.File) -> Path:
    path.write_bytes(file.pack())
    return path


def logits(path: Path, mmap: bool = True) -> np.ndarray:
    transformer = Transformer(Checkpoint.open(path, mmap=mmap))
    return transformer.forward(TOKENS, transformer.new_cache(), logits=None)


def package() -> Any:
    return pytest.importorskip("gguf", reason="needs the gguf package: pip install gguf")


# ---------------------------------------------------------------------------
# real files


@pytest.mark.parametrize("name", SHARED)
def test_matrices_are_those_of_the_gguf_package(shared: Path, name: str) -> None:
    gguf, path = package(), shared / "gguf" / f"a-{name}.gguf"
    opened = Checkpoint.open(path)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    expected = Config(dim=256, hidden_dim=512, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=512, seq_len=512)
    assert (opened.config, opened.format, opened.version) == (expected, "GGUF", None)
    assert opened.shared_classifier
    assert (opened.rope_pairs, opened.group_size, opened.rope_factors) == ("adjacent", None, None)
    kinds = set()
    for spelled, (own, layer) in gguf_files.names(2).items():
        if own == "wcls":
            assert opened.weights[own] is opened.weights["token_embedding_table"]
            continue
        stored, weight = tensors.pop(spelled), opened.weights[own]
        matrix = weight if layer is None else weight[layer]
        np.testing.assert_array_equal(as_floats(matrix), gguf.quants.dequantize(stored.data, stored.tensor_type))
        if len(stored.shape) > 1:
            kinds.add({"F32": "fp32", "F16": "fp16", "BF16": "bf16"}.get(stored.tensor_type.name, stored.tensor_type.name))
    assert not tensors
    assert set(opened.kind.split("+")) == kinds


@pytest.mark.parametrize("name", SHARED)
def test_logits_are_as_near_to_the_truth_as_those_of_llama_cpp(shared: Path, name: str) -> None:
    """The truth is a forward pass in NumPy on the dequantised weights. Both programs round activations; we round no more."""
    golden = np.load(shared / "gguf" / "a-llama_cpp.npz")
    opened = Checkpoint.open(shared / "gguf" / f"a-{name}.gguf")
    truth = reference.Reference(opened.config, {own: as_floats(weight) for own, weight in opened.weights.items()})
    tokens, rows = golden["tokens"].tolist(), golden["rows"]
    expected = truth.forward(tokens).logits[rows]
    transformer = Transformer(opened)
    ours = transformer.forward(tokens, transformer.new_cache(), logits=None)[rows]
    scale = np.abs(expected).max()
    ours_off, theirs_off = (np.sqrt(np.mean((each - expected) ** 2)) / scale for each in (ours, golden[name.upper()]))
    assert ours_off < max(1.1 * theirs_off, 1e-6)


def test_a_real_model(smollm2: Path) -> None:
    opened = Checkpoint.open(smollm2)
    expected = Config(
        dim=576, hidden_dim=1536, n_layers=30, n_heads=9, n_kv_heads=3, vocab_size=49152, seq_len=8192, rope_theta=100000.0
    )
    assert (opened.config, opened.shared_classifier, opened.dtype, opened.kind) == (expected, True, "q4_1+q8_0", "Q4_1+Q8_0")
    for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3"):
        stack = opened.weights[name]
        assert isinstance(stack, Layers)
        assert {matrix.type.name for matrix in stack.matrices if isinstance(matrix, BlockTensor)} == {"q4_1"}
        assert stack.shape == LLAMA.tensors[name].whole_shape(expected)
    keys = opened.metadata
    tokens, merges = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.merges"]
    assert (len(tokens), len(merges)) == (49152, 48900)
    assert (tokens[1], tokens[-1], merges[0]) == (b"<|im_start|>", tokens[49151], "Ġ t".encode())
    assert keys["tokenizer.ggml.token_type"].dtype == np.int32
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert keys["tokenizer.chat_template"].startswith("{% for message in messages %}")


def test_opening_a_real_model_takes_little_memory(smollm2: Path) -> None:
    Checkpoint.open(smollm2)
    tracemalloc.start()
    opened = Checkpoint.open(smollm2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert opened.config.n_layers == 30
    assert peak < 2**20


# ---------------------------------------------------------------------------
# the same bits as a folder


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_file_has_the_bits_of_the_folder(tmp_path: Path, dtype: str, tied: bool, mmap: bool) -> None:
    pytest.importorskip("safetensors", reason="needs safetensors: pip install '.[hf]'")
    numbers = weights(tied=tied)
    tensors = folders.hf_tensors(numbers, CONFIG.head_size)
    if dtype != "float32":
        tensors = {name: each if each.ndim == 1 else checkpoints.narrow(each, dtype) for name, each in tensors.items()}
    folder = folders.write_hf(tmp_path / "hf", tensors, folders.hf_settings(CONFIG, tied))
    path = written(tmp_path / "m.gguf", gguf_files.good(CONFIG, numbers, dtype))
    opened, other = Checkpoint.open(path, mmap=mmap), Checkpoint.open(folder)
    assert (opened.config, opened.dtype, opened.shared_classifier) == (other.config, dtype, tied)
    for weight in opened.weights.values():
        for matrix in weight.matrices if isinstance(weight, Layers) else [weight]:
            array = matrix.bits if isinstance(matrix, BFloat16Tensor) else matrix
            assert isinstance(array, np.ndarray)
            assert array.flags.c_contiguous
            assert array.flags.aligned
            assert not array.flags.writeable
    np.testing.assert_array_equal(logits(path, mmap), logits(folder))


def test_a_file_of_the_gguf_package_is_read(tmp_path: Path) -> None:
    """Another writer than ours, the settings that may be missing, and norms of 16 bits."""
    gguf, numbers, path = package(), weights(replace(CONFIG, head_size=8)), tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(9)
    writer.add_embedding_length(24)
    writer.add_block_count(2)
    writer.add_feed_forward_length(20)
    writer.add_head_count(3)
    writer.add_layer_norm_rms_eps(3e-6)
    for name, (own, layer) in gguf_files.names(2).items():
        if own != "wcls":
            array = numbers[own] if layer is None else numbers[own][layer]
            if own in ("wk", "wv"):  # as many key heads as query heads
                array = np.tile(array, (3, 1))
            writer.add_tensor(name, array.astype(np.float16) if own == "rms_ffn_weight" else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    opened = Checkpoint.open(path)
    assert opened.config == replace(CONFIG, n_kv_heads=3, head_size=8, rope_theta=10000.0, norm_eps=3e-6)
    rounded = numbers["rms_ffn_weight"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(opened.weights["rms_ffn_weight"], rounded)
    expected = numbers | {"rms_ffn_weight": rounded} | {name: np.tile(numbers[name], (1, 3, 1)) for name in ("wk", "wv")}
    truth = reference.Reference(opened.config, expected).forward(TOKENS).logits
    np.testing.assert_allclose(logits(path), truth, rtol=0, atol=2e-5 * np.abs(truth).max())


# ---------------------------------------------------------------------------
# rotary frequencies


def converters_table(config: Config, factor: float) -> np.ndarray:
    """rope_freqs as convert_hf_to_gguf.py computes it: in fp32, but for the cuts."""
    f4, low, high, original = np.float32, 1.0, 4.0, 8192
    exponents = np.arange(0, config.head_size, 2, dtype=f4) / f4(config.head_size)
    wavelengths = f4(2 * np.pi) / (f4(1) / f4(config.rope_theta) ** exponents)
    smooth = (f4(original) / wavelengths - f4(low)) / f4(high - low)
    blended = f4(1) / ((f4(1) - smooth) / f4(factor) + smooth)
    cuts = [wavelengths < original / high, wavelengths > original / low]
    return np.select(cuts, [np.ones_like(blended), np.full_like(blended, factor)], blended)


@pytest.mark.parametrize("factor", [8.0, 32.0, 20.0])
@pytest.mark.parametrize("head_size", [64, 80, 128])
def test_the_table_of_llama_3_is_found_again(tmp_path: Path, factor: float, head_size: int) -> None:
    pytest.importorskip("safetensors", reason="needs safetensors: pip install '.[hf]'")
    scaling = RopeScaling("llama3", factor, 1.0, 4.0, 8192)
    config = replace(CONFIG, head_size=head_size, rope_theta=500000.0, rope_scaling=scaling)
    numbers, table = weights(config), converters_table(config, factor)
    assert len(set(table.tolist())) > 4  # a few of them blended
    path = written(tmp_path / "m.gguf", gguf_files.good(config, numbers).add("rope_freqs.weight", table))
    folder = folders.write_model(tmp_path / "hf", config, numbers)
    assert Checkpoint.open(path).config == Checkpoint.open(folder).config == config
    assert Checkpoint.open(path).rope_factors is None
    np.testing.assert_array_equal(logits(path), logits(folder))
    near = table * (1 + 2e-5 * (np.arange(len(table)) == table.argmax() - 1)).astype(np.float32)
    opened = Checkpoint.open(written(path, gguf_files.good(config, numbers).add("rope_freqs.weight", near)))
    assert opened.config.rope_scaling is None
    assert opened.rope_factors == tuple(near.tolist())


def test_a_table_of_ones_is_none(tmp_path: Path) -> None:
    ones = np.ones(CONFIG.head_size // 2, np.float32)
    opened = Checkpoint.open(written(tmp_path / "m.gguf", gguf_files.good(CONFIG, weights()).add("rope_freqs.weight", ones)))
    assert (opened.config, opened.rope_factors) == (CONFIG, None)


def test_other_tables_divide_the_frequencies(tmp_path: Path) -> None:
    table = np.linspace(1, 3, CONFIG.head_size // 2, dtype=np.float32)
    file = gguf_files.good(CONFIG, weights()).add("rope_freqs.weight", table)
    opened = Checkpoint.open(written(tmp_path / "m.gguf", file))
    assert opened.rope_factors == tuple(table.tolist())
    exact = 10000.0 ** (-np.arange(0, CONFIG.head_size, 2) / CONFIG.head_size)
    found = rotary_frequencies(opened.config, opened.rope_factors)
    np.testing.assert_allclose(found, exact / table, rtol=1e-15)
    twos = gguf_files.good(CONFIG, weights()).add("rope_freqs.weight", np.full_like(table, 2))
    twos.tensors["rope_freqs.weight"].data = struct.pack("<8f", *[2.0] * 7, 2.5)  # not a table of Llama 3
    both = Checkpoint.open(written(tmp_path / "both.gguf", twos.set("llama.rope.scaling.factor", F32, 4.0)))
    assert (both.config.rope_scaling, both.rope_factors) == (RopeScaling("linear", 4.0), (*[2.0] * 7, 2.5))
    np.testing.assert_allclose(rotary_frequencies(both.config, both.rope_factors)[:7], exact[:7] / 8, rtol=1e-15)
    assert (logits(tmp_path / "m.gguf") != logits(written(tmp_path / "n.gguf", gguf_files.good(CONFIG, weights())))).any()
    for out in (tmp_path / "x.bin", tmp_path / "hf"):  # no other format stores them
        with pytest.raises(ModelError, match=r"m\.gguf: rope_freqs\.weight: expected the table of Llama 3"):
            export(tmp_path / "m.gguf", out, format="hf" if out.suffix == "" else None)
        assert not out.exists()


@pytest.mark.parametrize(
    "keys",
    [
        {"llama.rope.scaling.type": (STRING, "linear"), "llama.rope.scaling.factor": (F32, 2.5)},
        {"llama.rope.scaling.factor": (F64, 2.5)},
        {"llama.rope.scale_linear": (F32, 2.5)},
    ],
)
def test_linear_scaling(tmp_path: Path, keys: dict[str, tuple[int, Any]]) -> None:
    pytest.importorskip("safetensors", reason="needs safetensors: pip install '.[hf]'")
    config, file = replace(CONFIG, rope_scaling=RopeScaling("linear", 2.5)), gguf_files.good(CONFIG, weights())
    for name, (kind, number) in keys.items():
        file.set(name, kind, number)
    path, folder = written(tmp_path / "m.gguf", file), folders.write_model(tmp_path / "hf", config, weights())
    assert Checkpoint.open(path).config == config
    np.testing.assert_array_equal(logits(path), logits(folder))


@pytest.mark.parametrize(
    "keys",
    [
        {"llama.rope.scaling.type": (STRING, "none"), "llama.rope.scaling.factor": (F32, 2.5)},
        {"llama.rope.scaling.type": (STRING, "linear"), "llama.rope.scaling.factor": (F32, 1.0)},
        {"llama.rope.scaling.factor": (F32, 0.0), "llama.rope.scaling.attn_factor": (F32, 1.0)},
        {"llama.expert_count": (U32, 0), "general.type": (STRING, "model"), "llama.vocab_size": (U32, 7)},
    ],
)
def test_settings_that_change_nothing(tmp_path: Path, keys: dict[str, tuple[int, Any]]) -> None:
    file = gguf_files.good(CONFIG, weights())
    for name, (kind, number) in keys.items():
        file.set(name, kind, number)
    assert Checkpoint.open(written(tmp_path / "m.gguf", file)).config == CONFIG


def test_a_shorter_window_shortens_the_context(tmp_path: Path) -> None:
    file = gguf_files.good(CONFIG, weights()).set("llama.attention.sliding_window", U32, 7)
    path = written(tmp_path / "m.gguf", file)
    with pytest.warns(RuntimeWarning, match=r"m\.gguf: its attention sees only the last 7 positions: .* from 9$") as warned:
        opened = Checkpoint.open(path)
    assert opened.config == replace(CONFIG, seq_len=7)
    assert warned[0].filename == __file__
    for window in (0, 9, 4096):
        file.set("llama.attention.sliding_window", U32, window)
        assert Checkpoint.open(written(path, file)).config == CONFIG


# ---------------------------------------------------------------------------
# the format


@pytest.mark.parametrize("alignment", [8, 64, 4096])
@pytest.mark.parametrize("version", [2, 3])
def test_versions_and_alignments(tmp_path: Path, version: int, alignment: int) -> None:
    expected = logits(written(tmp_path / "a.gguf", gguf_files.good(CONFIG, weights())))
    file = gguf_files.good(CONFIG, weights()).set("general.alignment", U32, alignment)
    file.version, file.alignment = version, alignment
    np.testing.assert_array_equal(logits(written(tmp_path / "b.gguf", file)), expected)
    content = file.pack()
    padding = alignment - len(file.tensors["token_embd.weight"].data) % alignment
    assert padding  # the last tensor is a matrix of a layer; bytes behind it do not count
    (tmp_path / "c.gguf").write_bytes(content + b"more")
    np.testing.assert_array_equal(logits(tmp_path / "c.gguf"), expected)


VALUES: dict[str, tuple[int, Any, Any]] = {
    "u8": (U8, 255, 255),
    "i8": (I8, -128, -128),
    "u16": (U16, 65535, 65535),
    "i16": (I16, -32768, -32768),
    "u32": (U32, 2**32 - 1, 2**32 - 1),
    "i32": (I32, -(2**31), -(2**31)),
    "u64": (U64, 2**64 - 1, 2**64 - 1),
    "i64": (I64, -(2**63), -(2**63)),
    "f32": (F32, 9.999999747378752e-06, 1e-05),
    "f32, a third": (F32, 1 / 3, 0.33333334),
    "f32, infinite": (F32, float("inf"), float("inf")),
    "f64": (F64, 9.999999747378752e-06, 9.999999747378752e-06),
    "false": (BOOL, 0, False),
    "true": (BOOL, 1, True),
    "also true": (BOOL, 2, True),
    "empty": (STRING, "", ""),
    "text": (STRING, "a\0b\n😀", "a\0b\n😀"),
}


def test_values_of_all_types(tmp_path: Path) -> None:
    file = gguf_files.good(CONFIG, weights())
    for name, (kind, content, _) in VALUES.items():
        file.set(name, kind, content)
    path = written(tmp_path / "m.gguf", file)
    for metadata in (read_metadata(path), Checkpoint.open(path).metadata, Checkpoint.open(path, mmap=False).metadata):
        for name, (_, _, expected) in VALUES.items():
            assert metadata[name] == expected
            assert type(metadata[name]) is type(expected)
        assert list(metadata) == list(file.keys)
        assert len(metadata) == len(file.keys)
        assert "absent" not in metadata
        assert metadata.get("absent") is None


@pytest.mark.parametrize("element", [U8, I8, U16, I16, U32, I32, U64, I64, F32, F64, BOOL])
def test_arrays_of_numbers(tmp_path: Path, element: int) -> None:
    items = [0, 1, 2, 100, 7]
    file = gguf_files.good(CONFIG, weights()).set("s", STRING, "x").set("a", ARRAY, (element, items))
    found = read_metadata(written(tmp_path / "m.gguf", file.set("none", ARRAY, (element, []))))
    assert found["a"].tolist() == ([0, 1, 1, 1, 1] if element == BOOL else items)
    assert found["a"].dtype == np.dtype(gguf_files.FORMATS[element])
    assert found["a"].flags.aligned
    assert found["none"].size == 0


def test_arrays_of_strings(tmp_path: Path) -> None:
    items = [b"", b"a", b"\xff\x00", "é".encode() * 300, b"", b"z"]
    file = gguf_files.good(CONFIG, weights()).set("a", ARRAY, (STRING, items)).set("none", ARRAY, (STRING, []))
    found = read_metadata(written(tmp_path / "m.gguf", file))["a"]
    assert (list(found), len(found), found[3], found[-1], found[1:3]) == (items, 6, items[3], b"z", items[1:3])
    assert b"z" in found
    with pytest.raises(IndexError):
        found[6]
    assert list(read_metadata(tmp_path / "m.gguf")["none"]) == []


def test_metadata_of_other_formats_is_empty(tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path / "m.bin", replace(CONFIG, head_size=8), 1, weights(replace(CONFIG, head_size=8)))
    opened = Checkpoint.open(path)
    assert (dict(opened.metadata), opened.format, opened.rope_factors) == ({}, "v1", None)
    with pytest.raises(ModelError, match=r"m\.bin: expected a GGUF file, which begins with b'GGUF', found b'24ka'$"):
        read_metadata(path)


def test_a_tokenizer_may_have_fewer_or_more_tokens_than_the_embedding_has_rows(tmp_path: Path) -> None:
    """The rows decide. Whoever reads the tokenizer has to compare."""
    for n in (3, 40):
        file = gguf_files.good(CONFIG, weights()).set("tokenizer.ggml.tokens", ARRAY, (STRING, ["x"] * n))
        opened = Checkpoint.open(written(tmp_path / "m.gguf", file))
        assert (opened.config.vocab_size, len(opened.metadata["tokenizer.ggml.tokens"])) == (CONFIG.vocab_size, n)


def test_an_output_that_equals_the_embedding_is_shared(tmp_path: Path) -> None:
    numbers = weights()
    file = gguf_files.good(CONFIG, numbers | {"wcls": numbers["token_embedding_table"]})
    assert Checkpoint.open(written(tmp_path / "m.gguf", file)).shared_classifier


# ---------------------------------------------------------------------------
# splits


def split(folder: Path, file: gguf_files.File, n_parts: int = 3, name: str = "m") -> list[Path]:
    """The file as parts, the tensors shared out in turn. The keys are in the first."""
    names, paths = list(file.tensors), []
    for number in range(n_parts):
        part = gguf_files.File(dict(file.keys) if number == 0 else {}, {each: file.tensors[each] for each in names[number::3]})
        part.set("split.no", U16, number).set("split.count", U16, n_parts).set("split.tensors.count", I32, len(names))
        paths.append(written(folder / f"{name}-{number + 1:05}-of-{n_parts:05}.gguf", part))
    return paths


@pytest.mark.parametrize("mmap", [True, False])
def test_a_split_model(tmp_path: Path, mmap: bool) -> None:
    expected = logits(written(tmp_path / "m.gguf", gguf_files.good(CONFIG, weights())))
    first, second, third = split(tmp_path, gguf_files.good(CONFIG, weights()).set("general.name", STRING, "x"))
    np.testing.assert_array_equal(logits(first, mmap), expected)
    assert read_metadata(first)["general.name"] == "x"
    with pytest.raises(ModelError, match=r"m-00002-of-00003\.gguf: expected the first of the 3 files of a model, found"):
        Checkpoint.open(second, mmap=mmap)
    third.unlink()
    with pytest.raises(FileNotFoundError, match=r"m-00001-of-00003\.gguf: .*, found no m-00003-of-00003\.gguf$"):
        Checkpoint.open(first, mmap=mmap)


def test_a_split_of_one_is_a_file(tmp_path: Path) -> None:
    file = gguf_files.good(CONFIG, weights()).set("split.no", U16, 0).set("split.count", U16, 1)
    assert Checkpoint.open(written(tmp_path / "any name", file)).config == CONFIG


# ---------------------------------------------------------------------------
# copies, exports


def test_copies_and_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.linspace(1, 3, CONFIG.head_size // 2, dtype=np.float32)
    file = gguf_files.good(CONFIG, weights()).add("rope_freqs.weight", table)
    path = written(tmp_path / "m.gguf", file)
    monkeypatch.chdir(tmp_path)
    opened = Checkpoint.open("m.gguf")
    assert copy.copy(opened) is copy.deepcopy(opened) is opened
    assert "metadata" not in repr(opened)
    pickled, whole = pickle.dumps(opened), pickle.dumps(Transformer(opened))
    assert len(pickled) < 2000
    monkeypatch.chdir("/")
    again = pickle.loads(pickled)
    assert (again.config, again.rope_factors, again.path) == (opened.config, opened.rope_factors, str(path))
    assert dict(again.metadata) == dict(opened.metadata)
    transformer = pickle.loads(whole)
    np.testing.assert_array_equal(transformer.forward([3, 4], transformer.new_cache()), logits_of(opened, [3, 4]))
    with pytest.raises(TypeError, match=r"m\.gguf: a checkpoint opened with mmap=False cannot be pickled"):
        pickle.dumps(Checkpoint.open(path, mmap=False))
    file.add("rope_freqs.weight", table + 1)
    written(path, file)
    with pytest.raises(ModelError, match=r"m\.gguf: expected the model that was pickled"):
        pickle.loads(pickled)


def logits_of(opened: Checkpoint, tokens: list[int]) -> np.ndarray:
    transformer = Transformer(opened)
    return transformer.forward(tokens, transformer.new_cache())


def test_mmap_false_does_not_depend_on_the_file(tmp_path: Path) -> None:
    file = gguf_files.good(CONFIG, weights()).set("a", ARRAY, (STRING, [b"x", b"yz"]))
    path = written(tmp_path / "m.gguf", file)
    expected, opened = logits(path), Checkpoint.open(path, mmap=False)
    with path.open("r+b") as stream:
        stream.truncate(100)
    transformer = Transformer(opened)
    np.testing.assert_array_equal(transformer.forward(TOKENS, transformer.new_cache(), logits=None), expected)
    assert list(opened.metadata["a"]) == [b"x", b"yz"]


@pytest.mark.parametrize("out", ["out.bin", "hf/"])
def test_export_from_a_file(tmp_path: Path, out: str) -> None:
    pytest.importorskip("safetensors", reason="needs safetensors: pip install '.[hf]'")
    path = written(tmp_path / "m.gguf", gguf_files.good(CONFIG, weights(tied=False), "bfloat16"))
    done = export(path, f"{tmp_path}{os.sep}{out}", "bfloat16")
    np.testing.assert_array_equal(logits(done.path), logits(path))


def test_export_dequantises(shared: Path, tmp_path: Path) -> None:
    """A block type becomes fp32 numbers, which are exact: as llama.cpp and the gguf package give them."""
    source = shared / "gguf" / "a-q4_k_m.gguf"
    done = export(source, tmp_path / "out.bin")
    opened, other = Checkpoint.open(done.path), Checkpoint.open(source)
    assert opened.config == other.config
    for name, weight in other.weights.items():
        np.testing.assert_array_equal(as_floats(opened.weights[name]), as_floats(weight))
