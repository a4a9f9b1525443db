"""The command line on small random models: texts against a NumPy model, flags, streams, errors, and how it ends.

`command` runs it in this process; what needs a real process (pipes, signals, warnings) starts one.
"""

from __future__ import annotations

import codecs
import io
import itertools
import os
import re
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import checkpoints
import numpy as np
import pytest
from reference import Reference

from llama2c import Checkpoint, Config, Transformer, __version__, build_info
from llama2c.commands import main as cli
from llama2c.commands.main import main
from llama2c.config import DIMENSIONS
from llama2c.threads import available_cores

LETTERS = " abcdefghijklmnopqrstuvwxyz"
PIECES = [b""] * 3 + [bytes([byte]) for byte in range(256)] + [letter.encode() for letter in LETTERS]
BOS, EOS, SPACE = 1, 2, 259
CONFIG = Config(dim=16, hidden_dim=24, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=len(PIECES), seq_len=64)
TALKER = replace(CONFIG, seq_len=110)
ENDLESS = Config(dim=8, hidden_dim=8, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=len(PIECES), seq_len=10**6)
SECONDS = 120  # what hangs is ended


def tokenizer_bin(letters: str = LETTERS) -> bytes:
    spellings = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256)), *map(str.encode, letters)]
    return struct.pack("<i", 7) + b"".join(struct.pack("<fi", 0, len(s)) + s for s in spellings)


