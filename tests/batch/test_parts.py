"""Parts of a folder: cuts, answers that are those of `batch`, parts that were begun, inputs that changed. Without Ray."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama2c.batch import parts as module
from llama2c.batch.columns import Names
from llama2c.batch.lines import Shape, read_entries
from llama2c.batch.opened import Model, Opened
from llama2c.batch.output import Output
from llama2c.batch.parts import WORK, Job, Part, PartWorker, Report, empty, files_of, made_in, part_name, plan_file, prepare
from llama2c.batch.plan import Plan
from llama2c.errors import RequestError

MODEL = Model(n_threads=1, max_sequences=4)
NAMES = Names(id="id")
LINES: list[Any] = [
    {"prompt": "The dog", "id": "a"},
    b"",
    {"prompt": "The cat"},
    {"custom_id": "q", "method": "POST", "url": "/v1/completions", "body": {"prompt": "One day,", "max_tokens": 4}},
    b"{broken",
    {"prompt": "The dog", "id": "a"},
    {"messages": [{"role": "user", "content": "Hi"}], "id": 7},
    b"   ",
    {"prompt": "The end", "id": "z", "temperature": 0},
    {"prompt": "The bird", "id": "\N{BLACK STAR}"},
]


def write(path: Path, lines: list[Any]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines))
    return str(path)


@pytest.fixture
def job(plan: Plan, tmp_path: Path) -> Job:
    prepare(str(tmp_path / "OUT"))
    return Job(str(tmp_path / "OUT"), replace(plan, options={"max_tokens": 6}), MODEL, NAMES)


def made(job: Job) -> dict[str, bytes]:
    return {os.path.basename(path): Path(path).read_bytes() for path in made_in(job.out)}


def answer(job: Job, *files: str, n: int = 3) -> list[Report]:
    worker = PartWorker(job)
    return [worker.answer(pickle.loads(pickle.dumps(part))) for file in files for part in plan_file(file, job.names, n)]


def whole(job: Job, file: str, out: Path) -> list[bytes]:
    """The lines that `batch --ordered` writes."""
    from llama2c.batch.run import Runner, met
    from llama2c.batch.work import Worker

    found = Opened(MODEL)
    with Output(str(out)) as output, open(file, "rb") as stream:
        worker = Worker(found.llama, found.engine, output.begin(job.plan))
        with Runner(worker, lambda answered: output.write(answered.line), ordered=True) as runner:
            for entry, _ in met(read_entries(stream.read, Shape(), file), output.done):
                runner.add(entry)
            runner.finish()
    return out.read_bytes().splitlines(keepends=True)[1:]


@pytest.mark.parametrize("n", [1, 2, 3, 100])
def test_the_answers_are_those_of_batch_however_it_is_cut(job: Job, tmp_path: Path, n: int) -> None:
    file = write(tmp_path / "IN" / "a.jsonl", LINES)
    expected = whole(job, file, tmp_path / "whole")
    assert len(expected) == 8 and [b'"error":null' in line for line in expected].count(False) == 2
    reports = answer(job, file, n=n)
    found = made(job)
    assert sorted(found) == [f"a-{i:05}.jsonl" for i in range(-(-8 // n))]
    assert b"".join(found[name] for name in sorted(found)) == b"".join(expected)
    assert [report.error for report in reports] == [None] * len(found)
    assert sum(report.n for report in reports) == sum(report.n_new for report in reports) == 8
    assert sum(report.n_wrong for report in reports) == 2
    assert sum(report.generation_tokens for report in reports) > 20 and all(report.seconds > 0 for report in reports)
    assert os.listdir(os.path.join(job.out, WORK)) == []


def test_a_byte_order_mark_and_a_last_line_without_an_end(job: Job, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "id": 1}\r\n{"prompt": "b", "id": 2}')
    assert [report.error for report in answer(job, str(file), n=1)] == [None, None]
    assert [json.loads(data)["id"] for _, data in sorted(made(job).items())] == [1, 2]


def test_a_part_that_is_there_is_left(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is not even opened."""
    file = write(tmp_path / "IN" / "a.jsonl", LINES)
    first = answer(job, file)
    before = made(job)
    monkeypatch.setattr(module, "opened", None)
    again = answer(job, file)
    assert made(job) == before
    assert [(report.n, report.n_new, report.n_wrong, report.error) for report in again] == [
        (report.n, 0, report.n_wrong, None) for report in first
    ]


@pytest.mark.parametrize("torn", [False, True])
def test_a_part_that_was_begun_goes_on(job: Job, tmp_path: Path, torn: bool) -> None:
    file = write(tmp_path / "IN" / "a.jsonl", LINES)
    answer(job, file, n=100)
    expected = made(job)
    [lines] = [data.splitlines(keepends=True) for data in expected.values()]
    os.unlink(made_in(job.out)[0])
    work = Path(job.out, WORK, "a-00000.jsonl.work")
    work.write_bytes(job.plan.header() + b"".join(lines[:5]) + (lines[5][:20] if torn else b""))
    [report] = answer(job, file, n=100)
    assert (report.error, report.n_new, report.n_wrong) == (None, 3, 2)
    assert made(job) == expected and not work.exists()


