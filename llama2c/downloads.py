"""Downloads a model from the Hugging Face hub into the cache folder: a checkpoint with its tokenizer, a GGUF file, or a folder.

A file or a folder gets its final name only when it is complete and opens. Nothing here prints; `progress` is called instead.
"""

from __future__ import annotations

import contextlib
import http.client
import inspect
import os
import shutil
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from .errors import FileError, ModelError, RequestError, file_error
from .formats.checkpoint import Checkpoint
from .locate import (
    CONFIG,
    GGUF,
    HF_TOKENIZERS,
    NAMES,
    PART,
    TOKENIZERS,
    HubModel,
    cache_folder,
    find_hub_model,
    tokenizer_in,
    tokenizer_names,
)
from .text.tokenizer import Tokenizer

try:
    import fcntl
except ImportError:  # not a Unix: downloads of the same model do not wait for each other
    fcntl = None  # type: ignore[assignment]

Progress: TypeAlias = Callable[[int, "int | None", str], None]  # (bytes so far, bytes in all, name of the file)

# The tokenizer of Llama 2, as llama2.c has it. LLAMA2C_TOKENIZER_URL can name another place with the same file.
TOKENIZER_URL = "https://github.com/karpathy/llama2.c/raw/master/tokenizer.bin"
TOKENIZER_SIZE = 433869  # bytes
TOKENIZER_TOKENS = 32000
TIMEOUT = 10  # seconds without an answer
BLOCK = 1 << 16  # bytes read at once from a URL
FOLDER_FILES = (".safetensors", ".json", ".pt", ".pth", ".model")  # endings of files that are no model alone
SHOWN = 20  # files of a repository that a message lists


def download(model: str, tokenizer: str | None = None, progress: Progress | None = None) -> Path:
    """Downloads a model with its tokenizer, unless it is in the cache already, and returns the path of the model.

    model      "stories260K", "stories15M", "stories42M" or "stories110M"; "smollm2-135m" or another name of locate.CHATS, a
               GGUF file; or a model on the Hugging Face hub. REPO_ID is a folder with config.json and .safetensors, of which it
               fetches what llama2c reads: "HuggingFaceTB/SmolLM2-135M-Instruct". REPO_ID:FILE is a GGUF file (of a split one,
               the first part, with which the others come), or a checkpoint of llama2.c: "karpathy/tinyllamas:stories15M.bin"
    tokenizer  only with a checkpoint of llama2.c: the tokenizer, a .bin, .json or .model file of the same repository. None: the
               tokenizer of Llama 2, which fits models of 32000 tokens. A tokenizer that is already beside the model is kept.
    progress   called as progress(done, total, name) while a file arrives: its bytes so far, its size in bytes (None if the
               server does not say), and "REPO_ID:FILE" or the URL. It may be called from another thread. With versions of
               huggingface_hub that do not report their progress there are two calls, at the start and at the end. An
               exception that it raises ends the download and is passed on.

    Needs the package huggingface_hub. Waits for another process on this machine that is downloading the same model.

    RequestError: no such name, a tokenizer for a model whose tokenizer is known, or none for a model that needs one.
    ModelError: a downloaded file does not open, or the repository has no model that llama2c reads. OSError: huggingface_hub is
    missing, or the network or the disk failed (then a FileError with the name of the file, and the errno if the system gave
    one). After an error no incomplete file or folder has a final name.
    """
    source = find_source(model, tokenizer)
    if is_complete(source):
        return source.path
    report = Report(progress)
    try:
        with staging_folder(working_folder(source), keeps_files=source.file is None or source.is_gguf) as staging:
            if source.file is None:
                if not is_complete(source):
                    fetch_folder(source, staging, report)
            else:
                if not source.path.is_file():
                    fetch_model(source, staging, report)
                if not is_complete(source):
                    fetch_tokenizer(source, staging, report)
    except OSError as error:
        if error is report.error or isinstance(error, FileError) or not error.strerror:  # says it all
            raise
        raise file_error(error, error.filename or cache_folder(), "a place to write to") from None
    return source.path


