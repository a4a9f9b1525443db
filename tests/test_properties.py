"""Properties that hold for every input, tried on inputs that Hypothesis makes up. Mutated files are opened in a subprocess.

The examples are the same in every run; HYPOTHESIS_PROFILE=search tries new ones, and many more.
"""

from __future__ import annotations

import base64
import importlib
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import checkpoints
import numpy as np
import pytest
from bad_inputs import case, version3
from workers import FUZZ, Worker

import llama2c
from llama2c import generation
from llama2c.config import Config

pytest.importorskip("hypothesis", reason="needs hypothesis: pip install '.[test]'")
from hypothesis import given, settings
from hypothesis import strategies as st

settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=300)
settings.register_profile("search", deadline=None, max_examples=5000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

FEW = settings(max_examples=max(settings().max_examples // 3, 100))  # of what runs many steps
INT32 = st.integers(-(2**31), 2**31 - 1)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("properties")


@pytest.fixture(scope="module")
def seeds() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FUZZ))
        yield importlib.import_module("seeds")


def as_promised(worker: Worker, target: str, data: bytes) -> None:
    """The file is refused as it should be, or used in every way: fuzz/targets.py has raised nothing."""
    answer = worker.ask(fuzz=target, data=base64.b64encode(data).decode())
    assert answer.raised == (), f"{answer.message} from {target} {data!r}"


# ---------------------------------------------------------------------------
# mutated files


@st.composite
def sizes(draw: Any) -> dict[str, int]:
    """Dimensions that fit each other, and then some changes, mostly none."""
    n_kv_heads, group, head_size = (draw(st.integers(1, 3)) for _ in range(3))
    n_heads = n_kv_heads * group
    found = {"dim": n_heads * 2 * head_size, "n_heads": n_heads, "n_kv_heads": n_kv_heads}
    for name, most in (("hidden_dim", 9), ("n_layers", 3), ("vocab_size", 40), ("seq_len", 9)):
        found[name] = draw(st.integers(1, most))
    odd = st.one_of(st.integers(-2, 24), INT32)
    return found | draw(st.one_of(st.just({}), st.just({}), st.dictionaries(st.sampled_from(case.FIELDS), odd, max_size=4)))


@given(
    version=st.sampled_from(case.VERSIONS),
    tied=st.sampled_from([0, 1, 0, 1, 0, 1, 2, 255]),
    group_size=st.one_of(st.sampled_from([1, 2, 1, 2, 4]), st.integers(-1, 13), INT32),
    changed=sizes(),
    patches=st.one_of(st.just([]), st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=3)),
    fit=st.sampled_from([True, True, True, False]),
    off=st.sampled_from([0, 0, 0, 0, -1, 1, -4, 4]),
)
def test_mutated_headers(
    worker: Worker,
    seeds: ModuleType,
    version: int,
    tied: int,
    group_size: int,
    changed: dict[str, int],
    patches: list[tuple[int, int]],
    fit: bool,
    off: int,
) -> None:
    header = bytearray(case.pack_header(version, tied=tied, group_size=group_size, **changed))
    for place, value in patches:
        header[place % len(header)] = value
    body = struct.pack("<5f", 0.5, -0.25, 2.0, -1.0, 0.125) * 600
    data = bytes(header) + body
    if fit:
        data = seeds.fitted(data)
    as_promised(worker, "checkpoint", data[: len(data) + min(off, 0)] + bytes(max(off, 0)))


WORDS = st.one_of(
    st.integers(-2, 24),
    INT32,
    st.floats(),
    st.sampled_from([None, True, "q8_0", "float16", "bfloat16", "llama3", "linear", version3.LLAMA3, {}, [], 10**400, 1e-6]),
)


@given(
    dtype=st.sampled_from(version3.DTYPES),
    changed=st.one_of(sizes(), st.dictionaries(st.sampled_from(list(version3.said())), WORDS, max_size=3)),
    patches=st.one_of(st.just([]), st.lists(st.tuples(st.integers(8, 500), st.integers(0, 255)), max_size=3)),
    fit=st.sampled_from([True, True, True, False]),
)
def test_mutated_headers_of_version_3(
    worker: Worker, seeds: ModuleType, dtype: str, changed: dict[str, Any], patches: list[tuple[int, int]], fit: bool
) -> None:
    said = version3.said(dtype=dtype, group_size=2 if dtype == "q8_0" else None) | changed
    header = bytearray(checkpoints.pack_v3(said)[:1024])
    for place, value in patches:
        header[place] = value
    data = bytes(header) + struct.pack("<5f", 0.5, -0.25, 2.0, -1.0, 0.125) * 600
    as_promised(worker, "checkpoint", seeds.fitted(data) if fit else data)


