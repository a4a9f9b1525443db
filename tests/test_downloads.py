"""llama2c.download against a hub on 127.0.0.1: its callback, its errors, its silence, and two downloads at once."""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import inspect
import json
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
    folder_files,
    gguf_parts,
    llama2_files,
    model_bytes,
    needs_huggingface_hub,
    tokenizer_bytes,
)

import llama2c
from llama2c import downloads
from llama2c.downloads import TOKENIZER_SIZE, Report
from llama2c.errors import RequestError
from llama2c.locate import CHATS

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
# folders

needs_safetensors = pytest.mark.skipif(
    importlib.util.find_spec("safetensors") is None, reason="needs safetensors: pip install 'llama2c[hf]'"
)
TINY = "/me/tiny/resolve/main/"
OTHERS = {  # in a repository beside the folder; none of it is fetched
    "README.md": b"# Tiny", ".gitattributes": b"", "pytorch_model.bin": b"x", "tiny.gguf": b"x", "picture.png": b"x",
    "original/consolidated.00.pth": b"x", "original/params.json": b"x", "onnx/model.onnx": b"x", "runs/model.safetensors": b"x",
}  # fmt: skip


def put(net: Hub, files: dict[str, bytes]) -> None:
    net.files = {TINY + name: content for name, content in files.items()}


def asked(net: Hub, method: str = "GET") -> list[str]:
    """The files that were asked for, in order."""
    return [path.removeprefix(TINY) for how, path, _ in net.requests if how == method and path.startswith(TINY)]


@pytest.fixture
def folder(tmp_path: Path) -> dict[str, bytes]:
    return folder_files(tmp_path / "tiny")


@pytest.fixture
def sharded(tmp_path: Path) -> dict[str, bytes]:
    return folder_files(tmp_path / "sharded", n_shards=2)


@needs_huggingface_hub
@needs_safetensors
def test_a_whole_repository(user: User, net: Hub, folder: dict[str, bytes]) -> None:
    """The list of the hub is not believed: files of other names, in other places, are not asked for."""
    put(net, folder | OTHERS)
    traps = ["../config.json", "/etc/passwd", "..\\config.json", "config.json/", "a/../model.safetensors", ""]
    net.listed = {"me/tiny": [*folder, *OTHERS, *traps]}
    place = user.cache / "repositories" / "me--tiny"
    size = sum(map(len, folder.values())) / 1e6
    assert user.run("download", "me/tiny") == (0, f"{place}\n", [f"llama2c: me/tiny: downloaded, {size:.1f} MB"])
    assert user.files() == {f"repositories/me--tiny/{name}": content for name, content in folder.items()}
    assert sorted(user.cache.rglob("*")) == sorted([place.parent, place, *(place / name for name in folder)])
    order = asked(net)
    assert sorted(order) == sorted(folder)
    assert (order[0], order[-1]) == ("config.json", "model.safetensors")

    net.requests.clear()
    assert user.run("download", "me/tiny") == (0, f"{place}\n", ["llama2c: me/tiny: already downloaded"])
    by_name, by_path = (user.run(model, "-t", "0", "-n", "12", "-i", "ab") for model in ("me/tiny", str(place)))
    assert by_name[:2] == by_path[:2]
    assert by_name[0] == 0 and len(by_name[1]) > 4
    assert net.requests == []


@needs_huggingface_hub
@needs_safetensors
def test_shards_and_progress(user: User, net: Hub, sharded: dict[str, bytes]) -> None:
    """The index comes before the shards that it names, and a file from 0 to its size after the other."""
    put(net, sharded | {"model-00003-of-00003.safetensors": b"another model"})
    code = "calls = []\nllama2c.download('me/tiny', progress=lambda *call: calls.append(call))\nprint(json.dumps(calls))"
    calls = user.python(code)
    assert {path.rpartition("/")[2]: content for path, content in user.files().items()} == sharded
    order = list(dict.fromkeys(name for _, _, name in calls))
    assert sorted(order) == sorted(f"me/tiny:{name}" for name in sharded)
    shards = ["me/tiny:model-00001-of-00002.safetensors", "me/tiny:model-00002-of-00002.safetensors"]
    assert order[-3:] == ["me/tiny:model.safetensors.index.json", *shards]
    for name in order:
        done = [(bytes, total) for bytes, total, file in calls if file == name]
        size = len(sharded[name.removeprefix("me/tiny:")])
        assert (done[0], done[-1]) == ((0, size), (size, size))


