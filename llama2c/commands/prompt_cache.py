"""--prompt-cache: a file with what was computed for earlier prompts. A prompt that begins like one of them starts sooner."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..errors import not_found
from ..files import exists
from ..generation import Sequence
from ..llama import Llama
from ..transformer import KVCache
from .terminal import describe_error, say

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..engine.prefixes import Prefixes

LIMIT = 1 << 30  # bytes of the file, and of the memory for what was used of it
ENOUGH = 0.9  # of a prompt: where that much was known, the file stays as it is


class PromptCache:
    """What earlier runs have computed for their prompts, in the file `path`; None: nothing, and no file is written.

    As a context manager, it writes down what is new of the last prompt at the end, also after an error or Ctrl-C. A file that
    cannot be written is a warning.
    """

    def __init__(self, llama: Llama, path: str | None, verbose: bool = False) -> None:
        self._llama, self._path, self._verbose = llama, path, verbose
        self._prefixes: Prefixes | None = None
        self._last: tuple[Sequence, KVCache] | None = None
        self._damaged = False  # whether the file was found to be
        if path is not None:
            from ..engine.prefixes import Prefixes  # most runs need neither this nor what it imports

            self._prefixes = Prefixes(llama.transformer, LIMIT)
            if exists(path):  # the first time that a fingerprint is needed, all weights are read
                self._prefixes.load(path, llama.fingerprint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._prefixes is None or self._path is None or self._last is None:
            return
        sequence, cache = self._last
        ids = sequence.ids[: min(sequence.n_prompt, sequence.n_fed, cache.length)]
        try:
            if self._damaged or self._prefixes.find([*ids, 0]) < ENOUGH * len(ids):
                self._prefixes.add(ids, cache)
                self._prefixes.save(self._path, self._llama.fingerprint)
        except (OSError, ValueError, MemoryError) as error:
            say(f"warning: the prompt was not kept: {describe_error(error)}")

    def begin(self, sequence: Sequence, cache: KVCache) -> None:
        """Take what is known of the prompt of a sequence that has not begun into its cache, if that is empty."""
        self._last = sequence, cache
        if self._prefixes is not None and not cache.length:
            expected = self._prefixes.find(sequence.ids)
            sequence.n_fed = self._prefixes.fill(cache, sequence.ids)
            self._damaged = sequence.n_fed < expected
            if self._verbose:
                say(f"prompt cache: {sequence.n_fed} of {sequence.n_prompt} tokens were computed before")


def check_path(path: str) -> None:
    """OSError or ModelError, one line: there cannot be a prompt cache of that name."""
    from ..engine.prefixes import check_replaceable

    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise not_found(path, f"expected a file in a folder that exists, found no folder {folder}")
    check_replaceable(path)
