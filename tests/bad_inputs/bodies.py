"""Checkpoint bodies: cut, too long, or with NaN and infinities. Where these are not checked, results are still defined."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import reference

import llama2c

from .case import (
    GROUP_SIZE,
    MODEL,
    VERSIONS,
    Case,
    CommandLineError,
    command_line,
    content,
    good_model,
    order,
    pack_tokenizer,
    parts,
    refused,
    weights,
)

NORMS = ("rms_att_weight", "rms_ffn_weight", "rms_final_weight")
MATRICES = ("token_embedding_table", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "wcls")
TOKENS = [1, 260, 5]
BAD_NUMBERS = {"NaN": np.nan, "Inf": np.inf, "-Inf": -np.inf}
NO_DISTRIBUTION = "logits: expected numbers that make a distribution, found NaN or infinity"


# ---------------------------------------------------------------------------
# the length


def lengths() -> Iterator[Case]:
    for version in VERSIONS:
        pieces, names = parts(version), order(version)
        whole = b"".join(pieces)
        edges = list(itertools.accumulate(len(piece) for piece in pieces))
        assert len(pieces) == len(names)
        said = f"expected {len(whole)} bytes according to the v{version} header"
        for name, edge in zip(names, edges, strict=True):
            for delta, title in ((-1, "a byte before"), (0, "at"), (1, "a byte after")):
                cut = edge + delta
                if cut == len(whole):
                    continue
                title = f"v{version} body: " + (f"cut {title} the end of {name}" if cut < len(whole) else "one byte too many")
                words = ("expected ", f"found {cut}") if cut < edges[0] else (said, f"found {cut}")
                yield from refused(title, content((whole + b"\0")[:cut]), ValueError, *words)
        yield from refused(f"v{version} body: twice", content(whole + whole[edges[0] :]), ValueError, said)


# ---------------------------------------------------------------------------
# norms: small, read anyway, so they are looked at


def norms() -> Iterator[Case]:
    for version in VERSIONS:
        for name in NORMS:
            for title, value in BAD_NUMBERS.items():
                for place in (0, -1):
                    numbers = weights()
                    numbers[name].reshape(-1)[place] = value
                    index = np.unravel_index(numbers[name].size - 1 if place else 0, numbers[name].shape)
                    where = ", ".join(str(i) for i in index)
                    words = f"{name}[{where}]: expected a finite number, found {value}"
                    data = b"".join(parts(version, numbers))
                    place_name = "last" if place else "first"
                    yield from refused(f"v{version} body: {title} {place_name} in {name}", content(data), ValueError, words)


# ---------------------------------------------------------------------------
# other weights: not looked at, which would read the whole file. NaN comes out where NaN goes in, and the sampler says so.


def spoilt(version: int, name: str, value: float) -> bytes:
    """The good file with this value in one weight, in v2 in one scale: the first of row 1, which in the embedding is BOS."""
    numbers = weights()
    rows, cols = numbers[name].shape[-2:]
    if version < 2:
        numbers[name].reshape(-1, cols)[1, 0] = value
        return b"".join(parts(version, numbers))
    pieces = parts(version, numbers)
    at = order(version).index(name)
    place = rows * cols + cols // GROUP_SIZE * 4
    piece = bytearray(pieces[at])
    piece[place : place + 4] = np.float32(value).tobytes()
    pieces[at] = bytes(piece)
    return b"".join(pieces)


def logits_of(path: Path) -> np.ndarray:
    """After each of TOKENS, at once and one by one, by one thread and by two: all the same bits, NaN or not."""
    checkpoint = llama2c.Checkpoint.open(path)
    found = []
    for n_threads in (1, 2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # fewer cores than threads
            transformer = llama2c.Transformer(checkpoint, n_threads=n_threads)
        found.append(transformer.forward(TOKENS, transformer.new_cache(), logits=None))
        cache = transformer.new_cache()
        found.append(np.stack([transformer.forward([token], cache) for token in TOKENS]))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    return found[0]


def sample_from(path: Path) -> int:
    """A draw from the logits after the first token; they must not be finite."""
    logits = logits_of(path)[0]
    assert not np.isfinite(logits).all()
    return llama2c.Sampler(temperature=1.0, seed=1).sample(logits)


def take_from(path: Path) -> int:
    """The same, without a coin."""
    return llama2c.Sampler(temperature=0.0).sample(logits_of(path)[0])


def generate_from(path: Path) -> llama2c.Completion:
    path.with_name("tokenizer.bin").write_bytes(pack_tokenizer())
    return llama2c.load(path, n_threads=1).generate("a a", temperature=1.0, seed=1)


def tell_from(path: Path) -> None:
    path.with_name("tokenizer.bin").write_bytes(pack_tokenizer())
    command_line(path)


def spoilt_weights() -> Iterator[Case]:
    doors: dict[str, tuple[Callable[[Path], object], type[Exception]]] = {
        "sample": (sample_from, ValueError),
        "take": (take_from, ValueError),
        "generate": (generate_from, ValueError),
        "command line": (tell_from, CommandLineError),
    }
    for version in VERSIONS:
        for name in MATRICES:
            for title, value in BAD_NUMBERS.items():
                if name == "wcls" and title != "NaN":
                    continue  # see infinite_logit
                data = spoilt(version, name, value)
                kind = "the scales of " if version == 2 else ""
                for door, (act, error) in doors.items():
                    yield Case(
                        f"v{version} body: {title} in {kind}{name} ({door})",
                        lambda folder, data=data, act=act: act(content(data)(folder)),
                        error,
                        (NO_DISTRIBUTION,),
                    )


def infinite_logit(version: int, value: float) -> Callable[[Path], object]:
    """An infinity in the classifier is one logit, of either sign: at -Inf its token is never drawn, +Inf is the largest."""

    def run(folder: Path) -> object:
        logits = logits_of(content(spoilt(version, "wcls", value))(folder))[0]
        finite = np.isfinite(logits)
        assert list(np.flatnonzero(~finite)) == [1] and not np.isnan(logits[1])
        best = int(np.argmax(logits))
        assert llama2c.Sampler(temperature=0.0).sample(logits) == best
        sampler = llama2c.Sampler(temperature=1.0, seed=1)
        if best != 1:
            assert all(sampler.sample(logits) != 1 for _ in range(300))
            return None
        try:
            sampler.sample(logits)
        except ValueError as error:
            assert str(error) == NO_DISTRIBUTION
            return None
        raise AssertionError("an infinite logit makes no distribution")

    return run


def extreme(value: float) -> Callable[[Path], object]:
    """A model of which every number but the norms is `value`: whatever the logits are, all ways give the same ones."""

    def run(folder: Path) -> object:
        numbers = weights()
        for name in MATRICES:
            numbers[name][:] = value
        path = content(b"".join(parts(0, numbers)))(folder)
        logits = logits_of(path)
        if np.isfinite(logits).all():
            return llama2c.Sampler(temperature=1.0, seed=1).sample(logits[-1])
        return sample_from(path)

    return run


def lowest_bytes(folder: Path) -> None:
    """int8 -128, which no exporter writes: exactly what the definition says, in the reference's integers."""
    pieces = parts(2)
    shapes = {name: tensor.shape for name, tensor in weights().items()}
    for at, name in enumerate(order(2)):
        if name in MATRICES:
            n_values = shapes[name][-2] * shapes[name][-1]
            stride = n_values + n_values // GROUP_SIZE * 4
            piece = bytearray(pieces[at])
            for start in range(0, len(piece), stride):
                piece[start : start + n_values : 2] = b"\x80" * len(range(0, n_values, 2))
            pieces[at] = bytes(piece)
    path = content(b"".join(pieces))(folder)
    found = logits_of(path)
    expected = reference.Reference.of_v2(path).forward(TOKENS).logits
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def nan_in_rope_tables(folder: Path) -> None:
    """Floats that no one reads any more: checkpoints.py fills them with NaN, and the model is as good as ever."""
    logits = logits_of(good_model(folder))
    expected = reference.Reference(MODEL, weights()).forward(TOKENS).logits
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def defined_results() -> Iterator[Case]:
    for version in VERSIONS:
        for title, value in list(BAD_NUMBERS.items())[1:]:
            kind = "the scales of " if version == 2 else ""
            yield Case(f"v{version} body: {title} in {kind}wcls", infinite_logit(version, value), None)
    for value in (0.0, 1e-45, 1e-40, 1e-20, 1e15, 1e20, 3e38, -3e38):  # sums of squares that are zero, denormal or infinite
        yield Case(f"v0 body: all weights {value}", extreme(value), None)
    for title, value in BAD_NUMBERS.items():
        yield Case(f"v0 body: all weights {title}", extreme(value), ValueError, (NO_DISTRIBUTION,))
    yield Case("v2 body: int8 -128", lowest_bytes, None)
    yield Case("v0 body: NaN in the rope tables", nan_in_rope_tables, None)


CASES = [*lengths(), *norms(), *spoilt_weights(), *defined_results()]