def changed(content: bytes, **settings: Any) -> bytes:
    return json.dumps(json.loads(content) | settings).encode()


INDEX = "model.safetensors.index.json"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
REFUSED: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "no config.json": (
        lambda files: {name: content for name, content in files.items() if name != "config.json"},
        "me/tiny: expected config.json, found none in the repository",
    ),
    "no weights": (
        lambda files: {name: content for name, content in files.items() if "safetensors" not in name},
        "me/tiny: expected model.safetensors or model.safetensors.index.json, found none in the repository",
    ),
    "no tokenizer": (
        lambda files: {name: content for name, content in files.items() if name != "tokenizer.model"},
        "me/tiny: expected tokenizer.bin, tokenizer.json or tokenizer.model, found none in the repository",
    ),
    "only GGUF": (
        lambda files: dict.fromkeys(("b-Q8_0.gguf", "b-q4_k_m-00002-of-00002.gguf", "b-q4_k_m-00001-of-00002.gguf"), b"x"),
        "me/tiny: expected model.safetensors, found GGUF files: b-Q8_0.gguf, b-q4_k_m-00001-of-00002.gguf; for one of them: "
        "`python -m llama2c download me/tiny:b-q4_k_m-00001-of-00002.gguf`",
    ),
    "another architecture": (
        lambda files: files | {"config.json": changed(files["config.json"], model_type="qwen2")},
        "me/tiny:config.json: model_type: expected llama, found qwen2",
    ),
    "a page": (
        lambda files: files | {"config.json": b"<html>"},
        "me/tiny:config.json: expected ",
    ),
    "a broken tokenizer": (
        lambda files: files | {"tokenizer.model": b"nonsense"},
        "me/tiny:tokenizer.model: expected ",
    ),
    "a shard that is missing": (
        lambda files: {name: content for name, content in files.items() if name != "model-00002-of-00002.safetensors"},
        f"me/tiny:{INDEX}: expected names of files of the repository, found model-00002-of-00002.safetensors",
    ),
    "an index that leads out": (
        lambda files: files | {INDEX: files[INDEX].replace(b"model-00002", b"../model-00002")},
        f"me/tiny:{INDEX}: expected names of files beside it, found ../model-00002-of-00002.safetensors",
    ),
    "an index of nothing": (
        lambda files: files | {INDEX: b"{}"},
        f"me/tiny:{INDEX}: expected a weight_map from tensors to files, found none",
    ),
}


@needs_huggingface_hub
@pytest.mark.parametrize("what", REFUSED)
def test_refused_before_the_weights_are_fetched(user: User, net: Hub, sharded: dict[str, bytes], what: str) -> None:
    change, line = REFUSED[what]
    put(net, change(sharded))
    assert user.fails("me/tiny").startswith(line)
    assert user.files() == {}
    assert not any(name.endswith((".safetensors", ".gguf")) for name in asked(net))


@needs_huggingface_hub
@needs_safetensors
def test_weights_that_do_not_open(user: User, net: Hub, folder: dict[str, bytes]) -> None:
    for weights, line in (
        (POINTER, "me/tiny:model.safetensors: expected a safetensors file, found: a Git LFS pointer"),
        (folder["model.safetensors"][:-1], "me/tiny:model.safetensors: expected a safetensors file, found: "),
    ):
        put(net, folder | {"model.safetensors": weights})
        found = user.fails("me/tiny")
        assert found.startswith(line) and str(user.cache) not in found
        assert user.files() == {}
    put(net, folder)  # the repository is mended
    assert user.run("download", "me/tiny")[0] == 0


