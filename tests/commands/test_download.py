"""The verb `download`, against a hub of our own on 127.0.0.1, and models called by name.

huggingface_hub reads its settings when it is imported, so each download is a process.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest

import llama2c
from llama2c import locate as cache
from llama2c.commands import download as hub
from llama2c.config import Config

needs_huggingface_hub = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="needs huggingface_hub: pip install 'llama2c[hub]'"
)
SECONDS = 60
REPO = "/karpathy/tinyllamas/resolve/main/"
STORIES15M, TOKENIZER = REPO + "stories15M.bin", "/tokenizer.bin"
SMALL = Config(dim=8, hidden_dim=16, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=300, seq_len=64)
LLAMA2 = Config(dim=8, hidden_dim=16, n_layers=1, n_heads=2, n_kv_heads=2, vocab_size=32000, seq_len=64)
LARGE = Config(dim=96, hidden_dim=16, n_layers=1, n_heads=2, n_kv_heads=2, vocab_size=32000, seq_len=64)  # 12 MB


# ---------------------------------------------------------------------------
# files


def model_bytes(config: Config) -> bytes:
    return b"".join(checkpoints.parts(config, 0, checkpoints.random_weights(config, np.random.default_rng(3))))


def tokenizer_bytes(n_tokens: int, size: int = 0) -> bytes:
    """A tokenizer.bin; of exactly `size` bytes if that is given, by words that are one letter longer."""
    spellings = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    spellings += [f" {i:x}" for i in range(n_tokens - len(spellings))]
    n_longer = size - 4 - sum(8 + len(spelling) for spelling in spellings) if size else 0
    assert 0 <= n_longer <= n_tokens - 259
    for i in range(259, 259 + n_longer):
        spellings[i] += "_"
    entries = [struct.pack("<fi", -i, len(spelling)) + spelling.encode() for i, spelling in enumerate(spellings)]
    return struct.pack("<i", max(map(len, spellings))) + b"".join(entries)


@pytest.fixture(scope="module")
def llama2() -> dict[str, bytes]:
    """What the network holds for `download stories15M`."""
    return {STORIES15M: model_bytes(LLAMA2), TOKENIZER: tokenizer_bytes(32000, hub.TOKENIZER_SIZE)}


# ---------------------------------------------------------------------------
# the hub


class Hub:
    """A server of `files`. What goes wrong is said by path: status codes, sizes announced, bytes before a GET breaks off."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.status: dict[tuple[str, str], int] = {}  # by method and path
        self.announced: dict[str, int] = {}
        self.breaks: dict[str, int] = {}  # once, then the whole file can be had
        self.holds = False  # a GET that breaks off waits for `go` first
        self.plain = False  # not a hub: answers without its headers
        self.broke, self.go = threading.Event(), threading.Event()
        self.requests: list[tuple[str, str, str | None]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        content = self.answer()
        if content is not None:
            self.start(200, self.hub.announced.get(self.path, len(content)))

    def do_GET(self) -> None:
        content = self.answer()
        if content is None:
            return
        wanted = self.headers["Range"]
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        size = len(content) - first
        self.start(206 if wanted else 200, size, f"bytes {first}-{len(content) - 1}/{len(content)}")
        cut = self.hub.breaks.pop(self.path, size)
        self.wfile.write(content[first : first + cut])
        if cut < size:
            self.close_connection = True
            self.hub.broke.set()
            if self.hub.holds:
                self.hub.go.wait(SECONDS)

    def answer(self) -> bytes | None:
        self.hub.requests.append((self.command, self.path, self.headers["Range"]))
        content = self.hub.files.get(self.path)
        status = self.hub.status.get((self.command, self.path), 200 if content is not None else 404)
        if status == 200:
            return content
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def start(self, status: int, size: int, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        if not self.hub.plain:
            self.send_header("ETag", '"0123456789abcdef"')
            self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        if status == 206 and content_range is not None:
            self.send_header("Content-Range", content_range)
        self.end_headers()


@pytest.fixture
def net() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    hub.go.set()
    hub.server.shutdown()
    thread.join()
    hub.server.server_close()


class User:
    """Runs `python -m llama2c`, with settings and a home of its own."""

    def __init__(self, home: Path, url: str) -> None:
        self.cache = home / "models"
        settings = {
            "HOME": str(home),
            "LLAMA2C_CACHE": str(self.cache),
            "LLAMA2C_TOKENIZER_URL": url + TOKENIZER,
            "HF_ENDPOINT": url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
            "OMP_NUM_THREADS": "1",
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
        self.env = kept | settings

    def process(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "llama2c", *arguments]
        return subprocess.Popen(
            command, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, *arguments: str) -> tuple[int, str, list[str]]:
        """The exit code, stdout, the lines of stderr."""
        process = self.process(*arguments)
        out, err = process.communicate(timeout=SECONDS)
        return process.returncode, out.decode(), err.decode().splitlines()

    def fails(self, *arguments: str) -> str:
        """The one line of a download that fails."""
        code, out, lines = self.run("download", *arguments)
        assert (code, out, len(lines)) == (1, "", 1), lines
        assert lines[0].startswith("llama2c: error: ")
        return lines[0].removeprefix("llama2c: error: ")

    def files(self) -> dict[str, bytes]:
        """All that lies in the cache: by path, with content."""
        found = (path for path in self.cache.rglob("*") if path.is_file())
        return {path.relative_to(self.cache).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def user(net: Hub, tmp_path: Path) -> User:
    return User(tmp_path, net.url)


# ---------------------------------------------------------------------------
# downloads that succeed


@needs_huggingface_hub
def test_a_story_model_by_name(user: User, net: Hub, llama2: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    net.files = llama2
    model = user.cache / "stories15M" / "stories15M.bin"
    assert user.run("download", "stories15M") == (0, f"{model}\n", ["llama2c: stories15M: downloaded, 1.0 MB"])
    there = {"stories15M/stories15M.bin": llama2[STORIES15M], "stories15M/tokenizer.bin": llama2[TOKENIZER]}
    assert user.files() == there
    assert [path.name for path in user.cache.rglob("*") if path.is_dir()] == ["stories15M"]  # nothing else is left

    net.requests.clear()
    assert user.run("download", "stories15M") == (0, f"{model}\n", ["llama2c: stories15M: already there"])
    by_name = user.run("stories15M", "-t", "0", "-n", "20", "-i", "12 ab")
    by_path = user.run(str(model), "-t", "0", "-n", "20", "-i", "12 ab", "-z", str(model.with_name("tokenizer.bin")))
    assert by_name[:2] == by_path[:2]
    assert by_name[0] == 0 and by_name[1].startswith(" 12 ab") and len(by_name[1]) > 40
    assert net.requests == []

    monkeypatch.setenv("LLAMA2C_CACHE", str(user.cache))
    llama = llama2c.load("stories15M", n_threads=1)
    assert by_name[1].startswith(" 12 ab" + llama.generate("12 ab", max_tokens=5, temperature=0).text)


@needs_huggingface_hub
def test_the_smallest_brings_its_own_tokenizer(user: User, net: Hub) -> None:
    model, tokenizer = model_bytes(SMALL), tokenizer_bytes(300)
    net.files = {REPO + "stories260K/stories260K.bin": model, REPO + "stories260K/tok512.bin": tokenizer}
    assert user.run("download", "stories260K")[:2] == (0, f"{user.cache}/stories260K/stories260K.bin\n")
    assert user.files() == {"stories260K/stories260K.bin": model, "stories260K/tokenizer.bin": tokenizer}
    assert user.run("stories260K", "-t", "0", "-n", "20")[0] == 0


@needs_huggingface_hub
def test_any_repository(user: User, net: Hub) -> None:
    net.files = {f"/me/tales/resolve/main/{name}": model_bytes(SMALL) for name in ("a.bin", "big/a.bin")}
    net.files["/me/tales/resolve/main/words.bin"] = tokenizer_bytes(300)
    name = "me/tales:big/a.bin"
    assert user.fails(name) == f"{name}: expected 32000 tokens, or --tokenizer FILE for another number, found 300"
    assert list(user.files()) == ["me--tales/big--a/a.bin"]  # the model is whole: it need not come again
    net.requests.clear()
    code, out, _ = user.run("download", name, "--tokenizer", "words.bin")
    assert (code, out) == (0, f"{user.cache}/me--tales/big--a/a.bin\n")
    assert {path for _, path, _ in net.requests} == {"/me/tales/resolve/main/words.bin"}
    assert sorted(user.files()) == ["me--tales/big--a/a.bin", "me--tales/big--a/tokenizer.bin"]
    assert user.run(name, "-t", "0", "-n", "20")[0] == 0
    code, _, lines = user.run("me/tales:a.bin")  # another file
    assert code == 1 and "download me/tales:a.bin`, found neither" in lines[0]


# ---------------------------------------------------------------------------
# downloads that fail: one line, and nothing under a final name


@needs_huggingface_hub
def test_broken_off_then_resumed(user: User, net: Hub, llama2: dict[str, bytes]) -> None:
    """Newer versions of huggingface_hub resume at once, older ones in the next call."""
    net.files = {**llama2, STORIES15M: model_bytes(LARGE)}
    net.breaks = {STORIES15M: 11 << 20}  # huggingface_hub writes 10 MB at a time
    code, _, lines = user.run("download", "stories15M")
    if code:
        assert len(lines) == 1
        code, _, _ = user.run("download", "stories15M")
    assert code == 0
    assert f"bytes={10 << 20}-" in [wanted for _, _, wanted in net.requests]
    assert user.files() == {"stories15M/stories15M.bin": net.files[STORIES15M], "stories15M/tokenizer.bin": llama2[TOKENIZER]}


@needs_huggingface_hub
def test_ctrl_c(user: User, net: Hub, llama2: dict[str, bytes]) -> None:
    net.files = llama2
    net.breaks, net.holds = {STORIES15M: 500_000}, True
    running = user.process("download", "stories15M")
    assert net.broke.wait(SECONDS)
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=SECONDS) == (b"", b"")
    assert running.returncode == 130
    assert not (user.cache / "stories15M" / "stories15M.bin").exists()
    assert user.run("download", "stories15M")[0] == 0
    assert user.files()["stories15M/stories15M.bin"] == llama2[STORIES15M]


@needs_huggingface_hub
def test_wrong_size(user: User, net: Hub, llama2: dict[str, bytes]) -> None:
    net.files = llama2
    size = len(llama2[STORIES15M])
    net.announced = {STORIES15M: size + 1}
    line = user.fails("stories15M")
    assert line.startswith("karpathy/tinyllamas:stories15M.bin: expected ") and str(size) in line and str(size + 1) in line
    assert "stories15M/stories15M.bin" not in user.files()


@needs_huggingface_hub
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"<!DOCTYPE html><html><body>Sign in to the network</body></html>", "expected"),
        (model_bytes(SMALL)[:-4], f"found {len(model_bytes(SMALL)) - 4}"),
        (b"", "expected 28 bytes, found 0"),
    ],
)
def test_no_checkpoint(user: User, net: Hub, content: bytes, found: str) -> None:
    net.files = {STORIES15M: content}
    line = user.fails("stories15M")
    assert line.startswith("karpathy/tinyllamas:stories15M.bin: ") and found in line
    assert str(user.cache) not in line  # where it was is gone
    assert user.files() == {}


@needs_huggingface_hub
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_server_error(user: User, net: Hub, llama2: dict[str, bytes], method: str) -> None:
    net.files = llama2
    net.status = {(method, STORIES15M): 500}
    expected = f"karpathy/tinyllamas:stories15M.bin: expected the file from {net.url}, found HTTP status 500"
    assert user.fails("stories15M") == expected
    from huggingface_hub import get_hf_file_metadata

    if "retry_on_errors" in inspect.signature(get_hf_file_metadata).parameters:  # some older versions insist for 20 seconds
        assert len(net.requests) <= 3  # not tried again for a minute
    assert not (user.cache / "stories15M" / "stories15M.bin").exists()


@needs_huggingface_hub
def test_not_found(user: User, net: Hub) -> None:
    expected = "me/tales:a.bin: expected a file of the repository, found none of that name (HTTP status 404)"
    assert user.fails("me/tales:a.bin") == expected
    assert user.files() == {}
    net.status = {("HEAD", "/me/secrets/resolve/main/a.bin"): 401}  # what the hub says of repositories it does not show
    line = user.fails("me/secrets:a.bin")
    assert line.startswith("me/secrets:a.bin: expected ") and "401" in line


@needs_huggingface_hub
def test_a_server_that_is_no_hub(user: User, net: Hub, llama2: dict[str, bytes]) -> None:
    net.files, net.plain = llama2, True
    assert user.fails("stories15M").startswith(f"karpathy/tinyllamas:stories15M.bin: expected the file from {net.url}, found: ")
    assert user.files() == {}


@needs_huggingface_hub
def test_no_network(user: User) -> None:
    with socket.socket() as unheard:  # bound, but nobody listens
        unheard.bind(("127.0.0.1", 0))
        url = user.env["HF_ENDPOINT"] = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        line = user.fails("stories15M")
    assert line.startswith(f"karpathy/tinyllamas:stories15M.bin: expected the file from {url}, found: ")
    assert "refused" in line
    assert user.files() == {}


@needs_huggingface_hub
def test_the_tokenizer_fails_then_comes_alone(user: User, net: Hub, llama2: dict[str, bytes]) -> None:
    net.files = dict(llama2)
    where = f"{net.url}{TOKENIZER}: expected {hub.TOKENIZER_SIZE} bytes, found"
    for content, status, found in (
        (llama2[TOKENIZER], 503, " HTTP status 503"),
        (llama2[TOKENIZER][:-1], 200, f" {hub.TOKENIZER_SIZE - 1}"),
        (llama2[TOKENIZER] + b"x", 200, " more"),
    ):
        net.files[TOKENIZER], net.status = content, {("GET", TOKENIZER): status}
        assert user.fails("stories15M") == where + found
        assert user.files() == {"stories15M/stories15M.bin": llama2[STORIES15M]}
    net.files[TOKENIZER] = bytes(hub.TOKENIZER_SIZE)
    assert user.fails("stories15M").startswith(f"{net.url}{TOKENIZER}: token 0: expected ")
    assert user.files() == {"stories15M/stories15M.bin": llama2[STORIES15M]}
    net.files[TOKENIZER] = llama2[TOKENIZER]
    net.requests.clear()
    assert user.run("download", "stories15M")[0] == 0
    assert net.requests == [("GET", TOKENIZER, None)]
    assert user.files() == {"stories15M/stories15M.bin": llama2[STORIES15M], "stories15M/tokenizer.bin": llama2[TOKENIZER]}


def test_the_tokenizer_server_is_down(user: User, llama2: dict[str, bytes]) -> None:
    (user.cache / "stories15M").mkdir(parents=True)
    (user.cache / "stories15M" / "stories15M.bin").write_bytes(llama2[STORIES15M])
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        url = user.env["LLAMA2C_TOKENIZER_URL"] = f"http://127.0.0.1:{unheard.getsockname()[1]}/t"
        line = user.fails("stories15M")
    assert line.startswith(f"{url}: expected {hub.TOKENIZER_SIZE} bytes, found: ") and "refused" in line
    assert list(user.files()) == ["stories15M/stories15M.bin"]


def test_a_cache_that_cannot_be_written(user: User) -> None:
    user.cache.write_bytes(b"a file")
    line = user.fails("stories15M")
    assert line.startswith(str(user.cache)) and ": expected a place to write to, found: " in line
    assert user.cache.read_bytes() == b"a file"


def test_without_huggingface_hub(user: User, tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError")
    user.env["PYTHONPATH"] = str(tmp_path)
    expected = "download: expected the package huggingface_hub, found none: pip install 'llama2c[hub]'"
    assert user.fails("stories15M") == expected
    assert user.files() == {}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["stories7B"], "stories7B: expected stories260K, stories15M, stories42M, stories110M or REPO_ID:FILE, found neither"),
        (["me/tales:../a.bin"], "me/tales:../a.bin: expected "),
        (["stories15M", "--tokenizer", "t.bin"], "--tokenizer: expected REPO_ID:FILE with it, found stories15M"),
        ([], "the following arguments are required: MODEL"),
    ],
)
def test_wrong_command_lines(user: User, arguments: list[str], line: str) -> None:
    code, out, lines = user.run("download", *arguments)
    assert (code, out, len(lines)) == (2, "", 1)
    assert lines[0].startswith(f"llama2c: error: {line}")
    assert user.files() == {}


