"""Runs the case that each line of stdin names, and writes to stdout what it raised. workers.py starts this; it may crash.

{"case": NAME} is a case of the catalogue; {"fuzz": TARGET, "data": BASE64} an input for a function of fuzz/targets.py.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import sys
import tempfile
from pathlib import Path

MEMORY = 2**30  # bytes of address space: whoever believes a header's sizes does not get far


def answer(request: dict[str, str], folder: Path) -> object:
    if "case" in request:
        from bad_inputs import CASES

        return CASES[request["case"]].run(folder)
    import targets

    return getattr(targets, request["fuzz"])(base64.b64decode(request["data"]), folder)


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")  # ours alone: what else is printed goes to stderr
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if "--no-limit" not in sys.argv:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                value = answer(json.loads(line), Path(folder))
                found = {"raised": None, "message": repr(value)[:500]}
            except BaseException as error:  # whatever it is, it is the answer
                found = {"raised": [kind.__name__ for kind in type(error).__mro__], "message": str(error)}
            os.chdir("/")
        print(json.dumps(found), file=out, flush=True)


if __name__ == "__main__":
    main()
