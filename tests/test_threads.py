"""threads: an explicit number, OMP_NUM_THREADS, cores and quotas. No real control group is read."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from llama2c import build_info, threads
from llama2c.threads import MOST, TINY_MODEL, Tuner, Tuners, available_cores, cgroup_quota, decide_n_threads

LARGE = 10 * TINY_MODEL


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: 8)
    monkeypatch.setattr(threads, "openmp", True)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_the_default_is_all_cores_and_one_for_a_tiny_model() -> None:
    assert decide_n_threads(None, LARGE) == (8, "cores")
    assert decide_n_threads(None, TINY_MODEL) == (8, "cores")
    assert decide_n_threads(None, TINY_MODEL - 1) == (1, "tiny model")


@pytest.mark.parametrize(("text", "expected"), [("2", 2), ("3,2", 3), (" 4 ", 4), ("1", 1), ("5, 1", 5)])
def test_the_environment_is_obeyed_for_tiny_models_too(monkeypatch: pytest.MonkeyPatch, text: str, expected: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert decide_n_threads(None, LARGE) == (expected, "OMP_NUM_THREADS")
    assert decide_n_threads(None, 1) == (expected, "OMP_NUM_THREADS")


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_variable_is_ignored(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert decide_n_threads(None, LARGE) == (8, "cores")
    assert decide_n_threads(None, 1) == (1, "tiny model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abc", "OMP_NUM_THREADS: expected a number, found 'abc'"),
        (",2", "OMP_NUM_THREADS: expected a number, found ',2'"),
        ("1.5", "OMP_NUM_THREADS: expected a number, found '1.5'"),
        ("0", f"OMP_NUM_THREADS: expected an integer from 1 to {MOST}, found 0"),
        ("-2", f"OMP_NUM_THREADS: expected an integer from 1 to {MOST}, found -2"),
        ("99999", f"OMP_NUM_THREADS: expected an integer from 1 to {MOST}, found 99999"),
    ],
)
def test_a_wrong_variable_is_refused(monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        decide_n_threads(None, LARGE)
    assert decide_n_threads(3, LARGE) == (3, "n_threads")  # an explicit number comes first


def test_an_explicit_number_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert decide_n_threads(5, LARGE) == (5, "n_threads")
    assert decide_n_threads(8, 1) == (8, "n_threads")


@pytest.mark.parametrize("wrong", [0, -1, MOST + 1])
def test_a_number_out_of_range_is_a_value_error(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"^n_threads: expected an integer from 1 to {MOST}, found {wrong}$"):
        decide_n_threads(wrong, LARGE)


@pytest.mark.parametrize("wrong", [2.0, "2", True, [2]])
def test_anything_but_an_integer_is_a_type_error(wrong: object) -> None:
    with pytest.raises(TypeError, match=f"^n_threads: expected an integer, found {type(wrong).__name__}$"):
        decide_n_threads(wrong, LARGE)  # type: ignore[arg-type]


def test_more_than_the_cores_is_allowed_but_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(RuntimeWarning, match="^n_threads=9 is more than the 8 cores here"):
        assert decide_n_threads(9, LARGE) == (9, "n_threads")
    monkeypatch.setenv("OMP_NUM_THREADS", "12,2")
    with pytest.warns(RuntimeWarning, match="^OMP_NUM_THREADS=12 is more than the 8 cores here"):
        assert decide_n_threads(None, LARGE) == (12, "OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "available_cores", lambda: 1)
    with pytest.warns(RuntimeWarning, match="^n_threads=2 is more than the 1 core here"):
        assert decide_n_threads(2, LARGE) == (2, "n_threads")


def test_a_build_without_openmp_runs_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "openmp", False)
    assert decide_n_threads(None, LARGE) == (1, "no OpenMP")
    assert decide_n_threads(1, LARGE) == (1, "n_threads")
    with pytest.warns(RuntimeWarning, match="^n_threads=4: this build has no OpenMP"):
        assert decide_n_threads(4, LARGE) == (1, "no OpenMP")


def test_build_info_has_the_number_for_a_large_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_info()["n_threads"] == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert build_info()["n_threads"] == 3


def test_only_a_number_that_nobody_asked_for_adapts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decide_n_threads(None, LARGE).adapts
    assert str(decide_n_threads(None, LARGE)) == "up to 8"
    assert not decide_n_threads(8, LARGE).adapts
    assert not decide_n_threads(None, 1).adapts
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert not decide_n_threads(None, LARGE).adapts
    assert str(decide_n_threads(None, LARGE)) == "8"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "available_cores", lambda: 1)
    assert not decide_n_threads(None, LARGE).adapts


# ---------------------------------------------------------------------------------------------- how many are fastest now

Machine = Callable[[int, float, random.Random], tuple[float, float]]  # threads, time -> seconds of a step, of processor time


def idle(steps: dict[int, float]) -> Machine:
    """A machine of our own. steps: threads -> seconds of a step; it varies by a tenth."""

    def step(n_threads: int, now: float, random: random.Random) -> tuple[float, float]:
        seconds = steps[n_threads] * (1 + 0.1 * abs(random.gauss(0, 1)))
        return seconds, n_threads * seconds

    return step


def busy(steps: dict[int, float]) -> Machine:
    """Two cores, one of them used by another program: two threads share the other, or wait for milliseconds."""

    def step(n_threads: int, now: float, random: random.Random) -> tuple[float, float]:
        if n_threads == 1:
            seconds = steps[1] * (1 + 0.05 * abs(random.gauss(0, 1)))
            return seconds, seconds
        stall = random.choice([0.004, 0.008, 0.016]) if random.random() < steps[2] / 0.004 else 0.0
        seconds = max(steps[2], 2 * steps[1] * random.random()) + stall
        return seconds, seconds

    return step


def simulate(
    machine: Machine, tuner: Tuner, seconds: float, start: float = 0.0, seed: int = 1
) -> tuple[float, dict[int, float]]:
    """Steps per second, and the seconds on each number of threads."""
    numbers = random.Random(seed)
    now, steps, spent = start, 0, dict.fromkeys([1, 2, 4, 8, 16], 0.0)
    while now < start + seconds:
        n_threads = tuner.n_threads
        took, ran = machine(n_threads, now, numbers)
        now += took
        CPU[0] += ran
        steps += 1
        spent[n_threads] += took
        tuner.note(n_threads, 1.0, took, now)
    return steps / (now - start), spent


CPU = [0.0]  # the processor time of the simulated process


def make_tuner(most: int, start: int | None = None) -> Tuner:
    return Tuner(most, start or most, lambda: CPU[0])


def best_rate(machine: Machine, seconds: float, counts: Sequence[int] = (1, 2), seed: int = 1) -> float:
    """Steps per second of the best fixed number of threads."""
    return max(fixed(machine, n_threads, seconds, seed) for n_threads in counts)


def fixed(machine: Machine, n_threads: int, seconds: float, seed: int) -> float:
    numbers, now, steps = random.Random(seed), 0.0, 0
    while now < seconds:
        now += machine(n_threads, now, numbers)[0]
        steps += 1
    return steps / now


# Seconds of a step on one thread and on two: stories of 1.7 million weights, the bundled model, 15M, SmolLM2, 1.1 billion.
MODELS = {
    "1.7M": {1: 0.22e-3, 2: 0.13e-3},
    "bundled": {1: 0.27e-3, 2: 0.29e-3},
    "15M": {1: 5.6e-3, 2: 3.3e-3},
    "135M": {1: 18e-3, 2: 10.6e-3},
    "1.1B": {1: 0.3, 2: 0.16},
}
STARTS = [("1.7M", 1), ("bundled", 1), ("15M", 2), ("135M", 2), ("1.1B", 2)]  # a small model begins on one thread


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "start"), STARTS)
def test_an_idle_machine_loses_little_to_trials(name: str, seed: int, start: int) -> None:
    seconds = 30.0 if name == "1.1B" else 1.0
    rate, spent = simulate(idle(MODELS[name]), make_tuner(2, start), seconds, seed=seed)
    assert rate > 0.97 * best_rate(idle(MODELS[name]), seconds, seed=seed)
    assert (spent[1] > spent[2]) == (name == "bundled")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "start"), STARTS)
def test_beside_a_busy_process_one_thread_is_found(name: str, seed: int, start: int) -> None:
    seconds = 30.0 if name == "1.1B" else 2.0
    rate, _ = simulate(busy(MODELS[name]), make_tuner(2, start), seconds, seed=seed)
    assert rate > 0.9 * best_rate(busy(MODELS[name]), seconds, seed=seed)


def test_a_neighbour_that_comes_and_goes() -> None:
    quiet, loud = idle(MODELS["15M"]), busy(MODELS["15M"])
    tuner = make_tuner(2)
    before, _ = simulate(quiet, tuner, 3.0)
    during, spent = simulate(loud, tuner, 3.0, start=3.0)
    after, _ = simulate(quiet, tuner, 6.0, start=6.0)
    assert before > 0.97 * best_rate(quiet, 3.0)
    assert during > 0.9 * best_rate(loud, 3.0)
    assert spent[1] > 10 * spent[2]
    assert after > 0.8 * best_rate(quiet, 6.0)  # it takes a while until it tries two again
    assert tuner.n_threads == 2


def test_the_best_of_many_cores_is_found() -> None:
    steps = {1: 8e-3, 2: 4.2e-3, 4: 2.4e-3, 8: 2.7e-3, 16: 4e-3}
    rate, spent = simulate(idle(steps), make_tuner(16), 2.0)
    assert max(spent, key=spent.__getitem__) == 4
    assert rate > 0.95 * fixed(idle(steps), 4, 2.0, seed=1)
    growing = {1: 8e-3, 2: 4e-3, 4: 2e-3, 8: 1e-3, 16: 0.5e-3}
    rate, spent = simulate(idle(growing), make_tuner(16, start=1), 2.0)
    assert max(spent, key=spent.__getitem__) == 16


def test_other_kinds_of_steps_follow_where_programs_take_cores() -> None:
    tuners = Tuners(2, 2, lambda: CPU[0])
    decode, few, prompt = tuners.for_step(1), tuners.for_step(8), tuners.for_step(128)
    assert len({decode, few, prompt}) == 3
    assert tuners.for_step(2) is tuners.for_step(15) is few
    assert tuners.for_step(16) is prompt
    simulate(busy(MODELS["15M"]), decode, 0.25)
    assert (decode.n_threads, few.n_threads, prompt.n_threads) == (1, 1, 1)
    simulate(idle(MODELS["15M"]), decode, 5.0, start=0.25)
    assert (decode.n_threads, few.n_threads, prompt.n_threads) == (2, 2, 2)


def test_other_kinds_of_steps_do_not_follow_a_model_that_is_too_small() -> None:
    tuners = Tuners(2, 2, lambda: CPU[0])
    simulate(idle(MODELS["bundled"]), tuners.for_step(1), 0.5)
    assert [tuners.for_step(n).n_threads for n in (1, 2, 100)] == [1, 2, 2]


def test_steps_that_are_made_at_the_same_time_share_the_cores() -> None:
    tuners, others, used = Tuners(8, 8), Tuners(8, 8), []

    def inner(n_threads: int) -> None:
        used.append(n_threads)

    def outer(n_threads: int) -> None:
        used.append(n_threads)
        others.run(inner, 1, 1.0)  # of another model, as another thread of Python would make it
        with pytest.raises(KeyboardInterrupt):
            tuners.run(interrupted, 1, 1.0)

    def interrupted(n_threads: int) -> None:
        used.append(n_threads)
        raise KeyboardInterrupt

    tuners.run(outer, 1, 1.0)
    assert used == [8, 4, 4]
    tuners.run(inner, 1, 1.0)
    assert used[-1] == 8  # an interrupted step does not count for ever


def test_a_step_that_ends_while_another_is_noted_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a window could end twice, the second time with no seconds in it."""
    tuners = Tuners(2, 2, lambda: CPU[0])
    noted: list[float] = []

    def note(n_threads: int, work: float, seconds: float, now: float) -> None:
        noted.append(work)
        tuners.run(lambda n_threads: None, 1, 2.0)  # as another thread would

    monkeypatch.setattr(Tuner, "note", lambda self, *values: note(*values))
    tuners.run(lambda n_threads: None, 1, 1.0)
    assert noted == [1.0]
    tuners.run(lambda n_threads: None, 1, 3.0)
    assert noted == [1.0, 3.0]