@given(
    version=st.sampled_from(case.VERSIONS),
    patches=st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=9)), max_size=9),
    numbers=st.lists(st.tuples(st.integers(0, 2**20), st.floats(width=32)), max_size=9),
    cut=st.one_of(st.just(0), st.just(0), st.integers(-9, 9), INT32),
)
def test_mutated_bodies(
    worker: Worker, version: int, patches: list[tuple[int, bytes]], numbers: list[tuple[int, float]], cut: int
) -> None:
    data = bytearray(b"".join(case.parts(version)))
    start = len(case.pack_header(version))
    for place, value in [*patches, *((4 * place, struct.pack("<f", number)) for place, number in numbers)]:
        at = start + place % (len(data) - start - 9)
        data[at : at + len(value)] = value
    data = data[: max(0, len(data) + cut)] if cut < 0 else data + bytes(min(cut, 1000))
    as_promised(worker, "checkpoint", bytes(data))


BITS = st.sampled_from([b" ", b"a", b"b", b"<s>", b"<0x61>", b"\xc3\xa9", b"\xc3", b"\0"])
SPELLINGS = st.one_of(st.binary(min_size=1, max_size=4), st.lists(BITS, min_size=1, max_size=4).map(b"".join))
SCORES = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.0, -1e10]), st.floats(width=32, allow_nan=False))
TOKENS = st.lists(st.tuples(SPELLINGS, st.one_of(*[SCORES] * 9, st.floats(width=32))), max_size=40)


TEXTS = st.lists(SPELLINGS, max_size=30).map(b"".join)


@given(tokens=TOKENS, good=st.booleans(), text=TEXTS, cut=st.sampled_from([0, 0, 0, -1, -2]), junk=st.binary(max_size=9))
def test_mutated_tokenizers(
    worker: Worker, tokens: list[tuple[bytes, float]], good: bool, text: bytes, cut: int, junk: bytes
) -> None:
    packed = b"".join(struct.pack("<fi", score, len(spelling)) + spelling for spelling, score in tokens)
    packed = packed[: len(packed) + cut] if cut else packed + junk * (len(junk) > 6)
    text = text[:127]
    as_promised(worker, "tokenizer", bytes([128 * good + len(text)]) + (packed if good else bytes(4) + packed) + text)


@given(data=st.binary(max_size=600))
def test_bytes_that_are_nothing(worker: Worker, data: bytes) -> None:
    for target in ("checkpoint", "tokenizer"):
        as_promised(worker, target, data)


# ---------------------------------------------------------------------------
# the tokenizer

# Spellings that are text alone. One that holds "<" could be, or could be made of, the spelling of a byte: such tokens are
# decoded as that byte, by definition, whatever text they came from.
PLAIN_TEXTS = st.text(st.characters(exclude_characters="<", codec="utf-8"), min_size=1, max_size=5)
PLAIN = st.lists(st.tuples(PLAIN_TEXTS, SCORES), max_size=40)


def make_tokenizer(folder: Path, tokens: Sequence[tuple[str, float]]) -> llama2c.Tokenizer:
    vocabulary = [*case.BASE, (b" ", 0.0), *((text.encode(), score) for text, score in tokens)]
    (folder / "tokenizer.bin").write_bytes(case.pack_tokenizer(vocabulary))
    return llama2c.Tokenizer.open(folder / "tokenizer.bin", len(vocabulary))


@given(tokens=PLAIN, data=st.data())
def test_decode_gives_back_what_was_encoded(folder: Path, tokens: list[tuple[str, float]], data: st.DataObject) -> None:
    """Any text, NUL included; mostly one that the tokens are made for."""
    tokenizer = make_tokenizer(folder, tokens)
    known = [" ", "\0", "a", "<", *(text for text, _ in tokens)]
    text = data.draw(st.one_of(st.text(), st.lists(st.sampled_from(known), max_size=30).map("".join)))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text, eos=True)) == text
    assert tokenizer.decode(tokenizer.encode(text, bos=False)) == (" " + text if text else "")
    assert tokenizer.encode(text) == tokenizer.encode(text.encode())


@given(text=st.text())
def test_decode_gives_back_what_llama_2_encoded(shared: Path, text: str) -> None:
    tokenizer = llama2c.Tokenizer.open(shared / "models" / "tokenizer.bin", 32000)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(tokens=PLAIN, data=st.data())
def test_the_stream_of_ids_is_the_whole(folder: Path, tokens: list[tuple[str, float]], data: st.DataObject) -> None:
    """Whatever the ids, and wherever characters are broken: pieces joined are the text, and each is valid text itself."""
    tokenizer = make_tokenizer(folder, tokens)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=60))
    stream = tokenizer.text_stream()
    pieces = [*map(stream.feed, ids), stream.flush()]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert all(piece.encode().decode() == piece for piece in pieces)


# ---------------------------------------------------------------------------
# the model


