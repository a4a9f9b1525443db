"""The tokenizer against golden ids of the C program, and against the plain quadratic encoder of reference_text."""

from __future__ import annotations

import io
import json
import os
import random
import re
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import reference_text
from reference_text import Vocabulary

from llama2c.errors import ModelError, RequestError
from llama2c.text import _bpe
from llama2c.text.stops import StopStrings
from llama2c.text.tokenizer import BOS, EOS, UNK, Tokenizer

SPECIAL: Vocabulary = [(b"<unk>", 0.0), (b"<s>", 0.0), (b"</s>", 0.0)]
BYTES: Vocabulary = [(b"<0x%02X>" % byte, 0.0) for byte in range(256)]
BASE = SPECIAL + BYTES  # the smallest vocabulary there may be: 259 tokens


def pack(vocabulary: Vocabulary, max_token_length: int = 0) -> bytes:
    """A tokenizer.bin."""
    tokens = (struct.pack("<fi", score, len(spelling)) + spelling for spelling, score in vocabulary)
    return struct.pack("<i", max_token_length) + b"".join(tokens)


def make(folder: Path, vocabulary: Vocabulary) -> Tokenizer:
    path = folder / "tokenizer.bin"
    path.write_bytes(pack(vocabulary))
    return Tokenizer.open(path, len(vocabulary))


@pytest.fixture(params=[("tokenizer.bin", 32000), ("tok512.bin", 512)], ids=["llama2", "tok512"])
def real(request: pytest.FixtureRequest, shared: Path) -> tuple[Path, int]:
    name, vocab_size = request.param
    return shared / "models" / name, vocab_size


@pytest.fixture
def llama2(shared: Path) -> Tokenizer:
    return Tokenizer.open(shared / "models" / "tokenizer.bin", 32000)


# -- encoding


def test_golden(real: tuple[Path, int], shared: Path) -> None:
    path, vocab_size = real
    golden = json.loads((shared / "golden" / "tokenizer.json").read_text())
    (cases,) = (cases for name, cases in golden.items() if name.startswith(path.name))
    tokenizer = Tokenizer.open(path, vocab_size)
    assert len(cases) > 10
    for case in cases:
        text, ids = case["text"], case["ids"]
        assert tokenizer.encode(text) == tokenizer.encode(text.encode()) == ids
        assert tokenizer.encode(text, bos=False, eos=True) == [*ids[1:], EOS]
        assert tokenizer.decode(ids) == text


def test_real_vocabularies_against_reference(real: tuple[Path, int]) -> None:
    path, vocab_size = real
    vocabulary, tokenizer = reference_text.read_vocabulary(path), Tokenizer.open(path, vocab_size)
    rng = random.Random(1)
    for _ in range(150):
        tokens = b"".join(tokenizer.piece(rng.randrange(vocab_size)) for _ in range(rng.randrange(25)))
        blocks = rng.choices((0x20, 0xA0, 0x4E00, 0x1F300), k=30)
        points = "".join(chr(block + rng.randrange(90)) for block in blocks).encode()
        letters = bytes(rng.choices(b" aehlot\n", k=60))
        for text in (tokens, points, letters, rng.randbytes(rng.randrange(60))):
            assert tokenizer.encode(text) == reference_text.encode(vocabulary, text), text


def test_small_vocabularies_against_reference(tmp_path: Path) -> None:
    """Few letters and few scores: ties everywhere, spellings of bytes and BOS that join, and duplicates."""
    rng = random.Random(2)
    texts = [b"a", b"b", b" ", b"\0", "é".encode(), b"\xc3", b"\xa9", b"\x80"]
    spellings = [*texts, b"<s>", b"<0xC3>", b"<0xA9>"]
    scores = [0.0, -0.0, -1.0, -1.0, 2.5, -9e9, -1e10, -2e10, float("inf"), float("-inf")]
    for _ in range(150):
        vocabulary = list(BASE)
        for _ in range(rng.randrange(60)):
            vocabulary.append((b"".join(rng.choices(spellings, k=rng.randrange(1, 6))), rng.choice(scores)))
        tokenizer = make(tmp_path, vocabulary)
        for _ in range(20):
            text = b"".join(rng.choices(texts, k=rng.randrange(50)))
            for bos in (True, False):
                assert tokenizer.encode(text, bos) == reference_text.encode(vocabulary, text, bos), text


