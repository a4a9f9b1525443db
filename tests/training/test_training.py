"""training/: each step from a corpus to a model file, with a tiny corpus and a tiny model."""

from __future__ import annotations

import importlib
import json
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llama2c import Checkpoint, QuantizedTensor, Tokenizer, Transformer

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
sentencepiece = pytest.importorskip("sentencepiece", reason="needs sentencepiece: pip install '.[train]'")
pytest.importorskip("tqdm", reason="needs tqdm: pip install '.[train]'")

FOLDER = Path(__file__).parents[2] / "training"
VOCAB_SIZE = 340
SHAPE = "--dim 32 --hidden-dim 64 --n-layers 2 --n-heads 4 --n-kv-heads 2 --seq-len 128 --window 48".split()
RECIPE = [*SHAPE, *"--batch 4 --steps 40 --warmup 5 --lr 0.01 --eval-every 10 --eval-windows 8 --log-every 4".split()]


@pytest.fixture(scope="module")
def training() -> Iterator[SimpleNamespace]:
    """The scripts as modules. They import each other by their plain names."""
    names = ("data", "model", "train_tokenizer", "train", "export", "check")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for name in names:  # other tests may use modules with the same names
            patch.delitem(sys.modules, name, raising=False)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
        for name in names:
            del sys.modules[name]


