"""llama2c.download against a hub on 127.0.0.1: its callback, its errors, its silence, and two downloads at once."""

from __future__ import annotations

import errno
import fcntl
import inspect
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizer_models
from hub_server import (
    LARGE,
    REPO,
    SECONDS,
    SMALL,
    STORIES15M,
    TOKENIZER,
    Hub,
    User,
    llama2_files,
    model_bytes,
    needs_huggingface_hub,
    tokenizer_bytes,
)

import llama2c
from llama2c import downloads
from llama2c.downloads import TOKENIZER_SIZE, Report
from llama2c.errors import RequestError

NAME = "karpathy/tinyllamas:stories15M.bin"
CATCH = """
def caught(*arguments, **options):
    try:
        return str(llama2c.download(*arguments, **options))
    except Exception as error:
        names = [cls.__name__ for cls in type(error).__mro__]
        fields = [getattr(error, name, None) for name in ("errno", "filename", "param")]
        return [names[0], [name for name in names if name in ("ValueError", "OSError")], str(error), *fields]
"""


@pytest.fixture(scope="module")
def llama2() -> dict[str, bytes]:
    return llama2_files()


@pytest.fixture
def net() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def user(net: Hub, tmp_path: Path) -> User:
    return User(tmp_path, net.url)


def reports_progress() -> bool:
    from huggingface_hub import hf_hub_download

    return "tqdm_class" in inspect.signature(hf_hub_download).parameters


# ---------------------------------------------------------------------------
# downloads that succeed


@needs_huggingface_hub
def test_the_path_and_nothing_printed(user: User, net: Hub, llama2: dict[str, bytes]) -> None:
    net.files = llama2
    path = f"{user.cache}/stories15M/stories15M.bin"
    assert user.python("print(json.dumps([str(llama2c.download('stories15M')) for _ in range(2)]))") == [path, path]
    assert user.files() == {"stories15M/stories15M.bin": llama2[STORIES15M], "stories15M/tokenizer.bin": llama2[TOKENIZER]}
    assert len([request for request in net.requests if request[0] == "GET"]) == 2  # the second call asks nothing


@needs_huggingface_hub
def test_progress(user: User, net: Hub, llama2: dict[str, bytes]) -> None:
    """Every file from 0 to its size, which only grows; also when the transfer broke off and was resumed."""
    net.files = {**llama2, STORIES15M: model_bytes(LARGE)}
    net.breaks = {STORIES15M: 11 << 20}  # huggingface_hub writes 10 MB at a time
    code = """
calls = []
for _ in range(2):
    try:
        llama2c.download("stories15M", progress=lambda *call: calls.append(call))
        break
    except OSError:  # an old version, which resumes in the next call
        calls.clear()
print(json.dumps(calls))
"""
    calls = user.python(code)
    size = len(net.files[STORIES15M])
    model = [done for done, total, name in calls if (total, name) == (size, NAME)]
    tokenizer = [done for done, total, name in calls if (total, name) == (TOKENIZER_SIZE, net.url + TOKENIZER)]
    assert len(model) + len(tokenizer) == len(calls)
    assert (model[0], model[-1], model) == (0, size, sorted(set(model)))
    assert (10 << 20 in model) == reports_progress()
    assert tokenizer == [0, TOKENIZER_SIZE]


@needs_huggingface_hub
@pytest.mark.parametrize("size", ["1027708", str(TOKENIZER_SIZE)])  # of the model, and of the tokenizer
@pytest.mark.parametrize(
    ("error", "bases", "message"),
    [("OSError(28, 'full', 'x')", ["OSError"], "[Errno 28] full: 'x'"), ("ValueError('enough')", ["ValueError"], "enough")],
)
def test_an_exception_of_the_callback_ends_the_download(
    user: User, net: Hub, llama2: dict[str, bytes], size: str, error: str, bases: list[str], message: str
) -> None:
    """It comes out unchanged, although the network and the disk raise exceptions of the same classes."""
    net.files = llama2
    code = f"def stop(done, total, name):\n    if done == {size}:\n        raise {error}\n"
    found = user.python(CATCH + code + "print(json.dumps(caught('stories15M', progress=stop)))")
    assert found[:3] == [bases[0], bases, message]
    has_model = size != str(len(llama2[STORIES15M]))
    assert list(user.named_files()) == (["stories15M/stories15M.bin"] if has_model else [])


