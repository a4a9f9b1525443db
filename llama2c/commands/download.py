"""The verb `download`: flags in, the path of the model out. llama2c/downloads.py does the work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..downloads import download, find_source, is_complete
from ..errors import RequestError
from .parser import Parser
from .terminal import UsageError, byte_bar, put, say

NOTES = """\
MODEL is one of
    stories260K, stories15M, stories42M, stories110M
    smollm2-135m, smollm2-360m, smollm2-1.7b, tinyllama-1.1b, llama-3.2-1b,
        which are GGUF files to chat with
    REPO_ID, a folder with .safetensors on the Hugging Face hub
    REPO_ID:FILE, a GGUF file or a checkpoint of llama2.c there

The path of the model goes to stdout, messages go to stderr. Afterwards the
name of the model is enough, in Python too: llama2c.load("stories15M").

Models are stored in the folder LLAMA2C_CACHE. The default is llama2c in
XDG_CACHE_HOME, or else ~/.cache/llama2c. A checkpoint of llama2.c with 32000
tokens gets the tokenizer of Llama 2 from https://github.com/karpathy/llama2.c,
or from LLAMA2C_TOKENIZER_URL. Others need --tokenizer.

examples:
    python -m llama2c download stories15M
    python -m llama2c stories15M
    python -m llama2c download HuggingFaceTB/SmolLM2-135M-Instruct
    python -m llama2c download karpathy/tinyllamas:stories15M.bin
"""


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m llama2c download",
        description="Download a model from the Hugging Face hub, and its tokenizer.",
        epilog=NOTES,
    )
    parser.add_argument("model", metavar="MODEL", help="a name, REPO_ID or REPO_ID:FILE (see below)")
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="of a checkpoint of llama2.c: a .bin, .json or .model file of the same repository (default: that of Llama 2)",
    )
    return parser


def run(argv: Sequence[str]) -> None:
    """Downloads the model that the command line names, unless it is there already, and prints its path."""
    options = make_parser().parse_args(argv)
    try:
        source = find_source(options.model, options.tokenizer)
    except RequestError as error:
        flag = "--" if error.param == "tokenizer" else ""
        raise UsageError(f"{flag}{error}") from None
    if is_complete(source):
        say(f"{source.name}: already downloaded")
    else:
        with byte_bar() as progress:
            download(options.model, options.tokenizer, progress)
        paths = (
            source.path.iterdir() if source.file is None else (source.path.with_name(Path(part).name) for part in source.parts)
        )
        say(f"{source.name}: downloaded, {sum(path.stat().st_size for path in paths) / 1e6:.1f} MB")
    put(os.fsdecode(source.path) + "\n")
