"""The catalogue of bad inputs. Each is made by code, is named after what is wrong with it, and has the expected error.

`CASES` has all of them by name. To add one, add a Case to its module.
worker.py runs the cases, test_bad_inputs.py checks them.
"""

from __future__ import annotations

from . import bodies, calls, files, gguf, headers, hf_folders, tokenizers, version3
from .case import Case

MODULES = (headers, bodies, version3, gguf, hf_folders, files, tokenizers, calls)
CASES: dict[str, Case] = {}
for module in MODULES:
    for each in module.CASES:
        assert each.name not in CASES, each.name
        CASES[each.name] = each