def test_report() -> None:
    """Only what is more than before; an error that a thread of somebody else has dropped comes again."""
    calls = []

    def progress(*call: object) -> None:
        calls.append(call)
        if call[0] == 9:
            raise KeyError("stop")

    report = Report(progress)
    report.start("a", 10)
    for done in (3, 3, 0, 4):
        report(done)
    report.start("b", None)
    assert calls == [(0, 10, "a"), (3, 10, "a"), (4, 10, "a"), (0, None, "b")]
    for done in (9, 10):
        with pytest.raises(KeyError, match="stop"):
            report(done)
    Report(None).start("c", 1)


@needs_huggingface_hub
def test_a_sentencepiece_tokenizer_keeps_its_kind(user: User, net: Hub) -> None:
    """A tokenizer.model under the name tokenizer.bin would not open."""
    model, tokenizer = model_bytes(SMALL), tokenizer_models.model(tokenizer_models.pieces(300))
    net.files = {"/me/tales/resolve/main/a.bin": model, "/me/tales/resolve/main/spm/words.model": tokenizer}
    path = f"{user.cache}/me--tales/a/a.bin"
    assert user.python("print(json.dumps(str(llama2c.download('me/tales:a.bin', 'spm/words.model'))))") == path
    assert user.files() == {"me--tales/a/a.bin": model, "me--tales/a/tokenizer.model": tokenizer}
    net.requests.clear()
    assert user.python("print(json.dumps(str(llama2c.download('me/tales:a.bin'))))") == path  # complete: no flag needed
    assert net.requests == []
    assert user.python("print(json.dumps(llama2c.load('me/tales:a.bin').tokenizer.vocab_size))") == 300


# ---------------------------------------------------------------------------
# two downloads at once


