"""Tokenizers of GGUF files against the packages tokenizers, sentencepiece and transformers; special tokens; broken metadata."""

from __future__ import annotations

import copy
import json
import pickle
import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chat_templates
import gguf_files
import gguf_tokenizers
import json_tokenizers
import numpy as np
import pytest
import tokenizer_models
from bad_inputs import case
from bad_inputs import gguf_tokenizers as gguf_tokenizer_cases
from gguf_tokenizers import CONTROL, KEY, NORMAL, UNUSED, USER, gpt2, llama, write
from tokenizer_models import processor, train
from tokenizers import AddedToken, models, trainers
from tokenizers import Tokenizer as Package

import llama2c
from llama2c import Tokenizer
from llama2c.commands.main import main
from llama2c.errors import ModelError, RequestError
from llama2c.formats.gguf import read_metadata
from llama2c.text.chat import chat_ids
from llama2c.text.tokenizer_gguf import PRES, has_tokenizer, read
from llama2c.text.vocabulary import ChatTemplate

PATH = "model.gguf"


def opened(metadata: dict[str, Any], vocab_size: int | None = None) -> Tokenizer:
    tokenizer = Tokenizer.of_metadata(PATH, metadata, vocab_size)
    assert tokenizer is not None
    return tokenizer


# ---------------------------------------------------------------------------
# "gpt2": ids, for every way to split a text

# The pre-tokenizer and normalizer in the tokenizer.json of a model with each `pre`, and whether its model ignores merges.
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = {**BYTES, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
NFC = {"type": "NFC"}
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str) -> list[dict[str, Any]]:
    return [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, BYTES]


MODELS: dict[str, tuple[list[dict[str, Any]], dict[str, Any] | None, bool]] = {
    **dict.fromkeys(["llama-bpe", "llama3", "llama-v3", "lfm2", "falcon3", "pixtral"], (split(LLAMA3), None, True)),
    **dict.fromkeys(["qwen2", "deepseek-r1-qwen"], (split(QWEN2), NFC, False)),
    **dict.fromkeys(["smollm", "refact", "starcoder"], ([DIGITS, GPT2], None, False)),
    "command-r": ([DIGITS, GPT2], NFC, False),
    "gpt-2": ([GPT2], None, False),
    "olmo": ([GPT2], NFC, False),
    "tekken": (split(TEKKEN), None, True),
    "gpt-4o": (split(GPT4O), None, False),
    "llama4": (split(GPT4O), None, True),
}
TEXT = """\
Don't SHOUT: IT'S, they'RE, We'Ve, i'm I'M, you'LL, HE'D; camelCaseWords and XMLHttpRequest in dataX2Y.
Prices: 1, 12, 123, 1234, 1234567890, 3.14159, 0x1F, ½ Ⅷ ², ١٢٣٤ and \uff14\uff15\uff16.
def f(x: int) -> list[str]:\n\treturn [y for y in range(x) if y % 2 == 0]  // path/to/file\r\n\r\n    # end\n\n\n
🐢🐢 👩‍👩‍👧 🇵🇱 \u2013 “quotes” … café cafe\u0301 n\u0303 Å e\u0301\u0302 \u1100\u1161 ﬁ
Zażółć gęślą jaźń. Привет, МИР! Γειά \u03c3\u03bf\u03c5. שלום עולם مرحبا हिन्दी ก็ไทย 中文字符\uff0c日本語テスト 한국어
a  b   c    d\t\te \u00a0\u3000f \u2028 g   \n   h\r\n
"""
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]


def trained(pre: str) -> Package:
    """A tokenizer of the package, with the pre-tokenizer of real models, and tokens of every kind."""
    steps, normalizer, ignores = MODELS[pre]
    package = Package(models.BPE())
    settings = json.loads(package.to_str())
    settings |= {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "normalizer": normalizer}
    settings |= {"decoder": BYTES}
    package = Package.from_str(json.dumps(settings))
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=sorted(json_tokenizers.pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    package.train_from_iterator([*json_tokenizers.CORPUS, *[TEXT] * 3], trainer)
    settings = json.loads(package.to_str())
    settings["model"]["ignore_merges"] = ignores
    if ignores:  # a token that no merge makes
        settings["model"]["vocab"]["Ġunreachable"] = len(settings["model"]["vocab"])
    package = Package.from_str(json.dumps(settings))
    package.add_special_tokens(SPECIAL)
    package.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("    ", normalized=False)])
    return package


