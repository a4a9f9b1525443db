"""The tokenizer in the metadata of a GGUF file, as a Vocabulary: that of SentencePiece ("llama"), or byte-level BPE ("gpt2").

The first is encoded here, as a tokenizer.model is. The second is built for the package tokenizers, from the tokens and merges
of the file, and from its `pre`, which says how a text is split. add_eos_token is not used: encode has an argument for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from . import sentencepiece
from .sentencepiece import BYTE, CONTROL, SPACE, TEXT, UNKNOWN, UNUSED, USER, ModelPiece, SentencePieceModel
from .settings import AddedToken, short
from .tokenizer_json import Decoder, JsonVocabulary, byte_alphabet, explained, import_package
from .tokenizer_model import ModelVocabulary, Spaces, first_byte
from .vocabulary import ChatTemplate, Special, Vocabulary

MODEL = "tokenizer.ggml.model"
TOKENS = "tokenizer.ggml.tokens"
SCORES = "tokenizer.ggml.scores"
TYPES = "tokenizer.ggml.token_type"
MERGES = "tokenizer.ggml.merges"
PRE = "tokenizer.ggml.pre"
TEMPLATE = "tokenizer.chat_template"
NO_TOKENIZER = ("none", "no_vocab")  # as the model of a file without a tokenizer
# The names that a chat template uses, and the keys that have their ids.
NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
# Tokens that end a turn in the templates of many models. Most files have no key for them.
ENDS = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<end_of_turn>", "<turn|>", "<|endoftext|>",
    "<|end_of_text|>", "<end_of_utterance>", "<EOT>", "_<EOT>", "[EOT]", "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip


def has_tokenizer(metadata: Mapping[str, Any]) -> bool:
    """Whether a GGUF file has a tokenizer, which may be broken or of an unknown kind."""
    model = metadata.get(MODEL)
    return TOKENS in metadata if model is None else model not in NO_TOKENIZER


def read(path: str, metadata: Mapping[str, Any], vocab_size: int | None) -> tuple[Vocabulary, Special]:
    """The vocabulary of a GGUF file for a model of `vocab_size` ids (None: as many as it has), and its special tokens.

    metadata  as formats.gguf.read_metadata gives it: numbers, bool and str; arrays of strings as sequences of bytes, others as
              NumPy arrays
    The model may have more ids than there are tokens. ModelError, one line that names the file and the key: the file has no
    tokenizer, or a broken one, or one of another kind; OSError: the package tokenizers is missing.
    """
    keys = Keys(path, metadata)
    if not has_tokenizer(metadata):
        raise ModelError(f"{path}: expected a tokenizer in this GGUF file, found none")
    model = keys.get(MODEL, str)
    if model not in ("llama", "gpt2"):
        keys.fail(MODEL, "'llama' or 'gpt2'", said(model))
    tokens = read_tokens(keys)
    size = len(tokens.spellings)
    if vocab_size is not None and size > vocab_size:
        keys.fail(TOKENS, f"at most {vocab_size} tokens, because the model has {vocab_size} ids", str(size))
    return (read_llama if model == "llama" else read_gpt2)(keys, tokens, vocab_size or size)


# ---------------------------------------------------------------------------
# keys


class Keys(NamedTuple):
    """The metadata, read key by key. Each error is one line that begins with the file's name and the key."""

    path: str
    metadata: Mapping[str, Any]

    def fail(self, key: str, expected: str, found: str) -> NoReturn:
        raise ModelError(f"{self.path}: {key}: expected {expected}, found {found}")

    def get(self, key: str, kind: type) -> Any:
        """The value of a key, None if there is no such key."""
        value = self.metadata.get(key)
        if value is not None and type(value) is not kind:  # a bool is not an int here
            self.fail(key, {str: "a string", int: "an integer", bool: "a bool"}[kind], said(value))
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A setting such as add_bos_token."""
        found = self.get(f"tokenizer.ggml.{name}", bool)
        return default if found is None else bool(found)

    def strings(self, key: str) -> list[str]:
        """An array of strings. It is an error if there is none."""
        value = self.metadata.get(key)
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            self.fail(key, "an array of strings", said(value))
        try:
            return [str(string, "utf-8") for string in value]
        except UnicodeDecodeError as error:
            i = next(i for i, string in enumerate(value) if string == error.object)
            self.fail(f"{key}[{i}]", "UTF-8", f"byte 0x{error.object[error.start]:02X} at index {error.start}")

    def numbers(self, key: str, what: str, kinds: str, size: int) -> NDArray[Any]:
        """An array with a number for each of `size` tokens. what: "floats"; kinds: those of its dtype, "f"."""
        value = self.metadata.get(key)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
            self.fail(key, f"an array of {what}", said(value))
        if value.shape != (size,):
            self.fail(key, f"{size} numbers, because there are {size} tokens", str(value.size))
        return value


def said(value: Any) -> str:
    """A value for an error message."""
    if value is None:
        return "none"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return short(value) if isinstance(value, (str, int, float)) else "an array of strings"


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a file. An empty spelling is an id without a token."""

    spellings: list[str]
    types: NDArray[Any]  # of each; the numbers are those of SentencePiece
    ids: dict[str, int]  # of each spelling that is not empty

    def of_types(self, *types: int) -> list[int]:
        """The ids of the tokens of these types."""
        return [int(id) for id in np.flatnonzero(np.isin(self.types, types))]


