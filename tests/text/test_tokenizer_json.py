"""tokenizer.json against the tokenizers package and transformers: ids, text, streams, special tokens, and broken files."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import json_tokenizers
import pytest
import tokenizer_models
from json_tokenizers import CONFIGS, MAKERS, save
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Package

from llama2c import Tokenizer
from llama2c.errors import ModelError, RequestError
from llama2c.text.tokenizer_json import byte_alphabet
from llama2c.text.vocabulary import Special


@pytest.fixture(scope="module")
def packages() -> dict[str, Any]:
    return {name: maker() for name, maker in MAKERS.items()}


@pytest.fixture(params=list(MAKERS))
def pair(request: pytest.FixtureRequest, packages: dict[str, Any], tmp_path: Path) -> tuple[Tokenizer, Any]:
    """Ours, and the package."""
    package = packages[request.param]
    return Tokenizer.open(save(tmp_path / "model", package, CONFIGS[request.param])), package


@pytest.fixture
def llama2(packages: dict[str, Any], tmp_path: Path) -> Tokenizer:
    return Tokenizer.open(save(tmp_path / "model", packages["llama2"], CONFIGS["llama2"]))


# ---------------------------------------------------------------------------
# text to ids


def test_ids_are_those_of_the_package(pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, package = pair
    for text in json_tokenizers.texts(random.Random(1), 300):
        ids = package.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, bos=False) == tokenizer.encode(text.encode(), bos=False) == ids
        assert tokenizer.encode(text, bos=False, eos=True) == [*ids, tokenizer.eos_id]
        assert tokenizer.encode(text) == package.encode(text).ids  # these post-processors put nothing behind a text
        assert tokenizer.encode(text, eos=True) == [*package.encode(text).ids, tokenizer.eos_id]


def test_special_tokens_are_found_in_a_text(packages: dict[str, Any], tmp_path: Path) -> None:
    package = packages["llama3"]
    tokenizer = Tokenizer.open(save(tmp_path, package, CONFIGS["llama3"]))
    eot = package.token_to_id("<|eot_id|>")
    assert tokenizer.encode("<|eot_id|>", bos=False) == [eot]
    assert tokenizer.decode(tokenizer.encode("a<|eot_id|>b")) == "ab"
    assert tokenizer.piece(eot) == b""


def test_only_what_the_post_processor_puts_in_front(packages: dict[str, Any], tmp_path: Path) -> None:
    """Two tokens before, one behind, which only eos= gives; as BertProcessing, as RobertaProcessing, and none at all."""
    package = Package.from_str(packages["llama2"].to_str())
    for single, prefix in (("<s> </s> $A </s>", (1, 2)), ("$A <s>", ()), ("$A", ())):
        package.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
        tokenizer = Tokenizer.open(save(tmp_path, package, CONFIGS["llama2"]))
        plain = package.encode("a", add_special_tokens=False).ids
        assert tokenizer.prefix == prefix
        assert tokenizer.encode("a") == [*prefix, *plain]
        assert tokenizer.encode("a", eos=True) == [*prefix, *plain, 2]
        assert tokenizer.encode("") == list(prefix or (1,))  # so that a text can begin
        assert tokenizer.encode("", bos=False) == []
        assert tokenizer.decode(tokenizer.encode(" a")) == " a"
    for processing in (processors.BertProcessing, processors.RobertaProcessing):
        package.post_processor = processing(("</s>", 2), ("<s>", 1))
        assert Tokenizer.open(save(tmp_path, package)).prefix == (1,)


def test_without_bos_and_eos(packages: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = Tokenizer.open(save(tmp_path, packages["chatml"]))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_ids, tokenizer.prefix) == (None, None, frozenset(), ())
    assert tokenizer.encode("") == []
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"
    with pytest.raises(ValueError, match=r"^eos: this tokenizer has no end token$"):
        tokenizer.encode("a", eos=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"ab\xff", "text: expected valid UTF-8, found byte 0xFF at index 2"),
        ("ż".encode() + b"\xe2\x82a", "text: expected valid UTF-8, found byte 0xE2 at index 2"),
        (b"\xed\xa0\x80", "text: expected valid UTF-8, found byte 0xED at index 0"),
        ("ab\ud83d", "text: expected valid Unicode, found a lone surrogate U+D83D at index 2"),
    ],
)
def test_text_that_is_none(llama2: Tokenizer, text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        llama2.encode(text)
    assert str(caught.value) == message


def test_settings_of_a_training_are_left_out(packages: dict[str, Any], tmp_path: Path) -> None:
    package = Package.from_str(packages["llama2"].to_str())
    package.enable_truncation(3)
    package.enable_padding(length=50)
    assert len(Tokenizer.open(save(tmp_path, package)).encode("a b c d e f g")) > 6
    assert Tokenizer.open(tmp_path / "tokenizer.json").encode("a")[0] == 1


# ---------------------------------------------------------------------------
# ids to text


def test_round_trip_and_streams(pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, _ = pair
    for text in json_tokenizers.texts(random.Random(2), 500):
        ids = tokenizer.encode(text)
        expected = text if tokenizer.eos_id != 2 else text.replace("▁", " ")  # SentencePiece cannot tell them apart
        assert tokenizer.decode(ids) == expected
        stream = tokenizer.text_stream()
        assert "".join(map(stream.feed, ids)) + stream.flush() == expected
        cut = len(ids) // 2
        stream = tokenizer.text_stream(previous=ids[cut - 1] if cut else None)
        assert (
            (b"".join(map(tokenizer.piece, ids[cut:])))
            .decode(errors="replace")
            .endswith("".join(map(stream.feed, ids[cut:])) + stream.flush())
        )


def test_any_ids_of_byte_level_are_decoded_as_by_the_package(packages: dict[str, Any], tmp_path: Path) -> None:
    """Broken bytes too: both give a U+FFFD for each longest part of a character."""
    rng = random.Random(3)
    for name in ("llama3", "chatml"):
        package = Package.from_str(packages[name].to_str())
        package.add_tokens(["plain", "with space", "né", "<think>", "中文"])  # "né" looks like two bytes to both
        tokenizer = Tokenizer.open(save(tmp_path, package, CONFIGS[name]))
        for _ in range(3000):
            ids = rng.choices(range(tokenizer.vocab_size), k=rng.randrange(12))
            assert tokenizer.decode([*tokenizer.prefix, *ids]) == package.decode(ids)


def test_any_ids_of_sentencepiece_are_decoded_as_by_the_package(packages: dict[str, Any], tmp_path: Path) -> None:
    """Three differences: of broken bytes the package makes a U+FFFD each, whole characters beside them too, where Python and
    we make one of each longest part of a character; a space after a special token that follows BOS stays here; and a BOS
    further on begins a text anew."""
    package = Package.from_str(packages["llama2"].to_str())
    package.add_tokens(["plain", "with space", "▁▁", "<think>"])
    tokenizer = Tokenizer.open(save(tmp_path, package, CONFIGS["llama2"]))
    first_byte, last_byte = package.token_to_id("<0x00>"), package.token_to_id("<0xFF>")
    characters = [[first_byte + byte for byte in character.encode()] for character in " aż中🐢\0\n"]
    words = [[id] for id in range(tokenizer.vocab_size) if not first_byte <= id <= last_byte and id != 1]
    rng, n_stripped = random.Random(4), 0
    for _ in range(3000):
        ids = [id for group in rng.choices(rng.choice([words, characters + words]), k=rng.randrange(9)) for id in group]
        while ids and ids[0] in (0, 2):
            ids.pop(0)
        assert tokenizer.decode([1, *ids]) == package.decode([1, *ids])
        n_stripped += tokenizer.decode([1, *ids]) != tokenizer.decode(ids)
    assert n_stripped > 100
    broken = [first_byte + byte for byte in "中".encode() + b"\xe4"]
    assert package.decode([1, *broken]) == "\ufffd" * 4
    assert tokenizer.decode([1, *broken]) == "中\ufffd"
    space = package.token_to_id("▁t")
    assert package.decode([1, 0, space]) == "t"
    assert tokenizer.decode([1, 0, space]) == " t"


def test_the_space_before_a_text(llama2: Tokenizer) -> None:
    """It belongs to the text everywhere but at the beginning, as with a tokenizer.bin."""
    ids = llama2.encode("a")
    assert llama2.decode(ids) == "a"
    assert llama2.decode(ids[1:]) == llama2.decode(llama2.encode("a", bos=False)) == " a"
    assert llama2.text_stream(previous=1).feed(ids[1]) == "a"
    assert llama2.text_stream(previous=ids[1]).feed(ids[1]) == " a"
    assert llama2.piece(ids[1]) == b" a"


def test_metaspace(packages: dict[str, Any], tmp_path: Path) -> None:
    package = Package.from_str(packages["llama2"].to_str())
    package.normalizer = None
    for scheme in ("always", "first", "never"):
        package.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        for before in ([], [decoders.ByteFallback()]):
            package.decoder = decoders.Sequence([*before, decoders.Metaspace(prepend_scheme=scheme)])
            tokenizer = Tokenizer.open(save(tmp_path, package))
            for text in ("a", "One day", "a  b", "x y "):
                ids = tokenizer.encode(text)
                assert tokenizer.decode(ids) == package.decode(ids) == text
            assert tokenizer.decode([*tokenizer.encode("a"), package.token_to_id("▁t")]) == "a t"


def test_byte_alphabet() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet) == sorted(pre_tokenizers.ByteLevel.alphabet())
    package = Package(models.BPE(alphabet, []))
    package.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = "".join(map(chr, range(0x20, 0x800))) + "\0\n中🐢"
    assert package.encode(text).ids == list(text.encode())


def test_spellings_of_bytes(tmp_path: Path) -> None:
    """By the package's parser: six bytes, hexadecimal or with a plus."""
    spellings = [*"<0x4a> <0x4A> <0x+4> <0x4> <0x4G> <0X4A> <0x_4> <0x-0> <0x4A>> <0x4é <0xé> a".split(), "<0x 4>"]
    package = Package(models.WordLevel({spelling: id for id, spelling in enumerate(spellings)}, unk_token="a"))
    package.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = Tokenizer.open(save(tmp_path, package))
    for id in range(len(spellings)):
        assert tokenizer.decode([id]) == package.decode([id])