def write_model(folder: Path, config: Config, version: int = 1, *, turns: bool = False) -> checkpoints.Arrays:
    """model.bin, which writes letters and does not end, or with `turns` draws BOS and EOS now and then; and tokenizer.bin."""
    weights = checkpoints.random_weights(config, np.random.default_rng(5), shared_classifier=False)
    weights["wcls"] *= 4
    weights["wcls"][:259] = 0  # logit 0, far below the best of 27 random ones
    if turns:
        weights["wcls"][[EOS, BOS, SPACE]] = weights["wcls"][[SPACE + 13, SPACE + 17, SPACE + 10]]  # as likely as m, q, j
    checkpoints.write(folder / "model.bin", config, version, weights, config.dim // 2 if version == 2 else None)
    (folder / "tokenizer.bin").write_bytes(tokenizer_bin())
    return weights


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, CONFIG)
    return folder / "model.bin"


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So long a context that no pipe takes the whole story."""
    folder = tmp_path_factory.mktemp("endless")
    write_model(folder, ENDLESS)
    return folder / "model.bin"


class Result(NamedTuple):
    code: int
    out: bytes
    err: str


Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def a_place_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)


@pytest.fixture
def command(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Command:

    def run(*arguments: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([os.fspath(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return Result(code, out, err.decode())

    return run


def process(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", "llama2c", *arguments], **{**pipes, **options})


# ---------------------------------------------------------------------------
# the C loops over a NumPy model, one position at a time


class Coins:
    def __init__(self, seed: int) -> None:
        self.state = seed

    def __next__(self) -> float:
        x = self.state
        x ^= x >> 12
        x = (x ^ x << 25) % 2**64
        x ^= x >> 27
        self.state = x
        return (x * 0x2545F4914F6CDD1D % 2**64 >> 40) / 2**24


def draw(logits: np.ndarray, coins: Coins | None) -> int:
    """The likeliest without coins, else from the whole distribution (-t 1 -p 0)."""
    if coins is None:
        return int(logits.argmax())
    probabilities = np.exp(logits - logits.max())
    return int(np.searchsorted(np.cumsum(probabilities) / probabilities.sum(), next(coins), side="right"))


def ids_of(text: bytes) -> list[int]:
    letter_ids = {piece: id for id, piece in enumerate(PIECES)}  # a letter's own token comes after its byte token
    return [BOS, *(letter_ids[bytes([byte])] for byte in b" " * bool(text) + text)]


def decoded(ids: Sequence[int], previous: int) -> bytes:
    text = b"".join(PIECES[id] for id in ids)
    return text.removeprefix(b" ") if previous == BOS else text


def expected_story(weights: checkpoints.Arrays, prompt: bytes, steps: int, coins: Coins | None = None) -> bytes:
    reference, ids, n_prompt = Reference(CONFIG, weights), ids_of(prompt), len(ids_of(prompt))
    while len(ids) <= steps:
        ids.append(draw(reference.forward(ids).logits[-1], coins))
        if ids[-1] in (BOS, EOS):
            break
    assert len(ids) > n_prompt or len(ids) > steps
    return decoded(ids[1 : steps + 1], BOS) + b"\n"


def expected_chat(
    weights: checkpoints.Arrays, lines: list[bytes], system: bytes, steps: int, coins: Coins | None, seen: dict[Any, np.ndarray]
) -> bytes:
    """The loop of run.c, with the differences on purpose; the first line is a -i. `seen` spares the work of a longer chat."""
    reference, out, lines = Reference(CONFIG, weights), b"", lines.copy()
    fed: list[int] = []
    forced: list[int] = []
    users_turn, token = True, 0
    while len(fed) < steps:
        if users_turn:
            out += b"User: " if fed else b""
            if not lines:
                break
            line = lines.pop(0)
            text = b"<<SYS>>\n%s\n<</SYS>>\n\n%s" % (system, line) if system and not fed else line
            forced, users_turn = ids_of(b"[INST] %s [/INST]" % text), False
            out += b"Assistant: "
        if forced:
            token = forced.pop(0)
        users_turn = token == EOS
        fed.append(token)
        key = tuple(fed)
        if key not in seen:
            seen[key] = reference.forward(fed).logits[-1]
        previous, token = token, draw(seen[key], coins)
        if not forced and not users_turn:
            out += b"\n" if token == EOS else decoded([token], previous)
    return out + b"\n"


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, checkpoints.Arrays]:
    """A model that ends its turns."""
    folder = tmp_path_factory.mktemp("talker")
    return folder / "model.bin", write_model(folder, TALKER, turns=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> checkpoints.Arrays:
    """Those of `model`."""
    return write_model(tmp_path_factory.mktemp("weights"), CONFIG)


# ---------------------------------------------------------------------------
# stories


@pytest.mark.parametrize(
    ("prompt", "steps"),
    [(b"", 20), (b"", 1), (b"once", 30), (b"once", 6), (b"once", 5), (b"once", 4), (b"once", 1), (b"q", 64)],
)
def test_story(command: Command, model: Path, weights: checkpoints.Arrays, prompt: bytes, steps: int) -> None:
    """-n counts positions, those of the prompt too, and cuts the prompt where it is the shorter."""
    result = command(model, "-t", "0", "-n", str(steps), "-i", os.fsdecode(prompt))
    assert result.out == expected_story(weights, prompt, steps)
    assert result.code == 0


@pytest.mark.parametrize("seed", [7, 2**31 + 5, 2**64 - 1])
def test_seeded_story(command: Command, model: Path, weights: checkpoints.Arrays, seed: int) -> None:
    result = command(model, "-p", "0", "-n", "40", "-s", str(seed), "-i", "ab")
    assert _printable(result.out) == _printable(expected_story(weights, b"ab", 40, Coins(seed)))


def _printable(text: bytes) -> bytes:
    """At temperature 1 a byte token may be drawn as well; what becomes of those is tested elsewhere."""
    return re.sub(rb"[^\n -~]", b"", text)


def test_a_stop_token_ends_the_story(command: Command, talker: tuple[Path, checkpoints.Arrays]) -> None:
    path, weights = talker
    lengths = set()
    for seed in range(1, 9):
        result = command(path, "-p", "0", "-n", "64", "-s", str(seed))
        assert _printable(result.out) == _printable(expected_story(weights, b"", 64, Coins(seed)))
        assert b"s>" not in result.out
        lengths.add(len(result.out))
    assert len(lengths) > 2  # it did draw EOS


def test_the_whole_context(command: Command, model: Path, weights: checkpoints.Arrays) -> None:
    """-n 0, and 256 where -n is not given, which is more than there is: no warning, nobody asked for it."""
    whole = expected_story(weights, b"", CONFIG.seq_len)
    for flags in ([], ["-n", "0"]):
        result = command(model, "-t", "0", *flags)
        assert result.out == whole
        assert re.fullmatch(r"achieved tok/s: [\d.]+\n", result.err)


def test_256_positions_by_default(command: Command, endless: Path) -> None:
    result = command(endless, "-t", "0")
    assert len(result.out) == 256 + 1 - result.out.startswith(b" ")
    assert result.out == command(endless, "-t", "0", "-n", "256").out


def test_long_flags_are_the_short_ones(command: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "other.bin").write_bytes(tokenizer_bin(LETTERS[::-1]))
    plain = ("-t", "0.7", "-p", "0.5", "-s", "11", "-n", "30", "-i", "abc")
    usual = command(model, *plain).out
    for short, long, value in [
        ("-t", "--temperature", "1.5"),
        ("-p", "--top-p", "1"),
        ("-s", "--seed", "12"),
        ("-n", "--steps", "29"),
        ("-i", "--prompt", "abd"),
        ("-z", "--tokenizer", "other.bin"),
        ("-m", "--mode", "chat"),
    ]:
        by_short = command(model, *plain, short, value).out
        assert by_short != usual
        assert command(model, *plain, long, value).out == by_short
        assert command(model, *plain, f"{long}={value}").out == by_short
    chat = (*plain, "-n", "64", "-m", "chat")
    by_short = command(model, *chat, "-y", "be").out
    assert by_short == command(model, *chat, "--system-prompt", "be").out != command(model, *chat, "-y", "").out


def test_flags_may_come_first_and_the_last_one_counts(command: Command, model: Path) -> None:
    assert command("-t", "0", model, "-n", "5", "-n", "9").out == command(model, "-n", "9", "-t", "0").out


def test_defaults(command: Command, model: Path) -> None:
    assert command(model, "-s", "5").out == command(model, "-s", "5", "-t", "1.0", "-p", "0.9", "-m", "generate").out
    assert command(model, "-s", "5").out != command(model, "-s", "5", "-p", "1").out


def test_a_negative_seed_wraps(command: Command, model: Path) -> None:
    result = command(model, "-s", "-5")
    assert result.out == command(model, "-s", str(2**64 - 5)).out
    assert "warning" not in result.err


def test_seed_0_is_the_clock(command: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "time_ns", lambda: 77)
    assert command(model).out == command(model, "-s", "0").out == command(model, "-s", "77").out
    assert "seed: 77\n" in command(model, "-v").err


# ---------------------------------------------------------------------------
# prompts


@pytest.mark.parametrize("prompt", ["-x", "--", "-", "-t", "--steps", "-h", "=a", "-1"])
def test_a_value_may_look_like_a_flag(command: Command, model: Path, prompt: str) -> None:
    """The prompt "-" alone is stdin, which has one here."""
    n_positions = len(ids_of(prompt.encode())) - 1  # only the prompt
    assert command(model, "-n", str(n_positions), "-i", prompt, stdin=b"-").out.decode() == prompt + "\n"


def test_prompt_from_stdin(command: Command, model: Path) -> None:
    """All of it, the newline too: bytes as they come."""
    prompt = b"one\ntwo\n"
    assert command(model, "-n", str(len(prompt) + 1), "-i", "-", stdin=prompt).out == prompt + b"\n"
    usual = command(model, "-t", "0", "-i", "once upon").out
    assert command(model, "-t", "0", "-i", "-", stdin=b"once upon").out == usual
    assert command(model, "-t", "0", "--prompt", "-", stdin=b"").out == command(model, "-t", "0").out


def test_bytes_of_a_prompt(command: Command, model: Path) -> None:
    """Whole characters are printed, broken bytes and lone control bytes are not; a NUL is a byte like any other."""
    prompt = b"a\x07b\tc\xff\xc3\xa9\x00d\x1b\x7f\r\x0b\x0c\xe4\xb8\x96\xe4\xb8e\nf\xc3"
    printed = b"ab\tc\xc3\xa9d\r\x0b\x0c\xe4\xb8\x96e\nf\n"
    n_positions = str(len(prompt) + 1)
    assert command(model, "-n", n_positions, "-i", "-", stdin=prompt).out == printed
    prompt = prompt.replace(b"\0", b"")  # no argument can have one
    assert command(model, "-n", str(len(prompt) + 1), "-i", os.fsdecode(prompt)).out == printed
    done = process(model, "-n", n_positions, "-i", os.fsdecode(prompt)).communicate(timeout=SECONDS)
    assert done[0].startswith(printed[:-1])


def test_drawn_bytes(command: Command, tmp_path: Path) -> None:
    """A character is printed with its last byte, a control byte never; which tokens were drawn, the trace tells."""
    weights = checkpoints.random_weights(CONFIG, np.random.default_rng(6))
    checkpoints.write(tmp_path / "model.bin", CONFIG, 0, weights)
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin())
    result = command("model.bin", "-p", "0", "-s", "3", "-t", "9", "--trace", "trace")
    ids = [int(line.split("\t")[2]) for line in Path("trace").read_text().splitlines() if line.startswith("top")]
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    texts = [decoder.decode(PIECES[id]) for id in ids[1:]]
    controls = [chr(code) for code in [*range(9), *range(14, 32), 127]]
    assert result.out.decode().startswith("".join(text for text in texts if text not in controls))
    assert set(controls) & set(texts)
    assert any(id >= 131 for id in ids)


def test_the_prompt_must_fit_the_context(command: Command, model: Path, weights: checkpoints.Arrays) -> None:
    fits = "a" * (CONFIG.seq_len - 2)  # BOS, the space
    assert command(model, "-t", "0", "-i", fits).out == expected_story(weights, fits.encode(), CONFIG.seq_len)
    result = command(model, "-t", "0", "-n", "3", "-i", fits + "a")
    assert result == (1, b"", "llama2c: error: prompt: expected 1 to 64 tokens (the context), found 65\n")


# ---------------------------------------------------------------------------
# chat


@pytest.mark.parametrize(("system", "coins"), [(b"", None), (b"", 3), (b"be", 5), (b"", 6)])
def test_chat(command: Command, talker: tuple[Path, checkpoints.Arrays], system: bytes, coins: int | None) -> None:
    """Cut at every position: in a template, at a reply's first token and its last, at the EOS that is fed after it."""
    path, weights = talker
    flags = ["-t", "0"] if coins is None else ["-p", "0", "-s", str(coins)]
    seen: dict[Any, np.ndarray] = {}
    for steps in range(1, TALKER.seq_len + 1):
        asked = ["-n", str(steps), "-i", "hi", "-y", os.fsdecode(system)]
        result = command(path, "-m", "chat", *flags, *asked, stdin=b"yo\nno\n\nhm\n")
        lines = [b"hi", b"yo", b"no", b"", b"hm"]
        expected = expected_chat(weights, lines, system, steps, None if coins is None else Coins(coins), seen)
        assert _printable(result.out) == _printable(expected)
        assert result.code == 0
    if coins is not None:
        assert expected.count(b"Assistant: ") > 1


