"""Constraints: which tokens they allow, against the bytes of the tokens; what texts come out, against jsonschema and re."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import gguf_tokenizers
import json_tokenizers
import numpy as np
import pytest
from fakes import BOS, EOS, FakeTransformer

import llama2c
from llama2c import generation
from llama2c.constraints import Constraint, Grammar, constrain, grammar_of_schema
from llama2c.errors import RequestError
from llama2c.sampler import Sampler
from llama2c.text.tokenizer import Tokenizer

pytest.importorskip("llguidance", reason="needs llguidance: pip install 'llama2c[json]'")
jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")

BUNDLED = Path(llama2c.locate.__file__).parent / "bundled" / "tokenizer.bin"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.open(BUNDLED)


def allowed(constraint: Constraint, vocab_size: int) -> set[int]:
    """The ids that may come next."""
    row = constraint.mask(np.zeros(vocab_size, np.float32))
    assert set(np.unique(row)) <= {0.0, -np.inf}
    return set(np.flatnonzero(row == 0).tolist())


def draw(tokenizer: Tokenizer, seed: int, likely: str = "", max_tokens: int = 120, **constraint: Any) -> tuple[str, str]:
    """The text that random logits make, and why it ended. The tokens that have only characters of `likely` are likelier."""
    rng = np.random.default_rng(seed)
    pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
    bias = np.array([4.0 if piece and not piece.translate(None, likely.encode()) else 0.0 for piece in pieces], np.float32)
    sequence = generation.Sequence(
        [0],
        Sampler(seed=seed, top_p=1.0),
        vocab_size=tokenizer.vocab_size,
        max_length=4096,
        max_tokens=max_tokens,
        stop_tokens=tokenizer.end_ids,
        text_stream=tokenizer.text_stream,
        constraint=constrain(tokenizer, **constraint),
    )
    text = ""
    while sequence.finish_reason is None:
        [step] = sequence.accept(rng.normal(0, 2, (1, tokenizer.vocab_size)).astype(np.float32) + bias)
        text += step.text
    return text, sequence.finish_reason


def tokenizers(folder: Path) -> dict[str, Tokenizer]:
    """One of each kind of file."""
    made = {"bin": Tokenizer.open(BUNDLED)}
    for name, maker in json_tokenizers.MAKERS.items():
        package = maker()
        path = json_tokenizers.save(folder / name, package, json_tokenizers.CONFIGS[name])
        made[f"json {name}"] = Tokenizer.open(path)
        if name == "chatml":
            metadata = gguf_tokenizers.gpt2(package, "qwen2", eos_token_id=package.token_to_id("<|im_end|>"))
            made["gguf gpt2"] = Tokenizer.open(gguf_tokenizers.write(folder / "gpt2.gguf", metadata))
    words = [(f"▁{word}", -1.0, gguf_tokenizers.NORMAL) for word in ("abc", "ab", "cab")]
    words += [(word, -2.0, gguf_tokenizers.NORMAL) for word in ("a", "b", "c", "ab", "abc", "▁", "1", "12", "é")]
    metadata = gguf_tokenizers.llama(words, bos_token_id=1, eos_token_id=2)
    made["gguf llama"] = Tokenizer.open(gguf_tokenizers.write(folder / "llama.gguf", metadata))
    return made


@pytest.fixture(scope="module")
def all_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return tokenizers(tmp_path_factory.mktemp("tokenizers"))


KINDS = ["bin", "json llama3", "json chatml", "json llama2", "gguf gpt2", "gguf llama"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_allowed_are_those_whose_bytes_fit(kind: str, all_tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = all_tokenizers[kind]
    pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]

    def fitting(pattern: bytes) -> set[int]:
        return {token for token, piece in enumerate(pieces) if piece and re.fullmatch(pattern, piece)}

    constraint = constrain(tokenizer, regex=r"[a-e]{2,3}( é)?")
    assert constraint is not None and not constraint.finished
    assert allowed(constraint, tokenizer.vocab_size) == fitting(rb"[a-e]{1,3}( (\xc3\xa9?))?") - fitting(rb"[a-e] .*")
    b = min(fitting(b"b"))
    constraint.advance(b)
    constraint.advance(b)
    after = fitting(rb"[a-e]?( (\xc3\xa9?)?)?")
    assert allowed(constraint, tokenizer.vocab_size) == after | tokenizer.end_ids
    constraint.advance(b)
    assert allowed(constraint, tokenizer.vocab_size) == fitting(rb" (\xc3\xa9?)?") | tokenizer.end_ids
    constraint.reset()
    assert allowed(constraint, tokenizer.vocab_size) == fitting(rb"[a-e]{1,3}( (\xc3\xa9?))?") - fitting(rb"[a-e] .*")


@pytest.mark.parametrize("kind", KINDS)
def test_a_forced_text_is_spelled_by_every_tokenizer(kind: str, all_tokenizers: dict[str, Tokenizer]) -> None:
    """Also one with the name of a special token, or characters that have no token."""
    tokenizer = all_tokenizers[kind]
    for text in ("abc abc", "ab<|im_end|></s><s>é", "🐢 ab", "  a\n\x02b", "ﬁ ½"):
        for seed in range(3):
            assert draw(tokenizer, seed, regex=re.escape(text)) == (text, "stop")


def test_the_end_of_a_text_needs_no_draw(tokenizer: Tokenizer) -> None:
    sampler = Sampler(seed=1)
    for regex, n_drawn in (("", 0), ("a", 1), ("(a|ab)", None)):
        sequence = generation.Sequence(
            [BOS],
            sampler,
            vocab_size=2048,
            max_length=9,
            stop_tokens=tokenizer.end_ids,
            constraint=constrain(tokenizer, regex=regex),
        )
        n = 0
        assert (sequence.wanted, bool(sequence.to_feed)) == ((0, False) if n_drawn == 0 else (1, True))
        while sequence.finish_reason is None:
            sequence.accept(np.zeros((1, 2048), np.float32))
            n += 1
        assert sequence.finish_reason == "stop"
        assert n == n_drawn or (n_drawn is None and n <= 3)
    assert llama2c.load().generate("Hi", regex="").finish_reason == "stop"
    assert llama2c.load().generate("Hi", regex="", max_tokens=0).tokens == ()


def test_the_last_token_of_a_complete_text_is_a_stop_also_at_max_tokens(tokenizer: Tokenizer) -> None:
    n = len(tokenizer.encode("12345", bos=False)) - 1  # without the space in front
    for seed in range(5):
        assert draw(tokenizer, seed, max_tokens=5, regex="[12]{5}")[1] in ("stop", "length")
    assert draw(tokenizer, 0, max_tokens=n, regex="12345") == ("12345", "stop")
    assert draw(tokenizer, 0, max_tokens=n - 1, regex="12345")[1] == "length"


def test_a_mask_is_a_copy_and_keeps_nan(tokenizer: Tokenizer) -> None:
    constraint = constrain(tokenizer, regex="[0-9]")
    assert constraint is not None
    row = np.random.default_rng(1).normal(0, 1, 2048).astype(np.float32)
    row[5], row[6], row[7] = np.nan, np.inf, -np.inf
    before = row.copy()
    masked = constraint.mask(row)
    assert row.tobytes() == before.tobytes() and masked.dtype == np.float32
    kept = sorted(allowed(constraint, 2048))
    assert masked[kept].tobytes() == row[kept].tobytes()
    assert np.isnan(masked[5]) and not np.isfinite(masked[6]) and masked[7] == -np.inf
    with pytest.raises(ValueError, match=r"^logits: "):
        Sampler(seed=1).sample(masked)


# ---------------------------------------------------------------------------
# schemas

TEXT = {"type": "string", "maxLength": 6}
SCHEMAS: tuple[Any, ...] = (
    {},
    {"type": "object"},
    {
        "type": "object",
        "properties": {"name": TEXT, "age": {"type": "integer"}},
        "required": ["name"],
        "additionalProperties": False,
    },
    {"type": "object", "properties": {"b": TEXT, "a": {"type": "boolean"}}, "required": ["a", "b"]},
    {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2},
    {"type": "object", "properties": {"a": True}, "required": ["a"], "minProperties": 2},
    {"type": "object", "patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False},
    {"type": "array", "items": {"type": "integer", "minimum": -3, "maximum": 12}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [TEXT, {"type": "null"}], "items": False},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 99},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^[A-C]{2}-[0-9]+$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "ipv4"},
    {"type": ["string", "null"], "maxLength": 3},
    {"enum": ["red", "grün", 3, None, [1], {"a": 2}]},
    {"const": {"a": ["x y", 1.5, "\u2028\U0001f422"]}},
    {
        "anyOf": [
            {"type": "integer"},
            {"type": "object", "properties": {"q": TEXT}, "required": ["q"], "additionalProperties": False},
        ]
    },
    {"oneOf": [{"type": "integer"}, {"type": "boolean"}]},
    {"allOf": [{"type": "integer", "minimum": 5}, {"maximum": 9}]},
    {"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}, "maxItems": 2}}, "$ref": "#/$defs/t"},
    {
        "title": "T",
        "description": "d",
        "default": {"minProperties": 9},
        "type": "object",
        "properties": {"minProperties": TEXT},
    },
)
LIKELY = '{}[]",: 0123456789truefalsn.-aqbxAB'


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_every_text_of_a_schema_is_valid_or_cut_off(schema: Any, tokenizer: Tokenizer) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    n_complete = 0
    for seed in range(25):
        text, reason = draw(tokenizer, seed, LIKELY, schema=schema)
        if reason == "stop":
            validator.validate(json.loads(text))
            n_complete += 1
        assert not re.search(r"[ \t]{66}|\n\s*\n", re.sub(r'"[^"]*"', "", text))  # white space has an end
    assert n_complete >= 3


REFUSED = (
    ({"anyOf": [False]}, "Unsatisfiable schema: schema is false"),
    ({"type": "strin"}, "Invalid type: strin"),
    ({"not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
    ({"type": "array", "uniqueItems": True}, 'Unimplemented keys: ["uniqueItems"]'),
    ({"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}, 'Unimplemented keys: ["uniqueItems"]'),
    ({"type": "string", "format": "telepathy"}, "Unknown format: telepathy"),
    ({"type": "string", "pattern": "(?=a)"}, "look-around, including look-ahead and look-behind, is not supported"),
    ({"enum": []}, "Unsatisfiable schema: anyOf is empty"),
    (
        {"type": "object", "minProperties": 2},
        "minProperties: expected at most 1, one more than are required, as the others may have the same name; found 2",
    ),
)


@pytest.mark.parametrize(("schema", "reason"), REFUSED, ids=lambda value: json.dumps(value)[:40])
def test_a_schema_that_cannot_be_expressed_is_refused(schema: Any, reason: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(f'schema: {reason}')}$") as caught:
        constrain(tokenizer, schema=schema)
    assert caught.value.param == "schema"


def test_a_oneof_that_a_schema_wants_to_be_taken_as_anyof_is_refused(tokenizer: Tokenizer) -> None:
    schema = {"x-guidance": {"coerce_one_of": True}, "oneOf": [{"type": "integer"}, {"type": "number"}]}
    with pytest.raises(RequestError, match=r"^schema: .*oneOf"):
        constrain(tokenizer, schema=schema)


def deep(n: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(n):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "schema", [{"const": math.nan}, {"const": {1}}, {"const": "\ud800"}, deep(300), deep(100_000)], ids=range(5)
)
def test_a_schema_that_json_does_not_have_is_refused(schema: Any, tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match=r"^schema: [^\n]+$"):
        constrain(tokenizer, schema=schema)


def test_wrong_arguments(tokenizer: Tokenizer) -> None:
    cases: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
        ({"schema": "{}"}, TypeError, "schema: expected a dict, found str"),
        ({"schema": True}, TypeError, "schema: expected a dict, found bool"),
        ({"schema": [1]}, TypeError, "schema: expected a dict, found list"),
        ({"regex": b"a"}, TypeError, "regex: expected a str, found bytes"),
        ({"grammar": 3}, TypeError, "grammar: expected a str, found int"),
        ({"regex": "\ud800"}, RequestError, "regex: expected valid Unicode, found a lone surrogate"),
        ({"regex": "[a"}, RequestError, "regex: unclosed character class"),
        ({"grammar": "start: x"}, RequestError, 'grammar: at 1(8): unknown name: "x"'),
        ({"grammar": ""}, RequestError, "grammar: Empty grammar"),
        ({"regex": "a", "schema": {}}, RequestError, "schema and regex: expected one constraint at most, found 2"),
    )
    for options, error, message in cases:
        with pytest.raises(error) as caught:
            constrain(tokenizer, **options)
        assert str(caught.value) == message and type(caught.value) is error
    assert constrain(tokenizer) is None
    assert constrain(tokenizer, schema=None, regex=None) is None


def test_without_the_package(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(OSError, match=r"^schema, regex and grammar need the package llguidance: pip install 'llama2c\[json\]'"):
        constrain(tokenizer, regex="a")
    assert constrain(tokenizer) is None


def test_a_special_token_in_a_grammar_is_that_one_alone(all_tokenizers: dict[str, Tokenizer]) -> None:
    """They have no text: <[ID]> names one. Beside other text, too, no other special token is allowed."""
    tokenizer = all_tokenizers["json llama3"]
    [mark] = tokenizer.encode("<|start_header_id|>", bos=False)
    special = {token for token in range(tokenizer.vocab_size) if not tokenizer.piece(token)}
    assert len(special) > 3 and mark in special - tokenizer.end_ids
    constraint = constrain(tokenizer, grammar=f'start: TEXT <[{mark}]> "a"\nTEXT: /(?s:.*)/')
    assert constraint is not None
    assert allowed(constraint, tokenizer.vocab_size) & special == {mark}
    constraint.advance(mark)
    assert {tokenizer.piece(token) for token in allowed(constraint, tokenizer.vocab_size)} == {b"a"}


def test_a_schema_in_a_grammar_means_what_it_means_alone(tokenizer: Tokenizer) -> None:
    part = {"type": "object", "properties": {"b": {"enum": ["x", 1]}}, "required": ["b"]}
    schema = {"$ref": "#/$defs/a", "$defs": {"a": part}}
    alone = constrain(tokenizer, schema=schema)
    inside = constrain(tokenizer, grammar=f"start: part\npart: {grammar_of_schema(schema)}")
    assert alone is not None and inside is not None
    for token in (byte + 3 for byte in b'{"b": "x"}'):  # the tokens of single bytes
        assert allowed(inside, tokenizer.vocab_size) == allowed(alone, tokenizer.vocab_size)
        inside.advance(token)
        alone.advance(token)
    assert allowed(inside, tokenizer.vocab_size) == allowed(alone, tokenizer.vocab_size)
    unique = {"type": "array", "uniqueItems": True}
    for wrong in (unique, {**unique, "x-guidance": {"lenient": True}}):
        with pytest.raises(RequestError, match=r"^schema: .*uniqueItems"):
            grammar_of_schema(wrong)


def test_a_regular_expression_and_a_grammar(tokenizer: Tokenizer) -> None:
    pattern = r"(yes|no), [0-9]{1,3}\."
    made = [draw(tokenizer, seed, regex=pattern) for seed in range(20)]
    assert all(re.fullmatch(pattern, text) and reason == "stop" for text, reason in made)
    assert len(set(made)) > 10
    grammar = 'start: "(" number (" + " number)* ")"\nnumber: /[0-9]{1,3}/\n'
    for seed in range(10):
        text, reason = draw(tokenizer, seed, ")", grammar=grammar)
        assert re.match(r"^\([0-9 +]*\)?$", text) and text.endswith(")") == (reason == "stop")


def test_no_token_ends_a_text_where_the_tokenizer_has_no_end(all_tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = all_tokenizers["json llama3"]
    endless = Tokenizer(tokenizer._vocabulary, llama2c.text.vocabulary.Special(None, None, frozenset(), ()))
    assert draw(endless, 1, max_tokens=30, regex="[ab]+")[1] == "length"
    assert draw(endless, 1, regex="ab") == ("ab", "stop")
    assert draw(endless, 1, regex="") == ("", "stop")


# ---------------------------------------------------------------------------
# inside a Sequence


class Even:
    """Only even ids, and at most n of them."""

    def __init__(self, n: int = 99) -> None:
        self.n, self.seen, self.resets = n, list[int](), 0
        self.finished = False

    def mask(self, logits: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(logits)) % 2 == 0, logits, np.float32(-np.inf))

    def advance(self, token: int) -> None:
        assert token % 2 == 0
        self.seen.append(token)
        self.finished = len(self.seen) == self.n

    def reset(self) -> None:
        self.seen.clear()
        self.resets += 1
        self.finished = self.n == 0


def sequence_of(constraint: Constraint, **options: Any) -> generation.Sequence:
    options = {"sampler": Sampler(seed=3), "vocab_size": 40, "max_length": 64, **options}
    return generation.Sequence([BOS], options.pop("sampler"), constraint=constraint, **options)


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (n, 40)).astype(np.float32)


def test_the_order_of_a_bias_a_mask_and_a_penalty() -> None:
    calls: list[tuple[str, Any]] = []

    class Order(Even):
        def mask(self, logits: np.ndarray) -> np.ndarray:
            calls.append(("mask", logits[7]))
            return super().mask(logits) + np.float32(1)

    class Recorder(Sampler):
        def sample(self, logits: Any, seen: Any = None, n_prompt: int = 0) -> int:
            calls.append(("penalty", logits[8]))
            return super().sample(logits, seen, n_prompt)

    row = np.zeros((1, 40), np.float32)
    options: Any = {"logit_bias": {7: 0.5}, "processors": [lambda logits, ids: logits + np.float32(0.25)], "logprobs": 1}
    [step] = sequence_of(Order(), sampler=Recorder(0.0, repetition_penalty=2.0), **options).accept(row)
    assert calls == [("mask", 0.75), ("penalty", 1.25)]
    assert step.logprob == pytest.approx(-math.log(40)) and (row == 0).all()  # those of the model


def test_a_token_that_is_forced_draws_its_coin() -> None:
    class One(Even):
        def mask(self, logits: np.ndarray) -> np.ndarray:
            return np.where(np.arange(len(logits)) == 8, logits, np.float32(-np.inf))

    sampler, other = Sampler(seed=9), Sampler(seed=9)
    sequence_of(One(), sampler=sampler).accept(rows(1))
    other.coin()
    assert sampler.coin() == other.coin()


def test_no_token_left_is_an_error_of_the_request() -> None:
    class Nothing(Even):
        def mask(self, logits: np.ndarray) -> np.ndarray:
            return np.full_like(logits, -np.inf)

    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"^logits: "):
            sequence_of(Nothing(), sampler=Sampler(temperature)).accept(rows(1))


def test_a_wrong_guess_touches_no_constraint() -> None:
    plain, drafted = Even(9), Even(9)
    expected = sequence_of(plain, logprobs=2)
    steps = [step for row in rows(9) for step in expected.accept(row[np.newaxis])]
    sequence = sequence_of(drafted, logprobs=2)
    right = [step.token for step in steps]
    sequence.propose([*right[:3], (right[3] + 1) % 40, 5, 5])
    assert sequence.accept(rows(9)[:7]) == steps[:4]
    assert drafted.seen == right[:4]
    sequence.propose([*right[4:], 2, 2])
    assert sequence.accept(np.concatenate([rows(9)[4:], rows(2, 1)])) == steps[4:]
    assert sequence.finish_reason == "stop" and drafted.seen == plain.seen
    assert sequence.sampler.coin() == expected.sampler.coin()


def test_a_restart_begins_the_constraint_again() -> None:
    constraint = Even(1)
    sequence = sequence_of(constraint)
    sequence.accept(rows(1))
    assert (sequence.finish_reason, sequence.wanted, constraint.resets) == ("stop", 0, 1)
    sequence.restart([BOS, 5])
    assert (sequence.finish_reason, sequence.wanted, constraint.seen, constraint.resets) == (None, 1, [], 2)
    assert sequence_of(Even(0)).finish_reason == "stop"


def test_a_stop_token_is_the_sequences() -> None:
    constraint = Even()
    row = np.full((1, 40), -9, np.float32)
    row[0, EOS] = 9
    [step] = sequence_of(constraint, sampler=Sampler(0.0), stop_tokens=(EOS,)).accept(row)
    assert (step.finish_reason, constraint.seen) == ("stop", [])


def test_a_fake_model_makes_json(tokenizer: Tokenizer) -> None:
    llama = llama2c.Llama(FakeTransformer(vocab_size=2048), tokenizer)  # type: ignore[arg-type]
    schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 3, "maxItems": 3}
    for done in (
        llama.generate("Three", schema=schema, seed=4),
        llama.chat([{"role": "user", "content": "3"}], schema=schema, seed=5),
    ):
        assert len(json.loads(done.text)) == 3 and done.finish_reason == "stop"
    assert llama.generate("Three", schema=schema, seed=4).tokens == llama.generate("Three", schema=schema, seed=4).tokens
    assert isinstance(llama.sequence("a", regex="b")._constraint, Grammar)
