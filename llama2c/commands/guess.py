"""What a wrong first word was probably meant to be: `chat`, a misspelled verb or model, a text without -i.

Says nothing about the name of a file or folder that exists, or of a model that download knows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from ..files import exists
from ..locate import FILE_ENDINGS, NAMES, find_hub_model

CHAT = "to chat: python -m llama2c {model} -m chat"
STORY = 'to continue a text: python -m llama2c {model} -i "..."; to ask a chat model: python -m llama2c {model} "..."'
EXPORT = "to convert or quantise a model: python -m llama2c export {model} -o OUT"
DOWNLOAD = "to fetch a model: python -m llama2c download {model}"
# Verbs of other programs of this kind.
MEANT = {
    "chat": CHAT,
    "run": STORY,
    "generate": STORY,
    "story": STORY,
    "version": "python -m llama2c --version prints the version",
    "convert": EXPORT,
    "quantize": EXPORT,
    "quantise": EXPORT,
    "pull": DOWNLOAD,
    "get": DOWNLOAD,
}


def guess(argv: Sequence[str], verbs: Iterable[str]) -> str | None:
    """One line about a first word that is neither a verb, nor a file, nor the name of a model. None: it may be right."""
    word = argv[0] if argv else ""
    if not word or word.startswith("-") or is_path(word) or find_hub_model(word) is not None:
        return None
    import shlex  # most command lines are right

    if word in MEANT:
        model = shlex.quote(argv[1]) if len(argv) > 1 and not argv[1].startswith("-") else "MODEL"
        return f"{word}: there is no such verb or file; {MEANT[word].format(model=model)}"
    if len(word.split()) > 1:
        return f"{word}: there is no such file; to continue a text: python -m llama2c -i {shlex.quote(word)}"
    import difflib

    names = {name.lower(): name for name in (*verbs, *NAMES)}
    near = difflib.get_close_matches(word.lower(), names, n=1)
    if not near:
        return None
    name = names[near[0]]
    fetch = f" python -m llama2c download {name} fetches it" if name in NAMES and not exists(NAMES[name].path) else ""
    return f"{word}: there is no such verb, file or model; did you mean {name}?{fetch}"


def is_path(word: str) -> bool:
    """Whether a word is that of a file: of one that exists, or could be in a folder that does, or has the ending of a model."""
    folder = os.path.dirname(word)
    return os.path.lexists(word) or word.lower().endswith(FILE_ENDINGS) or (folder != "" and os.path.isdir(folder))
