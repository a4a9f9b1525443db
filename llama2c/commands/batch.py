"""The verb `batch`: a file of prompts or requests in, a file of answers out. Flags, streams, progress; batch/ has the rest."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from types import FrameType
from typing import Any, BinaryIO

from ..batch.ids import Ids, Meeting
from ..batch.lines import FORMATS, Entry, Shape, format_of, read_entries
from ..batch.output import Output
from ..batch.plan import RESTART, Plan, dump, make_plan
from ..batch.run import Runner, met
from ..batch.work import Answered, Worker
from ..engine.engine import Engine
from ..errors import RequestError, check_int, file_error
from ..llama import Llama, load
from ..locate import resolve
from ..requests import check_options
from .bench import number
from .flags import CHOICES, Arguments
from .parser import Parser
from .run import read_constraint
from .terminal import Lines, UsageError, find_tqdm, named_as, say

SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop")  # defaults of lines
FLAGS = {name: f"--{name.replace('_', '-')}" for name in (*SAMPLING, "schema", "regex", "grammar", "seed", "max_sequences")}
FLAGS |= {"cache_bytes": "--cache-mb", "n_threads": "--threads"}
OF_RAY = ("actor_cpus", "actors", "part")
MOST_TOLD = 10  # wrong lines that stderr gets

EPILOG = """\
IN has a request in each line: {"prompt": "Once", "max_tokens": 9, "id": "a"},
{"messages": [...]}, or a line of OpenAI's batch files. With CSV or plain text,
a prompt. OUT gets a line of JSON for each. The same command again goes on
where OUT ends. The exit code is 1 if a line is wrong. See docs/batch.md.

examples:
    python -m llama2c batch prompts.txt -o answers.jsonl -n 64 -t 0
    python -m llama2c batch smollm2-135m rows.csv --column text --chat -o out
