"""A tokenizer.bin, tokenizer.model or tokenizer.json as the metadata of a GGUF file: its tokenizer.* keys.

GGUF has two kinds of vocabulary that are written here. "llama" merges by scores, as SentencePiece does; "gpt2" merges bytes in
the order of a list, after a text has been split in one of the ways that have a name (`pre`). A tokenizer that is neither is
refused. tokenizer_gguf.py reads these keys.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import ModelError, not_found
from ..files import GGUF_MAGIC, read_file, read_json, read_start
from ..locate import tokenizer_in, tokenizer_names
from .sentencepiece import BYTE, CONTROL, N_BYTES, TEXT, UNKNOWN, UNUSED, USER, ModelPiece
from .settings import short, token_names
from .tokenizer_gguf import ENDS, MODEL
from .vocabulary import BOS, EOS, UNK, Special

Metadata = dict[str, Any]
PREFIX = "tokenizer.ggml."
NO_TOKENIZER = "none"  # the model of a file without a tokenizer; llama.cpp refuses a file that does not say so
FIRST_BYTE = 3  # in a tokenizer.bin
METASPACE = "\u2581"  # how a space is spelled
BYTES = re.compile(r"<0x[0-9A-F]{2}>")
AFTER_SPECIAL = "puts a space only before a text, and in GGUF also after each special token: such texts get other ids"
# The regular expression that a pre-tokenizer of the kind ByteLevel splits at, if it is not told otherwise: that of GPT-2.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class Token(NamedTuple):
    """A token of GGUF. The numbers of the kinds are those of SentencePiece."""

    spelling: str
    score: float = 0.0
    kind: int = TEXT


def describe(path: Path, vocab_size: int) -> Metadata:
    """The keys for a tokenizer with `vocab_size` tokens: a file (GGUF too), or the one in a folder. Ids without one are padded.

    Warns (RuntimeWarning) if some texts get other ids from the keys. ModelError: the tokenizer is broken, has another size, or
    is of a kind that GGUF does not have; OSError: it cannot be read, or a package is missing.
    """
    if path.is_dir():
        found = tokenizer_in(path)
        if found is None:
            raise not_found(path, f"expected {tokenizer_names()} in this folder, found none")
        path = found
    try:
        if read_start(path).startswith(GGUF_MAGIC):
            return from_gguf(path, vocab_size)
        if path.suffix == ".json":
            return from_json(path, vocab_size)
        return from_model(path, vocab_size) if path.suffix == ".model" else from_bin(path, vocab_size)
    except ModelError as error:
        raise ModelError(f"{str(error) if str(error).startswith(str(path.parent)) else f'{path}: {error}'}") from None


def warn(path: Path, line: str) -> None:
    warnings.warn(f"{path}: {line}", RuntimeWarning, stacklevel=3)


# ---------------------------------------------------------------------------
# keys


def vocabulary_keys(model: str, pre: str, tokens: Sequence[Token]) -> Metadata:
    seen: dict[str, int] = {}
    for id, token in enumerate(tokens):
        if seen.setdefault(token.spelling, id) != id:
            found = f"{short(token.spelling)} as token {seen[token.spelling]} and as token {id}"
            raise ModelError(f"expected tokens that differ, because GGUF has only such, found {found}")
    return {
        MODEL: model,
        f"{PREFIX}pre": pre,
        f"{PREFIX}tokens": [token.spelling for token in tokens],
        f"{PREFIX}scores": np.array([token.score for token in tokens], np.float32),
        f"{PREFIX}token_type": np.array([token.kind for token in tokens], np.int32),
    }


def special_keys(special: Special, vocabulary: Metadata, others: Mapping[str, int], add_space: bool) -> Metadata:
    """The ids of the special tokens (`others`: unknown and padding), what is put before a text, and the chat template.

    GGUF has one end token and two more ends of a turn. Further ones are found by their spellings, as <|eot_id|> is.
    """
    spellings = vocabulary[f"{PREFIX}tokens"]
    more = sorted(special.end_ids - {special.eos_id}, key=lambda id: (spellings[id] in ENDS, id))
    ids = {"bos": special.bos_id, "eos": special.eos_id, **dict(zip(("eot", "eom"), more, strict=False)), **others}
    found: Metadata = {f"{PREFIX}{name}_token_id": id for name, id in ids.items() if id is not None}
    found[f"{PREFIX}add_bos_token"] = special.bos_id is not None and special.prefix == (special.bos_id,)
    found[f"{PREFIX}add_eos_token"] = False
    found[f"{PREFIX}add_space_prefix"] = add_space
    if special.chat_template is not None:
        found["tokenizer.chat_template"] = special.chat_template.source
    return found


def named_ids(path: Path, ids: Mapping[str, int], vocab_size: int, unknown: int | None) -> dict[str, int]:
    """The ids of the unknown token and of padding, by the settings beside a tokenizer."""
    names = token_names(path.parent)
    found = {
        key: ids.get(names[name][0]) for key, name in (("unknown", "unk_token"), ("padding", "pad_token")) if name in names
    }
    return {key: id for key, id in {"unknown": unknown, **found}.items() if id is not None and id < vocab_size}


def padded(path: Path, tokens: Mapping[int, Token], vocab_size: int) -> list[Token]:
    """The tokens in the order of their ids. The model may have more ids than the tokenizer: those are never used. It may also
    lack some of the added tokens.
    """
    if surplus := [token.spelling for id, token in tokens.items() if id >= vocab_size]:
        warn(path, f"{len(surplus)} added tokens, as {short(surplus[0])}, are left out: the model has only {vocab_size} ids")
    return [tokens.get(id, Token(f"[PAD{id}]", 0.0, UNUSED)) for id in range(vocab_size)]


def from_gguf(path: Path, vocab_size: int) -> Metadata:
    """The tokenizer of another GGUF file, as it is."""
    from ..formats.gguf import read_metadata
    from .tokenizer import Tokenizer

    Tokenizer.open(path, vocab_size)  # checks it
    return {key: value for key, value in read_metadata(path).items() if key.startswith("tokenizer.")}


# ---------------------------------------------------------------------------
# tokenizer.bin


def from_bin(path: Path, vocab_size: int) -> Metadata:
    """A tokenizer.bin. Like llama2c and the C programs, it ends a text with either of BOS and EOS."""
    from .tokenizer import Tokenizer

    Tokenizer.open(path, vocab_size)  # checks it
    tokens = dict(enumerate(unpack(read_file(path))))
    tokens |= {UNK: Token("<unk>", 0.0, UNKNOWN), BOS: Token("<s>", 0.0, CONTROL), EOS: Token("</s>", 0.0, CONTROL)}
    for id in range(FIRST_BYTE, FIRST_BYTE + N_BYTES):
        tokens[id] = Token(f"<0x{id - FIRST_BYTE:02X}>", 0.0, BYTE)
    keys = vocabulary_keys("llama", "default", padded(path, tokens, vocab_size))
    return keys | special_keys(Special(), keys, {"unknown": UNK}, add_space=True)


def unpack(content: bytes) -> list[Token]:
    """The tokens of a tokenizer.bin whose sizes have been checked. GGUF spells a space as U+2581.

    ModelError: a token is not UTF-8, as all strings of GGUF are.
    """
    tokens: list[Token] = []
    at = 4  # after the length of the longest
    while at < len(content):
        score, length = struct.unpack_from("<fi", content, at)
        at += 8 + length
        try:
            tokens.append(Token(content[at - length : at].decode().replace(" ", METASPACE), score))
        except UnicodeDecodeError:
            raise ModelError(f"token {len(tokens)}: expected UTF-8, found {content[at - length : at]!r}") from None
    return tokens


# ---------------------------------------------------------------------------
# tokenizer.model


def from_model(path: Path, vocab_size: int) -> Metadata:
    """A tokenizer.model, with the added tokens of the settings beside it."""
    from . import sentencepiece, tokenizer_model

    vocabulary, special = tokenizer_model.read(path, vocab_size)
    pieces = sentencepiece.parse(read_file(path)).pieces
    tokens = {id: piece_token(piece) for id, piece in enumerate(pieces)}
    ids = {piece.spelling.decode(errors="replace"): id for id, piece in enumerate(pieces)}
    for token in vocabulary.added:
        tokens[token.id] = added_token(token.content, token.special, tokens.get(token.id))
        ids[token.content] = token.id
    unknown = next((id for id, piece in enumerate(pieces) if piece.kind == UNKNOWN), None)
    if vocabulary.spaces.squeeze:
        warn(path, "removes spaces that repeat or are at an end of a text, and GGUF does not: texts with them get other ids")
    if vocabulary.spaces.add and not vocabulary.spaces.add_after_special:
        warn(path, AFTER_SPECIAL)
    keys = vocabulary_keys("llama", "default", padded(path, tokens, vocab_size))
    return keys | special_keys(special, keys, named_ids(path, ids, vocab_size, unknown), vocabulary.spaces.add)


def piece_token(piece: ModelPiece) -> Token:
    """A piece as GGUF spells it: only a user-defined one has spaces."""
    spelling = piece.spelling.decode(errors="replace")
    return Token(spelling if piece.kind == USER else spelling.replace(" ", METASPACE), piece.score, piece.kind)


def added_token(content: str, special: bool, piece: Token | None) -> Token:
    """An added token, which may be in the vocabulary, too."""
    if piece is not None and piece.kind == UNKNOWN:
        return piece
    return Token(content, 0.0 if piece is None else piece.score, CONTROL if special else USER)


# ---------------------------------------------------------------------------
# tokenizer.json


def from_json(path: Path, vocab_size: int) -> Metadata:
    """A tokenizer.json of byte-pair encoding, with the settings beside it."""
    from . import tokenizer_json

    _, special = tokenizer_json.read(path, vocab_size)
    settings = read_json(path)
    model = settings["model"]
    if model.get("type") != "BPE":
        raise ModelError(f"{path}: expected a tokenizer of byte-pair encoding (BPE) for GGUF, found {model.get('type')}")
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(name):
            raise ModelError(f"{path}: model.{name}: expected none for GGUF, found {short(model[name])}")
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    merges: list[tuple[str, str]] = [(left, right) for left, right in pairs]
    vocab: dict[str, int] = model["vocab"]
    ids = {**vocab, **{token["content"]: token["id"] for token in settings.get("added_tokens", ())}}
    unknown = vocab.get(model.get("unk_token"))
    names = named_ids(path, ids, vocab_size, unknown)
    if model.get("byte_fallback"):
        add_space = adds_space(path, settings)
        tokens = scored_tokens(path, settings, merges)
        tokens |= added_tokens(settings, tokens)
        keys = vocabulary_keys("llama", "default", padded(path, tokens, vocab_size))
        return keys | special_keys(special, keys, names, add_space)
    tokens = {id: Token(spelling) for spelling, id in vocab.items()}
    tokens |= added_tokens(settings, tokens)
    keys = vocabulary_keys("gpt2", find_pre(path, settings), padded(path, tokens, vocab_size))
    del keys[f"{PREFIX}scores"]  # it has merges instead
    return keys | {f"{PREFIX}merges": [f"{left} {right}" for left, right in merges]} | special_keys(special, keys, names, False)


def added_tokens(settings: Mapping[str, Any], tokens: Mapping[int, Token]) -> dict[int, Token]:
    found = settings.get("added_tokens", ())
    return {token["id"]: added_token(token["content"], token["special"], tokens.get(token["id"])) for token in found}


# ---------------------------------------------------------------------------
# bytes, merged in the order of a list


def find_pre(path: Path, settings: Mapping[str, Any]) -> str:
    """The name of the way in which a text is split. Warns if another setting is not what the name means. ModelError: none."""
    from .tokenizer_gguf import PRES

    normalizer = (settings.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise ModelError(f"{path}: normalizer: expected none or NFC for GGUF, found {normalizer}")
    split = split_of(settings.get("pre_tokenizer"))
    nfc, ignores = normalizer == "NFC", settings["model"].get("ignore_merges", False)
    named = {name: pre for name, pre in PRES.items() if (pre.words, pre.digits) == split}
    if split is None or not named:
        found = short(settings.get("pre_tokenizer"))
        raise ModelError(f"{path}: pre_tokenizer: expected one that has a name in GGUF ({', '.join(PRES)}), found {found}")
    name, pre = max(named.items(), key=lambda item: (item[1].ignore_merges == ignores) + (item[1].nfc == nfc))
    if pre.nfc != nfc:
        warn(
            path,
            f"{'composes' if nfc else 'does not compose'} characters (NFC), unlike {name} in GGUF: a few texts get other ids",
        )
    if pre.ignore_merges != ignores:
        warn(path, f"model.ignore_merges is {str(ignores).lower()}, unlike {name} in GGUF: some words may get other ids")
    return name


def split_of(settings: Any) -> tuple[str | None, bool] | None:
    """The regular expression that a pre-tokenizer splits words at (None: that of GPT-2), and whether it splits digits first.

    None: it is another kind of pre-tokenizer.
    """
    if settings is None:
        return None
    *steps, last = settings["pretokenizers"] if settings["type"] == "Sequence" else [settings]
    digits = bool(steps) and steps[0]["type"] == "Digits" and steps[0]["individual_digits"]
    steps = steps[1:] if digits else steps
    words = steps[0]["pattern"].get("Regex") if steps and steps[0]["type"] == "Split" else None
    if words is not None and (steps[0]["behavior"], steps[0]["invert"]) in (("Isolated", False), ("Removed", True)):
        steps = steps[1:]
    if steps or last["type"] != "ByteLevel" or last["add_prefix_space"] or last["use_regex"] != (words is None):
        return None
    return (None if words == GPT2 else words), digits


# ---------------------------------------------------------------------------
# characters, merged by scores


def scored_tokens(path: Path, settings: Mapping[str, Any], merges: Sequence[tuple[str, str]]) -> dict[int, Token]:
    """The tokens of a tokenizer.json that was made from SentencePiece's: the scores give the order of the merges."""
    vocab: dict[str, int] = settings["model"]["vocab"]
    ranks: dict[str, int] = {}
    for left, right in merges:
        ranks.setdefault(left + right, len(ranks))
    if not merged_by_scores(vocab, merges, ranks):
        warn(path, "its merges do not follow from scores, which GGUF has for this kind of tokenizer: some texts get other ids")
    unknown = settings["model"].get("unk_token")
    tokens = {}
    for spelling, id in vocab.items():
        kind = UNKNOWN if spelling == unknown else BYTE if BYTES.fullmatch(spelling) else TEXT
        tokens[id] = Token(spelling, -float(ranks.get(spelling, len(ranks))), kind)
    return tokens