def test_an_end_token_has_no_text(packages: dict[str, Any], tmp_path: Path) -> None:
    """Not even if the file forgot to call it special."""
    package = Package.from_str(packages["chatml"].to_str())
    package.add_tokens([AddedToken("<|done|>", special=False)])
    id = package.token_to_id("<|done|>")
    assert Tokenizer.open(save(tmp_path, package)).piece(id) == b"<|done|>"
    assert Tokenizer.open(save(tmp_path, package, generation_config={"eos_token_id": id})).piece(id) == b""


@pytest.mark.parametrize("token", [-1, 600, 2**70])
def test_token_outside(packages: dict[str, Any], tmp_path: Path, token: int) -> None:
    tokenizer = Tokenizer.open(save(tmp_path, packages["llama2"]), 600)
    for call in (tokenizer.piece, lambda token: tokenizer.decode([1, token]), tokenizer.text_stream):
        with pytest.raises(ValueError, match=f"^token: expected 0 to 599, found {token}$"):
            call(token)
    with pytest.raises(TypeError, match=r"^token: expected an int, found float$"):
        tokenizer.piece(1.0)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------
# sizes


def test_a_model_may_have_more_ids(packages: dict[str, Any], tmp_path: Path) -> None:
    path = save(tmp_path, packages["llama3"], CONFIGS["llama3"])
    size = packages["llama3"].get_vocab_size()
    tokenizer = Tokenizer.open(path, size + 3)
    assert tokenizer.vocab_size == size + 3
    assert [tokenizer.piece(id) for id in range(size, size + 3)] == [b""] * 3
    assert tokenizer.decode([*tokenizer.encode("a"), size + 2, *tokenizer.encode("b", bos=False)]) == "ab"
    assert Tokenizer.open(path).vocab_size == size
    small = size - len(packages["llama3"].get_added_tokens_decoder())
    assert Tokenizer.open(save(tmp_path / "small", packages["chatml"]), small).vocab_size == small
    with pytest.raises(ModelError) as caught:
        Tokenizer.open(path, small - 1)
    found = f"expected 1 to {small - 1} tokens, because the model has {small - 1} ids, found {path_size(path)}"
    assert str(caught.value) == f"{path}: {found}"


