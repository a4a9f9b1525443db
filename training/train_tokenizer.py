"""Trains a tokenizer on a text: `python training/train_tokenizer.py corpus/train.txt tokenizer.bin --vocab-size 1024`.

sentencepiece finds the tokens (byte-pair encoding with byte fallback), and the script writes them as tokenizer.bin of llama2.c.
With the settings below, llama2c.Tokenizer encodes like sentencepiece. This is checked on stories before the file is written.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from itertools import islice
from pathlib import Path

import sentencepiece
from data import read_stories

from llama2c import Tokenizer
from llama2c.text.sentencepiece import pack

N_CHECKED = 1000  # stories


def train(text: Path, vocab_size: int) -> sentencepiece.SentencePieceProcessor:
    """The same text gives the same tokens: nothing is random. The input is whole stories, so that newlines are learned."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=read_stories(text),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,  # ids 3 to 258: text that is not in the vocabulary is spelled in bytes
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",  # llama2c does not normalise text either
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,  # a text gets a leading space, as in llama2.c
        allow_whitespace_only_pieces=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        max_sentence_length=1 << 20,  # in bytes: longer stories would be left out
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def check(tokenizer: Tokenizer, processor: sentencepiece.SentencePieceProcessor, text: Path) -> int:
    """Encodes and decodes the first stories of `text` with both. Returns their number. ValueError if they disagree."""
    n = 0
    for n, story in enumerate(islice(read_stories(text), N_CHECKED), start=1):
        expected, found = [tokenizer.bos_id, *processor.encode(story)], tokenizer.encode(story)
        if found != expected:
            raise ValueError(f"{text}: story {n}: expected the ids of sentencepiece, {expected}, found {found}")
        decoded = tokenizer.decode(found)
        if decoded != story:
            raise ValueError(f"{text}: story {n}: decoding: expected {story!r}, found {decoded!r}")
    return n


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="stories in UTF-8, with an empty line between two")
    parser.add_argument("path", type=Path, help="the file to write")
    parser.add_argument("--vocab-size", type=int, default=2048, help="tokens, including the 259 fixed ones (default 2048)")
    options = parser.parse_args(arguments)
    unfinished = options.path.with_name(options.path.name + ".tmp")
    try:
        processor = train(options.text, options.vocab_size)
        unfinished.write_bytes(pack(processor.serialized_model_proto())[0])
        n = check(Tokenizer.open(unfinished, options.vocab_size), processor, options.text)
        os.replace(unfinished, options.path)
    except (ValueError, OSError, RuntimeError) as error:  # sentencepiece raises RuntimeError
        unfinished.unlink(missing_ok=True)
        print(f"train_tokenizer: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{options.path}: {options.vocab_size} tokens; {n} stories are encoded like sentencepiece does, and decoded back")
    return 0


if __name__ == "__main__":
    sys.exit(main())
