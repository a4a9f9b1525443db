"""Constraints: a JSON schema, a regular expression or a grammar says which tokens a text may go on with.

The package llguidance (extra `json`) knows the languages; here are the vocabulary that it needs, the mask on a row of logits,
and errors in one line. Nothing here draws a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import RequestError
from .text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Floats: TypeAlias = "NDArray[np.float32]"

CONSTRAINTS = ("schema", "regex", "grammar")  # the options
NO_PACKAGE = "schema, regex and grammar need the package llguidance: pip install 'llama2c[json]'"
# Between the parts of a JSON text. Any amount of white space would be valid, and small models then write nothing else.
WHITESPACE = r" |\n[ \t]{0,64}"
STRICT = {"lenient": False, "coerce_one_of": False}  # what cannot be expressed is an error
# What the eight bits of a byte of a mask add to eight logits: 0 for an allowed token, -inf for an excluded one.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_ADDENDS: Floats = np.where(_BITS, 0, -np.inf).astype(np.float32)


class Constraint(Protocol):
    """What the tokens of one text may be. One Sequence uses it."""

    finished: bool  # the text is complete, and nothing may follow

    def mask(self, logits: Floats, /) -> Floats:
        """A copy of `logits` (vocab_size,) in which every token that may not come next has -inf."""

    def advance(self, token: int, /) -> None:
        """This token, which the mask allowed, comes next."""

    def reset(self) -> None:
        """Begin another text."""


class Grammar:
    """A constraint made by constrain(): the place in a schema, a regular expression or a grammar."""

    __slots__ = ("_allowed", "_matcher", "_n_ends", "_param", "_vocab_size", "finished")

    def __init__(self, matcher: LLMatcher, tokenizer: Tokenizer, param: str) -> None:
        self._matcher, self._vocab_size, self._param = matcher, tokenizer.vocab_size, param
        self._n_ends = len(tokenizer.end_ids) or 1  # where a text may end, all of them are allowed
        self._allowed: bytes | None = None  # a bit for each token; None: not computed for this place
        self.finished: bool = False
        self._arrive()

    def mask(self, logits: Floats) -> Floats:
        """See Constraint. A NaN stays one, also of an excluded token. RequestError: the grammar is too complex to go on."""
        allowed = np.frombuffer(self._compute(), np.uint8)
        with np.errstate(invalid="ignore"):  # inf - inf, which the sampler refuses
            return logits + _ADDENDS[allowed].reshape(-1)[: self._vocab_size]

    def advance(self, token: int) -> None:
        """See Constraint. RequestError: the token is excluded, or the grammar is too complex to go on."""
        self._matcher.consume_token(token)
        self._arrive()

    def reset(self) -> None:
        """See Constraint."""
        self._matcher.reset()
        self._arrive()

    def _arrive(self) -> None:
        """At another place. The text is finished where it may end, and does not allow any token that goes on."""
        self._allowed = None
        self._check()
        self.finished = self._matcher.is_stopped()
        if not self.finished and self._matcher.is_accepting():
            self.finished = int.from_bytes(self._compute(), "little").bit_count() <= self._n_ends

    def _compute(self) -> bytes:
        if self._allowed is None:
            self._allowed = self._matcher.compute_bitmask()
            self._check()
        return self._allowed

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"{self._param}: {_reason(self._matcher.get_error())}", self._param)


def constrain(
    tokenizer: Tokenizer,
    *,
    schema: Mapping[str, Any] | None = None,
    regex: str | None = None,
    grammar: str | None = None,
) -> Grammar | None:
    """The constraint that one of these asks for; None: none of them was given.

    schema   a JSON schema (draft 2020-12): the text is JSON that is valid for it. Properties come in the order of the schema,
             and between two parts there is at most one space, or one line break with an indentation
    regex    the whole text matches it, in the syntax of Rust's regex, without look-around
    grammar  in llguidance's variant of Lark

    A text may end where its tokens spell a complete one, and it must end where nothing can follow.
    RequestError: more than one is given, or the package cannot express it. TypeError: another type. OSError: there is no
    package llguidance.
    """
    given = {name: value for name, value in zip(CONSTRAINTS, (schema, regex, grammar), strict=True) if value is not None}
    if not given:
        return None
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)}: expected one constraint at most, found {len(given)}", list(given)[-1])
    [(param, value)] = given.items()
    try:
        from llguidance import LLMatcher, LLParserLimits
    except ImportError as error:
        raise OSError(f"{NO_PACKAGE} ({error})") from None
    if param == "schema":
        compiled = _compile_schema(value)
    else:
        compile_text = LLMatcher.grammar_from_regex if param == "regex" else LLMatcher.grammar_from_lark
        compiled = compile_text(_checked_text(param, value))
    matcher = LLMatcher(_vocabulary(tokenizer), compiled, log_level=0, limits=LLParserLimits(verbose_errors=False))
    return Grammar(matcher, tokenizer, param)


# ---------------------------------------------------------------------------
# schemas


def _compile_schema(schema: Any) -> str:
    """A schema as llguidance's grammar. What it cannot express is an error, whatever "x-guidance" in the schema says."""
    import json  # most stories need neither of them

    from llguidance import LLMatcher

    if not isinstance(schema, Mapping):
        raise TypeError(f"schema: expected a dict, found {type(schema).__name__}")
    try:
        text = json.dumps(dict(schema), allow_nan=False)
        compiled: str = LLMatcher.grammar_from_json_schema(text, {"whitespace_pattern": WHITESPACE}, STRICT)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"schema: expected what JSON can express: {_reason(str(error))}", "schema") from None
    for part in _parts(schema):
        _check_counts(part)
    return compiled


