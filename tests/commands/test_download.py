"""The verb `download` against a hub on 127.0.0.1: what it prints, and what the cache has afterwards."""

from __future__ import annotations

import contextlib
import fcntl
import inspect
import os
import pty
import re
import signal
import socket
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
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
from llama2c import locate
from llama2c.commands.download import NOTES
from llama2c.commands.main import main
from llama2c.downloads import TOKENIZER_SIZE


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
    assert user.run("download", "stories15M") == (0, f"{model}\n", ["llama2c: stories15M: already downloaded"])
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
    unfit = "the model has 300 tokens, so the tokenizer of Llama 2 (32000 tokens) does not fit"
    assert user.fails(name) == f"{name}: {unfit}: name the model's tokenizer with --tokenizer FILE"
    assert list(user.files()) == ["me--tales/big--a/a.bin"]  # the model is complete, and is not downloaded again
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
    assert line.startswith("karpathy/tinyllamas:stories15M.bin: ") and str(size) in line and str(size + 1) in line
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
    assert user.fails("stories15M") == f"karpathy/tinyllamas:stories15M.bin: {net.url} answered with HTTP status 500"
    from huggingface_hub import get_hf_file_metadata

    if "retry_on_errors" in inspect.signature(get_hf_file_metadata).parameters:  # some older versions insist for 20 seconds
        assert len(net.requests) <= 3  # not tried again for a minute
    assert not (user.cache / "stories15M" / "stories15M.bin").exists()


@needs_huggingface_hub
def test_not_found(user: User, net: Hub) -> None:
    assert user.fails("me/tales:a.bin") == "me/tales:a.bin: the repository has no such file (HTTP status 404)"
    assert user.files() == {}
    net.status = {("HEAD", "/me/secrets/resolve/main/a.bin"): 401}  # what the hub says of repositories it does not show
    expected = f"me/secrets:a.bin: {net.url} has no such repository, or does not let you read it (HTTP status 401)"
    assert user.fails("me/secrets:a.bin") == expected


@needs_huggingface_hub
def test_a_server_that_is_no_hub(user: User, net: Hub, llama2: dict[str, bytes]) -> None:
    net.files, net.plain = llama2, True
    expected = f"karpathy/tinyllamas:stories15M.bin: cannot be downloaded from {net.url}: "
    assert user.fails("stories15M").startswith(expected)
    assert user.files() == {}


@needs_huggingface_hub
def test_no_network(user: User) -> None:
    with socket.socket() as unheard:  # bound, but nobody listens
        unheard.bind(("127.0.0.1", 0))
        url = user.env["HF_ENDPOINT"] = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        line = user.fails("stories15M")
    assert line.startswith(f"karpathy/tinyllamas:stories15M.bin: cannot be downloaded from {url}: ") and "refused" in line
    assert user.files() == {}


@needs_huggingface_hub
def test_the_tokenizer_fails_then_comes_alone(user: User, net: Hub, llama2: dict[str, bytes]) -> None:
    net.files = dict(llama2)
    for content, status, message in (
        (llama2[TOKENIZER], 503, "the server answered with HTTP status 503"),
        (llama2[TOKENIZER][:-1], 200, f"expected {TOKENIZER_SIZE} bytes, found {TOKENIZER_SIZE - 1}"),
        (llama2[TOKENIZER] + b"x", 200, f"expected {TOKENIZER_SIZE} bytes, found more"),
    ):
        net.files[TOKENIZER], net.status = content, {("GET", TOKENIZER): status}
        assert user.fails("stories15M") == f"{net.url}{TOKENIZER}: {message}"
        assert user.files() == {"stories15M/stories15M.bin": llama2[STORIES15M]}
    net.files[TOKENIZER] = bytes(TOKENIZER_SIZE)
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
    assert line.startswith(f"{url}: cannot be downloaded: ") and "refused" in line
    assert list(user.files()) == ["stories15M/stories15M.bin"]


def test_a_cache_that_cannot_be_written(user: User) -> None:
    user.cache.write_bytes(b"a file")
    line = user.fails("stories15M")
    assert line.startswith(str(user.cache)) and ": expected a place to write to, found: " in line
    assert user.cache.read_bytes() == b"a file"


def test_without_huggingface_hub(user: User, tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError")
    user.env["PYTHONPATH"] = str(tmp_path)
    assert user.fails("stories15M") == "download needs the package huggingface_hub: pip install 'llama2c[hub]'"
    assert user.files() == {}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["stories7B"], "stories7B: unknown model; use stories260K, stories15M, stories42M, stories110M, smollm2-135m, "),
        (["me/tales:../a.bin"], "me/tales:../a.bin: unknown model; use "),
        (
            ["stories15M", "--tokenizer", "t.bin"],
            "--tokenizer: stories15M has a known tokenizer; only a checkpoint of llama2.c",
        ),
        (["me/tales:a.bin", "--tokenizer", "../t.bin"], "--tokenizer: expected the path of a file in me/tales, found"),
        ([], "the following arguments are required: MODEL"),
    ],
)
def test_wrong_command_lines(user: User, arguments: list[str], line: str) -> None:
    code, out, lines = user.run("download", *arguments)
    assert (code, out, len(lines)) == (2, "", 1)
    assert lines[0].startswith(f"llama2c: error: {line}")
    assert user.files() == {}


# ---------------------------------------------------------------------------
# the terminal


