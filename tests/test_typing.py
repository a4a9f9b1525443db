"""The types that users see: a program that uses the whole API is clean in mypy and pyright, a wrong one is not; the stubs fit.

`make lint` runs these tests. They need the packages of the extra `lint`.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llama2c

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")

# What the examples of the page do not say: the types of what they use, and names that no example has.
TYPED = """
from collections.abc import Iterator
from pathlib import Path

loaded: llama2c.Llama = llama2c.load(Path("a.bin"), "tokenizer.bin", n_threads=2, mmap=False)
pieces: Iterator[llama2c.Piece] = loaded.stream(b"a", stop=["b"], logit_bias={1: -1.0}, logprobs=2)
replies: Iterator[llama2c.Piece] = loaded.chat(messages, stream=True, template_options={"enable_thinking": False})
reply: llama2c.Completion = loaded.chat(messages, max_tokens=None)
a_piece: llama2c.Piece = next(pieces)
a_text: str = a_piece.text
reason: str | None = a_piece.finish_reason
numbers: tuple[int, ...] = reply.tokens
a_score: llama2c.Score = loaded.score("a", stride=3)
perplexity: float = a_score.perplexity
info: dict[str, object] = llama2c.build_info()
version: str = llama2c.__version__
config: llama2c.Config = llama2c.Checkpoint.open("a.bin").config
dim: int = config.dim
scaling: llama2c.RopeScaling | None = config.rope_scaling
a_transformer: llama2c.Transformer = llama2c.Transformer(llama2c.Checkpoint.open("a.bin"), n_threads=2)
a_cache: llama2c.KVCache = a_transformer.new_cache(8)
a_cache.truncate(a_cache.length - 1)
two_rows: int = loaded.transformer.forward([1, 2], a_cache, logits=2).shape[0]
token: int = llama2c.Sampler(temperature=0.8, seed=1).sample(loaded.transformer.forward(np.array([1]), a_cache))
a_tokenizer: llama2c.Tokenizer = llama2c.Tokenizer.open("tokenizer.bin", vocab_size=32)
ends: frozenset[int] = a_tokenizer.end_ids
some_bytes: bytes = a_tokenizer.piece(a_tokenizer.encode("a", bos=False, eos=True)[0])
path: Path = llama2c.download("stories15M", progress=lambda done, total, name: print(done, total, name))
notes = llama2c.export("a.bin", "b.bin", dtype="q8_0", progress=lambda done, total: None).notes
for name, a_weight in llama2c.Checkpoint.open("a.bin").weights.items():
    if isinstance(a_weight, (llama2c.QuantizedTensor, llama2c.BlockTensor, llama2c.BFloat16Tensor, llama2c.Layers)):
        sizes: tuple[int, ...] = a_weight.shape
    print(name, np.asarray(a_weight).sum())
many: Iterator[llama2c.Completion] = loaded.generate_many(["a", {"prompt": "b", "seed": 1}], max_tokens=3, on_error="return")
an_engine: llama2c.Engine = llama2c.Engine(loaded, max_sequences=4, cache_bytes=1 << 30, prefix_bytes=0, drafts=False)
a_request: llama2c.Request = an_engine.submit("a", max_tokens=3)
samples: list[llama2c.Request] = an_engine.submit("a", n=3, seed=1)
next_piece: llama2c.Piece = next(a_request)
its_end: str | None = a_request.finish_reason
whole: llama2c.Completion = a_request.result(timeout=5.0)
its_error: Exception | None = whole.error
chat: list[int] = llama2c.chat_ids(loaded.tokenizer, [{"role": "user", "content": "a"}])
rate: float = an_engine.stats().rows_per_step
an_engine.close()


async def read() -> None:
    async for piece in an_engine.stream("a", seed=1):
        print(piece.text)
    done: llama2c.Completion = await an_engine.submit("a")
    print(done)


try:
    llama2c.load("b.bin")