def find_source(model: str, tokenizer: str | None = None) -> HubModel:
    """What to download, from the arguments of download(). Errors: those of download() that concern the arguments."""
    for param, value in (("model", model), ("tokenizer", tokenizer)):
        if not isinstance(value, str) and (param, value) != ("tokenizer", None):
            raise TypeError(f"{param}: expected a str, found {type(value).__name__}")
    source = find_hub_model(model)
    if source is None:
        others = "or REPO_ID or REPO_ID:FILE for a model of the Hugging Face hub"
        raise RequestError(f"{model}: unknown model; use {', '.join(NAMES)}, {others}", "model")
    check_file(source)
    if tokenizer is None:
        return source
    if source.file is None or source.is_gguf or model in NAMES:
        raise RequestError(
            f"tokenizer: {model} has a known tokenizer; only a checkpoint of llama2.c takes another one", "tokenizer"
        )
    if find_hub_model(f"{source.repo_id}:{tokenizer}") is None:
        raise RequestError(f"tokenizer: expected the path of a file in {source.repo_id}, found {tokenizer!r}", "tokenizer")
    return source._replace(tokenizer=tokenizer)


def check_file(source: HubModel) -> None:
    """RequestError: llama2c does not read such a file alone."""
    file = source.file or ""
    if file.endswith(FOLDER_FILES):
        folder = f"`python -m llama2c download {source.repo_id}` fetches the folder"
        raise RequestError(
            f"{source.name}: expected a GGUF file or a checkpoint of llama2.c, found a part of a folder: {folder}", "model"
        )
    part = PART.fullmatch(file)
    if part is not None and not (is_whole(file) and source.parts):
        first = f"{source.repo_id}:{part[1]}-00001-of-{part[3]}{GGUF}"
        raise RequestError(f"{source.name}: expected the first part, with which the others come: {first}", "model")


def is_complete(source: HubModel) -> bool:
    """Whether the model and a tokenizer are in the cache. A folder, or the first part of a GGUF file, comes last."""
    if source.file is None:
        return (source.path / CONFIG).is_file()
    return source.path.is_file() and (source.is_gguf or has_tokenizer(source))


def has_tokenizer(source: HubModel) -> bool:
    return any(source.path.with_name(name).is_file() for name in TOKENIZERS)


