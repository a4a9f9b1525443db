"""Processes: Ctrl-C, forks and pools, limits of memory and of threads, bound threads, a file replaced under a running model.

Whatever could end or hang a process is done in a process of its own. A hang fails by the time limit of run().
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest

import llama2c
from llama2c import Checkpoint, Transformer, _kernels, build_info
from llama2c._kernels import MAX_WORK, count_layer_weights
from llama2c.config import Config
from llama2c.formats.layout import make_layout
from llama2c.transformer import MAX_ROWS, MIN_ROWS, rows_per_step

CONFIG = Config(96, 260, 3, 6, 2, 203, 256)
TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, 203, 40)]

needs_openmp = pytest.mark.skipif(not build_info()["openmp"], reason="this build has no OpenMP")
instrumented = "LLAMA2C_SANITIZE" in os.environ  # by make sanitize: slow, and with address space to spare


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = checkpoints.random_weights(CONFIG, np.random.default_rng(1))
    return checkpoints.write(tmp_path_factory.mktemp("processes") / "model.bin", CONFIG, 0, weights)


def logits_of(path: Path) -> np.ndarray:
    transformer = Transformer(Checkpoint.open(path), n_threads=1)
    return transformer.forward(TOKENS, transformer.new_cache())


# What every script begins with. limit() allows so many bytes more than are in use; check() does work that must come out right.
PRELUDE = """
import os, resource, sys, threading, warnings
import numpy as np
from llama2c import Checkpoint, Transformer

path, expected, tokens = sys.argv[1], np.load(sys.argv[2]), list(map(int, sys.argv[3].split(",")))
checkpoint = Checkpoint.open(path)
warnings.filterwarnings("ignore", message="n_threads=. is more than the")

def check(transformer, cache=None):
    found = transformer.forward(tokens, cache or transformer.new_cache())
    assert found.tobytes() == expected.tobytes()

def n_own_threads():
    return len(os.listdir("/proc/self/task"))

def limit(more):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))

def wait_for(pid):
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, status
"""


@pytest.fixture
def run(path: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """run(script, *arguments, **environment): a Python process that must end well."""
    np.save(tmp_path / "expected.npy", logits_of(path))

    def run(script: str, *arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "script.py"
        file.write_text(PRELUDE + script)
        places = [str(Path(llama2c.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        given = [path, tmp_path / "expected.npy", ",".join(map(str, TOKENS)), *arguments]
        done = subprocess.run(
            [sys.executable, file, *map(str, given)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "OPENBLAS_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


# ---------------------------------------------------------------------------------------------- Ctrl-C


def test_rows_are_fewer_where_layers_are_large() -> None:
    """A layer of 256 rows of a 7B model takes seconds on one thread."""
    llama_7b = Config(4096, 11008, 32, 32, 32, 32000, 2048)
    assert count_layer_weights(llama_7b) == 4 * 4096**2 + 3 * 4096 * 11008
    assert rows_per_step(CONFIG, 1) == rows_per_step(Config(768, 2048, 12, 12, 12, 32000, 1024), 1) == MAX_ROWS == 256
    assert rows_per_step(llama_7b, 1) == MIN_ROWS
    assert MAX_WORK == 2**31
    assert rows_per_step(llama_7b, 4) == 4 * 2**31 // count_layer_weights(llama_7b) == 42
    assert rows_per_step(llama_7b, 64) == MAX_ROWS


CTRL_C = """
import signal, time
from llama2c.config import Config

transformer = Transformer(checkpoint, n_threads=1)
large = Transformer(Checkpoint.open(sys.argv[4]), n_threads=1)
cache, large_cache = transformer.new_cache(), large.new_cache()
sent = []

def press():
    sent.append(time.process_time())
    os.kill(os.getpid(), signal.SIGINT)

threading.Timer(0.3, press).start()
try:
    large.forward([1] * 1000, large_cache)
except KeyboardInterrupt:
    print(time.process_time() - sent[0])  # what we computed since: how long others kept us waiting is not ours
