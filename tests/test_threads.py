"""threads: an explicit number, OMP_NUM_THREADS, cores and quotas. No real control group is read."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from llama2c import build_info, threads
from llama2c.threads import MOST, SMALL_MODEL, available_cores, cgroup_quota, decide_n_threads

LARGE = 10 * SMALL_MODEL


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: 8)
    monkeypatch.setattr(threads, "openmp", True)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_the_default_is_all_cores_and_one_for_a_tiny_model() -> None:
    assert decide_n_threads(None, LARGE) == 8
    assert decide_n_threads(None, SMALL_MODEL) == 8
    assert decide_n_threads(None, SMALL_MODEL - 1) == 1


@pytest.mark.parametrize(("text", "expected"), [("2", 2), ("3,2", 3), (" 4 ", 4), ("1", 1), ("5, 1", 5)])
def test_the_environment_is_obeyed_for_tiny_models_too(monkeypatch: pytest.MonkeyPatch, text: str, expected: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert decide_n_threads(None, LARGE) == expected
    assert decide_n_threads(None, 1) == expected


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_variable_is_ignored(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert decide_n_threads(None, LARGE) == 8
    assert decide_n_threads(None, 1) == 1


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
    assert decide_n_threads(3, LARGE) == 3  # an explicit number comes first


def test_an_explicit_number_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert decide_n_threads(5, LARGE) == 5
    assert decide_n_threads(8, 1) == 8


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
        assert decide_n_threads(9, LARGE) == 9
    monkeypatch.setenv("OMP_NUM_THREADS", "12,2")
    with pytest.warns(RuntimeWarning, match="^OMP_NUM_THREADS=12 is more than the 8 cores here"):
        assert decide_n_threads(None, LARGE) == 12
    monkeypatch.setattr(threads, "available_cores", lambda: 1)
    with pytest.warns(RuntimeWarning, match="^n_threads=2 is more than the 1 core here"):
        assert decide_n_threads(2, LARGE) == 2


def test_a_build_without_openmp_runs_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "openmp", False)
    assert decide_n_threads(None, LARGE) == 1
    assert decide_n_threads(1, LARGE) == 1
    with pytest.warns(RuntimeWarning, match="^n_threads=4: this build has no OpenMP"):
        assert decide_n_threads(4, LARGE) == 1


def test_build_info_has_the_number_for_a_large_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_info()["n_threads"] == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert build_info()["n_threads"] == 3


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