class Report:
    """Passes the bytes of one file after the other on to a progress callback. `error` is what the callback raised."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.error: Exception | None = None
        self.name = ""
        self.total: int | None = None
        self.done = -1

    def start(self, name: str, total: int | None) -> None:
        self.name, self.total, self.done = name, total, -1
        self(0)

    def __call__(self, done: int) -> None:
        """`done` bytes have arrived. Fewer than before (a download that starts again) are not reported."""
        if self.error is not None:  # raised in a thread that did not pass it on
            raise self.error
        if self.progress is None or done <= self.done:
            return
        self.done = done
        try:
            self.progress(done, self.total, self.name)
        except Exception as error:
            self.error = error
            raise


# ---------------------------------------------------------------------------
# files


def working_folder(source: HubModel) -> Path:
    """Where a model is put together. A file is moved on from a folder inside it; a folder is made beside its final name."""
    return source.path.with_name(f".{source.path.name}") if source.file is None else source.path.parent


@contextlib.contextmanager
def staging_folder(folder: Path, keeps_files: bool = False) -> Iterator[Path]:
    """A folder inside `folder` for incomplete files. It is removed at the end, unless a download can be resumed from it.

    keeps_files  whether complete files are kept, too, where others could not be had
    """
    with locked(folder):
        staging = folder / ".download"
        staging.mkdir(exist_ok=True)
        keep = False
        try:
            yield staging
        except BaseException as error:
            useful = keeps_files and not isinstance(error, (ModelError, RequestError))
            keep = any(staging.rglob("*.incomplete")) or (useful and any(path.name != ".cache" for path in staging.iterdir()))
            raise
        finally:
            if not keep:
                shutil.rmtree(staging, ignore_errors=True)
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a folder and keeps other downloads out of it, those of other threads and processes."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            yield
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a file system without locks, such as some network ones
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not is_same_folder(descriptor, folder):  # the download that we waited for failed and removed it
                continue
            yield
            return
        finally:
            os.close(descriptor)  # unlocks it


def is_same_folder(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder))
    except FileNotFoundError:
        return False


def give_name(staged: Path, final: Path, what: str, check: Callable[[Path], object]) -> None:
    """Moves a file to its final place if `check` opens it. ModelError: it does not; the file is removed."""
    try:
        check(staged)
    except (OSError, ValueError) as error:
        staged.unlink(missing_ok=True)
        raise ModelError(f"{what}{str(error).removeprefix(str(staged))}") from None
    os.replace(staged, final)


def fetch_model(source: HubModel, staging: Path, report: Report) -> None:
    """A file, with the other parts if it is split. The first part, by which the model is known, gets its name last."""
    staged, *others = [fetch_from_hub(source.repo_id, part, staging, report) for part in source.parts]

    def check(path: Path) -> None:
        with without_warnings():
            Checkpoint.open(path)
        for other in others:
            os.replace(other, source.path.with_name(other.name))

    give_name(staged, source.path, f"{source.repo_id}:{source.file}", check)


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """A warning about a model comes when it is used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def fetch_tokenizer(source: HubModel, staging: Path, report: Report) -> None:
    """The tokenizer of a model that is in the cache: from the model's repository, or that of Llama 2."""
    vocab_size = Checkpoint.open(source.path).config.vocab_size
    if source.tokenizer is not None:
        what = f"{source.repo_id}:{source.tokenizer}"
        staged = fetch_from_hub(source.repo_id, source.tokenizer, staging, report)
    elif vocab_size == TOKENIZER_TOKENS:
        what = os.environ.get("LLAMA2C_TOKENIZER_URL") or TOKENIZER_URL
        staged = staging / "tokenizer.bin"
        staged.write_bytes(fetch_url(what, TOKENIZER_SIZE, report))
    else:
        unfit = f"the model has {vocab_size} tokens, so the tokenizer of Llama 2 ({TOKENIZER_TOKENS} tokens) does not fit"
        raise RequestError(f"{source.name}: {unfit}: name the model's tokenizer with --tokenizer FILE", "tokenizer")
    give_name(staged, source.tokenizer_path, what, lambda path: Tokenizer.open(path, vocab_size))


# ---------------------------------------------------------------------------
# folders


def fetch_folder(source: HubModel, staging: Path, report: Report) -> None:
    """What llama2c reads of a repository, as a folder. The settings come first: the weights of no use are not fetched."""
    from .files import read_json
    from .formats.huggingface import COMPANIONS, INDEX, WEIGHTS, read_config, shard_names  # a file needs none of it

    repo_id = source.repo_id
    if source.path.exists() and (not source.path.is_dir() or any(source.path.iterdir())):  # somebody else's
        raise FileError(None, f"expected no folder, or an empty one, found one without {CONFIG}", str(source.path))
    try:
        import safetensors  # noqa: F401 - the weights would be fetched, and not opened
    except ImportError:
        raise OSError(f"{repo_id}: a folder needs the package safetensors: pip install 'llama2c[hf]'") from None
    revision, listed = list_repository(repo_id, report)
    check_listed(repo_id, listed, (WEIGHTS, INDEX))
    wanted: list[str] = []

    def fetch(*names: str) -> None:
        for name in names:
            fetch_from_hub(repo_id, name, staging, report, revision)
            wanted.append(name)

    with named_in(repo_id, staging):
        fetch(CONFIG)
        config = read_config(staging / CONFIG, read_json(staging / CONFIG))
        fetch(*(name for name in COMPANIONS if name in listed))
        tokenizer = tokenizer_in(staging)
        assert tokenizer is not None  # check_listed
        Tokenizer.open(tokenizer, config.vocab_size)
        if WEIGHTS in listed:
            fetch(WEIGHTS)
        else:
            fetch(INDEX)
            shards = shard_names(staging / INDEX)
            absent = [name for name in shards if name not in listed]
            if absent:
                raise ModelError(f"{staging / INDEX}: expected names of files of the repository, found {absent[0]}")
            fetch(*shards)
        for path in staging.iterdir():  # of huggingface_hub, or of an earlier version of the repository
            if path.name not in wanted:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        with without_warnings():
            Checkpoint.open(staging)
    os.rename(staging, source.path)