def test_what_chat_asks_for(command: Command, model: Path) -> None:
    asks, user = b"Enter system prompt (optional): ", b"User: Assistant: "
    chat = (model, "-m", "chat", "-t", "0", "-n", "60")
    asked = command(*chat, stdin=b"be\nhi\n").out
    assert asked.startswith(asks + user)
    story = asked.removeprefix(asks + user)
    assert len(story) > 4
    assert command(*chat, "-y", "be", stdin=b"hi\n").out == user + story
    assert command(*chat, "-i", "hi", stdin=b"be\n").out == asks + b"Assistant: " + story
    assert command(*chat, "-i", "hi", "-y", "be").out == b"Assistant: " + story
    assert command(*chat, "-i", "-", "-y", "be", stdin=b"hi").out == b"Assistant: " + story
    assert command(*chat, "-y", "be", stdin=b"hi").out == user + story  # a last line without its newline
    without = command(*chat, "-y", "", stdin=b"hi\n").out
    assert without != user + story
    assert command(*chat, stdin=b"\nhi\n").out == asks + without


def test_the_end_of_input_ends_a_chat(command: Command, model: Path) -> None:
    assert command(model, "-m", "chat") == (0, b"Enter system prompt (optional): \n", "")
    assert command(model, "-m", "chat", stdin=b"be\n") == (0, b"Enter system prompt (optional): User: \n", "")
    assert command(model, "-m", "chat", "-y", "") == (0, b"User: \n", "")
    # What -i says is answered: there is no system prompt then.
    answered = command(model, "-m", "chat", "-t", "0", "-i", "hi").out.removeprefix(b"Enter system prompt (optional): ")
    assert answered == command(model, "-m", "chat", "-t", "0", "-i", "hi", "-y", "").out
    assert len(answered) > len(b"Assistant: \n")