def path_size(path: Path) -> int:
    return max(Package.from_file(str(path)).get_vocab().values()) + 1


def test_more_tokens_than_the_model(packages: dict[str, Any], tmp_path: Path) -> None:
    """A [PAD] at the end is harmless, until a text spells it out."""
    package = Package.from_str(packages["llama2"].to_str())
    size = package.get_vocab_size()
    package.add_special_tokens(["[PAD]"])
    package.add_tokens(["<extra>"])
    path = save(tmp_path, package, {**CONFIGS["llama2"], "pad_token": "[PAD]"})
    tokenizer = Tokenizer.open(path, size)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (size, 2)
    for text in json_tokenizers.texts(random.Random(6), 50):
        assert tokenizer.encode(text) == package.encode(text).ids
    for spelling, id in (("[PAD]", size), ("<extra>", size + 1)):
        with pytest.raises(RequestError) as caught:
            tokenizer.encode(f"a {spelling} b")
        message = f"text: contains {spelling!r}, which is token {id}, but the model has only {size} tokens"
        assert (str(caught.value), caught.value.param) == (message, "text")
    with pytest.raises(RequestError, match=f"^token: expected 0 to {size - 1}, found {size}$"):
        tokenizer.piece(size)
    path = save(tmp_path, package, {**CONFIGS["llama2"], "eos_token": "[PAD]"}, config={"eos_token_id": 2})
    assert Tokenizer.open(path, size).end_ids == {2}
    assert Tokenizer.open(path, size + 2).end_ids == {2, size}
    package.post_processor = processors.TemplateProcessing(single="[PAD] $A", special_tokens=[("[PAD]", size)])
    path = save(tmp_path, package)
    with pytest.raises(ModelError) as model_error:
        Tokenizer.open(path, size)
    assert str(model_error.value) == f"{path}: puts the ids [{size}] before a text, but the model has only {size} ids"


