"""The catalogue of bad inputs: each is made by code, named for what is wrong with it, and says how it must be refused.

`CASES` has them all, by name. One more is a Case in the list of its module; worker.py runs it, test_bad_inputs.py asserts.
"""

from __future__ import annotations

from . import bodies, calls, files, headers, hf_folders, tokenizers, version3
from .case import Case

MODULES = (headers, bodies, version3, hf_folders, files, tokenizers, calls)
CASES: dict[str, Case] = {}
for module in MODULES:
    for each in module.CASES:
        assert each.name not in CASES, each.name
        CASES[each.name] = each
