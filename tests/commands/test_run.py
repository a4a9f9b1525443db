"""Stories: texts against a NumPy model, prompts, speed and warnings, and which tokenizer is used."""

from __future__ import annotations

import codecs
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from command_line import (
    CONFIG,
    LETTERS,
    PIECES,
    SECONDS,
    Coins,
    Command,
    expected_story,
    ids_of,
    printable,
    process,
    tokenizer_bin,
    write_model,
)

import llama2c
from llama2c import Transformer, __version__, build_info
from llama2c.commands import printing, run
from llama2c.threads import available_cores

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
    assert printable(result.out) == printable(expected_story(weights, b"ab", 40, Coins(seed)))


def test_a_stop_token_ends_the_story(command: Command, talker: tuple[Path, checkpoints.Arrays]) -> None:
    path, weights = talker
    lengths = set()
    for seed in range(1, 9):
        result = command(path, "-p", "0", "-n", "64", "-s", str(seed))
        assert printable(result.out) == printable(expected_story(weights, b"", 64, Coins(seed)))
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
    monkeypatch.setattr(run, "time_ns", lambda: 77)
    assert command(model).out == command(model, "-s", "0").out == command(model, "-s", "77").out
    assert "seed: 77\n" in command(model, "-v").err


# ---------------------------------------------------------------------------
# what C lacks


def test_what_c_lacks_is_off(command: Command, model: Path) -> None:
    off = ("--top-k", "0", "--min-p", "0", "--repetition-penalty", "1", "--context", "64")
    assert command(model, "-s", "5", *off).out == command(model, "-s", "5").out


def test_one_candidate_is_the_likeliest(command: Command, model: Path, weights: checkpoints.Arrays) -> None:
    greedy = expected_story(weights, b"once", 40)
    for flags in (["--top-k", "1"], ["--min-p", "1"], ["--top-k=1", "--min-p=0.5"]):
        assert command(model, "-i", "once", "-n", "40", "-s", "5", *flags).out == greedy


@pytest.mark.parametrize(
    "options",
    [{"top_k": 2}, {"min_p": 0.2}, {"repetition_penalty": 1.5}, {"top_k": 5, "min_p": 0.1, "repetition_penalty": 0.8}],
)
def test_sampling_is_that_of_the_api(command: Command, model: Path, options: dict[str, float]) -> None:
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    plain = command(model, "-i", "once", "-n", "40", "-s", "5").out
    told = command(model, "-i", "once", "-n", "40", "-s", "5", *flags).out
    n_prompt = len(ids_of(b"once"))
    text: Any = llama2c.load(model).generate("once", max_tokens=41 - n_prompt, seed=5, **options).text
    assert printable(told) == printable(f"once{text}\n".encode()) != printable(plain)


def test_stop_strings(command: Command, model: Path) -> None:
    """The text ends before the first of them; the prompt does not count."""
    story = command(model, "-t", "0", "-i", "once", "-n", "40").out.decode()
    made = story.removeprefix("once")
    late, early = made[-8:-4], made[8:11]
    assert made.find(late) > made.find(early) > 0
    for stop in ([early], [late, early], ["once", early], [early, "#" * 50]):
        flags = [word for text in stop for word in ("--stop", text)]
        assert command(model, "-t", "0", "-i", "once", "-n", "40", *flags).out.decode() == f"once{made[: made.find(early)]}\n"
    assert command(model, "-t", "0", "-i", "once", "-n", "40", "--stop", "once").out.decode() == story


CONSTRAINTS = {
    "--regex": ["[ab]{5}x"],
    "--schema": ['{"type": "array", "items": {"const": "é"}, "minItems": 2, "maxItems": 2}'],
    "--grammar": ['start: "a"{3} " é"'],
}


