"""llama2c.export: a model of any kind as a file for llama2c, a GGUF file or a Hugging Face folder, with its tokenizer.

formats/export.py writes the weights; the tokenizers are converted in text/. Here the two come together.
"""

from __future__ import annotations

import os
from pathlib import Path

from .errors import RequestError
from .formats.export import FORMATS, Exported, Task
from .formats.export import prepare as prepare_weights
from .formats.writer import Progress, Source
from .locate import tokenizer_in, tokenizer_names
from .text import sentencepiece, tokenizer_from_gguf, tokenizer_to_gguf
from .text.tokenizer_gguf import MODEL, has_tokenizer


def export(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str = "float32",
    version: int | None = None,
    group_size: int | None = None,
    *,
    format: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write the model `source` as a file for llama2c (the C programs read versions 0 to 2), a GGUF file, or a folder.

    source      a checkpoint or the name of a downloaded one, a GGUF file, a Hugging Face folder of the Llama architecture,
                ckpt.pt of llama2.c's trainer, or Meta's folder
    out         may be `source`; it is replaced when the new file is complete
    dtype       "float32", "float16" or "bfloat16"; "q8_0" for files; "q4_0", "q4_1", "q5_0", "q5_1", "q4_k" (the mix Q4_K_M) or
                "q6_k" for GGUF. llama.cpp's names "f32", "f16", "bf16" and "q4_k_m" mean the same
    version     of llama2c's format: 0 or 1 for float32, 2 for q8_0, 3 for any; None: the lowest that can store the model
    group_size  only for q8_0 in llama2c's format, a divisor of dim and hidden_dim; None: 64, or 32, 16, ... if 64 is not one
    format      "llama2c", "gguf", or "hf" for a folder; None: "hf" if `out` ends in a slash, "gguf" if it ends in .gguf
    tokenizer   the file or folder of the tokenizer that is put into a GGUF file; None: the one in or beside `source`
    progress    called as progress(done, total) with the number of matrices written and their total, first with done = 0

    A folder made from a Hugging Face folder keeps its other settings (the ids of BOS, EOS and padding among them), and gets
    copies of its tokenizer, chat template and generation_config.json. One made from a GGUF file gets the tokenizer and the chat
    template that are in the file. One made from another file gets a copy of the tokenizer.bin beside the file; without one, the
    ids of BOS and EOS are not known and are null in config.json.

    The result's `notes` says what is not as it was asked for: a GGUF file without a tokenizer, or matrices of another type
    because of their shape. Warns (RuntimeWarning) if some texts get other ids from the new tokenizer.

    Raises RequestError (a ValueError) if an argument is wrong or the version cannot store the model; ModelError (a ValueError)
    if the source is broken, is not a Llama model, or has a tokenizer that the format does not have; OSError if a file cannot be
    read or written, or a package is missing. Then nothing has been written.
    """
    return prepare(source, out, dtype, version, group_size, format, tokenizer).write(progress)


def prepare(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str,
    version: int | None = None,
    group_size: int | None = None,
    format: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
) -> Task:
    """Check everything that can be checked, and convert the tokenizer. Arguments and errors are those of export."""
    task = prepare_weights(source, out, dtype, version, group_size, format)
    if task.format == "gguf":
        return with_tokenizer(task, tokenizer)
    if tokenizer is not None:
        raise RequestError(f"tokenizer: expected None for {FORMATS[task.format]}, found {tokenizer}", "tokenizer")
    if task.format == "hf" and has_tokenizer(task.source.metadata):
        files = tokenizer_from_gguf.folder_files(str(task.source.path), task.source.metadata, task.source.config.vocab_size)
        return task.with_companions(files)
    return task


def with_tokenizer(task: Task, tokenizer: str | os.PathLike[str] | None) -> Task:
    """The export of a GGUF file with a tokenizer: the given one, else that in or beside the source, if there is one."""
    source = task.source
    if tokenizer is None and has_tokenizer(source.metadata):
        return task
    found = tokenizer_in(folder_of(source)) if tokenizer is None else Path(tokenizer)
    kept = {key: value for key, value in source.metadata.items() if not key.startswith("tokenizer.")}
    if found is None:
        note = f"no tokenizer in it, because none of {tokenizer_names()} is with {source.path}"
        return task.with_metadata({**kept, MODEL: tokenizer_to_gguf.NO_TOKENIZER}, note)
    return task.with_metadata({**kept, **tokenizer_to_gguf.describe(found, source.config.vocab_size)})


def tokenizer_bin(source: Source) -> bytes:
    """The tokenizer of a model as a tokenizer.bin, from the metadata of a GGUF file or the tokenizer.model with the source.

    Warns (RuntimeWarning) if some texts get other ids. ModelError, OSError: one line that names the file.
    """
    if has_tokenizer(source.metadata):
        return tokenizer_from_gguf.tokenizer_bin(str(source.path), source.metadata, source.config.vocab_size)
    return sentencepiece.convert(folder_of(source) / "tokenizer.model", source.config.vocab_size)


def folder_of(source: Source) -> Path:
    """Where the other files of a model are."""
    return source.path if source.path.is_dir() else source.path.parent
