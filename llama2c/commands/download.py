"""The verb `download`: a model from the Hugging Face hub into the cache, its tokenizer beside it.

A file gets its name only when it is whole and opens; whatever goes wrong is told in one line.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..formats.checkpoint import Checkpoint
from ..locate import STORIES, HubModel, cache_folder, find_hub_model
from ..text.tokenizer import Tokenizer
from .terminal import Parser, UsageError, say

# The tokenizer of Llama 2, as llama2.c has it; LLAMA2C_TOKENIZER_URL names another place for the same file.
TOKENIZER_URL = "https://github.com/karpathy/llama2.c/raw/master/tokenizer.bin"
TOKENIZER_SIZE = 433869  # bytes
TOKENIZER_TOKENS = 32000
TIMEOUT = 10  # seconds without an answer

NOTES = """\
stdout gets the path of the model; messages go to stderr. Afterwards its name is enough, in Python too:
    python -m llama2c download stories15M
    python -m llama2c stories15M

Models lie in LLAMA2C_CACHE, else in llama2c in XDG_CACHE_HOME, else in ~/.cache/llama2c. A model of 32000 tokens gets the
tokenizer of Llama 2 from https://github.com/karpathy/llama2.c (or from LLAMA2C_TOKENIZER_URL); any other needs --tokenizer.
"""


def run(argv: Sequence[str]) -> None:
    """Download what the command line names, unless it is there, and print its path."""
    parser = Parser(
        prog="python -m llama2c download",
        description="Fetch a model from the Hugging Face hub, with its tokenizer.",
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help=f"{', '.join(STORIES)}, or REPO_ID:FILE")
    parser.add_argument("--tokenizer", metavar="FILE", help="with REPO_ID:FILE: its tokenizer, in the same repository")
    options = parser.parse_args(argv)
    source = find_hub_model(options.model)
    if source is None:
        raise UsageError(f"{options.model}: expected {', '.join(STORIES)} or REPO_ID:FILE, found neither")
    if options.tokenizer is not None:
        if source.name in STORIES:
            raise UsageError(f"--tokenizer: expected REPO_ID:FILE with it, found {source.name}, whose tokenizer is known")
        source = source._replace(tokenizer=options.tokenizer)
    download(source)
    sys.stdout.buffer.write(os.fsencode(source.path) + b"\n")
    sys.stdout.buffer.flush()


def download(source: HubModel) -> None:
    """Fetch what is missing of a model and its tokenizer. OSError or ValueError: one line; nothing half-written is left."""
    if source.path.is_file() and source.tokenizer_path.is_file():
        say(f"{source.name}: already there")
        return
    try:
        with staging_folder(source.path.parent) as staging:
            if not source.path.is_file():
                fetch_model(source, staging)
            if not source.tokenizer_path.is_file():
                fetch_tokenizer(source, staging)
    except OSError as error:
        if not error.strerror:  # one of ours
            raise
        found = f"{error.filename or cache_folder()}: expected a place to write to, found: {error.strerror}"
        raise OSError(found) from None
    say(f"{source.name}: downloaded, {source.path.stat().st_size / 1e6:.1f} MB")


@contextlib.contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` for files that have no name yet. After an error it stays if a download can be resumed."""
    staging = folder / ".download"
    staging.mkdir(parents=True, exist_ok=True)
    done = False
    try:
        yield staging
        done = True
    finally:
        if done or not any(staging.rglob("*.incomplete")):
            shutil.rmtree(staging, ignore_errors=True)
        with contextlib.suppress(OSError):  # it holds something
            folder.rmdir()


def give_name(staged: Path, final: Path, what: str, check: Callable[[Path], object]) -> None:
    """Move a file to its place if `check` opens it; else remove it and raise ValueError."""
    try:
        check(staged)
    except (OSError, ValueError) as error:
        staged.unlink(missing_ok=True)
        raise ValueError(f"{what}{str(error).removeprefix(str(staged))}") from None
    os.replace(staged, final)