def merged_by_scores(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], ranks: Mapping[str, int]) -> bool:
    """Whether merging the pair with the highest score does the same: any two tokens merge if together they are a token, and
    all pairs that give the same token follow each other.
    """
    runs = sum(left + right != before for (left, right), before in zip(merges, ["", *map("".join, merges)], strict=False))
    pairs = set(merges)
    texts = [spelling for spelling in vocab if not BYTES.fullmatch(spelling)]
    known = set(texts)
    return runs == len(ranks) and all(
        (text[:at], text[at:]) in pairs
        for text in texts
        for at in range(1, len(text))
        if text[:at] in known and text[at:] in known
    )


def adds_space(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text. ModelError: something else is done to it, too."""
    added = False
    for step in flatten(settings.get("normalizer"), "normalizers"):
        if step == {"type": "Prepend", "prepend": METASPACE}:
            added = True
        elif step != {"type": "Replace", "pattern": {"String": " "}, "content": METASPACE}:
            raise ModelError(
                f"{path}: normalizer: expected one that only spells spaces as U+2581 for GGUF, found {short(step)}"
            )
    for step in flatten(settings.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] != "Metaspace" or step["replacement"] != METASPACE or step.get("split", True):
            raise ModelError(f"{path}: pre_tokenizer: expected Metaspace without a split for GGUF, found {short(step)}")
        if step["prepend_scheme"] == "first":
            warn(path, AFTER_SPECIAL)
        added = added or step["prepend_scheme"] != "never"
    return added


def flatten(settings: Any, name: str) -> list[Any]:
    """The steps of a normalizer or a pre-tokenizer."""
    return [] if settings is None else settings[name] if settings["type"] == "Sequence" else [settings]
