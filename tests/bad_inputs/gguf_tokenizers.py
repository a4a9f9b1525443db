"""GGUF files whose tensors are good and whose tokenizer is not: lengths, types, ids, merges and texts that are wrong."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf_files
from gguf_files import ARRAY, BOOL, F32, I32, STRING, U32, U64, File

import llama2c

from .case import MODEL, Case, Door, command_line, content, refused, weights

KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "\u2581a"]
TYPES = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, NORMAL, NORMAL, NORMAL]
N = len(TOKENS)
WORDS = [f"w{i}" for i in range(N - 5)]
BPE = ["<|end|>", "a", "b", "ab", "abab", *WORDS]  # for byte-level BPE
Spoil = Callable[[File], object]
PACKAGE = importlib.util.find_spec("tokenizers") is not None
DOORS: dict[str, Door] = {
    "open": lambda path: llama2c.Tokenizer.open(path, N),
    "load": lambda path: llama2c.load(path, n_threads=1),
    "command line": command_line,
}


def good(**values: tuple[int, Any]) -> File:
    """A whole model with the tokenizer of SentencePiece."""
    keys = {
        "model": (STRING, "llama"),
        "tokens": (ARRAY, (STRING, TOKENS)),
        "scores": (ARRAY, (F32, [-float(i) for i in range(N)])),
        "token_type": (ARRAY, (I32, TYPES)),
    }
    file = gguf_files.good(MODEL, weights())
    for name, (kind, value) in {**keys, **values}.items():
        file.set(KEY + name, kind, value)
    return file


def good_bpe() -> File:
    return good(
        model=(STRING, "gpt2"),
        pre=(STRING, "gpt-2"),
        tokens=(ARRAY, (STRING, BPE)),
        token_type=(ARRAY, (I32, [CONTROL, *[NORMAL] * (N - 1)])),
        merges=(ARRAY, (STRING, ["a b", "ab ab"])),
    )


def keyed(name: str, kind: int, value: Any) -> Spoil:
    return lambda file: file.set(KEY + name, kind, value)


def without(name: str) -> Spoil:
    return lambda file: file.keys.pop(KEY + name)


def with_one(values: list[Any], index: int, value: Any) -> list[Any]:
    return [*values[:index], value, *values[index + 1 :]]


def strings(name: str, *values: str | bytes) -> Spoil:
    return keyed(name, ARRAY, (STRING, values))


LLAMA: dict[str, tuple[Spoil, str]] = {
    "no model": (without("model"), "model: expected 'llama' or 'gpt2', found none"),
    "an unknown model": (keyed("model", STRING, "bert"), "model: expected 'llama' or 'gpt2', found 'bert'"),
    "a model that is a number": (keyed("model", U32, 1), "model: expected a string, found 1"),
    "a model that is not UTF-8": (keyed("model", STRING, b"\xff"), "model: expected UTF-8"),
    "no tokens": (without("tokens"), "tokens: expected an array of strings, found none"),
    "no token in the array": (strings("tokens"), "tokens: expected at least one token, found none"),
    "tokens that are numbers": (keyed("tokens", ARRAY, (U64, range(N))), "tokens: expected an array of strings, found an"),
    "tokens that are one string": (keyed("tokens", STRING, "a"), "tokens: expected an array of strings, found 'a'"),
    "a token too many": (strings("tokens", *TOKENS, "b"), f"token_type: expected {N + 1} numbers, because there are {N + 1}"),
    "a token too few": (strings("tokens", *TOKENS[:-1]), f"token_type: expected {N - 1} numbers, because there are {N - 1}"),
    "a token that is not UTF-8": (strings("tokens", *with_one(TOKENS, 7, b"a\xff")), "tokens[7]: expected UTF-8, found byte"),
    "a token twice": (strings("tokens", *with_one(TOKENS, N - 1, "a")), "expected tokens that differ, found 'a' again as"),
    "a token in place of a byte": (strings("tokens", *with_one(TOKENS, 50, "x")), "tokens: expected token 50 to be <0x2F>"),
    "no token for the space": (strings("tokens", *with_one(TOKENS, 259, "x")), "tokens: expected a piece for the space"),
    "no scores": (without("scores"), "scores: expected an array of floats, found none"),
    "integer scores": (keyed("scores", ARRAY, (I32, range(N))), "scores: expected an array of floats, found an array of int32"),
    "a score too few": (keyed("scores", ARRAY, (F32, [0.0] * (N - 1))), f"scores: expected {N} numbers, because there are {N}"),
    "no score in the array": (keyed("scores", ARRAY, (F32, [])), f"scores: expected {N} numbers"),
    "NaN as a score": (keyed("scores", ARRAY, (F32, [float("nan")] * N)), "scores[0]: expected a number, found NaN"),
    "no types": (without("token_type"), "token_type: expected an array of integers, found none"),
    "types that are floats": (keyed("token_type", ARRAY, (F32, TYPES)), "token_type: expected an array of integers, found an"),
    "types that are strings": (strings("token_type", *"1" * N), "token_type: expected an array of integers, found an array of"),
    "a type too many": (keyed("token_type", ARRAY, (I32, [*TYPES, 1])), f"token_type: expected {N} numbers, because"),
    "type 0": (keyed("token_type", ARRAY, (I32, with_one(TYPES, 9, 0))), "token_type[9]: expected a type from 1 to 6, found 0"),
    "type 7": (keyed("token_type", ARRAY, (I32, with_one(TYPES, 9, 7))), "token_type[9]: expected a type from 1 to 6, found 7"),
    "type -2^31": (keyed("token_type", ARRAY, (I32, [-(2**31)] * N)), "token_type[0]: expected a type from 1 to 6, found -"),
    "BOS beyond the tokens": (keyed("bos_token_id", U32, N), f"bos_token_id: expected an id from 0 to {N - 1}, found {N}"),
    "EOS 2^32-1": (keyed("eos_token_id", U32, 2**32 - 1), "eos_token_id: expected an id from 0 to 261, found 4294967295"),
    "EOS 2^64-1": (keyed("eos_token_id", U64, 2**64 - 1), "eos_token_id: expected an id from 0 to 261, found 184467440737"),
    "EOS -1": (keyed("eos_token_id", I32, -1), "eos_token_id: expected an id from 0 to 261, found -1"),
    "EOS as a string": (keyed("eos_token_id", STRING, "</s>"), "eos_token_id: expected an integer, found '</s>'"),
    "EOS as a float": (keyed("eos_token_id", F32, 2.0), "eos_token_id: expected an integer, found 2.0"),
    "EOS as a bool": (keyed("eos_token_id", BOOL, 1), "eos_token_id: expected an integer, found True"),
    "EOS as an array": (keyed("eos_token_id", ARRAY, (U32, [1, 2])), "eos_token_id: expected an integer, found an array of"),
    "an end of turn beyond the tokens": (keyed("eot_token_id", U32, N), f"eot_token_id: expected an id from 0 to {N - 1}"),
    "add_bos_token as a number": (keyed("add_bos_token", U32, 1), "add_bos_token: expected a bool, found 1"),
    "add_space_prefix as a string": (keyed("add_space_prefix", STRING, "no"), "add_space_prefix: expected a bool, found 'no'"),
    "a template that is an array": (
        lambda file: file.set("tokenizer.chat_template", ARRAY, (STRING, ["a"])), "tokenizer.chat_template: expected a string"
    ),
    "a template that is not UTF-8": (
        lambda file: file.set("tokenizer.chat_template", STRING, b"a\xff"), "tokenizer.chat_template: expected UTF-8"
    ),
}  # fmt: skip
GPT2: dict[str, tuple[Spoil, str]] = {
    "no pre": (without("pre"), "pre: expected one of llama-bpe, llama3, "),
    "an unknown pre": (keyed("pre", STRING, "default"), "found 'default'"),
    "a pre that is a number": (keyed("pre", U32, 2), "pre: expected a string, found 2"),
    "no merges": (without("merges"), "merges: expected an array of strings, found none"),
    "merges that are numbers": (keyed("merges", ARRAY, (U32, [1])), "merges: expected an array of strings, found an array of"),
    "merges that are pairs": (strings("merges", "a", "b"), "merges[0]: expected two tokens with a space between, found 'a'"),
    "merges that are lists": (strings("merges", "['a', 'b']"), "merges[0]: expected tokens that merge into a token, found"),
    "an empty merge": (strings("merges", "a b", ""), "merges[1]: expected two tokens with a space between, found ''"),
    "a merge of no token": (strings("merges", "a x"), "merges[0]: expected tokens that merge into a token, found 'x', which"),
    "a merge into no token": (strings("merges", "b a"), "merges[0]: expected tokens that merge into a token, found 'ba'"),
    "a merge that is not UTF-8": (strings("merges", b"a \xff"), "merges[0]: expected UTF-8, found byte 0xFF at index 2"),
    "a byte-level token twice": (strings("tokens", *with_one(BPE, 9, "a")), "tokens[1]: expected tokens that differ, found"),
    "BOS added without an id": (keyed("add_bos_token", BOOL, 1), "bos_token_id: expected an id, because add_bos_token is true"),
}


def refusals() -> Iterator[Case]:
    for make, cases in ((good, LLAMA), (good_bpe, GPT2 if PACKAGE else {})):
        for title, (spoil, words) in cases.items():

            def written(folder: Path, make: Callable[[], File] = make, spoil: Spoil = spoil) -> Path:
                file = make()
                spoil(file)
                return content(file.pack(), "model.gguf")(folder)

            yield from refused(f"GGUF tokenizer: {title}", written, ValueError, words, doors=DOORS)


def works(make: Callable[[], File], text: str, ids: list[int]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        path = content(make().pack(), "model.gguf")(folder)
        assert llama2c.load(path, n_threads=1).tokenizer.encode(text) == ids
        command_line(path, "-i", "a")

    return run


CASES = [*refusals(), Case("GGUF tokenizer: a good one", works(good, "a", [1, N - 1]), None)]
if PACKAGE:
    CASES.append(Case("GGUF tokenizer: a good one of byte-level BPE", works(good_bpe, "ababa<|end|>", [4, 1, 0]), None))
