"""`batch --ray`: a folder of requests on a cluster. Flags, progress, a summary; batch/ has the rest."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from ..batch.columns import Names
from ..batch.lines import Shape
from ..batch.opened import Model
from ..batch.output import Output
from ..batch.parts import MADE, N_REQUESTS, Job, Report, empty, files_of, made_in, part_name, prepare
from ..batch.plan import make_plan
from ..batch.predictor import absolute
from ..batch.ray_job import answer_parts, connected, plan_files
from ..errors import RequestError, check_int
from ..llama import load
from ..requests import check_options
from .terminal import UsageError, named_as, progress, say

OTHERS = ("ordered", "strict", "timings", "format")  # flags that are not for clusters
MOST_TOLD = 5  # parts that could not be made


def run_on_ray(options: Namespace, defaults: Any, flags: Mapping[str, str]) -> None:
    """Answers what OUT lacks. OSError at the end: parts could not be made; RequestError: requests are wrong."""
    check_flags(options)
    files = files_of(os.path.abspath(options.input))
    out = os.path.abspath(options.out)
    tokenizer = options.tokenizer and os.path.abspath(options.tokenizer)
    cache_bytes = None if options.cache_mb is None else options.cache_mb << 20
    model = Model(absolute(options.model), tokenizer, options.kv, options.threads, options.max_sequences, cache_bytes)
    names = Names(prompt=options.column or "prompt", id="id", chat=options.chat)
    with named_as(flags):
        check_int("seed", options.seed, 0, 2**64 - 1)
        llama = load(model.path, model.tokenizer, model.n_threads, kv=model.kv)
        check_options(llama.transformer.config, llama.tokenizer, defaults)
    plan = make_plan(
        llama,
        seed=options.seed,
        options=defaults,
        shape=Shape(column=names.prompt, chat=names.chat),
        model=model.path or "",
        tokenizer=tokenizer,
        input=os.path.abspath(options.input),
    )
    del llama
    with Output(prepare(out), options.restart) as record:
        plan = record.begin(plan)
        if options.restart:
            empty(out)
        with connected(options.ray) as ray:
            parts = plan_files(ray, files, names, options.part or N_REQUESTS)
            job = Job(out, plan, model, names)
            start = perf_counter()
            answered = answer_parts(ray, job, parts, options.actor_cpus or 1.0, options.actors)
            reports = list(progress(answered, len(parts), "part"))
    warn_of_others(out, files)
    tell(reports, perf_counter() - start)


def check_flags(options: Namespace) -> None:
    """UsageError: a flag that a cluster has no use for."""
    for name in OTHERS:
        if getattr(options, name):
            raise UsageError(f"--{name}: is not for --ray")
    if options.shard != (1, 1):
        raise UsageError("--shard: is not for --ray, which gives every machine its share")
    for name, path in (("IN", options.input), ("OUT", options.out)):
        if path == "-":
            raise UsageError(f"{name}: expected a folder for --ray, found -")
    if options.actor_cpus is not None and not options.actor_cpus > 0:
        raise UsageError(f"--actor-cpus: expected a number above 0, found {options.actor_cpus:g}")


def warn_of_others(out: str, files: list[str]) -> None:
    """Says that OUT has answers to files that IN has no more."""
    stems = {part_name(file, 0).rpartition("-")[0] for file in files}
    others = [path for path in made_in(out) if MADE.fullmatch(os.path.basename(path))[1] not in stems]  # type: ignore[index]
    if others:
        say(f"warning: {out} has {len(others)} files of answers to requests that the input does not have, such as {others[0]}")


def tell(reports: list[Report], seconds: float) -> None:
    """The summary. OSError, RequestError: something is not as it should be."""
    failed = [report for report in reports if report.error is not None]
    n_new = sum(report.n_new for report in reports)
    n_wrong = sum(report.n_wrong for report in reports)
    n_made = sum(report.generation_tokens for report in reports)
    n_before = sum(report.n for report in reports if report.error is None) - n_new
    before = f", {n_before} were done before" if n_before else ""
    speed = n_made / max(seconds, 1e-9)
    say(f"{n_new} requests answered, {n_wrong} wrong{before}; {n_made} tokens in {seconds:.1f} s, {speed:.1f} tok/s")
    for report in failed[:MOST_TOLD]:
        say(f"not done: {report.error}")
    if failed:
        raise OSError(f"{len(failed)} of {len(reports)} parts are not done; the same command goes on")
    if n_wrong:
        raise RequestError(f"{n_wrong} requests are wrong; `error` in their answers says why")