assert large_cache.length == 0
start = time.process_time()
large.forward([1] * large._rows_per_step, large_cache)
print(time.process_time() - start)
large_cache.truncate(0)
large.forward([1], large_cache)
assert large_cache.length == 1
check(transformer, cache)
"""


def test_ctrl_c_in_a_long_prefill(run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """The step that it interrupts takes a second or more, and ends after a few tenths. The weights are a hole in a file."""
    config = Config(1536, 4096, 6, 12, 12, 512, 1024)
    sizes = [1536, 4096, 6, 12, 12, 512, 1024]
    with open(tmp_path / "large.bin", "wb") as file:
        file.write(np.array(sizes, "<i4").tobytes())
        file.truncate(make_layout(config, 0, True).file_size)
    reaction, step = map(float, run(CTRL_C, tmp_path / "large.bin").stdout.split())
    (tmp_path / "large.bin").unlink()
    assert reaction < step / 2, (reaction, step)


class InterruptError(Exception):
    """Raised by the handler of these tests, as KeyboardInterrupt is by Python's."""


def test_interrupts_at_any_moment_leave_the_cache_usable(path: Path) -> None:
    """Hundreds of signals at random moments: a token is fed or it is not, and no cache stays taken."""
    transformer = Transformer(Checkpoint.open(path), n_threads=1)
    expected, cache = transformer.forward(TOKENS, transformer.new_cache(), logits=None), transformer.new_cache()
    out, rng, interrupted = np.empty(CONFIG.vocab_size, np.float32), np.random.default_rng(0), 0

    def interrupt(number: int, frame: object) -> None:
        raise InterruptError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        while interrupted < 500:
            length = cache.length
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 3e-4))
                while True:
                    if cache.length == len(TOKENS):
                        cache.truncate(0)
                    length = cache.length
                    transformer.forward([TOKENS[length]], cache, out=out)
            except InterruptError:
                interrupted += 1
            assert cache.length in (length, length + 1, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    cache.truncate(min(cache.length, 10))
    found = transformer.forward(TOKENS[cache.length :], cache)
    np.testing.assert_array_equal(found.view(np.uint32), expected[-1].view(np.uint32))


# ---------------------------------------------------------------------------------------------- forks

FORKED = "This process was forked after llama2c had run on several threads, so llama2c runs on one thread here."

FORK = """
def child():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        check(two)
        check(two)
        check(Transformer(checkpoint, n_threads=2))
    print([str(warning.message)[:101] for warning in told if "more than the" not in str(warning.message)], n_own_threads())
    sys.stdout.flush()

two = Transformer(checkpoint, n_threads=2)
check(two)
pid = os.fork()
if pid == 0:
    child()
    if os.fork() == 0:  # a child's child has been told already
        check(two)
        os._exit(0 if n_own_threads() == 1 else 3)
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
wait_for(pid)
check(two)  # the parent goes on with all its threads
print(n_own_threads())
"""


@needs_openmp
def test_a_fork_after_use_runs_on_one_thread_and_says_so_once(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert run(FORK).stdout.splitlines() == [f"['{FORKED}'] 1", "2"]


FORK_IN_A_THREAD = """
two = Transformer(checkpoint, n_threads=2)
pids = []

def work():
    check(two)
    pid = os.fork()
    if pid == 0:
        warnings.simplefilter("ignore")
        check(two)
        return  # the thread ends, and with it the child: OpenMP's runtime must not wait for threads that are not there
    pids.append(pid)
    check(two)

thread = threading.Thread(target=work)
thread.start()
thread.join()
if pids:
    wait_for(pids[0])
    print("parent")
"""


@needs_openmp
def test_a_fork_in_a_thread_that_returns(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert run(FORK_IN_A_THREAD).stdout == "parent\n"


FORK_BESIDE_A_STEP = """
n_threads = int(sys.argv[4])
transformer = Transformer(checkpoint, n_threads=n_threads)
cache, taken, forked, after = transformer.new_cache(), threading.Event(), threading.Event(), []
transformer.forward(tokens[:7], cache)

class Slow:  # a token id that is looked at while its cache is taken
    def __index__(self):
        taken.set()
        forked.wait()
        return tokens[7]

def step():
    transformer.forward([Slow(), *tokens[8:]], cache)

thread = threading.Thread(target=step)
thread.start()
taken.wait()
pid = os.fork()
if pid == 0:
    warnings.simplefilter("ignore")
    assert cache.length == 7
    assert transformer.forward(tokens[7:], cache).tobytes() == expected.tobytes()
    check(transformer)
    os._exit(0)
forked.set()
thread.join()
assert cache.length == len(tokens)
wait_for(pid)
"""


@pytest.mark.parametrize("n_threads", [1, pytest.param(2, marks=needs_openmp)])
def test_a_cache_that_another_thread_used_is_free_in_the_child(
    run: Callable[..., subprocess.CompletedProcess[str]], n_threads: int
) -> None:
    run(FORK_BESIDE_A_STEP, n_threads)


FORKS_BESIDE_THREADS = """
two = Transformer(checkpoint, n_threads=2)
done = threading.Event()

def work():
    while not done.is_set():
        check(two)

threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(20):
    check(two)
    pid = os.fork()
    if pid == 0:
        warnings.simplefilter("ignore")
        check(two)
        os._exit(0)
    wait_for(pid)
done.set()
for thread in threads:
    thread.join()
"""


@needs_openmp
def test_forks_while_threads_run_steps(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    run(FORKS_BESIDE_THREADS)


FORK_BEFORE_THREADS = """
two = Transformer(checkpoint, n_threads=2)
check(Transformer(checkpoint, n_threads=1))
pid = os.fork()
if pid == 0:
    warnings.simplefilter("error")
    check(two)
    os._exit(0 if n_own_threads() == 2 else 3)
wait_for(pid)
"""


@needs_openmp
def test_a_fork_before_any_thread_has_all_of_them(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    run(FORK_BEFORE_THREADS)


POOL = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

two = Transformer(checkpoint, n_threads=2)

def work(number):
    with warnings.catch_warnings(record=True):
        check(two)
    return n_own_threads()

if __name__ == "__main__":
    method = sys.argv[4]
    check(two)
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        for n_threads in pool.map(work, range(6), timeout=100):
            assert (n_threads == 1) == (method == "fork"), n_threads
    with multiprocessing.get_context(method).Pool(2) as pool:
        pool.map(work, range(6))
"""


@needs_openmp
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools(run: Callable[..., subprocess.CompletedProcess[str]], method: str) -> None:
    run(POOL, method)


# ---------------------------------------------------------------------------------------------- memory and threads

TOO_LARGE = """
from llama2c.config import Config

transformer = Transformer(checkpoint, n_threads=1)
cache = transformer.new_cache()
limit(int(sys.argv[4]))
tries = {
    "cache": lambda: [transformer.new_cache() for _ in range(1000)],
    "logits": lambda: transformer.forward_batch([([1], cache)] * 100_000),
    "copy": lambda: [Checkpoint.open(path, mmap=False) for _ in range(1000)],
}
for name, attempt in tries.items():
    try:
        attempt()
    except MemoryError as error:
        print(name, error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
check(transformer, cache)
"""


@pytest.mark.skipif(instrumented, reason="the sanitizer reserves terabytes of address space")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc, to know how much memory is in use")
def test_a_limit_of_memory_is_an_exception(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    lines = run(TOO_LARGE, 32 << 20).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["cache", "logits", "copy"]
    assert lines[0].startswith("cache cache: 256 positions take ")


# A thread of Python's starts, then the limit falls: what the step needs there is refused at one point after the other.
EVERY_LIMIT = """
counts = {}

def work(more, ready, go):
    transformer = Transformer(checkpoint, n_threads=4)
    cache = transformer.new_cache()
    out = np.empty(len(expected), np.float32)
    ready.set()
    go.wait()
    limit(more)
    try:
        transformer.forward(tokens, cache, out=out)
        name = "right" if (out == expected).all() else "wrong"
    except MemoryError:
        name = "refused"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    counts[name] = counts.get(name, 0) + 1

warnings.simplefilter("ignore")
for more in [*range(0, 1 << 20, 1 << 15), *range(1 << 20, 48 << 20, 1 << 20)]:
    ready, go = threading.Event(), threading.Event()
    thread = threading.Thread(target=work, args=(more, ready, go))
    thread.start()
    ready.wait()
    go.set()
    thread.join()
print(sorted(counts))
"""


@needs_openmp
@pytest.mark.skipif(instrumented, reason="the sanitizer reserves terabytes of address space")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc, to know how much memory is in use")
def test_no_limit_of_memory_ends_the_process(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """GCC's OpenMP would, when it cannot start a thread or has no memory for its own lists."""
    outcomes = run(EVERY_LIMIT, OMP_STACKSIZE="8M").stdout
    assert "right" in outcomes
    assert "wrong" not in outcomes


FEWER_THREADS = """
transformer = Transformer(checkpoint, n_threads=4)
exec(sys.argv[4])
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for _ in range(3):
        check(transformer)
print(*(warning.message for warning in told), sep="\\n")
print(n_own_threads())
"""
NO_PROCESSES = """
if os.getuid() == 0:  # whom this limit does not bind
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
"""


def fewer(beside: int) -> str:
    return f"n_threads=4: the system lets llama2c start {beside} of 3 more threads"


@needs_openmp
@pytest.mark.skipif(instrumented, reason="the sanitizer reserves terabytes of address space")
def test_threads_that_cannot_be_started_for_lack_of_memory(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """There is no room for their stacks: for none of them, or for two of three."""
    assert run(FEWER_THREADS, "", OMP_STACKSIZE="1000000G").stdout.splitlines() == [fewer(0), "1"]
    done = run(FEWER_THREADS, "limit(1200 << 20)", OMP_STACKSIZE="500M")
    assert done.stdout.splitlines() == [fewer(2), "3"]


@needs_openmp
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads do not count as processes")
def test_threads_that_the_user_may_not_start(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert run(FEWER_THREADS, NO_PROCESSES).stdout.splitlines() == [fewer(0), "1"]


CORES = """
from llama2c import build_info
from llama2c.threads import available_cores, decide_n_threads

warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    decide_n_threads(int(sys.argv[4]), 10**9)
print(available_cores(), build_info()["n_threads"], len(told), len(os.sched_getaffinity(0)))
check(Transformer(checkpoint, n_threads=2))
"""


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
@pytest.mark.parametrize(
    "variable",
    ["OMP_PROC_BIND=true", "OMP_PROC_BIND=close", "OMP_PROC_BIND=spread", "OMP_PLACES=cores", "OMP_PLACES=threads"],
)
def test_the_cores_are_all_that_threads_are_bound_to(
    run: Callable[..., subprocess.CompletedProcess[str]], variable: str
) -> None:
    """The runtime binds the thread that loads it to one place, whose affinity is then one core, and other threads elsewhere."""
    cores = build_info()["n_threads"]
    name, value = variable.split("=")
    found = run(CORES, cores, **{name: value}).stdout.split()
    assert found[:3] == [str(cores), str(cores), "0"]
    assert int(found[3]) <= cores


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_a_list_of_cores_is_obeyed(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Where the user names fewer cores than there are, there is a warning for more threads than that."""
    core = min(os.sched_getaffinity(0))
    for name, value in {"GOMP_CPU_AFFINITY": f"{core}", "OMP_PLACES": f"{{{core}}}", "OMP_PROC_BIND": "master"}.items():
        assert run(CORES, 2, **{name: value}).stdout.split() == ["1", "1", "1", "1"], name


STACK = """
from llama2c._kernels import LEAST_STACK, stack_size

print(stack_size(os.environ), LEAST_STACK)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for _ in range(3):
        check(Transformer(checkpoint, n_threads=2))
print(*(warning.message for warning in told if "more than the" not in str(warning.message)), sep="\\n")
print(n_own_threads())
"""


@needs_openmp
@pytest.mark.parametrize(
    ("value", "size"), [("1", 1024), ("16k", 16384), ("32K", 32768), ("1B", 1), (" +20 ", 20480), ("40000 b", 40000)]
)
def test_a_stack_too_small_for_the_kernels_means_one_thread(
    run: Callable[..., subprocess.CompletedProcess[str]], value: str, size: int
) -> None:
    """It was a segmentation fault. One line says why."""
    assert run(STACK, OMP_STACKSIZE=value).stdout.splitlines() == [
        f"{size} 65536",
        f"n_threads=2: OMP_STACKSIZE gives a thread {size} bytes of stack, and llama2c needs 65536, so it runs on one thread",
        "1",
    ]


@needs_openmp
@pytest.mark.skipif(instrumented, reason="instrumented functions need more")
def test_the_least_stack_is_enough(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert run(STACK, OMP_STACKSIZE="64k").stdout.splitlines() == ["65536 65536", "", "2"]
    assert run(STACK, OMP_STACKSIZE="0").stdout.splitlines() == ["0 65536", "", "2"]


def test_stack_sizes_are_read_as_the_runtime_reads_them() -> None:
    sizes = {"512": 512 << 10, "3m": 3 << 20, "1 G": 1 << 30, "\t7K\n": 7 << 10, "": 0, "abc": 0, "-1": 0, "1.5m": 0, "2 kb": 0}
    for text, size in sizes.items():
        assert _kernels.stack_size({"OMP_STACKSIZE": text}) == size, text
        assert _kernels.stack_size({"GOMP_STACKSIZE": text}) == size, text
    assert _kernels.stack_size({"OMP_STACKSIZE": "abc", "GOMP_STACKSIZE": "20"}) == 20480
    assert _kernels.stack_size({"OMP_STACKSIZE": "30", "GOMP_STACKSIZE": "20"}) == 30720
    assert _kernels.stack_size({}) == 0


# ---------------------------------------------------------------------------------------------- files in use


def test_a_checkpoint_that_is_replaced_keeps_its_content_where_it_is_open(path: Path, tmp_path: Path) -> None:
    """A rename puts another model in its place; the open one goes on with the old, a new one finds the new."""
    place, new = tmp_path / "model.bin", tmp_path / "new.bin"
    place.write_bytes(path.read_bytes())
    transformer = Transformer(Checkpoint.open(place), n_threads=1)
    cache, expected = transformer.new_cache(), logits_of(path)
    transformer.forward(TOKENS[:20], cache)
    checkpoints.write(new, CONFIG, 0, checkpoints.random_weights(CONFIG, np.random.default_rng(2)))
    os.replace(new, place)
    np.testing.assert_array_equal(transformer.forward(TOKENS[20:], cache), expected)
    assert not np.array_equal(logits_of(place), expected)


def test_a_checkpoint_in_memory_may_be_edited_in_place(path: Path, tmp_path: Path) -> None:
    place = tmp_path / "model.bin"
    place.write_bytes(path.read_bytes())
    transformer = Transformer(Checkpoint.open(place, mmap=False), n_threads=1)
    place.write_bytes(b"")
    np.testing.assert_array_equal(transformer.forward(TOKENS, transformer.new_cache()), logits_of(path))


# ---------------------------------------------------------------------------------------------- threads of Python


@needs_openmp
def test_threads_of_python_come_and_go(path: Path) -> None:
    """A server that has a thread for each request: each brings a pool of OpenMP's, which must go with it."""
    transformer, expected, wrong = Transformer(Checkpoint.open(path), n_threads=2), logits_of(path), []

    def work() -> None:
        found = transformer.forward(TOKENS, transformer.new_cache())
        if not np.array_equal(found, expected):
            wrong.append(found)

    for _ in range(30):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    if Path("/proc/self/task").exists():
        assert len(os.listdir("/proc/self/task")) < 30 * 4