@needs_huggingface_hub
@needs_safetensors
def test_a_folder_goes_on_where_it_was(user: User, net: Hub, sharded: dict[str, bytes]) -> None:
    """What was complete is not fetched again; a file that the repository does not have any more is not in the folder."""
    put(net, sharded | {"added_tokens.json": b"{}"})
    shard = TINY + "model-00002-of-00002.safetensors"
    net.status = {("GET", shard): 500}
    line = user.fails("me/tiny")
    assert line == f"me/tiny:model-00002-of-00002.safetensors: {net.url} answered with HTTP status 500"
    assert user.named_files() == {}
    code, _, lines = user.run("me/tiny", "-n", "5")
    assert code == 1 and "download me/tiny`, found neither" in lines[0]
    put(net, sharded)
    net.status = {}
    net.requests.clear()
    assert user.run("download", "me/tiny")[0] == 0
    assert asked(net) == ["model-00002-of-00002.safetensors"]
    assert user.files() == {f"repositories/me--tiny/{name}": content for name, content in sharded.items()}


@needs_huggingface_hub
@needs_safetensors
def test_a_killed_download_of_a_folder(user: User, net: Hub, folder: dict[str, bytes]) -> None:
    put(net, folder)
    net.breaks, net.holds = {TINY + "model.safetensors": 100}, True
    running = user.process("download", "me/tiny")
    assert net.broke.wait(SECONDS)
    running.kill()
    running.communicate(timeout=SECONDS)
    assert user.named_files() == {}
    net.go.set()
    assert user.run("download", "me/tiny")[0] == 0
    assert user.files() == {f"repositories/me--tiny/{name}": content for name, content in folder.items()}


@needs_huggingface_hub
@needs_safetensors
def test_two_processes_fetch_a_folder_once(user: User, net: Hub, folder: dict[str, bytes]) -> None:
    put(net, folder)
    both = [user.process("download", "me/tiny") for _ in range(2)]
    outputs = {process.communicate(timeout=SECONDS)[0].decode() for process in both}
    assert outputs == {f"{user.cache}/repositories/me--tiny\n"}
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(asked(net)) == sorted(folder)
    assert user.files() == {f"repositories/me--tiny/{name}": content for name, content in folder.items()}


@needs_huggingface_hub
@needs_safetensors
def test_no_place_for_a_folder(user: User, net: Hub, folder: dict[str, bytes]) -> None:
    """A full disk, and a folder of somebody else under the final name, which stays."""
    put(net, folder)
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    found = user.python(CATCH + limit + "print(json.dumps(caught('me/tiny')))")
    assert found[3:5] == [errno.EFBIG, str(user.cache)]
    assert user.named_files() == {}
    mine = user.cache / "repositories" / "me--tiny" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    net.requests.clear()
    assert user.fails("me/tiny") == f"{mine.parent}: expected no folder, or an empty one, found one without config.json"
    assert (mine.read_text(), net.requests) == ("mine", [])
    mine.unlink()
    assert user.run("download", "me/tiny")[0] == 0


@needs_huggingface_hub
@pytest.mark.parametrize("package", ["safetensors", "tokenizers"])
def test_a_folder_without_a_package(user: User, net: Hub, folder: dict[str, bytes], tmp_path: Path, package: str) -> None:
    """Before the weights are fetched."""
    (tmp_path / f"{package}.py").write_text("raise ImportError")
    user.env["PYTHONPATH"] = str(tmp_path)
    put(net, folder | {"tokenizer.json": b"{}"})
    line = user.fails("me/tiny")
    assert line.startswith("me/tiny:") and f"{package}" in line and "pip install 'llama2c[hf]'" in line
    assert "model.safetensors" not in asked(net)


@needs_huggingface_hub
def test_a_repository_that_is_not_there(user: User, net: Hub) -> None:
    expected = f"{net.url} has no such repository, or does not let you read it (HTTP status "
    assert user.fails("me/none").startswith(f"me/none: {expected}404)")
    net.status = {("GET", "/api/models/me/secrets"): 401}
    assert user.fails("me/secrets").startswith(f"me/secrets: {expected}401)")
    net.status = {("GET", "/api/models/me/busy"): 503}
    assert user.fails("me/busy") == f"me/busy: {net.url} answered with HTTP status 503"
    assert user.files() == {}


# ---------------------------------------------------------------------------
# GGUF files


