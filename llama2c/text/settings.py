"""The settings beside a tokenizer in a Hugging Face folder: special tokens, end tokens, added tokens, the chat template.

The files are tokenizer_config.json, special_tokens_map.json, added_tokens.json, generation_config.json, config.json and
chat_template.jinja or .json. Each may be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ModelError
from ..files import exists, read_file, read_json
from .vocabulary import ChatTemplate, Special

TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
TEMPLATE_FILE = "chat_template.jinja"
MODEL_FILES = ("generation_config.json", "config.json")  # the first that has a setting counts
FILES = (TOKENIZER_CONFIG, TOKENS_MAP, ADDED_TOKENS, TEMPLATE_FILE, "chat_template.json", *MODEL_FILES)
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class AddedToken(NamedTuple):
    """A token that is taken from a text in one piece, before the rest of it is encoded."""

    content: str
    id: int
    special: bool = False  # has no text when it is decoded
    lstrip: bool = False  # takes the white space on its left with it
    rstrip: bool = False
    single_word: bool = False  # only where no letter, digit or underscore touches it


def has_settings(folder: Path) -> bool:
    """Whether a folder has any of the files that are read here."""
    return any(exists(folder / file) for file in FILES)


# ---------------------------------------------------------------------------
# special tokens


def read_special(
    path: Path,
    find_id: Callable[[str], int | None],
    vocab_size: int,
    prefix: tuple[int, ...] = (),
    defaults: Mapping[str, str] | None = None,
) -> Special:
    """The special tokens of the tokenizer file `path`, from the files beside it.

    find_id   the id of a token, given its spelling
    prefix    what the tokenizer itself puts before a text
    defaults  the spellings of special tokens that no file names
    tokenizer_config.json (else special_tokens_map.json) names tokens, generation_config.json (else config.json) gives ids.
    BOS is the named one, else what is put before a text, else the id; EOS is the named one, else the id. Every EOS of either
    kind ends a text. An id that the model does not have is ignored where a name gives another.
    """
    folder = path.parent
    names = {**{name: (spelling, path) for name, spelling in (defaults or {}).items()}, **token_names(folder)}

    def named(name: str) -> list[int]:
        if name not in names:
            return []
        spelling, where = names[name]
        id = find_id(spelling)
        if id is None:
            raise ModelError(f"{where}: {name}: expected a token of the tokenizer, found {spelling!r}")
        return [id] if id < vocab_size else []

    bos = [*named("bos_token"), *prefix]
    bos += model_ids(folder, "bos_token_id", vocab_size, strict=not bos)
    eos = named("eos_token")
    eos += model_ids(folder, "eos_token_id", vocab_size, strict=not eos)
    template = read_template(folder, {name: spelling for name, (spelling, _) in names.items()})
    return Special(
        bos_id=bos[0] if bos else None,
        eos_id=eos[0] if eos else None,
        end_ids=frozenset(eos),
        prefix=prefix,
        chat_template=template,
        no_template=f"{path}: no chat template beside it" if template is None else None,
    )


def token_names(folder: Path) -> dict[str, tuple[str, Path]]:
    """The spellings of the named special tokens, and the file that names them: {"bos_token": ("<s>", path)}."""
    names: dict[str, tuple[str, Path]] = {}
    for file in (TOKENS_MAP, TOKENIZER_CONFIG):  # the later one counts
        path = folder / file
        settings = read_settings(path)
        for name in TOKEN_NAMES:
            if settings.get(name) is not None:
                names[name] = content_of(settings[name], name, path), path
    return names


def content_of(token: Any, name: str, path: Path) -> str:
    """The spelling of a token, which is given as a str or as a dict with "content"."""
    spelling = token.get("content") if isinstance(token, dict) else token
    if not isinstance(spelling, str):
        raise ModelError(f"{path}: {name}: expected a str or a dict with 'content', found {short(token)}")
    return spelling


def model_ids(folder: Path, name: str, vocab_size: int, strict: bool) -> list[int]:
    """The ids of that name, one or a list of them, in generation_config.json, else in config.json.

    strict: an id that the model does not have is a ModelError; otherwise it is left out.
    """
    for file in MODEL_FILES:
        path = folder / file
        found = read_settings(path).get(name)
        ids = found if isinstance(found, list) else [] if found is None else [found]
        for id in ids:
            if type(id) is not int or (strict and not 0 <= id < vocab_size):  # a bool is not an id
                raise ModelError(f"{path}: {name}: expected ids from 0 to {vocab_size - 1}, found {short(found)}")
        if ids:
            return [id for id in ids if 0 <= id < vocab_size]
    return []


# ---------------------------------------------------------------------------
# added tokens


def read_added(folder: Path, find_piece: Callable[[str], int | None]) -> list[AddedToken]:
    """The added tokens of a folder without a tokenizer.json: the named special ones, then those that two files add.

    find_piece  the id that a spelling has in the tokenizer file. A named token without any id is left out.
    """
    special, by_id = special_spellings(folder), decoder_tokens(folder)
    ids = {token.content: token.id for token in by_id}
    path = folder / ADDED_TOKENS
    for spelling, id in read_settings(path).items():
        ids.setdefault(spelling, checked_id(id, spelling, path))
    added = {token.content: token._replace(special=token.special or token.content in special) for token in by_id}
    for spelling in [*special, *ids]:
        found = ids.get(spelling, find_piece(spelling))
        if spelling and spelling not in added and found is not None:
            added[spelling] = AddedToken(spelling, found, spelling in special)
    return list(added.values())


def special_spellings(folder: Path) -> list[str]:
    """The spellings that a folder calls special: the named tokens, and lists of more."""
    spellings = [spelling for spelling, _ in token_names(folder).values()]
    for file in (TOKENS_MAP, TOKENIZER_CONFIG):
        path = folder / file
        for name in ("additional_special_tokens", "extra_special_tokens"):
            more = read_settings(path).get(name)
            if isinstance(more, list):
                spellings += [content_of(token, name, path) for token in more]
    return spellings


def decoder_tokens(folder: Path) -> list[AddedToken]:
    """The tokens of added_tokens_decoder in tokenizer_config.json: {"32000": {"content": "<|im_end|>", "special": true}}."""
    path = folder / TOKENIZER_CONFIG
    found = read_settings(path).get("added_tokens_decoder") or {}
    if not isinstance(found, dict):
        raise ModelError(f"{path}: added_tokens_decoder: expected an object, found {short(found)}")
    tokens = []
    for key, token in found.items():
        name = f"added_tokens_decoder[{key!r}]"
        spelling = content_of(token, name, path)
        id = checked_id(int(key) if key.isdecimal() and len(key) < 10 else None, spelling, path)
        flags = [isinstance(token, dict) and token.get(flag) is True for flag in AddedToken._fields[2:]]
        if spelling:
            tokens.append(AddedToken(spelling, id, *flags))
    return tokens


def checked_id(id: Any, spelling: str, path: Path) -> int:
    if type(id) is not int or not 0 <= id < 1 << 31:
        raise ModelError(f"{path}: expected an id of {short(spelling)} from 0 to {(1 << 31) - 1}, found {short(id)}")
    return id


def surplus_message(spelling: str, id: int, vocab_size: int) -> str:
    """Says that a text contains an added token beyond the ids of the model."""
    return f"text: contains {short(spelling)}, which is token {id}, but the model has only {vocab_size} tokens"


# ---------------------------------------------------------------------------
# the chat template


def read_template(folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template of a folder: chat_template.jinja, else chat_template.json, else the one in tokenizer_config.json."""
    path = folder / TEMPLATE_FILE
    if exists(path):
        try:
            return ChatTemplate(read_file(path).decode(), str(path), special_tokens)
        except UnicodeDecodeError as error:
            raise ModelError(f"{path}: expected UTF-8, found {error.reason} at byte {error.start}") from None
    for file in ("chat_template.json", TOKENIZER_CONFIG):
        path = folder / file
        found = read_settings(path).get("chat_template")
        if found is not None:
            return ChatTemplate(choose_template(found, path), str(path), special_tokens)
    return None


def choose_template(found: Any, path: Path) -> str:
    """The one template, or the one of several that is called default."""
    if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        by_name = {entry.get("name"): entry.get("template") for entry in found}
        if "default" not in by_name:
            raise ModelError(f"{path}: chat_template: expected one with the name 'default', found {short(list(by_name))}")
        found = by_name["default"]
    if not isinstance(found, str):
        raise ModelError(f"{path}: chat_template: expected a str or a list of dicts, found {short(found)}")
    return found


# ---------------------------------------------------------------------------
# files


def read_settings(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is no such file."""
    return read_json(path) if exists(path) else {}


def short(value: Any) -> str:
    """A value for an error message: on one line, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
