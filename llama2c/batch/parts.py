"""Parts: a folder of requests as pieces of work, and a folder with a file of answers for each. For a cluster, but without Ray.

OUT/a-00000.jsonl has the answers to the first requests of IN/a.jsonl, in their order. A .parquet file has those of a .parquet
file. Such a file is there when it is whole. Until then OUT/_batch/ has it as `batch` writes OUT, so that whoever does the part
again goes on where it ends. A file depends on its requests and the plan: not on who made it, or how often it was begun.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from ..errors import ModelError, RequestError, RoomError, file_error, not_found
from .columns import Names, check_names, entries_of, id_of, lists_of, plain, results_of, with_results
from .ids import Ids, Meeting, key_of
from .lines import START, Entry, Place, Shape, continue_entries, read_entries
from .opened import Model, Opened, opened
from .output import GOOD_END, Output, parse_answer
from .plan import RESTART, Plan
from .run import Runner, met
from .work import Worker

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

WORK = "_batch"  # the folder in OUT for what is not whole; programs that read folders skip such names
PLAN = "plan.jsonl"
JSON = (".jsonl", ".json", ".ndjson")
PARQUET = ".parquet"
MADE = re.compile(r"(.+)-\d{5,}(\.jsonl|\.parquet)")  # the names of files in OUT
N_REQUESTS = 256  # of a part


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a file of IN.

    file   its path
    name   of the file of OUT with the answers
    n      requests
    place  of JSON Lines: what comes before them
    group  of Parquet: their row group
    step   of Parquet: how many rows of the group are read at once
    skip   of Parquet: how many such steps come before
    first  of Parquet: how many rows of the file come before
    twice  of requests whose id an earlier one of the file has: the number, the id that they get instead, and the error
    """

    file: str
    name: str
    n: int
    place: Place = START
    group: int = 0
    step: int = 0
    skip: int = 0
    first: int = 0
    twice: tuple[tuple[int, str | int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """What all parts have in common.

    out    the path of OUT
    names  of the columns of Parquet
    """

    out: str
    plan: Plan
    model: Model
    names: Names


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a part.

    n_new     answers that were made now
    n_wrong   of all its answers: those with an error
    error     None: it is whole. Else what this machine is to blame for
    is_fatal  whether other machines can be expected to fail in the same way
    """

    name: str
    n: int
    n_new: int = 0
    n_wrong: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    seconds: float = 0.0
    error: str | None = None
    is_fatal: bool = False


# ---------------------------------------------------------------------------
# IN as parts


def files_of(path: str) -> list[str]:
    """The files of IN, which is a folder, or one of them. Names that begin with _ or . are skipped. OSError, RequestError."""
    try:
        names = sorted(os.listdir(path)) if os.path.isdir(path) else None
    except OSError as error:
        raise file_error(error, path, "a folder that can be read") from None
    files = [path] if names is None else [os.path.join(path, name) for name in names if name[0] not in "_."]
    if not files:
        raise not_found(path, "expected a folder with files of requests, found none in it")
    stems: dict[str, str] = {}
    for file in files:
        if not file.endswith((*JSON, PARQUET)):
            raise RequestError(f"{file}: expected a file of JSON Lines (.jsonl, .json, .ndjson) or of Parquet (.parquet)")
        other = stems.setdefault(part_name(file, 0), file)
        if other != file:
            raise RequestError(f"{file}: expected another name, as the answers would be in the files of {other}")
    return files


def part_name(file: str, i: int) -> str:
    """The name of part i: "IN/a.json", 3 -> "a-00003.jsonl"."""
    stem, ending = os.path.splitext(os.path.basename(file))
    return f"{stem}-{i:05}{PARQUET if ending == PARQUET else '.jsonl'}"


def plan_file(file: str, names: Names, n: int) -> list[Part]:
    """The parts of a file of IN, of at most n requests each. It is read once, so that ids that come twice are found.

    OSError: it cannot be read. RequestError: it is not what its name says, or has no column for prompts.
    """
    return _plan_parquet(file, names, n) if file.endswith(PARQUET) else _plan_json(file, n)


def _plan_json(file: str, n: int) -> list[Part]:
    parts: list[Part] = []
    ids = Ids()
    place, count, twice = START, 0, list[tuple[int, str | int, str]]()

    def end() -> None:
        parts.append(Part(file, part_name(file, len(parts)), count, place, twice=tuple(twice)))

    with _open(file) as stream:
        last = START
        for entry in read_entries(stream.read, Shape(), file):
            if count == n:
                end()
                place, count, twice = last, 0, []
            twice += _if_twice(entry, ids)
            last = Place(entry.number, entry.end, entry.position, entry.openai)
            count += 1
    if count:
        end()
    return parts


def _plan_parquet(file: str, names: Names, n: int) -> list[Part]:
    parts: list[Part] = []
    ids = Ids()
    first = 0
    with _open_parquet(file) as table:
        columns = table.schema_arrow.names
        check_names(columns, replace(names, id=None))
        for group in range(table.num_row_groups):
            read = [names.id] if names.id in columns else []
            for skip, batch in enumerate(table.iter_batches(n, [group], read)):
                column = batch.column(0).to_pylist() if read else [None] * batch.num_rows
                entries = [_entry_of_id(id, names, first + i + 1) for i, id in enumerate(column)]
                twice = [found for entry in entries for found in _if_twice(entry, ids)]
                name = part_name(file, len(parts))
                parts.append(Part(file, name, batch.num_rows, START, group, n, skip, first, tuple(twice)))
                first += batch.num_rows
    return parts


def _entry_of_id(id: Any, names: Names, number: int) -> Entry:
    """An entry for its id alone; one that cannot be used is as none."""
    with contextlib.suppress(RequestError):
        return Entry(number, 0, 0, id_of({names.id or "": plain(id)}, names, number), 0, {}, False, None)
    return Entry(number, 0, 0, id_of({}, replace(names, id=None), number), 0, {}, False, None)


def _if_twice(entry: Entry, ids: Ids) -> Iterator[tuple[int, str | int, str]]:
    for found, _ in met([entry], ids):
        if found is not entry:
            yield found.number, found.id, str(found.error)


# ---------------------------------------------------------------------------
# OUT


def prepare(out: str) -> str:
    """Make OUT, and find the path of the file with its plan, which an Output is then to begin.

    OSError: it cannot be made. RequestError: it has other files than ours.
    """
    work = os.path.join(out, WORK)
    plan = os.path.join(work, PLAN)
    try:
        if not os.path.isdir(out):
            os.mkdir(out)
        names = os.listdir(out)
        if WORK not in names and names:
            raise RequestError(f"{out}: expected an empty folder, or one that `batch --ray` has made, found {names[0]!r} in it")
        os.makedirs(work, exist_ok=True)
    except OSError as error:
        raise file_error(error, out, "a folder that can be written") from None
    return plan


def empty(out: str) -> None:
    """Remove what is in OUT, but for the plan."""
    work = os.path.join(out, WORK)
    for path in [*made_in(out), *(os.path.join(work, name) for name in os.listdir(work) if name != PLAN)]:
        os.unlink(path)


def made_in(out: str) -> list[str]:
    """The paths of the files with answers."""
    return [os.path.join(out, name) for name in sorted(os.listdir(out)) if MADE.fullmatch(name)]


# ---------------------------------------------------------------------------
# a part


class PartWorker:
    """Makes the files of OUT, part by part. The model is opened when the first answer has to be made."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._opened: Opened | None = None

    def answer(self, part: Part) -> Report:
        """Make what OUT lacks of a part."""
        try:
            return self._answer(part)
        except (RoomError, OSError, MemoryError) as error:
            return _failure(part, error, is_fatal=False)
        except (ModelError, RequestError) as error:
            return _failure(part, error, is_fatal=True)

    def _answer(self, part: Part) -> Report:
        start = perf_counter()
        job = self._job
        made, work = os.path.join(job.out, part.name), os.path.join(job.out, WORK, part.name + ".work")
        kind: Kind = ParquetPart(part, job.names) if part.name.endswith(PARQUET) else JsonPart(part)
        entries = [_refused(entry, part) for entry in kind.entries()]
        if os.path.exists(made) and (n_wrong := kind.count_wrong(made, entries)) is not None:
            report = Report(part.name, part.n, n_wrong=n_wrong)
        else:
            report = self._make(part, kind, entries, work, made)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(work)
        return replace(report, seconds=perf_counter() - start)

    def _make(self, part: Part, kind: Kind, entries: list[Entry], work: str, made: str) -> Report:
        counts = [0, 0, 0]
        opened = self._open()
        with Output(work) as out:
            plan = out.begin(self._job.plan)
            worker = Worker(opened.llama, opened.engine, plan)

            def deliver(answered: Any) -> None:
                out.write(answered.line)
                for i, count in enumerate((1, answered.prompt_tokens, answered.generation_tokens)):
                    counts[i] += count

            with Runner(worker, deliver, ordered=True) as runner:
                for entry, meeting in met(entries, out.done):
                    if meeting is Meeting.CHANGED:
                        raise _changed(part, work)
                    if meeting is Meeting.NEW:
                        runner.add(entry)
                runner.finish()
            out.sync()
            lines = _answers_of(work, entries, part)
            fingerprints = [opened.fingerprint_of({**plan.options, **entry.content}) for entry in entries]
            _put(made, work + ".new", lambda path: kind.write(path, lines, fingerprints))
        n_wrong = sum(not line.endswith(GOOD_END + b"\n") for line in lines)
        return Report(part.name, part.n, counts[0], n_wrong, counts[1], counts[2])

    def _open(self) -> Opened:
        if self._opened is None:
            try:
                found = opened(self._job.model)
            except (OSError, MemoryError) as error:  # it would fail with every part
                raise ModelError(str(error)) from error
            found.check_fingerprint(self._job.plan.fingerprint)
            self._opened = found
        return self._opened


def _failure(part: Part, error: Exception, is_fatal: bool) -> Report:
    text = str(error) or type(error).__name__
    return Report(part.name, part.n, error=f"{socket.gethostname()}: {part.name}: {text}", is_fatal=is_fatal)


def _refused(entry: Entry, part: Part) -> Entry:
    """The entry, or if an earlier one has its id the error that it is."""
    for number, id, message in part.twice:
        if number == entry.number:
            return entry._replace(id=id, error=RequestError(message, "id"))
    return entry


def _changed(part: Part, path: str) -> RequestError:
    found = f"expected the answers to {part.n} requests of {part.file}, found others"
    return RequestError(f"{path}: {found}: the input or --part has changed ({RESTART})")


def _answers_of(work: str, entries: list[Entry], part: Part) -> list[bytes]:
    """The lines of a part that is done, in the order of its entries. RequestError: there are other lines."""
    with _open(work) as stream:
        lines = stream.read().splitlines(keepends=True)[1:]
    found = [parse_answer(line.rstrip(b"\n")) for line in lines]
    if found != [(entry.id, entry.request) for entry in entries]:
        raise _changed(part, work)
    return lines


def _put(path: str, unfinished: str, write: Callable[[str], None]) -> None:
    """Have a file written, wait until the disk has it, and only then give it its name."""
    try:
        write(unfinished)
        fd = os.open(unfinished, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(unfinished, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise file_error(error, path, "a place to write to") from None


class JsonPart:
    """A part of JSON Lines."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def entries(self) -> Iterator[Entry]:
        part = self._part
        with _open(part.file) as stream:
            stream.seek(part.place.end)
            entries = continue_entries(stream.read, part.place, part.file)
            for _, entry in zip(range(part.n), entries, strict=False):
                yield entry

    def count_wrong(self, made: str, entries: list[Entry]) -> int | None:
        """How many answers of a file that is there are errors. None: some of them are missing. RequestError: it has others."""
        with _open(made) as stream:
            lines = stream.read().splitlines()
        found = [parse_answer(line) for line in lines]
        expected = [(entry.id, entry.request) for entry in entries]
        if found == expected:
            return sum(not line.endswith(GOOD_END) for line in lines)
        known = {(key_of(id), request) for id, request in expected}
        if any(one is None or (key_of(one[0]), one[1]) not in known for one in found):
            raise _changed(self._part, made)
        return None

    def write(self, path: str, lines: list[bytes], fingerprints: list[str]) -> None:
        with open(path, "wb") as file:
            file.writelines(lines)


class ParquetPart:
    """A part of a Parquet file: its rows, with the columns of the results."""

    def __init__(self, part: Part, names: Names) -> None:
        self._part, self._names = part, names
        self._table: pa.Table | None = None

    def entries(self) -> Iterator[Entry]:
        table = self._rows()
        names = self._names if self._names.id in table.column_names else replace(self._names, id=None)
        return entries_of(lists_of(table, names), names, self._part.first)

    def count_wrong(self, made: str, entries: list[Entry]) -> int | None:
        """As that of JsonPart."""
        with _open_parquet(made) as file:
            found = file.read()
        rows = self._rows()
        if found.column_names[: rows.num_columns] != rows.column_names or not found.select(rows.column_names).equals(rows):
            raise _changed(self._part, made)
        n_good: int = found.column("error").null_count
        return len(entries) - n_good

    def write(self, path: str, lines: list[bytes], fingerprints: list[str]) -> None:
        import pyarrow.parquet as pq

        answers = [json.loads(line) for line in lines]
        pq.write_table(with_results(self._rows(), results_of(answers, fingerprints)), path)

    def _rows(self) -> pa.Table:
        if self._table is None:
            import pyarrow as pa

            part = self._part
            with _open_parquet(part.file) as file:
                batches = file.iter_batches(part.step, [part.group])
                for _ in range(part.skip):
                    next(batches)
                self._table = pa.Table.from_batches([next(batches)])
        return self._table


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise file_error(error, path) from None


@contextlib.contextmanager
def _open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise OSError(f"{path}: expected pyarrow to read Parquet (pip install 'llama2c[ray]'), found: {error}") from None
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except pa.ArrowInvalid as error:
        raise RequestError(f"{path}: expected a Parquet file, found: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise file_error(error, path) from None


Kind: TypeAlias = "JsonPart | ParquetPart"
