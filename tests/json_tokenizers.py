"""Tokenizers for tests, made with the tokenizers package as those of real models are, with the files beside them.

Each maker gives a tokenizers.Tokenizer; `save` writes it into a folder. Chat templates are of the kinds that models have.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

tokenizers = pytest.importorskip("tokenizers", reason="needs the package tokenizers")
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

CORPUS = [
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.",
    "One day, she saw a big red ball. She wanted to play with it, but it was too high: 12 345 678!",
    "żółw and naïve café, 中文 中文, こんにちは 🐢🐢, it's they're\n\n\tdef f(x):\n        return x  # so",
] * 3
ALPHABET = "ab eéżó中🐢\0\n\t'~0 7.  ﷽\u200d\ufffd<>|[]"  # what random texts are made of
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train(pre_tokenizer: Any, alphabet: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of byte-pair encoding."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def byte_level(bos: str | None, special: list[str]) -> Any:
    """As Llama 3 has it: bytes spelled as characters, special tokens after them; perhaps a BOS in front."""
    split = [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    pre_tokenizer = pre_tokenizers.Sequence(split)
    package = tokenizers.Tokenizer(models.BPE(*train(pre_tokenizer, pre_tokenizers.ByteLevel.alphabet()), ignore_merges=True))
    package.pre_tokenizer = pre_tokenizer
    package.decoder = decoders.ByteLevel()
    package.add_special_tokens(special)
    package.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos is not None:
        front = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, package.token_to_id(bos))]
        )
        package.post_processor = processors.Sequence([package.post_processor, front])
    return package


def llama3() -> Any:
    special = "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>".split()
    return byte_level("<|begin_of_text|>", special)


def chatml() -> Any:
    """As Qwen 2 has it: no BOS in front of a text."""
    return byte_level(None, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])


def llama2() -> Any:
    """As Llama 2 has it: the tokens of SentencePiece, a space before the text, and bytes for characters without a token."""
    vocab, merges = train(pre_tokenizers.Metaspace(), [])
    fixed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    ids = {spelling: id for id, spelling in enumerate(dict.fromkeys([*fixed, *vocab]))}
    package = tokenizers.Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    package.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    package.decoder = decoders.Sequence(steps)
    package.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1), ("<unk>", 0)]
    )
    package.add_special_tokens(["<unk>", "<s>", "</s>"])
    return package


# The settings beside each; tokens are written as a str and as a dict.
MAKERS = {"llama3": llama3, "chatml": chatml, "llama2": llama2}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "chatml": {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "llama2": {
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False, "special": True},
        "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": False, "special": True},
        "unk_token": "<unk>",
    },
}


def save(folder: Path, package: Any, tokenizer_config: dict[str, Any] | None = None, **files: Any) -> Path:
    """Write tokenizer.json, tokenizer_config.json and others (generation_config={...}); the path of the first."""
    folder.mkdir(exist_ok=True)
    package.save(str(folder / "tokenizer.json"))
    for name, content in {"tokenizer_config": tokenizer_config, **files}.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / "tokenizer.json"


def texts(rng: random.Random, n: int) -> list[str]:
    """Random texts: any characters of the corpus, of ALPHABET, and some from anywhere."""
    common = "".join(CORPUS)
    made = ["", " ", "  a", " a ", "\n", "▁", "<0x41>", "a▁ b", "\ufeffa", *CORPUS]
    for _ in range(n):
        k = rng.randrange(30)
        pool = rng.choice([common, ALPHABET, [chr(c) for c in range(0x20, 0x2000)] + [chr(0x1F600 + i) for i in range(60)]])
        made.append("".join(rng.choices(pool, k=k)))
    return made
