"""The verb `doctor`: one page with what a bug report needs, and a check that llama2c works here.

Each section is a function that yields facts. If it fails, the error is one of its lines, and the other sections are printed all
the same. What may be broken (NumPy, the compiled modules, optional packages) is imported inside these functions alone.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import locale
import os
import platform
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import __file__ as own_file
from .. import __path__ as own_path
from .. import __version__, build_info
from ..limits import available_memory, total_memory
from .machine import cpu_name, read_bandwidth
from .parser import Parser
from .terminal import describe_error, put

if TYPE_CHECKING:
    from ..llama import Llama

NOTES = """\
The exit code is 0, or 1 if something does not work; the last line says what.
The page has no token, key or password, but it has paths: look at it before
you post it.

examples:
    python -m llama2c doctor
    python -m llama2c doctor smollm2.gguf
    python -m llama2c doctor -o json > report.json
"""


class Fact(NamedTuple):
    """One line of the page."""

    name: str
    value: Any  # for -o json
    text: str | None = None  # for people; None: str(value)
    is_problem: bool = False  # it says that something does not work


class Report:
    """The facts of each section, and the names of those that are problems."""

    def __init__(self) -> None:
        self.sections: dict[str, list[Fact]] = {}
        self.problems: list[str] = []

    def add(self, title: str, probe: Callable[[], Iterable[Fact]]) -> None:
        """A section. What `probe` warns of or raises is one of its facts."""
        facts = self.sections[title] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                facts.extend(probe_safely(probe))
            finally:
                facts += [Fact("warning", str(warning.message)) for warning in caught]
        self.problems += [f"{title}: {fact.name}" for fact in facts if fact.is_problem]

    def as_text(self) -> str:
        lines = []
        for title, facts in self.sections.items():
            lines.append(f"{title}:")
            width = max((len(fact.name) for fact in facts), default=0) + 1
            for fact in facts:
                text = str(fact.value) if fact.text is None else fact.text
                lines.append(f"  {fact.name + ':':{width}} {printable(text)}")
        result = f"does not work: {', '.join(self.problems)}" if self.problems else "everything that was tried works"
        return "\n".join([*lines, result]) + "\n"

    def as_json(self) -> str:
        """{section: {name: value}}. Of several facts with one name (warnings, models), the values are a list."""
        content: dict[str, Any] = {}
        for title, facts in self.sections.items():
            values: dict[str, list[Any]] = {}
            for fact in facts:
                values.setdefault(fact.name, []).append(fact.value)
            content[title] = {name: found[0] if len(found) == 1 else found for name, found in values.items()}
        return json.dumps({**content, "problems": self.problems}, indent=1) + "\n"


def probe_safely(probe: Callable[[], Iterable[Fact]]) -> Iterator[Fact]:
    """The facts of a section up to an error, which is the last of them."""
    try:
        yield from probe()
    except Exception as error:
        text = describe_error(error)
        yield Fact("error", text, None if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {text}", True)


def run(argv: Sequence[str]) -> None:
    """Prints the page. ValueError: something does not work; the message says what."""
    options = make_parser().parse_intermixed_args(argv)
    report = Report()
    report.add("llama2c", about_llama2c)
    report.add("python", about_python)
    report.add("processor", about_processor)
    report.add("threads", about_threads)
    report.add("memory", about_memory)
    report.add("self-check", check_bundled_model)
    if options.model is not None:
        report.add("model", lambda: about_model(options.model, options.tokenizer))
    report.add("packages", about_packages)
    report.add("downloads", about_downloads)
    report.add("environment", about_environment)
    report.add("terminal", about_terminal)
    put(report.as_json() if options.output == "json" else report.as_text())
    if report.problems:
        raise ValueError(f"does not work: {', '.join(report.problems)}")


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m llama2c doctor",
        description="Print what a bug report needs, and check that llama2c works here.",
        epilog=NOTES,
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="also a model: its format, shape, tokenizer and chat template")
    add("-z", "--tokenizer", metavar="FILE", help="of MODEL; default: the one in a GGUF file or beside it")
    add("-o", "--output", choices=("text", "json"), default="text", help="format of the page (default text)")
    return parser


# ---------------------------------------------------------------------------
# the program and the machine


def about_llama2c() -> Iterator[Fact]:
    yield Fact("version", __version__)
    package, sources = Path(own_path[0]), Path(own_file).parent
    yield Fact("package", str(package))
    if not sources.samefile(package):
        from ..checkout import stale_message

        yield Fact("sources", str(sources), f"{sources} (not compiled: the package runs)")
        message = stale_message(sources, package)
        if message is not None:
            yield Fact("warning", message)
    info = build_info()
    yield Fact("commit", info["commit"], str(info["commit"] or "unknown"))
    yield Fact("compiler", info["compiler"])
    yield Fact("openmp", info["openmp"], "yes" if info["openmp"] else "no: llama2c runs on one thread")


def about_python() -> Iterator[Fact]:
    yield Fact("python", f"{platform.python_implementation()} {platform.python_version()}")
    yield Fact("executable", sys.executable)
    yield Fact("system", platform.platform())
    libc = " ".join(platform.libc_ver()).strip()
    yield Fact("libc", libc or None, libc or "unknown")
    import numpy as np

    yield Fact("numpy", np.__version__)


def about_processor() -> Iterator[Fact]:
    yield Fact("name", cpu_name())
    yield Fact("cores", os.cpu_count())
    load = os.getloadavg()[0]
    yield Fact("load", load, f"{load:.1f} processes want to run (mean of the last minute)")
    from .. import _kernels

    yield Fact("level", _kernels.isa)
    yield Fact("levels", list(_kernels.levels), f"{', '.join(_kernels.levels)} can run here")
    forced = os.environ.get("LLAMA2C_ISA") or None
    yield Fact("LLAMA2C_ISA", forced, forced or "not set: the first of them is used")


def about_threads() -> Iterator[Fact]:
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
        yield Fact("affinity", cores, f"{cores} of {os.cpu_count()} cores")
    from .. import _kernels
    from ..threads import cgroup_quota, decide_n_threads

    bound = _kernels.bound_cores()
    yield Fact("binding", bound or None, f"OpenMP binds threads to {bound} cores" if bound else "none")
    quota = cgroup_quota()
    yield Fact("quota", quota, "none" if quota is None else f"{quota:g} cores (control group)")
    threads = decide_n_threads(None, sys.maxsize)
    yield Fact("threads", threads.n_threads, f"{threads} for a large model: {threads.reason}")


def about_memory() -> Iterator[Fact]:
    total, available = total_memory(), available_memory()
    yield Fact("total", total, gigabytes(total))
    yield Fact("available", available, gigabytes(available))
    import numpy as np

    from ..threads import decide_n_threads

    n_threads = decide_n_threads(None, sys.maxsize).n_threads
    size = min(256 << 20, available // 8)  # larger than the caches of the processor
    speed = read_bandwidth(np.ones(max(1, size // 4), np.float32), n_threads)
    threads = f"{n_threads} thread{'s' * (n_threads > 1)}"
    yield Fact("read speed", speed, f"{speed / 1e9:.1f} GB/s with {threads}, of an array of {size / 1e6:.0f} MB")


# ---------------------------------------------------------------------------
# models

# What the bundled model writes after these words at temperature 0, and its two files.
PROMPT, N_TOKENS = "Once upon a time", 64
STORY_SHA256 = "15fb17f5c354d8ff62bc7f195c33a3664642971ae83e0e07e0188ffb028a9665"
FILES_SHA256 = {
    "tales1M.bin": "796a0da73b22028332fbe3e857e7a020c249019b7da89e448653cbf65d89165a",
    "tokenizer.bin": "38d272bd4fba87149d0c8bb03acb7700aafd74a8525ff8563b13742ebba99fc7",
}


def check_bundled_model() -> Iterator[Fact]:
    """Whether its files and its story are the known ones, and how fast it is."""
    from ..locate import BUNDLED

    for name, expected in FILES_SHA256.items():
        found = hashlib.sha256(BUNDLED.with_name(name).read_bytes()).hexdigest()
        good = found == expected
        yield Fact(name, good, "as it should be" if good else f"is another file: SHA-256 {found}", not good)
    from ..llama import load

    llama = load()
    done = llama.generate(PROMPT, max_tokens=N_TOKENS, temperature=0)
    good = hashlib.sha256(done.text.encode()).hexdigest() == STORY_SHA256
    told = PROMPT + done.text[:40] + "..."
    yield Fact("story", good, f"{told} (as it should be)" if good else f"expected another one, found: {told}", not good)
    n_threads = llama.transformer.n_threads
    threads = f"{llama.transformer.threads} thread{'s' * (n_threads > 1)}"
    yield Fact("speed", done.generation_tps, f"{done.generation_tps:.0f} tok/s with {threads}")


def about_model(model: str, tokenizer: str | None) -> Iterator[Fact]:
    from ..config import DIMENSIONS
    from ..formats.checkpoint import Checkpoint
    from ..llama import load
    from ..locate import resolve
    from ..tensors import count

    path = resolve(model)
    yield Fact("path", os.fspath(path))
    checkpoint = Checkpoint.open(path)
    yield Fact("format", checkpoint.format)
    yield Fact("weights", checkpoint.kind)
    own = [w for name, w in checkpoint.weights.items() if name != "wcls" or not checkpoint.shared_classifier]
    n_weights, size = sum(map(count, own)), sum(weight.nbytes for weight in own)
    yield Fact("parameters", n_weights, f"{n_weights / 1e6:.1f} M")
    available = available_memory()
    fits = "" if size < available else f", more than the {gigabytes(available)} of memory that are available"
    yield Fact("size", size, gigabytes(size) + fits)
    shape = {name: getattr(checkpoint.config, name) for name in (*DIMENSIONS, "head_size")}
    yield Fact("shape", shape, ", ".join(f"{name} {number}" for name, number in shape.items()))
    yield from about_tokenizer(load(path, tokenizer))


def about_tokenizer(llama: Llama) -> Iterator[Fact]:
    """The tokenizer of a model, its special tokens, and its chat template."""
    from ..text.chat import chat_ids

    tokenizer = llama.tokenizer
    inside = tokenizer.path == llama.transformer.checkpoint.path
    yield Fact("tokenizer", tokenizer.path, "in the file" if inside else None)
    yield Fact("tokens", tokenizer.vocab_size)
    yield Fact("begin token", tokenizer.bos_id, "none" if tokenizer.bos_id is None else None)
    yield Fact("end tokens", sorted(tokenizer.end_ids), ", ".join(map(str, sorted(tokenizer.end_ids))) or "none")
    template = tokenizer.chat_template
    if template is None:
        yield Fact("chat template", None, "none was found: a chat uses the form of Llama 2")
    else:
        n_ids = len(chat_ids(tokenizer, [{"role": "user", "content": "Hello"}]))
        where = "in the file" if template.path == llama.transformer.checkpoint.path else template.path
        yield Fact("chat template", template.path, f"{where}; \"Hello\" of a user becomes {n_ids} tokens")


# ---------------------------------------------------------------------------
# packages and files


class Package(NamedTuple):
    """An optional package. `module` is imported to see whether it works; None: that takes seconds."""

    name: str
    least: str  # version
    extra: str | None
    module: str | None
    use: str


PACKAGES = (
    Package("huggingface-hub", "0.23", "hub", "huggingface_hub", "downloads"),
    Package("safetensors", "0.4", "hf", "safetensors", "Hugging Face folders"),
    Package("tokenizers", "0.20", "hf", "tokenizers", "tokenizer.json, and the tokenizers of most GGUF files"),
    Package("jinja2", "3.1.6", "hf", "jinja2", "chat templates"),
    Package("llguidance", "1.8", "json", "llguidance", "JSON by a schema, and other constraints"),
    Package("starlette", "0.40", "server", "starlette", "serve"),
    Package("uvicorn", "0.30", "server", "uvicorn", "serve"),
    Package("prometheus-client", "0.20", "server", "prometheus_client", "serve"),
    Package("prompt_toolkit", "3.0.30", "chat", "prompt_toolkit", "line editing in a chat"),
    Package("tqdm", "4.60", None, "tqdm", "progress bars"),
    Package("torch", "2.2", None, None, "export from ckpt.pt and from Meta's folders"),
)


def about_packages() -> Iterator[Fact]:
    """Every optional package: the version found, or what it would be for and how to get it. None is needed for a start."""
    for package in PACKAGES:
        requirement = shlex.quote(f"{package.name}>={package.least}")
        extra = f" (extra {package.extra})" if package.extra else ""
        get = f"{package.use}{extra}: {shlex.quote(sys.executable)} -m pip install {requirement}"
        try:
            found = importlib.metadata.version(package.name)
        except importlib.metadata.PackageNotFoundError:
            yield Fact(package.name, None, f"not installed; for {get}")
            continue
        if numbers(found) < numbers(package.least):
            yield Fact(package.name, found, f"{found} is too old; for {get}", True)
            continue
        error = import_error(package.module) if package.module else None
        broken = f"{found} cannot be imported ({error}); for {get} --force-reinstall"
        yield Fact(package.name, found, f"{found}, for {package.use}" if error is None else broken, error is not None)


def import_error(module: str) -> str | None:
    """What goes wrong when a module is imported. None: nothing."""
    try:
        importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # those that panic in Rust, or exit, are no Exception
        return f"{type(error).__name__}: {error}"
    return None


def numbers(version: str) -> tuple[int, ...]:
    """The first three numbers of a version: "3.1.6rc1" -> (3, 1, 6)."""
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def about_downloads() -> Iterator[Fact]:
    """The folder of downloaded models, and how large each is."""
    from ..locate import cache_folder

    folder = cache_folder()
    if not folder.is_dir():
        yield Fact("folder", str(folder), f"{folder} (does not exist: nothing is downloaded)")
        return
    sizes = {path: file_size(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    yield Fact("folder", str(folder))
    yield Fact("size", sum(sizes.values()), gigabytes(sum(sizes.values())))
    for path, size in sizes.items():
        name = path.relative_to(folder).as_posix()
        if path.name == "config.json":
            name = path.parent.relative_to(folder).as_posix()
            size = sum(size for other, size in sizes.items() if path.parent in other.parents)
        elif path.suffix not in (".bin", ".gguf") or path.name == "tokenizer.bin":
            continue
        partial = " (an incomplete download)" if ".download" in path.parts else ""
        yield Fact("model", {"name": name, "size": size}, f"{name}, {gigabytes(size)}{partial}")


def file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # gone, since it was listed
        return 0


# ---------------------------------------------------------------------------
# settings

VARIABLES = re.compile(
    r"(LLAMA2C|OMP|GOMP|KMP|HF|HUGGING_?FACE|OPENBLAS|MKL|XDG_CACHE|LC)_.*|PYTHON(PATH|HOME|WARNINGS|UTF8|IOENCODING|MALLOC)"
    r"|LANG|LD_PRELOAD|LD_LIBRARY_PATH|VIRTUAL_ENV|CONDA_PREFIX|(HTTPS?|NO|ALL)_PROXY",
    re.IGNORECASE,
)
SECRET = re.compile(r"TOKEN(?!IZER)|SECRET|PASSWORD|KEY|AUTH|CREDENTIAL", re.IGNORECASE)


def about_environment() -> Iterator[Fact]:
    """The variables that change what llama2c does. A secret is not shown, only that it is set."""
    for name in sorted(filter(VARIABLES.fullmatch, os.environ)):
        value = "(set; not shown)" if SECRET.search(name) else without_secrets(os.environ[name])
        yield Fact(name, value)


def without_secrets(value: str) -> str:
    """Without what may be a user, a password or a key in a URL: "https://me:key@host/a?b" -> "https://***@host/a?***"."""
    return re.sub(r"\?.*", "?***", re.sub(r"^(\w+://)?.*@", r"\1***@", value))


def about_terminal() -> Iterator[Fact]:
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            yield Fact(name, None, "closed")
            continue
        is_terminal = stream.isatty()
        yield Fact(name, {"terminal": is_terminal, "encoding": stream.encoding},
                   f"{'a terminal' if is_terminal else 'not a terminal'}, {stream.encoding}")  # fmt: skip
    yield Fact("TERM", os.environ.get("TERM"), os.environ.get("TERM", "not set"))
    columns, lines = shutil.get_terminal_size()
    yield Fact("size", [columns, lines], f"{columns} columns, {lines} lines")
    yield Fact("encodings", [locale.getpreferredencoding(False), sys.getfilesystemencoding()],
               f"{locale.getpreferredencoding(False)} (text), {sys.getfilesystemencoding()} (file names)")  # fmt: skip


# ---------------------------------------------------------------------------
# words


def gigabytes(size: int) -> str:
    """A number of bytes for people: "1.3 GB", "98.4 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def printable(text: str) -> str:
    """Text for one line, whatever is in it: a newline becomes \\n, and a byte that is not UTF-8 an escape."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