@needs_huggingface_hub
def test_a_gguf_file(user: User, net: Hub) -> None:
    """In a folder of the repository; nothing is fetched with it."""
    (content,) = gguf_parts(1)
    put(net, {"q8/a.gguf": content, "tokenizer.json": b"x"})
    path = user.cache / "me--tiny" / "q8--a" / "a.gguf"
    line = f"llama2c: me/tiny:q8/a.gguf: downloaded, {len(content) / 1e6:.1f} MB"
    assert user.run("download", "me/tiny:q8/a.gguf") == (0, f"{path}\n", [line])
    assert user.files() == {"me--tiny/q8--a/a.gguf": content}
    assert asked(net) == ["q8/a.gguf"]
    net.requests.clear()
    assert user.run("download", "me/tiny:q8/a.gguf")[2] == ["llama2c: me/tiny:q8/a.gguf: already downloaded"]
    code = "from llama2c.locate import resolve\nprint(json.dumps(llama2c.Checkpoint.open(resolve('me/tiny:q8/a.gguf')).kind))"
    assert user.python(code) == "fp32"
    assert net.requests == []


@needs_huggingface_hub
def test_a_short_name_of_a_gguf_file(user: User, net: Hub) -> None:
    source = CHATS["smollm2-135m"]
    (content,) = gguf_parts(1)
    net.files = {f"/{source.repo_id}/resolve/main/{source.file}": content}
    assert user.run("download", "smollm2-135m")[:2] == (0, f"{user.cache}/smollm2-135m/{source.file}\n")
    assert user.files() == {f"smollm2-135m/{source.file}": content}


@needs_huggingface_hub
def test_all_parts_of_a_gguf_file(user: User, net: Hub) -> None:
    """Without the last there is no model, and what is complete is not fetched again."""
    parts = {f"q/a-{i + 1:05}-of-00003.gguf": content for i, content in enumerate(gguf_parts(3))}
    first, second, third = parts
    put(net, {first: parts[first], second: parts[second]})
    assert user.fails(f"me/tiny:{first}") == f"me/tiny:{third}: the repository has no such file (HTTP status 404)"
    assert user.named_files() == {}
    put(net, parts)
    net.requests.clear()
    assert user.run("download", f"me/tiny:{first}")[0] == 0
    assert asked(net) == [third]
    assert user.files() == {f"me--tiny/q--a-00001-of-00003/{name[2:]}": content for name, content in parts.items()}


@needs_huggingface_hub
@pytest.mark.parametrize(
    ("content", "line"),
    [
        (gguf_parts(1)[0][:-1], "expected "),
        (gguf_parts(1)[0].replace(b"llama", b"qwen2"), "general.architecture: expected llama"),
        (POINTER, "expected a checkpoint, found a Git LFS pointer"),
    ],
)
def test_a_gguf_file_that_does_not_open(user: User, net: Hub, content: bytes, line: str) -> None:
    put(net, {"a.gguf": content})
    found = user.fails("me/tiny:a.gguf")
    assert found.startswith("me/tiny:a.gguf: ") and line in found and str(user.cache) not in found
    assert user.files() == {}


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
        (("stories7B",), "model", "stories7B: unknown model; use stories260K, stories15M, stories42M, stories110M, smollm2"),
        (("",), "model", ": unknown model; use "),
        (("stories15M", "t.bin"), "tokenizer", "tokenizer: stories15M has a known tokenizer; only a checkpoint of llama2.c"),
        (("me/x", "t.json"), "tokenizer", "tokenizer: me/x has a known tokenizer; only a checkpoint"),
        (("me/x:a.gguf", "t.json"), "tokenizer", "tokenizer: me/x:a.gguf has a known tokenizer; only a checkpoint"),
        (
            ("me/x:model.safetensors",),
            "model",
            "me/x:model.safetensors: expected a GGUF file or a checkpoint of llama2.c, found",
        ),
        (
            ("me/x:a-00002-of-00003.gguf",),
            "model",
            "me/x:a-00002-of-00003.gguf: expected the first part, with which the others",
        ),
        (
            ("me/x:a-00001-of-00000.gguf",),
            "model",
            "me/x:a-00001-of-00000.gguf: expected the first part, with which the others",
        ),
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