def read_tokens(keys: Keys) -> Tokens:
    spellings = keys.strings(TOKENS)
    if not spellings:
        keys.fail(TOKENS, "at least one token", "none")
    types = keys.numbers(TYPES, "integers", "iu", len(spellings))
    wrong = (types < TEXT) | (types > BYTE)
    if wrong.any():
        i = int(wrong.argmax())
        keys.fail(f"{TYPES}[{i}]", f"a type from {TEXT} to {BYTE}", str(types[i]))
    ids = {spelling: i for i, spelling in enumerate(spellings)}
    if len(ids) + max(0, spellings.count("") - 1) != len(spellings):
        i = next(i for i, spelling in enumerate(spellings) if spelling and ids[spelling] != i)
        keys.fail(f"{TOKENS}[{i}]", "tokens that differ", f"{short(spellings[i])} again as token {ids[spellings[i]]}")
    ids.pop("", None)
    return Tokens(spellings, types, ids)


# ---------------------------------------------------------------------------
# special tokens


def read_special(keys: Keys, tokens: Tokens, defaults: Mapping[str, int], adds_bos: bool) -> Special:
    """The special tokens and the chat template.

    defaults  ids of those that have no key: {"bos_token": 1}
    adds_bos  whether BOS is put before a text where no key says it
    """
    ids = {name: token_id(keys, tokens, key) for name, key in NAMES.items()}
    ids = {name: defaults.get(name) if id is None else id for name, id in ids.items()}
    bos, eos = ids["bos_token"], ids["eos_token"]
    ends = {eos, token_id(keys, tokens, "eot"), token_id(keys, tokens, "eom"), *map(tokens.ids.get, ENDS)}
    adds_bos = keys.flag("add_bos_token", adds_bos and bos is not None)
    if adds_bos and bos is None:
        keys.fail("tokenizer.ggml.bos_token_id", "an id, because add_bos_token is true", "none")
    keys.flag("add_eos_token", False)  # is checked only
    source = keys.get(TEMPLATE, str)
    spellings = {name: tokens.spellings[id] for name, id in ids.items() if id is not None}
    return Special(
        bos_id=bos,
        eos_id=eos,
        end_ids=frozenset(id for id in ends if id is not None),
        prefix=(bos,) if adds_bos and bos is not None else (),
        chat_template=None if source is None else ChatTemplate(source, keys.path, spellings),
        no_template=f"{keys.path}: no chat template in this file" if source is None else None,
    )


def token_id(keys: Keys, tokens: Tokens, name: str) -> int | None:
    """The id of a special token, such as "bos"; None: there is no such key."""
    key = f"tokenizer.ggml.{name}_token_id"
    id: int | None = keys.get(key, int)
    if id is not None and not 0 <= id < len(tokens.spellings):
        keys.fail(key, f"an id from 0 to {len(tokens.spellings) - 1}", str(id))
    return id


