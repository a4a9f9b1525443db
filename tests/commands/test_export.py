"""The verb export: the command line, its messages, and tokenizer.model as tokenizer.bin."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import checkpoints
import pytest
import tokenizer_models
from exports import CONFIG, assert_same, needs, opened_weights, random_weights

import llama2c
from llama2c import Checkpoint, Tokenizer
from llama2c.commands import main as cli
from llama2c.formats import writer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return checkpoints.write(tmp_path / "in" / "m.bin", CONFIG, 0, random_weights())


def test_command_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "q.bin")
    assert cli.main(["export", str(model), "-o", out, "--dtype", "q8_0"]) == 0
    done = capsys.readouterr()
    assert done.out == f"{out}\n"
    said = done.err.splitlines()
    assert said[0] == "llama2c: group size: 32, because 64 does not divide dim = 64 and hidden_dim = 96"
    assert said[1] == f"llama2c: {out}: version 2, q8_0 in groups of 32, 0.1 MB"
    rounding = llama2c.export(model, tmp_path / "again.bin", "q8_0").rounding
    assert said[2] == f"llama2c: largest quantisation error: {rounding.error:.3g}, in {rounding.tensor}"
    how = "or name one with -z when you run it"
    assert said[3:] == [f"llama2c: {out}: no tokenizer beside it: put one into {tmp_path}, {how}"]
    assert cli.main(["export", str(model), "-o", out, "--version", "2", "--group-size", "16"]) == 0
    assert Checkpoint.open(out).group_size == 16
    assert "group size" not in capsys.readouterr().err
    assert cli.main(["export", str(model), "-o", out]) == 0
    assert capsys.readouterr().err.startswith(f"llama2c: {out}: version 0, float32, 0.3 MB\nllama2c: {out}: no tokenizer")
    assert cli.main(["export", str(model), f"--out={tmp_path}/hf/"]) == 0
    done = capsys.readouterr()
    assert done.out == f"{tmp_path}/hf\n"
    assert done.err.splitlines() == [
        f"llama2c: {tmp_path}/hf: a Hugging Face folder, float32, 0.3 MB",
        f"llama2c: {tmp_path}/hf: no tokenizer in it: put one into {tmp_path}/hf, {how}",
    ]
    assert cli.main(["export", str(model), "-o", f"{tmp_path}/hf2", "--format", "hf"]) == 0
    assert (tmp_path / "hf2" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "error", "status"),
    [
        ([], "the following arguments are required: SOURCE, -o/--out", 2),
        (["{in}"], "the following arguments are required: -o/--out", 2),
        (["{in}", "-o", "m.bin", "--version", "7"], "argument --version: invalid choice: 7", 2),
        (["{in}", "-o", "m.bin", "--tokenizer", "m.bin"], "argument --tokenizer: expected another file than OUT, found", 2),
        (["{in}", "-o", "m.bin", "--dtype", "q8_0", "--version", "1"], "version: expected 2 or 3 for q8_0, found 1", 1),
        (["none.bin", "-o", "m.bin"], "none.bin: expected a readable file, found: No such file or directory", 1),
        (["stories15M", "-o", "m.bin"], "stories15M: expected a file, or a model downloaded with ", 1),
    ],
)
def test_command_lines_that_are_wrong(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    error: str,
    status: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMA2C_CACHE", str(tmp_path / "cache"))
    assert cli.main(["export", *(argument.replace("{in}", str(model)) for argument in arguments)]) == status
    done = capsys.readouterr()
    assert done.out == "" and done.err.count("\n") == 1
    assert done.err.startswith(f"llama2c: error: {error}")
    assert os.listdir(tmp_path) == ["in"]


def test_gguf(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is said: no tokenizer, other types; nothing of a tokenizer beside the file if it is in it."""
    out = str(tmp_path / "m.gguf")
    assert cli.main(["export", str(model), "-o", out, "--dtype", "q4_0"]) == 0
    done = capsys.readouterr()
    assert done.out == f"{out}\n"
    said = done.err.splitlines()
    rounding = llama2c.export(model, tmp_path / "again.gguf", "q4_0").rounding
    none = "no tokenizer in it, because none of tokenizer.bin, tokenizer.json or tokenizer.model is with"
    assert said == [
        f"llama2c: {out}: a GGUF file, q4_0, 0.1 MB",
        f"llama2c: largest quantisation error: {rounding.error:.3g}, in {rounding.tensor}",
        f"llama2c: {out}: {none} {model}",
        f"llama2c: {out}: the number of columns of some matrices is not a multiple of 256: 1 is q8_0 instead of q6_k",
    ]
    tokenizer = tokenizer_models.tokenizer_bin(tokenizer_models.pieces(CONFIG.vocab_size))
    (tmp_path / "t.bin").write_bytes(tokenizer)
    assert cli.main(["export", str(model), "-o", out, "--dtype", "f32", "-z", f"{tmp_path}/t.bin"]) == 0
    assert capsys.readouterr().err == f"llama2c: {out}: a GGUF file, float32, 0.3 MB\n"
    assert Tokenizer.open(out).encode("t") == Tokenizer.open(tmp_path / "t.bin").encode("t")
    arguments = ["export", out, "-o", f"{tmp_path}/b.bin", "--version", "0", "--tokenizer", f"{tmp_path}/tokenizer.bin"]
    assert cli.main(arguments) == 0
    assert_same(opened_weights(tmp_path / "b.bin"), random_weights())
    assert (tmp_path / "tokenizer.bin").read_bytes() == tokenizer