def test_what_came_before_a_pause_does_not_count() -> None:
    tuner = make_tuner(2)
    now = 0.0
    for _ in range(50):  # steps that look as if another program used a core, each after a pause: no window is ever full
        now += 1.0
        tuner.note(2, 1.0, 0.015, now)
        CPU[0] += 0.015
        assert tuner.n_threads == 2


def test_a_step_on_another_number_than_the_present_one_is_not_counted() -> None:
    tuner = make_tuner(2)
    for i in range(100):
        tuner.note(1, 1.0, 0.01, i * 0.01)
    assert tuner.n_threads == 2


# ---------------------------------------------------------------------------------------------- cores


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
@pytest.mark.parametrize(
    ("cores", "quota", "expected"),
    [(4, None, 4), (4, 2.0, 2), (4, 9.0, 4), (4, 1.6, 2), (4, 0.2, 1), (1, 0.01, 1), (4, 3.4, 3)],
)
def test_cores_are_the_affinity_cut_by_the_quota(
    monkeypatch: pytest.MonkeyPatch, cores: int, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(threads, "cgroup_quota", lambda: quota)
    monkeypatch.setattr(threads, "bound_cores", lambda: 0)
    assert available_cores() == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})  # of a thread that is bound to one place of them
    monkeypatch.setattr(threads, "bound_cores", lambda: cores)
    assert available_cores() == expected


