"""tokenizer.model against the sentencepiece package and transformers: ids for every setting, or one line that refuses it."""

from __future__ import annotations

import random
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizer_models
from tokenizer_models import CORPUS, field, processor, train, varint, write

from llama2c import Tokenizer
from llama2c.errors import ModelError, RequestError
from llama2c.text.sentencepiece import convert, pack

USER = ["<sep>", "<sep><sep>", "ay", "\u2581\u2581", "\u2581the\u2581", "中文", "aa", "aab"]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tinystories": {"remove_extra_whitespaces": True, "split_digits": True},
    "no dummy prefix": {"add_dummy_prefix": False},
    "neither": {"add_dummy_prefix": False, "remove_extra_whitespaces": True},
    "user-defined": {"user_defined_symbols": USER},
    "user-defined and all": {"user_defined_symbols": USER, "remove_extra_whitespaces": True},
    "user-defined, no prefix": {"user_defined_symbols": USER, "add_dummy_prefix": False},
    "control": {"control_symbols": ["<pad>", "ed", "the", "<0x41>x"], "pad_id": 3},
    "few characters": {"character_coverage": 0.98},
    "no split": {"split_by_whitespace": False, "split_by_unicode_script": False},
}


def texts(n: int, seed: int) -> list[str]:
    """Texts of words, runs of spaces, other white space, characters from anywhere, and user-defined pieces that touch."""
    rng = random.Random(seed)
    words = " ".join(CORPUS).split()
    parts = [*USER, *words, " ", " ", "  ", "   ", "\t", "\n", "\u2581", "\u3000", "é", "ß", "\0", "<s>", "</s>", "<pad>"]
    parts += ["<0x41>", "<unk>", "\n</s>\n", "the", "aaab", "🦊", "\ufffd", "\u200d", "7"]
    made = ["", " ", "  ", "\u2581", " \u2581 ", "a", " a", "a ", "a  b", " a  b  ", "\n a", "a\u2581b", "a \u2581 b\u2581 "]
    for _ in range(n):
        made.append("".join(rng.choices(parts, k=rng.randrange(12))))
        made.append("".join(chr(rng.choice((0x20, 0x61, 0xA0, 0x4E00, 0x1F600)) + rng.randrange(30)) for _ in range(8)))
    return made


# ---------------------------------------------------------------------------
# ids


@pytest.mark.parametrize("name", list(SETTINGS))
def test_ids_are_those_of_sentencepiece(name: str, tmp_path: Path) -> None:
    content = train(**SETTINGS[name])
    theirs = processor(content)
    tokenizer = Tokenizer.open(write(tmp_path, content), theirs.vocab_size())
    for text in texts(600, seed=1):
        ids = theirs.encode(text)
        assert tokenizer.encode(text, bos=False) == ids, text
        assert tokenizer.encode(text.encode(), eos=True) == [1, *ids, 2]
        found = tokenizer.decode([1, *ids])
        expected = theirs.decode(ids)
        if SETTINGS[name].get("remove_extra_whitespaces"):  # theirs drops all spaces at the beginning, ours one
            found, expected = found.lstrip(" "), expected.lstrip(" ")
        assert found == expected


def made_model(pieces: list[tuple[str, float, int]], normalizer: bytes = b"", trainer: bytes = b"") -> bytes:
    """A tokenizer.model of <unk>, BOS, EOS, the bytes and these pieces."""
    content = b""
    for spelling, score, kind in [*tokenizer_models.pieces(259), *pieces]:
        content += field(1, field(1, spelling.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind))
    trainer = b"\x18\x02" + varint(35 << 3) + b"\x01" + trainer  # BPE, byte_fallback
    return content + field(2, trainer) + field(3, field(1, b"identity") + normalizer)