# ---------------------------------------------------------------------------
# names, without a network


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/lily")
    monkeypatch.delenv("LLAMA2C_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.cache_folder() == Path("/home/lily/.cache/llama2c")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/lily")
    assert cache.cache_folder() == Path("/var/cache/lily/llama2c")
    monkeypatch.setenv("LLAMA2C_CACHE", "/models")
    assert cache.cache_folder() == Path("/models")


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA2C_CACHE", "/models")
    for name, path in {
        "stories260K": "stories260K/stories260K.bin",
        "stories110M": "stories110M/stories110M.bin",
        "karpathy/tinyllamas:stories15M.bin": "karpathy--tinyllamas/stories15M/stories15M.bin",
        "me/tales:v1.5/a.b.bin": "me--tales/v1.5--a.b/a.b.bin",
    }.items():
        source = cache.find_hub_model(name)
        assert source is not None
        assert source.path == Path("/models", path)
        assert source.tokenizer_path == Path("/models", path).with_name("tokenizer.bin")
    for name in ("stories", "tales:a.bin", "me/tales", "me/tales:", "me/tales:/a", "me/tales:a/..", "../x:a", "a/b/c:d"):
        assert cache.find_hub_model(name) is None, name


def test_resolve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMA2C_CACHE", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    for path in ("other.bin", "./stories15M", Path("stories15M")):
        assert cache.resolve(path) == path
    with pytest.raises(FileNotFoundError) as error:
        llama2c.load("stories15M")
    expected = "expected a file, or a model downloaded with `python -m llama2c download stories15M`, found neither"
    assert str(error.value) == f"stories15M: {expected}"
    Path("stories15M").mkdir()  # a folder is no model
    Path("models/stories15M").mkdir(parents=True)
    Path("models/stories15M/stories15M.bin").touch()
    assert cache.resolve("stories15M") == tmp_path / "models" / "stories15M" / "stories15M.bin"
    Path("stories15M").rmdir()
    Path("stories15M").touch()  # a file comes first
    assert cache.resolve("stories15M") == "stories15M"


def test_a_name_that_is_not_downloaded(user: User) -> None:
    code, out, lines = user.run("stories15M")
    expected = "expected a file, or a model downloaded with `python -m llama2c download stories15M`, found neither"
    assert (code, out, lines) == (1, "", [f"llama2c: error: stories15M: {expected}"])