@st.composite
def models(draw: Any) -> tuple[Config, int | None, int]:
    """A small shape, the group size of its Q8_0 or None, and the seed of its weights."""
    n_kv_heads, group, head_size = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 2 * draw(st.integers(1, 10))
    dim = n_kv_heads * group * head_size
    config = Config(
        dim=dim,
        hidden_dim=draw(st.integers(1, 70)),
        n_layers=draw(st.integers(1, 2)),
        n_heads=n_kv_heads * group,
        n_kv_heads=n_kv_heads,
        vocab_size=draw(st.integers(2, 70)),
        seq_len=400,
    )
    divisors = [None, *(size for size in range(1, dim + 1) if dim % size == 0 and config.hidden_dim * dim % size == 0)]
    return config, draw(st.sampled_from(divisors)), draw(st.integers(0, 2**32))


def make_transformer(folder: Path, model: tuple[Config, int | None, int], n_threads: int) -> llama2c.Transformer:
    config, group_size, seed = model
    weights = checkpoints.random_weights(config, np.random.default_rng(seed), shared_classifier=seed % 2 == 0)
    path = checkpoints.write(folder / "model.bin", config, 0 if group_size is None else 2, weights, group_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # fewer cores than threads
        return llama2c.Transformer(llama2c.Checkpoint.open(path, mmap=False), n_threads=n_threads)


def draw_tokens(data: st.DataObject, config: Config, low: int = 1) -> list[int]:
    """Mostly a few; now and then more than one step takes."""
    length = data.draw(st.one_of(st.integers(low, 40), st.integers(low, 40), st.just(300)))
    return [int(token) for token in np.random.default_rng(length).integers(0, config.vocab_size, length)]


def at_once(transformer: llama2c.Transformer, tokens: list[int]) -> np.ndarray:
    return transformer.forward(tokens, transformer.new_cache(), logits=None)


@FEW
@given(model=models(), n_threads=st.sampled_from([1, 1, 2, 3]), data=st.data())
def test_forward_in_chunks_is_forward_at_once(folder: Path, model: Any, n_threads: int, data: st.DataObject) -> None:
    transformer = make_transformer(folder, model, n_threads)
    tokens = draw_tokens(data, transformer.config)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(tokens)), max_size=4)) | {len(tokens)})
    whole = at_once(transformer, tokens)
    cache = transformer.new_cache()
    rows = [transformer.forward(tokens[start:stop], cache, logits=None) for start, stop in pairwise([0, *cuts])]
    np.testing.assert_array_equal(np.concatenate(rows), whole)
    again = data.draw(st.integers(0, len(tokens) - 1))
    cache.truncate(again)
    np.testing.assert_array_equal(transformer.forward(tokens[again:], cache), whole[-1])


@FEW
@given(model=models(), n_threads=st.sampled_from([1, 1, 2, 3]), data=st.data())
def test_a_batch_is_its_sequences(folder: Path, model: Any, n_threads: int, data: st.DataObject) -> None:
    """Each of them with something in its cache already, or nothing."""
    transformer = make_transformer(folder, model, n_threads)
    sequences = [draw_tokens(data, transformer.config) for _ in range(data.draw(st.integers(1, 5)))]
    expected = np.stack([at_once(transformer, tokens)[-1] for tokens in sequences])
    rows = []
    for tokens in sequences:
        cache, known = transformer.new_cache(), data.draw(st.integers(0, len(tokens) - 1))
        if known:
            transformer.forward(tokens[:known], cache)
        rows.append((tokens[known:], cache))
    np.testing.assert_array_equal(transformer.forward_batch(rows), expected)


@given(
    prompt=st.text(max_size=4),
    max_tokens=st.integers(0, 12),
    temperature=st.one_of(st.just(0.0), st.floats(0.01, 5)),
    top_p=st.floats(0, 1),
    top_k=st.integers(0, 300),
    penalty=st.floats(0.5, 2),
    seed=st.integers(0, 2**64 - 1),
    stop=st.lists(st.text(min_size=1, max_size=2), max_size=2),
)
def test_a_stream_is_its_completion(
    folder: Path,
    prompt: str,
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    penalty: float,
    seed: int,
    stop: list[str],
) -> None:
    llama = case.open_good(folder)
    prompt = prompt[:3]
    options: Any = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "repetition_penalty": penalty, "seed": seed}
    options |= {"max_tokens": max_tokens, "stop": stop}
    done = llama.generate(prompt, **options)
    pieces = list(llama.stream(prompt, **options))
    assert "".join(piece.text for piece in pieces) == done.text
    assert tuple(piece.token for piece in pieces) == done.tokens
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == [done.finish_reason] * bool(pieces)
    assert len(done.tokens) <= max_tokens
    assert not any(string in done.text for string in stop)
    if not stop:
        ids = llama.tokenizer.encode(prompt)
        sampler = llama2c.Sampler(temperature, top_p, top_k, 0.0, penalty, seed)
        config, ends = llama.transformer.config, llama.tokenizer.end_ids
        sequence = generation.Sequence(
            ids, sampler, vocab_size=config.vocab_size, max_length=config.seq_len, stop_tokens=ends, max_tokens=max_tokens
        )
        steps = generation.generate(llama.transformer, llama.transformer.new_cache(), sequence)
        assert tuple(step.token for step in steps) == done.tokens