def test_made_up_models_against_sentencepiece(tmp_path: Path) -> None:
    """Few letters and few scores: ties, pieces of characters that are none, low scores, user-defined and control pieces."""
    rng = random.Random(2)
    letters = ["a", "b", "\u2581", "é", "<s>", "<0x41>", "🐢"]
    for _ in range(60):
        spellings = {"".join(rng.choices(letters, k=rng.randrange(1, 5))) for _ in range(rng.randrange(40))}
        spellings = sorted(spellings - {"<s>", "<0x41>", "\u2581"})
        scores = [0.0, -1.0, -1.0, 2.5, -9e9, -1e10, -2e10, float("inf"), float("-inf")]
        pieces = [(spelling, rng.choice(scores), rng.choice([1] * 7 + [3, 4, 4])) for spelling in spellings]
        pieces.append(("\u2581", -5.0, rng.choice([1, 1, 4])))
        content = made_model(pieces, bytes([0x18, rng.randrange(2), 0x20, rng.randrange(2)]))
        theirs, tokenizer = processor(content), Tokenizer.open(write(tmp_path, content))
        for _ in range(20):
            text = "".join(rng.choices([*letters, " ", " ", "x"], k=rng.randrange(25)))
            assert tokenizer.encode(text, bos=False) == theirs.encode(text), (text, pieces)


def test_ids_written_out(tmp_path: Path) -> None:
    """Without the package: the three settings that are followed."""
    pieces = [("\u2581", -1.0, 1), ("a", -2.0, 1), ("b", -3.0, 1), ("\u2581b", -4.0, 1), ("a\u2581b", 0.0, 4), ("ab", -5.0, 1)]
    space, a, b, space_b, user, ab = range(259, 265)
    for add, squeeze, text, ids in (
        (1, 0, "a  b", [space, a, space, space_b]),
        (1, 1, " a  b ", [space, user]),
        (0, 0, "a  b", [a, space, space_b]),
        (0, 1, "  b", [b]),
        (0, 1, " \u2581 ", []),
        (1, 1, "  ", []),
        (1, 0, " ", [space, space]),
        (1, 0, "ba bab", [space_b, user, ab]),
        (1, 0, "a\u2581bé", [space, user, 0xC3 + 3, 0xA9 + 3]),
    ):
        path = write(tmp_path, made_model(pieces, bytes([0x18, add, 0x20, squeeze])))
        assert Tokenizer.open(path).encode(text, bos=False) == ids
    assert Tokenizer.open(path).encode(b"\x80\xff", bos=False) == [space, 0x80 + 3, 0xFF + 3]  # bytes stay bytes
    assert Tokenizer.open(path).encode("") == [1]


def test_tokens_in_another_order(tmp_path: Path) -> None:
    """The package puts its control and user-defined pieces before the bytes, and may have no BOS."""
    content = train(bos_id=-1, eos_id=1, unk_id=0, user_defined_symbols=["<sep>"], control_symbols=["<x>"])
    theirs, tokenizer = processor(content), Tokenizer.open(write(tmp_path, content))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_ids, tokenizer.prefix) == (None, 1, {1}, ())
    assert theirs.piece_to_id("<0x00>") == 4
    for text in ("a<sep>b", "<x>é🦊", "One day", ""):
        assert tokenizer.encode(text) == theirs.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [tokenizer.piece(theirs.piece_to_id(name)) for name in ("<x>", "<sep>", "<0x0A>")] == [b"", b"<sep>", b"\n"]
    with pytest.raises(RequestError, match=r"^eos: this tokenizer has no end token$"):
        Tokenizer.open(write(tmp_path, train(eos_id=-1))).encode("a", eos=True)


# ---------------------------------------------------------------------------
# what is refused

SPACE = ("\u2581", -1.0, 1)
RULES = "expected rules that change no characters (identity)"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (made_model([SPACE], field(2, b"map")), f"normalizer_spec.name: {RULES}, found 'identity'"),
        (made_model([SPACE]) + field(5, field(1, b"x") + field(2, b"map")), f"denormalizer_spec.name: {RULES}, found 'x'"),
        (made_model([SPACE], b"\x28\x00"), "normalizer_spec.escape_whitespaces: expected true, found false"),
        (made_model([SPACE], trainer=b"\xc0\x01\x01"), "trainer_spec.treat_whitespace_as_suffix: expected false, found true"),
        (made_model([SPACE], trainer=varint(35 << 3) + b"\x00"), "trainer_spec.byte_fallback: expected true, found false"),
        (made_model([SPACE, ("a", 0.0, 5)]), "token 260: expected no unused piece (kind 5), found b'a'"),
        (made_model([SPACE, ("a b", 0.0, 4)]), "token 260: expected a piece that spells spaces as U+2581, found b'a b'"),
        (made_model([("a", 0.0, 1)]), "expected a piece for the space, U+2581, found none"),
        (made_model([SPACE], trainer=b"\x18\x01"), "expected a model of byte-pair encoding (kind 2), found kind 1"),
        (tokenizer_models.model([*tokenizer_models.pieces(258), SPACE]), "expected token 258 to be <0xFF>, found "
         "b'\\xe2\\x96\\x81'"),
    ],
)  # fmt: skip
def test_what_is_not_followed_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ModelError) as caught:
        Tokenizer.open(path)
    assert str(caught.value) == f"{path}: {message.replace(chr(92) + 'xe2' + chr(92) + 'x96' + chr(92) + 'x81', ' ')}"


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf"])
def test_rules_that_change_characters_are_refused(tmp_path: Path, rule: str) -> None:
    path = write(tmp_path, train(normalization_rule_name=rule))
    says = f"normalizer_spec.name: expected rules that change no characters (identity), found '{rule}'"
    with pytest.raises(ModelError, match=f"^{re.escape(f'{path}: {says}')}$"):
        Tokenizer.open(path)


