"""The same bits, always: logits compared with ==, whatever the threads, the other rows, the cuts of a prompt, the level.

All levels but generic must agree. generic may differ in its last bits: it is compiled for machines that need not have a fused
multiply-add in hardware, and rounds a product before adding it there. Only random checkpoints are used.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import block_reference
import checkpoints
import folders
import gguf_files
import numpy as np
import pytest

import llama2c
from llama2c import _kernels
from llama2c.blocks import BLOCK_TYPES
from llama2c.config import Config, RopeScaling
from llama2c.conversion import export
from llama2c.formats.checkpoint import Checkpoint
from llama2c.generation import Sequence, generate
from llama2c.sampler import Sampler
from llama2c.transformer import Transformer

pytestmark = pytest.mark.filterwarnings("ignore:n_threads=. is more than:RuntimeWarning")

# name -> (config, group_size). Sizes of no multiple of 16, heads below, at and above 16, groups below and above 16 a row.
# fp16 and bf16 are files of version 3; names that begin with folder are folders of Hugging Face. The matrices of a GGUF file
# are of all types in turn: in gguf_32 of those with blocks of 32 numbers.
MODELS: dict[str, tuple[Config, int | None]] = {
    "fp32": (Config(60, 148, 2, 6, 2, 203, 320), None),
    "fp32_wide_heads": (Config(152, 100, 2, 4, 1, 90, 320), None),
    "fp16": (Config(60, 148, 2, 6, 2, 203, 320), None),
    "bf16": (Config(60, 148, 2, 6, 2, 203, 320, 24, 5e5, 1e-6, RopeScaling("llama3", 8.0, 1.0, 4.0, 64)), None),
    "folder_fp32": (Config(60, 148, 2, 6, 2, 203, 320), None),
    "folder_bf16": (Config(60, 148, 2, 6, 2, 203, 320, 24, 5e5, 1e-6, RopeScaling("llama3", 8.0, 1.0, 4.0, 64)), None),
    "q8_32": (Config(96, 608, 2, 6, 3, 203, 320), 32),
    "q8_64": (Config(192, 320, 2, 4, 2, 101, 320), 64),
    "q8_straddling": (Config(64, 172, 2, 8, 4, 203, 320), 64),
    "q8_odd": (Config(60, 148, 2, 6, 2, 203, 320), 12),
    "gguf_32": (Config(96, 608, 2, 6, 3, 203, 320), 32),
    "gguf_256": (Config(256, 512, 2, 8, 4, 203, 320), 32),
}
needs_safetensors = pytest.mark.skipif(find_spec("safetensors") is None, reason="needs safetensors: pip install '.[hf]'")
NAMES = [pytest.param(name, marks=needs_safetensors) if name.startswith("folder") else name for name in MODELS]
OPENED = [name for name in MODELS if not name.startswith("folder") or find_spec("safetensors")]
HALF_SIZE = {"fp16": "float16", "bf16": "bfloat16"}
N_TOKENS = 41


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, found = tmp_path_factory.mktemp("models"), {}
    for name, (config, group_size) in MODELS.items():
        weights = checkpoints.random_weights(config, np.random.default_rng(config.dim), shared_classifier=config.dim != 152)
        if name.startswith("folder"):
            found[name] = folders.write_model(folder / name, config, weights, bfloat16=name == "folder_bf16")
        elif name.startswith("gguf"):
            found[name] = write_blocks(folder / f"{name}.gguf", config, weights, largest=int(name[5:]))
        elif name in HALF_SIZE:
            found[name] = checkpoints.write(folder / f"{name}.bin", config, 3, weights, None, HALF_SIZE[name])
        else:
            version = 0 if group_size is None else 2
            found[name] = checkpoints.write(folder / f"{name}.bin", config, version, weights, group_size)
    return found


def write_blocks(path: Path, config: Config, weights: checkpoints.Arrays, largest: int) -> Path:
    """A GGUF file with random blocks as matrices, of each type in turn whose blocks have no more than `largest` numbers."""
    file = gguf_files.good(config, weights)
    types = itertools.cycle(type for type in BLOCK_TYPES.values() if type.n_values <= largest)
    rng = np.random.default_rng(7)
    for tensor in file.tensors.values():
        if len(tensor.shape) == 2:
            type = next(types)
            tensor.code, tensor.data = type.code, block_reference.random_rows(type.name, rng, *tensor.shape).tobytes()
    path.write_bytes(file.pack())
    return path


def tokens_of(name: str, n: int = N_TOKENS, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, MODELS[name][0].vocab_size, n)]


def open_model(paths: dict[str, Path], name: str, n_threads: int = 1) -> Transformer:
    return Transformer(Checkpoint.open(paths[name]), n_threads=n_threads)


@pytest.fixture(scope="module")
def expected(paths: dict[str, Path]) -> dict[str, np.ndarray]:
    """Token by token on one thread, (n_tokens, vocab_size): what every other way must come to."""
    found = {}
    for name in OPENED:
        transformer = open_model(paths, name)
        cache = transformer.new_cache()
        found[name] = np.stack([transformer.forward([token], cache) for token in tokens_of(name)])
        assert np.isfinite(found[name]).all()
        assert len({row.tobytes() for row in found[name]}) == N_TOKENS
    return found


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@needs_safetensors
def test_a_folder_gives_the_bits_of_the_file_with_the_same_weights(expected: dict[str, np.ndarray]) -> None:
    """RoPE turns other pairs of rows there, which must make no difference."""
    assert_same(expected["folder_fp32"], expected["fp32"])
    assert_same(expected["folder_bf16"], expected["bf16"])


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_half_size_weights_give_the_bits_of_the_same_numbers_in_fp32(
    tmp_path: Path, paths: dict[str, Path], expected: dict[str, np.ndarray], name: str
) -> None:
    export(paths[name], tmp_path / "wide.bin", "float32", 3)
    transformer = Transformer(Checkpoint.open(tmp_path / "wide.bin"), n_threads=1)
    assert transformer.config == MODELS[name][0]
    assert_same(transformer.forward(tokens_of(name), transformer.new_cache(), logits=None), expected[name])


# ---------------------------------------------------------------------------------------------- threads, cuts, company


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_threads_and_cuts(paths: dict[str, Path], expected: dict[str, np.ndarray], name: str, n_threads: int) -> None:
    """A prompt in one piece, and cut into pieces of 1, 2, 7 and 16."""
    transformer, tokens = open_model(paths, name, n_threads), tokens_of(name)
    # Every barrier of a step costs much where there are more threads than free cores: fewer small steps there.
    few = N_TOKENS if n_threads == 1 else 10
    for size, n in ((1, few), (2, few), (7, N_TOKENS), (16, N_TOKENS), (N_TOKENS, N_TOKENS)):
        cache, found = transformer.new_cache(), []
        for start in range(0, n, size):
            found.append(transformer.forward(tokens[start : min(n, start + size)], cache, logits=None))
        assert_same(np.concatenate(found), expected[name][:n])
    for n in (1, 2, 3, 8, 17, N_TOKENS):
        assert_same(transformer.forward(tokens[:n], transformer.new_cache()), expected[name][n - 1])


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_threads_may_change_from_step_to_step(
    monkeypatch: pytest.MonkeyPatch, paths: dict[str, Path], expected: dict[str, np.ndarray], name: str
) -> None:
    """As it does where nobody has asked for a number and other programs come and go."""
    used = []

    def run(step: Callable[[int], None], n_rows: int, work: float) -> None:
        used.append(1 + len(used) % 3)
        step(used[-1])

    transformer, tokens = open_model(paths, name), tokens_of(name)
    monkeypatch.setattr(transformer, "_tuners", SimpleNamespace(run=run))
    cache = transformer.new_cache()
    sizes = [1, 1, 1, 1, 5, 7, 11]
    found = [transformer.forward(tokens[sum(sizes[:i]) :][:size], cache, logits=None) for i, size in enumerate(sizes)]
    assert_same(np.concatenate(found), expected[name][: sum(sizes)])
    assert used == [1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_among_other_sequences(paths: dict[str, Path], expected: dict[str, np.ndarray], name: str, n_threads: int) -> None:
    """Six sequences in a step: in decode one row each, then pieces of different lengths; ours is not the first."""
    transformer, tokens = open_model(paths, name, n_threads), tokens_of(name)
    others = [(tokens_of(name, 80, seed), transformer.new_cache()) for seed in range(1, 6)]
    for i, (ids, cache) in enumerate(others):
        transformer.forward(ids[: 3 * i + 1], cache)
    cache = transformer.new_cache()
    for n in (1, 1, 1, 9, 5, 1, 16):
        at = cache.length
        parts = [(ids[other.length : other.length + 1 + (n + i) % 4 * (n > 1)], other) for i, (ids, other) in enumerate(others)]
        parts.insert(2, (tokens[at : at + n], cache))
        assert_same(transformer.forward_batch(parts)[2], expected[name][at + n - 1])


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["fp32", "q8_32"])
def test_a_prompt_longer_than_a_step(paths: dict[str, Path], name: str, n_threads: int) -> None:
    """Steps are cut after 256 rows; attention goes over more positions than any tile holds."""
    transformer, tokens = open_model(paths, name, n_threads), tokens_of(name, 300)
    whole = transformer.forward(tokens, transformer.new_cache(), logits=None)
    cache = transformer.new_cache()
    for start, stop in itertools.pairwise([0, 100, 101, 299, 300]):
        assert_same(transformer.forward(tokens[start:stop], cache), whole[stop - 1])


def test_after_a_truncated_cache(paths: dict[str, Path], expected: dict[str, np.ndarray]) -> None:
    """The positions after the cut have no effect."""
    for name in OPENED:
        transformer, tokens = open_model(paths, name), tokens_of(name)
        cache = transformer.new_cache()
        transformer.forward(tokens[:10] + tokens_of(name, 50, seed=9), cache)
        cache.truncate(10)
        assert_same(transformer.forward(tokens[10:], cache, logits=None), expected[name][10:])


def story(transformer: Transformer, tokens: list[int], length: int = 60) -> list[int]:
    """So many tokens after a prompt, with a filter that depends on the last bits of the probabilities."""
    sampler = Sampler(temperature=1.2, top_p=0.95, seed=11)
    size = transformer.config.vocab_size
    sequence = Sequence(tokens, sampler, vocab_size=size, max_length=transformer.config.seq_len, max_tokens=length)
    steps = generate(transformer, transformer.new_cache(), sequence)
    return [step.token for step in steps]


@pytest.mark.parametrize("name", NAMES)
def test_a_sampled_story(paths: dict[str, Path], name: str) -> None:
    tokens = tokens_of(name, 9)
    expected = story(open_model(paths, name), tokens)
    assert len(set(expected)) > 20
    for n_threads, length in ((2, 30), (3, 12)):
        assert story(open_model(paths, name, n_threads), tokens, length) == expected[:length]


# ---------------------------------------------------------------------------------------------- instruction sets

# Prints one JSON line: the level, and for each model a digest of all logits, and a story; keeps the logits beside the script.
SCRIPT = """
import hashlib, json, sys
from pathlib import Path
import numpy as np
import llama2c
from llama2c import Checkpoint, Sampler, Transformer
from llama2c.generation import Sequence, generate