def test_growing_letters(tmp_path: Path) -> None:
    """One repeated letter, in a length no quadratic encoder would finish."""
    vocabulary = [*BASE, (b" ", 0.0), (b"a", 0.0), *((b"a" * 2**k, float(-k)) for k in range(1, 11))]
    tokenizer = make(tmp_path, vocabulary)
    largest, two = len(vocabulary) - 1, 259 + 2
    assert tokenizer.encode("a" * (1024 * 300 + 2)) == [BOS, 259, *[largest] * 300, two]


def test_rules_of_merging(tmp_path: Path) -> None:
    a, b, ab, ba = 260, 261, 262, 263

    def encode(text: str | bytes, *more: tuple[bytes, float], ab: float = -1, ba: float = -1) -> list[int]:
        letters = [(b" ", 0.0), (b"a", 0.0), (b"b", 0.0), (b"ab", ab), (b"ba", ba)]
        return make(tmp_path, [*BASE, *letters, *more]).encode(text)[2:]

    assert encode("aba") == [ab, a]  # the leftmost among equal scores
    assert encode("bab") == [ba, b]
    assert encode("aba", ba=-0.5) == [a, ba]  # the highest score before the leftmost
    assert encode("ab", ab=-1e10) == [a, b]  # a score must exceed -1e10
    assert encode("ab", ab=-9.9e9) == [ab]
    assert encode("ab", (b"ab", 5.0)) == [ab]  # of two tokens spelled alike: the lower id, and its score
    assert encode("ac", (b"ac", 1.0)) == [a, ord("c") + 3]  # a byte token joins as <0x63>, not as c
    assert encode("ac", (b"a<0x63>", 1.0)) == [264]
    assert encode(b"\xe4\xe4", (b"<0xE4><0xE4>", 1.0)) == [264]


def test_bos_joins_and_eos_does_not(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, [*BASE, (b" ", 0.0), (b"<s> ", 1.0), (b"a", 0.0), (b"a</s>", 1.0)])
    assert tokenizer.encode("a", eos=True) == [260, 261, EOS]
    assert tokenizer.encode("a", bos=False) == [259, 261]


def test_code_points(tmp_path: Path) -> None:
    """A code point is any byte and at most three continuation bytes after it."""
    stray, long = b"\x80\x81\x82\x83", b"a\x80\x80\x80"
    tokenizer = make(tmp_path, [*BASE, (stray, 0.0), (long, 0.0), ("é".encode(), 0.0)])
    space = ord(" ") + 3  # no token for a space here, so its byte
    assert tokenizer.encode(stray + b"\x84") == [BOS, space, 259, 0x84 + 3]
    assert tokenizer.encode(b"\xff" + stray) == [BOS, space, 0xFF + 3, 0x80 + 3, 0x81 + 3, 0x82 + 3, 0x83 + 3]
    assert tokenizer.encode(long + b"\x80") == [BOS, space, 260, 0x80 + 3]
    assert tokenizer.encode("éü") == [BOS, space, 261, 0xC3 + 3, 0xBC + 3]


def test_empty_text_and_nul(llama2: Tokenizer) -> None:
    assert llama2.encode("") == [BOS]
    assert llama2.encode(b"", bos=False, eos=True) == [EOS]
    assert llama2.encode("\0") == [BOS, 29871, 3]
    assert llama2.decode(llama2.encode("a\0b")) == "a\0b"


