"""A Hugging Face hub on 127.0.0.1, small files for it, and a user with a cache of his own who downloads from it.

huggingface_hub reads its settings when it is imported, so each download is a process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import checkpoints
import folders
import gguf_files
import numpy as np
import pytest
import tokenizer_models

from llama2c.config import Config
from llama2c.downloads import TOKENIZER_SIZE

needs_huggingface_hub = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="needs huggingface_hub: pip install 'llama2c[hub]'"
)
REVISION = "0123456789abcdef0123456789abcdef01234567"
SECONDS = 60  # what hangs is ended
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


def llama2_files() -> dict[str, bytes]:
    """What the network has for `download stories15M`."""
    return {STORIES15M: model_bytes(LLAMA2), TOKENIZER: tokenizer_bytes(32000, TOKENIZER_SIZE)}


def folder_files(folder: Path, n_shards: int = 0) -> dict[str, bytes]:
    """A Hugging Face folder of 300 tokens, written to `folder`, and what else repositories have: by name."""
    folders.write_model(folder, SMALL, checkpoints.random_weights(SMALL, np.random.default_rng(3)), n_shards=n_shards)
    (folder / "tokenizer.model").write_bytes(tokenizer_models.model(tokenizer_models.pieces(300)))
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def gguf_parts(n_parts: int) -> list[bytes]:
    """A GGUF file without a tokenizer, or its parts."""
    file = gguf_files.good(SMALL, checkpoints.random_weights(SMALL, np.random.default_rng(3)))
    names, parts = list(file.tensors), []
    for number in range(n_parts):
        keys = dict(file.keys) if number == 0 else {}
        part = gguf_files.File(keys, {name: file.tensors[name] for name in names[number::n_parts]})
        part.set("split.no", gguf_files.U16, number).set("split.count", gguf_files.U16, n_parts)
        parts.append(part.set("split.tensors.count", gguf_files.I32, len(names)).pack())
    return parts


# ---------------------------------------------------------------------------
# the hub


class Hub:
    """A server of `files`, for use in a with statement. What goes wrong is set by path: statuses, sizes, broken answers."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}  # by path, of the revision main, which is also REVISION
        self.listed: dict[str, list[str]] = {}  # what the list of a repository has, where that is not its files
        self.status: dict[tuple[str, str], int] = {}  # by method and path
        self.announced: dict[str, int] = {}
        self.breaks: dict[str, int] = {}  # bytes after which a GET breaks off, once
        self.holds = False  # a GET that breaks off waits for `go` first
        self.plain = False  # answers without the headers of a hub
        self.broke, self.go = threading.Event(), threading.Event()
        self.requests: list[tuple[str, str, str | None]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Hub:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


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

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        if parsed:
            self.path = self.path.replace(f"/resolve/{REVISION}/", "/resolve/main/")
        return parsed

    def content(self) -> bytes | None:
        """The file of a path, or the list of the files of a repository."""
        repo_id = self.path.removeprefix("/api/models/")
        if repo_id == self.path:
            return self.hub.files.get(self.path)
        start = f"/{repo_id}/resolve/main/"
        names = self.hub.listed.get(repo_id) or [path.removeprefix(start) for path in self.hub.files if path.startswith(start)]
        others = {"private": False, "downloads": 0, "likes": 0, "tags": []}  # old versions of huggingface_hub insist on them
        answer = {"id": repo_id, "sha": REVISION, "siblings": [{"rfilename": name} for name in names]}
        return json.dumps(answer | others).encode() if names else None

    def answer(self) -> bytes | None:
        self.hub.requests.append((self.command, self.path, self.headers["Range"]))
        content = self.content()
        status = self.hub.status.get((self.command, self.path), 200 if content is not None else 404)
        if status == 200:
            return content
        self.send_response(status)
        if status in (401, 404):
            is_list = self.path.startswith("/api/")
            self.send_header("X-Error-Code", "EntryNotFound" if status == 404 and not is_list else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def start(self, status: int, size: int, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        if not self.hub.plain:
            self.send_header("ETag", '"0123456789abcdef"')
            self.send_header("X-Repo-Commit", REVISION)
        if status == 206 and content_range is not None:
            self.send_header("Content-Range", content_range)
        self.end_headers()


class User:
    """Runs `python -m llama2c` and Python code that downloads, with a home of his own and the hub at `url`."""

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

    def process(
        self, *arguments: str, flags: tuple[str, ...] = ("-m", "llama2c"), stderr: int = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, *flags, *arguments]
        return subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr)

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

    def python(self, code: str) -> Any:
        """What Python code prints as JSON, which must be all that it prints."""
        process = self.process("import json, llama2c\n" + code, flags=("-c",))
        out, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, err) == (0, b""), err.decode()
        return json.loads(out)

    def files(self) -> dict[str, bytes]:
        """All files in the cache, with their content, by path."""
        found = (path for path in self.cache.rglob("*") if path.is_file())
        return {path.relative_to(self.cache).as_posix(): path.read_bytes() for path in found}

    def named_files(self) -> dict[str, bytes]:
        """Those with a final name. Old versions of huggingface_hub also keep what they can resume."""
        return {path: content for path, content in self.files().items() if "/.download/" not in path}