# ---------------------------------------------------------------------------
# conversion to a tokenizer.bin


def test_a_conversion_says_what_a_tokenizer_bin_lacks(tmp_path: Path) -> None:
    path = write(tmp_path, made_model([SPACE], b"\x18\x00"))
    with pytest.raises(ModelError) as caught:
        convert(path, 260)
    says = "normalizer_spec.add_dummy_prefix is false, but with a tokenizer.bin every text gets a space before it"
    assert str(caught.value) == f"{path}: {says}: use the tokenizer.model itself"
    other = "may get other ids than from the tokenizer.model"
    lacks = {
        b"\x20\x01": "normalizer_spec.remove_extra_whitespaces is true, and a tokenizer.bin has no such setting: texts with "
        f"two spaces in a row, or with spaces at an end, {other}",
        b"\x20\x00": None,
    }
    for normalizer, warning in lacks.items():
        path.write_bytes(made_model([SPACE], normalizer))
        with warnings.catch_warnings(record=True) as caught_warnings:
            warnings.simplefilter("always")
            assert convert(path, 260) == pack(path.read_bytes())[0]
        assert [str(found.message) for found in caught_warnings] == ([f"{path}: {warning}"] if warning else [])
    path.write_bytes(made_model([SPACE, ("éa", 0.0, 1), ("a", 0.0, 1), ("x", 0.0, 4)], b"\x20\x00"))
    with pytest.warns(RuntimeWarning) as recorded:
        convert(path, 263)
    assert [str(found.message) for found in recorded] == [
        f"{path}: 1 user-defined pieces, as 'x', are not marked in a tokenizer.bin: texts that contain one {other}",
        f"{path}: 1 characters, as 'é', are parts of pieces without being pieces themselves, and with a tokenizer.bin they are "
        f"not joined: texts that contain one {other}",
    ]


def test_a_conversion_of_no_file(tmp_path: Path) -> None:
    """By the same reader as everything else: a folder, a link that leads nowhere, an absent file."""
    path = tmp_path / "tokenizer.model"
    with pytest.raises(FileNotFoundError) as caught:
        convert(path, 260)
    assert str(caught.value) == f"{path}: expected a tokenizer of SentencePiece, found: No such file or directory"
    assert caught.value.errno == 2
    path.symlink_to("gone")
    with pytest.raises(OSError, match=r"tokenizer.model: expected a readable file, found a link to gone, which does not exist"):
        convert(path, 260)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=r"tokenizer.model: expected a regular file, found a directory$"):
        convert(path, 260)


def test_a_tokenizer_bin_has_the_same_ids(tmp_path: Path) -> None:
    """Where no warning is given."""
    content = train()
    path = write(tmp_path, content)
    (tmp_path / "tokenizer.bin").write_bytes(convert(path, 420))
    converted, theirs = Tokenizer.open(tmp_path / "tokenizer.bin", 420), processor(content)
    for text in texts(200, seed=3):
        if "\u2581" not in text and "<" not in text:  # the C program knows neither as what it is
            assert converted.encode(text, bos=False) == theirs.encode(text)


# ---------------------------------------------------------------------------
# a Hugging Face folder

TEMPLATE = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.content }}{{ eos_token }}{% endfor %}"
IM_START = {"content": "<|im_start|>", "special": True, "lstrip": False, "rstrip": False, "single_word": False}
MASK = {"content": "<mask>", "special": True, "lstrip": True, "rstrip": True, "single_word": False}


