"""What a fuzzer or a test does with an input: it opens the input as a user would, uses it if it opens, and checks the promise.

The promise: a bad file is a ValueError, an OSError or a MemoryError in one line; a file that opens is a model, or a tokenizer,
that gives the same results however it is used. Any other exception is a find.
"""

from __future__ import annotations

import re
import struct
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
import reference_text

from llama2c.formats.checkpoint import Checkpoint
from llama2c.sampler import Sampler
from llama2c.text.tokenizer import Tokenizer
from llama2c.transformer import Transformer

PROMISED = (ValueError, OSError, MemoryError)
MOST_BYTES = 1 << 16  # of a checkpoint: a model of this size takes a step in no time
BASE = [(b"<unk>", 0.0), (b"<s>", 0.0), (b"</s>", 0.0), *((b"<0x%02X>" % byte, 0.0) for byte in range(256))]


class FindError(Exception):
    """A promise is broken."""


def refused(error: Exception, path: Path) -> str:
    """The message of a refusal, which has to be one line that begins with the path."""
    message = str(error)
    if not message.startswith(f"{path}: ") or "\n" in message:
        raise FindError(f"expected one line that begins with the path, found {message!r}") from error
    return message.removeprefix(f"{path}: ")


# ---------------------------------------------------------------------------
# checkpoints


def checkpoint(data: bytes, folder: Path) -> str:
    """Open these bytes both ways; run what opens. -> "refused: ..." or "runs"."""
    if len(data) > MOST_BYTES:
        return "not tried"
    path = folder / "model.bin"
    path.write_bytes(data)
    warnings.simplefilter("ignore", RuntimeWarning)  # a window that is shorter than the context
    try:
        mapped = Checkpoint.open(path)
    except PROMISED as error:
        said = refused(error, path)
    else:
        said = None
    try:
        read = Checkpoint.open(path, mmap=False)
    except PROMISED as error:
        if refused(error, path) != said:
            raise FindError(f"expected what is said of the mapped file, {said!r}, found {error}") from error
        return f"refused: {said}"
    if said is not None:
        raise FindError(f"expected the refusal of the mapped file, {said!r}, found a model")
    run(mapped, read)
    return "runs"


def run(mapped: Checkpoint, read: Checkpoint) -> None:
    """The first and the last token in turn: at once, one by one and in a batch, mapped and read, all give the same bits."""
    config = mapped.config
    values(mapped)
    tokens = [(0, config.vocab_size - 1)[i % 2] for i in range(min(config.seq_len, 4))]
    one, other = Transformer(mapped, n_threads=1), Transformer(read, n_threads=1)
    with np.errstate(all="ignore"):
        whole = one.forward(tokens, one.new_cache(len(tokens)), logits=None)
        cache = other.new_cache(len(tokens))
        same("one by one", np.stack([other.forward([token], cache) for token in tokens]), whole)
        caches = [one.new_cache(len(tokens)) for _ in range(2)]
        batch = one.forward_batch([(tokens, caches[0]), (tokens[:1], caches[1])])
        same("in a batch", batch, whole[[-1, 0]])
        for options in ({"temperature": 0.0}, {"top_p": 0.5}, {"top_k": 3, "min_p": 0.1}):
            draw(whole[-1], options)


def values(opened: Checkpoint) -> None:
    """The keys of GGUF become values when they are asked for: any value, or a refusal."""
    for key in opened.metadata:
        try:
            value = opened.metadata[key]
        except PROMISED as error:
            refused(error, Path(opened.path))
            continue
        if isinstance(value, Sequence | np.ndarray) and len(list(value)) != len(value):
            raise FindError(f"expected {len(value)} elements of {key}, found {len(list(value))}")


def same(way: str, found: np.ndarray, expected: np.ndarray) -> None:
    if not np.array_equal(found, expected, equal_nan=True):
        raise FindError(f"expected the same bits {way}, found {found} and {expected}")


