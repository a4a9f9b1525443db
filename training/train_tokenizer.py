"""Train a tokenizer on a text: `python training/train_tokenizer.py corpus/train.txt tokenizer.bin --vocab-size 1024`.

sentencepiece finds the tokens (byte-pair encoding, with bytes to fall back on); written is the tokenizer.bin of llama2.c. Its
settings are those with which llama2c.Tokenizer encodes as sentencepiece does; that is checked on stories before it is written.
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
    """The same text gives the same tokens: nothing is drawn at random. Whole stories go in, so that newlines are learned."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=read_stories(text),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,  # ids 3 to 258: what is not in the vocabulary is spelled in bytes
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",  # llama2c changes no text either
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,  # a text gets a leading space, as in llama2.c
        allow_whitespace_only_pieces=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        max_sentence_length=1 << 20,  # bytes: longer stories would be left out
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def check(tokenizer: Tokenizer, processor: sentencepiece.SentencePieceProcessor, text: Path) -> int:
    """Encode and decode the first stories of `text` with both; return how many. ValueError: they disagree."""
    n = 0
    for n, story in enumerate(islice(read_stories(text), N_CHECKED), start=1):
        expected, found = [tokenizer.bos_id, *processor.encode(story)], tokenizer.encode(story)
        if found != expected:
            raise ValueError(f"{text}: story {n}: expected the ids of sentencepiece, {expected}, found {found}")
        decoded = tokenizer.decode(found)
        if decoded != story:
            raise ValueError(f"{text}: story {n}: expected it back after decoding, {story!r}, found {decoded!r}")
    return n


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="stories, UTF-8, an empty line between two")
    parser.add_argument("path", type=Path, help="the file to write")
    parser.add_argument("--vocab-size", type=int, default=2048, help="tokens, with the 259 fixed ones (default 2048)")
    options = parser.parse_args(arguments)
    unfinished = options.path.with_name(options.path.name + ".tmp")
    try:
        processor = train(options.text, options.vocab_size)
        unfinished.write_bytes(pack(processor.serialized_model_proto())[0])
        n = check(Tokenizer.open(unfinished, options.vocab_size), processor, options.text)
        os.replace(unfinished, options.path)
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: what sentencepiece raises
        unfinished.unlink(missing_ok=True)
        print(f"train_tokenizer: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{options.path}: {options.vocab_size} tokens; {n} stories encoded as by sentencepiece, and decoded back")
    return 0


if __name__ == "__main__":
    sys.exit(main())