def hf_config(**more: Any) -> dict[str, Any]:
    return {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "chat_template": TEMPLATE, **more}


def test_without_settings_it_is_a_tokenizer_of_llama2_c(tmp_path: Path) -> None:
    tokenizer = Tokenizer.open(write(tmp_path, made_model([SPACE])), 260)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_ids, tokenizer.prefix) == (1, 2, {1, 2}, (1,))
    assert (tokenizer.chat_template, tokenizer.no_template) == (None, None)
    assert tokenizer.encode("</s>", bos=False) == [259, *(byte + 3 for byte in b"</s>")]


def test_settings_beside_it(tmp_path: Path) -> None:
    """Template, added tokens, end tokens, special tokens: as beside a tokenizer.json."""
    added = {"262": IM_START, "263": {"content": "plain é", "special": False}}
    path = write(
        tmp_path, made_model([SPACE, ("a", -1.0, 1), ("b", -1.0, 1)]),
        tokenizer_config=hf_config(added_tokens_decoder=added, eos_token="</s>"),
        special_tokens_map={"eos_token": "<|im_start|>", "additional_special_tokens": ["<|end|>"]},
        added_tokens={"<|end|>": 264, "<|im_start|>": 262},
        generation_config={"eos_token_id": [262, 264, 9999]},
        config={"model_type": "llama"},
    )  # fmt: skip
    for vocab_size in (None, 265, 300):
        tokenizer = Tokenizer.open(path, vocab_size)
        assert tokenizer.vocab_size == (vocab_size or 265)
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.prefix) == (1, 2, (1,))
        assert tokenizer.end_ids == {2, 262, 264} | ({9999} if vocab_size == 10000 else set())
        assert tokenizer.chat_template is not None and tokenizer.chat_template.source == TEMPLATE
        assert tokenizer.chat_template.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        assert tokenizer.no_template is None
        assert tokenizer.encode("a<|im_start|>b</s>plain é<|end|>") == [1, 259, 260, 262, 259, 261, 2, 263, 264]
        assert tokenizer.decode([1, 259, 260, 262, 263, 264, 261]) == "aplain éb"
        assert tokenizer.piece(262) == b""
    with pytest.raises(RequestError, match=r"^token: expected 0 to 299, found 300$"):
        tokenizer.piece(300)
    assert tokenizer.piece(299) == b""
    with pytest.raises(TypeError, match=r"^token: expected an int, found float$"):
        tokenizer.piece(1.0)  # type: ignore[arg-type]


def test_switches_of_the_settings(tmp_path: Path) -> None:
    def ids(text: str, **settings: Any) -> list[int]:
        content = made_model([SPACE, ("a", -1.0, 1), ("\u2581a", -2.0, 1)])
        return Tokenizer.open(write(tmp_path, content, tokenizer_config=settings)).encode(text)

    assert ids("a</s>a") == [1, 261, 2, 261]  # a space before each part
    assert ids("a</s>a", legacy=False) == [1, 261, 2, 260]  # only before the text
    assert ids("</s>a", legacy=False) == [1, 2, 260]
    assert ids("a</s>a", add_prefix_space=False) == [1, 260, 2, 260]
    assert ids("a", add_bos_token=False) == [261]
    assert ids("", add_bos_token=False) == [1]  # so that a text can begin
    assert ids("a") == [1, 261]
    with pytest.raises(ModelError, match=r"tokenizer_config.json: legacy: expected true or false, found 3$"):
        ids("a", legacy=3)


def test_white_space_around_added_tokens(tmp_path: Path) -> None:
    added = {"260": MASK, "261": {**IM_START, "content": "word", "single_word": True}}
    path = write(tmp_path, made_model([SPACE], b"\x20\x00"), tokenizer_config={"added_tokens_decoder": added})
    tokenizer = Tokenizer.open(path)
    x = ord("x") + 3
    assert tokenizer.encode("x \n<mask>  x", bos=False) == [259, x, 260, 259, x]
    assert tokenizer.encode("x word", bos=False) == [259, x, 259, 261]
    assert 261 not in tokenizer.encode("xword words")
    assert len(tokenizer.encode(" " * 10**6 + "<mask>")) == 2  # neither this nor the next takes the square of its length
    squeezing = Tokenizer.open(write(tmp_path / "b", made_model([SPACE])))
    assert squeezing.encode("x" + " \u2581" * 10**6) == [1, 259, x]
    assert len(squeezing.encode("x \u2581" * 1000)) == 1 + 1000 * 3 - 1


