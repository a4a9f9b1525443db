"""Files into Hugging Face folders and back, bit by bit.

Folders are written and read here from the description of their format. If transformers is installed, its logits are compared.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from exports import (
    CONFIG,
    as_bf16,
    assert_same,
    from_bf16,
    logits_of,
    needs_safetensors,
    needs_transformers,
    opened_weights,
    random_weights,
    transformers_logits,
)
from folders import hf_settings, hf_tensors, write_hf

import llama2c
from llama2c import Checkpoint, Config


@needs_safetensors
@pytest.mark.parametrize("n_shards", [0, 1, 3])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_folder_to_file(tmp_path: Path, dtype: str, shared: bool, n_shards: int) -> None:
    weights = random_weights(shared)
    tensors = hf_tensors(weights, CONFIG.head_size)
    if dtype == "float16":
        tensors = {name: array.astype("<f2") for name, array in tensors.items()}
        weights = {name: array.astype("<f2").astype("<f4") for name, array in weights.items()}
    elif dtype == "bfloat16":
        tensors = {name: as_bf16(array) for name, array in tensors.items()}
        weights = {name: from_bf16(as_bf16(array)) for name, array in weights.items()}
    folder = write_hf(tmp_path / "hf", tensors, hf_settings(CONFIG, shared), n_shards)
    done = llama2c.export(folder, tmp_path / "m.bin")
    assert done.version == 0
    assert_same(opened_weights(tmp_path / "m.bin"), weights)
    llama2c.export(folder, tmp_path / "q.bin", "q8_0", group_size=16)
    assert (tmp_path / "q.bin").read_bytes() == b"".join(checkpoints.parts(CONFIG, 2, weights, 16))


@needs_safetensors
def test_what_a_folder_may_leave_out_or_say_twice(tmp_path: Path) -> None:
    weights = random_weights()
    settings = hf_settings(CONFIG, True)
    del settings["tie_word_embeddings"], settings["rope_theta"], settings["hidden_act"]
    tensors = hf_tensors(weights, CONFIG.head_size)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, "<f8")  # old files have it; it is computed
    more = {"rope_scaling": None, "attention_bias": False, "mlp_bias": False, "head_dim": 8, "quantization_config": None}
    for i, extra in enumerate([{}, more, {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}]):
        folder = write_hf(tmp_path / str(i), tensors, {**settings, **extra})
        llama2c.export(folder, tmp_path / "m.bin")
        assert_same(opened_weights(tmp_path / "m.bin"), weights)
    tensors["lm_head.weight"] = weights["token_embedding_table"]  # tied, and there
    for i, tied in enumerate((True, False)):
        folder = write_hf(tmp_path / f"tied{i}", tensors, hf_settings(CONFIG, tied))
        llama2c.export(folder, tmp_path / "m.bin")
        assert Checkpoint.open(tmp_path / "m.bin").shared_classifier


@needs_safetensors
def test_no_kv_heads_means_as_many_as_heads(tmp_path: Path) -> None:
    config = Config(64, 96, 1, 8, 8, 300, 2048)
    settings = hf_settings(config, True)
    del settings["num_key_value_heads"], settings["max_position_embeddings"]
    folder = write_hf(tmp_path / "hf", hf_tensors(random_weights(config=config), config.head_size), settings)
    llama2c.export(folder, tmp_path / "m.bin")
    assert Checkpoint.open(tmp_path / "m.bin").config == config


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_file_to_folder(tmp_path: Path, version: int, shared: bool) -> None:
    """Read by hand: what safetensors says about the format is not asked."""
    weights = random_weights(shared)
    checkpoints.write(tmp_path / "m.bin", CONFIG, version, weights, 16 if version == 2 else None)
    weights = opened_weights(tmp_path / "m.bin")
    done = llama2c.export(tmp_path / "m.bin", f"{tmp_path}/hf/")
    assert (done.path, done.version) == (tmp_path / "hf", None)
    assert sorted(os.listdir(tmp_path)) == ["hf", "m.bin"]
    assert sorted(os.listdir(tmp_path / "hf")) == ["config.json", "model.safetensors"]
    settings = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert hf_settings(CONFIG, shared).items() <= settings.items()
    assert (settings["bos_token_id"], settings["eos_token_id"]) == (None, None)  # a file does not say
    content = (tmp_path / "hf" / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    assert size % 8 == 0 and done.size == len(content)
    entries = json.loads(content[8 : 8 + size])
    assert entries.pop("__metadata__") == {"format": "pt"}
    found = {}
    end = 0
    for name, entry in entries.items():
        begin, end = entry["data_offsets"]
        assert entry["dtype"] == "F32"
        found[name] = np.frombuffer(content[8 + size + begin : 8 + size + end], "<f4").reshape(entry["shape"])
    assert 8 + size + end == len(content)
    assert_same(found, hf_tensors(weights, CONFIG.head_size))


@needs_safetensors
def test_folder_and_back_is_the_same_file(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "a.bin", CONFIG, 1, random_weights(False))
    llama2c.export(tmp_path / "a.bin", tmp_path / "hf", format="hf")
    llama2c.export(tmp_path / "hf", tmp_path / "b.bin", version=1)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


# ---------------------------------------------------------------------------
# what a folder has is kept, what a file does not know is not made up


def test_a_file_with_a_tokenizer_beside_it(tmp_path: Path) -> None:
    """A tokenizer.bin always has 1 and 2 as BOS and EOS, and the folder gets a copy of it."""
    checkpoints.write(tmp_path / "m.bin", CONFIG, 0, random_weights())
    (tmp_path / "tokenizer.bin").write_bytes(b"any content")
    llama2c.export(tmp_path / "m.bin", f"{tmp_path}/hf/")
    settings = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (settings["bos_token_id"], settings["eos_token_id"]) == (1, 2)
    assert (tmp_path / "hf" / "tokenizer.bin").read_bytes() == b"any content"
    assert sorted(os.listdir(tmp_path / "hf")) == ["config.json", "model.safetensors", "tokenizer.bin"]


@needs_safetensors
def test_settings_of_a_folder_are_kept(tmp_path: Path) -> None:
    """But for those that are no longer true: its type, code of its own, and rotary settings, which get one spelling."""
    others = {"bos_token_id": 7, "eos_token_id": [8, 9], "pad_token_id": 3, "initializer_range": 0.05, "my": {"own": "é"}}
    gone = {"auto_map": {"AutoModel": "modeling.Model"}, "dtype": "bfloat16", "_name_or_path": "/home/me/x"}
    rotary = {"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0}}
    settings = {**hf_settings(CONFIG, True), **others, **gone, **rotary, "torch_dtype": "bfloat16"}
    del settings["rope_theta"], settings["rope_scaling"]
    write_hf(tmp_path / "a", hf_tensors(random_weights(), CONFIG.head_size), settings)
    llama2c.export(tmp_path / "a", f"{tmp_path}/b/", "float16")
    found = json.loads((tmp_path / "b" / "config.json").read_text())
    assert others.items() <= found.items() and not found.keys() & {"rope_parameters", *gone}
    assert (found["torch_dtype"], found["rope_theta"]) == ("float16", 500.0)
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert Checkpoint.open(tmp_path / "b").config == Checkpoint.open(tmp_path / "a").config


@needs_safetensors
def test_ids_that_a_folder_does_not_say_stay_unsaid(tmp_path: Path) -> None:
    write_hf(tmp_path / "a", hf_tensors(random_weights(), CONFIG.head_size), hf_settings(CONFIG, True))
    llama2c.export(tmp_path / "a", f"{tmp_path}/b/")
    assert not json.loads((tmp_path / "b" / "config.json").read_text()).keys() & {"bos_token_id", "eos_token_id"}


@needs_safetensors
def test_the_other_files_of_a_folder_are_copied(tmp_path: Path) -> None:
    names = ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    names += [
        "added_tokens.json",
        "tokenizer.model",
        "tokenizer.bin",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
    ]
    folder = write_hf(tmp_path / "a", hf_tensors(random_weights(), CONFIG.head_size), hf_settings(CONFIG, True), 2)
    for name in names:
        (folder / name).write_bytes(os.urandom(50))
    (folder / "tokenizer.json").rename(tmp_path / "blob")
    (folder / "tokenizer.json").symlink_to("../blob")  # as in the cache of the hub
    (folder / "pytorch_model.bin").write_bytes(b"not this one")
    llama2c.export(folder, f"{tmp_path}/b/")
    assert sorted(os.listdir(tmp_path / "b")) == sorted(["config.json", "model.safetensors", *names])
    for name in names:
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()
        assert not (tmp_path / "b" / name).is_symlink()


@needs_safetensors
def test_a_companion_that_cannot_be_copied(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "a", hf_tensors(random_weights(), CONFIG.head_size), hf_settings(CONFIG, True))
    (folder / "tokenizer.json").symlink_to("none")
    with pytest.raises(FileNotFoundError, match=r"a/tokenizer.json: expected a readable file, found a link to none, which "):
        llama2c.export(folder, f"{tmp_path}/b/")
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    with pytest.raises(ValueError, match=r"^\S+/a/tokenizer.json: expected a regular file, found a special file$"):
        llama2c.export(folder, f"{tmp_path}/b/")
    assert os.listdir(tmp_path) == ["a"]


@needs_transformers
@pytest.mark.filterwarnings("ignore")
def test_transformers_tokenizes_and_ends_as_before(tmp_path: Path) -> None:
    """The tokenizer gives the same ids, and generation ends at the same tokens, which are not 2."""
    import json_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    package = json_tokenizers.llama3()
    end = package.token_to_id("<|eot_id|>")
    settings = {**hf_settings(CONFIG, False), "vocab_size": package.get_vocab_size()}
    settings |= {"bos_token_id": package.token_to_id("<|begin_of_text|>"), "eos_token_id": end}
    import torch

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**settings, initializer_range=0.2)).eval()
    model.generation_config.eos_token_id = [end, end - 1]
    model.save_pretrained(tmp_path / "a")
    config = {
        **json_tokenizers.CONFIGS["llama3"],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": "{{ messages }}",
    }
    json_tokenizers.save(tmp_path / "a", package, config)
    llama2c.export(tmp_path / "a", f"{tmp_path}/b/")
    text = "One day, Lily saw a big red ball: 12 345!"
    ids, templates, ends, texts = [], [], [], []
    for folder in ("a", "b"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / folder)
        opened = AutoModelForCausalLM.from_pretrained(tmp_path / folder).eval()
        ids.append(tokenizer(text)["input_ids"])
        templates.append(tokenizer.chat_template)
        ends.append((opened.generation_config.eos_token_id, opened.config.bos_token_id, opened.config.eos_token_id))
        opened.lm_head.weight.data[end - 1] *= 30  # so that it is drawn soon
        made = opened.generate(torch.tensor([ids[-1][:5]]), max_new_tokens=30, do_sample=False)
        texts.append(made[0].tolist())
    assert ids[0] == ids[1] and templates[0] == templates[1] == "{{ messages }}"
    assert ends[0] == ends[1] == ([end, end - 1], settings["bos_token_id"], end)
    assert texts[0] == texts[1] and len(texts[0]) < 35
    ours = [llama2c.load(tmp_path / folder, n_threads=1) for folder in ("a", "b")]
    assert ours[0].tokenizer.encode(text) == ours[1].tokenizer.encode(text) == ids[0]
    assert (
        ours[0].generate(text, max_tokens=9, temperature=0).tokens == ours[1].generate(text, max_tokens=9, temperature=0).tokens
    )


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "m.bin", CONFIG, 0, random_weights())
    with pytest.raises(OSError, match=r": expected a new or an empty folder, found one that is not$"):
        llama2c.export(tmp_path / "m.bin", f"{tmp_path}/")
    with pytest.raises(OSError, match=r"m.bin: expected a new or an empty folder, found one that is not$"):
        llama2c.export(tmp_path / "m.bin", tmp_path / "m.bin", format="hf")
    assert os.listdir(tmp_path) == ["m.bin"]
    (tmp_path / "empty").mkdir()
    llama2c.export(tmp_path / "m.bin", f"{tmp_path}/empty/")
    assert len(os.listdir(tmp_path / "empty")) == 2


# ---------------------------------------------------------------------------
# with transformers


def random_llama(tied: bool, n_kv_heads: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(3)
    settings = {**hf_settings(CONFIG, tied), "num_key_value_heads": n_kv_heads, "initializer_range": 0.2}
    return AutoModelForCausalLM.from_config(LlamaConfig(**settings)).eval()


@needs_transformers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n_kv_heads", [8, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_transformers(tmp_path: Path, tied: bool, n_kv_heads: int) -> None:
    model = random_llama(tied, n_kv_heads)
    model.save_pretrained(tmp_path / "hf", max_shard_size="60KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    ids = np.random.default_rng(1).integers(0, CONFIG.vocab_size, CONFIG.seq_len)
    expected = transformers_logits(model, ids)
    for version in (0, 1):
        llama2c.export(tmp_path / "hf", tmp_path / "m.bin", version=version)
        assert Checkpoint.open(tmp_path / "m.bin").shared_classifier == tied
        found = logits_of(tmp_path / "m.bin", ids)
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    llama2c.export(tmp_path / "hf", tmp_path / "q.bin", "q8_0")
    found = logits_of(tmp_path / "q.bin", ids)
    assert 1e-4 * np.abs(expected).max() < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


@needs_transformers
@pytest.mark.filterwarnings("ignore")
def test_transformers_loads_what_is_written(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    for shared in (True, False):
        weights = random_weights(shared)
        checkpoints.write(tmp_path / "m.bin", CONFIG, 1, weights)
        folder = tmp_path / f"hf{shared}"
        llama2c.export(tmp_path / "m.bin", folder, format="hf")
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        assert model.dtype == torch.float32
        assert (model.config.bos_token_id, model.config.eos_token_id) == (None, None)
        ids = np.random.default_rng(2).integers(0, CONFIG.vocab_size, CONFIG.seq_len)
        expected, found = logits_of(tmp_path / "m.bin", ids), transformers_logits(model, ids)
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@needs_transformers
@pytest.mark.filterwarnings("ignore")
def test_folder_to_folder_keeps_what_files_cannot_hold(tmp_path: Path) -> None:
    """Shards become one, and the rotary settings of Llama 3.1 and the width of the heads stay."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    scaling = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 16
    settings = hf_settings(CONFIG, False, rope_theta=500.0, rope_scaling=scaling, head_dim=16, rms_norm_eps=1e-3)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**settings, initializer_range=0.2)).eval()
    model.save_pretrained(tmp_path / "a", max_shard_size="60KB")
    llama2c.export(tmp_path / "a", f"{tmp_path}/b/")
    ids = np.random.default_rng(6).integers(0, CONFIG.vocab_size, CONFIG.seq_len)
    expected = transformers_logits(model, ids)
    found = transformers_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "b"), ids)
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()
    (tmp_path / "b" / "config.json").write_text(json.dumps({**settings, "rope_scaling": None}))
    other = transformers_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "b"), ids)
    assert np.abs(other - expected).max() > 1e-3 * np.abs(expected).max()  # they do make a difference


@needs_transformers
@pytest.mark.filterwarnings("ignore")
def test_bfloat16_of_transformers(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    random_llama(False, 4).to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    llama2c.export(tmp_path / "hf", tmp_path / "m.bin")
    ids = np.random.default_rng(4).integers(0, CONFIG.vocab_size, CONFIG.seq_len)
    expected = transformers_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "hf", torch_dtype=torch.float32), ids)
    assert np.abs(logits_of(tmp_path / "m.bin", ids) - expected).max() < 1e-4 * np.abs(expected).max()
