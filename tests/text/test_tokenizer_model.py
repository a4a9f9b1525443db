"""tokenizer.model against the sentencepiece package and transformers: ids for every setting, or one line that refuses it."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizer_models
from tokenizer_models import field, varint

from llama2c import Tokenizer
from llama2c.errors import ModelError, RequestError
from llama2c.text.sentencepiece import convert, pack

CORPUS = [
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.",
    "One day, she saw a big red ball. She wanted to play with it, but it was too high: 12 345 678!",
    "żółw and naïve café, 中文 中文, こんにちは 🐢🐢, it's they're\n\n\tdef f(x):\n        return x  # so",
] * 3
USER = ["<sep>", "<sep><sep>", "ay", "\u2581\u2581", "\u2581the\u2581", "中文", "aa", "aab"]
BASE = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 420, "normalization_rule_name": "identity"}
BASE |= {"remove_extra_whitespaces": False, "minloglevel": 2, "num_threads": 1, "allow_whitespace_only_pieces": True}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tinystories": {"remove_extra_whitespaces": True, "split_digits": True},
    "no dummy prefix": {"add_dummy_prefix": False},
    "neither": {"add_dummy_prefix": False, "remove_extra_whitespaces": True},
    "user-defined": {"user_defined_symbols": USER},
    "user-defined and all": {"user_defined_symbols": USER, "remove_extra_whitespaces": True},
    "user-defined, no prefix": {"user_defined_symbols": USER, "add_dummy_prefix": False},
    "control": {"control_symbols": ["<pad>", "ed", "the", "<0x41>x"], "pad_id": 3},
    "few characters": {"character_coverage": 0.98},
    "no split": {"split_by_whitespace": False, "split_by_unicode_script": False},
}


def train(**settings: Any) -> bytes:
    """A tokenizer.model."""
    package = pytest.importorskip("sentencepiece", reason="needs sentencepiece: pip install sentencepiece")
    written = io.BytesIO()
    package.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=written, **{**BASE, **settings})
    return written.getvalue()


def processor(content: bytes) -> Any:
    package = pytest.importorskip("sentencepiece", reason="needs sentencepiece: pip install sentencepiece")
    return package.SentencePieceProcessor(model_proto=content)


def texts(n: int, seed: int) -> list[str]:
    """Texts of words, runs of spaces, other white space, characters from anywhere, and user-defined pieces that touch."""
    rng = random.Random(seed)
    words = " ".join(CORPUS).split()
    parts = [*USER, *words, " ", " ", "  ", "   ", "\t", "\n", "\u2581", "\u3000", "é", "ß", "\0", "<s>", "</s>", "<pad>", "<0x41>"]
    parts += ["<unk>", "\n</s>\n", "the", "aaab", "🦊", "\ufffd", "\u200d", "7"]
    made = ["", " ", "  ", "\u2581", " \u2581 ", "a", " a", "a ", "a  b", " a  b  ", "\n a", "a\u2581b", "a \u2581 b\u2581 "]
    for _ in range(n):
        made.append("".join(rng.choices(parts, k=rng.randrange(12))))
        made.append("".join(chr(rng.choice((0x20, 0x61, 0xA0, 0x4E00, 0x1F600)) + rng.randrange(30)) for _ in range(8)))
    return made


def write(folder: Path, content: bytes, **files: Any) -> Path:
    """A tokenizer.model, and JSON files beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(content)
    for name, settings in files.items():
        (folder / f"{name}.json").write_text(json.dumps(settings))
    return folder / "tokenizer.model"


# ---------------------------------------------------------------------------
# ids


@pytest.mark.parametrize("name", list(SETTINGS))
def test_ids_are_those_of_sentencepiece(name: str, tmp_path: Path) -> None:
    content = train(**SETTINGS[name])
    theirs = processor(content)
    tokenizer = Tokenizer.open(write(tmp_path, content), theirs.vocab_size())
    for text in texts(600, seed=1):
        ids = theirs.encode(text)
        assert tokenizer.encode(text, bos=False) == ids, text
        assert tokenizer.encode(text.encode(), eos=True) == [1, *ids, 2]
        found = tokenizer.decode([1, *ids])
        expected = theirs.decode(ids)
        if SETTINGS[name].get("remove_extra_whitespaces"):  # theirs drops all spaces at the beginning, ours one
            found, expected = found.lstrip(" "), expected.lstrip(" ")
        assert found == expected
