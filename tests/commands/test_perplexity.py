"""The verb perplexity: it prints the figures of Llama.score and of NumPy, for one model and for two side by side."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import checkpoints
import numpy as np
import pytest
from reference import Reference, log_softmax, windowed_logits

import llama2c
from llama2c import Config
from llama2c.commands import perplexity, terminal
from llama2c.commands.main import main
from llama2c.locate import BUNDLED

TOKENIZER = BUNDLED.with_name("tokenizer.bin")
CONFIG = Config(dim=16, hidden_dim=24, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=2048, seq_len=24)
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big red ball. She wanted to play with it, but it was too high. So she asked her mom for help."
)


class Models(NamedTuple):
    folder: Path
    weights: dict[str, checkpoints.Arrays]

    def reference(self, name: str) -> Reference:
        return Reference(CONFIG, self.weights[name])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """one.bin, near.bin of nearly the same weights, one_q80.bin of the same in 8 bits; longer.bin, small.bin: other shapes."""
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(4)
    one = checkpoints.random_weights(CONFIG, rng, shared_classifier=False)
    one["wcls"] *= 3
    near = {name: tensor + rng.normal(0, 0.02, tensor.shape).astype("<f4") for name, tensor in one.items()}
    for name, weights in {"one": one, "near": near}.items():
        checkpoints.write(folder / f"{name}.bin", CONFIG, 1, weights)
    checkpoints.write(folder / "one_q80.bin", CONFIG, 2, one, 8)
    checkpoints.write(folder / "longer.bin", Config(16, 24, 2, 4, 2, 2048, 64), 1, one)
    small = Config(16, 24, 2, 4, 2, 40, 24)
    checkpoints.write(folder / "small.bin", small, 1, checkpoints.random_weights(small, rng))
    (folder / "tokenizer.bin").write_bytes(TOKENIZER.read_bytes())
    (folder / "story.txt").write_text(STORY)
    return Models(folder, {"one": one, "near": near})


class Result(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(models: Models, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`python -m llama2c perplexity` in the folder of the models."""
    monkeypatch.chdir(models.folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*arguments: str, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return Result(main(["perplexity", *arguments]), *capsys.readouterr())

    return run


def figures(result: Result) -> Any:
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def table(result: Result) -> list[list[str]]:
    assert (result.code, result.err) == (0, "")
    rows = [line for line in result.out.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1  # it can be read as it is
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


# ---------------------------------------------------------------------------
# one model


@pytest.mark.parametrize("stride", [None, 1, 7, 24])
def test_json_is_the_score(command: Command, stride: int | None) -> None:
    found = figures(command("one.bin", "story.txt", "-o", "json", *([] if stride is None else ["--stride", str(stride)])))
    score = llama2c.load("one.bin").score(STORY, stride=stride)
    n_tokens = len(score.tokens) - 1
    assert n_tokens > 2 * CONFIG.seq_len  # there are windows
    assert found["info"] == {"tokens": n_tokens, "bytes": len(STORY), "context": 24, "stride": stride or 12}
    (result,) = found["results"]
    assert result.pop("t/s") > 0
    assert result == {"model": "one fp32", "perplexity": score.perplexity, "bits_per_byte": score.bits_per_byte}


def test_markdown(command: Command) -> None:
    result = command("one_q80.bin", "story.txt", "--stride", "5")
    header, _, cells = table(result)
    assert header == ["model", "tokens", "bytes", "perplexity", "bits per byte", "t/s"]
    score = llama2c.load("one_q80.bin").score(STORY, stride=5)
    expected = [str(len(score.tokens) - 1), str(len(STORY)), f"{score.perplexity:.4f}", f"{score.bits_per_byte:.4f}"]
    assert cells[:5] == ["one_q80 Q8_0", *expected]
    assert float(cells[5]) > 0
    assert result.out.endswith("\n\ncontext 24, stride 5\n")


def test_perplexity_is_numpys(command: Command, models: Models) -> None:
    found = figures(command("one.bin", "story.txt", "-o", "json"))
    ids = llama2c.Tokenizer.open(TOKENIZER).encode(STORY)
    logprobs = log_softmax(windowed_logits(models.reference("one"), ids, 24, 12))[range(len(ids) - 1), ids[1:]]
    assert found["results"][0]["perplexity"] == pytest.approx(np.exp(-logprobs.mean()), rel=1e-5)
    assert found["results"][0]["bits_per_byte"] == pytest.approx(-logprobs.sum() / np.log(2) / len(STORY), rel=1e-5)


def test_stdin_and_the_bundled_model(command: Command) -> None:
    for flags in (["-"], [str(BUNDLED), "-"], ["-", "-z", str(TOKENIZER)]):
        found = figures(command("-o", "json", *flags, stdin=STORY.encode()))
        assert found["results"][0]["model"] == "tales1M Q8_0"
        assert found["results"][0]["perplexity"] == llama2c.load().score(STORY).perplexity


def test_speed_is_tokens_over_the_seconds_of_steps(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(perplexity, "perf_counter", lambda: float(next(ticks)))
    found = figures(command("one.bin", "story.txt", "-o", "json", "--against", "near.bin"))
    n_chunks = math.ceil((found["info"]["tokens"] - 24) / 12) + 1  # each takes one second of each model
    assert [result["t/s"] for result in found["results"]] == [found["info"]["tokens"] / n_chunks] * 2


@pytest.mark.parametrize("text", [b"a", b"\n", b"\xff", b"\x00\xc5\xff\xfe no text \xe2\x82", "żółw 🐢\r\n".encode()])
def test_bytes_are_taken_as_they_are(command: Command, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "text").write_bytes(text)
    found = figures(command("one.bin", str(tmp_path / "text"), "-o", "json"))
    score = llama2c.load("one.bin").score(text)
    assert (found["info"]["tokens"], found["info"]["bytes"]) == (len(score.tokens) - 1, len(text))
    assert found["results"][0]["perplexity"] == score.perplexity


def test_stories_are_likelier_than_their_words_in_disorder() -> None:
    llama = llama2c.load()
    told = llama.generate("", max_tokens=150, seed=7).text
    for story, most in ((told, 4), (STORY, 200)):  # its own, and one not of its kind
        words = story.split()
        disorder = " ".join(words[i] for i in np.random.default_rng(1).permutation(len(words)))
        assert llama.score(story).perplexity < most
        assert llama.score(disorder).perplexity > 100 * llama.score(story).perplexity
        assert 2 * llama.score(story).bits_per_byte < llama.score(disorder).bits_per_byte


# ---------------------------------------------------------------------------
# two models


@pytest.mark.parametrize("stride", [1, 12, 24])
def test_against_is_numpys(command: Command, models: Models, stride: int) -> None:
    found = figures(command("one.bin", "story.txt", "--against", "near.bin", "-o", "json", "--stride", str(stride)))
    ids = llama2c.Tokenizer.open(TOKENIZER).encode(STORY)
    own, other = (log_softmax(windowed_logits(models.reference(name), ids, 24, stride)) for name in ("one", "near"))
    kl = (np.exp(own) * (own - other)).sum(axis=1)
    same = own.argmax(axis=1) == other.argmax(axis=1)
    assert 0.05 < same.mean() < 0.95 and kl.min() > 1e-3  # there is something to get wrong
    first, second = found["results"]
    assert second["kl"] == pytest.approx(kl.mean(), rel=1e-4)
    assert second["kl_error"] == pytest.approx(kl.std(ddof=1) / np.sqrt(len(kl)), rel=1e-4)
    assert second["same_top"] == same.mean()
    for result, logprobs in ((first, own), (second, other)):
        assert result["perplexity"] == pytest.approx(np.exp(-logprobs[range(len(ids) - 1), ids[1:]].mean()), rel=1e-5)
    assert {*second} - {*first} == {"kl", "kl_error", "same_top"}


def test_against_8_bits(command: Command) -> None:
    """The same weights, rounded: near, but not the same; by the logits of one pass, which the text fits in."""
    text = STORY[:60]
    found = figures(command("one.bin", "-", "--against", "one_q80.bin", "-o", "json", stdin=text.encode()))
    ids = llama2c.Tokenizer.open(TOKENIZER).encode(text)
    assert len(ids) <= 24
    passes = []
    for name in ("one.bin", "one_q80.bin"):
        transformer = llama2c.Transformer(llama2c.Checkpoint.open(name))
        passes.append(log_softmax(transformer.forward(ids[:-1], transformer.new_cache(), logits=None)))
    own, other = passes
    assert found["results"][1]["kl"] == pytest.approx((np.exp(own) * (own - other)).sum(axis=1).mean(), rel=1e-4)
    assert 1e-6 < found["results"][1]["kl"] < 0.1


def test_against_itself(command: Command) -> None:
    first, second = figures(command("one.bin", "story.txt", "--against", "one.bin", "-o", "json"))["results"]
    assert (second["kl"], second["kl_error"], second["same_top"]) == (0, 0, 1)
    assert second["perplexity"] == first["perplexity"]


def test_against_in_markdown(command: Command) -> None:
    flags = ("one.bin", "story.txt", "--against", "near.bin")
    header, _, first, second = table(command(*flags))
    assert header[6:] == ["KL", "same top"]
    assert [first[0], second[0]] == ["one fp32", "near fp32"]
    expected = figures(command(*flags, "-o", "json"))["results"]
    assert [first[3], second[3]] == [f"{result['perplexity']:.4f}" for result in expected]
    kl, error, same = (expected[1][name] for name in ("kl", "kl_error", "same_top"))
    assert (first[6:], second[6:]) == (["", ""], [f"{kl:.6f} ± {error:.6f}", f"{same:.2%}"])


def test_one_token_has_no_error(command: Command) -> None:
    flags = ("one.bin", "-", "--against", "near.bin")
    found = figures(command(*flags, "-o", "json", stdin=b"a"))
    assert found["info"]["tokens"] == 1
    assert found["results"][1]["kl"] > 0
    assert found["results"][1]["kl_error"] is None
    assert table(command(*flags, stdin=b"a"))[3][6] == f"{found['results'][1]['kl']:.6f}"


@pytest.mark.parametrize("names", [("one.bin", "longer.bin"), ("longer.bin", "one.bin")])
def test_the_shorter_context_holds_for_both(command: Command, names: tuple[str, str]) -> None:
    """They have the same weights, so they say the same in the same windows."""
    found = figures(command(names[0], "story.txt", "--against", names[1], "-o", "json"))
    assert (found["info"]["context"], found["info"]["stride"]) == (24, 12)
    score = llama2c.load("one.bin").score(STORY)
    assert [result["perplexity"] for result in found["results"]] == [score.perplexity] * 2
    assert (found["results"][1]["kl"], found["results"][1]["same_top"]) == (0, 1)
    assert llama2c.load("longer.bin").score(STORY).perplexity != score.perplexity


def test_mean_and_error() -> None:
    assert perplexity.mean_and_error([1.0, 3.0]) == (2.0, 1.0)
    assert perplexity.mean_and_error([0.25]) == (0.25, None)


# ---------------------------------------------------------------------------
# windows, and token by token


@pytest.mark.parametrize(("context", "stride"), [(1, None), (7, None), (7, 2), (24, None)])
def test_smaller_windows(command: Command, models: Models, context: int, stride: int | None) -> None:
    flags = ["--context", str(context), *([] if stride is None else ["--stride", str(stride)])]
    found = figures(command("one.bin", "story.txt", "-o", "json", *flags))
    stride = stride or max(1, context // 2)
    assert (found["info"]["context"], found["info"]["stride"]) == (context, stride)
    ids = llama2c.Tokenizer.open(TOKENIZER).encode(STORY)
    logprobs = log_softmax(windowed_logits(models.reference("one"), ids, context, stride))[range(len(ids) - 1), ids[1:]]
    assert found["results"][0]["perplexity"] == pytest.approx(np.exp(-logprobs.mean()), rel=1e-5)


def test_the_same_windows_for_models_of_two_contexts(command: Command) -> None:
    """The longer one with --context is the shorter one, as they have the same weights."""
    for_shorter = figures(command("one.bin", "story.txt", "-o", "json"))
    for_longer = figures(command("longer.bin", "story.txt", "-o", "json", "--context", "24"))
    assert for_longer["info"] == for_shorter["info"]
    assert for_longer["results"][0]["perplexity"] == for_shorter["results"][0]["perplexity"]


def lines_of(result: Result) -> list[list[str]]:
    assert (result.code, result.err) == (0, "")
    return [line.split("\t") for line in result.out.removesuffix("\n").split("\n")]


def unescaped(text: str) -> bytes:
    """Done with a regular expression, unlike what is tested."""
    short = {"t": b"\t", "n": b"\n", "r": b"\r", "\\": b"\\"}
    parts = re.split(r"\\(x[0-9a-f]{2}|[tnr\\])", text)
    odd = [short.get(part) or bytes([int(part[1:], 16)]) for part in parts[1::2]]
    return b"".join(a.encode() + b for a, b in zip(parts[::2], [*odd, b""], strict=True))


def test_a_line_a_token(command: Command) -> None:
    header, *rows = lines_of(command("one.bin", "story.txt", "-o", "tsv", "--stride", "5"))
    score = llama2c.load("one.bin").score(STORY, stride=5)
    assert header == ["position", "token", "logprob", "text"]
    assert [int(row[0]) for row in rows] == list(range(1, len(score.tokens)))
    assert [int(row[1]) for row in rows] == list(score.tokens[1:])
    assert [float(np.float32(row[2])) for row in rows] == list(score.logprobs)
    assert "".join(row[3] for row in rows) == f" {STORY}"  # the tokenizer puts a space before it


def test_a_line_a_token_of_any_bytes(command: Command) -> None:
    text = "a\tb\r\n\\n żółw\u2028\x00\x85\xa0🐢".encode() + b"\xff\xe4"
    _, *rows = lines_of(command("one.bin", "-", "-o", "tsv", stdin=text))
    assert b"".join(unescaped(row[3]) for row in rows) == b" " + text
    assert all(letter.isprintable() for row in rows for letter in row[3])
    assert perplexity.escaped("é\\\n".encode() + b"\xc3") == "é\\\\\\n\\xc3"


def test_a_line_a_token_of_two_models(command: Command) -> None:
    header, *rows = lines_of(command("one.bin", "story.txt", "--against", "near.bin", "-o", "tsv"))
    assert header == ["position", "token", "logprob", "other_logprob", "kl", "text"]
    found = figures(command("one.bin", "story.txt", "--against", "near.bin", "-o", "json"))["results"]
    assert [float(np.float32(row[3])) for row in rows] == list(llama2c.load("near.bin").score(STORY).logprobs)
    assert np.mean([float(row[4]) for row in rows]) == pytest.approx(found[1]["kl"], rel=1e-7)


# ---------------------------------------------------------------------------
# errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: TEXT_FILE"),
        (["one.bin", "story.txt", "more"], "unrecognized arguments: more"),
        (["one.bin", "story.txt", "--stride", "x"], "argument --stride: expected an integer, found 'x'"),
        (["one.bin", "story.txt", "--threads", "1.5"], "argument --threads: expected an integer, found '1.5'"),
        (["one.bin", "story.txt", "-o", "csv"], "argument -o/--output: invalid choice: 'csv'"),
        (["one.bin", "story.txt", "--against"], "argument --against: expected one argument"),
        (["one.bin", "story.txt", "--context", "2k"], "argument --context: expected an integer, found '2k'"),
        (
            ["one.bin", "story.txt", "--agianst=a"],
            "unrecognized arguments: --agianst=a (did you mean --against? --help lists the flags)",
        ),
    ],
)
def test_wrong_command_lines(command: Command, arguments: list[str], message: str) -> None:
    result = command(*arguments)
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(rf"llama2c: error: {re.escape(message)}.*\n", result.err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.bin", "story.txt"], "absent.bin: expected a readable file, found: No such file or directory"),
        (["stories15M", "story.txt"], "stories15M: expected a file, or a model downloaded with "
         "`python -m llama2c download stories15M`, found neither"),
        (["one.bin", "absent.txt"], "absent.txt: expected a readable file, found: No such file or directory"),
        (["one.bin", "."], ".: expected a regular file, found a directory"),
        (["one.bin", "fifo"], "fifo: expected a regular file, found a special file"),
        (["one.bin", "empty.txt"], "empty.txt: the text is empty"),
        (["one.bin", "-"], "stdin: the text is empty"),
        (["one.bin", "story.txt", "--stride", "0"], "--stride: expected an integer from 1 to 24, found 0"),
        (["one.bin", "story.txt", "--stride", "25"], "--stride: expected an integer from 1 to 24, found 25"),
        (["one.bin", "story.txt", "--stride", "9", "--context", "8"],
         "--stride: expected an integer from 1 to 8, found 9"),
        (["one.bin", "story.txt", "--context", "0"], "--context: expected an integer from 1 to 24, found 0"),
        (["one.bin", "story.txt", "--context", "25"], "--context: expected an integer from 1 to 24, found 25"),
        (["longer.bin", "story.txt", "--context", "25", "--against", "one.bin"],
         "--context: expected an integer from 1 to 24, found 25"),
        (["longer.bin", "story.txt", "--stride", "25", "--against", "one.bin"],
         "--stride: expected an integer from 1 to 24, found 25"),
        (["one.bin", "story.txt", "--threads", "0"], "--threads: expected an integer from 1 to 1024, found 0"),
        (["one.bin", "story.txt", "-z", "absent.bin"],
         "absent.bin: expected a readable file, found: No such file or directory"),
        (["one.bin", "story.txt", "--against", "absent.bin"],
         "absent.bin: expected a readable file, found: No such file or directory"),
        (["one.bin", "story.txt", "--against", "small.bin"], "small.bin: expected 2048 tokens as one.bin has, found 40"),
        (["broken.bin", "story.txt"], "logits: expected numbers that make a distribution, found NaN or infinity"),
    ],
)  # fmt: skip
def test_errors(
    command: Command, models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("LLAMA2C_CACHE", str(tmp_path))
    (models.folder / "empty.txt").touch()
    if not (models.folder / "fifo").exists():
        os.mkfifo(models.folder / "fifo")
    broken = {**models.weights["one"], "wcls": np.full((2048, 16), np.nan, "<f4")}
    checkpoints.write(models.folder / "broken.bin", CONFIG, 1, broken)
    assert command(*arguments) == (1, "", f"llama2c: error: {message}\n")


def test_a_downloaded_model_by_name(command: Command, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA2C_CACHE", str(tmp_path))
    (tmp_path / "stories15M").mkdir()
    for name, file in (("one.bin", "stories15M.bin"), ("tokenizer.bin", "tokenizer.bin")):
        (tmp_path / "stories15M" / file).write_bytes((models.folder / name).read_bytes())
    found = figures(command("stories15M", "story.txt", "--against", "stories15M", "-o", "json"))
    assert [result["model"] for result in found["results"]] == ["stories15M fp32"] * 2


# ---------------------------------------------------------------------------
# the terminal


def test_a_bar_on_a_terminal(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm", reason="needs tqdm")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    assert "one fp32" in command("one.bin", "story.txt").out
    assert re.search(r"/\d+ \[.*chunk", stream.getvalue())


def test_lines_without_a_terminal(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 6))
    monkeypatch.setattr(terminal, "monotonic", lambda: next(clock))
    result = command("one.bin", "story.txt", "--stride", "4")
    n_chunks = math.ceil((len(llama2c.load("one.bin").score(STORY).tokens) - 1 - 24) / 4) + 1
    expected = [f"llama2c: chunk {done} of {n_chunks}" for done in range(1, n_chunks, 2)]
    assert len(expected) > 3 and result.err.splitlines() == expected


@pytest.mark.parametrize("output", ["md", "json", "tsv"])
def test_any_locale(models: Models, output: str) -> None:
    """The table has a plus-minus sign, which stdout need not be able to encode."""
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    flags = ["one.bin", "story.txt", "--against", "near.bin", "-o", output]
    command = [sys.executable, "-m", "llama2c", "perplexity", *flags]
    ended = subprocess.run(command, env=env, cwd=models.folder, capture_output=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ("\u00b1".encode() in ended.stdout) == (output == "md")


def test_help(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = command("--help").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "    python -m llama2c perplexity stories15M.bin story.txt" in lines
    for flag in ("-z", "--stride", "--threads", "--against", "-o"):
        assert any(line.startswith(f"  {flag}") for line in lines)