def test_round_trip(real: tuple[Path, int]) -> None:
    tokenizer = Tokenizer.open(real[0])
    rng = random.Random(3)
    for _ in range(300):
        text = "".join(rng.choice(" \n\tabcdeé€😀中\0~") for _ in range(rng.randrange(80)))
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids[1:]) == (" " + text if text else "")  # without BOS the space stays
        data = rng.randbytes(rng.randrange(80))
        assert b"".join(map(tokenizer.piece, tokenizer.encode(data))) == (b" " + data if data else b"")


def test_many_threads(llama2: Tokenizer) -> None:
    rng = random.Random(4)
    texts = ["".join(rng.choices(" the cat sat on", k=5000)) for _ in range(16)]
    expected = [llama2.encode(text) for text in texts]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(llama2.encode, texts * 4)) == expected * 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS as Linux has it")
@pytest.mark.skipif("LLAMA2C_SANITIZE" in os.environ, reason="sanitizers reserve terabytes of address space")
def test_no_memory(tmp_path: Path) -> None:
    """A text whose buffers do not fit is a MemoryError, and the tokenizer works on."""
    make(tmp_path, BASE)
    code = """if True:
        import resource, sys
        from llama2c.text.tokenizer import Tokenizer
        tokenizer = Tokenizer.open(sys.argv[1])
        text = bytes(2**26)
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
        try:
            tokenizer.encode(text)
        except MemoryError:
            print(tokenizer.encode("a"))
    """
    path = str(tmp_path / "tokenizer.bin")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"[1, {ord(' ') + 3}, {ord('a') + 3}]\n"


# -- decoding


def test_constants(llama2: Tokenizer) -> None:
    assert (UNK, BOS, EOS) == (0, 1, 2)
    assert (llama2.bos_id, llama2.eos_id, llama2.vocab_size) == (1, 2, 32000)