def test_a_chat_line_that_does_not_fit(command: Command, model: Path) -> None:
    """Its template has 17 tokens with BOS and the space. What fits is fed: a trace shows it."""
    chat = (model, "-m", "chat", "-t", "0", "-y", "")
    for n_positions in (1, 16, 18):
        result = command(*chat, "-n", str(n_positions), "-i", "hi", "--trace", "trace")
        assert result == (0, b"Assistant: \n", "")
        assert Path("trace").read_text().count("top") == n_positions
    assert len(command(*chat, "-n", "19", "-i", "hi").out) in (len(b"Assistant: x\n"), len(b"Assistant: \n"))
    assert command(*chat, stdin=b"a" * 10**6 + b"\n").out == b"User: Assistant: \n"


def test_a_chat_may_be_any_bytes(command: Command, model: Path) -> None:
    chat = (model, "-m", "chat", "-t", "0", "-y", "\udcff")
    answered = command(*chat, "-i", "\udcff\udcc3\0\r").out
    assert command(*chat, stdin=b"\xff\xc3\x00\r\n") == (0, b"User: " + answered, "")
    assert len(answered) > len(b"Assistant: \n")


# ---------------------------------------------------------------------------
# what is told on stderr


def test_speed_counts_the_tokens_after_the_prefill_step(command: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(cli, "perf_counter", lambda: next(clock) / 2)
    assert command(model, "-t", "0", "-n", "9").err == "achieved tok/s: 16.000000\n"  # 9 made, 8 after the first, in 0.5 s
    assert command(model, "-t", "0", "-n", "9", "-i", "abc").err == "achieved tok/s: 8.000000\n"
    assert command(model, "-t", "0", "-n", "1").err == ""
    told = command(model, "-t", "0", "-n", "9", "-i", "abc", "-v").err
    assert "llama2c: prompt: 5 tokens, 10.0 tok/s\nllama2c: generation: 4 tokens, 8.0 tok/s\nachieved" in told


def test_verbose(command: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = command(model, "-t", "0", "-s", "5")
    told = command(model, "-t", "0", "-s", "5", "-v", "--threads", "1")
    assert told.out == quiet.out
    assert told.err.splitlines()[:6] == [
        f"llama2c: version {__version__}, instruction set {build_info()['isa']}, threads: 1",
        f"llama2c: model: {model}, format v1, fp32",
        "llama2c: shape: dim 16, hidden_dim 24, n_layers 2, n_heads 4, n_kv_heads 2, vocab_size 286, seq_len 64, "
        "head_size 4, classifier not shared",
        "llama2c: RoPE base 10000; norm_eps 1e-05",
        f"llama2c: tokenizer: {model.with_name('tokenizer.bin')}",
        "llama2c: seed: 5",
    ]
    assert command(model, "-t", "0", "-s", "5", "--verbose", "--threads", "1").err.splitlines()[:6] == told.err.splitlines()[:6]
    assert "llama2c: generation: " in command(model, "-m", "chat", "-t", "0", "-v", "-i", "hi", "-y", "").err


def test_verbose_q8_0(command: Command, tmp_path: Path) -> None:
    write_model(tmp_path, CONFIG, version=2)
    assert "model.bin, format v2, Q8_0 in groups of 8\n" in command("model.bin", "-v").err


@pytest.mark.parametrize(
    ("flags", "same_as", "told"),
    [
        (["-t", "-1"], ["-t", "0"], "--temperature -1 is below 0: taken as 0"),
        (["--temperature=-inf"], ["-t", "0"], "--temperature -inf is below 0: taken as 0"),
        (["-p", "-0.5", "-s", "4"], ["-p", "0.9", "-s", "4"], "--top-p -0.5 is outside 0 to 1: taken as 0.9"),
        (["-p", "1.5", "-s", "4"], ["-p", "0.9", "-s", "4"], "--top-p 1.5 is outside 0 to 1: taken as 0.9"),
        (["-t", "0", "-n", "-3"], ["-t", "0", "-n", "0"], "--steps -3 is below 0: taken as 0, the whole context"),
        (["-t", "0", "-n", "65"], ["-t", "0", "-n", "64"], "--steps 65 is more than the context: taken as 64"),
    ],
)
def test_adjusted_flags_are_named(command: Command, model: Path, flags: list[str], same_as: list[str], told: str) -> None:
    result, same = command(model, *flags), command(model, *same_as)
    assert result.out == same.out
    assert result.err.splitlines()[0] == f"llama2c: warning: {told}"
    assert result.err.count("warning") == 1
    assert "warning" not in same.err


def test_more_threads_than_cores(model: Path, command: Command) -> None:
    """A warning, once; the text is the same."""
    n_threads = available_cores() + 1
    out, err = process(model, "-t", "0", "-v", "--threads", str(n_threads)).communicate(timeout=SECONDS)
    told = err.decode().splitlines()
    assert re.fullmatch(rf"llama2c: warning: n_threads={n_threads} is more than the \d+ cores? here.*", told[0])
    assert f"threads: {n_threads}" in told[1]
    assert err.count(b"warning") == 1
    assert out == command(model, "-t", "0").out


# ---------------------------------------------------------------------------
# where the tokenizer is looked for


def test_tokenizer_is_looked_for(command: Command, model: Path, tmp_path: Path) -> None:
    """-z, then beside the model, then in the working directory; a -z that is not there is not replaced."""
    story = command(model, "-t", "0", "-n", "20").out
    folder = tmp_path / "folder"
    folder.mkdir()
    alone = folder / "alone.bin"
    alone.write_bytes(model.read_bytes())
    result = command(alone, "-t", "0", "-n", "20")
    beside = folder / "tokenizer.bin"
    assert (result.code, result.out, result.err.count("\n")) == (1, b"", 1)
    names = "tokenizer.bin, tokenizer.json or tokenizer.model"
    assert result.err.startswith(f"llama2c: error: {alone}: expected {names} in {folder}")

    def spelled(letters: str) -> bytes:
        return story.translate(bytes.maketrans(LETTERS.encode(), letters.encode()))

    capitals, digits, given = LETTERS.upper(), " " + "0123456789" * 2 + "!?.,;:", " " + LETTERS[:0:-1]
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin(capitals))
    assert command(alone, "-t", "0", "-n", "20").out == spelled(capitals) != story
    beside.write_bytes(tokenizer_bin(digits))
    assert command(alone, "-t", "0", "-n", "20").out == spelled(digits)
    (tmp_path / "given.bin").write_bytes(tokenizer_bin(given))
    assert command(alone, "-t", "0", "-n", "20", "-z", "given.bin").out == spelled(given)
    result = command(alone, "-z", "absent.bin")
    assert (result.code, result.out) == (1, b"")
    assert result.err.startswith("llama2c: error: absent.bin: expected")


# ---------------------------------------------------------------------------
# trace


def test_trace(command: Command, model: Path, weights: checkpoints.Arrays) -> None:
    """Against NumPy: what a position shows is of the token it was fed, and the digits are enough to compare."""
    flags = (model, "-t", "0", "-n", "12", "-i", "abc")
    result = command(*flags, "--trace", "trace")
    assert result.out == command(*flags).out
    ids = ids_of(result.out.removesuffix(b"\n"))[:12]
    expected = Reference(CONFIG, weights).forward(ids)
    lines = [line.split("\t") for line in Path("trace").read_text().splitlines()]
    assert [line[:4] for line in lines if line[0] == "layer"] == [
        ["layer", str(position), str(ids[position]), str(layer)] for position in range(12) for layer in range(2)
    ]
    numbers = np.array([line[4:] for line in lines if line[0] == "layer"], float).reshape(12, 2, 4)
    np.testing.assert_allclose(numbers, expected.trace, rtol=1e-4, atol=1e-5)
    tops = [line[1:] for line in lines if line[0] == "top"]
    assert [top[:2] for top in tops] == [[str(position), str(id)] for position, id in enumerate(ids)]
    for top, logits in zip(tops, expected.logits, strict=True):
        assert [int(id) for id in top[2::2]] == np.argsort(-logits)[:5].tolist()
        np.testing.assert_allclose(np.array(top[3::2], float), np.sort(logits)[:-6:-1], atol=2e-5)


def test_trace_of_a_cut_prompt_and_of_a_chat(command: Command, model: Path) -> None:
    command(model, "-t", "0", "-n", "12", "-i", "abcdef", "--trace", "whole")
    command(model, "-t", "0", "-n", "4", "-i", "abcdef", "--trace", "cut")
    whole, cut = Path("whole").read_text().splitlines(), Path("cut").read_text().splitlines()
    assert cut == whole[: 4 * 3]
    result = command(model, "-m", "chat", "-t", "0", "-n", "40", "-y", "", "-i", "hi", "--trace", "-")
    assert len(result.err.splitlines()) == 40 * 3
    assert result.out == command(model, "-m", "chat", "-t", "0", "-n", "40", "-y", "", "-i", "hi").out


def test_traced_forward_is_forward(model: Path) -> None:
    checkpoint, file = Checkpoint.open(model), io.StringIO()
    plain, traced = Transformer(checkpoint, 1), cli.TracedTransformer(checkpoint, 1, file)
    caches = [plain.new_cache(), traced.new_cache()]
    trace, same_trace = np.empty((2, 3, 2, 4), np.float32)
    out, same_out = np.empty((2, CONFIG.vocab_size), np.float32)
    rows, same_rows = np.empty((2, 3, CONFIG.vocab_size), np.float32)
    tokens = [1, 260, 261]
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"out": out}, {"out": same_out}),
        ({"all_logits": True, "trace": trace}, {"all_logits": True, "trace": same_trace}),
        ({"all_logits": True, "out": rows}, {"all_logits": True, "out": same_rows}),
    ]
    for options, same_options in pairs:
        expected, found = plain.forward(tokens, caches[0], **options), traced.forward(tokens, caches[1], **same_options)
        np.testing.assert_array_equal(found, expected)
        assert found.shape == expected.shape
    np.testing.assert_array_equal(same_trace, trace)
    np.testing.assert_array_equal(same_out, out)
    np.testing.assert_array_equal(same_rows, rows)
    assert file.getvalue().count("top") == 12