@pytest.mark.parametrize("flag", CONSTRAINTS)
def test_constraints(command: Command, model: Path, tmp_path: Path, flag: str) -> None:
    pytest.importorskip("llguidance", reason="needs llguidance")
    [value] = CONSTRAINTS[flag]
    if flag != "--regex":
        (tmp_path / "given").write_text(value, encoding="utf-8")
    given = [flag, value if flag == "--regex" else str(tmp_path / "given")]
    result = command(model, "-i", "once ", "-n", "40", "-s", "3", *given)
    made = result.out.decode().removeprefix("once ").removesuffix("\n")
    assert result.code == 0
    assert re.fullmatch({"--regex": value, "--schema": r'\[\s*"é"\s*,\s*"é"\s*\]', "--grammar": "aaa é"}[flag], made), made
    options: Any = {flag[2:]: json.loads(value) if flag == "--schema" else value}
    assert llama2c.load(model).generate("once ", seed=3, top_p=0.9, **options).text == made


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (["--regex", "["], 1, "--regex: unclosed character class"),
        (["--regex", "a", "--grammar", "x"], 2, "--regex: cannot be used together with --grammar"),
        (["-m", "chat", "--regex", "a"], 2, "--regex: is for stories and answers, not for a chat"),
        (["--schema", "none.json"], 1, "none.json: expected a readable file, found: No such file or directory"),
        (["--schema", "cut.json"], 1, "cut.json: expected JSON, found: Expecting ':' delimiter: line 1 column 5 (char 4)"),
        (["--schema", "list.json"], 1, "list.json: expected a JSON object, found list"),
        (["--schema", "not.json"], 1, '--schema: Unimplemented keys: ["not"]'),
        (["--grammar", "latin1"], 2, "latin1: expected valid UTF-8, found byte 0xE9 at index 0"),
        (["--grammar", "."], 1, ".: expected a regular file, found a directory"),
    ],
)
def test_wrong_constraints(
    command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], code: int, told: str
) -> None:
    pytest.importorskip("llguidance", reason="needs llguidance")
    monkeypatch.chdir(tmp_path)
    for name, content in {"cut.json": b'{"a"', "list.json": b"[1]", "not.json": b'{"not": {}}', "latin1": b"\xe9"}.items():
        (tmp_path / name).write_bytes(content)
    assert command(model, *flags) == (code, b"", f"llama2c: error: {told}\n")


def test_a_smaller_context(command: Command, model: Path, weights: checkpoints.Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    new_cache = Transformer.new_cache

    def spy(transformer: Transformer, max_length: int | None = None) -> Any:
        sizes.append(max_length)
        return new_cache(transformer, max_length)

    monkeypatch.setattr(Transformer, "new_cache", spy)
    for flags, n in ([], 20), (["-n", "0"], 20), (["-n", "7"], 7):
        result = command(model, "-t", "0", "-i", "once", "--context", "20", *flags)
        assert result.out == expected_story(weights, b"once", n)
        assert "warning" not in result.err
        assert sizes.pop() == n
    warned = command(model, "-t", "0", "--context", "20", "-n", "21")
    assert warned.err.startswith("llama2c: warning: --steps 21 is more than the context: using 20\n")
    assert command(model, "--context", "5", "-i", "once") == (
        1, b"", "llama2c: error: prompt: expected 1 to 5 tokens (the context), found 6\n"
    )  # fmt: skip


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
# what is printed on stderr


def test_speed_counts_the_tokens_after_the_prefill_step(command: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(printing, "perf_counter", lambda: next(clock) / 2)
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
        (["-t", "-1"], ["-t", "0"], "--temperature -1 is below 0: using 0"),
        (["--temperature=-inf"], ["-t", "0"], "--temperature -inf is below 0: using 0"),
        (["-p", "-0.5", "-s", "4"], ["-p", "0.9", "-s", "4"], "--top-p -0.5 is outside 0 to 1: using 0.9"),
        (["-p", "1.5", "-s", "4"], ["-p", "0.9", "-s", "4"], "--top-p 1.5 is outside 0 to 1: using 0.9"),
        (["-t", "0", "-n", "-3"], ["-t", "0", "-n", "0"], "--steps -3 is below 0: using 0, the whole context"),
        (["-t", "0", "-n", "65"], ["-t", "0", "-n", "64"], "--steps 65 is more than the context: using 64"),
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
# a real model


def test_a_real_model_in_a_folder(command: Command, shared: Path) -> None:
    """The tokenizer beside it has 32,000 tokens, and the model has 512."""
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
    done = subprocess.run([sys.executable, "-m", "llama2c", "-n", "1"], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 1
    assert done.stdout == b""
    assert re.fullmatch(rb"llama2c: error: LLAMA2C_ISA: expected one of .*generic.*, found 'abacus'\n", done.stderr)
