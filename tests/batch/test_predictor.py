"""Predictor: what Llama gives for the same request and seed, whatever the table and its cuts; pickles, forks, wrong rows."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2c
from llama2c import Predictor, RequestError
from llama2c.batch import opened as opened_module
from llama2c.batch.opened import Model, opened, share_of_machine
from llama2c.errors import ModelError
from llama2c.llama import Llama
from llama2c.locate import BUNDLED
from llama2c.sampler import seed_of_id

PROMPTS = ["The dog", "A brave mouse", "One day,", "The dog saw"] * 3
IDS = [f"row {i}" for i in range(len(PROMPTS))]
TABLE = {"prompt": np.array(PROMPTS, object), "id": np.array(IDS, object)}


def predictor(**arguments: Any) -> Predictor:
    return Predictor(**{"n_threads": 1, "id_column": "id", "max_tokens": 8, **arguments})


def test_each_row_is_what_llama_gives(llama: Llama) -> None:
    found = predictor(temperature=0.7, seed=3)({**TABLE, "max_tokens": np.arange(12), "url": IDS})
    assert found["url"] is IDS and found["prompt"] is TABLE["prompt"]
    for i, prompt in enumerate(PROMPTS):
        expected = llama.generate(prompt, max_tokens=i, temperature=0.7, seed=seed_of_id(3, IDS[i]))
        assert found["text"][i] == expected.text
        assert found["finish_reason"][i] == expected.finish_reason
        assert found["prompt_tokens"][i] == expected.prompt_tokens
        assert found["generation_tokens"][i] == expected.generation_tokens
        assert (found["error"][i], found["fingerprint"][i]) == (None, llama.fingerprint)


def test_cuts_and_order_change_nothing() -> None:
    predict = predictor(max_sequences=3)
    whole = predict(TABLE)["text"]
    order = np.random.default_rng(1).permutation(len(IDS))
    for n in (1, 5):
        for start in range(0, len(IDS), n):
            rows = order[start : start + n]
            assert list(predict({name: column[rows] for name, column in TABLE.items()})["text"]) == list(whole[rows])
    assert len(predict({"prompt": [], "id": []})["text"]) == 0


def test_a_chat_and_the_date(llama: Llama) -> None:
    [text] = predictor(chat=True, temperature=0)({"prompt": ["Hello"], "id": [1]})["text"]
    assert text == llama.chat([{"role": "user", "content": "Hello"}], max_tokens=8, temperature=0).text
    assert predictor(now=date(2026, 1, 31)).__reduce__()[0].keywords["now"] == date(2026, 1, 31)  # type: ignore[index]


def test_an_error_of_a_row_is_in_its_column() -> None:
    table = {
        "prompt": ["The dog", None, "The dog", "The dog " * 500, "The dog"],
        "id": ["a", "b", "c", "d", "e"],
        "temperature": [None, None, -1.0, None, None],
        "now": [None, None, None, None, "2026-01-31"],
    }
    found = predictor()(table)
    errors = list(found["error"])
    assert errors[0] is None and found["text"][0] == predictor()({"prompt": ["The dog"], "id": ["a"]})["text"][0]
    assert errors[1] == "prompt: expected a prompt or messages, found neither"
    assert errors[2].startswith("temperature: expected a finite number of at least 0")
    assert errors[3].startswith("prompt: expected 1 to 320 tokens (the context), found ")
    assert errors[4].startswith("prompt: expected messages")
    assert list(found["text"][1:]) == [None] * 4
    assert list(found["finish_reason"][1:]) == ["error"] * 4
    assert list(found["generation_tokens"]) == [8, 0, 0, 0, 0]


def test_a_row_that_never_fits_the_memory() -> None:
    found = predictor(cache_bytes=1 << 16)({"prompt": ["The dog"] * 2, "id": [1, 2], "max_tokens": [200, 2]})
    assert found["error"][0].startswith("request: expected to need at most 65536 bytes of cache")
    assert found["error"][1] is None


def test_a_seed_is_needed_unless_nothing_is_drawn(llama: Llama) -> None:
    one = {"prompt": ["The dog"]}
    with pytest.raises(RequestError, match="seed: expected an id_column"):
        predictor(id_column=None)(one)
    assert predictor(id_column=None, temperature=0)(one)["error"][0] is None
    mixed = {"prompt": ["The dog"] * 3, "seed": [5, None, None], "temperature": [None, None, 0.0]}
    found = predictor(id_column=None)(mixed)
    assert found["text"][0] == llama.generate("The dog", max_tokens=8, seed=5).text
    assert found["error"][1].startswith("seed: expected an id_column")
    assert found["text"][2] == llama.generate("The dog", max_tokens=8, temperature=0).text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": -1}, RequestError, "temperature: "),
        ({"seed": 2**64}, RequestError, "seed: "),
        ({"seed": None}, TypeError, "seed: "),
        ({"colour": 1}, TypeError, "colour: unknown option"),
        ({"model": "no such.bin"}, OSError, "no such.bin"),
        ({"fingerprint": "0" * 32}, ModelError, "expected a model with the fingerprint 0000"),
        ({"max_sequences": 0}, RequestError, "max_sequences: "),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        predictor(**arguments)


def test_a_pickle_opens_the_model_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.bin").write_bytes(BUNDLED.read_bytes())
    (tmp_path / "tokenizer.bin").write_bytes(BUNDLED.with_name("tokenizer.bin").read_bytes())
    monkeypatch.chdir(tmp_path)
    first = predictor(model="a.bin", tokenizer="tokenizer.bin", seed=4, top_k=3, stop=["."], max_sequences=5)
    data = pickle.dumps(first)
    expected = first(TABLE)
    assert len(data) < 2000
    monkeypatch.chdir("/")
    second = pickle.loads(data)
    assert repr(second) == repr(first) == f"Predictor({str(tmp_path / 'a.bin')!r}, fingerprint={first.fingerprint!r})"
    found = second(TABLE)
    assert all(list(found[name]) == list(expected[name]) for name in expected)
    assert pickle.dumps(second) == data


def test_one_engine_in_a_process() -> None:
    first, second, other = predictor(), predictor(seed=5, temperature=0), predictor(max_sequences=7)
    assert first._opened is second._opened is not other._opened
    assert other._opened.engine.max_sequences == 7
    del first, second, other
    gc.collect()
    assert not [model for _, model in opened_module._opened if model.max_sequences == 7]


def _predict(predict: Predictor) -> list[str]:
    return list(predict(TABLE)["text"])


def test_in_a_child_of_a_fork() -> None:
    predict = predictor()
    expected = _predict(predict)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_predict, (predict,)) == expected


def test_the_share_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened_module, "available_cores", lambda: 16)
    monkeypatch.setattr(opened_module, "usable_memory", lambda: 1 << 30)
    monkeypatch.setattr(opened_module, "default_bytes", lambda: 1 << 27)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert (share_of_machine(None), share_of_machine(4), share_of_machine(32)) == (1, 0.25, 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert share_of_machine(None) == 1 / 8
    monkeypatch.setenv("OMP_NUM_THREADS", "what")
    assert share_of_machine(None) == 1
    engine = opened(Model(n_threads=1)).engine
    assert (engine.cache_bytes, engine.prefix_bytes) == (1 << 25, 1 << 23)


def test_threads_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert Predictor(temperature=0)._opened.llama.transformer.n_threads == 1


def test_the_fingerprint_of_a_row_with_a_constraint() -> None:
    pytest.importorskip("llguidance")
    found = predictor()({"prompt": ["The dog"] * 2, "id": [1, 2], "regex": ["(Yes|No)", None]})
    assert found["text"][0] in ("Yes", "No")
    assert found["fingerprint"][0] != found["fingerprint"][1] == llama2c.load(n_threads=1).fingerprint


def test_pandas() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({**TABLE, "max_tokens": [None, 4] * 6, "seed": pd.array([7, None] * 6, "Int64")}, index=range(5, 17))
    found = predictor()(frame)
    assert list(frame.columns) == ["prompt", "id", "max_tokens", "seed"]
    assert list(found.index) == list(range(5, 17)) and list(found.columns)[4:] == list(predictor()(TABLE))[2:]
    assert list(found["generation_tokens"]) == [8, 4] * 6
    assert list(found["text"][found["id"] == "row 1"]) == list(predictor(max_tokens=4)(TABLE)["text"][1:2])
    assert found["error"].isna().all()
    strings = pd.DataFrame({"prompt": pd.array(PROMPTS, "string"), "id": IDS})
    assert list(predictor()(strings)["text"]) == list(predictor()(TABLE)["text"])


def test_pyarrow() -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({name: list(values) for name, values in TABLE.items()})
    found = predictor()(table)
    assert found.column_names == list(predictor()(TABLE))
    assert found.column("text").to_pylist() == list(predictor()(TABLE)["text"])
    assert [str(found.schema.field(name).type) for name in found.column_names[2:]] == [
        "string", "string", "int64", "int64", "string", "string",
    ]  # fmt: skip
    arrow = {"prompt": pa.array(PROMPTS), "id": pa.chunked_array([IDS[:5], IDS[5:]])}
    assert list(predictor()(arrow)["text"]) == list(predictor()(TABLE)["text"])
