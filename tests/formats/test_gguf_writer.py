"""GGUF files that export writes, read by the gguf package, llama2c and transformers, and by llama.cpp where it is installed."""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import folders
import gguf
import json_tokenizers
import numpy as np
import pytest
import tokenizer_models
from exports import CONFIG, assert_same, logits_of, needs, needs_safetensors, needs_transformers, opened_weights, random_weights

import llama2c
from llama2c import Checkpoint, Config, Tokenizer
from llama2c.config import RopeScaling
from llama2c.errors import ModelError, RequestError
from llama2c.formats.gguf_writer import FILE_TYPES, fit_type, has_more_bits

IDS = np.random.default_rng(2).integers(3, 300, 20)
WIDE = Config(dim=256, hidden_dim=256, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=40)
LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
NAMES = {"token_embedding_table": "token_embd", "rms_final_weight": "output_norm", "wcls": "output"}
LAYER_NAMES = {
    "rms_att_weight": "attn_norm", "wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output",
    "rms_ffn_weight": "ffn_norm", "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up",
}  # fmt: skip


def write_v3(path: Path, config: Config, dtype: str = "float32", shared: bool = True) -> checkpoints.Arrays:
    """A file, and the numbers it has."""
    weights = random_weights(shared, config)
    checkpoints.write(path, config, 3, weights, dtype=dtype)
    if dtype == "float32":
        return weights
    matrices = (name for name in weights if "rms" not in name)
    return weights | {name: checkpoints.widen(checkpoints.narrow(weights[name], dtype), dtype) for name in matrices}


def by_gguf_name(weights: checkpoints.Arrays) -> checkpoints.Arrays:
    named = {f"{NAMES[name]}.weight": array for name, array in weights.items() if name in NAMES}
    for name, spelled in LAYER_NAMES.items():
        named |= {f"blk.{layer}.{spelled}.weight": array for layer, array in enumerate(weights[name])}
    return named