# ---------------------------------------------------------------------------
# help and usage


def test_help(command: Command) -> None:
    for flag in ("-h", "--help"):
        result = command("no model", flag)
        assert (result.code, result.err) == (0, "")
    for flag in "-t -p -s -n -i -z -m -y --threads --trace -v --version -h".split():
        assert re.search(rf"^ *{flag} ", result.out.decode(), re.MULTILINE)
    for flag in "temperature top-p seed steps prompt tokenizer mode system-prompt verbose help".split():
        assert f" --{flag} " in result.out.decode()
    assert max(map(len, result.out.splitlines())) <= 120


def test_version(command: Command) -> None:
    assert command("--version") == (0, f"llama2c {__version__}\n".encode(), "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.bin", "other.bin"], "other.bin: expected one model file, found a second"),
        (["model.bin", "-x", "1"], "-x: expected a flag that there is, found an unknown one"),
        (["model.bin", "-t0"], "-t0: expected a flag that there is, found an unknown one"),
        (["model.bin", "-t=0"], "-t=0: expected a flag that there is, found an unknown one"),
        (["model.bin", "--temp", "0"], "--temp: expected a flag that there is, found an unknown one"),
        (["model.bin", "-t"], "-t: expected a value, found none"),
        (["model.bin", "-i", "a", "--steps"], "--steps: expected a value, found none"),
        (["model.bin", "-t", "warm"], "-t: expected a number, found 'warm'"),
        (["model.bin", "-t", "1.0x"], "-t: expected a number, found '1.0x'"),
        (["model.bin", "-p", ""], "-p: expected a number, found ''"),
        (["model.bin", "--top-p="], "--top-p: expected a number, found ''"),
        (["model.bin", "-n", "12.5"], "-n: expected an integer, found '12.5'"),
        (["model.bin", "-s", "1e3"], "-s: expected an integer, found '1e3'"),
        (["model.bin", "--threads", "two"], "--threads: expected an integer, found 'two'"),
        (["model.bin", "-m", "sing"], "-m: expected generate or chat, found 'sing'"),
        (["model.bin", "--verbose=1"], "--verbose: expected no value, found '1'"),
    ],
)
def test_usage_errors(command: Command, arguments: list[str], message: str) -> None:
    assert command(*arguments) == (2, b"", f"llama2c: error: {message}\n")


