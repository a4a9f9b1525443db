"""`batch --ray` and Predictor on a real cluster: the same bytes with one actor, with two and without Ray, whatever dies.

`make cluster` runs these tests. They need Ray, and take a few minutes.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]  # warnings of Ray itself
FLAGS = ("--max-tokens", "120", "--max-sequences", "8", "--part", "25")
N_LINES = 200


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """IN with two files, and what `batch` makes of each in `expected`."""
    words = "dog cat bird girl mouse bear cow fox hen pig".split()
    for name, first in (("a.jsonl", 0), ("b.json", 1)):
        lines = [{"prompt": f"The {words[i % 10]} {i}", "id": i} for i in range(first, N_LINES, 2)]
        lines[7] = {"prompt": "wrong", "colour": 1}  # type: ignore[dict-item]
        path = tmp_path / "IN" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.fixture
def expected(folder: Path, batch: Callable[..., Any]) -> dict[str, bytes]:
    """What a plain loop makes of each file of IN."""
    found = {}
    for path in (folder / "IN").iterdir():
        assert batch(path, "-o", folder / path.stem, "--ordered", "--threads", 1, *FLAGS[:2]).result()[0] == 1
        found[path.stem] = (folder / path.stem).read_bytes().split(b"\n", 1)[1]
    return found


def made(out: Path) -> dict[str, bytes]:
    """The bytes of the parts of each file, joined."""
    found: dict[str, bytes] = {}
    for path in sorted(out.glob("*.jsonl")):
        stem = path.name.rpartition("-")[0]
        found[stem] = found.get(stem, b"") + path.read_bytes()
    return found


def n_begun(out: Path) -> int:
    """Answers in parts that are not whole."""
    n_lines = [path.read_bytes().count(b"\n") for path in (out / "_batch").glob("*.work")]
    return sum(n - 1 for n in n_lines if n)  # the first line is the plan


@pytest.mark.parametrize("n_nodes", [1, 2])
def test_the_same_bytes_as_without_a_cluster(
    n_nodes: int, nodes: Callable[[int], Any], batch: Callable[..., Any], folder: Path, expected: dict[str, bytes]
) -> None:
    address = nodes(n_nodes).address
    out = folder / "OUT"
    command = (folder / "IN", "-o", out, "--ray", address, *FLAGS)
    code, printed = batch(*command).result()
    assert code == 1 and f"{N_LINES} requests answered, 2 wrong; " in printed, printed
    assert printed.splitlines()[-1].endswith("2 requests are wrong; `error` in their answers says why")
    assert made(out) == expected
    assert sorted(path.name for path in out.iterdir()) == ["_batch", *(f"{s}-{i:05}.jsonl" for s in "ab" for i in range(4))]
    (out / "b-00002.jsonl").unlink()
    code, printed = batch(*command).result()
    assert "25 requests answered, 2 wrong, 175 were done before; " in printed and made(out) == expected, printed


def test_an_actor_and_a_node_die(
    nodes: Callable[[int], Any], batch: Callable[..., Any], folder: Path, expected: dict[str, bytes]
) -> None:
    """Nobody starts it again: the job goes on by itself, with what is left of the cluster."""
    cluster = nodes(2)
    out = folder / "OUT"
    running = batch(folder / "IN", "-o", out, "--ray", cluster.address, *FLAGS)
    running.wait_for(lambda: n_begun(out) > 4 and all(cluster.actors(node) for node in cluster.workers))
    for pid in cluster.actors(cluster.workers[0]):
        os.kill(pid, signal.SIGKILL)
    running.wait_for(lambda: len(list(out.glob("*.jsonl"))) > 1 and n_begun(out) > 4)
    cluster.cluster.remove_node(cluster.workers[1], allow_graceful=False)
    code, printed = running.result()
    assert code == 1 and "2 wrong" in printed, printed
    assert made(out) == expected


def test_the_driver_dies_and_the_same_command_goes_on(
    nodes: Callable[[int], Any], batch: Callable[..., Any], folder: Path, expected: dict[str, bytes]
) -> None:
    cluster = nodes(2)
    out = folder / "OUT"
    command = (folder / "IN", "-o", out, "--ray", cluster.address, *FLAGS)
    for end in (signal.SIGKILL, signal.SIGINT):
        running = batch(*command)
        begun = n_begun(out), len(list(out.glob("*.jsonl")))
        running.wait_for(lambda begun=begun: (n_begun(out), len(list(out.glob("*.jsonl")))) != begun)
        running.process.send_signal(end)
        assert running.result()[0] in (-signal.SIGKILL, 130)
    code, printed = batch(*command).result()
    assert code == 1 and " were done before; " in printed, printed
    assert made(out) == expected


def test_a_machine_with_another_model(nodes: Callable[[int], Any], batch: Callable[..., Any], folder: Path) -> None:
    """A clear line, and nothing of what was made is lost."""
    import llama2c.locate as locate

    model = folder / "model.bin"
    model.write_bytes(locate.BUNDLED.read_bytes())
    (folder / "tokenizer.bin").write_bytes(locate.BUNDLED.with_name("tokenizer.bin").read_bytes())
    cluster = nodes(1)
    out = folder / "OUT"
    command = (model, folder / "IN", "-o", out, "--ray", cluster.address, *FLAGS)
    assert batch(*command).result()[0] == 1
    (out / "a-00001.jsonl").unlink()
    before = made(out)
    data = bytearray(model.read_bytes())
    data[5000] ^= 1
    model.write_bytes(data)
    code, printed = batch(*command).result()
    assert code == 1 and "expected a model with the fingerprint" in printed and "--restart begins anew" in printed, printed
    assert made(out) == before


def test_no_cluster_and_no_room(nodes: Callable[[int], Any], batch: Callable[..., Any], folder: Path) -> None:
    command = (folder / "IN", "-o", folder / "OUT", *FLAGS, "--ray")
    code, printed = batch(*command, "127.0.0.1:1").result()
    assert code == 1 and "error: --ray: expected a cluster at 127.0.0.1:1 (ray start" in printed.splitlines()[-1], printed
    code, printed = batch(*command, nodes(1).address, "--actor-cpus", 5).result()
    assert code == 1 and "--actor-cpus: expected a machine with 5 cores in the cluster, found none" in printed, printed


def test_parquet(nodes: Callable[[int], Any], batch: Callable[..., Any], folder: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    import llama2c

    rows = {"question": [f"The dog {i}" for i in range(60)], "id": [f"row {i}" for i in range(60)], "url": ["u"] * 60}
    (folder / "tables").mkdir()
    pq.write_table(pa.table(rows), folder / "tables" / "t.parquet", row_group_size=40)
    out = folder / "OUT"
    command = (folder / "tables", "-o", out, "--ray", nodes(2).address, "--column", "question", *FLAGS)
    assert batch(*command).result()[0] == 0
    found = pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("*.parquet"))])
    predict = llama2c.Predictor(prompt_column="question", id_column="id", max_tokens=120, n_threads=1)
    assert found.equals(predict(pa.table(rows)))
    assert [pq.read_metadata(path).num_rows for path in sorted(out.glob("*.parquet"))] == [25, 15, 20]


def test_predictor_in_ray_data(nodes: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One actor, two actors and a plain loop give the same bytes."""
    import ray
    import ray.data

    import llama2c

    rows = [{"prompt": f"The dog {i}", "id": i, "url": "u"} for i in range(40)]
    options = {"max_tokens": 20, "id_column": "id"}
    predict = llama2c.Predictor(**options, n_threads=1)  # type: ignore[arg-type]
    expected = [predict({name: [row[name]] for name in row}) for row in rows]
    ray.init(address=nodes(2).address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        for batch_format in ("numpy", "pandas", "pyarrow"):
            for n_actors in (1, 2):
                dataset = ray.data.from_items(rows, override_num_blocks=8).map_batches(
                    llama2c.Predictor, fn_constructor_kwargs=options, concurrency=n_actors, num_cpus=1,
                    batch_size=4, batch_format=batch_format,
                )  # fmt: skip
                found = sorted(dataset.take_all(), key=lambda row: row["id"])
                assert found == [{name: values[0] for name, values in row.items()} for row in expected]
    finally:
        ray.shutdown()