def added_tokens(tokens: Tokens, special: Special) -> list[AddedToken]:
    """The tokens that are found in a text before the rest of it is encoded.

    Control tokens and the unknown token are special, and so is what begins or ends a text, whatever its type: some files have
    it as a normal token.
    """
    named = {id for id in (*special.end_ids, special.bos_id, special.eos_id) if id is not None}
    silent = {*tokens.of_types(CONTROL, UNKNOWN), *named}
    ids = sorted({*silent, *tokens.of_types(USER)})
    return [AddedToken(tokens.spellings[id], id, special=id in silent) for id in ids if tokens.spellings[id]]


# ---------------------------------------------------------------------------
# "llama"


def read_llama(keys: Keys, tokens: Tokens, vocab_size: int) -> tuple[ModelVocabulary, Special]:
    """SentencePiece's byte-pair encoding: the pair with the highest score first. Merges are not used, if a file has them too.

    A user-defined token is an added one. A space is put before a text, and also after each added token, as in llama.cpp.
    """
    scores = keys.numbers(SCORES, "floats", "f", len(tokens.spellings))
    if np.isnan(scores).any():
        keys.fail(f"{SCORES}[{int(np.isnan(scores).argmax())}]", "a number", "NaN")
    defaults = {"unk_token": 0, "bos_token": 1, "eos_token": 2}
    defaults = {name: id for name, id in defaults.items() if id < len(tokens.spellings)}
    special = read_special(keys, tokens, defaults, adds_bos=True)
    added = added_tokens(tokens, special)
    apart = {token.id for token in added}  # these are found before the rest is merged, and unused ones never
    pieces = [
        ModelPiece(spelling.encode().replace(SPACE, b" ") or b"\0", score, kind)
        for spelling, score, kind in zip(tokens.spellings, scores.tolist(), tokens.types.tolist(), strict=True)
    ]
    for id, piece in enumerate(pieces):
        if id in apart or piece.kind == UNUSED or not tokens.spellings[id]:
            pieces[id] = piece._replace(kind=CONTROL)
    model = SentencePieceModel(pieces, special.bos_id, special.eos_id, True, False)
    try:
        sentencepiece.check_alphabet(model, first_byte(model))
    except ModelError as error:
        raise ModelError(f"{keys.path}: {TOKENS}: {error}") from None
    spaces = Spaces(keys.flag("add_space_prefix", True), True, keys.flag("remove_extra_whitespaces", False))
    return ModelVocabulary(model, vocab_size, spaces, added, special), special


# ---------------------------------------------------------------------------
# "gpt2"


class Pre(NamedTuple):
    """How a text is split into words before the merges, and what else comes with that name."""

    words: str | None = None  # a regular expression; None: that of GPT-2, which the package has
    digits: bool = False  # each digit is a word, before anything else is split
    nfc: bool = False  # characters are composed first; llama.cpp does not do that, the tokenizers of these models do
    ignore_merges: bool = False  # a word that is a token becomes this token, whatever the merges say
    adds_bos: bool = False


SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
FRONT = r"[^\r\n\p{L}\p{N}]?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SIGNS, GAPS = r" ?[^\s\p{L}\p{N}]+[\r\n%s]*", r"\s*[\r\n]+|\s+(?!\S)|\s+"


def plain(number: str) -> str:
    """Words of letters, with numbers as given. That of Llama 3 has up to three digits."""
    return "|".join((SUFFIX, FRONT + r"\p{L}+", number, SIGNS % "", GAPS))


def cased(number: str, suffix: str) -> str:
    """Words of letters that also end where a capital follows a small letter, as in "camelCase"."""
    return "|".join((f"{FRONT}{UPPER}*{LOWER}+{suffix}", f"{FRONT}{UPPER}+{LOWER}*{suffix}", number, SIGNS % "/", GAPS))