class Other:
    """A thread that starts `work` while we hold the lock of a folder; inside, it is known to be about to wait for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, work: Callable[[], object]) -> None:
        self.results: list[object] = []
        asks = threading.Event()
        flock = fcntl.flock

        def announced(descriptor: int, how: int) -> None:
            if threading.current_thread() is self.thread:
                asks.set()
            flock(descriptor, how)

        monkeypatch.setattr(fcntl, "flock", announced)
        self.thread = threading.Thread(target=lambda: self.results.append(work()))
        self.lock = downloads.locked(folder)
        self.lock.__enter__()
        self.thread.start()
        assert asks.wait(SECONDS)

    def result(self) -> object:
        """What `work` returned, now that the lock is given back."""
        assert self.results == []
        self.lock.__exit__(None, None, None)
        self.thread.join(SECONDS)
        return self.results[0]


def test_a_download_keeps_others_out(tmp_path: Path) -> None:
    with downloads.staging_folder(tmp_path / "a" / "b") as staging:
        assert staging.parent == tmp_path / "a" / "b"
        descriptor = os.open(tmp_path / "a" / "b", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_the_second_download_finds_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama2: dict[str, bytes]) -> None:
    """It asks nobody: there is no hub here."""
    monkeypatch.setenv("LLAMA2C_CACHE", str(tmp_path))
    folder = tmp_path / "stories15M"
    other = Other(monkeypatch, folder, lambda: llama2c.download("stories15M"))
    (folder / "stories15M.bin").write_bytes(llama2[STORIES15M])
    (folder / "tokenizer.bin").write_bytes(llama2[TOKENIZER])
    assert other.result() == folder / "stories15M.bin"
    assert sorted(path.name for path in folder.iterdir()) == ["stories15M.bin", "tokenizer.bin"]


def test_the_first_download_fails_and_removes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a"

    def enter() -> bool:
        with downloads.locked(folder):
            return folder.is_dir()

    other = Other(monkeypatch, folder, enter)
    folder.rmdir()
    assert other.result() is True


# ---------------------------------------------------------------------------
# errors: their class, errno and file name


@pytest.mark.parametrize(
    ("arguments", "param", "message"),
    [
        (("stories7B",), "model", "stories7B: unknown model; use stories260K, stories15M, stories42M, stories110M, smollm2-135m, "),
        (("",), "model", ": unknown model; use "),
        (("stories15M", "t.bin"), "tokenizer", "tokenizer: stories15M has a known tokenizer; only a checkpoint of llama2.c takes"),
        (("me/x:a.bin", "/etc/t.bin"), "tokenizer", "tokenizer: expected the path of a file in me/x, found '/etc/t.bin'"),
        (("me/x:a.bin", "../t.bin"), "tokenizer", "tokenizer: expected the path of a file in me/x, found '../t.bin'"),
    ],
)
def test_wrong_requests(arguments: tuple[str, ...], param: str, message: str) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(message)}") as error:
        llama2c.download(*arguments)
    assert error.value.param == param


@pytest.mark.parametrize(("arguments", "name"), [((None,), "model"), ((Path("a"),), "model"), (("stories15M", 3), "tokenizer")])
def test_wrong_types(arguments: tuple[Any, ...], name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected a str, found "):
        llama2c.download(*arguments)


@needs_huggingface_hub
def test_errors_of_the_network_and_of_files(user: User, net: Hub) -> None:
    """In one process, which must also go on after each: class, bases, message, errno, filename, param."""
    repo = "/me/tales/resolve/main/"
    net.files = {repo + "page.bin": b"<!DOCTYPE html><html></html>", repo + "a.bin": model_bytes(SMALL)}
    names = ["me/tales:none.bin", "me/tales:page.bin", "me/tales:a.bin"]
    absent, page, needs = user.python(CATCH + f"print(json.dumps([caught(name) for name in {names}]))")
    message = "me/tales:none.bin: the repository has no such file (HTTP status 404)"
    assert absent == ["FileError", ["OSError"], message, None, "me/tales:none.bin", None]
    assert page[:2] == ["ModelError", ["ValueError"]] and page[2].startswith("me/tales:page.bin: ")
    assert needs[:2] == ["RequestError", ["ValueError"]] and needs[5] == "tokenizer"
    assert sorted(user.files()) == ["me--tales/a/a.bin"]


@needs_huggingface_hub
def test_a_refused_connection_has_its_errno(user: User, llama2: dict[str, bytes]) -> None:
    with socket.socket() as unheard:  # bound, but nobody listens
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        user.env |= {"HF_ENDPOINT": url, "LLAMA2C_TOKENIZER_URL": url + "/t"}
        for filename in (NAME, url + "/t"):  # without the model, then with it
            found = user.python(CATCH + "print(json.dumps(caught('stories15M')))")
            assert (found[0], found[3:5]) == ("FileError", [errno.ECONNREFUSED, filename])
            (user.cache / "stories15M").mkdir(parents=True, exist_ok=True)
            (user.cache / "stories15M" / "stories15M.bin").write_bytes(llama2[STORIES15M])


def test_a_cache_that_cannot_be_written(user: User) -> None:
    user.cache.write_bytes(b"a file")
    found = user.python(CATCH + "print(json.dumps(caught('stories15M')))")
    message = f"{found[4]}: expected a place to write to, found: Not a directory"
    assert found == ["FilePathError", ["OSError"], message, errno.ENOTDIR, str(user.cache / "stories15M"), None]


@needs_huggingface_hub
def test_a_full_disk(user: User, net: Hub, llama2: dict[str, bytes]) -> None:
    """A limit of the size of files is the full disk that a test can have."""
    net.files = llama2
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    found = user.python(CATCH + limit + "print(json.dumps(caught('stories15M')))")
    message = f"{user.cache}: expected a place to write to, found: File too large"
    assert found == ["FileError", ["OSError"], message, errno.EFBIG, str(user.cache), None]
    assert user.named_files() == {}


@needs_huggingface_hub
def test_the_settings_of_huggingface_hub_stay(user: User, net: Hub) -> None:
    net.files = {REPO + "stories260K/stories260K.bin": model_bytes(SMALL)}
    net.files[REPO + "stories260K/tok512.bin"] = tokenizer_bytes(300)
    code = """
from huggingface_hub.utils import are_progress_bars_disabled, logging
logging.set_verbosity_info()
llama2c.download("stories260K")
print(json.dumps([logging.get_verbosity() == logging.INFO, are_progress_bars_disabled()]))
"""
    assert user.python(code) == [True, False]