def test_piece(tmp_path: Path) -> None:
    odd = [b"<0x4a>", b"<0x4A", b"<0x4G>", b"<0x4A>>", b"<0x4A)", b"<0X4A>", b"<0x+4>", b"<0x 4>", b" a"]
    tokenizer = make(tmp_path, [*BASE, *((spelling, 0.0) for spelling in odd)])
    assert [tokenizer.piece(token) for token in range(3)] == [b"", b"", b""]
    assert [tokenizer.piece(byte + 3) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert tokenizer.piece(259) == b"J"
    assert [tokenizer.piece(259 + i) for i in range(1, len(odd))] == odd[1:]
    assert tokenizer.piece(np.int64(259)) == b"J"


def test_space_after_bos(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, [*BASE, (b"  a", 0.0), (b" ", 0.0)])
    two, one, byte = 259, 260, ord(" ") + 3
    assert tokenizer.decode([two]) == "  a"
    assert tokenizer.decode([BOS, two, two]) == " a  a"
    assert tokenizer.decode([BOS, one]) == ""
    assert tokenizer.decode([BOS, byte]) == " "  # its spelling, <0x20>, has no leading space
    assert tokenizer.decode([BOS, EOS, two, BOS, two]) == "  a a"
    assert tokenizer.text_stream(previous=BOS).feed(two) == " a"
    assert tokenizer.text_stream(previous=two).feed(two) == "  a"


def test_decode_of_broken_bytes(llama2: Tokenizer) -> None:
    broken = [byte + 3 for byte in b"\xe2\x82A\xff\xf0\x9f"]
    assert llama2.decode(broken) == "\ufffdA\ufffd\ufffd"
    assert llama2.decode([]) == ""
    stream = llama2.text_stream(errors="ignore")
    assert "".join(map(stream.feed, broken)) + stream.flush() == "A"


def test_stream_never_splits_a_character(llama2: Tokenizer) -> None:
    for character in "é€😀":
        *first, last = (byte + 3 for byte in character.encode())
        stream = llama2.text_stream()
        assert [stream.feed(token) for token in first] == [""] * len(first)
        assert stream.feed(last) == character
        assert stream.flush() == ""


def test_stream_equals_whole(llama2: Tokenizer) -> None:
    """Whatever the bytes, fed one by one and with BOS or EOS anywhere between: the same as all at once."""
    rng = random.Random(5)
    parts = [b"a", *(c.encode() for c in "é€😀"), b"\xff", b"\xe2\x82", b"\x80", b"\xed\xa0\x80"]
    for _ in range(500):
        data = b"".join(rng.choices(parts, k=rng.randrange(8)))
        for errors in ("replace", "ignore"):
            stream = llama2.text_stream(errors=errors)
            ids = [byte + 3 for byte in data]
            ids.insert(rng.randrange(len(ids) + 1), rng.choice([BOS, EOS]))
            assert "".join(map(stream.feed, ids)) + stream.flush() == data.decode(errors=errors)
            assert stream.flush() == ""  # nothing is left behind


def test_refused_token_changes_nothing(llama2: Tokenizer) -> None:
    stream = llama2.text_stream(previous=BOS)
    with pytest.raises(ValueError, match="token: expected 0 to 31999, found 32000"):
        stream.feed(32000)
    assert stream.feed(llama2.encode("cat", bos=False)[0]) == "cat"  # still after BOS
    stream.feed(0xC3 + 3)
    with pytest.raises(TypeError, match="token: expected an int, found float"):
        stream.feed(1.0)  # type: ignore[arg-type]
    assert stream.feed(0xA9 + 3) == "é"


@pytest.mark.parametrize("token", [-1, 32000, 2**31, 2**32 + 3, 2**70, -(2**70)])
def test_token_outside(llama2: Tokenizer, token: int) -> None:
    for call in (llama2.piece, lambda token: llama2.decode([1, token]), llama2.text_stream):
        with pytest.raises(ValueError, match=f"^token: expected 0 to 31999, found {token}$"):
            call(token)


@pytest.mark.parametrize("token", [1.0, "1", b"a", np.float32(3)])
def test_token_of_wrong_type(llama2: Tokenizer, token: object) -> None:
    for call in (llama2.piece, lambda token: llama2.decode([token]), llama2.text_stream):
        with pytest.raises(TypeError, match=f"^token: expected an int, found {type(token).__name__}$"):
            call(token)  # type: ignore[arg-type]


def test_bad_arguments(llama2: Tokenizer) -> None:
    with pytest.raises(ValueError) as error:
        llama2.encode("ab\ud83d")
    assert str(error.value) == "text: expected valid Unicode, found a lone surrogate U+D83D at index 2"
    for text in (None, 1, bytearray(b"a"), ["a"]):
        with pytest.raises(TypeError, match=f"^text: expected str or bytes, found {type(text).__name__}$"):
            llama2.encode(text)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^errors: expected \"replace\" or \"ignore\", found 'strict'$"):
        llama2.text_stream(errors="strict")


# -- files


def cut(n_bytes: int) -> bytes:
    return pack(BASE)[:n_bytes]


def with_length(length: int) -> bytes:
    """BASE, but token 5 claims this length."""
    place = 4 + sum(8 + len(spelling) for spelling, _ in BASE[:5]) + 4
    data = bytearray(pack(BASE))
    data[place : place + 4] = struct.pack("<i", length)
    return bytes(data)


SIZE = len(pack(BASE))
REST = SIZE - (4 + sum(8 + len(spelling) for spelling, _ in BASE[:5]) + 8)  # from the spelling of token 5
NAN = (b"a", float("nan"))
AT_END = f"expected the end after 259 tokens, at byte {SIZE}, found"
TOKEN_5 = f"token 5: expected a length of 1 to {REST}, the bytes left, found"