LLAMA3 = Pre(plain(r"\p{N}{1,3}"), ignore_merges=True, adds_bos=True)
QWEN2 = Pre(plain(r"\p{N}"), nfc=True)
SMOLLM = Pre(digits=True)
GPT4O = Pre(cased(r"\p{N}{1,3}", f"{SUFFIX}?"))
PRES = {
    "llama-bpe": LLAMA3, "llama3": LLAMA3, "llama-v3": LLAMA3, "lfm2": LLAMA3, "falcon3": LLAMA3, "pixtral": LLAMA3,
    "qwen2": QWEN2, "deepseek-r1-qwen": QWEN2,
    "smollm": SMOLLM, "refact": SMOLLM, "starcoder": SMOLLM, "command-r": SMOLLM._replace(nfc=True),
    "gpt-2": Pre(), "olmo": Pre(nfc=True),
    "tekken": Pre(cased(r"\p{N}", ""), ignore_merges=True, adds_bos=True),
    "gpt-4o": GPT4O, "llama4": GPT4O._replace(ignore_merges=True),
}  # fmt: skip


def read_gpt2(keys: Keys, tokens: Tokens, vocab_size: int) -> tuple[JsonVocabulary, Special]:
    """Byte-level byte-pair encoding by merges, in the package tokenizers. add_space_prefix is not used, as in llama.cpp."""
    name = keys.get(PRE, str)
    if name not in PRES:
        keys.fail(PRE, f"one of {', '.join(PRES)}", said(name))
    pre = PRES[name]
    merges = read_merges(keys)
    special = read_special(keys, tokens, {}, pre.adds_bos)
    added = added_tokens(tokens, special)
    ids = tokens.ids.copy()
    for id in tokens.of_types(UNUSED):  # such as [PAD7]: no text becomes one, and it has no text
        ids.pop(tokens.spellings[id], None)
    ids |= {token.content: token.id for token in added}
    tokenizers = import_package(keys.path)
    try:
        with explained(f"{keys.path}: {MERGES}: expected merges for the package tokenizers"):
            model = tokenizers.models.BPE(ids, merges, ignore_merges=pre.ignore_merges)
    except ModelError:
        check_merges(keys, ids, merges)
        raise
    package = tokenizers.Tokenizer(model)
    if pre.nfc:
        package.normalizer = tokenizers.normalizers.NFC()
    package.pre_tokenizer = split_of(pre, tokenizers)
    package.add_tokens([tokenizers.AddedToken(token.content, normalized=False, special=token.special) for token in added])
    return JsonVocabulary(package, vocab_size, Decoder(byte_alphabet()), special), special


def split_of(pre: Pre, tokenizers: Any) -> Any:
    """The pre-tokenizer of the package."""
    kinds = tokenizers.pre_tokenizers
    steps = [kinds.ByteLevel(add_prefix_space=False, use_regex=pre.words is None)]
    if pre.words is not None:
        steps.insert(0, kinds.Split(tokenizers.Regex(pre.words), "isolated"))
    if pre.digits:
        steps.insert(0, kinds.Digits(individual_digits=True))
    return kinds.Sequence(steps)


def read_merges(keys: Keys) -> list[tuple[str, str]]:
    """The merges: of each, the two tokens, which are written with a space between. The first may begin with a space."""
    merges: list[tuple[str, str]] = []
    for merge in keys.strings(MERGES):
        left, space, right = merge.partition(" ")
        if not left:
            left, space, right = right.partition(" ")
            left = f" {left}"
        if not space:
            keys.fail(f"{MERGES}[{len(merges)}]", "two tokens with a space between", short(merge))
        merges.append((left, right))
    return merges


def check_merges(keys: Keys, ids: Mapping[str, int], merges: list[tuple[str, str]]) -> None:
    """ModelError: a merge has a part, or a result, that is not a token."""
    for i, (left, right) in enumerate(merges):
        for part in (left, right, left + right):
            if part not in ids:
                keys.fail(f"{MERGES}[{i}]", "tokens that merge into a token", f"{short(part)}, which is not a token")