def read_with_gguf(path: Path) -> tuple[dict[str, Any], checkpoints.Arrays, dict[str, str]]:
    """By the gguf package: the keys with their types, the tensors in fp32, and the types of the tensors."""
    reader = gguf.GGUFReader(path)
    fields = {k: (f.types[0].name, f.contents()) for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
    return fields, tensors, {t.name: t.tensor_type.name for t in reader.tensors}


# ---------------------------------------------------------------------------
# keys and tensors


@pytest.mark.parametrize("shared", [True, False])
def test_keys_and_tensors(tmp_path: Path, shared: bool) -> None:
    weights = write_v3(tmp_path / "My model.bin", CONFIG, shared=shared)
    out = tmp_path / "m.gguf"
    done = llama2c.export(tmp_path / "My model.bin", out)
    assert (done.format, done.version, done.dtype, done.group_size) == ("gguf", None, "float32", None)
    assert done.size == out.stat().st_size and done.rounding == (0.0, "")
    fields, tensors, types = read_with_gguf(out)
    u32 = {
        "vocab_size": 300, "context_length": 40, "embedding_length": 64, "block_count": 2, "feed_forward_length": 96,
        "attention.head_count": 8, "attention.head_count_kv": 4, "rope.dimension_count": 8,
    }  # fmt: skip
    expected = {f"llama.{key}": ("UINT32", value) for key, value in u32.items()}
    expected |= {
        "general.architecture": ("STRING", "llama"),
        "general.type": ("STRING", "model"),
        "general.name": ("STRING", "My model"),
        "general.file_type": ("UINT32", 0),
        "llama.attention.layer_norm_rms_epsilon": ("FLOAT32", float(np.float32(1e-5))),
        "llama.rope.freq_base": ("FLOAT32", 10000.0),
        "tokenizer.ggml.model": ("STRING", "none"),
    }
    assert fields == expected
    assert_same(tensors, by_gguf_name(weights))
    assert list(types)[:3] == ["token_embd.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.weight"]
    assert list(types)[-1 if shared else -2] == "output_norm.weight"
    assert set(types.values()) == {"F32"}
    assert_same(opened_weights(out), weights)


def test_other_keys(tmp_path: Path) -> None:
    scaling = RopeScaling("linear", 4.0)
    config = replace(CONFIG, head_size=16, rope_theta=500000.0, norm_eps=1e-6, rope_scaling=scaling)
    write_v3(tmp_path / "m.bin", config)
    llama2c.export(tmp_path / "m.bin", tmp_path / "m.gguf")
    fields, tensors, _ = read_with_gguf(tmp_path / "m.gguf")
    assert fields["llama.attention.key_length"] == fields["llama.attention.value_length"] == ("UINT32", 16)
    assert fields["llama.rope.dimension_count"] == ("UINT32", 16)
    assert fields["llama.rope.freq_base"] == ("FLOAT32", 500000.0)
    assert fields["llama.attention.layer_norm_rms_epsilon"] == ("FLOAT32", float(np.float32(1e-6)))
    assert fields["llama.rope.scaling.type"] == ("STRING", "linear")
    assert fields["llama.rope.scaling.factor"] == ("FLOAT32", 4.0)
    assert "rope_freqs.weight" not in tensors
    assert Checkpoint.open(tmp_path / "m.gguf").config == config


def test_factors_of_llama_3(tmp_path: Path) -> None:
    """What transformers divides its frequencies by."""
    config = replace(CONFIG, head_size=64, rope_theta=500000.0, rope_scaling=LLAMA3)
    write_v3(tmp_path / "m.bin", config)
    llama2c.export(tmp_path / "m.bin", tmp_path / "m.gguf")
    _, tensors, _ = read_with_gguf(tmp_path / "m.gguf")
    plain = 500000.0 ** (-np.arange(0, 64, 2) / 64)
    wavelengths = 2 * np.pi / plain
    smooth = np.clip((8192 / wavelengths - 1) / 3, 0, 1)
    expected = plain / ((1 - smooth) * plain / 8 + smooth * plain)
    assert expected.min() == 1 and expected.max() == 8
    np.testing.assert_allclose(tensors["rope_freqs.weight"], expected, rtol=2e-6)
    assert Checkpoint.open(tmp_path / "m.gguf").config == config


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("scaling", [None, LLAMA3, RopeScaling("linear", 3.0)], ids=["plain", "llama3", "linear"])
def test_the_same_logits(tmp_path: Path, dtype: str, shared: bool, scaling: RopeScaling | None) -> None:
    config = replace(CONFIG, head_size=16, rope_theta=20000.0, rope_scaling=scaling, norm_eps=2e-6)
    write_v3(tmp_path / "m.bin", config, dtype, shared)
    done = llama2c.export(tmp_path / "m.bin", tmp_path / "m.gguf", dtype)
    assert done.rounding.error == 0
    np.testing.assert_array_equal(logits_of(tmp_path / "m.gguf", IDS), logits_of(tmp_path / "m.bin", IDS))


def test_factors_that_only_gguf_has(tmp_path: Path) -> None:
    """They go from file to file, and no other format can store them."""
    scaling = RopeScaling("llama3", 5.0, 2.0, 3.0, 100)
    write_v3(tmp_path / "m.bin", replace(CONFIG, rope_scaling=scaling))
    llama2c.export(tmp_path / "m.bin", tmp_path / "a.gguf")
    assert Checkpoint.open(tmp_path / "a.gguf").config.rope_scaling is None
    llama2c.export(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert_same(read_with_gguf(tmp_path / "b.gguf")[1], read_with_gguf(tmp_path / "a.gguf")[1])
    np.testing.assert_allclose(logits_of(tmp_path / "b.gguf", IDS), logits_of(tmp_path / "m.bin", IDS), atol=1e-4)
    for out, what in (("c.bin", "a file of llama2c"), ("hf/", "a Hugging Face folder")):
        with pytest.raises(ModelError, match=f"expected the table of Llama 3, or none, because {what} stores no other$"):
            llama2c.export(tmp_path / "a.gguf", f"{tmp_path}/{out}")
    assert not {"c.bin", "hf"} & set(os.listdir(tmp_path))


# ---------------------------------------------------------------------------
# blocks


@pytest.mark.parametrize("dtype", [name for name in FILE_TYPES if name.startswith("q")])
def test_blocks(tmp_path: Path, dtype: str) -> None:
    """llama2c and the gguf package read the same numbers, and the error is the largest difference."""
    weights = by_gguf_name(write_v3(tmp_path / "m.bin", WIDE, shared=False))
    done = llama2c.export(tmp_path / "m.bin", tmp_path / "m.gguf", dtype)
    assert done.size == (tmp_path / "m.gguf").stat().st_size
    fields, tensors, _ = read_with_gguf(tmp_path / "m.gguf")
    assert fields["general.file_type"][1] == FILE_TYPES[dtype] and fields["general.quantization_version"][1] == 2
    opened = {n: llama2c.tensors.as_floats(w) for n, w in Checkpoint.open(tmp_path / "m.gguf").weights.items()}
    assert_same(by_gguf_name(opened), tensors)
    errors = {name: float(np.abs(tensors[name] - weights[name]).max()) for name in weights}
    worst = max(errors, key=errors.__getitem__)
    assert done.rounding == (errors[worst], worst)
    bits = 8 if dtype == "q8_0" else int(dtype[1])
    assert 0 < errors[worst] < 0.4 * 2.0 ** (2 - bits)


@pytest.mark.parametrize("dtype", [name for name in FILE_TYPES if name != "float32"])
def test_types_of_llama_quantize(tmp_path: Path, shared: Path, dtype: str) -> None:
    """Each tensor has the type that llama-quantize gave it, from the same file."""
    theirs = {"float16": "f16", "bfloat16": "bf16", "q4_k": "q4_k_m"}.get(dtype, dtype)
    done = llama2c.export(shared / "gguf" / "a-f32.gguf", tmp_path / "m.gguf", theirs)
    assert done.dtype == dtype and done.notes == ()
    fields, tensors, types = read_with_gguf(tmp_path / "m.gguf")
    their_fields, their_tensors, their_types = read_with_gguf(shared / "gguf" / f"a-{theirs}.gguf")
    assert types == their_types
    for key in ("general.file_type", "general.name"):
        assert fields[key] == their_fields[key]
    assert {k: v for k, v in fields.items() if "tokenizer" in k} == {k: v for k, v in their_fields.items() if "tokenizer" in k}
    if not dtype.startswith("q"):
        assert_same(tensors, their_tensors)
    _, exact, _ = read_with_gguf(shared / "gguf" / "a-f32.gguf")
    our_error, their_error = (sum(((found[n] - exact[n]) ** 2).sum() for n in exact) for found in (tensors, their_tensors))
    assert our_error <= their_error


def test_layers_with_more_bits() -> None:
    """Those of Llama 2 7B in Q4_K_M: half of the 32."""
    assert [i for i in range(32) if has_more_bits(i, 32)] == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def test_types_that_fit() -> None:
    """What llama-quantize falls back to."""
    assert [fit_type("q4_k", n) for n in (512, 576, 48)] == ["q4_k", "q5_0", "float16"]
    assert [fit_type("q6_k", n) for n in (512, 576, 48)] == ["q6_k", "q8_0", "float16"]
    assert [fit_type("q4_1", n) for n in (512, 576, 48)] == ["q4_1", "q4_1", "float16"]


def test_other_types_are_told(tmp_path: Path) -> None:
    """dim = 64 and hidden_dim = 80: no row has a whole block of 256, and those of w2 none of 32."""
    write_v3(tmp_path / "m.bin", replace(CONFIG, hidden_dim=80, n_layers=3))
    done = llama2c.export(tmp_path / "m.bin", tmp_path / "m.gguf", "q4_k")
    assert done.notes[-1] == (
        "the number of columns of some matrices is not a multiple of 256 or 32: 2 are q8_0 instead of q6_k, "
        "17 are q5_0 instead of q4_k, 2 are float16 instead of q4_k, 1 is float16 instead of q6_k"
    )
    _, _, types = read_with_gguf(tmp_path / "m.gguf")
    assert types["token_embd.weight"] == "Q8_0" and types["blk.0.attn_q.weight"] == "Q5_0"
    assert types["blk.0.ffn_down.weight"] == "F16" and types["blk.0.attn_v.weight"] == "Q5_0"
    assert types["blk.2.attn_v.weight"] == "Q8_0" and types["blk.2.attn_norm.weight"] == "F32"
    assert np.isfinite(logits_of(tmp_path / "m.gguf", IDS)).all()


# ---------------------------------------------------------------------------
# errors


def test_values_that_cannot_be_written(tmp_path: Path) -> None:
    for value, dtype, error in (
        (np.nan, "q4_0", "blk.1.attn_k.weight: expected finite weights, found nan"),
        (np.inf, "float32", "blk.1.attn_k.weight: expected finite weights, found inf"),
        (1e9, "q8_0", "blk.1.attn_k.weight: expected values up to "),
        (1e9, "q4_k", "blk.1.attn_k.weight: expected values up to "),
        (1e9, "float16", "blk.1.attn_k.weight: expected weights that float16 holds, found 1000000000.0"),
    ):
        weights = random_weights(config=WIDE)
        weights["wk"][1, 2, 3] = value
        checkpoints.write(tmp_path / "m.bin", WIDE, 0, weights)
        with pytest.raises(ModelError) as caught:
            llama2c.export(tmp_path / "m.bin", tmp_path / "m.gguf", dtype)
        assert str(caught.value).startswith(f"{tmp_path}/m.bin: {error}")
        assert os.listdir(tmp_path) == ["m.bin"]


@pytest.mark.parametrize(("name", "value"), [("rope_theta", 1e39), ("norm_eps", 1e-50)])
def test_settings_that_fp32_does_not_hold(tmp_path: Path, name: str, value: float) -> None:
    write_v3(tmp_path / "m.bin", replace(CONFIG, **{name: value}))
    with pytest.raises(ModelError, match=f"m.bin: {name}: expected a number that fp32 holds, as GGUF has it, found "):
        llama2c.export(tmp_path / "m.bin", tmp_path / "m.gguf")
    assert os.listdir(tmp_path) == ["m.bin"]


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff m.bin"))
    write_v3(path, CONFIG)
    llama2c.export(path, tmp_path / "m.gguf")
    assert read_with_gguf(tmp_path / "m.gguf")[0]["general.name"] == ("STRING", "? m")


def test_a_tokenizer_that_does_not_fit(tmp_path: Path) -> None:
    """An error before anything is written; another one can be named."""
    write_v3(tmp_path / "m.bin", CONFIG)
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_models.tokenizer_bin(tokenizer_models.pieces(320)))
    (tmp_path / "t300.bin").write_bytes(tokenizer_models.tokenizer_bin(tokenizer_models.pieces(300)))
    with pytest.raises(ModelError, match=r"tokenizer.bin: expected the end after 300 tokens, at byte "):
        llama2c.export(tmp_path / "m.bin", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
    llama2c.export(tmp_path / "m.bin", tmp_path / "m.gguf", tokenizer=tmp_path / "t300.bin")
    assert Tokenizer.open(tmp_path / "m.gguf").vocab_size == 300
    with pytest.raises(RequestError, match=r"^tokenizer: expected None for a file of llama2c, found t.bin$"):
        llama2c.export(tmp_path / "m.bin", tmp_path / "n.bin", tokenizer="t.bin")


def test_a_file_in_the_place_of_its_source(tmp_path: Path) -> None:
    weights = write_v3(tmp_path / "m.bin", CONFIG)
    llama2c.export(tmp_path / "m.bin", tmp_path / "m.gguf")
    llama2c.export(tmp_path / "m.gguf", tmp_path / "m.gguf")
    assert_same(opened_weights(tmp_path / "m.gguf"), weights)


# ---------------------------------------------------------------------------
# from a folder, and into one


def llama3_folder(folder: Path, config: Config = CONFIG, **settings: Any) -> tuple[Path, Config]:
    """A model in bfloat16 with a byte-level tokenizer and a chat template."""
    package = json_tokenizers.llama3()
    config = replace(config, vocab_size=package.get_vocab_size(), rope_theta=500000.0, rope_scaling=LLAMA3)
    folders.write_model(folder, config, random_weights(False, config), bfloat16=True)
    ids = {"bos_token_id": package.token_to_id("<|begin_of_text|>"), "eos_token_id": package.token_to_id("<|eot_id|>")}
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text[:-1] + "".join(f', "{key}": {id}' for key, id in ids.items()) + "}")
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}<|eot_id|>{% endfor %}"
    json_tokenizers.save(folder, package, {**json_tokenizers.CONFIGS["llama3"], "chat_template": template})
    return folder, config