@pytest.mark.parametrize("legacy", [True, False])
def test_ids_are_those_of_transformers(tmp_path: Path, legacy: bool) -> None:
    """Of texts where no part begins with a space, of which transformers 5 puts one less before it than SentencePiece."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("google.protobuf", reason="needs protobuf, with which transformers reads a tokenizer.model")
    config = hf_config(legacy=legacy, added_tokens_decoder={"420": IM_START, "421": MASK, "422": {"content": "plain"}})
    path = write(tmp_path, train(), tokenizer_config=config, config={"model_type": "llama"})
    tokenizer = Tokenizer.open(path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (theirs.bos_token_id, theirs.eos_token_id, len(theirs))
    rng = random.Random(4)
    words = " ".join(CORPUS).split()
    parts = [*words, *(f"{word} {word}" for word in words), "<|im_start|>", "</s>", "<s>"]
    parts += ["plain", "<mask>", "é🦊", "\n", "中"]
    for _ in range(300):
        text = "".join(rng.choices(parts, k=rng.randrange(1, 8)))
        assert tokenizer.encode(text) == theirs.encode(text), text
        assert tokenizer.encode(text, bos=False) == theirs.encode(text, add_special_tokens=False)
    messages = [{"role": "user", "content": "One day"}, {"role": "assistant", "content": "she"}]
    from llama2c.text.chat import chat_ids

    expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False, add_generation_prompt=True)
    assert chat_ids(tokenizer, messages) == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": {"bos_token": "<|x|>"}}, "tokenizer_config.json: bos_token: expected a token of the "
         "tokenizer, found '<|x|>'"),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}},
         "tokenizer_config.json: added_tokens_decoder: expected an object, found [1]"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "a"}}}},
         "tokenizer_config.json: expected an id of 'a' from 0 to 2147483647, found None"),
        ({"tokenizer_config": {"added_tokens_decoder": {"1": {"special": True}}}}, "tokenizer_config.json: "
         "added_tokens_decoder['1']: expected a str or a dict with 'content', found {'special': True}"),
        ({"added_tokens": {"a": "b"}}, "added_tokens.json: expected an id of 'a' from 0 to 2147483647, found 'b'"),
        ({"config": {"eos_token_id": "2"}}, "config.json: eos_token_id: expected ids from 0 to 259, found '2'"),
    ],
)  # fmt: skip
def test_broken_files_beside_it(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    path = write(tmp_path, made_model([SPACE]), **files)
    with pytest.raises(ModelError) as caught:
        Tokenizer.open(path)
    assert str(caught.value) == f"{tmp_path / message}"


# ---------------------------------------------------------------------------
# sizes


def test_more_tokens_than_the_model(tmp_path: Path) -> None:
    """Harmless where no text but the token's own spelling becomes such an id."""
    path = write(tmp_path, made_model([SPACE]), added_tokens={"[PAD]": 260})
    tokenizer = Tokenizer.open(path, 260)
    assert tokenizer.vocab_size == 260
    assert tokenizer.encode("PAD") == [1, 259, *(byte + 3 for byte in b"PAD")]
    with pytest.raises(RequestError) as caught:
        tokenizer.encode("a [PAD]")
    assert str(caught.value) == "text: contains '[PAD]', which is token 260, but the model has only 260 tokens"
    assert caught.value.param == "text"
    with pytest.raises(ModelError, match=r"expected 259 tokens, found 261$"):
        Tokenizer.open(path, 259)
    (tmp_path / "added_tokens.json").unlink()
    assert Tokenizer.open(write(tmp_path, made_model([SPACE, ("<pad>", 0.0, 3)])), 260).vocab_size == 260  # a control piece
    for pieces in ([SPACE, ("a", 0.0, 1)], [SPACE, ("a", 0.0, 4)]):
        with pytest.raises(ModelError, match=r"expected 260 tokens, found 261$"):
            Tokenizer.open(write(tmp_path, made_model(pieces)), 260)


def test_an_end_token_that_the_model_does_not_have(tmp_path: Path) -> None:
    path = write(tmp_path, made_model([SPACE]), added_tokens={"<e>": 260}, special_tokens_map={"eos_token": "<e>"})
    assert Tokenizer.open(path, 260).eos_id is None
    assert Tokenizer.open(path, 261).eos_id == 260