def test_light_imports() -> None:
    """Nothing but the standard library beyond NumPy, by the modules of two fresh processes."""

    def modules(statement: str) -> set[str]:
        code = f"import sys\n{statement}\nprint(*sys.modules, file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=SECONDS)
        return {name.partition(".")[0] for name in done.stderr.decode().split()}

    help = modules("from llama2c.commands.main import main\nmain(['--help'])")
    more = help - modules("import numpy") - sys.stdlib_module_names
    assert {name for name in more if not name.startswith(("_cython_", "cython_runtime"))} == {"llama2c"}


# ---------------------------------------------------------------------------
# bad input: exit code 1, nothing on stdout, one line that names the file


def header(version: int = 1, *, magic: int = 0x616B3432, tied: int = 0, group_size: int = 0, **sizes: int) -> bytes:
    values = [sizes.get(name, getattr(CONFIG, name)) for name in DIMENSIONS]
    return struct.pack("<Ii7iBi", magic, version, *values, tied, group_size).ljust(256, b"\0")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda good: b"", "expected 28 bytes, found 0"),
        (lambda good: good[:100], "expected 256 bytes, found 100"),
        (lambda good: good[:-1], "expected {size} bytes according to the v1 header, found {less}"),
        (lambda good: good + b"\0", "expected {size} bytes according to the v1 header, found {more}"),
        (lambda good: struct.pack("<7i", 16, 24, 2, 4, 2, -286, 64) + good[256:], "bytes according to the v0 header"),
        (lambda good: header(2, group_size=8) + good[256:], "bytes according to the v2 header"),
        (lambda good: header(dim=0) + good[256:], "dim: expected a positive number below 2**31, found 0"),
        (lambda good: header(n_layers=-2) + good[256:], "n_layers: expected a positive number below 2**31, found -2"),
        (lambda good: header(hidden_dim=2**31 - 1, n_layers=2**31 - 1) + good[256:], "bytes according to the v1 header"),
        (lambda good: header(n_heads=3, n_kv_heads=3) + good[256:], "n_heads: expected a divisor of dim = 16, found 3"),
        (lambda good: header(n_kv_heads=3) + good[256:], "n_kv_heads: expected a divisor of n_heads = 4, found 3"),
        (lambda good: header(dim=12) + good[256:], "head_size: expected an even number, found 3"),
        (lambda good: header(magic=0x616B3433) + good[256:], "magic number 0x616b3432 not found"),
        (lambda good: header(7) + good[256:], "version: expected one of 1, 2, 3, found 7"),
        (lambda good: header(tied=2) + good[256:], "tied flag: expected 0 or 1, found 2"),
        (lambda good: header(2, group_size=0) + good[256:], "group_size: expected a divisor of dim = 16, found 0"),
        (lambda good: header(2, group_size=5) + good[256:], "group_size: expected a divisor of dim = 16, found 5"),
    ],
)
def test_bad_checkpoint(command: Command, model: Path, content: Callable[[bytes], bytes], words: str) -> None:
    good = model.read_bytes()
    Path("bad.bin").write_bytes(content(good))
    result = command("bad.bin", "-z", model.with_name("tokenizer.bin"))
    size = len(good)
    assert (result.code, result.out, result.err.count("\n")) == (1, b"", 1)
    assert result.err.startswith("llama2c: error: bad.bin: ")
    assert words.format(size=size, less=size - 1, more=size + 1) in result.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda good: b"", "found 0"),
        (lambda good: good[:-1], "token 285: expected a length of 1 to 0, the bytes left, found 1"),
        (lambda good: good + b"\0\0\0\0\1\0\0\0a", "expected the end after 286 tokens, at byte {size}, found {more} bytes"),
        (lambda good: tokenizer_bin(LETTERS[:-1]), "286"),
        (lambda good: good[:8] + struct.pack("<i", 2**31 - 1) + good[12:], "token 0: expected a length of 1 to "),
        (lambda good: good[:8] + struct.pack("<i", -1) + good[12:], "the bytes left, found -1"),
    ],
)
def test_bad_tokenizer(command: Command, model: Path, content: Callable[[bytes], bytes], words: str) -> None:
    good = tokenizer_bin()
    Path("bad.bin").write_bytes(content(good))
    result = command(model, "-z", "bad.bin")
    assert (result.code, result.out, result.err.count("\n")) == (1, b"", 1)
    assert result.err.startswith("llama2c: error: bad.bin: ")
    assert words.format(size=len(good), more=len(good) + 9) in result.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-t", "nan"], "temperature: expected a finite number of at least 0, found nan"),
        (["-t", "inf"], "temperature: expected a finite number of at least 0, found inf"),
        (["-p", "nan"], "top_p: expected a number from 0 to 1, found nan"),
        (["-s", str(2**64)], f"seed: expected an integer from 0 to {2**64 - 1}, found {2**64}"),
        (["-s", str(-(2**64))], f"seed: expected an integer from 0 to {2**64 - 1}, found -{2**64}"),
        (["--threads", "0"], "n_threads: expected 1 to 1024, found 0"),
        (["--trace", "no/trace"], "no/trace: expected a file to write to, found: No such file or directory"),
    ],
)
def test_bad_values(command: Command, model: Path, flags: list[str], message: str) -> None:
    assert command(model, *flags) == (1, b"", f"llama2c: error: {message}\n")


