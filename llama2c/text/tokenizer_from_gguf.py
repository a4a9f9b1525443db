"""The tokenizer in the metadata of a GGUF file as other files: those of a Hugging Face folder, or a tokenizer.bin.

A tokenizer.json is written as the package tokenizers reads it, without the package. tokenizer_gguf.py says what the keys mean.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ModelError
from . import sentencepiece
from .sentencepiece import SPACE, TEXT, UNUSED, ModelPiece, SentencePieceModel
from .tokenizer_gguf import (
    MODEL,
    NAMES,
    PRE,
    PRES,
    SCORES,
    Keys,
    Pre,
    Tokens,
    added_tokens,
    read,
    read_merges,
    read_tokens,
)
from .vocabulary import Special

METASPACE = SPACE.decode()
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


# ---------------------------------------------------------------------------
# a folder


def folder_files(path: str, metadata: Mapping[str, Any], vocab_size: int) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json with the chat template, and generation_config.json with all end tokens.

    ModelError: the tokenizer is broken or of an unknown kind; OSError: it is checked with the package tokenizers, which is
    missing.
    """
    _, special = read(path, metadata, vocab_size)
    keys = Keys(path, metadata)
    tokens = read_tokens(keys)
    files = {
        "tokenizer.json": tokenizer_json(keys, tokens, special),
        "tokenizer_config.json": tokenizer_config(keys, tokens, special),
        "generation_config.json": {"bos_token_id": special.bos_id, "eos_token_id": end_ids(special)},
    }
    return {name: (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode() for name, content in files.items()}


def end_ids(special: Special) -> list[int]:
    """The end tokens, the one of a text first."""
    return sorted(special.end_ids, key=lambda id: (id != special.eos_id, id))


def tokenizer_config(keys: Keys, tokens: Tokens, special: Special) -> dict[str, Any]:
    ids = {"bos_token": special.bos_id, "eos_token": special.eos_id}
    ids |= {name: keys.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in NAMES.items() if name not in ids}
    settings: dict[str, Any] = {name: tokens.spellings[id] for name, id in ids.items() if id is not None}
    if special.chat_template is not None:
        settings["chat_template"] = special.chat_template.source
    return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **settings}


def tokenizer_json(keys: Keys, tokens: Tokens, special: Special) -> dict[str, Any]:
    make = by_scores if keys.metadata[MODEL] == "llama" else by_merges
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": token.id, "content": token.content, **flags, "special": token.special}
        for token in sorted(added_tokens(tokens, special), key=lambda token: token.id)
    ]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **make(keys, tokens, special)}


def bpe(tokens: Tokens, merges: Sequence[tuple[str, str]], **settings: Any) -> dict[str, Any]:
    """The model of a tokenizer.json. No text becomes an unused token, such as [PAD7], so it is left out."""
    vocab = {spelling: id for spelling, id in tokens.ids.items() if tokens.types[id] != UNUSED}
    absent = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    switches = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **absent, **switches, **settings, "vocab": vocab, "merges": list(map(list, merges))}


def front(tokens: Tokens, special: Special) -> list[dict[str, Any]]:
    """The post-processor that puts BOS before a text; none if nothing is put there."""
    if not special.prefix:
        return []
    (bos,) = special.prefix
    spelling = tokens.spellings[bos]
    first = {"SpecialToken": {"id": spelling, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    known = {spelling: {"id": spelling, "ids": [bos], "tokens": [spelling]}}
    return [{"type": "TemplateProcessing", "single": [first, a], "pair": [first, a, b], "special_tokens": known}]


# ---------------------------------------------------------------------------
# "gpt2"


def by_merges(keys: Keys, tokens: Tokens, special: Special) -> dict[str, Any]:
    pre = PRES[keys.metadata[PRE]]
    return {
        "normalizer": {"type": "NFC"} if pre.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits(pre)},
        "post_processor": {"type": "Sequence", "processors": [{**BYTE_LEVEL, "trim_offsets": False}, *front(tokens, special)]},
        "decoder": BYTE_LEVEL,
        "model": bpe(tokens, read_merges(keys), ignore_merges=pre.ignore_merges),
    }


def splits(pre: Pre) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [{"type": "Digits", "individual_digits": True}] if pre.digits else []
    if pre.words is not None:
        steps.append({"type": "Split", "pattern": {"Regex": pre.words}, "behavior": "Isolated", "invert": False})
    return [*steps, {**BYTE_LEVEL, "use_regex": pre.words is None}]


# ---------------------------------------------------------------------------
# "llama"


def by_scores(keys: Keys, tokens: Tokens, special: Special) -> dict[str, Any]:
    """The merges follow from the scores, as in transformers' own conversion: the pairs of tokens that are a token together."""
    scores = keys.metadata[SCORES].tolist()
    texts = {spelling: id for spelling, id in tokens.ids.items() if tokens.types[id] == TEXT}
    pairs = [
        (-scores[id], id, at, (text[:at], text[at:]))
        for text, id in texts.items()
        for at in range(1, len(text))
        if text[:at] in texts and text[at:] in texts
    ]
    spelled = {"type": "Replace", "pattern": {"String": " "}, "content": METASPACE}
    space = keys.flag("add_space_prefix", True)
    prepend = [{"type": "Prepend", "prepend": METASPACE}] if space else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space else []
    back = {"type": "Replace", "pattern": {"String": METASPACE}, "content": " "}
    unknown = keys.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    processors = front(tokens, special)
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, spelled]},
        "pre_tokenizer": None,
        "post_processor": processors[0] if processors else None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": bpe(
            tokens, [pair for *_, pair in sorted(pairs)], unk_token=tokens.spellings[unknown], fuse_unk=True, byte_fallback=True
        ),
    }


# ---------------------------------------------------------------------------
# tokenizer.bin


def tokenizer_bin(path: str, metadata: Mapping[str, Any], vocab_size: int) -> bytes:
    """The tokenizer.bin for a model of `vocab_size` tokens.

    Warns (RuntimeWarning) if some texts get other ids. ModelError: the tokenizer is broken, or is not one that a tokenizer.bin
    can hold: of the kind "llama", with its special tokens and bytes in the usual places, and a space before each text.
    """
    keys = Keys(path, metadata)
    if metadata[MODEL] != "llama":
        raise ModelError(f"{path}: {MODEL}: expected 'llama' for a tokenizer.bin, found {metadata[MODEL]!r}")
    _, special = read(path, metadata, vocab_size)
    tokens = read_tokens(keys)
    pieces = [
        ModelPiece(spelling.encode().replace(SPACE, b" "), score, kind)
        for spelling, score, kind in zip(tokens.spellings, metadata[SCORES].tolist(), tokens.types, strict=True)
    ]
    pieces += [ModelPiece(f"[PAD{id}]".encode(), 0.0, UNUSED) for id in range(len(pieces), vocab_size)]
    squeezes = keys.flag("remove_extra_whitespaces", False)
    model = SentencePieceModel(pieces, special.bos_id, special.eos_id, keys.flag("add_space_prefix", True), squeezes)
    try:
        content = sentencepiece.pack_model(model)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    for difference in sentencepiece.differences(model):
        warnings.warn(f"{path}: {difference}", RuntimeWarning, stacklevel=2)
    return content