@pytest.mark.parametrize("kind", ["gguf", "file"])
def test_a_tokenizer_in_the_folder_that_is_written(
    model: Path, tokenizer_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """The folder has to be new, and the tokenizer.bin is one of its files."""
    source = model
    if kind == "gguf":
        source = tmp_path / "m.gguf"
        llama2c.export(model, source)
    arguments = ["export", str(source), "-o", f"{tmp_path}/hf/", "--tokenizer", f"{tmp_path}/hf/tokenizer.bin"]
    assert cli.main(arguments) == 0
    expected = {"config.json", "model.safetensors", "tokenizer.bin"}
    if kind == "gguf":
        expected |= {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert set(os.listdir(tmp_path / "hf")) == expected
    pieces = tokenizer_models.pieces(CONFIG.vocab_size)
    assert (tmp_path / "hf" / "tokenizer.bin").read_bytes() == tokenizer_models.tokenizer_bin(pieces)
    capsys.readouterr()
    assert cli.main([*arguments[:-1], f"{tmp_path}/hf2/config.json", "-o", f"{tmp_path}/hf2/"]) == 2
    assert "argument --tokenizer: expected another name, found that of a file of the folder" in capsys.readouterr().err
    assert not (tmp_path / "hf2").exists()


def test_help_and_the_name_in_python() -> None:
    """llama2c.export is the function, whatever has been imported before; the other packages are not needed for the help."""
    code = "import llama2c, sys; from llama2c.commands.main import main; main(['export', '--help']); llama2c.export.__call__; "
    code += "assert not {'torch', 'safetensors', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    for word in (
        "SOURCE",
        "--out",
        "--dtype",
        "--version",
        "--group-size",
        "--format",
        "--tokenizer",
        "-z FILE",
        "q4_k",
        "bf16",
    ):
        assert word in done.stdout
    assert done.stderr == ""


def test_what_is_said_of_the_tokenizer(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing where one is beside the result; otherwise where one is, if there is one."""

    def said(out: str) -> str:
        assert cli.main(["export", str(model), "-o", out]) == 0
        return "".join(capsys.readouterr().err.splitlines(keepends=True)[1:])

    tokenizer = tokenizer_models.tokenizer_bin(tokenizer_models.pieces(CONFIG.vocab_size))
    model.with_name("tokenizer.bin").write_bytes(tokenizer)
    assert said(str(model.with_name("other.bin"))) == ""
    expected = f"llama2c: {tmp_path}/m.bin: no tokenizer beside it: run it with -z {model.parent}/tokenizer.bin\n"
    assert said(f"{tmp_path}/m.bin") == expected
    assert cli.main([f"{tmp_path}/m.bin", "-n", "3", *expected.split()[-2:]]) == 0
    capsys.readouterr()
    if importlib.util.find_spec("safetensors"):
        assert said(f"{tmp_path}/hf/") == ""
        assert (tmp_path / "hf" / "tokenizer.bin").read_bytes() == tokenizer
        assert cli.main([f"{tmp_path}/hf", "-n", "3"]) == 0  # it runs as it is
        capsys.readouterr()


def test_an_interruption(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llama2c.commands.export.Bar.__call__", interrupt)
    assert cli.main(["export", str(model), "-o", f"{tmp_path}/out.bin"]) == 130
    assert os.listdir(tmp_path) == ["in"]
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------------------
# tokenizers


@pytest.fixture
def tokenizer_model(model: Path) -> Path:
    path = model.with_name("tokenizer.model")
    path.write_bytes(tokenizer_models.model(tokenizer_models.pieces(CONFIG.vocab_size)))
    return path


def test_tokenizer_is_written_too(
    model: Path, tokenizer_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokenizer.bin"
    assert cli.main(["export", str(model), "-o", str(tmp_path / "m.bin"), "--tokenizer", str(out)]) == 0
    assert out.read_bytes() == tokenizer_models.tokenizer_bin(tokenizer_models.pieces(CONFIG.vocab_size))
    assert Tokenizer.open(out, CONFIG.vocab_size).piece(259) == b" t"
    assert capsys.readouterr().out == f"{tmp_path}/m.bin\n"
    llama2c.export(model, f"{tmp_path}/hf/")
    shutil.copy(tokenizer_model, tmp_path / "hf")
    if importlib.util.find_spec("safetensors"):
        arguments = ["export", f"{tmp_path}/hf", "-o", str(tmp_path / "n.bin"), "--tokenizer", str(tmp_path / "again.bin")]
        assert cli.main(arguments) == 0
        assert (tmp_path / "again.bin").read_bytes() == out.read_bytes()


@needs("sentencepiece")
def test_tokenizer_that_sentencepiece_has_trained(tmp_path: Path) -> None:
    """Scores and spellings as the package tells them, and the same ids for a text."""
    import io

    import sentencepiece

    from llama2c.text import sentencepiece as ours

    written = io.BytesIO()
    settings = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 300, "normalization_rule_name": "identity"}
    settings |= {"remove_extra_whitespaces": False, "minloglevel": 2, "num_threads": 1}
    stories = [f"One day, {name} saw a {thing}." for name in ("Lily", "Tom", "Zoë") for thing in ("ball", "kite")]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(stories), model_writer=written, **settings)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    expected = [(theirs.id_to_piece(i).replace("\u2581", " ").encode(), theirs.get_score(i)) for i in range(300)]
    expected[1:3] = [(b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    (tmp_path / "t.model").write_bytes(written.getvalue())
    (tmp_path / "t.bin").write_bytes(ours.convert(tmp_path / "t.model", 300))
    assert (tmp_path / "t.bin").read_bytes() == writer.pack_tokenizer(expected)
    opened = Tokenizer.open(tmp_path / "t.bin", 300)
    for text in ("One day, Zoë saw a kite.", "Lily 猫"):
        assert opened.encode(text) == [1, *theirs.encode(text)]


def test_tokenizers_that_are_wrong(
    model: Path, tokenizer_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(content: bytes) -> str:
        tokenizer_model.write_bytes(content)
        assert cli.main(["export", str(model), "-o", str(tmp_path / "m.bin"), "--tokenizer", str(tmp_path / "t.bin")]) == 1
        assert os.listdir(tmp_path) == ["in"]
        done = capsys.readouterr()
        assert done.out == "" and done.err.count("\n") == 1
        return done.err.removeprefix(f"llama2c: error: {tokenizer_model}: ").removesuffix("\n")

    pieces = tokenizer_models.pieces(300)
    whole = tokenizer_models.model(pieces)
    assert error(tokenizer_models.model(pieces[:299])) == "expected 300 tokens, as the model has, found 299"
    assert error(b"") == "expected a tokenizer of SentencePiece, found no token in it"
    assert error(whole[:-1]) == "expected a tokenizer of SentencePiece, found it cut off"
    assert error(whole[:1000]).startswith("expected a tokenizer of SentencePiece, found it cut off: ")
    assert error(b"\x0b" + whole) == "expected a tokenizer of SentencePiece, found a field of wire type 3"
    assert error(b"\x80" * 20) == "expected a tokenizer of SentencePiece, found a number of more than 10 bytes"
    assert error(b'{"version": "1.0"}').startswith("expected a tokenizer of SentencePiece, found ")
    assert error(tokenizer_models.model(pieces, kind=1)) == "expected a model of byte-pair encoding (kind 2), found kind 1"
    swapped = [*pieces[:3], pieces[4], pieces[3], *pieces[5:]]
    assert error(tokenizer_models.model(swapped)) == "expected token 3 to be <0x00>, found b'<0x01>'"
    kinds = "(unknown, BOS, EOS, then the bytes)"
    assert error(tokenizer_models.model(pieces[1:])) == f"expected a token 0 of kind 2 {kinds}, found kind 3"
    assert error(tokenizer_models.model(pieces[:200])) == f"expected a token 200 of kind 6 {kinds}, found none"
    nameless = [*pieces[:270], ("", 0.0, 1)]
    assert error(tokenizer_models.model(nameless)) == "expected a token 270 with a spelling and a score, found b'' and 0.0"
    tokenizer_model.unlink()
    assert cli.main(["export", str(model), "-o", str(tmp_path / "m.bin"), "--tokenizer", str(tmp_path / "t.bin")]) == 1
    assert "expected a tokenizer of SentencePiece, found: No such file or directory" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["in"]