def check_listed(repo_id: str, listed: Sequence[str], weights: Sequence[str]) -> None:
    """Whether a repository has what a folder needs, by the list of its files. ModelError, RequestError: it has not."""
    found = [name for name in listed if name in weights]
    models = [name for name in listed if name.endswith(GGUF) and is_whole(name)]
    if not found and models:
        usual = next((name for name in models if "q4_k_m" in name.lower()), models[0])
        names = ", ".join(models[:SHOWN]) + (", ..." if len(models) > SHOWN else "")
        command = f"python -m llama2c download {repo_id}:{usual}"
        raise RequestError(
            f"{repo_id}: expected {weights[0]}, found GGUF files: {names}; for one of them: `{command}`", "model"
        )
    needs = ((CONFIG, (CONFIG,)), (" or ".join(weights), weights), (tokenizer_names(), HF_TOKENIZERS))
    for expected, any_of in needs:
        if not any(name in listed for name in any_of):
            raise ModelError(f"{repo_id}: expected {expected}, found none in the repository")


def is_whole(name: str) -> bool:
    """Whether a GGUF file is a model, or the first part of one."""
    part = PART.fullmatch(name)
    return part is None or int(part[2]) == 1


@contextlib.contextmanager
def named_in(repo_id: str, staging: Path) -> Iterator[None]:
    """Errors about a file in `staging` are about that file of the repository."""
    try:
        yield
    except FileError as error:
        if not str(error.filename).startswith(str(staging)):
            raise
        raise FileError(error.errno, error.strerror, in_repository(str(error.filename), repo_id, staging)) from None
    except OSError as error:
        if error.strerror:  # the system's
            raise
        raise OSError(in_repository(str(error), repo_id, staging)) from None
    except ModelError as error:
        raise ModelError(in_repository(str(error), repo_id, staging)) from None


def in_repository(text: str, repo_id: str, staging: Path) -> str:
    return text.replace(f"{staging}{os.sep}", f"{repo_id}:").replace(str(staging), repo_id)


# ---------------------------------------------------------------------------
# the network


def network_error(what: str, message: str, error: Exception) -> FileError:
    """A FileError about the file `what`. Its errno is that of the OSError behind `error`, if there is one."""
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "errno", None) is None:
        reason = getattr(cause, "reason", None)  # of a URLError
        cause = reason if isinstance(reason, OSError) else cause.__cause__ or cause.__context__
    return FileError(getattr(cause, "errno", None), message, what)


def fetch_url(url: str, size: int, report: Report) -> bytes:
    """The content of a URL, which must have `size` bytes. FileError: it has not, or cannot be had."""
    report.start(url, size)
    content = b""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            while len(content) <= size and (block := response.read(BLOCK)):
                content += block
    except urllib.error.HTTPError as error:
        raise network_error(url, f"the server answered with HTTP status {error.code}", error) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise network_error(url, f"cannot be downloaded: {getattr(error, 'reason', error)}", error) from None
    if len(content) != size:
        found = "more" if len(content) > size else len(content)
        raise FileError(None, f"expected {size} bytes, found {found}", url)
    report(size)
    return content