@pytest.fixture(scope="module")
def packages() -> dict[str, Package]:
    return {pre: trained(pre) for pre in MODELS}


def long_texts() -> list[str]:
    """The text above and others, its lines shuffled and cut anywhere, with special tokens between."""
    rng = random.Random(5)
    made = [TEXT, *TEXT.splitlines(), *json_tokenizers.texts(rng, 200), TEXT * 20, " unreachable it unreachable"]
    pieces = [*TEXT.split(" "), *SPECIAL, "<tool>", "    ", " ", "  ", "\n", "'S", "'LL", "7", "77", "\u0301"]
    made += ["".join(rng.choices(pieces, k=rng.randrange(60))) for _ in range(150)]
    return made


def test_the_table_is_whole() -> None:
    assert list(PRES) == list(MODELS)


@pytest.mark.parametrize("pre", MODELS)
def test_ids_of_byte_level(pre: str, packages: dict[str, Package]) -> None:
    package = packages[pre]
    metadata = gpt2(package, pre)
    tokenizer = opened(metadata, len(metadata[KEY + "tokens"]) + 5)
    assert tokenizer.prefix == ()
    for text in long_texts():
        ids = package.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == package.decode(ids, skip_special_tokens=True), text


def test_the_texts_tell_the_ways_apart(packages: dict[str, Package]) -> None:
    """No two ways to split give the same ids for both vocabularies: the test above sees two rows that are exchanged."""
    texts = [TEXT, "a" + SPECIAL[0] + " unreachable", "Don'T x1234 y 12345/"]
    ways = ["llama-bpe", "qwen2", "smollm", "command-r", "gpt-2", "olmo", "tekken", "gpt-4o", "llama4"]
    ids = {
        (own, way): [opened(gpt2(packages[own], way)).encode(text, bos=False) for text in texts] for own in ways for way in ways
    }
    for own, way in ids:
        same = ids[own, own] == ids[own, way] and ids[way, way] == ids[way, own]
        assert same == (own == way), (own, way)


def test_bos_by_the_kind_of_splitting(packages: dict[str, Package]) -> None:
    for pre, package in packages.items():
        adds = pre in ("llama-bpe", "llama3", "llama-v3", "lfm2", "falcon3", "pixtral", "tekken")
        bos = package.token_to_id("<|im_start|>")
        assert opened(gpt2(package, pre, bos_token_id=bos)).prefix == ((bos,) if adds else ())
        assert opened(gpt2(package, pre, bos_token_id=bos, add_bos_token=True)).encode("a")[0] == bos
        assert opened(gpt2(package, pre, bos_token_id=bos, add_bos_token=False)).prefix == ()
        assert opened(gpt2(package, pre)).prefix == ()  # as transformers has it for a model without BOS


# ---------------------------------------------------------------------------
# "llama": ids


def trained_pieces(**settings: Any) -> tuple[Any, list[gguf_tokenizers.Piece]]:
    """A SentencePieceProcessor, and its tokens after the bytes, with types as llama.cpp's converter gives them."""
    theirs = processor(train(**settings))
    assert [theirs.is_byte(id) for id in (2, 3, 258, 259)] == [False, True, True, False]
    return theirs, [(theirs.id_to_piece(id), theirs.get_score(id), NORMAL) for id in range(259, theirs.vocab_size())]


@pytest.mark.parametrize("adds_space", [True, False])
def test_ids_are_those_of_sentencepiece(adds_space: bool) -> None:
    theirs, pieces = trained_pieces(add_dummy_prefix=adds_space)
    tokenizer = opened(llama(pieces, add_space_prefix=adds_space, merges=[b"never used"]))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.prefix, tokenizer.end_ids) == (1, 2, (1,), {2})
    for text in [TEXT, TEXT * 20, *TEXT.splitlines(), *json_tokenizers.texts(random.Random(6), 400), "a <0x41> b"]:
        ids = theirs.encode(text)
        assert tokenizer.encode(text) == [1, *ids], text
        assert tokenizer.encode(text.encode(), bos=False) == ids
        assert tokenizer.decode([1, *ids]) == theirs.decode(ids)