@needs_huggingface_hub
@pytest.mark.parametrize("columns", [80, 120])
def test_a_bar_on_a_terminal(user: User, net: Hub, llama2: dict[str, bytes], columns: int) -> None:
    """Ours, in one line, which is gone at the end; none of huggingface_hub."""
    pytest.importorskip("tqdm", reason="needs tqdm")
    net.files = llama2
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    process = user.process("download", "stories15M", stderr=writer)
    os.close(writer)
    shown = b""
    with open(reader, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # EIO: the process has ended
        while block := terminal.read(1000):
            shown += block
    assert process.communicate(timeout=SECONDS)[0].decode() == f"{user.cache}/stories15M/stories15M.bin\n"
    *drawn, message, end = re.split(r"\r\n|\r", shown.decode())
    assert (message, end) == ("llama2c: stories15M: downloaded, 1.0 MB", "")
    bars = [line for line in drawn if line.strip()]
    assert bars[0].startswith("karpathy/tinyllamas:stories15M.bin:   0%|")
    assert all(line.startswith(("karpathy/tinyllamas:stories15M.bin: ", net.url + TOKENIZER)) for line in bars)
    assert max(map(len, drawn)) < columns
    assert drawn[-1].strip() == ""  # wiped


def test_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["download", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "    python -m llama2c download stories15M" in lines


# ---------------------------------------------------------------------------
# names, without a network


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/lily")
    monkeypatch.delenv("LLAMA2C_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert locate.cache_folder() == Path("/home/lily/.cache/llama2c")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/lily")
    assert locate.cache_folder() == Path("/var/cache/lily/llama2c")
    monkeypatch.setenv("LLAMA2C_CACHE", "/models")
    assert locate.cache_folder() == Path("/models")


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA2C_CACHE", "/models")
    for name, path in {
        "stories260K": "stories260K/stories260K.bin",
        "stories110M": "stories110M/stories110M.bin",
        "karpathy/tinyllamas:stories15M.bin": "karpathy--tinyllamas/stories15M/stories15M.bin",
        "me/tales:v1.5/a.b.bin": "me--tales/v1.5--a.b/a.b.bin",
        "me/tales:q4/a-00001-of-00002.gguf": "me--tales/q4--a-00001-of-00002/a-00001-of-00002.gguf",
        "smollm2-135m": "smollm2-135m/SmolLM2-135M-Instruct-Q8_0.gguf",
        "me/tales": "repositories/me--tales",
        "me/tales-1.1b": "repositories/me--tales-1.1b",
    }.items():
        source = locate.find_hub_model(name)
        assert source is not None
        assert source.path == Path("/models", path)
        if path.endswith(".bin"):
            assert source.tokenizer_path == Path("/models", path).with_name("tokenizer.bin")
    others = ("me/a.bin", "me/a.gguf", "./me", "../me", "me/..", "a/b/c", "me/a b", "me/a/")
    for name in (*others, "stories", "tales:a.bin", "me/tales:", "me/tales:/a", "me/tales:a/..", "../x:a", "a/b/c:d"):
        assert locate.find_hub_model(name) is None, name


def test_the_models_to_chat_with() -> None:
    """Each has a name, a GGUF file in one part, and a folder of its own; the help and the page have them, too."""
    page = Path(__file__).parents[2].joinpath("docs", "models.md").read_text()
    assert not locate.STORIES.keys() & locate.CHATS.keys()
    for name, source in locate.CHATS.items():
        assert (source.name, source.folder, source.tokenizer) == (name, name, None)
        assert locate.find_hub_model(f"{source.repo_id}:{source.file}") is not None
        assert source.is_gguf and source.parts == [source.file] and "/" not in (source.file or "")
        assert name == name.lower() and name in NOTES
        assert f"| `{name}` |" in page


def test_resolve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMA2C_CACHE", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    for path in ("other.bin", "./stories15M", Path("stories15M")):
        assert locate.resolve(path) == path
    with pytest.raises(FileNotFoundError) as error:
        llama2c.load("stories15M")
    expected = "expected a file, or a model downloaded with `python -m llama2c download stories15M`, found neither"
    assert str(error.value) == f"stories15M: {expected}"
    Path("stories15M").mkdir()  # a folder without config.json is not a model
    Path("models/stories15M").mkdir(parents=True)
    Path("models/stories15M/stories15M.bin").touch()
    assert locate.resolve("stories15M") == tmp_path / "models" / "stories15M" / "stories15M.bin"
    Path("stories15M").rmdir()
    Path("stories15M").touch()  # a file comes first
    assert locate.resolve("stories15M") == "stories15M"


def test_resolve_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A path that is there is a path, with a config.json or without: export reads folders of other programs, too."""
    monkeypatch.setenv("LLAMA2C_CACHE", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^me/tiny: expected a file, or a model downloaded with `python"):
        locate.resolve("me/tiny")
    folder = tmp_path / "models" / "repositories" / "me--tiny"
    folder.mkdir(parents=True)
    assert locate.resolve("me/tiny") == folder
    Path("me/tiny").mkdir(parents=True)
    assert locate.resolve("me/tiny") == "me/tiny"


def test_a_name_that_is_not_downloaded(user: User) -> None:
    code, out, lines = user.run("stories15M")
    expected = "expected a file, or a model downloaded with `python -m llama2c download stories15M`, found neither"
    assert (code, out, lines) == (1, "", [f"llama2c: error: stories15M: {expected}"])