def fetch_model(source: HubModel, staging: Path) -> None:
    staged = fetch_from_hub(source.repo_id, source.file, staging)
    give_name(staged, source.path, f"{source.repo_id}:{source.file}", Checkpoint.open)


def fetch_tokenizer(source: HubModel, staging: Path) -> None:
    """The tokenizer of a model that is there: from its repository, or that of Llama 2."""
    vocab_size = Checkpoint.open(source.path).config.vocab_size
    if source.tokenizer is not None:
        what = f"{source.repo_id}:{source.tokenizer}"
        staged = fetch_from_hub(source.repo_id, source.tokenizer, staging)
    elif vocab_size == TOKENIZER_TOKENS:
        what = os.environ.get("LLAMA2C_TOKENIZER_URL") or TOKENIZER_URL
        staged = staging / "tokenizer.bin"
        staged.write_bytes(fetch_url(what, TOKENIZER_SIZE))
    else:
        expected = f"expected {TOKENIZER_TOKENS} tokens, or --tokenizer FILE for another number"
        raise ValueError(f"{source.name}: {expected}, found {vocab_size}")
    give_name(staged, source.tokenizer_path, what, lambda path: Tokenizer.open(path, vocab_size))


# ---------------------------------------------------------------------------
# the network


def fetch_url(url: str, size: int) -> bytes:
    """The content of a URL, which must have `size` bytes."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            content: bytes = response.read(size + 1)
    except urllib.error.HTTPError as error:
        raise OSError(f"{url}: expected {size} bytes, found HTTP status {error.code}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise OSError(f"{url}: expected {size} bytes, found: {getattr(error, 'reason', error)}") from None
    if len(content) != size:
        raise ValueError(f"{url}: expected {size} bytes, found {'more' if len(content) > size else len(content)}")
    return content


def fetch_from_hub(repo_id: str, file: str, staging: Path) -> Path:
    """A file of a repository, put into `staging`, with the size the hub has announced."""
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url  # slow to import, and an extra
        from huggingface_hub.utils import logging
    except ImportError:
        raise OSError("download: expected the package huggingface_hub, found none: pip install 'llama2c[hub]'") from None
    logging.set_verbosity_error()  # its warnings would stand beside our one line
    what = f"{repo_id}:{file}"
    try:
        # Asked first, as this does not try again and again where there is no network; hf_hub_download would, for a minute.
        announced = get_hf_file_metadata(hf_hub_url(repo_id, file))
        staged = Path(hf_hub_download(repo_id, file, local_dir=staging))
    except Exception as error:  # the library passes on those of its HTTP libraries, which change from version to version
        on_disk = isinstance(error, OSError) and error.strerror and not isinstance(error, (ConnectionError, TimeoutError))
        if on_disk:
            raise
        raise OSError(f"{what}: {hub_error(error)}") from None
    found = staged.stat().st_size
    if announced.size is not None and found != announced.size:
        staged.unlink()
        raise ValueError(f"{what}: expected {announced.size} bytes as the hub says, found {found}")
    return staged


def hub_error(error: Exception) -> str:
    """What an error of huggingface_hub means, as "expected ..., found ..." in one line."""
    from huggingface_hub import constants, utils

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, utils.RepositoryNotFoundError):  # gated ones too
        return f"expected a repository on {constants.ENDPOINT} that anyone may read, found none (HTTP status {status})"
    if status == 404:
        return "expected a file of the repository, found none of that name (HTTP status 404)"
    if status is not None:
        return f"expected the file from {constants.ENDPOINT}, found HTTP status {status}"
    cause = error.__cause__ if isinstance(error, utils.LocalEntryNotFoundError) and error.__cause__ else error
    lines = str(cause).splitlines() or [type(cause).__name__]
    return f"expected the file from {constants.ENDPOINT}, found: {lines[0]}"
