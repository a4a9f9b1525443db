"""benchmarks/make_checkpoint.py: its files open, have the right weights, and never end a greedy story."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from llama2c import Checkpoint, Config, QuantizedTensor, Tokenizer, Transformer

CONFIG = Config(dim=64, hidden_dim=96, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=128)
VERSIONS = [(0, None), (1, None), (2, 32), (2, 64)]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "make_checkpoint.py"
    spec = importlib.util.spec_from_file_location("make_checkpoint", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_checkpoint"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("version", "group_size"), VERSIONS)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("chunk", [1, 500, 1 << 22])
def test_weights(
    maker: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: int,
    group_size: int | None,
    shared: bool,
    chunk: int,
) -> None:
    """For every size of chunks: normally distributed with standard deviation columns ** -0.5, norms 1, and rows 1 to 4."""
    monkeypatch.setattr(maker, "CHUNK", chunk)
    maker.make_checkpoint(tmp_path / "m.bin", CONFIG, version, 7, group_size, shared)
    opened = Checkpoint.open(tmp_path / "m.bin")
    assert (opened.version, opened.config, opened.shared_classifier, opened.group_size) == (version, CONFIG, shared, group_size)
    for name, weight in opened.weights.items():
        values = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        if name.startswith("rms"):
            assert (values == 1).all()
            continue
        scaled = values * values.shape[-1] ** 0.5
        assert abs(scaled.mean()) < 0.05
        assert abs(scaled.std() - 1) < 0.05
    classifier = opened.weights["wcls"]
    rows = classifier.dequantize() if isinstance(classifier, QuantizedTensor) else classifier
    np.testing.assert_array_equal(rows[4], -rows[3])
    np.testing.assert_array_equal(rows[1], rows[3] / 2)
    np.testing.assert_array_equal(rows[2], rows[4] / 2)


def test_seeds(maker: ModuleType, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        maker.make_checkpoint(tmp_path / name, CONFIG, seed=seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize(("version", "group_size"), VERSIONS)
def test_a_greedy_story_never_ends(maker: ModuleType, tmp_path: Path, version: int, group_size: int | None) -> None:
    for seed in range(3):
        maker.make_checkpoint(tmp_path / "m.bin", CONFIG, version, seed, group_size)
        transformer = Transformer(Checkpoint.open(tmp_path / "m.bin"), n_threads=1)
        cache, token = transformer.new_cache(), 1
        for _ in range(CONFIG.seq_len):
            logits = transformer.forward([token], cache)
            assert max(logits[1], logits[2]) < max(logits[3], logits[4])
            token = int(logits.argmax())
            assert token not in (1, 2)


def test_command_line(maker: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = tmp_path / "m.bin", tmp_path / "t.bin"
    arguments = ["64,96,2,4,2,300,128", str(model), "--version", "2", "--untied", "--tokenizer", str(tokenizer)]
    assert maker.main(arguments) == 0
    assert Checkpoint.open(model).group_size == 32
    text = "w0 and é"
    opened = Tokenizer.open(tokenizer, vocab_size=300)
    assert opened.decode(opened.encode(text)) == text
    assert maker.main(["64,96", str(model)]) == 1
    assert maker.main(["260K", str(tmp_path / "absent" / "m.bin")]) == 1
    assert capsys.readouterr().err.count("make_checkpoint: error: ") == 2


def test_presets(maker: ModuleType) -> None:
    """The number of weights of the story models, SmolLM2 and TinyLlama, in millions."""

    def millions(c: Config) -> float:
        layer = c.dim * (2 * c.dim + 2 * c.kv_dim + 3 * c.hidden_dim) + 2 * c.dim
        return (c.n_layers * layer + c.vocab_size * c.dim + c.dim) / 1e6

    sizes = {name: round(millions(config), 2) for name, config in maker.PRESETS.items()}
    assert sizes == {"260K": 0.26, "15M": 15.19, "42M": 41.69, "110M": 109.53, "135M": 134.52, "1.1B": 1034.51}


def test_an_interrupted_run_leaves_no_file(maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(maker, "chunks", interrupt)
    with pytest.raises(KeyboardInterrupt):
        maker.make_checkpoint(tmp_path / "m.bin", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_bfloat16(maker: ModuleType, tmp_path: Path) -> None:
    """Version 3 holds other types. The weights are those in fp32, rounded to 8 bits."""
    maker.make_checkpoint(tmp_path / "a.bin", CONFIG, 3)
    maker.make_checkpoint(tmp_path / "b.bin", CONFIG, 3, dtype="bfloat16")
    exact, rounded = (Checkpoint.open(tmp_path / name) for name in ("a.bin", "b.bin"))
    assert (rounded.kind, rounded.version) == ("bf16", 3)
    tokens = [1, 7, 40]
    logits = [model.forward(tokens, model.new_cache()) for model in map(Transformer, (exact, rounded))]
    difference = np.abs(logits[0] - logits[1]).max() / np.abs(logits[0]).max()
    assert 0 < difference < 0.05