"""


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m llama2c batch",
        usage="python -m llama2c batch [MODEL] IN -o OUT [flags]",
        description="Answer a file of requests; may be interrupted, and goes on.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="file, folder or name (default: llama2c's own)")
    add("input", metavar="IN", help="a file; - reads stdin")
    add("-o", "--out", required=True, metavar="OUT", help="a file; - is stdout")
    add("--format", choices=FORMATS, metavar="F", help="jsonl, csv or text (default: as IN ends)")
    add("--column", metavar="NAME", help="of CSV: where the prompts are (default prompt)")
    add("--chat", action="store_true", help="of CSV and text: prompts are messages of a user")
    add("--ordered", action="store_true", help="write OUT in the order of IN")
    add("--strict", action="store_true", help="stop at the first line that is wrong")
    add("--restart", action="store_true", help="begin OUT anew")
    add("--shard", type=shard, default=(1, 1), metavar="K/N", help="every N-th line, from the K-th on: 3/8")
    add("--timings", metavar="FILE", help="add how long each line took to this file")
    add("-n", "--max-tokens", type=number(0), metavar="N", help="of a line that has none of its own")
    add("-t", "--temperature", type=float, metavar="T", help="the same; so are all flags down to -s")
    add("-p", "--top-p", type=float, metavar="P")
    add("--top-k", type=number(0), metavar="K")
    add("--min-p", type=float, metavar="P")
    add("--repetition-penalty", type=float, metavar="R")
    add("--stop", action="append", metavar="TEXT", help="may be given several times")
    add("--schema", metavar="FILE", help="write JSON that is valid for this JSON schema")
    add("--regex", metavar="R")
    add("--grammar", metavar="FILE")
    add("-s", "--seed", type=number(0), default=1, metavar="S", help="with the id it makes a line's seed (default 1)")
    add_model_flags(parser)
    add("--kv", choices=CHOICES["TYPE"], default="float32", metavar="TYPE", help="cache in float32 or float16")
    add("--ray", nargs="?", const="auto", metavar="ADDRESS", help="on a Ray cluster; IN and OUT are folders")
    add("--actor-cpus", type=float, metavar="N", help="of --ray: cores of an actor (default 1)")
    add("--actors", type=number(1), metavar="N", help="of --ray: at most (default: as many as fit)")
    add("--part", type=number(1), metavar="N", help="of --ray: requests in a file of OUT (default 256)")
    return parser


def add_model_flags(parser: Parser) -> None:
    """What `verify` has, too. It changes no line."""
    add = parser.add_argument
    add("-z", "--tokenizer", metavar="FILE", help="default: the one in MODEL or beside it")
    add("--threads", type=number(1), metavar="N", help="default: OMP_NUM_THREADS, else the fastest")
    add("--max-sequences", type=number(1), default=32, metavar="N", help="that are worked on at once (default 32)")
    add("--cache-mb", type=number(1), metavar="N", help="memory for them (default: half of what is free)")


def shard(text: str) -> tuple[int, int]:
    """ "3/8" -> (3, 8)."""
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise ArgumentTypeError(f"expected K/N such as 3/8, K from 1 to N, found {text!r}")
    return int(k), int(n)


def run(argv: Sequence[str]) -> None:
    """Answers what OUT lacks. What can be checked before the model is loaded comes first."""
    options = make_parser().parse_intermixed_args(argv)
    if options.ray is not None:
        from .batch_ray import run_on_ray

        run_on_ray(options, defaults_of(options), FLAGS)
        return
    for name in OF_RAY:
        if getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')}: is for --ray")
    shape = shape_of(options)
    if options.out == "-" and options.restart:
        raise UsageError("--restart: is for a file, and OUT is stdout")
    defaults = defaults_of(options)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(Input(options.input))
        source.check_other(options.out, "OUT")
        timings = None if options.timings is None else stack.enter_context(open_timings(options.timings, source, options.out))
        with named_as(FLAGS):
            check_int("seed", options.seed, 0, 2**64 - 1)
            llama = load(options.model, options.tokenizer, options.threads, kv=options.kv)
            check_options(llama.transformer.config, llama.tokenizer, defaults)
        plan = make_plan(
            llama,
            seed=options.seed,
            options=defaults,
            shape=shape,
            shard=options.shard,
            model=os.path.abspath(resolve(options.model)),
            tokenizer=options.tokenizer and os.path.abspath(options.tokenizer),
            input=source.path and os.path.abspath(source.path),
        )
        out: Output | Stdout = Stdout() if options.out == "-" else Output(options.out, options.restart)
        stack.callback(out.close)
        plan = out.begin(plan)
        if out.repaired:
            say(f"{options.out}: the last line had no end and is made again")
        engine = stack.enter_context(open_engine(llama, options))
        answer(source, out, Worker(llama, engine, plan), options, timings)


def defaults_of(options: Namespace) -> Any:
    """The options of lines that have none of their own."""
    fields = {name: getattr(options, name) for name in SAMPLING if getattr(options, name) is not None}
    return {**fields, **read_constraint(Arguments(schema=options.schema, regex=options.regex, grammar=options.grammar))}


def shape_of(options: Namespace) -> Shape:
    format = options.format or ("csv" if options.column is not None else format_of(options.input))
    if options.column is not None and format != "csv":
        raise UsageError(f"--column: is for CSV, and IN is {format}")
    if options.chat and format == "jsonl":
        raise UsageError("--chat: is for CSV and text; a line of JSON has messages")
    return Shape(format, "prompt" if options.column is None else options.column, options.chat)


def open_engine(llama: Llama, options: Namespace) -> Engine:
    cache_bytes = None if options.cache_mb is None else options.cache_mb << 20
    with named_as(FLAGS):
        return Engine(llama, options.max_sequences, cache_bytes)


def open_timings(path: str, source: Input, out: str) -> BinaryIO:
    """The file, to be added to. UsageError: it is IN or OUT."""
    source.check_other(path, "--timings")
    if os.path.realpath(path) == os.path.realpath(out):
        raise UsageError(f"--timings: expected another file than OUT, found {path}")
    try:
        return open(path, "ab", buffering=0)
    except OSError as error:
        raise file_error(error, path, "a place to write to") from None


def answer(source: Input, out: Output | Stdout, worker: Worker, options: Namespace, timings: BinaryIO | None) -> None:
    """What is left to do. RequestError at the end: lines are wrong."""
    tally = Tally(n_wrong=out.n_wrong)
    start = perf_counter()
    with show_progress(source.size) as show:

        def deliver(answered: Answered) -> None:
            out.write(answered.line)
            tally.count(answered)
            if answered.error is not None and tally.n_wrong <= MOST_TOLD:
                cause = answered.error.__cause__
                say(f"{source.name}: line {answered.entry.number}: {answered.error}{f' ({cause})' if cause else ''}")
            if timings is not None:
                add_timing(timings, answered)
            show(tally)

        try:
            with Runner(worker, deliver, options.ordered, options.strict) as runner, stopped_by_ctrl_c(runner):
                feed(runner, source, out.done, worker.plan, tally, options.out)
            out.sync()
        except KeyboardInterrupt:
            goes_on = "" if options.out == "-" else "; the same command goes on"
            say(f"interrupted: {tally.n_answered} lines were added{goes_on}")
            raise
    tally.tell(perf_counter() - start)
    if unmet := out.done.unmet():
        say(f"warning: {options.out} has {unmet} answers to requests that are not in {source.name}")
    if tally.n_wrong:
        raise RequestError(f"{tally.n_wrong} lines are wrong; `error` in their answers says why")


def feed(runner: Runner, source: Input, done: Ids, plan: Plan, tally: Tally, out: str) -> None:
    """Give a runner the entries of its shard that are not done, and wait for them."""
    k, n = plan.shard

    def known(keys: bytes, requests: bytes) -> list[bool]:
        runner.poll()
        found = done.meet_done(keys, requests)
        tally.n_done += sum(found)
        return found

    entries = read_entries(source.reader(runner), plan.shape, source.name, known)
    for entry, meeting in met(entries, done):
        runner.poll()
        if entry.position % n != k - 1:
            continue
        if meeting is Meeting.CHANGED:
            line = f"{source.name}: line {entry.number}"
            raise RequestError(f"{line}: {out} has the answer to another request with the id {entry.id!r} ({RESTART})")
        if meeting is Meeting.DONE:
            tally.n_done += 1
            continue
        tally.begin(entry)
        runner.add(entry)
    runner.finish()


@contextlib.contextmanager
def stopped_by_ctrl_c(runner: Runner) -> Iterator[None]:
    """The first Ctrl-C ends the work between two lines; another one at once."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # in the background of a shell
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        runner.stop()

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------------------
# streams


