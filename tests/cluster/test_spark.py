"""Predictor in Spark, on two local processes: the rows of pandas. Needs pyspark and Java."""

from __future__ import annotations

import shutil
import sys

import pytest

import llama2c

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]
SCHEMA = (
    "prompt string, id string, text string, finish_reason string, prompt_tokens long, generation_tokens long, error string, "
    "fingerprint string"
)


def test_frames_in_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    pd, sql = pytest.importorskip("pandas"), pytest.importorskip("pyspark.sql", reason="needs Spark: pip install pyspark")
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    prompts = [None if i == 5 else f"The dog {i}" for i in range(40)]
    frame = pd.DataFrame({"prompt": prompts, "id": [f"row {i:02}" for i in range(40)]})
    predict = llama2c.Predictor(id_column="id", max_tokens=20, n_threads=1)
    settings = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.driver.memory": "512m"}
    spark = sql.SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    try:
        rows = spark.createDataFrame(frame).repartition(3)
        found = rows.mapInPandas(lambda frames: map(predict, frames), SCHEMA).toPandas()
    finally:
        spark.stop()
    found = found.sort_values("id")
    expected = predict(frame)
    assert list(found.columns) == list(expected.columns)
    for name in expected.columns:
        both = [column.astype(object).where(column.notna(), None).tolist() for column in (found[name], expected[name])]
        assert both[0] == both[1]