BAD_FILES = [  # its bytes, vocab_size, the error
    (b"", 259, "expected a header of 4 bytes, found 0"),
    (cut(3), 259, "expected a header of 4 bytes, found 3"),
    (cut(4), 259, "expected 259 tokens, found 0"),
    (cut(4), None, "expected at least 259 tokens, found 0"),
    (cut(6), 259, "token 0: expected 8 bytes of score and length, found 2"),
    (cut(12), 259, "token 0: expected a length of 1 to 0, the bytes left, found 5"),
    (cut(SIZE - 1), 259, "token 258: expected a length of 1 to 5, the bytes left, found 6"),
    (pack(BASE[:-1]), 259, "expected 259 tokens, found 258"),
    (pack(BASE), 260, "expected 260 tokens, found 259"),
    (pack(BASE), 2**70, f"expected {2**70} tokens, found 259"),
    (pack(BASE) + b"\0", 259, f"{AT_END} {SIZE + 1} bytes"),
    (pack(BASE) + b"\0", None, "token 259: expected 8 bytes of score and length, found 1"),
    (pack(BASE + SPECIAL[:1]), 259, f"{AT_END} {SIZE + 13} bytes"),
    (pack(BASE[:258]), 258, "expected at least 259 tokens, found 258"),
    (with_length(0), 259, f"{TOKEN_5} 0"),
    (with_length(-1), 259, f"{TOKEN_5} -1"),
    (with_length(REST + 1), None, f"{TOKEN_5} {REST + 1}"),
    (with_length(2**31 - 1), 259, f"{TOKEN_5} {2**31 - 1}"),
    (pack([*BASE, NAN]), 260, "token 259: expected a score, found NaN"),
]