def test_ids_beyond_the_model_where_names_are_given(packages: dict[str, Any], tmp_path: Path) -> None:
    ids = {"bos_token_id": 99999, "eos_token_id": [2, -1, 50256]}
    tokenizer = Tokenizer.open(save(tmp_path, packages["llama2"], CONFIGS["llama2"], config=ids), 600)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_ids) == (1, 2, {2})
    tokenizer = Tokenizer.open(save(tmp_path, packages["llama2"], {}, config={"bos_token_id": 99999, "eos_token_id": 2}), 600)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)  # BOS is what the post-processor puts in front


def test_ids_between_tokens(tmp_path: Path) -> None:
    package = Package(models.WordLevel({"a": 0, "b": 5}, unk_token="a"))
    package.decoder = decoders.Fuse()
    tokenizer = Tokenizer.open(save(tmp_path, package))
    assert tokenizer.vocab_size == 6
    assert [tokenizer.piece(id) for id in range(6)] == [b"a", b"", b"", b"", b"", b"b"]


# ---------------------------------------------------------------------------
# special tokens


@pytest.mark.parametrize(
    ("files", "bos", "eos", "ends"),
    [
        ({}, 1, None, set()),  # BOS is what the post-processor puts in front
        ({"tokenizer_config": {"bos_token": "</s>", "eos_token": "<s>"}}, 2, 1, {1}),
        ({"special_tokens_map": {"eos_token": {"content": "</s>"}}}, 1, 2, {2}),
        ({"special_tokens_map": {"eos_token": "</s>"}, "tokenizer_config": {"eos_token": "<unk>"}}, 1, 0, {0}),
        ({"special_tokens_map": {"eos_token": "</s>"}, "tokenizer_config": {"eos_token": None}}, 1, 2, {2}),
        ({"config": {"bos_token_id": 7, "eos_token_id": 2}}, 1, 2, {2}),
        ({"config": {"eos_token_id": [5, 2]}}, 1, 5, {2, 5}),
        ({"config": {"eos_token_id": 9}, "generation_config": {"eos_token_id": [5, 2, 2]}}, 1, 5, {2, 5}),
        ({"config": {"eos_token_id": 9}, "generation_config": {}}, 1, 9, {9}),
        ({"tokenizer_config": {"eos_token": "</s>"}, "generation_config": {"eos_token_id": [5, 6]}}, 1, 2, {2, 5, 6}),
    ],
)
def test_special_tokens(
    packages: dict[str, Any], tmp_path: Path, files: dict[str, Any], bos: int, eos: int | None, ends: set[int]
) -> None:
    found = Tokenizer.open(save(tmp_path, packages["llama2"], **files))
    assert (found.bos_id, found.eos_id, found.end_ids) == (bos, eos, ends)


def test_bos_without_a_post_processor(packages: dict[str, Any], tmp_path: Path) -> None:
    """As Qwen 2: config.json names a BOS that no text begins with."""
    path = save(tmp_path, packages["chatml"], CONFIGS["chatml"], config={"bos_token_id": 410})
    tokenizer = Tokenizer.open(path)
    assert (tokenizer.bos_id, tokenizer.prefix) == (410, ())
    assert tokenizer.encode("") == [410]
    assert 410 not in tokenizer.encode("a")


def test_specials_of_a_tokenizer_bin_are_the_default() -> None:
    assert Special() == Special(1, 2, frozenset((1, 2)), (1,), None)
    assert Special().starts == {1}
    assert Special(prefix=()).starts == {None, 1}
    assert Special(bos_id=None, prefix=()).starts == {None}