@pytest.mark.parametrize("kind", ["absent", "directory", "fifo", "two\nlines"])
@pytest.mark.parametrize("flag", [(), ("-z",)])
def test_no_such_file(model: Path, tmp_path: Path, kind: str, flag: tuple[str, ...]) -> None:
    """In a process of its own, which a FIFO must not hold up."""
    path = tmp_path / kind
    if kind == "directory":
        path.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    running = process(model, *flag, path) if flag else process(path)
    try:
        out, err = running.communicate(timeout=SECONDS)
    finally:
        running.kill()
    assert (running.returncode, out, err.count(b"\n")) == (1, b"", 1)
    assert err.decode().startswith(f"llama2c: error: {path}: expected".replace("\n", " "))


def test_no_memory(command: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_cache(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Transformer, "new_cache", no_cache)
    assert command(model) == (1, b"", "llama2c: error: not enough memory\n")


# ---------------------------------------------------------------------------
# streams, and how it ends


class Recorder(io.BytesIO):
    """A stdout that keeps what was written between two flushes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def flush(self) -> None:
        if not self.closed and self.getvalue():
            self.pieces.append(self.getvalue())
            self.seek(0)
            self.truncate()


def test_every_piece_is_flushed(model: Path, weights: checkpoints.Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = Recorder()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stdout))
    assert main([str(model), "-t", "0", "-n", "20", "-i", "abc"]) == 0
    story = expected_story(weights, b"abc", 20).decode()
    assert stdout.pieces == [letters.encode() for letters in ["abc", *story[3:]]]


def test_ctrl_c(endless: Path) -> None:
    """Exit code 130, no word on stderr, and what was printed stays."""
    running = process(endless, "-t", "0", "-n", "0")
    assert running.stdout is not None
    begin = running.stdout.read(20)  # more than a pipe holds is to come, so it is still at work
    running.send_signal(signal.SIGINT)
    rest, err = running.communicate(timeout=SECONDS)
    assert (running.returncode, err) == (130, b"")
    assert len(begin) == 20
    assert re.fullmatch(rb"[a-z ]+", begin + rest)  # no newline: nobody's prompt follows


def test_ctrl_c_in_a_chat(model: Path) -> None:
    running = process(model, "-m", "chat", stdin=subprocess.PIPE)
    assert running.stdout is not None
    guide = b"Enter system prompt (optional): "
    assert running.stdout.read(len(guide)) == guide
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=SECONDS) == (b"", b"")
    assert running.returncode == 130


def test_ctrl_c_on_a_terminal(endless: Path) -> None:
    """There the shell's prompt follows: it gets a line of its own."""
    ours, theirs = os.openpty()
    running = process(endless, "-t", "0", "-n", "0", stdout=theirs)
    os.close(theirs)
    text = os.read(ours, 20)
    running.send_signal(signal.SIGINT)

    def read() -> bytes:
        try:
            return os.read(ours, 65536)
        except OSError:  # Linux says so where nobody has the other end open
            return b""

    while part := read():
        text += part
    _, err = running.communicate(timeout=SECONDS)
    os.close(ours)
    assert (running.returncode, err) == (130, b"")
    assert re.fullmatch(rb"[a-z ]+\r?\n", text)


@pytest.mark.parametrize("flags", [["-n", "0"], ["-n", "0", "-v"], ["-m", "chat", "-y", "", "-i", "hi", "-n", "0"]])
def test_closed_pipe(endless: Path, flags: list[str]) -> None:
    running = process(endless, "-t", "0", *flags)
    assert running.stdout is not None and running.stderr is not None
    assert len(running.stdout.read(20)) == 20
    running.stdout.close()
    told = running.stderr.read().decode().splitlines()
    running.stderr.close()
    assert running.wait(timeout=SECONDS) == 141
    assert told == [line for line in told if line.startswith("llama2c: ") and "error" not in line]
    assert bool(told) == ("-v" in flags)


def test_closed_pipe_for_both(endless: Path) -> None:
    running = process(endless, "-t", "0", "-n", "0", "-v", stderr=subprocess.STDOUT)
    assert running.stdout is not None
    assert running.stdout.read(9) == b"llama2c: "
    running.stdout.close()
    assert running.wait(timeout=SECONDS) == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device without room")
def test_no_room_for_stdout(model: Path) -> None:
    with open("/dev/full", "wb") as full:
        running = process(model, stdout=full)
        _, err = running.communicate(timeout=SECONDS)
    assert (running.returncode, err) == (1, b"llama2c: error: output: No space left on device\n")


def test_no_streams(model: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python gives None for a stream that was closed before it started."""
    story = command(model, "-t", "0").out
    monkeypatch.setattr(sys, "stderr", None)
    assert command(model, "-t", "0", "-n", "99").out == story
    monkeypatch.undo()
    closed = ["sh", "-c", 'exec "$@" >&- <&-', "sh", sys.executable, "-m", "llama2c", str(model), "-i", "-"]
    done = subprocess.run(closed, capture_output=True, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (1, b"llama2c: error: stdout: expected an open file, found it closed\n")
    closed[2] = 'exec "$@" <&-'
    done = subprocess.run([*closed, "-t", "0"], capture_output=True, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (0, story)


def test_stdin_is_read_as_it_comes(model: Path) -> None:
    """A chat answers a line before the next one is there."""
    running = process(model, "-m", "chat", "-t", "0", "-n", "40", stdin=subprocess.PIPE)
    assert running.stdin is not None and running.stdout is not None
    timer = threading.Timer(SECONDS, running.kill)
    timer.start()
    read = b""
    for line, guide in [(b"be\n", b"Enter system prompt (optional): "), (b"hi\n", b"User: ")]:
        assert running.stdout.read(len(guide)) == guide
        running.stdin.write(line)
        running.stdin.flush()
    read = running.stdout.read(len(b"Assistant: x"))
    timer.cancel()
    assert read.startswith(b"Assistant: ")
    running.communicate(timeout=SECONDS)
    assert running.returncode == 0


# ---------------------------------------------------------------------------
# a real model


def test_a_real_model_in_a_folder(command: Command, shared: Path) -> None:
    """32,000 tokens do not fit a model of 512, and beside it lies just that tokenizer."""
    result = command(shared / "models" / "stories260K.bin")
    assert (result.code, result.out) == (1, b"")
    assert result.err.startswith(f"llama2c: error: {shared / 'models' / 'tokenizer.bin'}: expected the end after 512 tokens")


@pytest.mark.parametrize("name", ["stories260K_q80.bin", "stories260K_straddle_q80.bin"])
def test_a_quantised_model_tells_a_story(command: Command, shared: Path, name: str) -> None:
    place = shared / "models"
    result = command(place / name, "-z", place / "tok512.bin", "-t", "0", "-n", "40")
    assert result.code == 0
    assert result.out.startswith(b"Once upon a time, there was a")


def test_an_instruction_set_that_is_not_there(tmp_path: Path) -> None:
    """Found while the package is imported, and still one line."""
    environment = {**os.environ, "LLAMA2C_ISA": "abacus"}
    done = subprocess.run([sys.executable, "-m", "llama2c", "--version"], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 1
    assert done.stdout == b""
    assert re.fullmatch(rb"llama2c: error: LLAMA2C_ISA: expected one of .*generic.*, found 'abacus'\n", done.stderr)