def write_stories(path: Path, n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    stories = []
    for _ in range(n):
        name, thing = draw.choice(["Lily", "Tom", "Zoë"]), draw.choice(["ball", "kite", "boat"])
        lines = [f"One day, {name} saw a {thing}.", f'"I like it  a lot!" said {name}, {draw.randint(1, 99)} times.']
        stories.append("\n".join(lines[: draw.randint(1, 2)] * draw.randint(1, 3)))
    path.write_text("\n\n".join(stories) + "\n", encoding="utf-8")
    return stories


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_stories(folder / "train.txt", 300, 1)
    write_stories(folder / "held_out.txt", 30, 2)
    return folder


@pytest.fixture(scope="module")
def tokenizer(training: SimpleNamespace, corpus: Path) -> Path:
    path = corpus / "tokenizer.bin"
    assert training.train_tokenizer.main([str(corpus / "train.txt"), str(path), "--vocab-size", str(VOCAB_SIZE)]) == 0
    return path


def train(training: SimpleNamespace, tokenizer: Path, out: Path, *more: str) -> int:
    places = ["--corpus", str(tokenizer.parent), "--tokenizer", str(tokenizer), "--out", str(out), "--threads", "1"]
    status: int = training.train.main([*places, *RECIPE, *more])
    return status


def read_log(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.pop("seconds") > 0
    return lines


@pytest.fixture(scope="module")
def run(training: SimpleNamespace, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole training."""
    out = tmp_path_factory.mktemp("run")
    assert train(training, tokenizer, out) == 0
    return out


# ---------------------------------------------------------------------------
# the tokenizer


def test_stories_of_a_file(training: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\ntwo\n\n\n é \r\nx\n\nlast".encode())
    assert list(training.data.read_stories(tmp_path / "a.txt")) == ["one\ntwo", " é \r\nx", "last"]
    (tmp_path / "b.txt").write_bytes(b"one\n\xff\n")
    with pytest.raises(ValueError, match=r"b.txt: expected UTF-8, found the byte 0xff"):
        list(training.data.read_stories(tmp_path / "b.txt"))


def test_tokenizer_is_that_of_sentencepiece(training: SimpleNamespace, corpus: Path, tokenizer: Path) -> None:
    """On stories, and on other texts: other scripts, spaces at the ends, several newlines, control characters."""
    opened = Tokenizer.open(tokenizer, VOCAB_SIZE)
    theirs = training.train_tokenizer.train(corpus / "train.txt", VOCAB_SIZE)
    assert training.train_tokenizer.check(opened, theirs, corpus / "held_out.txt") == 30
    odd = ["", " ", "\n", "a\nb", "One day,\n\nTom", "  two  ", "\n\n\n", "猫 saw a ball", "\t\x01\r\n", "12345", "<s> <0x0A>"]
    for text in odd:
        assert opened.encode(text) == [1, *theirs.encode(text)], text
        assert opened.decode(opened.encode(text)) == text
    assert len(opened.encode("One day, Lily saw a ball.")) < 16  # less than its 25 characters: the tokens are words


def test_tokenizer_file(tokenizer: Path) -> None:
    """The fixed ids and the longest spelling. The test above compares everything else."""
    opened = Tokenizer.open(tokenizer, VOCAB_SIZE)
    data = tokenizer.read_bytes()
    pieces = [opened.piece(i) for i in range(VOCAB_SIZE)]
    assert pieces[:3] == [b""] * 3
    assert pieces[3:259] == [bytes([i]) for i in range(256)]
    spelled = data[4:]
    for expected in (b"<unk>", b"\n<s>\n", b"\n</s>\n", b"<0x00>"):
        length = int.from_bytes(spelled[4:8], "little")
        assert spelled[8 : 8 + length] == expected
        spelled = spelled[8 + length :]
    assert int.from_bytes(data[:4], "little") == max(6, *map(len, pieces))


def test_check_of_the_tokenizer_finds_a_difference(training: SimpleNamespace, corpus: Path, tokenizer: Path) -> None:
    other = training.train_tokenizer.train(corpus / "train.txt", VOCAB_SIZE - 20)
    with pytest.raises(ValueError, match="expected the ids of sentencepiece"):
        training.train_tokenizer.check(Tokenizer.open(tokenizer), other, corpus / "train.txt")


def test_tokenizer_errors(training: SimpleNamespace, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.bin"
    for arguments in ([str(corpus / "train.txt"), str(path), "--vocab-size", "9999"], [str(tmp_path / "none.txt"), str(path)]):
        assert training.train_tokenizer.main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("train_tokenizer: error: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------
# data


def test_token_file(training: SimpleNamespace, tokenizer: Path, tmp_path: Path) -> None:
    text = tmp_path / "few.txt"
    stories = write_stories(text, 5, 3)
    opened = Tokenizer.open(tokenizer)
    file = training.data.token_file(text, tokenizer, tmp_path)
    ids = np.load(file)
    assert ids.dtype == np.uint16
    assert ids.tolist() == [i for story in stories for i in opened.encode(story)] + [1]
    made = file.stat().st_mtime_ns
    assert training.data.token_file(text, tokenizer, tmp_path) == file and file.stat().st_mtime_ns == made  # not made again
    text.write_text("another")
    assert training.data.token_file(text, tokenizer, tmp_path) != file


@pytest.mark.parametrize(
    ("ids", "window", "starts"),
    [
        ([1, 5, 6, 1, 7, 8, 1], 3, [0, 3]),  # each story fills a window
        ([1, 5, 6, 1, 7, 8, 1], 4, [0, 2]),  # the last window is moved back to the end
        ([1, 5, 1, 6, 1, 7, 8, 9, 1], 3, [0, 2, 4, 5]),  # the second story was incomplete: it comes again, whole
        ([1, 5, 6, 7, 8, 9, 1], 2, [0, 2, 4]),  # a story longer than a window goes on inside
        ([1, 5, 1], 2, [0]),
    ],
)
def test_window_starts(training: SimpleNamespace, ids: list[int], window: int, starts: list[int]) -> None:
    found = training.data.window_starts(np.array(ids, np.uint16), window, 1).tolist()
    assert found == starts
    assert {i for start in found for i in range(start + 1, start + window + 1)} == set(range(1, len(ids)))


def test_window_longer_than_the_corpus(training: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="window: expected at most 2 with this corpus, found 3"):
        training.data.window_starts(np.array([1, 5, 1], np.uint16), 3, 1)


def test_batches(training: SimpleNamespace) -> None:
    """An epoch has every window once. Epochs and seeds have different orders. A batch does not depend on earlier calls."""
    ids, starts = np.arange(100, dtype=np.uint16), np.arange(0, 60, 5)

    def firsts(seed: int, steps: range) -> list[int]:
        batches = training.data.Batches(ids, starts, 4, 3, seed)
        return [int(row[0]) for step in steps for row in batches[step][0]]

    one, two = firsts(0, range(4)), firsts(0, range(4, 8))
    assert sorted(one) == sorted(two) == starts.tolist()
    assert one != two and one != firsts(1, range(4))
    assert firsts(0, range(3, 6)) == (one + two)[9:18]
    inputs, targets = training.data.Batches(ids, starts, 4, 3, 0)[0]
    assert inputs.shape == (3, 4) and inputs.dtype == torch.int64
    assert (targets == inputs + 1).all()


# ---------------------------------------------------------------------------
# training


def test_training_lowers_the_loss(run: Path) -> None:
    log = read_log(run)
    assert [line["step"] for line in log] == sorted({*range(4, 41, 4), 10, 20, 30, 40})
    assert all(line["tokens"] == line["step"] * 4 * 48 for line in log)
    assert [line["step"] for line in log if line["held_out_loss"] is not None] == [10, 20, 30, 40]
    assert log[0]["train_loss"] == pytest.approx(np.log(VOCAB_SIZE), abs=0.7)
    assert log[-1]["train_loss"] < 2
    assert log[-1]["held_out_loss"] < 2


def test_a_seed_gives_the_same_losses(training: SimpleNamespace, tokenizer: Path, run: Path, tmp_path: Path) -> None:
    assert train(training, tokenizer, tmp_path / "same") == 0
    assert read_log(tmp_path / "same") == read_log(run)
    assert train(training, tokenizer, tmp_path / "other", "--seed", "1") == 0
    assert read_log(tmp_path / "other") != read_log(run)


@pytest.mark.parametrize("stop", [13, 20])
def test_resumed_run_equals_an_uninterrupted_one(
    training: SimpleNamespace, tokenizer: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Ctrl-C between two lines of the log, and on a line: the rest has the same losses, and ends with the same weights."""
    step_as_it_is = training.train.Run.train_step

    def step_with_interrupt(self: Any) -> float:
        if self.step == stop - 1:
            signal.raise_signal(signal.SIGINT)
        return float(step_as_it_is(self))

    with monkeypatch.context() as patch:
        patch.setattr(training.train.Run, "train_step", step_with_interrupt)
        assert train(training, tokenizer, tmp_path) == 130
    assert training.train.load(tmp_path / "checkpoint.pt")["step"] == stop
    with (tmp_path / "log.jsonl").open("a") as log:  # as after a crash: lines after the checkpoint
        log.write(json.dumps({"step": stop + 1, "train_loss": 0}) + "\n")
    assert train(training, tokenizer, tmp_path, "--resume") == 0
    assert read_log(tmp_path) == read_log(run)
    ours, whole = (training.train.load(folder / "checkpoint.pt")["model"] for folder in (tmp_path, run))
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[name], whole[name]) for name in ours)


def test_bf16(training: SimpleNamespace, tokenizer: Path, run: Path, tmp_path: Path) -> None:
    assert train(training, tokenizer, tmp_path, "--bf16") == 0
    ours, whole = read_log(tmp_path), read_log(run)
    assert ours != whole
    assert ours[-1]["held_out_loss"] == pytest.approx(whole[-1]["held_out_loss"], abs=0.3)


def test_learning_rate(training: SimpleNamespace) -> None:
    recipe = training.train.Recipe(steps=101, warmup=20, lr=1.0, lr_end=0.2)
    rates = [recipe.learning_rate(step) for step in range(101)]
    assert rates[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert rates[20] == 1
    assert rates[60] == pytest.approx(0.6)
    assert rates[100] == pytest.approx(0.2)


def test_training_errors(
    training: SimpleNamespace, tokenizer: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(out: Path, *more: str) -> str:
        capsys.readouterr()
        assert train(training, tokenizer, out, *more) == 1
        return capsys.readouterr().err.splitlines()[-1]

    assert "checkpoint.pt: exists already: use --resume, or another --out" in error(run)
    assert "lr: expected 0.01, as at the start of the run, found 0.02" in error(run, "--resume", "--lr", "0.02")
    assert "expected 1 to seq_len = 128, found 129" in error(tmp_path, "--window", "129")
    assert "expected a divisor of n_heads = 4" in error(tmp_path, "--n-kv-heads", "3")
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing")
    assert "expected a checkpoint written by train.py" in error(tmp_path, "--resume")


# ---------------------------------------------------------------------------
# the model file


def exported(training: SimpleNamespace, run: Path, folder: Path, version: int) -> Path:
    path = folder / f"v{version}.bin"
    assert training.export.main([str(run / "checkpoint.pt"), str(path), "--version", str(version)]) == 0
    return path


@pytest.mark.parametrize("version", [0, 1, 2])
def test_exported_model_computes_what_pytorch_does(training: SimpleNamespace, run: Path, tmp_path: Path, version: int) -> None:
    opened = Checkpoint.open(exported(training, run, tmp_path, version))
    model = training.train.load_model(run / "checkpoint.pt")
    assert (opened.version, opened.config, opened.shared_classifier) == (version, model.config, True)
    transformer = Transformer(opened, n_threads=1)
    ids = np.random.default_rng(0).integers(0, VOCAB_SIZE, 128)  # the whole context
    with torch.no_grad():
        expected = model(torch.tensor(ids)[None])[0].numpy()
    found = transformer.forward(ids, transformer.new_cache(), logits=None)
    assert np.abs(found - expected).max() < (0.05 if version == 2 else 2e-5) * np.abs(expected).max()


def test_export_errors(training: SimpleNamespace, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = training.train.load_model(run / "checkpoint.pt")
    config = training.model.Config(32, 48, 1, 4, 2, VOCAB_SIZE, 16)
    with pytest.raises(ValueError, match="group_size: expected a divisor of hidden_dim = 48, found 32"):
        training.export.export(training.model.Llama(config), tmp_path / "m.bin", 2, 32)
    with torch.no_grad():
        model.layers[1].w2.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"w2\[1\]: expected finite weights"):
        training.export.export(model, tmp_path / "m.bin", 0)
    assert training.export.main([str(run / "log.jsonl"), str(tmp_path / "m.bin")]) == 1
    assert "expected a checkpoint written by train.py" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------
# the check


@pytest.mark.parametrize("version", [0, 1, 2])
def test_check_of_a_good_file(
    training: SimpleNamespace, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], version: int
) -> None:
    path = exported(training, run, tmp_path, version)
    assert training.check.main([str(run / "checkpoint.pt"), str(path)]) == 0
    out = capsys.readouterr().out
    assert "30 held-out stories" in out and out.endswith("they agree\n")


@pytest.mark.parametrize("version", [0, 1, 2])
def test_check_finds_one_broken_weight(
    training: SimpleNamespace, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], version: int
) -> None:
    """In the middle of w1 of the second layer: the perplexity does not show it, but the check names it."""
    path = exported(training, run, tmp_path, version)
    opened = Checkpoint.open(path, mmap=False)
    layout = training.export.make_layout(opened.config, version, True, opened.group_size)
    entry = next(e for e in layout.entries if e.name == "w1")
    weight = opened.weights["w1"]
    content = bytearray(path.read_bytes())
    if isinstance(weight, QuantizedTensor):
        at = entry.offset + entry.stride + 7 * 32 + 5
        content[at] = (content[at] + 2) % 256
    else:
        at = entry.offset + 4 * (64 * 32 + 7 * 32 + 5)
        content[at : at + 4] = (weight[1, 7, 5] + np.float32(0.01)).astype("<f4").tobytes()
    path.write_bytes(content)
    assert training.check.main([str(run / "checkpoint.pt"), str(path)]) == 1
    out = capsys.readouterr().out
    assert "differs: w1: 1 of 4096 weights differ, the first at [1, 7, 5]\n" in out
    assert out.endswith("they DISAGREE\n")


def test_check_compares_the_logits_too(
    training: SimpleNamespace, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are right, but the model in PyTorch computes something else: it rotates the other way round."""
    paths = [exported(training, run, tmp_path, version) for version in (0, 2)]
    rotate = training.model.rotate
    monkeypatch.setattr(training.model, "rotate", lambda x, table: rotate(x, table * torch.tensor([1.0, -2.0])))
    for path in paths:
        assert training.check.main([str(run / "checkpoint.pt"), str(path)]) == 1
        out = capsys.readouterr().out
        assert "differs" not in out and out.endswith("they DISAGREE\n")


def test_score(training: SimpleNamespace) -> None:
    """Two tokens of probability 1/2 and 1/8 make one word of four bytes: 4 per token, 16 per word, 2 per byte."""
    score = training.check.Score()
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]], np.float32)) + 1000
    score.add(logits, np.array([0, 2]), "Zoë")
    assert [score.perplexity(n) for n in (score.n_tokens, score.n_words, score.n_bytes)] == pytest.approx([4, 16, 2], rel=1e-3)


def test_stories_beyond_the_context_are_left_out(training: SimpleNamespace, corpus: Path, tokenizer: Path) -> None:
    opened = Tokenizer.open(tokenizer)
    text = corpus / "held_out.txt"
    everything = list(training.check.held_out(text, opened, 30, 1000))
    longest = max(len(ids) for ids, _ in everything)
    assert len(everything) == 30 and everything[0][0][0] == everything[0][0][-1] == 1
    assert len(list(training.check.held_out(text, opened, 30, longest - 1))) == 30
    assert len(list(training.check.held_out(text, opened, 30, longest - 2))) < 30


# ---------------------------------------------------------------------------
# the picture


def test_loss_curve(training: SimpleNamespace, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install '.[train]'")
    plot_loss = importlib.import_module("plot_loss")
    assert plot_loss.main([str(run / "log.jsonl"), str(tmp_path / "loss.png")]) == 0
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert plot_loss.main([str(run / "checkpoint.pt"), str(tmp_path / "loss.png")]) == 1
    assert "expected the log.jsonl of a training" in capsys.readouterr().err
    values = [3.0, 1.0, 2.0, 6.0, 4.0]
    assert plot_loss.smooth(values) == [3, 2, 3, 4, 4]


def test_the_curve_of_the_bundled_model(training: SimpleNamespace, tmp_path: Path) -> None:
    """docs/loss.png is what plot_loss.py draws from loss.jsonl: every step with a held-out loss, on logarithmic axes."""
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install '.[train]'")
    plot_loss = importlib.import_module("plot_loss")
    log = Path(plot_loss.__file__).with_name("loss.jsonl")
    lines = plot_loss.read_log(log)
    assert [line["step"] for line in lines] == [*range(250, 7751, 250), 7800]
    left, right = plot_loss.draw(lines).axes
    (curve,) = left.lines
    assert list(curve.get_xdata()) == [line["step"] * 24 * 320 / 1e6 for line in lines]
    assert list(curve.get_ydata()) == [line["held_out_loss"] for line in lines]
    assert {axes.get_yscale() for axes in (left, right)} == {left.get_xscale()} == {"log"}
    assert right.get_ylim() == left.get_ylim()
    for place, label in zip(right.get_yticks(), right.get_yticklabels(), strict=True):
        assert np.exp(place) == pytest.approx(float(label.get_text()))
