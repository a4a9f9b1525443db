"""Prefixes: copied positions have the bits of computed ones; the byte limit, what is forgotten first, files of every kind."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2c.config import Config
from llama2c.engine import prefixes as module
from llama2c.engine.prefixes import NODE_BYTES, PREAMBLE, Prefixes
from llama2c.formats.checkpoint import Checkpoint
from llama2c.transformer import KVCache, Transformer

CONFIG = Config(dim=24, hidden_dim=40, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=50, seq_len=100)
POSITION = 2 * 4 * CONFIG.n_layers * CONFIG.kv_dim  # bytes
NAME = "a fingerprint"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Transformer:
    path = tmp_path_factory.mktemp("model") / "m.bin"
    weights = checkpoints.random_weights(CONFIG, np.random.default_rng(3))
    return Transformer(Checkpoint.open(checkpoints.write(path, CONFIG, 1, weights)), n_threads=1)


def text(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, n).tolist()


def size(*lengths: int) -> int:
    """Bytes of nodes with so many positions each."""
    return sum(NODE_BYTES + POSITION * length for length in lengths)


def computed(model: Transformer, ids: Sequence[int]) -> KVCache:
    cache = model.new_cache()
    model.forward(ids, cache, logits=0)
    return cache


def remember(prefixes: Prefixes, model: Transformer, ids: Sequence[int]) -> None:
    prefixes.add(ids, computed(model, ids))


def check(prefixes: Prefixes, model: Transformer, ids: Sequence[int], n: int) -> None:
    """The first n ids are known, and a cache filled with them goes on with the bits of one that was computed."""
    assert prefixes.find(ids) == n
    filled, whole = model.new_cache(), model.new_cache()
    expected = model.forward(ids, whole, logits=None)[n:]
    assert prefixes.fill(filled, ids) == n == filled.length
    np.testing.assert_array_equal(model.forward(ids[n:], filled, logits=None), expected)
    more = text(20, seed=9)  # everything after it, too
    np.testing.assert_array_equal(model.forward(more, filled), model.forward(more, whole))


# ---------------------------------------------------------------------------
# in memory


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 32, 40, 75])
def test_a_filled_cache_goes_on_with_the_bits_of_a_computed_one(model: Transformer, n: int) -> None:
    prefixes, ids = Prefixes(model, 1 << 20), text(80)
    check(prefixes, model, ids, 0)
    remember(prefixes, model, ids[:n])
    check(prefixes, model, ids, n)
    check(prefixes, model, [*ids[:n], *text(3, seed=1)], n)
    check(prefixes, model, ids[: n + 1], n)
    if n > 1:
        check(prefixes, model, ids[:n], n - 1)  # the last id has to be fed
    assert prefixes.positions == n
    assert prefixes.bytes == size(*[16] * (n // 16), *[n % 16] * (n % 16 > 0))


def test_texts_that_part_in_a_block_keep_one_copy_of_the_blocks_before(model: Transformer) -> None:
    prefixes, common = Prefixes(model, 1 << 20), text(40)
    a, b = [*common, 1, 2, 3], [*common, 4, *text(30, seed=2)]
    remember(prefixes, model, a)
    remember(prefixes, model, b)
    assert prefixes.bytes == size(16, 16, 11, 16, 16, 7)
    check(prefixes, model, [*a, 0], 43)
    check(prefixes, model, [*b, 0], 71)
    check(prefixes, model, [*common, 9, 9], 40)
    check(prefixes, model, [common[0], 49, 49], 1)
    assert prefixes.find([49, *common]) == 0
    assert (prefixes.hits, prefixes.tokens_reused) == (4, 43 + 71 + 40 + 1)


def test_a_longer_text_replaces_the_end_of_a_shorter_one(model: Transformer) -> None:
    prefixes, ids = Prefixes(model, 1 << 20), text(60)
    for n in (3, 10, 10, 5, 20, 18, 50):
        remember(prefixes, model, ids[:n])
    assert prefixes.bytes == size(16, 16, 16, 2)
    check(prefixes, model, ids, 50)


def test_what_was_used_least_recently_goes_first(model: Transformer) -> None:
    texts = [[i, *text(31, seed=i)] for i in range(4)]
    prefixes = Prefixes(model, size(*[16] * 6))
    for ids in texts[:3]:
        remember(prefixes, model, ids)
    check(prefixes, model, [*texts[0], 0], 32)  # used: now texts[1] is the oldest
    remember(prefixes, model, texts[3][:16])
    assert [prefixes.find([*ids, 0]) for ids in texts] == [32, 16, 32, 16]  # its end goes before its beginning
    remember(prefixes, model, texts[3])
    assert [prefixes.find([*ids, 0]) for ids in texts] == [32, 0, 32, 32]
    prefixes.find([*texts[2], 0])  # touches nothing
    remember(prefixes, model, texts[1])
    assert [prefixes.find([*ids, 0]) for ids in texts] == [32, 32, 0, 32]


def test_a_text_that_does_not_fit_keeps_its_beginning(model: Transformer) -> None:
    ids = text(60)
    prefixes = Prefixes(model, size(16, 16))
    remember(prefixes, model, text(60, seed=1))
    remember(prefixes, model, ids)
    assert prefixes.bytes == size(16, 16)
    check(prefixes, model, ids, 32)
    assert prefixes.find(text(60, seed=1)) == 0
    for limit in (0, size(16) - 1):
        none = Prefixes(model, limit)
        remember(none, model, ids)
        assert (none.bytes, none.find(ids)) == (0, 0)
        check(none, model, ids, 0)


def test_the_end_of_a_text_stays_where_what_replaces_it_does_not_fit(model: Transformer) -> None:
    ids = text(60)
    prefixes = Prefixes(model, size(16, 5))
    remember(prefixes, model, ids[:21])
    remember(prefixes, model, ids)
    check(prefixes, model, ids, 21)


def test_a_short_cache_takes_what_fits(model: Transformer) -> None:
    prefixes, ids = Prefixes(model, 1 << 20), text(60)
    remember(prefixes, model, ids)
    cache = model.new_cache(20)
    assert prefixes.fill(cache, [*ids, 0]) == cache.length == 20


def test_float16(model: Transformer) -> None:
    half = Transformer(model.checkpoint, n_threads=1, kv="float16")
    prefixes, ids = Prefixes(half, 1 << 20), text(60)
    remember(prefixes, half, ids[:50])
    assert prefixes.bytes == 4 * NODE_BYTES + 50 * POSITION // 2
    check(prefixes, half, ids, 50)
    with pytest.raises(ValueError, match=r"^cache: expected one of float16, found float32$"):
        prefixes.fill(model.new_cache(), ids)
    with pytest.raises(ValueError, match=r"^cache: expected one of float16, found float32$"):
        remember(prefixes, model, ids)


def test_wrong_uses(model: Transformer) -> None:
    prefixes, ids = Prefixes(model, 1 << 20), text(30)
    cache = computed(model, ids[:20])
    with pytest.raises(ValueError, match=r"^cache: expected at least 30 positions, one for each id, found 20$"):
        prefixes.add(ids, cache)
    with pytest.raises(ValueError, match=r"^cache: expected an empty one, found 20 positions$"):
        prefixes.fill(cache, ids)
    with pytest.raises(ValueError, match=r"^limit_bytes: expected an integer of at least 0, found -1$"):
        Prefixes(model, -1)
    prefixes.add([], cache)
    assert (prefixes.find([]), prefixes.find(ids), prefixes.bytes) == (0, 0, 0)
    assert prefixes.fill(model.new_cache(), []) == 0


def test_what_is_remembered_is_a_copy(model: Transformer) -> None:
    prefixes, ids = Prefixes(model, 1 << 20), text(60)
    cache = computed(model, ids[:40])
    prefixes.add(ids[:40], cache)
    cache.truncate(0)
    model.forward(text(40, seed=1), cache)
    check(prefixes, model, ids, 40)


# ---------------------------------------------------------------------------
# against a plain model: a dict from the ids of each node's text to when it was used


def common(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


class Plain:
    """The same rules without a tree: every node is the tuple of all ids up to its end."""

    def __init__(self, limit: int) -> None:
        self.limit, self.clock = limit, 0
        self.used: dict[tuple[int, ...], tuple[int, int]] = {}

    @property
    def bytes(self) -> int:
        return sum(size((len(node) - 1) % 16 + 1) for node in self.used)

    def find(self, ids: tuple[int, ...]) -> int:
        return max((common(node, ids[:-1]) for node in self.used), default=0)

    def touch(self, path: list[tuple[int, ...]]) -> None:
        self.clock += 1
        self.used |= {node: (self.clock, -len(node)) for node in path}

    def fill(self, ids: tuple[int, ...]) -> None:
        n = self.find(ids)
        path = [ids[:end] for end in range(16, n + 1, 16)]
        if n % 16:
            path.append(min(node for node in self.used if len(node) <= n - n % 16 + 16 and node[:n] == ids[:n]))
        self.touch(path if n else [])

    def add(self, ids: tuple[int, ...]) -> None:
        path: list[tuple[int, ...]] = []
        for start in range(0, len(ids), 16):
            new = ids[: start + 16]
            beside = [node for node in self.used if start < len(node) <= start + 16]
            longer = [node for node in beside if node[: len(new)] == new]
            if not longer:
                shorter = [node for node in beside if new[: len(node)] == node]
                kept = self.used.keys() - {*path, *shorter}
                need = size(len(new) - start) - sum(size(len(node) - start) for node in shorter)
                while self.bytes + need > self.limit and kept:
                    leaves = [node for node in kept if not any(o != node and o[: len(node)] == node for o in self.used)]
                    oldest = min(leaves, key=self.used.__getitem__)
                    del self.used[oldest]
                    kept.remove(oldest)
                if self.bytes + need > self.limit:
                    break
                for node in shorter:
                    del self.used[node]
                longer = [new]
            self.used[longer[0]] = (0, 0)
            path += longer[:1]
        self.touch(path)


words = st.lists(st.sampled_from([[7], [8], [7] * 15, text(16), text(17, 1), text(33, 2)]), min_size=1, max_size=4)
texts = words.map(lambda parts: tuple(id for part in parts for id in part)[:60])
steps = st.lists(st.tuples(st.sampled_from(["add", "fill"]), texts), max_size=12)


@settings(max_examples=150, deadline=None)
@given(steps=steps, limit=st.integers(0, size(*[16] * 9)))
def test_any_use_is_that_of_the_plain_model(model: Transformer, steps: list[tuple[str, tuple[int, ...]]], limit: int) -> None:
    prefixes, plain = Prefixes(model, limit), Plain(limit)
    for what, ids in steps:
        n = plain.find(ids)
        assert prefixes.find(ids) == n
        if what == "add":
            remember(prefixes, model, ids)
            plain.add(ids)
        else:
            check(prefixes, model, ids, n)
            plain.fill(ids)
        assert prefixes.bytes == plain.bytes <= limit
        assert [prefixes.find([*node, 0]) for node in plain.used] == [len(node) for node in plain.used]


# ---------------------------------------------------------------------------
# files


@pytest.fixture
def saved(model: Transformer, tmp_path: Path) -> Path:
    """A file with two texts: 40 common ids, then 20 and 5 of their own."""
    prefixes = Prefixes(model, 1 << 20)
    remember(prefixes, model, text(60))
    remember(prefixes, model, [*text(40), *text(5, seed=1)])
    path = tmp_path / "saved.prefixes"
    prefixes.save(path, NAME)
    return path


def load(model: Transformer, path: Path, name: str = NAME, limit: int = 1 << 20) -> Prefixes:
    prefixes = Prefixes(model, limit)
    assert prefixes.load(path, name) == prefixes.positions
    return prefixes


def refused(model: Transformer, path: Path, why: str, name: str = NAME) -> None:
    """A warning, and nothing is known, but what was known before still is."""
    ids = text(30, seed=5)
    prefixes = Prefixes(model, 1 << 20)
    remember(prefixes, model, ids)
    with pytest.warns(RuntimeWarning, match=rf"^{path}: not used: {why}$") as caught:
        assert prefixes.load(path, name) == 30
    assert len(caught) == 1
    check(prefixes, model, [*ids, 0], 30)
    assert prefixes.find(text(60)) in (0, 1)


def test_a_saved_tree_is_the_same_tree(model: Transformer, saved: Path) -> None:
    prefixes = load(model, saved)
    assert prefixes.positions == 16 * 3 + 12 + 13
    assert prefixes.bytes == size(16, 16, 16, 12, 13)
    check(prefixes, model, [*text(60), 0], 60)
    check(prefixes, model, [*text(40), *text(5, seed=1), 0], 45)
    assert not list(saved.parent.glob("*.part"))


def test_a_second_save_has_what_was_loaded_and_what_is_new(model: Transformer, saved: Path) -> None:
    prefixes = load(model, saved)
    remember(prefixes, model, text(30, seed=7))
    prefixes.save(saved, NAME)
    again = load(model, saved)
    assert again.bytes == prefixes.bytes
    check(again, model, [*text(60), 0], 60)
    check(again, model, [*text(30, seed=7), 0], 30)
    check(prefixes, model, [*text(40), *text(5, seed=1), 0], 45)  # the file that it came from is gone


def test_the_order_of_use_is_saved(model: Transformer, tmp_path: Path) -> None:
    path, texts = tmp_path / "p", [[i, *text(15, seed=i)] for i in range(4)]
    prefixes = Prefixes(model, size(*[16] * 4))
    for ids in texts:
        remember(prefixes, model, ids)
    check(prefixes, model, [*texts[0], 0], 16)
    prefixes.save(path, NAME)
    few = load(model, path, limit=size(16, 16))  # takes those that were used last
    assert [few.find([*ids, 0]) for ids in texts] == [16, 0, 0, 16]
    again = load(model, path, limit=size(*[16] * 4))
    remember(again, model, text(40, seed=8))
    assert [again.find([*ids, 0]) for ids in texts] == [16, 0, 0, 0]


def test_what_is_loaded_is_older_than_what_is_known(model: Transformer, saved: Path) -> None:
    ids = text(32, seed=5)
    prefixes = Prefixes(model, size(16, 16, 16, 16))
    remember(prefixes, model, ids)
    assert prefixes.load(saved, NAME) == 64
    assert prefixes.bytes == prefixes.limit_bytes
    remember(prefixes, model, text(32, seed=6))
    check(prefixes, model, [*ids, 0], 32)
    assert prefixes.find([*text(60), 0]) == 0


def test_loading_what_is_known_adds_what_is_new_of_it(model: Transformer, saved: Path) -> None:
    prefixes = Prefixes(model, 1 << 20)
    remember(prefixes, model, text(50))
    for _ in range(2):
        prefixes.load(saved, NAME)
        assert prefixes.bytes == size(16, 16, 16, 12, 13)
        check(prefixes, model, [*text(60), 0], 60)


def test_nothing_is_read_before_it_is_used(model: Transformer, saved: Path) -> None:
    prefixes = load(model, saved)
    assert all(node.data is None for node in prefixes._order)
    check(prefixes, model, [*text(20), 49, 49], 20)
    assert sorted(len(node.ids) for node in prefixes._order if node.data is not None) == [16, 16]


def payload(path: Path) -> int:
    """Where the bytes of the nodes begin."""
    _, _, length, _ = PREAMBLE.unpack(path.read_bytes()[: PREAMBLE.size])
    return PREAMBLE.size + int(length)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("place", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_one_bit_of_the_keys_and_values_is_wrong(model: Transformer, saved: Path, place: float) -> None:
    """Whatever is read from the damaged node is computed again; other nodes are used."""
    start, end = 8 * payload(saved), 8 * saved.stat().st_size
    flip(saved, start + int(place * (end - start - 1)))
    prefixes = load(model, saved)  # no warning yet
    known, damages = 0, []
    for ids in ([*text(60), 0], [*text(40), *text(5, seed=1), 0]):
        before = prefixes.find(ids)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cache = model.new_cache()
            n = prefixes.fill(cache, ids)
        damages += [str(warning.message) for warning in caught]
        assert n <= before
        assert prefixes.find(ids) == n
        np.testing.assert_array_equal(model.forward(ids[n:], cache), model.forward(ids, model.new_cache()))
        check(prefixes, model, ids, n)
        known += n
    assert len(damages) == 1
    assert f"{saved}: damaged between byte " in damages[0]
    assert known < 105
    assert prefixes.bytes == sum(size(len(node.ids)) for node in prefixes._order)
    prefixes.save(saved, NAME)  # what is left
    assert load(model, saved).bytes == prefixes.bytes


def test_one_bit_of_the_header_is_wrong(model: Transformer, saved: Path) -> None:
    good = saved.read_bytes()
    for bit in [*range(8 * PREAMBLE.size), *range(8 * PREAMBLE.size, 8 * payload(saved), 61)]:
        flip(saved, bit)
        refused(model, saved, ".*")
        saved.write_bytes(good)


def test_a_file_that_was_cut(model: Transformer, saved: Path) -> None:
    good, start = saved.read_bytes(), payload(saved)
    for n in (0, 1, 15, 16, 27, 28, 29, start - 1, start, start + 1, len(good) - 1):
        saved.write_bytes(good[:n])
        refused(model, saved, ".*")
    saved.write_bytes(good + b"\0")
    refused(model, saved, rf"expected {len(good)} bytes, found {len(good) + 1}")


def test_a_file_that_is_cut_after_it_was_loaded(model: Transformer, saved: Path) -> None:
    prefixes = load(model, saved)
    os.truncate(saved, payload(saved) + 20 * POSITION)
    with pytest.warns(RuntimeWarning, match="damaged between byte"):
        assert prefixes.fill(model.new_cache(), [*text(60), 0]) == 16


def test_foreign_files(model: Transformer, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(model, saved, "expected those of the fingerprint another, found a fingerprint", name="another")
    half = Transformer(model.checkpoint, n_threads=1, kv="float16")
    with pytest.warns(RuntimeWarning, match="not used: expected those of the kv float16, found float32$"):
        assert Prefixes(half, 1 << 20).load(saved, NAME) == 0
    monkeypatch.setattr(module, "arithmetic", lambda: "another")
    refused(model, saved, "expected those of the arithmetic another, found .*")
    monkeypatch.undo()
    other = tmp_path / "other"
    other.write_bytes(b"GGUF" + bytes(100))
    refused(model, other, "expected saved prefixes, found another kind of file")
    refused(model, tmp_path, "expected a regular file, found a directory|.*directory.*")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        refused(model, tmp_path / "fifo", "expected a regular file, found a FIFO")


def test_no_file_is_an_empty_one(model: Transformer, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Prefixes(model, 1 << 20).load(tmp_path / "none", NAME) == 0
    (tmp_path / "link").symlink_to(tmp_path / "none")
    refused(model, tmp_path / "link", "expected a readable file, found a link to .*")


def test_other_files_are_not_overwritten(model: Transformer, tmp_path: Path) -> None:
    prefixes, path = Prefixes(model, 1 << 20), tmp_path / "model.bin"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=rf"^{path}: expected a new file or saved prefixes, found another file$"):
        prefixes.save(path, NAME)
    assert path.read_bytes() == b"precious"
    with pytest.raises(FileNotFoundError, match=r"expected a place to write to"):
        prefixes.save(tmp_path / "none" / "p", NAME)
    path.write_bytes(b"")
    prefixes.save(path, NAME)
    assert load(model, path).positions == 0


def test_a_full_disk_leaves_the_file_as_it_was(model: Transformer, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, prefixes = saved.read_bytes(), load(model, saved)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(OSError, match=r"expected 0 MB of free disk, found 0 MB$"):
        prefixes.save(saved, NAME)
    assert saved.read_bytes() == good
    assert list(saved.parent.iterdir()) == [saved]
    check(prefixes, model, [*text(60), 0], 60)
