"""Prefixes: the keys and values of texts that were computed before, so that a text that begins like one of them costs less.

They are kept in a tree. Each node owns the ids of up to KEY_BLOCK positions with their keys and values, in the layout that a
cache has them, so a copy is all it takes. Below a node is what has followed its text. A node with fewer than KEY_BLOCK ids is
the end of a text. Keys and values depend only on the ids up to their position, so copied ones have the bits of computed ones.

The tree can be saved, and loaded by another process. Not thread-safe: one thread uses it. It makes no steps of a model.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import warnings
import zlib
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import FileIO
from operator import attrgetter, index
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._kernels import KEY_BLOCK
from ..errors import ExistingFileError, ModelError, check_int
from ..files import exists, read_start
from ..fingerprint import arithmetic
from ..formats.content import open_file
from ..formats.writer import replacing
from ..generation import count_common
from ..limits import usable_memory
from ..transformer import KVCache, Positions, Transformer

NODE_BYTES = 1024  # what a node takes besides its keys and values, about

# A file: PREAMBLE, the header as JSON, then the keys and values of each node.
MAGIC = b"llama2c prefixes"
VERSION = 1
PREAMBLE = struct.Struct("<16sIII")  # magic, version, bytes of the header, its checksum


@dataclass(slots=True, eq=False)
class Node:
    """Up to KEY_BLOCK positions of a text. Only a node with all of them has children."""

    ids: tuple[int, ...]
    parent: Node | None
    data: NDArray[np.uint8] | None = None  # the bytes of the keys, then those of the values; None: they are still in a file
    stored: Stored | None = None  # where
    children: list[Node] = field(default_factory=list)  # sorted by their ids; none of them begins with those of another

    def nearest(self, block: tuple[int, ...]) -> tuple[Node | None, int]:
        """The child that has the most ids in common with the beginning of `block`, and how many that is."""
        place = bisect_left(self.children, block, key=attrgetter("ids"))
        best, most = None, 0
        for child in self.children[max(place - 1, 0) : place + 1]:  # in sorted order, the nearest are side by side
            common = count_common(child.ids, block)
            if common > most:
                best, most = child, common
        return best, most


class Stored(NamedTuple):
    """Where the bytes of a node are in a file, and their checksum."""

    file: PrefixFile
    offset: int
    checksum: int


def default_bytes() -> int:
    """How much memory prefixes may take where nobody says: an eighth of what there is now."""
    return usable_memory() // 8


class Prefixes:
    """The texts that a model has computed before.

    transformer  whose caches these are
    limit_bytes  the most memory to use. What was used least recently goes first
    """

    def __init__(self, transformer: Transformer, limit_bytes: int) -> None:
        config = transformer.config
        self.limit_bytes: int = check_int("limit_bytes", limit_bytes, 0)
        self.bytes: int = 0  # in use
        self.hits: int = 0  # how often fill() found something
        self.tokens_reused: int = 0  # positions that fill() copied
        self.kv = transformer.kv
        self._vocab_size = config.vocab_size
        self._shape = (config.n_layers, config.n_kv_heads, config.head_size)
        self._half = np.dtype(self.kv).itemsize * config.n_layers * config.kv_dim  # bytes of the keys of one position
        self._root = Node((), None)
        # All nodes but the root, the least recently used first. A child comes before its parent, so the first is a leaf.
        self._order: OrderedDict[Node, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"Prefixes(positions={self.positions}, bytes={self.bytes}, limit_bytes={self.limit_bytes})"

    @property
    def positions(self) -> int:
        """How many positions are known."""
        return sum(len(node.ids) for node in self._order)

    def find(self, ids: Sequence[int]) -> int:
        """How many of the first ids are known. Never all of them: the last has to be fed, as its logits are wanted."""
        return self._walk(ids[:-1])[1]

    def fill(self, cache: KVCache, ids: Sequence[int]) -> int:
        """Copy the positions that find() counts into an empty cache. Returns their number, which cache.length is then.

        They are fewer than find() says where a file that they come from turns out to be damaged (RuntimeWarning).
        ValueError: the cache is not empty, is of another type, or a step uses it; MemoryError.
        """
        self._check(cache)
        if cache.length:
            raise ValueError(f"cache: expected an empty one, found {cache.length} positions")
        wanted = ids[: max(0, min(len(ids) - 1, cache.max_length))]
        path, n = self._walk(wanted)
        while not all(map(self._is_readable, path)):  # one was damaged and is gone: another way may be the longest now
            path, n = self._walk(wanted)
        parts: list[Positions] = []
        for i, node in enumerate(path):
            keys, values = self._views(node)
            used = min(len(node.ids), n - i * KEY_BLOCK)
            parts.append((keys[..., :used], values[:, :, :used]))
        if parts:
            cache.append(parts)
            self._touch(path)
            self.hits += 1
            self.tokens_reused += cache.length
        return cache.length

    def add(self, ids: Sequence[int], cache: KVCache) -> None:
        """Remember the first len(ids) positions of a cache, which were computed for these ids.

        Where the limit leaves no room for all of them, the first are kept. ValueError: the cache has fewer positions, or is of
        another type; MemoryError.
        """
        self._check(cache)
        if len(ids) > cache.length:
            raise ValueError(f"cache: expected at least {len(ids)} positions, one for each id, found {cache.length}")
        node = self._root
        path: list[Node] = []
        try:
            for start, block in blocks(ids):
                known, common = node.nearest(block)
                if known is None or common < len(block):
                    extended = known if known is not None and common == len(known.ids) else None
                    if not self._make_room(self._size(len(block)), extended, len(path)):
                        break
                    known = self._copied(node, block, cache.positions(start, start + len(block)))
                    self._insert(known)
                node = known
                path.append(node)
                self._order.move_to_end(node)  # nothing on the path is dropped for what comes after it
        finally:
            self._touch(path)

    # ---- the tree

    def _check(self, cache: KVCache) -> None:
        if cache.kv != self.kv:
            raise ValueError(f"cache: expected one of {self.kv}, found {cache.kv}")

    def _walk(self, ids: Sequence[int]) -> tuple[list[Node], int]:
        """The nodes that have the first ids, and how many ids those are. The last node may have more, which are others."""
        node, path, n = self._root, [], 0
        for _, block in blocks(ids):
            near, common = node.nearest(block)
            if near is None:
                break
            path.append(near)
            n += common
            if common < KEY_BLOCK:
                break
            node = near
        return path, n

    def _touch(self, path: list[Node]) -> None:
        """Make the nodes of a path, which begins at the root, the most recently used ones."""
        for node in reversed(path):
            self._order.move_to_end(node)

    def _size(self, n_positions: int) -> int:
        """Bytes of a node."""
        return NODE_BYTES + 2 * self._half * n_positions

    def _make_room(self, size: int, replaced: Node | None, n_path: int) -> bool:
        """Drop what was used least recently until there is room for `size` bytes. False: there cannot be.

        replaced  a node without children that is dropped too, but only if that makes enough room
        n_path    the last so many nodes in order must stay
        """
        if replaced is not None:
            size -= self._size(len(replaced.ids))
            self._order.move_to_end(replaced)
            n_path += 1
        while self.bytes + size > self.limit_bytes:
            if len(self._order) <= n_path:
                return False
            self._drop(next(iter(self._order)))
        if replaced is not None:
            self._drop(replaced)
        return True

    def _copied(self, parent: Node, ids: tuple[int, ...], computed: Positions) -> Node:
        """A node with copies of these keys and values, which is not in the tree yet."""
        node = Node(ids, parent, np.empty(2 * self._half * len(ids), np.uint8))
        for own, theirs in zip(self._views(node), computed, strict=True):
            own[...] = theirs
        return node

    def _insert(self, node: Node) -> None:
        assert node.parent is not None
        siblings = node.parent.children
        siblings.insert(bisect_left(siblings, node.ids, key=attrgetter("ids")), node)
        self._order[node] = None
        self.bytes += self._size(len(node.ids))

    def _drop(self, node: Node) -> None:
        """Forget a node and all below it."""
        assert node.parent is not None
        siblings = node.parent.children
        del siblings[bisect_left(siblings, node.ids, key=attrgetter("ids"))]
        below = [node]
        while below:
            node = below.pop()
            below += node.children
            del self._order[node]
            self.bytes -= self._size(len(node.ids))

    def _views(self, node: Node) -> Positions:
        """The keys and values of a node, as KVCache.positions has them."""
        assert node.data is not None
        n, n_bytes = len(node.ids), self._half * len(node.ids)
        n_layers, n_kv_heads, head_size = self._shape
        keys = node.data[:n_bytes].view(self.kv).reshape(n_layers, n_kv_heads, head_size, n)
        return keys, node.data[n_bytes:].view(self.kv).reshape(n_layers, n_kv_heads, n, head_size)

    # ---- files

    def save(self, path: str | os.PathLike[str], fingerprint: str) -> None:
        """Write everything that is known to a file, which is replaced when the new one is complete.

        fingerprint  Llama.fingerprint: whoever loads the file must have the same
        OSError, one line: it cannot be written, or there is a file of another kind at that path.
        """
        path = Path(os.path.realpath(path))
        check_replaceable(path)
        for node in list(self._order):
            if node in self._order:  # else a damaged node above it has taken it along
                self._is_readable(node)
        nodes = list(reversed(self._order))  # a parent before its children
        contents = [node.data.data for node in nodes if node.data is not None]
        numbers: dict[Node | None, int] = {node: number for number, node in enumerate(nodes)}
        entries = [
            (numbers.get(node.parent, -1), zlib.crc32(content), node.ids) for node, content in zip(nodes, contents, strict=True)
        ]
        text = json.dumps(self._form(fingerprint) | {"nodes": entries}, separators=(",", ":")).encode()
        preamble = PREAMBLE.pack(MAGIC, VERSION, len(text), zlib.crc32(text))
        with replacing(path, len(preamble) + len(text) + self.bytes) as unfinished, open(unfinished, "wb") as file:
            file.writelines([preamble, text, *contents])

    def load(self, path: str | os.PathLike[str], fingerprint: str) -> int:
        """Add what a file has, as far as there is room. Returns how many positions are known now.

        Keys and values are read, and their checksum compared, when they are first used. No file is the same as an empty one.
        A file that cannot be used, of another model, cut, damaged or no such file at all, adds nothing: RuntimeWarning.
        """
        try:
            if exists(path):
                self._read(os.fspath(path), fingerprint)
        except (OSError, ValueError, MemoryError) as error:
            reason = str(error).removeprefix(f"{os.fspath(path)}: ")
            warnings.warn(f"{os.fspath(path)}: not used: {reason}", RuntimeWarning, stacklevel=2)
        return self.positions

    def _form(self, fingerprint: str) -> dict[str, Any]:
        """What must be equal, so that keys and values of a file are those that would be computed here."""
        return {"fingerprint": fingerprint, "arithmetic": arithmetic(), "kv": self.kv, "shape": list(self._shape)}

    def _read(self, path: str, fingerprint: str) -> None:
        """Add the nodes of a file; their bytes stay there. ModelError or OSError: it cannot be used, and nothing was added."""
        file = PrefixFile(path)
        header, offset = file.read_header()
        for name, expected in self._form(fingerprint).items():
            if header.get(name) != expected:
                raise ModelError(f"expected those of the {name} {expected}, found {header.get(name)}")
        entries = list(self._entries(header.get("nodes")))
        size = offset + sum(2 * self._half * len(ids) for _, _, ids in entries)
        if size != file.size:
            raise ModelError(f"expected {size} bytes, found {file.size}")
        nodes: list[Node | None] = []  # those of the file that are in the tree
        for number, checksum, ids in entries:
            parent = self._root if number < 0 else nodes[number]
            nodes.append(None if parent is None else self._take(parent, ids, Stored(file, offset, checksum)))
            offset += 2 * self._half * len(ids)

    def _entries(self, nodes: Any) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """The nodes of a header: the number of the parent (-1: the root), the checksum, the ids. ModelError: they cannot be."""
        if not isinstance(nodes, list):
            raise ModelError(f"nodes: expected a list, found {type(nodes).__name__}")
        lengths: list[int] = []
        for number, node in enumerate(nodes):
            if not (isinstance(node, list) and len(node) == 3 and isinstance(node[2], list)):
                raise ModelError(f"nodes[{number}]: expected a parent, a checksum and ids, found {node!s:.60}")
            parent, checksum, ids = node
            if not all(type(value) is int for value in (parent, checksum, *ids)):
                raise ModelError(f"nodes[{number}]: expected integers, found {node!s:.60}")
            if not (-1 <= parent < number and (parent < 0 or lengths[parent] == KEY_BLOCK)):
                raise ModelError(f"nodes[{number}]: expected a parent before it with {KEY_BLOCK} ids, found {parent}")
            if not (1 <= len(ids) <= KEY_BLOCK and min(ids) >= 0 and max(ids) < self._vocab_size):
                raise ModelError(f"nodes[{number}]: expected 1 to {KEY_BLOCK} ids of the vocabulary, found {ids!s:.60}")
            lengths.append(len(ids))
            yield parent, checksum, tuple(ids)

    def _take(self, parent: Node, ids: tuple[int, ...], stored: Stored) -> Node | None:
        """The node with these ids below `parent`: a known one, or a new one, as the least recently used. None: no room."""
        known, common = parent.nearest(ids)
        if known is not None and common == len(ids):
            return known if len(known.ids) == common else None
        replaced = known if known is not None and common == len(known.ids) else None
        size = self._size(len(ids)) - (0 if replaced is None else self._size(len(replaced.ids)))
        if self.bytes + size > self.limit_bytes:
            return None
        if replaced is not None:
            self._drop(replaced)
        node = Node(ids, parent, stored=stored)
        self._insert(node)
        self._order.move_to_end(node, last=False)
        return node

    def _is_readable(self, node: Node) -> bool:
        """Whether the keys and values of a node are in memory now. If a file has others than it had, the node is dropped."""
        if node.data is None:
            assert node.stored is not None
            try:
                node.data = node.stored.file.read(node.stored.offset, 2 * self._half * len(node.ids), node.stored.checksum)
            except (OSError, ValueError) as error:
                self._drop(node)
                warnings.warn(f"{node.stored.file.path}: {error}: computed again", RuntimeWarning, stacklevel=3)
                return False
            node.stored = None
        return True


class PrefixFile:
    """An open file with saved prefixes. It is read and not mapped: the end of a file that was cut is an error, not a signal."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: FileIO = open_file(path)
        self.size: int = os.fstat(self._file.fileno()).st_size

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def read_header(self) -> tuple[dict[str, Any], int]:
        """The header, and where the bytes of the nodes begin. ModelError: it is damaged, or the file is of another kind."""
        start = os.pread(self._file.fileno(), PREAMBLE.size, 0)
        if not start.startswith(MAGIC):
            raise ModelError("expected saved prefixes, found another kind of file" if start else "the file is empty")
        if len(start) < PREAMBLE.size:
            raise ModelError("the file is cut off")
        _, version, length, checksum = PREAMBLE.unpack(start)
        if version != VERSION:
            raise ModelError(f"expected version {VERSION}, found {version}")
        if PREAMBLE.size + length > self.size:
            raise ModelError("the file is cut off")
        header = json.loads(self.read(PREAMBLE.size, length, checksum).tobytes())
        if not isinstance(header, dict):
            raise ModelError(f"expected a JSON object as the header, found {type(header).__name__}")
        return header, PREAMBLE.size + length

    def read(self, offset: int, size: int, checksum: int) -> NDArray[np.uint8]:
        """Some bytes of the file. ModelError: they do not have this checksum, or the file ends before; OSError."""
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size or zlib.crc32(data) != checksum:
            raise ModelError(f"damaged between byte {offset} and {offset + size}")
        return np.frombuffer(data, np.uint8)


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """OSError or ModelError, one line: there is a file that is neither empty nor has saved prefixes, damaged or not."""
    start = read_start(path) if exists(path) else b""
    if start and not start.startswith(MAGIC):
        raise ExistingFileError(errno.EEXIST, "expected a new file or saved prefixes, found another file", os.fspath(path))


def blocks(ids: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Where each block of KEY_BLOCK ids begins, and the ids; the last may be shorter."""
    for start in range(0, len(ids), KEY_BLOCK):
        yield start, tuple(map(index, ids[start : start + KEY_BLOCK]))