@pytest.mark.parametrize(("data", "vocab_size", "message"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_bad_file(tmp_path: Path, data: bytes, vocab_size: int | None, message: str) -> None:
    path = tmp_path / "bad.bin"
    path.write_bytes(data)
    with pytest.raises(ValueError) as error:
        Tokenizer.open(path, vocab_size)
    assert str(error.value) == f"{path}: {message}"


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.bin"
    for n_bytes in range(SIZE):
        path.write_bytes(cut(n_bytes))
        with pytest.raises(ValueError, match="expected"):
            Tokenizer.open(path, 259)
        with pytest.raises(ValueError, match="expected"):
            Tokenizer.open(path)


def test_max_token_length_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.bin"
    for max_token_length in (0, -1, 2**31 - 1):
        path.write_bytes(pack([*BASE, (b"a" * 100, 0.0)], max_token_length))
        assert Tokenizer.open(path).piece(259) == b"a" * 100


def test_other_models_vocabulary(shared: Path) -> None:
    path = shared / "models" / "tok512.bin"
    with pytest.raises(ValueError, match=r"tok512.bin: expected 32000 tokens, found 512$"):
        Tokenizer.open(path, 32000)
    with pytest.raises(ValueError, match=r"expected the end after 512 tokens, at byte \d+, found 433869"):
        Tokenizer.open(path.with_name("tokenizer.bin"), 512)
    assert Tokenizer.open(path).vocab_size == 512


def test_not_a_file(tmp_path: Path) -> None:
    missing = tmp_path / "missing.bin"
    with pytest.raises(FileNotFoundError) as error:
        Tokenizer.open(missing)
    assert str(error.value) == f"{missing}: expected a readable file, found: No such file or directory"
    with pytest.raises(FileNotFoundError) as error:
        Tokenizer.open(tmp_path)
    names = "tokenizer.bin, tokenizer.json or tokenizer.model"
    assert str(error.value) == f"{tmp_path}: expected {names} in this folder, found none"
    (tmp_path / "tokenizer.bin").mkdir()
    with pytest.raises(ValueError, match=r"tokenizer.bin: expected a regular file, found a directory$"):
        Tokenizer.open(tmp_path / "tokenizer.bin" / "..")


def test_a_folder_means_the_tokenizer_in_it(tmp_path: Path) -> None:
    make(tmp_path, [*BASE, (b"a", 0.0)])
    for folder in (tmp_path, str(tmp_path), tmp_path / "."):
        assert Tokenizer.open(folder, 260).piece(259) == b"a"
    with pytest.raises(ValueError, match=r"tokenizer.bin: expected 261 tokens, found 260$"):
        Tokenizer.open(tmp_path, 261)


def test_errors_tell_what_is_at_fault(llama2: Tokenizer, tmp_path: Path) -> None:
    """RequestError with the argument's name, or ModelError for a file."""
    for param, call in (
        ("token", lambda: llama2.piece(32000)),
        ("token", lambda: llama2.decode([32000])),
        ("token", lambda: llama2.text_stream(previous=-1)),
        ("text", lambda: llama2.encode("\ud800")),
        ("errors", lambda: llama2.text_stream(errors="strict")),
        ("vocab_size", lambda: Tokenizer.open("tokenizer.bin", 0)),
        ("stop", lambda: StopStrings("")),
    ):
        with pytest.raises(RequestError) as error:
            call()
        assert error.value.param == param
    (tmp_path / "tokenizer.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"tokenizer.bin: expected a header of 4 bytes, found 0$"):
        Tokenizer.open(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"fifo: expected a regular file, found a special file$"):
        Tokenizer.open(path)


@pytest.mark.parametrize("vocab_size", [0, -1, -(2**70)])
def test_bad_vocab_size(shared: Path, vocab_size: int) -> None:
    with pytest.raises(ValueError, match=f"^vocab_size: expected a positive int, found {vocab_size}$"):
        Tokenizer.open(shared / "models" / "tok512.bin", vocab_size)


def test_vocab_size_of_wrong_type(shared: Path) -> None:
    with pytest.raises(TypeError):
        Tokenizer.open(shared / "models" / "tok512.bin", 512.0)  # type: ignore[arg-type]


def test_a_file_beyond_2_gib_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(pack(BASE))
    os.truncate(path, 2**31)  # which takes no room on the disk
    message = f"^{re.escape(str(path))}: expected a file of less than 2 GiB, found {2**31} bytes$"
    with pytest.raises(ValueError, match=message):
        Tokenizer.open(path)


def test_a_path_that_no_system_takes_is_named() -> None:
    with pytest.raises(ValueError, match=r"^a\0b: embedded null byte$"):
        Tokenizer.open("a\0b")


def test_a_file_that_no_memory_takes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, BASE)

    class Full(io.BytesIO):
        def read(self, *size: object) -> bytes:
            if size:  # only the start
                return b""
            raise MemoryError

    monkeypatch.setattr("builtins.open", lambda *_: Full())
    with pytest.raises(MemoryError, match=rf"tokenizer\.bin: expected memory for {SIZE} bytes, found too little$"):
        Tokenizer.open(tmp_path / "tokenizer.bin")


def test_a_vocabulary_beyond_2_gib_is_refused() -> None:
    with pytest.raises(ValueError, match=f"^expected a tokenizer of less than 2 GiB, found {2**31} bytes$"):
        _bpe.Vocabulary(bytes(2**31))  # zeros that no one looks at take no memory


@pytest.mark.parametrize("wrong", [None, 3, "abc", bytearray(300)])
def test_a_vocabulary_takes_bytes_alone(wrong: object) -> None:
    """None, too, which Cython lets through unless it is told, to be read as if it were bytes."""
    with pytest.raises(TypeError):
        _bpe.Vocabulary(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        _bpe.Vocabulary(pack(BASE)).encode(wrong, True, False)  # type: ignore[arg-type]


def test_kinds_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"^expected a kind for each of 259 tokens, found 258$"):
        _bpe.Vocabulary(pack(BASE), None, bytes(258))
    for first_byte in (-1, 4):
        with pytest.raises(ValueError, match=rf"^first_byte: expected 0 to 3, found {first_byte}$"):
            _bpe.Vocabulary(pack(BASE), None, bytes(259), first_byte)
