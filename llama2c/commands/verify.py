"""The verb `verify`: draws the answers of a batch again, and says which differ. batch/ does the work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from ..batch.lines import Entry, read_entries
from ..batch.verify import Recorded, verify
from ..batch.work import Answered, Worker
from ..errors import ModelError
from ..fingerprint import fingerprint
from ..llama import load
from .batch import FLAGS, Input, Tally, add_model_flags, open_engine, show_progress
from .bench import number
from .parser import Parser
from .terminal import UsageError, named_as, say

EPILOG = """\
OUT is what batch has written. It names the model, the input and the options.
The model must have the same fingerprint. MODEL and --input say where the files
are now, if they were moved. The exit code is 0 if all answers are the same,
byte by byte, and else 1.

examples:
    python -m llama2c verify answers.jsonl
    python -m llama2c verify answers.jsonl --sample 100
"""


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m llama2c verify",
        description="Draw the answers of a batch again, and say which differ.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="default: the one that OUT names")
    add("out", metavar="OUT", help="what batch has written")
    add("--input", metavar="FILE", help="what OUT was made from (default: the one that it names)")
    add("--sample", type=number(1), metavar="N", help="so many answers, drawn at random (default: all)")
    add_model_flags(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Compare, and tell. ValueError at the end: something differs."""
    options = make_parser().parse_intermixed_args(argv)
    with contextlib.ExitStack() as stack:
        record = stack.enter_context(Recorded(options.out))
        plan = record.plan
        path = options.input or plan.input
        if path is None:
            raise UsageError(f"--input: {options.out} was made from a pipe: name a file with the same content")
        source = stack.enter_context(Input(path))
        with named_as(FLAGS):
            model, tokenizer = options.model or plan.model, options.tokenizer or plan.tokenizer
            llama = load(model, tokenizer, options.threads, kv=plan.kv)
        found = fingerprint(llama.transformer, llama.tokenizer)
        if found != plan.fingerprint:
            expected = f"expected the fingerprint {plan.fingerprint}, which {options.out} was made with"
            raise ModelError(f"{model}: {expected}, found {found}")
        engine = stack.enter_context(open_engine(llama, options))
        show = stack.enter_context(show_progress(source.size))
        tally = Tally()

        def progress(answered: Answered) -> None:
            tally.count(answered)
            show(tally)

        entries = begun(read_entries(source.reader(), plan.shape, source.name), tally)
        counts = verify(record, Worker(llama, engine, plan), entries, say, options.sample, progress)
    if counts.missing:
        say(f"{counts.missing} requests of {source.name} have no answer in {options.out} yet")
    if unmet := record.answers.unmet():
        raise ValueError(f"{options.out}: {unmet} answers are to requests that are not in {source.name}")
    if counts.different:
        raise ValueError(f"{options.out}: {counts.different} of {counts.same + counts.different} answers differ")
    say(f"{options.out}: {counts.same} answers are the same")


def begun(entries: Iterable[Entry], tally: Tally) -> Iterator[Entry]:
    """The same entries, with the place of each in the tally."""
    for entry in entries:
        tally.begin(entry)
        yield entry