def draw(logits: np.ndarray, options: dict[str, float]) -> None:
    """A token of the vocabulary; where there is a NaN a ValueError, and nothing else."""
    try:
        token = Sampler(seed=1, **options).sample(logits)  # type: ignore[arg-type]
    except ValueError as error:
        if np.isfinite(logits).all():
            raise FindError(f"expected a token from finite logits, found {error}") from error
        return
    if not 0 <= token < len(logits) or np.isnan(logits).any():
        raise FindError(f"expected a token below {len(logits)}, or an error if there is a NaN, found {token}")


# ---------------------------------------------------------------------------
# tokenizers


def split(data: bytes) -> tuple[bytes, bytes]:
    """An input is a byte, then the bytes of a file, then a text -> file, text.

    The byte: how many bytes of the end are the text; plus 128 if 259 good tokens come before the others.
    """
    if not data:
        return b"", b""
    n_text = min(data[0] & 127, len(data) - 1)
    tokens, text = data[1 : len(data) - n_text], data[len(data) - n_text :]
    if data[0] & 128:
        tokens = pack(BASE) + tokens
    return tokens, text


def pack(vocabulary: list[tuple[bytes, float]]) -> bytes:
    """A tokenizer.bin."""
    tokens = (struct.pack("<fi", score, len(spelling)) + spelling for spelling, score in vocabulary)
    return struct.pack("<i", 0) + b"".join(tokens)


def tokenizer(data: bytes, folder: Path) -> str:
    """Open the file, with and without the number of tokens; hold what opens against plain Python. -> as checkpoint()."""
    tokens, text = split(data)
    path = folder / "tokenizer.bin"
    path.write_bytes(tokens)
    try:
        opened = Tokenizer.open(path)
    except PROMISED as error:
        said = refused(error, path)
        for vocab_size in (259, 262):
            try:
                Tokenizer.open(path, vocab_size)
            except PROMISED as other:
                refused(other, path)
            else:
                raise FindError(f"expected a refusal whatever the number of tokens, found {vocab_size}; without it: {said}")
        return f"refused: {said}"
    vocabulary = reference_text.read_vocabulary(path)
    if opened.vocab_size != len(vocabulary) or Tokenizer.open(path, len(vocabulary)).vocab_size != len(vocabulary):
        raise FindError(f"expected {len(vocabulary)} tokens, found {opened.vocab_size}")
    encodes(opened, vocabulary, text)
    decodes(opened, vocabulary, text)
    return "runs"


def encodes(tokenizer: Tokenizer, vocabulary: reference_text.Vocabulary, text: bytes) -> None:
    for bos in (True, False):
        found, expected = tokenizer.encode(text, bos=bos), reference_text.encode(vocabulary, text, bos)
        if found != expected:
            raise FindError(f"expected {expected}, found {found} for {text!r}, bos={bos}")


def decodes(tokenizer: Tokenizer, vocabulary: reference_text.Vocabulary, text: bytes) -> None:
    """Ids made from the bytes of the text: decoded as a whole, in a stream, and by the definition."""
    ids = [1, *(int.from_bytes(text[i : i + 2], "little") % len(vocabulary) for i in range(len(text)))]
    stream = tokenizer.text_stream()
    expected = b"".join(piece(vocabulary[token][0], token, before == 1) for before, token in pairwise([0, *ids]))
    for way, found in (("whole", tokenizer.decode(ids)), ("stream", "".join(map(stream.feed, ids)) + stream.flush())):
        if found != expected.decode(errors="replace"):
            raise FindError(f"expected {expected!r} from the {way} of {ids}, found {found!r}")


def piece(spelling: bytes, token: int, after_bos: bool) -> bytes:
    """The bytes of a token: none for 0 to 2; after BOS without a leading space; <0xHH> is a byte."""
    if token <= 2:
        return b""
    if after_bos:
        spelling = spelling.removeprefix(b" ")
    byte = re.fullmatch(rb"<0x([0-9A-Fa-f]{2})>", spelling)
    return bytes([int(byte[1], 16)]) if byte else spelling