class Input:
    """IN: a file, or stdin.

    path  None: stdin
    size  bytes; None: it is not a regular file
    """

    def __init__(self, path: str) -> None:
        """OSError: it cannot be read."""
        self.path = None if path == "-" else path
        self.name = path if self.path else "stdin"
        if self.path is None and sys.stdin is None:
            raise OSError("stdin: expected an open file, found it closed")
        try:
            self._file = open(sys.stdin.fileno() if self.path is None else path, "rb", 0, closefd=self.path is not None)  # noqa: SIM115  closed by __exit__
        except OSError as error:
            raise file_error(error, self.name) from None
        status = os.fstat(self._file.fileno())
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None

    def __enter__(self) -> Input:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def check_other(self, path: str, what: str) -> None:
        """UsageError: a path names this file."""
        with contextlib.suppress(OSError, ValueError):
            if self.size is not None and os.path.samestat(os.fstat(self._file.fileno()), os.stat(path)):
                raise UsageError(f"{what}: expected another file than IN, found {path}")

    def reader(self, runner: Runner | None = None) -> Callable[[int], bytes]:
        """Reads at most so many bytes. While a pipe has none, a runner delivers what is finished."""

        def read(n: int) -> bytes:
            while runner is not None and self.size is None and not runner.wait(self._file.fileno()):
                pass
            try:
                return self._file.read(n) or b""
            except OSError as error:
                raise file_error(error, self.name) from None

        return read


class Stdout:
    """OUT where it is stdout: nothing is known of what was there before."""

    repaired = n_wrong = 0

    def __init__(self) -> None:
        self.done = Ids()

    def close(self) -> None:
        pass

    def begin(self, plan: Plan) -> Plan:
        self.write(plan.header())
        return plan

    def write(self, line: bytes) -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    def sync(self) -> None:
        pass


def add_timing(file: BinaryIO, answered: Answered) -> None:
    """Add a line to the file of --timings."""
    line = dump(
        {
            "id": answered.entry.id,
            "seconds": round(answered.seconds, 6),
            "prompt_tokens": answered.prompt_tokens,
            "cached_tokens": answered.cached_tokens,
            "generation_tokens": answered.generation_tokens,
        }
    )
    try:
        file.write(line)
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from None


# ---------------------------------------------------------------------------
# what is told


@dataclass(slots=True)
class Tally:
    """How far a run is."""

    n_wrong: int = 0  # lines with an error, those of earlier runs too
    n_done: int = 0  # lines that were done before
    n_answered: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    first: int | None = None  # bytes of IN up to the end of the first line that is new
    place: int = 0  # and of the last that was begun
    start: float = 0.0  # when the first was begun

    def begin(self, entry: Entry) -> None:
        """An entry is begun."""
        if self.first is None:
            self.first, self.start = entry.end, perf_counter()
        self.place = entry.end

    def count(self, answered: Answered) -> None:
        self.n_answered += 1
        self.prompt_tokens += answered.prompt_tokens
        self.generation_tokens += answered.generation_tokens
        self.n_wrong += answered.error is not None

    def describe(self, size: int | None) -> str:
        """For a bar: "512 lines, 1234 tok/s, 0:03:20 left". size: bytes of IN."""
        seconds = max(perf_counter() - self.start, 1e-9)
        text = f"{self.n_done + self.n_answered} lines, {self.generation_tokens / seconds:.0f} tok/s"
        read = self.place - (self.first or 0)
        if not size or read <= 0:
            return text
        left = round((size - self.place) / read * seconds)
        return f"{text}, {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"

    def tell(self, seconds: float) -> None:
        """The summary."""
        before = f", {self.n_done} were done before" if self.n_done else ""
        counts = f"{self.generation_tokens} tokens for {self.prompt_tokens} of prompts"
        speed = self.generation_tokens / max(seconds, 1e-9)
        say(f"{self.n_answered} lines answered, {self.n_wrong} wrong{before}; {counts} in {seconds:.1f} s, {speed:.1f} tok/s")


@contextlib.contextmanager
def show_progress(size: int | None) -> Iterator[Callable[[Tally], None]]:
    """A callback that shows how far a run is: a bar, or lines now and then. size: bytes of IN; None: not known."""
    tqdm = find_tqdm()
    if tqdm is None:
        lines = Lines()
        yield lambda tally: lines(tally.describe(size))
        return
    form = "{desc}" if size is None else "{percentage:3.0f}%|{bar:20}| {desc}"
    with tqdm(total=size, bar_format=form, leave=False, dynamic_ncols=True) as bar:

        def show(tally: Tally) -> None:
            bar.set_description_str(tally.describe(size), refresh=False)
            bar.update(tally.place - bar.n)

        yield show
        bar.refresh()  # tqdm draws it ten times a second at most, and so perhaps not at the end
