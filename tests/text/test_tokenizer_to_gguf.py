"""Tokenizers put into GGUF files, and taken out again: the same ids and texts; the keys, read by the gguf package."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import gguf
import json_tokenizers
import pytest
import tokenizer_models
from tokenizers import Tokenizer as Package
from tokenizers import normalizers, pre_tokenizers

from llama2c import Tokenizer
from llama2c.errors import ModelError
from llama2c.formats.gguf import read_metadata
from llama2c.formats.gguf_writer import header
from llama2c.text.tokenizer_from_gguf import folder_files, tokenizer_bin
from llama2c.text.tokenizer_gguf import PRES
from llama2c.text.tokenizer_to_gguf import describe

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"


def to_gguf(path: Path, vocab_size: int) -> Path:
    """A GGUF file with the tokenizer and no tensor. A warning is an error in these tests."""
    out = path.parent / "model.gguf"
    out.write_bytes(header({"general.architecture": "llama", **describe(path, vocab_size)}, []))
    return out


def to_folder(path: Path, vocab_size: int) -> Path:
    folder = path.parent / "again"
    folder.mkdir()
    for name, content in folder_files(str(path), read_metadata(path), vocab_size).items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text("{}")
    return folder


def fields(path: Path) -> dict[str, Any]:
    """The keys of the tokenizer with their types, by the gguf package: {"model": (["STRING"], "gpt2")}."""
    found = gguf.GGUFReader(path).fields
    prefix = "tokenizer.ggml."
    return {k.removeprefix(prefix): ([t.name for t in f.types], f.contents()) for k, f in found.items() if k.startswith(prefix)}


def assert_same(found: Tokenizer, expected: Tokenizer, texts: list[str]) -> None:
    assert (found.vocab_size, found.bos_id, found.eos_id) == (expected.vocab_size, expected.bos_id, expected.eos_id)
    assert (found.prefix, found.end_ids) == (expected.prefix, expected.end_ids)
    for text in texts:
        ids = found.encode(text)
        assert ids == expected.encode(text), repr(text)
        assert found.decode(ids) == expected.decode(ids), repr(text)
    for id in range(expected.vocab_size):
        assert found.piece(id) == expected.piece(id)


# ---------------------------------------------------------------------------
# tokenizer.json


@pytest.mark.parametrize("name", list(json_tokenizers.MAKERS))
def test_tokenizer_json(tmp_path: Path, name: str) -> None:
    """Into a file and into a folder again. The special tokens are found where a text spells them out."""
    package = with_all_merges(json_tokenizers.llama2()) if name == "llama2" else json_tokenizers.MAKERS[name]()
    config = {**json_tokenizers.CONFIGS[name], "chat_template": TEMPLATE}
    path = json_tokenizers.save(tmp_path / "in", package, config)
    size = package.get_vocab_size() + 5  # the model has more ids
    expected = Tokenizer.open(path, size)
    made = to_gguf(path, size)
    found = Tokenizer.open(made, size)
    special = [token.content for token in package.get_added_tokens_decoder().values()]
    texts = json_tokenizers.texts(random.Random(7), 200)
    if name == "llama2":  # the package has no ids for bytes in a text that looks like them
        texts = [text for text in texts if "<0x" not in text]
    texts += [f"one{token}two {token} three" for token in special]
    ends = found.end_ids  # by their spellings there are more
    assert ends >= expected.end_ids
    expected.end_ids = ends
    assert_same(found, expected, texts)
    assert found.chat_template is not None and found.chat_template.source == TEMPLATE
    again = Tokenizer.open(to_folder(made, size), size)
    assert_same(again, expected, texts)
    assert again.chat_template is not None and expected.chat_template is not None
    assert again.chat_template.source == TEMPLATE
    assert again.chat_template.special_tokens == expected.chat_template.special_tokens


def with_all_merges(package: Any) -> Any:
    """The same tokens, merged as SentencePiece's are: any two that are a token together, in the order of that token's id."""
    settings = json.loads(package.to_str())
    vocab = settings["model"]["vocab"]
    words = [text for text in vocab if not text.startswith("<")]
    pairs = [(vocab[t], i, (t[:i], t[i:])) for t in words for i in range(1, len(t)) if t[:i] in vocab and t[i:] in vocab]
    settings["model"]["merges"] = [pair for *_, pair in sorted(pairs)]
    return Package.from_str(json.dumps(settings))


def test_the_keys_of_byte_level(tmp_path: Path) -> None:
    package = json_tokenizers.llama3()
    ends = {"eos_token_id": [package.token_to_id("<|eot_id|>"), package.token_to_id("<|start_header_id|>")]}
    config = {**json_tokenizers.CONFIGS["llama3"], "pad_token": "<|end_of_text|>"}
    path = json_tokenizers.save(tmp_path / "in", package, config, generation_config=ends)
    size = package.get_vocab_size() + 2
    found = fields(to_gguf(path, size))
    vocab, model = package.get_vocab(), json.loads(package.to_str())["model"]
    assert found["model"] == (["STRING"], "gpt2") and found["pre"] == (["STRING"], "llama-bpe")
    by_id = sorted(vocab, key=vocab.__getitem__)
    assert found["tokens"] == (["ARRAY", "STRING"], [*by_id, f"[PAD{size - 2}]", f"[PAD{size - 1}]"])
    assert found["token_type"] == (["ARRAY", "INT32"], [1] * (size - 7) + [3] * 5 + [5] * 2)
    assert found["merges"] == (["ARRAY", "STRING"], [" ".join(pair) for pair in model["merges"]])
    ids = {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>", "eot": "<|start_header_id|>", "padding": "<|end_of_text|>"}
    for key, token in ids.items():
        assert found[f"{key}_token_id"] == (["UINT32"], vocab[token])
    for key, flag in {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": False}.items():
        assert found[key] == (["BOOL"], flag)
    assert "scores" not in found and "unknown_token_id" not in found


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "smollm", "command-r", "gpt-2", "olmo", "tekken", "gpt-4o", "llama4"])
def test_the_name_of_a_split(tmp_path: Path, name: str) -> None:
    """The split of a folder made from a file of each kind, and the one that the file was made from."""
    pre = PRES[name]
    package = json_tokenizers.chatml()
    settings = json.loads(package.to_str())
    settings["normalizer"] = {"type": "NFC"} if pre.nfc else None
    settings["model"]["ignore_merges"] = pre.ignore_merges
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": pre.words is None}
    steps: list[Any] = [{"type": "Digits", "individual_digits": True}] if pre.digits else []
    if pre.words is not None:
        steps.append({"type": "Split", "pattern": {"Regex": pre.words}, "behavior": "Isolated", "invert": False})
    settings["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*steps, byte_level]} if steps else byte_level
    path = json_tokenizers.save(tmp_path / "in", Package.from_str(json.dumps(settings)), {"eos_token": "<|im_end|>"})
    size = package.get_vocab_size()
    made = to_gguf(path, size)
    assert fields(made)["pre"][1] == name
    again = json.loads((to_folder(made, size) / "tokenizer.json").read_text())
    assert again["model"]["ignore_merges"] == pre.ignore_merges and again["normalizer"] == settings["normalizer"]
    assert again["pre_tokenizer"] in (settings["pre_tokenizer"], {"type": "Sequence", "pretokenizers": [byte_level]})


def test_other_spellings_of_a_split(tmp_path: Path) -> None:
    package = json_tokenizers.llama3()
    settings = json.loads(package.to_str())
    settings["pre_tokenizer"]["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    path = json_tokenizers.save(tmp_path / "in", Package.from_str(json.dumps(settings)), None)
    assert fields(to_gguf(path, 600))["pre"][1] == "llama-bpe"
    regex = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    settings["pre_tokenizer"]["pretokenizers"][0] |= {"behavior": "Isolated", "invert": False, "pattern": {"Regex": regex}}
    settings["model"]["ignore_merges"] = False
    path.write_text(json.dumps(settings))
    assert fields(to_gguf(path, 600))["pre"][1] == "gpt-2"


def test_warnings(tmp_path: Path) -> None:
    """Where the ids are not always the same."""

    def warned(package: Any) -> str:
        path = json_tokenizers.save(tmp_path / "in", package, None)
        with pytest.warns(RuntimeWarning) as caught:
            describe(path, 600)
        return "; ".join(str(one.message).removeprefix(f"{path}: ") for one in caught)

    package = json_tokenizers.llama3()
    package.normalizer = normalizers.NFC()
    assert warned(package) == "composes characters (NFC), unlike llama-bpe in GGUF: a few texts get other ids"
    package = json_tokenizers.llama3()
    package.model.ignore_merges = False
    assert warned(package) == "model.ignore_merges is false, unlike llama-bpe in GGUF: some words may get other ids"
    package = json_tokenizers.llama3()
    size = package.get_vocab_size()
    package.add_special_tokens(["<|new|>", "<|newer|>"])
    path = json_tokenizers.save(tmp_path / "in", package, None)
    with pytest.warns(RuntimeWarning, match=r"2 added tokens, as '<\|new\|>', are left out: the model has only \d+ ids$"):
        assert len(describe(path, size)["tokenizer.ggml.tokens"]) == size
    by_scores = "which GGUF has for this kind of tokenizer: some texts get other ids"
    assert warned(json_tokenizers.llama2()) == f"its merges do not follow from scores, {by_scores}"
    package = with_all_merges(json_tokenizers.llama2())
    package.normalizer = None
    package.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    after = "puts a space only before a text, and in GGUF also after each special token: such texts get other ids"
    assert warned(package) == after


def test_what_gguf_does_not_have(tmp_path: Path) -> None:
    def error(package: Any, size: int = 600) -> str:
        path = json_tokenizers.save(tmp_path / "in", package, None)
        with pytest.raises(ModelError) as caught:
            describe(path, size)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
        return str(caught.value).removeprefix(f"{path}: ")

    package = json_tokenizers.llama3()
    package.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert error(package).startswith("pre_tokenizer: expected one that has a name in GGUF (llama-bpe, ")
    package = json_tokenizers.llama3()
    package.normalizer = normalizers.Lowercase()
    assert error(package) == "normalizer: expected none or NFC for GGUF, found Lowercase"
    package = json_tokenizers.llama2()
    package.normalizer = normalizers.NFKC()
    assert error(package) == ("normalizer: expected one that only spells spaces as U+2581 for GGUF, found {'type': 'NFKC'}")
    package = json_tokenizers.llama3()
    assert error(package, 300).startswith("expected 1 to 300 tokens, because the model has 300 ids, found ")


# ---------------------------------------------------------------------------
# tokenizer.bin and tokenizer.model


def test_tokenizer_bin(tmp_path: Path) -> None:
    """A text ends with BOS and EOS both, as in the C program."""
    pieces = tokenizer_models.pieces(320)
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(tokenizer_models.tokenizer_bin(pieces))
    made = to_gguf(path, 320)
    texts = [text for text in json_tokenizers.texts(random.Random(3), 200) if "\u2581" not in text and "<" not in text]
    assert_same(Tokenizer.open(made, 320), Tokenizer.open(path, 320), texts)
    found = fields(made)
    assert found["model"][1] == "llama" and found["pre"][1] == "default"
    assert found["tokens"][1] == [spelling for spelling, _, _ in pieces]
    assert found["scores"] == (["ARRAY", "FLOAT32"], [score for _, score, _ in pieces])
    assert found["token_type"] == (["ARRAY", "INT32"], [kind for *_, kind in pieces])
    ids = {"bos": 1, "eos": 2, "eot": 1, "unknown": 0}
    assert {key: found[f"{key}_token_id"] for key in ids} == {key: (["UINT32"], id) for key, id in ids.items()}
    flags = {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": True}
    assert {key: found[key] for key in flags} == {key: (["BOOL"], flag) for key, flag in flags.items()}
    assert tokenizer_bin(str(made), read_metadata(made), 320) == path.read_bytes()


def test_tokenizer_model(tmp_path: Path) -> None:
    pieces = tokenizer_models.pieces(320)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tokenizer_models.model(pieces))
    made = to_gguf(path, 320)
    expected = Tokenizer.open(path, 320)
    texts = [text for text in json_tokenizers.texts(random.Random(3), 200) if "<" not in text]
    assert_same(Tokenizer.open(made, 320), expected, texts)
    assert fields(made)["scores"][1] == [score for _, score, _ in pieces]
    assert tokenizer_bin(str(made), read_metadata(made), 320) == tokenizer_models.tokenizer_bin(pieces)
    assert_same(Tokenizer.open(to_folder(made, 320), 320), expected, texts)


def test_a_tokenizer_model_with_added_tokens(tmp_path: Path) -> None:
    pieces = tokenizer_models.pieces(320)
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / "tokenizer.model"
    path.write_bytes(tokenizer_models.model(pieces))
    added = {"320": {"content": "<|im_end|>", "special": True}, "321": {"content": "hello  you", "special": False}}
    config = {"added_tokens_decoder": added, "eos_token": "<|im_end|>", "chat_template": TEMPLATE, "pad_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    made = to_gguf(path, 322)
    texts = ["a hello  you é<|im_end|>", "<|im_end|>", "t é", "<s>é1</s>"]
    assert_same(Tokenizer.open(made, 322), Tokenizer.open(path, 322), texts)
    found = fields(made)
    assert found["tokens"][1][320:] == ["<|im_end|>", "hello  you"] and found["token_type"][1][320:] == [3, 4]
    assert found["padding_token_id"][1] == 0 and found["eos_token_id"][1] == 320


def test_the_tokenizer_of_another_file(tmp_path: Path) -> None:
    path = json_tokenizers.save(tmp_path / "in", json_tokenizers.llama3(), None)
    made = to_gguf(path, 600)
    again = tmp_path / "again.gguf"
    again.write_bytes(header({"general.architecture": "llama", **describe(made, 600)}, []))
    assert fields(again) == fields(made)
    with pytest.raises(ModelError, match=r"model.gguf: tokenizer.ggml.tokens: expected at most 500 tokens"):
        describe(made, 500)


def test_a_tokenizer_bin_that_cannot_be_made(tmp_path: Path) -> None:
    path = json_tokenizers.save(tmp_path / "in", json_tokenizers.llama3(), None)
    made = to_gguf(path, 600)
    with pytest.raises(ModelError, match=r"tokenizer.ggml.model: expected 'llama' for a tokenizer.bin, found 'gpt2'$"):
        tokenizer_bin(str(made), read_metadata(made), 600)


def test_tokens_that_are_the_same(tmp_path: Path) -> None:
    """Neither llama.cpp nor llama2c reads them in a GGUF file."""
    pieces = [*tokenizer_models.pieces(320)[:-1], ("é", 0.0, 1)]
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(tokenizer_models.tokenizer_bin(pieces))
    first = next(id for id, piece in enumerate(pieces) if piece[0] == "é")
    found = f"found 'é' as token {first} and as token 319$"
    with pytest.raises(ModelError, match=f"tokenizer.bin: expected tokens that differ, because GGUF has only such, {found}"):
        describe(path, 320)


def test_transformers_reads_the_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    package = json_tokenizers.llama3()
    path = json_tokenizers.save(tmp_path / "in", package, {**json_tokenizers.CONFIGS["llama3"], "chat_template": TEMPLATE})
    size = package.get_vocab_size()
    folder = to_folder(to_gguf(path, size), size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoTokenizer.from_pretrained(folder, config=transformers.LlamaConfig())
    expected = Tokenizer.open(path, size)
    for text in ["Once upon a time", "żółw 🐢 123456<|eot_id|>\n\n x"]:
        assert theirs.encode(text) == expected.encode(text)
    messages = [{"role": "user", "content": "Hi"}]
    assert theirs.apply_chat_template(messages, tokenize=False) == "user: Hi<|eot_id|>"