@contextlib.contextmanager
def asking_hub(what: str, report: Report) -> Iterator[dict[str, Any]]:
    """For calls of huggingface_hub about `what`: it is there and prints nothing, and its errors become a FileError.

    Gives the arguments with which hf_hub_download reports its progress.
    """
    try:
        import huggingface_hub  # noqa: F401 - slow to import, and an extra
    except ImportError:
        raise OSError("download needs the package huggingface_hub: pip install 'llama2c[hub]'") from None
    try:
        with silent_hub(report) as options:
            yield options
    except Exception as error:  # the library passes on those of its HTTP libraries, which change from version to version
        on_disk = isinstance(error, OSError) and error.strerror and not isinstance(error, (ConnectionError, TimeoutError))
        if error is report.error or on_disk:
            raise
        raise network_error(what, hub_error(error), error) from None


def list_repository(repo_id: str, report: Report) -> tuple[str | None, list[str]]:
    """The newest revision of a repository, and the paths of its files."""
    with asking_hub(repo_id, report):
        from huggingface_hub import model_info

        info = model_info(repo_id, timeout=TIMEOUT)
    return info.sha, [sibling.rfilename for sibling in info.siblings or ()]


def fetch_from_hub(repo_id: str, file: str, staging: Path, report: Report, revision: str | None = None) -> Path:
    """A file of a repository, put into `staging`. Its size is the one that the hub announced."""
    what = f"{repo_id}:{file}"
    with asking_hub(what, report) as options:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

        # Asked first, because hf_hub_download would try for a minute where there is no network.
        announced = get_hf_file_metadata(hf_hub_url(repo_id, file, revision=revision))
        report.start(what, announced.size)
        staged = Path(hf_hub_download(repo_id, file, revision=revision, local_dir=staging, **options))
    found = staged.stat().st_size
    if announced.size is not None and found != announced.size:
        staged.unlink()
        raise FileError(None, f"expected {announced.size} bytes as the hub says, found {found}", what)
    report(found)
    return staged


@contextlib.contextmanager
def silent_hub(report: Report) -> Iterator[dict[str, Any]]:
    """Keeps huggingface_hub from printing warnings and bars. Gives the arguments with which hf_hub_download reports instead."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    takes_bars = "tqdm_class" in inspect.signature(hf_hub_download).parameters  # recent versions
    verbosity, has_bars = logging.get_verbosity(), not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        if has_bars and not takes_bars:
            disable_progress_bars()
        try:
            yield {"tqdm_class": bar_class(report)} if takes_bars else {}
        finally:
            logging.set_verbosity(verbosity)
            if has_bars and not takes_bars:
                enable_progress_bars()


def bar_class(report: Report) -> type:
    """A class that huggingface_hub uses as its tqdm. Its bars draw nothing and report their bytes."""

    class Bar:
        def __init__(self, *_: Any, initial: int = 0, total: int | None = None, **__: Any) -> None:
            self.n, self.total = initial, total
            report(initial)  # more than 0 where a download is resumed

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None: ...

        def update(self, n: int = 1) -> None:
            self.n += n
            report(self.n)

        def update_transfer(self, n: int) -> None:
            """Bytes on the wire, which may be compressed. Without this method they would get a bar of their own."""

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_, **__: None  # all else that a tqdm has: close, set_postfix_str, ...

    return Bar


def hub_error(error: Exception) -> str:
    """What an error of huggingface_hub means, in one line."""
    from huggingface_hub import constants, utils

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, utils.RepositoryNotFoundError):  # gated ones too
        return f"{constants.ENDPOINT} has no such repository, or does not let you read it (HTTP status {status})"
    if status == 404:
        return "the repository has no such file (HTTP status 404)"
    if status is not None:
        return f"{constants.ENDPOINT} answered with HTTP status {status}"
    cause = error.__cause__ if isinstance(error, utils.LocalEntryNotFoundError) and error.__cause__ else error
    lines = str(cause).splitlines() or [type(cause).__name__]
    return f"cannot be downloaded from {constants.ENDPOINT}: {lines[0]}"