def test_ids_are_those_of_transformers(tmp_path: Path) -> None:
    """Special and added tokens in a text too. A space goes before each part, as `legacy` has it."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("google.protobuf", reason="needs protobuf, with which transformers reads a tokenizer.model")
    _, pieces = trained_pieces()
    start = {"content": "<|im_start|>", "special": True, "lstrip": False, "rstrip": False, "single_word": False}
    added = {"420": start, "421": {**start, "content": "<tool>", "special": False}}
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": True, "added_tokens_decoder": added}
    tokenizer_models.write(tmp_path, train(), tokenizer_config=settings, config={"model_type": "llama"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer = opened(llama([*pieces, ("<|im_start|>", -1000.0, CONTROL), ("<tool>", -1000.0, USER)]))
    rng = random.Random(7)
    parts = [*" ".join(json_tokenizers.CORPUS).split(), "<|im_start|>", "<tool>", "</s>", "<s>", "<unk>", "é🦊", "a b", "\n"]
    for _ in range(300):
        text = "".join(rng.choices(parts, k=rng.randrange(1, 9)))
        assert tokenizer.encode(text) == theirs.encode(text), text


PIECES = [("\u2581", -1.0, NORMAL), ("a", -2.0, NORMAL), ("b", -3.0, NORMAL), ("\u2581a", -4.0, NORMAL)]
SPACE, A, B, SPACE_A = range(259, 263)


def test_ids_written_out() -> None:
    pieces = [*PIECES, ("<tool>", 0.0, USER), ("ab", 9.0, UNUSED), ("", 0.0, NORMAL), ("<x>", 0.0, CONTROL)]
    tool, unused, empty, control = range(263, 267)
    tokenizer = opened(llama(pieces))
    assert tokenizer.encode("a") == [1, SPACE_A]
    assert tokenizer.encode("") == [1]
    assert tokenizer.encode("ab") == [1, SPACE_A, B]  # an unused token is never made
    assert tokenizer.encode("a<tool>a<x> a</s>a<unk>") == [1, SPACE_A, tool, SPACE_A, control, SPACE, SPACE_A, 2, SPACE_A, 0]
    assert tokenizer.encode("[EMPTY]\0", bos=False)[-1] == 3  # the byte
    assert [tokenizer.piece(id) for id in (tool, unused, empty, control, 2, 13)] == [b"<tool>", b"", b"", b"", b"", b"\n"]
    assert opened(llama(pieces, add_space_prefix=False)).encode("a<tool>a") == [1, A, tool, A]
    assert opened(llama(pieces, add_bos_token=False)).encode("a") == [SPACE_A]
    assert opened(llama(pieces, remove_extra_whitespaces=True)).encode(" a  a ", bos=False) == [SPACE_A, SPACE_A]
    assert tokenizer.encode("a", eos=True) == [1, SPACE_A, 2]
    assert opened(llama(pieces, add_eos_token=True)).encode("a") == [1, SPACE_A]  # the argument decides


# ---------------------------------------------------------------------------
# special tokens


def test_special_tokens_of_llama() -> None:
    pieces = [*PIECES, ("<|im_end|>", 0.0, CONTROL), ("<end>", 0.0, CONTROL), ("<s2>", 0.0, NORMAL), ("<e>", 0.0, NORMAL)]
    im_end, end, s2, eom = range(263, 267)
    found = opened(llama(pieces))
    assert (found.bos_id, found.eos_id, found.end_ids, found.prefix) == (1, 2, {2, im_end}, (1,))
    keys = {"bos_token_id": s2, "eos_token_id": im_end, "eot_token_id": end, "eom_token_id": eom}
    found = opened(llama(pieces, **keys))
    assert (found.bos_id, found.eos_id, found.end_ids, found.prefix) == (s2, im_end, {im_end, end, eom}, (s2,))
    assert found.encode("a<s2>a<end>") == [s2, SPACE_A, s2, SPACE_A, end]  # BOS is special, whatever its type
    assert [found.piece(id) for id in (s2, im_end, end, eom, B)] == [b"", b"", b"", b"", b"b"]


def test_eos_is_not_read_from_the_key_of_bos() -> None:
    for bos, eos in ((1, 2), (2, 1), (A, B)):
        found = opened(llama(PIECES, bos_token_id=bos, eos_token_id=eos))
        assert (found.bos_id, found.eos_id, found.end_ids) == (bos, eos, {eos})
    found = opened(llama(PIECES, bos_token_id=2))
    assert (found.bos_id, found.eos_id) == (2, 2)  # the default of EOS, not the id of BOS
    found = opened(llama(PIECES, eos_token_id=1))
    assert (found.bos_id, found.eos_id) == (1, 1)


def test_special_tokens_of_byte_level(packages: dict[str, Package]) -> None:
    package = packages["gpt-2"]
    start, end, text_end, tool = map(package.token_to_id, [*SPECIAL, "<tool>"])
    found = opened(gpt2(package, "gpt-2"))
    assert (found.bos_id, found.eos_id, found.end_ids, found.prefix) == (None, None, {end, text_end}, ())
    assert found.encode("") == []
    with pytest.raises(RequestError, match=r"^eos: this tokenizer has no end token$"):
        found.encode("a", eos=True)
    found = opened(gpt2(package, "gpt-2", bos_token_id=start, eos_token_id=end, add_bos_token=True))
    assert (found.bos_id, found.eos_id, found.prefix) == (start, end, (start,))
    assert found.encode("<|im_end|>") == [start, end]
    assert [found.piece(id) for id in (start, end, tool)] == [b"", b"", b"<tool>"]


@pytest.mark.parametrize("type", [NORMAL, CONTROL, USER, UNUSED])
@pytest.mark.parametrize("end", ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|eom_id|>"])
def test_the_end_of_a_turn_by_its_text(end: str, type: int, packages: dict[str, Package]) -> None:
    """Whatever type a careless file has given it."""
    metadata = gpt2(packages["gpt-2"], "gpt-2")
    at = metadata[KEY + "tokens"].index(b"<|im_start|>")
    metadata[KEY + "tokens"][at] = end.encode() if end not in SPECIAL else b"<|x|>"
    if end in SPECIAL:
        at = metadata[KEY + "tokens"].index(end.encode())
    metadata[KEY + "token_type"][at] = type
    found = opened(metadata)
    assert at in found.end_ids and found.piece(at) == b""
    assert found.encode(f"a{end}") == [*found.encode("a"), at]
    found = opened(llama([*PIECES, (end, -1000.0, type)]))
    assert found.end_ids == {2, 263}
    assert found.encode(f"a{end}") == [1, SPACE_A, 263]


def test_unused_ids_have_no_text(packages: dict[str, Package]) -> None:
    metadata = gpt2(packages["gpt-2"], "gpt-2")
    size = len(metadata[KEY + "tokens"])
    metadata[KEY + "tokens"] += [b"[PAD0]", b"[PAD1]", b"", b""]
    metadata[KEY + "token_type"] = np.append(metadata[KEY + "token_type"], [UNUSED, UNUSED, NORMAL, NORMAL]).astype(np.int8)
    tokenizer = opened(metadata, size + 10)
    assert tokenizer.encode("[PAD0]") == packages["gpt-2"].encode("[PAD0]").ids
    assert tokenizer.decode(range(size, size + 10)) == ""
    assert tokenizer.vocab_size == size + 10
    with pytest.raises(RequestError, match=rf"^token: expected 0 to {size + 9}, found {size + 10}$"):
        tokenizer.piece(size + 10)


# ---------------------------------------------------------------------------
# sizes, templates


def test_the_size_of_the_model(packages: dict[str, Package]) -> None:
    for metadata in (llama(PIECES), gpt2(packages["gpt-2"], "gpt-2")):
        size = len(metadata[KEY + "tokens"])
        assert opened(metadata).vocab_size == opened(metadata, size).vocab_size == size
        assert opened(metadata, size + 64).vocab_size == size + 64  # padded, as many embeddings are
        assert opened(metadata, size + 64).piece(size + 63) == b""
        with pytest.raises(ModelError) as caught:
            opened(metadata, size - 1)
        expected = f"at most {size - 1} tokens, because the model has {size - 1} ids"
        assert str(caught.value) == f"{PATH}: {KEY}tokens: expected {expected}, found {size}"


def test_the_chat_template(packages: dict[str, Package]) -> None:
    package = packages["smollm"]
    start, end = map(package.token_to_id, SPECIAL[:2])
    keys = {"bos_token_id": start, "eos_token_id": end, "unknown_token_id": 0, "padding_token_id": end}
    metadata = gpt2(package, "smollm", chat_template=chat_templates.CHATML, **keys)
    metadata["tokenizer.chat_template.tool_use"] = "{{ other }}"
    metadata["tokenizer.chat_templates"] = [b"tool_use"]
    tokenizer = opened(metadata)
    spellings = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "pad_token": SPECIAL[1]}
    spellings["unk_token"] = package.id_to_token(0)
    assert tokenizer.chat_template == ChatTemplate(chat_templates.CHATML, PATH, spellings)
    assert tokenizer.no_template is None
    ids = chat_ids(tokenizer, [{"role": "system", "content": "Hi."}, {"role": "user", "content": "it's"}])
    expected = "<|im_start|>system\nHi.<|im_end|>\n<|im_start|>user\nit's<|im_end|>\n<|im_start|>assistant\n"
    assert ids == package.encode(expected).ids


def test_without_a_chat_template() -> None:
    tokenizer = opened(llama(PIECES))
    says = "so chat uses the form of Llama 2, [INST] ... [/INST], which other models do not know"
    with pytest.warns(RuntimeWarning, match=f"^{re.escape(f'{PATH}: no chat template in this file, {says}')}$"):
        ids = chat_ids(tokenizer, [{"role": "user", "content": "a"}])
    assert ids == tokenizer.encode("[INST] a [/INST]")


def test_a_template_that_the_sandbox_refuses() -> None:
    tokenizer = opened(llama(PIECES, chat_template="{{ ''.__class__.__mro__ }}"))
    assert tokenizer.encode("a") == [1, SPACE_A]  # the model can be used without it
    with pytest.raises(ModelError) as caught:
        chat_ids(tokenizer, [{"role": "user", "content": "a"}])
    assert str(caught.value) == (
        f"{PATH}: chat template: access to attribute '__class__' of 'str' object is unsafe; give another template: "
        "-z (tokenizer=) takes a folder with a tokenizer and a chat_template.jinja"
    )


# ---------------------------------------------------------------------------
# a file


def test_a_file(tmp_path: Path, packages: dict[str, Package]) -> None:
    """Recognised by its content; the same as from its metadata; copies and pickles."""
    for name, metadata in (("a.gguf", gpt2(packages["smollm"], "smollm")), ("b.json", llama(PIECES)), ("c", llama(PIECES))):
        path = write(tmp_path / name, metadata)
        tokenizer = Tokenizer.open(path, 1000)
        assert (tokenizer.path, tokenizer.vocab_size) == (str(path), 1000)
        expected = opened(metadata, 1000)
        pickled = pickle.loads(pickle.dumps(tokenizer))
        assert pickled.path == str(path)
        assert copy.copy(tokenizer) is copy.deepcopy(tokenizer) is tokenizer
        for found in (tokenizer, pickled):
            assert found.encode(TEXT) == expected.encode(TEXT)
            assert found.end_ids == expected.end_ids


def test_a_file_without_a_tokenizer(tmp_path: Path) -> None:
    for i, keys in enumerate(({}, {"model": "none"}, {"model": "no_vocab"})):
        metadata = gguf_tokenizers.with_keys(keys)
        assert not has_tokenizer(metadata) and Tokenizer.of_metadata(PATH, metadata, 300) is None
        path = write(tmp_path / f"{i}.gguf", metadata)
        with pytest.raises(ModelError) as caught:
            Tokenizer.open(path, 300)
        assert str(caught.value) == f"{path}: expected a tokenizer in this GGUF file, found none"


def test_a_file_that_was_replaced_is_another_tokenizer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", llama(PIECES))
    pickled = pickle.dumps(Tokenizer.open(path, 263))
    write(path, llama([*PIECES, ("c", 0.0, NORMAL)]))
    with pytest.raises(ModelError, match=r"tokens: expected at most 263 tokens, because the model has 263 ids, found 264$"):
        pickle.loads(pickled)


# ---------------------------------------------------------------------------
# load


def model(path: Path, whole: bool = True, **keys: tuple[int, Any]) -> Path:
    """A GGUF file of a small model, with a tokenizer if it is whole. keys: more metadata."""
    file = gguf_tokenizer_cases.good() if whole else gguf_files.good(case.MODEL, case.weights())
    for name, (kind, value) in keys.items():
        file.set(name, kind, value)
    path.write_bytes(file.pack())
    return path


def test_load_takes_the_tokenizer_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one beside it, unless it is given; and the keys are read once."""
    path = model(tmp_path / "a.gguf")
    (tmp_path / "tokenizer.bin").write_bytes(case.pack_tokenizer())
    monkeypatch.setattr("llama2c.formats.gguf.read_metadata", None)
    llama = llama2c.load(path, n_threads=1)
    assert llama.tokenizer.path == str(path) and llama.tokenizer.end_ids == {2}
    assert llama.generate("a", max_tokens=2, temperature=0).prompt_tokens == 2
    given = llama2c.load(path, tokenizer=tmp_path / "tokenizer.bin", n_threads=1)
    assert given.tokenizer.path == str(tmp_path / "tokenizer.bin")
    monkeypatch.undo()
    assert pickle.loads(pickle.dumps(llama)).tokenizer.path == str(path)
    other = case.good_model(tmp_path)
    assert llama2c.load(other, tokenizer=path, n_threads=1).tokenizer.path == str(path)  # for another model, too