# ---------------------------------------------------------------------------
# other files


def test_tokenizer_model_is_read_in_place(tmp_path: Path) -> None:
    pieces = tokenizer_models.pieces(300)
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_models.tokenizer_bin(pieces))
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_models.model(pieces))
    expected, found = (Tokenizer.open(tmp_path / name, 300) for name in ("tokenizer.bin", "tokenizer.model"))
    for text in ("", "t t", "é1 é2", "żó\0🐢"):
        assert found.encode(text) == expected.encode(text)
        assert found.decode(found.encode(text)) == expected.decode(found.encode(text))
    assert (found.bos_id, found.eos_id, found.end_ids, found.vocab_size) == (1, 2, {1, 2}, 300)
    path = tmp_path / "tokenizer.model"
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: expected 301 tokens, found 300$"):
        Tokenizer.open(path, 301)
    path.write_bytes(b"IQ== 0\nIg== 1\n")  # as Llama 3's
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: expected a tokenizer of SentencePiece, found .*$"):
        Tokenizer.open(path)


# ---------------------------------------------------------------------------
# broken files


def without(key: str) -> Callable[[str], str]:
    return lambda text: json.dumps({name: value for name, value in json.loads(text).items() if name != key})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "", "expected a tokenizer.json, found: "),
        (lambda text: "{}", "expected a tokenizer.json, found: "),
        (lambda text: "[1]", "expected a tokenizer.json, found: "),
        (lambda text: text[: len(text) // 2], "expected a tokenizer.json, found: "),
        (lambda text: "[" * 100000, "expected a tokenizer.json, found: "),
        (without("model"), "expected a tokenizer.json, found: "),
        (without("decoder"), "expected a decoder of ByteLevel or of SentencePiece's kind, found none"),
        (lambda text: "\0\1", "expected a tokenizer.json, found: "),
    ],
)
def test_broken_tokenizer_json(packages: dict[str, Any], tmp_path: Path, change: Callable[[str], str], words: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(change(packages["llama2"].to_str()))
    with pytest.raises(ValueError) as caught:
        Tokenizer.open(path)
    assert str(caught.value).startswith(f"{path}: {words}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([decoders.WordPiece()], "of ByteLevel or of SentencePiece's kind, found WordPiece"),
        ([decoders.CTC()], "of ByteLevel or of SentencePiece's kind, found CTC"),
        ([decoders.ByteLevel(), decoders.ByteLevel()], "of ByteLevel or of SentencePiece's kind, found ByteLevel, ByteLevel"),
        ([decoders.Fuse(), decoders.Replace("a", "b")], "of ByteLevel or of SentencePiece's kind, found Fuse, Replace"),
        ([decoders.Strip(" ", 1, 0), decoders.Fuse()], "of ByteLevel or of SentencePiece's kind, found Strip, Fuse"),
        ([decoders.Fuse(), decoders.Strip(" ", 2, 0)], "that strips one space at the beginning, found {'type': 'Strip', "),
        ([decoders.Fuse(), decoders.Strip(" ", 1, 1)], "that strips one space at the beginning, found {'type': 'Strip', "),
        ([decoders.Fuse(), decoders.Strip("_", 1, 0)], "that strips one space at the beginning, found {'type': 'Strip', "),
        ([decoders.Replace(json_tokenizers.Regex("a+"), "b")], "that replaces strings, found the pattern {'Regex': 'a+'}"),
    ],
)
def test_other_decoders_are_refused(packages: dict[str, Any], tmp_path: Path, steps: list[Any], found: str) -> None:
    package = Package.from_str(packages["llama2"].to_str())
    package.decoder = decoders.Sequence([decoders.Sequence(steps)])
    path = save(tmp_path, package)
    with pytest.raises(ValueError) as caught:
        Tokenizer.open(path)
    assert str(caught.value).startswith(f"{path}: expected a decoder {found}")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", b"{", "expected JSON, found: Expecting property name"),
        ("tokenizer_config.json", b"[1]", "expected a JSON object, found list"),
        ("tokenizer_config.json", b"\xff", "expected JSON, found: "),
        ("tokenizer_config.json", b"[" * 100000, "expected JSON, found: "),
        ("tokenizer_config.json", b'{"eos_token": 2}', "eos_token: expected a str or a dict with 'content', found 2"),
        ("tokenizer_config.json", b'{"bos_token": {}}', "bos_token: expected a str or a dict with 'content', found {}"),
        ("tokenizer_config.json", b'{"eos_token": "<|x|>"}', "eos_token: expected a token of the tokenizer, found '<|x|>'"),
        ("special_tokens_map.json", b'{"bos_token": "\\r"}', "bos_token: expected a token of the tokenizer, found '\\r'"),
        ("special_tokens_map.json", b"nul", "expected JSON, found: Expecting value"),
        ("config.json", b'{"eos_token_id": -1}', "eos_token_id: expected ids from 0 to 599, found -1"),
        ("config.json", b'{"eos_token_id": true}', "eos_token_id: expected ids from 0 to 599, found True"),
        ("generation_config.json", b'{"eos_token_id": [1, 600]}', "eos_token_id: expected ids from 0 to 599, found [1, 600]"),
        ("generation_config.json", b'{"bos_token_id": "<s>"}', "bos_token_id: expected ids from 0 to 599, found '<s>'"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "chat_template: expected a str or a list of dicts, found 3"),
        ("tokenizer_config.json", b'{"chat_template": ["a"]}', "chat_template: expected a str or a list of dicts, found ['a']"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "rag", "template": "a"}]}',
         "chat_template: expected one with the name 'default', found ['rag']"),
        ("chat_template.json", b'{"chat_template": {}}', "chat_template: expected a str or a list of dicts, found {}"),
        ("chat_template.jinja", b"ab\xff", "expected UTF-8, found invalid start byte at byte 2"),
    ],
)  # fmt: skip
def test_broken_files_beside_it(packages: dict[str, Any], tmp_path: Path, file: str, content: bytes, message: str) -> None:
    path = save(tmp_path, packages["llama2"])
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        Tokenizer.open(path, 600)
    assert str(caught.value).startswith(f"{tmp_path / file}: {message}")
    assert "\n" not in str(caught.value)


