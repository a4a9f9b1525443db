"""`batch --ray` without a cluster: which flags go together, what is told at the end. tests/cluster has the rest."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from command_line import Command

import llama2c
from llama2c.batch.output import Output
from llama2c.batch.parts import Report, prepare
from llama2c.batch.plan import make_plan
from llama2c.commands.batch_ray import tell, warn_of_others
from llama2c.errors import RequestError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("IN").mkdir()
    Path("IN/a.jsonl").write_text('{"prompt": "a"}\n')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["IN", "-o", "OUT", "--ray", "--ordered"], "--ordered: is not for --ray"),
        (["IN", "-o", "OUT", "--ray", "--timings", "t"], "--timings: is not for --ray"),
        (["IN", "-o", "OUT", "--ray", "--format", "csv"], "--format: is not for --ray"),
        (["IN", "-o", "OUT", "--ray", "--shard", "1/2"], "--shard: is not for --ray, which gives every machine its share"),
        (["-", "-o", "OUT", "--ray"], "IN: expected a folder for --ray, found -"),
        (["IN", "-o", "-", "--ray"], "OUT: expected a folder for --ray, found -"),
        (["IN", "-o", "OUT", "--ray", "--actor-cpus", "0"], "--actor-cpus: expected a number above 0, found 0"),
        (["IN", "-o", "OUT", "--actors", "2"], "--actors: is for --ray"),
        (["IN/a.jsonl", "-o", "OUT", "--part", "2"], "--part: is for --ray"),
        (["IN", "-o", "OUT", "--actor-cpus", "2"], "--actor-cpus: is for --ray"),
    ],
)
def test_flags_that_do_not_go_together(command: Command, arguments: list[str], message: str) -> None:
    assert command("batch", *arguments) == (2, b"", f"llama2c: error: {message}\n")
    assert not Path("OUT").exists()


def test_what_is_refused_before_a_cluster_is_looked_for(command: Command) -> None:
    assert "expected a folder with files of requests" not in command("batch", "IN", "-o", "no/OUT", "--ray").err
    for arguments, message in {
        ("IN", "-o", "no/OUT"): "no/OUT: ",
        ("IN", "-o", "IN"): "IN: expected an empty folder, or one that `batch --ray` has made, found 'a.jsonl' in it",
        ("gone", "-o", "OUT"): "gone: expected a file of JSON Lines",
        ("IN", "-o", "OUT", "-t", "-1"): "--temperature: expected a finite number of at least 0",
        ("IN", "-o", "OUT", "-s", str(2**64)): "--seed: expected an integer from 0",
    }.items():
        found = command("batch", *arguments, "--ray")
        assert found.code == 1 and message in found.err, found


def test_another_run_and_other_options(command: Command) -> None:
    """Both are told before a cluster is looked for."""
    made = make_plan(llama2c.load(n_threads=1), options={"max_tokens": 5}, seed=7)
    with Output(prepare("OUT")) as record:
        record.begin(made)
        found = command("batch", "IN", "-o", "OUT", "--ray")
        assert found.code == 1 and "_batch/plan.jsonl: another run is writing this file now" in found.err
    for flags, message in {
        (): "--seed: ",
        ("-s", "7"): "--max-tokens: ",
        ("-s", "7", "-n", "5", "--column", "text"): "--column: ",
    }.items():
        found = command("batch", "IN", "-o", "OUT", *flags, "--ray")
        assert found.code == 1 and message in found.err and "--restart begins anew" in found.err, found


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray(command: Command) -> None:
    found = command("batch", "IN", "-o", "OUT", "--ray")
    assert found.code == 1 and "ray: expected Ray Data (pip install 'llama2c[ray]'), found: No module named 'ray'" in found.err


def test_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    good, before = Report("a", 10, 10, 0, 50, 200), Report("b", 5, 0, 0)
    tell([good, before], 4.0)
    found = capsys.readouterr().err
    assert found == "llama2c: 10 requests answered, 0 wrong, 5 were done before; 200 tokens in 4.0 s, 50.0 tok/s\n"
    with pytest.raises(RequestError, match="3 requests are wrong; `error` in their answers says why"):
        tell([good, Report("c", 10, 10, 3)], 1.0)
    lost = Report("d", 10, error="host: d: No space left on device")
    with pytest.raises(OSError, match="2 of 3 parts are not done; the same command goes on"):
        tell([good, lost, lost], 1.0)
    assert capsys.readouterr().err.count("llama2c: not done: host: d: No space left on device\n") == 2


def test_answers_to_files_that_are_gone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("OUT").mkdir()
    for name in ("a-00000.jsonl", "b-00000.jsonl", "b-00001.jsonl"):
        Path("OUT", name).touch()
    warn_of_others("OUT", ["IN/a.jsonl", "IN/b.json"])
    assert capsys.readouterr().err == ""
    warn_of_others("OUT", ["IN/a.jsonl"])
    assert "warning: OUT has 2 files of answers to requests that the input does not have, such as OUT/b-00000.jsonl" in (
        capsys.readouterr().err
    )