def test_a_part_that_lacks_lines_is_made_again(job: Job, tmp_path: Path) -> None:
    file = write(tmp_path / "IN" / "a.jsonl", LINES)
    answer(job, file)
    expected = made(job)
    path = Path(made_in(job.out)[0])
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[::2]))
    reports = answer(job, file)
    assert made(job) == expected and [report.n_new for report in reports] == [3, 0, 0]


def change_request(lines: list[Any]) -> list[Any]:
    return [{"prompt": "Another", "id": "a"}, *lines[1:]]


def insert(lines: list[Any]) -> list[Any]:
    return [{"prompt": "new", "id": "new"}, *lines]


@pytest.mark.parametrize("change", [change_request, insert])
@pytest.mark.parametrize("done", [False, True])
def test_another_input_is_refused(job: Job, tmp_path: Path, change: Callable[[list[Any]], list[Any]], done: bool) -> None:
    path = tmp_path / "IN" / "a.jsonl"
    answer(job, write(path, LINES))
    first = Path(made_in(job.out)[0])
    if not done:
        lines = first.read_bytes()
        first.unlink()
        Path(job.out, WORK, first.name + ".work").write_bytes(job.plan.header() + lines)
    before = list(made(job).items())[:-1]  # the answers of the last part, which had room, are in it also later
    report = answer(job, write(path, change(LINES)))[0]
    assert report.is_fatal and report.error is not None
    assert "found others: the input or --part has changed (--restart begins anew)" in report.error
    assert list(made(job).items())[:-1] == before


def test_a_longer_input_goes_on(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "IN" / "a.jsonl"
    answer(job, write(path, LINES))
    reports = answer(job, write(path, [*LINES, {"prompt": "more", "id": "more"}, {"prompt": "and", "id": "and"}]))
    assert [(report.n_new, report.error) for report in reports] == [(0, None), (0, None), (3, None), (1, None)]
    assert b"".join(data for _, data in sorted(made(job).items())).count(b"\n") == 10


def test_another_model_and_no_model(job: Job, tmp_path: Path) -> None:
    file = write(tmp_path / "IN" / "a.jsonl", LINES)
    [report] = answer(replace(job, plan=replace(job.plan, fingerprint="0" * 32)), file, n=100)
    assert report.is_fatal and report.error is not None
    assert "expected a model with the fingerprint 00000000000000000000000000000000, found " in report.error
    [report] = answer(replace(job, model=replace(MODEL, path=str(tmp_path / "gone.bin"))), file, n=100)
    assert report.is_fatal and report.error is not None and "gone.bin" in report.error


def test_a_full_disk_is_not_fatal_and_loses_nothing(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "IN" / "a.jsonl", LINES)
    writes = Output.write

    def fail(self: Output, line: bytes) -> None:
        if b'"id":"z"' in line:
            raise OSError(28, "No space left on device", self.path)
        writes(self, line)

    monkeypatch.setattr(Output, "write", fail)
    [report] = answer(job, file, n=100)
    assert not report.is_fatal and report.error is not None and "No space left on device" in report.error
    assert made(job) == {}
    monkeypatch.undo()
    [report] = answer(job, file, n=100)
    assert report.error is None and 0 < report.n_new < 8
    assert b"".join(made(job).values()) == b"".join(whole(job, file, tmp_path / "whole"))


def test_two_at_the_same_part(job: Job, tmp_path: Path) -> None:
    file = write(tmp_path / "IN" / "a.jsonl", LINES)
    with Output(os.path.join(job.out, WORK, "a-00000.jsonl.work")):
        [report] = answer(job, file, n=100)
    assert not report.is_fatal and report.error is not None and "another run is writing this file now" in report.error


# ---------------------------------------------------------------------------
# folders


def test_the_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.parquet", "c.json", "_SUCCESS", ".hidden"):
        (tmp_path / name).write_text("")
    assert [os.path.basename(path) for path in files_of(str(tmp_path))] == ["a.parquet", "b.jsonl", "c.json"]
    assert files_of(str(tmp_path / "b.jsonl")) == [str(tmp_path / "b.jsonl")]
    assert part_name("IN/a.json", 3) == "a-00003.jsonl" and part_name("a.b.parquet", 123456) == "a.b-123456.parquet"
    assert plan_file(str(tmp_path / "b.jsonl"), NAMES, 3) == []


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ([], FileNotFoundError, "expected a folder with files of requests, found none in it"),
        (["a.csv"], RequestError, "a.csv: expected a file of JSON Lines"),
        (["a.json", "a.jsonl"], RequestError, "a.jsonl: expected another name"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, names: list[str], error: type[Exception], message: str) -> None:
    for name in names:
        (tmp_path / name).write_text("")
    with pytest.raises(error, match=message):
        files_of(str(tmp_path))


def test_a_file_that_is_not_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"prompt": "a"}]')
    with pytest.raises(RequestError, match=r"a\.json: expected JSON Lines"):
        plan_file(str(tmp_path / "a.json"), NAMES, 3)
    with pytest.raises(FileNotFoundError):
        plan_file(str(tmp_path / "gone.json"), NAMES, 3)


