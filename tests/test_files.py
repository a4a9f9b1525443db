"""Small files read whole, and what is said of a file that cannot be read or is of another kind."""

from __future__ import annotations

import errno
import gzip
import os
import pickle
import struct
from pathlib import Path

import pytest
from bad_inputs.files import OTHERS

from llama2c.errors import FileError, ModelError
from llama2c.files import exists, file_size, read_file, read_json, read_start, recognise


def test_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": [1, "\xc3\xa9"]}' + b" " * 1000)
    assert read_file(path) == path.read_bytes()
    assert read_start(path) == path.read_bytes()[:512]
    assert file_size(path) == 1016
    assert read_json(path) == {"a": [1, "é"]}


@pytest.mark.parametrize("read", [read_file, file_size, read_json, read_start])
def test_a_dangling_link_is_not_an_absent_file(tmp_path: Path, read: object) -> None:
    (tmp_path / "link").symlink_to("blobs/17")
    assert callable(read)
    with pytest.raises(FileNotFoundError) as caught:
        read(tmp_path / "link")
    assert str(caught.value) == f"{tmp_path}/link: expected a readable file, found a link to blobs/17, which does not exist"
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, f"{tmp_path}/link")
    with pytest.raises(FileNotFoundError, match=r"/none: expected a readable file, found: No such file or directory$"):
        read(tmp_path / "none")


def test_exists(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "good").symlink_to("file")
    (tmp_path / "bad").symlink_to("none")
    (tmp_path / "loop").symlink_to("loop")
    assert exists(tmp_path) and exists(tmp_path / "file") and exists(tmp_path / "good")
    assert not exists(tmp_path / "none") and not exists(tmp_path / "file" / "inner") and not exists("a\0b")
    with pytest.raises(FileNotFoundError, match=r"bad: expected a readable file, found a link to none, which does not exist$"):
        exists(tmp_path / "bad")
    with pytest.raises(FileError, match=r"loop: expected a readable file, found: Too many levels") as caught:
        exists(tmp_path / "loop")
    assert caught.value.errno == errno.ELOOP


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, kind in ((tmp_path / "fifo", "special file"), (tmp_path, "directory")):
        with pytest.raises(ModelError, match=rf"^{path}: expected a regular file, found a {kind}$"):
            read_file(path)
    (tmp_path / "large").write_bytes(b"")
    os.truncate(tmp_path / "large", 1 << 31)
    with pytest.raises(ModelError, match=r"large: expected a file of less than 2 GiB, found 2147483648 bytes$"):
        read_file(tmp_path / "large")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b'{"a": \xff}', b"version https://git-lfs.github.com/spec/v1\n"])
def test_json_that_is_not_an_object(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"^\S+/a.json: expected (JSON, found: |a JSON object, found list$)") as caught:
        read_json(tmp_path / "a.json")
    assert ("a Git LFS pointer" in str(caught.value)) == content.startswith(b"version")


@pytest.mark.parametrize("title", OTHERS)
def test_recognise(title: str) -> None:
    content, words = OTHERS[title]
    found = recognise(content[:512])
    assert found is not None and found.startswith(words)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"Once upon a time",
        b"<unk>",
        b"[INST] What is JSON?",
        struct.pack("<7i", 640, 1728, 2, 10, 10, 32000, 256),  # of v0: dim = 640 begins like a pickle of version 2
        struct.pack("<7i", 0x6B34, 8, 1, 1, 1, 300, 8),
        gzip.compress(b"")[:2],
        pickle.dumps([], 0),
    ],
)
def test_what_is_not_recognised(start: bytes) -> None:
    assert recognise(start) is None