def test_a_file_beside_it_that_cannot_be_read(packages: dict[str, Any], tmp_path: Path) -> None:
    path = save(tmp_path, packages["llama2"])
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ValueError, match=r"config.json: expected a regular file, found a directory$"):
        Tokenizer.open(path)
    (tmp_path / "config.json").rmdir()
    (tmp_path / "generation_config.json").symlink_to("blobs/1")  # as the hub's cache has them, with the blob gone
    found = "a link to blobs/1, which does not exist"
    with pytest.raises(OSError, match=rf"generation_config.json: expected a readable file, found {found}$"):
        Tokenizer.open(path)
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"absent.json: expected a readable file, found: No such file or directory$"):
        Tokenizer.open(tmp_path / "absent.json")


def test_missing_packages(packages: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, packages["llama2"])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(OSError) as caught:
        Tokenizer.open(path)
    assert str(caught.value) == (
        f"{path}: expected the package tokenizers, for this tokenizer, found none: pip install 'llama2c[hf]'"
    )
    monkeypatch.undo()
    monkeypatch.setattr("tokenizers.__version__", "0.19.1")
    with pytest.raises(OSError) as caught:
        Tokenizer.open(path)
    expected = "expected the package tokenizers, version 0.20 or later, found 0.19.1: pip install 'llama2c[hf]'"
    assert str(caught.value) == f"{path}: {expected}"
    monkeypatch.setattr("tokenizers.__version__", "1.0.0rc1")
    assert Tokenizer.open(path).bos_id == 1


def test_the_package_is_imported_for_a_tokenizer_json_alone() -> None:
    heavy = "{'tokenizers', 'jinja2', 'llama2c.text.tokenizer_json'}"
    code = f"import sys, llama2c; llama2c.load(); print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=os.sep)
    assert done.stdout == "set()\n"


# ---------------------------------------------------------------------------
# with transformers


@pytest.mark.parametrize("name", list(MAKERS))
def test_ids_are_those_of_transformers(packages: dict[str, Any], tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    tokenizer = Tokenizer.open(save(tmp_path, packages[name], CONFIGS[name]))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    for text in json_tokenizers.texts(random.Random(5), 100):
        assert tokenizer.encode(text) == theirs.encode(text)
        assert tokenizer.encode(text, bos=False) == theirs.encode(text, add_special_tokens=False)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_normalizers_are_the_packages(packages: dict[str, Any], tmp_path: Path) -> None:
    package = Package.from_str(packages["llama3"].to_str())
    package.normalizer = normalizers.NFC()
    tokenizer = Tokenizer.open(save(tmp_path, package))
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é")