def test_load_of_a_file_without_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    path = model(tmp_path / "models" / "a.gguf", whole=False)
    with pytest.raises(FileNotFoundError) as caught:
        llama2c.load(path)
    names = "tokenizer.bin, tokenizer.json or tokenizer.model"
    expected = f"a tokenizer in the file, or {names} in {path.parent}, or tokenizer.bin in the working directory"
    assert str(caught.value) == f"{path}: expected {expected}, found none"
    beside = path.with_name("tokenizer.bin")
    beside.write_bytes(case.pack_tokenizer())
    assert llama2c.load(path, n_threads=1).tokenizer.path == str(beside)


def test_chat_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without a template a warning, with one that the sandbox refuses an error: each a line that names the file."""
    path = model(tmp_path / "a.gguf")
    arguments = [str(path), "-m", "chat", "-i", "a", "-y", "", "-n", "16", "-t", "0"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # pytest makes errors of them
        assert main(arguments) == 0
    says = "so chat uses the form of Llama 2, [INST] ... [/INST], which other models do not know"
    assert f"llama2c: warning: {path}: no chat template in this file, {says}\n" in capfd.readouterr().err
    model(path, **{"tokenizer.chat_template": (gguf_files.STRING, "{{ messages.__class__ }}{{ ''.__class__.mro() }}")})
    assert main(arguments) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"llama2c: error: {path}: chat template: access to attribute ") and error.count("\n") == 1
    assert "; give another template: -z (tokenizer=) takes a folder with a tokenizer" in error
    model(path, **{"tokenizer.chat_template": (gguf_files.STRING, "{{ bos_token }}{{ messages[0].content }}")})
    assert main(arguments) == 0


# ---------------------------------------------------------------------------
# the real model


def test_the_real_tokenizer(smollm2: Path) -> None:
    """SmolLM2: the tokenizer.json of its folder has the steps of MODELS["smollm"]."""
    keys = read_metadata(smollm2)
    spellings = [spelling.decode() for spelling in keys[KEY + "tokens"]]
    merges = [merge.decode().split(" ") for merge in keys[KEY + "merges"]]
    package = Package(models.BPE({spelling: id for id, spelling in enumerate(spellings)}, [(a, b) for a, b in merges]))
    settings = json.loads(package.to_str())
    settings |= {"pre_tokenizer": {"type": "Sequence", "pretokenizers": MODELS["smollm"][0]}, "decoder": BYTES}
    package = Package.from_str(json.dumps(settings))
    package.add_special_tokens(spellings[:17])
    tokenizer = Tokenizer.open(smollm2, 49152)
    for text in long_texts():
        ids = package.encode(text).ids
        assert tokenizer.encode(text, bos=False) == ids
        assert tokenizer.decode(ids) == package.decode(ids)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_ids, tokenizer.prefix) == (1, 2, {0, 2}, ())
    ids = chat_ids(tokenizer, [{"role": "user", "content": "Hi"}])
    assert tokenizer.decode(ids).endswith("trained by Hugging Face\nuser\nHi\nassistant\n")
    assert ids.count(1) == 3 and ids.count(2) == 2


# ---------------------------------------------------------------------------
# broken metadata

GOOD = llama(PIECES)
N = len(GOOD[KEY + "tokens"])


def without(*names: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key not in [KEY + name for name in names]}


def changed(**more: Any) -> dict[str, Any]:
    return GOOD | gguf_tokenizers.with_keys(more)


def at(name: str, index: int, value: Any) -> dict[str, Any]:
    """The good metadata with another element in one array."""
    array = copy.copy(GOOD[KEY + name])
    array[index] = value
    return changed(**{name: array})


BROKEN: list[tuple[dict[str, Any], str]] = [
    (without("model"), "model: expected 'llama' or 'gpt2', found none"),
    (changed(model="bert"), "model: expected 'llama' or 'gpt2', found 'bert'"),
    (changed(model=2), "model: expected a string, found 2"),
    (without("tokens"), "tokens: expected an array of strings, found none"),
    (changed(tokens="abc"), "tokens: expected an array of strings, found 'abc'"),
    (changed(tokens=np.arange(3)), "tokens: expected an array of strings, found an array of int64"),
    (changed(tokens=[]), "tokens: expected at least one token, found none"),
    (at("tokens", 7, b"a\xff"), "tokens[7]: expected UTF-8, found byte 0xFF at index 1"),
    (at("tokens", A, b"b"), f"tokens[{A}]: expected tokens that differ, found 'b' again as token {B}"),
    (at("tokens", 100, b"x"), "tokens: expected token 100 to be <0x61>, found b'x'"),
    (at("tokens", SPACE, b"c"), "tokens: expected a piece for the space, U+2581, found none"),
    (without("token_type"), "token_type: expected an array of integers, found none"),
    (changed(token_type=[b"1"] * N), "token_type: expected an array of integers, found an array of strings"),
    (changed(token_type=np.ones(N)), "token_type: expected an array of integers, found an array of float64"),
    (changed(token_type=np.ones(N - 1, np.int32)), f"token_type: expected {N} numbers, because there are {N} tokens, "
     f"found {N - 1}"),
    (at("token_type", 5, 7), "token_type[5]: expected a type from 1 to 6, found 7"),
    (at("token_type", 5, -1), "token_type[5]: expected a type from 1 to 6, found -1"),
    (without("scores"), "scores: expected an array of floats, found none"),
    (changed(scores=np.ones(N, np.int32)), "scores: expected an array of floats, found an array of int32"),
    (changed(scores=np.ones(N + 1)), f"scores: expected {N} numbers, because there are {N} tokens, found {N + 1}"),
    (at("scores", 260, float("nan")), "scores[260]: expected a number, found NaN"),
    (changed(bos_token_id=N), f"bos_token_id: expected an id from 0 to {N - 1}, found {N}"),
    (changed(eos_token_id=-1), f"eos_token_id: expected an id from 0 to {N - 1}, found -1"),
    (changed(eot_token_id=2**32 - 1), f"eot_token_id: expected an id from 0 to {N - 1}, found 4294967295"),
    (changed(unknown_token_id=N), f"unknown_token_id: expected an id from 0 to {N - 1}, found {N}"),
    (changed(eos_token_id="</s>"), "eos_token_id: expected an integer, found '</s>'"),
    (changed(eos_token_id=2.0), "eos_token_id: expected an integer, found 2.0"),
    (changed(eos_token_id=True), "eos_token_id: expected an integer, found True"),
    (changed(eos_token_id=np.arange(2)), "eos_token_id: expected an integer, found an array of int64"),
    (changed(add_bos_token=1), "add_bos_token: expected a bool, found 1"),
    (changed(add_eos_token="no"), "add_eos_token: expected a bool, found 'no'"),
    (changed(add_space_prefix=0), "add_space_prefix: expected a bool, found 0"),
    (changed(chat_template=[b"a"]), "tokenizer.chat_template: expected a string, found an array of strings"),
]  # fmt: skip


@pytest.mark.parametrize(("metadata", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_broken_metadata(metadata: dict[str, Any], message: str) -> None:
    assert opened(GOOD).encode("a") == [1, SPACE_A]
    with pytest.raises(ModelError) as caught:
        read(PATH, metadata, N)
    assert str(caught.value) == f"{PATH}: {message if message.startswith('tokenizer.') else KEY + message}"


def merges(*found: bytes) -> Callable[[dict[str, Any]], Any]:
    return lambda metadata: metadata.update({KEY + "merges": list(found)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.pop(KEY + "pre"), f"pre: expected one of {', '.join(MODELS)}, found none"),
        (lambda m: m.update({KEY + "pre": "default"}), f"pre: expected one of {', '.join(MODELS)}, found 'default'"),
        (lambda m: m.update({KEY + "pre": "qwen35"}), f"pre: expected one of {', '.join(MODELS)}, found 'qwen35'"),
        (lambda m: m.pop(KEY + "merges"), "merges: expected an array of strings, found none"),
        (merges(b"a b", b"ab"), "merges[1]: expected two tokens with a space between, found 'ab'"),
        (merges(b""), "merges[0]: expected two tokens with a space between, found ''"),
        (merges(b" "), "merges[0]: expected two tokens with a space between, found ' '"),
        (merges(b"['a', 'b']"), """merges[0]: expected tokens that merge into a token, found "['a',", which is not a token"""),
        (merges(b"a \xc4\xa0\xc4\xa0\xc4\xa0x"), "merges[0]: expected tokens that merge into a token, found 'ĠĠĠx', which is "
         "not a token"),
        (merges(b"\xc4\xa0 t", b"z q"), "merges[1]: expected tokens that merge into a token, found 'zq', which is not a token"),
        (merges(b"a b", b"\xff a"), "merges[1]: expected UTF-8, found byte 0xFF at index 0"),
        (lambda m: m.update({KEY + "add_bos_token": True}), "bos_token_id: expected an id, because add_bos_token is true, "
         "found none"),
    ],
)  # fmt: skip
def test_broken_metadata_of_byte_level(
    spoil: Callable[[dict[str, Any]], Any], message: str, packages: dict[str, Package]
) -> None:
    metadata = gpt2(packages["gpt-2"], "gpt-2")
    spoil(metadata)
    with pytest.raises(ModelError) as caught:
        opened(metadata)
    assert str(caught.value) == f"{PATH}: {KEY}{message}"


def test_a_merge_that_begins_with_a_space() -> None:
    """Split at the first space after index 1."""
    from llama2c.text.tokenizer_gguf import Keys, read_merges

    found = read_merges(Keys(PATH, {KEY + "merges": [b"a b", b" a b", b"  b", b"a b c"]}))
    assert found == [("a", "b"), (" a", "b"), (" ", "b"), ("a", "b c")]


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch, packages: dict[str, Package]) -> None:
    metadata = gpt2(packages["gpt-2"], "gpt-2")
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(OSError, match=r"^model.gguf: expected the package tokenizers, .*: pip install 'llama2c\[hf\]'$"):
        opened(metadata)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opened(llama(PIECES)).encode("a") == [1, SPACE_A]  # needs no package