except llama2c.RequestError as error:
    param: str | None = error.param
except llama2c.ModelError:
    pass
"""

# One mistake a line. If a type were Any, its mistake would not be found.
WRONG = """
import llama2c
from llama2c import *
llama2c.nonsense
llama2c.load(5)
number: int = llama2c.load()
load().generate("a", nonsense=1)
load().stream("a", max_tokens="4")
for piece in load().stream("a"): piece.nonsense
load().chat([], stream=True).text
text: str = load().transformer.forward([1], load().transformer.new_cache())
load().tokenizer.decode("text")
Checkpoint.open("a").config.dims
Sampler(seed="1")
Tokenizer.open("a").bos_id + 1
load().transformer.checkpoint.weights["wq"].sum()
llama2c.build_info()["isa"].upper()
llama2c.download("a", progress=lambda done: None)
"""


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    examples = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(examples) >= 9
    file = tmp_path_factory.mktemp("clean") / "clean.py"
    file.write_text("\n".join([*examples, TYPED]))
    return file


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("wrong") / "wrong.py"
    file.write_text(WRONG)
    return file


MISTAKES = set(range(4, WRONG.count("\n") + 1))  # their lines


def need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}: pip install '.[lint]'")


def run(file: Path, *command: str) -> tuple[int, set[int], str]:
    """Runs a checker on a file. Returns the exit code, the lines with an error, and what it printed."""
    done = subprocess.run([sys.executable, "-m", *command, file.name], cwd=file.parent, capture_output=True, encoding="utf-8")
    lines = re.findall(rf"{file.name}:(\d+):.*?\berror\b", done.stdout)
    return done.returncode, set(map(int, lines)), done.stdout + done.stderr


def run_mypy(file: Path) -> tuple[int, set[int], str]:
    need("mypy")
    options = ("--strict", "--config-file=", f"--cache-dir={ROOT / '.mypy_cache'}", "--python-executable", sys.executable)
    return run(file, "mypy", *options)


def run_pyright(file: Path) -> tuple[int, set[int], str]:
    """pyright is a program for Node.js, which its package fetches."""
    need("pyright")
    found = run(file, "pyright", "--pythonpath", sys.executable)
    if "0 errors" not in found[2] and not found[1]:
        pytest.skip(f"pyright does not start here: {found[2].strip()[-200:]}")
    return found


@pytest.mark.parametrize("checker", [run_mypy, run_pyright])
def test_a_program_that_uses_the_whole_api_is_clean(checker: object, clean: Path) -> None:
    assert callable(checker)
    code, lines, printed = checker(clean)
    assert (code, lines) == (0, set()), printed


@pytest.mark.parametrize("checker", [run_mypy, run_pyright])
def test_mistakes_are_found(checker: object, wrong: Path) -> None:
    assert callable(checker)
    code, lines, printed = checker(wrong)
    assert code == 1 and lines == MISTAKES, printed


def test_the_program_has_every_public_name(clean: Path) -> None:
    used = set(re.findall(r"llama2c\.(\w+)", clean.read_text()))
    assert set(llama2c.__all__) - used == set()
    namespace: dict[str, object] = {}
    exec("from llama2c import *", namespace)
    assert set(llama2c.__all__) == set(namespace) - {"__builtins__"}
    assert set(llama2c.__all__) <= set(dir(llama2c))
    assert Path(llama2c.__path__[0], "py.typed").exists()


def test_stubs_have_what_the_compiled_modules_have(tmp_path: Path) -> None:
    """Except for what Cython adds."""
    need("mypy")
    (tmp_path / "allowed").write_text(r".*\.__(reduce_cython|setstate_cython|test)__" + "\n")
    options = ["--allowlist", "allowed", "--ignore-unused-allowlist", "--ignore-disjoint-bases"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "--concise", *options, "llama2c._kernels", "llama2c.text._bpe"],
        cwd=tmp_path, capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