@needs_safetensors
def test_from_a_folder_and_back(tmp_path: Path) -> None:
    """The same weights, bit for bit, the same settings, the same ids and the same template."""
    folder, config = llama3_folder(tmp_path / "in")
    llama2c.export(folder, tmp_path / "m.gguf", "bf16")
    done = llama2c.export(tmp_path / "m.gguf", f"{tmp_path}/out/", "bf16")
    assert done.rounding.error == 0 and done.notes == ()
    before, after = Checkpoint.open(folder), Checkpoint.open(tmp_path / "out")
    assert before.config == after.config == Checkpoint.open(tmp_path / "m.gguf").config == config
    for name, weight in before.weights.items():
        np.testing.assert_array_equal(llama2c.tensors.as_floats(after.weights[name]), llama2c.tensors.as_floats(weight))
    assert after.dtype == "bfloat16"
    np.testing.assert_array_equal(logits_of(tmp_path / "m.gguf", IDS), logits_of(folder, IDS))
    ours, theirs = (Tokenizer.open(place, config.vocab_size) for place in (tmp_path / "out", folder))
    text = "Once upon a time<|eot_id|> 1234 ż"
    assert ours.encode(text) == theirs.encode(text) == Tokenizer.open(tmp_path / "m.gguf").encode(text)
    assert ours.chat_template is not None and theirs.chat_template is not None
    assert ours.chat_template.source == theirs.chat_template.source
    settings = (llama2c.files.read_json(place / "config.json") for place in (tmp_path / "out", folder))
    new, old = settings
    assert [new[key] for key in ("bos_token_id", "eos_token_id")] == [old[key] for key in ("bos_token_id", "eos_token_id")]