def test_out_is_made_and_emptied_but_others_files_stay(tmp_path: Path, job: Job) -> None:
    out = Path(job.out)
    for name in ("a-00000.jsonl", "b-00001.parquet", "notes.txt", "_batch/a-00001.jsonl.work", "_batch/plan.jsonl"):
        (out / name).write_text("x")
    assert prepare(job.out) == str(out / "_batch" / "plan.jsonl")
    empty(job.out)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*")) == ["_batch", "_batch/plan.jsonl", "notes.txt"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_text("")
    with pytest.raises(RequestError, match="mine: expected an empty folder, or one that"):
        prepare(str(tmp_path / "mine"))
    with pytest.raises(FileNotFoundError):
        prepare(str(tmp_path / "no" / "OUT"))


# ---------------------------------------------------------------------------
# Parquet


ROWS = {
    "prompt": ["The dog", "The cat", None, "One day,", "The dog", "The end", "The bird"],
    "id": ["a", None, "c", "d", "a", "f", "g"],
    "max_tokens": [None, 4, None, 5, None, 3, 2],
    "url": ["u1", "u2", "u3", "u4", "u5", "u6", "u7"],
}


def write_table(path: Path, rows: dict[str, list[Any]], group: int = 4) -> str:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(rows), path, row_group_size=group)
    return str(path)


def read_rows(job: Job) -> list[dict[str, Any]]:
    pq = pytest.importorskip("pyarrow.parquet")
    return [row for path in made_in(job.out) for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize(("n", "n_parts"), [(1, 7), (3, 3), (100, 2)])
def test_rows_are_answered_like_lines(job: Job, tmp_path: Path, n: int, n_parts: int) -> None:
    file = write_table(tmp_path / "a.parquet", ROWS)
    reports = answer(job, file, n=n)
    assert [report.error for report in reports] == [None] * n_parts
    found = read_rows(job)
    assert [{name: row[name] for name in ROWS} for row in found] == [
        {name: values[i] for name, values in ROWS.items()} for i in range(7)
    ]
    lines = [{name: row[name] for name in ("prompt", "id", "max_tokens") if row[name] is not None} for row in found]
    expected = [json.loads(line) for line in whole(job, write(tmp_path / "IN" / "a.jsonl", lines), tmp_path / "whole")]
    names = ("text", "finish_reason", "error")
    assert [[row[name] for name in names] for i, row in enumerate(found) if i != 2] == [
        [line[name] for name in names] for i, line in enumerate(expected) if i != 2
    ]
    assert found[2]["error"] == "prompt: expected a prompt or messages, found neither"
    assert found[4]["error"] == 'id: expected one that no earlier line has, found "a"'
    assert {row["fingerprint"] for row in found} == {job.plan.fingerprint}
    assert sum(report.n_wrong for report in reports) == 2
    again = answer(job, file, n=n)
    assert [(report.n_new, report.n_wrong) for report in again] == [(0, report.n_wrong) for report in reports]


def test_a_parquet_part_that_was_begun_and_another_input(job: Job, tmp_path: Path) -> None:
    file = write_table(tmp_path / "a.parquet", ROWS, group=100)
    writes = Output.write
    with pytest.MonkeyPatch.context() as patch:

        def fail(self: Output, line: bytes) -> None:
            if b'"d"' in line:
                raise OSError(28, "No space left on device", self.path)
            writes(self, line)

        patch.setattr(Output, "write", fail)
        assert answer(job, file, n=100)[0].error is not None
    [report] = answer(job, file, n=100)
    assert (report.error, report.n_new) == (None, 4)
    changed = write_table(tmp_path / "a.parquet", {**ROWS, "url": ["v"] * 7}, group=100)
    [report] = answer(job, changed, n=100)
    assert report.is_fatal


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"question": ["a"]}, "batch: expected a column 'prompt' or 'messages', found question"),
        ({"prompt": ["a"], "text": ["b"]}, "text: expected no column of this name"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, rows: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        plan_file(write_table(tmp_path / "a.parquet", rows), NAMES, 3)


def test_a_file_that_is_not_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_text("no table at all")
    with pytest.raises(RequestError, match=r"a\.parquet: expected a Parquet file, found: "):
        plan_file(str(tmp_path / "a.parquet"), NAMES, 3)


def test_a_part_knows_little() -> None:
    """What passes through a cluster for each part."""
    assert len(pickle.dumps(Part("/data/in/questions.jsonl", "questions-00017.jsonl", 256))) < 400