def grammar_of_schema(schema: Mapping[str, Any]) -> str:
    """A schema as a part of a grammar, where it means what `schema` alone would: {} -> "%json {...}".

    Errors: those of constrain, for which the package has to be there.
    """
    import json

    from llguidance import LLMatcher

    problem = LLMatcher.validate_grammar(_compile_schema(schema))
    if problem:
        raise RequestError(f"schema: {_reason(problem)}", "schema")
    options = {"whitespace_pattern": WHITESPACE, **STRICT}
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Every dict in a schema, but for those in plain values."""
    if isinstance(schema, Mapping):
        yield schema
        for name, value in schema.items():
            if name not in ("const", "enum", "default", "examples"):
                yield from _parts(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _parts(value)


def _check_counts(schema: Mapping[str, Any]) -> None:
    """Refuse a count of properties that keys of the model's own choice may miss: one may come twice, and counts once."""
    least, required = schema.get("minProperties"), schema.get("required", [])
    if isinstance(least, int) and isinstance(required, list) and least > len(required) + 1:
        expected = f"expected at most {len(required) + 1}, one more than are required, as the others may have the same name"
        raise RequestError(f"schema: minProperties: {expected}; found {least}", "schema")


def _checked_text(param: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{param}: expected a str, found {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RequestError(f"{param}: expected valid Unicode, found a lone surrogate", param) from None
    return value


def _reason(message: str) -> str:
    """Why the package refused something, in one line. It writes several, which quote the text and point at the place."""
    error = re.search(r"^error: (.+)", message, re.MULTILINE)
    return error[1] if error else message.partition("\n")[0]


# ---------------------------------------------------------------------------
# the vocabulary


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    """The tokens as the package wants them. That takes 0.2 s for 50,000 tokens, so the last few are kept."""
    from llguidance import LLTokenizer, TokenizerWrapper

    ends = sorted(tokenizer.end_ids)
    return LLTokenizer(TokenizerWrapper(_Tokens(tokenizer, ends[0] if ends else None)), eos_token=ends or None)


class _Tokens:
    """A tokenizer with the names that llguidance looks for. Called with a text that is forced, it gives ids that spell it."""

    _MARK = b"\x02"  # merges with nothing; after it a tokenizer puts no space of its own

    def __init__(self, tokenizer: Tokenizer, eos_id: int | None) -> None:
        self.eos_token_id = eos_id  # None: the package adds an id of its own, beyond the vocabulary
        self.bos_token_id = tokenizer.bos_id
        self._pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = [token for token, piece in enumerate(self._pieces) if not piece]
        # Those that have no text need names of their own, or a grammar that allows one of them allows all.
        self.tokens = [piece or f"<{token}>".encode() for token, piece in enumerate(self._pieces)]
        self._encode = tokenizer.encode
        self._n_mark = len(tokenizer.encode(self._MARK, bos=False))
        self._ids = {piece: token for token, piece in reversed([*enumerate(self._pieces)]) if piece}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes) -> list[int]:
        """The ids that encode gives the text, unless they spell another: a tokenizer may write "(C)" for a sign, or see the
        name of a special token. No exception may leave this method: it would end the process.
        """
        try:
            ids = self._encode(self._MARK + text, bos=False)[self._n_mark :]
        except ValueError:
            ids = []
        return ids if b"".join([self._pieces[token] for token in ids]) == text else self._longest_first(text)

    def _longest_first(self, text: bytes) -> list[int]:
        """The longest token with which the text begins, and so on. A byte without a token is left out."""
        ids = []
        while text:
            lengths = range(min(len(text), self._longest), 0, -1)
            n = next((n for n in lengths if text[:n] in self._ids), 0)
            ids += [self._ids[text[:n]]] if n else []
            text = text[n or 1 :]
        return ids
