"""Plan: what decides the bytes of a batch besides IN. It is in the first line of OUT, and a resumed run must have the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

from ..errors import RequestError
from ..fingerprint import fingerprint, llguidance_version
from ..llama import Llama
from ..transformer import KVType
from .lines import Shape

VERSION = 1  # of OUT
MARK = b'{"llama2c_batch":'  # how OUT begins
RESTART = "--restart begins anew"


@dataclass(frozen=True, slots=True)
class Plan:
    """What all lines have in common.

    fingerprint  of the model, without that of constraints
    llguidance   the version of the package, which decides the bytes of requests with a constraint; None: it is not installed
    date         of the run, which chat templates see
    seed         of the run, from which those of the lines are made
    options      of lines that have none of their own
    shape        how IN is written
    shard        (k, n): of n parts, the k-th from 1
    model, tokenizer, kv, input  where everything was; another run may find the same in other places
    """

    fingerprint: str
    llguidance: str | None
    date: date
    seed: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    shape: Shape = field(default_factory=Shape)
    shard: tuple[int, int] = (1, 1)
    model: str = ""
    tokenizer: str | None = None
    kv: KVType = "float32"
    input: str | None = None  # None: a pipe

    def header(self) -> bytes:
        """The first line of OUT."""
        fields = asdict(self)
        shape = fields.pop("shape")
        k, n = self.shard
        return dump({"llama2c_batch": VERSION, **fields, "date": self.date.isoformat(), "shard": f"{k}/{n}", **shape})

    def check_same(self, made: Plan, name: str) -> None:
        """RequestError: OUT, which `name` names, was made with a plan that gives other bytes."""
        if self.fingerprint != made.fingerprint:
            expected = f"expected a model with the fingerprint {made.fingerprint}, as {name} was made with"
            raise RequestError(f"{expected}, found {self.fingerprint} ({RESTART})")
        pairs = {
            "--seed": (self.seed, made.seed),
            "--shard": ("{}/{}".format(*self.shard), "{}/{}".format(*made.shard)),
            **{f"--{key}": (getattr(self.shape, key), getattr(made.shape, key)) for key in ("format", "column", "chat")},
            **{
                f"--{key.replace('_', '-')}": (self.options.get(key), made.options.get(key))
                for key in sorted({*self.options, *made.options})
            },
        }
        for flag, (own, other) in pairs.items():
            if own != other:
                raise RequestError(f"{flag}: {name} was made with {_shown(other)}, found {_shown(own)} ({RESTART})")

    def check_llguidance(self) -> None:
        """OSError: a request with a constraint would get other bytes than earlier ones of this plan."""
        found = llguidance_version()
        if found != self.llguidance:
            raise OSError(f"llguidance: expected version {self.llguidance}, found {found} ({RESTART})")


def _shown(value: Any) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def make_plan(llama: Llama, **fields: Any) -> Plan:
    """The plan of a new run with a model: today, with what is installed."""
    return Plan(
        fingerprint=fingerprint(llama.transformer, llama.tokenizer),
        llguidance=llguidance_version(),
        date=date.today(),
        kv=llama.transformer.kv,
        **{"model": llama.transformer.checkpoint.path, **fields},
    )


def read_plan(line: bytes, name: str) -> Plan:
    """The plan in the first line of OUT. RequestError: it has none, or one of another version."""
    try:
        fields = json.loads(line)
        version = fields.pop("llama2c_batch")
        if version != VERSION:
            raise RequestError(f"{name}: expected version {VERSION} of the output of a batch, found {version!r}")
        shape = Shape(fields.pop("format"), fields.pop("column"), fields.pop("chat"))
        k, n = map(int, fields.pop("shard").split("/"))
        return Plan(date=date.fromisoformat(fields.pop("date")), shape=shape, shard=(k, n), **fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, RequestError):
            raise
        raise not_ours(name) from None


def not_ours(name: str) -> RequestError:
    return RequestError(f"{name}: expected the output of a batch, found another file")


def dump(value: Any) -> bytes:
    """A line of JSON in UTF-8. Half of a surrogate pair, which has no UTF-8, is written as JSON writes it: \\ud800."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace") + b"\n"