def test_from_one_file_to_another(tmp_path: Path) -> None:
    """What a file says of its model in general, and of its tokenizer, is copied as it is."""
    write_v3(tmp_path / "m.bin", CONFIG)
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_models.tokenizer_bin(tokenizer_models.pieces(300)))
    llama2c.export(tmp_path / "m.bin", tmp_path / "a.gguf")
    with_more_keys(tmp_path / "a.gguf", tmp_path / "b.gguf")
    os.remove(tmp_path / "tokenizer.bin")
    llama2c.export(tmp_path / "b.gguf", tmp_path / "c.gguf", "q8_0")
    fields, _, _ = read_with_gguf(tmp_path / "b.gguf")
    found, _, _ = read_with_gguf(tmp_path / "c.gguf")
    assert found.pop("general.file_type")[1] == 7 and found.pop("general.quantization_version")[1] == 2
    del fields["general.file_type"], fields["mine.other"]
    assert found == fields
    old, new = (gguf.GGUFReader(path).fields for path in (tmp_path / "b.gguf", tmp_path / "c.gguf"))
    assert all(new[key].types == old[key].types for key in fields)


def with_more_keys(path: Path, out: Path) -> None:
    """A copy of a file by the gguf package, with keys that llama2c knows nothing of."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            array = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], array)
    writer.add_string("general.license", "mit")
    writer.add_array("general.tags", ["a", "b ż"])
    writer.add_array("tokenizer.ggml.map", [-1, 2, 3])
    writer.add_int32("tokenizer.ggml.low", -7)
    writer.add_uint64("tokenizer.ggml.high", 1 << 40)
    writer.add_string("tokenizer.chat_template.tools", "{{ tools }}")
    writer.add_float32("tokenizer.ggml.part", 0.1)
    writer.add_string("mine.other", "not copied")
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---------------------------------------------------------------------------
# other readers


@needs_transformers
@needs("accelerate")
def test_transformers_reads_the_file(tmp_path: Path) -> None:
    import torch
    import transformers

    folder, config = llama3_folder(tmp_path / "in")
    llama2c.export(folder, tmp_path / "m.gguf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert model.config.num_key_value_heads == config.n_kv_heads and model.config.vocab_size == config.vocab_size
    state = model.state_dict()
    for name, array in folders.hf_tensors(floats(folder), config.head_size).items():
        np.testing.assert_array_equal(state[name].numpy(), array, err_msg=name)
    text = "Once upon a time, 1234 żółw"
    assert tokenizer.encode(text) == Tokenizer.open(folder, config.vocab_size).encode(text)


def floats(folder: Path) -> checkpoints.Arrays:
    """The weights of a folder, in llama2c's order, by way of a file."""
    out = folder.parent / "floats.bin"
    llama2c.export(folder, out, version=3)
    return {name: np.array(weight) for name, weight in Checkpoint.open(out).weights.items()}


@pytest.mark.parametrize("kind", ["stories260K", "tales1M", "llama 3"])
def test_llama_cpp_writes_the_same_text(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    if kind == "llama 3":
        model, _ = llama3_folder(tmp_path / "in", replace(CONFIG, seq_len=256, n_kv_heads=8, hidden_dim=128))
    else:
        model = tmp_path / f"{kind}.bin"
        real = request.getfixturevalue("shared") / "models" if kind == "stories260K" else Path(llama2c.locate.BUNDLED).parent
        shutil.copy(real / model.name, model)
        shutil.copy(real / ("tok512.bin" if kind == "stories260K" else "tokenizer.bin"), tmp_path / "tokenizer.bin")
    llama2c.export(model, tmp_path / "m.gguf")
    ours = llama2c.load(model)
    prompt = "Once upon a time"
    expected = ours.generate(prompt, max_tokens=60, temperature=0).tokens
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=128, n_threads=1, verbose=False)
    ids = theirs.tokenize(prompt.encode(), add_bos=True)
    assert ids == ours.tokenizer.encode(prompt)
    found = [token for token, _ in zip(theirs.generate(ids, temp=0, top_k=1, repeat_penalty=1.0), range(60), strict=False)]
    assert found[: len(expected)] == list(expected)
