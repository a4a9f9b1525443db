"""llama2c: run llama2.c checkpoints from Python, on a CPU, at the speed of the machine.

import llama2c

llama = llama2c.load("stories15M.bin")
for piece in llama.stream("Once upon a time"):
    print(piece.text, end="", flush=True)
"""

from __future__ import annotations

__version__ = "0.1.0"

import importlib as _importlib
import importlib.machinery as _machinery
import sys as _sys
import typing as _typing
import warnings as _warnings
from pathlib import Path as _Path

# In a source checkout this folder comes before the installed package (`python -m` puts the working directory first), but has no
# compiled modules unless they were built in place. It then steps aside: every module is taken from the installed package.
_stale: str | None = None  # says that the sources here are not those of the installed package
if not any(_Path(__file__).with_name("_kernels" + suffix).exists() for suffix in _machinery.EXTENSION_SUFFIXES):
    from . import checkout as _checkout

    _here = _Path(__file__).resolve().parent
    __path__ = _checkout.find_installed(_here)
    _stale = _checkout.stale_message(_here, _Path(__path__[0]))

if _typing.TYPE_CHECKING:
    from .batch.predictor import Predictor
    from .config import Config, RopeScaling
    from .conversion import export
    from .downloads import download
    from .engine.engine import Engine
    from .engine.request import Request
    from .errors import ModelError, RequestError
    from .formats.checkpoint import Checkpoint
    from .llama import Llama, load
    from .requests import Completion, Piece
    from .sampler import Sampler
    from .scoring import Score
    from .tensors import BFloat16Tensor, BlockTensor, Layers, QuantizedTensor
    from .text.chat import chat_ids
    from .text.tokenizer import Tokenizer
    from .transformer import KVCache, Transformer

# Where each name comes from. They are imported when first used, because __main__ has to set a variable before NumPy is loaded.
_HOMES = {
    "BFloat16Tensor": "tensors",
    "BlockTensor": "tensors",
    "Checkpoint": "formats.checkpoint",
    "Completion": "requests",
    "Config": "config",
    "Engine": "engine.engine",
    "KVCache": "transformer",
    "Layers": "tensors",
    "Llama": "llama",
    "ModelError": "errors",
    "Piece": "requests",
    "Predictor": "batch.predictor",
    "QuantizedTensor": "tensors",
    "Request": "engine.request",
    "RequestError": "errors",
    "RopeScaling": "config",
    "Sampler": "sampler",
    "Score": "scoring",
    "Tokenizer": "text.tokenizer",
    "Transformer": "transformer",
    "chat_ids": "text.chat",
    "download": "downloads",
    "export": "conversion",
    "load": "llama",
}


if not _typing.TYPE_CHECKING:  # a type checker would believe that there is every name

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'llama2c' has no attribute {name!r}")
        _warn_if_stale()
        value: object = getattr(_importlib.import_module(f"llama2c.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def _warn_if_stale() -> None:
    """Warns once if an edit of these sources has no effect, because the installed package is another one."""
    global _stale
    message, _stale = _stale, None
    if message is not None:
        _warnings.warn(message, RuntimeWarning, stacklevel=3)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def build_info() -> dict[str, object]:
    """What this build is and does here.

    version; commit (None if unknown); isa, the instruction-set level; openmp; compiler; n_threads, the default.
    """
    from . import _kernels, threads

    try:
        commit = _importlib.import_module("llama2c._commit").COMMIT  # written by setup.py
    except ImportError:
        commit = None
    return {
        "version": __version__,
        "commit": commit,
        "isa": _kernels.isa,
        "openmp": _kernels.openmp,
        "compiler": _kernels.compiler,
        "n_threads": threads.decide_n_threads(None, n_weights=_sys.maxsize).n_threads,
    }


__all__ = [
    "BFloat16Tensor",
    "BlockTensor",
    "Checkpoint",
    "Completion",
    "Config",
    "Engine",
    "KVCache",
    "Layers",
    "Llama",
    "ModelError",
    "Piece",
    "Predictor",
    "QuantizedTensor",
    "Request",
    "RequestError",
    "RopeScaling",
    "Sampler",
    "Score",
    "Tokenizer",
    "Transformer",
    "build_info",
    "chat_ids",
    "download",
    "export",
    "load",
]