report = {}
for name, (path, tokens) in json.loads(sys.argv[1]).items():
    transformer = Transformer(Checkpoint.open(path), n_threads=1)
    cache = transformer.new_cache()
    logits = [transformer.forward([token], cache) for token in tokens[:12]]
    logits += [*transformer.forward(tokens[12:], cache, logits=None)]
    logits = np.stack(logits)
    np.save(Path(sys.argv[2], name + ".npy"), logits)
    sampler = Sampler(temperature=1.2, top_p=0.95, seed=11)
    size = transformer.config.vocab_size
    sequence = Sequence(tokens[:9], sampler, vocab_size=size, max_length=transformer.config.seq_len, max_tokens=60)
    steps = generate(transformer, transformer.new_cache(), sequence)
    report[name] = {"digest": hashlib.sha256(logits.tobytes()).hexdigest(), "story": [step.token for step in steps]}
print(json.dumps({"isa": llama2c.build_info()["isa"], "models": report}))
"""


def run(arguments: list[Any], cwd: Path, isa: str) -> subprocess.CompletedProcess[str]:
    """Python elsewhere, with the llama2c of these tests and a level of our choice."""
    places = [str(Path(llama2c.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "LLAMA2C_ISA": isa, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def by_level(paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], Path]]:
    """Each level this machine runs -> what the script said in a process of its own, and the folder of its logits."""
    models, found = json.dumps({name: [str(paths[name]), tokens_of(name)] for name in OPENED}), {}
    for level in _kernels.levels:
        folder = tmp_path_factory.mktemp(level)
        done = run(["-c", SCRIPT, models, folder], folder, level)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["isa"] == level
        found[level] = report["models"], folder
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_level_with_fused_operations_gives_the_same_bits(
    by_level: dict[str, tuple[dict[str, Any], Path]], expected: dict[str, np.ndarray], name: str
) -> None:
    fused = [level for level in by_level if level != "generic"]
    if len(fused) < 2:
        pytest.skip(f"needs two instruction sets with a fused multiply-add, found {', '.join(_kernels.levels)}")
    first, *others = (by_level[level][0][name] for level in fused)
    if _kernels.isa != "generic":
        assert first["digest"] == hashlib.sha256(expected[name].tobytes()).hexdigest()
    for level, other in zip(fused[1:], others, strict=True):
        assert_same(np.load(by_level[level][1] / f"{name}.npy"), np.load(by_level[fused[0]][1] / f"{name}.npy"))
        assert other["digest"] == first["digest"]
        assert other["story"] == first["story"]


def test_another_python_gives_the_same_bits(
    paths: dict[str, Path], by_level: dict[str, tuple[dict[str, Any], Path]], tmp_path: Path
) -> None:
    """With its own llama2c: of another compiler, or of another architecture in an emulator (`make aarch64`)."""
    python = os.environ.get("LLAMA2C_OTHER_PYTHON")
    if python is None:
        pytest.skip("LLAMA2C_OTHER_PYTHON names no other Python with llama2c to compare with")
    models = json.dumps({name: [str(paths[name]), tokens_of(name)] for name in OPENED})
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [python, "-c", SCRIPT, models, tmp_path]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["isa"] != "generic"
    fused = [level for level in by_level if level != "generic"]
    assert fused, "this machine has no instruction set with a fused multiply-add to compare with"
    assert report["models"] == by_level[fused[0]][0]


@pytest.mark.parametrize("name", NAMES)
def test_generic_is_close(by_level: dict[str, tuple[dict[str, Any], Path]], expected: dict[str, np.ndarray], name: str) -> None:
    """Q8_0 is chaotic in its last bits: a rounding the other way moves everything after it."""
    found = np.load(by_level["generic"][1] / f"{name}.npy")
    tolerance = 2e-5 if MODELS[name][1] is None else 5e-2
    np.testing.assert_allclose(found, expected[name], rtol=0, atol=tolerance * np.abs(expected[name]).max())


@pytest.mark.parametrize("level", [level for level in _kernels.levels if level != _kernels.isa])
def test_every_other_level_passes_the_tests_of_the_kernels(tmp_path: Path, level: str) -> None:
    """The tests of the kernels have run on the level in use; here they run on those that would be compiled and never tried."""
    root = Path(__file__).parents[1]
    options = ["-q", "-p", "no:cacheprovider", "-c", root / "pyproject.toml", "--rootdir", root]
    files = [Path(__file__).with_name(f"test_kernels{part}.py") for part in ("", "_blocks")]
    done = run(["-m", "pytest", *options, *files], tmp_path, level)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


@pytest.mark.parametrize("level", ["sse9", "AVX2", "avx512,avx2"])
def test_a_level_the_machine_lacks_is_an_import_error(tmp_path: Path, level: str) -> None:
    """As soon as anything is imported from the package that needs the kernels."""
    names = ", ".join(_kernels.levels)
    for code in ("from llama2c import load", "import llama2c; llama2c.Transformer", "import llama2c; llama2c.build_info()"):
        done = run(["-c", code], tmp_path, level)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == (
            f"ImportError: LLAMA2C_ISA: expected one of {names} on this machine, found {level!r}"
        )