def test_without_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(threads, "bound_cores", lambda: 0)
    monkeypatch.setattr(threads, "cgroup_quota", lambda: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


# ---------------------------------------------------------------------------------------------- quotas of control groups


def quota(tmp_path: Path, own: str, files: dict[str, str]) -> float | None:
    """cgroup_quota() where /proc/self/cgroup is `own` and the tree has these files."""
    root = tmp_path / "cgroup"
    root.mkdir()
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    # Files outside the tree must not be read.
    for name in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"):
        (tmp_path / name).write_text("1 1000\n" if name == "cpu.max" else "1\n")
    (tmp_path / "own").write_text(own)
    return cgroup_quota(root, tmp_path / "own")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ({"a/b/cpu.max": "max 100000\n"}, None),
        ({"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),  # the quota of an outer group counts too
        ({"a/b/cpu.max": "100000 100000\n", "a/cpu.max": "max 100000\n", "cpu.max": "400000 100000\n"}, 1.0),
        ({"cpu.max": "200000 50000\n"}, 4.0),
        ({"c/cpu.max": "10000 100000\n", "a/b/d/cpu.max": "10000 100000\n"}, None),  # other groups
        ({"a/b/cpu.max": "nonsense\n", "a/cpu.max": ""}, None),
    ],
)
def test_quota_of_version_2(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    assert quota(tmp_path, "0::/a/b\n", files) == expected


def test_quota_of_version_2_in_a_container_of_its_own(tmp_path: Path) -> None:
    assert quota(tmp_path, "0::/\n", {"cpu.max": "250000 100000\n"}) == 2.5


OWN_V1 = "12:pids:/x\n4:cpu,cpuacct:/a/b\n3:cpuset:/y\n1:name=systemd:/a:b\n"


def group_v1(place: str, quota: int) -> dict[str, str]:
    return {f"cpu/{place}cpu.cfs_quota_us": f"{quota}\n", f"cpu/{place}cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (group_v1("a/b/", 250000), 2.5),
        (group_v1("a/b/", -1), None),
        ({**group_v1("a/b/", -1), **group_v1("a/", 300000)}, 3.0),
        ({**group_v1("a/b/", 200000), **group_v1("a/", 100000), **group_v1("", -1)}, 1.0),
        (group_v1("", 200000), 2.0),  # in a container the path is that of the host, and the container sees its own group only
        ({"cpu/a/b/cpu.cfs_quota_us": "100000\n"}, None),
        (group_v1("x/", 100000), None),
    ],
)
def test_quota_of_version_1(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    assert quota(tmp_path, OWN_V1, files) == expected


def test_the_smaller_of_both_versions_counts(tmp_path: Path) -> None:
    files = {**group_v1("a/b/", 300000), "s/cpu.max": "200000 100000\n"}
    assert quota(tmp_path, OWN_V1 + "0::/s\n", files) == 2.0


def test_no_quota_where_there_are_no_control_groups(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path, tmp_path / "missing") is None
    assert quota(tmp_path, "", {}) is None
