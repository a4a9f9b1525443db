"""The fingerprint of a model: what, besides a request, decides the bytes of its answer."""

from __future__ import annotations

from . import _kernels


def arithmetic() -> str:
    """"fma": with a fused multiply-add, whose bits are the same on every such instruction set; or "generic": without."""
    return "generic" if _kernels.isa == "generic" else "fma"
